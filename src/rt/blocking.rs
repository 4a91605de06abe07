//! The requests that no ring performs, and writes that must not wait for one, as system calls that
//! block.
//!
//! Invariant: nothing is written through a request's pointer unless the whole succeeded.

#![expect(unsafe_code, reason = "talks to the kernel")]

use super::driver::Request;
use super::stat::FsSpace;
use std::ffi::{CStr, OsStr, OsString};
use std::io;
use std::mem::{MaybeUninit, offset_of};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;

/// Whether [`perform`] is what performs it.
pub(crate) fn is_blocking(request: &Request) -> bool {
    matches!(request, Request::List { .. } | Request::Space { .. })
}

/// Performs a request that [`is_blocking`]. Returns the completion's result.
///
/// # Safety
///
/// The request has been pushed and not completed: its memory is the caller's to write to.
pub(crate) unsafe fn perform(request: Request) -> i32 {
    let result = match request {
        Request::List { fd, out } => list(fd).map(|names| {
            // SAFETY: the executor keeps it until the completion, and does not look.
            unsafe { *out = names }
        }),
        Request::Space { fd, out } => space(fd).map(|space| {
            // SAFETY: as above.
            unsafe { *out = space }
        }),
        _ => Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP)),
    };
    result.map_or_else(|error| -error.raw_os_error().unwrap_or(libc::EIO), |()| 0)
}

fn check(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn list(dir: RawFd) -> io::Result<Vec<OsString>> {
    // Opened anew, since those who list the same descriptor would share one position in it.
    let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC;
    // SAFETY: the path is a constant.
    let dir = check(unsafe { libc::openat(dir, c".".as_ptr(), flags) })?;
    // SAFETY: just opened, and owned by nobody else.
    let dir = unsafe { OwnedFd::from_raw_fd(dir) };
    let (mut names, mut buf) = (Vec::new(), vec![0_u8; 32 * 1024]);
    loop {
        let (fd, ptr, len) = (dir.as_raw_fd(), buf.as_mut_ptr(), buf.len());
        // SAFETY: writes to no more than the `len` bytes of `buf`, before it returns.
        let filled = unsafe { libc::syscall(libc::SYS_getdents64, fd, ptr, len) };
        match usize::try_from(filled) {
            Ok(0) => return Ok(names),
            Ok(filled) => parse(&buf[..filled], &mut names).ok_or(io::ErrorKind::InvalidData)?,
            Err(_) => return Err(io::Error::last_os_error()),
        }
    }
}

/// Takes the names out of what `getdents64` wrote. None if that is no list of entries.
fn parse(mut entries: &[u8], names: &mut Vec<OsString>) -> Option<()> {
    const LEN: usize = offset_of!(libc::dirent64, d_reclen);
    const NAME: usize = offset_of!(libc::dirent64, d_name);
    while !entries.is_empty() {
        let len = entries.get(LEN..LEN + 2)?.try_into().ok()?;
        #[expect(clippy::host_endian_bytes, reason = "from the kernel of this host")]
        let (entry, rest) = entries.split_at_checked(u16::from_ne_bytes(len).into())?;
        let name = CStr::from_bytes_until_nul(entry.get(NAME..)?).ok()?.to_bytes();
        if name != b"." && name != b".." {
            names.push(OsStr::from_bytes(name).to_owned());
        }
        entries = rest;
    }
    Some(())
}

/// Writes what it writes at once.
pub(crate) fn write(fd: RawFd, bytes: &[u8], offset: u64) -> io::Result<usize> {
    let offset = offset.try_into().map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))?;
    loop {
        // SAFETY: reads from no more than `bytes`, before it returns.
        let written = unsafe { libc::pwrite(fd, bytes.as_ptr().cast(), bytes.len(), offset) };
        match usize::try_from(written) {
            Ok(written) => return Ok(written),
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}

#[allow(clippy::useless_conversion, reason = "the fields are narrower on some hosts")]
fn space(fd: RawFd) -> io::Result<FsSpace> {
    let mut out = MaybeUninit::<libc::statvfs>::zeroed();
    // SAFETY: writes to `out` before it returns.
    check(unsafe { libc::fstatvfs(fd, out.as_mut_ptr()) })?;
    // SAFETY: zeroes are valid for it, and it was filled in.
    let out = unsafe { out.assume_init() };
    let bytes = |blocks: u64| blocks.saturating_mul(u64::from(out.f_frsize));
    Ok(FsSpace { total: bytes(out.f_blocks.into()), free: bytes(out.f_bavail.into()) })
}

/// How many files the process may have open (`RLIMIT_NOFILE`).
pub(crate) fn max_open_files() -> usize {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is there to be written.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
        return 0;
    }
    usize::try_from(limit.rlim_cur).unwrap_or(usize::MAX)
}
