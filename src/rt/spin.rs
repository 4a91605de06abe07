//! Adaptive polling before sleep.
//!
//! Waking a sleeping thread costs tens of microseconds here, seeing a flag change costs tens of
//! nanoseconds; so an idle thread looks about for a moment before it sleeps, where a core is to
//! spare. Invariant: what does not pay is given up. After a run of fruitless spins it only tries
//! now and then, so a thread that waits for the disk, or shares its core, costs next to nothing.

use std::time::{Duration, Instant};

/// Spins in vain before it is given up.
const PATIENCE: u32 = 4;
/// Sleeps until the next try once it is given up.
const REST: u32 = 64;

#[derive(Debug)]
pub(crate) struct Spinner {
    limit: Duration,
    in_vain: u32,
    resting: u32,
}

impl Spinner {
    /// What to use where nothing is configured, on a host where `threads` spin.
    pub(crate) fn default_limit(threads: usize) -> Duration {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        if cores > threads { Duration::from_micros(20) } else { Duration::ZERO }
    }

    pub(crate) fn new(limit: Duration) -> Self {
        Self { limit, in_vain: 0, resting: 0 }
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
        let start = Instant::now();
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

    #[test]
    fn no_limit_no_spin() {
        assert!(!Spinner::new(Duration::ZERO).pays());
    }
}
