//! Requests that are answered late, or refused: each is found among those in flight, and held back
//! until what it is not to know of has happened.

use crate::edges::{DIRECT, KILL, LARGE, live, seed, strike};
use crate::sim::clients::{Checked, Scene};
use crate::sim::driver::SimDriver;
use crate::sim::faults::Fault;
use crate::sim::life::{DIR, Outcome, Seed, Way};
use crate::sim::perform::is_segment;
use crate::sim::world::{Direct, End, World};
use ringlog::rt::driver::Request;
use ringlog::rt::{self, Executor};
use ringlog::{Durability, Error, OpenReport, PutOptions, Store};
use std::future::Future;
use std::os::fd::RawFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

const HOUR: u64 = 3600 * 1_000_000_000;

/// Opens the store beside the lives, and closes it after `work`. Its keys are no matter to the
/// model.
#[track_caller]
pub fn open<F>(seed: &mut Seed, work: impl FnOnce(Rc<Scene>) -> F + 'static)
where
    F: Future<Output = Checked> + 'static,
{
    let model = Rc::clone(&seed.model);
    let way = Way { dir: DIR, salvage: false, model, may_be_corrupt: false, end_at: None };
    let outcome = seed.beside(way, work).unwrap_or_else(|why| panic!("{why}"));
    assert!(matches!(outcome, Outcome::Over), "{outcome:?}");
}

/// An empty store, with a page cache or without.
fn made(chance: u64, direct: Direct) -> Seed {
    let mut seed = seed(chance, direct);
    live(&mut seed, None, KILL, false, async |_| Ok(()));
    seed
}

async fn put(scene: &Scene, key: &str, value: Vec<u8>) -> Checked {
    let options = PutOptions::new().durability(Durability::Sync);
    let put = scene.store.put_with(key, value, options).await;
    put.map(drop).map_err(|error| format!("{key}: {error:?}"))
}

/// Keeps the first request that is so from being done until it is let go. Tells which it is.
async fn hold(scene: &Scene, is: impl Fn(&World, &Request) -> bool) -> u64 {
    for _ in 0..100_000 {
        let found = {
            let world = scene.world.borrow();
            world.in_flight.values().find(|job| is(&world, &job.request)).map(|job| job.token)
        };
        if let Some(token) = found {
            set_due(scene, token, HOUR);
            return token;
        }
        rt::yield_now().await;
    }
    panic!("nobody asks for it");
}

fn set_due(scene: &Scene, token: u64, after: u64) {
    let world = &mut *scene.world.borrow_mut();
    let (key, job) = world.in_flight.iter().find(|(_, job)| job.token == token).unwrap();
    let (key, job) = (*key, *job);
    world.in_flight.remove(&key);
    world.in_flight.insert((world.now + after, key.1), job);
}

fn let_go(scene: &Scene, token: u64) {
    set_due(scene, token, 0);
}

/// The path of a file that is read.
fn read_path(world: &World, request: &Request) -> Option<(String, u64)> {
    let Request::Read { fd, offset, .. } = *request else { return None };
    path_of(world, fd).map(|path| (path, offset))
}

/// The path of a file that is open, if it has one.
fn path_of(world: &World, fd: RawFd) -> Option<String> {
    let ino = world.files.get(&fd)?.ino;
    world.disk.files().into_iter().find(|(_, of)| *of == ino).map(|(path, _)| path)
}

/// The segments of the store, spares too, in order.
fn logs(scene: &Scene) -> Vec<String> {
    let files = scene.world.borrow().disk.files().into_iter().map(|(path, _)| path);
    files.filter(|path| path.starts_with(DIR) && is_segment(path)).collect()
}

async fn rest() {
    drop(rt::timeout(Duration::from_millis(50)).await);
}

/// Opens the store while the device refuses all reads of hints that end so.
fn open_refusing(seed: &Seed, ending: &str) -> (OpenReport, u64) {
    let world = Rc::clone(&seed.world);
    world.borrow_mut().begin_life(None);
    let executor = Executor::with_driver(SimDriver::boxed(&world));
    let (handle, builder) = (executor.handle(), Store::builder(DIR).segment_bytes(64 << 10));
    let refused = || world.borrow().faults.struck[Fault::ReadError as usize];
    let before = refused();
    let report = executor.block_on(async {
        let opening = rt::spawn(async move { builder.cache_bytes(0).open_on(&[handle]).await });
        while !opening.is_finished() {
            {
                let world = &mut *world.borrow_mut();
                let hint = |request: &Request| {
                    read_path(world, request).is_some_and(|(path, _)| path.ends_with(ending))
                };
                let on = world.in_flight.values().any(|job| hint(&job.request));
                world.faults.only(Fault::ReadError, 1);
                world.faults.on = on;
            }
            rt::yield_now().await;
        }
        world.borrow_mut().faults.on = false;
        let store = opening.await.unwrap().unwrap_or_else(|error| panic!("refused: {error:?}"));
        for n in 0..9 {
            let value = store.get(format!("{n}")).await.unwrap();
            assert_eq!(value.as_deref(), Some(&[n; LARGE][..]), "key {n}");
        }
        store.open_report().clone()
    });
    let refused = refused() - before;
    world.borrow_mut().leave(End::Kill);
    drop(executor);
    (report, refused)
}

/// A hint is a cache: one that the device does not give costs a scan of its segment, no more.
#[test]
fn a_hint_whose_read_is_refused_costs_a_scan_and_no_more() {
    for direct in DIRECT {
        let mut seed = made(1, direct);
        open(&mut seed, async |scene| {
            for n in 0..9 {
                put(&scene, &format!("{n}"), vec![n; LARGE]).await?;
            }
            Ok(())
        });
        let disk = seed.world.borrow().disk.clone();
        let mut hints = disk.files().into_iter().map(|(path, _)| path);
        let one = hints.find(|path| path.contains(".hint")).expect("what is sealed has a hint");
        for (ending, spared) in [("none", 3), (&one, 2), (".hint", 0)] {
            seed.world.borrow_mut().disk = disk.clone();
            let (report, refused) = open_refusing(&seed, ending);
            let found = &report.partitions[0];
            assert_eq!(refused, 3 - spared, "each is asked for once");
            assert_eq!((found.segments, found.hinted), (3, spared), "{direct:?}: {report:?}");
            assert!(report.is_clean() && (found.scanned_bytes > 0) == (spared < 3), "{report:?}");
        }
    }
}

/// When it comes back its segment was merged away, and another has its slot, with the key at the
/// same place in it. Its file is gone, or it has read what is old: neither is the answer.
#[test]
fn a_late_read_whose_slot_was_used_again_reads_anew() {
    const KEY: &str = "key";
    for ((direct, updates), last) in DIRECT
        .into_iter()
        .flat_map(|direct| [(direct, false), (direct, true)])
        .flat_map(|way| (1..9).map(move |last| (way, last)))
    {
        let mut seed = made(1, direct);
        open(&mut seed, async |scene| {
            // Each in a block of its own: it does not matter what the first one lists.
            for n in 0..4 {
                put(&scene, KEY, vec![n; 100]).await?;
            }
            Ok(())
        });
        if !updates {
            // So many that an opening lets go of the descriptor of the oldest.
            open(&mut seed, async |scene| {
                for n in 0..39 {
                    put(&scene, &format!("cold {n}"), vec![0; LARGE]).await?;
                }
                Ok(())
            });
        }
        open(&mut seed, async move |scene| {
            rest().await;
            let (store, saw) = (scene.store.clone(), Arc::new(AtomicU8::new(0)));
            let first = logs(&scene).remove(0);
            let sees = Arc::clone(&saw);
            let reading = rt::spawn(async move {
                if updates {
                    let look = move |old: Option<&[u8]>| {
                        sees.store(old.map_or(0, |old| old[0]), Ordering::Relaxed);
                        old.map(<[u8]>::to_vec)
                    };
                    return store.update(KEY, look).await.map(drop);
                }
                let value = store.get(KEY).await?;
                sees.store(value.map_or(0, |value| value[0]), Ordering::Relaxed);
                Ok(())
            });
            let late = hold(&scene, |world, request| match request {
                Request::Open { .. } => !updates,
                _ => read_path(world, request).is_some_and(|(path, _)| path == first),
            })
            .await;
            put(&scene, KEY, vec![10; 100]).await?;
            // The first ends what is written to, and merges the oldest away; at the second another
            // takes its slot.
            for _ in 0..2 {
                scene.store.compact().await.map_err(|error| format!("{error:?}"))?;
            }
            assert!(!logs(&scene).contains(&first), "it was not merged away");
            // One of these lies as it did in the first.
            for n in 0..=last {
                put(&scene, KEY, vec![20 + n; 100]).await?;
            }
            let_go(&scene, late);
            let read = reading.await.map_err(|error| format!("{error:?}"))?;
            let told = saw.load(Ordering::Relaxed);
            assert!(read.is_ok() && told == 20 + last, "{direct:?}, {last}: {told}, {read:?}");
            Ok(())
        });
    }
}

/// What was made ahead as verification began is written to, sealed and merged away while that
/// waits for the device, and comes to a file that is gone.
#[test]
fn verification_goes_on_when_a_spare_was_taken_and_merged_away() {
    for direct in DIRECT {
        let mut seed = made(1, direct);
        open(&mut seed, async |scene| {
            put(&scene, "first", vec![0; 100]).await?;
            rest().await;
            let there = logs(&scene);
            let spares = &there[there.len() - 2..];
            let verifying = rt::spawn(scene.store.verify());
            let waits = hold(&scene, |world, request| {
                read_path(world, request) == Some((spares[0].clone(), 0))
            })
            .await;
            // Without a descriptor for the next segment, those of all others are given back.
            let mut many = 0;
            loop {
                let segments = logs(&scene).len();
                strike(&scene, Fault::NoFiles, u64::from(segments >= there.len() + 3));
                let put = scene.store.put(format!("{many}"), vec![0; LARGE]).await;
                match put {
                    Ok(()) => many += 1,
                    Err(Error::Full { .. }) => break,
                    Err(error) => return Err(format!("{error:?}")),
                }
            }
            rest().await;
            strike(&scene, Fault::NoFiles, 0);
            let_go(&scene, waits);
            let waits = hold(&scene, |_, request| matches!(request, Request::Open { .. })).await;
            put(&scene, "after", vec![0; 100]).await?; // as there is room again
            for n in 0..many {
                let deleted = scene.store.delete(format!("{n}")).await;
                assert!(deleted.map_err(|error| format!("{error:?}"))?);
            }
            scene.store.compact().await.map_err(|error| format!("{error:?}"))?;
            assert!(!logs(&scene).contains(&spares[1]), "it was not merged away");
            let_go(&scene, waits);
            let verified = verifying.await.map_err(|error| format!("{error:?}"))?;
            let report = verified.map_err(|error| format!("{error:?}"))?;
            assert!(report.is_sound(), "{report:?}");
            Ok(())
        });
    }
}

/// Fills the disk up. Meanwhile the first segment's hint is held, so that it is not merged: which that
/// is, and what to let go.
async fn fill(scene: &Rc<Scene>, key: fn(u32) -> Vec<u8>, value: usize) -> (String, u64) {
    rest().await;
    {
        let disk = &mut scene.world.borrow_mut().disk;
        disk.capacity = disk.used() + (1200 << 10);
    }
    let (store, first) = (scene.store.clone(), logs(scene).remove(0));
    let filling = rt::spawn(async move {
        let mut n = 0;
        while store.put(key(n), vec![1; value]).await.is_ok() {
            n += 1;
        }
    });
    let hint = hold(scene, |world, request| is_write(world, request, ".hint")).await;
    filling.await.unwrap();
    rest().await;
    (first, hint)
}

/// Whether that writes to such a file.
fn is_write(world: &World, request: &Request, ending: &str) -> bool {
    let Request::Write { fd, .. } = *request else { return false };
    path_of(world, fd).is_some_and(|path| path.contains(ending))
}

/// A delete is refused since a merge is under way on a full disk. Before it hears of that the merge has
/// come to nothing, and stands in nobody's way any more.
#[test]
fn a_delete_outlasts_a_merge_that_has_failed_before_it_is_refused() {
    // Tombstones of these take room.
    let key = |n: u32| [&n.to_be_bytes()[..], &[0; 1000]].concat();
    let failed = |error| format!("{error:?}");
    for direct in DIRECT {
        let mut seed = made(1, direct);
        seed.durability = Durability::Buffered;
        // Each delete is to wait for its group.
        seed.world.borrow_mut().no_journals = true;
        open(&mut seed, async move |scene| {
            let (first, hint) = fill(&scene, key, 0).await;
            scene.world.borrow_mut().disk.capacity = 0;
            let segments = async || scene.store.stats().await.unwrap().total().segments;
            let (before, mut n) = (segments().await, 0);
            // Nearly all that is in the first, and until the last spare is in use.
            while segments().await == before {
                assert!(scene.store.delete(key(n)).await.map_err(failed)?);
                n += 1;
            }
            assert!(n > 30, "{n} deletes");
            // One group is written as the merge begins, and the next is to come.
            let writing = rt::spawn(scene.store.delete(key(n)));
            let write = hold(&scene, |world, request| is_write(world, request, ".log")).await;
            let_go(&scene, hint);
            let merge = hold(&scene, |world, request| {
                read_path(world, request) == Some((first.clone(), 4096))
            })
            .await;
            let deleting = rt::spawn(scene.store.delete(key(n + 1)));
            rest().await;
            let struck = || scene.world.borrow().faults.struck[Fault::ReadError as usize];
            let before = struck();
            strike(&scene, Fault::ReadError, 1);
            // Both are answered at the same time.
            let_go(&scene, write);
            let_go(&scene, merge);
            while struck() == before {
                rt::yield_now().await;
            }
            strike(&scene, Fault::ReadError, 0);
            for deleting in [writing, deleting] {
                let deleted = deleting.await.map_err(|error| format!("{error:?}"))?;
                assert!(matches!(deleted, Ok(true)), "{direct:?}: {deleted:?}");
            }
            scene.world.borrow_mut().disk.capacity = u64::MAX;
            Ok(())
        });
    }
}

/// A merge has counted on the room that is left in what is written to. A delete that comes meanwhile
/// waits for its end: it does not take that, nor does it end the segment, which comes to the same.
#[test]
fn a_delete_leaves_a_merge_on_a_full_disk_what_it_has_counted_on() {
    let key = |n: u32| n.to_be_bytes().to_vec();
    for direct in DIRECT {
        let mut seed = made(1, direct);
        (seed.segment_bytes, seed.durability) = (256 << 10, Durability::Buffered);
        open(&mut seed, async move |scene| {
            let (first, hint) = fill(&scene, key, 4000).await;
            // A spare for the deletes, and one more.
            {
                let disk = &mut scene.world.borrow_mut().disk;
                disk.capacity = disk.used() + (68 << 10);
            }
            let delete = |n| rt::spawn(scene.store.delete(key(n)));
            for deleting in (0..50).map(delete).collect::<Vec<_>>() {
                let deleted = deleting.await.map_err(|error| format!("{error:?}"))?;
                assert!(matches!(deleted, Ok(true)), "{direct:?}: {deleted:?}");
            }
            rest().await;
            let segments = async || scene.store.stats().await.unwrap().total().segments;
            let before = segments().await;
            let_go(&scene, hint);
            let merge = hold(&scene, |world, request| {
                read_path(world, request) == Some((first.clone(), 4096))
            })
            .await;
            let deleting = delete(50);
            rest().await;
            assert!(!deleting.is_finished(), "{direct:?}: it does not wait");
            assert_eq!(segments().await, before, "{direct:?}: it has ended the segment");
            let_go(&scene, merge);
            let deleted = deleting.await.map_err(|error| format!("{error:?}"))?;
            assert!(matches!(deleted, Ok(true)), "{direct:?}: {deleted:?}");
            scene.world.borrow_mut().disk.capacity = u64::MAX;
            Ok(())
        });
    }
}
