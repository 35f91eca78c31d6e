//! Python's `multiprocessing.Pool`: a thin face over [`ProcessPoolExecutor`].
//!
//! ```text
//!  Pool::apply_async ──► executor.submit ──► TaskFuture ──────────────────────► AsyncResult<T>
//!  Pool::map         ──► Map over the whole input, all of it submitted ───────► Vec, when all have ended
//!  Pool::map_async   ──► the same ──► Feed ──► Gather: the last has come ─────► AsyncResult<Vec<T>>
//!  Pool::imap        ──► Map, lazily ─────────────────────────────────────────► IMap
//!
//!  Running ──close──► Closed ──join, or the last IMap ends──► executor.shutdown
//!     └───────────────────┴──terminate, drop──► Terminated ──► executor.terminate_workers
//! ```
//!
//! The executor owns workers and tasks; what is here owns only the phase, and the list of results whose errors nobody
//! has read ([`unread`]). What happens when a worker dies is the executor's: the call that it ran fails, nothing else.
//! When this process dies, so do the workers.
//!
//! Nothing here waits by itself: each wait is for the end of a task, of a feed, or of the executor, which come whatever
//! dies. In a fork of this process all handles are inert.

mod async_result;
mod builder;
mod imap;
mod spread;
mod unread;

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
pub use imap::IMap;
pub use spread::MakeTask;
use unread::Unread;

use super::{Executor, Map, ProcessPoolExecutor, ShutdownOptions};
use crate::{
    error::{BuildError, TaskError},
    future::{TaskFuture, cell::Cell, feed::Feed, gather::Gather},
    pool::next_task_ids,
    task::{IntoTask, Task, TaskArgs},
};

/// A fixed number of worker processes with the interface of Python's `multiprocessing.Pool`.
///
/// All workers are started at once, and replaced when they end. It is a face of [`ProcessPoolExecutor`], which has more
/// to offer; here are Python's names, for programs that come from there. Where Python's pool hangs or loses results,
/// this one does not:
///
/// - A call whose worker dies fails with [`TaskError::WorkerLost`], and no other does. (In Python it never ends.)
/// - An error in one item of a map does not cost the others: all of them run, and
///   [`map_collect`](Self::map_collect) has each item's own result.
/// - What is pending when the pool is terminated fails with [`TaskError::Shutdown`]; nobody waits for ever.
/// - [`imap`](Self::imap) reads its input as it goes, so that may be endless.
/// - An error that nobody reads is logged (with `tracing`), at the latest by [`join`](Self::join).
/// - Results that nobody reads, and errors of any size, hold up nothing.
///
/// **Dropping** a pool terminates it, as the end of Python's `with` does: what is not done is not finished. To finish
/// it, [`close`](Self::close) and [`join`](Self::join) first. A drop without `close` or `terminate` logs a warning. The end of the
/// program terminates a pool that is still there, as Python's does; error callbacks of what was not done are called.
///
/// After `close` or `terminate` calls give [`TaskError::Shutdown`]: Python's "Pool not running".
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
    /// Lazy maps that have not ended: they submit as they go.
    feeding: AtomicUsize,
    unread: Arc<Unread>,
    /// What `map_async` collects, while it does.
    gathers: Mutex<Vec<Weak<Gather>>>,
}

/// Takes calls.
const RUNNING: u8 = 0;
/// Takes none, and finishes what it has.
const CLOSED: u8 = 1;
const TERMINATED: u8 = 2;

impl Shared {
    fn phase(&self) -> u8 {
        self.phase.load(Ordering::SeqCst)
    }

    fn is_running(&self) -> bool {
        self.phase() == RUNNING
    }

    /// A lazy map begins, unless the pool takes none.
    fn enter(&self) -> bool {
        // First: a `close` from here on waits for its end.
        self.feeding.fetch_add(1, Ordering::SeqCst);
        self.is_running()
    }

    /// It has ended, or was refused.
    fn leave(&self) {
        if self.feeding.fetch_sub(1, Ordering::SeqCst) == 1 && self.phase() == CLOSED {
            self.end();
        }
    }

    /// Lets the workers go when they have done what was submitted.
    fn end(&self) {
        self.executor.shutdown(false);
    }

    /// Collects what this submission brings.
    fn gather(&self, feed: Arc<Feed>, total: usize) -> Arc<Gather> {
        let gather = Gather::new(feed, total, Arc::clone(&self.unread.callbacks));
        if !gather.is_done() {
            let mut gathers = self.gathers.lock().unwrap_or_else(PoisonError::into_inner);
            if gathers.len() == gathers.capacity() {
                // Before it grows.
                gathers.retain(|gather| gather.upgrade().is_some_and(|gather| !gather.is_done()));
            }
            gathers.push(Arc::downgrade(&gather));
        }
        gather
    }

    /// What remains to be done when the executor has ended.
    fn settle(&self) {
        // Whoever took the last results may not have come to wake who collects them. They are there, so it is done here:
        // to wait for another thread's wakers could be to wait for oneself.
        let gathers = std::mem::take(&mut *self.gathers.lock().unwrap_or_else(PoisonError::into_inner));
        gathers.iter().filter_map(Weak::upgrade).for_each(Gather::wake);
        self.unread.callbacks.flush();
        self.unread.log();
    }
}

/// A [`Pool`] is in another phase than the call needs.
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
    /// It was closed or terminated.
    #[error("Pool not running: it was closed or terminated")]
    NotRunning,
    /// It was neither closed nor terminated, so that waiting for its end would have none.
    #[error("Pool is still running: `close` or `terminate` it before `join`")]
    StillRunning,
}

crate::debug::debug_is_display!(PoolError);

impl Pool {
    /// A pool of this many workers.
    ///
    /// # Errors
    /// As [`PoolBuilder::build`].
    pub fn new(processes: usize) -> Result<Self, BuildError> {
        Self::builder().processes(processes).build()
    }

    /// Options first.
    pub fn builder() -> PoolBuilder {
        PoolBuilder::default()
    }

    fn of(executor: ProcessPoolExecutor) -> Self {
        let unread = Unread::new(Arc::clone(executor.inner().callbacks()));
        let (phase, feeding) = (AtomicU8::new(RUNNING), AtomicUsize::new(0));
        let gathers = Mutex::default();
        Pool { shared: Arc::new(Shared { executor, phase, feeding, unread, gathers }) }
    }

    /// Runs one call and waits for its value.
    ///
    /// # Errors
    /// Whatever ended the task: see [`TaskError`]. [`TaskError::Shutdown`] if the pool is not running.
    pub fn apply<T: IntoTask>(&self, task: T) -> Result<T::Output, TaskError> {
        self.submit(task).result()
    }

    /// Submits one call and returns at once.
    pub fn apply_async<T: IntoTask>(&self, task: T) -> AsyncResult<T::Output> {
        AsyncResult::of_task(self.submit(task), &self.shared.unread)
    }

    fn submit<T: IntoTask>(&self, task: T) -> TaskFuture<T::Output> {
        if self.shared.is_running() {
            return self.shared.executor.submit(task);
        }
        let control = None;
        TaskFuture::new::<T::Function>(Cell::done(next_task_ids(1), control, TaskError::Shutdown))
    }

    /// Runs a task for each item and waits for all of them; the values in the order of the items.
    ///
    /// The whole input is read first, so it must end. All items run, also when one fails; then the error of the first that has failed,
    /// in the order of the input, is the result. [`map_collect`](Self::map_collect) keeps the others' values,
    /// [`imap`](Self::imap) reads the input as it goes, [`chunk_size`](Self::chunk_size) says how many items travel
    /// together.
    ///
    /// # Errors
    /// That of the first item that has one. [`TaskError::Shutdown`] if the pool is not running.
    pub fn map<T, I, M>(&self, make: M, items: I) -> Result<Vec<T::Output>, TaskError>
    where
        T: IntoTask,
        I: IntoIterator,
        M: FnMut(I::Item) -> T,
    {
        self.chunked(None).map(make, items)
    }

    /// As [`map`](Self::map), with the result of each item.
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
        T: IntoTask,
        I: IntoIterator,
        M: FnMut(I::Item) -> T,
    {
        self.chunked(None).map_collect(make, items)
    }

    /// As [`map`](Self::map), but returns when all items are submitted.
    pub fn map_async<T, I, M>(&self, make: M, items: I) -> AsyncResult<Vec<T::Output>>
    where
        T: IntoTask,
        I: IntoIterator,
        M: FnMut(I::Item) -> T,
    {
        self.chunked(None).map_async(make, items)
    }

    /// As [`map`](Self::map) for a function of several parameters: each item is a tuple of them. A closure that takes
    /// the tuple will do as well; where the compiler cannot tell its type, use `map`, which is the same for closures.
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
    /// As [`map`](Self::map).
    pub fn starmap<F, A, I, M, Form>(&self, make: M, items: I) -> Result<Vec<F::Output>, TaskError>
    where
        F: TaskArgs<A>,
        I: IntoIterator,
        M: MakeTask<I::Item, F, A, Form>,
    {
        self.chunked(None).starmap(make, items)
    }

    /// As [`starmap`](Self::starmap), but returns when all items are submitted.
    pub fn starmap_async<F, A, I, M, Form>(&self, make: M, items: I) -> AsyncResult<Vec<F::Output>>
    where
        F: TaskArgs<A>,
        I: IntoIterator,
        M: MakeTask<I::Item, F, A, Form>,
    {
        self.chunked(None).starmap_async(make, items)
    }

    /// The maps of this pool with chunks of so many items, in place of a quarter of each worker's share:
    /// `pool.chunk_size(20).map(…)`.
    ///
    /// A chunk is only how items travel: each has its own result, and a worker that is idle takes over half of what
    /// another has not begun.
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
        Chunked { pool: self, chunk_size }
    }

    /// An iterator over the results, in the order of the items: see [`IMap`].
    ///
    /// It reads the input as it goes. After [`close`](Self::close) it goes on to its end, and the workers stay for it;
    /// [`join`](Self::join) ends it, with [`TaskError::Shutdown`] in the place of what has not been submitted by then.
    pub fn imap<T, I, M>(&self, make: M, items: I) -> IMap<T::Function, T::Arguments, I::IntoIter, M>
    where
        T: IntoTask,
        I: IntoIterator,
        M: FnMut(I::Item) -> T,
    {
        IMap::new(&self.shared, make, items.into_iter(), false)
    }

    /// As [`imap`](Self::imap), with the results as they come.
    pub fn imap_unordered<T, I, M>(
        &self,
        make: M,
        items: I,
    ) -> IMap<T::Function, T::Arguments, I::IntoIter, M>
    where
        T: IntoTask,
        I: IntoIterator,
        M: FnMut(I::Item) -> T,
    {
        IMap::new(&self.shared, make, items.into_iter(), true)
    }

    /// How many workers the pool has.
    pub fn processes(&self) -> usize {
        self.shared.executor.max_workers()
    }

    /// Process ids of the workers that there are now. Right after the pool was made some may be on their way.
    pub fn worker_pids(&self) -> Vec<u32> {
        self.shared.executor.worker_pids()
    }

    /// Takes no more calls. What was accepted is finished, then the workers leave. Does not wait: [`join`](Self::join)
    /// does.
    pub fn close(&self) {
        let phase = &self.shared.phase;
        let closed = phase.compare_exchange(RUNNING, CLOSED, Ordering::SeqCst, Ordering::SeqCst);
        if closed.is_ok() && self.shared.feeding.load(Ordering::SeqCst) == 0 {
            self.shared.end();
        }
    }

    /// Ends all workers, now: with SIGTERM, and those that are still there half a second later with SIGKILL. Calls that
    /// have not ended fail with [`TaskError::Shutdown`]. Does not wait: [`join`](Self::join) does.
    pub fn terminate(&self) {
        self.shared.phase.store(TERMINATED, Ordering::SeqCst);
        self.shared.executor.terminate_workers();
    }

    /// Waits until everything that was accepted has ended, all workers are gone, and all callbacks have run; then logs
    /// the errors that nobody has read. From a callback it returns at once.
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

    /// As [`join`](Self::join), but waits at most `timeout`; whether all is over.
    ///
    /// # Errors
    /// [`PoolError::StillRunning`] if the pool was neither closed nor terminated.
    pub fn join_timeout(&self, timeout: Duration) -> Result<bool, PoolError> {
        let Some(deadline) = Instant::now().checked_add(timeout) else { return self.join().map(|()| true) };
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

    /// Runs `body` with the pool and terminates it afterwards, also when `body` panics: Python's `with pool:`.
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
    /// [`PoolError::NotRunning`] if the pool was closed or terminated before.
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

/// The maps of a [`Pool`] with chunks of a chosen size: made by [`Pool::chunk_size`].
#[derive(Clone, Copy)]
#[must_use = "it does nothing until it maps"]
pub struct Chunked<'a> {
    pool: &'a Pool,
    chunk_size: Option<usize>,
}

/// The same, as what a map asks for.
fn tasks<T: IntoTask, Item>(
    mut make: impl FnMut(Item) -> T,
) -> impl FnMut(Item) -> Task<T::Function, T::Arguments> {
    move |item| make(item).into_task()
}

impl Chunked<'_> {
    /// All of the input, as a map of which nothing is submitted yet.
    fn start<F, A, I, M>(&self, make: M, items: I) -> Map<F, A, std::vec::IntoIter<I::Item>, M>
    where
        F: TaskArgs<A>,
        I: IntoIterator,
        M: FnMut(I::Item) -> Task<F, A>,
    {
        let executor = &self.pool.shared.executor;
        let items: Vec<_> = items.into_iter().collect();
        let share = items.len().div_ceil(4 * executor.max_workers()).max(1);
        Map::new(Executor::handle(executor), make, items.into_iter())
            .chunk_size(self.chunk_size.unwrap_or(share))
            .buffer_size(usize::MAX)
    }

    /// As [`Pool::map`].
    ///
    /// # Errors
    /// As [`Pool::map`], and [`TaskError::Invalid`] if the chunk size is 0.
    pub fn map<T, I, M>(&self, make: M, items: I) -> Result<Vec<T::Output>, TaskError>
    where
        T: IntoTask,
        I: IntoIterator,
        M: FnMut(I::Item) -> T,
    {
        if !self.pool.shared.is_running() {
            return Err(TaskError::Shutdown);
        }
        let (mut values, mut first_error) = (Vec::new(), None);
        for result in self.start(tasks(make), items) {
            match result {
                Ok(value) if first_error.is_none() => values.push(value),
                Ok(_) => {}
                Err(error) => {
                    first_error.get_or_insert(error);
                }
            }
        }
        first_error.map_or(Ok(values), Err)
    }

    /// As [`Pool::map_collect`]. If the chunk size is 0, one [`TaskError::Invalid`] comes.
    pub fn map_collect<T, I, M>(&self, make: M, items: I) -> Vec<Result<T::Output, TaskError>>
    where
        T: IntoTask,
        I: IntoIterator,
        M: FnMut(I::Item) -> T,
    {
        if !self.pool.shared.is_running() {
            return items.into_iter().map(|_| Err(TaskError::Shutdown)).collect();
        }
        self.start(tasks(make), items).collect()
    }

    /// As [`Pool::map_async`].
    pub fn map_async<T, I, M>(&self, make: M, items: I) -> AsyncResult<Vec<T::Output>>
    where
        T: IntoTask,
        I: IntoIterator,
        M: FnMut(I::Item) -> T,
    {
        let unread = &self.pool.shared.unread;
        if !self.pool.shared.is_running() {
            return AsyncResult::refused(TaskError::Shutdown, unread);
        }
        match self.start(tasks(make), items).submit_all() {
            Ok((feed, total)) => {
                AsyncResult::of_map::<T::Function>(self.pool.shared.gather(feed, total), unread)
            }
            Err(error) => AsyncResult::refused(error, unread),
        }
    }

    /// As [`Pool::starmap`].
    ///
    /// # Errors
    /// As [`map`](Self::map).
    pub fn starmap<F, A, I, M, Form>(&self, mut make: M, items: I) -> Result<Vec<F::Output>, TaskError>
    where
        F: TaskArgs<A>,
        I: IntoIterator,
        M: MakeTask<I::Item, F, A, Form>,
    {
        self.map(|item| make.make(item), items)
    }

    /// As [`Pool::starmap_async`].
    pub fn starmap_async<F, A, I, M, Form>(&self, mut make: M, items: I) -> AsyncResult<Vec<F::Output>>
    where
        F: TaskArgs<A>,
        I: IntoIterator,
        M: MakeTask<I::Item, F, A, Form>,
    {
        self.map_async(|item| make.make(item), items)
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
