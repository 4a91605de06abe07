//! The file `STORE`: what a store is. It is written once, whole, and never changed.
//!
//! | at | bytes | field |
//! |---|---|---|
//! | 0 | 8 | magic `ringlogS` |
//! | 8 | 2 | format version |
//! | 10 | 2 | zero |
//! | 12 | 4 | number of partitions |
//! | 16 | 16 | id of the store, random |
//! | 32 | 16 | secret of the key digest, random: nobody can choose keys that collide |
//! | 48 | 4 | CRC-32 of bytes 0 to 48 |
//!
//! Invariant: a store exists if and only if this file does. It appears by a rename, when
//! everything else of the new store is durable.

use super::segment::{FORMAT_VERSION, sync_dir};
use crate::error::{Error, Result};
use crate::rt;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

const NAME: &str = "STORE";
/// As the table above ends.
const LEN: usize = 52;
/// S for store. Eight bytes, so that what follows is aligned.
const MAGIC: &[u8; 8] = b"ringlogS";

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Superblock {
    pub(crate) partitions: u32,
    pub(crate) id: [u8; 16],
    pub(crate) secret: [u8; 16],
}

/// Random bytes of the system's.
pub(crate) async fn random<const N: usize>() -> Result<[u8; N]> {
    let path = Path::new("/dev/urandom");
    let fd = rt::open(None, path, libc::O_RDONLY, 0).await.map_err(Error::io("open", path))?;
    let (read, bytes) = rt::read_exact(&fd, [0; N], 0).await;
    read.map(|()| bytes).map_err(Error::io("read", path))
}

/// What a file begins with: so many bytes, or as many as it has.
pub(crate) async fn read_start(path: &Path, len: usize) -> Result<Vec<u8>> {
    let fd = rt::open(None, path, libc::O_RDONLY, 0).await.map_err(Error::io("open", path))?;
    match rt::read_exact(&fd, Vec::with_capacity(len), 0).await {
        (Err(error), _) if error.kind() != ErrorKind::UnexpectedEof => {
            Err(Error::io("read", path)(error))
        }
        (_, bytes) => Ok(bytes),
    }
}

impl Superblock {
    pub(crate) async fn new(partitions: u32) -> Result<Self> {
        Ok(Self { partitions, id: random().await?, secret: random().await? })
    }

    fn encode(&self) -> [u8; LEN] {
        let mut bytes = [0; LEN];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..10].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.partitions.to_le_bytes());
        bytes[16..32].copy_from_slice(&self.id);
        bytes[32..48].copy_from_slice(&self.secret);
        let crc = crc32fast::hash(&bytes[..48]);
        bytes[48..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8], path: &Path) -> Result<Self> {
        let corrupt = |reason| Error::Corrupt { path: path.to_owned(), offset: 0, reason };
        let bytes: &[u8; LEN] =
            bytes.try_into().map_err(|_| corrupt("a superblock has another length"))?;
        if bytes[..8] != *MAGIC {
            return Err(corrupt("this is not a ringlog superblock"));
        }
        let superblock = Self {
            partitions: bytes[12..16].iter().rev().fold(0, |n, &byte| n << 8 | u32::from(byte)),
            id: bytes[16..32].try_into().expect("sixteen bytes"),
            secret: bytes[32..48].try_into().expect("sixteen bytes"),
        };
        let found = u16::from(bytes[8]) | u16::from(bytes[9]) << 8;
        if found != FORMAT_VERSION {
            let path = path.to_owned();
            return Err(Error::FormatVersion { path, found, supported: FORMAT_VERSION });
        }
        if superblock.encode() != *bytes || superblock.partitions == 0 {
            return Err(corrupt("the checksum of the superblock does not match"));
        }
        Ok(superblock)
    }

    /// Where the superblock of a store lies.
    pub(crate) fn path_in(dir: &Path) -> PathBuf {
        dir.join(NAME)
    }

    /// The superblock of the store in `dir`, if there is a store.
    pub(crate) async fn read(dir: &Path) -> Result<Option<Self>> {
        let path = Self::path_in(dir);
        match read_start(&path, LEN + 1).await {
            Ok(bytes) => Self::decode(&bytes, &path).map(Some),
            Err(Error::Io { source, .. }) if source.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes the store exist, durably.
    pub(crate) async fn write(&self, dir: &Path) -> Result<()> {
        let (path, draft) = (Self::path_in(dir), dir.join("STORE.tmp"));
        let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_TRUNC;
        let fd = rt::open(None, &draft, flags, 0o644).await.map_err(Error::io("create", &draft))?;
        let (written, _) = rt::write_all(&fd, self.encode(), 0).await;
        written.map_err(Error::io("write", &draft))?;
        rt::fsync(&fd, false).await.map_err(Error::io("sync", &draft))?;
        sync_dir(dir).await?; // the logs' names, and the draft's
        rt::rename(None, &draft, None, &path).await.map_err(Error::io("rename", &draft))?;
        sync_dir(dir).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flip_and_every_length_of_a_superblock_is_refused() {
        let superblock = Superblock { partitions: 4, id: [7; 16], secret: [8; 16] };
        let (bytes, path) = (superblock.encode(), Path::new("STORE"));
        assert_eq!(Superblock::decode(&bytes, path).unwrap(), superblock);
        for bit in 0..LEN * 8 {
            let mut flipped = bytes;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(Superblock::decode(&flipped, path).is_err(), "bit {bit}");
        }
        for len in 0..LEN {
            assert!(Superblock::decode(&bytes[..len], path).is_err(), "{len} bytes");
        }
    }
}
