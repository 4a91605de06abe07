//! Crashes: processes that are killed while they write, disks that take no more, callers that go
//! away. What was acknowledged is there afterwards.

#![allow(missing_docs, clippy::unwrap_used)]

mod store_common;

use futures::future::{join_all, try_join_all};
use ringlog::{Error, Reply, Store};
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::path::Path;
use std::pin::Pin;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Wake, Waker};
use std::time::Duration;
use store_common::{
    Model, Rng, Watchdog, assert_holds, child, disk_dir, log_path, open, run, run_child, told,
};

/// These tests start processes, which have the locks of all threads until they are themselves.
fn one_at_a_time() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

// ---- killed -----------------------------------------------------------------------------------

const PARTITIONS: usize = 3;
const WRITERS: u32 = 8;
const KEYS_PER_WRITER: u32 = 5;

/// The `n`th operation of a writer: a key, and its new value or none.
fn operation(round: u32, writer: u32, n: u32) -> (Vec<u8>, Option<Vec<u8>>) {
    let key = format!("writer {writer}, key {}", n % KEYS_PER_WRITER).into_bytes();
    let mut rng = Rng(u64::from(round) << 40 | u64::from(writer) << 32 | u64::from(n));
    let value = (n % 4 != 3).then(|| {
        let mut value = format!("{round}/{writer}/{n} ").into_bytes();
        let len = rng.below(300);
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
    let store = open(&dir.join("store"), PARTITIONS);
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
        let mut left = 1 + rng.below(400);
        while left > 0 {
            let mut line = String::new();
            assert_ne!(pipe.read_line(&mut line).unwrap(), 0, "the child ended by itself");
            left -= note(&line);
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let store = open(&dir.path().join("store"), PARTITIONS);

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
        let keys: Vec<Vec<u8>> = (0..WRITERS)
            .flat_map(|writer| (0..KEYS_PER_WRITER).map(move |n| operation(0, writer, n).0))
            .collect();
        let what = format!("round {round} of seed {seed}, after {acks:?}");
        assert_holds(&store, &model, &keys, &what);
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
    killed_again_and_again(TEST, 12, 1);
}

#[test]
#[ignore = "takes minutes"]
fn what_a_process_killed_200_times_acknowledged_is_there() {
    const TEST: &str = "what_a_process_killed_200_times_acknowledged_is_there";
    if let Some(dir) = told(TEST) {
        return write_until_killed(&dir);
    }
    killed_again_and_again(TEST, 200, 2);
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
            run(open(&path, 4).put("key", "value")).unwrap();
            drop(open(&path, 4));
        }
    }
    let _one = one_at_a_time();
    let _dog = Watchdog::new();
    let mut rng = Rng(3);
    for round in 0..20 {
        let dir = disk_dir();
        let mut child = child(TEST, dir.path()).stdout(Stdio::piped()).spawn().unwrap();
        let mut pipe = BufReader::new(child.stdout.take().unwrap());
        let begun = 1 + rng.below(6);
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
            let store = open(&path, 4);
            let value = run(store.get("key")).unwrap();
            if n + 1 < begun {
                assert_eq!(value.as_deref(), Some(&b"value"[..]), "store {n}, round {round}");
            }
            run(store.put("key", "new")).unwrap();
            drop(store);
            let value = run(open(&path, 4).get("key")).unwrap();
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
fn assert_poisoned<T: std::fmt::Debug>(result: Result<T, Error>, log: &Path) {
    match result {
        Err(Error::Poisoned { path, cause }) => {
            assert_eq!(path, log);
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
        let log = log_path(&path, 0);
        let key = |n: u32| format!("key {n}");
        run(try_join_all((0..KEPT).map(|n| store.put(key(n), value_of(n))))).unwrap();
        limit_file_size(fs::metadata(&log).unwrap().len() + room);
        // One by one, until the file takes no more.
        let mut n = KEPT;
        let failed = loop {
            match run(store.put(key(n), value_of(n))) {
                Ok(()) => n += 1,
                failed => break failed,
            }
        };
        assert_poisoned(failed, &log);
        std::io::stdout().lock().write_all(format!("\nacknowledged {n}\n").as_bytes()).unwrap();
        let len = fs::metadata(&log).unwrap().len();
        for lifted in [false, true] {
            if lifted {
                // Even if it would work now: nobody knows what of the group is there.
                limit_file_size(libc::RLIM_INFINITY);
            }
            assert_poisoned(run(store.put("later", "value")), &log);
            assert_poisoned(run(store.put(key(0), "another")), &log);
            assert_poisoned(run(store.delete(key(1))), &log);
            assert_poisoned(run(store.sync()), &log);
            for result in run(join_all((0..10).map(|_| store.put("many", "value")))) {
                assert_poisoned(result, &log);
            }
            for n in 0..n {
                assert_eq!(run(store.get(key(n))).unwrap().as_deref(), Some(&value_of(n)[..]));
            }
            assert_eq!(run(store.get(key(n))).unwrap(), None, "it was not acknowledged");
            assert_eq!(run(store.get("later")).unwrap(), None);
        }
        assert_eq!(run(store.stats()).unwrap().total().records, u64::from(n));
        assert_eq!(fs::metadata(&log).unwrap().len(), len, "something was written");
        let clone = store.clone();
        assert_poisoned(run(store.close()), &log);
        assert!(matches!(run(clone.get(key(0))), Err(Error::Closed)));
        return;
    }
    let _one = one_at_a_time();
    let _dog = Watchdog::new();
    // The write fails at its start, within its mark, within a record, and between.
    for room in [0, 1, 23, 24, 25, 100, 1_000, 1_001, 5_000] {
        let dir = disk_dir();
        fs::write(dir.path().join("room"), room.to_string()).unwrap();
        let text = run_child(TEST, dir.path());
        let line = text.lines().find_map(|line| line.strip_prefix("acknowledged ")).unwrap();
        let acknowledged: u32 = line.parse().unwrap();
        for _ in 0..2 {
            let store = open(&dir.path().join("store"), 1);
            for n in 0..acknowledged {
                let value = run(store.get(format!("key {n}"))).unwrap();
                assert_eq!(value.as_deref(), Some(&value_of(n)[..]), "key {n}, room {room}");
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
        let mut grown = None;
        for n in 0..64u32 {
            let before = run(store.stats()).unwrap();
            run(store.put(n.to_le_bytes(), "small")).unwrap();
            let after = run(store.stats()).unwrap();
            let at = (0..2).find(|at| before.partitions[*at] != after.partitions[*at]).unwrap();
            if grown.is_none() {
                run(store.put(n.to_le_bytes(), vec![1; 100_000])).unwrap();
                grown = Some(at);
            }
        }
        let grown = grown.unwrap();
        let log = log_path(&dir, grown);
        limit_file_size(fs::metadata(&log).unwrap().len() + 1_000);
        let put = |n: u32| store.put(n.to_le_bytes(), vec![2; 100]);
        let results = run(join_all((0..64).map(put)));
        let failed = results.iter().filter(|result| result.is_err()).count();
        assert!((1..64).contains(&failed), "{failed}");
        for result in results.into_iter().filter(Result::is_err) {
            assert_poisoned(result, &log);
        }
        assert_poisoned(run(store.sync()), &log);
        // Each is judged by its own partition.
        let results = run(join_all((0..64).map(put)));
        assert_eq!(results.iter().filter(|result| result.is_err()).count(), {
            let keys = run(store.stats()).unwrap().partitions[grown].keys;
            usize::try_from(keys).unwrap()
        });
        for n in 0..64u32 {
            assert!(run(store.get(n.to_le_bytes())).unwrap().is_some());
        }
        assert_poisoned(run(store.close()), &log);
        return;
    }
    let _one = one_at_a_time();
    let dir = disk_dir();
    run_child(TEST, dir.path());
    let store = open(dir.path(), 2);
    assert_eq!(run(store.stats()).unwrap().total().keys, 64);
}

#[test]
fn a_store_that_cannot_be_made_leaves_nothing_that_stands_in_the_way() {
    const TEST: &str = "a_store_that_cannot_be_made_leaves_nothing_that_stands_in_the_way";
    if let Some(dir) = told(TEST) {
        // The lock, a log's header, the store file: each in its turn is too much.
        for len in [0, 1, 40, 60] {
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
    let dir = disk_dir();
    run_child(TEST, &dir.path().join("store"));
    assert!(run(open(&dir.path().join("store"), 2).get("key")).unwrap().is_some());
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
    let dir = disk_dir();
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
    for round in 0..150 {
        let dir = disk_dir();
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
            .filter(|file| *file == log_path(dir.path(), 0) || *file == log_path(dir.path(), 1));
        assert_eq!(logs.count(), 0, "its logs are open, and its lock is not held");
        drop(lock);
        let store = open(dir.path(), 2);
        assert_eq!(run(store.get("key")).unwrap().as_deref(), Some(&b"value"[..]));
    }
}
