//! Everything outside of the store: the disk, the clocks, what is in flight, and chance.
//!
//! Time is virtual, and passes when nothing else can happen. Every request takes a time of its
//! own, so they complete in any order; what it does, it does when it completes.

use super::branches::{Deed, Watch};
use super::content::Crash;
use super::disk::{Disk, Errno, Ino};
use super::faults::{Fault, Faults};
use super::order::Order;
use super::rng::Rng;
use super::wounds::Wound;
use ringlog::rt::driver::Request;
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::RawFd;
use std::rc::Rc;
use std::task::Waker;
use std::time::Instant;

/// An open file.
#[derive(Clone, Copy, Debug)]
pub struct Open {
    pub ino: Ino,
    pub flags: i32,
    /// The directory of a segment.
    pub segment_in: Option<Ino>,
    /// The partition that a segment of the store is in.
    pub partition: Option<usize>,
}

/// A request in flight.
#[derive(Clone, Copy, Debug)]
pub struct Job {
    pub token: u64,
    pub request: Request,
    /// The disk's time when it was pushed: a sync covers what was written by then.
    pub at: u64,
    pub cancelled: bool,
}

/// How a life ends before its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    PowerCut,
    Kill,
    /// Nothing can happen any more.
    Stuck,
}

/// What direct I/O asks for.
#[derive(Clone, Copy, Debug)]
pub enum Direct {
    /// The file system does not know the flag.
    Unknown,
    /// It takes the flag, and does not say more.
    Silent,
    Align {
        memory: u32,
        offset: u32,
    },
}

/// See the module.
#[allow(clippy::struct_excessive_bools)]
pub struct World {
    pub rng: Rng,
    /// For choices that leave all other draws of a seed as they are.
    pub aside: Rng,
    pub disk: Disk,
    pub faults: Faults,
    pub direct: Direct,
    /// What a power cut does, if not anything.
    pub crash: Option<Crash>,
    /// A life ends soon after a write was lost.
    pub brief: bool,
    /// How links are refused, as they are from one file system to another.
    pub no_links: Option<Errno>,
    /// fdatasync lies: for the canary.
    pub lies: bool,
    /// A sync of a file has failed in this life, and what it covered may be gone: of which
    /// partition's segments, or of what is none.
    pub dropped: BTreeSet<Option<usize>>,
    /// Faults that an error may follow from, in this life.
    pub errors: u64,
    /// In this life it was short of room or of descriptors, or said so.
    pub short: bool,
    /// Writes that came short in a row, by file and offset.
    pub short_writes: BTreeMap<(Ino, u64), u32>,
    /// In this life something was refused for want of room or of descriptors.
    pub denied: bool,
    /// Performed writes of any kind, to files or names.
    pub mutations: u64,
    /// Segments that were opened in vain: their files were gone.
    pub missed: u64,
    pub files: BTreeMap<RawFd, Open>,
    pub in_flight: BTreeMap<(u64, u64), Job>,
    next: u64,
    pub start: Instant,
    /// Nanoseconds.
    pub now: u64,
    /// What the wall clock is ahead of `now`, in milliseconds, and has ever been.
    pub wall: i64,
    pub wall_most: i64,
    pub wall_sets: u64,
    /// The model's time.
    pub moment: Rc<Cell<u64>>,
    /// What the disk did not do as it said.
    pub wounds: Vec<Wound>,
    pub watch: Watch,
    pub order: Order,
    pub steps: u64,
    /// When this life ends, in steps, and how.
    pub end_at: Option<(u64, End)>,
    pub ended: Option<End>,
    /// Reads just behind the header of a segment fail.
    pub scans_fail: bool,
    /// No journal can be written to: nothing is promised, and each write waits for its group.
    pub no_journals: bool,
    /// Each can be written to. Else one write in a hundred fails, and one comes short.
    pub sound_journals: bool,
    /// The life before this one ended with a power cut.
    pub was_cut: bool,
    /// This life is to end soon after something was promised.
    pub hunts_promises: bool,
    pub waker: Option<Waker>,
    /// A digest of all that happened.
    pub trace: u64,
    /// Says all that happens, for those who look for a bug.
    pub talks: bool,
}

/// A life that takes longer hangs.
const MAX_STEPS: u64 = 60_000_000;

impl World {
    pub fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let direct = match rng.below(6) {
            0 => Direct::Unknown,
            1 => Direct::Silent,
            n => {
                let offset = [512, 512, 4096, 4096][usize::try_from(n - 2).unwrap()];
                Direct::Align { memory: rng.pick(&[4, 512, 4096]), offset }
            }
        };
        Self {
            rng,
            aside: Rng::new(!seed),
            disk: Disk::new(),
            faults: Faults::none(),
            direct,
            crash: None,
            brief: false,
            no_links: None,
            lies: false,
            dropped: BTreeSet::new(),
            errors: 0,
            short: false,
            short_writes: BTreeMap::new(),
            denied: false,
            mutations: 0,
            missed: 0,
            files: BTreeMap::new(),
            in_flight: BTreeMap::new(),
            next: 0,
            start: Instant::now(),
            now: 0,
            wall: 1_000_000_000,
            wall_most: 1_000_000_000,
            wall_sets: 0,
            moment: Rc::default(),
            wounds: Vec::new(),
            watch: Watch::new(),
            order: Order::default(),
            steps: 0,
            end_at: None,
            ended: None,
            scans_fail: false,
            no_journals: false,
            sound_journals: false,
            was_cut: false,
            hunts_promises: false,
            waker: None,
            trace: 0,
            talks: false,
        }
    }

    pub fn note(&mut self, what: u64) {
        self.trace = (self.trace ^ what).wrapping_mul(0x0100_0000_01b3).rotate_left(23);
    }

    pub fn tell(&self, request: &Request, result: i32) {
        let file = |fd: RawFd| {
            let ino = self.files.get(&fd).map_or(0, |open| open.ino);
            let files = self.disk.files();
            files.into_iter().find(|(_, i)| *i == ino).map_or(ino.to_string(), |(path, _)| path)
        };
        let what = match *request {
            Request::Read { fd, len, offset, .. } => format!("read {} {offset}+{len}", file(fd)),
            Request::Write { fd, len, offset, flags, .. } => {
                format!("write {} {offset}+{len} {flags:x}", file(fd))
            }
            Request::Fsync { fd, .. } => format!("sync {}", file(fd)),
            Request::Truncate { fd, len } => format!("truncate {} {len}", file(fd)),
            Request::Allocate { fd, offset, len, .. } => {
                format!("allocate {} {offset}+{len}", file(fd))
            }
            Request::Open { .. } => "open".to_owned(),
            _ => return,
        };
        println!("{:>10} {what} -> {result}", self.now / 1000);
    }

    /// The wall clock, in milliseconds since 1970.
    pub fn wall_millis(&self) -> u64 {
        u64::try_from(self.wall.max(0)).unwrap() + self.now / 1_000_000
    }

    /// The latest that a clock can say that never goes back.
    pub fn latest_millis(&self) -> u64 {
        u64::try_from(self.wall_most).unwrap() + self.now / 1_000_000 + 1
    }

    pub fn begin_life(&mut self, end_at: Option<(u64, End)>) {
        self.disk.begin_life();
        self.files.clear();
        self.in_flight.clear();
        self.was_cut = self.ended.take() == Some(End::PowerCut);
        self.hunts_promises = self.aside.one_in(3);
        self.dropped.clear();
        (self.errors, self.short, self.denied) = (0, false, false);
        self.brief = false;
        self.waker = None;
        self.steps = 0;
        self.end_at = end_at;
        self.watch.begin_life();
        self.order.begin_life();
    }

    /// Something is done in a directory. If that is hunted, the life ends soon.
    pub fn see(&mut self, dir: Ino, deed: Deed) {
        if self.watch.see(dir, deed) {
            self.end_within(4);
        }
    }

    /// This life, if it has an end, ends in so few steps.
    pub fn end_within(&mut self, steps: u64) {
        let soon = self.steps + self.rng.below(steps);
        self.end_at = self.end_at.map(|(at, end)| (at.min(soon), end));
    }

    pub fn push(&mut self, token: u64, request: Request) {
        if let Request::Cancel { token: target } = request {
            self.cancel(target);
        }
        if let Request::Write { fd, offset: 4096, .. } = request
            && let Some(dir) = self.files.get(&fd).and_then(|open| open.segment_in)
        {
            self.see(dir, Deed::Write { first: true });
        }
        let delay = match request {
            Request::Timeout { after } => {
                // SAFETY: the executor keeps the memory until the completion.
                let after = unsafe { *after };
                let whole = u64::try_from(after.seconds).unwrap_or(0).min(1 << 30) * 1_000_000_000;
                whole + u64::try_from(after.nanoseconds).unwrap_or(0)
            }
            Request::Cancel { .. } | Request::Nop => 0,
            _ if self.faults.strikes(Fault::Late, &mut self.rng) => self.rng.below(3_000_000_000),
            _ => 1_000 + self.rng.below(200_000),
        };
        self.next += 1;
        let job = Job { token, request, at: self.disk.now, cancelled: false };
        self.in_flight.insert((self.now + delay, self.next), job);
    }

    /// Ends what is in flight under that token, or does not.
    fn cancel(&mut self, token: u64) {
        let Some((&key, job)) = self.in_flight.iter().find(|(_, job)| job.token == token) else {
            return;
        };
        let mut job = *job;
        let timeout = matches!(job.request, Request::Timeout { .. });
        if timeout || self.rng.one_in(2) {
            self.faults.note(Fault::Cancelled);
            self.in_flight.remove(&key);
            // It may have had its effect all the same.
            job.cancelled = timeout || self.rng.one_in(2);
            self.in_flight.insert((self.now, key.1), job);
        }
    }

    /// Lets a moment pass. Ends the life when it is time.
    pub fn step(&mut self) {
        self.steps += 1;
        self.now += 500;
        if self.faults.strikes(Fault::ClockStep, &mut self.rng) {
            let step = 1 << self.rng.below(18);
            self.wall += if self.rng.one_in(2) { step } else { -step };
            self.wall_sets += 1;
            self.wall_most = self.wall_most.max(self.wall);
        }
        match self.end_at {
            Some((at, end)) if self.steps >= at => self.end(end),
            _ if self.steps > MAX_STEPS => self.end(End::Stuck),
            _ => {}
        }
    }

    /// This life is cut short.
    pub fn end(&mut self, end: End) {
        match end {
            _ if self.ended.is_some() => return,
            End::PowerCut => self.faults.note(Fault::PowerCut),
            End::Kill => self.faults.note(Fault::Kill),
            End::Stuck => {}
        }
        self.leave(end);
    }

    /// This life is over, by itself or not: what is in flight happens, or does not, or in part.
    pub fn leave(&mut self, end: End) {
        if self.ended.is_some() {
            return;
        }
        self.faults.on = false;
        let mut left: Vec<_> = self.in_flight.values().copied().collect();
        while !left.is_empty() {
            let job = left.swap_remove(self.rng.index(left.len()));
            if self.rng.one_in(2) {
                self.perform_blindly(&job);
            }
        }
        if end == End::PowerCut {
            let mut rng = self.rng.fork();
            self.disk.crash(self.crash, &mut rng);
            self.watch.cut();
        }
        self.ended = Some(end);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// When the next thing completes.
    pub fn next_due(&self) -> Option<u64> {
        self.in_flight.keys().next().map(|(due, _)| *due)
    }

    /// What is due now, if anything is.
    pub fn take_due(&mut self) -> Option<Job> {
        if self.next_due()? > self.now {
            return None;
        }
        self.in_flight.pop_first().map(|(_, job)| job)
    }
}
