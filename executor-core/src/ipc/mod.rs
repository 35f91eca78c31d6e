//! Messages between processes: connections, listeners, and waiting for several of them.
//!
//! ```text
//!  Connection<S, R>, Sender<T>, Receiver<T>          typed; they travel as handles
//!        │ bytes, descriptors
//!        ▼
//!  endpoint     one end: what is half sent, what has half arrived ── message ── heads and parts, pure
//!        │
//!        ▼
//!  a SEQPACKET pair, or a Unix socket of a Listener:  │head│ ≤ 64 KiB │ + descriptors │   one packet, whole or not at all
//!  TCP:                                               │head│ bytes ………│                  no descriptors, nobody is trusted
//! ```
//!
//! Packets instead of a stream where it can be had: a small message is one system call on either side, a sender that is
//! killed leaves no half of one, and processes that share an end do not mix theirs. A large message goes in parts, and a
//! part says which message it belongs to.
//!
//! # When somebody dies
//!
//! | who dies | then |
//! |---|---|
//! | the last holder of the other end | what it had sent is received; then `Closed`. Whoever sends gets `Closed` |
//! | a sender in the middle of a long message | the last holder: `Truncated`. Others hold the end: it is dropped for their next message |
//! | a receiver in the middle of a long message | the message is lost with it |
//! | one to whom a handle is on its way | the kernel closes what lies in the socket |
//! | a client in its handshake, or it says nothing | the listener goes on with the others; after a limit it is dropped |

mod address;
mod auth;
mod connection;
mod endpoint;
mod error;
#[cfg(any(all(test, not(any(executor_loom, executor_shuttle))), fuzzing))]
pub(crate) mod fuzzed;
mod listener;
mod message;
mod queue;
mod readiness;
mod transfer;

pub use address::{Address, AddressError};
pub use auth::{AuthError, AuthKey};
pub use connection::{Connection, Receiver, Sender, channel, pipe};
pub use error::{RecvError, SendError};
pub use listener::{AcceptError, Client, ConnectError, Listener};
pub use queue::{
    Consumer, GetError, JoinableQueue, LostItems, OnLost, Producer, PutError, Queue, SimpleQueue,
    TaskDoneError, UnfinishedItem,
};
pub use readiness::wait_any;
pub use transfer::Transfer;
