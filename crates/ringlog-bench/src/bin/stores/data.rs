//! Keys and values: what is stored, how it is chosen, and how an answer is checked.
//!
//! Keys have 16 bytes and come in hashed order. A value begins with its key's stamp and a seed;
//! the rest is the part of a random pool that the seed names. So values do not compress, every
//! overwrite differs from what it replaces, and an answer is checked whole without knowing which of
//! the key's values it should be.

use std::sync::{Arc, LazyLock};

/// Bytes of a key.
pub(crate) const KEY: usize = 16;

/// The shortest value: a stamp and a seed.
pub(crate) const SHORTEST: usize = 16;

/// Bytes of the pool.
const POOL: usize = 4 << 20;

/// The longest value, so that a part of the pool is left to choose from.
pub(crate) const LONGEST: usize = 1 << 20;

pub(crate) type Key = [u8; KEY];

static POOL_BYTES: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut random = Random::new(7);
    (0..POOL / 8).flat_map(|_| random.next().to_le_bytes()).collect()
});

/// The key of a number.
pub(crate) fn key(id: u64) -> Key {
    let mut key = [0; KEY];
    key[..8].copy_from_slice(&mix(id).to_be_bytes());
    key[8..].copy_from_slice(&mix(!id).to_be_bytes());
    key
}

/// Makes `value` a value of this key.
pub(crate) fn fill(value: &mut [u8], key: &Key, seed: u64) {
    value[..8].copy_from_slice(&key[8..]);
    value[8..16].copy_from_slice(&seed.to_le_bytes());
    let rest = pool(seed, value.len() - SHORTEST);
    value[SHORTEST..].copy_from_slice(rest);
}

/// Whether this is a value of this key, to the last byte.
pub(crate) fn is_right(value: &[u8], key: &[u8], len: usize) -> bool {
    if value.len() != len || key.len() != KEY || value[..8] != key[8..] {
        return false;
    }
    let seed = u64::from_le_bytes(value[8..16].try_into().unwrap_or_default());
    value[SHORTEST..] == *pool(seed, len - SHORTEST)
}

fn pool(seed: u64, len: usize) -> &'static [u8] {
    let at = usize::try_from(seed).unwrap_or_default() % (POOL - LONGEST);
    &POOL_BYTES[at..at + len]
}

/// Makes the pool, which is then not part of what is measured.
pub(crate) fn prepare() {
    LazyLock::force(&POOL_BYTES);
}

/// A bijection that leaves no order (the finalizer of `SplitMix64`).
fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// A small generator (`SplitMix64`).
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(mix(seed))
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// From 0 to 1.
    #[expect(clippy::cast_precision_loss, reason = "53 bits are kept")]
    pub(crate) fn fraction(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// How the next key is chosen from `0..keys`.
#[derive(Clone, Debug)]
pub(crate) enum Choice {
    Uniform(u64),
    Zipfian(Arc<Zipfian>),
    /// Every one in turn, beginning here, in steps of so many: each caller its own.
    Sequence {
        next: u64,
        step: u64,
    },
}

impl Choice {
    pub(crate) fn next(&mut self, random: &mut Random) -> u64 {
        match self {
            Self::Uniform(keys) => random.next() % *keys,
            Self::Zipfian(zipfian) => zipfian.next(random),
            Self::Sequence { next, step } => {
                let id = *next;
                *next += *step;
                id
            }
        }
    }
}

/// The usual zipfian choice (Gray et al., as in YCSB) with the usual skew of 0.99.
#[derive(Debug)]
pub(crate) struct Zipfian {
    keys: f64,
    zeta: f64,
    alpha: f64,
    eta: f64,
}

const THETA: f64 = 0.99;

impl Zipfian {
    #[expect(clippy::cast_precision_loss, reason = "far fewer keys than 2^52")]
    pub(crate) fn new(keys: u64) -> Self {
        let zeta = (1..=keys).map(|n| (n as f64).powf(-THETA)).sum();
        let first_two = 1.0 + 2_f64.powf(-THETA);
        let keys = keys as f64;
        let eta = (1.0 - (2.0 / keys).powf(1.0 - THETA)) / (1.0 - first_two / zeta);
        Self { keys, zeta, alpha: 1.0 / (1.0 - THETA), eta }
    }

    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "below `keys`")]
    fn next(&self, random: &mut Random) -> u64 {
        let u = random.fraction();
        let scaled = u * self.zeta;
        if scaled < 1.0 {
            return 0;
        }
        if scaled < 1.0 + 0.5_f64.powf(THETA) {
            return 1;
        }
        let rank = self.keys * (self.eta * u - self.eta + 1.0).powf(self.alpha);
        rank.min(self.keys - 1.0) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_right_for_its_key_only_and_whole_only() {
        let mut value = vec![0; 100];
        fill(&mut value, &key(5), 99);
        assert!(is_right(&value, &key(5), 100));
        assert!(!is_right(&value, &key(6), 100));
        assert!(!is_right(&value[..99], &key(5), 100));
        value[99] ^= 1;
        assert!(!is_right(&value, &key(5), 100));
    }

    #[test]
    fn a_zipfian_choice_prefers_the_first_and_stays_below_the_number_of_keys() {
        let mut choice = Choice::Zipfian(Arc::new(Zipfian::new(1000)));
        let mut random = Random::new(1);
        let chosen: Vec<u64> = (0..10_000).map(|_| choice.next(&mut random)).collect();
        assert!(chosen.iter().all(|&id| id < 1000));
        let first = chosen.iter().filter(|&&id| id == 0).count();
        assert!((1000..2000).contains(&first), "{first}");
    }
}
