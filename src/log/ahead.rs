//! Zeroes ahead of the tail, while groups are small.
//!
//! A direct write into space that was only allocated makes the file system note that it is written
//! now, and to make that note durable takes a group of one block from half as long again to four
//! times as long, without and with a journal (DESIGN.md, "How groups are made durable"). Zeroes that
//! are there already spare it. They are written twice for that, so large groups, which would pay more
//! than they save, have none; nor have files that are not written directly.
//!
//! Invariants: no zeroes go where a group was or is being written, since a group claims its blocks
//! first and waits for the piece that is on its way there; none go beyond what is prepared; if they
//! cannot be written, the next group fails as if it had been its own write.

use super::segment::Segment;
use super::{BLOCK, BLOCK_LEN};
use crate::rt::{AlignedBuf, Event};
use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;

/// The most that is written at a time: short enough for reads that wait behind it.
const PIECE: u64 = 256 << 10;
/// How many pieces are to be there: 32 groups of the largest that count as small, so that none waits
/// for a piece. Half of them are made anew at a time, so that few tasks are started for it.
const PIECES: u64 = 4;

/// A piece that is being written.
#[derive(Debug)]
struct Piece {
    start: u64,
    done: Rc<Event>,
}

/// Of one segment. See the module.
#[derive(Debug)]
pub(crate) struct Ahead {
    segment: Rc<Segment>,
    piece: u64,
    /// Groups have been or are being written below.
    claimed: Cell<u64>,
    /// The last piece that was written ends here.
    end: Cell<u64>,
    running: Cell<bool>,
    writing: RefCell<Option<Piece>>,
    failed: RefCell<Option<io::Error>>,
}

impl Ahead {
    /// For a segment that is full at `limit`: small ones have small pieces.
    pub(crate) fn new(segment: Rc<Segment>, limit: u64) -> Self {
        let piece = (limit / 16 / BLOCK * BLOCK).clamp(BLOCK, PIECE);
        let (claimed, end, running) = (Cell::new(BLOCK), Cell::new(BLOCK), Cell::new(false));
        let (writing, failed) = (RefCell::default(), RefCell::default());
        Self { segment, piece, claimed, end, running, writing, failed }
    }

    /// Whether to [`run`](Self::run) now, after a group of so many bytes. It counts as running then.
    pub(crate) fn starts(&self, group: usize, prepared: u64) -> bool {
        let small = group as u64 <= (self.piece / 8).max(BLOCK);
        let near = self.end.get() < self.claimed.get().saturating_add(PIECES / 2 * self.piece);
        let can = self.segment.is_direct() && !self.running.get();
        let starts = small && near && can && self.next(prepared).is_some();
        self.running.set(starts || self.running.get());
        starts
    }

    /// The blocks up to `end` belong to a group, or to what is written behind the last one: no piece
    /// begins in them from here on, and none is on its way there when this is done.
    pub(crate) async fn claim(&self, end: u64) -> io::Result<()> {
        self.claimed.set(self.claimed.get().max(end));
        loop {
            let done = match &*self.writing.borrow() {
                Some(piece) if piece.start < end => Rc::clone(&piece.done),
                _ => break,
            };
            done.wait().await;
        }
        self.failed.take().map_or(Ok(()), Err)
    }

    /// No more pieces: the segment is sealed, or a write to it has failed.
    pub(crate) fn stop(&self) {
        self.claimed.set(u64::MAX);
    }

    /// Writes the pieces that are missing, as far as the segment is prepared. Tells how many bytes
    /// that were.
    pub(crate) async fn run(&self, prepared: u64, sync: bool) -> u64 {
        let _running = Running(self);
        let (mut zeroes, mut written) = (AlignedBuf::new(), 0);
        while let Some((start, len)) = self.next(prepared) {
            zeroes.resize(len);
            let done = Rc::new(Event::new());
            self.writing.replace(Some(Piece { start, done: Rc::clone(&done) }));
            let (result, buf) = self.segment.write(zeroes, start, sync, false).await;
            zeroes = buf;
            written += len as u64;
            self.end.set(start + len as u64);
            self.writing.take();
            done.set();
            if let Err(error) = result {
                self.failed.replace(Some(error));
                break;
            }
        }
        written
    }

    /// Where the next piece begins, and its length.
    fn next(&self, prepared: u64) -> Option<(u64, usize)> {
        // A lead for the groups that come meanwhile: they are not to wait for this piece.
        let lead = (self.piece / 4).next_multiple_of(BLOCK);
        let clear = self.claimed.get().checked_add(lead)?;
        let start = self.end.get().max(clear).next_multiple_of(BLOCK);
        let end = (start + self.piece).min(prepared / BLOCK * BLOCK);
        let wanted = start < clear + PIECES * self.piece;
        let len = usize::try_from(end.checked_sub(start)?).expect("at most a piece");
        (wanted && len >= BLOCK_LEN).then_some((start, len))
    }
}

/// While pieces are written. However that ends, nobody waits for it for ever.
struct Running<'a>(&'a Ahead);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let Self(ahead) = self;
        ahead.running.set(false);
        if let Some(cut_short) = ahead.writing.take() {
            let error = io::Error::other("zeroes that were being written were dropped");
            ahead.failed.replace(Some(error));
            cut_short.done.set();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::Identity;
    use crate::rt::{Executor, ExecutorConfig};
    use futures::poll;
    use std::pin::pin;

    const LIMIT: u64 = 256 << 10;
    const PREPARED: u64 = 32 * BLOCK;
    const BLOCKS: usize = 32;

    /// All blocks are full of 0xff, so zeroes are seen.
    fn on_a_segment<F: Future>(work: impl FnOnce(Rc<Segment>) -> F) -> F::Output {
        let dir = tempfile::tempdir().unwrap();
        Executor::new(ExecutorConfig::default()).unwrap().block_on(async {
            let identity = Identity { store: [7; 16], partition: 0 };
            let made = Segment::create(dir.path(), &identity, 1, 2, PREPARED).await;
            let segment = Rc::new(made.unwrap());
            let mut full = AlignedBuf::new();
            full.extend_from_slice(&vec![0xff; BLOCKS * BLOCK_LEN]);
            segment.write(full, 0, false, false).await.0.unwrap();
            work(segment).await
        })
    }

    async fn last_bytes(segment: &Segment) -> Vec<u8> {
        let bytes = segment.read(0, BLOCKS * BLOCK_LEN).await.unwrap();
        bytes.chunks(BLOCK_LEN).map(|block| block[BLOCK_LEN - 1]).collect()
    }

    #[test]
    fn zeroes_go_behind_what_is_claimed_and_not_beyond_what_is_prepared() {
        on_a_segment(|segment| async move {
            let ahead = Ahead::new(Rc::clone(&segment), LIMIT);
            assert_eq!(ahead.piece, 4 * BLOCK);
            ahead.claim(3 * BLOCK).await.unwrap();
            assert_eq!(ahead.run(PREPARED, false).await, 16 * BLOCK);
            let after = last_bytes(&segment).await;
            assert!(after[..4].iter().all(|&byte| byte == 0xff), "{after:?}");
            assert!(after[4..20].iter().all(|&byte| byte == 0), "{after:?}");
            assert!(after[20..].iter().all(|&byte| byte == 0xff), "{after:?}");
            ahead.claim(30 * BLOCK).await.unwrap();
            assert_eq!(ahead.run(PREPARED, false).await, BLOCK);
            assert_eq!(last_bytes(&segment).await[20..31], [0xff; 11]);
            assert_eq!(last_bytes(&segment).await[31], 0);
            ahead.stop();
            assert_eq!(ahead.run(u64::MAX, false).await, 0, "it is ended");
        });
    }

    #[test]
    fn zeroes_are_wanted_while_groups_are_small_and_there_are_too_few() {
        on_a_segment(|segment| async move {
            let ahead = Ahead::new(Rc::clone(&segment), LIMIT);
            if !segment.is_direct() {
                return assert!(!ahead.starts(BLOCK_LEN, PREPARED));
            }
            assert!(!ahead.starts(BLOCK_LEN + 1, PREPARED), "for a large group");
            assert!(!ahead.starts(BLOCK_LEN, 2 * BLOCK), "there is nothing prepared");
            assert!(ahead.starts(BLOCK_LEN, PREPARED));
            assert!(!ahead.starts(BLOCK_LEN, PREPARED), "it runs");
            ahead.run(PREPARED, false).await;
            assert!(!ahead.starts(BLOCK_LEN, PREPARED), "there are enough");
            ahead.claim(12 * BLOCK).await.unwrap();
            assert!(ahead.starts(BLOCK_LEN, PREPARED), "half of them are used up");
        });
    }

    #[test]
    fn a_group_waits_for_the_piece_that_is_written_where_it_goes() {
        on_a_segment(|segment| async move {
            let ahead = Ahead::new(segment, LIMIT);
            let done = Rc::new(Event::new());
            ahead.writing.replace(Some(Piece { start: 8 * BLOCK, done: Rc::clone(&done) }));
            ahead.claim(8 * BLOCK).await.unwrap();
            let mut claim = pin!(ahead.claim(9 * BLOCK));
            assert!(poll!(&mut claim).is_pending());
            ahead.writing.take();
            done.set();
            assert!(poll!(&mut claim).is_ready());
        });
    }

    #[test]
    fn a_group_fails_by_what_could_not_be_written_ahead_of_it() {
        on_a_segment(|segment| async move {
            let ahead = Ahead::new(Rc::clone(&segment), LIMIT);
            // A direct write has to begin where a block does, and any at a place that there is.
            ahead.end.set(u64::MAX / 2 / BLOCK * BLOCK);
            ahead.claimed.set(ahead.end.get());
            ahead.run(u64::MAX, false).await;
            let failed = ahead.claim(BLOCK).await.unwrap_err();
            assert!(failed.raw_os_error().is_some(), "{failed}");
            ahead.claim(BLOCK).await.unwrap();
        });
    }

    #[test]
    fn a_group_fails_if_what_was_written_ahead_of_it_was_dropped() {
        on_a_segment(|segment| async move {
            let ahead = Ahead::new(segment, LIMIT);
            {
                let mut zeroes = pin!(ahead.run(PREPARED, false));
                assert!(poll!(&mut zeroes).is_pending());
            }
            ahead.claim(9 * BLOCK).await.unwrap_err();
            assert!(!ahead.running.get());
        });
    }
}
