//! Segments come and go: the spare is made, the sealed get their hints.
//!
//! Invariants: the spare is whole and durable, name and all, before it is used; an id is never used
//! twice; a put is refused rather than let it use up what deletes and merges need on a full disk.

use super::commit::Spare;
use super::digest::Digest;
use super::staged::{Failure, Need, Ticket};
use super::{Partition, is_out_of_files};
use crate::error::{Error, Result};
use crate::log::BLOCK;
use crate::log::hint::{self, ENTRY_LEN, Head, HintEntry, HintWriter};
use crate::log::place::Class;
use crate::log::scan::{Scan, Shown, Strictness};
use crate::log::segment::Segment;
use crate::log::writer::{FIRST_ROOM, Writer};
use crate::rt;
use siphasher::sip::SipHasher13;
use std::hash::Hasher;
use std::io;
use std::rc::Rc;
use std::sync::Arc;

/// Segments that are made ahead: one to go on with, and one in reserve.
pub(super) const SPARES: usize = 2;
/// What is remembered for hints that are being written is kept for so many: a device that stalls
/// does not fill the memory.
const HINTS: usize = 2;
/// So many segments' room is little: each rotation may take one, and so may each merge.
const FEW: u64 = 8;

impl Partition {
    /// What a spare has prepared at the least: the last one is for deletes and merges on a full disk.
    pub(super) fn least_reserve(&self) -> u64 {
        (self.segment_bytes / 8).clamp(FIRST_ROOM / 16, FIRST_ROOM * 2).next_multiple_of(BLOCK)
    }

    /// What a spare should have prepared. As the disk fills up it is a 16th of what is there, and at
    /// most a segment: so that whatever has to be merged then fits.
    fn reserve(&self) -> u64 {
        let least = self.least_reserve();
        if !self.has_little_room() {
            return least;
        }
        let (len, _) = self.ledger.borrow().space.totals();
        (len / 16).min(self.segment_bytes).next_multiple_of(BLOCK).max(least)
    }

    /// Whether the device had little free when that was asked for last.
    pub(super) fn has_little_room(&self) -> bool {
        self.free_space().is_some_and(|free| free < FEW * self.segment_bytes)
    }

    /// A salt that no other segment has, and nobody can foretell.
    fn salt(&self, id: u64) -> u64 {
        let mut hasher = SipHasher13::new_with_key(&self.seed);
        hasher.write_u64(id);
        hasher.finish()
    }

    /// Makes a segment with so much room.
    pub(super) async fn make_segment(&self, room: u64) -> Result<Segment> {
        let id = self.next_id.get();
        self.next_id.set(id + 1);
        let salt = self.salt(id);
        let _turn = self.naming_turn().await;
        Segment::create(&self.dir, &self.identity, id, salt, room).await
    }

    /// Begins to make spares, if there are not enough.
    pub(super) fn start_making_spares(self: &Rc<Self>) {
        if self.commit.spares.borrow().len() >= SPARES || self.making.borrow().is_some() {
            return;
        }
        let ticket = Rc::<Ticket>::default();
        self.making.replace(Some(Rc::clone(&ticket)));
        let partition = Rc::clone(self);
        self.chore(async move {
            let mut made = Ok(());
            while made.is_ok() && partition.commit.spares.borrow().len() < SPARES {
                made = partition.make_spare().await;
            }
            partition.look_at_room().await;
            partition.making.take();
            if made.is_ok() {
                partition.start_making_spares(); // one may have been taken just now
            }
            if let Err(Failure::Full(cause)) = &made {
                partition.commit.full.replace(Some(Arc::clone(cause)));
                // Puts are refused from here on, so no group of theirs would lead to a merge.
                partition.consider_merging();
            }
            ticket.finish(made);
        });
    }

    async fn make_spare(&self) -> Result<(), Failure> {
        if !self.ledger.borrow().space.has_slot(self.commit.spares.borrow().len()) {
            let error = io::Error::new(io::ErrorKind::StorageFull, "too many segments");
            return Err(Failure::Full(Arc::new(error)));
        }
        let mut prepared = self.reserve();
        let mut made = self.make_segment(prepared).await;
        if let Err(Error::Io { source, .. }) = &made
            && is_out_of_files(source)
        {
            self.ledger.borrow_mut().space.bound_open(0);
            made = self.make_segment(prepared).await;
        }
        // Deletes and merges go on with less; puts do not.
        while let Err(Error::Io { source, .. }) = &made
            && is_full(source)
            && self.commit.spares.borrow().is_empty()
            && prepared > self.least_reserve()
        {
            prepared = (prepared / 2).next_multiple_of(BLOCK).max(self.least_reserve());
            made = self.make_segment(prepared).await;
        }
        match made {
            Ok(segment) => {
                let segment = Rc::new(segment);
                self.commit.spares.borrow_mut().push_back(Spare { segment, prepared });
                Ok(())
            }
            Err(Error::Io { source, .. }) if is_full(&source) => Err(Failure::Full(source)),
            Err(Error::Io { source, .. }) => Err(Failure::Poisoned(source)),
            Err(error) => Err(Failure::Poisoned(Arc::new(io::Error::other(error)))),
        }
    }

    /// Waits until there is a spare besides so many, or there is no room for one.
    pub(super) async fn ready_spare(
        self: &Rc<Self>,
        keep: usize,
    ) -> io::Result<Result<(), NoRoom>> {
        while self.commit.spares.borrow().len() <= keep {
            self.start_making_spares();
            let making = self.making.borrow().clone();
            let Some(making) = making else { continue };
            match making.outcome().await {
                Ok(()) => {}
                // One may have been made before there was no room for the other.
                Err(Failure::Full(_)) if self.commit.spares.borrow().len() > keep => {}
                Err(Failure::Full(cause)) => return Ok(Err(NoRoom(again(&cause)))),
                Err(Failure::Poisoned(cause)) => return Err(again(&cause)),
            }
        }
        Ok(Ok(()))
    }

    /// Puts go on after the disk was full, once there are spares again.
    pub(super) async fn make_sure_there_is_room(self: &Rc<Self>) -> Result<()> {
        if self.commit.full.borrow().is_none() {
            return Ok(());
        }
        self.check()?;
        let refused = match self.ready_spare(1).await {
            Ok(Ok(())) => {
                self.commit.full.take();
                return Ok(());
            }
            Ok(Err(NoRoom(error))) | Err(error) => error,
        };
        Err(self.failed(Failure::Full(Arc::new(refused))))
    }

    /// Writes the hints of segments that were sealed, one after the other, and gives back what they
    /// have not used.
    pub(super) fn finish_segments(self: &Rc<Self>, sealed: Vec<Sealed>) {
        for &Sealed { slot, .. } in &sealed {
            self.ledger.borrow_mut().space.get_mut(slot).hinting = true;
        }
        let partition = Rc::clone(self);
        self.chore(async move {
            let waiting = &partition.hints;
            waiting.set(waiting.get() + sealed.len());
            for Sealed { slot, head, mut entries } in sealed {
                if waiting.get() > HINTS {
                    entries = None;
                }
                let segment = partition.ledger.borrow_mut().space.for_reading(slot);
                // All of this saves time and space, and nothing depends on it.
                if partition.write_hint(&segment, &head, entries).await.is_err() {
                    drop(rt::unlink(None, &hint::path_of(&segment)).await);
                }
                drop(segment.trim(head.seal + BLOCK).await);
                partition.ledger.borrow_mut().space.get_mut(slot).hinting = false;
                waiting.set(waiting.get() - 1);
                partition.consider_merging();
            }
        });
    }

    /// What a hint says was remembered while the segment was written, or else is told by the segment
    /// itself, as it can be read.
    async fn write_hint(
        &self,
        segment: &Segment,
        head: &Head,
        remembered: Option<Vec<[u8; ENTRY_LEN]>>,
    ) -> Result<()> {
        let path = hint::path_of(segment);
        let failed = || Error::io("write", &path);
        let hint = HintWriter::create(&self.identity, segment, head).await;
        let mut hint = hint.map_err(failed())?;
        if let Some(entries) = remembered {
            for entry in &entries {
                hint.push_encoded(entry).await.map_err(failed())?;
            }
        } else {
            let strictness = Strictness { sealed: true, salvage: false };
            let mut scan = Scan::new(segment, head.seal + BLOCK, strictness);
            while let Some(shown) = scan.next().await? {
                if let Some(entry) = entry_of(&self.secret, &shown) {
                    hint.push(&entry).await.map_err(failed())?;
                }
            }
        }
        hint.finish().await.map_err(failed())
    }

    /// Room for a group of so many bytes of records: prepared, in this segment or the next.
    pub(super) async fn make_room(
        self: &Rc<Self>,
        writer: &mut Writer,
        bytes: usize,
        need: Need,
    ) -> io::Result<Result<(), NoRoom>> {
        loop {
            // The first group lists the segments that there are.
            let listed = || 64 + self.ledger.borrow().space.count() * 8;
            let bytes = if writer.is_empty() { bytes + listed() } else { bytes };
            let full = if writer.fits(bytes) {
                match writer.prepare(bytes).await {
                    Ok(()) if need == Need::Delete && self.must_be_left(writer, bytes) => {
                        let full = io::ErrorKind::StorageFull.into();
                        // A merge has counted on what is left here, so the segment does not end.
                        if self.is_merging() {
                            return Ok(Err(NoRoom(full)));
                        }
                        full
                    }
                    Ok(()) => return Ok(Ok(())),
                    Err(error) if is_full(&error) => error,
                    Err(error) => return Err(error),
                }
            } else {
                io::ErrorKind::StorageFull.into()
            };
            // A put must not use up the spares while this segment cannot grow.
            if writer.fits(bytes) && (need == Need::Put || writer.is_empty()) {
                return Ok(Err(NoRoom(full)));
            }
            // Nor may it have the last one.
            let keep = usize::from(need == Need::Put);
            if let Err(NoRoom(full)) = self.ready_spare(keep).await? {
                return Ok(Err(NoRoom(full)));
            }
            self.seal_active(writer).await?;
            self.use_spare(writer);
        }
    }

    /// Ends the active segment, and begins the next one unless the store is closing.
    pub(super) async fn end_segment(self: &Rc<Self>, writer: &mut Writer) -> io::Result<()> {
        if writer.is_empty() {
            return Ok(());
        }
        if self.commit.is_closing() {
            // The seal names what will go on. Without room for that it names nothing.
            drop(self.ready_spare(0).await?);
            return self.seal_active(writer).await;
        }
        if let Ok(()) = self.ready_spare(1).await? {
            self.seal_active(writer).await?;
            self.use_spare(writer);
        }
        Ok(())
    }

    /// Whether a delete has to leave to merges what is left on a full disk: in the last spare half of
    /// the least that one has, and all while a merge is under way, since that has counted on it.
    fn must_be_left(&self, writer: &Writer, bytes: usize) -> bool {
        let last = self.commit.spares.borrow().is_empty();
        let little = last && writer.left_after(bytes) < self.least_reserve() / 2;
        self.commit.full.borrow().is_some() && (self.is_merging() || little)
    }

    /// Seals the active segment, if it is not. Its hint is written beside the traffic.
    pub(super) async fn seal_active(self: &Rc<Self>, writer: &mut Writer) -> io::Result<()> {
        let (commit, clock) = (&self.commit, self.clock.now());
        if writer.is_empty() || writer.is_sealed() {
            return Ok(());
        }
        let sequence = commit.promises.written();
        let next = commit.spares.borrow().front().map_or(0, |spare| spare.segment.id);
        let seal = writer.seal(sequence, clock, next).await?;
        commit.set_durable_clock(clock);
        let slot = commit.active();
        let (extant, last_expiry) = {
            let space = &mut self.ledger.borrow_mut().space;
            space.set_len(slot, writer.tail(), writer.end());
            space.get_mut(slot).seal = Some(seal);
            (space.listed(writer.segment().id), space.get(slot).last_expiry)
        };
        let head = Head { seal, sequence, clock, last_expiry, extant };
        let entries = commit.remembered.borrow_mut().take();
        self.finish_segments(vec![Sealed { slot, head, entries }]);
        Ok(())
    }

    pub(super) fn use_spare(self: &Rc<Self>, writer: &mut Writer) {
        let spare = self.commit.spares.borrow_mut().pop_front();
        let Some(spare) = spare else { unreachable!("it was made ready") };
        let slot =
            self.ledger.borrow_mut().space.add(Rc::clone(&spare.segment), crate::log::BLOCK, None);
        self.commit.set_active(slot);
        let limit = self.ledger.borrow().space.next_limit(self.segment_bytes, spare.prepared);
        *writer = Writer::new(spare.segment, spare.prepared, limit);
        self.start_making_spares();
    }
}

/// A segment that is to have a hint.
pub(super) struct Sealed {
    pub(super) slot: usize,
    pub(super) head: Head,
    /// What the hint is to say, if that is known.
    pub(super) entries: Option<Vec<[u8; ENTRY_LEN]>>,
}

/// There is no room on the device, or in the bound that is set on files.
pub(super) struct NoRoom(pub(super) io::Error);

/// Whether an error says that the device, a quota or a limit is full.
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENOSPC | libc::EDQUOT | libc::EFBIG | libc::EMFILE | libc::ENFILE)
    )
}

/// A record as a hint has it, if it is a put or a delete.
pub(super) fn entry_of(secret: &[u8; 16], shown: &Shown) -> Option<HintEntry> {
    let record = shown.record();
    let class = Class::of(&record)?;
    let digest = Digest::new(secret, record.key).to_bytes();
    Some(HintEntry { digest, offset: shown.offset, len: shown.len, class })
}

/// The same error once more: errors of the system cannot be cloned.
pub(super) fn again(error: &Arc<io::Error>) -> io::Error {
    match error.raw_os_error() {
        Some(errno) => io::Error::from_raw_os_error(errno),
        None => io::Error::new(error.kind(), Arc::clone(error)),
    }
}
