//! Verification, and reads of damage: what is wrong is named, and never taken for absence.

#![allow(missing_docs, clippy::unwrap_used)]

mod store_common;
mod store_kit;

use ringlog::Error;
use std::fs;
use store_common::{Watchdog, disk_dir, run};
use store_kit::{Churn, cold, files, find, flip, put_cold, small, wait_until};

#[test]
fn a_sound_store_is_verified_as_sound_also_under_load() {
    let _dog = Watchdog::new();
    let dir = disk_dir();
    let store = small(dir.path(), 2).open().unwrap();
    let empty = run(store.verify()).unwrap();
    assert!(empty.is_sound() && empty.records == 0, "{empty:?}");
    put_cold(&store, 300);
    let quiet = run(store.verify()).unwrap();
    assert!(quiet.is_sound() && quiet.records >= 300 && quiet.bytes > 300_000, "{quiet:?}");
    let churn = Churn::new(&store, true);
    for round in 0..10 {
        let busy = run(store.verify()).unwrap();
        assert!(busy.is_sound(), "round {round}: {:?}", busy.problems);
        churn.go_on(1);
    }
}

#[test]
fn verification_finds_a_changed_byte_in_any_record_dead_or_alive() {
    for alive in [true, false] {
        for sealed in [true, false] {
            let dir = disk_dir();
            let store = small(dir.path(), 1).cache_bytes(0).open().unwrap();
            put_cold(&store, 40);
            let rare = b"a value that is nowhere else";
            run(store.put("rare", rare)).unwrap();
            let (path, at) = find(dir.path(), rare);
            if !alive {
                run(store.put("rare", "newer")).unwrap();
            }
            if sealed {
                put_cold(&store, 120);
            }
            run(store.put("last", "value")).unwrap();
            assert!(run(store.verify()).unwrap().is_sound());
            flip(&path, at + 5);
            let before = fs::read(&path).unwrap();
            let report = run(store.verify()).unwrap();
            assert!(!report.is_sound(), "alive {alive}, sealed {sealed}");
            match &report.problems[0] {
                Error::Corrupt { path: found, offset, .. } => {
                    assert_eq!(*found, path);
                    assert!((at - 64..=at).contains(offset), "{offset} for {at}");
                }
                other => panic!("{other:?}"),
            }
            // Behind the tail an idle store makes its mark.
            let after = fs::read(&path).unwrap();
            let end = usize::try_from(at).unwrap() + 64;
            assert!(after[..end] == before[..end], "it was written to");
            let got = run(store.get("rare"));
            if alive {
                assert!(matches!(got, Err(Error::Corrupt { .. })), "{got:?}");
            } else {
                assert_eq!(got.unwrap().as_deref(), Some(&b"newer"[..]));
            }
        }
    }
}

#[test]
fn verification_finds_a_hint_that_does_not_say_what_its_segment_holds() {
    let dir = disk_dir();
    let store = small(dir.path(), 1).open().unwrap();
    put_cold(&store, 200);
    run(store.close()).unwrap();
    let store = small(dir.path(), 1).open().unwrap();
    assert!(run(store.verify()).unwrap().is_sound());
    let path = files(dir.path(), "hint").remove(0);
    let good = fs::read(&path).unwrap();
    // The last entry says another place and length. Its sum is right.
    for at in [8, 4, 20] {
        let mut wrong = good.clone();
        let body = wrong.len() - 4;
        wrong[body - at] ^= 1;
        let sum = crc32fast::hash(&wrong[..body]).to_le_bytes();
        wrong[body..].copy_from_slice(&sum);
        fs::write(&path, &wrong).unwrap();
        let problems = run(store.verify()).unwrap().problems;
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(matches!(&problems[0], Error::Corrupt { path: found, .. } if *found == path));
    }
    fs::write(&path, &good).unwrap();
    assert!(run(store.verify()).unwrap().is_sound());
}

#[test]
fn verification_finds_a_damaged_header_of_any_segment_also_of_those_to_come() {
    let dir = disk_dir();
    let store = small(dir.path(), 1).open().unwrap();
    put_cold(&store, 200);
    let logs = || files(dir.path(), "log");
    // Those that are made ahead are there soon.
    wait_until("two segments to come", || {
        logs().len() as u64 == run(store.stats()).unwrap().total().segments + 2
    });
    let all = logs();
    assert!(all.len() > 4, "{all:?}");
    for path in all {
        // Its salt, and its version.
        for at in [42, 8] {
            flip(&path, at);
            let problems = run(store.verify()).unwrap().problems;
            assert_eq!(problems.len(), 1, "{problems:?}");
            let found = match &problems[0] {
                Error::Corrupt { path, .. } | Error::FormatVersion { path, .. } => path,
                other => panic!("{other:?}"),
            };
            assert_eq!(*found, path);
            flip(&path, at);
        }
    }
    assert!(run(store.verify()).unwrap().is_sound());
}

#[test]
fn verification_finds_a_store_file_that_is_damaged_gone_or_anothers() {
    let dir = disk_dir();
    let store = small(dir.path(), 2).open().unwrap();
    let path = dir.path().join("STORE");
    let good = fs::read(&path).unwrap();
    let other = disk_dir();
    drop(small(other.path(), 2).open().unwrap());
    let others = fs::read(other.path().join("STORE")).unwrap();
    let mut flipped = good.clone();
    flipped[20] ^= 1;
    for wrong in [Some(flipped), Some(others), Some(good[..30].to_vec()), None] {
        match &wrong {
            Some(wrong) => fs::write(&path, wrong).unwrap(),
            None => fs::remove_file(&path).unwrap(),
        }
        let problems = run(store.verify()).unwrap().problems;
        assert_eq!(problems.len(), 1, "{wrong:?}: {problems:?}");
        assert!(matches!(&problems[0], Error::Corrupt { path: found, .. } if *found == path));
    }
    fs::write(&path, &good).unwrap();
    assert!(run(store.verify()).unwrap().is_sound());
}

#[test]
fn verification_names_damaged_hints_and_counts_missing_ones() {
    let dir = disk_dir();
    let store = small(dir.path(), 1).open().unwrap();
    put_cold(&store, 200);
    run(store.close()).unwrap();
    let store = small(dir.path(), 1).open().unwrap();
    let hints = files(dir.path(), "hint");
    let good = fs::read(&hints[0]).unwrap();
    for len in [0, 50, good.len() - 1] {
        fs::write(&hints[0], &good[..len]).unwrap();
        let report = run(store.verify()).unwrap();
        assert_eq!((report.problems.len(), report.missing_hints), (1, 0), "{report:?}");
        let named = matches!(&report.problems[0], Error::Corrupt { path, .. } if *path == hints[0]);
        assert!(named, "{report:?}");
    }
    for hint in &hints {
        fs::remove_file(hint).unwrap();
    }
    let report = run(store.verify()).unwrap();
    assert!(report.is_sound(), "{report:?}");
    assert_eq!(report.missing_hints, hints.len() as u64);
}

/// A read never takes damage for "not there".
#[test]
fn a_segment_that_was_cut_under_the_store_is_damage_and_not_absence() {
    let dir = disk_dir();
    let store = small(dir.path(), 1).cache_bytes(0).open().unwrap();
    put_cold(&store, 100);
    let (path, at) = find(dir.path(), &cold(20).1);
    let file = fs::File::options().write(true).open(&path).unwrap();
    for len in [at + 100, at, at - 10, 4096, 10, 0] {
        file.set_len(len).unwrap();
        let (key, _) = cold(20);
        for got in [run(store.get(&key)), run(store.update(&key, |_| panic!("what value?")))] {
            assert!(matches!(got, Err(Error::Corrupt { .. })), "cut at {len}: {got:?}");
        }
        let many = run(store.get_many([&key]));
        assert!(matches!(many, Err(Error::Corrupt { .. })), "cut at {len}: {many:?}");
        assert!(!run(store.verify()).unwrap().is_sound());
    }
    // Others go on.
    run(store.put("key", "value")).unwrap();
    assert_eq!(run(store.get("key")).unwrap().as_deref(), Some(&b"value"[..]));
}
