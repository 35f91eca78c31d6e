//! The cell between completer and handle.

use std::{
    any::Any,
    cell::RefCell,
    fmt,
    sync::{Arc, PoisonError},
    task::Waker,
    time::{Duration, Instant},
};

use super::callback::{CallbackQueue, run_each, wake_each};
use crate::{
    error::{BrokenCause, TaskError},
    id::{TaskId, WorkerId},
    os::sync::{
        Condvar, Mutex, MutexGuard,
        atomic::{AtomicU32, Ordering},
    },
    unwind::catch,
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
    /// Withdraws what has not begun of a chunk of this many tasks.
    fn cancel_chunk(&self, base: TaskId, count: u32);
    /// A thread is going to wait: it may work towards what it waits for meanwhile. May return at any time.
    fn help(&self, awaited: &dyn Awaited, deadline: Option<Instant>);
    /// Wakes the thread that helps at this worker.
    fn poke(&self, worker: WorkerId);
}

/// What a thread waits for while it drains a worker's replies.
pub(crate) trait Awaited {
    /// With which worker its task is; `None` when there is nothing to wait for any more, or nothing is known.
    fn worker(&self) -> Option<WorkerId>;
    /// The thread is going to sleep at that worker, and is to be poked there when [`worker`](Self::worker) changes to
    /// `None`; `false` if that has happened, or another thread does so already.
    fn helper_sleeps_at(&self, worker: WorkerId) -> bool;
    /// The thread that drained at a worker leaves it.
    fn helper_leaves(&self, worker: WorkerId);
}

pub(crate) struct Cell {
    id: TaskId,
    /// With which worker its task is; [`NOWHERE`] before that, and when it is done.
    worker: AtomicU32,
    control: Option<Arc<dyn Control>>,
    inner: Mutex<Inner>,
    changed: Condvar,
}

pub(crate) const NOWHERE: u32 = u32::MAX;

#[derive(Default)]
struct Inner {
    state: State,
    /// Of the one who polls the handle.
    waker: Option<Waker>,
    /// Threads that sleep on `changed`: without any, nobody need be told.
    waiting: u32,
    /// Where the thread that waits for this cell drains replies meanwhile.
    helper_at: Option<WorkerId>,
    /// What most cells have none of.
    rest: Option<Box<Rest>>,
}

#[derive(Default)]
struct Rest {
    /// Of those who wait for several futures at once, by a key that is theirs.
    observers: Vec<(usize, Waker)>,
    callbacks: Vec<DoneCallback>,
}

impl Inner {
    fn rest(&mut self) -> &mut Rest {
        self.rest.get_or_insert_default()
    }
}

/// What completing futures has woken: user code, to be run when no lock is held.
#[derive(Default)]
pub(crate) struct Wakers(Vec<Waker>);

impl Wakers {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn push(&mut self, waker: Option<Waker>) {
        self.0.extend(waker);
    }

    /// Wakes them. Their panics go no further.
    pub(crate) fn wake(self) {
        wake_each(self.0);
    }
}

#[derive(Default)]
enum State {
    #[default]
    Pending,
    Done(Outcome),
    /// Taken by the reader: a value has been moved out, an error is still known.
    Taken(Result<(), TaskError>),
}

/// What is remembered of an outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    Value,
    Cancelled,
    Error(&'static str),
}

impl Ended {
    fn of<T>(outcome: &Result<T, TaskError>) -> Self {
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
pub(crate) type ByReference = Box<dyn FnOnce(&dyn Any) + Send>;

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
        let cell = Arc::new(Cell {
            id,
            worker: AtomicU32::new(NOWHERE),
            control: Some(control),
            inner: Mutex::default(),
            changed: Condvar::new(),
        });
        (Arc::clone(&cell), Completer(Some(cell)))
    }

    /// A cell that is done from the start.
    pub(crate) fn done(id: TaskId, control: Option<Arc<dyn Control>>, error: TaskError) -> Arc<Cell> {
        let inner = Inner { state: State::Done(Err(error)), ..Inner::default() };
        Arc::new(Cell {
            id,
            worker: AtomicU32::new(NOWHERE),
            control,
            inner: Mutex::new(inner),
            changed: Condvar::new(),
        })
    }

    pub(crate) fn id(&self) -> TaskId {
        self.id
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// In a fork of the executor's process nobody will ever complete this, and its lock may be held for ever by a
    /// thread that does not exist there.
    pub(crate) fn forked(&self) -> bool {
        self.control.as_ref().is_some_and(|control| control.forked())
    }

    pub(crate) fn ended(&self) -> Option<Ended> {
        if self.forked() {
            return Some(Ended::Error("Broken"));
        }
        match &self.lock().state {
            State::Pending => None,
            State::Done(outcome) => Some(Ended::of(outcome)),
            State::Taken(outcome) => Some(Ended::of(outcome)),
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
            State::Done(Err(error)) | State::Taken(Err(error)) => Some(error.clone()),
            _ => None,
        }
    }

    /// Waits for the end, at most until `deadline`; whether it has come.
    pub(crate) fn wait(&self, deadline: Option<Instant>) -> bool {
        if self.forked() {
            return true;
        }
        if self.worker().is_some()
            && let Some(control) = &self.control
        {
            control.help(self, deadline);
        }
        let mut inner = self.lock();
        while matches!(inner.state, State::Pending) {
            inner.waiting += 1;
            let (next, late) = match deadline {
                None => (self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner), false),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    let (next, _) =
                        self.changed.wait_timeout(inner, left).unwrap_or_else(PoisonError::into_inner);
                    (next, left == Duration::ZERO)
                }
            };
            inner = next;
            inner.waiting -= 1;
            if late {
                return !matches!(inner.state, State::Pending);
            }
        }
        true
    }

    /// Takes the outcome, if it is there.
    pub(crate) fn take(&self) -> Option<Outcome> {
        if self.forked() {
            return Some(Err(TaskError::Broken(BrokenCause::Forked)));
        }
        let mut inner = self.lock();
        let left = match &inner.state {
            State::Pending => return None,
            State::Done(outcome) => outcome.as_ref().map(|_| ()).map_err(TaskError::clone),
            State::Taken(_) => panic!("TaskFuture polled after it was ready"),
        };
        match std::mem::replace(&mut inner.state, State::Taken(left)) {
            State::Done(outcome) => Some(outcome),
            _ => unreachable!("looked at above, under the same lock"),
        }
    }

    /// Takes the outcome, or leaves the waker.
    pub(crate) fn poll(&self, waker: &Waker) -> Option<Outcome> {
        if !self.forked() {
            // Cloned before the lock is taken, the old one dropped after it is free: both are user code.
            let waker = waker.clone();
            let mut inner = self.lock();
            if matches!(inner.state, State::Pending) {
                let old = inner.waker.replace(waker);
                drop(inner);
                drop(old);
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
        let waker = waker.clone();
        let mut inner = self.lock();
        let pending = matches!(inner.state, State::Pending);
        if pending {
            inner.rest().observers.push((key, waker));
        }
        pending
    }

    /// Takes that back. Without it, every `wait` would leave something behind in every future it did not see done.
    pub(crate) fn unobserve(&self, key: usize) {
        if !self.forked() {
            let mut inner = self.lock();
            let Some(rest) = &mut inner.rest else { return };
            let dropped: Vec<_> = rest.observers.extract_if(.., |(other, _)| *other == key).collect();
            drop(inner);
            // Outside the lock: dropping a waker is user code.
            drop(dropped);
        }
    }

    /// Adds a callback; if the end has come it runs at once, here.
    pub(crate) fn add_callback(self: &Arc<Self>, callback: DoneCallback) {
        if let Some((outcome, callback)) = self.keep_callback(callback)
            // In the caller's thread: a copy of the process that it makes is the caller's, and goes on with it.
            && let Err(message) = catch(|| callback.run(&outcome, &mut None))
        {
            tracing::error!(message, "a done-callback panicked");
        }
    }

    /// Adds a callback; if the end has come it runs on the callback thread all the same.
    pub(crate) fn add_callback_on(self: &Arc<Self>, thread: &Arc<CallbackQueue>, callback: DoneCallback) {
        if let Some((outcome, callback)) = self.keep_callback(callback) {
            thread.push(Box::new(move || run_callbacks(outcome, vec![callback])));
        }
    }

    /// Keeps a callback until the end, or gives it back with the outcome.
    fn keep_callback(&self, callback: DoneCallback) -> Option<(Outcome, DoneCallback)> {
        if !self.forked() {
            let mut inner = self.lock();
            if matches!(inner.state, State::Pending) {
                inner.rest().callbacks.push(callback);
                return None;
            }
        }
        let outcome = match self.forked() {
            true => Err(TaskError::Broken(BrokenCause::Forked)),
            false => match &self.lock().state {
                State::Done(outcome) => outcome.clone(),
                State::Taken(Err(error)) => Err(error.clone()),
                // The value has been moved out by whoever awaited it.
                State::Taken(Ok(())) | State::Pending => {
                    Err(TaskError::invalid("the result has already been taken"))
                }
            },
        };
        Some((outcome, callback))
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

    /// The end: wakes threads, collects what else is to be woken.
    fn complete(self: &Arc<Self>, outcome: Outcome, wakers: &mut Wakers) {
        let mut inner = self.lock();
        debug_assert!(matches!(inner.state, State::Pending), "a completer completes once");
        self.worker.store(NOWHERE, Ordering::Release);
        let Rest { observers, callbacks } = inner.rest.take().map_or_else(Rest::default, |rest| *rest);
        let for_callbacks = (!callbacks.is_empty()).then(|| outcome.clone());
        wakers.0.extend(inner.waker.take());
        wakers.0.extend(observers.into_iter().map(|(_, waker)| waker));
        inner.state = State::Done(outcome);
        let (waiting, helper_at) = (inner.waiting, inner.helper_at);
        drop(inner);
        if waiting > 0 {
            self.changed.notify_all();
        }
        let Some(control) = &self.control else { return };
        if let Some(worker) = helper_at {
            control.poke(worker);
        }
        if let Some(outcome) = for_callbacks {
            control.callbacks().push(Box::new(move || run_callbacks(outcome, callbacks)));
        }
    }
}

impl Awaited for Cell {
    fn worker(&self) -> Option<WorkerId> {
        match self.worker.load(Ordering::Acquire) {
            NOWHERE => None,
            worker => Some(WorkerId(worker)),
        }
    }

    fn helper_sleeps_at(&self, worker: WorkerId) -> bool {
        let mut inner = self.lock();
        let free = inner.helper_at.is_none_or(|other| other == worker);
        if free {
            inner.helper_at = Some(worker);
        }
        free && matches!(inner.state, State::Pending)
    }

    fn helper_leaves(&self, worker: WorkerId) {
        let mut inner = self.lock();
        inner.helper_at.take_if(|at| *at == worker);
    }
}

/// In order of registration. Those that share a decoded copy cause one decoding, whatever their number.
fn run_callbacks(outcome: Outcome, callbacks: Vec<DoneCallback>) {
    let shared = RefCell::new(None);
    run_each(
        "a done-callback",
        callbacks.into_iter().map(|callback| || callback.run(&outcome, &mut shared.borrow_mut())),
    );
}

impl DoneCallback {
    fn run(self, outcome: &Outcome, shared: &mut Option<Box<dyn Any>>) {
        match self {
            DoneCallback::Shared(decode, callback) => {
                callback(&**shared.get_or_insert_with(|| decode(outcome.clone())));
            }
            DoneCallback::Owned(callback) => callback(outcome.clone()),
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

    /// The task is with this worker now.
    pub(crate) fn sent_to(&self, worker: WorkerId) {
        if let Some(cell) = &self.0 {
            cell.worker.store(worker.0, Ordering::Release);
        }
    }

    /// Completes the future. What is to be woken comes into `wakers`.
    pub(crate) fn complete_into(mut self, outcome: Outcome, wakers: &mut Wakers) {
        if let Some(cell) = self.0.take() {
            cell.complete(outcome, wakers);
        }
    }
}

impl Drop for Completer {
    fn drop(&mut self) {
        if let Some(cell) = self.0.take()
            && !cell.forked()
        {
            let error = BrokenCause::Internal("the executor forgot this task".into());
            let mut wakers = Wakers::default();
            cell.complete(Err(TaskError::Broken(error)), &mut wakers);
            wakers.wake();
        }
    }
}
