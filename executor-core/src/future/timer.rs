//! A deadline for async code that may run on any runtime, including one without timers such as
//! `futures::executor::block_on`.
//!
//! A thread sleeps for it. It is needed only by a map with a time limit that is iterated as a
//! stream, and by async calls of a managed object with a timeout.

use std::{
    sync::{Arc, Condvar, Mutex, PoisonError},
    task::{Poll, Waker},
    thread,
    time::Instant,
};

/// A deadline that can be polled.
pub(crate) struct Timer {
    deadline: Instant,
    shared: Arc<(Mutex<State>, Condvar)>,
    started: bool,
}

/// The state shared with the thread.
#[derive(Default)]
struct State {
    waker: Option<Waker>,
    dropped: bool,
}

impl Timer {
    pub(crate) fn new(deadline: Instant) -> Self {
        Timer { deadline, shared: Arc::default(), started: false }
    }

    /// Returns ready if the deadline has passed. Otherwise the waker is woken at the deadline.
    pub(crate) fn poll(&mut self, waker: &Waker) -> Poll<()> {
        if Instant::now() >= self.deadline {
            return Poll::Ready(());
        }
        let waker = waker.clone();
        let old = self.shared.0.lock().unwrap_or_else(PoisonError::into_inner).waker.replace(waker);
        // Outside the lock, since dropping a waker runs user code.
        drop(old);
        if !self.started {
            let (shared, deadline) = (Arc::clone(&self.shared), self.deadline);
            // If the system refuses a thread, the deadline is checked only when another event wakes
            // the task.
            self.started = thread::Builder::new()
                .name("executor-timer".into())
                .spawn(move || sleep_until(deadline, &shared))
                .is_ok();
        }
        Poll::Pending
    }
}

/// The thread's body: sleeps until the deadline, or until the timer is dropped.
fn sleep_until(deadline: Instant, (state, changed): &(Mutex<State>, Condvar)) {
    let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
    while !state.dropped {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let waker = state.waker.take();
            drop(state);
            if let Some(waker) = waker {
                waker.wake();
            }
            return;
        }
        state = changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        self.shared.0.lock().unwrap_or_else(PoisonError::into_inner).dropped = true;
        self.shared.1.notify_all();
    }
}
