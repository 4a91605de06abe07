//! The router: from a key to the thread that owns it, and back with the answer.
//!
//! A request is a task scheduled on its owner, through the runtime's own mailbox. Invariants: a
//! request holds a share of its partition's [`Gate`] from before it is sent until it is answered,
//! also if its caller has gone; so what a partition takes in is bounded, and callers beyond that
//! wait in their own futures, never in a thread.

use crate::error::{Error, Result};
use crate::limits::{QUEUE_BYTES, REQUEST_OVERHEAD};
use crate::partition::Partition;
use crate::partition::keydir::Digest;
use crate::rt::Owned;
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

/// A partition as its callers see it.
struct Owner {
    partition: Owned<Partition>,
    gate: Arc<Gate>,
}

/// See the module.
pub(crate) struct Router {
    secret: [u8; 16],
    owners: Box<[Owner]>,
}

impl Router {
    pub(crate) fn new(secret: [u8; 16], partitions: Vec<Owned<Partition>>) -> Self {
        let owner = |partition| Owner { partition, gate: Arc::default() };
        Self { secret, owners: partitions.into_iter().map(owner).collect() }
    }

    pub(crate) fn partitions(&self) -> usize {
        self.owners.len()
    }

    pub(crate) fn digest(&self, key: &[u8]) -> Digest {
        Digest::new(&self.secret, key)
    }

    /// Runs `work` on the owner of the digest. `bytes` is what the request carries.
    pub(crate) async fn send<T, M, F>(&self, digest: Digest, bytes: usize, work: M) -> Result<T>
    where
        M: FnOnce(Rc<Partition>) -> F + Send + 'static,
        F: Future<Output = Result<T>> + 'static,
        T: Send + 'static,
    {
        let owner = &self.owners[digest.partition(self.owners.len())];
        let share = owner.gate.enter(bytes + REQUEST_OVERHEAD).await;
        let task = owner.partition.schedule(move |partition| async move {
            let answer = work(partition).await;
            drop(share);
            answer
        });
        task.await.map_err(Error::from)?
    }

    /// Runs `work` on the owner of a partition, past its gate: for the few requests that concern
    /// the whole partition and carry nothing, which must not wait behind callers who dally.
    pub(crate) async fn send_to<T, M, F>(&self, index: usize, work: M) -> Result<T>
    where
        M: FnOnce(Rc<Partition>) -> F + Send + 'static,
        F: Future<Output = Result<T>> + 'static,
        T: Send + 'static,
    {
        self.owners[index].partition.schedule(work).await.map_err(Error::from)?
    }
}

/// Lets in so many bytes of requests at a time, in the order of their coming.
#[derive(Default)]
struct Gate(Mutex<GateState>);

#[derive(Default)]
struct GateState {
    inside: usize,
    queue: VecDeque<Arc<Ticket>>,
}

/// A request that waits at a gate.
struct Ticket {
    bytes: usize,
    state: Mutex<TicketState>,
}

enum TicketState {
    Waiting(Option<Waker>),
    Admitted,
    /// Its future is gone.
    Left,
}

/// A part of what a gate lets in. Dropping it lets in others.
struct Share {
    gate: Arc<Gate>,
    bytes: usize,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Gate {
    async fn enter(self: &Arc<Self>, bytes: usize) -> Share {
        let ticket = {
            let mut state = lock(&self.0);
            if state.queue.is_empty() && state.admits(bytes) {
                state.inside += bytes;
                None
            } else {
                let waiting = Mutex::new(TicketState::Waiting(None));
                let ticket = Arc::new(Ticket { bytes, state: waiting });
                state.queue.push_back(Arc::clone(&ticket));
                Some(ticket)
            }
        };
        if let Some(ticket) = ticket {
            let mut place = Place { gate: self, ticket: Some(ticket) };
            poll_fn(|cx| place.poll(cx)).await;
            place.ticket = None; // admitted: the share takes over
        }
        Share { gate: Arc::clone(self), bytes }
    }

    fn leave(&self, bytes: usize) {
        let mut woken = Vec::new();
        let mut state = lock(&self.0);
        state.inside -= bytes;
        while let Some(ticket) = state.queue.front() {
            let mut waiting = lock(&ticket.state);
            if let TicketState::Waiting(waker) = &mut *waiting {
                if !state.admits(ticket.bytes) {
                    break;
                }
                woken.extend(waker.take());
                *waiting = TicketState::Admitted;
                let bytes = ticket.bytes;
                drop(waiting);
                state.inside += bytes;
            } else {
                drop(waiting);
            }
            state.queue.pop_front();
        }
        drop(state);
        woken.into_iter().for_each(Waker::wake);
    }
}

impl GateState {
    fn admits(&self, bytes: usize) -> bool {
        self.inside == 0 || self.inside + bytes <= QUEUE_BYTES
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.gate.leave(self.bytes);
    }
}

/// A place in a gate's queue, given up if its future is dropped.
struct Place<'a> {
    gate: &'a Gate,
    ticket: Option<Arc<Ticket>>,
}

impl Place<'_> {
    fn poll(&self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(ticket) = &self.ticket
            && let TicketState::Waiting(waker) = &mut *lock(&ticket.state)
        {
            *waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(())
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let Some(ticket) = self.ticket.take() else { return };
        let before = std::mem::replace(&mut *lock(&ticket.state), TicketState::Left);
        match before {
            // Let in, but nobody came: let in the next.
            TicketState::Admitted => self.gate.leave(ticket.bytes),
            // It may have stood in others' way: they are looked at again.
            _ => self.gate.leave(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::pin;

    /// Polls once, without a waker.
    fn poll<F: Future>(future: std::pin::Pin<&mut F>) -> Option<F::Output> {
        match future.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(output) => Some(output),
            Poll::Pending => None,
        }
    }

    #[test]
    fn a_full_gate_lets_in_by_order_of_coming_as_others_leave() {
        let gate = Arc::new(Gate::default());
        let first = poll(pin!(gate.enter(QUEUE_BYTES))).unwrap();
        let (mut second, mut third) = (pin!(gate.enter(QUEUE_BYTES)), pin!(gate.enter(1)));
        assert!(poll(second.as_mut()).is_none());
        assert!(poll(third.as_mut()).is_none(), "small, but it came later");
        drop(first);
        let second = poll(second).unwrap();
        assert!(poll(third.as_mut()).is_none());
        drop(second);
        assert!(poll(third).is_some());
        assert_eq!(lock(&gate.0).inside, 0);
    }

    #[test]
    fn a_request_larger_than_the_gate_is_let_in_alone() {
        let gate = Arc::new(Gate::default());
        let large = poll(pin!(gate.enter(10 * QUEUE_BYTES))).unwrap();
        let mut small = pin!(gate.enter(1));
        assert!(poll(small.as_mut()).is_none());
        drop(large);
        assert!(poll(small).is_some());
    }

    #[test]
    fn one_who_goes_away_while_waiting_does_not_stand_in_the_way() {
        let gate = Arc::new(Gate::default());
        let half = poll(pin!(gate.enter(QUEUE_BYTES / 2))).unwrap();
        let mut large = Box::pin(gate.enter(QUEUE_BYTES));
        let mut small = pin!(gate.enter(1));
        assert!(poll(large.as_mut()).is_none());
        assert!(poll(small.as_mut()).is_none());
        drop(large); // while it waits
        let small = poll(small).expect("nobody is before it any more");

        let mut large = Box::pin(gate.enter(QUEUE_BYTES));
        let mut last = pin!(gate.enter(1));
        assert!(poll(large.as_mut()).is_none());
        assert!(poll(last.as_mut()).is_none());
        drop((half, small));
        drop(large); // when it was let in, but had not noticed
        assert!(poll(last).is_some());
        assert_eq!(lock(&gate.0).inside, 0);
    }
}
