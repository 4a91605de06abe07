//! What a partition's files say, and so what is to be done to open it.
//!
//! Invariants: a [`Plan`] is made by reading only, and nothing is changed before all partitions have
//! one. What is believed was synced first, so no power cut can take it back.

use super::Settings;
use super::commit::Spare;
use super::digest::Digest;
use super::ledger::Ledger;
use super::load::{LAST_ID, LAST_SEQUENCE, Loaded, Names, State, list, load};
use super::rotate::Sealed;
use super::space::Space;
use crate::error::{Error, Result};
use crate::log::BLOCK;
use crate::log::hint::HintEntry;
use crate::log::journal::{self, Entry};
use crate::log::place::Place;
use crate::log::scan::Seen;
use crate::log::segment::Segment;
use crate::report::PartitionReport;
use crate::rt;
use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::rc::Rc;

/// The segment that each partition begins with: it is there before the store is. Not 0, which in a
/// seal stands for none.
pub(super) const FIRST_ID: u64 = 1;
/// More versions than a partition can have given that were not durable, and few enough for two
/// thousand million crashes.
const LOST_VERSIONS: u64 = 1 << 32;

/// The number that the next one follows upon, after writes that may be lost.
pub(super) fn after_lost(sequence: u64) -> u64 {
    (sequence + LOST_VERSIONS).min(LAST_SEQUENCE / 2).max(sequence)
}

/// What is to be done to open a partition.
pub(crate) struct Plan {
    pub(super) settings: Settings,
    pub(super) ledger: Ledger,
    /// The last segment with records: its slot, and whether and where it must be sealed.
    pub(super) last: Option<(usize, Option<u64>)>,
    pub(super) spares: Vec<Spare>,
    /// The segment that goes on, if a crash has torn its first group.
    pub(super) torn: Option<u64>,
    pub(super) leftovers: Vec<PathBuf>,
    pub(super) unhinted: Vec<Sealed>,
    /// With what length they should have: a power cut has taken it back.
    pub(super) untrimmed: Vec<(Rc<Segment>, u64)>,
    pub(super) damaged: Vec<usize>,
    pub(super) unreadable: Vec<PathBuf>,
    pub(super) sequence: u64,
    /// What a process that was killed had promised, and the log does not have.
    pub(super) promised: Vec<Entry>,
    /// What was promised behind a gap.
    pub(super) torn_promises: u64,
    /// There is a journal.
    pub(super) journal: bool,
    pub(super) clock: u64,
    pub(super) next_id: u64,
    pub(super) report: PartitionReport,
}

impl Plan {
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
            promised: Vec::new(),
            torn_promises: 0,
            journal: names.journal,
            clock: 0,
            next_id: names.last_id + 1,
            report: PartitionReport { damage: Vec::from_iter(lost), ..PartitionReport::default() },
        };
        let mut ids = names.ids.clone();
        let last = plan.find_last(&mut ids).await?;
        let next = last.as_ref().map_or(FIRST_ID, |last| last.next);
        plan.check_next(&names.ids, next)?;
        // Also if it is gone, as a salvage puts up with. Some numbers are left in any case.
        plan.next_id = plan.next_id.max(next.min(LAST_ID / 2) + 1);
        if names.journal {
            plan.read_journal().await?;
        }
        if let Some(last) = last {
            plan.load_older(ids, &last).await?;
            plan.take(last, true);
        }
        plan.follow_journal();
        plan.spares.sort_by_key(|spare| spare.segment.id);
        // What failed when it was as good as made comes before the one that the seal names, and
        // must not take its place.
        let in_vain = plan.spares.partition_point(|spare| spare.segment.id < next);
        let paths = plan.spares.drain(..in_vain).map(|spare| spare.segment.path().to_owned());
        plan.leftovers.extend(paths);
        plan.report.took = rt::now().saturating_duration_since(started);
        Ok(plan)
    }

    /// Reads what there is of promises.
    async fn read_journal(&mut self) -> Result<()> {
        let Settings { dir, identity, .. } = &self.settings;
        match journal::read(dir, identity).await {
            Ok(entries) => self.promised = entries,
            Err(error @ Error::Corrupt { .. }) if self.settings.quarantine.is_some() => {
                self.unreadable.push(journal::path_in(dir));
                self.report.damage.push(error);
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Of the journal there remains what follows upon the log without a gap. What comes after a gap
    /// was promised after something that is lost.
    fn follow_journal(&mut self) {
        let (mut next, mut torn) = (self.sequence, 0);
        self.promised.retain(|entry| {
            let follows = entry.sequence == next + 1;
            next += u64::from(follows);
            torn += u64::from(entry.sequence > next);
            follows
        });
        self.torn_promises += torn;
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
            self.take(loaded, false);
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
    fn take(&mut self, loaded: Loaded, is_last: bool) {
        let Loaded { segment, mut head, end, entries, state, damaged, file_len, .. } = loaded;
        let seal = head.seal;
        if state == State::Hinted && file_len > seal + BLOCK {
            self.untrimmed.push((Rc::clone(&segment), seal + BLOCK));
        }
        let slot = self.ledger.space.add(Rc::clone(&segment), seal + BLOCK, Some(seal));
        self.replay(slot, &entries);
        self.ledger.space.note_expiry(slot, head.last_expiry);
        self.sequence = self.sequence.max(head.sequence);
        // (A salvage finds others without a seal. Later ones have greater numbers.)
        if state == State::Unsealed && is_last {
            // What came after it may be lost, and somebody may know its versions: none comes again.
            // The seal that it gets keeps that, and so does its hint; or what comes after what the
            // journal has.
            self.follow_journal();
            if self.promised.is_empty() {
                self.sequence = after_lost(self.sequence);
            }
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
}
