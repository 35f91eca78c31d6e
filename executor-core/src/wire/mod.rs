//! Everything that crosses between parent and worker. They share nothing else.
//!
//! ```text
//! start      Setup ──►  ◄── Hello                       handshake, over the worker's descriptor 0
//! then       Init, Run, Stop ──►                        frames, over the transport
//!            ◄── Ready, Done, Failed, Panicked, …, Usage, Credit
//! ```
//!
//! Nothing on the wire is an address or depends on the link order. A function is named by a hash of
//! its name.

pub(crate) mod attachment;
pub(crate) mod buffer;
pub(crate) mod codec;
pub(crate) mod frame;
pub(crate) mod handshake;
pub(crate) mod measured;
pub(crate) mod payload;
pub(crate) mod values;
