//! Harm: a disk that breaks its promises, beside the lives: bits and sectors that change at rest,
//! writes that are lost or land elsewhere, files that are gone. The disk is as before afterwards.
//!
//! What may follow: the store is refused by name, and unchanged; or it opens, and shows what is
//! right, or a typed error. The end of a log may be missing only if nothing proves that it was there.
//! Then it is salvaged: what that keeps was really written, what is gone it reports, and what it
//! leaves is sound.

use super::branches::Branch;
use super::clients::{Checked, Scene};
use super::copies::check_scan;
use super::disk::{Ino, Node};
use super::faults::Fault;
use super::life::{DIR, Outcome, Plan, Seed, Way, busy, partition_of, secret};
use super::perform::partition_of_path;
use super::world::End;
use super::wounds::{Logs, Wound};
use ringlog::Error;
use std::cell::{Cell, RefCell};
use std::path::Path;
use std::rc::Rc;

/// What was done to a disk.
#[derive(Default)]
pub struct Harm {
    what: Vec<String>,
    /// A file that is gone, and whether something says that it was there.
    removed: Option<(String, bool)>,
    /// Where the logs cannot be missed, values are judged by themselves.
    beyond: bool,
    hidden: bool,
    /// Only caches are harmed.
    trifle: bool,
}

/// A salvage's outcome: the operation that each key shows.
type Kept = Rc<RefCell<Vec<Option<u64>>>>;

pub fn is_kind(path: &str, kind: &str) -> bool {
    path.rsplit_once('.').is_some_and(|(_, ending)| ending == kind)
}

impl Seed {
    /// Harms the disk in some way, and looks at what follows.
    pub fn harm(&mut self) -> Checked {
        self.harm_so(Self::harm_somehow)
    }

    /// The same, in that way.
    pub fn harm_so(&mut self, how: impl FnOnce(&mut Self, &mut Harm) -> Checked) -> Checked {
        if self.world.borrow().disk.find(&format!("{DIR}/STORE")).is_err() {
            return Ok(());
        }
        let (disk, model) = (self.world.borrow().disk.clone(), self.model.borrow().clone());
        let order = self.world.borrow().order.clone();
        let mut harm = Harm::default();
        let outcome = self.harmed(&mut harm, how);
        {
            let world = &mut *self.world.borrow_mut();
            (world.disk, world.order) = (disk, order);
            world.wounds.clear();
            world.dropped.clear();
        }
        self.model.replace(model);
        self.copied.take();
        outcome.map_err(|why| format!("{}: {why}", harm.what.join(", ")))
    }

    fn harmed(
        &mut self,
        harm: &mut Harm,
        how: impl FnOnce(&mut Self, &mut Harm) -> Checked,
    ) -> Checked {
        {
            let world = &mut *self.world.borrow_mut();
            world.wounds.clear();
            world.disk.forget_clean();
        }
        let (partitions, secret) = (self.partitions, secret(&self.world.borrow().disk, DIR));
        self.model.borrow_mut().assign(|key| partition_of(&secret, key, partitions));
        how(self, harm)?;
        self.allow(harm);
        if self.talks {
            println!("-- harm: {:?}, wounds {:?}", harm.what, self.world.borrow().wounds);
        }
        let refused = self.open_harmed(harm)?;
        if refused || self.rng.one_in(3) { self.salvage(harm) } else { Ok(()) }
    }

    fn harm_somehow(&mut self, harm: &mut Harm) -> Checked {
        match self.rng.below(8) {
            0..2 => self.rot(harm, Fault::BitFlip),
            2 => self.rot(harm, Fault::SectorGone),
            3..5 => self.remove(harm),
            5..7 => self.betray(harm, Fault::LostWrite)?,
            _ => self.betray(harm, Fault::Misdirected)?,
        }
        Ok(())
    }

    /// Something that is at rest changes, in a file that has any bytes.
    fn rot(&mut self, harm: &mut Harm, kind: Fault) {
        let world = &mut *self.world.borrow_mut();
        let mut files = world.disk.files();
        files.retain(|(_, ino)| matches!(world.disk.node(*ino), Node::File(c) if c.len > 0));
        if !self.rng.one_in(8) {
            files.retain(|(path, _)| !path.ends_with("STORE"));
        }
        for _ in 0..self.rng.pick(&[1, 1, 1, 3]) {
            let (path, ino) = &files[self.rng.index(files.len())];
            let content = world.disk.file(*ino).unwrap();
            // Most of a file may be zeroes that were prepared: look for something else, but not
            // for ever.
            let mut offset = 0;
            for _ in 0..20 {
                offset = self.rng.below(content.len);
                if content.bytes(offset, 1) != [0] {
                    break;
                }
            }
            let bytes = if kind == Fault::BitFlip {
                vec![content.bytes(offset, 1)[0] ^ 1 << self.rng.below(8)]
            } else {
                offset = offset / 512 * 512;
                let mut bytes = content.bytes(offset, 512);
                bytes.fill(0);
                if self.rng.one_in(2) {
                    self.rng.fill(&mut bytes);
                }
                bytes
            };
            world.wounds.extend(Wound::over(content, *ino, offset, &bytes));
            content.replace(offset, &bytes);
            world.faults.note(kind);
            harm.what.push(format!("{kind:?} in {path} at {offset}"));
        }
    }

    /// A file is removed, durably.
    fn remove(&mut self, harm: &mut Harm) {
        let world = &mut *self.world.borrow_mut();
        let mut files = world.disk.files();
        files.retain(|(path, _)| path.starts_with(DIR));
        let logs: Vec<_> = files.iter().filter(|(path, _)| is_kind(path, "log")).cloned().collect();
        let some = if self.rng.one_in(6) { files } else { logs };
        let (path, ino) = some[self.rng.index(some.len())].clone();
        let logs = Logs::read(&world.disk, DIR);
        let named = logs.is_named(ino);
        // There was no room, or no descriptor, when the seal before it was written: it names none.
        harm.beyond = logs.is_unnamed(ino);
        // Nothing says that there was a journal: what was promised is gone, as the end of a log.
        if let Some(partition) = partition_of_path(&path).filter(|_| path.ends_with("/journal"))
            && let Some(at) = world.order.promised_since(ino, 0, u64::MAX)
        {
            harm.hidden = true;
            harm.beyond |= !self.model.borrow_mut().loosen(partition, at);
        }
        world.disk.remove(&path);
        world.faults.note(Fault::FileGone);
        harm.what.push(format!("{path} removed"));
        harm.removed = Some((path, named));
    }

    /// A life in which the disk says that it has written what it has not.
    fn betray(&mut self, harm: &mut Harm, kind: Fault) -> Checked {
        let end = self.rng.pick(&[End::Kill, End::PowerCut]);
        let end_at = self.rng.pick(&[None, Some(600), Some(3000), Some(12_000)]);
        let end_at = end_at.map(|most| self.rng.below(most));
        {
            let world = &mut *self.world.borrow_mut();
            world.begin_life(end_at.map(|at| (at, end)));
            world.faults.only(kind, 1 << (2 + self.rng.below(7)));
            world.faults.on = true;
            world.brief = self.rng.one_in(2);
            world.disk.capacity = u64::MAX;
        }
        harm.what.push(format!("{kind:?}"));
        let closes = self.rng.one_in(2);
        let (calm, may_fail, may_be_corrupt) = (false, false, true);
        self.pass(Plan { calm, end_at, end, may_fail, may_be_corrupt, closes }, busy)
    }

    /// What nothing proves may be gone.
    fn allow(&self, harm: &mut Harm) {
        let world = &*self.world.borrow();
        let logs = Logs::read(&world.disk, DIR);
        let mut model = self.model.borrow_mut();
        harm.trifle = harm.removed.is_none();
        let files = world.disk.files();
        for wound in &world.wounds {
            let is_cache =
                |ino: Ino| files.iter().any(|(path, other)| *other == ino && is_kind(path, "hint"));
            harm.trifle &= is_cache(wound.ino);
            let path = files.iter().find(|(_, ino)| *ino == wound.ino).map(|(path, _)| path);
            if let Some(partition) =
                path.filter(|p| p.ends_with("/journal")).and_then(|p| partition_of_path(p))
                && let Some(at) = world.order.promised_since(wound.ino, wound.from, wound.to)
            {
                harm.hidden = true;
                harm.beyond |= !model.loosen(partition, at);
            }
            if let Some((partition, false)) = logs.judge(wound)
                && wound.at != u64::MAX
            {
                harm.hidden = true;
                let promised = world.order.since(wound.ino, wound.from).unwrap_or(wound.at);
                harm.beyond |= !model.loosen(partition, wound.at.min(promised));
            }
        }
    }

    /// Opens the harmed store as always. Tells whether it was refused.
    fn open_harmed(&mut self, harm: &Harm) -> Result<bool, String> {
        let model = Rc::clone(&self.model);
        let may_be_corrupt = harm.removed.is_none();
        let way = Way { dir: DIR, salvage: false, model, may_be_corrupt, end_at: None };
        let damaged = Rc::new(Cell::new(false));
        let (found, beyond, trifle) = (Rc::clone(&damaged), harm.beyond, harm.trifle);
        let outcome = self.beside(way, move |scene| async move {
            found.set(check_harmed(&scene, beyond).await?);
            if found.get() && trifle {
                return Err("a key cannot be read, and only caches are harmed".to_owned());
            }
            Ok(())
        });
        match outcome? {
            Outcome::Refused(Error::Corrupt { path, .. } | Error::FormatVersion { path, .. }) => {
                self.check_refused(harm, &path)?;
                Ok(true)
            }
            Outcome::Over => {
                self.meet(match harm {
                    Harm { beyond: true, removed: Some(_), .. } => Branch::Unnamed,
                    Harm { beyond: true, .. } => Branch::Beyond,
                    Harm { removed: Some(_), .. } => Branch::Unneeded,
                    _ if damaged.get() => Branch::Unread,
                    Harm { hidden: true, .. } => Branch::Hidden,
                    _ => Branch::Harmless,
                });
                Ok(false)
            }
            other => Err(format!("{other:?}")),
        }
    }

    fn check_refused(&self, harm: &Harm, path: &Path) -> Checked {
        match &harm.removed {
            Some((removed, named)) => {
                // All that spoke of it may have been merged away into it: then something else is
                // missing, which only it spoke of.
                let there = self.world.borrow().disk.find(path.to_str().unwrap()).is_ok();
                if there && !removed.ends_with("STORE") {
                    return Err(format!("{} is refused instead", path.display()));
                }
                self.meet(if *named { Branch::MissingNext } else { Branch::Missing });
            }
            None if harm.trifle => {
                return Err(format!("{} is refused, and only caches are harmed", path.display()));
            }
            None => self.meet(Branch::Refused),
        }
        Ok(())
    }

    /// Salvages the harmed store, and opens it again as always.
    fn salvage(&mut self, harm: &Harm) -> Checked {
        let way = |seed: &Self, salvage, end_at| {
            let model = Rc::clone(&seed.model);
            Way { dir: DIR, salvage, model, may_be_corrupt: false, end_at }
        };
        let cut = self.rng.one_in(3);
        if cut {
            let end = self.rng.pick(&[End::Kill, End::PowerCut]);
            let end_at = Some((self.rng.below(300), end));
            let first = self.beside(way(self, true, end_at), |_| async { Ok(()) })?;
            if let Outcome::Ended(_) = first {
                self.meet(Branch::SalvageCut);
            }
        }
        let kept = Kept::default();
        let (keep, met) = (Rc::clone(&kept), Rc::new(Cell::new(Branch::SalvageSound)));
        let (meet, unsure) = (Rc::clone(&met), cut || harm.beyond);
        let outcome = self.beside(way(self, true, None), move |scene| async move {
            meet.set(check_salvaged(&scene, unsure, &keep).await?);
            Ok(())
        })?;
        match outcome {
            Outcome::Over => {}
            Outcome::Refused(Error::Corrupt { path, .. })
                if path.ends_with("STORE")
                    || harm.removed.as_ref().is_some_and(|(path, _)| path.ends_with("STORE")) =>
            {
                self.meet(Branch::SalvageRefused);
                return Ok(());
            }
            Outcome::Refused(Error::FormatVersion { .. }) => {
                self.meet(Branch::SalvageRefused);
                return Ok(());
            }
            other => return Err(format!("a salvage: {other:?}")),
        }
        self.meet(met.get());
        if met.get() == Branch::Gone {
            self.meet(Branch::Salvaged);
        }
        let outcome = self.beside(way(self, false, None), move |scene| async move {
            let shown = scene.show_all().await?;
            for (key, (shown, _)) in shown.iter().enumerate() {
                let (now, then) = (shown.map(|shown| shown.op), kept.borrow()[key]);
                if now != then && !scene.model.borrow().keys[key].expires {
                    return Err(format!("key {key} had {then:?} when salvaged, now {now:?}"));
                }
            }
            scene.verify().await
        })?;
        match outcome {
            Outcome::Over => Ok(()),
            other => Err(format!("salvaged, and then: {other:?}")),
        }
    }
}

/// All that can be read is right. Tells whether there is something that cannot.
async fn check_harmed(scene: &Scene, beyond: bool) -> Result<bool, String> {
    let (mut damaged, mut all) = (false, Vec::new());
    let keys = scene.model.borrow().keys.len();
    for key in 0..keys {
        let since = scene.since();
        let shown = scene.get(key).await?;
        let clock = scene.clock(since);
        match shown {
            Some(shown) if !beyond => scene.model.borrow_mut().fix(key, shown, clock, false)?,
            Some(_) => {}
            None => damaged = true,
        }
        all.extend(shown.map(|shown| (key, shown)));
    }
    let report = scene.store.verify().await.map_err(|error| format!("{error:?}"))?;
    if damaged && report.is_sound() {
        return Err("a key cannot be read, and verify finds nothing".to_owned());
    }
    if !report.is_sound() && !scene.may_be_corrupt {
        return Err(format!("verify found {:?}", report.problems));
    }
    if !beyond {
        scene.model.borrow_mut().all_fixed()?;
        scene.check_prefix(&all)?;
        scene.scan().await?;
        if !damaged {
            scene.check_whole().await?;
        }
    }
    Ok(damaged)
}

/// What a salvage keeps was written, what is gone it reports, in the partition that it is gone
/// from, and what it leaves is sound.
async fn check_salvaged(scene: &Scene, unsure: bool, kept: &Kept) -> Result<Branch, String> {
    let report = scene.store.open_report();
    let damage: Vec<_> = report.partitions.iter().map(|p| p.damage.len()).collect();
    for copy in report.partitions.iter().flat_map(|partition| &partition.quarantined) {
        let there = scene.world.borrow().disk.find(copy.to_str().unwrap());
        there.map_err(|_| format!("{} is not there", copy.display()))?;
    }
    let mut gone = false;
    for (key, (shown, clock)) in scene.show_all().await?.into_iter().enumerate() {
        if !scene.model.borrow().agrees(key, shown, clock) {
            if damage[scene.model.borrow().partition(key)] == 0 && !unsure {
                return Err(format!("salvaged without damage, but key {key} shows {shown:?}"));
            }
            gone = true;
        }
        kept.borrow_mut().push(shown.map(|shown| shown.op));
    }
    scene.verify().await?;
    let ops = kept.borrow().clone();
    check_scan(scene, &ops).await?;
    Ok(match damage.iter().sum::<usize>() {
        0 => Branch::SalvageSound,
        _ if gone => Branch::Gone,
        _ => Branch::Salvaged,
    })
}
