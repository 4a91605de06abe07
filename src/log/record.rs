//! A record: how a change, or a statement about the log, lies in a segment.
//!
//! The table of its bytes is in DESIGN.md, "Files". Salt and offset are part of the header's sum, so
//! that a record of another segment, of another place, or of an earlier life of the same blocks
//! never validates. Invariant: `decode` never returns a byte that its sums do not cover, and takes
//! no length on trust.

use crc32fast::Hasher;

/// Bytes before the key, if there is no expiry: two sums, a number, two lengths, kind and flags.
pub(crate) const HEADER_LEN: usize = 24;
/// A mark or a seal, whole.
pub(crate) const MARK_LEN: usize = HEADER_LEN + MARK_VALUE;
/// What a mark or a seal says: four numbers of 8 bytes.
const MARK_VALUE: usize = 32;

// Flags, a bit each. A bit that has no name yet is a later release's.
const EXPIRES: u8 = 1;
const MOVED: u8 = 2;

/// What a record says. Numbers from 16 on are reserved for changes of several partitions at once:
/// 16 prepare, 17 commit, 18 abort.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Put = 1,
    Delete = 2,
    /// Begins a group: all below `durable` was durable before.
    Mark = 3,
    /// The segments that existed when this one began.
    Live = 4,
    /// A segment exists no more.
    Drop = 5,
    /// The segment ends here. A mark otherwise.
    Seal = 6,
}

impl Kind {
    fn of(byte: u8) -> Option<Self> {
        [Self::Put, Self::Delete, Self::Mark, Self::Live, Self::Drop, Self::Seal]
            .into_iter()
            .find(|&kind| kind as u8 == byte)
    }
}

/// Why bytes are not a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RecordError {
    /// The header's sum does not match: no length is known.
    Header,
    /// The header is good, and of a kind that this release does not know.
    Unknown,
    /// The header is good, and the body is not.
    Body,
    /// The header is good, and says more bytes than there are.
    Short,
    /// It is good, and does not follow upon what was before it.
    Gap,
}

impl RecordError {
    pub(crate) fn reason(self) -> &'static str {
        match self {
            Self::Header => "the checksum of a record's header does not match",
            Self::Unknown => "a record is of a kind that only a later release can know",
            Self::Body => "the checksum of a record's body does not match",
            Self::Gap => "records are missing here",
            Self::Short => "a record is longer than what is left of its file",
        }
    }
}

/// A record in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Record<'a> {
    pub(crate) kind: Kind,
    pub(crate) sequence: u64,
    /// Milliseconds since 1970.
    pub(crate) expiry: Option<u64>,
    /// Whether a merge has moved it here.
    pub(crate) moved: bool,
    pub(crate) key: &'a [u8],
    pub(crate) value: &'a [u8],
    /// CRC-32 of key and value.
    pub(crate) sum: u32,
}

/// What a record's header says, once it has validated.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Header {
    pub(crate) kind: Kind,
    flags: u8,
    key: usize,
    value: usize,
}

impl Header {
    fn body(self) -> usize {
        HEADER_LEN + if self.flags & EXPIRES == 0 { 0 } else { 8 }
    }

    /// Length of the whole record, padding included.
    pub(crate) fn total(self) -> usize {
        (self.body() + self.key + self.value).next_multiple_of(8)
    }
}

/// Bytes on disk of a record, padding included.
pub(crate) fn record_len(key: usize, value: usize, expires: bool) -> usize {
    let flags = if expires { EXPIRES } else { 0 };
    Header { kind: Kind::Put, flags, key, value }.total()
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().expect("two bytes"))
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

fn header_sum(header: &[u8], salt: u64, offset: u64) -> u32 {
    // In one piece: short pieces are slow to sum.
    let mut bytes = [0; 16 + HEADER_LEN + 8];
    let len = 12 + header.len();
    bytes[..8].copy_from_slice(&salt.to_le_bytes());
    bytes[8..16].copy_from_slice(&offset.to_le_bytes());
    bytes[16..len].copy_from_slice(&header[4..]);
    crc32fast::hash(&bytes[..len])
}

/// The sum of a record's body. It depends on nothing else, so any thread can do it.
pub(crate) fn body_sum(key: &[u8], value: &[u8]) -> u32 {
    let mut hasher = Hasher::new();
    hasher.update(key);
    hasher.update(value);
    hasher.finalize()
}

impl<'a> Record<'a> {
    pub(crate) fn new(kind: Kind, sequence: u64, key: &'a [u8], value: &'a [u8]) -> Self {
        let sum = body_sum(key, value);
        Self { kind, sequence, expiry: None, moved: false, key, value, sum }
    }

    fn header(&self) -> Header {
        let expires = if self.expiry.is_some() { EXPIRES } else { 0 };
        let flags = expires | if self.moved { MOVED } else { 0 };
        Header { kind: self.kind, flags, key: self.key.len(), value: self.value.len() }
    }

    /// Where key and value begin.
    pub(crate) fn body_offset(&self) -> usize {
        self.header().body()
    }

    /// Bytes on disk, padding included.
    pub(crate) fn len(&self) -> usize {
        self.header().total()
    }

    /// Writes the record over `to`, which is exactly as long, for the place `offset` in the segment
    /// with this salt.
    pub(crate) fn encode(&self, to: &mut [u8], salt: u64, offset: u64) {
        let header = self.header();
        let value_len = u32::try_from(header.value).expect("checked against MAX_VALUE_LEN");
        let key_len = u16::try_from(header.key).expect("checked against MAX_KEY_LEN");
        to[4..8].copy_from_slice(&self.sum.to_le_bytes());
        to[8..16].copy_from_slice(&self.sequence.to_le_bytes());
        to[16..20].copy_from_slice(&value_len.to_le_bytes());
        to[20..22].copy_from_slice(&key_len.to_le_bytes());
        to[22] = self.kind as u8;
        to[23] = header.flags;
        if let Some(expiry) = self.expiry {
            to[24..32].copy_from_slice(&expiry.to_le_bytes());
        }
        let sum = header_sum(&to[..header.body()], salt, offset);
        to[..4].copy_from_slice(&sum.to_le_bytes());
        let (key, rest) = to[header.body()..].split_at_mut(header.key);
        key.copy_from_slice(self.key);
        let (value, padding) = rest.split_at_mut(header.value);
        value.copy_from_slice(self.value);
        padding.fill(0);
    }

    /// Reads and checks the header that begins `bytes`.
    pub(crate) fn decode_header(
        bytes: &[u8],
        salt: u64,
        offset: u64,
    ) -> Result<Header, RecordError> {
        if bytes.len() < HEADER_LEN {
            return Err(RecordError::Header);
        }
        let flags = bytes[23];
        let key = usize::from(u16_at(bytes, 20));
        let value = u32_at(bytes, 16) as usize;
        let header = Header { kind: Kind::Mark, flags, key, value };
        let covered = bytes.get(..header.body()).ok_or(RecordError::Header)?;
        if u32_at(bytes, 0) != header_sum(covered, salt, offset) {
            return Err(RecordError::Header);
        }
        if flags & !(EXPIRES | MOVED) != 0 {
            return Err(RecordError::Unknown);
        }
        let kind = Kind::of(bytes[22]).ok_or(RecordError::Unknown)?;
        Ok(Header { kind, ..header })
    }

    /// Reads and checks the record that begins `bytes`.
    pub(crate) fn decode(bytes: &'a [u8], salt: u64, offset: u64) -> Result<Self, RecordError> {
        Self::decode_body(Self::decode_header(bytes, salt, offset)?, bytes)
    }

    /// Checks the rest of the record that begins `bytes`, of which this is the header.
    pub(crate) fn decode_body(header: Header, bytes: &'a [u8]) -> Result<Self, RecordError> {
        let body = bytes.get(header.body()..header.total()).ok_or(RecordError::Short)?;
        let (key, rest) = body.split_at(header.key);
        let (value, padding) = rest.split_at(header.value);
        let sum = u32_at(bytes, 4);
        if sum != body_sum(key, value) || padding.iter().any(|&byte| byte != 0) {
            return Err(RecordError::Body);
        }
        let expiry = (header.flags & EXPIRES != 0).then(|| u64_at(bytes, HEADER_LEN));
        let moved = header.flags & MOVED != 0;
        let (kind, sequence) = (header.kind, u64_at(bytes, 8));
        Ok(Self { kind, sequence, expiry, moved, key, value, sum })
    }
}

/// What marks and seals say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    /// All below this offset was durable before the mark was written.
    pub(crate) durable: u64,
    /// No clock that was read before was later, in milliseconds since 1970.
    pub(crate) clock: u64,
    /// Where the records before it ended: what lies between is padding.
    pub(crate) after: u64,
    /// In a seal: the segment that goes on. It was there, durably, before this was written. Zero if
    /// there was none, and in marks.
    pub(crate) next: u64,
}

impl Mark {
    /// The mark as a record's value.
    pub(crate) fn encode(self) -> [u8; MARK_VALUE] {
        let mut value = [0; MARK_VALUE];
        value[..8].copy_from_slice(&self.durable.to_le_bytes());
        value[8..16].copy_from_slice(&self.clock.to_le_bytes());
        value[16..24].copy_from_slice(&self.after.to_le_bytes());
        value[24..].copy_from_slice(&self.next.to_le_bytes());
        value
    }

    /// What a record says, if it is a mark or a seal.
    pub(crate) fn of(record: &Record<'_>) -> Option<Self> {
        let is_mark = matches!(record.kind, Kind::Mark | Kind::Seal);
        let is_mark = is_mark && record.value.len() == MARK_VALUE;
        let at = |at| u64_at(record.value, at);
        is_mark.then(|| Self { durable: at(0), clock: at(8), after: at(16), next: at(24) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn encoded(record: Record<'_>, salt: u64, offset: u64) -> Vec<u8> {
        let mut bytes = vec![0xaa; record.len()];
        record.encode(&mut bytes, salt, offset);
        bytes
    }

    proptest! {
        #[test]
        fn a_record_reads_back_only_with_its_salt_and_at_its_place(
            key in prop::collection::vec(any::<u8>(), 0..40),
            value in prop::collection::vec(any::<u8>(), 0..40),
            sequence: u64, salt: u64, offset: u64, other: u64, moved: bool,
            expiry: Option<u64>,
        ) {
            let record = Record { expiry, moved, ..Record::new(Kind::Put, sequence, &key, &value) };
            let bytes = encoded(record, salt, offset);
            prop_assert_eq!(bytes.len() % 8, 0);
            prop_assert_eq!(Record::decode(&bytes, salt, offset), Ok(record));
            if other != salt {
                prop_assert_eq!(Record::decode(&bytes, other, offset), Err(RecordError::Header));
            }
            if other != offset {
                prop_assert_eq!(Record::decode(&bytes, salt, other), Err(RecordError::Header));
            }
        }

        #[test]
        fn arbitrary_bytes_are_refused_without_a_panic(
            bytes in prop::collection::vec(any::<u8>(), 0..200), salt: u64, offset: u64,
        ) {
            prop_assert!(Record::decode(&bytes, salt, offset).is_err());
        }
    }

    #[test]
    fn every_single_bit_flip_is_noticed() {
        for expiry in [None, Some(77)] {
            let record = Record { expiry, ..Record::new(Kind::Put, 7, b"key", b"some value") };
            let bytes = encoded(record, 1, 64);
            for bit in 0..bytes.len() * 8 {
                let mut flipped = bytes.clone();
                flipped[bit / 8] ^= 1 << (bit % 8);
                assert!(Record::decode(&flipped, 1, 64).is_err(), "bit {bit}");
            }
        }
    }

    #[test]
    fn zeroes_and_ones_are_no_record() {
        for byte in [0, 0xff] {
            assert_eq!(Record::decode(&[byte; 64], 0, 0), Err(RecordError::Header));
        }
    }

    #[test]
    fn a_record_cut_anywhere_is_refused() {
        let record = Record { expiry: Some(1), ..Record::new(Kind::Delete, 7, b"a key", b"") };
        let bytes = encoded(record, 1, 64);
        for len in 0..bytes.len() {
            assert!(Record::decode(&bytes[..len], 1, 64).is_err(), "{len}");
        }
        let mark = Mark { durable: 4096, clock: 5, after: 0, next: 7 };
        let value = mark.encode();
        let record = Record::new(Kind::Mark, 9, &[], &value);
        assert_eq!((record.len(), Mark::of(&record)), (MARK_LEN, Some(mark)));
    }

    #[test]
    fn kinds_and_flags_of_later_releases_are_told_apart_from_damage() {
        for (at, byte) in [(22, 16), (22, 0), (23, 4), (23, 128)] {
            let mut bytes = encoded(Record::new(Kind::Put, 7, b"key", b"value"), 1, 64);
            bytes[at] = byte;
            let sum = header_sum(&bytes[..HEADER_LEN], 1, 64);
            bytes[..4].copy_from_slice(&sum.to_le_bytes());
            assert_eq!(Record::decode(&bytes, 1, 64), Err(RecordError::Unknown));
        }
    }
}
