//! What happens to the directory when a store is opened: made, locked, created, its logs opened.
//!
//! Invariants: a store is open in one place at a time; it exists only when it is whole, since its
//! superblock comes last; what is found is refused or kept, never written over.

use crate::error::{Error, Result};
use crate::limits::MAX_OPEN_SEGMENTS;
use crate::log::hint::REMEMBERED;
use crate::log::journal;
use crate::log::segment::sync_dir;
use crate::log::superblock::{Superblock, random, read_start};
use crate::log::{BLOCK_LEN, Identity};
use crate::options::Builder;
use crate::partition::{Cache, Partition, Plan, Settings};
use crate::report::OpenReport;
use crate::rt::{self, Handle, Owned};
use std::any::Any;
use std::cell::Cell;
use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// The parent of a relative path's first part has an empty name.
fn here(dir: &Path) -> &Path {
    if dir.as_os_str().is_empty() { Path::new(".") } else { dir }
}

/// Makes the directory if it is not there, and those above it, durably.
pub(crate) async fn make_dir(dir: &Path) -> Result<()> {
    let mut parts: Vec<_> = dir.ancestors().collect();
    while let Some(part) = parts.pop() {
        match rt::make_dir(None, here(part), 0o777).await {
            Ok(()) => sync_dir(here(part.parent().unwrap_or(part))).await?,
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(_) if !parts.is_empty() => {} // if it matters, so does the last one fail
            Err(error) => return Err(Error::io("create", dir)(error)),
        }
    }
    Ok(())
}

/// Makes the directory's own name durable, also if somebody else has just made it.
pub(crate) async fn sync_name(dir: &Path) -> Result<()> {
    let parent = here(dir.parent().unwrap_or(dir));
    match sync_dir(parent).await {
        // A directory that may not be read: whoever made this one in it answers for its name.
        Err(Error::Io { source, .. }) if source.kind() == ErrorKind::PermissionDenied => Ok(()),
        synced => synced,
    }
}

/// A lock that ends with its process, however that ends. The id in it is for people to read.
pub(crate) struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        // In so many words: a process forked meanwhile may hold the same open file. If it fails,
        // closing the file is what is left to do, and happens next.
        drop(self.0.unlock());
    }
}

pub(crate) fn lock_dir(dir: &Path) -> Result<Lock> {
    let path = dir.join("LOCK");
    let file = File::options()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(&path)
        .map_err(Error::io("open", &path))?;
    // A killed process's ring may hold its files a moment longer than it lived.
    let mut patience = 100;
    let locked = loop {
        match file.try_lock() {
            Err(TryLockError::WouldBlock) if patience > 0 => {
                patience -= 1;
                std::thread::sleep(Duration::from_millis(10));
            }
            result => break result,
        }
    };
    match locked {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let holder = fs::read_to_string(&path).ok().and_then(|pid| pid.trim().parse().ok());
            return Err(Error::Locked { path, holder });
        }
        Err(TryLockError::Error(error)) => return Err(Error::io("lock", &path)(error)),
    }
    let mut lock = Lock(file);
    let file = &mut lock.0;
    // The lock is what counts. On a full disk nobody can be told who holds it.
    drop(file.set_len(0).and_then(|()| file.rewind()));
    drop(writeln!(file, "{}", std::process::id()));
    Ok(lock)
}

fn partition_dir(dir: &Path, partition: u32) -> PathBuf {
    dir.join(format!("p{partition:04}"))
}

/// Left by an interrupted creation, segments have no records. If one has, its superblock is lost.
async fn check_no_records(dir: &Path) -> Result<()> {
    for folder in list(dir).await? {
        if !folder.file_name().is_some_and(|name| name.to_string_lossy().starts_with('p')) {
            continue;
        }
        let paths = match list(&folder).await {
            Err(Error::Io { source, .. }) if source.kind() == ErrorKind::NotADirectory => continue,
            listed => listed?,
        };
        for path in paths {
            let is_log = path.extension().is_some_and(|extension| extension == "log");
            // A journal is made after the STORE file, for what is to be written.
            let is_journal = path.file_name().is_some_and(|name| name == journal::NAME);
            if is_journal || is_log && has_records(&path).await? {
                let reason = "there are records, but no STORE file that they belong to";
                return Err(Error::Corrupt { path, offset: 0, reason });
            }
        }
    }
    Ok(())
}

async fn list(dir: &Path) -> Result<Vec<PathBuf>> {
    let fd = rt::open(None, dir, libc::O_RDONLY | libc::O_DIRECTORY, 0).await;
    let names = rt::list(&fd.map_err(Error::io("open", dir))?).await;
    let names = names.map_err(Error::io("list", dir))?;
    let mut paths: Vec<_> = names.iter().map(|name| dir.join(name)).collect();
    paths.sort();
    Ok(paths)
}

/// Whether there is anything after a segment's header.
async fn has_records(path: &Path) -> Result<bool> {
    let start = read_start(path, 2 * BLOCK_LEN).await?;
    Ok(start.iter().skip(BLOCK_LEN).any(|&byte| byte != 0))
}

/// Makes an empty store: a folder with a first segment for each partition, and then the superblock,
/// which makes it exist.
async fn create(dir: &Path, partitions: usize) -> Result<Superblock> {
    let count = u32::try_from(partitions).expect("at most MAX_PARTITIONS");
    let superblock = Superblock::new(count).await?;
    let numbers: Vec<_> = (0..count).collect();
    for some in numbers.chunks(MADE_AT_ONCE) {
        let made = some.iter().map(|&partition| {
            let folder = partition_dir(dir, partition);
            let identity = Identity { store: superblock.id, partition };
            rt::spawn(async move { make_partition(&folder, &identity).await })
        });
        all(made.collect()).await?;
    }
    superblock.write(dir).await?;
    Ok(superblock)
}

async fn make_partition(folder: &Path, identity: &Identity) -> Result<()> {
    match rt::make_dir(None, folder, 0o777).await {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
        made => made.map_err(Error::io("create", folder))?,
    }
    Plan::make_first(folder, identity).await
}

/// Makes the directories of a backup. Gives those of the partitions.
pub(crate) async fn make_backup_dirs(dir: &Path, partitions: usize) -> Result<Vec<PathBuf>> {
    make_dir(dir).await?;
    if !list(dir).await?.is_empty() {
        let error = io::Error::new(ErrorKind::DirectoryNotEmpty, "a backup needs a new directory");
        return Err(Error::io("back up to", dir)(error));
    }
    let count = u32::try_from(partitions).expect("at most MAX_PARTITIONS");
    let folders: Vec<_> = (0..count).map(|index| partition_dir(dir, index)).collect();
    for folder in &folders {
        rt::make_dir(None, folder, 0o777).await.map_err(Error::io("create", folder))?;
    }
    Ok(folders)
}

/// A partition, and its cache for its callers.
pub(crate) type Opened = (Owned<Partition>, Arc<Cache>);

/// Opens the store in a directory that is locked, or makes it, on these threads.
pub(crate) async fn open_dir(
    options: &Builder,
    threads: &[Handle],
    lock: Arc<dyn Any + Send + Sync>,
) -> Result<(Superblock, Vec<Opened>, OpenReport)> {
    let dir = &options.dir;
    rt::outlive_operations(&lock);
    let found = Superblock::read(dir).await?;
    if let Some(superblock) = found
        && superblock.partitions as usize != options.partitions
    {
        let found = superblock.partitions as usize;
        return Err(Error::PartitionMismatch { found, requested: options.partitions });
    }
    if found.is_none() {
        check_no_records(dir).await?;
        sync_name(dir).await?;
    }
    // An opening that was killed may have left names that are not durable: the superblock's own.
    sync_dir(dir).await?;
    let superblock = match found {
        Some(superblock) => superblock,
        None => create(dir, options.partitions).await?,
    };
    let (partitions, report) = open_partitions(options, superblock, threads, &lock).await?;
    Ok((superblock, partitions, report))
}

/// Opens all partitions at the same time, each on the thread that will own it: first all of them
/// read, then all of them act, so that an opening that fails has changed nothing.
async fn open_partitions(
    options: &Builder,
    superblock: Superblock,
    threads: &[Handle],
    lock: &Arc<dyn Any + Send + Sync>,
) -> Result<(Vec<Opened>, OpenReport)> {
    let Superblock { partitions, id, secret } = superblock;
    let quarantine = options.salvage.then(|| options.dir.join("quarantine"));
    let mut plans = Vec::new();
    let new_cache = |_| Arc::new(Cache::new(options.cache_bytes / partitions as usize));
    let caches: Vec<_> = (0..partitions).map(new_cache).collect();
    for (partition, cache) in (0..partitions).zip(&caches) {
        let home = threads[partition as usize % threads.len()].clone();
        let settings = Settings {
            dir: partition_dir(&options.dir, partition),
            quarantine: quarantine.clone(),
            identity: Identity { store: id, partition },
            secret,
            seed: random().await?,
            segment_bytes: options.segment_bytes,
            open_files: open_files(partitions as usize),
            hint_entries: REMEMBERED / partitions as usize,
            cache: Arc::clone(cache),
            home: home.clone(),
        };
        plans.push(home.schedule_local(move || async move {
            Plan::read(settings).await.map(|plan| Owned::new(Cell::new(Some(plan))))
        }));
    }
    let plans: Vec<Owned<Cell<Option<Plan>>>> = all(plans).await?;
    let opening = plans.iter().map(|plan| {
        // Each partition holds the lock, and so do the operations that its thread has in flight:
        // while one may still write to a log, whatever became of the store's handles, nobody else
        // opens the directory.
        let lock = Arc::clone(lock);
        plan.schedule(move |plan| async move {
            rt::outlive_operations(&lock);
            let Some(plan) = plan.take() else { unreachable!("it is carried out once") };
            let (partition, report) = plan.carry_out(lock).await?;
            Ok((Owned::from_rc(partition), report))
        })
    });
    let opened = all(opening.collect()).await?;
    let (partitions, reports): (Vec<_>, _) = opened.into_iter().unzip();
    Ok((partitions.into_iter().zip(caches).collect(), OpenReport { partitions: reports }))
}

/// Partitions that are made at the same time: enough for their syncs to share the device's flushes,
/// and few for the files that each has open meanwhile.
const MADE_AT_ONCE: usize = 16;

/// How many files each partition may keep open: half of what the process may, among them.
fn open_files(partitions: usize) -> usize {
    (rt::max_open_files() / 2 / partitions).clamp(2, MAX_OPEN_SEGMENTS)
}

/// Waits for all of them, also after an error.
async fn all<T>(tasks: Vec<rt::Task<Result<T>>>) -> Result<Vec<T>> {
    let mut done = Vec::with_capacity(tasks.len());
    for task in tasks {
        done.push(task.await.map_err(Error::from).and_then(|result| result));
    }
    done.into_iter().collect()
}
