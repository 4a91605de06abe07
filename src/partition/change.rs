//! Changes that depend on what is there: conditional puts, deletes, updates.
//!
//! Invariant: between the last look at what is there and the staging of the change nothing is
//! awaited, so each is atomic against everything else.

use super::digest::Digest;
use super::overlay::Pending;
use super::pace::Merges;
use super::staged::{Op, Ticket};
use super::{Found, Partition};
use crate::durability::Durability;
use crate::error::{Error, Result};
use crate::limits::MAX_VALUE_LEN;
use crate::log::place::{Class, Place};
use crate::log::record::body_sum;
use crate::rt;
use bytes::Bytes;
use std::rc::Rc;

/// After so many merges in a row that gave back nothing a delete still tries again.
const IN_VAIN: usize = 3;

/// So many of many puts are staged at a time: some 0.1 ms of the owner's time.
const STEP: usize = 256;
/// Or so many bytes of them, and the value that goes beyond: the device is near its full rate.
const STEP_BYTES: usize = 256 << 10;

/// What must hold for a put to happen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Condition {
    #[default]
    Always,
    Absent,
    Present,
    Version(u64),
}

/// A put to be.
#[derive(Clone, Debug)]
pub(crate) struct Put {
    pub(crate) key: Bytes,
    pub(crate) value: Bytes,
    /// Of key and value.
    pub(crate) sum: u32,
    pub(crate) expiry: Option<Expiry>,
    pub(crate) condition: Condition,
    pub(crate) durability: Durability,
}

/// When an entry is to expire, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expiry {
    /// From when the put gets its place.
    After(u64),
    /// Since 1970.
    At(u64),
}

/// How much has to be known of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Need {
    Presence,
    All,
}

/// What a change is judged by.
struct Current {
    /// None for a key that is not there, or has expired. Without a read only presence is known.
    found: Option<Found>,
    present: bool,
    /// What has to be acknowledged before an answer that depends on this.
    pending: Option<Rc<Ticket>>,
    /// An expiry that made the key absent.
    expired: Option<u64>,
}

/// Of a delete that found no room: what merges give back is for deletes first.
#[derive(Default)]
struct Patience {
    /// Merges in a row that have given back nothing.
    in_vain: usize,
}

impl Patience {
    /// Whether to try again, since a merge has given back something since `before`. One that came to
    /// nothing, and may be over already, may have been what stood in the way.
    async fn suffices(&mut self, of: &Partition, deleted: &Result<()>, before: Merges) -> bool {
        if !matches!(deleted, Err(Error::Full { .. })) {
            return false;
        }
        of.end_of_merge().await;
        let now = of.merges();
        self.in_vain = if now.done == before.done { self.in_vain + 1 } else { 0 };
        now.ended != before.ended && self.in_vain <= IN_VAIN
    }
}

impl Partition {
    /// What is there of a key, acknowledged or not. Current until the next await.
    async fn current(&self, digest: Digest, key: &[u8], need: Need) -> Result<Current> {
        loop {
            if let Some(pending) = self.commit.overlay(digest) {
                return Ok(self.judge_pending(pending));
            }
            let place = self.place(digest);
            let present = match place.map(Place::class) {
                None | Some(Class::Tombstone) => Some(false),
                Some(Class::Put) if need == Need::Presence => Some(true),
                Some(_) => None,
            };
            if let Some(present) = present {
                return Ok(Current { found: None, present, pending: None, expired: None });
            }
            let read = self.read(digest, key).await?;
            // Meanwhile it may have been written, or moved: look again.
            if let Some((read_at, found)) = read
                && self.spot(digest) == Some(read_at)
                && self.commit.overlay(digest).is_none()
            {
                return Ok(self.judge(found, None));
            }
        }
    }

    fn judge(&self, found: Found, pending: Option<Rc<Ticket>>) -> Current {
        if self.is_expired(found.expiry) {
            return Current { expired: found.expiry, found: None, present: false, pending };
        }
        Current { found: Some(found), present: true, pending, expired: None }
    }

    fn judge_pending(&self, pending: Pending) -> Current {
        let Pending { sequence: version, value, expiry, ticket, .. } = pending;
        match value {
            Some(value) => self.judge(Found { value, version, expiry }, Some(ticket)),
            None => Current { found: None, present: false, pending: Some(ticket), expired: None },
        }
    }

    /// Before an answer: what it depends on must be as safe as it was asked to be.
    async fn settle(self: &Rc<Self>, current: Current) -> Result<()> {
        if let Some(pending) = current.pending {
            pending.wait(self).await?;
        }
        if current.expired.is_some() {
            self.prove_expired(current.expired).await;
        }
        Ok(())
    }

    /// Puts if the condition holds; tells the new version then.
    pub(crate) async fn put(self: &Rc<Self>, digest: Digest, put: Put) -> Result<Option<u64>> {
        self.make_sure_there_is_room().await?;
        let need = match put.condition {
            Condition::Always => None,
            Condition::Absent | Condition::Present => Some(Need::Presence),
            Condition::Version(_) => Some(Need::All),
        };
        if let Some(need) = need {
            let current = self.current(digest, &put.key, need).await?;
            let holds = match put.condition {
                Condition::Always => true,
                Condition::Absent => !current.present,
                Condition::Present => current.present,
                Condition::Version(version) => {
                    current.found.as_ref().is_some_and(|found| found.version == version)
                }
            };
            if !holds {
                self.settle(current).await?;
                return Ok(None);
            }
        }
        let (ticket, version) = self.stage_put(digest, put)?;
        ticket.wait(self).await?;
        self.keep_pace().await;
        Ok(Some(version))
    }

    fn stage_put(self: &Rc<Self>, digest: Digest, put: Put) -> Result<(Rc<Ticket>, u64)> {
        let expiry = put.expiry.map(|expiry| match expiry {
            Expiry::After(millis) => self.clock.now().saturating_add(millis),
            Expiry::At(millis) => millis,
        });
        let op = Op::Put { key: put.key, value: put.value, sum: put.sum, expiry };
        self.stage(digest, op, put.durability)
    }

    /// Puts without conditions, in this order. One step of them is written while the next is staged.
    /// After an error no more are staged, and none is on its way when it is told.
    pub(crate) async fn put_many(self: &Rc<Self>, puts: Vec<(Digest, Put)>) -> Result<()> {
        let mut puts = puts.into_iter();
        let (mut result, mut before) = (Ok(()), Vec::new());
        loop {
            let mut staged = Vec::new();
            if result.is_ok() && puts.len() > 0 {
                result = self.make_sure_there_is_room().await;
            }
            let mut bytes = 0;
            while result.is_ok()
                && staged.len() < STEP
                && bytes < STEP_BYTES
                && let Some((digest, put)) = puts.next()
            {
                bytes += put.key.len() + put.value.len();
                match self.stage_put(digest, put) {
                    Ok((ticket, _)) => staged.push(ticket),
                    Err(error) => result = Err(error),
                }
            }
            let (first, last) = (before.is_empty(), staged.is_empty());
            for ticket in std::mem::replace(&mut before, staged) {
                result = result.and(ticket.wait(self).await);
            }
            if !first && result.is_ok() {
                self.keep_pace().await;
            }
            if last {
                return result;
            }
            // What is promised waits for nothing, and others are to have their turn.
            rt::yield_now().await;
        }
    }

    /// Whether the key was there.
    pub(crate) async fn delete(
        self: &Rc<Self>,
        digest: Digest,
        key: Bytes,
        durability: Durability,
    ) -> Result<bool> {
        let mut patience = Patience::default();
        loop {
            let merges = self.merges();
            let current = self.current(digest, &key, Need::Presence).await?;
            if !current.present {
                // A delete before this one may not be safe yet: a crash could bring the key back.
                self.settle(current).await?;
                return Ok(false);
            }
            let op = Op::Delete { key: key.clone() };
            let deleted = self.stage(digest, op, durability)?.0.wait(self).await;
            if !patience.suffices(self, &deleted, merges).await {
                return deleted.map(|()| true);
            }
        }
    }

    /// Replaces an entry by what a function makes of it: nothing else comes between. The entry
    /// keeps its expiry. Tells the new value.
    pub(crate) async fn update(
        self: &Rc<Self>,
        digest: Digest,
        key: Bytes,
        f: impl FnOnce(Option<&[u8]>) -> Option<Vec<u8>>,
        durability: Durability,
    ) -> Result<Option<Bytes>> {
        let room = self.make_sure_there_is_room().await;
        let current = self.current(digest, &key, Need::All).await?;
        let old = current.found.as_ref();
        match f(old.map(|found| &found.value[..])) {
            Some(value) => {
                room?;
                if value.len() > MAX_VALUE_LEN {
                    return Err(Error::ValueTooLarge { len: value.len() });
                }
                let expiry = old.and_then(|found| found.expiry);
                // Not a byte more than it is long: the cache may keep it.
                let value = Bytes::from(value.into_boxed_slice());
                let sum = body_sum(&key, &value);
                let op = Op::Put { key, value: value.clone(), sum, expiry };
                self.stage(digest, op, durability)?.0.wait(self).await?;
                self.keep_pace().await;
                Ok(Some(value))
            }
            None if current.present => {
                let version = old.map(|found| found.version);
                let mut patience = Patience::default();
                loop {
                    let merges = self.merges();
                    let op = Op::Delete { key: key.clone() };
                    let deleted = self.stage(digest, op, durability)?.0.wait(self).await;
                    if !patience.suffices(self, &deleted, merges).await {
                        return deleted.map(|()| None);
                    }
                    // Something else that has come meanwhile is not what was to be removed.
                    let now = self.current(digest, &key, Need::All).await?;
                    if now.found.map(|found| found.version) != version {
                        return deleted.map(|()| None);
                    }
                }
            }
            None => self.settle(current).await.map(|()| None),
        }
    }
}
