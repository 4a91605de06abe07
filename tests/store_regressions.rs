//! What reviews found, each with the steps that showed it.

#![allow(missing_docs, clippy::all, clippy::pedantic, clippy::unwrap_used, unused)]
mod store_common;
use futures::future::try_join_all;
use ringlog::{Builder, Durability, Error, PutOptions, Store};
use std::collections::*;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;
use store_common::{Watchdog, disk_dir, run};

fn b(dir: &Path) -> Builder {
    Store::builder(dir).partitions(1).segment_bytes(64 << 10)
}
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &target);
        } else if path.extension().is_none_or(|extension| extension != "new") {
            // The store is open, and makes segments: what is being made may have its name by now.
            fs::copy(&path, target).unwrap();
        }
    }
}
fn logs(dir: &Path) -> Vec<PathBuf> {
    let mut v: Vec<_> = fs::read_dir(dir.join("p0000"))
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.extension().is_some_and(|e| e == "log"))
        .collect();
    v.sort();
    v
}
/// last with records
fn last(dir: &Path) -> PathBuf {
    logs(dir)
        .into_iter()
        .filter(|p| fs::read(p).unwrap().iter().skip(4096).any(|b| *b != 0))
        .last()
        .unwrap()
}
fn rm_hints(dir: &Path) {
    for e in fs::read_dir(dir.join("p0000")).unwrap() {
        let p = e.unwrap().path();
        if p.extension().is_some_and(|e| e == "hint") {
            fs::remove_file(p).unwrap();
        }
    }
}

#[test]
fn a_torn_tail_that_was_cut_opens_again_and_again() {
    let (d, c) = (disk_dir(), disk_dir());
    let s = b(d.path()).open().unwrap();
    run(s.put("a", vec![1; 100])).unwrap();
    run(s.put("b", vec![2; 2000])).unwrap();
    copy(d.path(), c.path());
    drop(s);
    let log = last(c.path());
    let mut bytes = fs::read(&log).unwrap();
    for x in &mut bytes[8192 + 512..12288] {
        *x = 0
    } // the second group's block, torn at a sector
    for x in &mut bytes[12288..] {
        *x = 0
    } // no idle mark
    fs::write(&log, &bytes).unwrap();
    let s = b(c.path()).open().unwrap();
    println!("{:?}", s.open_report());
    assert!(run(s.get("a")).unwrap().is_some());
    let report = run(s.verify()).unwrap();
    println!("verify {:?}", report);
    run(s.close()).unwrap();
    b(c.path()).open().map(drop).expect("the second opening");
}

fn big(dir: &Path) -> Store {
    let s = b(dir).open().unwrap();
    for n in 0..600 {
        run(s.put(format!("key {n}"), vec![n as u8; 400])).unwrap();
    }
    s
}

#[test]
fn a_salvage_without_the_list_of_segments_keeps_them_all() {
    let (d, c) = (disk_dir(), disk_dir());
    let s = big(d.path());
    std::thread::sleep(Duration::from_millis(100));
    copy(d.path(), c.path());
    drop(s);
    let log = last(c.path());
    let mut bytes = fs::read(&log).unwrap();
    assert_eq!(bytes[4096 + 56 + 22], 4);
    bytes[4096 + 56 + 24] ^= 1;
    fs::write(&log, &bytes).unwrap();
    println!("{} files", logs(c.path()).len());
    assert!(matches!(b(c.path()).open(), Err(Error::Corrupt { .. })));
    let s = b(c.path()).salvage(true).open().unwrap();
    println!("{:?}", s.open_report());
    println!("{} files, {} keys", logs(c.path()).len(), run(s.len()).unwrap());
    assert!(run(s.len()).unwrap() > 500);
}

#[test]
fn a_damaged_newest_segment_is_set_aside_before_it_goes() {
    let (d, c) = (disk_dir(), disk_dir());
    let s = b(d.path()).open().unwrap();
    run(s.put("k", vec![7; 300])).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    copy(d.path(), c.path());
    drop(s);
    let log = last(c.path());
    let mut bytes = fs::read(&log).unwrap();
    bytes[4096] ^= 1; // the first mark
    bytes[4096 + 48] ^= 1; // live
    for at in (4096..8192).step_by(8) {
        if bytes[at + 22] == 1 {
            bytes[at] ^= 1
        }
    }
    fs::write(&log, &bytes).unwrap();
    assert!(matches!(b(c.path()).open(), Err(Error::Corrupt { .. })));
    let s = b(c.path()).salvage(true).open().unwrap();
    println!("{:?}", s.open_report());
    assert!(c.path().join("quarantine").exists(), "nothing was set aside, and {:?} is gone", log);
}

#[test]
fn a_backup_opens_with_all_keys() {
    let (d, c) = (disk_dir(), disk_dir());
    let s = big(d.path());
    run(s.backup(c.path().join("x"))).unwrap();
    let t = b(&c.path().join("x")).open().unwrap();
    assert_eq!(run(t.len()).unwrap(), 600);
}

#[test]
fn a_scan_shows_an_entry_once_however_often_merges_move_it() {
    let d = disk_dir();
    let s = Store::builder(d.path())
        .segment_bytes(2 << 20)
        .durability(Durability::Buffered)
        .open()
        .unwrap();
    for n in 0..4000 {
        run(s.put(format!("base {n}"), vec![0; 1000])).unwrap();
    }
    for n in 0..1500 {
        run(s.put(format!("key {n}"), vec![0; 1000])).unwrap();
    }
    for n in 0..3000 {
        if n % 3 == 0 {
            run(s.put(format!("key {}", n / 2), vec![1; 1000])).unwrap();
        }
    }
    run(s.sync()).unwrap();
    // A merge is under way when the scan begins.
    let s2 = s.clone();
    let h = std::thread::spawn(move || run(s2.compact()).unwrap());
    std::thread::sleep(Duration::from_millis(30));
    let before = run(s.stats()).unwrap().total().bytes_merged;
    let mut scan = s.scan();
    let first = run(scan.next()).unwrap().unwrap();
    println!("{before} bytes merged at the start of the scan");
    h.join().unwrap();
    // Garbage where the copies went, and it is merged too.
    for round in 0..3 {
        for n in 0..20 {
            run(s.put(format!("other {round} {n}"), vec![1; 20000])).unwrap();
            run(s.delete(format!("other {round} {n}"))).unwrap();
        }
        for n in (round..1500).step_by(10) {
            run(s.delete(format!("key {n}"))).unwrap();
        }
        run(s.compact()).unwrap();
    }
    let mut seen: HashMap<Vec<u8>, u32> = HashMap::new();
    *seen.entry(first.key.to_vec()).or_default() += 1;
    while let Some(e) = run(scan.next()) {
        *seen.entry(e.unwrap().key.to_vec()).or_default() += 1;
    }
    let twice = seen.values().filter(|n| **n > 1).count();
    println!("{} seen, {} of them twice", seen.len(), twice);
    let missing = (0..1500)
        .filter(|n| n % 10 > 2 && !seen.contains_key(format!("key {n}").as_bytes()))
        .count();
    assert_eq!((twice, missing), (0, 0));
}

#[test]
fn after_a_salvage_nothing_is_missed() {
    for kind in ["missing", "header"] {
        let (d, c) = (disk_dir(), disk_dir());
        let s = big(d.path());
        run(s.close()).unwrap();
        let log = logs(d.path())[1].clone();
        if kind == "missing" {
            fs::remove_file(&log).unwrap();
        } else {
            let mut bytes = fs::read(&log).unwrap();
            bytes[41] ^= 1;
            fs::write(&log, bytes).unwrap();
        }
        let s = b(d.path()).salvage(true).open().unwrap();
        println!("{kind}: {} keys", run(s.len()).unwrap());
        run(s.close()).unwrap();
        b(d.path()).open().map(drop).expect(kind);
    }
}

#[test]
fn zeroes_where_durable_records_were_are_no_padding() {
    let (d, c) = (disk_dir(), disk_dir());
    let s = b(d.path()).open().unwrap();
    run(s.put("a", vec![1; 100])).unwrap();
    // A mark of 56, and a record that ends at a sector's end.
    let group = (10..17).map(|n| s.put(format!("k{n}"), vec![2; 512 - 56 - 27]));
    run(try_join_all(group)).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    copy(d.path(), c.path());
    drop(s);
    let log = last(c.path());
    let mut bytes = fs::read(&log).unwrap();
    let block = (4096..bytes.len())
        .step_by(4096)
        .find(|at| bytes[at + 22] == 3 && bytes[at + 512 + 22] == 1)
        .unwrap();
    for x in &mut bytes[block + 512..block + 4096] {
        *x = 0
    } // seven sectors that were durable long ago
    println!("zeroed {}..{} of {}", block + 512, block + 4096, bytes.len());
    fs::write(&log, &bytes).unwrap();
    match b(c.path()).open() {
        Err(error) => println!("reported: {error}"),
        Ok(s) => {
            println!("{:?}, {} of 8 keys", s.open_report(), run(s.len()).unwrap());
            assert!(run(s.len()).unwrap() == 8, "acknowledged, durable, lost without a word");
        }
    }
}

#[test]
fn nothing_after_a_hole_in_a_buffered_tail_comes_back() {
    let (d, c1, c2) = (disk_dir(), disk_dir(), disk_dir());
    let s = b(d.path()).durability(Durability::Buffered).open().unwrap();
    run(s.put("a", vec![1; 100])).unwrap();
    copy(d.path(), c1.path());
    run(s.put("b", vec![2; 3864 - 25])).unwrap();
    run(s.put("c", vec![3; 100])).unwrap();
    copy(d.path(), c2.path());
    drop(s);
    let mut bytes = fs::read(last(c2.path())).unwrap();
    let old = fs::read(last(c1.path())).unwrap();
    bytes[4096..8192].copy_from_slice(&old[4096..8192]); // the power failed: that rewrite never made it
    fs::write(last(c2.path()), &bytes).unwrap();
    let s = b(c2.path()).open().unwrap();
    println!("{:?}", s.open_report());
    let got: Vec<_> = ["a", "b", "c"].iter().map(|k| run(s.get(k)).unwrap().is_some()).collect();
    println!("{got:?}");
    assert!(got[1] || !got[2], "c survived without b, which was acknowledged before it");
}

#[test]
fn a_verification_reports_damage_and_goes_on() {
    let d = disk_dir();
    let s = big(d.path());
    run(s.close()).unwrap();
    let s = b(d.path()).open().unwrap();
    let log = logs(d.path())[0].clone();
    let f = fs::OpenOptions::new().write(true).open(&log).unwrap();
    std::os::unix::fs::FileExt::write_at(&f, &[0xff; 4], 8192 + 40 + 50).unwrap();
    f.sync_all().unwrap();
    let report = run(s.verify()).expect("a report, not an error");
    println!("{:?}", report.problems);
    assert!(!report.problems.is_empty());
}

#[test]
fn a_scan_that_meets_damage_says_so() {
    let d = disk_dir();
    let s = b(d.path()).open().unwrap();
    for n in 0..3 {
        run(s.put(format!("key {n}"), vec![n as u8; 400])).unwrap();
    }
    // The last group of the active segment.
    let log = last(d.path());
    let f = fs::OpenOptions::new().write(true).open(&log).unwrap();
    std::os::unix::fs::FileExt::write_at(&f, &[0xff; 4], 4096 * 3 + 40 + 60).unwrap();
    f.sync_all().unwrap();
    let mut scan = s.scan();
    let (mut n, mut e) = (0, 0);
    while let Some(entry) = run(scan.next()) {
        if entry.is_ok() { n += 1 } else { e += 1 }
    }
    println!("{n} entries, {e} errors of 3; get: {:?}", run(s.get("key 2")).is_err());
    assert!(n == 3 || e == 1);
}

#[test]
fn a_backup_that_is_not_polled_holds_up_nobody() {
    let d = disk_dir();
    let s = b(d.path()).open().unwrap();
    run(s.put("a", "1")).unwrap();
    let mut backup = Box::pin(s.backup(d.path().join("x")));
    run(std::future::poll_fn(|cx| {
        drop(std::future::Future::poll(backup.as_mut(), cx));
        std::task::Poll::Ready(())
    }));
    std::thread::sleep(Duration::from_millis(100));
    let put = s.put("b", "2");
    let (tx, rx) = std::sync::mpsc::channel();
    std::thread::spawn(move || tx.send(run(put)).ok());
    assert!(
        rx.recv_timeout(Duration::from_secs(3)).is_ok(),
        "a put waits for a caller that is not polled"
    );
}
