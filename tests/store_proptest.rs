//! Lists of operations with crashes among them, on a real ring, against a map; lists that fail are
//! made short.
//!
//! A crash is that of a process: its executor is not run any more, so what the kernel has goes on, and
//! nothing else does. The directory is copied as it is then, and the copy is opened.

#![allow(missing_docs, clippy::unwrap_used)]

mod store_common;

use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed, TestRunner};
use ringlog::rt::{self, Executor, ExecutorConfig};
use ringlog::{Durability, Error, MIN_SEGMENT_BYTES, PutOptions, Reply, Store};
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::path::PathBuf;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;
use store_common::{Watchdog, memory_dir, restore, snapshot};

const KEYS: u8 = 8;

/// What is done to a key.
#[derive(Clone, Debug)]
enum Change {
    Put {
        len: usize,
    },
    /// With an expiry that no test sees.
    PutLasting {
        len: usize,
    },
    /// With one that has passed.
    PutExpired,
    PutIfAbsent {
        len: usize,
    },
    PutIfPresent {
        len: usize,
    },
    /// Swaps the version that is there, or tries one that is not.
    PutIfVersion {
        right: bool,
    },
    /// Appends a byte; a value of some length is taken away instead.
    Update,
    Delete,
}

#[derive(Clone, Debug)]
enum Op {
    Change(u8, Change),
    Get(u8),
    Sync,
    Compact,
    Check,
    /// Closed, and opened again.
    Reopen,
    /// Killed while these are under way, after so many turns of the loop, and the copy opened.
    Kill {
        under_way: Vec<(u8, Change)>,
        turns: usize,
    },
}

fn len() -> impl Strategy<Value = usize> {
    prop_oneof![8 => 0usize..300, 2 => 3_000usize..6_000, 1 => 20_000usize..70_000]
}

fn simple_change() -> impl Strategy<Value = Change> {
    prop_oneof![
        4 => len().prop_map(|len| Change::Put { len }),
        1 => len().prop_map(|len| Change::PutLasting { len }),
        1 => Just(Change::PutExpired),
        2 => Just(Change::Delete),
    ]
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        4 => simple_change(),
        1 => len().prop_map(|len| Change::PutIfAbsent { len }),
        1 => len().prop_map(|len| Change::PutIfPresent { len }),
        1 => any::<bool>().prop_map(|right| Change::PutIfVersion { right }),
        1 => Just(Change::Update),
    ]
}

fn operation() -> impl Strategy<Value = Op> {
    let under_way = prop::collection::vec((0..KEYS, simple_change()), 0..12);
    prop_oneof![
        20 => (0..KEYS, change()).prop_map(|(key, change)| Op::Change(key, change)),
        2 => (0..KEYS).prop_map(Op::Get),
        1 => Just(Op::Sync),
        1 => Just(Op::Compact),
        1 => Just(Op::Check),
        1 => Just(Op::Reopen),
        2 => (under_way, 0usize..6).prop_map(|(under_way, turns)| Op::Kill { under_way, turns }),
    ]
}

#[derive(Clone, Debug)]
struct Script {
    partitions: usize,
    durability: Durability,
    cache_bytes: usize,
    operations: Vec<Op>,
}

fn script() -> impl Strategy<Value = Script> {
    let durability = prop_oneof![
        Just(Durability::Sync),
        Just(Durability::Buffered),
        Just(Durability::Interval(Duration::from_millis(1))),
    ];
    let cache_bytes = prop_oneof![Just(0), Just(1 << 20)];
    (1usize..3, durability, cache_bytes, prop::collection::vec(operation(), 1..60)).prop_map(
        |(partitions, durability, cache_bytes, operations)| Script {
            partitions,
            durability,
            cache_bytes,
            operations,
        },
    )
}

type Model = BTreeMap<u8, Vec<u8>>;

/// A change that was begun.
type Sent = Pin<Box<dyn Future<Output = Result<(), Error>>>>;

/// A value that no other write has.
fn value(count: u32, len: usize) -> Vec<u8> {
    let mut value = count.to_le_bytes().to_vec();
    value.resize(4 + len, count.to_le_bytes()[0]);
    value
}

/// A far time.
fn lasting() -> PutOptions {
    PutOptions::new().ttl(Duration::from_secs(1 << 30))
}

fn expired() -> PutOptions {
    PutOptions::new().expires_at(std::time::UNIX_EPOCH + Duration::from_secs(1))
}

/// What `update` does.
fn updated(old: Option<&[u8]>) -> Option<Vec<u8>> {
    let mut new = old.unwrap_or_default().to_vec();
    new.push(7);
    (!new.len().is_multiple_of(5)).then_some(new)
}

/// A store that is played with, and what it must hold.
struct Play {
    script: Script,
    folders: tempfile::TempDir,
    lives: u32,
    writes: u32,
    executor: Executor,
    store: Option<Store>,
    model: Model,
}

impl Play {
    fn new(script: Script) -> Self {
        let executor = Executor::new(ExecutorConfig::default()).unwrap();
        let (folders, model) = (memory_dir(), Model::new());
        let mut play = Self { script, folders, lives: 0, writes: 0, executor, store: None, model };
        std::fs::create_dir(play.dir()).unwrap();
        play.open();
        play
    }

    /// Where the store of this life is.
    fn dir(&self) -> PathBuf {
        self.folders.path().join(format!("life {}", self.lives))
    }

    fn open(&mut self) {
        let builder = Store::builder(self.dir()).partitions(self.script.partitions);
        let builder = builder.durability(self.script.durability).segment_bytes(MIN_SEGMENT_BYTES);
        let builder = builder.cache_bytes(self.script.cache_bytes);
        let threads = [self.executor.handle()];
        self.store = Some(self.executor.block_on(builder.open_on(&threads)).unwrap());
    }

    fn store(&self) -> &Store {
        self.store.as_ref().unwrap()
    }

    fn run<T>(&self, reply: Reply<T>) -> T {
        self.executor.block_on(reply).unwrap()
    }

    fn next_value(&mut self, len: usize) -> Vec<u8> {
        self.writes += 1;
        value(self.writes, len)
    }

    fn set(&mut self, key: u8, value: Option<Vec<u8>>) {
        match value {
            Some(value) => drop(self.model.insert(key, value)),
            None => drop(self.model.remove(&key)),
        }
    }

    /// A change, not yet sent, and what it leaves of the key if it happens.
    fn begin(&mut self, key: u8, change: &Change) -> (Sent, Option<Vec<u8>>) {
        let key = [key];
        let (options, len) = match *change {
            Change::Put { len } => (PutOptions::new(), len),
            Change::PutLasting { len } => (lasting(), len),
            Change::PutExpired => (expired(), 5),
            _ => {
                let delete = self.store().delete(key);
                return (Box::pin(async move { delete.await.map(drop) }), None);
            }
        };
        let value = self.next_value(len);
        let put = self.store().put_with(key, &value, options);
        let left = (!matches!(change, Change::PutExpired)).then_some(value);
        (Box::pin(async move { put.await.map(drop) }), left)
    }

    fn change(&mut self, key: u8, change: &Change) {
        let there = self.model.get(&key).cloned();
        match *change {
            Change::PutIfAbsent { len } => {
                let options = PutOptions::new().if_absent();
                self.put_if(key, len, options, there.is_none());
            }
            Change::PutIfPresent { len } => {
                let options = PutOptions::new().if_present();
                self.put_if(key, len, options, there.is_some());
            }
            Change::PutIfVersion { right } => {
                let entry = self.run(self.store().get_entry([key]));
                assert_eq!(entry.as_ref().map(|entry| entry.value.to_vec()), there);
                let version = entry.map_or(1, |entry| entry.version + u64::from(!right));
                let holds = right && there.is_some();
                self.put_if(key, 10, PutOptions::new().if_version(version), holds);
            }
            Change::Update => {
                let new = self.run(self.store().update([key], updated));
                let wanted = updated(there.as_deref());
                assert_eq!(new.as_deref(), wanted.as_deref(), "update of {key}");
                self.set(key, wanted);
            }
            Change::Delete => {
                let was_there = self.run(self.store().delete([key]));
                assert_eq!(was_there, there.is_some(), "delete of {key}");
                self.set(key, None);
            }
            Change::Put { .. } | Change::PutLasting { .. } | Change::PutExpired => {
                let (put, left) = self.begin(key, change);
                self.executor.block_on(put).unwrap();
                self.set(key, left);
            }
        }
    }

    fn put_if(&mut self, key: u8, len: usize, options: PutOptions, holds: bool) {
        let value = self.next_value(len);
        let put = self.run(self.store().put_with([key], &value, options));
        assert_eq!(put.is_some(), holds, "{options:?} of {key}");
        if holds {
            self.set(key, Some(value));
        }
    }

    /// The process dies while these are under way.
    fn kill(&mut self, under_way: &[(u8, Change)], turns: usize) {
        let mut sent: Vec<_> = under_way
            .iter()
            .map(|(key, change)| {
                let (reply, left) = self.begin(*key, change);
                (*key, change, left, Some(reply))
            })
            .collect();
        self.executor.block_on(async {
            for _ in 0..=turns {
                poll_fn(|cx| {
                    for (.., reply) in &mut sent {
                        if let Some(Poll::Ready(done)) = reply.as_mut().map(|r| r.as_mut().poll(cx))
                        {
                            done.unwrap();
                            *reply = None;
                        }
                    }
                    Poll::Ready(())
                })
                .await;
                rt::yield_now().await;
            }
        });
        // From here on only the kernel acts.
        let image = snapshot(&self.dir());
        // Of each key: what was acknowledged last, or anything that came after it. A delete may have
        // to read first, and come after a put that was sent after it.
        let mut possible: BTreeMap<u8, Vec<Option<Vec<u8>>>> =
            (0..KEYS).map(|key| (key, vec![self.model.get(&key).cloned()])).collect();
        let mut deleted = [false; KEYS as usize];
        for (key, change, left, reply) in &sent {
            let possible = possible.get_mut(key).unwrap();
            let deleted = &mut deleted[usize::from(*key)];
            if reply.is_none() {
                possible.clear();
                possible.extend(deleted.then_some(None));
            }
            possible.push(left.clone());
            *deleted |= matches!(change, Change::Delete);
        }
        drop(sent);
        self.store = None;
        self.executor = Executor::new(ExecutorConfig::default()).unwrap();
        std::fs::remove_dir_all(self.dir()).unwrap();
        self.lives += 1;
        std::fs::create_dir(self.dir()).unwrap();
        restore(&image, &self.dir());
        self.open();
        for (key, possible) in possible {
            let found = self.run(self.store().get([key])).map(Vec::from);
            let short = |value: &Option<Vec<u8>>| value.as_ref().map(|v| v[..4].to_vec());
            assert!(
                possible.contains(&found),
                "key {key} has {:?}, of {:?}",
                short(&found),
                possible.iter().map(short).collect::<Vec<_>>()
            );
            self.set(key, found);
        }
    }

    fn check(&self) {
        for key in 0..KEYS {
            let found = self.run(self.store().get([key]));
            let wanted = self.model.get(&key);
            assert!(found.as_deref() == wanted.map(Vec::as_slice), "get of {key}");
        }
        let mut scanned = Model::new();
        self.executor.block_on(async {
            let mut scan = self.store().scan();
            while let Some(entry) = scan.next().await {
                let entry = entry.unwrap();
                assert!(scanned.insert(entry.key[0], entry.value.to_vec()).is_none());
            }
        });
        assert!(scanned == self.model, "a scan shows something else");
        let report = self.run(self.store().verify());
        assert!(report.is_sound(), "{:?}", report.problems);
    }

    fn step(&mut self, operation: &Op) {
        match operation {
            Op::Change(key, change) => self.change(*key, change),
            Op::Get(key) => {
                let found = self.run(self.store().get([*key]));
                assert_eq!(found.as_deref(), self.model.get(key).map(Vec::as_slice), "{key}");
            }
            Op::Sync => self.run(self.store().sync()),
            Op::Compact => self.run(self.store().compact()),
            Op::Check => self.check(),
            Op::Reopen => {
                let store = self.store.take().unwrap();
                self.run(store.close());
                self.open();
            }
            Op::Kill { under_way, turns } => {
                self.kill(under_way, *turns);
                self.check();
            }
        }
    }

    fn end(mut self) {
        self.check();
        let store = self.store.take().unwrap();
        self.run(store.close());
        self.open();
        self.check();
        assert!(self.store().open_report().is_clean());
    }
}

fn hold(cases: u32, seed: u64) {
    let mut runner = TestRunner::new(Config {
        cases,
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(seed),
        ..Config::default()
    });
    let outcome = runner.run(&script(), |script| {
        let operations = script.operations.clone();
        let mut play = Play::new(script);
        for operation in &operations {
            play.step(operation);
        }
        play.end();
        Ok(())
    });
    if let Err(error) = outcome {
        panic!("{error}");
    }
}

#[test]
fn whatever_is_done_and_whenever_it_is_killed_what_was_acknowledged_is_there() {
    let _dog = Watchdog::new();
    hold(48, 1);
}

#[test]
#[ignore = "minutes: cargo test --release --test store_proptest -- --ignored"]
fn thousands_of_lists_of_operations_hold_too() {
    for seed in 2..12 {
        hold(500, seed);
    }
}
