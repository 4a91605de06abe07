//! Stores of format version 1 as they were written once, in `tests/fixtures/v1`: whatever becomes of
//! the code, they open, and hold what they held.

#![allow(missing_docs, clippy::unwrap_used)]

mod store_common;

use futures::future::try_join_all;
use ringlog::{Error, PutOptions, Store};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use store_common::{
    Files, Model, Rng, contents, crash_image, disk_dir, history, is_a, restore, run, snapshot,
    trimmed,
};

const PARTITIONS: usize = 1;
/// Which a fixture of a closed and one of a killed store are.
const NAMES: [&str; 2] = ["closed", "killed"];

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/v1").join(name)
}

fn open(dir: &Path) -> Result<Store, Error> {
    Store::builder(dir).partitions(PARTITIONS).segment_bytes(64 << 10).open()
}

fn at(seconds: u64) -> PutOptions {
    PutOptions::new().expires_at(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
}

/// The flag of a record that a merge has moved.
const MOVED: u8 = 2;
/// A time that no test will see.
const FAR: u64 = 1 << 34;

/// Writes what the fixtures hold, in several segments, some of it moved by a merge; tells what
/// that is, and leaves the store open.
fn fill(dir: &Path) -> (Store, Model) {
    let mut rng = Rng(1);
    let mut model = Model::new();
    let store = open(dir).unwrap();
    for n in 0..14 {
        let len = rng.below(300);
        let (key, value) = (format!("key {}", n % 9).into_bytes(), rng.bytes(len));
        run(store.put(&key, &value)).unwrap();
        model.insert(key, value);
    }
    // Each record has a group, and so a block, of its own until they are moved.
    run(store.compact()).unwrap();
    run(store.close()).unwrap();

    let store = open(dir).unwrap();
    let group = ["", "a", "b", "group", "in", "one", "write"];
    run(try_join_all(group.iter().map(|key| store.put(key, key)))).unwrap();
    model.extend(group.map(|key| (key.as_bytes().to_vec(), key.as_bytes().to_vec())));
    let gone: Vec<String> = (0..9).step_by(4).map(|n| format!("key {n}")).collect();
    assert_eq!(run(try_join_all(gone.iter().map(|key| store.delete(key)))).unwrap(), [true; 3]);
    for key in &gone {
        model.remove(key.as_bytes());
    }
    run(store.close()).unwrap();

    let store = open(dir).unwrap();
    run(store.put_with("lasting", "for long", at(FAR))).unwrap();
    model.insert(b"lasting".to_vec(), b"for long".to_vec());
    run(store.put_with("over", "expired", at(1))).unwrap();
    let last: Vec<String> = (0..6).map(|n| format!("last {n}")).collect();
    run(try_join_all(last.iter().map(|key| store.put(key, key)))).unwrap();
    model.extend(last.into_iter().map(|key| (key.clone().into_bytes(), key.into_bytes())));
    (store, model)
}

/// What the fixtures hold, by the code that has filled them.
fn filled() -> Model {
    fill(disk_dir().path()).1
}

#[test]
fn stores_of_version_1_open_and_hold_what_they_held() {
    let model = filled();
    for name in NAMES {
        let files = snapshot(&folder(name));
        let dir = disk_dir();
        restore(&files, dir.path());
        for round in 0..3 {
            let store = open(dir.path()).unwrap_or_else(|error| panic!("{name}: {error}"));
            for (key, value) in &model {
                let entry = run(store.get_entry(key)).unwrap().unwrap();
                assert_eq!(entry.value, value, "{name}, {round}");
                let far = SystemTime::UNIX_EPOCH + Duration::from_secs(FAR);
                assert_eq!(entry.expires_at, (key == b"lasting").then_some(far));
            }
            for n in (0..9).step_by(4) {
                assert_eq!(run(store.get(format!("key {n}"))).unwrap(), None, "{name}");
            }
            assert_eq!(run(store.get("over")).unwrap(), None, "it has expired");
            assert!(store.open_report().is_clean(), "{name}");
            assert!(run(store.verify()).unwrap().is_sound(), "{name}");
            if round == 0 {
                let segments = store.open_report().partitions.iter().map(|p| p.segments);
                let hinted = store.open_report().partitions.iter().map(|p| p.hinted);
                let (segments, hinted) = (segments.sum::<u64>(), hinted.sum::<u64>());
                assert_eq!(segments - hinted, u64::from(name == "killed"));
            }
            run(store.put("new", "value")).unwrap();
            assert!(run(store.delete("new")).unwrap());
            run(store.compact()).unwrap();
            run(store.close()).unwrap();
        }
    }
}

/// The second reader knows the format by its description only.
#[test]
fn the_fixtures_are_what_the_description_of_the_format_says() {
    let mut model = filled();
    model.insert(b"over".to_vec(), b"expired".to_vec());
    for name in NAMES {
        assert!(contents(&snapshot(&folder(name)), PARTITIONS) == model, "{name}");
    }
}

#[test]
fn a_store_of_a_later_version_is_refused_by_name_and_not_touched() {
    for name in NAMES {
        let own = snapshot(&folder(name));
        let headed = own.keys().filter(|name| !is_a(name, "hint"));
        for file in headed {
            let mut files = own.clone();
            let bytes = files.get_mut(file).unwrap();
            bytes[8..10].copy_from_slice(&2u16.to_le_bytes());
            let sum = crc32fast::hash(&bytes[..48]).to_le_bytes();
            bytes[48..52].copy_from_slice(&sum);
            let dir = disk_dir();
            restore(&files, dir.path());
            for salvage in [false, true] {
                let builder = Store::builder(dir.path()).partitions(PARTITIONS).salvage(salvage);
                match builder.open() {
                    Err(Error::FormatVersion { path, found: 2, supported: 1 }) => {
                        assert_eq!(path, dir.path().join(file));
                    }
                    other => panic!("{file}: {other:?}"),
                }
                assert!(snapshot(dir.path()) == files, "{file}: something was changed");
            }
        }
        // A hint of a later version is as good as none.
        let mut files = own.clone();
        for (_, bytes) in files.iter_mut().filter(|(file, _)| is_a(file, "hint")) {
            bytes[8] = 2;
        }
        let dir = disk_dir();
        restore(&files, dir.path());
        let store = open(dir.path()).unwrap();
        assert!(store.open_report().partitions.iter().all(|p| p.hinted == 0));
        assert_eq!(run(store.get("lasting")).unwrap().as_deref(), Some(&b"for long"[..]));
    }
}

/// To be run by hand, and only before a version is released: from then on the files stay.
#[test]
#[ignore = "writes the fixtures anew"]
fn write_the_fixtures() {
    let write = |name: &str, files: &Files| {
        let size: usize = files.values().map(Vec::len).sum();
        assert!(size < 100 << 10, "{size} bytes are too many to keep");
        let segments = (0..PARTITIONS).map(|partition| history(files, partition));
        for segments in segments {
            assert!(segments.len() >= 3, "too few segments");
            let mut records = segments.values().flatten();
            assert!(records.any(|entry| entry.flags & MOVED != 0), "nothing was merged");
        }
        fs::create_dir_all(folder(name)).unwrap();
        restore(files, &folder(name));
    };
    let dir = disk_dir();
    let (store, _) = fill(dir.path());
    write("killed", &crash_image(dir.path(), PARTITIONS));
    run(store.close()).unwrap();
    write("closed", &trimmed(snapshot(dir.path())));
}
