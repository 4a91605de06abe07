//! The limits: everything that can grow has one. They are checked before any length is cast, so the
//! layers below take them for granted.

/// The longest key in bytes. Its length has two bytes in a record.
pub const MAX_KEY_LEN: usize = 65_535;

/// The longest value in bytes: 64 MiB. A value is read and written in one piece.
pub const MAX_VALUE_LEN: usize = 64 << 20;

/// The most partitions a store can have.
pub const MAX_PARTITIONS: usize = 4096;

/// How many bytes of requests each partition takes in before their futures wait: 64 MiB.
///
/// A request counts with its key, its value and [`REQUEST_OVERHEAD`]; one that is larger than all
/// of it is let in alone.
pub const QUEUE_BYTES: usize = 64 << 20;

/// What a request counts for besides its key and value.
pub const REQUEST_OVERHEAD: usize = 1024;
