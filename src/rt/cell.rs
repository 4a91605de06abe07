//! The cell that holds an operation from its submission to its completion.
//!
//! Two parties share a cell: the in-flight table of the ring's thread, which completes it once, and
//! the future, which may be polled and dropped on any thread. The payload (buffers, descriptor,
//! addresses) lives here and not in the future, so that forgetting, moving or dropping the future
//! can never pull memory from under the kernel.
//!
//! | State | payload belongs to | waker slot belongs to |
//! |---|---|---|
//! | `WAITING` | the kernel | the completer, unless the future claims it |
//! | `UPDATING` | the kernel | the future, for a few instructions |
//! | `ORPHAN` | the kernel, then the completer | nobody: it is empty |
//! | `DONE` | the future, or the completer if it found `ORPHAN` | the future |
//!
//! Invariant: exactly one party sees itself as the owner of payload and waker, since each change of
//! state is one atomic read-modify-write. Nothing here knows `io_uring`: loom and Miri run it as it
//! is.

#![expect(unsafe_code, reason = "shares a payload between the kernel and a future")]

use super::sync::UnsafeCell;
use super::sync::atomic::{AtomicU8, Ordering};
use std::task::{Poll, Waker};

const WAITING: u8 = 0;
const UPDATING: u8 = 1;
const DONE: u8 = 2;
const ORPHAN: u8 = 3;

/// What the completer has to do once it has completed a cell, outside of every borrow.
#[derive(Debug)]
pub(crate) enum Completed<T> {
    /// Wake the future, if it left a waker.
    Wake(Option<Waker>),
    /// The future is gone: the payload is the completer's to drop.
    Orphan(T),
}

/// An operation between submission and completion. See the module's table.
#[derive(Debug)]
pub(crate) struct Cell<T> {
    state: AtomicU8,
    waker: UnsafeCell<Option<Waker>>,
    result: UnsafeCell<i32>,
    payload: UnsafeCell<Option<T>>,
}

// SAFETY: the state gives payload and waker to one party at a time (the module's table), so
// sharing a cell moves `T` between threads but never shares it: `T: Send` is enough.
unsafe impl<T: Send> Send for Cell<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Cell<T> {}

impl<T> Cell<T> {
    pub(crate) fn new(payload: T, waker: Option<Waker>) -> Self {
        Self {
            state: AtomicU8::new(WAITING),
            waker: UnsafeCell::new(waker),
            result: UnsafeCell::new(0),
            payload: UnsafeCell::new(Some(payload)),
        }
    }

    /// Shows the payload at its final address, to point a request at it.
    ///
    /// # Safety
    ///
    /// Nobody else has access yet: the request has not been pushed, and no other thread has the
    /// cell. Called at most once.
    pub(crate) unsafe fn with_payload<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
        self.payload.with_mut(|payload| {
            // SAFETY: exclusive by this function's contract.
            let payload = unsafe { &mut *payload };
            f(payload.as_mut().expect("the payload is there until completion"))
        })
    }

    /// Records the result and hands over the payload or the waker.
    ///
    /// # Safety
    ///
    /// Called once, by the thread of the ring, when the driver no longer uses the payload's memory.
    pub(crate) unsafe fn complete(&self, result: i32) -> Completed<T> {
        // SAFETY: only the completer writes the result, and the future reads it after `DONE`.
        self.result.with_mut(|slot| unsafe { *slot = result });
        match self.state.swap(DONE, Ordering::AcqRel) {
            // SAFETY: `WAITING` gave the slot to the completer, and `DONE` keeps the future from it
            // (a future that drops the cell later frees the empty slot).
            WAITING => Completed::Wake(self.waker.with_mut(|slot| unsafe { (*slot).take() })),
            // The future holds the slot and finds `DONE` when it wants to give it back.
            UPDATING => Completed::Wake(None),
            _ => Completed::Orphan(self.take_payload()),
        }
    }

    /// The future's poll: the payload and the result, or the waker left for the completer.
    pub(crate) fn poll(&self, waker: &Waker) -> Poll<(T, i32)> {
        // The load spares the usual case, a poll after the completion, a locked instruction.
        let claimed = self.state.load(Ordering::Acquire) == WAITING
            && self
                .state
                .compare_exchange(WAITING, UPDATING, Ordering::Acquire, Ordering::Acquire)
                .is_ok();
        if claimed {
            let old = self.waker.with_mut(|slot| {
                // SAFETY: `UPDATING` gives the slot to the future.
                let slot = unsafe { &mut *slot };
                match slot {
                    Some(current) if current.will_wake(waker) => None,
                    _ => slot.replace(waker.clone()),
                }
            });
            let returned = self.state.compare_exchange(
                UPDATING,
                WAITING,
                Ordering::Release,
                Ordering::Acquire,
            );
            drop(old); // foreign code: only now that the slot is given back
            if returned.is_ok() {
                return Poll::Pending;
            }
        }
        // Not `WAITING` and not given back: the completer was here. Unless an earlier poll panicked
        // in cloning its waker: then the payload is still the kernel's.
        let state = self.state.load(Ordering::Acquire);
        assert!(state == DONE, "polled again after a waker had panicked");
        // SAFETY: `DONE` was read with acquire: the result is written and not written again.
        let result = self.result.with(|result| unsafe { *result });
        Poll::Ready((self.take_payload(), result))
    }

    /// The future's drop. Some if the operation was complete: payload and result go to the caller.
    pub(crate) fn abandon(&self) -> Option<(T, i32)> {
        if self.state.swap(ORPHAN, Ordering::AcqRel) == DONE {
            // SAFETY: as in `poll`.
            let result = self.result.with(|result| unsafe { *result });
            return Some((self.take_payload(), result));
        }
        // SAFETY: an `ORPHAN`'s slot is not looked at by the completer, so it is the future's.
        drop(self.waker.with_mut(|slot| unsafe { (*slot).take() }));
        None
    }

    /// Only for the owner by the module's table, once: each caller above has just become it.
    fn take_payload(&self) -> T {
        // SAFETY: see above.
        let payload = self.payload.with_mut(|payload| unsafe { (*payload).take() });
        payload.expect("the payload changes hands once")
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

    fn complete<T>(cell: &Cell<T>, result: i32) -> Completed<T> {
        // SAFETY: the tests complete each cell once and have no kernel.
        unsafe { cell.complete(result) }
    }

    #[test]
    fn the_last_waker_polled_with_is_woken_once_and_the_payload_comes_back() {
        let cell = Cell::new(Box::new(7), None);
        let (first, last) = (Arc::new(Count::default()), Arc::new(Count::default()));
        assert!(cell.poll(&first.clone().into()).is_pending());
        assert!(cell.poll(&last.clone().into()).is_pending());
        match complete(&cell, 3) {
            Completed::Wake(Some(waker)) => waker.wake(),
            other => panic!("{other:?}"),
        }
        assert_eq!(first.0.load(Ordering::Relaxed), 0);
        assert_eq!(last.0.load(Ordering::Relaxed), 1);
        assert_eq!(cell.poll(Waker::noop()), Poll::Ready((Box::new(7), 3)));
    }

    #[test]
    fn an_abandoned_payload_is_freed_by_the_completion_and_not_before() {
        let payload = Arc::new(());
        let cell = Cell::new(payload.clone(), Some(Waker::noop().clone()));
        assert!(cell.abandon().is_none());
        assert_eq!(Arc::strong_count(&payload), 2, "the kernel still has it");
        assert!(matches!(complete(&cell, 0), Completed::Orphan(_)));
        assert_eq!(Arc::strong_count(&payload), 1);
    }

    #[test]
    fn a_result_nobody_took_goes_to_the_one_who_abandons() {
        let cell = Cell::new("payload", None);
        assert!(matches!(complete(&cell, 9), Completed::Wake(None)));
        assert_eq!(cell.abandon(), Some(("payload", 9)));
    }
}

#[cfg(all(test, ringlog_loom))]
mod loom_tests {
    use super::*;
    use loom::sync::Arc;
    use loom::sync::atomic::AtomicUsize;
    use std::task::Wake;

    struct Count(AtomicUsize);
    impl Wake for Count {
        fn wake(self: std::sync::Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// The future's thread and the ring's thread in every order: either the poll sees the result,
    /// or the waker that it left is woken. Never neither, and the payload moves exactly once.
    #[test]
    fn loom_a_completion_is_seen_or_wakes() {
        loom::model(|| {
            let cell = Arc::new(Cell::new(Box::new(1), None));
            let ring = {
                let cell = cell.clone();
                // SAFETY: completed once.
                loom::thread::spawn(move || match unsafe { cell.complete(5) } {
                    Completed::Wake(Some(waker)) => waker.wake(),
                    Completed::Wake(None) => {}
                    Completed::Orphan(_) => unreachable!(),
                })
            };
            let first = std::sync::Arc::new(Count(AtomicUsize::new(0)));
            let second = std::sync::Arc::new(Count(AtomicUsize::new(0)));
            let mut seen = cell.poll(&first.clone().into()).is_ready();
            if !seen {
                seen = cell.poll(&second.clone().into()).is_ready();
            }
            ring.join().unwrap();
            let woken = first.0.load(Ordering::SeqCst) + second.0.load(Ordering::SeqCst);
            assert!(seen || woken == 1, "lost");
            if !seen {
                assert_eq!(cell.poll(Waker::noop()), Poll::Ready((Box::new(1), 5)));
            }
        });
    }

    #[test]
    fn loom_a_dropped_future_and_the_completion_free_the_payload_once() {
        loom::model(|| {
            let cell = Arc::new(Cell::new(Box::new(1), Some(Waker::noop().clone())));
            let ring = {
                let cell = cell.clone();
                // SAFETY: completed once.
                loom::thread::spawn(move || {
                    matches!(unsafe { cell.complete(5) }, Completed::Orphan(_))
                })
            };
            let mine = cell.abandon().is_some();
            let its = ring.join().unwrap();
            assert!(mine ^ its, "freed by one of the two");
        });
    }
}
