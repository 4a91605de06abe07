//! [`Reply`]: the future that every operation of a store returns.
//!
//! Invariant: nothing happens before its first poll, and it asks nothing of the executor that polls
//! it.

use crate::error::{Error, Result};
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

/// The answer to come of a request: a future that any executor can await. Nothing happens before
/// its first poll. Dropping it then withdraws a request that still waits for its turn; one that was
/// sent goes on. What takes several requests, as `close` and `backup` do, ends with the one that is
/// under way. It is `Unpin`, asks nothing of its executor, and may move between polls.
///
/// # Panics
///
/// When it is polled again after it has resolved.
#[must_use = "a request is not sent until its reply is awaited"]
pub struct Reply<T> {
    state: State<T>,
}

enum State<T> {
    Running(Pin<Box<dyn Future<Output = Result<T>> + Send>>),
    Answered(Option<Result<T>>),
}

impl<T> Reply<T> {
    pub(crate) fn new(future: impl Future<Output = Result<T>> + Send + 'static) -> Self {
        Self { state: State::Running(Box::pin(future)) }
    }

    pub(crate) fn error(error: Error) -> Self {
        Self { state: State::Answered(Some(Err(error))) }
    }

    /// Sends the request, and keeps an answer that is there at once.
    pub(crate) fn start(&mut self, cx: &mut Context<'_>) {
        if let State::Running(future) = &mut self.state
            && let Poll::Ready(answer) = future.as_mut().poll(cx)
        {
            self.state = State::Answered(Some(answer));
        }
    }
}

// The boxed future is pinned by its box, an answer is never pinned.
impl<T> Unpin for Reply<T> {}

impl<T> Future for Reply<T> {
    type Output = Result<T>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.start(cx);
        match &mut self.state {
            State::Running(_) => Poll::Pending,
            State::Answered(answer) => {
                Poll::Ready(answer.take().expect("a reply was polled after it had resolved"))
            }
        }
    }
}

impl<T> fmt::Debug for Reply<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reply").finish_non_exhaustive()
    }
}
