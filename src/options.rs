//! [`Builder`]: everything that can be chosen. It keeps to the limits before anything is touched.

use crate::durability::Durability;
use crate::error::{Error, Result};
use crate::limits::{
    CACHE_BYTES, MAX_PARTITIONS, MAX_SEGMENT_BYTES, MIN_SEGMENT_BYTES, SEGMENT_BYTES,
};
use crate::partition::{Condition, Expiry};
use crate::rt::Handle;
use crate::store::Store;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How a store is opened. From [`Store::builder`].
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until it opens"]
pub struct Builder {
    pub(crate) dir: PathBuf,
    pub(crate) partitions: usize,
    pub(crate) threads: Option<usize>,
    pub(crate) durability: Durability,
    pub(crate) segment_bytes: u64,
    pub(crate) cache_bytes: usize,
    pub(crate) salvage: bool,
}

impl Builder {
    pub(crate) fn new(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
            partitions: 1,
            threads: None,
            durability: Durability::Sync,
            segment_bytes: SEGMENT_BYTES,
            cache_bytes: CACHE_BYTES,
            salvage: false,
        }
    }

    /// How many logs the keys are spread over, 1 to [`MAX_PARTITIONS`]. Fixed when the store is
    /// made: another number is [`Error::PartitionMismatch`] from then on. Default 1.
    pub fn partitions(mut self, partitions: usize) -> Self {
        self.partitions = partitions;
        self
    }

    /// How many threads, each with a ring, own the partitions; at least 1. More than there are
    /// partitions are not started. It need not be the same each time. Default: as many as there are
    /// partitions or cores, whichever is less.
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = Some(threads);
        self
    }

    /// When writes are acknowledged that do not say so themselves, as [`Store::put_with`] can, or
    /// whose handle does not ([`Store::with_durability`]). It need not be the same each time.
    /// Default [`Durability::Sync`].
    pub fn durability(mut self, durability: Durability) -> Self {
        self.durability = durability;
        self
    }

    /// How large a segment of the log grows at most, in bytes, from [`MIN_SEGMENT_BYTES`] to
    /// [`MAX_SEGMENT_BYTES`]. In small stores it is an eighth of what is alive in a partition,
    /// though no less than 4 MiB, or than this if this is less. A record that is larger has a
    /// segment of its own. It need not be the same each time. Default [`SEGMENT_BYTES`].
    pub fn segment_bytes(mut self, bytes: u64) -> Self {
        self.segment_bytes = bytes;
        self
    }

    /// How much memory values of keys that are often read or written may take, in bytes, for the
    /// whole store: a bound, with all that keeping them costs. [`Store::get`] answers from it in the
    /// caller's thread. Values beyond 32 KiB and those that expire are not kept, and keys that come
    /// by once push nothing out. 0 keeps nothing, as is best for a store that is only written to.
    /// Default [`CACHE_BYTES`].
    pub fn cache_bytes(mut self, bytes: usize) -> Self {
        self.cache_bytes = bytes;
        self
    }

    /// Opens a damaged store with what of it is whole. Each damaged file is first copied to the
    /// folder `quarantine` in the store's directory, then what validates in it is kept, and the
    /// rest is gone. [`Store::open_report`] says what that was.
    ///
    /// **Values can be lost by this, and older values or deleted keys come back** where the record
    /// that replaced them was damaged. Without damage it changes nothing, but reads all logs, since
    /// hints do not show damage. A damaged or missing `STORE`, a version that is not known (also
    /// one that damage made), and files that cannot be read are refused as ever. Default: a damaged
    /// store is refused, and not changed.
    pub fn salvage(mut self, salvage: bool) -> Self {
        self.salvage = salvage;
        self
    }

    /// Opens the store, or makes it. Blocks while it recovers.
    ///
    /// # Errors
    ///
    /// As [`Store::open`]; [`Error::InvalidOptions`] also for no threads, and for segments of
    /// another size than is allowed.
    pub fn open(self) -> Result<Store> {
        self.check()?;
        Store::open_with(self)
    }

    /// Opens the store on executors of the caller's, without the lock that keeps others out: for
    /// simulations. Such a store does not end their threads when it is closed.
    #[doc(hidden)]
    pub async fn open_on(self, threads: &[Handle]) -> Result<Store> {
        self.check()?;
        Store::open_on(self, threads, Arc::new(())).await
    }

    fn check(&self) -> Result<()> {
        if self.partitions == 0 || self.partitions > MAX_PARTITIONS {
            return Err(Error::InvalidOptions("a store has 1 to 4096 partitions"));
        }
        if self.threads == Some(0) {
            return Err(Error::InvalidOptions("a store needs at least one thread"));
        }
        if !(MIN_SEGMENT_BYTES..=MAX_SEGMENT_BYTES).contains(&self.segment_bytes) {
            return Err(Error::InvalidOptions("a segment has 64 KiB to 256 MiB"));
        }
        Ok(())
    }

    pub(crate) fn thread_count(&self) -> usize {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        self.threads.unwrap_or(cores).min(self.partitions)
    }
}

/// How one put is to be done. For [`Store::put_with`].
///
/// ```
/// use ringlog::{Durability, PutOptions};
/// use std::time::Duration;
///
/// let session = PutOptions::new().ttl(Duration::from_secs(3600)).durability(Durability::Buffered);
/// let create = PutOptions::new().if_absent();
/// let swap = PutOptions::new().if_version(17);
/// # drop((session, create, swap));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use = "options do nothing until they are given to a put"]
pub struct PutOptions {
    pub(crate) expiry: Option<Expiry>,
    pub(crate) durability: Option<Durability>,
    pub(crate) condition: Condition,
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl PutOptions {
    /// An unconditional put without an expiry, as durable as its handle's are.
    pub fn new() -> Self {
        Self::default()
    }

    /// The entry is not there any more when this time has passed since the put got its place in the
    /// order. Rounded down to whole milliseconds: below one it expires at once. The store's clock
    /// never goes back.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.expiry = Some(Expiry::After(millis(ttl)));
        self
    }

    /// The entry is not there any more from this time on, in whole milliseconds. A time that has
    /// passed makes an entry that nobody sees. The last of this and [`ttl`](Self::ttl) counts.
    pub fn expires_at(mut self, time: SystemTime) -> Self {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        self.expiry = Some(Expiry::At(millis(since)));
        self
    }

    /// When this put is acknowledged, whatever the default of its store or handle is.
    pub fn durability(mut self, durability: Durability) -> Self {
        self.durability = Some(durability);
        self
    }

    /// Only if the key is not there, or has expired. The last of the three conditions counts.
    pub fn if_absent(mut self) -> Self {
        self.condition = Condition::Absent;
        self
    }

    /// Only if the key is there, and has not expired.
    pub fn if_present(mut self) -> Self {
        self.condition = Condition::Present;
        self
    }

    /// Only if the key is there with this version, as [`Store::get_entry`] or an earlier put told
    /// it. Each write gives a key a version that it never had before.
    pub fn if_version(mut self, version: u64) -> Self {
        self.condition = Condition::Version(version);
        self
    }
}
