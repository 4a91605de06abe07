//! Opening a partition: what its [`Plan`] says is done, and then it goes on.
//!
//! Invariant: recovering what a recovery left, whole or half done, gives the same.

use super::clock::Clock;
use super::commit::{Commit, Spare};
use super::digest::Digest;
use super::load::list;
use super::plan::{FIRST_ID, Plan, after_lost};
use super::rotate::{SPARES, Sealed, is_full};
use super::staged::{Need, Op};
use super::{Partition, Settings};
use crate::durability::Durability;
use crate::error::{Error, Result};
use crate::log::journal;
use crate::log::segment::{Segment, sync_dir};
use crate::log::superblock::random;
use crate::log::writer::{FIRST_ROOM, Writer};
use crate::log::{BLOCK, CHUNK, Identity};
use crate::report::PartitionReport;
use crate::rt;
use std::any::Any;
use std::cell::{Cell, RefCell};
use std::io;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

impl Plan {
    /// Makes the segment that an empty partition begins with, durably. What an interrupted creation
    /// left in its folder belongs to a store that never was.
    pub(crate) async fn make_first(dir: &Path, identity: &Identity) -> Result<()> {
        let names = list(dir).await?;
        for path in names.ids.iter().map(|&id| Segment::path_in(dir, id)).chain(names.leftovers) {
            rt::unlink(None, &path).await.map_err(Error::io("remove", &path))?;
        }
        make_segment(dir, identity, FIRST_ID).await.map(drop)
    }

    /// Does what has to be done, and opens the partition.
    pub(crate) async fn carry_out(
        mut self,
        lock: Arc<dyn Any + Send + Sync>,
    ) -> Result<(Rc<Partition>, PartitionReport)> {
        self.set_aside().await?;
        self.make_next().await?;
        if let Some((slot, Some(end))) = self.last {
            let segment = Rc::clone(&self.ledger.space.get(slot).segment);
            let next = self.spares.first().map_or(0, |spare| spare.segment.id);
            let (found, sequence, clock) = (Rc::clone(&segment), self.sequence, self.clock);
            let sealed = Writer::seal_found(found, end, sequence, clock, next);
            let seal = sealed.await.map_err(Error::io("seal", segment.path()))?;
            segment.trim(seal + BLOCK).await?;
        }
        self.report.leftovers = self.leftovers.len() as u64;
        while self.spares.len() > SPARES
            && let Some(spare) = self.spares.pop()
        {
            self.leftovers.push(spare.segment.path().to_owned());
        }
        for path in &self.leftovers {
            match rt::unlink(None, path).await {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                result => result.map_err(Error::io("remove", path))?,
            }
        }
        sync_dir(&self.settings.dir).await?;
        for (segment, len) in self.untrimmed.drain(..) {
            // It saves space, and nothing depends on it.
            drop(segment.trim(len).await);
            segment.close_file();
        }
        self.into_partition(lock).await
    }

    /// Sees to it that a segment is there, durably, to go on with, before a seal names it. Without
    /// room for it the store opens all the same.
    async fn make_next(&mut self) -> Result<()> {
        let Settings { dir, identity, .. } = &self.settings;
        let id = match self.torn {
            Some(torn) => torn,
            None if self.spares.is_empty() => self.next_id,
            None => return sync_dir(dir).await,
        };
        match make_segment(dir, identity, id).await {
            Ok(spare) => self.spares.insert(0, spare),
            Err(Error::Io { source, .. }) if is_full(&source) && self.last.is_some() => {}
            Err(error) => return Err(error),
        }
        self.next_id = self.next_id.max(id + 1);
        Ok(())
    }

    async fn into_partition(
        mut self,
        lock: Arc<dyn Any + Send + Sync>,
    ) -> Result<(Rc<Partition>, PartitionReport)> {
        let Settings { dir, identity, secret, seed, segment_bytes, cache, home, .. } =
            self.settings;
        let hint_entries = self.settings.hint_entries;
        let mut spares = self.spares;
        let (writer, active) = match self.last {
            Some((slot, _)) => {
                let extant = self.ledger.space.get(slot);
                (Writer::sealed(Rc::clone(&extant.segment), extant.scan_len() - BLOCK), slot)
            }
            None => {
                let Spare { segment, prepared } = spares.remove(0);
                let slot = self.ledger.space.add(Rc::clone(&segment), BLOCK, None);
                let limit = self.ledger.space.next_limit(segment_bytes, prepared);
                (Writer::new(segment, prepared, limit), slot)
            }
        };
        let commit = Commit::new(writer, active, spares, (self.sequence, self.clock), hint_entries);
        let partition = Rc::new(Partition {
            dir,
            identity,
            secret,
            seed,
            segment_bytes,
            home,
            ledger: RefCell::new(self.ledger),
            next_id: Cell::new(self.next_id),
            commit,
            making: RefCell::default(),
            merging: super::Merging::default(),
            clock: Clock::new(self.clock),
            cache,
            buffers: RefCell::default(),
            hints: Cell::new(0),
            naming: RefCell::default(),
            chores: Cell::new(0),
            stats: Cell::default(),
            _lock: lock,
        });
        for &slot in &self.damaged {
            // Not for merges that do not know of the damage.
            partition.ledger.borrow_mut().space.set_damaged(slot);
        }
        for &Sealed { slot, .. } in &self.unhinted {
            // Nor for those that a salvage's own writes may start, before the hint is begun.
            partition.ledger.borrow_mut().space.get_mut(slot).hinting = true;
        }
        for &slot in &self.damaged {
            partition.merge_damaged(slot).await?;
        }
        if !self.report.damage.is_empty() {
            // A group that lists what is there now, so that the next opening misses nothing.
            let listed =
                partition.stage(Digest::default(), Op::Clock(Need::Own), Durability::Sync)?.0;
            listed.wait(&partition).await?;
        }
        // A seal that was just written has said what numbers may have been lost.
        let told = self.last.is_some_and(|(_, end)| end.is_some());
        self.report.promised = self.promised.len() as u64;
        self.report.torn_promises = self.torn_promises;
        if !self.promised.is_empty() || self.journal && !told {
            let last = self.promised.last().map_or(self.sequence, |entry| entry.sequence);
            // If the log has no room to say so, the next opening is to know that it was there.
            self.journal =
                partition.keep_promises_of_before(self.promised, after_lost(last)).await?;
        }
        if self.journal {
            // Durably: what of it does not follow upon the log must not do so later.
            let _turn = partition.naming_turn().await;
            journal::remove(&partition.dir).await?;
        }
        partition.commit.promises.begin();
        partition.start_making_spares();
        partition.finish_segments(self.unhinted);
        partition.consider_merging();
        Ok((partition, self.report))
    }

    /// Copies what is damaged to the quarantine, durably, before anything is done about it. If the
    /// partition's folder is gone, it is made anew.
    async fn set_aside(&mut self) -> Result<()> {
        let Some(quarantine) = self.settings.quarantine.clone() else { return Ok(()) };
        make_dir(&self.settings.dir).await?;
        let damaged = self.damaged.iter();
        let damaged = damaged.map(|&slot| self.ledger.space.get(slot).segment.path().to_owned());
        let files: Vec<_> = damaged.chain(self.unreadable.iter().cloned()).collect();
        if files.is_empty() {
            return Ok(());
        }
        make_dir(&quarantine).await?;
        for file in files {
            let partition = self.settings.identity.partition;
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            let copy = quarantine.join(format!("p{partition:04}-{name}"));
            copy_file(&file, &copy).await?;
            self.report.quarantined.push(copy);
        }
        sync_dir(&quarantine).await?;
        self.leftovers.append(&mut self.unreadable);
        Ok(())
    }
}

/// Makes a directory of the store's, if it is not there, durably.
async fn make_dir(dir: &Path) -> Result<()> {
    match rt::make_dir(None, dir, 0o777).await {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        made => made.map_err(Error::io("create", dir))?,
    }
    match dir.parent() {
        Some(parent) => sync_dir(parent).await,
        None => Ok(()),
    }
}

/// Makes a segment without the help of a partition. One of that name that is there is replaced.
pub(super) async fn make_segment(dir: &Path, identity: &Identity, id: u64) -> Result<Spare> {
    let salt = u64::from_le_bytes(random().await?);
    let room = FIRST_ROOM;
    let segment = Rc::new(Segment::create(dir, identity, id, salt, room).await?);
    Ok(Spare { segment, prepared: room })
}

/// Copies a file as segments are read, durably but for its name.
pub(super) async fn copy_file(from: &Path, to: &Path) -> Result<()> {
    let source = Segment::open_to_copy(from).await?;
    let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_TRUNC;
    let target = rt::open(None, to, flags, 0o644).await.map_err(Error::io("create", to))?;
    let mut offset = 0;
    loop {
        let chunk = source.read(offset, CHUNK).await?;
        let len = chunk.len();
        rt::write_all(&target, chunk, offset).await.0.map_err(Error::io("write", to))?;
        offset += len as u64;
        if len < CHUNK {
            break;
        }
    }
    rt::fsync(&target, false).await.map_err(Error::io("sync", to))
}
