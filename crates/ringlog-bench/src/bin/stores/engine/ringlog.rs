//! ringlog. Its callers are futures, as many in flight as there are callers, on as many client
//! threads as there are processors, as in a service. Each drives its own with ringlog's `block_on`.

use std::num::NonZero;
use std::ops::Range;
use std::thread;

use anyhow::{Error, Result, anyhow};
use futures_util::stream::{FuturesUnordered, TryStreamExt};
use ringlog::{Durability, PutOptions, rt};

use crate::caller::{Caller, Op};
use crate::data::Random;
use crate::store::{Setup, Store, entry};

/// Puts that are sent together while loading, as many as in a transaction of the blocking engines, and
/// how many such are on their way, as those have threads.
const BATCH: u64 = 1000;
const LOADERS: u64 = 2;

pub(super) struct Ringlog {
    store: ringlog::Store,
    setup: Setup,
}

impl Ringlog {
    pub(super) fn open(setup: &Setup) -> Result<Self> {
        let builder = ringlog::Store::builder(&setup.dir).partitions(setup.partitions);
        let store = builder.cache_bytes(usize::try_from(setup.cache)?).open()?;
        Ok(Self { store, setup: setup.clone() })
    }

    async fn put(&self, key: &[u8], value: &[u8], durable: bool) -> Result<()> {
        if durable {
            self.store.put(key, value).await?;
        } else {
            let buffered = PutOptions::new().durability(Durability::Buffered);
            self.store.put_with(key, value, buffered).await?;
        }
        Ok(())
    }

    async fn call(&self, mut caller: Caller) -> Result<Caller> {
        while let Some(op) = caller.next() {
            match op {
                Op::Put => self.put(&caller.key, &caller.value, self.setup.durable).await?,
                Op::Get => caller.check(self.store.get(caller.key).await?.as_deref())?,
            }
            caller.done();
        }
        Ok(caller)
    }
}

impl Store for Ringlog {
    fn load(&self, ids: Range<u64>) -> Result<()> {
        let store = self.store.with_durability(Durability::Buffered);
        let loader = |first: u64| {
            let store = store.clone();
            async move {
                let mut random = Random::new(first);
                for start in (first..ids.end).step_by(usize::try_from(LOADERS * BATCH)?) {
                    let some = start..ids.end.min(start + BATCH);
                    let puts = some.map(|id| entry(id, self.setup.value, &mut random));
                    store.put_many(puts).await?;
                }
                Ok(())
            }
        };
        let loaders: FuturesUnordered<_> =
            (0..LOADERS).map(|n| loader(ids.start + n * BATCH)).collect();
        rt::block_on(loaders.try_collect())
    }

    fn drive(&self, callers: Vec<Caller>) -> Result<Vec<Caller>> {
        let threads = thread::available_parallelism().map_or(1, NonZero::get).min(callers.len());
        let mut shares: Vec<Vec<Caller>> = (0..threads).map(|_| Vec::new()).collect();
        for (n, caller) in callers.into_iter().enumerate() {
            shares[n % threads].push(caller);
        }
        let work = |share: Vec<Caller>| {
            let callers: FuturesUnordered<_> =
                share.into_iter().map(|caller| self.call(caller)).collect();
            rt::block_on(callers.try_collect::<Vec<_>>())
        };
        thread::scope(|scope| {
            let clients: Vec<_> =
                shares.into_iter().map(|share| scope.spawn(move || work(share))).collect();
            let mut done = Vec::new();
            for client in clients {
                done.extend(client.join().map_err(|_| anyhow!("a client panicked"))??);
            }
            Ok::<_, Error>(done)
        })
    }

    fn sync(&self) -> Result<()> {
        Ok(rt::block_on(self.store.sync())?)
    }

    fn scan(&self, see: &mut dyn FnMut(&[u8], &[u8])) -> Result<()> {
        let mut scan = self.store.scan();
        rt::block_on(async {
            while let Some(entry) = scan.next().await {
                let entry = entry?;
                see(&entry.key, &entry.value);
            }
            Ok(())
        })
    }

    fn close(self: Box<Self>) -> Result<()> {
        Ok(rt::block_on(self.store.close())?)
    }
}
