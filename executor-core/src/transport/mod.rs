//! How frames move between the pool and one worker.
//!
//! ```text
//!  pool                                               worker
//!  Link::send ──► outbox ──(window)──► … ──►  WorkerEnd::recv
//!                                             WorkerEnd::claim      offered ─► begun, on the board
//!  Inbox::recv ◄── …  ◄─────────────────────  WorkerEnd::reply
//! ```
//!
//! The contract, to which [`conformance`] holds every implementation:
//!
//! - **Order.** Frames arrive in the order in which they were sent, each exactly once, whatever their size.
//! - **No blocking in the pool.** [`Link::send`] never blocks, whether the worker reads, computes, is stopped or is
//!   dead: what the worker has no room for waits in the outbox, and goes out when the worker reports room.
//! - **Begun.** A worker claims a task before it looks at its arguments. [`Link::begun`] tells, at any time and also
//!   after the worker's death; [`Link::take_back`] and the claim exclude each other.
//! - **Close.** When the worker is dead, [`Link::hang_up`] makes [`Inbox::recv`] deliver everything that the worker
//!   had published and then report the end, even if a process that the worker had forked still holds its ends.
//!   When the pool is gone, [`WorkerEnd::recv`] reports the end.
//! - **Distrust.** A worker that does not keep to the protocol is an error at the inbox, never a panic, never a wild
//!   allocation.

pub(crate) mod board;
#[cfg(test)]
mod conformance;
pub(crate) mod ipc;
#[cfg(test)]
pub(crate) mod memory;
mod outbox;
pub(crate) mod ring;

use board::{Begun, Board};

use crate::{
    id::TaskId,
    wire::{
        frame::{Frame, Header, WireError},
        payload::Payload,
    },
};

/// The pool's sending end, shared by whoever holds the pool's lock.
pub(crate) trait Link: Send + Sync {
    /// Sends a frame, or keeps it until the worker has room. A task is offered on the board first.
    fn send(&self, header: Header, payload: Payload);

    /// The worker has consumed this much of its window, all in all.
    fn credit(&self, consumed: u64);

    /// Whether the worker has begun a task that was sent to it.
    fn begun(&self, slot: u16, task: TaskId) -> Begun;

    /// Takes back a task that was sent, unless it has begun.
    fn take_back(&self, slot: u16, task: TaskId) -> bool;

    /// The worker is dead: let the inbox come to an end.
    fn hang_up(&self);

    /// What the worker wrote down before its death.
    fn board(&self) -> &Board;
}

/// The pool's receiving end, owned by one reader.
pub(crate) trait Inbox: Send {
    /// Waits for frames and hands them over; more than one if they came together.
    fn recv(&mut self, sink: &mut dyn FnMut(Frame)) -> Result<(), Closed>;
}

/// The worker's end.
pub(crate) trait WorkerEnd {
    /// Waits for the next frame.
    fn recv(&mut self) -> Result<Frame, Closed>;

    /// Whether the task may be begun: it was not taken back.
    fn claim(&self, header: &Header) -> bool;

    /// Publishes a frame. Waits while the pool does not read.
    fn reply(&mut self, header: Header, payload: &[u8]) -> Result<(), Closed>;

    /// The page that outlives the worker. It stays mapped until the process ends: the panic hook and the fault
    /// handler write to it, and they may run at any time.
    fn board(&self) -> &'static Board;
}

/// Why no more frames come.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Closed {
    #[error("the other side is gone")]
    Gone,
    #[error("the other side does not keep to the protocol: {0}")]
    Protocol(#[from] WireError),
}
