//! What an executor's thread owns: its tasks, its operations in flight, its driver.
//!
//! The [`Executor`](super::Executor) decides when; this does one step at a time. Invariant: no
//! `RefCell` is borrowed while foreign code runs. Polls, wakers and drops of futures and buffers
//! all come back here to spawn, submit and wake, so each borrow ends before any of them.

#![expect(unsafe_code, reason = "completes cells")]

use super::driver::{Completion, Driver, Request, Unpark};
use super::handle::{Handle, Live, Shared};
use super::join::{Task, join};
use super::mailbox::{Mailbox, Message, Phase};
use super::op::InFlight;
use super::slab::{Key, Slab};
use super::task::{Header, LocalFuture, SendFuture};
use std::any::Any;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, Weak};
use std::task::{Context as TaskContext, Poll, RawWakerVTable, Waker};
use std::time::Instant;

thread_local! {
    static CURRENT: RefCell<Option<Rc<Context>>> = const { RefCell::new(None) };
}

/// At most so many polls between two looks at the driver and the mailbox, so that tasks that never
/// rest cannot starve either.
const POLLS_PER_TURN: usize = 256;

enum Body {
    Local(LocalFuture),
    Send(SendFuture),
}

/// A task at home. Fields drop in order: the task counts as live until its future is gone.
struct Resident {
    body: Body,
    waker: Waker,
    header: Arc<Header>,
    live: Live,
}

/// A task's place in the table.
struct Slot {
    /// `None` while it is being polled, and always for the future of a `block_on`.
    resident: Option<Resident>,
    /// It is in the ready queue, where each task is but once.
    queued: bool,
}

struct Hop {
    target: usize,
    /// Of every future that asked: each must hear of the arrival, wherever it leads.
    wakers: Vec<Waker>,
}

/// What is being polled.
#[derive(Clone, Copy)]
enum Running {
    Other,
    /// It may hop.
    SendTask,
    /// It stays here, so its key does for its waker, which is made of these two.
    LocalTask(Key, *const (), &'static RawWakerVTable),
}

pub(crate) struct Context {
    handle: Handle,
    shared: Arc<Shared>,
    index: usize,
    tasks: RefCell<Slab<Slot>>,
    /// Tasks of the table. A key of one that has left it finds nothing.
    ready: RefCell<VecDeque<Key>>,
    in_flight: RefCell<Slab<InFlight>>,
    driver: RefCell<Box<dyn Driver>>,
    owned: RefCell<Slab<Rc<dyn Any>>>,
    /// See [`outlive_operations`].
    outliving: RefCell<Vec<Weak<dyn Any + Send + Sync>>>,
    running: Cell<Running>,
    hop: RefCell<Option<Hop>>,
    /// Whether the future of a `block_on` is to be polled.
    root_woken: Cell<bool>,
    /// As of the last look into the mailbox.
    phase: Cell<Phase>,
    messages: RefCell<Vec<Message>>,
    done: RefCell<Vec<Completion>>,
}

impl Drop for Context {
    fn drop(&mut self) {
        // The executor empties the table before. If a panic kept it from that, the kernel may still
        // write to what is in it: leak it, with the driver.
        if self.in_flight.get_mut().len() > 0 {
            std::mem::forget(self.in_flight.replace(Slab::new()));
            std::mem::forget(self.driver.replace(Box::new(Gone)));
        }
    }
}

/// In the place of a driver that was leaked.
struct Gone;

// SAFETY: it is given nothing to do.
unsafe impl Driver for Gone {
    fn push(&mut self, _: u64, _: Request) {}

    fn enter(&mut self, _: bool, _: &mut Vec<Completion>) -> io::Result<()> {
        Err(io::ErrorKind::NotConnected.into())
    }

    fn ready(&mut self) -> bool {
        false
    }

    fn unparker(&self) -> Arc<dyn Unpark> {
        unreachable!("asked for when an executor is made")
    }

    fn now(&self) -> Instant {
        Instant::now()
    }
}

/// Makes a context the thread's current one until it is dropped.
pub(crate) struct Entered {
    before: Option<Rc<Context>>,
}

impl Drop for Entered {
    fn drop(&mut self) {
        let before = self.before.take();
        // The context may be the last reference: let go of the cell before dropping it.
        let context = CURRENT.try_with(|current| current.replace(before));
        drop(context);
    }
}

/// Runs foreign code that must not unwind into the executor's loop. The panic has been printed by
/// the panic hook; its payload is leaked, since dropping it could panic again.
pub(crate) fn contain(f: impl FnOnce()) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(f)) {
        std::mem::forget(panic);
    }
}

impl Context {
    pub(crate) fn new(shared: Arc<Shared>, index: usize, driver: Box<dyn Driver>) -> Rc<Self> {
        shared.mailbox(index).attach(driver.unparker());
        Rc::new(Self {
            handle: Handle::new(Arc::clone(&shared), index),
            shared,
            index,
            tasks: RefCell::new(Slab::new()),
            ready: RefCell::default(),
            in_flight: RefCell::new(Slab::new()),
            driver: RefCell::new(driver),
            owned: RefCell::new(Slab::new()),
            outliving: RefCell::default(),
            running: Cell::new(Running::Other),
            hop: RefCell::default(),
            root_woken: Cell::new(false),
            phase: Cell::new(Phase::Open),
            messages: RefCell::default(),
            done: RefCell::default(),
        })
    }

    /// The context whose executor runs on this thread now.
    pub(crate) fn current() -> Option<Rc<Context>> {
        // None also while the thread is being torn down, when wakers may still come by.
        CURRENT.try_with(|current| current.borrow().clone()).ok().flatten()
    }

    /// As [`current`](Self::current), without counting references. `f` runs no foreign code.
    pub(crate) fn with_current<R>(f: impl FnOnce(Option<&Context>) -> R) -> R {
        let mut f = Some(f);
        let mut call = |context: Option<&Context>| f.take().map(|f| f(context));
        let done = CURRENT.try_with(|current| call(current.borrow().as_deref()));
        match done.unwrap_or_else(|_| call(None)) {
            Some(result) => result,
            None => unreachable!("called once, with a context or without"),
        }
    }

    /// # Panics
    ///
    /// If an executor runs on this thread already: the inner one would stop the outer one.
    pub(crate) fn enter(self: &Rc<Self>) -> Entered {
        assert!(
            Self::current().is_none(),
            "an executor was run inside a task of another one, which would stop its thread: \
             await the future instead"
        );
        self.enter_to_close()
    }

    /// Also inside another executor's task: one may be dropped there.
    pub(crate) fn enter_to_close(self: &Rc<Self>) -> Entered {
        let before = CURRENT.try_with(|current| current.replace(Some(Rc::clone(self))));
        Entered { before: before.ok().flatten() }
    }

    pub(crate) fn is(&self, shared: &Arc<Shared>, index: usize) -> bool {
        self.index == index && self.shares(shared)
    }

    pub(crate) fn shares(&self, shared: &Arc<Shared>) -> bool {
        Arc::ptr_eq(&self.shared, shared)
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    pub(crate) fn handle(&self) -> &Handle {
        &self.handle
    }

    pub(crate) fn mailbox(&self) -> &Mailbox {
        self.shared.mailbox(self.index)
    }

    pub(crate) fn driver(&self) -> &RefCell<Box<dyn Driver>> {
        &self.driver
    }

    // ---- operations -------------------------------------------------------------------------

    /// Takes the cell into the table, and only then shows its request to the driver.
    pub(crate) fn submit(&self, cell: InFlight, request: Request) -> Key {
        let key = self.in_flight.borrow_mut().insert(cell);
        self.driver.borrow_mut().push(key.0, request);
        key
    }

    /// Cancels an operation that nobody waits for.
    pub(crate) fn cancel_quietly(&self, key: Key) {
        if self.in_flight.borrow_mut().get_mut(key).is_some() {
            // Its completion carries a key that is in no table, and is passed over.
            self.driver.borrow_mut().push(Key::NONE.0, Request::Cancel { token: key.0 });
        }
    }

    /// Cancels all that may be; the rest ends by itself.
    pub(crate) fn cancel_all(&self) {
        let keys = self.in_flight.borrow().keys();
        for key in keys {
            if self.in_flight.borrow_mut().get_mut(key).is_some_and(|cell| cell.may_cancel) {
                self.cancel_quietly(key);
            }
        }
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.borrow().len()
    }

    /// Submits what is queued, waits if told to, and completes what is done.
    pub(crate) fn io(&self, wait: bool) -> io::Result<()> {
        let mut done = self.done.take();
        let entered = self.driver.borrow_mut().enter(wait, &mut done);
        let mut completions = done.drain(..);
        // Once around, unless a waker or a buffer's drop panics: then the rest is taken up again.
        while completions.len() > 0 {
            contain(|| {
                for Completion { token, result } in completions.by_ref() {
                    let cell = self.in_flight.borrow_mut().remove(Key(token));
                    // SAFETY: the driver has handed out the completion, so it is done with the
                    // memory; the key is out of the table, so this happens once.
                    let Some((task, waker)) = cell.map(|cell| unsafe { cell.complete(result) })
                    else {
                        continue;
                    };
                    self.wake(task);
                    if let Some(waker) = waker {
                        waker.wake();
                    }
                }
            });
        }
        drop(completions);
        self.done.replace(done);
        entered
    }

    // ---- values owned by the thread ---------------------------------------------------------

    pub(crate) fn owned(&self) -> &RefCell<Slab<Rc<dyn Any>>> {
        &self.owned
    }

    // ---- tasks ------------------------------------------------------------------------------

    pub(crate) fn spawn<F: Future + 'static>(&self, future: F) -> Task<F::Output> {
        let header = Header::new(Arc::clone(&self.shared), self.index);
        let (task, future) = join(&header, |finish| Box::pin(finish.run(future)));
        self.admit(header, Body::Local(future), Live::new(&self.shared));
        task
    }

    fn admit(&self, header: Arc<Header>, body: Body, live: Live) {
        let waker = Waker::from(Arc::clone(&header));
        let place = Arc::clone(&header);
        self.give_key(&place, Some(Resident { body, waker, header, live }));
    }

    /// Puts a task into the table, and has it polled.
    fn give_key(&self, header: &Header, resident: Option<Resident>) -> Key {
        let key = self.tasks.borrow_mut().insert(Slot { resident, queued: false });
        header.set_key(key);
        self.wake(key);
        key
    }

    /// Has the task of this key polled, if it is here.
    pub(crate) fn wake(&self, key: Key) {
        if let Some(slot) = self.tasks.borrow_mut().get_mut(key)
            && !std::mem::replace(&mut slot.queued, true)
        {
            self.ready.borrow_mut().push_back(key);
        }
    }

    pub(crate) fn has_ready(&self) -> bool {
        !self.ready.borrow().is_empty()
    }

    /// Asks for the task that is being polled to be moved. False if it may not leave.
    pub(crate) fn ask_to_hop(&self, target: usize, waker: &Waker) -> bool {
        let may = matches!(self.running.get(), Running::SendTask);
        if may {
            let waker = waker.clone();
            let mut hop = self.hop.borrow_mut();
            let hop = hop.get_or_insert_with(|| Hop { target, wakers: Vec::with_capacity(1) });
            hop.target = target;
            hop.wakers.push(waker);
        }
        may
    }

    /// The key to [wake](Self::wake) by, if this is the waker of the task that is being polled and
    /// that stays here: whoever waits on this thread need not clone the waker.
    pub(crate) fn resting_task(&self, waker: &Waker) -> Option<Key> {
        match self.running.get() {
            Running::LocalTask(key, data, vtable) => {
                (waker.data() == data && std::ptr::eq(waker.vtable(), vtable)).then_some(key)
            }
            Running::Other | Running::SendTask => None,
        }
    }

    /// Polls what stays on this thread, under its key.
    pub(crate) fn poll_local<F>(
        &self,
        key: Key,
        future: Pin<&mut F>,
        waker: &Waker,
    ) -> Poll<F::Output>
    where
        F: Future + ?Sized,
    {
        self.running.set(Running::LocalTask(key, waker.data(), waker.vtable()));
        let poll = future.poll(&mut TaskContext::from_waker(waker));
        self.running.set(Running::Other);
        poll
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.phase.get() == Phase::Closed
    }

    /// Does what the mailbox says.
    pub(crate) fn take_messages(&self) {
        let mut messages = self.messages.take();
        self.phase.set(self.mailbox().take(&mut messages));
        for message in messages.drain(..) {
            match message {
                // Else it hopped while this was under way, and is polled where it arrives.
                Message::Run(header) if header.home() == self.index => self.wake(header.key()),
                Message::Run(_) => {}
                Message::Arrive(header, future, live, wakers) => {
                    self.arrive(header, future, live, wakers);
                }
                Message::Start(header, make, live) => {
                    // Only moves the closure into a future: no foreign code runs yet.
                    self.admit(header, Body::Local(make()), live);
                }
                Message::Cancel(key) => self.cancel_quietly(key),
                Message::Release(key) => {
                    let value = self.owned.borrow_mut().remove(key);
                    contain(|| drop(value));
                }
            }
        }
        self.messages.replace(messages);
    }

    /// Polls what is ready now, within the budget; what becomes ready meanwhile waits its turn.
    pub(crate) fn run_ready(&self) {
        let polls = self.ready.borrow().len().min(POLLS_PER_TURN);
        for _ in 0..polls {
            let Some(key) = self.ready.borrow_mut().pop_front() else {
                return;
            };
            self.run(key);
        }
    }

    fn run(&self, key: Key) {
        let mut tasks = self.tasks.borrow_mut();
        let Some(slot) = tasks.get_mut(key) else { return };
        slot.queued = false;
        let Some(mut resident) = slot.resident.take() else {
            return self.root_woken.set(true);
        };
        drop(tasks);
        resident.header.scheduled.clear();
        if resident.header.is_cancelled() {
            self.tasks.borrow_mut().remove(key);
            return contain(|| drop(resident));
        }
        let poll = self.poll(key, &mut resident);
        match (poll, self.hop.take()) {
            (Some(Poll::Pending), None) => {
                if let Some(slot) = self.tasks.borrow_mut().get_mut(key) {
                    slot.resident = Some(resident);
                }
            }
            (Some(Poll::Pending), Some(hop)) => {
                self.tasks.borrow_mut().remove(key);
                self.depart(resident, hop);
            }
            _ => {
                self.tasks.borrow_mut().remove(key);
                contain(|| drop(resident));
            }
        }
    }

    /// None if it panicked. (The task's own panics are caught further in and go to its awaiter;
    /// what comes here was thrown by a drop on the way out.)
    fn poll(&self, key: Key, Resident { body, waker, .. }: &mut Resident) -> Option<Poll<()>> {
        let mut poll = None;
        contain(|| {
            poll = Some(match body {
                Body::Local(future) => self.poll_local(key, future.as_mut(), waker),
                Body::Send(future) => {
                    self.running.set(Running::SendTask);
                    future.as_mut().poll(&mut TaskContext::from_waker(waker))
                }
            });
        });
        self.running.set(Running::Other);
        poll
    }

    fn depart(&self, task: Resident, hop: Hop) {
        let Resident { body: Body::Send(future), header, live, .. } = task else {
            unreachable!("only these ask to hop")
        };
        // Its arrival is a wake: those that come until its poll there are merged into it, and those
        // that are still under way to here are passed over. Else they would pile up behind a task
        // that hops on and on. The poll sees what their wakers wrote, since it clears this bit.
        header.scheduled.claim();
        header.set_home(hop.target);
        let message = Message::Arrive(header, future, live, hop.wakers);
        let refused = self.shared.mailbox(hop.target).post(message);
        if let Err(Message::Arrive(header, future, live, wakers)) = refused {
            header.set_home(self.index);
            self.arrive(header, future, live, wakers);
        }
    }

    fn arrive(&self, header: Arc<Header>, future: SendFuture, live: Live, wakers: Vec<Waker>) {
        self.admit(header, Body::Send(future), live);
        for waker in wakers {
            contain(|| waker.wake());
        }
    }

    // ---- the future of a block_on -----------------------------------------------------------

    /// Has it polled, and every time its header is woken, until [`end_root`](Self::end_root).
    pub(crate) fn begin_root(&self, header: &Header) -> Key {
        self.give_key(header, None)
    }

    pub(crate) fn end_root(&self, key: Key) {
        self.tasks.borrow_mut().remove(key);
        self.root_woken.set(false);
        self.running.set(Running::Other); // also if its poll panicked
    }

    pub(crate) fn take_root_woken(&self) -> bool {
        self.root_woken.replace(false)
    }

    // ---- the end ----------------------------------------------------------------------------

    /// What is to outlive the operations in flight, if it is still there.
    pub(crate) fn take_outliving(&self) -> Vec<Arc<dyn Any + Send + Sync>> {
        self.outliving.take().iter().filter_map(Weak::upgrade).collect()
    }

    /// Drops every task, message and owned value, and what their drops leave behind.
    /// The mailbox is closed. Returns how many tasks were not done.
    pub(crate) fn drop_everything(&self) -> usize {
        let mut dropped = 0;
        loop {
            let mut messages = Vec::new();
            self.mailbox().take(&mut messages);
            let ready = self.ready.take();
            let tasks = self.tasks.replace(Slab::new());
            let owned = self.owned.replace(Slab::new());
            let last = messages.len() + ready.len() + tasks.len() + owned.len() == 0;
            for message in messages {
                contain(|| drop(message));
            }
            for task in tasks.into_values().filter_map(|slot| slot.resident) {
                dropped += 1;
                contain(|| drop(task));
            }
            for value in owned.into_values() {
                contain(|| drop(value));
            }
            if last {
                return dropped;
            }
        }
    }
}

/// If the executor that runs the caller is dropped while this value is there, the value stays until
/// the operations in flight have ended; if they do not end, for ever. For what keeps others away from
/// the files that operations write to.
///
/// # Panics
///
/// Outside of an executor.
pub(crate) fn outlive_operations(value: &Arc<dyn Any + Send + Sync>) {
    let context = Context::current().expect("called by a task");
    let mut outliving = context.outliving.borrow_mut();
    outliving.retain(|value| value.strong_count() > 0);
    outliving.push(Arc::downgrade(value));
}
