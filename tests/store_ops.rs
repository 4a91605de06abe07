//! The operations on keys, and their edge cases: conditions, versions, updates, expiry, sizes. Which
//! test has which case of the list is in `EDGE_CASES.md`.

#![allow(clippy::many_single_char_names)]
#![allow(missing_docs, clippy::unwrap_used)]

mod store_common;
mod store_kit;

use futures::future::{join_all, try_join_all};
use ringlog::rt::{self, Executor, ExecutorConfig};
use ringlog::{
    Durability, Error, MAX_KEY_LEN, MAX_VALUE_LEN, MIN_SEGMENT_BYTES, PutOptions, Store,
};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use store_common::{Rng, Watchdog, disk_dir, open, run, segment_path};
use store_kit::{Map, assert_is, files, on_threads, remove_hints, scan_all, small, wait_until};

const MODES: [Durability; 3] =
    [Durability::Sync, Durability::Interval(Duration::from_millis(3)), Durability::Buffered];

fn put() -> PutOptions {
    PutOptions::new()
}

fn gone() -> PutOptions {
    put().expires_at(UNIX_EPOCH)
}

#[track_caller]
fn value(store: &Store, key: impl AsRef<[u8]>) -> Option<Vec<u8>> {
    run(store.get(key)).unwrap().map(Vec::from)
}

#[track_caller]
fn records(store: &Store) -> u64 {
    run(store.stats()).unwrap().total().records
}

// ---- conditions and versions ------------------------------------------------------------------

#[test]
fn if_absent_stores_only_where_nothing_is() {
    let dir = disk_dir();
    let store = open(dir.path(), 2);
    assert!(run(store.put_with("key", "a", put().if_absent())).unwrap().is_some());
    let before = records(&store);
    assert!(run(store.put_with("key", "b", put().if_absent())).unwrap().is_none());
    assert_eq!(records(&store), before, "what was not stored was written");
    assert_eq!(value(&store, "key").unwrap(), b"a");
    assert!(run(store.delete("key")).unwrap());
    assert!(run(store.put_with("key", "c", put().if_absent())).unwrap().is_some());
    // An entry that has expired is absent.
    run(store.put_with("key", "d", gone())).unwrap().unwrap();
    assert!(run(store.put_with("key", "e", put().if_absent())).unwrap().is_some());
    assert_eq!(value(&store, "key").unwrap(), b"e");
}

#[test]
fn if_present_stores_only_where_something_is() {
    let dir = disk_dir();
    let store = open(dir.path(), 2);
    assert!(run(store.put_with("key", "a", put().if_present())).unwrap().is_none());
    assert_eq!((value(&store, "key"), records(&store)), (None, 0));
    run(store.put("key", "")).unwrap();
    assert!(run(store.put_with("key", "b", put().if_present())).unwrap().is_some());
    assert_eq!(value(&store, "key").unwrap(), b"b");
    run(store.put_with("key", "c", gone())).unwrap().unwrap();
    assert!(run(store.put_with("key", "d", put().if_present())).unwrap().is_none());
    run(store.delete("key")).unwrap();
    assert!(run(store.put_with("key", "e", put().if_present())).unwrap().is_none());
    assert_eq!(value(&store, "key"), None);
}

#[test]
fn if_version_stores_only_over_that_very_write() {
    let dir = disk_dir();
    let store = open(dir.path(), 1);
    assert!(run(store.put_with("key", "a", put().if_version(0))).unwrap().is_none());
    let first = run(store.put_with("key", "a", put())).unwrap().unwrap();
    assert_eq!(run(store.get_entry("key")).unwrap().unwrap().version, first);
    for wrong in [0, first - 1, first + 1, u64::MAX] {
        assert!(run(store.put_with("key", "x", put().if_version(wrong))).unwrap().is_none());
    }
    let second = run(store.put_with("key", "b", put().if_version(first))).unwrap().unwrap();
    assert!(second > first);
    assert!(run(store.put_with("key", "c", put().if_version(first))).unwrap().is_none());
    // The same value again is another version.
    run(store.put("key", "b")).unwrap();
    assert!(run(store.put_with("key", "c", put().if_version(second))).unwrap().is_none());
    let third = run(store.get_entry("key")).unwrap().unwrap().version;
    run(store.delete("key")).unwrap();
    assert!(run(store.put_with("key", "c", put().if_version(third))).unwrap().is_none());
    // The last condition counts.
    let last = put().if_version(third).if_absent();
    assert!(run(store.put_with("key", "d", last)).unwrap().is_some());
    let fourth = run(store.get_entry("key")).unwrap().unwrap().version;
    run(store.put_with("key", "e", gone())).unwrap().unwrap();
    assert!(run(store.put_with("key", "f", put().if_version(fourth))).unwrap().is_none());
    assert_eq!(value(&store, "key"), None);
}

#[test]
fn conditions_are_judged_by_the_writes_before_them_that_are_not_acknowledged() {
    for mode in MODES {
        let dir = disk_dir();
        let store = Store::builder(dir.path()).durability(mode).open().unwrap();
        let version = run(store.put_with("other", "0", put())).unwrap().unwrap();
        let replies = [
            store.put_with("key", "a", put().if_present()),
            store.put_with("key", "b", put().if_absent()),
            store.put_with("key", "c", put().if_absent()),
            store.put_with("key", "d", put().if_present()),
            store.put_with("key", "e", gone()),
            store.put_with("key", "f", put().if_present()),
            store.put_with("key", "g", put().if_absent()),
            store.put_with("other", "1", put().if_version(version)),
            store.put_with("other", "2", put().if_version(version)),
        ];
        let stored: Vec<bool> =
            run(join_all(replies)).into_iter().map(|stored| stored.unwrap().is_some()).collect();
        assert_eq!(stored, [false, true, false, true, true, false, true, true, false], "{mode:?}");
        assert_eq!(value(&store, "key").unwrap(), b"g");
        assert_eq!(value(&store, "other").unwrap(), b"1");
        // With deletes between.
        let (a, b, c, d) = run(async {
            futures::join!(
                store.delete("key"),
                store.put_with("key", "h", put().if_present()),
                store.put_with("key", "i", put().if_absent()),
                store.delete("key"),
            )
        });
        assert_eq!((a.unwrap(), b.unwrap(), d.unwrap()), (true, None, true));
        assert!(c.unwrap().is_some());
        assert_eq!(value(&store, "key"), None);
    }
}

const THREADS: u64 = 4;
const TASKS: u64 = 4;
const EACH: u64 = 20;

fn number(value: Option<&[u8]>) -> u64 {
    value.map_or(0, |value| u64::from_le_bytes(value.try_into().unwrap()))
}

#[test]
fn many_tasks_that_swap_versions_lose_no_update() {
    let _dog = Watchdog::new();
    for mode in MODES {
        let dir = disk_dir();
        let builder = small(dir.path(), 2).durability(mode);
        let store = builder.clone().open().unwrap();
        let swapper = |store: Store| async move {
            let mut versions = Vec::new();
            while versions.len() < usize::try_from(EACH).unwrap() {
                let entry = store.get_entry("count").await.unwrap();
                let count = number(entry.as_ref().map(|entry| &entry.value[..])) + 1;
                let options = match entry {
                    None => put().if_absent(),
                    Some(entry) => put().if_version(entry.version),
                };
                versions
                    .extend(store.put_with("count", count.to_le_bytes(), options).await.unwrap());
            }
            versions
        };
        let thread = || {
            let tasks: Vec<_> = (0..TASKS).map(|_| swapper(store.clone())).collect();
            join_all(tasks)
        };
        let versions = on_threads((0..THREADS).map(|_| thread()));
        let mut versions: Vec<u64> = versions.into_iter().flatten().flatten().collect();
        versions.sort_unstable();
        let given = versions.len();
        versions.dedup();
        assert_eq!(versions.len(), given, "a version was given twice");
        let sum = THREADS * TASKS * EACH;
        assert_eq!(number(value(&store, "count").as_deref()), sum, "{mode:?}");
        drop(store);
        let store = builder.open().unwrap();
        assert_eq!(number(value(&store, "count").as_deref()), sum, "{mode:?} after reopening");
    }
}

#[test]
fn many_tasks_that_update_one_key_lose_no_update() {
    let _dog = Watchdog::new();
    for mode in MODES {
        let dir = disk_dir();
        let store = small(dir.path(), 2).durability(mode).open().unwrap();
        let adder = |store: Store, n: u64| async move {
            for _ in 0..EACH {
                let add = |old: Option<&[u8]>| Some((number(old) + 1).to_le_bytes().to_vec());
                let new = store.update("count", add).await.unwrap();
                assert!(number(new.as_deref()) > 0);
                // What else is there is written meanwhile, and moved.
                store.put(format!("other {n}"), vec![7; 3000]).await.unwrap();
                if n == 0 {
                    store.compact().await.unwrap();
                }
            }
        };
        let thread = |thread| {
            let tasks: Vec<_> =
                (0..TASKS).map(|n| adder(store.clone(), thread * TASKS + n)).collect();
            join_all(tasks)
        };
        on_threads((0..THREADS).map(thread));
        assert_eq!(number(value(&store, "count").as_deref()), THREADS * TASKS * EACH, "{mode:?}");
    }
}

#[test]
fn a_version_is_never_given_again_though_all_that_had_it_is_gone() {
    let dir = disk_dir();
    let mut last = 0;
    let mut first = None;
    for round in 0..6 {
        let store = small(dir.path(), 1).open().unwrap();
        if let Some(first) = first {
            let swap = put().if_version(first);
            assert!(run(store.put_with("key", "stale", swap)).unwrap().is_none());
        }
        for n in 0..20 {
            let version = run(store.put_with("key", vec![n; 9000], put())).unwrap().unwrap();
            assert!(version > last, "round {round}: {version} after {last}");
            last = version;
            first.get_or_insert(version);
        }
        let old = last;
        run(store.delete("key")).unwrap();
        run(store.compact()).unwrap();
        run(store.compact()).unwrap();
        assert_eq!(run(store.stats()).unwrap().total().live_bytes, 0, "a tombstone is left");
        if round % 2 == 0 {
            run(store.close()).unwrap();
        } else {
            drop(store);
        }
        if round % 3 == 0 {
            remove_hints(dir.path());
        }
        let store = small(dir.path(), 1).open().unwrap();
        let version = run(store.put_with("key", "new", put().if_absent())).unwrap().unwrap();
        assert!(version > last, "round {round}: {version} after {last}");
        assert!(run(store.put_with("key", "x", put().if_version(old))).unwrap().is_none());
        last = version;
    }
}

#[test]
fn an_entry_tells_value_version_and_expiry_and_keeps_them_when_it_is_moved() {
    let dir = disk_dir();
    let store = small(dir.path(), 2).open().unwrap();
    assert!(run(store.get_entry("key")).unwrap().is_none());
    let time = SystemTime::now() + Duration::from_secs(3600);
    let millis = time.duration_since(UNIX_EPOCH).unwrap().as_millis();
    let plain = run(store.put_with("plain", "p", put())).unwrap().unwrap();
    let version = run(store.put_with("key", "value", put().expires_at(time))).unwrap().unwrap();
    let check = |store: &Store| {
        let entry = run(store.get_entry("key")).unwrap().unwrap();
        assert_eq!((&entry.key[..], &entry.value[..]), (&b"key"[..], &b"value"[..]));
        assert_eq!(entry.version, version);
        let expires = entry.expires_at.unwrap().duration_since(UNIX_EPOCH).unwrap();
        assert_eq!(expires.as_millis(), millis);
        let scanned = &scan_all(store)[&b"key"[..]];
        assert_eq!((scanned.version, scanned.expires_at), (version, entry.expires_at));
        let entry = run(store.get_entry("plain")).unwrap().unwrap();
        assert_eq!((entry.version, entry.expires_at), (plain, None));
    };
    check(&store);
    for n in 0..30 {
        run(store.put("filler", vec![n; 10_000])).unwrap();
    }
    run(store.compact()).unwrap();
    check(&store);
    drop(store);
    remove_hints(dir.path());
    let store = small(dir.path(), 2).open().unwrap();
    check(&store);
    // A put without an expiry takes it away.
    run(store.put("key", "value")).unwrap();
    assert_eq!(run(store.get_entry("key")).unwrap().unwrap().expires_at, None);
}

#[test]
fn keys_are_counted_and_asked_for() {
    let dir = disk_dir();
    let store = open(dir.path(), 3);
    assert!(run(store.is_empty()).unwrap() && run(store.len()).unwrap() == 0);
    run(try_join_all((0..20).map(|n| store.put(n.to_string(), "")))).unwrap();
    run(store.put("7", "again")).unwrap();
    run(store.delete("8")).unwrap();
    run(store.delete("none")).unwrap();
    assert!(!run(store.is_empty()).unwrap());
    assert_eq!(run(store.len()).unwrap(), 19);
    assert!(run(store.contains_key("7")).unwrap());
    assert!(!run(store.contains_key("8")).unwrap());
    assert!(!run(store.contains_key("none")).unwrap());
    run(try_join_all((0..20).map(|n| store.delete(n.to_string())))).unwrap();
    assert!(run(store.is_empty()).unwrap());
}

// ---- many keys --------------------------------------------------------------------------------

#[test]
fn many_keys_are_answered_in_the_order_of_asking() {
    let dir = disk_dir();
    let store = small(dir.path(), 5).open().unwrap();
    assert_eq!(run(store.get_many(Vec::<Vec<u8>>::new())).unwrap(), Vec::new() as Vec<_>);
    let name = |n: usize| format!("key {n}");
    run(try_join_all((0..300).step_by(2).map(|n| store.put(name(n), n.to_string())))).unwrap();
    run(store.put("", "empty")).unwrap();
    let mut rng = Rng(1);
    let asked: Vec<usize> = (0..1000).map(|_| rng.below(300)).collect();
    let mut keys: Vec<_> = asked.iter().map(|&n| name(n)).collect();
    keys.push(String::new());
    let found = run(store.get_many(&keys)).unwrap();
    assert_eq!(found.len(), 1001);
    for (n, value) in asked.iter().zip(&found) {
        let wanted = (n % 2 == 0).then(|| n.to_string());
        assert_eq!(value.as_deref(), wanted.as_ref().map(String::as_bytes));
    }
    assert_eq!(found[1000].as_deref(), Some(&b"empty"[..]));
    assert!(run(store.get_many(["none"; 3])).unwrap().iter().all(Option::is_none));
}

#[test]
fn a_key_that_is_too_long_among_many_is_refused() {
    let dir = disk_dir();
    let store = open(dir.path(), 2);
    run(store.put("key", "value")).unwrap();
    let long = vec![0; MAX_KEY_LEN + 1];
    let asked = run(store.get_many([&b"key"[..], &long]));
    assert!(matches!(asked, Err(Error::KeyTooLarge { len }) if len == MAX_KEY_LEN + 1));
}

// ---- updates ----------------------------------------------------------------------------------

#[test]
fn an_update_makes_changes_and_removes_entries() {
    let dir = disk_dir();
    let store = open(dir.path(), 2);
    let none = run(store.update("key", |old| {
        assert_eq!(old, None);
        None
    }));
    assert_eq!((none.unwrap(), records(&store)), (None, 0));
    let made = run(store.update("key", |old| {
        assert_eq!(old, None);
        Some(b"one".to_vec())
    }));
    assert_eq!(made.unwrap().as_deref(), Some(&b"one"[..]));
    let changed = run(store.update("key", |old| {
        assert_eq!(old, Some(&b"one"[..]));
        Some(Vec::new())
    }));
    assert_eq!(changed.unwrap().as_deref(), Some(&b""[..]));
    assert_eq!(value(&store, "key").unwrap(), b"");
    let removed = run(store.update("key", |old| {
        assert_eq!(old, Some(&b""[..]));
        None
    }));
    assert_eq!((removed.unwrap(), value(&store, "key")), (None, None));
    assert!(run(store.is_empty()).unwrap());
    drop(store);
    assert!(run(open(dir.path(), 2).is_empty()).unwrap());
}

#[test]
fn an_update_sees_the_writes_before_it_that_are_not_acknowledged() {
    let dir = disk_dir();
    let store = open(dir.path(), 1);
    let saw = |wanted: Option<&'static [u8]>, new: Option<&'static [u8]>| {
        store.update("key", move |old| {
            assert_eq!(old, wanted);
            new.map(<[u8]>::to_vec)
        })
    };
    let (put, b, c, none, again, deleted) = run(async {
        futures::join!(
            store.put("key", "a"),
            saw(Some(b"a"), Some(b"b")),
            saw(Some(b"b"), None),
            saw(None, None),
            saw(None, Some(b"c")),
            store.delete("key"),
        )
    });
    put.unwrap();
    assert_eq!(b.unwrap().unwrap(), &b"b"[..]);
    assert_eq!((c.unwrap(), none.unwrap()), (None, None));
    assert_eq!(again.unwrap().unwrap(), &b"c"[..]);
    assert!(deleted.unwrap());
}

#[test]
fn a_panic_in_an_update_is_told_and_changes_nothing() {
    let dir = disk_dir();
    let store = open(dir.path(), 1);
    run(store.put("key", "value")).unwrap();
    for n in 0..50 {
        let failed = run(store.update("key", move |_| panic!("on purpose, {n}")));
        match failed {
            Err(Error::Bug(message)) => assert!(message.contains("on purpose"), "{message}"),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(value(&store, "key").unwrap(), b"value");
    // Nothing is held that the panics took: neither the queue nor the key.
    let long = vec![1; MAX_VALUE_LEN];
    run(store.put("long", &long)).unwrap();
    run(store.update("key", |_| Some(b"new".to_vec()))).unwrap();
    run(store.close()).unwrap();
    assert_eq!(value(&open(dir.path(), 1), "key").unwrap(), b"new");
}

#[test]
fn an_update_keeps_the_expiry_unless_the_entry_had_expired() {
    let dir = disk_dir();
    let store = open(dir.path(), 1);
    let hour = put().ttl(Duration::from_secs(3600));
    run(store.put_with("key", "a", hour)).unwrap().unwrap();
    let before = run(store.get_entry("key")).unwrap().unwrap();
    assert!(before.expires_at.unwrap() > SystemTime::now() + Duration::from_secs(3500));
    run(store.update("key", |_| Some(b"b".to_vec()))).unwrap();
    let after = run(store.get_entry("key")).unwrap().unwrap();
    assert_eq!((&after.value[..], after.expires_at), (&b"b"[..], before.expires_at));
    run(store.put_with("key", "c", gone())).unwrap().unwrap();
    let make = |old: Option<&[u8]>| {
        assert_eq!(old, None);
        Some(b"d".to_vec())
    };
    run(store.update("key", make)).unwrap();
    let after = run(store.get_entry("key")).unwrap().unwrap();
    assert_eq!((&after.value[..], after.expires_at), (&b"d"[..], None));
}

#[test]
fn an_update_to_a_value_that_is_too_long_is_refused() {
    let dir = disk_dir();
    let store = open(dir.path(), 1);
    run(store.put("key", "value")).unwrap();
    let refused = run(store.update("key", |_| Some(vec![0; MAX_VALUE_LEN + 1])));
    assert!(matches!(refused, Err(Error::ValueTooLarge { len }) if len == MAX_VALUE_LEN + 1));
    assert_eq!(value(&store, "key").unwrap(), b"value");
}

// ---- expiry -----------------------------------------------------------------------------------

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

/// Segments that have nothing but this in them come between.
fn fill(store: &Store, n: u8) {
    for part in 0..12 {
        run(store.put("filler", vec![n ^ part; 12_000])).unwrap();
    }
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

// ---- sizes ------------------------------------------------------------------------------------

fn reopened(dir: &Path, builder: &ringlog::Builder, store: Store, map: &Map, what: &str) -> Store {
    assert_is(&store, map, what);
    drop(store);
    let store = builder.clone().open().unwrap();
    assert_is(&store, map, &format!("{what}, reopened"));
    run(store.close()).unwrap();
    remove_hints(dir);
    let store = builder.clone().open().unwrap();
    assert_is(&store, map, &format!("{what}, reopened without hints"));
    store
}

#[test]
fn records_of_all_sizes_around_a_segments_end_are_whole() {
    let _dog = Watchdog::new();
    for mode in [Durability::Sync, Durability::Buffered] {
        let dir = disk_dir();
        let builder = small(dir.path(), 1).durability(mode);
        let store = builder.clone().open().unwrap();
        let mut map = Map::new();
        let mut rng = Rng(5);
        let segment = usize::try_from(MIN_SEGMENT_BYTES).unwrap();
        // Around where a record fills a segment alone, by blocks and by what frames it.
        for blocks in 0..5 {
            for less in [0, 1, 2, 7, 8, 9, 23, 24, 25, 63, 64, 65, 72, 104, 105, 112, 113] {
                let len = segment + 4096 - blocks * 4096 - less;
                let key = format!("alone {blocks} {less}").into_bytes();
                let value = rng.bytes(len);
                run(store.put(&key, &value)).unwrap();
                map.insert(key, value);
            }
        }
        let store = reopened(dir.path(), &builder, store, &map, "alone");
        // Around where a record fills what is left of one.
        for key in map.keys() {
            assert!(run(store.delete(key)).unwrap());
        }
        map.clear();
        for first in [4_000, 20_000, 40_000] {
            for blocks in 1..4 {
                for less in [0, 1, 8, 24, 32, 64, 65, 88, 89, 104, 112, 113, 128, 136, 144] {
                    let second = segment - first - blocks * 4096 - less;
                    for (part, len) in [("a", first), ("b", second)] {
                        let key = format!("{first} {blocks} {less} {part}").into_bytes();
                        let value = rng.bytes(len);
                        run(store.put(&key, &value)).unwrap();
                        map.insert(key, value);
                    }
                }
            }
        }
        reopened(dir.path(), &builder, store, &map, "behind another");
    }
}

#[test]
fn many_large_records_at_the_same_time_are_whole() {
    let _dog = Watchdog::new();
    let dir = disk_dir();
    let builder = small(dir.path(), 2);
    let store = builder.clone().open().unwrap();
    let (mut map, mut rng) = (Map::new(), Rng(6));
    for round in 0..4 {
        for n in 0..30 {
            let len = 50_000 + rng.below(20_000);
            map.insert(format!("{round} {n}").into_bytes(), rng.bytes(len));
        }
        run(try_join_all(map.iter().map(|(key, value)| store.put(key, value)))).unwrap();
    }
    reopened(dir.path(), &builder, store, &map, "many at a time");
}

#[test]
fn values_much_larger_than_a_segment_are_kept_and_merged() {
    let _dog = Watchdog::new();
    let dir = disk_dir();
    let builder = small(dir.path(), 1);
    let store = builder.clone().open().unwrap();
    let (mut map, mut rng) = (Map::new(), Rng(7));
    map.insert(b"small".to_vec(), b"s".to_vec());
    for (n, len) in [1 << 20, 3 << 20, (1 << 20) - 1, (1 << 20) + 1, 524_264, 524_265, 524_288]
        .into_iter()
        .enumerate()
    {
        map.insert(n.to_string().into_bytes(), rng.bytes(len));
    }
    map.insert(b"largest".to_vec(), rng.bytes(MAX_VALUE_LEN));
    for (key, value) in &map {
        run(store.put(key, "to be replaced")).unwrap();
        run(store.put(key, value)).unwrap();
    }
    let store = reopened(dir.path(), &builder, store, &map, "large values");
    // A neighbour in each segment dies, so that they are moved.
    run(store.compact()).unwrap();
    let small_one = b"small".to_vec();
    let largest = map.remove(&b"largest"[..]).unwrap();
    assert_eq!(value(&store, "largest").unwrap(), largest);
    run(store.delete("largest")).unwrap();
    run(store.compact()).unwrap();
    assert_eq!(value(&store, &small_one).unwrap(), b"s");
    let store = reopened(dir.path(), &builder, store, &map, "after a merge");
    let bytes: u64 = map.values().map(|value| value.len() as u64).sum();
    let stats = run(store.stats()).unwrap().total();
    assert!(stats.log_bytes < bytes + (1 << 20), "the largest was not given back: {stats:?}");
}

#[test]
fn the_longest_keys_work_everywhere_and_longer_ones_nowhere() {
    let dir = disk_dir();
    let builder = small(dir.path(), 2);
    let store = builder.clone().open().unwrap();
    let (mut map, mut rng) = (Map::new(), Rng(8));
    // They differ in their last byte only.
    let common = rng.bytes(MAX_KEY_LEN - 1);
    for last in 0..8 {
        let mut key = common.clone();
        key.push(last);
        let len = rng.below(3) * 40_000;
        map.insert(key, rng.bytes(len));
    }
    // What longer ones would be if their lengths were cut to 16 bits.
    map.insert(Vec::new(), b"empty".to_vec());
    map.insert(b"abc".to_vec(), Vec::new());
    for (key, value) in &map {
        run(store.put(key, value)).unwrap();
    }
    for more in [1, 4, 1 << 16, 1 << 20] {
        let mut long = b"abc".to_vec();
        long.resize(MAX_KEY_LEN + more, 0);
        let refused = |error: Error| {
            assert!(matches!(error, Error::KeyTooLarge { len } if len == MAX_KEY_LEN + more));
        };
        refused(run(store.put(&long, "x")).unwrap_err());
        refused(run(store.put_with(&long, "x", put().if_absent())).unwrap_err());
        refused(run(store.get(&long)).unwrap_err());
        refused(run(store.get_entry(&long)).unwrap_err());
        refused(run(store.contains_key(&long)).unwrap_err());
        refused(run(store.delete(&long)).unwrap_err());
        refused(run(store.update(&long, |_| Some(Vec::new()))).unwrap_err());
    }
    let too_large = run(store.put_with("abc", vec![0; MAX_VALUE_LEN + 1], put()));
    assert!(matches!(too_large, Err(Error::ValueTooLarge { .. })));
    run(store.compact()).unwrap();
    let store = reopened(dir.path(), &builder, store, &map, "long keys");
    let first = map.keys().nth(3).unwrap().clone();
    assert!(run(store.delete(&first)).unwrap());
    map.remove(&first);
    reopened(dir.path(), &builder, store, &map, "one less");
}

#[test]
fn empty_keys_and_values_are_moved_expire_and_go_like_others() {
    let dir = disk_dir();
    let builder = small(dir.path(), 1);
    let store = builder.clone().open().unwrap();
    run(store.put("", "")).unwrap();
    run(store.put("other", "")).unwrap();
    fill(&store, 1);
    run(store.delete("filler")).unwrap();
    run(store.compact()).unwrap();
    let mut map = Map::from([(Vec::new(), Vec::new()), (b"other".to_vec(), Vec::new())]);
    let store = reopened(dir.path(), &builder, store, &map, "empty");
    assert!(run(store.contains_key("")).unwrap());
    assert!(run(store.put_with("", "", put().if_present())).unwrap().is_some());
    assert_eq!(run(store.update("", |old| old.map(<[u8]>::to_vec))).unwrap().unwrap(), &b""[..]);
    assert!(run(store.delete("")).unwrap());
    assert!(!run(store.delete("")).unwrap());
    map.remove(&Vec::new());
    reopened(dir.path(), &builder, store, &map, "empty and gone");
}

/// What a mark, a seal, a tombstone and padding look like, as keys and as values.
#[test]
fn bytes_that_look_like_the_logs_own_are_keys_and_values() {
    let dir = disk_dir();
    let builder = small(dir.path(), 1);
    let store = builder.clone().open().unwrap();
    let mut map = Map::new();
    run(store.put("a", "b")).unwrap();
    let log = std::fs::read(&files(dir.path(), "log")[0]).unwrap();
    for (n, part) in log[..12_288].chunks(1000).enumerate() {
        map.insert(part.to_vec(), part.to_vec());
        map.insert(format!("part {n}").into_bytes(), part.to_vec());
    }
    for byte in [0, 2, 3, 6, 16, 255] {
        for len in [1, 7, 8, 24, 40, 4096] {
            map.insert(vec![byte; len], vec![byte; 4096]);
        }
    }
    for (key, value) in &map {
        run(store.put(key, value)).unwrap();
    }
    run(store.delete("a")).unwrap();
    map.remove(&b"a"[..]);
    run(store.compact()).unwrap();
    reopened(dir.path(), &builder, store, &map, "like the log");
}

#[test]
fn every_test_in_the_table_of_edge_cases_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let table = std::fs::read_to_string(root.join("tests/EDGE_CASES.md")).unwrap();
    let mut sources = String::new();
    for folder in ["tests", "src/log", "src/partition"] {
        for file in std::fs::read_dir(root.join(folder)).unwrap() {
            let path = file.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "rs") {
                sources += &std::fs::read_to_string(path).unwrap();
            }
        }
    }
    let (mut rows, mut missing) = (0, Vec::new());
    for row in table.lines().filter(|row| row.starts_with('|')).skip(2) {
        rows += 1;
        assert!(row.starts_with(&format!("| {rows} |")), "{row}");
        let names = row.split('`').skip(1).step_by(2).filter(|name| !name.contains('.'));
        missing.extend(names.filter(|name| !sources.contains(&format!("fn {name}()"))));
    }
    assert_eq!(rows, 49);
    assert!(missing.is_empty(), "{missing:?}");
}

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
