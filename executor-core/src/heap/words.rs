//! Reads and writes plain data in memory that other processes may write at any moment. All access
//! is through atomic words that are as large as the type's alignment allows.
//!
//! So a data race is not undefined behaviour, whichever process takes part in it. The worst outcome
//! is a value that is half old and half new, which is still a valid value of plain data. A value
//! that fits into one word is never torn. This holds only if all processes use words of the same
//! width. So each block records how it is accessed (`Access` in `block.rs`), and a handle with
//! another type is refused.

use std::{
    mem::MaybeUninit,
    ptr::NonNull,
    sync::atomic::{
        AtomicI8, AtomicI16, AtomicI32, AtomicI64, AtomicIsize, AtomicU8, AtomicU16, AtomicU32,
        AtomicU64, AtomicUsize, Ordering,
    },
};

use bytemuck::Pod;

use crate::sealed::Sealed;

macro_rules! by_words {
    ($at:expr, $count:expr, $atomic:ty, $word:ident, $each:expr) => {{
        for index in 0..$count / size_of::<$atomic>() {
            // SAFETY: the word lies within the memory that the caller promises. It is aligned,
            // because the caller's type is aligned at least as strictly as this atomic.
            let $word = unsafe { &*$at.cast::<$atomic>().as_ptr().add(index) };
            $each(index, $word);
        }
    }};
}

macro_rules! load_words {
    ($at:expr, $out:expr, $count:expr, $atomic:ty, $plain:ty) => {
        by_words!($at, $count, $atomic, word, |index: usize, word: &$atomic| {
            // SAFETY: `out` has room for the same number of bytes, and the same alignment as the
            // shared type.
            unsafe { $out.cast::<$plain>().add(index).write(word.load(Ordering::Acquire)) }
        })
    };
}

macro_rules! store_words {
    ($at:expr, $from:expr, $count:expr, $atomic:ty, $plain:ty) => {
        by_words!($at, $count, $atomic, word, |index: usize, word: &$atomic| {
            // SAFETY: `from` has the same number of initialised bytes, and the same alignment as
            // the shared type.
            word.store(unsafe { $from.cast::<$plain>().add(index).read() }, Ordering::Release)
        })
    };
}

/// Copies `count` values from shared memory to `out`.
///
/// # Safety
/// `at` is aligned for `T`, and memory for `count` values begins there and stays valid during the
/// call. This process has no references to that memory except to atomics. `out` has room for the
/// values.
pub(crate) unsafe fn load_all<T: Pod>(at: NonNull<u8>, out: *mut T, count: usize) {
    let bytes = size_of::<T>() * count;
    match align_of::<T>() {
        1 => load_words!(at, out, bytes, AtomicU8, u8),
        2 => load_words!(at, out, bytes, AtomicU16, u16),
        4 => load_words!(at, out, bytes, AtomicU32, u32),
        _ => load_words!(at, out, bytes, AtomicU64, u64),
    }
}

/// Copies `count` values from `from` to shared memory.
///
/// # Safety
/// The requirements of [`load_all`] apply to `at`. `from` holds `count` values.
pub(crate) unsafe fn store_all<T: Pod>(at: NonNull<u8>, from: *const T, count: usize) {
    let bytes = size_of::<T>() * count;
    match align_of::<T>() {
        1 => store_words!(at, from, bytes, AtomicU8, u8),
        2 => store_words!(at, from, bytes, AtomicU16, u16),
        4 => store_words!(at, from, bytes, AtomicU32, u32),
        _ => store_words!(at, from, bytes, AtomicU64, u64),
    }
}

/// Reads one value, as [`load_all`] does.
///
/// # Safety
/// Same as for [`load_all`].
pub(crate) unsafe fn load<T: Pod>(at: NonNull<u8>) -> T {
    let mut value = MaybeUninit::<T>::uninit();
    // SAFETY: the caller's promise. `load_all` writes all bytes of the value, and plain data has no
    // padding and accepts any bytes.
    unsafe {
        load_all(at, value.as_mut_ptr(), 1);
        value.assume_init()
    }
}

/// Writes one value, as [`store_all`] does.
///
/// # Safety
/// Same as for [`store_all`].
pub(crate) unsafe fn store<T: Pod>(at: NonNull<u8>, value: &T) {
    // SAFETY: the caller's promise.
    unsafe { store_all(at, value, 1) }
}

/// Copies bytes out of shared memory, starting at byte `from`.
///
/// It always reads whole words, so that every access to a byte uses the same atomic.
///
/// # Safety
/// `at` is aligned to 8 and is the start of a whole number of words that stay valid during the
/// call. This process has no references to these words except to atomics of the same width. The
/// copied bytes lie within these words.
pub(crate) unsafe fn load_bytes(at: NonNull<u8>, from: usize, out: &mut [u8]) {
    // SAFETY: the caller's promise.
    let word = |index: usize| unsafe { &*at.cast::<AtomicU64>().as_ptr().add(index) };
    let mut done = 0;
    while done < out.len() {
        let (index, within) = ((from + done) / 8, (from + done) % 8);
        let count = (8 - within).min(out.len() - done);
        let bytes = word(index).load(Ordering::Acquire).to_ne_bytes();
        out[done..done + count].copy_from_slice(&bytes[within..within + count]);
        done += count;
    }
}

/// Copies bytes into shared memory, starting at byte `from`.
///
/// Where a word is written only in part, its other bytes keep their value, even if another process
/// writes them at the same time.
///
/// # Safety
/// Same as for [`load_bytes`].
pub(crate) unsafe fn store_bytes(at: NonNull<u8>, from: usize, bytes: &[u8]) {
    // SAFETY: the caller's promise.
    let word = |index: usize| unsafe { &*at.cast::<AtomicU64>().as_ptr().add(index) };
    let mut done = 0;
    while done < bytes.len() {
        let (index, within) = ((from + done) / 8, (from + done) % 8);
        let count = (8 - within).min(bytes.len() - done);
        let part = &bytes[done..done + count];
        if let Ok(whole) = <[u8; 8]>::try_from(part) {
            word(index).store(u64::from_ne_bytes(whole), Ordering::Release);
        } else {
            // Part of a word: a plain read and write could undo what another process writes to
            // the rest of it.
            let changed = |old: u64| {
                let mut bytes = old.to_ne_bytes();
                bytes[within..within + count].copy_from_slice(part);
                Some(u64::from_ne_bytes(bytes))
            };
            let _ = word(index).fetch_update(Ordering::AcqRel, Ordering::Acquire, changed);
        }
        done += count;
    }
}

/// Writes zeros.
///
/// # Safety
/// `at` is aligned to 8. `bytes` bytes, a whole number of words, begin there and stay valid during
/// the call. This process has no references to them except to atomics of this width.
pub(crate) unsafe fn zero(at: NonNull<u8>, bytes: usize) {
    by_words!(at, bytes, AtomicU64, word, |_, word: &AtomicU64| word.store(0, Ordering::Release));
}

/// An integer type that has atomic operations.
///
/// It is implemented for all integers of Rust that have an atomic type.
///
/// This trait is sealed: it cannot be implemented outside this crate.
pub trait Integer: Pod + Sealed {
    #[doc(hidden)]
    fn plus(self, other: Self) -> Self;

    /// Adds `value` to the integer at `at`, and returns what was there before.
    ///
    /// # Safety
    /// Same as for [`load`].
    #[doc(hidden)]
    unsafe fn add_to(at: NonNull<u8>, value: Self) -> Self;
}

macro_rules! integers {
    ($($integer:ty, $atomic:ty;)+) => {$(
        impl Sealed for $integer {}

        impl Integer for $integer {
            fn plus(self, other: Self) -> Self {
                self.wrapping_add(other)
            }

            unsafe fn add_to(at: NonNull<u8>, value: Self) -> Self {
                // SAFETY: the caller's promise. Blocks are aligned to 16, which is enough for this
                // atomic.
                unsafe { &*at.cast::<$atomic>().as_ptr() }.fetch_add(value, Ordering::AcqRel)
            }
        }
    )+};
}

integers! {
    i8, AtomicI8;
    i16, AtomicI16;
    i32, AtomicI32;
    i64, AtomicI64;
    isize, AtomicIsize;
    u8, AtomicU8;
    u16, AtomicU16;
    u32, AtomicU32;
    u64, AtomicU64;
    usize, AtomicUsize;
}

#[cfg(all(test, not(any(executor_loom, executor_shuttle))))]
mod tests {
    use super::*;

    /// Ordinary memory, so that Miri can check the accesses to it.
    fn memory() -> Vec<AtomicU64> {
        (0..8_u64).map(|index| AtomicU64::new(u64::from_ne_bytes([index as u8; 8]))).collect()
    }

    fn at(memory: &[AtomicU64]) -> NonNull<u8> {
        NonNull::from(memory).cast()
    }

    fn all<T: Pod + PartialEq + std::fmt::Debug>(values: [T; 5]) {
        let memory = memory();
        let at = at(&memory);
        let mut out = values;
        out.reverse();
        // SAFETY: memory for eight words, aligned to 8, which nothing else uses.
        unsafe {
            store_all(at, values.as_ptr(), values.len());
            load_all(at, out.as_mut_ptr(), out.len());
            assert_eq!(out, values);
            store(at, &values[4]);
            assert_eq!(load::<T>(at), values[4]);
        }
        assert_eq!(
            memory[7].load(Ordering::Relaxed),
            u64::from_ne_bytes([7; 8]),
            "what is behind stays"
        );
    }

    #[test]
    fn values_of_every_alignment_go_there_and_back() {
        all([1_u8, 2, 3, 4, 255]);
        all([1_i16, -2, 3, -4, i16::MIN]);
        all([1.5_f32, -2.0, 3.0, 0.0, f32::MAX]);
        all([1_u64, 2, 3, 4, u64::MAX]);
        all([[1_u8, 2, 3], [4; 3], [5; 3], [6; 3], [7; 3]]);
        all([(); 5].map(|()| [0_u64; 0]));
    }

    #[test]
    fn bytes_of_every_place_and_length_go_there_and_back_and_leave_the_rest() {
        let whole: Vec<u8> =
            memory().iter().flat_map(|word| word.load(Ordering::Relaxed).to_ne_bytes()).collect();
        for from in 0..20 {
            for len in 0..20 {
                let memory = memory();
                let bytes: Vec<u8> = (0..len).map(|index| 100 + index as u8).collect();
                let (mut out, mut around) = (vec![0; len], vec![0; whole.len()]);
                // SAFETY: memory for eight words, aligned to 8, which nothing else uses. All bytes
                // of the calls lie within it.
                unsafe {
                    store_bytes(at(&memory), from, &bytes);
                    load_bytes(at(&memory), from, &mut out);
                    load_bytes(at(&memory), 0, &mut around);
                }
                assert_eq!(out, bytes);
                let mut expected = whole.clone();
                expected[from..from + len].copy_from_slice(&bytes);
                assert_eq!(around, expected, "{len} from {from}");
            }
        }
    }

    #[test]
    fn integers_are_added_where_they_lie_and_wrap() {
        fn check<T: Integer + PartialEq + std::fmt::Debug>(value: T, other: T) {
            let memory = memory();
            let at = at(&memory);
            // SAFETY: memory for eight words, aligned to 8, which nothing else uses.
            let (before, after) = unsafe {
                store(at, &value);
                (T::add_to(at, other), load::<T>(at))
            };
            assert_eq!((before, after), (value, value.plus(other)));
        }
        check(250_u8, 10);
        check(i16::MIN, -1);
        check(7_u32, 8);
        check(u64::MAX, 2);
        check(isize::MAX, 1);
    }

    #[test]
    fn halves_of_a_word_that_threads_write_are_both_there() {
        let memory = memory();
        std::thread::scope(|scope| {
            for half in 0..2 {
                let memory = &memory;
                scope.spawn(move || {
                    for round in 0..if cfg!(miri) { 20 } else { 1000 } {
                        // SAFETY: as above. The other thread writes through the same atomics.
                        unsafe { store_bytes(at(memory), half * 4, &[(round % 100) as u8; 4]) };
                    }
                    // SAFETY: as above.
                    unsafe { store_bytes(at(memory), half * 4, &[half as u8 + 1; 4]) };
                });
            }
        });
        let mut out = [0; 8];
        // SAFETY: as above.
        unsafe { load_bytes(at(&memory), 0, &mut out) };
        assert_eq!(out, [1, 1, 1, 1, 2, 2, 2, 2]);
    }
}
