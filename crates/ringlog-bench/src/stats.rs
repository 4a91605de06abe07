//! What one measurement says, and medians over the rounds.

// Counts and nanoseconds stay far below 2^52 here.
#![allow(clippy::cast_precision_loss)]

use serde::Serialize;

use crate::cpu_time::Usage;
use crate::load::Interval;

/// One measurement of one engine; after [`Summary::of`] also the medians of several.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Sample {
    /// Requests completed per second.
    pub requests_per_second: f64,
    /// Median latency in microseconds.
    pub p50_us: f64,
    /// 99th percentile of the latency in microseconds.
    pub p99_us: f64,
    /// 99.9th percentile of the latency in microseconds.
    pub p999_us: f64,
    /// The longest latency in microseconds.
    pub max_us: f64,
    /// CPU time of the server's process per request, in microseconds.
    pub server_cpu_us: f64,
    /// The share of the time in which the server was on a CPU.
    pub server_busy: f64,
    /// The share of the time in which the load generator was on a CPU.
    pub generator_busy: f64,
    /// The share of the time in which one of the two, whichever had more of it, was ready to run
    /// and did not have its CPU.
    pub waited: f64,
}

impl Sample {
    /// Turns one interval into a sample, or `None` if no request was completed in it.
    pub fn new(interval: &Interval, server: Usage, generator: Usage) -> Option<Self> {
        let latency = &interval.latency;
        let requests = latency.len() as f64;
        if latency.is_empty() {
            return None;
        }
        let seconds = interval.elapsed.as_secs_f64();
        let quantile_us = |quantile| latency.value_at_quantile(quantile) as f64 / 1e3;
        Some(Self {
            requests_per_second: requests / seconds,
            p50_us: quantile_us(0.5),
            p99_us: quantile_us(0.99),
            p999_us: quantile_us(0.999),
            max_us: latency.max() as f64 / 1e3,
            server_cpu_us: server.ran.as_secs_f64() * 1e6 / requests,
            server_busy: server.ran.as_secs_f64() / seconds,
            generator_busy: generator.ran.as_secs_f64() / seconds,
            waited: server.waited.max(generator.waited).as_secs_f64() / seconds,
        })
    }
}

/// Several measurements of the same thing.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// The median of each figure by itself; of `max_us`, the largest.
    pub median: Sample,
    /// The distance between the fastest and the slowest round, as a share of the median rate.
    pub spread: f64,
    /// The rounds in the order in which they ran.
    pub rounds: Vec<Sample>,
}

impl Summary {
    /// Sums `rounds` up, or `None` if there are none.
    pub fn of(rounds: &[Sample]) -> Option<Self> {
        let median_of = |figure: fn(&Sample) -> f64| median(rounds.iter().map(figure).collect());
        let median = Sample {
            requests_per_second: median_of(|sample| sample.requests_per_second)?,
            p50_us: median_of(|sample| sample.p50_us)?,
            p99_us: median_of(|sample| sample.p99_us)?,
            p999_us: median_of(|sample| sample.p999_us)?,
            max_us: rounds.iter().map(|sample| sample.max_us).fold(0.0, f64::max),
            server_cpu_us: median_of(|sample| sample.server_cpu_us)?,
            server_busy: median_of(|sample| sample.server_busy)?,
            generator_busy: median_of(|sample| sample.generator_busy)?,
            waited: median_of(|sample| sample.waited)?,
        };
        let rates = rounds.iter().map(|sample| sample.requests_per_second);
        let fastest = rates.clone().fold(f64::MIN, f64::max);
        let slowest = rates.fold(f64::MAX, f64::min);
        let spread = (fastest - slowest) / median.requests_per_second;
        Some(Self { median, spread, rounds: rounds.to_vec() })
    }
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let upper = *values.get(values.len() / 2)?;
    let lower = values[(values.len() - 1) / 2];
    Some(f64::midpoint(lower, upper))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_is_the_middle_or_between_the_two_middle_values() {
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![3.0]), Some(3.0));
        assert_eq!(median(vec![9.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![9.0, 1.0, 4.0, 2.0]), Some(3.0));
    }

    #[test]
    fn summary_keeps_the_worst_maximum() {
        let sample = |rate, max_us| Sample {
            requests_per_second: rate,
            p50_us: 1.0,
            p99_us: 1.0,
            p999_us: 1.0,
            max_us,
            server_cpu_us: 1.0,
            server_busy: 0.5,
            generator_busy: 0.5,
            waited: 0.0,
        };
        let rounds = [sample(100.0, 7.0), sample(90.0, 50.0), sample(110.0, 6.0)];
        let summary = Summary::of(&rounds).expect("there are rounds");
        assert!((summary.median.requests_per_second - 100.0).abs() < 1e-9);
        assert!((summary.median.max_us - 50.0).abs() < 1e-9);
        assert!((summary.spread - 0.2).abs() < 1e-9);
        assert_eq!(Summary::of(&[]), None);
    }
}
