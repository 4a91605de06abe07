//! Merges: space stays bounded and comes back, what was deleted stays away, nothing is lost whatever
//! goes on meanwhile.

#![allow(missing_docs, clippy::unwrap_used)]

mod store_common;
mod store_kit;

use futures::future::{join_all, try_join_all};
use ringlog::{Builder, Durability, PutOptions, Store};
use std::path::Path;
use std::time::Duration;
use store_common::{Rng, Watchdog, disk_dir, run};
use store_kit::{
    Map, allocated, assert_is, files, on_threads, remove_hints, scan_all, small, wait_until,
};

const SEGMENT: u64 = 256 << 10;

/// What the files may take beyond twice the live data, for each partition: the active segment, the
/// spare, garbage that is not worth a merge, what is being merged and its copy.
const SLACK: u64 = 6 * SEGMENT;

fn builder(dir: &Path, partitions: usize) -> Builder {
    small(dir, partitions).segment_bytes(SEGMENT).durability(Durability::Buffered)
}

fn live(store: &Store) -> u64 {
    run(store.stats()).unwrap().total().live_bytes
}

// ---- space ------------------------------------------------------------------------------------

fn overwritten_for_ever(keys: usize, times: usize, partitions: usize) {
    let dir = disk_dir();
    let store = builder(dir.path(), partitions).open().unwrap();
    let name = |n: usize| format!("key {n}");
    let mut rng = Rng(1);
    let value = rng.bytes(1000);
    let all: Vec<usize> = (0..keys).collect();
    for some in all.chunks(500) {
        run(try_join_all(some.iter().map(|&n| store.put(name(n), &value)))).unwrap();
    }
    let mut most = 0;
    for _ in 0..times * keys / 100 {
        let some: Vec<_> = (0..100).map(|_| rng.below(keys)).collect();
        run(try_join_all(some.iter().map(|&n| store.put(name(n), &value)))).unwrap();
        most = most.max(allocated(dir.path()));
    }
    // Puts wait at three quarters; in a quarter of it all else has its place, but for this.
    let bound = 2 * live(&store) + partitions as u64 * 2 * SEGMENT;
    assert!(most <= bound, "{most} bytes, {} live, {bound} allowed", live(&store));
    let stats = run(store.stats()).unwrap().total();
    assert!(stats.merges > 0 && stats.keys == keys as u64, "{stats:?}");
    drop(store);
    let store = builder(dir.path(), partitions).open().unwrap();
    let all = scan_all(&store);
    assert!(all.len() == keys && all.values().all(|entry| entry.value == value));
}

#[test]
fn space_stays_bounded_under_endless_overwriting() {
    let _dog = Watchdog::new();
    overwritten_for_ever(6_000, 5, 1);
    overwritten_for_ever(6_000, 5, 2);
}

#[test]
#[ignore = "takes minutes: cargo test --release --test store_merge -- --ignored"]
fn space_stays_bounded_under_very_long_overwriting() {
    overwritten_for_ever(50_000, 40, 2);
}

#[test]
fn all_space_comes_back_by_itself_after_everything_was_deleted() {
    let _dog = Watchdog::new();
    for (keys, len) in [(4_000, 1_000), (20_000, 0), (3, 3 << 20)] {
        let dir = disk_dir();
        let store = builder(dir.path(), 2).open().unwrap();
        let all: Vec<usize> = (0..keys).collect();
        for some in all.chunks(1000) {
            run(try_join_all(some.iter().map(|n| store.put(n.to_string(), vec![5; len])))).unwrap();
        }
        for some in all.chunks(1000) {
            let deleted = run(try_join_all(some.iter().map(|n| store.delete(n.to_string()))));
            assert!(deleted.unwrap().iter().all(|&there| there));
        }
        wait_until("the space comes back", || allocated(dir.path()) <= 2 * SLACK);
        assert!(run(store.is_empty()).unwrap());
        drop(store);
        let store = builder(dir.path(), 2).open().unwrap();
        assert!(scan_all(&store).is_empty());
        run(store.compact()).unwrap();
        run(store.compact()).unwrap();
        let stats = run(store.stats()).unwrap().total();
        assert_eq!((stats.keys, stats.live_bytes), (0, 0), "tombstones are left: {stats:?}");
        assert!(allocated(dir.path()) <= 2 * SLACK);
    }
}

#[test]
fn a_queue_on_top_of_cold_data_does_not_grow() {
    let _dog = Watchdog::new();
    let dir = disk_dir();
    let store = builder(dir.path(), 1).open().unwrap();
    let cold: Map = (0..3_000).map(|n| (format!("cold {n}").into_bytes(), vec![1; 1000])).collect();
    run(try_join_all(cold.iter().map(|(key, value)| store.put(key, value)))).unwrap();
    let bound = 2 * live(&store) + SLACK;
    let mut most = 0;
    for step in 0..200 {
        let name = |n: usize| format!("queue {}", step * 100 + n);
        run(try_join_all((0..100).map(|n| store.put(name(n), vec![2; 500])))).unwrap();
        let taken = run(try_join_all((0..100).map(|n| store.delete(name(n))))).unwrap();
        assert!(taken.iter().all(|&there| there));
        most = most.max(allocated(dir.path()));
    }
    assert!(most <= bound, "{most} bytes, {bound} allowed");
    // Not a trace of 20,000 keys.
    run(store.compact()).unwrap();
    run(store.compact()).unwrap();
    let stats = run(store.stats()).unwrap().total();
    assert!(stats.live_bytes < 3_000 * 1_100, "tombstones are left: {stats:?}");
    assert_is(&store, &cold, "under the queue");
}

#[test]
fn space_of_what_has_expired_comes_back_by_itself() {
    let _dog = Watchdog::new();
    let dir = disk_dir();
    let store = builder(dir.path(), 1).open().unwrap();
    let soon = PutOptions::new().ttl(Duration::from_millis(20));
    for step in 0..40 {
        let name = |n: usize| format!("session {}", step * 100 + n);
        run(try_join_all((0..100).map(|n| store.put_with(name(n), vec![2; 1000], soon)))).unwrap();
    }
    wait_until("the space of what has expired comes back", || {
        run(store.put("key", "value")).unwrap();
        allocated(dir.path()) <= SLACK
    });
}

// ---- tombstones -------------------------------------------------------------------------------

/// Seals the segment that is written to: what is written from now on is in another.
fn next_segment(store: Store, builder: &Builder) -> Store {
    run(store.close()).unwrap();
    builder.clone().open().unwrap()
}

/// A key is put into one segment and deleted in another, and only the second is full of garbage.
#[test]
fn a_deleted_key_stays_away_though_only_the_delete_is_merged() {
    for hints in [true, false] {
        let dir = disk_dir();
        let builder = small(dir.path(), 1).durability(Durability::Buffered);
        let store = builder.clone().open().unwrap();
        let mut map = Map::new();
        // The first segment: nothing but "key" is to die in it, so that it is not worth a merge.
        for n in 0..50 {
            map.insert(format!("cold {n}").into_bytes(), vec![1; 1000]);
        }
        run(store.put("key", "old")).unwrap();
        run(try_join_all(map.iter().map(|(key, value)| store.put(key, value)))).unwrap();
        let store = next_segment(store, &builder);
        run(store.delete("key")).unwrap();
        for n in 0..45 {
            run(store.put("garbage", vec![n; 1000])).unwrap();
        }
        let mut store = next_segment(store, &builder);
        let first = files(dir.path(), "log").remove(0);
        for round in 0..4 {
            let merges = run(store.stats()).unwrap().total().merges;
            run(store.compact()).unwrap();
            if round == 0 {
                assert!(run(store.stats()).unwrap().total().merges > merges, "nothing was merged");
            }
            assert!(first.exists(), "the segment with the put was to stay");
            assert_eq!(run(store.get("key")).unwrap(), None);
            run(store.put("garbage", vec![round; 50_000])).unwrap();
            map.insert(b"garbage".to_vec(), vec![round; 50_000]);
            store = next_segment(store, &builder);
            if !hints {
                drop(store);
                remove_hints(dir.path());
                store = builder.clone().open().unwrap();
            }
            assert_is(&store, &map, &format!("round {round}, hints {hints}"));
        }
        // When the put is gone, so is the tombstone.
        run(try_join_all((0..50).map(|n| store.delete(format!("cold {n}"))))).unwrap();
        run(store.delete("garbage")).unwrap();
        run(store.compact()).unwrap();
        run(store.compact()).unwrap();
        assert!(!first.exists());
        assert_eq!(live(&store), 0, "a tombstone stands over nothing");
        drop(store);
        assert!(scan_all(&builder.open().unwrap()).is_empty());
    }
}

/// More older puts than the index can count: when all that it has counted are gone, there is one
/// left.
#[test]
fn a_key_that_was_overwritten_very_often_stays_away_when_it_is_deleted() {
    let dir = disk_dir();
    let builder = small(dir.path(), 1).durability(Durability::Buffered);
    let store = builder.clone().open().unwrap();
    // The first segment is not worth a merge, and keeps its put.
    let mut map: Map = (0..50).map(|n| (format!("cold {n}").into_bytes(), vec![1; 1000])).collect();
    run(store.put("hot", "first")).unwrap();
    run(try_join_all(map.iter().map(|(key, value)| store.put(key, value)))).unwrap();
    let store = next_segment(store, &builder);
    let first = files(dir.path(), "log").remove(0);
    for n in 0..300_u32 {
        run(store.put("hot", [n.to_le_bytes(); 15].concat())).unwrap();
    }
    assert!(run(store.delete("hot")).unwrap());
    let mut store = next_segment(store, &builder);
    for round in 0..4 {
        // The segment with the delete is merged, and what that has copied too.
        for part in 0..3 {
            run(store.compact()).unwrap();
            run(store.put("garbage", vec![part; 50_000])).unwrap();
        }
        assert!(run(store.stats()).unwrap().total().merges >= 2);
        assert!(first.exists(), "the segment with the first put was to stay");
        map.insert(b"garbage".to_vec(), vec![2; 50_000]);
        store = next_segment(store, &builder);
        assert_is(&store, &map, &format!("round {round}"));
    }
}

// ---- under load -------------------------------------------------------------------------------

/// What a task does to its own keys, and what they are then.
async fn play(store: Store, task: usize, steps: usize, seed: u64) -> Map {
    let (mut rng, mut map) = (Rng(seed << 8 | task as u64), Map::new());
    for entry in scan_own(&store, task).await {
        map.insert(entry.0, entry.1);
    }
    for step in 0..steps {
        let key = format!("{task} {}", rng.below(25)).into_bytes();
        let known = map.get(&key).cloned();
        match rng.below(12) {
            0..5 => {
                let len = if rng.below(20) == 0 { 70_000 } else { rng.below(1_500) };
                let value = rng.bytes(len);
                store.put(&key, &value).await.unwrap();
                map.insert(key, value);
            }
            // Two at the same time: the order of their sending counts.
            5 => {
                let (first, second) = (rng.bytes(400), rng.bytes(300));
                let (a, b) = futures::join!(store.put(&key, &first), store.put(&key, &second));
                a.unwrap();
                b.unwrap();
                map.insert(key, second);
            }
            6 => {
                let value = rng.bytes(200);
                let (a, b, c) = futures::join!(
                    store.put(&key, "gone"),
                    store.delete(&key),
                    store.put_with(&key, &value, PutOptions::new().if_absent()),
                );
                a.unwrap();
                assert!(b.unwrap() && c.unwrap().is_some());
                map.insert(key, value);
            }
            7 => {
                let there = store.delete(&key).await.unwrap();
                assert_eq!(there, map.remove(&key).is_some(), "task {task}, step {step}");
            }
            8 => {
                let add = |old: Option<&[u8]>| {
                    let mut new = old.unwrap_or_default().to_vec();
                    new.push(1);
                    Some(new)
                };
                let new = store.update(&key, add).await.unwrap().unwrap();
                assert_eq!(Some(&new[..]), add(known.as_deref()).as_deref());
                map.insert(key, new.to_vec());
            }
            9 => {
                let entry = store.get_entry(&key).await.unwrap();
                assert_eq!(entry.is_some(), known.is_some());
                if let Some(entry) = entry {
                    let swap = PutOptions::new().if_version(entry.version);
                    assert!(store.put_with(&key, "swapped", swap).await.unwrap().is_some());
                    map.insert(key, b"swapped".to_vec());
                }
            }
            _ => {
                let found = store.get(&key).await.unwrap();
                assert!(found.as_deref() == known.as_deref(), "task {task}, step {step}");
            }
        }
    }
    map
}

async fn scan_own(store: &Store, task: usize) -> Map {
    let mut scan = store.scan_prefix(format!("{task} "));
    let mut map = Map::new();
    while let Some(entry) = scan.next().await {
        let entry = entry.unwrap();
        assert!(map.insert(entry.key.to_vec(), entry.value.to_vec()).is_none());
    }
    map
}

/// Threads of tasks, each with keys of its own, compaction all the time, scans beside it; then
/// reopened, by its hints and without, after a close and after a drop.
fn stress(rounds: u64, threads: usize, tasks: usize, steps: usize, durability: Durability) {
    let dir = disk_dir();
    let builder = small(dir.path(), 2).durability(durability);
    let mut store = builder.clone().open().unwrap();
    let mut merges = 0;
    for round in 0..rounds {
        let playing = |thread: usize| {
            let store = store.clone();
            let tasks =
                (0..tasks).map(move |n| play(store.clone(), thread * tasks + n, steps, round));
            join_all(tasks)
        };
        let compacting = {
            let store = store.clone();
            std::thread::spawn(move || {
                for n in 0..15 {
                    run(store.compact()).unwrap();
                    if n % 5 == 0 {
                        scan_all(&store);
                    }
                }
            })
        };
        let maps = on_threads((0..threads).map(playing));
        compacting.join().unwrap();
        let map: Map = maps.into_iter().flatten().flatten().collect();
        let what = format!("{durability:?}, round {round}");
        assert_is(&store, &map, &what);
        merges += run(store.stats()).unwrap().total().merges;
        if round % 2 == 0 {
            run(store.close()).unwrap();
        } else {
            drop(store);
        }
        if round % 3 == 2 {
            remove_hints(dir.path());
        }
        store = builder.clone().open().unwrap();
        assert!(store.open_report().is_clean(), "{:?}", store.open_report());
        assert_is(&store, &map, &format!("{what}, reopened"));
    }
    assert!(merges > rounds, "{merges} merges");
}

#[test]
fn nothing_is_lost_and_nothing_comes_back_under_load_and_merges() {
    let _dog = Watchdog::new();
    stress(6, 3, 6, 60, Durability::Buffered);
    stress(3, 3, 6, 30, Durability::Sync);
}

#[test]
#[ignore = "takes minutes: cargo test --release --test store_merge -- --ignored"]
fn nothing_is_lost_and_nothing_comes_back_under_long_load_and_merges() {
    stress(60, 4, 16, 400, Durability::Buffered);
    stress(30, 4, 16, 200, Durability::Sync);
}

/// Readers hold places while their segments are merged, their files removed, and the small numbers
/// of both used again.
#[test]
fn a_read_finds_its_value_wherever_merges_have_moved_it() {
    let _dog = Watchdog::new();
    let dir = disk_dir();
    let store = small(dir.path(), 1).durability(Durability::Buffered).open().unwrap();
    let name = |n: usize| format!("key {n}");
    let value = |n: usize| vec![u8::try_from(n % 251).unwrap(); 700 + n];
    run(try_join_all((0..300).map(|n| store.put(name(n), value(n))))).unwrap();
    let reader = |seed: u64| {
        let store = store.clone();
        async move {
            let mut rng = Rng(seed);
            for _ in 0..60 {
                let some: Vec<_> = (0..20).map(|_| rng.below(300)).collect();
                let found = store.get_many(some.iter().map(|&n| name(n))).await.unwrap();
                for (n, found) in some.iter().zip(found) {
                    assert!(found.as_deref() == Some(&value(*n)[..]), "key {n}: {found:?}");
                }
            }
        }
    };
    let merger = {
        let store = store.clone();
        std::thread::spawn(move || {
            for n in 0..40 {
                for part in 0..10 {
                    run(store.put(format!("garbage {part}"), vec![n; 6000])).unwrap();
                }
                run(store.compact()).unwrap();
            }
        })
    };
    on_threads((0..3).map(reader));
    merger.join().unwrap();
    assert!(run(store.stats()).unwrap().total().merges > 20);
    assert!(run(store.verify()).unwrap().is_sound());
}

/// What an interrupted rotation leaves means nothing, and its number is not used again.
#[test]
fn what_an_interrupted_rotation_leaves_is_removed() {
    let dir = disk_dir();
    let builder = small(dir.path(), 1);
    let store = builder.clone().open().unwrap();
    run(store.put("key", "value")).unwrap();
    run(store.close()).unwrap();
    let folder = dir.path().join("p0000");
    for name in ["0000000500.new", "0000000501.new", "0000000007.hint"] {
        std::fs::write(folder.join(name), if name.contains("501") { "half a head" } else { "" })
            .unwrap();
    }
    std::fs::write(folder.join("notes.txt"), "mine").unwrap();
    let store = builder.clone().open().unwrap();
    assert!(files(dir.path(), "new").is_empty());
    assert!(!folder.join("0000000007.hint").exists());
    assert_eq!(std::fs::read(folder.join("notes.txt")).unwrap(), b"mine");
    for n in 0..20 {
        run(store.put("key", vec![n; 9000])).unwrap();
    }
    let last = files(dir.path(), "log").pop().unwrap();
    assert!(last.file_stem().unwrap().to_str().unwrap().parse::<u64>().unwrap() > 501, "{last:?}");
    drop(store);
    assert_eq!(run(builder.open().unwrap().get("key")).unwrap().unwrap(), vec![19; 9000]);
}
