//! [`Handle`]: how the rest of the program reaches one executor's thread. And [`schedule_on`],
//! which moves the running task there.
//!
//! Invariant: a task counts as live from before it is offered until its future is gone, wherever it
//! is meanwhile: in a mailbox, in a thread's table, between threads.

use super::context::Context;
use super::event::Event;
use super::join::{Task, join};
use super::mailbox::{Mailbox, Message, Phase};
use super::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use super::task::{Header, LocalFuture, SendFuture};
use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::{Arc, Condvar, Mutex};
use std::task::{Context as TaskContext, Poll};
use std::time::{Duration, Instant};

/// What the threads of one runtime share. A stand-alone executor is a runtime of one.
pub(crate) struct Shared {
    mailboxes: Box<[Mailbox]>,
    /// Tasks that are not done, those on their way in a mailbox included.
    live: AtomicUsize,
    /// Somebody waits for `live` to fall to zero.
    draining: AtomicBool,
    idle: (Mutex<()>, Condvar),
    pub(crate) stopping: Event,
}

impl Shared {
    pub(crate) fn new(threads: usize) -> Arc<Self> {
        Arc::new(Self {
            mailboxes: (0..threads).map(|_| Mailbox::new()).collect(),
            live: AtomicUsize::new(0),
            draining: AtomicBool::new(false),
            idle: (Mutex::new(()), Condvar::new()),
            stopping: Event::new(),
        })
    }

    pub(crate) fn mailbox(&self, index: usize) -> &Mailbox {
        &self.mailboxes[index]
    }

    pub(crate) fn live(&self) -> usize {
        self.live.load(Ordering::SeqCst)
    }

    pub(crate) fn advance(&self, phase: Phase) {
        for mailbox in &self.mailboxes {
            mailbox.advance(phase);
        }
    }

    /// Refuses new work, and waits until the work accepted is done, for `grace` at most.
    pub(crate) fn drain(&self, grace: Duration) {
        // Before the mailboxes refuse, so that whoever sees a refusal sees it stopping too.
        self.stopping.set();
        self.advance(Phase::Draining);
        // Once every mailbox is draining, only live tasks make new ones: zero is final.
        self.draining.store(true, Ordering::SeqCst);
        let start = Instant::now();
        let mut guard = self.idle.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        while self.live() > 0 {
            let Some(left) = grace.checked_sub(start.elapsed()) else {
                return;
            };
            let waited = self.idle.1.wait_timeout(guard, left);
            guard = waited.unwrap_or_else(std::sync::PoisonError::into_inner).0;
        }
    }
}

/// Counts one task for as long as it is not done.
pub(crate) struct Live(Arc<Shared>);

impl Live {
    pub(crate) fn new(shared: &Arc<Shared>) -> Self {
        shared.live.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(shared))
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        // Both sequentially consistent, as are `drain`'s store and load: one of the two sees the
        // other.
        if self.0.live.fetch_sub(1, Ordering::SeqCst) == 1 && self.0.draining.load(Ordering::SeqCst)
        {
            drop(self.0.idle.0.lock());
            self.0.idle.1.notify_all();
        }
    }
}

/// One thread of a [`Runtime`](super::Runtime), or a stand-alone [`Executor`](super::Executor),
/// seen from anywhere: cheap to clone, `Send` and `Sync`. Outlives its thread; then it refuses.
#[derive(Clone)]
pub struct Handle(Arc<At>);

/// One for each thread, so that counting a handle's clones does not bounce a cache line between
/// the threads of a runtime: every operation in flight holds one.
struct At {
    shared: Arc<Shared>,
    index: usize,
}

impl Handle {
    pub(crate) fn new(shared: Arc<Shared>, index: usize) -> Self {
        Self(Arc::new(At { shared, index }))
    }

    pub(crate) fn mailbox(&self) -> &Mailbox {
        self.0.shared.mailbox(self.0.index)
    }

    /// Which thread of its runtime this is, from 0.
    pub fn index(&self) -> usize {
        self.0.index
    }

    /// Whether the caller runs on this thread, in its executor.
    pub fn is_current(&self) -> bool {
        Context::current().is_some_and(|context| context.is_home_of(self))
    }

    /// Runs a task on this thread. It may later hop to others of its runtime ([`schedule_on`]).
    ///
    /// Never blocks. Tasks offered by one thread start in the order of their offering. If the
    /// executor has stopped, the task is dropped here and now, and the handle resolves to
    /// [`JoinError::Stopped`](super::JoinError::Stopped).
    pub fn schedule<F>(&self, future: F) -> Task<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send,
    {
        let header = Header::new(Arc::clone(&self.0.shared), self.0.index);
        let (task, future) = join(&header, |finish| Box::pin(finish.run(future)) as SendFuture);
        let arrival = Message::Arrive(header, future, Live::new(&self.0.shared), Vec::new());
        drop(self.offer(arrival));
        task
    }

    /// Makes a future on this thread and runs it there. The future need not be `Send`, and stays.
    ///
    /// Otherwise as [`schedule`](Self::schedule).
    pub fn schedule_local<M, F>(&self, make: M) -> Task<F::Output>
    where
        M: FnOnce() -> F + Send + 'static,
        F: Future + 'static,
        F::Output: Send,
    {
        self.start(move || async move { make().await })
    }

    /// `make` runs as soon as the thread reads its mailbox, and must not run foreign code.
    pub(crate) fn start<M, F>(&self, make: M) -> Task<F::Output>
    where
        M: FnOnce() -> F + Send + 'static,
        F: Future + 'static,
        F::Output: Send,
    {
        let (task, unstarted) = self.prepare(make);
        drop(unstarted.start());
        task
    }

    /// A task that is accepted, but will be sent to its thread later. See [`start`](Self::start).
    pub(crate) fn prepare<M, F>(&self, make: M) -> (Task<F::Output>, Unstarted)
    where
        M: FnOnce() -> F + Send + 'static,
        F: Future + 'static,
        F::Output: Send,
    {
        let header = Header::new(Arc::clone(&self.0.shared), self.0.index);
        let (task, start) = join(&header, |finish| {
            Box::new(move || Box::pin(finish.run(make())) as LocalFuture)
                as Box<dyn FnOnce() -> LocalFuture + Send>
        });
        let message = Message::Start(header, start, Live::new(&self.0.shared));
        (task, Unstarted { home: self.clone(), message })
    }

    /// Gives a refused message back. Dropping it tells the task's handle.
    fn offer(&self, message: Message) -> Result<(), Message> {
        // A task of the same runtime is work accepted: what it needs done is accepted too.
        let inside = Context::current().is_some_and(|context| context.shares(&self.0.shared));
        let last = if inside { Phase::Draining } else { Phase::Open };
        self.mailbox().post_until(last, message)
    }

    /// Runs a future until it is done, or, with `None`, until the runtime begins to stop: for loops
    /// that would otherwise never end. The future is dropped then, and its operations cancelled.
    ///
    /// ```
    /// # use ringlog::rt::{self, Fd, Runtime, RuntimeConfig};
    /// # let runtime = Runtime::start(RuntimeConfig::default())?;
    /// # let listener = Fd::from(std::net::TcpListener::bind("127.0.0.1:0")?);
    /// let handle = runtime.thread(0).clone();
    /// let acceptor = runtime.schedule(async move {
    ///     while let Some(accepted) = handle.until_stopping(rt::accept(&listener)).await {
    ///         let (_connection, _peer) = accepted?;
    ///     }
    ///     Ok::<(), std::io::Error>(())
    /// });
    /// runtime.stop()?;
    /// rt::block_on(acceptor)??;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub async fn until_stopping<F: Future>(&self, future: F) -> Option<F::Output> {
        let mut future = pin!(future);
        let mut stopping = pin!(self.0.shared.stopping.wait());
        poll_fn(|cx| match future.as_mut().poll(cx) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending => stopping.as_mut().poll(cx).map(|()| None),
        })
        .await
    }

    /// Resolves when the runtime begins to stop. See also [`until_stopping`](Self::until_stopping).
    ///
    /// ```
    /// # use ringlog::rt::{Runtime, RuntimeConfig};
    /// let runtime = Runtime::start(RuntimeConfig::default())?;
    /// let handle = runtime.thread(0).clone();
    /// let server = runtime.schedule(async move { handle.stopping().await });
    /// runtime.stop()?;
    /// assert!(server.is_finished());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn stopping(&self) -> impl Future<Output = ()> + Send + 'static + use<> {
        let shared = Arc::clone(&self.0.shared);
        async move { shared.stopping.wait().await }
    }
}

/// A task that was made, but not sent. Dropping it ends the task.
pub(crate) struct Unstarted {
    home: Handle,
    message: Message,
}

impl Unstarted {
    /// Sends the task to its thread. What comes back was refused, and runs foreign code when it is
    /// dropped: do that where no lock is held.
    pub(crate) fn start(self) -> Result<(), impl Sized> {
        self.home.offer(self.message)
    }
}

impl PartialEq for Handle {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0.shared, &other.0.shared) && self.0.index == other.0.index
    }
}

impl Eq for Handle {}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle").field("index", &self.0.index).finish_non_exhaustive()
    }
}

/// Why a task could not hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum HopError {
    /// The target has stopped. The task goes on where it is.
    Stopped,
    /// The target belongs to another runtime: await [`Handle::schedule`] instead.
    OtherRuntime,
    /// The task was spawned as a local one, or is the future of a `block_on`: its future may not
    /// leave its thread. Start it with [`Handle::schedule`] instead.
    NotSend,
}

impl fmt::Display for HopError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stopped => "cannot hop: the target thread has stopped",
            Self::OtherRuntime => "cannot hop: the target belongs to another runtime",
            Self::NotSend => "cannot hop: this task was not scheduled as a Send one",
        })
    }
}

impl std::error::Error for HopError {}

impl From<HopError> for std::io::Error {
    fn from(error: HopError) -> Self {
        std::io::Error::other(error)
    }
}

/// Moves the running task to another thread of its runtime: what follows the `await` runs there,
/// on that thread's ring. At once if it is there already.
///
/// Operations still in flight, say in another branch of a `join!`, stay on the ring they began on
/// and wake the task wherever it is. The task moves when the poll that asked is over, also if the
/// future of the hop was dropped in it, as the loser of a `select!` is.
///
/// # Errors
///
/// [`HopError`]; the task then goes on where it is.
///
/// ```
/// # use ringlog::rt::{self, Runtime, RuntimeConfig};
/// let config = RuntimeConfig { num_threads: 2, ..RuntimeConfig::default() };
/// let runtime = Runtime::start(config)?;
/// let (io, compute) = (runtime.thread(0).clone(), runtime.thread(1).clone());
/// let task = io.clone().schedule(async move {
///     rt::schedule_on(&compute).await?;
///     assert!(compute.is_current());
///     let sum: u64 = (0..1000).sum();
///     rt::schedule_on(&io).await?;
///     assert!(io.is_current());
///     Ok::<_, rt::HopError>(sum)
/// });
/// assert_eq!(rt::block_on(task)??, 499_500);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn schedule_on(target: &Handle) -> ScheduleOn {
    ScheduleOn { target: target.clone() }
}

/// The future of [`schedule_on`].
#[derive(Debug)]
#[must_use = "a hop happens when it is awaited"]
pub struct ScheduleOn {
    target: Handle,
}

impl Future for ScheduleOn {
    type Output = Result<(), HopError>;

    fn poll(self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<Self::Output> {
        let Some(context) = Context::current() else {
            return Poll::Ready(Err(HopError::NotSend));
        };
        if context.is_home_of(&self.target) {
            return Poll::Ready(Ok(()));
        }
        if !context.shares(&self.target.0.shared) {
            return Poll::Ready(Err(HopError::OtherRuntime));
        }
        if self.target.mailbox().phase() == Phase::Closed {
            return Poll::Ready(Err(HopError::Stopped));
        }
        // The executor moves the task when this poll has ended. If the target closes meanwhile,
        // the task is polled here again, and sees so above.
        if context.ask_to_hop(self.target.0.index, cx.waker()) {
            Poll::Pending
        } else {
            Poll::Ready(Err(HopError::NotSend))
        }
    }
}

impl Context {
    /// Whether the handle names this context's thread.
    pub(crate) fn is_home_of(&self, handle: &Handle) -> bool {
        self.is(&handle.0.shared, handle.0.index)
    }
}
