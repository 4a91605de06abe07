//! The writer: the active segment, its tail, and the group that is being put together.
//!
//! Invariants: `synced` is never more than what is durable, and only it goes into marks; a block
//! that holds synced bytes is never written again; a group is written only into space that was
//! prepared; after a failed write or sync no write begins.

use super::ahead::Ahead;
use super::record::{Kind, MARK_LEN, Mark, Record};
use super::segment::Segment;
use super::{BLOCK, BLOCK_LEN};
use crate::rt::AlignedBuf;
use std::io;
use std::rc::Rc;

/// What a new segment has prepared, and the least that is prepared at a time: about a group of the
/// largest. Not more, since an empty store of many partitions takes it for each.
pub(crate) const FIRST_ROOM: u64 = 1 << 20;
/// The most that is prepared at a time, since a group waits for it. It is doubled up to here, so a
/// segment of the default size is prepared in a few steps.
const MAX_STEP: u64 = 8 << 20;
/// What the buffer keeps of its size between groups: twice an ordinary one, so that only single large
/// values make it grow, and do not keep it so.
const SPARE_BYTES: usize = 2 << 20;

/// See the module.
#[derive(Debug)]
pub(crate) struct Writer {
    segment: Rc<Segment>,
    ahead: Rc<Ahead>,
    /// Where the next group begins.
    tail: u64,
    /// Where the last group's records end.
    end: u64,
    /// All below is durable.
    synced: u64,
    /// Writing up to here cannot meet a full disk.
    prepared: u64,
    /// Where the segment is full. One record may go beyond it, if it is the first.
    limit: u64,
    sealed: bool,
    /// The group, from the beginning of its first block on.
    buf: AlignedBuf,
}

fn blocks(bytes: u64) -> u64 {
    bytes.next_multiple_of(BLOCK)
}

impl Writer {
    /// For a segment without groups, of which `prepared` bytes are.
    pub(crate) fn new(segment: Rc<Segment>, prepared: u64, limit: u64) -> Self {
        let buf = AlignedBuf::new();
        let ahead = Rc::new(Ahead::new(Rc::clone(&segment), limit));
        Self {
            segment,
            ahead,
            tail: BLOCK,
            end: BLOCK,
            synced: BLOCK,
            prepared,
            limit,
            sealed: false,
            buf,
        }
    }

    /// For when there is no room for an active segment yet: stands for one that is sealed.
    pub(crate) fn sealed(segment: Rc<Segment>, seal: u64) -> Self {
        let tail = seal + BLOCK;
        let (end, synced, sealed) = (tail, tail, true);
        Self { tail, end, synced, sealed, ..Self::new(segment, tail, 0) }
    }

    pub(crate) fn segment(&self) -> &Rc<Segment> {
        &self.segment
    }

    pub(crate) fn tail(&self) -> u64 {
        self.tail
    }

    /// Where its records end.
    pub(crate) fn end(&self) -> u64 {
        self.end
    }

    /// What is prepared up to the limit, and not used, after a group of so many bytes of records.
    pub(crate) fn left_after(&self, records: usize) -> u64 {
        self.prepared.min(self.limit).saturating_sub(self.end_of(records))
    }

    /// Whether so little is left up to the limit that it is better ended: `most`, or a 64th of it.
    pub(crate) fn is_nearly_full(&self, most: u64) -> bool {
        let left = self.limit.saturating_sub(self.end_of(0));
        !self.is_empty() && left < most.min(self.limit / 64)
    }

    /// Whether it has no groups.
    pub(crate) fn is_empty(&self) -> bool {
        self.tail == BLOCK
    }

    /// Whether none of its groups is known to be durable.
    pub(crate) fn may_be_lost(&self) -> bool {
        self.synced == BLOCK
    }

    /// Whether it takes no more groups.
    pub(crate) fn is_sealed(&self) -> bool {
        self.sealed
    }

    /// Whether there is a tail to mark.
    pub(crate) fn can_mark_idle(&self) -> bool {
        !self.sealed && !self.is_empty() && !self.is_dirty()
    }

    /// Whether something was written that is not durable.
    pub(crate) fn is_dirty(&self) -> bool {
        self.synced < self.tail
    }

    /// Where a group of so many bytes of records would end, with room for what may come after it
    /// on a full disk: a mark of an idle log, and the seal that recovery sets behind that.
    fn end_of(&self, records: usize) -> u64 {
        blocks(self.tail + (MARK_LEN + records) as u64) + 2 * BLOCK
    }

    /// Whether the segment has room for such a group.
    pub(crate) fn fits(&self, records: usize) -> bool {
        self.is_empty() || (!self.sealed && self.end_of(records) <= self.limit)
    }

    /// Prepares room for a group of so many bytes of records, and some more.
    pub(crate) async fn prepare(&mut self, records: usize) -> io::Result<()> {
        self.prepare_up_to(self.end_of(records)).await
    }

    /// The same before it is needed, within the limit.
    pub(crate) async fn prepare_ahead(&mut self, records: usize) -> io::Result<()> {
        self.prepare_up_to(self.end_of(records).min(self.limit)).await
    }

    async fn prepare_up_to(&mut self, need: u64) -> io::Result<()> {
        if need <= self.prepared {
            return Ok(());
        }
        let step = self.prepared.clamp(FIRST_ROOM, MAX_STEP);
        let generous = (self.prepared + step).min(self.limit).max(need);
        let generous = blocks(generous);
        match self.segment.prepare(self.prepared, generous).await {
            Ok(()) => self.prepared = generous,
            Err(_) if generous > need => {
                self.segment.prepare(self.prepared, need).await?;
                self.prepared = need;
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Begins a group. `sequence` is the last that is in the log.
    pub(crate) fn begin(&mut self, sequence: u64, clock: u64) {
        let mark = Mark { durable: self.synced, clock, after: self.end, next: 0 };
        self.push_mark(Kind::Mark, mark, sequence);
    }

    fn push_mark(&mut self, kind: Kind, mark: Mark, sequence: u64) {
        let value = mark.encode();
        self.push(&Record::new(kind, sequence, &[], &value));
    }

    /// Adds a record to the group; tells its offset.
    pub(crate) fn push(&mut self, record: &Record<'_>) -> u64 {
        let at = self.buf.len();
        let offset = self.tail / BLOCK * BLOCK + at as u64;
        self.buf.resize(at + record.len());
        record.encode(&mut self.buf[at..], self.segment.salt, offset);
        offset
    }

    /// Writes the group, and makes it durable with all before it if `sync` says so.
    pub(crate) async fn finish(&mut self, sync: bool) -> io::Result<usize> {
        let start = self.tail / BLOCK * BLOCK;
        let end = start + self.buf.len() as u64;
        self.buf.resize(usize::try_from(blocks(end) - start).expect("a group fits memory"));
        let written = self.buf.len();
        let dirty = self.is_dirty();
        self.ahead.claim(start + written as u64).await?;
        let buf = std::mem::take(&mut self.buf);
        let (result, buf) = self.segment.write(buf, start, sync, dirty).await;
        self.buf = buf;
        self.stop_if_failed(result)?;
        self.end = end;
        if sync {
            self.tail = blocks(end);
            self.synced = self.tail;
            self.buf.clear();
        } else {
            // The next group goes on in the last block.
            self.tail = end;
            let last = usize::try_from(end / BLOCK * BLOCK - start).expect("within the group");
            let used = usize::try_from(end % BLOCK).expect("less than a block");
            self.buf.copy_within(last..last + used, 0);
            self.buf.truncate(used);
        }
        self.buf.shrink_to(SPARE_BYTES);
        Ok(written)
    }

    /// Zeroes to write ahead, after a group of so many bytes: beside the traffic, until they are.
    /// Tells how many bytes that were.
    pub(crate) fn zeroes_after(
        &self,
        group: usize,
        sync: bool,
    ) -> Option<impl Future<Output = u64> + use<>> {
        let (ahead, prepared) = (Rc::clone(&self.ahead), self.prepared);
        ahead.starts(group, prepared).then_some(async move { ahead.run(prepared, sync).await })
    }

    /// Makes durable what was written.
    pub(crate) async fn sync(&mut self) -> io::Result<()> {
        if self.is_dirty() {
            let result = self.segment.sync().await;
            self.stop_if_failed(result)?;
            // The block with the end in it is synced now, and not written again.
            self.tail = blocks(self.tail);
            self.synced = self.tail;
            self.buf.clear();
        }
        Ok(())
    }

    /// Says at the tail that all below it is durable, without making that known durably, and
    /// without moving the tail: the next group goes over it.
    pub(crate) async fn mark_idle(&mut self, sequence: u64, clock: u64) -> io::Result<()> {
        debug_assert!(self.can_mark_idle() && self.buf.is_empty());
        self.begin(sequence, clock);
        self.buf.resize(BLOCK_LEN);
        self.ahead.claim(self.tail + BLOCK).await?;
        let buf = std::mem::take(&mut self.buf);
        let (result, buf) = self.segment.write(buf, self.tail, false, false).await;
        self.buf = buf;
        self.buf.clear();
        self.stop_if_failed(result)
    }

    /// After a failure no zeroes are written either, but for what is on its way.
    fn stop_if_failed(&self, result: io::Result<()>) -> io::Result<()> {
        result.inspect_err(|_| self.ahead.stop())
    }

    /// Ends the segment, durably. `next` is there, durably, and goes on; 0 if there is none. Tells
    /// the seal's offset.
    pub(crate) async fn seal(&mut self, sequence: u64, clock: u64, next: u64) -> io::Result<u64> {
        self.sync().await?;
        // Nothing comes behind the seal.
        self.ahead.stop();
        self.ahead.claim(u64::MAX).await?;
        self.seal_as_durable(self.tail, sequence, clock, next).await
    }

    async fn seal_as_durable(
        &mut self,
        durable: u64,
        sequence: u64,
        clock: u64,
        next: u64,
    ) -> io::Result<u64> {
        let seal = self.tail;
        let mark = Mark { durable, clock, after: self.end, next };
        self.push_mark(Kind::Seal, mark, sequence);
        self.finish(true).await?;
        self.sealed = true;
        Ok(seal)
    }

    /// Seals a segment that was found without a seal, and ends at `end`. The caller has synced it.
    pub(crate) async fn seal_found(
        segment: Rc<Segment>,
        end: u64,
        sequence: u64,
        clock: u64,
        next: u64,
    ) -> io::Result<u64> {
        let tail = blocks(end);
        let mut writer = Self { tail, end, synced: tail, ..Self::new(segment, tail, tail) };
        // Not a byte more: what a torn group left up to the seal means nothing.
        writer.seal_as_durable(end, sequence, clock, next).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::Identity;
    use crate::rt::{Executor, ExecutorConfig};

    #[test]
    fn after_a_failed_write_no_zeroes_are_written() {
        let dir = tempfile::tempdir().unwrap();
        Executor::new(ExecutorConfig::default()).unwrap().block_on(async {
            let identity = Identity { store: [7; 16], partition: 0 };
            let made = Segment::create(dir.path(), &identity, 1, 2, 4 * FIRST_ROOM).await;
            let mut writer = Writer::new(Rc::new(made.unwrap()), 4 * FIRST_ROOM, 8 * FIRST_ROOM);
            writer.begin(1, 1);
            let written = writer.finish(true).await.unwrap();
            let zeroes = writer.zeroes_after(written, true);
            assert_eq!(zeroes.is_some(), writer.segment.is_direct());
            writer.ahead = Rc::new(Ahead::new(Rc::clone(&writer.segment), writer.limit));
            // No file reaches so far, prepared or not.
            (writer.tail, writer.prepared) = (u64::MAX / 2 / BLOCK * BLOCK, u64::MAX);
            writer.begin(1, 1);
            writer.finish(true).await.unwrap_err();
            assert!(writer.zeroes_after(written, true).is_none());
        });
    }
}
