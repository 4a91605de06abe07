//! [`Executor`]: the loop of one thread around one driver.
//!
//! ```text
//! take messages -> poll what is ready -> submit and reap -> (nothing left: spin, park, wait)
//! ```
//!
//! Invariants: the thread sleeps only after it has said "parked" under its mailbox's lock, and
//! then in the very call that submits. Dropping the executor ends every operation in flight before
//! its memory is freed; what cannot be ended is leaked.

use super::config::{ExecutorConfig, SetupError};
use super::context::Context;
use super::driver::Driver;
use super::handle::{Handle, Shared};
use super::join::Task;
use super::mailbox::Phase;
use super::ring::Ring;
use super::slab::Key;
use super::spin::Spinner;
use super::task::Header;
use super::time::timeout;
use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::marker::PhantomData;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll, Waker};
use std::time::Duration;

/// How long a dropped executor waits for operations that were told to end.
const TEARDOWN: Duration = Duration::from_secs(30);

/// A single-threaded executor with a ring of its own.
///
/// ```
/// use ringlog::rt::{self, Executor, ExecutorConfig, Fd};
///
/// let executor = Executor::new(ExecutorConfig::default())?;
/// let file = Fd::from(tempfile::tempfile()?);
/// executor.block_on(async {
///     let (result, _) = rt::write_all(&file, b"hello".as_slice(), 0).await;
///     result?;
///     rt::fsync(&file, true).await?;
///     let (result, buf) = rt::read(&file, Vec::with_capacity(4096), 0).await;
///     assert_eq!((result?, buf.as_slice()), (5, b"hello".as_slice()));
///     Ok::<(), std::io::Error>(())
/// })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Drop
///
/// Cancels the operations in flight and waits until the kernel has let go of their buffers (30 s
/// at most; then the buffers are leaked). Tasks that are not done are dropped on this thread.
pub struct Executor {
    context: Rc<Context>,
    spinner: RefCell<Spinner>,
    closed: Cell<bool>,
    /// Stays on the thread that made it: so does its ring.
    not_send: PhantomData<Rc<()>>,
}

impl Executor {
    /// Sets up a ring on the calling thread, where the executor stays.
    ///
    /// # Errors
    ///
    /// [`SetupError`] says why there is no ring and what to do.
    pub fn new(config: ExecutorConfig) -> Result<Self, SetupError> {
        let spin = config.spin.unwrap_or_else(|| Spinner::default_limit(1));
        let driver = Box::new(Ring::new(&config)?);
        Ok(Self::on(Shared::new(1), 0, driver, spin))
    }

    /// An executor on another driver than a ring. It never spins.
    pub fn with_driver(driver: Box<dyn Driver>) -> Self {
        Self::on(Shared::new(1), 0, driver, Duration::ZERO)
    }

    pub(crate) fn on(
        shared: Arc<Shared>,
        index: usize,
        driver: Box<dyn Driver>,
        spin: Duration,
    ) -> Self {
        let context = Context::new(shared, index, driver);
        let spinner = RefCell::new(Spinner::new(spin));
        Self { context, spinner, closed: Cell::new(false), not_send: PhantomData }
    }

    /// How other threads reach this executor. What they schedule runs when this thread is in
    /// [`run`](Self::run) or [`block_on`](Self::block_on).
    pub fn handle(&self) -> Handle {
        self.context.handle().clone()
    }

    /// Adds a task; it need not be `Send`. It runs in [`run`](Self::run) or
    /// [`block_on`](Self::block_on). From within a task, use [`spawn`].
    pub fn spawn<F: Future + 'static>(&self, future: F) -> Task<F::Output> {
        self.context.spawn(future)
    }

    /// Runs until no task is left.
    ///
    /// # Errors
    ///
    /// If the ring fails for good. The tasks stay, and are dropped with the executor.
    ///
    /// # Panics
    ///
    /// If called inside a task of an executor.
    pub fn run(&self) -> io::Result<()> {
        let _entered = self.context.enter();
        self.drive(|| self.context.shared().live() == 0)
    }

    /// Runs until `future` is done, and the other tasks meanwhile. They stay for the next call.
    ///
    /// # Panics
    ///
    /// If called inside a task of an executor, if the future panics, or if the ring fails for good.
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        let _entered = self.context.enter();
        let mut future = pin!(future);
        let header = Header::new(Arc::clone(self.context.shared()), self.context.handle().index());
        let waker = Waker::from(Arc::clone(&header));
        let root = Root(&self.context, self.context.begin_root(&header));
        let mut output = None;
        let driven = self.drive(|| {
            if output.is_none() && self.context.take_root_woken() {
                header.scheduled.clear();
                if let Poll::Ready(done) = self.context.poll_local(root.1, future.as_mut(), &waker)
                {
                    output = Some(done);
                }
            }
            output.is_some()
        });
        match (output, driven) {
            (Some(output), _) => output,
            (None, Err(error)) => panic!("the ring failed for good: {error}"),
            (None, Ok(())) => unreachable!("driven until there is an output"),
        }
    }

    /// Runs as a runtime's thread until its mailbox is closed.
    pub(crate) fn serve(&self) -> io::Result<()> {
        let _entered = self.context.enter();
        self.drive(|| self.context.is_closed())
    }

    fn drive(&self, mut finished: impl FnMut() -> bool) -> io::Result<()> {
        let context = &*self.context;
        loop {
            if finished() {
                return Ok(());
            }
            if context.mailbox().pending() {
                context.take_messages();
            }
            context.run_ready();
            if finished() {
                return Ok(());
            }
            if context.has_ready() || context.mailbox().pending() {
                context.io(false)?;
            } else {
                self.idle()?;
            }
        }
    }

    /// Nothing to poll: submits and waits for a completion or a message.
    fn idle(&self) -> io::Result<()> {
        let context = &*self.context;
        if self.spinner.borrow_mut().pays() {
            context.io(false)?;
            if context.has_ready() {
                return Ok(());
            }
            let found = self
                .spinner
                .borrow_mut()
                .spin(|| context.mailbox().pending() || context.driver().borrow_mut().ready());
            if found {
                return context.io(false);
            }
        }
        if context.mailbox().park() {
            let waited = context.io(true);
            context.take_messages(); // and be awake again
            return waited;
        }
        Ok(())
    }

    /// Drops what is left and ends what is in flight. Returns how many tasks were not done.
    pub(crate) fn close(&self) -> usize {
        if self.closed.replace(true) {
            return 0;
        }
        let context = &self.context;
        context.shared().stopping.set();
        context.mailbox().advance(Phase::Closed);
        let _entered = context.enter_to_close();
        let outliving = context.take_outliving();
        let dropped = context.drop_everything();
        // What is left in the table after this is leaked with the ring, by the context's drop.
        self.let_go();
        if context.in_flight() > 0 {
            std::mem::forget(outliving);
        }
        dropped
    }

    /// Ends every operation in flight, as far as they will.
    fn let_go(&self) {
        let context = &*self.context;
        if context.in_flight() == 0 {
            return; // what was pushed and owns nothing, like a cancel, need not be waited for
        }
        context.cancel_all();
        // The wait is bounded by an operation like any other: it ends last, or it ends the wait.
        let mut limit = pin!(timeout(TEARDOWN));
        let mut cx = TaskContext::from_waker(Waker::noop());
        // Not by a poll: in a thread's last moments there is no current context.
        limit.submit_on(context, None);
        let mut expired = false;
        while context.in_flight() > usize::from(!expired) {
            if expired || context.io(true).is_err() {
                return;
            }
            context.drop_everything();
            expired = limit.as_mut().poll(&mut cx).is_ready();
        }
        context.cancel_all();
        while context.in_flight() > 0 {
            if context.io(true).is_err() {
                return;
            }
        }
    }
}

impl Drop for Executor {
    fn drop(&mut self) {
        self.close();
    }
}

impl std::fmt::Debug for Executor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Executor").field("handle", &self.handle()).finish_non_exhaustive()
    }
}

/// Forgets the root future when `block_on` ends, by a panic too.
struct Root<'a>(&'a Context, Key);

impl Drop for Root<'_> {
    fn drop(&mut self) {
        self.0.end_root(self.1);
    }
}

/// Adds a task to the executor that runs the caller; it need not be `Send`, and stays there.
///
/// # Panics
///
/// Outside of an executor.
pub fn spawn<F: Future + 'static>(future: F) -> Task<F::Output> {
    let context = Context::current().expect(
        "rt::spawn was called outside of an executor: use Executor::spawn or Handle::schedule",
    );
    context.spawn(future)
}

/// Lets the other tasks of this thread, and its ring, have a turn.
pub fn yield_now() -> impl Future<Output = ()> + Send {
    let mut yielded = false;
    std::future::poll_fn(move |cx| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
}

#[cfg(test)]
#[expect(unsafe_code, reason = "a driver that performs nothing")]
mod tests {
    use super::super::context::outlive_operations;
    use super::super::driver::{Completion, Driver, Request, Unpark};
    use super::*;
    use std::any::Any;
    use std::sync::Weak;
    use std::time::Instant;

    type Value = Weak<dyn Any + Send + Sync>;

    /// Completes what is pushed when it is told to wait, if at all, and then looks if the value is
    /// still there.
    struct Late {
        pushed: Vec<u64>,
        completes: bool,
        value: Rc<RefCell<Option<Value>>>,
        was_there: Rc<Cell<bool>>,
    }

    struct Deaf;

    impl Unpark for Deaf {
        fn unpark(&self) {}
    }

    // SAFETY: it performs nothing, so it touches no memory, and completes each request once.
    unsafe impl Driver for Late {
        fn push(&mut self, token: u64, _: Request) {
            self.pushed.push(token);
        }

        fn enter(&mut self, wait: bool, done: &mut Vec<Completion>) -> io::Result<()> {
            if wait && !self.completes {
                return Err(io::ErrorKind::NotConnected.into());
            }
            if wait {
                let value = self.value.borrow();
                self.was_there.set(value.as_ref().is_some_and(|value| value.strong_count() > 0));
                done.extend(self.pushed.drain(..).map(|token| Completion { token, result: 0 }));
            }
            Ok(())
        }

        fn ready(&mut self) -> bool {
            false
        }

        fn unparker(&self) -> Arc<dyn Unpark> {
            Arc::new(Deaf)
        }

        fn now(&self) -> Instant {
            Instant::now()
        }
    }

    /// Drops an executor with an operation in flight, whose task holds a value. Tells whether that
    /// was there when the operation ended, and whether it is afterwards.
    fn drop_with_an_operation_in_flight(completes: bool) -> (bool, bool) {
        let (value, was_there) = (Rc::default(), Rc::new(Cell::new(false)));
        let (values, seen) = (Rc::clone(&value), Rc::clone(&was_there));
        let driver = Late { pushed: Vec::new(), completes, value: values, was_there: seen };
        let executor = Executor::with_driver(Box::new(driver));
        executor.block_on(async {
            let held: Arc<dyn Any + Send + Sync> = Arc::new("held");
            outlive_operations(&held);
            value.replace(Some(Arc::downgrade(&held)));
            drop(spawn(async move {
                super::super::nop().await.expect("no error");
                drop(held);
            }));
            yield_now().await;
        });
        drop(executor);
        let value: Value = value.take().expect("it was put there");
        (was_there.get(), value.strong_count() > 0)
    }

    #[test]
    fn what_is_to_outlive_the_operations_in_flight_goes_after_them() {
        assert_eq!(drop_with_an_operation_in_flight(true), (true, false));
    }

    #[test]
    fn what_is_to_outlive_operations_that_never_end_stays() {
        assert_eq!(drop_with_an_operation_in_flight(false), (false, true));
    }
}
