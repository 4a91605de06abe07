//! Crashes: processes that are killed while they write, disks that take no more, callers that go
//! away. What was acknowledged is there afterwards. Where the path to the device is not what is tested,
//! files are in memory.

#![allow(missing_docs, clippy::unwrap_used)]

mod store_common;
mod store_kit;

use futures::future::{join_all, try_join_all};
use ringlog::{Builder, Durability, Error, Reply, Store};
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::path::Path;
use std::pin::Pin;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Wake, Waker};
use std::time::{Duration, Instant};
use store_common::{
    Model, Rng, Watchdog, child, disk_dir, memory_dir, open, refused, run, run_child, told,
};
use store_kit::{assert_is, files, scan_all, small, wait_until};

/// These tests start processes, which have the locks of all threads until they are themselves.
fn one_at_a_time() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

// ---- killed -----------------------------------------------------------------------------------

const PARTITIONS: usize = 3;
const WRITERS: u32 = 8;
const KEYS_PER_WRITER: u32 = 5;

/// Small segments: rotations and merges are under way when it is killed. In every other round nothing
/// is asked to outlast more than the process.
fn crashing(dir: &Path, round: u32) -> Builder {
    let durability = if round.is_multiple_of(2) { Durability::Sync } else { Durability::Buffered };
    small(dir, PARTITIONS).durability(durability)
}

/// The `n`th operation of a writer: a key, and its new value or none.
fn operation(round: u32, writer: u32, n: u32) -> (Vec<u8>, Option<Vec<u8>>) {
    let key = format!("writer {writer}, key {}", n % KEYS_PER_WRITER).into_bytes();
    let mut rng = Rng(u64::from(round) << 40 | u64::from(writer) << 32 | u64::from(n));
    let value = (n % 4 != 3).then(|| {
        let mut value = format!("{round}/{writer}/{n} ").into_bytes();
        let len = if rng.below(8) == 0 { 9_000 } else { rng.below(300) };
        value.extend(rng.bytes(len));
        value
    });
    (key, value)
}

fn apply(model: &mut Model, (key, value): (Vec<u8>, Option<Vec<u8>>)) {
    match value {
        Some(value) => drop(model.insert(key, value)),
        None => drop(model.remove(&key)),
    }
}

/// Writes until it is killed. Each line on the pipe is an acknowledgement.
fn write_until_killed(dir: &Path) {
    // A parent that fails before it kills is no reason to go on for ever.
    let _dog = Watchdog::of(Duration::from_secs(60));
    let round = fs::read_to_string(dir.join("round")).unwrap().parse().unwrap();
    let store = crashing(&dir.join("store"), round).open().unwrap();
    let writer = |writer: u32| {
        let store = store.clone();
        async move {
            for n in 0.. {
                let (key, value) = operation(round, writer, n);
                match value {
                    Some(value) => store.put(key, value).await.unwrap(),
                    None => drop(store.delete(key).await.unwrap()),
                }
                let line = format!("\nack {writer} {n}\n");
                std::io::stdout().lock().write_all(line.as_bytes()).unwrap();
            }
        }
    };
    run(join_all((0..WRITERS).map(writer)));
}

/// An acknowledgement, if this is a whole line with one.
fn acknowledged(line: &str) -> Option<(u32, u32)> {
    let (writer, n) = line.strip_suffix('\n')?.strip_prefix("ack ")?.split_once(' ')?;
    Some((writer.parse().ok()?, n.parse().ok()?))
}

fn killed_again_and_again(test: &str, rounds: u32, seed: u64) {
    let _one = one_at_a_time();
    let _dog = Watchdog::of(Duration::from_secs(60 + 10 * u64::from(rounds)));
    let dir = disk_dir();
    let mut rng = Rng(seed);
    let mut model = Model::new();
    for round in 0..rounds {
        fs::write(dir.path().join("round"), round.to_string()).unwrap();
        let mut child = child(test, dir.path()).stdout(Stdio::piped()).spawn().unwrap();
        let mut pipe = BufReader::new(child.stdout.take().unwrap());
        let mut acks: BTreeMap<u32, u32> = BTreeMap::new();
        let mut note = |line: &str| {
            if let Some((writer, n)) = acknowledged(line) {
                let before = acks.insert(writer, n);
                assert_eq!(before.map_or(0, |before| before + 1), n);
                return 1;
            }
            0
        };
        // Not by time: after so many acknowledgements.
        let mut left = 1 + rng.below(150);
        while left > 0 {
            let mut line = String::new();
            assert_ne!(pipe.read_line(&mut line).unwrap(), 0, "the child ended by itself");
            left -= note(&line);
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let store = crashing(&dir.path().join("store"), round).open().unwrap();

        // What it had said when it died counts too; its last line may be torn.
        let mut rest = Vec::new();
        pipe.read_to_end(&mut rest).unwrap();
        for line in String::from_utf8(rest).unwrap().split_inclusive('\n') {
            note(line);
        }
        for writer in 0..WRITERS {
            let done = acks.get(&writer).map_or(0, |last| last + 1);
            for n in 0..done {
                apply(&mut model, operation(round, writer, n));
            }
            // The one under way may have happened or not.
            let (key, value) = operation(round, writer, done);
            let found = run(store.get(&key)).unwrap();
            if found.as_deref() == value.as_deref() {
                apply(&mut model, (key, value));
            }
        }
        let what = format!("round {round} of seed {seed}, after {acks:?}");
        assert_is(&store, &model, &what);
        // The next child finds a log with a seal or without one.
        if rng.below(2) == 0 { run(store.close()).unwrap() } else { drop(store) }
    }
}

#[test]
fn what_a_killed_process_acknowledged_is_there() {
    const TEST: &str = "what_a_killed_process_acknowledged_is_there";
    if let Some(dir) = told(TEST) {
        return write_until_killed(&dir);
    }
    killed_again_and_again(TEST, 50, 1);
}

#[test]
#[ignore = "takes minutes: cargo test --test store_crash -- --ignored"]
fn what_a_process_killed_1000_times_acknowledged_is_there() {
    const TEST: &str = "what_a_process_killed_1000_times_acknowledged_is_there";
    if let Some(dir) = told(TEST) {
        return write_until_killed(&dir);
    }
    killed_again_and_again(TEST, 1000, 2);
}

/// A value that somebody was shown is not taken back.
#[test]
fn what_a_killed_process_has_read_is_there() {
    const TEST: &str = "what_a_killed_process_has_read_is_there";
    if let Some(dir) = told(TEST) {
        let _dog = Watchdog::of(Duration::from_secs(60));
        let store = small(&dir, 1).open().unwrap();
        let number = |value: &[u8]| u64::from_le_bytes(value[..8].try_into().unwrap());
        let first = run(store.get("count")).unwrap().map_or(0, |value| number(&value));
        let writer = async {
            for n in first + 1.. {
                let mut value = n.to_le_bytes().to_vec();
                value.resize(2_000, 0);
                store.put("count", value).await.unwrap();
            }
        };
        let reader = || async {
            loop {
                if let Some(value) = store.get("count").await.unwrap() {
                    let line = format!("\nseen {}\n", number(&value));
                    std::io::stdout().lock().write_all(line.as_bytes()).unwrap();
                }
            }
        };
        run(async { futures::join!(writer, reader(), reader()) });
        return;
    }
    let _one = one_at_a_time();
    let _dog = Watchdog::new();
    let dir = disk_dir();
    let mut rng = Rng(4);
    for round in 0..10 {
        let mut child = child(TEST, dir.path()).stdout(Stdio::piped()).spawn().unwrap();
        let mut pipe = BufReader::new(child.stdout.take().unwrap());
        let (mut seen, mut left) = (0, 1 + rng.below(300));
        while left > 0 {
            let mut line = String::new();
            assert_ne!(pipe.read_line(&mut line).unwrap(), 0, "the child ended by itself");
            if let Some(n) = line.strip_prefix("seen ") {
                seen = seen.max(n.trim().parse().unwrap());
                left -= 1;
            }
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let store = small(dir.path(), 1).open().unwrap();
        let value = run(store.get("count")).unwrap().unwrap();
        let there = u64::from_le_bytes(value[..8].try_into().unwrap());
        assert!(there >= seen, "round {round}: {seen} was seen, {there} is there");
    }
}

/// Killed somewhere while it makes a store, writes to it, and recovers it.
#[test]
fn a_process_killed_while_it_opens_leaves_a_store_that_opens() {
    const TEST: &str = "a_process_killed_while_it_opens_leaves_a_store_that_opens";
    if let Some(dir) = told(TEST) {
        let _dog = Watchdog::of(Duration::from_secs(60));
        for n in 0.. {
            std::io::stdout().lock().write_all(b"\nbegun\n").unwrap();
            let path = dir.join(format!("store {n}"));
            run(open(&path, 2).put("key", "value")).unwrap();
            drop(open(&path, 2));
        }
    }
    let _one = one_at_a_time();
    let _dog = Watchdog::new();
    let mut rng = Rng(3);
    for round in 0..8 {
        let dir = memory_dir();
        let mut child = child(TEST, dir.path()).stdout(Stdio::piped()).spawn().unwrap();
        let mut pipe = BufReader::new(child.stdout.take().unwrap());
        let begun = 1 + rng.below(3);
        let mut left = begun;
        while left > 0 {
            let mut line = String::new();
            assert_ne!(pipe.read_line(&mut line).unwrap(), 0, "the child ended by itself");
            left -= usize::from(line == "begun\n");
        }
        // Somewhere in what it does next, which has some dozens of steps.
        for _ in 0..rng.below(4_000) {
            std::thread::yield_now();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        for n in 0..begun {
            let path = dir.path().join(format!("store {n}"));
            let store = open(&path, 2);
            let value = run(store.get("key")).unwrap();
            if n + 1 < begun {
                assert_eq!(value.as_deref(), Some(&b"value"[..]), "store {n}, round {round}");
            }
            run(store.put("key", "new")).unwrap();
            drop(store);
            let value = run(open(&path, 2).get("key")).unwrap();
            assert_eq!(value.as_deref(), Some(&b"new"[..]), "store {n}, round {round}");
        }
    }
}

// ---- a disk that takes no more ----------------------------------------------------------------

/// From now on, no file of this process grows beyond `len`.
fn limit_file_size(len: u64) {
    // SAFETY: a disposition without a handler.
    assert_ne!(unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) }, libc::SIG_ERR);
    let limit = libc::rlimit { rlim_cur: len, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: the limit is there for the call.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_FSIZE, &raw const limit) }, 0);
}

#[track_caller]
fn assert_poisoned<T: std::fmt::Debug>(result: Result<T, Error>, partition: &Path) {
    match result {
        Err(Error::Poisoned { path, cause }) => {
            assert_eq!(path, partition);
            assert_eq!(cause.raw_os_error(), Some(libc::EFBIG), "{cause}");
            assert_eq!(cause.kind(), ErrorKind::FileTooLarge);
        }
        other => panic!("not poisoned: {other:?}"),
    }
}

fn value_of(n: u32) -> Vec<u8> {
    let mut rng = Rng(u64::from(n));
    let len = 50 + rng.below(200);
    rng.bytes(len)
}

fn log_bytes(store: &Store, partition: usize) -> u64 {
    run(store.stats()).unwrap().partitions[partition].log_bytes
}

/// Waits for the spares: without them the limit is met by their making, and puts are refused.
fn wait_for_spares(dir: &Path, partitions: usize) {
    wait_until("the spares are made", || files(dir, "log").len() >= 3 * partitions);
}

/// The bytes of all segments.
fn logs(dir: &Path) -> Vec<Vec<u8>> {
    files(dir, "log").iter().map(|path| fs::read(path).unwrap()).collect()
}

/// Room on the device was prepared, and the write fails all the same.
#[test]
fn after_a_failed_write_nothing_is_written_and_all_that_was_acknowledged_is_there() {
    const TEST: &str =
        "after_a_failed_write_nothing_is_written_and_all_that_was_acknowledged_is_there";
    const KEPT: u32 = 20;
    if let Some(dir) = told(TEST) {
        let _dog = Watchdog::of(Duration::from_secs(60));
        let room: u64 = fs::read_to_string(dir.join("room")).unwrap().parse().unwrap();
        let path = dir.join("store");
        let store = open(&path, 1);
        let partition = path.join("p0000");
        let key = |n: u32| format!("key {n}");
        run(try_join_all((0..KEPT).map(|n| store.put(key(n), value_of(n))))).unwrap();
        wait_for_spares(&path, 1);
        limit_file_size(log_bytes(&store, 0) + room);
        // One by one, until the file takes no more. The last one is larger than a block.
        let mut n = KEPT;
        let failed = loop {
            let value =
                if room.is_multiple_of(8192) { value_of(n) } else { value_of(n).repeat(200) };
            match run(store.put(key(n), value)) {
                Ok(()) => n += 1,
                failed => break failed,
            }
        };
        assert_poisoned(failed, &partition);
        let large = !room.is_multiple_of(8192);
        let line = format!("\nacknowledged {n} {large}\n");
        std::io::stdout().lock().write_all(line.as_bytes()).unwrap();
        let (before, records) = (logs(&path), run(store.stats()).unwrap().total().records);
        assert_eq!(records, u64::from(n));
        for lifted in [false, true] {
            if lifted {
                // Even if it would work now: nobody knows what of the group is there.
                limit_file_size(libc::RLIM_INFINITY);
            }
            assert_poisoned(run(store.put("later", "value")), &partition);
            assert_poisoned(run(store.put(key(0), "another")), &partition);
            assert_poisoned(run(store.delete(key(1))), &partition);
            assert_poisoned(run(store.sync()), &partition);
            assert_poisoned(run(store.compact()), &partition);
            assert_poisoned(run(store.backup(dir.join("copy"))), &partition);
            fs::remove_dir_all(dir.join("copy")).unwrap();
            for result in run(join_all((0..10).map(|_| store.put("many", "value")))) {
                assert_poisoned(result, &partition);
            }
            for n in 0..KEPT {
                assert_eq!(run(store.get(key(n))).unwrap().as_deref(), Some(&value_of(n)[..]));
            }
            assert_eq!(scan_all(&store).len(), usize::try_from(n).unwrap());
            assert_eq!(run(store.get(key(n))).unwrap(), None, "it was not acknowledged");
            assert_eq!(run(store.get("later")).unwrap(), None);
        }
        assert_eq!(run(store.stats()).unwrap().total().records, u64::from(n));
        assert!(logs(&path) == before, "something was written");
        let clone = store.clone();
        assert_poisoned(run(store.close()), &partition);
        assert!(matches!(run(clone.get(key(0))), Err(Error::Closed)));
        return;
    }
    let _one = one_at_a_time();
    let _dog = Watchdog::new();
    // The write fails at its start, or after some blocks.
    for room in [0, 4096, 8192, 2 * 8192, 3 * 4096, 5 * 4096] {
        let dir = disk_dir();
        fs::write(dir.path().join("room"), room.to_string()).unwrap();
        let text = run_child(TEST, dir.path());
        let line = text.lines().find_map(|line| line.strip_prefix("acknowledged ")).unwrap();
        let (acknowledged, large) = line.split_once(' ').unwrap();
        let acknowledged: u32 = acknowledged.parse().unwrap();
        for _ in 0..2 {
            let store = open(&dir.path().join("store"), 1);
            for n in 0..acknowledged {
                let value = run(store.get(format!("key {n}"))).unwrap();
                let times = if n >= KEPT && large == "true" { 200 } else { 1 };
                let wanted = value_of(n).repeat(times);
                assert_eq!(value.as_deref(), Some(&wanted[..]), "key {n}, room {room}");
            }
            let keys = run(store.stats()).unwrap().total().keys;
            assert!(keys <= u64::from(acknowledged) + 2, "{keys} keys, room {room}");
            run(store.put("after", "value")).unwrap();
        }
    }
}

#[test]
fn all_that_wait_for_a_failed_group_hear_of_it_and_other_partitions_go_on() {
    const TEST: &str = "all_that_wait_for_a_failed_group_hear_of_it_and_other_partitions_go_on";
    if let Some(dir) = told(TEST) {
        let _dog = Watchdog::of(Duration::from_secs(60));
        let store = open(&dir, 2);
        // One partition is near the limit, the other is not.
        run(store.put("large", vec![1; 700_000])).unwrap();
        let grown = usize::from(log_bytes(&store, 0) < 700_000);
        let of_grown = |n: u32| {
            let before = run(store.stats()).unwrap().partitions[grown].records;
            run(store.put(n.to_le_bytes(), "small")).unwrap();
            run(store.stats()).unwrap().partitions[grown].records != before
        };
        let concerned: Vec<bool> = (0..64).map(of_grown).collect();
        let partition = dir.join(format!("p{grown:04}"));
        wait_for_spares(&dir, 2);
        limit_file_size(log_bytes(&store, grown));
        let put = |n: u32| store.put(n.to_le_bytes(), vec![2; 2000]);
        for (n, result) in run(join_all((0..64).map(put))).into_iter().enumerate() {
            if concerned[n] {
                assert_poisoned(result, &partition);
            } else {
                result.unwrap();
            }
        }
        assert_poisoned(run(store.sync()), &partition);
        for n in 0..64u32 {
            let value = run(store.get(n.to_le_bytes())).unwrap().unwrap();
            let old = concerned[usize::try_from(n).unwrap()];
            assert_eq!(value.len(), if old { 5 } else { 2000 }, "key {n}");
        }
        assert_poisoned(run(store.close()), &partition);
        return;
    }
    let _one = one_at_a_time();
    let dir = disk_dir();
    run_child(TEST, dir.path());
    let store = open(dir.path(), 2);
    assert_eq!(run(store.stats()).unwrap().total().keys, 65);
}

#[test]
fn a_store_that_cannot_be_made_leaves_nothing_that_stands_in_the_way() {
    const TEST: &str = "a_store_that_cannot_be_made_leaves_nothing_that_stands_in_the_way";
    if let Some(dir) = told(TEST) {
        // The lock, the store file, a segment: each in its turn is too much.
        for len in [0, 1, 40, 60, 4095, 4096, 100_000] {
            limit_file_size(len);
            for _ in 0..2 {
                let error = Store::open(&dir, 2).unwrap_err();
                assert!(matches!(error, Error::Io { .. }), "{len}: {error:?}");
            }
        }
        limit_file_size(libc::RLIM_INFINITY);
        run(open(&dir, 2).put("key", "value")).unwrap();
        return;
    }
    let _one = one_at_a_time();
    let dir = memory_dir();
    run_child(TEST, &dir.path().join("store"));
    assert!(run(open(&dir.path().join("store"), 2).get("key")).unwrap().is_some());
}

// ---- locks and descriptors --------------------------------------------------------------------

/// Opens a store, says so, and does nothing more until it is killed.
fn hold_until_killed(dir: &Path) {
    let store = small(dir, 2).open().unwrap();
    run(store.put("held", std::process::id().to_string())).unwrap();
    std::io::stdout().lock().write_all(b"\nholding\n").unwrap();
    std::thread::sleep(Duration::from_secs(60));
}

fn holder(test: &str, dir: &Path) -> std::process::Child {
    let mut child = child(test, dir).stdout(Stdio::piped()).spawn().unwrap();
    let mut pipe = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    while line != "holding\n" {
        line.clear();
        assert_ne!(pipe.read_line(&mut line).unwrap(), 0, "the child ended by itself");
    }
    child
}

#[test]
fn a_store_that_another_process_holds_is_free_as_soon_as_that_is_killed() {
    const TEST: &str = "a_store_that_another_process_holds_is_free_as_soon_as_that_is_killed";
    if let Some(dir) = told(TEST) {
        return hold_until_killed(&dir);
    }
    let _one = one_at_a_time();
    let _dog = Watchdog::new();
    let dir = memory_dir();
    let mut pid = 0;
    for round in 0..10 {
        let mut child = holder(TEST, dir.path());
        if round % 5 == 0 {
            let started = Instant::now();
            match refused(dir.path(), 2) {
                Error::Locked { path, holder } => {
                    assert_eq!(holder, Some(child.id()));
                    assert_eq!(path, dir.path().join("LOCK"));
                }
                other => panic!("{other:?}"),
            }
            // It might have been about to go.
            assert!(started.elapsed() > Duration::from_millis(900), "{:?}", started.elapsed());
        }
        assert_ne!(child.id(), pid);
        pid = child.id();
        child.kill().unwrap();
        // Not even waited for.
        let store = small(dir.path(), 2).open().unwrap();
        let held = run(store.get("held")).unwrap().unwrap();
        assert_eq!(held, pid.to_string().as_bytes());
        let locked = fs::read_to_string(dir.path().join("LOCK")).unwrap();
        assert_eq!(locked.trim(), std::process::id().to_string());
        child.wait().unwrap();
    }
}

#[test]
fn a_lock_that_names_a_process_that_lives_is_not_taken_for_held() {
    let dir = memory_dir();
    drop(open(dir.path(), 1));
    // As a killed process may have left it, whose number somebody else has now.
    for text in ["1\n", "", "not a number", "99999999999999999999"] {
        fs::write(dir.path().join("LOCK"), text).unwrap();
        drop(open(dir.path(), 1));
    }
}

#[test]
fn two_handles_of_one_process_do_not_open_one_store() {
    let _dog = Watchdog::new();
    let dir = memory_dir();
    let store = open(dir.path(), 1);
    run(store.put("key", "value")).unwrap();
    match refused(dir.path(), 1) {
        Error::Locked { holder, .. } => assert_eq!(holder, Some(std::process::id())),
        other => panic!("{other:?}"),
    }
    // By another name of the directory neither.
    let link = memory_dir();
    std::os::unix::fs::symlink(dir.path(), link.path().join("link")).unwrap();
    assert!(matches!(refused(&link.path().join("link"), 1), Error::Locked { .. }));
    assert_eq!(run(store.get("key")).unwrap().as_deref(), Some(&b"value"[..]));
    drop(store);
    drop(open(&link.path().join("link"), 1));
}

fn limit_files(count: u64) {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the limit is there for the call.
    assert_eq!(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) }, 0);
    limit.rlim_cur = count;
    // SAFETY: the limit is there for the call.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) }, 0);
}

fn is_open_file_limit(error: &Error) -> bool {
    // Said by the call that met it, or by the message that names it.
    matches!(
        error,
        Error::Io { .. } | Error::Full { .. } | Error::Runtime(_) | Error::Poisoned { .. }
    )
}

#[test]
fn a_store_of_many_segments_works_with_few_descriptors_or_says_why_not() {
    const TEST: &str = "a_store_of_many_segments_works_with_few_descriptors_or_says_why_not";
    const KEYS: usize = 4_000;
    let name = |n: usize| format!("key {n}");
    let value = |n: usize| vec![u8::try_from(n % 250).unwrap(); 1500];
    if let Some(dir) = told(TEST) {
        let _dog = Watchdog::of(Duration::from_secs(60));
        let mut opened = Vec::new();
        for count in [5, 8, 11, 14, 17, 20, 24, 30, 50] {
            limit_files(count);
            let store = match small(&dir, 1).durability(Durability::Buffered).open() {
                Ok(store) => store,
                Err(error) => {
                    assert!(is_open_file_limit(&error), "{count} files: {error:?}");
                    continue;
                }
            };
            opened.push(count);
            let mut rng = Rng(count);
            for _ in 0..300 {
                let n = rng.below(KEYS);
                match run(store.get(name(n))) {
                    Ok(found) => assert!(found.as_deref() == Some(&value(n)[..]), "key {n}"),
                    Err(error) => assert!(is_open_file_limit(&error), "{count}: {error:?}"),
                }
                if let Err(error) = run(store.put(name(n), value(n))) {
                    assert!(is_open_file_limit(&error), "{count} files: {error:?}");
                }
            }
            let many = run(store.get_many((0..200).map(|n| name(n * 17))));
            assert!(many.as_ref().is_err_and(is_open_file_limit) || many.is_ok(), "{many:?}");
            if let Err(error) = run(store.close()) {
                assert!(is_open_file_limit(&error), "{count} files: {error:?}");
            }
        }
        // Three of its own, the ring and its bell, the lock, a folder, and two segments at the least.
        assert!(opened.ends_with(&[20, 24, 30, 50]), "it opened with {opened:?} files");
        return;
    }
    let _one = one_at_a_time();
    let _dog = Watchdog::new();
    let dir = memory_dir();
    let store = small(dir.path(), 1).durability(Durability::Buffered).open().unwrap();
    run(try_join_all((0..KEYS).map(|n| store.put(name(n), value(n))))).unwrap();
    assert!(files(dir.path(), "log").len() > 90);
    run(store.close()).unwrap();
    run_child(TEST, dir.path());
    let store = small(dir.path(), 1).open().unwrap();
    let all: Model = (0..KEYS).map(|n| (name(n).into_bytes(), value(n))).collect();
    assert_is(&store, &all, "after few descriptors");
}

// ---- callers that go away ---------------------------------------------------------------------

/// Polls up to so many times, with pauses, and drops it then, done or not. Whether it was done.
fn poll_some<T>(mut reply: Reply<T>, polls: usize, rng: &mut Rng) -> bool {
    let mut cx = Context::from_waker(Waker::noop());
    for _ in 0..polls {
        if Pin::new(&mut reply).poll(&mut cx).is_ready() {
            return true;
        }
        for _ in 0..rng.below(200) {
            std::thread::yield_now();
        }
    }
    false
}

#[test]
fn a_write_whose_caller_goes_away_happens_whole_or_not_at_all() {
    const KEYS: usize = 40;
    let _one = one_at_a_time();
    let _dog = Watchdog::new();
    let dir = memory_dir();
    let mut rng = Rng(6);
    // What each key may have: what the last completed write left, and what came after.
    let mut possible: Vec<Vec<Option<Vec<u8>>>> = vec![vec![None]; KEYS];
    for round in 0..6 {
        let store = open(dir.path(), 2);
        for n in 0..400 {
            let at = rng.below(KEYS);
            let polls = rng.below(6);
            let (new, done) = if rng.below(4) == 0 {
                (None, poll_some(store.delete(at.to_string()), polls, &mut rng))
            } else {
                let value = format!("{round}/{n} ").repeat(1 + rng.below(40)).into_bytes();
                let put = store.put(at.to_string(), &value);
                (Some(value), poll_some(put, polls, &mut rng))
            };
            if done {
                possible[at] = vec![new];
            } else if polls > 0 {
                possible[at].push(new);
            }
            // Others are served meanwhile.
            if n % 50 == 0 {
                run(store.put("other", n.to_string())).unwrap();
                let other = run(store.get("other")).unwrap();
                assert_eq!(other.as_deref(), Some(n.to_string().as_bytes()));
            }
            let polls = rng.below(3);
            poll_some(store.get(at.to_string()), polls, &mut rng);
        }
        if round % 2 == 0 {
            run(store.close()).unwrap();
        } else {
            drop(store);
        }
        let store = open(dir.path(), 2);
        for (at, possible) in possible.iter_mut().enumerate() {
            let found = run(store.get(at.to_string())).unwrap().map(Vec::from);
            assert!(possible.contains(&found), "key {at} has {found:?} of {possible:?}");
            *possible = vec![found];
        }
    }
}

/// Whether a future asks to be polled again.
struct Woken(AtomicBool);

impl Woken {
    fn new() -> (Arc<Self>, Waker) {
        let woken = Arc::new(Self(AtomicBool::new(false)));
        (Arc::clone(&woken), woken.into())
    }
}

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Release);
    }
}

/// Dropped between its first poll and its end, a `close` still ends the store, and lets nobody in
/// before all of it has ended.
#[test]
fn a_close_whose_caller_goes_away_still_closes() {
    let _one = one_at_a_time();
    let _dog = Watchdog::new();
    for round in 0..20 {
        let dir = memory_dir();
        let store = open(dir.path(), 2);
        let clone = store.clone();
        run(store.put("key", "value")).unwrap();
        let mut close = store.close();
        let (woken, waker) = Woken::new();
        let mut cx = Context::from_waker(&waker);
        // Given up after each of its steps.
        for step in 0..=round % 5 {
            woken.0.store(false, Ordering::Release);
            if Pin::new(&mut close).poll(&mut cx).is_ready() {
                break;
            }
            while step < round % 5 && !woken.0.load(Ordering::Acquire) {
                std::thread::yield_now();
            }
        }
        drop(close);
        assert!(matches!(run(clone.put("key", "late")), Err(Error::Closed)));
        drop(clone);
        // It may still be about it, with nobody to tell; until then the lock is held.
        let lock = fs::File::open(dir.path().join("LOCK")).unwrap();
        lock.lock().unwrap();
        let logs = fs::read_dir("/proc/self/fd")
            .unwrap()
            .filter_map(|entry| fs::read_link(entry.unwrap().path()).ok())
            .filter(|file| file.starts_with(fs::canonicalize(dir.path()).unwrap()))
            .filter(|file| file.extension().is_some_and(|extension| extension == "log"));
        assert_eq!(logs.count(), 0, "its logs are open, and its lock is not held");
        drop(lock);
        let store = open(dir.path(), 2);
        assert_eq!(run(store.get("key")).unwrap().as_deref(), Some(&b"value"[..]));
    }
}
