//! Reading a segment from its first group to its end, as recovery, merges and checks do.
//!
//! Invariant: a scan shows valid records only, in order, and ends at the seal or at the first byte
//! that is not part of one. If a mark or seal further on says that this byte was durable, or the
//! segment is known to have been sealed, it is corrupt: the scan fails, or with `salvage` notes it
//! and goes on after it. Otherwise it is where a crash tore the tail. Memory is bounded by a chunk
//! and the largest record that a valid header announces and the file has room for.

use super::record::{HEADER_LEN, Kind, Mark, Record, RecordError};
use super::segment::Segment;
use super::{BLOCK, BLOCK_LEN, CHUNK};
use crate::error::{Error, Result};
use crate::rt;
use bytes::Bytes;

/// How a segment is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Strictness {
    /// It was sealed, so it must end with its seal.
    pub(crate) sealed: bool,
    /// Damage is skipped and noted.
    pub(crate) salvage: bool,
}

/// How many bytes are checked between two turns of other tasks: a sixteenth of a chunk, which can
/// take milliseconds.
const STRETCH: u64 = 64 << 10;

/// What a scan has seen beside the records.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// Offset of the seal, if there was one.
    pub(crate) seal: Option<u64>,
    /// The greatest sequence number.
    pub(crate) sequence: u64,
    /// The latest clock.
    pub(crate) clock: u64,
    /// What the seal says goes on.
    pub(crate) next: u64,
    /// Bytes of torn tail that are not zero, and valid records after the tear.
    pub(crate) torn_bytes: u64,
    pub(crate) torn_records: u64,
    /// Damage that was skipped.
    pub(crate) damage: Vec<Error>,
}

/// A record as it lies in its segment, checked.
#[derive(Clone, Debug)]
pub(crate) struct Shown {
    pub(crate) offset: u64,
    pub(crate) len: usize,
    bytes: Bytes,
    /// Where the key begins, and where the value begins and ends.
    key: usize,
    value: (usize, usize),
    /// The rest of it, without key and value.
    record: Record<'static>,
}

impl Shown {
    fn new(record: &Record<'_>, bytes: &Bytes, offset: u64, len: usize) -> Self {
        let value = record.body_offset() + record.key.len();
        Self {
            offset,
            len,
            bytes: bytes.clone(),
            key: record.body_offset(),
            value: (value, value + record.value.len()),
            record: Record { key: &[], value: &[], ..*record },
        }
    }

    /// Reads and checks the record at a place.
    pub(crate) async fn read(segment: &Segment, offset: u64, len: usize) -> Result<Self> {
        let bytes = segment.read(offset, len).await?;
        Ok(Self::new(&segment.decode(&bytes, offset)?, &bytes, offset, len))
    }

    pub(crate) fn record(&self) -> Record<'_> {
        let key = &self.bytes[self.key..self.value.0];
        Record { key, value: &self.bytes[self.value.0..self.value.1], ..self.record }
    }

    /// Key and value, without copying them.
    pub(crate) fn share(&self) -> (Bytes, Bytes) {
        (self.bytes.slice(self.key..self.value.0), self.bytes.slice(self.value.0..self.value.1))
    }
}

/// Comparing with these looks at many bytes at a time.
static ZEROES: [u8; BLOCK_LEN] = [0; BLOCK_LEN];

/// How many zeroes bytes begin with, or not many less.
fn zeroes(bytes: &[u8]) -> u64 {
    let some = &ZEROES[..256];
    let pieces = bytes.chunks_exact(some.len());
    (pieces.take_while(|piece| *piece == some).count() * some.len()) as u64
}

/// A piece of a segment that was read.
#[derive(Clone, Debug, Default)]
pub(crate) struct Window {
    bytes: Bytes,
    /// Where it begins.
    start: u64,
}

/// See the module.
pub(crate) struct Scan<'a> {
    segment: &'a Segment,
    /// Of the segment, or of what is to be read of it.
    len: u64,
    strictness: Strictness,
    /// Where the next record begins.
    offset: u64,
    /// Where the last record ended; none if what lies before is not known.
    end: Option<u64>,
    window: Bytes,
    /// Where the window begins.
    start: u64,
    seen: Seen,
    ended: bool,
    /// Where other tasks have their turn next.
    rest_at: u64,
}

impl<'a> Scan<'a> {
    pub(crate) fn new(segment: &'a Segment, len: u64, strictness: Strictness) -> Self {
        let (window, seen) = (Bytes::new(), Seen::default());
        let (offset, start, end) = (BLOCK, BLOCK, Some(BLOCK));
        let (ended, rest_at) = (false, BLOCK + STRETCH);
        Self { segment, len, strictness, offset, end, window, start, seen, ended, rest_at }
    }

    /// One that goes on where another stood, behind a record.
    pub(crate) fn from(mut self, offset: u64) -> Self {
        self.offset = offset;
        self.rest_at = offset + STRETCH;
        self.end = Some(offset);
        self
    }

    /// One that goes on with what another has read.
    pub(crate) fn with_window(mut self, window: Window) -> Self {
        (self.window, self.start) = (window.bytes, window.start);
        self
    }

    /// What it has read last.
    pub(crate) fn window(&self) -> Window {
        Window { bytes: self.window.clone(), start: self.start }
    }

    /// Where it stands; after its end, where the log of the segment ends.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// Where the last record ended.
    pub(crate) fn end(&self) -> u64 {
        self.end.unwrap_or(self.offset)
    }

    /// Whether a record follows upon the one before: behind padding comes a mark that knows of it.
    fn follows(&self, shown: &Shown) -> bool {
        self.end.is_none_or(|end| match Mark::of(&shown.record()) {
            Some(mark) => mark.after == end,
            None => shown.offset == end && end > BLOCK,
        })
    }

    pub(crate) fn into_seen(self) -> Seen {
        self.seen
    }

    /// The next record that is neither mark nor seal; `None` at the end.
    pub(crate) async fn next(&mut self) -> Result<Option<Shown>> {
        while !self.ended {
            if self.offset >= self.rest_at {
                // A chunk of small records takes milliseconds, and others wait for this thread.
                self.rest_at = self.offset + STRETCH;
                rt::yield_now().await;
            }
            match self.decode_here().await? {
                Ok(shown) if !self.follows(&shown) => {
                    self.offset = self.end();
                    self.judge(RecordError::Gap).await?;
                }
                Ok(shown) => {
                    let end = shown.offset + shown.len as u64;
                    self.offset += shown.len as u64;
                    let record = shown.record();
                    self.seen.sequence = self.seen.sequence.max(record.sequence);
                    if let Some(mark) = Mark::of(&record) {
                        self.seen.clock = self.seen.clock.max(mark.clock);
                    }
                    if record.kind != Kind::Seal {
                        self.end = Some(end);
                    }
                    match record.kind {
                        Kind::Mark => {}
                        Kind::Seal => {
                            self.offset = shown.offset;
                            self.seen.seal = Some(shown.offset);
                            self.seen.next = Mark::of(&record).map_or(0, |mark| mark.next);
                            self.ended = true;
                        }
                        Kind::Put | Kind::Delete | Kind::Live | Kind::Drop => {
                            return Ok(Some(shown));
                        }
                    }
                }
                Err(error) => {
                    if !self.skip_padding().await? {
                        self.judge(error).await?;
                    }
                }
            }
        }
        Ok(None)
    }

    /// The bytes from `offset` on, at least `want` of them or all that the file has.
    async fn bytes(&mut self, offset: u64, want: usize) -> Result<Bytes> {
        let left = usize::try_from(self.len.saturating_sub(offset)).unwrap_or(usize::MAX);
        let want = want.min(left);
        let held = (self.start + self.window.len() as u64).saturating_sub(offset);
        if offset < self.start || held < want as u64 {
            let len = want.max(CHUNK).min(left);
            self.window = self.segment.read(offset, len).await?;
            if self.window.len() < len {
                // The file ends within its last block, which reads as zeroes once it is whole.
                let mut whole = Vec::from(&self.window[..]);
                whole.resize(len, 0);
                self.window = whole.into();
            }
            self.start = offset;
        }
        let from = usize::try_from(offset - self.start).unwrap_or(usize::MAX);
        Ok(self.window.slice(from.min(self.window.len())..))
    }

    async fn decode_here(&mut self) -> Result<Result<Shown, RecordError>> {
        let (offset, salt) = (self.offset, self.segment.salt);
        let bytes = self.bytes(offset, HEADER_LEN + 8).await?;
        let header = match Record::decode_header(&bytes, salt, offset) {
            Ok(header) => header,
            Err(error) => return Ok(Err(error)),
        };
        let len = header.total();
        if len as u64 > self.len - offset {
            return Ok(Err(RecordError::Short));
        }
        if bytes.len() >= len {
            let record = Record::decode_body(header, &bytes);
            return Ok(record.map(|record| Shown::new(&record, &bytes, offset, len)));
        }
        // Read anew, and so checked anew.
        let bytes = self.bytes(offset, len).await?;
        let record = Record::decode(&bytes, salt, offset);
        Ok(record.map(|record| Shown::new(&record, &bytes, offset, len)))
    }

    /// Between groups there may be zeroes to the end of the block. Where less is to be read there is
    /// no padding: the writer will go on in that block.
    async fn skip_padding(&mut self) -> Result<bool> {
        let end = self.offset.next_multiple_of(BLOCK);
        let padding = usize::try_from(end - self.offset).expect("less than a block");
        if padding == 0 || end > self.len {
            return Ok(false);
        }
        let bytes = self.bytes(self.offset, padding).await?;
        // Most of a segment of small groups is padding.
        let zeroes = bytes.get(..padding).is_some_and(|bytes| *bytes == ZEROES[..padding]);
        if zeroes {
            self.offset = end;
        }
        Ok(zeroes)
    }

    /// What is at `offset` does not validate: is that the tail, or damage?
    async fn judge(&mut self, error: RecordError) -> Result<()> {
        let at = self.offset;
        let mut proof = false;
        let mut next = None;
        let first = self.bytes(at, 8).await?;
        if first.iter().take(8).any(|&byte| byte != 0) {
            self.seen.torn_bytes += 8;
        }
        let mut offset = at;
        // Any valid mark further on will do; records are aligned to 8 bytes.
        while offset + 8 < self.len {
            offset += 8;
            let bytes = self.bytes(offset, HEADER_LEN + 8).await?;
            if bytes.len() < HEADER_LEN {
                break;
            }
            // No sum of a salted header is zero but by a chance of 2^-32; most of a tail is.
            if bytes[..HEADER_LEN].iter().all(|&byte| byte == 0) {
                offset += zeroes(&bytes).saturating_sub(HEADER_LEN as u64) / 8 * 8;
                continue;
            }
            self.seen.torn_bytes += 8;
            let Ok(header) = Record::decode_header(&bytes, self.segment.salt, offset) else {
                continue;
            };
            let bytes = self.bytes(offset, header.total()).await?;
            if let Ok(record) = Record::decode(&bytes, self.segment.salt, offset) {
                self.seen.torn_records += 1;
                let mark = Mark::of(&record);
                let found = record.kind == Kind::Seal && offset == at.next_multiple_of(BLOCK);
                let end = self.end();
                if found && mark.is_some_and(|mark| mark.durable == at && mark.after == end) {
                    // A recovery found the end here, and sealed behind what was torn.
                    (self.seen.torn_bytes, self.seen.torn_records) = (0, 0);
                    self.offset = offset;
                    return Ok(());
                }
                next.get_or_insert(offset);
                if mark.is_some_and(|mark| mark.durable > at) {
                    proof = true;
                    break;
                }
            }
        }
        if !proof && !self.strictness.sealed {
            self.ended = true;
            return Ok(());
        }
        let missing = error == RecordError::Header && next.is_none() && self.strictness.sealed;
        let reason = if missing {
            "the segment was sealed, and its end is not there"
        } else {
            error.reason()
        };
        let damage = self.segment.corrupt(at, reason);
        if !self.strictness.salvage {
            return Err(damage);
        }
        (self.seen.torn_bytes, self.seen.torn_records) = (0, 0);
        self.seen.damage.push(damage);
        match next {
            Some(next) => (self.offset, self.end) = (next, None),
            None => self.ended = true,
        }
        Ok(())
    }
}
