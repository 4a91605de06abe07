//! fjall: an LSM tree, on request with values of 512 bytes and more apart from their keys.
//!
//! A durable put is an insert and a `persist` of its own: an `fdatasync` under the journal's lock.

use anyhow::Result;
use fjall::config::CompressionPolicy;
use fjall::{
    CompressionType, Database, Keyspace, KeyspaceCreateOptions, KvSeparationOptions, PersistMode,
};

use crate::data::Key;
use crate::store::{Engine, Setup};

pub(super) struct Fjall {
    database: Database,
    entries: Keyspace,
}

impl Fjall {
    pub(super) fn open(setup: &Setup, separated: bool) -> Result<Self> {
        let database =
            Database::builder(&setup.dir).cache_size(setup.cache).worker_threads(2).open()?;
        let options = || {
            let blobs = KvSeparationOptions::default()
                .separation_threshold(512)
                .compression(CompressionType::None);
            KeyspaceCreateOptions::default()
                .data_block_compression_policy(CompressionPolicy::disabled())
                .index_block_compression_policy(CompressionPolicy::disabled())
                .expect_point_read_hits(true)
                .with_kv_separation(separated.then_some(blobs))
        };
        let entries = database.keyspace("entries", options)?;
        Ok(Self { database, entries })
    }
}

impl Engine for Fjall {
    fn put(&self, key: &Key, value: &[u8], durable: bool) -> Result<()> {
        self.entries.insert(key.as_slice(), value)?;
        if durable {
            self.database.persist(PersistMode::SyncData)?;
        }
        Ok(())
    }

    fn put_all(&self, puts: &[(Key, Vec<u8>)], durable: bool) -> Result<()> {
        let mode = durable.then_some(PersistMode::SyncData);
        let mut batch = self.database.batch().durability(mode);
        for (key, value) in puts {
            batch.insert(&self.entries, key.as_slice(), value.as_slice());
        }
        Ok(batch.commit()?)
    }

    fn get(&self, key: &Key, see: &mut dyn FnMut(Option<&[u8]>) -> Result<()>) -> Result<()> {
        see(self.entries.get(key)?.as_deref())
    }

    fn sync(&self) -> Result<()> {
        Ok(self.database.persist(PersistMode::SyncAll)?)
    }

    fn scan(&self, see: &mut dyn FnMut(&[u8], &[u8])) -> Result<()> {
        for entry in self.entries.iter() {
            let (key, value) = entry.into_inner()?;
            see(&key, &value);
        }
        Ok(())
    }
}
