//! The thread on which an executor runs done-callbacks, one at a time. It is started with the first
//! callback.
//!
//! Callbacks are user code: they may be slow, block or panic. On this thread they delay only other
//! callbacks, never a result, a deadline or a waker.

use std::{
    cell::RefCell,
    collections::VecDeque,
    sync::{Arc, Condvar, Mutex, PoisonError},
    task::Waker,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use super::cell::{DoneCallback, Outcome};
use crate::{
    child::exit,
    os::{fork::Creator, local, process},
    unwind::catch,
};

/// What the callback thread runs in one step.
pub(crate) enum Queued {
    Call(Box<dyn FnOnce() + Send>),
    /// The only callback of a future, and the future's outcome.
    Done(DoneCallback, Outcome),
    /// All callbacks of a future, in order of registration.
    AllDone(Vec<DoneCallback>, Outcome),
}

impl Queued {
    /// Runs it and catches its panic.
    fn run(self) {
        const WHAT: &str = "a done-callback";
        match self {
            Queued::Call(call) => run_each(WHAT, [call]),
            Queued::Done(callback, outcome) => run_each(WHAT, [|| callback.run(outcome)]),
            Queued::AllDone(callbacks, outcome) => {
                let shared = RefCell::new(None);
                run_each(
                    WHAT,
                    callbacks.into_iter().map(|callback| {
                        || callback.run_sharing(&outcome, &mut shared.borrow_mut())
                    }),
                );
            }
        }
    }
}

/// How often the end of the program checks a callback it waits for. A callback that also calls
/// `exit` is held by std for ever, so waiting for it to return is not enough.
pub(crate) const LOOK: Duration = Duration::from_millis(100);

/// How long an idle thread is kept. A higher value means that a sleeping thread exists for longer.
/// A lower value means a thread start for each burst of callbacks.
const IDLE: Duration = Duration::from_secs(1);

/// The callbacks that wait for the callback thread, and the state of the thread.
#[derive(Default)]
pub(crate) struct CallbackQueue {
    state: Mutex<State>,
    changed: Condvar,
    /// How long the end of the program waits for callbacks.
    pub(crate) exit_timeout: Option<Duration>,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Queued>,
    /// Whether the thread is running a callback.
    running: bool,
    /// Whether there is a thread.
    attended: bool,
    /// Whether the thread sleeps.
    sleeps: bool,
    /// Number of other threads that wait for a change. A condition variable is notified by a system
    /// call, even if nobody sleeps.
    waiters: u32,
    /// The thread's number, and the system's id of it, once it runs.
    thread: u32,
    system_thread: u32,
    /// The thread's handle, for the thread that joins it.
    handle: Option<JoinHandle<()>>,
    /// Total number of callbacks queued.
    queued: u64,
    /// Total number of callbacks that have run.
    ran: u64,
    /// Whether the end of the program has waited for callbacks until its deadline.
    given_up: bool,
    closed: bool,
    /// Watches the thread while it runs a callback and the program ends.
    watch: exit::Watch,
}

type Locked<'a> = std::sync::MutexGuard<'a, State>;

impl State {
    fn is_idle(&self) -> bool {
        self.waiting.is_empty() && !self.running
    }

    fn is_current_thread(&self) -> bool {
        self.thread == local::this_thread()
    }
}

impl CallbackQueue {
    pub(crate) fn new(exit_timeout: Option<Duration>) -> Self {
        CallbackQueue { exit_timeout, ..CallbackQueue::default() }
    }

    /// Queues a callback, and starts the thread if there is none.
    pub(crate) fn push(self: &Arc<Self>, callback: Box<dyn FnOnce() + Send>) {
        self.push_all([Queued::Call(callback)]);
    }

    /// Queues callbacks, and starts the thread if there is none.
    pub(crate) fn push_all(self: &Arc<Self>, callbacks: impl IntoIterator<Item = Queued>) {
        let mut state = self.lock();
        let before = state.waiting.len();
        state.waiting.extend(callbacks);
        state.queued += (state.waiting.len() - before) as u64;
        if !state.attended {
            let queue = Arc::clone(self);
            // If the system refuses a thread, the callbacks wait for the next push or for `flush`.
            let thread = thread::Builder::new().name("executor-callbacks".into());
            state.handle = thread.spawn(move || queue.run()).ok();
            state.attended = state.handle.is_some();
        }
        if std::mem::take(&mut state.sleeps) || state.waiters > 0 {
            drop(state);
            self.changed.notify_all();
        }
    }

    /// Waits until all queued callbacks have run. Called from a callback it returns at once, since
    /// a callback cannot wait for itself.
    pub(crate) fn flush(&self) {
        self.flush_until(None);
    }

    /// Like [`flush`](Self::flush), but waits at most until `deadline`. Returns whether they have
    /// run.
    pub(crate) fn flush_until(&self, deadline: Option<Instant>) -> bool {
        let mut state = self.lock();
        while !state.is_idle() {
            if state.is_current_thread() {
                return true;
            }
            let look = Instant::now() + LOOK;
            let until = deadline.map_or(look, |at| at.min(look));
            state = self.help_or_wait(state, until).unwrap_or_else(|| self.lock());
            // Exit hooks, and threads that the end of the program waits for, may call this too.
            if exit::has_begun() {
                self.abandon_exiting_callback(&mut state);
            }
            if !state.is_idle() && deadline.is_some_and(|at| at <= Instant::now()) {
                return false;
            }
        }
        true
    }

    /// While the program ends: gives up the thread if std holds it for ever, since its callback has
    /// called `exit` too.
    ///
    /// The thread is left there, and no other thread waits for it or joins it. Callbacks queued
    /// behind it are run by the thread that waits for them.
    fn abandon_exiting_callback(&self, state: &mut State) {
        let thread = state.system_thread;
        if state.running && state.attended && state.watch.is_held(thread) {
            tracing::warn!(
                "a done-callback has called `exit` while the program ends already, and is left there"
            );
            (state.attended, state.running, state.handle) = (false, false, None);
            state.ran += 1;
            self.changed.notify_all();
        }
    }

    /// Called from time to time, while the program ends, by code that does not wait with
    /// [`flush`](Self::flush). Ensures that no callback waits behind one that is held in `exit`.
    pub(crate) fn look_at_the_end(&self) {
        self.abandon_exiting_callback(&mut self.lock());
        if !self.is_attended() {
            self.flush();
        }
    }

    /// At the end of the program: waits until all callbacks queued so far have run, at most until
    /// `deadline`. If that has passed before, does not wait a second time.
    ///
    /// Called from a callback, it runs the callbacks queued behind that one itself. The callback
    /// will not return, since the program ends in it.
    pub(crate) fn finish(&self, deadline: Option<Instant>) {
        let mut state = self.lock();
        let last = state.queued;
        if state.is_current_thread() {
            while let Some(callback) = state.waiting.pop_front() {
                drop(state);
                callback.run();
                state = self.lock();
            }
        } else {
            while state.ran < last && !state.given_up {
                let look = Instant::now() + LOOK;
                let until = deadline.map_or(look, |at| at.min(look));
                state = self.help_or_wait(state, until).unwrap_or_else(|| self.lock());
                self.abandon_exiting_callback(&mut state);
                state.given_up =
                    state.ran < last && deadline.is_some_and(|at| at <= Instant::now());
            }
        }
    }

    /// Runs a callback if there is no thread that would. Otherwise waits for a change. Returns
    /// `None` at `deadline`.
    fn help_or_wait<'a>(&'a self, mut state: Locked<'a>, deadline: Instant) -> Option<Locked<'a>> {
        if !state.attended
            && let Some(callback) = state.waiting.pop_front()
        {
            // The system refused a thread, or the thread is held in `exit`.
            drop(state);
            callback.run();
            state = self.lock();
            state.ran += 1;
            return Some(state);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return None;
        }
        state.waiters += 1;
        let (mut state, _) =
            self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner);
        state.waiters -= 1;
        Some(state)
    }

    /// Whether the caller is a callback of this executor.
    pub(crate) fn is_current_thread(&self) -> bool {
        self.lock().is_current_thread()
    }

    /// Whether there is a thread for the queued callbacks, or none are queued.
    pub(crate) fn is_attended(&self) -> bool {
        let state = self.lock();
        state.attended || state.waiting.is_empty()
    }

    /// Called after [`close`](Self::close). Waits until the thread is gone, if it is idle and is
    /// not the calling thread.
    pub(crate) fn join(&self) {
        let mut state = self.lock();
        while state.attended && state.is_idle() && !state.is_current_thread() {
            state.waiters += 1;
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.waiters -= 1;
        }
        if !state.attended
            && let Some(thread) = state.handle.take()
        {
            drop(state);
            let _ = thread.join();
        }
    }

    /// Closes the queue: an idle thread is not kept from now on.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    fn lock(&self) -> Locked<'_> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The thread's loop.
    fn run(&self) {
        let mut state = self.lock();
        (state.thread, state.system_thread) = (local::this_thread(), process::this_thread());
        loop {
            if let Some(callback) = state.waiting.pop_front() {
                (state.running, state.watch) = (true, exit::Watch::default());
                drop(state);
                callback.run();
                state = self.lock();
                state.running = false;
                state.ran += 1;
                if state.waiters > 0 {
                    self.changed.notify_all();
                }
                continue;
            }
            if !state.closed {
                state.sleeps = true;
                let (next, timeout) =
                    self.changed.wait_timeout(state, IDLE).unwrap_or_else(PoisonError::into_inner);
                state = next;
                state.sleeps = false;
                // Woken, or a callback was queued just as the time passed.
                if !timeout.timed_out() || !state.waiting.is_empty() {
                    continue;
                }
            }
            state.attended = false;
            state.thread = 0;
            drop(state);
            self.changed.notify_all();
            return;
        }
    }
}

/// Runs callbacks one after the other. A panic of one does not stop the others.
///
/// A callback may fork and return in the child too. The child ends there: it has a copy of all
/// callbacks that wait, and would run them a second time.
pub(super) fn run_each<F: FnOnce()>(what: &str, callbacks: impl IntoIterator<Item = F>) {
    let creator = Creator::here();
    for callback in callbacks {
        let ran = catch(callback);
        creator.end_copy(0);
        if let Err(message) = ran {
            log_panic(what, &message);
        }
    }
}

/// Wakes each waker. A panic of one does not stop the others.
///
/// If a waker forks this process, the child returns to its caller without waking the others: they
/// would wake threads that do not exist in the child.
pub(crate) fn wake_each(wakers: impl IntoIterator<Item = Waker>) {
    let creator = Creator::here();
    for waker in wakers {
        let woken = catch(|| waker.wake());
        if creator.is_elsewhere() {
            return;
        }
        if let Err(message) = woken {
            log_panic("a waker", &message);
        }
    }
}

/// Logs a panic of user code. The subscriber is user code, too: if it panicked out of here, the
/// callbacks or wakers that come next would be lost.
fn log_panic(what: &str, message: &str) {
    let _ = catch(|| tracing::error!(message, "{what} panicked"));
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn callbacks_run_in_order_and_a_panic_stops_none() {
        let queue = Arc::new(CallbackQueue::default());
        let seen = Arc::new(Mutex::new(Vec::new()));
        for number in 0..100 {
            let seen = Arc::clone(&seen);
            queue.push(Box::new(move || {
                seen.lock().unwrap().push(number);
                if number == 50 {
                    std::panic::resume_unwind(Box::new("callback 50"));
                }
            }));
        }
        queue.flush();
        assert_eq!(*seen.lock().unwrap(), (0..100).collect::<Vec<_>>());
    }

    #[test]
    fn flush_within_a_callback_does_not_wait_for_itself() {
        let queue = Arc::new(CallbackQueue::default());
        let (inner, ran) = (Arc::clone(&queue), Arc::new(AtomicUsize::new(0)));
        let count = Arc::clone(&ran);
        queue.push(Box::new(move || {
            inner.flush();
            count.fetch_add(1, Ordering::SeqCst);
        }));
        queue.flush();
        assert_eq!(ran.load(Ordering::SeqCst), 1);
        queue.close();
    }
}
