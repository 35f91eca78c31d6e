//! What threads and processes synchronise with, wherever a wake-up could be lost: std's, or a model checker's.
//!
//! Under `--cfg executor_loom` and `--cfg executor_shuttle` the tests named `models` take the very code that runs in
//! production through the interleavings that are possible (loom: all of a small case, with the reorderings that the
//! memory model allows; shuttle: many of a larger one). Everywhere else this is nothing but other names for std.
//!
//! The names have a prefix because a `--cfg` reaches the dependencies too, and some have a `loom` of their own.

#[cfg(all(test, executor_loom))]
pub(crate) use loom::{
    lazy_static,
    sync::{Condvar, Mutex, MutexGuard, atomic},
    thread,
};
#[cfg(all(test, executor_shuttle))]
pub(crate) use shuttle::{
    lazy_static,
    sync::{Condvar, Mutex, MutexGuard, atomic},
    thread,
};
#[cfg(not(all(test, any(executor_loom, executor_shuttle))))]
pub(crate) use std::sync::{Condvar, Mutex, MutexGuard, atomic};

/// Whether this is built for a model: sizes are tiny then, time stands still, nobody spins.
pub(crate) const MODEL: bool = cfg!(all(test, any(executor_loom, executor_shuttle)));
/// The same, for the one that tries everything.
pub(crate) const LOOM: bool = cfg!(all(test, executor_loom));
