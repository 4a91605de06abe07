//! An event that happens once and that any number of futures wait for.
//!
//! Invariant: after `set`, every waiter has been woken, and every later one resolves at once.

use super::slab::{Key, Slab};
use super::sync::{Mutex, lock};
use std::future::poll_fn;
use std::task::{Poll, Waker};

struct State {
    set: bool,
    waiters: Slab<Waker>,
}

/// See the module.
pub(crate) struct Event(Mutex<State>);

impl Event {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(State { set: false, waiters: Slab::new() }))
    }

    pub(crate) fn set(&self) {
        let mut state = lock(&self.0);
        state.set = true;
        let waiters = std::mem::replace(&mut state.waiters, Slab::new());
        drop(state);
        waiters.into_values().for_each(Waker::wake);
    }

    pub(crate) async fn wait(&self) {
        let mut waiter = Waiter { event: self, key: Key::NONE };
        poll_fn(|cx| {
            let mut state = lock(&self.0);
            if state.set {
                return Poll::Ready(());
            }
            let stale = match state.waiters.get_mut(waiter.key) {
                Some(waker) if waker.will_wake(cx.waker()) => None,
                Some(waker) => Some(std::mem::replace(waker, cx.waker().clone())),
                None => {
                    waiter.key = state.waiters.insert(cx.waker().clone());
                    None
                }
            };
            drop(state);
            drop(stale); // foreign code: outside the lock
            Poll::Pending
        })
        .await;
    }
}

/// Takes the waker out again when its future is dropped.
struct Waiter<'a> {
    event: &'a Event,
    key: Key,
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        let waker = lock(&self.event.0).waiters.remove(self.key);
        drop(waker);
    }
}
