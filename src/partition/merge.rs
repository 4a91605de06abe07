//! Merges: what is alive in a segment full of garbage is written again, and the file goes. (The
//! word and the idea are Bitcask's; the choice of the victim is that of log-structured file systems.)
//!
//! Invariants: between the look at the keydir and the staging of a copy nothing is awaited, so a
//! copy never overtakes a newer write; a victim is dropped in the log only when nothing points into
//! it, and unlinked only when that is durable; the puts of a segment are counted down only then,
//! so a tombstone goes only when no older put of its key is left anywhere.

use super::Partition;
use super::digest::Digest;
use super::pace::Pressure;
use super::rotate::is_full;
use super::space::{Extant, Pin};
use super::staged::{Failure, Need, Op, Ticket};
use crate::durability::Durability;
use crate::error::{Error, Result};
use crate::log::hint;
use crate::log::place::{Class, Place};
use crate::log::record::{Kind, Record};
use crate::log::scan::{Scan, Shown, Strictness};
use crate::log::segment::{Segment, sync_dir};
use crate::rt;
use bytes::Bytes;
use std::cell::Cell;
use std::io::ErrorKind;
use std::rc::Rc;
use std::sync::Arc;

/// How many bytes are copied between two looks at the budget: a quarter of a group, so that writes
/// which come meanwhile do not wait for long.
const STEP: u64 = 256 << 10;
/// How many bytes are copied until they are made durable, so that reads see the copies: what waits
/// for that is kept in memory, 40 bytes a record.
const STRETCH: u64 = 1 << 20;
/// Puts that are counted down between two yields: some 0.2 ms of lookups in the keydir.
const COUNTS: usize = 1024;

impl Partition {
    /// Starts merging, if there is enough garbage and nobody does.
    pub(super) fn consider_merging(self: &Rc<Self>) {
        if self.merging.running.get() || self.commit.is_closing() || self.commit.is_poisoned() {
            return;
        }
        let wanted = !matches!(self.pressure(), Pressure::None);
        if !wanted || (self.choose().is_none() && !self.active_is_garbage()) {
            return;
        }
        self.merging.running.set(true);
        let partition = Rc::clone(self);
        self.chore(async move {
            let merging = Running(&partition.merging.running);
            // Dropped at any await when the store stops: a merge that was cut short is harmless.
            partition.home.until_stopping(partition.merge_all()).await;
            drop(merging);
            partition.tell_end();
        });
    }

    async fn merge_all(self: &Rc<Self>) {
        self.look_at_room().await;
        let mut refused = false;
        while !self.commit.is_closing()
            && !self.commit.is_poisoned()
            && !matches!(self.pressure(), Pressure::None)
        {
            let (was_full, done) = (self.commit.full.borrow().is_some(), self.merges().done);
            let merged = match self.choose() {
                Some(victim) => match self.merge_or_pass(victim).await {
                    // Reads and `verify` report it; the others can still be merged.
                    Err(error) if is_damage(&error) => Ok(()),
                    // The next would come to no more, and so on without end.
                    Ok(()) if was_full && self.merges().done == done => return,
                    merged => merged,
                },
                None if self.active_is_garbage() => {
                    let active = self.commit.active();
                    let ended = self.end_active().await;
                    if self.commit.active() == active {
                        return; // there is no room for another
                    }
                    ended
                }
                None => return,
            };
            match merged {
                // The others may fit what is in reserve, which this one was not to take.
                Err(Error::Full { .. }) if !was_full && !refused => refused = true,
                Err(_) => return,
                Ok(()) => {}
            }
            self.look_at_room().await;
        }
    }

    /// Merges a segment away of which a salvage could not read all.
    pub(super) async fn merge_damaged(self: &Rc<Self>, slot: usize) -> Result<()> {
        let _busy = self.merge_turn().await;
        self.merge_alone(slot, true).await
    }

    /// Ends the active segment, if it has records.
    async fn end_active(self: &Rc<Self>) -> Result<()> {
        let active = self.commit.active();
        self.stage(Digest::default(), Op::Seal, Durability::Sync)?.0.wait(self).await?;
        while self.ledger.borrow().space.try_get(active).is_some_and(|e| e.hinting) {
            drop(rt::timeout_ms(1).await);
        }
        Ok(())
    }

    /// One merge at a time.
    async fn merge_turn(&self) -> Turn<'_> {
        while self.merging.busy.get() {
            drop(rt::timeout_ms(1).await);
        }
        self.merging.busy.set(true);
        Turn(self)
    }

    /// Merges one sealed segment away. If it cannot be read, no merge tries again until the next
    /// opening.
    async fn merge_or_pass(self: &Rc<Self>, slot: usize) -> Result<()> {
        let id = |partition: &Self| {
            partition.ledger.borrow().space.try_get(slot).map(|extant| extant.segment.id)
        };
        let victim = id(self);
        let merged = self.merge(slot).await;
        if merged.as_ref().is_err_and(is_damage) && id(self) == victim {
            self.ledger.borrow_mut().space.set_damaged(slot);
        }
        merged
    }

    /// Merges one sealed segment away.
    async fn merge(self: &Rc<Self>, slot: usize) -> Result<()> {
        let _busy = self.merge_turn().await;
        if self.commit.is_closing() {
            return Err(Error::Closed);
        }
        // Meanwhile another merge may have taken it, or its room.
        let gone = |extant: &Extant| !extant.can_merge() || self.room_for(extant).is_none();
        if self.ledger.borrow().space.try_get(slot).is_none_or(gone) {
            return Ok(());
        }
        self.merge_alone(slot, false).await
    }

    async fn merge_alone(self: &Rc<Self>, slot: usize, salvage: bool) -> Result<()> {
        let (id, room, total) = {
            let ledger = self.ledger.borrow();
            let victim = ledger.space.get(slot);
            victim.move_ahead();
            (victim.segment.id, self.room_for(victim), ledger.space.totals().0)
        };
        if self.commit.has_unseen() {
            // Of a merge that was cut short: what it has copied is not copied again.
            self.barrier().await?;
        }
        // A salvage has nothing but this to do with what room there is.
        let room = if salvage { Some(Need::Own) } else { room };
        let mut seen = Seen { room: room.unwrap_or(Need::Put), ..Seen::default() };
        let left = || self.ledger.borrow().space.get(slot).live_records;
        loop {
            let before = left();
            self.copy_live(slot, salvage, &mut seen).await?;
            // All copies are published when this is.
            self.barrier().await?;
            if left() == seen.last.len() as u64 {
                break;
            }
            // A write that superseded a record here may have been refused for want of room: then
            // the next pass copies it. If none does, there is no room for copies either.
            if left() == before {
                return Err(self.no_room());
            }
        }
        let kept = Kept::new(self, slot);
        let dropped = self.stage(Digest::default(), Op::Drop { id }, Durability::Sync)?.0;
        dropped.wait(self).await?;
        // It is garbage no more. Puts need not wait until the disk has its blocks back.
        self.tell_less();
        for (digest, place) in seen.last {
            self.ledger.borrow_mut().forget(digest, place);
        }
        for some in seen.puts.chunks(COUNTS) {
            for &digest in some {
                self.ledger.borrow_mut().count_down(digest);
            }
            rt::yield_now().await;
        }
        drop(kept);
        self.count(|stats| stats.merges += 1);
        self.remove_dropped(slot).await?;
        if self.ledger.borrow().space.totals().0 < total {
            self.count_done();
        }
        Ok(())
    }

    fn no_room(&self) -> Error {
        let cause = self.commit.full.borrow().clone();
        let cause = cause.unwrap_or_else(|| Arc::new(ErrorKind::StorageFull.into()));
        self.failed(Failure::Full(cause))
    }

    /// Removes a dropped segment's file, unless somebody still reads it: then whoever is last does.
    pub(super) async fn remove_dropped(&self, slot: usize) -> Result<()> {
        let segment = match self.ledger.borrow().space.try_get(slot) {
            Some(extant) if extant.dropped && !extant.is_pinned() => Rc::clone(&extant.segment),
            _ => return Ok(()),
        };
        self.ledger.borrow_mut().space.remove(slot);
        self.remove_file(&segment).await
    }

    /// Unlinks a segment that the log has dropped, durably.
    pub(super) async fn remove_file(&self, segment: &Segment) -> Result<()> {
        // If its blocks cannot be given back in pieces, that is done all at once.
        let in_pieces = self.commit.full.borrow().is_none();
        if in_pieces {
            drop(segment.keep_blocks().await);
        }
        let turn = self.naming_turn().await;
        for path in [hint::path_of(segment), segment.path().to_owned()] {
            match rt::unlink(None, &path).await {
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                result => result.map_err(Error::io("remove", &path))?,
            }
        }
        sync_dir(&self.dir).await?;
        drop(turn);
        if in_pieces {
            drop(segment.give_back().await);
        }
        Ok(())
    }

    /// Stages what is alive in a segment again, and notes what is to be counted down.
    async fn copy_live(self: &Rc<Self>, slot: usize, salvage: bool, seen: &mut Seen) -> Result<()> {
        seen.puts.clear();
        seen.last.clear();
        let (segment, len, oldest) = {
            let space = &mut self.ledger.borrow_mut().space;
            let segment = space.for_reading(slot);
            (segment, space.get(slot).scan_len(), space.is_oldest(slot))
        };
        let mut scan = Scan::new(&segment, len, Strictness { sealed: true, salvage });
        let (mut copied, mut stretch, mut last) = (0, 0, None);
        while let Some(shown) = scan.next().await? {
            let record = shown.record();
            if !matches!(record.kind, Kind::Put | Kind::Delete) {
                continue;
            }
            let digest = Digest::new(&self.secret, record.key);
            if record.kind == Kind::Put {
                seen.puts.push(digest);
            }
            let Some((from, older)) = self.is_live(slot, digest, &shown) else { continue };
            // A count that has stopped: but before the oldest segment there is nothing.
            if from.is_tombstone() && older == u8::MAX && oldest {
                seen.last.push((digest, from));
                continue;
            }
            let ticket = self.copy(digest, from, &shown, seen.room);
            copied += shown.len as u64;
            self.count(|stats| stats.bytes_merged += shown.len as u64);
            if copied >= STEP {
                // Not more than this at a time, so that other writes do not wait for long.
                ticket.wait(self).await?;
                self.look_at_room().await;
                self.rest(copied).await;
                (copied, stretch) = (0, stretch + copied);
                if stretch >= STRETCH {
                    self.barrier().await?;
                    stretch = 0;
                }
                // Cut short, it is harmless.
                if self.commit.is_closing() {
                    return Err(Error::Closed);
                }
            } else {
                last = Some(ticket);
            }
        }
        // Without room for copies there is no sense in going on.
        match last {
            Some(ticket) => ticket.wait(self).await,
            None => Ok(()),
        }
    }

    /// Whether a record is what the keydir points to; then its place and its count.
    fn is_live(&self, slot: usize, digest: Digest, shown: &Shown) -> Option<(Place, u8)> {
        let record = shown.record();
        let place = Place::new(slot, shown.offset, Class::of(&record)?, shown.len);
        let entry = self.ledger.borrow().keydir.get(digest)?;
        // If something newer is on its way, a copy must not come after it.
        let live = entry.place == place.bits() && self.commit.overlay(digest).is_none();
        live.then_some((place, entry.older))
    }

    /// Stages a live record again.
    fn copy(self: &Rc<Self>, digest: Digest, from: Place, shown: &Shown, room: Need) -> Rc<Ticket> {
        let record = shown.record();
        let (key, value) = shown.share();
        let op = if self.is_expired(record.expiry) {
            // As safe as a delete by anybody: the clock cannot bring it back. Until it is durable,
            // reads find what has expired, and see to it that this stays known.
            let Record { kind, sum, .. } = Record::new(Kind::Delete, record.sequence, &key, &[]);
            Op::Move { from, kind, key, value: Bytes::new(), sum, expiry: None }
        } else {
            let (kind, sum, expiry) = (record.kind, record.sum, record.expiry);
            Op::Move { from, kind, key, value, sum, expiry }
        };
        self.stage_moved(digest, record.sequence, op, room)
    }

    /// Merges all that has garbage in it, as it is now.
    pub(crate) async fn compact(self: &Rc<Self>) -> Result<()> {
        self.check()?;
        self.look_at_room().await;
        let last = self.next_id.get();
        self.end_active().await?;
        let mut damage = None;
        loop {
            let (now, mut too_much) = (self.clock.now(), false);
            let victim = self.ledger.borrow().space.iter().find_map(|(slot, e)| {
                let whole = e.seal.is_some() && !e.damaged && !e.dropped && !e.is_held();
                let worth =
                    whole && e.segment.id < last && e.is_worth_merging(now, self.segment_bytes);
                let fits = worth && self.room_for(e).is_some();
                too_much |= worth && !fits;
                fits.then_some((slot, e.hinting))
            });
            match victim {
                None if too_much => return Err(self.no_room()),
                None => return damage.map_or(Ok(()), Err),
                // Its hint is being written, after a rotation or an opening.
                Some((_, true)) => drop(rt::timeout_ms(1).await),
                Some((victim, false)) => match self.merge_or_pass(victim).await {
                    Err(error) if is_damage(&error) => damage = damage.or(Some(error)),
                    merged => merged?,
                },
            }
        }
    }
}

/// Whether a segment cannot be read, or its file not be removed, whatever room there is.
fn is_damage(error: &Error) -> bool {
    match error {
        Error::Corrupt { .. } => true,
        Error::Io { source, .. } => !is_full(source),
        _ => false,
    }
}

/// What a merge notes about its victim.
#[derive(Default)]
struct Seen {
    /// Which room its copies may take.
    room: Need,
    /// Of all puts.
    puts: Vec<Digest>,
    /// Tombstones that go with it.
    last: Vec<(Digest, Place)>,
}

/// A victim's slot stays its own while this is there: whoever else is last to let go of it does not
/// free it before all that points into it is forgotten.
struct Kept<'a> {
    partition: &'a Partition,
    slot: usize,
    pin: Rc<Pin>,
}

impl<'a> Kept<'a> {
    fn new(partition: &'a Partition, slot: usize) -> Self {
        let pin = Rc::new(Pin { remembers: false, moved: Cell::new(0) });
        partition.ledger.borrow_mut().space.pin(slot, &pin);
        Self { partition, slot, pin }
    }
}

impl Drop for Kept<'_> {
    fn drop(&mut self) {
        self.partition.ledger.borrow_mut().space.unpin(self.slot, &self.pin);
    }
}

/// Resets a flag, also if the task is dropped.
struct Running<'a>(&'a Cell<bool>);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.set(false);
    }
}

/// That of a merge. Whoever waits for it hears of its end, also if the task is dropped.
struct Turn<'a>(&'a Partition);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.merging.busy.set(false);
        self.0.tell_end();
    }
}
