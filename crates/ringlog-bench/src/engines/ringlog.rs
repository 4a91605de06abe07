//! ringlog's runtime.

use std::net::TcpListener;

use anyhow::{Context, Result};
use ringlog::rt::{self, Executor, ExecutorConfig, Fd};

use super::BUFFER_SIZE;
use crate::server::Ready;

pub(super) fn serve(listener: TcpListener, ready: Ready) -> Result<()> {
    let listener = Fd::from(listener);
    let executor = Executor::new(ExecutorConfig::default()).context("no ringlog executor")?;
    executor.block_on(async move {
        ready.announce()?;
        loop {
            let (client, _) = rt::accept(&listener).await?;
            // Dropping the handle detaches the task.
            drop(rt::spawn(echo(client)));
        }
    })
}

async fn echo(client: Fd) {
    let mut buffer = Vec::with_capacity(BUFFER_SIZE);
    loop {
        let (received, bytes) = rt::recv(&client, buffer, 0).await;
        if matches!(received, Ok(0) | Err(_)) {
            return;
        }
        let (sent, bytes) = rt::send_all(&client, bytes, 0).await;
        if sent.is_err() {
            return;
        }
        buffer = bytes;
    }
}
