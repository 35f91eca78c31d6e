//! The one that knows when its items are worked off.

use std::{
    fmt, io,
    marker::PhantomData,
    ops::{Deref, DerefMut},
    time::Duration,
};

use futures::{Sink, Stream};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::DeserializeOwned};

use super::{GetError, PutError, Queue, core::Core, gets, handles, looks, nobody, puts};
use crate::ipc::readiness::deadline_in;

/// A queue that knows when all its items are done: not only got, but worked off.
///
/// ```
/// use executor::{JoinableQueue, prelude::*};
///
/// #[task]
/// fn work(queue: JoinableQueue<u64>) -> u64 {
///     let mut sum = 0;
///     while let Ok(item) = queue.get_unfinished() {
///         sum += *item;
///         // Done when the guard is dropped.
///     }
///     sum
/// }
///
/// #[executor::main]
/// fn main() -> Result<(), Box<dyn std::error::Error>> {
///     let pool = ProcessPoolExecutor::builder().max_workers(2).build()?;
///     let queue = JoinableQueue::unbounded()?;
///     let workers: Vec<_> = (0..2).map(|_| pool.submit(work::task(queue.clone()))).collect();
///     for item in 1..=10 {
///         queue.put(item)?;
///     }
///     queue.join();
///     queue.close();
///     let sum: u64 = workers.into_iter().map(|worker| worker.result().unwrap()).sum();
///     assert_eq!(sum, 55);
///     Ok(())
/// }
/// ```
///
/// Everything else holds as for [`Queue`].
pub struct JoinableQueue<T> {
    queue: Queue<T>,
    types: PhantomData<()>,
}

/// More items were said to be done than were put.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("task_done was called more often than there were items")]
pub struct TaskDoneError;

impl<T> JoinableQueue<T> {
    /// As [`Queue::bounded`].
    ///
    /// # Errors
    /// As there.
    pub fn bounded(capacity: usize) -> io::Result<Self> {
        Ok(JoinableQueue { queue: Queue::bounded(capacity)?, types: PhantomData })
    }

    /// As [`Queue::unbounded`].
    ///
    /// # Errors
    /// As there.
    pub fn unbounded() -> io::Result<Self> {
        Ok(JoinableQueue { queue: Queue::unbounded()?, types: PhantomData })
    }

    fn core(&self) -> &Core {
        self.queue.core()
    }

    puts!(nobody);
    gets!(nobody);
    looks!();

    /// As [`get`](Self::get); the item is done when the guard is dropped, also by a panic.
    ///
    /// # Errors
    /// As there. An item that does not decode is done.
    pub fn get_unfinished(&self) -> Result<UnfinishedItem<'_, T>, GetError>
    where
        T: DeserializeOwned,
    {
        match self.get() {
            Ok(item) => Ok(UnfinishedItem { queue: self, item }),
            Err(error) => {
                if matches!(error, GetError::Decode(_)) {
                    self.core().mark_done();
                }
                Err(error)
            }
        }
    }

    /// One item that was got is done.
    ///
    /// # Errors
    /// If all items that were put are done already.
    pub fn task_done(&self) -> Result<(), TaskDoneError> {
        if self.core().mark_done() { Ok(()) } else { Err(TaskDoneError) }
    }

    /// Items that were put and are not done.
    pub fn unfinished(&self) -> usize {
        usize::try_from(self.core().unfinished()).unwrap_or(usize::MAX)
    }

    /// Waits until all items that were put are done.
    ///
    /// An item that was got by a process that has been killed is never done: who cannot rule that out takes
    /// [`join_timeout`](Self::join_timeout).
    pub fn join(&self) {
        self.core().join(None);
    }

    /// As [`join`](Self::join), waiting no longer than this: whether all are done.
    pub fn join_timeout(&self, limit: Duration) -> bool {
        self.core().join(deadline_in(Some(limit)))
    }

    /// As [`join`](Self::join), awaited; cancel safe.
    pub async fn join_async(&self) {
        self.core().join_async().await;
    }
}

handles!(JoinableQueue, queue);

impl<T> Serialize for JoinableQueue<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.queue.serialize(serializer)
    }
}

impl<'de, T> Deserialize<'de> for JoinableQueue<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(JoinableQueue { queue: Queue::deserialize(deserializer)?, types: PhantomData })
    }
}

/// An item of a [`JoinableQueue`] that is done when this is dropped.
#[must_use = "the item is done when this is dropped"]
pub struct UnfinishedItem<'a, T> {
    queue: &'a JoinableQueue<T>,
    item: T,
}

impl<T> Deref for UnfinishedItem<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.item
    }
}

impl<T> DerefMut for UnfinishedItem<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.item
    }
}

impl<T> Drop for UnfinishedItem<'_, T> {
    fn drop(&mut self) {
        self.queue.core().mark_done();
    }
}

impl<T: fmt::Debug> fmt::Debug for UnfinishedItem<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("UnfinishedItem").field(&self.item).finish()
    }
}
