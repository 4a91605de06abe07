//! What the files of a partition say, one by one: the names, and each segment by its hint or by
//! itself.
//!
//! Invariants: reading only; a hint is believed if its segment is sealed where it says, and else the
//! segment speaks for itself.

use super::Settings;
use super::rotate::entry_of;
use crate::error::{Error, Result};
use crate::log::BLOCK;
use crate::log::hint::{Head, HintEntry, read_hint};
use crate::log::journal;
use crate::log::record::{Kind, MARK_LEN, Mark, Record, u64_at};
use crate::log::scan::{Scan, Seen, Strictness};
use crate::log::segment::Segment;
use crate::rt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// A segment as it was found.
pub(super) struct Loaded {
    pub(super) segment: Rc<Segment>,
    /// What it says as a whole, and where its seal is or has to be.
    pub(super) head: Head,
    /// Where its records end.
    pub(super) end: u64,
    /// Whether it says which older segments there are.
    pub(super) lists: bool,
    /// What its seal says goes on after it.
    pub(super) next: u64,
    /// Its puts and deletes.
    pub(super) entries: Vec<HintEntry>,
    pub(super) state: State,
    pub(super) damaged: bool,
    pub(super) file_len: u64,
}

/// How a segment was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Sealed, with its hint.
    Hinted,
    /// Sealed, and scanned.
    Sealed,
    /// With records, which end there, and without a seal.
    Unsealed,
    /// Without a whole record, but not untouched.
    Torn,
    /// Nothing after the header.
    Clean,
}

/// No partition comes to have so many segments. They are counted on from the last that there is, and
/// the other half is there so that counting never overflows, whatever a file's name says.
pub(super) const LAST_ID: u64 = u64::MAX >> 1;
/// No partition comes to so many writes. They are counted on too, from what a file says.
pub(super) const LAST_SEQUENCE: u64 = u64::MAX >> 1;

/// The names in a partition's directory that mean something.
#[derive(Default)]
pub(super) struct Names {
    pub(super) ids: Vec<u64>,
    pub(super) leftovers: Vec<PathBuf>,
    pub(super) last_id: u64,
    pub(super) journal: bool,
}

pub(super) async fn list(dir: &Path) -> Result<Names> {
    let fd = rt::open(None, dir, libc::O_RDONLY | libc::O_DIRECTORY, 0).await;
    let fd = fd.map_err(Error::io("open", dir))?;
    let files = rt::list(&fd).await.map_err(Error::io("list", dir))?;
    let mut names = Names::default();
    let mut hints = Vec::new();
    for file in files {
        let path = dir.join(&file);
        names.journal |= file == journal::NAME;
        if file == journal::DRAFT {
            names.leftovers.push(path);
            continue;
        }
        let parsed = file.to_str().and_then(|name| name.split_once('.'));
        let Some((id, kind)) = parsed.and_then(|(id, kind)| Some((id.parse().ok()?, kind))) else {
            continue; // not ours
        };
        if id > LAST_ID || path.with_extension("log") != Segment::path_in(dir, id) {
            continue; // a number that no segment has, or that is written in another way
        }
        match kind {
            "log" => names.ids.push(id),
            "new" => names.leftovers.push(path),
            "hint" => hints.push((id, path)),
            _ => continue,
        }
        names.last_id = names.last_id.max(id);
    }
    names.ids.sort_unstable();
    hints.retain(|(id, _)| names.ids.binary_search(id).is_err());
    names.leftovers.extend(hints.into_iter().map(|(_, path)| path));
    names.leftovers.sort();
    Ok(names)
}

/// Reads a segment by its hint, or else from its start to its end.
pub(super) async fn load(
    settings: &Settings,
    segment: Rc<Segment>,
    file_len: u64,
    must_be_sealed: bool,
) -> Result<(Loaded, Seen)> {
    let salvage = settings.quarantine.is_some();
    // A salvage looks for damage, which a hint does not show.
    if !salvage
        && let Ok(Some((head, entries))) = read_hint(&settings.identity, &segment).await
        && head.sequence <= LAST_SEQUENCE
        && let Some(seal) = read_seal(&segment, head.seal, file_len).await?
    {
        let loaded = Loaded {
            segment,
            end: head.seal,
            head,
            lists: true,
            next: seal.next,
            entries,
            state: State::Hinted,
            damaged: false,
            file_len,
        };
        return Ok((loaded, Seen::default()));
    }
    let strictness = Strictness { sealed: must_be_sealed, salvage };
    let mut scan = Scan::new(&segment, file_len.next_multiple_of(BLOCK), strictness);
    let mut head = Head::default();
    let mut entries = Vec::new();
    let (mut shown_any, mut lists) = (false, false);
    while let Some(shown) = scan.next().await? {
        shown_any = true;
        let record = shown.record();
        head.last_expiry = head.last_expiry.max(record.expiry.unwrap_or(0));
        match record.kind {
            Kind::Live => {
                lists = true;
                head.extant = record.value.chunks_exact(8).map(|id| u64_at(id, 0)).collect();
            }
            Kind::Drop if record.value.len() == 8 => {
                let gone = u64_at(record.value, 0);
                head.extant.retain(|&id| id != gone);
            }
            _ => entries.extend(entry_of(&settings.secret, &shown)),
        }
    }
    let end = scan.end();
    let seen = scan.into_seen();
    if seen.sequence > LAST_SEQUENCE {
        return Err(segment.corrupt(end, "a sequence number that no store comes to"));
    }
    head.seal = seen.seal.unwrap_or(end.next_multiple_of(BLOCK));
    (head.sequence, head.clock) = (seen.sequence, seen.clock);
    let state = match (seen.seal, shown_any) {
        (Some(_), _) => State::Sealed,
        (None, true) => State::Unsealed,
        (None, false) if end == BLOCK && seen.torn_bytes == 0 => State::Clean,
        (None, false) => State::Torn,
    };
    let damaged = !seen.damage.is_empty();
    let next = seen.next;
    Ok((Loaded { segment, head, end, lists, next, entries, state, damaged, file_len }, seen))
}

/// What the segment's seal says, if it is there.
pub(super) async fn read_seal(segment: &Segment, seal: u64, file_len: u64) -> Result<Option<Mark>> {
    // The hint that says so may say anything.
    if file_len.checked_sub(MARK_LEN as u64).is_none_or(|last| seal > last) {
        return Ok(None);
    }
    let bytes = segment.read(seal, MARK_LEN).await?;
    let record = Record::decode(&bytes, segment.salt, seal).ok();
    let record = record.filter(|record| record.kind == Kind::Seal);
    Ok(record.and_then(|record| Mark::of(&record)))
}
