//! Verification: every record is read, every sum of one checked, the keydir and the hints against the
//! log. Headers of files are checked when the store is opened.
//!
//! Invariant: it changes nothing, and reports all that it finds instead of ending at the first.

use super::Partition;
use super::digest::Digest;
use super::rotate::entry_of;
use super::walk::Pins;
use crate::error::{Error, Result};
use crate::log::hint::{path_of, read_hint};
use crate::log::place::Place;
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
        let (segment, len, last, seal) = {
            let space = &mut self.ledger.borrow_mut().space;
            let segment = space.for_reading(slot);
            let extant = space.get(slot);
            (segment, extant.scan_len().min(extant.len), extant.end, extant.seal)
        };
        let strictness = Strictness { sealed: seal.is_some(), salvage: true };
        let mut scan = Scan::new(&segment, len, strictness);
        // Of a sealed segment only, and only if it is a good one: others are as good as none.
        let hint = match seal {
            Some(_) => read_hint(&self.identity, &segment).await,
            None => None,
        };
        let mut hinted = hint.map(|(_, entries)| entries.into_iter());
        let (mut live, mut agrees) = (0, true);
        while let Some(shown) = scan.next().await? {
            verified.records += 1;
            let Some(entry) = entry_of(&self.secret, &shown) else { continue };
            let found = self.ledger.borrow().keydir.get(Digest::from_bytes(entry.digest));
            let place = Place::new(slot, entry.offset, entry.class, entry.len);
            live += u64::from(found.is_some_and(|found| found.place == place.bits()));
            if let Some(hinted) = &mut hinted {
                agrees &= hinted.next() == Some(entry);
            }
        }
        let whole = scan.offset() == len && scan.end() >= last;
        let end = scan.offset().min(scan.end());
        let seen = scan.into_seen();
        verified.bytes += len;
        let problems = &mut verified.problems;
        let sound = seen.damage.is_empty();
        problems.extend(seen.damage);
        if seal.is_none() && !whole {
            problems.push(segment.corrupt(end, "what was written there does not validate"));
        }
        // What the keydir points to in a sealed segment only becomes less, so what was counted
        // above on the way is at least what is left.
        if seal.is_some() && live < self.ledger.borrow().space.get(slot).live_records {
            problems.push(segment.corrupt(end, "the index has records that are not there"));
        }
        if sound && hinted.is_some_and(|mut rest| !agrees || rest.next().is_some()) {
            let reason = "the hint does not say what its segment holds";
            problems.push(Error::Corrupt { path: path_of(&segment), offset: 0, reason });
        }
        Ok(())
    }
}
