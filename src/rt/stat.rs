//! What a file system says when asked: of a file, of the names in a directory, of its space.
//!
//! Invariant, as for all operations: the request points only into the struct. A ring knows no
//! operation for names and space. They are requests all the same, so that another driver may answer
//! for a disk of its own.

#![expect(unsafe_code, reason = "operations are unsafe to define")]

use super::driver::Request;
use super::fd::Fd;
use super::op::{Op, Operation};
use std::ffi::OsString;
use std::io;
use std::mem::MaybeUninit;

// ---- of a file ------------------------------------------------------------------------------

/// What [`stat`] tells of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct FileStat {
    /// Its length in bytes.
    pub len: u64,
    /// The bytes that its blocks take on the disk: less than `len` with holes, more with space
    /// that was reserved.
    pub allocated: u64,
    /// How many names it has: hard links.
    pub links: u32,
    /// What direct I/O (`O_DIRECT`) asks for; `None` if the file cannot do it, or if the file
    /// system does not say.
    pub direct: Option<DirectAlign>,
}

/// What direct I/O on a file asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirectAlign {
    /// The buffer's address must be a multiple of so many bytes.
    pub memory: u32,
    /// The offset in the file, and the length, must be multiples of so many bytes.
    pub offset: u32,
}

/// Asks for the length of an open file, its space, and what direct I/O on it needs.
///
/// # Errors
///
/// Those of `statx(2)`.
pub fn stat(fd: &Fd) -> Op<Stat> {
    Op::new(Stat { fd: fd.clone(), out: MaybeUninit::zeroed() })
}

/// See [`stat`].
pub struct Stat {
    fd: Fd,
    out: MaybeUninit<libc::statx>,
}

// SAFETY: the request points into the struct, which does not move while in flight.
unsafe impl Operation for Stat {
    type Output = io::Result<FileStat>;

    fn request(&mut self) -> Request {
        Request::Stat { fd: self.fd.raw(), out: self.out.as_mut_ptr() }
    }

    fn finish(self, result: io::Result<u32>) -> Self::Output {
        result?;
        // SAFETY: it began as zeroes, which is valid for it, and the kernel filled it in.
        let stat = unsafe { self.out.assume_init() };
        let (memory, offset) = (stat.stx_dio_mem_align, stat.stx_dio_offset_align);
        // Zeroes: the file cannot. Without the bit they are what `out` began as.
        let direct = (memory > 0 && offset > 0).then_some(DirectAlign { memory, offset });
        let allocated = stat.stx_blocks.saturating_mul(512); // whatever the file system's blocks
        Ok(FileStat { len: stat.stx_size, allocated, links: stat.stx_nlink, direct })
    }
}

// ---- of a directory -------------------------------------------------------------------------

/// The names in a directory, without `.` and `..`, in no order.
///
/// No ring can do this: **the thread's executor stands still** until the names are read, so this is
/// for the opening of a store, not for its work. A file that is made or removed meanwhile may be
/// among them or not. Cannot be cancelled.
///
/// # Errors
///
/// Those of `getdents64(2)` and of opening the directory anew: `ENOTDIR` for other files.
pub fn list(dir: &Fd) -> Op<List> {
    Op::new(List { dir: dir.clone(), out: Vec::new() })
}

/// See [`list`].
#[derive(Debug)]
pub struct List {
    dir: Fd,
    out: Vec<OsString>,
}

// SAFETY: the request points into the struct, which does not move while in flight.
unsafe impl Operation for List {
    type Output = io::Result<Vec<OsString>>;
    const CANCEL_ON_DROP: bool = false;

    fn request(&mut self) -> Request {
        Request::List { fd: self.dir.raw(), out: &raw mut self.out }
    }

    fn finish(self, result: io::Result<u32>) -> Self::Output {
        result.map(|_| self.out)
    }
}

// ---- of the file system ---------------------------------------------------------------------

/// What [`free_space`] tells of a file system, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FsSpace {
    /// Its size.
    pub total: u64,
    /// What unprivileged users may still take of it.
    pub free: u64,
}

/// Asks for the space of the file system that an open file or directory is on.
///
/// No ring can do this: **the thread's executor stands still** meanwhile. A local file system
/// answers from memory. Cannot be cancelled.
///
/// # Errors
///
/// Those of `fstatvfs(3)`.
pub fn free_space(fd: &Fd) -> Op<Space> {
    Op::new(Space { fd: fd.clone(), out: FsSpace::default() })
}

/// See [`free_space`].
#[derive(Debug)]
pub struct Space {
    fd: Fd,
    out: FsSpace,
}

// SAFETY: the request points into the struct, which does not move while in flight.
unsafe impl Operation for Space {
    type Output = io::Result<FsSpace>;
    const CANCEL_ON_DROP: bool = false;

    fn request(&mut self) -> Request {
        Request::Space { fd: self.fd.raw(), out: &raw mut self.out }
    }

    fn finish(self, result: io::Result<u32>) -> Self::Output {
        result.map(|_| self.out)
    }
}
