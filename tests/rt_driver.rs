//! The seam below the executor: with a driver that performs requests in memory of its own time, in
//! random order, late, wrongly or never, the executor is held to what it promises of buffers.

#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use common::{Arena, Drops, POISON, Rng, Watchdog, Witness, disk_file, errno, pipe};
use futures::StreamExt;
use futures::future::join_all;
use futures::stream::FuturesUnordered;
use ringlog::rt::driver::{Completion, Driver, Request, Unpark};
use ringlog::rt::{self, Elapsed, Executor, Fd, JoinError};
use std::cell::RefCell;
use std::future::pending;
use std::io;
use std::os::fd::AsRawFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant, SystemTime};

// ---- a simulated driver ---------------------------------------------------------------------

/// What becomes of a request, as a test has it.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    /// Performed after so much virtual time.
    After(Duration),
    /// Not performed, not even cancelled.
    Never,
}

type Fates = Box<dyn FnMut(&Request) -> Fate>;

#[derive(Clone, Debug, PartialEq)]
enum Event {
    Pushed(u64, &'static str),
    Completed(u64, i32),
}

struct Pending {
    token: u64,
    request: Request,
    /// `None` for those that never complete.
    due: Option<Duration>,
    cancelled: bool,
}

struct State {
    start: Instant,
    now: Duration,
    pending: Vec<Pending>,
    fates: Fates,
    log: Vec<Event>,
    /// Calls of `enter` that may wait, and those that may not.
    waits: usize,
    looks: usize,
    /// Calls of `enter` that submit and reap nothing, as after an error that passes.
    failing: usize,
    /// From now on `enter` fails for good.
    broken: bool,
    drops: Drops,
    /// Buffers freed so far, as of each completion.
    freed_at_completion: Vec<usize>,
}

/// The test's end of the driver.
#[derive(Clone)]
struct Sim(Rc<RefCell<State>>);

#[derive(Default)]
struct Bell(Mutex<bool>, Condvar);

impl Unpark for Bell {
    fn unpark(&self) {
        *self.0.lock().unwrap() = true;
        self.1.notify_one();
    }
}

struct SimDriver(Rc<RefCell<State>>, Arc<Bell>);

impl Sim {
    fn new(fates: impl FnMut(&Request) -> Fate + 'static) -> Self {
        Self(Rc::new(RefCell::new(State {
            start: Instant::now(),
            now: Duration::ZERO,
            pending: Vec::new(),
            fates: Box::new(fates),
            log: Vec::new(),
            waits: 0,
            looks: 0,
            failing: 0,
            broken: false,
            drops: Drops::default(),
            freed_at_completion: Vec::new(),
        })))
    }

    /// Each request takes up to a second, drawn, but for timeouts, which take their time.
    fn random(seed: u64) -> Self {
        let mut rng = Rng(seed);
        Self::new(move |_| Fate::After(Duration::from_micros(rng.below(1_000_000))))
    }

    fn executor(&self) -> Executor {
        let driver = SimDriver(Rc::clone(&self.0), Arc::default());
        Executor::with_driver(Box::new(driver))
    }

    fn state(&self) -> std::cell::RefMut<'_, State> {
        self.0.borrow_mut()
    }

    fn now(&self) -> Duration {
        self.state().now
    }

    fn witness(&self, arena: Arena) -> Witness {
        self.state().drops.witness(arena)
    }

    fn drops(&self) -> usize {
        self.state().drops.get()
    }
}

fn name(request: &Request) -> &'static str {
    match request {
        Request::Nop => "nop",
        Request::Read { .. } => "read",
        Request::Write { .. } => "write",
        Request::Close { .. } => "close",
        Request::Timeout { .. } => "timeout",
        Request::Cancel { .. } => "cancel",
        Request::CancelFd { .. } => "cancel_fd",
        _ => "other",
    }
}

impl State {
    /// Does what the kernel would, with its result.
    fn perform(&mut self, request: Request) -> i32 {
        fn outcome(result: isize) -> i32 {
            i32::try_from(result).unwrap_or(i32::MAX).max(0)
                - i32::from(result < 0) * io::Error::last_os_error().raw_os_error().unwrap()
        }
        match request {
            Request::Nop => 0,
            Request::Read { fd, buf, len, offset } => {
                let offset = i64::try_from(offset).unwrap();
                // SAFETY: the executor keeps the memory until the completion.
                outcome(unsafe { libc::pread(fd, buf.cast(), len as usize, offset) })
            }
            Request::Write { fd, buf, len, offset, .. } => {
                let offset = i64::try_from(offset).unwrap();
                // SAFETY: the executor keeps the memory until the completion.
                outcome(unsafe { libc::pwrite(fd, buf.cast(), len as usize, offset) })
            }
            // SAFETY: takes no pointers; the executor gives the descriptor away.
            Request::Close { fd } => outcome(unsafe { libc::close(fd) } as isize),
            Request::Timeout { .. } => -libc::ETIME,
            Request::Cancel { token } => {
                let now = self.now;
                match self.pending.iter_mut().find(|p| p.token == token) {
                    Some(target) if target.due.is_some() => {
                        // It ends in the same moment, before the cancel or after it.
                        target.due = Some(now);
                        target.cancelled = true;
                        0
                    }
                    Some(_) => -libc::EALREADY,
                    None => -libc::ENOENT,
                }
            }
            // A disk that is not there.
            Request::List { out, .. } => {
                // SAFETY: the executor keeps the memory until the completion.
                unsafe { *out = vec!["made".into(), "up".into()] };
                0
            }
            Request::Space { out, .. } => {
                // SAFETY: the executor keeps the memory until the completion.
                let out = unsafe { &mut *out };
                (out.total, out.free) = (1 << 50, 1 << 49);
                0
            }
            Request::Stat { out, .. } => {
                // SAFETY: the executor keeps the memory until the completion.
                let out = unsafe { &mut *out };
                (out.stx_size, out.stx_blocks) = (1 << 40, 3);
                (out.stx_dio_mem_align, out.stx_dio_offset_align) = (8, 4096);
                0
            }
            // Not a request that the tests leave pending.
            Request::CancelFd { .. } => -libc::ENOENT,
            _ => -libc::EOPNOTSUPP,
        }
    }

    fn complete_due(&mut self, done: &mut Vec<Completion>) {
        while let Some(index) =
            self.pending.iter().position(|p| p.due.is_some_and(|due| due <= self.now))
        {
            let next = self.pending.swap_remove(index);
            let token = next.token;
            let result = if next.cancelled { -libc::ECANCELED } else { self.perform(next.request) };
            self.log.push(Event::Completed(token, result));
            self.freed_at_completion.push(self.drops.get());
            done.push(Completion { token, result });
        }
    }
}

// SAFETY: memory is touched in `perform` only, just before the one completion; requests of the
// fate `Never` are never touched and never completed.
unsafe impl Driver for SimDriver {
    fn push(&mut self, token: u64, request: Request) {
        let state = &mut *self.0.borrow_mut();
        state.log.push(Event::Pushed(token, name(&request)));
        let due = match (request, (state.fates)(&request)) {
            (_, Fate::Never) => None,
            (Request::Timeout { after }, Fate::After(_)) => {
                // SAFETY: the executor keeps the memory until the completion.
                let after = unsafe { *after };
                let seconds = u64::try_from(after.seconds).unwrap();
                let nanoseconds = u32::try_from(after.nanoseconds).unwrap();
                Some(state.now.saturating_add(Duration::new(seconds, nanoseconds)))
            }
            (Request::Cancel { .. }, Fate::After(_)) => Some(state.now),
            (_, Fate::After(time)) => Some(state.now + time),
        };
        state.pending.push(Pending { token, request, due, cancelled: false });
    }

    fn enter(&mut self, wait: bool, done: &mut Vec<Completion>) -> io::Result<()> {
        let mut state = self.0.borrow_mut();
        let count = if wait { &mut state.waits } else { &mut state.looks };
        *count += 1;
        if state.broken {
            return Err(io::Error::from_raw_os_error(libc::EBADF));
        }
        if state.failing > 0 {
            state.failing -= 1;
            return Ok(());
        }
        state.complete_due(done);
        if !wait || !done.is_empty() || std::mem::take(&mut *self.1.0.lock().unwrap()) {
            return Ok(());
        }
        // Nothing else to do: time passes at once to the next moment that something happens.
        if let Some(next) = state.pending.iter().filter_map(|p| p.due).min() {
            state.now = next;
            state.complete_due(done);
            return Ok(());
        }
        drop(state);
        let mut rung = self.1.0.lock().unwrap();
        while !std::mem::take(&mut *rung) {
            rung = self.1.1.wait(rung).unwrap();
        }
        Ok(())
    }

    fn ready(&mut self) -> bool {
        false
    }

    fn unparker(&self) -> Arc<dyn Unpark> {
        Arc::clone(&self.1) as Arc<dyn Unpark>
    }

    fn now(&self) -> Instant {
        let state = self.0.borrow();
        state.start + state.now
    }

    fn wall(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + self.0.borrow().now
    }
}

// ---- (a) random order, virtual time ---------------------------------------------------------

#[test]
fn hours_of_virtual_time_pass_at_once_and_in_order() {
    let _dog = Watchdog::new();
    let sim = Sim::random(1);
    let hour = Duration::from_secs(3600);
    sim.executor().block_on(async {
        let began = rt::now();
        rt::timeout(hour).await.unwrap();
        assert_eq!(rt::now() - began, hour, "to the nanosecond");
        let late = rt::with_deadline(hour, rt::timeout(hour * 2)).await;
        assert!(matches!(late, Err(Elapsed)));
        let timely = rt::with_deadline(hour * 2, rt::timeout(hour)).await;
        timely.unwrap().unwrap();
        let mut sleeps: FuturesUnordered<_> = [5_u32, 1, 4, 2, 3]
            .into_iter()
            .map(|n| async move {
                rt::timeout(hour * n).await.unwrap();
                n
            })
            .collect();
        for n in 1..=5 {
            assert_eq!(sleeps.next().await, Some(n));
        }
    });
    assert_eq!(sim.now(), hour * 8);
}

/// One that slept anywhere else would hear of a completion when that sleep is over.
#[test]
fn a_thread_without_work_sleeps_in_the_call_that_completions_end() {
    let _dog = Watchdog::new();
    let each = Duration::from_micros(35);
    let sim = Sim::new(move |_| Fate::After(each));
    sim.executor().block_on(async {
        for n in 1..=100 {
            rt::nop().await.unwrap();
            assert_eq!(sim.now(), each * n, "it has slept for longer");
        }
    });
    let State { waits, looks, .. } = *sim.state();
    assert_eq!(waits, 100, "one for each");
    assert!(looks < 20, "it looked {looks} times whether there is anything");
}

#[test]
fn completions_in_any_order_reach_their_own_operations() {
    let _dog = Watchdog::new();
    let mut orders = Vec::new();
    for seed in 0..20 {
        let sim = Sim::random(seed);
        let executor = sim.executor();
        let fd = Fd::from(disk_file());
        executor.block_on(async {
            let writes = (0_u64..64).map(|n| rt::write_all(&fd, n.to_le_bytes(), n * 8));
            for (result, _) in join_all(writes).await {
                result.unwrap();
            }
            let reads = (0_u64..64).map(|n| rt::read_exact(&fd, [0_u8; 8], n * 8));
            for (n, (result, bytes)) in (0..).zip(join_all(reads).await) {
                result.unwrap();
                assert_eq!(u64::from_le_bytes(bytes), n);
            }
        });
        let completed = |event: &Event| matches!(event, Event::Completed(..));
        orders.push(sim.state().log.iter().filter(|e| completed(e)).cloned().collect::<Vec<_>>());
    }
    orders.dedup();
    assert_eq!(orders.len(), 20, "each seed has an order of its own");
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let _dog = Watchdog::new();
    let run = |seed| {
        let sim = Sim::random(seed);
        let executor = sim.executor();
        let fd = Fd::from(disk_file());
        for n in 0..20 {
            let fd = fd.clone();
            drop(executor.spawn(async move {
                rt::timeout_ms(n).await.unwrap();
                rt::write_all(&fd, vec![0; 100], n * 100).await.0.unwrap();
                drop(rt::with_deadline(Duration::from_millis(500), rt::nop()).await);
            }));
        }
        executor.run().unwrap();
        (sim.now(), sim.state().log.clone())
    };
    assert_eq!(run(7), run(7));
    assert_ne!(run(7), run(8));
}

#[test]
fn other_threads_reach_an_executor_on_any_driver() {
    let _dog = Watchdog::new();
    let executor = Sim::random(3).executor();
    let handle = executor.handle();
    let other = std::thread::spawn(move || {
        for n in 0..100 {
            assert_eq!(rt::block_on(handle.schedule(async move { n })), Ok(n));
        }
        rt::block_on(handle.schedule(async {
            rt::timeout(Duration::from_secs(3600)).await.unwrap();
        }))
        .unwrap();
        drop(handle.schedule(async {}));
    });
    // Nothing is pending here: only the bell ends this wait.
    let hold = executor.spawn(pending::<()>());
    let watch = std::thread::spawn({
        let cancel = Arc::new(Mutex::new(hold));
        move || {
            other.join().unwrap();
            cancel.lock().unwrap().cancel();
        }
    });
    executor.run().unwrap();
    watch.join().unwrap();
}

/// All that a store asks of the world outside, the driver answers.
#[test]
fn names_space_and_the_time_of_day_are_those_of_the_driver() {
    let _dog = Watchdog::new();
    let sim = Sim::new(|_| Fate::After(Duration::from_secs(1)));
    let fd = Fd::from(disk_file()); // no directory
    sim.executor().block_on(async {
        assert_eq!(rt::list(&fd).await.unwrap(), ["made", "up"]);
        let space = rt::free_space(&fd).await.unwrap();
        assert_eq!((space.total, space.free), (1 << 50, 1 << 49));
        let stat = rt::stat(&fd).await.unwrap();
        assert_eq!((stat.len, stat.allocated), (1 << 40, 3 * 512));
        let direct = stat.direct.unwrap();
        assert_eq!((direct.memory, direct.offset), (8, 4096));
        assert_eq!(rt::wall(), SystemTime::UNIX_EPOCH + Duration::from_secs(3));
    });
    // A ring's is everybody's.
    let before = SystemTime::now();
    let wall = common::executor().block_on(async { rt::wall() });
    assert!(before <= wall && wall <= SystemTime::now(), "unless the clock was set just now");
}

// ---- (b) late and transiently failing -------------------------------------------------------

/// An error of the call says nothing about the request: it is with the kernel all the same.
#[test]
fn a_buffer_survives_calls_that_fail_and_comes_back_with_its_completion() {
    let _dog = Watchdog::new();
    let sim = Sim::new(|_| Fate::After(Duration::from_secs(1)));
    let file = disk_file();
    std::os::unix::fs::FileExt::write_all_at(&file, &[0x42; 4096], 0).unwrap();
    let (fd, arena) = (Fd::from(file), Arena::new(4096));
    let executor = sim.executor();
    let read = executor.spawn(rt::read(&fd, sim.witness(arena), 0));
    sim.state().failing = 5;
    executor.run().unwrap();
    assert_eq!(sim.state().failing, 0);
    let (result, buf) = executor.block_on(read).unwrap();
    assert_eq!((result.unwrap(), sim.drops()), (4096, 0));
    assert!(buf.arena.is_all(0x42));
    drop(buf);
    assert_eq!(sim.drops(), 1);
}

#[test]
fn a_dropped_operations_buffer_is_freed_after_its_late_completion_and_before_the_next_one() {
    let _dog = Watchdog::new();
    // Reads take an hour and cancels find them under way.
    let hour = Duration::from_secs(3600);
    let sim = Sim::new(move |request| match request {
        Request::Read { .. } => Fate::After(hour),
        Request::Cancel { .. } => Fate::Never,
        _ => Fate::After(Duration::ZERO),
    });
    let (fd, arena) = (Fd::from(disk_file()), Arena::new(4096));
    let executor = sim.executor();
    executor.block_on(async {
        let mut read = rt::read(&fd, sim.witness(arena), 0);
        read.start();
        drop(read);
        assert_eq!(sim.drops(), 0);
        rt::timeout(Duration::from_secs(3599)).await.unwrap();
        assert_eq!(sim.drops(), 0, "an hour is not over");
        rt::timeout(Duration::from_secs(2)).await.unwrap();
        assert_eq!(sim.drops(), 1);
    });
    let freed = sim.state().freed_at_completion.clone();
    assert_eq!(freed, [0, 0, 1], "as of the first sleep, the read, and the second sleep");
}

/// Tasks and futures go first; their buffers stay until the driver is done with them.
#[test]
fn a_dropped_executor_frees_each_buffer_after_its_completion() {
    let _dog = Watchdog::new();
    for seed in 0..20 {
        let sim = Sim::random(seed);
        let fd = Fd::from(disk_file());
        let executor = sim.executor();
        let arena = Arena::new(4096);
        for n in 0..16 {
            let mut read = rt::read(&fd, sim.witness(arena), n);
            drop(executor.spawn(async move {
                read.start();
                if n % 2 == 0 {
                    drop(read); // an orphan already
                    return;
                }
                drop(read.await);
            }));
        }
        executor.block_on(async {}); // starts them, takes nothing back
        executor.block_on(rt::yield_now());
        assert!(sim.drops() < 16);
        drop(executor);
        assert_eq!(sim.drops(), 16);
        let state = sim.state();
        let freed = state.freed_at_completion.iter().enumerate();
        for (completions, freed) in freed {
            assert!(*freed <= completions, "freed {freed} with {completions} completed");
        }
        let left = state.pending.iter().filter(|p| name(&p.request) == "read");
        assert_eq!(left.count(), 0, "none was left behind");
    }
}

/// Cancelling it would leave its descriptor open for ever.
#[test]
fn a_dropped_executor_does_not_cancel_a_close() {
    let _dog = Watchdog::new();
    let sim = Sim::new(|request| match request {
        Request::Close { .. } => Fate::After(Duration::from_secs(1)),
        _ => Fate::After(Duration::ZERO),
    });
    let (mut reader, writer) = io::pipe().unwrap();
    let fd = Fd::from(std::os::fd::OwnedFd::from(writer));
    let executor = sim.executor();
    drop(executor.spawn(async move {
        drop(rt::close(fd).await);
    }));
    let is_closing = || sim.state().pending.iter().any(|p| name(&p.request) == "close");
    executor.block_on(common::until(is_closing));
    drop(executor);
    // SAFETY: takes no pointers.
    let flags = unsafe { libc::fcntl(reader.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) };
    assert_eq!(flags, 0);
    // The end of the pipe, and not "nothing yet": the other end is closed.
    assert_eq!(io::Read::read(&mut reader, &mut [0]).unwrap(), 0);
}

// ---- (c) never ------------------------------------------------------------------------------

#[test]
fn what_never_completes_is_leaked_and_not_freed_when_the_executor_is_dropped() {
    let _dog = Watchdog::new();
    let sim = Sim::new(|request| match request {
        Request::Read { .. } => Fate::Never,
        _ => Fate::After(Duration::ZERO),
    });
    let (fd, arena) = (Fd::from(disk_file()), Arena::new(4096));
    let executor = sim.executor();
    let task = executor.spawn(rt::read(&fd, sim.witness(arena), 0));
    let kept = sim.witness(Arena::new(4096));
    let other = executor.spawn(async move {
        rt::timeout(Duration::from_secs(7200)).await.unwrap();
        drop(kept);
    });
    executor.block_on(rt::nop()).unwrap();
    drop(executor);
    assert!(sim.now() >= Duration::from_secs(10), "it waited, in virtual time: {:?}", sim.now());
    assert_eq!(sim.drops(), 1, "the task's own value is freed, the driver's buffer is not");
    assert!(!arena.is_all(POISON));
    assert!(matches!(rt::block_on(task), Err(JoinError::Stopped)));
    assert_eq!(rt::block_on(other), Err(JoinError::Stopped));
    // The driver may still use the memory, and is still there to do so.
    let state = sim.state();
    let read = state.pending.iter().find(|p| name(&p.request) == "read").unwrap();
    let Request::Read { buf, len, .. } = read.request else { panic!() };
    // SAFETY: the executor has leaked the memory.
    unsafe { buf.write_bytes(0x99, len as usize) };
    assert!(arena.is_all(0x99));
}

// ---- (d) broken -----------------------------------------------------------------------------

#[test]
fn a_driver_that_fails_for_good_ends_run_and_block_on_and_frees_nothing_in_flight() {
    let _dog = Watchdog::new();
    let sim = Sim::new(|_| Fate::After(Duration::from_secs(1)));
    let (fd, arena) = (Fd::from(disk_file()), Arena::new(4096));
    let executor = sim.executor();
    let read = executor.spawn(rt::read(&fd, sim.witness(arena), 0));
    executor.block_on(rt::yield_now());
    let handle = executor.handle();
    sim.state().broken = true;
    assert_eq!(errno(executor.run()), libc::EBADF);
    let panicked = catch_unwind(AssertUnwindSafe(|| executor.block_on(rt::nop()))).unwrap_err();
    let text = panicked.downcast_ref::<String>().unwrap();
    assert!(text.contains("the ring failed for good"), "{text}");
    // What needs no ring still runs, and the executor can be dropped.
    assert_eq!(executor.block_on(async { 1 }), 1);
    drop(executor);
    assert_eq!(sim.drops(), 0, "still the driver's");
    assert!(matches!(rt::block_on(read), Err(JoinError::Stopped)));
    assert_eq!(rt::block_on(handle.schedule(async {})), Err(JoinError::Stopped));
}

/// What completed before the call that failed is not lost with it.
#[test]
fn completions_that_come_with_an_error_are_handed_out() {
    struct LastWords(SimDriver);
    // SAFETY: as the driver inside, whose every completion is passed on.
    unsafe impl Driver for LastWords {
        fn push(&mut self, token: u64, request: Request) {
            self.0.push(token, request);
        }
        fn enter(&mut self, wait: bool, done: &mut Vec<Completion>) -> io::Result<()> {
            self.0.enter(wait, done)?;
            if done.is_empty() {
                return Ok(());
            }
            Err(io::Error::from_raw_os_error(libc::ENXIO))
        }
        fn ready(&mut self) -> bool {
            self.0.ready()
        }
        fn unparker(&self) -> Arc<dyn Unpark> {
            self.0.unparker()
        }
        fn now(&self) -> Instant {
            self.0.now()
        }
    }
    let _dog = Watchdog::new();
    let sim = Sim::new(|_| Fate::After(Duration::ZERO));
    let inner = SimDriver(Rc::clone(&sim.0), Arc::default());
    let executor = Executor::with_driver(Box::new(LastWords(inner)));
    let (fd, arena) = (Fd::from(disk_file()), Arena::new(4096));
    let read = executor.spawn(rt::read(&fd, sim.witness(arena), 0));
    assert_eq!(errno(executor.run()), libc::ENXIO);
    let (result, buf) = executor.block_on(read).unwrap();
    assert_eq!((result.unwrap(), sim.drops()), (0, 0));
    drop((buf, pipe()));
}

// ---- under a runtime ------------------------------------------------------------------------

/// The drivers are made on the threads that use them, and the threads run on them as on rings:
/// two hours pass at once.
#[test]
fn a_runtime_runs_on_other_drivers_than_rings() {
    let _dog = Watchdog::new();
    let config = rt::RuntimeConfig { num_threads: 2, ..rt::RuntimeConfig::default() };
    let runtime = rt::Runtime::start_on(config, |_, _| {
        let sim = Sim::new(|_| Fate::After(Duration::ZERO)); // but timeouts take their time
        let bell = Arc::new(Bell::default());
        Ok(Box::new(SimDriver(sim.0, bell)))
    })
    .unwrap();
    let threads = [runtime.thread(0).clone(), runtime.thread(1).clone()];
    let task = runtime.schedule(async move {
        for thread in threads.iter().cycle().take(10) {
            rt::schedule_on(thread).await.unwrap();
            rt::timeout(Duration::from_secs(720)).await.unwrap();
        }
    });
    rt::block_on(task).unwrap();
    runtime.stop().unwrap();
}
