//! [`Store`]: the front door. Checks the limits, and sends each request to its owner.
//!
//! Invariants: a store is open in one place at a time (its lock file); it exists only when it is
//! whole (its superblock comes last); after `close` no clone of it does anything.

use crate::error::{Error, Result};
use crate::limits::{MAX_KEY_LEN, MAX_VALUE_LEN};
use crate::log::file::{FILE_HEADER_LEN, FileHeader};
use crate::log::superblock::{Superblock, random, sync_dir};
use crate::options::Builder;
use crate::partition::{Identity, Partition};
use crate::router::Router;
use crate::rt::{self, Owned, Runtime, RuntimeConfig};
use crate::stats::Stats;
use bytes::Bytes;
use std::fmt;
use std::fs::{self, File, TryLockError};
use std::future::Future;
use std::io::{self, ErrorKind, Seek, Write};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

/// A key-value store in a directory. Clones are handles to the same store, from any thread.
///
/// Every operation returns a [`Reply`]: a future that is `Send` and `'static`, does nothing until
/// it is polled, and can be awaited on any executor. No thread is parked meanwhile, unless it
/// chooses to ([`rt::block_on`]).
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

/// The answer to come of a request: a future that any executor can await. Nothing happens before
/// its first poll. Dropping it then withdraws a request that still waits for its turn; one that was
/// sent goes on.
#[must_use = "a request is not sent until its reply is awaited"]
pub struct Reply<T> {
    state: State<T>,
}

enum State<T> {
    Running(Pin<Box<dyn Future<Output = Result<T>> + Send>>),
    Answered(Option<Result<T>>),
}

impl<T> Reply<T> {
    fn new(future: impl Future<Output = Result<T>> + Send + 'static) -> Self {
        Self { state: State::Running(Box::pin(future)) }
    }

    fn error(error: Error) -> Self {
        Self { state: State::Answered(Some(Err(error))) }
    }

    /// Sends the request, and keeps an answer that is there at once.
    fn start(&mut self, cx: &mut Context<'_>) {
        if let State::Running(future) = &mut self.state
            && let Poll::Ready(answer) = future.as_mut().poll(cx)
        {
            self.state = State::Answered(Some(answer));
        }
    }
}

// The boxed future is pinned by its box, an answer is never pinned.
impl<T> Unpin for Reply<T> {}

impl<T> Future for Reply<T> {
    type Output = Result<T>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.start(cx);
        match &mut self.state {
            State::Running(_) => Poll::Pending,
            State::Answered(answer) => {
                Poll::Ready(answer.take().expect("a reply was polled after it had resolved"))
            }
        }
    }
}

impl<T> fmt::Debug for Reply<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reply").finish_non_exhaustive()
    }
}

/// The parent of a relative path's first part has an empty name.
fn here(dir: &Path) -> &Path {
    if dir.as_os_str().is_empty() { Path::new(".") } else { dir }
}

/// Makes the directory if it is not there, durably.
fn make_dir(dir: &Path) -> Result<()> {
    // Those that are to be made, from the inside out.
    let new: Vec<_> = dir.ancestors().take_while(|dir| !here(dir).is_dir()).collect();
    fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
    new.iter().filter_map(|dir| dir.parent()).try_for_each(|parent| sync_dir(here(parent)))
}

/// Makes the directory's own name durable, also if somebody else has just made it.
fn sync_name(dir: &Path) -> Result<()> {
    let parent = here(dir.parent().unwrap_or(dir));
    match sync_dir(parent) {
        // A directory that may not be read: whoever made this one in it answers for its name.
        Err(Error::Io { source, .. }) if source.kind() == ErrorKind::PermissionDenied => Ok(()),
        synced => synced,
    }
}

/// A lock that ends with its process, however that ends. The id in it is for people to read.
struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        // In so many words: a process forked meanwhile may hold the same open file. If it fails,
        // closing the file is what is left to do, and happens next.
        drop(self.0.unlock());
    }
}

fn lock_dir(dir: &Path) -> Result<Lock> {
    let path = dir.join("LOCK");
    let file = File::options()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(&path)
        .map_err(Error::io("open", &path))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let holder = fs::read_to_string(&path).ok().and_then(|pid| pid.trim().parse().ok());
            return Err(Error::Locked { path, holder });
        }
        Err(TryLockError::Error(error)) => return Err(Error::io("lock", &path)(error)),
    }
    let mut lock = Lock(file);
    let file = &mut lock.0;
    let written = file
        .set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| writeln!(file, "{}", std::process::id()));
    written.map_err(Error::io("write", &path))?;
    Ok(lock)
}

fn log_path(dir: &Path, partition: usize) -> PathBuf {
    dir.join(format!("p{partition:04}.log"))
}

/// Left by an interrupted creation, logs are empty. If one is not, its superblock is lost.
fn check_no_records(dir: &Path) -> Result<()> {
    let entries: io::Result<Vec<_>> = fs::read_dir(dir).and_then(Iterator::collect);
    let mut entries = entries.map_err(Error::io("list", dir))?;
    entries.sort_by_key(fs::DirEntry::path);
    for entry in entries {
        let path = entry.path();
        if path.extension().is_some_and(|extension| extension == "log") {
            let meta = entry.metadata().map_err(Error::io("look at", &path))?;
            if meta.len() > FILE_HEADER_LEN as u64 {
                let reason = "there are records, but no STORE file that they belong to";
                return Err(Error::Corrupt { path, offset: 0, reason });
            }
        }
    }
    Ok(())
}

/// Makes an empty store: the logs, and then the superblock, which makes it exist.
fn create(dir: &Path, partitions: usize, runtime: &Runtime) -> Result<Superblock> {
    let count = u32::try_from(partitions).expect("at most MAX_PARTITIONS");
    let superblock = Superblock::new(count)?;
    for index in 0..partitions {
        let path = log_path(dir, index);
        let header = FileHeader {
            store: superblock.id,
            partition: u32::try_from(index).expect("at most MAX_PARTITIONS"),
            salt: u64::from_le_bytes(random()?),
        };
        let task = runtime.schedule(async move { header.create(&path).await });
        rt::wait(task).map_err(Error::from)??;
    }
    superblock.write(dir)?;
    Ok(superblock)
}

/// Opens all partitions at the same time, each on the thread that will own it.
fn open_partitions(
    dir: &Path,
    superblock: Superblock,
    runtime: &Runtime,
    lock: &Arc<Lock>,
) -> Result<Vec<Owned<Partition>>> {
    let Superblock { partitions, id, secret } = superblock;
    let opening: Vec<_> = (0..partitions)
        .map(|partition| {
            let path = log_path(dir, partition as usize);
            let identity = Identity { store: id, secret, partition };
            // Each partition holds the lock: while a thread may still write to a log, whatever
            // became of the store's handles, nobody else opens the directory.
            let lock = Arc::clone(lock);
            let owner = runtime.thread(partition as usize % runtime.size());
            owner.schedule_local(move || async move {
                Partition::open(&path, identity, lock).await.map(Owned::new)
            })
        })
        .collect();
    opening.into_iter().map(|task| rt::wait(task).map_err(Error::from)?).collect()
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
