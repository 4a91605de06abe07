//! Zeroes ahead of the tail, while groups are small.
//!
//! A direct write into space that was only allocated makes the file system note that it is written
//! now. That is metadata, and to make it durable costs a small group more than its own bytes: with
//! zeroes there already it is a third to two thirds of the time (DESIGN.md, "How groups are made
//! durable"). Large groups would pay for the zeroes more than they save. Invariants: no zeroes go
//! where a group was or is being written, since a group claims its blocks first and waits for the
//! piece that is on its way there; none go beyond what is prepared; if they cannot be written, the
//! next group fails as if it had been its own write.

use super::segment::Segment;
use super::{BLOCK, BLOCK_LEN};
use crate::rt::{AlignedBuf, Event};
use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;

/// The most that is written at a time: short enough for reads that wait behind it.
const PIECE: u64 = 256 << 10;
/// How many pieces are to be there. Half of them are made anew at a time.
const PIECES: u64 = 4;

/// A piece that is being written.
#[derive(Debug)]
struct Busy {
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
    busy: RefCell<Option<Busy>>,
    failed: RefCell<Option<io::Error>>,
}

impl Ahead {
    /// For a segment that is full at `limit`: small ones have small pieces.
    pub(crate) fn new(segment: Rc<Segment>, limit: u64) -> Self {
        let piece = (limit / 128 / BLOCK * BLOCK).clamp(BLOCK, PIECE);
        let (claimed, end, running) = (Cell::new(BLOCK), Cell::new(BLOCK), Cell::new(false));
        let (busy, failed) = (RefCell::default(), RefCell::default());
        Self { segment, piece, claimed, end, running, busy, failed }
    }

    /// Whether to [`run`](Self::run) now, after a group of so many bytes. It counts as running then.
    pub(crate) fn starts(&self, group: usize) -> bool {
        let small = group as u64 <= (self.piece / 8).max(BLOCK);
        let near = self.end.get() < self.claimed.get().saturating_add(PIECES / 2 * self.piece);
        let starts = small && near && self.segment.is_direct() && !self.running.get();
        self.running.set(starts || self.running.get());
        starts
    }

    /// The blocks up to `end` are a group's from here on, or what comes behind the last one's.
    pub(crate) async fn claim(&self, end: u64) -> io::Result<()> {
        self.claimed.set(self.claimed.get().max(end));
        loop {
            let done = match &*self.busy.borrow() {
                Some(busy) if busy.start < end => Rc::clone(&busy.done),
                _ => break,
            };
            done.wait().await;
        }
        self.failed.take().map_or(Ok(()), Err)
    }

    /// Writes the pieces that are missing, as far as the segment is prepared.
    pub(crate) async fn run(&self, prepared: u64, sync: bool) {
        let mut zeroes = AlignedBuf::new();
        while let Some((start, len)) = self.next(prepared) {
            zeroes.resize(len);
            let done = Rc::new(Event::new());
            self.busy.replace(Some(Busy { start, done: Rc::clone(&done) }));
            let (result, buf) = self.segment.write(zeroes, start, sync, false).await;
            zeroes = buf;
            self.end.set(start + len as u64);
            self.busy.take();
            done.set();
            if let Err(error) = result {
                self.failed.replace(Some(error));
                break;
            }
        }
        self.running.set(false);
    }

    /// Where the next piece begins, and its length.
    fn next(&self, prepared: u64) -> Option<(u64, usize)> {
        // The next groups are on their way already, and are not to wait.
        let clear = self.claimed.get().checked_add((self.piece / 4).next_multiple_of(BLOCK))?;
        let start = self.end.get().max(clear).next_multiple_of(BLOCK);
        let end = (start + self.piece).min(prepared / BLOCK * BLOCK);
        let wanted = start < clear + PIECES * self.piece;
        let len = usize::try_from(end.checked_sub(start)?).expect("at most a piece");
        (wanted && len >= BLOCK_LEN).then_some((start, len))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::Identity;
    use crate::rt::{Executor, ExecutorConfig, spawn, yield_now};

    const LIMIT: u64 = 512 * BLOCK;
    const PREPARED: u64 = 32 * BLOCK;

    /// What 0xff is written over is seen if zeroes are written over that.
    async fn fill(segment: &Segment, from: u64, blocks: usize) {
        let mut buf = AlignedBuf::new();
        buf.extend_from_slice(&vec![0xff; BLOCK_LEN * blocks]);
        segment.write(buf, from, false, false).await.0.unwrap();
    }

    async fn blocks(segment: &Segment) -> Vec<u8> {
        let bytes = segment.read(0, 32 * BLOCK_LEN).await.unwrap();
        bytes.chunks(BLOCK_LEN).map(|block| block[BLOCK_LEN - 1]).collect()
    }

    fn on_a_segment<F: Future>(work: impl FnOnce(Rc<Segment>) -> F) -> F::Output {
        let dir = tempfile::tempdir().unwrap();
        Executor::new(ExecutorConfig::default()).unwrap().block_on(async {
            let identity = Identity { store: [7; 16], partition: 0 };
            let made = Segment::create(dir.path(), &identity, 1, 2, PREPARED).await;
            let segment = Rc::new(made.unwrap());
            fill(&segment, 0, 32).await;
            work(segment).await
        })
    }

    #[test]
    fn zeroes_go_behind_what_is_claimed_and_not_beyond_what_is_prepared() {
        on_a_segment(|segment| async move {
            let ahead = Ahead::new(Rc::clone(&segment), LIMIT);
            assert_eq!(ahead.piece, 4 * BLOCK);
            ahead.claim(3 * BLOCK).await.unwrap();
            ahead.run(PREPARED, false).await;
            let after = blocks(&segment).await;
            assert!(after[..4].iter().all(|&byte| byte == 0xff), "{after:?}");
            assert!(after[4..20].iter().all(|&byte| byte == 0), "{after:?}");
            assert!(after[20..].iter().all(|&byte| byte == 0xff), "{after:?}");
            ahead.claim(30 * BLOCK).await.unwrap();
            ahead.run(PREPARED, false).await;
            assert_eq!(blocks(&segment).await[20..31], [0xff; 11]);
            assert_eq!(blocks(&segment).await[31], 0);
            ahead.claim(u64::MAX).await.unwrap();
            ahead.run(u64::MAX, false).await;
            assert_eq!(segment.read(PREPARED, 1).await.unwrap().len(), 0, "it is ended");
        });
    }

    #[test]
    fn a_group_waits_for_the_piece_that_is_written_where_it_goes() {
        on_a_segment(|segment| async move {
            let ahead = Rc::new(Ahead::new(Rc::clone(&segment), LIMIT));
            let zeroes = {
                let ahead = Rc::clone(&ahead);
                spawn(async move { ahead.run(PREPARED, false).await })
            };
            // The first piece, from block 2 on, is on its way after this, or done.
            yield_now().await;
            ahead.claim(10 * BLOCK).await.unwrap();
            fill(&segment, BLOCK, 9).await;
            zeroes.await.unwrap();
            assert_eq!(blocks(&segment).await[..10], [0xff; 10]);
        });
    }

    #[test]
    fn a_group_fails_by_what_could_not_be_written_ahead_of_it() {
        on_a_segment(|segment| async move {
            let ahead = Ahead::new(Rc::clone(&segment), LIMIT);
            ahead.failed.replace(Some(io::ErrorKind::PermissionDenied.into()));
            let failed = ahead.claim(BLOCK).await.unwrap_err();
            assert_eq!(failed.kind(), io::ErrorKind::PermissionDenied);
        });
    }
}
