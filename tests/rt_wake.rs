//! No wake is lost, wherever it comes from, and none comes too late: hops, foreign wakers, busy
//! threads, signals, and the ends of threads.

#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use common::{Watchdog, executor, executor_with, in_child, pipe, runtime, until};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use ringlog::rt::{
    self, ExecutorConfig, JoinError, Runtime, RuntimeConfig, SETUP_COOP_TASKRUN,
    SETUP_DEFER_TASKRUN, SETUP_SINGLE_ISSUER, SETUP_TASKRUN_FLAG, StopError, Task,
};
use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::io::Write;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex, mpsc};
use std::task::{Context, Poll, Waker};
use std::thread::ThreadId;
use std::time::Duration;

// ---- hops -----------------------------------------------------------------------------------

/// Two threads, nothing to wake them but each other, no timers: a lost wake is a hang. It is also
/// quick, which it is only if a hop costs the same however many came before it.
#[test]
fn a_million_hops_between_two_threads_lose_no_wake() {
    const TASKS: usize = 100;
    const ROUND_TRIPS: usize = 5_000;
    // Some ten times what it takes.
    let _dog = Watchdog::of(Duration::from_secs(30));
    let runtime = runtime(2);
    let (here, there) = (runtime.thread(0).clone(), runtime.thread(1).clone());
    let hops = Arc::new(AtomicUsize::new(0));
    let tasks: Vec<Task<()>> = (0..TASKS)
        .map(|_| {
            let (here, there, hops) = (here.clone(), there.clone(), hops.clone());
            runtime.thread(0).schedule(async move {
                for _ in 0..ROUND_TRIPS {
                    rt::schedule_on(&there).await.unwrap();
                    assert!(there.is_current());
                    rt::schedule_on(&here).await.unwrap();
                    hops.fetch_add(2, Ordering::Relaxed);
                }
            })
        })
        .collect();
    for task in tasks {
        rt::block_on(task).unwrap();
    }
    assert_eq!(hops.load(Ordering::Relaxed), 1_000_000);
    runtime.stop().unwrap();
}

/// One task alone: each hop finds the other thread asleep, or about to fall asleep; at once where
/// threads do not spin before they sleep.
#[test]
fn a_lone_task_that_hops_finds_every_sleeping_thread() {
    let _dog = Watchdog::new();
    for (spin, round_trips) in [(None, 10_000), (Some(Duration::ZERO), 10_000)] {
        let runtime = Runtime::start(RuntimeConfig {
            num_threads: 2,
            executor_config: ExecutorConfig { spin, ..ExecutorConfig::default() },
            ..RuntimeConfig::default()
        });
        let runtime = runtime.unwrap();
        let (here, there) = (runtime.thread(0).clone(), runtime.thread(1).clone());
        let task = runtime.schedule(async move {
            for _ in 0..round_trips {
                rt::schedule_on(&there).await.unwrap();
                rt::schedule_on(&here).await.unwrap();
            }
        });
        rt::block_on(task).unwrap();
        runtime.stop().unwrap();
    }
}

/// A wake may be under way to the thread that a task has just left.
#[test]
fn wakes_follow_a_task_that_hops() {
    const HOPS: usize = 5_000;
    let _dog = Watchdog::new();
    let runtime = runtime(2);
    let threads = [runtime.thread(0).clone(), runtime.thread(1).clone()];
    let left = Arc::new(AtomicBool::new(false));
    let (send, wakers) = mpsc::channel::<Waker>();
    let pest = {
        let left = left.clone();
        std::thread::spawn(move || {
            let waker = wakers.recv().unwrap();
            while !left.load(Ordering::Acquire) {
                waker.wake_by_ref();
                std::thread::yield_now();
            }
            waker
        })
    };
    let resting = Arc::new(AtomicBool::new(false));
    let task = {
        let (left, resting) = (left.clone(), resting.clone());
        runtime.schedule(async move {
            let waker = poll_fn(|cx| Poll::Ready(cx.waker().clone())).await;
            send.send(waker).unwrap();
            for hop in 0..HOPS {
                rt::schedule_on(&threads[hop % 2]).await.unwrap();
            }
            left.store(true, Ordering::Release);
            // The waker that was made where the task began ends its rest where it is now.
            poll_fn(|_| {
                if resting.load(Ordering::Acquire) {
                    return Poll::Ready(());
                }
                Poll::Pending
            })
            .await;
        })
    };
    let waker = pest.join().unwrap();
    resting.store(true, Ordering::Release);
    waker.wake();
    rt::block_on(task).unwrap();
    runtime.stop().unwrap();
}

/// A wake that finds the task gone has nothing to do any more: the task was polled where it arrived.
/// Wakes that ran after it instead would be one more with each hop, and the hops ever slower. Once
/// the task rests they all catch up with it, and each costs a poll that nobody asked for.
#[test]
fn wakes_of_past_hops_do_not_run_after_the_task() {
    const TASKS: usize = 32;
    const HOPS: usize = 2_000;
    let _dog = Watchdog::new();
    let runtime = runtime(2);
    let polls = Arc::new(AtomicUsize::new(0));
    let tasks: Vec<_> = (0..TASKS)
        .map(|_| {
            let threads = [runtime.thread(0).clone(), runtime.thread(1).clone()];
            let polls = polls.clone();
            runtime.thread(0).schedule(async move {
                for hop in 0..HOPS {
                    rt::schedule_on(&threads[(hop + 1) % 2]).await.unwrap();
                }
                let mut rest = rt::timeout_ms(20);
                poll_fn(move |cx| {
                    polls.fetch_add(1, Ordering::Relaxed);
                    Pin::new(&mut rest).poll(cx)
                })
                .await
                .unwrap();
            })
        })
        .collect();
    for task in tasks {
        rt::block_on(task).unwrap();
    }
    runtime.stop().unwrap();
    // Asked for are two: the first and the last. Another may come of the last hop itself, and one
    // of a wake that was merged too late.
    let polls = polls.load(Ordering::Relaxed);
    assert!(polls <= 4 * TASKS, "{polls} polls of {TASKS} tasks at rest");
}

/// The poll of its arrival is still to come, and sees what was written before the wake.
#[test]
fn a_wake_that_comes_while_a_task_arrives_costs_no_poll_of_its_own() {
    let _dog = Watchdog::new();
    let runtime = Runtime::start(RuntimeConfig {
        num_threads: 2,
        stop_grace: Duration::from_secs(1),
        ..RuntimeConfig::default()
    })
    .unwrap();
    let (from, to) = (runtime.thread(0), runtime.thread(1).clone());
    let (send, begun) = mpsc::channel();
    let (first, second) = (Arc::new(Barrier::new(2)), Arc::new(Barrier::new(2)));
    // Each keeps the thread for itself until it is let go.
    let block = |barrier: &Arc<Barrier>| {
        let (barrier, send) = (barrier.clone(), send.clone());
        to.schedule(async move {
            send.send(()).unwrap();
            barrier.wait();
        })
    };
    let one = block(&first);
    begun.recv().unwrap();
    let two = block(&second); // is taken in together with the task
    let polls = Arc::new(AtomicUsize::new(0));
    let done = Arc::new(AtomicBool::new(false));
    let (send_waker, wakers) = mpsc::channel::<Waker>();
    let task = {
        let (to, polls, done) = (to.clone(), polls.clone(), done.clone());
        from.schedule(async move {
            send_waker.send(poll_fn(|cx| Poll::Ready(cx.waker().clone())).await).unwrap();
            rt::schedule_on(&to).await.unwrap();
            poll_fn(move |_| {
                polls.fetch_add(1, Ordering::Relaxed);
                if done.load(Ordering::Relaxed) { Poll::Ready(()) } else { Poll::Pending }
            })
            .await;
        })
    };
    let waker = wakers.recv().unwrap();
    rt::block_on(from.schedule(async {})).unwrap(); // the task has left
    first.wait();
    begun.recv().unwrap(); // it has arrived, and its turn is next
    waker.wake_by_ref();
    second.wait();
    for block in [one, two] {
        rt::block_on(block).unwrap();
    }
    for _ in 0..2 {
        rt::block_on(to.schedule(async {})).unwrap();
    }
    assert_eq!(polls.load(Ordering::Relaxed), 1);
    done.store(true, Ordering::Relaxed);
    waker.wake();
    rt::block_on(task).unwrap();
    assert_eq!(polls.load(Ordering::Relaxed), 2);
    runtime.stop().unwrap();
}

/// Two branches of one task ask for a hop in the same poll. Both must hear of the arrival, also
/// where only a branch that was woken is polled again.
#[test]
fn every_branch_that_asked_for_a_hop_hears_of_it() {
    let _dog = Watchdog::new();
    let runtime = Runtime::start(RuntimeConfig {
        num_threads: 3,
        stop_grace: Duration::from_secs(1), // if it hangs, its message should not
        ..RuntimeConfig::default()
    });
    let runtime = runtime.unwrap();
    let (a, b) = (runtime.thread(1).clone(), runtime.thread(2).clone());
    for targets in [[a.clone(), a.clone()], [a, b]] {
        let (done, finished) = mpsc::channel();
        let task = runtime.thread(0).schedule(async move {
            let mut hops: FuturesUnordered<_> = targets.iter().map(rt::schedule_on).collect();
            while let Some(hop) = hops.next().await {
                hop.unwrap();
            }
            done.send(()).unwrap();
        });
        let outcome = finished.recv_timeout(Duration::from_secs(10));
        assert_eq!(outcome, Ok(()), "a branch was not woken by the arrival");
        rt::block_on(task).unwrap();
    }
    runtime.stop().unwrap();
}

// ---- foreign wakers -------------------------------------------------------------------------

/// A wake in the middle of the poll counts.
#[test]
fn a_task_that_wakes_itself_in_its_poll_is_polled_again() {
    let _dog = Watchdog::new();
    let mut left = 1000;
    let task = poll_fn(move |cx| {
        if left == 0 {
            return Poll::Ready(());
        }
        left -= 1;
        cx.waker().wake_by_ref();
        cx.waker().wake_by_ref(); // once more: many wakes are one poll
        Poll::Pending
    });
    let executor = executor();
    let task = executor.spawn(task);
    executor.run().unwrap();
    executor.block_on(task).unwrap();
}

struct Inbox {
    sent: [AtomicUsize; 2],
    waker: Mutex<Option<Waker>>,
}

impl Inbox {
    fn new() -> Arc<Self> {
        Arc::new(Self { sent: [AtomicUsize::new(0), AtomicUsize::new(0)], waker: Mutex::new(None) })
    }

    /// Waits until each of the two senders has sent so many.
    async fn both(&self, count: usize) {
        poll_fn(|cx| {
            *self.waker.lock().unwrap() = Some(cx.waker().clone());
            let arrived = |n: &AtomicUsize| n.load(Ordering::Relaxed) >= count;
            if self.sent.iter().all(arrived) {
                return Poll::Ready(());
            }
            // The poll takes its time to end: most wakes come in the middle of one.
            std::thread::yield_now();
            Poll::Pending
        })
        .await;
    }

    /// Relaxed: only the wake orders this before the poll.
    fn send(&self, sender: usize) {
        self.sent[sender].fetch_add(1, Ordering::Relaxed);
        let waker = self.waker.lock().unwrap().clone();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// Two threads send and wake at once, and wait for the answer: of two wakes one is merged into
/// the other, and the poll must still see what both sent.
#[test]
fn of_two_wakes_at_once_neither_ones_message_is_missed() {
    const ROUNDS: usize = 5_000;
    let _dog = Watchdog::new();
    for spawned in [false, true] {
        let (inbox, barrier) = (Inbox::new(), Arc::new(Barrier::new(2)));
        let seen = Arc::new(AtomicUsize::new(0));
        let senders: Vec<_> = (0..2)
            .map(|sender| {
                let (inbox, barrier, seen) = (inbox.clone(), barrier.clone(), seen.clone());
                std::thread::spawn(move || {
                    barrier.wait();
                    for round in 1..=ROUNDS {
                        inbox.send(sender);
                        while seen.load(Ordering::Acquire) < round {
                            std::thread::yield_now();
                        }
                    }
                })
            })
            .collect();
        let receiver = async move {
            for round in 1..=ROUNDS {
                inbox.both(round).await;
                seen.store(round, Ordering::Release);
            }
        };
        let executor = executor();
        if spawned {
            drop(executor.spawn(receiver));
            executor.run().unwrap();
        } else {
            executor.block_on(receiver);
        }
        for sender in senders {
            sender.join().unwrap();
        }
    }
}

#[test]
fn a_million_wakes_by_two_threads_that_do_not_wait_leave_the_last_message_seen() {
    const EACH: usize = 500_000;
    let _dog = Watchdog::new();
    let inbox = Inbox::new();
    let senders: Vec<_> = (0..2)
        .map(|sender| {
            let inbox = inbox.clone();
            std::thread::spawn(move || (0..EACH).for_each(|_| inbox.send(sender)))
        })
        .collect();
    let executor = executor();
    drop(executor.spawn(async move { inbox.both(EACH).await }));
    executor.run().unwrap();
    for sender in senders {
        sender.join().unwrap();
    }
}

/// Notes the thread that drops it.
struct DroppedOn(Rc<()>, Arc<Mutex<Option<ThreadId>>>);

impl Drop for DroppedOn {
    fn drop(&mut self) {
        *self.1.lock().unwrap() = Some(std::thread::current().id());
    }
}

/// A waker may be the last thing that knows of a task, and may die on any thread: the future of a
/// task that is not `Send` may not die with it there.
#[test]
fn a_local_future_dies_on_its_own_thread_though_its_last_waker_dies_on_another() {
    let _dog = Watchdog::new();
    let dropped_on = Arc::new(Mutex::new(None));
    let (send, wakers) = mpsc::channel::<Waker>();
    let other = std::thread::spawn(move || {
        for waker in wakers {
            waker.wake_by_ref();
            drop(waker);
        }
    });
    let executor = executor();
    let local = DroppedOn(Rc::new(()), dropped_on.clone());
    let mut polls = 0;
    let task = executor.spawn(poll_fn(move |cx| {
        let held = &local;
        assert_eq!(Rc::strong_count(&held.0), 1);
        polls += 1;
        if polls == 3 {
            return Poll::Ready(());
        }
        send.send(cx.waker().clone()).unwrap();
        Poll::Pending
    }));
    executor.block_on(task).unwrap();
    other.join().unwrap();
    let here = std::thread::current().id();
    assert_eq!(*dropped_on.lock().unwrap(), Some(here));
    // And of one that is never done, whose waker is dropped when the executor is gone.
    let local = DroppedOn(Rc::new(()), dropped_on.clone());
    let (send, wakers) = mpsc::channel::<Waker>();
    let task = executor.spawn(poll_fn(move |cx| {
        let _held = &local;
        send.send(cx.waker().clone()).unwrap();
        Poll::<()>::Pending
    }));
    executor.block_on(rt::yield_now());
    *dropped_on.lock().unwrap() = None;
    drop(executor);
    assert_eq!(*dropped_on.lock().unwrap(), Some(here));
    let waker = wakers.recv().unwrap();
    std::thread::spawn(move || waker.wake()).join().unwrap();
    assert_eq!(rt::block_on(task), Err(JoinError::Stopped));
}

// ---- awaiting from elsewhere ----------------------------------------------------------------

/// Tasks offered while the runtime stops are done or refused; their handles say which, on every
/// kind of executor.
#[test]
fn whoever_awaits_a_task_offered_during_a_stop_hears_of_its_end() {
    let _dog = Watchdog::new();
    let tokio = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
    let (mut done, mut refused) = (0, 0);
    for _ in 0..50 {
        let runtime = runtime(2);
        let (handle, start) = (runtime.thread(1).clone(), Arc::new(Barrier::new(2)));
        let offering = {
            let start = start.clone();
            std::thread::spawn(move || {
                start.wait();
                (0..40).map(|n| handle.schedule(async move { n })).collect::<Vec<_>>()
            })
        };
        start.wait();
        runtime.stop().unwrap();
        for (n, task) in offering.join().unwrap().into_iter().enumerate() {
            let outcome = match n % 3 {
                0 => rt::block_on(task),
                1 => tokio.block_on(task),
                _ => executor().block_on(task),
            };
            match outcome {
                Ok(value) => {
                    assert_eq!(value, n);
                    done += 1;
                }
                Err(error) => {
                    assert_eq!(error, JoinError::Stopped);
                    refused += 1;
                }
            }
        }
    }
    assert_eq!(done + refused, 50 * 40);
}

/// Wakers, handles and operations may sit in thread-locals, and die after everything else.
#[test]
fn what_is_left_in_thread_locals_past_the_end_of_a_runtime_does_no_harm() {
    type Left = Vec<Box<dyn std::any::Any>>;
    thread_local! {
        static LEFT: RefCell<Left> = const { RefCell::new(Vec::new()) };
    }
    struct WakesOnDrop(Waker);
    impl Drop for WakesOnDrop {
        fn drop(&mut self) {
            self.0.wake_by_ref();
        }
    }
    fn leave(thing: impl std::any::Any) {
        LEFT.with_borrow_mut(|left| left.push(Box::new(thing)));
    }
    in_child("what_is_left_in_thread_locals_past_the_end_of_a_runtime_does_no_harm", || {
        let _dog = Watchdog::new();
        let outer = std::thread::spawn(|| {
            LEFT.with_borrow(Vec::len); // made first, so dropped last
            let runtime = Runtime::start(RuntimeConfig {
                stop_grace: Duration::ZERO, // the tasks below never end
                ..RuntimeConfig::default()
            });
            let runtime = runtime.unwrap();
            let (reader, _writer) = pipe();
            let (send, wakers) = mpsc::channel::<Waker>();
            let task = runtime.schedule(async move {
                LEFT.with_borrow(Vec::len);
                let mut read = rt::read(&reader, vec![0; 16], 0);
                read.start();
                leave(read); // in flight for ever, on the runtime's own thread
                leave(rt::spawn(std::future::pending::<()>()));
                poll_fn(move |cx| {
                    leave(WakesOnDrop(cx.waker().clone()));
                    send.send(cx.waker().clone()).unwrap();
                    Poll::<()>::Pending
                })
                .await;
            });
            leave(WakesOnDrop(wakers.recv().unwrap()));
            leave(task);
            let stopped = runtime.stop();
            assert!(matches!(stopped, Err(StopError::Abandoned { tasks: 2 })), "{stopped:?}");
        });
        outer.join().unwrap();
    });
}

// ---- busy threads ---------------------------------------------------------------------------

/// Every way to run completions: a busy thread makes few system calls, and must still get them.
const MODES: [Option<u32>; 6] = [
    None,
    Some(0),
    Some(SETUP_COOP_TASKRUN),
    Some(SETUP_COOP_TASKRUN | SETUP_TASKRUN_FLAG),
    Some(SETUP_SINGLE_ISSUER | SETUP_DEFER_TASKRUN | SETUP_TASKRUN_FLAG),
    Some(SETUP_SINGLE_ISSUER | SETUP_DEFER_TASKRUN),
];

fn a_busy_thread_hears_of(mode: Option<u32>) {
    let _dog = Watchdog::of(Duration::from_secs(20));
    let (reader, mut writer) = pipe();
    executor_with(16, mode).block_on(async {
        let read = rt::spawn(async move { rt::read(&reader, vec![0; 8], 0).await.0.unwrap() });
        let sleep = rt::spawn(async { rt::timeout_ms(10).await.unwrap() });
        for _ in 0..10 {
            rt::yield_now().await; // both are with the kernel
        }
        writer.write_all(b"ping").unwrap();
        // Never idle, so never waiting: `until` yields and yields.
        let began = rt::now();
        until(|| (read.is_finished() && sleep.is_finished()) || began.elapsed().as_secs() > 5)
            .await;
        assert!(read.is_finished(), "a read starved by a busy task ({mode:?})");
        assert!(sleep.is_finished(), "a timer starved by a busy task ({mode:?})");
    });
}

#[test]
fn a_task_that_never_rests_starves_neither_reads_nor_timers() {
    for mode in &MODES[..5] {
        a_busy_thread_hears_of(*mode);
    }
}

/// The one mode in which the ring does not say that completions wait.
#[test]
fn nor_does_it_without_the_task_run_flag() {
    a_busy_thread_hears_of(MODES[5]);
}

#[test]
fn tasks_that_never_rest_starve_neither_each_other_nor_messages() {
    let _dog = Watchdog::new();
    let runtime = runtime(1);
    let stop = Arc::new(AtomicBool::new(false));
    let busy: Vec<_> = (0..300)
        .map(|_| {
            let stop = stop.clone();
            runtime.schedule(async move {
                let mut turns = 0_usize;
                until(|| {
                    turns += 1;
                    stop.load(Ordering::Relaxed)
                })
                .await;
                turns
            })
        })
        .collect();
    // Each is a message to a thread that is never idle.
    for n in 0..50 {
        assert_eq!(rt::block_on(runtime.schedule(async move { n })), Ok(n));
    }
    stop.store(true, Ordering::Relaxed);
    for task in busy {
        assert!(rt::block_on(task).unwrap() >= 50, "every task had its turns");
    }
    runtime.stop().unwrap();
}

// ---- signals --------------------------------------------------------------------------------

#[test]
fn signals_that_interrupt_the_ring_are_no_errors() {
    static SIGNALS: AtomicUsize = AtomicUsize::new(0);
    extern "C" fn count(_: i32) {
        SIGNALS.fetch_add(1, Ordering::Relaxed);
    }
    in_child("signals_that_interrupt_the_ring_are_no_errors", || {
        let _dog = Watchdog::new();
        // SAFETY: all zeroes are a valid `sigaction`: no flags, so no restarts.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = count as extern "C" fn(i32) as usize;
        // SAFETY: the handler only touches an atomic.
        let set =
            unsafe { libc::sigaction(libc::SIGUSR1, &raw const action, std::ptr::null_mut()) };
        assert_eq!(set, 0);
        // SAFETY: takes no pointers.
        let target = unsafe { libc::pthread_self() };
        let done = Arc::new(AtomicBool::new(false));
        let pest = {
            let done = done.clone();
            std::thread::spawn(move || {
                while !done.load(Ordering::Acquire) {
                    // SAFETY: the target waits for this thread, so it is still there.
                    unsafe { libc::pthread_kill(target, libc::SIGUSR1) };
                    for _ in 0..200 {
                        std::thread::yield_now();
                    }
                }
            })
        };
        let executor = executor();
        executor.block_on(async {
            let mut rounds = 0;
            while rounds < 200 || SIGNALS.load(Ordering::Relaxed) < 500 {
                rt::timeout(Duration::from_micros(500)).await.unwrap();
                rt::nop().await.unwrap();
                rounds += 1;
            }
        });
        drop(executor);
        done.store(true, Ordering::Release);
        pest.join().unwrap();
    });
}

// A future type by hand, to see that none of the above leans on `async fn`.
struct Countdown(u32);

impl Future for Countdown {
    type Output = ();
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.0 == 0 {
            return Poll::Ready(());
        }
        self.0 -= 1;
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

#[test]
fn more_tasks_than_one_turn_polls_all_finish() {
    let _dog = Watchdog::new();
    let executor = executor();
    let tasks: Vec<_> = (0..2000).map(|_| executor.spawn(Countdown(5))).collect();
    executor.run().unwrap();
    assert!(tasks.iter().all(Task::is_finished));
}

// ---- the bell -------------------------------------------------------------------------------

/// A thread that goes to sleep with a long queue behind a short ring makes several calls. A bell
/// that one of them hears must end the wait of the last: whoever rang it will not ring again.
#[test]
fn a_bell_heard_while_a_backlog_is_submitted_ends_the_wait() {
    let _dog = Watchdog::new();
    let config = RuntimeConfig {
        stop_grace: Duration::from_millis(1), // the tasks below would never end
        executor_config: ExecutorConfig {
            entries: 2,
            spin: Some(Duration::ZERO),
            ..ExecutorConfig::default()
        },
        ..RuntimeConfig::default()
    };
    for round in 0..120 {
        let runtime = Runtime::start(config.clone()).unwrap();
        let thread = runtime.thread(0);
        // It sleeps once before, so that its bell is armed.
        rt::block_on(thread.schedule(async { rt::timeout_ms(1).await.unwrap() })).unwrap();
        let busy = thread.schedule(async {
            let mut sleeps: Vec<_> =
                (0..2000).map(|_| rt::timeout(Duration::from_secs(3600))).collect();
            for sleep in &mut sleeps {
                sleep.start();
            }
            std::future::pending::<()>().await;
            drop(sleeps);
        });
        for _ in 0..round * 3000 {
            std::hint::spin_loop(); // another moment in each round
        }
        assert_eq!(rt::block_on(thread.schedule(async move { round })), Ok(round));
        busy.cancel();
        drop(runtime);
    }
}

#[test]
fn no_wake_is_lost_whatever_the_flags_of_the_ring() {
    let _dog = Watchdog::new();
    let coop = rt::SETUP_COOP_TASKRUN | rt::SETUP_TASKRUN_FLAG;
    for flags in [Some(0), Some(coop), Some(rt::SETUP_SQPOLL), None] {
        let runtime = Runtime::start(RuntimeConfig {
            num_threads: 2,
            executor_config: ExecutorConfig {
                uring_flags: flags,
                spin: Some(Duration::ZERO),
                ..ExecutorConfig::default()
            },
            ..RuntimeConfig::default()
        })
        .unwrap();
        let threads = [runtime.thread(0).clone(), runtime.thread(1).clone()];
        let task = runtime.schedule(async move {
            for hop in 0..5_000 {
                rt::schedule_on(&threads[hop % 2]).await.unwrap();
                if hop % 7 == 0 {
                    rt::nop().await.unwrap();
                }
            }
        });
        rt::block_on(task).unwrap();
        runtime.stop().unwrap();
    }
}
