//! What a store has in memory does not grow with what it has done. Alone in its process, since it
//! counts what all threads allocate.

#![allow(missing_docs, clippy::unwrap_used)]

mod store_common;

use futures::future::try_join_all;
use ringlog::MAX_VALUE_LEN;
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use store_common::{Watchdog, disk_dir, open, run};

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
