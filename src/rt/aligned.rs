//! [`AlignedBuf`]: bytes at an address that direct I/O accepts.
//!
//! Invariants: with a capacity, `ptr` is an allocation of exactly that many bytes at a multiple of
//! [`AlignedBuf::ALIGN`]; without one it dangles and nothing is allocated. The first `len` bytes
//! are initialised, and `len <= capacity`. The memory does not move with the buffer.

#![expect(unsafe_code, reason = "memory with an alignment of its own")]

use super::buf::{IoBuf, IoBufMut};
use bytes::Bytes;
use std::alloc::{Layout, alloc, dealloc, handle_alloc_error, realloc};
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// A growable byte buffer for direct I/O (`O_DIRECT`).
///
/// Its memory begins at a multiple of [`ALIGN`](Self::ALIGN), and its capacity is a multiple of
/// [`GRAIN`](Self::GRAIN). What a file asks for is in [`FileStat::direct`](super::FileStat): the
/// **length** of a direct read or write must be a multiple of `offset` there, so ask for such a
/// capacity, and write such a length.
///
/// Like a `Vec<u8>` it has room for its whole capacity, and is exactly as long as what was read.
/// Becomes [`Bytes`] without a copy.
pub struct AlignedBuf {
    ptr: NonNull<u8>,
    len: usize,
    capacity: usize,
}

// SAFETY: it owns its memory alone, as a `Vec<u8>` does.
unsafe impl Send for AlignedBuf {}

// SAFETY: a shared reference only reads.
unsafe impl Sync for AlignedBuf {}

impl AlignedBuf {
    /// The address is a multiple of so many bytes: what the strictest of common devices ask for.
    pub const ALIGN: usize = 4096;

    /// The capacity is a multiple of so many bytes, so that the smallest direct reads waste none.
    pub const GRAIN: usize = 512;

    /// An empty buffer. Allocates nothing.
    pub const fn new() -> Self {
        Self { ptr: NonNull::dangling(), len: 0, capacity: 0 }
    }

    /// An empty buffer with room for `bytes`, rounded up to [`GRAIN`](Self::GRAIN), and no more.
    ///
    /// # Panics
    ///
    /// If that is more than `isize::MAX` bytes.
    pub fn with_capacity(bytes: usize) -> Self {
        let mut buf = Self::new();
        buf.set_capacity(bytes);
        buf
    }

    /// Initialised bytes.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes allocated.
    pub const fn capacity(&self) -> usize {
        self.capacity
    }

    /// Makes room for `additional` bytes beyond the length. Doubles the capacity at least, so that
    /// a buffer that grows by small steps is copied seldom.
    ///
    /// # Panics
    ///
    /// If that is more than `isize::MAX` bytes.
    pub fn reserve(&mut self, additional: usize) {
        if additional > self.capacity - self.len {
            let needed = self.len.checked_add(additional).expect("the capacity overflows");
            self.set_capacity(needed.max(self.capacity.saturating_mul(2)));
        }
    }

    /// Gives memory back: down to the length or `capacity`, whichever is more, rounded up to
    /// [`GRAIN`](Self::GRAIN).
    pub fn shrink_to(&mut self, capacity: usize) {
        let capacity = capacity.max(self.len);
        if capacity < self.capacity {
            self.set_capacity(capacity);
        }
    }

    /// Appends `bytes`.
    ///
    /// # Panics
    ///
    /// If the capacity were to be more than `isize::MAX` bytes.
    pub fn extend_from_slice(&mut self, bytes: &[u8]) {
        self.reserve(bytes.len());
        // SAFETY: the length is within the capacity.
        let end = unsafe { self.ptr.add(self.len) };
        // SAFETY: there is room from `end` on, and nobody else has this memory.
        unsafe { end.copy_from_nonoverlapping(NonNull::from(bytes).cast(), bytes.len()) };
        self.len += bytes.len();
    }

    /// Makes it `len` bytes long: cut, or filled up with zeroes.
    ///
    /// # Panics
    ///
    /// If `len` is more than `isize::MAX` bytes.
    pub fn resize(&mut self, len: usize) {
        if let Some(more) = len.checked_sub(self.len) {
            self.reserve(more);
            // SAFETY: the length is within the capacity.
            let end = unsafe { self.ptr.add(self.len) };
            // SAFETY: there is room from `end` on.
            unsafe { end.write_bytes(0, more) };
        }
        self.len = len;
    }

    /// Cuts it to `len` bytes, if it is longer. The capacity stays.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Makes it empty. The capacity stays.
    pub fn clear(&mut self) {
        self.len = 0;
    }

    /// # Panics
    ///
    /// If no allocation can be of that size.
    fn layout(capacity: usize) -> Layout {
        Layout::from_size_align(capacity, Self::ALIGN).expect("the capacity overflows")
    }

    /// Moves what is there to memory of `bytes`, rounded up; at least the length.
    fn set_capacity(&mut self, bytes: usize) {
        let capacity = bytes.checked_next_multiple_of(Self::GRAIN).expect("the capacity overflows");
        if capacity == self.capacity {
            return;
        }
        let (old, new) = (Self::layout(self.capacity), Self::layout(capacity));
        let ptr = match (self.capacity, capacity) {
            (_, 0) => {
                // SAFETY: allocated with this layout; the old capacity is another one, so not 0.
                unsafe { dealloc(self.ptr.as_ptr(), old) };
                NonNull::dangling().as_ptr()
            }
            // SAFETY: the size is not zero.
            (0, _) => unsafe { alloc(new) },
            // SAFETY: allocated with this layout; the new size is not zero, and `layout` checked it.
            (_, _) => unsafe { realloc(self.ptr.as_ptr(), old, capacity) },
        };
        self.ptr = NonNull::new(ptr).unwrap_or_else(|| handle_alloc_error(new));
        self.capacity = capacity;
    }
}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        self.len = 0;
        self.set_capacity(0);
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `len` bytes are initialised, and borrowed with the buffer.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), self.len) }
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: `len` bytes are initialised, and borrowed mutably with the buffer.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.len) }
    }
}

impl AsRef<[u8]> for AlignedBuf {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Default for AlignedBuf {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for AlignedBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AlignedBuf")
            .field("len", &self.len)
            .field("capacity", &self.capacity)
            .finish_non_exhaustive()
    }
}

/// Without a copy: the memory, with its whole capacity, is freed with the last handle to it.
impl From<AlignedBuf> for Bytes {
    fn from(buf: AlignedBuf) -> Self {
        Bytes::from_owner(buf)
    }
}

// SAFETY: `len` bytes are initialised, and the memory does not move with the buffer.
unsafe impl IoBuf for AlignedBuf {
    fn ptr(&self) -> *const u8 {
        self.ptr.as_ptr()
    }

    fn len(&self) -> usize {
        self.len
    }
}

// SAFETY: the whole capacity may be written, and the memory does not move.
unsafe impl IoBufMut for AlignedBuf {
    fn ptr_mut(&mut self) -> *mut u8 {
        self.ptr.as_ptr()
    }

    fn room(&self) -> usize {
        self.capacity
    }

    unsafe fn filled(&mut self, _start: usize, end: usize) {
        self.len = end; // initialised, and within the capacity, as the caller says
    }
}
