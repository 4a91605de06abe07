//! Verification: every file is read, every sum checked, the keydir and the hints against the log.
//!
//! Invariants: it changes nothing, and reports all that it finds instead of ending at the first. The
//! keydir is held against the log in both directions: what it points to is there, and whatever is
//! there it knows, or something later of the same key.

use super::Partition;
use super::digest::Digest;
#[cfg(test)]
use super::keydir::Entry;
use super::ledger::Known;
use super::rotate::entry_of;
use super::walk::Pins;
use crate::error::{Error, Result};
#[cfg(test)]
use crate::log::BLOCK;
use crate::log::hint::{HintEntry, path_of, read_hint};
#[cfg(test)]
use crate::log::place::Class;
use crate::log::place::Place;
use crate::log::scan::{Scan, Strictness};
use crate::log::segment::Segment;
use crate::log::superblock::Superblock;
use crate::rt;
use std::io::ErrorKind;
use std::rc::Rc;

/// What a partition's verification found.
#[derive(Clone, Debug, Default)]
pub(crate) struct Verified {
    pub(crate) records: u64,
    pub(crate) bytes: u64,
    pub(crate) missing_hints: u64,
    pub(crate) problems: Vec<Error>,
}

impl Verified {
    /// Notes a problem; fails where something could not be looked at.
    fn note(&mut self, looked: Result<()>) -> Result<()> {
        match looked {
            Err(problem @ (Error::Corrupt { .. } | Error::FormatVersion { .. })) => {
                self.problems.push(problem);
                Ok(())
            }
            looked => looked,
        }
    }
}

impl Partition {
    /// Reads all that there is, beside the traffic.
    pub(crate) async fn verify(self: &Rc<Self>) -> Result<Verified> {
        let slots: Vec<_> = {
            let space = &self.ledger.borrow().space;
            space.iter().filter(|(_, e)| !e.dropped).map(|(slot, _)| slot).collect()
        };
        let pins = Pins::new(self, slots.clone(), false);
        let mut verified = Verified::default();
        verified.note(self.verify_superblock().await)?;
        for slot in slots {
            self.verify_segment(slot, &mut verified).await?;
            pins.release(slot);
            rt::yield_now().await;
        }
        let spares: Vec<_> =
            self.commit.spares.borrow().iter().map(|spare| Rc::clone(&spare.segment)).collect();
        for spare in spares {
            let checked = spare.check_header(&self.identity).await;
            // One that was taken meanwhile is a segment of the time after this began.
            if self.commit.spares.borrow().iter().any(|s| Rc::ptr_eq(&s.segment, &spare)) {
                verified.note(checked)?;
            }
        }
        Ok(verified)
    }

    /// The file of the store as a whole, which the first partition looks at for all.
    async fn verify_superblock(&self) -> Result<()> {
        let Some(store) = self.dir.parent().filter(|_| self.identity.partition == 0) else {
            return Ok(());
        };
        match Superblock::read(store).await? {
            Some(found) if found.id == self.identity.store && found.secret == self.secret => Ok(()),
            found => {
                let reason = match found {
                    Some(_) => "the superblock is another than when the store was opened",
                    None => "the superblock is gone: without it the store does not exist",
                };
                Err(Error::Corrupt { path: Superblock::path_in(store), offset: 0, reason })
            }
        }
    }

    async fn verify_segment(&self, slot: usize, verified: &mut Verified) -> Result<()> {
        let segment = self.ledger.borrow_mut().space.for_reading(slot);
        verified.note(segment.check_header(&self.identity).await)?;
        let hint = self.verified_hint(slot, &segment, verified).await?;
        let mut hinted = hint.map(Vec::into_iter);
        // From here on until the scan begins nothing is awaited.
        let (len, last, seal, before) = {
            let extant = self.ledger.borrow().space.get(slot).clone();
            let len = extant.scan_len().min(extant.len);
            (len, extant.end, extant.seal, extant.live_records + extant.freed_records)
        };
        // Copies that reads do not see yet: the keydir has their originals.
        let unseen = self.commit.unseen();
        let strictness = Strictness { sealed: seal.is_some(), salvage: true };
        let mut scan = Scan::new(&segment, len, strictness);
        let (mut live, mut agrees, mut unknown) = (0, true, None);
        while let Some(shown) = scan.next().await? {
            verified.records += 1;
            let Some(entry) = entry_of(&self.secret, &shown) else { continue };
            let place = Place::new(slot, entry.offset, entry.class, entry.len);
            let ledger = self.ledger.borrow();
            match ledger.known(Digest::from_bytes(entry.digest), place) {
                Known::Newest => live += 1,
                Known::Superseded => {}
                // Of what the log says is gone the keydir may forget all.
                Known::Not if ledger.space.get(slot).dropped => {}
                Known::Not if unseen.binary_search(&(slot, entry.offset)).is_ok() => {}
                Known::Not => unknown = unknown.or(Some(entry.offset)),
            }
            if let Some(hinted) = &mut hinted {
                agrees &= hinted.next() == Some(entry);
            }
        }
        let whole = scan.offset() == len && scan.end() >= last;
        let end = scan.offset().min(scan.end());
        let seen = scan.into_seen();
        verified.bytes += len;
        let problems = &mut verified.problems;
        let sound = seen.damage.is_empty();
        problems.extend(seen.damage);
        if seal.is_none() && !whole {
            problems.push(segment.corrupt(end, "what was written there does not validate"));
        }
        // The keydir pointed to so many as the scan began. Each of them was met and is counted, or
        // was let go meanwhile.
        let freed = self.ledger.borrow().space.get(slot).freed_records;
        if live + freed < before {
            problems.push(segment.corrupt(end, "the index has records that are not there"));
        }
        if let Some(offset) = unknown {
            problems.push(segment.corrupt(offset, "the index lacks a record that is there"));
        }
        if sound && hinted.is_some_and(|mut rest| !agrees || rest.next().is_some()) {
            let reason = "the hint does not say what its segment holds";
            problems.push(Error::Corrupt { path: path_of(&segment), offset: 0, reason });
        }
        Ok(())
    }

    /// What the hint of a sealed segment says, if there is one that validates.
    async fn verified_hint(
        &self,
        slot: usize,
        segment: &Segment,
        verified: &mut Verified,
    ) -> Result<Option<Vec<HintEntry>>> {
        let due = |partition: &Self| {
            let ledger = partition.ledger.borrow();
            let extant = ledger.space.get(slot);
            extant.seal.is_some() && !extant.hinting
        };
        if !due(self) {
            return Ok(None); // it is not there yet
        }
        match read_hint(&self.identity, segment).await {
            Ok(Some((_, entries))) => return Ok(Some(entries)),
            Ok(None) => {
                let reason = "the hint does not validate: the next opening reads its segment";
                let problem = Error::Corrupt { path: path_of(segment), offset: 0, reason };
                verified.problems.push(problem);
            }
            Err(error) if error.kind() == ErrorKind::NotFound => verified.missing_hints += 1,
            Err(error) => return Err(Error::io("read", &path_of(segment))(error)),
        }
        Ok(None)
    }
}

#[cfg(test)]
impl Partition {
    /// Has the keydir point to where in the active segment no such record is.
    pub(crate) fn index_a_phantom(&self) {
        let place = Place::new(self.commit.active(), BLOCK + 8, Class::Put, 64);
        self.ledger.borrow_mut().index(Digest::new(&self.secret, b"phantom"), place);
    }

    /// Has the keydir say this of a key, without a word in the log. Returns what it said before.
    pub(crate) fn index_so(&self, key: &[u8], entry: Option<Entry>) -> Option<Entry> {
        let digest = Digest::new(&self.secret, key);
        let ledger = &mut *self.ledger.borrow_mut();
        let before = match entry {
            Some(entry) => ledger.keydir.insert(digest, entry),
            None => ledger.keydir.remove(digest),
        };
        entry.inspect(|entry| ledger.space.add_live(Place::of(entry.place)));
        before.inspect(|entry| ledger.space.sub_live(Place::of(entry.place)))
    }
}
