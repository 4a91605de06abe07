//! Random operations against a plain map: all kinds of them, small segments, merges, reopenings.

#![allow(missing_docs, clippy::unwrap_used)]

mod store_common;

use ringlog::{Builder, Durability, PutOptions, Store};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, SystemTime};
use store_common::{Rng, Watchdog, disk_dir, run};

type Model = BTreeMap<Vec<u8>, Vec<u8>>;

fn builder(dir: &Path, partitions: usize, durability: Durability) -> Builder {
    Store::builder(dir)
        .partitions(partitions)
        .segment_bytes(64 << 10)
        .cache_bytes(1 << 20)
        .durability(durability)
}

fn key(rng: &mut Rng, keys: usize) -> Vec<u8> {
    format!("key {}", rng.below(keys)).into_bytes()
}

fn check(store: &Store, model: &Model, keys: usize) {
    for n in 0..keys {
        let key = format!("key {n}").into_bytes();
        let found = run(store.get(&key)).unwrap();
        assert_eq!(found.as_deref(), model.get(&key).map(Vec::as_slice), "key {n}");
    }
    assert_eq!(run(store.len()).unwrap(), model.len() as u64);
    let mut scan = store.scan();
    let mut scanned = Model::new();
    while let Some(entry) = run(scan.next()) {
        let entry = entry.unwrap();
        assert!(scanned.insert(entry.key.to_vec(), entry.value.to_vec()).is_none());
    }
    assert_eq!(&scanned, model);
    let report = run(store.verify()).unwrap();
    assert!(report.is_sound(), "{:?}", report.problems);
}

fn play(seed: u64, steps: usize, keys: usize, durability: Durability) {
    let dir = disk_dir();
    let mut rng = Rng(seed);
    let mut model = Model::new();
    let partitions = 1 + rng.below(3);
    let mut store = builder(dir.path(), partitions, durability).open().unwrap();
    for step in 0..steps {
        let key = key(&mut rng, keys);
        match rng.below(100) {
            0..50 => {
                let len = rng.below(600);
                let value = rng.bytes(len);
                run(store.put(&key, &value)).unwrap();
                model.insert(key, value);
            }
            50..70 => {
                let was_there = run(store.delete(&key)).unwrap();
                assert_eq!(was_there, model.remove(&key).is_some());
            }
            70..80 => {
                let found = run(store.get(&key)).unwrap();
                assert_eq!(found.as_deref(), model.get(&key).map(Vec::as_slice));
            }
            80..85 => {
                let put = PutOptions::new().if_absent();
                let stored = run(store.put_with(&key, "absent", put)).unwrap().is_some();
                assert_eq!(stored, !model.contains_key(&key));
                model.entry(key).or_insert_with(|| b"absent".to_vec());
            }
            85..90 => {
                let append = |old: Option<&[u8]>| {
                    let mut new = old.unwrap_or_default().to_vec();
                    new.push(7);
                    (!new.len().is_multiple_of(5)).then_some(new)
                };
                let new = run(store.update(&key, append)).unwrap();
                match append(model.get(&key).map(Vec::as_slice)) {
                    Some(value) => drop(model.insert(key.clone(), value)),
                    None => drop(model.remove(&key)),
                }
                assert_eq!(new.as_deref(), model.get(&key).map(Vec::as_slice));
            }
            90..95 => {
                let found = run(store.contains_key(&key)).unwrap();
                assert_eq!(found, model.contains_key(&key));
            }
            95..98 => {
                let entry = run(store.get_entry(&key)).unwrap();
                if let Some(entry) = entry {
                    let swap = PutOptions::new().if_version(entry.version);
                    assert!(run(store.put_with(&key, "swapped", swap)).unwrap().is_some());
                    assert!(run(store.put_with(&key, "again", swap)).unwrap().is_none());
                    model.insert(key, b"swapped".to_vec());
                }
            }
            _ => match rng.below(30) {
                0 => run(store.compact()).unwrap(),
                1 => check(&store, &model, keys),
                2 => {
                    run(store.close()).unwrap();
                    store = builder(dir.path(), partitions, durability).open().unwrap();
                }
                3 => {
                    drop(store);
                    store = builder(dir.path(), partitions, durability).open().unwrap();
                }
                _ => {}
            },
        }
        if step % 5000 == 0 {
            check(&store, &model, keys);
        }
    }
    check(&store, &model, keys);
    run(store.close()).unwrap();
    let store = builder(dir.path(), partitions, durability).open().unwrap();
    check(&store, &model, keys);
    assert!(store.open_report().is_clean());
}

#[test]
fn random_operations_agree_with_a_map() {
    let _watchdog = Watchdog::of(Duration::from_secs(600));
    for seed in 0..6 {
        play(seed, 4000, 60, Durability::Buffered);
    }
    play(7, 1500, 500, Durability::Sync);
}

/// What a task may do to its keys at a time. Gives what is left, and how many puts had expired.
async fn play_many(
    store: Store,
    first: usize,
    keys: usize,
    steps: usize,
    seed: u64,
) -> (Model, u64) {
    let (mut rng, mut model, mut expired) = (Rng(seed), Model::new(), 0);
    for n in first..first + keys {
        let key = n.to_le_bytes().to_vec();
        if let Some(value) = store.get(&key).await.unwrap() {
            model.insert(key, value.to_vec());
        }
    }
    let mine = |n: usize| (first + n).to_le_bytes().to_vec();
    for _ in 0..steps {
        let key = mine(rng.below(keys));
        let known = model.get(&key).cloned();
        match rng.below(100) {
            0..45 => {
                let len = rng.below(150);
                let value = rng.bytes(len);
                store.put(&key, &value).await.unwrap();
                model.insert(key, value);
            }
            45..60 => {
                assert_eq!(store.delete(&key).await.unwrap(), model.remove(&key).is_some());
            }
            60..70 => {
                let found = store.get(&key).await.unwrap();
                assert!(found.as_deref() == known.as_deref());
            }
            70..75 => {
                let put = PutOptions::new().if_absent();
                let stored = store.put_with(&key, "absent", put).await.unwrap();
                assert_eq!(stored.is_some(), known.is_none());
                model.entry(key).or_insert_with(|| b"absent".to_vec());
            }
            75..80 => {
                let put = PutOptions::new().if_present().ttl(Duration::from_secs(3600));
                let stored = store.put_with(&key, "present", put).await.unwrap();
                assert_eq!(stored.is_some(), known.is_some());
                model.entry(key).and_modify(|value| *value = b"present".to_vec());
            }
            80..85 => {
                let append = |old: Option<&[u8]>| {
                    let mut new = old.unwrap_or_default().to_vec();
                    new.push(7);
                    (!new.len().is_multiple_of(5)).then_some(new)
                };
                let new = store.update(&key, append).await.unwrap();
                let known = append(known.as_deref());
                assert!(new.as_deref() == known.as_deref());
                match known {
                    Some(value) => drop(model.insert(key, value)),
                    None => drop(model.remove(&key)),
                }
            }
            85..90 => {
                let entry = store.get_entry(&key).await.unwrap();
                assert!(entry.as_ref().map(|e| &e.value[..]) == known.as_deref());
                if let Some(entry) = entry {
                    let swap = PutOptions::new().if_version(entry.version);
                    assert!(store.put_with(&key, "swapped", swap).await.unwrap().is_some());
                    assert!(store.put_with(&key, "again", swap).await.unwrap().is_none());
                    model.insert(key, b"swapped".to_vec());
                }
            }
            90..94 => {
                // Nobody ever sees it: what was there is gone.
                let past = PutOptions::new().expires_at(SystemTime::UNIX_EPOCH);
                assert!(store.put_with(&key, "past", past).await.unwrap().is_some());
                assert!(store.get(&key).await.unwrap().is_none());
                model.remove(&key);
                expired += 1;
            }
            94..98 => {
                assert_eq!(store.contains_key(&key).await.unwrap(), known.is_some());
            }
            _ => {
                let many: Vec<_> = (0..20).map(|_| mine(rng.below(keys))).collect();
                let found = store.get_many(&many).await.unwrap();
                let known = many.iter().map(|key| model.get(key).map(Vec::as_slice));
                assert!(found.iter().map(Option::as_deref).eq(known));
            }
        }
    }
    (model, expired)
}

/// Tasks at the same time, each with keys of its own, merges forced, reopened between.
fn play_together(keys: usize, tasks: usize, rounds: u64, durability: Durability) {
    let dir = disk_dir();
    let segment = if keys > 100_000 { 4 << 20 } else { 64 << 10 };
    let builder = || builder(dir.path(), 2, durability).segment_bytes(segment);
    let mut store = builder().open().unwrap();
    let (each, mut expired) = (keys / tasks, 0);
    for round in 0..rounds {
        let playing: Vec<_> = (0..tasks)
            .map(|task| {
                let store = store.clone();
                std::thread::spawn(move || {
                    let seed = round << 32 | task as u64;
                    run(play_many(store, task * each, each, 2 * each, seed))
                })
            })
            .collect();
        while playing.iter().any(|task| !task.is_finished()) {
            run(store.compact()).unwrap();
        }
        let merges = run(store.stats()).unwrap().total().merges;
        assert!(merges > 0);
        let mut model = Model::new();
        for task in playing {
            let (left, more) = task.join().unwrap();
            model.extend(left);
            expired += more;
        }
        for reopened in [false, true] {
            if reopened {
                if round % 2 == 0 {
                    run(store.close()).unwrap();
                } else {
                    drop(store);
                }
                store = builder().open().unwrap();
            }
            let mut scan = store.scan();
            let mut left = model.clone();
            while let Some(entry) = run(scan.next()) {
                let entry = entry.unwrap();
                let value = left.remove(&entry.key[..]);
                assert!(value.as_deref() == Some(&entry.value[..]), "{:?}: {value:?}", entry.key);
            }
            assert!(left.is_empty(), "round {round}, reopened {reopened}: {} lost", left.len());
            // What has expired counts until a merge comes by.
            let counted = model.len() as u64..=model.len() as u64 + expired;
            assert!(counted.contains(&run(store.len()).unwrap()), "{counted:?}");
            for key in model.keys().step_by(1 + model.len() / 2000) {
                let found = run(store.get(key)).unwrap();
                assert!(found.as_deref() == Some(&model[key][..]));
            }
        }
        assert!(run(store.verify()).unwrap().is_sound());
        println!(
            "round {round}: {} operations, {} of {keys} keys live, {} segments, {} merges",
            tasks * 2 * each,
            model.len(),
            run(store.stats()).unwrap().total().segments,
            merges
        );
    }
}

#[test]
fn tasks_with_keys_of_their_own_agree_with_maps() {
    let _watchdog = Watchdog::new();
    play_together(4_000, 8, 3, Durability::Buffered);
}

#[test]
#[ignore = "a million keys: cargo test --release --test store_model -- --ignored --nocapture"]
fn tasks_with_a_million_keys_agree_with_maps() {
    play_together(1_000_000, 8, 4, Durability::Buffered);
}
