//! The clock that decides whether an entry has expired: visibility, and nothing else.
//!
//! Invariant: it never goes back, not within a run and not across runs, as far as marks have
//! carried it. It is the later of the system's clock and of what it said before plus the time since.

use crate::rt;
use std::cell::Cell;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Milliseconds since 1970.
pub(crate) fn millis(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Clock {
    last: Cell<(u64, Instant)>,
}

impl Clock {
    /// A clock that is never earlier than `floor`.
    pub(crate) fn new(floor: u64) -> Self {
        let clock = Self { last: Cell::new((floor, rt::now())) };
        clock.now();
        clock
    }

    /// Milliseconds since 1970.
    pub(crate) fn now(&self) -> u64 {
        let (then, at) = self.last.get();
        let now = rt::now();
        let since = u64::try_from(now.saturating_duration_since(at).as_millis());
        let steady = then.saturating_add(since.unwrap_or(u64::MAX));
        let time = steady.max(millis(rt::wall()));
        if time > then {
            self.last.set((time, now));
        }
        time
    }
}
