//! One task on two threads: it reads and writes on the I/O thread, and computes on another.
//!
//! ```text
//! cargo run --release --example mixed_workload
//! ```
//!
//! [`rt::schedule_on`] moves the running task. What follows its `await` runs on the other thread,
//! local variables and all, and the ring of the I/O thread serves its other tasks meanwhile.

use ringlog::rt::{self, Fd, Handle, Runtime, RuntimeConfig};
use std::error::Error;
use std::fmt::Write as _;
use std::io::{Read, Seek, SeekFrom, Write};
use std::process::ExitCode;
use std::time::Instant;
use std::{io, str, thread};

const RECORDS: u64 = 20_000;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mixed_workload: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let mut file = tempfile::tempfile()?;
    let mut input = String::new();
    (1..=RECORDS).try_for_each(|n| writeln!(input, "{n}"))?;
    file.write_all(input.as_bytes())?;

    let runtime = Runtime::start(RuntimeConfig { num_threads: 2, ..RuntimeConfig::default() })?;
    let (io_thread, compute_thread) = (runtime.thread(0).clone(), runtime.thread(1).clone());
    let fd = Fd::from(file.try_clone()?);
    let task = mixed_workload(io_thread.clone(), compute_thread, fd, input.len());
    rt::block_on(io_thread.schedule(task))??;
    runtime.stop()?;

    let mut written = String::new();
    file.seek(SeekFrom::Start(input.len() as u64))?;
    file.read_to_string(&mut written)?;
    let expected = summary((1..=RECORDS).map(Ok))?;
    if written != expected {
        return Err(format!("the file says {written:?} instead of {expected:?}").into());
    }
    println!("the file's last line is as it should be: {}", written.trim_end());
    Ok(())
}

async fn mixed_workload(
    io_thread: Handle,
    compute_thread: Handle,
    fd: Fd,
    len: usize,
) -> io::Result<()> {
    // Read on the I/O thread.
    let (read, data) = rt::read_exact(&fd, Vec::with_capacity(len), 0).await;
    read?;
    say(&format!("read {} bytes", data.len()));

    // Move to the compute thread for the CPU's work.
    rt::schedule_on(&compute_thread).await?;
    let start = Instant::now();
    let processed = expensive_parse(&data)?;
    say(&format!("parsed them in {:?}", start.elapsed()));

    // Back to the I/O thread to respond.
    rt::schedule_on(&io_thread).await?;
    let (written, processed) = rt::write_all(&fd, processed.into_bytes(), len as u64).await;
    written?;
    say(&format!("wrote {} bytes", processed.len()));
    Ok(())
}

fn expensive_parse(data: &[u8]) -> io::Result<String> {
    let text = str::from_utf8(data).map_err(invalid)?;
    summary(text.lines().map(|line| line.parse().map_err(invalid)))
}

/// The number that takes longest to reach 1 by halving it when even, else by `3n + 1`.
fn summary(numbers: impl Iterator<Item = io::Result<u64>>) -> io::Result<String> {
    let (mut count, mut most_steps, mut slowest) = (0, 0, 0);
    for number in numbers {
        let number = number?;
        let steps = steps(number)?;
        count += 1;
        if steps > most_steps {
            (most_steps, slowest) = (steps, number);
        }
    }
    Ok(format!("of {count} numbers {slowest} takes most steps: {most_steps}\n"))
}

fn steps(number: u64) -> io::Result<u32> {
    let (mut n, mut steps) = (number, 0);
    while n > 1 {
        let next = if n.is_multiple_of(2) {
            Some(n / 2)
        } else {
            n.checked_mul(3).and_then(|n| n.checked_add(1))
        };
        n = next.ok_or_else(|| io::Error::other(format!("{number} leads beyond 64 bits")))?;
        steps += 1;
    }
    Ok(steps)
}

fn invalid(error: impl Error + Send + Sync + 'static) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// Says on which thread it was.
fn say(what: &str) {
    println!("{}: {what}", thread::current().name().unwrap_or("a thread"));
}
