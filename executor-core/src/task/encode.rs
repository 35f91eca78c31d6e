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

/// Encodes the arguments of a task, and returns the attachments that travel with them.
///
/// `Serialize` is user code. If it panics, this task fails with an error; `submit` itself never
/// fails.
pub(crate) fn encode<F: TaskArgs<A>, A>(
    args: A,
    options: &TaskOptions,
    out: &mut Buffer,
) -> Result<Vec<Attachment>, TaskError> {
    F::entry().known().map_err(|why| TaskError::Invalid(why.into()))?;
    let start = out.len();
    let (encoded, attachments) = attachment::collect(|| catch(|| F::encode_args(&args, out)));
    // Dropped in a `catch` of its own, so that a panic of `Drop` is not reported as one of
    // `Serialize`.
    let dropped = catch(|| drop(args));
    let name = options.called(F::NAME);
    let refused = |message| TaskError::Encode(CodecFailure::new(Side::Arguments, name, message));
    let error = match (encoded, dropped) {
        (Ok(Ok(())), Ok(())) => return Ok(attachments),
        (Ok(Err(error)), _) => refused(error.message),
        (Err(panic), _) => refused(format!("its Serialize panicked: {panic}")),
        (Ok(Ok(())), Err(message)) => {
            let during =
                "in the caller, while its arguments were dropped after they had been encoded";
            let failure = Failure { message, during: Some(during.into()), ..Failure::default() };
            TaskError::Panicked(RemoteError::new(name, failure))
        }
    };
    // The buffer may hold other tasks in front of this one. Remove only what was written here.
    out.truncate(start);
    Err(error)
}
