//! What a file holds: as programs see it, as the device has it for good, and what lies between.
//!
//! Between are the sectors that were written and not synced. A sync makes durable what had been
//! written before it was issued. A crash decides each sector for itself: the old content, the new,
//! one that was written between, part of each, or none of these.

use super::rng::Rng;
use super::sparse::{SECTOR, SECTORS, Sector, Sparse};
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

/// A sector that was written since it was last durable.
#[derive(Clone, Debug)]
struct Unsynced {
    /// When its present content was written.
    at: u64,
    /// What it held in between.
    before: Vec<(u64, Sector)>,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Content {
    pub len: u64,
    live: Sparse,
    durable_len: u64,
    /// The same as `live`, but for what is unsynced or lost.
    durable: Sparse,
    unsynced: BTreeMap<u64, Unsynced>,
    /// Lengths that the file had since its length was last durable.
    lens: Vec<(u64, u64)>,
    /// Sectors that a failed sync has dropped: the cache has them, the device does not, and nobody
    /// will write them.
    lost: BTreeSet<u64>,
    /// What was written from where to where, and when, by the model's time.
    pub written: Vec<(u64, u64, u64)>,
}

/// What a crash does to what was not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crash {
    Keeps,
    Drops,
    /// What was written before some moment stays.
    Cuts,
    /// Each sector for itself, whole.
    Picks,
    /// Each sector for itself, torn within.
    Tears,
    /// As before, and what is not kept may be junk, or old records; the rest of its block too.
    Garbles,
}

impl Crash {
    pub const ALL: [Self; 6] =
        [Self::Keeps, Self::Drops, Self::Cuts, Self::Picks, Self::Tears, Self::Garbles];
}

fn sectors(offset: u64, len: u64) -> std::ops::Range<u64> {
    let sector = SECTOR as u64;
    offset / sector..(offset + len).div_ceil(sector)
}

impl Content {
    /// What a read sees, piece by piece; how much. A direct one does not see what only a cache has.
    pub fn read(
        &self,
        offset: u64,
        len: u64,
        direct: bool,
        mut piece: impl FnMut(usize, &[u8]),
    ) -> u64 {
        let len = self.len.saturating_sub(offset).min(len);
        let n = usize::try_from(len).unwrap();
        self.live.show(offset, n, &mut piece);
        if direct && !self.lost.is_empty() {
            for &sector in self.lost.range(sectors(offset, len)) {
                let from = (sector * SECTOR as u64).saturating_sub(offset);
                let from = usize::try_from(from).unwrap();
                let to = (from + SECTOR).min(n); // direct reads are aligned
                piece(from, &self.durable.sector(sector)[..to - from]);
            }
        }
        len
    }

    fn touch(&mut self, sector: u64, now: u64) {
        self.lost.remove(&sector);
        match self.unsynced.entry(sector) {
            Entry::Vacant(entry) => {
                entry.insert(Unsynced { at: now, before: Vec::new() });
            }
            Entry::Occupied(entry) => {
                let unsynced = entry.into_mut();
                unsynced.before.push((unsynced.at, self.live.sector(sector)));
                unsynced.at = now;
            }
        }
    }

    pub fn write(&mut self, offset: u64, bytes: &[u8], now: u64) {
        for sector in sectors(offset, bytes.len() as u64) {
            self.touch(sector, now);
        }
        self.live.put(offset, bytes);
        self.grow(offset + bytes.len() as u64, now);
    }

    /// Writes what is durable at once, and only that.
    pub fn write_through(&mut self, offset: u64, bytes: &[u8]) {
        let touched = sectors(offset, bytes.len() as u64);
        let there: Vec<_> = self.unsynced.range(touched.clone()).map(|(s, _)| *s).collect();
        for sector in there {
            self.unsynced.remove(&sector);
        }
        let there: Vec<_> = self.lost.range(touched.clone()).copied().collect();
        for sector in there {
            self.lost.remove(&sector);
        }
        self.live.put(offset, bytes);
        self.harden_all(touched);
        let end = offset + bytes.len() as u64;
        self.len = self.len.max(end);
        self.durable_len = self.durable_len.max(end);
        self.lens.retain(|(_, len)| *len >= end);
    }

    /// What programs see there is durable.
    fn harden_all(&mut self, sectors: std::ops::Range<u64>) {
        for block in sectors.start / SECTORS..sectors.end.div_ceil(SECTORS) {
            let whole = block * SECTORS..(block + 1) * SECTORS;
            let alone = self.unsynced.range(whole.clone()).next().is_none()
                && self.lost.range(whole.clone()).next().is_none();
            if alone {
                self.durable.share(block, &self.live);
                continue;
            }
            for sector in whole.start.max(sectors.start)..whole.end.min(sectors.end) {
                self.harden(sector, &self.live.sector(sector));
            }
        }
    }

    pub fn grow(&mut self, len: u64, now: u64) {
        if len > self.len {
            self.len = len;
            self.lens.push((now, len));
        }
    }

    pub fn truncate(&mut self, len: u64, now: u64) {
        if len < self.live.len() {
            for sector in sectors(len, self.live.len() - len) {
                self.touch(sector, now);
            }
            self.live.cut(len);
        }
        self.len = len;
        self.lens.push((now, len));
    }

    fn harden(&mut self, sector: u64, content: &Sector) {
        self.durable.put(sector * SECTOR as u64, content);
    }

    /// All that was written by then is durable. With `fails` some of it is, and the rest never.
    pub fn sync(&mut self, by: u64, fails: Option<&mut Rng>) {
        if fails.is_none() && self.unsynced.values().all(|unsynced| unsynced.at <= by) {
            for sector in std::mem::take(&mut self.unsynced).into_keys() {
                self.harden_all(sector..sector + 1);
            }
            self.settle_len(by);
        } else {
            self.sync_some(by, fails);
        }
    }

    fn settle_len(&mut self, by: u64) {
        if let Some(&(_, len)) = self.lens.iter().rfind(|(at, _)| *at <= by) {
            self.durable_len = len;
        }
        self.lens.retain(|(at, _)| *at > by);
    }

    fn sync_some(&mut self, by: u64, mut fails: Option<&mut Rng>) {
        let mut left = BTreeMap::new();
        for (sector, mut unsynced) in std::mem::take(&mut self.unsynced) {
            let content = if unsynced.at <= by {
                Some(self.live.sector(sector))
            } else {
                let covered = unsynced.before.iter().filter(|(at, _)| *at <= by);
                let content = covered.map(|(_, content)| *content).next_back();
                unsynced.before.retain(|(at, _)| *at > by);
                left.insert(sector, unsynced);
                content
            };
            let Some(content) = content else { continue };
            if fails.as_mut().is_some_and(|rng| !rng.one_in(3)) {
                if !left.contains_key(&sector) {
                    self.lost.insert(sector);
                }
            } else {
                self.harden(sector, &content);
            }
        }
        self.unsynced = left;
        if fails.is_none_or(|rng| rng.one_in(2)) {
            self.settle_len(by);
        }
    }

    /// Whether the device has those bytes as programs see them.
    pub fn is_durable(&self, from: u64, to: u64) -> bool {
        let there = sectors(from, to - from);
        self.unsynced.range(there.clone()).next().is_none()
            && self.lost.range(there).next().is_none()
    }

    /// Whether a power cut would change nothing.
    pub fn is_settled(&self) -> bool {
        self.unsynced.is_empty() && self.lens.is_empty() && self.lost.is_empty()
    }

    /// What was just written there was to be durable at once, and some of it never will be.
    pub fn fail_to_harden(&mut self, from: u64, to: u64, rng: &mut Rng) {
        for sector in sectors(from, to - from) {
            self.unsynced.remove(&sector);
            if rng.one_in(3) {
                self.harden(sector, &self.live.sector(sector));
            } else {
                self.lost.insert(sector);
            }
        }
    }

    /// The cache forgets what it need not write.
    pub fn forget_clean(&mut self) {
        for sector in std::mem::take(&mut self.lost) {
            self.live.put(sector * SECTOR as u64, &self.durable.sector(sector));
        }
        self.live.cut(self.len);
    }

    /// The power is cut.
    pub fn crash(&mut self, how: Crash, rng: &mut Rng, old: &[Sector]) {
        let unsynced = std::mem::take(&mut self.unsynced);
        let first = unsynced.values().map(|u| u.at).min().unwrap_or(0);
        let last = unsynced.values().map(|u| u.at).max().unwrap_or(0);
        let cut = first + rng.below(last - first + 2);
        let mut blocks = BTreeSet::new();
        for (sector, Unsynced { at, before }) in unsynced {
            let (was, new) = (self.durable.sector(sector), self.live.sector(sector));
            let whole = |rng: &mut Rng| match rng.below(4) {
                0 | 1 => new,
                2 if !before.is_empty() => before[rng.index(before.len())].1,
                _ => was,
            };
            let content = match how {
                Crash::Keeps => new,
                Crash::Drops => was,
                Crash::Cuts if at < cut => new,
                Crash::Cuts => {
                    before.iter().rfind(|(at, _)| *at < cut).map_or(was, |(_, content)| *content)
                }
                Crash::Tears | Crash::Garbles if rng.one_in(4) => {
                    let (mut head, tail) = (whole(rng), whole(rng));
                    let torn = rng.index(SECTOR);
                    head[torn..].copy_from_slice(&tail[torn..]);
                    head
                }
                Crash::Garbles if rng.one_in(4) => {
                    blocks.insert(sector / SECTORS);
                    junk(rng, old)
                }
                Crash::Picks | Crash::Tears | Crash::Garbles => whole(rng),
            };
            self.harden(sector, &content);
        }
        // What is written together may be harmed together.
        for block in blocks {
            for sector in 0..SECTORS {
                if rng.one_in(4) {
                    let content = junk(rng, old);
                    self.harden(block * SECTORS + sector, &content);
                }
            }
        }
        let lens = std::mem::take(&mut self.lens);
        let kept = match how {
            Crash::Keeps => lens.len(),
            Crash::Drops => 0,
            _ => rng.index(lens.len() + 1),
        };
        self.len = if kept == 0 { self.durable_len } else { lens[kept - 1].1 };
        self.durable_len = self.len;
        self.durable.cut(self.len);
        self.live = self.durable.clone();
        self.lost.clear();
    }

    /// Changes what is durable, behind everybody's back.
    pub fn replace(&mut self, offset: u64, bytes: &[u8]) {
        self.live.put(offset, bytes);
        self.durable.put(offset, bytes);
    }

    /// What programs see.
    pub fn bytes(&self, offset: u64, len: u64) -> Vec<u8> {
        let len = self.len.saturating_sub(offset).min(len);
        self.live.copy(offset, usize::try_from(len).unwrap())
    }

    /// Some of its sectors, for others to find.
    pub fn remains(&self, rng: &mut Rng) -> Vec<Sector> {
        let count = self.durable.len() / SECTOR as u64;
        if count == 0 {
            return Vec::new();
        }
        let some = 1 + rng.below(4);
        (0..some).map(|_| self.durable.sector(rng.below(count))).collect()
    }
}

fn junk(rng: &mut Rng, old: &[Sector]) -> Sector {
    let mut junk = [0; SECTOR];
    match rng.below(3) {
        0 => {}
        1 if !old.is_empty() => junk = old[rng.index(old.len())],
        _ => rng.fill(&mut junk),
    }
    junk
}
