//! Group commit: many writes, one write to the segment, one sync, many acknowledgements. Here is what
//! gathers, and the task that writes one [`group`] of it after the other.
//!
//! Invariants: operations have their order from when they are staged; one group is on its way at a
//! time, and none while somebody holds them back; a task that ends before its work is done poisons
//! the partition.

mod group;

use super::Partition;
use super::digest::Digest;
use super::overlay::{Overlay, Pending, Promised};
use super::promise::Promises;
use super::staged::{Failure, Need, Op, Staged, Ticket};
use crate::durability::Durability;
use crate::error::{Error, Result};
use crate::log::hint::Remembered;
use crate::log::place::Place;
use crate::log::segment::Segment;
use crate::log::writer::Writer;
use crate::rt;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often whoever holds groups back looks if the one under way is done: about what one takes.
/// Only backups do.
pub(super) const WATCH: Duration = Duration::from_micros(100);
/// How long a partition has been idle when it marks its tail: long beside a group, so that traffic
/// pays nothing for it, and short beside what may befall the last group.
const IDLE: Duration = Duration::from_millis(10);

/// A segment that is made before it is needed.
#[derive(Debug)]
pub(super) struct Spare {
    pub(super) segment: Rc<Segment>,
    pub(super) prepared: u64,
}

/// A record that a merge has copied.
#[derive(Clone, Copy, Debug)]
struct Moved {
    digest: Digest,
    from: Place,
    to: Place,
}

/// The commit state of a partition.
#[derive(Debug)]
pub(super) struct Commit {
    gathering: RefCell<VecDeque<Staged>>,
    overlay: RefCell<Overlay>,
    /// Away while a group is written.
    writer: RefCell<Option<Writer>>,
    active: Cell<usize>,
    /// Copies that are not durable yet. Until then the originals are what reads see: if a sync fails,
    /// and the device drops what it was to cover, nothing that was durable is hidden by that.
    moved: RefCell<Vec<Moved>>,
    /// For the hint of the active segment.
    pub(super) remembered: RefCell<Remembered>,
    /// The segments to come, in the order of their ids. The last one is for deletes and merges.
    pub(super) spares: RefCell<VecDeque<Spare>>,
    /// What the active segment has prepared and not used.
    pub(super) left: Cell<u64>,
    /// The last number that was given to a put or a delete.
    sequence: Cell<u64>,
    pub(super) promises: Promises,
    /// The clock of the last durable mark.
    clock: Cell<u64>,
    running: Cell<bool>,
    /// Groups written; tells whether anything happened.
    groups: Cell<u64>,
    idling: Cell<bool>,
    mark_idle: Cell<bool>,
    /// Groups wait while this is above zero.
    holds: Cell<usize>,
    closing: Cell<bool>,
    /// When syncs are due that nobody waits for. Each is sooner than the one before it.
    intervals: RefCell<Vec<Instant>>,
    /// Puts are refused, since there was no room.
    pub(super) full: RefCell<Option<Arc<io::Error>>>,
    poison: RefCell<Option<Arc<io::Error>>>,
}

impl Commit {
    pub(super) fn new(
        writer: Writer,
        active: usize,
        spares: Vec<Spare>,
        (sequence, clock): (u64, u64),
        hint_entries: usize,
    ) -> Self {
        Self {
            gathering: RefCell::default(),
            overlay: RefCell::default(),
            writer: RefCell::new(Some(writer)),
            active: Cell::new(active),
            moved: RefCell::default(),
            remembered: RefCell::new(Remembered::new(hint_entries)),
            spares: RefCell::new(spares.into()),
            left: Cell::new(0),
            sequence: Cell::new(sequence),
            promises: Promises::new(sequence),
            clock: Cell::new(clock),
            running: Cell::new(false),
            groups: Cell::new(0),
            idling: Cell::new(false),
            mark_idle: Cell::new(false),
            holds: Cell::new(0),
            closing: Cell::new(false),
            intervals: RefCell::default(),
            full: RefCell::default(),
            poison: RefCell::default(),
        }
    }

    /// The newest change of a key that the log does not have yet, acknowledged or not.
    pub(super) fn overlay(&self, digest: Digest) -> Option<Pending> {
        self.overlay.borrow().get(digest).cloned()
    }

    /// The newest change of a key that is acknowledged, if the log does not have it yet.
    pub(super) fn promised(&self, digest: Digest) -> Option<Promised> {
        self.overlay.borrow().promised(digest).cloned()
    }

    /// Whether it is a time for promises: groups go on, and there is room.
    pub(super) fn may_promise(&self) -> bool {
        self.holds.get() == 0 && !self.closing.get() && self.full.borrow().is_none()
    }

    /// How many operations wait for the next group.
    pub(super) fn gathered(&self) -> usize {
        self.gathering.borrow().len()
    }

    pub(super) fn active(&self) -> usize {
        self.active.get()
    }

    /// Where the records of the active segment end, while no group is written.
    pub(super) fn end(&self) -> u64 {
        self.writer.borrow().as_ref().map_or(0, Writer::end)
    }

    /// The last number that was given.
    pub(super) fn sequence(&self) -> u64 {
        self.sequence.get()
    }

    /// The numbers go on from here.
    pub(super) fn set_sequence(&self, sequence: u64) {
        self.sequence.set(sequence);
    }

    pub(super) fn set_active(&self, slot: usize) {
        self.active.set(slot);
    }

    /// A mark with this clock is durable now.
    pub(super) fn set_durable_clock(&self, clock: u64) {
        self.clock.set(clock);
    }

    /// The clock of the last durable mark.
    pub(super) fn durable_clock(&self) -> u64 {
        self.clock.get()
    }

    /// Where copies are that reads do not see yet: slots and offsets, in order.
    pub(super) fn unseen(&self) -> Vec<(usize, u64)> {
        let moved = self.moved.borrow();
        let mut unseen: Vec<_> = moved.iter().map(|m| (m.to.slot(), m.to.offset())).collect();
        unseen.sort_unstable();
        unseen
    }

    /// Whether there are copies that reads do not see yet.
    pub(super) fn has_unseen(&self) -> bool {
        !self.moved.borrow().is_empty()
    }

    pub(super) fn is_closing(&self) -> bool {
        self.closing.get()
    }

    /// From here on there are no more writes but those of the store itself.
    pub(super) fn close(&self) {
        self.closing.set(true);
    }

    pub(super) fn is_poisoned(&self) -> bool {
        self.poison.borrow().is_some()
    }
}

impl Partition {
    /// Fails if the partition is poisoned.
    pub(super) fn check(&self) -> Result<()> {
        match &*self.commit.poison.borrow() {
            Some(cause) => Err(self.failed(Failure::Poisoned(Arc::clone(cause)))),
            None => Ok(()),
        }
    }

    pub(super) fn failed(&self, failure: Failure) -> Error {
        let path = self.dir.clone();
        match failure {
            Failure::Full(source) => Error::Full { path, source },
            Failure::Poisoned(cause) => Error::Poisoned { path, cause },
        }
    }

    /// Gives a write its place in the order, and its sequence number. Await its ticket.
    pub(super) fn stage(
        self: &Rc<Self>,
        digest: Digest,
        op: Op,
        durability: Durability,
    ) -> Result<(Rc<Ticket>, u64)> {
        let commit = &self.commit;
        self.check()?;
        let own = matches!(op, Op::Move { .. } | Op::Drop { .. } | Op::Barrier | Op::Seal);
        if commit.closing.get() && !own {
            return Err(Error::Closed);
        }
        if let (Op::Put { .. }, Some(cause)) = (&op, &*commit.full.borrow()) {
            return Err(self.failed(Failure::Full(Arc::clone(cause))));
        }
        let need = match op {
            Op::Put { .. } => Need::Put,
            Op::Clock(need) => need,
            Op::Delete { .. } => Need::Delete,
            _ => Need::Own,
        };
        // Only changes have numbers: those in the log follow one upon the other.
        commit.sequence.set(commit.sequence.get() + u64::from(op.is_change()));
        let sequence = commit.sequence.get();
        Ok((self.enqueue(digest, sequence, op, need, durability), sequence))
    }

    /// Stages a record again that has its sequence number.
    pub(super) fn stage_moved(
        self: &Rc<Self>,
        digest: Digest,
        sequence: u64,
        op: Op,
        need: Need,
    ) -> Rc<Ticket> {
        self.enqueue(digest, sequence, op, need, Durability::Buffered)
    }

    /// Gives an operation its place, with the number that it has.
    pub(super) fn enqueue(
        self: &Rc<Self>,
        digest: Digest,
        sequence: u64,
        op: Op,
        need: Need,
        durability: Durability,
    ) -> Rc<Ticket> {
        let commit = &self.commit;
        let ticket = Rc::<Ticket>::default();
        if let Some(cause) = &*commit.poison.borrow() {
            ticket.settle(Err(Failure::Poisoned(Arc::clone(cause))));
            return ticket;
        }
        let (sync, promised) = (durability == Durability::Sync, None);
        let ticket_of = Rc::clone(&ticket);
        let mut staged = Staged { digest, sequence, op, need, sync, promised, ticket: ticket_of };
        staged.promised = self.promise(&staged, durability);
        if staged.promised.is_some() {
            // It has its room, whatever comes.
            staged.need = Need::Own;
            ticket.settle(Ok(()));
        } else {
            commit.promises.end_linger();
        }
        commit.promises.note_staged(&staged.op, staged.len());
        commit.overlay.borrow_mut().add(&staged);
        if staged.promised.is_some() {
            self.show(&staged);
        }
        commit.gathering.borrow_mut().push_back(staged);
        if let Durability::Interval(period) = durability {
            self.sync_within(period);
        }
        self.start_committing();
        ticket
    }

    /// Waits until everything before it is in the log.
    pub(super) async fn fence(self: &Rc<Self>) -> Result<()> {
        self.stage(Digest::default(), Op::Barrier, Durability::Buffered)?.0.wait(self).await
    }

    /// Waits until everything before it is durable.
    pub(super) async fn barrier(self: &Rc<Self>) -> Result<()> {
        self.stage(Digest::default(), Op::Barrier, Durability::Sync)?.0.wait(self).await
    }

    /// Sees to it that what was acknowledged before is durable in so much time.
    fn sync_within(self: &Rc<Self>, period: Duration) {
        let due = rt::now().checked_add(period);
        let mut intervals = self.commit.intervals.borrow_mut();
        let Some(due) = due.filter(|due| intervals.last().is_none_or(|last| due < last)) else {
            return;
        };
        intervals.push(due);
        let partition = Rc::clone(self);
        drop(rt::spawn(async move {
            // If the store stops meanwhile, all the sooner.
            drop(partition.home.until_stopping(rt::timeout(period)).await);
            partition.commit.intervals.borrow_mut().retain(|&other| other != due);
            // If it fails, the partition is poisoned, and whoever writes next hears of it.
            drop(partition.barrier().await);
        }));
    }

    /// Sees to it that what gathers will be committed. The task runs after the tasks that are
    /// ready now, so all that arrived together goes in one group.
    pub(super) fn start_committing(self: &Rc<Self>) {
        let can = self.commit.holds.get() == 0 && !self.commit.is_poisoned();
        if can && !self.commit.running.replace(true) {
            drop(rt::spawn(Rc::clone(self).commit_groups()));
        }
    }

    /// Commits group after group, until nothing has gathered meanwhile.
    async fn commit_groups(self: Rc<Self>) {
        let commit = &self.commit;
        let unfinished = Unfinished(&self);
        let Some(mut writer) = commit.writer.take() else {
            unreachable!("one task commits at a time")
        };
        let mut group = Vec::new();
        let groups = commit.groups.get();
        loop {
            self.linger().await;
            if commit.holds.get() > 0 || !self.take_group(&mut group) {
                break;
            }
            if let Err(error) = self.write_group(&mut writer, &mut group).await {
                self.poison(&mut group, error);
                return std::mem::forget(unfinished);
            }
        }
        if commit.mark_idle.take() && writer.can_mark_idle() {
            let marked = writer.mark_idle(commit.promises.written(), self.clock.now()).await;
            if let Err(error) = marked {
                self.poison(&mut group, error);
                return std::mem::forget(unfinished);
            }
        } else if commit.groups.get() != groups {
            self.start_idling();
        }
        commit.writer.replace(Some(writer));
        commit.running.set(false);
        std::mem::forget(unfinished);
        if !commit.gathering.borrow().is_empty() {
            self.start_committing();
        }
    }

    /// When nothing has been written for a while, a mark says that the last group was durable.
    fn start_idling(self: &Rc<Self>) {
        if self.commit.idling.replace(true) {
            return;
        }
        let partition = Rc::clone(self);
        drop(rt::spawn(async move {
            let commit = &partition.commit;
            loop {
                let groups = commit.groups.get();
                let stopping = partition.home.until_stopping(rt::timeout(IDLE)).await.is_none();
                if stopping || commit.is_poisoned() {
                    break;
                }
                if commit.groups.get() == groups && !commit.running.get() {
                    commit.mark_idle.set(!commit.is_closing());
                    partition.start_committing();
                    break;
                }
            }
            commit.idling.set(false);
        }));
    }

    /// Keeps groups from being written until the guard is dropped, and waits for the one that is.
    /// What was promised has been written then.
    pub(super) async fn hold(self: &Rc<Self>) -> Result<Hold> {
        self.settle_promises().await?;
        // From here on, since groups are held, nothing is promised.
        self.commit.holds.set(self.commit.holds.get() + 1);
        let hold = Hold(Rc::clone(self));
        while self.commit.running.get() && !self.commit.is_poisoned() {
            // A group is under way, and a disk may take its time.
            drop(rt::timeout(WATCH).await);
        }
        Ok(hold)
    }
}

/// Groups wait while this is there.
#[derive(Debug)]
pub(super) struct Hold(Rc<Partition>);

impl Drop for Hold {
    fn drop(&mut self) {
        let commit = &self.0.commit;
        commit.holds.set(commit.holds.get() - 1);
        if !commit.gathering.borrow().is_empty() {
            self.0.start_committing();
        }
    }
}

/// Poisons the partition if its commit task ends before its work is done: dropped with its
/// executor, or by a panic. Else all later writes would wait for it for ever.
struct Unfinished<'a>(&'a Partition);

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if !self.0.commit.is_poisoned() {
            let error = io::Error::other("the commit task was dropped before it was done");
            self.0.poison(&mut Vec::new(), error);
        }
    }
}
