//! What merges owe to those who read and write meanwhile, when the device fails or fills up.

use super::promises::{LEFT, has, live, put, seed_of, syncs_next};
use crate::sim::clients::{Checked, Scene};
use crate::sim::disk::{Ino, Node};
use crate::sim::faults::Fault;
use crate::sim::perform::is_segment;
use crate::sim::rng::Rng;
use crate::sim::world::{Direct, End};
use ringlog::rt::driver::Request;
use ringlog::{Durability, Error, PartitionStats, PutOptions, rt};
use std::cell::Cell;
use std::future::Future;
use std::rc::Rc;
use std::time::{Duration, UNIX_EPOCH};

/// A failed sync may drop all copies: what they were made of is still there, and is what is read.
#[test]
fn what_was_durable_is_read_though_the_sync_of_its_copy_fails() {
    const MANY: usize = 12;
    let mut struck = 0;
    for chance in 0..40 {
        let mut seed = seed_of(chance, MANY);
        seed.world.borrow_mut().direct = Direct::Align { memory: 512, offset: 512 };
        live(&mut seed, None, LEFT, false, async |scene| {
            for key in (0..MANY).chain([0; 10]) {
                put(&scene, key, 2000, Durability::Sync).await?;
            }
            Ok(())
        });
        live(&mut seed, None, LEFT, true, async |scene| {
            let merges = Rc::clone(&scene);
            let merging = rt::spawn(async move { merges.compact(&mut Rng::new(1)).await });
            scene.world.borrow_mut().faults.only(Fault::SyncError, 1);
            while scene.world.borrow().dropped.is_empty() && !merging.is_finished() {
                let next = syncs_next(&scene);
                scene.world.borrow_mut().faults.on = next;
                rt::yield_now().await;
            }
            struck += u64::from(!scene.world.borrow().dropped.is_empty());
            scene.world.borrow_mut().faults.on = false;
            for key in 0..MANY {
                assert!(has(&scene, key).await);
            }
            merging.await.map_err(|error| format!("{error:?}"))?
        });
        live(&mut seed, None, LEFT, false, super::promises::look);
    }
    assert!(struck > 30, "only {struck} syncs failed");
}

/// Garbage is no reason to refuse a put: where there is little room it is merged away sooner.
#[test]
fn merges_hasten_as_free_space_falls_and_no_put_is_refused() {
    const MANY: usize = 40;
    const LEN: usize = 20_000;
    for chance in 0..10 {
        let mut seed = seed_of(chance, MANY);
        live(&mut seed, None, LEFT, false, async |scene: Rc<Scene>| {
            for key in 0..MANY {
                put(&scene, key, LEN, Durability::Buffered).await?;
            }
            {
                // Less than garbage would come to if there were room for it.
                let disk = &mut scene.world.borrow_mut().disk;
                disk.capacity = disk.used() + (MANY * LEN * 3 / 5) as u64;
            }
            for turn in 0..5 * MANY {
                put(&scene, turn * 7 % MANY, LEN, Durability::Buffered).await?;
            }
            Ok(())
        });
        seed.world.borrow_mut().disk.capacity = u64::MAX;
    }
}

/// Where every segment has some garbage, merges take about what they give back. They end all the same,
/// and so do deletes, which wait for them; and in the end these have made room.
#[test]
fn on_a_full_disk_deletes_that_are_spread_out_end_and_make_room() {
    for chance in (0..12).chain([106]) {
        let mut seed = seed_of(chance, 1);
        (seed.segment_bytes, seed.durability) = (256 << 10, Durability::Buffered);
        live(&mut seed, None, LEFT, true, async |scene: Rc<Scene>| {
            let put = |n: usize| scene.store.put(n.to_be_bytes(), vec![1; 3000 + n % 7 * 1000]);
            put(0).await.map_err(|error| format!("{error:?}"))?;
            {
                let disk = &mut scene.world.borrow_mut().disk;
                disk.capacity = disk.used() + (5 << 20) + (chance % 12 * 20_000);
            }
            // (These keys are no matter to the model: nobody looks again.)
            let (mut many, mut before) = (1, 0);
            while many > before {
                before = many;
                while put(many).await.is_ok() {
                    many += 1;
                }
                match scene.store.compact().await {
                    Ok(()) | Err(Error::Full { .. }) => {}
                    Err(other) => return Err(format!("{other:?}")),
                }
            }
            assert!(many > 500, "{many} keys");
            let mut refused = 0;
            for n in (0..many).filter(|n| n % 10 != 0) {
                match scene.store.delete(n.to_be_bytes()).await {
                    Ok(_) => {}
                    Err(Error::Full { .. }) => refused += 1,
                    Err(other) => return Err(format!("{other:?}")),
                }
            }
            assert_eq!(refused, 0, "deletes were refused");
            for n in (0..many).step_by(10) {
                let value = scene.store.get(n.to_be_bytes()).await;
                assert!(value.is_ok_and(|value| value.is_some()), "{n} of {many}");
            }
            for n in many..many + 20 {
                put(n).await.map_err(|error| format!("after the deletes: {error:?}"))?;
            }
            scene.world.borrow_mut().end(End::Kill);
            std::future::pending().await
        });
    }
}

/// Deletes have left garbage, and nobody knows yet that the disk is full. That comes out between two
/// puts, as a spare is made, and all puts are refused from then on. Merges begin all the same.
#[test]
fn merges_begin_when_a_spare_finds_the_disk_full_though_nobody_writes() {
    const MANY: usize = 240;
    for chance in 0..12 {
        let mut seed = seed_of(chance, MANY);
        (seed.segment_bytes, seed.durability) = (256 << 10, Durability::Buffered);
        live(&mut seed, None, LEFT, true, async |scene: Rc<Scene>| {
            for key in 0..MANY {
                put(&scene, key, 4000, Durability::Buffered).await?;
            }
            drop(rt::timeout(Duration::from_millis(50)).await);
            let disk = &mut scene.world.borrow_mut().disk;
            disk.capacity = disk.used() - chance * (32 << 10);
            Ok(())
        });
        live(&mut seed, None, LEFT, true, async |scene: Rc<Scene>| {
            let name = |key: usize| scene.model.borrow().keys[key].name.clone();
            // Together: a delete that is written by itself takes a block by itself.
            let delete = |key: usize| rt::spawn(scene.store.delete(name(key)));
            for deleting in (0..200).map(delete).collect::<Vec<_>>() {
                let deleted = deleting.await.map_err(|error| format!("{error:?}"))?;
                assert!(matches!(deleted, Ok(true)), "{deleted:?}");
            }
            // A quarter of what the deletes have left. (Nobody looks at these again.)
            for key in 0..50 {
                let mut tries = 0;
                while let Err(error) = scene.store.put(name(key), vec![1; 4000]).await {
                    tries += 1;
                    let full = matches!(error, Error::Full { .. });
                    assert!(full && tries < 100, "put {key}, {tries} times: {error:?}");
                    drop(rt::timeout(Duration::from_millis(5)).await);
                }
                drop(rt::timeout(Duration::from_millis(5)).await);
            }
            scene.world.borrow_mut().end(End::Kill);
            std::future::pending().await
        });
    }
}

/// The device refuses one read of a merge: that segment stays as it is, and the others go.
#[test]
fn a_segment_that_cannot_be_read_does_not_stop_the_merges_of_others() {
    const MANY: usize = 16;
    const LEN: usize = 15_000;
    for chance in 0..20 {
        let mut seed = seed_of(chance, MANY);
        live(&mut seed, None, LEFT, true, async |scene: Rc<Scene>| {
            for key in (0..MANY).chain((0..MANY).step_by(4)) {
                put(&scene, key, LEN, Durability::Buffered).await?;
            }
            let merges = async || scene.store.stats().await.unwrap().total().merges;
            let before = merges().await;
            scene.world.borrow_mut().faults.only(Fault::ReadError, 1);
            let merging = rt::spawn(scene.store.compact());
            let struck = || scene.world.borrow().faults.struck[Fault::ReadError as usize];
            let seen = struck();
            while struck() == seen {
                // Whoever scans a segment begins behind its header.
                let scans =
                    |request: &Request| matches!(request, Request::Read { offset: 4096, .. });
                let on = scene.world.borrow().in_flight.values().any(|job| scans(&job.request));
                scene.world.borrow_mut().faults.on = on;
                rt::yield_now().await;
            }
            scene.world.borrow_mut().faults.on = false;
            let compacted = merging.await.map_err(|error| format!("{error:?}"))?;
            assert!(matches!(compacted, Err(Error::Io { .. })), "{compacted:?}");
            assert!(merges().await >= before + 2, "only the first was tried");
            for key in 0..MANY {
                assert!(has(&scene, key).await);
            }
            Ok(())
        });
    }
}

/// Goes on while the device refuses to read what merges read: whoever scans a segment begins behind
/// its header.
pub async fn while_merges_fail(scene: &Scene, work: impl Future<Output = Checked>) -> Checked {
    scene.world.borrow_mut().scans_fail = true;
    let done = work.await;
    scene.world.borrow_mut().scans_fail = false;
    done
}

/// There is more garbage than puts bear, in segments that cannot be read. A put waits for the merge of
/// another, hears that there is less, waits again since that is not enough, and hears of the end.
#[test]
fn no_put_waits_for_ever_while_there_is_garbage_that_no_merge_takes() {
    const MANY: usize = 40;
    const STAYS: usize = 4;
    const LEN: usize = 15_000;
    for (chance, fail) in (0..10).flat_map(|chance| [(chance, false), (chance, true)]) {
        let mut seed = seed_of(chance, MANY);
        seed.world.borrow_mut().no_journals = true;
        live(&mut seed, None, LEFT, true, async |scene: Rc<Scene>| {
            for key in 0..MANY {
                put(&scene, key, LEN, Durability::Buffered).await?;
            }
            let deletes = async {
                // (These do not wait.)
                for key in STAYS..MANY {
                    scene.delete(&mut Rng::new(1), key).await?;
                }
                drop(rt::timeout(Duration::from_millis(5)).await);
                Ok(())
            };
            while_merges_fail(&scene, deletes).await?;
            let stats = async || scene.store.stats().await.unwrap().total();
            let garbage = |stats: &PartitionStats| stats.log_bytes - stats.live_bytes;
            let before = stats().await;
            assert!(before.merges == 0 && garbage(&before) > 400_000, "{before:?}");
            let puts = async {
                for turn in 0..40 {
                    put(&scene, turn % STAYS, LEN, Durability::Buffered).await?;
                }
                Ok(())
            };
            // Other merges fail too, or do not.
            if fail {
                while_merges_fail(&scene, puts).await?;
            } else {
                puts.await?;
            }
            let after = stats().await;
            assert!((after.merges == 0) == fail && garbage(&after) > 400_000, "{after:?}");
            Ok(())
        });
    }
}

/// Looks again and again while all entries are moved and moved again, with copies that reads do not
/// see for long.
fn look_while_merges_move(chances: u64, look: impl AsyncFn(&Scene) -> Checked + Copy + 'static) {
    const MANY: usize = 9;
    const STAYS: usize = 3;
    const LEN: usize = 15_000;
    for chance in 0..chances {
        let mut seed = seed_of(chance, MANY);
        live(&mut seed, None, LEFT, false, async move |scene: Rc<Scene>| {
            for key in 0..MANY {
                put(&scene, key, LEN, Durability::Buffered).await?;
            }
            let over = Rc::new(Cell::new(false));
            let (writes, stop) = (Rc::clone(&scene), Rc::clone(&over));
            let writing = rt::spawn(async move {
                // One of each segment, so that all others are moved.
                for turn in 0..8 {
                    for key in (STAYS..MANY).skip(turn % 3).step_by(3) {
                        put(&writes, key, LEN, Durability::Buffered).await?;
                    }
                    writes.compact(&mut Rng::new(1)).await?;
                }
                stop.set(true);
                Ok(())
            });
            {
                // Some syncs take much longer than a read.
                let faults = &mut scene.world.borrow_mut().faults;
                faults.only(Fault::Late, 4);
                faults.on = true;
            }
            let rng = &mut Rng::new(chance);
            while !over.get() {
                look(&scene).await?;
                for _ in 0..rng.below(40) {
                    rt::yield_now().await;
                }
            }
            writing.await.map_err(|error| format!("{error:?}"))?
        });
    }
}

/// A copy that reads do not see yet when a scan begins is seen, and moved on, while it goes by.
#[test]
fn a_scan_shows_once_what_merges_move_while_it_goes_by() {
    look_while_merges_move(150, async |scene| scene.scan().await);
}

/// The index is behind the log by the copies that reads do not see yet, and that is right.
#[test]
fn verification_knows_of_copies_that_reads_do_not_see_yet() {
    look_while_merges_move(50, async |scene| scene.verify().await);
}

/// Whoever reads what has expired has that written down while there is room for it; merges find
/// theirs, and so deletes make some.
#[test]
fn reads_of_what_has_expired_leave_what_deletes_and_merges_need_on_a_full_disk() {
    const EXPIRING: u64 = 100;
    let failed = |error: Error| format!("{error:?}");
    for chance in 0..40 {
        let mut seed = seed_of(chance, 1);
        (seed.segment_bytes, seed.durability) = (64 << 10, Durability::Buffered);
        live(&mut seed, None, LEFT, true, async |scene: Rc<Scene>| {
            // Each takes a mark of its own, a block long: together more than the reserve has.
            let start = scene.wall() + 60_000;
            let expiry = |n: u64| UNIX_EPOCH + Duration::from_millis(start + 10 * n);
            for n in 0..EXPIRING {
                let options = PutOptions::new().expires_at(expiry(n));
                let put = scene.store.put_with(format!("soon {n}"), "", options).await;
                put.map_err(failed)?;
            }
            {
                let disk = &mut scene.world.borrow_mut().disk;
                disk.capacity = disk.used() + (1 << 20) + (chance * 7_000);
            }
            // (These keys are no matter to the model: nobody looks again.)
            let put = |n: usize| scene.store.put(n.to_be_bytes(), vec![1; 3000 + n % 7 * 1000]);
            let (mut many, mut before) = (0, usize::MAX);
            while many != before {
                before = many;
                while put(many).await.is_ok() {
                    many += 1;
                }
                match scene.store.compact().await {
                    Ok(()) | Err(Error::Full { .. }) => {}
                    Err(other) => return Err(failed(other)),
                }
            }
            for n in 0..EXPIRING {
                let left = (start + 10 * n + 1).saturating_sub(scene.wall());
                drop(rt::timeout(Duration::from_millis(left)).await);
                let entry = scene.store.get(format!("soon {n}")).await;
                assert!(matches!(entry, Ok(None)), "{n}: {entry:?}");
            }
            for n in (0..many).filter(|n| n % 10 != 0) {
                assert!(scene.store.delete(n.to_be_bytes()).await.map_err(failed)?);
            }
            for n in many..many + 20 {
                put(n).await.map_err(failed)?;
            }
            scene.store.compact().await.map_err(failed)?;
            scene.world.borrow_mut().end(End::Kill);
            std::future::pending().await
        });
    }
}

/// Each begins with the list of all that there are: that stays little in each.
#[test]
fn very_many_small_segments_become_larger() {
    const LEN: usize = 15_000;
    // What one more record takes, with padding, the seal, and what is kept for an idle mark.
    const ROUNDED: u64 = LEN as u64 + 4 * 4096;
    let mut seed = seed_of(1, 1);
    seed.durability = Durability::Buffered;
    live(&mut seed, None, LEFT, false, async |scene: Rc<Scene>| {
        // (These keys are no matter to the model: nobody looks again.)
        for n in 0..3000_u32 {
            let put = scene.store.put(n.to_be_bytes(), vec![1; LEN]).await;
            put.map_err(|error| format!("{error:?}"))?;
        }
        drop(rt::timeout(Duration::from_millis(50)).await);
        let lens: Vec<_> = {
            let disk = &scene.world.borrow().disk;
            let segments = disk.files().into_iter().filter(|(path, _)| is_segment(path));
            let len = |(_, ino): (String, Ino)| match disk.node(ino) {
                Node::File(content) => content.len,
                _ => 0,
            };
            segments.map(len).collect()
        };
        // But for the one that is written to, and two that are made ahead.
        let sealed = &lens[..lens.len() - 3];
        assert!(sealed.len() > 750, "{} segments", sealed.len());
        for (older, len) in sealed.iter().enumerate() {
            let list = 8 * older as u64;
            assert!(16 * list <= len + ROUNDED, "{len} bytes, with a list of {list}");
        }
        scene.world.borrow_mut().end(End::Kill);
        std::future::pending().await
    });
}
