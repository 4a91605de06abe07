//! [`Builder`] and the limits: everything that can be chosen, and everything that is bounded.

use crate::error::{Error, Result};
use crate::store::Store;
use std::path::{Path, PathBuf};

/// The longest key in bytes. Its length has two bytes in a record.
pub const MAX_KEY_LEN: usize = 65_535;

/// The longest value in bytes: 64 MiB. A value is read and written in one piece.
pub const MAX_VALUE_LEN: usize = 64 << 20;

/// The most partitions a store can have.
pub const MAX_PARTITIONS: usize = 4096;

/// How many bytes of requests each partition takes in before their futures wait: 64 MiB.
///
/// A request counts with its key, its value and [`REQUEST_OVERHEAD`]; one that is larger than all
/// of it is let in alone.
pub const QUEUE_BYTES: usize = 64 << 20;

/// What a request counts for besides its key and value.
pub const REQUEST_OVERHEAD: usize = 1024;

/// How a store is opened. From [`Store::builder`].
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until it opens"]
pub struct Builder {
    pub(crate) dir: PathBuf,
    pub(crate) partitions: usize,
    pub(crate) threads: Option<usize>,
}

impl Builder {
    pub(crate) fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), partitions: 1, threads: None }
    }

    /// How many logs the keys are spread over, 1 to [`MAX_PARTITIONS`]. Fixed when the store is
    /// made. Default 1.
    pub fn partitions(mut self, partitions: usize) -> Self {
        self.partitions = partitions;
        self
    }

    /// How many threads, each with a ring, own the partitions. More than there are partitions are
    /// not started. Default: as many as there are partitions or cores, whichever is less.
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = Some(threads);
        self
    }

    /// Opens the store, or makes it. Blocks while it recovers.
    ///
    /// # Errors
    ///
    /// As [`Store::open`].
    pub fn open(self) -> Result<Store> {
        if self.partitions == 0 || self.partitions > MAX_PARTITIONS {
            return Err(Error::InvalidOptions("a store has 1 to 4096 partitions"));
        }
        if self.threads == Some(0) {
            return Err(Error::InvalidOptions("a store needs at least one thread"));
        }
        Store::open_with(&self)
    }

    pub(crate) fn thread_count(&self) -> usize {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        self.threads.unwrap_or(cores).min(self.partitions)
    }
}
