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
/// Becomes [`Bytes`] without a copy. Each takes up to `ALIGN` bytes of memory more than its
/// capacity: not for keeping many small ones.
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What the invariants say.
    fn check(buf: &AlignedBuf) {
        assert!(buf.len() <= buf.capacity());
        assert_eq!(buf.capacity() % AlignedBuf::GRAIN, 0);
        if buf.capacity() > 0 {
            assert_eq!(buf.as_ptr().addr() % AlignedBuf::ALIGN, 0);
        }
    }

    fn filled(bytes: &[u8]) -> AlignedBuf {
        let mut buf = AlignedBuf::new();
        buf.extend_from_slice(bytes);
        buf
    }

    #[test]
    fn nothing_is_allocated_for_nothing() {
        for mut buf in [AlignedBuf::new(), AlignedBuf::default(), AlignedBuf::with_capacity(0)] {
            buf.extend_from_slice(&[]);
            buf.resize(0);
            buf.reserve(0);
            buf.shrink_to(0);
            buf.truncate(3);
            buf.clear();
            assert_eq!((buf.len(), buf.capacity(), IoBufMut::room(&buf)), (0, 0, 0));
            assert!(buf.is_empty() && buf[..].is_empty() && buf[..].iter_mut().next().is_none());
            assert_eq!(Bytes::from(buf), Bytes::new());
        }
    }

    #[test]
    fn capacities_are_rounded_up_and_never_more() {
        for (asked, got) in [(1, 512), (512, 512), (513, 1024), (4096, 4096), (5000, 5120)] {
            let buf = AlignedBuf::with_capacity(asked);
            check(&buf);
            assert_eq!((buf.capacity(), buf.len()), (got, 0));
        }
    }

    #[test]
    fn it_grows_by_doubling_and_shrinks_to_what_it_holds() {
        let mut buf = filled(&[1; 600]);
        assert_eq!(buf.capacity(), 1024);
        buf.reserve(424);
        assert_eq!(buf.capacity(), 1024, "there is room");
        buf.reserve(425);
        assert_eq!(buf.capacity(), 2048);
        buf.reserve(9000);
        assert_eq!(buf.capacity(), 9728, "what is asked for, if that is more");
        buf.shrink_to(2000);
        assert_eq!(buf.capacity(), 2048);
        buf.shrink_to(5000);
        assert_eq!(buf.capacity(), 2048, "it does not grow");
        buf.shrink_to(0);
        assert_eq!(buf.capacity(), 1024);
        assert_eq!(buf[..], [1; 600]);
        buf.clear();
        assert_eq!(buf.capacity(), 1024, "clear keeps the memory");
        buf.shrink_to(0);
        assert_eq!(buf.capacity(), 0);
        buf.extend_from_slice(b"again");
        assert_eq!(&buf[..], b"again");
        check(&buf);
    }

    #[test]
    fn zeroes_take_the_place_of_what_was_cut_off() {
        let mut buf = filled(&[7; 100]);
        buf.truncate(10);
        buf.resize(20);
        assert_eq!(buf[..10], [7; 10]);
        assert_eq!(buf[10..], [0; 10]);
        buf.resize(5);
        assert_eq!(buf[..], [7; 5]);
        buf[4] = 8;
        assert_eq!(buf[..], [7, 7, 7, 7, 8]);
    }

    #[test]
    fn as_a_buffer_it_has_its_whole_capacity_and_is_as_long_as_what_was_read() {
        let mut buf = filled(b"longer than what comes");
        assert_eq!((IoBuf::len(&buf), buf.room()), (22, 512));
        assert_eq!(buf.ptr(), buf.as_ptr());
        // SAFETY: within the room.
        unsafe { buf.ptr_mut().copy_from(b"read".as_ptr(), 4) };
        // SAFETY: just written.
        unsafe { buf.filled(0, 4) };
        assert_eq!(&buf[..], b"read");
        let mut part = buf.part(4..600);
        assert_eq!((part.len(), part.room()), (0, 508));
        // SAFETY: within the room.
        unsafe { part.ptr_mut().copy_from(b"more".as_ptr(), 4) };
        // SAFETY: just written.
        unsafe { part.filled(0, 4) };
        assert_eq!(&part.into_inner()[..], b"readmore");
    }

    #[test]
    fn as_bytes_it_is_the_same_memory_also_on_another_thread() {
        let buf = filled(b"the value");
        let address = buf.as_ptr().addr();
        let bytes = Bytes::from(buf);
        assert_eq!(bytes.as_ptr().addr(), address);
        let part = bytes.slice(4..);
        drop(bytes);
        std::thread::spawn(move || assert_eq!(&part[..], b"value")).join().unwrap();
    }

    #[test]
    fn a_capacity_beyond_all_memory_panics_and_harms_nothing() {
        let mut buf = filled(b"kept");
        for more in [usize::MAX, usize::MAX - 600, isize::MAX.unsigned_abs()] {
            let grow = std::panic::AssertUnwindSafe(|| buf.reserve(more));
            assert!(std::panic::catch_unwind(grow).is_err());
            assert_eq!((&buf[..], buf.capacity()), (b"kept".as_slice(), 512));
        }
    }

    #[test]
    fn what_it_says_of_itself_is_its_size_and_not_its_bytes() {
        let text = format!("{:?}", filled(b"secret"));
        assert_eq!(text, "AlignedBuf { len: 6, capacity: 512, .. }");
    }

    #[derive(Clone, Debug)]
    enum Step {
        Extend(Vec<u8>),
        Resize(usize),
        Truncate(usize),
        Clear,
        Reserve(usize),
        ShrinkTo(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        let size = 0_usize..3000;
        prop_oneof![
            4 => prop::collection::vec(any::<u8>(), 0..1500).prop_map(Step::Extend),
            2 => size.clone().prop_map(Step::Resize),
            1 => size.clone().prop_map(Step::Truncate),
            1 => Just(Step::Clear),
            1 => size.clone().prop_map(Step::Reserve),
            2 => size.prop_map(Step::ShrinkTo),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            cases: if cfg!(miri) { 4 } else { 256 },
            failure_persistence: None, // it looks for a file, which Miri does not let it
            ..ProptestConfig::default()
        })]

        #[test]
        fn it_holds_what_a_vector_holds(steps in prop::collection::vec(step(), 0..20)) {
            let (mut buf, mut model) = (AlignedBuf::new(), Vec::new());
            for step in steps {
                match step {
                    Step::Extend(bytes) => {
                        buf.extend_from_slice(&bytes);
                        model.extend_from_slice(&bytes);
                    }
                    Step::Resize(len) => {
                        buf.resize(len);
                        model.resize(len, 0);
                    }
                    Step::Truncate(len) => {
                        buf.truncate(len);
                        model.truncate(len);
                    }
                    Step::Clear => {
                        buf.clear();
                        model.clear();
                    }
                    Step::Reserve(more) => {
                        buf.reserve(more);
                        prop_assert!(buf.capacity() - buf.len() >= more);
                    }
                    Step::ShrinkTo(capacity) => {
                        let before = buf.capacity();
                        buf.shrink_to(capacity);
                        let least = capacity.max(buf.len()).next_multiple_of(AlignedBuf::GRAIN);
                        prop_assert_eq!(buf.capacity(), least.min(before));
                    }
                }
                check(&buf);
                prop_assert!(buf[..] == model[..]);
            }
        }
    }
}
