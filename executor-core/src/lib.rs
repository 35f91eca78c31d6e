//! The machinery of the `executor` crate. Depend on `executor` instead; its documentation is the
//! guide.
//!
//! The crate consists of layers. Each layer uses only layers above it in this table:
//!
//! | folder | contents |
//! |---|---|
//! | `id`, `debug`, `sealed`, `unwind`, `shield` | basic types; containment of user code |
//! | `os` | system calls |
//! | `segment` | shared memory for large arguments and results |
//! | `wire` | frames, codecs, handshake |
//! | `error` | the reasons why a task has no result |
//! | `registry`, `task` | task functions by name; calls as plain data |
//! | `heap` | memory that processes share, and the blocks in it |
//! | `sync` | locks, semaphores, events and the like, in shared memory |
//! | `shm` | shared objects that can be sent: bytes, values, arrays, memory |
//! | `ipc` | connections, listeners, queues |
//! | `transport` | how frames move between processes |
//! | `child` | what every child process has: identity, start method, log, exit |
//! | `worker` | the code that runs in a child |
//! | `future` | the cell and the handle of a result; waiting for it |
//! | `process` | processes with one task |
//! | `pool` | which worker runs which task: scheduler, driver |
//! | `executor` | the types that users submit tasks to |

// Printed text would mix with the user's own output.
#![warn(clippy::print_stdout, clippy::print_stderr)]

#[cfg(not(target_pointer_width = "64"))]
compile_error!(
    "`executor` needs a target of 64 bit: it shares memory in sizes and addresses that 32 bits cannot hold"
);

// This module comes first, because the modules below use its macro.
#[cfg(not(feature = "kill-points"))]
#[macro_use]
mod kill_point;
#[cfg(feature = "kill-points")]
#[doc(hidden)]
#[macro_use]
pub mod kill_point;

#[doc(hidden)]
#[path = "private.rs"]
pub mod __private;
#[cfg(test)]
mod auto_traits;
mod child;
mod debug;
pub mod error;
mod executor;
mod future;
#[cfg(any(all(test, not(any(executor_loom, executor_shuttle))), fuzzing))]
#[doc(hidden)]
#[allow(missing_docs, reason = "no part of the interface: only fuzzers and tests see it")]
pub mod fuzz;
mod heap;
mod id;
mod ipc;
pub mod manager;
mod os;
mod pool;
mod process;
#[doc(hidden)]
pub mod registry;
mod sealed;
mod segment;
mod shield;
mod shm;
mod sync;
mod task;
#[cfg(test)]
mod tidy;
mod transport;
mod unwind;
mod wire;
mod worker;

pub use child::{
    exit::{ExitGuard, ExitHook, at_exit, spawn_thread},
    identity::args,
    log::{LoggerAlreadySet, log_level, log_to_stderr},
    start_method::{
        StartMethod, StartMethodAlreadySet, force_start_method, set_start_method, start_method,
    },
    stdio::Stdio,
};
pub use error::{
    BrokenCause, BuildError, CodecFailure, ExitStatus, LastPanic, LostDetail, MemoryLimitDetail,
    Phase, RemoteError, Side, TaskError, TaskFailure, TaskFailureKind, TimedOutDetail,
};
pub use executor::{
    AsyncResult, Chunked, Executor, ExecutorExt, Full, IMap, Isolation, MakeTask, Map, MapStream,
    MapStreamWithIndex, MapTask, MapWithIndex, OnDrop, Pool, PoolBuilder, PoolError,
    ProcessPoolBuilder, ProcessPoolExecutor, ShutdownOptions, SubmitAsync, reusable,
};
pub use future::{
    AsCompleted, AsCompletedStream, AsCompletedTimeout, CancelHandle, ReturnWhen, TaskFuture,
    Unfinished, UsageHandle, as_completed, wait,
};
pub use id::TaskId;
pub use ipc::{
    AcceptError, Address, AddressError, AuthError, AuthKey, Client, ConnectError, Connection,
    Consumer, GetError, JoinableQueue, Listener, LostItems, OnLost, Producer, PutError, Queue,
    Receiver, RecvError, SendError, Sender, SimpleQueue, TaskDoneError, Transfer, UnfinishedItem,
    channel, pipe, wait_any,
};
pub use os::{affinity::physical_cpus, cgroup::CgroupLimits, cpu::usable_cpus, limits::Limits};
pub use pool::{
    place::Pin,
    stats::{Failures, RunningTask, Stats, WorkerStats, WorkerStatus},
};
pub use process::{
    Child, ChildHandle, Context, IntoBody, Process, Run, StartError,
    current::{
        CurrentProcess, ParentProcess, active_children, cpu_count, current_process, parent_process,
        thread_count,
    },
    fork::{Fork, fork, fork_with, getpid, getppid},
};
pub use shm::{
    Array, ArrayReadGuard, ArrayWriteGuard, Integer, ListItem, RawArray, RawValue, ShareableList,
    SharedBytes, SharedMemory, SharedMemoryScope, TooLarge, Value, ValueGuard,
};
pub use sync::{
    Barrier, BarrierError, BoundedSemaphore, Condition, Event, Lock, LockGuard, LockResult,
    OwnerDied, Permit, RLock, RLockGuard, ReleaseError, Semaphore,
};
pub use task::{Encoded, IntoTask, Task, TaskArgs, TaskFn, usage::Usage};
pub use worker::{
    cancellation::{Cancellation, cancellation, cancelled, is_cancelled},
    entry::init,
    place::{slot, worker_index},
    state as worker_state,
    state::with as with_worker_state,
};
