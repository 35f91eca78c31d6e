//! What can go wrong between processes, in words that say what to do next.

use std::io;

use super::message::Disorder;

/// Why nothing was received.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum RecvError {
    /// No message has come yet, or within the limit. Only from `try_recv` and `recv_timeout` and their kin.
    #[error("no message yet")]
    Empty,

    /// The peer is gone, whether it closed its end, ended or was killed, and everything that it had sent was received.
    #[error("the peer has closed the connection")]
    Closed,

    /// The peer ended in the middle of a message. It was the last one.
    #[error("the peer ended in the middle of a message")]
    Truncated,

    /// What came is no value of this type. It is used up; the next message can be received.
    #[error("could not decode what was received: {0}")]
    Decode(String),

    /// A message is longer than the caller takes. It is still there, for whoever takes more.
    #[error("a message of {len} bytes, and at most {max} were asked for")]
    #[non_exhaustive]
    TooLong {
        /// Its length, in bytes, as the peer says.
        len: u64,
        /// The most that was asked for.
        max: u64,
    },

    /// The message does not fit into the buffer; here it is.
    #[error("a message of {} bytes does not fit into the buffer", .0.len())]
    TooShort(Vec<u8>),

    /// What came is no message of this protocol.
    #[error("{0}")]
    Invalid(String),

    /// The system refused.
    #[error("receiving failed: {0}")]
    Io(#[from] io::Error),
}

crate::debug::debug_is_display!(RecvError, SendError);

impl RecvError {
    /// Whether nothing will come any more.
    pub fn is_end(&self) -> bool {
        matches!(self, RecvError::Closed | RecvError::Truncated | RecvError::Invalid(_) | RecvError::Io(_))
    }
}

impl From<Disorder> for RecvError {
    fn from(disorder: Disorder) -> Self {
        RecvError::Invalid(disorder.to_string())
    }
}

/// Why nothing was sent.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// The peer is gone: nobody would receive it.
    #[error("the peer has closed the connection")]
    Closed,

    /// The value could not be encoded. Nothing was sent.
    #[error("could not encode the value: {0}")]
    Encode(String),

    /// The system refused.
    #[error("sending failed: {0}")]
    Io(#[from] io::Error),
}
