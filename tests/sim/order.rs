//! The order of a partition's writes, as the disk is asked for them: which record came after which, and
//! what became of each. Records are read by the tables of DESIGN.md, without the store's code.
//!
//! A partition gives its writes their order by their sequence numbers, which are the versions, and
//! writes them in that order. So: what survives a crash is a prefix of it, also among writes that were
//! never acknowledged; a write that asked to be durable is durable on the device when it is acknowledged, and
//! so is all that was acknowledged before a sync that was; and once the engine was told that a group
//! was not written, or not synced, nothing that it covered is acknowledged, and no group follows.

use super::content::Content;
use super::disk::Ino;
use super::model::Shown;
use std::collections::{BTreeMap, BTreeSet};

/// A record in a group.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    pub kind: u8,
    pub moved: bool,
    sequence: u64,
    expires: bool,
    key: &'a [u8],
    value: &'a [u8],
    /// Where in the file it lies.
    from: u64,
    to: u64,
}

pub const PUT: u8 = 1;
pub const DELETE: u8 = 2;
pub const MARK: u8 = 3;
pub const DROP: u8 = 5;
pub const SEAL: u8 = 6;

impl Record<'_> {
    /// Whether it is a seal that does not say what goes on.
    pub fn names_none(&self) -> bool {
        self.kind == SEAL && number::<8>(self.value, 24) == 0
    }
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> u64 {
    let mut number = [0; 8];
    number[..N].copy_from_slice(&bytes[at..at + N]);
    u64::from_le_bytes(number)
}

/// The record that lies there in a buffer which is written to `offset` of a file.
fn record<'a>(salt: &[u8], buf: &'a [u8], at: usize, offset: u64) -> Option<Record<'a>> {
    let head = buf.get(at..at + 24)?;
    let expires = head[23] & 1 != 0;
    let body = at + if expires { 32 } else { 24 };
    let from = offset + at as u64;
    let mut sum = crc32fast::Hasher::new();
    sum.update(salt);
    sum.update(&from.to_le_bytes());
    sum.update(&head[4..]);
    sum.update(buf.get(at + 24..body)?);
    if head == [0; 24] || u64::from(sum.finalize()) != number::<4>(head, 0) {
        return None;
    }
    let (value, key) = (number::<4>(head, 16), number::<2>(head, 20));
    let key = body + usize::try_from(key).unwrap();
    let end = key + usize::try_from(value).unwrap();
    Some(Record {
        kind: head[22],
        moved: head[23] & 2 != 0,
        sequence: number::<8>(head, 8),
        expires,
        key: buf.get(body..key)?,
        value: buf.get(key..end)?,
        from,
        to: (offset + end as u64).next_multiple_of(8),
    })
}

/// The records of a group. Its first block may begin within one that was written before.
pub fn records<'a>(salt: &'a [u8], buf: &'a [u8], offset: u64) -> impl Iterator<Item = Record<'a>> {
    let mut places = (0..buf.len().min(4096)).step_by(8);
    let first = places.find_map(|at| record(salt, buf, at, offset));
    std::iter::successors(first, move |before| {
        record(salt, buf, usize::try_from(before.to - offset).unwrap(), offset)
    })
}

/// A write that was asked of the disk.
#[derive(Clone, Debug)]
#[allow(clippy::struct_excessive_bools)]
struct Staged {
    key: Vec<u8>,
    /// The operation that it is the value of; 0 of a delete.
    op: u64,
    /// A delete, or it expires.
    may_be_gone: bool,
    ino: Ino,
    from: u64,
    to: u64,
    /// When it was written first, by the model's time.
    at: u64,
    acknowledged: bool,
    /// Where it was put into a journal: it may be acknowledged as long as nothing durable is asked for.
    promised: Option<(Ino, u64, u64)>,
    /// A write of it has failed.
    unwritten: bool,
    /// A sync that covered it has failed.
    unsynced: bool,
}

/// How far a file has come.
#[derive(Clone, Copy, Debug, Default)]
struct Grown {
    /// Where the last record ends that the disk was asked for.
    asked: u64,
    /// All before is written.
    written: u64,
}

type Place = (usize, u64);

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Order {
    /// By partition and sequence number: since the last opening that was looked at.
    staged: BTreeMap<Place, Staged>,
    by_op: BTreeMap<u64, Place>,
    /// Of files that were made, in this life or before: their headers may have been lost, or others'
    /// bytes may have come over them.
    salts: BTreeMap<Ino, Vec<u8>>,
    /// Files that got groups in this life.
    grown: BTreeMap<Ino, Grown>,
    /// Partitions of which a group was not written or not synced, in this life.
    pub failed: BTreeSet<usize>,
    /// What must not have been.
    pub broken: Option<String>,
}

impl Order {
    /// What a segment's records are summed with, which its header says.
    pub fn salt(&mut self, ino: Ino, (offset, bytes): (u64, &[u8]), content: &Content) -> Vec<u8> {
        if let (0, Some(salt)) = (offset, bytes.get(40..48)) {
            self.salts.insert(ino, salt.to_vec());
        }
        self.salts.get(&ino).cloned().unwrap_or_else(|| content.bytes(40, 8))
    }

    pub fn begin_life(&mut self) {
        self.grown.clear();
        self.failed.clear();
    }

    /// What was written so far is known to be there, or not.
    pub fn forget(&mut self) {
        self.staged.clear();
        self.by_op.clear();
    }

    /// Something was written to a file of a partition, so far, or failed to be: a group, if there are
    /// records in it, or if it goes on where one came short.
    pub fn note_group(
        &mut self,
        partition: usize,
        ino: Ino,
        (offset, group): (u64, &[Record<'_>]),
        at: u64,
        written: Option<u64>,
    ) {
        let before = self.grown.get(&ino).copied().unwrap_or_default();
        if group.is_empty() && offset >= before.asked {
            return;
        }
        if self.failed.contains(&partition) {
            self.broken = Some(format!("partition {partition} writes on after a failure"));
        }
        for record in group.iter().filter(|r| [PUT, DELETE].contains(&r.kind) && !r.moved) {
            let &Record { kind, sequence, from, to, expires, .. } = record;
            // Clients' values begin with a number; a test's own may not have one.
            let numbered = kind == PUT && record.value.len() >= 8;
            let op = if numbered { number::<8>(record.value, 0) } else { 0 };
            let place = (partition, sequence);
            let may_be_gone = kind == DELETE || expires;
            let staged = self.staged.entry(place).or_insert_with(|| Staged {
                key: record.key.to_vec(),
                op,
                may_be_gone,
                ino,
                from,
                to,
                at,
                acknowledged: false,
                promised: None,
                unwritten: false,
                unsynced: false,
            });
            // What was promised is in the log now.
            if staged.promised.is_some() {
                (staged.ino, staged.from, staged.to) = (ino, from, to);
            }
            // What has expired a merge writes again as a delete.
            staged.may_be_gone |= may_be_gone;
            if op > 0 {
                self.by_op.insert(op, place);
            }
        }
        let grown = self.grown.entry(ino).or_default();
        // A mark alone is one of an idle log: the next group goes over it.
        let last = group.last().filter(|_| group.iter().any(|record| record.kind != MARK));
        grown.asked = grown.asked.max(last.map_or(0, |record| record.to));
        match written {
            Some(written) => grown.written = grown.written.max(written.min(grown.asked)),
            None => {
                self.failed.insert(partition);
                let all = self.staged.values_mut().filter(|staged| staged.ino == ino);
                all.for_each(|staged| staged.unwritten |= staged.to > before.written);
            }
        }
    }

    /// A record was put into a journal.
    pub fn note_promise(&mut self, partition: usize, ino: Ino, record: &Record<'_>, at: u64) {
        let &Record { kind, sequence, from, to, .. } = record;
        let numbered = kind == PUT && record.value.len() >= 8;
        let op = if numbered { number::<8>(record.value, 0) } else { 0 };
        let place = (partition, sequence);
        let (key, may_be_gone) = (record.key.to_vec(), kind == DELETE);
        let (acknowledged, promised, unwritten, unsynced) =
            (false, Some((ino, from, to)), false, false);
        let staged = Staged {
            key,
            op,
            may_be_gone,
            ino,
            from,
            to,
            at,
            acknowledged,
            promised,
            unwritten,
            unsynced,
        };
        if self.staged.insert(place, staged).is_some() {
            self.broken = Some(format!("{place:?} was promised when it was written"));
        }
        if op > 0 {
            self.by_op.insert(op, place);
        }
    }

    /// A sync of a file has failed; what it covered is not durable yet.
    pub fn note_failed_sync(&mut self, partition: usize, ino: Ino, content: &Content) {
        if !self.grown.contains_key(&ino) {
            return;
        }
        self.failed.insert(partition);
        for staged in self.staged.values_mut().filter(|staged| staged.ino == ino) {
            staged.unsynced |= !content.is_durable(staged.from, staged.to);
        }
    }

    /// Since when writes may have been acknowledged that lie behind a place in a file: some were promised
    /// before they were written there.
    pub fn since(&self, ino: Ino, from: u64) -> Option<u64> {
        let behind = self.staged.values().filter(|staged| staged.ino == ino && staged.to > from);
        behind.map(|staged| staged.at).min()
    }

    /// Since when writes may have been acknowledged that lie in a part of a journal, and not in the log.
    pub fn promised_since(&self, ino: Ino, from: u64, to: u64) -> Option<u64> {
        let there = |staged: &&Staged| {
            let written = self.grown.get(&staged.ino).map_or(0, |grown| grown.written);
            let in_log = staged.ino != ino && staged.to <= written;
            staged.promised.is_some_and(|(i, f, t)| i == ino && f < to && t > from) && !in_log
        };
        self.staged.values().filter(there).map(|staged| staged.at).min()
    }

    /// Which put an acknowledgement is of.
    pub fn put(&self, op: u64) -> Vec<Place> {
        self.by_op.get(&op).copied().into_iter().collect()
    }

    /// Which deletes of a key one that began then may be.
    pub fn deletes(&self, partition: usize, key: &[u8], since: u64) -> Vec<Place> {
        let own = self.staged.range((partition, 0)..(partition + 1, 0));
        let deletes = own.filter(|(_, s)| s.op == 0 && s.at >= since && s.key == key);
        deletes.map(|(place, _)| *place).collect()
    }

    /// A write is acknowledged, which is one of these.
    pub fn acknowledge<'a>(
        &mut self,
        some: &[Place],
        sync: bool,
        content: impl Fn(Ino) -> Option<&'a Content>,
    ) -> Result<(), String> {
        let mut why = "was never written".to_owned();
        for place in some {
            let staged = self.staged.get_mut(place).expect("it was found there");
            match staged.judge(sync, &content) {
                Ok(()) => {
                    staged.acknowledged = true;
                    return Ok(());
                }
                Err(reason) => why = format!("{reason}: {place:?} {staged:?}"),
            }
        }
        Err(why)
    }

    /// What was acknowledged so far.
    pub fn acknowledged(&self) -> Vec<Place> {
        self.staged.iter().filter(|(_, s)| s.acknowledged).map(|(place, _)| *place).collect()
    }

    /// All of these are said to be durable.
    pub fn synced<'a>(
        &self,
        all: &[Place],
        content: impl Fn(Ino) -> Option<&'a Content>,
    ) -> Result<(), String> {
        for place in all {
            let staged = &self.staged[place];
            let judged = staged.judge(true, &content);
            judged.map_err(|why| format!("synced, but it {why}: {place:?} {staged:?}"))?;
        }
        Ok(())
    }

    /// What a partition shows is what a prefix of its writes left. Of some keys that is not known.
    pub fn check_prefix(
        &self,
        partition: usize,
        shown: &BTreeMap<Vec<u8>, Option<Shown>>,
    ) -> Result<(), String> {
        let own = || {
            let own = self.staged.range((partition, 0)..(partition + 1, 0));
            own.map(|(&(_, sequence), staged)| (sequence, staged))
        };
        let is_there = |&(sequence, staged): &(u64, &Staged)| {
            let shown = shown.get(&staged.key).copied().flatten();
            shown.is_some_and(|shown| shown.version == sequence)
        };
        let Some((last, survivor)) = own().rfind(is_there) else { return Ok(()) };
        for (key, shown) in shown {
            let of_key = || own().filter(|(_, staged)| staged.key == *key);
            let Some((least, staged)) = of_key().rfind(|(sequence, _)| *sequence <= last) else {
                continue;
            };
            let fine = match shown {
                Some(shown) => shown.version >= least,
                None => of_key().any(|(sequence, s)| sequence >= least && s.may_be_gone),
            };
            if !fine {
                return Err(format!(
                    "a hole: {shown:?} without {least} {staged:?}, though {last} {survivor:?} is there"
                ));
            }
        }
        Ok(())
    }
}

impl Staged {
    fn judge<'a>(
        &self,
        sync: bool,
        content: impl Fn(Ino) -> Option<&'a Content>,
    ) -> Result<(), String> {
        // A merge may have given the file back since.
        let content = content(self.ino).filter(|content| content.len >= self.to);
        let durable = || content.is_none_or(|content| content.is_durable(self.from, self.to));
        match self {
            Self { promised: Some(_), .. } if !sync => Ok(()),
            Self { unwritten: true, .. } => Err("was not written".to_owned()),
            Self { unsynced: true, .. } if sync => Err("was not synced".to_owned()),
            _ if sync && !durable() => Err("is not durable".to_owned()),
            _ => Ok(()),
        }
    }
}
