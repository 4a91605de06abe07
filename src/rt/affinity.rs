//! Which cores the process may use, and pinning a thread to one of them.
//!
//! Invariant: a thread is never pinned outside the set that the process was given.

#![expect(unsafe_code, reason = "two system calls")]

use std::{io, mem};

/// The cores that the calling thread may run on: less than all under `taskset` or in a cgroup.
pub(crate) fn allowed_cores() -> io::Result<Vec<usize>> {
    // SAFETY: a set of bits, for which zero is valid.
    let mut set: libc::cpu_set_t = unsafe { mem::zeroed() };
    // SAFETY: the kernel writes at most the set's size into it.
    let result = unsafe { libc::sched_getaffinity(0, size_of_val(&set), &raw mut set) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    let cores = 0..usize::try_from(libc::CPU_SETSIZE).unwrap_or(0);
    // SAFETY: the core is within the set.
    Ok(cores.filter(|&core| unsafe { libc::CPU_ISSET(core, &set) }).collect())
}

/// Keeps the calling thread on one core.
pub(crate) fn pin_to(core: usize) -> io::Result<()> {
    // SAFETY: a set of bits, for which zero is valid.
    let mut set: libc::cpu_set_t = unsafe { mem::zeroed() };
    // SAFETY: the core is one that `allowed_cores` found, so within the set.
    unsafe { libc::CPU_SET(core, &mut set) };
    // SAFETY: the kernel only reads the set.
    let result = unsafe { libc::sched_setaffinity(0, size_of_val(&set), &raw const set) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
