//! A TCP echo server: one thread accepts, and the connections go round all threads.
//!
//! ```text
//! cargo run --release --example echo -- [ADDRESS] [--threads N]    (127.0.0.1:7777, 2 threads)
//! ```
//!
//! It shows how a server on a [`Runtime`] starts, spreads its work and stops: Ctrl-C or `SIGTERM`
//! is read through the ring like any other input, [`Runtime::stop`] lets every loop know by
//! [`Handle::stopping`], and each ends after the answer it is at.

use futures::future::{Either, select};
use ringlog::rt::{self, Address, Fd, Handle, Runtime, RuntimeConfig};
use std::error::Error;
use std::net::TcpListener;
use std::os::fd::{FromRawFd, OwnedFd};
use std::pin::pin;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use std::{env, io, mem, ptr};

#[derive(Default)]
struct Served {
    connections: AtomicU64,
    bytes: AtomicU64,
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("echo: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let (address, num_threads) = arguments()?;
    let signals = signals()?; // before there are threads, which inherit what is blocked
    let listener = TcpListener::bind(&address).map_err(|e| format!("{address}: {e}"))?;
    let address = listener.local_addr()?;
    let runtime = Runtime::start(RuntimeConfig {
        num_threads,
        stop_grace: Duration::from_secs(5), // for clients that do not read their answer
        ..RuntimeConfig::default()
    })?;

    let served = Arc::new(Served::default());
    let threads = runtime.threads().to_vec();
    let acceptor = accept_loop(Fd::from(listener), threads, Arc::clone(&served));
    let acceptor = runtime.thread(0).schedule(acceptor);
    println!("listening on {address} with {num_threads} threads; Ctrl-C stops");

    let signal = runtime.schedule(async move { rt::read(&signals, vec![0; 128], 0).await.0 });
    rt::block_on(signal)??;
    println!("stopping");
    let stopped = runtime.stop();
    println!(
        "served {} connections, {} bytes",
        served.connections.load(Ordering::Relaxed),
        served.bytes.load(Ordering::Relaxed)
    );
    stopped?;
    rt::block_on(acceptor)?;
    Ok(())
}

async fn accept_loop(listener: Fd, threads: Vec<Handle>, served: Arc<Served>) {
    for thread in threads.iter().cycle() {
        match thread.until_stopping(rt::accept(&listener)).await {
            None => return, // the accept is dropped, and so cancelled
            Some(Ok((stream, peer))) => {
                let connection = connection(stream, peer, thread.clone(), Arc::clone(&served));
                drop(thread.schedule(connection)); // it runs on by itself
            }
            Some(Err(error)) => {
                eprintln!("accept: {error}");
                // Out of descriptors, say: give the connections time to end.
                drop(rt::timeout_ms(100).await);
            }
        }
    }
}

async fn connection(stream: Fd, peer: Address, thread: Handle, served: Arc<Served>) {
    served.connections.fetch_add(1, Ordering::Relaxed);
    if let Err(error) = echo(&stream, &thread, &served.bytes).await {
        eprintln!("{peer}: {error}");
    }
}

/// Until the peer has finished or the server stops. The stream closes with its last holder.
async fn echo(stream: &Fd, thread: &Handle, bytes: &AtomicU64) -> io::Result<()> {
    // Made once, and not for each message as by `until_stopping`: waiting on costs a load then.
    let mut stopping = pin!(thread.stopping());
    let mut buf = Vec::with_capacity(16 * 1024);
    loop {
        let received = rt::recv(stream, buf, 0);
        let Either::Right(((received, data), _)) = select(stopping.as_mut(), received).await else {
            return Ok(());
        };
        let received = received?;
        if received == 0 {
            return Ok(());
        }
        let (sent, data) = rt::send_all(stream, data, 0).await;
        sent?;
        bytes.fetch_add(received as u64, Ordering::Relaxed);
        buf = data; // as much room as ever
    }
}

/// A descriptor that gives `SIGINT` and `SIGTERM` to read, instead of their ending the process.
fn signals() -> io::Result<Fd> {
    // SAFETY: a set of bits, for which zero is valid.
    let mut set: libc::sigset_t = unsafe { mem::zeroed() };
    // SAFETY: the set is ours to write.
    unsafe { libc::sigemptyset(&raw mut set) };
    for signal in [libc::SIGINT, libc::SIGTERM] {
        // SAFETY: the set is ours to write, and was made empty before.
        unsafe { libc::sigaddset(&raw mut set, signal) };
    }
    // SAFETY: the set is only read, and null is for a caller who does not ask for the old one.
    let blocked =
        unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, ptr::null_mut()) };
    if blocked != 0 {
        return Err(io::Error::from_raw_os_error(blocked));
    }
    // SAFETY: the set is only read.
    let fd = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just opened, and owned by nobody else.
    Ok(Fd::from(unsafe { OwnedFd::from_raw_fd(fd) }))
}

fn arguments() -> Result<(String, usize), Box<dyn Error>> {
    let (mut address, mut threads) = ("127.0.0.1:7777".to_owned(), 2);
    let mut arguments = env::args().skip(1);
    while let Some(argument) = arguments.next() {
        if argument == "--threads" {
            let number = arguments.next().ok_or("--threads needs a number")?;
            threads = number.parse().map_err(|e| format!("--threads {number}: {e}"))?;
        } else if argument.starts_with('-') {
            return Err("usage: echo [ADDRESS] [--threads N]".into());
        } else {
            address = argument;
        }
    }
    if threads == 0 {
        return Err("--threads must be at least 1".into());
    }
    Ok((address, threads))
}
