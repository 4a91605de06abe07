//! sled 0.34: a Bw-tree over a log.
//!
//! Its `flush` calls `sync_file_range`, which does not empty the device's cache: its "durable" puts
//! do not survive a power cut, and are not to be compared with those of the others.

use anyhow::Result;
use sled::{Batch, Db};

use crate::data::Key;
use crate::store::{Engine, Setup};

pub(super) struct Sled(Db);

impl Sled {
    pub(super) fn open(setup: &Setup) -> Result<Self> {
        Ok(Self(sled::Config::new().path(&setup.dir).cache_capacity(setup.cache).open()?))
    }
}

impl Engine for Sled {
    fn put(&self, key: &Key, value: &[u8], durable: bool) -> Result<()> {
        self.0.insert(key, value)?;
        if durable {
            self.0.flush()?;
        }
        Ok(())
    }

    fn put_all(&self, puts: &[(Key, Vec<u8>)], durable: bool) -> Result<()> {
        let mut batch = Batch::default();
        for (key, value) in puts {
            batch.insert(key, value.as_slice());
        }
        self.0.apply_batch(batch)?;
        if durable {
            self.0.flush()?;
        }
        Ok(())
    }

    fn get(&self, key: &Key, see: &mut dyn FnMut(Option<&[u8]>) -> Result<()>) -> Result<()> {
        see(self.0.get(key)?.as_deref())
    }

    fn sync(&self) -> Result<()> {
        self.0.flush()?;
        Ok(())
    }

    fn scan(&self, see: &mut dyn FnMut(&[u8], &[u8])) -> Result<()> {
        for entry in self.0.iter() {
            let (key, value) = entry?;
            see(&key, &value);
        }
        Ok(())
    }
}
