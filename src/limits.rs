//! The limits: everything that can grow has one. They are checked before any length is cast, so the
//! layers below take them for granted.

/// The longest key in bytes. Its length has two bytes in a record.
pub const MAX_KEY_LEN: usize = 65_535;

/// The longest value in bytes: 64 MiB. A value is read and written in one piece, so it is in memory
/// whole, more than once while it is on its way. What is larger is better split.
pub const MAX_VALUE_LEN: usize = 64 << 20;

/// The most partitions a store can have: far more than there are cores. So many still have each a
/// folder of four digits, and a share of what they divide: 16 KiB of [`CACHE_BYTES`], two files.
pub const MAX_PARTITIONS: usize = 4096;

/// How many bytes of requests each partition takes in before their futures wait: 64 MiB. That is 64
/// of the largest groups, so the device always has the next one, and a slow device is no reason for
/// memory to grow.
///
/// A request counts with its key, its value and [`REQUEST_OVERHEAD`], one of many puts with all of
/// them and 256 bytes more for each; one that is larger than all of it is let in alone.
pub const QUEUE_BYTES: usize = 64 << 20;

/// What a request counts for besides its key and value, in bytes: a round figure for its task and
/// what is noted of it. It bounds requests that carry nothing as well: 65,536 of them at a time.
pub const REQUEST_OVERHEAD: usize = 1024;

/// Memory for values of keys that are read or written often, unless the builder says otherwise:
/// 64 MiB for the whole store. Some 50,000 values of 1 KB, and little beside what a process has;
/// whoever reads more says so.
pub const CACHE_BYTES: usize = 64 << 20;

/// How large a segment of the log grows at most, unless the builder says otherwise: 32 MiB. Small
/// enough that a merge is soon done and space comes back soon, large enough that making files is
/// rare.
pub const SEGMENT_BYTES: u64 = 32 << 20;

/// The smallest segments that can be asked for: 64 KiB, which is 16 blocks: a header, some groups
/// and a seal. Made for tests.
pub const MIN_SEGMENT_BYTES: u64 = 64 << 10;

/// The largest segments that can be asked for: 256 MiB. Where a record lies has to fit 64 bits, of
/// which the offset has enough for twice that.
pub const MAX_SEGMENT_BYTES: u64 = 256 << 20;

/// How many files of its segments a partition keeps open, where the process may have so many: 4 GiB
/// of its log at the default size. Four partitions so have half of the 1024 that are usual.
pub(crate) const MAX_OPEN_SEGMENTS: usize = 128;
