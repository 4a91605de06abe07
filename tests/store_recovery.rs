//! Recovery from every damage that the bytes of a segment can show: what was durable is there or
//! reported, what was torn is cut and never comes back, and no damage is ever a value.
//!
//! Of the watermark: the highest mark in a segment says up to where it was durable. Bytes below that
//! which do not validate are damage; from there on, the last group may as well be torn. A last
//! segment that is cut short has lost its later marks with its records, so a cut shows as a torn
//! tail; the others must end with a seal.

#![allow(missing_docs, clippy::unwrap_used)]

mod store_common;

use futures::future::try_join_all;
use ringlog::{Error, PutOptions, Store};
use std::collections::BTreeSet;
use std::ops::Range;
use std::path::Path;
use std::time::{Duration, SystemTime};
use store_common::{
    BLOCK, Entry, Files, LIVE, MARK, MARK_LEN, Model, PUT, RECORD_HEADER, Rng, SEAL, Watchdog,
    assert_holds, contents, crash_image, disk_dir, entries, hint, history, is_a, mark, memory_dir,
    record, replay, restore, run, salt, segment_name, snapshot, trimmed, watermark,
};

fn try_open(dir: &Path) -> Result<Store, Error> {
    Store::builder(dir).segment_bytes(64 << 10).cache_bytes(0).threads(1).open()
}

fn open(dir: &Path) -> Store {
    try_open(dir).unwrap()
}

/// The files of a store of one partition, and what is known of them.
#[derive(Clone)]
struct Sample {
    files: Files,
    keys: BTreeSet<Vec<u8>>,
    model: Model,
}

impl Sample {
    fn of(files: Files) -> Self {
        let history = history(&files, 0);
        let changes = history.values().flatten().filter(|entry| entry.is_change());
        let keys = changes.map(|entry| entry.key.clone()).collect();
        let model = contents(&files, 1);
        Self { files, keys, model }
    }

    fn without_hints(mut self) -> Self {
        self.files.retain(|name, _| !is_a(name, "hint"));
        self
    }

    /// The last segment with records.
    fn last(&self) -> String {
        segment_name(0, *history(&self.files, 0).last_key_value().unwrap().0)
    }

    fn segments(&self) -> Vec<String> {
        history(&self.files, 0).keys().map(|&id| segment_name(0, id)).collect()
    }

    fn entries(&self, name: &str) -> Vec<Entry> {
        entries(&self.files[name])
    }

    /// With other bytes in one file.
    fn with(&self, name: &str, bytes: Vec<u8>) -> Files {
        let mut files = self.files.clone();
        files.insert(name.to_owned(), bytes);
        files
    }

    /// What is left of it when the last segment ends at `len`. (A block that is cut reads as
    /// zeroes from there on, so a record is whole if it has lost nothing but zeroes.)
    fn cut(&self, len: usize) -> Model {
        let last = self.last();
        let mut before = history(&self.files, 0);
        let log = &self.files[&last];
        let block = len.next_multiple_of(BLOCK).min(log.len());
        let zeroes = log[len.min(block)..block].iter().take_while(|&&byte| byte == 0).count();
        let len = len + zeroes;
        let (_, last) = before.pop_last().map(|(id, _)| (id, self.entries(&last))).unwrap();
        let kept = last.iter().filter(|entry| entry.end <= len);
        replay(before.values().flatten().chain(kept))
    }

    /// The files are opened, and hold `model`. Then a new put works, survives, and brings nothing
    /// back.
    #[track_caller]
    fn assert_recovers(&self, dir: &Path, model: &Model, what: &str) {
        let store = match try_open(dir) {
            Ok(store) => store,
            Err(error) => panic!("{what}: {error:?}"),
        };
        assert_holds(&store, model, &self.keys, what);
        run(store.put("new", what)).unwrap();
        drop(store);
        let store = match try_open(dir) {
            Ok(store) => store,
            Err(error) => panic!("{what}, opened again: {error:?}"),
        };
        let mut model = model.clone();
        model.insert(b"new".to_vec(), what.as_bytes().to_vec());
        assert_holds(&store, &model, self.keys.iter().chain([&b"new".to_vec()]), what);
    }
}

/// The opening is refused for this file, at a place in this range, and has changed nothing.
#[track_caller]
fn assert_corrupt(dir: &Path, files: &Files, name: &str, places: Range<usize>, what: &str) {
    match try_open(dir) {
        Err(Error::Corrupt { path, offset, .. }) => {
            assert_eq!(path, dir.join(name), "{what}");
            let offset = usize::try_from(offset).unwrap();
            assert!(places.contains(&offset), "{what}: reported at {offset}, not in {places:?}");
        }
        Err(Error::FormatVersion { path, .. }) if places == (0..1) => {
            assert_eq!(path, dir.join(name), "{what}");
        }
        Err(other) => panic!("{what}: {other:?}"),
        Ok(_) => panic!("{what}: it was opened"),
    }
    assert!(snapshot(dir) == *files, "{what}: a failed opening changed a file");
}

fn far() -> PutOptions {
    PutOptions::new().expires_at(SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 34))
}

/// Three segments with a few groups each; overwrites, deletes and expiries among them. The last one
/// is as a kill would leave it.
fn sample() -> Sample {
    sample_of("last", false)
}

fn sample_of(last: &str, closed: bool) -> Sample {
    let dir = memory_dir();
    let store = open(dir.path());
    run(store.put("alpha", "one")).unwrap();
    run(store.put_with("expiring", "far away", far())).unwrap();
    let group = [store.put("b", "first"), store.put("", "empty"), store.put("gone", "")];
    run(try_join_all(group)).unwrap();
    run(store.close()).unwrap();

    let store = open(dir.path());
    run(store.put("b", "replaced")).unwrap();
    assert!(run(store.delete("gone")).unwrap());
    run(store.close()).unwrap();

    let store = open(dir.path());
    run(store.put("alpha", "two")).unwrap();
    run(store.put_with("expiring", "again", far())).unwrap();
    run(store.put(last, "8 bytes!")).unwrap();
    if closed {
        run(store.close()).unwrap();
        return Sample::of(trimmed(snapshot(dir.path())));
    }
    let sample = Sample::of(crash_image(dir.path(), 1));
    assert_eq!(sample.segments().len(), 3);
    sample
}

/// As if the store had been killed before it was idle for long enough to mark its tail.
fn before_idle(sample: &Sample) -> Sample {
    let last = sample.last();
    let mark = sample.entries(&last).pop().unwrap();
    assert_eq!(mark.kind, MARK);
    let mut bytes = sample.files[&last].clone();
    bytes[mark.start..].fill(0);
    Sample { files: sample.with(&last, bytes), ..sample.clone() }
}

/// Does something for each case, in a few threads, each with a directory of its own.
fn for_each<T: Sync>(cases: &[T], work: impl Fn(&Path, &T) + Sync) {
    let threads = std::thread::available_parallelism().map_or(2, usize::from).min(8);
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let work = &work;
            scope.spawn(move || {
                let dir = memory_dir();
                cases.iter().skip(thread).step_by(threads).for_each(|case| work(dir.path(), case));
            });
        }
    });
}

// ---- every byte -------------------------------------------------------------------------------

/// What an opening says when byte `at` of a segment is not what it was, without hints.
enum Fate {
    /// Corrupt, at a place in this range.
    Refused(Range<usize>),
    /// Opened, with the last segment ending here.
    Cut(usize),
}

fn fate(sample: &Sample, name: &str, at: usize) -> Fate {
    let entries = sample.entries(name);
    let (last, len) = (sample.last() == *name, sample.files[&sample.last()].len());
    if at < BLOCK {
        return Fate::Refused(0..1);
    }
    let Some(end) = entries.last() else { return Fate::Cut(len) };
    // Where the scan stands when it meets the byte: at the record that it is in, or after the last
    // one before it.
    let hit = entries.iter().find(|entry| (entry.start..entry.end).contains(&at));
    let before = entries.iter().rfind(|entry| entry.end <= at).map_or(BLOCK, |entry| entry.end);
    let place = hit.map_or(before, |entry| entry.start);
    let beyond_seal = end.kind == SEAL && at >= end.end;
    let durable = if last { watermark(&entries) } else { end.end };
    if !beyond_seal && at < durable {
        Fate::Refused(place..place + 1)
    } else {
        Fate::Cut(if last { place } else { len })
    }
}

/// Flips in the bytes of one file, where `chosen` says so.
fn flip(sample: &Sample, name: &str, chosen: impl Fn(usize) -> bool, mask: impl Fn(usize) -> u8) {
    let bytes = &sample.files[name];
    let places: Vec<usize> = (0..bytes.len()).filter(|&at| chosen(at)).collect();
    let masks: Vec<u8> = places.iter().map(|&at| mask(at)).collect();
    let cases: Vec<(usize, u8)> = places.into_iter().zip(masks).collect();
    for_each(&cases, |dir, &(at, mask)| {
        let mut damaged = bytes.clone();
        damaged[at] ^= mask;
        let files = sample.with(name, damaged);
        restore(&files, dir);
        let what = format!("{name}: byte {at} of {} ^ {mask:#x}", bytes.len());
        match fate(sample, name, at) {
            Fate::Refused(places) => assert_corrupt(dir, &files, name, places, &what),
            Fate::Cut(len) => sample.assert_recovers(dir, &sample.cut(len), &what),
        }
    });
}

/// All that is not padding, what comes right after, and some of the padding.
fn telling(sample: &Sample, name: &str, stride: usize) -> impl Fn(usize) -> bool {
    let bytes = sample.files[name].clone();
    let used = |at: usize| bytes[at.saturating_sub(9)..=at].iter().any(|&byte| byte != 0);
    let ahead: Vec<bool> = (0..bytes.len()).map(used).collect();
    move |at| ahead[at] || at % stride == 0 || at % BLOCK == BLOCK - 1
}

#[test]
fn damage_to_any_byte_is_reported_or_cut_as_a_torn_tail() {
    let _dog = Watchdog::new();
    let sample = sample().without_hints();
    for name in sample.segments() {
        flip(&sample, &name, telling(&sample, &name, 97), |_| 0xff);
    }
    let last = sample.last();
    let marked = sample.entries(&last).pop().unwrap();
    assert_eq!(marked.durable(), Some(marked.start), "the last group is below the watermark");
}

#[test]
fn damage_of_one_bit_is_reported_or_cut_as_a_torn_tail() {
    let _dog = Watchdog::new();
    let sample = sample().without_hints();
    let mut bits = Rng(1);
    let masks: Vec<u8> = (0..1 << 20).map(|_| 1 << bits.below(8)).collect();
    for name in sample.segments() {
        flip(&sample, &name, telling(&sample, &name, 389), |at| masks[at]);
    }
}

#[test]
fn damage_to_a_group_that_no_mark_covers_yet_is_cut_as_a_torn_tail() {
    let _dog = Watchdog::new();
    let sample = before_idle(&sample().without_hints());
    let last = sample.last();
    let durable = watermark(&sample.entries(&last));
    let chosen = telling(&sample, &last, 97);
    flip(&sample, &last, |at| at >= durable && chosen(at), |_| 0xff);
}

#[test]
fn after_a_close_damage_to_any_record_is_reported() {
    let _dog = Watchdog::new();
    let sample = sample_of("last", true).without_hints();
    let last = sample.last();
    let seal = sample.entries(&last).pop().unwrap();
    assert_eq!((seal.kind, seal.durable()), (SEAL, Some(seal.start)));
    flip(&sample, &last, telling(&sample, &last, 97), |_| 0x10);
}

/// A spare has a header, and nothing else.
#[test]
fn damage_to_a_spare_is_reported_in_its_header_and_of_no_matter_after_it() {
    let _dog = Watchdog::new();
    let sample = sample().without_hints();
    let spare = sample.files.keys().rfind(|name| is_a(name, "log")).unwrap().clone();
    assert!(spare > sample.last());
    let mut bytes = sample.files[&spare].clone();
    bytes.resize(3 * BLOCK, 0);
    let sample = Sample { files: sample.with(&spare, bytes), ..sample };
    flip(&sample, &spare, telling(&sample, &spare, 211), |_| 0xff);
}

#[test]
#[ignore = "minutes: every byte of the padding as well, with two patterns"]
fn damage_to_any_byte_at_all_is_reported_or_cut_as_a_torn_tail() {
    let _dog = Watchdog::of(Duration::from_secs(3600));
    for sample in [sample(), sample_of("last", true), before_idle(&sample())] {
        let sample = sample.without_hints();
        for name in sample.segments() {
            flip(&sample, &name, |_| true, |_| 0xff);
            flip(&sample, &name, |_| true, |at| 1 << (at % 8));
        }
    }
}

/// What was prepared for groups to come is a megabyte of zeroes.
#[test]
fn damage_to_what_was_prepared_is_of_no_matter() {
    let _dog = Watchdog::new();
    let sample = sample().without_hints();
    let last = sample.last();
    let used = sample.files[&last].len();
    let mut bytes = sample.files[&last].clone();
    bytes.resize(1 << 20, 0);
    let sample = Sample { files: sample.with(&last, bytes), ..sample };
    flip(&sample, &last, |at| at >= used && at % 16_381 == 0, |_| 0xff);
}

/// With hints the records are not read at opening: damage shows when they are.
#[test]
fn with_hints_damage_is_reported_at_opening_or_by_the_reader() {
    let _dog = Watchdog::new();
    let sample = sample_of("last", true);
    for name in sample.segments() {
        let bytes = &sample.files[&name];
        let seal = sample.entries(&name).pop().unwrap();
        assert_eq!(seal.kind, SEAL);
        let chosen = telling(&sample, &name, 601);
        let places: Vec<usize> = (BLOCK..seal.start).filter(|&at| chosen(at)).collect();
        for_each(&places, |dir, &at| {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0xff;
            restore(&sample.with(&name, damaged), dir);
            let what = format!("{name}: byte {at}");
            let store = open(dir);
            let hit = sample.entries(&name).into_iter();
            let hit = hit.filter(Entry::is_change).find(|e| (e.start..e.end).contains(&at));
            for key in &sample.keys {
                match run(store.get(key)) {
                    Ok(found) => {
                        assert_eq!(found.as_deref(), sample.model.get(key).map(|v| &v[..]));
                    }
                    Err(Error::Corrupt { path, offset, .. }) => {
                        let hit = hit.as_ref().unwrap();
                        assert_eq!(path, dir.join(&name), "{what}");
                        assert_eq!((offset, key), (hit.start as u64, &hit.key), "{what}");
                    }
                    Err(error) => panic!("{what}: {error:?}"),
                }
            }
            let report = run(store.verify()).unwrap();
            assert!(!report.is_sound(), "{what}: verify has not seen it");
        });
    }
}

/// Stretches of zeroes or garbage, anywhere in the last segment and of any length.
#[test]
fn a_damaged_stretch_is_reported_or_cut_as_a_torn_tail() {
    let _dog = Watchdog::new();
    let sample = sample().without_hints();
    let last = sample.last();
    let (log, entries) = (sample.files[&last].clone(), sample.entries(&last));
    let durable = watermark(&entries);
    let proof = entries.iter().rfind(|entry| entry.durable() == Some(durable)).unwrap();
    let rounds: Vec<u64> = (0..400).collect();
    for_each(&rounds, |dir, &round| {
        let mut rng = Rng(round);
        let from = BLOCK + rng.below(log.len() - BLOCK);
        let to = from + 1 + rng.below(log.len() - from);
        let mut damaged = log.clone();
        match round % 3 {
            0 => damaged[from..to].fill(0),
            1 => damaged[from..to].fill(0xff),
            _ => damaged[from..to].copy_from_slice(&rng.bytes(to - from)),
        }
        let Some(at) = (from..to).find(|&at| damaged[at] != log[at]) else { return };
        let what = format!("{from}..{to} of {}, round {round}", log.len());
        let files = sample.with(&last, damaged.clone());
        restore(&files, dir);
        // Where a scan meets the first bad byte.
        let place = match fate(&sample, &last, at) {
            Fate::Cut(len) => len..len + 1,
            Fate::Refused(places) => places,
        };
        if at >= durable {
            sample.assert_recovers(dir, &sample.cut(place.start), &what);
        } else if to <= proof.start || from >= proof.end {
            assert_corrupt(dir, &files, &last, place, &what);
        } else {
            // The damage took the last mark with it: another one may cover it, or none.
            match try_open(dir) {
                Ok(store) => assert_holds(&store, &sample.cut(place.start), &sample.keys, &what),
                Err(Error::Corrupt { offset, .. }) => {
                    assert_eq!(offset, place.start as u64, "{what}");
                }
                Err(other) => panic!("{what}: {other:?}"),
            }
        }
    });
}

// ---- cuts -------------------------------------------------------------------------------------

#[test]
fn a_last_segment_cut_at_any_length_holds_the_operations_before_the_cut() {
    let _dog = Watchdog::new();
    for sample in [sample(), sample_of("last", true)] {
        let last = sample.last();
        let log = &sample.files[&last];
        let entries = sample.entries(&last);
        let lens: Vec<usize> = (0..log.len())
            .filter(|&len| {
                let near = |entry: &Entry| len.abs_diff(entry.end) < 9;
                len % 56 == 0 || len.abs_diff(BLOCK) < 9 || entries.iter().any(near)
            })
            .collect();
        for_each(&lens, |dir, &len| {
            let files = sample.with(&last, log[..len].to_vec());
            restore(&files, dir);
            let what = format!("cut at {len} of {}", log.len());
            if len < BLOCK {
                assert_corrupt(dir, &files, &last, 0..1, &what);
            } else {
                sample.assert_recovers(dir, &sample.cut(len), &what);
            }
        });
    }
}

#[test]
fn an_older_segment_cut_before_the_end_of_its_seal_is_reported() {
    let _dog = Watchdog::new();
    let sample = sample();
    let name = segment_name(0, 1);
    let log = &sample.files[&name];
    let end = sample.entries(&name).pop().unwrap().end;
    let lens: Vec<usize> =
        (0..log.len()).filter(|len| len % 40 == 0 || len.abs_diff(end) < 60).collect();
    for_each(&lens, |dir, &len| {
        let files = sample.with(&name, log[..len].to_vec());
        restore(&files, dir);
        let what = format!("cut at {len} of {}", log.len());
        if len < end && log[len..end].iter().any(|&byte| byte != 0) {
            // A block that is cut reads as zeroes from there on.
            assert_corrupt(dir, &files, &name, 0..len.next_multiple_of(BLOCK) + 1, &what);
        } else {
            sample.assert_recovers(dir, &sample.model, &what);
        }
    });
}

// ---- torn groups ------------------------------------------------------------------------------

/// A store whose last group has many records over many blocks, and no mark behind it.
fn large_group() -> Sample {
    loop {
        let dir = memory_dir();
        let store = open(dir.path());
        run(store.put("before", "value")).unwrap();
        let mut rng = Rng(6);
        let values: Vec<Vec<u8>> =
            [3000, 10, 470, 0, 5000, 1, 90, 2000].map(|n| rng.bytes(n)).into();
        let put = |(n, value)| store.put(format!("torn {n}"), value);
        run(try_join_all(values.iter().enumerate().map(put))).unwrap();
        let image = Sample::of(crash_image(dir.path(), 1)).without_hints();
        let sample = before_idle(&image);
        // On a busy machine, those may not have met.
        let entries = sample.entries(&sample.last());
        if entries.iter().filter(|entry| entry.kind == MARK).count() == 2 {
            return sample;
        }
    }
}

#[test]
fn of_a_torn_group_a_prefix_is_left_whatever_comes_after_it() {
    let _dog = Watchdog::new();
    let sample = large_group();
    let last = sample.last();
    let (log, entries) = (sample.files[&last].clone(), sample.entries(&last));
    let group = entries.iter().rfind(|entry| entry.kind == MARK).unwrap().start;
    let end = entries.last().unwrap().end;
    let near = |len: usize| entries.iter().any(|entry| len.abs_diff(entry.end) <= 8);
    let lens = (group..=end).filter(|&len| len % 8 == 0 && (len % 512 == 0 || near(len)));
    let cases: Vec<(usize, usize)> = lens.flat_map(|len| (0..3).map(move |n| (len, n))).collect();
    for_each(&cases, |dir, &(len, junk)| {
        let mut torn = log.clone();
        match junk {
            0 => torn[len..].fill(0),
            1 => torn[len..].fill(0xff),
            _ => {
                let bytes = Rng(len as u64).bytes(log.len() - len);
                torn[len..].copy_from_slice(&bytes);
            }
        }
        restore(&sample.with(&last, torn), dir);
        let what = format!("torn at {len}, group {group}..{end}, junk {junk}");
        sample.assert_recovers(dir, &sample.cut(len), &what);
    });
}

#[test]
fn of_a_group_that_lost_a_sector_what_comes_before_it_is_left() {
    let _dog = Watchdog::new();
    let sample = large_group();
    let last = sample.last();
    let (log, entries) = (sample.files[&last].clone(), sample.entries(&last));
    let group = entries.iter().rfind(|entry| entry.kind == MARK).unwrap().start;
    let sectors: Vec<usize> = (group..log.len()).step_by(512).collect();
    for_each(&sectors, |dir, &sector| {
        for junk in [0, 0xff] {
            let mut torn = log.clone();
            torn[sector..sector + 512].fill(junk);
            let what = format!("sector {sector} of the group at {group} is {junk:#x}");
            let differs = (0..log.len()).find(|&at| torn[at] != log[at]);
            let hit = entries.iter().find(|e| differs.is_some_and(|at| at < e.end));
            let len = hit.map_or(log.len(), |entry| entry.start);
            restore(&sample.with(&last, torn), dir);
            sample.assert_recovers(dir, &sample.cut(len), &what);
        }
    });
}

/// Else the rest of a torn group would follow a shorter one that is written in its place, at the
/// very offsets that its checksums are for.
#[test]
fn no_record_of_a_torn_group_comes_back() {
    let _dog = Watchdog::new();
    let sample = large_group();
    let last = sample.last();
    let entries = sample.entries(&last);
    let torn: Vec<&Entry> = entries.iter().filter(|e| e.key.starts_with(b"torn")).collect();
    for entry in &torn {
        let dir = memory_dir();
        let mut log = sample.files[&last].clone();
        log[entry.start + 4] ^= 1;
        restore(&sample.with(&last, log), dir.path());
        let mut model = sample.cut(entry.start);
        for round in 0..4 {
            let store = open(dir.path());
            let what = format!("torn at {}, round {round}", entry.start);
            assert_holds(&store, &model, sample.keys.iter().chain(model.keys()), &what);
            run(store.put(format!("round {round}"), &what)).unwrap();
            model.insert(format!("round {round}").into_bytes(), what.into_bytes());
            if round == 2 {
                run(store.compact()).unwrap();
                assert!(run(store.verify()).unwrap().is_sound());
            }
        }
    }
}

// ---- tails ------------------------------------------------------------------------------------

#[test]
fn whatever_lies_behind_the_log_is_cut() {
    let _dog = Watchdog::new();
    let mut rng = Rng(4);
    for sample in [sample(), before_idle(&sample()), sample_of("last", true)] {
        let last = sample.last();
        let log = &sample.files[&last];
        let end = sample.entries(&last).pop().unwrap().end;
        let mut tails: Vec<(usize, Vec<u8>)> = Vec::new();
        for len in [1, 7, 8, 9, 23, 24, 25, 100, 4096, (2 << 20) + 3] {
            for start in [end, log.len()] {
                tails.extend([vec![0; len], vec![0xff; len], rng.bytes(len)].map(|t| (start, t)));
            }
        }
        for_each(&tails, |dir, (start, tail)| {
            let log = [&log[..*start], tail].concat();
            restore(&sample.with(&last, log), dir);
            let what = format!("a tail of {} x {} at {start}", tail.len(), tail[0]);
            sample.assert_recovers(dir, &sample.model, &what);
        });
    }
}

/// Whole records, but not of this place.
#[test]
fn a_segments_own_records_at_other_places_are_not_taken_for_records() {
    let sample = sample();
    let last = sample.last();
    let log = &sample.files[&last];
    let end = sample.entries(&last).pop().unwrap().end;
    let dir = memory_dir();
    for entry in sample.entries(&last) {
        for start in [end, end + 8, log.len(), log.len() + BLOCK] {
            let mut longer = log.clone();
            longer.resize(start, 0);
            longer.extend_from_slice(&log[entry.start..]);
            restore(&sample.with(&last, longer), dir.path());
            let what = format!("{} again, at {start}", entry.start);
            sample.assert_recovers(dir.path(), &sample.model, &what);
        }
    }
}

/// Whole records of the very place, but of another segment: an older one of the same partition, or
/// one of another store.
#[test]
fn another_segments_records_at_their_own_places_are_not_taken_for_records() {
    let (sample, other) = (sample().without_hints(), sample_of("last", true));
    let last = sample.last();
    let dir = memory_dir();
    for foreign in [&other.files[&last], &sample.files[&segment_name(0, 1)]] {
        let log = &sample.files[&last];
        for entry in sample.entries(&last) {
            if entry.start >= foreign.len() {
                continue;
            }
            let mixed = [&log[..entry.start], &foreign[entry.start..]].concat();
            restore(&sample.with(&last, mixed), dir.path());
            let what = format!("from {} on", entry.start);
            sample.assert_recovers(dir.path(), &sample.cut(entry.start), &what);
        }
    }
}

/// A mark behind the tail says that more had been durable than is there.
#[test]
fn a_mark_behind_a_gap_makes_the_gap_damage() {
    let sample = before_idle(&sample());
    let last = sample.last();
    let entries = sample.entries(&last);
    let end = entries.last().unwrap().end;
    let tail = end.next_multiple_of(BLOCK);
    let dir = memory_dir();
    for gap in [BLOCK, 2 * BLOCK, 3 << 20] {
        let mut log = sample.files[&last][..tail].to_vec();
        log.resize(tail + gap, 0);
        log.extend(mark(salt(&log), tail + gap, tail + gap, end));
        let files = sample.with(&last, log);
        restore(&files, dir.path());
        let what = format!("a gap of {gap}");
        assert_corrupt(dir.path(), &files, &last, end..tail + 1, &what);
    }
    // One that says no more than what is there makes it a torn tail.
    let mut log = sample.files[&last][..tail].to_vec();
    log.resize(tail + BLOCK, 0);
    log.extend(mark(salt(&log), tail + BLOCK, tail, end));
    restore(&sample.with(&last, log), dir.path());
    sample.assert_recovers(dir.path(), &sample.model, "a mark that covers nothing more");
}

/// Zeroes to the end of a block are padding only where a group ends: a mark comes next.
#[test]
fn a_record_that_became_zeroes_to_the_end_of_its_block_is_noticed() {
    let sample = large_group();
    let last = sample.last();
    let log = &sample.files[&last];
    let salt = salt(log).to_vec();
    // A group whose second block begins with a record of its own, and a mark that covers it.
    let before = sample.entries(&last).last().unwrap().end;
    let at = before.next_multiple_of(BLOCK);
    let mut group = log[..at].to_vec();
    group.extend(mark(&salt, at, at, before));
    let mut starts = Vec::new();
    for n in 0u64..12 {
        let start = group.len();
        starts.push(start);
        let len = if n == 0 { 512 - MARK_LEN } else { 512 };
        let key = format!("sector {n}");
        let value = vec![7; len - RECORD_HEADER - key.len()];
        group.extend(record(&salt, start, PUT, 1000 + n, key.as_bytes(), &value));
    }
    let after = group.len();
    group.resize(group.len().next_multiple_of(BLOCK), 0);
    let end = group.len();
    group.extend(mark(&salt, end, end, after));
    group.resize(group.len().next_multiple_of(BLOCK), 0);
    let whole = Sample::of(sample.with(&last, group.clone()));
    let dir = memory_dir();
    restore(&whole.files, dir.path());
    whole.assert_recovers(dir.path(), &whole.model, "whole");
    let lost = *starts.iter().find(|&&start| start % BLOCK == BLOCK - 512).unwrap();
    group[lost..lost + 512].fill(0);
    let files = whole.with(&last, group.clone());
    restore(&files, dir.path());
    assert_corrupt(dir.path(), &files, &last, lost..lost + 1, "below the watermark");
    group[end..].fill(0);
    restore(&whole.with(&last, group), dir.path());
    whole.assert_recovers(dir.path(), &whole.cut(lost), "above the watermark");
}

/// A user's bytes are never taken for the log's own.
#[test]
fn a_segment_stored_as_a_value_is_a_value() {
    let sample = sample();
    let dir = memory_dir();
    restore(&sample.files, dir.path());
    let store = open(dir.path());
    let log = &sample.files[&sample.last()];
    run(store.put("log", log)).unwrap();
    let grown = before_idle(&Sample::of(crash_image(dir.path(), 1)));
    drop(store);
    let last = grown.last();
    let entry = grown.entries(&last).into_iter().rfind(Entry::is_change).unwrap();
    assert_eq!((&entry.key[..], entry.value == *log), (&b"log"[..], true));
    let mut bytes = grown.files[&last].clone();
    bytes[entry.start] ^= 1;
    restore(&grown.with(&last, bytes), dir.path());
    grown.assert_recovers(dir.path(), &grown.cut(entry.start), "torn");
}

/// The mark that shows the damage is megabytes behind it.
#[test]
fn damage_is_reported_however_far_the_next_mark_is() {
    let _dog = Watchdog::new();
    let dir = memory_dir();
    let store = Store::builder(dir.path()).open().unwrap();
    let mut rng = Rng(3);
    let values: Vec<Vec<u8>> = (0..8).map(|n| rng.bytes(600_000 + n)).collect();
    run(store.put("first", "one")).unwrap();
    run(try_join_all(values.iter().map(|value| store.put(&value[..8], value)))).unwrap();
    let sample = Sample::of(crash_image(dir.path(), 1));
    drop(store);
    assert_eq!(sample.model.len(), 9);
    let last = sample.last();
    for entry in sample.entries(&last).iter().filter(|entry| entry.is_change()).take(5) {
        for at in [entry.start, entry.end - 9] {
            let mut damaged = sample.files[&last].clone();
            damaged[at] ^= 1;
            let files = sample.with(&last, damaged);
            restore(&files, dir.path());
            let place = entry.start..entry.start + 1;
            assert_corrupt(dir.path(), &files, &last, place, &format!("byte {at}"));
        }
    }
    restore(&sample.files, dir.path());
    sample.assert_recovers(dir.path(), &sample.model, "records across the chunks of a scan");
}

// ---- over and over ----------------------------------------------------------------------------

/// A crash while recovering leaves some of what it writes done, and some not.
#[test]
fn recovery_that_is_interrupted_or_repeated_ends_the_same() {
    let _dog = Watchdog::new();
    let sample = large_group();
    let last = sample.last();
    let entry = sample.entries(&last).into_iter().rfind(Entry::is_change).unwrap();
    let mut log = sample.files[&last].clone();
    log[entry.start + 30] ^= 1;
    let torn = Sample { files: sample.with(&last, log), ..sample.clone() };
    let model = sample.cut(entry.start);
    let dir = memory_dir();
    restore(&torn.files, dir.path());
    let store = open(dir.path());
    assert_holds(&store, &model, &sample.keys, "recovered");
    drop(store);
    let after = snapshot(dir.path());
    let names: BTreeSet<&String> = torn.files.keys().chain(after.keys()).collect();
    let names: Vec<&String> =
        names.into_iter().filter(|name| torn.files.get(*name) != after.get(*name)).collect();
    assert!((1..=6).contains(&names.len()), "{names:?}");
    let cases: Vec<usize> = (0..1 << names.len()).collect();
    for_each(&cases, |dir, &done| {
        let mut files = torn.files.clone();
        let written = names.iter().enumerate().filter(|(n, _)| done >> n & 1 == 1);
        for (_, name) in written {
            match after.get(*name) {
                Some(bytes) => drop(files.insert((*name).clone(), bytes.clone())),
                None => drop(files.remove(*name)),
            }
        }
        restore(&files, dir);
        sample.assert_recovers(dir, &model, &format!("{done:b} of {names:?} done"));
    });
}

#[test]
fn a_store_that_is_only_opened_keeps_what_it_has() {
    let sample = sample();
    let dir = disk_dir();
    restore(&sample.files, dir.path());
    for round in 0..20 {
        let store = open(dir.path());
        assert_holds(&store, &sample.model, &sample.keys, &format!("round {round}"));
        if round % 3 == 0 {
            run(store.close()).unwrap();
        }
    }
    let ids = store_common::segment_ids(dir.path(), 0);
    assert!(ids.len() <= 5, "segments pile up: {ids:?}");
}

#[test]
fn every_segment_says_which_others_there_are_and_every_hint_what_its_segment_holds() {
    let sample = sample_of("last", true);
    for (n, name) in sample.segments().iter().enumerate() {
        let entries = sample.entries(name);
        let kinds: Vec<u8> = entries.iter().take(2).map(|entry| entry.kind).collect();
        assert_eq!(kinds, [MARK, LIVE]);
        assert_eq!(entries[1].ids().len(), n);
        let log = &sample.files[name];
        let hint = hint(&sample.files[&name.replace(".log", ".hint")], log).unwrap();
        let kind = |entry: &Entry| match (entry.kind, entry.expiry) {
            (1, None) => 0,
            (1, Some(_)) => 1,
            _ => 2,
        };
        let places: Vec<_> = entries
            .iter()
            .filter(|entry| entry.is_change())
            .map(|entry| (entry.start, entry.end - entry.start, kind(entry)))
            .collect();
        assert_eq!(hint.places, places);
        assert_eq!(hint.extant, entries[1].ids());
        assert_eq!(hint.seal, entries.last().unwrap().start);
        let sequence = entries.iter().map(|entry| entry.sequence).max();
        assert_eq!(Some(hint.sequence), sequence);
    }
}
