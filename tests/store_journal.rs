//! The journal: what was acknowledged without a sync outlasts a killed process, whatever of it the log
//! has by then; and what the file may be found to be.

#![allow(missing_docs, clippy::unwrap_used)]

mod store_common;
mod store_kit;

use futures::future::join_all;
use ringlog::{Durability, Error, Store};
use std::fs;
use std::path::Path;
use store_common::{Files, Rng, Watchdog, disk_dir, open, restore, run, snapshot};
use store_kit::{Map, assert_is, files, put, value, wait_until};

const JOURNAL: &str = "p0000/journal";
const KEYS: usize = 50;

fn buffered(dir: &Path) -> Store {
    Store::builder(dir).partitions(1).threads(1).durability(Durability::Buffered).open().unwrap()
}

fn promised(store: &Store) -> u64 {
    store.open_report().partitions.iter().map(|partition| partition.promised).sum()
}

/// A store in which writes are promised from here on, and the log has all that there is.
fn promising(dir: &Path) -> Store {
    let store = buffered(dir);
    // The first write has the journal made.
    wait_until("a write is promised", || {
        run(store.put("first", "value")).unwrap();
        run(store.stats()).unwrap().total().promised > 0
    });
    assert!(dir.join(JOURNAL).exists());
    for n in 0..KEYS {
        run(store.put(format!("key {n}"), "before")).unwrap();
    }
    // The log has all of it.
    assert!(run(store.len()).unwrap() > KEYS as u64);
    for n in 0..KEYS {
        // And the cache has what was there before.
        assert_eq!(value(&store, format!("key {n}")).as_deref(), Some(&b"before"[..]));
    }
    store
}

/// What a kill leaves between the acknowledgements of some writes and their way to the log: the log as
/// it was before, and the journal. With what is to be found.
fn killed(store: &Store, dir: &Path) -> (Files, Map) {
    let mut image = snapshot(dir);
    let mut map: Map = (0..KEYS).map(|n| (format!("key {n}").into(), b"before".to_vec())).collect();
    map.insert(b"first".to_vec(), b"value".to_vec());
    let mut rng = Rng(4);
    for n in 0..KEYS {
        let key = format!("key {n}");
        match n % 5 {
            0 => assert!(run(store.delete(&key)).unwrap()),
            1 => drop(run(store.update(&key, |old| Some([old.unwrap(), b" and after"].concat())))),
            _ => run(store.put(&key, rng.bytes(n * 10))).unwrap(),
        }
        // Reads are shown what is acknowledged.
        let now = value(store, &key);
        assert_eq!(run(store.contains_key(&key)).unwrap(), now.is_some());
        match now {
            Some(value) => drop(map.insert(key.into(), value)),
            None => drop(map.remove(key.as_bytes())),
        }
    }
    image.insert(JOURNAL.to_owned(), fs::read(dir.join(JOURNAL)).unwrap());
    (image, map)
}

#[test]
fn what_was_acknowledged_and_is_not_in_the_log_is_found_after_a_kill() {
    let _dog = Watchdog::new();
    let (dir, other) = (disk_dir(), disk_dir());
    let store = promising(dir.path());
    let (image, map) = killed(&store, dir.path());
    let version = |store: &Store| run(store.get_entry("key 49")).unwrap().unwrap().version;
    let before = version(&store);
    restore(&image, other.path());
    for round in 0..3 {
        // Killed again, if the third opening finds it so.
        let opened = if round < 2 { buffered(other.path()) } else { open(other.path(), 1) };
        assert_eq!(promised(&opened), if round == 0 { KEYS as u64 } else { 0 });
        assert_is(&opened, &map, "after a kill");
        assert!(run(opened.verify()).unwrap().is_sound());
        assert_eq!(version(&opened), before, "as they were told");
        assert!(!other.path().join(JOURNAL).exists());
        if round == 0 {
            let next = run(opened.put_with("new", "", put())).unwrap().unwrap();
            assert!(next > before + 1000, "versions that may have been told do not come again");
            run(opened.delete("new")).unwrap();
            // What is promised now is in a file that has its name.
            wait_until("a write is promised", || {
                run(opened.put("first", "value")).unwrap();
                run(opened.stats()).unwrap().total().promised > 0
            });
            assert!(other.path().join(JOURNAL).exists());
        }
    }
    assert_is(&store, &map, "that was not killed");
}

#[test]
fn of_a_journal_with_a_gap_what_comes_before_it_is_taken() {
    let _dog = Watchdog::new();
    let (dir, other) = (disk_dir(), disk_dir());
    let store = promising(dir.path());
    let (image, map) = killed(&store, dir.path());
    let journal = &image[JOURNAL];
    let records: Vec<_> = (4096..journal.len())
        .step_by(8)
        .filter(|&at| store_common::entry(journal, at).is_some_and(|entry| entry.is_change()))
        .collect();
    let last = &records[records.len() - KEYS..];
    for (n, at) in last.iter().enumerate().step_by(7) {
        let mut harmed = image.clone();
        harmed.get_mut(JOURNAL).unwrap()[at + 30] ^= 0x20;
        restore(&harmed, other.path());
        let opened = open(other.path(), 1);
        assert_eq!(promised(&opened), n as u64);
        for (m, key) in (0..KEYS).map(|m| (m, format!("key {m}"))) {
            let expected =
                if m < n { map.get(key.as_bytes()).cloned() } else { Some("before".into()) };
            assert_eq!(value(&opened, &key), expected, "{key}, the {n}th is harmed");
        }
    }
}

#[test]
fn a_journal_that_is_not_this_partitions_is_refused_by_name_and_a_salvage_puts_it_aside() {
    let _dog = Watchdog::new();
    let (dir, other) = (disk_dir(), disk_dir());
    let store = promising(dir.path());
    let (image, _) = killed(&store, dir.path());
    let elses = disk_dir();
    let _elses = promising(elses.path());
    let with = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut harmed = image.clone();
        change(harmed.get_mut(JOURNAL).unwrap());
        harmed
    };
    let all = [
        with(&|bytes| bytes[45] ^= 1),
        with(&|bytes| bytes[3] = b'L'),
        with(&|bytes| bytes[4000] = 1),
        with(&|bytes| bytes.truncate(4096)),
        with(&|bytes| bytes.truncate(9)),
        with(&Vec::clear),
        with(&|bytes| bytes.extend([0; 64])),
        with(&|bytes| *bytes = fs::read(elses.path().join(JOURNAL)).unwrap()),
    ];
    for (n, harmed) in all.iter().enumerate() {
        restore(harmed, other.path());
        match Store::open(other.path(), 1) {
            Err(Error::Corrupt { path, offset: 0, .. }) => assert!(path.ends_with(JOURNAL), "{n}"),
            answer => panic!("{n}: {answer:?}"),
        }
        assert_eq!(fs::read(other.path().join(JOURNAL)).unwrap(), harmed[JOURNAL]);
        let salvaged = Store::builder(other.path()).salvage(true).open().unwrap();
        let report = &salvaged.open_report().partitions[0];
        assert_eq!((report.damage.len(), report.quarantined.len()), (1, 1), "{n}");
        assert_eq!(fs::read(&report.quarantined[0]).unwrap(), harmed[JOURNAL]);
        assert_eq!(value(&salvaged, "key 3").as_deref(), Some(&b"before"[..]));
        drop(salvaged);
        assert_eq!(run(open(other.path(), 1).len()).unwrap(), KEYS as u64 + 1);
    }
    restore(&with(&|bytes| bytes[8] = 9), other.path());
    let newer = Store::open(other.path(), 1).unwrap_err();
    assert!(matches!(newer, Error::FormatVersion { found: 9, .. }), "{newer:?}");
}

#[test]
fn a_store_without_its_superblock_is_not_made_anew_over_a_journal() {
    let dir = disk_dir();
    let store = promising(dir.path());
    let (mut image, _) = killed(&store, dir.path());
    drop(store);
    image.retain(|name, _| name == JOURNAL);
    let other = disk_dir();
    restore(&image, other.path());
    let refused = Store::open(other.path(), 1).unwrap_err();
    assert!(
        matches!(&refused, Error::Corrupt { path, .. } if path.ends_with(JOURNAL)),
        "{refused:?}"
    );
}

#[test]
fn there_is_a_journal_only_while_a_store_is_used_that_promises() {
    let _dog = Watchdog::new();
    let dir = disk_dir();
    let journal = dir.path().join(JOURNAL);
    let store = open(dir.path(), 1);
    run(join_all((0..100).map(|n| store.put(format!("key {n}"), "durable"))));
    run(store.sync()).unwrap();
    assert!(!journal.exists());
    drop(store);
    let store = promising(dir.path());
    drop(store);
    assert!(journal.exists());
    fs::write(dir.path().join("p0000/journal.new"), "half of one").unwrap();
    let store = open(dir.path(), 1);
    assert!(files(dir.path(), "new").is_empty());
    assert!(!journal.exists());
    drop(store);
    run(promising(dir.path()).close()).unwrap();
    assert!(!journal.exists());
}

/// What is longer, or may expire, or comes when all room is taken, waits for the log as before.
#[test]
fn what_cannot_be_promised_is_acknowledged_when_the_log_has_it() {
    let _dog = Watchdog::new();
    let (dir, other) = (disk_dir(), disk_dir());
    let store = promising(dir.path());
    let hour = std::time::Duration::from_secs(3600);
    let mut map: Map = (0..KEYS).map(|n| (format!("key {n}").into(), b"before".to_vec())).collect();
    map.insert(b"first".to_vec(), b"value".to_vec());
    for n in 0..20_u8 {
        let (long, brief) = (format!("long {n}"), format!("brief {n}"));
        run(store.put(&long, vec![n; 300_000])).unwrap();
        run(store.put_with(&brief, "value", put().ttl(hour))).unwrap();
        run(store.put("short", [n; 30])).unwrap();
        map.insert(long.into(), vec![n; 300_000]);
        map.insert(brief.into(), b"value".to_vec());
        map.insert(b"short".to_vec(), vec![n; 30]);
    }
    let many = run(join_all((0..3000).map(|n| store.put(format!("many {n}"), vec![7; 1000]))));
    for (n, put) in many.into_iter().enumerate() {
        put.unwrap();
        map.insert(format!("many {n}").into(), vec![7; 1000]);
    }
    assert_is(&store, &map, "acknowledged");
    // First the log, then the journal, which has what comes meanwhile.
    restore(&snapshot(dir.path()), other.path());
    assert_is(&open(other.path(), 1), &map, "after a kill");
}
