//! How long a process or thread was on a CPU, and how long it had to wait for one.
//!
//! The kernel's per-process CPU clock has nanosecond resolution and counts all threads of a
//! process, including those that have ended and the `io_uring` workers which the kernel runs in the
//! process's name. Waiting is read from `schedstat`, for one thread.

use std::fs;
use std::ops::Sub;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::time::ClockId;
use nix::unistd::Pid;

/// What the scheduler has given and refused so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// User and system time used.
    pub ran: Duration,
    /// Time spent ready to run while something else was on the CPU.
    pub waited: Duration,
}

impl Sub for Usage {
    type Output = Self;

    fn sub(self, earlier: Self) -> Self {
        Self {
            ran: self.ran.saturating_sub(earlier.ran),
            waited: self.waited.saturating_sub(earlier.waited),
        }
    }
}

/// The CPU clock of another process.
#[derive(Clone, Copy, Debug)]
pub struct ProcessClock {
    pid: u32,
    clock: ClockId,
}

impl ProcessClock {
    /// The clock of the process with this id, which must be alive.
    pub fn of(pid: u32) -> Result<Self> {
        let clock = ClockId::pid_cpu_clock_id(Pid::from_raw(i32::try_from(pid)?))
            .context("no CPU clock for the server")?;
        Ok(Self { pid, clock })
    }

    /// What all threads of the process have run and its first thread has waited.
    pub fn now(self) -> Result<Usage> {
        let ran = self.clock.now().context("cannot read the server's CPU clock")?.into();
        Ok(Usage { ran, waited: waited(&format!("/proc/{}/schedstat", self.pid))? })
    }
}

/// What the calling thread has run and waited.
pub fn this_thread() -> Result<Usage> {
    let clock = ClockId::CLOCK_THREAD_CPUTIME_ID;
    let ran = clock.now().context("cannot read this thread's CPU clock")?.into();
    Ok(Usage { ran, waited: waited("/proc/thread-self/schedstat")? })
}

/// The second field: nanoseconds spent on a run queue.
fn waited(schedstat: &str) -> Result<Duration> {
    let text = fs::read_to_string(schedstat).with_context(|| format!("cannot read {schedstat}"))?;
    let field = text.split_whitespace().nth(1).with_context(|| format!("{schedstat} is short"))?;
    Ok(Duration::from_nanos(field.parse()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_has_run_no_less_than_one_of_its_threads() {
        let thread = this_thread().expect("the clock is there");
        let clock = ProcessClock::of(std::process::id()).expect("this process is alive");
        let process = clock.now().expect("the clock is there");
        assert!(process.ran >= thread.ran);
        assert!(thread.ran > Duration::ZERO);
    }
}
