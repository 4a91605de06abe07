//! What a run has found, as a table for people and as JSON for programs.

use std::fmt::{self, Display, Formatter};

use serde::Serialize;

use crate::engine::Kind;
use crate::measure::Sample;
use crate::workload::{Unit, Workload};

/// A run.
#[derive(Serialize)]
pub(crate) struct Report {
    pub(crate) kernel: String,
    pub(crate) cpus: usize,
    /// Of the machine, before and after: what else was running.
    pub(crate) load: [String; 2],
    pub(crate) value_bytes: usize,
    pub(crate) rounds: u64,
    pub(crate) limited: bool,
    pub(crate) cells: Vec<Cell>,
}

/// One engine, one workload, one number of callers.
#[derive(Serialize)]
pub(crate) struct Cell {
    pub(crate) workload: Workload,
    /// 0 where the workload has none.
    pub(crate) callers: usize,
    pub(crate) engine: Kind,
    pub(crate) unit: Unit,
    #[serde(flatten)]
    pub(crate) outcome: Outcome,
}

/// Figures, or why there are none.
#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Outcome {
    Measured {
        /// The median of each figure by itself; of `max` and `space`, the largest.
        median: Sample,
        /// The distance between the highest and the lowest round, as a share of the median.
        spread: f64,
        rounds: Vec<Sample>,
    },
    Unavailable(String),
}

impl Outcome {
    pub(crate) fn of(rounds: Vec<Sample>) -> Self {
        let sorted = |figure: fn(&Sample) -> Option<f64>| {
            let mut values: Vec<f64> = rounds.iter().filter_map(figure).collect();
            values.sort_by(f64::total_cmp);
            values
        };
        let median_of = |figure| {
            let values = sorted(figure);
            let upper = values.get(values.len() / 2)?;
            Some(f64::midpoint(values[(values.len() - 1) / 2], *upper))
        };
        let largest = |figure| sorted(figure).last().copied();
        let figures = sorted(|sample| Some(sample.figure));
        let Some(figure) = median_of(|sample| Some(sample.figure)) else {
            return Self::Unavailable("not measured".into());
        };
        let median = Sample {
            callers: rounds[0].callers,
            figure,
            p50: median_of(|sample| sample.p50),
            p99: median_of(|sample| sample.p99),
            p999: median_of(|sample| sample.p999),
            max: largest(|sample| sample.max),
            cpu: median_of(|sample| sample.cpu),
            space: largest(|sample| sample.space),
            written: median_of(|sample| sample.written),
        };
        let spread = (figures[figures.len() - 1] - figures[0]) / figure;
        Self::Measured { median, spread, rounds }
    }
}

impl Cell {
    pub(crate) fn median(&self) -> Option<&Sample> {
        match &self.outcome {
            Outcome::Measured { median, .. } => Some(median),
            Outcome::Unavailable(_) => None,
        }
    }
}

impl Report {
    /// The cells of one table: a workload with a number of callers.
    pub(crate) fn groups(&self) -> Vec<(Workload, usize, Vec<&Cell>)> {
        let mut groups: Vec<(Workload, usize, Vec<&Cell>)> = Vec::new();
        for cell in self.cells.iter().filter(|cell| cell.median().is_some()) {
            let group = groups.iter_mut().find(|g| (g.0, g.1) == (cell.workload, cell.callers));
            match group {
                Some((_, _, cells)) => cells.push(cell),
                None => groups.push((cell.workload, cell.callers, vec![cell])),
            }
        }
        groups.sort_by_key(|(workload, callers, _)| (*workload as usize, *callers));
        groups
    }

    /// Those that could not be measured, and why.
    pub(crate) fn missing(&self) -> impl Iterator<Item = (Workload, Kind, &str)> {
        self.cells.iter().filter_map(|cell| match &cell.outcome {
            Outcome::Measured { .. } => None,
            Outcome::Unavailable(why) => Some((cell.workload, cell.engine, why.as_str())),
        })
    }
}

/// "put-durable, 16 callers".
pub(crate) fn title(workload: Workload, callers: usize) -> String {
    match callers {
        0 => workload.to_string(),
        1 => format!("{workload}, 1 caller"),
        n => format!("{workload}, {n} callers"),
    }
}

/// The engine's figure divided by another's in the same group.
pub(crate) fn versus(cell: &Cell, group: &[&Cell], other: Kind) -> Option<f64> {
    let other = group.iter().find(|cell| cell.engine == other)?.median()?;
    Some(cell.median()?.figure / other.figure)
}

const HEADINGS: [(&str, usize); 10] = [
    ("spread", 7),
    ("/ringlog", 9),
    ("/raw", 7),
    ("p50 us", 9),
    ("p99 us", 9),
    ("p99.9 us", 9),
    ("max us", 10),
    ("CPU us", 8),
    ("space", 7),
    ("written", 8),
];

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let [before, after] = &self.load;
        writeln!(
            f,
            "{} CPUs, kernel {}; load {before} before, {after} after; {} B values; medians of {}",
            self.cpus, self.kernel, self.value_bytes, self.rounds,
        )?;
        if self.workload_is_cold() && !self.limited {
            writeln!(f, "Memory was not limited: with --cold-bytes below it, cold gets get warm.")?;
        }
        for (workload, callers, cells) in self.groups() {
            write!(f, "\n{:<34}{:>10}", title(workload, callers), workload.unit())?;
            for (heading, width) in HEADINGS {
                write!(f, "{heading:>width$}")?;
            }
            writeln!(f)?;
            for cell in &cells {
                row(f, cell, &cells)?;
            }
        }
        for (workload, engine, why) in self.missing() {
            writeln!(f, "\n{workload}, {engine}: unavailable: {why}")?;
        }
        Ok(())
    }
}

impl Report {
    fn workload_is_cold(&self) -> bool {
        self.cells.iter().any(|cell| cell.workload == Workload::GetCold)
    }
}

fn row(f: &mut Formatter<'_>, cell: &Cell, group: &[&Cell]) -> fmt::Result {
    let Outcome::Measured { median, spread, .. } = &cell.outcome else { return Ok(()) };
    write!(f, "  {:<32}{:>10}", cell.engine, number(Some(median.figure)))?;
    let times = |ratio: Option<f64>| ratio.map_or("-".into(), |ratio| format!("{ratio:.2}"));
    let columns = [
        format!("{:.0}%", spread * 100.0),
        times(versus(cell, group, Kind::Ringlog)),
        times(versus(cell, group, Kind::Raw)),
        number(median.p50),
        number(median.p99),
        number(median.p999),
        number(median.max),
        number(median.cpu),
        times(median.space),
        times(median.written),
    ];
    for (column, (_, width)) in columns.iter().zip(HEADINGS) {
        write!(f, "{column:>width$}")?;
    }
    writeln!(f)
}

/// Three digits at least, and no more after the point than help.
pub(crate) fn number(value: Option<f64>) -> String {
    match value {
        None => "-".into(),
        Some(value) if value < 10.0 => format!("{value:.2}"),
        Some(value) if value < 100.0 => format!("{value:.1}"),
        Some(value) => format!("{value:.0}"),
    }
}
