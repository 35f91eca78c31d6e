//! A task for each item of an input, lazily.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::atomic::{AtomicU64, Ordering},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use futures::Stream;

use super::{Executor, submit};
use crate::{
    error::{Phase, TaskError},
    future::{CompletionSet, TaskFuture},
    task::{Task, TaskArgs},
};

/// Made by [`map`](crate::ProcessPoolExecutor::map): an iterator over the results, one `Result` for each item.
///
/// Options chain before the first `next`; [`stream`](Self::stream) turns it into a [`Stream`]. Dropping it cancels
/// what has not begun.
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
///     // An endless input: at most 8 items are on their way.
///     let some: Vec<u64> = pool.map(square::task, 0..).buffer_size(8).take(3).map(Result::unwrap).collect();
///     assert_eq!(some, [0, 1, 4]);
///
///     let mut any_order: Vec<u64> = pool.map(square::task, 0..100).unordered().map(Result::unwrap).collect();
///     any_order.sort();
///     assert_eq!(any_order[99], 99 * 99);
/// }
/// ```
#[must_use = "a map does nothing until it is iterated"]
pub struct Map<F: TaskArgs<A>, A, I, M> {
    executor: Box<dyn Executor>,
    make: M,
    /// `None` once it has ended.
    input: Option<I>,
    unordered: bool,
    chunk_size: usize,
    buffer_size: Option<usize>,
    timeout: Option<Duration>,
    /// Set by the first `next`.
    deadline: Option<Instant>,
    started: bool,
    over: bool,
    in_order: VecDeque<TaskFuture<F::Output>>,
    as_done: CompletionSet<F::Output>,
    chunk: u64,
    left_in_chunk: usize,
    marker: std::marker::PhantomData<fn() -> A>,
}

static NEXT_CHUNK: AtomicU64 = AtomicU64::new(1);
/// Look-ahead when none is asked for: enough for workers never to wait for the caller, little enough to hold.
const BUFFER_PER_WORKER: usize = 32;

impl<F: TaskArgs<A>, A, I, M> Map<F, A, I, M> {
    pub(crate) fn new(executor: Box<dyn Executor>, make: M, input: I) -> Self {
        Map {
            executor,
            make,
            input: Some(input),
            unordered: false,
            chunk_size: 1,
            buffer_size: None,
            timeout: None,
            deadline: None,
            started: false,
            over: false,
            in_order: VecDeque::new(),
            as_done: CompletionSet::default(),
            chunk: 0,
            left_in_chunk: 0,
            marker: std::marker::PhantomData,
        }
    }

    /// Results come as they are done, not in the order of the items.
    pub fn unordered(mut self) -> Self {
        self.unordered = true;
        self
    }

    /// Items that go to one worker together. A chunk is only a framing: each item keeps its own result, time limit and
    /// blame, and when a worker dies in the middle of a chunk, the items behind go elsewhere.
    ///
    /// 0 makes the map yield one [`TaskError::Invalid`].
    pub fn chunk_size(mut self, items: usize) -> Self {
        self.chunk_size = items;
        self
    }

    /// At most this many items are submitted and not yet yielded; by default 32 for each worker, and two chunks.
    ///
    /// 0 makes the map yield one [`TaskError::Invalid`].
    pub fn buffer_size(mut self, items: usize) -> Self {
        self.buffer_size = Some(items);
        self
    }

    /// Limits the whole map, counted from the first `next`. When the time has passed, one [`TaskError::TimedOut`]
    /// comes, then nothing; what has not begun is cancelled.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// The same as a [`Stream`], for async code.
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
    ///     let squares = pool.map(square::task, 0..3).stream().map(Result::unwrap);
    ///     assert_eq!(futures::executor::block_on(squares.collect::<Vec<_>>()), [0, 1, 4]);
    /// }
    /// ```
    pub fn stream(self) -> MapStream<F, A, I, M> {
        MapStream { map: self, timer: None }
    }

    fn buffer(&self) -> usize {
        self.buffer_size.unwrap_or_else(|| {
            let for_workers = self.executor.max_workers().saturating_mul(BUFFER_PER_WORKER);
            for_workers.max(self.chunk_size.saturating_mul(2))
        })
    }

    fn pending(&self) -> usize {
        self.in_order.len() + self.as_done.len()
    }

    /// The first step of the first `next`.
    fn start(&mut self) -> Result<(), TaskError> {
        self.started = true;
        self.deadline = self.timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        if self.chunk_size == 0 {
            return Err(TaskError::invalid("a map's chunk_size must be above 0"));
        }
        if self.buffer_size == Some(0) {
            return Err(TaskError::invalid("a map's buffer_size must be above 0"));
        }
        Ok(())
    }

    fn end(&mut self) {
        self.over = true;
        self.input = None;
        // The last first: cancelling the first would let the next begin.
        for future in self.in_order.drain(..).rev() {
            future.cancel();
        }
        self.as_done.cancel_all();
    }

    fn is_late(&self) -> bool {
        self.deadline.is_some_and(|deadline| deadline <= Instant::now())
    }

    fn timed_out(&mut self) -> TaskError {
        self.end();
        TaskError::TimedOut { limit: self.timeout.unwrap_or_default(), phase: Phase::Map }
    }
}

impl<F, A, I, M> Map<F, A, I, M>
where
    F: TaskArgs<A>,
    I: Iterator,
    M: FnMut(I::Item) -> Task<F, A>,
{
    /// Submits items until the buffer is full or the input has ended.
    fn fill(&mut self) {
        let buffer = self.buffer();
        let room = buffer.saturating_sub(self.pending());
        // With less room than a chunk, wait until there is more: a chunk that is handed over item by item is none.
        if room < self.chunk_size.min(buffer) {
            return;
        }
        for _ in 0..room {
            let Some(item) = self.input.as_mut().and_then(Iterator::next) else {
                self.input = None;
                return;
            };
            if self.left_in_chunk == 0 && self.chunk_size > 1 {
                self.chunk = NEXT_CHUNK.fetch_add(1, Ordering::Relaxed);
                self.left_in_chunk = self.chunk_size;
            }
            self.left_in_chunk = self.left_in_chunk.saturating_sub(1);
            let future = submit(&*self.executor, (self.make)(item));
            if self.unordered {
                self.as_done.push(future);
            } else {
                self.in_order.push_back(future);
            }
        }
    }
}

impl<F, A, I, M> Iterator for Map<F, A, I, M>
where
    F: TaskArgs<A>,
    I: Iterator,
    M: FnMut(I::Item) -> Task<F, A>,
{
    type Item = Result<F::Output, TaskError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.over {
            return None;
        }
        if !self.started
            && let Err(error) = self.start()
        {
            self.end();
            return Some(Err(error));
        }
        // Also while results are ready: a slow reader of an endless input comes to an end.
        if self.is_late() {
            return Some(Err(self.timed_out()));
        }
        self.fill();
        if self.pending() == 0 {
            self.over = true;
            return None;
        }
        let deadline = self.deadline;
        let done = if self.unordered {
            self.as_done.next(deadline)
        } else {
            // Stays in the queue while it is waited for: a time-out must still find it, to cancel it.
            let done = self.in_order.front().is_some_and(|front| front.cell().wait(deadline));
            if done { self.in_order.pop_front() } else { None }
        };
        Some(match done {
            Some(future) => future.result(),
            None => Err(self.timed_out()),
        })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        // A time limit or a bad option may end it early, with an error as one more item.
        let left = self.input.as_ref().map_or(Some(0), |input| input.size_hint().1);
        let high = left.and_then(|left| left.checked_add(self.pending())?.checked_add(1));
        (0, if self.over { Some(0) } else { high })
    }
}

impl<F: TaskArgs<A>, A, I, M> Drop for Map<F, A, I, M> {
    fn drop(&mut self) {
        self.end();
    }
}

/// Made by [`Map::stream`].
#[must_use = "streams do nothing unless polled"]
pub struct MapStream<F: TaskArgs<A>, A, I, M> {
    map: Map<F, A, I, M>,
    timer: Option<crate::future::timer::Timer>,
}

// Nothing in it is ever pinned.
impl<F: TaskArgs<A>, A, I, M> Unpin for MapStream<F, A, I, M> {}

impl<F, A, I, M> Stream for MapStream<F, A, I, M>
where
    F: TaskArgs<A>,
    I: Iterator,
    M: FnMut(I::Item) -> Task<F, A>,
{
    type Item = Result<F::Output, TaskError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let MapStream { map, timer } = self.get_mut();
        if map.over {
            return Poll::Ready(None);
        }
        if !map.started
            && let Err(error) = map.start()
        {
            map.end();
            return Poll::Ready(Some(Err(error)));
        }
        if map.is_late() {
            return Poll::Ready(Some(Err(map.timed_out())));
        }
        map.fill();
        if map.pending() == 0 {
            map.over = true;
            return Poll::Ready(None);
        }
        let polled = if map.unordered {
            map.as_done.poll_next(cx.waker()).map(|future| future.map(TaskFuture::result))
        } else {
            let front = map.in_order.front_mut().expect("something is pending");
            let polled = Pin::new(front).poll(cx).map(Some);
            if polled.is_ready() {
                map.in_order.pop_front();
            }
            polled
        };
        if polled.is_pending()
            && let Some(deadline) = map.deadline
        {
            let timer = timer.get_or_insert_with(|| crate::future::timer::Timer::new(deadline));
            if timer.poll(cx.waker()).is_ready() {
                return Poll::Ready(Some(Err(map.timed_out())));
            }
        }
        polled
    }
}
