//! All results of a map at once: what its feed yields is collected until the last has come.
//!
//! ```text
//!  Feed ── wakes ──► Gather: takes what is ready, leaves itself as the waker again
//!                      └─ the last has come ──► wakes who blocks, wakes the waker, queues callbacks
//! ```
//!
//! It is kept by the feed as long as something is to come, so also when its reader has gone. A feed owes each of its
//! items an outcome, whatever dies: so this ends.

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
    feed::{Feed, Numbered},
};
use crate::error::{BrokenCause, TaskError};

pub(crate) struct Gather {
    feed: Arc<Feed>,
    total: usize,
    callbacks: Arc<CallbackQueue>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    outcomes: VecDeque<Outcome>,
    /// Empty but for a moment, so that its memory is used again.
    arrived: VecDeque<Numbered>,
    done: bool,
    /// The first error, kept when the outcomes have been taken.
    error: Option<TaskError>,
    waker: Option<Waker>,
    callbacks: Vec<ListCallback>,
}

/// A callback, still ignorant of the type of the list.
pub(crate) struct ListCallback {
    /// Makes the copy that all callbacks share.
    pub(crate) decode: ListDecoder,
    pub(crate) run: ByReference,
}

type ListDecoder = Box<dyn FnOnce(Vec<Outcome>) -> Box<dyn Any> + Send>;

impl Gather {
    /// Collects this many outcomes; their chunks have been submitted.
    pub(crate) fn new(feed: Arc<Feed>, total: usize, callbacks: Arc<CallbackQueue>) -> Arc<Self> {
        let gather =
            Arc::new(Gather { feed, total, callbacks, state: Mutex::default(), changed: Condvar::new() });
        Arc::clone(&gather).wake();
        gather
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// In a fork of the executor's process nothing more will come, and the lock may be held for ever.
    fn forked(&self) -> bool {
        self.feed.forked()
    }

    pub(crate) fn is_done(&self) -> bool {
        self.forked() || self.lock().done
    }

    /// A copy of the first error, when all have come.
    pub(crate) fn error(&self) -> Option<TaskError> {
        if self.forked() {
            return Some(TaskError::Broken(BrokenCause::Forked));
        }
        self.lock().error.clone()
    }

    /// Waits until all have come, at most until `deadline`; whether they have.
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

    /// Takes the outcomes, in the order of the items; to be called once, when they have come.
    pub(crate) fn take(&self) -> Result<Vec<Outcome>, TaskError> {
        if self.forked() {
            return Err(TaskError::Broken(BrokenCause::Forked));
        }
        Ok(std::mem::take(&mut self.lock().outcomes).into())
    }

    /// Whether all have come; otherwise leaves the waker.
    pub(crate) fn poll(&self, waker: &Waker) -> bool {
        if self.forked() {
            return true;
        }
        // Cloned before the lock is taken, the old one dropped after it is free: both are user code.
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

    /// Adds a callback, which runs on the callback thread whether or not all have come already.
    pub(crate) fn add_callback(&self, callback: ListCallback) {
        if self.forked() {
            let ListCallback { decode, run } = callback;
            if let Err(message) = catch(|| run(&*decode(vec![Err(TaskError::Broken(BrokenCause::Forked))]))) {
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

impl Wake for Gather {
    /// The feed has something.
    fn wake(self: Arc<Self>) {
        let waker = Waker::from(Arc::clone(&self));
        let mut state = self.lock();
        while state.outcomes.len() < self.total {
            let State { arrived, outcomes, .. } = &mut *state;
            if !self.feed.poll(arrived, &waker) {
                return;
            }
            // They come in order.
            outcomes.extend(arrived.drain(..).map(|(_, outcome)| outcome));
        }
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

/// In order of registration, with one decoding for all of them.
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
        feed::tests::{open, value},
    };

    fn first_bytes(outcomes: &[Outcome]) -> Vec<u8> {
        outcomes.iter().map(|outcome| outcome.as_ref().map_or(255, |payload| payload[0])).collect()
    }

    #[test]
    fn the_last_that_comes_ends_it_in_the_order_of_the_items() {
        let (feed, thread) = (Feed::new(false), Arc::<CallbackQueue>::default());
        let (first, second) = (open(&feed, 2, 0), open(&feed, 2, 2));
        let gather = Gather::new(Arc::clone(&feed), 4, Arc::clone(&thread));
        let (sender, called) = mpsc::channel();
        gather.add_callback(ListCallback {
            decode: Box::new(|outcomes| Box::new(first_bytes(&outcomes)) as Box<dyn Any>),
            run: Box::new(move |list| sender.send(list.downcast_ref::<Vec<u8>>().cloned()).unwrap()),
        });
        for (chunk, item) in [(&second, 1), (&first, 0), (&second, 0)] {
            let mut wakers = Wakers::default();
            chunk.deliver([(item, value(10 + item as u8))].into_iter(), &mut wakers);
            wakers.wake();
            assert!(!gather.is_done() && !gather.wait(Some(Instant::now())));
        }
        assert!(called.try_recv().is_err());
        // The one who takes the last is slow to wake us: somebody else may do it, and then it counts once.
        let mut wakers = Wakers::default();
        let error = TaskError::invalid("no");
        first.deliver([(1, Err(error))].into_iter(), &mut wakers);
        assert!(!gather.is_done());
        Arc::clone(&gather).wake();
        assert!(gather.is_done() && gather.wait(None));
        wakers.wake();
        thread.flush();
        assert_eq!(called.try_iter().collect::<Vec<_>>(), [Some(vec![10, 255, 10, 11])]);
        assert!(matches!(gather.error(), Some(TaskError::Invalid(_))));
        assert_eq!(first_bytes(&gather.take().unwrap()), [10, 255, 10, 11]);
        assert!(gather.error().is_some(), "also when the outcomes are taken");
        // Nothing keeps it: not the feed, not itself.
        let last = Arc::downgrade(&gather);
        drop(gather);
        assert!(last.upgrade().is_none());
    }

    #[test]
    fn of_nothing_it_is_done_at_once() {
        let gather = Gather::new(Feed::new(false), 0, Arc::default());
        assert!(gather.is_done() && gather.wait(None) && gather.error().is_none());
        assert!(gather.take().unwrap().is_empty());
    }
}
