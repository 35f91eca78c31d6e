//! A lazy map: it submits a task for each item of an input, and yields the results.
//!
//! ```text
//!  input ─► make ─► encode into the open chunk ─(full, or no more items now)─► submit_run ─► pool
//!                                                                                             │
//!  next ◄─ decode ◄─ ready ◄── MapResults: in order of the input, or as results come ◄────────┘
//! ```
//!
//! Items with a short duration are sent in chunks, so that several calls share the cost of a task.
//! A chunk is only a way to send items. Each item begins, ends and fails individually, and has its
//! own id.

mod item;
mod stream;
mod with_index;

use std::{
    collections::VecDeque,
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

pub use item::MapTask;
pub use stream::MapStream;
pub use with_index::{MapStreamWithIndex, MapWithIndex};

use super::Executor;
use crate::{
    error::{BrokenCause, Phase, TaskError},
    future::{
        decode, decode_bytes,
        map_results::{MapResults, Numbered, Run},
    },
    pool::{Chunk, pressure::Place},
    task::encode::encode,
    task::{Task, TaskArgs, TaskOptions},
    transport::board::ITEMS_MAX,
    wire::{
        buffer::{Buffer, Contents},
        frame::chunk_of,
        payload::Payload,
    },
};

/// An iterator over the results of a [`map`](crate::ProcessPoolExecutor::map), one `Result` for
/// each item.
///
/// Set options before the first `next`. [`stream`](Self::stream) turns the iterator into a
/// [`Stream`](futures::Stream). Dropping it cancels the tasks that have not begun.
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
///     // An endless input: at most 8 items are submitted and not yet yielded.
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
    /// The input, or `None` once it has ended.
    input: Option<I>,
    unordered: bool,
    /// The index of the worker for the next chunk, in round-robin order.
    next_worker: Option<u16>,
    chunk_size: Option<usize>,
    buffer_size: Option<usize>,
    timeout: Option<Duration>,
    /// Set by the first `next`, if there is a time limit.
    deadline: Option<Instant>,
    /// Whether the map has ended: it yields nothing more.
    over: bool,
    /// Receives the results. Made by the first `next`.
    results: Option<Arc<MapResults>>,
    /// Results that were received and are yielded next.
    ready: VecDeque<Numbered>,
    /// Number of items taken from the input.
    taken: u64,
    /// Number of results yielded.
    yielded: u64,
    /// Index of the item whose result was yielded last. For an error of the whole map, it is the
    /// number of items taken. It is not returned together with the result, because moving such a
    /// pair costs as much as decoding a small result.
    number: u64,
    /// Number of items that are currently sent together.
    together: usize,
    /// While more items than this are pending, results that are ready are yielded without a look at
    /// the input and the time limit. `usize::MAX` with a time limit, and before and after the map.
    enough: usize,
    /// Places for items that are about to be submitted, if the executor limits its pending tasks.
    places: Option<Place>,
    /// Whether items could not be submitted because the executor had no room.
    lacks_room: bool,
    /// The chunk that is being filled.
    open: OpenChunk,
    marker: std::marker::PhantomData<fn() -> (F, A)>,
}

impl<F: TaskArgs<A>, A, I, M> fmt::Debug for Map<F, A, I, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Map")
            .field("task", &F::NAME)
            .field("unordered", &self.unordered)
            .field("taken", &self.taken)
            .field("yielded", &self.yielded)
            .field("over", &self.over)
            .finish_non_exhaustive()
    }
}

/// A chunk of items that are encoded and not submitted yet.
struct OpenChunk {
    /// For each item, the position at which its arguments end.
    ends: Vec<u32>,
    bytes: Buffer,
}

/// The error for a result that has not come before the deadline.
#[derive(Debug)]
pub(crate) struct NotInTime;

/// Default number of items for each worker that are submitted and not yet yielded. It is enough for
/// workers never to wait for the caller, and low enough to keep the items in memory.
const BUFFER_PER_WORKER: usize = 32;
/// Bytes of arguments for each worker that may be pending before a map submits no more, if its
/// [`buffer_size`](Map::buffer_size) is not set. The arguments of a worker's next tasks have to be
/// there when it needs them. A higher value only takes more memory. A lower value makes a worker
/// wait for the caller where arguments are large and calls short.
const BYTES_PER_WORKER: u64 = 4 << 20;
/// Number of items for each worker that are submitted however large they are: one that it runs, and
/// the next one.
const LARGE_PER_WORKER: usize = 2;
/// Default number of chunks for each worker that are submitted and not yet yielded: one that the
/// worker runs, one that is queued at the worker, one on the way to the worker, and one on the way
/// back.
const CHUNKS_PER_WORKER: usize = 4;
/// Time that the calls of a chunk are to take, approximately. A higher value makes results arrive
/// in bursts, and makes a worker that has become idle at the end wait longer for the half of a
/// chunk that it takes over. A lower value makes fewer calls share the cost of a chunk.
const CHUNK_TIME: Duration = Duration::from_micros(100);
/// Maximum number of items in a chunk whose size is chosen automatically. A higher value means that
/// a map takes more of its input ahead. A lower value cuts chunks of the shortest calls, which take
/// about 60 ns, far below [`CHUNK_TIME`].
const CHUNK_ITEMS_MAX: usize = 2048;
/// A chunk is submitted when its arguments have reached this length, so that it fits into one
/// message of every transport. An item with longer arguments is sent alone.
const CHUNK_BYTES_MAX: usize = 16 * 1024;

impl<F: TaskArgs<A>, A, I, M> Map<F, A, I, M> {
    pub(crate) fn new(executor: Box<dyn Executor>, make: M, input: I) -> Self {
        Map {
            open: OpenChunk { ends: Vec::new(), bytes: executor.buffer() },
            executor,
            make,
            input: Some(input),
            unordered: false,
            next_worker: None,
            chunk_size: None,
            buffer_size: None,
            timeout: None,
            deadline: None,
            over: false,
            results: None,
            ready: VecDeque::new(),
            taken: 0,
            yielded: 0,
            number: 0,
            together: 1,
            enough: usize::MAX,
            places: None,
            lacks_room: false,
            marker: std::marker::PhantomData,
        }
    }

    /// Yields results in the order in which they arrive, not in the order of the items.
    pub fn unordered(mut self) -> Self {
        self.unordered = true;
        self
    }

    /// Gives the chunks to the workers in turn: chunk `i` runs in the worker with
    /// [index](crate::worker_index) `i` modulo
    /// [`max_workers`](crate::ProcessPoolExecutor::max_workers), in every map anew. So with the
    /// same input and a [`chunk_size`](Self::chunk_size), each worker gets the same items each
    /// time, and may keep what it has loaded for them.
    ///
    /// The price is that no other worker takes a chunk over, however long its own worker is busy.
    /// If that worker dies, the chunk waits for the one that replaces it. Priorities of tasks count
    /// among the chunks of one worker. By default a chunk goes to whichever worker is free.
    ///
    /// With [`Isolation::PerTask`](crate::Isolation::PerTask) no worker gets a second item, so the
    /// map yields one [`TaskError::Invalid`].
    ///
    /// ```
    /// use executor::prelude::*;
    ///
    /// #[task]
    /// fn worker(_shard: u32) -> Option<usize> { executor::worker_index() }
    ///
    /// #[executor::main]
    /// fn main() {
    ///     let pool = ProcessPoolExecutor::builder().max_workers(2).build().unwrap();
    ///     for _ in 0..2 {
    ///         let map = pool.map(worker::task, 0..6).round_robin().chunk_size(1);
    ///         let workers: Vec<_> = map.map(|index| index.unwrap().unwrap()).collect();
    ///         assert_eq!(workers, [0, 1, 0, 1, 0, 1]);
    ///     }
    /// }
    /// ```
    pub fn round_robin(mut self) -> Self {
        self.next_worker = Some(0);
        self
    }

    /// Sets the number of items that are sent to one worker together. By default, a chunk has as
    /// many items as should take 100 µs, judged by the durations of earlier calls of this function.
    /// If a call takes longer than this, items are sent one at a time.
    ///
    /// Chunks affect only how items are sent. Each item keeps its own result, its own time limit,
    /// and its own failure. If a worker dies in the middle of a chunk, the remaining items run
    /// elsewhere. An idle worker takes over half of the items that another worker has not begun.
    ///
    /// Tasks with options of their own are sent one at a time in any case, and so are all tasks of
    /// an executor with a [`default_timeout`](crate::ProcessPoolBuilder::default_timeout) or a
    /// [`default_queue_timeout`](crate::ProcessPoolBuilder::default_queue_timeout).
    ///
    /// With 0, the map yields one [`TaskError::Invalid`].
    pub fn chunk_size(mut self, items: usize) -> Self {
        self.chunk_size = Some(items);
        self
    }

    /// Sends the items in so many chunks of the same size, as far as it goes: the last one may be
    /// smaller, and a chunk has 16 KiB of arguments at most. It sets the
    /// [`chunk_size`](Self::chunk_size), so the later of the two calls counts. With as many splits
    /// as there are workers, and [`round_robin`](Self::round_robin), each worker gets one part of
    /// the input.
    ///
    /// With 0, the map yields one [`TaskError::Invalid`].
    ///
    /// ```
    /// # use executor::prelude::*;
    /// #[task]
    /// fn worker(_row: u32) -> Option<usize> { executor::worker_index() }
    ///
    /// #[executor::main]
    /// fn main() {
    ///     let pool = ProcessPoolExecutor::builder().max_workers(2).build().unwrap();
    ///     let map = pool.map(worker::task, 0..7).splits(2).round_robin();
    ///     let workers: Vec<_> = map.map(|index| index.unwrap().unwrap()).collect();
    ///     assert_eq!(workers, [0, 0, 0, 0, 1, 1, 1]);
    /// }
    /// ```
    pub fn splits(mut self, splits: usize) -> Self
    where
        I: ExactSizeIterator,
    {
        let items = self.input.as_ref().map_or(0, ExactSizeIterator::len);
        self.chunk_size = Some(if splits == 0 { 0 } else { items.div_ceil(splits).max(1) });
        self
    }

    /// Sets the maximum number of items that are submitted and not yet yielded. The default is 32
    /// items or four chunks for each worker, whichever is more. But if the arguments of pending
    /// items have more than 4 MiB for each worker, it is two items for each worker, so that items
    /// of any size need little memory. A number that is set here holds for items of any size.
    ///
    /// It is also the map's share of the executor. Items wait in one queue with all other tasks,
    /// and a map has at most this many there. So several maps take turns: as long as each of them
    /// is read, they get workers in proportion to their buffers. A map that comes later waits for
    /// what the others have submitted, and not for the rest of their inputs. With
    /// [`priority`](crate::Task::priority), the items of one map go before those of others.
    ///
    /// With 0, the map yields one [`TaskError::Invalid`].
    pub fn buffer_size(mut self, items: usize) -> Self {
        self.buffer_size = Some(items);
        self
    }

    /// Sets a time limit for the whole map, counted from the first `next`. When the time has
    /// passed, the map yields one [`TaskError::TimedOut`] and ends, and the tasks that have not
    /// begun are cancelled.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Yields each result with the index of its item in the input, which
    /// [`unordered`](Self::unordered) alone does not tell.
    ///
    /// An error of the map as a whole has an index that no item has: the number of items taken from
    /// the input. Such errors are the time limit, an invalid option, and a fork of the process.
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
        MapWithIndex::new(self)
    }

    /// Turns the iterator into a [`Stream`](futures::Stream), for async code.
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
        MapStream::new(self)
    }

    /// Returns the maximum number of items that are submitted and not yet yielded.
    fn buffer(&self) -> usize {
        self.most_pending().unwrap_or_else(|| {
            let for_each = BUFFER_PER_WORKER.max(self.together.saturating_mul(CHUNKS_PER_WORKER));
            self.executor.max_workers().saturating_mul(for_each)
        })
    }

    /// Returns how many items may be submitted and not yet yielded, if the user has set a limit for
    /// the map or for the executor.
    fn most_pending(&self) -> Option<usize> {
        let of_executor = self.executor.pressure().and_then(|pressure| pressure.tasks_max());
        self.buffer_size.into_iter().chain(of_executor).min()
    }

    /// Chooses how many items are sent together from now on.
    fn choose_together(&mut self) {
        if self.executor.takes_single_calls() {
            self.together = 1;
            return;
        }
        self.together = self.chunk_size.unwrap_or_else(|| {
            let Some(estimate) = self.executor.estimate(F::entry()) else { return 1 };
            let items = (CHUNK_TIME.as_nanos() / estimate.as_nanos().max(1)) as usize;
            // The workers share what the user has set. A chunk takes at most half of a worker's
            // share.
            let share = self.most_pending().map(|most| most / (2 * self.executor.max_workers()));
            items.min(share.unwrap_or(CHUNK_ITEMS_MAX)).clamp(1, CHUNK_ITEMS_MAX)
        });
    }

    /// Chooses `enough`: with more pending items, there is no space for another chunk.
    fn choose_enough(&mut self) {
        let buffer = self.buffer();
        self.enough = match (self.deadline, &self.input) {
            (Some(_), _) => usize::MAX,
            (None, None) => 0,
            (None, Some(_)) => buffer - self.together.min(buffer),
        };
    }

    /// Returns the number of items that were taken from the input and not yet yielded.
    fn pending(&self) -> usize {
        (self.taken - self.yielded) as usize
    }

    /// Prepares the map at the first `next`. Returns an error if an option is invalid.
    fn start(&mut self) -> Result<(), TaskError> {
        self.results = Some(MapResults::new(self.unordered));
        self.deadline = self.timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        if self.chunk_size == Some(0) {
            return Err(TaskError::invalid(
                "a map's chunk_size, or its number of splits, must be above 0",
            ));
        }
        if self.buffer_size == Some(0) {
            return Err(TaskError::invalid("a map's buffer_size must be above 0"));
        }
        if self.next_worker.is_some() && self.executor.is_isolated() {
            return Err(TaskError::invalid("round_robin makes no sense with Isolation::PerTask"));
        }
        Ok(())
    }

    /// Drops the input, so that no more items are taken from it.
    pub(crate) fn close_input(&mut self) {
        self.input = None;
    }

    /// Ends the map, and cancels the tasks that have not begun.
    fn end(&mut self) {
        self.over = true;
        self.enough = usize::MAX;
        self.input = None;
        self.places = None;
        self.open.ends = Vec::new();
        self.open.bytes = Buffer::new();
        if let Some(results) = self.results.take() {
            results.cancel();
        }
    }

    /// Submits the open chunk, if there is an item in it.
    fn submit_chunk(&mut self, results: &Arc<MapResults>) {
        let OpenChunk { ends, bytes } = &mut self.open;
        let count = ends.len() as u32;
        let arguments = match count {
            0 => return,
            1 => bytes.bytes().into(),
            _ => chunk_of(ends, bytes.bytes()).into(),
        };
        ends.clear();
        bytes.clear();
        self.send(results, self.taken - u64::from(count), arguments, count, TaskOptions::default());
    }

    /// Submits so many items, beginning with the one of this number.
    fn send(
        &mut self,
        results: &Arc<MapResults>,
        number: u64,
        arguments: Payload,
        count: u32,
        mut options: TaskOptions,
    ) {
        // Nobody asks for the usage of an item. It is logged, with the time in the queue.
        options.begin_usage();
        let worker = self.next_worker;
        if let Some(next) = &mut self.next_worker {
            // With more workers than numbers, the last workers get none.
            let workers = u16::try_from(self.executor.max_workers()).unwrap_or(u16::MAX);
            *next = (*next + 1) % workers;
        }
        let control = || self.executor.control().0;
        let chunk = Chunk::of_map(
            F::entry(),
            arguments,
            count,
            options,
            (results, number),
            worker,
            control,
        );
        let place = self.places.as_mut().map(|places| places.split(count));
        self.executor.submit_chunk(chunk.at(place));
    }

    /// Returns a result that can be yielded without waiting.
    fn next_ready(&mut self) -> Option<Result<F::Output, TaskError>> {
        // The values of a run are decoded from where they are, and the run is dropped with the
        // last.
        while let Some((number, Run::Values(values))) = self.ready.front_mut() {
            if let Some(value) = values.next() {
                self.number = *number;
                *number += 1;
                self.yielded += 1;
                return Some(decode_bytes::<F>(value));
            }
            self.ready.pop_front();
        }
        let outcome = match self.ready.pop_front() {
            Some((number, Run::One(outcome))) => {
                self.number = number;
                outcome
            }
            _ if self.pending() > 0
                && self.results.as_ref().is_some_and(|results| results.forked()) =>
            {
                // This error belongs to no item: it is not known here which of the remaining items
                // would have been next.
                self.number = self.taken;
                Err(TaskError::Broken(BrokenCause::Forked))
            }
            _ => return None,
        };
        self.yielded += 1;
        Some(decode::<F>(outcome))
    }

    fn is_late(&self) -> bool {
        self.deadline.is_some_and(|deadline| deadline <= Instant::now())
    }

    /// Ends the map with an error of the map as a whole, and returns this error to be yielded.
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

impl<F, A, I, M, T> Map<F, A, I, M>
where
    F: TaskArgs<A>,
    I: Iterator,
    M: FnMut(I::Item) -> T,
    T: MapTask<Function = F, Arguments = A>,
{
    /// Submits items until the buffer is full or the input has ended.
    fn fill(&mut self) {
        // If the buffer has less space left than one chunk, wait until there is more. Otherwise
        // items would be sent one by one, as space for each of them appears, and not in chunks.
        let room = |map: &Self| {
            if map.has_many_bytes() {
                return 0;
            }
            let buffer = map.buffer();
            let room = buffer.saturating_sub(map.pending());
            if room < map.together.min(buffer) { 0 } else { room }
        };
        if self.input.is_none() || room(self) == 0 {
            return self.choose_enough();
        }
        let Some(results) = self.results.clone() else { return };
        self.choose_together();
        let Some(room) = self.take_places(room(self)) else { return self.choose_enough() };
        for _ in 0..room {
            // If the input or `make` panics, the open chunk stays as it is, and is sent with the
            // next items.
            let Some(item) = self.input.as_mut().and_then(Iterator::next) else {
                self.input = None;
                break;
            };
            match (self.make)(item).into_item() {
                Ok(task) => self.take(&results, task),
                Err(error) => self.take_error(&results, error),
            }
            let items = self.together.min(ITEMS_MAX as usize);
            if self.open.ends.len() >= items || self.open.bytes.len() >= CHUNK_BYTES_MAX {
                self.submit_chunk(&results);
            }
            // Something was just sent.
            if self.open.ends.is_empty() && self.is_full_of_bytes() {
                break;
            }
        }
        // Do not keep an unfilled chunk back: the caller is about to wait for results.
        self.submit_chunk(&results);
        // Places of items that were not submitted: the input has ended, or arguments could not be
        // encoded.
        self.places = None;
        self.choose_enough();
    }

    /// Returns whether the pending items have as many bytes as a map without a
    /// [`buffer_size`](Map::buffer_size) may have.
    fn has_many_bytes(&self) -> bool {
        let bytes = self.results.as_ref().map_or(0, |results| results.bytes());
        if bytes < BYTES_PER_WORKER || self.buffer_size.is_some() {
            return false;
        }
        let workers = self.executor.max_workers();
        // Otherwise there might be no result that lets the map go on.
        self.pending() >= workers.saturating_mul(LARGE_PER_WORKER)
            && bytes >= BYTES_PER_WORKER.saturating_mul(workers as u64)
    }

    /// Returns whether the bytes that are pending, in this map or in the executor, leave no room.
    /// Only called while items of the map are pending.
    fn is_full_of_bytes(&self) -> bool {
        // A map that submits all at once has no other time for it.
        self.buffer_size != Some(usize::MAX)
            && (self.has_many_bytes()
                || self.executor.pressure().is_some_and(|pressure| pressure.is_full_of_bytes()))
    }

    /// Takes places for up to `most` items, if the executor limits its pending tasks. Returns for
    /// how many, or `None` if there is no room.
    fn take_places(&mut self, most: usize) -> Option<usize> {
        self.lacks_room = false;
        let Some(pressure) = self.executor.pressure() else { return Some(most) };
        if self.places.is_none() {
            self.places = pressure.try_take(u32::try_from(most).unwrap_or(u32::MAX));
        }
        self.lacks_room = self.places.is_none();
        self.places.as_ref().map(|places| most.min(places.tasks() as usize))
    }

    /// Returns the next result, if it comes before `until`.
    pub(crate) fn next_until(
        &mut self,
        until: Option<Instant>,
    ) -> Result<Option<Result<F::Output, TaskError>>, NotInTime> {
        if self.over {
            return Ok(None);
        }
        if self.results.is_none()
            && let Err(error) = self.start()
        {
            return Ok(self.fail(error));
        }
        loop {
            // Check this even while results are ready. Otherwise a slow reader of an endless input
            // would never reach the time limit.
            if self.is_late() {
                return Ok(self.time_out());
            }
            self.fill();
            if let Some(next) = self.next_ready() {
                return Ok(Some(next));
            }
            let deadline = self.deadline.into_iter().chain(until).min();
            if self.pending() == 0 && self.lacks_room {
                // No result will come that makes room, so wait like everybody else.
                let pressure = self.executor.pressure().expect("it is why there is no room");
                self.places = pressure.wait_until(deadline);
                match self.places {
                    Some(_) => continue,
                    None if self.is_late() => return Ok(self.time_out()),
                    None => return Err(NotInTime),
                }
            }
            if self.pending() == 0 {
                self.end();
                return Ok(None);
            }
            let results = self.results.clone().expect("made above");
            // This thread drains a worker's replies only if items are sent one at a time. The
            // results of chunks arrive in large numbers, and the reader thread delivers them in
            // batches.
            if !results.wait(&mut self.ready, deadline, self.together == 1) {
                return match self.is_late() {
                    true => Ok(self.time_out()),
                    false => Err(NotInTime),
                };
            }
        }
    }

    /// Submits all items at once. Returns what receives their results, and their number.
    pub(crate) fn submit_all(mut self) -> Result<(Arc<MapResults>, usize), TaskError> {
        self.buffer_size = Some(usize::MAX);
        self.start()?;
        self.fill();
        // Take the results out, because dropping the map would cancel the tasks that they wait for.
        let results = self.results.take().expect("made by `start`");
        Ok((results, self.taken as usize))
    }

    /// Delivers an error in the place of an item for which no task can run.
    #[cold]
    fn take_error(&mut self, results: &Arc<MapResults>, error: TaskError) {
        // The items of a chunk have consecutive numbers, and this number is used up by the error.
        // So submit the open chunk before it.
        self.submit_chunk(results);
        let number = self.taken;
        self.taken += 1;
        results.deliver_error(number, error);
    }

    /// Adds a task to the open chunk, or submits it alone.
    fn take(&mut self, results: &Arc<MapResults>, task: Task<F, A>) {
        let plain = task.is_plain();
        let (args, options) = task.into_parts();
        // Nearly all tasks are plain. Options that the compiler knows need not be moved.
        let options = if plain { TaskOptions::default() } else { options };
        // The options apply to a whole chunk, so a task with its own options is sent alone.
        if !plain {
            self.submit_chunk(results);
        }
        self.open.bytes.begin();
        let mut attached = Vec::new();
        let encoded = encode::<F, A>(args, &options, &mut self.open.bytes, &mut attached);
        let number = self.taken;
        if let Err(error) = encoded {
            return self.take_error(results, *error);
        }
        let small = matches!(self.open.bytes.contents(), Contents::Bytes(bytes) if bytes.len() <= CHUNK_BYTES_MAX);
        if plain && small && attached.is_empty() {
            self.taken += 1;
            self.open.ends.push(self.open.bytes.len() as u32);
            return;
        }
        // A task with large arguments or with descriptors is sent alone, after the items before it.
        let arguments = self.open.bytes.take(attached);
        self.submit_chunk(results);
        self.taken += 1;
        self.send(results, number, arguments, 1, options);
    }
}

impl<F, A, I, M, T> Iterator for Map<F, A, I, M>
where
    F: TaskArgs<A>,
    I: Iterator,
    M: FnMut(I::Item) -> T,
    T: MapTask<Function = F, Arguments = A>,
{
    type Item = Result<F::Output, TaskError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.pending() > self.enough
            && let Some(next) = self.next_ready()
        {
            return Some(next);
        }
        self.next_until(None).unwrap_or_default()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        // The map may end early, at its time limit or because of an invalid option. Then it yields
        // an error as one more item.
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
