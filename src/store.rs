//! [`Store`]: the front door. Checks the limits, and sends each request to its owner.
//!
//! Invariants: no length goes further down unchecked; after `close` no clone of it does anything.

use crate::error::{Error, Result};
use crate::limits::{MAX_KEY_LEN, MAX_VALUE_LEN};
use crate::log::superblock::{Superblock, sync_dir};
use crate::open::{check_no_records, create, lock_dir, make_dir, open_partitions, sync_name};
use crate::options::Builder;
use crate::partition::Partition;
use crate::reply::Reply;
use crate::router::Router;
use crate::rt::{Runtime, RuntimeConfig};
use crate::stats::Stats;
use bytes::Bytes;
use std::fmt;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;

/// A key-value store in a directory. Clones are handles to the same store, from any thread.
///
/// Every operation returns a [`Reply`]: a future that is `Send` and `'static`, does nothing until
/// it is polled, and can be awaited on any executor. No thread is parked meanwhile, unless it
/// chooses to ([`block_on`](crate::rt::block_on)).
///
/// ```
/// # let dir = tempfile::tempdir()?;
/// # ringlog::rt::block_on(async {
/// let store = ringlog::Store::open(dir.path(), 2)?;
/// store.put("user:17", b"Ada").await?; // durable when it returns
/// assert_eq!(store.get("user:17").await?.as_deref(), Some(b"Ada".as_slice()));
/// assert!(store.delete("user:17").await?);
/// store.close().await
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Drop
///
/// Dropping the last handle waits for the requests under way and ends the store's threads; all
/// that was acknowledged is durable. [`close`](Self::close) does the same without blocking the
/// thread, says how it went, and seals the logs, so that the next opening can tell damage to the
/// very last group from a torn tail.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    dir: PathBuf,
    closed: AtomicBool,
    router: Router,
    runtime: Mutex<Option<Runtime>>,
}

impl Store {
    /// Opens the store in `dir`, or makes one with so many partitions. Blocks while it recovers,
    /// so in async code that must not stall, call it where blocking is allowed.
    ///
    /// # Errors
    ///
    /// [`Error::PartitionMismatch`] if it has another number of partitions, [`Error::Locked`] if it
    /// is open elsewhere, [`Error::Corrupt`] if durable bytes are damaged, [`Error::Runtime`] if
    /// there are no rings to be had, [`Error::Io`]. A failed opening changes nothing that matters.
    pub fn open(dir: impl AsRef<Path>, partitions: usize) -> Result<Self> {
        Self::builder(dir).partitions(partitions).open()
    }

    /// To open a store with other than the default options.
    pub fn builder(dir: impl AsRef<Path>) -> Builder {
        Builder::new(dir.as_ref())
    }

    pub(crate) fn open_with(options: &Builder) -> Result<Self> {
        let dir = &options.dir;
        make_dir(dir)?;
        let lock = lock_dir(dir)?;
        let found = Superblock::read(dir)?;
        if found.is_none() {
            check_no_records(dir)?;
            sync_name(dir)?;
        }
        if let Some(superblock) = found
            && superblock.partitions as usize != options.partitions
        {
            let found = superblock.partitions as usize;
            return Err(Error::PartitionMismatch { found, requested: options.partitions });
        }
        let threads = options.thread_count();
        let runtime =
            Runtime::start(RuntimeConfig { num_threads: threads, ..RuntimeConfig::default() })?;
        // An opening that was killed may have left names that are not durable: the superblock's own.
        sync_dir(dir)?;
        let superblock = match found {
            Some(superblock) => superblock,
            None => create(dir, options.partitions, &runtime)?,
        };
        let partitions = open_partitions(dir, superblock, &runtime, &Arc::new(lock))?;
        let inner = Inner {
            dir: dir.clone(),
            closed: AtomicBool::new(false),
            router: Router::new(superblock.secret, partitions),
            runtime: Mutex::new(Some(runtime)),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Stores a value under a key, over any value that it has.
    ///
    /// When it resolves to `Ok`, the value is durable, and every later `get` sees it. Dropping the
    /// future once it was polled leaves the outcome unknown, but whole: the old value or the new.
    ///
    /// # Errors
    ///
    /// [`Error::KeyTooLarge`], [`Error::ValueTooLarge`], [`Error::Poisoned`], [`Error::Closed`].
    pub fn put(&self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Reply<()> {
        let (key, value) = (key.as_ref(), value.as_ref());
        if value.len() > MAX_VALUE_LEN {
            return Reply::error(Error::ValueTooLarge { len: value.len() });
        }
        let value = Bytes::copy_from_slice(value);
        self.with_key(key, move |inner, key| async move {
            let (digest, bytes) = (inner.router.digest(&key), key.len() + value.len());
            let work = move |partition: Rc<Partition>| async move {
                partition.put(digest, &key, &value).await
            };
            inner.router.send(digest, bytes, work).await
        })
    }

    /// The value of a key, if it has one: one read of the disk, and checked against its checksum.
    ///
    /// # Errors
    ///
    /// [`Error::KeyTooLarge`], [`Error::Corrupt`], [`Error::Io`], [`Error::Closed`].
    pub fn get(&self, key: impl AsRef<[u8]>) -> Reply<Option<Bytes>> {
        self.with_key(key.as_ref(), move |inner, key| async move {
            let (digest, bytes) = (inner.router.digest(&key), key.len());
            let work =
                move |partition: Rc<Partition>| async move { partition.get(digest, &key).await };
            inner.router.send(digest, bytes, work).await
        })
    }

    /// Removes a key. Resolves to whether it was there; durable then.
    ///
    /// # Errors
    ///
    /// [`Error::KeyTooLarge`], [`Error::Poisoned`], [`Error::Closed`].
    pub fn delete(&self, key: impl AsRef<[u8]>) -> Reply<bool> {
        self.with_key(key.as_ref(), move |inner, key| async move {
            let (digest, bytes) = (inner.router.digest(&key), key.len());
            let work =
                move |partition: Rc<Partition>| async move { partition.delete(digest, &key).await };
            inner.router.send(digest, bytes, work).await
        })
    }

    /// A barrier: when it resolves, every write that was sent before it is durable.
    ///
    /// # Errors
    ///
    /// [`Error::Poisoned`], [`Error::Closed`].
    pub fn sync(&self) -> Reply<()> {
        self.on_all(|partition| async move { partition.sync().await }, |_| ())
    }

    /// What the store has done since it was opened, and what it holds.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`].
    pub fn stats(&self) -> Reply<Stats> {
        let ask = |partition: Rc<Partition>| async move { Ok(partition.stats()) };
        self.on_all(ask, |partitions| Stats { partitions })
    }

    /// Closes the store: finishes the requests that were sent, seals the logs, ends the threads.
    /// Writes that still wait for their turn, and all that other handles ask from then on, get
    /// [`Error::Closed`].
    ///
    /// # Errors
    ///
    /// [`Error::Poisoned`] if a write had failed; [`Error::Stop`]; [`Error::Closed`] if it was
    /// closed already. The store is closed in any case.
    pub fn close(self) -> Reply<()> {
        let inner = self.inner;
        Reply::new(async move {
            if inner.closed.swap(true, Ordering::AcqRel) {
                return Err(Error::Closed);
            }
            let mut outcome = Ok(());
            for index in 0..inner.router.partitions() {
                let sealed = inner.router.send_past(index, |p| async move { p.close().await });
                outcome = outcome.and(sealed.await);
            }
            let runtime = inner.runtime.lock().unwrap_or_else(PoisonError::into_inner).take();
            let stopped = match runtime {
                Some(runtime) => stop(runtime).await,
                None => Ok(()),
            };
            outcome.and(stopped)
        })
    }

    fn with_key<T, M, F>(&self, key: &[u8], request: M) -> Reply<T>
    where
        M: FnOnce(Arc<Inner>, Bytes) -> F + Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
        T: Send + 'static,
    {
        if key.len() > MAX_KEY_LEN {
            return Reply::error(Error::KeyTooLarge { len: key.len() });
        }
        let (inner, key) = (Arc::clone(&self.inner), Bytes::copy_from_slice(key));
        Reply::new(async move {
            inner.check_open()?;
            request(inner, key).await
        })
    }

    /// Asks all partitions at the same time, and puts their answers together in order.
    fn on_all<T, U, M, F>(&self, ask: M, join: fn(Vec<T>) -> U) -> Reply<U>
    where
        M: Fn(Rc<Partition>) -> F + Send + Sync + Copy + 'static,
        F: Future<Output = Result<T>> + 'static,
        T: Send + 'static,
        U: 'static,
    {
        let inner = Arc::clone(&self.inner);
        Reply::new(async move {
            inner.check_open()?;
            let partitions = inner.router.partitions();
            let mut replies: Vec<Reply<T>> = (0..partitions)
                .map(|index| {
                    let inner = Arc::clone(&inner);
                    Reply::new(async move { inner.router.send_to(index, 0, ask).await })
                })
                .collect();
            // One poll sends each request; then they are awaited one after the other.
            std::future::poll_fn(|cx| {
                for reply in &mut replies {
                    reply.start(cx);
                }
                Poll::Ready(())
            })
            .await;
            let mut answers = Vec::with_capacity(partitions);
            for reply in replies {
                answers.push(reply.await?);
            }
            Ok(join(answers))
        })
    }
}

impl Inner {
    fn check_open(&self) -> Result<()> {
        if self.closed.load(Ordering::Acquire) { Err(Error::Closed) } else { Ok(()) }
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("dir", &self.inner.dir).finish_non_exhaustive()
    }
}

/// Stops the runtime on a thread made for it, since stopping blocks.
async fn stop(runtime: Runtime) -> Result<()> {
    let helper = Arc::new(Mutex::new((None, None::<std::task::Waker>)));
    let report = Arc::clone(&helper);
    let stopper = move || {
        let outcome = runtime.stop().map_err(Error::from);
        let mut slot = report.lock().unwrap_or_else(PoisonError::into_inner);
        slot.0 = Some(outcome);
        let waker = slot.1.take();
        drop(slot);
        if let Some(waker) = waker {
            waker.wake();
        }
    };
    let thread = std::thread::Builder::new().name("ringlog-stop".to_owned());
    // If there is no thread to be had, dropping the closure stops the runtime here and now.
    thread.spawn(stopper).map_err(Error::io("start a thread to close", Path::new("the store")))?;
    std::future::poll_fn(|cx| {
        let mut slot = helper.lock().unwrap_or_else(PoisonError::into_inner);
        match slot.0.take() {
            Some(outcome) => Poll::Ready(outcome),
            None => {
                slot.1 = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    })
    .await
}
