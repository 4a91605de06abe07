//! The seam: what an executor asks of whatever performs its operations.
//!
//! Above it an operation owns its buffers and is a future; here it is a plain value, a
//! [`Request`], and its end is a [`Completion`]. Everything that the runtime and the store do to
//! the outside world passes through one [`Driver`], the clock included, so that another driver (a
//! simulated disk with virtual time, threads on a host that refuses rings) can stand in under the
//! unchanged executor. The ring is in `ring.rs`.
//!
//! Invariant: a driver uses the memory that a request points to only from [`Driver::push`] until
//! it hands out the request's completion.

#![expect(unsafe_code, reason = "the promises between executor and driver")]

use super::stat::FsSpace;
use std::ffi::OsString;
use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

/// Seconds and nanoseconds in the kernel's layout, which [`Request::Timeout`] points to.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Timespec {
    /// Whole seconds.
    pub seconds: i64,
    /// Nanoseconds below a second.
    pub nanoseconds: i64,
}

/// An operation as a value, before it becomes a submission entry.
///
/// Pointers lead into the operation's cell in the in-flight table; paths are zero-terminated.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the fields are those of the system call of the variant's name")]
pub enum Request {
    /// Completes at once with 0.
    Nop,
    /// `pread`.
    Read { fd: RawFd, buf: *mut u8, len: u32, offset: u64 },
    /// `pwritev2` with `flags` (`RWF_*`).
    Write { fd: RawFd, buf: *const u8, len: u32, offset: u64, flags: i32 },
    /// `fsync`, or `fdatasync`.
    Fsync { fd: RawFd, datasync: bool },
    /// `openat`; completes with a new descriptor.
    Open { dir: RawFd, path: *const libc::c_char, flags: i32, mode: u32 },
    /// `fallocate`.
    Allocate { fd: RawFd, mode: i32, offset: u64, len: u64 },
    /// `posix_fadvise` of the whole file.
    Advise { fd: RawFd, advice: i32 },
    /// `ftruncate`.
    Truncate { fd: RawFd, len: u64 },
    /// `renameat`.
    Rename { from_dir: RawFd, from: *const libc::c_char, to_dir: RawFd, to: *const libc::c_char },
    /// `linkat`.
    Link { from_dir: RawFd, from: *const libc::c_char, to_dir: RawFd, to: *const libc::c_char },
    /// `unlinkat` with `flags`.
    Unlink { dir: RawFd, path: *const libc::c_char, flags: i32 },
    /// `mkdirat`.
    MakeDir { dir: RawFd, path: *const libc::c_char, mode: u32 },
    /// `statx` of the descriptor itself: the basic fields and `STATX_DIOALIGN`. `out` is zeroed.
    Stat { fd: RawFd, out: *mut libc::statx },
    /// The names in a directory but for `.` and `..`. `out` is empty, and stays so on an error.
    List { fd: RawFd, out: *mut Vec<OsString> },
    /// `fstatvfs`.
    Space { fd: RawFd, out: *mut FsSpace },
    /// `accept4`; completes with a new descriptor.
    Accept { fd: RawFd, addr: *mut libc::sockaddr_storage, len: *mut libc::socklen_t },
    /// `connect`.
    Connect { fd: RawFd, addr: *const libc::sockaddr_storage, len: libc::socklen_t },
    /// `recv`.
    Recv { fd: RawFd, buf: *mut u8, len: u32, flags: i32 },
    /// `send`.
    Send { fd: RawFd, buf: *const u8, len: u32, flags: i32 },
    /// `shutdown`.
    Shutdown { fd: RawFd, how: i32 },
    /// `close`.
    Close { fd: RawFd },
    /// Completes with `ETIME` when the time is over.
    Timeout { after: *const Timespec },
    /// Ends the request pushed under `token`: 0, `ENOENT` (not there) or `EALREADY` (under way).
    Cancel { token: u64 },
    /// Ends all requests on `fd`; completes with their number.
    CancelFd { fd: RawFd },
}

/// The end of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// The token that the request was pushed under.
    pub token: u64,
    /// Its result, or an errno made negative.
    pub result: i32,
}

/// Ends its driver's current wait, or the next one: called from any thread.
pub trait Unpark: Send + Sync {
    /// Ends the wait. Never blocks; calls may be merged.
    fn unpark(&self);
}

/// Performs requests for one executor, on its thread.
///
/// # Safety
///
/// After [`push`](Self::push) the executor keeps the memory that the request points to alive and
/// untouched until [`enter`](Self::enter) has handed out the completion of its token. An
/// implementation must not touch that memory any later, must hand out each completion once, and
/// must do so for every request pushed, also for one that an error struck: the executor never
/// frees a buffer because a call failed.
pub unsafe trait Driver {
    /// Takes a request. Never blocks and never fails: what cannot be started now waits inside.
    ///
    /// Requests start in the order of their pushes, and may complete in any.
    fn push(&mut self, token: u64, request: Request);

    /// Starts what was pushed and appends what completed to `done`.
    ///
    /// [`Request::List`] and [`Request::Space`] may be performed in here, and block it meanwhile.
    /// With `wait` it blocks until there is at least one completion or an unpark; it may return
    /// sooner with neither. Without `wait` it makes no system call when there is nothing to do.
    ///
    /// # Errors
    ///
    /// Only when the driver can do nothing more for any request.
    fn enter(&mut self, wait: bool, done: &mut Vec<Completion>) -> io::Result<()>;

    /// Whether completions stand ready, at the cost of a few loads: asked in a spin loop.
    fn ready(&mut self) -> bool;

    /// The other end of [`enter`](Self::enter)'s wait.
    fn unparker(&self) -> Arc<dyn Unpark>;

    /// The clock beside the operations, monotonic.
    fn now(&self) -> Instant;

    /// The time of day, which may jump in either direction: for what outlives the process.
    fn wall(&self) -> SystemTime {
        SystemTime::now()
    }

    /// `pwrite`, now: no request, but a system call.
    ///
    /// # Errors
    ///
    /// Those of `pwrite(2)`; `EOPNOTSUPP` from drivers that do not do it.
    fn write_now(&self, _fd: RawFd, _bytes: &[u8], _offset: u64) -> io::Result<usize> {
        Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP))
    }
}
