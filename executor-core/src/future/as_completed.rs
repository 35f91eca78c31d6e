//! Iterating over futures in the order in which they are done.

use std::{
    collections::VecDeque,
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use futures::Stream;

use super::{done_queue::DoneQueue, handle::TaskFuture};

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
    AsCompleted { set: CompletionSet::new(futures) }
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

/// A set of futures that yields those that are done, in order of completion.
struct CompletionSet<T> {
    /// The futures by key. `None` for those that were yielded.
    pending: Vec<Option<TaskFuture<T>>>,
    /// No future before this key is left.
    first: usize,
    /// Number of futures that were not yielded.
    left: usize,
    queue: Arc<DoneQueue>,
    /// Keys that were taken from the queue, of futures that were not yielded yet.
    done: VecDeque<usize>,
}

impl<T> fmt::Debug for CompletionSet<T> {
    /// Writes the futures that were not yielded yet.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.pending.iter().flatten()).finish()
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

impl<T> CompletionSet<T> {
    fn new(futures: impl IntoIterator<Item = TaskFuture<T>>) -> Self {
        let queue = Arc::<DoneQueue>::default();
        let mut done = VecDeque::new();
        let pending: Vec<_> = futures.into_iter().map(Some).collect();
        for (key, future) in pending.iter().flatten().enumerate() {
            // A future that is done already does not report.
            if !future.cell().report_to(&queue, key) {
                done.push_back(key);
            }
        }
        CompletionSet { first: 0, left: pending.len(), pending, queue, done }
    }

    fn len(&self) -> usize {
        self.left
    }

    /// Takes the future with this key out of the set.
    fn take(&mut self, key: usize) -> Option<TaskFuture<T>> {
        let future = self.pending.get_mut(key)?.take();
        self.left -= usize::from(future.is_some());
        future
    }

    /// Waits for the next future that is done. Returns `None` if none is left or the deadline has
    /// passed.
    fn next(&mut self, deadline: Option<Instant>) -> Option<TaskFuture<T>> {
        self.settle_fork();
        if self.left == 0 {
            return None;
        }
        if self.done.is_empty() {
            let control = self.pending[self.first].as_ref()?.cell().control();
            if !self.queue.take(&mut self.done, deadline, control) {
                return None;
            }
            // The wait may have ended because this is a fork now.
            self.settle_fork();
        }
        let key = self.done.pop_front()?;
        self.take(key)
    }

    fn poll_next(&mut self, waker: &Waker) -> Poll<Option<TaskFuture<T>>> {
        self.settle_fork();
        if self.left == 0 {
            return Poll::Ready(None);
        }
        if self.done.is_empty() && !self.queue.poll(&mut self.done, waker) {
            return Poll::Pending;
        }
        let key = self.done.pop_front();
        Poll::Ready(key.and_then(|key| self.take(key)))
    }

    /// In a fork of the executor's process, makes all futures count as done.
    ///
    /// There, no future is ever done, and the queue's lock may be held for ever. So every pending
    /// future counts as broken, and is yielded at once.
    fn settle_fork(&mut self) {
        while let Some(None) = self.pending.get(self.first) {
            self.first += 1;
        }
        if self.done.is_empty()
            && let Some(Some(future)) = self.pending.get(self.first)
            && future.cell().forked()
        {
            self.done.push_back(self.first);
        }
    }
}

impl<T> Drop for CompletionSet<T> {
    fn drop(&mut self) {
        for future in self.pending.iter().flatten() {
            future.cell().report_no_more_to(&self.queue);
        }
    }
}
