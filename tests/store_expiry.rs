//! Expiry: what has expired is nowhere to be seen, and nothing older returns in its place.

#![allow(missing_docs, clippy::unwrap_used)]

mod store_common;
mod store_kit;

use futures::future::try_join_all;
use ringlog::Durability;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use store_common::{disk_dir, open, run};
use store_kit::{fill, gone, put, remove_hints, scan_all, small, value, wait_until};

#[test]
fn an_entry_that_has_expired_is_nowhere_to_be_seen() {
    let dir = disk_dir();
    let store = open(dir.path(), 2);
    run(store.put("stays", "s")).unwrap();
    let before = UNIX_EPOCH - Duration::from_secs(1);
    let past = SystemTime::now() - Duration::from_millis(1);
    let expired = [
        ("ttl", put().ttl(Duration::ZERO)),
        ("epoch", gone()),
        ("before", put().expires_at(before)),
        ("past", put().expires_at(past)),
        ("soon", put().ttl(Duration::from_millis(30))),
    ];
    for (key, options) in expired {
        // It is a write like any other, and has a version.
        assert!(run(store.put_with(key, "value", options)).unwrap().is_some());
    }
    wait_until("an entry expires", || value(&store, "soon").is_none());
    for (key, _) in expired {
        assert_eq!(value(&store, key), None, "{key}");
        assert!(run(store.get_entry(key)).unwrap().is_none(), "{key}");
        assert!(!run(store.contains_key(key)).unwrap(), "{key}");
        assert!(!run(store.delete(key)).unwrap(), "{key}");
    }
    let keys = expired.map(|(key, _)| key);
    assert!(run(store.get_many(keys)).unwrap().iter().all(Option::is_none));
    assert_eq!(scan_all(&store).into_keys().collect::<Vec<_>>(), [b"stays".to_vec()]);
    // They count until a merge comes by.
    assert_eq!(run(store.len()).unwrap(), 6);
    run(store.compact()).unwrap();
    run(store.compact()).unwrap();
    drop(store);
    let store = open(dir.path(), 2);
    assert_eq!(scan_all(&store).into_keys().collect::<Vec<_>>(), [b"stays".to_vec()]);
    // A new entry is not touched by what the old one was.
    run(store.put("ttl", "new")).unwrap();
    assert_eq!(value(&store, "ttl").unwrap(), b"new");
}

#[test]
fn expired_entries_stop_counting_when_merges_have_come_by() {
    let dir = disk_dir();
    let store = small(dir.path(), 1).durability(Durability::Buffered).open().unwrap();
    let options = put().expires_at(UNIX_EPOCH);
    run(try_join_all((0..200).map(|n| store.put_with(n.to_string(), vec![0; 4000], options))))
        .unwrap();
    run(store.put("stays", "s")).unwrap();
    run(store.compact()).unwrap();
    assert_eq!(run(store.len()).unwrap(), 1);
    run(store.compact()).unwrap();
    let stats = run(store.stats()).unwrap().total();
    assert!(stats.live_bytes < 1000, "their tombstones are left: {stats:?}");
}

#[test]
fn an_expiry_that_never_comes_does_not_come() {
    let dir = disk_dir();
    let store = open(dir.path(), 1);
    for ttl in [Duration::MAX, Duration::from_millis(u64::MAX), Duration::from_secs(1 << 40)] {
        run(store.put_with("key", "value", put().ttl(ttl))).unwrap().unwrap();
        assert_eq!(value(&store, "key").unwrap(), b"value", "{ttl:?}");
        assert!(run(store.contains_key("key")).unwrap());
        assert_eq!(scan_all(&store).len(), 1);
    }
    drop(store);
    assert_eq!(value(&open(dir.path(), 1), "key").unwrap(), b"value");
}

#[test]
fn a_value_that_an_expired_one_had_replaced_does_not_return() {
    for (round, by_get) in [true, false, true, false].into_iter().enumerate() {
        let dir = disk_dir();
        let builder = small(dir.path(), 1).durability(Durability::Buffered);
        let store = builder.clone().open().unwrap();
        run(store.put("key", "old")).unwrap();
        run(store.put("cold", vec![3; 50_000])).unwrap();
        fill(&store, 0);
        run(store.put_with("key", "short", put().ttl(Duration::from_millis(5)))).unwrap().unwrap();
        fill(&store, 1);
        if by_get {
            wait_until("an entry expires", || value(&store, "key").is_none());
        } else {
            std::thread::sleep(Duration::from_millis(10));
        }
        for pass in 0..3 {
            run(store.compact()).unwrap();
            assert_eq!(value(&store, "key"), None, "round {round}, pass {pass}");
            fill(&store, pass);
        }
        if round < 2 {
            run(store.close()).unwrap();
        } else {
            drop(store);
        }
        if round % 2 == 0 {
            remove_hints(dir.path());
        }
        let store = builder.open().unwrap();
        for pass in 0..2 {
            assert_eq!(value(&store, "key"), None, "round {round}, reopened, pass {pass}");
            assert!(!scan_all(&store).contains_key(&b"key"[..]));
            run(store.compact()).unwrap();
        }
        assert_eq!(value(&store, "cold").unwrap(), vec![3; 50_000]);
        assert_eq!(run(store.len()).unwrap(), 2);
    }
}
