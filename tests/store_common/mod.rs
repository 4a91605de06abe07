//! What the tests of the store share: directories on a disk, a second reader of the log's format,
//! seeded numbers, watchdogs and children.

#![allow(dead_code, unreachable_pub)] // each test binary uses its part

use ringlog::rt::{self, Executor, ExecutorConfig};
use ringlog::{Error, Store};
use std::collections::BTreeMap;
use std::fs;
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{OnceLock, mpsc};
use std::time::Duration;

pub type Model = BTreeMap<Vec<u8>, Vec<u8>>;

/// The files of a store: paths within its directory, and bytes.
pub type Files = BTreeMap<String, Vec<u8>>;

/// What groups are padded to, and the bytes before the first.
pub const BLOCK: usize = 4096;
/// The bytes of a record before its key, if it has no expiry.
pub const RECORD_HEADER: usize = 24;
/// The bytes of a mark or a seal.
pub const MARK_LEN: usize = RECORD_HEADER + 32;

pub const PUT: u8 = 1;
pub const DELETE: u8 = 2;
pub const MARK: u8 = 3;
pub const LIVE: u8 = 4;
pub const DROP: u8 = 5;
pub const SEAL: u8 = 6;

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

/// A directory that is in memory where there is such a thing, and it is large (in containers it often
/// is not): for what is opened very often.
pub fn memory_dir() -> tempfile::TempDir {
    static LARGE: OnceLock<bool> = OnceLock::new();
    let large = *LARGE.get_or_init(|| free_bytes("/dev/shm").is_ok_and(|free| free >= 2 << 30));
    let in_memory = if large { tempfile::tempdir_in("/dev/shm").ok() } else { None };
    in_memory.unwrap_or_else(disk_dir)
}

fn free_bytes(dir: &str) -> io::Result<u64> {
    Executor::new(ExecutorConfig::default())?.block_on(async {
        let flags = libc::O_RDONLY | libc::O_DIRECTORY;
        let dir = rt::open(None, Path::new(dir), flags, 0).await?;
        Ok(rt::free_space(&dir).await?.free)
    })
}

/// Whether a file's name ends so.
pub fn is_a(name: &str, extension: &str) -> bool {
    Path::new(name).extension().is_some_and(|own| own == extension)
}

/// The name of a segment's file within its store.
pub fn segment_name(partition: usize, id: u64) -> String {
    format!("p{partition:04}/{id:010}.log")
}

pub fn segment_path(dir: &Path, partition: usize, id: u64) -> PathBuf {
    dir.join(segment_name(partition, id))
}

/// The first segment of a partition.
pub fn log_path(dir: &Path, partition: usize) -> PathBuf {
    segment_path(dir, partition, 1)
}

/// The segments that a partition has in the directory, in order.
pub fn segment_ids(dir: &Path, partition: usize) -> Vec<u64> {
    let names = fs::read_dir(dir.join(format!("p{partition:04}"))).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut ids: Vec<u64> =
        names.filter_map(|name| name.strip_suffix(".log")?.parse().ok()).collect();
    ids.sort_unstable();
    ids
}

fn add_files(dir: &Path, prefix: &str, files: &mut Files) {
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let name = format!("{prefix}{}", entry.file_name().into_string().unwrap());
        if entry.file_type().unwrap().is_dir() {
            add_files(&entry.path(), &format!("{name}/"), files);
        } else if name != "LOCK" {
            match fs::read(entry.path()) {
                Ok(bytes) => drop(files.insert(name, bytes)),
                // A spare that is being made beside the reader gets its name just now.
                Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::NotFound),
            }
        }
    }
}

/// Every file of a store with its bytes, but for the lock.
pub fn snapshot(dir: &Path) -> Files {
    let mut files = Files::new();
    add_files(dir, "", &mut files);
    files
}

/// Makes a directory hold these files, and no others.
pub fn restore(files: &Files, dir: &Path) {
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            fs::remove_dir_all(entry.path()).unwrap();
        } else {
            fs::remove_file(entry.path()).unwrap();
        }
    }
    for (name, bytes) in files {
        let path = dir.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
}

/// The same files without the blocks of zeroes that were prepared for what has not come.
pub fn trimmed(mut files: Files) -> Files {
    for (name, bytes) in &mut files {
        if is_a(name, "log") {
            let used = bytes.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
            bytes.truncate(used.next_multiple_of(BLOCK).max(BLOCK));
        }
    }
    files
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

/// A record as it lies in a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub start: usize,
    pub end: usize,
    pub kind: u8,
    pub flags: u8,
    pub sequence: u64,
    pub expiry: Option<u64>,
    pub key: Vec<u8>,
    pub value: Vec<u8>,
}

impl Entry {
    /// Of a mark or seal: up to where the segment was durable before it.
    pub fn durable(&self) -> Option<usize> {
        self.says(0)
    }

    /// Of a mark or seal: where the records before it ended.
    pub fn after(&self) -> Option<usize> {
        self.says(16)
    }

    fn says(&self, at: usize) -> Option<usize> {
        let is_mark = [MARK, SEAL].contains(&self.kind) && self.value.len() == 32;
        is_mark.then(|| number(&self.value[at..at + 8]))
    }

    /// The numbers that the value of a live or drop record is.
    pub fn ids(&self) -> Vec<u64> {
        self.value.chunks_exact(8).map(|id| number(id) as u64).collect()
    }

    pub fn is_change(&self) -> bool {
        [PUT, DELETE].contains(&self.kind)
    }
}

pub fn number(bytes: &[u8]) -> usize {
    bytes.iter().rev().fold(0, |n, &byte| n << 8 | usize::from(byte))
}

pub fn salt(log: &[u8]) -> &[u8] {
    &log[40..48]
}

pub fn header_crc(salt: &[u8], offset: usize, header: &[u8]) -> [u8; 4] {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(salt);
    hasher.update(&(offset as u64).to_le_bytes());
    hasher.update(&header[4..]);
    hasher.finalize().to_le_bytes()
}

/// The record that begins at `at`, if there is a whole one.
pub fn entry(log: &[u8], at: usize) -> Option<Entry> {
    let expires = log.get(at + 23)? & 1 != 0;
    let body = RECORD_HEADER + if expires { 8 } else { 0 };
    let header = log.get(at..at + body)?;
    if header[..4] != header_crc(salt(log), at, header) {
        return None;
    }
    let (key, value) = (number(&header[20..22]), number(&header[16..20]));
    let end = at + (body + key + value).next_multiple_of(8);
    let bytes = log.get(at + body..end)?;
    let (bytes, padding) = bytes.split_at(key + value);
    if header[4..8] != crc32fast::hash(bytes).to_le_bytes() || padding.iter().any(|&b| b != 0) {
        return None;
    }
    Some(Entry {
        start: at,
        end,
        kind: header[22],
        flags: header[23],
        sequence: number(&header[8..16]) as u64,
        expiry: expires.then(|| number(&header[24..32]) as u64),
        key: bytes[..key].to_vec(),
        value: bytes[key..].to_vec(),
    })
}

/// The records of a segment, up to its seal or the first byte that is not part of one.
pub fn entries(log: &[u8]) -> Vec<Entry> {
    let mut at = BLOCK;
    let mut entries: Vec<Entry> = Vec::new();
    while entries.last().is_none_or(|last| last.kind != SEAL) {
        if let Some(entry) = entry(log, at) {
            let end = entries.last().map_or(BLOCK, |last| last.end);
            if entry.after().is_none_or(|after| after != end) && (at != end || end == BLOCK) {
                break; // it does not follow upon what is before it
            }
            at = entry.end;
            entries.push(entry);
            continue;
        }
        let block = at.next_multiple_of(BLOCK);
        if block == at || log.get(at..block).is_none_or(|bytes| bytes.iter().any(|&b| b != 0)) {
            break;
        }
        at = block;
    }
    entries
}

/// Up to where the marks of a segment say that it was durable.
pub fn watermark(entries: &[Entry]) -> usize {
    entries.iter().filter_map(Entry::durable).max().unwrap_or(BLOCK)
}

/// The segments that a partition consists of, in order, with their records: what the last one with
/// a live record lists, less what is dropped in it.
pub fn history(files: &Files, partition: usize) -> BTreeMap<u64, Vec<Entry>> {
    try_history(files, partition).expect("a segment is missing")
}

/// None if a segment is missing, as while the store removes one.
fn try_history(files: &Files, partition: usize) -> Option<BTreeMap<u64, Vec<Entry>>> {
    let prefix = format!("p{partition:04}/");
    let logs = files.iter().filter_map(|(name, bytes)| {
        let id = name.strip_prefix(&prefix)?.strip_suffix(".log")?.parse().ok()?;
        Some((id, entries(bytes)))
    });
    let mut logs: BTreeMap<u64, Vec<Entry>> = logs.collect();
    let has_live = |entries: &[Entry]| entries.iter().any(|entry| entry.kind == LIVE);
    let Some((&last, records)) = logs.iter().rfind(|(_, entries)| has_live(entries)) else {
        return Some(BTreeMap::new());
    };
    let mut ids = vec![last];
    for record in records {
        match record.kind {
            LIVE => ids.extend(record.ids()),
            DROP => ids.retain(|id| *id != record.ids()[0]),
            _ => {}
        }
    }
    logs.retain(|id, _| ids.contains(id));
    (logs.len() == ids.len()).then_some(logs)
}

/// What these records make, in order.
pub fn replay<'a>(entries: impl IntoIterator<Item = &'a Entry>) -> Model {
    let mut model = Model::new();
    for entry in entries {
        match entry.kind {
            PUT => drop(model.insert(entry.key.clone(), entry.value.clone())),
            DELETE => drop(model.remove(&entry.key)),
            _ => {}
        }
    }
    model
}

/// What the store holds that these files are, without regard to expiries.
pub fn contents(files: &Files, partitions: usize) -> Model {
    let histories = (0..partitions).map(|partition| history(files, partition));
    histories.flat_map(|history| replay(history.values().flatten())).collect()
}

/// A valid record for the place `at` in a segment.
pub fn record(
    salt: &[u8],
    at: usize,
    kind: u8,
    sequence: u64,
    key: &[u8],
    value: &[u8],
) -> Vec<u8> {
    let mut bytes = vec![0; RECORD_HEADER];
    bytes[8..16].copy_from_slice(&sequence.to_le_bytes());
    bytes[16..20].copy_from_slice(&u32::try_from(value.len()).unwrap().to_le_bytes());
    bytes[20..22].copy_from_slice(&u16::try_from(key.len()).unwrap().to_le_bytes());
    bytes[22] = kind;
    let body = [key, value].concat();
    bytes[4..8].copy_from_slice(&crc32fast::hash(&body).to_le_bytes());
    let crc = header_crc(salt, at, &bytes);
    bytes[..4].copy_from_slice(&crc);
    bytes.extend(body);
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    bytes
}

/// A valid mark for the place `at` in a segment, behind records that end at `after`.
pub fn mark(salt: &[u8], at: usize, durable: usize, after: usize) -> Vec<u8> {
    let after = (after as u64).to_le_bytes();
    let value = [(durable as u64).to_le_bytes(), [0; 8], after, [0; 8]].concat();
    record(salt, at, MARK, 0, &[], &value)
}

/// What a hint says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HintFile {
    pub id: u64,
    pub seal: usize,
    pub sequence: u64,
    pub extant: Vec<u64>,
    /// Offset, length and kind (0 put, 1 put with expiry, 2 delete) of each change.
    pub places: Vec<(usize, usize, usize)>,
}

/// Reads a hint of the segment with these bytes.
pub fn hint(bytes: &[u8], log: &[u8]) -> Option<HintFile> {
    let (body, sum) = bytes.split_at(bytes.len().checked_sub(4)?);
    let ours = body.len() >= 88
        && sum == crc32fast::hash(body).to_le_bytes()
        && &body[..8] == b"ringlogH"
        && body[8..48] == log[8..48];
    let numbers: Vec<usize> = ours.then(|| body[48..80].chunks_exact(8).map(number).collect())?;
    let (ids, places) = body[88..].split_at(numbers[3] * 8);
    let place = |place: &[u8]| {
        let len = number(&place[20..24]);
        (number(&place[16..20]) * 8, (len & 0x3fff_ffff) * 8, len >> 30)
    };
    Some(HintFile {
        id: number(&body[32..40]) as u64,
        seal: numbers[0],
        sequence: numbers[1] as u64,
        extant: ids.chunks_exact(8).map(|id| number(id) as u64).collect(),
        places: places.chunks_exact(24).map(place).collect(),
    })
}

/// The files of an open store, as a kill would leave them now that it has come to rest: each
/// partition's last group has an idle mark behind it, the sealed segments have their hints, and the
/// spares are made. What was prepared and not used is cut off.
pub fn crash_image(dir: &Path, partitions: usize) -> Files {
    let _dog = Watchdog::new();
    loop {
        let files = snapshot(dir);
        if (0..partitions).all(|partition| is_at_rest(&files, partition)) {
            return trimmed(files);
        }
        std::thread::yield_now();
    }
}

fn is_at_rest(files: &Files, partition: usize) -> bool {
    let prefix = format!("p{partition:04}/");
    let own = || files.keys().filter(|name| name.starts_with(&prefix));
    let Some(history) = try_history(files, partition) else {
        return false;
    };
    // Besides what is written to, two segments are made ahead.
    let newer = |id| {
        let last = segment_name(partition, id);
        own().filter(move |name| is_a(name, "log") && **name > last).count()
    };
    let Some((&last, records)) = history.last_key_value() else {
        return newer(0) > 2;
    };
    let hinted = |(&id, records): (&u64, &Vec<Entry>)| {
        let name = segment_name(partition, id);
        let bytes = files.get(&name.replace(".log", ".hint"));
        records.last().is_none_or(|entry| entry.kind != SEAL)
            || bytes.is_some_and(|bytes| hint(bytes, &files[&name]).is_some())
    };
    let marked = records.last().is_some_and(|entry| entry.kind == MARK || entry.kind == SEAL);
    marked && history.iter().all(hinted) && !own().any(|name| is_a(name, "new")) && newer(last) > 1
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
