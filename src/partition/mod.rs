//! A partition: one log, its keydir, and the group that is being committed. It lives on its
//! owner's thread, which gives every operation its place.
//!
//! Invariants: (1) a read sees only what is durable: the keydir is changed when a group is, never
//! before; (2) a write is judged against everything before it, durable or not (the overlay); (3) an
//! answer that depends on a write which is not durable yet waits for it; (4) after a failed write
//! or sync no write ever succeeds, and reads go on.

mod commit;
pub(crate) mod keydir;

use crate::error::{Error, Result};
use crate::log::Log;
use crate::log::record::Kind;
use crate::stats::PartitionStats;
use bytes::Bytes;
use commit::Commit;
use keydir::{Digest, Keydir};
use std::any::Any;
use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

/// See the module.
#[derive(Debug)]
pub(crate) struct Partition {
    log: Log,
    keydir: RefCell<Keydir>,
    commit: Commit,
    /// Keeps others from the files for as long as this one may write to them.
    _lock: Arc<dyn Any + Send + Sync>,
}

/// What a partition is told when it is opened.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Identity {
    pub(crate) store: [u8; 16],
    pub(crate) secret: [u8; 16],
    pub(crate) partition: u32,
}

impl Partition {
    /// Opens the partition's log and rebuilds the keydir from it.
    pub(crate) async fn open(
        path: &Path,
        identity: Identity,
        lock: Arc<dyn Any + Send + Sync>,
    ) -> Result<Self> {
        let mut keydir = Keydir::default();
        let mut sequence = 0;
        let Identity { store, secret, partition } = identity;
        let log = Log::open(path, store, partition, |record, location| {
            let digest = Digest::new(&secret, record.key);
            match record.kind {
                Kind::Put => drop(keydir.insert(digest, location)),
                Kind::Delete => drop(keydir.remove(&digest)),
                Kind::Mark => {}
            }
            sequence = record.sequence;
        })
        .await?;
        let commit = Commit::new(log.tail(), sequence);
        Ok(Self { log, keydir: RefCell::new(keydir), commit, _lock: lock })
    }

    /// Durable when it returns.
    pub(crate) async fn put(
        self: &Rc<Self>,
        digest: Digest,
        key: &[u8],
        value: &[u8],
    ) -> Result<()> {
        self.stage(digest, key, Some(value))?.wait(self).await
    }

    /// Whether the key was there. Durable when it returns.
    pub(crate) async fn delete(self: &Rc<Self>, digest: Digest, key: &[u8]) -> Result<bool> {
        let was_there = match self.commit.overlay(digest) {
            Some((true, _)) => true,
            Some((false, deleting)) => {
                // A delete before this one is not durable yet: a crash could bring the key back.
                deleting.wait(self).await?;
                return Ok(false);
            }
            None => self.keydir.borrow().contains_key(&digest),
        };
        if was_there {
            self.stage(digest, key, None)?.wait(self).await?;
        }
        Ok(was_there)
    }

    /// One read of the disk, or none if the key is not there.
    pub(crate) async fn get(&self, digest: Digest, key: &[u8]) -> Result<Option<Bytes>> {
        let location = self.keydir.borrow().get(&digest).copied();
        match location {
            Some(location) => self.log.read(location, key).await.map(Some),
            None => Ok(None),
        }
    }

    /// Waits until everything before it is durable.
    pub(crate) async fn sync(self: &Rc<Self>) -> Result<()> {
        match self.commit.last() {
            Some(group) => group.wait(self).await,
            None => self.commit.check(self),
        }
    }

    /// Takes no more writes, and ends the log with a mark, so that the next opening can tell damage
    /// to the last group from a torn tail.
    pub(crate) async fn close(self: &Rc<Self>) -> Result<()> {
        self.commit.seal();
        self.sync().await?;
        self.stage_mark()?.wait(self).await
    }

    pub(crate) fn stats(&self) -> PartitionStats {
        let mut stats = self.commit.stats();
        stats.keys = self.keydir.borrow().len() as u64;
        stats.log_bytes = self.log.tail();
        stats
    }

    fn poisoned(&self, cause: Arc<std::io::Error>) -> Error {
        Error::Poisoned { path: self.log.path().to_owned(), cause }
    }
}
