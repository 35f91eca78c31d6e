//! A deadline for async code that may run on any runtime, or on none that has timers: `futures::executor::block_on`
//! has not. A thread sleeps for it; only a map with a time limit that is iterated as a stream ever needs one.

use std::{
    sync::{Arc, Condvar, Mutex, PoisonError},
    task::{Poll, Waker},
    thread,
    time::Instant,
};

pub(crate) struct Timer {
    deadline: Instant,
    shared: Arc<(Mutex<State>, Condvar)>,
    started: bool,
}

#[derive(Default)]
struct State {
    waker: Option<Waker>,
    dropped: bool,
}

impl Timer {
    pub(crate) fn new(deadline: Instant) -> Self {
        Timer { deadline, shared: Arc::default(), started: false }
    }

    /// Ready when the deadline has passed; otherwise the waker is woken then.
    pub(crate) fn poll(&mut self, waker: &Waker) -> Poll<()> {
        if Instant::now() >= self.deadline {
            return Poll::Ready(());
        }
        let waker = waker.clone();
        let old = self.shared.0.lock().unwrap_or_else(PoisonError::into_inner).waker.replace(waker);
        // Outside the lock: dropping a waker is user code.
        drop(old);
        if !self.started {
            let (shared, deadline) = (Arc::clone(&self.shared), self.deadline);
            // Refused: the limit is then looked at only when something else wakes the task.
            self.started = thread::Builder::new()
                .name("executor-timer".into())
                .spawn(move || sleep_until(deadline, &shared))
                .is_ok();
        }
        Poll::Pending
    }
}

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
