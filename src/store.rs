//! [`Store`]: the front door. Checks the limits, and sends each request to its owner.
//!
//! Invariants: no length goes further down unchecked; after `close` no clone of it does anything.

mod many;
mod whole;

use crate::bulk::{Entry, time_of};
use crate::durability::Durability;
use crate::error::{Error, Result};
use crate::limits::{MAX_KEY_LEN, MAX_VALUE_LEN};
use crate::log::record::body_sum;
use crate::log::superblock::Superblock;
use crate::open::{lock_dir, make_dir, open_dir};
use crate::options::{Builder, PutOptions};
use crate::partition::digest::Digest;
use crate::partition::{Found, Partition, Put};
use crate::reply::Reply;
use crate::report::OpenReport;
use crate::router::Router;
use crate::rt::{self, Handle, Runtime, RuntimeConfig};
use bytes::Bytes;
use std::any::Any;
use std::fmt;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

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
/// # Errors
///
/// Each operation says which errors it has. All of them can resolve to [`Error::Closed`], and to
/// [`Error::Bug`] after a panic in ringlog, or in what an update was given. Keys and values that
/// are too long are refused before anything is sent.
///
/// # Cancellation
///
/// A reply that is dropped before its first poll asks for nothing. After that, a request that still
/// waits for its turn at its partition's queue ([`QUEUE_BYTES`](crate::QUEUE_BYTES)) is withdrawn;
/// one that was sent goes on without its caller. So the outcome of a write whose reply was dropped
/// is unknown, but whole: it happens as if it had been awaited, or not at all.
///
/// # Drop
///
/// Dropping the last handle waits for the requests under way and ends the store's threads; what was
/// acknowledged is as durable as its [`Durability`] says. It blocks for that, for 30 seconds at
/// most, and 30 more if the device does not answer; what is not done then is dropped. (On one of
/// the store's own threads, as in the function of an [`update`](Self::update), it does not wait.)
/// [`close`](Self::close) does the same without blocking the thread, says how it went, syncs and
/// seals the logs, so that the next opening can tell damage to the very last group from a torn
/// tail.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
    /// Of what is asked by this handle.
    durability: Durability,
}

struct Inner {
    dir: PathBuf,
    superblock: Superblock,
    report: OpenReport,
    closed: AtomicBool,
    router: Arc<Router>,
    runtime: Mutex<Option<Runtime>>,
}

impl Store {
    /// Opens the store in `dir`, or makes one with so many partitions, and the directory with those
    /// above it if need be. Other options are as [`builder`](Self::builder) has them. Blocks while
    /// it recovers, and for about a second if another has the store open; so in async code that
    /// must not stall, call it where blocking is allowed.
    ///
    /// # Errors
    ///
    /// In the order in which they are looked for:
    ///
    /// - [`Error::InvalidOptions`]: not 1 to [`MAX_PARTITIONS`](crate::MAX_PARTITIONS) partitions,
    ///   or another option that cannot be met. Nothing was touched.
    /// - [`Error::Runtime`]: there are no rings or threads to be had. Nothing was touched.
    /// - [`Error::Locked`]: the store is open, in this process or another.
    /// - [`Error::FormatVersion`]: a file is of another release, or its version field is damaged.
    /// - [`Error::PartitionMismatch`]: it has another number of partitions.
    /// - [`Error::Corrupt`]: durable bytes are damaged, or a file of the log is missing. Only in
    ///   what is read: segments with a good hint are not, but for their headers and seals.
    /// - [`Error::Io`]: the system refused a call, at any of these steps; also if the disk is too
    ///   full to make a store.
    ///
    /// A salvage, which writes again what it kept, has [`Error::Full`] and [`Error::Poisoned`] too.
    /// So has an opening that finds writes which a killed process had acknowledged, and not put into
    /// the log: they are kept until there is room for them.
    /// An opening that fails at any of the above before it writes has changed nothing but the lock
    /// file, and the directory's being there. One that fails in writing can be tried again: it has
    /// removed only what means nothing, or what a salvage has copied.
    pub fn open(dir: impl AsRef<Path>, partitions: usize) -> Result<Self> {
        Self::builder(dir).partitions(partitions).open()
    }

    /// To open a store with other than the default options. Touches nothing before
    /// [`open`](Builder::open).
    pub fn builder(dir: impl AsRef<Path>) -> Builder {
        Builder::new(dir.as_ref())
    }

    pub(crate) fn open_with(options: Builder) -> Result<Self> {
        let num_threads = options.thread_count();
        let runtime = Runtime::start(RuntimeConfig { num_threads, ..RuntimeConfig::default() })?;
        let threads = runtime.threads().to_vec();
        let opened = rt::wait(runtime.thread(0).schedule(async move {
            make_dir(&options.dir).await?;
            let lock = Arc::new(lock_dir(&options.dir)?);
            Self::open_on(options, &threads, lock).await
        }));
        let store = opened??;
        *store.runtime() = Some(runtime);
        Ok(store)
    }

    /// Opens on these threads, without a runtime of its own, a directory that `lock` keeps others
    /// from.
    pub(crate) async fn open_on(
        options: Builder,
        threads: &[Handle],
        lock: Arc<dyn Any + Send + Sync>,
    ) -> Result<Self> {
        let (superblock, partitions, report) = open_dir(&options, threads, lock).await?;
        let inner = Inner {
            dir: options.dir,
            superblock,
            report,
            closed: AtomicBool::new(false),
            router: Arc::new(Router::new(superblock.secret, partitions)),
            runtime: Mutex::new(None),
        };
        Ok(Self { inner: Arc::new(inner), durability: options.durability })
    }

    fn runtime(&self) -> MutexGuard<'_, Option<Runtime>> {
        self.inner.runtime.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What opening the store found, and what it did about it.
    pub fn open_report(&self) -> &OpenReport {
        &self.inner.report
    }

    /// A handle to the same store whose writes are as durable as this says, where a put's own options
    /// do not say otherwise. So each operation can have its own, also a delete or an update.
    ///
    /// ```
    /// # let dir = tempfile::tempdir()?;
    /// # ringlog::rt::block_on(async {
    /// # use ringlog::{Durability, Store};
    /// let store = Store::open(dir.path(), 1)?;
    /// let quick = store.with_durability(Durability::Buffered);
    /// quick.put("session:9", b"anything").await?;
    /// quick.delete("session:9").await?;
    /// # store.close().await
    /// # })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn with_durability(&self, durability: Durability) -> Self {
        Self { inner: Arc::clone(&self.inner), durability }
    }

    // ---- single keys ------------------------------------------------------------------------

    /// Stores a value under a key, over any value that it has.
    ///
    /// When it resolves to `Ok`, the value is as durable as the handle's [`Durability`] says, and
    /// every later `get` sees it. An expiry that the key had is gone. Dropping the future once it
    /// was polled leaves the outcome unknown, but whole: the old value or the new. The empty key
    /// and the empty value are like any other. Key and value are copied by this call, before any
    /// poll.
    ///
    /// It waits for its turn while the partition has taken in [`QUEUE_BYTES`](crate::QUEUE_BYTES),
    /// and for merges, once it is written, while garbage exceeds three quarters of the live data and
    /// some MiB.
    ///
    /// # Errors
    ///
    /// [`Error::KeyTooLarge`] beyond [`MAX_KEY_LEN`] bytes, [`Error::ValueTooLarge`] beyond
    /// [`MAX_VALUE_LEN`], [`Error::Full`] if there is no room: these were not written.
    /// [`Error::Poisoned`] if this write, or one before it, failed: it may have been written.
    /// [`Error::Closed`].
    pub fn put(&self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Reply<()> {
        let (key, value) = (key.as_ref(), value.as_ref());
        match self.new_put(key, value, PutOptions::new()) {
            Ok(put) => self.send_put(put, drop),
            Err(error) => Reply::error(error),
        }
    }

    /// [`put`](Self::put) with an expiry, a durability of its own, or a condition. Resolves to the
    /// version that the entry has now, or to `None` if the condition did not hold.
    ///
    /// A condition is judged where the entry lives, in the order of all its writes: of many callers
    /// that swap the same version, one succeeds. Whether the key is there is known without a read,
    /// unless the entry has an expiry; a version is read. What a refusal depends on is as durable
    /// by then as its writer asked. Dropping the future is as with [`put`](Self::put).
    ///
    /// ```
    /// # let dir = tempfile::tempdir()?;
    /// # ringlog::rt::block_on(async {
    /// # use ringlog::{PutOptions, Store};
    /// let store = Store::open(dir.path(), 1)?;
    /// let first = store.put_with("leader", "a", PutOptions::new().if_absent()).await?;
    /// assert!(store.put_with("leader", "b", PutOptions::new().if_absent()).await?.is_none());
    /// let swap = PutOptions::new().if_version(first.unwrap());
    /// assert!(store.put_with("leader", "b", swap).await?.is_some());
    /// # store.close().await
    /// # })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As [`put`](Self::put), and, with a condition that needs a read, [`Error::Corrupt`] and
    /// [`Error::Io`]: then nothing was written.
    pub fn put_with(
        &self,
        key: impl AsRef<[u8]>,
        value: impl AsRef<[u8]>,
        options: PutOptions,
    ) -> Reply<Option<u64>> {
        match self.new_put(key.as_ref(), value.as_ref(), options) {
            Ok(put) => self.send_put(put, |version| version),
            Err(error) => Reply::error(error),
        }
    }

    /// The value of a key, if it has one: from the cache, in the thread that polls, or by one read
    /// of the disk that is checked against its checksums. (By one more if a merge moved it
    /// meanwhile.)
    ///
    /// It sees every write that was acknowledged before, and none that is not as durable yet as it
    /// was asked to be. Before a key is said to be gone because it has expired, that is made
    /// durable, if it was not: such a get waits for a write. It goes on where writes fail, also if
    /// its partition is poisoned or full. Dropping the future changes nothing.
    ///
    /// # Errors
    ///
    /// [`Error::KeyTooLarge`]; [`Error::Corrupt`] if the record is not what was written there;
    /// [`Error::Io`] if the device or the system refuses the read; [`Error::Closed`].
    pub fn get(&self, key: impl AsRef<[u8]>) -> Reply<Option<Bytes>> {
        let key = key.as_ref();
        if key.len() > MAX_KEY_LEN {
            return Reply::error(Error::KeyTooLarge { len: key.len() });
        }
        let (inner, key) = (Arc::clone(&self.inner), Bytes::copy_from_slice(key));
        Reply::new(async move {
            inner.check_open()?;
            let (digest, bytes) = (inner.router.digest(&key), key.len());
            if let Some(value) = inner.router.cached(digest, &key) {
                return Ok(Some(value));
            }
            let work = move |partition: Rc<Partition>| async move {
                Ok(partition.get(digest, &key).await?.map(|found| found.value))
            };
            inner.router.send(digest, bytes, work).await
        })
    }

    /// [`get`](Self::get) with the entry's version and expiry. It asks the entry's owner, never the
    /// cache, which has neither.
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get).
    pub fn get_entry(&self, key: impl AsRef<[u8]>) -> Reply<Option<Entry>> {
        self.with_key(key.as_ref(), |partition, digest, key| async move {
            let found = partition.get(digest, &key).await?;
            Ok(found.map(|Found { value, version, expiry }| Entry {
                key,
                value,
                version,
                expires_at: time_of(expiry),
            }))
        })
    }

    /// Whether a key is there, as [`get`](Self::get) would see it. Reads nothing, unless the entry
    /// has an expiry.
    ///
    /// # Errors
    ///
    /// [`Error::KeyTooLarge`], [`Error::Closed`], and those of a read if the entry has an expiry:
    /// [`Error::Corrupt`], [`Error::Io`].
    pub fn contains_key(&self, key: impl AsRef<[u8]>) -> Reply<bool> {
        self.with_key(key.as_ref(), |partition, digest, key| async move {
            partition.contains(digest, &key).await
        })
    }

    /// Removes a key. Resolves to whether it was there, and is then as durable as the handle's
    /// [`Durability`] says; `false` waits for the delete that it depends on, if that is under way.
    /// Of a key that is not there nothing is written. On a full disk it has half of a reserve, and
    /// waits for merges that may make room. Dropping the future is as with [`put`](Self::put).
    ///
    /// # Errors
    ///
    /// [`Error::KeyTooLarge`]; [`Error::Full`] if that half is used up, and merges give nothing
    /// back: the key is there as before. [`Error::Poisoned`] as with a put; [`Error::Closed`]; and
    /// those of a read if the entry has an expiry: [`Error::Corrupt`], [`Error::Io`].
    pub fn delete(&self, key: impl AsRef<[u8]>) -> Reply<bool> {
        let durability = self.durability;
        self.with_key(key.as_ref(), move |partition, digest, key| async move {
            partition.delete(digest, key, durability).await
        })
    }

    /// Replaces an entry by what `f` makes of its value: `None` is no entry, before and after.
    /// Resolves to the new value.
    ///
    /// `f` runs once at most, on the thread that owns the key, and nothing comes between its look
    /// and the write; so it must be quick, and must not block. It may see a value that is not
    /// acknowledged yet: the answer waits for that one too. The entry keeps its expiry; one that
    /// has expired is none, and what takes its place does not expire. A panic of `f` changes
    /// nothing and resolves to [`Error::Bug`].
    ///
    /// The change is as durable as the handle's [`Durability`] says. That `f` has run does not mean
    /// that what it made was stored. Dropping the future is as with [`put`](Self::put): if the
    /// request was not sent yet, `f` does not run.
    ///
    /// ```
    /// # let dir = tempfile::tempdir()?;
    /// # ringlog::rt::block_on(async {
    /// # let store = ringlog::Store::open(dir.path(), 1)?;
    /// let count = |old: Option<&[u8]>| {
    ///     let n = old.map_or(0, |old| u64::from_le_bytes(old.try_into().unwrap()));
    ///     Some((n + 1).to_le_bytes().to_vec())
    /// };
    /// store.update("visits", count).await?;
    /// assert_eq!(store.update("visits", count).await?.unwrap()[0], 2);
    /// # store.close().await
    /// # })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::KeyTooLarge`]; [`Error::ValueTooLarge`] for what `f` makes; [`Error::Full`] as with a
    /// put, or with a delete if `f` removes the entry; [`Error::Corrupt`] and [`Error::Io`] of
    /// reading it. In these cases nothing was written. [`Error::Poisoned`] as with
    /// a put; [`Error::Closed`]; [`Error::Bug`].
    pub fn update<F>(&self, key: impl AsRef<[u8]>, f: F) -> Reply<Option<Bytes>>
    where
        F: FnOnce(Option<&[u8]>) -> Option<Vec<u8>> + Send + 'static,
    {
        let durability = self.durability;
        self.with_key(key.as_ref(), move |partition, digest, key| async move {
            partition.update(digest, key, f, durability).await
        })
    }

    // ---- many keys --------------------------------------------------------------------------

    fn new_put(&self, key: &[u8], value: &[u8], options: PutOptions) -> Result<Put> {
        if key.len() > MAX_KEY_LEN {
            return Err(Error::KeyTooLarge { len: key.len() });
        }
        if value.len() > MAX_VALUE_LEN {
            return Err(Error::ValueTooLarge { len: value.len() });
        }
        // In one piece of memory, which the two share: what one thread allocates and another frees
        // is dear.
        let sum = body_sum(key, value);
        let mut value = Bytes::from([key, value].concat());
        let key = value.split_to(key.len());
        Ok(Put {
            key,
            value,
            sum,
            expiry: options.expiry,
            condition: options.condition,
            durability: options.durability.unwrap_or(self.durability),
        })
    }

    /// Sends a put, and makes the reply of what comes back.
    fn send_put<T: 'static>(&self, put: Put, answer: fn(Option<u64>) -> T) -> Reply<T> {
        let inner = Arc::clone(&self.inner);
        Reply::new(async move {
            inner.check_open()?;
            let digest = inner.router.digest(&put.key);
            let bytes = put.key.len() + put.value.len();
            let work =
                move |partition: Rc<Partition>| async move { partition.put(digest, put).await };
            inner.router.send(digest, bytes, work).await.map(answer)
        })
    }

    fn with_key<T, M, F>(&self, key: &[u8], request: M) -> Reply<T>
    where
        M: FnOnce(Rc<Partition>, Digest, Bytes) -> F + Send + 'static,
        F: Future<Output = Result<T>> + 'static,
        T: Send + 'static,
    {
        if key.len() > MAX_KEY_LEN {
            return Reply::error(Error::KeyTooLarge { len: key.len() });
        }
        let (inner, key) = (Arc::clone(&self.inner), Bytes::copy_from_slice(key));
        Reply::new(async move {
            inner.check_open()?;
            let (digest, bytes) = (inner.router.digest(&key), key.len());
            let work = move |partition: Rc<Partition>| request(partition, digest, key);
            inner.router.send(digest, bytes, work).await
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
