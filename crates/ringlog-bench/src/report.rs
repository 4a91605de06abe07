//! What a run has found, as a table for people and as JSON for programs.

use std::fmt::{self, Display, Formatter};

use serde::Serialize;

use crate::affinity::Placement;
use crate::engines::Engine;
use crate::stats::{Sample, Summary};

/// A column of the table: two lines of heading and a width.
struct Column(&'static str, &'static str, usize);

const COLUMNS: [Column; 13] = [
    Column("", "engine", 8),
    Column("", "req/s", 9),
    Column("", "spread", 6),
    Column("p50", "us", 8),
    Column("p99", "us", 8),
    Column("p99.9", "us", 8),
    Column("max", "us", 8),
    Column("CPU", "us/req", 7),
    Column("srv", "busy", 5),
    Column("gen", "busy", 5),
    Column("", "waited", 6),
    Column("req/s vs", "ringlog", 8),
    Column("CPU vs", "ringlog", 8),
];

/// The share of time waited for a CPU above which the table says that a run was disturbed.
const TOLERATED_WAIT: f64 = 0.05;

/// A whole run.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Release of the kernel that the run was made on.
    pub kernel: String,
    /// The CPUs that were pinned to, if any.
    pub placement: Option<Placement>,
    /// Bytes per message.
    pub message_bytes: usize,
    /// Seconds per measurement.
    pub seconds: f64,
    /// How many measurements each figure is the median of.
    pub rounds: usize,
    /// One per number of connections and engine, in the order in which they were asked for.
    pub cells: Vec<Cell>,
}

/// One engine with one number of connections.
#[derive(Debug, Serialize)]
pub struct Cell {
    /// Which engine served.
    pub engine: Engine,
    /// How many connections were open.
    pub connections: usize,
    /// What was measured.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// Figures, or why there are none.
#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// All rounds went through.
    Measured(Summary),
    /// The server did not start, or failed in one of the rounds.
    Unavailable(String),
}

impl Cell {
    fn median(&self) -> Option<&Sample> {
        match &self.outcome {
            Outcome::Measured(summary) => Some(&summary.median),
            Outcome::Unavailable(_) => None,
        }
    }
}

impl Report {
    /// Whether a server or the load generator had to share its CPU. Without pinning they may well
    /// have shared one with each other, which is no disturbance.
    fn is_disturbed(&self) -> bool {
        let waited = |cell: &Cell| cell.median().is_some_and(|it| it.waited > TOLERATED_WAIT);
        self.placement.is_some() && self.cells.iter().any(waited)
    }

    /// The figures that those of other engines with as many connections are compared with.
    fn baseline(&self, connections: usize) -> Option<&Sample> {
        let same = |cell: &&Cell| cell.engine == Engine::Ringlog && cell.connections == connections;
        self.cells.iter().find(same)?.median()
    }
}

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self { message_bytes, seconds, rounds, kernel, placement, .. } = self;
        writeln!(f, "echo of {message_bytes}-byte messages over loopback, Linux {kernel}")?;
        writeln!(
            f,
            "medians of {rounds} interleaved rounds of {seconds} s each (max: worst round)"
        )?;
        match placement {
            Some(Placement { server, generator }) => {
                writeln!(f, "server pinned to CPU {server}, load generator to CPU {generator}")?;
            }
            None => writeln!(f, "server and load generator not pinned")?,
        }
        let mut connections = None;
        for cell in &self.cells {
            if connections != Some(cell.connections) {
                connections = Some(cell.connections);
                heading(f, cell.connections)?;
            }
            row(f, cell, self.baseline(cell.connections))?;
        }
        if self.is_disturbed() {
            writeln!(f, "\nOther programs had these CPUs for a part of the time: see `waited`.")?;
            writeln!(
                f,
                "These figures are not worth quoting; repeat the run on a quieter machine."
            )?;
        }
        Ok(())
    }
}

fn heading(f: &mut Formatter<'_>, connections: usize) -> fmt::Result {
    writeln!(f, "\n{connections} connection{}", if connections == 1 { "" } else { "s" })?;
    line(f, &COLUMNS.map(|Column(above, _, _)| above))?;
    line(f, &COLUMNS.map(|Column(_, below, _)| below))
}

fn row(f: &mut Formatter<'_>, cell: &Cell, baseline: Option<&Sample>) -> fmt::Result {
    let engine = cell.engine.to_string();
    let summary = match &cell.outcome {
        Outcome::Measured(summary) => summary,
        Outcome::Unavailable(reason) => return writeln!(f, "{engine:<8} unavailable: {reason}"),
    };
    let median = &summary.median;
    let us = |value: f64| format!("{value:.1}");
    line(
        f,
        &[
            engine,
            format!("{:.0}", median.requests_per_second),
            percent(summary.spread),
            us(median.p50_us),
            us(median.p99_us),
            us(median.p999_us),
            us(median.max_us),
            format!("{:.2}", median.server_cpu_us),
            percent(median.server_busy),
            percent(median.generator_busy),
            percent(median.waited),
            ratio(median.requests_per_second, baseline.map(|base| base.requests_per_second)),
            ratio(median.server_cpu_us, baseline.map(|base| base.server_cpu_us)),
        ],
    )
}

/// Writes one line of the table: the engine flush left, all figures flush right.
fn line<T: AsRef<str>>(f: &mut Formatter<'_>, texts: &[T; COLUMNS.len()]) -> fmt::Result {
    let [engine, figures @ ..] = texts;
    let [Column(.., first), others @ ..] = &COLUMNS;
    write!(f, "{:<first$}", engine.as_ref())?;
    for (figure, Column(.., width)) in figures.iter().zip(others) {
        write!(f, " {:>width$}", figure.as_ref())?;
    }
    writeln!(f)
}

fn percent(share: f64) -> String {
    format!("{:.0}%", share * 100.0)
}

fn ratio(value: f64, baseline: Option<f64>) -> String {
    baseline.map_or_else(|| "-".into(), |baseline| format!("{:.2}x", value / baseline))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cell(engine: Engine, rate: f64) -> Cell {
        let sample = Sample {
            requests_per_second: rate,
            p50_us: 10.0,
            p99_us: 20.0,
            p999_us: 30.0,
            max_us: 40.0,
            server_cpu_us: 5.0,
            server_busy: 0.4,
            generator_busy: 0.4,
            waited: 0.0,
        };
        let summary = Summary::of(&[sample]).expect("there is a round");
        Cell { engine, connections: 1, outcome: Outcome::Measured(summary) }
    }

    #[test]
    fn table_compares_with_ringlog_and_tells_why_an_engine_is_missing() {
        let missing = Outcome::Unavailable("no ring".into());
        let report = Report {
            kernel: "6.1".into(),
            placement: None,
            message_bytes: 64,
            seconds: 2.0,
            rounds: 1,
            cells: vec![
                cell(Engine::Ringlog, 1000.0),
                cell(Engine::Tokio, 800.0),
                Cell { engine: Engine::Monoio, connections: 1, outcome: missing },
            ],
        };
        let table = report.to_string();
        let tokio = table.lines().find(|line| line.starts_with("tokio")).expect("it has a row");
        assert!(tokio.contains("0.80x"), "{tokio}");
        assert!(table.contains("monoio   unavailable: no ring"), "{table}");
    }
}
