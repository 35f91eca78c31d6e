//! The doorbell: one word, in memory that all workers of a pool share, on which the pool's reader
//! sleeps.
//!
//! Ringing it only tells the reader to look at all rings. What there is to read is in each worker's
//! own segment, so a worker that writes nonsense here causes a needless look. A worker that
//! restores the old value at just the right moment can make another worker's ring go unheard. So
//! the reader never sleeps longer than [`HEARING`] while tasks are out.

use std::time::Duration;

use super::full_fence;
use crate::os::{
    futex,
    memory::SharedLayout,
    spin::Spin,
    std_or_model::atomic::{AtomicU32, Ordering},
};

/// After this time the reader looks at all rings, in case a worker has garbled the word.
pub(crate) const HEARING: Duration = Duration::from_millis(500);

/// The shared words of one pool's doorbell.
#[cfg_attr(all(test, any(executor_loom, executor_shuttle)), derive(Default))]
#[repr(C, align(64))]
pub(crate) struct Doorbell {
    /// How often it was rung.
    rung: AtomicU32,
    /// 1 while the reader sleeps, or is about to. The reader sleeps on this word, so clearing it
    /// ends the sleep even if it has not begun yet.
    ///
    /// Always swapped, never stored to: see `Ring::asleep`.
    sleeping: AtomicU32,
}

// SAFETY: `repr(C)`, contains only atomics, has no drop glue, and all-zero bytes are a valid value.
unsafe impl SharedLayout for Doorbell {}

impl Doorbell {
    /// Makes the reader look at all rings, now or before it next sleeps.
    pub(crate) fn ring(&self) {
        self.rung.fetch_add(1, Ordering::SeqCst);
        kill_point!(DoorbellCounted);
        // The count is published before `sleeping` is read, and the reader announces its sleep
        // before it reads the count. With a fence between the two steps on both sides, at least one
        // of them sees the other's write, so no ring is lost.
        full_fence();
        if self.sleeping.load(Ordering::Relaxed) != 0
            && self.sleeping.swap(0, Ordering::SeqCst) != 0
        {
            kill_point!(DoorbellTaken);
            futex::wake_one(&self.sleeping);
        }
    }

    /// Like [`ring`](Self::ring), but wakes the reader whatever `sleeping` says. A worker may have
    /// cleared it and died before it woke the reader.
    pub(crate) fn ring_anyway(&self) {
        self.rung.fetch_add(1, Ordering::SeqCst);
        self.sleeping.swap(0, Ordering::SeqCst);
        futex::wake_one(&self.sleeping);
    }

    /// Returns how often it was rung. Call it before looking at the rings, and pass the result to
    /// [`sleep`](Self::sleep) afterwards.
    pub(crate) fn heard(&self) -> u32 {
        self.rung.load(Ordering::SeqCst)
    }

    /// Sleeps until it is rung, at most for `timeout`. Does not sleep if it was rung since `heard`
    /// was read. With `spin` it looks for a ring for a moment first, if that has paid off so far.
    pub(crate) fn sleep(&self, heard: u32, spin: Option<&mut Spin>, timeout: Option<Duration>) {
        if spin.is_some_and(|spin| spin.wait(u32::MAX, || self.heard() != heard)) {
            return;
        }
        self.sleeping.swap(1, Ordering::SeqCst);
        full_fence();
        if self.heard() == heard {
            futex::wait(&self.sleeping, 1, timeout);
        }
        self.sleeping.swap(0, Ordering::SeqCst);
    }
}
