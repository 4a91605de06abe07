//! ringlog: an embedded, partitioned, append-log key-value store for Linux, on its own
//! thread-per-core `io_uring` runtime.
//!
//! ```no_run
//! # ringlog::rt::block_on(async {
//! let store = ringlog::Store::open("data", 4)?; // 4 partitions, each owned by a ring thread
//! store.put("user:17", b"Ada").await?; // durable when it returns, and no thread is parked
//! let value = store.get("user:17").await?; // Option<Bytes>, from a cache or by one disk read
//! store.close().await
//! # })?;
//! # Ok::<(), ringlog::Error>(())
//! ```
//!
//! **For** services that are async and keep their data on NVMe: every operation is a future that a
//! ring completes, on whatever executor it is awaited. **Not** a server, not ordered, not
//! transactional across keys, and not portable: Linux 6.1 or later with `io_uring`.
//!
//! # Layout
//!
//! A module uses only what is below it; read on from the top.
//!
//! | Module | What lives there |
//! |---|---|
//! | `store`, `bulk`, `options`, `open`, `reply` | the front door |
//! | `router` | from a key to the thread that owns it, with a bound |
//! | `partition` | one log: its keydir, group commit, merges, recovery |
//! | `log` | segments of checksummed records, and their hints |
//! | `limits`, `durability`, `error`, | what is bounded, what is promised, what goes wrong, |
//! | `stats`, `report` | what is counted, what was found |
//! | [`rt`] | the runtime: usable on its own |

#![deny(unsafe_code)] // but for the few files of `rt` that say why

mod bulk;
mod durability;
mod error;
mod limits;
mod log;
mod open;
mod options;
mod partition;
mod reply;
mod report;
mod router;
pub mod rt;
mod stats;
mod store;

pub use bulk::{Entry, Scan, VerifyReport};
pub use bytes::Bytes;
pub use durability::Durability;
pub use error::{Error, Result};
pub use limits::{
    CACHE_BYTES, MAX_KEY_LEN, MAX_PARTITIONS, MAX_SEGMENT_BYTES, MAX_VALUE_LEN, MIN_SEGMENT_BYTES,
    QUEUE_BYTES, REQUEST_OVERHEAD, SEGMENT_BYTES,
};
pub use options::{Builder, PutOptions};
pub use reply::Reply;
pub use report::{OpenReport, PartitionReport};
pub use stats::{PartitionStats, Stats};
pub use store::Store;
