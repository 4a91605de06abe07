//! [`Fd`]: a shared file descriptor, closed when its last holder lets go.
//!
//! Invariant: every operation in flight holds one, so the kernel's number cannot come to mean
//! another file while an operation still uses it.

#![expect(unsafe_code, reason = "takes over descriptors from completions")]

use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;

/// A file or socket. Cheap to clone, `Send` and `Sync`; closes when the last clone and the last
/// operation on it are gone. [`close`](super::close) says how that went.
///
/// Made by [`open`](super::open), [`accept`](super::accept) and [`socket`](super::socket), or
/// from the standard library's types. Sockets should be in blocking mode, as they are by default:
/// the ring waits for them itself, and gives `WouldBlock` for non-blocking ones.
#[derive(Clone, Debug)]
pub struct Fd(Arc<OwnedFd>);

impl Fd {
    /// Takes over a descriptor that a completion brought.
    pub(crate) fn from_completion(number: u32) -> Self {
        let raw = RawFd::try_from(number).expect("the kernel's descriptors are positive ints");
        // SAFETY: the kernel has just opened it for this completion, so nobody else owns it.
        Self::from(unsafe { OwnedFd::from_raw_fd(raw) })
    }

    pub(crate) fn raw(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// The descriptor itself, if nobody else holds it.
    pub(crate) fn into_owned(self) -> Option<OwnedFd> {
        Arc::into_inner(self.0)
    }
}

impl AsFd for Fd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Fd {
    fn as_raw_fd(&self) -> RawFd {
        self.raw()
    }
}

impl From<OwnedFd> for Fd {
    fn from(fd: OwnedFd) -> Self {
        Self(Arc::new(fd))
    }
}

macro_rules! from_std {
    ($($type:ty),+) => {
        $(impl From<$type> for Fd {
            fn from(value: $type) -> Self {
                Self::from(OwnedFd::from(value))
            }
        })+
    };
}

from_std!(std::fs::File, TcpListener, TcpStream, UdpSocket, UnixListener, UnixStream);
