//! Runs the simulation for as many seeds as wanted: `cargo run --release --example simulate --
//! --seeds 100000 [--from 0] [--threads 2] [--all]`. Each seed is up to 8 lives of a store on a disk
//! that fails. `--all` goes on after a failure.

#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, unreachable_pub, dead_code)]

#[path = "../tests/sim/mod.rs"]
mod sim;

use sim::life::Summary;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

fn argument(name: &str, default: u64) -> u64 {
    let mut arguments = std::env::args().skip_while(|argument| argument != name);
    arguments.nth(1).map_or(default, |n| n.parse().expect("a number"))
}

fn main() {
    let (seeds, from) = (argument("--seeds", 10_000), argument("--from", 0));
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
    let threads = argument("--threads", cores);
    let keep_going = std::env::args().any(|argument| argument == "--all");
    let next = Arc::new(AtomicU64::new(from));
    let failed = Arc::new(AtomicBool::new(false));
    let sum = Arc::new(Mutex::new(Summary::default()));
    let start = Instant::now();
    let workers: Vec<_> = (0..threads)
        .map(|_| {
            let (next, failed, sum) = (Arc::clone(&next), Arc::clone(&failed), Arc::clone(&sum));
            std::thread::spawn(move || {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= from + seeds || (failed.load(Ordering::Relaxed) && !keep_going) {
                        return;
                    }
                    match sim::run(seed) {
                        Ok(summary) => sum.lock().unwrap().add(&summary),
                        Err(why) => {
                            failed.store(true, Ordering::Relaxed);
                            println!("seed {seed}: {why}");
                            println!("  again: SIM_SEED={seed} cargo test --test simulation");
                        }
                    }
                }
            })
        })
        .collect();
    for worker in workers {
        worker.join().unwrap();
    }
    sum.lock().unwrap().print();
    println!("seeds {from} to {}, {:.1?}", from + seeds, start.elapsed());
    if failed.load(Ordering::Relaxed) {
        std::process::exit(1);
    }
}
