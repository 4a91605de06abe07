//! What a file holds: as programs see it, as the device has it for good, and what lies between.
//!
//! Between are the sectors that were written and not synced. A sync makes durable what had been
//! written before it was issued. A crash decides each sector for itself: the old content, the new,
//! one that was written between, part of each, or none of these.

use super::rng::Rng;
use std::collections::{BTreeMap, BTreeSet};

pub const SECTOR: usize = 512;
pub const BLOCK: usize = 4096;

pub type Sector = [u8; SECTOR];

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
    /// Zeroes follow, up to `len`.
    live: Vec<u8>,
    durable_len: u64,
    durable: Vec<u8>,
    unsynced: BTreeMap<u64, Unsynced>,
    /// Lengths that the file had since its length was last durable.
    lens: Vec<(u64, u64)>,
    /// Sectors that a failed sync has dropped: the cache has them, the device does not, and nobody
    /// will write them.
    lost: BTreeSet<u64>,
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

fn at(offset: u64) -> usize {
    usize::try_from(offset).unwrap()
}

fn copy_out(data: &[u8], offset: u64, out: &mut [u8]) {
    let start = at(offset).min(data.len());
    let end = (at(offset) + out.len()).min(data.len());
    out[..end - start].copy_from_slice(&data[start..end]);
    out[end - start..].fill(0);
}

fn copy_in(data: &mut Vec<u8>, offset: u64, bytes: &[u8]) {
    let end = at(offset) + bytes.len();
    if data.len() < end {
        data.resize(end, 0);
    }
    data[at(offset)..end].copy_from_slice(bytes);
}

fn sector_of(data: &[u8], sector: u64) -> Sector {
    let mut out = [0; SECTOR];
    copy_out(data, sector * SECTOR as u64, &mut out);
    out
}

fn sectors(offset: u64, len: u64) -> std::ops::Range<u64> {
    let sector = SECTOR as u64;
    offset / sector..(offset + len).div_ceil(sector)
}

impl Content {
    /// What a read sees. A direct one does not see what only a cache has.
    pub fn read(&self, offset: u64, out: &mut [u8], direct: bool) -> usize {
        let n = at(self.len.saturating_sub(offset).min(out.len() as u64));
        let out = &mut out[..n];
        copy_out(&self.live, offset, out);
        if direct && !self.lost.is_empty() {
            for sector in sectors(offset, n as u64).filter(|s| self.lost.contains(s)) {
                let from = at((sector * SECTOR as u64).saturating_sub(offset));
                let to = (from + SECTOR).min(n); // direct reads are aligned
                out[from..to].copy_from_slice(&sector_of(&self.durable, sector)[..to - from]);
            }
        }
        n
    }

    fn touch(&mut self, sector: u64, now: u64) {
        let live = &self.live;
        self.lost.remove(&sector);
        match self.unsynced.entry(sector) {
            std::collections::btree_map::Entry::Vacant(entry) => {
                entry.insert(Unsynced { at: now, before: Vec::new() });
            }
            std::collections::btree_map::Entry::Occupied(entry) => {
                let unsynced = entry.into_mut();
                unsynced.before.push((unsynced.at, sector_of(live, sector)));
                unsynced.at = now;
            }
        }
    }

    pub fn write(&mut self, offset: u64, bytes: &[u8], now: u64) {
        for sector in sectors(offset, bytes.len() as u64) {
            self.touch(sector, now);
        }
        copy_in(&mut self.live, offset, bytes);
        self.grow(offset + bytes.len() as u64, now);
    }

    pub fn grow(&mut self, len: u64, now: u64) {
        if len > self.len {
            self.len = len;
            self.lens.push((now, len));
        }
    }

    pub fn truncate(&mut self, len: u64, now: u64) {
        if len < self.live.len() as u64 {
            for sector in sectors(len, self.live.len() as u64 - len) {
                self.touch(sector, now);
            }
            self.live.truncate(at(len));
        }
        self.len = len;
        self.lens.push((now, len));
    }

    fn harden(&mut self, sector: u64, content: &Sector) {
        copy_in(&mut self.durable, sector * SECTOR as u64, content);
    }

    /// All that was written by then is durable. With `fails` some of it is, and the rest never.
    pub fn sync(&mut self, by: u64, mut fails: Option<&mut Rng>) {
        let mut left = BTreeMap::new();
        for (sector, mut unsynced) in std::mem::take(&mut self.unsynced) {
            let content = if unsynced.at <= by {
                Some(sector_of(&self.live, sector))
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
            if let Some(&(_, len)) = self.lens.iter().rfind(|(at, _)| *at <= by) {
                self.durable_len = len;
            }
            self.lens.retain(|(at, _)| *at > by);
        }
    }

    /// What was just written there is durable, and only that.
    pub fn sync_range(&mut self, offset: u64, len: u64) {
        for sector in sectors(offset, len) {
            if self.unsynced.remove(&sector).is_some() {
                let content = sector_of(&self.live, sector);
                self.harden(sector, &content);
            }
        }
        let end = offset + len;
        self.durable_len = self.durable_len.max(end);
        self.lens.retain(|(_, len)| *len >= end);
    }

    /// The cache forgets what it need not write.
    pub fn forget_clean(&mut self) {
        for sector in std::mem::take(&mut self.lost) {
            let content = sector_of(&self.durable, sector);
            copy_in(&mut self.live, sector * SECTOR as u64, &content);
        }
        self.live.truncate(at(self.len));
    }

    /// The power is cut.
    pub fn crash(&mut self, how: Crash, rng: &mut Rng, old: &[Sector]) {
        let unsynced = std::mem::take(&mut self.unsynced);
        let first = unsynced.values().map(|u| u.at).min().unwrap_or(0);
        let last = unsynced.values().map(|u| u.at).max().unwrap_or(0);
        let cut = first + rng.below(last - first + 2);
        let mut blocks = BTreeSet::new();
        for (sector, Unsynced { at, before }) in unsynced {
            let (was, new) = (sector_of(&self.durable, sector), sector_of(&self.live, sector));
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
                    blocks.insert(sector / (BLOCK / SECTOR) as u64);
                    junk(rng, old)
                }
                Crash::Picks | Crash::Tears | Crash::Garbles => whole(rng),
            };
            self.harden(sector, &content);
        }
        // What is written together may be harmed together.
        for block in blocks {
            for sector in 0..(BLOCK / SECTOR) as u64 {
                if rng.one_in(4) {
                    let content = junk(rng, old);
                    self.harden(block * (BLOCK / SECTOR) as u64 + sector, &content);
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
        self.durable.truncate(at(self.len));
        self.live.clone_from(&self.durable);
        self.lost.clear();
    }

    /// Changes what is durable, behind everybody's back.
    pub fn rot(&mut self, offset: u64, mask: u8) {
        let mut byte = [0];
        copy_out(&self.durable, offset, &mut byte);
        byte[0] ^= mask;
        copy_in(&mut self.durable, offset, &byte);
        copy_in(&mut self.live, offset, &byte);
    }

    pub fn live(&self) -> &[u8] {
        &self.live
    }

    /// Some of its sectors, for others to find.
    pub fn remains(&self, rng: &mut Rng) -> Vec<Sector> {
        let count = (self.durable.len() / SECTOR) as u64;
        if count == 0 {
            return Vec::new();
        }
        let some = 1 + rng.below(4);
        (0..some).map(|_| sector_of(&self.durable, rng.below(count))).collect()
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
