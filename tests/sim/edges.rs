//! Edge cases that take a power cut, or a fault at one place, to be seen: for each of them a directed
//! life with the mistake's worst moment in it, or one for each moment. `tests/EDGE_CASES.md` names them.

use crate::sim::clients::{Checked, Condition, Scene};
use crate::sim::content::Crash;
use crate::sim::faults::Fault;
use crate::sim::life::{Plan, Seed};
use crate::sim::model::Model;
use crate::sim::perform::is_segment;
use crate::sim::rng::Rng;
use crate::sim::world::{Direct, End};
use ringlog::{Durability, Error, rt};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

pub const KEYS: usize = 12;
/// This one may expire.
pub const EXPIRES: usize = 4;
/// What fills a segment in three or four.
pub const LARGE: usize = 15_000;

pub const KILL: (End, Crash) = (End::Kill, Crash::Keeps);
pub const CUT: (End, Crash) = (End::PowerCut, Crash::Drops);
pub const PICKS: (End, Crash) = (End::PowerCut, Crash::Picks);

/// With a page cache, and without.
pub const DIRECT: [Direct; 2] = [Direct::Unknown, Direct::Align { memory: 512, offset: 512 }];

pub fn seed(chance: u64, direct: Direct) -> Seed {
    crate::sim::prepare();
    let mut seed = Seed::new(chance, false);
    let model = Model::new(KEYS);
    seed.world.borrow_mut().moment = Rc::clone(model.moment());
    seed.world.borrow_mut().direct = direct;
    seed.model = Rc::new(RefCell::new(model));
    (seed.partitions, seed.segment_bytes) = (1, 64 << 10);
    seed.cache_bytes = 0;
    seed.durability = Durability::Sync;
    seed
}

/// A life: the store is opened and checked, then comes `work`. It ends after so many turns of its
/// driver, or when its work is done. Tells whether it came to that.
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
    seed.world.borrow_mut().begin_life(end_at.map(|at| (at, end)));
    seed.world.borrow_mut().crash = Some(crash);
    let (calm, may_be_corrupt, closes) = (false, false, false);
    let plan = Plan { calm, end_at, end, may_fail, may_be_corrupt, closes };
    let lived = seed.pass(plan, |scene, _| work(scene));
    lived.unwrap_or_else(|why| panic!("{end_at:?}: {why}"));
    end_at.is_none_or(|at| seed.world.borrow().steps < at)
}

/// The store is opened, and what is there is checked.
#[track_caller]
pub fn look(seed: &mut Seed) {
    live(seed, None, KILL, false, async |_| Ok(()));
}

pub async fn put(scene: &Scene, key: usize, len: usize, durability: Durability) -> Checked {
    scene.put_so(&mut Rng::new(1), key, len, durability, 0, Condition::Always).await
}

pub async fn has(scene: &Scene, key: usize) -> bool {
    let name = scene.model.borrow().keys[key].name.clone();
    scene.store.get_entry(&name).await.unwrap().is_some()
}

/// The power is cut here and now.
pub async fn cut(scene: &Scene) -> Checked {
    scene.world.borrow_mut().end(End::PowerCut);
    std::future::pending().await
}

fn set_clock(seed: &Seed, by: i64) {
    let world = &mut *seed.world.borrow_mut();
    world.wall += by;
    world.wall_most = world.wall_most.max(world.wall);
    world.wall_sets += 1;
}

pub fn strike(scene: &Scene, fault: Fault, rate: u64) {
    let faults = &mut scene.world.borrow_mut().faults;
    faults.only(fault, rate);
    faults.on = rate > 0;
}

fn segments(seed: &Seed) -> usize {
    let files = seed.world.borrow().disk.files();
    files.iter().filter(|(path, _)| is_segment(path)).count()
}

/// Edge case 6. The power is cut at each moment of a merge: its victim is gone for good when all
/// that it held is elsewhere for good.
#[test]
fn a_merged_segment_goes_after_its_copies_are_durable() {
    for (direct, end) in [(DIRECT[0], CUT), (DIRECT[1], CUT), (DIRECT[1], PICKS)] {
        let mut over = false;
        for at in (0..).step_by(3).take_while(|at| *at < 1_500) {
            let mut seed = seed(at, direct);
            live(&mut seed, None, KILL, false, async |scene| {
                for key in (0..KEYS).chain([0; 10]) {
                    put(&scene, key, 2000, Durability::Buffered).await?;
                }
                scene.sync(&mut Rng::new(1)).await
            });
            over = live(&mut seed, Some(at), end, false, async |scene| {
                scene.compact(&mut Rng::new(1)).await
            });
            look(&mut seed);
            if over {
                assert!(seed.sum().merges > 0, "there was nothing to merge");
                break;
            }
        }
        assert!(over, "it goes on after the last turn");
    }
}

/// Edge case 7. The power is cut at each moment from the making of a store on, through rotations:
/// names that no directory's sync has covered are gone, and nothing that was acknowledged is.
#[test]
fn what_was_acknowledged_is_not_in_a_file_whose_name_can_still_go() {
    for direct in DIRECT {
        let mut over = false;
        for at in (0..).take_while(|at| *at < 1_000) {
            let mut seed = seed(at, direct);
            over = live(&mut seed, Some(at), CUT, false, async |scene| {
                for key in 0..9 {
                    put(&scene, key, LARGE, Durability::Sync).await?;
                }
                Ok(())
            });
            look(&mut seed);
            if over {
                assert!(segments(&seed) > 3, "it never went on to another segment");
                break;
            }
        }
        assert!(over, "it goes on after the last turn");
    }
}

/// Edge case 8. The first that is acknowledged as durable in a segment is so with all that was only
/// written to the one before.
#[test]
fn what_is_durable_in_a_new_segment_is_so_with_the_end_of_the_old_one() {
    for direct in DIRECT {
        let rotated = Rc::new(Cell::new(0));
        for before in 0..9 {
            let mut seed = seed(before, direct);
            live(&mut seed, None, CUT, false, async |scene| {
                for key in 0..before {
                    let key = usize::try_from(key).unwrap();
                    put(&scene, key, LARGE, Durability::Buffered).await?;
                }
                let segments = async || scene.store.stats().await.unwrap().total().segments;
                let there = segments().await;
                put(&scene, 10, LARGE, Durability::Sync).await?;
                rotated.set(rotated.get() + u64::from(segments().await > there));
                cut(&scene).await
            });
            live(&mut seed, None, KILL, false, async |scene| {
                for key in (0..before).chain([10]) {
                    let key = usize::try_from(key).unwrap();
                    assert!(has(&scene, key).await, "key {key} of {before} and one is gone");
                }
                Ok(())
            });
        }
        assert!(rotated.get() > 1, "none was the first of its segment");
    }
}

/// Edge case 9. The next sync of a file whose sync has failed tells nothing: it covers what was not
/// lost. So whoever waited for the first is refused, and so is everybody after.
#[test]
fn a_sync_that_failed_is_not_made_good_by_another() {
    for chance in 0..20 {
        let mut seed = seed(chance, Direct::Unknown);
        live(&mut seed, None, CUT, true, async |scene| {
            put(&scene, 0, 3_000, Durability::Sync).await?;
            drop(rt::timeout(Duration::from_millis(50)).await); // spares have been made
            strike(&scene, Fault::SyncError, 1);
            let first = Rc::clone(&scene);
            let first = rt::spawn(async move { first.store.put("first", "value").await });
            while scene.world.borrow().dropped.is_empty() {
                rt::yield_now().await;
            }
            strike(&scene, Fault::SyncError, 0); // only that one has failed
            let poisoned =
                |result: &ringlog::Result<()>| matches!(result, Err(Error::Poisoned { .. }));
            let first = first.await.map_err(|error| format!("{error:?}"))?;
            assert!(poisoned(&first), "it was told {first:?}");
            assert!(poisoned(&scene.store.sync().await), "a later sync says that all is well");
            for durability in [Durability::Sync, Durability::Buffered] {
                let options = ringlog::PutOptions::new().durability(durability);
                let put = scene.store.put_with("later", "value", options).await;
                assert!(poisoned(&put.map(drop)), "{durability:?}");
            }
            assert!(has(&scene, 0).await, "reads go on");
            Ok(())
        });
    }
}

/// Edge case 11. A sync covers what was done when it was asked for, and not what was only asked for:
/// the power is cut as soon as somebody hears that a write is durable.
#[test]
fn a_sync_is_asked_for_when_its_writes_are_done() {
    for (chance, direct) in (0..20).flat_map(|chance| DIRECT.map(|direct| (chance, direct))) {
        let mut seed = seed(chance, direct);
        live(&mut seed, None, CUT, false, async |scene| {
            // The next group has to be synced with this one, and takes more than one write's flag.
            put(&scene, 0, 3_000, Durability::Buffered).await?;
            let writers: Vec<_> = (1..KEYS)
                .map(|key| {
                    let scene = Rc::clone(&scene);
                    rt::spawn(async move {
                        put(&scene, key, 1_000, Durability::Sync).await?;
                        cut(&scene).await
                    })
                })
                .collect();
            for writer in writers {
                writer.await.map_err(|error| format!("{error:?}"))??;
            }
            Ok(())
        });
        look(&mut seed);
    }
}

/// Edge case 12. Half of all writes come short, those of groups, headers, seals and hints, and the
/// power is cut when all was acknowledged.
#[test]
fn a_write_that_comes_short_is_gone_on_with() {
    // Where only whole blocks can be written at once, it goes on with a whole one.
    let blocks = Direct::Align { memory: 512, offset: 4096 };
    let ways = [DIRECT[0], DIRECT[1], blocks];
    for (chance, direct) in (0..10).flat_map(|chance| ways.map(|direct| (chance, direct))) {
        let mut seed = seed(chance, direct);
        live(&mut seed, None, CUT, false, async |scene| {
            strike(&scene, Fault::ShortWrite, 2);
            for (key, len) in [100, 4_000, 5_000, LARGE, LARGE, 60_000, 100].into_iter().enumerate()
            {
                put(&scene, key, len, Durability::Sync).await?;
            }
            cut(&scene).await
        });
        assert!(seed.world.borrow().faults.struck[Fault::ShortWrite as usize] > 3);
        live(&mut seed, None, KILL, false, async |scene| {
            for key in 0..7 {
                assert!(has(&scene, key).await, "key {key}");
            }
            scene.verify().await
        });
    }
}

/// Edge case 33. Ten years on and twenty back: what was seen to have expired stays away, in this
/// life and the next ones, and what does not expire is as it was.
#[test]
fn a_clock_that_is_set_by_years_brings_nothing_back_and_takes_nothing() {
    const YEAR: i64 = 365 * 24 * 3600 * 1000;
    for (chance, end) in (0..10).flat_map(|chance| [(chance, KILL), (chance, CUT)]) {
        let mut seed = seed(chance, DIRECT[1]);
        set_clock(&seed, 30 * YEAR);
        live(&mut seed, None, end, false, async |scene| {
            let expiry = scene.wall() + u64::try_from(YEAR).unwrap();
            let (rng, always) = (&mut Rng::new(1), Condition::Always);
            scene.put_so(rng, EXPIRES, 100, Durability::Sync, expiry, always).await?;
            put(&scene, 2, 100, Durability::Sync).await?;
            assert!(has(&scene, EXPIRES).await, "it has a year to go");
            Ok(())
        });
        set_clock(&seed, 10 * YEAR);
        live(&mut seed, None, end, false, async |scene| {
            assert!(!has(&scene, EXPIRES).await, "it has expired nine years ago");
            Ok(())
        });
        for back in [0, 1, 2] {
            set_clock(&seed, -10 * YEAR);
            live(&mut seed, None, end, false, async |scene| {
                assert!(!has(&scene, EXPIRES).await, "it is back after {back} openings");
                assert!(has(&scene, 2).await, "this one does not expire");
                // Its version is judged by the model: it is higher than all before it.
                put(&scene, 2, 100, Durability::Sync).await
            });
        }
        // Within a life as well.
        let world = Rc::clone(&seed.world);
        live(&mut seed, None, end, false, async move |scene| {
            let expiry = scene.wall() + 50;
            let (rng, always) = (&mut Rng::new(1), Condition::Always);
            scene.put_so(rng, EXPIRES, 100, Durability::Sync, expiry, always).await?;
            assert!(!has(&scene, EXPIRES).await, "by the store's clock that is long ago");
            world.borrow_mut().wall -= YEAR;
            world.borrow_mut().wall_sets += 1;
            drop(rt::timeout(Duration::from_millis(1)).await);
            assert!(!has(&scene, EXPIRES).await, "nor does it come back");
            put(&scene, EXPIRES, 100, Durability::Sync).await?;
            assert!(has(&scene, EXPIRES).await, "a new one without an expiry is there");
            Ok(())
        });
        look(&mut seed);
    }
}
