//! Keys and values of every size and with any bytes, up to the limits: whole, moved, and opened again.

#![allow(missing_docs, clippy::unwrap_used)]

mod store_common;
mod store_kit;

use futures::future::try_join_all;
use ringlog::{Durability, Error, MAX_KEY_LEN, MAX_VALUE_LEN, MIN_SEGMENT_BYTES, Store};
use std::path::Path;
use store_common::{Rng, Watchdog, disk_dir, run};
use store_kit::{Map, assert_is, files, fill, put, remove_hints, small, value};

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
