//! The lives of one seed: the store is opened, checked, used, and ends in some way, again and again
//! on the same disk. The last life is calm: nothing fails, so everything must end, and fit.

use super::again::Untouched;
use super::branches::{Branch, HUNTS, Met};
use super::calm::calm_end;
use super::clients::{Checked, Scene};
use super::copies::Copied;
use super::disk::{Disk, Node};
use super::driver::SimDriver;
use super::faults::{Counts, Fault};
use super::model::{Clock, Model};
use super::rng::Rng;
use super::world::{End, World};
use ringlog::rt::{Executor, Handle};
use ringlog::{Durability, Error, Store, rt};
use siphasher::sip128::{Hasher128, SipHasher13};
use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::hash::Hasher;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;

pub const DIR: &str = "/sim/store";

/// What a seed has done.
#[derive(Clone, Debug)]
pub struct Summary {
    pub lives: u64,
    /// Openings beside these: of backups, of what was harmed, of what was salvaged.
    pub others: u64,
    pub operations: u64,
    pub opened: u64,
    pub refused: u64,
    pub steps: u64,
    pub merges: u64,
    pub segments: u64,
    pub struck: Counts,
    pub met: Met,
    pub trace: u64,
}

/// How a life went.
#[derive(Debug)]
pub enum Outcome {
    Ended(End),
    /// It was not opened.
    Refused(Error),
    /// It came to its own end.
    Over,
}

/// What a life is like.
#[derive(Clone, Copy, Debug)]
#[allow(clippy::struct_excessive_bools)]
pub struct Plan {
    pub calm: bool,
    /// When it ends, in steps, if not by itself; and how it ends.
    pub end_at: Option<u64>,
    pub end: End,
    /// Errors may be answered.
    pub may_fail: bool,
    /// The disk may not do as it says.
    pub may_be_corrupt: bool,
    /// The store is closed, if it comes to that.
    pub closes: bool,
}

/// See the module.
pub struct Seed {
    pub rng: Rng,
    /// For what is looked at beside the lives.
    pub other: Rng,
    pub world: Rc<RefCell<World>>,
    pub model: Rc<RefCell<Model>>,
    pub partitions: usize,
    pub segment_bytes: u64,
    pub cache_bytes: usize,
    pub durability: Durability,
    bytes: u64,
    pub summary: Rc<RefCell<Summary>>,
    pub operations: Rc<Cell<u64>>,
    pub copied: Rc<RefCell<Option<Copied>>>,
    /// What there was before an opening that failed.
    pub untouched: Rc<RefCell<Option<Untouched>>>,
    /// First groups that a power cut was near to.
    torn: u64,
    pub talks: bool,
}

impl Seed {
    pub fn new(seed: u64, talks: bool) -> Self {
        let mut rng = Rng::new(seed);
        let mut world = World::new(rng.next());
        let keys = rng.pick(&[4, 10, 30, 80]);
        let model = Model::new(keys);
        world.talks = talks;
        world.moment = Rc::clone(model.moment());
        // In some seeds nothing can be linked, and backups copy.
        let mut links = Rng::new(seed.rotate_left(16));
        let refusals = [libc::EXDEV, libc::EXDEV, libc::EPERM, libc::EMLINK, libc::EOPNOTSUPP];
        world.no_links = links.one_in(3).then(|| links.pick(&refusals));
        let buffered = Durability::Buffered;
        Self {
            world: Rc::new(RefCell::new(world)),
            model: Rc::new(RefCell::new(model)),
            partitions: rng.pick(&[1, 1, 2, 3]),
            segment_bytes: rng.pick(&[64 << 10, 64 << 10, 64 << 10, 256 << 10, 2 << 20]),
            durability: rng.pick(&[Durability::Sync, Durability::Sync, buffered]),
            // Most read what the disk has; in some the cache has all, or a few.
            cache_bytes: Rng::new(!seed).pick(&[0, 0, 0, 16 << 10, 64 << 20]),
            bytes: rng.pick(&[32, 400, 3000, 12_000]),
            summary: Rc::default(),
            operations: Rc::default(),
            copied: Rc::default(),
            untouched: Rc::default(),
            torn: 0,
            talks,
            other: Rng::new(seed.rotate_left(32)),
            rng,
        }
    }

    /// The disk tells lies about syncs: for the canary.
    pub fn lie(&mut self) {
        self.world.borrow_mut().lies = true;
    }

    /// A fault that strikes in every life: for the canary.
    pub fn always(&mut self, fault: Fault, rate: u64) {
        self.world.borrow_mut().faults.always = Some((fault, rate));
    }

    pub fn meet(&self, branch: Branch) {
        self.world.borrow_mut().watch.meet(branch);
    }

    pub fn run(mut self) -> Result<Summary, String> {
        let lives = 1 + self.rng.below(7);
        for life in 0..=lives {
            let told = |why| format!("life {life} of {lives}: {why}");
            self.live(life == lives).map_err(told)?;
            self.check_untouched().map_err(told)?;
            self.check_copy().map_err(told)?;
            self.open_in_other_ways().map_err(told)?;
            if life == lives || self.rng.one_in(4) {
                self.harm().map_err(told)?;
            }
        }
        Ok(self.sum())
    }

    /// What it has done so far.
    pub fn sum(&self) -> Summary {
        let world = self.world.borrow();
        let mut summary = self.summary.borrow().clone();
        summary.operations = self.operations.get();
        (summary.struck, summary.met) = (world.faults.struck, world.watch.met);
        summary.trace = world.trace;
        summary
    }

    fn live(&mut self, calm: bool) -> Checked {
        let end = if self.rng.one_in(3) { End::Kill } else { End::PowerCut };
        let end_at = match self.rng.below(6) {
            0 => None,
            1 => Some(self.rng.below(100)),
            2 => Some(self.rng.below(600)),
            3 => Some(self.rng.below(3_000)),
            _ => Some(self.rng.below(20_000)),
        };
        let end_at = end_at.filter(|_| !calm);
        let may_fail = {
            let world = &mut *self.world.borrow_mut();
            world.begin_life(end_at.map(|at| (at, end)));
            // A torn first group is made anew by the next opening, which is worth a crash.
            let torn = world.watch.met[Branch::FirstGroupCut as usize];
            if torn > std::mem::replace(&mut self.torn, torn) && self.rng.one_in(2) {
                world.watch.hunted = HUNTS[0];
            } else if self.rng.one_in(3) {
                world.watch.hunted = self.rng.pick(&HUNTS);
            }
            world.faults.choose(&mut self.rng);
            world.faults.on = !calm;
            world.disk.capacity = u64::MAX;
            if !calm && self.rng.one_in(12) {
                world.disk.capacity = world.disk.used() + self.rng.below(600_000);
            }
            !calm && (world.faults.may_fail() || world.disk.capacity < u64::MAX)
        };
        let closes = calm || self.rng.one_in(2);
        self.pass(Plan { calm, end_at, end, may_fail, may_be_corrupt: false, closes }, busy)
    }

    /// A life, in a world that was made ready for it.
    pub fn pass<F>(&mut self, plan: Plan, work: impl FnOnce(Rc<Scene>, Rng) -> F) -> Checked
    where
        F: Future<Output = Checked>,
    {
        if self.talks {
            let world = self.world.borrow();
            println!(
                "-- life: {plan:?}, {:?}, capacity {}, direct {:?}",
                world.faults, world.disk.capacity, world.direct
            );
        }
        let executor = Executor::with_driver(SimDriver::boxed(&self.world));
        let life = self.live_through(executor.handle(), plan, work);
        let outcome = executor.block_on(until_end(&self.world, life));
        if self.talks {
            println!("-- ended: {outcome:?}");
        }
        self.note_copy(plan.may_fail);
        self.world.borrow_mut().leave(plan.end); // if it was not over, it is now
        drop(executor);
        let outcome = outcome?;
        let mut summary = self.summary.borrow_mut();
        summary.lives += 1;
        summary.steps += self.world.borrow().steps;
        summary.refused += u64::from(matches!(outcome, Outcome::Refused(_)));
        if super::panics() > 0 {
            return Err("the engine panicked".to_owned());
        }
        if let Some(why) = self.world.borrow_mut().order.broken.take() {
            return Err(why);
        }
        let (ended, dropped) = {
            let world = &mut *self.world.borrow_mut();
            (world.ended, world.dropped.clone())
        };
        if plan.may_fail {
            self.model.borrow_mut().doubt_expiries();
        }
        self.model.borrow_mut().cut(|partition| dropped.contains(&Some(partition)));
        match ended {
            Some(End::Stuck) => Err(format!("it hangs, at step {}", self.world.borrow().steps)),
            Some(End::PowerCut) => {
                self.model.borrow_mut().cut(|_| true);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// What the clients of a store share, once it is open.
    fn scene(&self, model: &Rc<RefCell<Model>>, plan: Plan) -> impl FnOnce(Store) -> Scene + use<> {
        let (world, model) = (Rc::clone(&self.world), Rc::clone(model));
        let (durability, bytes) = (self.durability, self.bytes);
        let (operations, copied) = (Rc::clone(&self.operations), Rc::clone(&self.copied));
        move |store| Scene {
            world,
            model,
            store,
            durability,
            abandons: 0,
            bytes,
            may_fail: plan.may_fail,
            watched: true,
            may_be_corrupt: plan.may_be_corrupt,
            operations,
            copied,
        }
    }

    fn builder(&self, dir: &str) -> ringlog::Builder {
        let builder = Store::builder(dir).partitions(self.partitions).durability(self.durability);
        builder.segment_bytes(self.segment_bytes).cache_bytes(self.cache_bytes)
    }

    /// From the opening to the end.
    fn live_through<W, F>(
        &mut self,
        handle: Handle,
        plan: Plan,
        work: W,
    ) -> impl Future<Output = Result<Outcome, String>> + use<W, F>
    where
        W: FnOnce(Rc<Scene>, Rng) -> F,
        F: Future<Output = Checked>,
    {
        let (world, model) = (Rc::clone(&self.world), Rc::clone(&self.model));
        let (partitions, summary) = (self.partitions, Rc::clone(&self.summary));
        let mut rng = self.rng.fork();
        let abandons = self.rng.pick(&[0, 3, 20, 100]);
        let builder = self.builder(DIR);
        let segment_bytes = self.segment_bytes;
        let scene = self.scene(&model, plan);
        let untouched = Rc::clone(&self.untouched);
        async move {
            let existed = world.borrow().disk.find(&format!("{DIR}/STORE")).is_ok();
            let before = (existed && plan.may_fail).then(|| Untouched::new(&world.borrow()));
            // Before anything is written that may land there.
            let known = existed.then(|| secret(&world.borrow().disk, DIR));
            // A directory of its own, as the lock has.
            make_home(&world);
            world.borrow_mut().watch.opening = existed;
            let opened = builder.open_on(&[handle]).await;
            world.borrow_mut().watch.opening = false;
            let store = match opened {
                Ok(store) => store,
                Err(error) => {
                    if let Some(before) = &before {
                        before.check_bytes(&error, &world.borrow())?;
                    }
                    untouched.replace(before);
                    let may_fail = plan.may_fail && world.borrow().errors > 0;
                    return refused(error, may_fail);
                }
            };
            summary.borrow_mut().opened += 1;
            if store.open_report().partitions.iter().any(|partition| partition.promised > 0) {
                let world = &mut *world.borrow_mut();
                let cut = world.was_cut;
                world.watch.meet(if cut { Branch::KeptOfCut } else { Branch::Kept });
            }
            let faults_on = std::mem::replace(&mut world.borrow_mut().faults.on, false);
            let secret = known.unwrap_or_else(|| secret(&world.borrow().disk, DIR));
            model.borrow_mut().begin_life(partitions, |key| partition_of(&secret, key, partitions));
            let mut scene = scene(store);
            scene.abandons = if plan.calm { 0 } else { abandons };
            let scene = Rc::new(scene);
            check_opened(&scene).await?;
            scene.verify().await?;
            world.borrow_mut().faults.on = faults_on;
            work(Rc::clone(&scene), rng.fork()).await?;
            world.borrow_mut().faults.on = false;
            scene.check_whole().await?;
            if plan.calm {
                calm_end(&scene, segment_bytes).await?;
            }
            if let Ok(stats) = scene.store.stats().await {
                let mut summary = summary.borrow_mut();
                summary.merges += stats.partitions.iter().map(|p| p.merges).sum::<u64>();
                summary.segments += stats.partitions.iter().map(|p| p.segments).sum::<u64>();
            }
            if plan.closes {
                world.borrow_mut().faults.on = faults_on && rng.one_in(2);
                let (start, covered) = scene.begin_sync();
                match scene.answer(&mut rng, scene.store.clone().close()).await {
                    None => {}
                    Some(Ok(())) => scene.synced(start, &covered)?,
                    Some(Err(error)) => scene.judge(&error)?,
                }
            }
            Ok(Outcome::Over)
        }
    }

    /// Opens a store beside the lives, on a disk without faults, and closes it after `work`.
    pub fn beside<F>(
        &mut self,
        way: Way<'_>,
        work: impl FnOnce(Rc<Scene>) -> F + 'static,
    ) -> Result<Outcome, String>
    where
        F: Future<Output = Checked> + 'static,
    {
        let Way { dir, salvage, model, may_be_corrupt, end_at } = way;
        let before = {
            let world = &mut *self.world.borrow_mut();
            world.begin_life(end_at);
            world.faults.on = false;
            world.disk.capacity = u64::MAX;
            world.mutations
        };
        self.summary.borrow_mut().others += 1;
        let executor = Executor::with_driver(SimDriver::boxed(&self.world));
        let end = end_at.map_or(End::Kill, |(_, end)| end);
        let plan =
            Plan { calm: true, end_at: None, end, may_fail: false, may_be_corrupt, closes: true };
        let (scene, world) = (self.scene(&model, plan), Rc::clone(&self.world));
        let (partitions, handle) = (self.partitions, executor.handle());
        let (builder, home) = (self.builder(dir).salvage(salvage), dir.to_owned());
        let life = async move {
            let store = match builder.open_on(&[handle]).await {
                Ok(store) => store,
                Err(error) if world.borrow().mutations != before && !salvage => {
                    return Err(format!("an opening that failed has changed something: {error:?}"));
                }
                Err(error) => return Ok(Outcome::Refused(error)),
            };
            let secret = secret(&world.borrow().disk, &home);
            model.borrow_mut().forget_told();
            model.borrow_mut().begin_life(partitions, |key| partition_of(&secret, key, partitions));
            let scene = Rc::new(Scene { watched: false, ..scene(store) });
            work(Rc::clone(&scene)).await?;
            let closed = scene.store.clone().close().await;
            closed.map(|()| Outcome::Over).map_err(|error| format!("closing: {error:?}"))
        };
        let outcome = executor.block_on(until_end(&self.world, life));
        self.world.borrow_mut().leave(end);
        drop(executor);
        if super::panics() > 0 {
            return Err("the engine panicked".to_owned());
        }
        match self.world.borrow().ended {
            Some(End::Stuck) => Err("it hangs".to_owned()),
            _ => outcome,
        }
    }
}

/// How a store is opened beside the lives.
pub struct Way<'a> {
    pub dir: &'a str,
    pub salvage: bool,
    pub model: Rc<RefCell<Model>>,
    pub may_be_corrupt: bool,
    pub end_at: Option<(u64, End)>,
}

/// The store's directory is made outside of the seam.
fn make_home(world: &Rc<RefCell<World>>) {
    let disk = &mut world.borrow_mut().disk;
    if disk.find(DIR).is_err() {
        disk.make_dir(DIR).unwrap();
    }
}

fn refused(error: Error, may_fail: bool) -> Result<Outcome, String> {
    match &error {
        Error::Io { .. } | Error::Full { .. } | Error::Poisoned { .. } if may_fail => {
            Ok(Outcome::Refused(error))
        }
        Error::Io { .. } | Error::Full { .. } | Error::Poisoned { .. } => {
            Err(format!("opening failed without a reason: {error:?}"))
        }
        _ => Err(format!("opening failed: {error:?}")),
    }
}

pub fn secret(disk: &Disk, dir: &str) -> [u8; 16] {
    let ino = disk.find(&format!("{dir}/STORE")).unwrap();
    let Node::File(content) = disk.node(ino) else { panic!("STORE is no file") };
    content.bytes(32, 16).try_into().unwrap()
}

/// As the router does.
pub fn partition_of(secret: &[u8; 16], key: &[u8], partitions: usize) -> usize {
    let mut hasher = SipHasher13::new_with_key(secret);
    hasher.write(key);
    let high = hasher.finish128().h1;
    usize::try_from((u128::from(high) * partitions as u128) >> 64).unwrap()
}

/// Runs a life until it is over, or ended from outside.
pub async fn until_end(
    world: &Rc<RefCell<World>>,
    life: impl Future<Output = Result<Outcome, String>>,
) -> Result<Outcome, String> {
    let mut life = pin!(life);
    poll_fn(|cx| {
        if let Some(end) = world.borrow().ended {
            return Poll::Ready(Ok(Outcome::Ended(end)));
        }
        world.borrow_mut().waker = Some(cx.waker().clone());
        life.as_mut().poll(cx)
    })
    .await
}

/// After opening: the first read of each key fixes what is there.
async fn check_opened(scene: &Rc<Scene>) -> Checked {
    let keys = scene.model.borrow().keys.len();
    let mut all = Vec::new();
    for key in 0..keys {
        let since = scene.since();
        let shown = scene.get(key).await?;
        let clock: Clock = scene.clock(since);
        if scene.world.borrow().talks {
            println!("-- key {key} has {shown:?} at {clock:?}");
        }
        match shown {
            Some(shown) => scene.model.borrow_mut().fix(key, shown, clock, scene.may_fail)?,
            // A failed sync may already have dropped what a merge had copied: the next opening has it.
            None if scene.may_be_damaged(key) => {}
            None => return Err(format!("key {key} cannot be read, without a fault")),
        }
        all.extend(shown.map(|shown| (key, shown)));
    }
    scene.model.borrow_mut().all_fixed()?;
    scene.check_prefix(&all)?;
    scene.world.borrow_mut().order.forget();
    scene.check_whole().await
}

/// Many clients at the same time.
pub async fn busy(scene: Rc<Scene>, mut rng: Rng) -> Checked {
    let crowd = Rng::new(!rng.clone().next()).one_in(30);
    let clients = if crowd { 32 } else { 1 + rng.below(8) };
    let each = rng.pick(&[0, 5, 30, 80]);
    let tasks: Vec<_> = (0..clients)
        .map(|_| {
            let (scene, mut rng) = (Rc::clone(&scene), rng.fork());
            rt::spawn(async move {
                for _ in 0..each {
                    scene.operate(&mut rng).await?;
                }
                Checked::Ok(())
            })
        })
        .collect();
    for task in tasks {
        task.await.map_err(|error| format!("a client: {error:?}"))??;
    }
    Ok(())
}
