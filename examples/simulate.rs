//! Runs the simulation for as many seeds as wanted: `cargo run --release --example simulate --
//! --seeds 100000 [--from 0] [--threads 2] [--all]`. Each seed is up to 8 lives of a store on a disk
//! that fails. `--all` goes on after a failure.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    unreachable_pub,
    dead_code
)]

#[path = "../tests/sim/mod.rs"]
mod sim;

use sim::life::Summary;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

struct Arguments {
    seeds: u64,
    from: u64,
    threads: u64,
    keep_going: bool,
}

impl Arguments {
    fn read() -> Result<Self, String> {
        let cores = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
        let mut read = Self { seeds: 10_000, from: 0, threads: cores, keep_going: false };
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            let place = match argument.as_str() {
                "--seeds" => &mut read.seeds,
                "--from" => &mut read.from,
                "--threads" => &mut read.threads,
                "--all" => {
                    read.keep_going = true;
                    continue;
                }
                other => return Err(format!("{other} is not known")),
            };
            let number = arguments.next().and_then(|number| number.parse().ok());
            *place = number.ok_or_else(|| format!("{argument} takes a number"))?;
        }
        Ok(read)
    }
}

fn main() {
    let Arguments { seeds, from, threads, keep_going } = Arguments::read().unwrap_or_else(|why| {
        eprintln!("{why}: simulate [--seeds N] [--from N] [--threads N] [--all]");
        std::process::exit(2);
    });
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
                            println!("  again: SIM_SEED={seed} cargo test --test simulation lives");
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
