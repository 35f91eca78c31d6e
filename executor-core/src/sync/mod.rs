//! Locks and related types in shared memory, for threads of several processes. They survive the
//! death of any process.
//!
//! ```text
//!   Lock, RLock, Semaphore,        handles: serde, Clone, Send + Sync; guards
//!   Condition, Event, Barrier
//!        │ each is a block of        `heap/block.rs`: many blocks in one anonymous file
//!        ▼
//!   raw: RobustMutex, Bell         words in that memory: the mutex's holder; a place to sleep
//!        │ which process is that, and is it alive?
//!        ▼
//!   os/liveness.rs                 a user of a file locks the byte of it at the user's number
//! ```
//!
//! # The foundation: words in shared memory
//!
//! Everything in this crate that needs mutual exclusion between processes builds on these words
//! (the queue does, too). It takes a block of shared memory and a layout of atomics in it:
//!
//! ```text
//! #[repr(C)]
//! #[cfg_attr(all(test, any(executor_loom, executor_shuttle)), derive(Default))]
//! struct Layout { mutex: RobustMutex, bell: Bell, head: AtomicU64, tail: AtomicU64 }
//! // SAFETY: `repr(C)`, atomics only, no drop, and all zeros is a valid value.
//! unsafe impl SharedLayout for Layout {}
//!
//! // Small blocks share a file, large blocks have their own.
//! let block = Block::allocate(BlockKind::Queue, size_of::<Layout>() + bytes)?;
//! let layout: &Layout = block.part(0);            // all zeros; checked: bounds, alignment
//! let bytes: NonNull<u8> = block.bytes(size_of::<Layout>(), bytes);
//!
//! // In the object's Serialize and Deserialize; `part` and `bytes` work in the other process, too.
//! block.serialize(serializer)
//! // Checked: its kind and bounds, and that it overlaps no other block. Its content is not.
//! let block = Block::deserialize(deserializer, &[BlockKind::Queue], |len| len >= size_of::<Layout>())?;
//!
//! let guard = layout.mutex.lock_until(block.owners(), deadline)?; // no system call, if free
//! if guard.owner_died() { /* the previous holder died in there: repair the layout */ }
//! ```
//!
//! - [`RobustMutex`](raw::RobustMutex) is one word; zero means "free". It never waits for ever for
//!   a dead holder: a waiter asks the kernel about the holder at once, and again every
//!   [`RECHECK`](raw::RECHECK) (100 ms). The next holder after a death learns of it from
//!   [`owner_died`](raw::RobustGuard::owner_died), and must repair under that guard what needs
//!   repair; from then on the lock is an ordinary one. So order the stores such that every
//!   intermediate state can be recognised. It is best if a single store makes the change.
//! - [`Bell`](raw::Bell) is one word to sleep on until something under the mutex has changed. Every
//!   sleep ends after `RECHECK` at the latest, and the sleeper then looks again: a notifier may
//!   have died between its store and its wake-up, or another sleeper after it was woken. So no
//!   wake-up is lost for longer than that.
//! - `owners()` is an [`Owners`](crate::os::liveness::Owners): `me()` names this process in a word,
//!   and `is_alive(id)` asks about another process. A word that holds an `OwnerId` still says which
//!   process was there after that process has died, because numbers are not reused.
//!
//! None of these allocate, or make a system call while there is no contention. All of it can be run
//! under the model checkers (`os/std_or_model.rs`): take the atomics from there, and `Owners` as a
//! parameter.
//!
//! # When a process dies
//!
//! | process that dies | consequence |
//! |---|---|
//! | the holder of a lock | the next holder gets the lock within 100 ms, and is told |
//! | one that released, before it woke a sleeper | the sleeper looks by itself within 100 ms |
//! | a woken sleeper, before it took its item | the others look by themselves within 100 ms |
//! | a waiter | it leaves at most a mark that asks for a wake-up, perhaps of nobody |
//!
//! # When a process is stopped
//!
//! A stopped process is alive, so its lock is not taken away. Each object contains a mutex, and a
//! process may be stopped while it holds that. So no method waits for such a mutex for longer than
//! its caller wants to wait: it cannot be taken without a deadline. To give something back, to
//! leave, or to be dropped does not need the mutex. If it cannot be taken at once, a change of one
//! word records the same, and the next holder of the mutex does the rest.
//!
//! In a process that was forked by hand, handles are those of a separate user, and inherited guards
//! do nothing.

// These counts decide who may access memory, so no sum may wrap unnoticed.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

/// Implements what all handles have in common: they can be sent, and two of them are equal if they
/// are handles of the same object.
///
/// `$field` is the handle's block, `$kinds` are the block's permitted kinds, and `$fits` checks its
/// length.
macro_rules! travels {
    ($type:ident, $field:ident, $kinds:expr, $fits:expr) => {
        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                self.$field.serialize(serializer)
            }
        }

        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                Ok($type {
                    $field: $crate::heap::block::Block::deserialize(deserializer, $kinds, $fits)?,
                })
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
mod wait_slots;

mod condition;
mod event;
mod guard;
pub(crate) mod lock;
#[cfg(all(test, any(executor_loom, executor_shuttle)))]
pub(crate) mod models;
pub(crate) mod owner_counts;
pub(crate) mod raw;
mod rlock;
mod semaphore;
#[cfg(all(test, not(any(executor_loom, executor_shuttle))))]
pub(crate) mod unused_wake_ups;
pub(crate) mod word_wait;

pub use barrier::{Barrier, BarrierError};
pub use condition::Condition;
pub use event::Event;
pub(crate) use guard::Recover;
pub use guard::{LockResult, OwnerDied, ReleaseError};
pub use lock::{Lock, LockGuard};
pub use rlock::{RLock, RLockGuard};
pub use semaphore::{BoundedSemaphore, Permit, Semaphore};
