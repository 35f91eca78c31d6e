//! The cell between a completer and a future's handle.

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
    os::std_or_model::{
        Condvar, Mutex, MutexGuard,
        atomic::{AtomicU32, Ordering},
    },
    unwind::catch,
    wire::payload::Payload,
};

/// The outcome of a task: its encoded value or its error.
pub(crate) type Outcome = Result<Payload, TaskError>;

/// The executor, as seen by the futures of its tasks.
pub(crate) trait Control: Send + Sync {
    /// Cancels a task that has not begun. Returns whether it will never run.
    fn cancel(&self, task: TaskId) -> bool;
    /// Cancels a task and kills the worker if it is running the task. Returns whether the task ends
    /// because of this.
    fn cancel_running(&self, task: TaskId) -> bool;
    /// Whether a worker has begun the task.
    fn is_running(&self, task: TaskId) -> bool;
    /// Returns the queue of the thread that runs callbacks.
    fn callbacks(&self) -> &Arc<CallbackQueue>;
    /// Whether this process is a fork of the one that owns the executor.
    fn forked(&self) -> bool;
    /// Cancels those tasks of a chunk of `count` tasks that have not begun.
    fn cancel_chunk(&self, base: TaskId, count: u32);
    /// Called by a thread before it waits. The thread may drain the replies of the worker that has
    /// its task until then. May return at any time.
    fn help(&self, awaited: &dyn Awaited, deadline: Option<Instant>);
    /// Wakes the thread that drains this worker's replies on behalf of a waiter.
    fn poke(&self, worker: WorkerId);
}

/// The object a thread waits for while it drains a worker's replies (the thread is then a helper).
pub(crate) trait Awaited {
    /// Returns the worker that has the task. `None` if the wait is over or the worker is unknown.
    fn worker(&self) -> Option<WorkerId>;
    /// Called by the helper before it sleeps at that worker. It is poked there when
    /// [`worker`](Self::worker) changes to `None`. Returns `false` if that has happened already, or
    /// if another thread is the helper at another worker.
    fn helper_sleeps_at(&self, worker: WorkerId) -> bool;
    /// Called by the helper when it stops draining at that worker.
    fn helper_leaves(&self, worker: WorkerId);
}

/// The shared state of a task's future, filled once by its completer.
pub(crate) struct Cell {
    id: TaskId,
    /// The worker that has the task. [`NOWHERE`] before the task is sent and after it is done.
    worker: AtomicU32,
    control: Option<Arc<dyn Control>>,
    inner: Mutex<Inner>,
    changed: Condvar,
}

/// No worker.
pub(crate) const NOWHERE: u32 = u32::MAX;

#[derive(Default)]
struct Inner {
    state: State,
    /// The waker of the task that polls the handle.
    waker: Option<Waker>,
    /// Number of threads that sleep on `changed`. If it is 0, no notification is needed.
    waiting: u32,
    /// The worker whose replies the thread that waits for this cell drains.
    helper_at: Option<WorkerId>,
    /// Allocated only when needed. Most cells have neither observers nor callbacks.
    rest: Option<Box<Rest>>,
}

#[derive(Default)]
struct Rest {
    /// Wakers of callers that wait for several futures at once, each with a key chosen by the
    /// caller.
    observers: Vec<(usize, Waker)>,
    callbacks: Vec<DoneCallback>,
}

impl Inner {
    fn rest(&mut self) -> &mut Rest {
        self.rest.get_or_insert_default()
    }
}

/// Wakers collected while futures were completed. Waking runs user code, so it is done when no lock
/// is held.
#[derive(Default)]
pub(crate) struct Wakers(Vec<Waker>);

impl Wakers {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn push(&mut self, waker: Option<Waker>) {
        self.0.extend(waker);
    }

    /// Wakes them all. Panics of wakers are caught.
    pub(crate) fn wake(self) {
        wake_each(self.0);
    }
}

#[derive(Default)]
enum State {
    #[default]
    Pending,
    Done(Outcome),
    /// The reader has taken the outcome. A value was moved out, an error is still known.
    Taken(Result<(), TaskError>),
}

/// The kind of an outcome, without its value.
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

/// Decodes the copy that callbacks share.
type Decoder = Box<dyn FnOnce(Outcome) -> Box<dyn Any> + Send>;

/// A callback that gets the shared copy.
pub(crate) type ByReference = Box<dyn FnOnce(&dyn Any) + Send>;

/// A done-callback whose type does not depend on the future's type.
pub(crate) enum DoneCallback {
    /// Shares one decoded copy with the other callbacks of this kind: (decode, callback).
    Shared(Decoder, ByReference),
    /// Gets a copy of its own.
    Owned(Box<dyn FnOnce(Outcome) + Send>),
}

impl Cell {
    /// Makes a pending cell and its only completer.
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

    /// Makes a cell that is done from the start.
    pub(crate) fn done(
        id: TaskId,
        control: Option<Arc<dyn Control>>,
        error: TaskError,
    ) -> Arc<Cell> {
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

    /// Whether this process is a fork of the executor's process. There, the cell is never
    /// completed, and its lock may be held for ever by a thread that does not exist in the fork.
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

    /// Returns a copy of the error, if the task has ended with one.
    pub(crate) fn error(&self) -> Option<TaskError> {
        if self.forked() {
            return Some(TaskError::Broken(BrokenCause::Forked));
        }
        match &self.lock().state {
            State::Done(Err(error)) | State::Taken(Err(error)) => Some(error.clone()),
            _ => None,
        }
    }

    /// Waits for the end, at most until `deadline`. Returns whether it has come.
    pub(crate) fn wait(&self, deadline: Option<Instant>) -> bool {
        if self.forked() {
            return true;
        }
        // Drain the worker's replies in this thread, which is faster than waiting for the reader.
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
                    let (next, _) = self
                        .changed
                        .wait_timeout(inner, left)
                        .unwrap_or_else(PoisonError::into_inner);
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

    /// Takes the outcome if it is there. Otherwise leaves the waker.
    pub(crate) fn poll(&self, waker: &Waker) -> Option<Outcome> {
        if !self.forked() {
            // Cloned before the lock is taken, and the old one dropped after it is released: both
            // run user code.
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

    /// Leaves a waker that is woken at the end. Returns `false` if the end has come already.
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

    /// Removes the wakers left under this key. Without this, every call of `wait` would leave a
    /// waker behind in each future that is still pending.
    pub(crate) fn unobserve(&self, key: usize) {
        if !self.forked() {
            let mut inner = self.lock();
            let Some(rest) = &mut inner.rest else { return };
            let dropped: Vec<_> =
                rest.observers.extract_if(.., |(other, _)| *other == key).collect();
            drop(inner);
            // Outside the lock, since dropping a waker runs user code.
            drop(dropped);
        }
    }

    /// Adds a callback. If the end has come already, it runs at once in this thread.
    pub(crate) fn add_callback(self: &Arc<Self>, callback: DoneCallback) {
        if let Some((outcome, callback)) = self.keep_callback(callback)
            // Not with `run_each`, which ends forked copies of the process: this is the caller's
            // thread, so a copy forked by the callback belongs to the caller and continues.
            && let Err(message) = catch(|| callback.run(&outcome, &mut None))
        {
            tracing::error!(message, "a done-callback panicked");
        }
    }

    /// Adds a callback. It runs on the callback thread even if the end has come already.
    pub(crate) fn add_callback_on(
        self: &Arc<Self>,
        thread: &Arc<CallbackQueue>,
        callback: DoneCallback,
    ) {
        if let Some((outcome, callback)) = self.keep_callback(callback) {
            thread.push(Box::new(move || run_callbacks(outcome, vec![callback])));
        }
    }

    /// Keeps a callback until the end. If the end has come already, returns it with the outcome.
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
                // The value was moved out by the code that took the result.
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

    /// Completes the cell: wakes blocked threads, and adds wakers to wake to `wakers`.
    fn complete(self: &Arc<Self>, outcome: Outcome, wakers: &mut Wakers) {
        let mut inner = self.lock();
        debug_assert!(matches!(inner.state, State::Pending), "a completer completes once");
        self.worker.store(NOWHERE, Ordering::Release);
        let Rest { observers, callbacks } =
            inner.rest.take().map_or_else(Rest::default, |rest| *rest);
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

/// Runs callbacks in order of registration. Those that share a decoded copy cause a single
/// decoding.
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

/// The only owner of the right to complete a cell. If it is dropped without completing the cell,
/// the cell completes with an error.
pub(crate) struct Completer(Option<Arc<Cell>>);

impl Completer {
    /// Records that the task was sent to this worker.
    pub(crate) fn sent_to(&self, worker: WorkerId) {
        if let Some(cell) = &self.0 {
            cell.worker.store(worker.0, Ordering::Release);
        }
    }

    /// Completes the future. Adds the wakers that are to be woken to `wakers`.
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
