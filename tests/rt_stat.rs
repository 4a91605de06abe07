//! What the file system says of files, directories and space, and direct I/O as `stat` asks for it.

#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use common::{Rng, Watchdog, disk_dir, disk_file, errno, executor, executor_with, pipe, poll_once};
use futures::future::{join, join_all};
use ringlog::Bytes;
use ringlog::rt::{self, AlignedBuf, Executor, Fd};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

fn open_dir(path: &Path) -> Fd {
    Fd::from(File::open(path).unwrap())
}

/// On the disk, and in memory where that is a file system: it knows no direct I/O.
fn dirs() -> Vec<tempfile::TempDir> {
    std::iter::once(disk_dir()).chain(tempfile::tempdir_in("/dev/shm").ok()).collect()
}

// ---- stat -----------------------------------------------------------------------------------

#[test]
fn stat_tells_the_length_and_the_space_that_is_taken() {
    let _dog = Watchdog::new();
    let file = disk_file();
    let fd = Fd::from(file.try_clone().unwrap());
    executor().block_on(async {
        let stat = rt::stat(&fd).await.unwrap();
        assert_eq!((stat.len, stat.allocated), (0, 0));
        rt::truncate(&fd, 50_000_000).await.unwrap();
        let stat = rt::stat(&fd).await.unwrap();
        assert_eq!(stat.len, 50_000_000);
        assert!(stat.allocated < 1_000_000, "a hole: {stat:?}");
        rt::truncate(&fd, 0).await.unwrap();
        rt::allocate(&fd, libc::FALLOC_FL_KEEP_SIZE, 0, 1_000_000).await.unwrap();
        let stat = rt::stat(&fd).await.unwrap();
        assert_eq!(stat.len, 0);
        assert!(stat.allocated >= 1_000_000, "reserved: {stat:?}");
        assert_eq!(stat.allocated, file.metadata().unwrap().blocks() * 512);
    });
}

#[test]
fn stat_tells_what_the_kernel_says_of_direct_io() {
    let _dog = Watchdog::new();
    for root in dirs() {
        let file = tempfile::tempfile_in(root.path()).unwrap();
        // SAFETY: zeroes are valid for it.
        let mut raw: libc::statx = unsafe { std::mem::zeroed() };
        let (number, out) = (file.as_raw_fd(), &raw mut raw);
        let (empty, mask) = (c"".as_ptr(), libc::STATX_DIOALIGN);
        // SAFETY: writes to `raw` before it returns.
        let result = unsafe { libc::statx(number, empty, libc::AT_EMPTY_PATH, mask, out) };
        assert_eq!(result, 0);
        let told = raw.stx_mask & mask != 0 && raw.stx_dio_offset_align > 0;
        let want = told.then_some((raw.stx_dio_mem_align, raw.stx_dio_offset_align));
        let stat = executor().block_on(rt::stat(&Fd::from(file))).unwrap();
        println!("{}: {:?}", root.path().display(), stat.direct);
        assert_eq!(stat.direct.map(|direct| (direct.memory, direct.offset)), want);
    }
}

#[test]
fn what_cannot_do_direct_io_says_nothing_of_it() {
    let _dog = Watchdog::new();
    let root = disk_dir();
    let (reader, _writer) = pipe();
    executor().block_on(async {
        for fd in [open_dir(root.path()), reader] {
            assert_eq!(rt::stat(&fd).await.unwrap().direct, None);
        }
    });
}

// ---- direct I/O -----------------------------------------------------------------------------

/// A new file, and the least step of offsets and lengths that it takes. It is opened for direct I/O
/// where the file system says what that asks for; elsewhere the tests hold for the page cache.
async fn direct_file(path: &Path) -> (Fd, u32) {
    let create = libc::O_CREAT | libc::O_EXCL | libc::O_RDWR;
    let plain = rt::open(None, path, create, 0o600).await.unwrap();
    match rt::stat(&plain).await.unwrap().direct {
        None => (plain, 1),
        Some(direct) => {
            assert!(direct.memory.is_power_of_two() && direct.offset.is_power_of_two());
            assert!(AlignedBuf::ALIGN.is_multiple_of(direct.memory as usize), "{direct:?}");
            let fd = rt::open(None, path, libc::O_RDWR | libc::O_DIRECT, 0).await.unwrap();
            // SAFETY: takes no pointers.
            let flags = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) };
            assert_eq!(flags & libc::O_DIRECT, libc::O_DIRECT, "past the page cache");
            assert_eq!(rt::stat(&fd).await.unwrap().direct, Some(direct));
            (fd, direct.offset)
        }
    }
}

#[test]
fn direct_reads_give_what_direct_writes_wrote() {
    let _dog = Watchdog::new();
    for root in dirs() {
        let path = root.path().join("file");
        executor().block_on(async {
            let (fd, step) = direct_file(&path).await;
            let step = step.max(512); // as capacities go
            let (mut model, mut rng) = (vec![0_u8; 64 * step as usize], Rng(7));
            rt::truncate(&fd, model.len() as u64).await.unwrap();
            let mut buf = AlignedBuf::new();
            for _ in 0..60 {
                let offset = rng.below(56) * u64::from(step);
                let len = usize::try_from((1 + rng.below(8)) * u64::from(step)).unwrap();
                buf.clear();
                buf.resize(len);
                buf.fill_with(|| rng.next().to_le_bytes()[0]);
                let start = usize::try_from(offset).unwrap();
                model[start..start + len].copy_from_slice(&buf);
                let (result, back) = rt::write_all(&fd, buf, offset).await;
                result.unwrap();
                assert!(back[..] == model[start..start + len], "it comes back whole");
                buf = back;

                let offset = rng.below(56) * u64::from(step);
                let len = usize::try_from((1 + rng.below(8)) * u64::from(step)).unwrap();
                let (result, read) =
                    rt::read_exact(&fd, AlignedBuf::with_capacity(len), offset).await;
                result.unwrap();
                let start = usize::try_from(offset).unwrap();
                assert_eq!((read.len(), read.capacity()), (len, len));
                let address = read.as_ptr();
                let bytes = Bytes::from(read);
                assert_eq!(bytes.as_ptr(), address, "without a copy");
                assert!(bytes == model[start..start + len], "as the model has it");
            }
            rt::fsync(&fd, true).await.unwrap();
            assert!(std::fs::read(&path).unwrap() == model, "for others too");
        });
    }
}

#[test]
fn a_direct_read_across_the_end_is_as_long_as_what_there_was() {
    let _dog = Watchdog::new();
    for root in dirs() {
        let path = root.path().join("file");
        executor().block_on(async {
            let (fd, _) = direct_file(&path).await;
            File::options().write(true).open(&path).unwrap().write_all_at(&[5; 10_000], 0).unwrap();
            let mut buf = AlignedBuf::with_capacity(8192);
            buf.extend_from_slice(&[9; 8000]); // not to be seen any more
            let (result, buf) = rt::read(&fd, buf, 8192).await;
            assert_eq!((result.unwrap(), buf.len(), buf.capacity()), (1808, 1808, 8192));
            assert_eq!(buf[..], [5; 1808]);
            let (result, buf) = rt::read(&fd, buf, 12_288).await;
            assert_eq!((result.unwrap(), buf.len()), (0, 0), "beyond the end");
            let (result, _) = rt::read(&fd, AlignedBuf::new(), 0).await;
            assert_eq!(result.unwrap_err().kind(), std::io::ErrorKind::InvalidInput, "no room");
        });
    }
}

#[test]
fn many_direct_reads_at_once_each_get_their_own_block() {
    let _dog = Watchdog::new();
    for root in dirs() {
        let path = root.path().join("file");
        executor().block_on(async {
            let (fd, _) = direct_file(&path).await;
            let writes = (0_u8..64).map(|n| {
                let mut buf = AlignedBuf::with_capacity(4096);
                buf.resize(4096);
                buf.fill(n);
                rt::write_all(&fd, buf, u64::from(n) * 4096)
            });
            for (result, _) in join_all(writes).await {
                result.unwrap();
            }
            let reads = (0_u8..64)
                .map(|n| rt::read_exact(&fd, AlignedBuf::with_capacity(4096), u64::from(n) * 4096));
            for (n, (result, buf)) in (0_u8..).zip(join_all(reads).await) {
                result.unwrap();
                assert_eq!(buf[..], [n; 4096]);
            }
        });
    }
}

// ---- list -----------------------------------------------------------------------------------

async fn names(dir: &Fd) -> Vec<OsString> {
    let mut names = rt::list(dir).await.unwrap();
    names.sort();
    names
}

#[test]
fn every_name_is_listed_once_whatever_its_bytes_and_however_many_there_are() {
    let _dog = Watchdog::new();
    let root = disk_dir();
    let dir = open_dir(root.path());
    let executor = executor();
    assert_eq!(executor.block_on(names(&dir)), Vec::<OsString>::new());
    // Long ones, so that they take several calls of the kernel's.
    let mut want: Vec<OsString> = (0..600).map(|n| format!("{n:0>200}").into()).collect();
    want.extend(["...".into(), ".hidden".into(), OsStr::from_bytes(b"\xff\xfe").into()]);
    want.push("x".repeat(255).into());
    for name in &want {
        File::create(root.path().join(name)).unwrap();
    }
    std::fs::create_dir(root.path().join("sub")).unwrap();
    std::os::unix::fs::symlink("nowhere", root.path().join("dangling")).unwrap();
    want.extend(["sub".into(), "dangling".into()]);
    want.sort();
    executor.block_on(async {
        assert_eq!(names(&dir).await, want);
        let (one, two) = join(names(&dir), names(&dir)).await;
        assert!(one == want && two == want, "two at once, and again: they share no position");
        // By a descriptor that is good for nothing else.
        let path = rt::open(None, root.path(), libc::O_PATH, 0).await.unwrap();
        assert_eq!(names(&path).await, want);
    });
}

#[test]
fn a_listing_that_fails_keeps_the_kernels_number() {
    let _dog = Watchdog::new();
    let root = disk_dir();
    let file = Fd::from(disk_file());
    let (reader, _writer) = pipe();
    std::fs::create_dir(root.path().join("gone")).unwrap();
    let gone = open_dir(&root.path().join("gone"));
    std::fs::remove_dir(root.path().join("gone")).unwrap();
    executor().block_on(async {
        assert_eq!(errno(rt::list(&file).await), libc::ENOTDIR);
        assert_eq!(errno(rt::list(&reader).await), libc::ENOTDIR);
        assert_eq!(errno(rt::list(&gone).await), libc::ENOENT);
    });
}

/// What no ring performs keeps its place among what rings do: full queues, waits, drops.
fn among_other_operations(executor: &Executor) {
    let root = disk_dir();
    let dir = open_dir(root.path());
    let (reader, mut writer) = pipe();
    executor.block_on(async {
        // Nothing else would end the wait of the ring.
        let mut read = rt::read(&reader, [0_u8; 1], 0);
        read.start();
        assert_eq!(names(&dir).await, Vec::<OsString>::new());
        File::create(root.path().join("a")).unwrap();
        let rounds = join_all((0..100).map(|n| async move {
            if n % 2 == 0 { rt::nop().await.map(drop) } else { rt::timeout_ms(1).await }
        }));
        let lists = join_all((0..100).map(|_| names(&dir)));
        let spaces = join_all((0..100).map(|_| rt::free_space(&dir)));
        let (rounds, (lists, spaces)) = join(rounds, join(lists, spaces)).await;
        assert!(rounds.into_iter().all(|result| result.is_ok()));
        assert!(lists.iter().all(|names| names[..] == ["a"]));
        assert!(spaces.iter().all(|space| space.as_ref().unwrap().total > 0));
        // Dropped at once, cancelled in flight: it ends, and harms nobody.
        let mut dropped = rt::list(&dir);
        assert!(poll_once(&mut dropped).is_pending());
        drop(dropped);
        let mut cancelled = rt::list(&dir);
        let id = cancelled.start();
        rt::cancel(&id).await.ok();
        assert_eq!(cancelled.await.unwrap(), ["a"]);
        writer.write_all(b"x").unwrap();
        assert_eq!(read.await.1, *b"x");
    });
    // One in flight when the executor goes is ended there.
    let mut left = rt::list(&dir);
    drop(executor.spawn(async move {
        left.start();
        left.await.unwrap();
    }));
    executor.block_on(rt::yield_now());
}

#[test]
fn listing_and_space_keep_their_place_among_what_a_ring_performs() {
    let _dog = Watchdog::new();
    among_other_operations(&executor());
    among_other_operations(&executor_with(2, None));
    among_other_operations(&executor_with(8, Some(rt::SETUP_SQPOLL)));
    among_other_operations(&executor_with(8, Some(0)));
}

// ---- space ----------------------------------------------------------------------------------

#[test]
fn free_space_is_what_the_file_system_tells_everybody() {
    fn tell(file: &File) -> (u64, u64) {
        // SAFETY: zeroes are valid for it.
        let mut raw: libc::statvfs = unsafe { std::mem::zeroed() };
        // SAFETY: writes to `raw` before it returns.
        assert_eq!(unsafe { libc::fstatvfs(file.as_raw_fd(), &raw mut raw) }, 0);
        (raw.f_blocks * raw.f_frsize, raw.f_bavail * raw.f_frsize)
    }
    let _dog = Watchdog::new();
    let file = disk_file();
    let fd = Fd::from(file.try_clone().unwrap());
    executor().block_on(async {
        loop {
            let before = tell(&file);
            let space = rt::free_space(&fd).await.unwrap();
            if before == tell(&file) {
                assert_eq!((space.total, space.free), before);
                return assert!(space.free > 0, "{space:?}");
            }
            // Somebody else has taken some of it meanwhile.
        }
    });
}
