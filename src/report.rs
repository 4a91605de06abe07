//! [`OpenReport`]: what opening a store found, and what it did about it.

use crate::error::Error;
use std::path::PathBuf;
use std::time::Duration;

/// What recovery saw and did. From [`Store::open_report`](crate::Store::open_report).
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct OpenReport {
    /// One entry for each partition, in order.
    pub partitions: Vec<PartitionReport>,
}

/// What recovery saw and did in one partition.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct PartitionReport {
    /// Segments with records.
    pub segments: u64,
    /// Of these, how many were loaded from their hints.
    pub hinted: u64,
    /// Bytes that were scanned for want of a hint.
    pub scanned_bytes: u64,
    /// Bytes after the end of the log that a crash left there, and that mean nothing.
    pub torn_bytes: u64,
    /// Whole records among these. They lie behind a hole, and so are dropped with it: none was an
    /// acknowledged [`Sync`](crate::Durability::Sync) write.
    pub torn_records: u64,
    /// Writes that a killed process had acknowledged without a sync, and not put into the log yet:
    /// they were in its journal, and are in the log now, durably.
    pub promised: u64,
    /// Such writes that were found there behind one that was missing, and so are dropped: what a
    /// power cut or a failed sync leaves. After a kill alone it means that the journal was damaged.
    pub torn_promises: u64,
    /// Files without a meaning that were removed.
    pub leftovers: u64,
    /// The damage that a salvage went past. A strict opening fails at the first.
    pub damage: Vec<Error>,
    /// Where copies of the damaged files are.
    pub quarantined: Vec<PathBuf>,
    /// How long reading took.
    pub took: Duration,
}

impl OpenReport {
    /// Whether the store was as it had been left: nothing torn, nothing damaged.
    pub fn is_clean(&self) -> bool {
        let torn = |p: &PartitionReport| p.torn_bytes > 0 || p.torn_promises > 0;
        self.partitions.iter().all(|p| !torn(p) && p.damage.is_empty())
    }
}
