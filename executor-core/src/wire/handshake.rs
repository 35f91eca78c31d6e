//! The first exchange, over the socket that is the worker's descriptor 0 at its start.
//!
//! ```text
//! parent                                   worker
//!   Setup { nonce, pid, depth, args, … }  ──►  read at `init()`; the shared segment rides along
//!   Hello { nonce, tasks, server }        ◄──  over ipc-channel only: its server listens under `server`
//!   connects to `server`, sends its ends  ──►  accepts
//!                 from now on frames
//! ```
//!
//! The version comes first, alone in its message's first bytes: another version could not decode the rest.

use serde::{Deserialize, Serialize};

use crate::registry::Fingerprint;

/// Changes whenever a message of the wire changes.
pub(crate) const VERSION: u32 = 1;

/// From the parent: who you are.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Setup {
    /// To be sent back: proves that the answer belongs to this start.
    pub(crate) nonce: u64,
    /// The parent's process id, to see whether it is still there.
    pub(crate) parent: u32,
    /// How deep executors are nested in the worker: 1 for a worker of the main program.
    pub(crate) depth: u32,
    /// The caller's own arguments.
    pub(crate) args: Vec<serde_bytes::ByteBuf>,
    /// Stack of the thread that runs tasks.
    pub(crate) stack_bytes: Option<u64>,
    /// How frames are going to move.
    pub(crate) transport: Transport,
    /// Over ipc-channel: where the worker's server is to be. Nobody else may look into it, and the parent removes it.
    pub(crate) directory: Option<serde_bytes::ByteBuf>,
}

/// How frames move between the pool and a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Transport {
    /// Over the rings in the segment that came with the setup.
    Ring,
    /// Over ipc-channel.
    Ipc,
}

/// From the worker: here I am.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Hello {
    pub(crate) nonce: u64,
    pub(crate) tasks: Fingerprint,
    /// Name of the worker's ipc-channel server, if frames move that way; or why the worker cannot work.
    pub(crate) server: Result<Option<String>, String>,
}

/// Writes a message of the first exchange.
pub(crate) fn to_bytes<T: Serialize>(message: &T) -> Vec<u8> {
    let out = VERSION.to_le_bytes().to_vec();
    postcard::to_extend(message, out).expect("messages of the handshake are plain data")
}

/// Reads a message of the first exchange.
pub(crate) fn from_bytes<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, String> {
    let Some((version, rest)) = bytes.split_first_chunk() else {
        return Err("the other side left during the handshake".into());
    };
    let version = u32::from_le_bytes(*version);
    if version != VERSION {
        return Err(format!("the other side speaks version {version} of the protocol, this side {VERSION}"));
    }
    postcard::from_bytes(rest).map_err(|error| format!("a message of the handshake does not decode: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_version_and_garbage_are_told_apart() {
        let hello =
            Hello { nonce: 7, tasks: Fingerprint { hash: 1, count: 2 }, server: Ok(Some("name".into())) };
        let mut bytes = to_bytes(&hello);
        assert_eq!(from_bytes::<Hello>(&bytes), Ok(hello));
        assert!(from_bytes::<Hello>(&bytes[..6]).unwrap_err().contains("does not decode"));
        assert!(from_bytes::<Hello>(&[]).unwrap_err().contains("left"));
        bytes[0] = 99;
        assert!(from_bytes::<Hello>(&bytes).unwrap_err().contains("version 99"));
    }
}
