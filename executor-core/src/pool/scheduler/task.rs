//! The scheduler's record of one chunk of tasks, and what a chunk must offer.

use std::time::{Duration, Instant};

use crate::{
    id::{FnId, TaskId, WorkerId},
    task::Need,
    wire::frame::Items,
};

/// What the scheduler needs of a chunk. The pool's chunk also has arguments and a
/// sink for the results; the chunk of the simulation has neither.
pub(crate) trait Scheduled: Sized {
    /// What is sent to a worker.
    type Sending;

    /// Returns the function. Running times are estimated for each function.
    fn function(&self) -> FnId;

    /// Returns the timeout. A chunk of several tasks has none.
    fn timeout(&self) -> Option<Duration>;

    /// Returns when the chunk has waited for a worker for too long, if there is such a limit. A
    /// chunk of several tasks has none.
    fn queue_until(&self) -> Option<Instant>;

    /// Returns how long the chunk may wait for a worker, if it may not wait for ever.
    fn queue_timeout(&self) -> Duration;

    /// Returns the index of the only worker that may run the chunk, if it is bound to one.
    fn bound_to(&self) -> Option<u32>;

    /// Returns the tokens that the chunk needs. A chunk of several tasks needs none, and neither
    /// does one that is bound to a worker.
    fn needs(&self) -> &[Need];

    /// Returns the priority. A chunk of several tasks has 0.
    fn priority(&self) -> i32;

    /// Returns the id of item 0.
    fn base(&self) -> TaskId;

    /// Returns the unresolved items. At most the first of them has begun.
    fn items(&self) -> Items;

    /// Removes the first `count` unresolved items: they are resolved.
    fn resolve_first(&mut self, count: u32);

    /// Splits the chunk: keeps the items before `at`, and returns the others as a second chunk.
    fn split_off(&mut self, at: u32) -> Self;

    /// Returns what is to be sent to a worker as the sending `seq`: all unresolved items.
    fn send_to(&self, seq: u32) -> Self::Sending;

    /// Excludes the memory of the arguments from reuse. It is called before the chunk is resolved
    /// if a worker that was given up may still read them.
    fn leave_arguments(&self);

    /// Returns whether a task whose attempt has failed may be tried again. `lost` says whether this
    /// attempt has lost its worker. A chunk of several tasks is not tried again.
    fn may_retry(&self, lost: bool) -> bool;

    /// Records that an attempt has failed, and that another one may follow: all items are
    /// unresolved again.
    fn next_attempt(&mut self, lost: bool);

    /// Counts the wait for a worker from now on.
    fn wait_anew(&mut self, now: Instant);

    /// Returns the number of unresolved items.
    fn left(&self) -> u32 {
        let Items { first, count } = self.items();
        count - first
    }
}

/// A chunk in the table of tasks. Its key is the id of its first item when the entry was made.
pub(super) struct Entry<C> {
    chunk: C,
    state: TaskState,
    /// When the scheduler got the chunk, in nanoseconds since it got the first. A part that was
    /// split off keeps the time of the whole. An `Instant` would make an entry so large that moving
    /// it calls `memcpy`.
    at: u64,
    /// How many workers died with this chunk as their first one, and had not begun it.
    lost_unbegun: u8,
    /// Whether it belongs to a broadcast, so that only the worker it was made for runs it.
    broadcast: bool,
}

#[derive(Clone, Copy, PartialEq)]
enum TaskState {
    Queued,
    /// It waits for this worker, and runs on no other: see [`broadcast`](super::broadcast).
    Broadcast(WorkerId),
    Sent(WorkerId),
    /// Its last attempt has failed: see [`attempts`](super::attempts).
    Held,
}

impl<C: Scheduled> Entry<C> {
    /// Returns an entry for a chunk that no worker has.
    #[inline]
    pub(super) fn new(chunk: C, at: u64) -> Self {
        Entry { chunk, state: TaskState::Queued, at, lost_unbegun: 0, broadcast: false }
    }

    /// Returns an entry for a task of a broadcast that waits for this worker.
    pub(super) fn broadcast(chunk: C, to: WorkerId) -> Self {
        Entry { state: TaskState::Broadcast(to), broadcast: true, ..Entry::new(chunk, 0) }
    }

    /// Returns whether the task belongs to a broadcast.
    #[inline]
    pub(super) fn is_broadcast(&self) -> bool {
        self.broadcast
    }

    /// Returns the worker that the task waits for, if it belongs to a broadcast and was not sent.
    #[inline]
    pub(super) fn awaits(&self) -> Option<WorkerId> {
        match self.state {
            TaskState::Broadcast(worker) => Some(worker),
            _ => None,
        }
    }

    #[inline]
    pub(super) fn chunk(&self) -> &C {
        &self.chunk
    }

    #[inline]
    pub(super) fn into_chunk(self) -> C {
        self.chunk
    }

    /// Returns whether the chunk waits for a worker.
    #[inline]
    pub(super) fn is_queued(&self) -> bool {
        self.state == TaskState::Queued
    }

    /// Returns the worker that has the chunk.
    #[inline]
    pub(super) fn worker(&self) -> Option<WorkerId> {
        match self.state {
            TaskState::Queued | TaskState::Broadcast(_) | TaskState::Held => None,
            TaskState::Sent(worker) => Some(worker),
        }
    }

    /// Returns when the scheduler got the chunk, counted from the first.
    pub(super) fn at(&self) -> Duration {
        Duration::from_nanos(self.at)
    }

    #[inline]
    pub(super) fn has_timeout(&self) -> bool {
        self.chunk.timeout().is_some()
    }

    /// Records that the chunk is sent to a worker. Returns whether it has a timeout, which then has
    /// to be enforced.
    #[inline]
    #[must_use]
    pub(super) fn transition_to_sent(&mut self, worker: WorkerId) -> bool {
        debug_assert!(
            self.is_queued() || self.awaits() == Some(worker),
            "one worker at a time has a chunk"
        );
        self.state = TaskState::Sent(worker);
        self.has_timeout()
    }

    /// Records that no worker has the chunk any more. Returns whether it has a timeout, which has
    /// not to be enforced any more.
    #[must_use]
    pub(super) fn transition_to_queued(&mut self) -> bool {
        debug_assert!(self.worker().is_some(), "a worker had it");
        self.state = TaskState::Queued;
        self.has_timeout()
    }

    /// Records that the chunk's attempt has failed, and that another one may follow.
    pub(super) fn transition_to_held(&mut self, lost: bool) {
        debug_assert!(self.state != TaskState::Held, "an attempt fails once");
        self.state = TaskState::Held;
        self.lost_unbegun = 0;
        self.chunk.next_attempt(lost);
    }

    /// Records that the chunk waits for its next attempt. Returns until when.
    pub(super) fn transition_to_queued_again(&mut self, now: Instant) -> Option<Instant> {
        debug_assert!(self.state == TaskState::Held, "only a held chunk is tried again");
        self.state = TaskState::Queued;
        self.chunk.wait_anew(now);
        self.chunk.queue_until()
    }

    /// Returns whether the chunk is between two attempts.
    #[inline]
    pub(super) fn is_held(&self) -> bool {
        self.state == TaskState::Held
    }

    /// Records that the worker has answered the first `count` unresolved items. Returns how many
    /// are left.
    #[inline]
    pub(super) fn answered(&mut self, count: u32) -> u32 {
        debug_assert!(self.worker().is_some(), "only a worker answers");
        self.chunk.resolve_first(count);
        self.lost_unbegun = 0;
        self.chunk.left()
    }

    /// Records that another worker died with this chunk as its first one, and had not begun it.
    /// Returns how many did so in a row.
    pub(super) fn lost_unbegun(&mut self) -> u8 {
        self.lost_unbegun += 1;
        self.lost_unbegun
    }

    /// Splits the chunk: its items from `at` on become an entry of their own, which no worker has.
    pub(super) fn split_off(&mut self, at: u32) -> Self {
        debug_assert!(self.chunk.items().first < at && at < self.chunk.items().count);
        Entry::new(self.chunk.split_off(at), self.at)
    }
}

/// If an entry is larger, each insertion and each removal calls `memcpy`, which costs 4 % of a
/// no-op task.
const _: () = assert!(size_of::<Entry<[u64; 13]>>() <= 128);

pub(super) fn item_id(base: TaskId, item: u32) -> TaskId {
    TaskId::from_raw(base.as_u64() + u64::from(item))
}
