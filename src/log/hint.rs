//! Hints: what the records of a sealed segment are, so that opening need not read them.
//!
//! The table of bytes is in DESIGN.md, "Files". Invariant: a hint is a cache. It is bound to its
//! segment by id, salt and the place of the seal; one that is missing, damaged, or another
//! segment's is as good as none, and costs a scan.

use super::place::Class;
use super::record::{u16_at, u32_at, u64_at};
use super::segment::{FORMAT_VERSION, Segment};
use super::{BLOCK, CHUNK, Identity};
use crate::rt::{self, AlignedBuf, IoBuf};
use std::io;
use std::path::PathBuf;

const MAGIC: &[u8; 8] = b"ringlogH";
const HEADER_LEN: usize = 80;
const ENTRY_LEN: usize = 24;
/// Larger hints are not written, and not read: no segment has so many records.
const MAX_LEN: u64 = 1 << 30;

/// A put or delete as a hint has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HintEntry {
    /// Of the key.
    pub(crate) digest: [u8; 16],
    pub(crate) offset: u64,
    pub(crate) len: usize,
    pub(crate) class: Class,
}

/// What a hint says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Hint {
    pub(crate) seal: u64,
    pub(crate) sequence: u64,
    pub(crate) clock: u64,
    /// The older segments that existed at the seal.
    pub(crate) extant: Vec<u64>,
    pub(crate) entries: Vec<HintEntry>,
}

pub(crate) fn path_of(segment: &Segment) -> PathBuf {
    segment.path().with_extension("hint")
}

impl Hint {
    fn encode(&self, identity: &Identity, segment: &Segment) -> Vec<u8> {
        let len = HEADER_LEN + self.extant.len() * 8 + self.entries.len() * ENTRY_LEN + 4;
        let mut bytes = Vec::with_capacity(len);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        bytes.extend_from_slice(&[0; 2]);
        bytes.extend_from_slice(&identity.partition.to_le_bytes());
        bytes.extend_from_slice(&identity.store);
        let numbers = [
            segment.id,
            segment.salt,
            self.seal,
            self.sequence,
            self.clock,
            self.extant.len() as u64,
        ];
        bytes.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
        bytes.extend(self.extant.iter().flat_map(|id| id.to_le_bytes()));
        for entry in &self.entries {
            let offset = u32::try_from(entry.offset / 8).expect("below MAX_OFFSET");
            let len = u32::try_from(entry.len / 8).expect("the limits keep records below 4 GiB");
            bytes.extend_from_slice(&entry.digest);
            bytes.extend_from_slice(&offset.to_le_bytes());
            bytes.extend_from_slice(&(len | (entry.class as u32) << 30).to_le_bytes());
        }
        let sum = crc32fast::hash(&bytes);
        bytes.extend_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// What the bytes of a file say, if they are this segment's hint.
    pub(crate) fn decode(bytes: &[u8], identity: &Identity, segment: (u64, u64)) -> Option<Self> {
        let (body, sum) = bytes.split_at_checked(bytes.len().checked_sub(4)?)?;
        if body.len() < HEADER_LEN || crc32fast::hash(body) != u32_at(sum, 0) {
            return None;
        }
        let ours = body[..8] == *MAGIC
            && u16_at(body, 8) == FORMAT_VERSION
            && u32_at(body, 12) == identity.partition
            && body[16..32] == identity.store
            && (u64_at(body, 32), u64_at(body, 40)) == segment;
        let extant = usize::try_from(u64_at(body, 72)).ok()?;
        let rest = &body[HEADER_LEN..];
        let (ids, entries) = rest.split_at_checked(extant.checked_mul(8)?)?;
        if !ours || entries.len() % ENTRY_LEN != 0 {
            return None;
        }
        let seal = u64_at(body, 48);
        let entries = entries.chunks_exact(ENTRY_LEN).map(|entry| {
            let len = u32_at(entry, 20);
            let class = match len >> 30 {
                0 => Class::Put,
                1 => Class::Expiring,
                2 => Class::Tombstone,
                _ => return None,
            };
            let (offset, len) = (u64::from(u32_at(entry, 16)) * 8, (len << 2 >> 2) as usize * 8);
            let within = offset >= BLOCK && offset + len as u64 <= seal && len > 0;
            let digest = entry[..16].try_into().expect("sixteen bytes");
            within.then_some(HintEntry { digest, offset, len, class })
        });
        Some(Self {
            seal,
            sequence: u64_at(body, 56),
            clock: u64_at(body, 64),
            extant: ids.chunks_exact(8).map(|id| u64_at(id, 0)).collect(),
            entries: entries.collect::<Option<_>>()?,
        })
    }

    /// Writes the hint. It need not be durable: what a crash leaves of it is checked when it is
    /// read.
    pub(crate) async fn write(&self, identity: &Identity, segment: &Segment) -> io::Result<()> {
        let bytes = self.encode(identity, segment);
        let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_TRUNC;
        let fd = rt::open(None, &path_of(segment), flags, 0o644).await?;
        rt::write_all(&fd, bytes, 0).await.0
    }

    /// Reads the segment's hint, if there is a good one.
    pub(crate) async fn read(identity: &Identity, segment: &Segment) -> Option<Self> {
        let fd = rt::open(None, &path_of(segment), libc::O_RDONLY, 0).await.ok()?;
        let len = rt::stat(&fd).await.ok()?.len;
        if len > MAX_LEN {
            return None;
        }
        let len = usize::try_from(len).ok()?;
        let mut buf = AlignedBuf::with_capacity(len);
        let mut done = 0;
        while done < len {
            let to = len.min(done + CHUNK);
            let (result, part) = rt::read(&fd, buf.part(done..to), done as u64).await;
            buf = part.into_inner();
            match result {
                Ok(0) | Err(_) => return None,
                Ok(n) => done += n,
            }
        }
        Self::decode(&buf, identity, (segment.id, segment.salt))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const IDENTITY: Identity = Identity { store: [7; 16], partition: 3 };

    fn entry(n: u8, class: Class) -> HintEntry {
        HintEntry { digest: [n; 16], offset: BLOCK + 64 * u64::from(n), len: 64, class }
    }

    fn bytes_of(hint: &Hint) -> Vec<u8> {
        let path = std::path::Path::new("/");
        hint.encode(&IDENTITY, &Segment::for_tests(path, 5, 6))
    }

    #[test]
    fn a_hint_reads_back_for_its_own_segment_only() {
        let entries =
            vec![entry(1, Class::Put), entry(2, Class::Expiring), entry(3, Class::Tombstone)];
        let hint = Hint { seal: 8192, sequence: 9, clock: 8, extant: vec![1, 2, 4], entries };
        let bytes = bytes_of(&hint);
        assert_eq!(Hint::decode(&bytes, &IDENTITY, (5, 6)), Some(hint));
        assert_eq!(Hint::decode(&bytes, &IDENTITY, (5, 7)), None);
        assert_eq!(Hint::decode(&bytes, &IDENTITY, (4, 6)), None);
        let other = Identity { partition: 4, ..IDENTITY };
        assert_eq!(Hint::decode(&bytes, &other, (5, 6)), None);
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Hint::decode(&flipped, &IDENTITY, (5, 6)), None, "bit {bit}");
        }
        for len in 0..bytes.len() {
            assert_eq!(Hint::decode(&bytes[..len], &IDENTITY, (5, 6)), None, "{len} bytes");
        }
    }

    #[test]
    fn entries_beyond_the_seal_are_refused() {
        let hint = Hint { seal: BLOCK, entries: vec![entry(1, Class::Put)], ..Hint::default() };
        assert_eq!(Hint::decode(&bytes_of(&hint), &IDENTITY, (5, 6)), None);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_are_refused_without_a_panic(
            mut bytes in prop::collection::vec(any::<u8>(), 0..300), good_sum: bool,
        ) {
            if good_sum {
                let sum = crc32fast::hash(&bytes);
                bytes.extend_from_slice(&sum.to_le_bytes());
            }
            prop_assert!(Hint::decode(&bytes, &IDENTITY, (5, 6)).is_none());
        }
    }
}
