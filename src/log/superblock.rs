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

use super::segment::FORMAT_VERSION;
use crate::error::{Error, Result};
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::path::Path;

const NAME: &str = "STORE";
const LEN: usize = 52;
const MAGIC: &[u8; 8] = b"ringlogS";

/// See the module. Read and written while opening only, when blocking calls are fine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Superblock {
    pub(crate) partitions: u32,
    pub(crate) id: [u8; 16],
    pub(crate) secret: [u8; 16],
}

/// Random bytes of the system's.
pub(crate) fn random<const N: usize>() -> Result<[u8; N]> {
    let path = Path::new("/dev/urandom");
    let mut bytes = [0; N];
    let mut file = File::open(path).map_err(Error::io("open", path))?;
    file.read_exact(&mut bytes).map_err(Error::io("read", path))?;
    Ok(bytes)
}

impl Superblock {
    pub(crate) fn new(partitions: u32) -> Result<Self> {
        Ok(Self { partitions, id: random()?, secret: random()? })
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

    /// The superblock of the store in `dir`, if there is a store.
    pub(crate) fn read(dir: &Path) -> Result<Option<Self>> {
        let path = dir.join(NAME);
        match fs::read(&path) {
            Ok(bytes) => Self::decode(&bytes, &path).map(Some),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io("read", &path)(error)),
        }
    }

    /// Makes the store exist, durably.
    pub(crate) fn write(&self, dir: &Path) -> Result<()> {
        let (path, draft) = (dir.join(NAME), dir.join("STORE.tmp"));
        let mut file = File::create(&draft).map_err(Error::io("create", &draft))?;
        file.write_all(&self.encode()).map_err(Error::io("write", &draft))?;
        file.sync_all().map_err(Error::io("sync", &draft))?;
        sync_dir(dir)?; // the logs' names, and the draft's
        fs::rename(&draft, &path).map_err(Error::io("rename", &draft))?;
        sync_dir(dir)
    }
}

/// Makes the names in a directory durable.
pub(crate) fn sync_dir(dir: &Path) -> Result<()> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(Error::io("sync", dir))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flip_and_every_length_of_a_superblock_is_refused() {
        let superblock = Superblock::new(4).unwrap();
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
