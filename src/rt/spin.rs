//! Adaptive polling before sleep.
//!
//! Waking a sleeping thread costs tens of microseconds here, seeing a flag change costs tens of
//! nanoseconds; so an idle thread looks about for a moment before it sleeps, where a core is to
//! spare. Between looks it yields: the thread that it waits for may need this very core.
//!
//! Invariant: what does not pay is given up. After a run of fruitless spins it only tries now and
//! then, so a thread that waits for the disk, or shares its core, costs next to nothing; and where
//! programs that never sleep take what is yielded, for a time slice each, it seldom yields.

use std::time::{Duration, Instant};

/// Spins in vain before it is given up.
const PATIENCE: u32 = 4;
/// Sleeps until the next try once it is given up.
const REST: u32 = 64;

/// Whoever took a yielded core for so long is not one to wait for. (Time slices are some 3 ms.)
const LOST: Duration = Duration::from_millis(1);
/// Spins without yielding, at most, after a core was lost.
const MOST_KEPT: u32 = 4096;
/// Yields in a row that lost nothing, after which fewer spins go without after the next loss.
const GOOD: u32 = 64;

#[derive(Debug)]
pub(crate) struct Spinner {
    limit: Duration,
    in_vain: u32,
    resting: u32,
    yields: Yields,
}

/// When to yield.
#[derive(Debug, Default)]
struct Yields {
    /// Spins still to come that do not.
    kept: u32,
    /// How many are to follow upon a loss: twice as many as after the last.
    penalty: u32,
    good: u32,
}

impl Yields {
    /// Whether this spin is to yield.
    fn next(&mut self) -> bool {
        let may = self.kept == 0;
        self.kept = self.kept.saturating_sub(1);
        may
    }

    /// A yield took so long.
    fn note(&mut self, took: Duration) {
        if took >= LOST {
            self.penalty = (2 * self.penalty).clamp(1, MOST_KEPT);
            (self.kept, self.good) = (self.penalty, 0);
        } else {
            self.good += 1;
            if self.good == GOOD {
                (self.penalty, self.good) = (self.penalty / 2, 0);
            }
        }
    }
}

impl Spinner {
    /// What to use where nothing is configured, on a host where `threads` spin.
    pub(crate) fn default_limit(threads: usize) -> Duration {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        if cores > threads { Duration::from_micros(20) } else { Duration::ZERO }
    }

    pub(crate) fn new(limit: Duration) -> Self {
        Self { limit, in_vain: 0, resting: 0, yields: Yields::default() }
    }

    /// Whether a spin is worth trying now.
    pub(crate) fn pays(&mut self) -> bool {
        if self.limit.is_zero() {
            return false;
        }
        if self.in_vain < PATIENCE {
            return true;
        }
        self.resting = (self.resting + 1) % REST;
        self.resting == 0
    }

    /// Polls `ready` until it says so (true) or the time is over (false).
    pub(crate) fn spin(&mut self, mut ready: impl FnMut() -> bool) -> bool {
        let (start, yields) = (Instant::now(), self.yields.next());
        loop {
            for _ in 0..16 {
                if ready() {
                    self.in_vain = 0;
                    return true;
                }
                std::hint::spin_loop();
            }
            if start.elapsed() >= self.limit {
                self.in_vain = self.in_vain.saturating_add(1);
                return false;
            }
            if yields {
                let before = Instant::now();
                std::thread::yield_now();
                self.yields.note(before.elapsed());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spinning_in_vain_is_given_up_and_tried_again_only_now_and_then() {
        let mut spinner = Spinner::new(Duration::from_nanos(1));
        for _ in 0..PATIENCE {
            assert!(spinner.pays());
            assert!(!spinner.spin(|| false));
        }
        let tries = (0..10 * REST).filter(|_| spinner.pays()).count();
        assert_eq!(tries, 10);
        assert!(spinner.spin(|| true), "a success");
        assert!(spinner.pays(), "makes it worth while again");
    }

    /// What a program that never sleeps takes of a thread that yields to it: next to nothing, soon.
    #[test]
    fn who_loses_its_core_by_yielding_yields_less_and_less_until_it_loses_no_more() {
        let mut yields = Yields::default();
        assert!((0..100).all(|_| yields.next()), "nothing lost yet");
        let mut lost = 0;
        for _ in 0..100_000 {
            if yields.next() {
                yields.note(LOST);
                lost += 1;
            }
        }
        assert!((20..50).contains(&lost), "{lost}");
        let mut kept = 0;
        for _ in 0..100_000 {
            if yields.next() {
                yields.note(LOST / 2);
            } else {
                kept += 1;
            }
        }
        assert!(kept <= MOST_KEPT, "{kept}");
        yields.note(LOST);
        assert_eq!(yields.kept, 1, "a single loss is forgiven");
    }

    #[test]
    fn no_limit_no_spin() {
        assert!(!Spinner::new(Duration::ZERO).pays());
    }
}
