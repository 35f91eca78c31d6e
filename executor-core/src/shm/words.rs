//! Plain data in memory that others may write at any moment: read and written through atomics, in words as large as the
//! type's alignment allows.
//!
//! So a race is no undefined behaviour, whoever takes part in it: at worst a value is half old and half new, which for
//! plain data is a value too. What fits into one word is never torn. That holds as long as all use words of one width, so a
//! block says how it is accessed (`Access` in `heap.rs`), and a handle of another type is refused.

use std::{
    mem::MaybeUninit,
    ptr::NonNull,
    sync::atomic::{
        AtomicI8, AtomicI16, AtomicI32, AtomicI64, AtomicIsize, AtomicU8, AtomicU16, AtomicU32, AtomicU64,
        AtomicUsize, Ordering,
    },
};

use bytemuck::Pod;

macro_rules! by_words {
    ($at:expr, $count:expr, $atomic:ty, $word:ident, $each:expr) => {{
        for index in 0..$count / size_of::<$atomic>() {
            // SAFETY: within what the caller promises, aligned as the caller's type is, which is as much as this one.
            let $word = unsafe { &*$at.cast::<$atomic>().as_ptr().add(index) };
            $each(index, $word);
        }
    }};
}

macro_rules! load_words {
    ($at:expr, $out:expr, $count:expr, $atomic:ty, $plain:ty) => {
        by_words!($at, $count, $atomic, word, |index: usize, word: &$atomic| {
            // SAFETY: `out` has room for as many bytes, and is aligned as the shared type is.
            unsafe { $out.cast::<$plain>().add(index).write(word.load(Ordering::Acquire)) }
        })
    };
}

macro_rules! store_words {
    ($at:expr, $from:expr, $count:expr, $atomic:ty, $plain:ty) => {
        by_words!($at, $count, $atomic, word, |index: usize, word: &$atomic| {
            // SAFETY: `from` has as many bytes, initialised, aligned as the shared type is.
            word.store(unsafe { $from.cast::<$plain>().add(index).read() }, Ordering::Release)
        })
    };
}

/// Copies `count` values out.
///
/// # Safety
/// `at` is aligned for `T` and has memory for so many that lives meanwhile, and to which this process has no reference
/// but atomic ones. `out` has room for them.
pub(super) unsafe fn load_all<T: Pod>(at: NonNull<u8>, out: *mut T, count: usize) {
    let bytes = size_of::<T>() * count;
    match align_of::<T>() {
        1 => load_words!(at, out, bytes, AtomicU8, u8),
        2 => load_words!(at, out, bytes, AtomicU16, u16),
        4 => load_words!(at, out, bytes, AtomicU32, u32),
        _ => load_words!(at, out, bytes, AtomicU64, u64),
    }
}

/// Copies `count` values in.
///
/// # Safety
/// As [`load_all`]; `from` has so many.
pub(super) unsafe fn store_all<T: Pod>(at: NonNull<u8>, from: *const T, count: usize) {
    let bytes = size_of::<T>() * count;
    match align_of::<T>() {
        1 => store_words!(at, from, bytes, AtomicU8, u8),
        2 => store_words!(at, from, bytes, AtomicU16, u16),
        4 => store_words!(at, from, bytes, AtomicU32, u32),
        _ => store_words!(at, from, bytes, AtomicU64, u64),
    }
}

/// As [`load_all`], one.
///
/// # Safety
/// As there.
pub(super) unsafe fn load<T: Pod>(at: NonNull<u8>) -> T {
    let mut value = MaybeUninit::<T>::uninit();
    // SAFETY: the caller's promise. All its bytes are written, and plain data has no padding and takes any bytes.
    unsafe {
        load_all(at, value.as_mut_ptr(), 1);
        value.assume_init()
    }
}

/// As [`store_all`], one.
///
/// # Safety
/// As there.
pub(super) unsafe fn store<T: Pod>(at: NonNull<u8>, value: &T) {
    // SAFETY: the caller's promise.
    unsafe { store_all(at, value, 1) }
}

/// Copies bytes out, from `from` on. All access is by whole words, so that all who touch a byte do so by the same atomic.
///
/// # Safety
/// `at` is aligned to 8 and begins a whole number of words that live meanwhile, to which this process has no reference but
/// atomic ones of the same width; `from` and as many as are copied lie within.
pub(super) unsafe fn load_bytes(at: NonNull<u8>, from: usize, out: &mut [u8]) {
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

/// Copies bytes in, from `from` on. Of a word that is written in part, the rest stays as it is, whoever writes there meanwhile.
///
/// # Safety
/// As [`load_bytes`].
pub(super) unsafe fn store_bytes(at: NonNull<u8>, from: usize, bytes: &[u8]) {
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
/// `at` is aligned to 8 and begins so many bytes, a whole number of words, that live meanwhile, to which this process has no
/// reference but atomic ones of this width.
pub(super) unsafe fn zero(at: NonNull<u8>, bytes: usize) {
    by_words!(at, bytes, AtomicU64, word, |_, word: &AtomicU64| word.store(0, Ordering::Release));
}

/// The integers of Rust that have atomic operations.
///
/// It is implemented for them, and cannot be for others.
pub trait Integer: Pod + sealed::Sealed {
    #[doc(hidden)]
    fn plus(self, other: Self) -> Self;

    /// # Safety
    /// As [`load`].
    #[doc(hidden)]
    unsafe fn add_to(at: NonNull<u8>, value: Self) -> Self;
}

mod sealed {
    pub trait Sealed {}
}

macro_rules! integers {
    ($($integer:ty, $atomic:ty;)+) => {$(
        impl sealed::Sealed for $integer {}

        impl Integer for $integer {
            fn plus(self, other: Self) -> Self {
                self.wrapping_add(other)
            }

            unsafe fn add_to(at: NonNull<u8>, value: Self) -> Self {
                // SAFETY: the caller's promise. Blocks are aligned to 16, so as this atomic needs it.
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
