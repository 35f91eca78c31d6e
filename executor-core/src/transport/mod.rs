//! How frames move between the pool and one worker.
//!
//! ```text
//!  pool                                               worker
//!  Link::send ──► outbox ──(window)──► … ──►  WorkerEnd::recv
//!                                             Board::claim          offered ─► begun, on the board
//!  Lease::drain or Inbox::recv ◄── …  ◄─────  WorkerEnd::reply
//! ```
//!
//! The contract, to which [`conformance`] holds every implementation:
//!
//! - **Order.** Frames arrive in the order in which they were sent, each exactly once, whatever their size.
//! - **No blocking in the pool.** [`Link::send`] never blocks, whether the worker reads, computes, is stopped or is
//!   dead: what the worker has no room for waits in the outbox, and goes out when the worker reports room.
//! - **Begun.** A worker claims a task on its [`Board`] before it looks at the arguments. The board tells of it at any
//!   time, also after the worker's death; taking back and claiming exclude each other.
//! - **Close.** When the worker is dead, [`Link::hang_up`] lets the pool receive everything that the worker had
//!   published and then the end, even if a process that the worker had forked still holds its ends. When the pool is
//!   gone, [`WorkerEnd::recv`] reports the end.
//! - **Distrust.** A worker that does not keep to the protocol is an error where the pool receives, never a panic,
//!   never a wild allocation.
//!
//! Receiving has two forms. The ring is drained by whoever has its one [`lease`](ring::Lease): a thread that waits for
//! a result, or the pool's reader. Where that cannot be (ipc-channel), an [`Inbox`] is owned by a thread that blocks.

pub(crate) mod board;
#[cfg(test)]
mod conformance;
pub(crate) mod ipc;
#[cfg(test)]
pub(crate) mod memory;
mod outbox;
pub(crate) mod ring;

use board::Board;

use crate::wire::{
    frame::{Frame, FromWorker, ToWorker, WireError},
    payload::Payload,
};

/// The pool's sending end, shared by whoever holds the pool's lock.
pub(crate) trait Link: Send + Sync {
    /// Sends a frame, or keeps it until the worker has room. What is to be run is offered on the board first. It wakes
    /// nobody: [`flush`](Self::flush) does, after the last of several.
    fn send(&self, header: ToWorker, payload: &Payload);

    /// Wakes the worker if it sleeps.
    fn flush(&self);

    /// The worker has consumed this much of its window, all in all.
    fn credit(&self, consumed: u64);

    /// How many of the messages that had to wait for room have found some: while this grows, the worker reads.
    fn taken_in(&self) -> u64;

    /// The worker is dead: let receiving come to an end.
    fn hang_up(&self);

    /// What the worker writes down, to be read also after its death.
    fn board(&self) -> &Board;
}

/// The pool's receiving end, owned by one reader.
pub(crate) trait Inbox: Send {
    /// Waits for frames and hands them over; more than one if they came together.
    fn recv(&mut self, sink: &mut dyn FnMut(Frame<FromWorker>)) -> Result<(), Closed>;
}

/// The worker's end.
pub(crate) trait WorkerEnd {
    /// Waits for the next frame.
    fn recv(&mut self) -> Result<Frame<ToWorker>, Closed>;

    /// Whether the last frame had to be waited for, as far as is known.
    fn has_waited(&self) -> bool {
        true
    }

    /// Publishes a frame. Waits while the pool does not read.
    fn reply(&mut self, header: FromWorker, payload: &[u8]) -> Result<(), Closed>;

    /// The page that outlives the worker. It stays mapped until the process ends: the panic hook and the fault
    /// handler write to it, and they may run at any time.
    fn board(&self) -> &'static Board;
}

crate::debug::debug_is_display!(Closed);

/// Why no more frames come.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Closed {
    #[error("the other side is gone")]
    Gone,
    #[error("the other side does not keep to the protocol: {0}")]
    Protocol(#[from] WireError),
}
