//! A flag to wait for.

use std::{fmt, io, time::Duration};

use super::{
    changed::changed_by_the_living,
    raw::{Deadline, deadline_in, nap},
};
use crate::{
    heap::block::{Block, Kind},
    os::{
        futex,
        memory::SharedLayout,
        sync::atomic::{AtomicU32, Ordering},
    },
};

const SET: u32 = 1;
const SLEEPERS: u32 = 2;
/// The rest counts how often it was set, so that one who waits notices also if it was cleared again at once.
const TURN: u32 = 4;

/// The flag in shared memory: one word, and each act one change of it.
#[cfg_attr(all(test, any(executor_loom, executor_shuttle)), derive(Default))]
#[repr(C)]
pub(super) struct Flag {
    pub(super) word: AtomicU32,
}

// SAFETY: `repr(C)`, an atomic, no drop, zero is a value.
unsafe impl SharedLayout for Flag {}

impl Flag {
    pub(super) fn set(&self) {
        let mut word = self.word.load(Ordering::Relaxed);
        while word & SET == 0 {
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
        // Whoever waits sees what was written before this, too.
        self.word.fetch_or(0, Ordering::Release);
    }

    pub(super) fn clear(&self) {
        self.word.fetch_and(!SET, Ordering::AcqRel);
    }

    pub(super) fn is_set(&self) -> bool {
        self.word.load(Ordering::Acquire) & SET != 0
    }

    /// Which turn it is, for [`look`](Self::look).
    pub(super) fn turn(&self) -> u32 {
        self.word.load(Ordering::Relaxed) / TURN
    }

    /// Whether it is set, or was since that turn; else the word to sleep on.
    pub(super) fn look(&self, turn: u32) -> Result<(), u32> {
        let mut word = self.word.load(Ordering::Acquire);
        loop {
            if word & SET != 0 || word / TURN != turn {
                return Ok(());
            }
            if word & SLEEPERS != 0 {
                return Err(word);
            }
            match self.word.compare_exchange(word, word | SLEEPERS, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Err(word | SLEEPERS),
                Err(now) => word = now,
            }
        }
    }

    pub(super) fn wait(&self, deadline: Deadline) -> bool {
        let turn = self.turn();
        loop {
            let Err(word) = self.look(turn) else { return true };
            let Some(limit) = nap(deadline) else { return false };
            kill_point!(EventMarked);
            self.sleep(word, limit);
            kill_point!(EventWoken);
        }
    }

    /// Sleeps on what [`look`](Self::look) said. Whoever has set it may have died before it woke anybody: no sleep is long.
    pub(super) fn sleep(&self, word: u32, limit: Duration) {
        futex::wait(&self.word, word, Some(limit));
    }
}

/// A flag that threads of any processes wait for.
///
/// It travels, as a [`Lock`](crate::Lock) does.
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

travels!(Event, block, &[Kind::Event], |len| len == size_of::<Flag>());

impl Event {
    /// A new one, not set.
    ///
    /// # Errors
    /// The system's, if it has no descriptor or no memory left.
    pub fn new() -> io::Result<Self> {
        Ok(Event { block: Block::allocate(Kind::Event, size_of::<Flag>())? })
    }

    fn flag(&self) -> &Flag {
        self.block.part(0)
    }

    /// Sets it, and wakes all who wait. They go on even if it is cleared again at once.
    pub fn set(&self) {
        self.flag().set();
    }

    /// Clears it.
    pub fn clear(&self) {
        self.flag().clear();
    }

    /// Whether it is set.
    pub fn is_set(&self) -> bool {
        self.flag().is_set()
    }

    /// Waits until it is set; not at all, if it is.
    pub fn wait(&self) {
        while !self.flag().wait(None) {}
    }

    /// As [`wait`](Self::wait), but no longer than this: whether it was set.
    pub fn wait_timeout(&self, limit: Duration) -> bool {
        self.flag().wait(deadline_in(limit))
    }

    /// As [`wait`](Self::wait), on any async runtime.
    ///
    /// # Cancel safety
    /// To drop the future changes nothing.
    pub async fn wait_async(&self) {
        let turn = self.flag().turn();
        while let Err(word) = self.flag().look(turn) {
            changed_by_the_living(&self.block, &self.flag().word, word).await;
        }
    }
}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_set() { "Event(set)" } else { "Event(unset)" })
    }
}
