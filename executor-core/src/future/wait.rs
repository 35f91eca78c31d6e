//! Waiting for several futures at once.

use std::{
    collections::VecDeque,
    sync::{Arc, Condvar, Mutex, PoisonError},
    task::Wake,
    time::{Duration, Instant},
};

use super::{cell::Ended, done_queue::DoneQueue, handle::TaskFuture};

/// When [`wait`] returns.
///
/// ```
/// use executor::prelude::*;
///
/// #[task]
/// fn check(x: u64) -> Result<u64, String> { if x == 0 { Err("zero".into()) } else { Ok(x) } }
///
/// #[executor::main]
/// fn main() {
///     let pool = ProcessPoolExecutor::builder().max_workers(1).build().unwrap();
///     let futures = [1, 0].map(|x| pool.submit(check::task(x)));
///     let (done, _) = wait(futures, ReturnWhen::FirstError, None);
///     assert!(done.iter().any(|future| future.error().is_some()));
/// }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReturnWhen {
    /// As soon as one future is done.
    FirstCompleted,
    /// As soon as one future has failed. If none fails, when all are done. A cancelled future
    /// counts as done, not as failed.
    FirstError,
    /// When all futures are done.
    AllCompleted,
}

/// Waits for some or all of the futures, at most `timeout`. Returns `(done, not_done)`, each in the
/// order in which the futures were passed.
///
/// ```
/// use executor::prelude::*;
///
/// #[task]
/// fn square(x: u64) -> u64 { x * x }
///
/// #[executor::main]
/// fn main() {
///     let pool = ProcessPoolExecutor::builder().max_workers(2).build().unwrap();
///     let futures: Vec<_> = (0..4).map(|x| pool.submit(square::task(x))).collect();
///     let (done, not_done) = wait(futures, ReturnWhen::AllCompleted, None);
///     assert!(not_done.is_empty());
///     let squares: Vec<u64> = done.into_iter().map(|future| future.result().unwrap()).collect();
///     assert_eq!(squares, [0, 1, 4, 9]);
/// }
/// ```
pub fn wait<T>(
    futures: impl IntoIterator<Item = TaskFuture<T>>,
    return_when: ReturnWhen,
    timeout: Option<Duration>,
) -> (Vec<TaskFuture<T>>, Vec<TaskFuture<T>>) {
    let futures: Vec<_> = futures.into_iter().collect();
    let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
    let queue = Arc::<DoneQueue>::default();
    let mut done: VecDeque<usize> = VecDeque::new();
    for (key, future) in futures.iter().enumerate() {
        // A future that is done already does not report.
        if !future.cell().report_to(&queue, key) {
            done.push_back(key);
        }
    }
    let mut pending = futures.len();
    // All futures before this one are done.
    let mut first = 0;
    loop {
        let mut satisfied = false;
        for key in done.drain(..) {
            pending -= 1;
            satisfied |= match return_when {
                ReturnWhen::AllCompleted => false,
                ReturnWhen::FirstCompleted => true,
                ReturnWhen::FirstError => {
                    matches!(futures[key].cell().ended(), Some(Ended::Error(_)))
                }
            };
        }
        if satisfied || pending == 0 {
            break;
        }
        while futures.get(first).is_some_and(TaskFuture::done) {
            first += 1;
        }
        // In a fork of the executor's process, all count as done.
        let Some(pending_one) = futures.get(first) else { break };
        let control = pending_one.cell().control();
        if !queue.take(&mut done, deadline, control) {
            break;
        }
    }
    for future in &futures {
        future.cell().report_no_more_to(&queue);
    }
    futures.into_iter().partition(TaskFuture::done)
}

/// A flag that a waker raises and a thread can wait for.
#[derive(Default)]
pub(crate) struct Signal {
    raised: Mutex<bool>,
    changed: Condvar,
}

impl Signal {
    pub(crate) fn clear(&self) {
        *self.raised.lock().unwrap_or_else(PoisonError::into_inner) = false;
    }

    /// Waits until the flag is raised or the deadline has passed. Returns whether the flag is
    /// raised.
    pub(crate) fn wait(&self, deadline: Option<Instant>) -> bool {
        let mut raised = self.raised.lock().unwrap_or_else(PoisonError::into_inner);
        while !*raised {
            raised = match deadline {
                None => self.changed.wait(raised).unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left == Duration::ZERO {
                        return false;
                    }
                    self.changed
                        .wait_timeout(raised, left)
                        .unwrap_or_else(PoisonError::into_inner)
                        .0
                }
            };
        }
        true
    }
}

impl Wake for Signal {
    fn wake(self: Arc<Self>) {
        *self.raised.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_all();
    }
}
