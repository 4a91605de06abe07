//! Which CPU the server and which CPU the load generator runs on.

use anyhow::{Context, Result};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use serde::Serialize;

/// One CPU for the server and another one for the load generator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Placement {
    /// Where every server process is pinned to.
    pub server: usize,
    /// Where the load generator is pinned to.
    pub generator: usize,
}

impl Placement {
    /// Takes the first two CPUs that this process may run on, or `None` where there is only one.
    pub fn detect() -> Result<Option<Self>> {
        let allowed = sched_getaffinity(this_thread()).context("cannot read the affinity mask")?;
        let mut cpus = (0..CpuSet::count()).filter(|&cpu| allowed.is_set(cpu) == Ok(true));
        Ok(match (cpus.next(), cpus.next()) {
            (Some(server), Some(generator)) => Some(Self { server, generator }),
            _ => None,
        })
    }
}

/// Pins the calling thread, and the threads it starts from now on, to one CPU.
pub fn pin_to(cpu: usize) -> Result<()> {
    let mut only = CpuSet::new();
    only.set(cpu)
        .and_then(|()| sched_setaffinity(this_thread(), &only))
        .with_context(|| format!("cannot pin to CPU {cpu}"))
}

/// The scheduler's calls take 0 to mean the calling thread.
fn this_thread() -> Pid {
    Pid::from_raw(0)
}
