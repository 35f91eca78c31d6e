//! Access to thread-locals that works at any moment of a thread's life.
//!
//! A thread-local with a destructor is destroyed before the program's exit handlers run, and may be
//! destroyed before the destructors of other thread-locals run. Then [`LocalKey::with`] and similar
//! functions panic. Exit hooks and destructors may use every part of this library, so no code
//! outside this file calls these functions (`clippy.toml`). There are two kinds of thread-locals:
//!
//! - **spare** memory, kept from one use to the next ([`take`], [`put`]). Once it is destroyed,
//!   there is no spare memory.
//! - a **lasting** value ([`get`], [`set`], [`with`]). Its type has no destructor, so it is never
//!   destroyed.

// Threads are distinguished by numbers that are counted here, so no sum may wrap unnoticed.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use std::{
    cell::Cell,
    sync::atomic::{AtomicU32, Ordering},
    thread::LocalKey,
};

/// Takes the thread's spare value. Returns an empty value if there is none, or if it was destroyed.
#[inline]
pub(crate) fn take<T: Default>(spare: &'static LocalKey<Cell<T>>) -> T {
    spare.try_with(Cell::take).unwrap_or_default()
}

/// Keeps a value for the next [`take`]. Drops it if the thread-local was destroyed.
#[inline]
pub(crate) fn put<T>(spare: &'static LocalKey<Cell<T>>, value: T) {
    let _ = spare.try_with(|place| place.set(value));
}

/// Passes a lasting value to `look`. It does not compile for a type with a destructor.
#[inline]
#[expect(clippy::disallowed_methods, reason = "without a destructor it is never gone")]
pub(crate) fn with<T, R>(lasting: &'static LocalKey<T>, look: impl FnOnce(&T) -> R) -> R {
    const { assert!(!std::mem::needs_drop::<T>()) };
    lasting.with(look)
}

/// Returns the value of a lasting cell.
#[inline]
pub(crate) fn get<T: Copy>(lasting: &'static LocalKey<Cell<T>>) -> T {
    with(lasting, Cell::get)
}

/// Sets the value of a lasting cell.
#[inline]
pub(crate) fn set<T: Copy>(lasting: &'static LocalKey<Cell<T>>, value: T) {
    with(lasting, |cell| cell.set(value));
}

/// Returns a number for this thread that no other thread of this process has or will have. It is
/// never 0.
pub(crate) fn this_thread() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    thread_local! {
        static NUMBER: u32 = next(&NEXT);
    }
    with(&NUMBER, |number| *number)
}

/// Returns the next number, each only once. The numbers do not wrap. Otherwise two threads could
/// get the same number, and both would own what belongs to one of them.
///
/// # Panics
/// If there are no numbers left.
fn next(numbers: &AtomicU32) -> u32 {
    let given =
        numbers.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |number| number.checked_add(1));
    given.expect("there have been more threads than can be counted")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_threads_do_not_come_round() {
        let numbers = AtomicU32::new(u32::MAX - 1);
        assert_eq!(next(&numbers), u32::MAX - 1);
        for _ in 0..3 {
            assert!(std::panic::catch_unwind(|| next(&numbers)).is_err());
        }
        assert_eq!(numbers.load(Ordering::Relaxed), u32::MAX);
    }

    thread_local! {
        static SPARE: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
    }

    /// Created before the spare vector, so destroyed after it.
    struct Late(std::sync::mpsc::Sender<(Vec<u8>, u32)>);

    impl Drop for Late {
        fn drop(&mut self) {
            put(&SPARE, vec![2]);
            self.0.send((take(&SPARE), this_thread())).unwrap();
        }
    }

    thread_local! {
        static LATE: Cell<Option<Late>> = const { Cell::new(None) };
    }

    #[test]
    fn spare_memory_that_is_gone_is_empty_and_a_lasting_number_lasts() {
        let (sender, receiver) = std::sync::mpsc::channel();
        let number = std::thread::spawn(move || {
            put(&LATE, Some(Late(sender)));
            put(&SPARE, vec![1]);
            assert_eq!(take(&SPARE), [1]);
            this_thread()
        });
        let number = number.join().unwrap();
        let (taken, last) = receiver.recv().unwrap();
        assert!(taken.is_empty(), "destroyed before: {taken:?}");
        assert_eq!(last, number);
        assert_ne!(number, this_thread());
    }
}
