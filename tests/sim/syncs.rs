//! Syncs besides those of groups: of folders that got or lost a name, and of copies. The power is
//! cut where one of them matters, and takes all that no sync has covered.

use crate::edges::{CUT, DIRECT, KEYS, KILL, LARGE, PICKS, cut, has, live, look, put, seed};
use crate::sim::clients::{Checked, Scene};
use crate::sim::content::Crash;
use crate::sim::disk::{Disk, Node};
use crate::sim::faults::Fault;
use crate::sim::life::{DIR, Outcome, Seed, Way};
use crate::sim::perform::is_segment;
use crate::sim::rng::Rng;
use crate::sim::world::{End, Job};
use ringlog::rt::driver::Request;
use ringlog::{Durability, rt};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

/// Opens what is in a directory beside the lives; a power cut, by `work` or after so many turns,
/// drops what was not synced.
#[track_caller]
fn open<F>(
    seed: &mut Seed,
    (dir, salvage): (&str, bool),
    end_at: Option<u64>,
    work: impl FnOnce(Rc<Scene>) -> F + 'static,
) -> Outcome
where
    F: Future<Output = Checked> + 'static,
{
    seed.world.borrow_mut().crash = Some(Crash::Drops);
    let (model, end_at) = (Rc::clone(&seed.model), end_at.map(|at| (at, End::PowerCut)));
    let way = Way { dir, salvage, model, may_be_corrupt: salvage, end_at };
    seed.beside(way, work).unwrap_or_else(|why| panic!("{dir}, {end_at:?}: {why}"))
}

/// It opens as always, and these keys are there.
#[track_caller]
fn assert_has(seed: &mut Seed, dir: &str, keys: std::ops::Range<usize>) {
    let outcome = open(seed, (dir, false), None, async move |scene| {
        for key in keys {
            if !has(&scene, key).await {
                return Err(format!("key {key} is gone"));
            }
        }
        scene.verify().await
    });
    assert!(matches!(outcome, Outcome::Over), "{dir}: {outcome:?}");
}

/// Nothing of it is in a cache alone.
fn settle(seed: &Seed) {
    seed.world.borrow_mut().disk.crash(Some(Crash::Keeps), &mut Rng::new(1));
}

/// The segments of the store, spares too, in order.
fn logs(disk: &Disk) -> Vec<String> {
    let files = disk.files().into_iter().map(|(path, _)| path);
    files.filter(|path| path.starts_with(DIR) && is_segment(path)).collect()
}

fn bytes(disk: &Disk, path: &str) -> Option<Vec<u8>> {
    match disk.node(disk.find(path).ok()?) {
        Node::File(content) => Some(content.bytes(0, content.len)),
        _ => None,
    }
}

fn harm(disk: &mut Disk, path: &str, at: u64) {
    let ino = disk.find(path).unwrap();
    let content = disk.file(ino).unwrap();
    let wrong: Vec<_> = content.bytes(at, 1).iter().map(|byte| byte ^ 1).collect();
    content.replace(at, &wrong);
}

/// The name is there, and no sync of its folder has covered it: a kill came between the two.
fn unsync_name(disk: &mut Disk, path: &str) {
    let aside = format!("{DIR}/aside");
    disk.link(path, &aside).unwrap();
    disk.remove(path);
    disk.link(&aside, path).unwrap();
    disk.remove(&aside);
}

async fn rest() {
    drop(rt::timeout(Duration::from_millis(50)).await);
}

/// The power is cut at each moment of a salvage: what is damaged is where it was, or there is a
/// copy of it, byte for byte. Once the store is open there is, and the other is gone for good.
#[test]
fn what_a_salvage_sets_aside_is_not_lost_then() {
    // Where nothing has to be copied from what is damaged, no other sync comes by.
    for (direct, sealed) in DIRECT.into_iter().flat_map(|direct| [(direct, true), (direct, false)])
    {
        let mut seed = seed(1, direct);
        live(&mut seed, None, KILL, false, async |scene| {
            for key in 0..9 {
                put(&scene, key, LARGE, Durability::Sync).await?;
            }
            rest().await; // two are made ahead
            Ok(())
        });
        settle(&seed);
        let (damaged, disk) = {
            let disk = &mut seed.world.borrow_mut().disk;
            let mut damaged = vec![(logs(disk).pop().unwrap(), 42)]; // the salt of the last spare
            if sealed {
                damaged.push((logs(disk).remove(0), 5_000)); // in the value of key 0
            }
            for (path, at) in &damaged {
                harm(disk, path, *at);
            }
            let damaged = damaged.into_iter().map(|(path, _)| (bytes(disk, &path), path));
            (damaged.collect::<Vec<_>>(), disk.clone())
        };
        let copy_of = |path: &str| {
            path.replace(&format!("{DIR}/p0000/"), &format!("{DIR}/quarantine/p0000-"))
        };
        let mut opened = false;
        for at in 0..2_000 {
            seed.world.borrow_mut().disk = disk.clone();
            open(&mut seed, (DIR, true), Some(at), async |scene| cut(&scene).await);
            opened = seed.world.borrow().steps < at;
            for (before, path) in &damaged {
                let disk = &seed.world.borrow().disk;
                let there = !opened && bytes(disk, path) == *before;
                let copied = bytes(disk, &copy_of(path)) == *before;
                assert!(there || copied, "{direct:?}, cut at {at}: {path} is lost");
            }
            if !opened {
                let again = open(&mut seed, (DIR, true), None, async |_| Ok(()));
                assert!(matches!(again, Outcome::Over), "cut at {at}, and then: {again:?}");
            }
            assert_has(&mut seed, DIR, usize::from(sealed)..9);
            if opened {
                break;
            }
        }
        assert!(opened, "it goes on after the last turn");
    }
}

/// The folder of a partition was gone: that which a salvage has made instead stays, with what was
/// acknowledged in it.
#[test]
fn a_folder_that_a_salvage_has_made_is_there_for_good() {
    for direct in DIRECT {
        let mut seed = seed(1, direct);
        live(&mut seed, None, KILL, false, async |scene| {
            put(&scene, 0, 100, Durability::Sync).await
        });
        settle(&seed);
        seed.world.borrow_mut().disk.remove(&format!("{DIR}/p0000"));
        open(&mut seed, (DIR, true), None, async |scene| {
            put(&scene, 1, 100, Durability::Sync).await?;
            cut(&scene).await
        });
        assert_has(&mut seed, DIR, 1..2);
    }
}

/// An opening comes upon segments whose names can still go, and is cut short at each moment: no
/// seal names one of them before it is there for good.
#[test]
fn a_seal_names_no_segment_whose_name_can_still_go() {
    for direct in DIRECT {
        let mut over = false;
        for at in 0..1_000 {
            let mut seed = seed(at, direct);
            live(&mut seed, None, KILL, false, async |scene| {
                put(&scene, 0, 100, Durability::Sync).await?;
                rest().await;
                Ok(())
            });
            settle(&seed);
            {
                let disk = &mut seed.world.borrow_mut().disk;
                let spares = logs(disk).split_off(1);
                assert_eq!(spares.len(), 2);
                for spare in spares {
                    unsync_name(disk, &spare);
                }
            }
            over = live(&mut seed, Some(at), CUT, false, async |_| Ok(()));
            look(&mut seed);
            if over {
                break;
            }
        }
        assert!(over, "it goes on after the last turn");
    }
}

/// The power is cut at each moment of a store's making, and keeps some names and not others: there
/// is a whole one then, or none.
#[test]
fn a_store_is_made_whole_or_not_at_all() {
    for at in 0..100 {
        for chance in 0..15 {
            let mut seed = seed(chance, DIRECT[1]);
            seed.partitions = 2;
            live(&mut seed, Some(at), PICKS, false, async |_| Ok(()));
            look(&mut seed);
        }
    }
}

/// The power is cut as soon as a backup is said to be done, whether its directory was there or had
/// to be made, with others: it opens, and has what was not durable in its origin, too.
#[test]
fn a_backup_is_durable_when_it_is_acknowledged() {
    const THERE: &str = "/sim/there";
    for (direct, dir) in DIRECT
        .into_iter()
        .flat_map(|direct| ["/sim/copy", THERE, "/sim/some/where/copy"].map(|dir| (direct, dir)))
    {
        for writes in [false, true] {
            let mut seed = seed(1, direct);
            live(&mut seed, None, KILL, false, async |scene| {
                for key in 0..7 {
                    put(&scene, key, LARGE, Durability::Buffered).await?;
                }
                Ok(())
            });
            let keys = if writes { 9 } else { 7 };
            live(&mut seed, None, CUT, false, async |scene| {
                for key in 7..keys {
                    put(&scene, key, 2_000, Durability::Buffered).await?;
                }
                if dir == THERE {
                    scene.world.borrow_mut().disk.make_dir(dir).unwrap();
                }
                let copied = scene.store.backup(dir).await;
                copied.map_err(|error| format!("{error:?}"))?;
                cut(&scene).await
            });
            assert_has(&mut seed, dir, 0..keys);
        }
    }
}

/// What a compaction has removed is not back after a power cut, to be removed once more.
#[test]
fn a_file_that_was_merged_away_is_gone_for_good() {
    for (chance, direct) in (0..10).flat_map(|chance| DIRECT.map(|direct| (chance, direct))) {
        let mut seed = seed(chance, direct);
        let left = Rc::new(RefCell::new(BTreeSet::new()));
        let there = Rc::clone(&left);
        live(&mut seed, None, CUT, false, async move |scene| {
            for key in (0..KEYS).chain([0; 10]) {
                put(&scene, key, 2000, Durability::Buffered).await?;
            }
            scene.compact(&mut Rng::new(1)).await?;
            assert!(scene.store.stats().await.unwrap().total().merges > 0, "nothing to merge");
            there.borrow_mut().extend(logs(&scene.world.borrow().disk));
            cut(&scene).await
        });
        let logs = logs(&seed.world.borrow().disk);
        let back: Vec<_> = logs.iter().filter(|path| !left.borrow().contains(*path)).collect();
        assert!(back.is_empty(), "{back:?} of {logs:?}");
        look(&mut seed);
    }
}

/// It gives its blocks back a piece at a time, and has no name by then: without its seal nothing would
/// say that a later segment was there.
#[test]
fn a_merged_file_keeps_its_end_as_long_as_it_may_have_a_name() {
    for (chance, direct) in (0..3).flat_map(|chance| DIRECT.map(|direct| (chance, direct))) {
        let mut seed = seed(chance, direct);
        seed.segment_bytes = 2 << 20;
        // The disk says so of any truncation.
        live(&mut seed, None, CUT, false, async move |scene| {
            for key in (0..KEYS).chain(0..KEYS) {
                put(&scene, key, 400_000, Durability::Buffered).await?;
            }
            scene.compact(&mut Rng::new(1)).await?;
            assert!(scene.store.stats().await.unwrap().total().merges > 0, "nothing to merge");
            cut(&scene).await
        });
        look(&mut seed);
    }
}

/// A merge removes its file while a spare gets its name: if the merge's sync of the folder fails, no
/// later one vouches for what had been changed by then. Whoever made the spare hears of no error, so
/// that must not be its name.
#[test]
fn a_sync_that_fails_takes_back_no_name_of_somebody_else() {
    let mut failed = 0;
    for chance in 0..60 {
        let mut seed = seed(chance, DIRECT[1]);
        seed.world.borrow_mut().no_journals = true;
        live(&mut seed, None, CUT, true, async |scene| {
            let rng = &mut Rng::new(chance);
            let writes = Rc::clone(&scene);
            let writing = rt::spawn(async move {
                for turn in 0..60 {
                    put(&writes, turn % KEYS, LARGE, Durability::Buffered).await?;
                }
                Checked::Ok(())
            });
            let (mut there, mut removed) = (logs(&scene.world.borrow().disk), false);
            let (mut seen, mut of_merges) = (BTreeSet::new(), BTreeSet::new());
            while !writing.is_finished() {
                {
                    let world = &mut *scene.world.borrow_mut();
                    let now = logs(&world.disk);
                    if now != there {
                        removed = there.iter().any(|path| !now.contains(path));
                        there = now;
                    }
                    // Syncs of folders take so long that they meet, and those of merges fail.
                    let folder = |job: &Job| match job.request {
                        Request::Fsync { fd, .. } => {
                            matches!(world.disk.node(world.files[&fd].ino), Node::Dir(_))
                        }
                        _ => false,
                    };
                    let is_new = |job: &Job| folder(job) && !seen.contains(&job.token);
                    let new = world.in_flight.iter().find(|(_, job)| is_new(job));
                    if let Some((key, job)) = new.map(|(key, job)| (*key, *job)) {
                        seen.insert(job.token);
                        if removed {
                            of_merges.insert(job.token);
                        }
                        world.in_flight.remove(&key);
                        world.in_flight.insert((world.now + 300_000, key.1), job);
                    }
                    let next = world.in_flight.values().next();
                    let fails =
                        next.is_some_and(|job| of_merges.contains(&job.token) && rng.one_in(2));
                    world.faults.only(Fault::SyncError, u64::from(fails));
                    world.faults.on = fails;
                }
                rt::yield_now().await;
            }
            {
                let faults = &mut scene.world.borrow_mut().faults;
                failed += faults.struck[Fault::SyncError as usize];
                faults.on = false;
            }
            writing.await.map_err(|error| format!("{error:?}"))??;
            // (A maker's own sync that fails is told to all who write.)
            drop(scene.store.sync().await);
            cut(&scene).await
        });
        look(&mut seed);
    }
    assert!(failed > 30, "{failed} syncs failed");
}
