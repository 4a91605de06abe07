//! The storage operations: positioned reads and writes, sync, and what a store does to names.
//!
//! One operation, one struct: its data, its request, its result. Invariant, as for all operations:
//! the request points only into the struct, or to memory that a buffer keeps in place.

#![expect(unsafe_code, reason = "operations are unsafe to define")]

use super::buf::{IoBuf, IoBufMut, MAX_RW_BYTES};
use super::context::Context;
use super::driver::Request;
use super::fd::Fd;
use super::op::{Op, Operation};
use std::ffi::CString;
use std::io;
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// The result of an operation, and its buffer back.
pub type BufResult<T, B> = (io::Result<T>, B);

/// Lengths beyond what one call moves are cut: the call comes back short.
pub(crate) fn clamp(len: usize) -> u32 {
    u32::try_from(len.min(MAX_RW_BYTES)).unwrap_or(u32::MAX)
}

/// `Ok(n)` with the buffer told of its `n` bytes.
///
/// # Safety
///
/// The kernel has written `n` bytes from `ptr_mut()` on.
pub(crate) unsafe fn filled<B: IoBufMut>(
    result: io::Result<u32>,
    mut buf: B,
) -> BufResult<usize, B> {
    let result = result.and_then(|n| {
        if buf.room() == 0 {
            let why = "the buffer has no room: give it capacity";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        // SAFETY: the kernel wrote `n` bytes, at most the room it was given.
        unsafe { buf.filled(0, n as usize) };
        Ok(n as usize)
    });
    (result, buf)
}

// ---- read -----------------------------------------------------------------------------------

/// Positioned read: fills `buf` from `offset` bytes on, as far as its room goes.
///
/// Resolves to the bytes read, which may be fewer than there is room for; 0 at the end of the
/// file. See [`IoBufMut`] for what the buffer holds then.
pub fn read<B: IoBufMut>(fd: &Fd, buf: B, offset: u64) -> Op<Read<B>> {
    Op::new(Read { fd: fd.clone(), buf, offset })
}

/// See [`read`].
#[derive(Debug)]
pub struct Read<B> {
    fd: Fd,
    buf: B,
    offset: u64,
}

// SAFETY: the request points into the buffer, whose memory `IoBufMut` keeps in place.
unsafe impl<B: IoBufMut> Operation for Read<B> {
    type Output = BufResult<usize, B>;

    fn request(&mut self) -> Request {
        if self.buf.room() == 0 {
            return Request::Nop; // for `filled` to refuse
        }
        let len = clamp(self.buf.room());
        Request::Read { fd: self.fd.raw(), buf: self.buf.ptr_mut(), len, offset: self.offset }
    }

    fn finish(self, result: io::Result<u32>) -> Self::Output {
        // SAFETY: the result is the kernel's count.
        unsafe { filled(result, self.buf) }
    }
}

/// Reads until the buffer's room is full, however short the single reads come.
///
/// # Errors
///
/// `UnexpectedEof` if the file ends before.
pub async fn read_exact<B: IoBufMut>(fd: &Fd, mut buf: B, offset: u64) -> BufResult<(), B> {
    let room = buf.room();
    let mut done = 0;
    while done < room {
        let (result, slice) =
            read(fd, buf.part(done..room), offset.saturating_add(done as u64)).await;
        buf = slice.into_inner();
        match result {
            Ok(0) => return (Err(io::ErrorKind::UnexpectedEof.into()), buf),
            Ok(n) => done += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return (Err(error), buf),
        }
    }
    (Ok(()), buf)
}

// ---- write ----------------------------------------------------------------------------------

/// Positioned write of `buf` at `offset`. Resolves to the bytes written, which may be fewer.
///
/// A write whose future is dropped, or that is cancelled, may have happened in part or whole.
pub fn write<B: IoBuf>(fd: &Fd, buf: B, offset: u64) -> Op<Write<B>> {
    write_with(fd, buf, offset, 0)
}

/// [`write()`] with `RWF_*` flags of `pwritev2`, such as `RWF_DSYNC`.
pub fn write_with<B: IoBuf>(fd: &Fd, buf: B, offset: u64, flags: i32) -> Op<Write<B>> {
    Op::new(Write { fd: fd.clone(), buf, offset, flags })
}

/// See [`write()`].
#[derive(Debug)]
pub struct Write<B> {
    fd: Fd,
    buf: B,
    offset: u64,
    flags: i32,
}

// SAFETY: the request points into the buffer, whose memory `IoBuf` keeps in place.
unsafe impl<B: IoBuf> Operation for Write<B> {
    type Output = BufResult<usize, B>;

    fn request(&mut self) -> Request {
        let (buf, len) = (self.buf.ptr(), clamp(self.buf.len()));
        Request::Write { fd: self.fd.raw(), buf, len, offset: self.offset, flags: self.flags }
    }

    fn finish(self, result: io::Result<u32>) -> Self::Output {
        (result.map(|n| n as usize), self.buf)
    }
}

/// Positioned write as a system call, **on this thread, which stands still meanwhile**. Tells the
/// bytes written, which may be fewer.
///
/// For little pieces, into pages of a file that the page cache has: that is a copy in memory, and
/// takes about a microsecond, where a ring would hand it to a kernel worker. What it has written
/// outlasts the process. It waits for the device where a page is not in memory, and like any buffered
/// write it may be held up when the file system is frozen, commits its journal, or has more dirty
/// pages than it may.
///
/// # Errors
///
/// Those of `pwrite(2)`, but for `EINTR`; `EOPNOTSUPP` from drivers that do not do it.
///
/// # Panics
///
/// Outside of an executor.
pub fn write_now(fd: &Fd, bytes: &[u8], offset: u64) -> io::Result<usize> {
    let context = Context::current().expect("rt::write_now was called outside of an executor");
    let driver = context.driver().borrow();
    driver.write_now(fd.raw(), bytes, offset)
}

/// Writes the whole buffer, however short the single writes come.
///
/// # Errors
///
/// `WriteZero` if the file takes no more. Part of the buffer may have been written.
pub async fn write_all<B: IoBuf>(fd: &Fd, mut buf: B, offset: u64) -> BufResult<(), B> {
    let len = buf.len();
    let mut done = 0;
    while done < len {
        let (result, slice) =
            write(fd, buf.part(done..len), offset.saturating_add(done as u64)).await;
        buf = slice.into_inner();
        match result {
            Ok(0) => return (Err(io::ErrorKind::WriteZero.into()), buf),
            Ok(n) => done += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return (Err(error), buf),
        }
    }
    (Ok(()), buf)
}

// ---- operations without a buffer ------------------------------------------------------------

/// An operation on a descriptor that has no memory and no output.
#[derive(Debug)]
pub struct Plain {
    /// Held so that the number in `request` keeps its meaning.
    _fd: Option<Fd>,
    request: Request,
}

// SAFETY: only made from requests that hold no pointers.
unsafe impl Send for Plain {}

// SAFETY: as above.
unsafe impl Operation for Plain {
    type Output = io::Result<()>;
    const CANCEL_ON_DROP: bool = false;

    fn request(&mut self) -> Request {
        self.request
    }

    fn finish(self, result: io::Result<u32>) -> Self::Output {
        result.map(drop)
    }
}

/// Makes an operation of a request that points to nothing.
pub(crate) fn plain(fd: Option<&Fd>, request: Request) -> Op<Plain> {
    Op::new(Plain { _fd: fd.cloned(), request })
}

/// Completes at once: what one operation costs, and nothing else.
pub fn nop() -> Op<Plain> {
    plain(None, Request::Nop)
}

/// Makes the file durable: `fdatasync` with `datasync`, else `fsync`.
///
/// Covers the writes that had **completed** before it was submitted; on a directory, the names
/// in it. After an error nothing is known of what it should have covered: do not try again.
pub fn fsync(fd: &Fd, datasync: bool) -> Op<Plain> {
    plain(Some(fd), Request::Fsync { fd: fd.raw(), datasync })
}

/// Reserves space, `fallocate(2)`: `mode` 0 also grows the file.
pub fn allocate(fd: &Fd, mode: i32, offset: u64, len: u64) -> Op<Plain> {
    plain(Some(fd), Request::Allocate { fd: fd.raw(), mode, offset, len })
}

/// Tells the kernel how the whole file will be used, `posix_fadvise(2)`.
pub fn advise(fd: &Fd, advice: i32) -> Op<Plain> {
    plain(Some(fd), Request::Advise { fd: fd.raw(), advice })
}

/// Makes the file `len` bytes long.
///
/// # Errors
///
/// Besides those of `ftruncate(2)`: `EINVAL` on kernels before 6.9, whose rings cannot.
pub fn truncate(fd: &Fd, len: u64) -> Op<Plain> {
    plain(Some(fd), Request::Truncate { fd: fd.raw(), len })
}

/// Shuts down one or both directions of a socket.
pub fn shutdown(fd: &Fd, how: std::net::Shutdown) -> Op<Plain> {
    let how = match how {
        std::net::Shutdown::Read => libc::SHUT_RD,
        std::net::Shutdown::Write => libc::SHUT_WR,
        std::net::Shutdown::Both => libc::SHUT_RDWR,
    };
    plain(Some(fd), Request::Shutdown { fd: fd.raw(), how })
}

// ---- names ----------------------------------------------------------------------------------

/// Where a relative path starts: a directory, or the process's own for `None`.
fn dir_fd(dir: Option<&Fd>) -> RawFd {
    dir.map_or(libc::AT_FDCWD, Fd::raw)
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes())
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "the path has a zero byte in it"))
}

/// Opens a file with `open(2)` flags (`O_CLOEXEC` is added) and, for new files, `mode`.
///
/// # Errors
///
/// Those of `openat(2)`; `InvalidInput` for a path with a zero byte.
pub async fn open(dir: Option<&Fd>, path: &Path, flags: i32, mode: u32) -> io::Result<Fd> {
    let path = c_path(path)?;
    let flags = flags | libc::O_CLOEXEC;
    Op::new(Open { dir: dir.cloned(), path, flags, mode }).await
}

/// See [`open`].
struct Open {
    dir: Option<Fd>,
    path: CString,
    flags: i32,
    mode: u32,
}

// SAFETY: the request points to the path's heap memory, which does not move with it.
unsafe impl Operation for Open {
    type Output = io::Result<Fd>;
    const CANCEL_ON_DROP: bool = false; // it may create a file: let it be done with that

    fn request(&mut self) -> Request {
        Request::Open {
            dir: dir_fd(self.dir.as_ref()),
            path: self.path.as_ptr(),
            flags: self.flags,
            mode: self.mode,
        }
    }

    fn finish(self, result: io::Result<u32>) -> Self::Output {
        result.map(Fd::from_completion)
    }
}

/// A change of names: up to two directories with a path in each.
struct Names {
    dirs: [Option<Fd>; 2],
    paths: [CString; 2],
    change: Change,
}

enum Change {
    Rename,
    Link,
    Unlink,
    MakeDir { mode: u32 },
}

// SAFETY: the request points to the paths' heap memory, which does not move with them.
unsafe impl Operation for Names {
    type Output = io::Result<()>;
    const CANCEL_ON_DROP: bool = false;

    fn request(&mut self) -> Request {
        let [dir, to_dir] = self.dirs.each_ref().map(|dir| dir_fd(dir.as_ref()));
        let [path, to] = self.paths.each_ref().map(|path| path.as_ptr());
        match self.change {
            Change::Rename => Request::Rename { from_dir: dir, from: path, to_dir, to },
            Change::Link => Request::Link { from_dir: dir, from: path, to_dir, to },
            Change::Unlink => Request::Unlink { dir, path, flags: 0 },
            Change::MakeDir { mode } => Request::MakeDir { dir, path, mode },
        }
    }

    fn finish(self, result: io::Result<u32>) -> Self::Output {
        result.map(drop)
    }
}

/// Renames a file, over any file of the new name. Durable after an [`fsync`] of the directories.
///
/// # Errors
///
/// Those of `renameat(2)`; `InvalidInput` for a path with a zero byte.
pub async fn rename(
    from_dir: Option<&Fd>,
    from: &Path,
    to_dir: Option<&Fd>,
    to: &Path,
) -> io::Result<()> {
    let paths = [c_path(from)?, c_path(to)?];
    let dirs = [from_dir.cloned(), to_dir.cloned()];
    Op::new(Names { dirs, paths, change: Change::Rename }).await
}

/// Gives a file a second name, which no file may have yet. Durable after an [`fsync`] of the
/// directory. Of a symbolic link, the link itself gets the name.
///
/// # Errors
///
/// Those of `linkat(2)`: `EEXIST` if there is a file of the new name, `EXDEV` on another file
/// system. `InvalidInput` for a path with a zero byte.
pub async fn link(
    from_dir: Option<&Fd>,
    from: &Path,
    to_dir: Option<&Fd>,
    to: &Path,
) -> io::Result<()> {
    let paths = [c_path(from)?, c_path(to)?];
    let dirs = [from_dir.cloned(), to_dir.cloned()];
    Op::new(Names { dirs, paths, change: Change::Link }).await
}

/// Removes a file's name. Durable after an [`fsync`] of the directory.
///
/// # Errors
///
/// Those of `unlinkat(2)`; `InvalidInput` for a path with a zero byte.
pub async fn unlink(dir: Option<&Fd>, path: &Path) -> io::Result<()> {
    let paths = [c_path(path)?, CString::default()];
    Op::new(Names { dirs: [dir.cloned(), None], paths, change: Change::Unlink }).await
}

/// Makes a directory. Durable after an [`fsync`] of the one it is in.
///
/// # Errors
///
/// Those of `mkdirat(2)`; `InvalidInput` for a path with a zero byte.
pub async fn make_dir(dir: Option<&Fd>, path: &Path, mode: u32) -> io::Result<()> {
    let paths = [c_path(path)?, CString::default()];
    Op::new(Names { dirs: [dir.cloned(), None], paths, change: Change::MakeDir { mode } }).await
}
