//! A buffer, a descriptor and an address belong to their operation until the kernel is done with
//! them, whatever becomes of the future, the task and the executor.

#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use common::{
    Arena, Drops, POISON, Watchdog, descriptors, disk_dir, errno, executor, executor_with,
    in_child, pipe, poll_once, until,
};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed, TestRunner};
use ringlog::rt::{self, Address, Fd, IoBuf, IoBufMut, SETUP_SQPOLL};
use std::fs::File;
use std::future::poll_fn;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};

// ---- the end of an executor -----------------------------------------------------------------

const BLOCK: usize = 1 << 18;
const READS: usize = 32;

/// A file read past the page cache, so that its reads take the time of a disk.
fn direct_file() -> (tempfile::TempDir, Fd) {
    let dir = disk_dir();
    let path = dir.path().join("direct");
    let mut file = File::create(&path).unwrap();
    file.write_all(&vec![0x11; READS * BLOCK]).unwrap();
    file.sync_all().unwrap();
    let direct = File::options().read(true).custom_flags(libc::O_DIRECT).open(&path);
    (dir, Fd::from(direct.unwrap()))
}

/// Closing a ring does not end its reads: an executor that did only that would free 32 buffers
/// that the disk still writes to. `abandon` says whether the futures are dropped first.
fn drop_with_32_direct_reads_in_flight(flags: Option<u32>, abandon: bool) {
    let _dog = Watchdog::new();
    let (_dir, file) = direct_file();
    let arenas: Vec<Arena> = (0..READS).map(|_| Arena::new(BLOCK)).collect();
    let drops = Drops::default();
    let executor = executor_with(64, flags);
    let mut started = Vec::new();
    for (i, arena) in arenas.iter().enumerate() {
        started.push(rt::read(&file, drops.witness(*arena), (i * BLOCK) as u64));
    }
    executor.block_on(async {
        for read in &mut started {
            read.start();
        }
        rt::nop().await.unwrap(); // so that the kernel has them
    });
    if abandon {
        drop(started);
    } else {
        // Tasks wait for them.
        for read in started {
            drop(executor.spawn(async move { drop(read.await) }));
        }
    }
    drop(executor);
    assert_eq!(drops.get(), READS, "each buffer is freed, once");
    // A write that is still under way would come now. Have the disk do as much again, and look.
    let other = common::executor();
    for i in 0..READS {
        let probe = Drops::default().witness(Arena::new(BLOCK));
        let (result, probe) = other.block_on(rt::read_exact(&file, probe, (i * BLOCK) as u64));
        result.unwrap();
        assert!(probe.arena.is_all(0x11), "what the disk gives");
        let intact = arenas.iter().all(|arena| arena.is_all(POISON));
        assert!(intact, "the disk wrote to a buffer after it was freed");
    }
}

#[test]
fn dropping_an_executor_with_32_direct_reads_in_flight_waits_for_them_before_freeing() {
    drop_with_32_direct_reads_in_flight(None, false);
}

#[test]
fn so_it_does_when_their_futures_are_gone_already() {
    drop_with_32_direct_reads_in_flight(None, true);
}

#[test]
fn so_it_does_on_a_ring_without_flags_and_on_one_with_a_kernel_thread() {
    drop_with_32_direct_reads_in_flight(Some(0), false);
    drop_with_32_direct_reads_in_flight(Some(SETUP_SQPOLL), true);
}

/// The drop of an executor is also the end of its operations when it happens in a task of another.
#[test]
fn an_executor_may_be_dropped_inside_a_task_of_another_one() {
    let _dog = Watchdog::new();
    let (reader, mut writer) = pipe();
    let (drops, arena) = (Drops::default(), Arena::new(4096));
    let inner = executor();
    let read = rt::read(&reader, drops.witness(arena), 0);
    drop(inner.spawn(async move { drop(read.await) }));
    inner.block_on(rt::nop()).unwrap();
    executor().block_on(async move { drop(inner) });
    assert_eq!(drops.get(), 1);
    writer.write_all(b"late").unwrap();
    assert!(arena.is_all(POISON), "read into a freed buffer");
}

/// Thread-locals are dropped in an order that nobody chooses. In a child: a panic there aborts.
#[test]
fn an_executor_in_a_thread_local_ends_with_its_thread() {
    thread_local! {
        static EXECUTOR: std::cell::OnceCell<rt::Executor> = const { std::cell::OnceCell::new() };
    }
    in_child("an_executor_in_a_thread_local_ends_with_its_thread", || {
        let _dog = Watchdog::new();
        let (reader, _writer) = pipe();
        let thread = std::thread::spawn(move || {
            EXECUTOR.with(|cell| {
                let executor = cell.get_or_init(executor);
                drop(executor.spawn(async move { rt::read(&reader, vec![0; 64], 0).await }));
                executor.block_on(rt::nop()).unwrap();
            });
        });
        thread.join().unwrap();
    });
}

// ---- the end of a future --------------------------------------------------------------------

#[test]
fn a_dropped_futures_buffer_is_freed_by_the_completion_and_not_by_the_drop() {
    let _dog = Watchdog::new();
    let (reader, _writer) = pipe();
    let (drops, arena) = (Drops::default(), Arena::new(4096));
    let executor = executor();
    executor.block_on(async {
        let mut read = rt::read(&reader, drops.witness(arena), 0);
        read.start();
        rt::nop().await.unwrap();
        drop(read);
        assert_eq!(drops.get(), 0, "the kernel still has it");
        until(|| drops.get() == 1).await; // it is asked to give it up, and does
    });
}

#[test]
fn a_future_that_was_never_polled_gives_its_buffer_back_at_once() {
    let (reader, _writer) = pipe();
    let drops = Drops::default();
    drop(rt::read(&reader, drops.witness(Arena::new(4096)), 0));
    assert_eq!(drops.get(), 1);
}

#[test]
fn the_result_of_a_dropped_future_that_was_done_is_freed_by_the_drop() {
    let _dog = Watchdog::new();
    let (reader, mut writer) = pipe();
    writer.write_all(b"data").unwrap();
    let (drops, arena) = (Drops::default(), Arena::new(4096));
    executor().block_on(async {
        let mut read = rt::read(&reader, drops.witness(arena), 0);
        read.start();
        until(|| !arena.is_all(0)).await;
        rt::timeout_ms(1).await.unwrap(); // by now it has completed, or else is cancelled: as good
        drop(read);
        until(|| drops.get() == 1).await;
    });
}

/// Forgetting is safe Rust, so no destructor may be needed for the memory to stay.
#[test]
fn a_forgotten_future_leaks_its_buffer_and_leaves_it_to_the_kernel() {
    let _dog = Watchdog::new();
    let (reader, mut writer) = pipe();
    let (drops, arena) = (Drops::default(), Arena::new(4096));
    executor().block_on(async {
        let mut read = rt::read(&reader, drops.witness(arena), 0);
        read.start();
        std::mem::forget(read);
        writer.write_all(&[0x77; 4096]).unwrap();
        until(|| arena.is_all(0x77)).await;
    });
    assert_eq!(drops.get(), 0);
}

#[test]
fn the_buffer_that_comes_back_is_the_one_that_was_given() {
    let (reader, mut writer) = pipe();
    writer.write_all(b"hello").unwrap();
    executor().block_on(async {
        let buf = Vec::with_capacity(1000);
        let memory: *const u8 = buf.as_ptr();
        let (result, buf) = rt::read(&reader, buf, 0).await;
        assert_eq!((result.unwrap(), buf.as_slice()), (5, b"hello".as_slice()));
        assert_eq!((buf.as_ptr(), buf.capacity()), (memory, 1000));
    });
}

// ---- descriptors ----------------------------------------------------------------------------

/// Each round gives the connection another number of turns to come in before the accept is
/// dropped: it may not be there yet, be on its way, or have become a descriptor that nobody took.
#[test]
fn a_connection_accepted_for_a_future_that_is_gone_is_closed() {
    in_child("a_connection_accepted_for_a_future_that_is_gone_is_closed", || {
        let _dog = Watchdog::new();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let listener = Fd::from(listener);
        let before = descriptors();
        let executor = executor();
        let mut peers = Vec::new();
        executor.block_on(async {
            for round in 0..60 {
                let mut accept = rt::accept(&listener);
                accept.start();
                rt::nop().await.unwrap();
                peers.push(TcpStream::connect(address).unwrap());
                for _ in 0..round % 6 {
                    rt::nop().await.unwrap();
                }
                drop(accept);
            }
            // What no accept took is still queued: take it, so that every peer is let go.
            rt::nop().await.unwrap();
            while let Ok(accepted) =
                rt::with_deadline(std::time::Duration::from_millis(50), rt::accept(&listener)).await
            {
                drop(accepted.unwrap());
            }
        });
        drop(executor);
        for mut peer in peers {
            assert_eq!(peer.read(&mut [0]).unwrap(), 0, "closed, not leaked");
        }
        assert_eq!(descriptors(), before);
    });
}

#[test]
fn a_file_opened_for_a_future_that_is_gone_is_closed() {
    in_child("a_file_opened_for_a_future_that_is_gone_is_closed", || {
        let _dog = Watchdog::new();
        let dir = disk_dir();
        let path = dir.path().join("new");
        let before = descriptors();
        let executor = executor();
        executor.block_on(async {
            for round in 0..50 {
                let flags = libc::O_CREAT | libc::O_RDWR;
                let mut open = Box::pin(rt::open(None, &path, flags, 0o600));
                // Submitted by the first poll; perhaps done in some of the turns after it.
                assert!(poll_once(&mut open).is_pending());
                for _ in 0..round % 5 {
                    rt::nop().await.unwrap();
                }
                drop(open);
            }
            until(|| path.exists()).await; // dropped is not cancelled: the file is made
        });
        drop(executor);
        assert_eq!(descriptors(), before);
    });
}

/// The kernel knows a descriptor by its number, and gives a closed one's number to the next file.
#[test]
fn a_descriptor_stays_open_while_an_operation_uses_it() {
    let _dog = Watchdog::new();
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let raw = ours.as_raw_fd();
    let fd = Fd::from(ours);
    let executor = executor();
    executor.block_on(async {
        let mut recv = rt::recv(&fd, vec![0; 16], 0);
        recv.start();
        rt::nop().await.unwrap();
        drop(fd);
        let others: Vec<File> = (0..16).map(|_| tempfile::tempfile().unwrap()).collect();
        assert!(others.iter().all(|file| file.as_raw_fd() != raw), "recycled");
        theirs.write_all(b"for the socket").unwrap();
        let (result, buf) = recv.await;
        assert_eq!(&buf[..result.unwrap()], b"for the socket");
        for mut file in others {
            assert_eq!(file.read(&mut [0; 16]).unwrap(), 0, "untouched");
        }
    });
    assert_eq!(theirs.read(&mut [0]).unwrap(), 0, "closed with its last operation");
}

// ---- addresses ------------------------------------------------------------------------------

/// Moves a value to other memory, and overwrites what it lay in before.
fn moved<T>(value: T) -> T {
    let mut before = Box::new(Some(value));
    let after = before.take().unwrap();
    let memory: *mut u8 = (&raw mut *before).cast();
    // SAFETY: the memory of the box, whose value has been moved out, and which is not used again.
    unsafe { memory.write_bytes(0xff, size_of::<Option<T>>()) };
    std::mem::forget(before);
    after
}

/// What the kernel reads and writes besides buffers (a time, an address and its length, the
/// result of stat) may not live in a future, which moves.
#[test]
fn futures_may_move_while_the_kernel_uses_their_addresses_and_times() {
    let _dog = Watchdog::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let listener = Fd::from(listener);
    let file = common::disk_file();
    file.set_len(12_345).unwrap();
    let file = Fd::from(file);
    executor().block_on(async {
        for _ in 0..10 {
            let (mut accept, mut sleep) = (rt::accept(&listener), rt::timeout_ms(5));
            let mut stat = rt::stat(&file);
            accept.start();
            sleep.start();
            stat.start();
            let (accept, sleep, stat) = (moved(accept), moved(sleep), moved(stat));
            let began = rt::now();
            let client = TcpStream::connect(address).unwrap();
            let (_, peer) = accept.await.unwrap();
            assert_eq!(peer, Address::Ip(client.local_addr().unwrap()));
            assert_eq!(stat.await.unwrap().len, 12_345);
            sleep.await.unwrap();
            assert!(began.elapsed().as_secs() < 30, "slept for a time that is not its own");
        }
    });
}

// ---- what a buffer holds afterwards ---------------------------------------------------------

#[test]
fn a_failed_read_changes_neither_the_bytes_nor_the_length() {
    let (_reader, writer) = pipe();
    let writer = Fd::from(writer);
    executor().block_on(async {
        let mut buf = Vec::with_capacity(100);
        buf.extend_from_slice(b"before");
        let (result, buf) = rt::read(&writer, buf, 0).await;
        assert_eq!(errno(result), libc::EBADF);
        assert_eq!((buf.as_slice(), buf.capacity()), (b"before".as_slice(), 100));
    });
}

/// `MSG_TRUNC` has a TCP socket throw the bytes away and count them all the same: the count says
/// nothing about the buffer.
#[test]
fn a_receive_never_claims_bytes_that_were_not_written() {
    let _dog = Watchdog::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let server = Fd::from(listener.accept().unwrap().0);
    client.write_all(b"hello").unwrap();
    // Memory with a mark in it that stands for whatever was there before.
    let mut buf = vec![0xaa; 64];
    buf.clear();
    let (_, buf) = executor().block_on(rt::recv(&server, buf, libc::MSG_TRUNC));
    assert!(
        buf.is_empty() || b"hello".starts_with(&buf),
        "what was in the memory before is shown as received: {buf:x?}"
    );
}

/// Datagrams longer than the room: cut, and counted as cut.
#[test]
fn a_datagram_longer_than_its_room_fills_no_more_than_the_room() {
    let _dog = Watchdog::new();
    let receiver = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let sender = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = receiver.local_addr().unwrap();
    let receiver = Fd::from(receiver);
    for flags in [0, libc::MSG_TRUNC] {
        sender.send_to(b"0123456789", address).unwrap();
        let buf = Vec::with_capacity(16).part(..4);
        let (result, buf) = executor().block_on(rt::recv(&receiver, buf, flags));
        assert_eq!((result.unwrap(), buf.into_inner().as_slice()), (4, b"0123".as_slice()));
    }
}

#[test]
fn reads_fill_parts_of_vectors_as_far_as_the_file_and_the_room_go() {
    let file = common::disk_file();
    let data: Vec<u8> = (0..=255).cycle().take(300).collect();
    (&file).write_all(&data).unwrap();
    let file = Fd::from(file);
    let executor = executor();
    let mut runner = TestRunner::new(Config {
        cases: 200,
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(22),
        ..Config::default()
    });
    let shape = (0usize..80, 0usize..80, 0usize..200, 0usize..200, 0u64..400);
    let outcome = runner.run(&shape, |(len, spare, start, size, offset)| {
        let mut buf = Vec::with_capacity(len + spare);
        buf.resize(len, 0xee);
        let slice = buf.part(start..start + size);
        let room = slice.room();
        let (result, slice) = executor.block_on(rt::read(&file, slice, offset));
        let buf = slice.into_inner();
        if room == 0 {
            prop_assert_eq!(result.unwrap_err().kind(), ErrorKind::InvalidInput);
            prop_assert_eq!(buf, vec![0xee; len]);
            return Ok(());
        }
        let left = data.get(usize::try_from(offset).unwrap()..).unwrap_or(&[]);
        let read = result.unwrap();
        prop_assert_eq!(read, room.min(left.len()));
        prop_assert_eq!(buf.len(), start + read);
        prop_assert!(buf[..start].iter().all(|&byte| byte == 0xee), "before the part");
        prop_assert_eq!(&buf[start..], &left[..read]);
        Ok(())
    });
    outcome.unwrap();
}

// ---- foreign code in the middle -------------------------------------------------------------

/// A waker that owns something whose drop calls back into the runtime.
struct Holds(#[expect(dead_code, reason = "held for its drop")] Mutex<Box<dyn Send>>);

impl Wake for Holds {
    fn wake(self: Arc<Self>) {}
}

/// Operations are dropped, and so cancelled, while the runtime completes, replaces and abandons
/// others: a borrow held there would panic, and the buffer would never come free.
#[test]
fn a_wakers_drop_may_drop_another_operation() {
    let _dog = Watchdog::new();
    let (quiet, _writer) = pipe();
    let drops = Drops::default();
    executor().block_on(async {
        let holder = || {
            let mut victim = rt::read(&quiet, drops.witness(Arena::new(4096)), 0);
            victim.start();
            Waker::from(Arc::new(Holds(Mutex::new(Box::new(victim)))))
        };
        // By its completion.
        let (reader, mut writer) = pipe();
        let mut read = rt::read(&reader, vec![0; 8], 0);
        let waker = holder();
        assert!(Pin::new(&mut read).poll_with(&waker).is_pending());
        drop(waker);
        writer.write_all(b"x").unwrap();
        until(|| drops.get() == 1).await;
        read.await.0.unwrap();
        // By another waker in its place.
        let mut read = rt::read(&reader, vec![0; 8], 0);
        let waker = holder();
        assert!(Pin::new(&mut read).poll_with(&waker).is_pending());
        drop(waker);
        assert!(poll_once(&mut read).is_pending());
        until(|| drops.get() == 2).await;
        // By the drop of the future.
        let waker = holder();
        assert!(Pin::new(&mut read).poll_with(&waker).is_pending());
        drop(waker);
        drop(read);
        until(|| drops.get() == 3).await;
    });
}

trait PollWith: Future {
    fn poll_with(self: Pin<&mut Self>, waker: &Waker) -> Poll<Self::Output>;
}

impl<F: Future> PollWith for F {
    fn poll_with(self: Pin<&mut Self>, waker: &Waker) -> Poll<F::Output> {
        self.poll(&mut Context::from_waker(waker))
    }
}

/// A buffer whose drop spawns a task and runs an operation.
struct Busy {
    memory: Box<[u8]>,
    done: std::sync::mpsc::Sender<()>,
}

impl Drop for Busy {
    fn drop(&mut self) {
        let done = self.done.clone();
        let mut nop = rt::nop();
        nop.start();
        drop(rt::spawn(async move {
            nop.await.unwrap();
            done.send(()).unwrap();
        }));
    }
}

// SAFETY: the memory does not move with the box, and all of it is initialised.
unsafe impl IoBuf for Busy {
    fn ptr(&self) -> *const u8 {
        self.memory.as_ptr()
    }
    fn len(&self) -> usize {
        self.memory.len()
    }
}

// SAFETY: as above.
unsafe impl IoBufMut for Busy {
    fn ptr_mut(&mut self) -> *mut u8 {
        self.memory.as_mut_ptr()
    }
    fn room(&self) -> usize {
        self.memory.len()
    }
    unsafe fn filled(&mut self, _start: usize, _end: usize) {}
}

#[test]
fn a_buffers_drop_may_spawn_and_submit() {
    let _dog = Watchdog::new();
    let (reader, _writer) = pipe();
    let (done, all) = std::sync::mpsc::channel();
    executor().block_on(async {
        for _ in 0..10 {
            let memory = vec![0; 64].into_boxed_slice();
            let done = done.clone();
            let mut read = rt::read(&reader, Busy { memory, done }, 0);
            read.start();
            rt::nop().await.unwrap();
            drop(read);
        }
        let mut finished = 0;
        until(|| {
            finished += all.try_iter().count();
            finished == 10
        })
        .await;
    });
}

#[test]
fn a_hundred_operations_in_one_futures_unordered_all_finish_and_half_of_them_may_be_dropped() {
    let _dog = Watchdog::new();
    let (reader, mut writer) = pipe();
    let drops = Drops::default();
    let arena = Arena::new(4096);
    executor().block_on(async {
        let mut reads = FuturesUnordered::new();
        for _ in 0..100 {
            reads.push(rt::read(&reader, drops.witness(arena), 0));
        }
        // The first poll submits them all.
        assert!(poll_fn(|cx| Poll::Ready(pin!(reads.next()).poll(cx).is_pending())).await);
        for _ in 0..50 {
            writer.write_all(b"x").unwrap();
            let (result, _) = reads.next().await.unwrap();
            assert_eq!(result.unwrap(), 1);
        }
        assert_eq!(reads.len(), 50);
        drop(reads);
        until(|| drops.get() == 100).await;
    });
}

// ---- wakers that panic ----------------------------------------------------------------------

/// Its `clone` panics if the data is null, its `wake` in any case.
#[expect(unsafe_code, reason = "only a raw waker can panic in its clone")]
fn panicking_waker(in_clone: bool) -> Waker {
    use std::task::{RawWaker, RawWakerVTable};
    fn panics(_: *const ()) {
        panic!("a waker panics");
    }
    fn clone(data: *const ()) -> RawWaker {
        assert!(!data.is_null(), "a waker panics when cloned");
        RawWaker::new(data, &VTABLE)
    }
    static VTABLE: RawWakerVTable = RawWakerVTable::new(clone, panics, panics, |_| {});
    let data = if in_clone { std::ptr::null() } else { (&raw const VTABLE).cast() };
    // SAFETY: the functions above never look at the data but to compare it.
    unsafe { Waker::from_raw(RawWaker::new(data, &VTABLE)) }
}

#[test]
fn a_waker_that_panics_in_its_clone_does_not_set_the_buffer_free() {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    let _dog = Watchdog::new();
    let (reader, _writer) = pipe();
    let drops = Drops::default();
    let mut read = rt::read(&reader, drops.witness(Arena::new(4096)), 0);
    let executor = executor();
    executor.block_on(async {
        read.start();
        rt::nop().await.unwrap();
        for waker in [panicking_waker(true), Waker::noop().clone()] {
            let poll = || Pin::new(&mut read).poll(&mut Context::from_waker(&waker)).is_ready();
            assert!(catch_unwind(AssertUnwindSafe(poll)).is_err(), "the buffer came back");
        }
    });
    assert_eq!(drops.get(), 0);
    drop(read);
    drop(executor);
    assert_eq!(drops.get(), 1);
}

#[test]
fn a_waker_that_panics_when_the_executor_stops_does_not_free_buffers_early() {
    let _dog = Watchdog::new();
    let (reader, mut writer) = pipe();
    let (drops, arena) = (Drops::default(), Arena::new(4096));
    let executor = executor();
    let mut stopping = Box::pin(executor.handle().stopping());
    let waker = panicking_waker(false);
    assert!(stopping.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    let read = rt::read(&reader, drops.witness(arena), 0);
    drop(executor.spawn(async move { drop(read.await) }));
    executor.block_on(rt::nop()).unwrap();
    drop(executor);
    assert_eq!(drops.get(), 1, "ended in order");
    writer.write_all(b"late").unwrap();
    assert!(arena.is_all(POISON), "read into a freed buffer");
}
