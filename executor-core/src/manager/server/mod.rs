//! The server's side of a manager: one process, in which one thread at a time serves all clients.
//!
//! ```text
//!  the door ── a client ───────► welcome: its lane and its socket
//!  the gate ── a client ───────► over a Unix socket: the door; over TCP: its connection
//!  lanes of busy clients ──────► Core: objects, references, waits ──► replies into the lanes
//!  sockets of sleeping clients ► "look"      │
//!  pipes (leases) ─────────────► closed      ├─ functions of users ─► crew ─► Core
//!                                            └─ tasks ─► pools: workers ────► Core
//!  the owner ──────────────────► closed: the server ends
//! ```
//!
//! The loop looks at the lanes of those clients that were busy last. When all are empty for a
//! moment, it announces its sleep in each of them, and sleeps in `epoll` until one of them sends a
//! byte. So no call makes a system call while client and server are awake.
//!
//! What happens when somebody dies:
//!
//! - **A client.** Its socket says so: references, waits and locks end.
//! - **A process that an object was sent to.** The object's pipe is closed when the last copy of
//!   its end is: the kernel counts, whoever has it, and whether or not a message was ever received.
//! - **The owner** (the process that has the `Manager`). Its socket is closed, and this process's
//!   watcher ends it as well.
//!
//! Nothing that a client sends is trusted. A client that breaks the protocol, or that takes no
//! replies until too many bytes wait for it, is cut off.

pub(super) mod core;
mod crew;
pub(super) mod entry;
pub(super) mod gate;
#[cfg(all(test, feature = "tls", not(any(executor_loom, executor_shuttle))))]
mod gate_tests;
mod guest;
mod pools;
mod segments;
mod serve;
pub(super) mod serving;
#[cfg(all(test, not(any(executor_loom, executor_shuttle))))]
mod tests;
mod unread;
