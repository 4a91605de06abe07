//! What is done to a store, and in which unit that is counted.

use std::fmt::{self, Display, Formatter};
use std::sync::Arc;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::data::{Choice, Zipfian};

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Workload {
    /// puts of new keys, each durable when it returns
    PutDurable,
    /// gets of keys that were just loaded
    GetWarm,
    /// gets of more data than memory holds, see --cold-bytes
    GetCold,
    /// new keys, durable after one sync at the end
    BulkLoad,
    /// four overwrites a key, not durable, keys chosen uniformly
    ChurnUniform,
    /// the same, some keys far more often
    ChurnZipfian,
    /// half gets, half puts, zipfian, not durable
    Mixed50,
    /// the same, durable
    Mixed50Durable,
    /// 95 % gets, 5 % puts, zipfian, not durable
    Mixed95,
    /// the same, durable
    Mixed95Durable,
    /// opening a store whose process was killed after its last sync
    OpenKilled,
    /// opening a store that was closed
    OpenClean,
    /// anonymous memory of a store that was opened and read, for each key
    Memory,
    /// all entries, from the device
    Scan,
}

/// What the figure of a workload counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Unit {
    #[serde(rename = "operations/s")]
    Operations,
    #[serde(rename = "ms")]
    Millis,
    #[serde(rename = "B/key")]
    BytesPerKey,
    #[serde(rename = "MB/s")]
    Megabytes,
}

impl Workload {
    pub(crate) fn unit(self) -> Unit {
        match self {
            Self::OpenKilled | Self::OpenClean => Unit::Millis,
            Self::Memory => Unit::BytesPerKey,
            Self::Scan => Unit::Megabytes,
            _ => Unit::Operations,
        }
    }

    /// Numbers of callers to measure with.
    pub(crate) fn callers(self) -> &'static [usize] {
        match self {
            Self::PutDurable | Self::GetWarm | Self::GetCold => &[1, 16, 64, 256],
            Self::ChurnUniform | Self::ChurnZipfian => &[2],
            Self::Mixed50 | Self::Mixed50Durable | Self::Mixed95 | Self::Mixed95Durable => &[16],
            _ => &[0],
        }
    }

    /// Whether callers are what does the work, so that there can be more or fewer of them.
    pub(crate) fn has_callers(self) -> bool {
        self.callers() != [0]
    }

    /// Whether its puts are durable, and so a group commit of the user's own makes a difference.
    pub(crate) fn is_durable(self) -> bool {
        matches!(self, Self::PutDurable | Self::Mixed50Durable | Self::Mixed95Durable)
    }

    /// Whether it begins with a store that another process has loaded.
    pub(crate) fn is_loaded(self) -> bool {
        !matches!(self, Self::PutDurable | Self::BulkLoad)
    }

    /// Whether it begins with nothing of the store in the page cache.
    pub(crate) fn is_cold(self) -> bool {
        matches!(self, Self::GetCold | Self::Scan)
    }

    pub(crate) fn is_churn(self) -> bool {
        matches!(self, Self::ChurnUniform | Self::ChurnZipfian)
    }

    /// Whether it is about many small entries.
    pub(crate) fn is_small(self) -> bool {
        matches!(self, Self::OpenKilled | Self::OpenClean | Self::Memory)
    }

    /// The share of gets, of 100.
    pub(crate) fn gets(self) -> u64 {
        match self {
            Self::Mixed50 | Self::Mixed50Durable => 50,
            Self::Mixed95 | Self::Mixed95Durable => 95,
            _ if self.is_churn() || !self.is_loaded() => 0,
            _ => 100,
        }
    }

    /// How keys are chosen of those that were loaded. Not for [`Self::PutDurable`].
    pub(crate) fn choice(self, keys: u64) -> Choice {
        match self {
            Self::ChurnZipfian
            | Self::Mixed50
            | Self::Mixed50Durable
            | Self::Mixed95
            | Self::Mixed95Durable => Choice::Zipfian(Arc::new(Zipfian::new(keys))),
            _ => Choice::Uniform(keys),
        }
    }
}

impl Display for Workload {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let value = self.to_possible_value();
        f.pad(value.as_ref().map_or("hidden", |value| value.get_name()))
    }
}

impl Display for Unit {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Operations => "op/s",
            Self::Millis => "ms",
            Self::BytesPerKey => "B/key",
            Self::Megabytes => "MB/s",
        })
    }
}
