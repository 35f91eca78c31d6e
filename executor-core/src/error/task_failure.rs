//! What a hook for errors is told in the worker: [`TaskFailure`].

use serde::{Deserialize, Serialize};

use super::TaskError;

/// How a task has failed, as the function of
/// [`on_task_error`](crate::ProcessPoolBuilder::on_task_error) is told in the worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct TaskFailure {
    /// The name of the task function. A name that the [task](crate::Task::name) has for itself is
    /// not known in the worker.
    pub task: String,
    /// The number of the task's id ([`TaskFuture::id`](crate::TaskFuture::id),
    /// [`TaskId::as_u64`](crate::TaskId::as_u64)).
    pub id: u64,
    /// Which attempt it was. The first one is 1.
    pub attempt: u32,
    /// What kind of failure it is.
    pub kind: TaskFailureKind,
    /// The text of the error that the caller gets.
    pub error: String,
    /// The source line of a panic, if it is known.
    pub location: Option<String>,
}

/// The kinds of failures that happen in a worker, and that it survives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum TaskFailureKind {
    /// The task returned an error: [`TaskError::Failed`].
    Failed,
    /// The task panicked: [`TaskError::Panicked`].
    Panicked,
    /// The arguments could not be decoded: [`TaskError::Decode`] or, if they do not suit the codec,
    /// [`TaskError::Encode`].
    Arguments,
    /// The result could not be encoded: [`TaskError::Encode`].
    Result,
}

impl TaskFailure {
    /// Returns what there is to tell about this error of a task.
    pub(crate) fn new(
        (task, id, attempt): (&str, u64, u32),
        kind: TaskFailureKind,
        error: &TaskError,
    ) -> Self {
        let location = match error {
            TaskError::Panicked(panic) => panic.location().map(str::to_owned),
            _ => None,
        };
        TaskFailure { task: task.to_owned(), id, attempt, kind, error: error.to_string(), location }
    }
}
