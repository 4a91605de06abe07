//! The log of a partition: one file, only ever appended to.
//!
//! ```text
//! header (64 B) | MARK record record ... | MARK record ... | ...
//!                 `---- a group -------'
//! ```
//!
//! One append is one *group*, which begins with a mark: a record that says up to where the log was
//! durable before the group was written. Invariants: bytes below the highest mark were durable, so
//! if they do not validate they are corrupt, and that is reported, never cut; bytes above it are
//! the tail, which a crash may tear, and from the first record that does not validate on it is cut.
//! A group is written only when the one before it is durable. After a failed append or sync
//! nothing more is appended.

pub(crate) mod file;
pub(crate) mod record;
pub(crate) mod scan;
pub(crate) mod superblock;

use crate::error::{Error, Result};
use crate::rt::{self, Fd, IoBuf};
use bytes::Bytes;
use file::FileHeader;
use record::{MARK_LEN, Record, RecordError};
use scan::Scan;
use std::cell::Cell;
use std::io;
use std::path::{Path, PathBuf};

/// Where a record is in its log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Location {
    /// Of its first byte.
    pub(crate) offset: u64,
    /// In bytes, padding included.
    pub(crate) len: u32,
}

/// A partition's log. Used on its owner's thread only.
#[derive(Debug)]
pub(crate) struct Log {
    fd: Fd,
    path: PathBuf,
    salt: u64,
    /// Where the next group goes. All below it is durable.
    tail: Cell<u64>,
}

impl Log {
    /// Opens a log and shows each of its records to `replay`, in order.
    pub(crate) async fn open(
        path: &Path,
        store: [u8; 16],
        partition: u32,
        mut replay: impl FnMut(&Record<'_>, Location),
    ) -> Result<Self> {
        let fd = rt::open(None, path, libc::O_RDWR, 0).await.map_err(Error::io("open", path))?;
        // What is validated from here on is what the device has. A record that only the page cache
        // has (after a kill, or a sync that failed) must not be served: a power cut would take it
        // back. So write back what can be, and forget the rest.
        rt::fsync(&fd, false).await.map_err(Error::io("sync", path))?;
        let forget = rt::advise(&fd, libc::POSIX_FADV_DONTNEED).await;
        forget.map_err(Error::io("drop the cache of", path))?;
        let len = rt::stat(&fd).await.map_err(Error::io("measure", path))?.len;
        let header = FileHeader::read(&fd, path, len, store, partition).await?;
        let mut scan = Scan::new(&fd, path, header.salt, len);
        while let Some((record, location)) = scan.next().await? {
            replay(&record, location);
        }
        let tail = scan.tail();
        let log = Self { fd, path: path.to_owned(), salt: header.salt, tail: Cell::new(tail) };
        log.clear(tail, len).await?;
        Ok(log)
    }

    /// Overwrites a torn tail with zeroes, so that nothing of it can ever follow what will be
    /// appended. A crash meanwhile leaves a torn tail again.
    async fn clear(&self, from: u64, to: u64) -> Result<()> {
        let mut offset = from;
        while offset < to {
            let len = usize::try_from(to - offset).map_or(CHUNK, |left| left.min(CHUNK));
            let (result, _) = rt::write_all(&self.fd, vec![0; len], offset).await;
            result.map_err(Error::io("clear the tail of", &self.path))?;
            offset += len as u64;
        }
        if from < to {
            rt::fsync(&self.fd, true).await.map_err(Error::io("sync", &self.path))?;
        }
        Ok(())
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// What seeds the checksums of this log's records.
    pub(crate) fn salt(&self) -> u64 {
        self.salt
    }

    pub(crate) fn tail(&self) -> u64 {
        self.tail.get()
    }

    /// Writes a group at the tail and makes it durable: one write, one fdatasync. `group` begins
    /// with [`MARK_LEN`] bytes of room for its mark. Gives the buffer back.
    ///
    /// After an error the caller must append no more: what is on the device is not known.
    pub(crate) async fn append(&self, mut group: Vec<u8>) -> (io::Result<()>, Vec<u8>) {
        let start = self.tail.get();
        let mark = Record::mark(start);
        mark.encode_into(&mut group[..MARK_LEN], self.salt, start);
        let (result, group) = rt::write_all(&self.fd, group, start).await;
        if let Err(error) = result {
            return (Err(error), group);
        }
        if let Err(error) = rt::fsync(&self.fd, true).await {
            return (Err(error), group);
        }
        self.tail.set(start + group.len() as u64);
        (Ok(()), group)
    }

    /// Reads and checks the record of a key; returns its value.
    pub(crate) async fn read(&self, location: Location, key: &[u8]) -> Result<Bytes> {
        let Location { offset, len } = location;
        let corrupt = |reason| Error::Corrupt { path: self.path.clone(), offset, reason };
        let buf = match read_at(&self.fd, offset, len as usize).await {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(corrupt("the file ends within a record"));
            }
            result => result.map_err(Error::io("read", &self.path))?,
        };
        let record = Record::decode(&buf, self.salt, offset).map_err(|error| match error {
            RecordError::Header => corrupt("the checksum of a record's header does not match"),
            RecordError::Body => corrupt("the checksum of a record's body does not match"),
            RecordError::Short => corrupt("a record is longer than when it was indexed"),
        })?;
        if record.key != key {
            return Err(corrupt("a record has another key than when it was indexed"));
        }
        let value = record.value_range();
        Ok(Bytes::from(buf).slice(value))
    }
}

/// Reads exactly `len` bytes.
async fn read_at(fd: &Fd, offset: u64, len: usize) -> io::Result<Vec<u8>> {
    let room = Vec::with_capacity(len).part(..len); // a vector may have more room than asked for
    let (result, buf) = rt::read_exact(fd, room, offset).await;
    result.map(|()| buf.into_inner())
}

/// How much is read or cleared at a time.
pub(crate) const CHUNK: usize = 1 << 20;
