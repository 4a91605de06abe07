//! The group commit that a user would write for an engine that has none: one committer, which makes
//! one durable transaction of all that arrived while it was busy with the last one.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle, Thread};

use anyhow::{Result, anyhow};

use crate::data::Key;
use crate::store::Engine;

/// An engine behind a committer. Gets and puts that need not be durable go past it.
pub(crate) struct GroupCommit {
    shared: Arc<Shared>,
    committer: Option<JoinHandle<()>>,
}

struct Shared {
    engine: Box<dyn Engine>,
    queue: Mutex<Queue>,
    arrived: Condvar,
}

#[derive(Default)]
struct Queue {
    puts: Vec<(Key, Vec<u8>)>,
    writers: Vec<(Thread, Arc<Answer>)>,
    closed: bool,
}

#[derive(Default)]
struct Answer {
    done: AtomicBool,
    failed: AtomicBool,
}

impl GroupCommit {
    pub(crate) fn new(engine: Box<dyn Engine>) -> Self {
        let (queue, arrived) = (Mutex::default(), Condvar::new());
        let shared = Arc::new(Shared { engine, queue, arrived });
        let own = Arc::clone(&shared);
        Self { shared, committer: Some(thread::spawn(move || own.commit())) }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn commit(&self) {
        loop {
            let waiting = self.arrived.wait_while(self.lock(), |q| q.puts.is_empty() && !q.closed);
            let mut queue = waiting.unwrap_or_else(PoisonError::into_inner);
            if queue.puts.is_empty() {
                return;
            }
            let puts = std::mem::take(&mut queue.puts);
            let writers = std::mem::take(&mut queue.writers);
            drop(queue);
            let failed = self.engine.put_all(&puts, true).is_err();
            for (thread, answer) in writers {
                answer.failed.store(failed, Ordering::Relaxed);
                answer.done.store(true, Ordering::Release);
                thread.unpark();
            }
        }
    }
}

impl Engine for GroupCommit {
    fn put(&self, key: &Key, value: &[u8], durable: bool) -> Result<()> {
        if !durable {
            return self.shared.engine.put(key, value, false);
        }
        let answer = Arc::new(Answer::default());
        let mut queue = self.shared.lock();
        queue.puts.push((*key, value.to_vec()));
        queue.writers.push((thread::current(), Arc::clone(&answer)));
        let first = queue.puts.len() == 1;
        drop(queue);
        if first {
            self.shared.arrived.notify_one();
        }
        while !answer.done.load(Ordering::Acquire) {
            thread::park();
        }
        let failed = answer.failed.load(Ordering::Relaxed);
        if failed { Err(anyhow!("the group's commit has failed")) } else { Ok(()) }
    }

    fn put_all(&self, puts: &[(Key, Vec<u8>)], durable: bool) -> Result<()> {
        self.shared.engine.put_all(puts, durable)
    }

    fn get(&self, key: &Key, see: &mut dyn FnMut(Option<&[u8]>) -> Result<()>) -> Result<()> {
        self.shared.engine.get(key, see)
    }

    fn sync(&self) -> Result<()> {
        self.shared.engine.sync()
    }

    fn scan(&self, see: &mut dyn FnMut(&[u8], &[u8])) -> Result<()> {
        self.shared.engine.scan(see)
    }
}

impl Drop for GroupCommit {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.arrived.notify_one();
        if let Some(committer) = self.committer.take() {
            drop(committer.join());
        }
    }
}
