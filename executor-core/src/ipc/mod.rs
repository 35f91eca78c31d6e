//! Messages between processes: connections, listeners, and waiting for several of them.
//!
//! ```text
//!  Connection<S, R>, Sender<T>, Receiver<T>        typed; can be sent to other processes
//!        │ bytes, descriptors
//!        ▼
//!  endpoint    one end: messages partly sent and partly received
//!        │       └── message    headers and parts, no I/O
//!        ▼
//!  a SEQPACKET pair, or a Unix socket of a Listener:   │header│ ≤ 64 KiB │ + descriptors
//!                                                       one packet, arrives whole or not at all
//!  TCP:                                                │header│ bytes ………│
//!                                                       no descriptors, peers are not trusted
//! ```
//!
//! Unix sockets carry packets instead of a stream, for three reasons. A small message takes one
//! system call on either side. A sender that is killed leaves no half-written packet. Processes
//! that share an end cannot mix the bytes of their packets. A large message goes in parts, and each
//! part names the message it belongs to.
//!
//! # When a process dies
//!
//! | which process dies | what happens |
//! |---|---|
//! | the last owner of the other end | its messages can be received, then `Closed`; sends fail |
//! | a sender in the middle of a long message, as the last owner of its end | `Truncated` |
//! | the same, with other owners of its end | their next message replaces the partial one |
//! | a receiver in the middle of a long message | the message is lost with it |
//! | a process to which a handle is being sent | the kernel closes the descriptors in the socket |
//! | a client during its handshake | the listener drops it and serves the others |
//!
//! A client that stays silent during its handshake is dropped after a timeout.

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
pub(crate) use auth::{Asking, LEN_MAX as AUTH_BYTES_MAX, Listening, Step as AuthStep};
pub use auth::{AuthError, AuthKey};
pub use connection::{Connection, Receiver, Sender, channel, pipe};
pub use error::{RecvError, SendError};
pub use listener::{AcceptError, Client, ConnectError, Listener};
pub(crate) use listener::{SocketFile, bind_private, connect_to};
pub(crate) use message::MessageKind;
pub use queue::{
    Consumer, GetError, JoinableQueue, LostItems, OnLost, Producer, PutError, Queue, SimpleQueue,
    TaskDoneError, UnfinishedItem,
};
pub use readiness::wait_any;
pub use transfer::Transfer;
