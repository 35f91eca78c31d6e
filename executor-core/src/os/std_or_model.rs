//! The synchronisation primitives for all code where a wake-up could be lost: std's, or a model
//! checker's.
//!
//! Under `--cfg executor_loom` and `--cfg executor_shuttle`, the tests named `models` run the
//! production code through its possible interleavings. loom tries all interleavings of a small
//! case, including the reorderings that the memory model allows. shuttle tries many interleavings
//! of a larger case. In all other builds, this module only gives std's types other names.
//!
//! The `cfg` names have a prefix because a `--cfg` also applies to dependencies, and some of them
//! have a `loom` of their own.

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

/// Locks a mutex of std, even after a holder has panicked. That panic was reported where it
/// happened, and does not concern this library.
pub(crate) fn lock<T>(mutex: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Locks a mutex as [`lock`] does. In a model it is the checker's mutex.
pub(crate) fn lock_of_model<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Starts a thread that is not joined. In a model, [`join_started`] joins it.
#[cfg(not(all(test, any(executor_loom, executor_shuttle))))]
pub(crate) fn start(name: &str, run: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
    std::thread::Builder::new().name(name.into()).spawn(run).map(drop)
}

#[cfg(all(test, any(executor_loom, executor_shuttle)))]
pub(crate) use started::{join_started, start};

#[cfg(all(test, any(executor_loom, executor_shuttle)))]
mod started {
    use std::{cell::RefCell, io};

    use super::thread::{self, JoinHandle};

    thread_local! {
        /// The started threads. All threads of a model are one thread of the system.
        static STARTED: RefCell<Vec<JoinHandle<()>>> = const { RefCell::new(Vec::new()) };
    }

    pub(crate) fn start(_name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let thread = thread::spawn(run);
        STARTED.with_borrow_mut(|started| started.push(thread));
        Ok(())
    }

    /// Joins all started threads. A thread that does not end by itself is a deadlock.
    pub(crate) fn join_started() {
        while let Some(thread) = STARTED.with_borrow_mut(Vec::pop) {
            thread.join().unwrap();
        }
    }
}

/// Whether this is built for a model. Then sizes are tiny, time stands still, and nothing spins.
pub(crate) const MODEL: bool = cfg!(all(test, any(executor_loom, executor_shuttle)));
/// Whether this is built for loom, the checker that tries every interleaving.
pub(crate) const LOOM: bool = cfg!(all(test, executor_loom));

/// In a model, stands for memory that one side fills, the other side reads, and the first side then
/// fills again.
///
/// Shared words are atomics, so no checker reports a race on them, and loom runs each thread in
/// program order. The processor may move a load after the store that gives the memory back. The
/// words' values cannot show this. So a shadow accompanies each of these words. Loom requires that
/// a [fill](Self::fill) happens after all earlier [looks](Self::look), according to the words'
/// orderings. If one of the orderings is weakened, the model fails. Outside of models a shadow is
/// empty.
#[cfg_attr(not(all(test, executor_loom)), derive(Default))]
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Shadow {
    #[cfg(all(test, executor_loom))]
    cell: loom::cell::UnsafeCell<()>,
}

#[cfg(all(test, executor_loom))]
impl Default for Shadow {
    fn default() -> Self {
        Shadow { cell: loom::cell::UnsafeCell::new(()) }
    }
}

// SAFETY: it contains no data, and loom reports any race on it.
#[cfg(all(test, executor_loom))]
unsafe impl Sync for Shadow {}

impl Shadow {
    /// The shadow for memory that no model checks.
    #[cfg(not(all(test, any(executor_loom, executor_shuttle))))]
    pub(crate) const NOTHING: &Shadow = &Shadow {};

    /// Records that the memory beside this is being written, by its only writer.
    #[inline(always)]
    pub(crate) fn fill(&self) {
        #[cfg(all(test, executor_loom))]
        self.cell.with_mut(|_| ());
    }

    /// Records that the memory beside this is being read, and has not been given back yet.
    #[inline(always)]
    pub(crate) fn look(&self) {
        #[cfg(all(test, executor_loom))]
        self.cell.with(|_| ());
    }
}
