//! The thread on which an executor runs done-callbacks: one, started with the first callback, one callback at a time.
//!
//! Callbacks are user code: they may be slow, block or panic. Here they delay other callbacks, never a result, a
//! deadline or a waker.

use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Condvar, Mutex, PoisonError},
    thread::{self, ThreadId},
    time::{Duration, Instant},
};

type Callback = Box<dyn FnOnce() + Send>;

/// An idle thread stays this long: longer costs a sleeping thread, shorter a thread start per burst of callbacks.
const IDLE: Duration = Duration::from_secs(1);

#[derive(Default)]
pub(crate) struct CallbackQueue {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Callback>,
    running: bool,
    thread: Option<ThreadId>,
    closed: bool,
}

impl CallbackQueue {
    pub(crate) fn push(self: &Arc<Self>, callback: Callback) {
        let mut state = self.lock();
        state.waiting.push_back(callback);
        if state.thread.is_none() {
            let queue = Arc::clone(self);
            // Should the system refuse a thread, the callbacks wait for the next push, or for `flush`.
            if let Ok(thread) =
                thread::Builder::new().name("executor-callbacks".into()).spawn(move || queue.run())
            {
                state.thread = Some(thread.thread().id());
            }
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
        while !state.waiting.is_empty() || state.running {
            if state.thread == Some(thread::current().id()) {
                return true;
            }
            if state.thread.is_none() {
                // The thread could not be started. Nobody else would ever run them.
                if let Some(callback) = state.waiting.pop_front() {
                    drop(state);
                    run_one(callback);
                    state = self.lock();
                    continue;
                }
            }
            state = match deadline {
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return false;
                    }
                    self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
        true
    }

    /// Whether the caller is a callback of this executor.
    pub(crate) fn is_current_thread(&self) -> bool {
        self.lock().thread == Some(thread::current().id())
    }

    /// Whether somebody runs what is queued.
    pub(crate) fn is_attended(&self) -> bool {
        let state = self.lock();
        state.thread.is_some() || state.waiting.is_empty()
    }

    /// No idle thread is kept from now on.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        let mut state = self.lock();
        loop {
            if let Some(callback) = state.waiting.pop_front() {
                state.running = true;
                drop(state);
                run_one(callback);
                state = self.lock();
                state.running = false;
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
            state.thread = None;
            drop(state);
            self.changed.notify_all();
            return;
        }
    }
}

fn run_one(callback: Callback) {
    if let Err(message) = catch(callback) {
        tracing::error!(message, "a done-callback panicked");
    }
}

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
