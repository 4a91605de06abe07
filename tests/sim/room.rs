//! Room that runs out half-way, is refused, or comes back.

use crate::edges::{CUT, DIRECT, LARGE, live, look, put, seed};
use crate::merging::while_merges_fail;
use crate::sim::clients::{Checked, Scene};
use crate::sim::disk::Node;
use crate::sim::life::{DIR, Seed};
use crate::sim::perform::is_segment;
use crate::sim::world::End;
use ringlog::{Durability, Error, rt};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

async fn rest() {
    drop(rt::timeout(Duration::from_millis(50)).await);
}

/// A key that is no matter to the model, and whose tombstone takes room.
fn long_key(n: u32) -> Vec<u8> {
    [&n.to_be_bytes()[..], &[0; 1000]].concat()
}

/// Nobody looks again.
async fn leave(scene: &Scene) -> Checked {
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
        live(&mut seed, None, CUT, true, async |scene| {
            let failed = |error: Error| format!("{error:?}");
            let stats = async || scene.store.stats().await.unwrap().total();
            for n in 0..MANY {
                scene.store.put(n.to_be_bytes(), vec![1; 4000]).await.map_err(failed)?;
            }
            for n in (0..MANY).step_by(8) {
                scene.store.delete(n.to_be_bytes()).await.map_err(failed)?;
            }
            let before = stats().await;
            assert_eq!(before.merges, 0, "it was merged already");
            let live = before.live_bytes;
            let merging = rt::spawn(scene.store.compact());
            while stats().await.bytes_merged < live / 4 {
                rt::yield_now().await;
            }
            scene.world.borrow_mut().disk.capacity = 0;
            let merged = merging.await.map_err(|error| format!("{error:?}"))?;
            assert!(matches!(merged, Err(Error::Full { .. })), "{direct:?}: {merged:?}");
            let half = stats().await.bytes_merged;
            assert!(half < live / 10 * 9, "{direct:?}: {half} of {live}");
            scene.world.borrow_mut().disk.capacity = u64::MAX;
            scene.store.put("again", "").await.map_err(failed)?;
            scene.store.compact().await.map_err(failed)?;
            let all = stats().await.bytes_merged;
            assert!(all < live + live / 10, "{direct:?}: {all}, of which {half} before, of {live}");
            leave(&scene).await
        });
    }
}

/// The lengths of segments.
fn lens(seed: &Seed) -> BTreeMap<String, u64> {
    let disk = &seed.world.borrow().disk;
    let own =
        disk.files().into_iter().filter(|(path, _)| path.starts_with(DIR) && is_segment(path));
    let len = |(path, ino)| match disk.node(ino) {
        Node::File(content) => (path, content.len),
        _ => (path, 0),
    };
    own.map(len).collect()
}

/// What was prepared of a segment and not used is given back when it is sealed. No sync covers that.
#[test]
fn room_that_a_power_cut_has_given_back_to_a_sealed_segment_is_taken_again() {
    let mut longer = 0;
    for (chance, direct) in (0..10).flat_map(|chance| DIRECT.map(|direct| (chance, direct))) {
        let mut seed = seed(chance, direct);
        let mut trimmed = BTreeMap::new();
        live(&mut seed, None, CUT, false, async |scene| {
            for key in 0..8 {
                put(&scene, key, LARGE, Durability::Sync).await?;
            }
            rest().await;
            scene.world.borrow_mut().end(End::PowerCut);
            std::future::pending().await
        });
        let cut = lens(&seed);
        look(&mut seed);
        trimmed.extend(lens(&seed));
        let first = cut.keys().next().unwrap();
        longer += u64::from(trimmed[first] < cut[first]);
    }
    assert!(longer > 5, "{longer} times");
}
