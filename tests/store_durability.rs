//! The three modes: what is synced when, and what is there after which end.

#![allow(missing_docs, clippy::unwrap_used)]

mod store_common;
mod store_kit;

use ringlog::rt::{self, Executor, ExecutorConfig};
use ringlog::{Durability, PutOptions, Store};
use std::pin::Pin;
use std::task::{Context, Waker};
use std::time::Duration;
use store_common::{Watchdog, disk_dir, open, run, segment_path};
use store_kit::{Map, assert_is, cold, put_cold, small, wait_until};

/// A sync ends the log on a block: that can be seen from outside, and the sync itself cannot.
fn is_synced(store: &Store) -> bool {
    // Counting waits for what is acknowledged and on its way to the log.
    run(store.len()).unwrap();
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
    assert!(is_synced(&store), "each segment begins with a group that is synced");
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
    let quick = store.with_durability(Durability::Buffered);
    run(quick.put("a", "value")).unwrap();
    assert!(!is_synced(&store));
    run(quick.put_with("b", "value", sync)).unwrap().unwrap();
    assert!(is_synced(&store));
    run(quick.update("a", |_| Some(Vec::new()))).unwrap();
    assert!(!is_synced(&store));
    run(quick.clone().with_durability(Durability::Sync).update("a", |_| None)).unwrap();
    assert!(is_synced(&store));
    run(quick.delete("b")).unwrap();
    assert!(!is_synced(&store));
}

#[test]
fn an_interval_write_is_synced_within_its_own_interval() {
    let dir = disk_dir();
    let store = Store::builder(dir.path()).durability(Durability::Interval(HOUR)).open().unwrap();
    for value in ["in a segment's first group", "not in its first group"] {
        run(store.put("a", value)).unwrap();
        run(store.len()).unwrap();
    }
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

/// What makes a small group durable costs less where zeroes lie already.
#[test]
fn zeroes_are_written_ahead_of_small_groups_where_io_is_direct() {
    let dir = disk_dir();
    let store = Store::open(dir.path(), 1).unwrap();
    for n in 0..100 {
        run(store.put(format!("key {n}"), [7; 1000])).unwrap();
    }
    let log = segment_path(dir.path(), 0, 1);
    let direct = Executor::new(ExecutorConfig::default()).unwrap().block_on(async {
        let log = rt::open(None, &log, libc::O_RDONLY, 0).await.unwrap();
        rt::stat(&log).await.unwrap().direct.is_some()
    });
    // A block for each put, and an idle mark or two.
    let groups = 100 * 4096;
    let written = || run(store.stats()).unwrap().total().bytes_written;
    if direct {
        wait_until("a piece of zeroes is written", || written() >= groups + (256 << 10));
    } else {
        assert!(written() < groups + (256 << 10));
    }
    run(store.close()).unwrap();
}
