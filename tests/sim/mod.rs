//! A deterministic simulation of the store: the production code from [`ringlog::Store`] down to the
//! executor, on a driver with a simulated disk, virtual time, and every fault that a seed draws.
//!
//! ```text
//! life      the lives of a seed: open, check, work, end            life.rs
//!   calm      the end of one without faults                        calm.rs
//!   harm      what a disk that breaks its promises may do          harm.rs
//!     wounds    what the logs can prove of that                      wounds.rs
//!   copies    backups                                              copies.rs
//!   again     the same disk, opened in other ways                  again.rs
//!   clients   tasks that write, read and go away                   clients.rs
//!     acknowledged  what they are told, held against the disk        acknowledged.rs
//!   model     what the store may answer                            model.rs
//!   order     which write came after which                         order.rs
//!   branches  what has to be met                                   branches.rs
//! driver    the seam                                               driver.rs
//!   world     clocks, what is in flight, chance                    world.rs rng.rs
//!   perform   what a request does                                  perform.rs
//!     faults    what goes wrong                                    faults.rs
//!     disk      names                                              disk.rs
//!       content   files: cached, durable, and between              content.rs sparse.rs
//! ```
//!
//! One thread, and no clock or chance but the seed's: the same seed gives the same run.

pub mod acknowledged;
pub mod again;
pub mod branches;
pub mod calm;
pub mod clients;
pub mod content;
pub mod copies;
pub mod disk;
pub mod driver;
pub mod faults;
pub mod harm;
pub mod life;
pub mod model;
pub mod order;
pub mod perform;
pub mod rng;
pub mod sparse;
pub mod world;
pub mod wounds;

use branches::BRANCHES;
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

fn prepare_process() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        keep_memory();
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            PANICS.set(PANICS.get() + 1);
            before(info);
        }));
    });
}

/// Large buffers come and go all the time: the allocator shall not get each from the system anew.
fn keep_memory() {
    #[cfg(target_env = "gnu")]
    for parameter in [libc::M_MMAP_THRESHOLD, libc::M_TRIM_THRESHOLD, libc::M_TOP_PAD] {
        // SAFETY: it takes numbers.
        unsafe { libc::mallopt(parameter, 16 << 20) };
    }
}

/// Before a thread runs something.
pub fn prepare() {
    prepare_process();
    PANICS.set(0);
}

/// Runs a seed. With `change` the world is changed before.
pub fn run_with(seed: u64, change: impl FnOnce(&mut Seed)) -> Result<Summary, String> {
    prepare();
    let talks = std::env::var_os("SIM_TALKS").is_some();
    let run = || {
        let mut lives = Seed::new(seed, talks);
        change(&mut lives);
        lives.run()
    };
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| Err("it panicked".to_owned()))
}

pub fn run(seed: u64) -> Result<Summary, String> {
    run_with(seed, |_| ())
}

impl Default for Summary {
    fn default() -> Self {
        Self {
            lives: 0,
            others: 0,
            operations: 0,
            opened: 0,
            refused: 0,
            steps: 0,
            merges: 0,
            segments: 0,
            struck: [0; NAMES.len()],
            met: [0; BRANCHES.len()],
            trace: 0,
        }
    }
}

impl Summary {
    pub fn add(&mut self, other: &Self) {
        self.lives += other.lives;
        self.others += other.others;
        self.operations += other.operations;
        self.opened += other.opened;
        self.refused += other.refused;
        self.steps += other.steps;
        self.merges += other.merges;
        self.segments += other.segments;
        for (sum, struck) in self.struck.iter_mut().zip(other.struck) {
            *sum += struck;
        }
        for (sum, met) in self.met.iter_mut().zip(other.met) {
            *sum += met;
        }
    }

    pub fn print(&self) {
        println!(
            "{} lives, {} opened, {} refused, {} openings beside them; {} operations, {} merges, \
             {} steps",
            self.lives,
            self.opened,
            self.refused,
            self.others,
            self.operations,
            self.merges,
            self.steps
        );
        for (name, struck) in NAMES.iter().zip(self.struck) {
            println!("  {struck:>9} {name}");
        }
        println!("branches:");
        for (name, met) in BRANCHES.iter().zip(self.met) {
            println!("  {met:>9} {name}");
        }
    }
}
