//! What reviews found, each with the steps that showed it.

#![allow(missing_docs, clippy::unwrap_used)]

mod store_common;

use futures::future::try_join_all;
use ringlog::{Builder, Durability, Error, Store};
use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::pin::pin;
use std::sync::mpsc;
use std::task::Poll;
use std::time::Duration;
use store_common::{
    BLOCK, DROP, Entry, Files, LIVE, MARK, PUT, crash_image, disk_dir, history, restore, run,
    segment_name, segment_path, snapshot, trimmed,
};

fn builder(dir: &Path) -> Builder {
    Store::builder(dir).segment_bytes(64 << 10).cache_bytes(0)
}

fn open(dir: &Path) -> Store {
    builder(dir).open().unwrap()
}

/// A store of some segments.
fn large(dir: &Path) -> Store {
    let store = open(dir);
    let put = |n: u32| store.put(format!("key {n}"), vec![n.to_le_bytes()[0]; 400]);
    for some in (0..600).collect::<Vec<_>>().chunks(20) {
        run(try_join_all(some.iter().map(|&n| put(n)))).unwrap();
    }
    store
}

/// The last segment that has records: its id and its records.
fn newest(files: &Files) -> (u64, Vec<Entry>) {
    history(files, 0).into_iter().next_back().unwrap()
}

/// Changes the bytes of the newest segment.
fn change(files: &mut Files, f: impl FnOnce(&mut Vec<u8>, &[Entry])) {
    let (id, records) = newest(files);
    f(files.get_mut(&segment_name(0, id)).unwrap(), &records);
}

#[test]
fn a_torn_tail_that_was_cut_opens_again_and_again() {
    let dir = disk_dir();
    let store = open(dir.path());
    run(store.put("a", vec![1; 100])).unwrap();
    run(store.put("b", vec![2; 2000])).unwrap();
    let mut files = crash_image(dir.path(), 1);
    drop(store);
    // The second group's block, torn at a sector, and no idle mark.
    change(&mut files, |log, _| log[2 * BLOCK + 512..].fill(0));
    restore(&files, dir.path());
    for _ in 0..3 {
        let store = open(dir.path());
        assert!(run(store.get("a")).unwrap().is_some());
        assert!(run(store.verify()).unwrap().is_sound());
        run(store.close()).unwrap();
    }
}

#[test]
fn a_salvage_without_the_list_of_segments_keeps_them_all() {
    let dir = disk_dir();
    let store = large(dir.path());
    let mut files = crash_image(dir.path(), 1);
    drop(store);
    change(&mut files, |log, records| {
        let live = records.iter().find(|record| record.kind == LIVE).unwrap();
        log[live.end - 8] ^= 1;
    });
    restore(&files, dir.path());
    assert!(matches!(builder(dir.path()).open(), Err(Error::Corrupt { .. })));
    let store = builder(dir.path()).salvage(true).open().unwrap();
    assert!(!store.open_report().is_clean());
    assert!(run(store.len()).unwrap() > 500);
}

#[test]
fn a_damaged_newest_segment_is_set_aside_before_it_goes() {
    let dir = disk_dir();
    let store = open(dir.path());
    run(store.put("key", vec![7; 300])).unwrap();
    let mut files = crash_image(dir.path(), 1);
    drop(store);
    // Nothing in it validates but the mark of the idle log, which says that it was durable.
    change(&mut files, |log, records| {
        for record in records.iter().filter(|record| record.start < 2 * BLOCK) {
            log[record.start] ^= 1;
        }
    });
    restore(&files, dir.path());
    assert!(matches!(builder(dir.path()).open(), Err(Error::Corrupt { .. })));
    let store = builder(dir.path()).salvage(true).open().unwrap();
    let report = &store.open_report().partitions[0];
    assert!(!report.damage.is_empty());
    assert_eq!(report.quarantined.len(), 1);
    let kept = fs::read(&report.quarantined[0]).unwrap();
    assert!(kept == files[&segment_name(0, newest_file(&files))]);
}

/// The only segment with anything after its header.
fn newest_file(files: &Files) -> u64 {
    let used = |id: &u64| files.get(&segment_name(0, *id)).is_some_and(|log| log.len() > BLOCK);
    (1..9).rfind(used).unwrap()
}

#[test]
fn a_backup_opens_with_all_keys() {
    let dir = disk_dir();
    let store = large(dir.path());
    let copy = dir.path().join("copy");
    run(store.backup(&copy)).unwrap();
    assert_eq!(run(open(&copy).len()).unwrap(), 600);
}

#[test]
fn a_scan_shows_an_entry_once_however_often_merges_move_it() {
    let dir = disk_dir();
    let builder = Store::builder(dir.path()).segment_bytes(2 << 20);
    let store = builder.durability(Durability::Buffered).open().unwrap();
    for n in 0..4000 {
        run(store.put(format!("base {n}"), vec![0; 1000])).unwrap();
    }
    for n in 0..1500 {
        run(store.put(format!("key {n}"), vec![0; 1000])).unwrap();
    }
    for n in (0..3000).step_by(3) {
        run(store.put(format!("key {}", n / 2), vec![1; 1000])).unwrap();
    }
    run(store.sync()).unwrap();
    // A merge may be under way when the scan begins.
    let merging = store.clone();
    let merge = std::thread::spawn(move || run(merging.compact()).unwrap());
    let mut scan = store.scan();
    let mut seen: HashMap<Vec<u8>, u32> = HashMap::new();
    let first = run(scan.next()).unwrap().unwrap();
    seen.insert(first.key.to_vec(), 1);
    merge.join().unwrap();
    // Garbage where the copies went, and it is merged too.
    for round in 0..3 {
        for n in 0..20 {
            run(store.put(format!("other {round} {n}"), vec![1; 20_000])).unwrap();
            run(store.delete(format!("other {round} {n}"))).unwrap();
        }
        for n in (round..1500).step_by(10) {
            run(store.delete(format!("key {n}"))).unwrap();
        }
        run(store.compact()).unwrap();
    }
    while let Some(entry) = run(scan.next()) {
        *seen.entry(entry.unwrap().key.to_vec()).or_default() += 1;
    }
    let twice = seen.values().filter(|&&times| times > 1).count();
    let untouched = (0..1500).filter(|n| n % 10 > 2).map(|n| format!("key {n}"));
    let missing = untouched.filter(|key| !seen.contains_key(key.as_bytes())).count();
    assert_eq!((twice, missing), (0, 0));
}

/// What a crash leaves of a merge: copies, and the segment that they were made of. A scan comes by
/// both, and meanwhile the copies are moved on.
#[test]
fn a_scan_shows_an_entry_once_of_which_a_crash_has_left_two_copies() {
    let dir = disk_dir();
    let open = |dir| Store::builder(dir).segment_bytes(128 << 10).open().unwrap();
    let store = open(dir.path());
    // More than a scan reads at a time.
    run(try_join_all((0..40).map(|n| store.put(format!("base {n}"), vec![0; 30_000])))).unwrap();
    run(store.close()).unwrap();
    let store = open(dir.path());
    run(try_join_all((0..40).map(|n| store.put(format!("key {n}"), vec![1; 600])))).unwrap();
    run(try_join_all((0..3).map(|n| store.put("garbage", vec![n; 10_000])))).unwrap();
    run(store.close()).unwrap();
    let before = trimmed(snapshot(dir.path()));
    let (&victim, _) = history(&before, 0).last_key_value().unwrap();
    let store = open(dir.path());
    run(store.compact()).unwrap();
    let mut files = crash_image(dir.path(), 1);
    drop(store);
    // The crash comes before the victim is dropped.
    let (last, records) = history(&files, 0).pop_last().unwrap();
    let dropped = records.iter().position(|record| record.kind == DROP).unwrap();
    let end = records[..dropped].iter().rfind(|record| record.kind == MARK).unwrap().start;
    let log = files.get_mut(&segment_name(0, last)).unwrap();
    log.truncate(end);
    log.resize(end.next_multiple_of(BLOCK), 0);
    assert!(!files.contains_key(&segment_name(0, victim)));
    for &id in history(&before, 0).keys() {
        let name = segment_name(0, id);
        let there = before[&name].clone();
        files.entry(name).or_insert(there);
    }
    restore(&files, dir.path());
    let store = open(dir.path());
    let mut scan = store.scan();
    let mut seen: HashMap<Vec<u8>, u32> = HashMap::new();
    seen.insert(run(scan.next()).unwrap().unwrap().key.to_vec(), 1);
    run(try_join_all((0..30).map(|n| store.delete(format!("key {n}"))))).unwrap();
    run(store.put("garbage", "less")).unwrap();
    run(store.compact()).unwrap();
    assert!(run(store.stats()).unwrap().total().merges > 1, "the copies have moved on too");
    while let Some(entry) = run(scan.next()) {
        *seen.entry(entry.unwrap().key.to_vec()).or_default() += 1;
    }
    for n in 30..40 {
        assert_eq!(seen[format!("key {n}").as_bytes()], 1, "key {n}");
    }
    assert!(seen.values().all(|&times| times == 1));
}

#[test]
fn after_a_salvage_nothing_is_missed() {
    for kind in ["missing", "header"] {
        let dir = disk_dir();
        run(large(dir.path()).close()).unwrap();
        let mut files = trimmed(snapshot(dir.path()));
        let second = *history(&files, 0).keys().nth(1).unwrap();
        if kind == "missing" {
            files.remove(&segment_name(0, second));
        } else {
            files.get_mut(&segment_name(0, second)).unwrap()[41] ^= 1;
        }
        restore(&files, dir.path());
        let store = builder(dir.path()).salvage(true).open().unwrap();
        assert!(!store.open_report().is_clean(), "{kind}");
        let left = run(store.len()).unwrap();
        assert!(left > 300 && left < 600, "{kind}: {left}");
        run(store.close()).unwrap();
        assert_eq!(run(open(dir.path()).len()).unwrap(), left, "{kind}");
    }
}

#[test]
fn zeroes_where_durable_records_were_are_no_padding() {
    let (dir, mut files) = loop {
        let dir = disk_dir();
        let store = open(dir.path());
        run(store.put("a", vec![1; 100])).unwrap();
        // One of these records ends where a sector does.
        let group = (10..17).map(|n| store.put(format!("k{n}"), vec![2; 512 - 56 - 27]));
        run(try_join_all(group)).unwrap();
        let files = crash_image(dir.path(), 1);
        // On a busy machine, the first of them may have gone alone.
        let (_, records) = newest(&files);
        let second = records.iter().filter(|record| record.kind == MARK).nth(1).unwrap().start;
        let of_group = |record: &&Entry| record.kind == PUT && record.start > second;
        if records.iter().filter(of_group).any(|record| record.start == second + 512) {
            break (dir, files);
        }
    };
    change(&mut files, |log, records| {
        let second = records.iter().filter(|record| record.kind == MARK).nth(1).unwrap().start;
        let inside = |record: &&Entry| record.kind == PUT && record.end == second + 512;
        assert!(records.iter().any(|record| inside(&record)), "no record ends at a sector's end");
        log[second + 512..second + BLOCK].fill(0); // what was durable long ago
    });
    restore(&files, dir.path());
    assert!(matches!(builder(dir.path()).open(), Err(Error::Corrupt { .. })));
}

#[test]
fn nothing_after_a_hole_in_a_buffered_tail_comes_back() {
    let dir = disk_dir();
    let store = builder(dir.path()).durability(Durability::Buffered).open().unwrap();
    run(store.put("a", vec![1; 100])).unwrap();
    let before = snapshot(dir.path());
    run(store.put("b", vec![2; 3864 - 25])).unwrap();
    run(store.put("c", vec![3; 100])).unwrap();
    let mut files = snapshot(dir.path());
    drop(store);
    // The power failed: of the first block the rewriting never came to the disk.
    let name = segment_name(0, newest(&before).0);
    files.get_mut(&name).unwrap()[BLOCK..2 * BLOCK]
        .copy_from_slice(&before[&name][BLOCK..2 * BLOCK]);
    restore(&files, dir.path());
    let store = open(dir.path());
    let there = |key| run(store.get(key)).unwrap().is_some();
    assert!(there("a"));
    assert!(there("b") || !there("c"), "c is there without b, which was acknowledged before it");
}

#[test]
fn a_verification_reports_damage_and_goes_on() {
    let dir = disk_dir();
    run(large(dir.path()).close()).unwrap();
    let store = open(dir.path());
    let records = history(&trimmed(snapshot(dir.path())), 0);
    let (&first, records) = records.first_key_value().unwrap();
    let value = records.iter().find(|record| record.kind == PUT).unwrap().end - 16;
    let log = fs::OpenOptions::new().write(true).open(segment_path(dir.path(), 0, first)).unwrap();
    log.write_at(&[0xff; 4], value as u64).unwrap();
    log.sync_all().unwrap();
    let report = run(store.verify()).expect("a report, not an error");
    assert!(!report.problems.is_empty());
    assert!(report.records > 600 / 2, "it went on: {report:?}");
}

#[test]
fn a_scan_that_meets_damage_says_so() {
    let dir = disk_dir();
    let store = open(dir.path());
    for n in 0..3 {
        run(store.put(format!("key {n}"), vec![n; 400])).unwrap();
    }
    // The last group of the active segment.
    let (id, records) = newest(&crash_image(dir.path(), 1));
    let last = records.iter().rfind(|record| record.kind == PUT).unwrap();
    let log = fs::OpenOptions::new().write(true).open(segment_path(dir.path(), 0, id)).unwrap();
    log.write_at(&[0xff; 4], last.end as u64 - 16).unwrap();
    log.sync_all().unwrap();
    let mut scan = store.scan();
    let (mut shown, mut errors) = (0, 0);
    while let Some(entry) = run(scan.next()) {
        match entry {
            Ok(_) => shown += 1,
            Err(Error::Corrupt { .. }) => errors += 1,
            Err(other) => panic!("{other:?}"),
        }
    }
    assert_eq!(errors, 1, "{shown} of 3 were shown");
}

/// The same where no mark lies behind it: the disk has zeroes from a record on, to the end of its block.
#[test]
fn a_last_record_that_became_zeroes_is_missed_by_scan_and_verification() {
    let dir = disk_dir();
    let store = open(dir.path());
    for n in 0..3 {
        run(store.put(format!("key {n}"), vec![n; 400])).unwrap();
    }
    let (id, records) = newest(&crash_image(dir.path(), 1));
    let last = records.iter().rfind(|record| record.kind == PUT).unwrap();
    let log = fs::OpenOptions::new().write(true).open(segment_path(dir.path(), 0, id)).unwrap();
    let zeroes = vec![0; last.start.next_multiple_of(BLOCK) - last.start];
    log.write_all_at(&zeroes, last.start as u64).unwrap();
    log.sync_all().unwrap();
    let report = run(store.verify()).unwrap();
    assert!(!report.is_sound(), "{report:?}");
    let (mut shown, mut errors, mut scan) = (0, 0, store.scan());
    while let Some(entry) = run(scan.next()) {
        match entry {
            Ok(_) => shown += 1,
            Err(Error::Corrupt { .. }) => errors += 1,
            Err(other) => panic!("{other:?}"),
        }
    }
    assert_eq!(errors, 1, "{shown} of 3 were shown");
    assert!(matches!(run(store.get("key 2")), Err(Error::Corrupt { .. })));
}

/// A folder that is there already may be anybody's, whatever its name.
#[test]
fn making_a_store_removes_nothing_that_is_not_its_own() {
    let dir = disk_dir();
    let kept = [
        "README",
        "1.new",
        "notes.log",
        "00000000001.new",
        "1.hint",
        "x.hint",
        "0000000001.bak",
        "log",
        "core",
    ];
    for folder in ["p0000", "p0001", "p7777", "pictures"] {
        fs::create_dir(dir.path().join(folder)).unwrap();
        for name in kept {
            fs::write(dir.path().join(folder).join(name), name).unwrap();
        }
    }
    let store = builder(dir.path()).partitions(2).open().unwrap();
    run(store.put("key", "value")).unwrap();
    run(store.close()).unwrap();
    for folder in ["p0000", "p0001", "p7777", "pictures"] {
        for name in kept {
            let there = fs::read(dir.path().join(folder).join(name));
            assert_eq!(there.unwrap(), name.as_bytes(), "{folder}/{name}");
        }
    }
}

#[test]
fn a_backup_that_is_not_polled_holds_up_nobody() {
    let dir = disk_dir();
    let store = open(dir.path());
    run(store.put("a", "1")).unwrap();
    let mut backup = pin!(store.backup(dir.path().join("copy")));
    let polled_once = std::future::poll_fn(|cx| {
        assert!(backup.as_mut().poll(cx).is_pending());
        Poll::Ready(())
    });
    run(polled_once);
    for n in 0..20 {
        let put = store.put("b", n.to_string());
        let (tell, told) = mpsc::channel();
        let putter = std::thread::spawn(move || tell.send(run(put)).unwrap());
        let answer = told.recv_timeout(Duration::from_secs(60));
        answer.expect("a put waits for a caller that is not polled").unwrap();
        putter.join().unwrap();
    }
}
