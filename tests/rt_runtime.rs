//! Threads and tasks: starting, stopping under load, hopping, cancelling, panicking.

#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use common::{Watchdog, executor, executor_with, pipe, runtime, until};
use ringlog::rt::{
    self, Handle, HopError, JoinError, Owned, Runtime, RuntimeConfig, StopError, Task,
};
use std::cell::RefCell;
use std::future::{Future, pending, poll_fn};
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

fn impatient(num_threads: usize) -> Runtime {
    let config = RuntimeConfig {
        num_threads,
        stop_grace: Duration::from_millis(20),
        ..RuntimeConfig::default()
    };
    Runtime::start(config).unwrap()
}

// ---- starting and stopping ------------------------------------------------------------------

/// Every thread has tasks that await tasks on the next thread while the runtime stops: a thread
/// that left early would leave the one before it waiting for ever.
#[test]
fn a_thousand_starts_and_stops_under_cross_scheduling_hang_nowhere_and_lose_nothing() {
    const ROUNDS: usize = 1000;
    const THREADS: usize = 2;
    let _dog = Watchdog::new();
    for round in 0..ROUNDS {
        let runtime = runtime(THREADS);
        let handles: Arc<[Handle]> = (0..THREADS).map(|i| runtime.thread(i).clone()).collect();
        let done = Arc::new(AtomicUsize::new(0));
        let tasks: Vec<_> = (0..THREADS * 2)
            .map(|n| {
                let (handles, done) = (handles.clone(), done.clone());
                runtime.schedule(async move {
                    for step in 1..=3 {
                        let next = &handles[(n + step) % THREADS];
                        let inner = next.schedule(async move {
                            rt::nop().await.unwrap();
                            step
                        });
                        // Accepted even if the runtime stops: the task that needs it was.
                        assert_eq!(inner.await, Ok(step));
                        rt::schedule_on(next).await.unwrap();
                    }
                    done.fetch_add(1, Ordering::Relaxed);
                })
            })
            .collect();
        runtime.stop().unwrap_or_else(|error| panic!("round {round}: {error}"));
        assert_eq!(done.load(Ordering::Relaxed), tasks.len(), "round {round}");
        assert!(tasks.iter().all(Task::is_finished));
    }
}

#[test]
fn a_stop_waits_for_what_was_accepted_and_refuses_what_comes_after() {
    let _dog = Watchdog::new();
    let runtime = runtime(2);
    let handle = runtime.thread(0).clone();
    let accepted: Vec<_> = (0..50)
        .map(|n| {
            runtime.schedule(async move {
                rt::timeout_ms(n % 5).await.unwrap();
                n
            })
        })
        .collect();
    runtime.stop().unwrap();
    for (n, task) in (0..).zip(accepted) {
        assert!(task.is_finished(), "stop returned before it was done");
        assert_eq!(rt::block_on(task), Ok(n));
    }
    // Refused at once, and the future is dropped here.
    let kept = Arc::new(());
    let holds = kept.clone();
    let late = handle.schedule(async move { drop(holds) });
    assert_eq!(Arc::strong_count(&kept), 1);
    assert_eq!(rt::block_on(late), Err(JoinError::Stopped));
    assert_eq!(rt::block_on(handle.schedule_local(|| async {})), Err(JoinError::Stopped));
}

#[test]
fn a_task_that_does_not_end_is_dropped_when_the_grace_is_over_and_counted() {
    let _dog = Watchdog::new();
    let runtime = impatient(2);
    let (reader, _writer) = pipe();
    let stuck = runtime.thread(0).schedule(pending::<()>());
    let reading = runtime.thread(1).schedule(async move { rt::read(&reader, [0], 0).await });
    let done = runtime.thread(0).schedule(async { 1 });
    let stopped = runtime.stop();
    assert!(matches!(stopped, Err(StopError::Abandoned { tasks: 2 })), "{stopped:?}");
    assert_eq!(rt::block_on(stuck), Err(JoinError::Stopped));
    assert!(matches!(rt::block_on(reading), Err(JoinError::Stopped)));
    assert_eq!(rt::block_on(done), Ok(1));
}

#[test]
fn a_runtime_stopped_by_its_own_task_says_so_and_ends_all_the_same() {
    let _dog = Watchdog::new();
    let runtime = runtime(2);
    let (handle, other) = (runtime.thread(0).clone(), runtime.thread(1).clone());
    let (send, receive) = mpsc::channel::<Runtime>();
    let task = handle.schedule(async move {
        let runtime = receive.recv().unwrap();
        let stopped = runtime.stop();
        assert!(matches!(stopped, Err(StopError::OnOwnThread)), "{stopped:?}");
        // The stopper is a task like the others: it may finish, and use the other thread for it.
        other.stopping().await;
        other.schedule(async { 5 }).await
    });
    send.send(runtime).unwrap();
    assert_eq!(rt::block_on(task), Ok(Ok(5)));
    // Closed in the end, with nobody waiting for it.
    while rt::block_on(handle.schedule(async {})).is_ok() {
        std::thread::yield_now();
    }
}

#[test]
fn loops_that_watch_for_the_stop_end_with_it() {
    let _dog = Watchdog::new();
    let runtime = runtime(2);
    let listener = rt::Fd::from(std::net::TcpListener::bind("127.0.0.1:0").unwrap());
    let servers: Vec<_> = (0..2)
        .map(|index| {
            let (handle, listener) = (runtime.thread(index).clone(), listener.clone());
            runtime.thread(index).schedule(async move {
                let (stop, accept) = (std::pin::pin!(handle.stopping()), rt::accept(&listener));
                let first = futures::future::select(stop, accept).await;
                matches!(first, futures::future::Either::Left(_))
            })
        })
        .collect();
    let outside = runtime.thread(0).stopping();
    runtime.stop().unwrap();
    for server in servers {
        assert_eq!(rt::block_on(server), Ok(true));
    }
    rt::block_on(outside); // also for those who ask late, and from elsewhere
}

#[test]
fn what_is_run_until_the_stop_is_dropped_by_it_and_what_is_done_before_is_given_back() {
    let _dog = Watchdog::new();
    let runtime = runtime(2);
    let handle = runtime.thread(0).clone();
    let (reader, mut writer) = pipe();
    let drops = common::Drops::default();
    let witness = || drops.witness(common::Arena::new(4096));
    let (first, second) = (witness(), witness());
    let (send, began) = mpsc::channel();
    let task = runtime.thread(1).schedule(async move {
        let read = handle.until_stopping(rt::read(&reader, first, 0)).await;
        let (result, buf) = read.expect("there was something to read before the stop");
        drop(buf);
        send.send(()).unwrap();
        (result.unwrap(), handle.until_stopping(rt::read(&reader, second, 0)).await.is_none())
    });
    writer.write_all(b"four").unwrap();
    began.recv().unwrap();
    runtime.stop().unwrap();
    assert_eq!(rt::block_on(task), Ok((4, true)));
    assert_eq!(drops.get(), 2);
}

#[test]
fn dropping_a_runtime_drains_it_too() {
    let _dog = Watchdog::new();
    let runtime = runtime(1);
    let task = runtime.schedule(async {
        rt::timeout_ms(5).await.unwrap();
        3
    });
    drop(runtime);
    assert!(task.is_finished());
    assert_eq!(rt::block_on(task), Ok(3));
}

#[test]
fn tasks_go_to_the_threads_in_turn_and_begin_in_the_order_of_their_offering() {
    let _dog = Watchdog::new();
    let runtime = runtime(3);
    assert_eq!(runtime.size(), 3);
    let handles: Vec<Handle> = (0..3).map(|i| runtime.thread(i).clone()).collect();
    for turn in 0..9 {
        let all = handles.clone();
        let here = runtime.schedule(async move { all.iter().position(Handle::is_current) });
        assert_eq!(rt::block_on(here), Ok(Some(turn % 3)));
    }
    let order = Arc::new(Mutex::new(Vec::new()));
    for n in 0..200 {
        let order = order.clone();
        if n % 2 == 0 {
            drop(handles[1].schedule(async move { order.lock().unwrap().push(n) }));
        } else {
            drop(handles[1].schedule_local(move || async move { order.lock().unwrap().push(n) }));
        }
    }
    runtime.stop().unwrap();
    assert_eq!(*order.lock().unwrap(), (0..200).collect::<Vec<_>>());
}

/// Under `taskset` or in a cgroup there are fewer cores than the machine has.
#[test]
fn pinned_threads_stay_within_the_cores_that_the_process_may_use() {
    let _dog = Watchdog::new();
    // The limit is this thread's, and of those that it starts.
    let thread = std::thread::spawn(|| {
        let allowed = affinity();
        let last = *allowed.last().unwrap();
        // SAFETY: all zeroes are an empty set.
        let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
        // SAFETY: a core that the kernel named is within the set.
        unsafe { libc::CPU_SET(last, &mut set) };
        // SAFETY: the set is read before the call returns.
        let done = unsafe { libc::sched_setaffinity(0, size_of_val(&set), &raw const set) };
        assert_eq!(done, 0);
        let runtime = Runtime::start(RuntimeConfig {
            num_threads: 4,
            pin_threads: true,
            ..RuntimeConfig::default()
        });
        let runtime = runtime.unwrap();
        for index in 0..4 {
            let cores = runtime.thread(index).schedule(async { affinity() });
            assert_eq!(rt::block_on(cores), Ok(vec![last]));
        }
        runtime.stop().unwrap();
    });
    thread.join().unwrap();
    // With more cores, each thread has one.
    let config = RuntimeConfig {
        num_threads: affinity().len() + 1,
        pin_threads: true,
        ..RuntimeConfig::default()
    };
    let (runtime, allowed) = (Runtime::start(config).unwrap(), affinity());
    for index in 0..runtime.size() {
        let cores = runtime.thread(index).schedule(async { affinity() });
        assert_eq!(rt::block_on(cores), Ok(vec![allowed[index % allowed.len()]]));
    }
    runtime.stop().unwrap();
}

/// The cores that this thread may use.
fn affinity() -> Vec<usize> {
    // SAFETY: all zeroes are an empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes at most the size of the set.
    let done = unsafe { libc::sched_getaffinity(0, size_of_val(&set), &raw mut set) };
    assert_eq!(done, 0);
    // SAFETY: the core is within the set.
    let is_in = |core: &usize| unsafe { libc::CPU_ISSET(*core, &set) };
    (0..1024).filter(is_in).collect()
}

// ---- hops -----------------------------------------------------------------------------------

/// A single-issuer ring refuses every other thread, so these operations can only have gone through
/// the ring of the thread that the task was on.
#[test]
fn after_a_hop_operations_go_through_the_ring_of_the_new_thread() {
    let _dog = Watchdog::new();
    let runtime = runtime(2);
    let threads = [runtime.thread(0).clone(), runtime.thread(1).clone()];
    let task = runtime.schedule(async move {
        let mut seen = Vec::new();
        for hop in 0..20 {
            rt::schedule_on(&threads[hop % 2]).await.unwrap();
            assert!(threads[hop % 2].is_current());
            seen.push(std::thread::current().id());
            rt::nop().await.unwrap();
            assert_eq!(seen.last(), Some(&std::thread::current().id()), "stays where it is");
        }
        seen
    });
    let seen = rt::block_on(task).unwrap();
    assert!(seen.chunks(2).all(|pair| pair == &seen[..2]) && seen[0] != seen[1]);
    runtime.stop().unwrap();
}

#[test]
fn a_hop_to_where_the_task_is_happens_at_once() {
    let _dog = Watchdog::new();
    let runtime = runtime(1);
    let here = runtime.thread(0).clone();
    let polls = Arc::new(AtomicUsize::new(0));
    let counter = polls.clone();
    let mut work = Box::pin(async move {
        for _ in 0..5 {
            rt::schedule_on(&here).await.unwrap();
        }
    });
    let counted = poll_fn(move |cx| {
        counter.fetch_add(1, Ordering::Relaxed);
        work.as_mut().poll(cx)
    });
    rt::block_on(runtime.schedule(counted)).unwrap();
    assert_eq!(polls.load(Ordering::Relaxed), 1);
    runtime.stop().unwrap();
}

#[test]
fn tasks_that_may_not_leave_their_thread_are_told_so_and_go_on() {
    let _dog = Watchdog::new();
    let runtime = runtime(2);
    let (here, there) = (runtime.thread(0).clone(), runtime.thread(1).clone());
    let target = there.clone();
    let local = here.schedule_local(move || async move {
        let rc = Rc::new(1);
        let spawned_target = target.clone();
        let spawned = rt::spawn(async move { rt::schedule_on(&spawned_target).await });
        let outcomes = (rt::schedule_on(&target).await, spawned.await);
        rt::nop().await.unwrap();
        assert_eq!(*rc, 1);
        outcomes
    });
    let refused = Err(HopError::NotSend);
    assert_eq!(rt::block_on(local), Ok((refused, Ok(refused))));
    // Nor may the future of a `block_on`.
    let other = executor();
    let outcome = other.block_on(rt::schedule_on(&other.handle()));
    assert_eq!(outcome, Ok(()), "it is there already");
    assert_eq!(rt::block_on(rt::schedule_on(&there)), refused);
    runtime.stop().unwrap();
}

#[test]
fn a_hop_to_another_runtime_is_refused() {
    let _dog = Watchdog::new();
    let (ours, theirs) = (runtime(1), runtime(1));
    let target = theirs.thread(0).clone();
    let task = ours.schedule(async move {
        let outcome = rt::schedule_on(&target).await;
        rt::nop().await.unwrap();
        // What it may do is schedule there and await that.
        (outcome, target.schedule(async { 2 }).await)
    });
    assert_eq!(rt::block_on(task), Ok((Err(HopError::OtherRuntime), Ok(2))));
    theirs.stop().unwrap();
    ours.stop().unwrap();
}

/// While a runtime drains, tasks hop as before; and one that hops for ever is dropped at the end
/// of the grace, on whatever thread or on whatever way between two it is then.
#[test]
fn tasks_that_hop_while_the_runtime_stops_either_finish_or_are_dropped() {
    let _dog = Watchdog::new();
    for _ in 0..20 {
        let runtime = impatient(2);
        let threads = [runtime.thread(0).clone(), runtime.thread(1).clone()];
        let alive = Arc::new(());
        let tasks: Vec<_> = (0..10)
            .map(|_| {
                let (threads, alive) = (threads.clone(), alive.clone());
                runtime.schedule(async move {
                    let held = alive;
                    for hop in 0_usize.. {
                        if rt::schedule_on(&threads[hop % 2]).await.is_err() {
                            break;
                        }
                    }
                    drop(held);
                })
            })
            .collect();
        let stopped = runtime.stop();
        assert_eq!(Arc::strong_count(&alive), 1, "every future is gone");
        let finished = tasks.into_iter().flat_map(rt::block_on).count();
        match stopped {
            Ok(()) => assert_eq!(finished, 10),
            Err(StopError::Abandoned { tasks }) => assert_eq!(tasks + finished, 10),
            Err(error) => panic!("{error}"),
        }
    }
}

/// One branch waits for an operation, the other takes the task elsewhere: the operation stays on
/// its ring, and its completion follows the task.
#[test]
fn an_operation_in_flight_across_a_hop_wakes_the_task_where_it_is() {
    let _dog = Watchdog::new();
    let runtime = runtime(2);
    let (here, there) = (runtime.thread(0).clone(), runtime.thread(1).clone());
    for _ in 0..50 {
        let (reader, mut writer) = pipe();
        let (home, away) = (here.clone(), there.clone());
        let task = here.schedule(async move {
            let read = rt::read(&reader, vec![0; 8], 0);
            let hop = async {
                rt::nop().await.unwrap(); // the read began on `here`
                rt::schedule_on(&away).await.unwrap();
                // Only now can the read complete.
                writer.write_all(b"from afar").unwrap();
                rt::nop().await.unwrap();
                away.is_current()
            };
            let ((result, buf), hopped) = futures::join!(read, hop);
            assert!(hopped && away.is_current());
            assert_eq!((result.unwrap(), buf.as_slice()), (8, b"from afa".as_slice()));
            rt::schedule_on(&home).await.unwrap();
        });
        rt::block_on(task).unwrap();
    }
    runtime.stop().unwrap();
}

#[test]
fn an_operation_may_be_awaited_and_dropped_on_another_thread_and_off_every_executor() {
    let _dog = Watchdog::new();
    let runtime = runtime(2);
    let drops = common::Drops::default();
    // A pipe for each: which of several readers of one gets a byte is the kernel's choice.
    let start = || {
        let (reader, writer) = pipe();
        let witness = drops.witness(common::Arena::new(4096));
        let started = runtime.thread(0).schedule(async move {
            let mut read = rt::read(&reader, witness, 0);
            read.start();
            rt::nop().await.unwrap();
            Some(read)
        });
        (rt::block_on(started).unwrap().unwrap(), writer)
    };
    let (here, mut writer) = start();
    writer.write_all(b"1").unwrap();
    assert_eq!(rt::block_on(here).0.unwrap(), 1, "on a thread without an executor");
    let (there, mut writer) = start();
    let task = runtime.thread(1).schedule(there);
    writer.write_all(b"2").unwrap();
    let (result, buf) = rt::block_on(task).unwrap();
    assert_eq!(result.unwrap(), 1, "on another thread of the runtime");
    drop(buf);
    let ((stray, _writer), (elsewhere, _other_writer)) = (start(), start());
    assert_eq!(drops.get(), 2);
    // Dropped off its ring: the ring's thread is told to cancel it, and frees the buffer.
    drop(stray);
    rt::block_on(runtime.thread(1).schedule(async move { drop(elsewhere) })).unwrap();
    let seen = drops.clone();
    rt::block_on(runtime.thread(0).schedule(async move { until(|| seen.get() == 4).await }))
        .unwrap();
    runtime.stop().unwrap();
}

// ---- tasks ----------------------------------------------------------------------------------

#[test]
fn a_panic_stays_in_its_task_and_reaches_who_awaits_it() {
    let _dog = Watchdog::new();
    let runtime = runtime(1);
    let thread = runtime.thread(0);
    let with_text = thread.schedule(async { panic!("plain") });
    let formatted = thread.schedule(async { panic!("number {}", 7) });
    let other = thread.schedule(async { std::panic::panic_any(7) });
    let local = thread.schedule_local(|| async { assert!(Rc::new(1).eq(&Rc::new(2)), "local") });
    let made = thread.schedule_local(|| -> std::future::Ready<()> { panic!("when made") });
    let panicked = |text: &str| JoinError::Panicked(text.to_owned());
    assert_eq!(rt::block_on(with_text), Err::<(), _>(panicked("plain")));
    assert_eq!(rt::block_on(formatted), Err::<(), _>(panicked("number 7")));
    assert_eq!(rt::block_on(other), Err::<(), _>(panicked("a value that is not text")));
    assert_eq!(rt::block_on(local), Err(panicked("local")));
    assert_eq!(rt::block_on(made), Err(panicked("when made")));
    assert_eq!(rt::block_on(thread.schedule(async { 1 })), Ok(1), "the thread goes on");
    runtime.stop().unwrap();
}

/// Its output is ready, or it pends, and its drop panics.
struct PanicsOnDrop(bool);

impl Future for PanicsOnDrop {
    type Output = ();
    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        if self.0 { Poll::Ready(()) } else { Poll::Pending }
    }
}

impl Drop for PanicsOnDrop {
    fn drop(&mut self) {
        panic!("in the drop");
    }
}

#[test]
fn a_panic_in_the_drop_of_a_finished_future_is_its_tasks_panic() {
    let _dog = Watchdog::new();
    let runtime = runtime(1);
    let outcome = rt::block_on(runtime.schedule(PanicsOnDrop(true)));
    assert_eq!(outcome, Err(JoinError::Panicked("in the drop".to_owned())));
    runtime.stop().unwrap();
}

#[test]
fn a_panic_in_the_drop_of_a_cancelled_or_abandoned_future_harms_nobody_else() {
    let _dog = Watchdog::new();
    let runtime = impatient(1);
    let cancelled = runtime.schedule(PanicsOnDrop(false));
    cancelled.cancel();
    assert_eq!(rt::block_on(cancelled), Err(JoinError::Cancelled));
    let abandoned = runtime.schedule(PanicsOnDrop(false));
    assert_eq!(rt::block_on(runtime.schedule(async { 1 })), Ok(1));
    assert!(matches!(runtime.stop(), Err(StopError::Abandoned { tasks: 1 })));
    assert_eq!(rt::block_on(abandoned), Err(JoinError::Stopped));
}

#[test]
fn a_cancelled_task_is_dropped_where_it_lives_and_its_operations_with_it() {
    let _dog = Watchdog::new();
    let runtime = runtime(2);
    let (reader, _writer) = pipe();
    let drops = common::Drops::default();
    let witness = drops.witness(common::Arena::new(4096));
    let task = runtime.schedule(async move { rt::read(&reader, witness, 0).await.0.unwrap() });
    // Once with a message, once when it is done, once cancelled before it ever ran.
    task.cancel();
    task.cancel();
    assert_eq!(rt::block_on(task), Err(JoinError::Cancelled));
    let seen = drops.clone();
    rt::block_on(runtime.thread(0).schedule(async move { until(|| seen.get() == 1).await }))
        .unwrap();
    let done = runtime.schedule(async { 1 });
    while !done.is_finished() {
        std::thread::yield_now();
    }
    done.cancel();
    assert_eq!(rt::block_on(done), Ok(1), "too late");
    // Cancelled while it hops, which it does all the time.
    for _ in 0..100 {
        let threads = [runtime.thread(0).clone(), runtime.thread(1).clone()];
        let began = Arc::new(AtomicBool::new(false));
        let flag = began.clone();
        let hopper = runtime.schedule(async move {
            flag.store(true, Ordering::Relaxed);
            for hop in 0_usize.. {
                rt::schedule_on(&threads[hop % 2]).await.unwrap();
            }
        });
        while !began.load(Ordering::Relaxed) {
            std::thread::yield_now();
        }
        hopper.cancel();
        assert_eq!(rt::block_on(hopper), Err(JoinError::Cancelled));
    }
    runtime.stop().unwrap();
}

#[test]
fn a_task_whose_handle_is_dropped_runs_on() {
    let _dog = Watchdog::new();
    let runtime = runtime(1);
    let (done, finished) = mpsc::channel();
    drop(runtime.schedule(async move {
        rt::timeout_ms(2).await.unwrap();
        done.send(7).unwrap();
    }));
    assert_eq!(finished.recv(), Ok(7));
    runtime.stop().unwrap();
}

#[test]
fn a_task_may_cancel_itself_and_its_friends_in_the_same_turn() {
    let _dog = Watchdog::new();
    let executor = executor();
    let slot = Rc::new(RefCell::new(None::<Task<()>>));
    let mine = Rc::clone(&slot);
    let task = executor.spawn(async move {
        until(|| mine.borrow().is_some()).await;
        mine.borrow().as_ref().unwrap().cancel();
        pending::<()>().await;
    });
    *slot.borrow_mut() = Some(task);
    executor.run().unwrap();
    assert!(slot.borrow().as_ref().unwrap().is_finished());
    let friends: Vec<_> = (0..10).map(|_| executor.spawn(pending::<()>())).collect();
    friends.iter().for_each(Task::cancel);
    executor.run().unwrap();
    for friend in friends {
        assert_eq!(executor.block_on(friend), Err(JoinError::Cancelled));
    }
}

// ---- one executor ---------------------------------------------------------------------------

#[test]
fn an_executor_runs_its_tasks_to_their_end_and_keeps_them_between_calls() {
    let _dog = Watchdog::new();
    let executor = executor();
    let count = Rc::new(RefCell::new(0));
    for _ in 0..10 {
        let count = Rc::clone(&count);
        drop(executor.spawn(async move {
            rt::nop().await.unwrap();
            let inner = Rc::clone(&count);
            rt::spawn(async move { *inner.borrow_mut() += 1 }).await.unwrap();
        }));
    }
    executor.block_on(async {});
    executor.run().unwrap();
    assert_eq!(*count.borrow(), 10);
    executor.run().unwrap(); // nothing left: at once
}

#[test]
fn an_executor_takes_tasks_from_other_threads_while_it_runs() {
    let _dog = Watchdog::new();
    let executor = executor();
    let handle = executor.handle();
    let other = std::thread::spawn(move || {
        let tasks: Vec<_> = (0..100).map(|n| handle.schedule(async move { n })).collect();
        tasks.into_iter().map(|task| rt::block_on(task).unwrap()).sum::<i32>()
    });
    executor.block_on(async {
        until(|| other.is_finished()).await;
    });
    assert_eq!(other.join().unwrap(), 4950);
}

#[test]
fn a_dropped_executor_answers_for_its_tasks() {
    let executor = executor();
    let (spawned, handle) = (executor.spawn(pending::<()>()), executor.handle());
    let sent = handle.schedule(async { 1 });
    drop(executor);
    assert_eq!(rt::block_on(spawned), Err(JoinError::Stopped));
    assert_eq!(rt::block_on(sent), Err(JoinError::Stopped));
    assert_eq!(rt::block_on(handle.schedule(async { 1 })), Err(JoinError::Stopped));
}

#[test]
fn blocking_an_executors_thread_or_using_none_is_refused_with_the_cure() {
    fn panic_of(f: impl FnOnce()) -> String {
        let panic = catch_unwind(AssertUnwindSafe(f)).unwrap_err();
        match panic.downcast::<String>() {
            Ok(text) => *text,
            Err(panic) => panic.downcast_ref::<&str>().copied().unwrap().to_owned(),
        }
    }
    let text = panic_of(|| executor().block_on(async { rt::block_on(async {}) }));
    assert!(text.contains("await the future"), "{text}");
    let inner = executor();
    let text = panic_of(|| executor().block_on(async { inner.block_on(async {}) }));
    assert!(text.contains("await the future"), "{text}");
    let text = panic_of(|| drop(rt::block_on(rt::nop())));
    assert!(text.contains("outside of an executor"), "{text}");
    let text = panic_of(|| drop(rt::spawn(async {})));
    assert!(text.contains("outside of an executor"), "{text}");
    // And the thread is as good as new.
    executor_with(2, None).block_on(rt::nop()).unwrap();
}

// ---- values that a thread owns --------------------------------------------------------------

#[test]
fn an_owned_value_is_made_used_and_dropped_on_its_thread_only() {
    struct Counter(RefCell<usize>, std::thread::ThreadId, Arc<AtomicUsize>);
    impl Drop for Counter {
        fn drop(&mut self) {
            assert_eq!(self.1, std::thread::current().id());
            self.2.fetch_add(1, Ordering::SeqCst);
        }
    }
    let _dog = Watchdog::new();
    let runtime = runtime(2);
    let drops = Arc::new(AtomicUsize::new(0));
    let make = |index: usize| {
        let drops = drops.clone();
        let made = runtime.thread(index).schedule_local(|| async move {
            Owned::new(Counter(RefCell::new(0), std::thread::current().id(), drops))
        });
        rt::block_on(made).unwrap()
    };
    let (first, second) = (make(0), make(1));
    let adds: Vec<_> = (0..100)
        .map(|n| {
            first.schedule(move |counter| async move {
                assert_eq!(*counter.0.borrow(), n, "in the order of their scheduling");
                *counter.0.borrow_mut() += 1;
            })
        })
        .collect();
    drop(first); // after the work that was scheduled for it
    for add in adds {
        rt::block_on(add).unwrap();
    }
    let began = Instant::now();
    while drops.load(Ordering::SeqCst) == 0 {
        assert!(began.elapsed().as_secs() < 30, "not dropped with its handle");
        std::thread::yield_now();
    }
    runtime.stop().unwrap();
    assert_eq!(drops.load(Ordering::SeqCst), 2, "the stop drops what is left");
    let late = second.schedule(|_| async {});
    assert_eq!(rt::block_on(late), Err(JoinError::Stopped));
}
