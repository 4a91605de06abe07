//! What happens to the directory when a store is opened: made, locked, created, its logs opened.
//!
//! Invariants: a store is open in one place at a time; it exists only when it is whole, since its
//! superblock comes last; what is found is refused or kept, never written over.

use crate::error::{Error, Result};
use crate::limits::MAX_OPEN_SEGMENTS;
use crate::log::superblock::{Superblock, random, sync_dir};
use crate::log::{BLOCK_LEN, Identity};
use crate::options::Builder;
use crate::partition::{Partition, Plan, Settings};
use crate::report::OpenReport;
use crate::rt::{self, Owned, Runtime};
use std::cell::Cell;
use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

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
    // A killed process's ring may hold its files a moment longer than it lived.
    let mut patience = 20;
    let locked = loop {
        match file.try_lock() {
            Err(TryLockError::WouldBlock) if patience > 0 => {
                patience -= 1;
                std::thread::sleep(Duration::from_millis(50));
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
pub(crate) fn check_no_records(dir: &Path) -> Result<()> {
    for folder in list(dir)? {
        let name = folder.file_name().unwrap_or_default().to_string_lossy();
        if !(name.starts_with('p') && folder.is_dir()) {
            continue;
        }
        for path in list(&folder)? {
            let is_log = path.extension().is_some_and(|extension| extension == "log");
            if is_log && has_records(&path)? {
                let reason = "there are records, but no STORE file that they belong to";
                return Err(Error::Corrupt { path, offset: 0, reason });
            }
        }
    }
    Ok(())
}

fn list(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries: io::Result<Vec<_>> = fs::read_dir(dir).and_then(Iterator::collect);
    let entries = entries.map_err(Error::io("list", dir))?;
    let mut paths: Vec<_> = entries.iter().map(fs::DirEntry::path).collect();
    paths.sort();
    Ok(paths)
}

/// Whether there is anything after a segment's header.
fn has_records(path: &Path) -> Result<bool> {
    let mut file = File::open(path).map_err(Error::io("open", path))?;
    let mut block = vec![0; 2 * BLOCK_LEN];
    let mut len = 0;
    while len < block.len() {
        match file.read(&mut block[len..]).map_err(Error::io("read", path))? {
            0 => break,
            n => len += n,
        }
    }
    Ok(block[..len].iter().skip(BLOCK_LEN).any(|&byte| byte != 0))
}

/// Makes an empty store: a folder for each partition, and then the superblock, which makes it
/// exist. Each partition makes its first segment when it opens.
pub(crate) fn create(dir: &Path, partitions: usize) -> Result<Superblock> {
    let count = u32::try_from(partitions).expect("at most MAX_PARTITIONS");
    let superblock = Superblock::new(count)?;
    for index in 0..count {
        let folder = partition_dir(dir, index);
        match fs::create_dir(&folder) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                // What an interrupted creation left belongs to a store that never was.
                for path in list(&folder)? {
                    fs::remove_file(&path).map_err(Error::io("remove", &path))?;
                }
            }
            made => made.map_err(Error::io("create", &folder))?,
        }
        sync_dir(&folder)?;
    }
    superblock.write(dir)?;
    Ok(superblock)
}

/// Makes the directories of a backup. Gives those of the partitions.
pub(crate) fn make_backup_dirs(dir: &Path, partitions: usize) -> Result<Vec<PathBuf>> {
    make_dir(dir)?;
    if !list(dir)?.is_empty() {
        let error = io::Error::new(ErrorKind::DirectoryNotEmpty, "a backup needs a new directory");
        return Err(Error::io("back up to", dir)(error));
    }
    let count = u32::try_from(partitions).expect("at most MAX_PARTITIONS");
    let folders: Vec<_> = (0..count).map(|index| partition_dir(dir, index)).collect();
    for folder in &folders {
        fs::create_dir(folder).map_err(Error::io("create", folder))?;
    }
    Ok(folders)
}

/// Opens all partitions at the same time, each on the thread that will own it: first all of them
/// read, then all of them act, so that an opening that fails has changed nothing.
pub(crate) fn open_partitions(
    options: &Builder,
    superblock: Superblock,
    runtime: &Runtime,
    lock: &Arc<Lock>,
) -> Result<(Vec<Owned<Partition>>, OpenReport)> {
    let Superblock { partitions, id, secret } = superblock;
    let quarantine = options.salvage.then(|| options.dir.join("quarantine"));
    let mut plans = Vec::new();
    for partition in 0..partitions {
        let home = runtime.thread(partition as usize % runtime.size()).clone();
        let settings = Settings {
            dir: partition_dir(&options.dir, partition),
            quarantine: quarantine.clone(),
            identity: Identity { store: id, partition },
            secret,
            seed: random()?,
            segment_bytes: options.segment_bytes,
            open_files: open_files(partitions as usize),
            home: home.clone(),
        };
        plans.push(home.schedule_local(move || async move {
            Plan::read(settings).await.map(|plan| Owned::new(Cell::new(Some(plan))))
        }));
    }
    let plans: Vec<Owned<Cell<Option<Plan>>>> = all(plans)?;
    let opening = plans.iter().map(|plan| {
        // Each partition holds the lock: while a thread may still write to a log, whatever
        // became of the store's handles, nobody else opens the directory.
        let lock = Arc::clone(lock);
        plan.schedule(move |plan| async move {
            let Some(plan) = plan.take() else { unreachable!("it is carried out once") };
            let (partition, report) = plan.carry_out(lock).await?;
            Ok((Owned::from_rc(partition), report))
        })
    });
    let opened = all(opening.collect())?;
    let (partitions, reports) = opened.into_iter().unzip();
    Ok((partitions, OpenReport { partitions: reports }))
}

/// How many files each partition may keep open: half of what the process may, among them.
fn open_files(partitions: usize) -> usize {
    (rt::max_open_files() / 2 / partitions).clamp(2, MAX_OPEN_SEGMENTS)
}

/// Waits for all of them, also after an error.
fn all<T>(tasks: Vec<rt::Task<Result<T>>>) -> Result<Vec<T>> {
    let done: Vec<Result<T>> =
        tasks.into_iter().map(|task| rt::wait(task).map_err(Error::from)?).collect();
    done.into_iter().collect()
}
