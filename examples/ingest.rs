//! The main job: stores a whole file tree, reopens, and compares every byte.
//!
//! ```text
//! cargo run --release --example ingest -- [DIR] [--store DIR] [--tasks N] [--partitions N]
//! cargo run --release --example ingest -- --verify [--store DIR]
//! ```
//!
//! Every file of the tree (default `/usr/share`) is put under its path by many concurrent tasks.
//! What the store acknowledged is noted in a journal beside it. Kill the program with SIGKILL
//! half-way, run it again with `--verify`, and it proves that every file it had noted is there.

use hdrhistogram::Histogram;
use indicatif::{ProgressBar, ProgressStyle};
use ringlog::rt::{self, Executor, ExecutorConfig};
use ringlog::{MAX_KEY_LEN, MAX_VALUE_LEN, Store};
use std::cell::RefCell;
use std::error::Error;
use std::fs::{self, File};
use std::future::Future;
use std::io::{self, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::rc::Rc;
use std::time::{Duration, Instant};

type Result<T, E = Box<dyn Error>> = std::result::Result<T, E>;

const USAGE: &str =
    "usage: ingest [DIR] [--store DIR] [--tasks N] [--partitions N] | --verify [--store DIR]";

struct Options {
    tree: PathBuf,
    store: PathBuf,
    tasks: usize,
    partitions: usize,
    verify: bool,
}

fn options() -> Result<Options> {
    let mut options = Options {
        tree: "/usr/share".into(),
        store: "target/ingest".into(), // /tmp may be memory
        tasks: 64,
        partitions: 1,
        verify: false,
    };
    let mut args = std::env::args_os().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or(USAGE);
        match arg.to_str() {
            Some("--store") => options.store = value()?.into(),
            Some("--tasks") => options.tasks = value()?.to_str().ok_or(USAGE)?.parse()?,
            Some("--partitions") => options.partitions = value()?.to_str().ok_or(USAGE)?.parse()?,
            Some("--verify") => options.verify = true,
            Some(flag) if flag.starts_with('-') => return Err(USAGE.into()),
            _ => options.tree = arg.into(),
        }
    }
    Ok(options)
}

fn main() -> ExitCode {
    let outcome = options().and_then(|o| if o.verify { verify(&o) } else { ingest(&o) });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ingest: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What was acknowledged: one line a file, `crc len path`, in the order of acknowledgement.
///
/// It is written after the store has answered and before anything is reported, so it claims only
/// what the store promised. It need not be synced: a killed process leaves what it wrote.
struct Journal {
    file: File,
}

#[derive(Clone)]
struct Stored {
    crc: u32,
    len: usize,
    path: PathBuf,
}

impl Stored {
    fn new(path: &Path, value: &[u8]) -> Self {
        Self { crc: crc32fast::hash(value), len: value.len(), path: path.to_owned() }
    }

    fn matches(&self, value: &[u8]) -> bool {
        self.len == value.len() && self.crc == crc32fast::hash(value)
    }
}

impl Journal {
    fn path(store: &Path) -> PathBuf {
        store.join("INGESTED")
    }

    fn note(&mut self, stored: &Stored) -> io::Result<()> {
        let mut line = format!("{:08x} {} ", stored.crc, stored.len).into_bytes();
        line.extend_from_slice(stored.path.as_os_str().as_bytes());
        line.push(b'\n');
        self.file.write_all(&line)
    }

    fn read(store: &Path) -> Result<Vec<Stored>> {
        let path = Self::path(store);
        let mut text = fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        // A kill may have cut the last line short: it was not noted yet.
        text.truncate(text.iter().rposition(|&byte| byte == b'\n').unwrap_or(0));
        let mut entries = Vec::new();
        for line in text.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
            let mut parts = line.splitn(3, |&byte| byte == b' ');
            let mut number = || std::str::from_utf8(parts.next().unwrap_or_default());
            let (crc, len) = (u32::from_str_radix(number()?, 16)?, number()?.parse()?);
            let path = std::ffi::OsString::from_vec(parts.next().unwrap_or_default().to_vec());
            entries.push(Stored { crc, len, path: path.into() });
        }
        Ok(entries)
    }
}

/// What a walk found: the files, their bytes together, and what was left out.
#[derive(Default)]
struct Tree {
    files: Vec<PathBuf>,
    bytes: u64,
    left_out: usize,
}

fn walk(dir: &Path, tree: &mut Tree) {
    let Ok(entries) = fs::read_dir(dir) else {
        tree.left_out += 1;
        return;
    };
    for entry in entries.flatten() {
        let path = entry.path();
        match entry.metadata() {
            Ok(meta) if meta.is_dir() => walk(&path, tree),
            // A name with a line feed has no line in the journal.
            Ok(meta)
                if meta.is_file()
                    && meta.len() <= MAX_VALUE_LEN as u64
                    && path.as_os_str().len() <= MAX_KEY_LEN
                    && !path.as_os_str().as_bytes().contains(&b'\n') =>
            {
                tree.bytes += meta.len();
                tree.files.push(path);
            }
            _ => tree.left_out += 1, // links, sockets, files too large, unreadable ones
        }
    }
}

/// Longer latencies count as this: 10 minutes.
const MAX_LATENCY_US: u64 = 600_000_000;

/// Counts and latencies of a phase.
struct Phase {
    files: u64,
    bytes: u64,
    latency: Histogram<u64>,
    start: Instant,
    bar: ProgressBar,
}

impl Phase {
    fn new(name: &'static str, bytes: u64) -> Result<Self> {
        let bar = ProgressBar::new(bytes); // hidden by itself where there is no terminal
        let style = "{prefix} [{bar:40}] {bytes}/{total_bytes} {bytes_per_sec} {eta}";
        bar.set_style(ProgressStyle::with_template(style)?.progress_chars("=> "));
        bar.set_prefix(name);
        let latency = Histogram::new_with_max(MAX_LATENCY_US, 3)?;
        Ok(Self { files: 0, bytes: 0, latency, start: Instant::now(), bar })
    }

    fn add(&mut self, bytes: usize, latency: Duration) {
        self.files += 1;
        self.bytes += bytes as u64;
        self.bar.inc(bytes as u64);
        self.latency
            .saturating_record(u64::try_from(latency.as_micros()).unwrap_or(MAX_LATENCY_US));
    }

    #[expect(clippy::cast_precision_loss, reason = "figures for people to read")]
    fn report(&self, name: &str) {
        self.bar.finish_and_clear();
        let (elapsed, at) = (self.start.elapsed(), |q| self.latency.value_at_quantile(q));
        println!(
            "{name:<6} {} files, {:.1} MB in {elapsed:.2?}: {:.1} MB/s, {:.0} files/s",
            self.files,
            self.bytes as f64 / 1e6,
            self.bytes as f64 / 1e6 / elapsed.as_secs_f64(),
            self.files as f64 / elapsed.as_secs_f64(),
        );
        println!(
            "       latency of a {name}: p50 {} us, p99 {} us, p99.9 {} us, max {} us",
            at(0.50),
            at(0.99),
            at(0.999),
            self.latency.max(),
        );
    }
}

/// Runs `work` on every item, by so many tasks at a time on this thread's executor.
fn for_each<T, F>(tasks: usize, items: Vec<T>, work: impl Fn(T) -> F + 'static) -> Result<()>
where
    T: 'static,
    F: Future<Output = Result<()>> + 'static,
{
    let executor = Executor::new(ExecutorConfig::default())?;
    let (items, work) = (Rc::new(RefCell::new(items.into_iter())), Rc::new(work));
    let workers: Vec<rt::Task<Result<()>>> = (0..tasks.max(1))
        .map(|_| {
            let (items, work) = (Rc::clone(&items), Rc::clone(&work));
            executor.spawn(async move {
                loop {
                    let next = items.borrow_mut().next();
                    let Some(item) = next else { return Ok(()) };
                    work(item).await?;
                }
            })
        })
        .collect();
    executor.block_on(async {
        for worker in workers {
            worker.await??;
        }
        Ok(())
    })
}

/// Reads a file of the tree through the ring. None if it has gone, or may not be read.
async fn read_file(path: &Path) -> Option<Vec<u8>> {
    let file = rt::open(None, path, libc::O_RDONLY, 0).await.ok()?;
    let mut content = Vec::new();
    loop {
        let chunk = Vec::with_capacity(1 << 20);
        let (result, chunk) = rt::read(&file, chunk, content.len() as u64).await;
        match result.ok()? {
            0 => return Some(content),
            _ if content.is_empty() => content = chunk,
            _ => content.extend_from_slice(&chunk),
        }
    }
}

fn ingest(options: &Options) -> Result<()> {
    let mut tree = Tree::default();
    walk(&options.tree, &mut tree);
    if tree.files.is_empty() {
        return Err(format!("no files in {}", options.tree.display()).into());
    }
    println!(
        "{}: {} files, {} bytes; left out {} (links, special or unreadable files)",
        options.tree.display(),
        tree.files.len(),
        tree.bytes,
        tree.left_out
    );
    // A store of an earlier run is replaced, but nothing else is.
    let journal = Journal::path(&options.store);
    if journal.exists() {
        fs::remove_dir_all(&options.store)?;
    } else if options.store.exists() {
        return Err(format!("{} is there, and not mine", options.store.display()).into());
    }
    fs::create_dir_all(&options.store)?;
    let journal = Journal { file: File::create(journal)? };

    let store = Store::open(&options.store, options.partitions)?;
    let stored = put_all(options, &tree, journal, &store)?;
    let total = rt::block_on(store.stats())?.total();
    println!(
        "       {} commits of {:.1} records and {:.1} KiB each; log of {} bytes",
        total.commits,
        total.records_per_commit(),
        ratio(total.bytes_written, total.commits) / 1024.0,
        total.log_bytes
    );
    let closing = Instant::now();
    rt::block_on(store.close())?;
    let opening = Instant::now();
    let store = Store::open(&options.store, options.partitions)?;
    println!("closed in {:.2?}, opened in {:.2?}", opening - closing, opening.elapsed());
    compare_all(options, stored, &store)?;
    rt::block_on(store.close())?;
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "figures for people to read")]
fn ratio(a: u64, b: u64) -> f64 {
    a as f64 / b.max(1) as f64
}

fn put_all(options: &Options, tree: &Tree, journal: Journal, store: &Store) -> Result<Vec<Stored>> {
    let phase = Rc::new(RefCell::new(Phase::new("put", tree.bytes)?));
    let journal = Rc::new(RefCell::new(journal));
    let stored = Rc::new(RefCell::new(Vec::with_capacity(tree.files.len())));
    let gone = Rc::new(RefCell::new(0u32));
    let work = {
        let (phase, stored, gone) = (Rc::clone(&phase), Rc::clone(&stored), Rc::clone(&gone));
        let store = store.clone();
        move |path: PathBuf| {
            let (phase, journal, stored) =
                (Rc::clone(&phase), Rc::clone(&journal), Rc::clone(&stored));
            let (gone, store) = (Rc::clone(&gone), store.clone());
            async move {
                let content = read_file(&path).await.filter(|c| c.len() <= MAX_VALUE_LEN);
                let Some(content) = content else {
                    *gone.borrow_mut() += 1;
                    return Ok(());
                };
                let entry = Stored::new(&path, &content);
                let start = Instant::now();
                store.put(path.as_os_str().as_bytes(), &content).await?;
                let latency = start.elapsed();
                journal.borrow_mut().note(&entry)?;
                phase.borrow_mut().add(content.len(), latency);
                stored.borrow_mut().push(entry);
                Ok(())
            }
        }
    };
    for_each(options.tasks, tree.files.clone(), work)?;
    phase.borrow().report("put");
    if *gone.borrow() > 0 {
        println!("       {} files went away or may not be read", gone.borrow());
    }
    Ok(stored.take())
}

/// Reads every entry back, and compares it with the tree byte for byte.
fn compare_all(options: &Options, entries: Vec<Stored>, store: &Store) -> Result<()> {
    let bytes = entries.iter().map(|entry| entry.len as u64).sum();
    let phase = Rc::new(RefCell::new(Phase::new("get", bytes)?));
    let changed = Rc::new(RefCell::new(0u32));
    let work = {
        let (phase, changed, store) = (Rc::clone(&phase), Rc::clone(&changed), store.clone());
        move |entry: Stored| {
            let (phase, changed) = (Rc::clone(&phase), Rc::clone(&changed));
            let store = store.clone();
            async move {
                let path = entry.path.display();
                let start = Instant::now();
                let value = store.get(entry.path.as_os_str().as_bytes()).await?;
                let latency = start.elapsed();
                let value = value.ok_or_else(|| format!("LOST: {path}"))?;
                if !entry.matches(&value) {
                    return Err(format!("WRONG: {path} is not what was stored").into());
                }
                // The stored bytes are right; the tree's own may have changed meanwhile.
                if read_file(&entry.path).await.as_deref() != Some(&value[..]) {
                    *changed.borrow_mut() += 1;
                }
                phase.borrow_mut().add(value.len(), latency);
                Ok(())
            }
        }
    };
    for_each(options.tasks, entries, work)?;
    phase.borrow().report("get");
    match *changed.borrow() {
        0 => println!("every file equals the tree, byte for byte"),
        n => println!("every file is as it was stored; {n} have changed in the tree since"),
    }
    Ok(())
}

/// After a kill: what was acknowledged must be there.
fn verify(options: &Options) -> Result<()> {
    let entries = Journal::read(&options.store)?;
    let opening = Instant::now();
    let store = match Store::open(&options.store, options.partitions) {
        Err(ringlog::Error::PartitionMismatch { found, .. }) => Store::open(&options.store, found),
        opened => opened,
    }?;
    println!(
        "opened in {:.2?}; {} files had been reported as stored",
        opening.elapsed(),
        entries.len()
    );
    let keys = rt::block_on(store.stats())?.total().keys;
    compare_all(options, entries.clone(), &store)?;
    println!("verified: all {} are there, of {keys} keys in the store", entries.len());
    rt::block_on(store.close())?;
    Ok(())
}
