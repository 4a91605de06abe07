//! The runtime against the bare ring, and the cost of crossing threads.
//!
//! ```text
//! cargo bench --bench rt                      (everything, about 80 s)
//! cargo bench --bench rt -- nop/depth_1       (one group)
//! ```
//!
//! | Group | One iteration is |
//! |---|---|
//! | `nop`, `read_cached`, `read_direct` | one operation of that many in flight; 4 KiB a read |
//! | `cross_thread_spin`, `cross_thread_sleep` | one round trip between two executors |
//! | `echo` | 64 bytes to the server and back over loopback, on one of that many connections |
//!
//! `bare` is the io-uring crate with the flags that the runtime takes, and `submit_and_wait(1)`;
//! `runtime` is as many tasks on one executor, each of which awaits one operation after another.
//! `read_direct` is left out where the file system has no `O_DIRECT`.

use criterion::{BenchmarkGroup, Criterion, SamplingMode, Throughput, measurement::WallTime};
use io_uring::squeue::Entry;
use io_uring::{IoUring, opcode, types};
use ringlog::rt::{
    self, Address, Executor, ExecutorConfig, Fd, Handle, IoBuf, IoBufMut, Runtime, RuntimeConfig,
    Task,
};
use std::fs::{File, OpenOptions};
use std::future::Future;
use std::io::Write;
use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::time::{Duration, Instant};

const BLOCK: usize = 4096;
const BLOCKS: u64 = 1024;
const ENTRIES: u32 = 256;

fn main() {
    let mut criterion = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .configure_from_args();
    nop(&mut criterion);
    read(&mut criterion);
    cross_thread(&mut criterion);
    echo(&mut criterion);
    criterion.final_summary();
}

fn group<'a>(criterion: &'a mut Criterion, name: &str) -> BenchmarkGroup<'a, WallTime> {
    let mut group = criterion.benchmark_group(name);
    group.sampling_mode(SamplingMode::Flat);
    group.throughput(Throughput::Elements(1));
    group
}

/// What falls to `index` of `of` tasks that share `iterations`.
fn share(iterations: u64, index: u64, of: u64) -> u64 {
    iterations / of + u64::from(index < iterations % of)
}

// ---- operations: the runtime against the bare ring ------------------------------------------

fn nop(criterion: &mut Criterion) {
    for depth in [1, 32] {
        let mut group = group(criterion, &format!("nop/depth_{depth}"));
        group.bench_function("bare", |b| {
            let mut ring = bare_ring();
            b.iter_custom(|n| run_bare(&mut ring, depth, n, |_, _| opcode::Nop::new().build()));
        });
        group.bench_function("runtime", |b| {
            let executor = executor();
            b.iter_custom(|n| {
                run_tasks(&executor, depth, n, |_, count| async move {
                    for _ in 0..count {
                        rt::nop().await.expect("a nop");
                    }
                })
            });
        });
        group.finish();
    }
}

fn read(criterion: &mut Criterion) {
    let mut temp = tempfile::NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR")).expect("a file");
    for block in 0..BLOCKS {
        let bytes = [block.to_le_bytes()[0]; BLOCK];
        temp.write_all(&bytes).expect("room for the file");
    }
    temp.as_file().sync_all().expect("a durable file");

    let cached = File::open(temp.path()).expect("the file");
    for block in 0..BLOCKS {
        let mut bytes = [0; BLOCK];
        let warmed = cached.read_exact_at(&mut bytes, offset(block));
        warmed.expect("the file's bytes");
    }
    read_from(criterion, "read_cached", cached);

    let direct = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(temp.path());
    match direct {
        Ok(direct) => read_from(criterion, "read_direct", direct),
        Err(error) => println!("read_direct is left out: no O_DIRECT here ({error})"),
    }
}

fn read_from(criterion: &mut Criterion, name: &str, file: File) {
    let fd = Fd::from(file);
    for depth in [1, 32] {
        let mut group = group(criterion, &format!("{name}/depth_{depth}"));
        group.throughput(Throughput::Bytes(BLOCK as u64));
        group.bench_function("bare", |b| {
            let mut ring = bare_ring();
            let mut blocks: Vec<_> = (0..depth).map(|_| Block::new()).collect();
            let raw = types::Fd(fd.as_raw_fd());
            b.iter_custom(|n| {
                run_bare(&mut ring, depth, n, |slot, sequence| {
                    let len = u32::try_from(BLOCK).expect("a block's length");
                    opcode::Read::new(raw, blocks[slot].ptr_mut(), len)
                        .offset(offset(sequence))
                        .build()
                })
            });
        });
        group.bench_function("runtime", |b| {
            let executor = executor();
            b.iter_custom(|n| {
                run_tasks(&executor, depth, n, |slot, count| {
                    let fd = fd.clone();
                    async move {
                        let mut block = Block::new();
                        for i in 0..count {
                            let at = offset(i * depth + slot);
                            let (read, back) = rt::read(&fd, block, at).await;
                            assert_eq!(read.expect("a read"), BLOCK);
                            block = back;
                        }
                    }
                })
            });
        });
        group.finish();
    }
}

fn offset(sequence: u64) -> u64 {
    sequence % BLOCKS * BLOCK as u64
}

fn bare_ring() -> IoUring {
    let mut builder = IoUring::builder();
    builder
        .dontfork()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_taskrun_flag()
        .setup_submit_all()
        .setup_cqsize(4 * ENTRIES);
    builder.build(ENTRIES).expect("a ring (Linux 6.1)")
}

fn executor() -> Executor {
    let config = ExecutorConfig { entries: ENTRIES, ..ExecutorConfig::default() };
    Executor::new(config).expect("a ring")
}

/// `entry` makes the operation of that sequence number for one of `depth` slots; all have ended
/// when this returns.
fn run_bare<E>(ring: &mut IoUring, depth: u64, iterations: u64, mut entry: E) -> Duration
where
    E: FnMut(usize, u64) -> Entry,
{
    let start = Instant::now();
    let (submitter, mut submission, mut completion) = ring.split();
    let (mut started, mut ended) = (0, 0);
    let mut push = |slot: u64, started: &mut u64| {
        let index = usize::try_from(slot).expect("a slot's index");
        let entry = entry(index, *started).user_data(slot);
        // SAFETY: the buffers outlive the ring's operations, which all end before this returns,
        // and a slot's buffer serves one of them at a time.
        unsafe { submission.push(&entry) }.expect("room for each slot");
        submission.sync();
        *started += 1;
    };
    for slot in 0..depth.min(iterations) {
        push(slot, &mut started);
    }
    while ended < iterations {
        submitter.submit_and_wait(1).expect("io_uring_enter");
        completion.sync();
        for done in &mut completion {
            assert!(done.result() >= 0, "errno {}", -done.result());
            ended += 1;
            if started < iterations {
                push(done.user_data(), &mut started);
            }
        }
    }
    start.elapsed()
}

/// `task` makes the work of one of `depth` tasks: so many operations, one after another.
fn run_tasks<M, F>(executor: &Executor, depth: u64, iterations: u64, task: M) -> Duration
where
    M: Fn(u64, u64) -> F,
    F: Future<Output = ()> + 'static,
{
    let tasks: Vec<_> =
        (0..depth).map(|slot| executor.spawn(task(slot, share(iterations, slot, depth)))).collect();
    let start = Instant::now();
    executor.block_on(all(tasks));
    start.elapsed()
}

async fn all(tasks: Vec<Task<()>>) {
    for task in tasks {
        task.await.expect("a task that ends");
    }
}

/// A buffer as `O_DIRECT` wants it.
#[repr(align(4096))]
struct Page([u8; BLOCK]);

struct Block(Box<Page>);

impl Block {
    fn new() -> Self {
        Self(Box::new(Page([0; BLOCK])))
    }
}

// SAFETY: the memory does not move with the box, and all of it is initialised.
unsafe impl IoBuf for Block {
    fn ptr(&self) -> *const u8 {
        self.0.0.as_ptr()
    }
    fn len(&self) -> usize {
        BLOCK
    }
}

// SAFETY: as above, and nobody else has the box.
unsafe impl IoBufMut for Block {
    fn ptr_mut(&mut self) -> *mut u8 {
        self.0.0.as_mut_ptr()
    }
    fn room(&self) -> usize {
        BLOCK
    }
    unsafe fn filled(&mut self, _start: usize, _end: usize) {}
}

// ---- crossing threads -----------------------------------------------------------------------

fn two_threads(spin: Option<Duration>) -> Runtime {
    let executor_config = ExecutorConfig { spin, ..ExecutorConfig::default() };
    let config = RuntimeConfig {
        num_threads: 2,
        pin_threads: true, // on one core, crossing is cheap and spinning is in vain
        executor_config,
        ..RuntimeConfig::default()
    };
    Runtime::start(config).expect("two threads with rings")
}

/// Runs `depth` tasks on that thread, as [`run_tasks`] does on an executor.
fn run_tasks_on<M, F>(thread: &Handle, depth: u64, iterations: u64, task: M) -> Duration
where
    M: Fn(u64, u64) -> F + Send + 'static,
    F: Future<Output = ()> + 'static,
{
    let timed = thread.schedule_local(move || async move {
        let start = Instant::now();
        let tasks = (0..depth).map(|i| rt::spawn(task(i, share(iterations, i, depth))));
        all(tasks.collect()).await;
        start.elapsed()
    });
    rt::block_on(timed).expect("a task that ends")
}

fn cross_thread(criterion: &mut Criterion) {
    let spin = Duration::from_micros(20);
    for (name, spin) in [("spin", spin), ("sleep", Duration::ZERO)] {
        let mut group = group(criterion, &format!("cross_thread_{name}"));
        for depth in [1, 8, 64] {
            group.bench_function(format!("schedule/depth_{depth}"), |b| {
                let runtime = two_threads(Some(spin));
                let (here, there) = (runtime.thread(0), runtime.thread(1));
                b.iter_custom(|n| {
                    let there = there.clone();
                    run_tasks_on(here, depth, n, move |_, count| {
                        let there = there.clone();
                        async move {
                            for _ in 0..count {
                                there.schedule(async {}).await.expect("a task that ends");
                            }
                        }
                    })
                });
            });
        }
        group.bench_function("schedule_on_and_back", |b| {
            let runtime = two_threads(Some(spin));
            let (here, there) = (runtime.thread(0), runtime.thread(1));
            b.iter_custom(|n| {
                let (home, away) = (here.clone(), there.clone());
                let timed = here.schedule(async move {
                    let start = Instant::now();
                    for _ in 0..n {
                        rt::schedule_on(&away).await.expect("a thread that runs");
                        rt::schedule_on(&home).await.expect("a thread that runs");
                    }
                    start.elapsed()
                });
                rt::block_on(timed).expect("a task that ends")
            });
        });
        group.finish();
    }
}

// ---- echo over loopback ---------------------------------------------------------------------

const MESSAGE: usize = 64;

fn echo(criterion: &mut Criterion) {
    let mut group = group(criterion, "echo");
    for connections in [1, 64, 256] {
        group.bench_function(format!("connections_{connections}"), |b| {
            let runtime = two_threads(None);
            let (server, client) = (runtime.thread(0), runtime.thread(1));
            let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
            let address = listener.local_addr().expect("its address").into();
            let accepting = server.schedule(serve(Fd::from(listener), connections));
            let connected = client.schedule(connect(address, connections));
            let streams = rt::block_on(connected).expect("connections");
            rt::block_on(accepting).expect("connections");
            b.iter_custom(|n| {
                let streams = streams.clone();
                run_tasks_on(client, connections, n, move |i, count| {
                    let stream = streams[usize::try_from(i).expect("an index")].clone();
                    ping(stream, count)
                })
            });
            drop(streams); // which ends the server's tasks
        });
    }
    group.finish();
}

async fn serve(listener: Fd, connections: u64) {
    for _ in 0..connections {
        let (stream, _) = rt::accept(&listener).await.expect("a connection");
        drop(rt::spawn(async move {
            let mut buf = Vec::with_capacity(BLOCK);
            loop {
                let (received, data) = rt::recv(&stream, buf, 0).await;
                if received.expect("bytes of the client") == 0 {
                    return;
                }
                let (sent, data) = rt::send_all(&stream, data, 0).await;
                sent.expect("a client that is there");
                buf = data;
            }
        }));
    }
}

async fn connect(address: Address, connections: u64) -> Vec<Fd> {
    let mut streams = Vec::new();
    for _ in 0..connections {
        let stream = rt::socket(&address).expect("a socket");
        let connected = rt::connect(&stream, &address).await;
        connected.expect("a server that accepts");
        streams.push(stream);
    }
    streams
}

async fn ping(stream: Fd, count: u64) {
    let mut buf = vec![7; MESSAGE];
    for _ in 0..count {
        let (sent, data) = rt::send_all(&stream, buf, 0).await;
        sent.expect("a server that is there");
        let (received, data) = rt::recv(&stream, data, libc::MSG_WAITALL).await;
        assert_eq!(received.expect("bytes of the server"), MESSAGE);
        buf = data;
    }
}
