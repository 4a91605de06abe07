//! Updates: each sees the write before it, none is lost, and one that fails changes nothing.

#![allow(missing_docs, clippy::unwrap_used)]

mod store_common;
mod store_kit;

use futures::future::join_all;
use ringlog::{Error, MAX_VALUE_LEN, Store};
use std::time::{Duration, SystemTime};
use store_common::{Watchdog, disk_dir, open, run};
use store_kit::{MODES, gone, number, on_threads, put, records, small, value};

const THREADS: u64 = 4;
const TASKS: u64 = 4;
const EACH: u64 = 20;

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
