//! redb: a copy-on-write B-tree. Each put is a write transaction; there is one at a time.

use anyhow::Result;
use redb::{AccessGuard, Database, Durability, ReadableDatabase, ReadableTable, TableDefinition};

use crate::data::Key;
use crate::store::{Engine, Setup};

const ENTRIES: TableDefinition<&[u8], &[u8]> = TableDefinition::new("entries");

pub(super) struct Redb(Database);

impl Redb {
    pub(super) fn open(setup: &Setup) -> Result<Self> {
        let cache = usize::try_from(setup.cache)?;
        let database = Database::builder().set_cache_size(cache).create(setup.dir.join("redb"))?;
        let redb = Self(database);
        redb.write(true, std::iter::empty())?;
        Ok(redb)
    }

    fn write<'a>(
        &self,
        durable: bool,
        puts: impl Iterator<Item = (&'a Key, &'a [u8])>,
    ) -> Result<()> {
        let mut transaction = self.0.begin_write()?;
        let durability = if durable { Durability::Immediate } else { Durability::None };
        transaction.set_durability(durability)?;
        let mut table = transaction.open_table(ENTRIES)?;
        for (key, value) in puts {
            table.insert(key.as_slice(), value)?;
        }
        drop(table);
        Ok(transaction.commit()?)
    }
}

impl Engine for Redb {
    fn put(&self, key: &Key, value: &[u8], durable: bool) -> Result<()> {
        self.write(durable, std::iter::once((key, value)))
    }

    fn put_all(&self, puts: &[(Key, Vec<u8>)], durable: bool) -> Result<()> {
        self.write(durable, puts.iter().map(|(key, value)| (key, value.as_slice())))
    }

    fn get(&self, key: &Key, see: &mut dyn FnMut(Option<&[u8]>) -> Result<()>) -> Result<()> {
        let table = self.0.begin_read()?.open_table(ENTRIES)?;
        let found = table.get(key.as_slice())?;
        see(found.as_ref().map(AccessGuard::value))
    }

    fn sync(&self) -> Result<()> {
        self.write(true, std::iter::empty())
    }

    fn scan(&self, see: &mut dyn FnMut(&[u8], &[u8])) -> Result<()> {
        let table = self.0.begin_read()?.open_table(ENTRIES)?;
        for entry in table.iter()? {
            let (key, value) = entry?;
            see(key.value(), value.value());
        }
        Ok(())
    }
}
