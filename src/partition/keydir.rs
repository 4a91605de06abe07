//! The keydir: where each key's newest record is. (The word and the idea are Bitcask's.)
//!
//! A key is known by a 128-bit keyed digest, so an overwrite or a delete needs no read, and memory
//! does not grow with the length of keys. The secret is the store's own: nobody can make two keys
//! collide on purpose. Of a digest, some bits choose the partition, 12 the table, and 88 are kept:
//! two of 10^9 keys are taken for one with a probability of 10^-12. Invariant: a `get` still
//! compares the key it read.
//!
//! Memory is 20 bytes a key over a load of 7/9 to 7/8, and 3 % for the chunks; it is given back when
//! keys go. There are many small tables rather than a large one, so that growing is done in pieces,
//! none of which takes long.

use super::chunks::{Moved, Pool, Slot, Tag};
use super::table::Table;
use siphasher::sip128::{Hasher128, SipHasher13};
use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasherDefault, Hasher};
use std::num::NonZeroU64;

/// How many tables a keydir has: 2^12. One of 100 M keys has 25 000 in a table then, which grows in
/// a fraction of a millisecond.
const TABLES: usize = 1 << TABLE_BITS;
const TABLE_BITS: u32 = 12;

/// A key's digest. The high half chooses the partition by its top bits, the low half the table and
/// the place in it, so that the keys of one partition do not crowd one part of its keydir.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Digest {
    high: u64,
    low: u64,
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

    fn table(self) -> usize {
        usize::try_from(self.low >> (64 - TABLE_BITS)).expect("12 bits are left")
    }

    /// The 52 bits of the low half that do not choose the table, before the last 36 of the high.
    fn tag(self) -> Tag {
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

/// A map from digests.
pub(crate) type DigestMap<T> = HashMap<Digest, T, BuildHasherDefault<Identity>>;

/// What is known of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) place: NonZeroU64,
    pub(crate) older: u8,
}

/// See the module.
#[derive(Default)]
pub(crate) struct Keydir {
    /// None before the first key, and then [`TABLES`].
    tables: Vec<Table>,
    pool: Pool,
    len: usize,
    /// For the entries of a table while it is rebuilt.
    scratch: Vec<Slot>,
}

impl fmt::Debug for Keydir {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keydir").field("len", &self.len).finish_non_exhaustive()
    }
}

impl Keydir {
    pub(crate) fn get(&self, digest: Digest) -> Option<Entry> {
        self.tables.get(digest.table())?.find(&self.pool, digest.tag()).1
    }

    /// Returns what was there.
    pub(crate) fn insert(&mut self, digest: Digest, entry: Entry) -> Option<Entry> {
        if self.tables.is_empty() {
            self.tables.resize_with(TABLES, Table::default);
        }
        let Self { tables, pool, len, scratch } = self;
        let (index, tag) = (digest.table(), digest.tag());
        let number = u32::try_from(index).expect("below the number of tables");
        let (table, slot) = (&mut tables[index], Slot::new(tag, entry));
        let (mut spot, before) = table.find(pool, tag);
        if before.is_some() {
            table.replace(pool, spot, slot);
            return before;
        }
        if table.is_full() {
            table.grow(pool, number, scratch);
            spot = table.find(pool, tag).0;
        }
        table.insert(pool, number, spot, slot);
        *len += 1;
        None
    }

    /// Returns what was there.
    pub(crate) fn remove(&mut self, digest: Digest) -> Option<Entry> {
        let Self { tables, pool, len, scratch } = self;
        let (index, tag) = (digest.table(), digest.tag());
        let table = tables.get_mut(index)?;
        let (spot, before) = table.find(pool, tag);
        before?;
        table.remove(pool, spot);
        table.shrink(pool, u32::try_from(index).expect("below the number of tables"), scratch);
        while let Some(surplus) = tables[index].surplus(pool) {
            if let Some(Moved { owner, to }) = pool.give_back(surplus) {
                tables[owner.table as usize].moved(owner.index, to);
            }
        }
        *len -= 1;
        if *len == 0 {
            *self = Self::default();
        }
        before
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Bytes it holds from the allocator.
    pub(crate) fn memory(&self) -> usize {
        self.pool.memory()
            + self.tables.capacity() * size_of::<Table>()
            + self.tables.iter().map(Table::memory).sum::<usize>()
            + self.scratch.capacity() * size_of::<Slot>()
    }

    /// Everything in it, in no order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Entry> + '_ {
        self.pool.iter()
    }
}

#[cfg(test)]
impl Keydir {
    /// Asserts the invariants of all tables, and that the pool has their chunks and no others.
    fn check(&self) {
        let of = |(number, table): (usize, &Table)| {
            table.check(&self.pool, u32::try_from(number).unwrap())
        };
        let chunks: usize = self.tables.iter().enumerate().map(of).sum();
        assert_eq!(chunks, self.pool.len());
        assert_eq!(self.len, self.tables.iter().map(Table::len).sum::<usize>());
        assert_eq!(self.len, self.iter().count());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;
    use std::fs;
    use std::hint::black_box;
    use std::time::Instant;

    /// A seeded source of digests and of choices.
    struct Random(u64);

    impl Random {
        fn next(&mut self) -> u64 {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
            mixed ^ mixed >> 31
        }

        fn below(&mut self, bound: u64) -> u64 {
            self.next() % bound
        }

        fn digest(&mut self) -> Digest {
            Digest { high: self.next(), low: self.next() }
        }
    }

    fn entry(place: u64, older: u8) -> Entry {
        Entry { place: NonZeroU64::new(place).unwrap(), older }
    }

    /// Does the same to a keydir and to a model of it.
    #[derive(Default)]
    struct Pair {
        keydir: Keydir,
        model: BTreeMap<(u64, u64), Entry>,
    }

    impl Pair {
        fn insert(&mut self, digest: Digest, entry: Entry) {
            let before = self.model.insert((digest.high, digest.low), entry);
            assert_eq!(self.keydir.insert(digest, entry), before);
            assert_eq!(self.keydir.get(digest), Some(entry));
        }

        fn remove(&mut self, digest: Digest) {
            let before = self.model.remove(&(digest.high, digest.low));
            assert_eq!(self.keydir.remove(digest), before);
            assert_eq!(self.keydir.get(digest), None);
        }

        /// One that is there, if any is.
        fn any(&self, random: &mut Random) -> Option<Digest> {
            let from = (random.next(), random.next());
            let (&(high, low), _) = self.model.range(from..).chain(&self.model).next()?;
            Some(Digest { high, low })
        }

        fn check(&self) {
            self.keydir.check();
            assert_eq!(self.keydir.len(), self.model.len());
            for (&(high, low), &entry) in &self.model {
                assert_eq!(self.keydir.get(Digest { high, low }), Some(entry));
            }
            let mut all: Vec<_> = self.keydir.iter().map(|e| (e.place, e.older)).collect();
            let mut expected: Vec<_> = self.model.values().map(|e| (e.place, e.older)).collect();
            all.sort_unstable();
            expected.sort_unstable();
            assert_eq!(all, expected);
        }
    }

    /// Ways to choose digests that a table finds hard.
    #[derive(Clone, Copy, Debug)]
    enum Hard {
        /// Everywhere.
        No,
        /// In one table.
        OneTable,
        /// In one table, with few homes.
        FewHomes,
        /// In one table, all at the last home: all but one in the overflow.
        LastHome,
        /// In three tables, with few tags that differ in the last bits kept only.
        LastBits,
        /// As the tag that an empty slot has, or nearly.
        LikeEmpty,
    }

    fn hard(kind: Hard, random: &mut Random) -> Digest {
        let Digest { high, low } = random.digest();
        match kind {
            Hard::No => Digest { high, low },
            Hard::OneTable => Digest { high, low: low >> 12 },
            Hard::FewHomes => Digest { high, low: (low & 7) << 49 | low >> 44 },
            Hard::LastHome => Digest { high, low: low >> 32 | 0xf_ffff_fff0 << 16 },
            Hard::LastBits => Digest { high: (high & 0xff) << 28, low: (low % 3) << 52 },
            Hard::LikeEmpty => {
                let low = u64::MAX - (low & 3);
                Digest { high: u64::MAX >> 28 & !(high & 3 | high & 3 << 34), low }
            }
        }
    }

    const ALL: [Hard; 6] =
        [Hard::No, Hard::OneTable, Hard::FewHomes, Hard::LastHome, Hard::LastBits, Hard::LikeEmpty];

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
    fn the_keys_of_one_partition_spread_over_all_tables_and_over_each() {
        for partitions in [1, 2, 8, 64, 3, 7, 4096] {
            let (mut tables, mut parts, mut random) = (vec![0; TABLES], [0; 64], Random(1));
            let mut digests = 0;
            while digests < 200_000 {
                let Digest { high, low } = random.digest();
                // As if it were of the last partition.
                let part = u128::from(high) + (((partitions - 1) as u128) << 64);
                let high = u64::try_from(part / partitions as u128).unwrap() + 1;
                let digest = Digest { high, low };
                assert_eq!(digest.partition(partitions), partitions - 1);
                tables[digest.table()] += 1;
                parts[usize::try_from(digest.tag().major >> 58).unwrap()] += 1;
                digests += 1;
            }
            // 49 on average, 7 the deviation; 3125 and 56.
            assert!(tables.iter().all(|&n| (10..100).contains(&n)), "{partitions}: {tables:?}");
            assert!(parts.iter().all(|&n| (2800..3450).contains(&n)), "{partitions}: {parts:?}");
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

    #[test]
    fn each_of_100_bits_tells_two_digests_apart() {
        let digest = Random(3).digest();
        let mut keydir = Keydir::default();
        keydir.insert(digest, entry(1, 0));
        for bit in 0..64 {
            let other = Digest { low: digest.low ^ 1 << bit, ..digest };
            assert_eq!(keydir.get(other), None, "bit {bit} of the low half");
        }
        for bit in 0..36 {
            let other = Digest { high: digest.high ^ 1 << bit, ..digest };
            assert_eq!(keydir.get(other), None, "bit {bit} of the high half");
        }
    }

    #[test]
    fn nothing_is_in_an_empty_keydir_and_it_owns_nothing() {
        let mut keydir = Keydir::default();
        let digest = Random(1).digest();
        assert_eq!((keydir.get(digest), keydir.remove(digest)), (None, None));
        assert_eq!((keydir.len(), keydir.memory(), keydir.iter().count()), (0, 0, 0));
    }

    #[test]
    fn all_bits_of_an_entry_are_kept() {
        let mut pair = Pair::default();
        let mut random = Random(2);
        for place in [1, u64::from(u32::MAX), 1 << 32, u64::MAX, 1 << 63] {
            for older in [0, 1, 254, 255] {
                pair.insert(random.digest(), entry(place, older));
            }
        }
        pair.check();
    }

    /// Fills, churns at several sizes, and empties.
    #[test]
    fn it_does_what_a_map_does_whatever_the_digests() {
        for (kind, seed) in ALL.into_iter().zip(10..) {
            let (mut pair, mut random) = (Pair::default(), Random(seed));
            let most = if matches!(kind, Hard::No) { 40_000 } else { 1_500 };
            for target in [3, 30, most / 10, most, most / 3, most / 2, 40, 1, 0, most / 4, 0] {
                let mut left = 3 * most; // there may be fewer digests than that of this kind
                while pair.model.len() < target && left > 0 {
                    left -= 1;
                    let value = entry(1 + random.below(u64::MAX), random.next().to_le_bytes()[0]);
                    pair.insert(hard(kind, &mut random), value);
                    if random.below(64) == 0 || pair.model.len() < 60 {
                        pair.keydir.check();
                    }
                }
                pair.check();
                while pair.model.len() > target {
                    let digest = pair.any(&mut random).unwrap();
                    pair.remove(digest);
                    if random.below(64) == 0 || pair.model.len() < 60 {
                        pair.keydir.check();
                    }
                }
                pair.check();
                for _ in 0..most.min(500) {
                    let digest = hard(kind, &mut random);
                    assert_eq!(
                        pair.keydir.get(digest),
                        pair.model.get(&(digest.high, digest.low)).copied()
                    );
                    if let Some(old) = pair.any(&mut random) {
                        pair.remove(old);
                        pair.insert(digest, entry(1 + random.below(1 << 40), 7));
                    }
                }
                pair.check();
            }
            assert_eq!(pair.keydir.memory(), 0, "{kind:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..Default::default() })]

        /// Few enough digests that they meet, in one table; the invariants hold after each step.
        #[test]
        fn the_order_holds_after_each_step(
            kind in 0..ALL.len(),
            steps in prop::collection::vec((any::<u8>(), 0u64..90), 1..400),
        ) {
            let mut pair = Pair::default();
            for (step, which) in steps {
                let digest = hard(ALL[kind], &mut Random(which));
                // Mostly inserts first, and then mostly removals.
                if step % 8 < 5 {
                    pair.insert(digest, entry(1 + which, step));
                } else {
                    pair.remove(digest);
                }
                pair.keydir.check();
            }
            pair.check();
        }
    }

    #[test]
    fn a_key_takes_28_bytes_at_most_and_they_are_given_back() {
        let (mut keydir, mut random) = (Keydir::default(), Random(5));
        for n in 1..=1_000_000 {
            keydir.insert(random.digest(), entry(n, 0));
            if n >= 250_000 && n % 50_000 == 0 {
                let each = keydir.memory() as u64 * 10 / n;
                assert!(each <= 280, "{each} tenths of a byte at {n} keys");
            }
        }
        keydir.check();
        let (full, mut random) = (keydir.memory(), Random(5));
        for n in 1..=1_000_000 {
            keydir.remove(random.digest());
            if n == 900_000 {
                assert!(keydir.memory() < full / 5, "{} of {full}", keydir.memory());
            }
        }
        assert_eq!((keydir.len(), keydir.memory()), (0, 0));
    }

    /// Resident bytes of this process.
    fn resident() -> usize {
        let pages = fs::read_to_string("/proc/self/statm").unwrap();
        pages.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
    }

    /// Alone in its process, for so many millions of keys:
    /// `MILLIONS=10 cargo test --release --lib -- --ignored --nocapture figures_of_a_keydir`
    #[test]
    #[ignore = "prints figures; takes minutes at 100 million"]
    #[expect(clippy::cast_precision_loss, reason = "figures for people to read")]
    fn figures_of_a_keydir() {
        let millions: f64 = std::env::var("MILLIONS").map_or(1.0, |text| text.parse().unwrap());
        let keys: u64 = format!("{:.0}", millions * 1e6).parse().unwrap();
        let before = resident();
        let (mut keydir, mut random) = (Keydir::default(), Random(9));
        let (mut longest, mut worst) = ([0; 5], (0.0, 0));
        let start = Instant::now();
        for n in 1..=keys {
            let digest = random.digest();
            let one = Instant::now();
            keydir.insert(digest, entry(n, 0));
            let nanos = one.elapsed().as_nanos();
            if nanos > longest[0] {
                longest[0] = nanos;
                longest.sort_unstable();
            }
            if n >= 1_000_000 && n % 500_000 == 0 {
                let each = (resident() - before) as f64 / n as f64;
                worst = if each > worst.0 { (each, n) } else { worst };
            }
        }
        let nanos = |start: Instant| start.elapsed().as_nanos() as f64 / keys as f64;
        println!("{keys} keys: insert {:.0} ns, longest {longest:?} ns", nanos(start));
        let (held, owned) = ((resident() - before) as f64, keydir.memory() as f64);
        println!(
            "resident {:.2} bytes a key, most {:.2} at {} keys; holds {:.2}",
            held / keys as f64,
            worst.0,
            worst.1,
            owned / keys as f64
        );
        let lookups = keys.min(10_000_000);
        let mut pick = Random(9);
        // Those inserted, but in another order: of each pair of draws, from a place at random.
        for (what, seed) in [("hit", 9u64), ("miss", 10)] {
            let start = Instant::now();
            let mut found = 0;
            for _ in 0..lookups {
                let n = pick.below(keys);
                let at = seed.wrapping_add(n.wrapping_mul(2).wrapping_mul(0x9e37_79b9_7f4a_7c15));
                found += u64::from(keydir.get(Random(at).digest()).is_some());
            }
            let nanos = start.elapsed().as_nanos() as f64 / lookups as f64;
            println!("{what}: {nanos:.0} ns, found {found} of {lookups}");
            // The next waits for the one before: no overlap.
            let (start, mut last) = (Instant::now(), 0);
            for _ in 0..lookups / 4 {
                let n = (pick.next() ^ last) % keys;
                let at = seed.wrapping_add(n.wrapping_mul(2).wrapping_mul(0x9e37_79b9_7f4a_7c15));
                last = keydir.get(Random(at).digest()).map_or(0, |e| u64::from(e.older));
            }
            let nanos = start.elapsed().as_nanos() as f64 / (lookups / 4) as f64;
            println!("{what}, one after the other: {nanos:.0} ns");
        }
        let start = Instant::now();
        black_box(keydir.iter().fold(0, |sum, entry| sum ^ entry.place.get()));
        println!("iter: {:.1} ns", nanos(start));
        let (start, mut again) = (Instant::now(), Random(9));
        for _ in 0..keys {
            keydir.remove(again.digest()).unwrap();
        }
        println!("remove: {:.0} ns; resident then {} bytes", nanos(start), resident() - before);
    }
}
