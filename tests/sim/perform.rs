//! What each request does to the simulated disk, and how it fails.

use super::disk::{Errno, Ino, Node};
use super::faults::Fault;
use super::world::{Direct, Job, Open, World};
use ringlog::rt::driver::Request;
use std::ffi::{CStr, OsString};
use std::os::fd::RawFd;

fn path_of(path: *const libc::c_char) -> &'static str {
    // SAFETY: the executor keeps the path until the completion; the use ends before that.
    unsafe { CStr::from_ptr(path) }.to_str().unwrap()
}

fn count(n: u64) -> i32 {
    i32::try_from(n).unwrap()
}

impl World {
    /// Does what a request asks for; its result, or an errno made negative.
    pub fn perform(&mut self, job: &Job) -> i32 {
        if job.cancelled {
            return -libc::ECANCELED;
        }
        self.attempt(job).unwrap_or_else(|errno| -errno)
    }

    /// What becomes of a request whose completion nobody will see.
    pub fn perform_blindly(&mut self, job: &Job) {
        match job.request {
            Request::Write { .. }
            | Request::Allocate { .. }
            | Request::Truncate { .. }
            | Request::Rename { .. }
            | Request::Link { .. }
            | Request::Unlink { .. }
            | Request::MakeDir { .. }
            // A sync that nobody waits for may still have done its work.
            | Request::Fsync { .. } => {
                self.perform(job);
            }
            _ => {}
        }
    }

    fn strikes(&mut self, fault: Fault) -> bool {
        self.faults.strikes(fault, &mut self.rng)
    }

    fn fail_at_random(&mut self, fault: Fault) -> Result<(), Errno> {
        if self.strikes(fault) { Err(libc::EIO) } else { Ok(()) }
    }

    fn file(&self, fd: RawFd, writes: bool) -> Result<Open, Errno> {
        let open = *self.files.get(&fd).ok_or(libc::EBADF)?;
        if writes && open.flags & libc::O_ACCMODE == libc::O_RDONLY {
            return Err(libc::EBADF);
        }
        Ok(open)
    }

    /// Whether it is direct I/O, which must be aligned.
    fn check_direct(&self, open: Open, buf: usize, len: u64, offset: u64) -> Result<bool, Errno> {
        if open.flags & libc::O_DIRECT == 0 {
            return Ok(false);
        }
        let (memory, multiple) = match self.direct {
            Direct::Align { memory, offset } => (memory as usize, u64::from(offset)),
            _ => (512, 512),
        };
        let aligned = buf.is_multiple_of(memory)
            && len.is_multiple_of(multiple)
            && offset.is_multiple_of(multiple);
        if aligned { Ok(true) } else { Err(libc::EINVAL) }
    }

    /// How far a read or write gets.
    fn cut_short(&mut self, fault: Fault, len: u64) -> u64 {
        if len > 1 && self.strikes(fault) { 1 + self.rng.below(len - 1) } else { len }
    }

    fn has_room(&mut self, ino: Ino, len: u64) -> Result<(), Errno> {
        let grows = len.saturating_sub(self.disk.file(ino)?.len);
        if grows == 0 {
            return Ok(());
        }
        let full = self.disk.capacity != u64::MAX && self.disk.used() + grows > self.disk.capacity;
        if full {
            self.faults.note(Fault::NoSpace);
        }
        if full || self.strikes(Fault::NoSpace) { Err(libc::ENOSPC) } else { Ok(()) }
    }

    fn attempt(&mut self, job: &Job) -> Result<i32, Errno> {
        match job.request {
            Request::Timeout { .. } => Err(libc::ETIME),
            Request::Read { fd, buf, len, offset } => self.read(fd, buf, u64::from(len), offset),
            Request::Write { fd, buf, len, offset, flags } => {
                // SAFETY: the executor keeps the memory until the completion.
                let bytes = unsafe { std::slice::from_raw_parts(buf, len as usize) };
                self.write(fd, bytes, offset, flags)
            }
            Request::Fsync { fd, .. } => self.sync(fd, job.at),
            Request::Open { path, flags, .. } => self.open(path_of(path), flags),
            Request::Allocate { fd, offset, len, .. } => {
                let open = self.file(fd, true)?;
                self.has_room(open.ino, offset + len)?;
                self.fail_at_random(Fault::WriteError)?;
                let now = self.tick();
                self.disk.file(open.ino)?.grow(offset + len, now);
                Ok(0)
            }
            Request::Advise { fd, advice } => {
                let open = self.file(fd, false)?;
                if advice == libc::POSIX_FADV_DONTNEED {
                    self.disk.file(open.ino)?.forget_clean();
                }
                Ok(0)
            }
            Request::Truncate { fd, len } => {
                let open = self.file(fd, true)?;
                self.fail_at_random(Fault::WriteError)?;
                let now = self.tick();
                self.disk.file(open.ino)?.truncate(len, now);
                Ok(0)
            }
            Request::Rename { from, to, .. } => {
                self.change_name()?;
                self.disk.rename(path_of(from), path_of(to)).map(|()| 0)
            }
            Request::Link { from, to, .. } => {
                self.change_name()?;
                self.disk.link(path_of(from), path_of(to)).map(|()| 0)
            }
            Request::Unlink { path, .. } => {
                self.change_name()?;
                self.disk.unlink(path_of(path)).map(|()| 0)
            }
            Request::MakeDir { path, .. } => {
                self.change_name()?;
                self.disk.make_dir(path_of(path)).map(|()| 0)
            }
            Request::Stat { fd, out } => self.stat(fd, out),
            Request::List { fd, out } => {
                let open = self.file(fd, false)?;
                self.fail_at_random(Fault::ReadError)?;
                let Node::Dir(dir) = self.disk.node(open.ino) else { return Err(libc::ENOTDIR) };
                let mut names: Vec<OsString> = dir.names.keys().map(OsString::from).collect();
                // In no order.
                let turn = self.rng.index(names.len().max(1));
                names.rotate_left(turn);
                // SAFETY: the executor keeps the memory until the completion.
                unsafe { *out = names };
                Ok(0)
            }
            Request::Nop | Request::Cancel { .. } | Request::CancelFd { .. } => Ok(0),
            _ => Err(libc::EOPNOTSUPP),
        }
    }

    fn tick(&mut self) -> u64 {
        self.mutations += 1;
        self.disk.now += 1;
        self.disk.now
    }

    fn change_name(&mut self) -> Result<(), Errno> {
        self.mutations += 1;
        self.fail_at_random(Fault::NameError)
    }

    fn read(&mut self, fd: RawFd, buf: *mut u8, len: u64, offset: u64) -> Result<i32, Errno> {
        let open = self.file(fd, false)?;
        let direct = self.check_direct(open, buf.addr(), len, offset)?;
        let room = usize::try_from(len).unwrap();
        // SAFETY: the executor keeps the memory until the completion.
        unsafe { buf.write_bytes(0, room) };
        // SAFETY: as above, and it was initialised just now.
        let out = unsafe { std::slice::from_raw_parts_mut(buf, room) };
        if let Node::Random = self.disk.node(open.ino) {
            self.rng.fill(out);
            return Ok(count(len));
        }
        self.fail_at_random(Fault::ReadError)?;
        if self.strikes(Fault::Interrupted) {
            return Err(libc::EINTR);
        }
        let mut len = self.cut_short(Fault::ShortRead, len);
        if direct {
            len = len.next_multiple_of(512);
        }
        let out = &mut out[..usize::try_from(len).unwrap()];
        Ok(count(self.disk.file(open.ino)?.read(offset, out, direct) as u64))
    }

    fn write(&mut self, fd: RawFd, bytes: &[u8], offset: u64, flags: i32) -> Result<i32, Errno> {
        let open = self.file(fd, true)?;
        let direct = self.check_direct(open, bytes.as_ptr().addr(), bytes.len() as u64, offset)?;
        self.has_room(open.ino, offset + bytes.len() as u64)?;
        if self.strikes(Fault::Interrupted) {
            return Err(libc::EINTR);
        }
        let mut ino = open.ino;
        let mut offset = offset;
        let failed = self.fail_at_random(Fault::WriteError);
        if self.strikes(Fault::LostWrite) {
            return Ok(count(bytes.len() as u64));
        }
        if self.strikes(Fault::Misdirected) {
            let files = self.disk.files();
            ino = files[self.rng.index(files.len())].1;
            offset = self.rng.below(offset / 4096 + 2) * 4096;
        }
        let mut len = bytes.len() as u64;
        if failed.is_err() {
            len = self.rng.below(len + 1); // part of it may have happened
        } else {
            len = self.cut_short(Fault::ShortWrite, len);
            if direct {
                len = len.next_multiple_of(512);
            }
        }
        let now = self.tick();
        let content = self.disk.file(ino)?;
        content.write(offset, &bytes[..usize::try_from(len).unwrap()], now);
        failed?;
        if flags & libc::RWF_DSYNC != 0 && !self.lies {
            content.sync_range(offset, len);
        }
        Ok(count(len))
    }

    fn sync(&mut self, fd: RawFd, by: u64) -> Result<i32, Errno> {
        let open = self.file(fd, false)?;
        let failed = self.fail_at_random(Fault::SyncError);
        if failed.is_err() {
            self.dropped = true;
            let mut rng = self.rng.fork();
            self.disk.sync(open.ino, by, Some(&mut rng))?;
        } else if !self.lies {
            self.disk.sync(open.ino, by, None)?;
        }
        failed.map(|()| 0)
    }

    fn open(&mut self, path: &str, flags: i32) -> Result<i32, Errno> {
        if flags & libc::O_DIRECT != 0 && matches!(self.direct, Direct::Unknown) {
            return Err(libc::EINVAL);
        }
        self.fail_at_random(Fault::OpenError)?;
        if self.strikes(Fault::NoFiles) {
            return Err(libc::EMFILE);
        }
        let before = self.disk.now;
        let ino = self.disk.open(path, flags)?;
        self.mutations += u64::from(self.disk.now != before);
        // A real descriptor, which its owner closes.
        // SAFETY: the path is a literal that ends with a zero.
        let fd = unsafe { libc::open(c"/dev/null".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC) };
        assert!(fd >= 0, "this process is out of descriptors");
        self.files.insert(fd, Open { ino, flags });
        Ok(fd)
    }

    fn stat(&mut self, fd: RawFd, out: *mut libc::statx) -> Result<i32, Errno> {
        let open = self.file(fd, false)?;
        self.fail_at_random(Fault::ReadError)?;
        // SAFETY: the executor keeps the memory until the completion.
        let out = unsafe { &mut *out };
        if let Node::File(content) = self.disk.node(open.ino) {
            (out.stx_size, out.stx_blocks) = (content.len, content.len.div_ceil(512));
        }
        out.stx_nlink = self.disk.links(open.ino);
        if let Direct::Align { memory, offset } = self.direct {
            (out.stx_dio_mem_align, out.stx_dio_offset_align) = (memory, offset);
        }
        Ok(0)
    }
}
