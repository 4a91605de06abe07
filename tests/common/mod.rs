//! What the tests of the runtime share: watchdogs, children, seeded randomness, witness buffers.

#![allow(dead_code, unreachable_pub)] // each test binary uses its part

use ringlog::rt::{Executor, ExecutorConfig, Fd, IoBuf, IoBufMut, Runtime, RuntimeConfig};
use std::alloc::{Layout, alloc_zeroed};
use std::fs::File;
use std::future::Future;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// Aborts the process with a message if it is not dropped in time: a test that hangs would
/// otherwise say nothing at all.
pub struct Watchdog(Option<mpsc::Sender<()>>);

impl Watchdog {
    pub fn new() -> Self {
        Self::of(Duration::from_secs(60))
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

/// Runs `body` in a process of its own, for what is global to one: limits, descriptors, filters,
/// signals, death. `test` is the name of the calling test, which is run again in the child.
pub fn in_child(test: &str, body: impl FnOnce()) {
    const MARK: &str = "RINGLOG_TEST_CHILD";
    if std::env::var_os(MARK).is_some_and(|name| name == test) {
        return body();
    }
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture", "--test-threads=1"])
        .env(MARK, test)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "the child of {test}: {}\n{text}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
}

/// The open descriptors of this process and what they are, but for the one that lists them.
pub fn descriptors() -> Vec<(i32, String)> {
    let mut all: Vec<(i32, String)> = std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let number = entry.file_name().to_str()?.parse().ok()?;
            let target = std::fs::read_link(entry.path()).ok()?;
            Some((number, target.to_string_lossy().into_owned()))
        })
        .filter(|(_, target)| !target.starts_with("/proc/"))
        .collect();
    all.sort();
    all
}

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

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

pub fn executor() -> Executor {
    Executor::new(ExecutorConfig::default()).unwrap()
}

pub fn executor_with(entries: u32, uring_flags: Option<u32>) -> Executor {
    Executor::new(ExecutorConfig { entries, uring_flags, ..ExecutorConfig::default() }).unwrap()
}

pub fn runtime(num_threads: usize) -> Runtime {
    Runtime::start(RuntimeConfig { num_threads, ..RuntimeConfig::default() }).unwrap()
}

/// A pipe: the reading end for the ring, the writing end for the test.
pub fn pipe() -> (Fd, File) {
    let (reader, writer) = std::io::pipe().unwrap();
    (Fd::from(OwnedFd::from(reader)), File::from(OwnedFd::from(writer)))
}

/// A nameless file on the disk that the build is on. (Where temporary files go may be memory,
/// which knows no direct I/O.)
pub fn disk_file() -> File {
    tempfile::tempfile_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

pub fn disk_dir() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// Polls once, with a waker that does nothing.
pub fn poll_once<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
    Pin::new(future).poll(&mut Context::from_waker(Waker::noop()))
}

/// Gives the ring and the other tasks turns until it is so. (A watchdog ends it if it never is.)
pub async fn until(mut so: impl FnMut() -> bool) {
    while !so() {
        ringlog::rt::yield_now().await;
    }
}

/// The `errno` of a result that must be an error.
#[track_caller]
pub fn errno<T: std::fmt::Debug>(result: std::io::Result<T>) -> i32 {
    let error = result.unwrap_err();
    error.raw_os_error().unwrap_or_else(|| panic!("not from the kernel: {error:?}"))
}

/// Memory that outlives every buffer on it, so that a late write is seen and harms nobody. It is
/// aligned for direct I/O and never given back.
#[derive(Clone, Copy, Debug)]
pub struct Arena {
    start: *mut u8,
    len: usize,
}

// SAFETY: a plain range of memory; the tests say who uses it when.
unsafe impl Send for Arena {}
// SAFETY: as above.
unsafe impl Sync for Arena {}

impl Arena {
    pub fn new(len: usize) -> Self {
        let layout = Layout::from_size_align(len, 4096).unwrap();
        // SAFETY: the size is not zero.
        let start = unsafe { alloc_zeroed(layout) };
        assert!(!start.is_null());
        Self { start, len }
    }

    pub fn fill(&self, byte: u8) {
        // SAFETY: the whole arena, which is never given back.
        unsafe { self.start.write_bytes(byte, self.len) };
    }

    pub fn is_all(&self, byte: u8) -> bool {
        // Arenas are whole pages, so whole words.
        let words = self.start.cast::<[u8; 8]>();
        (0..self.len / 8).all(|i| {
            // SAFETY: within the arena. Volatile, since the kernel may be a party too.
            let word = unsafe { words.wrapping_add(i).read_volatile() };
            word == [byte; 8]
        })
    }
}

/// What a [`Witness`] leaves in its memory when it is dropped.
pub const POISON: u8 = 0xdd;

/// Counts the witnesses dropped.
#[derive(Clone, Debug, Default)]
pub struct Drops(Arc<AtomicUsize>);

impl Drops {
    pub fn get(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }

    pub fn witness(&self, arena: Arena) -> Witness {
        Witness { arena, drops: self.clone() }
    }
}

/// A buffer whose drop is seen: it poisons its memory, which stays there to be looked at.
#[derive(Debug)]
pub struct Witness {
    pub arena: Arena,
    drops: Drops,
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.arena.fill(POISON);
        self.drops.0.fetch_add(1, Ordering::SeqCst);
    }
}

// SAFETY: the arena never moves, is initialised, and is used through this one buffer.
unsafe impl IoBuf for Witness {
    fn ptr(&self) -> *const u8 {
        self.arena.start
    }
    fn len(&self) -> usize {
        self.arena.len
    }
}

// SAFETY: as above.
unsafe impl IoBufMut for Witness {
    fn ptr_mut(&mut self) -> *mut u8 {
        self.arena.start
    }
    fn room(&self) -> usize {
        self.arena.len
    }
    unsafe fn filled(&mut self, _start: usize, _end: usize) {}
}
