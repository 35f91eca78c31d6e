//! Why a process was not started.

use std::{error::Error, fmt, io, sync::Arc};

use crate::{
    child::birth::Barren,
    error::{ADD_THE_ENTRY, TaskError},
};

/// Why a process was not started.
#[derive(Clone)]
#[non_exhaustive]
pub enum StartError {
    /// The arguments of the task cannot be encoded.
    Arguments(TaskError),
    /// An option has an invalid value.
    Invalid(Arc<str>),
    /// This process, or the fork server, has never called the entry. Continuing would start
    /// processes without end.
    NoEntry,
    /// Processes are nested too deeply.
    TooDeep {
        /// The depth that the process would have.
        depth: u32,
        /// The maximum depth.
        max: u32,
    },
    /// Two task functions have the same name. This can happen only where tasks are found by name
    /// across builds. A process of this program never returns it, because it tells such functions
    /// apart.
    DuplicateTask(Arc<str>),
    /// [`StartMethod::Fork`](crate::StartMethod::Fork) was used in a process with other threads.
    Threads {
        /// The number of threads, including the calling one.
        threads: usize,
    },
    /// The fork server cannot create children.
    ForkServer(Arc<str>),
    /// The system refused to fork.
    Fork(Arc<io::Error>),
    /// The operating system refused a request.
    Os {
        /// The request.
        what: &'static str,
        /// The error that the system returned.
        error: Arc<io::Error>,
    },
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StartError::Arguments(error) => fmt::Display::fmt(error, f),
            StartError::Invalid(what) => write!(f, "invalid option: {what}"),
            StartError::NoEntry => write!(
                f,
                "a process was started again but never reached executor's entry point; {ADD_THE_ENTRY}"
            ),
            StartError::TooDeep { depth, max } => write!(
                f,
                "processes are nested {depth} deep, {max} is the limit: does a process start itself without end?"
            ),
            StartError::DuplicateTask(what) => f.write_str(what),
            StartError::Threads { threads } => write!(
                f,
                "this process has {threads} threads, and a copy of it would have one: what the others have \
                 locked stays locked in it for ever; use StartMethod::Spawn or StartMethod::ForkServer, or \
                 start it before any thread"
            ),
            StartError::ForkServer(why) => write!(f, "the fork server cannot be used: {why}"),
            StartError::Fork(_) => f.write_str("the operating system refused to fork"),
            StartError::Os { what, error: _ } => write!(f, "the operating system refused {what}"),
        }
    }
}

impl Error for StartError {
    /// Returns the operating system's error, as an [`io::Error`].
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            StartError::Arguments(error) => error.source(),
            StartError::Fork(error) | StartError::Os { error, .. } => Some(&**error),
            _ => None,
        }
    }
}

crate::debug::debug_is_chain!(StartError);

impl StartError {
    pub(super) fn os(what: &'static str, error: io::Error) -> Self {
        StartError::Os { what, error: Arc::new(error) }
    }
}

impl From<Barren> for StartError {
    fn from(barren: Barren) -> Self {
        match barren {
            Barren::NoEntry => StartError::NoEntry,
            Barren::TooDeep { depth, max } => StartError::TooDeep { depth, max },
        }
    }
}
