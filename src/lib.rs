//! `concurrent.futures` and `multiprocessing` for Rust: functions marked [`#[task]`](macro@task)
//! run in child processes of the same program, and each call gives back a future.
//!
//! ```
//! use executor::prelude::*;
//!
//! #[task]
//! fn add(a: i64, b: i64) -> i64 { a + b }
//!
//! #[executor::main]
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let pool = ProcessPoolExecutor::new()?;
//!     let future = pool.submit(add::task(1, 2));
//!     assert_eq!(future.result()?, 3);
//!     Ok(())
//! }
//! ```
//!
//! People use processes for **isolation**: native code that may crash, libraries that need a
//! process of their own, input that may exhaust memory or keep a computation running forever. A
//! task that does any of this takes down its own worker and nothing else.
//!
//! # A tour in five minutes
//!
//! **Tasks.** [`#[task]`](macro@task) leaves a function unchanged and adds a type of the same name
//! beside it. `add(1, 2)` calls the function. `add::task(1, 2)` is the call as a value, a [`Task`],
//! to be run in another process. Arguments and results can be any values that implement serde's
//! traits. A task that returns `Err` has failed.
//!
//! **Entry point.** A worker is your program, started again. [`#[executor::main]`](macro@main)
//! turns that process into a worker before your own code runs. The alternatives are
//! [`init()`](init) as the first line of `main`, and [`test_support!`] in a test crate. A
//! documentation test needs a `main` that uses one of the first two.
//!
//! **The pool.** [`ProcessPoolExecutor::new`] creates a pool with up to one worker per CPU. Use
//! [`builder`](ProcessPoolExecutor::builder) to set options. Workers start on demand, are reused,
//! and are replaced when they die.
//!
//! **Futures.** [`submit`](ProcessPoolExecutor::submit) returns a [`TaskFuture`] at once. Block on
//! its [`result`](TaskFuture::result), `.await` it on any runtime, or attach a
//! [callback](TaskFuture::add_done_callback). [`wait`] and [`as_completed`] work on many futures.
//! [`map`](ProcessPoolExecutor::map) makes a task for each item of an input, lazily, and yields the
//! results in order.
//!
//! **Errors.** A [`TaskError`] says what went wrong:
//!
//! - the task returned `Err` ([`Failed`](TaskError::Failed));
//! - the task panicked ([`Panicked`](TaskError::Panicked), with message and location);
//! - its worker died ([`WorkerLost`](TaskError::WorkerLost), with signal or exit code);
//! - its time limit passed ([`TimedOut`](TaskError::TimedOut));
//! - its worker exceeded its limit on memory ([`MemoryLimit`](TaskError::MemoryLimit)).
//!
//! A pool that cannot go on reports this in each future ([`Broken`](TaskError::Broken)) and through
//! [`broken`](ProcessPoolExecutor::broken). `{:?}` prints an error as the same text as `{}`, so
//! `unwrap` and an `Err` returned from `main` are readable.
//!
//! **Shutdown.** [`shutdown(true)`](ProcessPoolExecutor::shutdown), or dropping the last handle,
//! finishes accepted work and reaps the workers. Some work may still be unfinished after that,
//! because the handle was dropped inside an async runtime or is kept in a static. Such work is
//! finished when the program ends normally: see
//! [the end of the program](ProcessPoolExecutor#the-end-of-the-program). If the program dies in any
//! other way, its workers die too, and so does everything they started.
//!
//! # Where to look
//!
//! Everything is at the root of the crate. The modules [`sync`], [`shm`], [`ipc`] and [`process`]
//! list the same names by theme, and [`multiprocessing`] lists what Python's module of that name
//! has.
//!
//! - Tasks and their options: [`#[task]`](macro@task), [`Task`]; [`Encoded`] for tasks kept
//!   as bytes.
//! - Pools: [`ProcessPoolExecutor`] and its [builder](ProcessPoolBuilder); [`Executor`] for code
//!   that accepts any executor; [`Pool`], which has the methods of Python's `Pool`.
//! - Results: [`TaskFuture`], [`wait`], [`as_completed`], [`Map`], [`Map::with_index`];
//!   [`TaskError`].
//! - State in workers: [`initializer`](ProcessPoolBuilder::initializer),
//!   [`finalizer`](ProcessPoolBuilder::finalizer), [`worker_state`],
//!   [`broadcast`](ProcessPoolExecutor::broadcast).
//! - Limits and second attempts: [`Task::timeout`], [`Task::queue_timeout`], [`Task::retries`];
//!   [`worker_memory_limit`](ProcessPoolBuilder::worker_memory_limit),
//!   [`max_rss_growth`](ProcessPoolBuilder::max_rss_growth), [`CgroupLimits`],
//!   [`max_pending`](ProcessPoolBuilder::max_pending); what a task has cost is its [`Usage`];
//!   [`on_task_error`](ProcessPoolBuilder::on_task_error) tells of errors in the worker.
//! - What there is only some of: [`resources`](ProcessPoolBuilder::resources), [`Task::needs`].
//! - How many workers there are, and for how long:
//!   [`min_workers`](ProcessPoolBuilder::min_workers),
//!   [`idle_timeout`](ProcessPoolBuilder::idle_timeout),
//!   [`max_lifetime`](ProcessPoolBuilder::max_lifetime), [`resize`](ProcessPoolExecutor::resize).
//! - Tasks that stop when they are asked to: [`is_cancelled`], [`cancelled`], [`cancellation`].
//! - Which worker, where and when: [`worker_index`], [`slots`](ProcessPoolBuilder::slots) and
//!   [`slot`], [`pin`](ProcessPoolBuilder::pin), [`nice`](ProcessPoolBuilder::nice);
//!   [`Task::priority`], [`Task::on_worker`], [`round_robin`](ProcessPoolBuilder::round_robin).
//! - How workers are started: [`start_method`](ProcessPoolBuilder::start_method), with
//!   [`preload`](ProcessPoolBuilder::preload) for what all of them share;
//!   [`isolation`](ProcessPoolBuilder::isolation) for a worker for each task.
//! - One process for one call: [`Process`], [`Child`], [`Run`]; [`Context`] and [`StartMethod`];
//!   [`Limits`].
//! - This process, its parent and its children: [`current_process`], [`parent_process`],
//!   [`active_children`], [`at_exit`], [`spawn_thread`].
//! - Queues: [`Queue`], [`JoinableQueue`], [`SimpleQueue`].
//! - Pipes and connections: [`pipe`], [`channel`], [`Connection`], [`wait_any`]; [`Transfer`] for
//!   files and sockets.
//! - Connections from unrelated processes: [`Listener`], [`Client`], [`AuthKey`].
//! - Locks: [`Lock`], [`RLock`], [`Semaphore`], [`BoundedSemaphore`], [`Condition`], [`Event`],
//!   [`Barrier`].
//! - Shared memory: [`Value`], [`Array`], [`SharedBytes`], [`SharedMemory`], [`ShareableList`].
//! - Maps, lists and other objects in a server process: [`manager`].
//! - Longer guides: [`guide`]; which object to share is in [`guide::shared_state`], how long
//!   workers live in [`guide::worker_life`], and what guards against tasks that run or grow too
//!   long in [`guide::limits_and_retries`].
//! - An executor for the whole program: [`reusable`]. What it is doing:
//!   [`stats`](ProcessPoolExecutor::stats), [`worker_stats`](ProcessPoolExecutor::worker_stats).
//!
//! # Coming from Python
//!
//! [`guide::coming_from_python`] shows the Python code of a tutorial line by line, with the Rust
//! code beside it. [`Pool`] has the methods of `multiprocessing.Pool`.
//!
//! # Large bytes
//!
//! Any argument or result may be large. Above 32 KiB it goes through shared memory, and the
//! executor keeps some of that memory for the next large value. A task that takes `&[u8]` or `&str`
//! reads its argument in place, without a copy. A `Vec<u8>` that comes back is copied once.
//! [`SharedBytes`] are sent without any copy, and are in memory once however many tasks read them.
//! [`stats`](ProcessPoolExecutor::stats) tells how much memory an executor shares with its workers.
//!
//! # What processes share
//!
//! [`Lock`], [`RLock`], [`Semaphore`], [`Condition`], [`Event`] and [`Barrier`] work between tasks
//! of any processes. [`Value`], [`Array`], [`SharedMemory`] and [`ShareableList`] are memory that
//! all these processes see. Handles to them are sent as ordinary arguments and results, also to
//! pools that are already running.
//!
//! A process that dies does not block the others: its permits come back, and the next owner of its
//! lock is told ([`OwnerDied`]). An `Arc<Mutex<T>>` is not shared this way, because a task gets a
//! copy of it. Nothing is left behind in the system, except names that were asked to stay.
//!
//! # Limits, per task
//!
//! ```
//! use executor::prelude::*;
//! use std::time::Duration;
//!
//! #[task]
//! fn parse(text: &str) -> Result<u64, std::num::ParseIntError> { text.parse() }
//!
//! #[executor::main]
//! fn main() {
//!     let pool = ProcessPoolExecutor::builder().max_workers(1).build().unwrap();
//!     let task = parse::task("12x").timeout(Duration::from_secs(5)).name("line 3");
//!     match pool.submit(task).result() {
//!         Err(TaskError::Failed(error)) => assert_eq!(error.task(), "line 3"),
//!         other => panic!("{other:?}"),
//!     }
//! }
//! ```
//!
//! # Logging
//!
//! The library writes nothing to stdout or stderr. Events that no result or error reports, such as
//! a callback that panicked or a worker that was cut off, are reported with
//! [`tracing`](https://docs.rs/tracing).

// Everything is at the root, by theme. The modules below show the same names as Python's modules
// and as the parts of the library, each with an index of its own.

// Tasks.
#[doc(inline)]
pub use executor_core::{Encoded, IntoTask, MakeTask, MapTask, Task, TaskArgs, TaskFn, TaskId};

// Executors, and what they are asked.
#[doc(inline)]
pub use executor_core::{
    CgroupLimits, Executor, ExecutorExt, Failures, Full, Isolation, OnDrop, Pin,
    ProcessPoolBuilder, ProcessPoolExecutor, RunningTask, ShutdownOptions, Stats, SubmitAsync,
    WorkerStats, WorkerStatus, reusable,
};

// Results.
#[doc(inline)]
pub use executor_core::{
    AsCompleted, AsCompletedStream, AsCompletedTimeout, CancelHandle, Chunked, Map, MapStream,
    MapStreamWithIndex, MapWithIndex, ReturnWhen, TaskFuture, Unfinished, Usage, UsageHandle,
    as_completed, wait,
};

// Errors.
#[doc(inline)]
pub use executor_core::{
    BrokenCause, BuildError, CodecFailure, ExitStatus, LastPanic, LostDetail, MemoryLimitDetail,
    Phase, RemoteError, Side, TaskError, TaskFailure, TaskFailureKind, TimedOutDetail, error,
};

// Workers, and the beginning and the end of a program.
#[doc(inline)]
pub use executor_core::{
    Cancellation, ExitGuard, ExitHook, LoggerAlreadySet, at_exit, cancellation, cancelled, init,
    is_cancelled, log_level, log_to_stderr, slot, spawn_thread, with_worker_state, worker_index,
    worker_state,
};

// Locks: `sync`.
#[doc(inline)]
pub use sync::{
    Barrier, BarrierError, BoundedSemaphore, Condition, Event, Lock, LockGuard, LockResult,
    OwnerDied, Permit, RLock, RLockGuard, ReleaseError, Semaphore,
};

// Shared memory: `shm`.
#[doc(inline)]
pub use shm::{
    Array, ArrayReadGuard, ArrayWriteGuard, Integer, ListItem, RawArray, RawValue, ShareableList,
    SharedBytes, SharedMemory, SharedMemoryScope, TooLarge, Value, ValueGuard,
};

// Messages between processes: `ipc`.
#[doc(inline)]
pub use ipc::{
    AcceptError, Address, AddressError, AuthError, AuthKey, Client, ConnectError, Connection,
    Consumer, GetError, JoinableQueue, Listener, LostItems, OnLost, Producer, PutError, Queue,
    Receiver, RecvError, SendError, Sender, SimpleQueue, TaskDoneError, Transfer, UnfinishedItem,
    channel, pipe, wait_any,
};

// Processes, and start methods: `process`.
#[doc(inline)]
pub use process::{
    Child, ChildHandle, Context, CurrentProcess, Fork, IntoBody, Limits, ParentProcess, Process,
    Run, StartError, StartMethod, StartMethodAlreadySet, Stdio, active_children, args, cpu_count,
    current_process, force_start_method, fork, fork_with, getpid, getppid, parent_process,
    physical_cpus, set_start_method, start_method, thread_count, usable_cpus,
};

// Python's `Pool`.
#[doc(inline)]
pub use executor_core::{AsyncResult, IMap, Pool, PoolBuilder, PoolError};

pub use executor_core::manager;

#[doc(hidden)]
pub use executor_core::registry;

pub mod sync {
    //! Locks and other objects with which tasks of any processes wait for each other.

    #[doc(inline)]
    pub use executor_core::{
        Barrier, BarrierError, BoundedSemaphore, Condition, Event, Lock, LockGuard, LockResult,
        OwnerDied, Permit, RLock, RLockGuard, ReleaseError, Semaphore,
    };
}

pub mod shm {
    //! Memory that processes share: values, arrays, lists, bytes, and blocks with names.

    #[doc(inline)]
    pub use executor_core::{
        Array, ArrayReadGuard, ArrayWriteGuard, Integer, ListItem, RawArray, RawValue,
        ShareableList, SharedBytes, SharedMemory, SharedMemoryScope, TooLarge, Value, ValueGuard,
    };
}

pub mod ipc {
    //! Messages between processes: queues, pipes, and connections to unrelated processes.

    #[doc(inline)]
    pub use executor_core::{
        AcceptError, Address, AddressError, AuthError, AuthKey, Client, ConnectError, Connection,
        Consumer, GetError, JoinableQueue, Listener, LostItems, OnLost, Producer, PutError, Queue,
        Receiver, RecvError, SendError, Sender, SimpleQueue, TaskDoneError, Transfer,
        UnfinishedItem, channel, pipe, wait_any,
    };
}

pub mod process {
    //! One process for one call, start methods, and this process, its parent and its children.

    #[doc(inline)]
    pub use executor_core::{
        Child, ChildHandle, Context, CurrentProcess, Fork, IntoBody, Limits, ParentProcess,
        Process, Run, StartError, StartMethod, StartMethodAlreadySet, Stdio, active_children, args,
        cpu_count, current_process, force_start_method, fork, fork_with, getpid, getppid,
        parent_process, physical_cpus, set_start_method, start_method, thread_count, usable_cpus,
    };
}

pub mod multiprocessing {
    //! The names of Python's `multiprocessing`, in one place.
    //!
    //! ```
    //! use executor::multiprocessing::{Lock, Pool, Process, Queue, cpu_count};
    //!
    //! assert!(cpu_count() >= 1);
    //! ```

    #[doc(no_inline)]
    pub use crate::{
        AcceptError, Address, AddressError, Array, ArrayReadGuard, ArrayWriteGuard, AuthError,
        AuthKey, Barrier, BarrierError, BoundedSemaphore, Child, ChildHandle, Client, Condition,
        ConnectError, Connection, Consumer, Context, CurrentProcess, Event, Fork, GetError,
        Integer, IntoBody, JoinableQueue, Limits, ListItem, Listener, Lock, LockGuard, LockResult,
        LostItems, OnLost, OwnerDied, ParentProcess, Permit, Process, Producer, PutError, Queue,
        RLock, RLockGuard, RawArray, RawValue, Receiver, RecvError, ReleaseError, Run, Semaphore,
        SendError, Sender, ShareableList, SharedBytes, SharedMemory, SharedMemoryScope,
        SimpleQueue, StartError, StartMethod, StartMethodAlreadySet, Stdio, TaskDoneError,
        TooLarge, Transfer, UnfinishedItem, Value, ValueGuard, active_children, args, channel,
        cpu_count, current_process, force_start_method, fork, fork_with, getpid, getppid,
        parent_process, physical_cpus, pipe, set_start_method, start_method, thread_count,
        usable_cpus, wait_any,
    };
    #[doc(no_inline)]
    pub use executor_core::{
        AsyncResult, IMap, Pool, PoolBuilder, PoolError, log_level, log_to_stderr,
    };
}

/// Makes a function a task function, so that its calls can run in another process.
///
/// The function itself does not change: `add(1, 2) == 3`. `add::task(1, 2)` is a task, the same
/// call to be run elsewhere.
///
/// ```
/// use executor::prelude::*;
///
/// /// Adds.
/// #[task]
/// fn add(a: i64, b: i64) -> i64 { a + b }
///
/// /// Arguments may be borrowed: they are encoded at `submit`.
/// #[task]
/// fn shout(text: &str) -> String { text.to_uppercase() }
///
/// /// `Err` fails the task.
/// #[task]
/// fn size(path: std::path::PathBuf) -> std::io::Result<u64> { Ok(std::fs::metadata(path)?.len()) }
///
/// /// Runs on the worker's own tokio runtime.
/// #[task]
/// async fn later(seconds: u64) -> u64 {
///     // tokio::time::sleep(…).await
///     seconds
/// }
///
/// #[executor::main]
/// fn main() {
///     let pool = ProcessPoolExecutor::builder().max_workers(1).build().unwrap();
///     assert_eq!(pool.submit(add::task(1, 2)).result().unwrap(), add(1, 2));
///     assert_eq!(pool.submit(shout::task("hey")).result().unwrap(), "HEY");
///     assert!(pool.submit(size::task("/does/not/exist".into())).result().is_err());
/// }
/// ```
///
/// # What it generates
///
/// The attribute generates a type with the function's name and visibility. The type has an
/// associated function `task` with the parameters of the original function. `use path::add` imports
/// both the function and the type.
///
/// In documentation, write ``[`add()`]`` to link to the function and ``[`add`](struct@add)`` to
/// link to the type. Otherwise rustdoc cannot tell which of the two is meant.
///
/// The type implements [`TaskFn`]. The function is registered when the program is linked, and every
/// process of the program finds it by its name. Calling the function directly costs nothing extra.
///
/// # Parameters
///
/// A task function takes any number of parameters, of any type that implements serde's `Serialize`
/// and `Deserialize`. Parameters may be patterns.
///
/// - `&T` is sent as a `T`, and `&[T]` as a `Vec<T>`.
/// - `&str`, `&[u8]` and `&Path` are read from the received bytes without a copy. This also holds
///   inside another type: `Option<&str>`, and with the default codec `Option<&[u8]>`.
/// - Types that borrow by serde's rules work too. Write their lifetime, as in `Cow<'_, str>`.
/// - Byte strings (`Vec<u8>`, `Box<[u8]>`, `&[u8]`, `[u8; N]`) are copied as a whole, not byte by
///   byte.
///
/// # Result
///
/// The result must be an owned type that implements `Send` and serde's traits. A function that
/// returns `Result<T, E>`, also through a type alias, gives a future of `T`, and its `Err` becomes
/// [`TaskError::Failed`]. `E` must implement `Display`.
///
/// If `E` is a `std::error::Error`, an `anyhow::Error` or a `Box<dyn Error>`, the messages of its
/// sources are sent along. If `E` implements serde's traits, [`RemoteError::downcast`] gives the
/// value back.
///
/// # Options
///
/// - `#[task(name = "images/resize")]` sets the name used on the wire and in messages. The default
///   is the path, `my_crate::images::resize`. Several functions may have the same name, for example
///   functions in the bodies of different functions of one module, or functions of a library and a
///   program of one package. The library tells them apart, but messages show the same name for
///   both.
/// - `#[task(handle = ResizeTask)]` sets the name of the type, for cases where the function's own
///   name is taken: a function `resize::resize` that is exported beside the module `resize`, or a
///   function called `u8`. The task is then `ResizeTask::task(…)`.
/// - `#[task(codec = "messagepack")]` sets how values are encoded. The default, postcard, is
///   faster. It does not support `#[serde(untagged)]`, `#[serde(tag = …)]`, `#[serde(flatten)]`,
///   `skip_serializing_if`, or types like `serde_json::Value`. The error for such a type names this
///   option.
///
///   Both codecs compare the kinds and names of the encoded values with what `Deserialize` asks
///   for, and reject a mismatch. Some mismatches are invisible to this check, as they are in JSON,
///   and the value arrives changed:
///
///   - fields of a tuple structure that are swapped by `skip` attributes on one side only;
///   - names that are exchanged by two `rename`s on one side only;
///   - `untagged` variants where an earlier variant accepts what a later variant wrote (an `f32`
///     before an `f64`, bytes before a text, an `Option` before a variant without content).
///
///   serde reads `tag`, `untagged` and `flatten` from a buffered copy of its own, where nothing is
///   compared. There, a field that is renamed on one side only gets its `default`, and a variant
///   that one side writes and the other does not know becomes the `other` variant.
/// - `#[task(crate = "my_facade::executor")]` sets the path of the `executor` crate.
///
/// # Methods
///
/// On an `impl` block, the attribute makes a task of each function in the block. The value is an
/// argument like the others, so its type has to implement serde's traits. Beside `produce` there is
/// a method `produce_task` with the same parameters, which returns the task:
///
/// ```
/// use executor::prelude::*;
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize)]
/// struct Demo { factor: u64 }
///
/// #[task]
/// impl Demo {
///     fn produce(&self, i: u64) -> u64 { self.factor * i }
///     fn doubled(mut self) -> Demo { self.factor *= 2; self }
/// }
///
/// #[executor::main]
/// fn main() -> Result<(), TaskError> {
///     let pool = ProcessPoolExecutor::builder().max_workers(2).build().unwrap();
///     let demo = Demo { factor: 3 };
///     assert_eq!(pool.submit(demo.produce_task(1)).result()?, 3);
///     let products: Result<Vec<u64>, _> = pool.map(|i| demo.produce_task(i), 0..3).collect();
///     assert_eq!(products?, [0, 3, 6]);
///     assert_eq!(pool.submit(demo.doubled_task()).result()?.factor, 6);
///     Ok(())
/// }
/// ```
///
/// A method takes `&self` or `self`. With `&self`, the value is encoded when the task is submitted,
/// and stays with the caller. `&mut self` is refused, since the worker has a copy: take `self`, and
/// return it. A function without `self` is called as `Demo::make_task(…)`. Other methods
/// go to a block without the attribute. On the block, the attribute takes `codec` and `crate`.
///
/// For an object that keeps its state between calls, see [`macro@managed`] and
/// [`worker_state`]. For a process that runs a value, see [`Run`].
///
/// # What cannot be a task function
///
/// The following are compile errors, each with its reason: type and const parameters, `impl Trait`,
/// `&mut`, `unsafe`, `extern`, and a result that borrows. A single function in an `impl` block does
/// not work either, because no type can be declared beside it. If it has no `self`, the compiler
/// says "struct is not supported in `impl`s". Put the attribute on the block.
///
/// The generated type also shadows modules and crates of the same name: below `#[task] fn serde()`,
/// the path `serde::Serialize` is not found. Use `handle` in this case.
pub use executor_macros::task;

/// Makes a type a managed type, so that a [manager]'s server can keep values of it,
/// and any process can call their methods. It corresponds to `BaseManager.register`.
///
/// The `impl` block itself does not change. Beside `Counter`, there is a type `CounterProxy`, whose
/// methods have the same names and parameters. Each of them is a call of the method in the server.
///
/// ```
/// use executor::{manager::{Manager, ManagerError}, prelude::*};
///
/// /// It needs no serde: it never leaves the server.
/// pub struct Counter { n: u64 }
///
/// #[managed]
/// impl Counter {
///     pub fn new(start: u64) -> Self { Counter { n: start } }
///     /// Adds, and returns the sum.
///     pub fn add(&mut self, n: u64) -> u64 { self.n += n; self.n }
///     pub fn get(&self) -> u64 { self.n }
///     pub fn divide(&mut self, by: u64) -> Result<u64, String> {
///         self.n = self.n.checked_div(by).ok_or("a division by zero")?;
///         Ok(self.n)
///     }
///     pub fn below(&self) -> impl Iterator<Item = u64> { 0..self.n }
///     fn hidden(&self) {}
/// }
///
/// #[task]
/// fn add_ten(counter: CounterProxy) -> Result<u64, ManagerError> { counter.add(10) }
///
/// #[executor::main]
/// fn main() -> Result<(), Box<dyn std::error::Error>> {
///     let manager = Manager::start()?;
///     let counter = CounterProxy::new(&manager, 5)?;
///     assert_eq!(counter.add(2)?, 7);
///     let pool = ProcessPoolExecutor::builder().max_workers(1).build()?;
///     assert_eq!(pool.submit(add_ten::task(counter.clone())).result()?, 17);
///     assert_eq!(counter.below()?.sum::<u64>(), 136);
///     let error = counter.divide(0).unwrap_err();
///     assert_eq!(error.remote().unwrap().message(), "a division by zero");
///     assert_eq!(counter.get()?, 17);
///     Ok(())
/// }
/// ```
///
/// # Where the value is
///
/// In the server's process, from its constructor to its drop. So the type needs no serde, and has
/// to be `Send + Sync + 'static`. The value is dropped when the last handle of it is gone,
/// wherever it was, and no method of it runs any more. It is not dropped when the server ends
/// first.
///
/// The server runs the methods of its own program. If a client is another program, both need the
/// type with the same methods, at the same place and in the same version of its crate. Otherwise
/// the call is an error.
///
/// A proxy is a handle like the [others](crate::manager): `Clone`, `Debug`, `Eq`, `Hash`, and a
/// serde value that can be sent to other processes and stored in other managed objects.
///
/// # Which methods
///
/// - `pub fn` without `self` that returns `Self` or `Result<Self, E>`: a constructor. In the proxy,
///   it has the [`Manager`](crate::manager::Manager) as its first parameter. There has to be one.
/// - `pub fn` with `&mut self`: while it runs, no other method of that object does.
/// - `pub fn` with `&self`: runs beside other such methods of the same object.
/// - All others, also `pub(crate)` ones, are left alone, and no process can call them.
///
/// Arguments, results and errors travel as those of [`#[task]`](macro@task) functions do, so
/// `&str` and slices can be arguments. A method that returns `impl Iterator<Item = T>` is run to
/// its end in the server, and all items come in one answer.
///
/// Arguments and results can contain handles of objects of the same manager, also in an `Option`
/// or a `Vec`. The method may use them, keep them in its value, and return them. An object lives as
/// long as a value keeps a handle of it. [`Manager::current`](crate::manager::Manager::current)
/// makes new objects, and proxies of other managed types, from within a method:
///
/// ```
/// use executor::{manager::{Dict, List, Manager, ManagerError}, prelude::*};
///
/// struct Library { shelves: Dict<String, List<String>> }
///
/// #[managed]
/// impl Library {
///     pub fn new() -> Result<Self, ManagerError> {
///         let manager = Manager::current().expect("constructors run in the server");
///         Ok(Library { shelves: manager.dict([])? })
///     }
///
///     pub fn shelves(&self) -> Dict<String, List<String>> { self.shelves.clone() }
///
///     pub fn adopt(&self, name: &str, shelf: List<String>) -> Result<(), ManagerError> {
///         self.shelves.insert(name, &shelf)?;
///         Ok(())
///     }
/// }
///
/// #[executor::main]
/// fn main() -> Result<(), Box<dyn std::error::Error>> {
///     let manager = Manager::start()?;
///     let library = LibraryProxy::new(&manager)?;
///     library.adopt("novels", manager.list(["Emma".to_owned()])?)?;
///     let novels = library.shelves()?.get("novels")?.expect("it was adopted");
///     assert_eq!(novels.snapshot()?, ["Emma"]);
///     Ok(())
/// }
/// ```
///
/// A call from within a method goes to the server as any other, and another thread of it answers.
/// So a method that waits for its own object, or for another object whose method waits for this
/// one, waits for ever: give such calls a timeout, or do not make them. The first call of a method
/// takes one or two milliseconds longer, because the thread that serves runs the method. The server
/// is then a client of itself, and counts as one of
/// [`clients_max`](crate::manager::ManagerBuilder::clients_max).
///
/// Each method has a second form whose name ends in `_async`. A future of it that is dropped early
/// may or may not have made the call. If it has, the method runs to its end, and its result is
/// lost.
///
/// `with_timeout` of the proxy returns a handle whose calls take at most so long: see its
/// documentation for what becomes of the method then. So a type has no public method of this name.
///
/// # What runs when
///
/// Calls of one object begin in the order in which the server got them. A `&self` method does not
/// overtake a `&mut self` method that waits, so a stream of the former cannot hold up the latter.
/// At most 32 methods of one object run at the same time.
///
/// The methods run on threads of the server. One that takes longer than a millisecond gets its
/// thread for itself, so methods that are shorter than that run one after the other. A method that
/// never ends holds up the other calls of its object, which may be given up, and no other object.
/// A server runs at most 256 functions at a time: if so many never end, no other method begins.
/// The server can be shut down in any case.
///
/// The constructor and the drop of a value run in the same way. If the caller of a constructor dies
/// meanwhile, the value is dropped again.
///
/// # Errors
///
/// An `Err` of a method, and a panic, come back as those of a task do:
/// [`ManagerError::Failed`](crate::manager::ManagerError::Failed), with the text and
/// [`remote`](crate::manager::ManagerError::remote). After a panic the object stays as the method
/// has left it, and can be used further. A panic of its `Drop` is only logged.
///
/// # What it cannot do
///
/// Arguments and results cannot contain objects of another manager, files, queues without a server
/// or the like: the call is an error. A value that has a handle of its own object, or of one that
/// has a handle of it, stays until the server ends.
///
/// The following are compile errors, each with its reason: a generic type, the implementation of a
/// trait, and public methods that have type parameters, are `async` or `unsafe`, take `self` or
/// `Arc<Self>`, or return something that borrows.
///
/// # Options
///
/// - `#[managed(name = "SharedCounter")]` sets the name of the proxy. The default is the type's
///   name and `Proxy`. The proxy is `pub`.
/// - `#[managed(codec = "messagepack")]` and `#[managed(crate = "my_facade::executor")]` are as for
///   [`#[task]`](macro@task).
pub use executor_macros::managed;

/// Calls [`executor::init()`](init) before anything else in `main`, so that a process of this
/// program can be a worker.
///
/// ```
/// use executor::prelude::*;
///
/// #[task]
/// fn square(x: u64) -> u64 { x * x }
///
/// #[executor::main]
/// fn main() -> Result<(), Box<dyn std::error::Error>> {
///     let pool = ProcessPoolExecutor::builder().max_workers(1).build()?;
///     assert_eq!(pool.submit(square::task(7)).result()?, 49);
///     Ok(())
/// }
/// ```
///
/// In an async program, write this attribute above the runtime's attribute. A worker then never
/// starts that runtime:
///
/// ```
/// # use executor::prelude::*;
/// # #[task]
/// # fn square(x: u64) -> u64 { x * x }
/// #[executor::main]
/// #[tokio::main]
/// async fn main() -> Result<(), Box<dyn std::error::Error>> {
///     let pool = ProcessPoolExecutor::builder().max_workers(1).build()?;
///     assert_eq!(pool.submit(square::task(7)).await?, 49);
///     Ok(())
/// }
/// ```
///
/// Other attributes of `main` stay as they are. `#[executor::main(crate = "my_facade::executor")]`
/// sets the path of the `executor` crate.
pub use executor_macros::main;

#[doc(hidden)]
pub use executor_core::__private;

pub mod guide {
    //! Guides that go further than the tour on the crate's front page.

    #[doc = include_str!("guide/coming_from_python.md")]
    pub mod coming_from_python {}

    #[doc = include_str!("guide/limits_and_retries.md")]
    pub mod limits_and_retries {}

    #[doc = include_str!("guide/shared_state.md")]
    pub mod shared_state {}

    #[doc = include_str!("guide/worker_life.md")]
    pub mod worker_life {}
}

pub mod prelude {
    //! The few names that most programs need: `use executor::prelude::*;`

    pub use crate::{
        Executor, ProcessPoolExecutor, ReturnWhen, Task, TaskError, TaskFn, TaskFuture,
        as_completed, managed, task, wait,
    };
    // The trait's methods are needed on `&dyn Executor`; the trait's name rarely is.
    pub use crate::ExecutorExt as _;
}

/// Lets a test binary be a worker.
///
/// Write one line in each test crate, that is, in each file in `tests/`, and in `lib.rs` if it has
/// unit tests that use an executor:
///
/// ```
/// # #[cfg(test)]
/// executor::test_support!();
/// ```
///
/// The `main` of a test binary belongs to the test harness, so this code runs before `main`, from a
/// table of constructors that the system's loader calls. In a process that is not a worker it only
/// looks at the arguments. In a worker, the program's other constructors (C++ statics, registries
/// of plugins) have run before the first task runs.
///
/// This works with `cargo test` and `cargo nextest`. Documentation tests do not need it: they have
/// their own `main`, which can call [`init`](crate::init).
#[macro_export]
macro_rules! test_support {
    () => {
        const _: () = {
            extern "C" fn executor_init_before_main(
                argc: ::core::ffi::c_int,
                argv: *const *const ::core::ffi::c_char,
                envp: *const *const ::core::ffi::c_char,
            ) {
                // SAFETY: only the loader calls this function. It gets it from the table that
                // `EXECUTOR_INIT` lies in.
                unsafe {
                    $crate::__private::init_before_main(&raw const EXECUTOR_INIT, argc, argv, envp)
                };
            }
            #[used]
            #[unsafe(link_section = ".init_array")]
            static EXECUTOR_INIT: $crate::__private::Constructor = executor_init_before_main;
        };
    };
}

/// Compiles and runs the programs in the README as documentation tests.
#[cfg(test)]
mod tests {
    /// Returns the names in the `pub use` items of a source file.
    fn exported(text: &str) -> Vec<&str> {
        let items = text.split("pub use ").skip(1).map(|rest| rest.split(';').next().unwrap_or(""));
        let names = items.flat_map(|item| item.split([',', '{', '}', ':', ' ', '\n']));
        names.filter(|name| !name.is_empty()).collect()
    }

    #[test]
    fn everything_that_the_core_exports_is_listed_here() {
        let core = concat!(env!("CARGO_MANIFEST_DIR"), "/executor-core/src/lib.rs");
        // A package of this crate alone does not contain it.
        let Ok(core) = std::fs::read_to_string(core) else { return };
        let here = exported(include_str!("lib.rs"));
        let missing: Vec<_> = exported(&core)
            .into_iter()
            // Not the modules in the core's paths, nor what it renames.
            .filter(|name| *name != "as" && !core.contains(&format!("{name}::")))
            .filter(|name| !core.contains(&format!("{name} as ")))
            .filter(|name| !here.contains(name))
            .collect();
        assert!(missing.is_empty(), "not exported by the facade: {missing:?}");
    }
}

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
