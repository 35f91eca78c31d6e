//! A queue that tracks which items have been processed.

use std::{
    fmt, io,
    marker::PhantomData,
    ops::{Deref, DerefMut},
    time::Duration,
};

use futures::{Sink, Stream};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::DeserializeOwned};

use super::{
    GetError, Item, PutError, Queue, Wait,
    core::{Core, LostCount, Unfinished},
    decode, gets, handles, looks, nobody, puts,
    ring_list::Lost,
};
use crate::ipc::readiness::deadline_in;

/// A queue that tracks when all its items are done: not only received, but processed.
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
/// A process that has received items and has not marked them as done keeps the queue and its three
/// open files alive, even after it has dropped all its handles, because it could still mark them.
/// So a process that gets items from many queues should call `task_done`, or use
/// [`get_unfinished`](JoinableQueue::get_unfinished).
///
/// Everything else is the same as for [`Queue`].
pub struct JoinableQueue<T> {
    queue: Queue<T>,
    types: PhantomData<()>,
}

/// What happens to an item of a [`JoinableQueue`] if the process that received it dies before the
/// item is done.
///
/// With `Keep` and `Requeue`, each item takes pages of its own: at least 4 KiB, and some
/// microseconds more per item. The items cannot contain handles, because those die with the process
/// that received them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnLost {
    /// The item is lost and counted: [`join`](JoinableQueue::join) reports it.
    #[default]
    Tell,
    /// As `Tell`, and the item can be fetched with [`JoinableQueue::lost_items`].
    Keep,
    /// The item goes back to the front of the queue and counts as unfinished. There is no limit: an
    /// item that kills every process that gets it kills one after the other.
    ///
    /// While other processes hold unfinished items, those items may come back. So `get` waits for
    /// them even if the queue is closed, and returns `Closed` once they are done. A process that
    /// holds unfinished items itself does not wait: processes that get many items before they work
    /// on them would otherwise wait for each other.
    Requeue,
}

/// The error of calling `task_done` more often than items were received.
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("task_done was called more often than items were got")]
pub struct TaskDoneError;

crate::debug::debug_is_display!(TaskDoneError, LostItems);

impl<T> JoinableQueue<T> {
    /// Creates a queue for at most `capacity` items, like [`Queue::bounded`].
    ///
    /// # Errors
    /// As for [`Queue::bounded`].
    pub fn bounded(capacity: usize) -> io::Result<Self> {
        Ok(JoinableQueue { queue: Queue::bounded(capacity)?, types: PhantomData })
    }

    /// Creates a queue without a bound, like [`Queue::unbounded`].
    ///
    /// # Errors
    /// As for [`Queue::unbounded`].
    pub fn unbounded() -> io::Result<Self> {
        Ok(JoinableQueue { queue: Queue::unbounded()?, types: PhantomData })
    }

    fn core(&self) -> &Core {
        self.queue.core()
    }

    puts!(nobody);
    gets!(true, nobody);
    looks!();

    /// Gets an item, like [`get`](Self::get). The item is done when the returned guard is dropped,
    /// also during a panic.
    ///
    /// # Errors
    /// As for [`get`](Self::get). An item that cannot be decoded counts as done.
    pub fn get_unfinished(&self) -> Result<UnfinishedItem<'_, T>, GetError>
    where
        T: DeserializeOwned,
    {
        let mut item = Item::room();
        let got = self.core().get(&mut item.bytes, Wait::Until(None), true, || false)?;
        let (item, unfinished) = decode(item, got)?;
        Ok(UnfinishedItem { unfinished, item })
    }

    /// Marks one received item as done: the oldest unfinished item that this process has received.
    /// If this process has none, the oldest of all processes', because a process must then have
    /// handed its item on to this one.
    ///
    /// This never waits.
    ///
    /// # Errors
    /// If all received items are done already, or if this process has received none and has no
    /// memory to look at those of other processes.
    pub fn task_done(&self) -> Result<(), TaskDoneError> {
        if self.core().mark_done() { Ok(()) } else { Err(TaskDoneError) }
    }

    /// Sets what happens to items whose process dies. Call it before anything is put.
    ///
    /// ```
    /// use executor::{JoinableQueue, OnLost, Process, prelude::*};
    ///
    /// #[task]
    /// fn dies(queue: JoinableQueue<u32>) {
    ///     let _item = queue.get_unfinished();
    ///     std::process::abort();
    /// }
    ///
    /// #[executor::main]
    /// fn main() -> Result<(), Box<dyn std::error::Error>> {
    ///     let queue = JoinableQueue::unbounded()?.on_lost(OnLost::Requeue);
    ///     queue.put(1)?;
    ///     Process::new(dies::task(queue.clone())).start()?.wait_exit();
    ///     assert_eq!(*queue.get_unfinished()?, 1);
    ///     queue.join()?;
    ///     Ok(())
    /// }
    /// ```
    #[must_use]
    pub fn on_lost(self, on_lost: OnLost) -> Self {
        self.core().set_on_lost(match on_lost {
            OnLost::Tell => Lost::Counted,
            OnLost::Keep => Lost::Kept,
            OnLost::Requeue => Lost::Requeued,
        });
        self
    }

    /// Returns the lost items, the oldest first, if the queue [keeps](OnLost::Keep) them. Each item
    /// is returned once. For any other queue there are none.
    ///
    /// ```
    /// use executor::{JoinableQueue, OnLost, Process, prelude::*};
    ///
    /// #[task]
    /// fn dies(queue: JoinableQueue<u32>) {
    ///     let _item = queue.get_unfinished();
    ///     std::process::abort();
    /// }
    ///
    /// #[executor::main]
    /// fn main() -> Result<(), Box<dyn std::error::Error>> {
    ///     let queue = JoinableQueue::unbounded()?.on_lost(OnLost::Keep);
    ///     queue.put(1)?;
    ///     Process::new(dies::task(queue.clone())).start()?.wait_exit();
    ///     assert_eq!(queue.join().unwrap_err().count, 1);
    ///     let lost: Vec<u32> = queue.lost_items().collect::<Result<_, _>>()?;
    ///     assert_eq!(lost, [1]);
    ///     Ok(())
    /// }
    /// ```
    ///
    /// # Errors
    /// For each item, as for [`get`](Self::get).
    pub fn lost_items(&self) -> impl Iterator<Item = Result<T, GetError>>
    where
        T: DeserializeOwned,
    {
        let mut look = true;
        std::iter::from_fn(move || {
            let mut item = Item::room();
            let look = std::mem::take(&mut look);
            match self.core().take_lost(&mut item.bytes, Wait::Until(None), look) {
                Ok(None) => None,
                // The guard marks the item as done when it is dropped, also if decoding panics.
                Ok(Some(_unfinished)) => Some(item.decode()),
                Err(error) => Some(Err(error.into())),
            }
        })
    }

    /// Returns the number of items that were put and are not done.
    pub fn unfinished(&self) -> usize {
        usize::try_from(self.core().unfinished()).unwrap_or(usize::MAX)
    }

    /// Waits until all items that were put are done.
    ///
    /// # Errors
    /// If items will never be done because the processes that received them have died. The error
    /// comes within 100 ms, and once: the lost items then count as done, so call `join` again to
    /// wait for the others. An item belongs to the process that received it, as long as that
    /// process lives, even if the item was handed on to another one. [`on_lost`](Self::on_lost)
    /// sets what happens to such items.
    pub fn join(&self) -> Result<(), LostItems> {
        self.core().join(None).map(|_| ()).map_err(LostItems::from)
    }

    /// Waits like [`join`](Self::join), but for at most `timeout`. Returns whether all items are
    /// done.
    ///
    /// # Errors
    /// As for [`join`](Self::join).
    pub fn join_timeout(&self, timeout: Duration) -> Result<bool, LostItems> {
        self.core().join(deadline_in(Some(timeout))).map_err(LostItems::from)
    }

    /// Waits like [`join`](Self::join), without blocking the thread. Cancel safe.
    ///
    /// # Errors
    /// As for [`join`](Self::join).
    pub async fn join_async(&self) -> Result<(), LostItems> {
        self.core().join_async().await.map_err(LostItems::from)
    }
}

/// The error that reports items that will never be done, because the processes that received them
/// died.
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{count} items are lost: the processes that had got them have died")]
#[non_exhaustive]
pub struct LostItems {
    /// The number of lost items.
    pub count: usize,
}

impl From<LostCount> for LostItems {
    fn from(LostCount(count): LostCount) -> Self {
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

/// An item of a [`JoinableQueue`]. It is done when this guard is dropped.
#[must_use = "the item is done when this is dropped"]
pub struct UnfinishedItem<'a, T> {
    /// The first field, so that the item is marked as done before its value is dropped, which may
    /// panic.
    #[expect(dead_code, reason = "what it does, it does when it is dropped")]
    unfinished: Unfinished<'a>,
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

impl<T: fmt::Debug> fmt::Debug for UnfinishedItem<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("UnfinishedItem").field(&self.item).finish()
    }
}
