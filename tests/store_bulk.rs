//! The operations on whole stores, and their edge cases: scans, compaction, verification, backups,
//! counts, durability, closing.

#![allow(missing_docs, clippy::unwrap_used)]

mod store_common;
mod store_kit;

use futures::future::{Either, join_all, ready, try_join_all};
use futures::{Stream, StreamExt};
use ringlog::{Durability, Error, PutOptions, Reply, Store};
use std::collections::BTreeMap;
use std::fs;
use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use store_common::{Rng, Watchdog, disk_dir, open, run};
use store_kit::{
    Map, allocated, assert_is, files, find, flip, is_closed, remove_hints, scan_all, small,
    wait_until,
};

fn cold(n: usize) -> (Vec<u8>, Vec<u8>) {
    let mut value = format!("value {n} ").into_bytes();
    value.resize(900 + n % 300, b'.');
    (format!("cold {n}").into_bytes(), value)
}

/// Puts entries that nobody touches; gives them.
fn put_cold(store: &Store, count: usize) -> Map {
    let map: Map = (0..count).map(cold).collect();
    run(try_join_all(map.iter().map(|(key, value)| store.put(key, value)))).unwrap();
    map
}

/// Tasks on threads of their own that overwrite, delete and compact, until this is dropped.
struct Churn {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Churn {
    fn new(store: &Store, compact: bool) -> Self {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let thread = |number: u64| {
            let (store, stop, done) = (store.clone(), Arc::clone(&stop), Arc::clone(&done));
            std::thread::spawn(move || {
                let mut rng = Rng(number);
                while !stop.load(Ordering::Relaxed) {
                    let step: Vec<_> = (0..8)
                        .map(|_| {
                            let key = format!("hot {}", rng.below(60));
                            let value = rng.bytes(500);
                            let (store, delete) = (store.clone(), rng.below(4) == 0);
                            async move {
                                if delete {
                                    store.delete(key).await.map(drop)
                                } else {
                                    store.put(key, value).await
                                }
                            }
                        })
                        .collect();
                    run(try_join_all(step)).unwrap();
                    if compact && number == 0 {
                        run(store.compact()).unwrap();
                    }
                    done.fetch_add(1, Ordering::Relaxed);
                }
            })
        };
        let threads = (0..2).map(thread).collect();
        Self { stop, done, threads }
    }

    /// Waits until so many more steps were done.
    fn go_on(&self, steps: u64) {
        let target = self.done.load(Ordering::Relaxed) + steps;
        wait_until("writers go on", || self.done.load(Ordering::Relaxed) >= target);
    }
}

impl Drop for Churn {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking(), "a writer failed");
        }
    }
}

// ---- scans ------------------------------------------------------------------------------------

fn is_stream<S: Stream + Send + Unpin + 'static>(_: &S) {}

#[test]
fn a_scan_shows_every_entry_once_and_then_ends() {
    let dir = disk_dir();
    let store = small(dir.path(), 3).open().unwrap();
    assert_eq!(scan_all(&store).len(), 0);
    let map = put_cold(&store, 300);
    run(store.put("dead", "d")).unwrap();
    run(store.delete("dead")).unwrap();
    assert_is(&store, &map, "scanned");
    let scan = store.scan();
    is_stream(&scan);
    let mut shown: Vec<_> = run(scan.map(|entry| entry.unwrap().key).collect());
    shown.sort();
    assert!(shown.iter().eq(map.keys()));
    let mut scan = store.scan();
    while run(scan.next()).is_some() {}
    assert!(run(scan.next()).is_none() && run(scan.next()).is_none());
}

#[test]
fn a_scan_of_a_prefix_shows_what_begins_so() {
    let dir = disk_dir();
    let store = small(dir.path(), 2).open().unwrap();
    let keys: [&[u8]; 8] = [b"", b"a", b"ab", b"abc", b"b", b"\xff", b"\xff\xff", b"\xff\xff\x00"];
    run(try_join_all(keys.iter().map(|key| store.put(key, "")))).unwrap();
    for prefix in [&b""[..], b"a", b"ab", b"abc", b"abcd", b"c", b"\xff", b"\xff\xff"] {
        let scan = store.scan_prefix(prefix);
        let mut shown: Vec<_> = run(scan.map(|entry| entry.unwrap().key.to_vec()).collect());
        shown.sort();
        let wanted = keys.iter().filter(|key| key.starts_with(prefix));
        assert!(shown.iter().eq(wanted), "{prefix:?}: {shown:?}");
    }
}

#[test]
fn what_is_not_touched_is_shown_exactly_once_whatever_goes_on() {
    let _dog = Watchdog::new();
    let dir = disk_dir();
    let store = small(dir.path(), 2).durability(Durability::Buffered).open().unwrap();
    let map = put_cold(&store, 400);
    let churn = Churn::new(&store, true);
    for round in 0..6 {
        let mut shown = BTreeMap::new();
        let mut scan = store.scan();
        while let Some(entry) = run(scan.next()) {
            let entry = entry.unwrap();
            if shown.len() % 97 == 0 {
                churn.go_on(1);
            }
            let before = shown.insert(entry.key.to_vec(), entry.value.to_vec());
            assert!(before.is_none(), "round {round}: shown twice: {:?}", entry.key);
        }
        shown.retain(|key, _| key.starts_with(b"cold"));
        assert!(shown == map, "round {round}: {} of {} shown", shown.len(), map.len());
    }
    let merges = run(store.stats()).unwrap().total().merges;
    assert!(merges > 0, "nothing went on");
    drop(churn);
}

#[test]
fn a_scan_that_is_not_read_on_stops_nobody_and_goes_on_where_it_was() {
    let _dog = Watchdog::new();
    let dir = disk_dir();
    let store = small(dir.path(), 2).durability(Durability::Buffered).open().unwrap();
    let map = put_cold(&store, 800);
    let mut scan = store.scan();
    let first = run(scan.next()).unwrap().unwrap();
    let mut shown = Map::from([(first.key.to_vec(), first.value.to_vec())]);
    {
        let churn = Churn::new(&store, true);
        churn.go_on(60);
    }
    while let Some(entry) = run(scan.next()) {
        let entry = entry.unwrap();
        assert!(shown.insert(entry.key.to_vec(), entry.value.to_vec()).is_none());
    }
    shown.retain(|key, _| key.starts_with(b"cold"));
    assert!(shown == map, "{} of {} shown", shown.len(), map.len());
}

#[test]
fn the_space_that_a_scan_has_kept_comes_back_when_it_has_passed_or_is_dropped() {
    let _dog = Watchdog::new();
    for passes in [true, false] {
        let dir = disk_dir();
        let store = small(dir.path(), 1).durability(Durability::Buffered).open().unwrap();
        put_cold(&store, 2000);
        let full = allocated(dir.path());
        let mut scan = store.scan();
        run(scan.next()).unwrap().unwrap();
        run(try_join_all((0..2000).map(|n| store.delete(cold(n).0)))).unwrap();
        run(store.compact()).unwrap();
        assert!(allocated(dir.path()) > full / 2, "it had nothing to keep");
        if passes {
            let mut shown = 0;
            while let Some(entry) = run(scan.next()) {
                entry.unwrap();
                shown += 1;
            }
            assert!(shown < 2000, "deleted entries were shown");
        } else {
            drop(scan);
        }
        wait_until("the space comes back", || allocated(dir.path()) < full / 4);
        run(store.put("key", "value")).unwrap();
        assert_eq!(scan_all(&store).len(), 1);
    }
}

#[test]
fn many_scans_at_the_same_time_each_show_everything() {
    let dir = disk_dir();
    let store = small(dir.path(), 3).open().unwrap();
    let map = put_cold(&store, 200);
    let scan = || store.scan().map(|entry| entry.unwrap().key).collect::<Vec<_>>();
    for mut shown in run(join_all((0..20).map(|_| scan()))) {
        shown.sort();
        assert!(shown.iter().eq(map.keys()));
    }
}

#[test]
fn a_scan_of_a_closed_store_says_so_and_ends() {
    let dir = disk_dir();
    let store = small(dir.path(), 2).open().unwrap();
    put_cold(&store, 2000);
    let clone = store.clone();
    let mut under_way = store.scan();
    run(under_way.next()).unwrap().unwrap();
    let mut not_begun = store.scan();
    run(store.close()).unwrap();
    let mut late = clone.scan();
    for scan in [&mut late, &mut not_begun] {
        assert!(matches!(run(scan.next()), Some(Err(Error::Closed))));
        assert!(run(scan.next()).is_none());
    }
    // What it had read already it may show.
    let mut shown = 0;
    let last = loop {
        match run(under_way.next()) {
            Some(Ok(_)) => shown += 1,
            last => break last,
        }
    };
    assert!(matches!(last, Some(Err(Error::Closed))) && shown < 1999, "{shown}: {last:?}");
    assert!(run(under_way.next()).is_none());
    // It keeps nobody out.
    drop(open(dir.path(), 2));
}

#[test]
fn a_scan_that_meets_damage_says_where_and_ends() {
    let dir = disk_dir();
    let store = small(dir.path(), 1).open().unwrap();
    put_cold(&store, 300);
    let (path, at) = find(dir.path(), &cold(150).1);
    flip(&path, at + 20);
    let mut scan = store.scan();
    let mut shown = 0;
    let error = loop {
        match run(scan.next()).unwrap() {
            Ok(_) => shown += 1,
            Err(error) => break error,
        }
    };
    match error {
        Error::Corrupt { path: found, offset, .. } => {
            assert_eq!(found, path);
            assert!((at - 64..=at).contains(&offset), "{offset} for {at}");
        }
        other => panic!("{other:?}"),
    }
    assert!(shown < 300 && run(scan.next()).is_none());
}

// ---- compaction -------------------------------------------------------------------------------

#[test]
fn compaction_gives_back_all_garbage_and_changes_nothing_else() {
    let _dog = Watchdog::new();
    let dir = disk_dir();
    let builder = small(dir.path(), 2).durability(Durability::Buffered);
    let store = builder.clone().open().unwrap();
    run(store.compact()).unwrap();
    assert!(run(store.is_empty()).unwrap());
    let map = put_cold(&store, 300);
    let live: u64 = map.iter().map(|(key, value)| (key.len() + value.len() + 32) as u64).sum();
    for round in 0..4 {
        run(try_join_all((0..300).map(|n| store.put(cold(n).0, "short")))).unwrap();
        put_cold(&store, 300);
        let passing = |n| format!("passing {n}");
        run(try_join_all((0..100).map(|n| store.put(passing(n), vec![1; 800])))).unwrap();
        run(try_join_all((0..100).map(|n| store.delete(passing(n))))).unwrap();
        run(store.compact()).unwrap();
        assert_is(&store, &map, &format!("round {round}"));
        let stats = run(store.stats()).unwrap().total();
        // What frames the records: a header, a seal and some marks in each segment.
        assert!(stats.log_bytes < live + live / 3 + 64 * 1024, "{stats:?}, {live} live");
    }
    drop(store);
    assert_is(&builder.open().unwrap(), &map, "reopened");
}

#[test]
fn compaction_at_once_after_opening_leaves_no_garbage_either() {
    let _dog = Watchdog::new();
    for segment in [64 << 10, 32 << 20] {
        let dir = disk_dir();
        let builder = small(dir.path(), 1).durability(Durability::Buffered).segment_bytes(segment);
        let store = builder.clone().open().unwrap();
        put_cold(&store, 6000);
        let key = |n: usize| cold(n).0;
        // Not enough of each segment that it would be merged by itself.
        run(try_join_all((0..6000).step_by(3).map(|n| store.delete(key(n))))).unwrap();
        let before = run(store.stats()).unwrap().total();
        drop(store);
        // Their hints are being written when compaction begins.
        remove_hints(dir.path());
        let store = builder.open().unwrap();
        run(store.compact()).unwrap();
        let after = run(store.stats()).unwrap().total();
        assert!(
            after.log_bytes < after.live_bytes / 2 * 3 + 64 * 1024,
            "segments of {segment}: {before:?}, and then {after:?}"
        );
    }
}

#[test]
fn compaction_at_once_after_a_rotation_leaves_no_garbage_either() {
    let _dog = Watchdog::new();
    let dir = disk_dir();
    let store = small(dir.path(), 1).durability(Durability::Buffered).open().unwrap();
    run(store.put("large", vec![1; 60 << 20])).unwrap();
    // Into the next segment, while the hint of that one is being written, which takes a while.
    assert!(run(store.delete("large")).unwrap());
    run(store.compact()).unwrap();
    let stats = run(store.stats()).unwrap().total();
    assert!(stats.log_bytes < 1 << 20, "{stats:?}");
}

#[test]
fn compactions_at_the_same_time_do_what_one_does() {
    let _dog = Watchdog::new();
    let dir = disk_dir();
    let store = small(dir.path(), 2).open().unwrap();
    let mut map = put_cold(&store, 200);
    for round in 0..5 {
        for n in (round..200).step_by(7) {
            run(store.delete(cold(n).0)).unwrap();
            map.remove(&cold(n).0);
        }
        run(try_join_all((0..4).map(|_| store.compact()))).unwrap();
        assert_is(&store, &map, &format!("round {round}"));
    }
}

#[test]
fn compaction_of_a_damaged_segment_says_so_and_loses_nothing() {
    let dir = disk_dir();
    let store = small(dir.path(), 1).durability(Durability::Buffered).open().unwrap();
    let mut map = put_cold(&store, 300);
    let (path, at) = find(dir.path(), &cold(150).1);
    for n in (0..300).step_by(2) {
        run(store.delete(cold(n).0)).unwrap();
        map.remove(&cold(n).0);
    }
    let name = path.file_name().unwrap().to_owned();
    if !path.exists() {
        return; // it was merged by itself meanwhile
    }
    flip(&path, at + 20);
    for _ in 0..2 {
        match run(store.compact()) {
            Err(Error::Corrupt { path, .. }) => assert_eq!(path.file_name().unwrap(), name),
            // Merges that ran by themselves have met it first, and leave it alone.
            Ok(()) => {}
            Err(other) => panic!("{other:?}"),
        }
    }
    for (key, value) in &map {
        assert_eq!(run(store.get(key)).unwrap().as_deref(), Some(&value[..]));
    }
    assert!(path.exists(), "a damaged segment was given up");
}

// ---- verification -----------------------------------------------------------------------------

#[test]
fn a_sound_store_is_verified_as_sound_also_under_load() {
    let _dog = Watchdog::new();
    let dir = disk_dir();
    let store = small(dir.path(), 2).open().unwrap();
    let empty = run(store.verify()).unwrap();
    assert!(empty.is_sound() && empty.records == 0, "{empty:?}");
    put_cold(&store, 300);
    let quiet = run(store.verify()).unwrap();
    assert!(quiet.is_sound() && quiet.records >= 300 && quiet.bytes > 300_000, "{quiet:?}");
    let churn = Churn::new(&store, true);
    for round in 0..10 {
        let busy = run(store.verify()).unwrap();
        assert!(busy.is_sound(), "round {round}: {:?}", busy.problems);
        churn.go_on(1);
    }
}

#[test]
fn verification_finds_a_changed_byte_in_any_record_dead_or_alive() {
    for alive in [true, false] {
        for sealed in [true, false] {
            let dir = disk_dir();
            let store = small(dir.path(), 1).cache_bytes(0).open().unwrap();
            put_cold(&store, 40);
            let rare = b"a value that is nowhere else";
            run(store.put("rare", rare)).unwrap();
            let (path, at) = find(dir.path(), rare);
            if !alive {
                run(store.put("rare", "newer")).unwrap();
            }
            if sealed {
                put_cold(&store, 120);
            }
            run(store.put("last", "value")).unwrap();
            assert!(run(store.verify()).unwrap().is_sound());
            flip(&path, at + 5);
            let before = fs::read(&path).unwrap();
            let report = run(store.verify()).unwrap();
            assert!(!report.is_sound(), "alive {alive}, sealed {sealed}");
            match &report.problems[0] {
                Error::Corrupt { path: found, offset, .. } => {
                    assert_eq!(*found, path);
                    assert!((at - 64..=at).contains(offset), "{offset} for {at}");
                }
                other => panic!("{other:?}"),
            }
            // Behind the tail an idle store makes its mark.
            let after = fs::read(&path).unwrap();
            let end = usize::try_from(at).unwrap() + 64;
            assert!(after[..end] == before[..end], "it was written to");
            let got = run(store.get("rare"));
            if alive {
                assert!(matches!(got, Err(Error::Corrupt { .. })), "{got:?}");
            } else {
                assert_eq!(got.unwrap().as_deref(), Some(&b"newer"[..]));
            }
        }
    }
}

#[test]
fn verification_finds_a_hint_that_does_not_say_what_its_segment_holds() {
    let dir = disk_dir();
    let store = small(dir.path(), 1).open().unwrap();
    put_cold(&store, 200);
    run(store.close()).unwrap();
    let store = small(dir.path(), 1).open().unwrap();
    assert!(run(store.verify()).unwrap().is_sound());
    let path = files(dir.path(), "hint").remove(0);
    let good = fs::read(&path).unwrap();
    // The last entry says another place and length. Its sum is right.
    for at in [8, 4, 20] {
        let mut wrong = good.clone();
        let body = wrong.len() - 4;
        wrong[body - at] ^= 1;
        let sum = crc32fast::hash(&wrong[..body]).to_le_bytes();
        wrong[body..].copy_from_slice(&sum);
        fs::write(&path, &wrong).unwrap();
        let problems = run(store.verify()).unwrap().problems;
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(matches!(&problems[0], Error::Corrupt { path: found, .. } if *found == path));
    }
    fs::write(&path, &good).unwrap();
    assert!(run(store.verify()).unwrap().is_sound());
}

/// A read never takes damage for "not there".
#[test]
fn a_segment_that_was_cut_under_the_store_is_damage_and_not_absence() {
    let dir = disk_dir();
    let store = small(dir.path(), 1).cache_bytes(0).open().unwrap();
    put_cold(&store, 100);
    let (path, at) = find(dir.path(), &cold(20).1);
    let file = fs::File::options().write(true).open(&path).unwrap();
    for len in [at + 100, at, at - 10, 4096, 10, 0] {
        file.set_len(len).unwrap();
        let (key, _) = cold(20);
        for got in [run(store.get(&key)), run(store.update(&key, |_| panic!("what value?")))] {
            assert!(matches!(got, Err(Error::Corrupt { .. })), "cut at {len}: {got:?}");
        }
        let many = run(store.get_many([&key]));
        assert!(matches!(many, Err(Error::Corrupt { .. })), "cut at {len}: {many:?}");
        assert!(!run(store.verify()).unwrap().is_sound());
    }
    // Others go on.
    run(store.put("key", "value")).unwrap();
    assert_eq!(run(store.get("key")).unwrap().as_deref(), Some(&b"value"[..]));
}

// ---- backups ----------------------------------------------------------------------------------

#[test]
fn a_backup_opens_and_holds_what_the_store_held() {
    let _dog = Watchdog::new();
    for durability in [Durability::Sync, Durability::Buffered] {
        for count in [0, 1, 300] {
            let dir = disk_dir();
            let (source, target) = (dir.path().join("source"), dir.path().join("new/target"));
            let store = small(&source, 3).durability(durability).open().unwrap();
            let mut map = put_cold(&store, count);
            let expiring = PutOptions::new().ttl(Duration::from_secs(3600));
            if count > 0 {
                run(store.put_with(cold(0).0, "expires", expiring)).unwrap().unwrap();
                map.insert(cold(0).0, b"expires".to_vec());
            }
            let entries = scan_all(&store);
            run(store.backup(&target)).unwrap();
            // What happens to the source afterwards is nothing to the copy, and the reverse.
            for n in 0..count {
                run(store.put(cold(n).0, "changed")).unwrap();
            }
            run(store.compact()).unwrap();
            for _ in 0..2 {
                let copy = small(&target, 3).open().unwrap();
                assert!(copy.open_report().is_clean(), "{:?}", copy.open_report());
                assert_is(&copy, &map, "the copy");
                let copied = scan_all(&copy);
                for (key, entry) in &entries {
                    assert_eq!(copied[key].version, entry.version);
                    assert_eq!(copied[key].expires_at, entry.expires_at);
                }
                run(copy.put("only here", "value")).unwrap();
                map.insert(b"only here".to_vec(), b"value".to_vec());
                run(copy.compact()).unwrap();
                assert_is(&copy, &map, "the copy, compacted");
            }
            let changed = scan_all(&store);
            assert!(changed.values().all(|entry| entry.value == "changed"));
            assert_eq!(changed.len(), count);
            drop(store);
            assert_eq!(scan_all(&small(&source, 3).open().unwrap()).len(), count);
        }
    }
}

#[test]
fn a_backup_needs_a_new_or_an_empty_directory() {
    let dir = disk_dir();
    let store = open(&dir.path().join("source"), 2);
    run(store.put("key", "value")).unwrap();
    let target = dir.path().join("target");
    fs::create_dir(&target).unwrap();
    run(store.backup(&target)).unwrap();
    let before = files(&target, "log");
    for taken in [&target, &dir.path().join("source"), dir.path()] {
        assert!(matches!(run(store.backup(taken)), Err(Error::Io { .. })));
    }
    let file = dir.path().join("file");
    fs::write(&file, "mine").unwrap();
    assert!(matches!(run(store.backup(&file)), Err(Error::Io { .. })));
    assert_eq!(fs::read(&file).unwrap(), b"mine");
    assert_eq!(files(&target, "log"), before);
    assert_eq!(run(open(&target, 2).get("key")).unwrap().as_deref(), Some(&b"value"[..]));
    assert_eq!(run(store.get("key")).unwrap().as_deref(), Some(&b"value"[..]));
}

/// One task writes 0, 1, 2, ... to keys of different partitions, each when the one before was
/// acknowledged: so a copy that has one has all before it.
#[test]
fn a_backup_under_load_is_a_cut_through_all_partitions() {
    const CHAINS: usize = 4;
    let _dog = Watchdog::new();
    for durability in [Durability::Sync, Durability::Buffered] {
        let dir = disk_dir();
        let store = small(&dir.path().join("source"), 3).durability(durability).open().unwrap();
        let map = put_cold(&store, 100);
        let stop = Arc::new(AtomicBool::new(false));
        let reached: Arc<[AtomicU64; CHAINS]> = Arc::default();
        let chain = |number: usize| {
            let (store, stop) = (store.clone(), Arc::clone(&stop));
            let reached = Arc::clone(&reached);
            std::thread::spawn(move || {
                for n in 0u64.. {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let mut value = n.to_le_bytes().to_vec();
                    value.resize(1500, 0);
                    run(store.put(format!("chain {number}, {n}"), value)).unwrap();
                    reached[number].store(n + 1, Ordering::SeqCst);
                }
            })
        };
        let threads: Vec<_> = (0..CHAINS).map(chain).collect();
        let churn = Churn::new(&store, true);
        let mut copies = Vec::new();
        for n in 0..8 {
            churn.go_on(2);
            let before: Vec<u64> = reached.iter().map(|n| n.load(Ordering::SeqCst)).collect();
            let target = dir.path().join(format!("copy {n}"));
            run(store.backup(&target)).unwrap();
            let after: Vec<u64> = reached.iter().map(|n| n.load(Ordering::SeqCst)).collect();
            copies.push((target, before, after));
        }
        stop.store(true, Ordering::Relaxed);
        for thread in threads {
            thread.join().unwrap();
        }
        drop(churn);
        run(store.compact()).unwrap();
        for (target, before, after) in copies {
            let copy = small(&target, 3).open().unwrap();
            assert!(copy.open_report().is_clean(), "{:?}", copy.open_report());
            let all = scan_all(&copy);
            for (key, value) in &map {
                assert!(all[key].value == value[..]);
            }
            for number in 0..CHAINS {
                let of_chain = format!("chain {number}, ");
                let there = all.keys().filter(|key| key.starts_with(of_chain.as_bytes())).count();
                let there = u64::try_from(there).unwrap();
                for n in 0..there {
                    let entry = &all[format!("chain {number}, {n}").as_bytes()];
                    assert_eq!(entry.value[..8], n.to_le_bytes(), "not a prefix of {number}");
                }
                // What was acknowledged before it began is there; one more may be on its way.
                assert!(there >= before[number] && there <= after[number] + 1);
            }
            assert!(run(copy.verify()).unwrap().is_sound());
        }
    }
}

#[test]
fn backups_at_the_same_time_do_not_wait_for_each_other_for_ever() {
    let _dog = Watchdog::new();
    let dir = disk_dir();
    let store = small(&dir.path().join("source"), 3).open().unwrap();
    let map = put_cold(&store, 100);
    let churn = Churn::new(&store, false);
    let target = |n| dir.path().join(format!("copy {n}"));
    run(try_join_all((0..4).map(|n| store.backup(target(n))))).unwrap();
    // One whose caller goes away in the middle holds up nothing.
    for polls in 0..20 {
        let mut backup = store.backup(dir.path().join(format!("dropped {polls}")));
        let mut cx = Context::from_waker(Waker::noop());
        for _ in 0..polls {
            if Pin::new(&mut backup).poll(&mut cx).is_ready() {
                break;
            }
            std::thread::yield_now();
        }
        drop(backup);
        run(store.put("key", "value")).unwrap();
    }
    churn.go_on(3);
    drop(churn);
    for n in 0..4 {
        let copy = small(&target(n), 3).open().unwrap();
        let all = scan_all(&copy);
        assert!(map.iter().all(|(key, value)| all[key].value == value[..]));
    }
}

// ---- durability -------------------------------------------------------------------------------

/// A sync ends the log on a block: that can be seen from outside, and the sync itself cannot.
fn is_synced(store: &Store) -> bool {
    let stats = run(store.stats()).unwrap();
    stats.partitions.iter().all(|partition| partition.log_bytes % 4096 == 0)
}

const HOUR: Duration = Duration::from_secs(3600);

#[test]
fn writes_are_synced_when_they_or_the_store_ask_for_it() {
    let dir = disk_dir();
    let buffered = PutOptions::new().durability(Durability::Buffered);
    let sync = PutOptions::new().durability(Durability::Sync);
    let store = Store::builder(dir.path()).durability(Durability::Buffered).open().unwrap();
    let put = |key: &str, options| run(store.put_with(key, "value", options)).unwrap().unwrap();
    run(store.put("a", "value")).unwrap();
    assert!(!is_synced(&store));
    put("b", sync);
    assert!(is_synced(&store));
    run(store.delete("b")).unwrap();
    assert!(!is_synced(&store));
    run(store.sync()).unwrap();
    assert!(is_synced(&store));
    run(store.update("a", |_| Some(Vec::new()))).unwrap();
    assert!(!is_synced(&store));
    drop(store);
    let store = open(dir.path(), 1);
    run(store.put("a", "value")).unwrap();
    assert!(is_synced(&store));
    run(store.put_with("b", "value", buffered)).unwrap().unwrap();
    assert!(!is_synced(&store));
    run(store.delete("a")).unwrap();
    assert!(is_synced(&store));
}

#[test]
fn an_interval_write_is_synced_within_its_own_interval() {
    let dir = disk_dir();
    let store = Store::builder(dir.path()).durability(Durability::Interval(HOUR)).open().unwrap();
    run(store.put("a", "value")).unwrap();
    assert!(!is_synced(&store));
    let soon = Durability::Interval(Duration::from_millis(2));
    for round in 0..5 {
        // Whatever longer one is under way.
        run(store.put("a", vec![round; 3])).unwrap();
        let put = store.put_with("b", vec![round; 3], PutOptions::new().durability(soon));
        run(put).unwrap().unwrap();
        wait_until("a write is synced", || is_synced(&store));
    }
}

/// Ways to let go of a store.
#[derive(Clone, Copy, Debug)]
enum End {
    Close,
    Drop,
    DropElsewhere,
    CloseAndForget,
}

#[test]
fn whatever_was_acknowledged_in_whatever_mode_is_there_after_whatever_end() {
    let _dog = Watchdog::new();
    let modes = [
        Durability::Sync,
        Durability::Interval(HOUR),
        Durability::Interval(Duration::from_millis(1)),
        Durability::Buffered,
    ];
    for mode in modes {
        for end in [End::Close, End::Drop, End::DropElsewhere, End::CloseAndForget] {
            let dir = disk_dir();
            let builder = small(dir.path(), 2).durability(mode);
            let mut map = Map::new();
            for round in 0..3 {
                let store = builder.clone().open().unwrap();
                assert_is(&store, &map, &format!("{mode:?}, {end:?}, round {round}"));
                map.extend(put_cold(&store, 40 + 40 * round));
                run(store.put("last", round.to_string())).unwrap();
                map.insert(b"last".to_vec(), round.to_string().into_bytes());
                run(store.delete(cold(round).0)).unwrap();
                map.remove(&cold(round).0);
                match end {
                    End::Close => run(store.close()).unwrap(),
                    End::Drop => drop(store),
                    End::DropElsewhere => std::thread::spawn(move || drop(store)).join().unwrap(),
                    End::CloseAndForget => {
                        let mut close = store.close();
                        let mut cx = Context::from_waker(Waker::noop());
                        assert!(Pin::new(&mut close).poll(&mut cx).is_pending());
                    }
                }
            }
            let store = builder.open().unwrap();
            assert_is(&store, &map, &format!("{mode:?}, {end:?}, at last"));
            if matches!(end, End::Close) {
                let report = store.open_report();
                assert!(report.is_clean());
                for partition in &report.partitions {
                    assert_eq!(partition.hinted, partition.segments, "{report:?}");
                    assert_eq!(partition.scanned_bytes, 0);
                }
            }
        }
    }
}

// ---- counts and closing -----------------------------------------------------------------------

#[test]
fn stats_say_what_there_is_and_what_was_done() {
    let dir = disk_dir();
    let store = small(dir.path(), 2).open().unwrap();
    let none = run(store.stats()).unwrap().total();
    assert_eq!((none.keys, none.live_bytes, none.records, none.merges), (0, 0, 0, 0));
    let map = put_cold(&store, 300);
    let bytes: u64 = map.iter().map(|(key, value)| (key.len() + value.len()) as u64).sum();
    let full = run(store.stats()).unwrap();
    assert_eq!(full.partitions.len(), 2);
    let full = full.total();
    assert_eq!((full.keys, full.records), (300, 300));
    assert!(full.live_bytes > bytes && full.live_bytes < bytes + 300 * 40, "{full:?}");
    assert!(full.log_bytes > full.live_bytes && full.bytes_written >= bytes, "{full:?}");
    assert!(full.segments >= 2 && full.index_bytes > 300 * 20, "{full:?}");
    assert!(full.commits > 0 && full.records_per_commit() > 1.0, "{full:?}");
    for n in 0..150 {
        run(store.delete(cold(n).0)).unwrap();
    }
    run(store.compact()).unwrap();
    let after = run(store.stats()).unwrap().total();
    assert_eq!((after.keys, after.records), (150, 450));
    assert!(after.merges > 0 && after.bytes_merged > 0, "{after:?}");
    assert!(after.live_bytes < full.live_bytes && after.log_bytes < full.log_bytes, "{after:?}");
    drop(store);
    let store = small(dir.path(), 2).open().unwrap();
    let again = run(store.stats()).unwrap().total();
    assert_eq!((again.keys, again.live_bytes), (after.keys, after.live_bytes));
    assert_eq!((again.records, again.merges), (0, 0));
}

/// Sends the request now.
fn start<T>(mut reply: Reply<T>) -> impl Future<Output = Result<T, Error>> {
    let mut cx = Context::from_waker(Waker::noop());
    match Pin::new(&mut reply).poll(&mut cx) {
        Poll::Ready(answer) => Either::Left(ready(answer)),
        Poll::Pending => Either::Right(reply),
    }
}

#[test]
fn closing_with_everything_under_way_loses_nothing_and_hangs_nobody() {
    let _dog = Watchdog::new();
    for round in 0..6 {
        let dir = disk_dir();
        let builder = small(&dir.path().join("store"), 2).durability(if round % 2 == 0 {
            Durability::Sync
        } else {
            Durability::Buffered
        });
        let store = builder.clone().open().unwrap();
        let mut map = put_cold(&store, 600);
        for n in (0..600).step_by(2) {
            run(store.delete(cold(n).0)).unwrap();
            map.remove(&cold(n).0);
        }
        let mut scan = store.scan();
        run(scan.next()).unwrap().unwrap();
        let compact = start(store.compact());
        let verify = start(store.verify());
        let puts: Vec<_> =
            (0..50).map(|n| start(store.put(format!("late {n}"), vec![7; 2000]))).collect();
        let gets: Vec<_> = (0..50).map(|n| start(store.get(cold(n).0))).collect();
        let update = start(store.update("counter", |_| Some(b"1".to_vec())));
        let backup = start(store.backup(dir.path().join("copy")));
        let sync = start(store.sync());
        run(store.close()).unwrap();
        for (n, put) in puts.into_iter().enumerate() {
            let put = run(put);
            assert!(put.is_ok() || is_closed(&put), "{put:?}");
            if put.is_ok() {
                map.insert(format!("late {n}").into_bytes(), vec![7; 2000]);
            }
        }
        for get in gets {
            let got = run(get);
            assert!(got.is_ok() || is_closed(&got), "{got:?}");
        }
        let updated = run(update);
        assert!(updated.is_ok() || is_closed(&updated), "{updated:?}");
        if updated.is_ok() {
            map.insert(b"counter".to_vec(), b"1".to_vec());
        }
        let (compacted, verified) = (run(compact), run(verify));
        assert!(compacted.is_ok() || is_closed(&compacted), "{compacted:?}");
        assert!(verified.is_ok() || is_closed(&verified), "{verified:?}");
        let (backed, synced) = (run(backup), run(sync));
        assert!(backed.is_ok() || is_closed(&backed), "{backed:?}");
        assert!(synced.is_ok() || is_closed(&synced), "{synced:?}");
        while let Some(entry) = run(scan.next()) {
            assert!(entry.is_ok() || is_closed(&entry), "{entry:?}");
        }
        let store = builder.open().unwrap();
        let report = store.open_report().clone();
        let mut all = scan_all(&store);
        all.retain(|key, _| map.contains_key(key) || !key.starts_with(b"late"));
        if !map.contains_key(&b"counter"[..]) {
            all.remove(&b"counter"[..]);
        }
        assert!(all.keys().eq(map.keys()), "round {round}");
        assert!(all.iter().all(|(key, entry)| entry.value == map[key][..]), "round {round}");
        // It was closed: there is nothing to scan, whatever was under way.
        assert!(report.is_clean(), "round {round}: {report:?}");
        for partition in &report.partitions {
            assert_eq!(partition.scanned_bytes, 0, "round {round}: {report:?}");
        }
    }
}

/// A compaction of much does not keep a store from being closed.
#[test]
fn closing_ends_a_compaction() {
    let _dog = Watchdog::new();
    let dir = disk_dir();
    let builder = small(dir.path(), 1).durability(Durability::Buffered);
    let store = builder.clone().open().unwrap();
    let mut map = put_cold(&store, 6000);
    for n in (0..6000).step_by(4) {
        map.remove(&cold(n).0);
    }
    run(try_join_all((0..6000).step_by(4).map(|n| store.delete(cold(n).0)))).unwrap();
    let before = run(store.stats()).unwrap().total();
    let compact = start(store.compact());
    run(store.close()).unwrap();
    let ended = run(compact);
    assert!(is_closed(&ended) || before.segments < 60, "it was done to its end: {ended:?}");
    let store = builder.open().unwrap();
    for partition in &store.open_report().partitions {
        assert_eq!(partition.scanned_bytes, 0, "{:?}", store.open_report());
    }
    assert_is(&store, &map, "after a compaction that was cut short");
}

fn every_operation(store: &Store, dir: &Path) -> Vec<Result<(), Error>> {
    vec![
        run(store.put("key", "value")),
        run(store.put_with("key", "value", PutOptions::new())).map(drop),
        run(store.get("key")).map(drop),
        run(store.get_entry("key")).map(drop),
        run(store.get_many(["key"])).map(drop),
        run(store.get_many([""; 0])).map(drop),
        run(store.contains_key("key")).map(drop),
        run(store.delete("key")).map(drop),
        run(store.update("key", |_| panic!("it is closed"))).map(drop),
        run(store.len()).map(drop),
        run(store.is_empty()).map(drop),
        run(store.scan().next()).unwrap().map(drop),
        run(store.scan_prefix("k").next()).unwrap().map(drop),
        run(store.sync()),
        run(store.compact()),
        run(store.verify()).map(drop),
        run(store.backup(dir)),
        run(store.stats()).map(drop),
        run(store.clone().close()),
    ]
}

#[test]
fn after_close_every_operation_says_so() {
    let dir = disk_dir();
    let store = open(&dir.path().join("store"), 2);
    let clone = store.clone();
    run(store.close()).unwrap();
    let copy = dir.path().join("copy");
    for (n, answer) in every_operation(&clone, &copy).into_iter().enumerate() {
        assert!(is_closed(&answer), "operation {n}: {answer:?}");
    }
    assert!(!copy.exists());
}

/// Each partition's tasks ask the other's, with more than either takes in at a time.
#[test]
fn partitions_that_ask_each_other_do_not_wait_for_each_other_for_ever() {
    let _dog = Watchdog::new();
    let dir = disk_dir();
    let store = small(dir.path(), 2).durability(Durability::Buffered).open().unwrap();
    let runtime = ringlog::rt::Runtime::start(ringlog::rt::RuntimeConfig {
        num_threads: 2,
        ..Default::default()
    })
    .unwrap();
    let task = |n: usize| {
        let store = store.clone();
        runtime.thread(n % 2).schedule(async move {
            let value = vec![1; 4 << 20];
            for step in 0..3 {
                let keys: Vec<_> = (0..8).map(|key| format!("{key} {}", (n + step) % 5)).collect();
                let puts = keys.iter().map(|key| store.put(key, &value));
                try_join_all(puts).await.unwrap();
                let found = store.get_many(&keys).await.unwrap();
                assert!(found.iter().all(Option::is_some));
            }
        })
    };
    let tasks: Vec<_> = (0..8).map(task).collect();
    run(try_join_all(tasks)).unwrap();
}
