//! Ending what is under way: [`cancel`], [`cancel_fd`], [`close`].
//!
//! Invariant: cancelling is a request. The operation's own completion decides how it ended, and
//! its buffer comes back with that, whichever of the two completions comes first.

#![expect(unsafe_code, reason = "operations are unsafe to define")]

use super::driver::Request;
use super::fd::Fd;
use super::fs::plain;
use super::handle::Handle;
use super::mailbox::Message;
use super::op::{Op, OpId, Operation};
use super::slab::Key;
use std::io;
use std::os::fd::{IntoRawFd, RawFd};

/// Asks for one operation to be ended, on whatever thread it is. It then resolves to `ECANCELED`,
/// or to its true result if that could not be stopped any more; its buffer comes back either way.
///
/// ```
/// # use ringlog::rt::{self, Executor, ExecutorConfig, Fd};
/// # let executor = Executor::new(ExecutorConfig::default())?;
/// # let listener = Fd::from(std::net::TcpListener::bind("127.0.0.1:0")?);
/// executor.block_on(async {
///     let mut accept = rt::accept(&listener);
///     let id = accept.start();
///     rt::cancel(&id).await?;
///     assert_eq!(accept.await.unwrap_err().raw_os_error(), Some(libc::ECANCELED));
///     Ok::<(), std::io::Error>(())
/// })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
///
/// `ENOENT`: it is done already. `EALREADY`: it is past stopping, and will end by itself.
pub async fn cancel(id: &OpId) -> io::Result<()> {
    if id.home.is_current() {
        return cancel_here(id.key).await;
    }
    let (home, key): (Handle, Key) = (id.home.clone(), id.key);
    match home.schedule(cancel_here(key)).await {
        Ok(result) => result,
        // It takes no more tasks. While it drains it takes the wish, else the operation is gone.
        Err(_) => match home.mailbox().post(Message::Cancel(key)) {
            Ok(()) => Ok(()),
            Err(_) => Err(io::Error::from_raw_os_error(libc::ENOENT)),
        },
    }
}

async fn cancel_here(key: Key) -> io::Result<()> {
    plain(None, Request::Cancel { token: key.0 }).await
}

/// Asks for all operations of this thread on a descriptor to be ended. Returns how many there were.
///
/// # Panics
///
/// Outside of an executor.
pub async fn cancel_fd(fd: &Fd) -> io::Result<usize> {
    match Op::new(CancelFd { fd: fd.clone() }).await {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(0),
        result => result.map(|count| count as usize),
    }
}

struct CancelFd {
    fd: Fd,
}

// SAFETY: the request points to nothing.
unsafe impl Operation for CancelFd {
    type Output = io::Result<u32>;
    const CANCEL_ON_DROP: bool = false;

    fn request(&mut self) -> Request {
        Request::CancelFd { fd: self.fd.raw() }
    }

    fn finish(self, result: io::Result<u32>) -> Self::Output {
        result
    }
}

/// Lets go of a descriptor, ending this thread's operations on it, which resolve to `ECANCELED`.
///
/// The last holder closes it, and learns how that went. While others hold clones it stays open,
/// and `Ok` means that it is theirs now; so a number never comes to mean another file under an
/// operation. (To end a connection while others hold it: [`shutdown`](super::shutdown).)
///
/// # Errors
///
/// Those of `close(2)`, such as a write-back error of a network file system.
pub async fn close(fd: Fd) -> io::Result<()> {
    cancel_fd(&fd).await?;
    match fd.into_owned() {
        Some(owned) => Op::new(Close { fd: owned.into_raw_fd() }).await,
        None => Ok(()),
    }
}

/// Owns the number until the kernel has closed it. Not cancelled: else it would leak.
struct Close {
    fd: RawFd,
}

// SAFETY: the request points to nothing.
unsafe impl Operation for Close {
    type Output = io::Result<()>;
    const CANCEL_ON_DROP: bool = false;

    fn request(&mut self) -> Request {
        Request::Close { fd: self.fd }
    }

    fn finish(self, result: io::Result<u32>) -> Self::Output {
        result.map(drop)
    }
}
