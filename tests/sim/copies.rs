//! Backups: made while clients write, and opened when the life that made them is over, by a crash or
//! not. A copy is a store, and shows a cut: what had been acknowledged when it began, and nothing
//! without what was acknowledged before it. What is done to it does nothing to its origin.

use super::branches::Branch;
use super::clients::{Checked, Condition, Scene};
use super::life::{Outcome, Seed, Way};
use super::model::{Clock, Model, Shown};
use super::rng::Rng;
use ringlog::Durability;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

/// A backup that was begun.
#[derive(Clone, Debug)]
pub struct Copied {
    dir: String,
    from: u64,
    /// When it was known to be over, and what was known then.
    over: Option<(u64, Model)>,
    /// It was acknowledged.
    made: bool,
}

impl Copied {
    /// Whether it was said to be whole.
    pub fn is_made(&self) -> bool {
        self.made
    }
}

impl Scene {
    /// Makes a backup, the first of this life.
    pub async fn back_up(&self, rng: &mut Rng) -> Checked {
        if self.copied.borrow().is_some() {
            return Ok(());
        }
        let from = self.model.borrow_mut().tick();
        let dir = format!("/sim/copy-{from}");
        let reply = self.store.backup(&dir);
        self.copied.replace(Some(Copied { dir, from, over: None, made: false }));
        match self.answer(rng, reply).await {
            Some(Ok(())) => {
                let over = {
                    let mut model = self.model.borrow_mut();
                    (model.tick(), model.clone())
                };
                if let Some(copied) = &mut *self.copied.borrow_mut() {
                    (copied.made, copied.over) = (true, Some(over));
                }
                Ok(())
            }
            None => Ok(()),
            Some(Err(error)) => self.judge(&error),
        }
    }

    /// Shows what there is of each key in a store that nobody writes to.
    pub async fn show_all(&self) -> Result<Vec<(Option<Shown>, Clock)>, String> {
        let keys = self.model.borrow().keys.len();
        let mut shown = Vec::with_capacity(keys);
        for key in 0..keys {
            let since = self.since();
            let there = self.get(key).await?;
            let there = there.ok_or_else(|| format!("key {key} cannot be read"))?;
            shown.push((there, self.clock(since)));
        }
        Ok(shown)
    }
}

impl Seed {
    /// The life is over: what is known of its backup by now.
    pub fn note_copy(&mut self, may_fail: bool) {
        if let Some(copied) = &mut *self.copied.borrow_mut() {
            let mut model = self.model.borrow_mut();
            let over = copied.over.get_or_insert_with(|| (model.tick(), model.clone()));
            if may_fail {
                over.1.doubt_expiries();
            }
        }
    }

    /// Opens the backup of the last life, if it is a store.
    pub fn check_copy(&mut self) -> Checked {
        let Some(Copied { dir, from, over, made }) = self.copied.take() else { return Ok(()) };
        let Some((to, model)) = over else { return Ok(()) };
        let whole = self.world.borrow().disk.find(&format!("{dir}/STORE")).is_ok();
        self.meet(match (made, whole) {
            (true, false) => return Err(format!("{dir} was acknowledged, and is no store")),
            (true, true) => Branch::Backup,
            (false, true) => Branch::BackupLate,
            (false, false) => Branch::BackupCut,
        });
        if whole {
            let model = Rc::new(RefCell::new(model));
            let way = Way { dir: &dir, salvage: false, model, may_be_corrupt: false, end_at: None };
            let outcome = self.beside(way, move |scene| async move {
                let shown = scene.show_all().await?;
                scene.model.borrow().check_cut(&shown, (from, to))?;
                scene.verify().await?;
                let ops: Vec<_> = shown.iter().map(|(shown, _)| shown.map(|s| s.op)).collect();
                check_scan(&scene, &ops).await?;
                // It is a store of its own.
                let mut rng = Rng::new(from);
                for key in 0..shown.len().min(20) {
                    let (sync, always) = (Durability::Sync, Condition::Always);
                    scene.put_so(&mut rng, key, 2000, sync, 0, always).await?;
                }
                scene.compact(&mut rng).await
            });
            match outcome {
                Ok(Outcome::Over) => {}
                other => return Err(format!("{dir}, from {from} to {to}: {other:?}")),
            }
        }
        self.world.borrow_mut().disk.remove(&dir);
        Ok(())
    }
}

/// A scan shows the same, but for what expires meanwhile.
pub async fn check_scan(scene: &Scene, shown: &[Option<u64>]) -> Checked {
    let mut scan = scene.store.scan();
    let mut there = BTreeMap::new();
    while let Some(entry) = scan.next().await {
        let entry = entry.map_err(|error| format!("a scan: {error:?}"))?;
        if there.insert(entry.key, entry.value).is_some() {
            return Err("a scan shows a key twice".to_owned());
        }
    }
    for (key, shown) in scene.model.borrow().keys.iter().zip(shown) {
        let value = there.remove(&key.name[..]);
        let op = value.map(|value| u64::from_le_bytes(value[..8].try_into().unwrap()));
        if op != *shown && !(key.expires && op.is_none()) {
            return Err(format!("a scan shows {op:?}, not {shown:?}, of {:?}", key.name));
        }
    }
    if there.is_empty() { Ok(()) } else { Err(format!("a scan shows {there:?}")) }
}
