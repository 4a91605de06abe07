//! [`Place`]: where a record lies, in 64 bits, as the keydir holds it.
//!
//! | bits | |
//! |---|---|
//! | 19 | the segment's slot: a small number that is used again when the segment is gone |
//! | 26 | offset / 8 |
//! | 2 | what kind of record it is |
//! | 17 | length: / 8, and exact, below 512 KiB; / 4096, and rounded up, with the highest bit set |
//!
//! Invariant: it is never zero, since no record lies in a segment's first block. A length that was
//! rounded up is still within the segment's file, since a seal's block follows.

use super::record::{Kind, Record};
use std::num::NonZeroU64;

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place(NonZeroU64);

/// What a key's newest record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    Put = 0,
    /// A put with an expiry.
    Expiring = 1,
    Tombstone = 2,
}

impl Class {
    /// That of a record. None for what is no key's: marks, lists, seals.
    pub(crate) fn of(record: &Record) -> Option<Self> {
        match (record.kind, record.expiry) {
            (Kind::Put, None) => Some(Self::Put),
            (Kind::Put, Some(_)) => Some(Self::Expiring),
            (Kind::Delete, _) => Some(Self::Tombstone),
            _ => None,
        }
    }
}

/// The most segments of a partition at a time: what the 19 bits of a slot can tell apart.
pub(crate) const MAX_SLOTS: usize = 1 << 19;
/// Records begin below this offset: what 26 bits reach, in units of 8 bytes. Segments have half.
pub(crate) const MAX_OFFSET: u64 = 1 << 29;

// Where each field begins: behind the one before it, as the module says.
const OFFSET_AT: u32 = 19;
const CLASS_AT: u32 = 45;
const LEN_AT: u32 = 47;
/// The highest bit of a length: it is in units of 4096.
const LARGE: u64 = 1 << 16;

impl Place {
    pub(crate) fn new(slot: usize, offset: u64, class: Class, len: usize) -> Self {
        debug_assert!(slot < MAX_SLOTS && (8..MAX_OFFSET).contains(&offset));
        let len = len as u64;
        let len = if len < LARGE * 8 { len.div_ceil(8) } else { LARGE | len.div_ceil(4096) };
        let bits = slot as u64 | (offset / 8) << OFFSET_AT | (class as u64) << CLASS_AT;
        Self(NonZeroU64::new(bits | len << LEN_AT).expect("no record lies at offset 0"))
    }

    pub(crate) fn bits(self) -> NonZeroU64 {
        self.0
    }

    pub(crate) fn of(bits: NonZeroU64) -> Self {
        Self(bits)
    }

    fn field(self, at: u32, width: u32) -> u64 {
        self.0.get() >> at & ((1 << width) - 1)
    }

    pub(crate) fn slot(self) -> usize {
        usize::try_from(self.field(0, 19)).expect("19 bits")
    }

    /// Of the record's first byte in its segment.
    pub(crate) fn offset(self) -> u64 {
        self.field(OFFSET_AT, 26) * 8
    }

    pub(crate) fn class(self) -> Class {
        match self.field(CLASS_AT, 2) {
            0 => Class::Put,
            1 => Class::Expiring,
            _ => Class::Tombstone,
        }
    }

    pub(crate) fn is_tombstone(self) -> bool {
        self.class() == Class::Tombstone
    }

    /// Of the record, in bytes; beyond 512 KiB rounded up to a multiple of 4096.
    pub(crate) fn len(self) -> usize {
        let len = self.field(LEN_AT, 17);
        let len = if len & LARGE == 0 { len * 8 } else { (len ^ LARGE) * 4096 };
        usize::try_from(len).expect("17 bits, times 4096")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_place_keeps_what_it_is_made_of(
            slot in 0..MAX_SLOTS, offset in 512..MAX_OFFSET / 8, len in 3usize..(65 << 20) / 8,
            class in 0..3usize,
        ) {
            let class = [Class::Put, Class::Expiring, Class::Tombstone][class];
            let (offset, len) = (offset * 8, len * 8);
            let place = Place::of(Place::new(slot, offset, class, len).bits());
            prop_assert_eq!((place.slot(), place.offset(), place.class()), (slot, offset, class));
            prop_assert!(place.len() >= len && place.len() < len + 4096);
            prop_assert!(len >= 512 << 10 || place.len() == len);
        }
    }
}
