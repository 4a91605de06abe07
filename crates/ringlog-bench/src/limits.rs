//! The open-files limit, which often stands lower than a benchmark needs.

use anyhow::{Context, Result, ensure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Raises this process's soft limit of open files to `needed`, if it is lower. Child processes
/// inherit it.
pub fn allow_open_files(needed: u64) -> Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("cannot read RLIMIT_NOFILE")?;
    if soft >= needed {
        return Ok(());
    }
    ensure!(hard >= needed, "{needed} open files are needed and the hard limit is {hard}");
    setrlimit(Resource::RLIMIT_NOFILE, needed, hard).context("cannot raise RLIMIT_NOFILE")
}
