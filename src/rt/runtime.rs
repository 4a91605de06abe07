//! [`Runtime`]: a thread per ring, reachable by index, by round robin, and stopped in order.
//!
//! ```text
//! Open --stop()--> Draining --no task left, or the grace is over--> Closed --> threads joined
//! ```
//!
//! Invariants: work accepted before `stop` completes, unless it outlasts the grace, and then its
//! handle says so; work offered after is refused; the tasks still running may schedule what they
//! need to finish. No thread exits before there is nothing left to do on *any*: two threads whose
//! tasks wait for each other drain together.

use super::affinity::{allowed_cores, pin_to};
use super::config::{ExecutorConfig, SetupError};
use super::context::Context;
use super::driver::Driver;
use super::executor::Executor;
use super::handle::{Handle, Shared};
use super::join::Task;
use super::mailbox::Phase;
use super::ring::Ring;
use super::spin::Spinner;
use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;
use std::{fmt, io};

/// How a runtime is set up.
#[derive(Clone, Debug)]
pub struct RuntimeConfig {
    /// Threads, each with a ring. At least 1. Default 1.
    pub num_threads: usize,
    /// Keeps each thread on a core of its own, as far as the process's CPU set has them; more
    /// threads than that share cores in turn. Default false.
    pub pin_threads: bool,
    /// The set-up of each thread's executor.
    pub executor_config: ExecutorConfig,
    /// How long `stop` waits for tasks that do not end. Default 30 s.
    pub stop_grace: Duration,
}

impl Default for RuntimeConfig {
    fn default() -> Self {
        Self {
            num_threads: 1,
            pin_threads: false,
            executor_config: ExecutorConfig::default(),
            stop_grace: Duration::from_secs(30),
        }
    }
}

/// How a runtime did not stop as it should.
#[derive(Debug)]
#[non_exhaustive]
pub enum StopError {
    /// The grace was over; so many tasks were dropped unfinished.
    Abandoned {
        /// Their number.
        tasks: usize,
    },
    /// `stop` was called by a task of this very runtime, which cannot wait for itself. The runtime
    /// stops once its tasks are done, or the grace is over, but nobody waits for it.
    OnOwnThread,
    /// A thread's ring failed for good; its tasks were dropped.
    RingFailed(io::Error),
    /// A thread panicked, which is a bug of this crate.
    ThreadPanicked,
}

impl fmt::Display for StopError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Abandoned { tasks } => write!(
                f,
                "{tasks} tasks did not end within the grace and were dropped; let long-running \
                 tasks watch Handle::stopping"
            ),
            Self::OnOwnThread => f.write_str("a runtime was stopped by one of its own tasks"),
            Self::RingFailed(error) => write!(f, "a ring failed for good: {error}"),
            Self::ThreadPanicked => f.write_str("a runtime's thread panicked"),
        }
    }
}

impl std::error::Error for StopError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::RingFailed(error) => Some(error),
            _ => None,
        }
    }
}

/// What a thread has to say at its end: the tasks it dropped, or its ring's error.
type Ended = io::Result<usize>;

/// Threads with a ring each.
///
/// ```
/// use ringlog::rt::{self, Runtime, RuntimeConfig};
///
/// let runtime = Runtime::start(RuntimeConfig { num_threads: 2, ..RuntimeConfig::default() })?;
/// let there = runtime.thread(1).schedule(async { "on thread 1" });
/// let anywhere = runtime.schedule(async { 6 * 7 });
/// assert_eq!(rt::block_on(there)?, "on thread 1");
/// runtime.stop()?; // drains: `anywhere` is done
/// assert_eq!(rt::block_on(anywhere)?, 42);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// Dropping it stops it as [`stop`](Self::stop) does, without the report.
#[derive(Debug)]
pub struct Runtime {
    handles: Box<[Handle]>,
    next: AtomicUsize,
    shared: SharedRef,
    threads: Vec<JoinHandle<Ended>>,
    grace: Duration,
}

struct SharedRef(Arc<Shared>);

impl fmt::Debug for SharedRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Shared({} live tasks)", self.0.live())
    }
}

impl Runtime {
    /// Starts the threads, and returns when each has its ring.
    ///
    /// # Errors
    ///
    /// [`SetupError`] if a thread or its ring could not be had; then none is left running.
    pub fn start(config: RuntimeConfig) -> Result<Self, SetupError> {
        Self::start_on(config, |config, _| Ok(Box::new(Ring::new(config)?)))
    }

    /// [`start`](Self::start) on other drivers than rings: `make` is called on each thread, with
    /// its index, for the driver of its executor.
    ///
    /// # Errors
    ///
    /// Those of `make`, and [`SetupError::Io`] if a thread could not be started or pinned.
    pub fn start_on<M>(config: RuntimeConfig, make: M) -> Result<Self, SetupError>
    where
        M: Fn(&ExecutorConfig, usize) -> Result<Box<dyn Driver>, SetupError>,
        M: Send + Sync + 'static,
    {
        let make: Arc<MakeDriver> = Arc::new(make);
        let threads = config.num_threads.max(1);
        let cores =
            if config.pin_threads { allowed_cores().map_err(SetupError::Io)? } else { Vec::new() };
        let shared = Shared::new(threads);
        let handles = (0..threads).map(|i| Handle::new(Arc::clone(&shared), i)).collect();
        let mut runtime = Self {
            handles,
            next: AtomicUsize::new(0),
            shared: SharedRef(Arc::clone(&shared)),
            threads: Vec::with_capacity(threads),
            grace: config.stop_grace,
        };
        let (report, reports) = mpsc::channel();
        for index in 0..threads {
            let worker = Worker {
                shared: Arc::clone(&shared),
                index,
                core: cores.get(index % cores.len().max(1)).copied(),
                config: config.executor_config.clone(),
                spin: Spinner::default_limit(threads),
                make: Arc::clone(&make),
            };
            let report = report.clone();
            let thread = std::thread::Builder::new().name(format!("ringlog-{index}"));
            // On an error, dropping the runtime stops the threads that did start.
            let thread = thread.spawn(move || worker.run(&report)).map_err(SetupError::Io)?;
            runtime.threads.push(thread);
        }
        drop(report);
        for _ in 0..threads {
            // A thread that ends without a report has panicked.
            reports.recv().map_err(|error| SetupError::Io(io::Error::other(error)))??;
        }
        Ok(runtime)
    }

    /// How many threads there are.
    pub fn size(&self) -> usize {
        self.handles.len()
    }

    /// The threads, in order. Tasks take clones of the handles with them.
    pub fn threads(&self) -> &[Handle] {
        &self.handles
    }

    /// The thread of that index.
    ///
    /// # Panics
    ///
    /// If there are not so many.
    pub fn thread(&self, index: usize) -> &Handle {
        &self.handles[index]
    }

    /// Runs a task on the threads in turn. See [`Handle::schedule`].
    pub fn schedule<F>(&self, future: F) -> Task<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send,
    {
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        self.handles[turn % self.handles.len()].schedule(future)
    }

    /// Stops: work accepted so far completes, new work is refused, the threads end.
    ///
    /// Tasks that would never end should watch [`Handle::stopping`]. Blocks; do not call it from
    /// async code on another executor's thread without `spawn_blocking` or the like.
    ///
    /// # Errors
    ///
    /// [`StopError`]; the threads have ended all the same, but for `OnOwnThread`.
    pub fn stop(mut self) -> Result<(), StopError> {
        self.stop_threads()
    }

    fn stop_threads(&mut self) -> Result<(), StopError> {
        let threads = std::mem::take(&mut self.threads);
        if threads.is_empty() {
            return Ok(());
        }
        if Context::current().is_some_and(|context| context.shares(&self.shared.0)) {
            let (shared, grace) = (Arc::clone(&self.shared.0), self.grace);
            let closer = move || {
                shared.drain(grace);
                shared.advance(Phase::Closed);
            };
            // Without a thread to wait on, the grace cannot be kept: close at once.
            if std::thread::Builder::new().spawn(closer).is_err() {
                self.shared.0.advance(Phase::Closed);
            }
            return Err(StopError::OnOwnThread);
        }
        self.shared.0.drain(self.grace);
        self.shared.0.advance(Phase::Closed);
        let mut abandoned = 0;
        let mut failure = Ok(());
        for thread in threads {
            match thread.join() {
                Ok(Ok(tasks)) => abandoned += tasks,
                Ok(Err(error)) => failure = Err(StopError::RingFailed(error)),
                Err(_) => failure = Err(StopError::ThreadPanicked),
            }
        }
        failure?;
        if abandoned > 0 { Err(StopError::Abandoned { tasks: abandoned }) } else { Ok(()) }
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        // Whoever wants the report calls `stop`.
        drop(self.stop_threads());
    }
}

type MakeDriver =
    dyn Fn(&ExecutorConfig, usize) -> Result<Box<dyn Driver>, SetupError> + Send + Sync;

struct Worker {
    shared: Arc<Shared>,
    index: usize,
    core: Option<usize>,
    config: ExecutorConfig,
    spin: Duration,
    make: Arc<MakeDriver>,
}

impl Worker {
    fn run(self, report: &mpsc::Sender<Result<(), SetupError>>) -> Ended {
        let executor = match self.set_up() {
            Ok(executor) => executor,
            Err(error) => {
                // `start` reads each thread's report unless an earlier one was an error.
                drop(report.send(Err(error)));
                return Ok(0);
            }
        };
        drop(report.send(Ok(())));
        let served = executor.serve();
        let dropped = executor.close();
        served.map(|()| dropped)
    }

    /// On the thread itself: a single-issuer ring belongs to its maker.
    fn set_up(&self) -> Result<Executor, SetupError> {
        if let Some(core) = self.core {
            pin_to(core).map_err(SetupError::Io)?;
        }
        let driver = (self.make)(&self.config, self.index)?;
        let spin = self.config.spin.unwrap_or(self.spin);
        Ok(Executor::on(Arc::clone(&self.shared), self.index, driver, spin))
    }
}
