//! The store's parts, each by the operation that shows it.
//!
//! ```text
//! cargo bench --bench store                   (everything, about 30 s)
//! cargo bench --bench store -- put            (one group)
//! ```
//!
//! | Group | One iteration is | Shows |
//! |---|---|---|
//! | `put`, `put_buffered` | a put of 1 KiB, by so many callers | records, commit |
//! | `contains_key` | a look at a key that is there | queue, index |
//! | `get_cached` | a get of a value that the cache has | cache |
//! | `get` | a get of 1 KiB, by so many callers | queue, index, read |
//!
//! Times differ from day to day, and most with the disk; instructions (`--bench cost`) hardly do.

use criterion::{Criterion, Throughput};
use futures::future::try_join_all;
use ringlog::{Durability, Error, PutOptions, Result, Store, rt};
use std::time::{Duration, Instant};

const KEYS: u64 = 10_000;
const VALUE: [u8; 1024] = [7; 1024];

fn key(id: u64) -> [u8; 16] {
    let mut key = [0; 16];
    key[..8].copy_from_slice(&(id % KEYS).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
    key
}

async fn operate(store: &Store, group: &str, id: u64) -> Result<()> {
    match group {
        "put" => store.put(key(id), VALUE).await,
        "put_buffered" => {
            let buffered = PutOptions::new().durability(Durability::Buffered);
            store.put_with(key(id), VALUE, buffered).await.map(drop)
        }
        "contains_key" => store.contains_key(key(id)).await.map(|is| assert!(is)),
        _ => store.get(key(id)).await.map(|value| assert!(value.is_some())),
    }
}

/// So many operations by so many callers.
fn run(store: &Store, group: &str, callers: u64, operations: u64) -> Result<Duration> {
    let start = Instant::now();
    let caller = |first: u64| async move {
        for id in (first..operations).step_by(usize::try_from(callers).expect("few")) {
            operate(store, group, id).await?;
        }
        Ok::<_, Error>(())
    };
    rt::block_on(try_join_all((0..callers).map(caller)))?;
    Ok(start.elapsed())
}

fn bench(criterion: &mut Criterion, group: &str, callers: &[u64]) {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
    let cache = if group == "get_cached" { 64 << 20 } else { 0 };
    let store =
        Store::builder(dir.path()).partitions(1).cache_bytes(cache).open().expect("a store");
    run(&store, "put_buffered", 64, KEYS).expect("a full store");
    run(&store, "get", 64, 2 * KEYS).expect("a warm store");
    let mut group_of = criterion.benchmark_group(group);
    group_of.throughput(Throughput::Elements(1));
    for &callers in callers {
        group_of.bench_function(format!("callers_{callers}"), |b| {
            b.iter_custom(|operations| run(&store, group, callers, operations).expect("no error"));
        });
    }
    group_of.finish();
    rt::block_on(store.close()).expect("an end");
}

fn main() {
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(2))
        .configure_from_args();
    bench(&mut criterion, "put", &[1, 64]);
    bench(&mut criterion, "put_buffered", &[1, 64]);
    bench(&mut criterion, "contains_key", &[1, 64]);
    bench(&mut criterion, "get_cached", &[1]);
    bench(&mut criterion, "get", &[1, 64]);
    criterion.final_summary();
}
