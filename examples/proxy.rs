//! A TCP proxy by accept-scatter: thread 0 accepts, and the clients go round threads 1 and up.
//!
//! ```text
//! cargo run --release --example proxy -- --demo
//! cargo run --release --example proxy -- LISTEN BACKEND [--threads N]    (3 threads)
//! ```
//!
//! Each client is connected to the backend, and its bytes are pumped both ways until *both* sides
//! have finished: a side that finishes first (a half-close) is passed on, and the other direction
//! goes on. An error in either direction ends both.
//!
//! `--demo` runs all of it on loopback, with an echo backend and clients that send, half-close and
//! check what comes back; then it ends. Without it the proxy runs until it is interrupted.

use futures::future::try_join;
use ringlog::rt::{self, Address, Fd, Handle, Runtime, RuntimeConfig, Task};
use std::error::Error;
use std::net::{Shutdown, SocketAddr, TcpListener};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::{env, io};

const BUFFER: usize = 64 * 1024;
const USAGE: &str = "usage: proxy --demo | LISTEN BACKEND [--threads N]";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("proxy: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let mut addresses = Vec::new();
    let (mut is_demo, mut threads) = (false, 3);
    let mut arguments = env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--demo" => is_demo = true,
            "--threads" => {
                let number = arguments.next().ok_or("--threads needs a number")?;
                threads = number.parse().map_err(|e| format!("--threads {number}: {e}"))?;
            }
            option if option.starts_with('-') => return Err(USAGE.into()),
            address => addresses.push(address.parse().map_err(|e| format!("{address}: {e}"))?),
        }
    }
    if threads < 2 {
        return Err("a proxy needs an acceptor's thread and a worker's: --threads 2".into());
    }
    match addresses[..] {
        [] if is_demo => demo(threads),
        [listen, backend] if !is_demo => {
            let proxy = Proxy::start(listen, backend, threads)?;
            println!("proxy on {} to {backend}, {threads} threads", proxy.address);
            rt::block_on(proxy.acceptor)?;
            Ok(())
        }
        _ => Err(USAGE.into()),
    }
}

// ---- the proxy ------------------------------------------------------------------------------

/// What one worker has done.
#[derive(Default)]
struct Counts {
    clients: AtomicU64,
    failed: AtomicU64,
    to_backend: AtomicU64,
    to_client: AtomicU64,
}

struct Proxy {
    runtime: Runtime,
    address: SocketAddr,
    acceptor: Task<()>,
    /// Of workers 1.., in order.
    counts: Vec<Arc<Counts>>,
}

impl Proxy {
    fn start(
        listen: SocketAddr,
        backend: SocketAddr,
        num_threads: usize,
    ) -> Result<Self, Box<dyn Error>> {
        let listener = TcpListener::bind(listen).map_err(|e| format!("{listen}: {e}"))?;
        let address = listener.local_addr()?;
        let runtime = Runtime::start(RuntimeConfig { num_threads, ..RuntimeConfig::default() })?;
        let workers: Vec<_> = (1..runtime.size())
            .map(|i| (runtime.thread(i).clone(), Arc::new(Counts::default())))
            .collect();
        let counts = workers.iter().map(|(_, counts)| Arc::clone(counts)).collect();
        let acceptor = accept_and_scatter(Fd::from(listener), backend.into(), workers);
        let acceptor = runtime.thread(0).schedule(acceptor);
        Ok(Self { runtime, address, acceptor, counts })
    }
}

async fn accept_and_scatter(listener: Fd, backend: Address, workers: Vec<(Handle, Arc<Counts>)>) {
    for (worker, counts) in workers.iter().cycle() {
        match worker.until_stopping(rt::accept(&listener)).await {
            None => return,
            Some(Ok((client, peer))) => {
                let client = serve(client, peer, backend.clone(), Arc::clone(counts));
                drop(worker.schedule(client)); // it runs on by itself
            }
            Some(Err(error)) => {
                eprintln!("accept: {error}");
                // Out of descriptors, say: give the clients time to end.
                drop(rt::timeout_ms(100).await);
            }
        }
    }
}

async fn serve(client: Fd, peer: Address, backend: Address, counts: Arc<Counts>) {
    counts.clients.fetch_add(1, Ordering::Relaxed);
    if let Err(error) = connect_and_pump(&client, &backend, &counts).await {
        counts.failed.fetch_add(1, Ordering::Relaxed);
        eprintln!("{peer}: {error}");
    }
}

async fn connect_and_pump(client: &Fd, backend: &Address, counts: &Counts) -> io::Result<()> {
    let server = connect(backend).await?;
    // The first error drops the other direction, which cancels what it waits for.
    try_join(pump(client, &server, &counts.to_backend), pump(&server, client, &counts.to_client))
        .await?;
    Ok(())
}

async fn connect(address: &Address) -> io::Result<Fd> {
    let socket = rt::socket(address)?;
    rt::connect(&socket, address).await?;
    Ok(socket)
}

/// One direction, until `from` has finished; `to` is then told so.
async fn pump(from: &Fd, to: &Fd, bytes: &AtomicU64) -> io::Result<()> {
    let mut buf = Vec::with_capacity(BUFFER);
    loop {
        let (received, data) = rt::recv(from, buf, 0).await;
        let received = received?;
        if received == 0 {
            return finish(to).await;
        }
        let (sent, data) = rt::send_all(to, data, 0).await;
        sent?;
        bytes.fetch_add(received as u64, Ordering::Relaxed);
        buf = data;
    }
}

/// Half-closes: no more bytes will be sent.
async fn finish(stream: &Fd) -> io::Result<()> {
    match rt::shutdown(stream, Shutdown::Write).await {
        // The peer is gone altogether, and needs no telling.
        Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
        result => result,
    }
}

// ---- the demo -------------------------------------------------------------------------------

const CLIENTS: u64 = 32;
const BYTES_EACH: usize = 1_000_003; // never a whole number of buffers

fn demo(threads: usize) -> Result<(), Box<dyn Error>> {
    let any_port = SocketAddr::from(([127, 0, 0, 1], 0));
    let outside = Runtime::start(RuntimeConfig::default())?; // backend and clients, one thread
    let listener = TcpListener::bind(any_port)?;
    let backend = listener.local_addr()?;
    let thread = outside.thread(0).clone();
    let echo = outside.schedule(async move { echo_backend(&Fd::from(listener), &thread).await });
    let proxy = Proxy::start(any_port, backend, threads)?;
    println!("{CLIENTS} clients -> proxy on {} -> echo backend on {backend}", proxy.address);

    let through: Address = proxy.address.into();
    let clients: Vec<_> =
        (0..CLIENTS).map(|number| outside.schedule(client(number, through.clone()))).collect();
    for (number, client) in clients.into_iter().enumerate() {
        rt::block_on(client)?.map_err(|e| format!("client {number}: {e}"))?;
    }
    proxy.runtime.stop()?;
    rt::block_on(proxy.acceptor)?;
    outside.stop()?;
    rt::block_on(echo)??;

    let mut total = [0; 4];
    for (worker, counts) in (1..).zip(&proxy.counts) {
        let Counts { clients, failed, to_backend, to_client } = &**counts;
        let counts = [clients, failed, to_backend, to_client].map(|n| n.load(Ordering::Relaxed));
        let [clients, failed, to_backend, to_client] = counts;
        println!(
            "worker {worker}: {clients} clients ({failed} failed), {to_backend} bytes to the \
             backend, {to_client} bytes back"
        );
        total.iter_mut().zip(counts).for_each(|(sum, n)| *sum += n);
    }
    let bytes = CLIENTS * BYTES_EACH as u64;
    if total != [CLIENTS, 0, bytes, bytes] {
        return Err(format!("expected {CLIENTS} clients and {bytes} bytes each way").into());
    }
    println!("every byte came back as it was sent");
    Ok(())
}

async fn echo_backend(listener: &Fd, thread: &Handle) -> io::Result<()> {
    while let Some(accepted) = thread.until_stopping(rt::accept(listener)).await {
        let (stream, peer) = accepted?;
        drop(rt::spawn(async move {
            if let Err(error) = pump(&stream, &stream, &AtomicU64::new(0)).await {
                eprintln!("backend: {peer}: {error}");
            }
        }));
    }
    Ok(())
}

/// Sends its bytes and half-closes; meanwhile reads until the end, and compares.
async fn client(number: u64, proxy: Address) -> io::Result<()> {
    let stream = connect(&proxy).await?;
    let expected = pattern(number);
    let to_send = expected.clone();
    let send = async {
        rt::send_all(&stream, to_send, 0).await.0?;
        finish(&stream).await
    };
    let check = async {
        let (mut at, mut buf) = (0, Vec::with_capacity(BUFFER));
        loop {
            let (received, data) = rt::recv(&stream, buf, 0).await;
            let end = at + received?;
            if end == at {
                break;
            }
            if expected.get(at..end) != Some(&data[..]) {
                return Err(io::Error::other(format!("other bytes than sent at {at}..{end}")));
            }
            (at, buf) = (end, data);
        }
        if at == BYTES_EACH {
            Ok(())
        } else {
            Err(io::Error::new(io::ErrorKind::UnexpectedEof, format!("only {at} bytes back")))
        }
    };
    try_join(send, check).await?;
    Ok(())
}

/// Bytes that differ between clients and do not repeat (a xorshift generator's).
fn pattern(number: u64) -> Vec<u8> {
    let mut state = number + 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let mut bytes = Vec::with_capacity(BYTES_EACH + 8);
    while bytes.len() < BYTES_EACH {
        bytes.extend_from_slice(&next());
    }
    bytes.truncate(BYTES_EACH);
    bytes
}
