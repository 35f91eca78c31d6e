//! Iterating over futures in the order in which they are done.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    pin::Pin,
    sync::{Arc, Condvar, Mutex, PoisonError},
    task::{Context, Poll, Wake, Waker},
    time::{Duration, Instant},
};

use futures::Stream;

use super::handle::TaskFuture;

/// Yields futures as they are done, each exactly once. Futures that are done already come first.
///
/// The iterator blocks. [`stream`](AsCompleted::stream) returns a stream for async code, and
/// [`timeout`](AsCompleted::timeout) limits the time of the whole iteration.
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
///     let mut sum = 0;
///     for future in as_completed(futures) {
///         sum += future.result().unwrap();
///     }
///     assert_eq!(sum, 14);
/// }
/// ```
pub fn as_completed<T>(futures: impl IntoIterator<Item = TaskFuture<T>>) -> AsCompleted<T> {
    let mut set = CompletionSet::default();
    for future in futures {
        set.push(future);
    }
    AsCompleted { set }
}

/// A blocking iterator over futures in order of completion. Made by [`as_completed`].
#[must_use = "an iterator does nothing until it is asked"]
pub struct AsCompleted<T> {
    set: CompletionSet<T>,
}

impl<T> AsCompleted<T> {
    /// Limits the time of the whole iteration, counted from now. Once the time has passed, the
    /// iterator yields an [`Unfinished`] error and then ends.
    ///
    /// ```
    /// use executor::prelude::*;
    /// use std::time::Duration;
    ///
    /// #[task]
    /// fn forever() { loop { std::thread::park() } }
    ///
    /// #[executor::main]
    /// fn main() {
    ///     let pool = ProcessPoolExecutor::builder().max_workers(1).on_drop(executor::OnDrop::Kill).build().unwrap();
    ///     let futures = [pool.submit(forever::task())];
    ///     let error = as_completed(futures).timeout(Duration::from_millis(20)).next().unwrap().unwrap_err();
    ///     assert_eq!(error.to_string(), "1 of 1 futures are unfinished");
    /// }
    /// ```
    pub fn timeout(self, timeout: Duration) -> AsCompletedTimeout<T> {
        AsCompletedTimeout {
            total: self.set.len(),
            set: self.set,
            deadline: Instant::now().checked_add(timeout),
            over: false,
        }
    }

    /// Turns the iterator into a [`Stream`], for async code.
    ///
    /// ```
    /// use executor::prelude::*;
    /// use futures::StreamExt;
    ///
    /// #[task]
    /// fn square(x: u64) -> u64 { x * x }
    ///
    /// #[executor::main]
    /// fn main() {
    ///     let pool = ProcessPoolExecutor::builder().max_workers(1).build().unwrap();
    ///     let mut done = as_completed((0..3).map(|x| pool.submit(square::task(x)))).stream();
    ///     futures::executor::block_on(async {
    ///         while let Some(future) = done.next().await {
    ///             assert!(future.await.unwrap() < 9);
    ///         }
    ///     });
    /// }
    /// ```
    pub fn stream(self) -> AsCompletedStream<T> {
        AsCompletedStream { set: self.set }
    }
}

impl<T> Iterator for AsCompleted<T> {
    type Item = TaskFuture<T>;

    fn next(&mut self) -> Option<TaskFuture<T>> {
        self.set.next(None)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.set.len(), Some(self.set.len()))
    }
}

/// A stream of futures in order of completion. Made by [`AsCompleted::stream`].
#[must_use = "streams do nothing unless polled"]
pub struct AsCompletedStream<T> {
    set: CompletionSet<T>,
}

impl<T> Stream for AsCompletedStream<T> {
    type Item = TaskFuture<T>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<TaskFuture<T>>> {
        self.set.poll_next(cx.waker())
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.set.len(), Some(self.set.len()))
    }
}

/// An iterator with a time limit. Made by [`AsCompleted::timeout`].
#[must_use = "an iterator does nothing until it is asked"]
pub struct AsCompletedTimeout<T> {
    set: CompletionSet<T>,
    total: usize,
    deadline: Option<Instant>,
    over: bool,
}

impl<T> Iterator for AsCompletedTimeout<T> {
    type Item = Result<TaskFuture<T>, Unfinished>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.over {
            return None;
        }
        match self.set.next(self.deadline) {
            Some(future) => Some(Ok(future)),
            None if self.set.len() == 0 => None,
            None => {
                self.over = true;
                Some(Err(Unfinished { unfinished: self.set.len(), total: self.total }))
            }
        }
    }
}

/// The time limit has passed and some futures are not done. Their tasks keep running.
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{unfinished} of {total} futures are unfinished")]
pub struct Unfinished {
    /// Number of futures that are not done.
    pub unfinished: usize,
    /// Number of futures in total.
    pub total: usize,
}

crate::debug::debug_is_display!(Unfinished);

/// A set of futures that yields those that are done, in order of completion. Futures can be added
/// at any time.
struct CompletionSet<T> {
    pending: HashMap<usize, TaskFuture<T>>,
    /// The keys of the futures that are done, in order of completion.
    done: Arc<DoneQueue>,
    next_key: usize,
}

impl<T> fmt::Debug for CompletionSet<T> {
    /// Writes the futures that were not yielded yet.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.pending.values()).finish()
    }
}

macro_rules! debug {
    ($($type:ident),+) => {$(
        impl<T> fmt::Debug for $type<T> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_tuple(stringify!($type)).field(&self.set).finish()
            }
        }
    )+};
}

debug!(AsCompleted, AsCompletedStream, AsCompletedTimeout);

impl<T> Default for CompletionSet<T> {
    fn default() -> Self {
        CompletionSet { pending: HashMap::new(), done: Arc::default(), next_key: 0 }
    }
}

/// The queue to which futures report that they are done.
#[derive(Default)]
struct DoneQueue {
    state: Mutex<DoneState>,
    changed: Condvar,
}

#[derive(Default)]
struct DoneState {
    keys: VecDeque<usize>,
    waker: Option<Waker>,
}

/// The waker left in one future. It adds the future's key to the queue.
struct Done {
    key: usize,
    queue: Arc<DoneQueue>,
}

impl Wake for Done {
    fn wake(self: Arc<Self>) {
        let mut state = self.queue.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.keys.push_back(self.key);
        let waker = state.waker.take();
        drop(state);
        self.queue.changed.notify_all();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl<T> CompletionSet<T> {
    fn push(&mut self, future: TaskFuture<T>) {
        let key = self.next_key;
        self.next_key += 1;
        let waker = Arc::new(Done { key, queue: Arc::clone(&self.done) });
        // A future that is done already does not keep the waker, so report it now.
        if !future.cell().observe(self.observer_key(key), &Waker::from(Arc::clone(&waker))) {
            waker.wake();
        }
        self.pending.insert(key, future);
    }

    /// Returns a key that is unique among all observers of the same future. A future is in one set
    /// at a time.
    fn observer_key(&self, key: usize) -> usize {
        Arc::as_ptr(&self.done) as usize ^ key.rotate_left(16)
    }

    fn len(&self) -> usize {
        self.pending.len()
    }

    /// Waits for the next future that is done. Returns `None` if none is left or the deadline has
    /// passed.
    fn next(&mut self, deadline: Option<Instant>) -> Option<TaskFuture<T>> {
        if let Some(future) = self.next_in_fork() {
            return Some(future);
        }
        if self.pending.is_empty() {
            return None;
        }
        let mut state = self.done.state.lock().unwrap_or_else(PoisonError::into_inner);
        let key = loop {
            if let Some(key) = state.keys.pop_front() {
                break key;
            }
            state = match deadline {
                None => self.done.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left == Duration::ZERO {
                        return None;
                    }
                    self.done
                        .changed
                        .wait_timeout(state, left)
                        .unwrap_or_else(PoisonError::into_inner)
                        .0
                }
            };
        };
        drop(state);
        self.pending.remove(&key)
    }

    /// Returns a pending future if this process is a fork of the executor's process.
    ///
    /// There, no future is ever done, and the queue's lock may be held for ever. So every pending
    /// future counts as broken, and is yielded at once.
    fn next_in_fork(&mut self) -> Option<TaskFuture<T>> {
        let (&key, _) = self.pending.iter().next().filter(|(_, future)| future.cell().forked())?;
        self.pending.remove(&key)
    }

    fn poll_next(&mut self, waker: &Waker) -> Poll<Option<TaskFuture<T>>> {
        if let Some(future) = self.next_in_fork() {
            return Poll::Ready(Some(future));
        }
        if self.pending.is_empty() {
            return Poll::Ready(None);
        }
        let waker = waker.clone();
        let mut state = self.done.state.lock().unwrap_or_else(PoisonError::into_inner);
        match state.keys.pop_front() {
            Some(key) => {
                drop(state);
                Poll::Ready(self.pending.remove(&key))
            }
            None => {
                let old = state.waker.replace(waker);
                // Outside the lock, since dropping a waker runs user code.
                drop(state);
                drop(old);
                Poll::Pending
            }
        }
    }
}

impl<T> Drop for CompletionSet<T> {
    fn drop(&mut self) {
        for (key, future) in &self.pending {
            future.cell().unobserve(self.observer_key(*key));
        }
    }
}
