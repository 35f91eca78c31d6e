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
    #[error("could not put the item: {1}")]
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
crate::debug::debug_is_display!([T] PutError<T>);
crate::debug::debug_is_display!(GetError);

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
