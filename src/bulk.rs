//! What concerns many entries at a time: [`Scan`], verification, backups.
//!
//! Invariants: a scan has no more than one step of entries ahead of its reader, so its memory is
//! bounded and nobody is held up by a slow one; a backup is a cut through all partitions.

use crate::error::{Error, Result};
use crate::partition::{Partition, Verified, Walk, Walked};
use crate::reply::Reply;
use crate::router::Router;
use crate::rt::Owned;
use bytes::Bytes;
use futures_core::Stream;
use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// An entry of a store.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Entry {
    /// Its key.
    pub key: Bytes,
    /// Its value.
    pub value: Bytes,
    /// Its version: each write gives a key one that it never had before.
    pub version: u64,
    /// From when on it is not there any more, to the millisecond.
    pub expires_at: Option<SystemTime>,
}

pub(crate) fn time_of(expiry: Option<u64>) -> Option<SystemTime> {
    expiry.and_then(|millis| UNIX_EPOCH.checked_add(Duration::from_millis(millis)))
}

impl From<Walked> for Entry {
    fn from(walked: Walked) -> Self {
        let Walked { key, value, version, expiry } = walked;
        Self { key, value, version, expires_at: time_of(expiry) }
    }
}

/// What [`Store::verify`](crate::Store::verify) found.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct VerifyReport {
    /// Records that were read and checked, dead ones included. Marks and seals do not count.
    pub records: u64,
    /// Bytes of the logs that it went through, the first blocks of their files included.
    pub bytes: u64,
    /// Sealed segments that have no hint: the next opening reads them instead. Nothing is lost by it.
    pub missing_hints: u64,
    /// What does not fit, each an [`Error::Corrupt`] with its file and offset, or an
    /// [`Error::FormatVersion`] with its file. Empty for a sound store.
    pub problems: Vec<Error>,
}

impl VerifyReport {
    pub(crate) fn of(parts: Vec<Verified>) -> Self {
        let mut report = Self::default();
        for part in parts {
            report.records += part.records;
            report.bytes += part.bytes;
            report.missing_hints += part.missing_hints;
            report.problems.extend(part.problems);
        }
        report
    }

    /// Whether nothing was found.
    pub fn is_sound(&self) -> bool {
        self.problems.is_empty()
    }
}

/// A stream over the live entries of a store. From [`Store::scan`](crate::Store::scan) and
/// [`Store::scan_prefix`](crate::Store::scan_prefix).
///
/// In no order. An entry that is not written to while the scan is under way is shown exactly once;
/// one that is may be shown with its old value, its new one, or not at all. Nothing happens before
/// the first poll; from then on the next 256 KiB of entries, or what there is of them in a MiB of
/// the log, are read while the last ones are taken. Memory: two such steps and the MiB that was
/// read last; more where single entries are larger. Where merges move entries ahead of it, it keeps
/// in mind which: some 2 MB at most, as long as no segment has more than 2^16 entries.
///
/// Each partition is read as it is when the scan comes to it. What is shown was acknowledged; what
/// has expired is not shown, and that it has is made durable first, as for a get.
///
/// A scan keeps the files that it has yet to read, also those that merges replace meanwhile: the
/// space comes back when it has passed them, or is dropped. Merges leave those alone that it could
/// not keep in mind. It holds up nothing else. It does not keep the store open. Dropping it, at any
/// time, ends it; the step that is under way is not waited for.
///
/// # Errors
///
/// An item may be an error, and is the last one then: [`Error::Corrupt`] for what does not
/// validate, [`Error::Io`] if a file cannot be read, [`Error::Closed`] if the store was closed,
/// before or meanwhile, or its last handle dropped. A poisoned partition can be scanned,
/// but gives [`Error::Poisoned`] if the log lacks writes that were acknowledged without a sync.
pub struct Scan {
    router: Arc<Router>,
    prefix: Bytes,
    /// The partition that is being read.
    partition: usize,
    walk: Option<Arc<Owned<Walk>>>,
    step: Option<Reply<Step>>,
    entries: VecDeque<Walked>,
    ended: bool,
}

/// What a step gives.
enum Step {
    Begun(Owned<Walk>),
    /// And whether they are the partition's last.
    Entries(Vec<Walked>, bool),
}

impl Scan {
    pub(crate) fn new(router: Arc<Router>, prefix: Bytes, ended: Option<Error>) -> Self {
        let step = ended.map(Reply::error);
        let (walk, entries) = (None, VecDeque::new());
        Self { router, prefix, partition: 0, walk, step, entries, ended: false }
    }

    /// The next entry; `None` at the end, and after an error. Dropping the future loses no entry:
    /// the next call goes on.
    pub async fn next(&mut self) -> Option<Result<Entry>> {
        std::future::poll_fn(|cx| Pin::new(&mut *self).poll_next(cx)).await
    }

    fn next_step(&self) -> Reply<Step> {
        match &self.walk {
            Some(walk) => {
                let walk = Arc::clone(walk);
                Reply::new(async move {
                    let step = walk.schedule(|walk: Rc<Walk>| async move { walk.next().await });
                    let (entries, last) = step.await.map_err(Error::from)??;
                    Ok(Step::Entries(entries, last))
                })
            }
            None => {
                let (router, index) = (Arc::clone(&self.router), self.partition);
                let prefix = self.prefix.clone();
                let begin = move |partition: Rc<Partition>| async move {
                    partition.keep_promises().await?;
                    Ok(Step::Begun(Owned::new(partition.walk(prefix))))
                };
                Reply::new(async move { router.send_to(index, 0, begin).await })
            }
        }
    }
}

impl Stream for Scan {
    type Item = Result<Entry>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(walked) = self.entries.pop_front() {
                return Poll::Ready(Some(Ok(walked.into())));
            }
            if self.ended {
                return Poll::Ready(None);
            }
            if self.step.is_none() {
                self.step = Some(self.next_step());
            }
            let Some(step) = &mut self.step else { unreachable!("it was made just now") };
            let Poll::Ready(done) = Pin::new(step).poll(cx) else { return Poll::Pending };
            self.step = None;
            match done {
                Ok(Step::Begun(walk)) => self.walk = Some(Arc::new(walk)),
                Ok(Step::Entries(entries, last)) => {
                    self.entries = entries.into();
                    if last {
                        self.walk = None;
                        self.partition += 1;
                        self.ended = self.partition == self.router.partitions();
                    } else if !self.entries.is_empty() {
                        let mut next = self.next_step();
                        next.start(cx);
                        self.step = Some(next);
                    }
                }
                Err(error) => {
                    self.ended = true;
                    return Poll::Ready(Some(Err(error)));
                }
            }
        }
    }
}

impl fmt::Debug for Scan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scan").field("partition", &self.partition).finish_non_exhaustive()
    }
}

/// Sends all requests, and gives their answers in order.
pub(crate) async fn ask_all<T: Send + 'static>(
    requests: impl IntoIterator<Item = Reply<T>>,
) -> Result<Vec<T>> {
    let mut replies: Vec<Reply<T>> = requests.into_iter().collect();
    // One poll sends each request; then they are awaited one after the other.
    std::future::poll_fn(|cx| {
        for reply in &mut replies {
            reply.start(cx);
        }
        Poll::Ready(())
    })
    .await;
    let mut answers = Vec::with_capacity(replies.len());
    for reply in replies {
        answers.push(reply.await?);
    }
    Ok(answers)
}

#[cfg(test)]
mod tests {
    use crate::partition::Partition;
    use crate::{Store, rt::block_on};
    use std::rc::Rc;

    /// On the thread of a store's only partition.
    fn ask<T: Send + Default + 'static>(
        store: &Store,
        what: impl Fn(Rc<Partition>) -> T + Copy + Send + Sync + 'static,
    ) -> T {
        let on = move |partition| {
            let answer = what(partition);
            std::future::ready(Ok(answer))
        };
        block_on(store.on_all(on, |mut answers| answers.pop().unwrap_or_default())).unwrap()
    }

    fn verify_finds(store: &Store, what: &str) {
        let problems = block_on(store.verify()).unwrap().problems;
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(problems[0].to_string().contains(what), "{problems:?}");
    }

    #[test]
    fn verification_finds_an_index_that_points_to_no_record_of_the_active_segment() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), 1).unwrap();
        block_on(store.put("key", "value")).unwrap();
        assert!(block_on(store.verify()).unwrap().is_sound());
        ask(&store, |partition| partition.index_a_phantom());
        verify_finds(&store, "the index has records");
    }

    #[test]
    fn verification_finds_an_index_that_lacks_a_key_or_has_what_is_older() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), 1).unwrap();
        let says = |entry| ask(&store, move |partition| partition.index_so(b"key", entry));
        block_on(store.put("key", "first")).unwrap();
        let first = says(None);
        verify_finds(&store, "the index lacks a record");
        says(first);
        assert!(block_on(store.verify()).unwrap().is_sound());

        block_on(store.put("key", "second")).unwrap();
        let second = says(first);
        verify_finds(&store, "the index lacks a record");
        says(second);
        assert!(block_on(store.verify()).unwrap().is_sound());

        block_on(store.delete("key")).unwrap();
        let tombstone = says(second);
        verify_finds(&store, "the index lacks a record");
        says(tombstone);
        assert!(block_on(store.verify()).unwrap().is_sound());
    }
}
