//! A table in shared memory of which process holds how many of something: permits, or times that it reads.
//!
//! All of it is under a mutex. Each change is one store, of a count: one that dies in the middle leaves a table that is
//! true, and what it held itself comes back when somebody asks whether it lives.

use crate::os::{
    liveness::{OwnerId, Owners},
    memory::SharedLayout,
    sync::atomic::{AtomicU32, Ordering},
};

/// As often as a process can be counted. Few in tests, so that one of them gets there.
const COUNT_MAX: u32 = if cfg!(test) { 1_000 } else { u32::MAX };

/// An entry; free if it counts nothing.
#[cfg_attr(all(test, any(executor_loom, executor_shuttle)), derive(Default))]
#[repr(C)]
pub(crate) struct Holding {
    owner: AtomicU32,
    count: AtomicU32,
}

// SAFETY: `repr(C)`, atomics only, no drop, zero is a value.
unsafe impl SharedLayout for Holding {}

impl Holding {
    fn count(&self) -> u32 {
        self.count.load(Ordering::Relaxed)
    }

    fn is_of(&self, owner: OwnerId) -> bool {
        self.owner.load(Ordering::Relaxed) == owner.bits() && self.count() > 0
    }
}

/// The entries from one's own on: there it is found at once, unless several share it.
fn from_home(table: &[Holding], owner: OwnerId) -> impl Iterator<Item = &Holding> {
    let (before, after) = table.split_at((owner.bits() as usize).checked_rem(table.len()).unwrap_or(0));
    after.iter().chain(before)
}

/// One more for this process; `false` if the table has no room for another process.
///
/// # Panics
/// If this process is counted as often as can be: guards were leaked, billions of them. One more would make it none, and
/// whoever writes would be let in beside it.
pub(crate) fn add(table: &[Holding], owner: OwnerId) -> bool {
    let own = from_home(table, owner).find(|entry| entry.is_of(owner));
    let Some(entry) = own.or_else(|| from_home(table, owner).find(|entry| entry.count() == 0)) else {
        return false;
    };
    let count = entry.count();
    let more = match count.checked_add(1) {
        Some(more) if count != COUNT_MAX => more,
        _ => panic!("this process holds it {count} times: guards were leaked"),
    };
    entry.owner.store(owner.bits(), Ordering::Relaxed);
    entry.count.store(more, Ordering::Relaxed);
    kill_point!(HolderCounted);
    true
}

/// One less for this process; `false` if it had none.
pub(crate) fn remove(table: &[Holding], owner: OwnerId) -> bool {
    let Some(entry) = from_home(table, owner).find(|entry| entry.is_of(owner)) else { return false };
    // Another process may have changed the word since it was found to be more than nothing.
    entry.count.store(entry.count().saturating_sub(1), Ordering::Relaxed);
    kill_point!(HolderDiscounted);
    true
}

/// How many are held together.
pub(crate) fn total(table: &[Holding]) -> u32 {
    table.iter().fold(0, |sum, entry| sum.saturating_add(entry.count()))
}

/// Takes back what the dead hold; how many those were.
pub(crate) fn reclaim(table: &[Holding], owners: &impl Owners) -> u32 {
    let mut back: u32 = 0;
    for entry in table {
        let count = entry.count();
        let dead = || {
            OwnerId::from_bits(entry.owner.load(Ordering::Relaxed))
                .is_none_or(|owner| !owners.is_alive(owner))
        };
        if count > 0 && dead() {
            entry.count.store(0, Ordering::Relaxed);
            back = back.saturating_add(count);
        }
    }
    back
}
