//! What concerns a whole store: counts, scans, syncs, merges, verification, backups, the end.
//!
//! Invariants: counts, syncs, merges and verification ask all partitions at the same time, scans and
//! the end one after the other, and a backup holds all at one moment; a caller that is not polled
//! holds up no writes.

use super::Store;
use crate::bulk::{Scan, VerifyReport, ask_all};
use crate::error::{Error, Result};
use crate::log::segment::sync_dir;
use crate::open::{make_backup_dirs, sync_name};
use crate::partition::{BackupPart, Partition};
use crate::reply::Reply;
use crate::router::Router;
use crate::rt::{Owned, Runtime};
use crate::stats::Stats;
use bytes::Bytes;
use std::future::Future;
use std::path::Path;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Poll, Waker};

impl Store {
    /// How many keys there are, by what is acknowledged. Those that have expired count until a
    /// merge comes by. Each partition counts at a moment of its own, after the requests that wait
    /// before this one; nothing is read. It waits for the log to have what was acknowledged before.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`]; [`Error::Poisoned`] if the log will never have all of that.
    pub fn len(&self) -> Reply<u64> {
        self.on_all(|partition| async move { partition.len().await }, |lens| lens.iter().sum())
    }

    /// Whether there are no keys. As [`len`](Self::len).
    ///
    /// # Errors
    ///
    /// As of [`len`](Self::len).
    pub fn is_empty(&self) -> Reply<bool> {
        let ask = |partition: Rc<Partition>| async move { partition.len().await };
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

    /// A barrier: when it resolves to `Ok`, every write that was acknowledged before its first poll
    /// is durable, in all partitions. So is a plain put or delete that was only polled before it,
    /// and did not fail; but what has to read before it is written (a condition, an update, a key
    /// with an expiry), or to wait for room, or is one of many puts, may come after the barrier.
    /// Dropping the future once it was polled leaves syncs to be made by those partitions that it
    /// was sent to.
    ///
    /// # Errors
    ///
    /// [`Error::Poisoned`] if this sync, or a write before it, failed in a partition: others may
    /// have been synced. [`Error::Closed`].
    pub fn sync(&self) -> Reply<()> {
        self.on_all(|partition| async move { partition.sync().await }, |_| ())
    }

    /// Merges away the garbage that there is now, and resolves when its space has come back; that
    /// of files which a scan, a backup or a verification still reads comes back when these let go,
    /// and of those that a scan has yet to read it merges no more than that can keep in mind (some
    /// 65,000 entries a partition).
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

    /// Reads every file of the store: checks every header and sum, the index against the segments
    /// and these against the index, and the hints against theirs. What does not fit is in the report,
    /// and is no error; so is how many hints are missing, which is no damage.
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
    /// threads. Writes that still wait for their turn, or for a read that they are judged by, those
    /// of many puts that come later, and all that other handles ask from then on, get
    /// [`Error::Closed`]. When it resolves to `Ok`, all that was acknowledged is durable, whatever
    /// its [`Durability`](crate::Durability). There is no bound on how long the device may take for
    /// that.
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
    let helper = Arc::new(Mutex::new((None, None::<Waker>)));
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
