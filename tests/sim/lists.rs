//! Lists of operations and crashes on the simulated disk, from proptest: fewer in a run than a seed
//! has, and without other faults, but a list that fails is shrunk to the few steps that matter.

use crate::sim::clients::{Checked, Condition, Scene};
use crate::sim::content::Crash;
use crate::sim::life::{Plan, Seed};
use crate::sim::model::Model;
use crate::sim::rng::Rng;
use crate::sim::world::End;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestError, TestRng, TestRunner};
use ringlog::{Durability, rt};
use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

const KEYS: usize = 4;

#[derive(Clone, Copy, Debug)]
enum Step {
    Read(usize),
    Put(usize, usize, Durability),
    Delete(usize),
    Rest,
    Sync,
    Compact,
}

/// How a life ends: after so many turns of its driver, or when all is done.
#[derive(Clone, Copy, Debug)]
enum Ending {
    Closed,
    Left,
    Killed(u64),
    PowerCut(u64, Crash),
}

#[derive(Clone, Debug)]
struct List {
    /// Of the times that operations take, and of what a crash decides.
    chance: u64,
    partitions: usize,
    /// Each step, and whether the next one waits for it.
    lives: Vec<(Vec<(Step, bool)>, Ending)>,
}

fn steps() -> impl Strategy<Value = Step> {
    let lens = prop_oneof![8usize..200, Just(5000), Just(20_000), Just(70_000)];
    let durability = prop_oneof![4 => Just(Durability::Sync), 2 => Just(Durability::Buffered)];
    prop_oneof![
        2 => (0..KEYS).prop_map(Step::Read),
        6 => (0..KEYS, lens, durability).prop_map(|(key, len, how)| Step::Put(key, len, how)),
        2 => (0..KEYS).prop_map(Step::Delete),
        1 => Just(Step::Rest),
        1 => Just(Step::Sync),
        1 => Just(Step::Compact),
    ]
}

fn lists() -> impl Strategy<Value = List> {
    let endings = prop_oneof![
        Just(Ending::Closed),
        Just(Ending::Left),
        (0..600u64).prop_map(Ending::Killed),
        (0..600u64, 0..Crash::ALL.len())
            .prop_map(|(at, how)| Ending::PowerCut(at, Crash::ALL[how])),
        (0..60u64, 0..Crash::ALL.len()).prop_map(|(at, how)| Ending::PowerCut(at, Crash::ALL[how])),
    ];
    let life = (prop::collection::vec((steps(), any::<bool>()), 0..25), endings);
    let lives = prop::collection::vec(life, 1..6);
    (0..1_000_000u64, 1..=2usize, lives).prop_map(|(chance, partitions, lives)| List {
        chance,
        partitions,
        lives,
    })
}

async fn step(scene: &Scene, step: Step) -> Checked {
    let mut rng = Rng::new(0);
    match step {
        Step::Read(key) => scene.read(&mut rng, key).await,
        Step::Put(key, len, how) => {
            scene.put_so(&mut rng, key, len, how, 0, Condition::Always).await
        }
        Step::Delete(key) => scene.delete(&mut rng, key).await,
        Step::Rest => {
            drop(rt::timeout(Duration::from_millis(30)).await);
            Ok(())
        }
        Step::Sync => scene.sync(&mut rng).await,
        Step::Compact => scene.compact(&mut rng).await,
    }
}

async fn play_life(scene: Rc<Scene>, steps: Vec<(Step, bool)>) -> Checked {
    let mut left = Vec::new();
    for (next, waits) in steps {
        let scene = Rc::clone(&scene);
        let task = rt::spawn(async move { step(&scene, next).await });
        if waits {
            task.await.map_err(|error| format!("{error:?}"))??;
        } else {
            left.push(task);
        }
    }
    for task in left {
        task.await.map_err(|error| format!("{error:?}"))??;
    }
    Ok(())
}

fn play(list: &List, lies: bool) -> Result<(), String> {
    let mut seed = Seed::new(list.chance, false);
    let model = Model::new(KEYS);
    seed.world.borrow_mut().moment = Rc::clone(model.moment());
    seed.world.borrow_mut().lies = lies;
    seed.model = Rc::new(RefCell::new(model));
    (seed.partitions, seed.segment_bytes) = (list.partitions, 64 << 10);
    seed.cache_bytes = 0;
    seed.durability = Durability::Sync;
    // And one more, to see what is left.
    let last = (Vec::new(), Ending::Closed);
    for (steps, ending) in list.lives.iter().chain([&last]).cloned() {
        let (end_at, end, crash) = match ending {
            Ending::Closed | Ending::Left => (None, End::Kill, None),
            Ending::Killed(at) => (Some(at), End::Kill, None),
            Ending::PowerCut(at, crash) => (Some(at), End::PowerCut, Some(crash)),
        };
        {
            let world = &mut *seed.world.borrow_mut();
            world.begin_life(end_at.map(|at| (at, end)));
            world.crash = crash;
        }
        let closes = matches!(ending, Ending::Closed);
        let (calm, may_fail, may_be_corrupt) = (false, false, false);
        let plan = Plan { calm, end_at, end, may_fail, may_be_corrupt, closes };
        seed.pass(plan, |scene, _| play_life(scene, steps))?;
    }
    Ok(())
}

fn runner(cases: u32) -> TestRunner {
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha))
}

#[test]
fn lists_of_operations_survive_crashes_at_any_point() {
    let played = runner(400).run(&lists(), |list| {
        crate::sim::prepare();
        play(&list, false).map_err(TestCaseError::fail)
    });
    if let Err(error) = played {
        panic!("{error}");
    }
}

/// Against lists that always pass, and for the shrinking.
#[test]
fn a_disk_that_lies_about_syncs_is_caught_by_a_list_of_a_few_steps() {
    let played = runner(400).run(&lists(), |list| {
        crate::sim::prepare();
        play(&list, true).map_err(TestCaseError::fail)
    });
    let Err(TestError::Fail(why, list)) = played else { panic!("not caught: {played:?}") };
    println!("{why}: {list:?}");
    let steps: usize = list.lives.iter().map(|(steps, _)| steps.len()).sum();
    assert!(steps <= 3 && list.lives.len() <= 2, "{list:?}");
}
