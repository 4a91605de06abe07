//! The bare ring: the I/O that a log cannot do without, and nothing else. The bound.
//!
//! Puts that are there together are one direct write, padded to whole blocks, into space that was
//! written before; if they are to be durable it carries `RWF_DSYNC`, and one is in flight at a time.
//! Gets are direct reads of the record's sectors. No index, no checksum, no merge, and no second
//! thread: where a record is follows from its number. Puts go to a file of their own, over and over,
//! and so are never read.

use std::fs::{File, OpenOptions};
use std::mem::ManuallyDrop;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use anyhow::{Context, Result, ensure};
use io_uring::{IoUring, opcode, types};
use nix::fcntl::OFlag;

use crate::caller::{Caller, Op};
use crate::data::{KEY, Random};
use crate::store::{Setup, Store, entry};

/// What a direct write is padded to.
const BLOCK: usize = 4096;

/// What a direct read is padded to.
const SECTOR: usize = 512;

/// Bytes of one access when loading and scanning.
const CHUNK: usize = 1 << 20;

/// Chunks in flight then.
const DEPTH: u64 = 4;

/// Bytes of the file that puts go to.
const LOG: u64 = 16 << 20;

/// `RWF_DSYNC` of `linux/fs.h`.
const RWF_DSYNC: i32 = 2;

/// The completion of a group carries this, that of a read its caller's index.
const GROUP: u64 = u64::MAX;

pub(super) struct Raw {
    setup: Setup,
    data: File,
    log: File,
}

impl Raw {
    pub(super) fn open(setup: &Setup) -> Result<Self> {
        let open = |name| {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(false);
            options.custom_flags(OFlag::O_DIRECT.bits()).open(setup.dir.join(name))
        };
        let (data, log) = (open("data")?, open("log")?);
        if log.metadata()?.len() < LOG {
            let zeroes = Aligned::new(CHUNK);
            for at in (0..LOG).step_by(CHUNK) {
                log.write_all_at(zeroes.get(), at)?;
            }
            log.sync_all()?;
        }
        let raw = Self { setup: setup.clone(), data, log };
        // To open a log is to have read it.
        raw.scan(&mut |_, _| ())?;
        Ok(raw)
    }

    fn record(&self) -> usize {
        KEY + self.setup.value
    }
}

impl Store for Raw {
    fn load(&self, ids: Range<u64>) -> Result<()> {
        ensure!(ids.start == 0, "the bare ring loads once");
        let (mut random, mut next) = (Random::new(0), ids.start);
        let mut rest = Vec::new();
        stream(
            u64::MAX,
            |at, chunk| {
                while rest.len() < CHUNK && next < ids.end {
                    let (key, value) = entry(next, self.setup.value, &mut random);
                    rest.extend_from_slice(&key);
                    rest.extend_from_slice(&value);
                    next += 1;
                }
                let len = rest.len().min(CHUNK);
                chunk.get_mut()[..len].copy_from_slice(&rest[..len]);
                rest.drain(..len);
                let padded = u32::try_from(len.next_multiple_of(BLOCK))?;
                let fd = types::Fd(self.data.as_raw_fd());
                let write = opcode::Write::new(fd, chunk.get().as_ptr(), padded);
                Ok((len > 0).then(|| write.offset(at * CHUNK as u64).build()))
            },
            |_, _| (),
        )
    }

    fn drive(&self, callers: Vec<Caller>) -> Result<Vec<Caller>> {
        let mut run = Run::new(self, callers)?;
        while run.turn()? {}
        Ok(ManuallyDrop::into_inner(run.callers))
    }

    fn sync(&self) -> Result<()> {
        Ok(self.data.sync_all()?)
    }

    fn scan(&self, see: &mut dyn FnMut(&[u8], &[u8])) -> Result<()> {
        let chunks = self.data.metadata()?.len().div_ceil(CHUNK as u64);
        let record = self.record();
        let fd = types::Fd(self.data.as_raw_fd());
        let read = |at: u64, chunk: &mut Aligned| {
            let read = opcode::Read::new(fd, chunk.get_mut().as_mut_ptr(), u32::try_from(CHUNK)?);
            Ok(Some(read.offset(at * CHUNK as u64).build()))
        };
        // Chunks come in no order, and records lie across them: only those within one are shown.
        stream(chunks, read, |at, bytes| {
            let first = (at * CHUNK as u64).next_multiple_of(record as u64) - at * CHUNK as u64;
            let first = usize::try_from(first).unwrap_or(CHUNK).min(bytes.len());
            for record in bytes[first..].chunks_exact(record) {
                see(&record[..KEY], &record[KEY..]);
            }
        })
    }

    fn close(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}

fn ring(entries: usize) -> Result<IoUring> {
    let mut builder = IoUring::builder();
    builder.setup_single_issuer().setup_defer_taskrun();
    builder.build(u32::try_from(entries.next_power_of_two())?).context("no ring")
}

/// Runs operations on `count` chunks, or until there are no more, some of them in flight.
fn stream(
    count: u64,
    mut make: impl FnMut(u64, &mut Aligned) -> Result<Option<io_uring::squeue::Entry>>,
    mut done: impl FnMut(u64, &[u8]),
) -> Result<()> {
    let mut ring = ring(8)?;
    // Never dropped: the kernel may still use them when this fails.
    let mut chunks: ManuallyDrop<Vec<Aligned>> =
        ManuallyDrop::new((0..DEPTH).map(|_| Aligned::new(CHUNK)).collect());
    let mut free: Vec<u64> = (0..DEPTH).collect();
    let (mut next, mut ended) = (0, count == 0);
    loop {
        while !ended && let Some(index) = free.pop() {
            let Some(entry) = make(next, &mut chunks[usize::try_from(index)?])? else {
                ended = true;
                free.push(index);
                break;
            };
            let entry = entry.user_data(next * DEPTH + index);
            // SAFETY: a chunk that is not free is not touched, and the files outlive the ring.
            unsafe { ring.submission().push(&entry)? };
            next += 1;
            ended = next == count;
        }
        if ended && free.len() as u64 == DEPTH {
            drop(ManuallyDrop::into_inner(chunks));
            return Ok(());
        }
        ring.submit_and_wait(1)?;
        for completion in ring.completion() {
            let (at, index) = (completion.user_data() / DEPTH, completion.user_data() % DEPTH);
            let len = length(completion.result())?;
            done(at, &chunks[usize::try_from(index)?].get()[..len]);
            free.push(index);
        }
    }
}

/// A run of callers.
struct Run<'a> {
    raw: &'a Raw,
    ring: IoUring,
    callers: ManuallyDrop<Vec<Caller>>,
    /// A buffer for each caller's read.
    reads: ManuallyDrop<Vec<Aligned>>,
    idle: Vec<usize>,
    gathering: Group,
    writing: ManuallyDrop<Group>,
    is_writing: bool,
    reading: usize,
    log_at: u64,
}

struct Group {
    bytes: Aligned,
    len: usize,
    writers: Vec<usize>,
}

impl<'a> Run<'a> {
    fn new(raw: &'a Raw, callers: Vec<Caller>) -> Result<Self> {
        let count = callers.len();
        let group = || Group {
            bytes: Aligned::new((count * raw.record()).next_multiple_of(BLOCK)),
            len: 0,
            writers: Vec::new(),
        };
        let read = raw.record().next_multiple_of(SECTOR) + SECTOR;
        let reads = (0..count).map(|_| Aligned::new(read)).collect();
        Ok(Self {
            raw,
            ring: ring(count + 1)?,
            callers: ManuallyDrop::new(callers),
            reads: ManuallyDrop::new(reads),
            idle: (0..count).collect(),
            gathering: group(),
            writing: ManuallyDrop::new(group()),
            is_writing: false,
            reading: 0,
            log_at: 0,
        })
    }

    /// Asks idle callers, submits, and takes in completions. False when all is done.
    fn turn(&mut self) -> Result<bool> {
        while let Some(index) = self.idle.pop() {
            match self.callers[index].next() {
                Some(Op::Get) => self.read(index)?,
                Some(Op::Put) => {
                    let (caller, group) = (&self.callers[index], &mut self.gathering);
                    let record = &mut group.bytes.get_mut()[group.len..][..self.raw.record()];
                    record[..KEY].copy_from_slice(&caller.key);
                    record[KEY..].copy_from_slice(&caller.value);
                    group.len += record.len();
                    group.writers.push(index);
                }
                None => {}
            }
        }
        if !self.is_writing && !self.gathering.writers.is_empty() {
            self.write()?;
        }
        if !self.is_writing && self.reading == 0 {
            return Ok(false);
        }
        self.ring.submit_and_wait(1)?;
        while let Some(completion) = self.ring.completion().next() {
            let len = length(completion.result())?;
            if completion.user_data() == GROUP {
                ensure!(len >= self.writing.len, "a short write");
                self.is_writing = false;
                self.writing.len = 0;
                for index in std::mem::take(&mut self.writing.writers) {
                    self.callers[index].done();
                    self.idle.push(index);
                }
            } else {
                let index = usize::try_from(completion.user_data())?;
                let caller = &mut self.callers[index];
                let at = usize::try_from(caller.id * self.raw.record() as u64 % SECTOR as u64)?;
                let record = self.reads[index].get()[..len].get(at..at + self.raw.record());
                let found = record.filter(|record| record[..KEY] == caller.key);
                caller.check(found.map(|record| &record[KEY..]))?;
                caller.done();
                self.reading -= 1;
                self.idle.push(index);
            }
        }
        Ok(true)
    }

    fn write(&mut self) -> Result<()> {
        std::mem::swap(&mut self.gathering, &mut self.writing);
        let len = self.writing.len.next_multiple_of(BLOCK);
        if self.log_at + len as u64 > LOG {
            self.log_at = 0;
        }
        let fd = types::Fd(self.raw.log.as_raw_fd());
        let write = opcode::Write::new(fd, self.writing.bytes.get().as_ptr(), u32::try_from(len)?);
        let flags = if self.raw.setup.durable { RWF_DSYNC } else { 0 };
        let entry = write.offset(self.log_at).rw_flags(flags).build().user_data(GROUP);
        self.log_at += len as u64;
        self.is_writing = true;
        // SAFETY: what is being written is not touched until its completion, nor ever dropped.
        unsafe { self.ring.submission().push(&entry)? };
        Ok(())
    }

    fn read(&mut self, index: usize) -> Result<()> {
        let at = self.callers[index].id * self.raw.record() as u64;
        let start = at / SECTOR as u64 * SECTOR as u64;
        let len = usize::try_from(at - start)? + self.raw.record();
        let len = u32::try_from(len.next_multiple_of(SECTOR))?;
        let fd = types::Fd(self.raw.data.as_raw_fd());
        let read = opcode::Read::new(fd, self.reads[index].get_mut().as_mut_ptr(), len);
        let entry = read.offset(start).build().user_data(index as u64);
        self.reading += 1;
        // SAFETY: a caller has one operation in flight, so its buffer is not touched until then.
        unsafe { self.ring.submission().push(&entry)? };
        Ok(())
    }
}

fn length(result: i32) -> Result<usize> {
    usize::try_from(result).map_err(|_| std::io::Error::from_raw_os_error(-result).into())
}

/// Bytes that begin on a block's boundary.
struct Aligned {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl Aligned {
    fn new(len: usize) -> Self {
        let bytes = vec![0; len + BLOCK];
        let start = bytes.as_ptr().align_offset(BLOCK);
        Self { bytes, start, len }
    }

    fn get(&self) -> &[u8] {
        &self.bytes[self.start..][..self.len]
    }

    fn get_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..][..self.len]
    }
}
