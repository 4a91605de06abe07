//! The store on rings that are much smaller than its load, and where rings are refused.

#![allow(missing_docs, clippy::unwrap_used)]

mod store_common;

use futures::future::try_join_all;
use ringlog::rt::{Executor, ExecutorConfig, Runtime, RuntimeConfig, SetupError};
use ringlog::{Builder, Durability, Error, Store};
use std::path::Path;
use store_common::{Watchdog, disk_dir, open, refused, run, run_child, snapshot, told};

// ---- small rings ------------------------------------------------------------------------------

/// Rings of so few entries that nearly everything has to wait for its turn in them.
fn small_rings(threads: usize) -> Runtime {
    let executor_config = ExecutorConfig { entries: 8, ..ExecutorConfig::default() };
    let config =
        RuntimeConfig { num_threads: threads, executor_config, ..RuntimeConfig::default() };
    Runtime::start(config).unwrap()
}

fn open_on(runtime: &Runtime, builder: Builder) -> Store {
    let threads = runtime.threads().to_vec();
    let opening = runtime.thread(0).schedule(async move { builder.open_on(&threads).await });
    run(opening).unwrap().unwrap()
}

fn put_and_read_back_10_000(threads: usize, partitions: usize, durability: Durability) {
    const PUTS: u32 = 10_000;
    let _dog = Watchdog::new();
    let dir = disk_dir();
    let key = |n: u32| n.to_le_bytes();
    let value = |n: u32| vec![n.to_le_bytes()[0]; 10 + n as usize % 300];
    let all_there = |store: &Store| {
        // As many reads at the same time.
        let values = run(try_join_all((0..PUTS).map(|n| store.get(key(n))))).unwrap();
        for (n, found) in (0..PUTS).zip(values) {
            assert_eq!(found.as_deref(), Some(&value(n)[..]), "key {n}");
        }
        assert_eq!(run(store.len()).unwrap(), u64::from(PUTS));
    };
    // Small segments too: rotations, hints and merges want their turn as well.
    let builder = || {
        let builder = Store::builder(dir.path()).partitions(partitions).durability(durability);
        // What is read comes from the ring.
        builder.segment_bytes(256 << 10).cache_bytes(0)
    };
    let runtime = small_rings(threads);
    let store = open_on(&runtime, builder());
    // Each is polled before any is waited for: they are all in flight together.
    run(try_join_all((0..PUTS).map(|n| store.put(key(n), value(n))))).unwrap();
    all_there(&store);
    run(store.close()).unwrap();
    runtime.stop().unwrap();

    let runtime = small_rings(threads);
    let store = open_on(&runtime, builder());
    all_there(&store);
    assert!(run(store.verify()).unwrap().is_sound());
    run(store.close()).unwrap();
    runtime.stop().unwrap();
}

#[test]
fn ten_thousand_puts_at_the_same_time_go_through_a_ring_of_8_entries() {
    put_and_read_back_10_000(1, 1, Durability::Sync);
}

#[test]
fn ten_thousand_puts_at_the_same_time_go_through_two_rings_of_8_entries() {
    put_and_read_back_10_000(2, 3, Durability::Buffered);
}

// ---- refused rings ----------------------------------------------------------------------------

/// From now on this thread, and those that it starts, get `errno` where they ask for a ring.
fn refuse_rings(errno: i32) {
    const SET_UP: u32 = 425; // io_uring_setup has this number on every architecture
    assert_eq!(libc::SYS_io_uring_setup, i64::from(SET_UP));
    let statement = |code: u32, k: u32, jump: (u8, u8)| libc::sock_filter {
        code: u16::try_from(code).unwrap(),
        jt: jump.0,
        jf: jump.1,
        k,
    };
    let errno = u32::try_from(errno).unwrap();
    let mut program = [
        // The number of the call is what its description begins with.
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, (0, 0)),
        statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, SET_UP, (0, 1)),
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ERRNO | errno, (0, 0)),
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW, (0, 0)),
    ];
    let len = u16::try_from(program.len()).unwrap();
    let filter = libc::sock_fprog { len, filter: program.as_mut_ptr() };
    // SAFETY: plain numbers. Without it only root may have filters.
    assert_eq!(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1u64, 0u64, 0u64, 0u64) }, 0);
    let mode = u64::from(libc::SECCOMP_MODE_FILTER);
    // SAFETY: the program and its description live until the call has copied them; each of its jumps
    // stays within it.
    let set = unsafe { libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const filter) };
    assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
}

fn assert_says_what_to_do(error: &SetupError, errno: i32) {
    let text = error.to_string();
    match error {
        SetupError::Denied { .. } => assert_eq!(errno, libc::EPERM),
        SetupError::NotSupported => assert_eq!(errno, libc::ENOSYS),
        other => panic!("{other:?}"),
    }
    for word in ["io_uring", "seccomp", "allow", "io_uring_setup"] {
        assert!(text.contains(word), "no {word} in: {text}");
    }
}

/// The child's part: rings are refused, and a store says so, whether it is there or not.
fn open_without_rings(dir: &Path, errno: i32) {
    let _dog = Watchdog::new();
    refuse_rings(errno);
    for path in [dir.join("store"), dir.join("new")] {
        for partitions in [1, 2] {
            match refused(&path, partitions) {
                Error::Runtime(error) => assert_says_what_to_do(&error, errno),
                other => panic!("{other:?}"),
            }
        }
    }
    match Executor::new(ExecutorConfig::default()) {
        Err(error) => assert_says_what_to_do(&error, errno),
        Ok(_) => panic!("there was a ring all the same"),
    }
}

/// Makes a store, runs the child on it, and finds it as it was.
fn a_store_without_rings(test: &str) {
    let dir = disk_dir();
    let path = dir.path().join("store");
    let store = open(&path, 1);
    run(store.put("key", "value")).unwrap();
    run(store.close()).unwrap();
    let before = snapshot(&path);
    run_child(test, dir.path());
    assert_eq!(snapshot(&path), before);
    assert!(!dir.path().join("new").exists(), "a store was begun that could not be");
    assert_eq!(run(open(&path, 1).get("key")).unwrap().as_deref(), Some(&b"value"[..]));
}

#[test]
fn where_seccomp_forbids_rings_a_store_says_what_to_do() {
    const TEST: &str = "where_seccomp_forbids_rings_a_store_says_what_to_do";
    match told(TEST) {
        Some(dir) => open_without_rings(&dir, libc::EPERM),
        None => a_store_without_rings(TEST),
    }
}

#[test]
fn where_seccomp_hides_rings_a_store_says_what_to_do() {
    const TEST: &str = "where_seccomp_hides_rings_a_store_says_what_to_do";
    match told(TEST) {
        Some(dir) => open_without_rings(&dir, libc::ENOSYS),
        None => a_store_without_rings(TEST),
    }
}
