//! Encodes a task's arguments, in the thread that makes the call.

use super::{TaskArgs, TaskOptions};
use crate::{
    error::{CodecFailure, Failure, RemoteError, Side, TaskError},
    unwind::catch,
    wire::{
        attachment::{self, Attachment},
        buffer::Buffer,
    },
};

/// Encodes the arguments of a task. Puts the attachments that travel with them into `attached`,
/// which is empty before.
///
/// `Serialize` is user code. If it panics, this task fails with an error; `submit` itself never
/// fails.
pub(crate) fn encode<F: TaskArgs<A>, A>(
    args: A,
    options: &TaskOptions,
    out: &mut Buffer,
    attached: &mut Vec<Attachment>,
) -> Result<(), Box<TaskError>> {
    F::entry().known().map_err(|why| TaskError::Invalid(why.into()))?;
    if let Some(what) = options.invalid() {
        let name = options.called(F::NAME);
        return Err(Box::new(TaskError::invalid(format!("task `{name}` has {what}"))));
    }
    let start = out.len();
    // The rare values are written to their places only when there are any. To move a `Result` or a
    // vector that was just made costs as much as encoding a number: it is stored in parts and
    // loaded as one, which stalls the processor.
    let mut failed = None;
    let encode = || {
        if let Err(error) = F::encode_args(&args, out) {
            failed = Some(error.message);
        }
    };
    if let Err(panic) = catch(|| attachment::collect_into(attached, encode)) {
        failed = Some(format!("its Serialize panicked: {panic}"));
    }
    // Dropped in a `catch` of its own, so that a panic of `Drop` is not reported as one of
    // `Serialize`.
    let dropped = catch(|| drop(args));
    if failed.is_none() && dropped.is_ok() {
        return Ok(());
    }
    attached.clear();
    // The buffer may hold other tasks in front of this one. Remove only what was written here.
    out.truncate(start);
    Err(Box::new(error(options.called(F::NAME), failed, dropped)))
}

/// Returns the error for arguments whose `Serialize` has failed, or whose `Drop` has panicked.
#[cold]
fn error(name: &str, failed: Option<String>, dropped: Result<(), String>) -> TaskError {
    match (failed, dropped) {
        (Some(message), _) => TaskError::Encode(CodecFailure::new(Side::Arguments, name, message)),
        (None, dropped) => {
            let during =
                "in the caller, while its arguments were dropped after they had been encoded";
            let message = dropped.err().unwrap_or_default();
            let failure = Failure { message, during: Some(during.into()), ..Failure::default() };
            TaskError::Panicked(RemoteError::new(name, failure))
        }
    }
}
