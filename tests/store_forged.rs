//! Files whose sums are right, and which say what no store has written: they are refused, or made
//! nothing of; no panic, no loop without an end. Most of these were found by the fuzz targets.

#![allow(missing_docs, clippy::unwrap_used)]

mod store_common;

use ringlog::{Error, Store};
use std::fs;
use std::path::Path;
use store_common::{
    BLOCK, Files, PUT, SEAL, Watchdog, entries, mark, memory_dir, open, record, refused, restore,
    run, salt, segment_name, snapshot, trimmed,
};

/// A closed store with one record in its first segment, and that segment's name.
fn closed() -> (Files, String) {
    let dir = memory_dir();
    let store = open(dir.path(), 1);
    run(store.put("key", "value")).unwrap();
    run(store.close()).unwrap();
    (trimmed(snapshot(dir.path())), segment_name(0, 1))
}

/// The same files with other bytes in one of them, in a directory.
fn with(files: &Files, name: &str, bytes: Vec<u8>) -> tempfile::TempDir {
    let mut files = files.clone();
    files.insert(name.to_owned(), bytes);
    let dir = memory_dir();
    restore(&files, dir.path());
    dir
}

fn without_hints(mut files: Files) -> Files {
    files.retain(|name, _| !name.ends_with("hint"));
    files
}

#[track_caller]
fn assert_holds_the_key(dir: &Path, what: &str) {
    for _ in 0..2 {
        let store = open(dir, 1);
        let value = run(store.get("key")).unwrap();
        assert_eq!(value.as_deref(), Some(&b"value"[..]), "{what}");
        run(store.put("new", what)).unwrap();
        assert!(run(store.delete("new")).unwrap());
        run(store.close()).unwrap();
    }
}

/// What a seal says that a value has: durable, clock, after, next.
fn seal(log: &[u8], at: usize, durable: usize, after: usize) -> Vec<u8> {
    seal_naming(log, at, durable, after, 0)
}

fn seal_naming(log: &[u8], at: usize, durable: usize, after: usize, next: u64) -> Vec<u8> {
    let says = [durable as u64, 0, after as u64, next].map(u64::to_le_bytes).concat();
    record(salt(log), at, SEAL, 9, &[], &says)
}

/// As `closed`, without hints, and the seal names this segment.
fn closed_naming(next: u64) -> Files {
    let (mut files, name) = closed();
    let log = files[&name].clone();
    let there = entries(&log);
    let [.., last, sealed] = &there[..] else { unreachable!("a record and a seal") };
    let (after, at) = (last.end, sealed.start);
    let mut named = log[..at].to_vec();
    named.extend(seal_naming(&log, at, at, after, next));
    named.resize(log.len(), 0);
    files.insert(name, named);
    without_hints(files)
}

/// One that says that the log ended here, as an opening writes it behind a torn tail, but not where
/// the records before it end: it is no proof of anything.
#[test]
fn a_seal_behind_a_tear_that_follows_upon_something_else_ends_nothing() {
    let _dog = Watchdog::new();
    let (files, name) = closed();
    let files = without_hints(files);
    let log = &files[&name];
    let put = entries(log).into_iter().find(|entry| entry.kind == PUT).unwrap();
    for after in [0, put.start, put.end + 8, BLOCK] {
        let mut torn = log[..put.end].to_vec();
        torn.extend([1; 16]);
        torn.resize(put.end.next_multiple_of(BLOCK), 0);
        torn.extend(seal(&torn, torn.len(), put.end, after));
        torn.resize(torn.len().next_multiple_of(BLOCK), 0);
        let dir = with(&files, &name, torn);
        assert_holds_the_key(dir.path(), &format!("after {after}"));
    }
}

/// Numbers in a hint: where the seal is, the last sequence number, the clock, how many ids follow.
#[test]
fn a_hint_with_numbers_that_cannot_be_costs_a_scan() {
    let _dog = Watchdog::new();
    let (files, name) = closed();
    let name = name.replace("log", "hint");
    // A clock may be anything: it is carried on.
    for at in [48, 56, 72] {
        for number in [0, 7, 1 << 40, u64::MAX >> 1, u64::MAX - 60, u64::MAX - 7, u64::MAX] {
            let mut hint = files[&name].clone();
            let end = hint.len() - 4;
            if (at, number) == (56, 0) || (at, number) == (72, 0) || at == 56 && number < 1 << 63 {
                continue; // which it may be
            }
            hint[at..at + 8].copy_from_slice(&number.to_le_bytes());
            let sum = crc32fast::hash(&hint[..end]);
            hint[end..].copy_from_slice(&sum.to_le_bytes());
            let dir = with(&files, &name, hint);
            assert_holds_the_key(dir.path(), &format!("{number} at {at}"));
        }
    }
}

/// Segments are counted on from the last that there is, and nothing comes after the last number.
#[test]
fn a_file_whose_number_no_segment_can_have_is_left_alone() {
    let (files, _) = closed();
    for id in [u64::MAX, u64::MAX - 1, 1 << 63] {
        for kind in ["log", "hint", "new"] {
            let name = format!("p0000/{id}.{kind}");
            let dir = with(&files, &name, b"not ours".to_vec());
            assert_holds_the_key(dir.path(), &name);
            assert_eq!(fs::read(dir.path().join(&name)).unwrap(), b"not ours");
        }
    }
}

/// Sequence numbers too are counted on from the last.
#[test]
fn a_record_with_a_sequence_number_that_no_store_comes_to_is_refused() {
    let (files, name) = closed();
    let files = without_hints(files);
    let log = &files[&name];
    let put = entries(log).into_iter().find(|entry| entry.kind == PUT).unwrap();
    for sequence in [u64::MAX, u64::MAX - 1, 1 << 63] {
        let mut forged = log[..put.start].to_vec();
        forged.extend(record(salt(log), put.start, PUT, sequence, b"key", b"value"));
        assert_eq!(forged.len(), put.end);
        let unsealed = {
            let mut log = forged.clone();
            log.resize(put.end.next_multiple_of(BLOCK), 0);
            log.extend(mark(&log, log.len(), log.len(), put.end));
            log
        };
        forged.extend_from_slice(&log[put.end..]);
        for log in [forged, unsealed] {
            let dir = with(&files, &name, log);
            let before = snapshot(dir.path());
            match refused(dir.path(), 1) {
                Error::Corrupt { path, .. } => assert_eq!(path, dir.path().join(&name)),
                other => panic!("{other:?}"),
            }
            assert!(snapshot(dir.path()) == before);
            let salvaged = Store::builder(dir.path()).salvage(true).open();
            assert!(matches!(salvaged, Err(Error::Corrupt { .. })), "{salvaged:?}");
        }
    }
}

/// A read checks what it finds: a delete is no value.
#[test]
fn a_delete_that_a_hint_takes_for_a_put_is_damage_and_no_value() {
    let dir = memory_dir();
    let store = open(dir.path(), 1);
    run(store.put("key", "value")).unwrap();
    assert!(run(store.delete("key")).unwrap());
    run(store.close()).unwrap();
    let files = trimmed(snapshot(dir.path()));
    let (log, hint) = (segment_name(0, 1), segment_name(0, 1).replace("log", "hint"));
    let mut bytes = files[&hint].clone();
    let end = bytes.len() - 4;
    bytes[end - 1] &= 0x3f; // the kind of the last entry
    let sum = crc32fast::hash(&bytes[..end]);
    bytes[end..].copy_from_slice(&sum.to_le_bytes());
    let dir = with(&files, &hint, bytes);
    let store = open(dir.path(), 1);
    match run(store.get("key")) {
        Err(Error::Corrupt { path, .. }) => assert_eq!(path, dir.path().join(log)),
        other => panic!("{other:?}"),
    }
    assert!(!run(store.verify()).unwrap().is_sound());
}

/// Segments are numbered on from what a seal names, also if that is gone, and have to find numbers.
#[test]
fn a_seal_that_names_the_last_number_there_is_leaves_some_for_what_a_salvage_makes() {
    for next in [u64::MAX, 1 << 63, (1 << 63) - 1] {
        let files = closed_naming(next);
        let dir = memory_dir();
        restore(&files, dir.path());
        assert!(matches!(Store::open(dir.path(), 1), Err(Error::Corrupt { .. })), "{next}");
        let store = Store::builder(dir.path()).salvage(true).open().unwrap();
        run(store.put("new", "value")).unwrap();
        run(store.close()).unwrap();
        assert_holds_the_key(dir.path(), &format!("{next}"));
    }
}

/// Segments that failed when they were as good as made (their name could not be made durable) are
/// empty, and come before the one that was made in their place, which the seal names.
#[test]
fn segments_that_were_made_in_vain_do_not_take_the_place_of_the_one_that_a_seal_names() {
    let mut files = closed_naming(5);
    for id in 3..=5_u64 {
        let mut empty = files[&segment_name(0, 2)].clone();
        empty[32..40].copy_from_slice(&id.to_le_bytes());
        let sum = crc32fast::hash(&empty[..48]);
        empty[48..52].copy_from_slice(&sum.to_le_bytes());
        files.insert(segment_name(0, id), empty);
    }
    let dir = memory_dir();
    restore(&files, dir.path());
    for opening in 0..3 {
        let store = open(dir.path(), 1);
        let value = run(store.get("key")).unwrap();
        assert_eq!(value.as_deref(), Some(&b"value"[..]), "at opening {opening}");
        run(store.close()).unwrap();
    }
}
