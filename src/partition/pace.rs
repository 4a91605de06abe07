//! The pace of merges: when there is enough garbage to begin, which segment goes next, how fast
//! copies are made, and when puts wait for them. (A budget that rises with pressure, and writers that
//! are slowed before they are stopped, are the usual remedies of log-structured stores.)
//!
//! Invariants: a merge begins only with room for all of its copy, and on a full disk one that gives
//! back nothing is not followed by another of itself. Garbage is held below what is live, or half of
//! the room that there is, and some slack, as long as merges get ahead within the patience of puts.

use super::Partition;
use super::commit::Spare;
use super::space::Extant;
use super::staged::{Need, Ticket};
use crate::log::BLOCK;
use crate::rt;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

/// Bytes a second at the least, while there is enough garbage to merge at all: a segment of the
/// default size takes about a second at most then, and the device has most of its rate for others.
const PACE: u64 = 32 << 20;
/// Garbage that is never worth while: without it small stores would merge all the time.
const SLACK: u64 = 2 << 20;
/// How many merges a put waits for at most, when there is too much garbage: a bound, so that no put
/// waits for ever where merges do not get ahead. It has been written or promised by then.
const PATIENCE: usize = 16;

/// The state of a partition's merges.
#[derive(Debug, Default)]
pub(super) struct Merging {
    pub(super) running: Cell<bool>,
    /// One at a time, whoever asks.
    pub(super) busy: Cell<bool>,
    /// Finished at the end of each merge.
    end: RefCell<Rc<Ticket>>,
    /// Finished when a merged segment is garbage no more, and at the end of each merge: whoever began
    /// to wait in between is not forgotten.
    less: RefCell<Rc<Ticket>>,
    so_far: Cell<Merges>,
    /// Bytes that the device had free when that was asked for last; none if it never was.
    free: Cell<Option<u64>>,
}

/// Counts of merges, and of what else is told as one.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Merges {
    /// That have come to their end, whatever that was.
    pub(super) ended: u64,
    /// That have given back more than their copies took.
    pub(super) done: u64,
}

/// How far garbage has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pressure {
    None,
    /// In percent of what it may be.
    Some(u64),
    /// No time to lose.
    Full,
}

/// Bytes of garbage at which something is done about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Thresholds {
    /// Up to here it is borne.
    bearable: u64,
    /// From here on merges have no time to lose.
    limit: u64,
    /// Beyond this whoever overwrites waits for merges.
    waits: u64,
}

impl Thresholds {
    /// With so many bytes alive, room for so much garbage at most, and so much borne in any case.
    fn new(live: u64, room: u64, slack: u64) -> Self {
        // Half of what is live, and a third of what there is room for; and nothing that is not
        // worth the while.
        let bearable = (live / 2).min(room / 3) + slack;
        let limit = ((live / 10 * 7).min(room / 2) + slack).max(bearable + 1);
        let waits = (live / 4 * 3).min(room / 2) + 2 * slack;
        Self { bearable, limit, waits }
    }

    fn pressure(self, garbage: u64) -> Pressure {
        let Self { bearable, limit, .. } = self;
        if garbage <= bearable {
            Pressure::None
        } else if garbage >= limit {
            Pressure::Full
        } else {
            Pressure::Some((garbage - bearable) * 100 / (limit - bearable))
        }
    }
}

impl Partition {
    /// Before a put is answered: if merges do not keep pace with what is overwritten, whoever
    /// overwrites waits for them. The put has its place by then, so no order changes.
    pub(super) async fn keep_pace(&self) {
        for _ in 0..PATIENCE {
            let (garbage, live) = self.ledger.borrow().space.garbage();
            if garbage <= self.thresholds(garbage, live).waits || !self.less_garbage().await {
                break;
            }
        }
    }

    /// What garbage could come to at the most: what it is, and what the device has free.
    fn room_with(&self, garbage: u64) -> u64 {
        self.merging.free.get().map_or(u64::MAX, |free| garbage.saturating_add(free))
    }

    fn thresholds(&self, garbage: u64, live: u64) -> Thresholds {
        let room = self.room_with(garbage);
        Thresholds::new(live, room, SLACK.min(self.segment_bytes).min(room / 8))
    }

    /// Asks what the device has free. Where that is not to be had, the last answer holds.
    pub(super) async fn look_at_room(&self) {
        let active = self.commit.active();
        let segment = self.ledger.borrow_mut().space.for_reading(active);
        if let Ok(free) = segment.free_space().await {
            self.merging.free.set(Some(free));
        }
    }

    /// Waits until the merge that is under way has come to its end, if one is.
    pub(super) async fn end_of_merge(&self) {
        self.wait_for(&self.merging.end).await;
    }

    /// Waits until what is being merged is garbage no more, or is left as it is, if something is.
    async fn less_garbage(&self) -> bool {
        self.wait_for(&self.merging.less).await
    }

    async fn wait_for(&self, ticket: &RefCell<Rc<Ticket>>) -> bool {
        let running = self.merging.running.get() || self.is_merging();
        if running {
            let ticket = Rc::clone(&ticket.borrow());
            drop(ticket.outcome().await);
        }
        running
    }

    /// Whoever waits for less garbage goes on.
    pub(super) fn tell_less(&self) {
        self.merging.less.take().finish(Ok(()));
    }

    /// Whoever waits for the end of a merge goes on.
    pub(super) fn tell_end(&self) {
        let Merges { ended, done } = self.merging.so_far.get();
        self.merging.so_far.set(Merges { ended: ended + 1, done });
        self.tell_less();
        self.merging.end.take().finish(Ok(()));
    }

    /// What there was so far.
    pub(super) fn merges(&self) -> Merges {
        self.merging.so_far.get()
    }

    /// A merge has given back more than its copies took.
    pub(super) fn count_done(&self) {
        let Merges { ended, done } = self.merging.so_far.get();
        self.merging.so_far.set(Merges { ended, done: done + 1 });
    }

    /// Whether a segment is being merged.
    pub(super) fn is_merging(&self) -> bool {
        self.merging.busy.get()
    }

    /// Bytes that the device had free when it was asked last.
    pub(super) fn free_space(&self) -> Option<u64> {
        self.merging.free.get()
    }

    /// How urgent merging is.
    pub(super) fn pressure(&self) -> Pressure {
        let (garbage, live) = {
            let space = &self.ledger.borrow().space;
            let ((garbage, live), expired) = (space.garbage(), space.expired(self.clock.now()));
            (garbage + expired, live - expired)
        };
        if self.commit.full.borrow().is_some() {
            return Pressure::Full;
        }
        self.thresholds(garbage, live).pressure(garbage)
    }

    /// Which segment to merge next.
    pub(super) fn choose(&self) -> Option<usize> {
        let now = self.clock.now();
        // On a full disk a copy goes to segments as small as what is held in reserve.
        let is_full = self.commit.full.borrow().is_some();
        let whole = if is_full { self.least_reserve() } else { self.segment_bytes };
        let worth = |extant: &Extant| {
            extant.is_worth_merging(now, whole) && self.room_for(extant).is_some()
        };
        self.ledger.borrow().space.victim(now, worth)
    }

    /// The room that there is for a copy of what is alive in a segment: half of what the device has
    /// free, since others take of it meanwhile; when puts are refused, what is in reserve. A merge
    /// that found no room half-way would have taken some, and given back nothing.
    pub(super) fn room_for(&self, victim: &Extant) -> Option<Need> {
        // With what is not records: marks, padding, the drop record's block; and where it begins a
        // segment, header and seal.
        let copy = victim.live_bytes + victim.live_bytes / 16 + 2 * BLOCK;
        let ends = 2 * BLOCK;
        if self.commit.full.borrow().is_none() {
            let fits = self.merging.free.get().is_none_or(|free| copy + ends <= free / 2);
            return fits.then_some(Need::Put);
        }
        let spares = self.commit.spares.borrow();
        // A group that does not fit what one spare has left goes to the next.
        let lost = spares.len().saturating_sub(1) as u64 * self.least_reserve() / 2;
        let prepared = |spare: &Spare| spare.prepared.min(self.segment_bytes);
        let prepared: u64 = spares.iter().map(prepared).sum();
        // Whatever uses up a spare has to give back enough for another.
        let gives = victim.len >= self.least_reserve();
        let fits = copy <= self.commit.left.get() || copy + ends + lost <= prepared && gives;
        fits.then_some(Need::Own)
    }

    /// Whether it is time to end the active segment, so that it can be merged.
    pub(super) fn active_is_garbage(&self) -> bool {
        let ledger = self.ledger.borrow();
        let active = ledger.space.get(self.commit.active());
        active.seal.is_none() && {
            let garbage = active.garbage(self.clock.now());
            garbage > SLACK && garbage * 2 > active.len
        }
    }

    /// Keeps to the budget.
    pub(super) async fn rest(&self, copied: u64) {
        let pace = match self.pressure() {
            Pressure::Full => return,
            Pressure::None => PACE,
            // Rises without bound towards the limit.
            Pressure::Some(percent) => PACE * 100 / (100 - percent.min(99)),
        };
        drop(rt::timeout(Duration::from_micros(copied * 1_000_000 / pace)).await);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn merging_begins_at_half_of_what_is_live_and_puts_wait_at_three_quarters() {
        let thresholds = Thresholds::new(100 * MIB, u64::MAX, 4 * MIB);
        let (bearable, limit, waits) = (54 * MIB, 74 * MIB, 83 * MIB);
        assert_eq!(thresholds, Thresholds { bearable, limit, waits });
        let told = [
            (0, Pressure::None),
            (bearable, Pressure::None),
            (bearable + 1, Pressure::Some(0)),
            (64 * MIB, Pressure::Some(50)),
            (limit - 1, Pressure::Some(99)),
            (limit, Pressure::Full),
        ];
        for (garbage, pressure) in told {
            assert_eq!(thresholds.pressure(garbage), pressure, "{garbage} bytes");
        }
    }

    #[test]
    fn with_little_room_all_of_that_comes_sooner() {
        let thresholds = Thresholds::new(100 * MIB, 60 * MIB, 4 * MIB);
        let (bearable, limit, waits) = (24 * MIB, 34 * MIB, 38 * MIB);
        assert_eq!(thresholds, Thresholds { bearable, limit, waits });
        // Where little is live that decides, however little room there is.
        let thresholds = Thresholds::new(10 * MIB, 60 * MIB, 4 * MIB);
        let (bearable, limit, waits) = (9 * MIB, 11 * MIB, 15 * MIB + MIB / 2);
        assert_eq!(thresholds, Thresholds { bearable, limit, waits });
        // Without any room there is no garbage that is borne.
        let thresholds = Thresholds::new(100 * MIB, 0, 0);
        assert_eq!(thresholds, Thresholds { bearable: 0, limit: 1, waits: 0 });
        assert_eq!(thresholds.pressure(1), Pressure::Full);
    }

    /// Else puts would wait for merges that take their time, or for none.
    #[test]
    fn whenever_puts_wait_merges_have_no_time_to_lose() {
        let some = |n: u64| (0..n).map(|n| (n * n * 997) << (n % 24));
        for (live, room) in some(60).flat_map(|live| some(60).map(move |room| (live, room))) {
            let thresholds = Thresholds::new(live, room, SLACK.min(room / 8));
            let full = thresholds.pressure(thresholds.waits + 1);
            assert_eq!(full, Pressure::Full, "{live} live, {room} of room: {thresholds:?}");
        }
    }
}
