//! [`Owned`]: a value that lives on one executor's thread, with a handle that may go anywhere.
//!
//! This is how a thread owns a partition: the value is not `Send`, needs no lock, and work for it
//! is scheduled to where it is. Invariant: the value is made, used and dropped on its thread only.

use super::context::Context;
use super::handle::{Handle, Unstarted};
use super::join::Task;
use super::mailbox::Message;
use super::slab::Key;
use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::rc::Rc;

/// A handle to a value on an executor's thread. Dropping it drops the value there, after the work
/// scheduled for it has begun; so does stopping the executor.
///
/// ```
/// # use ringlog::rt::{self, Owned, Runtime, RuntimeConfig};
/// # use std::cell::Cell;
/// let runtime = Runtime::start(RuntimeConfig::default())?;
/// let counter = runtime.thread(0).schedule_local(|| async { Owned::new(Cell::new(0)) });
/// let counter: Owned<Cell<u32>> = rt::block_on(counter)?;
/// let add = |n| counter.schedule(move |c| async move { c.replace(c.get() + n) });
/// assert_eq!(rt::block_on(add(5)), Ok(0));
/// assert_eq!(rt::block_on(add(1)), Ok(5));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Owned<T> {
    home: Handle,
    key: Key,
    /// Names a `T` without having one: `Send` and `Sync` whatever `T` is.
    names: PhantomData<fn() -> T>,
}

impl<T: 'static> Owned<T> {
    /// Gives the value to the executor that runs the caller.
    ///
    /// # Panics
    ///
    /// Outside of an executor.
    pub fn new(value: T) -> Self {
        Self::from_rc(Rc::new(value))
    }

    /// [`new`](Self::new) for a value that is shared on its thread already.
    ///
    /// # Panics
    ///
    /// Outside of an executor.
    pub fn from_rc(value: Rc<T>) -> Self {
        let context = Context::current().expect("Owned was made outside of an executor");
        let key = context.owned().borrow_mut().insert(value);
        Self { home: context.handle().clone(), key, names: PhantomData }
    }

    /// The thread that the value lives on.
    pub fn home(&self) -> &Handle {
        &self.home
    }

    /// Runs a task on the value's thread, as [`Handle::schedule_local`] does. Tasks scheduled by
    /// one thread begin in the order of their scheduling.
    pub fn schedule<M, F>(&self, work: M) -> Task<F::Output>
    where
        M: FnOnce(Rc<T>) -> F + Send + 'static,
        F: Future + 'static,
        F::Output: Send,
    {
        let (task, unstarted) = self.prepare(work);
        drop(unstarted.start());
        task
    }

    /// [`schedule`](Self::schedule) in two steps: the task is accepted now, and sent later.
    pub(crate) fn prepare<M, F>(&self, work: M) -> (Task<F::Output>, Unstarted)
    where
        M: FnOnce(Rc<T>) -> F + Send + 'static,
        F: Future + 'static,
        F::Output: Send,
    {
        let key = self.key;
        self.home.prepare(move || {
            // Looked up as the message is read, so before a `Release` that was posted after it.
            let value = Context::current()
                .and_then(|context| context.owned().borrow_mut().get_mut(key).cloned())
                .and_then(|value| value.downcast::<T>().ok());
            async move {
                let Some(value) = value else { unreachable!("the handle keeps its value") };
                work(value).await
            }
        })
    }
}

impl<T> Drop for Owned<T> {
    fn drop(&mut self) {
        // Refused only by an executor that is closing, and drops everything itself.
        drop(self.home.mailbox().post(Message::Release(self.key)));
    }
}

impl<T> fmt::Debug for Owned<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Owned").field("home", &self.home).finish_non_exhaustive()
    }
}
