//! The socket operations: accept, connect, recv, send. IPv4, IPv6 and Unix sockets alike.
//!
//! Listening sockets come from the standard library (`Fd::from(TcpListener::bind(..)?)`).
//! Invariant: a connection that was accepted for a future that is gone is closed, not leaked.

#![expect(unsafe_code, reason = "operations are unsafe to define")]

use super::address::{Address, Raw};
use super::buf::{IoBuf, IoBufMut};
use super::driver::Request;
use super::fd::Fd;
use super::fs::{BufResult, clamp, filled};
use super::op::{Op, Operation};
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

/// Accepts one connection on a listening socket.
pub fn accept(listener: &Fd) -> Op<Accept> {
    Op::new(Accept { fd: listener.clone(), peer: Raw::room() })
}

/// See [`accept`].
pub struct Accept {
    fd: Fd,
    peer: Raw,
}

// SAFETY: the request points into the struct, which does not move while in flight.
unsafe impl Operation for Accept {
    type Output = io::Result<(Fd, Address)>;

    fn request(&mut self) -> Request {
        let Raw { storage, len } = &mut self.peer;
        Request::Accept { fd: self.fd.raw(), addr: storage, len }
    }

    fn finish(self, result: io::Result<u32>) -> Self::Output {
        let fd = result.map(Fd::from_completion)?; // closed again if the address is of no use
        Ok((fd, self.peer.parse()?))
    }
}

/// Makes a blocking stream socket of the right family to [`connect`] to `address`.
///
/// # Errors
///
/// Those of `socket(2)`; `InvalidInput` for an address that no socket can have.
pub fn socket(address: &Address) -> io::Result<Fd> {
    let family = Raw::new(address)?.family();
    // SAFETY: takes no pointers.
    let fd = unsafe { libc::socket(family, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just opened, and owned by nobody else.
    Ok(Fd::from(unsafe { OwnedFd::from_raw_fd(fd) }))
}

/// Connects a socket to an address. See [`socket`].
///
/// # Errors
///
/// Those of `connect(2)`; `InvalidInput` for an address that no socket can have.
pub async fn connect(fd: &Fd, address: &Address) -> io::Result<()> {
    let peer = Raw::new(address)?;
    Op::new(Connect { fd: fd.clone(), peer }).await
}

struct Connect {
    fd: Fd,
    peer: Raw,
}

// SAFETY: the request points into the struct, which does not move while in flight.
unsafe impl Operation for Connect {
    type Output = io::Result<()>;

    fn request(&mut self) -> Request {
        Request::Connect {
            fd: self.fd.raw(),
            addr: &raw const self.peer.storage,
            len: self.peer.len,
        }
    }

    fn finish(self, result: io::Result<u32>) -> Self::Output {
        result.map(drop)
    }
}

/// Receives into `buf`, as far as its room goes, with `MSG_*` flags. Resolves to the bytes
/// received; 0 when the peer has finished. See [`IoBufMut`] for what the buffer holds then.
///
/// `MSG_TRUNC` is left out: with it the kernel counts bytes that it did not write.
pub fn recv<B: IoBufMut>(fd: &Fd, buf: B, flags: i32) -> Op<Recv<B>> {
    Op::new(Recv { fd: fd.clone(), buf, flags: flags & !libc::MSG_TRUNC })
}

/// See [`recv`].
#[derive(Debug)]
pub struct Recv<B> {
    fd: Fd,
    buf: B,
    flags: i32,
}

// SAFETY: the request points into the buffer, whose memory `IoBufMut` keeps in place.
unsafe impl<B: IoBufMut> Operation for Recv<B> {
    type Output = BufResult<usize, B>;

    fn request(&mut self) -> Request {
        if self.buf.room() == 0 {
            return Request::Nop; // for `filled` to refuse: a datagram must not be lost
        }
        let len = clamp(self.buf.room());
        Request::Recv { fd: self.fd.raw(), buf: self.buf.ptr_mut(), len, flags: self.flags }
    }

    fn finish(self, result: io::Result<u32>) -> Self::Output {
        // SAFETY: the result is the kernel's count of the bytes it wrote.
        unsafe { filled(result, self.buf) }
    }
}

/// Sends `buf` with `MSG_*` flags; a peer that is gone is an error, never a `SIGPIPE`. Resolves to
/// the bytes sent, which may be fewer: see [`send_all`].
pub fn send<B: IoBuf>(fd: &Fd, buf: B, flags: i32) -> Op<Send<B>> {
    Op::new(Send { fd: fd.clone(), buf, flags: flags | libc::MSG_NOSIGNAL })
}

/// See [`send`].
#[derive(Debug)]
pub struct Send<B> {
    fd: Fd,
    buf: B,
    flags: i32,
}

// SAFETY: the request points into the buffer, whose memory `IoBuf` keeps in place.
unsafe impl<B: IoBuf> Operation for Send<B> {
    type Output = BufResult<usize, B>;

    fn request(&mut self) -> Request {
        let (buf, len) = (self.buf.ptr(), clamp(self.buf.len()));
        Request::Send { fd: self.fd.raw(), buf, len, flags: self.flags }
    }

    fn finish(self, result: io::Result<u32>) -> Self::Output {
        (result.map(|n| n as usize), self.buf)
    }
}

/// Sends the whole buffer, however short the single sends come.
///
/// # Errors
///
/// Those of `send(2)`. Part of the buffer may have been sent.
pub async fn send_all<B: IoBuf>(fd: &Fd, mut buf: B, flags: i32) -> BufResult<(), B> {
    let len = buf.len();
    let mut done = 0;
    while done < len {
        let (result, slice) = send(fd, buf.part(done..len), flags).await;
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
