//! Recovery, over and over: interrupted and repeated it ends the same, and what it writes says what
//! there is. What it makes of damage is in `store_damage.rs`, of torn groups in `store_torn.rs`.

#![allow(missing_docs, clippy::unwrap_used)]

mod store_common;
mod store_kit;

use std::collections::BTreeSet;
use store_common::{
    Entry, LIVE, MARK, Watchdog, assert_holds, disk_dir, hint, memory_dir, restore, run, snapshot,
};
use store_kit::sample::{Sample, for_each, large_group, open, sample, sample_of};

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
