//! An event that happens once and that any number of futures wait for.
//!
//! Invariant: after `set`, every waiter has been woken, and every later one resolves at once.

use super::context::contain;
use super::slab::{Key, Slab};
use super::sync::atomic::{AtomicBool, Ordering};
use super::sync::{Mutex, lock};
use std::future::poll_fn;
use std::task::{Poll, Waker};

#[derive(Debug)]
struct State {
    set: bool,
    waiters: Slab<Waker>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Event {
    state: Mutex<State>,
    /// As in the state, for those who need not lock.
    set: AtomicBool,
}

impl Event {
    pub(crate) fn new() -> Self {
        let state = State { set: false, waiters: Slab::new() };
        Self { state: Mutex::new(state), set: AtomicBool::new(false) }
    }

    pub(crate) fn set(&self) {
        self.set.store(true, Ordering::Release);
        let mut state = lock(&self.state);
        state.set = true;
        let waiters = std::mem::replace(&mut state.waiters, Slab::new());
        drop(state);
        for waker in waiters.into_values() {
            contain(|| waker.wake());
        }
    }

    pub(crate) async fn wait(&self) {
        let mut waiter = Waiter { event: self, key: Key::NONE, waker: None };
        poll_fn(|cx| {
            if self.set.load(Ordering::Acquire) {
                return Poll::Ready(());
            }
            // A loop that waits for this beside each of its operations locks nothing.
            if waiter.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                return Poll::Pending;
            }
            // Foreign code, so no lock is held: two clones here, two drops below.
            let (registered, known) = (cx.waker().clone(), cx.waker().clone());
            let mut state = lock(&self.state);
            if state.set {
                return Poll::Ready(());
            }
            let stale = state.waiters.remove(waiter.key);
            waiter.key = state.waiters.insert(registered);
            drop(state);
            drop((stale, waiter.waker.replace(known)));
            Poll::Pending
        })
        .await;
    }
}

/// Takes the waker out again when its future is dropped.
struct Waiter<'a> {
    event: &'a Event,
    key: Key,
    /// The one that is registered under `key`.
    waker: Option<Waker>,
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        if self.waker.is_some() {
            let waker = lock(&self.event.state).waiters.remove(self.key);
            drop(waker);
        }
    }
}
