//! The errors of sending and receiving.

use std::io;

use super::message::Disorder;

/// The error of receiving a message.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum RecvError {
    /// No message has come yet, or none within the time limit. Only from `try_recv`, `recv_timeout`
    /// and similar methods.
    #[error("no message yet")]
    Empty,

    /// The peer is gone, and everything it had sent was received. It may have closed its end,
    /// exited or been killed.
    #[error("the peer has closed the connection")]
    Closed,

    /// The peer ended in the middle of a message, which was its last.
    #[error("the peer ended in the middle of a message")]
    Truncated,

    /// The message is not a value of the expected type. It is used up. The next message can be
    /// received.
    #[error("could not decode what was received: {0}")]
    Decode(String),

    /// The message is longer than the caller accepts. It can still be received with a higher limit.
    #[error("a message of {len} bytes, and at most {max} were asked for")]
    #[non_exhaustive]
    TooLong {
        /// Length of the message in bytes, as announced by the peer.
        len: u64,
        /// The caller's limit in bytes.
        max: u64,
    },

    /// The message does not fit into the buffer. The error contains the message.
    #[error("a message of {} bytes does not fit into the buffer", .0.len())]
    TooShort(Vec<u8>),

    /// A protocol violation by the peer.
    #[error("{0}")]
    Invalid(String),

    /// The system refused.
    #[error("receiving failed: {0}")]
    Io(#[from] io::Error),
}

crate::debug::debug_is_display!(RecvError, SendError);

impl RecvError {
    /// Whether nothing more can be received after this error.
    pub fn is_end(&self) -> bool {
        matches!(
            self,
            RecvError::Closed | RecvError::Truncated | RecvError::Invalid(_) | RecvError::Io(_)
        )
    }
}

impl From<Disorder> for RecvError {
    fn from(disorder: Disorder) -> Self {
        RecvError::Invalid(disorder.to_string())
    }
}

/// The error of sending a message.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// The peer is gone, so the message could not be received.
    #[error("the peer has closed the connection")]
    Closed,

    /// The value could not be encoded. Nothing was sent.
    #[error("could not encode the value: {0}")]
    Encode(String),

    /// The system refused.
    #[error("sending failed: {0}")]
    Io(#[from] io::Error),
}
