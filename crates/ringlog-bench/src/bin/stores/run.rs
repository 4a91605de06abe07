//! The rounds: each measures every engine with every workload once, so that a drift of the machine
//! hits all of them alike.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::prctl;
use nix::sys::signal::Signal;

use crate::data;
use crate::engine::Kind;
use crate::measure::{Job, Sample};
use crate::report::{Cell, Outcome};
use crate::workload::Workload;

/// The longest that a process may live.
const LIFETIME: Duration = Duration::from_secs(900);

/// What to measure.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) engines: Vec<Kind>,
    pub(crate) workloads: Vec<Workload>,
    /// Instead of each workload's own.
    pub(crate) callers: Vec<usize>,
    pub(crate) rounds: u64,
    pub(crate) keys: u64,
    pub(crate) value: usize,
    pub(crate) cold_bytes: u64,
    pub(crate) small_keys: u64,
    pub(crate) small_value: usize,
    pub(crate) cache: u64,
    pub(crate) partitions: usize,
    pub(crate) time: Duration,
    pub(crate) warm_up: Duration,
    pub(crate) churn: Duration,
    pub(crate) dir: PathBuf,
    pub(crate) cgroup: Option<PathBuf>,
}

impl Plan {
    /// Runs all rounds. What fails once is not tried again.
    pub(crate) fn run(&self) -> Vec<Cell> {
        let progress = std::io::stderr().is_terminal();
        let pairs = self.workloads.iter().flat_map(|&workload| {
            let applies = move |kind: &&Kind| kind.applies_to(workload);
            self.engines.iter().filter(applies).map(move |&engine| (workload, engine))
        });
        let mut results: Vec<_> = pairs.map(|pair| (pair, Ok(Vec::new()))).collect();
        for round in 1..=self.rounds {
            for ((workload, engine), rounds) in &mut results {
                let Ok(samples) = rounds else { continue };
                if progress {
                    eprintln!("round {round} of {}: {workload}, {engine}", self.rounds);
                }
                match self.once(*workload, *engine, round) {
                    Ok(measured) => samples.extend(measured),
                    Err(error) => *rounds = Err(error),
                }
            }
        }
        cells(results)
    }

    fn once(&self, workload: Workload, engine: Kind, round: u64) -> Result<Vec<Sample>> {
        let dir = self.dir.join(format!("stores-{}", std::process::id()));
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let result = self.in_dir(self.job(workload, engine, round, dir.clone()));
        fs::remove_dir_all(&dir).with_context(|| format!("cannot remove {}", dir.display()))?;
        result
    }

    fn job(&self, workload: Workload, engine: Kind, round: u64, dir: PathBuf) -> Job {
        let callers = match &*self.callers {
            given if workload.has_callers() && !given.is_empty() => given.to_vec(),
            _ => workload.callers().to_vec(),
        };
        let (keys, value) = match workload {
            Workload::GetCold => (self.cold_bytes / (data::KEY + self.value) as u64, self.value),
            _ if workload.is_small() => (self.small_keys, self.small_value),
            _ => (self.keys, self.value),
        };
        let (cache, partitions) = (self.cache, self.partitions);
        let (time, warm_up, churn) = (self.time, self.warm_up, self.churn);
        Job {
            engine,
            workload,
            dir,
            callers,
            keys,
            value,
            cache,
            partitions,
            time,
            warm_up,
            churn,
            round,
        }
    }

    fn in_dir(&self, job: Job) -> Result<Vec<Sample>> {
        if job.workload.is_loaded() {
            let mut loader = Process::start("load", &job, None)?;
            // Its line says that all is synced; then it waits to be killed, or closes the store.
            loader.line()?;
            if job.workload == Workload::OpenKilled {
                loader.child.kill().context("cannot kill it")?;
            } else {
                loader.line()?;
            }
        }
        if job.workload.is_cold() {
            drop_caches(&job.dir)?;
        }
        let mut measured = Process::start("measure", &job, self.cgroup.as_deref())?;
        Ok(serde_json::from_str(&measured.line()?)?)
    }
}

type Pair = (Workload, Kind);

/// Sorts samples by their number of callers.
fn cells(results: Vec<(Pair, Result<Vec<Sample>>)>) -> Vec<Cell> {
    let mut cells = Vec::new();
    for ((workload, engine), rounds) in results {
        let mut levels = BTreeMap::<usize, Vec<Sample>>::new();
        match rounds {
            Ok(samples) => {
                for sample in samples {
                    levels.entry(sample.callers).or_default().push(sample);
                }
                cells.extend(levels.into_iter().map(|(callers, samples)| Cell {
                    workload,
                    callers,
                    engine,
                    unit: workload.unit(),
                    outcome: Outcome::of(samples),
                }));
            }
            Err(error) => {
                let outcome = Outcome::Unavailable(format!("{error:#}"));
                cells.push(Cell { workload, callers: 0, engine, unit: workload.unit(), outcome });
            }
        }
    }
    cells
}

/// Empties the page cache of a store: all of it as root, else of the store's files.
fn drop_caches(dir: &Path) -> Result<()> {
    nix::unistd::sync();
    if fs::write("/proc/sys/vm/drop_caches", "3").is_ok() {
        return Ok(());
    }
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            drop_caches(&entry.path())?;
        } else {
            let advice = nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED;
            nix::fcntl::posix_fadvise(fs::File::open(entry.path())?, 0, 0, advice)?;
        }
    }
    Ok(())
}

/// A process of this program, which never outlives its handle.
struct Process {
    child: Child,
    stdout: BufReader<ChildStdout>,
}

impl Process {
    fn start(command: &str, job: &Job, cgroup: Option<&Path>) -> Result<Self> {
        let mut start = Command::new(std::env::current_exe()?);
        start.arg(command).arg(serde_json::to_string(job)?);
        if let Some(cgroup) = cgroup {
            start.arg("--cgroup").arg(cgroup);
        }
        start.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = start.spawn().context("cannot start a process")?;
        let stdout = child.stdout.take().context("it has no standard output")?;
        Ok(Self { child, stdout: BufReader::new(stdout) })
    }

    /// The next line that it prints, or why there is none.
    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.stdout.read_line(&mut line)?;
        if !line.is_empty() {
            return Ok(line);
        }
        let mut words = String::new();
        if let Some(mut stderr) = self.child.stderr.take() {
            stderr.read_to_string(&mut words)?;
        }
        let last: Vec<_> = words.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        ensure!(!last.is_empty(), "it ended without a word: {}", self.child.wait()?);
        bail!("{}", last.join("; "));
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only if the process is gone already, which is what they are for.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// What the other side does first: it ends with its parent, or after a long while.
pub(crate) fn begin_child(cgroup: Option<&Path>) -> Result<()> {
    prctl::set_pdeathsig(Signal::SIGKILL).context("cannot end with the parent")?;
    if let Some(cgroup) = cgroup {
        let procs = cgroup.join("cgroup.procs");
        fs::write(&procs, std::process::id().to_string())
            .with_context(|| format!("cannot join {}", cgroup.display()))?;
    }
    thread::spawn(|| {
        thread::sleep(LIFETIME);
        eprintln!("it took longer than {LIFETIME:?}");
        std::process::abort();
    });
    Ok(())
}
