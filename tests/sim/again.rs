//! The same disk, opened in other ways beside the lives: what is found must be the same. The disk is
//! as before afterwards.
//!
//! An opening that failed has changed nothing. If it failed in reading, that is: not a byte, and not a
//! name. If it had begun to write: no byte below a watermark, and a later opening finds what one
//! would have found that came instead: the same keys, values and versions.

use super::clients::Checked;
use super::content::Crash;
use super::disk::{Disk, Ino, Node};
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
        let whole = world.dropped || before.files().into_iter().all(same);
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
        let (after, ended, dropped, now) = {
            let world = self.world.borrow();
            (world.disk.clone(), world.ended, world.dropped, world.now)
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
        self.world.borrow_mut().disk = after;
        self.compare(&instead, &later).map_err(|why| format!("after an opening that failed: {why}"))
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
            find.replace(Some(Found { shown }));
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
