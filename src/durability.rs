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
/// **What the kernel has, and the device.** With direct I/O a write that is acknowledged without a
/// sync has been handed to the device and may be in its volatile cache. A kernel crash does not
/// empty that cache as long as the device keeps its power; power loss does. But the file system may
/// not have noted yet that the file's space is written there, and what it has only in memory goes
/// with the kernel: then zeroes are read where the write was. Where there is no direct I/O the
/// write is in the page cache until the kernel writes it back, and a kernel crash takes that too.
/// So without a sync a kernel crash often takes less than power loss, but nothing is promised of
/// it.
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
    /// Acknowledged when the kernel, or by direct I/O the device, has it. A sync begins within this
    /// time of the write's getting its place in the log's order; sooner when the store is dropped.
    /// A time beyond what the clock can say is none: as `Buffered` then.
    Interval(Duration),
    /// Acknowledged when the kernel, or by direct I/O the device, has it. No sync is made for it.
    Buffered,
}
