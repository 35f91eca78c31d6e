//! Python's `multiprocessing.Pool`: a thin layer on top of [`ProcessPoolExecutor`].
//!
//! ```text
//!  Pool::apply_async ──► executor.submit ──► TaskFuture ────────────────► AsyncResult<T>
//!  Pool::map         ──► Map over the whole input, all of it submitted ─► Vec, when all have ended
//!  Pool::map_async   ──► the same ──► MapResults ──► JoinAll ──────────► AsyncResult<Vec<T>>
//!  Pool::imap        ──► Map, lazily ───────────────────────────────────► IMap
//!
//!  Running ──close──► Closed ──no IMap left, or join──► executor.shutdown
//!     └───────────────────┴──terminate, drop──► Terminated ──► executor.terminate_workers
//! ```
//!
//! The executor owns the workers and the tasks. This module owns only the phase, and the list of
//! results whose errors nobody has read ([`unhandled_errors`]). The executor also handles the death
//! of a worker: only the call that the worker was running fails. When this process dies, the
//! workers end, too.
//!
//! This module implements no waiting of its own. Each wait is for the end of a task, of a map, or
//! of the executor. These ends always come, whichever process dies. In a fork of this process, all
//! handles are inert.

mod async_result;
mod builder;
mod chunked;
mod imap;
mod starmap;
mod unhandled_errors;

use std::{
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU8, AtomicUsize, Ordering},
    },
    task::Wake,
    time::{Duration, Instant},
};

pub use async_result::AsyncResult;
pub use builder::PoolBuilder;
pub use chunked::Chunked;
pub use imap::IMap;
pub use starmap::MakeTask;
use unhandled_errors::UnhandledErrors;

use super::{MapTask, ProcessPoolExecutor, ShutdownOptions};
use crate::{
    error::{BuildError, TaskError},
    future::{TaskFuture, cell::Cell, join_all::JoinAll, map_results::MapResults},
    pool::next_task_ids,
    task::{IntoTask, TaskArgs, TaskFn},
};

/// A fixed number of worker processes with the interface of Python's `multiprocessing.Pool`.
///
/// All workers are started at once, and are replaced when they end. The pool is a layer on top of
/// [`ProcessPoolExecutor`], which has more features. It uses Python's names, for programs that are
/// ported from Python. Python's pool hangs or loses results in some situations. This one does not:
///
/// - A call whose worker dies fails with [`TaskError::WorkerLost`], and no other call fails. (In
///   Python it never ends.)
/// - An error in one item of a map does not affect the other items. All of them run, and
///   [`map_collect`](Self::map_collect) returns each item's own result.
/// - Pending calls fail with [`TaskError::Shutdown`] when the pool is terminated, so nobody waits
///   for ever.
/// - [`imap`](Self::imap) reads its input as results are consumed, so the input may be endless.
/// - An error that nobody reads is logged (with `tracing`), at the latest by [`join`](Self::join).
/// - Results that nobody reads, and errors of any size, do not block other results.
///
/// **Dropping** a pool terminates it, as the end of Python's `with` does: unfinished calls are not
/// finished. To finish them, call [`close`](Self::close) and [`join`](Self::join) first. A drop
/// without `close` or `terminate` logs a warning. The end of the program terminates a pool that
/// still exists, as in Python, and calls the error callbacks of the unfinished calls.
///
/// After `close` or `terminate`, calls fail with [`TaskError::Shutdown`], which corresponds to
/// Python's "Pool not running".
///
/// ```
/// use executor::{Pool, prelude::*};
///
/// #[task]
/// fn square(x: u64) -> u64 { x * x }
///
/// #[task]
/// fn add(a: i64, b: i64) -> i64 { a + b }
///
/// #[executor::main]
/// fn main() -> Result<(), Box<dyn std::error::Error>> {
///     let pool = Pool::new(4)?;
///     assert_eq!(pool.apply(add::task(1, 2))?, 3);
///     assert_eq!(pool.map(square::task, [1, 2, 3])?, [1, 4, 9]);
///     assert_eq!(pool.starmap(add::task, [(1, 2), (3, 4)])?, [3, 7]);
///     let later = pool.apply_async(square::task(5));
///     assert_eq!(later.get()?, 25);
///     pool.close();
///     pool.join()?;
///     Ok(())
/// }
/// ```
pub struct Pool {
    shared: Arc<Shared>,
}

struct Shared {
    executor: ProcessPoolExecutor,
    phase: AtomicU8,
    /// Number of lazy maps that have not ended. They still submit tasks.
    lazy_maps: AtomicUsize,
    unhandled: Arc<UnhandledErrors>,
    /// The maps whose results are still being collected by `map_async`.
    joining: Mutex<Vec<Weak<JoinAll>>>,
}

/// Phase: the pool accepts calls.
const RUNNING: u8 = 0;
/// Phase: the pool accepts no more calls, and finishes the accepted ones.
const CLOSED: u8 = 1;
/// Phase: the pool accepts no more calls, and its workers have been terminated.
const TERMINATED: u8 = 2;

impl Shared {
    fn phase(&self) -> u8 {
        self.phase.load(Ordering::SeqCst)
    }

    fn is_running(&self) -> bool {
        self.phase() == RUNNING
    }

    /// Registers a lazy map. Returns whether the pool accepts calls. [`leave`](Self::leave) must
    /// follow in either case.
    fn enter(&self) -> bool {
        // Count first, then read the phase. `close` sets the phase first, then reads the count. So
        // either this call sees the phase, or `close` sees the map and leaves the shutdown to
        // `leave`.
        self.lazy_maps.fetch_add(1, Ordering::SeqCst);
        self.is_running()
    }

    /// Unregisters a lazy map that has ended or was refused.
    fn leave(&self) {
        if self.lazy_maps.fetch_sub(1, Ordering::SeqCst) == 1 && self.phase() == CLOSED {
            self.end();
        }
    }

    /// Shuts the executor down. The workers exit when they have finished the submitted tasks.
    fn end(&self) {
        self.executor.shutdown(false);
    }

    /// Collects the results of one `map_async`.
    fn join_all(&self, results: Arc<MapResults>, total: usize) -> Arc<JoinAll> {
        let all = JoinAll::new(results, total, Arc::clone(&self.unhandled.callbacks));
        if !all.is_done() {
            let mut joining = self.joining.lock().unwrap_or_else(PoisonError::into_inner);
            if joining.len() == joining.capacity() {
                // The list would grow now, so remove the finished maps first.
                joining.retain(|all| all.upgrade().is_some_and(|all| !all.is_done()));
            }
            joining.push(Arc::downgrade(&all));
        }
        all
    }

    /// Does the remaining work after the executor has ended: wakes collectors, finishes callbacks,
    /// and logs errors.
    fn settle(&self) {
        // The thread that took the last results may not have woken their collector yet. The results
        // are available, so wake it here. Waiting for the other thread to do it could deadlock: it
        // runs wakers, and this call may be in such a waker.
        let joining =
            std::mem::take(&mut *self.joining.lock().unwrap_or_else(PoisonError::into_inner));
        joining.iter().filter_map(Weak::upgrade).for_each(JoinAll::wake);
        self.unhandled.callbacks.flush();
        self.unhandled.log();
    }
}

/// The error for a call that the [`Pool`] does not allow in its current phase.
///
/// ```
/// use executor::{Pool, PoolError};
///
/// # #[executor::main]
/// # fn main() {
/// let pool = Pool::new(1).unwrap();
/// assert_eq!(pool.join(), Err(PoolError::StillRunning));
/// pool.terminate();
/// assert_eq!(pool.scope(|_| ()), Err(PoolError::NotRunning));
/// # }
/// ```
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PoolError {
    /// The pool was closed or terminated.
    #[error("Pool not running: it was closed or terminated")]
    NotRunning,
    /// The pool was neither closed nor terminated, so waiting for its end would never return.
    #[error("Pool is still running: `close` or `terminate` it before `join`")]
    StillRunning,
}

crate::debug::debug_is_display!(PoolError);

impl Pool {
    /// Creates a pool with this number of workers.
    ///
    /// # Errors
    /// The same as [`PoolBuilder::build`].
    pub fn new(processes: usize) -> Result<Self, BuildError> {
        Self::builder().processes(processes).build()
    }

    /// Returns a builder, for setting options.
    pub fn builder() -> PoolBuilder {
        PoolBuilder::default()
    }

    fn of(executor: ProcessPoolExecutor) -> Self {
        let unhandled = UnhandledErrors::new(Arc::clone(executor.inner().callbacks()));
        let (phase, lazy_maps) = (AtomicU8::new(RUNNING), AtomicUsize::new(0));
        let joining = Mutex::default();
        Pool { shared: Arc::new(Shared { executor, phase, lazy_maps, unhandled, joining }) }
    }

    /// Runs one call and waits for its value.
    ///
    /// # Errors
    /// The error that ended the task: see [`TaskError`]. [`TaskError::Shutdown`] if the pool is not
    /// running.
    pub fn apply<T: IntoTask>(&self, task: T) -> Result<T::Output, TaskError> {
        self.submit(task).result()
    }

    /// Submits one call and returns at once.
    pub fn apply_async<T: IntoTask>(&self, task: T) -> AsyncResult<T::Output> {
        AsyncResult::of_task(self.submit(task), &self.shared.unhandled)
    }

    fn submit<T: IntoTask>(&self, task: T) -> TaskFuture<T::Output> {
        if self.shared.is_running() {
            return self.shared.executor.submit(task);
        }
        let control = None;
        TaskFuture::new::<T::Function>(
            Cell::done(next_task_ids(1), control, TaskError::Shutdown),
            None,
        )
    }

    /// Runs a task for each item and waits for all of them. Returns the values in the order of the
    /// items.
    ///
    /// The whole input is read first, so it must be finite. All items run, even if one fails. Then
    /// the error of the first failed item, in the order of the input, is returned.
    /// [`map_collect`](Self::map_collect) also keeps the values of the other items.
    /// [`imap`](Self::imap) reads the input as results are consumed.
    /// [`chunk_size`](Self::chunk_size) sets how many items are sent together.
    ///
    /// # Errors
    /// The error of the first failed item. [`TaskError::Shutdown`] if the pool is not running.
    pub fn map<T, I, M>(&self, make: M, items: I) -> Result<Vec<T::Output>, TaskError>
    where
        T: MapTask,
        I: IntoIterator,
        M: FnMut(I::Item) -> T,
    {
        self.chunked(None).map(make, items)
    }

    /// Does the same as [`map`](Self::map), but returns the result of each item.
    ///
    /// ```
    /// use executor::{Pool, prelude::*};
    ///
    /// #[task]
    /// fn invert(x: f64) -> Result<f64, String> { if x == 0.0 { Err("zero".into()) } else { Ok(1.0 / x) } }
    ///
    /// #[executor::main]
    /// fn main() {
    ///     let pool = Pool::new(2).unwrap();
    ///     let inverses = pool.map_collect(invert::task, [4.0, 0.0, 2.0]);
    ///     assert_eq!(inverses.iter().flatten().collect::<Vec<_>>(), [&0.25, &0.5]);
    ///     assert!(inverses[1].is_err());
    ///     assert!(pool.map(invert::task, [4.0, 0.0, 2.0]).is_err());
    ///     # pool.terminate();
    /// }
    /// ```
    pub fn map_collect<T, I, M>(&self, make: M, items: I) -> Vec<Result<T::Output, TaskError>>
    where
        T: MapTask,
        I: IntoIterator,
        M: FnMut(I::Item) -> T,
    {
        self.chunked(None).map_collect(make, items)
    }

    /// Does the same as [`map`](Self::map), but returns as soon as all items are submitted.
    pub fn map_async<T, I, M>(&self, make: M, items: I) -> AsyncResult<Vec<T::Output>>
    where
        T: MapTask,
        I: IntoIterator,
        M: FnMut(I::Item) -> T,
    {
        self.chunked(None).map_async(make, items)
    }

    /// Does the same as [`map`](Self::map), for a function of several parameters. Each item is a
    /// tuple of arguments. A closure that takes the tuple is accepted as well. If the compiler
    /// cannot infer the type of its parameter, use `map`, which does the same for closures.
    ///
    /// ```
    /// use executor::{Pool, prelude::*};
    ///
    /// #[task]
    /// fn repeat(text: &str, times: usize) -> String { text.repeat(times) }
    ///
    /// #[executor::main]
    /// fn main() {
    ///     let pool = Pool::new(2).unwrap();
    ///     assert_eq!(pool.starmap(repeat::task, [("ab", 2), ("c", 3)]).unwrap(), ["abab", "ccc"]);
    ///     assert_eq!(pool.starmap(|(text, times)| repeat::task(text, times), [("ab", 2)]).unwrap(), ["abab"]);
    ///     # pool.terminate();
    /// }
    /// ```
    ///
    /// # Errors
    /// The same as [`map`](Self::map).
    pub fn starmap<F, A, I, M, Form>(&self, make: M, items: I) -> Result<Vec<F::Output>, TaskError>
    where
        F: TaskArgs<A>,
        I: IntoIterator,
        M: MakeTask<I::Item, F, A, Form>,
    {
        self.chunked(None).starmap(make, items)
    }

    /// Does the same as [`starmap`](Self::starmap), but returns as soon as all items are submitted.
    pub fn starmap_async<F, A, I, M, Form>(&self, make: M, items: I) -> AsyncResult<Vec<F::Output>>
    where
        F: TaskArgs<A>,
        I: IntoIterator,
        M: MakeTask<I::Item, F, A, Form>,
    {
        self.chunked(None).starmap_async(make, items)
    }

    /// Selects the number of items in a chunk for the maps of this pool:
    /// `pool.chunk_size(20).map(…)`. The default is a quarter of each worker's share of the items.
    ///
    /// Chunks affect only how items are sent. Each item has its own result, and an idle worker
    /// takes over half of the items that another worker has not begun.
    ///
    /// ```
    /// # use executor::{Pool, prelude::*};
    /// #[task]
    /// fn square(x: u64) -> u64 { x * x }
    ///
    /// #[executor::main]
    /// fn main() {
    ///     let pool = Pool::new(2).unwrap();
    ///     let squares = pool.chunk_size(20).map(square::task, 0..100).unwrap();
    ///     assert_eq!(squares[99], 9801);
    ///     # pool.terminate();
    /// }
    /// ```
    pub fn chunk_size(&self, items: usize) -> Chunked<'_> {
        self.chunked(Some(items))
    }

    fn chunked(&self, chunk_size: Option<usize>) -> Chunked<'_> {
        Chunked::new(self, chunk_size)
    }

    /// Returns an iterator over the results, in the order of the items: see [`IMap`].
    ///
    /// It reads the input as results are consumed. After [`close`](Self::close) it continues to its
    /// end, and the workers stay for it. [`join`](Self::join) ends it: it yields
    /// [`TaskError::Shutdown`] instead of the results of the items that were not submitted by then.
    pub fn imap<T, I, M>(
        &self,
        make: M,
        items: I,
    ) -> IMap<T::Function, T::Arguments, I::IntoIter, M>
    where
        T: MapTask,
        I: IntoIterator,
        M: FnMut(I::Item) -> T,
    {
        IMap::new(&self.shared, make, items.into_iter(), false)
    }

    /// Does the same as [`imap`](Self::imap), but yields results in the order in which they arrive.
    pub fn imap_unordered<T, I, M>(
        &self,
        make: M,
        items: I,
    ) -> IMap<T::Function, T::Arguments, I::IntoIter, M>
    where
        T: MapTask,
        I: IntoIterator,
        M: FnMut(I::Item) -> T,
    {
        IMap::new(&self.shared, make, items.into_iter(), true)
    }

    /// Returns the number of workers of the pool.
    pub fn processes(&self) -> usize {
        self.shared.executor.max_workers()
    }

    /// Returns the process ids of the current workers. Right after the pool was created, some
    /// workers may not have started yet.
    pub fn worker_pids(&self) -> Vec<u32> {
        self.shared.executor.worker_pids()
    }

    /// Stops accepting calls. The accepted calls are finished, then the workers exit. It does not
    /// wait: use [`join`](Self::join) for that.
    pub fn close(&self) {
        let phase = &self.shared.phase;
        let closed = phase.compare_exchange(RUNNING, CLOSED, Ordering::SeqCst, Ordering::SeqCst);
        // If a lazy map has not ended, the last one shuts the executor down, in `Shared::leave`.
        if closed.is_ok() && self.shared.lazy_maps.load(Ordering::SeqCst) == 0 {
            self.shared.end();
        }
    }

    /// Terminates all workers at once with SIGTERM, and kills the workers that still exist half a
    /// second later (see [`PoolBuilder::terminate_grace`]) with SIGKILL. Unfinished calls fail with
    /// [`TaskError::Shutdown`]. It does not wait: use [`join`](Self::join) for that.
    pub fn terminate(&self) {
        self.shared.phase.store(TERMINATED, Ordering::SeqCst);
        self.shared.executor.terminate_workers();
    }

    /// Waits until all accepted calls have ended, all workers have exited, and all callbacks have
    /// run. Then it logs the errors that nobody has read. From a callback it returns at once.
    ///
    /// # Errors
    /// [`PoolError::StillRunning`] if the pool was neither closed nor terminated.
    pub fn join(&self) -> Result<(), PoolError> {
        if self.shared.is_running() {
            return Err(PoolError::StillRunning);
        }
        self.shared.executor.shutdown(true);
        if self.shared.executor.inner().has_ended() {
            self.shared.settle();
        }
        Ok(())
    }

    /// Does the same as [`join`](Self::join), but waits at most `timeout`. Returns whether
    /// everything has ended.
    ///
    /// # Errors
    /// [`PoolError::StillRunning`] if the pool was neither closed nor terminated.
    pub fn join_timeout(&self, timeout: Duration) -> Result<bool, PoolError> {
        let Some(deadline) = Instant::now().checked_add(timeout) else {
            return self.join().map(|()| true);
        };
        if self.shared.is_running() {
            return Err(PoolError::StillRunning);
        }
        self.shared.end();
        let over = self.shared.executor.inner().join_until(deadline);
        if over && self.shared.executor.inner().has_ended() {
            self.shared.settle();
        }
        Ok(over)
    }

    /// Takes what the [`finalizer`](PoolBuilder::finalizer) has returned in the workers that have
    /// ended up to now: see [`ProcessPoolExecutor::finalizer_results`].
    ///
    /// # Errors
    /// As for the executor's method: each item is the error of the finalizer in one worker.
    pub fn finalizer_results<F: TaskFn>(&self) -> Vec<Result<F::Output, TaskError>> {
        self.shared.executor.finalizer_results::<F>()
    }

    /// Runs `body` with the pool, and terminates the pool afterwards, even if `body` panics. It
    /// corresponds to Python's `with pool:`.
    ///
    /// ```
    /// # use executor::{Pool, prelude::*};
    /// #[task]
    /// fn square(x: u64) -> u64 { x * x }
    ///
    /// #[executor::main]
    /// fn main() -> Result<(), Box<dyn std::error::Error>> {
    ///     let pool = Pool::new(2)?;
    ///     let squares = pool.scope(|pool| pool.map(square::task, [1, 2, 3]))??;
    ///     assert_eq!(squares, [1, 4, 9]);
    ///     assert!(pool.apply(square::task(4)).unwrap_err().is_shutdown());
    ///     Ok(())
    /// }
    /// ```
    ///
    /// # Errors
    /// [`PoolError::NotRunning`] if the pool was already closed or terminated.
    pub fn scope<R>(&self, body: impl FnOnce(&Self) -> R) -> Result<R, PoolError> {
        struct Terminate<'a>(&'a Pool);
        impl Drop for Terminate<'_> {
            fn drop(&mut self) {
                self.0.terminate();
            }
        }
        if !self.shared.is_running() {
            return Err(PoolError::NotRunning);
        }
        let _end = Terminate(self);
        Ok(body(self))
    }
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let phase = match self.shared.phase() {
            RUNNING => "running",
            CLOSED => "closed",
            _ => "terminated",
        };
        f.debug_struct("Pool")
            .field("phase", &format_args!("{phase}"))
            .field("processes", &self.processes())
            .finish()
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let Shared { executor, .. } = &*self.shared;
        // In a fork, this handle is a copy, and the workers belong to the parent.
        if executor.inner().forked() {
            return;
        }
        if self.shared.is_running() {
            tracing::warn!(
                processes = self.processes(),
                "a Pool was dropped that was neither closed nor terminated; it is terminated"
            );
        }
        self.terminate();
        if executor.may_wait() {
            executor.shutdown_with(ShutdownOptions::default());
        }
    }
}
