//! Acknowledgements, held against the disk at that moment: what was promised is there.

use super::clients::{Checked, Scene};
use super::content::Content;
use super::disk::{Disk, Ino, Node};
use super::model::Shown;
use ringlog::Durability;
use std::collections::BTreeMap;

fn content<'a>(disk: &'a Disk) -> impl Fn(Ino) -> Option<&'a Content> {
    |ino| match disk.try_node(ino)? {
        Node::File(content) => Some(content),
        _ => None,
    }
}

/// What a sync covers: what was acknowledged before it, and whether a failure was known by then.
pub type Covered = (Vec<(usize, u64)>, bool);

impl Scene {
    /// A disk that lies, or loses what it is given, is caught by what is lost.
    fn is_honest(&self) -> bool {
        self.watched && !self.may_be_corrupt && !self.world.borrow().lies
    }

    fn check_write(&self, some: &[(usize, u64)], sync: bool, what: &str) -> Checked {
        if !self.is_honest() {
            return Ok(());
        }
        let world = &mut *self.world.borrow_mut();
        let judged = world.order.acknowledge(some, sync, content(&world.disk));
        judged.map_err(|why| format!("{what} was acknowledged, but it {why}"))
    }

    /// A put or an update is acknowledged.
    pub fn check_put(&self, op: u64, durability: Durability) -> Checked {
        let some = self.world.borrow().order.put(op);
        self.check_write(&some, durability == Durability::Sync, &format!("{op}"))
    }

    /// A delete is acknowledged that began then.
    pub fn check_delete(
        &self,
        partition: usize,
        key: &[u8],
        since: u64,
        durability: Durability,
    ) -> Checked {
        let some = self.world.borrow().order.deletes(partition, key, since);
        self.check_write(&some, durability == Durability::Sync, &format!("delete {since}"))
    }

    /// A sync, or closing, begins: when, and what it covers.
    pub fn begin_sync(&self) -> (u64, Covered) {
        let order = &self.world.borrow().order;
        let covered = (order.acknowledged(), !order.failed.is_empty());
        (self.model.borrow_mut().tick(), covered)
    }

    /// It is acknowledged.
    pub fn synced(&self, start: u64, (all, failed): &Covered) -> Checked {
        self.model.borrow_mut().synced(start);
        if !self.is_honest() {
            return Ok(());
        }
        let world = self.world.borrow();
        if *failed {
            return Err("a sync was acknowledged, though a group before it had failed".to_owned());
        }
        world.order.synced(all, content(&world.disk))
    }

    /// What keys show after opening is what a prefix left of what each partition wrote.
    pub fn check_prefix(&self, shown: &[(usize, Option<Shown>)]) -> Checked {
        let model = self.model.borrow();
        let mut partitions = BTreeMap::<_, BTreeMap<_, _>>::new();
        for &(key, shown) in shown {
            let key = &model.keys[key];
            partitions.entry(key.partition).or_default().insert(key.name.clone(), shown);
        }
        let order = &self.world.borrow().order;
        partitions.iter().try_for_each(|(&partition, shown)| order.check_prefix(partition, shown))
    }
}
