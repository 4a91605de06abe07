//! Walks: every live entry, read segment after segment, in the order of the log.
//!
//! Invariants: an entry that is not touched meanwhile is shown exactly once, however merges move
//! it; a walk holds a chunk of memory or two, and a number for each entry that merges move ahead of
//! it, which they do up to a bound; it keeps the files that it has yet to read, and nothing else:
//! writes go on, and merges of what it can keep in mind.

use super::digest::{Digest, DigestSet};
use super::space::Pin;
use super::{LARGE, Partition};
use crate::error::Result;
use crate::log::CHUNK;
use crate::log::place::Place;
use crate::log::record::Kind;
use crate::log::scan::{Scan, Shown, Strictness, Window};
use bytes::Bytes;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

/// A step ends when it has so many bytes of entries, or has come by a chunk of the log: enough that
/// the hop to its thread is nothing beside it, and little to hold ready for a slow reader.
const STEP: usize = 256 << 10;

/// An entry that a walk came by.
#[derive(Clone, Debug)]
pub(crate) struct Walked {
    pub(crate) key: Bytes,
    pub(crate) value: Bytes,
    pub(crate) version: u64,
    pub(crate) expiry: Option<u64>,
}

/// The entries of a step. The small ones lie in one piece of memory, so that none keeps what lay
/// around it in the log.
#[derive(Default)]
struct Gathered {
    entries: Vec<Walked>,
    small: Vec<u8>,
    /// Which entries are small, where their keys begin, and where their values begin and end.
    places: Vec<(usize, [usize; 3])>,
    bytes: usize,
}

impl Gathered {
    fn push(&mut self, shown: &Shown) {
        let record = shown.record();
        let (key, value) = if shown.len >= LARGE {
            shown.share()
        } else {
            let start = self.small.len();
            self.small.extend_from_slice(record.key);
            let middle = self.small.len();
            self.small.extend_from_slice(record.value);
            self.places.push((self.entries.len(), [start, middle, self.small.len()]));
            (Bytes::new(), Bytes::new())
        };
        self.bytes += record.key.len() + record.value.len();
        let (version, expiry) = (record.sequence, record.expiry);
        self.entries.push(Walked { key, value, version, expiry });
    }

    fn finish(mut self) -> Vec<Walked> {
        let small = Bytes::from(self.small.into_boxed_slice());
        for (entry, [start, middle, end]) in self.places {
            let entry = &mut self.entries[entry];
            (entry.key, entry.value) = (small.slice(start..middle), small.slice(middle..end));
        }
        self.entries
    }
}

/// Keeps the files of segments until it is dropped.
#[derive(Debug)]
pub(super) struct Pins {
    partition: Rc<Partition>,
    slots: RefCell<Vec<usize>>,
    pin: Rc<Pin>,
}

impl Pins {
    /// For one who remembers what merges move ahead of him, or does not care.
    pub(super) fn new(partition: &Rc<Partition>, slots: Vec<usize>, remembers: bool) -> Self {
        let space = &mut partition.ledger.borrow_mut().space;
        let pin = Rc::new(Pin { remembers, moved: Cell::new(0) });
        for &slot in &slots {
            space.pin(slot, &pin);
        }
        Self { partition: Rc::clone(partition), slots: RefCell::new(slots), pin }
    }

    /// Lets go of one.
    pub(super) fn release(&self, slot: usize) {
        let mut slots = self.slots.borrow_mut();
        if let Some(at) = slots.iter().position(|&pinned| pinned == slot) {
            slots.swap_remove(at);
            drop(slots);
            self.partition.unpin(slot, &self.pin);
        }
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        for slot in self.slots.take() {
            self.partition.unpin(slot, &self.pin);
        }
    }
}

/// Where a walk stands. It lives with its partition.
#[derive(Debug)]
pub(crate) struct Walk {
    pins: Pins,
    prefix: Bytes,
    /// The segments as the walk began: their slots, their lengths, and where their records end, by
    /// id.
    segments: BTreeMap<u64, (usize, u64, u64)>,
    /// Where copies were in them that reads did not see yet: their originals are shown, and they
    /// are passed over.
    unseen: Vec<(usize, u64)>,
    /// The segment that is being read, and where in it.
    at: Cell<(u64, u64)>,
    /// What was read there.
    window: RefCell<Window>,
    /// Shown where they were, since merges had moved them to where the walk does not come by: of
    /// older copies there may be several.
    followed: RefCell<DigestSet>,
}

impl Partition {
    fn unpin(self: &Rc<Self>, slot: usize, pin: &Rc<Pin>) {
        let (last, held) = {
            let space = &mut self.ledger.borrow_mut().space;
            let held = space.get(slot).is_held();
            space.unpin(slot, pin);
            let extant = space.get(slot);
            (!extant.is_pinned() && extant.dropped, held)
        };
        // Not while the store is being closed or torn down: the next opening does it then.
        if self.commit.is_closing() || !self.home.is_current() {
            return;
        }
        if last {
            let partition = Rc::clone(self);
            // If the removal fails, the next opening does it.
            self.chore(async move { drop(partition.remove_dropped(slot).await) });
        } else if held {
            self.consider_merging();
        }
    }

    /// Begins a walk over the entries whose keys begin so.
    pub(crate) fn walk(self: &Rc<Self>, prefix: Bytes) -> Walk {
        let segments: BTreeMap<_, _> = {
            let space = &self.ledger.borrow().space;
            let there = space.iter().filter(|(_, e)| !e.dropped);
            there.map(|(slot, e)| (e.segment.id, (slot, e.scan_len().min(e.len), e.end))).collect()
        };
        let slots = segments.values().map(|&(slot, ..)| slot).collect();
        let pins = Pins::new(self, slots, true);
        Walk {
            pins,
            prefix,
            segments,
            unseen: self.commit.unseen(),
            at: Cell::new((0, crate::log::BLOCK)),
            window: RefCell::default(),
            followed: RefCell::default(),
        }
    }
}

impl Walk {
    /// The next entries, if there are some near by, and whether they are the last.
    pub(crate) async fn next(&self) -> Result<(Vec<Walked>, bool)> {
        let partition = &self.pins.partition;
        let mut gathered = Gathered::default();
        let mut passed = 0;
        while let Some((&id, &(slot, len, last))) = self.segments.range(self.at.get().0..).next() {
            let offset = if self.at.get().0 == id { self.at.get().1 } else { crate::log::BLOCK };
            let segment = partition.ledger.borrow_mut().space.for_reading(slot);
            let strictness = Strictness { sealed: false, salvage: false };
            let mut scan = Scan::new(&segment, len, strictness).from(offset);
            scan = scan.with_window(self.window.take());
            while let Some(shown) = scan.next().await? {
                if shown.record().kind == Kind::Put
                    && shown.record().key.starts_with(&self.prefix)
                    && self.is_to_show(slot, &shown).await?
                {
                    gathered.push(&shown);
                }
                if gathered.bytes >= STEP || passed + scan.offset() - offset >= CHUNK as u64 {
                    self.at.set((id, scan.offset()));
                    self.window.replace(scan.window());
                    return Ok((gathered.finish(), false));
                }
            }
            // All of it was written: it does not end before, and zeroes are not padding there.
            passed += scan.offset() - offset;
            let end = scan.offset().min(scan.end());
            let whole = scan.offset() == len && scan.end() >= last;
            if !whole && scan.into_seen().seal.is_none() {
                return Err(segment.corrupt(end, "what was written there does not validate"));
            }
            self.at.set((id + 1, crate::log::BLOCK));
            self.pins.release(slot);
        }
        Ok((gathered.finish(), true))
    }

    /// Whether a record is its key's entry, and is shown here.
    async fn is_to_show(&self, slot: usize, shown: &Shown) -> Result<bool> {
        let partition = &self.pins.partition;
        let record = shown.record();
        let digest = Digest::new(&partition.secret, record.key);
        let Some(place) = partition.place(digest) else { return Ok(false) };
        if self.is_unseen(slot, shown.offset) {
            return Ok(false);
        }
        let here = place.slot() == slot && place.offset() == shown.offset;
        if !here {
            // Overwritten, or moved by a merge to where this walk does not come by?
            if self.comes_by(place) {
                return Ok(false);
            }
            match partition.read(digest, record.key).await? {
                Some((_, found))
                    if found.version == record.sequence
                        && self.followed.borrow_mut().insert(digest) => {}
                _ => return Ok(false),
            }
        }
        let expired = partition.is_expired(record.expiry);
        if expired {
            // Whoever does not see it is told so.
            partition.prove_expired(record.expiry).await;
        }
        Ok(!expired)
    }

    /// Whether what is there now is shown there.
    fn comes_by(&self, place: Place) -> bool {
        let id = self.pins.partition.ledger.borrow().space.get(place.slot()).segment.id;
        let within = self.segments.get(&id).is_some_and(|&(_, len, _)| place.offset() < len);
        within && !self.is_unseen(place.slot(), place.offset())
    }

    fn is_unseen(&self, slot: usize, offset: u64) -> bool {
        self.unseen.binary_search(&(slot, offset)).is_ok()
    }
}
