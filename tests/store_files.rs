//! Files that are not where they belong, hints that are not what they should be, and what a salvage
//! makes of damage.

#![allow(missing_docs, clippy::unwrap_used)]

mod store_common;

use futures::future::try_join_all;
use ringlog::{Error, Store};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use store_common::{
    BLOCK, DROP, Entry, Files, Model, Rng, Watchdog, assert_holds, contents, crash_image, disk_dir,
    entries, history, is_a, memory_dir, restore, run, segment_name, snapshot, trimmed,
};

fn try_open(dir: &Path) -> Result<Store, Error> {
    Store::builder(dir).segment_bytes(64 << 10).cache_bytes(0).threads(1).open()
}

fn open(dir: &Path) -> Store {
    try_open(dir).unwrap()
}

fn salvage(dir: &Path) -> Store {
    Store::builder(dir).segment_bytes(64 << 10).threads(1).salvage(true).open().unwrap()
}

/// The files of a store of one partition.
struct Sample {
    files: Files,
    keys: BTreeSet<Vec<u8>>,
    model: Model,
}

fn hint_name(id: u64) -> String {
    segment_name(0, id).replace(".log", ".hint")
}

impl Sample {
    fn of(files: Files) -> Self {
        let history = history(&files, 0);
        let changes = history.values().flatten().filter(|entry| entry.is_change());
        let keys = changes.map(|entry| entry.key.clone()).collect();
        let model = contents(&files, 1);
        Self { files, keys, model }
    }

    fn ids(&self) -> Vec<u64> {
        history(&self.files, 0).into_keys().collect()
    }

    fn last(&self) -> u64 {
        *self.ids().last().unwrap()
    }

    #[track_caller]
    fn assert_opens(&self, dir: &Path, what: &str) {
        for round in 0..2 {
            let store = try_open(dir).unwrap_or_else(|error| panic!("{what}, {round}: {error:?}"));
            assert_holds(&store, &self.model, &self.keys, what);
            run(store.put("new", what)).unwrap();
            assert!(run(store.verify()).unwrap().is_sound(), "{what}");
            assert!(run(store.delete("new")).unwrap());
        }
    }
}

/// The store is refused for this file, and nothing is changed.
#[track_caller]
fn assert_refused(dir: &Path, name: &str, what: &str) {
    let before = snapshot(dir);
    match try_open(dir) {
        Err(Error::Corrupt { path, offset: 0, .. }) => {
            assert_eq!(path, dir.join(name), "{what}");
        }
        other => panic!("{what}: {other:?}"),
    }
    assert!(snapshot(dir) == before, "{what}: a failed opening changed a file");
}

/// Some segments full of records, with overwrites and deletes; closed, or as a kill would leave it.
fn sample(seed: u64, closed: bool) -> Sample {
    let dir = memory_dir();
    let store = open(dir.path());
    let mut rng = Rng(seed);
    for round in 0..12 {
        let values: Vec<Vec<u8>> = (0..6).map(|_| rng.bytes(3000)).collect();
        let put = |(n, value)| store.put(format!("key {round} {n}"), value);
        run(try_join_all(values.iter().enumerate().map(put))).unwrap();
        run(store.put("often", round.to_string())).unwrap();
        run(store.put(format!("gone {round}"), "for a while")).unwrap();
        if round > 2 {
            assert!(run(store.delete(format!("gone {}", round - 3))).unwrap());
        }
    }
    if closed {
        run(store.close()).unwrap();
        return Sample::of(trimmed(snapshot(dir.path())));
    }
    Sample::of(crash_image(dir.path(), 1))
}

// ---- files that are not where they belong -----------------------------------------------------

#[test]
fn the_second_reader_agrees_with_the_store() {
    for closed in [true, false] {
        let sample = sample(1, closed);
        assert!(sample.ids().len() >= 4, "{:?}", sample.ids());
        assert_eq!(sample.model.len(), 12 * 6 + 1 + 3);
        let dir = memory_dir();
        restore(&sample.files, dir.path());
        sample.assert_opens(dir.path(), "as it was");
    }
}

/// The newest is named by the seal before it, and the one that goes on after a clean close by the
/// last seal that there is.
#[test]
fn a_missing_segment_is_named() {
    for closed in [true, false] {
        let sample = sample(2, closed);
        let dir = memory_dir();
        let next = sample.last() + 1;
        for id in sample.ids().into_iter().chain(closed.then_some(next)) {
            restore(&sample.files, dir.path());
            fs::remove_file(dir.path().join(segment_name(0, id))).unwrap();
            assert_missing(dir.path());
        }
    }
}

#[test]
fn a_missing_folder_is_named_and_a_salvage_keeps_the_others() {
    let dir = memory_dir();
    let two = || Store::builder(dir.path()).partitions(2).segment_bytes(64 << 10);
    let store = two().open().unwrap();
    let puts = (0..20).map(|n| store.put(format!("key {n}"), "value"));
    run(try_join_all(puts)).unwrap();
    drop(store);
    let folder = dir.path().join("p0001");
    fs::remove_dir_all(&folder).unwrap();
    match two().open().unwrap_err() {
        Error::Corrupt { path, .. } => assert_eq!(path, folder),
        other => panic!("{other:?}"),
    }
    assert!(!folder.exists(), "a strict opening has made it");
    let store = two().salvage(true).open().unwrap();
    let partitions = &store.open_report().partitions;
    assert!(partitions[0].damage.is_empty() && !partitions[1].damage.is_empty(), "{partitions:?}");
    let left = run(store.len()).unwrap();
    assert!((1..20).contains(&left), "{left}");
    run(try_join_all((0..20).map(|n| store.put(format!("key {n}"), "anew")))).unwrap();
    drop(store);
    assert_eq!(run(two().open().unwrap().len()).unwrap(), 20);
}

#[test]
fn a_segment_that_went_missing_after_an_opening_or_in_a_backup_is_named() {
    for closed in [true, false] {
        let sample = sample(2, closed);
        let dir = memory_dir();
        restore(&sample.files, dir.path());
        let store = open(dir.path());
        // Without any write, with one, and opened anew after it.
        let copies = memory_dir();
        for round in 0..3 {
            let copy = copies.path().join(round.to_string());
            run(store.backup(&copy)).unwrap();
            let files = snapshot(&copy);
            assert_backup_misses_nothing(&files, &copy);
            run(store.put("round", round.to_string())).unwrap();
        }
        run(store.close()).unwrap();
        let files = trimmed(snapshot(dir.path()));
        let (&last, _) = history(&files, 0).last_key_value().unwrap();
        for id in [last, last + 1] {
            restore(&files, dir.path());
            fs::remove_file(dir.path().join(segment_name(0, id))).unwrap();
            assert_missing(dir.path());
        }
    }
}

/// A file that is not there is named. Not always the right one: what is gone may have said that the
/// one before it was merged away.
#[track_caller]
fn assert_missing(dir: &Path) {
    let before = snapshot(dir);
    match try_open(dir) {
        Err(Error::Corrupt { path, offset: 0, .. }) => {
            assert!(!path.exists(), "{}", path.display());
        }
        other => panic!("{other:?}"),
    }
    assert!(snapshot(dir) == before, "a failed opening changed a file");
}

/// A backup, without the segment that its last seal names; and what is written to it later.
#[track_caller]
fn assert_backup_misses_nothing(files: &Files, dir: &Path) {
    let (&last, _) = history(files, 0).last_key_value().unwrap();
    let next = dir.join(segment_name(0, last + 1));
    fs::remove_file(&next).unwrap();
    assert_missing(dir);
    restore(files, dir);
    let store = open(dir);
    run(store.put("to the backup", "only")).unwrap();
    drop(store);
    fs::remove_file(&next).unwrap();
    assert_missing(dir);
}

#[test]
fn a_partition_without_its_segments_is_not_taken_for_an_empty_one() {
    let dir = memory_dir();
    run(open(dir.path()).close()).unwrap();
    let first = segment_name(0, 1);
    fs::remove_file(dir.path().join(&first)).unwrap();
    assert_refused(dir.path(), &first, "of an empty store");
    let sample = sample(3, false);
    restore(&sample.files, dir.path());
    let folder = dir.path().join("p0000");
    for file in fs::read_dir(&folder).unwrap() {
        fs::remove_file(file.unwrap().path()).unwrap();
    }
    assert_refused(dir.path(), &first, "emptied");
    // A salvage goes on, says so, and what it leaves opens.
    let builder = || Store::builder(dir.path()).segment_bytes(64 << 10);
    let store = builder().salvage(true).open().unwrap();
    assert!(!store.open_report().is_clean());
    run(store.put("key", "value")).unwrap();
    drop(store);
    let store = builder().open().unwrap();
    assert_eq!(run(store.get("key")).unwrap().as_deref(), Some(&b"value"[..]));
}

/// A crash in the middle of a segment's first group: its name stays, what it held goes.
#[test]
fn a_torn_segment_that_a_seal_names_is_made_anew() {
    let sample = sample(2, true);
    let dir = memory_dir();
    let name = segment_name(0, sample.last() + 1);
    let mut torn = sample.files.clone();
    torn.get_mut(&name).unwrap().extend([0xab; 2 * BLOCK]);
    restore(&torn, dir.path());
    drop(open(dir.path()));
    // A merge may have written to it by now, but what was there is gone.
    let anew = &snapshot(dir.path())[&name];
    assert!(!anew.windows(64).any(|bytes| bytes == [0xab; 64]), "it is as new");
    sample.assert_opens(dir.path(), "with a torn segment");
}

/// A merge takes a segment at a time, and those who wait for less garbage wait for that.
#[test]
fn segments_of_a_small_store_are_small() {
    let dir = disk_dir();
    let store = Store::builder(dir.path()).durability(ringlog::Durability::Buffered);
    let store = store.open().unwrap();
    let log = dir.path().join("p0000");
    let is_log = |entry: &fs::DirEntry| is_a(&entry.file_name().to_string_lossy(), "log");
    let logs = || fs::read_dir(&log).unwrap().map(Result::unwrap).filter(is_log);
    // One that is unlinked meanwhile is none any more.
    let lens = || logs().filter_map(|entry| entry.metadata().ok()).map(|of| of.len());
    for n in 0..400u32 {
        run(store.put(n.to_be_bytes(), vec![1; 64 << 10])).unwrap();
    }
    assert!(lens().all(|len| len <= 4 << 20), "{:?}", lens().collect::<Vec<_>>());
    let used = 400 * (64 << 10);
    assert!(lens().count() as u64 <= used / (4 << 20) + 4, "{} segments", lens().count());
}

#[test]
fn a_segment_without_a_whole_header_is_refused() {
    let sample = sample(3, false);
    let dir = memory_dir();
    for id in sample.ids() {
        let name = segment_name(0, id);
        let log = &sample.files[&name];
        let headless = [&vec![0; BLOCK][..], &log[BLOCK..]].concat();
        for bytes in [Vec::new(), log[..52].to_vec(), log[..BLOCK - 1].to_vec(), headless] {
            restore(&sample.files, dir.path());
            fs::write(dir.path().join(&name), &bytes).unwrap();
            assert_refused(dir.path(), &name, &format!("{} bytes", bytes.len()));
        }
    }
}

#[test]
fn a_segment_in_anothers_place_is_refused() {
    let (sample, other) = (sample(4, true), sample(5, true));
    let dir = memory_dir();
    let ids = sample.ids();
    for pair in ids.windows(2) {
        let (a, b) = (segment_name(0, pair[0]), segment_name(0, pair[1]));
        // Swapped: one of the two is named.
        restore(&sample.files, dir.path());
        fs::write(dir.path().join(&a), &sample.files[&b]).unwrap();
        fs::write(dir.path().join(&b), &sample.files[&a]).unwrap();
        let before = snapshot(dir.path());
        assert!(matches!(try_open(dir.path()), Err(Error::Corrupt { offset: 0, .. })));
        assert!(snapshot(dir.path()) == before);
        // Another store's of the same name.
        if let Some(foreign) = other.files.get(&a) {
            restore(&sample.files, dir.path());
            fs::write(dir.path().join(&a), foreign).unwrap();
            assert_refused(dir.path(), &a, "of another store");
        }
        // A copy, as the newest.
        restore(&sample.files, dir.path());
        let copy = segment_name(0, 900);
        fs::copy(dir.path().join(&a), dir.path().join(&copy)).unwrap();
        assert_refused(dir.path(), &copy, "a copy");
    }
}

#[test]
fn a_segment_in_another_partition_is_refused() {
    let dir = memory_dir();
    let builder = || Store::builder(dir.path()).partitions(2).segment_bytes(64 << 10);
    let store = builder().open().unwrap();
    run(try_join_all((0..64u32).map(|n| store.put(n.to_le_bytes(), "value")))).unwrap();
    run(store.close()).unwrap();
    let files = trimmed(snapshot(dir.path()));
    let (a, b) = (segment_name(0, 1), segment_name(1, 1));
    restore(&files, dir.path());
    fs::write(dir.path().join(&a), &files[&b]).unwrap();
    match builder().open() {
        Err(Error::Corrupt { path, offset: 0, .. }) => assert_eq!(path, dir.path().join(&a)),
        other => panic!("{other:?}"),
    }
    // Damage in one partition leaves the others as they are, too.
    restore(&files, dir.path());
    let mut bytes = files[&b].clone();
    bytes[BLOCK + 50] ^= 1;
    fs::write(dir.path().join(&b), bytes).unwrap();
    fs::remove_file(dir.path().join(b.replace(".log", ".hint"))).unwrap();
    let before = snapshot(dir.path());
    match builder().open() {
        Err(Error::Corrupt { path, .. }) => assert_eq!(path, dir.path().join(&b)),
        other => panic!("{other:?}"),
    }
    assert!(snapshot(dir.path()) == before);
    restore(&files, dir.path());
    assert_eq!(run(builder().open().unwrap().len()).unwrap(), 64);
}

#[test]
fn files_that_mean_nothing_are_removed_and_foreign_ones_left_alone() {
    let sample = sample(6, false);
    let dir = memory_dir();
    restore(&sample.files, dir.path());
    let folder = dir.path().join("p0000");
    let removed = ["0000000900.new", "0000000901.hint", "0000000001.new"];
    let kept = ["README", "1.log", "0000000001.bak", "x.log", "00000000001.log", "core"];
    for name in removed.iter().chain(&kept) {
        fs::write(folder.join(name), &sample.files[&segment_name(0, sample.last())]).unwrap();
    }
    fs::create_dir(folder.join("lost+found")).unwrap();
    let store = open(dir.path());
    assert_holds(&store, &sample.model, &sample.keys, "with other files");
    assert_eq!(store.open_report().partitions[0].leftovers, removed.len() as u64);
    run(store.close()).unwrap();
    for name in removed {
        assert!(!folder.join(name).exists(), "{name}");
    }
    for name in kept {
        assert!(folder.join(name).exists(), "{name}");
    }
}

#[test]
fn a_dropped_segment_that_comes_back_means_nothing() {
    let _dog = Watchdog::new();
    let dir = memory_dir();
    let store = open(dir.path());
    for n in 0..12u32 {
        run(store.put("key", n.to_string())).unwrap();
        run(store.put(format!("gone {n}"), "value")).unwrap();
        assert!(run(store.delete(format!("gone {n}"))).unwrap());
    }
    run(store.put("kept", "value")).unwrap();
    let before = crash_image(dir.path(), 1);
    run(store.compact()).unwrap();
    let after = crash_image(dir.path(), 1);
    drop(store);
    let dropped: Vec<&String> =
        before.keys().filter(|name| is_a(name, "log") && !after.contains_key(*name)).collect();
    assert!(!dropped.is_empty());
    let drops = history(&after, 0).into_values().flatten().filter(|e| e.kind == DROP).count();
    assert!(drops > 0);
    let sample = Sample::of(after);
    assert_eq!(sample.model.len(), 2);
    let mut files = sample.files.clone();
    files.extend(
        before.iter().filter(|(n, _)| dropped.contains(n)).map(|(n, b)| (n.clone(), b.clone())),
    );
    for hints in [true, false] {
        let mut files = files.clone();
        files.retain(|name, _| hints || !is_a(name, "hint"));
        restore(&files, dir.path());
        sample.assert_opens(dir.path(), "come back");
        for name in &dropped {
            assert!(!dir.path().join(name).exists(), "{name} is still there");
        }
    }
}

// ---- hints ------------------------------------------------------------------------------------

#[test]
fn hints_that_are_missing_or_damaged_or_anothers_cost_a_scan_and_nothing_else() {
    let _dog = Watchdog::new();
    let (sample, other) = (sample(7, true), sample(8, true));
    let dir = memory_dir();
    let ids = sample.ids();
    let all = ids.len() as u64;
    let hinted = |files: &Files, expected: u64, what: &str| {
        restore(files, dir.path());
        let store = open(dir.path());
        let report = &store.open_report().partitions[0];
        assert_eq!((report.segments, report.hinted), (all, expected), "{what}");
        assert_eq!(report.scanned_bytes == 0, expected == all, "{what}");
        assert!(store.open_report().is_clean(), "{what}");
        assert_holds(&store, &sample.model, &sample.keys, what);
        run(store.close()).unwrap();
        // They are written again.
        let store = open(dir.path());
        let report = &store.open_report().partitions[0];
        assert_eq!(report.hinted, report.segments, "{what}");
        assert_holds(&store, &sample.model, &sample.keys, what);
    };
    hinted(&sample.files, all, "all there");
    let mut rng = Rng(9);
    for &id in &ids {
        let name = hint_name(id);
        let own = &sample.files[&name];
        let mut files = sample.files.clone();
        files.remove(&name);
        hinted(&files, all - 1, "missing");
        let mut damaged = vec![
            Vec::new(),
            own[..own.len() - 1].to_vec(),
            own[..own.len() / 2].to_vec(),
            [&own[..], &[0]].concat(),
            vec![0; own.len()],
            rng.bytes(own.len()),
            other.files[&hint_name(other.last())].clone(),
        ];
        damaged
            .extend(ids.iter().filter(|&&o| o != id).map(|&o| sample.files[&hint_name(o)].clone()));
        for _ in 0..30 {
            let mut flipped = own.clone();
            let at = rng.below(own.len());
            flipped[at] ^= 1 << rng.below(8);
            damaged.push(flipped);
        }
        for bytes in damaged {
            let what = format!("hint {id}: {} bytes", bytes.len());
            files.insert(name.clone(), bytes);
            hinted(&files, all - 1, &what);
        }
    }
    let mut files = sample.files.clone();
    files.retain(|name, _| !is_a(name, "hint"));
    hinted(&files, 0, "none");
}

/// A hint of an earlier life: for another seal, with the sums of its own right. The segment has
/// something else there, or ends before.
#[test]
fn a_hint_for_another_seal_is_not_believed() {
    let sample = sample(10, true);
    let id = sample.ids()[0];
    let own = &sample.files[&hint_name(id)];
    let (head, len) = (48..56, own.len());
    let seal = u64::from_le_bytes(own[head.clone()].try_into().unwrap());
    let block = BLOCK as u64;
    // No entry of the hint lies behind any of these but the first.
    for other in [2 * block, seal + 8, seal + block, seal + 2 * block, 1 << 40] {
        let mut files = sample.files.clone();
        let stale = files.get_mut(&hint_name(id)).unwrap();
        stale[head.clone()].copy_from_slice(&other.to_le_bytes());
        let sum = crc32fast::hash(&stale[..len - 4]);
        stale[len - 4..].copy_from_slice(&sum.to_le_bytes());
        let log = files.get_mut(&segment_name(0, id)).unwrap();
        log.resize(usize::try_from(seal).unwrap() + 2 * BLOCK, 0);
        let dir = memory_dir();
        restore(&files, dir.path());
        let store = open(dir.path());
        let hinted = store.open_report().partitions[0].hinted;
        assert_eq!(hinted, sample.ids().len() as u64 - 1, "{other}, not {seal}");
        assert_holds(&store, &sample.model, &sample.keys, "stale");
    }
}

// ---- salvage ----------------------------------------------------------------------------------

/// The records that a damaged byte takes along.
fn lost(sample: &Sample, id: u64, at: usize) -> Option<Entry> {
    let entries = entries(&sample.files[&segment_name(0, id)]);
    entries.into_iter().find(|entry| (entry.start..entry.end).contains(&at))
}

/// What is said in the report is in the quarantine, what was not damaged is in the store, and a
/// strict opening finds nothing wrong any more.
fn assert_salvaged(sample: &Sample, dir: &Path, doubtful: &BTreeSet<Vec<u8>>, what: &str) {
    let before = snapshot(dir);
    let store = salvage(dir);
    let report = store.open_report().clone();
    assert!(!report.is_clean(), "{what}");
    let [part] = &report.partitions[..] else { panic!("{what}") };
    assert!(!part.damage.is_empty(), "{what}");
    for copy in &part.quarantined {
        assert!(copy.starts_with(dir.join("quarantine")), "{what}");
        let name = copy.file_name().unwrap().to_str().unwrap().replacen('-', "/", 1);
        assert!(before[&name] == fs::read(copy).unwrap(), "{what}: {name} is not what it was");
    }
    let holds = |store: &Store, when: &str| {
        for key in &sample.keys {
            let found = run(store.get(key)).unwrap();
            if !doubtful.contains(key) {
                let wanted = sample.model.get(key).map(Vec::as_slice);
                let name = String::from_utf8_lossy(key);
                assert_eq!(found.as_deref(), wanted, "{name}: {what}, {when}");
            }
        }
        let verified = run(store.verify()).unwrap();
        assert!(verified.is_sound(), "{what}, {when}: {:?}", verified.problems);
    };
    holds(&store, "salvaged");
    run(store.put("new", "value")).unwrap();
    assert!(run(store.delete("new")).unwrap());
    run(store.close()).unwrap();
    for _ in 0..2 {
        let store = try_open(dir).unwrap_or_else(|error| panic!("{what}: {error:?}"));
        assert!(store.open_report().is_clean(), "{what}");
        holds(&store, "opened again");
    }
}

/// One byte, in any record of any segment: with hints and without.
#[test]
fn a_salvage_keeps_all_that_is_not_damaged() {
    let _dog = Watchdog::new();
    let sample = sample(11, true);
    let dir = memory_dir();
    for hints in [false, true] {
        for id in sample.ids() {
            let name = segment_name(0, id);
            let entries = entries(&sample.files[&name]);
            let (seal, records) = entries.split_last().unwrap();
            let some = records.iter().enumerate().filter(|(n, _)| *n < 8 || n % 5 == 0);
            for (_, entry) in some {
                let mut files = sample.files.clone();
                files.retain(|name, _| hints || !is_a(name, "hint"));
                files.get_mut(&name).unwrap()[entry.start + 9] ^= 1;
                restore(&files, dir.path());
                let what = format!("{name}, {} of {}, hints {hints}", entry.start, seal.start);
                let doubtful = lost(&sample, id, entry.start + 9).into_iter();
                let doubtful = doubtful.filter(Entry::is_change).map(|entry| entry.key).collect();
                assert_salvaged(&sample, dir.path(), &doubtful, &what);
            }
        }
    }
}

/// Keys that have a record in a segment.
fn keys_in(sample: &Sample, id: u64) -> BTreeSet<Vec<u8>> {
    let entries = entries(&sample.files[&segment_name(0, id)]).into_iter();
    entries.filter(Entry::is_change).map(|entry| entry.key).collect()
}

#[test]
fn a_salvage_goes_past_a_segment_that_is_missing_or_has_lost_its_header_or_its_end() {
    let _dog = Watchdog::new();
    let sample = sample(12, true);
    let dir = memory_dir();
    for id in sample.ids() {
        let name = segment_name(0, id);
        let own = &sample.files[&name];
        let mut headless = own.clone();
        headless[33] ^= 1;
        let is_last = id == sample.last();
        for bytes in [Some(headless), Some(own[..own.len() / 2].to_vec()), Some(Vec::new()), None] {
            if is_last && bytes.as_ref().is_none_or(|bytes| bytes.len() == own.len() / 2) {
                continue; // shows as a torn tail, or not at all
            }
            let mut files = sample.files.clone();
            let what = format!("{name}: {:?} bytes", bytes.as_ref().map(Vec::len));
            match bytes {
                Some(bytes) => drop(files.insert(name.clone(), bytes)),
                None => drop(files.remove(&name)),
            }
            restore(&files, dir.path());
            assert!(try_open(dir.path()).is_err(), "{what}");
            assert_salvaged(&sample, dir.path(), &keys_in(&sample, id), &what);
        }
    }
}

/// Nothing is written by anybody between the salvage and the next opening.
#[test]
fn after_a_salvage_a_strict_opening_works_at_once() {
    let sample = sample(13, true);
    let dir = memory_dir();
    for missing in [true, false] {
        restore(&sample.files, dir.path());
        let path = dir.path().join(segment_name(0, sample.ids()[1]));
        if missing {
            fs::remove_file(path).unwrap();
        } else {
            fs::write(path, "").unwrap();
        }
        assert!(try_open(dir.path()).is_err());
        drop(salvage(dir.path()));
        let store = open(dir.path());
        assert!(store.open_report().is_clean());
    }
}

#[test]
fn without_damage_a_salvage_changes_nothing() {
    for closed in [true, false] {
        let sample = sample(14, closed);
        let dir = memory_dir();
        restore(&sample.files, dir.path());
        let store = salvage(dir.path());
        let report = &store.open_report().partitions[0];
        assert!(report.damage.is_empty() && report.quarantined.is_empty());
        assert_holds(&store, &sample.model, &sample.keys, "salvaged");
        drop(store);
        assert!(!dir.path().join("quarantine").exists());
        sample.assert_opens(dir.path(), "afterwards");
    }
}
