//! The errors of sending and receiving.

use std::io;

use super::message::Disorder;

/// The error of receiving a message.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum RecvError {
    /// No message has come yet, or none within the timeout. Only from `try_recv`, `recv_timeout`
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
    #[error("receiving failed")]
    Io(#[from] io::Error),
}

crate::debug::debug_is_chain!(RecvError, SendError);

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
    #[error("sending failed")]
    Io(#[from] io::Error),
}

#[cfg(test)]
mod tests {
    use std::{error::Error, iter, sync::Arc};

    use super::*;
    use crate::{
        error::BuildError,
        ipc::{AcceptError, Address, AuthError, ConnectError},
    };

    /// Returns the text of an error and those of its causes, as programs print them.
    fn chain(error: &dyn Error) -> Vec<String> {
        iter::successors(Some(error), |error| (*error).source()).map(ToString::to_string).collect()
    }

    #[test]
    fn errors_of_connections_and_listeners_and_their_causes_contain_each_text_once() {
        let system = || io::Error::from_raw_os_error(libc::EMFILE);
        // An error of the system that the library has explained, and that has a cause of its own.
        let explained =
            || io::Error::other(BuildError::Os { what: "a thread", error: Arc::new(system()) });
        let (address, peer) = (Address::any(), None);
        let errors: Vec<(Box<dyn Error>, usize)> = vec![
            (RecvError::Empty.into(), 0),
            (RecvError::Closed.into(), 0),
            (RecvError::Truncated.into(), 0),
            (RecvError::Decode("no float".into()).into(), 0),
            (RecvError::TooLong { len: 2, max: 1 }.into(), 0),
            (RecvError::TooShort(vec![0; 9]).into(), 0),
            (RecvError::from(Disorder::Part).into(), 0),
            (RecvError::Io(system()).into(), 1),
            (RecvError::Io(explained()).into(), 2),
            (SendError::Closed.into(), 0),
            (SendError::Encode("no float".into()).into(), 0),
            (SendError::Io(system()).into(), 1),
            (SendError::Io(explained()).into(), 2),
            (AcceptError::Closed.into(), 0),
            (AcceptError::TimedOut.into(), 0),
            (AcceptError::Refused { peer, error: AuthError::WrongKey }.into(), 0),
            (AcceptError::Io(system()).into(), 1),
            (AcceptError::Io(explained()).into(), 2),
            (ConnectError::Auth { address: address.clone(), error: AuthError::Closed }.into(), 0),
            (ConnectError::Io { address: address.clone(), error: system() }.into(), 1),
            (ConnectError::Io { address, error: explained() }.into(), 2),
        ];
        for (error, causes) in errors {
            let texts = chain(&*error);
            assert_eq!(texts.len(), 1 + causes, "{texts:?}");
            for (at, cause) in texts.iter().enumerate() {
                assert!(texts[..at].iter().all(|outer| !outer.contains(cause)), "{texts:?}");
            }
            assert_eq!(format!("{error:?}"), texts.join(": "));
            if let Some(cause) = error.source() {
                assert!(cause.is::<io::Error>(), "{texts:?}");
            }
        }
    }
}
