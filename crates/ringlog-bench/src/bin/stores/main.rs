//! A benchmark of stores: ringlog, its peers, and a bare ring as the bound, side by side.
//!
//! | module         | holds                                                              |
//! |----------------|--------------------------------------------------------------------|
//! | [`workload`]   | what is measured                                                   |
//! | [`data`]       | keys, values, and how an answer is checked                         |
//! | [`caller`]     | what one caller does, and how long it waits                        |
//! | [`store`]      | what an engine offers, and how blocking ones are driven            |
//! | [`engine`]     | the engines, a file each                                           |
//! | [`group_commit`] | the group commit that a user would write                         |
//! | [`measure`]    | one workload on one engine, in a process of its own                |
//! | [`probe`]      | CPU time, memory, blocks                                           |
//! | [`run`]        | the rounds, and the processes                                      |
//! | [`report`]     | the table and the JSON document                                    |
//! | [`page`]       | the plot page                                                      |

mod caller;
mod data;
mod engine;
mod group_commit;
mod measure;
mod page;
mod probe;
mod report;
mod run;
mod store;
mod workload;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::builder::RangedU64ValueParser;
use clap::{Args, Parser, Subcommand};

use engine::Kind;
use measure::Job;
use report::Report;
use ringlog_bench::limits;
use run::Plan;
use workload::Workload;

/// Open files that an engine may need.
const OPEN_FILES: u64 = 4096;

/// Compare stores side by side: ringlog, its peers, and a bare ring as the bound
///
/// Each measurement runs in a process of its own, on a store of its own below --dir. Rounds are
/// interleaved (all engines, then all again), and medians over the rounds are reported. ringlog's
/// callers are futures on a client thread for each processor, the bare ring plays all of them on one
/// thread; the other engines block, so each caller is a thread. Answers are checked.
///
/// Put --dir on the device that is to be measured, not in memory.
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(flatten)]
    options: Options,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Args)]
struct Options {
    /// Engines to compare, in this order [default: all that this program was built with]
    #[arg(long, value_enum, value_delimiter = ',', value_name = "ENGINE,...")]
    engines: Vec<Kind>,

    /// What to measure [default: everything]
    #[arg(long, value_enum, value_delimiter = ',', value_name = "WORKLOAD,...")]
    workloads: Vec<Workload>,

    /// Numbers of callers [default: 1,16,64,256 for put-durable and gets, 2 for churn, 16 for mixed]
    #[arg(long, value_delimiter = ',', value_name = "N,...")]
    #[arg(value_parser = RangedU64ValueParser::<usize>::new().range(1..=1024))]
    callers: Vec<usize>,

    /// How often to measure everything
    #[arg(long, value_name = "N", default_value = "3")]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=1000))]
    rounds: u64,

    /// Seconds for each number of callers
    #[arg(long, value_name = "SECONDS", default_value = "2", value_parser = seconds)]
    seconds: Duration,

    /// Seconds of the same before them, which do not count
    #[arg(long, value_name = "SECONDS", default_value = "0.3", value_parser = seconds)]
    warm_up: Duration,

    /// Seconds after which a churn ends, even if it is not four times through
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = seconds)]
    churn_seconds: Duration,

    /// Bytes of a value
    #[arg(long, value_name = "BYTES", default_value = "1024")]
    #[arg(value_parser = RangedU64ValueParser::<usize>::new()
        .range(data::SHORTEST as u64..=data::LONGEST as u64))]
    value: usize,

    /// Keys that are loaded, and then got, overwritten or scanned
    #[arg(long, value_name = "N", default_value = "200000")]
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    keys: u64,

    /// Keys and values loaded for get-cold, in bytes
    #[arg(long, value_name = "BYTES", default_value = "4294967296")]
    #[arg(value_parser = clap::value_parser!(u64).range(1 << 20..))]
    cold_bytes: u64,

    /// Keys of a store that is opened, for open-killed, open-clean and memory
    #[arg(long, value_name = "N", default_value = "1000000")]
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    open_keys: u64,

    /// Bytes of their values
    #[arg(long, value_name = "BYTES", default_value = "100")]
    #[arg(value_parser = RangedU64ValueParser::<usize>::new()
        .range(data::SHORTEST as u64..=data::LONGEST as u64))]
    open_value: usize,

    /// Bytes for the engine's own cache, where it has one
    #[arg(long, value_name = "BYTES", default_value = "268435456")]
    cache: u64,

    /// ringlog's partitions
    #[arg(long, value_name = "N", default_value = "1")]
    partitions: usize,

    /// A cgroup for the measured processes, made with the memory limit that cold gets need
    #[arg(long, value_name = "DIR")]
    cgroup: Option<PathBuf>,

    /// Where the stores are made
    #[arg(long, value_name = "DIR", default_value = "target")]
    dir: PathBuf,

    /// ringlog and the bare ring only, everything small, one round: whether it works, not how fast
    #[arg(long)]
    quick: bool,

    /// Write a JSON document
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

    /// Write a page with plots
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Load a store; the benchmark starts itself with this
    #[command(hide = true)]
    Load { job: String },
    /// Measure a store; the benchmark starts itself with this
    #[command(hide = true)]
    Measure {
        job: String,
        #[arg(long)]
        cgroup: Option<PathBuf>,
    },
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if (0.01..=3600.0).contains(&seconds) {
        Ok(Duration::from_secs_f64(seconds))
    } else {
        Err("must be from 0.01 to 3600".into())
    }
}

fn main() -> ExitCode {
    let Cli { options, command } = Cli::parse();
    let result = match command {
        Some(Command::Load { job }) => load(&job),
        Some(Command::Measure { job, cgroup }) => measure(&job, cgroup.as_deref()),
        None => compare(options),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // On one line, since a child's is put into the table.
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn load(job: &str) -> Result<()> {
    run::begin_child(None)?;
    let job: Job = serde_json::from_str(job)?;
    let store = job.load()?;
    println!("synced");
    if job.workload == Workload::OpenKilled {
        loop {
            thread::park();
        }
    }
    store.close()?;
    println!("closed");
    Ok(())
}

fn measure(job: &str, cgroup: Option<&Path>) -> Result<()> {
    run::begin_child(cgroup)?;
    let job: Job = serde_json::from_str(job)?;
    println!("{}", serde_json::to_string(&job.measure()?)?);
    Ok(())
}

fn compare(options: Options) -> Result<()> {
    limits::allow_open_files(OPEN_FILES)?;
    let (json, html) = (options.json.clone(), options.html.clone());
    let plan = plan(options);
    let before = load_average()?;
    let cells = plan.run();
    let report = Report {
        kernel: read("/proc/sys/kernel/osrelease")?,
        cpus: thread::available_parallelism()?.get(),
        load: [before, load_average()?],
        value_bytes: plan.value,
        rounds: plan.rounds,
        limited: plan.cgroup.is_some(),
        cells,
    };
    print!("{report}");
    if let Some(file) = json {
        let text = serde_json::to_string_pretty(&report)?;
        fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
    }
    if let Some(file) = html {
        let page = page::page(&report)?;
        fs::write(&file, page).with_context(|| format!("cannot write {}", file.display()))?;
    }
    // A peer that cannot run here is a line in the table; ringlog must.
    let failed = report.missing().find(|(_, engine, _)| *engine == Kind::Ringlog);
    failed.map_or(Ok(()), |(workload, _, why)| anyhow::bail!("{workload}: {why}"))
}

fn plan(options: Options) -> Plan {
    let mut plan = Plan {
        engines: options.engines,
        workloads: options.workloads,
        callers: options.callers,
        rounds: options.rounds,
        keys: options.keys,
        value: options.value,
        cold_bytes: options.cold_bytes,
        small_keys: options.open_keys,
        small_value: options.open_value,
        cache: options.cache,
        partitions: options.partitions,
        time: options.seconds,
        warm_up: options.warm_up,
        churn: options.churn_seconds,
        dir: options.dir,
        cgroup: options.cgroup,
    };
    if options.quick {
        plan.engines = vec![Kind::Ringlog, Kind::Raw];
        plan.callers = vec![1, 16];
        (plan.rounds, plan.keys, plan.small_keys, plan.cold_bytes) = (1, 2000, 2000, 4 << 20);
        plan.time = Duration::from_millis(50);
        plan.warm_up = Duration::from_millis(10);
    }
    if plan.engines.is_empty() {
        plan.engines = Kind::built().collect();
    }
    if plan.workloads.is_empty() {
        plan.workloads = <Workload as clap::ValueEnum>::value_variants().to_vec();
    }
    plan
}

fn load_average() -> Result<String> {
    Ok(read("/proc/loadavg")?.split(' ').next().unwrap_or_default().to_owned())
}

fn read(path: &str) -> Result<String> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
    Ok(text.trim().to_owned())
}
