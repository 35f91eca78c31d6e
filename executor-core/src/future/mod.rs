//! The future of a task: a cell that is filled once, and the handle that reads it.
//!
//! ```text
//!   completer (the pool's task table)          handle (the user)
//!        │ complete(outcome), by value            TaskFuture<T>
//!        ▼                                           │ result, wait: block
//!   Cell: Pending ──► Done(outcome) ──► Taken        │ poll: leaves a waker
//!            │           │                           │ add_done_callback
//!            │           ├─ wakes who blocks         ▼
//!            │           ├─ wakes wakers         decodes, in the reader's thread
//!            │           └─ queues callbacks ──► the executor's callback thread
//!            └─ Running is not stored here: the worker's board knows, the cell asks
//! ```
//!
//! The results of a map do not go into cells, but into one [`feed`]; who wants all of them at once has a [`gather`].
//!
//! The cell holds bytes; only the handle knows the type. A completer that is dropped without an outcome completes with
//! an error: no future stays pending for ever. User code (wakers, callbacks, decoding) never runs under a lock.

mod as_completed;
pub(crate) mod callback;
pub(crate) mod cell;
pub(crate) mod feed;
pub(crate) mod gather;
mod handle;
pub(crate) mod timer;
pub(crate) mod wait;

pub use as_completed::{AsCompleted, AsCompletedStream, AsCompletedTimeout, Unfinished, as_completed};
pub(crate) use handle::decode;
pub use handle::{CancelHandle, TaskFuture};
pub use wait::{ReturnWhen, wait};
