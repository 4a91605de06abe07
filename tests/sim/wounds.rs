//! Where a disk does not hold what was written to it, and what its logs can prove of that: a second
//! reading of the format, by the tables of DESIGN.md, that shares no code with the first.
//!
//! Bytes that are lost can be missed only if something that is still there speaks of them: a mark or
//! a seal further on in the file, or the first group of a later segment. If nothing does, the log
//! looks as if it ended before them, in principle: what was acknowledged from then on may be gone,
//! and no more than that.

use super::content::Content;
use super::disk::{Disk, Ino, Node};
use std::collections::BTreeMap;

const BLOCK: usize = 4096;

/// Bytes of a file that are not what was written there.
#[derive(Clone, Debug)]
pub struct Wound {
    pub ino: Ino,
    pub from: u64,
    pub to: u64,
    /// What was acknowledged after that, in the model's time, may have been there.
    pub at: u64,
}

/// Where two ranges of bytes begin to differ.
fn difference(content: &Content, offset: u64, bytes: &[u8]) -> Option<u64> {
    let mut there = content.bytes(offset, bytes.len() as u64);
    there.resize(bytes.len(), 0);
    there.iter().zip(bytes).position(|(a, b)| a != b).map(|at| offset + at as u64)
}

impl Wound {
    /// Of a write that is not done.
    pub fn lost(content: &Content, ino: Ino, offset: u64, bytes: &[u8], at: u64) -> Option<Self> {
        let from = difference(content, offset, bytes)?;
        Some(Self { ino, from, to: offset + bytes.len() as u64, at })
    }

    /// Of bytes that come over what is there.
    pub fn over(content: &Content, ino: Ino, offset: u64, bytes: &[u8]) -> Option<Self> {
        // A file that grows is another, if only by zeroes.
        let longer = (offset + bytes.len() as u64 > content.len).then_some(content.len);
        let from = difference(content, offset, bytes).into_iter().chain(longer).min()?;
        // Since when has it been there?
        let since = content.written.iter().filter(|(start, end, _)| (start..end).contains(&&from));
        let at = since.map(|(_, _, at)| *at).min().unwrap_or(u64::MAX);
        Some(Self { ino, from, to: offset + bytes.len() as u64, at })
    }

    /// A write that is done. Tells whether nothing of the wound is left.
    pub fn heal(&mut self, ino: Ino, offset: u64, len: u64) -> bool {
        let end = offset + len;
        if self.ino == ino && (offset..end).contains(&self.from) {
            self.from = end;
        }
        self.from >= self.to
    }
}

/// What a segment says of itself and others.
#[derive(Clone, Debug, Default)]
pub struct Log {
    /// The highest watermark in it.
    pub durable: u64,
    /// Where marks and seals are.
    marks: Vec<u64>,
    /// Blocks that end with zeroes, and where these begin.
    padding: BTreeMap<u64, u64>,
    /// What its seal says goes on.
    pub next: Option<u64>,
    /// What its first group says was there.
    pub lists: Vec<u64>,
}

fn number(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// The kind and the value of a record without a key that lies there whole.
fn record(log: &[u8], at: usize) -> Option<(u8, &[u8])> {
    let (head, salt) = (log.get(at..at + 24)?, log.get(40..48)?);
    // Neither key nor flags, and a kind of those that have none.
    if !(3..=6).contains(&(number(head, 16) >> 48)) || head[20..22] != [0, 0] {
        return None;
    }
    let mut sum = crc32fast::Hasher::new();
    sum.update(salt);
    sum.update(&(at as u64).to_le_bytes());
    sum.update(&head[4..]);
    let len = usize::try_from(number(head, 16) & 0xffff_ffff).unwrap();
    let value = log.get(at + 24..at + 24 + len)?;
    let word = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().unwrap());
    let whole = sum.finalize() == word(0) && crc32fast::hash(value) == word(4);
    whole.then_some((head[22], value))
}

impl Log {
    fn read(log: &[u8]) -> Self {
        let mut read = Self::default();
        for at in (BLOCK..log.len()).step_by(8) {
            if let Some((kind @ (3 | 6), value)) = record(log, at)
                && value.len() == 32
            {
                read.durable = read.durable.max(number(value, 0));
                read.marks.push(at as u64);
                if kind == 6 {
                    read.next = Some(number(value, 24));
                }
            }
        }
        for (block, bytes) in log.chunks(BLOCK).enumerate() {
            let used = bytes.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
            read.padding.insert(block as u64, (block * BLOCK + used) as u64);
        }
        if let (Some((3, _)), Some((4, ids))) = (record(log, BLOCK), record(log, BLOCK + 56)) {
            read.lists = ids.chunks(8).map(|id| number(id, 0)).collect();
        }
        read
    }
}

/// The segments of a store: by partition and id, with their files.
pub struct Logs(BTreeMap<(usize, u64), (Ino, Log)>);

impl Logs {
    pub fn read(disk: &Disk, store: &str) -> Self {
        let mut logs = BTreeMap::new();
        for (path, ino) in disk.files() {
            let parsed = path.strip_prefix(store).and_then(|rest| {
                let (partition, name) = rest.strip_prefix("/p")?.split_once('/')?;
                let id = name.strip_suffix(".log")?;
                Some((partition.parse().ok()?, id.parse().ok()?))
            });
            if let (Some(place), Node::File(content)) = (parsed, disk.node(ino)) {
                logs.insert(place, (ino, Log::read(&content.bytes(0, content.len))));
            }
        }
        Self(logs)
    }

    /// Each segment's file, and how far it says that it was durable.
    pub fn watermarks(&self) -> impl Iterator<Item = (Ino, u64)> + '_ {
        self.0.values().map(|(ino, log)| (*ino, log.durable))
    }

    /// Whose log a wound is in, and whether anything proves that bytes are missing there.
    pub fn judge(&self, wound: &Wound) -> Option<(usize, bool)> {
        let (&(partition, id), (_, log)) = self.0.iter().find(|(_, (ino, _))| *ino == wound.ino)?;
        let listed = self.is_listed((partition, id));
        let block = wound.from / BLOCK as u64;
        let (zeroes, next) = (log.padding.get(&block), (block + 1) * BLOCK as u64);
        // Zeroes to the end of a block look like padding, unless the mark behind knows better.
        let spoken_of = if zeroes.is_some_and(|zeroes| *zeroes <= wound.from) {
            log.durable > next || log.durable == next && log.marks.contains(&next)
        } else {
            log.durable > wound.from
        };
        Some((partition, wound.from < BLOCK as u64 || spoken_of || listed))
    }

    /// Whether a later segment says that it was there.
    fn is_listed(&self, (partition, id): (usize, u64)) -> bool {
        let later = self.0.range((partition, id + 1)..(partition + 1, 0));
        later.map(|(_, (_, log))| log).any(|later| later.lists.contains(&id))
    }

    /// What the seal before a segment names, if there is one: a first one names itself.
    fn named_before(&self, (partition, id): (usize, u64)) -> Option<u64> {
        let before = self.0.range((partition, 0)..(partition, id)).map(|(_, (_, log))| log);
        // One that was made in vain has no records, and does not say anything.
        let before = before.rev().find(|log| !log.marks.is_empty());
        before.map_or(Some(1), |log| log.next)
    }

    /// Whether a segment is the one that the last seal before it names, or a first one.
    pub fn is_named(&self, ino: Ino) -> bool {
        let place = self.0.iter().find(|(_, (other, _))| *other == ino).map(|(place, _)| *place);
        place.is_some_and(|place| self.named_before(place) == Some(place.1))
    }

    /// Whether a segment has records, and nothing says so: the last seal before it names none.
    pub fn is_unnamed(&self, ino: Ino) -> bool {
        let found = self.0.iter().find(|(_, (other, _))| *other == ino);
        found.is_some_and(|(&place, (_, log))| {
            !log.marks.is_empty() && self.named_before(place) == Some(0) && !self.is_listed(place)
        })
    }
}
