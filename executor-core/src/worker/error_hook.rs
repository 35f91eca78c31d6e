//! The function that is told of errors: what it is told, and what becomes of its own.
//!
//! ```text
//!  a task fails ─► reply, with `REPORTS` ─► the hook runs ─► `Reported` ─► the next task
//! ```
//!
//! The reply is sent first, so nothing that the hook does changes it. The pool sends no task to the
//! worker in between, and limits the time.

use super::{ancillary::Arrived, call::Caller};
use crate::{
    error::{TaskFailure, TaskFailureKind, reply},
    id::{FnId, TaskId},
    registry,
    unwind::catch,
    wire::{
        buffer::{Buffer, Contents},
        frame::Reply,
        handshake::ErrorHook,
    },
};

/// Returns what there is to tell about a reply of this kind, if it is one of a task that has
/// failed.
pub(super) fn failure(
    task: TaskId,
    function: FnId,
    failed: u16,
    kind: Reply,
    contents: &Contents<'_>,
) -> Option<TaskFailure> {
    let what = match kind {
        Reply::Failed => TaskFailureKind::Failed,
        Reply::Panicked => TaskFailureKind::Panicked,
        Reply::DecodeError | Reply::Unsuited => TaskFailureKind::Arguments,
        Reply::EncodeError => TaskFailureKind::Result,
        _ => return None,
    };
    let Contents::Bytes(bytes) = contents else { return None };
    let name = registry::lookup(function).map_or("", |entry| entry.name);
    let attempt = u32::from(failed) + 1;
    let error = reply::failure(name, kind, bytes).after(attempt);
    Some(TaskFailure::new((name, task.as_u64(), attempt), what, &error))
}

/// Runs the hook. A failure of its own is logged, and has no other effect.
pub(super) fn run(hook: ErrorHook, caller: &mut Caller, task: TaskId, failure: &TaskFailure) {
    let mut arguments = Buffer::new();
    let failed = match hook.codec.encode(failure, &mut arguments) {
        Err(error) => Some(error.message),
        Ok(()) => {
            let bytes = arguments.into_vec();
            let mut arguments = Arrived { bytes: &bytes, attachments: Vec::new() };
            caller.call(task, hook.function, &mut arguments, |kind, contents, _| {
                match (kind, contents) {
                    (Reply::Done, _) => None,
                    (kind, Contents::Bytes(bytes)) => Some(reply::text(kind, bytes)),
                    (_, Contents::Segment(..)) => None,
                }
            })
        }
    };
    if let Some(error) = failed {
        // A subscriber is user code, too.
        let _ = catch(|| tracing::warn!(error, task = failure.task, "`on_task_error` has failed"));
    }
}
