//! The mailbox of a thread: what other threads give it to do, and how they wake it.
//!
//! A mutex around a vector that is swapped out whole: measured against lock-free stacks it is
//! faster at every load that matters here, and the wake protocol falls out of the lock.
//!
//! Invariant (no wake is lost): the owner says "parked" under the same lock under which producers
//! push. So either the owner sees the message and does not park, or the producer sees "parked" and
//! unparks. A producer that finds the owner awake, or another wake already under way, makes no
//! system call.

use super::driver::Unpark;
use super::sync::atomic::{AtomicBool, Ordering};
use super::sync::{Mutex, lock};
use super::task::{Header, LocalFuture, SendFuture};
use super::{handle::Live, slab::Key};
use std::sync::Arc;
use std::task::Waker;

/// What one thread can ask of another.
pub(crate) enum Message {
    /// Poll this task. It may have moved on: then it is polled where it arrives.
    Run(Arc<Header>),
    /// Take this task in: newly scheduled, or hopping here, then with the wakers of its hop.
    Arrive(Arc<Header>, SendFuture, Live, Vec<Waker>),
    /// Make the future of this task, which may not leave its thread, and take it in.
    Start(Arc<Header>, Box<dyn FnOnce() -> LocalFuture + Send>, Live),
    /// Cancel an operation whose future was dropped elsewhere.
    Cancel(Key),
    /// Drop a value that this thread owns for an `Owned` handle.
    Release(Key),
}

/// How far an executor has come in stopping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
pub(crate) enum Phase {
    /// Takes everything.
    Open,
    /// Takes new tasks only from the tasks it still has to finish.
    Draining,
    /// Takes nothing any more.
    Closed,
}

struct Inbox<M> {
    messages: Vec<M>,
    parked: bool,
    phase: Phase,
    unparker: Option<Arc<dyn Unpark>>,
}

/// Multi-producer, single-consumer. Its length is bounded by what the producers hold: a task has
/// at most one message under way, and callers that offer new work bound it themselves.
pub(crate) struct Mailbox<M = Message> {
    inbox: Mutex<Inbox<M>>,
    /// A hint that spares the owner the lock: true whenever a look is worth it.
    pending: AtomicBool,
}

impl<M> Mailbox<M> {
    pub(crate) fn new() -> Self {
        let inbox =
            Inbox { messages: Vec::new(), parked: false, phase: Phase::Open, unparker: None };
        Self { inbox: Mutex::new(inbox), pending: AtomicBool::new(false) }
    }

    /// The owner has a driver now, and this ends its waits.
    pub(crate) fn attach(&self, unparker: Arc<dyn Unpark>) {
        lock(&self.inbox).unparker = Some(unparker);
    }

    /// Gives a message to a thread that is not closed; else gives it back.
    pub(crate) fn post(&self, message: M) -> Result<(), M> {
        self.post_until(Phase::Draining, message)
    }

    /// Gives a message to a thread that has got no further than `last`; else gives it back.
    pub(crate) fn post_until(&self, last: Phase, message: M) -> Result<(), M> {
        let mut inbox = lock(&self.inbox);
        if inbox.phase > last {
            return Err(message);
        }
        inbox.messages.push(message);
        self.pending.store(true, Ordering::Release);
        let unparker = Self::claim_wake(&mut inbox);
        drop(inbox);
        if let Some(unparker) = unparker {
            unparker.unpark();
        }
        Ok(())
    }

    fn claim_wake(inbox: &mut Inbox<M>) -> Option<Arc<dyn Unpark>> {
        if std::mem::take(&mut inbox.parked) { inbox.unparker.clone() } else { None }
    }

    /// Goes on to `phase`, never back, and wakes the owner to see it.
    pub(crate) fn advance(&self, phase: Phase) {
        let mut inbox = lock(&self.inbox);
        if inbox.phase < phase {
            inbox.phase = phase;
        }
        self.pending.store(true, Ordering::Release);
        let unparker = Self::claim_wake(&mut inbox);
        drop(inbox);
        if let Some(unparker) = unparker {
            unparker.unpark();
        }
    }

    pub(crate) fn phase(&self) -> Phase {
        lock(&self.inbox).phase
    }

    /// Whether the owner should look in: one load.
    pub(crate) fn pending(&self) -> bool {
        self.pending.load(Ordering::Acquire)
    }

    /// The owner takes all messages into `into`, which is empty, and is awake. Returns the phase:
    /// nothing else tells the owner of a change after this.
    pub(crate) fn take(&self, into: &mut Vec<M>) -> Phase {
        let mut inbox = lock(&self.inbox);
        inbox.parked = false;
        self.pending.store(false, Ordering::Relaxed);
        std::mem::swap(&mut inbox.messages, into);
        inbox.phase
    }

    /// The owner wants to wait. False if there is something to do first; after true it waits in
    /// its driver, and then calls [`take`](Self::take).
    pub(crate) fn park(&self) -> bool {
        let mut inbox = lock(&self.inbox);
        inbox.parked = inbox.messages.is_empty() && !self.pending.load(Ordering::Relaxed);
        inbox.parked
    }
}

#[cfg(all(test, not(ringlog_loom)))]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    #[derive(Default)]
    struct Count(AtomicUsize);
    impl Unpark for Count {
        fn unpark(&self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn an_awake_owner_is_never_woken_and_a_parked_one_once_per_batch() {
        let (mailbox, wakes) = (Mailbox::new(), Arc::new(Count::default()));
        mailbox.attach(wakes.clone());
        mailbox.post(1).unwrap();
        mailbox.post(2).unwrap();
        assert_eq!(wakes.0.load(Ordering::Relaxed), 0, "awake");
        assert!(mailbox.pending(), "an awake owner is not told otherwise");
        assert!(!mailbox.park(), "there are messages");
        let mut got = Vec::new();
        mailbox.take(&mut got);
        assert_eq!((got, mailbox.pending()), (vec![1, 2], false));
        assert!(mailbox.park());
        mailbox.post(3).unwrap();
        mailbox.post(4).unwrap();
        assert_eq!(wakes.0.load(Ordering::Relaxed), 1, "one wake for the batch");
    }

    #[test]
    fn a_phase_refuses_what_comes_after_it_and_wakes_the_owner_to_see_it() {
        let (mailbox, wakes) = (Mailbox::new(), Arc::new(Count::default()));
        mailbox.attach(wakes.clone());
        assert!(mailbox.park());
        mailbox.advance(Phase::Draining);
        assert_eq!(wakes.0.load(Ordering::Relaxed), 1);
        assert_eq!(mailbox.post_until(Phase::Open, "new"), Err("new"));
        assert_eq!(mailbox.post("from a task"), Ok(()));
        mailbox.advance(Phase::Closed);
        assert_eq!(mailbox.post("late"), Err("late"));
        mailbox.advance(Phase::Draining);
        assert_eq!(mailbox.phase(), Phase::Closed, "never back");
    }
}

#[cfg(all(test, ringlog_loom))]
mod loom_tests {
    use super::*;
    use loom::sync::{Arc as LoomArc, Condvar};

    /// Stands for the driver's wait: a flag that unpark sets and the owner waits for.
    struct Parker(Mutex<bool>, Condvar);
    impl Unpark for Parker {
        fn unpark(&self) {
            *lock(&self.0) = true;
            self.1.notify_one();
        }
    }

    /// Two producers and the owner in every order: the owner gets every message and never sleeps
    /// for good (loom reports a deadlock if it does).
    #[test]
    fn loom_no_wake_is_lost() {
        loom::model(|| {
            let parker = Arc::new(Parker(Mutex::new(false), Condvar::new()));
            let mailbox = LoomArc::new(Mailbox::new());
            mailbox.attach(parker.clone());
            let producers: Vec<_> = (0..2)
                .map(|n| {
                    let mailbox = mailbox.clone();
                    loom::thread::spawn(move || mailbox.post(n).unwrap())
                })
                .collect();
            let (mut got, mut batch) = (0, Vec::new());
            while got < 2 {
                mailbox.take(&mut batch);
                got += batch.drain(..).count();
                if got < 2 && mailbox.park() {
                    let mut woken = lock(&parker.0);
                    while !*woken {
                        woken = parker.1.wait(woken).unwrap();
                    }
                    *woken = false;
                }
            }
            for producer in producers {
                producer.join().unwrap();
            }
        });
    }
}
