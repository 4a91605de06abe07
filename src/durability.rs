//! [`Durability`]: when a write is acknowledged. It limits what a crash can take back.

use std::time::Duration;

/// What an acknowledged write survives.
///
/// | | process crash (`kill -9`) | kernel crash | power loss |
/// |---|---|---|---|
/// | `Sync` | survives | survives | survives, if the device keeps what it said it has flushed |
/// | `Interval` | survives | what came after the last sync may be lost | the same, and more of it |
/// | `Buffered` | survives | the same; that sync may be long ago | the same, and more of it |
///
/// The last sync of `Interval` was begun no later than the given time after a write got its place,
/// so what may be lost are the writes of that time, and those of the time that the sync takes.
///
/// **What the kernel has, and the device.** A write that is acknowledged without a sync has been
/// copied into its partition's journal, a small file in the page cache, or else written to the log. A
/// kernel crash takes what only the page cache has. With direct I/O what was written to the log has
/// been handed to the device, which keeps it as long as it has power; but the file system may not
/// have noted yet that the file's space is written there, and that note goes with the kernel. So
/// without a sync nothing is promised of a kernel crash, though it often takes less than power loss.
///
/// **What has to wait for the log.** In the journal goes what is small (up to 128 KiB with segments
/// of the default size), cannot expire, and does not come behind a write that waits, while there is
/// room in it, in the segment, and on the disk (eight segments, when the first such write comes).
/// What does not go there is acknowledged when the log has it, after the device's time for a write.
/// The copy is a write of the page cache on the thread that owns the partition, so whatever holds up
/// such writes (a frozen file system, other programs' dirty pages) holds up that partition.
///
/// What is lost is always the end of a partition's log: a write never survives without those that
/// the same partition acknowledged before it. A sync is [`Store::sync`](crate::Store::sync),
/// `close`, the end of a segment, or any `Sync` write in the same partition; merges have some.
/// Dropping the last handle makes none for `Buffered` writes. If a write or sync of the log fails
/// ([`Error::Poisoned`](crate::Error::Poisoned)), what was acknowledged after the last sync may be
/// lost by that alone.
///
/// A get never returns what is less safe than the write asked to be: the value of a `Sync` write is
/// seen when it is durable, not before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// Acknowledged when the device has said that it is durable, with all that its partition wrote
    /// before it. Writes that are under way at the same time share a sync.
    #[default]
    Sync,
    /// Acknowledged when it outlasts the process. A sync begins within this time of the write's
    /// getting its place in the log's order; sooner when the store is dropped. A time beyond what the
    /// clock can say is none: as `Buffered` then.
    Interval(Duration),
    /// Acknowledged when it outlasts the process. No sync is made for it.
    Buffered,
}
