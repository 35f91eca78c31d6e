//! Joins all results of a map: takes them from the map's results until the last has come.
//!
//! ```text
//!  MapResults ── wakes ──► JoinAll: takes what is ready, leaves itself as their waker again
//!                            └─ the last has come ──► wakes blocked threads, wakes the waker,
//!                                                     queues callbacks
//! ```
//!
//! `MapResults` keeps the `JoinAll` alive while results are missing, even if its reader has gone.
//! It delivers an outcome for each of its items, whatever dies, so the wait always ends.

use crate::unwind::catch;
use std::{
    any::Any,
    cell::{OnceCell, RefCell},
    collections::VecDeque,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    task::{Wake, Waker},
    time::{Duration, Instant},
};

use super::{
    callback::{CallbackQueue, run_each},
    cell::{ByReference, Outcome},
    map_results::{MapResults, Numbered},
};
use crate::error::{BrokenCause, TaskError};

/// All outcomes of a map, collected from its [`MapResults`].
pub(crate) struct JoinAll {
    results: Arc<MapResults>,
    total: usize,
    callbacks: Arc<CallbackQueue>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    outcomes: VecDeque<Outcome>,
    /// Empty except while outcomes are moved. Kept so that its memory is reused.
    arrived: VecDeque<Numbered>,
    done: bool,
    /// The first error. Kept even after the outcomes were taken.
    error: Option<TaskError>,
    waker: Option<Waker>,
    callbacks: Vec<ListCallback>,
}

/// A callback whose type does not depend on the type of the list.
pub(crate) struct ListCallback {
    /// Decodes the copy that all callbacks share.
    pub(crate) decode: ListDecoder,
    pub(crate) run: ByReference,
}

type ListDecoder = Box<dyn FnOnce(Vec<Outcome>) -> Box<dyn Any> + Send>;

impl JoinAll {
    /// Collects `total` outcomes. All chunks must have been submitted already.
    pub(crate) fn new(
        results: Arc<MapResults>,
        total: usize,
        callbacks: Arc<CallbackQueue>,
    ) -> Arc<Self> {
        let all = Arc::new(JoinAll {
            results,
            total,
            callbacks,
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        // Takes what is ready and leaves the waker.
        Arc::clone(&all).wake();
        all
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether this process is a fork of the executor's process. There, no more outcomes come, and
    /// the lock may be held for ever.
    fn forked(&self) -> bool {
        self.results.forked()
    }

    pub(crate) fn is_done(&self) -> bool {
        self.forked() || self.lock().done
    }

    /// Returns a copy of the first error, once all outcomes have come.
    pub(crate) fn error(&self) -> Option<TaskError> {
        if self.forked() {
            return Some(TaskError::Broken(BrokenCause::Forked));
        }
        self.lock().error.clone()
    }

    /// Waits until all outcomes have come, at most until `deadline`. Returns whether they have.
    pub(crate) fn wait(&self, deadline: Option<Instant>) -> bool {
        if self.forked() {
            return true;
        }
        let mut state = self.lock();
        while !state.done {
            state = match deadline {
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left == Duration::ZERO {
                        return false;
                    }
                    self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
        true
    }

    /// Takes the outcomes, in the order of the items. Called once, when all have come.
    pub(crate) fn take(&self) -> Result<Vec<Outcome>, TaskError> {
        if self.forked() {
            return Err(TaskError::Broken(BrokenCause::Forked));
        }
        Ok(std::mem::take(&mut self.lock().outcomes).into())
    }

    /// Whether all outcomes have come. If not, leaves the waker.
    pub(crate) fn poll(&self, waker: &Waker) -> bool {
        if self.forked() {
            return true;
        }
        // Cloned before the lock is taken, and the old one dropped after it is released: both run
        // user code.
        let waker = waker.clone();
        let mut state = self.lock();
        if state.done {
            return true;
        }
        let old = state.waker.replace(waker);
        drop(state);
        drop(old);
        false
    }

    /// Adds a callback. It runs on the callback thread, whether or not all outcomes have come
    /// already.
    pub(crate) fn add_callback(&self, callback: ListCallback) {
        // In a fork there is no callback thread, so run it here.
        if self.forked() {
            let ListCallback { decode, run } = callback;
            if let Err(message) =
                catch(|| run(&*decode(vec![Err(TaskError::Broken(BrokenCause::Forked))])))
            {
                tracing::error!(message, "a callback panicked");
            }
            return;
        }
        let mut state = self.lock();
        if !state.done {
            state.callbacks.push(callback);
            return;
        }
        let outcomes: Vec<Outcome> = state.outcomes.iter().cloned().collect();
        drop(state);
        self.callbacks.push(Box::new(move || run_callbacks(outcomes, vec![callback])));
    }
}

impl Wake for JoinAll {
    /// Takes the outcomes that are ready. After the last one, completes the join.
    fn wake(self: Arc<Self>) {
        let waker = Waker::from(Arc::clone(&self));
        let mut state = self.lock();
        while state.outcomes.len() < self.total {
            let State { arrived, outcomes, .. } = &mut *state;
            if !self.results.poll(arrived, &waker) {
                return;
            }
            // The results of an ordered map are yielded in order.
            outcomes.extend(arrived.drain(..).flat_map(|(_, run)| run.into_outcomes()));
        }
        // Two threads may get here with the last outcome taken. Only one completes.
        if state.done {
            return;
        }
        state.done = true;
        state.error = state.outcomes.iter().find_map(|outcome| outcome.as_ref().err().cloned());
        let callbacks = std::mem::take(&mut state.callbacks);
        let outcomes: Vec<Outcome> = match callbacks.is_empty() {
            true => Vec::new(),
            false => state.outcomes.iter().cloned().collect(),
        };
        let reader = state.waker.take();
        drop(state);
        self.changed.notify_all();
        if !callbacks.is_empty() {
            self.callbacks.push(Box::new(move || run_callbacks(outcomes, callbacks)));
        }
        if let Some(reader) = reader {
            reader.wake();
        }
    }
}

/// Runs callbacks in order of registration. All share one decoded copy.
fn run_callbacks(outcomes: Vec<Outcome>, callbacks: Vec<ListCallback>) {
    let outcomes = RefCell::new(Some(outcomes));
    let shared: OnceCell<Box<dyn Any>> = OnceCell::new();
    run_each(
        "a callback",
        callbacks.into_iter().map(|ListCallback { decode, run }| {
            || run(&**shared.get_or_init(|| decode(outcomes.take().unwrap_or_default())))
        }),
    );
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::future::{
        cell::Wakers,
        map_results::{
            Run,
            tests::{open, value},
        },
    };

    fn first_bytes(outcomes: &[Outcome]) -> Vec<u8> {
        outcomes.iter().map(|outcome| outcome.as_ref().map_or(255, |payload| payload[0])).collect()
    }

    #[test]
    fn the_last_that_comes_ends_it_in_the_order_of_the_items() {
        let (results, thread) = (MapResults::new(false), Arc::<CallbackQueue>::default());
        let (first, second) = (open(&results, 2, 0), open(&results, 2, 2));
        let all = JoinAll::new(Arc::clone(&results), 4, Arc::clone(&thread));
        let (sender, called) = mpsc::channel();
        all.add_callback(ListCallback {
            decode: Box::new(|outcomes| Box::new(first_bytes(&outcomes)) as Box<dyn Any>),
            run: Box::new(move |list| {
                sender.send(list.downcast_ref::<Vec<u8>>().cloned()).unwrap()
            }),
        });
        for (chunk, item) in [(&second, 1), (&first, 0), (&second, 0)] {
            let mut wakers = Wakers::default();
            chunk.deliver([(item, value(10 + item as u8))].into_iter(), &mut wakers);
            wakers.wake();
            assert!(!all.is_done() && !all.wait(Some(Instant::now())));
        }
        assert!(called.try_recv().is_err());
        // The thread that delivers the last outcome is slow to wake the `JoinAll`. Another thread
        // may wake it first, and then it completes only once.
        let mut wakers = Wakers::default();
        let error = TaskError::invalid("no");
        first.deliver([(1, Run::One(Err(error)))].into_iter(), &mut wakers);
        assert!(!all.is_done());
        Arc::clone(&all).wake();
        assert!(all.is_done() && all.wait(None));
        wakers.wake();
        thread.flush();
        assert_eq!(called.try_iter().collect::<Vec<_>>(), [Some(vec![10, 255, 10, 11])]);
        assert!(matches!(all.error(), Some(TaskError::Invalid(_))));
        assert_eq!(first_bytes(&all.take().unwrap()), [10, 255, 10, 11]);
        assert!(all.error().is_some(), "also when the outcomes are taken");
        // Neither the results of the map nor the `JoinAll` itself keeps it alive.
        let last = Arc::downgrade(&all);
        drop(all);
        assert!(last.upgrade().is_none());
    }

    #[test]
    fn of_nothing_it_is_done_at_once() {
        let all = JoinAll::new(MapResults::new(false), 0, Arc::default());
        assert!(all.is_done() && all.wait(None) && all.error().is_none());
        assert!(all.take().unwrap().is_empty());
    }
}
