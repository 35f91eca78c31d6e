//! The simplest queue.

use std::{fmt, io, marker::PhantomData};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::DeserializeOwned};

use super::core::Core;
use super::{GetError, PutError, Queue, handles};

/// A queue without a capacity and without timeouts: put, get, and a test for emptiness.
///
/// Everything else is the same as for [`Queue`].
///
/// ```
/// let queue = executor::SimpleQueue::new()?;
/// queue.put("a".to_owned())?;
/// assert!(!queue.is_empty()?);
/// assert_eq!(queue.get()?, "a");
/// queue.close();
/// assert!(queue.is_empty().is_err());
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
pub struct SimpleQueue<T> {
    queue: Queue<T>,
    types: PhantomData<()>,
}

impl<T> SimpleQueue<T> {
    /// Creates an empty queue.
    ///
    /// # Errors
    /// If the system has no memory or descriptor left.
    pub fn new() -> io::Result<Self> {
        Ok(SimpleQueue { queue: Queue::unbounded()?, types: PhantomData })
    }

    /// Puts an item.
    ///
    /// # Errors
    /// As for [`Queue::put`].
    pub fn put(&self, item: T) -> Result<(), PutError<T>>
    where
        T: Serialize,
    {
        self.queue.put(item)
    }

    /// Gets the next item, waiting for one.
    ///
    /// # Errors
    /// As for [`Queue::get`].
    pub fn get(&self) -> Result<T, GetError>
    where
        T: DeserializeOwned,
    {
        self.queue.get()
    }

    /// Returns whether the queue is empty.
    ///
    /// # Errors
    /// If the queue is closed.
    pub fn is_empty(&self) -> Result<bool, GetError> {
        if self.queue.is_closed() { Err(GetError::Closed) } else { Ok(self.queue.is_empty()) }
    }

    /// Closes the queue, like [`Queue::close`].
    pub fn close(&self) {
        self.queue.close();
    }

    fn core(&self) -> &Core {
        self.queue.core()
    }
}

handles!(SimpleQueue, queue);

impl<T> Serialize for SimpleQueue<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.queue.serialize(serializer)
    }
}

impl<'de, T> Deserialize<'de> for SimpleQueue<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(SimpleQueue { queue: Queue::deserialize(deserializer)?, types: PhantomData })
    }
}
