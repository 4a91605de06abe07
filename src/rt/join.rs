//! [`Task`], the handle of a spawned task, and the cell its outcome comes through.
//!
//! Invariant: the cell gets an outcome exactly once, whatever becomes of the task: its value, its
//! panic, or, when the future is dropped unfinished, the reason. So whoever awaits a task, on
//! whatever executor, is never left hanging.

use super::sync::{Mutex, lock};
use super::task::Header;
use std::any::Any;
use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

/// Why a task has no value to give.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum JoinError {
    /// It panicked, with this message. Its thread goes on.
    Panicked(String),
    /// It was cancelled with [`Task::cancel`].
    Cancelled,
    /// Its executor had stopped when the task was offered, or stopped before the task was done.
    /// Offer work only before `stop`.
    Stopped,
}

impl fmt::Display for JoinError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Panicked(message) => write!(f, "the task panicked: {message}"),
            Self::Cancelled => f.write_str("the task was cancelled"),
            Self::Stopped => f.write_str("the task's executor has stopped"),
        }
    }
}

impl std::error::Error for JoinError {}

impl From<JoinError> for io::Error {
    fn from(error: JoinError) -> Self {
        io::Error::other(error)
    }
}

enum Outcome<T> {
    Awaited(Option<Waker>),
    Ready(Result<T, JoinError>),
    Taken,
}

struct JoinCell<T>(Mutex<Outcome<T>>);

/// The task's end of the cell.
struct Promise<T> {
    cell: Arc<JoinCell<T>>,
    header: Arc<Header>,
}

impl<T> Promise<T> {
    /// The first outcome stays.
    fn set(&self, outcome: Result<T, JoinError>) {
        let mut state = lock(&self.cell.0);
        let Outcome::Awaited(waker) = &mut *state else {
            return;
        };
        let waker = waker.take();
        *state = Outcome::Ready(outcome);
        drop(state);
        if let Some(waker) = waker {
            waker.wake(); // foreign code: outside the lock
        }
    }
}

impl<T> Drop for Promise<T> {
    fn drop(&mut self) {
        let cancelled = self.header.is_cancelled();
        self.set(Err(if cancelled { JoinError::Cancelled } else { JoinError::Stopped }));
    }
}

/// A spawned task. Await it for its outcome, on any executor; drop it to let the task run on by
/// itself; or [cancel](Self::cancel) it.
///
/// ```
/// # use ringlog::rt::{Executor, ExecutorConfig};
/// let executor = Executor::new(ExecutorConfig::default())?;
/// let task = executor.spawn(async { 6 * 7 });
/// assert_eq!(executor.block_on(task), Ok(42));
/// # Ok::<(), ringlog::rt::SetupError>(())
/// ```
pub struct Task<T> {
    cell: Arc<JoinCell<T>>,
    header: Arc<Header>,
}

impl<T> Task<T> {
    /// Asks the task's thread to drop the task's future instead of polling it again.
    ///
    /// Its operations are cancelled as by dropping them. The handle then resolves to
    /// [`JoinError::Cancelled`], or to the task's true outcome if that came first.
    pub fn cancel(&self) {
        self.header.cancel();
    }

    /// Whether awaiting would resolve at once.
    pub fn is_finished(&self) -> bool {
        !matches!(*lock(&self.cell.0), Outcome::Awaited(_))
    }
}

impl<T> Future for Task<T> {
    type Output = Result<T, JoinError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let own = cx.waker().clone(); // foreign code, as is the drop below: outside the lock
        let mut state = lock(&self.cell.0);
        if let Outcome::Awaited(waker) = &mut *state {
            let stale = waker.replace(own);
            drop(state);
            drop(stale);
            return Poll::Pending;
        }
        match std::mem::replace(&mut *state, Outcome::Taken) {
            Outcome::Ready(outcome) => Poll::Ready(outcome),
            _ => panic!("a task was polled after it resolved"),
        }
    }
}

impl<T> fmt::Debug for Task<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Task").field("finished", &self.is_finished()).finish()
    }
}

/// Makes the handle of a task, and the wrapper that turns its future into one without output.
pub(crate) fn join<T, F, W>(header: &Arc<Header>, wrap: W) -> (Task<T>, F)
where
    W: FnOnce(Finish<T>) -> F,
{
    let cell = Arc::new(JoinCell(Mutex::new(Outcome::Awaited(None))));
    let promise = Promise { cell: Arc::clone(&cell), header: Arc::clone(header) };
    (Task { cell, header: Arc::clone(header) }, wrap(Finish(promise)))
}

/// What a task's wrapper does: run the future to its end or its panic, and keep the promise.
pub(crate) struct Finish<T>(Promise<T>);

impl<T> Finish<T> {
    pub(crate) async fn run(self, future: impl Future<Output = T>) {
        let promise = self.0;
        let mut future = pin!(Some(future));
        let outcome = poll_fn(|cx| {
            let poll = || match future.as_mut().as_pin_mut() {
                Some(future) => future.poll(cx),
                None => Poll::Pending,
            };
            catch_unwind(AssertUnwindSafe(poll)).map_or_else(|p| Poll::Ready(Err(p)), |p| p.map(Ok))
        })
        .await;
        // Dropped before anyone hears that it is done; that may panic too.
        let dropped = catch_unwind(AssertUnwindSafe(|| future.set(None)));
        let outcome = outcome.and_then(|output| dropped.map(|()| output));
        promise.set(outcome.map_err(|panic| JoinError::Panicked(message(panic))));
    }
}

fn message(panic: Box<dyn Any + Send>) -> String {
    match panic.downcast::<String>() {
        Ok(message) => *message,
        Err(panic) => match panic.downcast_ref::<&str>() {
            Some(message) => (*message).to_owned(),
            None => "a value that is not text".to_owned(),
        },
    }
}

#[cfg(all(test, ringlog_loom))]
mod loom_tests {
    use super::super::handle::Shared;
    use super::super::sync::atomic::{AtomicUsize, Ordering};
    use super::*;
    use std::task::Wake;

    struct Counter(AtomicUsize);

    impl Wake for Counter {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Release);
        }
    }

    /// The task ends, by a value or by being dropped, while its handle is polled: the handle has the
    /// outcome, or is woken and has it then.
    #[test]
    fn loom_an_outcome_is_seen_or_wakes() {
        for kept in [true, false] {
            loom::model(move || {
                let header = Header::new(Shared::new(1), 0);
                let (mut task, Finish(promise)) = join::<u8, _, _>(&header, |finish| finish);
                let ended = loom::thread::spawn(move || {
                    if kept {
                        promise.set(Ok(7));
                    }
                });
                let counter = Arc::new(Counter(AtomicUsize::new(0)));
                let waker = Waker::from(Arc::clone(&counter));
                let mut poll = || Pin::new(&mut task).poll(&mut Context::from_waker(&waker));
                let first = poll();
                ended.join().unwrap();
                let outcome = match first {
                    Poll::Ready(outcome) => outcome,
                    Poll::Pending => {
                        assert_eq!(counter.0.load(Ordering::Acquire), 1);
                        let Poll::Ready(outcome) = poll() else { panic!("woken for nothing") };
                        outcome
                    }
                };
                assert_eq!(outcome, if kept { Ok(7) } else { Err(JoinError::Stopped) });
            });
        }
    }
}
