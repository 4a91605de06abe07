//! Figures of the store that take long to get: opening, memory, a soak. Each test prints what it
//! measured, and fails only where a bound is broken: of the machine's, the soak's on how long reads
//! wait under load, as a ratio to a quiet store.
//!
//! ```console
//! cargo test --release --test store_figures -- --ignored --nocapture --test-threads=1
//! SOAK_SECONDS=1800 cargo test --release --test store_figures soak -- --ignored --nocapture
//! ```

#![allow(missing_docs, clippy::unwrap_used, clippy::cast_precision_loss)]

mod store_common;

use hdrhistogram::Histogram;
use ringlog::{Durability, Store};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use store_common::{Rng, child, disk_dir, run, told};

const KEYS: u64 = 5_000_000;

fn key(n: u64) -> [u8; 16] {
    let mut key = [0; 16];
    key[..8].copy_from_slice(&Rng(n).next().to_le_bytes());
    key[8..].copy_from_slice(&n.to_le_bytes());
    key
}

fn resident() -> u64 {
    let pages = fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

fn disk_bytes(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let bytes = entries.map(|entry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => disk_bytes(&entry.path()),
        Ok(meta) => meta.blocks() * 512,
        Err(_) => 0, // it has just been merged away
    });
    bytes.sum()
}

/// Puts keys with so many callers at a time, without waiting for the device.
fn fill(store: &Store, keys: std::ops::Range<u64>, value: usize, callers: usize) {
    let next = Arc::new(AtomicU64::new(keys.start));
    run(futures::future::join_all((0..callers).map(|caller| {
        let (store, next, end) = (store.clone(), Arc::clone(&next), keys.end);
        let value = Rng(caller as u64).bytes(value);
        async move {
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                if n >= end {
                    return;
                }
                store.put(key(n), &value).await.unwrap();
            }
        }
    })));
}

fn buffered(dir: &Path, partitions: usize) -> Store {
    Store::builder(dir).partitions(partitions).durability(Durability::Buffered).open().unwrap()
}

#[test]
#[ignore = "fills five million keys, twice"]
fn five_million_keys_open_after_a_close_and_after_a_kill() {
    const ME: &str = "five_million_keys_open_after_a_close_and_after_a_kill";
    if let Some(dir) = told(ME) {
        let store = buffered(&dir, 2);
        fill(&store, 0..KEYS, 100, 256);
        run(store.sync()).unwrap();
        // SAFETY: a signal to this very process.
        unsafe { libc::raise(libc::SIGKILL) };
    }
    let dir = disk_dir();
    let killed = child(ME, dir.path()).output().unwrap();
    assert!(!killed.status.success());
    for how in ["after SIGKILL", "after a clean close"] {
        let before = resident();
        let started = Instant::now();
        let store = Store::open(dir.path(), 2).unwrap();
        let took = started.elapsed();
        assert_eq!(run(store.len()).unwrap(), KEYS);
        println!("{how}: {KEYS} keys opened in {took:?}");
        println!("{} bytes of memory a key", (resident() - before) / KEYS);
        for partition in &store.open_report().partitions {
            println!("{partition:?}");
        }
        run(store.close()).unwrap();
    }
}

#[test]
#[ignore = "fills millions of keys"]
fn a_key_takes_at_most_32_bytes_of_memory() {
    /// Code, rings, stacks, buffers, and what is remembered for hints.
    const FIXED: u64 = 16 << 20;
    let dir = disk_dir();
    let before = resident();
    let builder = Store::builder(dir.path()).partitions(2).durability(Durability::Buffered);
    let store = builder.cache_bytes(0).open().unwrap();
    let mut keys = 0;
    for more in [1_000_000, 1_500_000, 2_500_000] {
        fill(&store, keys..keys + more, 10, 256);
        keys += more;
        let index = run(store.stats()).unwrap().total().index_bytes;
        let resident = resident() - before;
        println!(
            "{keys} keys: index {:.1} bytes a key, process {:.1}",
            index as f64 / keys as f64,
            resident as f64 / keys as f64
        );
        assert!(index <= keys * 32 && resident <= keys * 32 + FIXED);
    }
    run(store.close()).unwrap();
}

/// Reads and writes by 64 tasks for so long; gives the reads' latencies and how many writes.
fn mixed(store: &Store, keys: u64, time: Duration, writes: usize) -> (Histogram<u64>, u64) {
    let stop = Arc::new(AtomicBool::new(false));
    let timer = {
        let stop = Arc::clone(&stop);
        std::thread::spawn(move || {
            std::thread::sleep(time);
            stop.store(true, Ordering::Relaxed);
        })
    };
    let tasks = (0..64u64).map(|task| {
        let (store, stop) = (store.clone(), Arc::clone(&stop));
        async move {
            let mut rng = Rng(task);
            let mut reads = Histogram::<u64>::new(3).unwrap();
            let (mut written, value) = (0, Rng(task).bytes(1000));
            while !stop.load(Ordering::Relaxed) {
                let n = rng.next() % keys;
                if rng.below(100) < writes {
                    store.put(key(n), &value).await.unwrap();
                    written += 1;
                } else {
                    let started = Instant::now();
                    assert!(store.get(key(n)).await.unwrap().is_some());
                    reads.record(u64::try_from(started.elapsed().as_micros()).unwrap()).unwrap();
                }
            }
            (reads, written)
        }
    });
    let done = run(futures::future::join_all(tasks));
    timer.join().unwrap();
    let mut reads = Histogram::<u64>::new(3).unwrap();
    let mut written = 0;
    for (more, w) in done {
        reads.add(more).unwrap();
        written += w;
    }
    (reads, written)
}

#[test]
#[ignore = "half an hour; SOAK_SECONDS makes it shorter"]
fn a_soak_leaves_memory_and_disk_flat() {
    let seconds = std::env::var("SOAK_SECONDS").map_or(1800, |s| s.parse().unwrap());
    let keys = 300_000;
    let dir = disk_dir();
    let store = buffered(dir.path(), 2);
    fill(&store, 0..keys, 1000, 64);
    let live = run(store.stats()).unwrap().total().live_bytes;
    let (quiet, _) = mixed(&store, keys, Duration::from_secs(10), 0);
    println!(
        "quiet: {} reads, p50 {} us, p99 {} us, p99.9 {} us",
        quiet.len(),
        quiet.value_at_quantile(0.5),
        quiet.value_at_quantile(0.99),
        quiet.value_at_quantile(0.999)
    );
    let (mut total, mut after_warm_up) = (0, None);
    let mut loaded = Histogram::<u64>::new(3).unwrap();
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(seconds) {
        let step = Duration::from_secs((seconds / 30).clamp(2, 60));
        let (reads, written) = mixed(&store, keys, step, 50);
        total += written;
        loaded.add(&reads).unwrap();
        let (disk, memory) = (disk_bytes(dir.path()), resident());
        println!(
            "{:5} s: {written} writes ({:.1}x), {} reads, p50 {} us, p99 {} us, p99.9 {} us, max {} \
             us, disk {:.2}x live, memory {} MB",
            started.elapsed().as_secs(),
            total as f64 / keys as f64,
            reads.len(),
            reads.value_at_quantile(0.5),
            reads.value_at_quantile(0.99),
            reads.value_at_quantile(0.999),
            reads.max(),
            disk as f64 / live as f64,
            memory >> 20
        );
        if total > keys {
            assert!(disk <= 2 * live, "{disk} bytes on disk for {live} live ones");
            let warm = *after_warm_up.get_or_insert(memory);
            assert!(memory < warm + (64 << 20), "memory grew from {warm} to {memory}");
        }
    }
    let stats = run(store.stats()).unwrap().total();
    println!("{stats:?}");
    let slow = |reads: &Histogram<u64>| reads.value_at_quantile(0.999) as f64;
    let ratio = slow(&loaded) / slow(&quiet);
    println!("reads' p99.9 under load is {ratio:.1} times that of the quiet store");
    assert!(ratio <= 5.0, "reads wait {ratio:.1} times as long as in the quiet store");
    assert!(run(store.verify()).unwrap().is_sound());
    run(store.close()).unwrap();
}
