//! The public interface for submitting tasks: the [`Executor`] trait and the executors.
//!
//! ```text
//!  pool.submit(add::task(1, 2))      typed: encodes in the caller's thread
//!        │
//!        ├─► TaskFuture<i64>           decodes where the value is read
//!        │     ▲ cell of bytes
//!        ▼     │
//!      Chunk: entry, bytes, options, and the cell
//!        ▼
//!  Executor::submit_chunk            object-safe: `&dyn Executor`, `Arc<dyn Executor>`
//! ```

mod map;
mod mp_pool;
mod pressure;
mod process_pool;

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

pub use map::{Map, MapStream, MapStreamWithIndex, MapTask, MapWithIndex};
pub use mp_pool::{AsyncResult, Chunked, IMap, MakeTask, Pool, PoolBuilder, PoolError};
pub use pressure::{Full, SubmitAsync};
pub use process_pool::{Isolation, OnDrop, ProcessPoolBuilder, ProcessPoolExecutor, reusable};

use crate::{
    future::{
        TaskFuture,
        cell::{Cell, Control},
    },
    os::local,
    pool::{
        self, Chunk, Graces, Shutdown, next_task_ids,
        pressure::{Place, Pressure},
    },
    registry::TaskEntry,
    sealed::Sealed,
    task::encode::encode,
    task::{IntoTask, Task, TaskArgs},
    wire::buffer::Buffer,
};

/// The common interface of all executors, for code that works with any of them.
///
/// The trait is object-safe. `submit` and `map` are provided by [`ExecutorExt`], also for `&dyn
/// Executor` and `Arc<dyn Executor>`.
///
/// This trait is sealed: it cannot be implemented outside this crate.
///
/// ```
/// use executor::prelude::*;
///
/// #[task]
/// fn square(x: u64) -> u64 { x * x }
///
/// fn sum_of_squares(executor: &dyn Executor, n: u64) -> Result<u64, TaskError> {
///     executor.map(square::task, 0..n).sum()
/// }
///
/// #[executor::main]
/// fn main() {
///     let pool = ProcessPoolExecutor::builder().max_workers(1).build().unwrap();
///     assert_eq!(sum_of_squares(&pool, 4).unwrap(), 14);
/// }
/// ```
pub trait Executor: Send + Sync + Sealed {
    /// Submits a chunk: one call, or several calls of one function that are sent together.
    #[doc(hidden)]
    fn submit_chunk(&self, chunk: Chunk);

    /// Returns what the futures of this executor's tasks ask.
    #[doc(hidden)]
    fn control(&self) -> RawControl;

    /// Returns the estimated duration of a call of this function, or `None` if it is unknown.
    #[doc(hidden)]
    fn estimate(&self, entry: &'static TaskEntry) -> Option<Duration>;

    /// Returns a buffer into which the arguments of a task are to be encoded.
    #[doc(hidden)]
    fn buffer(&self) -> Buffer {
        Buffer::new()
    }

    /// Returns whether each call has to be a chunk of its own.
    #[doc(hidden)]
    fn takes_single_calls(&self) -> bool {
        false
    }

    /// Returns whether each task has a worker of its own.
    #[doc(hidden)]
    fn is_isolated(&self) -> bool {
        false
    }

    /// Returns the limits on pending tasks, if there are any.
    #[doc(hidden)]
    fn pressure(&self) -> Option<&Arc<Pressure>> {
        None
    }

    /// Returns another handle of the same executor.
    #[doc(hidden)]
    fn handle(&self) -> Box<dyn Executor>;

    /// Returns the maximum number of tasks that can run at the same time.
    fn max_workers(&self) -> usize;

    /// Stops accepting tasks, and shuts the executor down as the options say.
    fn shutdown_with(&self, options: ShutdownOptions);

    /// Does the same as `shutdown_with`, for async code.
    #[doc(hidden)]
    fn shutdown_boxed(&self, options: ShutdownOptions) -> Pin<Box<dyn Future<Output = ()> + Send>>;
}

/// What futures ask of an executor.
#[doc(hidden)]
pub struct RawControl(pub(crate) Arc<dyn Control>);

/// Options of [`Executor::shutdown_with`].
///
/// ```
/// use executor::{ShutdownOptions, prelude::*};
/// use std::time::{Duration, Instant};
///
/// #[task]
/// fn forever() { loop { std::thread::park() } }
///
/// #[executor::main]
/// fn main() {
///     let pool = ProcessPoolExecutor::builder().max_workers(1).build().unwrap();
///     let future = pool.submit(forever::task());
///     let deadline = Instant::now() + Duration::from_millis(50);
///     pool.shutdown_with(ShutdownOptions::new().cancel_pending(true).deadline(deadline));
///     assert!(future.done());
/// }
/// ```
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct ShutdownOptions {
    /// Whether the call returns only when every task is resolved, every worker is reaped, and every
    /// queued callback has run.
    pub wait: bool,
    /// Whether tasks that have not begun are cancelled. Otherwise they are finished first.
    pub cancel_pending: bool,
    /// When to end the tasks that still run. Tasks that have not begun by then end with
    /// [`TaskError::Shutdown`](crate::TaskError::Shutdown). Those that run are asked to stop, if
    /// they have [time](field@Self::cancel_grace) for that, and keep their results if they return.
    /// The workers that are left get SIGTERM, and [after a time](field@Self::terminate_grace)
    /// SIGKILL. Their futures get [`TaskError::Shutdown`](crate::TaskError::Shutdown).
    pub deadline: Option<Instant>,
    /// How long tasks that are asked to stop at the deadline may take. The default is the
    /// executor's [`cancel_grace`](ProcessPoolBuilder::cancel_grace).
    pub cancel_grace: Option<Duration>,
    /// Time between SIGTERM and SIGKILL. The default is the executor's
    /// [`terminate_grace`](ProcessPoolBuilder::terminate_grace), which is half a second if it is
    /// not set.
    pub terminate_grace: Option<Duration>,
    /// How long the whole shutdown may take. What still exists then gets SIGKILL, and the call
    /// returns, at the latest a second later, even if callbacks have not returned.
    ///
    /// The other times are a part of it: the deadline comes early enough for `cancel_grace` and
    /// `terminate_grace`, which are shortened if they are longer than the timeout. If nobody has
    /// set a `terminate_grace`, neither here nor for the executor, it is a tenth of the timeout,
    /// and half a second at most. The rest of the time is for the tasks.
    pub timeout: Option<Duration>,
}

impl ShutdownOptions {
    /// Returns the options of `shutdown(true)`: it waits, cancels nothing and has no deadline.
    pub const fn new() -> Self {
        ShutdownOptions {
            wait: true,
            cancel_pending: false,
            deadline: None,
            cancel_grace: None,
            terminate_grace: None,
            timeout: None,
        }
    }

    /// Sets [`wait`](field@Self::wait).
    #[must_use]
    pub const fn wait(mut self, wait: bool) -> Self {
        self.wait = wait;
        self
    }

    /// Sets [`cancel_pending`](field@Self::cancel_pending).
    #[must_use]
    pub const fn cancel_pending(mut self, cancel_pending: bool) -> Self {
        self.cancel_pending = cancel_pending;
        self
    }

    /// Sets [`deadline`](field@Self::deadline).
    #[must_use]
    pub const fn deadline(mut self, deadline: Instant) -> Self {
        self.deadline = Some(deadline);
        self
    }

    /// Sets [`cancel_grace`](field@Self::cancel_grace).
    #[must_use]
    pub const fn cancel_grace(mut self, grace: Duration) -> Self {
        self.cancel_grace = Some(grace);
        self
    }

    /// Sets [`terminate_grace`](field@Self::terminate_grace).
    #[must_use]
    pub const fn terminate_grace(mut self, grace: Duration) -> Self {
        self.terminate_grace = Some(grace);
        self
    }

    /// Sets [`timeout`](field@Self::timeout).
    ///
    /// ```
    /// use executor::{ShutdownOptions, prelude::*};
    /// use std::time::Duration;
    ///
    /// #[task]
    /// fn forever() { loop { std::thread::park() } }
    ///
    /// #[executor::main]
    /// fn main() {
    ///     let pool = ProcessPoolExecutor::builder().max_workers(1).build().unwrap();
    ///     let future = pool.submit(forever::task());
    ///     pool.shutdown_with(ShutdownOptions::new().timeout(Duration::from_millis(100)));
    ///     assert!(future.result().unwrap_err().is_shutdown());
    /// }
    /// ```
    #[must_use]
    pub const fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Returns what the pool is to do, which gives its tasks these times otherwise.
    fn plan(&self, now: Instant, graces: Graces) -> Shutdown {
        let mut how = Shutdown {
            cancel_pending: self.cancel_pending,
            deadline: self.deadline,
            cancel_grace: self.cancel_grace,
            terminate_grace: self.terminate_grace,
            kill_at: None,
        };
        if let Some(timeout) = self.timeout
            && let Some(kill_at) = now.checked_add(timeout)
        {
            // Time that nobody has asked for is not taken from the tasks.
            let default = || graces.terminate_at_end().min(timeout / 10);
            let terminate = how.terminate_grace.or(graces.terminate);
            let terminate = terminate.unwrap_or_else(default).min(timeout);
            let cancel = how.cancel_grace.unwrap_or(graces.cancel).min(timeout - terminate);
            let latest = kill_at - terminate - cancel;
            how.deadline = Some(how.deadline.map_or(latest, |deadline| deadline.min(latest)));
            (how.cancel_grace, how.terminate_grace) = (Some(cancel), Some(terminate));
            how.kill_at = Some(kill_at);
        }
        how
    }
}

impl Default for ShutdownOptions {
    /// Does the same as [`new`](Self::new).
    fn default() -> Self {
        Self::new()
    }
}

/// Provides `submit`, `map` and `shutdown` for every [`Executor`].
///
/// This trait is sealed: it cannot be implemented outside this crate.
///
/// ```
/// use executor::prelude::*;
/// use std::sync::Arc;
///
/// #[task]
/// fn square(x: u64) -> u64 { x * x }
///
/// #[executor::main]
/// fn main() {
///     let pool: Arc<dyn Executor> = Arc::new(ProcessPoolExecutor::builder().max_workers(1).build().unwrap());
///     assert_eq!(pool.submit(square::task(3)).result().unwrap(), 9);
///     pool.shutdown(true);
/// }
/// ```
pub trait ExecutorExt: Executor {
    /// Submits a task. See [`ProcessPoolExecutor::submit`].
    fn submit<T: IntoTask>(&self, task: T) -> TaskFuture<T::Output> {
        submit(self, task.into_task())
    }

    /// Submits a task if there is room for it. See [`ProcessPoolExecutor::try_submit`].
    ///
    /// # Errors
    /// [`Full`] with the task, if there is no room.
    fn try_submit<T: IntoTask>(&self, task: T) -> Result<TaskFuture<T::Output>, Full<T>> {
        try_submit(self, task)
    }

    /// Submits a task as soon as there is room for it, for async code. See
    /// [`ProcessPoolExecutor::submit_async`].
    fn submit_async<T: IntoTask>(&self, task: T) -> SubmitAsync<T> {
        SubmitAsync::new(self.handle(), task)
    }

    /// Submits a task for each item. See [`ProcessPoolExecutor::map`].
    fn map<T, I, M>(&self, make: M, items: I) -> Map<T::Function, T::Arguments, I::IntoIter, M>
    where
        T: MapTask,
        I: IntoIterator,
        M: FnMut(I::Item) -> T,
    {
        Map::new(self.handle(), make, items.into_iter())
    }

    /// Stops accepting tasks and finishes the accepted ones. See [`ProcessPoolExecutor::shutdown`].
    fn shutdown(&self, wait: bool) {
        self.shutdown_with(ShutdownOptions { wait, ..ShutdownOptions::default() });
    }

    /// Does the same as `shutdown(true)`, for async code. See
    /// [`ProcessPoolExecutor::shutdown_async`].
    fn shutdown_async(&self) -> impl Future<Output = ()> + Send + 'static {
        self.shutdown_boxed(ShutdownOptions::new())
    }

    /// Does the same as `shutdown_with`, for async code. See
    /// [`ProcessPoolExecutor::shutdown_with_async`].
    fn shutdown_with_async(
        &self,
        options: ShutdownOptions,
    ) -> impl Future<Output = ()> + Send + 'static {
        self.shutdown_boxed(options)
    }
}

impl<E: Executor + ?Sized> ExecutorExt for E {}

impl Sealed for ProcessPoolExecutor {}

impl<E: Executor + ?Sized> Sealed for Arc<E> {}

impl<E: Executor + ?Sized> Executor for Arc<E> {
    fn submit_chunk(&self, chunk: Chunk) {
        (**self).submit_chunk(chunk);
    }

    fn control(&self) -> RawControl {
        (**self).control()
    }

    fn estimate(&self, entry: &'static TaskEntry) -> Option<Duration> {
        (**self).estimate(entry)
    }

    fn buffer(&self) -> Buffer {
        (**self).buffer()
    }

    fn takes_single_calls(&self) -> bool {
        (**self).takes_single_calls()
    }

    fn is_isolated(&self) -> bool {
        (**self).is_isolated()
    }

    fn pressure(&self) -> Option<&Arc<Pressure>> {
        (**self).pressure()
    }

    fn handle(&self) -> Box<dyn Executor> {
        (**self).handle()
    }

    fn max_workers(&self) -> usize {
        (**self).max_workers()
    }

    fn shutdown_with(&self, options: ShutdownOptions) {
        (**self).shutdown_with(options);
    }

    fn shutdown_boxed(&self, options: ShutdownOptions) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        (**self).shutdown_boxed(options)
    }
}

thread_local! {
    /// The vector into which this thread encodes arguments. It is kept from one task to the next.
    static SMALL: std::cell::Cell<Vec<u8>> = const { std::cell::Cell::new(Vec::new()) };
}

/// Waits for room, if pending tasks are limited, and submits the task.
fn submit<E, F, A>(executor: &E, task: Task<F, A>) -> TaskFuture<F::Output>
where
    E: Executor + ?Sized,
    F: TaskArgs<A>,
{
    let place = executor.pressure().map(|pressure| match pool::is_own_thread() {
        // This thread takes the results of others. While it waits, nobody makes room.
        true => pressure.take_anyway(),
        false => pressure.wait(),
    });
    submit_at(executor, task, place)
}

/// Submits the task if there is room for it.
fn try_submit<E, T>(executor: &E, task: T) -> Result<TaskFuture<T::Output>, Full<T>>
where
    E: Executor + ?Sized,
    T: IntoTask,
{
    let place = match executor.pressure() {
        None => None,
        Some(pressure) => match pressure.try_take(1) {
            None => return Err(Full { task }),
            place => place,
        },
    };
    Ok(submit_at(executor, task.into_task(), place))
}

/// Encodes the arguments in the caller's thread and submits the task, which has this place. The
/// result is decoded where the value is read.
fn submit_at<E, F, A>(executor: &E, task: Task<F, A>, place: Option<Place>) -> TaskFuture<F::Output>
where
    E: Executor + ?Sized,
    F: TaskArgs<A>,
{
    let (args, mut options) = task.into_parts();
    let usage = options.begin_usage();
    // Each thread reuses one vector for all its submissions.
    let mut buffer = executor.buffer().using(local::take(&SMALL));
    let mut attached = Vec::new();
    let arguments =
        encode::<F, A>(args, &options, &mut buffer, &mut attached).map(|()| buffer.take(attached));
    local::put(&SMALL, buffer.into_small());
    let RawControl(control) = executor.control();
    let cell = match arguments {
        Ok(arguments) => {
            let (chunk, cell) = Chunk::single(F::entry(), arguments, options, control);
            executor.submit_chunk(chunk.at(place));
            cell
        }
        Err(error) => Cell::done(next_task_ids(1), Some(control), *error),
    };
    TaskFuture::new::<F>(cell, usage)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shutdown_with_a_timeout_leaves_the_time_to_the_tasks_that_nobody_asked_for() {
        let millis = Duration::from_millis;
        let graces = |cancel, terminate: Option<u64>| Graces {
            cancel: millis(cancel),
            terminate: terminate.map(millis),
        };
        let timeout = |timeout| ShutdownOptions::new().timeout(millis(timeout));
        let now = Instant::now();
        // How long tasks may run, and the two times after that.
        for (options, graces, drain, cancel, terminate) in [
            (timeout(300), graces(0, None), 270, 0, 30),
            (timeout(60_000), graces(0, None), 59_500, 0, 500),
            (timeout(300), graces(100, None), 170, 100, 30),
            (timeout(300), graces(0, Some(200)), 100, 0, 200),
            (timeout(300), graces(0, Some(400)), 0, 0, 300),
            (timeout(300).terminate_grace(millis(100)), graces(0, Some(200)), 200, 0, 100),
            (timeout(300).terminate_grace(millis(0)), graces(0, None), 300, 0, 0),
            (timeout(300).cancel_grace(millis(500)), graces(9, None), 0, 270, 30),
        ] {
            let plan = options.plan(now, graces);
            assert_eq!(plan.deadline, Some(now + millis(drain)), "{options:?}");
            assert_eq!(plan.cancel_grace, Some(millis(cancel)), "{options:?}");
            assert_eq!(plan.terminate_grace, Some(millis(terminate)), "{options:?}");
            let end = options.timeout.map(|timeout| now + timeout);
            assert_eq!(plan.kill_at, end, "{options:?}");
        }
    }
}
