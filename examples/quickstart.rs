//! The store in twenty lines, without an async runtime of your own.
//!
//! `cargo run --example quickstart`

use ringlog::rt::block_on;
use ringlog::{Result, Store};

fn main() -> Result<()> {
    let dir = std::env::temp_dir().join("ringlog-quickstart");
    let store = Store::open(&dir, 2)?; // two partitions, each owned by a ring thread
    block_on(async {
        store.put("user:17", "Ada Lovelace").await?; // durable when it returns
        let value = store.get("user:17").await?;
        println!("user:17 is {value:?}");
        println!("deleted: {}", store.delete("user:17").await?);
        println!("user:17 is {:?}", store.get("user:17").await?);
        store.close().await
    })
}
