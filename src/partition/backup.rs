//! Backups: sealed segments by hard links, the active one by a copy of what it has.
//!
//! Invariant: while a part is held no group is written, so when all partitions are held at the same
//! time, what they have then is a cut that no acknowledged write straddles.

use super::Partition;
use super::commit::Hold;
use super::load::read_seal;
use super::plan::Plan;
use super::recover::{copy_file, make_segment};
use super::space::Extant;
use super::walk::Pins;
use crate::error::{Error, Result};
use crate::log::hint;
use crate::log::scan::{Scan, Strictness};
use crate::log::segment::{Segment, sync_dir};
use crate::log::writer::Writer;
use crate::log::{BLOCK, CHUNK};
use crate::rt;
use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;

/// A partition's part of a backup that is being made. It lives with its partition.
pub(crate) struct BackupPart {
    partition: Rc<Partition>,
    hold: RefCell<Option<Hold>>,
    _pins: Pins,
    /// With the offsets of their seals.
    sealed: Vec<(Rc<Segment>, u64)>,
    /// The active segment, its length, and where its records end.
    active: Option<(Rc<Segment>, u64, u64)>,
    sequence: u64,
    clock: u64,
}

impl Partition {
    /// Holds the partition as it is.
    pub(crate) async fn begin_backup(self: &Rc<Self>) -> Result<BackupPart> {
        self.check()?;
        let hold = self.hold().await?;
        self.check()?;
        let (slots, sealed, active) = {
            let space = &self.ledger.borrow().space;
            let there: Vec<_> = space.iter().filter(|(_, e)| !e.dropped).collect();
            let slots = there.iter().map(|&(slot, _)| slot).collect();
            let sealed = |(_, e): &(usize, &Extant)| Some((Rc::clone(&e.segment), e.seal?));
            let sealed = there.iter().filter_map(sealed).collect();
            let active = there.iter().find(|(_, e)| e.seal.is_none() && e.len > BLOCK);
            // Held, so the writer is at home.
            let end = self.commit.end();
            (slots, sealed, active.map(|(_, e)| (Rc::clone(&e.segment), e.len, end)))
        };
        Ok(BackupPart {
            partition: Rc::clone(self),
            hold: RefCell::new(Some(hold)),
            _pins: Pins::new(self, slots, false),
            sealed,
            active,
            sequence: self.commit.sequence(),
            clock: self.clock.now(),
        })
    }
}

impl BackupPart {
    /// Lets groups be written again.
    pub(crate) fn release(&self) {
        drop(self.hold.take());
    }

    /// Puts the part into a directory, durably.
    pub(crate) async fn copy_to(&self, dir: &Path) -> Result<()> {
        for (segment, _) in &self.sealed {
            let hint = hint::path_of(segment);
            copy_or_link(segment.path(), dir).await?;
            match copy_or_link(&hint, dir).await {
                // It is being written, or could not be: the copy does without.
                Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {}
                result => result?,
            }
        }
        // The seal of the last segment names one that goes on, in the copy as well.
        if let Some((segment, len, end)) = &self.active {
            let next = make_segment(dir, &self.partition.identity, segment.id + 1).await?;
            self.copy_active(segment, *len, *end, next.segment.id, dir).await?;
        } else if let Some((segment, seal)) = self.sealed.last() {
            let named = read_seal(segment, *seal, seal + BLOCK).await?.map_or(0, |seal| seal.next);
            if named != 0 {
                make_segment(dir, &self.partition.identity, named).await?;
            }
        } else {
            Plan::make_first(dir, &self.partition.identity).await?;
        }
        sync_dir(dir).await
    }

    async fn copy_active(
        &self,
        segment: &Segment,
        len: u64,
        end: u64,
        next: u64,
        dir: &Path,
    ) -> Result<()> {
        let path = Segment::path_in(dir, segment.id);
        let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL;
        let fd = rt::open(None, &path, flags, 0o644).await.map_err(Error::io("create", &path))?;
        let mut offset = 0;
        while offset < len {
            let chunk = usize::try_from(len - offset).unwrap_or(CHUNK).min(CHUNK);
            let bytes = segment.read(offset, chunk).await?;
            if bytes.len() < chunk {
                return Err(segment.corrupt(offset, "the file is shorter than what was written"));
            }
            rt::write_all(&fd, bytes, offset).await.0.map_err(Error::io("write", &path))?;
            offset += chunk as u64;
        }
        let padding = usize::try_from(len.next_multiple_of(BLOCK) - len).expect("within a block");
        let (result, _) = rt::write_all(&fd, vec![0; padding], len).await;
        result.map_err(Error::io("write", &path))?;
        rt::fsync(&fd, false).await.map_err(Error::io("sync", &path))?;
        drop(fd);
        let (copy, _) = Segment::open(dir, &self.partition.identity, segment.id).await?;
        let copy = Rc::new(copy);
        let sealing = Writer::seal_found(Rc::clone(&copy), end, self.sequence, self.clock, next);
        let seal = sealing.await.map_err(Error::io("seal", &path))?;
        // What was copied need not have been durable, and a sync that failed meanwhile may have
        // lost it.
        let checked = check(&copy, seal).await;
        if checked.is_err() {
            self.partition.check()?;
        }
        checked
    }
}

/// Reads a sealed segment from end to end.
async fn check(segment: &Segment, seal: u64) -> Result<()> {
    let strictness = Strictness { sealed: true, salvage: false };
    let mut scan = Scan::new(segment, seal + BLOCK, strictness);
    while scan.next().await?.is_some() {}
    Ok(())
}

/// By a hard link where both are on one file system.
async fn copy_or_link(from: &Path, dir: &Path) -> Result<()> {
    let to = dir.join(from.file_name().unwrap_or_default());
    match rt::link(None, from, None, &to).await {
        Ok(()) => Ok(()),
        Err(error)
            if matches!(
                error.raw_os_error(),
                Some(libc::EXDEV | libc::EPERM | libc::EMLINK | libc::EOPNOTSUPP)
            ) =>
        {
            copy_file(from, &to).await
        }
        Err(error) => Err(Error::io("link", from)(error)),
    }
}
