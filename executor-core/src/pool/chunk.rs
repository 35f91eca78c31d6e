//! A chunk: calls of one function on their way to a worker, and where their results go.
//!
//! ```text
//!  caller: single, of_map ──► intake ──► the scheduler's table ──► Sending: header, arguments ──► worker
//!                                          │       ▲                                                │
//!                                        split   taken back                                         │
//!                                          ▼       │                                                │
//!                                        two chunks, one sink                                       │
//!  cell, or a map's results ◄── Outcomes ◄─┴────────────────── reply, or the scheduler's verdict ◄──┘
//! ```
//!
//! It is built once, in the thread that submits, and then moved: nobody keeps a second copy. A single call is a chunk of
//! one item. [`Outcomes`] is the way home of every result, whether a worker has answered or the scheduler has decided.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use super::{ending::Batch, scheduler::Scheduled};
use crate::{
    error::{TaskError, reply},
    future::{
        cell::{Cell, Completer, Control, Outcome, Wakers},
        feed::{Feed, FeedChunk},
    },
    id::{FnId, TaskId, WorkerId},
    registry::TaskEntry,
    task::TaskOptions,
    wire::{
        frame::{Items, Order, Reply, ToWorker, flag},
        payload::Payload,
    },
};

/// Ids of tasks count through the whole process.
static NEXT_TASK: AtomicU64 = AtomicU64::new(1);

/// The first of so many consecutive ids.
pub(crate) fn next_task_ids(count: u32) -> TaskId {
    TaskId::from_raw(NEXT_TASK.fetch_add(u64::from(count), Ordering::Relaxed))
}

/// The id that the next task gets.
pub(super) fn id_of_the_next() -> TaskId {
    TaskId::from_raw(NEXT_TASK.load(Ordering::SeqCst))
}

/// Calls of one function with consecutive ids. The arguments are encoded; no type is known any more.
#[doc(hidden)]
pub struct Chunk {
    entry: &'static TaskEntry,
    name: Option<Box<str>>,
    /// Of a single call only.
    timeout: Option<Duration>,
    arguments: Payload,
    /// Whether the arguments are laid out as those of several calls: see [`Items`].
    several: bool,
    /// The id of item 0.
    base: TaskId,
    /// What is unresolved.
    items: Items,
    sink: Sink,
}

/// Together with what the scheduler notes beside it, it is moved without a call: see the entry of its table.
const _: () = assert!(size_of::<Chunk>() <= size_of::<[u64; 13]>());

/// Where results go.
enum Sink {
    /// To the future of a single call.
    Cell(Completer),
    /// Among the results of a map.
    Map(Arc<FeedChunk>),
}

/// What goes to a worker of a chunk.
pub(crate) struct Sending {
    pub(super) header: ToWorker,
    pub(super) arguments: Payload,
}

impl Chunk {
    /// A single call, and the cell in which its result will be.
    #[inline]
    pub(crate) fn single(
        entry: &'static TaskEntry,
        arguments: Payload,
        options: TaskOptions,
        control: Arc<dyn Control>,
    ) -> (Chunk, Arc<Cell>) {
        let base = next_task_ids(1);
        let (cell, completer) = Cell::pending(base, control);
        let TaskOptions { timeout, name } = options;
        let sink = Sink::Cell(completer);
        let chunk = Chunk { entry, name, timeout, arguments, several: false, base, items: Items::ONE, sink };
        (chunk, cell)
    }

    /// So many calls of a map, beginning with the item of this number in it. `control` is asked for with the map's first.
    pub(crate) fn of_map(
        entry: &'static TaskEntry,
        arguments: Payload,
        count: u32,
        options: TaskOptions,
        (feed, number): (&Arc<Feed>, u64),
        control: impl FnOnce() -> Arc<dyn Control>,
    ) -> Chunk {
        let base = next_task_ids(count);
        let sink = Sink::Map(feed.open(base, count, number, control));
        let TaskOptions { timeout, name } = options;
        let items = Items { first: 0, count };
        Chunk { entry, name, timeout, arguments, several: count > 1, base, items, sink }
    }

    /// What errors and logs call it.
    pub(super) fn name(&self) -> &str {
        self.name.as_deref().unwrap_or(self.entry.name)
    }

    /// The id of its first unresolved item.
    pub(super) fn first_id(&self) -> TaskId {
        TaskId::from_raw(self.base.as_u64() + u64::from(self.items.first))
    }

    /// Whether its arguments take a segment of shared memory.
    pub(super) fn is_in_segment(&self) -> bool {
        self.arguments.is_in_segment()
    }

    /// What a worker's reply to one of its items means.
    fn answer(&self, reply: Reply, payload: Payload) -> Answer {
        match reply {
            Reply::Done => Answer::Value(payload),
            _ => Answer::Failure(Box::new((self.name().into(), reply, payload))),
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
        self.timeout
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
            name: self.name.clone(),
            arguments: self.arguments.clone(),
            items,
            sink: Sink::Map(Arc::clone(map)),
            ..*self
        }
    }

    #[inline]
    fn send_to(&self, worker: WorkerId, seq: u32) -> Sending {
        match &self.sink {
            Sink::Cell(completer) => completer.sent_to(worker),
            Sink::Map(map) => map.sent_to(worker),
        }
        let mut flags = 0;
        if self.timeout.is_some() {
            flags |= flag::TIMED;
        }
        if self.several {
            flags |= flag::CHUNK;
        }
        let header = ToWorker {
            flags,
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
}

/// How an item ended. What takes long to be put into words is put into words when no lock is held.
enum Answer {
    Value(Payload),
    Error(TaskError),
    /// A reply that is no value: the name of the task, and what the worker said. Boxed, because it is rare.
    Failure(Box<(Box<str>, Reply, Payload)>),
}

impl Answer {
    fn outcome(self) -> Outcome {
        match self {
            Answer::Value(payload) => Ok(payload),
            Answer::Error(error) => Err(error),
            Answer::Failure(failure) => {
                let (name, reply, payload) = *failure;
                Err(reply::failure(&name, reply, &payload))
            }
        }
    }
}

/// Results that have left the scheduler. They go to their futures and maps when the lock is free.
#[derive(Default)]
pub(super) struct Outcomes {
    cells: Vec<(Completer, Answer)>,
    /// Items of one chunk come one after the other.
    maps: Vec<(Arc<FeedChunk>, Vec<(u32, Answer)>)>,
    /// A worker is in the middle of a chunk.
    pub(super) in_chunks: bool,
    /// Those that came without a reply, if there are any: they are on their way until this is dropped.
    pub(super) batch: Option<Batch>,
}

impl Outcomes {
    /// The worker has answered for `count` items from `at` on: they were the chunk's last.
    pub(super) fn answer_last(
        &mut self,
        chunk: Chunk,
        (at, count): (u32, u32),
        reply: Reply,
        payloads: &mut impl Iterator<Item = Payload>,
    ) {
        if let Sink::Map(_) = chunk.sink {
            return self.answer_some(&chunk, (at, count), reply, payloads);
        }
        let Some(payload) = payloads.next() else { return };
        let answer = chunk.answer(reply, payload);
        if let Sink::Cell(completer) = chunk.sink {
            self.cells.push((completer, answer));
        }
    }

    /// The worker has answered for `count` items from `at` on: more of the chunk are to come.
    pub(super) fn answer_some(
        &mut self,
        chunk: &Chunk,
        (at, count): (u32, u32),
        reply: Reply,
        payloads: &mut impl Iterator<Item = Payload>,
    ) {
        let Sink::Map(map) = &chunk.sink else { return };
        let answers = (at..at + count).zip(payloads).map(|(at, payload)| (at, chunk.answer(reply, payload)));
        match self.maps.last_mut() {
            Some((last, before)) if Arc::ptr_eq(last, map) => before.extend(answers),
            _ => self.maps.push((Arc::clone(map), answers.collect())),
        }
    }

    /// What is unresolved of the chunk ends with this error.
    pub(super) fn fail(&mut self, chunk: Chunk, error: TaskError) {
        let Items { first, count } = chunk.items;
        match chunk.sink {
            Sink::Cell(completer) => self.cells.push((completer, Answer::Error(error))),
            Sink::Map(map) => {
                let answers = (first..count).map(|item| (item, Answer::Error(error.clone())));
                self.maps.push((map, answers.collect()));
            }
        }
    }

    /// Hands everything over; what is to be woken comes into `wakers`. Not under the pool's lock.
    pub(super) fn deliver(self, wakers: &mut Wakers) -> Option<Batch> {
        for (completer, answer) in self.cells {
            completer.complete_into(answer.outcome(), wakers);
        }
        for (map, answers) in self.maps {
            map.deliver(answers.into_iter().map(|(item, answer)| (item, answer.outcome())), wakers);
        }
        self.batch
    }
}
