//! The pending result of `apply_async` and of the other asynchronous methods of a pool.

use std::{
    any::Any,
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Wake, Waker},
    time::{Duration, Instant},
};

use super::unhandled_errors::{Outlook, UnhandledErrors, log};
use crate::{
    error::TaskError,
    future::{
        TaskFuture,
        cell::{Cell, Outcome},
        decode,
        join_all::{JoinAll, ListCallback},
    },
    task::TaskFn,
};

/// The result of a [`Pool`](crate::Pool)'s task, or of all tasks of a map, which may be pending.
///
/// Block on it with [`get`](Self::get), `.await` it on any runtime, or attach callbacks. Dropping
/// it does not cancel the task. If the task then fails and nobody reads the error, the error is
/// logged.
///
/// ```
/// use executor::{AsyncResult, Pool, prelude::*};
///
/// #[task]
/// fn square(x: u64) -> u64 { x * x }
///
/// #[executor::main]
/// fn main() -> Result<(), Box<dyn std::error::Error>> {
///     let pool = Pool::new(2)?;
///     let result: AsyncResult<u64> = pool.apply_async(square::task(7));
///     assert_eq!(result.get()?, 49);
///     pool.close();
///     pool.join()?;
///     Ok(())
/// }
/// ```
///
/// # Cancel safety
///
/// It may be polled by reference in a `select!` and polled again later. Polling it after it was
/// ready panics.
pub struct AsyncResult<T> {
    source: Source<T>,
    unhandled: Arc<UnhandledErrors>,
    /// Its key in `unhandled`, as long as nobody has read the outcome.
    key: Option<u64>,
}

enum Source<T> {
    /// The result of one task.
    One(TaskFuture<T>),
    /// The results of all tasks of a map, and the function that decodes them.
    All(Arc<JoinAll>, fn(Vec<Outcome>) -> Result<T, TaskError>),
    /// The error of a call that was never submitted. `None` after it was taken.
    None(Option<TaskError>),
}

/// Returns all values in order, or the first error.
fn decode_all<F: TaskFn>(outcomes: Vec<Outcome>) -> Result<Vec<F::Output>, TaskError> {
    outcomes.into_iter().map(decode::<F>).collect()
}

impl Outlook for Cell {
    fn failure(&self) -> Option<TaskError> {
        self.error()
    }
}

impl Outlook for JoinAll {
    fn failure(&self) -> Option<TaskError> {
        self.error()
    }
}

impl<T> AsyncResult<T> {
    pub(super) fn of_task(future: TaskFuture<T>, unhandled: &Arc<UnhandledErrors>) -> Self {
        let key = unhandled.hold(Arc::clone(future.cell()) as Arc<dyn Outlook>);
        AsyncResult {
            source: Source::One(future),
            unhandled: Arc::clone(unhandled),
            key: Some(key),
        }
    }

    pub(super) fn refused(error: TaskError, unhandled: &Arc<UnhandledErrors>) -> Self {
        AsyncResult {
            source: Source::None(Some(error)),
            unhandled: Arc::clone(unhandled),
            key: None,
        }
    }

    /// Waits for the end of the task, and returns its value or its error.
    ///
    /// # Errors
    /// The error that ended the task: see [`TaskError`]. For a map, it is the error of the first
    /// failed item in the order of the input.
    pub fn get(mut self) -> Result<T, TaskError> {
        self.wait();
        self.take()
    }

    /// Does the same as [`get`](Self::get), but waits at most `timeout`. When the time has passed,
    /// it returns the `AsyncResult` itself. The task continues.
    ///
    /// ```
    /// # use executor::{Pool, prelude::*};
    /// # use std::time::Duration;
    /// #[task]
    /// fn forever() { loop { std::thread::park() } }
    ///
    /// #[executor::main]
    /// fn main() {
    ///     let pool = Pool::new(1).unwrap();
    ///     let late = pool.apply_async(forever::task()).get_timeout(Duration::from_millis(10)).unwrap_err();
    ///     assert!(!late.ready());
    ///     pool.terminate();
    ///     assert!(late.get().unwrap_err().is_shutdown());
    /// }
    /// ```
    ///
    /// # Errors
    /// The `AsyncResult` itself, if the time has passed.
    pub fn get_timeout(mut self, timeout: Duration) -> Result<Result<T, TaskError>, Self> {
        if self.wait_timeout(timeout) { Ok(self.take()) } else { Err(self) }
    }

    /// Waits for the end of the task.
    pub fn wait(&self) {
        self.wait_until(None);
    }

    /// Waits for the end of the task, at most `timeout`. Returns whether the task has ended.
    pub fn wait_timeout(&self, timeout: Duration) -> bool {
        self.wait_until(Instant::now().checked_add(timeout))
    }

    fn wait_until(&self, deadline: Option<Instant>) -> bool {
        match &self.source {
            Source::One(future) => future.cell().wait(deadline),
            Source::All(all, _) => all.wait(deadline),
            Source::None(_) => true,
        }
    }

    /// Returns whether the task has ended.
    pub fn ready(&self) -> bool {
        match &self.source {
            Source::One(future) => future.done(),
            Source::All(all, _) => all.is_done(),
            Source::None(_) => true,
        }
    }

    /// Returns whether the task has ended with a value, or `None` if it has not ended. The value is
    /// not decoded for this.
    pub fn successful(&self) -> Option<bool> {
        self.ready().then(|| self.error().is_none())
    }

    fn error(&self) -> Option<TaskError> {
        match &self.source {
            Source::One(future) => future.cell().error(),
            Source::All(all, _) => all.error(),
            Source::None(error) => error.clone(),
        }
    }

    /// Takes the outcome, and marks it as read. Called only when the task has ended.
    fn take(&mut self) -> Result<T, TaskError> {
        self.notice();
        match &mut self.source {
            Source::One(future) => future.take(),
            Source::All(all, decode) => all.take().and_then(*decode),
            Source::None(error) => {
                Err(error.take().expect("AsyncResult polled after it was ready"))
            }
        }
    }

    /// Marks the outcome as read, so that an error is not logged.
    fn notice(&mut self) {
        if let Some(key) = self.key.take() {
            self.unhandled.forget(key);
        }
    }
}

impl<T: 'static> AsyncResult<T> {
    /// Calls `callback` with the value, if the task ends with one.
    ///
    /// The callback runs in this process, on the pool's callback thread, one callback at a time. If
    /// the task has already ended, it is called, too. Exactly one of `callback` and
    /// [`error_callback`](Self::error_callback) is called. [`join`](crate::Pool::join) waits for
    /// callbacks.
    ///
    /// The value is a copy that is decoded once for all callbacks of this result. A panic of the
    /// callback is caught and logged (with `tracing`).
    ///
    /// ```
    /// # use executor::{Pool, prelude::*};
    /// # use std::sync::mpsc;
    /// #[task]
    /// fn parse(text: &str) -> Result<u64, std::num::ParseIntError> { text.parse() }
    ///
    /// #[executor::main]
    /// fn main() {
    ///     let pool = Pool::new(1).unwrap();
    ///     for text in ["7", "seven"] {
    ///         pool.apply_async(parse::task(text))
    ///             .callback(|number: &u64| assert_eq!(*number, 7))
    ///             .error_callback(|error: &TaskError| assert!(error.to_string().contains("invalid digit")));
    ///     }
    ///     pool.close();
    ///     pool.join().unwrap();
    /// }
    /// ```
    pub fn callback(self, callback: impl FnOnce(&T) + Send + 'static) -> Self {
        self.add_callback(move |outcome| {
            if let Ok(value) = outcome {
                callback(value);
            }
        });
        self
    }

    /// Calls `callback` with the error, if the task ends with one. It is called in the same place
    /// and at the same time as a [`callback`](Self::callback). An error with an `error_callback`
    /// counts as read.
    pub fn error_callback(mut self, callback: impl FnOnce(&TaskError) + Send + 'static) -> Self {
        self.notice();
        self.add_callback(move |outcome| {
            if let Err(error) = outcome {
                callback(error);
            }
        });
        self
    }

    fn add_callback(&self, callback: impl FnOnce(Result<&T, &TaskError>) + Send + 'static) {
        let thread = &self.unhandled.callbacks;
        match &self.source {
            // A fork has no callback thread, so a callback runs in the calling thread there.
            // `JoinAll` does the same for a map.
            Source::One(future) if self.unhandled.forked() => {
                future.cell().add_callback(future.done_callback(callback));
            }
            Source::None(Some(error)) if self.unhandled.forked() => callback(Err(error)),
            Source::One(future) => {
                future.cell().add_callback_on(thread, future.done_callback(callback));
            }
            Source::All(all, decode) => {
                let decode = *decode;
                all.add_callback(ListCallback {
                    decode: Box::new(move |outcomes| Box::new(decode(outcomes)) as Box<dyn Any>),
                    run: Box::new(move |list| {
                        let list = list
                            .downcast_ref::<Result<T, TaskError>>()
                            .expect("decoded by this result's decoder");
                        callback(list.as_ref());
                    }),
                });
            }
            Source::None(Some(error)) => {
                let error = error.clone();
                thread.push(Box::new(move || callback(Err(&error))));
            }
            Source::None(None) => {}
        }
    }
}

impl<T> AsyncResult<Vec<T>> {
    pub(super) fn of_map<F: TaskFn<Output = T>>(
        all: Arc<JoinAll>,
        unhandled: &Arc<UnhandledErrors>,
    ) -> Self {
        let key = unhandled.hold(Arc::clone(&all) as Arc<dyn Outlook>);
        AsyncResult {
            source: Source::All(all, decode_all::<F>),
            unhandled: Arc::clone(unhandled),
            key: Some(key),
        }
    }
}

impl<T> Future for AsyncResult<T> {
    type Output = Result<T, TaskError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        let ready = match &mut this.source {
            Source::One(future) => {
                let polled = Pin::new(future).poll(cx);
                if polled.is_ready() {
                    this.notice();
                }
                return polled;
            }
            Source::All(all, _) => all.poll(cx.waker()),
            Source::None(_) => true,
        };
        if ready { Poll::Ready(this.take()) } else { Poll::Pending }
    }
}

/// Logs the error of a result that was dropped before anybody read it, once the task has ended.
struct Last {
    result: Arc<dyn Outlook>,
    key: u64,
    unhandled: Arc<UnhandledErrors>,
}

impl Last {
    /// Marks the outcome as read. Returns the error, if nobody has read it before and the task
    /// failed.
    fn look(&self) -> Option<TaskError> {
        if self.unhandled.forget(self.key) { self.result.failure() } else { None }
    }
}

impl Wake for Last {
    fn wake(self: Arc<Self>) {
        if let Some(error) = self.look() {
            // Log on the callback thread. This thread takes replies, and a `tracing` subscriber is
            // user code.
            self.unhandled.callbacks.push(Box::new(move || log(&error)));
        }
    }
}

impl<T> Drop for AsyncResult<T> {
    fn drop(&mut self) {
        let Some(key) = self.key.take() else { return };
        let (result, pending): (Arc<dyn Outlook>, _) = match &self.source {
            Source::One(future) => (Arc::clone(future.cell()) as _, !future.done()),
            Source::All(all, _) => (Arc::clone(all) as _, !all.is_done()),
            Source::None(_) => return,
        };
        let last = Arc::new(Last { result, key, unhandled: Arc::clone(&self.unhandled) });
        if pending {
            let waker = Waker::from(Arc::clone(&last));
            // The result owns the waker, and the waker owns the result through `last`. This cycle
            // is broken when the task ends: the thread that completes the result drops the waker.
            let waits = match &self.source {
                Source::One(future) => future.cell().observe(Arc::as_ptr(&last) as usize, &waker),
                Source::All(all, _) => !all.poll(&waker),
                Source::None(_) => false,
            };
            if waits {
                return;
            }
        }
        // The task has ended, before this call or in the meantime.
        if let Some(error) = last.look() {
            log(&error);
        }
    }
}

impl<T> fmt::Debug for AsyncResult<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.successful() {
            None => "pending",
            Some(true) => "a value",
            Some(false) => "an error",
        };
        f.debug_struct("AsyncResult")
            .field("state", &format_args!("{state}"))
            .finish_non_exhaustive()
    }
}
