//! The journal of a partition: where writes lie that were acknowledged before they were written to
//! the log, since nobody asked that they outlast more than the process.
//!
//! It is a ring of records in a small file that the page cache has. What is put there outlasts a
//! killed process (not a kernel crash), and costs a system call that copies it. Each record is
//! written to the log soon after, and its place is taken by others then. The next opening puts into
//! the log what a killed process did not.
//!
//! (Why a system call on the owner's thread: a ring hands buffered writes to kernel workers, which
//! takes 17 to 50 us in place of one. Why no mapping: where a page cannot be written after all, on a
//! file system that copies on write and is full, or that has failed, that is a signal that ends the
//! process, and no error.)
//!
//! Invariants: what has not been released is not overwritten; a record validates only in its place,
//! and only for the process that wrote it, since each makes a journal with a salt of its own.

use super::record::{HEADER_LEN, Kind, Record};
use super::segment::{check_header, encode_header, sync_dir};
use super::{BLOCK, BLOCK_LEN, Identity};
use crate::error::{Error, Result};
use crate::rt::{self, Fd, IoBuf};
use bytes::Bytes;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

/// The name of the file in its partition's folder, and while it is made.
pub(crate) const NAME: &str = "journal";
pub(crate) const DRAFT: &str = "journal.new";

/// J for journal. As long as a segment's.
const MAGIC: [u8; 8] = *b"ringlogJ";

/// The most bytes of a ring: some thousand small writes, more than come while a group is written.
const MOST: u64 = 1 << 20;
/// The least.
const LEAST: u64 = 16 << 10;
/// Records that take a greater part of the ring do not go there: few would fit, and a group takes
/// its time with them anyway.
const LARGE: usize = 8;

/// Of a process that has the store open. See the module.
#[derive(Debug)]
pub(crate) struct Journal {
    fd: Fd,
    salt: u64,
    /// Where the next record goes, in the ring.
    head: usize,
    ring: usize,
    free: usize,
    record: Vec<u8>,
}

/// A write that the log may not have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) sequence: u64,
    pub(crate) key: Bytes,
    /// None of a delete.
    pub(crate) value: Option<Bytes>,
    /// Of key and value.
    pub(crate) sum: u32,
}

/// Where a partition's journal lies.
pub(crate) fn path_in(dir: &Path) -> PathBuf {
    dir.join(NAME)
}

impl Journal {
    /// Makes an empty one with a ring of about so many bytes, durably. The salt must be new. (What
    /// is in it later need not be durable. That it was there has to be: numbers may have been lost
    /// with it.)
    pub(crate) async fn create(
        dir: &Path,
        identity: &Identity,
        salt: u64,
        ring: u64,
    ) -> Result<Self> {
        let path = path_in(dir);
        let made = Self::draft(dir, identity, salt, ring).await;
        if made.is_err() {
            // On a full disk every block counts. If this fails too, the next opening does it.
            drop(rt::unlink(None, &dir.join(DRAFT)).await);
        }
        made.map_err(Error::io("create", &path))
    }

    async fn draft(dir: &Path, identity: &Identity, salt: u64, ring: u64) -> io::Result<Self> {
        let (draft, path) = (dir.join(DRAFT), path_in(dir));
        let ring = ring.clamp(LEAST, MOST).next_multiple_of(BLOCK);
        let ring = usize::try_from(ring).expect("at most a MiB");
        let flags = libc::O_RDWR | libc::O_CREAT | libc::O_TRUNC;
        let fd = rt::open(None, &draft, flags, 0o644).await?;
        // Written, not only allocated: no page of it has to be noted as written later, or read.
        let mut bytes = vec![0; BLOCK_LEN + ring];
        let header = encode_header(MAGIC, identity, 0, salt);
        bytes[..header.len()].copy_from_slice(&header);
        rt::write_all(&fd, bytes, 0).await.0?;
        rt::fsync(&fd, false).await?;
        rt::rename(None, &draft, None, &path).await?;
        sync_dir(dir).await.map_err(io::Error::other)?;
        Ok(Self { fd, salt, head: 0, ring, free: ring, record: Vec::new() })
    }

    /// Takes a record, if there is room for it: then it outlasts the process. Tells what room it
    /// takes until that is [released](Self::release).
    pub(crate) fn append(&mut self, record: &Record<'_>) -> Option<usize> {
        let len = record.len();
        if len > self.ring / LARGE {
            return None;
        }
        let to_end = self.ring - self.head;
        // None goes round the end.
        let (passed, at) = if len > to_end { (to_end, 0) } else { (0, self.head) };
        let taken = passed + len;
        if taken > self.free {
            return None;
        }
        self.record.resize(len, 0);
        let offset = BLOCK_LEN + at;
        record.encode(&mut self.record, self.salt, offset as u64);
        // If it cannot be had there it waits for the log, which says so.
        if rt::write_now(&self.fd, &self.record, offset as u64).ok() != Some(len) {
            // Nobody is to find it: the log may refuse it. And if that fails, there are no more.
            let wiped = rt::write_now(&self.fd, &[0; HEADER_LEN], offset as u64);
            if wiped.ok() != Some(HEADER_LEN) {
                self.ring = 0;
            }
            return None;
        }
        self.head = at + len;
        self.free -= taken;
        Some(taken)
    }

    /// Whether it is time to release some.
    pub(crate) fn is_half_full(&self) -> bool {
        self.free < self.ring / 2
    }

    /// The oldest records that are there, which took so much room, are in the log now.
    pub(crate) fn release(&mut self, taken: usize) {
        self.free += taken;
    }
}

/// Removes the journal, if there is one, durably.
pub(crate) async fn remove(dir: &Path) -> Result<()> {
    for path in [dir.join(DRAFT), path_in(dir)] {
        match rt::unlink(None, &path).await {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            result => result.map_err(Error::io("remove", &path))?,
        }
    }
    sync_dir(dir).await
}

/// What is in a partition's journal, by sequence number. Older records than those that were not
/// released may be among it.
pub(crate) async fn read(dir: &Path, identity: &Identity) -> Result<Vec<Entry>> {
    let path = path_in(dir);
    let failed = || Error::io("read", &path);
    let fd = rt::open(None, &path, libc::O_RDONLY, 0).await.map_err(failed())?;
    // What is believed is not to go with the next power cut.
    rt::fsync(&fd, true).await.map_err(Error::io("sync", &path))?;
    let len = rt::stat(&fd).await.map_err(failed())?.len;
    if !(BLOCK + LEAST..=BLOCK + MOST).contains(&len) {
        let reason = "the file is not as long as a journal";
        return Err(Error::Corrupt { path, offset: 0, reason });
    }
    let len = usize::try_from(len).expect("just checked");
    let (result, bytes) = rt::read_exact(&fd, Vec::with_capacity(len).part(..len), 0).await;
    result.map_err(failed())?;
    let bytes = bytes.into_inner();
    let salt = check_header(MAGIC, &bytes, identity, 0, &path)?;
    let mut entries = Vec::new();
    let mut at = BLOCK_LEN;
    while at < len {
        // Most places have none; and one that is partly overwritten does not validate.
        let Ok(record) = Record::decode(&bytes[at..], salt, at as u64) else {
            at += 8;
            continue;
        };
        let len = record.len();
        let is_change = matches!(record.kind, Kind::Put | Kind::Delete) && !record.moved;
        if !is_change || record.expiry.is_some() {
            at += len; // none that this release writes
            continue;
        }
        // In memory of its own, which the value cache may keep.
        let mut value = Bytes::from([record.key, record.value].concat());
        let key = value.split_to(record.key.len());
        let value = (record.kind == Kind::Put).then_some(value);
        entries.push(Entry { sequence: record.sequence, key, value, sum: record.sum });
        at += len;
    }
    entries.sort_by_key(|entry| entry.sequence);
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rt::{Executor, ExecutorConfig};

    const IDENTITY: Identity = Identity { store: [7; 16], partition: 0 };

    fn put(sequence: u64, value: &[u8]) -> Record<'_> {
        Record::new(Kind::Put, sequence, b"key", value)
    }

    #[test]
    fn what_is_not_released_is_found_however_often_the_ring_goes_round() {
        let dir = tempfile::tempdir().unwrap();
        Executor::new(ExecutorConfig::default()).unwrap().block_on(async {
            let mut journal = Journal::create(dir.path(), &IDENTITY, 5, LEAST).await.unwrap();
            let mut held = std::collections::VecDeque::new();
            for n in 1..500_u64 {
                let value = vec![u8::try_from(n % 251).unwrap(); (n * 37 % 1500) as usize];
                while held.len() > 20 {
                    let (_, _, taken) = held.pop_front().unwrap();
                    journal.release(taken);
                }
                match journal.append(&put(n, &value)) {
                    Some(taken) => held.push_back((n, value, taken)),
                    None => held.clear(), // as if the store were opened again
                }
                if held.is_empty() {
                    journal = Journal::create(dir.path(), &IDENTITY, 5 + n, LEAST).await.unwrap();
                }
                let entries = read(dir.path(), &IDENTITY).await.unwrap();
                assert!(entries.is_sorted_by_key(|entry| entry.sequence));
                for (n, value, _) in &held {
                    let found = entries.iter().find(|entry| entry.sequence == *n).unwrap();
                    assert_eq!(found.value.as_deref(), Some(&value[..]));
                    assert_eq!(found.sum, put(*n, value).sum);
                }
            }
        });
    }

    #[test]
    fn it_takes_nothing_over_what_is_not_released_and_nothing_large() {
        let dir = tempfile::tempdir().unwrap();
        Executor::new(ExecutorConfig::default()).unwrap().block_on(async {
            let mut journal = Journal::create(dir.path(), &IDENTITY, 5, 0).await.unwrap();
            let value = [1; 1000];
            assert!(!journal.is_half_full());
            let taken: Vec<_> = (1..99).map_while(|n| journal.append(&put(n, &value))).collect();
            assert!(journal.is_half_full());
            let len = put(1, &value).len();
            assert_eq!(taken.len(), journal.ring / len);
            assert_eq!(read(dir.path(), &IDENTITY).await.unwrap().len(), taken.len());
            assert_eq!(journal.append(&put(99, &value)), None);
            journal.release(taken[0]);
            // What is left at the end goes too.
            let over = journal.ring % len;
            assert_eq!(journal.append(&put(99, &value)), Some(len + over));
            journal.release(taken[1]);
            assert_eq!(journal.append(&put(100, &[1; 2 * 1024])), None);
            let delete = Record::new(Kind::Delete, 100, b"key", &[]);
            assert_eq!(journal.append(&delete), Some(delete.len()));
            let entries = read(dir.path(), &IDENTITY).await.unwrap();
            let last: Vec<_> = entries.iter().rev().take(2).collect();
            assert_eq!((last[0].sequence, &last[0].value), (100, &None));
            assert_eq!(last[1].sequence, 99);
            remove(dir.path()).await.unwrap();
            remove(dir.path()).await.unwrap();
            assert!(!path_in(dir.path()).exists());
        });
    }
}
