//! The cell between completer and handle.

use std::{
    any::Any,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    task::Waker,
    time::{Duration, Instant},
};

use super::callback::CallbackQueue;
use crate::{
    error::{BrokenCause, TaskError},
    id::TaskId,
    wire::payload::Payload,
};

/// How a task ended: its encoded value, or why there is none.
pub(crate) type Outcome = Result<Payload, TaskError>;

/// What a future may ask of the executor that works on it.
pub(crate) trait Control: Send + Sync {
    /// Withdraws a task that has not begun; whether it will never run.
    fn cancel(&self, task: TaskId) -> bool;
    /// Withdraws a task, killing the worker that runs it; whether it ends because of this.
    fn cancel_running(&self, task: TaskId) -> bool;
    /// Whether a worker has begun it.
    fn is_running(&self, task: TaskId) -> bool;
    /// Where its callbacks run.
    fn callbacks(&self) -> &Arc<CallbackQueue>;
    /// Whether this process is a fork of the one that owns the executor.
    fn forked(&self) -> bool;
}

pub(crate) struct Cell {
    id: TaskId,
    control: Option<Arc<dyn Control>>,
    inner: Mutex<Inner>,
    changed: Condvar,
}

#[derive(Default)]
struct Inner {
    state: State,
    /// Of the one who polls the handle.
    waker: Option<Waker>,
    /// Of those who wait for several futures at once, by a key that is theirs.
    observers: Vec<(usize, Waker)>,
    callbacks: Vec<DoneCallback>,
}

#[derive(Default)]
enum State {
    #[default]
    Pending,
    Done(Outcome),
    /// Taken by the reader; what kind of end it was stays known.
    Taken(Ended),
}

/// What is remembered of an outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    Value,
    Cancelled,
    Error(&'static str),
}

impl Ended {
    fn of(outcome: &Outcome) -> Self {
        match outcome {
            Ok(_) => Ended::Value,
            Err(TaskError::Cancelled) => Ended::Cancelled,
            Err(error) => Ended::Error(error.kind()),
        }
    }
}

/// Makes the shared copy.
type Decoder = Box<dyn FnOnce(Outcome) -> Box<dyn Any> + Send>;

/// Sees the shared copy.
type ByReference = Box<dyn FnOnce(&dyn Any) + Send>;

/// A callback, still ignorant of the future's type.
pub(crate) enum DoneCallback {
    /// Shares one decoded copy with the others of its kind: (decode, callback).
    Shared(Decoder, ByReference),
    /// Takes a copy of its own.
    Owned(Box<dyn FnOnce(Outcome) + Send>),
}

impl Cell {
    /// A pending cell and its only completer.
    pub(crate) fn pending(id: TaskId, control: Arc<dyn Control>) -> (Arc<Cell>, Completer) {
        let cell =
            Arc::new(Cell { id, control: Some(control), inner: Mutex::default(), changed: Condvar::new() });
        (Arc::clone(&cell), Completer(Some(cell)))
    }

    /// A cell that is done from the start.
    pub(crate) fn done(id: TaskId, control: Option<Arc<dyn Control>>, error: TaskError) -> Arc<Cell> {
        let inner = Inner { state: State::Done(Err(error)), ..Inner::default() };
        Arc::new(Cell { id, control, inner: Mutex::new(inner), changed: Condvar::new() })
    }

    pub(crate) fn id(&self) -> TaskId {
        self.id
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// In a fork of the executor's process nobody will ever complete this, and its lock may be held for ever by a
    /// thread that does not exist there.
    fn forked(&self) -> bool {
        self.control.as_ref().is_some_and(|control| control.forked())
    }

    pub(crate) fn ended(&self) -> Option<Ended> {
        if self.forked() {
            return Some(Ended::Error("Broken"));
        }
        match &self.lock().state {
            State::Pending => None,
            State::Done(outcome) => Some(Ended::of(outcome)),
            State::Taken(ended) => Some(*ended),
        }
    }

    pub(crate) fn is_done(&self) -> bool {
        self.ended().is_some()
    }

    /// A copy of the error, if there is one by now.
    pub(crate) fn error(&self) -> Option<TaskError> {
        if self.forked() {
            return Some(TaskError::Broken(BrokenCause::Forked));
        }
        match &self.lock().state {
            State::Done(Err(error)) => Some(error.clone()),
            _ => None,
        }
    }

    /// Waits for the end, at most until `deadline`; whether it has come.
    pub(crate) fn wait(&self, deadline: Option<Instant>) -> bool {
        if self.forked() {
            return true;
        }
        let mut inner = self.lock();
        while matches!(inner.state, State::Pending) {
            inner = match deadline {
                None => self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left == Duration::ZERO {
                        return false;
                    }
                    self.changed.wait_timeout(inner, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
        true
    }

    /// Takes the outcome, if it is there.
    pub(crate) fn take(&self) -> Option<Outcome> {
        if self.forked() {
            return Some(Err(TaskError::Broken(BrokenCause::Forked)));
        }
        let mut inner = self.lock();
        let ended = match &inner.state {
            State::Pending => return None,
            State::Done(outcome) => Ended::of(outcome),
            State::Taken(_) => panic!("TaskFuture polled after it was ready"),
        };
        match std::mem::replace(&mut inner.state, State::Taken(ended)) {
            State::Done(outcome) => Some(outcome),
            _ => unreachable!("looked at above, under the same lock"),
        }
    }

    /// Takes the outcome, or leaves the waker.
    pub(crate) fn poll(&self, waker: &Waker) -> Option<Outcome> {
        if !self.forked() {
            let mut inner = self.lock();
            if matches!(inner.state, State::Pending) {
                match &mut inner.waker {
                    Some(old) => old.clone_from(waker),
                    none => *none = Some(waker.clone()),
                }
                return None;
            }
        }
        self.take()
    }

    /// Asks to be woken at the end; `false` if it has come already.
    pub(crate) fn observe(&self, key: usize, waker: &Waker) -> bool {
        if self.forked() {
            return false;
        }
        let mut inner = self.lock();
        let pending = matches!(inner.state, State::Pending);
        if pending {
            match inner.observers.iter_mut().find(|(other, _)| *other == key) {
                Some((_, old)) => old.clone_from(waker),
                None => inner.observers.push((key, waker.clone())),
            }
        }
        pending
    }

    /// Takes that back. Without it, every `wait` would leave something behind in every future it did not see done.
    pub(crate) fn unobserve(&self, key: usize) {
        if !self.forked() {
            let dropped: Vec<_> = self.lock().observers.extract_if(.., |(other, _)| *other == key).collect();
            // Outside the lock: dropping a waker is user code.
            drop(dropped);
        }
    }

    /// Adds a callback; if the end has come it runs at once, here.
    pub(crate) fn add_callback(self: &Arc<Self>, callback: DoneCallback) {
        if !self.forked() {
            let mut inner = self.lock();
            if matches!(inner.state, State::Pending) {
                inner.callbacks.push(callback);
                return;
            }
        }
        let outcome = match self.forked() {
            true => Err(TaskError::Broken(BrokenCause::Forked)),
            false => match &self.lock().state {
                State::Done(outcome) => outcome.clone(),
                // The value has been moved out by whoever awaited it.
                State::Taken(_) | State::Pending => {
                    Err(TaskError::invalid("the result has already been taken"))
                }
            },
        };
        run_callbacks(outcome, vec![callback]);
    }

    pub(crate) fn cancel(&self) -> bool {
        match self.ended() {
            Some(ended) => ended == Ended::Cancelled,
            None => self.control.as_ref().is_some_and(|control| control.cancel(self.id)),
        }
    }

    pub(crate) fn cancel_running(&self) -> bool {
        match self.ended() {
            Some(ended) => ended == Ended::Cancelled,
            None => self.control.as_ref().is_some_and(|control| control.cancel_running(self.id)),
        }
    }

    pub(crate) fn is_running(&self) -> bool {
        !self.is_done() && self.control.as_ref().is_some_and(|control| control.is_running(self.id))
    }

    fn complete(self: &Arc<Self>, outcome: Outcome) {
        let mut inner = self.lock();
        debug_assert!(matches!(inner.state, State::Pending), "a completer completes once");
        let callbacks = std::mem::take(&mut inner.callbacks);
        let for_callbacks = (!callbacks.is_empty()).then(|| outcome.clone());
        let wakers = (inner.waker.take(), std::mem::take(&mut inner.observers));
        inner.state = State::Done(outcome);
        drop(inner);
        self.changed.notify_all();
        for waker in wakers.0.into_iter().chain(wakers.1.into_iter().map(|(_, waker)| waker)) {
            if catch_unwind(AssertUnwindSafe(|| waker.wake())).is_err() {
                tracing::error!(task = self.id.as_u64(), "a waker panicked");
            }
        }
        if let (Some(outcome), Some(control)) = (for_callbacks, &self.control) {
            control.callbacks().push(Box::new(move || run_callbacks(outcome, callbacks)));
        }
    }
}

/// In order of registration. Those that share a decoded copy cause one decoding, whatever their number.
fn run_callbacks(outcome: Outcome, callbacks: Vec<DoneCallback>) {
    let mut shared: Option<Box<dyn Any>> = None;
    for callback in callbacks {
        let run = AssertUnwindSafe(|| match callback {
            DoneCallback::Shared(decode, callback) => {
                callback(&**shared.get_or_insert_with(|| decode(outcome.clone())));
            }
            DoneCallback::Owned(callback) => callback(outcome.clone()),
        });
        if let Err(panic) = catch_unwind(run) {
            tracing::error!(message = super::callback::panic_message(&*panic), "a done-callback panicked");
        }
    }
}

impl fmt::Debug for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cell({:?})", self.id)
    }
}

/// The only one who may complete a cell, once. Dropped without that, it completes with an error.
pub(crate) struct Completer(Option<Arc<Cell>>);

impl Completer {
    /// Which task it is for.
    pub(crate) fn id(&self) -> TaskId {
        self.0.as_ref().map_or(TaskId::from_raw(0), |cell| cell.id)
    }

    /// Completes the future. Wakes and queues callbacks: never call it under a lock.
    pub(crate) fn complete(mut self, outcome: Outcome) {
        if let Some(cell) = self.0.take() {
            cell.complete(outcome);
        }
    }
}

impl Drop for Completer {
    fn drop(&mut self) {
        if let Some(cell) = self.0.take()
            && !cell.forked()
        {
            cell.complete(Err(TaskError::Broken(BrokenCause::Internal(
                "the executor forgot this task".into(),
            ))));
        }
    }
}
