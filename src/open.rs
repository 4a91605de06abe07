//! What happens to the directory when a store is opened: made, locked, created, its logs opened.
//!
//! Invariants: a store is open in one place at a time; it exists only when it is whole, since its
//! superblock comes last; what is found is refused or kept, never written over.

use crate::error::{Error, Result};
use crate::log::file::{FILE_HEADER_LEN, FileHeader};
use crate::log::superblock::{Superblock, random, sync_dir};
use crate::partition::{Identity, Partition};
use crate::rt::{self, Owned, Runtime};
use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The parent of a relative path's first part has an empty name.
fn here(dir: &Path) -> &Path {
    if dir.as_os_str().is_empty() { Path::new(".") } else { dir }
}

/// Makes the directory if it is not there, durably.
pub(crate) fn make_dir(dir: &Path) -> Result<()> {
    // Those that are to be made, from the inside out.
    let new: Vec<_> = dir.ancestors().take_while(|dir| !here(dir).is_dir()).collect();
    fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
    new.iter().filter_map(|dir| dir.parent()).try_for_each(|parent| sync_dir(here(parent)))
}

/// Makes the directory's own name durable, also if somebody else has just made it.
pub(crate) fn sync_name(dir: &Path) -> Result<()> {
    let parent = here(dir.parent().unwrap_or(dir));
    match sync_dir(parent) {
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
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let holder = fs::read_to_string(&path).ok().and_then(|pid| pid.trim().parse().ok());
            return Err(Error::Locked { path, holder });
        }
        Err(TryLockError::Error(error)) => return Err(Error::io("lock", &path)(error)),
    }
    let mut lock = Lock(file);
    let file = &mut lock.0;
    let written = file
        .set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| writeln!(file, "{}", std::process::id()));
    written.map_err(Error::io("write", &path))?;
    Ok(lock)
}

fn log_path(dir: &Path, partition: usize) -> PathBuf {
    dir.join(format!("p{partition:04}.log"))
}

/// Left by an interrupted creation, logs are empty. If one is not, its superblock is lost.
pub(crate) fn check_no_records(dir: &Path) -> Result<()> {
    let entries: io::Result<Vec<_>> = fs::read_dir(dir).and_then(Iterator::collect);
    let mut entries = entries.map_err(Error::io("list", dir))?;
    entries.sort_by_key(fs::DirEntry::path);
    for entry in entries {
        let path = entry.path();
        if path.extension().is_some_and(|extension| extension == "log") {
            let meta = entry.metadata().map_err(Error::io("look at", &path))?;
            if meta.len() > FILE_HEADER_LEN as u64 {
                let reason = "there are records, but no STORE file that they belong to";
                return Err(Error::Corrupt { path, offset: 0, reason });
            }
        }
    }
    Ok(())
}

/// Makes an empty store: the logs, and then the superblock, which makes it exist.
pub(crate) fn create(dir: &Path, partitions: usize, runtime: &Runtime) -> Result<Superblock> {
    let count = u32::try_from(partitions).expect("at most MAX_PARTITIONS");
    let superblock = Superblock::new(count)?;
    for index in 0..partitions {
        let path = log_path(dir, index);
        let header = FileHeader {
            store: superblock.id,
            partition: u32::try_from(index).expect("at most MAX_PARTITIONS"),
            salt: u64::from_le_bytes(random()?),
        };
        let task = runtime.schedule(async move { header.create(&path).await });
        rt::wait(task).map_err(Error::from)??;
    }
    superblock.write(dir)?;
    Ok(superblock)
}

/// Opens all partitions at the same time, each on the thread that will own it.
pub(crate) fn open_partitions(
    dir: &Path,
    superblock: Superblock,
    runtime: &Runtime,
    lock: &Arc<Lock>,
) -> Result<Vec<Owned<Partition>>> {
    let Superblock { partitions, id, secret } = superblock;
    let opening: Vec<_> = (0..partitions)
        .map(|partition| {
            let path = log_path(dir, partition as usize);
            let identity = Identity { store: id, secret, partition };
            // Each partition holds the lock: while a thread may still write to a log, whatever
            // became of the store's handles, nobody else opens the directory.
            let lock = Arc::clone(lock);
            let owner = runtime.thread(partition as usize % runtime.size());
            owner.schedule_local(move || async move {
                Partition::open(&path, identity, lock).await.map(Owned::new)
            })
        })
        .collect();
    opening.into_iter().map(|task| rt::wait(task).map_err(Error::from)?).collect()
}
