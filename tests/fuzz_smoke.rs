//! The fuzz targets of `fuzz/` on a stable toolchain, for a few seconds: files of real stores, and
//! what chance makes of them, the same in each run. Nothing panics, nothing takes memory without
//! bound, nothing goes on for ever; and what the targets themselves ask for.
//!
//! Alone in its process, since it counts what all threads allocate.

#![allow(missing_docs, clippy::unwrap_used)]

mod fuzz_targets;
mod store_common;

use futures::future::try_join_all;
use fuzz_targets::files::{MOST_BLOCKS, STORE, write_partition};
use fuzz_targets::{TARGETS, Target, closed_store, record};
use ringlog::{Durability, MIN_SEGMENT_BYTES, PutOptions, Store};
use std::alloc::{GlobalAlloc, Layout, System};
use std::fmt::Write;
use std::panic;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use store_common::{Files, Rng, crash_image, is_a, memory_dir, run, snapshot, trimmed};

// ---- memory -----------------------------------------------------------------------------------

/// The system's allocator, and how many bytes live, and lived at the most.
struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

/// What a keydir asks for with its first key, and touches as it grows. It depends on no input.
const SLAB: usize = 32 << 20;

fn more(bytes: usize) {
    let bytes = if bytes == SLAB { 0 } else { bytes };
    let live = LIVE.fetch_add(bytes, Ordering::Relaxed) + bytes;
    PEAK.fetch_max(live, Ordering::Relaxed);
}

fn less(bytes: usize) {
    LIVE.fetch_sub(if bytes == SLAB { 0 } else { bytes }, Ordering::Relaxed);
}

// SAFETY: passes everything on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        more(layout.size());
        // SAFETY: as the caller promised.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        less(layout.size());
        // SAFETY: as the caller promised.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, len: usize) -> *mut u8 {
        more(len);
        less(layout.size());
        // SAFETY: as the caller promised.
        unsafe { System.realloc(memory, layout, len) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// For each byte of the input: what it stands for in a file, in a buffer, in the harness's own books.
const BYTES_A_BYTE: usize = 64;
/// And for any input: the most blocks that its logs can have, a few times; chunks of reads, tables.
const BYTES: usize = 8 * MOST_BLOCKS * 4096 + (4 << 20);

// ---- one input --------------------------------------------------------------------------------

/// The counts are of all threads, so one target runs at a time.
static ONE: Mutex<()> = Mutex::new(());
static PANICS: AtomicUsize = AtomicUsize::new(0);

fn one_at_a_time() -> MutexGuard<'static, ()> {
    static HOOK: Mutex<bool> = Mutex::new(false);
    let mut hooked = HOOK.lock().unwrap_or_else(PoisonError::into_inner);
    if !std::mem::replace(&mut *hooked, true) {
        // Also those that a task's end would swallow.
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            PANICS.fetch_add(1, Ordering::Relaxed);
            before(info);
        }));
    }
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

/// The input that runs now, for whoever wants to know what hangs or panics.
#[derive(Default)]
struct Running {
    input: Mutex<Option<(Instant, usize, Vec<u8>)>>,
    ended: AtomicBool,
}

impl Running {
    fn tell(&self, target: &str, what: &str) {
        let input = self.input.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, number, bytes)) = &*input {
            eprintln!("{target} {what} on input {number}: {}", hex(bytes));
        }
    }

    /// A loop without an end would say nothing at all.
    fn watch(&self, target: &str) {
        while !self.ended.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(100));
            let hangs = {
                let input = self.input.lock().unwrap_or_else(PoisonError::into_inner);
                let started = input.as_ref().map(|(started, ..)| *started);
                started.is_some_and(|started| started.elapsed() > Duration::from_secs(30))
            };
            if hangs {
                self.tell(target, "hangs");
                std::process::abort();
            }
        }
    }
}

/// Runs a target on its inputs; says which of them is wrong.
fn run_all(target: Target, inputs: impl Iterator<Item = Vec<u8>>) {
    let _one = one_at_a_time();
    let (name, play) = target;
    let running = Arc::new(Running::default());
    let watcher = {
        let running = Arc::clone(&running);
        std::thread::spawn(move || running.watch(name))
    };
    let (mut executions, mut most) = (0usize, 0);
    for input in inputs {
        let before = LIVE.load(Ordering::SeqCst);
        PEAK.store(before, Ordering::SeqCst);
        let (len, panics) = (input.len(), PANICS.load(Ordering::SeqCst));
        *running.input.lock().unwrap() = Some((Instant::now(), executions, input.clone()));
        let played = panic::catch_unwind(|| play(&input));
        let took = PEAK.load(Ordering::SeqCst).saturating_sub(before);
        most = most.max(took);
        let panicked = PANICS.load(Ordering::SeqCst) > panics;
        let greedy = took > BYTES_A_BYTE * len + BYTES;
        if played.is_err() || panicked || greedy {
            running.tell(name, if greedy { "takes too much memory" } else { "panics" });
            panic!("{name}: {executions} executions before, {took} bytes for {len}");
        }
        executions += 1;
    }
    running.ended.store(true, Ordering::Relaxed);
    watcher.join().unwrap();
    println!("{name}: {executions} executions, {} KiB at the most", most >> 10);
}

// ---- inputs -----------------------------------------------------------------------------------

/// Stores with all that a log can have in it: closed, and as a kill would leave them.
fn real_stores() -> Vec<Files> {
    let mut stores = vec![closed_store()];
    for durability in [Durability::Sync, Durability::Buffered] {
        let dir = memory_dir();
        let mut rng = Rng(5);
        let open = |dir: &Path| {
            let builder = Store::builder(dir).threads(1).segment_bytes(MIN_SEGMENT_BYTES);
            builder.durability(durability).open().unwrap()
        };
        let store = open(dir.path());
        run(try_join_all((0..12).map(|n| store.put(format!("key {n}"), rng.bytes(n * 20)))))
            .unwrap();
        run(store.delete("key 3")).unwrap();
        run(store.put("key 4", "again")).unwrap();
        run(store.compact()).unwrap();
        drop(store);
        let store = open(dir.path());
        let far =
            PutOptions::new().expires_at(SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 34));
        run(store.put_with("lasting", "for long", far)).unwrap();
        run(try_join_all((0..6).map(|n| store.delete(format!("key {n}"))))).unwrap();
        run(store.put("large", vec![3; 9000])).unwrap();
        run(store.sync()).unwrap();
        stores.push(crash_image(dir.path(), 1));
        run(store.put("last", "value")).unwrap();
        run(store.close()).unwrap();
        stores.push(trimmed(snapshot(dir.path())));
    }
    stores
}

fn seeds(target: &str) -> Vec<Vec<u8>> {
    let stores = real_stores();
    match target {
        "record" => record::seeds(),
        "partition" => {
            // As they are; with sums made right; with links too; hints; salvaged; compacted.
            let choices = [0, 1, 3, 7, 15, 23];
            let all = stores.iter().flat_map(|files| choices.map(|c| write_partition(files, c)));
            all.collect()
        }
        "hint" => {
            let hints = stores.iter().flatten().filter(|(name, _)| is_a(name, "hint"));
            let with = |choices: u8| {
                hints.clone().enumerate().map(move |(n, (_, hint))| {
                    [&[choices, u8::try_from(n % 4).unwrap()][..], hint].concat()
                })
            };
            with(0).chain(with(6)).chain(with(0x16)).collect()
        }
        _ => [0, 1, 2, 3, 4, 5, 7].map(|choices| [&[choices][..], STORE].concat()).to_vec(),
    }
}

/// Changes an input as chance will have it.
fn mutate(input: &mut Vec<u8>, others: &[Vec<u8>], rng: &mut Rng) {
    const TELLING: [u64; 9] = [0, 1, 2, 7, 8, 0x7fff_ffff, 0xffff_ffff, u64::MAX >> 1, u64::MAX];
    for _ in 0..=rng.below(4) {
        let len = input.len();
        if len < 2 {
            input.extend(rng.bytes(8));
            continue;
        }
        let at = rng.below(len);
        let most = 1 << rng.below(10);
        let span = (1 + rng.below(most)).min(len - at);
        match rng.below(9) {
            0 => input[at] ^= 1 << rng.below(8),
            1 => input[at] = rng.next().to_le_bytes()[0],
            // A number, of 1, 2, 4 or 8 bytes: a length, a place, a count.
            2 | 3 => {
                let width = (1usize << rng.below(4)).min(len - at);
                let number = TELLING[rng.below(TELLING.len())].to_le_bytes();
                input[at..at + width].copy_from_slice(&number[..width]);
            }
            4 => {
                let by = [1u8, 4, 8, 16, 255, 248][rng.below(6)];
                input[at] = input[at].wrapping_add(by);
            }
            5 => input.truncate(at.max(1)),
            6 => drop(input.splice(at..at + span, [])),
            // Blocks change places, or are there twice.
            7 => {
                let from = rng.below(len - span + 1);
                let part = input[from..from + span].to_vec();
                if rng.below(2) == 0 {
                    let there = input[at..at + span].to_vec();
                    input[from..from + span].copy_from_slice(&there);
                    input[at..at + span].copy_from_slice(&part);
                } else {
                    drop(input.splice(at..at, part));
                }
            }
            _ => {
                let other = &others[rng.below(others.len())];
                let from = rng.below(other.len());
                let part = &other[from..(from + span).min(other.len())];
                input.splice(at..(at + part.len()).min(len), part.iter().copied());
            }
        }
    }
    input.truncate(1 << 16);
}

fn smoke(target: Target, executions: usize, seed: u64) {
    let seeds = seeds(target.0);
    let mut rng = Rng(seed);
    let mutated = std::iter::repeat_with(|| {
        let mut input = seeds[rng.below(seeds.len())].clone();
        mutate(&mut input, &seeds, &mut rng);
        input
    });
    run_all(target, seeds.iter().cloned().chain(mutated.take(executions)));
}

fn target(name: &str) -> Target {
    TARGETS.into_iter().find(|target| target.0 == name).unwrap()
}

#[test]
fn records_of_arbitrary_bytes_are_refused_or_are_what_they_say() {
    smoke(target("record"), 4_000, 1);
}

#[test]
fn a_partition_of_arbitrary_files_opens_or_is_refused() {
    smoke(target("partition"), 600, 2);
}

#[test]
fn hints_of_arbitrary_bytes_cost_a_scan_and_nothing_else() {
    smoke(target("hint"), 300, 3);
}

#[test]
fn superblocks_of_arbitrary_bytes_are_refused() {
    smoke(target("superblock"), 1_200, 4);
}

#[test]
#[ignore = "takes an hour: cargo test --release --test fuzz_smoke -- --ignored chance --nocapture"]
fn each_target_holds_for_as_much_as_chance_finds_in_an_hour() {
    for (n, target) in TARGETS.into_iter().enumerate() {
        let started = Instant::now();
        for seed in 1.. {
            smoke(target, 2_000, seed << 8 | n as u64);
            if started.elapsed() > Duration::from_secs(900) {
                break;
            }
        }
    }
}

/// What `cargo fuzz run` begins with.
#[test]
#[ignore = "writes fuzz/corpus: cargo test --test fuzz_smoke -- --ignored corpus"]
fn write_the_corpus() {
    for (name, _) in TARGETS {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
        std::fs::create_dir_all(&folder).unwrap();
        for (n, seed) in seeds(name).iter().enumerate() {
            std::fs::write(folder.join(format!("seed-{n:03}")), seed).unwrap();
        }
    }
}

/// What is written as an input is read back as the same files.
#[test]
fn an_input_stands_for_the_files_that_it_was_made_of() {
    let mut files = closed_store();
    let (read, _) = fuzz_targets::files::read_partition(&write_partition(&files, 0));
    assert_eq!(read, files);
    // Sums that are right are not changed.
    let (read, _) = fuzz_targets::files::read_partition(&write_partition(&files, 7));
    assert_eq!(read, files);
    // Those that are not are made right.
    for log in files.iter_mut().filter(|(name, _)| is_a(name, "log")).map(|(_, log)| log) {
        if let Some(byte) = log.get_mut(4096 + 4) {
            *byte ^= 1;
        }
    }
    let (repaired, _) = fuzz_targets::files::read_partition(&write_partition(&files, 7));
    assert_eq!(repaired, closed_store());
}
