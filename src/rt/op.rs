//! [`Op`], the future of one operation, and the in-flight table that owns it meanwhile.
//!
//! ```text
//! Op::Idle(payload) --first poll--> Cell { payload } --+-- Op::InFlight (wants the result)
//!                                                      +-- InFlight table, by key (lets the kernel)
//! ```
//!
//! Invariant: a payload is freed only after its completion, or never. The table holds the
//! cell from before the request is pushed until its completion is handed out, whatever happens to
//! the future, to the task or to the call that submits.

#![expect(unsafe_code, reason = "completes cells")]

use super::cell::{Cell, Completed, Waiting};
use super::context::Context;
use super::driver::Request;
use super::handle::Handle;
use super::mailbox::Message;
use super::slab::Key;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::ptr::NonNull;
use std::task::{Context as TaskContext, Poll, Waker};

/// What the operations of `fs`, `net` and `time` implement: data, a request that points into it,
/// and what to make of the result.
///
/// # Safety
///
/// The request points only to memory that `self` owns, and that neither moves nor is freed while
/// `self` is not touched.
pub unsafe trait Operation: Sized + 'static {
    /// What the future resolves to.
    type Output;

    /// Whether dropping the future, or the executor, asks the kernel to give up. Not for what must
    /// happen anyway, and then ends by itself.
    const CANCEL_ON_DROP: bool = true;

    /// The request, with pointers into `self`, which is at its final address.
    fn request(&mut self) -> Request;

    /// The output, once the operation is complete.
    fn finish(self, result: io::Result<u32>) -> Self::Output;

    /// The operation completed and nobody will take its output: a descriptor in it must be closed.
    fn discard(self, result: io::Result<u32>) {
        drop(self.finish(result));
    }
}

fn outcome(result: i32) -> io::Result<u32> {
    u32::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result))
}

/// An entry of the in-flight table: a cell whose payload type is forgotten. Dropped without being
/// completed, it leaks the cell: the kernel may still write to it.
pub(crate) struct InFlight {
    cell: NonNull<()>,
    complete: unsafe fn(NonNull<()>, i32) -> (Key, Option<Waker>),
    /// Whether it may be cancelled when nobody wants its result.
    pub(crate) may_cancel: bool,
}

impl InFlight {
    /// The only one for its cell.
    fn new<T: Operation>(cell: &Waiting<T>) -> Self {
        let cell = cell.as_ptr().cast();
        Self { cell, complete: complete::<T>, may_cancel: T::CANCEL_ON_DROP }
    }

    /// Completes the cell; returns whom to wake, outside of every borrow.
    ///
    /// # Safety
    ///
    /// By the thread of the ring, when the driver no longer uses the payload's memory.
    pub(crate) unsafe fn complete(self, result: i32) -> (Key, Option<Waker>) {
        // SAFETY: pointer and function are of the same `T`; `self` is consumed, so it is once.
        unsafe { (self.complete)(self.cell, result) }
    }
}

/// # Safety
///
/// As for [`Cell::complete`], of a cell of this very type.
unsafe fn complete<T: Operation>(cell: NonNull<()>, result: i32) -> (Key, Option<Waker>) {
    // SAFETY: this function's contract is the same.
    match unsafe { Cell::<T>::complete(cell.cast(), result) } {
        Completed::Wake(task, waker) => (task, waker),
        Completed::Orphan(payload) => {
            payload.discard(outcome(result));
            (Key::NONE, None)
        }
    }
}

/// Names one submitted operation, for [`cancel`](super::cancel()). Never reused.
#[derive(Clone, Debug)]
pub struct OpId {
    pub(crate) home: Handle,
    pub(crate) key: Key,
}

enum State<T: Operation> {
    Idle(T),
    InFlight { cell: Waiting<T>, id: OpId },
    Done,
}

/// The future of one operation.
///
/// Nothing is submitted before the first poll (or [`start`](Self::start)), which must happen on an
/// executor; from then on the operation belongs to that thread's ring. The future itself is `Send`
/// if its buffer is: it may be awaited from another thread or another executor, and dropped
/// anywhere.
///
/// # Cancellation
///
/// Dropping the future asks the kernel to give the operation up (but for those that end by
/// themselves: sync, open, rename and the like) and returns at once. The buffer is
/// freed when the operation has really ended; whether it took effect is then unknown. To get the
/// buffer back, use [`cancel`](super::cancel()) and await the future to its end instead.
///
/// # Panics
///
/// When first polled outside of an executor, and when polled again after it resolved.
#[must_use = "an operation does nothing until it is awaited"]
pub struct Op<T: Operation> {
    state: State<T>,
}

// The payload is never pinned: it moves into its cell before anything points to it.
impl<T: Operation> Unpin for Op<T> {}

impl<T: Operation> Op<T> {
    pub(crate) fn new(payload: T) -> Self {
        Self { state: State::Idle(payload) }
    }

    /// Submits the operation now, if that has not happened, and names it.
    ///
    /// # Panics
    ///
    /// Outside of an executor, or after the future resolved.
    pub fn start(&mut self) -> OpId {
        self.submit(None);
        match &self.state {
            State::InFlight { id, .. } => id.clone(),
            State::Idle(_) | State::Done => panic!("this operation has already resolved"),
        }
    }

    fn submit(&mut self, waker: Option<&Waker>) {
        if matches!(self.state, State::Idle(_)) {
            Context::with_current(|context| {
                let context = context.expect(
                    "an operation of ringlog::rt was polled outside of an executor: \
                     run it in Executor::block_on, or schedule it on a Runtime's thread",
                );
                self.submit_on(context, waker);
            });
        }
    }

    /// Submits to a context that need not be the thread's current one.
    pub(crate) fn submit_on(&mut self, context: &Context, waker: Option<&Waker>) {
        if let State::Idle(payload) = std::mem::replace(&mut self.state, State::Done) {
            let (task, waker) = match waker.map(|waker| (waker, context.resting_task(waker))) {
                None => (Key::NONE, None),
                Some((_, Some(task))) => (task, None),
                Some((waker, None)) => (Key::NONE, Some(waker.clone())),
            };
            let cell = Waiting::new(payload, task, waker);
            // SAFETY: the cell was made on the line above and nobody else has it.
            let request = unsafe { cell.with_payload(T::request) };
            let key = context.submit(InFlight::new(&cell), request);
            self.state = State::InFlight { cell, id: OpId { home: context.handle().clone(), key } };
        }
    }
}

impl<T: Operation> Future for Op<T> {
    type Output = T::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<Self::Output> {
        match &self.state {
            State::Idle(_) => {
                self.submit(Some(cx.waker()));
                Poll::Pending
            }
            State::InFlight { cell, .. } if cell.poll(cx.waker()).is_pending() => Poll::Pending,
            _ => match std::mem::replace(&mut self.state, State::Done) {
                State::InFlight { cell, .. } => {
                    let (payload, result) = cell.take();
                    Poll::Ready(payload.finish(outcome(result)))
                }
                _ => panic!("an operation was polled after it resolved"),
            },
        }
    }
}

impl<T: Operation> Drop for Op<T> {
    fn drop(&mut self) {
        // The check first: most futures are done, and the state is large.
        let in_flight = matches!(self.state, State::InFlight { .. });
        if in_flight
            && let State::InFlight { cell, id } = std::mem::replace(&mut self.state, State::Done)
        {
            if let Some((payload, result)) = cell.abandon() {
                payload.discard(outcome(result));
            } else if T::CANCEL_ON_DROP {
                match Context::current() {
                    Some(context) if context.is_home_of(&id.home) => context.cancel_quietly(id.key),
                    // Refused only by an executor that is closing, and cancels everything itself.
                    _ => drop(id.home.mailbox().post(Message::Cancel(id.key))),
                }
            }
        }
    }
}

impl<T: Operation> std::fmt::Debug for Op<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = match &self.state {
            State::Idle(_) => "idle",
            State::InFlight { .. } => "in flight",
            State::Done => "done",
        };
        f.debug_tuple("Op").field(&state).finish()
    }
}
