//! A task for each item of an input, lazily.
//!
//! ```text
//!  input ─► make ─► encode into the open chunk ─(full, or nothing more now)─► Executor::submit_chunk ─► pool
//!                                                                                                    │
//!  next ◄─ decode ◄─ ready ◄───────── Feed: in order of the input, or as it comes ◄──────────────────┘
//! ```
//!
//! Items that are short travel in chunks, so that what a task costs beside its call is shared. A chunk is only how they
//! travel: each item is begun, ends and is blamed by itself, and has an id of its own.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use futures::Stream;

use super::{Executor, RawChunk};
use crate::{
    error::{BrokenCause, Phase, TaskError},
    future::{
        decode,
        feed::{Feed, Numbered},
        timer::Timer,
    },
    pool::ChunkCall,
    task::encode::encode,
    task::{Task, TaskArgs, TaskOptions},
    transport::board::ITEMS_MAX,
    wire::{
        buffer::{Buffer, Contents},
        frame::chunk_of,
    },
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
    chunk_size: Option<usize>,
    buffer_size: Option<usize>,
    timeout: Option<Duration>,
    /// Set by the first `next`.
    deadline: Option<Instant>,
    over: bool,
    /// Made by the first `next`.
    feed: Option<Arc<Feed>>,
    /// What came and is to be yielded next.
    ready: VecDeque<Numbered>,
    /// Items taken from the input, and items yielded.
    taken: u64,
    yielded: u64,
    /// Which item the result is of that was yielded last; of an error of the whole map, the number of items taken. Not yielded
    /// together with the result: moving the pair costs as much as decoding a small one.
    number: u64,
    /// How many items travel together at the moment.
    together: usize,
    open: OpenChunk,
    marker: std::marker::PhantomData<fn() -> (F, A)>,
}

/// Items that are encoded and not submitted yet.
struct OpenChunk {
    /// Where each item's arguments end.
    ends: Vec<u32>,
    bytes: Buffer,
}

/// The result that was waited for has not come.
#[derive(Debug)]
pub(crate) struct NotInTime;

/// Look-ahead when none is asked for: enough for workers never to wait for the caller, little enough to hold.
const BUFFER_PER_WORKER: usize = 32;
/// And while items travel in chunks: one that a worker is at, one that waits there, one on each of the two ways.
const CHUNKS_PER_WORKER: usize = 4;
/// A chunk is to take about this long. Longer: results come in bursts, and a worker that is idle at the end has to wait
/// for its half. Shorter: less is shared.
const CHUNK_TIME: Duration = Duration::from_micros(100);
const CHUNK_ITEMS_MAX: usize = 512;
/// A chunk fits into one message of any transport.
const CHUNK_BYTES_MAX: usize = 16 * 1024;

impl<F: TaskArgs<A>, A, I, M> Map<F, A, I, M> {
    pub(crate) fn new(executor: Box<dyn Executor>, make: M, input: I) -> Self {
        Map {
            open: OpenChunk { ends: Vec::new(), bytes: executor.buffer() },
            executor,
            make,
            input: Some(input),
            unordered: false,
            chunk_size: None,
            buffer_size: None,
            timeout: None,
            deadline: None,
            over: false,
            feed: None,
            ready: VecDeque::new(),
            taken: 0,
            yielded: 0,
            number: 0,
            together: 1,
            marker: std::marker::PhantomData,
        }
    }

    /// Results come as they are done, not in the order of the items.
    pub fn unordered(mut self) -> Self {
        self.unordered = true;
        self
    }

    /// Items that go to one worker together; by default as many as should take 100 µs, judged by how long calls of this
    /// function took so far, so one at a time where that is longer.
    ///
    /// A chunk is only a framing: each item keeps its own result, time limit and blame. When a worker dies in the middle
    /// of a chunk, the items behind go elsewhere; an idle worker takes over half of what another has not begun.
    ///
    /// 0 makes the map yield one [`TaskError::Invalid`].
    pub fn chunk_size(mut self, items: usize) -> Self {
        self.chunk_size = Some(items);
        self
    }

    /// At most this many items are submitted and not yet yielded; by default 32 or four chunks for each worker,
    /// whichever is more.
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

    /// Each result with the index of its item in the input: what [`unordered`](Self::unordered) does not tell by itself.
    ///
    /// An error of the map as a whole (its time limit, an option that makes no sense, a fork of the process) has an index that no
    /// item has: the number of items that were taken from the input.
    ///
    /// ```
    /// use executor::prelude::*;
    ///
    /// #[task]
    /// fn word_count(line: &str) -> usize { line.split(' ').count() }
    ///
    /// #[executor::main]
    /// fn main() -> Result<(), TaskError> {
    ///     let pool = ProcessPoolExecutor::builder().max_workers(2).build().unwrap();
    ///     let lines = ["to be", "or", "not to be"];
    ///     for (index, count) in pool.map(word_count::task, lines).unordered().with_index() {
    ///         assert_eq!(count?, word_count(lines[index]));
    ///     }
    ///     Ok(())
    /// }
    /// ```
    pub fn with_index(self) -> MapWithIndex<F, A, I, M> {
        MapWithIndex { map: self }
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
            let for_each = BUFFER_PER_WORKER.max(self.together.saturating_mul(CHUNKS_PER_WORKER));
            self.executor.max_workers().saturating_mul(for_each)
        })
    }

    /// How many items to send together from now on.
    fn choose_together(&mut self) {
        self.together = self.chunk_size.unwrap_or_else(|| {
            let Some(estimate) = self.executor.estimate(F::entry()) else { return 1 };
            let items = (CHUNK_TIME.as_nanos() / estimate.as_nanos().max(1)) as usize;
            // A buffer that is asked for is shared by all workers.
            let share = self.buffer_size.map(|buffer| buffer / (2 * self.executor.max_workers()));
            items.min(share.unwrap_or(CHUNK_ITEMS_MAX)).clamp(1, CHUNK_ITEMS_MAX)
        });
    }

    fn pending(&self) -> usize {
        (self.taken - self.yielded) as usize
    }

    /// The first step of the first `next`.
    fn start(&mut self) -> Result<(), TaskError> {
        self.feed = Some(Feed::new(self.unordered));
        self.deadline = self.timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        if self.chunk_size == Some(0) {
            return Err(TaskError::invalid("a map's chunk_size must be above 0"));
        }
        if self.buffer_size == Some(0) {
            return Err(TaskError::invalid("a map's buffer_size must be above 0"));
        }
        Ok(())
    }

    /// Takes nothing more from the input.
    pub(crate) fn close_input(&mut self) {
        self.input = None;
    }

    fn end(&mut self) {
        self.over = true;
        self.input = None;
        self.open.ends = Vec::new();
        self.open.bytes = Buffer::new();
        if let Some(feed) = self.feed.take() {
            feed.cancel();
        }
    }

    /// Submits the open chunk.
    fn submit_chunk(&mut self, feed: &Arc<Feed>) {
        let OpenChunk { ends, bytes } = &mut self.open;
        let count = ends.len() as u32;
        let arguments = match count {
            0 => return,
            1 => bytes.bytes().into(),
            _ => chunk_of(ends, bytes.bytes()).into(),
        };
        ends.clear();
        bytes.clear();
        self.executor.submit_chunk(RawChunk(ChunkCall {
            entry: F::entry(),
            arguments,
            count,
            options: TaskOptions::default(),
            feed: Arc::clone(feed),
            number: self.taken - u64::from(count),
        }));
    }

    /// What is to be yielded without waiting.
    fn next_ready(&mut self) -> Option<Result<F::Output, TaskError>> {
        let outcome = match self.ready.pop_front() {
            Some((number, outcome)) => {
                self.number = number;
                outcome
            }
            None if self.pending() > 0 && self.feed.as_ref().is_some_and(|feed| feed.forked()) => {
                // Of no item: which of those that are left it would have been is not known here.
                self.number = self.taken;
                Err(TaskError::Broken(BrokenCause::Forked))
            }
            None => return None,
        };
        self.yielded += 1;
        Some(decode::<F>(outcome))
    }

    fn is_late(&self) -> bool {
        self.deadline.is_some_and(|deadline| deadline <= Instant::now())
    }

    /// The last error: of the map and not of an item.
    fn fail(&mut self, error: TaskError) -> Option<Result<F::Output, TaskError>> {
        self.end();
        self.number = self.taken;
        Some(Err(error))
    }

    fn time_out(&mut self) -> Option<Result<F::Output, TaskError>> {
        let limit = self.timeout.unwrap_or_default();
        self.fail(TaskError::timed_out(limit, Phase::Map).of_task(F::NAME))
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
        // With less room than a chunk, wait until there is more: a chunk that is handed over item by item is none.
        let room = |map: &Self| {
            let buffer = map.buffer();
            let room = buffer.saturating_sub(map.pending());
            if room < map.together.min(buffer) { 0 } else { room }
        };
        if self.input.is_none() || room(self) == 0 {
            return;
        }
        let Some(feed) = self.feed.clone() else { return };
        self.choose_together();
        for _ in 0..room(self) {
            // Its panic leaves the open chunk as it is: it goes out with the next items.
            let Some(item) = self.input.as_mut().and_then(Iterator::next) else {
                self.input = None;
                break;
            };
            let task = (self.make)(item);
            self.take(&feed, task);
            let items = self.together.min(ITEMS_MAX as usize);
            if self.open.ends.len() >= items || self.open.bytes.len() >= CHUNK_BYTES_MAX {
                self.submit_chunk(&feed);
            }
        }
        self.submit_chunk(&feed);
    }

    /// The next result, if it comes before `until`.
    pub(crate) fn next_until(
        &mut self,
        until: Option<Instant>,
    ) -> Result<Option<Result<F::Output, TaskError>>, NotInTime> {
        if self.over {
            return Ok(None);
        }
        if self.feed.is_none()
            && let Err(error) = self.start()
        {
            return Ok(self.fail(error));
        }
        loop {
            // Also while results are ready: a slow reader of an endless input comes to an end.
            if self.is_late() {
                return Ok(self.time_out());
            }
            self.fill();
            if let Some(next) = self.next_ready() {
                return Ok(Some(next));
            }
            if self.pending() == 0 {
                self.end();
                return Ok(None);
            }
            let feed = self.feed.clone().expect("made above");
            let deadline = self.deadline.into_iter().chain(until).min();
            // While items travel in chunks, many come together: the reader hands them over in heaps.
            if !feed.wait(&mut self.ready, deadline, self.together == 1) {
                return match self.is_late() {
                    true => Ok(self.time_out()),
                    false => Err(NotInTime),
                };
            }
        }
    }

    /// Submits all items, now. Where their results will come, and how many.
    pub(crate) fn submit_all(mut self) -> Result<(Arc<Feed>, usize), TaskError> {
        self.buffer_size = Some(usize::MAX);
        self.start()?;
        self.fill();
        // Its own end would withdraw them.
        let feed = self.feed.take().expect("made by `start`");
        Ok((feed, self.taken as usize))
    }

    /// Adds a task to the open chunk, or submits it alone.
    fn take(&mut self, feed: &Arc<Feed>, task: Task<F, A>) {
        let (args, options) = task.into_parts();
        let plain = options.timeout.is_none() && options.name.is_none();
        if !plain {
            self.submit_chunk(feed);
        }
        self.open.bytes.begin();
        let encoded = encode::<F, A>(args, &options, &mut self.open.bytes);
        let number = self.taken;
        let attachments = match encoded {
            Ok(attachments) => attachments,
            Err(error) => {
                // A chunk's items are consecutive.
                self.submit_chunk(feed);
                self.taken += 1;
                feed.deliver_error(number, error);
                return;
            }
        };
        let small =
            matches!(self.open.bytes.contents(), Contents::Bytes(bytes) if bytes.len() <= CHUNK_BYTES_MAX);
        if plain && small && attachments.is_empty() {
            self.taken += 1;
            self.open.ends.push(self.open.bytes.len() as u32);
            return;
        }
        // What is large, or has descriptors with it, travels by itself.
        let arguments = self.open.bytes.take(attachments);
        self.submit_chunk(feed);
        self.taken += 1;
        self.executor.submit_chunk(RawChunk(ChunkCall {
            entry: F::entry(),
            arguments,
            count: 1,
            options,
            feed: Arc::clone(feed),
            number,
        }));
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
        self.next_until(None).unwrap_or_default()
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

/// Made by [`Map::with_index`].
#[must_use = "a map does nothing until it is iterated"]
pub struct MapWithIndex<F: TaskArgs<A>, A, I, M> {
    map: Map<F, A, I, M>,
}

impl<F: TaskArgs<A>, A, I, M> MapWithIndex<F, A, I, M> {
    /// The same as a [`Stream`], for async code.
    pub fn stream(self) -> MapStreamWithIndex<F, A, I, M> {
        MapStreamWithIndex { stream: self.map.stream() }
    }
}

impl<F, A, I, M> Iterator for MapWithIndex<F, A, I, M>
where
    F: TaskArgs<A>,
    I: Iterator,
    M: FnMut(I::Item) -> Task<F, A>,
{
    type Item = (usize, Result<F::Output, TaskError>);

    fn next(&mut self) -> Option<Self::Item> {
        let result = self.map.next()?;
        Some((self.map.number as usize, result))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.map.size_hint()
    }
}

/// Made by [`MapWithIndex::stream`].
#[must_use = "streams do nothing unless polled"]
pub struct MapStreamWithIndex<F: TaskArgs<A>, A, I, M> {
    stream: MapStream<F, A, I, M>,
}

impl<F, A, I, M> Stream for MapStreamWithIndex<F, A, I, M>
where
    F: TaskArgs<A>,
    I: Iterator,
    M: FnMut(I::Item) -> Task<F, A>,
{
    type Item = (usize, Result<F::Output, TaskError>);

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = Pin::new(&mut self.stream).poll_next(cx);
        next.map(|next| next.map(|result| (self.stream.map.number as usize, result)))
    }
}

/// Made by [`Map::stream`].
#[must_use = "streams do nothing unless polled"]
pub struct MapStream<F: TaskArgs<A>, A, I, M> {
    map: Map<F, A, I, M>,
    timer: Option<Timer>,
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
        if map.feed.is_none()
            && let Err(error) = map.start()
        {
            return Poll::Ready(map.fail(error));
        }
        loop {
            if map.is_late() {
                return Poll::Ready(map.time_out());
            }
            map.fill();
            if let Some(next) = map.next_ready() {
                return Poll::Ready(Some(next));
            }
            if map.pending() == 0 {
                map.end();
                return Poll::Ready(None);
            }
            let feed = map.feed.clone().expect("made above");
            if feed.poll(&mut map.ready, cx.waker()) {
                continue;
            }
            if let Some(deadline) = map.deadline
                && timer.get_or_insert_with(|| Timer::new(deadline)).poll(cx.waker()).is_ready()
            {
                return Poll::Ready(map.time_out());
            }
            return Poll::Pending;
        }
    }
}
