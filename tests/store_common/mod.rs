//! What the tests of the store share: directories on a disk, a second reader of the log's format,
//! seeded numbers, watchdogs and children.

#![allow(dead_code, unreachable_pub)] // each test binary uses its part

use ringlog::{Error, Store, rt};
use std::collections::BTreeMap;
use std::fs;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::time::Duration;

pub type Model = BTreeMap<Vec<u8>, Vec<u8>>;

/// The bytes before the first record.
pub const FILE_HEADER: usize = 64;
/// The bytes of a record before its key; a mark has no more.
pub const RECORD_HEADER: usize = 24;

pub const PUT: u8 = 1;
pub const DELETE: u8 = 2;
pub const MARK: u8 = 3;

/// A directory on the disk that the build is on. (Where temporary files go may be memory.)
pub fn disk_dir() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

pub fn run<F: Future>(future: F) -> F::Output {
    rt::block_on(future)
}

#[track_caller]
pub fn open(dir: &Path, partitions: usize) -> Store {
    Store::open(dir, partitions).unwrap()
}

/// The error of an opening that must fail.
#[track_caller]
pub fn refused(dir: &Path, partitions: usize) -> Error {
    match Store::open(dir, partitions) {
        Ok(_) => panic!("{} opened with {partitions} partitions", dir.display()),
        Err(error) => error,
    }
}

pub fn log_path(dir: &Path, partition: usize) -> PathBuf {
    dir.join(format!("p{partition:04}.log"))
}

/// Every file of a store with its bytes, but for the lock.
pub fn snapshot(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().into_string().unwrap(), entry.path()))
        .filter(|(name, _)| name != "LOCK")
        .map(|(name, path)| (name, fs::read(path).unwrap()))
        .collect()
}

/// Each key has its value in the model, or none.
#[track_caller]
pub fn assert_holds<'a>(
    store: &Store,
    model: &Model,
    keys: impl IntoIterator<Item = &'a Vec<u8>>,
    what: &str,
) {
    for key in keys {
        let found = run(store.get(key)).unwrap();
        let wanted = model.get(key);
        let name = String::from_utf8_lossy(key);
        assert_eq!(found.as_deref(), wanted.map(Vec::as_slice), "key {name}: {what}");
    }
    let len = u64::try_from(model.len()).unwrap();
    assert_eq!(run(store.stats()).unwrap().total().keys, len, "keys: {what}");
}

// ---- the format, read independently -----------------------------------------------------------

/// A record as it lies in a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub start: usize,
    pub end: usize,
    pub kind: u8,
    /// Of a mark: up to where the log was durable before it.
    pub sequence: usize,
    pub key: Vec<u8>,
    pub value: Vec<u8>,
}

fn number(bytes: &[u8]) -> usize {
    bytes.iter().rev().fold(0, |n, &byte| n << 8 | usize::from(byte))
}

pub fn salt(log: &[u8]) -> &[u8] {
    &log[32..40]
}

fn header_crc(salt: &[u8], offset: usize, header: &[u8]) -> [u8; 4] {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(salt);
    hasher.update(&(offset as u64).to_le_bytes());
    hasher.update(&header[4..RECORD_HEADER]);
    hasher.finalize().to_le_bytes()
}

fn entry(log: &[u8], at: usize) -> Option<Entry> {
    let header = log.get(at..at + RECORD_HEADER)?;
    if header[..4] != header_crc(salt(log), at, header) {
        return None;
    }
    let (key, value) = (number(&header[20..22]), number(&header[16..20]));
    let body = at + RECORD_HEADER;
    let end = (body + key + value).next_multiple_of(8);
    let bytes = log.get(body..end)?;
    if header[4..8] != crc32fast::hash(&bytes[..key + value]).to_le_bytes() {
        return None;
    }
    Some(Entry {
        start: at,
        end,
        kind: header[22],
        sequence: number(&header[8..16]),
        key: bytes[..key].to_vec(),
        value: bytes[key..key + value].to_vec(),
    })
}

/// The records of a log up to the first that does not validate.
pub fn entries(log: &[u8]) -> Vec<Entry> {
    let mut at = FILE_HEADER;
    let next = || {
        let entry = entry(log, at)?;
        at = entry.end;
        Some(entry)
    };
    std::iter::from_fn(next).collect()
}

/// Up to where the marks of a log say that it was durable.
pub fn watermark(entries: &[Entry]) -> usize {
    let marks = entries.iter().filter(|entry| entry.kind == MARK);
    marks.map(|mark| mark.sequence).max().unwrap_or(FILE_HEADER)
}

/// What a store holds whose log is cut at `len`: the records that are there whole.
pub fn replay(entries: &[Entry], len: usize) -> Model {
    let mut model = Model::new();
    for entry in entries.iter().take_while(|entry| entry.end <= len) {
        match entry.kind {
            PUT => drop(model.insert(entry.key.clone(), entry.value.clone())),
            DELETE => drop(model.remove(&entry.key)),
            kind => assert_eq!(kind, MARK),
        }
    }
    model
}

/// A valid mark for the place `at` in a log.
pub fn mark(salt: &[u8], at: usize, durable: usize) -> Vec<u8> {
    let mut bytes = vec![0; RECORD_HEADER];
    bytes[8..16].copy_from_slice(&(durable as u64).to_le_bytes());
    bytes[22] = MARK;
    let crc = header_crc(salt, at, &bytes);
    bytes[..4].copy_from_slice(&crc);
    bytes
}

// ---- machinery --------------------------------------------------------------------------------

/// A small generator of numbers that are the same in each run (`SplitMix64`).
#[derive(Clone, Debug)]
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % n as u64).unwrap()
    }

    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes: Vec<u8> =
            (0..len.div_ceil(8)).flat_map(|_| self.next().to_le_bytes()).collect();
        bytes.truncate(len);
        bytes
    }
}

/// Aborts the process if it is not dropped in time: a test that hangs would say nothing at all.
pub struct Watchdog(Option<mpsc::Sender<()>>);

impl Watchdog {
    pub fn new() -> Self {
        Self::of(Duration::from_secs(120))
    }

    pub fn of(limit: Duration) -> Self {
        let (alive, dropped) = mpsc::channel();
        let name = std::thread::current().name().unwrap_or("?").to_owned();
        std::thread::spawn(move || {
            if dropped.recv_timeout(limit) == Err(mpsc::RecvTimeoutError::Timeout) {
                eprintln!("watchdog: {name} hangs: not done after {limit:?}");
                std::process::abort();
            }
        });
        Self(Some(alive))
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.0.take();
    }
}

const CHILD: &str = "RINGLOG_STORE_CHILD";

/// What the parent told this process, if it is the child that runs `test`.
pub fn told(test: &str) -> Option<PathBuf> {
    let told = std::env::var(CHILD).ok()?;
    told.strip_prefix(&format!("{test}=")).map(PathBuf::from)
}

/// A command that runs one test of this binary in a process of its own, and tells it a path.
pub fn child(test: &str, path: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args([test, "--exact", "--nocapture", "--include-ignored", "--test-threads=1"])
        .env(CHILD, format!("{test}={}", path.to_str().unwrap()));
    command
}

/// Runs a child to its end, which must be a good one; returns what it wrote.
#[track_caller]
pub fn run_child(test: &str, path: &Path) -> String {
    let output = child(test, path).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success() && text.contains("1 passed"),
        "the child of {test}: {}\n{text}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    text
}
