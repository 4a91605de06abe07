//! What goes wrong, and how often. Each life has a few kinds of fault turned on, so that rare ones
//! meet undisturbed, and together.

use super::rng::Rng;

macro_rules! kinds {
    ($($kind:ident $name:literal),+ $(,)?) => {
        /// A kind of fault.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Fault { $($kind),+ }

        pub const NAMES: &[&str] = &[$($name),+];
        const KINDS: &[Fault] = &[$(Fault::$kind),+];
    };
}

kinds! {
    ReadError "EIO on read",
    WriteError "EIO on write",
    SyncError "EIO on sync, unsynced data dropped",
    OpenError "EIO on open",
    NameError "EIO on a change of names",
    ShortRead "short read",
    ShortWrite "short write",
    Interrupted "EINTR",
    NoSpace "ENOSPC or EDQUOT",
    NoFiles "EMFILE or ENFILE",
    Late "late completion",
    ClockStep "clock step",
    Abandoned "future dropped",
    PowerCut "power cut",
    Kill "process killed",
    Cancelled "operation cancelled",
    BitFlip "bit flipped",
    SectorGone "sector zeroed or garbled",
    FileGone "file removed",
    LostWrite "write lost",
    Misdirected "write misdirected",
    ForGood "EIO that stays",
    NoLink "link refused",
    Untold "EIO on a change of names that was made",
}

/// Faults that no error may follow from.
const HARMLESS: &[Fault] =
    &[Fault::ShortRead, Fault::ShortWrite, Fault::Interrupted, Fault::Late, Fault::ClockStep];

/// Faults of the device that may stay for the rest of a life, once they have struck.
const LASTING: &[Fault] =
    &[Fault::ReadError, Fault::WriteError, Fault::SyncError, Fault::OpenError, Fault::NameError];

pub type Counts = [u64; NAMES.len()];

/// See the module.
#[derive(Clone, Debug)]
pub struct Faults {
    /// None strikes while this is off.
    pub on: bool,
    /// Strikes in every life.
    pub always: Option<(Fault, u64)>,
    /// Strikes once, after so many times that it could have.
    pub once: Option<(Fault, u64)>,
    /// And from then on.
    pub for_good: bool,
    /// One in so many; 0 for never.
    rates: [u64; NAMES.len()],
    pub struck: Counts,
}

impl Faults {
    pub fn none() -> Self {
        Self {
            on: false,
            always: None,
            once: None,
            for_good: false,
            rates: [0; NAMES.len()],
            struck: [0; NAMES.len()],
        }
    }

    /// One kind, and no other.
    pub fn only(&mut self, kind: Fault, rate: u64) {
        self.rates = [0; NAMES.len()];
        self.also(kind, rate);
    }

    /// One kind more.
    pub fn also(&mut self, kind: Fault, rate: u64) {
        self.rates[kind as usize] = rate;
    }

    /// Those of a new life.
    pub fn choose(&mut self, rng: &mut Rng) {
        self.rates = [0; NAMES.len()];
        if let Some((kind, rate)) = self.always {
            self.rates[kind as usize] = rate;
        }
        if rng.one_in(4) {
            return;
        }
        for kind in [
            Fault::ReadError,
            Fault::WriteError,
            Fault::SyncError,
            Fault::OpenError,
            Fault::NameError,
            Fault::ShortRead,
            Fault::ShortWrite,
            Fault::Interrupted,
            Fault::NoSpace,
            Fault::NoFiles,
            Fault::Late,
            Fault::ClockStep,
        ] {
            if rng.one_in(5) {
                self.rates[kind as usize] = 1 << (2 + rng.below(9));
            }
        }
    }

    pub fn strikes(&mut self, kind: Fault, rng: &mut Rng) -> bool {
        let rate = self.rates[kind as usize];
        let mut strikes = self.on && rate > 0 && rng.one_in(rate);
        if let Some((_, left)) = self.once.as_mut().filter(|(once, _)| self.on && *once == kind) {
            let now = *left == 0;
            self.once = left.checked_sub(1).map(|left| (kind, left));
            strikes |= now;
            if now && self.for_good {
                self.rates[kind as usize] = 1;
            }
        }
        self.struck[kind as usize] += u64::from(strikes);
        if strikes && rate > 1 && LASTING.contains(&kind) && rng.one_in(8) {
            self.rates[kind as usize] = 1;
            self.struck[Fault::ForGood as usize] += 1;
        }
        strikes
    }

    pub fn note(&mut self, kind: Fault) {
        self.struck[kind as usize] += 1;
    }

    /// Whether an error may follow from one.
    pub fn is_harmless(kind: Fault) -> bool {
        HARMLESS.contains(&kind)
    }

    /// Whether errors may follow from what is turned on.
    pub fn may_fail(&self) -> bool {
        KINDS.iter().any(|kind| self.rates[*kind as usize] > 0 && !HARMLESS.contains(kind))
    }
}
