//! What a store has in memory does not grow with what it has done. Alone in its process, since it
//! counts what all threads allocate.

#![allow(missing_docs, clippy::unwrap_used)]

mod store_common;

use futures::future::try_join_all;
use ringlog::{Durability, MAX_VALUE_LEN, Store};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use store_common::{Watchdog, disk_dir, open, run, run_child, told};

/// The system's allocator, and how many allocations live.
struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);

// SAFETY: passes everything on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as the caller promised.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        LIVE.fetch_sub(1, Ordering::Relaxed);
        // SAFETY: as the caller promised.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, len: usize) -> *mut u8 {
        // SAFETY: as the caller promised.
        unsafe { System.realloc(memory, layout, len) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The count is of all threads, so one test counts at a time.
static ONE: Mutex<()> = Mutex::new(());

/// Requests behind one that fills the queue alone wait for it, and leave nothing when they have
/// been served.
#[test]
fn waiting_for_the_queue_leaves_nothing_behind() {
    const WAITING: usize = 5_000;
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let _dog = Watchdog::new();
    let dir = disk_dir();
    let store = open(dir.path(), 1);
    let large = vec![0; MAX_VALUE_LEN];
    let round = || {
        let first = store.put("large", &large);
        let more = try_join_all((0..WAITING).map(|n| store.get(n.to_string())));
        run(async { futures::try_join!(first, more) }).unwrap();
        run(store.sync()).unwrap();
        LIVE.load(Ordering::SeqCst)
    };
    round();
    let before = round();
    let after = round();
    assert!(after < before + WAITING / 10, "{before} allocations lived, and then {after}");
}

#[test]
fn a_write_that_replaces_a_value_leaves_nothing_behind() {
    const PUTS: usize = 2_000;
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let _dog = Watchdog::new();
    let dir = disk_dir();
    let store = open(dir.path(), 2);
    let round = || {
        run(try_join_all((0..PUTS).map(|n| store.put((n % 50).to_string(), "value")))).unwrap();
        run(try_join_all((0..PUTS).map(|n| store.get((n % 50).to_string())))).unwrap();
        run(store.sync()).unwrap();
        LIVE.load(Ordering::SeqCst)
    };
    round();
    let before = round();
    let after = round();
    assert!(after < before + PUTS / 10, "{before} allocations lived, and then {after}");
}

/// Puts so many keys of such a length; gives the index's bytes a key, as the store counts them.
fn index_bytes_a_key(keys: u64, key_len: usize) -> f64 {
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let dir = disk_dir();
    let store = Store::builder(dir.path()).durability(Durability::Buffered).open().unwrap();
    let name = |n: u64| {
        let mut key = n.to_le_bytes().to_vec();
        key.resize(key_len, b'k');
        key
    };
    let mut worst: f64 = 0.0;
    for start in (0..keys).step_by(5_000) {
        let some = start..keys.min(start + 5_000);
        run(try_join_all(some.map(|n| store.put(name(n), "")))).unwrap();
        // While tables grow as well as when they have. What few keys share is not much to each.
        if start >= 300_000 {
            worst = worst.max(per_key(&store));
        }
    }
    assert_eq!(run(store.len()).unwrap(), keys);
    drop(store);
    let store = Store::builder(dir.path()).open().unwrap();
    assert_eq!(run(store.len()).unwrap(), keys);
    worst.max(per_key(&store))
}

#[expect(clippy::cast_precision_loss, reason = "an average for people to read")]
fn per_key(store: &Store) -> f64 {
    let total = run(store.stats()).unwrap().total();
    total.index_bytes as f64 / total.keys as f64
}

#[test]
fn the_index_has_at_most_32_bytes_a_key() {
    let bytes = index_bytes_a_key(350_000, 8);
    assert!(bytes <= 32.0, "{bytes:.1} bytes a key");
}

#[test]
#[ignore = "takes minutes: cargo test --release --test store_memory -- --ignored --nocapture"]
fn the_index_of_a_million_keys_has_at_most_32_bytes_a_key_however_long_they_are() {
    for key_len in [8, 16, 200] {
        let bytes = index_bytes_a_key(1_000_000, key_len);
        println!("1,000,000 keys of {key_len} bytes: {bytes:.1} bytes of index a key");
        assert!(bytes <= 32.0, "{bytes:.1} bytes a key");
    }
}

fn resident() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

/// What the index says of itself, held to what the system says, in a process of its own.
#[test]
#[ignore = "takes minutes: cargo test --release --test store_memory -- --ignored --nocapture"]
fn the_memory_of_a_process_with_two_million_keys_is_that_of_its_index() {
    const TEST: &str = "the_memory_of_a_process_with_two_million_keys_is_that_of_its_index";
    const KEYS: u64 = 2_000_000;
    let Some(dir) = told(TEST) else {
        let dir = disk_dir();
        let store = Store::builder(dir.path()).durability(Durability::Buffered).open().unwrap();
        for start in (0..KEYS).step_by(10_000) {
            let some = start..start + 10_000;
            run(try_join_all(some.map(|n| store.put(n.to_le_bytes(), "")))).unwrap();
        }
        run(store.close()).unwrap();
        print!("{}", run_child(TEST, dir.path()));
        return;
    };
    let before = resident();
    let store = open(&dir, 1);
    let index = run(store.stats()).unwrap().total().index_bytes;
    let more = resident() - before;
    println!("{KEYS} keys: {} bytes of index a key, {} resident", index / KEYS, more / KEYS);
    // Besides the index: the ring, the thread, what opening has read.
    assert!(more < KEYS * 32 + (24 << 20), "{more} bytes, {index} of them index");
}
