//! The router: from a key to the thread that owns it, and back with the answer.
//!
//! A request is a task scheduled on its owner, through the runtime's own mailbox. Invariants: a
//! request holds a share of its partition's [`Gate`] from when it is sent until it is answered, also
//! if its caller has gone; so what a partition takes in is bounded. Requests beyond that wait, in
//! order, with their callers' futures, and never in a thread.

use crate::error::{Error, Result};
use crate::limits::{QUEUE_BYTES, REQUEST_OVERHEAD};
use crate::partition::digest::Digest;
use crate::partition::{Cache, Partition};
use crate::rt::{Handle, Owned, Unstarted};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::future::Future;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};

/// A partition as its callers see it.
struct Owner {
    partition: Owned<Partition>,
    cache: Arc<Cache>,
    gate: Arc<Gate>,
}

/// See the module.
pub(crate) struct Router {
    secret: [u8; 16],
    owners: Box<[Owner]>,
}

impl Router {
    pub(crate) fn new(secret: [u8; 16], partitions: Vec<(Owned<Partition>, Arc<Cache>)>) -> Self {
        let owner = |(partition, cache)| Owner { partition, cache, gate: Arc::default() };
        Self { secret, owners: partitions.into_iter().map(owner).collect() }
    }

    pub(crate) fn partitions(&self) -> usize {
        self.owners.len()
    }

    /// A thread for what concerns no partition.
    pub(crate) fn home(&self) -> Handle {
        self.owners[0].partition.home().clone()
    }

    pub(crate) fn digest(&self, key: &[u8]) -> Digest {
        Digest::new(&self.secret, key)
    }

    /// A value that is there without asking the owner.
    pub(crate) fn cached(&self, digest: Digest, key: &[u8]) -> Option<Bytes> {
        self.owners[digest.partition(self.owners.len())].cache.get(digest, key)
    }

    /// Runs `work` on the owner of the digest. `bytes` is what the request carries.
    pub(crate) async fn send<T, M, F>(&self, digest: Digest, bytes: usize, work: M) -> Result<T>
    where
        M: FnOnce(Rc<Partition>) -> F + Send + 'static,
        F: Future<Output = Result<T>> + 'static,
        T: Send + 'static,
    {
        self.send_to(digest.partition(self.owners.len()), bytes, work).await
    }

    /// Runs `work` on the owner of the partition, after what was sent there before.
    pub(crate) async fn send_to<T, M, F>(&self, index: usize, bytes: usize, work: M) -> Result<T>
    where
        M: FnOnce(Rc<Partition>) -> F + Send + 'static,
        F: Future<Output = Result<T>> + 'static,
        T: Send + 'static,
    {
        let Owner { partition, gate, .. } = &self.owners[index];
        let share = Share { gate: Arc::clone(gate), bytes: bytes + REQUEST_OVERHEAD };
        let bytes = share.bytes;
        let (task, request) = partition.prepare(move |partition| async move {
            let answer = work(partition).await;
            drop(share);
            answer
        });
        let _place = gate.enter(bytes, request);
        task.await.map_err(Error::from)?
    }

    /// Runs `work` on the owner of a partition, past its gate: for the few requests that concern
    /// the whole partition, carry nothing, and need not come after others.
    pub(crate) async fn send_past<T, M, F>(&self, index: usize, work: M) -> Result<T>
    where
        M: FnOnce(Rc<Partition>) -> F + Send + 'static,
        F: Future<Output = Result<T>> + 'static,
        T: Send + 'static,
    {
        self.owners[index].partition.schedule(work).await.map_err(Error::from)?
    }
}

/// Lets in so many bytes of requests at a time, in the order of their coming.
///
/// What waits is the request itself, not its caller: when its turn comes it is sent, whether or not
/// the caller is polled just then, so no caller can hold up those behind it. A caller that goes away
/// before takes its request with it, so what waits is bounded by the callers that wait.
#[derive(Default)]
struct Gate(Mutex<GateState>);

#[derive(Default)]
struct GateState {
    /// Bytes of the requests that were sent and are not answered.
    inside: usize,
    next: u64,
    /// By number, so in the order of their coming.
    waiting: BTreeMap<u64, Waiting>,
}

struct Waiting {
    bytes: usize,
    request: Unstarted,
}

/// A part of what a gate lets in, held by the request itself. Dropping it lets in others.
struct Share {
    gate: Arc<Gate>,
    bytes: usize,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Gate {
    /// Sends the request now, or when its turn comes, unless the place is dropped before.
    fn enter(self: &Arc<Self>, bytes: usize, request: Unstarted) -> Place {
        let mut state = lock(&self.0);
        let number = if state.waiting.is_empty() && state.has_room(bytes) {
            state.inside += bytes;
            let sent = request.start();
            drop(state);
            drop(sent);
            None
        } else {
            let number = state.next;
            state.next += 1;
            state.waiting.insert(number, Waiting { bytes, request });
            Some(number)
        };
        Place { gate: Arc::clone(self), number }
    }

    fn leave(&self, bytes: usize) {
        let mut state = lock(&self.0);
        state.inside -= bytes;
        let refused = state.admit();
        drop(state);
        drop(refused);
    }
}

impl GateState {
    fn has_room(&self, bytes: usize) -> bool {
        self.inside == 0 || self.inside + bytes <= QUEUE_BYTES
    }

    /// Sends those whose turn it is. Under the lock, so that they arrive in their order; what was
    /// refused is dropped outside of it, since its share comes back here.
    fn admit(&mut self) -> Vec<impl Sized + use<>> {
        let mut refused = Vec::new();
        while let Some((_, first)) = self.waiting.first_key_value()
            && self.has_room(first.bytes)
            && let Some((_, Waiting { bytes, request })) = self.waiting.pop_first()
        {
            self.inside += bytes;
            refused.extend(request.start().err());
        }
        refused
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.gate.leave(self.bytes);
    }
}

/// A caller's interest in its request. Dropping it withdraws a request that was not sent yet.
struct Place {
    gate: Arc<Gate>,
    /// Of a request that had to wait.
    number: Option<u64>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let Some(number) = self.number else { return };
        let mut state = lock(&self.gate.0);
        let withdrawn = state.waiting.remove(&number);
        // Its share will be given back without having been taken: take it now.
        state.inside += withdrawn.as_ref().map_or(0, |waiting| waiting.bytes);
        drop(state);
        drop(withdrawn);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rt::{Executor, ExecutorConfig, Task, yield_now};
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Requests at one gate, on an executor that runs them when told to.
    struct Rig {
        executor: Executor,
        value: Owned<()>,
        gate: Arc<Gate>,
        ran: Arc<AtomicUsize>,
    }

    impl Rig {
        fn new() -> Self {
            let executor = Executor::new(ExecutorConfig::default()).unwrap();
            let value = executor.block_on(async { Owned::new(()) });
            Self { executor, value, gate: Arc::default(), ran: Arc::default() }
        }

        /// A request that counts itself, and then holds its share until its task is cancelled.
        fn send(&self, bytes: usize) -> (Task<()>, Place) {
            let share = Share { gate: Arc::clone(&self.gate), bytes };
            let ran = Arc::clone(&self.ran);
            let (task, request) = self.value.prepare(move |_| async move {
                ran.fetch_add(1, Ordering::Relaxed);
                std::future::pending::<()>().await;
                drop(share);
            });
            (task, self.gate.enter(bytes, request))
        }

        fn ran(&self) -> usize {
            for _ in 0..3 {
                self.executor.block_on(yield_now());
            }
            self.ran.load(Ordering::Relaxed)
        }
    }

    #[test]
    fn a_full_gate_lets_in_by_order_of_coming_as_others_leave() {
        let rig = Rig::new();
        let first = rig.send(QUEUE_BYTES - 1);
        let second = rig.send(QUEUE_BYTES);
        let third = rig.send(1);
        assert_eq!(rig.ran(), 1, "there is room for the third, but it came later");
        first.0.cancel();
        assert_eq!(rig.ran(), 2);
        second.0.cancel();
        assert_eq!(rig.ran(), 3);
        third.0.cancel();
        assert_eq!(rig.ran(), 3);
        assert_eq!(lock(&rig.gate.0).inside, 0);
    }

    #[test]
    fn a_request_larger_than_the_gate_is_let_in_alone() {
        let rig = Rig::new();
        let large = rig.send(10 * QUEUE_BYTES);
        let _small = rig.send(1);
        assert_eq!(rig.ran(), 1);
        large.0.cancel();
        assert_eq!(rig.ran(), 2);
    }

    #[test]
    fn a_caller_that_goes_away_takes_its_waiting_request_with_it() {
        let rig = Rig::new();
        let first = rig.send(QUEUE_BYTES);
        let (large, place) = rig.send(QUEUE_BYTES);
        let _small = rig.send(1);
        assert_eq!(rig.ran(), 1);
        drop(place);
        assert!(large.is_finished(), "it will never run, and says so");
        assert_eq!(rig.ran(), 1, "it has made no room that it never took");
        first.0.cancel();
        assert_eq!(rig.ran(), 2, "the first and the small one");
        assert_eq!(lock(&rig.gate.0).inside, 1);
    }
}
