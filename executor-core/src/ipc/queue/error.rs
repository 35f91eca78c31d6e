//! Why something was not put, or not got.

use std::io;

use super::core::{Missing, Refused};

/// Why an item was not put. It comes back: [`into_inner`](Self::into_inner).
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum PutError<T> {
    /// There is no room, or there was none within the limit.
    #[error("the queue is full")]
    Full(T),
    /// Another process is in the middle of putting an item and has not gone on within the limit, or within some milliseconds if
    /// none was given; most likely it is stopped. So it is not known whether there is room. Only from what has `try` or `timeout`
    /// in its name.
    #[error("the queue is in use by a process that does not go on: whether there is room is not known")]
    Busy(T),
    /// The queue is closed, or nobody is left who could get it.
    #[error("the queue is closed")]
    Closed(T),
    /// It cannot be encoded, for this reason.
    #[error("could not encode the item: {1}")]
    Encode(T, String),
    /// The system refused: there is no memory, or there are too many descriptors on their way.
    #[error("could not put the item: {1}")]
    Io(T, #[source] io::Error),
}

impl<T> PutError<T> {
    /// The item.
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

// An item need not be `Debug` for the error to be.
crate::debug::debug_is_display!([T] PutError<T>);
crate::debug::debug_is_display!(GetError);

/// Why no item was got.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum GetError {
    /// There is none, or there was none within the limit.
    #[error("the queue is empty")]
    Empty,
    /// There are items, and another process is in the middle of getting one and has not gone on within the limit, or within some
    /// milliseconds if none was given; most likely it is stopped. Only from what has `try` or `timeout` in its name.
    #[error(
        "the queue is in use by a process that does not go on: there are items, and they cannot be got now"
    )]
    Busy,
    /// The queue is closed, or nobody is left who could put anything; and it is empty.
    #[error("the queue is closed")]
    Closed,
    /// The item is no value of this type. It is used up.
    #[error("could not decode the item: {0}")]
    Decode(String),
    /// The system refused, or the queue's memory is not what it should be.
    #[error("could not get an item: {0}")]
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
