//! A queue that knows when its items have been processed.

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
    chain::Lost,
    core::{Core, LostCount, Unfinished},
    decode, gets, handles, looks, nobody, puts,
};
use crate::ipc::readiness::deadline_in;

/// A queue that knows when all its items are done: not only got, but processed.
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
/// A process that has got items and has not said that they are done keeps the queue, with its three open files, also when it has
/// dropped all handles: it could still say so. Whoever gets from many queues says `task_done`, or uses
/// [`get_unfinished`](JoinableQueue::get_unfinished).
///
/// Everything else holds as for [`Queue`].
pub struct JoinableQueue<T> {
    queue: Queue<T>,
    types: PhantomData<()>,
}

/// What becomes of an item of a [`JoinableQueue`] that was got and not done when its process died.
///
/// A queue that keeps or requeues has each item in pages of its own: 4 KiB at least, and some microseconds more for each. Its items
/// cannot contain handles, which die with the process that has got them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnLost {
    /// It is gone, and counted: those who [join](JoinableQueue::join) are told.
    #[default]
    Tell,
    /// As `Tell`, and it can be asked for: [`JoinableQueue::lost_items`].
    Keep,
    /// It is in the queue again, before all others, and gets counted as unfinished. Nobody limits how often: an item that ends
    /// everybody who gets it does so one after the other.
    ///
    /// While others have items, which may come back, `get` waits for them also when the queue is closed, and says that it is closed
    /// when those are done; except in a process that has items itself, so that those who get many before they work wait for nobody.
    Requeue,
}

/// More items were said to be done than were got.
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("task_done was called more often than items were got")]
pub struct TaskDoneError;

crate::debug::debug_is_display!(TaskDoneError, LostItems);

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
        let mut item = Item::room();
        let got = self.core().get(&mut item.bytes, Wait::Until(None), true, || false)?;
        let (item, unfinished) = decode(item, got)?;
        Ok(UnfinishedItem { unfinished, item })
    }

    /// One item that was got is done: the oldest of those that this process has got and that are not done. If it has got none, of
    /// those of all processes, since somebody has then handed an item on.
    ///
    /// It waits for nobody.
    ///
    /// # Errors
    /// If all items that were got are done already; or if this process has got none and has no memory to look at those of others.
    pub fn task_done(&self) -> Result<(), TaskDoneError> {
        if self.core().mark_done() { Ok(()) } else { Err(TaskDoneError) }
    }

    /// What becomes of items whose processes have died; to be said before anything is put.
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

    /// The items that were lost, the oldest first, of a queue that [keeps](OnLost::Keep) them. Each is given once. There are none in
    /// any other queue.
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
    /// Of each item, as [`get`](Self::get).
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
                // It is done when this is dropped, also if it is by a panic.
                Ok(Some(_unfinished)) => Some(item.decode()),
                Err(error) => Some(Err(error.into())),
            }
        })
    }

    /// Items that were put and are not done.
    pub fn unfinished(&self) -> usize {
        usize::try_from(self.core().unfinished()).unwrap_or(usize::MAX)
    }

    /// Waits until all items that were put are done.
    ///
    /// # Errors
    /// If items will never be done, because the processes that had got them have died; it says so within 100 ms, once, and counts
    /// them as done: join again for the others. An item counts for the process that got it, as long as that lives, whoever it was
    /// handed to. What is to become of such items: [`on_lost`](Self::on_lost).
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

/// An item of a [`JoinableQueue`] that is done when this is dropped.
#[must_use = "the item is done when this is dropped"]
pub struct UnfinishedItem<'a, T> {
    /// First, so that it is done before the item is dropped, which may panic.
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
