//! Operations are ordinary futures: the combinators of the `futures` crate work on them, and so do
//! deadlines. Also time itself: sleeps end in their order and no earlier than they should.

#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use common::{Arena, Drops, Watchdog, disk_file, errno, executor, pipe, runtime, until};
use futures::future::{self, Either, FutureExt, join_all, select};
use futures::stream::{self, FuturesUnordered, StreamExt};
use ringlog::rt::{self, Elapsed, Fd};
use std::cell::RefCell;
use std::io::Write;
use std::rc::Rc;
use std::time::{Duration, Instant};

const LONG: Duration = Duration::from_secs(3600);

#[test]
fn joined_operations_are_in_flight_together() {
    let _dog = Watchdog::new();
    let (reader, mut writer) = pipe();
    let file = Fd::from(disk_file());
    executor().block_on(async {
        // The first completes only because the second runs meanwhile.
        let (read, wrote, slept) = futures::join!(
            rt::read(&reader, vec![0; 8], 0),
            async {
                let (result, _) = rt::write_all(&file, "to the file", 0).await;
                result.unwrap();
                writer.write_all(b"to pipe").unwrap();
                rt::stat(&file).await.unwrap().len
            },
            rt::timeout_ms(1),
        );
        assert_eq!((read.0.unwrap(), wrote), (7, 11));
        slept.unwrap();
        let failed = futures::try_join!(rt::nop(), rt::allocate(&file, 0, 0, 0));
        assert_eq!(errno(failed), libc::EINVAL);
    });
}

#[test]
fn the_loser_of_a_select_is_cancelled_when_it_is_dropped_and_can_go_on_if_it_is_kept() {
    let _dog = Watchdog::new();
    let (reader, mut writer) = pipe();
    let drops = Drops::default();
    executor().block_on(async {
        let read = rt::read(&reader, drops.witness(Arena::new(4096)), 0);
        match select(read, rt::timeout_ms(1)).await {
            Either::Right((slept, loser)) => {
                slept.unwrap();
                drop(loser);
            }
            Either::Left(_) => panic!("nothing was written"),
        }
        until(|| drops.get() == 1).await;
        // The byte belongs to who reads now, not to the read that was dropped.
        let mut read = rt::read(&reader, vec![0_u8; 4], 0).fuse();
        let mut tick = 0;
        let (result, buf) = loop {
            futures::select_biased! {
                outcome = read => break outcome,
                slept = rt::timeout_ms(1).fuse() => slept.unwrap(),
            }
            tick += 1;
            if tick == 3 {
                writer.write_all(b"late").unwrap();
            }
        };
        assert_eq!((result.unwrap(), buf.as_slice()), (4, b"late".as_slice()));
    });
}

#[test]
fn streams_of_operations_keep_their_bounds_and_their_order() {
    let _dog = Watchdog::new();
    let file = disk_file();
    file.set_len(100_000).unwrap();
    let fd = Fd::from(file);
    executor().block_on(async {
        let lens: Vec<usize> = stream::iter(0..100_u64)
            .map(|n| rt::read(&fd, Vec::with_capacity(100 + usize::try_from(n).unwrap()), n * 100))
            .buffered(8)
            .map(|(result, _)| result.unwrap())
            .collect()
            .await;
        assert_eq!(lens, (100..200).collect::<Vec<_>>());
        let total: usize = stream::iter(0..100_u64)
            .map(|n| rt::read(&fd, [0_u8; 10], n * 10))
            .buffer_unordered(16)
            .map(|(result, _)| result.unwrap())
            .fold(0, |sum, n| future::ready(sum + n))
            .await;
        assert_eq!(total, 1000);
    });
}

#[test]
fn operations_in_a_futures_unordered_come_as_they_complete() {
    let _dog = Watchdog::new();
    executor().block_on(async {
        let mut sleeps: FuturesUnordered<_> = [60_u64, 20, 1, 40]
            .into_iter()
            .map(|ms| async move {
                rt::timeout_ms(ms).await.unwrap();
                ms
            })
            .collect();
        let mut order = Vec::new();
        while let Some(ms) = sleeps.next().await {
            order.push(ms);
        }
        assert_eq!(order, [1, 20, 40, 60]);
    });
}

#[test]
fn operations_are_awaited_on_other_executors_too() {
    let _dog = Watchdog::new();
    let runtime = runtime(1);
    let tokio = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
    let (reader, mut writer) = pipe();
    let started = runtime.schedule(async move {
        let mut read = rt::read(&reader, vec![0_u8; 8], 0);
        read.start();
        Some(read)
    });
    let read = rt::block_on(started).unwrap().unwrap();
    let waiting = tokio.spawn(read);
    writer.write_all(b"data").unwrap();
    let (result, buf) = tokio.block_on(waiting).unwrap();
    assert_eq!(&buf[..result.unwrap()], b"data");
    runtime.stop().unwrap();
}

// ---- time -----------------------------------------------------------------------------------

#[test]
fn a_deadline_ends_what_is_late_and_spares_what_is_done() {
    let _dog = Watchdog::new();
    let (reader, mut writer) = pipe();
    let drops = Drops::default();
    executor().block_on(async {
        let late = rt::read(&reader, drops.witness(Arena::new(4096)), 0);
        let outcome = rt::with_deadline(Duration::from_millis(2), late).await;
        assert_eq!(outcome.err(), Some(Elapsed));
        until(|| drops.get() == 1).await;
        writer.write_all(b"now").unwrap();
        let timely = rt::read(&reader, vec![0_u8; 8], 0);
        let (result, _) = rt::with_deadline(LONG, timely).await.unwrap();
        assert_eq!(result.unwrap(), 3);
        // Ready at once wins over a time that is over at once; and no time is too long.
        assert_eq!(rt::with_deadline(Duration::ZERO, future::ready(1)).await, Ok(1));
        let never = rt::with_deadline(Duration::ZERO, future::pending::<()>()).await;
        assert_eq!(never, Err(Elapsed));
        let patient = rt::with_deadline(Duration::MAX, rt::timeout_ms(2)).await;
        patient.unwrap().unwrap();
        // Nested: the tighter one counts.
        let nested =
            rt::with_deadline(LONG, rt::with_deadline(Duration::from_millis(1), rt::timeout(LONG)));
        assert!(matches!(nested.await, Ok(Err(Elapsed))));
        let error = std::io::Error::from(Elapsed);
        assert_eq!(error.kind(), std::io::ErrorKind::TimedOut);
    });
}

#[test]
fn sleeps_end_in_the_order_of_their_times_and_never_early() {
    let _dog = Watchdog::new();
    let executor = executor();
    let order = Rc::new(RefCell::new(Vec::new()));
    for ms in [50_u64, 10, 70, 30, 1] {
        let order = Rc::clone(&order);
        drop(executor.spawn(async move {
            let (began, clock) = (rt::now(), Instant::now());
            rt::timeout_ms(ms).await.unwrap();
            assert!(rt::now() - began >= Duration::from_millis(ms), "early");
            assert!(clock.elapsed() >= Duration::from_millis(ms), "early");
            order.borrow_mut().push(ms);
        }));
    }
    executor.run().unwrap();
    assert_eq!(*order.borrow(), [1, 10, 30, 50, 70]);
}

#[test]
fn a_dropped_sleep_holds_nobody_up() {
    let _dog = Watchdog::new();
    let executor = executor();
    executor.block_on(async {
        for _ in 0..1000 {
            let mut sleep = rt::timeout(LONG);
            sleep.start();
            drop(sleep);
        }
        let waiting: Vec<_> = (0..100).map(|_| rt::spawn(rt::timeout(LONG))).collect();
        rt::nop().await.unwrap();
        waiting.iter().for_each(rt::Task::cancel);
        join_all(waiting).await;
    });
    executor.run().unwrap(); // nothing is left to wait for
    drop(executor.spawn(rt::timeout(LONG)));
    executor.block_on(rt::nop()).unwrap();
    drop(executor); // nor does the drop wait for an hour
}

#[test]
fn a_yield_lets_the_others_have_their_turn() {
    let _dog = Watchdog::new();
    let executor = executor();
    let log = Rc::new(RefCell::new(Vec::new()));
    for name in ["a", "b", "c"] {
        let log = Rc::clone(&log);
        drop(executor.spawn(async move {
            for _ in 0..3 {
                log.borrow_mut().push(name);
                rt::yield_now().await;
            }
        }));
    }
    executor.run().unwrap();
    assert_eq!(*log.borrow(), ["a", "b", "c"].repeat(3));
}
