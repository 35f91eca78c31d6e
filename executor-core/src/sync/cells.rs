//! Places in shared memory of those who wait to be told something: one by one, and each exactly once.
//!
//! ```text
//!  FREE ──enter──► WAITING ──tell──► TOLD, or BROKEN ──leave──► FREE
//! ```
//!
//! Entering and telling are under a mutex; leaving is one change of the word by the one who has the cell, which waits for nobody:
//! so one whose time is over leaves, also while somebody is stopped with the mutex. Whether it left first or was told first is
//! decided by the word. A cell's word is what one sleeps on, and the last thing that is written: one that dies in the middle of
//! entering has not entered.

use std::time::Duration;

use super::raw::RECHECK;
use crate::os::{
    futex,
    liveness::{OwnerId, Owners},
    memory::SharedLayout,
    sync::{
        Shadow,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
};

/// See the module's opening.
#[cfg_attr(all(test, any(executor_loom, executor_shuttle)), derive(Default))]
#[repr(C)]
pub(super) struct Cell {
    word: AtomicU32,
    owner: AtomicU32,
    /// Who came before whom. 64 bits, so that one that waits long is not taken for one that has just come.
    ticket: AtomicU64,
    /// The ticket that was to be given next when it was told: those who came later were not meant.
    told_at: AtomicU64,
    /// Beside all but the word.
    shadow: Shadow,
}

// SAFETY: `repr(C)`, atomics only, no drop, zero is a value.
unsafe impl SharedLayout for Cell {}

const FREE: u32 = 0;
const WAITING: u32 = 1;
const TOLD: u32 = 2;
const BROKEN: u32 = 3;

/// What the one who has a cell finds there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Waiting,
    Told,
    /// What was waited for does not come any more.
    Broken,
}

impl Cell {
    /// Waits here from now on.
    pub(super) fn enter(&self, owner: OwnerId, ticket: u64) {
        self.shadow.fill();
        self.owner.store(owner.bits(), Ordering::Relaxed);
        self.ticket.store(ticket, Ordering::Relaxed);
        self.word.store(WAITING, Ordering::Release);
    }

    pub(super) fn state(&self) -> State {
        match self.word.load(Ordering::Acquire) {
            WAITING => State::Waiting,
            BROKEN => State::Broken,
            // A garbled one goes on.
            _ => State::Told,
        }
    }

    /// Sleeps until it is told something; at most `limit`, and never longer than [`RECHECK`].
    pub(super) fn sleep(&self, limit: Duration) {
        futex::wait(&self.word, WAITING, Some(limit.min(RECHECK)));
    }

    /// For one that sleeps in another way: the word, and what it is while one waits.
    pub(super) fn word(&self) -> (&AtomicU32, u32) {
        (&self.word, WAITING)
    }

    /// Has learnt what it was told, or is dead. By the one who has it; for one that is dead, under the mutex.
    pub(super) fn leave(&self) {
        self.shadow.look();
        self.word.store(FREE, Ordering::Release);
    }

    /// Does not wait any more; `false` if it was told something first. By the one who has it, without the mutex.
    pub(super) fn withdraw(&self) -> bool {
        let left = self.word.compare_exchange(WAITING, FREE, Ordering::AcqRel, Ordering::Acquire);
        left.is_ok()
    }

    /// Leaves what it was told to whoever has the mutex next, as if the one who has the cell had died.
    pub(super) fn bequeath(&self) {
        self.owner.store(OwnerId::NOBODY.bits(), Ordering::Release);
    }

    /// To be woken when the mutex is free. `false` if it has withdrawn meanwhile.
    pub(super) fn tell(&self, next_ticket: u64) -> bool {
        self.shadow.fill();
        self.told_at.store(next_ticket, Ordering::Relaxed);
        self.word.compare_exchange(WAITING, TOLD, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// To be woken when the mutex is free; it may have withdrawn meanwhile.
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
        OwnerId::from_bits(self.owner.load(Ordering::Relaxed)).is_some_and(|owner| owners.is_alive(owner))
    }
}

/// A cell that nobody has.
pub(super) fn free(cells: &[Cell]) -> Option<&Cell> {
    cells.iter().find(|cell| cell.is_free())
}

/// Of those who wait, and came before that ticket if there is one, the one who came first; whether it lives was not asked.
pub(super) fn first(cells: &[Cell], before: Option<u64>) -> Option<&Cell> {
    let ticket = |cell: &Cell| cell.ticket.load(Ordering::Relaxed);
    let meant = |cell: &&Cell| cell.is_waiting() && before.is_none_or(|before| ticket(cell) < before);
    cells.iter().filter(meant).min_by_key(|cell| ticket(cell))
}
