//! The keydir: where each key's newest record is. (The word and the idea are Bitcask's.)
//!
//! A key is known by a 128-bit keyed digest, so an overwrite or a delete needs no read, and memory
//! does not grow with the length of keys. The secret is the store's own: nobody can make two keys
//! collide on purpose, and by chance two of 10^9 keys do with a probability of 10^-21. Invariant: a
//! `get` still compares the key it read.

use crate::log::Location;
use siphasher::sip128::{Hasher128, SipHasher13};
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// A key's digest. The high half chooses the partition, the low half the place in the table, so
/// that the keys of one partition do not crowd one part of its table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Digest {
    pub(crate) high: u64,
    low: u64,
}

impl Digest {
    pub(crate) fn new(secret: &[u8; 16], key: &[u8]) -> Self {
        let mut hasher = SipHasher13::new_with_key(secret);
        hasher.write(key);
        let hash = hasher.finish128();
        Self { high: hash.h1, low: hash.h2 }
    }

    /// Which of so many partitions the key belongs to.
    pub(crate) fn partition(self, partitions: usize) -> usize {
        let scaled = (u128::from(self.high) * partitions as u128) >> 64;
        usize::try_from(scaled).expect("below the number of partitions")
    }
}

impl std::hash::Hash for Digest {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.low);
    }
}

/// A digest is as random as any hash of it.
#[derive(Default)]
pub(crate) struct Identity(u64);

impl Hasher for Identity {
    fn write(&mut self, _: &[u8]) {
        unreachable!("only digests are hashed")
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = value;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// A map from digests.
pub(crate) type DigestMap<T> = HashMap<Digest, T, BuildHasherDefault<Identity>>;

/// See the module.
pub(crate) type Keydir = DigestMap<Location>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_spread_over_any_number_of_partitions() {
        for partitions in [1, 2, 3, 7, 8] {
            let mut counts = vec![0; partitions];
            for n in 0u32..10_000 {
                counts[Digest::new(&[7; 16], &n.to_le_bytes()).partition(partitions)] += 1;
            }
            let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
            assert!(*most < least * 5 / 4, "{counts:?}");
        }
    }

    #[test]
    fn another_secret_gives_other_digests() {
        assert_ne!(Digest::new(&[1; 16], b"key"), Digest::new(&[2; 16], b"key"));
    }
}
