//! Sleeping on a word of shared memory.

use std::{sync::atomic::AtomicU32, time::Duration};

use rustix::{
    event::Timespec,
    io::Errno,
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

/// The most words that [`wait_any`] takes.
pub(crate) const WAIT_ANY_MAX: usize = 128;

/// Sleeps until a word is not what is expected of it, or one of them is woken; at most this long. Returns for no reason at
/// all, too. If one was woken, its index.
pub(crate) fn wait_any<'a>(
    words: impl Iterator<Item = (&'a AtomicU32, u32)>,
    limit: Duration,
) -> Option<usize> {
    /// Without `futex_waitv` (before Linux 5.16, and in some sandboxes) one looks that often. Less: answers come later.
    /// More: one processor is busier.
    const POLL: Duration = Duration::from_millis(2);
    let mut list = Vec::with_capacity(WAIT_ANY_MAX);
    for (word, expected) in words.take(WAIT_ANY_MAX) {
        let mut wait = futex::Wait::new();
        wait.val = u64::from(expected);
        wait.uaddr = futex::WaitPtr::new(word.as_ptr().cast());
        wait.flags = futex::WaitFlags::SIZE_U32;
        list.push(wait);
    }
    // An absolute time, unlike that of a single wait.
    let until = super::clock::now_nanos().saturating_add(limit.as_nanos() as u64);
    let until = Timespec { tv_sec: (until / 1_000_000_000) as _, tv_nsec: (until % 1_000_000_000) as _ };
    let flags = futex::WaitvFlags::empty();
    let slept = futex::waitv(&list, flags, Some(&until), rustix::thread::ClockId::Monotonic);
    match slept {
        Ok(woken) => return Some(woken),
        Err(Errno::AGAIN | Errno::INTR | Errno::TIMEDOUT) => {}
        Err(_) => std::thread::sleep(limit.min(POLL)),
    }
    None
}
