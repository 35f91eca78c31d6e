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

/// Locks a mutex of std, also after a holder has panicked: its panic was reported where it came, and is not ours.
pub(crate) fn lock<T>(mutex: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// As [`lock`], of a mutex that is a checker's in a model.
pub(crate) fn lock_of_model<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Starts a thread that nobody waits for; in a model, [`join_started`] does.
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
        /// All threads of a model are one thread of the system.
        static STARTED: RefCell<Vec<JoinHandle<()>>> = const { RefCell::new(Vec::new()) };
    }

    pub(crate) fn start(_name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let thread = thread::spawn(run);
        STARTED.with_borrow_mut(|started| started.push(thread));
        Ok(())
    }

    /// What is not over by itself is a deadlock.
    pub(crate) fn join_started() {
        while let Some(thread) = STARTED.with_borrow_mut(Vec::pop) {
            thread.join().unwrap();
        }
    }
}

/// Whether this is built for a model: sizes are tiny then, time stands still, nobody spins.
pub(crate) const MODEL: bool = cfg!(all(test, any(executor_loom, executor_shuttle)));
/// The same, for the one that tries everything.
pub(crate) const LOOM: bool = cfg!(all(test, executor_loom));

/// Stands in a model for memory that one side fills, the other one looks at, and the first one fills again.
///
/// Shared words are atomics, so no checker reports a race on them, and loom runs each thread in program order: a load that
/// the processor moves behind the store by which its memory is given back cannot be seen in their values. So a shadow lies
/// beside each of these words. Loom demands that whoever [fills](Self::fill) it comes after all who [looked](Self::look) at it
/// before, as the words' orderings say; with one of them weakened, the model fails. Everywhere else it is nothing.
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

// SAFETY: there is nothing in it; loom reports who would race.
#[cfg(all(test, executor_loom))]
unsafe impl Sync for Shadow {}

impl Shadow {
    /// Where no model looks.
    #[cfg(not(all(test, any(executor_loom, executor_shuttle))))]
    pub(crate) const NOTHING: &Shadow = &Shadow {};

    /// The memory beside this is being written, by the only one who may.
    #[inline(always)]
    pub(crate) fn fill(&self) {
        #[cfg(all(test, executor_loom))]
        self.cell.with_mut(|_| ());
    }

    /// The memory beside this is being read, and not given back yet.
    #[inline(always)]
    pub(crate) fn look(&self) {
        #[cfg(all(test, executor_loom))]
        self.cell.with(|_| ());
    }
}
