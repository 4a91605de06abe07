//! The value cache: values of keys that are read or written often, for whoever asks, in the thread
//! that asks.
//!
//! Any thread may look. Only the partition's owner fills it, changes it and takes out of it, and it
//! does so in the same step in which a change is promised, or else changes the keydir, before any
//! writer hears of it.
//! Invariants: what it gives was the key's value at some moment while it was asked, so never a value
//! older than an acknowledged write; it never holds more bytes than it may, its own included.
//!
//! Which values stay is decided by a clock (Corbato's: a hand goes round, and what was used since it
//! last came by stays), and a doorkeeper, as in `TinyLFU` by Einziger, Friedman and Manes: once the
//! cache is full, only a key that was read or written before comes in. So a pass over many keys that
//! are read or written once takes nothing away.

use super::digest::{Digest, DigestMap};
use bytes::Bytes;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The longest value that is kept: of longer ones the device gives as many bytes a second.
const LONGEST: usize = 32 << 10;
/// What an entry takes besides its key and value: its slot, its place in the index, and what the
/// allocator and the two counts add.
const OVERHEAD: usize = 256;
/// Parts with a lock each, if each has at least [`LEAST`] bytes: more than threads that commonly ask
/// one partition at the same moment.
const SHARDS: usize = 16;
/// A part keeps nothing that is larger than a quarter of it, and this is eight of the longest values.
const LEAST: usize = 256 << 10;
/// Uses that are remembered of an entry: so many rounds of the hand it stays without another.
const USES: u8 = 3;

/// See the module.
pub(crate) struct Cache {
    shards: Box<[Mutex<Shard>]>,
}

#[derive(Default)]
struct Shard {
    most: usize,
    bytes: usize,
    hits: u64,
    index: DigestMap<usize>,
    /// The clock's face, and its hand.
    slots: Vec<Option<Held>>,
    hand: usize,
    free: Vec<usize>,
    /// Marks of keys that came by, the later over the earlier.
    doorkeeper: Box<[u32]>,
}

struct Held {
    digest: Digest,
    key: Bytes,
    value: Bytes,
    uses: u8,
}

impl Held {
    fn weight(&self) -> usize {
        weight(&self.key, &self.value)
    }
}

fn weight(key: &[u8], value: &[u8]) -> usize {
    key.len() + value.len() + OVERHEAD
}

impl Cache {
    /// One of at most so many bytes. Of none, it never keeps anything.
    pub(crate) fn new(bytes: usize) -> Self {
        let shards = (bytes / LEAST).clamp(1, SHARDS);
        let shard = |_| Mutex::new(Shard::new(bytes / shards));
        Self { shards: (0..shards).map(shard).collect() }
    }

    fn shard(&self, digest: Digest) -> MutexGuard<'_, Shard> {
        // Not the bits that choose the partition, the table, or the place in the index.
        let number = (digest.high & 0xffff) as usize % self.shards.len();
        self.shards[number].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The value, if it is there.
    pub(crate) fn get(&self, digest: Digest, key: &[u8]) -> Option<Bytes> {
        self.shard(digest).get(digest, key)
    }

    /// Offers what was read and is still current. For the owner.
    pub(super) fn offer(&self, digest: Digest, key: &Bytes, value: &Bytes) {
        self.shard(digest).offer(digest, key, value);
    }

    /// The key has another value now: it takes the place of the one before, or is offered, since
    /// what was just written is often read next. For the owner.
    pub(super) fn put(&self, digest: Digest, key: &Bytes, value: &Bytes) {
        let mut shard = self.shard(digest);
        if shard.remove(digest) {
            shard.insert(digest, key, value);
        } else {
            shard.offer(digest, key, value);
        }
    }

    /// The key is gone, or its value is none that is kept. For the owner.
    pub(super) fn remove(&self, digest: Digest) {
        self.shard(digest).remove(digest);
    }

    /// Bytes that it holds, and how often a value was there.
    pub(crate) fn stats(&self) -> (u64, u64) {
        let lock = |shard: &Mutex<Shard>| {
            let shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            (shard.bytes as u64, shard.hits)
        };
        self.shards.iter().map(lock).fold((0, 0), |(b, h), (bytes, hits)| (b + bytes, h + hits))
    }
}

impl fmt::Debug for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache").field("shards", &self.shards.len()).finish_non_exhaustive()
    }
}

impl Shard {
    fn new(bytes: usize) -> Self {
        // A mark for each entry of 512 bytes or so.
        let doorkeeper = vec![0; bytes / 512].into_boxed_slice();
        let most = bytes - size_of_val(&*doorkeeper);
        Self { most, doorkeeper, ..Self::default() }
    }

    fn get(&mut self, digest: Digest, key: &[u8]) -> Option<Bytes> {
        let slot = *self.index.get(&digest)?;
        let held = self.slots[slot].as_mut().filter(|held| held.key == key)?;
        held.uses = USES.min(held.uses + 1);
        self.hits += 1;
        Some(held.value.clone())
    }

    fn offer(&mut self, digest: Digest, key: &Bytes, value: &Bytes) {
        // Two readers of one key come with the same value. What is there is never older.
        let full = self.bytes + weight(key, value) > self.most;
        if !self.index.contains_key(&digest) && (!full || self.came_by(digest)) {
            self.insert(digest, key, value);
        }
    }

    /// Whether the key came by not long ago. It does now.
    fn came_by(&mut self, digest: Digest) -> bool {
        let marks = self.doorkeeper.len() as u64;
        let Some(number) = (digest.high >> 16).checked_rem(marks) else { return false };
        let number = usize::try_from(number).expect("below their number");
        let mark = u32::try_from(digest.low & 0xffff_ffff).expect("32 bits are left");
        std::mem::replace(&mut self.doorkeeper[number], mark) == mark
    }

    fn insert(&mut self, digest: Digest, key: &Bytes, value: &Bytes) {
        let weight = weight(key, value);
        if value.len() > LONGEST || weight > self.most / 4 {
            return;
        }
        while self.bytes + weight > self.most {
            self.evict_one();
        }
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        let (key, value) = (key.clone(), value.clone());
        self.slots[slot] = Some(Held { digest, key, value, uses: 0 });
        self.index.insert(digest, slot);
        self.bytes += weight;
    }

    /// Moves the hand on to the next entry that was not used. There is an entry.
    fn evict_one(&mut self) {
        loop {
            let slot = self.hand;
            self.hand = (slot + 1) % self.slots.len();
            match &mut self.slots[slot] {
                Some(held) if held.uses > 0 => held.uses -= 1,
                Some(held) => {
                    let digest = held.digest;
                    self.remove(digest);
                    return;
                }
                None => {}
            }
        }
    }

    /// Whether it was there.
    fn remove(&mut self, digest: Digest) -> bool {
        let Some(slot) = self.index.remove(&digest) else { return false };
        let held = self.slots[slot].take();
        self.bytes -= held.map_or(0, |held| held.weight());
        self.free.push(slot);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(n: u64) -> Digest {
        Digest::new(&[3; 16], &n.to_le_bytes())
    }

    fn key(n: u64) -> Bytes {
        Bytes::copy_from_slice(&n.to_le_bytes())
    }

    fn offer(cache: &Cache, n: u64, value: &'static [u8]) {
        cache.offer(digest(n), &key(n), &Bytes::from_static(value));
    }

    fn get(cache: &Cache, n: u64) -> Option<Bytes> {
        cache.get(digest(n), &key(n))
    }

    #[test]
    fn it_gives_what_it_was_offered_until_that_changes_or_goes() {
        let cache = Cache::new(1 << 20);
        assert_eq!(get(&cache, 1), None);
        offer(&cache, 1, b"one");
        assert_eq!(get(&cache, 1).as_deref(), Some(&b"one"[..]));
        cache.put(digest(1), &key(1), &Bytes::from_static(b"two"));
        assert_eq!(get(&cache, 1).as_deref(), Some(&b"two"[..]));
        offer(&cache, 1, b"three");
        assert_eq!(get(&cache, 1).as_deref(), Some(&b"two"[..]), "it has the newest");
        cache.remove(digest(1));
        assert_eq!(get(&cache, 1), None);
        cache.put(digest(1), &key(1), &Bytes::from_static(b"four"));
        assert_eq!(get(&cache, 1).as_deref(), Some(&b"four"[..]), "it was just written");
        cache.remove(digest(1));
        assert_eq!(cache.stats(), (0, 4));
    }

    #[test]
    fn a_key_with_the_same_digest_is_another_key() {
        let cache = Cache::new(1 << 20);
        offer(&cache, 1, b"one");
        assert_eq!(cache.get(digest(1), b"other"), None);
    }

    #[test]
    fn it_never_holds_more_than_it_may() {
        for bytes in [0, 100, 4096, 300_000, 1 << 20] {
            let cache = Cache::new(bytes);
            let value = Bytes::from(vec![7; 1000]);
            for n in 0..5000 {
                for _ in 0..2 {
                    cache.offer(digest(n), &key(n), &value);
                }
                cache.put(digest(n / 2), &key(n / 2), &Bytes::from(vec![1; 1900]));
                let marks: usize = cache.shards.iter().map(|s| s.lock().unwrap().most).sum();
                assert!(cache.stats().0 <= marks as u64 && marks <= bytes);
            }
            let held = |shard: &Mutex<Shard>| {
                let shard = shard.lock().unwrap();
                let held = shard.slots.iter().flatten();
                assert_eq!(shard.bytes, held.clone().map(Held::weight).sum::<usize>());
                assert_eq!(shard.index.len(), held.count());
                assert_eq!(shard.slots.len(), shard.index.len() + shard.free.len());
            };
            cache.shards.iter().for_each(held);
        }
    }

    #[test]
    fn values_that_are_too_long_are_not_kept() {
        let cache = Cache::new(1 << 20);
        cache.offer(digest(1), &key(1), &Bytes::from(vec![1; LONGEST + 1]));
        assert_eq!(get(&cache, 1), None);
        offer(&cache, 2, b"short");
        cache.put(digest(2), &key(2), &Bytes::from(vec![1; LONGEST + 1]));
        assert_eq!(get(&cache, 2), None, "and take the one before with them");
    }

    #[test]
    fn keys_that_come_by_once_take_nothing_from_those_that_are_read_often() {
        let cache = Cache::new(1 << 20);
        let value = Bytes::from(vec![7; 1000]);
        for n in 0..400 {
            cache.offer(digest(n), &key(n), &value);
        }
        for n in 1000..2000 {
            cache.offer(digest(n), &key(n), &value); // until it is full
        }
        let kept = |n: &u64| get(&cache, *n).is_some();
        let hot: Vec<_> = (0..400).filter(kept).collect();
        assert!(hot.len() > 300, "{}", hot.len());
        for n in 10_000..100_000 {
            cache.offer(digest(n), &key(n), &value);
            cache.put(digest(n + 1_000_000), &key(n + 1_000_000), &value);
        }
        let left = hot.iter().filter(|n| kept(n)).count();
        assert!(left * 10 > hot.len() * 9, "{left} of {}", hot.len());
    }

    #[test]
    fn keys_that_become_hot_come_in() {
        let cache = Cache::new(1 << 20);
        let value = Bytes::from(vec![7; 1000]);
        let mut asked = 0;
        for round in 0..20 {
            for n in 0..500 {
                let n = n + round / 10 * 10_000;
                asked += 1;
                if get(&cache, n).is_none() {
                    cache.offer(digest(n), &key(n), &value);
                }
            }
        }
        assert!(cache.stats().1 * 10 > asked * 7, "{} of {asked}", cache.stats().1);
    }
}
