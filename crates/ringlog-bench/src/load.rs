//! The closed-loop load generator: N connections, each with one request in flight.
//!
//! One thread, one edge-triggered epoll instance and non-blocking sockets. It is the same for every
//! engine and knows nothing about them. A request's latency runs from just before its first byte is
//! written until its last echoed byte has been read and compared.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use hdrhistogram::Histogram;
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

/// How long a connection attempt may take, and how long nothing at all may be echoed.
const STALL_TIMEOUT: Duration = Duration::from_secs(5);

/// How often a generator without answers looks at the clock.
const TICK: Duration = Duration::from_millis(50);

/// Latencies are kept with three significant digits, up to this one.
const MAX_LATENCY: Duration = Duration::from_secs(60);

/// What is read from a socket in one go.
const SCRATCH_SIZE: usize = 64 * 1024;

/// What happened in one stretch of time.
#[derive(Debug)]
pub struct Interval {
    /// How long it was.
    pub elapsed: Duration,
    /// Latencies in nanoseconds of the requests that were completed in it.
    pub latency: Histogram<u64>,
}

/// A set of open connections that send requests whenever [`run_for`](Generator::run_for) is called.
#[derive(Debug)]
pub struct Generator {
    epoll: Epoll,
    connections: Vec<Connection>,
    scratch: Box<[u8]>,
    started: bool,
}

impl Generator {
    /// Opens `connections` connections to `server` which will send messages of `message` bytes.
    pub fn connect(server: SocketAddr, connections: usize, message: usize) -> Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let interest = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLET;
        let connections = (0..connections)
            .map(|index| {
                let connection = Connection::open(server, index, message)?;
                epoll.add(&connection.stream, EpollEvent::new(interest, index as u64))?;
                Ok(connection)
            })
            .collect::<Result<Vec<_>>>()?;
        let scratch = vec![0; SCRATCH_SIZE].into_boxed_slice();
        Ok(Self { epoll, connections, scratch, started: false })
    }

    /// Keeps all connections busy for `duration`.
    ///
    /// Requests in flight at the end stay so: they are completed and counted by the next call.
    pub fn run_for(&mut self, duration: Duration) -> Result<Interval> {
        let longest = u64::try_from(MAX_LATENCY.as_nanos())?;
        let mut latency = Histogram::new_with_bounds(1, longest, 3)?;
        let mut events = vec![EpollEvent::empty(); self.connections.len()];

        let start = Instant::now();
        let deadline = start + duration;
        let mut now = start;
        let mut last_answer = start;
        self.start(start)?;
        while now < deadline {
            let timeout = EpollTimeout::try_from(TICK.min(deadline - now))?;
            let ready = match self.epoll.wait(&mut events, timeout) {
                Ok(ready) => ready,
                Err(Errno::EINTR) => 0,
                Err(error) => return Err(error).context("cannot wait for answers"),
            };
            let mut answered = false;
            for event in &events[..ready] {
                let connection = &mut self.connections[usize::try_from(event.data())?];
                if connection.advance(&mut self.scratch)? {
                    answered = true;
                    now = Instant::now();
                    let took = now - connection.sent_at;
                    latency.saturating_record(u64::try_from(took.as_nanos())?);
                    connection.send(now)?;
                }
            }
            if answered {
                last_answer = now;
            } else {
                now = Instant::now();
                ensure!(now - last_answer < STALL_TIMEOUT, "no answer within {STALL_TIMEOUT:?}");
            }
        }
        Ok(Interval { elapsed: now - start, latency })
    }

    /// Sends the first request on every connection, on the first call only.
    fn start(&mut self, now: Instant) -> Result<()> {
        if !std::mem::replace(&mut self.started, true) {
            for connection in &mut self.connections {
                connection.send(now)?;
            }
        }
        Ok(())
    }
}

/// One connection and its request in flight.
#[derive(Debug)]
struct Connection {
    stream: TcpStream,
    request: Box<[u8]>,
    sequence: u64,
    sent_at: Instant,
    written: usize,
    echoed: usize,
}

impl Connection {
    fn open(server: SocketAddr, index: usize, message: usize) -> Result<Self> {
        let stream = TcpStream::connect_timeout(&server, STALL_TIMEOUT)
            .with_context(|| format!("cannot open connection {index}"))?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        // Every connection sends other bytes, so that a mix-up between two of them shows.
        let request =
            (0..message).map(|at| index.wrapping_mul(31).wrapping_add(at).to_le_bytes()[0]);
        Ok(Self {
            stream,
            request: request.collect(),
            sequence: 0,
            sent_at: Instant::now(),
            written: 0,
            echoed: 0,
        })
    }

    /// Begins the next request. Its first bytes change each time, so that a stale answer shows.
    fn send(&mut self, now: Instant) -> Result<()> {
        self.sequence += 1;
        for (byte, stamp) in self.request.iter_mut().zip(self.sequence.to_le_bytes()) {
            *byte = stamp;
        }
        self.sent_at = now;
        self.written = 0;
        self.echoed = 0;
        self.write()
    }

    /// Does what the socket allows; `true` once the whole request has come back.
    fn advance(&mut self, scratch: &mut [u8]) -> Result<bool> {
        self.write()?;
        loop {
            match self.stream.read(scratch) {
                Ok(0) => bail!("the server closed a connection"),
                Ok(count) => {
                    let expected = &self.request[self.echoed..];
                    ensure!(
                        expected.get(..count) == Some(&scratch[..count]),
                        "the server echoed other bytes than it was sent"
                    );
                    self.echoed += count;
                    // A short read has drained the socket; the next bytes come with an event.
                    if count < scratch.len() {
                        break;
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("cannot receive"),
            }
        }
        Ok(self.echoed == self.request.len())
    }

    /// Writes what is left of the request, or as much as the socket takes.
    fn write(&mut self) -> Result<()> {
        while self.written < self.request.len() {
            match self.stream.write(&self.request[self.written..]) {
                Ok(count) => self.written += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("cannot send"),
            }
        }
        Ok(())
    }
}
