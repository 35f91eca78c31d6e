//! What comes out of the scheduler: actions, and whose reply it was.
//!
//! ```text
//!  event ──► Scheduler ──┬─► Vec<Action>  for the pool, in this order
//!                        └─► Replied      for the thread that has taken the reply
//! ```

use std::time::Duration;

use super::task::Scheduled;
use crate::{
    error::{BrokenCause, TaskError},
    id::{TaskId, WorkerId},
};

/// An action that the pool must perform. `C` is the pool's chunk.
#[derive(Debug)]
pub(crate) enum Action<C: Scheduled> {
    /// Start a process for this worker, which has this index.
    Start(WorkerId, u32),
    /// Send this to the worker.
    Send(WorkerId, C::Sending),
    /// Ask the worker to leave.
    Stop(WorkerId),
    /// Warn that the worker has not ended for this long since it was asked to leave, and is killed.
    WarnNotStopping(WorkerId, Duration),
    /// Warn that a worker has not become ready, for this reason. Another one will be started.
    WarnNotReady(BrokenCause),
    /// Ask the task of this sending to stop by itself.
    Ask(WorkerId, u32),
    /// The worker was asked to leave, and has ended like this without a reply of its finalizer.
    NotFinalized(WorkerId, End),
    /// SIGTERM to the worker's group.
    Terminate(WorkerId),
    /// SIGKILL to the worker's group.
    Kill(WorkerId),
    /// Resolve the unresolved items of this chunk. Boxed, because it is rare.
    Resolve(Box<(C, End)>),
    /// The attempt of this task has ended like this. Decide whether it is tried again, and report
    /// the decision with [`on_retry`](super::Scheduler::on_retry) or
    /// [`on_give_up`](super::Scheduler::on_give_up). Boxed, because it is rare.
    Undecided(Box<(TaskId, End)>),
    /// All workers have ended, and nothing will ever be done again.
    Closed,
}

pub(super) type Actions<C> = Vec<Action<C>>;

/// How a task without a reply ended.
#[derive(Clone, Debug)]
pub(crate) enum End {
    Error(TaskError),
    /// An attempt failed with this error, and it was decided that there is no other one.
    GivenUp(TaskError),
    /// The worker was lost while it ran the task. The pool knows the reason.
    Lost(WorkerId),
    /// The worker was lost before it began the task, which only it could run. So the task is not to
    /// blame.
    Unbegun(WorkerId),
}

/// Returns the action that ends the unresolved items of a chunk with this error.
pub(super) fn resolve<C: Scheduled>(chunk: C, error: TaskError) -> Action<C> {
    Action::Resolve(Box::new((chunk, End::Error(error))))
}

/// The items that a reply belongs to.
pub(crate) enum Replied<'a, C> {
    /// The last unresolved items of a chunk, which is complete: the chunk, the first of these
    /// items, and their number.
    Last(C, u32, u32),
    /// Some items of a chunk that has more: the chunk, the first of these items, and their number.
    Items(&'a C, u32, u32),
    /// An attempt that has failed. The task may be tried again: decide, as for
    /// [`Action::Undecided`].
    Undecided(TaskId),
    /// The reply comes too late: the worker is being killed because of this task, or the task was
    /// asked to stop and ends with the error for that.
    Late,
}

/// The error for a reply about a task that the worker does not have.
#[derive(Debug, PartialEq)]
pub(crate) struct ReplyToNobody;
