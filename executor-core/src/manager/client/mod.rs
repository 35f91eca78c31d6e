//! The client's side of a manager: handles of objects, and the connection through which they make
//! their calls.
//!
//! ```text
//!  Dict, List, Queue, …                    a thread, or a future
//!     │ Reference: server, object             │
//!     ▼                                       ▼
//!  table: one Connection for each server ─► send ── requests ring ──────────► server
//!                                             │
//!                                          receive ◄── replies ring ─────────
//!                                             │  at most one thread; passes on others' replies
//!                                             └─► seats of threads, slots of futures
//! ```
//!
//! If the server dies, the socket says so, and every call that waits gets
//! [`ManagerError::Gone`](super::ManagerError::Gone). If this process dies, the server notices it
//! by the same socket. After a `fork`, the child makes a connection of its own, with the first
//! call.

mod backoff;
mod calls;
pub(super) mod connection;
pub(super) mod door;
#[cfg(feature = "tls")]
mod keeper;
mod reference;
mod route;
mod segments;
mod table;
#[cfg(all(test, feature = "tls", not(any(executor_loom, executor_shuttle))))]
mod tests;
mod value;
#[cfg(feature = "tls")]
pub(super) mod way;

pub use backoff::Backoff;
pub(super) use door::{Door, ServerId};
pub(super) use reference::{Answer, PendingAnswer, Reference, Request, Session, Values};
pub(super) use route::{Route, RouteOptions};
pub(super) use segments::{GRANTED, SEGMENT_FROM};
pub(super) use value::{Lender, Named, naming, naming_result, serving, take_result};
