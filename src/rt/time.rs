//! Time: timeouts, deadlines, and the executor's clock.
//!
//! A timeout is an operation like any other, so that it can be cancelled like any other and a
//! driver with another clock keeps its time. Invariant: nothing here reads a clock of its own.

#![expect(unsafe_code, reason = "operations are unsafe to define")]

use super::context::Context;
use super::driver::{Request, Timespec};
use super::op::{Op, Operation};
use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::task::Poll;
use std::time::{Duration, Instant, SystemTime};

/// Sleeps. Resolves to `Ok` when the time is over, or to `ECANCELED` if it was cancelled.
pub fn timeout(after: Duration) -> Op<Timeout> {
    let after = Timespec {
        seconds: i64::try_from(after.as_secs()).unwrap_or(i64::MAX),
        nanoseconds: i64::from(after.subsec_nanos()),
    };
    Op::new(Timeout { after })
}

/// [`timeout`] in milliseconds.
pub fn timeout_ms(milliseconds: u64) -> Op<Timeout> {
    timeout(Duration::from_millis(milliseconds))
}

/// See [`timeout`].
#[derive(Debug)]
pub struct Timeout {
    after: Timespec,
}

// SAFETY: the request points into the struct, which does not move while in flight.
unsafe impl Operation for Timeout {
    type Output = io::Result<()>;

    fn request(&mut self) -> Request {
        Request::Timeout { after: &raw const self.after }
    }

    fn finish(self, result: io::Result<u32>) -> Self::Output {
        match result {
            Err(error) if error.raw_os_error() == Some(libc::ETIME) => Ok(()),
            other => other.map(drop),
        }
    }
}

/// The time was over before the future was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Elapsed;

impl fmt::Display for Elapsed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the deadline passed")
    }
}

impl std::error::Error for Elapsed {}

impl From<Elapsed> for io::Error {
    fn from(error: Elapsed) -> Self {
        io::Error::new(io::ErrorKind::TimedOut, error)
    }
}

/// Gives a future so much time from its first poll on, and drops it then: its operations are
/// cancelled, and their buffers are gone. To keep a buffer, [`cancel`](super::cancel()) the
/// operation instead.
///
/// # Errors
///
/// [`Elapsed`] if the time was over first. A future that is done in the same instant wins.
pub async fn with_deadline<F: Future>(limit: Duration, future: F) -> Result<F::Output, Elapsed> {
    let mut future = pin!(future);
    let mut limit = pin!(timeout(limit));
    poll_fn(|cx| {
        if let Poll::Ready(output) = future.as_mut().poll(cx) {
            return Poll::Ready(Ok(output));
        }
        // However the timeout ended: without it there is no deadline to wait for.
        limit.as_mut().poll(cx).map(|_| Err(Elapsed))
    })
    .await
}

/// The clock of the executor that runs the caller.
///
/// # Panics
///
/// Outside of an executor.
pub fn now() -> Instant {
    let context = Context::current().expect("rt::now was called outside of an executor");
    let driver = context.driver().borrow();
    driver.now()
}

/// The time of day of the executor that runs the caller. It may jump in either direction: for what
/// outlives the process, such as when a value expires. To measure, use [`now`].
///
/// # Panics
///
/// Outside of an executor.
pub fn wall() -> SystemTime {
    let context = Context::current().expect("rt::wall was called outside of an executor");
    let driver = context.driver().borrow();
    driver.wall()
}
