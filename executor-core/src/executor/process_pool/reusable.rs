//! One executor for the whole program, which is kept and reused: [`reusable`].
//!
//! ```text
//!  reusable() ───────────────► the kept one, whatever its options ─┐
//!  builder().….reusable() ──┬─► the kept one: same options ────────┼─► a handle
//!                           │      └── resized, if only `max_workers` differs
//!                           └─► a new one, which is kept from now on
//!                                  └── the old one ends when its last handle is dropped
//! ```

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use super::{Isolation, OnDrop, ProcessPoolBuilder, ProcessPoolExecutor};
use crate::{error::BuildError, os::fork::PerProcess, pool::Shutdown};

/// How long workers of the reusable executor may be idle, unless the options say something else.
/// With a lower value, a program that computes now and then starts workers again and again. With a
/// higher value, their memory is kept although nobody needs them.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);

/// The executor that is kept, and its options except the number of workers.
struct Kept {
    options: ProcessPoolBuilder,
    executor: ProcessPoolExecutor,
}

/// In a fork there is none, because a copy of the process has no workers.
static KEPT: PerProcess<Mutex<Option<Kept>>> = PerProcess::new(|| Mutex::new(None));

/// Held only to look, and never while user code runs.
fn kept() -> MutexGuard<'static, Option<Kept>> {
    KEPT.get().lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns the program's reusable executor, whatever its options are. If there is none, one with
/// default options is created.
///
/// Use it where code that is called again and again needs an executor and nobody has passed one.
/// Its workers are started once, and not with each call. All callers in this process share it.
/// [`ProcessPoolBuilder::reusable`] asks for one with certain options.
///
/// Workers that are idle for 10 seconds leave, unless an
/// [`idle_timeout`](ProcessPoolBuilder::idle_timeout) is set, and come back on demand. The executor
/// is kept until the [end of the program](ProcessPoolExecutor#the-end-of-the-program), which
/// finishes what it has accepted. Dropping the returned handle ends nothing. After a
/// [`shutdown`](ProcessPoolExecutor::shutdown), or if it is broken, the next call creates a new
/// one. So does the first call in a process that a `fork` has made, and each worker has one of its
/// own.
///
/// # Errors
/// The same as [`ProcessPoolBuilder::build`], if a new one is created.
///
/// ```
/// use executor::prelude::*;
///
/// #[task]
/// fn pid() -> u32 { std::process::id() }
///
/// fn compute() -> u32 {
///     executor::reusable().unwrap().submit(pid::task()).result().unwrap()
/// }
///
/// #[executor::main]
/// fn main() {
///     assert_eq!(compute(), compute(), "one worker does both");
/// }
/// ```
pub fn reusable() -> Result<ProcessPoolExecutor, BuildError> {
    ProcessPoolBuilder::default().kept(Wanted::Any, OnDrop::Finish)
}

/// Which executor a caller can use.
#[derive(PartialEq)]
enum Wanted {
    /// The one that is there.
    Any,
    /// One with the same options.
    Same,
}

/// A handle that is dropped without waiting for the end of the executor, should it be the last one.
struct Brief(Option<ProcessPoolExecutor>);

impl Drop for Brief {
    fn drop(&mut self) {
        if let Some(executor) = self.0.take() {
            executor.release();
        }
    }
}

impl ProcessPoolBuilder {
    /// Returns the program's [reusable executor](reusable) if it has these options, and otherwise
    /// creates another one, which is kept for reuse from now on.
    ///
    /// - If only [`max_workers`](Self::max_workers) differs, the executor is
    ///   [resized](ProcessPoolExecutor::resize). If it is not set here, the executor keeps its
    ///   number of workers.
    /// - If any other option differs, also if the initializer is another one or has other
    ///   arguments, the workers are new processes. The old executor stays usable for everybody who
    ///   has a handle of it, so no task is refused because somebody else has changed the options.
    ///   When its last handle is dropped, it finishes what it has accepted, in the background.
    ///   [`reusable_replacing`](Self::reusable_replacing) ends it at once.
    ///
    /// An initializer whose arguments contain descriptors, such as a queue, is different each time.
    /// So is a [standard stream](Self::stdout) that is a file, unless the builder is a clone.
    ///
    /// # Errors
    /// The same as [`build`](Self::build). The executor that is kept does not change then.
    ///
    /// ```
    /// # use executor::prelude::*;
    /// #[task]
    /// fn set(level: u32) { executor::worker_state::set(level); }
    ///
    /// #[task]
    /// fn level() -> u32 { executor::with_worker_state(|level: &mut u32| *level) }
    ///
    /// fn of_level(wanted: u32) -> u32 {
    ///     let builder = ProcessPoolExecutor::builder().max_workers(1).initializer(set::task(wanted));
    ///     builder.reusable().unwrap().submit(level::task()).result().unwrap()
    /// }
    ///
    /// #[executor::main]
    /// fn main() {
    ///     assert_eq!((of_level(1), of_level(1), of_level(2)), (1, 1, 2));
    ///     let pool = executor::reusable().unwrap();
    ///     assert_eq!(pool.submit(level::task()).result().unwrap(), 2, "the one that is kept now");
    /// }
    /// ```
    pub fn reusable(self) -> Result<ProcessPoolExecutor, BuildError> {
        self.reusable_replacing(OnDrop::Finish)
    }

    /// Does the same as [`reusable`](Self::reusable), and decides what happens to the unfinished
    /// work of an executor that is replaced because the options have changed:
    ///
    /// - [`OnDrop::Finish`]: nothing. It accepts tasks until its last handle is dropped.
    /// - [`OnDrop::CancelPending`]: it accepts no more tasks and finishes those that have begun.
    ///   The others end with [`TaskError::Cancelled`](crate::TaskError::Cancelled).
    /// - [`OnDrop::Kill`]: its workers are killed, and its tasks end with
    ///   [`TaskError::Shutdown`](crate::TaskError::Shutdown).
    ///
    /// It does not wait for that.
    ///
    /// # Errors
    /// The same as [`reusable`](Self::reusable).
    ///
    /// ```
    /// # use executor::{OnDrop, prelude::*};
    /// #[task]
    /// fn forever() { loop { std::thread::park() } }
    /// #[task]
    /// fn mode() -> String { std::env::var("MODE").unwrap() }
    ///
    /// #[executor::main]
    /// fn main() {
    ///     let builder = || ProcessPoolExecutor::builder().max_workers(1);
    ///     let old = builder().env("MODE", "1").reusable().unwrap().submit(forever::task());
    ///     let new = builder().env("MODE", "2").reusable_replacing(OnDrop::Kill).unwrap();
    ///     assert!(old.result().unwrap_err().is_shutdown());
    ///     assert_eq!(new.submit(mode::task()).result().unwrap(), "2");
    /// }
    /// ```
    pub fn reusable_replacing(self, replaced: OnDrop) -> Result<ProcessPoolExecutor, BuildError> {
        self.kept(Wanted::Same, replaced)
    }

    fn kept(mut self, wanted: Wanted, replaced: OnDrop) -> Result<ProcessPoolExecutor, BuildError> {
        let max_workers = self.max_workers.take();
        if max_workers.is_some_and(|max| self.min_workers.is_some_and(|min| min > max)) {
            // Says what is wrong, and does so whether or not an executor is kept.
            self.max_workers = max_workers;
            return self.build();
        }
        // With isolation, each worker is kept for one task.
        if self.starting.isolation == Isolation::PerWorker {
            self.lifespan.idle_timeout.get_or_insert(IDLE_TIMEOUT);
        }
        let mut built = Brief(None);
        loop {
            let (fits, mut present) = match &*kept() {
                Some(Kept { options, executor }) => {
                    let fits = wanted == Wanted::Any || options.is_same(&self);
                    (fits, Brief(Some(executor.clone())))
                }
                None => (false, Brief(None)),
            };
            if fits && let Some(executor) = present.0.take_if(|one| one.inner().is_open()) {
                return executor.with_workers(max_workers);
            }
            let new = match built.0.take() {
                Some(new) => new,
                // Without the lock, because what is logged there is the user's code.
                None => {
                    let mut options = self.clone();
                    options.max_workers = max_workers;
                    options.build()?
                }
            };
            let mut kept = kept();
            let there = kept.as_ref().map(|kept| &kept.executor.handle);
            let seen = present.0.as_ref().map(|executor| &executor.handle);
            let unchanged = match (there, seen) {
                (Some(there), Some(seen)) => Arc::ptr_eq(there, seen),
                (None, None) => true,
                _ => false,
            };
            if !unchanged {
                // Another caller was faster. The new one may be needed in the end, or not.
                built = Brief(Some(new));
                continue;
            }
            let old = kept.replace(Kept { options: self, executor: new.clone() });
            drop(kept);
            let old = Brief(old.map(|kept| kept.executor));
            if let Some(executor) = &old.0 {
                match replaced {
                    OnDrop::Finish => {}
                    OnDrop::CancelPending => {
                        let how = Shutdown { cancel_pending: true, ..Shutdown::default() };
                        executor.inner().shutdown(how);
                    }
                    OnDrop::Kill => executor.kill_workers(),
                }
            }
            return Ok(new);
        }
    }
}

impl ProcessPoolExecutor {
    fn with_workers(self, max_workers: Option<usize>) -> Result<Self, BuildError> {
        match max_workers {
            Some(max_workers) if max_workers != self.max_workers() => {
                self.resize(max_workers).map(|()| self)
            }
            _ => Ok(self),
        }
    }
}
