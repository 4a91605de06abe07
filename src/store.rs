//! [`Store`]: the front door. Checks the limits, and sends each request to its owner.
//!
//! Invariants: no length goes further down unchecked; after `close` no clone of it does anything.

use crate::bulk::{Entry, Scan, VerifyReport, ask_all, time_of};
use crate::durability::Durability;
use crate::error::{Error, Result};
use crate::limits::{MAX_KEY_LEN, MAX_VALUE_LEN};
use crate::log::record::body_sum;
use crate::log::segment::sync_dir;
use crate::log::superblock::Superblock;
use crate::open::{lock_dir, make_backup_dirs, make_dir, open_dir, sync_name};
use crate::options::{Builder, PutOptions};
use crate::partition::digest::Digest;
use crate::partition::{BackupPart, Found, Partition, Put};
use crate::reply::Reply;
use crate::report::OpenReport;
use crate::router::Router;
use crate::rt::{self, Handle, Owned, Runtime, RuntimeConfig};
use crate::stats::Stats;
use bytes::Bytes;
use std::any::Any;
use std::fmt;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
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
}

struct Inner {
    dir: PathBuf,
    durability: Durability,
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
            durability: options.durability,
            superblock,
            report,
            closed: AtomicBool::new(false),
            router: Arc::new(Router::new(superblock.secret, partitions)),
            runtime: Mutex::new(None),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    fn runtime(&self) -> MutexGuard<'_, Option<Runtime>> {
        self.inner.runtime.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What opening the store found, and what it did about it.
    pub fn open_report(&self) -> &OpenReport {
        &self.inner.report
    }

    // ---- single keys ------------------------------------------------------------------------

    /// Stores a value under a key, over any value that it has.
    ///
    /// When it resolves to `Ok`, the value is as durable as the store's [`Durability`] says, and
    /// every later `get` sees it. An expiry that the key had is gone. Dropping the future once it
    /// was polled leaves the outcome unknown, but whole: the old value or the new. The empty key
    /// and the empty value are like any other. Key and value are copied by this call, before any
    /// poll.
    ///
    /// It waits for its turn while the partition has taken in [`QUEUE_BYTES`](crate::QUEUE_BYTES),
    /// and for merges, once it is written, while there is more garbage than live data.
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

    /// Removes a key. Resolves to whether it was there, and is then as durable as the store's
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
        let durability = self.inner.durability;
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
    /// The change is as durable as the store's [`Durability`] says. That `f` has run does not mean
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
        let durability = self.inner.durability;
        self.with_key(key.as_ref(), move |partition, digest, key| async move {
            partition.update(digest, key, f, durability).await
        })
    }

    // ---- many keys --------------------------------------------------------------------------

    /// The values of many keys, in their order: what the cache has not takes one request to each
    /// partition that is concerned, its reads in flight together, 64 at a time. Not a snapshot:
    /// writes may come between. The answer holds all the values: how much memory that is, is the
    /// caller's choice of keys. Dropping the future changes nothing.
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get), for any of the keys: then there are no values at all.
    pub fn get_many<K: AsRef<[u8]>>(
        &self,
        keys: impl IntoIterator<Item = K>,
    ) -> Reply<Vec<Option<Bytes>>> {
        let inner = Arc::clone(&self.inner);
        let mut wanted = Vec::new();
        for key in keys {
            let key = key.as_ref();
            if key.len() > MAX_KEY_LEN {
                return Reply::error(Error::KeyTooLarge { len: key.len() });
            }
            wanted.push(Bytes::copy_from_slice(key));
        }
        Reply::new(async move {
            inner.check_open()?;
            let router = &inner.router;
            let mut values = vec![None; wanted.len()];
            let mut parts = vec![(Vec::new(), Vec::new(), 0); router.partitions()];
            for (place, key) in wanted.into_iter().enumerate() {
                let digest = router.digest(&key);
                values[place] = router.cached(digest, &key);
                if values[place].is_none() {
                    let (places, keys, bytes) = &mut parts[digest.partition(router.partitions())];
                    places.push(place);
                    *bytes += key.len();
                    keys.push((digest, key));
                }
            }
            let (mut order, mut asks) = (Vec::new(), Vec::new());
            let parts =
                parts.into_iter().enumerate().filter(|(_, (places, ..))| !places.is_empty());
            for (index, (places, keys, bytes)) in parts {
                let router = Arc::clone(router);
                order.push(places);
                asks.push(Reply::new(async move {
                    let work = move |p: Rc<Partition>| async move { p.get_many(keys).await };
                    router.send_to(index, bytes, work).await
                }));
            }
            for (places, answers) in order.into_iter().zip(ask_all(asks).await?) {
                for (place, value) in places.into_iter().zip(answers) {
                    values[place] = value;
                }
            }
            Ok(values)
        })
    }

    /// How many keys there are, by what is acknowledged. Those that have expired count until a
    /// merge comes by. Each partition counts at a moment of its own, after the requests that wait
    /// before this one; nothing is read.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`].
    pub fn len(&self) -> Reply<u64> {
        self.on_all(|partition| async move { Ok(partition.len()) }, |lens| lens.iter().sum())
    }

    /// Whether there are no keys. As [`len`](Self::len).
    ///
    /// # Errors
    ///
    /// [`Error::Closed`].
    pub fn is_empty(&self) -> Reply<bool> {
        let ask = |partition: Rc<Partition>| async move { Ok(partition.len()) };
        self.on_all(ask, |lens| lens.iter().sum::<u64>() == 0)
    }

    /// All entries, in no order. See [`Scan`], also for the errors that are among its items.
    pub fn scan(&self) -> Scan {
        self.scan_prefix("")
    }

    /// The entries whose keys begin so, in no order: reads everything, and shows these. The empty
    /// prefix is all entries; one that is longer than any key is none. See [`Scan`].
    pub fn scan_prefix(&self, prefix: impl AsRef<[u8]>) -> Scan {
        let closed = self.inner.check_open().err();
        Scan::new(Arc::clone(&self.inner.router), Bytes::copy_from_slice(prefix.as_ref()), closed)
    }

    // ---- the whole store --------------------------------------------------------------------

    /// A barrier: when it resolves to `Ok`, every write that was acknowledged before its first poll
    /// is durable, in all partitions. So is a plain put or delete that was only polled before it,
    /// and did not fail; but what has to read before it is written (a condition, an update, a key
    /// with an expiry), or to wait for room, may come after the barrier. Dropping the future once
    /// it was polled leaves syncs to be made by those partitions that it was sent to.
    ///
    /// # Errors
    ///
    /// [`Error::Poisoned`] if this sync, or a write before it, failed in a partition: others may
    /// have been synced. [`Error::Closed`].
    pub fn sync(&self) -> Reply<()> {
        self.on_all(|partition| async move { partition.sync().await }, |_| ())
    }

    /// Merges away the garbage that there is now, and resolves when its space has come back; that
    /// of files which a scan, a backup or a verification still reads comes back when these let go.
    /// Not needed: merges run by themselves where there is enough garbage.
    ///
    /// Each partition ends its active segment, and merges each segment whose garbage is more than
    /// a merge costs: a sixteenth of what is alive in it, and some 4 KiB blocks. It copies as it
    /// goes, at the pace of other merges, which is 32 MiB a second and partition where there is
    /// little garbage. No write is changed by it, or made less durable. Dropping the future does
    /// not end it.
    ///
    /// # Errors
    ///
    /// [`Error::Full`] if there is no room for what has to be copied; [`Error::Corrupt`] for a
    /// record that does not validate, whose segment stays as it is; [`Error::Io`] if a file cannot
    /// be read or removed; [`Error::Poisoned`]; [`Error::Closed`]. What was merged by then stays
    /// so, and other partitions go on.
    pub fn compact(&self) -> Reply<()> {
        self.on_all(|partition| async move { partition.compact().await }, |_| ())
    }

    /// Reads every file of the store: checks every header and sum, the index against the segments,
    /// and the hints against theirs. What does not fit is in the report, and is no error; so is how
    /// many hints are missing, which is no damage.
    ///
    /// The store can be used meanwhile; what is written after it began may be left out. It keeps the
    /// files that it has yet to read, as a [`Scan`] does. Nothing is changed. Dropping the future
    /// does not end it.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if a file cannot be read: then there is no report. [`Error::Closed`].
    pub fn verify(&self) -> Reply<VerifyReport> {
        self.on_all(|partition| async move { partition.verify().await }, VerifyReport::of)
    }

    /// Makes a copy of the store in a new directory, which opens like any store, while this one is
    /// in use. What was acknowledged when it began is in it, and no write is without those that
    /// were acknowledged before it, in any partition, however durable it was asked to be. When it
    /// resolves to `Ok` all of the copy is durable, the directory's name included.
    ///
    /// Where both are on one file system, sealed segments are shared by hard links, so it takes
    /// little space and time; but what damages such a file damages both stores. The active segments
    /// are copied, and read back. Writes wait while all partitions are held at the same moment,
    /// which takes as long as the longest group that is under way; then they go on beside the
    /// copying.
    ///
    /// Dropping the future ends the backup behind the step that is under way, and lets go of all
    /// that was held. What was made by then stays there.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if the system refuses a call, also if the directory is there and not empty, or
    /// the disk is full; [`Error::Corrupt`] if the copy of an active segment does not validate, or
    /// is shorter than what was written; [`Error::Poisoned`] if a write or sync of a partition had
    /// failed; [`Error::Closed`]. What was made by then stays there, and is no store: remove it, or
    /// take another directory, before the next try.
    pub fn backup(&self, dir: impl AsRef<Path>) -> Reply<()> {
        let (inner, dir) = (Arc::clone(&self.inner), dir.as_ref().to_owned());
        Reply::new(async move {
            inner.check_open()?;
            let router = Arc::clone(&inner.router);
            let (home, target, count) = (router.home(), dir.clone(), router.partitions());
            let made = home.schedule(async move { make_backup_dirs(&target, count).await });
            let folders = made.await??;
            let parts = inner.router.send_past(0, |_| hold_all(router)).await?;
            for (part, folder) in parts.iter().zip(folders) {
                let copy = part.schedule(|part| async move { part.copy_to(&folder).await });
                copy.await.map_err(Error::from)??;
            }
            let superblock = inner.superblock;
            let finished = home.schedule(async move {
                sync_dir(&dir).await?;
                sync_name(&dir).await?;
                superblock.write(&dir).await
            });
            finished.await?
        })
    }

    /// What the store has done since it was opened, and what it holds. Each partition counts at a
    /// moment of its own; nothing is read.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`].
    pub fn stats(&self) -> Reply<Stats> {
        let ask = |partition: Rc<Partition>| async move { Ok(partition.stats()) };
        self.on_all(ask, |partitions| Stats { partitions })
    }

    /// Closes the store: finishes the requests that were sent, syncs and seals the logs, ends the
    /// threads. Writes that still wait for their turn, or for a read that they are judged by, and
    /// all that other handles ask from then on, get [`Error::Closed`]. When it resolves to `Ok`,
    /// all that was acknowledged is durable, whatever its [`Durability`]. There is no bound on how
    /// long the device may take for that.
    ///
    /// It is closed to all handles from the first poll on. Dropping the future after that leaves
    /// partitions that were not sealed yet unsealed, as a crash would; the threads are ended as by
    /// dropping the handle.
    ///
    /// # Errors
    ///
    /// The first of these; the other partitions are sealed all the same, and the store is closed in
    /// any case: [`Error::Poisoned`] if a write or sync failed, now or before; [`Error::Stop`] if
    /// the threads did not end in order; [`Error::Io`] if there is no thread to wait for them,
    /// which then ends them here and blocks for it; [`Error::Closed`] if it was closed already.
    pub fn close(self) -> Reply<()> {
        Reply::new(async move {
            let inner = &self.inner;
            if inner.closed.swap(true, Ordering::AcqRel) {
                return Err(Error::Closed);
            }
            let mut outcome = Ok(());
            for index in 0..inner.router.partitions() {
                let sealed = inner.router.send_past(index, |p| async move { p.close().await });
                outcome = outcome.and(sealed.await);
            }
            let runtime = self.runtime().take();
            let stopped = match runtime {
                Some(runtime) => stop(runtime).await,
                None => Ok(()),
            };
            outcome.and(stopped)
        })
    }

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
            durability: options.durability.unwrap_or(self.inner.durability),
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

    /// Asks all partitions at the same time, and puts their answers together in order.
    pub(crate) fn on_all<T, U, M, F>(&self, ask: M, join: fn(Vec<T>) -> U) -> Reply<U>
    where
        M: Fn(Rc<Partition>) -> F + Send + Sync + Copy + 'static,
        F: Future<Output = Result<T>> + 'static,
        T: Send + 'static,
        U: 'static,
    {
        let inner = Arc::clone(&self.inner);
        Reply::new(async move {
            inner.check_open()?;
            let answers = ask_all((0..inner.router.partitions()).map(|index| {
                let router = Arc::clone(&inner.router);
                Reply::new(async move { router.send_to(index, 0, ask).await })
            }));
            answers.await.map(join)
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

/// Holds all partitions, and lets them go on. To be run by a thread of the store: a caller that is
/// not polled meanwhile must not hold up all writes.
async fn hold_all(router: Arc<Router>) -> Result<Vec<Owned<BackupPart>>> {
    let parts = ask_all((0..router.partitions()).map(|index| {
        let router = Arc::clone(&router);
        let hold = |partition: Rc<Partition>| async move {
            partition.begin_backup().await.map(Owned::new)
        };
        Reply::new(async move { router.send_past(index, hold).await })
    }));
    let parts: Vec<Owned<BackupPart>> = parts.await?;
    // All are held at this moment: this is the cut.
    for part in &parts {
        drop(part.schedule(|part| async move { part.release() }));
    }
    Ok(parts)
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
