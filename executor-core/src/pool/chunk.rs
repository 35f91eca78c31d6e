//! A chunk: calls of one function on their way to a worker, and where their results go.
//!
//! ```text
//!  caller: single, of_map ─► intake ─► scheduler's table ─► Sending: header, arguments ─► worker
//!                                       │       ▲                                          │
//!                                     split   taken back                                   │
//!                                       ▼       │                                          │
//!                                     two chunks, one sink                                 │
//!  cell or MapResults ◄── Outcomes ◄────┴────────── reply, or an error of the scheduler ◄──┘
//! ```
//!
//! A chunk is built once, in the thread that submits, and then moved. There is no second copy. A
//! single call is a chunk of one item. All results pass through [`Outcomes`]: the replies of
//! workers, and the errors that the scheduler decides on.

use std::{
    num::NonZeroU16,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
    task::Waker,
    time::{Duration, Instant},
};

use super::{
    Pool, TaskDefaults,
    ending::Batch,
    pressure::{Place, Pressure},
    retry::Decision,
    scheduler::Scheduled,
};
use crate::{
    error::{TaskError, reply},
    future::{
        cell::{Cell, Completer, Control, Outcome, Wakers},
        map_results::{ChunkResults, MapResults, Run},
    },
    id::{FnId, TaskId},
    registry::TaskEntry,
    task::{Need, Retry, TaskOptions, usage::Usage},
    wire::{
        frame::{Items, Order, Reply, ToWorker, flag},
        measured::Measured,
        payload::Payload,
        values::Values,
    },
};

/// The next task id. Ids are unique in the process.
static NEXT_TASK: AtomicU64 = AtomicU64::new(1);

/// Takes `count` consecutive ids, and returns the first.
pub(crate) fn next_task_ids(count: u32) -> TaskId {
    TaskId::from_raw(NEXT_TASK.fetch_add(u64::from(count), Ordering::Relaxed))
}

/// Returns the id that the next task will get.
pub(super) fn id_of_the_next() -> TaskId {
    TaskId::from_raw(NEXT_TASK.load(Ordering::SeqCst))
}

/// Calls of one function, with consecutive ids and encoded arguments.
#[doc(hidden)]
pub struct Chunk {
    entry: &'static TaskEntry,
    /// Only a single call has any.
    options: TaskOptions,
    /// When the call has waited for a worker for too long.
    queue_until: Option<Instant>,
    arguments: Payload,
    /// Whether the arguments have the layout of several calls: see [`Items`].
    several: bool,
    /// The id of item 0.
    base: TaskId,
    /// The items that are not resolved.
    items: Items,
    /// Number of attempts that have failed.
    failed: u16,
    /// Number of workers that were lost with attempts.
    lost: u16,
    /// The index of the only worker that may run it.
    bound_to: Option<NonMax>,
    /// The place among the pending tasks, if these are limited. The parts of a chunk share it.
    place: Option<Arc<Place>>,
    sink: Sink,
}

/// A larger chunk would make the entries of the scheduler's table too large: see
/// `scheduler::Entry`.
const _: () = assert!(size_of::<Chunk>() <= size_of::<[u64; 13]>());

/// A number below `u16::MAX`. With an `Option` of it, a chunk is no larger than without.
#[derive(Clone, Copy)]
struct NonMax(NonZeroU16);

impl NonMax {
    fn new(number: u16) -> Option<Self> {
        number.checked_add(1).and_then(NonZeroU16::new).map(NonMax)
    }

    fn get(self) -> u32 {
        u32::from(self.0.get()) - 1
    }
}

/// Where the results of a chunk go.
enum Sink {
    /// The future of a single call.
    Cell(Completer),
    /// A map.
    Map(Arc<ChunkResults>),
}

/// The frame that brings a chunk to a worker.
pub(crate) struct Sending {
    pub(super) header: ToWorker,
    pub(super) arguments: Payload,
}

impl Chunk {
    /// Makes a chunk of a single call. Its result goes into the cell that is returned.
    #[inline]
    pub(crate) fn single(
        entry: &'static TaskEntry,
        arguments: Payload,
        options: TaskOptions,
        control: Arc<dyn Control>,
    ) -> (Chunk, Arc<Cell>) {
        let base = next_task_ids(1);
        let (cell, completer) = Cell::pending(base, control);
        let sink = Sink::Cell(completer);
        let bound_to = None;
        let chunk = Chunk {
            entry,
            options,
            queue_until: None,
            arguments,
            several: false,
            base,
            items: Items::ONE,
            failed: 0,
            lost: 0,
            bound_to,
            place: None,
            sink,
        };
        (chunk, cell)
    }

    /// Makes a chunk of `count` calls of a map. Its first item has the number `number` in the map.
    /// `control` is called only for the first chunk of the map. `bound_to` is the index of the only
    /// worker that may run it.
    pub(crate) fn of_map(
        entry: &'static TaskEntry,
        arguments: Payload,
        count: u32,
        options: TaskOptions,
        (results, number): (&Arc<MapResults>, u64),
        bound_to: Option<u16>,
        control: impl FnOnce() -> Arc<dyn Control>,
    ) -> Chunk {
        let base = next_task_ids(count);
        let bytes = arguments.size() as u64;
        let sink = Sink::Map(results.open(base, count, (number, bytes), control));
        let items = Items { first: 0, count };
        let several = count > 1;
        debug_assert!(!several || options.is_none(), "a task with options is sent alone");
        let (queue_until, place) = (None, None);
        let (failed, lost) = (0, 0);
        let bound_to = bound_to.and_then(NonMax::new);
        Chunk {
            entry,
            options,
            queue_until,
            arguments,
            several,
            base,
            items,
            failed,
            lost,
            bound_to,
            place,
            sink,
        }
    }

    /// Takes the place for this chunk among the pending tasks.
    pub(crate) fn at(mut self, place: Option<Place>) -> Self {
        if let Some(mut place) = place {
            place.hold(self.arguments.size());
            self.place = Some(Arc::new(place));
        }
        self
    }

    /// Returns whether [`accepted`](Self::accepted) has anything to do, if the pool has no
    /// defaults.
    #[inline]
    pub(super) fn has_options(&self) -> bool {
        !self.options.is_none()
    }

    /// Binds the chunk to the worker with this index, unless it is bound to one already.
    pub(super) fn bind(&mut self, worker: impl FnOnce() -> u16) {
        self.bound_to = self.bound_to.or_else(|| NonMax::new(worker()));
    }

    /// Finds what the chunk needs in the pool that is to run it. Returns what is wrong with its
    /// options, if the pool cannot.
    pub(super) fn find_place(&mut self, pool: &Pool) -> Result<(), String> {
        if let Some(index) = self.options.on_worker() {
            if pool.is_isolated() {
                return Err("is `on_worker`, which makes no sense with Isolation::PerTask".into());
            }
            let workers_max = pool.workers_max();
            if index >= workers_max {
                return Err(format!(
                    "is on worker {index}, but the indices of the {workers_max} workers begin at 0"
                ));
            }
            let index = u16::try_from(index).ok().and_then(NonMax::new);
            self.bound_to = Some(index.ok_or("is on a worker with an index above 65534")?);
        }
        if !self.options.needs().is_empty() {
            if self.bound_to.is_some() {
                return Err("needs resources, and is bound to a worker".into());
            }
            self.options.set().needed = pool.options.resources.resolve(self.options.needs())?;
        }
        Ok(())
    }

    /// Records that a pool with these defaults accepts the chunk now.
    pub(super) fn accepted(&mut self, defaults: &TaskDefaults) {
        debug_assert!(!self.several || !defaults.any(), "such a pool gets single calls");
        if defaults.timeout.is_some() && self.options.timeout().is_none() {
            self.options.set().timeout = defaults.timeout;
        }
        if defaults.queue_timeout.is_some() && self.options.queue_timeout().is_none() {
            self.options.set().queue_timeout = defaults.queue_timeout;
        }
        if let Some(poison_limit) = defaults.poison_limit
            && self.options.retry().is_some()
        {
            self.options.set().poison_limit = poison_limit;
        }
        self.wait_anew(Instant::now());
    }

    /// Returns the number of attempts, including the present one.
    pub(super) fn attempts(&self) -> u32 {
        u32::from(self.failed) + 1
    }

    /// Returns whether the task is not tried again because it has ended so many workers, this one
    /// included, and otherwise would be.
    pub(super) fn is_poison(&self) -> bool {
        self.may_retry(false) && !self.may_retry(true)
    }

    /// Returns what the task says about being tried again.
    pub(super) fn retry(&self) -> Option<&Retry> {
        self.options.retry()
    }

    /// Returns the name that errors and logs use.
    pub(super) fn name(&self) -> &str {
        self.options.called(self.entry.name)
    }

    /// Returns the id of the first unresolved item.
    pub(super) fn first_id(&self) -> TaskId {
        TaskId::from_raw(self.base.as_u64() + u64::from(self.items.first))
    }

    /// Returns whether the arguments are in a segment of shared memory.
    pub(super) fn is_in_segment(&self) -> bool {
        self.arguments.is_in_segment()
    }

    /// Returns the function if this is a single call, with arguments that are quickly sent. Such
    /// a call may be deferred, if its function is.
    #[inline]
    pub(super) fn deferrable(&self) -> Option<FnId> {
        let single = !self.several && !self.is_in_segment();
        // 0 stands for "none is deferred".
        single.then(|| Scheduled::function(self)).filter(|function| function.0 != 0)
    }

    /// Returns whether the worker measures what this task uses. Then it is a single call.
    #[inline]
    pub(super) fn measures(&self) -> bool {
        self.options.measures()
    }

    /// Records what an attempt has cost. Returns the usage and the name of the task.
    /// Returns `None` if it was not to be measured.
    pub(super) fn used(
        &self,
        attempt: u32,
        worker: u32,
        measured: &Measured,
        bytes_out: usize,
    ) -> Option<(Usage, Box<str>)> {
        if !self.options.measures() {
            return None;
        }
        // Each way to submit a task makes one.
        let slot = self.options.usage()?;
        let usage = Usage {
            bytes_in: self.arguments.size() as u64,
            bytes_out: bytes_out as u64,
            worker,
            attempt,
            ..Usage::new(slot.submitted_nanos(), measured)
        };
        slot.put(usage);
        Some((usage, self.name().into()))
    }

    /// Converts a worker's reply for one item.
    pub(super) fn answer(&self, reply: Reply, payload: Payload, attempts: u32) -> Answer {
        match reply {
            Reply::Done => Answer::Value(payload),
            _ => Answer::Failure(Box::new((self.name().into(), attempts, reply, payload))),
        }
    }
}

impl Scheduled for Chunk {
    type Sending = Sending;

    #[inline]
    fn function(&self) -> FnId {
        self.entry.number()
    }

    #[inline]
    fn timeout(&self) -> Option<Duration> {
        self.options.timeout()
    }

    #[inline]
    fn queue_until(&self) -> Option<Instant> {
        self.queue_until
    }

    fn queue_timeout(&self) -> Duration {
        self.options.queue_timeout().unwrap_or_default()
    }

    #[inline]
    fn bound_to(&self) -> Option<u32> {
        self.bound_to.map(NonMax::get)
    }

    #[inline]
    fn needs(&self) -> &[Need] {
        self.options.needed()
    }

    #[inline]
    fn priority(&self) -> i32 {
        self.options.priority().unwrap_or(0)
    }

    #[inline]
    fn base(&self) -> TaskId {
        self.base
    }

    #[inline]
    fn items(&self) -> Items {
        self.items
    }

    #[inline]
    fn resolve_first(&mut self, count: u32) {
        self.items.first += count;
    }

    fn split_off(&mut self, at: u32) -> Self {
        let Sink::Map(map) = &self.sink else { unreachable!("a single call is not split") };
        let items = Items { first: at, count: std::mem::replace(&mut self.items.count, at) };
        Chunk {
            options: self.options.clone(),
            arguments: self.arguments.clone(),
            items,
            place: self.place.clone(),
            sink: Sink::Map(Arc::clone(map)),
            ..*self
        }
    }

    #[inline]
    fn send_to(&self, seq: u32) -> Sending {
        let mut flags = 0;
        if self.timeout().is_some() {
            flags |= flag::TIMED;
        }
        if self.several {
            flags |= flag::CHUNK;
        }
        if self.options.measures() {
            flags |= flag::MEASURED;
        }
        let header = ToWorker {
            flags,
            failed: self.failed,
            seq,
            task: self.base,
            function: self.function(),
            items: self.items,
            ..ToWorker::new(Order::Run)
        };
        Sending { header, arguments: self.arguments.clone() }
    }

    fn leave_arguments(&self) {
        self.arguments.leave_segment();
    }

    fn may_retry(&self, lost: bool) -> bool {
        let Some(retry) = self.options.retry() else { return false };
        self.failed < retry.retries.unwrap_or(0)
            && !(lost && u32::from(self.lost) + 1 >= self.options.poison_limit())
    }

    fn next_attempt(&mut self, lost: bool) {
        debug_assert!(!self.several, "each task has its own attempts");
        self.failed = self.failed.saturating_add(1);
        self.lost = self.lost.saturating_add(u16::from(lost));
        self.items = Items::ONE;
    }

    fn wait_anew(&mut self, now: Instant) {
        self.queue_until =
            self.options.queue_timeout().and_then(|timeout| now.checked_add(timeout));
    }
}

/// How an item ended. [`outcome`](Answer::outcome) may take long, and is called under no lock.
///
/// Errors are boxed, because they are rare and results of maps are moved in large numbers.
pub(super) enum Answer {
    Value(Payload),
    Error(Box<TaskError>),
    /// An error reply: the name of the task, the number of attempts, and the reply.
    Failure(Box<(Box<str>, u32, Reply, Payload)>),
}

const _: () = assert!(size_of::<Answer>() == size_of::<Payload>());

/// How consecutive items of one chunk ended.
enum Answers {
    One(Answer),
    Values(Box<Values>),
}

/// Answers, and the item to which the first of them belongs.
type Numbered = (u32, Answers);

impl Answers {
    fn run(self) -> Run {
        match self {
            Answers::One(answer) => Run::One(answer.outcome()),
            Answers::Values(values) => Run::Values(values),
        }
    }
}

/// The payloads of replies that came together, for consecutive tasks.
pub(super) struct Payloads {
    pub(super) first: Option<Payload>,
    pub(super) more: Values,
}

impl Payloads {
    pub(super) fn next(&mut self) -> Option<Payload> {
        self.first.take().or_else(|| self.more.next().map(Payload::from))
    }
}

impl Answer {
    pub(super) fn outcome(self) -> Outcome {
        match self {
            Answer::Value(payload) => Ok(payload),
            Answer::Error(error) => Err(*error),
            Answer::Failure(failure) => {
                let (name, attempts, reply, payload) = *failure;
                Err(reply::failure(&name, reply, &payload).after(attempts))
            }
        }
    }
}

/// Results that have left the scheduler. They are delivered when the pool's lock is free.
#[derive(Default)]
pub(super) struct Outcomes {
    cells: Vec<(Completer, Answer)>,
    /// Results of maps. Consecutive results of one chunk are together.
    maps: Vec<(Arc<ChunkResults>, Vec<Numbered>)>,
    /// Whether a worker is in the middle of a chunk, so that its next replies follow within
    /// microseconds.
    pub(super) in_chunks: bool,
    /// Places of chunks that are resolved.
    places: Vec<Place>,
    /// Decisions about tasks whose attempts have failed.
    decisions: Vec<Decision>,
    /// The limits of a pool that accepts no more tasks.
    pub(super) opens: Option<Arc<Pressure>>,
    /// Marks errors of the scheduler as on their way until it is dropped. `None` without any.
    pub(super) batch: Option<Batch>,
}

impl Outcomes {
    /// Returns whether there is nothing to deliver.
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.cells.is_empty()
            && self.maps.is_empty()
            && self.batch.is_none()
            && self.places.is_empty()
            && self.decisions.is_empty()
            && self.opens.is_none()
    }

    /// Adds replies for the chunk's last `count` items, which begin with item `at`.
    pub(super) fn answer_last(
        &mut self,
        mut chunk: Chunk,
        (at, count): (u32, u32),
        reply: Reply,
        payloads: &mut Payloads,
    ) {
        self.leave(&mut chunk);
        if let Sink::Map(_) = chunk.sink {
            return self.answer_some(&chunk, (at, count), reply, payloads);
        }
        let Some(payload) = payloads.next() else { return };
        let answer = chunk.answer(reply, payload, chunk.attempts());
        if let Sink::Cell(completer) = chunk.sink {
            self.cells.push((completer, answer));
        }
    }

    /// Adds replies for `count` items of the chunk, which begin with item `at`.
    pub(super) fn answer_some(
        &mut self,
        chunk: &Chunk,
        (at, count): (u32, u32),
        reply: Reply,
        payloads: &mut Payloads,
    ) {
        let Sink::Map(map) = &chunk.sink else { return };
        if !self.maps.last().is_some_and(|(last, _)| Arc::ptr_eq(last, map)) {
            self.maps.push((Arc::clone(map), Vec::new()));
        }
        let Some((_, answers)) = self.maps.last_mut() else { return };
        let values_at = match payloads.first.take() {
            Some(payload) => {
                answers.push((at, Answers::One(chunk.answer(reply, payload, chunk.attempts()))));
                at + 1
            }
            None => at,
        };
        if at + count > values_at {
            // Only values come without a header of their own.
            let values = payloads.more.take((at + count - values_at) as usize);
            answers.push((values_at, Answers::Values(Box::new(values))));
        }
    }

    /// Adds this error for all unresolved items of the chunk.
    pub(super) fn fail(&mut self, mut chunk: Chunk, error: TaskError) {
        self.leave(&mut chunk);
        let Items { first, count } = chunk.items;
        match chunk.sink {
            Sink::Cell(completer) => self.cells.push((completer, Answer::Error(Box::new(error)))),
            Sink::Map(map) => {
                let error = |item| (item, Answers::One(Answer::Error(Box::new(error.clone()))));
                self.maps.push((map, (first..count).map(error).collect()));
            }
        }
    }

    /// Adds the decision whether a task is tried again, after an attempt that ended like this.
    pub(super) fn undecided(&mut self, pool: &Pool, chunk: &Chunk, answer: Answer) {
        // The failure is counted already.
        let attempts = u32::from(chunk.failed);
        let retry = chunk.retry().expect("only such tasks are held").clone();
        let pool = Weak::clone(&pool.me);
        self.decisions.push(Decision::new(pool, chunk.base, attempts, retry, answer));
    }

    /// Takes the place of a chunk that is resolved, if this is its last part.
    #[inline]
    fn leave(&mut self, chunk: &mut Chunk) {
        if let Some(place) = chunk.place.take() {
            self.places.extend(Arc::into_inner(place));
        }
    }

    /// Delivers all results, and adds the wakers of waiting threads and tasks to `wakers`. Must be
    /// called without the pool's lock.
    pub(super) fn deliver(self, wakers: &mut Wakers) -> Option<Batch> {
        // First, so that whoever has a result finds room for the next task.
        for place in self.places {
            place.give_back(wakers);
        }
        if let Some(pressure) = self.opens {
            pressure.open(wakers);
        }
        for decision in self.decisions {
            // The user's code, like wakers.
            wakers.push(Some(Waker::from(Arc::new(decision))));
        }
        for (completer, answer) in self.cells {
            completer.complete_into(answer.outcome(), wakers);
        }
        for (map, answers) in self.maps {
            map.deliver(answers.into_iter().map(|(item, answers)| (item, answers.run())), wakers);
        }
        // Before the batch counts as arrived: what it has reached includes the callback queue.
        wakers.post();
        self.batch
    }
}
