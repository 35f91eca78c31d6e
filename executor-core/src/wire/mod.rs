//! What parent and worker share: nothing else crosses between them.
//!
//! ```text
//! start      Setup ──►  ◄── Hello                       handshake, over the worker's descriptor 0
//! then       Init, Run, Stop ──►                        frames, over the transport
//!            ◄── Ready, Done, Failed, Panicked, …, Credit
//! ```
//!
//! Nothing on the wire is an address or depends on link order: functions are named by a hash of their name.

pub(crate) mod attachment;
pub(crate) mod buffer;
pub(crate) mod codec;
pub(crate) mod frame;
pub(crate) mod handshake;
pub(crate) mod payload;
