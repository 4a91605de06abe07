//! [`Stats`]: what a store has done since it was opened, and what it holds.

/// Counts of one store. Plain numbers, gathered when asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// One entry for each partition, in order.
    pub partitions: Vec<PartitionStats>,
}

/// Counts of one partition. That it is full or poisoned is not among them: puts say so, and
/// [`sync`](crate::Store::sync) says the latter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PartitionStats {
    /// Keys that are there, by what the log has. Those that have expired count until a merge comes
    /// by.
    pub keys: u64,
    /// Files of the log, without spares. Those that merges have replaced count until nobody reads
    /// them.
    pub segments: u64,
    /// Bytes in them, without those that merges have replaced, and without what is prepared.
    pub log_bytes: u64,
    /// Bytes of these that are live records. The rest is garbage, headers, marks and padding.
    pub live_bytes: u64,
    /// Memory of the index, in bytes.
    pub index_bytes: u64,
    /// Memory of the value cache, in bytes.
    pub cache_bytes: u64,
    /// Gets that the value cache has answered since opening.
    pub cache_hits: u64,
    /// Segments merged away since opening.
    pub merges: u64,
    /// Bytes of live records that merges have copied since opening.
    pub bytes_merged: u64,
    /// Groups committed since opening: each one write, and one sync if a write in it asked for
    /// that.
    pub commits: u64,
    /// Puts and deletes committed since opening.
    pub records: u64,
    /// Puts and deletes since opening that were acknowledged before the log had them, since the
    /// partition's journal had: none of `Sync`, and not all of the others. None at all where the
    /// journal cannot be made, for want of room or otherwise: then all of them wait for the log.
    pub promised: u64,
    /// Bytes written to the log since opening: records and their padding, and the zeroes that are
    /// written ahead of small groups.
    pub bytes_written: u64,
}

impl Stats {
    /// All partitions together.
    pub fn total(&self) -> PartitionStats {
        self.partitions.iter().fold(PartitionStats::default(), |sum, p| PartitionStats {
            keys: sum.keys + p.keys,
            segments: sum.segments + p.segments,
            log_bytes: sum.log_bytes + p.log_bytes,
            live_bytes: sum.live_bytes + p.live_bytes,
            index_bytes: sum.index_bytes + p.index_bytes,
            cache_bytes: sum.cache_bytes + p.cache_bytes,
            cache_hits: sum.cache_hits + p.cache_hits,
            merges: sum.merges + p.merges,
            bytes_merged: sum.bytes_merged + p.bytes_merged,
            commits: sum.commits + p.commits,
            records: sum.records + p.records,
            promised: sum.promised + p.promised,
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
