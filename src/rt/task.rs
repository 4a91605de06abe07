//! The header of a task: what its wakers know of it.
//!
//! A waker may outlive the task and be dropped on any thread, so it holds nothing of the future:
//! only this header, which says where the task lives. The future itself stays in its thread's
//! table ([`super::context`]), and travels in a message when it hops. That needs no unsafe code.
//!
//! A wake on the task's own thread puts its key into the ready queue, once. Invariants for those from
//! elsewhere: (1) whoever takes `scheduled` from false to true sends a [`Message::Run`], and only a
//! poll takes it back; (2) it is cleared *before* the poll, so a wake during the poll counts; (3)
//! `key` is read and written only on the thread that `home` names. A poll too many is harmless, a
//! poll too few is a hang: where in doubt, the code polls.

use super::context::Context;
use super::handle::Shared;
use super::mailbox::Message;
use super::slab::Key;
use super::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Wake;

/// The future of a task that stays on its thread.
pub(crate) type LocalFuture = Pin<Box<dyn Future<Output = ()>>>;
/// The future of a task that may hop.
pub(crate) type SendFuture = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The bit that makes many wakes one poll.
#[derive(Debug)]
pub(crate) struct Scheduled(AtomicBool);

impl Scheduled {
    pub(crate) fn new(scheduled: bool) -> Self {
        Self(AtomicBool::new(scheduled))
    }

    /// True for the one caller who now has to see to it that the task is polled.
    ///
    /// Release, so that the poll sees what this caller did before, also if it loses.
    pub(crate) fn claim(&self) -> bool {
        !self.0.swap(true, Ordering::AcqRel)
    }

    /// Just before the poll. A swap and not a store: it must read the last loser's release.
    ///
    /// The load spares tasks that are only woken at home a locked instruction. If it misses a
    /// claim, so did everything before this poll: the claim's message is still to come.
    pub(crate) fn clear(&self) {
        if self.0.load(Ordering::Relaxed) {
            self.0.swap(false, Ordering::AcqRel);
        }
    }
}

/// See the module.
pub(crate) struct Header {
    pub(crate) scheduled: Scheduled,
    cancelled: AtomicBool,
    /// Index of the thread that the task lives on, in `shared`.
    home: AtomicUsize,
    /// Its key in that thread's table.
    key: AtomicU64,
    shared: Arc<Shared>,
}

impl Header {
    /// A task that is on its way to `home`, or about to be put into its table.
    pub(crate) fn new(shared: Arc<Shared>, home: usize) -> Arc<Self> {
        Arc::new(Self {
            scheduled: Scheduled::new(true),
            cancelled: AtomicBool::new(false),
            home: AtomicUsize::new(home),
            key: AtomicU64::new(Key::NONE.0),
            shared,
        })
    }

    pub(crate) fn home(&self) -> usize {
        self.home.load(Ordering::Acquire)
    }

    pub(crate) fn key(&self) -> Key {
        Key(self.key.load(Ordering::Relaxed))
    }

    pub(crate) fn set_key(&self, key: Key) {
        self.key.store(key.0, Ordering::Relaxed);
    }

    /// The task leaves for another thread, or comes back since that one refused it.
    pub(crate) fn set_home(&self, home: usize) {
        self.set_key(Key::NONE);
        self.home.store(home, Ordering::Release);
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Acquire)
    }

    /// Marks the task so that its thread drops it instead of polling it, and sends word.
    pub(crate) fn cancel(self: &Arc<Self>) {
        self.cancelled.store(true, Ordering::Release);
        self.wake_by_ref();
    }

    /// Sends the task's `Run` to where it lives.
    fn send(self: Arc<Self>) {
        let mut header = self;
        loop {
            let home = header.home();
            let shared = Arc::clone(&header.shared);
            match shared.mailbox(home).post(Message::Run(header)) {
                Err(Message::Run(refused)) if refused.home() != home => header = refused,
                // Sent; or its thread is closed, and the task with it.
                _ => return,
            }
        }
    }
}

impl Wake for Header {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // If this thread is its home it stays so: only a home sends a task away.
        let here = Context::with_current(|context| {
            let home = context.filter(|context| context.is(&self.shared, self.home()));
            home.map(|context| context.wake(self.key())).is_some()
        });
        if !here && self.scheduled.claim() {
            Arc::clone(self).send();
        }
    }
}

#[cfg(all(test, ringlog_loom))]
mod loom_tests {
    use super::*;
    use loom::sync::Arc;

    /// Two wakers against one poll: whatever a waker wrote before its wake is seen by a poll that
    /// comes after, whether it won the bit or lost it.
    #[test]
    fn loom_a_wake_that_loses_the_bit_still_reaches_the_poll() {
        loom::model(|| {
            let bit = Arc::new(Scheduled::new(false));
            let data = Arc::new(AtomicUsize::new(0));
            let queued = Arc::new(AtomicUsize::new(0));
            let wakers: Vec<_> = (0..2)
                .map(|_| {
                    let (bit, data, queued) = (bit.clone(), data.clone(), queued.clone());
                    loom::thread::spawn(move || {
                        data.fetch_add(1, Ordering::Relaxed);
                        if bit.claim() {
                            queued.fetch_add(1, Ordering::Release);
                        }
                    })
                })
                .collect();
            let (mut polls, mut seen) = (0, 0);
            let mut poll = || {
                if queued.load(Ordering::Acquire) > polls {
                    polls += 1;
                    bit.clear();
                    seen = data.load(Ordering::Relaxed);
                }
            };
            poll();
            for waker in wakers {
                waker.join().unwrap();
            }
            poll();
            poll();
            assert_eq!(seen, 2, "the last poll saw both");
        });
    }

    /// Polls that somebody at home asked for come between: they may clear the bit, or miss it.
    #[test]
    fn loom_a_poll_that_misses_a_claim_is_followed_by_one_that_does_not() {
        loom::model(|| {
            let bit = Arc::new(Scheduled::new(false));
            let data = Arc::new(AtomicUsize::new(0));
            let queued = Arc::new(AtomicUsize::new(0));
            let waker = {
                let (bit, data, queued) = (bit.clone(), data.clone(), queued.clone());
                loom::thread::spawn(move || {
                    for _ in 0..2 {
                        data.fetch_add(1, Ordering::Relaxed);
                        if bit.claim() {
                            queued.fetch_add(1, Ordering::Release);
                        }
                    }
                })
            };
            bit.clear();
            let mut seen = data.load(Ordering::Relaxed);
            let mut polls = 0;
            while polls < queued.load(Ordering::Acquire) {
                polls += 1;
                bit.clear();
                seen = data.load(Ordering::Relaxed);
            }
            waker.join().unwrap();
            if polls < queued.load(Ordering::Acquire) {
                bit.clear();
                seen = data.load(Ordering::Relaxed);
            }
            assert_eq!(seen, 2, "the last poll saw both");
        });
    }
}
