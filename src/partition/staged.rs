//! Operations that have their place in the order, and what their writers wait for.
//!
//! Invariant: a ticket is finished exactly once, whatever becomes of its operation: nobody waits for
//! ever.

use super::Partition;
use super::digest::Digest;
use crate::error::Result;
use crate::log::place::Place;
use crate::log::record::{Kind, Record, record_len};
use bytes::Bytes;
use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};

/// Why a staged operation did not happen.
#[derive(Clone, Debug)]
pub(super) enum Failure {
    Full(Arc<io::Error>),
    Poisoned(Arc<io::Error>),
}

/// What the writers of an operation wait for.
#[derive(Debug, Default)]
pub(super) struct Ticket {
    outcome: RefCell<Option<Result<(), Failure>>>,
    /// Nearly always there is one, and it needs no allocation.
    waiter: RefCell<Option<Waker>>,
    more: RefCell<Vec<Waker>>,
}

impl Ticket {
    /// Waits until the operation is as safe as it was asked to be, or has failed.
    pub(super) async fn wait(self: Rc<Self>, partition: &Partition) -> Result<()> {
        self.outcome().await.map_err(|failure| partition.failed(failure))
    }

    pub(super) async fn outcome(&self) -> Result<(), Failure> {
        let outcome = poll_fn(|cx| match &*self.outcome.borrow() {
            Some(outcome) => Poll::Ready(outcome.clone()),
            None => {
                let waker = cx.waker().clone();
                if let Some(before) = self.waiter.replace(Some(waker)) {
                    self.more.borrow_mut().push(before);
                }
                Poll::Pending
            }
        });
        outcome.await
    }

    pub(super) fn settle(&self, outcome: Result<(), Failure>) {
        self.outcome.replace(Some(outcome));
    }

    pub(super) fn finish(&self, outcome: Result<(), Failure>) {
        self.settle(outcome);
        self.wake();
    }

    pub(super) fn wake(&self) {
        let (waiter, more) = (self.waiter.take(), self.more.take());
        for waiter in more.into_iter().chain(waiter) {
            waiter.wake();
        }
    }
}

/// An operation that has its place in the order.
#[derive(Debug)]
pub(super) enum Op {
    Put {
        key: Bytes,
        value: Bytes,
        sum: u32,
        expiry: Option<u64>,
    },
    Delete {
        key: Bytes,
    },
    /// A live record, on its way out of a segment that is merged. Reads see it there when it is
    /// durable.
    Move {
        from: Place,
        kind: Kind,
        key: Bytes,
        value: Bytes,
        sum: u32,
        expiry: Option<u64>,
    },
    /// The segment exists no more, once this is durable.
    Drop {
        id: u64,
    },
    /// All before it is as safe as this is asked to be, once this is: durable, or in the log.
    Barrier,
    /// A barrier whose mark is written in any case, if there is room of that kind: it carries the
    /// clock.
    Clock(Need),
    /// Ends the segment, if it has records. If the store is closing, nothing comes after it.
    Seal,
}

/// Which room a write may have on a full disk: the later ones more than those before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Need {
    /// None that is held for the others.
    #[default]
    Put,
    /// Half of the last spare, while no merge counts on it.
    Delete,
    /// All that there is: merges give it back.
    Own,
}

#[derive(Debug)]
pub(super) struct Staged {
    pub(super) digest: Digest,
    pub(super) sequence: u64,
    pub(super) op: Op,
    pub(super) need: Need,
    pub(super) sync: bool,
    /// It was acknowledged when it got its place, and takes so much room in the journal.
    pub(super) promised: Option<usize>,
    pub(super) ticket: Rc<Ticket>,
}

impl Op {
    /// Whether it changes a key, and so has a number of its own.
    pub(super) fn is_change(&self) -> bool {
        matches!(self, Self::Put { .. } | Self::Delete { .. })
    }
}

impl Staged {
    pub(super) fn record(&self) -> Option<Record<'_>> {
        let sequence = self.sequence;
        match &self.op {
            Op::Put { key, value, sum, expiry } => {
                let (kind, sum, expiry) = (Kind::Put, *sum, *expiry);
                Some(Record { kind, sequence, expiry, moved: false, key, value, sum })
            }
            Op::Delete { key } => Some(Record::new(Kind::Delete, sequence, key, &[])),
            Op::Move { kind, key, value, sum, expiry, .. } => {
                let (kind, sum, expiry) = (*kind, *sum, *expiry);
                Some(Record { kind, sequence, expiry, moved: true, key, value, sum })
            }
            Op::Drop { .. } | Op::Barrier | Op::Clock(_) | Op::Seal => None,
        }
    }

    /// Bytes of its record.
    pub(super) fn len(&self) -> usize {
        match &self.op {
            Op::Put { key, value, expiry, .. } | Op::Move { key, value, expiry, .. } => {
                record_len(key.len(), value.len(), expiry.is_some())
            }
            Op::Delete { key } => record_len(key.len(), 0, false),
            Op::Drop { .. } => record_len(0, 8, false),
            Op::Barrier | Op::Clock(_) | Op::Seal => 0,
        }
    }

    /// Whether something is written for it.
    pub(super) fn takes_room(&self) -> bool {
        self.len() > 0 || matches!(self.op, Op::Clock(_))
    }
}

impl Drop for Staged {
    /// Nobody waits for ever, however the commit task ends.
    fn drop(&mut self) {
        if self.ticket.outcome.borrow().is_none() {
            let cause = io::Error::other("the write was dropped before it was done");
            self.ticket.finish(Err(Failure::Poisoned(Arc::new(cause))));
        }
    }
}
