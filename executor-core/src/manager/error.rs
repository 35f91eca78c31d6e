//! Why a call of a managed object has failed.

use std::{fmt, io, sync::Arc};

use crate::{
    error::{RemoteError, TaskError},
    ipc::{Address, AuthError},
};

/// Why a call of a managed object has failed.
///
/// ```
/// use executor::manager::{Manager, ManagerError};
///
/// #[executor::main]
/// fn main() -> Result<(), Box<dyn std::error::Error>> {
///     let manager = Manager::start()?;
///     let numbers = manager.list([1, 2, 3])?;
///     manager.shutdown();
///     assert!(matches!(numbers.len(), Err(ManagerError::Gone(_))));
///     Ok(())
/// }
/// ```
#[derive(Clone)]
#[non_exhaustive]
pub enum ManagerError {
    /// The server is gone: it was shut down, was killed, or has cut this process off. The text says
    /// which, as far as it is known.
    Gone(Arc<str>),
    /// The server was not started. The text says why.
    NotStarted(Arc<str>),
    /// The server cannot listen at this address.
    #[non_exhaustive]
    NotListening {
        /// The address.
        address: Address,
        /// The reason.
        error: Arc<io::Error>,
    },
    /// There is no server at this address, or it did not answer in time.
    #[non_exhaustive]
    NotConnected {
        /// The address.
        address: Address,
        /// The system's error.
        error: Arc<io::Error>,
    },
    /// Authentication failed: the two sides have different keys.
    #[non_exhaustive]
    Auth {
        /// The address of the server.
        address: Address,
        /// The reason.
        error: AuthError,
    },
    /// The server at this address is not the one that this process trusts. The text says why.
    #[non_exhaustive]
    Untrusted {
        /// The address.
        address: Address,
        /// The reason.
        why: Arc<str>,
    },
    /// The object does not exist any more. This happens to an object whose handle was copied by a
    /// `fork`, when the last handle in the original process was dropped. And to one that was
    /// reached by the address of its server, if nobody else had a handle of it while the connection
    /// was lost, or if the server was started again.
    NoObject,
    /// The call would have had to wait for longer than its timeout.
    TimedOut,
    /// The object does not allow the call in its state. For example, a lock that is not held cannot
    /// be released.
    Refused(&'static str),
    /// A limit of the manager is reached. The text says which.
    Limit(Arc<str>),
    /// A value could not be encoded. The text names its type.
    Encode(Arc<str>),
    /// What is stored could not be decoded as the type that this handle has. The text names it.
    Decode(Arc<str>),
    /// The function of an update returned an error, or panicked. The value is as it was before. Or
    /// a method of a managed type did so. The object is as the method has left it.
    Failed(TaskError),
    /// An address or an option cannot be used here. The text says which, and what to do.
    Invalid(Arc<str>),
    /// The server, or this process, does not keep to the protocol.
    Protocol(Arc<str>),
    /// The operating system refused a request.
    Os {
        /// The request.
        what: &'static str,
        /// The error that the system returned.
        error: Arc<io::Error>,
    },
}

crate::debug::debug_is_chain!(ManagerError);

impl ManagerError {
    pub(crate) fn os(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |error| ManagerError::Os { what, error: Arc::new(error) }
    }

    /// Returns the error of a socket to the server: [`Gone`](Self::Gone) if the server has closed
    /// its end.
    pub(crate) fn socket(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |error| match error.kind() {
            // A server that ends with unread messages in its socket resets the connection.
            io::ErrorKind::BrokenPipe
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::NotConnected => ManagerError::Gone("it has ended".into()),
            _ => ManagerError::os(what)(error),
        }
    }

    /// Returns the error of the function of an update, or of a method of a managed type, if it
    /// returned one or panicked.
    pub fn remote(&self) -> Option<&RemoteError> {
        match self {
            ManagerError::Failed(TaskError::Failed(error) | TaskError::Panicked(error)) => {
                Some(error)
            }
            _ => None,
        }
    }
}

impl fmt::Display for ManagerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ManagerError::Gone(why) => write!(f, "the manager's server is gone: {why}"),
            ManagerError::NotStarted(why) => write!(f, "the manager was not started: {why}"),
            ManagerError::NotListening { address, .. } => {
                write!(f, "the manager cannot listen at `{address}`")
            }
            ManagerError::NotConnected { address, .. } => {
                write!(f, "there is no connection to a manager at `{address}`")
            }
            ManagerError::Auth { address, error } => {
                write!(f, "could not authenticate at the manager at `{address}`: {error}")
            }
            ManagerError::Untrusted { address, why } => {
                write!(f, "the manager at `{address}` is not the one that is trusted: {why}")
            }
            ManagerError::NoObject => f.write_str(
                "the managed object does not exist any more: its last handle was dropped, or its server was started again",
            ),
            ManagerError::TimedOut => f.write_str("the managed object was not ready in time"),
            ManagerError::Refused(what) => f.write_str(what),
            ManagerError::Limit(what) => write!(f, "a limit of the manager is reached: {what}"),
            ManagerError::Encode(what) => {
                write!(f, "a value cannot be stored in a manager: {what}")
            }
            ManagerError::Decode(what) => {
                write!(f, "what a manager has stored cannot be read: {what}")
            }
            ManagerError::Failed(error) => fmt::Display::fmt(error, f),
            ManagerError::Invalid(what) => f.write_str(what),
            ManagerError::Protocol(what) => {
                write!(
                    f,
                    "the manager's server and this process do not understand each other: {what}"
                )
            }
            ManagerError::Os { what, .. } => write!(f, "the system refused {what}"),
        }
    }
}

impl std::error::Error for ManagerError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            ManagerError::Os { error, .. }
            | ManagerError::NotConnected { error, .. }
            | ManagerError::NotListening { error, .. } => Some(&**error),
            ManagerError::Failed(error) => std::error::Error::source(error),
            _ => None,
        }
    }
}
