//! The cell that holds an operation from its submission to its completion.
//!
//! Two parties share a cell: the in-flight table of the ring's thread, which completes it once, and
//! the future, which may be polled and dropped on any thread. The payload (buffers, descriptor,
//! addresses) lives here and not in the future, so that forgetting, moving or dropping the future
//! can never pull memory from under the kernel. Nobody counts references: the last party frees.
//!
//! | State | payload belongs to | waker slot belongs to | the cell is freed by |
//! |---|---|---|---|
//! | `WAITING` | the kernel | nobody: it is empty, and the future may claim it | |
//! | `LEFT` | the kernel | whoever claims it | |
//! | `UPDATING` | the kernel | the future, for a few instructions | |
//! | `TAKING` | the completer | the completer, for a few instructions | |
//! | `ORPHAN` | the kernel, then the completer | the completer | the completer |
//! | `DONE` | the future | the future | the future |
//!
//! Invariant: each change of state is one atomic read-modify-write, and whoever brings about
//! `ORPHAN` or `DONE` never looks at the cell again, unless it was the second to come to its end.
//! Nothing here knows `io_uring`: loom and Miri run it as it is.

#![expect(unsafe_code, reason = "shares a payload between the kernel and a future")]

use super::slab::Key;
use super::sync::UnsafeCell;
use super::sync::atomic::{AtomicU8, Ordering};
use std::ptr::NonNull;
use std::task::{Poll, Waker};

const WAITING: u8 = 0;
const LEFT: u8 = 1;
const UPDATING: u8 = 2;
const TAKING: u8 = 3;
const DONE: u8 = 4;
const ORPHAN: u8 = 5;

/// What the completer has to do once it has completed a cell, outside of every borrow.
#[derive(Debug)]
pub(crate) enum Completed<T> {
    /// Wake the task that submitted, and whoever left a waker.
    Wake(Key, Option<Waker>),
    /// The future is gone: the payload is the completer's to drop.
    Orphan(T),
}

/// An operation between submission and completion. See the module's table.
pub(crate) struct Cell<T> {
    state: AtomicU8,
    waker: UnsafeCell<Option<Waker>>,
    result: UnsafeCell<i32>,
    payload: UnsafeCell<T>,
    task: Key,
}

impl<T> Cell<T> {
    /// Records the result and hands over the payload or the waker.
    ///
    /// # Safety
    ///
    /// `cell` is that of a [`Waiting`]. Called once for it, by the thread of the ring, when the
    /// driver no longer uses the payload's memory.
    pub(crate) unsafe fn complete(cell: NonNull<Self>, result: i32) -> Completed<T> {
        // SAFETY: the future frees the cell only after `DONE`, which is set below, and last.
        let this = unsafe { cell.as_ref() };
        // SAFETY: only the completer writes the result, and the future reads it after `DONE`.
        this.result.with_mut(|slot| unsafe { *slot = result });
        let (task, mut waker) = (this.task, None);
        let mut state = this.state.load(Ordering::Acquire);
        while state != ORPHAN {
            // The future may free the cell from `DONE` on, so its waker is taken before.
            let next = if state == LEFT { TAKING } else { DONE };
            match this.state.compare_exchange(state, next, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) if next == DONE => return Completed::Wake(task, waker),
                Ok(_) => {
                    // SAFETY: `TAKING` gives the slot to the completer.
                    waker = this.waker.with_mut(|slot| unsafe { (*slot).take() });
                    state = TAKING;
                }
                Err(now) => state = now,
            }
        }
        // SAFETY: `ORPHAN` was the future's last word.
        Completed::Orphan(unsafe { open(cell) }.0)
    }
}

/// The payload and the result of a cell that is freed.
///
/// # Safety
///
/// The other party has come to its end, and this is the last use.
unsafe fn open<T>(cell: NonNull<Cell<T>>) -> (T, i32) {
    // SAFETY: it came from a box, and nobody else has it.
    let cell = unsafe { Box::from_raw(cell.as_ptr()) };
    (cell.payload.into_inner(), cell.result.into_inner())
}

/// The future's end of a cell: one of [`take`](Self::take) and [`abandon`](Self::abandon) ends it.
/// Dropped without, the cell leaks.
pub(crate) struct Waiting<T>(NonNull<Cell<T>>);

// SAFETY: the state gives payload and waker to one party at a time (the module's table), so
// sharing a cell moves `T` between threads but never shares it: `T: Send` is enough.
unsafe impl<T: Send> Send for Waiting<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Waiting<T> {}

impl<T> Waiting<T> {
    /// `task` is one of the ring's thread, to be woken whatever wakers are left, or `Key::NONE`.
    pub(crate) fn new(payload: T, task: Key, waker: Option<Waker>) -> Self {
        let state = AtomicU8::new(if waker.is_some() { LEFT } else { WAITING });
        let (waker, result) = (UnsafeCell::new(waker), UnsafeCell::new(0));
        let cell = Cell { state, waker, result, payload: UnsafeCell::new(payload), task };
        Self(NonNull::from(Box::leak(Box::new(cell))))
    }

    /// For the completer, to call [`Cell::complete`] on.
    pub(crate) fn as_ptr(&self) -> NonNull<Cell<T>> {
        self.0
    }

    fn cell(&self) -> &Cell<T> {
        // SAFETY: the completer frees the cell only after `ORPHAN`, and that ends `self`.
        unsafe { self.0.as_ref() }
    }

    /// Shows the payload at its final address, to point a request at it.
    ///
    /// # Safety
    ///
    /// Nobody else has access yet: the request has not been pushed, and no other thread has the
    /// cell. Called at most once.
    pub(crate) unsafe fn with_payload<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
        // SAFETY: exclusive by this function's contract.
        self.cell().payload.with_mut(|payload| f(unsafe { &mut *payload }))
    }

    /// The future's poll: ready to be [taken](Self::take), or the waker left for the completer.
    pub(crate) fn poll(&self, waker: &Waker) -> Poll<()> {
        let cell = self.cell();
        let mut state = cell.state.load(Ordering::Acquire);
        loop {
            match state {
                DONE => return Poll::Ready(()),
                // The waker that was left may be another one; `DONE` is a few instructions away.
                TAKING => {
                    waker.wake_by_ref();
                    return Poll::Pending;
                }
                // An earlier poll panicked in cloning its waker.
                UPDATING => panic!("polled again after a waker had panicked"),
                _ => {}
            }
            let (acquire, release) = (Ordering::Acquire, Ordering::Release);
            if let Err(now) = cell.state.compare_exchange(state, UPDATING, acquire, acquire) {
                state = now;
                continue;
            }
            let old = cell.waker.with_mut(|slot| {
                // SAFETY: `UPDATING` gives the slot to the future.
                let slot = unsafe { &mut *slot };
                match slot {
                    Some(current) if current.will_wake(waker) => None,
                    _ => slot.replace(waker.clone()),
                }
            });
            let returned = cell.state.compare_exchange(UPDATING, LEFT, release, acquire);
            drop(old); // foreign code: only now that the slot is given back
            // Else it is `DONE`: the completer has passed by.
            return if returned.is_ok() { Poll::Pending } else { Poll::Ready(()) };
        }
    }

    /// The payload and the result, once [`poll`](Self::poll) was ready.
    pub(crate) fn take(self) -> (T, i32) {
        let state = self.cell().state.load(Ordering::Acquire);
        assert!(state == DONE, "taken before it was ready");
        // SAFETY: `DONE` was the completer's last word.
        unsafe { open(self.0) }
    }

    /// The future's drop. Some if the operation was complete: payload and result go to the caller.
    pub(crate) fn abandon(self) -> Option<(T, i32)> {
        let done = self.cell().state.swap(ORPHAN, Ordering::AcqRel) == DONE;
        // SAFETY: `DONE` was the completer's last word.
        done.then(|| unsafe { open(self.0) })
    }
}

#[cfg(all(test, not(ringlog_loom)))]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;
    use std::task::Wake;

    #[derive(Default)]
    struct Count(AtomicUsize);
    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn complete<T>(cell: &Waiting<T>, result: i32) -> Completed<T> {
        // SAFETY: the tests complete each cell once and have no kernel.
        unsafe { Cell::complete(cell.as_ptr(), result) }
    }

    #[test]
    fn the_last_waker_polled_with_is_woken_once_and_the_payload_comes_back() {
        let cell = Waiting::new(Box::new(7), Key::NONE, None);
        let (first, last) = (Arc::new(Count::default()), Arc::new(Count::default()));
        assert!(cell.poll(&first.clone().into()).is_pending());
        assert!(cell.poll(&last.clone().into()).is_pending());
        match complete(&cell, 3) {
            Completed::Wake(_, Some(waker)) => waker.wake(),
            other => panic!("{other:?}"),
        }
        assert_eq!(first.0.load(Ordering::Relaxed), 0);
        assert_eq!(last.0.load(Ordering::Relaxed), 1);
        assert!(cell.poll(Waker::noop()).is_ready());
        assert_eq!(cell.take(), (Box::new(7), 3));
    }

    #[test]
    fn an_abandoned_payload_is_freed_by_the_completion_and_not_before() {
        let payload = Arc::new(());
        let cell = Waiting::new(payload.clone(), Key::NONE, Some(Waker::noop().clone()));
        let kernels = Waiting(cell.as_ptr());
        assert!(cell.abandon().is_none());
        assert_eq!(Arc::strong_count(&payload), 2, "the kernel still has it");
        assert!(matches!(complete(&kernels, 0), Completed::Orphan(_)));
        assert_eq!(Arc::strong_count(&payload), 1);
    }

    #[test]
    fn a_result_nobody_took_goes_to_the_one_who_abandons() {
        let cell = Waiting::new("payload", Key::NONE, None);
        assert!(matches!(complete(&cell, 9), Completed::Wake(_, None)));
        assert_eq!(cell.abandon(), Some(("payload", 9)));
    }
}

#[cfg(all(test, ringlog_loom))]
mod loom_tests {
    use super::*;
    use loom::sync::Arc;
    use loom::sync::atomic::AtomicUsize;
    use loom::thread::{JoinHandle, spawn};
    use std::task::Wake;

    #[derive(Default)]
    struct Count(AtomicUsize);
    impl Wake for Count {
        fn wake(self: std::sync::Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// The ring's thread. True if the payload fell to it.
    fn complete<T: 'static>(cell: &Waiting<T>) -> JoinHandle<bool> {
        struct Sent<T>(NonNull<Cell<T>>);
        // SAFETY: as for `Waiting`, whose payloads here are all `Send`.
        unsafe impl<T> Send for Sent<T> {}
        let cell = Sent(cell.as_ptr());
        spawn(move || {
            let cell = cell;
            // SAFETY: completed once, and there is no kernel.
            match unsafe { Cell::complete(cell.0, 5) } {
                Completed::Wake(_, waker) => {
                    waker.into_iter().for_each(Waker::wake);
                    false
                }
                Completed::Orphan(_) => true,
            }
        })
    }

    /// The future's thread and the ring's thread in every order: either a poll sees the result, or
    /// the waker of the last one is woken. Never neither, and the payload moves exactly once.
    #[test]
    fn loom_a_completion_is_seen_or_wakes() {
        for left in [false, true] {
            loom::model(move || {
                let first = std::sync::Arc::new(Count(AtomicUsize::new(0)));
                let second = std::sync::Arc::new(Count(AtomicUsize::new(0)));
                let waker = left.then(|| first.clone().into());
                let cell = Waiting::new(Arc::new(1), Key::NONE, waker);
                let ring = complete(&cell);
                let mut seen = cell.poll(&first.clone().into()).is_ready();
                if !seen {
                    seen = cell.poll(&second.clone().into()).is_ready();
                }
                if seen {
                    assert_eq!((*cell.take().0, ring.join().unwrap()), (1, false));
                    return;
                }
                ring.join().unwrap();
                assert_eq!(second.0.load(Ordering::SeqCst), 1, "lost");
                assert!(cell.poll(Waker::noop()).is_ready());
                assert_eq!(cell.take().1, 5);
            });
        }
    }

    /// Loom's `Arc` tells if the payload leaks.
    #[test]
    fn loom_a_dropped_future_and_the_completion_free_the_payload_once() {
        for (left, polled) in [(false, false), (true, false), (false, true), (true, true)] {
            loom::model(move || {
                let waker = left.then(|| Waker::noop().clone());
                let cell = Waiting::new(Arc::new(1), Key::NONE, waker);
                let ring = complete(&cell);
                if polled {
                    let _ = cell.poll(Waker::noop());
                }
                let mine = cell.abandon().is_some();
                let its = ring.join().unwrap();
                assert!(mine ^ its, "freed by one of the two");
            });
        }
    }
}
