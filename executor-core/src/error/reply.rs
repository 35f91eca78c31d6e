//! Converts an error reply into a `TaskError`.

use super::{CodecFailure, Failure, RemoteError, Side, TaskError};
use crate::wire::frame::Reply;

/// Returns the error in a reply that carries no value. `name` is the name of the task.
pub(crate) fn failure(name: &str, kind: Reply, payload: &[u8]) -> TaskError {
    let text = || String::from_utf8_lossy(payload).into_owned();
    match kind {
        Reply::Failed | Reply::Panicked => match postcard::from_bytes::<Failure>(payload) {
            Ok(failure) if kind == Reply::Failed => {
                TaskError::Failed(RemoteError::new(name, failure))
            }
            Ok(failure) => TaskError::Panicked(RemoteError::new(name, failure)),
            Err(error) => {
                TaskError::Decode(CodecFailure::new(Side::Result, name, error.to_string()))
            }
        },
        Reply::Refused => TaskError::Refused(RemoteError::new(
            name,
            Failure { message: text(), ..Failure::default() },
        )),
        Reply::DecodeError => {
            TaskError::Decode(CodecFailure::new(Side::ArgumentsInWorker, name, text()))
        }
        Reply::Unsuited => TaskError::Encode(CodecFailure::new(Side::Arguments, name, text())),
        _ => TaskError::Encode(CodecFailure::new(Side::ResultInWorker, name, text())),
    }
}

/// Returns the text of an error reply, for a caller that has no task to name.
pub(crate) fn text(kind: Reply, payload: &[u8]) -> String {
    match kind {
        Reply::Failed | Reply::Panicked => match postcard::from_bytes::<Failure>(payload) {
            Ok(failure) => match failure.during {
                Some(during) => format!("{} ({during})", failure.message),
                None => failure.message,
            },
            Err(error) => error.to_string(),
        },
        _ => String::from_utf8_lossy(payload).into_owned(),
    }
}
