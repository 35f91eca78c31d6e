//! The builder of [`ProcessPoolExecutor`]: its options, and what `build` refuses.

mod ending;

use std::{sync::Arc, time::Duration};

mod reports;
mod restraints;
mod sharing;

pub(super) use reports::ReportOptions;
pub(super) use sharing::SharingOptions;

use super::{
    Handle, OnDrop, ProcessPoolExecutor,
    place::PlaceOptions,
    start::{Isolation, Starting},
};
use crate::{
    child::birth::{self, Barren},
    error::BuildError,
    os::{cgroup::CgroupLimits, cpu::usable_cpus_or_error, ready, setting::Setting},
    pool::{
        AtEnd, Graces, Initializer, Lifespan, Pool, PoolOptions, TaskDefaults, pressure::Pressure,
    },
    task::{IntoTask, TaskArgs, TaskFn},
    wire::{
        attachment,
        buffer::Buffer,
        handshake::{Restraints, Transport},
        payload::Payload,
    },
};

/// Default for the longest time from the start of a worker process to its first message. A start
/// takes about a millisecond, but may take seconds on a busy machine.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// Default time limit of the initializer in each worker. An initializer may load data for minutes.
/// One that hangs keeps tasks waiting for this long.
const INITIALIZER_TIMEOUT: Duration = Duration::from_secs(600);
/// Default time limit of the finalizer in each worker. A lower value kills finalizers that write
/// much to a slow disk. With a higher one, a finalizer that hangs holds up a shutdown for longer.
const FINALIZER_TIMEOUT: Duration = Duration::from_secs(30);

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
#[derive(Clone, Default)]
pub struct ProcessPoolBuilder {
    pub(super) max_workers: Option<usize>,
    pub(super) min_workers: Option<usize>,
    pub(super) max_tasks_per_worker: Option<usize>,
    pub(super) lifespan: Lifespan,
    of_pool: bool,
    initializer: Option<Initializer<Result<Payload, String>>>,
    initializer_timeout: Option<Duration>,
    finalizer: Option<Initializer<Result<Payload, String>>>,
    finalizer_timeout: Option<Duration>,
    graces: Graces,
    pub(super) starting: Starting,
    start_timeout: Option<Duration>,
    on_drop: Option<OnDrop>,
    exit_timeout: Option<Duration>,
    stack_size: Option<usize>,
    defaults: TaskDefaults,
    max_pending: Option<usize>,
    max_pending_bytes: Option<usize>,
    pub(super) restraints: Restraints,
    cgroup: Option<CgroupLimits>,
    pub(super) place: PlaceOptions,
    pub(super) sharing: SharingOptions,
    pub(super) reports: ReportOptions,
}

impl std::fmt::Debug for ProcessPoolBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ProcessPoolBuilder")
            .field("max_workers", &self.max_workers)
            .field("min_workers", &self.min_workers)
            .field("max_tasks_per_worker", &self.max_tasks_per_worker)
            .field("idle_timeout", &self.lifespan.idle_timeout)
            .field("max_lifetime", &self.lifespan.lifetime_max)
            .field("of_pool", &self.of_pool)
            .field("initializer", &self.initializer.as_ref().map(|initializer| &initializer.name))
            .field("initializer_timeout", &self.initializer_timeout)
            .field("finalizer", &self.finalizer.as_ref().map(|finalizer| &finalizer.name))
            .field("finalizer_timeout", &self.finalizer_timeout)
            .field("cancel_grace", &self.graces.cancel)
            .field("terminate_grace", &self.graces.terminate)
            .field("starting", &self.starting)
            .field("start_timeout", &self.start_timeout)
            .field("on_drop", &self.on_drop)
            .field("exit_timeout", &self.exit_timeout)
            .field("stack_size", &self.stack_size)
            .field("default_timeout", &self.defaults.timeout)
            .field("default_queue_timeout", &self.defaults.queue_timeout)
            .field("poison_limit", &self.defaults.poison_limit)
            .field("max_pending", &self.max_pending)
            .field("max_pending_bytes", &self.max_pending_bytes)
            .field("cgroup", &self.cgroup)
            .field("place", &self.place)
            .field("sharing", &self.sharing)
            .field("reports", &self.reports)
            .finish_non_exhaustive()
    }
}

impl ProcessPoolBuilder {
    /// Sets the maximum number of workers. The default is the number of [`slots`](Self::slots), if
    /// there are any, and [`usable_cpus`](crate::usable_cpus) otherwise.
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
        self.initializer = Some(call_in_workers(task));
        self
    }

    /// Sets how long the initializer may take in each worker. If it takes longer, the executor is
    /// [`Broken`](crate::TaskError::Broken), as if the initializer had failed. Otherwise a worker
    /// that never becomes ready would keep tasks waiting for ever.
    ///
    /// The default is the task's own [time limit](crate::Task::timeout). If it has none, it is the
    /// [`start_timeout`](Self::start_timeout), if one was set, and 10 minutes otherwise, since an
    /// initializer may load much. [`Duration::MAX`] means no limit.
    ///
    /// The time counts from the worker's first message, and not from its start: a process that
    /// starts slowly on a busy machine is started again if need be, and must not look like an
    /// initializer that hangs, which breaks the executor. So a task waits for a worker that never
    /// becomes ready for twice the `start_timeout` at most.
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
    ///     let timeout = Duration::from_millis(200);
    ///     let pool = ProcessPoolExecutor::builder()
    ///         .max_workers(1)
    ///         .initializer(hangs::task())
    ///         .initializer_timeout(timeout)
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

    /// Sets how many workers are started at once and kept, whether or not there is work. The
    /// default is 0: workers start on demand.
    ///
    /// Use it if the first tasks must not wait for a start or for the
    /// [initializer](Self::initializer). A kept worker that ends for whatever reason is replaced at
    /// once. Only if it ends within two seconds after it was ready, before any task, it is replaced
    /// later: after 20 ms, and up to a second if that happens again. If five have done so within
    /// ten seconds, and no other worker is there, the executor is
    /// [broken](crate::TaskError::Broken). While the executor shuts down, none is kept.
    ///
    /// ```
    /// # use executor::prelude::*;
    /// #[task]
    /// fn pid() -> u32 { std::process::id() }
    ///
    /// #[executor::main]
    /// fn main() {
    ///     let pool = ProcessPoolExecutor::builder().min_workers(1).max_workers(2).build().unwrap();
    ///     while pool.worker_pids().is_empty() {
    ///         std::thread::yield_now(); // It comes without a task.
    ///     }
    ///     assert_eq!(pool.worker_pids(), [pool.submit(pid::task()).result().unwrap()]);
    /// }
    /// ```
    pub fn min_workers(mut self, min_workers: usize) -> Self {
        self.min_workers = Some(min_workers);
        self
    }

    /// Lets workers leave that have been idle for this long, except
    /// [`min_workers`](Self::min_workers) of them. They come back on demand. By default no worker
    /// leaves because it is idle.
    ///
    /// A worker that leaves is replaced by a new process, with a new
    /// [worker state](crate::worker_state). Of several idle workers, the one that was busy last
    /// gets the next task. So the others leave if there is less work for a while.
    /// [`Duration::MAX`] means no limit.
    ///
    /// ```
    /// # use executor::prelude::*;
    /// # use std::time::Duration;
    /// #[task]
    /// fn pid() -> u32 { std::process::id() }
    ///
    /// #[executor::main]
    /// fn main() {
    ///     let builder = ProcessPoolExecutor::builder().max_workers(2);
    ///     let pool = builder.idle_timeout(Duration::from_millis(10)).build().unwrap();
    ///     let first = pool.submit(pid::task()).result().unwrap();
    ///     while !pool.worker_pids().is_empty() {
    ///         std::thread::yield_now(); // It leaves by itself.
    ///     }
    ///     assert_ne!(pool.submit(pid::task()).result().unwrap(), first);
    /// }
    /// ```
    pub fn idle_timeout(mut self, timeout: Duration) -> Self {
        self.lifespan.idle_timeout = Some(timeout);
        self
    }

    /// Replaces workers of this age, counted from the end of their initializer. Use it for
    /// libraries that leak slowly, and for state that has to be renewed now and then. By default
    /// workers are not replaced.
    ///
    /// A worker is never interrupted: it leaves between two tasks, and tasks that were sent ahead
    /// to it are run by others. It takes at least one task if there is any, however short the time
    /// is. Workers leave up to a tenth of the time early, each at another moment, so that those
    /// that were started together do not leave together. A replacement is started when there is
    /// work for it, or at once if [`min_workers`](Self::min_workers) says so. [`Duration::MAX`]
    /// means no limit.
    ///
    /// ```
    /// # use executor::prelude::*;
    /// # use std::time::Duration;
    /// #[task]
    /// fn pid() -> u32 { std::process::id() }
    ///
    /// #[executor::main]
    /// fn main() {
    ///     let builder = ProcessPoolExecutor::builder().max_workers(1);
    ///     let pool = builder.max_lifetime(Duration::from_millis(20)).build().unwrap();
    ///     let first = pool.submit(pid::task()).result().unwrap();
    ///     while pool.submit(pid::task()).result().unwrap() == first {}
    /// }
    /// ```
    pub fn max_lifetime(mut self, lifetime: Duration) -> Self {
        self.lifespan.lifetime_max = Some(lifetime);
        self
    }

    /// Sets how long a worker may take from its start to its first message. The default is 30
    /// seconds. If it is set, the initializer, which runs after that, may take as long again,
    /// unless it has a limit of its own: see [`initializer_timeout`](Self::initializer_timeout).
    pub fn start_timeout(mut self, timeout: Duration) -> Self {
        self.start_timeout = Some(timeout);
        self
    }

    /// Sets what happens to unfinished work when the last handle is dropped, or when the program
    /// ends while the executor still exists.
    pub fn on_drop(mut self, policy: OnDrop) -> Self {
        self.on_drop = Some(policy);
        self
    }

    /// Limits how long the [end of the program](ProcessPoolExecutor#the-end-of-the-program) waits
    /// for the tasks that this executor has accepted. By default there is no limit.
    ///
    /// When the limit has passed, the workers are ended by SIGTERM, and after the
    /// [`terminate_grace`](Self::terminate_grace), which is half a second by default, by SIGKILL.
    /// Tasks are not asked to stop before. Unresolved tasks fail with
    /// [`TaskError::Shutdown`](crate::TaskError::Shutdown), which is also passed to their
    /// callbacks. Callbacks that have not returned two seconds later are not waited for.
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
    pub fn exit_timeout(mut self, timeout: Duration) -> Self {
        self.exit_timeout = Some(timeout);
        self
    }

    /// Makes it the executor of a [`Pool`](crate::Pool): all workers are started at once and are
    /// replaced when they end, whether or not there is work, and the end of the program ends them,
    /// with SIGTERM first.
    ///
    /// # Errors
    /// What is wrong with the options, if one of them would have no effect then.
    pub(crate) fn of_pool(
        mut self,
        processes: Option<usize>,
        max_tasks_per_child: Option<usize>,
    ) -> Result<Self, BuildError> {
        let has_both = max_tasks_per_child.is_some() && self.max_tasks_per_worker.is_some();
        let without_effect = [
            ("max_tasks_per_worker", has_both, "`max_tasks_per_child` is set"),
            ("max_workers", self.max_workers.is_some(), "`processes` says how many there are"),
            ("min_workers", self.min_workers.is_some(), "all are kept"),
            ("idle_timeout", self.lifespan.idle_timeout.is_some(), "all are kept"),
            ("on_drop", self.on_drop.is_some(), "a drop terminates it"),
        ];
        if let Some((option, _, why)) = without_effect.iter().find(|(_, is_set, _)| *is_set) {
            return Err(BuildError::Invalid(format!("`{option}` has no effect in a Pool: {why}")));
        }
        self.max_workers = processes;
        self.max_tasks_per_worker = max_tasks_per_child.or(self.max_tasks_per_worker);
        self.of_pool = true;
        Ok(self)
    }

    /// Sets the stack size of the thread that runs tasks, in bytes. The maximum is 120 MiB. The
    /// default is the system's limit for a main thread, which is 8 MiB on most systems.
    pub fn stack_size(mut self, bytes: usize) -> Self {
        self.stack_size = Some(bytes);
        self
    }

    /// Sets the [time limit](crate::Task::timeout) of tasks that have none of their own. By default
    /// there is no limit.
    ///
    /// The items of a [`map`](ProcessPoolExecutor::map) are tasks, too. They are then sent to
    /// workers one at a time, and not in chunks.
    ///
    /// ```
    /// # use executor::{Phase, prelude::*};
    /// # use std::time::Duration;
    /// #[task]
    /// fn sleep(millis: u64) { std::thread::sleep(Duration::from_millis(millis)) }
    ///
    /// #[executor::main]
    /// fn main() {
    ///     let builder = ProcessPoolExecutor::builder().max_workers(1);
    ///     let pool = builder.default_timeout(Duration::from_millis(20)).build().unwrap();
    ///     let slow = pool.submit(sleep::task(60_000));
    ///     let allowed = pool.submit(sleep::task(40).timeout(Duration::MAX));
    ///     assert!(slow.result().unwrap_err().is_timeout());
    ///     allowed.result().unwrap();
    /// }
    /// ```
    pub fn default_timeout(mut self, timeout: Duration) -> Self {
        self.defaults.timeout = Some(timeout);
        self
    }

    /// Sets the [limit on waiting for a worker](crate::Task::queue_timeout) of tasks that have none
    /// of their own. By default there is no limit.
    ///
    /// The items of a [`map`](ProcessPoolExecutor::map) are tasks, too. They are then sent to
    /// workers one at a time, and not in chunks. The time of an item counts from the moment the map
    /// submits it: see [`buffer_size`](crate::Map::buffer_size).
    pub fn default_queue_timeout(mut self, timeout: Duration) -> Self {
        self.defaults.queue_timeout = Some(timeout);
        self
    }

    /// Sets how many workers a task with [`retries`](crate::Task::retries) may end before it is not
    /// tried again, however many retries it has left. The default is 3. Workers that are lost
    /// count, also those that end because they exceed the
    /// [limit on memory](Self::worker_memory_limit), and not those that are killed because a time
    /// limit has passed. The error says that it is the last for this reason.
    ///
    /// ```
    /// # use executor::prelude::*;
    /// # use std::time::Duration;
    /// #[task]
    /// fn crash() { std::process::abort() }
    ///
    /// #[executor::main]
    /// fn main() {
    ///     let pool = ProcessPoolExecutor::builder().max_workers(1).poison_limit(2).build().unwrap();
    ///     let task = crash::task().retries(100).retry_delay(Duration::ZERO);
    ///     let error = pool.submit(task).result().unwrap_err();
    ///     assert!(error.is_worker_lost());
    ///     assert_eq!(error.attempts(), 2);
    /// }
    /// ```
    pub fn poison_limit(mut self, workers: u32) -> Self {
        self.defaults.poison_limit = Some(workers);
        self
    }

    /// Limits how many tasks may be pending: submitted, and not resolved yet. Tasks that run count,
    /// too, so a number below [`max_workers`](Self::max_workers) leaves workers without work. By
    /// default there is no limit.
    ///
    /// While there is no room,
    ///
    /// - [`submit`](ProcessPoolExecutor::submit) waits. In async code use
    ///   [`submit_async`](ProcessPoolExecutor::submit_async), which does not block the thread.
    /// - [`try_submit`](ProcessPoolExecutor::try_submit) returns the task.
    /// - A [`map`](ProcessPoolExecutor::map) takes no more items from its input. Only if none of
    ///   its items is pending, it waits for room.
    ///
    /// There is room when a task is resolved. Items of a map that were sent together make room when
    /// the last of them is. Those who wait get it in the order in which they came. They are also
    /// woken when the executor is shut down or broken. Then each task is refused as usual.
    ///
    /// The thread that calls callbacks ([`on_done`](crate::TaskFuture::on_done)) waits in `submit`
    /// like any other thread, and holds up the callbacks behind it. Only the executor's own
    /// threads, on which wakers run, do not wait: a waker that submits a task may exceed the limit.
    ///
    /// ```
    /// # use executor::prelude::*;
    /// #[task]
    /// fn sum(numbers: &[u64]) -> u64 { numbers.iter().sum() }
    ///
    /// #[executor::main]
    /// fn main() {
    ///     let pool = ProcessPoolExecutor::builder().max_workers(2).max_pending(8).build().unwrap();
    ///     // However many requests there are, at most eight are in memory.
    ///     let futures: Vec<_> = (0..100).map(|n| pool.submit(sum::task(&[n, n]))).collect();
    ///     let total: u64 = futures.into_iter().map(|future| future.result().unwrap()).sum();
    ///     assert_eq!(total, 9_900);
    /// }
    /// ```
    pub fn max_pending(mut self, tasks: usize) -> Self {
        self.max_pending = Some(tasks);
        self
    }

    /// Limits how many bytes of encoded arguments may be pending: no task is admitted while there
    /// are as many or more. Who comes then waits, as for [`max_pending`](Self::max_pending).
    ///
    /// The arguments of a task count from when they were encoded. So there may be more bytes than
    /// this: by the arguments of the last task that was admitted, or of as many tasks as threads
    /// submit at the same moment. A task with arguments of any size is admitted at some time. The
    /// items of a [`map`](ProcessPoolExecutor::map) that are sent together, which have 32 KiB at
    /// most, are like one task.
    /// [`SharedBytes`](crate::SharedBytes) do not count: their memory belongs to the owner of the
    /// handle.
    pub fn max_pending_bytes(mut self, bytes: usize) -> Self {
        self.max_pending_bytes = Some(bytes);
        self
    }

    /// Returns whether an executor with these options would be the same as one with the others.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        // Without `..`, so that no option is forgotten.
        let ProcessPoolBuilder {
            max_workers,
            min_workers,
            max_tasks_per_worker,
            lifespan,
            of_pool,
            initializer,
            initializer_timeout,
            finalizer,
            finalizer_timeout,
            graces,
            starting,
            start_timeout,
            on_drop,
            exit_timeout,
            stack_size,
            defaults,
            max_pending,
            max_pending_bytes,
            restraints,
            cgroup,
            place,
            sharing,
            reports,
        } = self;
        let same_call =
            |one: &Option<Initializer<_>>, other: &Option<Initializer<_>>| match (one, other) {
                (None, None) => true,
                (Some(one), Some(other)) => one.is_same(other),
                _ => false,
            };
        same_call(initializer, &other.initializer)
            && same_call(finalizer, &other.finalizer)
            && *finalizer_timeout == other.finalizer_timeout
            && *graces == other.graces
            && (max_workers, min_workers) == (&other.max_workers, &other.min_workers)
            && *max_tasks_per_worker == other.max_tasks_per_worker
            && *lifespan == other.lifespan
            && *of_pool == other.of_pool
            && *initializer_timeout == other.initializer_timeout
            && starting.is_same(&other.starting)
            && *start_timeout == other.start_timeout
            && *on_drop == other.on_drop
            && *exit_timeout == other.exit_timeout
            && *stack_size == other.stack_size
            && *defaults == other.defaults
            && *max_pending == other.max_pending
            && *max_pending_bytes == other.max_pending_bytes
            && *restraints == other.restraints
            && *cgroup == other.cgroup
            && place.is_same(&other.place)
            && *sharing == other.sharing
            && reports.is_same(&other.reports)
    }

    /// Builds the executor. No process is started yet, unless
    /// [`min_workers`](Self::min_workers) are to be.
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
        if self.lifespan.idle_timeout == Some(Duration::ZERO) {
            return invalid("idle_timeout must be above 0");
        }
        if self.lifespan.lifetime_max == Some(Duration::ZERO) {
            return invalid("max_lifetime must be above 0");
        }
        if self.defaults.timeout == Some(Duration::ZERO) {
            return invalid("default_timeout must be above 0");
        }
        if self.defaults.queue_timeout == Some(Duration::ZERO) {
            return invalid("default_queue_timeout must be above 0");
        }
        if self.defaults.poison_limit == Some(0) {
            return invalid("poison_limit must be above 0");
        }
        if self.max_pending == Some(0) {
            return invalid("max_pending must be above 0");
        }
        if self.max_pending_bytes == Some(0) {
            return invalid("max_pending_bytes must be above 0");
        }
        if self.start_timeout == Some(Duration::ZERO) {
            return invalid("start_timeout must be above 0");
        }
        if self.stack_size.is_some_and(|bytes| !(64 << 10..=120 << 20).contains(&bytes)) {
            return invalid("stack_size must lie between 64 KiB and 120 MiB");
        }
        restraints::check(&self.restraints)?;
        self.cgroup.as_ref().map_or(Ok(()), restraints::check_control_group)?;
        self.check_isolation()?;
        ready::check().map_err(|error| BuildError::Os {
            what: "to wait for descriptors (`poll`)",
            error: Arc::new(error),
        })?;
        let initializer = sendable("initializer", self.initializer)?;
        let finalizer = sendable("finalizer", self.finalizer)?;
        if self.finalizer_timeout.is_some() && finalizer.is_none() {
            return invalid("finalizer_timeout is set, but no finalizer");
        }
        let finalizer_timeout = self
            .finalizer_timeout
            .or_else(|| finalizer.as_ref()?.timeout)
            .unwrap_or(FINALIZER_TIMEOUT);
        if finalizer_timeout.is_zero() {
            return invalid("finalizer_timeout must be above 0");
        }
        let initializer_timeout = self
            .initializer_timeout
            .or_else(|| initializer.as_ref()?.timeout)
            .or(self.start_timeout)
            .unwrap_or(INITIALIZER_TIMEOUT);
        if initializer_timeout.is_zero() {
            return invalid("the timeout of the initializer must be above 0");
        }
        if self.initializer_timeout.is_some()
            && initializer.is_none()
            && self.starting.preload.is_empty()
        {
            return invalid("initializer_timeout is set, but no initializer and no preload");
        }
        let workers_max = self.max_workers.or_else(|| self.place.slots());
        let workers_max =
            workers_max.map_or_else(usable_cpus_or_error, Ok).map_err(BuildError::Invalid)?;
        let workers_min = match self.min_workers {
            _ if self.of_pool => workers_max,
            Some(min) if min > workers_max => {
                return Err(BuildError::Invalid(format!(
                    "min_workers ({min}) must not be above max_workers ({workers_max})"
                )));
            }
            min => min.unwrap_or(0),
        };
        let mut starting = self.starting;
        starting.environment.splice(..0, self.place.thread_variables());
        let places = self.place.checked(workers_max)?;
        let (resources, round_robin) = self.sharing.checked()?;
        // Use shared memory, unless the environment selects the fallback.
        let transport = TRANSPORT.read().map_err(BuildError::Invalid)?.unwrap_or(Transport::Ring);
        let on_drop = self.on_drop.unwrap_or_default();
        let control_group = self.cgroup.as_ref().map(restraints::control_group).transpose()?;
        let per_task = starting.isolation == Isolation::PerTask;
        let tasks_max = if per_task { Some(1) } else { self.max_tasks_per_worker };
        let pool = Pool::new(PoolOptions {
            workers_max,
            workers_min,
            // A limit that does not fit into 32 bits is never reached, so it means no limit.
            tasks_max: tasks_max.and_then(|tasks| u32::try_from(tasks).ok()),
            lifespan: self.lifespan,
            start_timeout: self.start_timeout.unwrap_or(START_TIMEOUT),
            initializer_timeout,
            initializer,
            finalizer,
            finalizer_timeout,
            graces: self.graces,
            start: starting.check(workers_max, initializer_timeout)?,
            places,
            resources,
            round_robin,
            stack_bytes: self.stack_size.map(|bytes| bytes as u64),
            transport,
            at_end: match on_drop {
                _ if self.of_pool => AtEnd::Terminate,
                OnDrop::Finish => AtEnd::Finish,
                OnDrop::CancelPending => AtEnd::CancelPending,
                OnDrop::Kill => AtEnd::Kill,
            },
            exit_timeout: self.exit_timeout,
            defaults: self.defaults,
            pressure: (self.max_pending.is_some() || self.max_pending_bytes.is_some())
                .then(|| Pressure::new(self.max_pending, self.max_pending_bytes)),
            restraints: self.restraints,
            control_group: control_group.flatten(),
            error_hook: self.reports.checked()?,
        })
        .map_err(|error| BuildError::Os {
            what: "the descriptors of an executor",
            error: Arc::new(error),
        })?;
        let handle = Handle { pool, on_drop, waits: true };
        Ok(ProcessPoolExecutor { handle: Arc::new(handle) })
    }
}

impl Initializer<Result<Payload, String>> {
    /// Returns whether both would do the same. Descriptors are different each time.
    fn is_same(&self, other: &Self) -> bool {
        let bytes = |one: &Self| {
            let payload = one.arguments.as_ref().ok()?;
            payload.attachments().is_empty().then(|| payload.to_vec())
        };
        std::ptr::eq(self.entry, other.entry)
            && (&self.name, self.timeout) == (&other.name, other.timeout)
            && bytes(self).is_some_and(|one| bytes(other) == Some(one))
    }
}

/// Encodes a task that each worker is to run.
fn call_in_workers<T: IntoTask>(task: T) -> Initializer<Result<Payload, String>> {
    let mut bytes = Buffer::new();
    let (args, options) = task.into_task().into_parts();
    let (encoded, attachments) =
        attachment::collect(|| T::Function::encode_args(&args, &mut bytes));
    let arguments = encoded.map(|()| bytes.take(attachments)).map_err(|error| error.message);
    let entry = T::Function::entry();
    let name = options.called(entry.name).into();
    let timeout = options.timeout();
    let arguments = match options.refusal_without_queue() {
        Some(what) => Err(format!("it has a {what}")),
        None => entry.known().and(arguments),
    };
    Initializer { entry, name, timeout, arguments }
}

/// Returns the task for workers, or an error if it cannot be sent to them.
fn sendable(
    what: &str,
    task: Option<Initializer<Result<Payload, String>>>,
) -> Result<Option<Initializer<Payload>>, BuildError> {
    let Some(Initializer { entry, name, timeout, arguments }) = task else { return Ok(None) };
    match arguments {
        Ok(arguments) => Ok(Some(Initializer { entry, name, timeout, arguments })),
        Err(error) => Err(BuildError::Invalid(format!(
            "the {what} `{name}` cannot be sent to workers: {error}"
        ))),
    }
}

/// The transport between an executor and its workers, as the environment selects it.
static TRANSPORT: Setting<Transport> =
    Setting::new("EXECUTOR_TRANSPORT", "`ring` (the default) or `ipc`", |name| match name {
        "ring" => Some(Transport::Ring),
        "ipc" => Some(Transport::Ipc),
        _ => None,
    });
