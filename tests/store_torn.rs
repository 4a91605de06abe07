//! The end of a log, as a crash may leave it: what was torn is cut, and never comes back.
//!
//! A last segment that is cut short has lost its later marks with its records, so a cut shows as a
//! torn tail; the others must end with a seal.

#![allow(missing_docs, clippy::unwrap_used)]

mod store_common;
mod store_kit;

use store_common::{
    BLOCK, Entry, MARK, Rng, Watchdog, assert_holds, crash_image, memory_dir, restore, run,
    segment_name,
};
use store_kit::sample::{
    Sample, assert_corrupt, before_idle, for_each, large_group, open, sample, sample_of,
};

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
