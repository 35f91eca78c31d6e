//! The child's side. It knows the wire and the registry, and nothing of the pool.
//!
//! ```text
//!  start ─► entry::init ── not a worker ─► return to `main`
//!             │ a worker: take descriptor 0 away, read Setup, say Hello, watch the parent
//!             ▼
//!           serve: receive ─► claim ─► call: decode, run, encode ─► reply ─┐   all on one and the same thread:
//!             ▲                                                            │   the process's main thread
//!             └────────────────────────────────────────────────────────────┘
//! ```
//!
//! `serve` is a worker of a pool. A process of its own (`body`) runs one task in the same way and says how it ended; the
//! fork server (`fork_server`) makes other children, and never has a second thread.
//!
//! When the parent dies, the watcher thread kills the worker's whole process group, also while a task computes. When a
//! task panics, the hook notes message and place on the board first, so that they survive an abort, and the panic is
//! caught around the call. When the stack overflows, the fault handler notes that, and the process dies as it would.

mod beside;
mod body;
mod call;
pub(crate) mod entry;
mod fork_server;
mod panics;
mod serve;
pub mod state;
pub(crate) mod watcher;

pub(crate) use body::BODY;
pub(crate) use panics::in_task;
