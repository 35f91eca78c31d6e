//! The cell between a completer and a future's handle.

use std::{
    any::Any,
    fmt,
    sync::{Arc, PoisonError},
    task::Waker,
    time::{Duration, Instant},
};

use super::{
    callback::{CallbackQueue, Queued, wake_each},
    done_queue::{DoneQueue, Reports},
};
use crate::{
    error::{BrokenCause, TaskError},
    id::TaskId,
    os::std_or_model::{
        Condvar, MODEL, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
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
    /// Called by a thread before it waits. Until then the thread may attend: drain the replies of
    /// all workers. May return at any time.
    fn attend(&self, awaited: &dyn Awaited, deadline: Option<Instant>);
    /// Called by a task before it waits. Takes the replies that are there, or come within
    /// microseconds, unless another thread attends.
    fn attend_briefly(&self);
    /// Called by a thread that takes a result without waiting for it. It will soon attend again.
    fn is_served(&self);
    /// Wakes the attendant, if it sleeps.
    fn unpark(&self);
}

/// What a thread waits for while it attends.
pub(crate) trait Awaited {
    /// Whether the wait is over.
    fn is_over(&self) -> bool;
    /// Called by the attendant before it sleeps. From then on, whoever ends the wait unparks it.
    /// Returns `false` if the wait is over already.
    fn attendant_sleeps(&self) -> bool;
    /// Called by the attendant before it leaves.
    fn attendant_leaves(&self);
}

/// The shared state of a task's future, filled once by its completer.
///
/// It is allocated by the thread that submits, and often freed by another one. glibc frees a block
/// of up to 128 bytes, with 8 of its own, without a lock. With larger cells, threads that submit
/// and threads that complete wait for each other in the allocator.
pub(crate) struct Cell {
    id: TaskId,
    /// Whether the end has come. Read by the attendant, without the lock.
    over: AtomicBool,
    control: Option<Arc<dyn Control>>,
    inner: Mutex<Inner>,
    changed: Condvar,
}

/// The counts of an `Arc` are allocated with it. The locks of a model are larger.
const _: () = assert!(MODEL || size_of::<Cell>() + 2 * size_of::<usize>() <= 120);

#[derive(Default)]
struct Inner {
    state: State,
    /// Number of threads that sleep on `changed`. If it is 0, no notification is needed.
    waiting: u32,
    /// Whether the attendant waits for this cell.
    attended: bool,
    listeners: Listeners,
}

/// Who is told of the end. Most cells have none or one, for which nothing is allocated.
#[derive(Default)]
enum Listeners {
    #[default]
    None,
    /// The task that polls the handle.
    Waker(Waker),
    /// A caller that waits for several futures at once, and the key that it gave this one.
    Queue(Arc<DoneQueue>, usize),
    Callback(DoneCallback),
    Several(Box<Several>),
}

#[derive(Default)]
struct Several {
    /// The waker of the task that polls the handle.
    waker: Option<Waker>,
    queues: Vec<(Arc<DoneQueue>, usize)>,
    /// Wakers of others, each with a key chosen by the caller.
    observers: Vec<(usize, Waker)>,
    callbacks: Vec<DoneCallback>,
}

impl Listeners {
    /// Returns the lists to which another listener can be added.
    fn several(&mut self) -> &mut Several {
        if !matches!(self, Listeners::Several(_)) {
            let mut several = Box::<Several>::default();
            match std::mem::take(self) {
                Listeners::None => {}
                Listeners::Waker(waker) => several.waker = Some(waker),
                Listeners::Queue(queue, key) => several.queues.push((queue, key)),
                Listeners::Callback(callback) => several.callbacks.push(callback),
                Listeners::Several(_) => unreachable!("looked at above"),
            }
            *self = Listeners::Several(several);
        }
        match self {
            Listeners::Several(several) => several,
            _ => unreachable!("made above"),
        }
    }
}

/// Who is to be told that futures were completed. A batch of completions is told together: each
/// queue is locked once, and each waiter is woken once.
#[derive(Default)]
pub(crate) struct Wakers {
    /// Waking runs user code, so it is done when no lock is held.
    wakers: Vec<Waker>,
    reports: Reports,
    /// The callbacks of one executor, and its queue. A batch has only one, except where futures of
    /// several executors are dropped together.
    callbacks: Vec<Queued>,
    callback_queue: Option<Arc<CallbackQueue>>,
}

impl Wakers {
    /// Whether no waker waits to be called. Asked after [`post`](Self::post).
    pub(crate) fn is_empty(&self) -> bool {
        self.wakers.is_empty()
    }

    pub(crate) fn push(&mut self, waker: Option<Waker>) {
        self.wakers.extend(waker);
    }

    fn queue_callbacks(&mut self, queue: &Arc<CallbackQueue>, callbacks: Queued) {
        if self.callback_queue.as_ref().is_some_and(|other| !Arc::ptr_eq(other, queue)) {
            self.post();
        }
        self.callback_queue.get_or_insert_with(|| Arc::clone(queue));
        self.callbacks.push(callbacks);
    }

    /// Adds those of another batch, of which only wakers are left to be told.
    pub(crate) fn append(&mut self, mut other: Wakers) {
        other.post();
        self.wakers.append(&mut other.wakers);
    }

    /// Tells queues and the callback thread. Runs no user code.
    pub(crate) fn post(&mut self) {
        self.reports.post(&mut self.wakers);
        if let Some(queue) = self.callback_queue.take() {
            queue.push_all(self.callbacks.drain(..));
        }
    }

    /// Tells all. Panics of wakers are caught.
    pub(crate) fn wake(mut self) {
        self.post();
        wake_each(self.wakers);
    }
}

#[derive(Default)]
enum State {
    #[default]
    Pending,
    Value(Payload),
    /// Boxed, because it is rare and larger than a value.
    Failed(Box<TaskError>),
    /// The reader has taken the value.
    ValueTaken,
    /// The reader has taken the error, which is still known.
    ErrorTaken(Box<TaskError>),
}

impl State {
    fn of(outcome: Outcome) -> Self {
        match outcome {
            Ok(payload) => State::Value(payload),
            Err(error) => State::Failed(Box::new(error)),
        }
    }

    /// Returns the error, if the task has ended with one.
    fn error(&self) -> Option<&TaskError> {
        match self {
            State::Failed(error) | State::ErrorTaken(error) => Some(error),
            State::Pending | State::Value(_) | State::ValueTaken => None,
        }
    }
}

/// The kind of an outcome, without its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    Value,
    Cancelled,
    Error(&'static str),
}

impl Ended {
    fn with(error: Option<&TaskError>) -> Self {
        match error {
            None => Ended::Value,
            Some(TaskError::Cancelled) => Ended::Cancelled,
            Some(error) => Ended::Error(error.kind()),
        }
    }
}

/// A done-callback whose type does not depend on the future's type.
pub(crate) trait Callback: Send {
    /// Runs the only callback of a future.
    fn run(self: Box<Self>, outcome: Outcome);
    /// Runs one of several callbacks of a future. Those that take a reference share one decoded
    /// copy, which the first of them leaves in `shared`.
    fn run_sharing(self: Box<Self>, outcome: &Outcome, shared: &mut Option<Box<dyn Any>>);
}

pub(crate) type DoneCallback = Box<dyn Callback>;

/// A callback on values that were decoded before, and erased.
pub(crate) type ByReference = Box<dyn FnOnce(&dyn Any) + Send>;

impl Cell {
    /// Makes a pending cell and its only completer.
    pub(crate) fn pending(id: TaskId, control: Arc<dyn Control>) -> (Arc<Cell>, Completer) {
        let cell = Arc::new(Cell {
            id,
            over: AtomicBool::new(false),
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
        let inner = Inner { state: State::of(Err(error)), ..Inner::default() };
        Arc::new(Cell {
            id,
            over: AtomicBool::new(true),
            control,
            inner: Mutex::new(inner),
            changed: Condvar::new(),
        })
    }

    pub(crate) fn id(&self) -> TaskId {
        self.id
    }

    /// Returns the executor of the task, if there is one.
    pub(crate) fn control(&self) -> Option<&Arc<dyn Control>> {
        self.control.as_ref()
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
            state => Some(Ended::with(state.error())),
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
        self.lock().state.error().cloned()
    }

    /// Waits for the end, at most until `deadline`. Returns whether it has come.
    pub(crate) fn wait(&self, deadline: Option<Instant>) -> bool {
        if self.forked() {
            return true;
        }
        if self.over.load(Ordering::Acquire) {
            if let Some(control) = &self.control {
                control.is_served();
            }
            return true;
        }
        // Drain the replies in this thread, which is faster than waiting for the reader.
        if let Some(control) = &self.control {
            control.attend(self, deadline);
            if control.forked() {
                // A waker that was called there has forked this process, and this is the child.
                return true;
            }
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
        let (left, outcome) = match std::mem::take(&mut inner.state) {
            State::Pending => return None,
            State::Value(payload) => (State::ValueTaken, Ok(payload)),
            State::Failed(error) => {
                let taken = TaskError::clone(&error);
                (State::ErrorTaken(error), Err(taken))
            }
            taken @ (State::ValueTaken | State::ErrorTaken(_)) => {
                inner.state = taken;
                panic!("TaskFuture polled after it was ready");
            }
        };
        inner.state = left;
        Some(outcome)
    }

    /// Takes the outcome if it is there. Otherwise leaves the waker.
    pub(crate) fn poll(&self, waker: &Waker) -> Option<Outcome> {
        // Before the waker is left: if the outcome comes now, nobody needs to be woken.
        if !self.over.load(Ordering::Acquire)
            && !self.forked()
            && let Some(control) = &self.control
        {
            control.attend_briefly();
        }
        // Asked after that: a waker that was called there may have forked this process.
        if !self.forked() {
            // Cloned before the lock is taken, and the old one dropped after it is released: both
            // run user code.
            let waker = waker.clone();
            let mut inner = self.lock();
            if matches!(inner.state, State::Pending) {
                let old = match &mut inner.listeners {
                    none @ Listeners::None => {
                        *none = Listeners::Waker(waker);
                        None
                    }
                    Listeners::Waker(old) => Some(std::mem::replace(old, waker)),
                    some => some.several().waker.replace(waker),
                };
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
            inner.listeners.several().observers.push((key, waker));
        }
        pending
    }

    /// Reports the end to this queue, under this key. Returns `false` if the end has come already.
    pub(crate) fn report_to(&self, queue: &Arc<DoneQueue>, key: usize) -> bool {
        if self.forked() {
            return false;
        }
        let mut inner = self.lock();
        let pending = matches!(inner.state, State::Pending);
        if pending {
            let queue = Arc::clone(queue);
            match &mut inner.listeners {
                none @ Listeners::None => *none = Listeners::Queue(queue, key),
                some => some.several().queues.push((queue, key)),
            }
        }
        pending
    }

    /// Forgets this queue. Otherwise each call of `wait` would leave something behind in each
    /// future that is still pending.
    pub(crate) fn report_no_more_to(&self, queue: &Arc<DoneQueue>) {
        if self.forked() {
            return;
        }
        let mut inner = self.lock();
        match &mut inner.listeners {
            Listeners::Queue(one, _) if Arc::ptr_eq(one, queue) => {
                inner.listeners = Listeners::None;
            }
            Listeners::Several(several) => {
                several.queues.retain(|(one, _)| !Arc::ptr_eq(one, queue));
            }
            _ => {}
        }
    }

    /// Adds a callback. If the end has come already, it runs at once in this thread.
    pub(crate) fn add_callback(self: &Arc<Self>, callback: DoneCallback) {
        if let Some((outcome, callback)) = self.keep_callback(callback)
            // Not with `run_each`, which ends forked copies of the process: this is the caller's
            // thread, so a copy forked by the callback belongs to the caller and continues.
            && let Err(message) = catch(|| callback.run(outcome))
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
            thread.push_all([Queued::Done(callback, outcome)]);
        }
    }

    /// Keeps a callback until the end. If the end has come already, returns it with the outcome.
    fn keep_callback(&self, callback: DoneCallback) -> Option<(Outcome, DoneCallback)> {
        if !self.forked() {
            let mut inner = self.lock();
            if matches!(inner.state, State::Pending) {
                match &mut inner.listeners {
                    none @ Listeners::None => *none = Listeners::Callback(callback),
                    some => some.several().callbacks.push(callback),
                }
                return None;
            }
        }
        let outcome = match self.forked() {
            true => Err(TaskError::Broken(BrokenCause::Forked)),
            false => match &self.lock().state {
                State::Value(payload) => Ok(payload.clone()),
                State::Failed(error) | State::ErrorTaken(error) => Err(TaskError::clone(error)),
                // The value was moved out by the code that took the result.
                State::ValueTaken | State::Pending => {
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
        let listeners = std::mem::take(&mut inner.listeners);
        let for_callbacks = match &listeners {
            Listeners::Callback(_) => Some(outcome.clone()),
            Listeners::Several(several) if !several.callbacks.is_empty() => Some(outcome.clone()),
            _ => None,
        };
        inner.state = State::of(outcome);
        self.over.store(true, Ordering::Release);
        let (waiting, attended) = (inner.waiting, inner.attended);
        drop(inner);
        if waiting > 0 {
            self.changed.notify_all();
        }
        let callbacks = match listeners {
            Listeners::None => None,
            Listeners::Waker(waker) => {
                wakers.wakers.push(waker);
                None
            }
            Listeners::Queue(queue, key) => {
                wakers.reports.push(queue, key);
                None
            }
            Listeners::Callback(callback) => {
                for_callbacks.map(|outcome| Queued::Done(callback, outcome))
            }
            Listeners::Several(several) => {
                let Several { waker, queues, observers, callbacks } = *several;
                wakers.wakers.extend(waker);
                for (queue, key) in queues {
                    wakers.reports.push(queue, key);
                }
                wakers.wakers.extend(observers.into_iter().map(|(_, waker)| waker));
                for_callbacks.map(|outcome| Queued::AllDone(callbacks, outcome))
            }
        };
        let Some(control) = &self.control else { return };
        if attended {
            control.unpark();
        }
        if let Some(callbacks) = callbacks {
            wakers.queue_callbacks(control.callbacks(), callbacks);
        }
    }
}

impl Awaited for Cell {
    fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    fn attendant_sleeps(&self) -> bool {
        let mut inner = self.lock();
        inner.attended = true;
        matches!(inner.state, State::Pending)
    }

    fn attendant_leaves(&self) {
        self.lock().attended = false;
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
