//! A table in shared memory that records how many of something each process holds: permits of a
//! semaphore, or read guards.
//!
//! Each change is a single store of a count. A process that dies in the middle leaves a table that
//! is still correct, and what the process itself held comes back when somebody asks whether it is
//! alive.
//!
//! ```text
//!  entry:  owner ┊ taken, written under a mutex ┊ returned, incremented by any thread of the owner
//!  held = taken − returned
//! ```
//!
//! All changes happen under a mutex, except for giving back. Giving back also takes the mutex if
//! that is possible at once. Otherwise ([`give_back`]) it is one addition to a word of its own, so
//! that a drop never waits for a process that was stopped while it held the mutex.

use crate::os::{
    liveness::{OwnerId, Owners},
    memory::SharedLayout,
    std_or_model::atomic::{AtomicU32, Ordering},
};

/// Maximum count of one process. Tests use a small value, so that one of them reaches it.
const COUNT_MAX: u32 = if cfg!(test) { 1_000 } else { u32::MAX };

/// An entry of the table. An entry whose count is zero is free.
#[cfg_attr(all(test, any(executor_loom, executor_shuttle)), derive(Default))]
#[repr(C)]
pub(crate) struct OwnerCount {
    owner: AtomicU32,
    taken: AtomicU32,
    /// How many of `taken` were given back without the mutex. Both words may wrap around; their
    /// difference stays at or below [`COUNT_MAX`].
    returned: AtomicU32,
}

// SAFETY: `repr(C)`, atomics only, no drop, and all zeros is a valid value.
unsafe impl SharedLayout for OwnerCount {}

impl OwnerCount {
    fn count(&self) -> u32 {
        // Read `returned` first. If something is taken and returned between the two reads, the
        // result is then too high and never too low, so a process that is counted finds its own
        // entry.
        //
        // Acquire: what the process did before it returned happens before what follows from this
        // count.
        let returned = self.returned.load(Ordering::Acquire);
        // Acquire: if this reads a `taken` that another process wrote to claim the entry, the owner
        // is visible, too.
        self.taken.load(Ordering::Acquire).wrapping_sub(returned)
    }

    /// Sets the count. The caller holds the mutex.
    fn set_count(&self, count: u32) {
        // A unit that is returned after this load is subtracted from the new count as well.
        self.taken
            .store(self.returned.load(Ordering::Relaxed).wrapping_add(count), Ordering::Release);
    }

    fn is_of(&self, owner: OwnerId) -> bool {
        self.count() > 0 && self.owner.load(Ordering::Relaxed) == owner.bits()
    }

    fn is_dead(&self, owners: &impl Owners) -> bool {
        OwnerId::from_bits(self.owner.load(Ordering::Relaxed))
            .is_none_or(|owner| !owners.is_alive(owner))
    }
}

/// Iterates over all entries, beginning at the position that follows from the owner's number. Its
/// entry is found there at once, unless several owners share the position.
fn from_home(table: &[OwnerCount], owner: OwnerId) -> impl Iterator<Item = &OwnerCount> {
    let (before, after) =
        table.split_at((owner.bits() as usize).checked_rem(table.len()).unwrap_or(0));
    after.iter().chain(before)
}

/// Adds one to this process's count. Returns `false` if the table has no entry left for another
/// process. The caller holds the mutex.
///
/// # Panics
/// If this process's count is at its maximum, because billions of guards were leaked. One more
/// would make the count zero, and a writer would be let in beside the readers.
pub(crate) fn add(table: &[OwnerCount], owner: OwnerId) -> bool {
    let own = from_home(table, owner).find(|entry| entry.is_of(owner));
    let Some(entry) = own.or_else(|| from_home(table, owner).find(|entry| entry.count() == 0))
    else {
        return false;
    };
    let count = entry.count();
    assert!(count < COUNT_MAX, "this process holds it {count} times: guards were leaked");
    entry.owner.store(owner.bits(), Ordering::Relaxed);
    entry.taken.store(entry.taken.load(Ordering::Relaxed).wrapping_add(1), Ordering::Release);
    kill_point!(OwnerCounted);
    true
}

/// Subtracts one from this process's count. Returns `false` if it was zero. The caller holds the
/// mutex.
pub(crate) fn remove(table: &[OwnerCount], owner: OwnerId) -> bool {
    let Some(entry) = from_home(table, owner).find(|entry| entry.is_of(owner)) else {
        return false;
    };
    entry.taken.store(entry.taken.load(Ordering::Relaxed).wrapping_sub(1), Ordering::Release);
    kill_point!(OwnerDiscounted);
    true
}

/// Like [`remove`], but needs no mutex. Only a process that is counted may call this, so its entry
/// is not reused for another process meanwhile.
pub(crate) fn give_back(table: &[OwnerCount], owner: OwnerId) -> bool {
    let Some(entry) = from_home(table, owner).find(|entry| entry.is_of(owner)) else {
        return false;
    };
    entry.returned.fetch_add(1, Ordering::Release);
    kill_point!(OwnerGaveBack);
    true
}

/// Returns how many are held in total.
pub(crate) fn total(table: &[OwnerCount]) -> u32 {
    table.iter().fold(0, |sum, entry| sum.saturating_add(entry.count()))
}

/// Returns how many are held by live processes. This is for callers that do not hold the mutex.
pub(crate) fn total_of_the_living(table: &[OwnerCount], owners: &impl Owners) -> u32 {
    let living = table.iter().filter(|entry| entry.count() > 0 && !entry.is_dead(owners));
    living.fold(0, |sum, entry| sum.saturating_add(entry.count()))
}

/// Takes back what dead processes hold, and returns how many that were. The caller holds the mutex.
pub(crate) fn reclaim(table: &[OwnerCount], owners: &impl Owners) -> u32 {
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
