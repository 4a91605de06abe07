//! One workload on one engine, in a process of its own.
//!
//! A process loads the store and closes it or is killed; another one opens it and is measured. So no
//! engine's memory and threads, nor what its loading has left in them, are part of another's figures.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::caller::{Caller, Limit, histogram};
use crate::data::{self, Choice, KEY};
use crate::engine::Kind;
use crate::probe::{self, Watch};
use crate::store::{Setup, Store};
use crate::workload::Workload;

/// Overwrites a key in a churn.
const CHURN: u64 = 4;

/// How much a caller does when time is not what ends it.
const CHECKS: u64 = 10_000;

/// What a process is started to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Job {
    pub(crate) engine: Kind,
    pub(crate) workload: Workload,
    pub(crate) dir: PathBuf,
    pub(crate) callers: Vec<usize>,
    pub(crate) keys: u64,
    pub(crate) value: usize,
    pub(crate) cache: u64,
    pub(crate) partitions: usize,
    /// Of each number of callers.
    pub(crate) time: Duration,
    pub(crate) warm_up: Duration,
    /// The longest that a churn may take.
    pub(crate) churn: Duration,
    pub(crate) round: u64,
}

/// What one measurement says.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Sample {
    pub(crate) callers: usize,
    /// In the workload's unit.
    pub(crate) figure: f64,
    /// In microseconds, as the next three.
    pub(crate) p50: Option<f64>,
    pub(crate) p99: Option<f64>,
    pub(crate) p999: Option<f64>,
    pub(crate) max: Option<f64>,
    /// CPU time of the whole process for an operation or entry, in microseconds.
    pub(crate) cpu: Option<f64>,
    /// The most blocks on the disk, as a multiple of the bytes of live keys and values.
    pub(crate) space: Option<f64>,
    /// Bytes written, as a multiple of the bytes of keys and values that were put.
    pub(crate) written: Option<f64>,
}

impl Job {
    fn setup(&self) -> Setup {
        let (dir, durable) = (self.dir.clone(), self.workload.is_durable());
        let (cache, value, partitions) = (self.cache, self.value, self.partitions);
        Setup { dir, durable, cache, value, partitions }
    }

    fn user_bytes(&self, entries: u64) -> u64 {
        entries * (KEY + self.value) as u64
    }

    /// Fills the store. Returns it so that the caller chooses how it ends.
    pub(crate) fn load(&self) -> Result<Box<dyn Store>> {
        data::prepare();
        let store = self.engine.open(&self.setup())?;
        store.load(0..self.keys)?;
        store.sync()?;
        Ok(store)
    }

    /// Measures with each number of callers.
    pub(crate) fn measure(&self) -> Result<Vec<Sample>> {
        data::prepare();
        let (samples, store) = match self.workload {
            Workload::BulkLoad => self.bulk_load()?,
            Workload::OpenKilled | Workload::OpenClean => self.opening()?,
            Workload::Memory => self.memory()?,
            Workload::Scan => self.scan()?,
            _ => self.operations()?,
        };
        store.close()?;
        Ok(samples)
    }

    fn operations(&self) -> Result<(Vec<Sample>, Box<dyn Store>)> {
        let store = self.engine.open(&self.setup())?;
        let mut samples = Vec::new();
        for (level, &callers) in (1..).zip(&self.callers) {
            if !self.workload.is_churn() {
                self.drive(&*store, level << 40, callers, u64::MAX, self.warm_up)?;
            }
            samples.push(self.level(&*store, level << 44, callers)?);
        }
        Ok((samples, store))
    }

    /// Runs so many callers, and gives them back.
    fn drive(
        &self,
        store: &dyn Store,
        base: u64,
        callers: usize,
        operations: u64,
        time: Duration,
    ) -> Result<Vec<Caller>> {
        let count = callers as u64;
        let choice = self.workload.choice(self.keys);
        let limit = Limit { operations: operations.div_ceil(count), until: Instant::now() + time };
        let caller = |n| {
            let choice = match self.workload {
                // Keys that are not there yet.
                Workload::PutDurable => Choice::Sequence { next: base + n, step: count },
                _ => choice.clone(),
            };
            let seed = base + self.round * 1000 + n;
            Caller::new(seed, choice, self.workload.gets(), self.value, limit)
        };
        store.drive((0..count).map(caller).collect())
    }

    /// One number of callers, measured.
    fn level(&self, store: &dyn Store, base: u64, callers: usize) -> Result<Sample> {
        let (operations, time) = if self.workload.is_churn() {
            (CHURN * self.keys, self.churn)
        } else {
            (u64::MAX, self.time)
        };
        // The bare ring writes over and over what nobody reads.
        let is_watched = self.workload.is_churn() && self.engine != Kind::Raw;
        let watch = is_watched.then(|| Watch::start(self.dir.clone()));
        let (started, cpu) = (Instant::now(), probe::cpu_seconds()?);
        let written = probe::bytes_written()?;
        let callers_done = self.drive(store, base, callers, operations, time)?;
        let seconds = started.elapsed().as_secs_f64();
        let cpu = probe::cpu_seconds()? - cpu;
        let written = probe::bytes_written()? - written;

        let mut latency = histogram();
        for caller in &callers_done {
            latency.add(&caller.latency)?;
        }
        let puts = callers_done.iter().map(|caller| caller.puts).sum();
        ensure!(!latency.is_empty(), "no operation was completed");
        let micros = |nanos: u64| Some(ratio(nanos, 1000));
        let peak = watch.map(Watch::peak).transpose()?;
        Ok(Sample {
            callers,
            figure: float(latency.len()) / seconds,
            p50: micros(latency.value_at_quantile(0.5)),
            p99: micros(latency.value_at_quantile(0.99)),
            p999: micros(latency.value_at_quantile(0.999)),
            max: micros(latency.max()),
            cpu: Some(cpu * 1e6 / float(latency.len())),
            space: peak.map(|peak| ratio(peak, self.user_bytes(self.keys))),
            written: (puts > 0).then(|| ratio(written, self.user_bytes(puts))),
        })
    }

    fn bulk_load(&self) -> Result<(Vec<Sample>, Box<dyn Store>)> {
        let store = self.engine.open(&self.setup())?;
        let (started, cpu) = (Instant::now(), probe::cpu_seconds()?);
        let written = probe::bytes_written()?;
        store.load(0..self.keys)?;
        store.sync()?;
        let seconds = started.elapsed().as_secs_f64();
        let sample = Sample {
            figure: float(self.keys) / seconds,
            cpu: Some((probe::cpu_seconds()? - cpu) * 1e6 / float(self.keys)),
            written: Some(ratio(probe::bytes_written()? - written, self.user_bytes(self.keys))),
            ..Sample::default()
        };
        self.spot_check(&*store)?;
        Ok((vec![sample], store))
    }

    fn opening(&self) -> Result<(Vec<Sample>, Box<dyn Store>)> {
        let (started, cpu) = (Instant::now(), probe::cpu_seconds()?);
        let store = self.engine.open(&self.setup())?;
        let seconds = started.elapsed().as_secs_f64();
        let cpu = (probe::cpu_seconds()? - cpu) * 1e6 / float(self.keys);
        self.spot_check(&*store)?;
        let sample = Sample { figure: seconds * 1e3, cpu: Some(cpu), ..Sample::default() };
        Ok((vec![sample], store))
    }

    fn memory(&self) -> Result<(Vec<Sample>, Box<dyn Store>)> {
        let before = probe::anonymous_memory()?;
        let store = self.engine.open(&self.setup())?;
        self.spot_check(&*store)?;
        let bytes = probe::anonymous_memory()?.saturating_sub(before);
        let sample = Sample { figure: ratio(bytes, self.keys), ..Sample::default() };
        Ok((vec![sample], store))
    }

    fn scan(&self) -> Result<(Vec<Sample>, Box<dyn Store>)> {
        let store = self.engine.open(&self.setup())?;
        let (started, cpu) = (Instant::now(), probe::cpu_seconds()?);
        let mut right = 0;
        store.scan(&mut |key, value| right += u64::from(data::is_right(value, key, self.value)))?;
        let seconds = started.elapsed().as_secs_f64();
        // The bare ring shows no record that lies in two of its chunks.
        let all = if self.engine == Kind::Raw { right > 0 } else { right == self.keys };
        ensure!(all, "{right} of {} entries were right", self.keys);
        let cpu = (probe::cpu_seconds()? - cpu) * 1e6 / float(self.keys);
        let figure = float(self.user_bytes(self.keys)) / seconds / 1e6;
        Ok((vec![Sample { figure, cpu: Some(cpu), ..Sample::default() }], store))
    }

    /// Gets some of the keys that were loaded.
    fn spot_check(&self, store: &dyn Store) -> Result<()> {
        let limit = Limit { operations: CHECKS, until: Instant::now() + Duration::from_secs(10) };
        let choice = Choice::Uniform(self.keys);
        let caller = Caller::new(self.round, choice, 100, self.value, limit);
        store.drive(vec![caller]).context("after it was loaded").map(drop)
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^52 here")]
fn float(count: u64) -> f64 {
    count as f64
}

fn ratio(a: u64, b: u64) -> f64 {
    float(a) / float(b)
}
