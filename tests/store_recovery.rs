//! Recovery from every damage that a file can show: what was durable is there or reported, what
//! was torn is cut and never comes back, and no damage is ever a value.
//!
//! Of the watermark: the highest mark in a log says up to where it was durable. Bytes below that
//! which do not validate are damage; from there on, the last group may as well be torn. A file that
//! is cut short has lost its later marks with its records, so a cut shows as a torn tail.

#![allow(missing_docs, clippy::unwrap_used)]

mod store_common;

use futures::future::try_join_all;
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use ringlog::{Error, Store};
use std::fs;
use std::path::Path;
use store_common::{
    Entry, FILE_HEADER, MARK, Model, Rng, Watchdog, assert_holds, disk_dir, entries, log_path,
    mark, open, refused, replay, run, salt, snapshot, watermark,
};

/// A log of one partition whose records are known, and its directory.
struct Sample {
    dir: tempfile::TempDir,
    log: Vec<u8>,
    entries: Vec<Entry>,
    keys: Vec<Vec<u8>>,
}

impl Sample {
    /// Groups of one record each, and one of three; an overwrite and a delete among them.
    fn new(sealed: bool) -> Self {
        loop {
            let dir = disk_dir();
            let store = open(dir.path(), 1);
            run(store.put("alpha", "one")).unwrap();
            run(store.put("b", "the second value")).unwrap();
            let group = [store.put("b", "replaced"), store.put("", "empty"), store.put("gone", "")];
            run(try_join_all(group)).unwrap();
            assert!(run(store.delete("gone")).unwrap());
            run(store.put("last", "8 bytes!")).unwrap();
            let commits = run(store.stats()).unwrap().total().commits;
            if sealed {
                run(store.close()).unwrap();
            } else {
                drop(store);
            }
            // On a busy machine, those three may not have met.
            if commits == 5 {
                return Self::of(dir);
            }
        }
    }

    fn of(dir: tempfile::TempDir) -> Self {
        let log = fs::read(log_path(dir.path(), 0)).unwrap();
        let entries = entries(&log);
        assert_eq!(entries.last().unwrap().end, log.len(), "a record that the test cannot read");
        let keys = entries.iter().filter(|entry| entry.kind != MARK);
        let keys = keys.map(|entry| entry.key.clone()).collect();
        Self { dir, log, entries, keys }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn write(&self, log: &[u8]) {
        fs::write(log_path(self.path(), 0), log).unwrap();
    }

    fn read(&self) -> Vec<u8> {
        fs::read(log_path(self.path(), 0)).unwrap()
    }

    /// The start of the record that byte `at` is in.
    fn record_at(&self, at: usize) -> usize {
        self.entries.iter().find(|entry| at < entry.end).unwrap().start
    }

    /// Opens it and looks: it holds `model`. Then a new put works, survives, and brings nothing
    /// back.
    #[track_caller]
    fn assert_recovers(&self, model: &Model, what: &str) {
        let store = open(self.path(), 1);
        assert_holds(&store, model, &self.keys, what);
        run(store.put("new", what)).unwrap();
        drop(store);
        let store = open(self.path(), 1);
        let mut model = model.clone();
        model.insert(b"new".to_vec(), what.as_bytes().to_vec());
        assert_holds(&store, &model, self.keys.iter().chain([&b"new".to_vec()]), what);
    }

    #[track_caller]
    fn assert_corrupt(&self, at: usize, what: &str) {
        let before = snapshot(self.path());
        match refused(self.path(), 1) {
            Error::Corrupt { path, offset, .. } => {
                assert_eq!(path, log_path(self.path(), 0), "{what}");
                assert_eq!(offset, at as u64, "{what}");
            }
            other => panic!("{what}: {other:?}"),
        }
        assert!(snapshot(self.path()) == before, "{what}: a failed opening changed a file");
    }
}

// ---- damage -----------------------------------------------------------------------------------

/// Every byte of the log, damaged alone.
fn flip_every_byte(sample: &Sample, mask: impl Fn(usize) -> u8) {
    let durable = watermark(&sample.entries);
    for at in 0..sample.log.len() {
        if (8..12).contains(&at) {
            continue; // the version: refused as such, which the tests of opening look at
        }
        let mut damaged = sample.log.clone();
        damaged[at] ^= mask(at);
        sample.write(&damaged);
        let what = format!("byte {at} of {}, durable up to {durable}", damaged.len());
        if at < FILE_HEADER {
            sample.assert_corrupt(0, &what);
        } else if at < durable {
            sample.assert_corrupt(sample.record_at(at), &what);
        } else {
            let model = replay(&sample.entries, sample.record_at(at));
            sample.assert_recovers(&model, &what);
        }
    }
    sample.write(&sample.log);
    sample.assert_recovers(&replay(&sample.entries, sample.log.len()), "not damaged");
}

#[test]
fn damage_to_any_byte_is_reported_or_cut_as_a_torn_tail() {
    let _dog = Watchdog::new();
    let sample = Sample::new(false);
    let durable = watermark(&sample.entries);
    let last = sample.entries.last().unwrap();
    assert!(durable < last.start && durable > FILE_HEADER, "one group is not covered by a mark");
    flip_every_byte(&sample, |_| 0xff);
}

#[test]
fn damage_of_one_bit_is_reported_or_cut_as_a_torn_tail() {
    let _dog = Watchdog::new();
    let mut bits = Rng(1);
    let masks: Vec<u8> = (0..4096).map(|_| 1 << bits.below(8)).collect();
    flip_every_byte(&Sample::new(false), |at| masks[at]);
}

#[test]
fn after_a_close_damage_to_any_record_is_reported() {
    let _dog = Watchdog::new();
    let sample = Sample::new(true);
    let seal = sample.entries.last().unwrap();
    assert_eq!((seal.kind, seal.sequence), (MARK, seal.start));
    assert_eq!(watermark(&sample.entries), seal.start, "every record is below it");
    flip_every_byte(&sample, |_| 0xff);
}

/// Stretches of zeroes or garbage, anywhere and of any length.
#[test]
fn a_damaged_stretch_is_reported_or_cut_as_a_torn_tail() {
    let _dog = Watchdog::new();
    let sample = Sample::new(false);
    let (len, durable) = (sample.log.len(), watermark(&sample.entries));
    let last_mark = sample.entries.iter().find(|entry| entry.start == durable).unwrap();
    let mut rng = Rng(2);
    for round in 0..150 {
        let from = FILE_HEADER + rng.below(len - FILE_HEADER);
        let to = from + 1 + rng.below(len - from);
        let mut damaged = sample.log.clone();
        match round % 3 {
            0 => damaged[from..to].fill(0),
            1 => damaged[from..to].fill(0xff),
            _ => damaged[from..to].copy_from_slice(&rng.bytes(to - from)),
        }
        let Some(at) = (from..to).find(|at| damaged[*at] != sample.log[*at]) else { continue };
        sample.write(&damaged);
        let what = format!("{from}..{to} of {len}, round {round}");
        let mark_is_there = to <= last_mark.start || from >= last_mark.end;
        if at >= durable {
            let model = replay(&sample.entries, sample.record_at(at));
            sample.assert_recovers(&model, &what);
        } else if mark_is_there {
            sample.assert_corrupt(sample.record_at(at), &what);
        } else {
            // The damage took the last mark with it: another one may cover it, or none.
            let start = sample.record_at(at);
            match Store::open(sample.path(), 1) {
                Ok(store) => {
                    assert_holds(&store, &replay(&sample.entries, start), &sample.keys, &what);
                }
                Err(Error::Corrupt { offset, .. }) => assert_eq!(offset, start as u64, "{what}"),
                Err(other) => panic!("{what}: {other:?}"),
            }
        }
    }
}

/// The mark that shows the damage is megabytes behind it.
#[test]
fn damage_is_reported_however_far_the_next_mark_is() {
    let _dog = Watchdog::new();
    let dir = disk_dir();
    let store = open(dir.path(), 1);
    let mut rng = Rng(3);
    let values: Vec<Vec<u8>> = (0..8).map(|n| rng.bytes(300_000 + n)).collect();
    run(store.put("first", "one")).unwrap();
    run(try_join_all(values.iter().map(|value| store.put(&value[..8], value)))).unwrap();
    drop(store);
    let sample = Sample::of(dir);
    let model = replay(&sample.entries, sample.log.len());
    assert_eq!(model.len(), 9);
    let store = open(sample.path(), 1);
    assert_holds(&store, &model, &sample.keys, "records across the chunks of a scan");
    run(store.close()).unwrap();

    let sample = Sample::of(sample.dir);
    for entry in sample.entries.iter().filter(|entry| entry.kind != MARK).take(4) {
        for at in [entry.start, entry.end - 9] {
            let mut damaged = sample.log.clone();
            damaged[at] ^= 1;
            sample.write(&damaged);
            sample.assert_corrupt(entry.start, &format!("byte {at}"));
        }
    }
}

// ---- cuts -------------------------------------------------------------------------------------

#[test]
fn a_log_cut_at_any_length_holds_the_operations_before_the_cut() {
    let _dog = Watchdog::new();
    for sealed in [false, true] {
        let sample = Sample::new(sealed);
        for len in 0..=sample.log.len() {
            sample.write(&sample.log[..len]);
            let what = format!("cut at {len} of {}", sample.log.len());
            if len < FILE_HEADER {
                sample.assert_corrupt(0, &what);
            } else {
                sample.assert_recovers(&replay(&sample.entries, len), &what);
            }
        }
    }
}

#[test]
fn recovery_that_is_interrupted_or_repeated_ends_the_same() {
    let sample = Sample::new(false);
    let last = sample.entries.last().unwrap();
    let model = replay(&sample.entries, last.start);
    // A torn tail of which a former recovery has cleared so much.
    for cleared in 0..=last.end - last.start {
        let mut log = sample.log.clone();
        log[last.start + 4] ^= 1;
        log[last.start..last.start + cleared].fill(0);
        sample.write(&log);
        let mut images = Vec::new();
        for round in 0..3 {
            let store = open(sample.path(), 1);
            assert_holds(&store, &model, &sample.keys, &format!("{cleared} cleared, {round}"));
            drop(store);
            images.push(sample.read());
        }
        assert!(images.iter().all(|image| *image == images[0]));
        assert_eq!(entries(&images[0])[..], sample.entries[..sample.entries.len() - 1]);
    }
}

// ---- tails ------------------------------------------------------------------------------------

#[test]
fn whatever_lies_behind_the_log_is_cut() {
    let _dog = Watchdog::new();
    let mut rng = Rng(4);
    for sealed in [false, true] {
        let sample = Sample::new(sealed);
        let model = replay(&sample.entries, sample.log.len());
        let mut tails: Vec<Vec<u8>> = Vec::new();
        for len in [1, 7, 8, 9, 23, 24, 25, 100, 4096, (2 << 20) + 3] {
            tails.extend([vec![0; len], vec![0xff; len], rng.bytes(len)]);
        }
        for tail in tails {
            sample.write(&[&sample.log[..], &tail].concat());
            sample.assert_recovers(&model, &format!("a tail of {} x {}", tail.len(), tail[0]));
        }
    }
}

/// Whole records, but not of this place.
#[test]
fn a_logs_own_records_at_other_places_are_not_taken_for_records() {
    let sample = Sample::new(false);
    let model = replay(&sample.entries, sample.log.len());
    for entry in &sample.entries {
        for shift in [0, 8, 64] {
            let copy = &sample.log[entry.start..];
            sample.write(&[&sample.log[..], &vec![0; shift], copy].concat());
            sample.assert_recovers(&model, &format!("{} again, {shift} on", entry.start));
        }
    }
}

/// Whole records of the very place, but of another log.
#[test]
fn another_stores_records_at_their_own_places_are_not_taken_for_records() {
    let (sample, other) = (Sample::new(false), Sample::new(true));
    assert_eq!(other.log.len(), sample.log.len() + 24, "the same, and a seal");
    for (n, entry) in sample.entries.iter().enumerate() {
        let log = [&sample.log[..entry.start], &other.log[entry.start..]].concat();
        sample.write(&log);
        let model = replay(&sample.entries[..n], entry.start);
        sample.assert_recovers(&model, &format!("from {} on", entry.start));
    }
}

/// What was cut is zeroed: else the rest of a torn group would follow a shorter one that is
/// written in its place, at the very offsets that its checksums are for.
#[test]
fn no_record_of_a_torn_tail_comes_back_behind_new_ones() {
    let dir = disk_dir();
    let store = open(dir.path(), 1);
    run(store.put("kept", "value")).unwrap();
    let torn = run(store.stats()).unwrap().total().log_bytes;
    drop(store);
    // One group: a mark, and records that are all of one length. (If it came to more than one, the
    // damage would be reported.)
    let keys = ["torn 0", "torn 1", "torn 2", "torn 3"];
    let sample = loop {
        let store = open(dir.path(), 1);
        run(try_join_all(keys.iter().map(|key| store.put(key, "stale")))).unwrap();
        let commits = run(store.stats()).unwrap().total().commits;
        drop(store);
        if commits == 1 {
            break Sample::of(dir);
        }
        fs::OpenOptions::new()
            .write(true)
            .open(log_path(dir.path(), 0))
            .unwrap()
            .set_len(torn)
            .unwrap();
    };
    let first = sample.entries.iter().find(|entry| entry.key == b"torn 0").unwrap().clone();
    for damaged in [first.start, first.end - 1] {
        let mut log = sample.log.clone();
        log[damaged] ^= 1;
        sample.write(&log);
        // The good mark before the damage stays; the new group goes behind it.
        let mut model = Model::from([(b"kept".to_vec(), b"value".to_vec())]);
        let store = open(sample.path(), 1);
        assert_holds(&store, &model, &sample.keys, "after the cut");
        // With its mark as long as two of the torn records, so that it ends where the third began.
        let value = [b'v'; 31];
        run(store.put("k", value)).unwrap();
        model.insert(b"k".to_vec(), value.to_vec());
        drop(store);
        let end = first.start + 2 * (first.end - first.start);
        assert_eq!(run(open(sample.path(), 1).stats()).unwrap().total().log_bytes, end as u64);
        for round in 0..3 {
            let store = open(sample.path(), 1);
            assert_holds(&store, &model, &sample.keys, &format!("round {round}"));
            drop(store);
        }
        assert!(sample.read()[end..].iter().all(|byte| *byte == 0), "the tail is not cleared");
    }
}

/// A mark behind the tail says that more had been durable than is there.
#[test]
fn a_mark_behind_a_gap_makes_the_gap_damage() {
    let sample = Sample::new(false);
    let tail = sample.log.len();
    for gap in [8, 24, 4096, 3 << 20] {
        let mut log = sample.log.clone();
        log.resize(tail + gap, 0);
        let at = log.len();
        log.extend(mark(salt(&sample.log), at, at));
        sample.write(&log);
        sample.assert_corrupt(tail, &format!("a gap of {gap}"));
    }
    // One that says no more than what is there makes it a torn tail.
    let mut log = sample.log.clone();
    log.resize(tail + 64, 0);
    log.extend(mark(salt(&sample.log), tail + 64, tail));
    sample.write(&log);
    sample.assert_recovers(&replay(&sample.entries, tail), "a mark that covers nothing more");
}

/// A user's bytes are never taken for the log's own.
#[test]
fn a_log_stored_as_a_value_is_a_value() {
    let sample = Sample::new(true);
    let store = open(sample.path(), 1);
    run(store.put("log", &sample.log)).unwrap();
    drop(store);
    let grown = Sample::of(sample.dir);
    let last = grown.entries.last().unwrap().clone();
    assert_eq!(last.value, sample.log);
    let mut log = grown.log.clone();
    log[last.start] ^= 1;
    grown.write(&log);
    grown.assert_recovers(&replay(&grown.entries, last.start), "torn");
}

#[test]
fn damage_to_one_partition_names_it_and_leaves_the_others() {
    let dir = disk_dir();
    let store = open(dir.path(), 4);
    run(try_join_all((0..64u32).map(|n| store.put(n.to_le_bytes(), "value")))).unwrap();
    run(store.close()).unwrap();
    for partition in 0..4 {
        let path = log_path(dir.path(), partition);
        let log = fs::read(&path).unwrap();
        let mut damaged = log.clone();
        damaged[FILE_HEADER + 30] ^= 1;
        fs::write(&path, &damaged).unwrap();
        let before = snapshot(dir.path());
        match refused(dir.path(), 4) {
            Error::Corrupt { path: named, .. } => assert_eq!(named, path),
            other => panic!("{other:?}"),
        }
        assert!(snapshot(dir.path()) == before);
        fs::write(&path, &log).unwrap();
    }
    assert_eq!(run(open(dir.path(), 4).stats()).unwrap().total().keys, 64);
}

// ---- anything in any order --------------------------------------------------------------------

#[derive(Clone, Debug)]
enum Step {
    Put(u8, Vec<u8>),
    Delete(u8),
    /// At the same time, each key once.
    PutAll(Vec<u8>),
    Drop,
    Close,
    /// Drop, and cut the file this far (of 255) from its last mark to its end.
    Cut(u8),
    /// Drop, and append this.
    Tail(Vec<u8>),
}

const KEYS: u8 = 6;

fn step() -> impl Strategy<Value = Step> {
    let value = prop::collection::vec(any::<u8>(), 0..50);
    prop_oneof![
        8 => (0..KEYS, value.clone()).prop_map(|(key, value)| Step::Put(key, value)),
        3 => (0..KEYS).prop_map(Step::Delete),
        2 => value.clone().prop_map(Step::PutAll),
        1 => Just(Step::Drop),
        1 => Just(Step::Close),
        2 => any::<u8>().prop_map(Step::Cut),
        1 => value.prop_map(Step::Tail),
    ]
}

fn key(n: u8) -> Vec<u8> {
    vec![b'k'; usize::from(n) * 3]
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 40,
        rng_seed: RngSeed::Fixed(5),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn it_does_what_a_map_does_whatever_happens_to_its_tail(
        steps in prop::collection::vec(step(), 1..40),
    ) {
        let dir = disk_dir();
        let path = log_path(dir.path(), 0);
        let mut store = Some(open(dir.path(), 1));
        let mut model = Model::new();
        let keys: Vec<Vec<u8>> = (0..KEYS).map(key).collect();
        for step in steps {
            let open_store = store.take().unwrap();
            match step {
                Step::Put(n, value) => {
                    run(open_store.put(key(n), &value)).unwrap();
                    model.insert(key(n), value);
                    store = Some(open_store);
                }
                Step::Delete(n) => {
                    let found = run(open_store.delete(key(n))).unwrap();
                    prop_assert_eq!(found, model.remove(&key(n)).is_some());
                    store = Some(open_store);
                }
                Step::PutAll(value) => {
                    run(try_join_all(keys.iter().map(|key| open_store.put(key, &value)))).unwrap();
                    model.extend(keys.iter().map(|key| (key.clone(), value.clone())));
                    store = Some(open_store);
                }
                Step::Drop => drop(open_store),
                Step::Close => run(open_store.close()).unwrap(),
                Step::Cut(part) => {
                    drop(open_store);
                    let log = fs::read(&path).unwrap();
                    let entries = entries(&log);
                    prop_assert_eq!(&replay(&entries, log.len()), &model);
                    let durable = watermark(&entries);
                    let len = durable + (log.len() - durable) * usize::from(part) / 255;
                    model = replay(&entries, len);
                    fs::write(&path, &log[..len]).unwrap();
                }
                Step::Tail(tail) => {
                    drop(open_store);
                    let log = [fs::read(&path).unwrap(), tail].concat();
                    fs::write(&path, log).unwrap();
                }
            }
            if store.is_none() {
                let reopened = open(dir.path(), 1);
                assert_holds(&reopened, &model, &keys, "reopened");
                store = Some(reopened);
            }
        }
        let store = store.unwrap();
        assert_holds(&store, &model, &keys, "at the end");
        run(store.close()).unwrap();
        assert_holds(&open(dir.path(), 1), &model, &keys, "closed");
    }
}
