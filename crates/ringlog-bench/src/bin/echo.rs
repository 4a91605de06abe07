//! An echo benchmark: the same small TCP server on several runtimes, side by side.

use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::builder::RangedU64ValueParser;
use clap::{Args, Parser, Subcommand};

use ringlog_bench::affinity::{self, Placement};
use ringlog_bench::engines::Engine;
use ringlog_bench::load::Generator;
use ringlog_bench::report::{Cell, Outcome, Report};
use ringlog_bench::server::{self, Server};
use ringlog_bench::stats::{Sample, Summary};
use ringlog_bench::{cpu_time, limits};

/// How long the load runs before anything is measured.
const WARM_UP: Duration = Duration::from_millis(500);

/// What a server may live longer than its load is meant to last: starting, connecting, stalling.
const GRACE: Duration = Duration::from_secs(60);

/// Open files besides the connections.
const OTHER_FILES: u64 = 64;

/// Compare TCP echo servers on several runtimes, side by side
///
/// Each server runs on one thread in a process of its own and is driven over loopback by the same
/// load generator: N connections, each with one message in flight. Rounds are interleaved (all
/// engines, then all engines again), and medians over the rounds are reported.
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
    engines: Vec<Engine>,

    /// Numbers of connections to measure with
    #[arg(long, value_delimiter = ',', value_name = "N,...", default_value = "1,64,256")]
    #[arg(value_parser = RangedU64ValueParser::<usize>::new().range(1..=4096))]
    connections: Vec<usize>,

    /// Bytes per message
    #[arg(long, value_name = "BYTES", default_value = "64")]
    #[arg(value_parser = RangedU64ValueParser::<usize>::new().range(1..=1024 * 1024))]
    message: usize,

    /// How often to measure each engine with each number of connections
    #[arg(long, value_name = "N", default_value = "5")]
    #[arg(value_parser = RangedU64ValueParser::<usize>::new().range(1..=1000))]
    rounds: usize,

    /// Seconds per measurement, after half a second of warm-up
    #[arg(long, value_name = "SECONDS", default_value = "2", value_parser = seconds)]
    seconds: Duration,

    /// Leave it to the scheduler where the server and the load generator run
    #[arg(long)]
    no_pin: bool,

    /// Print a JSON document instead of a table
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run one server; the benchmark starts itself with this
    #[command(hide = true)]
    Serve {
        #[arg(value_enum)]
        engine: Engine,
        #[arg(long)]
        cpu: Option<usize>,
        #[arg(long, value_parser = seconds)]
        lifetime: Duration,
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
        Some(Command::Serve { engine, cpu, lifetime }) => server::serve(engine, cpu, lifetime),
        None => compare(options),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // On one line, since a server's is put into the table.
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn compare(mut options: Options) -> Result<()> {
    if options.engines.is_empty() {
        options.engines = Engine::built().collect();
    }
    let most = options.connections.iter().max().copied().unwrap_or_default();
    limits::allow_open_files(most as u64 + OTHER_FILES)?;
    let placement = if options.no_pin { None } else { Placement::detect()? };
    if let Some(placement) = placement {
        affinity::pin_to(placement.generator)?;
    }

    let cells = measure_all(&options, placement);
    let report = Report {
        kernel: kernel_release()?,
        placement,
        message_bytes: options.message,
        seconds: options.seconds.as_secs_f64(),
        rounds: options.rounds,
        cells,
    };
    if options.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{report}");
    }
    Ok(())
}

/// Runs all rounds. A cell that fails is not tried again.
fn measure_all(options: &Options, placement: Option<Placement>) -> Vec<Cell> {
    let progress = std::io::stderr().is_terminal();
    let pairs = options
        .connections
        .iter()
        .flat_map(|&connections| options.engines.iter().map(move |&engine| (engine, connections)));
    let mut cells: Vec<_> = pairs.map(|pair| (pair, Ok(Vec::new()))).collect();
    for round in 1..=options.rounds {
        for ((engine, connections), samples) in &mut cells {
            let Ok(rounds) = samples else { continue };
            if progress {
                eprintln!("round {round} of {}: {engine}, {connections}", options.rounds);
            }
            match measure(*engine, *connections, options, placement) {
                Ok(sample) => rounds.push(sample),
                Err(error) => *samples = Err(error),
            }
        }
    }
    cells
        .into_iter()
        .map(|((engine, connections), samples)| {
            let summary = samples.and_then(|rounds| Summary::of(&rounds).context("not measured"));
            let outcome = match summary {
                Ok(summary) => Outcome::Measured(summary),
                Err(error) => Outcome::Unavailable(format!("{error:#}")),
            };
            Cell { engine, connections, outcome }
        })
        .collect()
}

/// Starts a server, measures it and stops it.
fn measure(
    engine: Engine,
    connections: usize,
    options: &Options,
    placement: Option<Placement>,
) -> Result<Sample> {
    let lifetime = WARM_UP + options.seconds + GRACE;
    let server = Server::start(engine, placement.map(|placement| placement.server), lifetime)?;
    drive(&server, connections, options).map_err(|error| server.explain(error))
}

fn drive(server: &Server, connections: usize, options: &Options) -> Result<Sample> {
    let mut generator = Generator::connect(server.address(), connections, options.message)?;
    generator.run_for(WARM_UP)?;
    let server_before = server.usage()?;
    let generator_before = cpu_time::this_thread()?;
    let interval = generator.run_for(options.seconds)?;
    let server_used = server.usage()? - server_before;
    let generator_used = cpu_time::this_thread()? - generator_before;
    Sample::new(&interval, server_used, generator_used).context("no request was completed")
}

fn kernel_release() -> Result<String> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease");
    Ok(release.context("cannot read the kernel's release")?.trim().to_owned())
}
