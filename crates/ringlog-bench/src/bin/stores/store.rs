//! What an engine has to offer to be measured, and how blocking ones are driven.
//!
//! [`Store`] is what the workloads use. ringlog and the bare ring implement it themselves, with as
//! many operations in flight as there are callers. The others block, so each implements [`Engine`],
//! and [`Threads`] gives each caller a thread.

use std::ops::Range;
use std::path::PathBuf;
use std::thread;

use anyhow::{Result, anyhow};

use crate::caller::{Caller, Op};
use crate::data::{self, Key, Random};

/// How a store is to be opened.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    pub(crate) dir: PathBuf,
    /// Whether puts are durable when they return. Loading never is, before its sync.
    pub(crate) durable: bool,
    /// Bytes for the engine's own cache, where it has one.
    #[allow(dead_code, reason = "where no peer is built")]
    pub(crate) cache: u64,
    /// Bytes of a value.
    pub(crate) value: usize,
    /// Of ringlog.
    pub(crate) partitions: usize,
}

/// A store as the workloads use it.
pub(crate) trait Store {
    /// Puts these keys, in the quickest way that it has without asking for durability.
    fn load(&self, ids: Range<u64>) -> Result<()>;

    /// Runs the callers until each has done its part, and gives them back.
    fn drive(&self, callers: Vec<Caller>) -> Result<Vec<Caller>>;

    /// Makes everything durable.
    fn sync(&self) -> Result<()>;

    /// Shows every entry.
    fn scan(&self, see: &mut dyn FnMut(&[u8], &[u8])) -> Result<()>;

    /// Closes it as a careful user would.
    fn close(self: Box<Self>) -> Result<()>;
}

/// An engine whose calls block until they are done.
pub(crate) trait Engine: Send + Sync {
    /// With `durable`, in the strongest way there is for a single put.
    fn put(&self, key: &Key, value: &[u8], durable: bool) -> Result<()>;

    /// All of them in one transaction or batch, where there is such a thing.
    fn put_all(&self, puts: &[(Key, Vec<u8>)], durable: bool) -> Result<()>;

    /// Shows a key's value, or `None`.
    fn get(&self, key: &Key, see: &mut dyn FnMut(Option<&[u8]>) -> Result<()>) -> Result<()>;

    /// See [`Store::sync`].
    fn sync(&self) -> Result<()>;

    /// See [`Store::scan`].
    fn scan(&self, see: &mut dyn FnMut(&[u8], &[u8])) -> Result<()>;

    /// See [`Store::close`].
    fn close(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}

/// Threads that load.
const LOADERS: u64 = 2;

/// Puts in one transaction of a load.
const LOAD_BATCH: u64 = 1000;

/// A thread for each caller.
pub(crate) struct Threads {
    pub(crate) engine: Box<dyn Engine>,
    pub(crate) setup: Setup,
}

impl Store for Threads {
    fn load(&self, ids: Range<u64>) -> Result<()> {
        let part = (ids.end - ids.start).div_ceil(LOADERS);
        let load = |mut next: u64, end: u64| -> Result<()> {
            let mut random = Random::new(next);
            while next < end {
                let batch = next..end.min(next + LOAD_BATCH);
                next = batch.end;
                let puts: Vec<_> =
                    batch.map(|id| entry(id, self.setup.value, &mut random)).collect();
                self.engine.put_all(&puts, false)?;
            }
            Ok(())
        };
        thread::scope(|scope| {
            let starts = (0..LOADERS).map(|n| ids.start + n * part);
            let load = &load;
            let loaders: Vec<_> = starts
                .map(|start| scope.spawn(move || load(start, ids.end.min(start + part))))
                .collect();
            loaders.into_iter().try_for_each(|loader| joined(loader.join())?)
        })
    }

    fn drive(&self, callers: Vec<Caller>) -> Result<Vec<Caller>> {
        thread::scope(|scope| {
            let drive = |caller| move || call(&*self.engine, self.setup.durable, caller);
            let threads: Vec<_> =
                callers.into_iter().map(|caller| scope.spawn(drive(caller))).collect();
            threads.into_iter().map(|thread| joined(thread.join())?).collect()
        })
    }

    fn sync(&self) -> Result<()> {
        self.engine.sync()
    }

    fn scan(&self, see: &mut dyn FnMut(&[u8], &[u8])) -> Result<()> {
        self.engine.scan(see)
    }

    fn close(self: Box<Self>) -> Result<()> {
        self.engine.close()
    }
}

/// An entry to load.
pub(crate) fn entry(id: u64, value: usize, random: &mut Random) -> (Key, Vec<u8>) {
    let (key, mut bytes) = (data::key(id), vec![0; value]);
    data::fill(&mut bytes, &key, random.next());
    (key, bytes)
}

fn call(engine: &dyn Engine, durable: bool, mut caller: Caller) -> Result<Caller> {
    while let Some(op) = caller.next() {
        match op {
            Op::Put => engine.put(&caller.key, &caller.value, durable)?,
            Op::Get => engine.get(&caller.key, &mut |value| caller.check(value))?,
        }
        caller.done();
    }
    Ok(caller)
}

fn joined<T>(result: thread::Result<T>) -> Result<T> {
    result.map_err(|_| anyhow!("a thread of the engine's callers has panicked"))
}
