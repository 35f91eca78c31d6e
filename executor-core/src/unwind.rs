//! Runs user code whose panic must be contained: callbacks, hooks, and the code around tasks.

use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs user code and contains its panic. Returns the panic's message, if it panics.
///
/// The panic's payload is forgotten and not dropped, because its `Drop` may panic as well.
#[inline]
pub(crate) fn catch<R>(run: impl FnOnce() -> R) -> Result<R, String> {
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(value) => Ok(value),
        Err(payload) => Err(message_of(payload)),
    }
}

#[cold]
fn message_of(payload: Box<dyn std::any::Any + Send>) -> String {
    let message = panic_message(&*payload).to_owned();
    std::mem::forget(payload);
    message
}

/// Returns the text of a panic's payload.
fn panic_message(payload: &(dyn std::any::Any + Send)) -> &str {
    payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("(a panic payload that is no text)")
}
