//! Bugs that seeds of the simulation found, or that only its disk can show, each in the few steps that
//! matter: a seed means another life with each change of the engine. The others are in
//! `tests/store_regressions.rs`.

use crate::edges::{CUT, DIRECT, KEYS, KILL, LARGE, has, live, look, put, seed, strike};
use crate::sim::clients::{Checked, Scene};
use crate::sim::copies::Copied;
use crate::sim::faults::Fault;
use crate::sim::perform::is_segment;
use crate::sim::rng::Rng;
use crate::sim::world::{Direct, End};
use crate::sim::wounds::Wound;
use ringlog::{Durability, Error, PutOptions, rt};
use std::cell::Cell;
use std::future::Future;
use std::rc::Rc;
use std::time::{Duration, UNIX_EPOCH};

/// All ends, and none with an answer that has no reason.
async fn all(tasks: Vec<rt::Task<Checked>>) -> Checked {
    for task in tasks {
        task.await.map_err(|error| format!("{error:?}"))??;
    }
    Ok(())
}

fn beside<F>(scene: &Rc<Scene>, work: impl FnOnce(Rc<Scene>) -> F) -> rt::Task<Checked>
where
    F: Future<Output = Checked> + 'static,
{
    rt::spawn(work(Rc::clone(scene)))
}

/// From now on the disk takes so many bytes more.
fn limit(scene: &Scene, more: u64) {
    let disk = &mut scene.world.borrow_mut().disk;
    disk.capacity = disk.used() + more;
}

/// Half of all reads come short, those of an opening too, and go on where the file's alignment and
/// that of memory both allow it.
#[test]
fn a_read_that_comes_short_is_gone_on_with() {
    let aligned = |memory, offset| Direct::Align { memory, offset };
    let ways = [Direct::Unknown, aligned(4, 512), aligned(4096, 512), aligned(512, 4096)];
    for (chance, direct) in (0..5).flat_map(|chance| ways.map(|direct| (chance, direct))) {
        let mut seed = seed(chance, direct);
        live(&mut seed, None, KILL, false, async |scene| {
            for (key, len) in [100, 5_000, LARGE, LARGE, 60_000, 100].into_iter().enumerate() {
                put(&scene, key, len, Durability::Sync).await?;
            }
            Ok(())
        });
        {
            let faults = &mut seed.world.borrow_mut().faults;
            faults.only(Fault::ShortRead, 2);
            faults.on = true;
        }
        live(&mut seed, None, KILL, false, async |scene| {
            for key in 0..6 {
                assert!(has(&scene, key).await, "key {key}");
            }
            scene.scan().await?;
            scene.compact(&mut Rng::new(1)).await?;
            scene.verify().await
        });
        assert!(seed.world.borrow().faults.struck[Fault::ShortRead as usize] > 10);
    }
}

/// Where there is room for nothing there is none for a mark of the clock either, that says durably
/// that a key has expired: neither behind a seal, nor where nothing is prepared.
#[test]
fn a_read_of_what_has_expired_writes_nothing_where_there_is_no_room() {
    const MANY: u64 = 100;
    let mut refused = 0;
    for more in (0..10).map(|n| n * 7_000) {
        let mut seed = seed(more, DIRECT[1]);
        let full = Rc::new(Cell::new(0));
        let counts = Rc::clone(&full);
        live(&mut seed, None, KILL, true, async |scene| {
            // Each takes a mark of its own, a block long: together more than the reserve has.
            let start = scene.wall() + 500;
            let expiry = |n: u64| UNIX_EPOCH + Duration::from_millis(start + 10 * n);
            for n in 0..MANY {
                let options = PutOptions::new().durability(Durability::Buffered);
                let put = scene.store.put_with(format!("{n}"), "", options.expires_at(expiry(n)));
                put.await.map_err(|error| format!("{error:?}"))?;
            }
            limit(&scene, more);
            // (These keys are no matter to the model: nobody looks again.)
            for n in 0..150 {
                let put = scene.store.put(format!("full {n}"), [0; LARGE]).await;
                counts.set(counts.get() + u64::from(matches!(put, Err(Error::Full { .. }))));
            }
            for n in 0..MANY {
                let left = (start + 10 * n + 1).saturating_sub(scene.wall());
                drop(rt::timeout(Duration::from_millis(left)).await);
                let entry = scene.store.get(format!("{n}")).await;
                assert!(matches!(entry, Ok(None)), "{n}: {entry:?}");
            }
            if let Err(error) = scene.store.sync().await {
                return Err(format!("reads have poisoned it: {error:?}"));
            }
            scene.world.borrow_mut().end(End::Kill);
            std::future::pending().await
        });
        refused += full.get();
    }
    assert!(refused > 300, "of 1500 puts only {refused} found the disk full");
}

/// A delete that is judged by a put that waits is refused with it.
#[test]
fn a_delete_does_not_find_a_put_that_was_refused() {
    for more in (0..40).map(|n| n * 4096) {
        let mut seed = seed(more, DIRECT[1]);
        live(&mut seed, None, KILL, true, async |scene| {
            limit(&scene, more);
            for n in 0..20 {
                let key = n % KEYS;
                // The model knows what the delete may say of a put that is refused.
                let writes = beside(&scene, async move |scene| {
                    put(&scene, key, LARGE, Durability::Sync).await
                });
                let deletes =
                    beside(&scene, async move |scene| scene.delete(&mut Rng::new(1), key).await);
                all(vec![writes, deletes]).await?;
            }
            scene.world.borrow_mut().disk.capacity = u64::MAX;
            Ok(())
        });
        look(&mut seed);
    }
}

/// Whatever a partition does while it is poisoned comes to an end.
#[test]
fn merges_compactions_and_backups_end_when_a_write_fails_under_them() {
    for (delay, direct) in (0..60).flat_map(|delay| DIRECT.map(|direct| (delay, direct))) {
        let mut seed = seed(delay, direct);
        live(&mut seed, None, KILL, true, async |scene| {
            for key in (0..KEYS).chain([0; 20]) {
                put(&scene, key, 4_000, Durability::Buffered).await?;
            }
            let tasks = vec![
                beside(&scene, async |scene| scene.compact(&mut Rng::new(1)).await),
                beside(&scene, async |scene| scene.back_up(&mut Rng::new(1)).await),
            ];
            drop(rt::timeout(Duration::from_micros(50 * delay)).await);
            strike(&scene, Fault::WriteError, 1);
            put(&scene, 3, 100, Durability::Sync).await?;
            strike(&scene, Fault::WriteError, 0);
            all(tasks).await
        });
        seed.check_copy().unwrap_or_else(|why| panic!("{delay}: {why}"));
        look(&mut seed);
    }
}

/// Zeroes that a failed sync has left before the tail of the segment that is written to are no
/// padding: the writer would have gone on in that block.
#[test]
fn a_scan_after_a_failed_sync_tells_what_is_lost() {
    let mut lost = 0;
    for chance in 0..100 {
        let mut seed = seed(chance, DIRECT[1]);
        let damaged = Rc::new(Cell::new(false));
        let found = Rc::clone(&damaged);
        live(&mut seed, None, CUT, true, async |scene| {
            put(&scene, 0, 100, Durability::Sync).await?;
            drop(rt::timeout(Duration::from_millis(50)).await);
            // One group, whose second record begins with a sector: that one may be lost alone.
            let puts = [(2, 512 - 56 - 24 - 5), (3, 400)].map(|(key, len)| {
                beside(&scene, async move |scene| put(&scene, key, len, Durability::Buffered).await)
            });
            all(puts.into()).await?;
            strike(&scene, Fault::SyncError, 1);
            scene.sync(&mut Rng::new(1)).await?;
            strike(&scene, Fault::SyncError, 0);
            let (mut scan, mut shown) = (scene.store.scan(), 0);
            while let Some(entry) = scan.next().await {
                shown += usize::from(entry.is_ok());
                found.set(found.get() || entry.is_err());
            }
            assert!(found.get() || shown == 3, "{shown} of 3, and no word of the others");
            Ok(())
        });
        lost += usize::from(damaged.get());
    }
    assert!(lost > 20, "in {lost} of 100 something was lost");
}

/// Until the group that is under way has ended a backup waits, and does not ask all the time.
#[test]
fn a_backup_sleeps_while_a_group_is_written() {
    let mut longest = 0;
    for chance in 0..10 {
        let mut seed = seed(chance, DIRECT[1]);
        live(&mut seed, None, KILL, false, async |scene| {
            put(&scene, 0, 100, Durability::Sync).await?;
            drop(rt::timeout(Duration::from_millis(50)).await);
            strike(&scene, Fault::Late, 1);
            let write = beside(&scene, async |scene| put(&scene, 1, 100, Durability::Sync).await);
            for _ in 0..5 {
                rt::yield_now().await; // it is under way, for up to three seconds
            }
            strike(&scene, Fault::Late, 0);
            scene.back_up(&mut Rng::new(1)).await?;
            all(vec![write]).await
        });
        let world = seed.world.borrow();
        longest = longest.max(world.now / 1_000_000);
        // A turn takes half a microsecond: a task that is never idle takes two million a second.
        let turns = world.now / 1_000_000 * 20 + 10_000;
        assert!(world.steps < turns, "{} turns in {} ms", world.steps, world.now / 1_000_000);
        drop(world);
        seed.check_copy().unwrap_or_else(|why| panic!("{chance}: {why}"));
    }
    assert!(longest > 1_000, "no write was late");
}

/// Where segments cannot be linked they are copied: reads of that which a signal interrupts or that
/// come short are gone on with, and the copy is there for good when the backup is acknowledged.
#[test]
fn a_backup_to_another_file_system_is_whole_and_survives_signals() {
    for (chance, direct) in (0..10).flat_map(|chance| DIRECT.map(|direct| (chance, direct))) {
        let mut seed = seed(chance, direct);
        seed.world.borrow_mut().no_links = Some(libc::EXDEV);
        let made = Rc::new(Cell::new(false));
        let copied = Rc::clone(&made);
        live(&mut seed, None, CUT, false, async |scene| {
            for key in (0..KEYS).chain([0; 3]) {
                put(&scene, key, LARGE, Durability::Sync).await?;
            }
            drop(rt::timeout(Duration::from_millis(50)).await); // hints have been written
            strike(&scene, Fault::Interrupted, 2);
            scene.world.borrow_mut().faults.also(Fault::ShortRead, 2);
            scene.back_up(&mut Rng::new(1)).await?;
            copied.set(scene.copied.borrow().as_ref().is_some_and(Copied::is_made));
            scene.world.borrow_mut().end(End::PowerCut);
            std::future::pending().await
        });
        assert!(made.get(), "{chance}, {direct:?}: it was not acknowledged");
        for fault in [Fault::NoLink, Fault::Interrupted, Fault::ShortRead] {
            let struck = seed.world.borrow().faults.struck[fault as usize];
            assert!(struck > 3, "{chance}, {direct:?}: {fault:?} struck {struck} times");
        }
        seed.check_copy().unwrap_or_else(|why| panic!("{chance}, {direct:?}: {why}"));
        look(&mut seed);
    }
}

/// A failed sync may leave a part of a group on the device, and all of it in a cache. A copy is of what
/// the store reads: else it had records between the log's end and the seal that the opening put there.
#[test]
fn a_backup_is_of_what_the_device_has_though_a_cache_has_more() {
    let mut lost = 0;
    for chance in 0..40 {
        let mut seed = seed(chance, DIRECT[1]);
        seed.world.borrow_mut().no_links = Some(libc::EXDEV);
        live(&mut seed, None, KILL, true, async |scene| {
            put(&scene, 0, 100, Durability::Sync).await?;
            let puts = (1..KEYS).map(|key| {
                beside(&scene, async move |scene| put(&scene, key, 600, Durability::Buffered).await)
            });
            all(puts.collect()).await?;
            strike(&scene, Fault::SyncError, 1);
            assert!(scene.store.sync().await.is_err(), "the sync did not fail");
            strike(&scene, Fault::SyncError, 0);
            lost += scene.world.borrow().dropped.len();
            Ok(())
        });
        live(&mut seed, None, KILL, false, async |scene| scene.back_up(&mut Rng::new(1)).await);
        seed.check_copy().unwrap_or_else(|why| panic!("{chance}: {why}"));
    }
    assert!(lost > 20, "{lost} syncs took something with them");
}

/// A read that the device refuses is told to who asked, and changes nothing: others go on, and the
/// store is not poisoned.
#[test]
fn a_read_that_fails_is_that_read_s_matter_only() {
    for direct in DIRECT {
        let mut seed = seed(1, direct);
        live(&mut seed, None, KILL, true, async |scene| {
            let names: Vec<_> =
                scene.model.borrow().keys.iter().take(3).map(|key| key.name.clone()).collect();
            for key in 0..3 {
                put(&scene, key, 100, Durability::Sync).await?;
            }
            strike(&scene, Fault::ReadError, 1);
            for name in &names {
                let entry = scene.store.get_entry(name).await;
                assert!(matches!(entry, Err(Error::Io { .. })), "{direct:?}: {entry:?}");
            }
            let values = scene.store.get_many(&names).await;
            assert!(matches!(values, Err(Error::Io { .. })), "{direct:?}: {values:?}");
            strike(&scene, Fault::ReadError, 0);
            for key in 0..3 {
                assert!(has(&scene, key).await, "{direct:?}: key {key}");
            }
            put(&scene, 3, 100, Durability::Sync).await?;
            assert!(has(&scene, 3).await, "{direct:?}: a put was refused");
            assert!(scene.store.sync().await.is_ok(), "{direct:?}");
            scene.scan().await
        });
        look(&mut seed);
    }
}

/// Each request of a life that such a fault can meet fails, from the opening to the end, with all after
/// it or without.
fn fail_each(kind: Fault, for_good: bool, direct: Direct) {
    let mut spared = 0;
    for after in 0..=1_000 {
        let mut seed = seed(after, direct);
        // Every other store is made by the life in which it strikes.
        if after % 2 == 0 {
            live(&mut seed, None, CUT, false, async |scene| {
                for key in 0..KEYS {
                    put(&scene, key, 4_000, Durability::Sync).await?;
                }
                Ok(())
            });
        }
        {
            let faults = &mut seed.world.borrow_mut().faults;
            (faults.once, faults.for_good, faults.on) = (Some((kind, after)), for_good, true);
        }
        live(&mut seed, None, CUT, true, async |scene| {
            let rng = &mut Rng::new(after);
            for key in (0..KEYS).chain([0; 8]) {
                put(&scene, key, LARGE / 2, Durability::Sync).await?;
            }
            scene.delete(rng, 1).await?;
            scene.update(rng, 2).await?;
            scene.back_up(rng).await?;
            scene.scan().await?;
            scene.compact(rng).await?;
            let (start, covered) = scene.begin_sync();
            match scene.store.clone().close().await {
                Ok(()) => scene.synced(start, &covered)?,
                Err(error) => scene.judge(&error)?,
            }
            scene.world.borrow_mut().end(End::PowerCut);
            std::future::pending().await
        });
        let struck = seed.world.borrow().faults.struck[kind as usize];
        {
            let faults = &mut seed.world.borrow_mut().faults;
            (faults.once, faults.on) = (None, false);
            faults.only(kind, 0);
        }
        let copy = seed.check_copy();
        copy.unwrap_or_else(|why| panic!("{kind:?} {after} {for_good}: {why}"));
        look(&mut seed);
        // The next, which begins otherwise, may ask for more.
        spared = if struck == 0 { spared + 1 } else { 0 };
        if spared == 2 {
            assert!(after > 5, "{kind:?}: it never came to {after}");
            break;
        }
    }
    assert!(spared == 2, "{kind:?}: it goes on after the last request");
}

/// What had been acknowledged by then is there after a power cut, and a backup that was is whole.
#[test]
fn whichever_request_fails_what_was_acknowledged_is_kept() {
    for kind in [
        Fault::OpenError,
        Fault::ReadError,
        Fault::WriteError,
        Fault::SyncError,
        Fault::NameError,
        Fault::NoSpace,
        Fault::NoFiles,
    ] {
        for (for_good, direct) in DIRECT.map(|direct| [(false, direct), (true, direct)]).concat() {
            fail_each(kind, for_good, direct);
        }
    }
}

/// A write that lands elsewhere may come over a header. What is written to that segment from then on
/// the model knows all the same: else a delete would be no reason for its key to be gone.
#[test]
fn what_goes_to_a_segment_is_known_though_its_header_is_written_over() {
    let mut seed = seed(1, DIRECT[1]);
    live(&mut seed, None, KILL, false, async |scene| {
        put(&scene, 0, 100, Durability::Sync).await?;
        drop(rt::timeout_ms(50).await); // the spare that the next life goes on with is made
        Ok(())
    });
    live(&mut seed, None, KILL, false, async |scene| {
        {
            let disk = &mut scene.world.borrow_mut().disk;
            for (_, ino) in disk.files().into_iter().filter(|(path, _)| is_segment(path)) {
                disk.file(ino).unwrap().replace(0, &[1; 512]);
            }
        }
        put(&scene, 1, 100, Durability::Sync).await
    });
}

/// A write that is lost, and that the next group of its block heals, was acknowledged when it was lost.
/// If something else comes over that block, nothing proves that either of the two was there.
#[test]
fn what_is_written_again_is_as_old_as_when_it_was_lost() {
    const LOST: [usize; 2] = [0, 1];
    let mut seed = seed(1, DIRECT[0]); // where no zeroes are written ahead
    let stale = Rc::new(Cell::new(0));
    look(&mut seed);
    let harmed = seed.harm_so(|seed, _| {
        live(seed, None, KILL, false, async |scene| {
            for key in LOST {
                put(&scene, key, 100, Durability::Sync).await?;
            }
            let loses = |on| {
                let faults = &mut scene.world.borrow_mut().faults;
                faults.only(Fault::LostWrite, 1);
                faults.on = on;
            };
            loses(true);
            put(&scene, LOST[0], 100, Durability::Buffered).await?;
            loses(false);
            put(&scene, LOST[1], 100, Durability::Buffered).await?;
            {
                let world = &mut *scene.world.borrow_mut();
                assert_eq!(world.wounds.len(), 0, "it is not healed");
                for (_, ino) in world.disk.files().into_iter().filter(|(path, _)| is_segment(path))
                {
                    // Behind the two that were synced.
                    let content = world.disk.file(ino).unwrap();
                    world.wounds.extend(Wound::over(content, ino, 3 * 4096, &[0; 4096]));
                    content.write_through(3 * 4096, &[0; 4096]);
                }
                stale.set(world.wounds.len());
                world.end(End::Kill);
            }
            std::future::pending().await
        });
        Ok(())
    });
    assert_eq!((harmed, stale.get()), (Ok(()), 1));
}
