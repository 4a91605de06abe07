//! A small store of one partition, taken apart: its files, what they hold, and what they hold when
//! the last segment is cut. Tests change the files, and open them again.

use super::super::store_common::{
    BLOCK, Entry, Files, MARK, Model, Rng, assert_holds, contents, crash_image, entries, history,
    is_a, memory_dir, replay, run, segment_name, snapshot, trimmed,
};
use futures::future::try_join_all;
use ringlog::{Error, PutOptions, Store};
use std::collections::BTreeSet;
use std::ops::Range;
use std::path::Path;
use std::time::{Duration, SystemTime};

pub fn try_open(dir: &Path) -> Result<Store, Error> {
    Store::builder(dir).segment_bytes(64 << 10).cache_bytes(0).threads(1).open()
}

pub fn open(dir: &Path) -> Store {
    try_open(dir).unwrap()
}

/// The files of a store of one partition, and what is known of them.
#[derive(Clone)]
pub struct Sample {
    pub files: Files,
    pub keys: BTreeSet<Vec<u8>>,
    pub model: Model,
}

impl Sample {
    pub fn of(files: Files) -> Self {
        let history = history(&files, 0);
        let changes = history.values().flatten().filter(|entry| entry.is_change());
        let keys = changes.map(|entry| entry.key.clone()).collect();
        let model = contents(&files, 1);
        Self { files, keys, model }
    }

    pub fn without_hints(mut self) -> Self {
        self.files.retain(|name, _| !is_a(name, "hint"));
        self
    }

    /// The last segment with records.
    pub fn last(&self) -> String {
        segment_name(0, *history(&self.files, 0).last_key_value().unwrap().0)
    }

    pub fn segments(&self) -> Vec<String> {
        history(&self.files, 0).keys().map(|&id| segment_name(0, id)).collect()
    }

    pub fn entries(&self, name: &str) -> Vec<Entry> {
        entries(&self.files[name])
    }

    /// With other bytes in one file.
    pub fn with(&self, name: &str, bytes: Vec<u8>) -> Files {
        let mut files = self.files.clone();
        files.insert(name.to_owned(), bytes);
        files
    }

    /// What is left of it when the last segment ends at `len`. (A block that is cut reads as
    /// zeroes from there on, so a record is whole if it has lost nothing but zeroes.)
    pub fn cut(&self, len: usize) -> Model {
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
    pub fn assert_recovers(&self, dir: &Path, model: &Model, what: &str) {
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
pub fn assert_corrupt(dir: &Path, files: &Files, name: &str, places: Range<usize>, what: &str) {
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

pub fn far() -> PutOptions {
    PutOptions::new().expires_at(SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 34))
}

/// Three segments with a few groups each; overwrites, deletes and expiries among them. The last one
/// is as a kill would leave it.
pub fn sample() -> Sample {
    sample_of("last", false)
}

pub fn sample_of(last: &str, closed: bool) -> Sample {
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
pub fn before_idle(sample: &Sample) -> Sample {
    let last = sample.last();
    let mark = sample.entries(&last).pop().unwrap();
    assert_eq!(mark.kind, MARK);
    let mut bytes = sample.files[&last].clone();
    bytes[mark.start..].fill(0);
    Sample { files: sample.with(&last, bytes), ..sample.clone() }
}

/// A store whose last group has many records over many blocks, and no mark behind it.
pub fn large_group() -> Sample {
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

/// Does something for each case, in a few threads, each with a directory of its own.
pub fn for_each<T: Sync>(cases: &[T], work: impl Fn(&Path, &T) + Sync) {
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
