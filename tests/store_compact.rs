//! Compaction: all garbage goes, and nothing else.

#![allow(missing_docs, clippy::unwrap_used)]

mod store_common;
mod store_kit;

use futures::future::try_join_all;
use ringlog::{Durability, Error};
use store_common::{Watchdog, disk_dir, run};
use store_kit::{assert_is, cold, find, flip, put_cold, remove_hints, small};

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
    // Before anything is deleted: no merge has read the segment yet, so that each one meets it.
    let (path, at) = find(dir.path(), &cold(150).1);
    flip(&path, at + 20);
    let name = path.file_name().unwrap().to_owned();
    for n in (0..300).step_by(2) {
        run(store.delete(cold(n).0)).unwrap();
        map.remove(&cold(n).0);
    }
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
