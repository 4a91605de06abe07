//! One of the many tables of a keydir: open addressing over a list of chunks, in the order of tags.
//!
//! A tag's home is its share of the capacity, so homes are in the order of tags too, and entries
//! lie in that order from their home on: each at its home, or right behind the entry before it.
//! That is the invariant, with nothing but the overflow behind the last home. It makes a search for
//! what is not there end at the first tag that is not less; it makes growing and shrinking one pass
//! in order, to any capacity, so that the load stays high; and there is no wrapping around.

use super::chunks::{Chunk, Owner, Pool, SLOTS, Slot, Tag};
use super::keydir::Entry;

/// Slots behind the last home, for entries that are pushed past it. If they run out, the table
/// takes one more chunk for them; more room here would cost every table, and that only a few.
const OVERFLOW: usize = 4;

/// A table grows when more than 7 of 8 homes are taken, by an eighth: that is 20 bytes an entry
/// over loads between 7/8 and 7/9. A lookup sees 5 slots on average then, and an insert moves about
/// 30.
const GROWTH: usize = 8;

/// How many slots a search looks at at once: one more than it sees on average.
const WINDOW: usize = 6;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Table {
    chunks: Vec<u32>,
    homes: u32,
    len: u32,
}

/// Where a tag is, or would have to be: a chunk of the list, and a slot in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Spot {
    chunk: usize,
    slot: usize,
}

fn home(tag: Tag, homes: u32) -> usize {
    usize::try_from((u64::from(tag.start()) * u64::from(homes)) >> 32).expect("below the homes")
}

/// How many homes so many chunks have.
fn homes(chunks: usize) -> u32 {
    u32::try_from((chunks * SLOTS).saturating_sub(OVERFLOW)).expect("2^32 chunks are 2 TiB")
}

impl Table {
    /// Where a tag is, with what it has, or where it would have to be.
    #[inline]
    pub(super) fn find(&self, pool: &Pool, tag: Tag) -> (Spot, Option<Entry>) {
        let (home, start) = (home(tag, self.homes), tag.start());
        let (mut chunk, mut slot) = (home / SLOTS, home % SLOTS);
        while let Some(&id) = self.chunks.get(chunk) {
            let slots = &pool.chunk(id).slots;
            while slot < SLOTS {
                // Counted, not searched: where the search ends cannot be predicted, and this way
                // the cache lines are asked for all at once.
                let window = &slots[slot..SLOTS.min(slot + WINDOW)];
                let below = |there: &Slot| usize::from(there.starts_below(start));
                let mut before: usize = window.iter().map(below).sum();
                while window.get(before).is_some_and(|there| there.tag() < tag) {
                    before += 1;
                }
                slot += before;
                if let Some(there) = window.get(before) {
                    let entry = if there.tag() == tag { there.entry() } else { None };
                    return (Spot { chunk, slot }, entry);
                }
            }
            (chunk, slot) = (chunk + 1, 0);
        }
        (Spot { chunk, slot: 0 }, None)
    }

    /// Whether it has to grow before one more entry comes.
    pub(super) fn is_full(&self) -> bool {
        self.len as usize >= self.homes as usize * (GROWTH - 1) / GROWTH
    }

    /// Changes what is at a spot.
    pub(super) fn replace(&mut self, pool: &mut Pool, spot: Spot, slot: Slot) {
        pool.chunk_mut(self.chunks[spot.chunk]).slots[spot.slot] = slot;
    }

    /// Puts a slot where [`find`](Self::find) said that its tag would have to be. What is there, up
    /// to the next empty slot, makes room.
    pub(super) fn insert(&mut self, pool: &mut Pool, table: u32, spot: Spot, slot: Slot) {
        let (mut carried, mut from) = (slot, spot.slot);
        self.len += 1;
        for index in spot.chunk.. {
            if index == self.chunks.len() {
                self.push(pool, table);
            }
            let slots = &mut pool.chunk_mut(self.chunks[index]).slots;
            if let Some(empty) = slots[from..].iter().position(Slot::is_empty) {
                slots.copy_within(from..from + empty, from + 1);
                slots[from] = carried;
                return;
            }
            let last = slots[SLOTS - 1];
            slots.copy_within(from..SLOTS - 1, from + 1);
            slots[from] = carried;
            (carried, from) = (last, 0);
        }
    }

    /// Takes out what is at a spot. The entries behind it that are not at their homes come closer.
    pub(super) fn remove(&mut self, pool: &mut Pool, spot: Spot) {
        let homes = self.homes;
        let Spot { mut chunk, slot: mut hole } = spot;
        self.len -= 1;
        loop {
            // A slot that stays: empty, or at its home.
            let stays = |chunk: &Chunk, index: usize, slot: usize| {
                let there = &chunk.slots[slot];
                there.is_empty() || home(there.tag(), homes) == index * SLOTS + slot
            };
            let next = self.chunks.get(chunk + 1).map(|&id| pool.chunk(id));
            let first = next.filter(|next| !stays(next, chunk + 1, 0)).map(|next| next.slots[0]);
            let this = pool.chunk_mut(self.chunks[chunk]);
            let end = (hole + 1..SLOTS).find(|&slot| stays(this, chunk, slot)).unwrap_or(SLOTS);
            this.slots.copy_within(hole + 1..end, hole);
            this.slots[end - 1] =
                if end < SLOTS { Slot::EMPTY } else { first.unwrap_or(Slot::EMPTY) };
            if end < SLOTS || first.is_none() {
                return;
            }
            (chunk, hole) = (chunk + 1, 0);
        }
    }

    fn push(&mut self, pool: &mut Pool, table: u32) {
        let index = u32::try_from(self.chunks.len()).expect("2^32 chunks are 2 TiB");
        if self.chunks.len() == self.chunks.capacity() {
            self.chunks.reserve_exact(1 + self.chunks.len() / GROWTH);
        }
        self.chunks.push(pool.take(Owner { table, index }));
    }

    /// Grows by one part in [`GROWTH`].
    pub(super) fn grow(&mut self, pool: &mut Pool, table: u32, scratch: &mut Vec<Slot>) {
        let chunks = (self.homes as usize).div_ceil(SLOTS);
        self.rebuild(pool, table, scratch, chunks + 1.max(chunks / GROWTH));
    }

    /// Shrinks if more than half of the homes are not taken. Chunks become
    /// [`surplus`](Self::surplus).
    pub(super) fn shrink(&mut self, pool: &mut Pool, table: u32, scratch: &mut Vec<Slot>) {
        if self.len == 0 {
            self.homes = 0;
        } else if self.len < self.homes / 2 {
            let chunks = (self.len as usize * 5).div_ceil(SLOTS * 4);
            if homes(chunks) < self.homes {
                self.rebuild(pool, table, scratch, chunks);
            }
        }
    }

    /// Spreads all entries over the homes of so many chunks. Takes the chunks that are missing.
    fn rebuild(&mut self, pool: &mut Pool, table: u32, scratch: &mut Vec<Slot>, chunks: usize) {
        scratch.clear();
        for &id in &self.chunks {
            let slots = &mut pool.chunk_mut(id).slots;
            scratch.extend(slots.iter().filter(|slot| !slot.is_empty()));
            *slots = [Slot::EMPTY; SLOTS];
        }
        while self.chunks.len() < chunks {
            self.push(pool, table);
        }
        self.homes = homes(chunks);
        let mut next = 0;
        for slot in scratch.iter() {
            let at = home(slot.tag(), self.homes).max(next);
            if at / SLOTS == self.chunks.len() {
                self.push(pool, table);
            }
            pool.chunk_mut(self.chunks[at / SLOTS]).slots[at % SLOTS] = *slot;
            next = at + 1;
        }
    }

    /// Its last chunk, if that is empty and behind those that its homes are in.
    pub(super) fn surplus(&mut self, pool: &Pool) -> Option<u32> {
        let last = *self.chunks.last()?;
        let needed = (self.homes as usize).div_ceil(SLOTS);
        if self.chunks.len() <= needed || !pool.chunk(last).slots[0].is_empty() {
            return None;
        }
        self.chunks.pop();
        if self.chunks.len() <= self.chunks.capacity() / 2 {
            self.chunks.shrink_to_fit();
        }
        Some(last)
    }

    /// One of its chunks is elsewhere now.
    pub(super) fn moved(&mut self, index: u32, to: u32) {
        self.chunks[index as usize] = to;
    }

    /// Bytes it holds from the allocator, without its chunks.
    pub(super) fn memory(&self) -> usize {
        self.chunks.capacity() * size_of::<u32>()
    }
}

#[cfg(test)]
impl Table {
    pub(super) fn len(&self) -> usize {
        self.len as usize
    }

    /// Asserts the module's invariant; returns how many chunks it has.
    pub(super) fn check(&self, pool: &Pool, table: u32) -> usize {
        let (mut next, mut last, mut len) = (0, None, 0);
        for (index, &id) in self.chunks.iter().enumerate() {
            let chunk = pool.chunk(id);
            assert_eq!(chunk.owner, Owner { table, index: u32::try_from(index).unwrap() });
            for (slot, there) in chunk.slots.iter().enumerate().filter(|(_, s)| !s.is_empty()) {
                let at = index * SLOTS + slot;
                assert!(last < Some(there.tag()), "out of order at {at}");
                assert_eq!(at, home(there.tag(), self.homes).max(next), "a gap before {at}");
                (next, last, len) = (at + 1, Some(there.tag()), len + 1);
            }
        }
        assert_eq!(len, self.len());
        assert!(self.homes as usize <= self.chunks.len() * SLOTS);
        assert!(len <= self.homes as usize, "{len} of {}", self.homes);
        self.chunks.len()
    }
}
