//! What a pool tells about itself: counts of tasks and workers, and a row for each worker.
//!
//! ```text
//!  replies, errors ── under the pool's lock ──► Outcome counts ─┐
//!  starts, ends, submissions ── scheduler ──► Counted ──────────┼─► Stats
//!  the intake: tasks that the scheduler does not have yet ──────┘
//!  scheduler's rows + processes + memory from /proc ───────────────► WorkerStats
//! ```
//!
//! Everything is counted where it happens, in plain integers under a lock that is held there
//! anyway. Only memory is asked of the system, and only when somebody wants to know.

use std::time::Instant;

use super::{
    Pool,
    core::Core,
    worker::{Boards, Worker},
};
use crate::{error::TaskError, id::TaskId, wire::frame::Reply};

/// Counts of an executor's tasks and workers at one moment, and its shared memory. See
/// [`ProcessPoolExecutor::stats`](crate::ProcessPoolExecutor::stats).
///
/// Counts that grow begin at 0 when the executor is created. The items of a map are tasks, each for
/// itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Number of workers that are alive.
    pub workers: usize,
    /// Number of tasks that wait: for a worker, at a worker behind another task, or for their next
    /// attempt.
    pub queued: u64,
    /// Number of tasks that workers run.
    pub running: usize,
    /// Number of tasks that have ended with a value.
    pub done: u64,
    /// Numbers of tasks that have ended with an error.
    pub failed: Failures,
    /// Number of attempts after the first ones, of tasks with [`retries`](crate::Task::retries).
    pub retried: u64,
    /// Number of workers that were started. Starts that the system has refused count as well.
    pub workers_started: u64,
    /// Number of workers that were started in the place of one that had ended, for whatever reason.
    pub workers_replaced: u64,
    /// Number of workers that have ended although nobody wanted that: they have crashed, have
    /// exited, were killed from outside, have exceeded their limit on memory, or had to be killed
    /// because they hung. Workers that are killed because a task has passed its time limit or is
    /// cancelled do not count.
    pub workers_lost: u64,
    /// Number of shared-memory segments that hold large arguments and results, or are kept for
    /// later ones. There are at most 64 for arguments, and 64 for the results of each worker.
    pub segments: usize,
    /// Bytes of memory in those segments: at most 4 GiB for arguments, and 4 GiB for the results of
    /// each worker. Memory that has not been used for a second or two is returned to the system.
    /// The memory of a [`SharedBytes`](crate::SharedBytes) is not counted: it belongs to the owner
    /// of the handle.
    pub segment_bytes: u64,
}

/// Numbers of tasks that have ended with an error, by the kind of [`TaskError`]. A task that is
/// tried again counts once, with its last error.
///
/// Not counted are tasks that the executor never got, because their arguments could not be encoded
/// or an option made no sense, and results that cannot be decoded where they are read.
///
/// ```
/// use executor::prelude::*;
///
/// #[task]
/// fn half(x: u64) -> Result<u64, String> { if x % 2 == 0 { Ok(x / 2) } else { Err("odd".into()) } }
///
/// #[executor::main]
/// fn main() {
///     let pool = ProcessPoolExecutor::builder().max_workers(1).build().unwrap();
///     assert_eq!(pool.map(half::task, 0..10).filter(Result::is_ok).count(), 5);
///     let stats = pool.stats();
///     assert_eq!((stats.done, stats.failed.failed, stats.failed.total()), (5, 5, 5));
/// }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Failures {
    /// [`TaskError::Failed`].
    pub failed: u64,
    /// [`TaskError::Panicked`].
    pub panicked: u64,
    /// [`TaskError::WorkerLost`].
    pub worker_lost: u64,
    /// [`TaskError::TimedOut`].
    pub timed_out: u64,
    /// [`TaskError::MemoryLimit`].
    pub memory_limit: u64,
    /// [`TaskError::Cancelled`].
    pub cancelled: u64,
    /// [`TaskError::Encode`]: the result could not be encoded, or the arguments do not suit the codec.
    pub encode: u64,
    /// [`TaskError::Decode`]: the worker could not decode the arguments.
    pub decode: u64,
    /// [`TaskError::Refused`].
    pub refused: u64,
    /// [`TaskError::Invalid`].
    pub invalid: u64,
    /// [`TaskError::Shutdown`].
    pub shutdown: u64,
    /// [`TaskError::Broken`].
    pub broken: u64,
}

impl Failures {
    /// Returns the number of tasks that have ended with any error.
    pub fn total(&self) -> u64 {
        // Without `..`, so that no kind is forgotten.
        let Failures {
            failed,
            panicked,
            worker_lost,
            timed_out,
            memory_limit,
            cancelled,
            encode,
            decode,
            refused,
            invalid,
            shutdown,
            broken,
        } = *self;
        let by_worker = failed + panicked + worker_lost + encode + decode + refused;
        by_worker + timed_out + memory_limit + cancelled + invalid + shutdown + broken
    }
}

/// One worker of an executor. See
/// [`ProcessPoolExecutor::worker_stats`](crate::ProcessPoolExecutor::worker_stats).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct WorkerStats {
    /// The number of the worker, which no other worker of this executor had or will have. It is
    /// also in the worker's name: `PoolWorker-3` in
    /// [`current_process().name()`](crate::CurrentProcess::name).
    pub number: u32,
    /// The worker's [index](crate::worker_index): the lowest that no other worker of this executor
    /// has. A worker that replaces another inherits it.
    pub index: usize,
    /// The process id. `None` if the process does not exist yet, or has ended.
    pub pid: Option<u32>,
    /// What the worker does.
    pub status: WorkerStatus,
    /// Since when it does that.
    pub since: Instant,
    /// The task that it runs. For a moment after the end of a task there is none, although the next
    /// one was sent already.
    pub task: Option<RunningTask>,
    /// Number of tasks that it has answered, with a value or an error.
    pub tasks_done: u64,
    /// Resident memory in bytes, with what it shares with other processes, such as the program's
    /// code, and in copies of a fork server what [`preload`](crate::ProcessPoolBuilder::preload)
    /// has loaded. So the sum over all workers is more than they use. `None` if there is no
    /// process, or the system does not tell (`/proc`).
    pub memory: Option<u64>,
}

/// What a worker does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum WorkerStatus {
    /// Its process is being started.
    Starting,
    /// It runs the initializer.
    Initializing,
    /// It waits for a task.
    Idle,
    /// It has tasks.
    Busy,
    /// A signal has stopped it (SIGSTOP, SIGTTOU).
    Stopped,
    /// It leaves, or does so after the task that it runs: it has had its number of tasks, is too
    /// old, was idle for too long, is not needed any more, or the executor ends.
    Leaving,
    /// It was sent a signal that ends it, or has ended.
    Ending,
}

/// A task that a worker runs.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RunningTask {
    /// The id, as [`TaskFuture::id`](crate::TaskFuture::id) returns it.
    pub id: TaskId,
    /// The name, as errors have it.
    pub name: String,
    /// Since when the worker runs it, or since when it could: only a task with a time limit tells
    /// exactly.
    pub since: Instant,
}

/// Counts of outcomes, in the pool's core.
#[derive(Default)]
pub(super) struct Counts {
    pub(super) done: u64,
    pub(super) failed: Failures,
    pub(super) retried: u64,
}

impl Counts {
    /// Counts tasks that were resolved by this reply.
    #[inline]
    pub(super) fn answered(&mut self, reply: Reply, tasks: u32) {
        let Failures { failed, panicked, encode, decode, refused, .. } = &mut self.failed;
        *match reply {
            Reply::Done => &mut self.done,
            Reply::Failed => failed,
            Reply::Panicked => panicked,
            Reply::DecodeError => decode,
            Reply::EncodeError | Reply::Unsuited => encode,
            Reply::Refused => refused,
            // These answer no task.
            Reply::Ready | Reply::Credit | Reply::Usage | Reply::Reported => return,
        } += u64::from(tasks);
    }

    /// Counts tasks that were resolved with this error.
    pub(super) fn failed(&mut self, error: &TaskError, tasks: u32) {
        let counts = &mut self.failed;
        *match error {
            TaskError::Failed(_) => &mut counts.failed,
            TaskError::Panicked(_) => &mut counts.panicked,
            TaskError::WorkerLost { .. } => &mut counts.worker_lost,
            TaskError::TimedOut { .. } => &mut counts.timed_out,
            TaskError::MemoryLimit { .. } => &mut counts.memory_limit,
            TaskError::Cancelled => &mut counts.cancelled,
            TaskError::Encode(_) => &mut counts.encode,
            TaskError::Decode(_) => &mut counts.decode,
            TaskError::Refused(_) => &mut counts.refused,
            TaskError::Invalid(_) => &mut counts.invalid,
            TaskError::Shutdown => &mut counts.shutdown,
            TaskError::Broken(_) => &mut counts.broken,
        } += u64::from(tasks);
    }
}

impl Pool {
    /// Returns the current counts.
    pub(crate) fn stats(&self) -> Stats {
        if self.forked() {
            return Stats::default();
        }
        let (mut segments, mut segment_bytes) =
            self.arguments.as_ref().map_or((0, 0), |(store, _)| store.count());
        for results in self.results() {
            let (count, bytes) = results.count();
            segments += count;
            segment_bytes += bytes;
        }
        let core = self.lock();
        let Core { scheduler, workers, counts, .. } = &*core;
        let counted = scheduler.counted();
        let running = scheduler.running(&Boards(workers));
        let resolved = counts.done + counts.failed.total() + running as u64;
        // After a panic under the lock, some tasks may be in none of the counts for a moment.
        let queued = (self.intake.tasks() + counted.submitted).saturating_sub(resolved);
        Stats {
            workers: workers.values().filter_map(Worker::living).count(),
            queued,
            running,
            done: counts.done,
            failed: counts.failed,
            retried: counts.retried,
            workers_started: counted.started,
            workers_replaced: counted.restarted,
            workers_lost: counted.lost,
            segments,
            segment_bytes,
        }
    }

    /// Returns a row for each worker, in the order in which they were started.
    pub(crate) fn worker_stats(&self) -> Vec<WorkerStats> {
        if self.forked() {
            return Vec::new();
        }
        let core = self.lock();
        let Core { scheduler, workers, .. } = &*core;
        let rows = scheduler.rows(&Boards(workers)).into_iter().map(|row| {
            let child = workers.get(&row.id).and_then(Worker::living).cloned();
            let task = row.task.and_then(|(chunk, id, since)| {
                Some(RunningTask { id, name: scheduler.chunk(chunk)?.name().to_owned(), since })
            });
            let stats = WorkerStats {
                number: row.id.0,
                index: row.index as usize,
                pid: child.as_ref().map(|child| child.pid()),
                status: row.status,
                since: row.since,
                task,
                tasks_done: row.answered,
                memory: None,
            };
            (stats, child)
        });
        let rows: Vec<_> = rows.collect();
        drop(core);
        // The system is asked without the lock.
        let with_memory = rows.into_iter().map(|(mut stats, child)| {
            stats.memory = child.and_then(|child| child.resident_bytes());
            stats
        });
        with_memory.collect()
    }
}
