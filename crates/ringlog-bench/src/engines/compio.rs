//! compio with its `io_uring` driver.

use std::io;
use std::net::TcpListener as StdListener;

use anyhow::{Context, Result};
use compio::BufResult;
use compio::driver::ProactorBuilder;
use compio::io::{AsyncRead, AsyncWriteExt};
use compio::net::{TcpListener, TcpStream};
use compio::runtime::RuntimeBuilder;

use super::{BUFFER_SIZE, RING_ENTRIES};
use crate::server::Ready;

pub(super) fn serve(listener: StdListener, ready: Ready) -> Result<()> {
    let mut driver = ProactorBuilder::new();
    driver.capacity(RING_ENTRIES).single_issuer(true).defer_taskrun(true);
    let runtime =
        RuntimeBuilder::new().with_proactor(driver).build().context("no compio runtime")?;
    runtime.block_on(async move {
        let listener = TcpListener::from_std(listener)?;
        ready.announce()?;
        loop {
            let (client, _) = listener.accept().await?;
            compio::runtime::spawn(echo(client)).detach();
        }
    })
}

async fn echo(mut client: TcpStream) -> io::Result<()> {
    let mut buffer = Vec::with_capacity(BUFFER_SIZE);
    loop {
        let BufResult(received, bytes) = client.read(buffer).await;
        if received? == 0 {
            return Ok(());
        }
        let BufResult(sent, bytes) = client.write_all(bytes).await;
        sent?;
        buffer = bytes;
    }
}
