//! What `try_submit` and `submit_async` return.
//!
//! ```text
//!  try_submit ───► TaskFuture, or Full: the task comes back
//!  submit_async ─► SubmitAsync ──(its turn)──► TaskFuture
//! ```

use std::{
    error::Error,
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use super::{Executor, submit_at};
use crate::{future::TaskFuture, pool::pressure::Admission, task::IntoTask};

/// The error of [`try_submit`](crate::ProcessPoolExecutor::try_submit): the executor has as many
/// pending tasks as it may have. It contains the task that was not submitted.
///
/// ```
/// use executor::prelude::*;
///
/// #[task]
/// fn forever() { loop { std::thread::park() } }
///
/// #[executor::main]
/// fn main() {
///     let pool = ProcessPoolExecutor::builder().max_workers(1).max_pending(1).build().unwrap();
///     let first = pool.submit(forever::task());
///     let full = pool.try_submit(forever::task().name("the second")).unwrap_err();
///     let task = full.into_task();
///     first.cancel_running();
///     assert!(first.error().unwrap().is_cancelled());
///     // Now there is room.
///     pool.try_submit(task).unwrap().cancel_running();
///     pool.kill_workers();
/// }
/// ```
pub struct Full<T> {
    pub(super) task: T,
}

impl<T> Full<T> {
    /// Returns the task that was not submitted.
    pub fn into_task(self) -> T {
        self.task
    }
}

impl<T> fmt::Display for Full<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "the executor has as many pending tasks as it may have (`max_pending`, \
             `max_pending_bytes`)",
        )
    }
}

crate::debug::debug_is_display!([T] Full<T>);

impl<T> Error for Full<T> {}

/// A future that submits a task when it is its turn. Made by
/// [`submit_async`](crate::ProcessPoolExecutor::submit_async).
#[must_use = "nothing is submitted until this is awaited"]
pub struct SubmitAsync<T> {
    executor: Box<dyn Executor>,
    admission: Option<Admission>,
    task: Option<T>,
}

impl<T> SubmitAsync<T> {
    pub(super) fn new(executor: Box<dyn Executor>, task: T) -> Self {
        SubmitAsync { executor, admission: None, task: Some(task) }
    }
}

// The task is moved when it is submitted, and never pinned.
impl<T> Unpin for SubmitAsync<T> {}

impl<T: IntoTask> Future for SubmitAsync<T> {
    type Output = TaskFuture<T::Output>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let SubmitAsync { executor, admission, task } = self.get_mut();
        let place = match executor.pressure() {
            None => None,
            Some(pressure) => {
                let admission = admission.get_or_insert_with(|| Admission::new(pressure));
                Some(ready!(admission.poll(cx.waker())))
            }
        };
        let task = task.take().expect("polled after the task was submitted");
        Poll::Ready(submit_at(&**executor, task.into_task(), place))
    }
}

impl<T> fmt::Debug for SubmitAsync<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SubmitAsync")
            .field("submitted", &self.task.is_none())
            .finish_non_exhaustive()
    }
}
