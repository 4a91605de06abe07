//! A segment: one file of a partition's log. The first block says whose it is, the groups follow.
//!
//! Invariants: a file has a segment's name only once its header is durable, so a named file whose
//! header does not validate is damage, never a creation that was cut short. Direct I/O is used
//! where the file system reports an alignment for it, buffered I/O elsewhere.

use super::record::{Record, RecordError, u16_at, u32_at, u64_at};
use super::{BLOCK, BLOCK_LEN, Identity};
use crate::error::{Error, Result};
use crate::rt::{self, AlignedBuf, Fd, IoBuf};
use bytes::Bytes;
use std::cell::{Cell, RefCell};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Of segments, hints and superblock: the first. It rises when an earlier release would misread them.
pub(crate) const FORMAT_VERSION: u16 = 1;

/// L for log. Eight bytes, so that what follows is aligned.
const MAGIC: [u8; 8] = *b"ringlogL";
/// As far as the fields go that DESIGN.md lists; the rest of the block is zero.
const HEADER_LEN: usize = 52;

/// How much of a file is given back at a time, and how long the disk is left alone after it. A disk
/// that discards was busy with 1 MiB for about a millisecond, so reads have the most of it meanwhile.
const GIVEN_BACK: u64 = 1 << 20;
const BREATH: Duration = Duration::from_millis(2);

/// How a file is read and written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Access {
    direct: bool,
    /// Reads begin and end at multiples of this.
    align: u64,
}

/// See the module. Used on its owner's thread only.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) id: u64,
    pub(crate) salt: u64,
    path: PathBuf,
    /// Closed and opened again as the bound on open files asks for.
    fd: RefCell<Option<Fd>>,
    access: Cell<Access>,
    /// When it was used last, by the partition's count of uses.
    pub(crate) used: Cell<u64>,
}

/// The first bytes of a segment's or a journal's file.
pub(super) fn encode_header(
    magic: [u8; 8],
    identity: &Identity,
    id: u64,
    salt: u64,
) -> [u8; HEADER_LEN] {
    let mut bytes = [0; HEADER_LEN];
    bytes[..8].copy_from_slice(&magic);
    bytes[8..10].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
    bytes[12..16].copy_from_slice(&identity.partition.to_le_bytes());
    bytes[16..32].copy_from_slice(&identity.store);
    bytes[32..40].copy_from_slice(&id.to_le_bytes());
    bytes[40..48].copy_from_slice(&salt.to_le_bytes());
    let sum = crc32fast::hash(&bytes[..48]);
    bytes[48..].copy_from_slice(&sum.to_le_bytes());
    bytes
}

/// Checks the first block of such a file, and whose it is. Tells the salt in it.
pub(super) fn check_header(
    magic: [u8; 8],
    bytes: &[u8],
    identity: &Identity,
    id: u64,
    path: &Path,
) -> Result<u64> {
    let corrupt = |reason| Error::Corrupt { path: path.to_owned(), offset: 0, reason };
    if bytes.len() < BLOCK_LEN {
        return Err(corrupt("the file is shorter than its header"));
    }
    if bytes[..8] != magic {
        return Err(corrupt("this is not the file of ringlog's that its name says"));
    }
    // First: a later version may have changed what the sum covers.
    let found = u16_at(bytes, 8);
    if found != FORMAT_VERSION {
        let path = path.to_owned();
        return Err(Error::FormatVersion { path, found, supported: FORMAT_VERSION });
    }
    let (written_id, salt) = (u64_at(bytes, 32), u64_at(bytes, 40));
    let written = Identity {
        partition: u32_at(bytes, 12),
        store: bytes[16..32].try_into().expect("sixteen bytes"),
    };
    let header = encode_header(magic, &written, written_id, salt);
    if bytes[..HEADER_LEN] != header || bytes[HEADER_LEN..BLOCK_LEN].iter().any(|&byte| byte != 0) {
        return Err(corrupt("the checksum of the file's header does not match"));
    }
    if written != *identity || written_id != id {
        return Err(corrupt("the file belongs to another store, partition or place"));
    }
    Ok(salt)
}

/// Opens a file for direct I/O if that is to be had. Tells its length.
async fn open_file(path: &Path, flags: i32) -> io::Result<(Fd, Access, u64)> {
    match rt::open(None, path, flags | libc::O_DIRECT, 0o644).await {
        Ok(fd) => {
            let stat = rt::stat(&fd).await?;
            if let Some(direct) = stat.direct
                && u64::from(direct.offset) <= BLOCK
                && direct.memory as usize <= AlignedBuf::ALIGN
            {
                // A read that came short goes on at such a multiple, in the file and in memory.
                let align = u64::from(direct.offset.max(direct.memory));
                return Ok((fd, Access { direct: true, align }, stat.len));
            }
        }
        // Not all file systems know the flag.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
        Err(error) => return Err(error),
    }
    let fd = rt::open(None, path, flags, 0o644).await?;
    let len = rt::stat(&fd).await?.len;
    Ok((fd, Access { direct: false, align: 1 }, len))
}

impl Segment {
    /// Where a segment of a partition's directory lies.
    pub(crate) fn path_in(dir: &Path, id: u64) -> PathBuf {
        dir.join(format!("{id:010}.log"))
    }

    /// Makes a segment with `room` bytes prepared, durably, name and all. The caller has looked
    /// that there is none.
    pub(crate) async fn create(
        dir: &Path,
        identity: &Identity,
        id: u64,
        salt: u64,
        room: u64,
    ) -> Result<Self> {
        let path = Self::path_in(dir, id);
        let draft = path.with_extension("new");
        let made = Self::draft(&draft, identity, id, salt, room).await;
        let (fd, access) = match made {
            Ok(made) => made,
            Err(error) => {
                // On a full disk every block counts. If this fails too, the next opening does it.
                drop(rt::unlink(None, &draft).await);
                return Err(Error::io("create", &draft)(error));
            }
        };
        rt::rename(None, &draft, None, &path).await.map_err(Error::io("rename", &draft))?;
        sync_dir(dir).await?;
        let (fd, access) = (RefCell::new(Some(fd)), Cell::new(access));
        Ok(Self { id, salt, path, fd, access, used: Cell::new(0) })
    }

    async fn draft(
        draft: &Path,
        identity: &Identity,
        id: u64,
        salt: u64,
        room: u64,
    ) -> io::Result<(Fd, Access)> {
        let flags = libc::O_RDWR | libc::O_CREAT | libc::O_TRUNC;
        let (fd, access, _) = open_file(draft, flags).await?;
        allocate(&fd, 0, room).await?;
        let mut block = AlignedBuf::new();
        block.resize(BLOCK_LEN);
        block[..HEADER_LEN].copy_from_slice(&encode_header(MAGIC, identity, id, salt));
        write_blocks(&fd, block, 0, 0).await.0?;
        rt::fsync(&fd, false).await?;
        Ok((fd, access))
    }

    /// Opens a segment that is there, and checks whose it is. Tells the file's length.
    pub(crate) async fn open(dir: &Path, identity: &Identity, id: u64) -> Result<(Self, u64)> {
        let path = Self::path_in(dir, id);
        let opened = open_file(&path, libc::O_RDWR).await;
        let (fd, access, len) = opened.map_err(Error::io("open", &path))?;
        let (fd, access) = (RefCell::new(Some(fd)), Cell::new(access));
        let mut segment = Self { id, salt: 0, path, fd, access, used: Cell::new(0) };
        segment.salt = segment.read_header(identity).await?;
        Ok((segment, len))
    }

    /// Opens any file to be read as segments are. (What a cache has is not on the device, after a
    /// sync that failed.)
    pub(crate) async fn open_to_copy(path: &Path) -> Result<Self> {
        let (fd, access, _) =
            open_file(path, libc::O_RDONLY).await.map_err(Error::io("open", path))?;
        let (fd, access) = (RefCell::new(Some(fd)), Cell::new(access));
        Ok(Self { id: 0, salt: 0, path: path.to_owned(), fd, access, used: Cell::new(0) })
    }

    /// Reads the header, and checks that it is this segment's. Tells the salt in it.
    async fn read_header(&self, identity: &Identity) -> Result<u64> {
        let bytes = self.read(0, BLOCK_LEN).await?;
        check_header(MAGIC, &bytes, identity, self.id, &self.path)
    }

    /// Reads the header once more: it is what it was when the segment was opened or made.
    pub(crate) async fn check_header(&self, identity: &Identity) -> Result<()> {
        if self.read_header(identity).await? != self.salt {
            return Err(self.corrupt(0, "the salt is another than when the file was opened"));
        }
        Ok(())
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn corrupt(&self, offset: u64, reason: &'static str) -> Error {
        Error::Corrupt { path: self.path.clone(), offset, reason }
    }

    /// Whether it has a descriptor now.
    pub(crate) fn is_open(&self) -> bool {
        self.fd.borrow().is_some()
    }

    /// Whether it is written past the page cache.
    pub(crate) fn is_direct(&self) -> bool {
        self.access.get().direct
    }

    /// Lets go of the descriptor. Operations under way keep it until they are done.
    pub(crate) fn close_file(&self) {
        drop(self.fd.take());
    }

    async fn fd(&self) -> io::Result<Fd> {
        if let Some(fd) = &*self.fd.borrow() {
            return Ok(fd.clone());
        }
        let (fd, access, _) = open_file(&self.path, libc::O_RDWR).await?;
        self.access.set(access);
        self.fd.replace(Some(fd.clone()));
        Ok(fd)
    }

    /// Reads `len` bytes, or as many as the file has.
    pub(crate) async fn read(&self, offset: u64, len: usize) -> Result<Bytes> {
        self.try_read(offset, len).await.map_err(Error::io("read", &self.path))
    }

    async fn try_read(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        let (result, buf) = self.read_into(AlignedBuf::new(), offset, len).await;
        let there = result?;
        Ok(Bytes::from(buf).slice(there))
    }

    /// Reads `len` bytes, or as many as the file has, into a buffer. Tells where in it they are.
    async fn read_into(
        &self,
        mut buf: AlignedBuf,
        offset: u64,
        len: usize,
    ) -> (io::Result<Range<usize>>, AlignedBuf) {
        let fd = match self.fd().await {
            Ok(fd) => fd,
            Err(error) => return (Err(error), buf),
        };
        let align = self.access.get().align;
        let start = offset / align * align;
        let skip = usize::try_from(offset - start).expect("less than a block");
        let want = skip + len;
        let room = want.next_multiple_of(usize::try_from(align).expect("at most a block"));
        buf.clear();
        buf.reserve(room);
        let mut done = 0;
        loop {
            let (result, part) = rt::read(&fd, buf.part(done..room), start + done as u64).await;
            buf = part.into_inner();
            let n = match result {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return (Err(error), buf),
                Ok(n) => n,
            };
            // A direct read goes on where a block begins; what it reads twice is the same.
            let next = (done + n) as u64 / align * align;
            let next = usize::try_from(next).expect("within the buffer");
            if done + n >= want {
                buf.truncate(want);
                return (Ok(skip..want), buf);
            }
            if next == done {
                // It came short within a block: because the file ends there?
                match rt::stat(&fd).await {
                    Ok(stat) if start + ((done + n) as u64) < stat.len => continue,
                    Ok(_) => {}
                    Err(error) => return (Err(error), buf),
                }
                buf.truncate(done + n);
                let end = buf.len();
                return (Ok(skip.min(end)..end), buf);
            }
            done = next;
        }
    }

    /// Reads and checks the record at a place. Gives the buffer back, and what `f` makes of it.
    pub(crate) async fn with_record<T>(
        &self,
        buf: AlignedBuf,
        offset: u64,
        len: usize,
        f: impl FnOnce(&Record<'_>) -> T,
    ) -> (Result<T>, AlignedBuf) {
        let (result, buf) = self.read_into(buf, offset, len).await;
        let there = match result {
            Ok(there) => there,
            Err(error) => return (Err(Error::io("read", &self.path)(error)), buf),
        };
        let decoded = self.decode(&buf[there], offset).map(|record| f(&record));
        (decoded, buf)
    }

    /// Checks the record that was read from a place.
    pub(crate) fn decode<'a>(&self, bytes: &'a [u8], offset: u64) -> Result<Record<'a>> {
        Record::decode(bytes, self.salt, offset).map_err(|error| match error {
            RecordError::Short => {
                self.corrupt(offset, "a record is longer than when it was indexed")
            }
            error => self.corrupt(offset, error.reason()),
        })
    }

    /// Writes `buf` at a block's beginning, however short the single writes come, and with `sync`
    /// makes it durable; with `dirty`, what was written before as well. Gives the buffer back.
    pub(crate) async fn write(
        &self,
        buf: AlignedBuf,
        offset: u64,
        sync: bool,
        dirty: bool,
    ) -> (io::Result<()>, AlignedBuf) {
        let fd = match self.fd().await {
            Ok(fd) => fd,
            Err(error) => return (Err(error), buf),
        };
        let in_one = sync && !dirty && self.access.get().direct;
        let flags = if in_one { libc::RWF_DSYNC } else { 0 };
        let (result, buf) = write_blocks(&fd, buf, offset, flags).await;
        if result.is_err() {
            return (result, buf);
        }
        if sync && !in_one {
            return (rt::fsync(&fd, true).await, buf);
        }
        (Ok(()), buf)
    }

    /// Makes all that was written durable. After an error nothing more must be written.
    pub(crate) async fn sync(&self) -> io::Result<()> {
        rt::fsync(&self.fd().await?, true).await
    }

    /// Makes durable what only a cache has, and has the cache forget it: what is read next is what
    /// the device has, also if an earlier sync failed and left what it could not write in the cache.
    pub(crate) async fn settle(&self) -> io::Result<()> {
        self.sync().await?;
        if self.access.get().direct {
            return Ok(());
        }
        rt::advise(&self.fd().await?, libc::POSIX_FADV_DONTNEED).await
    }

    /// Bytes that the file system has free.
    pub(crate) async fn free_space(&self) -> io::Result<u64> {
        Ok(rt::free_space(&self.fd().await?).await?.free)
    }

    /// Makes room from `from` to `to`, so that writing there cannot meet a full disk.
    pub(crate) async fn prepare(&self, from: u64, to: u64) -> io::Result<()> {
        allocate(&self.fd().await?, from, to - from).await
    }

    /// Opens the file, so that it still has its blocks when it has no name any more.
    pub(crate) async fn keep_blocks(&self) -> io::Result<()> {
        self.fd().await.map(drop)
    }

    /// Gives back the blocks of a file that was unlinked, durably, a piece at a time: all at once
    /// hold up a disk that discards them for tens of milliseconds. (A file that has lost its end and
    /// still has its name could be taken for a log that goes on nowhere.) Does nothing if it was not
    /// kept open, or has another name, in a backup.
    pub(crate) async fn give_back(&self) -> io::Result<()> {
        let Some(fd) = self.fd.borrow().clone() else { return Ok(()) };
        let stat = rt::stat(&fd).await?;
        let mut len = stat.len;
        while stat.links == 0 && len > GIVEN_BACK {
            len -= GIVEN_BACK;
            rt::truncate(&fd, len).await?;
            rt::timeout(BREATH).await?;
        }
        Ok(())
    }

    /// Gives back what was prepared from `len` on, where the kernel's rings can (6.9 and later).
    pub(crate) async fn trim(&self, len: u64) -> Result<()> {
        let fd = self.fd().await.map_err(Error::io("open", &self.path))?;
        match rt::truncate(&fd, len).await {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
            result => result.map_err(Error::io("truncate", &self.path)),
        }
    }
}

/// Writes from a block's beginning on, however short the single writes come: each goes on where a
/// block begins, as direct I/O wants it. What is written twice is the same.
async fn write_blocks(
    fd: &Fd,
    mut buf: AlignedBuf,
    offset: u64,
    flags: i32,
) -> (io::Result<()>, AlignedBuf) {
    let len = buf.len();
    let (mut done, mut in_vain) = (0, 0);
    while done < len {
        let write = rt::write_with(fd, buf.part(done..len), offset + done as u64, flags);
        let (result, part) = write.await;
        buf = part.into_inner();
        let n = match result {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return (Err(error), buf),
            Ok(n) => n,
        };
        let next = if done + n == len { len } else { (done + n) / BLOCK_LEN * BLOCK_LEN };
        in_vain = if next == done { in_vain + 1 } else { 0 };
        if n == 0 || in_vain > 8 {
            return (Err(io::ErrorKind::WriteZero.into()), buf);
        }
        done = next;
    }
    (Ok(()), buf)
}

/// `fallocate`, or writing zeroes where a file system has no such thing.
async fn allocate(fd: &Fd, from: u64, len: u64) -> io::Result<()> {
    match rt::allocate(fd, 0, from, len).await {
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {}
        result => return result,
    }
    let mut at = from;
    while at < from + len {
        let chunk = (from + len - at).min(super::CHUNK as u64);
        let mut zeroes = AlignedBuf::new();
        zeroes.resize(usize::try_from(chunk).expect("at most a chunk"));
        write_blocks(fd, zeroes, at, 0).await.0?;
        at += chunk;
    }
    Ok(())
}

/// Makes the names in a directory durable.
pub(crate) async fn sync_dir(dir: &Path) -> Result<()> {
    let fd = rt::open(None, dir, libc::O_RDONLY | libc::O_DIRECTORY, 0).await;
    rt::fsync(&fd.map_err(Error::io("open", dir))?, false).await.map_err(Error::io("sync", dir))
}

#[cfg(test)]
impl Segment {
    pub(crate) fn for_tests(dir: &Path, id: u64, salt: u64) -> Self {
        let (fd, access) = (RefCell::default(), Cell::new(Access { direct: false, align: 1 }));
        Self { id, salt, path: Self::path_in(dir, id), fd, access, used: Cell::new(0) }
    }
}
