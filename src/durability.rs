//! [`Durability`]: when a write is acknowledged. It limits what a crash can take back.

use std::time::Duration;

/// What an acknowledged write has survived.
///
/// | | process crash | kernel crash, power loss |
/// |---|---|---|
/// | `Sync` | survives | survives, if the device keeps what it flushed |
/// | `Interval` | survives | the last interval, and what its sync takes, may be lost |
/// | `Buffered` | survives | what came after the last sync may be lost |
///
/// What is lost is always the end of a partition's log: a write never survives without those that
/// the same partition acknowledged before it. A sync is [`Store::sync`](crate::Store::sync),
/// `close`, the end of a segment, or any `Sync` write in the same partition.
///
/// A get never returns what is less safe than the write asked to be: the value of a `Sync` write is
/// seen when it is durable, not before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// Acknowledged when it is durable. Writes that are under way at the same time share a sync.
    #[default]
    Sync,
    /// Acknowledged when the kernel has it. A sync begins within this time.
    Interval(Duration),
    /// Acknowledged when the kernel has it.
    Buffered,
}
