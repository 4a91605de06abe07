//! The overlay: of each key that is being changed the newest change, which the log does not have
//! yet.
//!
//! Invariants: what later writes are judged by is the newest change that has its place, acknowledged
//! or not; what reads are shown is the newest one that was promised, also while a later one that was
//! not is over it.

use super::digest::{Digest, DigestMap};
use super::staged::{Op, Staged, Ticket};
use bytes::Bytes;
use std::rc::Rc;

/// The newest change of a key that is not in the log yet.
#[derive(Clone, Debug)]
pub(super) struct Pending {
    pub(super) sequence: u64,
    /// None after a delete.
    pub(super) value: Option<Bytes>,
    pub(super) expiry: Option<u64>,
    pub(super) ticket: Rc<Ticket>,
    /// The newest change of the key that is acknowledged: this one, or one before it that the log
    /// does not have either.
    promised: Option<Promised>,
}

/// What reads see of a key before the log has it.
#[derive(Clone, Debug)]
pub(super) struct Promised {
    pub(super) sequence: u64,
    pub(super) key: Bytes,
    /// None after a delete.
    pub(super) value: Option<Bytes>,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Overlay(DigestMap<Pending>);

impl Overlay {
    pub(super) fn get(&self, digest: Digest) -> Option<&Pending> {
        self.0.get(&digest)
    }

    pub(super) fn promised(&self, digest: Digest) -> Option<&Promised> {
        self.0.get(&digest)?.promised.as_ref()
    }

    /// An operation has its place.
    pub(super) fn add(&mut self, staged: &Staged) {
        let (key, value, expiry) = match &staged.op {
            Op::Put { key, value, expiry, .. } => (key, Some(value.clone()), *expiry),
            Op::Delete { key } => (key, None, None),
            _ => return,
        };
        let (sequence, ticket) = (staged.sequence, Rc::clone(&staged.ticket));
        let promised = match staged.promised {
            Some(_) => Some(Promised { sequence, key: key.clone(), value: value.clone() }),
            None => self.0.remove(&staged.digest).and_then(|before| before.promised),
        };
        self.0.insert(staged.digest, Pending { sequence, value, expiry, ticket, promised });
    }

    /// The log has it.
    pub(super) fn settle(&mut self, staged: &Staged) {
        let Some(pending) = self.0.get_mut(&staged.digest) else { return };
        if pending.sequence == staged.sequence {
            self.0.remove(&staged.digest);
        } else if pending.promised.as_ref().is_some_and(|p| p.sequence == staged.sequence) {
            pending.promised = None;
        }
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// No more comes to the log. What was acknowledged stays to be seen.
    pub(super) fn poison(&mut self) {
        self.0.retain(|_, pending| pending.promised.is_some());
    }
}
