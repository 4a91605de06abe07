//! The chunks that the tables of a keydir are made of: 25 slots of 20 bytes in 512 bytes, all from
//! one pool.
//!
//! Tables that each had an array from the allocator would grow in step, by a little, and leave
//! holes behind that fit none of them. Chunks are all of one size, so what one table gives back
//! fits any other, and a table that grows copies nothing but its own entries. Invariants: the
//! chunks in use are the first of the pool, without a gap, because the last one moves to where one
//! is given back; a chunk says whose it is. So the pool holds one slab at most that is not full.

use super::keydir::Entry;
use std::num::NonZeroU64;

/// Slots in a chunk: as many of 20 bytes as 512 bytes hold, with 12 left to say whose it is.
pub(super) const SLOTS: usize = 25;

/// Chunks in a slab, which is what comes from the allocator: 32 MiB. From that size on glibc maps
/// an allocation of its own, always: it is resident as far as it has been written to, and given
/// back when it is freed. (Smaller ones stay behind whatever else is on the heap.)
const SLAB: usize = 1 << 16;

/// How many chunks may stay in a slab's memory when they are not in use: 1 MiB, so that a few keys
/// that come and go do not ask the system each time.
const SMALL: usize = 1 << 11;

/// What a slot keeps of a digest: 88 bits. Slots are in its order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Tag {
    pub(super) major: u64,
    /// 24 bits.
    pub(super) minor: u32,
}

/// 11 bytes of tag, 1 of `older`, 8 of place. Of 32-bit words, so that there is no padding.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slot {
    major_high: u32,
    major_low: u32,
    /// The tag's minor part above `older`.
    minor: u32,
    place_high: u32,
    /// With `place_high`: 0 in an empty slot.
    place_low: u32,
}

/// A slot's neighbours in memory, and who has them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Chunk {
    pub(super) slots: [Slot; SLOTS],
    pub(super) owner: Owner,
    _spare: u32,
}

/// Which table has a chunk, and where in its list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Owner {
    pub(super) table: u32,
    pub(super) index: u32,
}

/// A chunk that has moved to where its owner does not know it yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Moved {
    pub(super) owner: Owner,
    pub(super) to: u32,
}

/// See the module.
#[derive(Default)]
pub(super) struct Pool {
    /// Each has room for [`SLAB`] chunks, and all but the last are full.
    slabs: Vec<Vec<Chunk>>,
    /// How many chunks of the last slab have been written to.
    touched: usize,
    /// How often a chunk was asked for to be changed.
    #[cfg(test)]
    pub(super) changes: usize,
}

const _: () = assert!(size_of::<Slot>() == 20 && size_of::<Chunk>() == 512);

impl Tag {
    /// Its first 32 bits.
    pub(super) fn start(self) -> u32 {
        high(self.major)
    }
}

fn low(word: u64) -> u32 {
    u32::try_from(word & u64::from(u32::MAX)).expect("32 bits are left")
}

fn high(word: u64) -> u32 {
    low(word >> 32)
}

impl Slot {
    /// Empty. Its tag is not below any other's, so that a search ends here without asking.
    pub(super) const EMPTY: Self = Self {
        major_high: u32::MAX,
        major_low: u32::MAX,
        minor: u32::MAX,
        place_high: 0,
        place_low: 0,
    };

    pub(super) fn new(tag: Tag, entry: Entry) -> Self {
        let place = entry.place.get();
        Self {
            major_high: high(tag.major),
            major_low: low(tag.major),
            minor: tag.minor << 8 | u32::from(entry.older),
            place_high: high(place),
            place_low: low(place),
        }
    }

    /// Whether the first 32 bits of its tag are less than that. Of two tags they differ nearly
    /// always.
    pub(super) fn starts_below(&self, start: u32) -> bool {
        self.major_high < start
    }

    pub(super) fn tag(&self) -> Tag {
        let major = u64::from(self.major_high) << 32 | u64::from(self.major_low);
        Tag { major, minor: self.minor >> 8 }
    }

    /// What is in it, if it is not empty.
    pub(super) fn entry(&self) -> Option<Entry> {
        let place = u64::from(self.place_high) << 32 | u64::from(self.place_low);
        let older = u8::try_from(self.minor & 0xff).expect("8 bits are left");
        NonZeroU64::new(place).map(|place| Entry { place, older })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.place_high | self.place_low == 0
    }
}

impl Pool {
    pub(super) fn chunk(&self, id: u32) -> &Chunk {
        let id = id as usize;
        &self.slabs[id / SLAB][id % SLAB]
    }

    pub(super) fn chunk_mut(&mut self, id: u32) -> &mut Chunk {
        #[cfg(test)]
        {
            self.changes += 1;
        }
        let id = id as usize;
        &mut self.slabs[id / SLAB][id % SLAB]
    }

    /// How many chunks are in use, and so the next one's number.
    pub(super) fn len(&self) -> u32 {
        let full = self.slabs.len().saturating_sub(1) * SLAB;
        let len = full + self.slabs.last().map_or(0, Vec::len);
        u32::try_from(len).expect("2^32 chunks are 2 TiB")
    }

    /// An empty chunk.
    pub(super) fn take(&mut self, owner: Owner) -> u32 {
        let id = self.len();
        if self.slabs.last().is_none_or(|slab| slab.len() == SLAB) {
            self.slabs.push(Vec::with_capacity(SLAB));
            self.touched = 0;
        }
        let slab = self.slabs.last_mut().expect("there is one now");
        slab.push(Chunk { slots: [Slot::EMPTY; SLOTS], owner, _spare: 0 });
        self.touched = self.touched.max(slab.len());
        id
    }

    /// Takes a chunk back, and says which other one has moved for it.
    pub(super) fn give_back(&mut self, id: u32) -> Option<Moved> {
        let slab = self.slabs.last_mut().expect("it is in a slab");
        let last = slab.pop().expect("a slab without a chunk is not kept");
        let len = slab.len();
        if len == 0 {
            self.slabs.pop();
            self.touched = self.slabs.len().min(1) * SLAB;
        } else if self.touched > SMALL && len < self.touched / 2 {
            // Gives back what is behind. With glibc no byte moves: the mapping is cut, and
            // extended.
            slab.shrink_to_fit();
            slab.reserve_exact(SLAB - len);
            self.touched = len;
        }
        if id == self.len() {
            return None;
        }
        *self.chunk_mut(id) = last;
        Some(Moved { owner: last.owner, to: id })
    }

    /// Bytes it holds: those it has written to. There may be more that are not resident.
    pub(super) fn memory(&self) -> usize {
        let full = self.slabs.len().saturating_sub(1) * SLAB;
        (full + self.touched) * size_of::<Chunk>() + self.slabs.capacity() * size_of::<Vec<Chunk>>()
    }

    /// What is in all the chunks, in no order.
    #[cfg(test)]
    pub(super) fn iter(&self) -> impl Iterator<Item = Entry> + '_ {
        let chunks = self.slabs.iter().flatten();
        chunks.flat_map(|chunk| chunk.slots.iter().filter_map(Slot::entry))
    }
}
