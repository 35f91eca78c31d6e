//! The machinery of the `executor` crate. Depend on that one; its documentation is the guide.
//!
//! In layers, each of which uses those above it:
//!
//! | folder | what lives there |
//! |---|---|
//! | `id`, `debug`, `unwind`, `shield` | plain vocabulary |
//! | `os` | what is asked of the operating system |
//! | `segment` | shared memory for large arguments and results |
//! | `wire` | frames, codecs, handshake |
//! | `error` | why a task has no result |
//! | `registry`, `task` | task functions by name, calls as data |
//! | `heap` | memory that processes share, and blocks in it |
//! | `sync` | locks and their kin, in shared memory |
//! | `shm` | shared objects that travel: bytes, values, arrays, memory |
//! | `ipc` | connections, listeners, queues |
//! | `transport` | how frames move |
//! | `future` | the cell, the handle, waiting |
//! | `child` | what every child has: its identity, start method, log, exit |
//! | `worker` | the child's side |
//! | `process` | processes with one task |
//! | `pool` | who runs what: scheduler, driver |
//! | `executor` | what users submit to |

// Not a word of ours in a user's output.
#![warn(clippy::print_stdout, clippy::print_stderr)]

#[cfg(not(target_pointer_width = "64"))]
compile_error!(
    "`executor` needs a target of 64 bit: it shares memory in sizes and addresses that 32 bits cannot hold"
);

// First: its macro is used by those below.
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
mod os;
mod pool;
mod process;
#[doc(hidden)]
pub mod registry;
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
    start_method::{StartMethod, StartMethodAlreadySet, force_start_method, set_start_method, start_method},
};
pub use error::{
    BrokenCause, BuildError, CodecFailure, ExitStatus, LastPanic, LostDetail, Phase, RemoteError, Side,
    TaskError, TimedOutDetail,
};
pub use executor::{
    AsyncResult, Chunked, Executor, ExecutorExt, IMap, MakeTask, Map, MapStream, MapStreamWithIndex,
    MapWithIndex, OnDrop, Pool, PoolBuilder, PoolError, ProcessPoolBuilder, ProcessPoolExecutor,
    ShutdownOptions,
};
pub use future::{
    AsCompleted, AsCompletedStream, AsCompletedTimeout, CancelHandle, ReturnWhen, TaskFuture, Unfinished,
    as_completed, wait,
};
pub use id::TaskId;
pub use ipc::{
    AcceptError, Address, AddressError, AuthError, AuthKey, Client, ConnectError, Connection, Consumer,
    GetError, JoinableQueue, Listener, LostItems, OnLost, Producer, PutError, Queue, Receiver, RecvError,
    SendError, Sender, SimpleQueue, TaskDoneError, Transfer, UnfinishedItem, channel, pipe, wait_any,
};
pub use os::{cpu::usable_cpus, limits::Limits};
pub use pool::Stats;
pub use process::{
    Child, ChildHandle, Context, IntoBody, Process, Run, StartError, Stdio,
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
    Barrier, BarrierError, BoundedSemaphore, Condition, Event, Lock, LockGuard, LockResult, OwnerDied,
    Permit, RLock, RLockGuard, ReleaseError, Semaphore,
};
pub use task::{Encoded, IntoTask, Task, TaskArgs, TaskFn};
pub use worker::{entry::init, state as worker_state, state::with as with_worker_state};
