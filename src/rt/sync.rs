//! The synchronisation types that loom can take over.
//!
//! Under `--cfg ringlog_loom` they are loom's, so that every interleaving of the op cell, the
//! mailbox and the task header can be explored; otherwise they are the standard library's.
//! Invariant: what loom explores is the code that runs, with nothing but these types exchanged.

#[cfg(not(ringlog_loom))]
pub(crate) use std::sync::{Mutex, MutexGuard, atomic};

#[cfg(ringlog_loom)]
pub(crate) use loom::sync::{Mutex, MutexGuard, atomic};

#[cfg(ringlog_loom)]
pub(crate) use loom::cell::UnsafeCell;

/// Locks, whoever panicked before: no critical section of this crate runs foreign code or leaves
/// its data half changed, so a poisoned lock says nothing.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// `std::cell::UnsafeCell` with the closure interface of loom's.
#[cfg(not(ringlog_loom))]
#[derive(Debug)]
pub(crate) struct UnsafeCell<T>(std::cell::UnsafeCell<T>);

#[cfg(not(ringlog_loom))]
impl<T> UnsafeCell<T> {
    pub(crate) const fn new(value: T) -> Self {
        Self(std::cell::UnsafeCell::new(value))
    }

    pub(crate) fn into_inner(self) -> T {
        self.0.into_inner()
    }

    pub(crate) fn with_mut<R>(&self, f: impl FnOnce(*mut T) -> R) -> R {
        f(self.0.get())
    }
}
