//! The crate's error types. Each message says what was tried, on what, and what to do about it.
//!
//! ```text
//!  the caller's side        arguments, result      ─► Encode, Decode ──────────────┐
//!  a reply of the worker    Kind, Failure          ─► reply: Failed, Panicked, … ──┼──► TaskError
//!  the pool                 exit status, deadline  ─► WorkerLost, TimedOut, … ─────┘
//! ```
//!
//! The `Display` text of an error is one message. A cause that is an error of its own (an
//! `io::Error`, the sources of a task's error) is not in this text, but in `source()`. So code that
//! prints an error with its causes, as `anyhow` does, prints nothing twice. An error that only
//! wraps another error of this folder contains the other's message, and has the other's cause.
//!
//! `unwrap`, and a `main` that returns an error, print the `Debug` of the error. So the `Debug`
//! output is what people see, and it has to contain the remedy and the causes. For this reason the
//! `Debug` of every error, in this folder and in the others, is its `Display` text, followed by the
//! causes. The macros `debug_is_display!` and `debug_is_chain!` implement it. No error derives
//! `Debug`; a test checks the sources for that.

pub(crate) mod encoded;
mod remote;
pub(crate) mod reply;
mod task_failure;

use std::{error::Error, fmt, sync::Arc, time::Duration};

pub use remote::{Failure, RemoteError};
pub use task_failure::{TaskFailure, TaskFailureKind};

use crate::debug::{Chain, debug_is_chain, debug_is_display};
pub use crate::os::exit_status::ExitStatus;

debug_is_display!(CodecFailure);
debug_is_chain!(BrokenCause, BuildError);

/// The remedy for the most common mistake: a child process of this program ran its `main`, but
/// `main` never calls the library's entry point, which would have made the process a worker.
pub(crate) const ADD_THE_ENTRY: &str = "add `#[executor::main]` above `fn main`, or call `executor::init()` as its first line; where `fn main` is not yours (a \
     crate of tests, benches with a harness) write `executor::test_support!();` once";

/// The reason why a task has no result.
///
/// It is cheap to clone, `Send + Sync`, and at most 32 bytes.
///
/// ```
/// use executor::prelude::*;
///
/// #[task]
/// fn leave(code: i32) { std::process::exit(code) }
///
/// #[executor::main]
/// fn main() {
///     let pool = ProcessPoolExecutor::builder().max_workers(1).build().unwrap();
///     match pool.submit(leave::task(3)).result() {
///         Err(TaskError::WorkerLost { status, .. }) => assert_eq!(status.code(), Some(3)),
///         other => panic!("{other:?}"),
///     }
/// }
/// ```
#[derive(Clone)]
#[non_exhaustive]
pub enum TaskError {
    /// The task returned `Err`.
    Failed(RemoteError),

    /// The task panicked. The worker lives on, unless the program is built with `panic = "abort"`.
    ///
    /// The variant also covers a panic while the task's arguments, result or error were dropped,
    /// and a panic while the error was formatted. The message then says which of these panicked.
    Panicked(RemoteError),

    /// The worker process ended while it ran this task: it crashed, called `process::exit`, or was
    /// killed from outside.
    #[non_exhaustive]
    WorkerLost {
        /// Process id of the lost worker.
        pid: u32,
        /// How the worker ended: exit code or signal.
        status: ExitStatus,
        /// The name of the task, and what else is known about the loss.
        detail: Arc<LostDetail>,
    },

    /// A time limit has passed. If it was the limit on running ([`Phase::Run`]), the worker that
    /// ran the task was killed and replaced. If it was the limit on waiting ([`Phase::Queue`]), the
    /// task has not begun and never will.
    #[non_exhaustive]
    TimedOut {
        /// The limit that was set.
        limit: Duration,
        /// What was limited.
        phase: Phase,
        /// The name of the task. For a map, the name of the function that is applied to the items.
        detail: Arc<TimedOutDetail>,
    },

    /// The worker used more memory than it may while it ran this task, and has ended and was
    /// replaced. Only executors with a limit on memory report this error: see
    /// [`worker_memory_limit`](crate::ProcessPoolBuilder::worker_memory_limit), and
    /// [`CgroupLimits::memory_max`](crate::CgroupLimits::memory_max), which counts the programs
    /// that the task has started, too.
    #[non_exhaustive]
    MemoryLimit {
        /// Allowed memory, in bytes.
        limit: u64,
        /// Private memory that the worker had when it ended, in bytes. It is below the limit if the
        /// worker ended because it was refused an allocation that would have gone far beyond. With
        /// the limit of a control group, it is the most that the group has had.
        peak: u64,
        /// The name of the task, and what else is known.
        detail: Arc<MemoryLimitDetail>,
    },

    /// The task was cancelled.
    Cancelled,

    /// The arguments or the result could not be encoded.
    Encode(CodecFailure),

    /// The arguments or the result could not be decoded.
    Decode(CodecFailure),

    /// The worker could not run the task, because the operating system refused it a resource: a
    /// thread for the runtime of async tasks, memory, or descriptors.
    Refused(RemoteError),

    /// A parameter has an invalid value, for example a chunk of no items.
    Invalid(Arc<str>),

    /// The executor was shut down before the task could run.
    Shutdown,

    /// The executor cannot go on.
    Broken(BrokenCause),
}

impl fmt::Display for TaskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.fmt_last_attempt(f)?;
        match (self.attempts(), self) {
            (1, _) => Ok(()),
            (attempts, error) if error.is_poison() => write!(
                f,
                " (after {attempts} attempts; not tried again, because it has ended too many \
                 workers: see `poison_limit`)"
            ),
            (attempts, _) => write!(f, " (after {attempts} attempts)"),
        }
    }
}

impl TaskError {
    /// Writes everything but the number of attempts.
    fn fmt_last_attempt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TaskError::Failed(remote) => write!(f, "task `{}` failed: {remote}", remote.task()),
            TaskError::Panicked(remote) => {
                let (when, then) = (remote.circumstances(), remote.aftermath());
                write!(f, "task `{}` panicked{when}: {remote}{then}", remote.task())
            }
            TaskError::WorkerLost { pid, status, detail } => {
                let LostDetail { task, .. } = &**detail;
                write!(f, "task `{task}` lost its worker: process {pid} {status}{}", detail.hint())
            }
            TaskError::TimedOut { limit, phase, detail } => {
                let TimedOutDetail { task, .. } = &**detail;
                write!(f, "task `{task}` timed out: {} of {limit:?} has passed", phase.describe())
            }
            TaskError::MemoryLimit { limit, peak, detail } => {
                let MemoryLimitDetail { task, pid, .. } = &**detail;
                write!(
                    f,
                    "task `{task}` lost its worker, process {pid}: memory limit exceeded, {peak} \
                     bytes used, {limit} allowed"
                )?;
                match peak < limit {
                    true => f.write_str("; an allocation was refused that would have needed more"),
                    false => Ok(()),
                }
            }
            TaskError::Cancelled => f.write_str("the task was cancelled"),
            TaskError::Encode(failure) | TaskError::Decode(failure) => {
                fmt::Display::fmt(failure, f)
            }
            TaskError::Refused(remote) => {
                write!(f, "the worker could not serve task `{}`: {remote}", remote.task())
            }
            TaskError::Invalid(what) => write!(f, "invalid: {what}"),
            TaskError::Shutdown => f.write_str("the executor is shut down and takes no more tasks"),
            TaskError::Broken(cause) => write!(f, "the executor is broken: {cause}"),
        }
    }
}

impl Error for TaskError {
    /// Returns the cause of the task's own error, or of the reason why the executor is broken. The
    /// error or reason itself is in the message.
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            TaskError::Failed(remote)
            | TaskError::Panicked(remote)
            | TaskError::Refused(remote) => remote.source(),
            TaskError::Encode(failure) | TaskError::Decode(failure) => failure.source(),
            TaskError::Broken(cause) => cause.source(),
            TaskError::WorkerLost { .. }
            | TaskError::TimedOut { .. }
            | TaskError::MemoryLimit { .. }
            | TaskError::Cancelled
            | TaskError::Invalid(_)
            | TaskError::Shutdown => None,
        }
    }
}

impl fmt::Debug for TaskError {
    /// Writes the `Display` text, then each cause behind a colon, followed by the backtrace of a
    /// panic, if there is one.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&Chain(self), f)?;
        match self {
            TaskError::Panicked(remote) => remote.write_backtrace(f),
            _ => Ok(()),
        }
    }
}

impl TaskError {
    /// Returns whether the task returned `Err`.
    pub fn is_failed(&self) -> bool {
        matches!(self, TaskError::Failed(_))
    }

    /// Returns whether the task panicked.
    pub fn is_panic(&self) -> bool {
        matches!(self, TaskError::Panicked(_))
    }

    /// Returns whether the worker was lost while it ran the task.
    pub fn is_worker_lost(&self) -> bool {
        matches!(self, TaskError::WorkerLost { .. })
    }

    /// Returns whether a time limit has passed.
    pub fn is_timeout(&self) -> bool {
        matches!(self, TaskError::TimedOut { .. })
    }

    /// Returns whether the task was cancelled.
    pub fn is_cancelled(&self) -> bool {
        matches!(self, TaskError::Cancelled)
    }

    /// Returns whether the executor cannot go on.
    pub fn is_broken(&self) -> bool {
        matches!(self, TaskError::Broken(_))
    }

    /// Returns whether the executor was shut down before the task could run.
    pub fn is_shutdown(&self) -> bool {
        matches!(self, TaskError::Shutdown)
    }

    /// Returns whether the operating system refused the worker a resource that the task needs.
    pub fn is_refused(&self) -> bool {
        matches!(self, TaskError::Refused(_))
    }

    /// Returns a `TimedOut` error without the name of the task. The caller does not know the name
    /// yet; [`of_task`](Self::of_task) adds it later.
    pub(crate) fn timed_out(limit: Duration, phase: Phase) -> Self {
        TaskError::TimedOut { limit, phase, detail: Arc::default() }
    }

    /// Adds the name of the task to a `TimedOut` error that has none. Returns other errors
    /// unchanged.
    pub(crate) fn of_task(self, name: &str) -> Self {
        match self {
            TaskError::TimedOut { limit, phase, detail } if detail.task.is_empty() => {
                TaskError::TimedOut {
                    limit,
                    phase,
                    detail: Arc::new(TimedOutDetail { task: name.to_owned(), ..(*detail).clone() }),
                }
            }
            other => other,
        }
    }

    /// Returns how often the task was tried, including the attempt that ended with this error. For
    /// a task without [`retries`](crate::Task::retries) it is 1.
    ///
    /// ```
    /// # use executor::prelude::*;
    /// # use std::time::Duration;
    /// #[task]
    /// fn fetch(url: &str) -> Result<String, String> { Err(format!("{url} does not answer")) }
    ///
    /// #[executor::main]
    /// fn main() {
    ///     let pool = ProcessPoolExecutor::builder().max_workers(1).build().unwrap();
    ///     let task = fetch::task("a.example").retries(2).retry_delay(Duration::ZERO);
    ///     let error = pool.submit(task).result().unwrap_err();
    ///     assert_eq!(error.attempts(), 3);
    ///     assert!(error.to_string().ends_with("a.example does not answer (after 3 attempts)"));
    /// }
    /// ```
    pub fn attempts(&self) -> u32 {
        let attempts = match self {
            TaskError::Failed(remote) | TaskError::Panicked(remote) => remote.attempts(),
            TaskError::WorkerLost { detail, .. } => detail.attempts,
            TaskError::TimedOut { detail, .. } => detail.attempts,
            TaskError::MemoryLimit { detail, .. } => detail.attempts,
            _ => 1,
        };
        attempts.max(1)
    }

    /// Records the number of attempts, if there was more than one.
    pub(crate) fn after(mut self, number: u32) -> Self {
        if number > 1 {
            match &mut self {
                TaskError::Failed(remote) | TaskError::Panicked(remote) => {
                    *remote = remote.clone().after(number);
                }
                TaskError::WorkerLost { detail, .. } => Arc::make_mut(detail).attempts = number,
                TaskError::TimedOut { detail, .. } => Arc::make_mut(detail).attempts = number,
                TaskError::MemoryLimit { detail, .. } => Arc::make_mut(detail).attempts = number,
                _ => {}
            }
        }
        self
    }

    /// Records that the task is not tried again because it has ended too many workers.
    pub(crate) fn of_poison(mut self) -> Self {
        match &mut self {
            TaskError::WorkerLost { detail, .. } => Arc::make_mut(detail).is_poison = true,
            TaskError::MemoryLimit { detail, .. } => Arc::make_mut(detail).is_poison = true,
            _ => {}
        }
        self
    }

    /// Returns whether the task was to be tried again, but has ended too many workers.
    pub(crate) fn is_poison(&self) -> bool {
        match self {
            TaskError::WorkerLost { detail, .. } => detail.is_poison,
            TaskError::MemoryLimit { detail, .. } => detail.is_poison,
            _ => false,
        }
    }

    /// Returns whether the task may be tried again after this error, if the user wants that.
    pub(crate) fn is_retryable(&self) -> bool {
        matches!(
            self,
            TaskError::Failed(_)
                | TaskError::Panicked(_)
                | TaskError::WorkerLost { .. }
                | TaskError::TimedOut { phase: Phase::Run, .. }
                | TaskError::MemoryLimit { .. }
        )
    }

    pub(crate) fn invalid(what: impl Into<String>) -> Self {
        TaskError::Invalid(what.into().into())
    }

    /// Returns the name of the variant, for the `Debug` output of a future.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            TaskError::Failed(_) => "Failed",
            TaskError::Panicked(_) => "Panicked",
            TaskError::WorkerLost { .. } => "WorkerLost",
            TaskError::TimedOut { .. } => "TimedOut",
            TaskError::MemoryLimit { .. } => "MemoryLimit",
            TaskError::Cancelled => "Cancelled",
            TaskError::Encode(_) => "Encode",
            TaskError::Decode(_) => "Decode",
            TaskError::Refused(_) => "Refused",
            TaskError::Invalid(_) => "Invalid",
            TaskError::Shutdown => "Shutdown",
            TaskError::Broken(_) => "Broken",
        }
    }
}

const _: () = assert!(std::mem::size_of::<TaskError>() <= 32);

/// The part of a task's life that a time limit covers.
///
/// ```
/// use executor::{Phase, prelude::*};
/// use std::time::Duration;
///
/// #[task]
/// fn forever() { loop { std::thread::park() } }
///
/// #[executor::main]
/// fn main() {
///     let pool = ProcessPoolExecutor::builder().max_workers(1).build().unwrap();
///     match pool.submit(forever::task().timeout(Duration::from_millis(20))).result() {
///         Err(TaskError::TimedOut { phase, .. }) => assert_eq!(phase, Phase::Run),
///         other => panic!("{other:?}"),
///     }
/// }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Phase {
    /// The time that the task waits for a worker, counted from the moment it is submitted. See
    /// [`queue_timeout`](crate::Task::queue_timeout).
    Queue,
    /// The time that the task runs, counted from the moment the worker begins it. See
    /// [`timeout`](crate::Task::timeout).
    Run,
    /// The time of a whole [`map`](crate::ProcessPoolExecutor::map), counted from its first `next`.
    Map,
    /// The time that [`next_timeout`](crate::IMap::next_timeout) waits for the next result. Passing
    /// this limit stops no task.
    Next,
}

impl Phase {
    fn describe(self) -> &'static str {
        match self {
            Phase::Queue => "the limit on waiting for a worker",
            Phase::Run => "the task's limit",
            Phase::Map => "the limit on the whole map",
            Phase::Next => "the limit on waiting for the next result",
        }
    }
}

/// Details about a time limit that has passed, besides the limit itself.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct TimedOutDetail {
    /// Name of the task. For a map, the name of the function that is applied to the items.
    pub task: String,
    /// How often the task was tried. 0 and 1 mean that it was not tried again.
    pub attempts: u32,
}

/// Details about a worker that has used too much memory, besides the amount.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct MemoryLimitDetail {
    /// Name of the task that was running.
    pub task: String,
    /// Process id of the worker.
    pub pid: u32,
    /// How often the task was tried. 0 and 1 mean that it was not tried again.
    pub attempts: u32,
    /// Whether the task was to be tried again, but has ended as many workers as a task may end
    /// ([`poison_limit`](crate::ProcessPoolBuilder::poison_limit)).
    pub is_poison: bool,
}

/// Details about the end of a worker, besides its exit status.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct LostDetail {
    /// Name of the task that was running.
    pub task: String,
    /// Whether the fault was in the guard page below a stack, which means that the stack
    /// overflowed.
    pub stack_overflow: bool,
    /// Whether the worker was killed by a `SIGKILL` that this library did not send.
    pub killed_by_system: bool,
    /// Set if the worker violated the protocol: it wrote something impossible to the memory that it
    /// shares with its pool. The text says what. The pool kills such a worker.
    pub broke_protocol: Option<String>,
    /// The last panic while the task ran, if the worker ended by `SIGABRT`. The panic may have
    /// caused the abort. But the task may also have caught it, and have aborted for another reason.
    pub last_panic: Option<LastPanic>,
    /// Whether the process ended by itself and never reached the entry point: its program does not
    /// call it. A [`Process`](crate::Process) can end this way.
    pub no_entry: bool,
    /// The signal that had stopped the worker, if the worker was killed because nobody continued
    /// it.
    pub stopped_by: Option<i32>,
    /// The processor time that a task may use ([`Limits::cpu_time`](crate::Limits::cpu_time)), if
    /// the worker has ended because the task used more.
    pub cpu_time: Option<Duration>,
    /// How often the task was tried. 0 and 1 mean that it was not tried again.
    pub attempts: u32,
    /// Whether the task was to be tried again, but has ended as many workers as a task may end
    /// ([`poison_limit`](crate::ProcessPoolBuilder::poison_limit)).
    pub is_poison: bool,
}

/// The last panic before a worker was lost.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LastPanic {
    /// Message and location of the panic.
    pub panic: RemoteError,
    /// Whether the panic happened in another thread than the task's.
    pub elsewhere: bool,
}

impl LastPanic {
    fn describe(&self) -> String {
        let thread = if self.elsewhere { ", in another thread" } else { "" };
        let at = self.panic.circumstances();
        format!(
            " (the last panic before that, which may have been caught{thread},{at}: {})",
            self.panic.message()
        )
    }
}

impl LostDetail {
    fn hint(&self) -> String {
        if self.no_entry {
            format!(" and never reached executor's entry point; {ADD_THE_ENTRY}")
        } else if self.stack_overflow {
            " (stack overflow)".into()
        } else if let Some(limit) = self.cpu_time {
            format!(" (the task used more processor time than {limit:?}, see `Limits::cpu_time`)")
        } else if let Some(signal @ (libc::SIGTTOU | libc::SIGTTIN)) = self.stopped_by {
            let (name, why) = match signal {
                libc::SIGTTIN => ("SIGTTIN", "reads from it"),
                _ => ("SIGTTOU", "changes its settings, or writes to it after `stty tostop`"),
            };
            format!(
                " (killed, because it was stopped by {name}: the terminal stops a process in the background that {why}, \
                 and a task that unblocks the signal)"
            )
        } else if let Some(signal) = self.stopped_by {
            format!(" (killed, because it was stopped by signal {signal} and nobody continued it)")
        } else if let Some(what) = &self.broke_protocol {
            format!(
                " (cut off, because it broke the protocol with its pool: {what}; does the task write to memory that is \
                 not its own?)"
            )
        } else if self.killed_by_system {
            " (not killed by this program: by somebody else, or by the system, probably out of memory)".into()
        } else {
            self.last_panic.as_ref().map(LastPanic::describe).unwrap_or_default()
        }
    }
}

/// Describes where encoding or decoding failed, and why.
///
/// ```
/// use executor::{Side, prelude::*};
///
/// /// A file's name need not be UTF-8, but serde's form of a path is.
/// #[task]
/// fn exists(path: std::path::PathBuf) -> bool { path.exists() }
///
/// #[executor::main]
/// fn main() {
///     use std::os::unix::ffi::OsStringExt;
///     let pool = ProcessPoolExecutor::builder().max_workers(1).build().unwrap();
///     let name = std::ffi::OsString::from_vec(vec![0xff]);
///     match pool.submit(exists::task(name.into())).result() {
///         Err(TaskError::Encode(failure)) => assert_eq!(failure.side(), Side::Arguments),
///         other => panic!("{other:?}"),
///     }
/// }
/// ```
#[derive(Clone)]
pub struct CodecFailure(Arc<CodecFailureInner>);

#[derive(Debug)]
struct CodecFailureInner {
    side: Side,
    task: String,
    message: String,
}

impl CodecFailure {
    pub(crate) fn new(side: Side, task: impl Into<String>, message: impl Into<String>) -> Self {
        CodecFailure(Arc::new(CodecFailureInner {
            side,
            task: task.into(),
            message: message.into(),
        }))
    }

    /// Returns whether the arguments or the result failed, and whether in the caller or in the
    /// worker.
    pub fn side(&self) -> Side {
        self.0.side
    }

    /// Returns the name of the task.
    pub fn task(&self) -> &str {
        &self.0.task
    }

    /// Returns the message of the codec, or of the type's own serde implementation.
    pub fn message(&self) -> &str {
        &self.0.message
    }
}

impl Error for CodecFailure {}

impl fmt::Display for CodecFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let CodecFailureInner { side, task, message } = &*self.0;
        match side {
            Side::Arguments => {
                write!(f, "the arguments of task `{task}` cannot be encoded: {message}")
            }
            Side::ArgumentsInWorker => {
                write!(f, "the worker cannot decode the arguments of task `{task}`: {message}")
            }
            Side::ResultInWorker => {
                write!(f, "the worker cannot encode the result of task `{task}`: {message}")
            }
            Side::Result => write!(f, "the result of task `{task}` cannot be decoded: {message}"),
        }
    }
}

/// The value that was encoded or decoded, and the process in which this happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Side {
    /// The caller encodes the arguments.
    Arguments,
    /// The worker decodes the arguments.
    ArgumentsInWorker,
    /// The worker encodes the result.
    ResultInWorker,
    /// The caller decodes the result.
    Result,
}

/// The reason why an executor cannot go on.
///
/// ```
/// use executor::{BrokenCause, prelude::*};
///
/// #[task]
/// fn load() -> Result<(), String> { Err("the model is missing".into()) }
///
/// #[task]
/// fn predict(x: u64) -> u64 { x }
///
/// #[executor::main]
/// fn main() {
///     let pool = ProcessPoolExecutor::builder().max_workers(1).initializer(load::task()).build().unwrap();
///     match pool.submit(predict::task(1)).result() {
///         Err(TaskError::Broken(BrokenCause::Initializer(error))) => assert!(error.is_failed()),
///         other => panic!("{other:?}"),
///     }
/// }
/// ```
#[derive(Clone)]
#[non_exhaustive]
pub enum BrokenCause {
    /// The first worker ended before it sent its `Hello`: its program does not call the entry
    /// point.
    NoEntry {
        /// How the worker ended.
        status: ExitStatus,
    },
    /// A worker could not be started, or it ended before it was ready.
    Start(Arc<str>),
    /// The initializer failed.
    Initializer(Arc<TaskError>),
    /// The worker runs a program with a different list of tasks.
    OtherBuild(Arc<str>),
    /// This process was forked from the process that made the executor.
    Forked,
    /// The library violated one of its own invariants.
    Internal(Arc<str>),
}

impl fmt::Display for BrokenCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BrokenCause::NoEntry { status } => write!(
                f,
                "a worker process started ({status}) but never reached executor's entry point; {ADD_THE_ENTRY}"
            ),
            BrokenCause::Start(why) => write!(f, "no worker could be started: {why}"),
            BrokenCause::Initializer(error) => write!(f, "the initializer failed: {error}"),
            BrokenCause::OtherBuild(what) => {
                write!(f, "the worker runs another build of this program: {what}")
            }
            BrokenCause::Forked => f.write_str(
                "this process was forked from the one that owns the executor; make a new executor here",
            ),
            BrokenCause::Internal(what) => write!(f, "internal error: {what}"),
        }
    }
}

impl Error for BrokenCause {
    /// Returns the cause of the initializer's error. The error itself is in the message.
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            BrokenCause::Initializer(error) => error.source(),
            _ => None,
        }
    }
}

/// The reason why an executor could not be built.
///
/// ```
/// use executor::{BuildError, ProcessPoolExecutor};
///
/// let error = ProcessPoolExecutor::builder().max_workers(0).build().unwrap_err();
/// assert!(matches!(error, BuildError::Invalid(_)));
/// assert_eq!(error.to_string(), "invalid option: max_workers must be above 0");
/// ```
#[derive(Clone)]
#[non_exhaustive]
pub enum BuildError {
    /// An option has an invalid value.
    Invalid(String),
    /// This process is itself a worker that never reached the entry point. If it built an executor,
    /// it would start processes without end.
    NoEntry,
    /// Tasks build executors whose tasks build executors in turn, and the nesting is too deep.
    TooDeep {
        /// The nesting depth of this process.
        depth: u32,
        /// The maximum nesting depth.
        max: u32,
    },
    /// Two task functions have the same name. Only executors that find tasks by name across builds
    /// report this error. A pool of this program tells such functions apart and never reports it.
    DuplicateTask(String),
    /// The operating system refused a request.
    Os {
        /// What was requested.
        what: &'static str,
        /// The error that the operating system returned.
        error: Arc<std::io::Error>,
    },
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BuildError::Invalid(what) => write!(f, "invalid option: {what}"),
            BuildError::NoEntry => write!(
                f,
                "this process was started as a worker but never reached executor's entry point; {ADD_THE_ENTRY}"
            ),
            BuildError::TooDeep { depth, max } => write!(
                f,
                "executors are nested {depth} deep, {max} is the limit: does a task submit itself without end?"
            ),
            BuildError::DuplicateTask(what) => f.write_str(what),
            BuildError::Os { what, error: _ } => write!(f, "the operating system refused {what}"),
        }
    }
}

impl Error for BuildError {
    /// Returns the operating system's error, as an [`io::Error`](std::io::Error).
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            BuildError::Os { error, .. } => Some(&**error),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs, io, iter};

    use super::*;
    use crate::tidy;

    /// Returns `Name` for `Name<T> {`, the text behind `pub enum ` or behind `impl<G> Error for `.
    fn name_of(text: &str) -> String {
        text.trim_start()
            .chars()
            .take_while(|letter| letter.is_alphanumeric() || *letter == '_')
            .collect()
    }

    /// Returns an error with its causes, as programs print them.
    fn chain(error: &dyn Error) -> Vec<String> {
        iter::successors(Some(error), |error| (*error).source()).map(ToString::to_string).collect()
    }

    fn remote(message: &str, sources: &[&str]) -> RemoteError {
        let sources = sources.iter().map(|&source| source.to_owned()).collect();
        RemoteError::new(
            "load",
            Failure { message: message.to_owned(), sources, ..Failure::default() },
        )
    }

    #[test]
    fn an_error_and_its_causes_contain_each_text_once() {
        let failed =
            TaskError::Failed(remote("no config", &["cannot read it", "permission denied"]));
        let causes = ["cannot read it", "permission denied"];
        assert_eq!(chain(&failed)[0], "task `load` failed: no config");
        assert_eq!(chain(&failed)[1..], causes);
        assert_eq!(format!("{failed:?}"), chain(&failed).join(": "));
        let cause = BrokenCause::Initializer(Arc::new(failed.clone()));
        let broken = TaskError::Broken(cause.clone());
        assert_eq!(chain(&cause)[0], "the initializer failed: task `load` failed: no config");
        assert_eq!(chain(&broken)[0], format!("the executor is broken: {cause}"));
        assert_eq!(
            (&chain(&cause)[1..], &chain(&broken)[1..]),
            (&causes.map(str::to_owned)[..], &causes.map(str::to_owned)[..])
        );
        assert_eq!(format!("{broken:?}"), chain(&broken).join(": "));
        // An error that includes the text of its source in its own.
        let includes = TaskError::Failed(remote("no config: denied", &["denied", "errno 13"]));
        assert_eq!(chain(&includes), ["task `load` failed: no config: denied", "errno 13"]);
        let TaskError::Failed(remote) = &includes else { unreachable!() };
        assert_eq!((remote.sources().len(), remote.message()), (2, "no config: denied"));
        let codec = CodecFailure::new(Side::Result, "load", "no float");
        assert_eq!(chain(&TaskError::Decode(codec.clone())), chain(&codec));
        let os = BuildError::Os {
            what: "a thread",
            error: Arc::new(io::Error::from_raw_os_error(libc::EAGAIN)),
        };
        let source = os.source().and_then(|error| error.downcast_ref::<io::Error>());
        assert_eq!(source.and_then(io::Error::raw_os_error), Some(libc::EAGAIN));
        assert_eq!(
            format!("{os:?}"),
            format!("the operating system refused a thread: {}", source.expect("one"))
        );
    }

    #[test]
    fn a_very_long_list_of_causes_can_be_dropped() {
        let sources: Vec<_> = (0..1_000_000).map(|number| number.to_string()).collect();
        let failure = Failure { sources, ..Failure::default() };
        assert!(chain(&RemoteError::new("load", failure)).len() < 100);
    }

    #[test]
    fn the_debug_of_every_error_is_its_display() {
        let (mut errors, mut shown) = (BTreeSet::new(), BTreeSet::new());
        for file in tidy::rust_files() {
            let text = fs::read_to_string(&file).expect("a source file");
            // Skip the tests: they contain the strings that are searched for here.
            let text = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
            let calls = ["debug_is_display!(", "debug_is_chain!("];
            for behind in calls.iter().flat_map(|call| text.split(call).skip(1)) {
                let list = behind.split(')').next().unwrap_or_default();
                for part in list.split(',') {
                    shown.insert(name_of(part.split(']').next_back().unwrap_or_default()));
                }
            }
            for (at, found) in text.match_indices("thiserror::Error)]") {
                let start = text[..at].rfind("#[derive(").expect("it is derived");
                assert!(
                    !text[start..at].contains("Debug"),
                    "{}: an error derives `Debug`",
                    file.display()
                );
                let behind = &text[at + found.len()..];
                let kind = ["enum ", "struct "]
                    .into_iter()
                    .filter_map(|kind| Some(behind.find(kind)? + kind.len()))
                    .min();
                errors.insert(name_of(&behind[kind.expect("a type")..]));
            }
            for start in ["Error for ", "error::Error for "] {
                for (at, _) in text.match_indices(start) {
                    let line = &text[text[..at].rfind('\n').map_or(0, |line| line + 1)..];
                    let line = line.lines().next().unwrap_or_default();
                    if line.starts_with("impl") && line.ends_with('}') {
                        errors.insert(name_of(line.split(" for ").nth(1).unwrap_or_default()));
                    }
                }
            }
        }
        assert!(errors.len() > 20, "{errors:?}");
        // These two implement `Debug` by hand, to add the backtrace of a panic.
        shown.extend(["TaskError", "RemoteError"].map(str::to_owned));
        let forgotten: Vec<_> = errors.difference(&shown).collect();
        assert!(forgotten.is_empty(), "write `debug_is_display!({forgotten:?})`");
    }
}
