//! Reading a log from its start to its tail, as recovery does.
//!
//! Invariant: the scan ends at the first byte that is not part of a valid record. If a mark further
//! on says that this byte was durable, it is corrupt, and the scan fails; otherwise it is where a
//! crash tore the tail. Memory is bounded by the largest record that a valid header announces and
//! the file has room for.

use super::file::FILE_HEADER_LEN;
use super::record::{HEADER_LEN, Kind, Record, RecordError};
use super::{CHUNK, Location, read_at};
use crate::error::{Error, Result};
use crate::rt::Fd;
use std::path::Path;

/// Shows the records of a log, one after the other.
pub(crate) struct Scan<'a> {
    fd: &'a Fd,
    path: &'a Path,
    salt: u64,
    len: u64,
    /// Where in the file the next record begins, and where that is in `window`.
    offset: u64,
    at: usize,
    window: Vec<u8>,
}

impl<'a> Scan<'a> {
    pub(crate) fn new(fd: &'a Fd, path: &'a Path, salt: u64, len: u64) -> Self {
        let offset = FILE_HEADER_LEN as u64;
        Self { fd, path, salt, len, offset, at: 0, window: Vec::new() }
    }

    /// Where the scan stands; after its end, where the log goes on.
    pub(crate) fn tail(&self) -> u64 {
        self.offset
    }

    /// The next put or delete; `None` at the tail.
    pub(crate) async fn next(&mut self) -> Result<Option<(Record<'_>, Location)>> {
        loop {
            self.fill(HEADER_LEN).await?;
            let header = Record::header(&self.window[self.at..], self.salt, self.offset);
            let Ok((kind, lengths)) = header else {
                return self.end(RecordError::Header).await;
            };
            let total = lengths.total();
            if total as u64 > self.len - self.offset {
                return self.end(RecordError::Short).await;
            }
            self.fill(total).await?;
            if let Err(error) = Record::decode(&self.window[self.at..], self.salt, self.offset) {
                return self.end(error).await;
            }
            let (at, offset) = (self.at, self.offset);
            self.at += total;
            self.offset += total as u64;
            if kind != Kind::Mark {
                let Ok(record) = Record::decode(&self.window[at..], self.salt, offset) else {
                    unreachable!("it was decoded a moment ago")
                };
                let len = u32::try_from(total).expect("a record fits a header's lengths");
                return Ok(Some((record, Location { offset, len })));
            }
        }
    }

    /// Makes the window hold `want` bytes from `at` on, or all that the file has.
    async fn fill(&mut self, want: usize) -> Result<()> {
        let held = self.window.len() - self.at;
        let left = self.len - self.offset;
        if held >= want || held as u64 >= left {
            return Ok(());
        }
        self.window.drain(..self.at);
        self.at = 0;
        let more = want.max(CHUNK) as u64;
        let more = usize::try_from(more.min(left) - held as u64).unwrap_or(usize::MAX);
        let from = self.offset + held as u64;
        let chunk = read_at(self.fd, from, more).await.map_err(Error::io("read", self.path))?;
        self.window.extend_from_slice(&chunk);
        Ok(())
    }

    /// The record at `offset` does not validate: is that the tail, or damage?
    async fn end(&mut self, error: RecordError) -> Result<Option<(Record<'_>, Location)>> {
        let damage = self.offset;
        // Any valid mark further on will do; records are aligned to 8 bytes.
        while self.offset + 8 < self.len {
            self.offset += 8;
            self.at += 8;
            self.fill(HEADER_LEN).await?;
            let bytes = &self.window[self.at..];
            if let Ok((Kind::Mark, _)) = Record::header(bytes, self.salt, self.offset)
                && let Ok(mark) = Record::decode(bytes, self.salt, self.offset)
                && mark.sequence > damage
            {
                let reason = match error {
                    RecordError::Header => "the checksum of a record's header does not match",
                    RecordError::Body => "the checksum of a record's body does not match",
                    RecordError::Short => "a record is longer than the file",
                };
                let path = self.path.to_owned();
                return Err(Error::Corrupt { path, offset: damage, reason });
            }
        }
        // The log ends here: there is nothing more to show.
        (self.offset, self.len) = (damage, damage);
        (self.window, self.at) = (Vec::new(), 0);
        Ok(None)
    }
}
