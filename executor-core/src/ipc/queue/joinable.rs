//! The one that knows when its items are worked off.

use std::{
    fmt, io,
    marker::PhantomData,
    ops::{Deref, DerefMut},
    time::Duration,
};

use futures::{Sink, Stream};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::DeserializeOwned};

use super::{
    GetError, PutError, Queue,
    core::{Core, Lost},
    gets, handles, looks, nobody, puts,
};
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
///     queue.join()?;
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
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("task_done was called more often than there were items")]
pub struct TaskDoneError;

crate::error::debug_is_display!(TaskDoneError, LostItems);

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
    gets!(true, nobody);
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
                    let _ = self.task_done();
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
        // If its memory is garbled, nothing is known of items.
        if matches!(self.core().mark_done(), Ok(true)) { Ok(()) } else { Err(TaskDoneError) }
    }

    /// Items that were put and are not done.
    pub fn unfinished(&self) -> usize {
        usize::try_from(self.core().unfinished()).unwrap_or(usize::MAX)
    }

    /// Waits until all items that were put are done.
    ///
    /// # Errors
    /// If items will never be done, because the processes that had got them have died; it says so within 100 ms, and counts
    /// them as done: put them once more, if that is what you want, and join again. An item counts for the process that got
    /// it, whoever says that it is done; of queues that more than 30 processes use at a time, it is not known.
    pub fn join(&self) -> Result<(), LostItems> {
        self.core().join(None).map(|_| ()).map_err(LostItems::from)
    }

    /// As [`join`](Self::join), waiting no longer than this: whether all are done.
    ///
    /// # Errors
    /// As there.
    pub fn join_timeout(&self, limit: Duration) -> Result<bool, LostItems> {
        self.core().join(deadline_in(Some(limit))).map_err(LostItems::from)
    }

    /// As [`join`](Self::join), awaited; cancel safe.
    ///
    /// # Errors
    /// As there.
    pub async fn join_async(&self) -> Result<(), LostItems> {
        self.core().join_async().await.map_err(LostItems::from)
    }
}

/// Items that were got and never done, because the processes that had got them died.
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{count} items are lost: the processes that had got them have died")]
#[non_exhaustive]
pub struct LostItems {
    /// How many.
    pub count: usize,
}

impl From<Lost> for LostItems {
    fn from(Lost(count): Lost) -> Self {
        LostItems { count: usize::try_from(count).unwrap_or(usize::MAX) }
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
        let _ = self.queue.task_done();
    }
}

impl<T: fmt::Debug> fmt::Debug for UnfinishedItem<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("UnfinishedItem").field(&self.item).finish()
    }
}
