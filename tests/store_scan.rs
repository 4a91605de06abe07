//! Scans: every entry that is not touched is shown exactly once, whatever goes on meanwhile.

#![allow(missing_docs, clippy::unwrap_used)]

mod store_common;
mod store_kit;

use futures::future::{join_all, try_join_all};
use futures::{Stream, StreamExt};
use ringlog::{Durability, Error};
use std::collections::BTreeMap;
use store_common::{Watchdog, disk_dir, open, run};
use store_kit::{
    Churn, Map, allocated, assert_is, cold, find, flip, put_cold, scan_all, small, wait_until,
};

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

/// Between them it comes by more of the log than it looks at in a step.
#[test]
fn a_scan_of_a_prefix_finds_the_few_that_lie_far_from_each_other() {
    let dir = disk_dir();
    let store = open(dir.path(), 2);
    for rare in 0..3 {
        run(store.put(format!("rare {rare}"), [rare; 10])).unwrap();
        let many = (0..500).map(|n| store.put(format!("{rare} {n}"), vec![rare; 10_000]));
        run(try_join_all(many)).unwrap();
    }
    for prefix in ["rare", "none"] {
        let mut found: Vec<_> =
            run(store.scan_prefix(prefix).map(|entry| entry.unwrap().key).collect());
        found.sort();
        let wanted: &[&str] = if prefix == "rare" { &["rare 0", "rare 1", "rare 2"] } else { &[] };
        assert_eq!(found, wanted);
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

/// It remembers each entry that merges move out of what it has yet to read. So they stop at a bound,
/// and go on when it has passed.
#[test]
fn merges_move_so_many_entries_ahead_of_a_scan_and_no_more() {
    const MANY: u32 = 320_000;
    const BOUND: u64 = 1 << 16;
    const RECORD: u64 = 24 + 4 + 4;
    let _dog = Watchdog::new();
    let dir = disk_dir();
    let store = ringlog::Store::builder(dir.path()).partitions(1).segment_bytes(1 << 20);
    let store = store.durability(Durability::Buffered).cache_bytes(0).open().unwrap();
    let keys: Vec<_> = (0..MANY).map(u32::to_be_bytes).collect();
    for some in keys.chunks(4000) {
        run(try_join_all(some.iter().map(|key| store.put(key, key)))).unwrap();
    }
    let mut scan = store.scan();
    let first = run(scan.next()).unwrap().unwrap();
    let dead = |key: &[u8; 4]| u32::from_be_bytes(*key) % 4 == 3;
    let gone: Vec<_> = keys.iter().filter(|key| dead(key)).collect();
    for some in gone.chunks(4000) {
        run(try_join_all(some.iter().map(|key| store.delete(key)))).unwrap();
    }
    run(store.compact()).unwrap();
    let total = || run(store.stats()).unwrap().total();
    let moved = total().bytes_merged / RECORD;
    // (It is up to three segments ahead of its reader.)
    let passed = 3 * (1 << 20) / RECORD * 3 / 4;
    assert!(moved > BOUND / 2 && moved <= BOUND + passed, "{moved} entries were moved");
    let mut shown = vec![first.key];
    while let Some(entry) = run(scan.next()) {
        shown.push(entry.unwrap().key);
    }
    shown.sort();
    assert!(shown.windows(2).all(|two| two[0] != two[1]), "an entry was shown twice");
    shown.retain(|key| !dead(&key[..].try_into().unwrap()));
    let wanted = keys.iter().filter(|key| !dead(key)).map(|key| &key[..]);
    assert!(shown.iter().map(|key| &key[..]).eq(wanted), "{} shown", shown.len());
    run(store.compact()).unwrap();
    let total = total();
    assert!(total.log_bytes < total.live_bytes * 5 / 4, "{total:?}");
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
