//! Counts, and closing with everything under way.

#![allow(missing_docs, clippy::unwrap_used)]

mod store_common;
mod store_kit;

use futures::future::{Either, ready, try_join_all};
use ringlog::{Durability, Error, PutOptions, Reply, Store};
use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use store_common::{Watchdog, disk_dir, open, run};
use store_kit::{assert_is, cold, is_closed, put_cold, scan_all, small};

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
        run(store.put_many([("key", "value")])),
        run(store.put_many([("", ""); 0])),
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
