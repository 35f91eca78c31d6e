//! A table in shared memory of which process holds how many of something: permits, or times that it reads.
//!
//! Each change is one store, of a count: one that dies in the middle leaves a table that is true, and what it held itself comes
//! back when somebody asks whether it lives.
//!
//! ```text
//!  entry:  owner ┊ taken, written under a mutex ┊ returned, counted up by anybody of that process        held = taken − returned
//! ```
//!
//! All but giving back is under a mutex. That is, too, if the mutex is to be had at once; if not ([`give_back`]), it is one
//! addition to a word of its own, so a drop never waits for one that is stopped with the mutex.

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
    taken: AtomicU32,
    /// Of `taken`, what was given back without the mutex. Both come round; their difference is below [`COUNT_MAX`].
    returned: AtomicU32,
}

// SAFETY: `repr(C)`, atomics only, no drop, zero is a value.
unsafe impl SharedLayout for Holding {}

impl Holding {
    fn count(&self) -> u32 {
        // First what was returned: what is taken and returned between the two looks is then too much, never too little, so one
        // that is counted finds itself. Acquire: what the one did who has returned it comes before what follows from this.
        let returned = self.returned.load(Ordering::Acquire);
        // Acquire: whoever sees that another process has taken the entry sees whose it is now.
        self.taken.load(Ordering::Acquire).wrapping_sub(returned)
    }

    /// The mutex is held.
    fn set_count(&self, count: u32) {
        // What is returned meanwhile is subtracted from this, too.
        self.taken.store(self.returned.load(Ordering::Relaxed).wrapping_add(count), Ordering::Release);
    }

    fn is_of(&self, owner: OwnerId) -> bool {
        self.count() > 0 && self.owner.load(Ordering::Relaxed) == owner.bits()
    }

    fn is_dead(&self, owners: &impl Owners) -> bool {
        OwnerId::from_bits(self.owner.load(Ordering::Relaxed)).is_none_or(|owner| !owners.is_alive(owner))
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
    assert!(count < COUNT_MAX, "this process holds it {count} times: guards were leaked");
    entry.owner.store(owner.bits(), Ordering::Relaxed);
    entry.taken.store(entry.taken.load(Ordering::Relaxed).wrapping_add(1), Ordering::Release);
    kill_point!(HolderCounted);
    true
}

/// One less for this process; `false` if it had none. The mutex is held.
pub(crate) fn remove(table: &[Holding], owner: OwnerId) -> bool {
    let Some(entry) = from_home(table, owner).find(|entry| entry.is_of(owner)) else { return false };
    entry.taken.store(entry.taken.load(Ordering::Relaxed).wrapping_sub(1), Ordering::Release);
    kill_point!(HolderDiscounted);
    true
}

/// As [`remove`], for one whom the mutex would have to wait for; by one that is counted, so its entry is nobody else's.
pub(crate) fn give_back(table: &[Holding], owner: OwnerId) -> bool {
    let Some(entry) = from_home(table, owner).find(|entry| entry.is_of(owner)) else { return false };
    entry.returned.fetch_add(1, Ordering::Release);
    kill_point!(HolderGaveBack);
    true
}

/// How many are held together.
pub(crate) fn total(table: &[Holding]) -> u32 {
    table.iter().fold(0, |sum, entry| sum.saturating_add(entry.count()))
}

/// How many are held by those who live, for who has not the mutex.
pub(crate) fn total_of_the_living(table: &[Holding], owners: &impl Owners) -> u32 {
    let living = table.iter().filter(|entry| entry.count() > 0 && !entry.is_dead(owners));
    living.fold(0, |sum, entry| sum.saturating_add(entry.count()))
}

/// Takes back what the dead hold; how many those were. The mutex is held.
pub(crate) fn reclaim(table: &[Holding], owners: &impl Owners) -> u32 {
    let mut back: u32 = 0;
    for entry in table {
        let count = entry.count();
        if count > 0 && entry.is_dead(owners) {
            entry.set_count(0);
            back = back.saturating_add(count);
        }
    }
    back
}
