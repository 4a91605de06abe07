//! Hints: what the records of a sealed segment are, so that opening need not read them.
//!
//! What its bytes are is said in DESIGN.md, "Files". Invariant: a hint is a cache. It is bound to its
//! segment by id, salt and the place of the seal; one that is missing, damaged, or another
//! segment's is as good as none, and costs a scan.

use super::place::Class;
use super::record::{u16_at, u32_at, u64_at};
use super::segment::{FORMAT_VERSION, Segment};
use super::{BLOCK, Identity};
use crate::rt::{self, Fd, IoBuf};
use crc32fast::Hasher;
use std::io;
use std::path::PathBuf;

/// H for hint. Eight bytes, so that what follows is aligned.
const MAGIC: &[u8; 8] = b"ringlogH";
/// Up to the ids, as DESIGN.md lists it.
const HEADER_LEN: usize = 88;
/// A digest, an offset, a length.
pub(crate) const ENTRY_LEN: usize = 24;
/// How much is written and read at a time: whole entries, 96 KiB of them. All partitions do it at the
/// same time when a store is opened, so not as much as is read of logs.
const PIECE: usize = 4096 * ENTRY_LEN;
/// How many entries all partitions of a store remember of the segments that they write: 12 MiB. With
/// one partition and segments of the default size it is enough for records of 64 bytes.
pub(crate) const REMEMBERED: usize = 512 << 10;

/// A put or delete as a hint has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HintEntry {
    /// Of the key.
    pub(crate) digest: [u8; 16],
    pub(crate) offset: u64,
    pub(crate) len: usize,
    pub(crate) class: Class,
}

impl HintEntry {
    fn encode(&self) -> [u8; ENTRY_LEN] {
        let offset = u32::try_from(self.offset / 8).expect("below MAX_OFFSET");
        let len = u32::try_from(self.len / 8).expect("the limits keep records below 4 GiB");
        let mut bytes = [0; ENTRY_LEN];
        bytes[..16].copy_from_slice(&self.digest);
        bytes[16..20].copy_from_slice(&offset.to_le_bytes());
        bytes[20..].copy_from_slice(&(len | (self.class as u32) << 30).to_le_bytes());
        bytes
    }

    /// The entry, if it lies between the segment's header and its seal.
    fn decode(bytes: &[u8], seal: u64) -> Option<Self> {
        let len = u32_at(bytes, 20);
        let class = match len >> 30 {
            0 => Class::Put,
            1 => Class::Expiring,
            2 => Class::Tombstone,
            _ => return None,
        };
        let (offset, len) = (u64::from(u32_at(bytes, 16)) * 8, (len << 2 >> 2) as usize * 8);
        let within = offset >= BLOCK && offset + len as u64 <= seal && len > 0;
        let digest = bytes[..16].try_into().expect("sixteen bytes");
        within.then_some(Self { digest, offset, len, class })
    }
}

/// What a segment's hint will say, gathered while the segment is written. If that is too much to
/// remember, the segment itself can be read.
#[derive(Debug)]
pub(crate) struct Remembered {
    most: usize,
    entries: Vec<[u8; ENTRY_LEN]>,
    too_many: bool,
}

impl Remembered {
    /// Remembers at most so many.
    pub(crate) fn new(most: usize) -> Self {
        Self { most, entries: Vec::new(), too_many: false }
    }

    pub(crate) fn push(&mut self, entry: &HintEntry) {
        self.too_many |= self.entries.len() >= self.most;
        if self.too_many {
            self.entries = Vec::new();
        } else {
            self.entries.push(entry.encode());
        }
    }

    /// All of them, unless they were too many. Begins anew.
    pub(crate) fn take(&mut self) -> Option<Vec<[u8; ENTRY_LEN]>> {
        let Self { entries, too_many, .. } = std::mem::replace(self, Self::new(self.most));
        (!too_many).then_some(entries)
    }
}

/// What a hint says of its segment as a whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) seal: u64,
    pub(crate) sequence: u64,
    pub(crate) clock: u64,
    /// When the last of its entries expires, of those that do; 0 if none does.
    pub(crate) last_expiry: u64,
    /// The older segments that existed at the seal.
    pub(crate) extant: Vec<u64>,
}

pub(crate) fn path_of(segment: &Segment) -> PathBuf {
    segment.path().with_extension("hint")
}

impl Head {
    fn len(&self) -> usize {
        HEADER_LEN + self.extant.len() * 8
    }

    fn encode(&self, identity: &Identity, segment: (u64, u64)) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.len());
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        bytes.extend_from_slice(&[0; 2]);
        bytes.extend_from_slice(&identity.partition.to_le_bytes());
        bytes.extend_from_slice(&identity.store);
        let extant = self.extant.len() as u64;
        let own = [segment.0, segment.1, self.seal, self.sequence, self.clock];
        let numbers = own.into_iter().chain([extant, self.last_expiry]);
        bytes.extend(numbers.flat_map(u64::to_le_bytes));
        bytes.extend(self.extant.iter().flat_map(|id| id.to_le_bytes()));
        bytes
    }

    /// How long the head is that begins so, if it is this segment's (its id and salt).
    fn len_of(bytes: &[u8], identity: &Identity, segment: (u64, u64)) -> Option<u64> {
        let ours = bytes.len() >= HEADER_LEN
            && bytes[..8] == *MAGIC
            && u16_at(bytes, 8) == FORMAT_VERSION
            && u32_at(bytes, 12) == identity.partition
            && bytes[16..32] == identity.store
            && (u64_at(bytes, 32), u64_at(bytes, 40)) == segment;
        let ids = u64_at(bytes.get(..HEADER_LEN)?, 72).checked_mul(8)?;
        ours.then_some(ids.checked_add(HEADER_LEN as u64)?)
    }

    fn decode(bytes: &[u8]) -> Self {
        Self {
            seal: u64_at(bytes, 48),
            sequence: u64_at(bytes, 56),
            clock: u64_at(bytes, 64),
            last_expiry: u64_at(bytes, 80),
            extant: bytes[HEADER_LEN..].chunks_exact(8).map(|id| u64_at(id, 0)).collect(),
        }
    }
}

/// Writes a hint, a piece at a time. It need not be durable: what a crash leaves of it is checked
/// when it is read.
pub(crate) struct HintWriter {
    fd: Fd,
    piece: Vec<u8>,
    offset: u64,
    sum: Hasher,
}

impl HintWriter {
    pub(crate) async fn create(
        identity: &Identity,
        segment: &Segment,
        head: &Head,
    ) -> io::Result<Self> {
        let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_TRUNC;
        let fd = rt::open(None, &path_of(segment), flags, 0o644).await?;
        let piece = head.encode(identity, (segment.id, segment.salt));
        Ok(Self { fd, piece, offset: 0, sum: Hasher::new() })
    }

    pub(crate) async fn push(&mut self, entry: &HintEntry) -> io::Result<()> {
        self.push_encoded(&entry.encode()).await
    }

    pub(crate) async fn push_encoded(&mut self, entry: &[u8; ENTRY_LEN]) -> io::Result<()> {
        self.piece.extend_from_slice(entry);
        if self.piece.len() >= PIECE { self.flush().await } else { Ok(()) }
    }

    async fn flush(&mut self) -> io::Result<()> {
        self.sum.update(&self.piece);
        self.write().await
    }

    async fn write(&mut self) -> io::Result<()> {
        let piece = std::mem::take(&mut self.piece);
        let (result, mut piece) = rt::write_all(&self.fd, piece, self.offset).await;
        self.offset += piece.len() as u64;
        piece.clear();
        self.piece = piece;
        result
    }

    pub(crate) async fn finish(mut self) -> io::Result<()> {
        self.flush().await?;
        self.piece.extend_from_slice(&self.sum.clone().finalize().to_le_bytes());
        self.write().await
    }
}

/// Reads and checks the segment's hint. Tells nothing of one that is not good, whatever is wrong
/// with it; fails if it is not there or cannot be read. Memory: the entries.
pub(crate) async fn read_hint(
    identity: &Identity,
    segment: &Segment,
) -> io::Result<Option<(Head, Vec<HintEntry>)>> {
    let fd = rt::open(None, &path_of(segment), libc::O_RDONLY, 0).await?;
    let Some(end) = rt::stat(&fd).await?.len.checked_sub(4) else { return Ok(None) };
    let first = read(&fd, 0, end.min(HEADER_LEN as u64)).await?;
    let len = Head::len_of(&first, identity, (segment.id, segment.salt));
    let whole = |len: &u64| *len <= end && (end - len).is_multiple_of(ENTRY_LEN as u64);
    let Some(mut offset) = len.filter(whole) else { return Ok(None) };
    let bytes = read(&fd, 0, offset).await?;
    let head = Head::decode(&bytes);
    let mut sum = Hasher::new();
    sum.update(&bytes);
    let mut entries = Vec::new();
    while offset < end {
        let piece = read(&fd, offset, (end - offset).min(PIECE as u64)).await?;
        offset += piece.len() as u64;
        sum.update(&piece);
        for entry in piece.chunks_exact(ENTRY_LEN) {
            let Some(entry) = HintEntry::decode(entry, head.seal) else { return Ok(None) };
            entries.push(entry);
        }
    }
    let written = read(&fd, end, 4).await?;
    Ok((u32_at(&written, 0) == sum.finalize()).then_some((head, entries)))
}

async fn read(fd: &Fd, offset: u64, len: u64) -> io::Result<Vec<u8>> {
    let len = usize::try_from(len).map_err(io::Error::other)?;
    let room = Vec::with_capacity(len).part(..len);
    let (result, room) = rt::read_exact(fd, room, offset).await;
    result.map(|()| room.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rt::{Executor, ExecutorConfig};
    use std::fs;
    use std::path::Path;

    const IDENTITY: Identity = Identity { store: [7; 16], partition: 3 };

    fn entry(n: u8, class: Class) -> HintEntry {
        HintEntry { digest: [n; 16], offset: BLOCK + 64 * u64::from(n), len: 64, class }
    }

    fn on_ring<T>(work: impl Future<Output = T>) -> T {
        Executor::new(ExecutorConfig::default()).unwrap().block_on(work)
    }

    fn write(dir: &Path, head: &Head, entries: &[HintEntry]) {
        let segment = Segment::for_tests(dir, 5, 6);
        on_ring(async {
            let mut hint = HintWriter::create(&IDENTITY, &segment, head).await.unwrap();
            for entry in entries {
                hint.push(entry).await.unwrap();
            }
            hint.finish().await.unwrap();
        });
    }

    async fn read_all(dir: &Path, identity: Identity, salt: u64) -> Option<(Head, Vec<HintEntry>)> {
        read_hint(&identity, &Segment::for_tests(dir, 5, salt)).await.unwrap()
    }

    #[test]
    fn all_entries_are_remembered_or_none() {
        let mut remembered = Remembered::new(3);
        assert_eq!(remembered.take(), Some(Vec::new()));
        (0..3).for_each(|_| remembered.push(&entry(1, Class::Put)));
        assert_eq!(remembered.take().map(|all| all.len()), Some(3));
        (0..5).for_each(|_| remembered.push(&entry(1, Class::Put)));
        assert_eq!(remembered.take(), None);
        assert_eq!(remembered.take(), Some(Vec::new()));
    }

    #[test]
    fn a_hint_reads_back_for_its_own_segment_only() {
        let dir = tempfile::tempdir().unwrap();
        let entries = [entry(1, Class::Put), entry(2, Class::Expiring), entry(3, Class::Tombstone)];
        let head =
            Head { seal: 8192, sequence: 9, clock: 8, last_expiry: 7, extant: vec![1, 2, 4] };
        write(dir.path(), &head, &entries);
        let path = path_of(&Segment::for_tests(dir.path(), 5, 6));
        let bytes = fs::read(&path).unwrap();
        on_ring(async {
            let whole = read_all(dir.path(), IDENTITY, 6).await;
            assert_eq!(whole, Some((head, entries.to_vec())));
            assert_eq!(read_all(dir.path(), IDENTITY, 7).await, None);
            let other = Identity { partition: 4, ..IDENTITY };
            assert_eq!(read_all(dir.path(), other, 6).await, None);
            for bit in 0..bytes.len() * 8 {
                let mut flipped = bytes.clone();
                flipped[bit / 8] ^= 1 << (bit % 8);
                fs::write(&path, &flipped).unwrap();
                assert_eq!(read_all(dir.path(), IDENTITY, 6).await, None, "bit {bit}");
            }
            for len in 0..bytes.len() {
                fs::write(&path, &bytes[..len]).unwrap();
                assert_eq!(read_all(dir.path(), IDENTITY, 6).await, None, "{len} bytes");
            }
        });
    }

    #[test]
    fn a_hint_of_many_pieces_reads_back() {
        let dir = tempfile::tempdir().unwrap();
        let entries = vec![entry(1, Class::Put); 3 * PIECE / ENTRY_LEN + 1];
        let head = Head { seal: 8192, ..Head::default() };
        write(dir.path(), &head, &entries);
        let whole = on_ring(read_all(dir.path(), IDENTITY, 6));
        assert_eq!(whole, Some((head, entries)));
    }

    #[test]
    fn entries_beyond_the_seal_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let head = Head { seal: BLOCK, ..Head::default() };
        write(dir.path(), &head, &[entry(1, Class::Put)]);
        assert_eq!(on_ring(read_all(dir.path(), IDENTITY, 6)), None);
    }
}
