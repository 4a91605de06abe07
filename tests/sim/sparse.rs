//! Bytes of which blocks of zeroes take no memory, and copies share what they have in common: most of
//! a log is prepared and not written, and disks are copied often.

use std::rc::Rc;

pub const SECTOR: usize = 512;
pub const BLOCK: usize = 4096;
pub const SECTORS: u64 = (BLOCK / SECTOR) as u64;

pub type Sector = [u8; SECTOR];

static ZEROES: [u8; BLOCK] = [0; BLOCK];

/// See the module. Zeroes follow for ever.
#[derive(Clone, Debug, Default)]
pub struct Sparse {
    blocks: Vec<Option<Rc<[u8; BLOCK]>>>,
}

fn at(offset: u64) -> usize {
    usize::try_from(offset).unwrap()
}

/// The parts of a range in each block that it touches: the block, and from where to where in it.
fn parts(offset: u64, len: usize) -> impl Iterator<Item = (usize, std::ops::Range<usize>)> {
    let (mut from, to) = (at(offset), at(offset) + len);
    std::iter::from_fn(move || {
        let (block, start) = (from / BLOCK, from % BLOCK);
        (from < to).then(|| {
            from = (block + 1) * BLOCK;
            (block, start..(to - block * BLOCK).min(BLOCK))
        })
    })
}

impl Sparse {
    /// Up to the end of the last block that may not be zero.
    pub fn len(&self) -> u64 {
        (self.blocks.len() * BLOCK) as u64
    }

    /// Shows a range piece by piece: where in the range a piece begins, and its bytes.
    pub fn show(&self, offset: u64, len: usize, mut piece: impl FnMut(usize, &[u8])) {
        let mut shown = 0;
        for (block, part) in parts(offset, len) {
            let there = self.blocks.get(block).and_then(Option::as_deref);
            piece(shown, &there.unwrap_or(&ZEROES)[part.clone()]);
            shown += part.len();
        }
    }

    pub fn copy(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut copy = Vec::with_capacity(len);
        self.show(offset, len, |_, piece| copy.extend_from_slice(piece));
        copy
    }

    pub fn sector(&self, sector: u64) -> Sector {
        let mut copy = [0; SECTOR];
        self.show(sector * SECTOR as u64, SECTOR, |_, piece| copy.copy_from_slice(piece));
        copy
    }

    pub fn put(&mut self, offset: u64, bytes: &[u8]) {
        let mut rest = bytes;
        for (block, part) in parts(offset, bytes.len()) {
            let (piece, after) = rest.split_at(part.len());
            rest = after;
            if self.blocks.len() <= block {
                self.blocks.resize(block + 1, None);
            }
            match &mut self.blocks[block] {
                there if part.len() == BLOCK => {
                    *there = (piece != ZEROES).then(|| Rc::new(piece.try_into().unwrap()));
                }
                Some(there) => Rc::make_mut(there)[part].copy_from_slice(piece),
                there => {
                    if piece.iter().any(|&byte| byte != 0) {
                        let mut block = ZEROES;
                        block[part].copy_from_slice(piece);
                        *there = Some(Rc::new(block));
                    }
                }
            }
        }
    }

    /// Has the same block as another.
    pub fn share(&mut self, block: u64, other: &Self) {
        let block = at(block);
        let there = other.blocks.get(block).cloned().flatten();
        if self.blocks.len() > block {
            self.blocks[block] = there;
        } else if there.is_some() {
            self.blocks.resize(block, None);
            self.blocks.push(there);
        }
    }

    /// Zeroes follow from here on.
    pub fn cut(&mut self, len: u64) {
        let whole = at(len).div_ceil(BLOCK);
        self.blocks.truncate(whole);
        if self.blocks.len() == whole
            && !at(len).is_multiple_of(BLOCK)
            && let Some(Some(last)) = self.blocks.last_mut()
        {
            Rc::make_mut(last)[at(len) % BLOCK..].fill(0);
        }
    }
}
