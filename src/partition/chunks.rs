//! The chunks that the tables of a keydir are made of: 25 slots of 20 bytes in 512 bytes, all from
//! one pool.
//!
//! Tables that each had an array from the allocator would grow in step, by a little, and leave holes
//! behind that fit none of them. Chunks are all of one size, so what one table gives back fits any
//! other, and a table that grows copies nothing but its own entries. Invariants: the chunks in use
//! are the first `len` of the pool, without a gap, because the last one moves to where one is given
//! back; so the pool holds at most two slabs more than it needs. A chunk says whose it is.

use super::keydir::Entry;
use std::num::NonZeroU64;

/// Slots in a chunk.
pub(super) const SLOTS: usize = 25;

/// Chunks in a slab, which is what comes from the allocator: 64 KiB. More would be wasted on small
/// partitions, and fewer make the list of slabs outgrow the caches.
const SLAB: usize = 128;

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
    slabs: Vec<Box<[Chunk; SLAB]>>,
    /// Chunks in use.
    len: usize,
}

const _: () = assert!(size_of::<Slot>() == 20 && size_of::<Chunk>() <= 512);

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

impl Chunk {
    const EMPTY: Self = Self { slots: [Slot::EMPTY; SLOTS], owner: Owner { table: 0, index: 0 } };
}

impl Pool {
    pub(super) fn chunk(&self, id: u32) -> &Chunk {
        let id = id as usize;
        &self.slabs[id / SLAB][id % SLAB]
    }

    pub(super) fn chunk_mut(&mut self, id: u32) -> &mut Chunk {
        let id = id as usize;
        &mut self.slabs[id / SLAB][id % SLAB]
    }

    /// An empty chunk.
    pub(super) fn take(&mut self, owner: Owner) -> u32 {
        if self.len == self.slabs.len() * SLAB {
            let slab = vec![Chunk::EMPTY; SLAB].into_boxed_slice();
            self.slabs.push(slab.try_into().expect("as long as a slab"));
        }
        let id = u32::try_from(self.len).expect("2^32 chunks are 2 TiB");
        self.len += 1;
        *self.chunk_mut(id) = Chunk { owner, ..Chunk::EMPTY };
        id
    }

    /// Takes a chunk back, and says which other one has moved for it.
    pub(super) fn give_back(&mut self, id: u32) -> Option<Moved> {
        self.len -= 1;
        let last = u32::try_from(self.len).expect("2^32 chunks are 2 TiB");
        let mut moved = None;
        if id != last {
            let chunk = *self.chunk(last);
            *self.chunk_mut(id) = chunk;
            moved = Some(Moved { owner: chunk.owner, to: id });
        }
        // One slab is kept, lest a chunk that comes and goes cost an allocation each time.
        let spare = if self.len == 0 { 0 } else { 1 };
        self.slabs.truncate(self.len.div_ceil(SLAB) + spare);
        if self.slabs.len() < self.slabs.capacity() / 4 {
            self.slabs.shrink_to(self.slabs.len() * 2);
        }
        moved
    }

    /// Bytes it holds from the allocator.
    pub(super) fn memory(&self) -> usize {
        self.slabs.len() * size_of::<[Chunk; SLAB]>()
            + self.slabs.capacity() * size_of::<Box<[Chunk; SLAB]>>()
    }

    /// What is in all the chunks, in no order.
    pub(super) fn iter(&self) -> impl Iterator<Item = Entry> + '_ {
        let chunks = self.slabs.iter().flat_map(|slab| slab.iter()).take(self.len);
        chunks.flat_map(|chunk| chunk.slots.iter().filter_map(Slot::entry))
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.len
    }
}
