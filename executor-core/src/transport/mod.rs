//! Transports: how frames move between the pool and one worker.
//!
//! ```text
//!  pool                                               worker
//!  Link::send ──► outbox ──(window)──► … ──►  WorkerEnd::recv
//!                                             Board::claim          offered ─► begun, on the board
//!  drain or Inbox::recv ◄── … ◄───────────  WorkerEnd::reply
//! ```
//!
//! Every implementation keeps the following contract, which [`conformance`] tests:
//!
//! - **Order.** Frames arrive in the order in which they were sent, each exactly once, whatever
//!   their size.
//! - **No blocking in the pool.** [`Link::send`] never blocks, whether the worker reads, computes,
//!   is stopped or is dead. Frames for which the worker has no space wait in the outbox, and are
//!   sent when the worker reports space.
//! - **Begun.** A worker claims a task on its [`Board`] before it decodes the arguments. The board
//!   can be read at any time, even after the worker's death. A task is either claimed by the worker
//!   or taken back by the pool, never both.
//! - **Close.** When the worker is dead, [`Link::hang_up`] lets the pool receive everything the
//!   worker had published, and then the end. This holds even if a process that the worker forked
//!   still has the worker's ends open. When the pool is gone, [`WorkerEnd::recv`] reports the end.
//! - **Distrust.** A protocol violation by a worker is an error for the pool's receiver. It never
//!   causes a panic or an absurd allocation.
//!
//! Receiving has two forms. All rings of a pool are drained by one thread, the attendant (see
//! [`ring`]): a thread that waits for a result, or the pool's reader. ipc-channel does not allow
//! that, so there an [`Inbox`] is owned by a thread that blocks.

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

/// The pool's sending end. It is shared by all code that holds the pool's lock.
pub(crate) trait Link: Send + Sync {
    /// Sends a frame, or keeps it until the worker has space. A task is offered on the board first.
    ///
    /// Does not wake the worker. Call [`flush`](Self::flush) after the last of several frames.
    fn send(&self, header: ToWorker, payload: &Payload);

    /// Wakes the worker if it sleeps.
    fn flush(&self);

    /// Notes that the worker has consumed `consumed` units of its window in total.
    fn credit(&self, consumed: u64);

    /// Returns the number of messages sent from the outbox so far. While this number grows, the
    /// worker is reading.
    fn taken_in(&self) -> u64;

    /// Notes that the worker is dead, so that receiving ends once everything was received.
    fn hang_up(&self);

    /// Returns the worker's board, which can still be read after the worker's death.
    fn board(&self) -> &Board;
}

/// The pool's receiving end. One reader owns it.
pub(crate) trait Inbox: Send {
    /// Waits for frames and passes each one to `sink`. Several frames may have arrived together.
    fn recv(&mut self, sink: &mut dyn FnMut(Frame<FromWorker>)) -> Result<(), Closed>;
}

/// The worker's end.
pub(crate) trait WorkerEnd {
    /// Waits for the next frame.
    fn recv(&mut self) -> Result<Frame<ToWorker>, Closed>;

    /// Whether the last [`recv`](Self::recv) had to wait. `true` if that is unknown.
    fn has_waited(&self) -> bool {
        true
    }

    /// Sends a frame to the pool. Waits while there is no space because the pool does not read.
    fn reply(&mut self, header: FromWorker, payload: &[u8]) -> Result<(), Closed>;

    /// Returns the worker's board, whose memory outlives the worker. It stays mapped until the
    /// process ends, since the panic hook and the fault handler may write to it at any time.
    fn board(&self) -> &'static Board;
}

crate::debug::debug_is_display!(Closed);

/// The reason why no more frames can be received or sent.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Closed {
    #[error("the other side is gone")]
    Gone,
    #[error("the other side does not keep to the protocol: {0}")]
    Protocol(WireError),
}

impl From<WireError> for Closed {
    fn from(error: WireError) -> Self {
        Closed::Protocol(error)
    }
}
