//! The clients of a life: tasks that write and read, some of which go away before their answer.

use super::copies::Copied;
use super::faults::Fault;
use super::life::DIR;
use super::model::{Clock, Model, Shown, Write, is_value, value};
use super::rng::Rng;
use super::world::World;
use ringlog::{Bytes, Durability, Error, PutOptions, Store, rt};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::path::Path;
use std::pin::pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::{Duration, SystemTime};

/// What a life's clients share.
pub struct Scene {
    pub world: Rc<RefCell<World>>,
    pub model: Rc<RefCell<Model>>,
    pub store: Store,
    pub durability: Durability,
    /// One in so many futures is dropped; 0 for none.
    pub abandons: u64,
    /// The size of most values.
    pub bytes: u64,
    /// Errors may be answered.
    pub may_fail: bool,
    /// Its groups are followed: it is the store of the lives.
    pub watched: bool,
    /// Damage may be answered.
    pub may_be_corrupt: bool,
    pub operations: Rc<Cell<u64>>,
    /// The copy that is made in this life.
    pub copied: Rc<RefCell<Option<Copied>>>,
}

pub type Checked = Result<(), String>;

/// When a put is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    Always,
    Absent,
    Present,
    /// The operation that the key has, and its version.
    Version(u64, u64),
}

impl Scene {
    fn model(&self) -> std::cell::RefMut<'_, Model> {
        self.model.borrow_mut()
    }

    /// What a clock can have said since then, unless the wall clock was set: it may have gone ahead and
    /// back when nobody looked.
    pub fn clock(&self, since: (u64, u64)) -> Clock {
        let world = self.world.borrow();
        let from = if world.wall_sets == since.1 { since.0 } else { 0 };
        Clock { from, to: world.latest_millis() }
    }

    pub fn since(&self) -> (u64, u64) {
        (self.wall(), self.world.borrow().wall_sets)
    }

    pub fn wall(&self) -> u64 {
        self.world.borrow().wall_millis()
    }

    /// Whether damage to that file may be answered: a failed sync may have dropped what it had.
    fn is_damaged(&self, path: &Path) -> bool {
        // A backup's files lie as those that they are copies of, and may be hurt by themselves.
        let dropped = &self.world.borrow().dropped;
        let partition = partition_of_file(path);
        let copied = !path.starts_with(DIR) && dropped.contains(&None);
        self.may_be_corrupt || copied || (partition.is_some() && dropped.contains(&partition))
    }

    /// Whether a key may be in what is damaged.
    pub fn may_be_damaged(&self, key: usize) -> bool {
        let partition = Some(self.model().partition(key));
        self.may_be_corrupt || self.world.borrow().dropped.contains(&partition)
    }

    /// An error that was answered: may it be?
    pub fn judge(&self, error: &Error) -> Checked {
        let fine = match error {
            Error::Corrupt { path, .. } => self.is_damaged(path),
            Error::Io { .. } | Error::Poisoned { .. } => self.has_struck(),
            // Room that is known to be short is not asked for.
            Error::Full { .. } => self.may_fail && self.world.borrow().short,
            _ => false,
        };
        if fine { Ok(()) } else { Err(format!("an answer without a reason: {error:?}")) }
    }

    /// The same of a read, which goes on where writes fail.
    fn judge_read(&self, error: &Error) -> Checked {
        match error {
            Error::Full { .. } | Error::Poisoned { .. } => Err(format!("a read says {error:?}")),
            _ => self.judge(error),
        }
    }

    /// The same of what reads the log as a whole, which may lack what was promised before it failed.
    fn judge_whole(&self, error: &Error) -> Checked {
        match error {
            Error::Poisoned { .. } => self.judge(error),
            _ => self.judge_read(error),
        }
    }

    /// Whether a fault has struck in this life that errors may follow from.
    fn has_struck(&self) -> bool {
        self.may_fail && self.world.borrow().errors > 0
    }

    /// What became of a write that failed.
    fn write_failed(&self, key: usize, op: u64, error: &Error) -> Checked {
        let mut model = self.model();
        match error {
            Error::Full { .. } => model.refuse(key, op),
            Error::Poisoned { .. } => {
                let partition = model.partition(key);
                model.poison(partition);
            }
            _ => {}
        }
        drop(model);
        self.judge(error)
    }

    /// Awaits a reply, or goes away before it is there.
    pub async fn answer<T>(&self, rng: &mut Rng, reply: impl Future<Output = T>) -> Option<T> {
        self.operations.set(self.operations.get() + 1);
        let answer = self.answer_or_not(rng, reply).await;
        // What a process is told that was killed just before, nobody hears.
        answer.filter(|_| self.world.borrow().ended.is_none())
    }

    async fn answer_or_not<T>(&self, rng: &mut Rng, reply: impl Future<Output = T>) -> Option<T> {
        if self.abandons == 0 || !rng.one_in(self.abandons) {
            return Some(reply.await);
        }
        self.world.borrow_mut().faults.note(Fault::Abandoned);
        if rng.one_in(3) {
            let mut reply = pin!(reply);
            // One poll, and gone.
            return std::future::poll_fn(|cx| match reply.as_mut().poll(cx) {
                Poll::Ready(answer) => Poll::Ready(Some(answer)),
                Poll::Pending => Poll::Ready(None),
            })
            .await;
        }
        let limit = Duration::from_nanos(rng.below(600_000));
        rt::with_deadline(limit, reply).await.ok()
    }

    fn shown(&self, key: usize, entry: &Bytes, version: u64) -> Result<Shown, String> {
        let op = entry.get(..8).and_then(|op| op.try_into().ok()).map(u64::from_le_bytes);
        let op = op.ok_or_else(|| format!("key {key} has {} bytes", entry.len()))?;
        if !is_value(op, entry) {
            return Err(format!("key {key} has a value that is not whole: {op}"));
        }
        let model = self.model();
        let tried = model.keys[key].tried.get(&op);
        if tried != Some(&entry.len()) {
            return Err(format!("key {key} has {} bytes of {op}: {tried:?}", entry.len()));
        }
        Ok(Shown { op, version })
    }

    /// Reads a key: what it shows, and from when on.
    pub async fn get(&self, key: usize) -> Result<Option<Option<Shown>>, String> {
        let name = self.model().keys[key].name.clone();
        match self.store.get_entry(&name).await {
            Ok(None) => Ok(Some(None)),
            Ok(Some(e)) => self.shown(key, &e.value, e.version).map(|shown| Some(Some(shown))),
            Err(error) => self.judge_read(&error).map(|()| None),
        }
    }

    pub async fn read(&self, rng: &mut Rng, key: usize) -> Checked {
        let (started, since) = (self.model().tick(), self.since());
        let name = self.model().keys[key].name.clone();
        // The cache, which has no versions, is asked by the one, and not by the other.
        let answer = if rng.one_in(2) {
            let answer = self.answer(rng, self.store.get(&name)).await;
            answer.map(|got| got.map(|value| value.map(|value| (value, 0))))
        } else {
            let answer = self.answer(rng, self.store.get_entry(&name)).await;
            answer.map(|got| got.map(|entry| entry.map(|entry| (entry.value, entry.version))))
        };
        let Some(answer) = answer else {
            return Ok(());
        };
        let shown = match answer {
            Ok(None) => None,
            Ok(Some((value, version))) => Some(self.shown(key, &value, version)?),
            Err(error) => return self.judge_read(&error),
        };
        let clock = self.clock(since);
        self.model().read(key, started, shown, clock)
    }

    fn len(&self, rng: &mut Rng) -> usize {
        let most = match rng.below(40) {
            0 => 100_000,
            1..10 => self.bytes * 4,
            _ => self.bytes,
        };
        8 + rng.index(usize::try_from(most).unwrap())
    }

    /// Most writes have that of the store.
    fn durability(&self, rng: &mut Rng) -> Durability {
        match rng.below(4) {
            0 => rng.pick(&[
                Durability::Sync,
                Durability::Buffered,
                Durability::Interval(Duration::from_millis(5)),
            ]),
            _ => self.durability,
        }
    }

    async fn put(&self, rng: &mut Rng, key: usize) -> Checked {
        let durability = self.durability(rng);
        let mut expiry = 0;
        if self.model().keys[key].expires && rng.one_in(2) {
            expiry = (self.wall() + rng.below(400)).saturating_sub(50).max(1);
        }
        let condition = match rng.below(8) {
            0 => Condition::Absent,
            1 => Condition::Present,
            2 => {
                let model = self.model();
                let known = model.keys[key].writes.iter().rev().find(|w| w.version > 0);
                known.map_or(Condition::Always, |w| Condition::Version(w.op, w.version))
            }
            _ => Condition::Always,
        };
        let len = self.len(rng);
        self.put_so(rng, key, len, durability, expiry, condition).await
    }

    /// A put in all its ways. `expiry` is 0 for none.
    pub async fn put_so(
        &self,
        rng: &mut Rng,
        key: usize,
        len: usize,
        durability: Durability,
        expiry: u64,
        condition: Condition,
    ) -> Checked {
        let mut options = PutOptions::new().durability(durability);
        if expiry > 0 {
            options = options.expires_at(SystemTime::UNIX_EPOCH + Duration::from_millis(expiry));
        }
        let mut from = None;
        match condition {
            Condition::Always => {}
            Condition::Absent => options = options.if_absent(),
            Condition::Present => options = options.if_present(),
            Condition::Version(op, version) => {
                options = options.if_version(version);
                from = Some(op);
            }
        }
        let (name, op) = {
            let mut model = self.model();
            let op = model.try_write(key, Some(len), durability == Durability::Sync, expiry);
            (model.keys[key].name.clone(), op)
        };
        let since = self.since();
        let reply = self.store.put_with(&name, value(op, len), options);
        let answer = self.answer(rng, reply).await;
        if let Some(Ok(done)) = &answer {
            self.check_condition(key, op, condition, done.is_some(), self.clock(since))?;
        }
        match answer {
            None => Ok(()),
            Some(Ok(Some(version))) => {
                self.check_put(op, durability)?;
                let mut model = self.model();
                model.acknowledge(key, op, version)?;
                from.map_or(Ok(()), |from| model.derive(key, from, op))
            }
            Some(Ok(None)) if condition != Condition::Always => {
                self.model().refuse(key, op);
                Ok(())
            }
            Some(Ok(None)) => Err(format!("{op} had no condition, and did not hold")),
            Some(Err(error)) => self.write_failed(key, op, &error),
        }
    }

    /// A condition held, or did not: can that be?
    fn check_condition(
        &self,
        key: usize,
        op: u64,
        condition: Condition,
        held: bool,
        clock: Clock,
    ) -> Checked {
        let mut model = self.model();
        let (value, nothing) = model.possible_before(key, op, clock);
        let (held_so, failed_so) = match condition {
            Condition::Always => return Ok(()),
            Condition::Absent => (nothing, value),
            Condition::Present => (value, nothing),
            Condition::Version(from, _) => model.can_have_found(key, op, from, clock),
        };
        if if held { held_so } else { failed_so } {
            return Ok(());
        }
        let held = if held { "held" } else { "did not hold" };
        Err(format!("{op}: {condition:?} {held}: {:?}", model.keys[key]))
    }

    /// Some keys by one request, some of them perhaps twice. If it fails, nobody knows of which.
    async fn put_many(&self, rng: &mut Rng) -> Checked {
        let durability = self.durability(rng);
        let keys = self.model().keys.len();
        let mut puts = Vec::new();
        // Sometimes so large that they are staged in several steps.
        let large = rng.one_in(8);
        for _ in 0..2 + rng.index(if large { 12 } else { 6 }) {
            let len = if large { 90_000 } else { self.len(rng) };
            let key = rng.index(keys);
            let mut model = self.model();
            let op = model.try_write(key, Some(len), durability == Durability::Sync, 0);
            puts.push((key, op, model.keys[key].name.clone(), value(op, len)));
        }
        let entries = puts.iter().map(|(_, _, name, value)| (name, value));
        let reply = self.store.with_durability(durability).put_many(entries);
        match self.answer(rng, reply).await {
            None => Ok(()),
            Some(Ok(())) => {
                let mut last = BTreeMap::new();
                for (key, op, ..) in puts {
                    for (partition, number) in self.world.borrow().order.put(op) {
                        if last.insert(partition, number).is_some_and(|before| before > number) {
                            return Err(format!("{op} came before one that it was given after"));
                        }
                    }
                    self.check_put(op, durability)?;
                    self.model().acknowledge(key, op, 0)?;
                }
                Ok(())
            }
            Some(Err(error)) => {
                if let Error::Poisoned { path, .. } = &error {
                    let partition = partition_of_file(&path.join("any")).ok_or("of which?")?;
                    self.model().poison(partition);
                }
                self.judge(&error)
            }
        }
    }

    pub async fn update(&self, rng: &mut Rng, key: usize) -> Checked {
        let (len, durability) = (self.len(rng), self.durability(rng));
        let (name, op) = {
            let mut model = self.model();
            let op = model.try_write(key, Some(len), durability == Durability::Sync, 0);
            (model.keys[key].name.clone(), op)
        };
        let (old, since) = (Arc::new(Mutex::new(None)), self.since());
        let saw = Arc::clone(&old);
        let reply = self.store.with_durability(durability).update(&name, move |old| {
            let was = old.map(|old| u64::from_le_bytes(old[..8].try_into().unwrap()));
            *saw.lock().unwrap() = Some(was);
            Some(value(op, len))
        });
        match self.answer(rng, reply).await {
            None => Ok(()),
            Some(Ok(_)) => {
                self.check_put(op, durability)?;
                let (clock, mut model) = (self.clock(since), self.model());
                let from = old.lock().unwrap().take();
                let from = from.ok_or_else(|| format!("update {op} was made of nothing"))?;
                let fine = match from {
                    Some(from) => model.can_have_found(key, op, from, clock).0,
                    None => model.possible_before(key, op, clock).1,
                };
                if !fine {
                    return Err(format!("update {op} found {from:?}: {:?}", model.keys[key]));
                }
                model.acknowledge(key, op, 0)?;
                from.map_or(Ok(()), |from| model.derive(key, from, op))
            }
            Some(Err(error)) => self.write_failed(key, op, &error),
        }
    }

    pub async fn delete(&self, rng: &mut Rng, key: usize) -> Checked {
        let (since, durability) = (self.since(), self.durability(rng));
        let (name, op) = {
            let mut model = self.model();
            let op = model.try_write(key, None, durability == Durability::Sync, 0);
            (model.keys[key].name.clone(), op)
        };
        let reply = self.store.with_durability(durability).delete(&name);
        let answer = self.answer(rng, reply).await;
        let clock = self.clock(since);
        match answer {
            None => Ok(()),
            Some(Ok(was)) => {
                let mut model = self.model();
                let (value, nothing) = model.possible_before(key, op, clock);
                if (was && !value) || (!was && !nothing) {
                    return Err(format!("a delete of key {key} says {was}: {:?}", model.keys[key]));
                }
                if was {
                    self.check_delete(model.partition(key), &name, op, durability)?;
                    return model.acknowledge(key, op, 0);
                }
                model.refuse(key, op);
                Ok(())
            }
            Some(Err(error)) => self.write_failed(key, op, &error),
        }
    }

    /// All that a scan shows was there, nothing twice, and what is certain it shows.
    pub async fn scan(&self) -> Checked {
        let (started, since) = (self.model().tick(), self.since());
        let mut scan = self.store.scan();
        let mut shown = Vec::new();
        while let Some(entry) = scan.next().await {
            match entry {
                Ok(entry) => shown.push(entry),
                Err(error) => return self.judge_whole(&error),
            }
        }
        let clock = self.clock(since);
        let keys = self.model().keys.len();
        for key in 0..keys {
            let model = self.model();
            let name = &model.keys[key].name;
            let entries: Vec<_> = shown.iter().filter(|entry| entry.key == name).collect();
            drop(model);
            if entries.len() > 1 {
                let key = &self.model().keys[key];
                return Err(format!("a scan shows {} entries of {key:?}", entries.len()));
            }
            let quiet = |w: &Write| w.failed || w.end < started;
            let quiet = self.model().keys[key].writes.iter().all(quiet);
            let certain = self.model().certain(key, clock);
            if let (true, Some(certain)) = (quiet, certain)
                && entries.len() != certain
            {
                let key = &self.model().keys[key];
                return Err(format!("a scan shows {} entries of {key:?}", entries.len()));
            }
            for entry in entries {
                let shown = self.shown(key, &entry.value, entry.version)?;
                self.model().read(key, started, Some(shown), clock)?;
            }
        }
        Ok(())
    }

    pub async fn sync(&self, rng: &mut Rng) -> Checked {
        let (start, covered) = self.begin_sync();
        match self.answer(rng, self.store.sync()).await {
            None => Ok(()),
            Some(Ok(())) => self.synced(start, &covered),
            Some(Err(error)) => self.judge(&error),
        }
    }

    /// One operation, of any kind.
    pub async fn operate(&self, rng: &mut Rng) -> Checked {
        let keys = self.model().keys.len();
        // Some keys are written all the time.
        let key = if rng.one_in(2) { rng.index(keys) } else { rng.index(keys.min(6)) };
        match rng.below(200) {
            0..90 => self.put(rng, key).await,
            90..105 if !self.model().keys[key].expires => self.update(rng, key).await,
            105..130 => self.delete(rng, key).await,
            130..133 => self.sync(rng).await,
            133 => self.compact(rng).await,
            134..136 => self.answer(rng, self.scan()).await.unwrap_or(Ok(())),
            136 => self.answer(rng, self.verify()).await.unwrap_or(Ok(())),
            137 if rng.one_in(4) => self.back_up(rng).await,
            138..141 => self.put_many(rng).await,
            141..146 => {
                let pause = Duration::from_micros(rng.below(20_000));
                drop(rt::timeout(pause).await);
                Ok(())
            }
            _ => self.read(rng, key).await,
        }
    }

    pub async fn compact(&self, rng: &mut Rng) -> Checked {
        match self.answer(rng, self.store.compact()).await {
            Some(Err(error)) => self.judge(&error),
            _ => Ok(()),
        }
    }

    pub async fn verify(&self) -> Checked {
        match self.store.verify().await {
            Ok(report) if report.is_sound() => Ok(()),
            Ok(report) => {
                let fine = |problem: &Error| match problem {
                    // A hint that could not be written, nor be removed.
                    Error::Corrupt { path, .. } if self.has_struck() && is_hint(path) => true,
                    Error::Corrupt { path, .. } => self.is_damaged(path),
                    _ => self.may_be_corrupt,
                };
                match report.problems.iter().find(|problem| !fine(problem)) {
                    Some(problem) => Err(format!("verify found {problem:?}")),
                    None => Ok(()),
                }
            }
            Err(error) => self.judge_read(&error),
        }
    }

    /// Reads all keys at once.
    async fn read_all(&self) -> Checked {
        let (started, since) = (self.model().tick(), self.since());
        let names: Vec<_> = self.model().keys.iter().map(|key| key.name.clone()).collect();
        let values = match self.store.get_many(&names).await {
            Ok(values) => values,
            Err(error) => return self.judge_read(&error),
        };
        self.operations.set(self.operations.get() + names.len() as u64);
        let clock = self.clock(since);
        for (key, value) in values.into_iter().enumerate() {
            let shown = value.map(|value| self.shown(key, &value, 0)).transpose()?;
            self.model().read(key, started, shown, clock)?;
        }
        Ok(())
    }

    /// What every key shows, read again, is what the scan and the count say.
    pub async fn check_whole(&self) -> Checked {
        self.read_all().await?;
        self.scan().await?;
        let len = match self.store.len().await {
            Ok(len) => len,
            Err(error) => return self.judge_whole(&error),
        };
        let clock = self.clock(self.since());
        let model = self.model();
        let (mut least, mut most) = (0, 0);
        for key in 0..model.keys.len() {
            match model.certain(key, clock) {
                Some(certain) if !model.keys[key].expires => {
                    least += certain as u64;
                    most += certain as u64;
                }
                _ => most += 1,
            }
        }
        if !(least..=most).contains(&len) {
            return Err(format!("there are {len} keys, not {least} to {most}"));
        }
        Ok(())
    }
}

/// The partition that a file is in, of the store or of a copy.
fn partition_of_file(path: &Path) -> Option<usize> {
    path.parent()?.file_name()?.to_str()?.strip_prefix('p')?.parse().ok()
}

fn is_hint(path: &Path) -> bool {
    path.extension().is_some_and(|kind| kind == "hint")
}
