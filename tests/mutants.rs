//! Mutants: small wrong versions of the engine and the runtime, each of which a test must notice.
//!
//! They are listed in `tests/mutants/*.txt`, one block each, to be read and kept up to date by hand:
//!
//! ```text
//! == name_of_the_mutant
//! A sentence that says why it is wrong.
//! file: src/log/writer.rs
//! kill: store_files a_missing_segment_is_named
//! hangs: 20
//! ---- before
//! text that occurs once in the file
//! ---- after
//! what stands there in the mutant
//! ----
//! ```
//!
//! `kill` names the test that fails: its file in `tests`, or `lib`, and its name. `simulation 100`
//! stands for the first 100 seeds of the simulation. Only where `hangs` is given does a test that is
//! not over after so many seconds count as failed. A mutant that lives is a defect of the tests.
//!
//! ```console
//! cargo test --test mutants -- --ignored --nocapture
//! MUTANT=any_zeroes_are_padding cargo test --test mutants -- --ignored --nocapture
//! ```
//!
//! `MUTANT` may also be a file that is wrong, or one of tests, or several of these with commas.

#![allow(missing_docs, clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::{self, File};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

/// What a test may take to notice a mutant, besides the build.
const BUDGET: Duration = Duration::from_secs(120);
/// Copies of the sources that are built and tested at the same time.
const LANES: usize = 2;
const LIVES: &str = "lives_on_a_failing_disk_lose_nothing_and_invent_nothing";

/// A test, and what it is told by its environment.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Kill {
    target: String,
    test: String,
    seeds: Option<u64>,
}

#[derive(Clone, Debug)]
struct Mutant {
    name: String,
    why: String,
    file: String,
    kill: Kill,
    /// How long it may run; whether it fails by that.
    hangs: Option<Duration>,
    before: String,
    after: String,
}

impl Mutant {
    fn budget(&self) -> Duration {
        self.hangs.unwrap_or(BUDGET)
    }

    fn parse(block: &str) -> Self {
        let (head, code) = block.split_once("---- before\n").expect("a text before");
        let (before, code) = code.split_once("---- after\n").expect("a text after");
        let (after, rest) = code.split_once("----\n").expect("an end");
        assert!(rest.trim().is_empty(), "{rest:?} belongs to no mutant");
        let mut lines = head.lines();
        let name = lines.next().unwrap().to_owned();
        let why = lines.next().unwrap().to_owned();
        let fields: BTreeMap<_, _> = lines.map(|line| line.split_once(": ").unwrap()).collect();
        let known = ["file", "kill", "hangs"];
        assert!(fields.keys().all(|field| known.contains(field)), "{name}: {fields:?}");
        let (target, test) = fields["kill"].split_once(' ').expect("a file and a test");
        let kill = Kill { target: target.to_owned(), test: test.to_owned(), seeds: None };
        let kill = match test.parse() {
            Ok(seeds) => Kill { test: LIVES.to_owned(), seeds: Some(seeds), ..kill },
            Err(_) => kill,
        };
        let hangs = fields.get("hangs").map(|n| Duration::from_secs(n.parse().expect("seconds")));
        let (file, before, after) =
            (fields["file"].to_owned(), before.to_owned(), after.to_owned());
        Self { name, why, file, kill, hangs, before, after }
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn mutants() -> Vec<Mutant> {
    let dir = fs::read_dir(root().join("tests/mutants")).unwrap();
    let mut lists: Vec<_> = dir.map(|entry| entry.unwrap().path()).collect();
    lists.sort();
    let read = |path: PathBuf| {
        let list = fs::read_to_string(path).unwrap();
        list.split("\n== ").skip(1).map(Mutant::parse).collect::<Vec<_>>()
    };
    lists.into_iter().flat_map(read).collect()
}

#[test]
fn every_mutant_can_be_made_and_names_a_test_that_exists() {
    let mutants = mutants();
    assert!(mutants.len() >= 30, "there are {}", mutants.len());
    let design = fs::read_to_string(root().join("DESIGN.md")).unwrap();
    assert!(design.contains(&format!(" lists {} small", mutants.len())), "DESIGN.md counts others");
    let names: BTreeSet<_> = mutants.iter().map(|mutant| &mutant.name).collect();
    assert_eq!(names.len(), mutants.len(), "two have the same name");
    for Mutant { name, why, file, kill, before, after, .. } in mutants {
        assert!(why.ends_with('.') && why.len() > 20, "{name} does not say why it is wrong: {why}");
        let code = fs::read_to_string(root().join(&file)).unwrap();
        let found = code.matches(&before).count();
        assert_eq!(found, 1, "{name}: how often {file} has its text; bring it up to date");
        assert!(file.starts_with("src/") && before != after, "{name} changes nothing");
        let (path, test) = match kill.test.split_once("::tests::") {
            Some((module, test)) => (format!("src/{}.rs", module.replace("::", "/")), test),
            None => match kill.test.split_once("::") {
                Some((module, test)) => (format!("tests/sim/{module}.rs"), test),
                None => (format!("tests/{}.rs", kill.target), &*kill.test),
            },
        };
        assert_eq!(kill.target == "lib", path.starts_with("src/"), "{name}: {kill:?}");
        let tests = fs::read_to_string(root().join(&path)).unwrap();
        assert!(tests.contains(&format!("fn {test}(")), "{name}: {path} has no {test}");
    }
}

/// How a test ended.
enum End {
    Over(ExitStatus),
    Hangs,
}

/// A copy of the sources, and where it is built. To cargo two copies are the same package, and which
/// of them a file was built from it tells by times alone: in a folder that they share, one would
/// run what was built of the other.
struct Lane {
    source: PathBuf,
    target: PathBuf,
    output: PathBuf,
}

impl Lane {
    fn new(number: usize) -> Self {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("mutants");
        let source = dir.join(format!("copy-{number}"));
        let output = dir.join(format!("output-{number}"));
        let lane = Self { source, target: dir.join(format!("target-{number}")), output };
        fs::create_dir_all(&lane.source).unwrap();
        for file in ["Cargo.toml", "Cargo.lock", "README.md"] {
            mirror(&root().join(file), &lane.source.join(file));
        }
        for folder in ["src", "tests", "examples", "benches", "crates"] {
            mirror(&root().join(folder), &lane.source.join(folder));
        }
        lane
    }

    /// Builds the binary that a test is in; none if that fails.
    fn build(&self, target: &str) -> Option<PathBuf> {
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["test", "--no-run", "--message-format=json", "--target-dir"]);
        cargo.arg(&self.target).current_dir(&self.source);
        // Most tests fail at once: it is the builds that take long.
        for setting in ["debug=0", "opt-level=0"] {
            cargo.arg("--config").arg(format!("profile.dev.package.ringlog.{setting}"));
        }
        match target {
            "lib" => cargo.arg("--lib"),
            test => cargo.args(["--test", test]),
        };
        let output = cargo.output().unwrap();
        if !output.status.success() {
            println!("{}", String::from_utf8_lossy(&output.stderr));
            return None;
        }
        let messages = String::from_utf8(output.stdout).unwrap();
        let (_, path) = messages.rsplit_once("\"executable\":\"").expect("a test binary");
        Some(PathBuf::from(path.split('"').next().unwrap()))
    }

    /// Runs a test, for so long at most. What it says is in the lane's `output`.
    fn run(&self, binary: &Path, kill: &Kill, budget: Duration) -> End {
        let output = File::create(&self.output).unwrap();
        let mut test = Command::new(binary);
        test.args(["--exact", &kill.test, "--nocapture", "--include-ignored"]);
        test.current_dir(&self.source).stdin(Stdio::null());
        test.stdout(output.try_clone().unwrap()).stderr(output);
        // A group of its own, so that its children end with it.
        test.process_group(0).env_remove("SIM_SEED").env_remove("SIM_SEEDS");
        if let Some(seeds) = kill.seeds {
            test.env("SIM_SEEDS", seeds.to_string());
        }
        let (mut test, start) = (test.spawn().unwrap(), Instant::now());
        loop {
            if let Some(status) = test.try_wait().unwrap() {
                return End::Over(status);
            }
            if start.elapsed() > budget {
                let group = format!("-{}", test.id());
                Command::new("kill").args(["-KILL", "--", &group]).status().unwrap();
                test.wait().unwrap();
                return End::Hangs;
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// The end of what the last test said.
    fn told(&self) -> String {
        let told = fs::read(&self.output).unwrap();
        let told = String::from_utf8_lossy(&told).into_owned();
        let lines: Vec<_> = told.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }

    /// Without a mutant the test passes, in the time that it has.
    fn check_passes(&self, binary: &Path, kill: &Kill, budget: Duration) -> Result<(), String> {
        match self.run(binary, kill, budget) {
            End::Over(status) if status.success() && self.told().contains("1 passed") => Ok(()),
            End::Over(status) => Err(format!("{kill:?}: {status}\n{}", self.told())),
            End::Hangs => Err(format!("{kill:?}: not over after {budget:?}")),
        }
    }

    /// Tells how the mutant was noticed, or why it was not: in a word, and in full.
    fn kill(&self, mutant: &Mutant) -> Result<&'static str, (&'static str, String)> {
        let path = self.source.join(&mutant.file);
        let code = fs::read_to_string(&path).unwrap();
        fs::write(&path, code.replacen(&mutant.before, &mutant.after, 1)).unwrap();
        let binary = self.build(&mutant.kill.target);
        let end = binary.map(|binary| self.run(&binary, &mutant.kill, mutant.budget()));
        fs::write(&path, code).unwrap();
        match end {
            None => Err(("NO BUILD", "it does not build".to_owned())),
            Some(End::Hangs) if mutant.hangs.is_some() => Ok("hangs"),
            Some(End::Hangs) => Err(("HANGS", "it hangs, and is not said to".to_owned())),
            Some(End::Over(status)) if status.success() => Err(("LIVES", "it lives".to_owned())),
            // What libtest ends with when a test has failed.
            Some(End::Over(status)) if status.code() == Some(101) => Ok("fails"),
            Some(End::Over(status)) if status.signal().is_some() => Ok("aborts"),
            Some(End::Over(status)) => Err(("ENDS", format!("{status}\n{}", self.told()))),
        }
    }
}

/// Makes `to` the same as `from`, and leaves alone what is: cargo goes by times.
fn mirror(from: &Path, to: &Path) {
    if from.is_dir() {
        fs::create_dir_all(to).unwrap();
        let names = |dir: &Path| -> BTreeSet<_> {
            fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect()
        };
        for gone in names(to).difference(&names(from)) {
            let gone = to.join(gone);
            if gone.is_dir() { fs::remove_dir_all(gone) } else { fs::remove_file(gone) }.unwrap();
        }
        for name in names(from).iter().filter(|name| *name != "target") {
            mirror(&from.join(name), &to.join(name));
        }
    } else if fs::read(to).ok() != fs::read(from).ok() {
        fs::copy(from, to).unwrap();
    }
}

/// Works on all of them, in as many lanes as there are.
fn in_lanes<T: Send, R: Send>(
    lanes: &[Lane],
    work: Vec<T>,
    f: impl Fn(&Lane, T) -> R + Sync,
) -> Vec<R> {
    let (work, done) = (Mutex::new(VecDeque::from(work)), Mutex::new(Vec::new()));
    let (work, done, f) = (&work, &done, &f);
    thread::scope(|scope| {
        for lane in lanes {
            scope.spawn(move || {
                loop {
                    let next = work.lock().unwrap().pop_front();
                    let Some(next) = next else { return };
                    let result = f(lane, next);
                    done.lock().unwrap().push(result);
                }
            });
        }
    });
    std::mem::take(&mut *done.lock().unwrap())
}

#[test]
#[ignore = "builds each mutant: cargo test --test mutants -- --ignored --nocapture"]
fn every_mutant_is_noticed_by_its_test() {
    let only = std::env::var("MUTANT").unwrap_or_default();
    let mut mutants = mutants();
    mutants.retain(|Mutant { name, file, kill, .. }| {
        let any = |only: &str| [name, file, &kill.target].iter().any(|part| part.contains(only));
        only.split(',').any(any)
    });
    assert!(!mutants.is_empty(), "there is no mutant of that name");
    // What one binary is needed for, one after the other.
    mutants.sort_by(|a, b| a.kill.cmp(&b.kill));
    let start = Instant::now();
    let lanes: Vec<_> = (0..LANES.min(mutants.len())).map(Lane::new).collect();
    // Each binary is built once for this.
    let mut tests: BTreeMap<_, BTreeMap<_, _>> = BTreeMap::new();
    for mutant in &mutants {
        let tests = tests.entry(mutant.kill.target.clone()).or_default();
        let budget = tests.entry(mutant.kill.clone()).or_insert(mutant.budget());
        *budget = mutant.budget().min(*budget);
    }
    let broken = in_lanes(&lanes, tests.into_iter().collect(), |lane, (target, tests)| {
        let Some(binary) = lane.build(&target) else { return vec![format!("{target}: no build")] };
        let check = |(kill, budget)| lane.check_passes(&binary, &kill, budget).err();
        tests.into_iter().filter_map(check).collect()
    });
    let broken: Vec<String> = broken.into_iter().flatten().collect();
    assert!(broken.is_empty(), "without a mutant:\n{}", broken.join("\n"));
    println!("without a mutant all tests pass, after {:.0?}", start.elapsed());
    let count = mutants.len();
    let alive = in_lanes(&lanes, mutants, |lane, mutant| {
        let start = Instant::now();
        let end = lane.kill(&mutant);
        let (Mutant { name, kill, .. }, seconds) = (&mutant, start.elapsed().as_secs_f64());
        let by = kill.seeds.map_or(kill.test.clone(), |seeds| format!("{seeds} seeds"));
        let told = end.as_ref().unwrap_or_else(|(told, _)| told);
        println!("{name:58} {told:8} {seconds:5.1} s  {} {by}", kill.target);
        end.err().map(|(_, why)| format!("{name}: {why}"))
    });
    println!("{count} mutants, {:.0?}", start.elapsed());
    let alive: Vec<_> = alive.into_iter().flatten().collect();
    assert!(alive.is_empty(), "{} not noticed:\n{}", alive.len(), alive.join("\n"));
}
