//! The branches that one wants to know were met: what an opening does to go on, and crashes just
//! there. They are seen from outside, by what is asked of the disk.

use super::disk::Ino;
use super::order::{DROP, Record};
use std::collections::{BTreeMap, BTreeSet};

macro_rules! branches {
    ($($branch:ident $name:literal),+ $(,)?) => {
        /// A branch.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Branch { $($branch),+ }

        pub const BRANCHES: &[&str] = &[$($name),+];
    };
}

branches! {
    OpeningCut "power cut while opening",
    NextDraft "opening drafts the segment to go on with",
    NextDraftCut "  power cut meanwhile",
    NextNamed "  names it",
    NextNamedCut "  power cut before the directory's sync",
    AnewDraft "opening drafts the torn next one anew",
    AnewDraftCut "  power cut meanwhile",
    AnewNamed "  puts it in the torn one's place",
    AnewNamedCut "  power cut before the directory's sync",
    Sealed "opening seals where the log was found to end",
    SealedCut "  power cut before the directory's sync",
    FirstGroup "first group of a segment",
    FirstGroupCut "  power cut soon after",
    SpareNamed "spare named",
    SpareNamedCut "  power cut before the directory's sync",
    Removed "segment removed",
    RemovedCut "  power cut before the directory's sync",
    Promised "write promised",
    Kept "opening that kept what a killed process had promised",
    KeptOfCut "  what is left of it by a power cut",
    Merging "merge copies",
    MergingCut "  power cut before the merged segment is dropped",
    Backup "backup made",
    BackupCut "backup cut short, without a store",
    BackupLate "backup that nobody waited for, whole",
    WithoutHints "opening compared with one without hints",
    OpenedTwice "opening compared with one just before",
    OpenedInPart "opening compared with one before that was cut short",
    Harmless "harm without effect",
    Hidden "harm that nothing can prove: the end of a log is gone",
    Beyond "  it reaches into an earlier life: values are judged alone",
    Refused "harm refused",
    Unread "harm found by a read",
    Missing "file missing, refused by name",
    MissingNext "  the one that a seal names, or a first one",
    Unneeded "file missing that nobody needs",
    Unnamed "file missing that a seal could not name: no room or no descriptors",
    Salvaged "salvage that reported damage",
    Gone "  and something was gone",
    SalvageSound "salvage without damage",
    SalvageRefused "salvage refused",
    SalvageCut "salvage cut short, and done again",
}

pub type Met = [u64; BRANCHES.len()];

/// Where a crash is worth looking for.
pub const HUNTS: [&[Branch]; 4] = [
    &[Branch::NextNamed, Branch::AnewNamed],
    &[Branch::NextDraft, Branch::NextNamed, Branch::AnewDraft, Branch::AnewNamed, Branch::Sealed],
    &[Branch::FirstGroup],
    &[Branch::SpareNamed, Branch::Removed],
];

/// What is asked of the disk, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deed {
    /// A `.new` is made; whether its segment is there.
    Draft {
        torn: bool,
    },
    /// A `.new` gets its name; whether that was another's.
    Name {
        torn: bool,
    },
    /// Records are written to a segment: to one that was there, or its first ones.
    Write {
        first: bool,
    },
    Remove,
    Sync,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Watch {
    /// A store that was there is being opened.
    pub opening: bool,
    /// What each directory's partition is about, until it is synced.
    within: BTreeMap<Ino, Branch>,
    /// Directories of partitions with copies that a merge made, of a segment that is still there.
    merging: BTreeSet<Ino>,
    pub hunted: &'static [Branch],
    pub met: Met,
}

impl Watch {
    pub fn new() -> Self {
        let met = [0; BRANCHES.len()];
        Self { opening: false, within: BTreeMap::new(), merging: BTreeSet::new(), hunted: &[], met }
    }

    pub fn begin_life(&mut self) {
        (self.opening, self.hunted) = (false, &[]);
        self.within.clear();
        self.merging.clear();
    }

    pub fn meet(&mut self, branch: Branch) {
        self.met[branch as usize] += 1;
    }

    /// A record is written.
    pub fn see_record(&mut self, dir: Ino, record: &Record<'_>) {
        if record.kind == DROP {
            self.merging.remove(&dir);
        } else if record.moved && self.merging.insert(dir) {
            self.meet(Branch::Merging);
        }
    }

    /// A deed in a directory. Tells whether that is what is hunted.
    pub fn see(&mut self, dir: Ino, deed: Deed) -> bool {
        let branch = match (deed, self.opening) {
            (Deed::Draft { torn: true }, true) => Branch::AnewDraft,
            (Deed::Draft { torn: false }, true) => Branch::NextDraft,
            (Deed::Name { torn: true }, true) => Branch::AnewNamed,
            (Deed::Name { torn: false }, true) => Branch::NextNamed,
            (Deed::Write { .. }, true) => Branch::Sealed,
            (Deed::Write { first: true }, false) => Branch::FirstGroup,
            (Deed::Name { .. }, false) => Branch::SpareNamed,
            (Deed::Remove, _) => Branch::Removed,
            (Deed::Sync, _) | (Deed::Write { first: false }, false) => {
                self.within.remove(&dir);
                return false;
            }
            (Deed::Draft { .. }, false) => return false,
        };
        self.meet(branch);
        self.within.insert(dir, branch);
        self.hunted.contains(&branch)
    }

    /// The power is cut.
    pub fn cut(&mut self) {
        if self.opening {
            self.meet(Branch::OpeningCut);
        }
        for _ in std::mem::take(&mut self.merging) {
            self.meet(Branch::MergingCut);
        }
        for branch in std::mem::take(&mut self.within).into_values() {
            self.meet(match branch {
                Branch::NextDraft => Branch::NextDraftCut,
                Branch::NextNamed => Branch::NextNamedCut,
                Branch::AnewDraft => Branch::AnewDraftCut,
                Branch::AnewNamed => Branch::AnewNamedCut,
                Branch::Sealed => Branch::SealedCut,
                Branch::FirstGroup => Branch::FirstGroupCut,
                Branch::SpareNamed => Branch::SpareNamedCut,
                _ => Branch::RemovedCut,
            });
        }
    }
}
