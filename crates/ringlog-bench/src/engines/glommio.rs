//! glommio, one executor on the calling thread.

use std::io;
use std::net::TcpListener as StdListener;
use std::os::fd::{FromRawFd, IntoRawFd};

use anyhow::{Context, Result};
use futures_lite::{AsyncReadExt, AsyncWriteExt};
use glommio::net::{TcpListener, TcpStream};
use glommio::{LocalExecutorBuilder, Placement};

use super::{BUFFER_SIZE, RING_ENTRIES};
use crate::server::Ready;

pub(super) fn serve(listener: StdListener, ready: Ready) -> Result<()> {
    // Unbound, for the process has been pinned already, or is meant not to be.
    let executor = LocalExecutorBuilder::new(Placement::Unbound)
        .ring_depth(usize::try_from(RING_ENTRIES)?)
        .make()
        .map_err(io::Error::from)
        .context("no glommio executor")?;
    executor.run(async move {
        // SAFETY: the descriptor is a listening socket, which is given away here for good.
        let listener = unsafe { TcpListener::from_raw_fd(listener.into_raw_fd()) };
        ready.announce()?;
        loop {
            let client = listener.accept().await.map_err(io::Error::from)?;
            glommio::spawn_local(echo(client)).detach();
        }
    })
}

async fn echo(mut client: TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_SIZE];
    loop {
        let count = client.read(&mut buffer).await?;
        if count == 0 {
            return Ok(());
        }
        client.write_all(&buffer[..count]).await?;
    }
}
