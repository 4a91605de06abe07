//! What the fuzzers run, each a function of the input's bytes: `tests/fuzz_smoke.rs` calls them in
//! every `cargo test`, and `fuzz/` under libFuzzer. A target goes through the public interface, on a
//! real ring, on files in memory. It panics if the store does, if an error is none of those that
//! damaged files may have, if a failed opening has changed a file, or if a value is shown that no
//! record holds.

#![allow(dead_code, unreachable_pub)] // each user has its part
#![allow(clippy::unwrap_used)]

pub mod files;
pub mod record;

use crate::store_common::{BLOCK, Files, Model, contents, is_a, memory_dir, restore, snapshot};
use files::{Choices, Input, STORE, bind_hint, puts, read_partition};
use ringlog::rt::{Executor, ExecutorConfig, Handle};
use ringlog::{Error, MIN_SEGMENT_BYTES, Store};
use std::path::Path;

/// A target, by its name.
pub type Target = (&'static str, fn(&[u8]));

pub const TARGETS: [Target; 4] = [
    ("record", record::record),
    ("partition", partition),
    ("hint", hint),
    ("superblock", superblock),
];

/// A ring and a folder that are used again: most of an opening's time would go to them.
struct Bench {
    executor: Executor,
    dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let executor = Executor::new(ExecutorConfig::default()).unwrap();
        Self { executor, dir: memory_dir() }
    }

    /// Opens the files, uses what opened, and judges.
    fn play(&self, files: &Files, choices: Choices, partitions: usize) -> Outcome {
        restore(files, self.dir.path());
        let case = Case { dir: self.dir.path(), home: self.executor.handle(), files, choices };
        let outcome = self.executor.block_on(case.play(partitions));
        if matches!(outcome, Outcome::Unclosed) {
            // Nothing of it may be left when the next files are laid out.
            self.executor.run().unwrap();
        }
        outcome
    }
}

thread_local! {
    static BENCH: Bench = Bench::new();
}

#[derive(Debug)]
enum Outcome {
    Refused(Error),
    /// Opened, and what it held.
    Held(Result<Model, Error>),
    /// Opened, and its close said that something was wrong.
    Unclosed,
}

struct Case<'a> {
    dir: &'a Path,
    home: Handle,
    files: &'a Files,
    choices: Choices,
}

/// What reading a damaged file may say. A panic of the store's own tasks is `Error::Bug`.
#[track_caller]
fn assert_damage(error: &Error) {
    let expected = matches!(error, Error::Corrupt { .. } | Error::FormatVersion { .. });
    assert!(expected, "{error:?}");
}

/// All that does not expire.
async fn entries_of(store: &Store) -> Result<Model, Error> {
    let (mut scan, mut model) = (store.scan(), Model::new());
    while let Some(entry) = scan.next().await {
        let entry = entry?;
        if entry.expires_at.is_none() {
            let before = model.insert(entry.key.to_vec(), entry.value.to_vec());
            assert!(before.is_none(), "{:?} is shown twice", entry.key);
        }
    }
    Ok(model)
}

impl Case<'_> {
    async fn open(&self, partitions: usize, salvage: bool) -> Result<Store, Error> {
        let builder = Store::builder(self.dir).partitions(partitions).salvage(salvage);
        let threads = [self.home.clone()];
        builder.segment_bytes(MIN_SEGMENT_BYTES).open_on(&threads).await
    }

    async fn play(&self, partitions: usize) -> Outcome {
        let Choices { salvage, compact, .. } = self.choices;
        let store = match self.open(partitions, salvage).await {
            Ok(store) => store,
            Err(error) => {
                let same = salvage || snapshot(self.dir) == *self.files;
                assert!(same, "an opening that failed has changed a file: {error:?}");
                return Outcome::Refused(error);
            }
        };
        let held = self.read(&store, partitions).await;
        store.put("fuzz", "new").await.unwrap();
        assert_eq!(store.get("fuzz").await.unwrap().as_deref(), Some(&b"new"[..]));
        assert!(store.delete("fuzz").await.unwrap());
        assert_eq!(store.get("fuzz").await.unwrap(), None);
        if compact {
            match store.compact().await {
                // What a lying hint has indexed cannot be moved.
                Ok(()) | Err(Error::Full { .. }) => {}
                Err(error) => assert_damage(&error),
            }
        }
        let before = entries_of(&store).await;
        if let Err(error) = store.close().await {
            panic!("close: {error:?}");
        }
        match self.open(partitions, false).await {
            Ok(store) => {
                let after = entries_of(&store).await;
                if let (Ok(before), Ok(after)) = (before, after) {
                    assert_eq!(before, after, "opened again, it holds something else");
                }
                store.close().await.unwrap();
            }
            Err(error) => panic!("what was opened and closed does not open: {error:?}"),
        }
        Outcome::Held(held)
    }

    /// Reads by every way there is.
    async fn read(&self, store: &Store, partitions: usize) -> Result<Model, Error> {
        let written = puts(self.files);
        for (key, _) in written.iter().take(64) {
            match store.get(key).await {
                Ok(Some(value)) => {
                    let pair = (key.clone(), value.to_vec());
                    assert!(written.contains(&pair), "{key:?} has a value that was not written");
                }
                Ok(None) => {}
                Err(error) => assert_damage(&error),
            }
        }
        store.verify().await.unwrap();
        let held = entries_of(store).await;
        match &held {
            Ok(held) => {
                for (key, value) in held {
                    let pair = (key.clone(), value.clone());
                    assert!(written.contains(&pair), "{key:?} is shown, and was not written");
                    match store.get(key).await {
                        // All are in the first; with more partitions some are looked for elsewhere.
                        Ok(None) if partitions > 1 => {}
                        Ok(got) => assert_eq!(got.as_deref(), Some(&value[..]), "of {key:?}"),
                        // A scan goes by the log, a read by the place and length of a hint.
                        Err(error) => {
                            assert!(self.files.keys().any(|name| is_a(name, "hint")), "{error:?}");
                            assert_damage(&error);
                        }
                    }
                }
            }
            Err(error) => assert_damage(error),
        }
        held
    }
}

// ---- targets ----------------------------------------------------------------------------------

/// A partition of arbitrary files.
pub fn partition(data: &[u8]) {
    let (files, choices) = read_partition(data);
    if let Outcome::Refused(error) = BENCH.with(|bench| bench.play(&files, choices, 1)) {
        assert_damage(&error);
    }
}

/// A store that was closed, as it was written once.
const CLOSED: [(&str, &[u8]); 11] = [
    ("STORE", STORE),
    ("p0000/0000000002.hint", include_bytes!("../fixtures/v1/closed/p0000/0000000002.hint")),
    ("p0000/0000000002.log", include_bytes!("../fixtures/v1/closed/p0000/0000000002.log")),
    ("p0000/0000000003.hint", include_bytes!("../fixtures/v1/closed/p0000/0000000003.hint")),
    ("p0000/0000000003.log", include_bytes!("../fixtures/v1/closed/p0000/0000000003.log")),
    ("p0000/0000000004.hint", include_bytes!("../fixtures/v1/closed/p0000/0000000004.hint")),
    ("p0000/0000000004.log", include_bytes!("../fixtures/v1/closed/p0000/0000000004.log")),
    ("p0000/0000000005.hint", include_bytes!("../fixtures/v1/closed/p0000/0000000005.hint")),
    ("p0000/0000000005.log", include_bytes!("../fixtures/v1/closed/p0000/0000000005.log")),
    ("p0000/0000000006.log", include_bytes!("../fixtures/v1/closed/p0000/0000000006.log")),
    ("p0000/0000000007.log", include_bytes!("../fixtures/v1/closed/p0000/0000000007.log")),
];

pub fn closed_store() -> Files {
    CLOSED.iter().map(|(name, bytes)| ((*name).to_owned(), bytes.to_vec())).collect()
}

/// One segment's hint is the input. It is a cache: whatever it is, the store opens, unless it lies
/// with a right sum.
pub fn hint(data: &[u8]) {
    let mut input = Input(data);
    let choices = Choices::of(input.byte());
    let name = format!("p0000/000000000{}", 2 + (input.byte() & 3));
    let mut files = closed_store();
    let mut hint = input.0.to_vec();
    bind_hint(&mut hint, &files[&format!("{name}.log")], choices);
    let split = hint.len().saturating_sub(4);
    let may_lie = crc32fast::hash(&hint[..split]).to_le_bytes() == hint[split..];
    let mut wanted = contents(&files, 1);
    wanted.remove(&b"over"[..]); // it has expired
    wanted.remove(&b"lasting"[..]); // it will
    files.insert(format!("{name}.hint"), hint);
    match BENCH.with(|bench| bench.play(&files, choices, 1)) {
        Outcome::Held(held) if !may_lie => assert_eq!(held.unwrap(), wanted),
        Outcome::Refused(error) if may_lie => assert_damage(&error),
        Outcome::Held(_) => {}
        outcome => panic!("{outcome:?}"),
    }
}

/// The file `STORE` is the input.
pub fn superblock(data: &[u8]) {
    let mut input = Input(data);
    let choices = Choices::of(input.byte());
    let mut files = closed_store();
    let mut store = input.take(2 * BLOCK).to_vec();
    if choices.links {
        store.resize(STORE.len(), 0);
        store[..10].copy_from_slice(&STORE[..10]);
    }
    if choices.sums && store.len() >= 52 {
        let sum = crc32fast::hash(&store[..48]);
        store[48..52].copy_from_slice(&sum.to_le_bytes());
    }
    if choices.hints {
        // Of this store, with another secret or number of partitions.
        let len = store.len().min(32);
        store[16.min(len)..len].copy_from_slice(&STORE[16.min(len)..len]);
    }
    files.insert("STORE".to_owned(), store);
    let mut partitions = 1;
    loop {
        match BENCH.with(|bench| bench.play(&files, choices, partitions)) {
            Outcome::Refused(Error::PartitionMismatch { found, requested }) => {
                assert!(requested == partitions && found != requested);
                if found > 8 {
                    break;
                }
                partitions = found;
            }
            // There are no folders for more partitions.
            Outcome::Refused(Error::Io { source, .. }) if partitions > 1 => {
                assert_eq!(source.kind(), std::io::ErrorKind::NotFound);
                break;
            }
            Outcome::Refused(error) => {
                assert_damage(&error);
                break;
            }
            _ => break,
        }
    }
}
