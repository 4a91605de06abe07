//! The ring: too small, set up in every way, refused, interrupted, made and dropped a hundred
//! times. No operation is lost and none is done twice.

#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use common::{
    Arena, Drops, Rng, Watchdog, descriptors, disk_file, errno, executor, executor_with, in_child,
    pipe, poll_once, runtime, until,
};
use futures::StreamExt;
use futures::future::join_all;
use futures::stream::FuturesUnordered;
use ringlog::rt::{
    self, Executor, ExecutorConfig, Fd, Runtime, RuntimeConfig, SETUP_CLAMP, SETUP_COOP_TASKRUN,
    SETUP_DEFER_TASKRUN, SETUP_NO_SQARRAY, SETUP_SINGLE_ISSUER, SETUP_SQPOLL, SETUP_SUBMIT_ALL,
    SETUP_TASKRUN_FLAG, SetupError,
};
use std::cell::Cell;
use std::io::Write;
use std::rc::Rc;

// ---- full queues ----------------------------------------------------------------------------

#[test]
fn a_hundred_thousand_operations_go_through_a_ring_of_two_entries() {
    const TASKS: usize = 100;
    const EACH: usize = 1000;
    let _dog = Watchdog::new();
    let executor = executor_with(2, None);
    let done = Rc::new(Cell::new(0));
    for _ in 0..TASKS {
        let done = Rc::clone(&done);
        drop(executor.spawn(async move {
            for _ in 0..EACH {
                rt::nop().await.unwrap();
                done.set(done.get() + 1);
            }
        }));
    }
    executor.run().unwrap();
    assert_eq!(done.get(), TASKS * EACH);
}

/// Many more at once than both queues hold, and each with a result of its own to be mistaken.
#[test]
fn a_thousand_reads_at_once_through_a_ring_of_two_entries_each_bring_their_own_bytes() {
    let _dog = Watchdog::new();
    let file = disk_file();
    for n in 0_u64..1000 {
        (&file).write_all(&n.to_be_bytes()).unwrap();
    }
    let file = Fd::from(file);
    for entries in [1, 2] {
        let reads = (0_u64..1000).map(|n| rt::read_exact(&file, [0_u8; 8], n * 8));
        let all = executor_with(entries, None).block_on(join_all(reads));
        for (n, (result, bytes)) in (0_u64..).zip(all) {
            result.unwrap();
            assert_eq!(u64::from_be_bytes(bytes), n);
        }
    }
}

/// The queue is full all the time, so cancels wait in line behind what they cancel. Which half is
/// dropped, and when, is drawn.
#[test]
fn of_600_operations_half_are_dropped_and_all_complete_through_a_ring_of_two_entries() {
    const OPERATIONS: usize = 600;
    let _dog = Watchdog::new();
    let (reader, mut writer) = pipe();
    let (arena, drops) = (Arena::new(4096), Drops::default());
    let mut rng = Rng(11);
    let executor = executor_with(2, None);
    executor.block_on(async {
        let mut kept = FuturesUnordered::new();
        let mut dropped = 0;
        for n in 0..OPERATIONS {
            let mut read = rt::read(&reader, drops.witness(arena).into_small(), 0);
            read.start();
            for _ in 0..rng.below(3) {
                rt::yield_now().await;
            }
            // As many dropped as kept in the end.
            let left = (OPERATIONS - n) as u64;
            if rng.below(left) < (OPERATIONS / 2 - dropped) as u64 {
                dropped += 1;
                drop(read);
            } else {
                kept.push(read);
            }
        }
        assert_eq!(kept.len(), OPERATIONS / 2);
        until(|| drops.get() == OPERATIONS / 2).await;
        writer.write_all(&[7; OPERATIONS / 2]).unwrap();
        while let Some((result, buf)) = kept.next().await {
            assert_eq!(result.unwrap(), 1);
            drop(buf);
        }
    });
    assert_eq!(drops.get(), OPERATIONS, "none is left in flight");
}

/// One byte of a witness: so that one write serves each read.
trait Small {
    fn into_small(self) -> rt::Part<common::Witness>;
}

impl Small for common::Witness {
    fn into_small(self) -> rt::Part<common::Witness> {
        rt::IoBuf::part(self, ..1)
    }
}

/// Completions come faster than they are taken, far beyond the four that the queue holds.
#[test]
fn completions_that_find_their_queue_full_are_not_lost() {
    let _dog = Watchdog::new();
    for flags in [None, Some(0)] {
        let executor = executor_with(1, flags);
        executor.block_on(async {
            for results in join_all((0..200).map(|_| join_all((0..5).map(|_| rt::nop())))).await {
                assert!(results.into_iter().all(|result| result.is_ok()));
            }
            // All at one moment, while nobody looks: they wait for bytes that come at once.
            let (reader, mut writer) = pipe();
            let mut reads: Vec<_> = (0..50).map(|_| rt::read(&reader, [0], 0)).collect();
            for read in &mut reads {
                read.start();
            }
            rt::nop().await.unwrap();
            writer.write_all(&[1; 50]).unwrap();
            for (result, byte) in join_all(reads).await {
                assert_eq!((result.unwrap(), byte), (1, [1]));
            }
        });
    }
}

/// A name is never used twice: a late cancel must not hit whoever came after.
#[test]
fn a_cancel_that_comes_too_late_does_not_hit_the_next_operation_in_the_same_slot() {
    let _dog = Watchdog::new();
    let (reader, mut writer) = pipe();
    executor().block_on(async {
        for _ in 0..100 {
            let mut first = rt::read(&reader, [0_u8], 0);
            let old = first.start();
            writer.write_all(b"1").unwrap();
            first.await.0.unwrap();
            let mut second = rt::read(&reader, [0_u8], 0);
            second.start();
            rt::nop().await.unwrap();
            assert_eq!(errno(rt::cancel(&old).await), libc::ENOENT);
            assert!(poll_once(&mut second).is_pending(), "hit by a stale name");
            writer.write_all(b"2").unwrap();
            let (result, byte) = second.await;
            assert_eq!((result.unwrap(), byte), (1, *b"2"));
        }
    });
}

// ---- set-up ---------------------------------------------------------------------------------

async fn a_bit_of_everything() {
    let file = disk_file();
    let fd = Fd::from(file);
    let (result, _) = rt::write_all(&fd, vec![5_u8; 10_000], 0).await;
    result.unwrap();
    rt::fsync(&fd, true).await.unwrap();
    let (result, buf) = rt::read_exact(&fd, Vec::with_capacity(10_000), 0).await;
    result.unwrap();
    assert_eq!(buf, [5; 10_000]);
    let (reader, mut writer) = pipe();
    let read = rt::spawn(async move { rt::read(&reader, vec![0; 8], 0).await.0.unwrap() });
    rt::timeout_ms(1).await.unwrap();
    writer.write_all(b"four").unwrap();
    assert_eq!(read.await, Ok(4));
    for result in join_all((0..100).map(|_| rt::nop())).await {
        result.unwrap();
    }
}

#[test]
fn every_set_of_flags_that_can_work_does() {
    let _dog = Watchdog::new();
    for flags in [
        None,
        Some(0),
        Some(SETUP_CLAMP | SETUP_SUBMIT_ALL),
        Some(SETUP_COOP_TASKRUN),
        Some(SETUP_COOP_TASKRUN | SETUP_TASKRUN_FLAG | SETUP_SUBMIT_ALL),
        Some(SETUP_SINGLE_ISSUER),
        Some(SETUP_SINGLE_ISSUER | SETUP_DEFER_TASKRUN),
        Some(SETUP_SINGLE_ISSUER | SETUP_DEFER_TASKRUN | SETUP_TASKRUN_FLAG | SETUP_SUBMIT_ALL),
        Some(SETUP_SINGLE_ISSUER | SETUP_DEFER_TASKRUN | SETUP_NO_SQARRAY),
        Some(SETUP_SQPOLL),
        Some(SETUP_SQPOLL | SETUP_SINGLE_ISSUER),
    ] {
        for entries in [1, 3, 64] {
            let executor = Executor::new(ExecutorConfig {
                entries,
                uring_flags: flags,
                sq_thread_idle_ms: 1, // so that the kernel's thread sleeps, and must be woken
                ..ExecutorConfig::default()
            });
            executor
                .unwrap_or_else(|error| panic!("{flags:x?}: {error}"))
                .block_on(a_bit_of_everything());
        }
    }
}

/// Built where it is used: elsewhere every operation would give `EEXIST`.
#[test]
fn a_runtimes_threads_use_single_issuer_rings() {
    let _dog = Watchdog::new();
    let runtime = Runtime::start(RuntimeConfig {
        num_threads: 3,
        executor_config: ExecutorConfig {
            uring_flags: Some(SETUP_SINGLE_ISSUER),
            ..ExecutorConfig::default()
        },
        ..RuntimeConfig::default()
    });
    let runtime = runtime.unwrap();
    for index in 0..3 {
        let task = runtime.thread(index).schedule_local(a_bit_of_everything);
        rt::block_on(task).unwrap();
    }
    runtime.stop().unwrap();
}

#[test]
fn flags_that_cannot_work_are_refused_before_any_thread_runs() {
    for (flags, named) in [
        (SETUP_DEFER_TASKRUN, "IORING_SETUP_SINGLE_ISSUER"),
        (SETUP_TASKRUN_FLAG, "IORING_SETUP_COOP_TASKRUN"),
        (SETUP_SQPOLL | SETUP_COOP_TASKRUN, "IORING_SETUP_SQPOLL"),
        (1 << 31, "0x80000000"),
    ] {
        let executor_config =
            ExecutorConfig { uring_flags: Some(flags), ..ExecutorConfig::default() };
        let config = RuntimeConfig { num_threads: 2, executor_config, ..RuntimeConfig::default() };
        let error = Runtime::start(config).unwrap_err();
        assert!(matches!(error, SetupError::Flags { .. }), "{error:?}");
        assert!(error.to_string().contains(named), "{error}");
    }
}

#[test]
fn a_hundred_executors_made_and_dropped_on_one_thread_leave_nothing_open() {
    in_child("a_hundred_executors_made_and_dropped_on_one_thread_leave_nothing_open", || {
        let _dog = Watchdog::new();
        let before = descriptors();
        for n in 0..100 {
            let executor = executor();
            executor.block_on(rt::nop()).unwrap();
            if n % 2 == 0 {
                // Some with work left.
                let (reader, _writer) = pipe();
                drop(executor.spawn(async move { rt::read(&reader, [0], 0).await.0 }));
                executor.block_on(rt::nop()).unwrap();
            }
        }
        let several: Vec<_> = (0..20).map(|_| executor()).collect();
        for executor in &several {
            executor.block_on(rt::nop()).unwrap();
        }
        drop(several);
        runtime(2).stop().unwrap();
        assert_eq!(descriptors(), before);
    });
}

/// Whoever runs another program gives it no rings, no eventfds, no files and no sockets.
#[test]
fn nothing_that_the_runtime_opens_survives_an_exec() {
    in_child("nothing_that_the_runtime_opens_survives_an_exec", || {
        let _dog = Watchdog::new();
        let before = descriptors();
        let (runtime, executor) = (runtime(2), executor());
        let held = executor.block_on(async {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let address = rt::Address::Ip(listener.local_addr().unwrap());
            let (listener, client) = (Fd::from(listener), rt::socket(&address).unwrap());
            let (accepted, connected) =
                futures::join!(rt::accept(&listener), rt::connect(&client, &address));
            connected.unwrap();
            let path = std::path::Path::new("/dev/null");
            let file = rt::open(None, path, libc::O_RDONLY, 0).await.unwrap();
            (listener, client, accepted.unwrap(), file)
        });
        let opened: Vec<_> =
            descriptors().into_iter().filter(|open| !before.contains(open)).collect();
        let rings = opened.iter().filter(|(_, what)| what.contains("io_uring"));
        assert_eq!(rings.count(), 3, "{opened:?}");
        assert!(opened.len() >= 3 + 3 + 4, "rings, bells, files: {opened:?}");
        for (number, what) in opened {
            // SAFETY: takes no pointers.
            let flags = unsafe { libc::fcntl(number, libc::F_GETFD) };
            assert_ne!(flags & libc::FD_CLOEXEC, 0, "{what} would be inherited");
        }
        drop(held);
        drop(executor);
        runtime.stop().unwrap();
    });
}

// ---- refusals -------------------------------------------------------------------------------

/// Has `io_uring_setup` fail with `errno` for this thread and those it starts.
fn refuse_rings(errno: i32) {
    let word = |code: u32, k: u32| libc::sock_filter {
        code: u16::try_from(code).unwrap(),
        jt: 0,
        jf: 0,
        k,
    };
    let setup = u32::try_from(libc::SYS_io_uring_setup).unwrap();
    let mut filter = [
        word(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0), // the number of the system call
        libc::sock_filter { jf: 1, ..word(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, setup) },
        word(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ERRNO | errno.unsigned_abs()),
        word(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW),
    ];
    let program =
        libc::sock_fprog { len: u16::try_from(filter.len()).unwrap(), filter: filter.as_mut_ptr() };
    // SAFETY: takes no pointers.
    assert_eq!(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }, 0);
    let mode = libc::SECCOMP_MODE_FILTER;
    // SAFETY: the program is read before the call returns.
    let set = unsafe { libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const program) };
    assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
}

/// What an executor and what a runtime say, which must be the same and leave nothing behind.
fn refusals() -> [SetupError; 2] {
    let before = descriptors();
    let executor = Executor::new(ExecutorConfig::default()).unwrap_err();
    let runtime = Runtime::start(RuntimeConfig { num_threads: 2, ..RuntimeConfig::default() });
    let errors = [executor, runtime.unwrap_err()];
    assert_eq!(descriptors(), before);
    errors
}

#[test]
fn a_ring_that_a_seccomp_filter_forbids_says_so_and_what_to_do() {
    in_child("a_ring_that_a_seccomp_filter_forbids_says_so_and_what_to_do", || {
        let _dog = Watchdog::new();
        refuse_rings(libc::EPERM);
        for error in refusals() {
            assert!(matches!(error, SetupError::Denied { .. }), "{error:?}");
            let text = error.to_string();
            assert!(text.contains("io_uring"), "{text}");
            // The sysctl, if it is set on this host, explains it just as well.
            assert!(text.contains("seccomp") || text.contains("sysctl"), "{text}");
            let error = std::io::Error::from(error);
            assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied);
        }
    });
}

#[test]
fn a_ring_that_a_seccomp_filter_hides_says_so_and_what_to_do() {
    in_child("a_ring_that_a_seccomp_filter_hides_says_so_and_what_to_do", || {
        let _dog = Watchdog::new();
        refuse_rings(libc::ENOSYS);
        for error in refusals() {
            assert!(matches!(error, SetupError::NotSupported), "{error:?}");
            let text = error.to_string();
            assert!(text.contains("ENOSYS") && text.contains("seccomp"), "{text}");
            let error = std::io::Error::from(error);
            assert_eq!(error.kind(), std::io::ErrorKind::Unsupported);
        }
    });
}

/// Both when the ring finds no descriptor, and when only its eventfd finds none.
#[test]
fn a_process_out_of_descriptors_is_told_to_raise_the_limit() {
    in_child("a_process_out_of_descriptors_is_told_to_raise_the_limit", || {
        let _dog = Watchdog::new();
        let limit = |descriptors: u64| {
            let limit = libc::rlimit { rlim_cur: descriptors, rlim_max: 1024 };
            // SAFETY: the limit is read before the call returns.
            let set = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
            assert_eq!(set, 0);
        };
        let refused = |room: u64| {
            // Fill the holes, so that the limit is exactly the room.
            let mut fillers = Vec::new();
            limit(64);
            while let Ok(file) = std::fs::File::open("/dev/null") {
                fillers.push(file);
            }
            for _ in 0..room {
                fillers.pop();
            }
            let errors = [
                Executor::new(ExecutorConfig::default()).unwrap_err(),
                Runtime::start(RuntimeConfig::default()).unwrap_err(),
            ];
            for error in errors {
                assert!(matches!(error, SetupError::TooManyFiles), "{error:?}");
                assert!(error.to_string().contains("ulimit -n"), "{error}");
            }
            // What the refused ones opened is closed again: there is as much room as before.
            let left: Vec<_> = (0..=room).map(|_| std::fs::File::open("/dev/null")).collect();
            assert_eq!(left.iter().filter(|file| file.is_ok()).count() as u64, room);
        };
        refused(0);
        refused(1);
        // With room for both there is a ring.
        limit(1024);
        executor().block_on(rt::nop()).unwrap();
    });
}
