//! A deterministic simulation of the store: the production code from [`ringlog::Store`] down to the
//! executor, on a driver with a simulated disk, virtual time, and every fault that a seed draws.
//!
//! ```text
//! life      the lives of a seed: open, check, work, end            life.rs
//!   rot       what a changed bit may do                            rot.rs
//!   clients   tasks that write, read and go away                   clients.rs
//!   model     what the store may answer                            model.rs
//! driver    the seam                                               driver.rs
//!   world     clocks, what is in flight, chance                    world.rs rng.rs
//!   perform   what a request does                                  perform.rs
//!     faults    what goes wrong                                    faults.rs
//!     disk      names                                              disk.rs
//!       content   files: cached, durable, and between              content.rs
//! ```
//!
//! One thread, and no clock or chance but the seed's: the same seed gives the same run.

pub mod clients;
pub mod content;
pub mod disk;
pub mod driver;
pub mod faults;
pub mod life;
pub mod model;
pub mod perform;
pub mod rng;
pub mod rot;
pub mod world;

use faults::NAMES;
use life::{Seed, Summary};
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

thread_local! {
    static PANICS: Cell<u64> = const { Cell::new(0) };
}

/// How often this thread has panicked since it began its seed: the executor contains panics.
pub fn panics() -> u64 {
    PANICS.get()
}

fn count_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            PANICS.set(PANICS.get() + 1);
            before(info);
        }));
    });
}

/// Runs a seed. With `prepare` the world is changed before.
pub fn run_with(seed: u64, prepare: impl FnOnce(&mut Seed)) -> Result<Summary, String> {
    count_panics();
    PANICS.set(0);
    let talks = std::env::var_os("SIM_TALKS").is_some();
    let run = || {
        let mut lives = Seed::new(seed, talks);
        prepare(&mut lives);
        lives.run()
    };
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| Err("it panicked".to_owned()))
}

pub fn run(seed: u64) -> Result<Summary, String> {
    run_with(seed, |_| ())
}

impl Summary {
    pub fn add(&mut self, other: &Self) {
        self.lives += other.lives;
        self.operations += other.operations;
        self.opened += other.opened;
        self.refused += other.refused;
        self.steps += other.steps;
        self.merges += other.merges;
        self.segments += other.segments;
        for (sum, struck) in self.struck.iter_mut().zip(other.struck) {
            *sum += struck;
        }
    }

    pub fn print(&self) {
        println!(
            "{} lives, {} opened, {} refused; {} operations, {} merges, {} steps",
            self.lives, self.opened, self.refused, self.operations, self.merges, self.steps
        );
        for (name, struck) in NAMES.iter().zip(self.struck) {
            println!("  {struck:>9} {name}");
        }
    }
}
