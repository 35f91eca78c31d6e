//! The scheduler's record of one chunk of tasks, and what a chunk must offer.

use std::time::Duration;

use crate::{
    id::{FnId, TaskId, WorkerId},
    wire::frame::Items,
};

/// What the scheduler needs of a chunk. The pool's chunk also has arguments and a
/// sink for the results; the chunk of the simulation has neither.
pub(crate) trait Scheduled: Sized {
    /// What is sent to a worker.
    type Sending;

    /// Returns the function. Running times are estimated for each function.
    fn function(&self) -> FnId;

    /// Returns the time limit. A chunk of several tasks has none.
    fn timeout(&self) -> Option<Duration>;

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

    /// Returns the number of unresolved items.
    fn left(&self) -> u32 {
        let Items { first, count } = self.items();
        count - first
    }
}

/// A chunk in the table of tasks. Its key is the id of its first item when the entry was made.
pub(super) struct Entry<C> {
    pub(super) chunk: C,
    pub(super) state: TaskState,
    /// When the chunk was submitted, in nanoseconds since the first submission. A part that was
    /// split off keeps the time of the whole. An `Instant` would make an entry so large that moving
    /// it calls `memcpy`.
    pub(super) at: u64,
    pub(super) lost_unbegun: u8,
}

#[derive(Clone, Copy, PartialEq)]
pub(super) enum TaskState {
    Queued,
    Sent(WorkerId),
}

/// If an entry is larger, each insertion and each removal calls `memcpy`, which costs 4 % of a
/// no-op task.
const _: () = assert!(size_of::<Entry<[u64; 13]>>() <= 128);

pub(super) fn item_id(base: TaskId, item: u32) -> TaskId {
    TaskId::from_raw(base.as_u64() + u64::from(item))
}
