//! The first 64 bytes of a log: which store and partition it belongs to, and its salt.
//!
//! | at | bytes | field |
//! |---|---|---|
//! | 0 | 8 | magic `ringlog1`, so that no other file is taken for a log |
//! | 8 | 2 | format version |
//! | 10 | 2 | zero |
//! | 12 | 4 | partition |
//! | 16 | 16 | id of the store: a log of another store is refused |
//! | 32 | 8 | salt: random, part of every checksum in the log |
//! | 40 | 4 | CRC-32 of bytes 0 to 40 |
//! | 44 | 20 | zero |
//!
//! Invariant: a log is made whole, with its name and its bytes durable, before the superblock that
//! makes the store exist.

use super::read_at;
use super::record::u64_at;
use crate::error::{Error, Result};
use crate::rt::{self, Fd};
use std::path::Path;

/// Where the first record is.
pub(crate) const FILE_HEADER_LEN: usize = 64;
/// Of logs and superblock. 0 while the format may still change between releases.
pub(crate) const FORMAT_VERSION: u16 = 0;

const MAGIC: &[u8; 8] = b"ringlog1";

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileHeader {
    pub(crate) store: [u8; 16],
    pub(crate) partition: u32,
    pub(crate) salt: u64,
}

impl FileHeader {
    fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0; FILE_HEADER_LEN];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..10].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.partition.to_le_bytes());
        bytes[16..32].copy_from_slice(&self.store);
        bytes[32..40].copy_from_slice(&self.salt.to_le_bytes());
        let crc = crc32fast::hash(&bytes[..40]);
        bytes[40..44].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Makes an empty log, over whatever an interrupted creation left. The caller syncs the
    /// directory.
    pub(crate) async fn create(self, path: &Path) -> Result<()> {
        let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_TRUNC;
        let fd = rt::open(None, path, flags, 0o644).await.map_err(Error::io("create", path))?;
        let (result, _) = rt::write_all(&fd, self.encode(), 0).await;
        result.map_err(Error::io("write", path))?;
        rt::fsync(&fd, false).await.map_err(Error::io("sync", path))
    }

    /// Reads and checks the header of an open log of `len` bytes.
    pub(crate) async fn read(
        fd: &Fd,
        path: &Path,
        len: u64,
        store: [u8; 16],
        partition: u32,
    ) -> Result<Self> {
        let corrupt = |reason| Error::Corrupt { path: path.to_owned(), offset: 0, reason };
        if len < FILE_HEADER_LEN as u64 {
            return Err(corrupt("the file is shorter than its header"));
        }
        let bytes = read_at(fd, 0, FILE_HEADER_LEN).await.map_err(Error::io("read", path))?;
        if bytes[..8] != *MAGIC {
            return Err(corrupt("this is not a ringlog file"));
        }
        let found = u16::from(bytes[8]) | u16::from(bytes[9]) << 8;
        let header = Self {
            store: bytes[16..32].try_into().expect("sixteen bytes"),
            partition: u32::try_from(u64_at(&bytes, 12) & u64::from(u32::MAX)).expect("32 bits"),
            salt: u64_at(&bytes, 32),
        };
        // First: a later version may have changed what the checksum covers.
        if found != FORMAT_VERSION {
            let path = path.to_owned();
            return Err(Error::FormatVersion { path, found, supported: FORMAT_VERSION });
        }
        if bytes != header.encode() {
            return Err(corrupt("the checksum of the file's header does not match"));
        }
        if header.store != store || header.partition != partition {
            return Err(corrupt("this log belongs to another store or partition"));
        }
        Ok(header)
    }
}
