//! Many keys at a time: each as if it were alone, but with few requests.
//!
//! Invariants: nothing happens before the first poll; of many puts a partition has one request at a
//! time, so they keep their order, and others come in between.

use super::Store;
use crate::bulk::ask_all;
use crate::error::{Error, Result};
use crate::limits::MAX_KEY_LEN;
use crate::options::PutOptions;
use crate::partition::digest::Digest;
use crate::partition::{Partition, Put};
use crate::reply::Reply;
use bytes::Bytes;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

/// What each of many puts counts for besides its key and value, in bytes: a round figure for what is
/// noted of it until it is staged.
const NOTED: usize = 256;
/// A request has so many bytes of many puts, and the value that goes beyond: some milliseconds of
/// writing, after which others have their turn, and little of what a partition takes in.
const REQUEST_BYTES: usize = 4 << 20;

impl Store {
    /// Stores many values, some thousands with a request: for loading.
    ///
    /// Each is a put of its own, in the order given: of equal keys the last one counts. It is **no
    /// transaction**: others may see some before the rest, and a crash or an error may leave some.
    /// When it resolves to `Ok`, all of them are as durable as the handle's
    /// [`Durability`](crate::Durability) says, and every later `get` sees them.
    ///
    /// All keys and values are copied by this call, before any poll: some thousands at a time, or
    /// some MiB, do as well as all, and two such calls in flight keep a device busy. To each
    /// partition they go in requests of some 4 MiB, one after the other, and other requests come in
    /// between. Dropping the future once it was polled leaves the outcome of each unknown, but
    /// whole; and the request that a partition has then goes on, also over what is written later.
    ///
    /// ```
    /// # let dir = tempfile::tempdir()?;
    /// # ringlog::rt::block_on(async {
    /// # let store = ringlog::Store::open(dir.path(), 2)?;
    /// let squares = (0..1000u64).map(|n| (n.to_be_bytes(), (n * n).to_string()));
    /// store.put_many(squares).await?; // durable, all of them
    /// assert_eq!(store.get(12u64.to_be_bytes()).await?.as_deref(), Some(b"144".as_slice()));
    /// # store.close().await
    /// # })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::KeyTooLarge`] or [`Error::ValueTooLarge`], of any of them: nothing was written.
    /// Else as [`put`](Self::put), of one that failed, when the other partitions are done with
    /// theirs: each of the others has been written or not, and none will be from then on.
    pub fn put_many<K: AsRef<[u8]>, V: AsRef<[u8]>>(
        &self,
        entries: impl IntoIterator<Item = (K, V)>,
    ) -> Reply<()> {
        let router = &self.inner.router;
        let mut parts = Vec::new();
        parts.resize_with(router.partitions(), Vec::new);
        for (key, value) in entries {
            let put = match self.new_put(key.as_ref(), value.as_ref(), PutOptions::new()) {
                Ok(put) => put,
                Err(error) => return Reply::error(error),
            };
            let digest = router.digest(&put.key);
            let requests: &mut Vec<Request> = &mut parts[digest.partition(router.partitions())];
            if requests.last().is_none_or(|request| request.bytes >= REQUEST_BYTES) {
                requests.push(Request::default());
            }
            if let Some(request) = requests.last_mut() {
                request.bytes += put.key.len() + put.value.len() + NOTED;
                request.puts.push((digest, put));
            }
        }
        let inner = Arc::clone(&self.inner);
        Reply::new(async move {
            inner.check_open()?;
            let parts = parts.into_iter().enumerate().map(|(index, requests)| {
                let router = Arc::clone(&inner.router);
                Reply::new(async move {
                    for Request { puts, bytes } in requests {
                        let work = move |p: Rc<Partition>| async move { p.put_many(puts).await };
                        router.send_to(index, bytes, work).await?;
                    }
                    Ok(())
                })
            });
            all(parts.collect()).await
        })
    }

    /// The values of many keys, in their order: what the cache has not takes one request to each
    /// partition that is concerned, its reads in flight together, 64 at a time. Not a snapshot:
    /// writes may come between. The answer holds all the values: how much memory that is, is the
    /// caller's choice of keys. Dropping the future changes nothing.
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get), for any of the keys: then there are no values at all.
    pub fn get_many<K: AsRef<[u8]>>(
        &self,
        keys: impl IntoIterator<Item = K>,
    ) -> Reply<Vec<Option<Bytes>>> {
        let inner = Arc::clone(&self.inner);
        let mut wanted = Vec::new();
        for key in keys {
            let key = key.as_ref();
            if key.len() > MAX_KEY_LEN {
                return Reply::error(Error::KeyTooLarge { len: key.len() });
            }
            wanted.push(Bytes::copy_from_slice(key));
        }
        Reply::new(async move {
            inner.check_open()?;
            let router = &inner.router;
            let mut values = vec![None; wanted.len()];
            let mut parts = vec![(Vec::new(), Vec::new(), 0); router.partitions()];
            for (place, key) in wanted.into_iter().enumerate() {
                let digest = router.digest(&key);
                values[place] = router.cached(digest, &key);
                if values[place].is_none() {
                    let (places, keys, bytes) = &mut parts[digest.partition(router.partitions())];
                    places.push(place);
                    *bytes += key.len();
                    keys.push((digest, key));
                }
            }
            let (mut order, mut asks) = (Vec::new(), Vec::new());
            let parts =
                parts.into_iter().enumerate().filter(|(_, (places, ..))| !places.is_empty());
            for (index, (places, keys, bytes)) in parts {
                let router = Arc::clone(router);
                order.push(places);
                asks.push(Reply::new(async move {
                    let work = move |p: Rc<Partition>| async move { p.get_many(keys).await };
                    router.send_to(index, bytes, work).await
                }));
            }
            for (places, answers) in order.into_iter().zip(ask_all(asks).await?) {
                for (place, value) in places.into_iter().zip(answers) {
                    values[place] = value;
                }
            }
            Ok(values)
        })
    }
}

/// Some of many puts, on their way to a partition.
#[derive(Default)]
struct Request {
    puts: Vec<(Digest, Put)>,
    bytes: usize,
}

/// Awaits all of them side by side. An error is told when none is under way any more.
async fn all(mut replies: Vec<Reply<()>>) -> Result<()> {
    let mut result = Ok(());
    poll_fn(|cx| {
        replies.retain_mut(|reply| match Pin::new(reply).poll(cx) {
            Poll::Pending => true,
            Poll::Ready(Ok(())) => false,
            Poll::Ready(Err(error)) => {
                if result.is_ok() {
                    result = Err(error);
                }
                false
            }
        });
        if replies.is_empty() { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    result
}
