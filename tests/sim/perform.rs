//! What each request does to the simulated disk, and how it fails.

use super::branches::{Branch, Deed};
use super::disk::{Errno, Ino, Node};
use super::faults::{Fault, Faults};
use super::life::DIR;
use super::order::{Record, SEAL, records};
use super::world::{Direct, Job, Open, World};
use super::wounds::Wound;
use ringlog::rt::FsSpace;
use ringlog::rt::driver::Request;
use std::ffi::{CStr, OsString};
use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};

thread_local! {
    static NOTHING: File = File::open("/dev/null").unwrap();
}

fn path_of(path: *const libc::c_char) -> &'static str {
    // SAFETY: the executor keeps the path until the completion; the use ends before that.
    unsafe { CStr::from_ptr(path) }.to_str().unwrap()
}

pub fn is_segment(path: &str) -> bool {
    path.rsplit_once('.').is_some_and(|(_, ending)| ending == "log")
}

/// The partition of the store that a file is in.
pub fn partition_of_path(path: &str) -> Option<usize> {
    let (partition, _) = path.strip_prefix(DIR)?.strip_prefix("/p")?.split_once('/')?;
    partition.parse().ok()
}

fn count(n: u64) -> i32 {
    i32::try_from(n).unwrap()
}

/// What whoever asked for a change hears of it.
type Told = Result<(), Errno>;

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
            // It was not done, so it is not durable: a crash may tear it.
            Request::Write { fd, buf, len, offset, .. } if !self.rng.one_in(4) => {
                let request = Request::Write { fd, buf, len, offset, flags: 0 };
                self.perform(&Job { request, ..*job });
            }
            // And it may have been stopped on its way.
            Request::Write { fd, buf, len, offset, .. } => {
                // SAFETY: the executor keeps the memory until the completion.
                let bytes = unsafe { std::slice::from_raw_parts(buf, len as usize) };
                let result = self.write_part(fd, bytes, offset);
                self.note_group(fd, bytes, offset, result);
            }
            Request::Allocate { .. }
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
        let strikes = self.faults.strikes(fault, &mut self.rng);
        self.errors += u64::from(strikes && !Faults::is_harmless(fault));
        strikes
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
            self.errors += 1;
        }
        if full || self.strikes(Fault::NoSpace) { Err(self.no_space()) } else { Ok(()) }
    }

    /// There is no room: on the disk, or by a quota.
    fn no_space(&mut self) -> Errno {
        (self.short, self.denied) = (true, true);
        if self.aside.one_in(4) { libc::EDQUOT } else { libc::ENOSPC }
    }

    fn attempt(&mut self, job: &Job) -> Result<i32, Errno> {
        match job.request {
            Request::Timeout { .. } => Err(libc::ETIME),
            Request::Read { fd, buf, len, offset } => self.read(fd, buf, u64::from(len), offset),
            Request::Write { fd, buf, len, offset, flags } => {
                // SAFETY: the executor keeps the memory until the completion.
                let bytes = unsafe { std::slice::from_raw_parts(buf, len as usize) };
                let result = self.write(fd, bytes, offset, flags);
                self.note_group(fd, bytes, offset, result);
                result
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
                if open.partition.is_some() {
                    self.note_cut(open.ino, len);
                }
                let now = self.tick();
                self.disk.file(open.ino)?.truncate(len, now);
                Ok(0)
            }
            Request::Rename { from, to, .. } => {
                let told = self.change_name()?;
                self.has_room_for_name()?;
                let torn = self.disk.find(path_of(to)).is_ok();
                self.disk.rename(path_of(from), path_of(to))?;
                self.see_in(path_of(to), "log", Deed::Name { torn });
                self.answer(told)
            }
            Request::Link { from, to, .. } => {
                if let Some(errno) = self.no_links {
                    self.disk.find(path_of(from))?;
                    self.faults.note(Fault::NoLink);
                    return Err(errno);
                }
                let told = self.change_name()?;
                self.has_room_for_name()?;
                self.disk.link(path_of(from), path_of(to))?;
                self.answer(told)
            }
            Request::Unlink { path, .. } => {
                let told = self.change_name()?;
                self.disk.unlink(path_of(path))?;
                self.see_in(path_of(path), "log", Deed::Remove);
                self.answer(told)
            }
            Request::MakeDir { path, .. } => {
                let told = self.change_name()?;
                self.has_room_for_name()?;
                self.disk.make_dir(path_of(path))?;
                self.answer(told)
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
            Request::Space { out, .. } => {
                let total = self.disk.capacity;
                self.short |= total != u64::MAX;
                let free = total.saturating_sub(self.disk.used());
                // SAFETY: the executor keeps the memory until the completion.
                unsafe { *out = FsSpace { total, free } };
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

    /// Whether names change, and what is told of that.
    fn change_name(&mut self) -> Result<Told, Errno> {
        self.mutations += 1;
        self.may_change(Fault::NameError)
    }

    /// Half of the changes that are told to have failed have happened.
    fn may_change(&mut self, fault: Fault) -> Result<Told, Errno> {
        let told = self.fail_at_random(fault);
        if told.is_err() && self.aside.one_in(2) { Err(libc::EIO) } else { Ok(told) }
    }

    /// Names have changed.
    fn answer(&mut self, told: Told) -> Result<i32, Errno> {
        if told.is_err() {
            self.faults.note(Fault::Untold);
        }
        told.map(|()| 0)
    }

    /// A new name may need room too: a block for its directory, or an inode. A disk that has no
    /// room for a segment has none for these now and then.
    fn has_room_for_name(&mut self) -> Result<(), Errno> {
        let capacity = self.disk.capacity;
        let full = capacity != u64::MAX && self.disk.used() + (64 << 10) > capacity;
        if full && self.faults.on && self.rng.one_in(4) {
            self.faults.note(Fault::NoSpace);
            self.errors += 1;
            return Err(self.no_space());
        }
        if self.strikes(Fault::NoSpace) { Err(self.no_space()) } else { Ok(()) }
    }

    fn read(&mut self, fd: RawFd, buf: *mut u8, len: u64, offset: u64) -> Result<i32, Errno> {
        let open = self.file(fd, false)?;
        let direct = self.check_direct(open, buf.addr(), len, offset)?;
        if let Node::Random = self.disk.node(open.ino) {
            let mut random = vec![0; usize::try_from(len).unwrap()];
            self.rng.fill(&mut random);
            // SAFETY: the executor keeps the memory until the completion, and it has that room.
            unsafe { buf.copy_from_nonoverlapping(random.as_ptr(), random.len()) };
            return Ok(count(len));
        }
        self.fail_at_random(Fault::ReadError)?;
        if self.scans_fail && offset == 4096 && open.segment_in.is_some() {
            self.faults.note(Fault::ReadError);
            self.errors += 1;
            return Err(libc::EIO);
        }
        if self.strikes(Fault::Interrupted) {
            return Err(libc::EINTR);
        }
        let mut len = self.cut_short(Fault::ShortRead, len);
        if direct {
            len = len.next_multiple_of(512);
        }
        let read = self.disk.file(open.ino)?.read(offset, len, direct, |at, piece| {
            // SAFETY: a piece lies within the room that was asked to be filled.
            let to = unsafe { buf.add(at) };
            // SAFETY: as above; the executor keeps the memory until the completion.
            unsafe { to.copy_from_nonoverlapping(piece.as_ptr(), piece.len()) };
        });
        Ok(count(read))
    }

    /// Something is done to a path that ends so.
    fn see_in(&mut self, path: &str, kind: &str, deed: Deed) {
        if path.rsplit_once('.').is_some_and(|(_, ending)| ending == kind)
            && let Ok((dir, _)) = self.disk.parent(path)
        {
            self.see(dir, deed);
        }
    }

    fn write(&mut self, fd: RawFd, bytes: &[u8], offset: u64, flags: i32) -> Result<i32, Errno> {
        let open = self.file(fd, true)?;
        let direct = self.check_direct(open, bytes.as_ptr().addr(), bytes.len() as u64, offset)?;
        self.has_room(open.ino, offset + bytes.len() as u64)?;
        if self.strikes(Fault::Interrupted) {
            return Err(libc::EINTR);
        }
        let failed = self.fail_at_random(Fault::WriteError);
        if self.strikes(Fault::LostWrite) {
            return self.lose(open.ino, offset, bytes);
        }
        if self.strikes(Fault::Misdirected) {
            let files = self.disk.files();
            let other = files[self.rng.index(files.len())].1;
            let elsewhere = self.rng.below(offset / 4096 + 2) * 4096;
            self.lose(open.ino, offset, bytes)?;
            self.wounds.extend(Wound::over(self.disk.file(other)?, other, elsewhere, bytes));
            self.disk.file(other)?.write_through(elsewhere, bytes);
            return Ok(count(bytes.len() as u64));
        }
        let mut len = bytes.len() as u64;
        if failed.is_err() {
            len = self.rng.below(len + 1); // part of it may have happened
        } else {
            // A device that never takes a whole block is broken, and not what is tried here.
            let in_a_row = self.short_writes.remove(&(open.ino, offset)).unwrap_or(0);
            let cut = self.cut_short(Fault::ShortWrite, len);
            if cut < len && in_a_row < 8 {
                self.short_writes.insert((open.ino, offset), in_a_row + 1);
                len = cut;
            }
            if direct {
                len = len.next_multiple_of(512);
            }
        }
        let (now, moment) = (self.tick(), self.moment.get());
        let there = &bytes[..usize::try_from(len).unwrap()];
        self.wounds.retain_mut(|wound| !wound.heal(open.ino, offset, len));
        let at_once = failed.is_ok() && flags & libc::RWF_DSYNC != 0 && !self.lies;
        let unsynced = at_once && self.strikes(Fault::SyncError);
        let content = self.disk.file(open.ino)?;
        content.written.push((offset, offset + len, moment));
        if at_once && !unsynced {
            content.write_through(offset, there);
        } else {
            content.write(offset, there, now);
        }
        if unsynced {
            content.fail_to_harden(offset, offset + len, &mut self.rng);
            return Err(libc::EIO);
        }
        if let Some(dir) = open.segment_in
            && offset > 4096
        {
            self.see(dir, Deed::Write { first: false });
        }
        failed?;
        Ok(count(len))
    }

    /// A write without a request: what it has written survives a kill, and may survive a power cut.
    /// After the end of a life nothing is written.
    pub fn write_now(&mut self, fd: RawFd, bytes: &[u8], offset: u64) -> Result<usize, Errno> {
        let open = self.file(fd, true)?;
        let mut fails = || !self.sound_journals && self.aside.one_in(100);
        if self.ended.is_some() || self.no_journals || fails() {
            return Err(self.aside.pick(&[libc::EIO, libc::ENOSPC]));
        }
        let len = if fails() { self.aside.index(bytes.len()) } else { bytes.len() };
        let (now, moment) = (self.tick(), self.moment.get());
        let content = self.disk.file(open.ino)?;
        content.written.push((offset, offset + len as u64, moment));
        content.write(offset, &bytes[..len], now);
        self.wounds.retain_mut(|wound| !wound.heal(open.ino, offset, len as u64));
        let salt = self.disk.file(open.ino)?.bytes(40, 8);
        let path = self.disk.files().into_iter().find(|(_, ino)| *ino == open.ino);
        let Some(partition) = path.and_then(|(path, _)| partition_of_path(&path)) else {
            return Ok(len);
        };
        for record in records(&salt, bytes, offset).filter(|_| len == bytes.len()) {
            self.order.note_promise(partition, open.ino, &record, moment);
            self.watch.meet(Branch::Promised);
        }
        if self.hunts_promises && self.aside.one_in(16) {
            self.end_within(60);
        }
        Ok(len)
    }

    /// The first part of a write is done, and nothing more.
    fn write_part(&mut self, fd: RawFd, bytes: &[u8], offset: u64) -> Result<i32, Errno> {
        let open = self.file(fd, true)?;
        let direct = self.check_direct(open, bytes.as_ptr().addr(), bytes.len() as u64, offset)?;
        let len = self.rng.below(bytes.len() as u64 + 1);
        let len = if direct { len / 512 * 512 } else { len };
        self.has_room(open.ino, offset + len)?;
        let (now, moment) = (self.tick(), self.moment.get());
        self.wounds.retain_mut(|wound| !wound.heal(open.ino, offset, len));
        let content = self.disk.file(open.ino)?;
        content.written.push((offset, offset + len, moment));
        content.write(offset, &bytes[..usize::try_from(len).unwrap()], now);
        Ok(count(len))
    }

    /// What was written may be a group of a partition.
    fn note_group(&mut self, fd: RawFd, bytes: &[u8], offset: u64, result: Result<i32, Errno>) {
        let Some(&Open { ino, partition: Some(partition), segment_in, .. }) = self.files.get(&fd)
        else {
            return;
        };
        let Node::File(content) = self.disk.node(ino) else { return };
        if result == Err(libc::EINTR) {
            return;
        }
        let salt = self.order.salt(ino, (offset, bytes), content);
        let group: Vec<_> = records(&salt, bytes, offset).collect();
        let (at, written) =
            (self.moment.get(), result.ok().map(|n| offset + u64::from(n.unsigned_abs())));
        self.order.note_group(partition, ino, (offset, &group), at, written);
        if !self.denied && group.iter().any(Record::names_none) {
            self.order.broken = Some("a seal names nothing to go on, without a reason".to_owned());
        }
        if let (Ok(_), Some(dir)) = (result, segment_in) {
            for record in &group {
                self.watch.see_record(dir, record);
            }
        }
    }

    /// A log that has its name, or may have it again, ends with its seal at the least: without it
    /// nothing would say that another goes on.
    fn note_cut(&mut self, ino: Ino, len: u64) {
        let Node::File(content) = self.disk.node(ino) else { return };
        if !self.wounds.is_empty() || !self.disk.may_have_a_name(ino) || len >= content.len {
            return;
        }
        let salt = self.order.salt(ino, (len, &[]), content);
        let last = len.saturating_sub(4096);
        let block = content.bytes(last, 4096);
        if !records(&salt, &block, last).any(|record| record.kind == SEAL) {
            self.order.broken = Some(format!("a log that has a name is cut at {len}"));
        }
    }

    /// The disk says that it has written that.
    fn lose(&mut self, ino: Ino, offset: u64, bytes: &[u8]) -> Result<i32, Errno> {
        let (now, moment) = (self.tick(), self.moment.get());
        let content = self.disk.file(ino)?;
        content.grow(offset + bytes.len() as u64, now);
        if let Some(wound) = Wound::lost(content, ino, offset, bytes, moment) {
            // The next group of that block may heal it. What it healed is as old as what was lost.
            content.written.push((wound.from, wound.to, moment));
            self.wounds.push(wound);
        }
        if self.brief {
            self.end_within(30);
        }
        Ok(count(bytes.len() as u64))
    }

    fn sync(&mut self, fd: RawFd, by: u64) -> Result<i32, Errno> {
        let open = self.file(fd, false)?;
        let failed = self.fail_at_random(Fault::SyncError);
        if failed.is_err() {
            if let Node::File(content) = self.disk.node(open.ino) {
                self.dropped.insert(open.partition);
                if let Some(partition) = open.partition {
                    self.order.note_failed_sync(partition, open.ino, content);
                }
            }
            let mut rng = self.rng.fork();
            self.disk.sync(open.ino, by, Some(&mut rng))?;
        } else if !self.lies {
            self.disk.sync(open.ino, by, None)?;
            if let Node::Dir(_) = self.disk.node(open.ino) {
                self.see(open.ino, Deed::Sync);
            }
        }
        failed.map(|()| 0)
    }

    fn open(&mut self, path: &str, flags: i32) -> Result<i32, Errno> {
        if flags & libc::O_DIRECT != 0 && matches!(self.direct, Direct::Unknown) {
            return Err(libc::EINVAL);
        }
        let told = match flags & libc::O_CREAT {
            0 => self.fail_at_random(Fault::OpenError).map(Ok)?,
            _ => self.may_change(Fault::OpenError)?,
        };
        if self.strikes(Fault::NoFiles) {
            (self.short, self.denied) = (true, true);
            // This process has no more descriptors, or the system has none.
            return Err(if self.aside.one_in(4) { libc::ENFILE } else { libc::EMFILE });
        }
        if flags & libc::O_CREAT != 0 && self.disk.find(path).is_err() {
            self.has_room_for_name()?;
        }
        let before = self.disk.now;
        let opened = self.disk.open(path, flags);
        self.missed += u64::from(opened == Err(libc::ENOENT) && is_segment(path));
        let ino = opened?;
        self.mutations += u64::from(self.disk.now != before);
        let draft = path.strip_suffix(".new").filter(|_| self.disk.now != before);
        if let Some(draft) = draft {
            let torn = self.disk.find(&format!("{draft}.log")).is_ok();
            self.see_in(path, "new", Deed::Draft { torn });
        }
        self.answer(told)?;
        let is_segment =
            path.rsplit_once('.').is_some_and(|(_, ending)| ["log", "new"].contains(&ending));
        let segment_in = is_segment.then(|| self.disk.parent(path).map(|(dir, _)| dir).unwrap());
        // A real descriptor, which its owner closes.
        let fd = NOTHING.with(|nothing| {
            // SAFETY: it copies a descriptor.
            unsafe { libc::fcntl(nothing.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 3) }
        });
        assert!(fd >= 0, "this process is out of descriptors");
        let partition = if is_segment { partition_of_path(path) } else { None };
        self.files.insert(fd, Open { ino, flags, segment_in, partition });
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
