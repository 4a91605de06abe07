//! monoio with its `io_uring` driver.

use std::io;
use std::net::TcpListener as StdListener;

use anyhow::{Context, Result};
use monoio::io::{AsyncReadRent, AsyncWriteRentExt};
use monoio::net::{TcpListener, TcpStream};
use monoio::{IoUringDriver, RuntimeBuilder};
use monoio_io_uring::IoUring;

use super::{BUFFER_SIZE, RING_ENTRIES};
use crate::server::Ready;

pub(super) fn serve(listener: StdListener, ready: Ready) -> Result<()> {
    let mut ring = IoUring::builder();
    ring.setup_single_issuer().setup_defer_taskrun();
    let mut runtime = RuntimeBuilder::<IoUringDriver>::new()
        .with_entries(RING_ENTRIES)
        .uring_builder(ring)
        .build()
        .context("no monoio runtime")?;
    runtime.block_on(async move {
        let listener = TcpListener::from_std(listener)?;
        ready.announce()?;
        loop {
            let (client, _) = listener.accept().await?;
            monoio::spawn(echo(client));
        }
    })
}

async fn echo(mut client: TcpStream) -> io::Result<()> {
    let mut buffer = Vec::with_capacity(BUFFER_SIZE);
    loop {
        let (received, bytes) = client.read(buffer).await;
        if received? == 0 {
            return Ok(());
        }
        let (sent, bytes) = client.write_all(bytes).await;
        sent?;
        buffer = bytes;
    }
}
