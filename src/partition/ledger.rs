//! The books of a partition: the keydir, and what of each segment is alive by it.
//!
//! Invariants: `live` of a segment is what the keydir points to there; an entry's count is that of
//! the older puts of its key that still lie in some segment; so a tombstone whose count is zero has
//! nothing to stand over, and is not kept.

use super::digest::Digest;
use super::keydir::{Entry, Keydir, TABLES};
use super::space::Space;
use crate::log::place::Place;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    pub(super) keydir: Keydir,
    pub(super) space: Space,
    /// Keys that are there, those included that have expired unnoticed.
    pub(super) live_keys: u64,
}

/// What the keydir knows of a record in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    /// It points to it.
    Newest,
    /// It points to a later one of that key; or it is a tombstone that stands over nothing.
    Superseded,
    /// Neither.
    Not,
}

impl Ledger {
    /// What the keydir knows of the record in this place.
    pub(super) fn known(&self, digest: Digest, place: Place) -> Known {
        // As a recovery reads the log: by segment, and in it by offset.
        let at = |place: Place| {
            let extant = self.space.try_get(place.slot())?;
            Some((extant.segment.id, place.offset()))
        };
        match self.keydir.get(digest) {
            Some(entry) if entry.place == place.bits() => Known::Newest,
            Some(entry) if at(Place::of(entry.place)) > at(place) => Known::Superseded,
            None if place.is_tombstone() => Known::Superseded,
            _ => Known::Not,
        }
    }

    /// A key's newest record is here now.
    pub(super) fn index(&mut self, digest: Digest, place: Place) {
        let before = self.keydir.get(digest);
        let mut older = 0;
        if let Some(entry) = before {
            let old = Place::of(entry.place);
            self.space.sub_live(old);
            older = entry.older;
            if !old.is_tombstone() {
                older = older.saturating_add(1);
                self.live_keys -= 1;
            }
        }
        if place.is_tombstone() && older == 0 {
            if before.is_some() {
                self.keydir.remove(digest);
            }
            return;
        }
        self.space.add_live(place);
        self.keydir.insert(digest, Entry { place: place.bits(), older });
        self.live_keys += u64::from(!place.is_tombstone());
    }

    /// Many keys' newest records are here now, in this order. Table by table, since each fits a
    /// processor's cache and all of them do not; what is of one key stays in order.
    pub(super) fn index_all(&mut self, records: impl Iterator<Item = (Digest, Place)> + Clone) {
        let mut ends = vec![0; TABLES];
        let mut count = 0;
        for (digest, _) in records.clone() {
            ends[digest.table()] += 1;
            count += 1;
        }
        let mut sum = 0;
        for end in &mut ends {
            (*end, sum) = (sum, sum + *end);
        }
        let mut sorted = vec![None; count];
        for (digest, place) in records {
            let at = &mut ends[digest.table()];
            sorted[*at] = Some((digest, place));
            *at += 1;
        }
        for (digest, place) in sorted.into_iter().flatten() {
            self.index(digest, place);
        }
    }

    /// A record was copied from one place to another. Its old copy is still there; and the new one
    /// also is, where something newer has come meanwhile.
    pub(super) fn moved(&mut self, digest: Digest, from: Place, to: Place) {
        let Some(entry) = self.keydir.get(digest) else { return };
        let mut place = entry.place;
        let mut more = to;
        if place == from.bits() {
            self.space.sub_live(from);
            self.space.add_live(to);
            // What has expired is a tombstone now.
            self.live_keys -= u64::from(to.is_tombstone() && !from.is_tombstone());
            place = to.bits();
            more = from;
        }
        let older = entry.older.saturating_add(u8::from(!more.is_tombstone()));
        self.keydir.insert(digest, Entry { place, older });
    }

    /// One older put of this key is gone.
    pub(super) fn count_down(&mut self, digest: Digest) {
        let Some(entry) = self.keydir.get(digest) else { return };
        let place = Place::of(entry.place);
        // At its highest the count has stopped counting.
        let gone = u8::from(entry.older != u8::MAX);
        let older = entry.older.saturating_sub(gone);
        if older == 0 && place.is_tombstone() {
            self.forget(digest, place);
        } else if older != entry.older {
            self.keydir.insert(digest, Entry { older, ..entry });
        }
    }

    /// A tombstone has nothing to stand over any more, if it is still there.
    pub(super) fn forget(&mut self, digest: Digest, tombstone: Place) {
        if self.keydir.get(digest).is_some_and(|entry| entry.place == tombstone.bits()) {
            self.keydir.remove(digest);
            self.space.sub_live(tombstone);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::place::Class;
    use crate::log::segment::Segment;
    use std::path::Path;
    use std::rc::Rc;

    fn place(slot: usize, n: u64, class: Class) -> Place {
        Place::new(slot, 4096 + n * 64, class, 64)
    }

    /// With three segments, and one entry in the first.
    fn ledger(digest: Digest) -> (Ledger, Place) {
        let mut ledger = Ledger { space: Space::new(8), ..Ledger::default() };
        for id in 0..3 {
            let segment = Segment::for_tests(Path::new(""), id, 0);
            ledger.space.add(Rc::new(segment), 4096, None);
        }
        let original = place(0, 0, Class::Put);
        ledger.index(digest, original);
        (ledger, original)
    }

    #[test]
    fn a_copy_that_comes_after_a_delete_holds_the_tombstone_as_its_original_does() {
        let digest = Digest::new(&[1; 16], b"key");
        let (mut ledger, original) = ledger(digest);
        let tombstone = place(2, 0, Class::Tombstone);
        ledger.index(digest, tombstone);
        ledger.moved(digest, original, place(1, 0, Class::Put));
        assert_eq!(ledger.keydir.get(digest).map(|entry| entry.place), Some(tombstone.bits()));
        ledger.count_down(digest);
        assert!(ledger.keydir.get(digest).is_some(), "the copy is still there");
        ledger.count_down(digest);
        assert!(ledger.keydir.get(digest).is_none(), "neither is there any more");
        assert_eq!(ledger.space.totals().1, 0);
    }

    #[test]
    fn what_expired_becomes_a_tombstone_which_goes_with_the_put() {
        let digest = Digest::new(&[1; 16], b"key");
        let (mut ledger, expired) = ledger(digest);
        let tombstone = place(1, 0, Class::Tombstone);
        ledger.moved(digest, expired, tombstone);
        assert_eq!(ledger.keydir.get(digest).map(|entry| entry.place), Some(tombstone.bits()));
        assert_eq!(ledger.live_keys, 0);
        ledger.count_down(digest);
        assert!(ledger.keydir.get(digest).is_none(), "the put was the only one");
        assert_eq!(ledger.space.totals().1, 0);
    }

    /// It is no put that is there twice.
    #[test]
    fn a_tombstone_that_comes_after_a_newer_write_is_not_counted() {
        let digest = Digest::new(&[1; 16], b"key");
        let (mut ledger, expired) = ledger(digest);
        ledger.index(digest, place(2, 0, Class::Tombstone));
        ledger.moved(digest, expired, place(1, 0, Class::Tombstone));
        ledger.count_down(digest);
        assert!(ledger.keydir.get(digest).is_none(), "the put was the only one");
    }

    #[test]
    fn a_copy_takes_the_place_of_its_original_and_of_nothing_newer() {
        let digest = Digest::new(&[1; 16], b"key");
        let (mut ledger, original) = ledger(digest);
        let (copy, newer) = (place(1, 0, Class::Put), place(2, 0, Class::Put));
        ledger.moved(digest, original, copy);
        assert_eq!(ledger.keydir.get(digest).map(|entry| entry.place), Some(copy.bits()));
        assert_eq!(ledger.space.get(0).live_records, 0);
        ledger.index(digest, newer);
        ledger.moved(digest, copy, original);
        assert_eq!(ledger.keydir.get(digest).map(|entry| entry.place), Some(newer.bits()));
        assert_eq!(ledger.space.get(2).live_records, 1);
        assert_eq!(ledger.live_keys, 1);
    }
}
