//! The thread on which an executor runs done-callbacks: one, started with the first callback, one callback at a time.
//!
//! Callbacks are user code: they may be slow, block or panic. Here they delay other callbacks, never a result, a
//! deadline or a waker.

use std::{
    collections::VecDeque,
    sync::{Arc, Condvar, Mutex, PoisonError},
    task::Waker,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use crate::{
    child::exit,
    os::{fork::Origin, local, process},
    unwind::catch,
};

type Callback = Box<dyn FnOnce() + Send>;

/// How often the end of the program looks at a callback that it waits for: std holds one for ever that has called `exit` as
/// well.
pub(crate) const LOOK: Duration = Duration::from_millis(100);

/// An idle thread stays this long: longer costs a sleeping thread, shorter a thread start per burst of callbacks.
const IDLE: Duration = Duration::from_secs(1);

#[derive(Default)]
pub(crate) struct CallbackQueue {
    state: Mutex<State>,
    changed: Condvar,
    /// How long the end of the program waits for callbacks.
    pub(crate) exit_timeout: Option<Duration>,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Callback>,
    running: bool,
    /// Whether there is a thread,
    attended: bool,
    /// its number, and the system's, once it runs,
    thread: u32,
    system_thread: u32,
    /// and its handle, for whoever joins it.
    handle: Option<JoinHandle<()>>,
    /// How many callbacks have been queued,
    queued: u64,
    /// and how many of them have run.
    ran: u64,
    /// The program ends, and has waited for them for long enough.
    given_up: bool,
    closed: bool,
    /// Of the thread, while it runs one callback and the program ends.
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

    pub(crate) fn push(self: &Arc<Self>, callback: Callback) {
        let mut state = self.lock();
        state.waiting.push_back(callback);
        state.queued += 1;
        if !state.attended {
            let queue = Arc::clone(self);
            // Should the system refuse a thread, the callbacks wait for the next push, or for `flush`.
            let thread = thread::Builder::new().name("executor-callbacks".into());
            state.handle = thread.spawn(move || queue.run()).ok();
            state.attended = state.handle.is_some();
        }
        drop(state);
        self.changed.notify_all();
    }

    /// Waits until all callbacks queued so far have run. From a callback it returns at once: it cannot wait for
    /// itself.
    pub(crate) fn flush(&self) {
        self.flush_until(None);
    }

    /// As [`flush`](Self::flush), at most until `deadline`; whether they have run.
    pub(crate) fn flush_until(&self, deadline: Option<Instant>) -> bool {
        let mut state = self.lock();
        while !state.is_idle() {
            if state.is_current_thread() {
                return true;
            }
            let look = Instant::now() + LOOK;
            let until = deadline.map_or(look, |at| at.min(look));
            state = self.help_or_wait(state, until).unwrap_or_else(|| self.lock());
            // Exit hooks and threads that the end waits for are here as well.
            if exit::has_begun() {
                self.abandon_exiting_callback(&mut state);
            }
            if !state.is_idle() && deadline.is_some_and(|at| at <= Instant::now()) {
                return false;
            }
        }
        true
    }

    /// While the program ends: a thread that std holds for ever, since its callback has called `exit` as well, is left there, and
    /// nobody waits for it any more or joins it. What waits behind it is run by whoever waits for that.
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

    /// For those who wait in another way than by [`flush`](Self::flush), from time to time while the program ends: nobody waits
    /// behind a callback that is held in `exit`.
    pub(crate) fn look_at_the_end(&self) {
        self.abandon_exiting_callback(&mut self.lock());
        if !self.is_attended() {
            self.flush();
        }
    }

    /// At the end of the program: waits until all callbacks that have been queued up to now have run, at most until `deadline`,
    /// and not a second time where that has passed. From a callback it runs those that wait behind it, here: that callback is not going to return, because the program ends in it.
    pub(crate) fn finish(&self, deadline: Option<Instant>) {
        let mut state = self.lock();
        let last = state.queued;
        if state.is_current_thread() {
            while let Some(callback) = state.waiting.pop_front() {
                drop(state);
                run_one(callback);
                state = self.lock();
            }
        } else {
            while state.ran < last && !state.given_up {
                let look = Instant::now() + LOOK;
                let until = deadline.map_or(look, |at| at.min(look));
                state = self.help_or_wait(state, until).unwrap_or_else(|| self.lock());
                self.abandon_exiting_callback(&mut state);
                state.given_up = state.ran < last && deadline.is_some_and(|at| at <= Instant::now());
            }
        }
    }

    /// Runs a callback, where there is no thread that would; else waits for a change. `None` at `deadline`.
    fn help_or_wait<'a>(&'a self, mut state: Locked<'a>, deadline: Instant) -> Option<Locked<'a>> {
        if !state.attended
            && let Some(callback) = state.waiting.pop_front()
        {
            // There is no thread: the system refused one, or it is held in `exit`.
            drop(state);
            run_one(callback);
            state = self.lock();
            state.ran += 1;
            return Some(state);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return None;
        }
        Some(self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0)
    }

    /// Whether the caller is a callback of this executor.
    pub(crate) fn is_current_thread(&self) -> bool {
        self.lock().is_current_thread()
    }

    /// Whether somebody runs what is queued.
    pub(crate) fn is_attended(&self) -> bool {
        let state = self.lock();
        state.attended || state.waiting.is_empty()
    }

    /// After [`close`](Self::close): waits until the thread is gone, if it has nothing to do any more and is not this one.
    pub(crate) fn join(&self) {
        let mut state = self.lock();
        while state.attended && state.is_idle() && !state.is_current_thread() {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if !state.attended
            && let Some(thread) = state.handle.take()
        {
            drop(state);
            let _ = thread.join();
        }
    }

    /// No idle thread is kept from now on.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    fn lock(&self) -> Locked<'_> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        let mut state = self.lock();
        (state.thread, state.system_thread) = (local::this_thread(), process::this_thread());
        loop {
            if let Some(callback) = state.waiting.pop_front() {
                (state.running, state.watch) = (true, exit::Watch::default());
                drop(state);
                run_one(callback);
                state = self.lock();
                state.running = false;
                state.ran += 1;
                self.changed.notify_all();
                continue;
            }
            if !state.closed {
                let (next, timeout) =
                    self.changed.wait_timeout(state, IDLE).unwrap_or_else(PoisonError::into_inner);
                state = next;
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

fn run_one(callback: Callback) {
    run_each("a done-callback", [callback]);
}

/// Runs callbacks one after the other; a panic of one costs no other its turn.
///
/// A callback may `fork` and return in the copy as well. The copy ends there: it has a copy of all that waits behind, and
/// would run it a second time.
pub(super) fn run_each<F: FnOnce()>(what: &str, callbacks: impl IntoIterator<Item = F>) {
    let origin = Origin::here();
    for callback in callbacks {
        let ran = catch(callback);
        origin.end_copy(0);
        if let Err(message) = ran {
            tracing::error!(message, "{what} panicked");
        }
    }
}

/// Wakes each of them; a panic of one costs no other its wake-up. A copy of this process that one of them has made goes on
/// with its caller and wakes no more: the others wait in threads that it does not have.
pub(crate) fn wake_each(wakers: impl IntoIterator<Item = Waker>) {
    let origin = Origin::here();
    for waker in wakers {
        let woken = catch(|| waker.wake());
        if origin.forked() {
            return;
        }
        if let Err(message) = woken {
            tracing::error!(message, "a waker panicked");
        }
    }
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
