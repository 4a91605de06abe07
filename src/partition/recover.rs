//! Opening a partition: what its files say, and then what has to be done to go on.
//!
//! Invariants: a [`Plan`] is made by reading only; nothing is changed before all partitions have
//! one. What is believed was synced first, so no power cut can take it back. Recovering what a
//! recovery left, whole or half done, gives the same.

use super::clock::Clock;
use super::commit::{Commit, Spare};
use super::digest::Digest;
use super::ledger::Ledger;
use super::load::{LAST_ID, LAST_SEQUENCE, Loaded, Names, State, list, load};
use super::rotate::{SPARES, Sealed, is_full};
use super::space::Space;
use super::staged::Op;
use super::{Partition, Settings};
use crate::durability::Durability;
use crate::error::{Error, Result};
use crate::log::hint::HintEntry;
use crate::log::place::Place;
use crate::log::scan::Seen;
use crate::log::segment::{Segment, sync_dir};
use crate::log::superblock::random;
use crate::log::writer::{FIRST_ROOM, Writer};
use crate::log::{BLOCK, CHUNK, Identity};
use crate::report::PartitionReport;
use crate::rt::{self, AlignedBuf};
use std::any::Any;
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

/// The segment that each partition begins with: it is there before the store is. Not 0, which in a
/// seal stands for none.
const FIRST_ID: u64 = 1;
/// More versions than a partition can have given that were not durable, and few enough for two
/// thousand million crashes.
const LOST_VERSIONS: u64 = 1 << 32;

/// What is to be done to open a partition.
pub(crate) struct Plan {
    settings: Settings,
    ledger: Ledger,
    /// The last segment with records: its slot, and whether and where it must be sealed.
    last: Option<(usize, Option<u64>)>,
    spares: Vec<Spare>,
    /// The segment that goes on, if a crash has torn its first group.
    torn: Option<u64>,
    leftovers: Vec<PathBuf>,
    unhinted: Vec<Sealed>,
    /// With what length they should have: a power cut has taken it back.
    untrimmed: Vec<(Rc<Segment>, u64)>,
    damaged: Vec<usize>,
    unreadable: Vec<PathBuf>,
    sequence: u64,
    clock: u64,
    next_id: u64,
    report: PartitionReport,
}

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

    /// Reads what is there, and changes nothing.
    pub(crate) async fn read(settings: Settings) -> Result<Self> {
        let started = rt::now();
        let (names, lost) = match list(&settings.dir).await {
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                let reason = "the folder of a partition is missing, with all that was in it";
                let path = settings.dir.clone();
                let lost = Error::Corrupt { path, offset: 0, reason };
                if settings.quarantine.is_none() {
                    return Err(lost);
                }
                (Names::default(), Some(lost))
            }
            names => (names?, None),
        };
        let open_files = settings.open_files;
        let mut plan = Self {
            settings,
            ledger: Ledger { space: Space::new(open_files), ..Ledger::default() },
            last: None,
            spares: Vec::new(),
            torn: None,
            leftovers: names.leftovers,
            unhinted: Vec::new(),
            untrimmed: Vec::new(),
            damaged: Vec::new(),
            unreadable: Vec::new(),
            sequence: 0,
            clock: 0,
            next_id: names.last_id + 1,
            report: PartitionReport { damage: Vec::from_iter(lost), ..PartitionReport::default() },
        };
        let mut ids = names.ids.clone();
        let last = plan.find_last(&mut ids).await?;
        let next = last.as_ref().map_or(FIRST_ID, |last| last.next);
        plan.check_next(&names.ids, next)?;
        // Also if it is gone, as a salvage puts up with.
        plan.next_id = plan.next_id.max(next.min(LAST_ID) + 1);
        if let Some(last) = last {
            plan.load_older(ids, &last).await?;
            plan.take(last);
        }
        plan.spares.sort_by_key(|spare| spare.segment.id);
        // What failed when it was as good as made comes before the one that the seal names, and
        // must not take its place.
        let in_vain = plan.spares.partition_point(|spare| spare.segment.id < next);
        let paths = plan.spares.drain(..in_vain).map(|spare| spare.segment.path().to_owned());
        plan.leftovers.extend(paths);
        plan.report.took = rt::now().saturating_duration_since(started);
        Ok(plan)
    }

    async fn open(&mut self, id: u64) -> Result<Option<(Rc<Segment>, u64)>> {
        let Settings { dir, identity, .. } = &self.settings;
        match Segment::open(dir, identity, id).await {
            Ok((segment, len)) => Ok(Some((Rc::new(segment), len))),
            Err(error @ Error::Corrupt { .. }) if self.settings.quarantine.is_some() => {
                self.unreadable.push(Segment::path_in(dir, id));
                self.report.damage.push(error);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// The last segment with records. Those after it are spares. Leaves the older ones in `ids`.
    async fn find_last(&mut self, ids: &mut Vec<u64>) -> Result<Option<Loaded>> {
        while let Some(id) = ids.pop() {
            let Some((segment, len)) = self.open(id).await? else { continue };
            // What only a cache has must not be believed.
            segment.settle().await.map_err(Error::io("sync", segment.path()))?;
            let (loaded, seen) = load(&self.settings, segment, len, false).await?;
            self.note_seen(&loaded, seen);
            let segment = loaded.segment;
            match loaded.state {
                State::Clean | State::Torn if loaded.damaged => {
                    self.unreadable.push(segment.path().to_owned());
                }
                State::Clean => self.spares.push(Spare { segment, prepared: loaded.file_len }),
                State::Torn => self.leftovers.push(segment.path().to_owned()),
                _ => return Ok(Some(Loaded { segment, ..loaded })),
            }
        }
        Ok(None)
    }

    /// The segment that goes on after the last one with records was there before that was sealed: if
    /// it is not, it may have had records. It keeps its name also if a crash has torn it.
    fn check_next(&mut self, there: &[u64], next: u64) -> Result<()> {
        if next == 0 {
            return Ok(());
        }
        if !there.contains(&next) {
            return self.missing(next);
        }
        let path = Segment::path_in(&self.settings.dir, next);
        if let Some(at) = self.leftovers.iter().position(|leftover| *leftover == path) {
            self.leftovers.remove(at);
            self.torn = Some(next);
        }
        Ok(())
    }

    /// A segment that must be there is not.
    fn missing(&mut self, id: u64) -> Result<()> {
        let path = Segment::path_in(&self.settings.dir, id);
        let reason = "the file is missing: the log says that it is part of the store";
        let missing = Error::Corrupt { path, offset: 0, reason };
        if self.settings.quarantine.is_none() {
            return Err(missing);
        }
        self.report.damage.push(missing);
        Ok(())
    }

    fn note_seen(&mut self, loaded: &Loaded, seen: Seen) {
        let report = &mut self.report;
        report.torn_bytes += seen.torn_bytes;
        report.torn_records += seen.torn_records;
        report.damage.extend(seen.damage);
        if loaded.state != State::Hinted {
            report.scanned_bytes += loaded.head.seal.saturating_sub(BLOCK);
        }
    }

    /// Replays the segments that the last one says are there.
    async fn load_older(&mut self, ids: Vec<u64>, last: &Loaded) -> Result<()> {
        let mut there = BTreeSet::from_iter(ids);
        // Damage may have taken the list: then all that is there may be part of the store.
        let all: Vec<_> = there.iter().copied().collect();
        let extant = if last.lists { &last.head.extant } else { &all };
        let newest = extant.last().copied();
        for &id in extant {
            if !there.remove(&id) {
                self.missing(id)?;
                continue;
            }
            let Some((segment, len)) = self.open(id).await? else { continue };
            if Some(id) == newest {
                segment.settle().await.map_err(Error::io("sync", segment.path()))?;
            }
            let (loaded, seen) = load(&self.settings, segment, len, true).await?;
            self.note_seen(&loaded, seen);
            self.take(loaded);
            self.ledger.space.bound_open(8);
        }
        // Their removal was not durable, and means nothing.
        for id in there {
            let path = Segment::path_in(&self.settings.dir, id);
            self.leftovers.push(path.with_extension("hint"));
            self.leftovers.push(path);
        }
        Ok(())
    }

    /// Replays a segment's records.
    fn take(&mut self, loaded: Loaded) {
        let Loaded { segment, mut head, end, entries, state, damaged, file_len, .. } = loaded;
        let seal = head.seal;
        if state == State::Hinted && file_len > seal + BLOCK {
            self.untrimmed.push((Rc::clone(&segment), seal + BLOCK));
        }
        let slot = self.ledger.space.add(Rc::clone(&segment), seal + BLOCK, Some(seal));
        self.replay(slot, &entries);
        self.ledger.space.note_expiry(slot, head.last_expiry);
        self.sequence = self.sequence.max(head.sequence);
        if state == State::Unsealed {
            // What came after it may be lost, and somebody may know its versions: none comes again.
            // The seal that it gets keeps that, and so does its hint.
            let next = (self.sequence + LOST_VERSIONS).min(LAST_SEQUENCE / 2);
            self.sequence = self.sequence.max(next);
            head.sequence = self.sequence;
        }
        self.clock = self.clock.max(head.clock);
        self.report.segments += 1;
        self.report.hinted += u64::from(state == State::Hinted);
        if damaged {
            self.damaged.push(slot);
        } else if state != State::Hinted {
            self.unhinted.push(Sealed { slot, head, entries: None });
        }
        self.last = Some((slot, (state == State::Unsealed).then_some(end)));
    }

    fn replay(&mut self, slot: usize, entries: &[HintEntry]) {
        let place = |entry: &HintEntry| {
            let place = Place::new(slot, entry.offset, entry.class, entry.len);
            (Digest::from_bytes(entry.digest), place)
        };
        self.ledger.index_all(entries.iter().map(place));
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
                (Writer::new(segment, prepared, segment_bytes), slot)
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
            let listed = partition.stage(Digest::default(), Op::Clock, Durability::Sync)?.0;
            listed.wait(&partition).await?;
        }
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

/// Copies a file, durably but for its name.
pub(super) async fn copy_file(from: &Path, to: &Path) -> Result<()> {
    let source = rt::open(None, from, libc::O_RDONLY, 0).await.map_err(Error::io("open", from))?;
    let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_TRUNC;
    let target = rt::open(None, to, flags, 0o644).await.map_err(Error::io("create", to))?;
    let mut offset = 0;
    let mut buf = AlignedBuf::with_capacity(CHUNK);
    loop {
        let (result, chunk) = rt::read(&source, buf, offset).await;
        buf = match result {
            Ok(0) => break,
            Ok(n) => {
                let (result, chunk) = rt::write_all(&target, chunk, offset).await;
                result.map_err(Error::io("write", to))?;
                offset += n as u64;
                chunk
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => chunk,
            Err(error) => return Err(Error::io("read", from)(error)),
        };
    }
    rt::fsync(&target, false).await.map_err(Error::io("sync", to))
}
