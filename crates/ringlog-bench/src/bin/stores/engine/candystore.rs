//! candystore: a log with a memory-mapped hash table. A durable put is a set and a checkpoint.

use anyhow::Result;
use candystore::{CandyStore, Config};

use crate::data::Key;
use crate::store::{Engine, Setup};

/// Bytes a second that its compaction may take: its default of 4 MiB falls behind any load.
const COMPACTION: usize = 512 << 20;

pub(super) struct Candystore(CandyStore);

impl Candystore {
    pub(super) fn open(setup: &Setup) -> Result<Self> {
        let config =
            Config { compaction_throughput_bytes_per_sec: COMPACTION, ..Config::default() };
        Ok(Self(CandyStore::open(&setup.dir, config)?))
    }
}

impl Engine for Candystore {
    fn put(&self, key: &Key, value: &[u8], durable: bool) -> Result<()> {
        self.0.set(key, value)?;
        if durable {
            self.0.checkpoint()?;
        }
        Ok(())
    }

    fn put_all(&self, puts: &[(Key, Vec<u8>)], durable: bool) -> Result<()> {
        for (key, value) in puts {
            self.0.set(key, value)?;
        }
        if durable {
            self.0.checkpoint()?;
        }
        Ok(())
    }

    fn get(&self, key: &Key, see: &mut dyn FnMut(Option<&[u8]>) -> Result<()>) -> Result<()> {
        see(self.0.get(key)?.as_deref())
    }

    fn sync(&self) -> Result<()> {
        Ok(self.0.checkpoint()?)
    }

    fn scan(&self, see: &mut dyn FnMut(&[u8], &[u8])) -> Result<()> {
        for entry in self.0.iter_items() {
            let (key, value) = entry?;
            see(&key, &value);
        }
        Ok(())
    }
}
