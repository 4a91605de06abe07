//! A server under test as a process of its own.
//!
//! The parent's side is [`Server`]: it runs the current executable again as
//! `serve <engine>`, waits for the port that the child prints, reads the child's CPU clock and
//! kills the child when dropped. The child's side is [`serve`], with [`Ready`] as the sign by which
//! an engine says that its runtime stands.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::{prctl, signal::Signal};
use nix::unistd::alarm;
use socket2::SockRef;

use crate::affinity;
use crate::cpu_time::{ProcessClock, Usage};
use crate::engines::Engine;

/// How long a server may take from its start until it says that it is ready.
const START_TIMEOUT: Duration = Duration::from_secs(10);

/// More than the largest number of connections that are opened in one go on a default run.
const BACKLOG: i32 = 1024;

/// As much of a failed server's standard error as is kept.
const MAX_LAST_WORDS: u64 = 16 * 1024;

/// A running server process; dropping it kills the process.
#[derive(Debug)]
pub struct Server {
    process: Process,
    clock: ProcessClock,
    port: u16,
}

impl Server {
    /// Starts `engine` in a new process, pinned to `cpu`, and waits until it is ready.
    ///
    /// The process ends by itself after `lifetime`, whatever happens to this one.
    pub fn start(engine: Engine, cpu: Option<usize>, lifetime: Duration) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe().context("own path is unknown")?);
        command.arg("serve").arg(engine.to_string());
        command.arg("--lifetime").arg(lifetime.as_secs_f64().to_string());
        if let Some(cpu) = cpu {
            command.arg("--cpu").arg(cpu.to_string());
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());

        let mut process = Process(command.spawn().context("cannot start the server process")?);
        match process.handshake() {
            Ok((clock, port)) => Ok(Self { process, clock, port }),
            Err(error) => Err(process.explain(error)),
        }
    }

    /// Where the server listens.
    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// CPU time that the server has used and waited for so far.
    pub fn usage(&self) -> Result<Usage> {
        self.clock.now()
    }

    /// Stops the server and adds what it wrote on its standard error, if anything, to `error`.
    pub fn explain(mut self, error: anyhow::Error) -> anyhow::Error {
        self.process.explain(error)
    }
}

/// A child process that never outlives its handle.
#[derive(Debug)]
struct Process(Child);

impl Process {
    fn handshake(&mut self) -> Result<(ProcessClock, u16)> {
        let mut stdout = self.0.stdout.take().context("the server has no standard output")?;
        let line = read_line(&mut stdout, Instant::now() + START_TIMEOUT)?;
        let port = line.parse().with_context(|| format!("not a port: {line:?}"))?;
        Ok((ProcessClock::of(self.0.id())?, port))
    }

    fn explain(&mut self, error: anyhow::Error) -> anyhow::Error {
        self.stop();
        let mut words = Vec::new();
        if let Some(stderr) = self.0.stderr.take() {
            // What could be read is worth telling, even if the rest could not.
            drop(stderr.take(MAX_LAST_WORDS).read_to_end(&mut words));
        }
        let words = String::from_utf8_lossy(&words);
        let mut lines = words.lines().map(str::trim).filter(|line| !line.is_empty()).peekable();
        if lines.peek().is_none() {
            return error;
        }
        anyhow!("{error:#}: {}", lines.collect::<Vec<_>>().join("; "))
    }

    fn stop(&mut self) {
        // Both fail only if the process is gone already, which is what they are for.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Reads one line from a pipe, waiting no longer than until `deadline`.
fn read_line(pipe: &mut ChildStdout, deadline: Instant) -> Result<String> {
    let mut line = Vec::new();
    let mut byte = [0];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let mut interest = [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)];
        match poll(&mut interest, timeout) {
            Ok(0) => bail!("the server was not ready within {START_TIMEOUT:?}"),
            Ok(_) => {}
            Err(Errno::EINTR) => continue,
            Err(error) => return Err(error).context("cannot wait for the server"),
        }
        match pipe.read(&mut byte).context("cannot read from the server")? {
            0 => bail!("the server ended before it was ready"),
            _ if byte[0] == b'\n' => break,
            _ => line.push(byte[0]),
        }
    }
    String::from_utf8(line).context("the server printed something else than a port")
}

/// The child's side: sets the process up and runs `engine` until the process is killed.
pub fn serve(engine: Engine, cpu: Option<usize>, lifetime: Duration) -> Result<()> {
    // Two nets under the parent, which normally kills this process: the kernel does so when the
    // parent dies first, and an alarm in case that even this was too late.
    prctl::set_pdeathsig(Signal::SIGKILL).context("cannot ask for the parent's death signal")?;
    alarm::set(u32::try_from(lifetime.as_secs())?.saturating_add(1));

    if let Some(cpu) = cpu {
        affinity::pin_to(cpu)?;
    }
    let listener = listen().context("cannot listen on 127.0.0.1")?;
    let ready = Ready { port: listener.local_addr()?.port() };
    engine.serve(listener, ready)
}

/// A listener on a free loopback port. It is blocking, as `io_uring` wants it.
fn listen() -> std::io::Result<TcpListener> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let socket = SockRef::from(&listener);
    // Accepted sockets inherit this on Linux, so that every engine has it at no cost.
    socket.set_tcp_nodelay(true)?;
    // The standard library's backlog is shorter; listening again replaces it.
    socket.listen(BACKLOG)?;
    Ok(listener)
}

/// Hands the port to the parent, once the engine can accept connections.
#[derive(Debug)]
pub struct Ready {
    port: u16,
}

impl Ready {
    /// Says that the runtime stands and the server is about to accept.
    pub fn announce(self) -> std::io::Result<()> {
        let mut stdout = std::io::stdout().lock();
        writeln!(stdout, "{}", self.port)?;
        stdout.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use super::*;

    #[test]
    fn accepted_sockets_inherit_nodelay() {
        let listener = listen().expect("loopback is there");
        let address = listener.local_addr().expect("it is bound");
        let _client = TcpStream::connect(address).expect("the backlog has room");
        let (accepted, _) = listener.accept().expect("a connection is waiting");
        assert!(accepted.nodelay().expect("it is a TCP socket"));
    }
}
