//! The store on a disk that fails, for ten thousand lives. The same and more:
//! `cargo run --release --example simulate -- --seeds 100000`.
//!
//! A seed that fails says how it is run again; `SIM_TALKS=1` then shows all that happens in it.
//! `SIM_SEEDS=100` runs so many seeds, however long they take.

#![allow(clippy::unwrap_used, missing_docs, unreachable_pub, dead_code)]

#[path = "sim/edges.rs"]
mod edges;
#[path = "sim/late.rs"]
mod late;
#[path = "sim/lists.rs"]
mod lists;
#[path = "sim/many.rs"]
mod many;
#[path = "sim/merging.rs"]
mod merging;
#[path = "sim/promises.rs"]
mod promises;
#[path = "sim/regressions.rs"]
mod regressions;
#[path = "sim/room.rs"]
mod room;
mod sim;
#[path = "sim/syncs.rs"]
mod syncs;

use sim::branches::{BRANCHES, Branch};
use sim::faults::{Fault, NAMES};
use sim::life::{Seed, Summary};
use std::num::NonZero;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// How many seeds the test runs, and how many lives these are at the least.
const SEEDS: u64 = 2100;
const LIVES: u64 = 10_000;

fn again(seed: u64, why: &str) -> ! {
    panic!("seed {seed}: {why}\n  again: SIM_SEED={seed} cargo test --test simulation lives");
}

#[test]
fn lives_on_a_failing_disk_lose_nothing_and_invent_nothing() {
    if let Ok(seed) = std::env::var("SIM_SEED") {
        let seed = seed.parse().expect("a number");
        match sim::run(seed) {
            Ok(summary) => return summary.print(),
            Err(why) => again(seed, &why),
        }
    }
    let seeds = std::env::var("SIM_SEEDS").ok().map(|seeds| seeds.parse().expect("a number"));
    let (next, failed) = (AtomicU64::new(0), AtomicBool::new(false));
    let work = || {
        let mut sum = Summary::default();
        while !failed.load(Ordering::Relaxed) {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.unwrap_or(SEEDS) {
                break;
            }
            match sim::run(seed) {
                Ok(summary) => sum.add(&summary),
                Err(why) => {
                    // The others need not go on.
                    failed.store(true, Ordering::Relaxed);
                    again(seed, &why)
                }
            }
        }
        sum
    };
    let mut sum = Summary::default();
    std::thread::scope(|scope| {
        let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
        let workers: Vec<_> = (0..cores).map(|_| scope.spawn(work)).collect();
        for worker in workers {
            sum.add(&worker.join().expect("its seed is told above"));
        }
    });
    println!("seeds 0 to {}", seeds.unwrap_or(SEEDS));
    sum.print();
    if seeds.is_some() {
        return;
    }
    assert!(sum.lives >= LIVES && sum.merges > 0, "{} lives", sum.lives);
    // The simulation is what it says: faults strike, and most stores open all the same.
    for (fault, struck) in NAMES.iter().zip(sum.struck) {
        assert!(struck > 0, "never struck: {fault}");
    }
    assert!(sum.opened > sum.refused);
    for (branch, met) in BRANCHES.iter().zip(sum.met) {
        // These need a full disk or an end just then, or harm to two places at once.
        let rare = [Branch::Unnamed, Branch::BackupLate, Branch::Beyond];
        let rare = rare.map(|branch| BRANCHES[branch as usize]);
        assert!(met > 0 || rare.contains(branch), "never met: {branch}");
    }
}

/// Seeds that found a bug when there was one, of the engine or of the model.
#[test]
fn seeds_that_found_bugs_stay_green() {
    let few = [8, 52, 144, 254, 371, 722, 1625, 2581, 3543, 3702, 4641, 4947, 5168, 8318, 8821];
    let late = [2_005_880, 2_040_592, 50_035_638, 50_081_463, 50_100_851, 60_057_176];
    let later = [60_061_016, 60_073_074, 61_001_017, 62_071_592, 62_135_217];
    for seed in few.into_iter().chain(late).chain(later) {
        if let Err(why) = sim::run(seed) {
            again(seed, &why);
        }
    }
}

#[test]
fn the_same_seed_is_the_same_run() {
    let mut traces = Vec::new();
    for seed in 0..200 {
        let (first, second) = (sim::run(seed).unwrap(), sim::run(seed).unwrap());
        assert_eq!(first.trace, second.trace, "seed {seed}");
        assert_eq!(first.operations, second.operations, "seed {seed}");
        traces.push(first.trace);
    }
    traces.sort_unstable();
    traces.dedup();
    assert_eq!(traces.len(), 200, "each seed is a run of its own");
}

/// Against a simulation that always passes: broken disks must be caught, and soon.
#[test]
fn a_disk_that_breaks_its_promises_is_caught() {
    type Break = fn(&mut Seed);
    let breaks: [(&str, Break); 3] = [
        ("syncs that do nothing", |seed| seed.lie()),
        ("writes that are lost", |seed| seed.always(Fault::LostWrite, 200)),
        ("writes elsewhere", |seed| seed.always(Fault::Misdirected, 200)),
    ];
    for (name, prepare) in breaks {
        let caught = (0..60).filter(|&seed| sim::run_with(seed, prepare).is_err()).count();
        assert!(caught > 5, "{name}: caught in {caught} of 60 seeds");
        println!("{name}: caught in {caught} of 60 seeds");
    }
}
