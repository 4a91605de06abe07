//! Full disks and limits: puts say so, everything else goes on, and so do puts when there is room.
//! The full disk is a small tmpfs in a mount namespace of a child, which takes root: without, these
//! tests say that they were not run.

#![allow(missing_docs, clippy::unwrap_used)]

mod store_common;
mod store_kit;

use futures::future::join_all;
use ringlog::{Builder, Durability, Error, Store};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;
use store_common::{Rng, Watchdog, child, disk_dir, run, run_child, told};
use store_kit::{Map, assert_is, files, scan_all, wait_until};

const SEGMENT: u64 = 256 << 10;

fn builder(dir: &Path) -> Builder {
    Store::builder(dir).segment_bytes(SEGMENT).cache_bytes(0)
}

/// Runs a child of this test on a file system of its own with so many bytes. False if that is not
/// to be had here.
#[track_caller]
fn on_small_disk(test: &str, bytes: u64) -> bool {
    let dir = disk_dir();
    let mount = format!("mount -t tmpfs -o size={bytes} none '{}'", dir.path().display());
    let possible = Command::new("unshare")
        .args(["-m", "sh", "-c", &mount])
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    if !possible {
        eprintln!("{test}: not run: it takes root, and a mount namespace");
        return false;
    }
    let plain = child(test, dir.path());
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", &format!("{mount} && exec \"$@\"")]).arg("sh");
    command.arg(plain.get_program()).args(plain.get_args());
    command.envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success() && text.contains("1 passed"),
        "the child of {test}: {}\n{text}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    true
}

fn name(n: usize) -> Vec<u8> {
    format!("key {n:05}").into_bytes()
}

fn value(n: usize) -> Vec<u8> {
    Rng(n as u64).bytes(3000 + n % 7 * 1000)
}

#[track_caller]
fn assert_full<T: std::fmt::Debug>(answer: Result<T, Error>, dir: &Path) {
    match answer {
        Err(Error::Full { path, source }) => {
            assert_eq!(path, dir.join("p0000"));
            assert!(!source.to_string().is_empty());
        }
        other => panic!("not full: {other:?}"),
    }
}

/// Puts until one is refused.
fn fill_once(store: &Store, dir: &Path, map: &mut Map) {
    for n in map.len().. {
        match run(store.put(name(n), value(n))) {
            Ok(()) => drop(map.insert(name(n), value(n))),
            full => return assert_full(full, dir),
        }
    }
}

/// Puts until there is no room, also after merges have given back all that is worth while.
fn fill(store: &Store, dir: &Path, map: &mut Map) {
    loop {
        let before = map.len();
        fill_once(store, dir, map);
        if map.len() == before {
            return;
        }
        match run(store.compact()) {
            Ok(()) | Err(Error::Full { .. }) => {}
            Err(other) => panic!("{other:?}"),
        }
    }
}

#[test]
fn on_a_full_disk_puts_say_so_and_reads_deletes_merges_and_opening_go_on() {
    const TEST: &str = "on_a_full_disk_puts_say_so_and_reads_deletes_merges_and_opening_go_on";
    let Some(disk) = told(TEST) else {
        on_small_disk(TEST, 6 << 20);
        return;
    };
    let _dog = Watchdog::new();
    let dir = disk.join("store");
    let mut store = builder(&dir).open().unwrap();
    let mut map = Map::new();
    // In the end every kind of put is refused, again and again, and nothing hangs. Until then merges
    // that go on beside this may make room.
    let mut taken = true;
    while std::mem::take(&mut taken) {
        fill(&store, &dir, &mut map);
        let puts = run(join_all((0..50).map(|n| store.put(name(n), vec![0; 5000]))));
        let update = run(store.update(name(0), |_| Some(vec![0; 5000])));
        for (n, answer) in (0..50).zip(puts).chain([(0, update.map(drop))]) {
            if answer.is_ok() {
                map.insert(name(n), vec![0; 5000]);
                taken = true;
            } else {
                assert_full(answer, &dir);
            }
        }
    }
    assert!(map.len() > 500, "{} keys", map.len());
    // One that removes what is there is a delete.
    let removed = run(store.update(name(0), |old| old.is_none().then(Vec::new)));
    assert_eq!(removed.unwrap(), None);
    map.remove(&name(0));
    assert_is(&store, &map, "full");
    // Opening needs no room.
    for round in 0..3 {
        if round == 1 {
            run(store.close()).unwrap();
        } else {
            drop(store);
        }
        store = builder(&dir).open().unwrap();
        assert_is(&store, &map, &format!("full, opened again, {round}"));
    }
    // Deletes go on, and what they free can be used again.
    for hundred in (0..map.len() / 100).step_by(2) {
        // Together: a delete that is durable by itself takes a block by itself.
        let all: Vec<_> = (hundred * 100..(hundred + 1) * 100).map(name).collect();
        let deleted = run(join_all(all.iter().map(|key| store.delete(key))));
        for (key, deleted) in all.iter().zip(deleted) {
            assert_eq!(deleted.unwrap(), map.contains_key(key));
        }
        map.retain(|key, _| !all.contains(key));
    }
    assert_is(&store, &map, "half of it deleted");
    wait_until("puts work again", || run(store.put("after", "value")).is_ok());
    map.insert(b"after".to_vec(), b"value".to_vec());
    for n in 0..100 {
        // What is free may be taken before the next merge is done.
        wait_until("a hundred puts work", || run(store.put(name(n), value(n))).is_ok());
        map.insert(name(n), value(n));
    }
    assert_is(&store, &map, "puts work again");
    drop(store);
    assert_is(&builder(&dir).open().unwrap(), &map, "opened at last");
}

/// They have their places before anybody knows that the disk is full, whatever fills it: a segment
/// that grows, or one that is made.
#[test]
fn puts_that_come_together_leave_what_deletes_need() {
    const TEST: &str = "puts_that_come_together_leave_what_deletes_need";
    let Some(disk) = told(TEST) else {
        // Over all that a segment takes.
        for part in 0..64 {
            if !on_small_disk(TEST, (3 << 20) + part * (4 << 10)) {
                return;
            }
        }
        return;
    };
    let _dog = Watchdog::new();
    let dir = disk.join("store");
    let store = builder(&dir).durability(Durability::Buffered).open().unwrap();
    let mut map = Map::new();
    let puts = run(join_all((0..800).map(|n| store.put(name(n), value(n)))));
    for (n, put) in puts.into_iter().enumerate() {
        match put {
            Ok(()) => drop(map.insert(name(n), value(n))),
            full => assert_full(full, &dir),
        }
    }
    assert!(map.len() > 300 && map.len() < 700, "{} keys", map.len());
    let some: Vec<_> = map.keys().take(50).cloned().collect();
    // The first few take a block each: more than puts may have left by chance.
    let (few, more) = some.split_at(6);
    let durable = store.with_durability(Durability::Sync);
    for key in few {
        assert!(run(durable.delete(key)).unwrap());
    }
    for deleted in run(join_all(more.iter().map(|key| store.delete(key)))) {
        assert!(deleted.unwrap());
    }
    map.retain(|key, _| !some.contains(key));
    assert_is(&store, &map, "fifty of them deleted");
}

/// Deletes all over the place leave no segment that is all garbage.
#[test]
fn on_a_full_disk_deletes_that_are_spread_out_make_room_too() {
    const TEST: &str = "on_a_full_disk_deletes_that_are_spread_out_make_room_too";
    let Some(disk) = told(TEST) else {
        on_small_disk(TEST, 6 << 20);
        return;
    };
    deletes_make_room(&disk, SEGMENT);
}

/// Where segments are smaller than they may be, as in any small store.
#[test]
fn so_they_do_with_segments_of_the_usual_size() {
    const TEST: &str = "so_they_do_with_segments_of_the_usual_size";
    let Some(disk) = told(TEST) else {
        on_small_disk(TEST, 80 << 20);
        return;
    };
    deletes_make_room(&disk, ringlog::SEGMENT_BYTES);
}

fn deletes_make_room(disk: &Path, segment_bytes: u64) {
    let _dog = Watchdog::new();
    let dir = disk.join("store");
    let open =
        || builder(&dir).segment_bytes(segment_bytes).durability(Durability::Buffered).open();
    let store = open().unwrap();
    let mut map = Map::new();
    fill(&store, &dir, &mut map);
    let mut refused = 0;
    for n in (0..map.len()).filter(|n| n % 10 != 0).collect::<Vec<_>>() {
        match run(store.delete(name(n))) {
            Ok(there) => assert!(there && map.remove(&name(n)).is_some()),
            Err(Error::Full { .. }) => refused += 1,
            Err(other) => panic!("{other:?}"),
        }
    }
    assert_eq!(refused, 0, "deletes were refused");
    wait_until("puts work again", || run(store.put("after", "value")).is_ok());
    map.insert(b"after".to_vec(), b"value".to_vec());
    assert_is(&store, &map, "deleted");
    run(store.close()).unwrap();
    assert_is(&open().unwrap(), &map, "opened again");
}

#[test]
fn a_full_disk_holds_up_neither_compaction_nor_close() {
    const TEST: &str = "a_full_disk_holds_up_neither_compaction_nor_close";
    let Some(disk) = told(TEST) else {
        on_small_disk(TEST, 6 << 20);
        return;
    };
    let _dog = Watchdog::of(Duration::from_secs(60));
    let dir = disk.join("store");
    // Somebody else has taken the rest.
    fs::write(disk.join("filler"), vec![1; 2 << 20]).unwrap();
    let store = builder(&dir).durability(Durability::Buffered).open().unwrap();
    let mut map = Map::new();
    fill(&store, &dir, &mut map);
    // Some garbage in each segment: more has to be copied than there is room for.
    let mut gone = 0;
    for n in (0..map.len()).step_by(3).collect::<Vec<_>>() {
        if run(store.delete(name(n))).is_ok() {
            map.remove(&name(n));
            gone += 1;
        }
    }
    assert!(gone > 10, "{gone} deleted");
    for _ in 0..3 {
        match run(store.compact()) {
            Ok(()) | Err(Error::Full { .. }) => {}
            Err(other) => panic!("{other:?}"),
        }
    }
    assert_is(&store, &map, "compacted as far as possible");
    // Deletes have not lost their reserve to copies.
    for n in (1..map.len()).step_by(3).take(10).collect::<Vec<_>>() {
        assert!(run(store.delete(name(n))).unwrap());
        map.remove(&name(n));
    }
    run(store.close()).unwrap();
    let store = builder(&dir).open().unwrap();
    assert_is(&store, &map, "opened again");
    fs::remove_file(disk.join("filler")).unwrap();
    wait_until("puts work again", || run(store.put("after", "value")).is_ok());
    run(store.compact()).unwrap();
    map.insert(b"after".to_vec(), b"value".to_vec());
    assert_is(&store, &map, "there is room again");
}

#[test]
fn when_somebody_else_fills_the_disk_puts_work_again_after_he_has_gone() {
    const TEST: &str = "when_somebody_else_fills_the_disk_puts_work_again_after_he_has_gone";
    let Some(disk) = told(TEST) else {
        on_small_disk(TEST, 12 << 20);
        return;
    };
    let _dog = Watchdog::new();
    let dir = disk.join("store");
    let mut store = builder(&dir).open().unwrap();
    let mut map = Map::new();
    for round in 0..4 {
        // As far as there is room.
        fs::write(disk.join("filler"), vec![1; 16 << 20]).unwrap_err();
        fill(&store, &dir, &mut map);
        assert!(run(store.get(name(0))).is_ok());
        if round % 2 == 1 {
            drop(store);
            store = builder(&dir).open().unwrap();
            assert_full(run(store.put("large", vec![0; 500_000])), &dir);
        }
        fs::remove_file(disk.join("filler")).unwrap();
        for _ in 0..20 {
            let n = map.len();
            run(store.put(name(n), value(n))).unwrap();
            map.insert(name(n), value(n));
        }
        assert_is(&store, &map, &format!("round {round}"));
    }
    // A store that cannot be made says so, and can be made later.
    fs::write(disk.join("filler"), vec![1; 16 << 20]).unwrap_err();
    let other = disk.join("other");
    assert!(matches!(Store::open(&other, 1), Err(Error::Io { .. } | Error::Full { .. })));
    fs::remove_file(disk.join("filler")).unwrap();
    let other = Store::open(&other, 1).unwrap();
    run(other.put("key", "value")).unwrap();
}

// ---- limits -----------------------------------------------------------------------------------

/// From now on, no file of this process grows beyond `len`.
fn limit_file_size(len: u64) {
    // SAFETY: a disposition without a handler.
    assert_ne!(unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) }, libc::SIG_ERR);
    let limit = libc::rlimit { rlim_cur: len, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: the limit is there for the call.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_FSIZE, &raw const limit) }, 0);
}

#[test]
fn a_limit_on_files_is_like_a_full_disk() {
    const TEST: &str = "a_limit_on_files_is_like_a_full_disk";
    let Some(dir) = told(TEST) else {
        let dir = disk_dir();
        run_child(TEST, &dir.path().join("store"));
        let store = Store::open(dir.path().join("store"), 1).unwrap();
        assert_eq!(scan_all(&store).len(), 1);
        return;
    };
    let _dog = Watchdog::new();
    limit_file_size(6 << 20);
    let mut store = Store::open(&dir, 1).unwrap();
    let mut map = Map::new();
    fill_once(&store, &dir, &mut map);
    assert_is(&store, &map, "limited");
    assert_full(run(store.put("key", vec![0; 7 << 20])), &dir);
    assert!(run(store.delete(name(3))).unwrap());
    map.remove(&name(3));
    drop(store);
    store = Store::open(&dir, 1).unwrap();
    assert_is(&store, &map, "limited, and opened again");
    // After an opening there is a segment that is new.
    assert_full(run(store.put("key", vec![0; 7 << 20])), &dir);
    run(store.put("key", "value")).unwrap();
    limit_file_size(libc::RLIM_INFINITY);
    run(store.put("key", vec![0; 7 << 20])).unwrap();
    map.insert(b"key".to_vec(), vec![0; 7 << 20]);
    assert_is(&store, &map, "without a limit");
    for key in map.keys().filter(|key| *key != b"key") {
        assert!(run(store.delete(key)).unwrap());
    }
    run(store.close()).unwrap();
    assert!(!files(&dir, "log").is_empty());
}
