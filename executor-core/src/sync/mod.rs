//! Locks and their kin for threads of several processes, in shared memory, which survive the death of anybody.
//!
//! ```text
//!   Lock, RLock, Semaphore,        handles: serde, Clone, Send + Sync; guards
//!   Condition, Event, Barrier
//!        │ each is a block of        `heap/block.rs`: many blocks in one anonymous file
//!        ▼
//!   raw: RobustMutex, Bell         words in that memory: who holds it; where one sleeps
//!        │ who is that, does it live?
//!        ▼
//!   os/liveness.rs                 each user of a file holds a kernel lock on a byte of it, its number
//! ```
//!
//! # The ground: words in shared memory
//!
//! For everything in this crate that needs mutual exclusion between processes (the queue, too). What one needs is a block
//! of shared memory, and a layout of atomics in it:
//!
//! ```text
//! #[repr(C)]
//! #[cfg_attr(all(test, any(executor_loom, executor_shuttle)), derive(Default))]
//! struct Layout { mutex: RobustMutex, bell: Bell, head: AtomicU64, tail: AtomicU64 }
//! // SAFETY: `repr(C)`, atomics only, no drop, zero is a value.
//! unsafe impl SharedLayout for Layout {}
//!
//! let block = Block::allocate(Kind::Queue, size_of::<Layout>() + bytes)?; // small ones share a file, large have their own
//! let layout: &Layout = block.part(0);            // all zeros; checked: bounds, alignment
//! let bytes: NonNull<u8> = block.bytes(size_of::<Layout>(), bytes);
//!
//! // In the object's Serialize and Deserialize; `part` and `bytes` are as good in the other process.
//! block.serialize(serializer)
//! // Its kind and bounds are checked, also that it overlaps nothing else; its content is anybody's.
//! let block = Block::deserialize(deserializer, &[Kind::Queue], |len| len >= size_of::<Layout>())?;
//!
//! let guard = layout.mutex.lock_until(block.owners(), deadline)?; // no system call, if free
//! if guard.owner_died() { /* whoever held it died in there: bring the layout into order */ }
//! ```
//!
//! - [`RobustMutex`](raw::RobustMutex) is one word, zero is "free". It never blocks for ever on the dead: who waits asks
//!   the kernel about the holder at once, and each [`RECHECK`](raw::RECHECK) (100 ms). The next one after a death is told by
//!   [`owner_died`](raw::RobustGuard::owner_died), and the lock is an ordinary one again: what is to be repaired is
//!   repaired under that guard. So order stores such that each moment can be recognised; best, one store is the act.
//! - [`Bell`](raw::Bell) is one word to sleep on until something under the mutex has changed. All sleeps end after
//!   `RECHECK` at the latest, and whoever slept looks again: a notifier may have died between its store and its wake-up,
//!   or a sleeper after it was woken. No wake-up is lost for longer than that.
//! - `owners()` is an [`Owners`](crate::os::liveness::Owners): `me()` names this process in a word, `is_alive(id)` asks
//!   about another. A word that holds an `OwnerId` can say who was there when it died: numbers are not given twice.
//!
//! None of it allocates or makes a system call where there is no contention. All of it is models' ground
//! (`os/sync.rs`): take atomics from there, and `Owners` as a parameter.
//!
//! # When somebody dies
//!
//! | who dies | then |
//! |---|---|
//! | the holder of a lock | the next one gets it within 100 ms, and is told |
//! | one that released, before it woke a sleeper | the sleeper looks by itself within 100 ms |
//! | a sleeper that was woken, before it took what it was woken for | the others look by themselves within 100 ms |
//! | one that waits | it leaves nothing: a mark that says "wake somebody", at worst for nobody |
//!
//! # When somebody is stopped
//!
//! A stopped process is alive, so nobody takes its lock. Each object has a mutex of its own inside, and a process may be stopped
//! while it has that. So nobody waits for one of these for longer than the caller wants to wait: there is no way to take it
//! without a deadline. Who gives something back, leaves, or is dropped does not need it: where it is not to be had at once, a
//! change of one word says the same, and whoever has the mutex next does the rest.
//!
//! In a process that was forked by hand, handles are those of a user of its own; guards that came along are inert.

// What is counted here decides who may touch memory: no sum wraps unseen.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

/// What handles have in common: they travel, and two are equal if they are of the same object.
///
/// `$field` is their block; `$kinds` what it may be of, and `$fits` how long.
macro_rules! travels {
    ($type:ident, $field:ident, $kinds:expr, $fits:expr) => {
        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                self.$field.serialize(serializer)
            }
        }

        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                Ok($type { $field: $crate::heap::block::Block::deserialize(deserializer, $kinds, $fits)? })
            }
        }

        impl PartialEq for $type {
            /// Whether both are handles of the same object.
            fn eq(&self, other: &Self) -> bool {
                self.$field == other.$field
            }
        }

        impl Eq for $type {}
    };
}
mod barrier;
mod cells;
pub(crate) mod changed;
mod condition;
mod event;
mod guard;
pub(crate) mod holders;
pub(crate) mod lock;
#[cfg(all(test, any(executor_loom, executor_shuttle)))]
pub(crate) mod models;
pub(crate) mod raw;
mod rlock;
mod semaphore;
#[cfg(all(test, not(any(executor_loom, executor_shuttle))))]
pub(crate) mod wakes;

pub use barrier::{Barrier, BarrierError};
pub use condition::Condition;
pub use event::Event;
pub(crate) use guard::Recover;
pub use guard::{LockResult, OwnerDied, ReleaseError};
pub use lock::{Lock, LockGuard};
pub use rlock::{RLock, RLockGuard};
pub use semaphore::{BoundedSemaphore, Permit, Semaphore};
