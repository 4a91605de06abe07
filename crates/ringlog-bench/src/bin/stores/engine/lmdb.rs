//! LMDB through heed: a memory-mapped copy-on-write B-tree. Each put is a write transaction, each
//! get a read transaction. Where no durability is asked for, commits do not sync.

use anyhow::Result;
use heed::types::Bytes;
use heed::{Database, Env, EnvFlags, EnvOpenOptions, FlagSetMode};

use crate::data::Key;
use crate::store::{Engine, Setup};

/// Address space, not memory: more than any run stores.
const MAP: usize = 64 << 30;

/// Reading threads.
const READERS: u32 = 1024;

pub(super) struct Lmdb {
    env: Env,
    entries: Database<Bytes, Bytes>,
}

impl Lmdb {
    pub(super) fn open(setup: &Setup) -> Result<Self> {
        let mut options = EnvOpenOptions::new();
        options.map_size(MAP).max_readers(READERS);
        // SAFETY: to read ahead or not changes nothing of what is read.
        unsafe { options.flags(EnvFlags::NO_READ_AHEAD) };
        // SAFETY: the file is of this run alone, so nothing else changes what is mapped.
        let env = unsafe { options.open(&setup.dir)? };
        if !setup.durable {
            // SAFETY: the machine does not crash between a run's commits and its `sync`, and what
            // it might leave then is not opened again.
            unsafe { env.set_flags(EnvFlags::NO_SYNC, FlagSetMode::Enable)? };
        }
        let mut transaction = env.write_txn()?;
        let entries = env.create_database(&mut transaction, None)?;
        transaction.commit()?;
        Ok(Self { env, entries })
    }
}

impl Engine for Lmdb {
    fn put(&self, key: &Key, value: &[u8], _: bool) -> Result<()> {
        let mut transaction = self.env.write_txn()?;
        self.entries.put(&mut transaction, key, value)?;
        Ok(transaction.commit()?)
    }

    fn put_all(&self, puts: &[(Key, Vec<u8>)], _: bool) -> Result<()> {
        let mut transaction = self.env.write_txn()?;
        for (key, value) in puts {
            self.entries.put(&mut transaction, key, value)?;
        }
        Ok(transaction.commit()?)
    }

    fn get(&self, key: &Key, see: &mut dyn FnMut(Option<&[u8]>) -> Result<()>) -> Result<()> {
        let transaction = self.env.read_txn()?;
        see(self.entries.get(&transaction, key)?)
    }

    fn sync(&self) -> Result<()> {
        Ok(self.env.force_sync()?)
    }

    fn scan(&self, see: &mut dyn FnMut(&[u8], &[u8])) -> Result<()> {
        let transaction = self.env.read_txn()?;
        for entry in self.entries.iter(&transaction)? {
            let (key, value) = entry?;
            see(key, value);
        }
        Ok(())
    }
}
