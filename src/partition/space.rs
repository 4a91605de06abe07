//! The segments that a partition has, and what of each is alive.
//!
//! Invariants: a segment counts as there from before its first record until its file's removal is
//! durable; what is alive in it is what the keydir points to; no more files are open than the bound
//! says, but for those in use.

use crate::log::BLOCK;
use crate::log::place::{Class, MAX_SLOTS, Place};
use crate::log::segment::Segment;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;

/// So many entries merges may move out of segments that somebody has yet to read: a scan remembers
/// each, in 16 bytes, and has to read it where it is now. One segment may have more.
const MOVED_AHEAD: u64 = 1 << 16;

/// A segment has this share of what is alive at most, unless it is small.
const SHARES: u64 = 8;
/// What a segment has room for, however little is alive: making one takes three syncs.
const SMALL: u64 = 4 << 20;
/// So many times the list of all segments, with which each begins, a segment has room for at least.
const LISTS: u64 = 16;

/// Somebody who has yet to read the files of some segments.
#[derive(Debug)]
pub(crate) struct Pin {
    /// Whether he remembers what merges move ahead of him.
    pub(crate) remembers: bool,
    /// How many entries that were, or more.
    pub(crate) moved: Cell<u64>,
}

/// A segment that is there.
#[derive(Clone, Debug)]
pub(crate) struct Extant {
    pub(crate) segment: Rc<Segment>,
    /// Bytes that it holds, its header and padding included.
    pub(crate) len: u64,
    /// Where its records end; behind that there may be padding. Of one that is not sealed.
    pub(crate) end: u64,
    /// Bytes and number of the records that the keydir points to.
    pub(crate) live_bytes: u64,
    pub(crate) live_records: u64,
    /// How many it pointed to once, and does not any more.
    pub(crate) freed_records: u64,
    /// Of the live bytes, those of entries that expire, and when the last of them does.
    expiring_bytes: u64,
    pub(crate) last_expiry: u64,
    /// Offset of its seal, if it has one.
    pub(crate) seal: Option<u64>,
    /// Whoever has yet to read the file: it must not be removed.
    pins: Vec<Rc<Pin>>,
    /// Its hint is being written.
    pub(crate) hinting: bool,
    pub(crate) damaged: bool,
    /// The log says that it exists no more.
    pub(crate) dropped: bool,
}

impl Extant {
    /// What a merge would give back. What expires is known when all of it has.
    pub(crate) fn garbage(&self, now: u64) -> u64 {
        let expired = if self.last_expiry <= now { self.expiring_bytes } else { 0 };
        self.len.saturating_sub(self.live_bytes) + expired
    }

    /// Whether merging it gives back more than its copy takes again of what is not records, about:
    /// marks, its share of the header, seal and padding of segments of so many bytes, which are half
    /// full at least, and a block of its own.
    pub(crate) fn is_worth_merging(&self, now: u64, whole: u64) -> bool {
        let garbage = self.garbage(now);
        let live = self.len - garbage.min(self.len);
        garbage > live / 16 + 2 * live * 3 * BLOCK / whole + BLOCK
    }

    /// What a scan has to read of it.
    pub(crate) fn scan_len(&self) -> u64 {
        self.seal.map_or(self.len, |seal| seal + BLOCK)
    }

    pub(crate) fn can_merge(&self) -> bool {
        self.seal.is_some() && !self.hinting && !self.damaged && !self.dropped && !self.is_held()
    }

    pub(crate) fn is_pinned(&self) -> bool {
        !self.pins.is_empty()
    }

    /// Whether somebody has yet to read it who cannot bear that more entries move ahead of him. It
    /// would give back nothing before he lets go of it.
    pub(crate) fn is_held(&self) -> bool {
        let too_many = |moved: u64| moved > 0 && moved + self.live_records > MOVED_AHEAD;
        let mut pins = self.pins.iter();
        self.live_records > 0 && pins.any(|pin| pin.remembers && too_many(pin.moved.get()))
    }

    /// All that is alive in it is being moved.
    pub(crate) fn move_ahead(&self) {
        self.pins.iter().for_each(|pin| pin.moved.set(pin.moved.get() + self.live_records));
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Space {
    slots: Vec<Option<Extant>>,
    by_id: BTreeMap<u64, usize>,
    /// How many files may be open, and are.
    max_open: usize,
    open: usize,
    uses: u64,
    len: u64,
    live_bytes: u64,
    expiring_bytes: u64,
    /// Pins of those who remember, of all segments.
    remembering: usize,
}

impl Space {
    /// For segments of which so many files may be open at a time, about.
    pub(crate) fn new(max_open: usize) -> Self {
        Self { max_open, ..Self::default() }
    }

    /// Takes in a segment; gives it a slot.
    pub(crate) fn add(&mut self, segment: Rc<Segment>, len: u64, seal: Option<u64>) -> usize {
        let free = self.slots.iter().position(Option::is_none);
        let slot = free.unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        self.by_id.insert(segment.id, slot);
        self.len += len;
        let (live_bytes, live_records, freed_records) = (0, 0, 0);
        self.slots[slot] = Some(Extant {
            segment,
            len,
            end: BLOCK,
            live_bytes,
            live_records,
            freed_records,
            expiring_bytes: 0,
            last_expiry: 0,
            seal,
            pins: Vec::new(),
            hinting: false,
            damaged: false,
            dropped: false,
        });
        self.bound_open(self.max_open);
        slot
    }

    /// Whether there is a slot for one more than these and so many spares.
    pub(crate) fn has_slot(&self, spares: usize) -> bool {
        self.by_id.len() + spares < MAX_SLOTS
    }

    pub(crate) fn remove(&mut self, slot: usize) {
        if let Some(gone) = self.slots[slot].take() {
            self.by_id.remove(&gone.segment.id);
            self.len -= if gone.dropped { 0 } else { gone.len };
            self.live_bytes -= gone.live_bytes;
            self.expiring_bytes -= gone.expiring_bytes;
        }
    }

    pub(crate) fn get(&self, slot: usize) -> &Extant {
        self.slots[slot].as_ref().expect("a place's segment is there")
    }

    pub(crate) fn try_get(&self, slot: usize) -> Option<&Extant> {
        self.slots.get(slot)?.as_ref()
    }

    pub(crate) fn get_mut(&mut self, slot: usize) -> &mut Extant {
        self.slots[slot].as_mut().expect("a place's segment is there")
    }

    /// The slot of a segment, if it is there.
    pub(crate) fn slot_of(&self, id: u64) -> Option<usize> {
        self.by_id.get(&id).copied()
    }

    /// The log says that this segment exists no more.
    pub(crate) fn set_dropped(&mut self, id: u64) {
        if let Some(slot) = self.slot_of(id) {
            let extant = self.get_mut(slot);
            extant.dropped = true;
            self.len -= self.get(slot).len;
        }
    }

    /// It is not merged any more.
    pub(crate) fn set_damaged(&mut self, slot: usize) {
        if let Some(extant) = &mut self.slots[slot] {
            extant.damaged = true;
        }
    }

    /// Whether no older segment exists.
    pub(crate) fn is_oldest(&self, slot: usize) -> bool {
        self.iter().find(|(_, e)| !e.dropped).is_some_and(|(oldest, _)| oldest == slot)
    }

    /// What the segment `own` says in its live record: all older ones that exist.
    pub(crate) fn listed(&self, own: u64) -> Vec<u64> {
        let listed = |(_, e): &(usize, &Extant)| e.segment.id < own && !e.dropped;
        self.iter().filter(listed).map(|(_, e)| e.segment.id).collect()
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.by_id.len()
    }

    /// All, in order, with their slots.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (usize, &Extant)> {
        self.by_id.values().map(|&slot| (slot, self.get(slot)))
    }

    /// It was written to: how many bytes it holds now, and where its records end.
    pub(crate) fn set_len(&mut self, slot: usize, len: u64, end: u64) {
        let extant = self.get_mut(slot);
        extant.end = end;
        let before = std::mem::replace(&mut extant.len, len);
        self.len = self.len - before + len;
    }

    /// The keydir points to this record now.
    pub(crate) fn add_live(&mut self, place: Place) {
        let len = place.len() as u64;
        let extant = self.get_mut(place.slot());
        extant.live_bytes += len;
        extant.live_records += 1;
        let expiring = if place.class() == Class::Expiring { len } else { 0 };
        extant.expiring_bytes += expiring;
        self.expiring_bytes += expiring;
        self.live_bytes += len;
    }

    /// The keydir does not point to this record any more.
    pub(crate) fn sub_live(&mut self, place: Place) {
        let len = place.len() as u64;
        let extant = self.get_mut(place.slot());
        extant.live_bytes -= len;
        extant.live_records -= 1;
        extant.freed_records += 1;
        let expiring = if place.class() == Class::Expiring { len } else { 0 };
        extant.expiring_bytes -= expiring;
        self.expiring_bytes -= expiring;
        self.live_bytes -= len;
    }

    /// An entry that was written there expires then.
    pub(crate) fn note_expiry(&mut self, slot: usize, expiry: u64) {
        let extant = self.get_mut(slot);
        extant.last_expiry = extant.last_expiry.max(expiry);
    }

    /// Bytes of entries that have expired, as far as that is known and nobody holds them.
    pub(crate) fn expired(&self, now: u64) -> u64 {
        // Asked after each group: where nothing expires, no segment is looked at.
        if self.expiring_bytes == 0 {
            return 0;
        }
        let gone = |e: &&Extant| e.last_expiry <= now && !e.is_held();
        self.slots.iter().flatten().filter(gone).map(|e| e.expiring_bytes).sum()
    }

    /// Bytes that all segments hold, and how many of them are alive.
    pub(crate) fn totals(&self) -> (u64, u64) {
        (self.len, self.live_bytes)
    }

    /// How large the next segment is to grow, if `most` is what one may have, and so much of it is
    /// prepared.
    pub(crate) fn next_limit(&self, most: u64, prepared: u64) -> u64 {
        // In a small store they are small: a merge takes its share of it, and so do those who wait.
        // What is prepared is counted on.
        let share = (self.live_bytes / SHARES).max(SMALL).max(prepared);
        // Where there are very many, they are larger: the list of them is little in each.
        let least = LISTS * 8 * self.count() as u64;
        share.min(most).max(least)
    }

    /// Its file stays until he lets go of it.
    pub(crate) fn pin(&mut self, slot: usize, pin: &Rc<Pin>) {
        self.get_mut(slot).pins.push(Rc::clone(pin));
        self.remembering += usize::from(pin.remembers);
    }

    pub(crate) fn unpin(&mut self, slot: usize, pin: &Rc<Pin>) {
        self.get_mut(slot).pins.retain(|other| !Rc::ptr_eq(other, pin));
        self.remembering -= usize::from(pin.remembers);
    }

    /// Bytes of garbage that no merge takes, since somebody has yet to read it.
    fn held(&self) -> u64 {
        // Asked for each put: where nobody scans, no segment is looked at.
        if self.remembering == 0 {
            return 0;
        }
        let held = self.slots.iter().flatten().filter(|e| !e.dropped && e.is_held());
        held.map(|e| e.len.saturating_sub(e.live_bytes)).sum()
    }

    /// Bytes of garbage that merges can take, as far as what expires does not count, and of what is
    /// alive.
    pub(crate) fn garbage(&self) -> (u64, u64) {
        (self.len.saturating_sub(self.live_bytes).saturating_sub(self.held()), self.live_bytes)
    }

    /// The segment in a slot, to be read.
    pub(crate) fn for_reading(&mut self, slot: usize) -> Rc<Segment> {
        self.uses += 1;
        let uses = self.uses;
        let segment = Rc::clone(&self.get(slot).segment);
        segment.used.set(uses);
        if !segment.is_open() {
            self.open += 1;
            if self.open > self.max_open {
                self.bound_open(self.max_open / 4 * 3);
            }
        }
        segment
    }

    /// Closes the files that were used least, down to so many.
    pub(crate) fn bound_open(&mut self, keep: usize) {
        // The active segment stays open: it is written to.
        let open = |extant: &&Extant| extant.segment.is_open() && extant.seal.is_some();
        let mut segments: Vec<_> =
            self.slots.iter().flatten().filter(open).map(|e| &e.segment).collect();
        self.open = segments.len();
        if segments.len() > keep {
            segments.sort_by_key(|segment| segment.used.get());
            let surplus = segments.len() - keep;
            segments[..surplus].iter().for_each(|segment| segment.close_file());
            self.open = keep;
        }
    }

    /// The sealed segment with the largest share of garbage, of those that are worth while.
    pub(crate) fn victim(&self, now: u64, worth: impl Fn(&Extant) -> bool) -> Option<usize> {
        let worth =
            |(_, e): &(usize, &Extant)| e.can_merge() && e.garbage(now) * 10 >= e.len && worth(e);
        let share = |e: &Extant| e.garbage(now) * 1000 / e.len.max(1);
        // Of equals the oldest: it holds up tombstones.
        let by_share = |a: &(usize, &Extant), b: &(usize, &Extant)| {
            share(a.1).cmp(&share(b.1)).then(b.1.segment.id.cmp(&a.1.segment.id))
        };
        self.iter().filter(worth).max_by(by_share).map(|(slot, _)| slot)
    }
}
