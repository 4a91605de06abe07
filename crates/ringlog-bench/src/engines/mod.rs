//! The echo servers that are compared, each written as a user of that runtime would.
//!
//! Every server does the same: one thread, an accept loop, a task per connection, and in it one
//! 4 KiB buffer that is received into and sent from until the client closes. All get the same
//! listening socket, whose `TCP_NODELAY` the accepted sockets inherit. Where a runtime offers the
//! ring flags for a single-threaded program, they are set.

#[cfg(feature = "compio")]
mod compio;
#[cfg(feature = "glommio")]
mod glommio;
#[cfg(feature = "monoio")]
mod monoio;
mod raw;
mod ringlog;
#[cfg(feature = "tokio")]
mod tokio;

use std::fmt::{self, Display, Formatter};
use std::net::TcpListener;

use anyhow::Result;
use clap::ValueEnum;
use serde::Serialize;

use crate::server::Ready;

/// Size of each connection's buffer.
const BUFFER_SIZE: usize = 4096;

/// Entries of the submission queue, for the engines that let one choose: more than one for each
/// connection of a default run.
const RING_ENTRIES: u32 = 1024;

/// What serves the connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    /// ringlog's runtime
    Ringlog,
    /// the io-uring crate without any runtime: the bound for this way of working
    Raw,
    /// tokio's current-thread runtime, over epoll
    Tokio,
    /// monoio with its `io_uring` driver
    Monoio,
    /// glommio
    Glommio,
    /// compio with its `io_uring` driver
    Compio,
}

impl Engine {
    /// The engines that this program was built with.
    pub fn built() -> impl Iterator<Item = Self> {
        Self::value_variants().iter().copied().filter(|engine| engine.is_built())
    }

    fn is_built(self) -> bool {
        match self {
            Self::Ringlog | Self::Raw => true,
            Self::Tokio => cfg!(feature = "tokio"),
            Self::Monoio => cfg!(feature = "monoio"),
            Self::Glommio => cfg!(feature = "glommio"),
            Self::Compio => cfg!(feature = "compio"),
        }
    }

    /// Serves the connections that come in on `listener`; returns only if that fails.
    pub fn serve(self, listener: TcpListener, ready: Ready) -> Result<()> {
        match self {
            Self::Ringlog => ringlog::serve(listener, ready),
            Self::Raw => raw::serve(&listener, ready),
            #[cfg(feature = "tokio")]
            Self::Tokio => tokio::serve(listener, ready),
            #[cfg(feature = "monoio")]
            Self::Monoio => monoio::serve(listener, ready),
            #[cfg(feature = "glommio")]
            Self::Glommio => glommio::serve(listener, ready),
            #[cfg(feature = "compio")]
            Self::Compio => compio::serve(listener, ready),
            #[allow(unreachable_patterns)]
            other => anyhow::bail!("built without the feature `{other}`"),
        }
    }
}

impl Display for Engine {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let value = self.to_possible_value();
        f.write_str(value.as_ref().map_or("hidden", |value| value.get_name()))
    }
}
