//! Writes that are acknowledged before they are in the log: nobody asked that they outlast more than
//! the process, and the journal sees to that.
//!
//! Such a write has its place in the order like any other, and goes to the log with the next group.
//! Until then it is *promised*: reads see it, and an opening finds it in the journal if the process
//! is killed.
//!
//! Invariants: (1) what is promised follows in the numbers upon what the log has, without a gap, so
//! an opening can tell what to take from the journal; (2) it has room in the active segment, whatever
//! comes after it, so no full disk takes it back; (3) reads and the value cache show it from when it
//! is acknowledged on, in a poisoned partition too.

use super::Partition;
use super::commit::WATCH;
use super::digest::Digest;
use super::overlay::Promised;
use super::rotate::is_full;
use super::staged::{Need, Op, Staged, Ticket};
use crate::durability::Durability;
use crate::error::{Error, Result};
use crate::log::BLOCK;
use crate::log::journal::{Entry, Journal};
use crate::log::superblock::random;
use crate::log::writer::Writer;
use crate::rt::{self, Event};
use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::time::Duration;

/// What two groups have of marks and padding, and what the end of a segment is given: room that a
/// promise leaves.
const MARGIN: u64 = 4 * BLOCK;
/// How long what is promised waits for more to come, at most. Nobody waits for it, and a large group
/// costs the device and the processor little more than a small one.
const LINGER: Duration = Duration::from_millis(1);

/// What a partition has promised.
#[derive(Debug, Default)]
pub(super) struct Promises {
    /// Made when the first write could be promised.
    journal: RefCell<Option<Journal>>,
    /// It is not to be made: it was tried, or the store is being opened.
    asked: Cell<bool>,
    /// The number of the last write in the log.
    written: Cell<u64>,
    /// Of the last that was promised.
    last: Cell<u64>,
    /// That are not in the log yet.
    pending: Cell<usize>,
    /// Bytes of records that have their place and are not written; beyond any room if what comes
    /// after them goes to another segment.
    ahead: Cell<u64>,
    /// What the active segment had prepared when the last group was done.
    room: Cell<u64>,
    /// While above zero nothing is promised.
    pauses: Cell<usize>,
    /// Set when the next group need not wait for more.
    enough: RefCell<Option<Rc<Event>>>,
}

impl Promises {
    pub(super) fn new(written: u64) -> Self {
        Self { written: Cell::new(written), asked: Cell::new(true), ..Self::default() }
    }

    /// The store is open: what an earlier process has left is gone, and a journal may be made.
    pub(super) fn begin(&self) {
        self.asked.set(false);
    }

    /// From here on there are no promises. Tells whether there could be.
    pub(super) fn end(&self) -> bool {
        self.journal.take().is_some()
    }

    /// The number of the last write that is in the log: marks say so.
    pub(super) fn written(&self) -> u64 {
        self.written.get()
    }

    /// The numbers go on from here: those up to it count as written.
    pub(super) fn set_written(&self, sequence: u64) {
        self.written.set(sequence);
    }

    pub(super) fn any(&self) -> bool {
        self.pending.get() > 0
    }

    /// How many are on their way to the log.
    pub(super) fn pending(&self) -> usize {
        self.pending.get()
    }

    /// Whether something may join a group of so many bytes that has all that is promised: it is not
    /// to go to another segment for it.
    pub(super) fn may_join(&self, staged: &Staged, bytes: u64) -> bool {
        let takes_none = !staged.takes_room() && !matches!(staged.op, Op::Seal);
        takes_none || bytes + staged.len() as u64 + MARGIN <= self.room.get()
    }

    /// Another has its place now.
    pub(super) fn note_staged(&self, op: &Op, len: usize) {
        let more = if matches!(op, Op::Seal) { u64::MAX } else { len as u64 };
        self.ahead.set(self.ahead.get().saturating_add(more));
    }

    /// The next group waits no longer for more.
    pub(super) fn end_linger(&self) {
        if let Some(enough) = self.enough.take() {
            enough.set();
        }
    }

    /// A group is in the log.
    pub(super) fn note_written(&self, group: &[Staged]) {
        if let Some(last) = group.iter().rfind(|staged| staged.op.is_change()) {
            self.written.set(last.sequence);
        }
    }

    /// These have their places behind what is written, and so much is prepared for them.
    pub(super) fn note_room<'a>(&self, room: u64, behind: impl Iterator<Item = &'a Staged>) {
        self.room.set(room);
        self.ahead.set(0);
        for staged in behind {
            self.note_staged(&staged.op, staged.len());
        }
    }

    /// One that was promised is in the log.
    pub(super) fn keep(&self, taken: usize) {
        self.pending.set(self.pending.get() - 1);
        if let Some(journal) = &mut *self.journal.borrow_mut() {
            journal.release(taken);
        }
    }
}

/// Nothing is promised while this is there.
struct Pause<'a>(&'a Promises);

impl<'a> Pause<'a> {
    fn new(promises: &'a Promises) -> Self {
        promises.pauses.set(promises.pauses.get() + 1);
        promises.end_linger();
        Self(promises)
    }
}

impl Drop for Pause<'_> {
    fn drop(&mut self) {
        self.0.pauses.set(self.0.pauses.get() - 1);
    }
}

impl Partition {
    /// Promises a write that has its place now, if that can be done. Tells what room it takes in the
    /// journal.
    pub(super) fn promise(self: &Rc<Self>, staged: &Staged, sync: Durability) -> Option<usize> {
        let promises = &self.commit.promises;
        // What can expire is judged by a clock that has to be durable.
        let plain = match staged.op {
            Op::Put { expiry, .. } => expiry.is_none(),
            Op::Delete { .. } => true,
            _ => false,
        };
        if !plain || sync == Durability::Sync {
            return None;
        }
        let mut journal = promises.journal.borrow_mut();
        let Some(journal) = journal.as_mut() else {
            self.start_journal();
            return None;
        };
        let before = if promises.any() { &promises.last } else { &promises.written };
        let bytes = promises.ahead.get().saturating_add(staged.len() as u64);
        let can = staged.sequence == before.get() + 1
            && promises.pauses.get() == 0
            && self.commit.may_promise()
            && bytes <= self.most_of_a_group()
            && bytes + MARGIN <= promises.room.get();
        let record = staged.record().filter(|_| can)?;
        let taken = journal.append(&record)?;
        if journal.is_half_full() {
            promises.end_linger();
        }
        promises.last.set(staged.sequence);
        promises.pending.set(promises.pending.get() + 1);
        self.count(|stats| stats.promised += 1);
        Some(taken)
    }

    /// Begins to make the journal, once. Nothing is promised before it is there; or at all where it
    /// cannot be had: then writes wait for the log, as those of `Sync` do, and that is all.
    fn start_journal(self: &Rc<Self>) {
        if self.commit.promises.asked.replace(true) {
            return;
        }
        let partition = Rc::clone(self);
        self.chore(async move {
            let journal = partition.make_journal().await.ok().flatten();
            partition.commit.promises.journal.replace(journal);
        });
    }

    /// Not where there is little room: that is for the log.
    async fn make_journal(&self) -> Result<Option<Journal>> {
        self.look_at_room().await;
        if self.has_little_room() {
            return Ok(None);
        }
        let salt = u64::from_le_bytes(random().await?);
        let ring = self.segment_bytes / 4;
        let _turn = self.naming_turn().await;
        Journal::create(&self.dir, &self.identity, salt, ring).await.map(Some)
    }

    /// If somebody waits for what gathers, there is no time to lose. While all of it is promised,
    /// nobody does: more may come along.
    pub(super) async fn linger(&self) {
        let promises = &self.commit.promises;
        let all = promises.pending.get() == self.commit.gathered();
        let half = promises.journal.borrow().as_ref().is_some_and(Journal::is_half_full);
        if !promises.any() || !all || half || promises.pauses.get() > 0 {
            return;
        }
        let enough = Rc::new(Event::new());
        promises.enough.replace(Some(Rc::clone(&enough)));
        if rt::with_deadline(LINGER, enough.wait()).await.is_err() {
            promises.enough.take();
        }
    }

    /// Prepares what may be promised until the next group is there, so that no write has to wait for
    /// that. A disk that is nearly full is left alone.
    pub(super) async fn prepare_ahead(&self, writer: &mut Writer) -> io::Result<()> {
        let full = self.commit.full.borrow().is_some() || self.has_little_room();
        if full || self.commit.promises.journal.borrow().is_none() || writer.is_sealed() {
            return Ok(());
        }
        let most = usize::try_from(self.most_of_a_group() + MARGIN).expect("some MiB");
        match writer.prepare_ahead(most).await {
            Err(error) if !is_full(&error) => return Err(error),
            // The group that needs it will see to that.
            Ok(()) | Err(_) => self.note_room(writer),
        }
        Ok(())
    }

    /// Ends a segment in which hardly anything could still be promised, before a group of writes that
    /// wait: else they would fill it one by one.
    pub(super) async fn leave_what_is_left(
        self: &Rc<Self>,
        writer: &mut Writer,
        group: &[Staged],
    ) -> io::Result<()> {
        let promises = &self.commit.promises;
        // Behind a change that is not promised, none is: so nothing promised goes to the next.
        let wait = !promises.any() && group.iter().any(|staged| staged.op.is_change());
        let may = promises.journal.borrow().is_some() && self.commit.may_promise();
        if wait && may && writer.is_nearly_full(MARGIN + BLOCK) {
            self.end_segment(writer).await?;
        }
        Ok(())
    }

    /// What is promised of a key.
    pub(super) fn promised(&self, digest: Digest, key: &[u8]) -> Option<Promised> {
        if !self.commit.promises.any() {
            return None;
        }
        self.commit.promised(digest).filter(|promised| promised.key == key)
    }

    /// Waits until the log has all that is promised now: for those who read that.
    pub(crate) async fn keep_promises(self: &Rc<Self>) -> Result<()> {
        if self.commit.promises.any() {
            self.fence().await?;
        }
        Ok(())
    }

    /// Waits until nothing is promised; when it is over nothing has been since. Fails if the
    /// partition is poisoned.
    pub(super) async fn settle_promises(&self) -> Result<()> {
        let pause = Pause::new(&self.commit.promises);
        while self.commit.promises.any() {
            self.check()?;
            drop(rt::timeout(WATCH).await);
        }
        drop(pause);
        Ok(())
    }

    /// Puts what an earlier process has promised into the log, durably, under its own numbers. After
    /// that the numbers go on from `next`. Tells whether the log says so, or has no room for that.
    pub(super) async fn keep_promises_of_before(
        self: &Rc<Self>,
        entries: Vec<Entry>,
        next: u64,
    ) -> Result<bool> {
        let mut tickets = Vec::with_capacity(entries.len());
        for entry in entries {
            tickets.push(self.stage_again(entry));
        }
        for ticket in tickets {
            ticket.wait(self).await?;
        }
        self.go_on_from(next).await
    }

    /// Stages a write again that an earlier process has promised. It has room if anything has.
    fn stage_again(self: &Rc<Self>, entry: Entry) -> Rc<Ticket> {
        let Entry { sequence, key, value, sum } = entry;
        self.commit.set_sequence(sequence);
        let digest = Digest::new(&self.secret, &key);
        let op = match value {
            Some(value) => Op::Put { key, value, sum, expiry: None },
            None => Op::Delete { key },
        };
        self.enqueue(digest, sequence, op, Need::Own, Durability::Buffered)
    }

    /// The numbers go on from here, durably. Tells whether; on a full disk it is the next group that
    /// says so.
    async fn go_on_from(self: &Rc<Self>, sequence: u64) -> Result<bool> {
        self.commit.set_sequence(sequence);
        self.commit.promises.set_written(sequence);
        let clock = self.stage(Digest::default(), Op::Clock(Need::Own), Durability::Sync)?.0;
        match clock.wait(self).await {
            Err(Error::Full { .. }) => self.barrier().await.map(|()| false),
            done => done.map(|()| true),
        }
    }
}
