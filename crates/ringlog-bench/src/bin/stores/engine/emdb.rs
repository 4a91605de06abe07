//! emdb: a log with a hash table in memory, read through a mapping. A durable put is an insert and a
//! flush, which it commits in groups.
//!
//! It reclaims no space by itself. So the writer that has brought the log to twice what was in it
//! after the last time calls `compact`, as a user would have to.

use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Result;
use emdb::{Emdb as Db, FlushPolicy};

use crate::data::Key;
use crate::store::{Engine, Setup};

pub(super) struct Emdb {
    db: Db,
    /// Puts since the last compaction.
    puts: AtomicU64,
}

/// So many puts between two looks at whether there is garbage.
const LOOK: u64 = 4096;

impl Emdb {
    pub(super) fn open(setup: &Setup) -> Result<Self> {
        let db = Db::builder()
            .path(setup.dir.join("emdb"))
            .flush_policy(FlushPolicy::OnEachFlush)
            .build()?;
        Ok(Self { db, puts: AtomicU64::new(0) })
    }

    fn reclaim(&self, puts: u64) -> Result<()> {
        let before = self.puts.fetch_add(puts, Ordering::Relaxed);
        if before / LOOK != (before + puts) / LOOK {
            let live = u64::try_from(self.db.len()?)?;
            if before + puts > 2 * live {
                self.puts.store(live, Ordering::Relaxed);
                self.db.compact()?;
            }
        }
        Ok(())
    }
}

impl Engine for Emdb {
    fn put(&self, key: &Key, value: &[u8], durable: bool) -> Result<()> {
        self.db.insert(key.as_slice(), value)?;
        if durable {
            self.db.flush()?;
        }
        self.reclaim(1)
    }

    fn put_all(&self, puts: &[(Key, Vec<u8>)], durable: bool) -> Result<()> {
        self.db.insert_many(puts.iter().map(|(key, value)| (key.as_slice(), value.as_slice())))?;
        if durable {
            self.db.flush()?;
        }
        self.reclaim(puts.len() as u64)
    }

    fn get(&self, key: &Key, see: &mut dyn FnMut(Option<&[u8]>) -> Result<()>) -> Result<()> {
        see(self.db.get_zerocopy(key)?.as_deref())
    }

    fn sync(&self) -> Result<()> {
        Ok(self.db.flush()?)
    }

    fn scan(&self, see: &mut dyn FnMut(&[u8], &[u8])) -> Result<()> {
        for (key, value) in self.db.iter()? {
            see(&key, &value);
        }
        Ok(())
    }
}
