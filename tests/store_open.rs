//! Opening and closing: one owner at a time, typed refusals that change nothing, creation that may
//! be interrupted. Files are in memory: how durable they are is tested elsewhere.

#![allow(missing_docs, clippy::unwrap_used)]

mod store_common;

use futures::future::try_join_all;
use ringlog::{Error, MAX_PARTITIONS, Store};
use std::collections::BTreeSet;
use std::fs;
use std::future::Future;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::Stdio;
use std::sync::{Mutex, MutexGuard, PoisonError};
use store_common::{
    SEAL, Watchdog, child, crash_image, entries, log_path, memory_dir, open, refused, run,
    run_child, snapshot, told,
};

/// Some of these tests start processes and some count descriptors, which all threads share.
fn one_at_a_time() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A closed store with a few keys in each partition.
fn fill(dir: &Path, partitions: usize) {
    let store = open(dir, partitions);
    let put = |n: usize| store.put(format!("key {n}"), n.to_string());
    run(try_join_all((0..16 * partitions).map(put))).unwrap();
    let stats = run(store.stats()).unwrap();
    assert!(stats.partitions.iter().all(|partition| partition.keys > 0));
    run(store.close()).unwrap();
}

#[track_caller]
fn assert_filled(dir: &Path, partitions: usize) {
    let store = open(dir, partitions);
    for n in 0..16 * partitions {
        let value = run(store.get(format!("key {n}"))).unwrap();
        assert_eq!(value.as_deref(), Some(n.to_string().as_bytes()), "key {n}");
    }
}

// ---- one at a time ----------------------------------------------------------------------------

#[test]
fn a_store_is_open_once_in_a_process() {
    let _one = one_at_a_time();
    let dir = memory_dir();
    let store = open(dir.path(), 2);
    run(store.put("key", "value")).unwrap();
    let before = crash_image(dir.path(), 2);
    for partitions in [2, 3] {
        match refused(dir.path(), partitions) {
            Error::Locked { path, holder } => {
                assert_eq!(path, dir.path().join("LOCK"));
                assert_eq!(holder, Some(std::process::id()));
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(crash_image(dir.path(), 2) == before);
    run(store.put("key", "still open")).unwrap();
    drop(store);
    assert!(run(open(dir.path(), 2).get("key")).unwrap().is_some());
}

#[test]
fn a_store_is_open_in_one_process_and_the_other_learns_which() {
    const TEST: &str = "a_store_is_open_in_one_process_and_the_other_learns_which";
    if let Some(dir) = told(TEST) {
        match refused(&dir, 1) {
            Error::Locked { holder, .. } => {
                assert_eq!(holder, Some(std::os::unix::process::parent_id()));
            }
            other => panic!("{other:?}"),
        }
        return;
    }
    let _one = one_at_a_time();
    let dir = memory_dir();
    let store = open(dir.path(), 1);
    run_child(TEST, dir.path());
    run(store.put("key", "value")).unwrap();
}

#[test]
fn of_many_that_open_at_the_same_time_one_has_it() {
    let _one = one_at_a_time();
    let dir = memory_dir();
    let opened: Vec<_> = std::thread::scope(|scope| {
        let opening: Vec<_> = (0..8).map(|_| scope.spawn(|| Store::open(dir.path(), 2))).collect();
        opening.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let (open, refused): (Vec<_>, Vec<_>) = opened.into_iter().partition(Result::is_ok);
    assert_eq!(open.len(), 1);
    for result in refused {
        assert!(matches!(result, Err(Error::Locked { .. })), "{result:?}");
    }
}

/// Processes this time, which share no mutex: on a directory that is not there yet, and on one that
/// is a store.
#[test]
fn of_many_processes_that_open_at_the_same_time_one_has_it() {
    const TEST: &str = "of_many_processes_that_open_at_the_same_time_one_has_it";
    let wait_for_the_parent = || std::io::stdin().read_line(&mut String::new()).unwrap();
    if let Some(dir) = told(TEST) {
        wait_for_the_parent();
        let opened = Store::open(dir.join("store"), 2);
        let said = match &opened {
            Ok(store) => {
                run(store.put(std::process::id().to_string(), "was here")).unwrap();
                "opened"
            }
            Err(Error::Locked { .. }) => "locked",
            Err(other) => panic!("{other:?}"),
        };
        std::io::stdout().lock().write_all(format!("\nsaid {said}\n").as_bytes()).unwrap();
        wait_for_the_parent();
        return;
    }
    let _one = one_at_a_time();
    let _dog = Watchdog::new();
    let dir = memory_dir();
    for round in 1..=2 {
        let piped = || child(TEST, dir.path()).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut children: Vec<_> = (0..4).map(|_| piped().unwrap()).collect();
        for child in &mut children {
            child.stdin.as_mut().unwrap().write_all(b"begin\n").unwrap();
        }
        let mut said = Vec::new();
        for child in &mut children {
            let lines = BufReader::new(child.stdout.as_mut().unwrap()).lines().map(Result::unwrap);
            let mut told = lines.filter_map(|line| line.strip_prefix("said ").map(str::to_owned));
            said.push(told.next().expect("the child ended without a word"));
        }
        said.sort_unstable();
        assert_eq!(said, ["locked", "locked", "locked", "opened"], "round {round}");
        for mut child in children {
            drop(child.stdin.take()); // now they may end
            assert!(child.wait_with_output().unwrap().status.success());
        }
        let store = open(&dir.path().join("store"), 2);
        assert_eq!(run(store.len()).unwrap(), round, "each round one of them wrote");
    }
}

#[test]
fn it_opens_again_at_once_after_drop_and_after_close() {
    let _one = one_at_a_time();
    let dir = memory_dir();
    for round in 0..10u32 {
        let store = open(dir.path(), 3);
        // Something is under way when the handle goes.
        let puts: Vec<_> = (0..8u32).map(|n| store.put(n.to_le_bytes(), "value")).collect();
        run(try_join_all(puts)).unwrap();
        if round % 2 == 0 { run(store.close()).unwrap() } else { drop(store) }
    }
}

/// A service may have handles left in some corner when it closes its store.
#[test]
fn a_closed_store_opens_again_though_clones_of_it_live() {
    let _one = one_at_a_time();
    let dir = memory_dir();
    let store = open(dir.path(), 1);
    let (clone, unsent) = (store.clone(), store.get("key"));
    run(store.close()).unwrap();
    let again = open(dir.path(), 1);
    assert!(matches!(run(clone.get("key")), Err(Error::Closed)));
    assert!(matches!(run(unsent), Err(Error::Closed)));
    run(again.put("key", "value")).unwrap();
    drop(clone);
    assert!(matches!(refused(dir.path(), 1), Error::Locked { .. }));
}

/// Between fork and exec, a child has all descriptors of its parent.
#[test]
fn a_process_forked_meanwhile_does_not_keep_the_lock() {
    let _one = one_at_a_time();
    for closing in [true, false] {
        let dir = memory_dir();
        let store = open(dir.path(), 1);
        // SAFETY: the child calls nothing but `pause` and `_exit`.
        let child = unsafe { libc::fork() };
        if child == 0 {
            // SAFETY: no arguments.
            unsafe { libc::pause() };
            // SAFETY: ends the child without touching what it shares with the parent.
            unsafe { libc::_exit(0) };
        }
        assert!(child > 0);
        if closing {
            run(store.close()).unwrap();
        } else {
            drop(store);
        }
        let again = Store::open(dir.path(), 1);
        // SAFETY: the child made above, which is not waited for yet.
        assert_eq!(unsafe { libc::kill(child, libc::SIGKILL) }, 0);
        // SAFETY: as above; no status is asked for.
        assert_eq!(unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) }, child);
        again.unwrap();
    }
}

// ---- closing ----------------------------------------------------------------------------------

#[test]
fn after_close_every_clone_is_closed() {
    let _one = one_at_a_time();
    let dir = memory_dir();
    let store = open(dir.path(), 2);
    run(store.put("key", "value")).unwrap();
    let clone = store.clone();
    let sent_later = (clone.put("key", "late"), clone.get("key"), clone.delete("key"));
    run(store.close()).unwrap();
    let before = snapshot(dir.path());
    assert!(matches!(run(sent_later.0), Err(Error::Closed)));
    assert!(matches!(run(sent_later.1), Err(Error::Closed)));
    assert!(matches!(run(sent_later.2), Err(Error::Closed)));
    assert!(matches!(run(clone.put("key", "late")), Err(Error::Closed)));
    assert!(matches!(run(clone.get("key")), Err(Error::Closed)));
    assert!(matches!(run(clone.delete("key")), Err(Error::Closed)));
    assert!(matches!(run(clone.sync()), Err(Error::Closed)));
    assert!(matches!(run(clone.stats()), Err(Error::Closed)));
    assert!(matches!(run(clone.clone().close()), Err(Error::Closed)), "closed twice");
    drop(clone);
    assert_eq!(snapshot(dir.path()), before);
    assert_eq!(run(open(dir.path(), 2).get("key")).unwrap().as_deref(), Some(&b"value"[..]));
}

#[test]
fn close_finishes_what_was_sent_before_it() {
    let _one = one_at_a_time();
    let _dog = Watchdog::new();
    let dir = memory_dir();
    let store = open(dir.path(), 2);
    let puts = try_join_all((0..200u32).map(|n| store.put(n.to_le_bytes(), "value")));
    let close = store.close();
    let (puts, closed) = run(async { futures::join!(puts, close) });
    puts.unwrap();
    closed.unwrap();
    let store = open(dir.path(), 2);
    assert_eq!(run(store.stats()).unwrap().total().keys, 200);
}

#[test]
fn closing_seals_each_log() {
    let _one = one_at_a_time();
    let dir = memory_dir();
    fill(dir.path(), 3);
    for partition in 0..3 {
        let log = fs::read(log_path(dir.path(), partition)).unwrap();
        let entries = entries(&log);
        let last = entries.last().unwrap();
        assert_eq!((last.kind, last.durable()), (SEAL, Some(last.start)));
        assert!(log[last.end..].iter().all(|&byte| byte == 0));
    }
}

#[test]
fn nothing_is_left_open_whether_opening_succeeds_or_not() {
    let _one = one_at_a_time();
    let descriptors = || fs::read_dir("/proc/self/fd").unwrap().count();
    let dir = memory_dir();
    fill(dir.path(), 2);
    let before = descriptors();
    for _ in 0..3 {
        drop(open(dir.path(), 2));
        run(open(dir.path(), 2).close()).unwrap();
        refused(dir.path(), 3);
    }
    let log = log_path(dir.path(), 1);
    let bytes = fs::read(&log).unwrap();
    fs::write(&log, &bytes[..10]).unwrap();
    for _ in 0..3 {
        assert!(matches!(refused(dir.path(), 2), Error::Corrupt { .. }));
    }
    assert_eq!(descriptors(), before);
    fs::write(&log, &bytes).unwrap();
    assert_filled(dir.path(), 2);
}

// ---- options and places -----------------------------------------------------------------------

#[test]
fn another_number_of_partitions_is_refused_and_both_are_named() {
    let _one = one_at_a_time();
    let dir = memory_dir();
    fill(dir.path(), 2);
    let before = snapshot(dir.path());
    for partitions in [1, 3, MAX_PARTITIONS] {
        let error = refused(dir.path(), partitions);
        let named = matches!(error, Error::PartitionMismatch { found: 2, requested } if requested == partitions);
        assert!(named, "{error:?}");
        assert!(error.to_string().contains(&partitions.to_string()), "{error}");
    }
    assert_eq!(snapshot(dir.path()), before);
    assert_filled(dir.path(), 2);
}

#[test]
fn options_that_make_no_sense_are_refused_before_anything_is_made() {
    let _one = one_at_a_time();
    let dir = memory_dir();
    let path = dir.path().join("store");
    let open = |partitions, threads: Option<usize>| {
        let builder = Store::builder(&path).partitions(partitions);
        let builder = if let Some(threads) = threads { builder.threads(threads) } else { builder };
        builder.open().unwrap_err()
    };
    for (partitions, threads) in [(0, None), (5_000, None), (usize::MAX, None), (1, Some(0))] {
        let error = open(partitions, threads);
        assert!(matches!(error, Error::InvalidOptions(_)), "{error:?}");
    }
    assert!(!path.exists());
}

#[test]
fn a_path_that_is_a_file_is_refused_and_the_file_stays() {
    let _one = one_at_a_time();
    let dir = memory_dir();
    let file = dir.path().join("file");
    fs::write(&file, "precious").unwrap();
    for path in [file.clone(), file.join("below"), file.join("far/below")] {
        match refused(&path, 1) {
            Error::Io { path: named, .. } => assert!(named.starts_with(&file)),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
}

/// Gives up root's rights, if the process has them: for the rest of a child.
fn become_nobody(dirs: &[&Path]) {
    const NOBODY: u32 = 65_534;
    // SAFETY: no arguments.
    if unsafe { libc::geteuid() } == 0 {
        for dir in dirs {
            std::os::unix::fs::chown(dir, Some(NOBODY), Some(NOBODY)).unwrap();
        }
        // SAFETY: plain numbers.
        assert_eq!(unsafe { libc::setresgid(NOBODY, NOBODY, NOBODY) }, 0);
        // SAFETY: plain numbers.
        assert_eq!(unsafe { libc::setresuid(NOBODY, NOBODY, NOBODY) }, 0);
    }
}

/// Whether this process can do anything in a directory: the way to it may be closed to others.
fn reachable(dir: &Path) -> bool {
    fs::metadata(dir).is_ok()
}

#[test]
fn a_directory_that_cannot_be_written_is_refused() {
    const TEST: &str = "a_directory_that_cannot_be_written_is_refused";
    if let Some(dir) = told(TEST) {
        become_nobody(&[&dir]);
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o500)).unwrap_or_default();
        for path in [dir.clone(), dir.join("store")] {
            if !reachable(&dir) {
                continue;
            }
            match refused(&path, 1) {
                Error::Io { source, .. } => assert_eq!(source.kind(), ErrorKind::PermissionDenied),
                other => panic!("{other:?}"),
            }
        }
        return;
    }
    let _one = one_at_a_time();
    let dir = memory_dir();
    run_child(TEST, dir.path());
    assert_eq!(snapshot(dir.path()).len(), 0);
}

/// To make a directory takes the right to write and to pass, not the right to list.
#[test]
fn a_store_is_made_below_directories_that_cannot_be_listed() {
    const TEST: &str = "a_store_is_made_below_directories_that_cannot_be_listed";
    if let Some(dir) = told(TEST) {
        let (closed, home) = (dir.join("closed"), dir.join("closed/home"));
        fs::create_dir_all(&home).unwrap();
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o311)).unwrap();
        become_nobody(&[&home]);
        if reachable(&home) {
            let store = open(&home.join("services/store"), 1);
            run(store.put("key", "value")).unwrap();
        }
        return;
    }
    let _one = one_at_a_time();
    let dir = memory_dir();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o711)).unwrap();
    let ended = std::panic::catch_unwind(|| run_child(TEST, dir.path()));
    // So that it can be removed.
    fs::set_permissions(dir.path().join("closed"), fs::Permissions::from_mode(0o700)).unwrap();
    ended.unwrap();
}

#[test]
fn directories_on_the_way_are_made() {
    let _one = one_at_a_time();
    let dir = memory_dir();
    let path = dir.path().join("a/b/c");
    fill(&path, 1);
    assert_filled(&path, 1);
}

// ---- files that are missing, foreign, or of the future ----------------------------------------

#[test]
fn a_missing_folder_is_named_and_not_replaced() {
    let _one = one_at_a_time();
    let dir = memory_dir();
    fill(dir.path(), 3);
    let (folder, aside) = (dir.path().join("p0001"), dir.path().join("aside"));
    fs::rename(&folder, &aside).unwrap();
    let before = snapshot(dir.path());
    match refused(dir.path(), 3) {
        Error::Corrupt { path, .. } => assert_eq!(path, folder),
        other => panic!("{other:?}"),
    }
    assert!(snapshot(dir.path()) == before);
    fs::rename(&aside, &folder).unwrap();
    assert_filled(dir.path(), 3);
}

#[test]
fn a_log_of_another_store_or_partition_is_refused() {
    let _one = one_at_a_time();
    let (dir, other) = (memory_dir(), memory_dir());
    fill(dir.path(), 2);
    fill(other.path(), 2);
    let log = log_path(dir.path(), 1);
    let own = fs::read(&log).unwrap();
    for foreign in [log_path(other.path(), 1), log_path(dir.path(), 0)] {
        fs::copy(&foreign, &log).unwrap();
        let before = snapshot(dir.path());
        match refused(dir.path(), 2) {
            Error::Corrupt { path, .. } => assert_eq!(path, log),
            error => panic!("{error:?}"),
        }
        assert_eq!(snapshot(dir.path()), before);
    }
    fs::write(&log, own).unwrap();
    assert_filled(dir.path(), 2);
}

#[test]
fn a_store_file_of_another_store_is_refused() {
    let _one = one_at_a_time();
    let (dir, other) = (memory_dir(), memory_dir());
    fill(dir.path(), 2);
    fill(other.path(), 2);
    let own = fs::read(dir.path().join("STORE")).unwrap();
    fs::copy(other.path().join("STORE"), dir.path().join("STORE")).unwrap();
    let before = snapshot(dir.path());
    assert!(matches!(refused(dir.path(), 2), Error::Corrupt { .. }));
    assert_eq!(snapshot(dir.path()), before);
    fs::write(dir.path().join("STORE"), own).unwrap();
    assert_filled(dir.path(), 2);
}

#[test]
fn a_damaged_store_file_is_refused_and_kept() {
    let _one = one_at_a_time();
    let dir = memory_dir();
    fill(dir.path(), 1);
    let file = dir.path().join("STORE");
    let own = fs::read(&file).unwrap();
    let flips = (0..own.len()).map(|at| {
        let mut bytes = own.clone();
        bytes[at] ^= 0x10;
        bytes
    });
    let cuts = [0, 1, own.len() - 1].map(|len| own[..len].to_vec());
    let longer = [[&own[..], &[0]].concat()];
    for bytes in flips.chain(cuts).chain(longer) {
        fs::write(&file, &bytes).unwrap();
        let before = snapshot(dir.path());
        match refused(dir.path(), 1) {
            Error::Corrupt { path, .. } | Error::FormatVersion { path, .. } => {
                assert_eq!(path, file);
            }
            error => panic!("{error:?}"),
        }
        assert_eq!(snapshot(dir.path()), before);
    }
    fs::write(&file, own).unwrap();
    assert_filled(dir.path(), 1);
}

#[test]
fn a_format_of_the_future_is_said_to_be_one() {
    let _one = one_at_a_time();
    let dir = memory_dir();
    fill(dir.path(), 1);
    // Each file, and what its checksum covers.
    for (file, covered) in [(dir.path().join("STORE"), 48), (log_path(dir.path(), 0), 48)] {
        let own = fs::read(&file).unwrap();
        let mut bytes = own.clone();
        bytes[8..10].copy_from_slice(&0x0102u16.to_le_bytes());
        let crc = crc32fast::hash(&bytes[..covered]).to_le_bytes();
        bytes[covered..covered + 4].copy_from_slice(&crc);
        fs::write(&file, &bytes).unwrap();
        match refused(dir.path(), 1) {
            Error::FormatVersion { path, found, supported } => {
                assert_eq!(path, file);
                assert_eq!(found, 0x0102);
                assert_ne!(supported, found);
            }
            error => panic!("{error:?}"),
        }
        assert_eq!(fs::read(&file).unwrap(), bytes);
        fs::write(&file, &own).unwrap();
    }
    assert_filled(dir.path(), 1);
}

/// Damage to the version alone, with the checksum as it was.
#[test]
fn a_damaged_version_in_a_log_is_refused() {
    let _one = one_at_a_time();
    let dir = memory_dir();
    fill(dir.path(), 1);
    let log = log_path(dir.path(), 0);
    let own = fs::read(&log).unwrap();
    for at in 8..12 {
        let mut bytes = own.clone();
        bytes[at] ^= 1;
        fs::write(&log, &bytes).unwrap();
        match refused(dir.path(), 1) {
            Error::Corrupt { path, .. } | Error::FormatVersion { path, .. } => {
                assert_eq!(path, log);
            }
            error => panic!("{error:?}"),
        }
        assert_eq!(fs::read(&log).unwrap(), bytes);
    }
    fs::write(&log, own).unwrap();
    assert_filled(dir.path(), 1);
}

// ---- creation ---------------------------------------------------------------------------------

#[test]
fn records_without_a_store_file_are_refused_and_kept() {
    let _one = one_at_a_time();
    let dir = memory_dir();
    fill(dir.path(), 2);
    let own = fs::read(dir.path().join("STORE")).unwrap();
    fs::remove_file(dir.path().join("STORE")).unwrap();
    let before = snapshot(dir.path());
    match refused(dir.path(), 2) {
        Error::Corrupt { path, .. } => assert_eq!(path, log_path(dir.path(), 0)),
        error => panic!("{error:?}"),
    }
    assert_eq!(snapshot(dir.path()), before);
    fs::write(dir.path().join("STORE"), own).unwrap();
    assert_filled(dir.path(), 2);
}

/// A store whose last partition alone has records, and the bytes of its STORE file, which is lost.
fn lost_store_file(partitions: usize) -> (tempfile::TempDir, Vec<u8>) {
    loop {
        let dir = memory_dir();
        let store = open(dir.path(), partitions);
        run(store.put("key", "value")).unwrap();
        let in_last = run(store.stats()).unwrap().partitions[partitions - 1].keys == 1;
        // Not closed: the other logs have not even a mark.
        drop(store);
        if in_last {
            let path = dir.path().join("STORE");
            let file = fs::read(&path).unwrap();
            fs::remove_file(path).unwrap();
            return (dir, file);
        }
    }
}

#[test]
fn an_empty_log_is_not_written_over_if_another_one_has_records() {
    let _one = one_at_a_time();
    let (dir, file) = lost_store_file(3);
    let before = snapshot(dir.path());
    match refused(dir.path(), 3) {
        Error::Corrupt { path, .. } => assert_eq!(path, log_path(dir.path(), 2)),
        error => panic!("{error:?}"),
    }
    assert_eq!(snapshot(dir.path()), before);
    // The file is found again: so is all that was in the store.
    fs::write(dir.path().join("STORE"), file).unwrap();
    assert_eq!(run(open(dir.path(), 3).stats()).unwrap().total().keys, 1);
}

#[test]
fn records_without_a_store_file_are_refused_whatever_partitions_are_asked_for() {
    let _one = one_at_a_time();
    let (dir, _) = lost_store_file(3);
    let before = snapshot(dir.path());
    for partitions in [1, 2, 4] {
        let error = refused(dir.path(), partitions);
        assert!(matches!(error, Error::Corrupt { .. }), "{error:?}");
        assert_eq!(snapshot(dir.path()), before);
    }
}

#[test]
fn an_interrupted_creation_is_done_again() {
    let _one = one_at_a_time();
    // What may be there: some of the logs, whole or torn, and a draft of the store file.
    for (logs, torn, draft) in [(1, 0, false), (2, 7, false), (3, 64, true), (3, 40, true)] {
        let dir = memory_dir();
        drop(open(dir.path(), 3));
        fs::remove_file(dir.path().join("STORE")).unwrap();
        for partition in logs..3 {
            fs::remove_file(log_path(dir.path(), partition)).unwrap();
        }
        let last = log_path(dir.path(), logs - 1);
        let bytes = fs::read(&last).unwrap();
        fs::write(&last, &bytes[..torn]).unwrap();
        if draft {
            fs::write(dir.path().join("STORE.tmp"), "ringlog").unwrap();
        }
        fill(dir.path(), 3);
        assert_filled(dir.path(), 3);
        assert!(!dir.path().join("STORE.tmp").exists());
    }
}

/// It is not yet a store, so nobody has said how many partitions it will have.
#[test]
fn an_interrupted_creation_may_be_done_again_with_other_partitions() {
    let _one = one_at_a_time();
    let dir = memory_dir();
    drop(open(dir.path(), 3));
    fs::remove_file(dir.path().join("STORE")).unwrap();
    fill(dir.path(), 2);
    assert_filled(dir.path(), 2);
}

/// A reading of a damaged record is an error, not another value.
#[test]
fn damage_under_an_open_store_is_noticed_by_the_reader() {
    let _one = one_at_a_time();
    let dir = memory_dir();
    let store = Store::builder(dir.path()).cache_bytes(0).open().unwrap();
    run(store.put("first", "one")).unwrap();
    run(store.put("key", "some value")).unwrap();
    let log = log_path(dir.path(), 0);
    let own = fs::read(&log).unwrap();
    let record = entries(&own).pop().unwrap();
    for at in record.start..record.end {
        let mut bytes = own.clone();
        bytes[at] ^= 0x40;
        fs::write(&log, &bytes).unwrap();
        match run(store.get("key")) {
            Err(Error::Corrupt { path, offset, .. }) => {
                assert_eq!(path, log);
                assert_eq!(offset, record.start as u64);
            }
            other => panic!("byte {at}: {other:?}"),
        }
        assert_eq!(run(store.get("first")).unwrap().as_deref(), Some(&b"one"[..]));
    }
    fs::write(&log, &own[..record.start + 5]).unwrap();
    assert!(matches!(run(store.get("key")), Err(Error::Corrupt { .. })));
    fs::write(&log, &own).unwrap();
    assert_eq!(run(store.get("key")).unwrap().as_deref(), Some(&b"some value"[..]));
}

/// The last handle may go on a thread of the store's own, which cannot wait for the others: in an
/// executor whose tasks live in their wakers, say. The directory stays locked for as long as one
/// of them may write.
#[test]
fn a_store_whose_last_handle_goes_on_its_own_thread_is_locked_until_it_has_written() {
    use std::sync::{Arc, Mutex};
    use std::task::{Context, Wake, Waker};

    struct Task(Mutex<Option<ringlog::Reply<()>>>);
    impl Wake for Task {
        fn wake(self: Arc<Self>) {} // the last reference: the reply, and the store, go here
    }

    let _one = one_at_a_time();
    let dir = memory_dir();
    let store = open(dir.path(), 2);
    let mut keys = [None, None];
    for n in 0.. {
        let before = run(store.stats()).unwrap();
        run(store.put(format!("{n}"), "")).unwrap();
        let after = run(store.stats()).unwrap();
        for (key, (before, after)) in
            keys.iter_mut().zip(before.partitions.iter().zip(&after.partitions))
        {
            if after.records > before.records {
                key.get_or_insert(format!("{n}"));
            }
        }
        if keys.iter().all(Option::is_some) {
            break;
        }
    }
    let [small, large] = keys.map(Option::unwrap);
    let mut large = store.put(large, vec![1; ringlog::MAX_VALUE_LEN]);
    let mut cx = Context::from_waker(Waker::noop());
    assert!(Pin::new(&mut large).poll(&mut cx).is_pending());
    drop(large); // it was sent
    let task = Arc::new(Task(Mutex::new(None)));
    let waker = Waker::from(Arc::clone(&task));
    let mut reply = store.put(small, "x");
    if Pin::new(&mut reply).poll(&mut Context::from_waker(&waker)).is_ready() {
        return; // answered at once: not this time
    }
    *task.0.lock().unwrap() = Some(reply);
    drop((waker, task, store));
    let again = loop {
        match Store::open(dir.path(), 2) {
            Err(Error::Locked { .. }) => std::thread::yield_now(),
            opened => break opened.unwrap(),
        }
    };
    let descriptors = fs::read_dir("/proc/self/fd").unwrap();
    let links = descriptors.filter_map(|entry| fs::read_link(entry.unwrap().path()).ok());
    let folder = dir.path().join("p0001");
    let is_log = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "log");
    let logs: Vec<PathBuf> =
        links.filter(|path| path.starts_with(&folder)).filter(is_log).collect();
    let different: BTreeSet<&PathBuf> = logs.iter().collect();
    assert_eq!(logs.len(), different.len(), "each is open once, in the new store: {logs:?}");
    drop(again);
}
