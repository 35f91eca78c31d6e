//! A flag to wait for.

use std::{fmt, io, time::Duration};

use super::{
    raw::{Deadline, deadline_in, nap},
    word_wait::WordWait,
};
use crate::{
    heap::block::{Block, BlockKind},
    os::{
        futex,
        memory::SharedLayout,
        std_or_model::atomic::{AtomicU32, Ordering},
    },
};

/// The event is set.
const SET: u32 = 1;
/// Somebody sleeps on the word, so `set` has to wake.
const SLEEPERS: u32 = 2;
/// One unit of the counter in the other bits, which counts how often the event was set. A waiter
/// compares it, and so notices a `set` that was cleared again at once.
const TURN: u32 = 4;

/// The flag in shared memory. It is one word, and each operation is a single change of it.
#[cfg_attr(all(test, any(executor_loom, executor_shuttle)), derive(Default))]
#[repr(C)]
pub(super) struct Flag {
    pub(super) word: AtomicU32,
}

// SAFETY: `repr(C)`, a single atomic, no drop, and all zeros is a valid value.
unsafe impl SharedLayout for Flag {}

impl Flag {
    pub(super) fn set(&self) {
        let mut word = self.word.load(Ordering::Relaxed);
        while word & SET == 0 {
            // Clears the mark as well, because all sleepers are woken below.
            let next = (word & !(SET | SLEEPERS)).wrapping_add(TURN) | SET;
            match self.word.compare_exchange(word, next, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => {
                    kill_point!(EventSet);
                    if word & SLEEPERS != 0 {
                        futex::wake_all(&self.word);
                    }
                    return;
                }
                Err(now) => word = now,
            }
        }
        // The event was already set. This store lets a waiter see what was written before this
        // call, too.
        self.word.fetch_or(0, Ordering::Release);
    }

    pub(super) fn clear(&self) {
        self.word.fetch_and(!SET, Ordering::AcqRel);
    }

    pub(super) fn is_set(&self) -> bool {
        self.word.load(Ordering::Acquire) & SET != 0
    }

    /// Returns the present turn, to pass to [`look`](Self::look).
    pub(super) fn turn(&self) -> u32 {
        self.word.load(Ordering::Relaxed) / TURN
    }

    /// Returns `Ok` if the event is set, or was set since that turn. Otherwise marks the word, and
    /// returns its value to sleep on.
    pub(super) fn look(&self, turn: u32) -> Result<(), u32> {
        let mut word = self.word.load(Ordering::Acquire);
        loop {
            if word & SET != 0 || word / TURN != turn {
                return Ok(());
            }
            if word & SLEEPERS != 0 {
                return Err(word);
            }
            match self.word.compare_exchange(
                word,
                word | SLEEPERS,
                Ordering::AcqRel,
                Ordering::Acquire,
            ) {
                Ok(_) => return Err(word | SLEEPERS),
                Err(now) => word = now,
            }
        }
    }

    pub(super) fn wait(&self, deadline: Deadline) -> bool {
        let turn = self.turn();
        loop {
            let Err(word) = self.look(turn) else { return true };
            let Some(timeout) = nap(deadline) else { return false };
            kill_point!(EventMarked);
            self.sleep(word, timeout);
            kill_point!(EventWoken);
        }
    }

    /// Sleeps while the word has the value that [`look`](Self::look) returned. The process that
    /// sets the event may die before it wakes anybody, so callers keep each sleep short.
    pub(super) fn sleep(&self, word: u32, timeout: Duration) {
        futex::wait(&self.word, word, Some(timeout));
    }
}

/// A flag that threads of any processes can wait for.
///
/// An event can be sent to other processes, as a [`Lock`](crate::Lock) can.
///
/// ```
/// use executor::{Event, prelude::*};
/// use std::time::Duration;
///
/// #[task]
/// fn work(stop: Event) -> u32 {
///     let mut rounds = 0;
///     while !stop.wait_timeout(Duration::from_millis(1)) {
///         rounds += 1;
///     }
///     rounds
/// }
///
/// #[executor::main]
/// fn main() -> Result<(), Box<dyn std::error::Error>> {
///     let pool = ProcessPoolExecutor::builder().max_workers(1).build()?;
///     let stop = Event::new()?;
///     let rounds = pool.submit(work::task(stop.clone()));
///     stop.set();
///     rounds.result()?;
///     Ok(())
/// }
/// ```
#[derive(Clone)]
pub struct Event {
    block: Block,
}

travels!(Event, block, &[BlockKind::Event], |len| len == size_of::<Flag>());

impl Event {
    /// Creates an event that is not set.
    ///
    /// # Errors
    /// The system's error if no descriptor or memory is left.
    pub fn new() -> io::Result<Self> {
        Ok(Event { block: Block::allocate(BlockKind::Event, size_of::<Flag>())? })
    }

    fn flag(&self) -> &Flag {
        self.block.part(0)
    }

    /// Sets the event, and wakes all waiters. They go on even if it is cleared again at once.
    pub fn set(&self) {
        self.flag().set();
    }

    /// Clears the event.
    pub fn clear(&self) {
        self.flag().clear();
    }

    /// Whether the event is set.
    pub fn is_set(&self) -> bool {
        self.flag().is_set()
    }

    /// Waits until the event is set. Returns at once if it is set already.
    pub fn wait(&self) {
        while !self.flag().wait(None) {}
    }

    /// Like [`wait`](Self::wait), but waits no longer than `timeout`. Returns whether the event was
    /// set.
    pub fn wait_timeout(&self, timeout: Duration) -> bool {
        self.flag().wait(deadline_in(timeout))
    }

    /// Like [`wait`](Self::wait), on any async runtime.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect.
    pub async fn wait_async(&self) {
        let turn = self.flag().turn();
        while let Err(word) = self.flag().look(turn) {
            WordWait::ignoring_deaths(&self.block, &self.flag().word, word).await;
        }
    }
}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_set() { "Event(set)" } else { "Event(unset)" })
    }
}
