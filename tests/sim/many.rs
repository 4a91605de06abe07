//! Many puts at a time: what is told of them when some are refused.

use crate::edges::{DIRECT, KILL, live, seed, strike};
use crate::late::open;
use crate::room::leave;
use crate::sim::clients::Scene;
use crate::sim::faults::Fault;
use ringlog::{Durability, Error, rt};
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

/// Three of them are a step.
const LEN: usize = 90_000;

fn struck(scene: &Scene, fault: Fault) -> u64 {
    scene.world.borrow().faults.struck[fault as usize]
}

/// Some of them are refused, for want of descriptors, and there is room again for those after them.
/// Whatever is told, it is of all of them.
#[test]
fn of_many_puts_none_is_forgotten_that_was_refused_while_others_had_room() {
    const MANY: u32 = 24;
    let refused = Rc::new(Cell::new(0));
    for direct in DIRECT {
        for strikes in 1..12 {
            let mut seed = seed(strikes, direct);
            let times = Rc::clone(&refused);
            seed.durability = Durability::Buffered;
            live(&mut seed, None, KILL, false, async |_| Ok(()));
            open(&mut seed, async move |scene| {
                let store = scene.store.clone();
                let puts = (0..MANY).map(|n| (n.to_be_bytes(), vec![1; LEN]));
                let many = rt::spawn(store.put_many(puts));
                strike(&scene, Fault::NoFiles, 1);
                let before = struck(&scene, Fault::NoFiles);
                while struck(&scene, Fault::NoFiles) < before + strikes && !many.is_finished() {
                    rt::yield_now().await;
                }
                strike(&scene, Fault::NoFiles, 0);
                let told = many.await.map_err(|error| format!("{error:?}"))?;
                let len = scene.store.len().await.map_err(|error| format!("{error:?}"))?;
                match told {
                    Ok(()) => assert_eq!(len, u64::from(MANY), "{strikes}"),
                    Err(Error::Full { .. }) => times.set(times.get() + 1),
                    Err(error) => return Err(format!("{error:?}")),
                }
                Ok(())
            });
        }
    }
    assert!(refused.get() > 3, "{}", refused.get());
}

/// One partition refuses its part at once, and the other one is long about its own: whoever hears of
/// the error writes over what he has put, and that stays.
#[test]
fn an_error_of_many_puts_is_told_when_none_is_on_its_way_any_more() {
    for direct in DIRECT {
        let mut seed = seed(1, direct);
        seed.partitions = 2;
        live(&mut seed, None, KILL, true, async |scene| {
            let of = |partition| {
                let model = scene.model.borrow();
                let key = model.keys.iter().find(|key| key.partition == partition);
                key.expect("there are keys of both").name.clone()
            };
            let (poisoned, sound) = (of(0), of(1));
            strike(&scene, Fault::SyncError, 1);
            let put = scene.store.put(&poisoned, "").await;
            assert!(matches!(put, Err(Error::Poisoned { .. })), "{put:?}");
            strike(&scene, Fault::SyncError, 0);
            let part = std::iter::repeat_n((&sound, vec![1; LEN]), 12);
            let puts = part.chain([(&poisoned, Vec::new())]);
            let told = scene.store.put_many(puts).await;
            assert!(matches!(told, Err(Error::Poisoned { .. })), "{told:?}");
            scene.store.put(&sound, "newer").await.map_err(|error| format!("{error:?}"))?;
            drop(rt::timeout(Duration::from_millis(500)).await);
            let value = scene.store.get(&sound).await.map_err(|error| format!("{error:?}"))?;
            assert_eq!(value.as_deref(), Some(&b"newer"[..]));
            leave(&scene).await
        });
    }
}
