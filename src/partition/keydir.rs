//! The keydir: where each key's newest record is. (The word and the idea are Bitcask's.)
//!
//! A key is known by its digest: 12 bits of it choose one of many small tables, and 88 are kept
//! there. A large table would grow at once; these do so one by one, and none takes long. Memory is
//! 20 bytes a key over a load of 7/9 to 7/8, and 3 % for the chunks: 25 or 26 bytes for a million
//! keys or more. It is given back when keys go. Invariant: each digest is in the table that it
//! chooses, once at most, and `len` counts them all.

use super::chunks::{Moved, Pool, Slot};
use super::digest::{Digest, TABLE_BITS};
use super::table::Table;
use std::fmt;
use std::num::NonZeroU64;

/// How many tables a keydir has: 4096. One of 100 M keys has 25 000 in a table then, which grows in
/// a fraction of a millisecond.
pub(super) const TABLES: usize = 1 << TABLE_BITS;

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

    #[cfg(test)]
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
    #[cfg(test)]
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
        assert_eq!(chunks, self.pool.len() as usize);
        assert_eq!(self.len, self.tables.iter().map(Table::len).sum::<usize>());
        assert_eq!(self.len, self.iter().count());
    }
}

#[cfg(test)]
mod tests {
    use super::super::digest::DigestMap;
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
            let most = if matches!(kind, Hard::No) { 12_000 } else { 1_000 };
            for target in [3, 30, most / 10, most, most / 3, most / 2, 40, 1, 0, most / 4, 0] {
                let mut left = 3 * most; // there may be fewer digests than that of this kind
                while pair.model.len() < target && left > 0 {
                    left -= 1;
                    let value = entry(1 + random.below(u64::MAX), random.next().to_le_bytes()[0]);
                    pair.insert(hard(kind, &mut random), value);
                    if random.below(256) == 0 {
                        pair.keydir.check();
                    }
                }
                pair.check();
                while pair.model.len() > target {
                    let digest = pair.any(&mut random).unwrap();
                    pair.remove(digest);
                    if random.below(256) == 0 {
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
        #![proptest_config(ProptestConfig {
            cases: 24,
            failure_persistence: None,
            ..Default::default()
        })]

        /// Few enough digests that they meet, in one table; the invariants hold after each step.
        #[test]
        fn the_order_holds_after_each_step(
            kind in 0..ALL.len(),
            steps in prop::collection::vec((any::<u8>(), 0u64..90), 1..300),
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
                // A part of a million keys has few chunks a table, and more of them half empty.
                let (most, each) =
                    (if n < 500_000 { 300 } else { 280 }, keydir.memory() as u64 * 10 / n);
                assert!(each <= most, "{each} tenths of a byte at {n} keys");
            }
        }
        keydir.check();
        let (full, mut random) = (keydir.memory(), Random(5));
        for n in 1..=1_000_000 {
            keydir.remove(random.digest());
            if n == 900_000 {
                assert!(keydir.memory() < full / 3, "{} of {full}", keydir.memory());
            }
        }
        assert_eq!((keydir.len(), keydir.memory()), (0, 0));
    }

    /// Time cannot be asserted, but what takes it can: slots that are moved one by one. A keydir
    /// that grows at once moves all that it has; this one a table's share, at most.
    #[test]
    fn no_insert_and_no_removal_moves_more_than_a_table() {
        const KEYS: usize = 2_000_000;
        // Tables are not of one length, and a small one takes a chunk more than it has entries for.
        let most = |keys: usize| 100 + 2 * keys / TABLES;
        let (mut keydir, mut random, mut longest) = (Keydir::default(), Random(9), 0);
        let mut first = None;
        for n in 1..=KEYS {
            let before = keydir.pool.changes;
            keydir.insert(random.digest(), entry(n as u64, 0));
            let changes = keydir.pool.changes - before;
            assert!(changes <= most(n), "{changes} changes for key {n}");
            longest = longest.max(changes);
            // Nor are all chunks moved when one more is taken.
            let there = std::ptr::from_ref(keydir.pool.chunk(0));
            assert_eq!(*first.get_or_insert(there), there, "the pool has moved at key {n}");
        }
        assert!(longest > KEYS / TABLES, "a table that grew was not counted: {longest}");
        let mut random = Random(9);
        for left in (1..KEYS).rev() {
            let before = keydir.pool.changes;
            keydir.remove(random.digest()).unwrap();
            let changes = keydir.pool.changes - before;
            assert!(changes <= most(left), "{changes} changes with {left} keys left");
        }
    }

    /// Resident bytes of this process.
    fn resident() -> usize {
        let pages = fs::read_to_string("/proc/self/statm").unwrap();
        pages.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
    }

    /// Nanoseconds that this thread has been on a processor: other load counts for less.
    fn on_processor() -> u64 {
        let stat = fs::read_to_string("/proc/thread-self/schedstat").unwrap();
        stat.split(' ').next().unwrap().parse().unwrap()
    }

    /// How long `work` takes on average, so many times.
    #[expect(clippy::cast_precision_loss, reason = "figures for people to read")]
    fn each(times: u64, mut work: impl FnMut(u64)) -> f64 {
        let start = on_processor();
        (0..times).for_each(&mut work);
        (on_processor() - start) as f64 / times as f64
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
        let (mut keydir, mut random, mut worst) = (Keydir::default(), Random(9), (0.0, 0));
        let insert = each(keys, |n| {
            keydir.insert(random.digest(), entry(n + 1, 0));
            if n >= 1_000_000 && n % 100_000 == 0 {
                let held = (resident() - before) as f64 / n as f64;
                worst = if held > worst.0 { (held, n) } else { worst };
            }
        });
        let (held, owned) = ((resident() - before) as f64, keydir.memory() as f64);
        let (held, owned) = (held / keys as f64, owned / keys as f64);
        println!("{keys} keys: resident {held:.2} bytes a key, {owned:.2} of them counted,");
        println!("  most {:.2}, at {} keys; insert {insert:.0} ns", worst.0, worst.1);
        // The digest of the n-th key; of another seed, one that is not there.
        let nth = |seed: u64, n: u64| {
            Random(seed.wrapping_add((2 * n).wrapping_mul(0x9e37_79b9_7f4a_7c15))).digest()
        };
        let lookups = keys.min(10_000_000);
        let idle = each(lookups, |_| {
            black_box(nth(9, random.below(keys)));
        });
        for (what, seed) in [("hit", 9), ("miss", 10)] {
            let free = each(lookups, |_| {
                let found = keydir.get(nth(seed, random.below(keys)));
                assert_eq!(found.is_some(), seed == 9);
            });
            let mut last = 0;
            let chained = each(lookups, |_| {
                let found = keydir.get(nth(seed, (random.next() ^ last) % keys));
                last = black_box(found.map_or(0, |entry| u64::from(entry.older)));
            });
            let (free, chained) = (free - idle, chained - idle);
            println!("  {what} {free:.0} ns; each after the one before it, {chained:.0} ns");
        }
        let update = each(lookups, |_| {
            keydir.insert(nth(9, random.below(keys)), entry(1, 1)).unwrap();
        });
        let iter = each(1, |_| {
            black_box(keydir.iter().map(|e| e.place.get()).max());
        });
        println!("  update {:.0} ns; iteration {:.1} ns", update - idle, iter / keys as f64);
        let mut again = Random(9);
        let half = each(keys / 2, |_| {
            keydir.remove(again.digest()).unwrap();
        });
        let held = resident().saturating_sub(before);
        println!("  remove {half:.0} ns; half of them gone, resident {held} bytes");
        each(keys - keys / 2, |_| {
            keydir.remove(again.digest()).unwrap();
        });
        println!("  all of them gone, resident {} bytes", resident().saturating_sub(before));
        if keys <= 30_000_000 {
            let mut map = DigestMap::default();
            let insert = each(keys, |n| {
                map.insert(nth(9, n), entry(n + 1, 0));
            });
            let hit = each(lookups, |_| assert!(map.contains_key(&nth(9, random.below(keys)))));
            let mut last = 0;
            let chained = each(lookups, |_| {
                let found = map.get(&nth(9, (random.next() ^ last) % keys));
                last = black_box(found.map_or(0, |entry| u64::from(entry.older)));
            });
            let held = resident().saturating_sub(before) as f64 / keys as f64;
            let (hit, chained) = (hit - idle, chained - idle);
            println!("  a HashMap: {held:.1} bytes, insert {insert:.0} ns, hit {hit:.0} ns,");
            println!("    each after the one before it, {chained:.0} ns");
        }
    }

    /// An insert may be held up by others on the machine, but hardly the same one each time: of
    /// three runs of the same, the least counts. `MILLIONS` as above.
    #[test]
    #[ignore = "prints figures; takes minutes at 100 million"]
    fn longest_insert_into_a_keydir() {
        let millions: u64 = std::env::var("MILLIONS").map_or(1, |text| text.parse().unwrap());
        let mut slow: Option<BTreeMap<u64, u128>> = None;
        for _ in 0..3 {
            let (mut keydir, mut random, mut now) = (Keydir::default(), Random(9), BTreeMap::new());
            for n in 1..=millions * 1_000_000 {
                let (digest, start) = (random.digest(), Instant::now());
                keydir.insert(digest, entry(n, 0));
                let nanos = start.elapsed().as_nanos();
                if nanos > 20_000 {
                    now.insert(n, nanos);
                }
            }
            if let Some(before) = slow {
                now.retain(|n, nanos| {
                    before.get(n).is_some_and(|before| {
                        *nanos = *before.min(nanos);
                        true
                    })
                });
            }
            slow = Some(now);
        }
        let mut slow: Vec<_> = slow.unwrap().into_iter().map(|(n, nanos)| (nanos, n)).collect();
        slow.sort_unstable_by(|a, b| b.cmp(a));
        println!("{} over 20 us; longest (ns, key): {:?}", slow.len(), &slow[..slow.len().min(6)]);
    }
}
