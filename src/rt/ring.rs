//! The driver that is a ring: requests become submission entries, completions come back.
//!
//! One `io_uring_enter` both submits and reaps. Invariants: (1) a request that found the queue full
//! waits in `backlog`, first in first out, so none is lost and order is kept; (2) an error of
//! `enter` says nothing about any request: an entry in the queue belongs to the kernel, and its
//! completion will come; (3) completions that found their queue full wait in the kernel
//! (`IORING_FEAT_NODROP`), and every reap asks for them; (4) a bell that was heard ends the wait of
//! its `enter`, wherever in it that was; (5) what no ring performs takes its place in the queue as a
//! nop, and is performed when that completes: so all that was pushed before has started.

#![expect(unsafe_code, reason = "talks to the kernel")]

use super::blocking;
use super::config::{ExecutorConfig, SetupError};
use super::driver::{Completion, Driver, Request, Unpark};
use io_uring::squeue::Entry;
use io_uring::types::{self, CancelBuilder, Fd, FsyncFlags};
use io_uring::{EnterFlags, IoUring, cqueue, opcode};
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::Instant;

/// The poll of the eventfd. `Slab` gives out neither this key nor `Key::NONE`.
const WAKE_TOKEN: u64 = u64::MAX - 1;

/// The bell of a ring: other threads ring it by writing to an eventfd that the ring polls.
struct Bell(OwnedFd);

impl Bell {
    fn new() -> io::Result<Arc<Self>> {
        // SAFETY: takes no pointers.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: just opened, and owned by nobody else.
        Ok(Arc::new(Self(unsafe { OwnedFd::from_raw_fd(fd) })))
    }
}

impl Unpark for Bell {
    fn unpark(&self) {
        let one = 1u64;
        loop {
            // SAFETY: the eight bytes of `one` are read before the call returns.
            let written = unsafe { libc::write(self.0.as_raw_fd(), (&raw const one).cast(), 8) };
            // EAGAIN means that the counter is full: the bell has been rung for long.
            if written == 8 || io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
                return;
            }
        }
    }
}

/// See the module.
pub(crate) struct Ring {
    uring: IoUring,
    backlog: VecDeque<Entry>,
    /// By their tokens, the requests that nops stand for.
    blocking: Vec<(u64, Request)>,
    bell: Arc<Bell>,
    /// Whether the multishot poll of the bell is with the kernel. It owns no memory.
    bell_armed: bool,
    /// Whether the bell was heard since `enter` was called: then it must not wait.
    heard: bool,
}

impl Ring {
    /// On the thread that will use it: a single-issuer ring belongs to its maker.
    pub(crate) fn new(config: &ExecutorConfig) -> Result<Self, SetupError> {
        let uring = config.build_ring()?;
        let bell = Bell::new().map_err(SetupError::from_errno)?;
        Ok(Self {
            uring,
            backlog: VecDeque::new(),
            blocking: Vec::new(),
            bell,
            bell_armed: false,
            heard: false,
        })
    }

    fn queue(&mut self, entry: Entry) {
        if !self.backlog.is_empty() || !self.push_now(&entry) {
            self.backlog.push_back(entry);
        }
    }

    fn push_now(&mut self, entry: &Entry) -> bool {
        // SAFETY: the executor keeps the entry's memory until its completion (`Driver`'s contract).
        unsafe { self.uring.submission().push(entry) }.is_ok()
    }

    /// Moves what waits into the queue, as far as there is room.
    fn fill(&mut self) {
        while let Some(entry) = self.backlog.pop_front() {
            if !self.push_now(&entry) {
                self.backlog.push_front(entry);
                return;
            }
        }
    }

    fn reap(&mut self, done: &mut Vec<Completion>) {
        for entry in self.uring.completion() {
            if entry.user_data() == WAKE_TOKEN {
                self.bell_armed &= cqueue::more(entry.flags());
                self.heard = true;
                continue;
            }
            let (token, mut result) = (entry.user_data(), entry.result());
            if let Some(at) = self.blocking.iter().position(|(of, _)| *of == token) {
                let (_, request) = self.blocking.swap_remove(at);
                // SAFETY: it was pushed, and its completion is handed out below.
                result = unsafe { blocking::perform(request) };
            }
            done.push(Completion { token, result });
        }
    }

    fn arm_bell(&mut self) {
        if !self.bell_armed {
            // Edge-triggered and never read: each ring of the bell is a completion, and a bell
            // rung while not armed is heard when it is.
            let poll = opcode::PollAdd::new(Fd(self.bell.0.as_raw_fd()), POLLIN);
            self.queue(poll.multi(true).build().user_data(WAKE_TOKEN));
            self.bell_armed = true;
        }
    }

    /// One system call. What it could not do now is tried again by the next.
    fn call(&mut self, queued: usize, wait: bool) -> io::Result<()> {
        let called = if self.uring.params().is_setup_sqpoll() {
            self.uring.submit_and_wait(usize::from(wait))
        } else {
            // The crate asks for events only when it waits. Asking always lets one call submit, and
            // also run the deferred completions that are there by then.
            let queued = u32::try_from(queued).unwrap_or(u32::MAX);
            let flags = EnterFlags::GETEVENTS.bits();
            let submitter = self.uring.submitter();
            // SAFETY: no argument is passed; the entries are those that `push_now` queued.
            unsafe { submitter.enter::<libc::sigset_t>(queued, u32::from(wait), flags, None) }
        };
        match called {
            Ok(_) => Ok(()),
            Err(error) => match error.raw_os_error() {
                // A signal; no memory for requests just now; completions to be taken first.
                Some(libc::EINTR | libc::EAGAIN | libc::EBUSY | libc::ETIME) => Ok(()),
                _ => Err(error),
            },
        }
    }
}

const POLLIN: u32 = libc::POLLIN.unsigned_abs() as u32;

// SAFETY: memory of requests is touched only by the kernel, between submission and completion, and
// by `blocking::perform`, just before the completion is handed out; every completion that the kernel
// posts is handed out once; nothing is forgotten on an error.
unsafe impl Driver for Ring {
    fn push(&mut self, token: u64, request: Request) {
        if blocking::is_blocking(&request) {
            self.blocking.push((token, request));
        }
        self.queue(entry(request).user_data(token));
    }

    fn enter(&mut self, wait: bool, done: &mut Vec<Completion>) -> io::Result<()> {
        self.heard = false;
        if wait {
            self.arm_bell();
        }
        loop {
            self.fill();
            let queue = self.uring.submission();
            let (queued, kernel_waits) = (queue.len(), queue.taskrun() || queue.cq_overflow());
            drop(queue);
            self.reap(done);
            // The bell may have been heard by an earlier turn of this loop. Whoever rang it will not
            // ring again before this thread has been awake.
            let wait = wait && !self.heard && done.is_empty() && self.backlog.is_empty();
            if queued == 0 && !wait && !kernel_waits {
                return Ok(());
            }
            self.call(queued, wait)?;
            self.reap(done);
            if self.backlog.is_empty() {
                return Ok(());
            }
            let queue = self.uring.submission();
            let full = queue.is_full();
            drop(queue);
            if full && self.uring.params().is_setup_sqpoll() {
                self.uring.submitter().squeue_wait()?; // the kernel's thread empties the queue
            } else if full {
                return Ok(()); // nothing was taken: the caller reaps, and comes again
            }
        }
    }

    fn ready(&mut self) -> bool {
        !self.uring.completion().is_empty() || self.uring.submission().taskrun()
    }

    fn unparker(&self) -> Arc<dyn Unpark> {
        Arc::clone(&self.bell) as Arc<dyn Unpark>
    }

    fn now(&self) -> Instant {
        Instant::now()
    }

    fn write_now(&self, fd: RawFd, bytes: &[u8], offset: u64) -> io::Result<usize> {
        blocking::write(fd, bytes, offset)
    }
}

/// A request in the kernel's words.
fn entry(request: Request) -> Entry {
    match request {
        // The last two are invariant 5.
        Request::Nop | Request::List { .. } | Request::Space { .. } => opcode::Nop::new().build(),
        Request::Read { fd, buf, len, offset } => {
            opcode::Read::new(Fd(fd), buf, len).offset(offset).build()
        }
        Request::Write { fd, buf, len, offset, flags } => {
            opcode::Write::new(Fd(fd), buf, len).offset(offset).rw_flags(flags).build()
        }
        Request::Fsync { fd, datasync } => {
            let flags = if datasync { FsyncFlags::DATASYNC } else { FsyncFlags::empty() };
            opcode::Fsync::new(Fd(fd)).flags(flags).build()
        }
        Request::Open { dir, path, flags, mode } => {
            opcode::OpenAt::new(Fd(dir), path).flags(flags).mode(mode).build()
        }
        Request::Allocate { fd, mode, offset, len } => {
            opcode::Fallocate::new(Fd(fd), len).offset(offset).mode(mode).build()
        }
        Request::Advise { fd, advice } => opcode::Fadvise::new(Fd(fd), 0, advice).build(),
        Request::Truncate { fd, len } => opcode::Ftruncate::new(Fd(fd), len).build(),
        Request::Rename { from_dir, from, to_dir, to } => {
            opcode::RenameAt::new(Fd(from_dir), from, Fd(to_dir), to).build()
        }
        Request::Link { from_dir, from, to_dir, to } => {
            opcode::LinkAt::new(Fd(from_dir), from, Fd(to_dir), to).build()
        }
        Request::Unlink { dir, path, flags } => {
            opcode::UnlinkAt::new(Fd(dir), path).flags(flags).build()
        }
        Request::MakeDir { dir, path, mode } => {
            opcode::MkDirAt::new(Fd(dir), path).mode(mode).build()
        }
        Request::Stat { fd, out } => {
            opcode::Statx::new(Fd(fd), c"".as_ptr(), out.cast::<types::statx>())
                .flags(libc::AT_EMPTY_PATH)
                .mask(libc::STATX_BASIC_STATS | libc::STATX_DIOALIGN)
                .build()
        }
        Request::Accept { fd, addr, len } => {
            opcode::Accept::new(Fd(fd), addr.cast(), len).flags(libc::SOCK_CLOEXEC).build()
        }
        Request::Connect { fd, addr, len } => {
            opcode::Connect::new(Fd(fd), addr.cast(), len).build()
        }
        Request::Recv { fd, buf, len, flags } => {
            opcode::Recv::new(Fd(fd), buf, len).flags(flags).build()
        }
        Request::Send { fd, buf, len, flags } => {
            opcode::Send::new(Fd(fd), buf, len).flags(flags).build()
        }
        Request::Shutdown { fd, how } => opcode::Shutdown::new(Fd(fd), how).build(),
        Request::Close { fd } => opcode::Close::new(Fd(fd)).build(),
        Request::Timeout { after } => {
            // Both are the kernel's `__kernel_timespec`.
            opcode::Timeout::new(after.cast::<types::Timespec>()).build()
        }
        Request::Cancel { token } => opcode::AsyncCancel::new(token).build(),
        Request::CancelFd { fd } => {
            opcode::AsyncCancel2::new(CancelBuilder::fd(Fd(fd)).all()).build()
        }
    }
}
