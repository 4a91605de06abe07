//! Files: what is read is what was written, in whatever pieces the kernel moves it, and errors
//! keep the number that the kernel gave.

#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use common::{Rng, Watchdog, disk_dir, disk_file, errno, executor, in_child, pipe};
use futures::future::{join, join_all};
use ringlog::rt::{self, Fd, IoBuf};
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;

fn open_dir(path: &Path) -> Fd {
    Fd::from(File::open(path).unwrap())
}

// ---- reads and writes -----------------------------------------------------------------------

#[test]
fn what_is_written_at_an_offset_is_read_there_and_nowhere_else() {
    let _dog = Watchdog::new();
    let file = disk_file();
    let fd = Fd::from(file.try_clone().unwrap());
    executor().block_on(async {
        let mut model = vec![0_u8; 20_000];
        let mut rng = Rng(1);
        for _ in 0..300 {
            let offset = usize::try_from(rng.below(15_000)).unwrap();
            let len = usize::try_from(rng.below(5_000)).unwrap();
            let byte = rng.next().to_le_bytes()[0];
            let (result, buf) = rt::write_all(&fd, vec![byte; len], offset as u64).await;
            result.unwrap();
            assert_eq!(buf.len(), len, "it comes back whole");
            model[offset..offset + len].fill(byte);
        }
        let len = usize::try_from(rt::stat(&fd).await.unwrap().len).unwrap();
        let (result, buf) = rt::read_exact(&fd, Vec::with_capacity(len), 0).await;
        result.unwrap();
        assert!(buf == model[..len], "as the model has it");
        let mut seen = vec![0; len];
        file.read_exact_at(&mut seen, 0).unwrap();
        assert!(seen == model[..len], "for others too");
    });
}

#[test]
fn what_is_written_now_is_there_at_once_and_errors_keep_their_number() {
    let _dog = Watchdog::new();
    let file = disk_file();
    let fd = Fd::from(file.try_clone().unwrap());
    executor().block_on(async {
        assert_eq!(rt::write_now(&fd, b"0123456789", 5).unwrap(), 10);
        assert_eq!(rt::write_now(&fd, b"xy", 7).unwrap(), 2);
        assert_eq!(rt::write_now(&fd, b"", 99).unwrap(), 0);
        let mut seen = [1; 15];
        file.read_exact_at(&mut seen, 0).unwrap();
        assert_eq!(&seen, b"\0\0\0\0\x0001xy456789");
        let to_be_read = Fd::from(File::open("/dev/null").unwrap());
        let refused = rt::write_now(&to_be_read, b"x", 0).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EBADF));
        let beyond = rt::write_now(&fd, b"x", u64::MAX).unwrap_err();
        assert_eq!(beyond.raw_os_error(), Some(libc::EFBIG));
    });
}

#[test]
fn every_kind_of_buffer_can_be_written_and_read() {
    let _dog = Watchdog::new();
    let fd = Fd::from(disk_file());
    executor().block_on(async {
        assert_eq!(rt::write(&fd, "static", 0).await.0.unwrap(), 6);
        assert_eq!(rt::write(&fd, b"bytes_".as_slice(), 6).await.0.unwrap(), 6);
        assert_eq!(rt::write(&fd, *b"array_", 12).await.0.unwrap(), 6);
        assert_eq!(rt::write(&fd, b"vector".to_vec(), 18).await.0.unwrap(), 6);
        let boxed = b"boxed_".to_vec().into_boxed_slice();
        assert_eq!(rt::write(&fd, boxed, 24).await.0.unwrap(), 6);
        assert_eq!(rt::write(&fd, bytes::Bytes::from_static(b"shared"), 30).await.0.unwrap(), 6);
        let growing = bytes::BytesMut::from(b"growth".as_slice());
        assert_eq!(rt::write(&fd, growing, 36).await.0.unwrap(), 6);
        assert_eq!(rt::write(&fd, b"a part of".to_vec().part(2..6), 42).await.0.unwrap(), 4);
        let all = b"staticbytes_array_vectorboxed_sharedgrowthpart";
        let (result, array) = rt::read(&fd, [0_u8; 46], 0).await;
        assert_eq!((result.unwrap(), &array), (46, all));
        let (result, boxed) = rt::read(&fd, vec![9_u8; 50].into_boxed_slice(), 0).await;
        assert_eq!((result.unwrap(), &boxed[..46], boxed.len()), (46, &all[..], 50));
        let (result, growing) = rt::read(&fd, bytes::BytesMut::with_capacity(64), 0).await;
        assert_eq!((result.unwrap(), &growing[..]), (46, &all[..]));
        let (result, tail) = rt::read(&fd, Vec::with_capacity(64), 40).await;
        assert_eq!((result.unwrap(), tail.as_slice()), (6, &all[40..]));
        let (result, none) = rt::read(&fd, b"old".to_vec(), 46).await;
        assert_eq!((result.unwrap(), none.len()), (0, 0), "the end of the file");
    });
}

#[test]
fn an_exact_read_beyond_the_end_is_an_error_and_gives_back_what_there_was() {
    let _dog = Watchdog::new();
    let file = disk_file();
    (&file).write_all(b"0123456789").unwrap();
    let fd = Fd::from(file);
    executor().block_on(async {
        let (result, buf) = rt::read_exact(&fd, Vec::with_capacity(20), 4).await;
        assert_eq!(result.unwrap_err().kind(), ErrorKind::UnexpectedEof);
        assert_eq!(buf, b"456789");
        let (result, buf) = rt::read_exact(&fd, Vec::with_capacity(6), 4).await;
        result.unwrap();
        assert_eq!(buf, b"456789");
        rt::read_exact(&fd, Vec::with_capacity(0), 100).await.0.unwrap();
    });
}

/// A pipe gives and takes what it has at the moment, so both ends come short again and again.
#[test]
fn whole_reads_and_writes_are_put_together_from_short_ones() {
    const LEN: usize = 300_000;
    let _dog = Watchdog::new();
    let data: Vec<u8> = (0..LEN).map(|i| i.to_le_bytes()[0] ^ i.to_le_bytes()[1]).collect();
    let executor = executor();
    // Written by the ring, read in odd pieces.
    let (mut reader, writer) = std::io::pipe().unwrap();
    let writer = Fd::from(std::os::fd::OwnedFd::from(writer));
    let taker = std::thread::spawn(move || {
        let (mut all, mut piece, mut rng) = (Vec::new(), [0; 9000], Rng(17));
        loop {
            let size = usize::try_from(1 + rng.below(9000)).unwrap();
            match reader.read(&mut piece[..size]).unwrap() {
                0 => return all,
                n => all.extend_from_slice(&piece[..n]),
            }
        }
    });
    let (result, back) = executor.block_on(rt::write_all(&writer, data.clone(), 0));
    result.unwrap();
    assert!(back == data);
    drop(writer);
    assert!(taker.join().unwrap() == data, "in order, nothing twice");
    // Read by the ring, written in odd pieces.
    let (reader, mut writer) = pipe();
    let source = data.clone();
    let giver = std::thread::spawn(move || {
        let (mut rest, mut rng) = (&source[..], Rng(18));
        while !rest.is_empty() {
            let size = usize::try_from(1 + rng.below(9000)).unwrap().min(rest.len());
            writer.write_all(&rest[..size]).unwrap();
            rest = &rest[size..];
        }
    });
    let (result, got) = executor.block_on(rt::read_exact(&reader, Vec::with_capacity(LEN), 0));
    result.unwrap();
    giver.join().unwrap();
    assert!(got == data, "in order, nothing twice");
}

/// The limit on file sizes makes one write come short and the next one fail.
#[test]
fn a_short_write_is_seen_as_short_and_a_whole_write_that_cannot_be_is_an_error() {
    in_child("a_short_write_is_seen_as_short_and_a_whole_write_that_cannot_be_is_an_error", || {
        let _dog = Watchdog::new();
        let limit = libc::rlimit { rlim_cur: 10_000, rlim_max: 10_000 };
        // SAFETY: takes no pointers; ignoring the signal is what makes the write fail instead.
        unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
        // SAFETY: the limit is read before the call returns.
        let set = unsafe { libc::setrlimit(libc::RLIMIT_FSIZE, &raw const limit) };
        assert_eq!(set, 0);
        let fd = Fd::from(disk_file());
        executor().block_on(async {
            let (result, buf) = rt::write(&fd, vec![1_u8; 8000], 6000).await;
            assert_eq!((result.unwrap(), buf.len()), (4000, 8000));
            let (result, buf) = rt::write_all(&fd, vec![2_u8; 8000], 6000).await;
            assert_eq!((errno(result), buf.len()), (libc::EFBIG, 8000));
            assert_eq!(rt::stat(&fd).await.unwrap().len, 10_000);
            let (result, tail) = rt::read_exact(&fd, [0_u8; 4000], 6000).await;
            result.unwrap();
            assert_eq!(tail, [2; 4000], "as far as it went");
        });
    });
}

#[test]
fn a_device_that_is_full_says_so() {
    let _dog = Watchdog::new();
    let full = Fd::from(File::options().write(true).open("/dev/full").unwrap());
    executor().block_on(async {
        let (result, buf) = rt::write_all(&full, b"data".to_vec(), 0).await;
        assert_eq!((errno(result), buf.as_slice()), (libc::ENOSPC, b"data".as_slice()));
    });
}

#[test]
fn writes_take_the_flags_of_pwritev2() {
    let _dog = Watchdog::new();
    let fd = Fd::from(disk_file());
    executor().block_on(async {
        rt::write_with(&fd, "durable", 0, libc::RWF_DSYNC).await.0.unwrap();
        // Appended, whatever the offset.
        rt::write_with(&fd, "+more", 0, libc::RWF_APPEND).await.0.unwrap();
        let (_, buf) = rt::read(&fd, Vec::with_capacity(64), 0).await;
        assert_eq!(buf, b"durable+more");
        let (result, _) = rt::write_with(&fd, "x", 0, 1 << 30).await;
        assert!([libc::EOPNOTSUPP, libc::EINVAL].contains(&errno(result)));
    });
}

#[test]
fn a_hundred_writes_at_once_and_then_a_sync_and_a_hundred_reads() {
    let _dog = Watchdog::new();
    let fd = Fd::from(disk_file());
    executor().block_on(async {
        let writes = (0_u8..100).map(|n| rt::write_all(&fd, vec![n; 1000], u64::from(n) * 1000));
        for (result, _) in join_all(writes).await {
            result.unwrap();
        }
        let (data, all) = join(rt::fsync(&fd, true), rt::fsync(&fd, false)).await;
        data.unwrap();
        all.unwrap();
        let reads = (0_u8..100).map(|n| rt::read_exact(&fd, [0_u8; 1000], u64::from(n) * 1000));
        for (n, (result, buf)) in (0_u8..).zip(join_all(reads).await) {
            result.unwrap();
            assert_eq!(buf, [n; 1000]);
        }
    });
}

// ---- names, lengths, space ------------------------------------------------------------------

#[test]
fn files_are_made_renamed_and_removed_by_path_and_below_a_directory() {
    let _dog = Watchdog::new();
    let root = disk_dir();
    let path = |name: &str| root.path().join(name);
    let dir = open_dir(root.path());
    let create = libc::O_CREAT | libc::O_EXCL | libc::O_RDWR;
    executor().block_on(async {
        rt::make_dir(Some(&dir), Path::new("sub"), 0o700).await.unwrap();
        assert!(path("sub").is_dir());
        let sub = rt::open(Some(&dir), Path::new("sub"), libc::O_DIRECTORY, 0).await.unwrap();
        let file = rt::open(Some(&sub), Path::new("a"), create, 0o640).await.unwrap();
        rt::write_all(&file, "here", 0).await.0.unwrap();
        assert_eq!(path("sub/a").metadata().unwrap().permissions().mode() & 0o777, 0o640);
        // From one directory to another, over what is there.
        std::fs::write(path("b"), "old").unwrap();
        rt::rename(Some(&sub), Path::new("a"), Some(&dir), Path::new("b")).await.unwrap();
        assert_eq!(std::fs::read(path("b")).unwrap(), b"here");
        assert!(!path("sub/a").exists());
        rt::rename(None, &path("b"), None, &path("c")).await.unwrap();
        rt::fsync(&dir, false).await.unwrap();
        let (result, buf) = rt::read(&file, Vec::with_capacity(9), 0).await;
        assert_eq!((result.unwrap(), buf.as_slice()), (4, b"here".as_slice()));
        rt::unlink(Some(&dir), Path::new("c")).await.unwrap();
        assert!(!path("c").exists());
        // Gone by name, there by descriptor.
        assert_eq!(rt::stat(&file).await.unwrap().len, 4);
        rt::close(file).await.unwrap();
        rt::make_dir(None, &path("abs"), 0o700).await.unwrap();
        assert!(path("abs").is_dir());
    });
}

#[test]
fn a_linked_file_is_one_file_under_two_names() {
    let _dog = Watchdog::new();
    let root = disk_dir();
    let path = |name: &str| root.path().join(name);
    std::fs::create_dir(path("sub")).unwrap();
    let (dir, sub) = (open_dir(root.path()), open_dir(&path("sub")));
    std::fs::write(path("a"), "here").unwrap();
    std::fs::write(path("taken"), "other").unwrap();
    executor().block_on(async {
        let (a, b) = (Path::new("a"), Path::new("b"));
        rt::link(Some(&dir), a, Some(&sub), b).await.unwrap();
        assert_eq!(path("a").metadata().unwrap().ino(), path("sub/b").metadata().unwrap().ino());
        rt::unlink(Some(&dir), a).await.unwrap();
        assert_eq!(std::fs::read(path("sub/b")).unwrap(), b"here");
        rt::link(None, &path("sub/b"), None, &path("c")).await.unwrap();
        assert_eq!(path("c").metadata().unwrap().nlink(), 2);
        // Never over a file that is there.
        let taken = rt::link(Some(&sub), b, Some(&dir), Path::new("taken")).await;
        assert_eq!(errno(taken), libc::EEXIST);
        assert_eq!(std::fs::read(path("taken")).unwrap(), b"other");
        assert_eq!(errno(rt::link(Some(&dir), a, Some(&sub), a).await), libc::ENOENT);
        // A link that leads nowhere gets a second name like any file.
        std::os::unix::fs::symlink("nowhere", path("symbolic")).unwrap();
        rt::link(Some(&dir), Path::new("symbolic"), Some(&dir), Path::new("again")).await.unwrap();
        assert_eq!(std::fs::read_link(path("again")).unwrap(), Path::new("nowhere"));
        let zero = rt::link(None, Path::new("a\0b"), None, b).await.unwrap_err();
        assert_eq!(zero.kind(), ErrorKind::InvalidInput);
    });
}

#[test]
fn a_file_grows_shrinks_and_reserves_space() {
    let _dog = Watchdog::new();
    let file = disk_file();
    let fd = Fd::from(file.try_clone().unwrap());
    executor().block_on(async {
        rt::allocate(&fd, 0, 0, 100_000).await.unwrap();
        assert_eq!(rt::stat(&fd).await.unwrap().len, 100_000);
        rt::truncate(&fd, 1000).await.unwrap();
        assert_eq!(file.metadata().unwrap().len(), 1000);
        rt::truncate(&fd, 0).await.unwrap();
        // Space without length.
        rt::allocate(&fd, libc::FALLOC_FL_KEEP_SIZE, 0, 65_536).await.unwrap();
        assert_eq!(rt::stat(&fd).await.unwrap().len, 0);
        assert!(file.metadata().unwrap().blocks() * 512 >= 65_536);
        rt::truncate(&fd, 5_000_000_000).await.unwrap();
        assert_eq!(rt::stat(&fd).await.unwrap().len, 5_000_000_000, "beyond 32 bits");
        rt::write_all(&fd, "far out", 4_999_999_990).await.0.unwrap();
        let (result, buf) = rt::read(&fd, Vec::with_capacity(7), 4_999_999_990).await;
        assert_eq!((result.unwrap(), buf.as_slice()), (7, b"far out".as_slice()));
    });
}

#[test]
fn errors_keep_the_number_that_the_kernel_gave() {
    let _dog = Watchdog::new();
    let root = disk_dir();
    let dir = open_dir(root.path());
    let (reader, _writer) = pipe();
    let (here, gone) = (Path::new("here"), Path::new("gone"));
    let file = Fd::from(File::create(root.path().join(here)).unwrap()); // for writing only
    executor().block_on(async {
        let open = async |path, flags| errno(rt::open(Some(&dir), path, flags, 0o600).await);
        assert_eq!(open(gone, libc::O_RDONLY).await, libc::ENOENT);
        assert_eq!(open(here, libc::O_CREAT | libc::O_EXCL).await, libc::EEXIST);
        assert_eq!(open(here, libc::O_DIRECTORY).await, libc::ENOTDIR);
        assert_eq!(errno(rt::open(Some(&file), here, 0, 0).await), libc::ENOTDIR);
        assert_eq!(errno(rt::unlink(Some(&dir), gone).await), libc::ENOENT);
        assert_eq!(errno(rt::make_dir(Some(&dir), here, 0o700).await), libc::EEXIST);
        assert_eq!(errno(rt::rename(Some(&dir), gone, None, here).await), libc::ENOENT);
        assert_eq!(errno(rt::read(&dir, [0_u8; 4], 0).await.0), libc::EISDIR);
        assert_eq!(errno(rt::read(&file, [0_u8; 4], 0).await.0), libc::EBADF);
        assert_eq!(errno(rt::read_exact(&file, [0_u8; 4], 0).await.0), libc::EBADF);
        assert_eq!(errno(rt::write(&reader, "x", 0).await.0), libc::EBADF);
        assert_eq!(errno(rt::fsync(&reader, false).await), libc::EINVAL);
        assert_eq!(errno(rt::allocate(&file, 0, 0, 0).await), libc::EINVAL);
        assert_eq!(errno(rt::allocate(&reader, 0, 0, 1).await), libc::EBADF);
        assert_eq!(errno(rt::truncate(&dir, 0).await), libc::EINVAL);
        assert_eq!(errno(rt::shutdown(&file, std::net::Shutdown::Both).await), libc::ENOTSOCK);
        let zero = rt::open(None, Path::new("a\0b"), 0, 0).await.unwrap_err();
        assert_eq!(zero.kind(), ErrorKind::InvalidInput);
        let zero = rt::unlink(None, Path::new("a\0b")).await.unwrap_err();
        assert_eq!(zero.kind(), ErrorKind::InvalidInput);
        assert!(file.as_raw_fd() > 2);
    });
}
