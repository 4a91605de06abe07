//! Operations on keys: conditions, versions, many keys at once, and how many there are.

#![allow(missing_docs, clippy::unwrap_used)]

mod store_common;
mod store_kit;

use futures::future::{join, join_all, try_join_all};
use ringlog::{Error, MAX_KEY_LEN, MAX_VALUE_LEN, QUEUE_BYTES, Store};
use std::cell::RefCell;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use store_common::{Rng, Watchdog, disk_dir, open, run};
use store_kit::{
    MODES, Map, assert_is, gone, number, on_threads, put, records, remove_hints, scan_all, small,
    value,
};

const THREADS: u64 = 4;
const TASKS: u64 = 4;
const EACH: u64 = 20;

// ---- conditions and versions -------------------------------------------------------------------

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

// ---- many keys ---------------------------------------------------------------------------------

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

#[test]
fn many_puts_are_done_in_the_order_given_and_of_equal_keys_the_last_counts() {
    let dir = disk_dir();
    let store = small(dir.path(), 5).open().unwrap();
    run(store.put_many(Vec::<(Vec<u8>, Vec<u8>)>::new())).unwrap();
    let mut rng = Rng(1);
    let mut map = Map::new();
    for _ in 0..3 {
        // More than one step for each partition.
        let puts: Vec<_> = (0..12_000)
            .map(|n| {
                (format!("key {}", rng.below(9_000)).into_bytes(), format!("{n}").into_bytes())
            })
            .chain([(Vec::new(), b"empty".to_vec()), (b"nothing".to_vec(), Vec::new())])
            .collect();
        run(store.put_many(puts.iter().map(|(key, value)| (key, value)))).unwrap();
        map.extend(puts);
        assert_is(&store, &map, "what was put last");
    }
    drop(store);
    assert_is(&small(dir.path(), 5).open().unwrap(), &map, "reopened");
}

#[test]
fn many_puts_that_are_more_than_a_queue_takes_are_written() {
    const LEN: usize = 64 << 10;
    let dir = disk_dir();
    let store = open(dir.path(), 1);
    let count = QUEUE_BYTES / LEN + 50;
    let value = |n: usize| vec![u8::try_from(n % 251).unwrap(); LEN];
    let many = store.put_many((0..count).map(|n| (n.to_string(), value(n))));
    // Others are answered before they are done.
    let order = RefCell::new(Vec::new());
    run(async {
        let many = async { many.await.map(|()| order.borrow_mut().push("many")) };
        let one =
            async { store.put("one", "value").await.map(|()| order.borrow_mut().push("one")) };
        let (many, one) = join(many, one).await;
        many.and(one)
    })
    .unwrap();
    assert_eq!(order.into_inner(), ["one", "many"]);
    assert_eq!(run(store.len()).unwrap(), count as u64 + 1);
    for n in (0..count).step_by(97) {
        assert_eq!(run(store.get(n.to_string())).unwrap().unwrap(), value(n));
    }
}

#[test]
fn of_many_puts_none_is_done_if_one_is_too_long_or_before_they_are_awaited() {
    let dir = disk_dir();
    let store = open(dir.path(), 2);
    let long = vec![0; MAX_KEY_LEN + 1];
    let put = run(store.put_many([(&b"key"[..], "value"), (&long, "value")]));
    assert!(matches!(put, Err(Error::KeyTooLarge { len }) if len == MAX_KEY_LEN + 1));
    let large = vec![0; MAX_VALUE_LEN + 1];
    let put = run(store.put_many([("key", &b"value"[..]), ("other", &large)]));
    assert!(matches!(put, Err(Error::ValueTooLarge { len }) if len == MAX_VALUE_LEN + 1));
    drop(store.put_many([("key", "value")]));
    assert!(run(store.is_empty()).unwrap());
}
