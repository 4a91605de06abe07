//! Promises that a long life seldom puts to the test: for each of them the few steps that do, and an
//! end at the worst moment, or at each.

use crate::sim::clients::{Checked, Condition, Scene};
use crate::sim::content::Crash;
use crate::sim::copies::Copied;
use crate::sim::faults::Fault;
use crate::sim::life::{DIR, Plan, Seed};
use crate::sim::model::Model;
use crate::sim::perform::is_segment;
use crate::sim::rng::Rng;
use crate::sim::world::{Direct, End, Job};
use ringlog::rt::driver::Request;
use ringlog::{Durability, rt};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

/// One of these may expire.
const KEYS: usize = 5;
const EXPIRES: usize = 4;

fn seed(chance: u64) -> Seed {
    seed_of(chance, KEYS)
}

pub fn seed_of(chance: u64, keys: usize) -> Seed {
    crate::sim::prepare();
    let mut seed = Seed::new(chance, false);
    let model = Model::new(keys);
    seed.world.borrow_mut().moment = Rc::clone(model.moment());
    seed.model = Rc::new(RefCell::new(model));
    (seed.partitions, seed.segment_bytes) = (1, 64 << 10);
    seed.cache_bytes = 0;
    seed.durability = Durability::Sync;
    seed
}

/// A life that ends after so many turns of its driver, or when its work is done. Tells whether it
/// came to that.
#[track_caller]
pub fn live<F>(
    seed: &mut Seed,
    end_at: Option<u64>,
    (end, crash): (End, Crash),
    may_fail: bool,
    work: impl FnOnce(Rc<Scene>) -> F,
) -> bool
where
    F: Future<Output = Checked>,
{
    {
        let world = &mut *seed.world.borrow_mut();
        world.begin_life(end_at.map(|at| (at, end)));
        world.crash = Some(crash);
    }
    let (calm, may_be_corrupt, closes) = (false, false, false);
    let plan = Plan { calm, end_at, end, may_fail, may_be_corrupt, closes };
    let lived = seed.pass(plan, |scene, _| async move { work(scene).await });
    lived.unwrap_or_else(|why| panic!("{end_at:?}: {why}"));
    end_at.is_none_or(|at| seed.world.borrow().steps < at)
}

pub const LEFT: (End, Crash) = (End::Kill, Crash::Keeps);
pub const CUT: (End, Crash) = (End::PowerCut, Crash::Drops);

/// Nothing: the store is opened, and what is there is checked.
pub async fn look(_: Rc<Scene>) -> Checked {
    Ok(())
}

pub async fn put(scene: &Scene, key: usize, len: usize, durability: Durability) -> Checked {
    scene.put_so(&mut Rng::new(1), key, len, durability, 0, Condition::Always).await
}

pub async fn has(scene: &Scene, key: usize) -> bool {
    let name = scene.model.borrow().keys[key].name.clone();
    scene.store.get_entry(&name).await.unwrap().is_some() // no cache answers that
}

async fn is_scanned(scene: &Scene, key: usize) -> bool {
    let name = scene.model.borrow().keys[key].name.clone();
    let mut scan = scene.store.scan();
    while let Some(entry) = scan.next().await {
        if entry.unwrap().key == name {
            return true;
        }
    }
    false
}

/// The life is over, here and now.
async fn end(scene: &Scene, end: End) -> Checked {
    scene.world.borrow_mut().end(end);
    std::future::pending().await
}

#[test]
fn a_sync_keeps_what_was_written_before_it() {
    for chance in 0..20 {
        let mut seed = seed(chance);
        live(&mut seed, None, CUT, false, async |scene| {
            for key in 0..KEYS {
                put(&scene, key, 100, Durability::Buffered).await?;
            }
            scene.sync(&mut Rng::new(1)).await
        });
        live(&mut seed, None, CUT, false, look);
    }
}

/// Whoever is told that there is nothing to delete is told so when the delete before is durable.
#[test]
fn nobody_hears_of_a_delete_that_can_still_be_taken_back() {
    let told = Rc::new(Cell::new(0));
    for chance in 0..20 {
        let mut seed = seed(chance);
        live(&mut seed, None, CUT, false, async |scene| {
            put(&scene, 2, 100, Durability::Sync).await
        });
        live(&mut seed, None, CUT, false, async |scene| {
            let first = Rc::clone(&scene);
            drop(rt::spawn(async move { first.delete(&mut Rng::new(1), 2).await }));
            let name = scene.model.borrow().keys[2].name.clone();
            // It is staged by then, and not acknowledged.
            rt::yield_now().await;
            assert!(!scene.store.delete(&name).await.unwrap());
            end(&scene, End::PowerCut).await
        });
        live(&mut seed, None, LEFT, false, async |scene| {
            assert!(!has(&scene, 2).await, "it was said to be gone");
            told.set(told.get() + 1);
            Ok(())
        });
    }
    assert_eq!(told.get(), 20);
}

#[test]
fn what_was_said_to_have_expired_stays_away_though_the_clock_is_set_back() {
    for (chance, scans) in (0..20).flat_map(|chance| [(chance, false), (chance, true)]) {
        let mut seed = seed(chance);
        live(&mut seed, None, CUT, false, async |scene| {
            let (expiry, rng) = (scene.wall() + 50, &mut Rng::new(1));
            let always = Condition::Always;
            scene.put_so(rng, EXPIRES, 100, Durability::Sync, expiry, always).await?;
            drop(rt::timeout(Duration::from_millis(100)).await);
            if scans {
                assert!(!is_scanned(&scene, EXPIRES).await);
            } else {
                assert!(!has(&scene, EXPIRES).await);
            }
            end(&scene, End::PowerCut).await
        });
        {
            let world = &mut *seed.world.borrow_mut();
            world.wall -= 10_000;
            world.wall_sets += 1;
        }
        live(&mut seed, None, LEFT, false, async |scene| {
            assert!(!has(&scene, EXPIRES).await, "it was said to have expired");
            Ok(())
        });
    }
}

/// Also if the write that had it is lost, with all of its segment that nobody had to sync, and the
/// next opening changes nothing.
#[test]
fn no_version_that_was_told_is_given_again() {
    for (chance, no_journals) in (0..20).flat_map(|chance| [(chance, false), (chance, true)]) {
        let mut seed = seed(chance);
        seed.world.borrow_mut().no_journals = no_journals;
        let told = Rc::new(Cell::new(0));
        let version = async |scene: &Scene, key: usize| {
            let name = scene.model.borrow().keys[key].name.clone();
            scene.store.get_entry(&name).await.unwrap().unwrap().version
        };
        let tells = Rc::clone(&told);
        live(&mut seed, None, CUT, false, async move |scene| {
            if chance % 2 == 0 {
                put(&scene, 0, 100, Durability::Sync).await?;
            }
            for _ in 0..10 {
                put(&scene, 1, 100, Durability::Buffered).await?;
            }
            tells.set(version(&scene, 1).await);
            end(&scene, End::PowerCut).await
        });
        for _ in 0..2 {
            live(&mut seed, None, LEFT, false, async |_| Ok(()));
        }
        live(&mut seed, None, LEFT, false, async |scene| {
            put(&scene, 1, 100, Durability::Sync).await?;
            let next = version(&scene, 1).await;
            assert!(next > told.get(), "{next} was told, and so was {}", told.get());
            Ok(())
        });
    }
}

/// A merge makes a tombstone of what has expired. What a read was told meanwhile holds, also if the
/// tombstone is lost.
#[test]
fn what_a_merge_found_expired_stays_away_though_the_clock_is_set_back() {
    let mut told = 0;
    for chance in 0..90 {
        let mut seed = seed(chance);
        let answered = Rc::new(Cell::new(false));
        let tells = Rc::clone(&answered);
        live(&mut seed, None, CUT, false, async move |scene| {
            let (expiry, rng) = (scene.wall() + 5000, &mut Rng::new(1));
            let always = Condition::Always;
            scene.put_so(rng, EXPIRES, 100, Durability::Sync, expiry, always).await?;
            // Just so many that the next one makes merges begin, and no segment end.
            for _ in 0..chance % 30 {
                put(&scene, 0, 12_000, Durability::Buffered).await?;
            }
            let left = (expiry + 1).saturating_sub(scene.wall());
            drop(rt::timeout(Duration::from_millis(left)).await);
            put(&scene, 0, 12_000, Durability::Buffered).await?;
            // Each time before another sync is done.
            for _ in 0..=chance / 30 {
                for during in [true, false] {
                    let mut turns = 0;
                    while syncs_next(&scene) == during && turns < 1000 {
                        turns += 1;
                        rt::yield_now().await;
                    }
                }
            }
            tells.set(!has(&scene, EXPIRES).await);
            end(&scene, End::PowerCut).await
        });
        {
            let world = &mut *seed.world.borrow_mut();
            world.wall -= 10_000;
            world.wall_sets += 1;
        }
        told += u64::from(answered.get());
        live(&mut seed, None, LEFT, false, async |scene| {
            assert!(!answered.get() || !has(&scene, EXPIRES).await, "it was said to have expired");
            Ok(())
        });
    }
    assert!(told > 60, "it was looked for {told} times");
}

/// Each opening hands on how late it had been, and the next knows it from there.
#[test]
fn what_has_expired_stays_away_through_openings_with_the_clock_ever_further_back() {
    for chance in 0..10 {
        let mut seed = seed(chance);
        live(&mut seed, None, LEFT, false, async |scene| {
            let (expiry, rng) = (scene.wall() + 50, &mut Rng::new(1));
            let always = Condition::Always;
            scene.put_so(rng, EXPIRES, 100, Durability::Sync, expiry, always).await?;
            drop(rt::timeout(Duration::from_millis(100)).await);
            assert!(!has(&scene, EXPIRES).await);
            Ok(())
        });
        for opening in 0..4 {
            {
                let world = &mut *seed.world.borrow_mut();
                world.wall -= 10_000;
                world.wall_sets += 1;
            }
            let how = if opening % 2 == 0 { LEFT } else { CUT };
            live(&mut seed, None, how, false, async |scene| {
                assert!(!has(&scene, EXPIRES).await, "it is back after opening {opening}");
                if opening == 2 {
                    put(&scene, 2, 100, Durability::Sync).await?;
                }
                Ok(())
            });
        }
    }
}

/// Whenever the making of a store is cut short, the next opening relies on nothing that can still
/// go.
#[test]
fn a_store_whose_making_was_killed_keeps_what_is_written_after() {
    let mut over = false;
    for at in 0..120 {
        let mut seed = seed(at);
        over = live(&mut seed, Some(at), LEFT, false, look);
        live(&mut seed, None, CUT, false, async |scene| {
            put(&scene, 2, 100, Durability::Sync).await
        });
        live(&mut seed, None, LEFT, false, look);
    }
    assert!(over, "it goes on after the last turn");
}

/// A seal is never there without what it seals. The power is cut while one of the syncs is under way
/// that a rotation takes, and of what was written since the last any part may stay.
#[test]
fn a_rotation_that_is_cut_short_leaves_no_damage() {
    for (chance, syncs) in (0..40).flat_map(|chance| [1, 2, 3].map(|syncs| (chance, syncs))) {
        let mut seed = seed(chance);
        live(&mut seed, None, (End::PowerCut, Crash::Picks), false, async |scene| {
            let writes = Rc::clone(&scene);
            let writing = rt::spawn(async move {
                for key in [2, 3, 2, 3, 2] {
                    put(&writes, key, 15_000, Durability::Buffered).await?;
                }
                Checked::Ok(())
            });
            let (mut seen, mut was) = (0, false);
            while !writing.is_finished() && seen < syncs {
                let is = syncs_next(&scene);
                seen += u64::from(is && !was);
                was = is;
                rt::yield_now().await;
            }
            end(&scene, End::PowerCut).await
        });
        live(&mut seed, None, CUT, false, look);
    }
}

/// After a sync that failed a page cache may have what the device has not.
#[test]
fn nothing_is_believed_that_only_a_cache_has() {
    for chance in 0..40 {
        let mut seed = seed(chance);
        seed.world.borrow_mut().direct = Direct::Unknown;
        live(&mut seed, None, LEFT, true, async |scene| {
            put(&scene, 2, 100, Durability::Sync).await?;
            {
                let faults = &mut scene.world.borrow_mut().faults;
                faults.only(Fault::SyncError, 1);
                faults.on = true;
            }
            put(&scene, 3, 3_000, Durability::Sync).await?;
            end(&scene, End::Kill).await
        });
        // What is found now was shown, and stays.
        live(&mut seed, None, CUT, false, look);
        live(&mut seed, None, LEFT, false, look);
    }
}

/// What a killed process has left in a page cache is synced before an opening vouches for it.
#[test]
fn an_opening_that_is_cut_short_vouches_for_nothing_that_only_a_cache_has() {
    let mut over = false;
    for at in 0..600 {
        let mut seed = seed(at);
        seed.world.borrow_mut().direct = Direct::Unknown;
        live(&mut seed, None, LEFT, false, async |scene| {
            for key in [2, 3, 2, 3, 2, 3, 2, 3] {
                put(&scene, key, 5_000, Durability::Buffered).await?;
            }
            end(&scene, End::Kill).await
        });
        over = live(&mut seed, Some(at), (End::PowerCut, Crash::Picks), false, look);
        // It would be damage, below what is said to be durable.
        live(&mut seed, None, LEFT, false, look);
    }
    assert!(over, "it goes on after the last turn");
}

/// Between a merge's look at a key and its copy nothing may come: the old value would end up behind
/// the new one, where the next opening believes it.
#[test]
fn what_is_written_while_a_merge_comes_by_is_what_stays() {
    const MANY: usize = 12;
    for delay in 0..400 {
        let mut seed = seed_of(delay, MANY);
        seed.world.borrow_mut().no_journals = true;
        live(&mut seed, None, LEFT, false, async |scene| {
            // With garbage that is worth a merge.
            for key in (0..MANY).chain([0; 10]) {
                put(&scene, key, 2000, Durability::Buffered).await?;
            }
            Ok(())
        });
        live(&mut seed, None, LEFT, false, async |scene| {
            let writers: Vec<_> = (0..MANY)
                .map(|key| {
                    let scene = Rc::clone(&scene);
                    rt::spawn(async move {
                        // As a merge goes, if it rests at each key.
                        for _ in 0..delay + key as u64 {
                            rt::yield_now().await;
                        }
                        put(&scene, key, 2000, Durability::Buffered).await
                    })
                })
                .collect();
            scene.compact(&mut Rng::new(1)).await?;
            for writer in writers {
                writer.await.map_err(|error| format!("{error:?}"))??;
            }
            Ok(())
        });
        live(&mut seed, None, LEFT, false, look);
    }
}

/// A read opens the file late, and by then a merge has removed it.
#[test]
fn a_read_whose_file_is_gone_finds_its_value_where_it_is_now() {
    const MANY: usize = 40;
    for chance in 0..10 {
        let mut seed = seed_of(chance, MANY);
        live(&mut seed, None, LEFT, false, async |scene| {
            for key in 0..MANY {
                put(&scene, key, 20_000, Durability::Buffered).await?;
            }
            Ok(())
        });
        live(&mut seed, None, LEFT, true, async |scene| {
            let faults = |kind, on| {
                let faults = &mut scene.world.borrow_mut().faults;
                faults.only(kind, 1);
                faults.on = on;
            };
            // Without a descriptor for the next segment, those of all others are given back.
            faults(Fault::NoFiles, true);
            for _ in 0..5 {
                put(&scene, 0, 20_000, Durability::Buffered).await?;
            }
            drop(rt::timeout(Duration::from_millis(50)).await);
            faults(Fault::NoFiles, false);
            for key in (0..MANY).step_by(3) {
                put(&scene, key, 20_000, Durability::Buffered).await?;
            }
            faults(Fault::Late, true);
            let reads: Vec<_> = (0..MANY)
                .map(|key| {
                    let scene = Rc::clone(&scene);
                    rt::spawn(async move { has(&scene, key).await })
                })
                .collect();
            for _ in 0..5 {
                rt::yield_now().await; // they are under way
            }
            faults(Fault::Late, false);
            scene.compact(&mut Rng::new(1)).await?;
            for read in reads {
                assert!(read.await.map_err(|error| format!("{error:?}"))?);
            }
            assert!(scene.world.borrow().missed > 0, "no read came too late");
            Ok(())
        });
    }
}

/// Whether the next sync is one of a segment of the store.
pub fn syncs_next(scene: &Scene) -> bool {
    let world = scene.world.borrow();
    let synced = world.in_flight.values().find_map(|job| match job.request {
        Request::Fsync { fd, .. } => Some(world.files[&fd].ino),
        _ => None,
    });
    let own = |path: &str| path.starts_with(DIR) && is_segment(path);
    let files = world.disk.files();
    files.iter().any(|(path, ino)| Some(*ino) == synced && own(path))
}

/// What was acknowledged without a sync is copied from a cache, or from what a sync that fails has
/// left of it.
#[test]
fn a_backup_is_not_said_to_be_whole_if_what_it_copies_is_lost_meanwhile() {
    let (mut made, mut not_begun, mut refused) = (0, 0, 0);
    for chance in 0..150 {
        let mut seed = seed(chance);
        seed.world.borrow_mut().direct = Direct::Align { memory: 512, offset: 512 };
        live(&mut seed, None, LEFT, true, async |scene| {
            for key in 0..KEYS {
                put(&scene, key, 4_000, Durability::Buffered).await?;
            }
            let copies = Rc::clone(&scene);
            let copying = rt::spawn(async move { copies.back_up(&mut Rng::new(1)).await });
            drop(rt::timeout(Duration::from_micros(20 * chance)).await);
            let (syncs, synced) = (Rc::clone(&scene), Rc::new(Cell::new(false)));
            let over = Rc::clone(&synced);
            let syncing = rt::spawn(async move {
                let outcome = syncs.sync(&mut Rng::new(1)).await;
                over.set(true);
                outcome
            });
            // This one fails, and none of the copy's.
            scene.world.borrow_mut().faults.only(Fault::SyncError, 1);
            while scene.world.borrow().dropped.is_empty() && !synced.get() {
                let next = syncs_next(&scene);
                scene.world.borrow_mut().faults.on = next;
                rt::yield_now().await;
            }
            scene.world.borrow_mut().faults.on = false;
            syncing.await.map_err(|error| format!("{error:?}"))??;
            copying.await.map_err(|error| format!("{error:?}"))??;
            end(&scene, End::Kill).await
        });
        let is_made = seed.copied.borrow().as_ref().is_some_and(Copied::is_made);
        let files = seed.world.borrow().disk.files();
        let of_copy = |path: &str| path.starts_with("/sim/copy") && is_segment(path);
        let segments = files.iter().filter(|(path, _)| of_copy(path)).count();
        // The one that goes on is made first; when there is the other, it is being copied.
        match (is_made, segments) {
            (true, _) => made += 1,
            (false, 2..) => refused += 1,
            (false, _) => not_begun += 1,
        }
        seed.check_copy().unwrap_or_else(|why| panic!("{chance}: {why}"));
    }
    assert!(made > 20 && not_begun > 20 && refused > 20, "{made}, {not_begun}, {refused}");
}

/// A mark comes with the group behind it, and of that a part may be there: it does not speak for
/// what only the journal has.
#[test]
fn of_a_group_that_a_kill_tears_the_journal_has_the_rest() {
    for chance in 0..100 {
        let mut seed = seed(chance);
        seed.world.borrow_mut().sound_journals = true;
        live(&mut seed, None, LEFT, false, async |scene| {
            put(&scene, 0, 100, Durability::Buffered).await?;
            // The journal is being made.
            drop(rt::timeout(Duration::from_millis(100)).await);
            for key in 1..EXPIRES {
                put(&scene, key, 1_500, Durability::Buffered).await?;
            }
            while !writes_next(&scene) {
                drop(rt::timeout(Duration::from_micros(10)).await);
            }
            end(&scene, End::Kill).await
        });
        live(&mut seed, None, LEFT, false, look);
    }
}

/// Whether a write of more than a block is under way: a group's.
fn writes_next(scene: &Scene) -> bool {
    let world = scene.world.borrow();
    let writes = |job: &Job| matches!(job.request, Request::Write { len, .. } if len > 4096);
    world.in_flight.values().any(writes)
}

/// But for a few at the end of each segment and the beginning of the next, also where more of it has
/// to be prepared.
#[test]
fn nearly_all_writes_that_nobody_has_synced_are_promised() {
    const PUTS: u64 = 4000;
    for chance in 0..5 {
        let mut seed = seed_of(chance, 1);
        (seed.segment_bytes, seed.durability) = (4 << 20, Durability::Buffered);
        seed.world.borrow_mut().sound_journals = true;
        live(&mut seed, None, LEFT, false, async |scene: Rc<Scene>| {
            // (These keys are no matter to the model: nobody looks again.)
            for n in 0..PUTS {
                let put = scene.store.put(n.to_be_bytes(), vec![1; 4000]);
                put.await.map_err(|error| format!("{error:?}"))?;
                // No faster than the disk.
                drop(rt::timeout(Duration::from_millis(1)).await);
            }
            let stats = scene.store.stats().await.map_err(|error| format!("{error:?}"))?.total();
            let (waited, segments) = (PUTS - stats.promised, stats.segments);
            assert!(segments > 3 && waited <= 2 * segments, "{waited}, in {segments} segments");
            scene.world.borrow_mut().end(End::Kill);
            std::future::pending().await
        });
    }
}
