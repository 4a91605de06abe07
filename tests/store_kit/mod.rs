//! What the tests of operations, merges and crashes share besides `store_common`: stores with small
//! segments, what their files are, and whole stores compared with a map; and stores taken apart.

#![allow(dead_code, unreachable_pub)] // each test binary uses its part

pub mod sample;

use super::store_common::{Rng, run};
use futures::future::try_join_all;
use ringlog::{Builder, Durability, Entry, Error, MIN_SEGMENT_BYTES, PutOptions, Store};
use std::collections::BTreeMap;
use std::fs;
use std::future::Future;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, UNIX_EPOCH};

pub type Map = BTreeMap<Vec<u8>, Vec<u8>>;

/// Each of the three, the interval a short one.
pub const MODES: [Durability; 3] =
    [Durability::Sync, Durability::Interval(Duration::from_millis(3)), Durability::Buffered];

pub fn put() -> PutOptions {
    PutOptions::new()
}

/// What is put so has expired.
pub fn gone() -> PutOptions {
    put().expires_at(UNIX_EPOCH)
}

#[track_caller]
pub fn value(store: &Store, key: impl AsRef<[u8]>) -> Option<Vec<u8>> {
    run(store.get(key)).unwrap().map(Vec::from)
}

/// How many records were written.
#[track_caller]
pub fn records(store: &Store) -> u64 {
    run(store.stats()).unwrap().total().records
}

/// Segments that have nothing but this in them come between.
pub fn fill(store: &Store, n: u8) {
    for part in 0..12 {
        run(store.put("filler", vec![n ^ part; 12_000])).unwrap();
    }
}

/// A value that counts.
pub fn number(value: Option<&[u8]>) -> u64 {
    value.map_or(0, |value| u64::from_le_bytes(value.try_into().unwrap()))
}

/// A store with the smallest segments, so that there are many of them soon.
pub fn small(dir: &Path, partitions: usize) -> Builder {
    Store::builder(dir).partitions(partitions).segment_bytes(MIN_SEGMENT_BYTES).cache_bytes(0)
}

/// The files of all partitions with such an extension, in order.
pub fn files(dir: &Path, extension: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for folder in fs::read_dir(dir).unwrap() {
        let folder = folder.unwrap();
        if !folder.file_name().to_str().unwrap().starts_with('p') {
            continue;
        }
        files.extend(fs::read_dir(folder.path()).unwrap().map(|file| file.unwrap().path()));
    }
    files.retain(|file| file.extension().is_some_and(|found| found == extension));
    files.sort();
    files
}

/// The hints are but a cache: opening must come to the same without them.
pub fn remove_hints(dir: &Path) {
    for hint in files(dir, "hint") {
        fs::remove_file(hint).unwrap();
    }
}

/// The bytes on the disk that belong to files of the partitions.
pub fn allocated(dir: &Path) -> u64 {
    let mut blocks = 0;
    for folder in fs::read_dir(dir).unwrap() {
        let folder = folder.unwrap().path();
        if folder.is_dir() {
            for file in fs::read_dir(folder).unwrap() {
                // It may have been removed since it was listed.
                blocks += file.unwrap().metadata().map_or(0, |found| found.blocks());
            }
        }
    }
    blocks * 512
}

/// Where in which file of the partitions these bytes are. They must be in one place.
#[track_caller]
pub fn find(dir: &Path, wanted: &[u8]) -> (PathBuf, u64) {
    let mut found = Vec::new();
    for path in files(dir, "log") {
        let bytes = fs::read(&path).unwrap();
        let places = bytes.windows(wanted.len()).enumerate().filter(|(_, part)| *part == wanted);
        found.extend(places.map(|(at, _)| (path.clone(), at as u64)));
    }
    assert_eq!(found.len(), 1, "{found:?}");
    found.remove(0)
}

/// Changes one byte of a file.
pub fn flip(path: &Path, at: u64) {
    let file = fs::File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
    file.sync_all().unwrap();
}

/// All that a scan shows. Nothing is shown twice.
#[track_caller]
pub fn scan_all(store: &Store) -> BTreeMap<Vec<u8>, Entry> {
    let mut scan = store.scan();
    let mut all = BTreeMap::new();
    while let Some(entry) = run(scan.next()) {
        let entry = entry.unwrap();
        let before = all.insert(entry.key.to_vec(), entry);
        assert!(before.is_none(), "shown twice: {before:?}");
    }
    all
}

/// The store holds exactly what the map does, by every way of asking.
#[track_caller]
pub fn assert_is(store: &Store, map: &Map, what: &str) {
    let scanned: Map =
        scan_all(store).into_iter().map(|(key, entry)| (key, entry.value.to_vec())).collect();
    let name = |key: &Vec<u8>| String::from_utf8_lossy(&key[..key.len().min(40)]).into_owned();
    let lost: Vec<_> = map.keys().filter(|key| !scanned.contains_key(*key)).map(name).collect();
    let back: Vec<_> = scanned.keys().filter(|key| !map.contains_key(*key)).map(name).collect();
    assert!(lost.is_empty() && back.is_empty(), "{what}: lost {lost:?}, came back {back:?}");
    for (key, value) in map {
        assert!(scanned[key] == *value, "{what}: {} has another value", name(key));
    }
    let got = run(store.get_many(map.keys())).unwrap();
    for ((key, value), got) in map.iter().zip(got) {
        assert!(got.as_deref() == Some(&value[..]), "{what}: get of {}", name(key));
    }
    assert_eq!(run(store.len()).unwrap(), map.len() as u64, "{what}: len");
    let verified = run(store.verify()).unwrap();
    assert!(verified.is_sound(), "{what}: {:?}", verified.problems);
}

/// Asks until it is so. What is waited for comes by itself, in a time that nobody promises.
#[track_caller]
pub fn wait_until(what: &str, mut so: impl FnMut() -> bool) {
    let started = Instant::now();
    while !so() {
        assert!(started.elapsed() < Duration::from_secs(30), "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Runs each future on a thread of its own, and gives what they give, in their order.
pub fn on_threads<F>(futures: impl IntoIterator<Item = F>) -> Vec<F::Output>
where
    F: Future<Output: Send + 'static> + Send + 'static,
{
    let threads: Vec<_> =
        futures.into_iter().map(|future| std::thread::spawn(move || run(future))).collect();
    threads.into_iter().map(|thread| thread.join().unwrap()).collect()
}

/// Whether an answer is none because the store was closed.
pub fn is_closed<T>(answer: &Result<T, Error>) -> bool {
    matches!(answer, Err(Error::Closed))
}

pub fn cold(n: usize) -> (Vec<u8>, Vec<u8>) {
    let mut value = format!("value {n} ").into_bytes();
    value.resize(900 + n % 300, b'.');
    (format!("cold {n}").into_bytes(), value)
}

/// Puts entries that nobody touches; gives them.
pub fn put_cold(store: &Store, count: usize) -> Map {
    let map: Map = (0..count).map(cold).collect();
    run(try_join_all(map.iter().map(|(key, value)| store.put(key, value)))).unwrap();
    map
}

/// Tasks on threads of their own that overwrite, delete and compact, until this is dropped.
pub struct Churn {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Churn {
    pub fn new(store: &Store, compact: bool) -> Self {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let thread = |number: u64| {
            let (store, stop, done) = (store.clone(), Arc::clone(&stop), Arc::clone(&done));
            std::thread::spawn(move || {
                let mut rng = Rng(number);
                while !stop.load(Ordering::Relaxed) {
                    let step: Vec<_> = (0..8)
                        .map(|_| {
                            let key = format!("hot {}", rng.below(60));
                            let value = rng.bytes(500);
                            let (store, delete) = (store.clone(), rng.below(4) == 0);
                            async move {
                                if delete {
                                    store.delete(key).await.map(drop)
                                } else {
                                    store.put(key, value).await
                                }
                            }
                        })
                        .collect();
                    run(try_join_all(step)).unwrap();
                    if compact && number == 0 {
                        run(store.compact()).unwrap();
                    }
                    done.fetch_add(1, Ordering::Relaxed);
                }
            })
        };
        let threads = (0..2).map(thread).collect();
        Self { stop, done, threads }
    }

    /// Waits until so many more steps were done.
    pub fn go_on(&self, steps: u64) {
        let target = self.done.load(Ordering::Relaxed) + steps;
        wait_until("writers go on", || self.done.load(Ordering::Relaxed) >= target);
    }
}

impl Drop for Churn {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking(), "a writer failed");
        }
    }
}
