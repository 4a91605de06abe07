//! Group commit: many writes, one write to the log, one fdatasync, many acknowledgements.
//!
//! While one group is on its way to the device, the next one gathers; it leaves when the first is
//! durable. So the groups are as large as the load makes them, and a lone writer waits for nobody:
//! there is no timer. Invariants: one group is in flight at a time; a group's changes reach the
//! keydir, in order, before its writers hear of it; the buffers are reused, so a steady load
//! allocates nothing here.

use super::Partition;
use super::keydir::{Digest, DigestMap};
use crate::error::{Error, Result};
use crate::log::Location;
use crate::log::record::{MARK_LEN, Record};
use crate::rt;
use crate::stats::PartitionStats;
use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};

/// What the writers of a group wait for.
#[derive(Debug, Default)]
pub(crate) struct Group {
    outcome: RefCell<Option<Result<(), Arc<io::Error>>>>,
    waiters: RefCell<Vec<Waker>>,
}

impl Group {
    /// Waits until the group is durable, or has failed.
    pub(crate) async fn wait(self: Rc<Self>, partition: &Partition) -> Result<()> {
        let outcome = poll_fn(|cx| match &*self.outcome.borrow() {
            Some(outcome) => Poll::Ready(outcome.clone()),
            None => {
                self.waiters.borrow_mut().push(cx.waker().clone());
                Poll::Pending
            }
        });
        outcome.await.map_err(|cause| partition.poisoned(cause))
    }

    fn finish(&self, outcome: Result<(), Arc<io::Error>>) {
        self.outcome.replace(Some(outcome));
        for waiter in self.waiters.take() {
            waiter.wake();
        }
    }
}

/// A change of the keydir that is not durable yet: the key's record, or none after a delete.
#[derive(Debug)]
struct Change {
    digest: Digest,
    location: Option<Location>,
}

/// What gathers for the next group.
#[derive(Debug, Default)]
struct Batch {
    /// Room for the mark, then the records. Empty if nothing has gathered.
    bytes: Vec<u8>,
    changes: Vec<Change>,
    group: Rc<Group>,
}

/// The newest change of a key that is not durable yet.
#[derive(Debug)]
struct Pending {
    present: bool,
    group: Rc<Group>,
}

/// The commit state of a partition.
#[derive(Debug)]
pub(crate) struct Commit {
    gathering: RefCell<Batch>,
    /// Where in the log the gathering batch will be.
    start: Cell<u64>,
    sequence: Cell<u64>,
    overlay: RefCell<DigestMap<Pending>>,
    /// Whether a group is on its way, and which.
    in_flight: RefCell<Option<Rc<Group>>>,
    poison: RefCell<Option<Arc<io::Error>>>,
    sealed: Cell<bool>,
    stats: Cell<PartitionStats>,
}

impl Commit {
    pub(crate) fn new(tail: u64, sequence: u64) -> Self {
        Self {
            gathering: RefCell::default(),
            start: Cell::new(tail),
            sequence: Cell::new(sequence),
            overlay: RefCell::default(),
            in_flight: RefCell::default(),
            poison: RefCell::default(),
            sealed: Cell::new(false),
            stats: Cell::default(),
        }
    }

    /// Whether the newest change of a key that is not durable yet leaves it there, if there is one,
    /// and its group.
    pub(crate) fn overlay(&self, digest: Digest) -> Option<(bool, Rc<Group>)> {
        let overlay = self.overlay.borrow();
        overlay.get(&digest).map(|pending| (pending.present, Rc::clone(&pending.group)))
    }

    /// The last group that is not durable yet.
    pub(crate) fn last(&self) -> Option<Rc<Group>> {
        let gathering = self.gathering.borrow();
        if gathering.bytes.is_empty() {
            return self.in_flight.borrow().clone();
        }
        Some(Rc::clone(&gathering.group))
    }

    /// Fails if the partition is poisoned.
    pub(crate) fn check(&self, partition: &Partition) -> Result<()> {
        match &*self.poison.borrow() {
            Some(cause) => Err(partition.poisoned(Arc::clone(cause))),
            None => Ok(()),
        }
    }

    /// From here on there are no more writes, but for the mark that ends the log.
    pub(crate) fn seal(&self) {
        self.sealed.set(true);
    }

    pub(crate) fn stats(&self) -> PartitionStats {
        self.stats.get()
    }

    fn next_sequence(&self) -> u64 {
        self.sequence.set(self.sequence.get() + 1);
        self.sequence.get()
    }
}

impl Partition {
    /// Gives a put (or a delete: no value) its place in the log. Returns the group to wait for.
    pub(super) fn stage(
        self: &Rc<Self>,
        digest: Digest,
        key: &[u8],
        value: Option<&[u8]>,
    ) -> Result<Rc<Group>> {
        let commit = &self.commit;
        commit.check(self)?;
        if commit.sealed.get() {
            return Err(Error::Closed);
        }
        let sequence = commit.next_sequence();
        let record = match value {
            Some(value) => Record::put(sequence, key, value),
            None => Record::delete(sequence, key),
        };
        let group = {
            let mut batch = commit.gathering.borrow_mut();
            let batch = &mut *batch;
            if batch.bytes.is_empty() {
                batch.bytes.resize(MARK_LEN, 0);
            }
            let offset = commit.start.get() + batch.bytes.len() as u64;
            let location = record.encode(&mut batch.bytes, self.log.salt(), offset);
            batch.changes.push(Change { digest, location: value.map(|_| location) });
            Rc::clone(&batch.group)
        };
        let pending = Pending { present: value.is_some(), group: Rc::clone(&group) };
        commit.overlay.borrow_mut().insert(digest, pending);
        self.start_committing();
        Ok(group)
    }

    /// A group of nothing but its mark.
    pub(super) fn stage_mark(self: &Rc<Self>) -> Result<Rc<Group>> {
        self.commit.check(self)?;
        let mut batch = self.commit.gathering.borrow_mut();
        if batch.bytes.is_empty() {
            batch.bytes.resize(MARK_LEN, 0);
        }
        let group = Rc::clone(&batch.group);
        drop(batch);
        self.start_committing();
        Ok(group)
    }

    /// Sees to it that what gathers will be committed. The task runs after the tasks that are
    /// ready now, so all that arrived together goes in one group.
    fn start_committing(self: &Rc<Self>) {
        if self.commit.in_flight.borrow().is_none() {
            // Until the task takes the batch, the batch's own group stands for it.
            let group = Rc::clone(&self.commit.gathering.borrow().group);
            self.commit.in_flight.replace(Some(group));
            drop(rt::spawn(Rc::clone(self).commit_groups()));
        }
    }

    /// Commits group after group, until nothing has gathered meanwhile.
    async fn commit_groups(self: Rc<Self>) {
        let commit = &self.commit;
        let unfinished = Unfinished(&self);
        let mut spare = Batch::default();
        while !commit.gathering.borrow().bytes.is_empty() {
            let mut batch = commit.gathering.replace(std::mem::take(&mut spare));
            commit.in_flight.replace(Some(Rc::clone(&batch.group)));
            commit.start.set(commit.start.get() + batch.bytes.len() as u64);
            let (result, bytes) = self.log.append(std::mem::take(&mut batch.bytes)).await;
            if let Err(error) = result {
                return self.poison(error);
            }
            self.publish(&batch, bytes.len());
            batch.group.finish(Ok(()));
            spare = Batch { bytes, changes: batch.changes, group: Rc::default() };
            spare.bytes.clear();
            spare.bytes.shrink_to(SPARE_BYTES);
            spare.changes.clear();
            spare.changes.shrink_to(SPARE_CHANGES);
        }
        commit.in_flight.replace(None);
        std::mem::forget(unfinished);
    }

    /// A durable group's changes become what reads see.
    fn publish(&self, batch: &Batch, bytes: usize) {
        let mut keydir = self.keydir.borrow_mut();
        let mut overlay = self.commit.overlay.borrow_mut();
        for Change { digest, location } in &batch.changes {
            match *location {
                Some(location) => drop(keydir.insert(*digest, location)),
                None => drop(keydir.remove(digest)),
            }
            if overlay.get(digest).is_some_and(|p| Rc::ptr_eq(&p.group, &batch.group)) {
                overlay.remove(digest);
            }
        }
        let mut stats = self.commit.stats.get();
        stats.commits += 1;
        stats.records += batch.changes.len() as u64;
        stats.bytes_written += bytes as u64;
        self.commit.stats.set(stats);
    }

    /// Nobody knows what of the group is on the device. It fails, all that waits fails, and all
    /// that will come.
    fn poison(&self, error: io::Error) {
        let cause = Arc::new(error);
        self.commit.poison.replace(Some(Arc::clone(&cause)));
        let failed = self.commit.in_flight.take();
        let waiting = self.commit.gathering.take();
        for group in failed.into_iter().chain([waiting.group]) {
            group.finish(Err(Arc::clone(&cause)));
        }
    }
}

/// Poisons the partition if its commit task ends before its work is done: dropped with its
/// executor, or by a panic. Else all later writes would wait for it for ever.
struct Unfinished<'a>(&'a Partition);

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if self.0.commit.poison.borrow().is_none() {
            self.0.poison(io::Error::other("the commit task was dropped before it was done"));
        }
    }
}

/// What a group's buffers keep of their size for the next.
const SPARE_BYTES: usize = 1 << 20;
const SPARE_CHANGES: usize = 1 << 12;
