//! What the store may answer: for each key the writes that were tried, and what is known of them.
//!
//! A write that was acknowledged, or seen by a read, has happened; one that failed for good has not;
//! of any other nobody knows. A read may show a write unless that write is known to have been
//! replaced before the read began. After a power cut, acknowledged writes that nothing made durable
//! may be gone, but only as the end of what their partition did. The first read after the start of
//! a life fixes what is there.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;

/// Not known to have happened.
const OPEN: u64 = u64::MAX;

/// A write, or a delete.
#[derive(Clone, Debug)]
pub struct Write {
    pub op: u64,
    /// None for a delete.
    pub len: Option<usize>,
    pub start: u64,
    pub end: u64,
    /// 0 if not known.
    pub version: u64,
    /// It asked to be durable when it is acknowledged.
    pub sync: bool,
    /// It has not happened, and never will.
    pub failed: bool,
    /// A power cut may have taken it.
    pub loose: bool,
    /// Milliseconds since 1970, or 0.
    pub expiry: u64,
    /// The life that it was tried in.
    pub life: u64,
}

/// What is known of a key.
#[derive(Clone, Debug)]
pub struct Key {
    pub name: Vec<u8>,
    pub partition: usize,
    pub expires: bool,
    pub writes: Vec<Write>,
    /// Writes that were computed from others, by these.
    next: BTreeMap<u64, u64>,
    /// The lengths of all values that were ever tried, and not refused.
    pub tried: BTreeMap<u64, usize>,
}

/// The bounds of what a clock that never goes back can have said during a read.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    pub from: u64,
    pub to: u64,
}

/// What a read showed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shown {
    pub op: u64,
    pub version: u64,
}

/// A write that a partition lost or kept, by when it happened.
#[derive(Clone, Debug)]
struct Fate {
    partition: usize,
    key: usize,
    write: Write,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Model {
    pub keys: Vec<Key>,
    /// Its time, which the world knows too.
    moment: Rc<Cell<u64>>,
    /// When a key was fixed last: of what was before, only that is known.
    fixed: u64,
    life: u64,
    /// All that a partition acknowledged before is durable.
    durable: Vec<u64>,
    /// Versions that a partition is past, and those that it has told in this life.
    past: Vec<u64>,
    told: Vec<u64>,
    poisoned: Vec<u64>,
    lost: Vec<Fate>,
    kept: Vec<Fate>,
}

/// Words of a value, from the second on: of every other operation they are hard to compress.
fn words(op: u64) -> impl Iterator<Item = u64> {
    let (start, step) = if op.is_multiple_of(2) {
        (op.wrapping_mul(0xbf58_476d_1ce4_e5b9) ^ op >> 7, 0x9e37_79b9_7f4a_7c15)
    } else {
        (op.wrapping_mul(0x0101_0101_0101_0101), 0)
    };
    std::iter::successors(Some(start), move |word| Some(word.wrapping_add(step)))
}

/// The value of an operation.
pub fn value(op: u64, len: usize) -> Vec<u8> {
    let mut value = Vec::with_capacity(len + 8);
    value.extend_from_slice(&op.to_le_bytes());
    for word in words(op).take(len.saturating_sub(8).div_ceil(8)) {
        value.extend_from_slice(&word.to_le_bytes());
    }
    value.truncate(len);
    value
}

/// Whether it is the value of an operation, whole.
pub fn is_value(op: u64, value: &[u8]) -> bool {
    let (all, rest) = value[8..].as_chunks::<8>();
    let last = words(op).nth(all.len()).unwrap_or(0).to_le_bytes();
    value[..8] == op.to_le_bytes()
        && all.iter().zip(words(op)).all(|(bytes, word)| *bytes == word.to_le_bytes())
        && last.starts_with(rest)
}

/// There was nothing, for whatever reason.
fn none(start: u64, end: u64, sync: bool) -> Write {
    let (len, version, failed, life) = (None, 0, false, 0);
    Write { op: 0, len, start, end, version, sync, failed, loose: false, expiry: 0, life }
}

impl Key {
    /// Whether a write is known to have been replaced before `before`, going by what is certain.
    fn is_replaced(&self, write: &Write, before: u64) -> bool {
        self.writes.iter().any(|other| {
            let later =
                write.end < other.start || (write.version > 0 && other.version > write.version);
            other.end < before && !other.loose && !other.failed && later
        })
    }

    fn candidates(&self, started: u64, ended: u64) -> impl Iterator<Item = usize> + '_ {
        (0..self.writes.len()).filter(move |&index| {
            let write = &self.writes[index];
            !write.failed && write.start < ended && !self.is_replaced(write, started)
        })
    }

    /// Which write a read showed, or why it cannot have. `None` for what cannot be told.
    fn judge(
        &self,
        started: u64,
        ended: u64,
        shown: Option<Shown>,
        clock: Clock,
    ) -> Result<Option<usize>, String> {
        match shown {
            Some(shown) => {
                let found = self.writes.iter().position(|w| w.op == shown.op && w.len.is_some());
                let Some(found) = found else { return Err("a value nobody wrote".to_owned()) };
                let write = &self.writes[found];
                if write.failed {
                    return Err("a write that failed is there".to_owned());
                }
                if write.version > 0 && shown.version > 0 && write.version != shown.version {
                    return Err(format!("its version was {}", write.version));
                }
                let write = Write { version: write.version.max(shown.version), ..write.clone() };
                if write.start >= ended || self.is_replaced(&write, started) {
                    return Err("it had been replaced, or is from the future".to_owned());
                }
                if write.expiry > 0 && write.expiry <= clock.from {
                    return Err(format!(
                        "it expired at {}, read from {}",
                        write.expiry, clock.from
                    ));
                }
                Ok(Some(found))
            }
            None => {
                let mut all = self.candidates(started, ended);
                let mut expired = false;
                let mut nothing = Vec::new();
                for index in all.by_ref() {
                    let write = &self.writes[index];
                    if write.len.is_none() {
                        nothing.push(index);
                    }
                    expired |= write.expiry > 0 && write.expiry <= clock.to;
                }
                match (nothing.as_slice(), expired) {
                    ([], false) => Err("nothing was there".to_owned()),
                    ([one], false) => Ok(Some(*one)),
                    _ => Ok(None),
                }
            }
        }
    }
}

impl Model {
    pub fn new(keys: usize) -> Self {
        let key = |index: usize| Key {
            name: match index {
                0 => Vec::new(),
                1 => vec![b'k'; 300],
                _ => format!("key-{index}").into_bytes(),
            },
            partition: 0,
            expires: index % 5 == 4,
            writes: vec![none(0, 0, true)],
            next: BTreeMap::new(),
            tried: BTreeMap::new(),
        };
        let keys = (0..keys).map(key).collect();
        let (durable, past, told, poisoned) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let (lost, kept, moment) = (Vec::new(), Vec::new(), Rc::new(Cell::new(1)));
        Self { keys, moment, fixed: 0, life: 0, durable, past, told, poisoned, lost, kept }
    }

    /// Its time.
    pub fn moment(&self) -> &Rc<Cell<u64>> {
        &self.moment
    }

    /// A new moment.
    pub fn tick(&mut self) -> u64 {
        self.moment.set(self.moment.get() + 1);
        self.moment.get()
    }

    /// Of a copy, which may be older than what has been told.
    pub fn forget_told(&mut self) {
        self.told.clear();
    }

    /// The store is open: which partition each key is in is known now.
    pub fn begin_life(&mut self, partitions: usize, partition_of: impl Fn(&[u8]) -> usize) {
        self.life += 1;
        self.durable.resize(partitions, 0);
        self.past.resize(partitions, 0);
        self.told.resize(partitions, 0);
        // None comes again, whether the write that had it is still there or not.
        for (past, told) in self.past.iter_mut().zip(&self.told) {
            *past = (*past).max(*told);
        }
        self.poisoned = vec![OPEN; partitions];
        self.assign(partition_of);
    }

    /// Whether that is what a key may show now.
    pub fn agrees(&self, key: usize, shown: Option<Shown>, clock: Clock) -> bool {
        self.keys[key].judge(OPEN, OPEN, shown, clock).is_ok()
    }

    /// Which partition each key is in.
    pub fn assign(&mut self, partition_of: impl Fn(&[u8]) -> usize) {
        for key in &mut self.keys {
            key.partition = partition_of(&key.name);
        }
    }

    pub fn partition(&self, key: usize) -> usize {
        self.keys[key].partition
    }

    /// A write is tried. Its number is also its value's.
    pub fn try_write(&mut self, key: usize, len: Option<usize>, sync: bool, expiry: u64) -> u64 {
        let op = self.tick();
        let (start, end, version) = (op, OPEN, 0);
        let life = self.life;
        let write =
            Write { op, len, start, end, version, sync, failed: false, loose: false, expiry, life };
        self.keys[key].writes.push(write);
        self.keys[key].tried.extend(len.map(|len| (op, len)));
        op
    }

    pub fn write(&mut self, key: usize, op: u64) -> &mut Write {
        let writes = &mut self.keys[key].writes;
        writes.iter_mut().find(|write| write.op == op).expect("it was tried")
    }

    /// It has not happened, and never will.
    pub fn refuse(&mut self, key: usize, op: u64) {
        self.write(key, op).failed = true;
        self.keys[key].tried.remove(&op);
    }

    /// It was acknowledged. `version` is 0 if it was not told.
    pub fn acknowledge(&mut self, key: usize, op: u64, version: u64) -> Result<(), String> {
        let now = self.tick();
        let partition = self.partition(key);
        let write = self.write(key, op);
        (write.end, write.version) = (write.end.min(now), version.max(write.version));
        let (start, sync) = (write.start, write.sync);
        if start > self.poisoned[partition] {
            return Err(format!("{op} was acknowledged after the partition was poisoned"));
        }
        if sync {
            self.durable[partition] = self.durable[partition].max(start);
        }
        if version > 0 && version <= self.past[partition] {
            return Err(format!("version {version} is not new: {}", self.past[partition]));
        }
        self.told[partition] = self.told[partition].max(version);
        Ok(())
    }

    /// A partition, or all, made durable what it had acknowledged before `start`.
    pub fn synced(&mut self, start: u64) {
        self.durable.iter_mut().for_each(|durable| *durable = (*durable).max(start));
    }

    pub fn poison(&mut self, partition: usize) {
        let now = self.tick();
        self.poisoned[partition] = self.poisoned[partition].min(now);
    }

    pub fn is_poisoned(&self) -> bool {
        self.poisoned.iter().any(|at| *at != OPEN)
    }

    /// What was written came from what another write had written: there is one such at most.
    pub fn derive(&mut self, key: usize, from: u64, op: u64) -> Result<(), String> {
        match self.keys[key].next.insert(from, op) {
            // A crash may have taken the other one back.
            Some(other) if self.keys[key].writes.iter().any(|w| w.op == other && w.loose) => Ok(()),
            Some(other) => Err(format!("{op} and {other} both replaced {from}")),
            None => Ok(()),
        }
    }

    /// A read began at `started` and showed this just now.
    pub fn read(
        &mut self,
        key: usize,
        started: u64,
        shown: Option<Shown>,
        clock: Clock,
    ) -> Result<(), String> {
        let now = self.tick();
        let judged = self.keys[key].judge(started, now, shown, clock);
        let index = judged.map_err(|why| self.explain(key, shown, clock, &why))?;
        match index {
            Some(index) => {
                let write = &mut self.keys[key].writes[index];
                write.end = write.end.min(now);
                write.version = write.version.max(shown.map_or(0, |shown| shown.version));
            }
            // Whatever it was, from now on it is gone.
            None => {
                let there = &self.keys[key];
                let sync = there.candidates(started, now).all(|i| there.writes[i].sync);
                self.keys[key].writes.push(none(started, now, sync));
            }
        }
        Ok(())
    }

    /// Whether there may be a value, and whether there may be none.
    pub fn possible(&self, key: usize, started: u64, clock: Clock) -> (bool, bool) {
        let key = &self.keys[key];
        let is_value = |i: usize| {
            let w = &key.writes[i];
            w.len.is_some() && (w.expiry == 0 || w.expiry > clock.from)
        };
        let value = key.candidates(started, OPEN).any(is_value);
        (value, key.judge(started, OPEN, None, clock).is_ok())
    }

    /// The same for a write that looked at what was there before it.
    pub fn possible_before(&mut self, key: usize, op: u64, clock: Clock) -> (bool, bool) {
        self.without(key, op, |model| model.possible(key, op, clock))
    }

    /// Whether a write can have found that one, and whether it can have found something else.
    pub fn can_have_found(&mut self, key: usize, op: u64, from: u64, clock: Clock) -> (bool, bool) {
        self.without(key, op, |model| {
            let there = &model.keys[key];
            let shown = Shown { op: from, version: 0 };
            let found = there.judge(op, OPEN, Some(shown), clock).is_ok();
            let is_other = |i: usize| {
                let w = &there.writes[i];
                w.op != from || (w.expiry > 0 && w.expiry <= clock.to)
            };
            (found, there.candidates(op, OPEN).any(is_other))
        })
    }

    fn without<T>(&mut self, key: usize, op: u64, look: impl FnOnce(&Self) -> T) -> T {
        let failed = std::mem::replace(&mut self.write(key, op).failed, true);
        let seen = look(self);
        self.write(key, op).failed = failed;
        seen
    }

    /// The power was cut, for those partitions: what nothing made durable may be gone.
    pub fn cut(&mut self, of: impl Fn(usize) -> bool) {
        for key in self.keys.iter_mut().filter(|key| of(key.partition)) {
            let durable = self.durable.get(key.partition).copied().unwrap_or(0);
            for write in key.writes.iter_mut().filter(|write| write.end != OPEN) {
                write.loose |= !write.sync && write.end >= durable;
            }
        }
    }

    /// What a partition acknowledged after that may be gone, and nothing proves it. Tells whether
    /// that is known so far back.
    pub fn loosen(&mut self, partition: usize, at: u64) -> bool {
        for key in self.keys.iter_mut().filter(|key| key.partition == partition) {
            for write in key.writes.iter_mut().filter(|w| w.end != OPEN && w.end > at) {
                write.loose = true;
            }
        }
        at >= self.fixed
    }

    /// What a copy shows that was made between two moments: for each key what was there then, and
    /// nothing without what was acknowledged before it.
    pub fn check_cut(
        &self,
        shown: &[(Option<Shown>, Clock)],
        (from, to): (u64, u64),
    ) -> Result<(), String> {
        let started = |(key, shown): (&Key, &(Option<Shown>, Clock))| {
            let shown = shown.0?;
            key.writes.iter().find(|write| write.op == shown.op).map(|write| write.start)
        };
        let last = self.keys.iter().zip(shown).filter_map(started).max().unwrap_or(0);
        for (key, (there, (shown, clock))) in self.keys.iter().zip(shown).enumerate() {
            let judged = there.judge(from.max(last), to, *shown, *clock);
            judged.map_err(|why| self.explain(key, *shown, *clock, &why))?;
        }
        Ok(())
    }

    /// A partition that could not write may have said that something had expired, and not kept it.
    pub fn doubt_expiries(&mut self) {
        let keys = self.keys.iter_mut().filter(|key| key.expires);
        for write in keys.flat_map(|key| &mut key.writes) {
            write.loose |= write.op == 0;
        }
    }

    /// The first read of a life: it fixes what is there. With `doubt` an expiry may not be kept.
    pub fn fix(
        &mut self,
        key: usize,
        shown: Option<Shown>,
        clock: Clock,
        doubt: bool,
    ) -> Result<(), String> {
        let now = self.tick();
        let judged = self.keys[key].judge(now, now, shown, clock);
        let index = judged.map_err(|why| self.explain(key, shown, clock, &why))?;
        let partition = self.partition(key);
        if doubt && index.is_none() && self.keys[key].expires {
            self.keys[key].writes.push(none(now, now, false));
            return Ok(());
        }
        let there = &self.keys[key];
        let mut fixed = index.map_or_else(|| none(now, now, true), |i| there.writes[i].clone());
        fixed.version = fixed.version.max(shown.map_or(0, |shown| shown.version));
        if fixed.op > 0 || shown.is_some() {
            let gone = |write: &&Write| {
                let later =
                    fixed.end < write.start || (fixed.version > 0 && write.version > fixed.version);
                write.op > 0 && write.loose && !write.failed && write.end != OPEN && later
            };
            for write in there.writes.iter().filter(gone) {
                self.lost.push(Fate { partition, key, write: write.clone() });
            }
            self.kept.push(Fate { partition, key, write: fixed.clone() });
        }
        self.past[partition] = self.past[partition].max(fixed.version);
        self.fixed = self.fixed.max(now);
        (fixed.end, fixed.loose, fixed.sync) = (fixed.end.min(now), false, true);
        fixed.start = fixed.start.min(fixed.end);
        let there = &mut self.keys[key];
        (there.writes, there.next) = (vec![fixed], BTreeMap::new());
        Ok(())
    }

    /// All keys are fixed. What a partition lost came after all that it kept.
    pub fn all_fixed(&mut self) -> Result<(), String> {
        self.fixed = self.tick();
        let (lost, kept) = (std::mem::take(&mut self.lost), std::mem::take(&mut self.kept));
        for lost in &lost {
            let beside = |kept: &&Fate| {
                kept.partition == lost.partition && kept.write.life == lost.write.life
            };
            for kept in kept.iter().filter(beside) {
                let (old, new) = (&lost.write, &kept.write);
                let by_version = old.version > 0 && old.version < new.version;
                if by_version || old.end < new.start {
                    return Err(format!("a hole: lost {lost:?}, kept {kept:?}"));
                }
            }
        }
        Ok(())
    }

    /// How many entries a key certainly has, if nothing was tried since and that can be told.
    pub fn certain(&self, key: usize, clock: Clock) -> Option<usize> {
        let key = &self.keys[key];
        let mut all = key.candidates(OPEN, OPEN);
        let write = &key.writes[all.next()?];
        let alone = all.next().is_none() && write.end != OPEN && !write.loose;
        let expires = write.expiry > 0 && write.expiry <= clock.to;
        (alone && !expires).then_some(usize::from(write.len.is_some()))
    }

    fn explain(&self, key: usize, shown: Option<Shown>, clock: Clock, why: &str) -> String {
        let all = &self.keys[key].writes;
        let last = &all[all.len().saturating_sub(12)..];
        let writes: Vec<_> = last.iter().map(|write| format!("\n    {write:?}")).collect();
        let writes = writes.concat();
        format!(
            "key {key} shows {shown:?} at {} ({clock:?}): {why}; tried:{writes}",
            self.moment.get()
        )
    }
}
