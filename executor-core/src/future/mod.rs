//! The future of a task: a cell that is filled once, and the handle that reads it.
//!
//! ```text
//!   completer (the pool's task table)          handle (the user)
//!        │ complete(outcome), by value            TaskFuture<T>
//!        ▼                                           │ result, wait: block
//!   Cell: Pending ──► Done(outcome) ──► Taken        │ poll: leaves a waker
//!            │           │                           │ add_done_callback
//!            │           ├─ wakes blocked threads    ▼
//!            │           ├─ wakes wakers         decodes, in the reader's thread
//!            │           └─ queues callbacks ──► the executor's callback thread
//!            └─ Running is not stored here: the cell asks the worker's board
//! ```
//!
//! The results of a map do not go into cells but into one [`MapResults`](map_results::MapResults).
//! A [`JoinAll`](join_all::JoinAll) collects all of them.
//!
//! The cell holds bytes. Only the handle knows the type. If a completer is dropped without an
//! outcome, it completes the cell with an error, so no future stays pending for ever. User code
//! (wakers, callbacks, decoding) never runs while a lock is held.

mod as_completed;
pub(crate) mod callback;
pub(crate) mod cell;
mod done_queue;
mod handle;
pub(crate) mod join_all;
pub(crate) mod map_results;
pub(crate) mod timer;
pub(crate) mod wait;

pub use as_completed::{
    AsCompleted, AsCompletedStream, AsCompletedTimeout, Unfinished, as_completed,
};
pub use handle::{CancelHandle, TaskFuture, UsageHandle};
pub(crate) use handle::{decode, decode_bytes};
pub use wait::{ReturnWhen, wait};
