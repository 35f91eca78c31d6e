//! The handle of a submitted task that the user holds.

use std::{
    any::Any,
    fmt,
    future::Future,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use super::cell::{Callback, Cell, DoneCallback, Ended, Outcome};
use crate::{
    error::{CodecFailure, Side, TaskError},
    id::TaskId,
    task::{
        TaskFn,
        usage::{Usage, UsageSlot},
    },
    unwind::catch,
    wire::{
        attachment,
        codec::{self, CodecError},
        payload::Payload,
    },
};

/// The future result of a submitted task.
///
/// Block on it with [`result`](Self::result), `.await` it on any runtime, or attach callbacks to
/// it. If it is dropped, the task keeps running. [`cancel_on_drop`](Self::cancel_on_drop) and
/// [`kill_on_drop`](Self::kill_on_drop) change that.
///
/// ```
/// use executor::prelude::*;
///
/// #[task]
/// fn add(a: i64, b: i64) -> i64 { a + b }
///
/// #[executor::main]
/// fn main() -> Result<(), Box<dyn std::error::Error>> {
///     let pool = ProcessPoolExecutor::builder().max_workers(1).build()?;
///     let future: TaskFuture<i64> = pool.submit(add::task(1, 2));
///     assert_eq!(future.result()?, 3);
///     Ok(())
/// }
/// ```
///
/// # Cancel safety
///
/// It can be polled by reference in a `select!` and polled again later, without losing the result.
/// Like other futures, it panics when polled after it was ready.
pub struct TaskFuture<T> {
    cell: Arc<Cell>,
    decode: fn(Outcome) -> Result<T, TaskError>,
    /// Where the usage will be, if it is measured.
    usage: Option<Arc<UsageSlot>>,
    on_drop: OnDrop,
}

/// What dropping the future does.
#[derive(Clone, Copy, PartialEq)]
enum OnDrop {
    RunOn,
    Cancel,
    Kill,
}

/// Decodes an outcome as the output of the task function `F`.
pub(crate) fn decode<F: TaskFn>(outcome: Outcome) -> Result<F::Output, TaskError> {
    let payload = outcome?;
    decode_with::<F>(|| decode_payload::<F>(&payload))
}

/// Decodes a value that consists only of bytes in this process.
#[inline]
pub(crate) fn decode_bytes<F: TaskFn>(bytes: &[u8]) -> Result<F::Output, TaskError> {
    decode_with::<F>(|| F::decode_output(bytes))
}

/// Decodes a value by calling `decode`.
#[inline]
fn decode_with<F: TaskFn>(
    decode: impl FnOnce() -> Result<F::Output, CodecError>,
) -> Result<F::Output, TaskError> {
    // Not moved out of the closure as one `Result`: see `encode`.
    let mut value = None;
    let mut failed = None;
    // The result's `Deserialize` is user code. If it panics, only this future fails.
    let caught = catch(|| match decode() {
        Ok(decoded) => value = Some(decoded),
        Err(error) => failed = Some(error.message),
    });
    match value {
        Some(value) => Ok(value),
        None => Err(undecodable(F::NAME, failed, caught)),
    }
}

/// Returns the error for a result whose `Deserialize` has failed or panicked.
#[cold]
fn undecodable(name: &str, failed: Option<String>, caught: Result<(), String>) -> TaskError {
    let panicked = || format!("its Deserialize panicked: {}", caught.err().unwrap_or_default());
    TaskError::Decode(CodecFailure::new(Side::Result, name, failed.unwrap_or_else(panicked)))
}

/// Decodes a payload, which may be in shared memory.
fn decode_payload<F: TaskFn>(payload: &Payload) -> Result<F::Output, CodecError> {
    if !matches!(payload, Payload::Large(_)) {
        return F::decode_output(payload);
    }
    let lost = |error: io::Error| CodecError::new(format!("its memory cannot be read: {error}"));
    if let Some(received) = payload.as_received() {
        // Copy a byte vector only once, directly from the worker's memory into the user's vector.
        let mut output: Option<F::Output> = None;
        if let Some(vec) = (&mut output as &mut dyn Any).downcast_mut::<Option<Vec<u8>>>() {
            let mut head = [0; codec::BYTES_HEAD_MAX];
            let len = received.peek(&mut head).map_err(lost)?;
            if let Some(start) = F::CODEC.bytes_head(&head[..len], received.len()) {
                *vec = Some(received.copy_from(start).map_err(lost)?);
            }
        }
        if let Some(output) = output {
            return Ok(output);
        }
    }
    let bytes = payload.bytes().map_err(lost)?;
    attachment::offer(payload.attachments(), || F::decode_output(&bytes))
}

impl<T> TaskFuture<T> {
    pub(crate) fn new<F: TaskFn<Output = T>>(
        cell: Arc<Cell>,
        usage: Option<Arc<UsageSlot>>,
    ) -> Self {
        TaskFuture { cell, decode: decode::<F>, usage, on_drop: OnDrop::RunOn }
    }

    pub(crate) fn cell(&self) -> &Arc<Cell> {
        &self.cell
    }

    /// Waits for the task's end and returns its value.
    ///
    /// It consumes the future. To ask for the [`usage`](Self::usage) of a task, do so before:
    /// [`wait`](Self::wait), `usage`, then `result`. Or take a
    /// [`usage_handle`](Self::usage_handle).
    ///
    /// # Errors
    /// The error that ended the task: see [`TaskError`].
    pub fn result(self) -> Result<T, TaskError> {
        self.cell.wait(None);
        self.take()
    }

    /// Like [`result`](Self::result), but waits at most `timeout`. If the time passes, returns the
    /// future, and the task keeps running.
    ///
    /// ```
    /// # use executor::prelude::*;
    /// # use std::time::Duration;
    /// #[task]
    /// fn nap(ms: u64) { std::thread::sleep(Duration::from_millis(ms)) }
    ///
    /// #[executor::main]
    /// fn main() {
    ///     let pool = ProcessPoolExecutor::builder().max_workers(1).build().unwrap();
    ///     match pool.submit(nap::task(60)).result_timeout(Duration::from_millis(1)) {
    ///         Ok(outcome) => outcome.unwrap(),
    ///         Err(future) => future.result().unwrap(),
    ///     }
    /// }
    /// ```
    ///
    /// # Errors
    /// The future itself, if the task has not ended within `timeout`.
    pub fn result_timeout(self, timeout: Duration) -> Result<Result<T, TaskError>, Self> {
        if self.wait_timeout(timeout) { Ok(self.take()) } else { Err(self) }
    }

    /// Takes and decodes the outcome. Called once, when the task has ended.
    pub(crate) fn take(&self) -> Result<T, TaskError> {
        let outcome = self.cell.take().expect("waited for the end");
        (self.decode)(outcome)
    }

    /// Waits for the task's end.
    pub fn wait(&self) {
        self.cell.wait(None);
    }

    /// Waits for the task's end, at most `timeout`. Returns whether it has come.
    pub fn wait_timeout(&self, timeout: Duration) -> bool {
        self.cell.wait(Instant::now().checked_add(timeout))
    }

    /// Waits for the task's end and returns a copy of its error, or `None` if it returned a value.
    ///
    /// The value is not decoded. If it cannot be decoded, only [`result`](Self::result) returns an
    /// error.
    pub fn error(&self) -> Option<TaskError> {
        self.cell.wait(None);
        self.cell.error()
    }

    /// Cancels the task if it has not begun.
    ///
    /// Returns `true` if the task will never run, including when it was cancelled before. Returns
    /// `false` if it is running or has ended.
    pub fn cancel(&self) -> bool {
        self.cell.cancel()
    }

    /// Cancels the task, and kills the worker if it is running the task.
    ///
    /// If the executor gives tasks [time to stop](crate::ProcessPoolBuilder::cancel_grace), the
    /// task is asked to first, and the worker is kept if it does. How the worker is ended otherwise
    /// is set by [`terminate_grace`](crate::ProcessPoolBuilder::terminate_grace).
    ///
    /// Returns `true` if the task ends, or has ended, with [`TaskError::Cancelled`]. Returns
    /// `false` if it had ended in another way before. The future is done once the task has stopped
    /// or the worker is gone.
    pub fn cancel_running(&self) -> bool {
        self.cell.cancel_running()
    }

    /// Returns a handle that can cancel the task from elsewhere, even after the future was moved or
    /// awaited.
    pub fn cancel_handle(&self) -> CancelHandle {
        CancelHandle { cell: Arc::clone(&self.cell) }
    }

    /// Whether the task was cancelled.
    pub fn cancelled(&self) -> bool {
        self.cell.ended() == Some(Ended::Cancelled)
    }

    /// Whether a worker has begun the task and not ended it. A task that was sent to a worker ahead
    /// of time and waits there is not running.
    pub fn running(&self) -> bool {
        self.cell.is_running()
    }

    /// Whether the task has ended: with a value, an error or by cancellation.
    pub fn done(&self) -> bool {
        self.cell.is_done()
    }

    /// Returns the task's id.
    pub fn id(&self) -> TaskId {
        self.cell.id()
    }

    /// Returns what the task has cost, if that is
    /// [measured](crate::Task::measure_usage) and the task has ended.
    ///
    /// A worker reports it with its reply. So there is none for an attempt that ended without one,
    /// because the worker was lost or killed, or because the
    /// task was asked to stop; if an attempt before that was answered, this is the
    /// usage of that one, and [`Usage::attempt`] says which.
    pub fn usage(&self) -> Option<Usage> {
        self.usage_handle().get()
    }

    /// Returns a handle that gives the usage where the future is not at hand: in a callback, or
    /// after `.await`.
    ///
    /// ```
    /// # use executor::prelude::*;
    /// #[task]
    /// fn square(x: u64) -> u64 { x * x }
    ///
    /// #[executor::main]
    /// fn main() {
    ///     let pool = ProcessPoolExecutor::builder().max_workers(1).build().unwrap();
    ///     let future = pool.submit(square::task(7).measure_usage());
    ///     let usage = future.usage_handle();
    ///     future.on_done(move |outcome| {
    ///         let worker = usage.get().unwrap().worker;
    ///         assert_ne!(worker, std::process::id());
    ///         assert_eq!(outcome.unwrap(), 49);
    ///     });
    ///     pool.shutdown(true);
    /// }
    /// ```
    pub fn usage_handle(&self) -> UsageHandle {
        UsageHandle { cell: Arc::clone(&self.cell), usage: self.usage.clone() }
    }

    /// Calls `callback` when the task has ended.
    ///
    /// Callbacks run in the submitting process, on one thread of the executor. They run one at a
    /// time, in order of registration. A slow callback delays other callbacks, never results. If
    /// the future is done already, the callback runs at once in the calling thread.
    ///
    /// Callbacks get a reference to a decoded copy of the result, which all callbacks of this
    /// future share. A panic in a callback is caught and logged with `tracing`.
    /// [`shutdown(true)`](crate::ProcessPoolExecutor::shutdown) waits for callbacks.
    ///
    /// ```
    /// # use executor::prelude::*;
    /// #[task]
    /// fn square(x: u64) -> u64 { x * x }
    ///
    /// #[executor::main]
    /// fn main() {
    ///     let pool = ProcessPoolExecutor::builder().max_workers(1).build().unwrap();
    ///     let future = pool.submit(square::task(7));
    ///     future.add_done_callback(|outcome: Result<&u64, &TaskError>| assert_eq!(outcome.unwrap(), &49));
    ///     pool.shutdown(true);
    /// }
    /// ```
    pub fn add_done_callback<C>(&self, callback: C)
    where
        C: FnOnce(Result<&T, &TaskError>) + Send + 'static,
        T: 'static,
    {
        self.cell.add_callback(self.done_callback(callback));
    }

    /// Wraps a callback so that its type no longer depends on `T`.
    pub(crate) fn done_callback<C>(&self, callback: C) -> DoneCallback
    where
        C: FnOnce(Result<&T, &TaskError>) + Send + 'static,
        T: 'static,
    {
        Box::new(ByReference { decode: self.decode, callback })
    }

    /// Calls `callback` with the task's result by value when the task has ended. For programs that
    /// do not need the future for anything else.
    ///
    /// The callback runs as with [`add_done_callback`](Self::add_done_callback). The future's
    /// `cancel_on_drop` and `kill_on_drop` no longer apply.
    pub fn on_done<C>(mut self, callback: C)
    where
        C: FnOnce(Result<T, TaskError>) + Send + 'static,
        T: 'static,
    {
        self.on_drop = OnDrop::RunOn;
        self.cell.add_callback(Box::new(ByValue { decode: self.decode, callback }));
    }

    /// Makes dropping the future [`cancel`](Self::cancel) the task.
    #[must_use = "the returned future is the one that cancels"]
    pub fn cancel_on_drop(mut self) -> Self {
        self.on_drop = OnDrop::Cancel;
        self
    }

    /// Makes dropping the future [`cancel_running`](Self::cancel_running) the task. Use it in a
    /// service, for example, so that the work for a client stops when the client has gone.
    #[must_use = "the returned future is the one that kills"]
    pub fn kill_on_drop(mut self) -> Self {
        self.on_drop = OnDrop::Kill;
        self
    }
}

/// A callback of `add_done_callback`.
struct ByReference<T, C> {
    decode: fn(Outcome) -> Result<T, TaskError>,
    callback: C,
}

impl<T: 'static, C> Callback for ByReference<T, C>
where
    C: FnOnce(Result<&T, &TaskError>) + Send,
{
    fn run(self: Box<Self>, outcome: Outcome) {
        (self.callback)((self.decode)(outcome).as_ref());
    }

    fn run_sharing(self: Box<Self>, outcome: &Outcome, shared: &mut Option<Box<dyn Any>>) {
        let decoded = shared.get_or_insert_with(|| Box::new((self.decode)(outcome.clone())));
        let decoded = decoded
            .downcast_ref::<Result<T, TaskError>>()
            .expect("all callbacks of a future have its type");
        (self.callback)(decoded.as_ref());
    }
}

/// A callback of `on_done`.
struct ByValue<T, C> {
    decode: fn(Outcome) -> Result<T, TaskError>,
    callback: C,
}

impl<T, C> Callback for ByValue<T, C>
where
    C: FnOnce(Result<T, TaskError>) + Send,
{
    fn run(self: Box<Self>, outcome: Outcome) {
        (self.callback)((self.decode)(outcome));
    }

    fn run_sharing(self: Box<Self>, outcome: &Outcome, _shared: &mut Option<Box<dyn Any>>) {
        self.run(outcome.clone());
    }
}

impl<T> Future for TaskFuture<T> {
    type Output = Result<T, TaskError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.cell.poll(cx.waker()) {
            Some(outcome) => Poll::Ready((self.decode)(outcome)),
            None => Poll::Pending,
        }
    }
}

impl<T> Drop for TaskFuture<T> {
    fn drop(&mut self) {
        match self.on_drop {
            OnDrop::RunOn => {}
            OnDrop::Cancel => {
                self.cell.cancel();
            }
            OnDrop::Kill => {
                self.cell.cancel_running();
            }
        }
    }
}

impl<T> fmt::Debug for TaskFuture<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("TaskFuture");
        out.field("id", &self.id().as_u64());
        match self.cell.ended() {
            None if self.running() => out.field("state", &"running"),
            None => out.field("state", &"pending"),
            Some(Ended::Cancelled) => out.field("state", &"cancelled"),
            Some(Ended::Value) => out
                .field("state", &"finished")
                .field("value", &format_args!("{}", std::any::type_name::<T>())),
            Some(Ended::Error(kind)) => {
                out.field("state", &"finished").field("error", &format_args!("{kind}"))
            }
        };
        out.finish()
    }
}

/// Cancels a task from elsewhere. Made by [`TaskFuture::cancel_handle`].
///
/// ```
/// # use executor::prelude::*;
/// #[task]
/// fn forever() { loop { std::thread::park() } }
///
/// #[executor::main]
/// fn main() {
///     let pool = ProcessPoolExecutor::builder().max_workers(1).build().unwrap();
///     let future = pool.submit(forever::task());
///     let handle = future.cancel_handle();
///     std::thread::spawn(move || handle.cancel_running());
///     assert!(future.result().unwrap_err().is_cancelled());
/// }
/// ```
#[derive(Clone, Debug)]
pub struct CancelHandle {
    cell: Arc<Cell>,
}

impl CancelHandle {
    /// Like [`TaskFuture::cancel`].
    pub fn cancel(&self) -> bool {
        self.cell.cancel()
    }

    /// Like [`TaskFuture::cancel_running`].
    pub fn cancel_running(&self) -> bool {
        self.cell.cancel_running()
    }

    /// Like [`TaskFuture::done`].
    pub fn done(&self) -> bool {
        self.cell.is_done()
    }

    /// Like [`TaskFuture::id`].
    pub fn id(&self) -> TaskId {
        self.cell.id()
    }
}

/// A handle that gives the usage of a task: see [`TaskFuture::usage_handle`].
#[derive(Clone, Debug)]
pub struct UsageHandle {
    cell: Arc<Cell>,
    usage: Option<Arc<UsageSlot>>,
}

impl UsageHandle {
    /// Like [`TaskFuture::usage`].
    pub fn get(&self) -> Option<Usage> {
        let usage = self.usage.as_ref()?;
        // In a fork of this process the lock may be held for ever.
        if self.cell.forked() || !self.cell.is_done() {
            return None;
        }
        usage.get()
    }
}
