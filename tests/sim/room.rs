//! Room that runs out half-way, is refused, or comes back.

use crate::edges::{CUT, DIRECT, KILL, LARGE, live, look, put, seed};
use crate::merging::while_merges_fail;
use crate::sim::clients::{Checked, Scene};
use crate::sim::disk::Node;
use crate::sim::life::DIR;
use crate::sim::perform::is_segment;
use crate::sim::world::End;
use ringlog::{Durability, Error, rt};
use std::rc::Rc;
use std::time::Duration;

async fn rest() {
    drop(rt::timeout(Duration::from_millis(500)).await);
}

/// A key that is no matter to the model, and whose tombstone takes room.
fn long_key(n: u32) -> Vec<u8> {
    [&n.to_be_bytes()[..], &[0; 1000]].concat()
}

/// Nobody looks again.
pub async fn leave(scene: &Scene) -> Checked {
    scene.world.borrow_mut().end(End::Kill);
    std::future::pending().await
}

/// Fills the disk, and deletes until that is refused, while no merge can read what it is to copy. Tells
/// how many keys are deleted.
async fn exhaust(scene: &Rc<Scene>) -> Result<u32, String> {
    rest().await;
    {
        let disk = &mut scene.world.borrow_mut().disk;
        disk.capacity = disk.used() + (1200 << 10);
    }
    let mut many = 0;
    while scene.store.put(long_key(many), "").await.is_ok() {
        many += 1;
    }
    rest().await;
    scene.world.borrow_mut().disk.capacity = 0;
    let mut deleted = 0;
    let deletes = async {
        loop {
            match scene.store.delete(long_key(deleted)).await {
                Ok(there) => assert!(there, "{deleted} of {many}"),
                Err(Error::Full { .. }) => return Ok(()),
                Err(error) => return Err(format!("{error:?}")),
            }
            deleted += 1;
        }
    };
    while_merges_fail(scene, deletes).await?;
    assert!(deleted > 30 && deleted < many, "{deleted} of {many} deletes");
    Ok(deleted)
}

/// A merge that finds no room, or cannot read, makes none. A delete that waits for it hears so in the end.
#[test]
fn a_delete_is_refused_in_the_end_where_no_merge_makes_room() {
    for direct in DIRECT {
        let mut seed = seed(1, direct);
        seed.durability = Durability::Buffered;
        live(&mut seed, None, CUT, true, async |scene| {
            let deleted = exhaust(&scene).await?;
            // Again and again.
            let again = async {
                for _ in 0..20 {
                    let again = scene.store.delete(long_key(deleted)).await;
                    assert!(matches!(again, Err(Error::Full { .. })), "{direct:?}: {again:?}");
                }
                Ok(())
            };
            while_merges_fail(&scene, again).await?;
            leave(&scene).await
        });
    }
}

/// There is room for one segment and not for two: the one is used.
#[test]
fn a_spare_that_could_be_made_is_used_though_the_next_could_not() {
    for direct in DIRECT {
        let mut seed = seed(1, direct);
        seed.durability = Durability::Buffered;
        live(&mut seed, None, CUT, true, async |scene| {
            let deleted = exhaust(&scene).await?;
            {
                let disk = &mut scene.world.borrow_mut().disk;
                disk.capacity = disk.used() + (68 << 10);
            }
            let there = scene.store.delete(long_key(deleted)).await;
            assert!(matches!(there, Ok(true)), "{direct:?}: {there:?}");
            leave(&scene).await
        });
    }
}

/// A merge has begun with room for its copy, and somebody else takes that half-way. What it has written
/// by then is not seen yet; it is not written once more when there is room again.
#[test]
fn a_merge_that_was_cut_short_does_not_copy_again_what_it_has_copied() {
    const MANY: u32 = 1200;
    for direct in DIRECT {
        let mut seed = seed(1, direct);
        (seed.segment_bytes, seed.durability) = (8 << 20, Durability::Buffered);
        // Little enough that nothing is prepared ahead, which would do for the copy.
        seed.world.borrow_mut().disk.capacity = 60 << 20;
        live(&mut seed, None, CUT, true, async |scene| {
            let failed = |error: Error| format!("{error:?}");
            let stats = async || scene.store.stats().await.unwrap().total();
            for n in 0..MANY {
                scene.store.put(n.to_be_bytes(), vec![1; 4000]).await.map_err(failed)?;
            }
            let delete = |n: u32| rt::spawn(scene.store.delete(n.to_be_bytes()));
            for deleting in (0..MANY).filter(|n| n % 8 > 2).map(delete).collect::<Vec<_>>() {
                let deleted = deleting.await.map_err(|error| format!("{error:?}"))?;
                assert!(deleted.map_err(failed)?);
            }
            let live = stats().await.live_bytes;
            while stats().await.bytes_merged == 0 {
                rt::yield_now().await;
            }
            scene.world.borrow_mut().disk.capacity = 0;
            rest().await;
            let half = stats().await;
            assert_eq!(half.merges, 0, "{direct:?}: it was not cut short");
            scene.world.borrow_mut().disk.capacity = u64::MAX;
            let half = half.bytes_merged;
            // What is free is asked when a segment is made.
            let mut more = 0;
            while stats().await.bytes_merged == half {
                assert!(more < 4 * MANY, "{direct:?}: it did not begin again");
                scene.store.put("again", vec![1; 4000]).await.map_err(failed)?;
                more += 1;
            }
            rest().await;
            let all = stats().await.bytes_merged;
            assert!(all < live, "{direct:?}: {all}, of which {half} before, of {live}");
            leave(&scene).await
        });
    }
}

/// What was prepared of a segment and not used is given back when it is sealed, and no sync covers that:
/// a power cut may take it back, though not the hint, which says that all is done.
#[test]
fn room_that_a_power_cut_has_given_back_to_a_sealed_segment_is_taken_again() {
    for direct in DIRECT {
        let mut seed = seed(1, direct);
        live(&mut seed, None, KILL, false, async |scene| {
            for key in 0..8 {
                put(&scene, key, LARGE, Durability::Sync).await?;
            }
            rest().await;
            Ok(())
        });
        let world = Rc::clone(&seed.world);
        let first = || {
            let disk = &world.borrow().disk;
            let mut files = disk.files().into_iter();
            let first = files.find(|(path, _)| path.starts_with(DIR) && is_segment(path));
            let (_, ino) = first.unwrap();
            let Node::File(content) = disk.node(ino) else { panic!("it is a file") };
            (ino, content.len)
        };
        let (ino, len) = first();
        world.borrow_mut().disk.file(ino).unwrap().write(len, &[0; 8192], 0);
        assert_eq!(first(), (ino, len + 8192));
        look(&mut seed);
        assert_eq!(first(), (ino, len), "{direct:?}");
    }
}
