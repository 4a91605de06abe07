//! Damage to any byte of a segment: below the watermark it is reported, with its file and place,
//! above it the log ends there, and it is never a value.
//!
//! Of the watermark: the highest mark in a segment says up to where it was durable. Bytes below that
//! which do not validate are damage; from there on, the last group may as well be torn.

#![allow(missing_docs, clippy::unwrap_used)]

mod store_common;
mod store_kit;

use futures::future::try_join_all;
use ringlog::{Error, Store};
use std::ops::Range;
use std::time::Duration;
use store_common::{
    BLOCK, Entry, MARK_LEN, PUT, RECORD_HEADER, Rng, SEAL, Watchdog, assert_holds, crash_image,
    is_a, mark, memory_dir, record, restore, run, salt, watermark,
};
use store_kit::sample::{
    Sample, assert_corrupt, before_idle, for_each, large_group, open, sample, sample_of, try_open,
};

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
