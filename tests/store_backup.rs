//! Backups: a cut through all partitions, taken under load, that opens by itself.

#![allow(missing_docs, clippy::unwrap_used)]

mod store_common;
mod store_kit;

use futures::future::try_join_all;
use ringlog::{Durability, Error, PutOptions};
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Waker};
use std::time::Duration;
use store_common::{Watchdog, disk_dir, open, run};
use store_kit::{Churn, assert_is, cold, files, put_cold, scan_all, small};

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

/// It takes the time and the space of one segment a partition: on one file system all others are
/// hard links.
#[test]
fn a_backup_links_all_segments_but_the_one_that_is_written_to() {
    const PARTITIONS: usize = 2;
    let dir = disk_dir();
    let (source, target) = (dir.path().join("source"), dir.path().join("target"));
    let store = small(&source, PARTITIONS).open().unwrap();
    put_cold(&store, 300);
    let segments = run(store.stats()).unwrap().total().segments;
    run(store.backup(&target)).unwrap();
    let inodes = |dir: &Path| -> BTreeSet<u64> {
        files(dir, "log").iter().map(|path| path.metadata().unwrap().ino()).collect()
    };
    let linked = inodes(&target).intersection(&inodes(&source)).count();
    assert!(segments > 6, "{segments} segments");
    assert_eq!(linked as u64, segments - PARTITIONS as u64);
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
