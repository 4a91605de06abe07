//! The log of a partition: segments, each a file of groups of records that is only appended to.
//!
//! ```text
//! header | MARK LIVE record record ... 0 | MARK record ... 0 | ... | SEAL
//! block    `---- a group, to the end of a block ----'
//! ```
//!
//! Invariants: a mark tells truly what was durable before its group was written; bytes below the
//! highest mark that do not validate are corrupt, and that is reported, never cut; bytes above it
//! are the tail, which a crash may tear. The formats are in DESIGN.md, "Files".

pub(crate) mod ahead;
pub(crate) mod hint;
pub(crate) mod journal;
pub(crate) mod place;
pub(crate) mod record;
pub(crate) mod scan;
pub(crate) mod segment;
pub(crate) mod superblock;
pub(crate) mod writer;

/// What groups are padded to, and what no two synced groups share. At least any file system's
/// alignment for direct I/O, and what devices write at once.
pub(crate) const BLOCK: u64 = 4096;
/// The same, as a length in memory.
pub(crate) const BLOCK_LEN: usize = 4096;

/// How much is read at a time where much is read: devices are at full rate with it, and memory hardly
/// feels it.
pub(crate) const CHUNK: usize = 1 << 20;

/// Whose files they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) store: [u8; 16],
    pub(crate) partition: u32,
}
