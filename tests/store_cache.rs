//! The value cache: what is read from it is never older than what was acknowledged, and it keeps
//! to its bound.

#![allow(missing_docs, clippy::unwrap_used)]

mod store_common;

use ringlog::{Builder, PutOptions, Store};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use store_common::{Rng, Watchdog, memory_dir, run};

fn builder(dir: &Path) -> Builder {
    Store::builder(dir).partitions(2).segment_bytes(256 << 10)
}

fn hits(store: &Store) -> u64 {
    run(store.stats()).unwrap().total().cache_hits
}

fn get(store: &Store, key: &str) -> Option<Vec<u8>> {
    run(store.get(key)).unwrap().map(Vec::from)
}

#[test]
fn what_was_just_written_or_read_is_answered_by_the_cache() {
    let dir = memory_dir();
    let store = builder(dir.path()).open().unwrap();
    run(store.put("key", "value")).unwrap();
    assert_eq!(get(&store, "key").as_deref(), Some(&b"value"[..]));
    assert_eq!(hits(&store), 1);
    run(store.close()).unwrap();
    let store = builder(dir.path()).open().unwrap();
    for _ in 0..3 {
        assert_eq!(get(&store, "key").as_deref(), Some(&b"value"[..]));
    }
    assert_eq!(hits(&store), 2, "the first one reads the disk");
    let many = run(store.get_many(["none", "key", "other"])).unwrap();
    assert_eq!(many, [None, Some("value".into()), None]);
    assert_eq!(hits(&store), 3);
    // Its reader keeps a value that is replaced meanwhile.
    let before = run(store.get("key")).unwrap();
    run(store.put("key", "new")).unwrap();
    assert_eq!(before.as_deref(), Some(&b"value"[..]));
    assert_eq!(get(&store, "key").as_deref(), Some(&b"new"[..]));
    assert_eq!(hits(&store), 5, "a value that is replaced stays in the cache");
}

#[test]
fn whatever_changes_a_key_changes_what_the_cache_says() {
    let dir = memory_dir();
    let store = builder(dir.path()).open().unwrap();
    let set = |value: &str| {
        run(store.put("key", value)).unwrap();
        assert_eq!(get(&store, "key").as_deref(), Some(value.as_bytes()));
    };
    set("one");
    assert!(run(store.delete("key")).unwrap());
    assert_eq!(get(&store, "key"), None);
    set("two");
    run(store.update("key", |_| Some(b"updated".to_vec()))).unwrap();
    assert_eq!(get(&store, "key").as_deref(), Some(&b"updated"[..]));
    run(store.update("key", |_| None)).unwrap();
    assert_eq!(get(&store, "key"), None);
    set("three");
    run(store.put_with("key", "four", PutOptions::new().if_present())).unwrap();
    assert_eq!(get(&store, "key").as_deref(), Some(&b"four"[..]));
    // What expires is asked for where the clock is.
    let soon = PutOptions::new().ttl(Duration::from_millis(30));
    run(store.put_with("key", "for a moment", soon)).unwrap();
    let before = hits(&store);
    while get(&store, "key").is_some() {
        std::thread::yield_now();
    }
    assert_eq!(hits(&store), before);
    set("five");
    run(store.compact()).unwrap();
    set("six");
    run(store.close()).unwrap();
    let store = builder(dir.path()).open().unwrap();
    assert_eq!(get(&store, "key").as_deref(), Some(&b"six"[..]));
    let (other, reply) = (store.clone(), store.get("key"));
    run(store.close()).unwrap();
    assert!(run(other.get("key")).is_err(), "a store that is closed answers nothing");
    assert!(run(reply).is_err());
}

/// Each key counts up. Whoever knows that a number was acknowledged never reads a smaller one, and
/// no reader sees a key go back.
#[test]
fn a_get_is_never_older_than_an_acknowledged_put() {
    const KEYS: usize = 8;
    let _watchdog = Watchdog::new();
    let dir = memory_dir();
    // A few entries fit: they come and go all the time.
    for cache_bytes in [4 << 10, 1 << 20] {
        let builder = builder(dir.path()).threads(2).cache_bytes(cache_bytes);
        let store = builder.durability(ringlog::Durability::Buffered).open().unwrap();
        let acknowledged: Arc<[AtomicU64; KEYS]> = Arc::default();
        let done = Arc::new(AtomicBool::new(false));
        for key in 0..KEYS {
            run(store.put(key.to_le_bytes(), 0u64.to_le_bytes())).unwrap();
        }
        let readers: Vec<_> = (0..3)
            .map(|reader| {
                let (store, done) = (store.clone(), Arc::clone(&done));
                let acknowledged = Arc::clone(&acknowledged);
                std::thread::spawn(move || {
                    let (mut rng, mut seen, mut reads) = (Rng(reader), [0; KEYS], 0);
                    while !done.load(Ordering::Acquire) {
                        let key = rng.below(KEYS);
                        let least = acknowledged[key].load(Ordering::Acquire).max(seen[key]);
                        let value = run(store.get(key.to_le_bytes())).unwrap().unwrap();
                        let value = u64::from_le_bytes(value[..].try_into().unwrap());
                        assert!(value >= least, "key {key}: {value} after {least}");
                        (seen[key], reads) = (value, reads + 1);
                    }
                    reads
                })
            })
            .collect();
        let mut rng = Rng(99);
        for number in 1..4000u64 {
            let key = rng.below(KEYS);
            run(store.put(key.to_le_bytes(), number.to_le_bytes())).unwrap();
            acknowledged[key].store(number, Ordering::Release);
        }
        done.store(true, Ordering::Release);
        let reads: u64 = readers.into_iter().map(|reader| reader.join().unwrap()).sum();
        assert!(reads > 0 && hits(&store) > 0);
        run(store.close()).unwrap();
    }
}

#[test]
fn the_cache_keeps_to_its_bound_and_none_is_none() {
    let dir = memory_dir();
    for bytes in [0, 300 << 10] {
        let store = builder(dir.path()).cache_bytes(bytes).open().unwrap();
        run(futures::future::try_join_all(
            (0..400u32).map(|n| store.put(n.to_le_bytes(), vec![7; 2000])),
        ))
        .unwrap();
        for round in 0..3 {
            for n in 0..400u32 {
                assert!(run(store.get(n.to_le_bytes())).unwrap().is_some());
                let held = run(store.stats()).unwrap().total().cache_bytes;
                assert!(held <= bytes as u64, "{held} of {bytes} in round {round}");
            }
        }
        assert_eq!(hits(&store) > 0, bytes > 0);
        run(store.close()).unwrap();
    }
}
