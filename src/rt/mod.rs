//! A minimal thread-per-core `io_uring` runtime for storage and network I/O.
//!
//! It stands on its own and is meant to be read. One thread has one [`Executor`], one ring, and
//! one mailbox by which the other threads reach it:
//!
//! ```text
//! Runtime            threads, round robin, stop                          runtime.rs
//!   Handle           schedule, schedule_on, Owned                        handle.rs owned.rs
//!     Mailbox          what other threads send; the wake protocol        mailbox.rs
//!   Executor         the loop of one thread                              executor.rs
//!     Context          its tasks and operations                          context.rs
//!       Header, Task     what wakers know; what awaiters hold            task.rs join.rs
//!       Op, Cell         an operation from submission to completion      op.rs cell.rs
//!     Driver           the seam: requests down, completions up           driver.rs
//!       Ring             io_uring                                        ring.rs config.rs
//! read write fsync open ...    fs.rs      accept connect recv send ...   net.rs address.rs
//! stat list free_space         stat.rs    cancel cancel_fd close         cancel.rs
//! timeout with_deadline now    time.rs    AlignedBuf for direct I/O      aligned.rs
//! ```
//!
//! What it keeps, whatever the caller does:
//!
//! - **A buffer belongs to its operation from submission to completion.** Operations take buffers
//!   by value ([`IoBuf`], [`IoBufMut`]) and give them back with the result. Dropping a future, a
//!   task or an executor never frees memory that the kernel still uses.
//! - **A descriptor stays open while an operation uses it** ([`Fd`]).
//! - **No wake is lost**, and a thread that is awake is not woken.
//! - **A panic stays in its task** and reaches whoever awaits it.
//! - **Stopping drains** and never hangs.
//!
//! Tasks started with [`spawn`] stay on their thread and need not be `Send`. Tasks started with
//! [`Handle::schedule`] are `Send` and may hop: [`schedule_on`] moves the running task to another
//! thread, whose ring then serves it.

mod address;
mod affinity;
mod aligned;
mod blocking;
mod buf;
mod cancel;
mod cell;
mod config;
mod context;
pub mod driver;
mod event;
mod executor;
mod fd;
mod fs;
mod handle;
mod join;
mod mailbox;
mod net;
mod op;
mod owned;
mod park;
mod ring;
mod runtime;
mod slab;
mod spin;
mod stat;
mod sync;
mod task;
mod time;

/// The operations by name, for those who keep an [`Op`] in a struct.
pub mod ops {
    pub use super::fs::{Plain, Read, Write};
    pub use super::net::{Accept, Recv, Send};
    pub use super::stat::{List, Space, Stat};
    pub use super::time::Timeout;
}

pub use address::Address;
pub use aligned::AlignedBuf;
pub(crate) use blocking::max_open_files;
pub use buf::{IoBuf, IoBufMut, Part};
pub use cancel::{cancel, cancel_fd, close};
pub use config::{
    ExecutorConfig, MAX_ENTRIES, SETUP_CLAMP, SETUP_COOP_TASKRUN, SETUP_DEFER_TASKRUN,
    SETUP_NO_SQARRAY, SETUP_SINGLE_ISSUER, SETUP_SQPOLL, SETUP_SUBMIT_ALL, SETUP_TASKRUN_FLAG,
    SetupError,
};
pub(crate) use context::outlive_operations;
pub(crate) use event::Event;
pub use executor::{Executor, spawn, yield_now};
pub use fd::Fd;
pub use fs::{
    BufResult, advise, allocate, fsync, link, make_dir, nop, open, read, read_exact, rename,
    shutdown, truncate, unlink, write, write_all, write_now, write_with,
};
pub(crate) use handle::Unstarted;
pub use handle::{Handle, HopError, ScheduleOn, schedule_on};
pub use join::{JoinError, Task};
pub use net::{accept, connect, recv, send, send_all, socket};
pub use op::{Op, OpId};
pub use owned::Owned;
pub use park::block_on;
pub(crate) use park::wait;
pub use runtime::{Runtime, RuntimeConfig, StopError};
pub use stat::{DirectAlign, FileStat, FsSpace, free_space, list, stat};
pub use time::{Elapsed, now, timeout, timeout_ms, wall, with_deadline};
