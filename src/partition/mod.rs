//! A partition: the segments of one log, the keydir over them, and the group that is being
//! committed. It lives on its owner's thread, which gives every operation its place.
//!
//! Invariants: (1) a read sees only what is as safe as its write asked for: the keydir is changed
//! when a group is done, never before; (2) a write is judged against everything before it,
//! acknowledged or not (the overlay); (3) an answer that depends on a write which is not
//! acknowledged yet waits for it; (4) after a failed write or sync no write ever succeeds, and reads
//! go on.

mod backup;
mod cache;
mod change;
mod chunks;
mod clock;
mod commit;
pub(crate) mod digest;
mod keydir;
mod ledger;
mod load;
mod merge;
mod overlay;
mod pace;
mod plan;
mod promise;
mod recover;
mod rotate;
mod space;
mod staged;
mod table;
mod verify;
mod walk;

use crate::durability::Durability;
use crate::error::{Error, Result};
use crate::log::Identity;
use crate::log::journal;
use crate::log::place::{Class, Place};
use crate::log::record::{Kind, Record};
use crate::log::scan::Shown;
use crate::log::segment::Segment;
use crate::rt::{self, AlignedBuf, Handle};
use crate::stats::PartitionStats;
use bytes::Bytes;
use clock::Clock;
use commit::Commit;
use digest::Digest;
use ledger::Ledger;
use overlay::Promised;
use pace::Merging;
use staged::{Need, Op, Ticket};
use std::any::Any;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

pub(crate) use backup::BackupPart;
pub(crate) use cache::Cache;
pub(crate) use change::{Condition, Expiry, Put};
pub(crate) use plan::Plan;
pub(crate) use verify::Verified;
pub(crate) use walk::{Walk, Walked};

/// What a partition is told when it is opened.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) dir: PathBuf,
    /// Where a salvage sets damaged segments aside; none for a strict opening.
    pub(crate) quarantine: Option<PathBuf>,
    pub(crate) identity: Identity,
    pub(crate) secret: [u8; 16],
    /// Random, of this opening.
    pub(crate) seed: [u8; 16],
    pub(crate) segment_bytes: u64,
    /// How many files of segments may be open at a time.
    pub(crate) open_files: usize,
    /// How many entries of the next hint it may remember.
    pub(crate) hint_entries: usize,
    pub(crate) cache: Arc<Cache>,
    /// The thread that it lives on.
    pub(crate) home: Handle,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Partition {
    dir: PathBuf,
    identity: Identity,
    secret: [u8; 16],
    segment_bytes: u64,
    home: Handle,
    /// What salts are made of.
    seed: [u8; 16],
    ledger: RefCell<Ledger>,
    next_id: Cell<u64>,
    commit: Commit,
    /// While the next segment is being made.
    making: RefCell<Option<Rc<Ticket>>>,
    merging: Merging,
    clock: Clock,
    cache: Arc<Cache>,
    /// For reads to come.
    buffers: RefCell<Vec<AlignedBuf>>,
    /// Hints that are being written, or are to be.
    hints: Cell<usize>,
    /// Those who change names, or wait to: the first does.
    naming: RefCell<VecDeque<Rc<Ticket>>>,
    /// Tasks of its own that `close` waits for.
    chores: Cell<usize>,
    stats: Cell<PartitionStats>,
    /// Keeps others from the files for as long as this one may write to them.
    _lock: Arc<dyn Any + Send + Sync>,
}

/// Where a record is, for good: ids of segments are never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Spot {
    place: Place,
    segment: u64,
}

/// An entry as it was read.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    pub(crate) value: Bytes,
    pub(crate) version: u64,
    /// Milliseconds since 1970.
    pub(crate) expiry: Option<u64>,
}

impl Partition {
    fn count(&self, f: impl FnOnce(&mut PartitionStats)) {
        let mut stats = self.stats.get();
        f(&mut stats);
        self.stats.set(stats);
    }

    /// Where a key's newest acknowledged record is, if it is a put.
    fn place(&self, digest: Digest) -> Option<Place> {
        let entry = self.ledger.borrow().keydir.get(digest)?;
        let place = Place::of(entry.place);
        (!place.is_tombstone()).then_some(place)
    }

    /// The same, with the id of its segment: slots are used again.
    fn spot(&self, digest: Digest) -> Option<Spot> {
        let place = self.place(digest)?;
        Some(Spot { place, segment: self.ledger.borrow().space.get(place.slot()).segment.id })
    }

    /// Reads a key's record, wherever it has moved to meanwhile, expired or not.
    async fn read(&self, digest: Digest, key: &[u8]) -> Result<Option<(Spot, Found)>> {
        let mut refused = false;
        while let Some(place) = self.place(digest) {
            let segment = self.ledger.borrow_mut().space.for_reading(place.slot());
            let spot = Spot { place, segment: segment.id };
            let found = self.read_at(&segment, place, key).await;
            match found {
                Ok(Some(found)) => return Ok(Some((spot, found))),
                Ok(None) => {
                    let reason = "a record is another than the one that was indexed";
                    return Err(segment.corrupt(place.offset(), reason));
                }
                // The segment was merged meanwhile, and its file is gone.
                Err(_) if self.spot(digest) != Some(spot) => {}
                Err(Error::Io { source, .. }) if is_out_of_files(&source) && !refused => {
                    refused = true;
                    self.ledger.borrow_mut().space.bound_open(0);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// Reads a record, if it is this key's.
    async fn read_at(&self, segment: &Segment, place: Place, key: &[u8]) -> Result<Option<Found>> {
        if place.len() >= LARGE {
            // Its buffer is the value's.
            let shown = Shown::read(segment, place.offset(), place.len()).await?;
            let record = shown.record();
            let (version, expiry) = (record.sequence, record.expiry);
            let same = record.kind == Kind::Put && record.key == key;
            return Ok(same.then(|| Found { value: shown.share().1, version, expiry }));
        }
        // A pooled buffer and a copy of the value are quicker than an aligned buffer for each, and a
        // small value does not keep whole blocks alive.
        let buf = self.buffers.borrow_mut().pop().unwrap_or_default();
        let found = |record: &Record<'_>| {
            (record.kind == Kind::Put && record.key == key).then(|| Found {
                value: Bytes::copy_from_slice(record.value),
                version: record.sequence,
                expiry: record.expiry,
            })
        };
        let (found, buf) = segment.with_record(buf, place.offset(), place.len(), found).await;
        if self.buffers.borrow().len() < POOLED_BUFFERS {
            self.buffers.borrow_mut().push(buf);
        }
        found
    }

    fn is_expired(&self, expiry: Option<u64>) -> bool {
        expiry.is_some_and(|expiry| expiry <= self.clock.now())
    }

    /// Whoever was told that a key has expired is never told otherwise: a mark carries the clock
    /// that said so. (A partition that cannot write can still say it, and does not take for it what
    /// deletes and merges count on.)
    async fn prove_expired(self: &Rc<Self>, expiry: Option<u64>) {
        let proven = expiry.is_none_or(|expiry| expiry <= self.commit.durable_clock());
        if !proven
            && let Ok((ticket, _)) =
                self.stage(Digest::default(), Op::Clock(Need::Put), Durability::Sync)
        {
            drop(ticket.wait(self).await);
        }
    }

    /// One read of the disk, or none if the key is not there; one more for each merge that moves it
    /// meanwhile.
    pub(crate) async fn get(self: &Rc<Self>, digest: Digest, key: &Bytes) -> Result<Option<Found>> {
        if let Some(Promised { sequence: version, value, .. }) = self.promised(digest, key) {
            return Ok(value.map(|value| Found { value, version, expiry: None }));
        }
        let Some((spot, found)) = self.read(digest, key).await? else { return Ok(None) };
        if self.is_expired(found.expiry) {
            self.prove_expired(found.expiry).await;
            return Ok(None);
        }
        // Not if it was replaced while it was read. What can expire takes a look at the clock.
        let newest = self.spot(digest) == Some(spot) && self.promised(digest, key).is_none();
        if found.expiry.is_none() && newest {
            self.cache.offer(digest, key, &found.value);
        }
        Ok(Some(found))
    }

    /// No read of the disk, unless the key has an expiry.
    pub(crate) async fn contains(self: &Rc<Self>, digest: Digest, key: &Bytes) -> Result<bool> {
        if let Some(promised) = self.promised(digest, key) {
            return Ok(promised.value.is_some());
        }
        match self.place(digest).map(Place::class) {
            Some(Class::Put) => Ok(true),
            None | Some(Class::Tombstone) => Ok(false),
            Some(Class::Expiring) => Ok(self.get(digest, key).await?.is_some()),
        }
    }

    /// Many keys, with their reads in flight together.
    pub(crate) async fn get_many(
        self: &Rc<Self>,
        keys: Vec<(Digest, Bytes)>,
    ) -> Result<Vec<Option<Bytes>>> {
        let mut answers = Vec::with_capacity(keys.len());
        for some in keys.chunks(READS_AT_ONCE) {
            let reads: Vec<_> = some
                .iter()
                .map(|(digest, key)| {
                    let (partition, digest, key) = (Rc::clone(self), *digest, key.clone());
                    rt::spawn(async move { partition.get(digest, &key).await })
                })
                .collect();
            for read in reads {
                answers.push(read.await.map_err(Error::from)??.map(|found| found.value));
            }
        }
        Ok(answers)
    }

    /// Waits until everything before it is durable.
    pub(crate) async fn sync(self: &Rc<Self>) -> Result<()> {
        self.barrier().await
    }

    /// Keys that are there.
    pub(crate) async fn len(self: &Rc<Self>) -> Result<u64> {
        self.keep_promises().await?;
        Ok(self.ledger.borrow().live_keys)
    }

    /// Changes of segments' names, and the sync that covers them, by one at a time, in the order in
    /// which they ask: one that fails leaves in doubt what another has changed meanwhile, who hears
    /// nothing of it.
    async fn naming_turn(&self) -> NamingTurn<'_> {
        let own = Rc::<Ticket>::default();
        self.naming.borrow_mut().push_back(Rc::clone(&own));
        let turn = NamingTurn { turns: &self.naming, own };
        loop {
            let first = self.naming.borrow().front().map(Rc::clone);
            match first {
                Some(first) if !Rc::ptr_eq(&first, &turn.own) => drop(first.outcome().await),
                _ => return turn,
            }
        }
    }

    /// Takes no more writes, ends its own tasks, and seals the log, so that the next opening has
    /// nothing to scan.
    pub(crate) async fn close(self: &Rc<Self>) -> Result<()> {
        self.commit.close();
        self.barrier().await?;
        self.wait_for_chores().await;
        self.stage(Digest::default(), Op::Seal, Durability::Sync)?.0.wait(self).await?;
        self.wait_for_chores().await;
        if self.commit.promises.end() {
            // All of it is in the log; if it stays, it means nothing.
            drop(journal::remove(&self.dir).await);
        }
        Ok(())
    }

    /// Runs a task that `close` waits for.
    fn chore(self: &Rc<Self>, work: impl Future<Output = ()> + 'static) {
        self.chores.set(self.chores.get() + 1);
        let done = ChoreDone(Rc::clone(self));
        drop(rt::spawn(async move {
            work.await;
            drop(done);
        }));
    }

    async fn wait_for_chores(&self) {
        while self.chores.get() > 0 || self.is_merging() {
            // They are few, and end soon once the partition closes.
            drop(rt::timeout_ms(1).await);
        }
    }

    pub(crate) fn stats(&self) -> PartitionStats {
        let mut stats = self.stats.get();
        let ledger = self.ledger.borrow();
        stats.keys = ledger.live_keys;
        (stats.log_bytes, stats.live_bytes) = ledger.space.totals();
        stats.segments = ledger.space.iter().count() as u64;
        stats.index_bytes = ledger.keydir.memory() as u64;
        (stats.cache_bytes, stats.cache_hits) = self.cache.stats();
        stats
    }
}

/// That of one who changes names, or waits to.
struct NamingTurn<'a> {
    turns: &'a RefCell<VecDeque<Rc<Ticket>>>,
    own: Rc<Ticket>,
}

impl Drop for NamingTurn<'_> {
    fn drop(&mut self) {
        self.turns.borrow_mut().retain(|turn| !Rc::ptr_eq(turn, &self.own));
        self.own.finish(Ok(()));
    }
}

struct ChoreDone(Rc<Partition>);

impl Drop for ChoreDone {
    fn drop(&mut self) {
        self.0.chores.set(self.0.chores.get() - 1);
    }
}

fn is_out_of_files(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

/// Reads of one `get_many` that are in flight at a time: enough for a device's full rate at small
/// reads, and a bound on what they hold in buffers.
const READS_AT_ONCE: usize = 64;

/// Buffers for reads that are kept: what one `get_many` has in flight. None has much more than
/// 128 KiB.
const POOLED_BUFFERS: usize = 64;
/// A record from which on its buffer is not pooled, but given to whoever asked. Longer than the
/// longest key with the longest value that the cache keeps: that holds no more than it counts.
const LARGE: usize = 128 << 10;
