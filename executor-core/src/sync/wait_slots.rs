//! Wait slots: slots in shared memory in which waiters wait to be told something: one at a time,
//! and each exactly once.
//!
//! ```text
//!  FREE ──enter──► WAITING ──tell──► TOLD, or BROKEN ──leave──► FREE
//! ```
//!
//! Entering and telling happen under a mutex. Leaving is one change of the word by the slot's user
//! and waits for nobody, so a waiter that has timed out leaves even while the mutex's holder is
//! stopped. The word decides whether the waiter left first or was told first.
//!
//! The waiter sleeps on the slot's word, and that is written last: a process that dies in the
//! middle of entering has not entered.

use std::time::Duration;

use super::raw::RECHECK;
use crate::os::{
    futex,
    liveness::{OwnerId, Owners},
    memory::SharedLayout,
    std_or_model::{
        Shadow,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
};

/// A place for one waiter. See the module's documentation.
#[cfg_attr(all(test, any(executor_loom, executor_shuttle)), derive(Default))]
#[repr(C)]
pub(super) struct WaitSlot {
    word: AtomicU32,
    owner: AtomicU32,
    /// The order in which waiters came. 64 bits, so that it never wraps around and a waiter that
    /// has waited for long does not look like a new one.
    ticket: AtomicU64,
    /// The next ticket at the time when this waiter was told. If the notification has to be handed
    /// on, only waiters with lower tickets may get it.
    told_at: AtomicU64,
    /// Lets the models check the accesses to all fields but `word`.
    shadow: Shadow,
}

// SAFETY: `repr(C)`, atomics only, no drop, and all zeros is a valid value.
unsafe impl SharedLayout for WaitSlot {}

const FREE: u32 = 0;
const WAITING: u32 = 1;
const TOLD: u32 = 2;
const BROKEN: u32 = 3;

/// The state in which a slot's user finds the slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Waiting,
    Told,
    /// What the user waits for will not happen any more.
    Broken,
}

impl WaitSlot {
    /// Makes `owner` wait in this slot. Called under the mutex.
    pub(super) fn enter(&self, owner: OwnerId, ticket: u64) {
        self.shadow.fill();
        self.owner.store(owner.bits(), Ordering::Relaxed);
        self.ticket.store(ticket, Ordering::Relaxed);
        // Written last: before this store the slot is not in use.
        self.word.store(WAITING, Ordering::Release);
    }

    pub(super) fn state(&self) -> State {
        match self.word.load(Ordering::Acquire) {
            WAITING => State::Waiting,
            BROKEN => State::Broken,
            // A garbled word lets its waiter go on.
            _ => State::Told,
        }
    }

    /// Sleeps until the waiter is told something, at most for `timeout` and never longer than
    /// [`RECHECK`].
    pub(super) fn sleep(&self, timeout: Duration) {
        futex::wait(&self.word, WAITING, Some(timeout.min(RECHECK)));
    }

    /// Returns the word, and its value while the waiter waits. For waiters that sleep in another
    /// way.
    pub(super) fn word(&self) -> (&AtomicU32, u32) {
        (&self.word, WAITING)
    }

    /// Frees the slot. Called by its user after it has read what it was told, or under the mutex
    /// after its user has died.
    pub(super) fn leave(&self) {
        self.shadow.look();
        self.word.store(FREE, Ordering::Release);
    }

    /// Stops waiting, and frees the slot. Returns `false` if the waiter was told something first.
    /// Called by the slot's user, without the mutex.
    pub(super) fn withdraw(&self) -> bool {
        let left = self.word.compare_exchange(WAITING, FREE, Ordering::AcqRel, Ordering::Acquire);
        left.is_ok()
    }

    /// Leaves a notification to the next holder of the mutex, as if the slot's user had died.
    pub(super) fn bequeath(&self) {
        self.owner.store(OwnerId::NOBODY.bits(), Ordering::Release);
    }

    /// Tells the waiter, which the caller then wakes after releasing the mutex. Returns `false` if
    /// the waiter has withdrawn in the meantime.
    pub(super) fn tell(&self, next_ticket: u64) -> bool {
        self.shadow.fill();
        self.told_at.store(next_ticket, Ordering::Relaxed);
        self.word.compare_exchange(WAITING, TOLD, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// Tells the waiter that what it waits for will not happen. The caller wakes it after releasing
    /// the mutex. A waiter that has withdrawn in the meantime is left alone.
    pub(super) fn break_off(&self) {
        let _ = self.word.compare_exchange(WAITING, BROKEN, Ordering::AcqRel, Ordering::Relaxed);
    }

    pub(super) fn told_at(&self) -> u64 {
        self.shadow.look();
        self.told_at.load(Ordering::Relaxed)
    }

    pub(super) fn wake(&self) {
        futex::wake_all(&self.word);
    }

    pub(super) fn is_free(&self) -> bool {
        self.word.load(Ordering::Acquire) == FREE
    }

    pub(super) fn is_waiting(&self) -> bool {
        self.word.load(Ordering::Relaxed) == WAITING
    }

    pub(super) fn is_told(&self) -> bool {
        self.word.load(Ordering::Relaxed) == TOLD
    }

    pub(super) fn is_alive(&self, owners: &impl Owners) -> bool {
        OwnerId::from_bits(self.owner.load(Ordering::Relaxed))
            .is_some_and(|owner| owners.is_alive(owner))
    }
}

/// Returns a slot that nobody uses.
pub(super) fn free(slots: &[WaitSlot]) -> Option<&WaitSlot> {
    slots.iter().find(|slot| slot.is_free())
}

/// Returns the waiting slot with the lowest ticket. With `before`, only tickets lower than that
/// count. The waiter may be dead.
pub(super) fn first(slots: &[WaitSlot], before: Option<u64>) -> Option<&WaitSlot> {
    let ticket = |slot: &WaitSlot| slot.ticket.load(Ordering::Relaxed);
    let meant =
        |slot: &&WaitSlot| slot.is_waiting() && before.is_none_or(|before| ticket(slot) < before);
    slots.iter().filter(meant).min_by_key(|slot| ticket(slot))
}
