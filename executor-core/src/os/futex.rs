//! Sleeping on a word of shared memory.

use std::{sync::atomic::AtomicU32, time::Duration};

use rustix::{
    event::Timespec,
    thread::futex::{self, Flags},
};

/// Sleeps while the word is `expected`, at most this long; returns when woken, when a signal handler ran, or for no
/// reason at all.
pub(crate) fn wait(word: &AtomicU32, expected: u32, limit: Option<Duration>) {
    let limit =
        limit.map(|limit| Timespec { tv_sec: limit.as_secs() as _, tv_nsec: limit.subsec_nanos() as _ });
    // Not PRIVATE: the one who wakes is another process. Every error means: look again.
    let _ = futex::wait(word, Flags::empty(), expected, limit.as_ref());
}

/// Wakes one sleeper, if there is one.
pub(crate) fn wake_one(word: &AtomicU32) {
    let _ = futex::wake(word, Flags::empty(), 1);
}

/// Wakes all sleepers.
pub(crate) fn wake_all(word: &AtomicU32) {
    let _ = futex::wake(word, Flags::empty(), i32::MAX as u32);
}
