//! A caller: what it asks next, whether the answer is right, and how long that took.
//!
//! All engines are driven by the same callers, each with one operation in flight: as a thread, as a
//! future, or as an entry of a ring.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use hdrhistogram::Histogram;

use crate::data::{self, Choice, Key, Random};

/// When a caller stops.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limit {
    pub(crate) operations: u64,
    pub(crate) until: Instant,
}

/// What a caller wants done. The value of a put is [`Caller::value`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    Put,
    Get,
}

pub(crate) struct Caller {
    random: Random,
    choice: Choice,
    /// The share of gets, of 100.
    gets: u64,
    limit: Limit,
    started: Instant,
    /// Of the operation that is under way.
    pub(crate) id: u64,
    pub(crate) key: Key,
    pub(crate) value: Vec<u8>,
    pub(crate) puts: u64,
    /// In nanoseconds.
    pub(crate) latency: Histogram<u64>,
}

impl Caller {
    pub(crate) fn new(seed: u64, choice: Choice, gets: u64, value: usize, limit: Limit) -> Self {
        let random = Random::new(seed);
        let latency = histogram();
        let (id, key, value) = (0, Key::default(), vec![0; value]);
        let started = Instant::now();
        Self { random, choice, gets, limit, started, id, key, value, puts: 0, latency }
    }

    /// The next operation, which begins now; none if it has done its part.
    pub(crate) fn next(&mut self) -> Option<Op> {
        // The last operation began before the limit, or it would not have begun.
        if self.latency.len() >= self.limit.operations || self.started >= self.limit.until {
            return None;
        }
        self.id = self.choice.next(&mut self.random);
        self.key = data::key(self.id);
        let op = if self.random.next() % 100 < self.gets { Op::Get } else { Op::Put };
        if op == Op::Put {
            data::fill(&mut self.value, &self.key, self.random.next());
            self.puts += 1;
        }
        self.started = Instant::now();
        Some(op)
    }

    /// Checks what a get has given.
    pub(crate) fn check(&self, value: Option<&[u8]>) -> Result<()> {
        let right = value.is_some_and(|value| data::is_right(value, &self.key, self.value.len()));
        ensure!(
            right,
            "key {} has {}",
            self.id,
            if value.is_some() { "another's value" } else { "no value" }
        );
        Ok(())
    }

    /// The operation is done, and right.
    pub(crate) fn done(&mut self) {
        let nanos = u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.latency.saturating_record(nanos);
    }
}

/// From 1 ns to 10 minutes, to three digits.
pub(crate) fn histogram() -> Histogram<u64> {
    let longest = Duration::from_secs(600).as_nanos();
    let longest = u64::try_from(longest).unwrap_or(u64::MAX);
    Histogram::new_with_bounds(1, longest, 3).expect("these bounds are legal")
}
