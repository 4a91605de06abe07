//! The io-uring crate without any runtime: accept, receive and send as a loop over completions.
//!
//! This is the bound for what a runtime can do with the same operations, one per request each for
//! receiving and for sending. It is no bound for other operations: registered buffers, multishot
//! receives or busy polling may be faster, here as in a runtime.

use std::io;
use std::mem::ManuallyDrop;
use std::net::TcpListener;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use anyhow::{Context, Result};
use io_uring::{IoUring, opcode, squeue, types};

use super::{BUFFER_SIZE, RING_ENTRIES};
use crate::server::Ready;

/// The completion of an accept carries this, that of a connection's operation its index.
const ACCEPT: u64 = u64::MAX;

pub(super) fn serve(listener: &TcpListener, ready: Ready) -> Result<()> {
    let ring = IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .build(RING_ENTRIES)
        .context("no ring")?;
    let mut server = Server { ring, connections: ManuallyDrop::default(), vacant: Vec::new() };
    server.accept(listener)?;
    ready.announce()?;
    loop {
        server.turn(listener)?;
    }
}

struct Server {
    ring: IoUring,
    /// Never dropped: the kernel may still write to their buffers when the loop fails.
    connections: ManuallyDrop<Vec<Option<Connection>>>,
    /// Indices of connections that were closed.
    vacant: Vec<usize>,
}

/// A client, its buffer and the one operation on it that is in flight.
struct Connection {
    socket: OwnedFd,
    buffer: Box<[u8; BUFFER_SIZE]>,
    state: State,
}

#[derive(Clone, Copy)]
enum State {
    Receiving,
    Sending { start: usize, end: usize },
}

impl Server {
    /// Submits what is queued, waits for at least one completion and handles all there are.
    fn turn(&mut self, listener: &TcpListener) -> io::Result<()> {
        match self.ring.submit_and_wait(1) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            Err(error) => return Err(error),
        }
        loop {
            // One at a time, since handling it needs the ring for the next submission.
            let completion = self.ring.completion().next();
            let Some(completion) = completion else {
                return Ok(());
            };
            match completion.user_data() {
                ACCEPT => self.accepted(completion.result(), listener)?,
                index => self.completed(index, completion.result())?,
            }
        }
    }

    fn accept(&mut self, listener: &TcpListener) -> io::Result<()> {
        let socket = types::Fd(listener.as_raw_fd());
        let none = std::ptr::null_mut();
        let entry = opcode::Accept::new(socket, none, none.cast()).build().user_data(ACCEPT);
        // SAFETY: the operation refers to no memory, and the listener outlives the ring.
        unsafe { self.push(&entry) }
    }

    fn accepted(&mut self, result: i32, listener: &TcpListener) -> io::Result<()> {
        let descriptor = check(result)?;
        // SAFETY: the kernel has just opened this descriptor for us.
        let socket = unsafe { OwnedFd::from_raw_fd(descriptor) };
        let buffer = Box::new([0; BUFFER_SIZE]);
        let connection = Connection { socket, buffer, state: State::Receiving };
        let index = self.vacant.pop().unwrap_or_else(|| {
            self.connections.push(None);
            self.connections.len() - 1
        });
        self.connections[index] = Some(connection);
        self.next(index)?;
        self.accept(listener)
    }

    fn completed(&mut self, index: u64, result: i32) -> io::Result<()> {
        let index = usize::try_from(index).map_err(io::Error::other)?;
        let Some(connection) = &mut self.connections[index] else {
            return Err(io::Error::other("a completion for no connection"));
        };
        let count =
            check(result).and_then(|count| usize::try_from(count).map_err(io::Error::other));
        connection.state = match (connection.state, count) {
            (_, Ok(0) | Err(_)) => {
                self.connections[index] = None;
                self.vacant.push(index);
                return Ok(());
            }
            (State::Receiving, Ok(count)) => State::Sending { start: 0, end: count },
            (State::Sending { start, end }, Ok(count)) if start + count < end => {
                State::Sending { start: start + count, end }
            }
            (State::Sending { .. }, Ok(_)) => State::Receiving,
        };
        self.next(index)
    }

    /// Queues the operation that the connection's state asks for.
    fn next(&mut self, index: usize) -> io::Result<()> {
        let Some(connection) = &mut self.connections[index] else {
            return Ok(());
        };
        let socket = types::Fd(connection.socket.as_raw_fd());
        let bytes = match connection.state {
            State::Receiving => &mut connection.buffer[..],
            State::Sending { start, end } => &mut connection.buffer[start..end],
        };
        let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
        let entry = match connection.state {
            State::Receiving => opcode::Recv::new(socket, bytes.as_mut_ptr(), length).build(),
            State::Sending { .. } => opcode::Send::new(socket, bytes.as_ptr(), length).build(),
        };
        // SAFETY: the buffer is on the heap and the connection is kept until this operation, the
        // only one on it, is completed; it is not touched before then.
        unsafe { self.push(&entry.user_data(index as u64)) }
    }

    /// Queues an operation, making room first if the queue is full.
    ///
    /// # Safety
    ///
    /// What the operation refers to must stay valid until it is completed.
    unsafe fn push(&mut self, entry: &squeue::Entry) -> io::Result<()> {
        if self.ring.submission().is_full() {
            self.ring.submit()?;
        }
        // SAFETY: the caller answers for what the entry refers to.
        unsafe { self.ring.submission().push(entry) }.map_err(io::Error::other)
    }
}

/// Turns the result of a completion into an error if it says so.
fn check(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(result) }
}
