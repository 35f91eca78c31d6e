//! The executor that runs tasks in child processes: [`ProcessPoolExecutor`] and its builder.

use std::{
    ffi::OsString,
    future::Future,
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{Executor, Map, RawControl, ShutdownOptions, submit};
use crate::{
    child::birth::{self, Barren},
    error::{BrokenCause, BuildError},
    future::TaskFuture,
    os::{cpu::usable_cpus_or_error, ready, setting::Setting},
    pool::{self, AtEnd, Chunk, Initializer, Pool, PoolOptions, Stats},
    registry::TaskEntry,
    task::{IntoTask, TaskArgs, TaskFn, TaskOptions},
    wire::{attachment, buffer::Buffer, handshake::Transport, payload::Payload},
    worker,
};

/// Default limit for the time from the start of a worker process to its first message. A start
/// takes about a millisecond, but may take seconds on a busy machine.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// Default time limit of the initializer in each worker. An initializer may load data for minutes.
/// One that hangs keeps tasks waiting for this long.
const INITIALIZER_TIMEOUT: Duration = Duration::from_secs(600);
/// How long running tasks may continue if the last handle is dropped while a panic unwinds.
const UNWIND_GRACE: Duration = Duration::from_secs(1);

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

    /// Submits a task and returns its future. It never blocks and never fails: errors are reported
    /// by the future.
    ///
    /// Arguments are encoded during this call, so they may be borrowed.
    pub fn submit<T: IntoTask>(&self, task: T) -> TaskFuture<T::Output> {
        submit(self, task.into_task())
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
        T: IntoTask,
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
        self.handle.pool.shutdown(options.cancel_pending, options.deadline);
        if options.wait {
            self.handle.pool.join();
        }
    }

    /// Does the same as `shutdown(true)`, for async code. The shutdown begins at once, and the
    /// returned future waits for its end.
    ///
    /// # Cancel safety
    /// Dropping the future stops the waiting, not the shutdown.
    pub fn shutdown_async(&self) -> impl Future<Output = ()> + Send + 'static {
        let pool = Arc::clone(&self.handle.pool);
        pool.shutdown(false, None);
        async move { pool.join_async().await }
    }

    /// Terminates all workers with SIGTERM, and kills the workers that still exist half a second
    /// later with SIGKILL. Unresolved tasks fail with
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

    /// Returns the internal pool, for other types of this crate that are built on an executor.
    pub(crate) fn inner(&self) -> &Arc<Pool> {
        &self.handle.pool
    }

    /// Returns whether dropping the handle in the current context may wait for the end of the pool.
    pub(crate) fn may_wait(&self) -> bool {
        self.handle.may_wait()
    }

    /// Returns the maximum number of workers.
    pub fn max_workers(&self) -> usize {
        self.handle.pool.workers_max()
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

    /// Returns the number of workers, and the amount of memory that the executor shares with them.
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
    ///     assert_eq!(stats.workers, 1);
    ///     // The mebibyte was sent through shared memory. The segment is kept for a while, for reuse.
    ///     assert!(stats.segments <= 1 && stats.segment_bytes < 2 << 20, "{stats:?}");
    /// }
    /// ```
    pub fn stats(&self) -> Stats {
        self.handle.pool.stats()
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

    fn handle(&self) -> Box<dyn Executor> {
        Box::new(self.clone())
    }

    fn max_workers(&self) -> usize {
        self.max_workers()
    }

    fn shutdown_with(&self, options: ShutdownOptions) {
        self.shutdown_with(options);
    }

    fn shutdown_boxed(&self) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(self.shutdown_async())
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
        match self.on_drop {
            OnDrop::Kill => self.pool.end_workers(true),
            // Long tasks must not hold up the unwinding.
            _ if std::thread::panicking() => {
                self.pool.shutdown(true, Some(Instant::now() + UNWIND_GRACE))
            }
            OnDrop::Finish => self.pool.shutdown(false, None),
            OnDrop::CancelPending => self.pool.shutdown(true, None),
        }
        if self.may_wait() {
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

/// Builder for a [`ProcessPoolExecutor`].
///
/// ```
/// use executor::prelude::*;
/// use std::time::Duration;
///
/// #[task]
/// fn prepare(level: String) { /* once in each worker */ }
///
/// #[executor::main]
/// fn main() -> Result<(), executor::BuildError> {
///     let pool = ProcessPoolExecutor::builder()
///         .max_workers(4)
///         .initializer(prepare::task("warm".into()))
///         .env("RAYON_NUM_THREADS", "1")
///         .start_timeout(Duration::from_secs(5))
///         .build()?;
///     assert_eq!(pool.max_workers(), 4);
///     Ok(())
/// }
/// ```
#[must_use = "a builder does nothing until `build`"]
#[derive(Default)]
pub struct ProcessPoolBuilder {
    max_workers: Option<usize>,
    max_tasks_per_worker: Option<usize>,
    start_at_once: bool,
    initializer: Option<Initializer<Result<Payload, String>>>,
    initializer_timeout: Option<Duration>,
    envs: Vec<(OsString, OsString)>,
    start_timeout: Option<Duration>,
    on_drop: OnDrop,
    exit_timeout: Option<Duration>,
    terminates_at_end: bool,
    stack_size: Option<usize>,
}

impl std::fmt::Debug for ProcessPoolBuilder {
    /// Writes the options. Of environment variables it writes the names only, because values may
    /// be secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<_> = self.envs.iter().map(|(name, _)| name).collect();
        f.debug_struct("ProcessPoolBuilder")
            .field("max_workers", &self.max_workers)
            .field("max_tasks_per_worker", &self.max_tasks_per_worker)
            .field("start_at_once", &self.start_at_once)
            .field("initializer", &self.initializer.as_ref().map(|initializer| &initializer.name))
            .field("initializer_timeout", &self.initializer_timeout)
            .field("envs", &names)
            .field("start_timeout", &self.start_timeout)
            .field("on_drop", &self.on_drop)
            .field("exit_timeout", &self.exit_timeout)
            .field("stack_size", &self.stack_size)
            .finish_non_exhaustive()
    }
}

impl ProcessPoolBuilder {
    /// Sets the maximum number of workers. The default is [`usable_cpus`](crate::usable_cpus).
    /// Workers start on demand.
    pub fn max_workers(mut self, max_workers: usize) -> Self {
        self.max_workers = Some(max_workers);
        self
    }

    /// Sets a task that each worker runs once, before any other task and on the same thread. Its
    /// value is dropped.
    ///
    /// If it fails in any worker, also in one that replaces another, the executor is
    /// [`Broken`](crate::TaskError::Broken) from then on. See
    /// [`broken`](ProcessPoolExecutor::broken).
    ///
    /// The initializer can store a value for later tasks with
    /// [`worker_state::set`](crate::worker_state::set). Errors contain its
    /// [name](crate::Task::name). Its [time limit](crate::Task::timeout) is the default for
    /// [`initializer_timeout`](Self::initializer_timeout).
    pub fn initializer<T: IntoTask>(mut self, task: T) -> Self {
        let mut bytes = Buffer::new();
        let (args, TaskOptions { timeout, name }) = task.into_task().into_parts();
        let (encoded, attachments) =
            attachment::collect(|| T::Function::encode_args(&args, &mut bytes));
        let arguments = encoded.map(|()| bytes.take(attachments)).map_err(|error| error.message);
        let entry = T::Function::entry();
        let name = name.unwrap_or_else(|| entry.name.into());
        let arguments = entry.known().and(arguments);
        self.initializer = Some(Initializer { entry, name, timeout, arguments });
        self
    }

    /// Sets how long the initializer may take in each worker. If it takes longer, the executor is
    /// [`Broken`](crate::TaskError::Broken), as if the initializer had failed. Otherwise a worker
    /// that never becomes ready would keep tasks waiting for ever.
    ///
    /// The default is the task's own [time limit](crate::Task::timeout). If it has none, it is the
    /// [`start_timeout`](Self::start_timeout), if one was set, and 10 minutes otherwise.
    /// [`Duration::MAX`] means no limit.
    ///
    /// ```
    /// # use executor::{BrokenCause, prelude::*};
    /// # use std::time::Duration;
    /// #[task]
    /// fn hangs() { loop { std::thread::park() } }
    /// #[task]
    /// fn one() -> u32 { 1 }
    ///
    /// #[executor::main]
    /// fn main() {
    ///     let limit = Duration::from_millis(200);
    ///     let pool = ProcessPoolExecutor::builder()
    ///         .max_workers(1)
    ///         .initializer(hangs::task())
    ///         .initializer_timeout(limit)
    ///         .build()
    ///         .unwrap();
    ///     match pool.submit(one::task()).result() {
    ///         Err(TaskError::Broken(BrokenCause::Initializer(error))) => assert!(error.is_timeout()),
    ///         other => panic!("{other:?}"),
    ///     }
    /// }
    /// ```
    pub fn initializer_timeout(mut self, timeout: Duration) -> Self {
        self.initializer_timeout = Some(timeout);
        self
    }

    /// Replaces each worker after this number of tasks. Use it for tasks that leak memory or other
    /// resources. By default workers are not replaced. A task that is stopped at its time limit, or
    /// that dies, counts like any other task. The items of a `map` count individually.
    ///
    /// ```
    /// # use executor::prelude::*;
    /// #[task]
    /// fn pid() -> u32 { std::process::id() }
    ///
    /// #[executor::main]
    /// fn main() {
    ///     let pool = ProcessPoolExecutor::builder().max_workers(1).max_tasks_per_worker(2).build().unwrap();
    ///     let pids = [(); 3].map(|()| pool.submit(pid::task()).result().unwrap());
    ///     assert!(pids[0] == pids[1] && pids[1] != pids[2]);
    /// }
    /// ```
    pub fn max_tasks_per_worker(mut self, tasks: usize) -> Self {
        self.max_tasks_per_worker = Some(tasks);
        self
    }

    /// Starts all workers at once, and replaces them when they end, whether or not there is work.
    pub(crate) fn start_at_once(mut self) -> Self {
        self.start_at_once = true;
        self
    }

    /// Sets an environment variable in the workers. The environment of this process does not
    /// change.
    pub fn env(mut self, key: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.envs.push((key.into(), value.into()));
        self
    }

    /// Sets how long a worker may take from its start to its first message. The default is 30
    /// seconds. The initializer runs after that and may take as long again, unless
    /// [`initializer_timeout`](Self::initializer_timeout) is set.
    pub fn start_timeout(mut self, timeout: Duration) -> Self {
        self.start_timeout = Some(timeout);
        self
    }

    /// Sets what happens to unfinished work when the last handle is dropped, or when the program
    /// ends while the executor still exists.
    pub fn on_drop(mut self, policy: OnDrop) -> Self {
        self.on_drop = policy;
        self
    }

    /// Limits how long the [end of the program](ProcessPoolExecutor#the-end-of-the-program) waits
    /// for the tasks that this executor has accepted. By default there is no limit.
    ///
    /// When the limit has passed, the workers are ended by SIGTERM, and half a second later by
    /// SIGKILL. Unresolved tasks fail with [`TaskError::Shutdown`](crate::TaskError::Shutdown),
    /// which is also passed to their callbacks. Callbacks that have not returned two seconds later
    /// are not waited for.
    ///
    /// It does not limit a drop that waits, nor [`shutdown`](ProcessPoolExecutor::shutdown).
    ///
    /// ```
    /// # use executor::prelude::*;
    /// # use std::{sync::OnceLock, time::Duration};
    /// #[task]
    /// fn forever() { loop { std::thread::park() } }
    ///
    /// static POOL: OnceLock<ProcessPoolExecutor> = OnceLock::new();
    ///
    /// #[executor::main]
    /// fn main() {
    ///     let pool = POOL.get_or_init(|| {
    ///         let builder = ProcessPoolExecutor::builder().max_workers(1);
    ///         builder.exit_timeout(Duration::from_millis(10)).build().unwrap()
    ///     });
    ///     pool.submit(forever::task()).on_done(|outcome| assert!(outcome.unwrap_err().is_shutdown()));
    ///     // Nobody shuts the executor down, but the program ends.
    /// }
    /// ```
    pub fn exit_timeout(mut self, limit: Duration) -> Self {
        self.exit_timeout = Some(limit);
        self
    }

    /// Makes the end of the program end the workers, with SIGTERM first.
    pub(crate) fn terminate_at_end(mut self) -> Self {
        self.terminates_at_end = true;
        self
    }

    /// Sets the stack size of the thread that runs tasks, in bytes. The maximum is 120 MiB. The
    /// default is the system's limit for a main thread, which is 8 MiB on most systems.
    pub fn stack_size(mut self, bytes: usize) -> Self {
        self.stack_size = Some(bytes);
        self
    }

    /// Builds the executor. No process is started yet.
    ///
    /// # Errors
    /// - [`BuildError::Invalid`] if an option makes no sense, or if an environment variable of this
    ///   library that is needed has an unknown value (`EXECUTOR_TRANSPORT`; `EXECUTOR_CPU_COUNT`
    ///   without [`max_workers`](Self::max_workers)).
    /// - [`BuildError::NoEntry`] if this process is a worker that never reached
    ///   [`init`](crate::init).
    /// - [`BuildError::TooDeep`] if executors are nested too deeply.
    /// - [`BuildError::Os`] if the system refuses a resource.
    pub fn build(self) -> Result<ProcessPoolExecutor, BuildError> {
        let invalid = |text: &str| Err(BuildError::Invalid(text.into()));
        // This process is a worker that runs the program's `main`. Its own workers would do the
        // same, without end.
        birth::may_have_children().map_err(|barren| match barren {
            Barren::NoEntry => BuildError::NoEntry,
            Barren::TooDeep { depth, max } => BuildError::TooDeep { depth, max },
        })?;
        if self.max_workers == Some(0) {
            return invalid("max_workers must be above 0");
        }
        if self.max_tasks_per_worker == Some(0) {
            return invalid("max_tasks_per_worker must be above 0");
        }
        if self.start_timeout == Some(Duration::ZERO) {
            return invalid("start_timeout must be above 0");
        }
        if self.initializer_timeout == Some(Duration::ZERO) {
            return invalid("initializer_timeout must be above 0");
        }
        if self.stack_size.is_some_and(|bytes| !(64 << 10..=120 << 20).contains(&bytes)) {
            return invalid("stack_size must lie between 64 KiB and 120 MiB");
        }
        if self.envs.iter().any(|(key, value)| !is_env(key, value)) {
            return invalid(
                "an environment variable's name is empty or has a `=` or a zero byte, or its value has one",
            );
        }
        ready::check().map_err(|error| BuildError::Os {
            what: "to wait for descriptors (`poll`)",
            error: Arc::new(error),
        })?;
        let initializer = match self.initializer {
            None => None,
            Some(Initializer { entry, name, timeout, arguments: Ok(arguments) }) => {
                Some(Initializer { entry, name, timeout, arguments })
            }
            Some(Initializer { name, arguments: Err(error), .. }) => {
                return invalid(&format!(
                    "the initializer `{name}` cannot be sent to workers: {error}"
                ));
            }
        };
        let initializer_timeout = self
            .initializer_timeout
            .or_else(|| initializer.as_ref()?.timeout)
            .or(self.start_timeout)
            .unwrap_or(INITIALIZER_TIMEOUT);
        let workers_max =
            self.max_workers.map_or_else(usable_cpus_or_error, Ok).map_err(BuildError::Invalid)?;
        // Use shared memory, unless the environment selects the fallback.
        let transport = TRANSPORT.read().map_err(BuildError::Invalid)?.unwrap_or(Transport::Ring);
        let pool = Pool::new(PoolOptions {
            workers_max,
            workers_min: if self.start_at_once { workers_max } else { 0 },
            // A limit that does not fit into 32 bits is never reached, so it means no limit.
            tasks_max: self.max_tasks_per_worker.and_then(|tasks| u32::try_from(tasks).ok()),
            start_timeout: self.start_timeout.unwrap_or(START_TIMEOUT),
            initializer_timeout,
            initializer,
            envs: self.envs.into_iter().map(|(key, value)| (key, Some(value))).collect(),
            stack_bytes: self.stack_size.map(|bytes| bytes as u64),
            transport,
            at_end: match self.on_drop {
                _ if self.terminates_at_end => AtEnd::Terminate,
                OnDrop::Finish => AtEnd::Finish,
                OnDrop::CancelPending => AtEnd::CancelPending,
                OnDrop::Kill => AtEnd::Kill,
            },
            exit_timeout: self.exit_timeout,
        })
        .map_err(|error| BuildError::Os {
            what: "the descriptors of an executor",
            error: Arc::new(error),
        })?;
        Ok(ProcessPoolExecutor { handle: Arc::new(Handle { pool, on_drop: self.on_drop }) })
    }
}

/// The transport between an executor and its workers, as the environment selects it.
static TRANSPORT: Setting<Transport> =
    Setting::new("EXECUTOR_TRANSPORT", "`ring` (the default) or `ipc`", |name| match name {
        "ring" => Some(Transport::Ring),
        "ipc" => Some(Transport::Ipc),
        _ => None,
    });

fn is_env(key: &OsString, value: &OsString) -> bool {
    let (key, value) = (key.as_encoded_bytes(), value.as_encoded_bytes());
    !key.is_empty() && !key.contains(&b'=') && !key.contains(&0) && !value.contains(&0)
}
