//! What a run costs: CPU time, memory, bytes written, blocks on the disk.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;

/// How often blocks are counted.
const LOOK: Duration = Duration::from_millis(20);

/// User and system time of this process so far, in seconds. All its threads count, also those of
/// the engine and those that the kernel runs for its rings.
#[expect(clippy::cast_precision_loss, reason = "microseconds of one run")]
pub(crate) fn cpu_seconds() -> Result<f64> {
    let usage = getrusage(UsageWho::RUSAGE_SELF).context("no usage of this process")?;
    let seconds = |time: TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    Ok(seconds(usage.user_time()) + seconds(usage.system_time()))
}

/// Bytes that this process has caused to be written to a device.
pub(crate) fn bytes_written() -> Result<u64> {
    field("/proc/self/io", "write_bytes:")
}

/// Bytes of memory that are no part of a file.
pub(crate) fn anonymous_memory() -> Result<u64> {
    Ok(field("/proc/self/status", "RssAnon:")? * 1024)
}

fn field(path: &str, name: &str) -> Result<u64> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|line| line.split_whitespace().next()).map(str::parse);
    number.with_context(|| format!("no {name} in {path}"))?.map_err(Into::into)
}

/// Bytes of all blocks that are allocated for the files below a directory.
pub(crate) fn allocated(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    // What is gone by now has no blocks.
    let of_entry = |entry: fs::DirEntry| match entry.metadata() {
        Ok(data) if data.is_dir() => allocated(&entry.path()),
        Ok(data) => data.blocks() * 512,
        Err(_) => 0,
    };
    entries.map(of_entry).sum()
}

/// Watches the blocks of a directory until it is asked for their peak.
pub(crate) struct Watch {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<u64>,
}

impl Watch {
    pub(crate) fn start(dir: PathBuf) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let watch = move || {
            let mut peak = 0;
            while !stopped.load(Ordering::Relaxed) {
                peak = allocated(&dir).max(peak);
                thread::sleep(LOOK);
            }
            allocated(&dir).max(peak)
        };
        Self { stop, thread: thread::spawn(watch) }
    }

    pub(crate) fn peak(self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("the watch over the disk has panicked"))
    }
}
