//! A record on disk. Little-endian, aligned to 8 bytes.
//!
//! | at | bytes | field | why |
//! |---|---|---|---|
//! | 0 | 4 | header checksum | CRC-32 of salt, offset and bytes 4 to 24 |
//! | 4 | 4 | body checksum | CRC-32 of key and value |
//! | 8 | 8 | sequence number | the key's version; a mark's: all below this offset is durable |
//! | 16 | 4 | value length | can be trusted before the body is read |
//! | 20 | 2 | key length | likewise |
//! | 22 | 1 | kind | 1 put, 2 delete, 3 mark; others are corrupt |
//! | 23 | 1 | flags | none yet: must be 0 |
//! | 24 | | key, value, zeroes to the next multiple of 8 | |
//!
//! Salt and offset are part of the checksum, so that a record of another log, of another place, or
//! of an earlier life of the file never validates.
//!
//! Invariant: `decode` never reads or returns a byte that its checksums do not cover, and takes no
//! length on trust.

use super::Location;
use crc32fast::Hasher;
use std::ops::Range;

/// Bytes before the key.
pub(crate) const HEADER_LEN: usize = 24;
/// A mark, whole: it is all header.
pub(crate) const MARK_LEN: usize = HEADER_LEN;

/// What a record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Put = 1,
    Delete = 2,
    Mark = 3,
}

/// Why bytes are not a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RecordError {
    /// The header's checksum, kind or flags: no length is known.
    Header,
    /// The header is good, and the body is not.
    Body,
    /// The header is good, and says more bytes than there are.
    Short,
}

/// A record in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Record<'a> {
    pub(crate) kind: Kind,
    pub(crate) sequence: u64,
    pub(crate) key: &'a [u8],
    pub(crate) value: &'a [u8],
}

/// The lengths of a record, from a header that validates.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lengths {
    key: usize,
    value: usize,
}

impl Lengths {
    /// Of the whole record, padding included.
    pub(crate) fn total(self) -> usize {
        (HEADER_LEN + self.key + self.value).next_multiple_of(8)
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes[at..at + 4].iter().rev().fold(0, |n, &byte| n << 8 | u32::from(byte))
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at + 4)) << 32 | u64::from(u32_at(bytes, at))
}

fn header_crc(header: &[u8], salt: u64, offset: u64) -> u32 {
    let mut hasher = Hasher::new();
    hasher.update(&salt.to_le_bytes());
    hasher.update(&offset.to_le_bytes());
    hasher.update(&header[4..HEADER_LEN]);
    hasher.finalize()
}

fn body_crc(key: &[u8], value: &[u8]) -> u32 {
    let mut hasher = Hasher::new();
    hasher.update(key);
    hasher.update(value);
    hasher.finalize()
}

/// How long a record is that holds so much. The caller has checked the limits.
pub(crate) fn encoded_len(key: &[u8], value: &[u8]) -> usize {
    Lengths { key: key.len(), value: value.len() }.total()
}

impl<'a> Record<'a> {
    pub(crate) fn put(sequence: u64, key: &'a [u8], value: &'a [u8]) -> Self {
        Self { kind: Kind::Put, sequence, key, value }
    }

    pub(crate) fn delete(sequence: u64, key: &'a [u8]) -> Self {
        Self { kind: Kind::Delete, sequence, key, value: &[] }
    }

    /// The mark that says: all below `durable` was durable before this was written.
    pub(crate) fn mark(durable: u64) -> Record<'static> {
        Record { kind: Kind::Mark, sequence: durable, key: &[], value: &[] }
    }

    /// Appends the record to `group`, for the place `offset` in the log with this salt.
    pub(crate) fn encode(&self, group: &mut Vec<u8>, salt: u64, offset: u64) -> Location {
        let start = group.len();
        let len = encoded_len(self.key, self.value);
        group.resize(start + len, 0);
        self.encode_into(&mut group[start..], salt, offset);
        Location { offset, len: u32::try_from(len).expect("the limits keep records below 4 GiB") }
    }

    /// Writes the record over `to`, which is exactly as long.
    pub(crate) fn encode_into(&self, to: &mut [u8], salt: u64, offset: u64) {
        let value_len = u32::try_from(self.value.len()).expect("checked against MAX_VALUE_LEN");
        let key_len = u16::try_from(self.key.len()).expect("checked against MAX_KEY_LEN");
        to[4..8].copy_from_slice(&body_crc(self.key, self.value).to_le_bytes());
        to[8..16].copy_from_slice(&self.sequence.to_le_bytes());
        to[16..20].copy_from_slice(&value_len.to_le_bytes());
        to[20..22].copy_from_slice(&key_len.to_le_bytes());
        to[22] = self.kind as u8;
        to[23] = 0;
        let crc = header_crc(to, salt, offset);
        to[..4].copy_from_slice(&crc.to_le_bytes());
        let (key, rest) = to[HEADER_LEN..].split_at_mut(self.key.len());
        key.copy_from_slice(self.key);
        let (value, padding) = rest.split_at_mut(self.value.len());
        value.copy_from_slice(self.value);
        padding.fill(0);
    }

    /// Reads the kind and the lengths of the record that begins `bytes`.
    pub(crate) fn header(
        bytes: &[u8],
        salt: u64,
        offset: u64,
    ) -> Result<(Kind, Lengths), RecordError> {
        if bytes.len() < HEADER_LEN || u32_at(bytes, 0) != header_crc(bytes, salt, offset) {
            return Err(RecordError::Header);
        }
        let kind = match (bytes[22], bytes[23]) {
            (1, 0) => Kind::Put,
            (2, 0) => Kind::Delete,
            (3, 0) => Kind::Mark,
            _ => return Err(RecordError::Header),
        };
        let key = usize::from(bytes[20]) | usize::from(bytes[21]) << 8;
        Ok((kind, Lengths { key, value: u32_at(bytes, 16) as usize }))
    }

    /// Reads and checks the record that begins `bytes`.
    pub(crate) fn decode(bytes: &'a [u8], salt: u64, offset: u64) -> Result<Self, RecordError> {
        let (kind, lengths) = Self::header(bytes, salt, offset)?;
        let body = bytes.get(HEADER_LEN..lengths.total()).ok_or(RecordError::Short)?;
        let (key, rest) = body.split_at(lengths.key);
        let (value, padding) = rest.split_at(lengths.value);
        if u32_at(bytes, 4) != body_crc(key, value) || padding.iter().any(|&byte| byte != 0) {
            return Err(RecordError::Body);
        }
        Ok(Self { kind, sequence: u64_at(bytes, 8), key, value })
    }

    /// Where the value lies in the record's bytes.
    pub(crate) fn value_range(&self) -> Range<usize> {
        let start = HEADER_LEN + self.key.len();
        start..start + self.value.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn encoded(record: Record<'_>, salt: u64, offset: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        record.encode(&mut bytes, salt, offset);
        bytes
    }

    proptest! {
        #[test]
        fn a_record_reads_back_only_with_its_salt_and_at_its_place(
            key in prop::collection::vec(any::<u8>(), 0..40),
            value in prop::collection::vec(any::<u8>(), 0..40),
            sequence: u64, salt: u64, offset: u64, other: u64,
        ) {
            let record = Record::put(sequence, &key, &value);
            let bytes = encoded(record, salt, offset);
            prop_assert_eq!(bytes.len() % 8, 0);
            prop_assert_eq!(Record::decode(&bytes, salt, offset), Ok(record));
            prop_assert_eq!(&bytes[record.value_range()], &value[..]);
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
        let bytes = encoded(Record::put(7, b"key", b"some value"), 1, 64);
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(Record::decode(&flipped, 1, 64).is_err(), "bit {bit}");
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
        let bytes = encoded(Record::delete(7, b"a longer key"), 1, 64);
        for len in 0..bytes.len() {
            assert!(Record::decode(&bytes[..len], 1, 64).is_err(), "{len}");
        }
        let mark = encoded(Record::mark(64), 1, 64);
        assert_eq!(mark.len(), MARK_LEN);
    }
}
