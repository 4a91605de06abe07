//! Rot: single bits of a store that was closed change on the disk. It is refused, or what it answers
//! is right, or a typed error. The disk is as before afterwards.

use super::clients::Scene;
use super::disk::Node;
use super::driver::SimDriver;
use super::faults::Fault;
use super::life::{DIR, Seed, until_end};
use super::rng::Rng;
use super::world::World;
use ringlog::rt::Executor;
use ringlog::{Error, Store};
use std::rc::Rc;

/// Changes a bit of a file that has any; says where.
fn flip(world: &mut World, rng: &mut Rng) -> String {
    let mut files = world.disk.files();
    files.retain(|(_, ino)| matches!(world.disk.node(*ino), Node::File(c) if !c.live().is_empty()));
    let (path, ino) = files.swap_remove(rng.index(files.len()));
    let content = world.disk.file(ino).unwrap();
    // Most of a file may be zeroes that were prepared: look for something else, but not for ever.
    let mut offset = 0;
    for _ in 0..20 {
        offset = rng.index(content.live().len());
        if content.live()[offset] != 0 {
            break;
        }
    }
    content.rot(offset as u64, 1 << rng.below(8));
    world.faults.note(Fault::BitFlip);
    format!("a bit of {path} at {offset}")
}

impl Seed {
    /// Opens the store with one bit changed.
    pub fn rot(&mut self) -> Result<(), String> {
        let disk = self.world.borrow().disk.clone();
        let model = self.model.borrow().clone();
        let (place, before) = {
            let world = &mut *self.world.borrow_mut();
            world.begin_life(None);
            (flip(world, &mut self.rng), world.mutations)
        };
        let executor = Executor::with_driver(SimDriver::boxed(&self.world));
        let rotten = self.open_rotten(executor.handle(), before);
        let outcome = executor.block_on(until_end(&self.world, rotten));
        self.world.borrow_mut().end(super::world::End::Kill);
        drop(executor);
        self.world.borrow_mut().disk = disk;
        self.model.replace(model);
        if super::panics() > 0 {
            return Err(format!("{place}: the engine panicked"));
        }
        outcome.map(drop).map_err(|why| format!("{place}: {why}"))
    }

    fn open_rotten(
        &self,
        handle: ringlog::rt::Handle,
        before: u64,
    ) -> impl Future<Output = Result<super::life::Outcome, String>> + use<> {
        let (world, model) = (Rc::clone(&self.world), Rc::clone(&self.model));
        let builder = Store::builder(DIR).partitions(self.partitions).durability(self.durability);
        let builder = builder.segment_bytes(self.segment_bytes);
        let (durability, operations) = (self.durability, Rc::clone(&self.operations));
        async move {
            let store = match builder.open_on(&[handle]).await {
                Ok(store) => store,
                Err(Error::Corrupt { .. } | Error::FormatVersion { .. }) => {
                    let changed = world.borrow().mutations != before;
                    let why = "an opening that failed has changed something".to_owned();
                    return if changed { Err(why) } else { Ok(super::life::Outcome::Refused) };
                }
                Err(error) => return Err(format!("opening failed: {error:?}")),
            };
            let scene = Scene {
                world,
                model,
                store,
                durability,
                abandons: 0,
                bytes: 1,
                may_fail: false,
                may_be_corrupt: true,
                operations,
            };
            let mut rng = Rng::new(0);
            let mut damaged = false;
            let keys = scene.model.borrow().keys.len();
            for key in 0..keys {
                damaged |= scene.get(key).await?.is_none();
                scene.read(&mut rng, key).await?;
            }
            let report = scene.store.verify().await.map_err(|error| format!("{error:?}"))?;
            if damaged && report.is_sound() {
                return Err("a key cannot be read, and verify finds nothing".to_owned());
            }
            Ok(super::life::Outcome::Over)
        }
    }
}
