//! [`block_on`] for threads that have no executor: polls a future, and sleeps in between.
//!
//! Invariant: `woken` is cleared before the poll, so a wake during the poll counts.

use super::context::Context;
use super::spin::Spinner;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context as TaskContext, Poll, Wake};
use std::thread::Thread;

struct Parked {
    woken: AtomicBool,
    thread: Thread,
}

impl Wake for Parked {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.woken.swap(true, Ordering::AcqRel) {
            self.thread.unpark();
        }
    }
}

/// Runs a future on the calling thread, which sleeps while the future waits for others: for the
/// handles of tasks, and for everything of [`Store`](crate::Store), in programs that are not async.
///
/// Operations need an executor: use [`Executor::block_on`](super::Executor::block_on) for them.
///
/// # Panics
///
/// On an executor's thread, which it would stop: await the future there.
pub fn block_on<F: Future>(future: F) -> F::Output {
    assert!(
        Context::current().is_none(),
        "rt::block_on inside a task would stop the executor's thread: await the future instead"
    );
    wait(future)
}

/// [`block_on`], also on an executor's thread: for futures that need nothing of that thread.
pub(crate) fn wait<F: Future>(future: F) -> F::Output {
    let parked = Arc::new(Parked { woken: AtomicBool::new(false), thread: std::thread::current() });
    let waker = Arc::clone(&parked).into();
    let mut cx = TaskContext::from_waker(&waker);
    let mut future = pin!(future);
    let mut spinner = Spinner::new(Spinner::default_limit(1));
    loop {
        parked.woken.swap(false, Ordering::AcqRel);
        if let Poll::Ready(output) = future.as_mut().poll(&mut cx) {
            return output;
        }
        let woken = || parked.woken.load(Ordering::Acquire);
        if !(spinner.pays() && spinner.spin(woken)) {
            while !woken() {
                std::thread::park();
            }
        }
    }
}
