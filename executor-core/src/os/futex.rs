//! Waits on a word of shared memory, and wakes waiters.

use std::{sync::atomic::AtomicU32, time::Duration};

use rustix::{
    event::Timespec,
    io::Errno,
    thread::futex::{self, Flags},
};

/// Sleeps while the word is `expected`, for at most `timeout`. It may also return after a signal
/// handler ran, or for no reason.
pub(crate) fn wait(word: &AtomicU32, expected: u32, timeout: Option<Duration>) {
    let timeout = timeout.map(|timeout| Timespec {
        tv_sec: timeout.as_secs() as _,
        tv_nsec: timeout.subsec_nanos() as _,
    });
    // Not PRIVATE, because another process wakes the word. After any error, the caller looks at the
    // word again.
    let _ = futex::wait(word, Flags::empty(), expected, timeout.as_ref());
}

/// Wakes one waiter, if there is one.
pub(crate) fn wake_one(word: &AtomicU32) {
    let _ = futex::wake(word, Flags::empty(), 1);
}

/// Wakes all waiters.
pub(crate) fn wake_all(word: &AtomicU32) {
    let _ = futex::wake(word, Flags::empty(), i32::MAX as u32);
}

/// Maximum number of words that [`wait_any`] waits on.
pub(crate) const WAIT_ANY_MAX: usize = 128;

/// Sleeps until a word differs from its expected value, or one of the words is woken, for at most
/// `timeout`. It may also return for no reason. Returns the index of a word that was woken.
pub(crate) fn wait_any<'a>(
    words: impl Iterator<Item = (&'a AtomicU32, u32)>,
    timeout: Duration,
) -> Option<usize> {
    /// How often to look without `futex_waitv` (before Linux 5.16, and in some sandboxes). With a
    /// lower value, a processor is busier. With a higher value, changes are noticed later.
    const POLL: Duration = Duration::from_millis(2);
    let mut list = Vec::with_capacity(WAIT_ANY_MAX);
    for (word, expected) in words.take(WAIT_ANY_MAX) {
        let mut wait = futex::Wait::new();
        wait.val = u64::from(expected);
        wait.uaddr = futex::WaitPtr::new(word.as_ptr().cast());
        wait.flags = futex::WaitFlags::SIZE_U32;
        list.push(wait);
    }
    // `futex_waitv` takes an absolute time, unlike a wait on a single word.
    let until = super::clock::now_nanos().saturating_add(timeout.as_nanos() as u64);
    let until =
        Timespec { tv_sec: (until / 1_000_000_000) as _, tv_nsec: (until % 1_000_000_000) as _ };
    let flags = futex::WaitvFlags::empty();
    let slept = futex::waitv(&list, flags, Some(&until), rustix::thread::ClockId::Monotonic);
    match slept {
        Ok(woken) => return Some(woken),
        Err(Errno::AGAIN | Errno::INTR | Errno::TIMEDOUT) => {}
        Err(_) => std::thread::sleep(timeout.min(POLL)),
    }
    None
}
