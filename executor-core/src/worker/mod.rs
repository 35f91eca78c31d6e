//! The child's side: workers, processes with one task, and the fork server. It uses the wire format
//! and the registry, and nothing of the pool.
//!
//! ```text
//!  start ─► entry::init ── not a worker ─► return to `main`
//!             │ a worker: take descriptor 0 away, read Setup, say Hello, watch the parent
//!             ▼
//!           serve: receive ─► claim ─► call: decode, run, encode ─► reply ─┐  all on one thread:
//!             ▲                                                            │  the main thread
//!             └────────────────────────────────────────────────────────────┘
//! ```
//!
//! `serve` is the loop of a pool's worker. A process with one task (`body`) runs the task in the
//! same way and reports how it ended. The fork server (`fork_server`) makes other children, and
//! never has a second thread.
//!
//! The watcher thread also looks at the memory of a worker that may only have so much (`gauge`).
//! What else a pool's limits mean for each task is in `guard`.
//!
//! When the parent dies, the watcher thread kills the worker's whole process group, even while a
//! task computes. When a task panics, the panic hook first writes the message and the location to
//! the board, so that they survive an abort. Then the panic is caught around the call. When the
//! stack overflows, the fault handler records it, and the process dies as it would without the
//! handler.

mod ancillary;
mod body;
mod call;
pub(crate) mod cancellation;
pub(crate) mod entry;
mod error_hook;
mod fork_server;
mod gauge;
mod guard;
mod panics;
pub(crate) mod place;
mod serve;
pub mod state;
pub(crate) mod watcher;

pub(crate) use body::BODY;
pub(crate) use call::call_here;
pub(crate) use panics::in_task;
