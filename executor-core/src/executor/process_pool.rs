//! The executor that runs tasks in child processes: [`ProcessPoolExecutor`] and its builder.

mod builder;
mod place;
mod reusable;
mod start;

use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    sync::Arc,
    task::Poll,
    time::{Duration, Instant},
};

pub use builder::ProcessPoolBuilder;
pub use reusable::reusable;
pub use start::Isolation;

use super::{
    Executor, Full, Map, MapTask, RawControl, ShutdownOptions, SubmitAsync, submit, try_submit,
};
use crate::{
    error::{BrokenCause, BuildError, TaskError},
    future::{
        TaskFuture,
        cell::{Cell, Control},
        decode,
        timer::Timer,
    },
    pool::{
        self, Chunk, Pool, Shutdown, next_task_ids,
        pressure::Pressure,
        stats::{Stats, WorkerStats},
    },
    registry::TaskEntry,
    task::{IntoTask, TaskFn, encode::encode},
    wire::buffer::Buffer,
    worker,
};

/// How long running tasks may continue if the last handle is dropped while a panic unwinds.
const UNWIND_GRACE: Duration = Duration::from_secs(1);

/// How long workers that were killed at the end of a shutdown's timeout are waited for, and
/// callbacks.
const KILLED_GRACE: Duration = Duration::from_secs(1);

/// Runs tasks in child processes of this program.
///
/// Workers are new processes of this program's own executable. They start on demand, up to
/// [`max_workers`], and are reused. If a task crashes its worker, only this task fails: the worker
/// is replaced, and the tasks that were queued behind it run elsewhere. When this process ends, for
/// whatever reason, its workers and the programs that they have started end, too.
///
/// Cloning makes another handle of the same pool. Dropping the last handle finishes the accepted
/// tasks first, as `shutdown(true)` does. On a callback thread, in a tokio context or inside a
/// task, this would block other work. There the drop returns at once, and the tasks are finished in
/// the background. [`on_drop`](ProcessPoolBuilder::on_drop) selects another policy.
///
/// # The end of the program
///
/// Accepted tasks and their callbacks are finished before the program ends, even if the handle was
/// dropped or forgotten. This holds when `main` returns (also with an error, by a panic, or below
/// `#[tokio::main]`), and when any thread calls [`std::process::exit`]. The policy
/// [`on_drop`](ProcessPoolBuilder::on_drop) is applied then to an executor in a static, to a
/// forgotten executor, and to one that was dropped where a drop does not wait. So a task that never
/// ends holds up the end of the program, unless [`exit_timeout`](ProcessPoolBuilder::exit_timeout)
/// sets a limit. Exit hooks ([`at_exit`](crate::at_exit)) are called after that. They may still
/// submit tasks to an executor with [`OnDrop::Finish`], and these tasks are finished, too. An
/// executor with another [`OnDrop`] has been shut down by then, whether or not it had work.
///
/// If a callback calls `exit` while the program is already ending, the call never returns: std
/// blocks the thread in `pause`. The executor leaves this callback behind and calls the other ones.
/// It detects the blocked thread by the system call in which it waits. If the system does not
/// provide this (there is no `/proc`, for example), a callback that has used no processor time for
/// ten seconds is left behind in the same way.
///
/// When a worker is asked to stop, it first finishes the work that its tasks have submitted to
/// executors of their own, for example to one in a static. The executor kills a worker that has not
/// ended five seconds later, with a warning, and this work is lost. A task that waits for the
/// results of the work it has submitted loses nothing.
///
/// After a signal, an abort or `_exit`, nothing is finished. The workers end then, too.
///
/// ```
/// use executor::prelude::*;
///
/// #[task]
/// fn add(a: i64, b: i64) -> i64 { a + b }
///
/// #[executor::main]
/// fn main() -> Result<(), Box<dyn std::error::Error>> {
///     let pool = ProcessPoolExecutor::new()?;
///     let future = pool.submit(add::task(1, 2));
///     assert_eq!(future.result()?, 3);
///     pool.shutdown(true);
///     Ok(())
/// }
/// ```
///
/// [`max_workers`]: ProcessPoolBuilder::max_workers
#[derive(Clone)]
pub struct ProcessPoolExecutor {
    handle: Arc<Handle>,
}

struct Handle {
    pool: Arc<Pool>,
    on_drop: OnDrop,
    /// Whether dropping it waits where it may.
    waits: bool,
}

/// What happens to unfinished work when the last handle of an executor is dropped, or when the
/// program ends before that.
///
/// At the end of the program, `CancelPending` and `Kill` shut the executor down before exit hooks
/// ([`at_exit`](crate::at_exit)) are called. With `Finish`, a hook may still submit tasks.
///
/// ```
/// use executor::{OnDrop, prelude::*};
///
/// #[task]
/// fn forever() { loop { std::thread::park() } }
///
/// #[executor::main]
/// fn main() {
///     let pool = ProcessPoolExecutor::builder().max_workers(1).on_drop(OnDrop::Kill).build().unwrap();
///     let future = pool.submit(forever::task());
///     drop(pool);
///     assert!(future.result().unwrap_err().is_shutdown());
/// }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnDrop {
    /// Finish it.
    #[default]
    Finish,
    /// Finish the tasks that have begun, and cancel the others.
    CancelPending,
    /// Kill the workers.
    Kill,
}

impl ProcessPoolExecutor {
    /// Builds an executor with one worker for each CPU that this process may use. See
    /// [`usable_cpus`](crate::usable_cpus).
    ///
    /// # Errors
    /// The same as [`ProcessPoolBuilder::build`].
    pub fn new() -> Result<Self, BuildError> {
        Self::builder().build()
    }

    /// Returns a builder, for setting options.
    pub fn builder() -> ProcessPoolBuilder {
        ProcessPoolBuilder::default()
    }

    /// Submits a task and returns its future. It never fails: errors are reported by the future.
    ///
    /// Arguments are encoded during this call, so they may be borrowed.
    ///
    /// It never blocks, unless the number of pending tasks is limited: see
    /// [`max_pending`](ProcessPoolBuilder::max_pending).
    pub fn submit<T: IntoTask>(&self, task: T) -> TaskFuture<T::Output> {
        submit(self, task.into_task())
    }

    /// Submits a task if there is room for it. It never blocks.
    ///
    /// There is always room if the number of pending tasks is not limited by
    /// [`max_pending`](ProcessPoolBuilder::max_pending) or
    /// [`max_pending_bytes`](ProcessPoolBuilder::max_pending_bytes). There is none while others
    /// wait for room.
    ///
    /// # Errors
    /// [`Full`] with the task, if there is no room.
    pub fn try_submit<T: IntoTask>(&self, task: T) -> Result<TaskFuture<T::Output>, Full<T>> {
        try_submit(self, task)
    }

    /// Returns a future that submits a task as soon as there is room for it, for async code. It
    /// yields the [`TaskFuture`].
    ///
    /// Threads in [`submit`](Self::submit) and these futures wait in one line: the first who comes
    /// is served first. A future enters the line when it is polled first. Arguments are encoded
    /// when it is its turn.
    ///
    /// # Cancel safety
    /// If the future is dropped before it is ready, nothing is submitted, and the next in the line
    /// moves up.
    ///
    /// ```
    /// use executor::prelude::*;
    ///
    /// #[task]
    /// fn square(x: u64) -> u64 { x * x }
    ///
    /// async fn sum_of_squares(pool: &ProcessPoolExecutor, n: u64) -> Result<u64, TaskError> {
    ///     let (mut sum, mut futures) = (0, std::collections::VecDeque::new());
    ///     for x in 0..n {
    ///         // This waits while two tasks are pending, and does not block the thread.
    ///         futures.push_back(pool.submit_async(square::task(x)).await);
    ///         if futures.len() == 2 {
    ///             sum += futures.pop_front().unwrap().await?;
    ///         }
    ///     }
    ///     for future in futures {
    ///         sum += future.await?;
    ///     }
    ///     Ok(sum)
    /// }
    ///
    /// #[executor::main]
    /// fn main() {
    ///     let pool = ProcessPoolExecutor::builder().max_workers(1).max_pending(2).build().unwrap();
    ///     assert_eq!(futures::executor::block_on(sum_of_squares(&pool, 10)).unwrap(), 285);
    /// }
    /// ```
    pub fn submit_async<T: IntoTask>(&self, task: T) -> SubmitAsync<T> {
        SubmitAsync::new(Executor::handle(self), task)
    }

    /// Runs a task once in each worker that there is now, and returns a future for each of them.
    ///
    /// Each worker runs it between two other tasks, as soon as it has finished those that it has
    /// begun. A worker that is starting runs it first, and one that is about to leave runs it
    /// before it does. Workers start on demand, so the list is empty before the first task. To have
    /// workers from the beginning, set [`min_workers`](ProcessPoolBuilder::min_workers). To reach
    /// those that come later, use [`broadcast_and_later`](Self::broadcast_and_later). If a worker
    /// ends before it has run the task, its future gets
    /// [`WorkerLost`](crate::TaskError::WorkerLost), and the task does not run elsewhere. The tasks
    /// count neither for [`max_tasks_per_worker`](ProcessPoolBuilder::max_tasks_per_worker) nor for
    /// [`max_pending`](ProcessPoolBuilder::max_pending).
    ///
    /// # Errors
    /// A task that cannot be sent gives one future with the error:
    /// [`Encode`](crate::TaskError::Encode), or [`Invalid`](crate::TaskError::Invalid) if it has
    /// [`retries`](crate::Task::retries), because a lost worker cannot run it again, a
    /// [`priority`](crate::Task::priority) or [`needs`](crate::Task::needs), because it overtakes
    /// all others anyway, or [`on_worker`](crate::Task::on_worker), or if each worker runs one task
    /// only ([`Isolation::PerTask`](crate::Isolation::PerTask)).
    ///
    /// ```
    /// # use executor::prelude::*;
    /// #[task]
    /// fn pid() -> u32 { std::process::id() }
    ///
    /// #[executor::main]
    /// fn main() {
    ///     let pool = ProcessPoolExecutor::builder().max_workers(2).build().unwrap();
    ///     pool.submit(pid::task()).result().unwrap();
    ///     let futures = pool.broadcast(pid::task());
    ///     let pids: Result<Vec<_>, _> = futures.into_iter().map(TaskFuture::result).collect();
    ///     assert_eq!(pids.unwrap(), pool.worker_pids());
    /// }
    /// ```
    pub fn broadcast<T: IntoTask>(&self, task: T) -> Vec<TaskFuture<T::Output>> {
        self.broadcast_to(task, false)
    }

    /// Does the same as [`broadcast`](Self::broadcast), and also lets each worker that is started
    /// from now on run the task, before its first other task. What it returns there is dropped, and
    /// so are its errors, as with a future that is dropped. For a failure that must not go
    /// unnoticed, use the [`initializer`](ProcessPoolBuilder::initializer).
    ///
    /// Later workers run the tasks of all calls in the order of the calls, until
    /// [`end_broadcasts`](Self::end_broadcasts) or the end of the executor. Until then the
    /// arguments are kept. The time of a [`queue_timeout`](crate::Task::queue_timeout) counts from
    /// the order to start the worker: if it passes before the worker is ready, that worker does not
    /// run the task. At most 1000 calls are kept; a further one gives one future with
    /// [`Invalid`](crate::TaskError::Invalid).
    ///
    /// ```
    /// # use executor::prelude::*;
    /// struct Level(u32);
    /// #[task]
    /// fn set_level(level: u32) { executor::worker_state::set(Level(level)) }
    /// #[task]
    /// fn level() -> u32 { executor::with_worker_state(|level: &mut Level| level.0) }
    ///
    /// #[executor::main]
    /// fn main() {
    ///     let pool = ProcessPoolExecutor::builder().max_workers(1).build().unwrap();
    ///     assert!(pool.broadcast_and_later(set_level::task(3)).is_empty(), "there is no worker yet");
    ///     assert_eq!(pool.submit(level::task()).result().unwrap(), 3);
    ///     assert_eq!(pool.broadcast_and_later(set_level::task(4)).len(), 1);
    ///     assert_eq!(pool.submit(level::task()).result().unwrap(), 4);
    /// }
    /// ```
    pub fn broadcast_and_later<T: IntoTask>(&self, task: T) -> Vec<TaskFuture<T::Output>> {
        self.broadcast_to(task, true)
    }

    fn broadcast_to<T: IntoTask>(&self, task: T, later: bool) -> Vec<TaskFuture<T::Output>> {
        let (args, options) = task.into_task().into_parts();
        let pool = &self.handle.pool;
        let mut buffer = Buffer::with_store(pool.arguments());
        let mut attached = Vec::new();
        let refused = match (options.retry(), options.priority()) {
            (Some(_), _) => Some("has `retries`, but runs once in each worker, before all others"),
            (None, Some(_)) => {
                Some("has a `priority`, but runs once in each worker, before all others")
            }
            _ if !options.needs().is_empty() => {
                Some("has `needs`, but runs once in each worker, before all others")
            }
            _ if options.on_worker().is_some() => Some("is `on_worker`, but runs in each worker"),
            _ if pool.is_isolated() => Some(
                "cannot be sent to each worker, because with isolation each runs one task only",
            ),
            _ => None,
        };
        let name = options.called(T::Function::NAME).to_owned();
        let encoded = match refused {
            Some(why) => Err(Box::new(TaskError::invalid(format!("the task `{name}` {why}")))),
            None => encode::<T::Function, _>(args, &options, &mut buffer, &mut attached),
        };
        let arguments = match encoded {
            Ok(()) => buffer.take(attached),
            Err(error) => {
                return vec![self.refused::<T::Function>(*error)];
            }
        };
        let entry = T::Function::entry();
        let control = Arc::downgrade(pool);
        let make = move || {
            let control: Arc<dyn Control> = control.upgrade()?;
            let mut options = options.clone();
            let usage = options.begin_usage();
            let (chunk, cell) = Chunk::single(entry, arguments.clone(), options, control);
            Some((chunk, cell, usage))
        };
        let standing = make.clone();
        let standing = move || standing().map(|(chunk, ..)| chunk);
        let mut futures = Vec::new();
        let make = || {
            let (chunk, cell, usage) = make()?;
            futures.push(TaskFuture::new::<T::Function>(cell, usage));
            Some(chunk)
        };
        let refused = pool.broadcast(make, later.then(|| Arc::new(standing) as _));
        if let Err(why) = refused {
            let text = format!("the task `{name}` {why}");
            return vec![self.refused::<T::Function>(TaskError::invalid(text))];
        }
        futures
    }

    /// Returns the future of a task that was not submitted.
    fn refused<F: TaskFn>(&self, error: TaskError) -> TaskFuture<F::Output> {
        let RawControl(control) = Executor::control(self);
        let cell = Cell::done(next_task_ids(1), Some(control), error);
        TaskFuture::new::<F>(cell, None)
    }

    /// Ends all broadcasts of [`broadcast_and_later`](Self::broadcast_and_later): workers that are
    /// started from now on do not run them. Those that are there, or were ordered already, do.
    ///
    /// ```
    /// # use executor::prelude::*;
    /// # #[task]
    /// # fn set_level(level: u32) { executor::worker_state::set(level) }
    /// # #[task]
    /// # fn level() -> Option<u32> { executor::worker_state::take() }
    /// #[executor::main]
    /// fn main() {
    ///     let pool = ProcessPoolExecutor::builder().max_workers(1).build().unwrap();
    ///     pool.broadcast_and_later(set_level::task(3));
    ///     pool.end_broadcasts();
    ///     assert_eq!(pool.submit(level::task()).result().unwrap(), None);
    /// }
    /// ```
    pub fn end_broadcasts(&self) {
        self.handle.pool.end_broadcasts();
    }

    /// Submits a task for each item, and returns an iterator over the results in the order of the
    /// items.
    ///
    /// The iterator is lazy: nothing happens before the first `next`, and items are taken from the
    /// input only in `next`. So the input may be endless, and need be neither `Send` nor `'static`.
    /// At most [`buffer_size`](Map::buffer_size) items are submitted and not yet yielded. Each item
    /// has its own result: an item that fails does not end the iteration.
    ///
    /// ```
    /// use executor::prelude::*;
    ///
    /// #[task]
    /// fn square(x: u64) -> u64 { x * x }
    ///
    /// #[task]
    /// fn add(a: u64, b: u64) -> u64 { a + b }
    ///
    /// #[executor::main]
    /// fn main() -> Result<(), TaskError> {
    ///     let pool = ProcessPoolExecutor::builder().max_workers(2).build().unwrap();
    ///     let squares: Vec<u64> = pool.map(square::task, 0..4).collect::<Result<_, _>>()?;
    ///     assert_eq!(squares, [0, 1, 4, 9]);
    ///     // Several parameters: use a closure.
    ///     let sums: Vec<u64> = pool.map(|(a, b)| add::task(a, b), [(1, 2), (3, 4)]).collect::<Result<_, _>>()?;
    ///     assert_eq!(sums, [3, 7]);
    ///     Ok(())
    /// }
    /// ```
    pub fn map<T, I, M>(&self, make: M, items: I) -> Map<T::Function, T::Arguments, I::IntoIter, M>
    where
        T: MapTask,
        I: IntoIterator,
        M: FnMut(I::Item) -> T,
    {
        Map::new(Executor::handle(self), make, items.into_iter())
    }

    /// Stops accepting tasks, and finishes the accepted ones.
    ///
    /// With `wait`, it returns when every task is resolved, every worker has been reaped and every
    /// queued callback has run. Without `wait`, it returns at once, and the rest happens in the
    /// background. It may be called again, and from anywhere. If it is called from a callback, it
    /// does not wait for this callback.
    pub fn shutdown(&self, wait: bool) {
        self.shutdown_with(ShutdownOptions { wait, ..ShutdownOptions::default() });
    }

    /// Stops accepting tasks, and shuts the executor down as the options say.
    pub fn shutdown_with(&self, options: ShutdownOptions) {
        let pool = &self.handle.pool;
        let how = options.plan(Instant::now(), pool.graces());
        pool.shutdown(how);
        match how.kill_at {
            _ if !options.wait => {}
            None => pool.join(),
            Some(at) => {
                if !pool.join_until(at + KILLED_GRACE) {
                    tracing::warn!(timeout = ?options.timeout, "a shutdown takes longer than it may");
                }
            }
        }
    }

    /// Waits, at most for this time, until every task is resolved, every worker has been reaped and
    /// every queued callback has run. Returns whether that is so.
    ///
    /// It only waits, and ends nothing: see [`shutdown`](Self::shutdown) and
    /// [`shutdown_with`](Self::shutdown_with). While nobody shuts the executor down, it is never
    /// over. In a callback it does not wait for this callback.
    ///
    /// ```
    /// # use executor::prelude::*;
    /// # use std::time::Duration;
    /// #[task]
    /// fn forever() { loop { std::thread::park() } }
    ///
    /// #[executor::main]
    /// fn main() {
    ///     let pool = ProcessPoolExecutor::builder().max_workers(1).build().unwrap();
    ///     let future = pool.submit(forever::task());
    ///     pool.shutdown(false);
    ///     assert!(!pool.join_timeout(Duration::from_millis(20)), "the task runs");
    ///     future.cancel_running();
    ///     assert!(pool.join_timeout(Duration::MAX));
    /// }
    /// ```
    pub fn join_timeout(&self, timeout: Duration) -> bool {
        match Instant::now().checked_add(timeout) {
            Some(deadline) => self.handle.pool.join_until(deadline),
            None => {
                self.handle.pool.join();
                true
            }
        }
    }

    /// Takes what the [`finalizer`](ProcessPoolBuilder::finalizer) has returned in the workers that
    /// have ended up to now, in the order in which they ended. `F` is its function. Each result is
    /// returned once.
    ///
    /// After a [`shutdown`](Self::shutdown) that has waited, there is one for each worker that was
    /// not ended by a signal before. Results that nobody takes are kept, but only the last 4096.
    ///
    /// # Errors
    /// Each item is the error of the finalizer in that worker, as for a task:
    /// [`TimedOut`](crate::TaskError::TimedOut) if its
    /// [`finalizer_timeout`](ProcessPoolBuilder::finalizer_timeout) has passed,
    /// [`WorkerLost`](crate::TaskError::WorkerLost) if the worker has ended before or within it,
    /// [`Shutdown`](crate::TaskError::Shutdown) if the executor has ended the worker meanwhile. If
    /// `F` is another function than the finalizer, the only item is
    /// [`Invalid`](crate::TaskError::Invalid), and nothing is taken.
    pub fn finalizer_results<F: TaskFn>(&self) -> Vec<Result<F::Output, TaskError>> {
        if !self.handle.pool.finalizer().is_some_and(|entry| std::ptr::eq(entry, F::entry())) {
            let text = format!("`{}` is not the finalizer of this executor", F::NAME);
            return vec![Err(TaskError::invalid(text))];
        }
        self.handle.pool.take_finalized().into_iter().map(decode::<F>).collect()
    }

    /// Does the same as `shutdown(true)`, for async code. The shutdown begins at once, and the
    /// returned future waits for its end.
    ///
    /// # Cancel safety
    /// Dropping the future stops the waiting, not the shutdown.
    pub fn shutdown_async(&self) -> impl Future<Output = ()> + Send + 'static {
        self.shutdown_with_async(ShutdownOptions::new())
    }

    /// Does the same as [`shutdown_with`](Self::shutdown_with), for async code. The shutdown begins
    /// at once, and the returned future waits for its end, or for nothing without
    /// [`wait`](field@ShutdownOptions::wait).
    ///
    /// # Cancel safety
    /// Dropping the future stops the waiting, not the shutdown.
    ///
    /// ```
    /// # use executor::{ShutdownOptions, prelude::*};
    /// # use std::time::Duration;
    /// #[task]
    /// fn forever() { loop { std::thread::park() } }
    ///
    /// #[executor::main]
    /// #[tokio::main(flavor = "current_thread")]
    /// async fn main() {
    ///     let pool = ProcessPoolExecutor::builder().max_workers(1).build().unwrap();
    ///     let future = pool.submit(forever::task());
    ///     let soon = ShutdownOptions::new().timeout(Duration::from_millis(100));
    ///     pool.shutdown_with_async(soon).await;
    ///     assert!(future.await.unwrap_err().is_shutdown());
    /// }
    /// ```
    pub fn shutdown_with_async(
        &self,
        options: ShutdownOptions,
    ) -> impl Future<Output = ()> + Send + 'static {
        let pool = Arc::clone(&self.handle.pool);
        let how = options.plan(Instant::now(), pool.graces());
        pool.shutdown(how);
        async move {
            let mut over = pin!(pool.join_async());
            let mut timer = how.kill_at.map(|at| Timer::new(at + KILLED_GRACE));
            let ends = poll_fn(|cx| match (over.as_mut().poll(cx), &mut timer) {
                (Poll::Ready(()), _) => Poll::Ready(true),
                (Poll::Pending, Some(timer)) => timer.poll(cx.waker()).map(|()| false),
                (Poll::Pending, None) => Poll::Pending,
            });
            if options.wait && !ends.await {
                tracing::warn!(timeout = ?options.timeout, "a shutdown takes longer than it may");
            }
        }
    }

    /// Terminates all workers with SIGTERM, and kills the workers that still exist after the
    /// [`terminate_grace`](ProcessPoolBuilder::terminate_grace), which is half a second by default,
    /// with SIGKILL. Unresolved tasks fail with
    /// [`TaskError::Shutdown`](crate::TaskError::Shutdown), and the executor accepts no more tasks.
    /// It does not wait.
    pub fn terminate_workers(&self) {
        self.handle.pool.end_workers(false);
    }

    /// Kills all workers at once. Unresolved tasks fail with
    /// [`TaskError::Shutdown`](crate::TaskError::Shutdown), and the executor accepts no more tasks.
    /// It does not wait.
    pub fn kill_workers(&self) {
        self.handle.pool.end_workers(true);
    }

    /// Drops this handle. If it is the last one, this ends the pool as usual, and does not wait for
    /// that.
    fn release(self) {
        if let Some(mut handle) = Arc::into_inner(self.handle) {
            handle.waits = false;
        }
    }

    /// Returns the internal pool, for other types of this crate that are built on an executor.
    pub(crate) fn inner(&self) -> &Arc<Pool> {
        &self.handle.pool
    }

    /// Returns whether dropping the handle in the current context may wait for the end of the pool.
    pub(crate) fn may_wait(&self) -> bool {
        self.handle.may_wait()
    }

    /// Returns the maximum number of workers, which [`resize`](Self::resize) may have changed.
    pub fn max_workers(&self) -> usize {
        self.handle.pool.workers_max()
    }

    /// Changes the maximum number of workers, while the executor is in use.
    ///
    /// It does not wait. If there may be more workers now, they are started as soon as there is
    /// work for them. If there may be fewer, those leave that have the least to do, and no task is
    /// lost: a worker first ends the task that it runs, which is also logged as a warning, and
    /// tasks that were sent ahead to it are run by others. If the number grows again before that,
    /// the worker stays. Workers keep their [index](crate::worker_index), also one above the new
    /// number.
    ///
    /// With [`Isolation::PerTask`] it changes how many tasks run at the same time. The number of
    /// workers that are [kept ready](ProcessPoolBuilder::ready) stays.
    ///
    /// Where fewer workers are allowed than
    /// [`min_workers`](ProcessPoolBuilder::min_workers), all of them are kept. On an executor that
    /// has ended, it has no effect.
    ///
    /// # Errors
    /// [`BuildError::Invalid`] if the number is 0, or above the number of
    /// [`slots`](ProcessPoolBuilder::slots). Nothing changes then.
    ///
    /// ```
    /// # use executor::prelude::*;
    /// #[task]
    /// fn square(x: u64) -> u64 { x * x }
    ///
    /// #[executor::main]
    /// fn main() -> Result<(), Box<dyn std::error::Error>> {
    ///     let pool = ProcessPoolExecutor::builder().max_workers(1).build()?;
    ///     let futures: Vec<_> = (0..100).map(|x| pool.submit(square::task(x))).collect();
    ///     pool.resize(2)?;
    ///     assert_eq!(pool.max_workers(), 2);
    ///     for (x, future) in (0..).zip(futures) {
    ///         assert_eq!(future.result()?, x * x);
    ///     }
    ///     assert!(pool.resize(0).is_err());
    ///     Ok(())
    /// }
    /// ```
    pub fn resize(&self, max_workers: usize) -> Result<(), BuildError> {
        if max_workers == 0 {
            return Err(BuildError::Invalid("max_workers must be above 0".into()));
        }
        if let Some(slots) = self.handle.pool.slots()
            && max_workers > slots
        {
            return Err(BuildError::Invalid(format!(
                "max_workers is {max_workers}, but there are only {slots} slots: each worker needs one"
            )));
        }
        self.handle.pool.resize(max_workers);
        Ok(())
    }

    /// Returns the process ids of the current workers.
    ///
    /// ```
    /// # use executor::prelude::*;
    /// #[task]
    /// fn pid() -> u32 { std::process::id() }
    ///
    /// #[executor::main]
    /// fn main() {
    ///     let pool = ProcessPoolExecutor::builder().max_workers(2).build().unwrap();
    ///     assert!(pool.worker_pids().is_empty(), "workers start on demand");
    ///     let worker = pool.submit(pid::task()).result().unwrap();
    ///     assert_eq!(pool.worker_pids(), [worker]);
    ///     pool.kill_workers();
    ///     assert!(pool.submit(pid::task()).result().unwrap_err().is_shutdown());
    /// }
    /// ```
    pub fn worker_pids(&self) -> Vec<u32> {
        self.handle.pool.worker_pids()
    }

    /// Returns why this executor is broken, or `None` if it is not broken.
    ///
    /// A broken executor cannot run tasks any more. All its futures fail with this cause from then
    /// on. It stays broken, so create another executor.
    ///
    /// ```
    /// # use executor::prelude::*;
    /// #[task]
    /// fn load(model: &str) -> Result<(), String> { Err(format!("no model `{model}`")) }
    ///
    /// #[task]
    /// fn predict(x: u64) -> u64 { x }
    ///
    /// #[executor::main]
    /// fn main() {
    ///     let pool = ProcessPoolExecutor::builder().max_workers(1).initializer(load::task("m")).build().unwrap();
    ///     assert!(pool.broken().is_none(), "no worker has been started");
    ///     assert!(pool.submit(predict::task(1)).result().unwrap_err().is_broken());
    ///     assert!(pool.broken().unwrap().to_string().contains("no model `m`"));
    /// }
    /// ```
    pub fn broken(&self) -> Option<BrokenCause> {
        self.handle.pool.broken()
    }

    /// Returns how many tasks wait, run and have ended in which way, how many workers there are and
    /// were, and how much memory the executor shares with them.
    ///
    /// The tasks are counted at one moment: `queued`, `running`, `done` and the failures together
    /// are all tasks that were ever submitted. In a copy of the process that a `fork` has made, all
    /// counts are 0.
    ///
    /// ```
    /// # use executor::prelude::*;
    /// #[task]
    /// fn sum(bytes: &[u8]) -> u64 { bytes.iter().map(|byte| u64::from(*byte)).sum() }
    ///
    /// #[executor::main]
    /// fn main() {
    ///     let pool = ProcessPoolExecutor::builder().max_workers(1).build().unwrap();
    ///     assert_eq!(pool.submit(sum::task(&vec![1; 1 << 20])).result().unwrap(), 1 << 20);
    ///     let stats = pool.stats();
    ///     assert_eq!((stats.workers, stats.done, stats.queued), (1, 1, 0));
    ///     // The mebibyte was sent through shared memory. The segment is kept for a while, for reuse.
    ///     assert!(stats.segments <= 1 && stats.segment_bytes < 2 << 20, "{stats:?}");
    /// }
    /// ```
    pub fn stats(&self) -> Stats {
        self.handle.pool.stats()
    }

    /// Returns a row for each worker: its process, what it does, the task that it runs, and how
    /// much memory it has. The worker that was started first is the first.
    ///
    /// The memory is read from `/proc` during this call, which takes some microseconds for each
    /// worker. Workers are not interrupted, and the executor is not held up.
    ///
    /// ```
    /// # use executor::{WorkerStatus, prelude::*};
    /// #[task]
    /// fn square(x: u64) -> u64 { x * x }
    ///
    /// #[executor::main]
    /// fn main() {
    ///     let pool = ProcessPoolExecutor::builder().max_workers(1).build().unwrap();
    ///     assert!(pool.worker_stats().is_empty(), "workers start on demand");
    ///     pool.submit(square::task(3)).result().unwrap();
    ///     for worker in pool.worker_stats() {
    ///         let mib = worker.memory.unwrap_or_default() >> 20;
    ///         println!("worker {}: {:?} for {:?}, {mib} MiB", worker.number, worker.status, worker.since.elapsed());
    ///         assert_eq!((worker.status, worker.tasks_done), (WorkerStatus::Idle, 1));
    ///     }
    /// }
    /// ```
    pub fn worker_stats(&self) -> Vec<WorkerStats> {
        self.handle.pool.worker_stats()
    }
}

impl Executor for ProcessPoolExecutor {
    fn submit_chunk(&self, chunk: Chunk) {
        self.handle.pool.submit(chunk);
    }

    fn control(&self) -> RawControl {
        RawControl(self.handle.pool.clone())
    }

    fn estimate(&self, entry: &'static TaskEntry) -> Option<Duration> {
        self.handle.pool.estimate(entry.id()?)
    }

    fn buffer(&self) -> Buffer {
        Buffer::with_store(self.handle.pool.arguments())
    }

    fn takes_single_calls(&self) -> bool {
        self.handle.pool.takes_single_calls()
    }

    fn is_isolated(&self) -> bool {
        self.handle.pool.is_isolated()
    }

    fn pressure(&self) -> Option<&Arc<Pressure>> {
        self.handle.pool.pressure()
    }

    fn handle(&self) -> Box<dyn Executor> {
        Box::new(self.clone())
    }

    fn max_workers(&self) -> usize {
        self.max_workers()
    }

    fn shutdown_with(&self, options: ShutdownOptions) {
        self.shutdown_with(options);
    }

    fn shutdown_boxed(&self, options: ShutdownOptions) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(self.shutdown_with_async(options))
    }
}

impl std::fmt::Debug for ProcessPoolExecutor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ProcessPoolExecutor")
            .field("max_workers", &self.max_workers())
            .field("worker_pids", &self.worker_pids())
            .finish()
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // In a fork, this handle is a copy, and the pool belongs to the parent.
        if self.pool.forked() {
            return;
        }
        let finish = Shutdown::default();
        match self.on_drop {
            OnDrop::Kill => self.pool.end_workers(true),
            // Long tasks must not hold up the unwinding.
            _ if std::thread::panicking() => {
                let deadline = Some(Instant::now() + UNWIND_GRACE);
                self.pool.shutdown(Shutdown { cancel_pending: true, deadline, ..finish });
            }
            OnDrop::Finish => self.pool.shutdown(finish),
            OnDrop::CancelPending => {
                self.pool.shutdown(Shutdown { cancel_pending: true, ..finish });
            }
        }
        if self.waits && self.may_wait() {
            self.pool.join();
        }
    }
}

impl Handle {
    /// Returns whether a drop in the current context may wait. It does not wait where this would
    /// block an async runtime, other callbacks or the pool's own threads. Then the driver finishes
    /// the work alone, and the end of the program waits for it.
    fn may_wait(&self) -> bool {
        !(self.pool.callbacks().is_current_thread()
            || pool::is_own_thread()
            || worker::in_task()
            || tokio::runtime::Handle::try_current().is_ok())
    }
}
