//! Runs user code where its panic must not go on: callbacks, hooks, tasks' surroundings.

use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs user code where its panic must not go on; its message, if it panics. What was thrown is forgotten and not
/// dropped: its drop may panic as well.
pub(crate) fn catch<R>(run: impl FnOnce() -> R) -> Result<R, String> {
    catch_unwind(AssertUnwindSafe(run)).map_err(|payload| {
        let message = panic_message(&*payload).to_owned();
        std::mem::forget(payload);
        message
    })
}

/// The text of a panic's payload.
fn panic_message(payload: &(dyn std::any::Any + Send)) -> &str {
    payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("(a panic payload that is no text)")
}
