//! The same disk, opened in other ways beside the lives: what is found must be the same. The disk is
//! as before afterwards.
//!
//! An opening that failed has changed nothing. If it failed in reading, that is: not a byte, and not a
//! name. If it had begun to write: no byte below a watermark, and a later opening finds what one
//! would have found that came instead: the same keys, values and versions.
//!
//! Hints are caches: without them the same is found. And an opening that is cut short, at any step or
//! just when it is done, leaves what it found: the next one finds it again.

use super::branches::Branch;
use super::clients::Checked;
use super::content::Crash;
use super::disk::{Disk, Ino, Node};
use super::harm::is_kind;
use super::life::{DIR, Outcome, Seed, Way};
use super::model::Shown;
use super::world::{End, World};
use super::wounds::Logs;
use ringlog::Error;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::Path;
use std::rc::Rc;

/// What was there before an opening that failed.
#[derive(Clone, Debug)]
pub struct Untouched {
    disk: Disk,
    mutations: u64,
}

/// What an opening found.
#[derive(Clone, Debug)]
struct Found {
    /// What each key showed.
    shown: Vec<Option<Shown>>,
    /// Segments that were loaded by their hints.
    hinted: u64,
}

fn bytes_of(disk: &Disk, ino: Ino, most: u64) -> Vec<u8> {
    match disk.node(ino) {
        Node::File(content) => content.bytes(0, most.min(content.len)),
        _ => Vec::new(),
    }
}

/// Whether an opening fails so only while it reads. Directories of partitions are opened and synced
/// later as well, and chance is asked for again.
fn came_from_reading(error: &Error) -> bool {
    let Error::Io { action, path, .. } = error else { return false };
    let is_partition = path.parent() == Some(Path::new(DIR)) && !path.ends_with("STORE");
    match *action {
        _ if !path.starts_with(DIR) => false,
        "read" | "list" => true,
        "open" | "sync" => !is_partition,
        _ => false,
    }
}

impl Untouched {
    pub fn new(world: &World) -> Self {
        Self { disk: world.disk.clone(), mutations: world.mutations }
    }

    /// What failed in reading has changed nothing, byte for byte.
    pub fn check_bytes(&self, error: &Error, world: &World) -> Checked {
        if !came_from_reading(error) {
            return Ok(());
        }
        if world.mutations != self.mutations {
            return Err(format!("an opening that failed has changed something: {error:?}"));
        }
        // A cache that forgets what a failed sync has dropped shows what the device has.
        let (mut before, mut after) = (self.disk.clone(), world.disk.clone());
        before.forget_clean();
        after.forget_clean();
        let same = |(_, ino): (String, Ino)| {
            bytes_of(&before, ino, u64::MAX) == bytes_of(&after, ino, u64::MAX)
        };
        let whole = !world.dropped.is_empty() || before.files().into_iter().all(same);
        if before.files() != after.files() || !whole {
            return Err(format!("an opening that failed has left other bytes: {error:?}"));
        }
        Ok(())
    }
}

impl Seed {
    /// The last opening failed: what was there before is there now.
    pub fn check_untouched(&mut self) -> Checked {
        let Some(Untouched { disk: before, .. }) = self.untouched.take() else { return Ok(()) };
        let (after, order, ended, dropped, now) = {
            let world = self.world.borrow();
            let dropped = !world.dropped.is_empty();
            (world.disk.clone(), world.order.clone(), world.ended, dropped, world.now)
        };
        // What was in a cache alone may be gone through no fault of an opening's.
        if !before.is_settled() && (dropped || ended != Some(End::Kill)) {
            return Ok(());
        }
        let there: BTreeSet<_> = after.files().into_iter().map(|(_, ino)| ino).collect();
        for (ino, durable) in Logs::read(&before, DIR).watermarks() {
            if there.contains(&ino)
                && bytes_of(&before, ino, durable) != bytes_of(&after, ino, durable)
            {
                return Err(format!("an opening that failed wrote below {durable} of file {ino}"));
            }
        }
        let instead = self.find_on(&before)?;
        self.world.borrow_mut().now = now;
        let later = self.find_on(&after)?;
        {
            let world = &mut *self.world.borrow_mut();
            (world.disk, world.order) = (after, order);
        }
        self.compare(&instead, &later).map_err(|why| format!("after an opening that failed: {why}"))
    }

    /// At times: what the device has, opened with hints and without, and after openings that were cut
    /// short.
    pub fn open_in_other_ways(&mut self) -> Checked {
        let some = self.other.one_in(8);
        if !some || self.world.borrow().disk.find(&format!("{DIR}/STORE")).is_err() {
            return Ok(());
        }
        let disk = self.world.borrow().disk.clone();
        let order = self.world.borrow().order.clone();
        let outcome = self.find_in_other_ways();
        let world = &mut *self.world.borrow_mut();
        (world.disk, world.order) = (disk, order);
        outcome
    }

    fn find_in_other_ways(&mut self) -> Checked {
        let (image, now) = {
            let world = &mut *self.world.borrow_mut();
            // What is to be found is decided.
            world.disk.crash(None, &mut self.other);
            (world.disk.clone(), world.now)
        };
        let whole = "it was cut short, by nobody";
        let found = self.find(None, None)?.ok_or(whole)?;
        self.set_back(&image, now);
        {
            let disk = &mut self.world.borrow_mut().disk;
            for (path, _) in disk.files() {
                if path.starts_with(DIR) && is_kind(&path, "hint") {
                    disk.remove(&path);
                }
            }
        }
        let scanned = self.find(None, None)?.ok_or(whole)?;
        if found.hinted > 0 && scanned.hinted == 0 {
            self.meet(Branch::WithoutHints);
        }
        self.compare(&found, &scanned).map_err(|why| format!("without hints: {why}"))?;
        self.set_back(&image, now);
        for _ in 0..=self.other.below(2) {
            let end = self.other.pick(&[End::PowerCut, End::Kill]);
            let steps = self.other.pick(&[30, 100, 300, u64::MAX]);
            let end_at = (steps < u64::MAX).then(|| (self.other.below(steps), end));
            let cut = self.find(end_at, Some(end))?;
            self.meet(if cut.is_some() { Branch::OpenedTwice } else { Branch::OpenedInPart });
            if let Some(cut) = cut {
                self.compare(&found, &cut).map_err(|why| format!("opened twice: {why}"))?;
            }
            self.world.borrow_mut().now = now;
        }
        let again = self.find(None, None)?.ok_or(whole)?;
        self.compare(&found, &again).map_err(|why| format!("opened again: {why}"))
    }

    fn set_back(&self, disk: &Disk, now: u64) {
        let world = &mut *self.world.borrow_mut();
        (world.disk, world.now) = (disk.clone(), now);
    }

    /// Opens a copy of a disk.
    fn find_on(&mut self, disk: &Disk) -> Result<Found, String> {
        {
            let world = &mut *self.world.borrow_mut();
            world.disk = disk.clone();
            let mut rng = world.rng.fork();
            world.disk.crash(Some(Crash::Keeps), &mut rng);
        }
        self.find(None, None)?.ok_or_else(|| "it was cut short".to_owned())
    }

    /// Opens the disk as it is, and looks at all that is there, unless that is cut short; it may be
    /// cut short just then. Else it is closed.
    fn find(
        &mut self,
        end_at: Option<(u64, End)>,
        then: Option<End>,
    ) -> Result<Option<Found>, String> {
        let model = Rc::new(RefCell::new(self.model.borrow().clone()));
        let way = Way { dir: DIR, salvage: false, model, may_be_corrupt: false, end_at };
        let found = Rc::new(RefCell::new(None));
        let find = Rc::clone(&found);
        let outcome = self.beside(way, move |scene| async move {
            let shown = scene.show_all().await?.into_iter().map(|(shown, _)| shown).collect();
            scene.verify().await?;
            let report = scene.store.open_report();
            let hinted = report.partitions.iter().map(|partition| partition.hinted).sum();
            find.replace(Some(Found { shown, hinted }));
            if let Some(end) = then {
                scene.world.borrow_mut().end(end);
                std::future::pending::<()>().await;
            }
            Ok(())
        })?;
        match outcome {
            Outcome::Over | Outcome::Ended(_) => Ok(found.take()),
            Outcome::Refused(error) => Err(format!("it is refused: {error:?}")),
        }
    }

    /// Two openings found the same, but for what may have expired in one of them.
    fn compare(&self, one: &Found, other: &Found) -> Checked {
        let model = self.model.borrow();
        for (key, (one, other)) in one.shown.iter().zip(&other.shown).enumerate() {
            let expired = model.keys[key].expires && (one.is_none() || other.is_none());
            if one != other && !expired {
                return Err(format!("key {key} showed {one:?}, and then {other:?}"));
            }
        }
        Ok(())
    }
}
