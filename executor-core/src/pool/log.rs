//! What the pool logs about events under its lock. A record is collected there, and logged when the
//! lock is free: a subscriber of `tracing` is user code, and may ask the pool.

use std::{io, time::Duration};

use crate::{
    debug::Chain,
    error::{BrokenCause, ExitStatus, Phase, TaskError},
    task::usage::Usage,
    wire::frame::FromWorker,
};

pub(super) enum LogRecord {
    Broken(BrokenCause),
    /// A worker has sent this frame, which it must not send.
    Unasked(FromWorker),
    NotSignalled {
        error: io::Error,
        pid: u32,
    },
    /// A worker was found stopped by a signal.
    Stopped {
        signal: i32,
        pid: u32,
    },
    /// A worker leaves because its memory has grown by this many bytes.
    Grown {
        pid: u32,
        bytes: u64,
        max: u64,
    },
    /// A worker has ended although nobody wanted that. `task` is what it ran, if anything.
    Lost {
        pid: u32,
        status: ExitStatus,
        task: Option<Box<str>>,
    },
    /// A worker has not become ready.
    NotReady(BrokenCause),
    /// A task has run for too long.
    TimedOut {
        task: Box<str>,
        limit: Duration,
        attempt: u32,
    },
    /// A task is tried again. The error is the one of the attempt that has failed.
    TriedAgain {
        task: Box<str>,
        attempt: u32,
        delay: Duration,
        error: TaskError,
    },
    /// A task is not tried again, because it has ended too many workers.
    Poison {
        task: Box<str>,
        attempts: u32,
    },
    /// A worker has ended because it had too much memory.
    OverMemory {
        task: Option<Box<str>>,
        pid: u32,
        peak: u64,
        limit: u64,
    },
    /// A task has ended whose usage was measured.
    Used {
        task: Box<str>,
        usage: Box<Usage>,
    },
    NotStopping {
        worker: u32,
        timeout: Duration,
    },
    /// There are to be fewer workers, and some of those that leave run tasks.
    Shrinks {
        workers_max: usize,
        busy: usize,
    },
}

impl LogRecord {
    /// Returns what is to be logged about this end of an attempt of a task. The loss of a worker is
    /// logged for the worker.
    pub(super) fn of_attempt(task: &str, attempt: u32, error: &TaskError) -> Option<Self> {
        match error {
            TaskError::TimedOut { limit, phase: Phase::Run, .. } => {
                Some(LogRecord::TimedOut { task: task.into(), limit: *limit, attempt })
            }
            error if error.is_poison() => {
                Some(LogRecord::Poison { task: task.into(), attempts: attempt })
            }
            _ => None,
        }
    }

    /// Logs the record. Must not be called with the pool's lock held.
    pub(super) fn log(self) {
        match self {
            LogRecord::Broken(cause) => {
                tracing::error!(cause = %Chain(&cause), "the pool is broken");
            }
            LogRecord::Unasked(header) => {
                tracing::error!(?header, "a worker sent what it should not, and is ended");
            }
            LogRecord::NotSignalled { error, pid } => {
                tracing::warn!(%error, pid, "a worker cannot be signalled, and is asked to end itself");
            }
            LogRecord::Stopped { signal, pid } => {
                tracing::warn!(signal, pid, "a worker is stopped");
            }
            LogRecord::Shrinks { workers_max, busy } => {
                tracing::warn!(
                    workers_max,
                    busy,
                    "workers that are not needed any more leave after the tasks that they run"
                );
            }
            LogRecord::Grown { pid, bytes, max } => {
                tracing::warn!(
                    pid,
                    bytes,
                    max,
                    "the memory of a worker has grown, and the worker is replaced (`max_rss_growth`)"
                );
            }
            LogRecord::Lost { pid, status, task } => {
                let task = task.as_deref();
                tracing::warn!(pid, %status, task, "a worker was lost");
            }
            LogRecord::NotReady(cause) => {
                tracing::warn!(
                    cause = %Chain(&cause),
                    "a worker has not become ready, and another one is started in its place"
                );
            }
            LogRecord::TimedOut { task, limit, attempt } => {
                tracing::warn!(
                    task = &*task,
                    ?limit,
                    attempt,
                    "a task has run for too long (`timeout`)"
                );
            }
            LogRecord::TriedAgain { task, attempt, delay, error } => {
                tracing::debug!(
                    task = &*task,
                    attempt,
                    ?delay,
                    error = %Chain(&error),
                    "a task is tried again"
                );
            }
            LogRecord::Poison { task, attempts } => {
                tracing::warn!(
                    task = &*task,
                    attempts,
                    "a task has ended too many workers, and is not tried again (`poison_limit`)"
                );
            }
            LogRecord::OverMemory { task, pid, peak, limit } => {
                let task = task.as_deref();
                tracing::warn!(
                    task,
                    pid,
                    peak,
                    limit,
                    "a worker had too much memory, and has ended"
                );
            }
            LogRecord::Used { task, usage } => {
                let Usage { queued, running, decoding, cpu_user, cpu_system, .. } = *usage;
                tracing::debug!(
                    task = &*task,
                    attempt = usage.attempt,
                    worker = usage.worker,
                    ?queued,
                    ?running,
                    ?decoding,
                    ?cpu_user,
                    ?cpu_system,
                    peak_memory = usage.peak_memory,
                    private_memory = usage.private_memory,
                    minor_faults = usage.minor_faults,
                    major_faults = usage.major_faults,
                    bytes_in = usage.bytes_in,
                    bytes_out = usage.bytes_out,
                    "a task has ended"
                );
            }
            LogRecord::NotStopping { worker, timeout } => {
                tracing::warn!(
                    worker,
                    ?timeout,
                    "a worker was asked to stop, has not ended, and is killed: \
                    work that its tasks have left in executors of their own is lost"
                );
            }
        }
    }
}
