//! Verification: every byte is read, every sum checked, the keydir and the hints against the log.
//!
//! Invariant: it changes nothing, and reports all that it finds instead of ending at the first.

use super::Partition;
use super::digest::Digest;
use super::walk::Pins;
use crate::error::{Error, Result};
use crate::log::hint::{Hint, path_of};
use crate::log::record::Kind;
use crate::log::scan::{Scan, Strictness};
use crate::rt;
use std::rc::Rc;

/// What a partition's verification found.
#[derive(Clone, Debug, Default)]
pub(crate) struct Verified {
    pub(crate) records: u64,
    pub(crate) bytes: u64,
    pub(crate) problems: Vec<Error>,
}

impl Partition {
    /// Reads all that there is, beside the traffic.
    pub(crate) async fn verify(self: &Rc<Self>) -> Result<Verified> {
        let slots: Vec<_> = {
            let space = &self.ledger.borrow().space;
            space.iter().filter(|(_, e)| !e.dropped).map(|(slot, _)| slot).collect()
        };
        let pins = Pins::new(self, slots.clone());
        let mut verified = Verified::default();
        for slot in slots {
            self.verify_segment(slot, &mut verified).await?;
            pins.release(slot);
            rt::yield_now().await;
        }
        Ok(verified)
    }

    async fn verify_segment(&self, slot: usize, verified: &mut Verified) -> Result<()> {
        let (segment, len, seal) = {
            let space = &mut self.ledger.borrow_mut().space;
            let segment = space.for_reading(slot);
            let extant = space.get(slot);
            (segment, extant.scan_len().min(extant.len), extant.seal)
        };
        let strictness = Strictness { sealed: seal.is_some(), salvage: true };
        let mut scan = Scan::new(&segment, len, strictness);
        let mut live = 0;
        while let Some(shown) = scan.next().await? {
            let record = shown.record();
            verified.records += 1;
            if matches!(record.kind, Kind::Put | Kind::Delete) {
                let digest = Digest::new(&self.secret, record.key);
                let entry = self.ledger.borrow().keydir.get(digest);
                let place = entry.map(|entry| crate::log::place::Place::of(entry.place));
                live += u64::from(
                    place.is_some_and(|p| p.slot() == slot && p.offset() == shown.offset),
                );
            }
        }
        let end = scan.offset();
        let seen = scan.into_seen();
        verified.bytes += len;
        let damaged = !seen.damage.is_empty();
        verified.problems.extend(seen.damage);
        if seal.is_none() && end < len {
            verified
                .problems
                .push(segment.corrupt(end, "what was written there does not validate"));
        }
        let Some(seal) = seal else { return Ok(()) };
        // What the keydir points to in a sealed segment only becomes less, so what was counted
        // above on the way is at least what is left.
        let extant = self.ledger.borrow().space.get(slot).live_records;
        if live < extant {
            verified
                .problems
                .push(segment.corrupt(end, "the index has records that are not there"));
        }
        // Where the segment is damaged nothing tells what its hint should say.
        if !damaged && let Some(hint) = Hint::read(&self.identity, &segment).await {
            let mut true_hint = self.read_hint(&segment, seal).await?;
            // Which segments were there is not told by this segment alone, if its first was moved.
            true_hint.extant.clone_from(&hint.extant);
            if hint != true_hint {
                let (path, offset) = (path_of(&segment), 0);
                let reason = "the hint does not say what its segment holds";
                verified.problems.push(Error::Corrupt { path, offset, reason });
            }
        }
        Ok(())
    }
}
