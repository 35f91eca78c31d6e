//! The doorbell: words, in memory that all workers of a pool share, that say who in the pool's
//! process looks at the rings, and how a worker wakes that thread.
//!
//! Ringing only tells a thread to look at all rings. What there is to read is in each worker's own
//! segment, so a worker that writes nonsense here causes a needless look, or makes a ring of
//! another worker go unheard. So a thread that waits for results sleeps no longer than [`HEARING`]
//! here. The reader sleeps as long as it is not told, but while there are tasks the driver wakes it
//! every second, whatever the words say: an idle pool wakes nobody.

use std::time::Duration;

use super::full_fence;
use crate::os::{
    futex,
    memory::SharedLayout,
    spin::Spin,
    std_or_model::{
        MODEL,
        atomic::{AtomicU32, Ordering},
    },
};

/// After this time an attendant that sleeps here looks at all rings, in case a worker has garbled
/// the words.
pub(crate) const HEARING: Duration = Duration::from_millis(500);

/// The attendant is awake, or was told: it looks at all rings before it sleeps or leaves.
const AWAKE: u32 = 0;
/// There is no attendant. The reader has to be told.
const READER: u32 = 1;
/// The attendant sleeps on `attention`, or is about to.
const SLEEPS: u32 = 2;

/// The reader is awake, and looks at its word before it sleeps.
const LISTENS: u32 = 0;
/// The reader was told to look at the rings.
const TOLD: u32 = 1;
/// The reader sleeps on its word, or is about to.
const DOZES: u32 = 2;

/// The shared words of one pool's doorbell.
///
/// They are always swapped, never stored to: see `Ring::asleep`.
#[cfg_attr(all(test, any(executor_loom, executor_shuttle)), derive(Default))]
#[repr(C, align(64))]
pub(crate) struct Doorbell {
    /// Who looks at the rings: see "The attendant" in the parent module.
    attention: AtomicU32,
    /// The word on which the reader sleeps.
    reader: AtomicU32,
}

// SAFETY: `repr(C)`, contains only atomics, has no drop glue, and all-zero bytes are a valid value.
unsafe impl SharedLayout for Doorbell {}

impl Doorbell {
    /// Makes a thread look at all rings. Call it after publishing what there is to see.
    pub(crate) fn ring(&self) {
        // Orders the caller's publication before the load. See "Sleeping" in the parent module.
        full_fence();
        // Somebody is awake: no system call.
        if self.attention.load(Ordering::Relaxed) == AWAKE {
            return;
        }
        match self.attention.swap(AWAKE, Ordering::SeqCst) {
            SLEEPS => {
                kill_point!(WaiterTaken);
                futex::wake_one(&self.attention);
            }
            READER => {
                kill_point!(ReaderTaken);
                self.tell_reader();
            }
            _ => {}
        }
    }

    /// Wakes whoever sleeps here, whatever the words say. A worker may have cleared one and died
    /// before it woke the thread that slept on it.
    pub(crate) fn ring_anyway(&self) {
        self.attention.swap(AWAKE, Ordering::SeqCst);
        futex::wake_one(&self.attention);
        self.tell_reader_anyway();
    }

    // ---- the attendant --------------------------------------------------------------------------

    /// Begins to attend. The caller looks at all rings after this.
    pub(crate) fn attend(&self) {
        // While the reader watches, it is AWAKE already. Without a write, the workers keep the word
        // in their caches.
        if self.attention.load(Ordering::Relaxed) != AWAKE {
            self.attention.swap(AWAKE, Ordering::SeqCst);
        }
    }

    /// Ends attending. The caller looks at all rings once more after this, since what was published
    /// before was not announced.
    pub(crate) fn leave(&self) {
        self.attention.swap(READER, Ordering::SeqCst);
        full_fence();
    }

    /// Whether somebody attends, or should.
    pub(crate) fn is_attended(&self) -> bool {
        full_fence();
        self.attention.load(Ordering::SeqCst) == AWAKE
    }

    /// Attendant: sleeps until rung, at most for `timeout`. Does not sleep if `ready` is true after
    /// the sleep was announced.
    pub(crate) fn sleep(&self, timeout: Duration, ready: impl FnOnce() -> bool) {
        self.attention.swap(SLEEPS, Ordering::SeqCst);
        full_fence();
        if !ready() {
            futex::wait(&self.attention, SLEEPS, Some(timeout));
        }
        self.attend();
    }

    /// Wakes the attendant, whether or not a worker has cleared the word. For events that do not
    /// come from a worker.
    pub(crate) fn unpark(&self) {
        // Not a swap: an attendant that has left in the meantime has written READER, which may only
        // be cleared by code that then tells the reader.
        let _ = self.attention.compare_exchange(SLEEPS, AWAKE, Ordering::SeqCst, Ordering::Relaxed);
        futex::wake_one(&self.attention);
    }

    // ---- the reader -----------------------------------------------------------------------------

    /// Tells the reader to look at the rings.
    pub(crate) fn tell_reader(&self) {
        if self.reader.swap(TOLD, Ordering::SeqCst) == DOZES {
            kill_point!(ReaderTold);
            futex::wake_one(&self.reader);
        }
    }

    /// Reader: hears what it was told. Call it before looking at anything.
    pub(crate) fn listen(&self) {
        self.reader.swap(LISTENS, Ordering::SeqCst);
        full_fence();
    }

    /// Wakes the reader, whatever the words say. For events that do not come from a worker.
    pub(crate) fn tell_reader_anyway(&self) {
        self.reader.swap(TOLD, Ordering::SeqCst);
        futex::wake_one(&self.reader);
    }

    /// Reader: sleeps until it is told. Does not sleep if it was told since
    /// [`listen`](Self::listen). With `spin` it looks at its word for a moment first, if that has
    /// paid off so far.
    pub(crate) fn doze(&self, spin: Option<&mut Spin>) {
        let told = || self.reader.load(Ordering::SeqCst) == TOLD;
        if !spin.is_some_and(|spin| spin.wait(u32::MAX, told)) {
            self.doze_until_told(None);
        }
    }

    /// Reader: the same, at most for `timeout`.
    pub(crate) fn doze_for(&self, timeout: Duration) {
        // Under a model checker no time passes, so the sleep is over at once.
        if !MODEL {
            self.doze_until_told(Some(timeout));
        }
    }

    fn doze_until_told(&self, timeout: Option<Duration>) {
        let dozes =
            self.reader.compare_exchange(LISTENS, DOZES, Ordering::SeqCst, Ordering::SeqCst);
        // Anything else than LISTENS also ends the wait at once, even nonsense of a worker.
        if dozes.is_ok() {
            futex::wait(&self.reader, DOZES, timeout);
        }
    }
}
