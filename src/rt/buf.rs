//! Buffers that an operation may own: [`IoBuf`], [`IoBufMut`] and sub-ranges of both.
//!
//! An operation takes its buffer by value and gives it back with the result, since the kernel uses
//! the memory until the completion, whether or not the future still exists. Invariant: what the
//! traits' methods return depends on nothing but the buffer's own state, and the memory stays
//! where it is while the operation's cell holds the buffer.

#![expect(unsafe_code, reason = "the promises that buffers make to the kernel")]

use bytes::{Bytes, BytesMut};
use std::ops::{Bound, RangeBounds};

/// The most that one read or write moves on Linux; longer ones come back short.
pub(crate) const MAX_RW_BYTES: usize = 0x7fff_f000;

/// A buffer that can be written from.
///
/// # Safety
///
/// While `self` is neither moved nor used, `ptr()..ptr() + len()` is initialised memory that stays
/// valid and is changed by nobody. (A buffer is not moved from the moment its operation is
/// submitted until it is complete.)
pub unsafe trait IoBuf: 'static {
    /// The first byte.
    fn ptr(&self) -> *const u8;

    /// Initialised bytes from [`ptr`](Self::ptr) on.
    fn len(&self) -> usize;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A part of this buffer as a buffer: writes send only that part, reads fill only that part.
    ///
    /// # Panics
    ///
    /// If the range ends before it starts.
    fn part(self, range: impl RangeBounds<usize>) -> Part<Self>
    where
        Self: Sized,
    {
        let start = match range.start_bound() {
            Bound::Included(&n) => n,
            Bound::Excluded(&n) => n.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(&n) => n.saturating_add(1),
            Bound::Excluded(&n) => n,
            Bound::Unbounded => usize::MAX,
        };
        assert!(start <= end, "a part from {start} to {end}");
        Part { buf: self, start, end }
    }
}

/// A buffer that can be read into.
///
/// Growable buffers (`Vec<u8>`, `BytesMut`) have room for their whole **capacity**, and are
/// exactly as long as what was read afterwards. Fixed ones (`Box<[u8]>`, arrays) have room for
/// their length, which stays. A failed operation changes neither. A buffer without room is refused
/// with `InvalidInput` by `read` and `recv`: their 0 would look like the end.
///
/// # Safety
///
/// As for [`IoBuf`]; besides, `ptr_mut()..ptr_mut() + room()` is memory that may be written, and
/// nobody else uses it.
pub unsafe trait IoBufMut: IoBuf {
    /// The first byte, to be written to.
    fn ptr_mut(&mut self) -> *mut u8;

    /// Bytes that may be written from [`ptr_mut`](Self::ptr_mut) on.
    fn room(&self) -> usize;

    /// Says that `start..end` was filled.
    ///
    /// # Safety
    ///
    /// `start <= end <= room()`, `start` is at most the initialised length, and the bytes
    /// `start..end` have been written.
    unsafe fn filled(&mut self, start: usize, end: usize);
}

/// Types whose initialised bytes are those of their slice.
macro_rules! buf {
    ($($(#[$why:meta])+ $type:ty $(, $n:ident)?;)+) => {
        $(
            // SAFETY: as the line above the type says.
            unsafe impl $(<const $n: usize>)? IoBuf for $type {
                fn ptr(&self) -> *const u8 {
                    self.as_ptr()
                }
                fn len(&self) -> usize {
                    self[..].len()
                }
            }
        )+
    };
}

buf! {
    /// The memory does not move with the vector.
    Vec<u8>;
    /// The memory does not move with the handle.
    BytesMut;
    /// Shared memory that nobody changes, kept alive by the handle.
    Bytes;
    /// Immutable for ever.
    &'static [u8];
    /// Immutable for ever.
    &'static str;
    /// The memory does not move with the box.
    Box<[u8]>;
    /// An array is not moved while its operation is in flight, as the trait promises.
    [u8; N], N;
}

/// Room for the whole capacity; as long as what was read.
macro_rules! growable {
    ($($type:ty),+) => {
        $(
            // SAFETY: the whole capacity may be written, and the memory does not move.
            unsafe impl IoBufMut for $type {
                fn ptr_mut(&mut self) -> *mut u8 {
                    self.as_mut_ptr()
                }
                fn room(&self) -> usize {
                    self.capacity()
                }
                unsafe fn filled(&mut self, _start: usize, end: usize) {
                    // SAFETY: the caller says that all below `end` is initialised and in capacity.
                    unsafe { self.set_len(end) }
                }
            }
        )+
    };
}

growable!(Vec<u8>, BytesMut);

/// Room for the length, which stays.
macro_rules! fixed {
    ($($type:ty $(, $n:ident)?;)+) => {
        $(
            // SAFETY: all of it is initialised and may be written.
            unsafe impl $(<const $n: usize>)? IoBufMut for $type {
                fn ptr_mut(&mut self) -> *mut u8 {
                    self.as_mut_ptr()
                }
                fn room(&self) -> usize {
                    self[..].len()
                }
                unsafe fn filled(&mut self, _start: usize, _end: usize) {}
            }
        )+
    };
}

fixed! { Box<[u8]>; [u8; N], N; }

/// A part of a buffer, made by [`IoBuf::part`]. Ends beyond the buffer's are cut to fit.
#[derive(Debug)]
pub struct Part<B> {
    buf: B,
    start: usize,
    end: usize,
}

impl<B> Part<B> {
    /// The whole buffer again.
    pub fn into_inner(self) -> B {
        self.buf
    }
}

// SAFETY: `start` and the length are cut to the initialised part of a buffer that keeps the
// promise.
unsafe impl<B: IoBuf> IoBuf for Part<B> {
    fn ptr(&self) -> *const u8 {
        self.buf.ptr().wrapping_add(self.start.min(self.buf.len()))
    }
    fn len(&self) -> usize {
        self.buf.len().min(self.end).saturating_sub(self.start)
    }
}

// SAFETY: the room lies within the room of a buffer that keeps the promise, and begins within its
// initialised part, so that no hole of uninitialised bytes can come to lie below its length.
unsafe impl<B: IoBufMut> IoBufMut for Part<B> {
    fn ptr_mut(&mut self) -> *mut u8 {
        let start = self.start.min(self.buf.len());
        self.buf.ptr_mut().wrapping_add(start)
    }
    fn room(&self) -> usize {
        if self.start > self.buf.len() {
            return 0; // it would begin in uninitialised bytes
        }
        self.buf.room().min(self.end).saturating_sub(self.start)
    }
    unsafe fn filled(&mut self, start: usize, end: usize) {
        if self.room() > 0 {
            // SAFETY: the same bytes, counted from the start of the whole buffer.
            unsafe { self.buf.filled(self.start + start, self.start + end) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn fill<B: IoBufMut>(buf: &mut B, n: usize, byte: u8) {
        let n = n.min(buf.room());
        let ptr = buf.ptr_mut();
        // SAFETY: within the room.
        unsafe { ptr.write_bytes(byte, n) };
        // SAFETY: just written.
        unsafe { buf.filled(0, n) };
    }

    proptest! {
        #[test]
        fn filling_a_slice_never_exposes_a_byte_that_was_not_written(
            len in 0usize..64, spare in 0usize..64, start in 0usize..100, size in 0usize..100,
            n in 0usize..200,
        ) {
            let mut vec = Vec::with_capacity(len + spare);
            vec.resize(len, 1u8);
            let mut slice = vec.part(start..start + size);
            let room = slice.room();
            fill(&mut slice, n, 2);
            let vec = slice.into_inner();
            prop_assert!(vec.len() <= vec.capacity());
            prop_assert!(vec.iter().all(|&b| b == 1 || b == 2));
            if start <= len && room > 0 {
                prop_assert_eq!(vec.len(), start + n.min(room));
            } else {
                prop_assert_eq!(vec.len(), len);
            }
        }

        #[test]
        fn the_part_sent_is_the_part_asked_for(data in prop::collection::vec(any::<u8>(), 0..64),
            start in 0usize..80, size in 0usize..80) {
            let want = data.get(start..data.len().min(start + size)).unwrap_or(&[]).to_vec();
            let slice = data.part(start..start + size);
            // SAFETY: the trait's promise.
            let got = unsafe { std::slice::from_raw_parts(slice.ptr(), slice.len()) };
            prop_assert_eq!(got, &want[..]);
        }
    }

    #[test]
    fn fixed_buffers_keep_their_length() {
        let mut array = [0u8; 8];
        fill(&mut array, 3, 7);
        assert_eq!(array, [7, 7, 7, 0, 0, 0, 0, 0]);
        let mut boxed = vec![0u8; 4].into_boxed_slice();
        fill(&mut boxed, 9, 7);
        assert_eq!(&*boxed, [7; 4]);
    }
}
