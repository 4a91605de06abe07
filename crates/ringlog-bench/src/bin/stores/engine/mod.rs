//! The engines, a file each. All begin with an empty directory or with what they have left there.

#[cfg(feature = "candystore")]
mod candystore;
#[cfg(feature = "emdb")]
mod emdb;
#[cfg(feature = "fjall")]
mod fjall;
#[cfg(feature = "lmdb")]
mod lmdb;
mod raw;
#[cfg(feature = "redb")]
mod redb;
mod ringlog;
#[cfg(feature = "sled")]
mod sled;

use std::fmt::{self, Display, Formatter};

use anyhow::Result;
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::group_commit::GroupCommit;
use crate::store::{Engine, Setup, Store, Threads};
use crate::workload::Workload;

/// What stores the entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
pub(crate) enum Kind {
    /// ringlog
    Ringlog,
    /// a bare ring that does the same I/O and nothing else: the bound
    Raw,
    /// an LSM tree
    Fjall,
    /// fjall behind a group commit
    #[value(name = "fjall+gc")]
    FjallGc,
    /// fjall with values apart from keys
    FjallKv,
    /// the same behind a group commit
    #[value(name = "fjall-kv+gc")]
    FjallKvGc,
    /// a copy-on-write B-tree
    Redb,
    /// redb behind a group commit
    #[value(name = "redb+gc")]
    RedbGc,
    /// a Bw-tree over a log; its flush does not reach the device, see the crate's README
    Sled,
    /// LMDB, a memory-mapped B-tree
    Lmdb,
    /// LMDB behind a group commit
    #[value(name = "lmdb+gc")]
    LmdbGc,
    /// a log with a memory-mapped hash table
    Candystore,
    /// a log with a hash table, read through a mapping
    Emdb,
}

impl Kind {
    /// The engines that this program was built with.
    pub(crate) fn built() -> impl Iterator<Item = Self> {
        Self::value_variants().iter().copied().filter(|kind| kind.is_built())
    }

    fn is_built(self) -> bool {
        match self {
            Self::Ringlog | Self::Raw => true,
            Self::Fjall | Self::FjallGc | Self::FjallKv | Self::FjallKvGc => {
                cfg!(feature = "fjall")
            }
            Self::Redb | Self::RedbGc => cfg!(feature = "redb"),
            Self::Sled => cfg!(feature = "sled"),
            Self::Lmdb | Self::LmdbGc => cfg!(feature = "lmdb"),
            Self::Candystore => cfg!(feature = "candystore"),
            Self::Emdb => cfg!(feature = "emdb"),
        }
    }

    fn is_group_commit(self) -> bool {
        matches!(self, Self::FjallGc | Self::FjallKvGc | Self::RedbGc | Self::LmdbGc)
    }

    /// Behind a group commit only durable puts differ, and the bare ring has no index.
    pub(crate) fn applies_to(self, workload: Workload) -> bool {
        (!self.is_group_commit() || workload.is_durable())
            && (self != Self::Raw || workload != Workload::Memory)
    }

    /// Opens the store, or makes it.
    pub(crate) fn open(self, setup: &Setup) -> Result<Box<dyn Store>> {
        Ok(match self {
            Self::Ringlog => Box::new(ringlog::Ringlog::open(setup)?),
            Self::Raw => Box::new(raw::Raw::open(setup)?),
            _ => {
                let mut engine = self.open_blocking(setup)?;
                if self.is_group_commit() {
                    engine = Box::new(GroupCommit::new(engine));
                }
                Box::new(Threads { engine, setup: setup.clone() })
            }
        })
    }

    #[allow(unused_variables, clippy::match_single_binding, reason = "where no peer is built")]
    #[allow(unreachable_patterns, reason = "where all are built")]
    fn open_blocking(self, setup: &Setup) -> Result<Box<dyn Engine>> {
        match self {
            #[cfg(feature = "fjall")]
            Self::Fjall | Self::FjallGc => Ok(Box::new(fjall::Fjall::open(setup, false)?)),
            #[cfg(feature = "fjall")]
            Self::FjallKv | Self::FjallKvGc => Ok(Box::new(fjall::Fjall::open(setup, true)?)),
            #[cfg(feature = "redb")]
            Self::Redb | Self::RedbGc => Ok(Box::new(redb::Redb::open(setup)?)),
            #[cfg(feature = "sled")]
            Self::Sled => Ok(Box::new(sled::Sled::open(setup)?)),
            #[cfg(feature = "lmdb")]
            Self::Lmdb | Self::LmdbGc => Ok(Box::new(lmdb::Lmdb::open(setup)?)),
            #[cfg(feature = "candystore")]
            Self::Candystore => Ok(Box::new(candystore::Candystore::open(setup)?)),
            #[cfg(feature = "emdb")]
            Self::Emdb => Ok(Box::new(emdb::Emdb::open(setup)?)),
            other => Err(anyhow::anyhow!("built without the feature of {other}")),
        }
    }
}

impl Display for Kind {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let value = self.to_possible_value();
        f.pad(value.as_ref().map_or("hidden", |value| value.get_name()))
    }
}
