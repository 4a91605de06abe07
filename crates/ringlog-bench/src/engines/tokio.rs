//! tokio's current-thread runtime, over epoll.

use std::io;
use std::net::TcpListener as StdListener;

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Builder;

use super::BUFFER_SIZE;
use crate::server::Ready;

pub(super) fn serve(listener: StdListener, ready: Ready) -> Result<()> {
    listener.set_nonblocking(true)?;
    let runtime = Builder::new_current_thread().enable_io().build().context("no tokio runtime")?;
    runtime.block_on(async move {
        let listener = TcpListener::from_std(listener)?;
        ready.announce()?;
        loop {
            let (client, _) = listener.accept().await?;
            tokio::spawn(echo(client));
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
