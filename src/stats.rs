//! [`Stats`]: what a store has done since it was opened, and what it holds.

/// Counts of one store. Plain numbers, gathered when asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// One entry for each partition, in order.
    pub partitions: Vec<PartitionStats>,
}

/// Counts of one partition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PartitionStats {
    /// Keys that are there.
    pub keys: u64,
    /// Length of the log in bytes.
    pub log_bytes: u64,
    /// Groups committed since opening: each one write and one fdatasync.
    pub commits: u64,
    /// Puts and deletes committed since opening.
    pub records: u64,
    /// Bytes written to the log since opening.
    pub bytes_written: u64,
}

impl Stats {
    /// All partitions together.
    pub fn total(&self) -> PartitionStats {
        self.partitions.iter().fold(PartitionStats::default(), |sum, p| PartitionStats {
            keys: sum.keys + p.keys,
            log_bytes: sum.log_bytes + p.log_bytes,
            commits: sum.commits + p.commits,
            records: sum.records + p.records,
            bytes_written: sum.bytes_written + p.bytes_written,
        })
    }
}

impl PartitionStats {
    /// Puts and deletes in a group, on average; 0 if there was none.
    #[expect(clippy::cast_precision_loss, reason = "an average for people to read")]
    pub fn records_per_commit(&self) -> f64 {
        if self.commits == 0 { 0.0 } else { self.records as f64 / self.commits as f64 }
    }
}
