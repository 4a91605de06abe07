//! What a key is known by: a 128-bit keyed digest.
//!
//! So an overwrite or a delete needs no read, and memory does not grow with the length of keys. The
//! secret is the store's own: nobody can make two keys collide on purpose. Invariants: the bits
//! that choose the partition, those that choose the table within it, and the 88 that a slot keeps
//! are all different ones, so a partition's keys spread evenly; within a partition 100 bits tell
//! two keys apart. Two of 10^9 are taken for one with a probability below 10^-12, and a `get` still
//! compares the key it read.

use super::chunks::Tag;
use siphasher::sip128::{Hasher128, SipHasher13};
use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};

/// How many bits choose the table: for 4096 of them, as the keydir wants. More would cost small
/// stores, fewer would make tables that take long to grow.
pub(super) const TABLE_BITS: u32 = 12;

/// A key's digest. The high half chooses the partition by its top bits, the low half the table and
/// the place in it, so that the keys of one partition do not crowd one part of its keydir.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub(crate) struct Digest {
    pub(super) high: u64,
    pub(super) low: u64,
}

impl Digest {
    pub(crate) fn new(secret: &[u8; 16], key: &[u8]) -> Self {
        let mut hasher = SipHasher13::new_with_key(secret);
        hasher.write(key);
        let hash = hasher.finish128();
        Self { high: hash.h1, low: hash.h2 }
    }

    /// As in files: both halves, little-endian.
    pub(crate) fn to_bytes(self) -> [u8; 16] {
        (u128::from(self.low) << 64 | u128::from(self.high)).to_le_bytes()
    }

    pub(crate) fn from_bytes(bytes: [u8; 16]) -> Self {
        let both = u128::from_le_bytes(bytes);
        let half = |both| u64::try_from(both & u128::from(u64::MAX)).expect("64 bits are left");
        Self { high: half(both), low: half(both >> 64) }
    }

    /// Which of so many partitions the key belongs to.
    pub(crate) fn partition(self, partitions: usize) -> usize {
        let scaled = (u128::from(self.high) * partitions as u128) >> 64;
        usize::try_from(scaled).expect("below the number of partitions")
    }

    /// Which of the tables of a keydir it belongs in.
    pub(super) fn table(self) -> usize {
        usize::try_from(self.low >> (64 - TABLE_BITS)).expect("12 bits are left")
    }

    /// What its slot keeps: the 52 bits of the low half that do not choose the table, before the
    /// last 36 of the high.
    pub(super) fn tag(self) -> Tag {
        let major = self.low << TABLE_BITS | self.high & 0xfff;
        let minor = u32::try_from(self.high >> 12 & 0xff_ffff).expect("24 bits are left");
        Tag { major, minor }
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

/// A set of digests.
pub(crate) type DigestSet = HashSet<Digest, BuildHasherDefault<Identity>>;

/// A map from digests.
pub(crate) type DigestMap<T> = HashMap<Digest, T, BuildHasherDefault<Identity>>;

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

    #[test]
    fn a_digest_in_a_file_is_the_same_digest() {
        let digest = Digest::new(&[7; 16], b"key");
        assert_eq!(Digest::from_bytes(digest.to_bytes()), digest);
        let bytes = Digest { high: 0x0102_0304_0506_0708, low: 9 }.to_bytes();
        assert_eq!(bytes, [8, 7, 6, 5, 4, 3, 2, 1, 9, 0, 0, 0, 0, 0, 0, 0]);
    }
}
