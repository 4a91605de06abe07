//! Records that are not what they were when they were indexed: the bytes of one lie under an open
//! store, and reads, scans and checks come by.

use super::files::{Choices, Input, header, repair};
use super::{assert_damage, entries_of};
use crate::store_common::{
    BLOCK, DELETE, Entry, Files, LIVE, PUT, SEAL, entry, mark, memory_dir, record as encode,
    restore, segment_name, segment_path,
};
use ringlog::Store;
use ringlog::rt::{Executor, ExecutorConfig};
use std::cell::{Cell, RefCell};
use std::fs::File;
use std::os::unix::fs::FileExt;

const KEY: &[u8] = b"key";
/// The longest input that is looked at, and what the record has of a value at first.
const ROOM: usize = 3 * BLOCK;
/// So often a store is used: a record that expires makes it write, and it shall not grow for ever.
const USES: u32 = 20_000;

/// A store whose only record is the input's.
struct Bench {
    store: Store,
    executor: Executor,
    _dir: tempfile::TempDir,
    file: File,
    /// The segment as it was written.
    log: Vec<u8>,
    /// The record's beginning and end.
    place: (usize, usize),
    uses: Cell<u32>,
}

/// A sealed segment with one put.
fn segment() -> (Vec<u8>, (usize, usize)) {
    let mut log = header(1, b"saltsalt");
    let salt = *b"saltsalt";
    log.extend(mark(&salt, log.len(), BLOCK, BLOCK));
    log.extend(encode(&salt, log.len(), LIVE, 0, &[], &[]));
    let start = log.len();
    log.extend(encode(&salt, start, PUT, 1, KEY, &[7; ROOM]));
    let end = log.len();
    log.resize(end.next_multiple_of(BLOCK), 0);
    let says = [log.len() as u64, 0, end as u64, 0].map(u64::to_le_bytes).concat();
    log.extend(encode(&salt, log.len(), SEAL, 1, &[], &says));
    log.resize(log.len().next_multiple_of(BLOCK), 0);
    (log, (start, end))
}

impl Bench {
    fn new() -> Self {
        let executor = Executor::new(ExecutorConfig::default()).unwrap();
        let dir = memory_dir();
        let (log, place) = segment();
        let mut files = Files::from([(segment_name(0, 1), log.clone())]);
        files.insert("STORE".to_owned(), super::STORE.to_vec());
        restore(&files, dir.path());
        let threads = [executor.handle()];
        let store = executor.block_on(async {
            // What is on the disk is to be read each time.
            let builder = Store::builder(dir.path()).cache_bytes(0);
            let store = builder.open_on(&threads).await.unwrap();
            let value = store.get(KEY).await.unwrap().unwrap();
            assert_eq!(value.len(), ROOM);
            store
        });
        let path = segment_path(dir.path(), 0, 1);
        let file = File::options().write(true).open(path).unwrap();
        Self { store, executor, _dir: dir, file, log, place, uses: Cell::new(0) }
    }

    fn play(&self, data: &[u8]) {
        let mut input = Input(data);
        let choices = Choices::of(input.byte());
        let (start, end) = self.place;
        let mut log = self.log.clone();
        let bytes = input.take(end - start);
        log[start..end].fill(0);
        log[start..start + bytes.len()].copy_from_slice(bytes);
        // Links too: the mark before the record is this segment's first.
        repair(&mut log, Choices { links: true, ..choices });
        self.file.write_all_at(&log[start..end], start as u64).unwrap();
        self.executor.block_on(self.judge(&log, choices));
    }

    async fn judge(&self, log: &[u8], choices: Choices) {
        let (start, end) = self.place;
        // Only as much was indexed.
        let there: Option<Entry> = entry(&log[..end], start);
        match self.store.get(KEY).await {
            Ok(Some(value)) => {
                let there = there.unwrap();
                assert_eq!((&there.key[..], &there.value[..]), (KEY, &value[..]));
            }
            // A record that has expired.
            Ok(None) => assert!(there.unwrap().expiry.is_some()),
            Err(error) => assert_damage(&error),
        }
        if choices.compact {
            self.store.verify().await.unwrap();
        }
        if choices.salvage {
            match entries_of(&self.store).await {
                Ok(shown) => {
                    for (key, value) in shown {
                        // A scan may read on beyond what was indexed.
                        let there = entry(log, start).unwrap();
                        assert_eq!((there.kind, there.key, there.value), (PUT, key, value));
                    }
                }
                Err(error) => assert_damage(&error),
            }
        }
    }
}

thread_local! {
    static BENCH: RefCell<Option<Bench>> = const { RefCell::new(None) };
}

/// The bytes of a record.
pub fn record(data: &[u8]) {
    BENCH.with_borrow_mut(|bench| {
        if bench.as_ref().is_some_and(|bench| bench.uses.get() == USES) {
            bench.take();
        }
        let bench = bench.get_or_insert_with(Bench::new);
        bench.uses.set(bench.uses.get() + 1);
        bench.play(data);
    });
}

/// Inputs that are whole records of several kinds.
pub fn seeds() -> Vec<Vec<u8>> {
    let (log, (start, _)) = segment();
    let salt = *b"saltsalt";
    let at = |kind, key: &[u8], value: &[u8]| encode(&salt, start, kind, 1, key, value);
    let mut expiring = at(PUT, KEY, &[1; 40]);
    expiring[23] = 1;
    let records = [
        at(PUT, KEY, b"value"),
        at(PUT, KEY, &[1; 5000]),
        at(PUT, b"other", b""),
        at(DELETE, KEY, b""),
        at(SEAL, b"", &[0; 32]),
        expiring,
        log[start..start + 200].to_vec(),
    ];
    let with = |choices: u8| records.iter().map(move |r| [&[choices][..], r].concat());
    with(0x18).chain(with(0x19)).chain(with(1)).collect()
}
