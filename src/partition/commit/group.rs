//! One group: taken from what gathers, written, published, answered; refused or poisoned where that
//! fails. The task that does so with one group after the other is in [`commit`](super).
//!
//! Invariants: a group's changes reach the keydir, in order, when it is written, and before their
//! writers hear of it, unless they were promised, but for copies of what is there already: reads see
//! those when they are durable; a write that failed for want of room leaves no trace, any other
//! failure poisons the partition.

use super::Moved;
use crate::log::hint::HintEntry;
use crate::log::place::{Class, Place};
use crate::log::record::{Kind, Record};
use crate::log::writer::Writer;
use crate::partition::Partition;
use crate::partition::digest::DigestSet;
use crate::partition::rotate::NoRoom;
use crate::partition::staged::{Failure, Op, Staged};
use std::io;
use std::rc::Rc;
use std::sync::Arc;

/// A group ends when it has so many bytes of records; in small segments sooner. The device is at its
/// full rate with it, and more would only make the first of a group wait for the last.
const MAX_GROUP: u64 = 1 << 20;

impl Partition {
    /// What a group ends with, in bytes of records.
    pub(in crate::partition) fn most_of_a_group(&self) -> u64 {
        MAX_GROUP.min(self.segment_bytes / 4).min(self.least_reserve() / 2)
    }

    /// Takes the operations of the next group.
    pub(super) fn take_group(&self, group: &mut Vec<Staged>) -> bool {
        let mut gathering = self.commit.gathering.borrow_mut();
        let most = self.most_of_a_group();
        let promises = &self.commit.promises;
        let (mut bytes, first) = (0, promises.pending());
        let mut left = first;
        while let Some(next) = gathering.front()
            && (group.is_empty() || bytes + next.len() as u64 <= most)
            && (left > 0 || first == 0 || promises.may_join(next, bytes))
            && let Some(next) = gathering.pop_front()
        {
            bytes += next.len() as u64;
            left -= usize::from(next.promised.is_some());
            group.push(next);
        }
        !group.is_empty()
    }

    /// Writes a group, publishes it, and answers it. Fails if the partition is poisoned.
    pub(super) async fn write_group(
        self: &Rc<Self>,
        writer: &mut Writer,
        group: &mut Vec<Staged>,
    ) -> io::Result<()> {
        let commit = &self.commit;
        self.leave_what_is_left(writer, group).await?;
        // The least first: what it may not have, others still may.
        while let Some(need) =
            group.iter().filter(|staged| staged.takes_room()).map(|s| s.need).min()
        {
            let bytes = group.iter().map(Staged::len).sum();
            let Err(NoRoom(error)) = self.make_room(writer, bytes, need).await? else { break };
            if group.iter().all(|staged| staged.promised.is_some() || !staged.takes_room()) {
                return Err(error); // what is promised had its room: the next opening finds it
            }
            let error = Arc::new(error);
            self.refuse(group, |staged| staged.need <= need && staged.takes_room(), &error);
            commit.full.replace(Some(error));
        }
        // Else a power cut could take all of the segment, and with it what says which numbers have
        // been told.
        let first = || writer.may_be_lost() && group.iter().any(|staged| staged.op.is_change());
        let sync = group.iter().any(|staged| staged.sync) || first();
        let clock = self.clock.now();
        let mut places = Vec::with_capacity(group.len());
        if group.iter().any(Staged::takes_room) {
            writer.begin(commit.promises.written(), clock);
            if writer.is_empty() {
                let own = writer.segment().id;
                let ids = self.ledger.borrow().space.listed(own);
                let value: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
                let written = commit.promises.written();
                writer.push(&Record::new(Kind::Live, written, &[], &value));
            }
            places.extend(group.iter().map(|staged| self.encode(writer, staged)));
            let written = writer.finish(sync).await?;
            if let Some(zeroes) = writer.zeroes_after(written, sync) {
                let partition = Rc::clone(self);
                self.chore(async move {
                    let bytes = zeroes.await;
                    partition.count(|stats| stats.bytes_written += bytes);
                });
            }
            commit.groups.set(commit.groups.get() + 1);
            self.ledger.borrow_mut().space.set_len(commit.active(), writer.tail(), writer.end());
            self.count(|stats| {
                stats.commits += 1;
                stats.bytes_written += written as u64;
            });
            if sync {
                commit.set_durable_clock(clock);
            }
        } else if sync && writer.is_dirty() {
            writer.sync().await?;
            // The tail can be marked now.
            commit.groups.set(commit.groups.get() + 1);
            self.ledger.borrow_mut().space.set_len(commit.active(), writer.tail(), writer.end());
        }
        for (staged, place) in group.iter().zip(places) {
            self.publish(staged, place);
        }
        if sync {
            self.publish_moved();
        }
        // Before the segment is ended, if it is: the seal says so.
        commit.promises.note_written(group);
        if group.iter().any(|staged| matches!(staged.op, Op::Seal)) {
            self.end_segment(writer).await?;
        }
        self.note_room(writer);
        for staged in group.drain(..) {
            if staged.promised.is_none() {
                staged.ticket.finish(Ok(()));
            }
        }
        self.consider_merging();
        self.prepare_ahead(writer).await
    }

    /// No group is on its way: what is left behind the last can be promised.
    pub(in crate::partition) fn note_room(&self, writer: &Writer) {
        let commit = &self.commit;
        commit.left.set(writer.left_after(0));
        // A segment's first group lists the others, however many.
        let room = if writer.is_empty() { 0 } else { commit.left.get() };
        commit.promises.note_room(room, commit.gathering.borrow().iter());
    }

    /// Writes an operation's record into the group; tells its place.
    fn encode(&self, writer: &mut Writer, staged: &Staged) -> Option<Place> {
        if let Op::Drop { id } = staged.op {
            writer.push(&Record::new(Kind::Drop, staged.sequence, &[], &id.to_le_bytes()));
            return None;
        }
        let record = staged.record()?;
        let offset = writer.push(&record);
        let class = Class::of(&record)?;
        let (digest, len) = (staged.digest.to_bytes(), record.len());
        self.commit.remembered.borrow_mut().push(&HintEntry { digest, offset, len, class });
        Some(Place::new(self.commit.active(), offset, class, len))
    }

    /// A written change becomes what reads see.
    fn publish(&self, staged: &Staged, place: Option<Place>) {
        if let Op::Drop { id } = staged.op {
            self.ledger.borrow_mut().space.set_dropped(id);
        }
        let Some(place) = place else { return };
        let mut ledger = self.ledger.borrow_mut();
        match staged.op {
            Op::Move { from, expiry, .. } => {
                let moved = Moved { digest: staged.digest, from, to: place };
                self.commit.moved.borrow_mut().push(moved);
                ledger.space.note_expiry(place.slot(), expiry.unwrap_or(0));
            }
            _ => {
                ledger.index(staged.digest, place);
                match staged.promised {
                    // The cache has had it since, or something later.
                    Some(taken) => self.commit.promises.keep(taken),
                    None => self.show(staged),
                }
                if let Op::Put { expiry: Some(expiry), .. } = staged.op {
                    ledger.space.note_expiry(place.slot(), expiry);
                }
                self.count(|stats| stats.records += 1);
            }
        }
        self.commit.overlay.borrow_mut().settle(staged);
    }

    /// A change is what reads see from here on: the value cache shows it.
    pub(super) fn show(&self, staged: &Staged) {
        match &staged.op {
            Op::Put { key, value, expiry: None, .. } => {
                self.cache.put(staged.digest, key, value);
            }
            _ => self.cache.remove(staged.digest),
        }
    }

    /// All copies are durable: they take the places of what they were made of, unless something
    /// newer has.
    fn publish_moved(&self) {
        let mut ledger = self.ledger.borrow_mut();
        for Moved { digest, from, to } in self.commit.moved.borrow_mut().drain(..) {
            ledger.moved(digest, from, to);
        }
    }

    /// Takes operations back that there is no room for, from the group and from what gathers, and
    /// the deletes that were judged by what is taken back.
    fn refuse(
        &self,
        group: &mut Vec<Staged>,
        refused: impl Fn(&Staged) -> bool,
        error: &Arc<io::Error>,
    ) {
        let mut gathering = self.commit.gathering.borrow_mut();
        let mut overlay = self.commit.overlay.borrow_mut();
        overlay.clear();
        let mut tickets = Vec::new();
        let mut gone = DigestSet::default();
        let mut keep = |staged: &Staged| {
            let changes = staged.op.is_change();
            let refused = refused(staged) || changes && gone.contains(&staged.digest);
            if refused && staged.promised.is_none() {
                if changes {
                    gone.insert(staged.digest);
                }
                staged.ticket.settle(Err(Failure::Full(Arc::clone(error))));
                tickets.push(Rc::clone(&staged.ticket));
                return false;
            }
            overlay.add(staged);
            true
        };
        group.retain(&mut keep);
        gathering.retain(&mut keep);
        drop((gathering, overlay));
        for ticket in tickets {
            ticket.wake();
        }
    }

    /// Nobody knows what of the group is on the device. It fails, all that waits fails, and all
    /// that will come.
    pub(super) fn poison(&self, group: &mut Vec<Staged>, error: io::Error) {
        let cause = Arc::new(error);
        self.commit.poison.replace(Some(Arc::clone(&cause)));
        self.commit.running.set(false);
        let waiting = self.commit.gathering.take();
        self.commit.overlay.borrow_mut().poison();
        // What was promised is in the journal, for the next opening.
        for staged in group.drain(..).chain(waiting).filter(|staged| staged.promised.is_none()) {
            staged.ticket.finish(Err(Failure::Poisoned(Arc::clone(&cause))));
        }
    }
}
