//! The queue through which futures report to one waiter that they are done.
//!
//! ```text
//!  Cell, done ──► Wakers: (queue, key) … ── post: one lock, one wake-up for a batch ──► DoneQueue
//!                                                                                        │ next
//!                                               `wait`, `as_completed`, blocked or polled ◄┘
//! ```

use std::{
    collections::VecDeque,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    task::Waker,
    time::{Duration, Instant},
};

use super::cell::{Awaited, Control};

/// The keys of futures that are done, in order of completion. One waiter takes them.
#[derive(Default)]
pub(crate) struct DoneQueue {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    keys: VecDeque<usize>,
    /// The task that polls the queue.
    waker: Option<Waker>,
    /// Whether a thread sleeps on `changed`. A condition variable is notified by a system call,
    /// even if nobody sleeps.
    sleeps: bool,
    /// The executor for which the waiter attends.
    attends: Option<Arc<dyn Control>>,
}

impl DoneQueue {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds keys, and wakes the thread that sleeps. Returns the waker of the task that waits.
    pub(super) fn push(&self, keys: impl IntoIterator<Item = usize>) -> Option<Waker> {
        let mut state = self.lock();
        state.keys.extend(keys);
        let (waker, sleeps) = (state.waker.take(), std::mem::take(&mut state.sleeps));
        let attends = state.attends.clone();
        drop(state);
        if sleeps {
            self.changed.notify_one();
        }
        if let Some(control) = attends {
            control.unpark();
        }
        waker
    }

    /// Moves the keys that are there to `keys`, which must be empty. Waits for the first one, at
    /// most until `deadline`, and drains the replies of the executor `control` meanwhile. Returns
    /// whether there are any.
    pub(super) fn take(
        &self,
        keys: &mut VecDeque<usize>,
        deadline: Option<Instant>,
        control: Option<&Arc<dyn Control>>,
    ) -> bool {
        let mut state = self.lock();
        if let Some(control) = control
            && state.keys.is_empty()
        {
            drop(state);
            control.attend(&Waiter { queue: self, control }, deadline);
            if control.forked() {
                // A waker that was called there has forked this process, and this is the child. The
                // caller looks for that.
                return true;
            }
            state = self.lock();
        }
        while state.keys.is_empty() {
            let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                state.sleeps = false;
                return false;
            }
            state.sleeps = true;
            state = match left {
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(left) => {
                    self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
        state.sleeps = false;
        std::mem::swap(keys, &mut state.keys);
        true
    }

    /// Moves the keys that are there to `keys`, which must be empty. Returns whether there are any.
    /// If not, leaves the waker.
    pub(super) fn poll(&self, keys: &mut VecDeque<usize>, waker: &Waker) -> bool {
        // Cloned before the lock is taken, and the old one dropped after it is released: both run
        // user code.
        let waker = waker.clone();
        let mut state = self.lock();
        if !state.keys.is_empty() {
            std::mem::swap(keys, &mut state.keys);
            return true;
        }
        let old = state.waker.replace(waker);
        drop(state);
        drop(old);
        false
    }
}

/// The waiter of a queue, while it attends.
struct Waiter<'a> {
    queue: &'a DoneQueue,
    control: &'a Arc<dyn Control>,
}

impl Awaited for Waiter<'_> {
    fn is_over(&self) -> bool {
        !self.queue.lock().keys.is_empty()
    }

    fn attendant_sleeps(&self) -> bool {
        let mut state = self.queue.lock();
        state.attends = Some(Arc::clone(self.control));
        state.keys.is_empty()
    }

    fn attendant_leaves(&self) {
        let attends = self.queue.lock().attends.take();
        drop(attends);
    }
}

/// Reports of one batch of completions, on their way to their queues.
#[derive(Default)]
pub(super) struct Reports(Vec<(Arc<DoneQueue>, usize)>);

impl Reports {
    pub(super) fn push(&mut self, queue: Arc<DoneQueue>, key: usize) {
        self.0.push((queue, key));
    }

    /// Puts each report into its queue, and adds the wakers of waiting tasks to `wakers`.
    pub(super) fn post(&mut self, wakers: &mut Vec<Waker>) {
        for of_one in self.0.chunk_by(|(one, _), (other, _)| Arc::ptr_eq(one, other)) {
            wakers.extend(of_one[0].0.push(of_one.iter().map(|(_, key)| *key)));
        }
        self.0.clear();
    }
}
