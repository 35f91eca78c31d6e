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
//! When the parent dies, the watcher thread kills the worker's whole process group, also while a task computes. When a
//! task panics, the hook notes message and place on the board first, so that they survive an abort, and the panic is
//! caught around the call. When the stack overflows, the fault handler notes that, and the process dies as it would.

mod beside;
mod call;
pub(crate) mod entry;
mod panics;
mod serve;
pub mod state;
mod watcher;

pub(crate) use panics::in_task;
