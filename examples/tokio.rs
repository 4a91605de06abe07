//! The store inside a tokio application: its futures are awaited like any others, with no
//! `spawn_blocking` and no thread parked.
//!
//! `cargo run --release --example tokio`

use ringlog::Store;
use std::error::Error;
use std::time::Instant;
use tokio::task::JoinSet;

const TASKS: u32 = 64;
const PUTS_EACH: u32 = 200;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<(), Box<dyn Error>> {
    let dir = std::env::temp_dir().join("ringlog-tokio");
    // Opening recovers, which blocks: keep it off the workers.
    let store = tokio::task::spawn_blocking(move || Store::open(dir, 1)).await??;

    let start = Instant::now();
    let mut tasks: JoinSet<ringlog::Result<()>> = JoinSet::new();
    for task in 0..TASKS {
        let store = store.clone();
        tasks.spawn(async move {
            for n in 0..PUTS_EACH {
                store.put(format!("{task}/{n}"), format!("value {n} of task {task}")).await?;
            }
            Ok(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    let elapsed = start.elapsed();

    // Any combinator works on them: here a timeout of tokio's, and a join.
    let both = async { tokio::join!(store.get("0/0"), store.get("63/199")) };
    let (first, last) = tokio::time::timeout(std::time::Duration::from_secs(5), both).await?;
    println!("0/0 = {:?}, 63/199 = {:?}", first?, last?);

    let total = store.stats().await?.total();
    let puts = f64::from(TASKS * PUTS_EACH);
    println!(
        "{puts} durable puts from {TASKS} tasks in {elapsed:.2?}: {:.0} a second, {:.1} in a commit",
        puts / elapsed.as_secs_f64(),
        total.records_per_commit(),
    );
    store.close().await?;
    Ok(())
}
