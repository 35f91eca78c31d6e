//! Errors of putting and getting.

use std::io;

use super::core::{Missing, Refused};

/// The error returned when an item was not put. It contains the item:
/// [`into_inner`](Self::into_inner).
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum PutError<T> {
    /// There is no room, or there was none within the timeout.
    #[error("the queue is full")]
    Full(T),
    /// Another process is in the middle of putting an item and has not gone on within the timeout,
    /// or within some milliseconds if there is no timeout; most likely it is stopped. So whether
    /// there is room is unknown. Only methods with `try` or `timeout` in their name return this.
    #[error(
        "the queue is in use by a process that does not go on: whether there is room is not known"
    )]
    Busy(T),
    /// The queue is closed, or no consumer is left.
    #[error("the queue is closed")]
    Closed(T),
    /// The item cannot be encoded. The string is the reason.
    #[error("could not encode the item: {1}")]
    Encode(T, String),
    /// The operating system refused: there is no memory, or too many descriptors are in transit.
    #[error("could not put the item")]
    Io(T, #[source] io::Error),
}

impl<T> PutError<T> {
    /// Returns the item.
    pub fn into_inner(self) -> T {
        match self {
            PutError::Full(item)
            | PutError::Busy(item)
            | PutError::Closed(item)
            | PutError::Encode(item, _)
            | PutError::Io(item, _) => item,
        }
    }

    pub(super) fn new(refused: Refused, item: T) -> Self {
        match refused {
            Refused::Full => PutError::Full(item),
            Refused::Busy => PutError::Busy(item),
            Refused::Closed => PutError::Closed(item),
            Refused::Io(error) => PutError::Io(item, error),
        }
    }
}

// The error implements `Debug` even if the item does not.
crate::debug::debug_is_chain!([T] PutError<T>);
crate::debug::debug_is_chain!(GetError);

/// The error returned when no item was received.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum GetError {
    /// There is no item, or there was none within the timeout.
    #[error("the queue is empty")]
    Empty,
    /// There are items, but another process is in the middle of getting one and has not gone on
    /// within the timeout, or within some milliseconds if there is no timeout; most likely it is
    /// stopped. Only methods with `try` or `timeout` in their name return this.
    #[error(
        "the queue is in use by a process that does not go on: there are items, and they cannot be got now"
    )]
    Busy,
    /// The queue is closed, or no producer is left; and the queue is empty.
    #[error("the queue is closed")]
    Closed,
    /// The item is not a value of this type. It has been consumed.
    #[error("could not decode the item: {0}")]
    Decode(String),
    /// The operating system refused, or the queue's memory is garbled.
    #[error("could not get an item")]
    Io(#[from] io::Error),
}

impl From<Missing> for GetError {
    fn from(missing: Missing) -> Self {
        match missing {
            Missing::Empty => GetError::Empty,
            Missing::Busy => GetError::Busy,
            Missing::Closed => GetError::Closed,
            Missing::Io(error) => GetError::Io(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{error::Error, iter, sync::Arc};

    use super::*;
    use crate::{
        error::BuildError,
        ipc::{LostItems, TaskDoneError},
    };

    /// An item without `Debug` and `Display`.
    struct Plain;

    /// Returns the text of an error and those of its causes, as programs print them.
    fn chain(error: &dyn Error) -> Vec<String> {
        iter::successors(Some(error), |error| (*error).source()).map(ToString::to_string).collect()
    }

    #[test]
    fn errors_of_queues_and_their_causes_contain_each_text_once() {
        let system = || io::Error::from_raw_os_error(libc::ENOMEM);
        // An error of the system that the library has explained, and that has a cause of its own.
        let explained =
            || io::Error::other(BuildError::Os { what: "a thread", error: Arc::new(system()) });
        let put = |refused| PutError::new(refused, Plain);
        let errors: Vec<(Box<dyn Error>, usize)> = vec![
            (put(Refused::Full).into(), 0),
            (put(Refused::Busy).into(), 0),
            (put(Refused::Closed).into(), 0),
            (PutError::Encode(Plain, "no float".into()).into(), 0),
            (put(Refused::Io(system())).into(), 1),
            (put(Refused::Io(explained())).into(), 2),
            (GetError::Empty.into(), 0),
            (GetError::Busy.into(), 0),
            (GetError::Closed.into(), 0),
            (GetError::Decode("no float".into()).into(), 0),
            (GetError::from(Missing::Io(system())).into(), 1),
            (GetError::from(explained()).into(), 2),
            (TaskDoneError.into(), 0),
            (LostItems { count: 2 }.into(), 0),
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
