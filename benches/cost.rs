//! Instructions an operation takes, counted by valgrind: within some percent the same on a busy
//! machine as on an idle one, so that CI can hold it.
//!
//! ```text
//! cargo bench --bench cost
//! ```
//!
//! The store runs on one executor of the main thread, callers and all, below `target`. Each case is
//! run twice with different numbers of operations, and the difference counts; what the kernel does is
//! not in it. Fails if a case takes a fifth more than is written down here: then either mend it, or
//! say in the commit what the new figure buys. Counts nothing where
//! there is no valgrind.

use futures::stream::{FuturesUnordered, TryStreamExt};
use ringlog::rt::{Executor, ExecutorConfig};
use ringlog::{Error, Result, Store};
use std::process::{Command, ExitCode};
use std::time::Duration;

/// Keys that are there to be got.
const KEYS: u64 = 1000;
/// By how many percent a case may exceed its figure: how groups form is up to the disk, and which
/// code copies and sums is up to the processor.
const TOLERANCE: u64 = 20;

/// What is counted: its name, callers, and instructions an operation when it was written down, with
/// Rust 1.95 on x86-64.
const CASES: [(&str, u64, u64); 8] = [
    ("put", 1, 30_900),
    ("put", 64, 10_400),
    ("put_cached", 64, 11_000),
    ("get_cached", 1, 940),
    ("get", 1, 9_200),
    ("get", 64, 8_600),
    ("contains_key", 1, 5_080),
    ("absent", 1, 4_900),
];

fn key(id: u64) -> [u8; 16] {
    let mut key = [0; 16];
    key[..8].copy_from_slice(&id.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
    key
}

async fn operate(store: &Store, case: &str, id: u64) -> Result<()> {
    let there = key(id % KEYS);
    match case {
        "put" | "put_cached" => store.put(key(KEYS + id), [7; 1024]).await,
        "get" | "get_cached" => store.get(there).await.map(|value| assert!(value.is_some())),
        "contains_key" => store.contains_key(there).await.map(|is| assert!(is)),
        _ => store.get(key(KEYS + id)).await.map(|value| assert!(value.is_none())),
    }
}

/// Performs so many operations, on a store with [`KEYS`] keys.
fn run(case: &str, callers: u64, operations: u64) -> Result<()> {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
    let config = ExecutorConfig { spin: Some(Duration::ZERO), ..ExecutorConfig::default() };
    let executor = Executor::new(config).expect("a ring");
    let threads = [executor.handle()];
    let cache = if case.ends_with("_cached") { 64 << 20 } else { 0 };
    let builder = Store::builder(dir.path()).partitions(1).cache_bytes(cache);
    executor.block_on(async {
        let store = builder.open_on(&threads).await?;
        for id in 0..KEYS {
            store.put(key(id), [7; 1024]).await?;
        }
        let store = &store;
        let caller = |first: u64| async move {
            for id in (first..operations).step_by(usize::try_from(callers).expect("few")) {
                operate(store, case, id).await?;
            }
            Ok::<_, Error>(())
        };
        (0..callers).map(caller).collect::<FuturesUnordered<_>>().try_collect::<()>().await?;
        store.clone().close().await
    })
}

/// Instructions of a run, as callgrind counts them.
fn count(case: &str, callers: u64, operations: u64) -> u64 {
    let me = std::env::current_exe().expect("a path");
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]).arg(me);
    let (callers, operations) = (callers.to_string(), operations.to_string());
    let output = valgrind.args(["run", case, &callers, &operations]).output().expect("valgrind");
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{told}");
    let (_, collected) = told.split_once("Collected : ").unwrap_or_else(|| panic!("{told}"));
    collected.split_whitespace().next().and_then(|n| n.parse().ok()).expect("a number")
}

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    if let [how, case, callers, operations] = &arguments[..]
        && how == "run"
    {
        let number = |text: &str| text.parse().expect("a number");
        run(case, number(callers), number(operations)).expect("the operations");
        return ExitCode::SUCCESS;
    }
    let known = cfg!(target_arch = "x86_64") && Command::new("valgrind").arg("-h").output().is_ok();
    if !known {
        println!("nothing is counted: that takes x86-64 and valgrind");
        return ExitCode::SUCCESS;
    }
    let mut exit = ExitCode::SUCCESS;
    for (case, callers, written) in CASES {
        let (some, more) = if written < 2000 { (1000, 41_000) } else { (1000, 4000) };
        let each = count(case, callers, more).saturating_sub(count(case, callers, some));
        let each = each / (more - some);
        let verdict = match each {
            _ if each > written + written * TOLERANCE / 100 => "TOO MANY",
            _ if each < written / 2 => "HALF: write that down, or mend the measure",
            _ => "",
        };
        println!("{case:13} {callers:2} callers {each:6} instructions ({written:6}) {verdict}");
        if !verdict.is_empty() {
            exit = ExitCode::FAILURE;
        }
    }
    exit
}
