//! From the bytes of an input to the files of a store, and back.
//!
//! An input is short, and what a fuzzer changes in it should matter. So a log is written as pieces,
//! each of which begins a block; headers are made here; and where the input says so, all sums are
//! made right by a second writer of the format, so that changes get past them. Every input means
//! something, whatever it is.

use crate::store_common::{
    BLOCK, Files, MARK, PUT, RECORD_HEADER, SEAL, entries, entry, header_crc, is_a, number,
    segment_name,
};
use std::collections::BTreeSet;

/// The superblock of all these stores, and so their identity: the fixtures' own.
pub const STORE: &[u8; 52] = include_bytes!("../fixtures/v1/killed/STORE");
/// Most blocks of all the logs of an input: what an opening may use of memory is held to that.
pub const MOST_BLOCKS: usize = 128;

/// What an input begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "the bits of a byte")]
pub struct Choices {
    /// The sums of records are made right.
    pub sums: bool,
    /// Marks and seals follow upon what is before them, and hints name the seal.
    pub links: bool,
    /// Hints are bound to their segments, and their sums are made right.
    pub hints: bool,
    pub salvage: bool,
    pub compact: bool,
    /// Logs end within a block.
    pub ragged: bool,
}

impl Choices {
    pub fn of(byte: u8) -> Self {
        let bit = |n: u32| byte >> n & 1 == 1;
        Self {
            sums: bit(0),
            links: bit(1),
            hints: bit(2),
            salvage: bit(3),
            compact: bit(4),
            ragged: bit(5),
        }
    }
}

/// What is left of an input. Where it ends, zeroes and nothing follow.
pub struct Input<'a>(pub &'a [u8]);

impl<'a> Input<'a> {
    pub fn take(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        taken
    }

    pub fn byte(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or(0)
    }

    /// Bytes with their length before them.
    fn part(&mut self) -> &'a [u8] {
        let len = number(self.take(2));
        self.take(len)
    }
}

// ---- logs -------------------------------------------------------------------------------------

/// The header of a segment of partition 0.
pub fn header(id: u64, salt: &[u8]) -> Vec<u8> {
    let mut block = vec![0; BLOCK];
    block[..8].copy_from_slice(b"ringlogL");
    block[8..10].copy_from_slice(&STORE[8..10]);
    block[16..32].copy_from_slice(&STORE[16..32]);
    block[32..40].copy_from_slice(&id.to_le_bytes());
    block[40..40 + salt.len()].copy_from_slice(salt);
    let sum = crc32fast::hash(&block[..48]);
    block[48..52].copy_from_slice(&sum.to_le_bytes());
    block
}

fn pad(log: &mut Vec<u8>) {
    log.resize(log.len().next_multiple_of(BLOCK), 0);
}

/// A log of the pieces that the input goes on with. Takes what it needs from the blocks left.
fn read_log(input: &mut Input, id: u64, choices: Choices, blocks: &mut usize) -> Vec<u8> {
    let mut log = header(id, input.take(8));
    let pieces = input.byte();
    for _ in 0..pieces {
        if input.0.is_empty() {
            break;
        }
        let piece = input.part();
        let needed = piece.len().div_ceil(BLOCK).max(1);
        if needed > *blocks {
            break;
        }
        *blocks -= needed;
        pad(&mut log);
        let len = log.len() + if piece.is_empty() { BLOCK } else { piece.len() };
        log.extend_from_slice(piece);
        log.resize(len, 0);
    }
    if choices.sums || choices.links {
        repair(&mut log, choices);
    }
    if !choices.ragged {
        pad(&mut log);
    }
    log
}

/// Makes whatever has lengths that fit a valid record of its place.
pub fn repair(log: &mut [u8], choices: Choices) {
    let salt: [u8; 8] = log[40..48].try_into().unwrap();
    let (mut at, mut end) = (BLOCK, BLOCK);
    while let Some(header) = log.get(at..at + RECORD_HEADER) {
        if header.iter().all(|&byte| byte == 0) {
            at = (at + 1).next_multiple_of(BLOCK);
            continue;
        }
        let body = RECORD_HEADER + if header[23] & 1 == 0 { 0 } else { 8 };
        let (key, value) = (number(&header[20..22]), number(&header[16..20]));
        let (kind, total) = (header[22], (body + key + value).next_multiple_of(8));
        let whole = log.len() - at >= total;
        if whole && choices.links && value == 32 && [MARK, SEAL].contains(&kind) {
            let after = at + body + key + 16;
            log[after..after + 8].copy_from_slice(&(end as u64).to_le_bytes());
        }
        if choices.sums {
            if whole {
                log[at + body + key + value..at + total].fill(0);
                let sum = crc32fast::hash(&log[at + body..at + body + key + value]);
                log[at + 4..at + 8].copy_from_slice(&sum.to_le_bytes());
            }
            if let Some(header) = log.get(at..at + body) {
                let sum = header_crc(&salt, at, header);
                log[at..at + 4].copy_from_slice(&sum);
            }
        }
        at = if whole { at + total } else { (at + 1).next_multiple_of(BLOCK) };
        end = if whole && kind != SEAL { at } else { end };
    }
}

/// A log as the pieces that make it again.
fn write_log(log: &[u8], to: &mut Vec<u8>) {
    let mut pieces: Vec<Vec<u8>> = Vec::new();
    let mut goes_on = false;
    for block in log[BLOCK..].chunks(BLOCK) {
        let used = block.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
        match pieces.last_mut() {
            Some(piece) if goes_on && piece.len() + BLOCK < 1 << 16 => {
                piece.extend_from_slice(&block[..used]);
            }
            _ => pieces.push(block[..used].to_vec()),
        }
        goes_on = used == BLOCK;
    }
    to.extend_from_slice(&log[40..48]);
    to.push(u8::try_from(pieces.len()).unwrap());
    for piece in pieces {
        write_part(&piece, to);
    }
}

fn write_part(part: &[u8], to: &mut Vec<u8>) {
    to.extend_from_slice(&u16::try_from(part.len()).unwrap().to_le_bytes());
    to.extend_from_slice(part);
}

/// All puts that lie anywhere in the logs: nothing else may ever be shown.
pub fn puts(files: &Files) -> BTreeSet<(Vec<u8>, Vec<u8>)> {
    let mut puts = BTreeSet::new();
    for log in files.iter().filter(|(name, log)| is_a(name, "log") && log.len() >= BLOCK) {
        // What a block that is cut short lacks reads as zeroes.
        let mut log = log.1.clone();
        pad(&mut log);
        for at in (BLOCK..log.len()).step_by(8) {
            let there = log[at..].iter().take(RECORD_HEADER).any(|&byte| byte != 0);
            if let Some(entry) = there.then(|| entry(&log, at)).flatten()
                && entry.kind == PUT
            {
                puts.insert((entry.key, entry.value));
            }
        }
    }
    puts
}

// ---- hints ------------------------------------------------------------------------------------

/// Binds a hint to its segment, and makes its sum right.
pub fn bind_hint(hint: &mut [u8], log: &[u8], choices: Choices) {
    if choices.hints && hint.len() >= 92 && log.len() >= BLOCK {
        hint[..8].copy_from_slice(b"ringlogH");
        hint[8..48].copy_from_slice(&log[8..48]);
        let seal = entries(log).into_iter().find(|entry| entry.kind == SEAL);
        if let (true, Some(seal)) = (choices.links, seal) {
            hint[48..56].copy_from_slice(&(seal.start as u64).to_le_bytes());
        }
        let (body, sum) = hint.split_at_mut(hint.len() - 4);
        sum.copy_from_slice(&crc32fast::hash(body).to_le_bytes());
    }
}

// ---- partitions -------------------------------------------------------------------------------

/// The files of a store of one partition that an input stands for, and what is to be done.
pub fn read_partition(data: &[u8]) -> (Files, Choices) {
    let mut input = Input(data);
    let choices = Choices::of(input.byte());
    let (mut logs, mut others, mut blocks) = (Files::new(), Files::new(), MOST_BLOCKS);
    let mut hints = Vec::new();
    while !input.0.is_empty() && logs.len() + others.len() + hints.len() < 32 {
        let what = input.byte();
        let id = u64::from(what & 15);
        let name = segment_name(0, id);
        match what >> 4 & 3 {
            0 => drop(logs.insert(name, read_log(&mut input, id, choices, &mut blocks))),
            1 => hints.push((name, input.part().to_vec())),
            2 => drop(others.insert(name.replace("log", "new"), input.part().to_vec())),
            _ => {
                let name = String::from_utf8_lossy(input.part()).into_owned();
                let usable = name.len() < 60 && !name.contains(['/', '\0']);
                let content = input.part().to_vec();
                if usable && !["", ".", ".."].contains(&&name[..]) {
                    others.insert(format!("p0000/{name}"), content);
                }
            }
        }
    }
    let mut files = others;
    for (name, mut hint) in hints {
        let log = logs.get(&name).map_or(&[][..], Vec::as_slice);
        bind_hint(&mut hint, log, choices);
        files.insert(name.replace(".log", ".hint"), hint);
    }
    files.append(&mut logs);
    if files.is_empty() {
        files.insert("p0000/foreign".to_owned(), Vec::new()); // the folder is there all the same
    }
    files.insert("STORE".to_owned(), STORE.to_vec());
    (files, choices)
}

/// An input that stands for these files of partition 0, with that first byte.
pub fn write_partition(files: &Files, choices: u8) -> Vec<u8> {
    let mut input = vec![choices];
    for (name, bytes) in files {
        let Some((id, kind)) = name.strip_prefix("p0000/").and_then(|name| name.split_once('.'))
        else {
            continue;
        };
        let id = id.parse::<u8>().unwrap();
        assert!(id < 16, "an input has room for segments up to 15");
        match kind {
            "log" => {
                input.push(id);
                write_log(bytes, &mut input);
            }
            "hint" => {
                input.push(id | 1 << 4);
                write_part(bytes, &mut input);
            }
            _ => {}
        }
    }
    input
}
