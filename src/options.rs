//! [`Builder`]: everything that can be chosen. It keeps to the limits before anything is touched.

use crate::error::{Error, Result};
use crate::limits::MAX_PARTITIONS;
use crate::store::Store;
use std::path::{Path, PathBuf};

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
