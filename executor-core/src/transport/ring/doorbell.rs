//! Where the pool's reader sleeps: one word for all workers of a pool, in memory that all of them see.
//!
//! It says only "look around": what there is to see is in each worker's own segment, so a worker that writes here what
//! it likes causes a look for nothing. One that put the word back to its old value at just the right moment could make
//! another's ring go unheard; so the reader never sleeps for long while tasks are out ([`HEARING`]).

use std::time::Duration;

use super::full_fence;
use crate::os::{
    futex,
    memory::SharedLayout,
    spin::Spin,
    sync::atomic::{AtomicU32, Ordering},
};

/// Should a worker have garbled the word, the reader looks around after this.
pub(crate) const HEARING: Duration = Duration::from_millis(500);

#[cfg_attr(all(test, any(executor_loom, executor_shuttle)), derive(Default))]
#[repr(C, align(64))]
pub(crate) struct Doorbell {
    /// How often it was rung.
    rung: AtomicU32,
    /// Whether the reader sleeps; on this word, so that whoever clears it ends the sleep, even before it has begun.
    ///
    /// Swapped, never stored to: see `Ring::asleep`.
    sleeping: AtomicU32,
}

// SAFETY: `repr(C)`, atomics only, no drop, zero is a value.
unsafe impl SharedLayout for Doorbell {}

impl Doorbell {
    /// Makes the reader look around, now or before its next sleep.
    pub(crate) fn ring(&self) {
        self.rung.fetch_add(1, Ordering::SeqCst);
        kill_point!(DoorbellCounted);
        full_fence();
        if self.sleeping.load(Ordering::Relaxed) != 0 && self.sleeping.swap(0, Ordering::SeqCst) != 0 {
            kill_point!(DoorbellTaken);
            futex::wake_one(&self.sleeping);
        }
    }

    /// As [`ring`](Self::ring), also if a worker has taken the word of the reader that sleeps, and died before it woke it.
    pub(crate) fn ring_anyway(&self) {
        self.rung.fetch_add(1, Ordering::SeqCst);
        self.sleeping.swap(0, Ordering::SeqCst);
        futex::wake_one(&self.sleeping);
    }

    /// How often it was rung: to be asked before looking around, and given to [`sleep`](Self::sleep) after it.
    pub(crate) fn heard(&self) -> u32 {
        self.rung.load(Ordering::SeqCst)
    }

    /// Sleeps until it is rung, unless that has happened since it was `heard`; at most for `limit`. With a
    /// `spin` it looks again for a moment first, where that has paid.
    pub(crate) fn sleep(&self, heard: u32, spin: Option<&mut Spin>, limit: Option<Duration>) {
        if spin.is_some_and(|spin| spin.wait(u32::MAX, || self.heard() != heard)) {
            return;
        }
        self.sleeping.swap(1, Ordering::SeqCst);
        full_fence();
        if self.heard() == heard {
            futex::wait(&self.sleeping, 1, limit);
        }
        self.sleeping.swap(0, Ordering::SeqCst);
    }
}
