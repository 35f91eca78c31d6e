//! Multi-process FIFO queues: any process can put items, and any process can get them.
//!
//! ```text
//!  Queue<T>, Producer<T>, Consumer<T>, JoinableQueue<T>, SimpleQueue<T>
//!        │                          typed handles: encode and decode in the caller's thread
//!        │ bytes, descriptors
//!        ▼
//!  core     this process's view of a queue: mappings, blocking and async waits
//!        │
//!        ▼
//!  ring_list  words in shared memory: two robust mutexes, rings of records, repair after a death
//!        ├── a block of the heap (`heap/block.rs`)    the words
//!        ├── a sparse file (`heap/sparse_file.rs`)    rings; each item above 256 KiB in a piece of
//!        │                                            its own
//!        └── a socket pair                            the descriptors of items
//! ```
//!
//! `put` encodes the item and writes it to shared memory before it returns. No background thread
//! does this later. So an item is in the queue once `put` has returned, whatever happens to the
//! process afterwards. Producers share one mutex and consumers share another, so a producer and a
//! consumer never wait for each other. A call that finds nothing to do first spins for some
//! microseconds, where spinning has paid off before, and then sleeps on a word.
//!
//! # Waiting
//!
//! A call that waits for room, for an item, or for one of the places in which large items are
//! written and read holds nothing that others may need: it gives everything back before it waits.
//! An awaited call does not block its thread even while it waits for a mutex. A call that must not
//! wait, or whose time is up, gives up after some milliseconds if another process keeps a mutex,
//! and returns `Busy`. It reports "full" or "empty" only if it has seen that the queue is full or
//! empty.
//!
//! # When a process dies
//!
//! - A producer, before its item is published: the item is not in the queue. The next producer
//!   frees its memory and descriptors.
//! - A producer, after that: the item is in the queue.
//! - A consumer, before the store that takes an item: the item is still in the queue, for the next
//!   consumer.
//! - A consumer, after that: the item is lost. A joinable queue reports it, keeps it, or puts it
//!   back.
//! - Either, while it holds a mutex: the next locker gets the mutex within 100 ms, and finishes or
//!   undoes what was begun.
//! - Either, before it wakes a waiter: the waiter looks by itself within 100 ms.
//! - The last process with a handle: the kernel frees memory and descriptors.

pub(crate) mod core;
mod ends;
mod error;
mod joinable;
#[cfg(all(test, any(executor_loom, executor_shuttle)))]
mod models;
mod ring_list;
mod simple;

use std::{cell::Cell, fmt, io, marker::PhantomData, num::NonZeroUsize, sync::Arc, time::Duration};

use futures::{Sink, Stream};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::DeserializeOwned};

use self::core::{Core, Got, Unfinished, Wait};
pub use ends::{Consumer, Producer};
pub use error::{GetError, PutError};
pub use joinable::{JoinableQueue, LostItems, OnLost, TaskDoneError, UnfinishedItem};
pub use simple::SimpleQueue;

use super::endpoint::Encoded;
use crate::os::local;
use crate::wire::{
    attachment::{self, Attachment},
    codec::{Format, Postcard},
};

/// A queue for any number of producers and consumers, in any processes.
///
/// ```
/// use executor::{Queue, prelude::*};
///
/// #[task]
/// fn square(input: Queue<u64>, output: Queue<u64>) {
///     while let Ok(number) = input.get() {
///         output.put(number * number).unwrap();
///     }
/// }
///
/// #[executor::main]
/// fn main() -> Result<(), Box<dyn std::error::Error>> {
///     let pool = ProcessPoolExecutor::builder().max_workers(2).build()?;
///     let (input, output) = (Queue::bounded(4)?, Queue::unbounded()?);
///     let workers: Vec<_> =
///         (0..2).map(|_| pool.submit(square::task(input.clone(), output.clone()))).collect();
///     for number in 0..10 {
///         input.put(number)?;
///     }
///     input.close();
///     for worker in workers {
///         worker.result()?;
///     }
///     let mut squares: Vec<u64> = std::iter::from_fn(|| output.try_get().ok()).collect();
///     squares.sort();
///     assert_eq!(squares[9], 81);
///     Ok(())
/// }
/// ```
///
/// # Items
///
/// [`put`](Self::put) encodes the item in the same way as a task's arguments, writes it to shared
/// memory, and returns. If encoding or writing fails, it returns an error together with the item.
/// Items may be of any size, including more than 2 GiB. They may contain handles of shared memory,
/// locks, other queues, connections, and files ([`Transfer`](crate::Transfer)). Items of one
/// producer arrive in the order in which it put them.
///
/// # Sending a queue
///
/// A handle may be an argument or a result of a task, or a part of one, even if the pool is already
/// running. It can also be sent through a connection or another queue. All copies are handles of
/// the same queue, and `==` tells whether two handles are. The queue's memory is anonymous: when
/// the last handle is gone, for whatever reason, the queue and its items are freed.
///
/// # When a process is killed
///
/// Other processes are not harmed, whatever the killed process was doing. Once `put` has returned,
/// the item is in the queue, and the death of its producer does not change that. If the producer
/// dies during `put`, the item is in the queue either completely or not at all. If a consumer dies
/// during `get`, the item stays in the queue up to one moment; after that moment it is lost with
/// the consumer. Items that were received but not processed are lost; a [`JoinableQueue`] reports
/// them.
///
/// # Closing
///
/// A queue does not end by itself: `get` waits as long as an item might still be put.
/// [`close`](Self::close) ends the queue for all handles. To close it automatically when the last
/// producer is gone, killed or not, see [`split`](Self::split).
///
/// # Waiting and awaiting
///
/// Every waiting call is woken within 100 ms, even if the process that should have woken it was
/// killed first. Methods with `async` in their name can be awaited on any runtime and are cancel
/// safe.
///
/// # Cost
///
/// A queue takes three descriptors, at least 64 KiB of memory, and the memory of the items in it.
/// Items above 256 KiB are written before they are queued; the number being written at the same
/// time never exceeds the room in the queue.
///
/// # Items with handles
///
/// The descriptors of an item stay in a socket until the item is received. The kernel counts such
/// descriptors over all processes of a user. When there are as many as one process may have open
/// files (`ulimit -n`), it refuses to send more, and then starting a process or sending a handle
/// fails too. So the items of one queue may use an eighth of that limit, and those of all queues of
/// a process half of it. Beyond that, or when the socket's buffer is full (at some hundred items),
/// the queue counts as full for an item with handles, bounded or not: `put` waits, and `try_put`
/// returns [`Full`](PutError::Full). One item with handles is always allowed.
///
/// # Every process with a handle is trusted with the queue
///
/// A process with a handle can write anything to the queue's memory, including data that this
/// library would never write. It can make the queue lose items, make others wait forever, or make
/// the queue report that its memory is garbled; and it can put arbitrary bytes as items. It cannot
/// make other processes read or write outside the queue's memory, or use much more memory than it
/// has itself put into the queue.
pub struct Queue<T> {
    core: Arc<Core>,
    types: PhantomData<fn(T) -> T>,
}

thread_local! {
    /// Reused buffer for received items.
    static ITEM: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Maximum capacity in bytes of a buffer that is kept for the next item.
const KEPT_BYTES_MAX: usize = 64 * 1024;

/// The bytes and attachments of a received item. The buffer is borrowed from the thread and
/// returned on drop.
struct Item {
    bytes: Vec<u8>,
    attachments: Vec<Attachment>,
}

impl Item {
    fn room() -> Self {
        Item { bytes: local::take(&ITEM), attachments: Vec::new() }
    }

    fn decode<T: DeserializeOwned>(&self) -> Result<T, GetError> {
        attachment::offer(&self.attachments, || Postcard::decode(&self.bytes))
            .map_err(|error| GetError::Decode(error.message))
    }
}

impl Drop for Item {
    fn drop(&mut self) {
        if self.bytes.capacity() <= KEPT_BYTES_MAX {
            local::put(&ITEM, std::mem::take(&mut self.bytes));
        }
    }
}

/// Encodes and puts an item. Shared by all kinds of handles.
fn put<T: Serialize>(
    core: &Core,
    item: T,
    wait: Wait,
    gone: impl Fn() -> bool,
) -> Result<(), PutError<T>> {
    let encoded = match Encoded::of(&item) {
        Ok(encoded) => encoded,
        Err(message) => return Err(PutError::Encode(item, message)),
    };
    core.put(&encoded.bytes, &encoded.attachments, wait, gone)
        .map_err(|refused| PutError::new(refused, item))
}

async fn put_async<T: Serialize>(
    core: &Core,
    item: T,
    gone: impl Fn() -> bool,
) -> Result<(), PutError<T>> {
    let encoded = match Encoded::of(&item) {
        Ok(encoded) => encoded,
        Err(message) => return Err(PutError::Encode(item, message)),
    };
    let put = core.put_async(&encoded.bytes, &encoded.attachments, gone).await;
    put.map_err(|refused| PutError::new(refused, item))
}

fn get<T: DeserializeOwned>(
    core: &Core,
    wait: Wait,
    hold: bool,
    gone: impl Fn() -> bool,
) -> Result<T, GetError> {
    let mut item = Item::room();
    let got = core.get(&mut item.bytes, wait, hold, gone)?;
    let (value, unfinished) = decode(item, got)?;
    unfinished.keep();
    Ok(value)
}

/// Decodes a received item. If decoding fails or panics, the item counts as done.
fn decode<T: DeserializeOwned>(
    mut item: Item,
    got: Got<'_>,
) -> Result<(T, Unfinished<'_>), GetError> {
    let Got { attachments, unfinished } = got;
    item.attachments = attachments;
    Ok((item.decode()?, unfinished))
}

async fn get_async<T: DeserializeOwned>(
    core: &Core,
    hold: bool,
    gone: impl Fn() -> bool,
) -> Result<T, GetError> {
    // Not the thread's buffer: it would be missing there for as long as this call is awaited.
    let mut item = Item { bytes: Vec::new(), attachments: Vec::new() };
    let got = core.get_async(&mut item.bytes, hold, gone).await?;
    let (value, unfinished) = decode(item, got)?;
    unfinished.keep();
    Ok(value)
}

/// Defines the putting methods of a handle. `$gone` takes `self` and returns whether no consumer is
/// left.
macro_rules! puts {
    ($gone:expr) => {
        /// Puts an item, waiting while the queue is full.
        ///
        /// # Errors
        /// If the item cannot be encoded, the queue is closed, or there is no memory. The error
        /// contains the item.
        pub fn put(&self, item: T) -> Result<(), PutError<T>>
        where
            T: Serialize,
        {
            $crate::ipc::queue::put(
                self.core(),
                item,
                $crate::ipc::queue::Wait::Until(None),
                || $gone(self),
            )
        }

        /// Puts an item if there is room now, like [`put`](Self::put) without waiting.
        ///
        /// # Errors
        /// As for [`put`](Self::put), and [`Full`](PutError::Full) if there is no room.
        pub fn try_put(&self, item: T) -> Result<(), PutError<T>>
        where
            T: Serialize,
        {
            $crate::ipc::queue::put(self.core(), item, $crate::ipc::queue::Wait::Not, || {
                $gone(self)
            })
        }

        /// Puts an item, like [`put`](Self::put), waiting for at most `timeout`.
        ///
        /// # Errors
        /// As for [`put`](Self::put), and [`Full`](PutError::Full) if there was no room in time.
        pub fn put_timeout(&self, item: T, timeout: Duration) -> Result<(), PutError<T>>
        where
            T: Serialize,
        {
            $crate::ipc::queue::put(
                self.core(),
                item,
                $crate::ipc::queue::Wait::at_most(timeout),
                || $gone(self),
            )
        }

        /// Puts an item without blocking the thread while it waits, like [`put`](Self::put).
        ///
        /// # Cancel safety
        /// If the future is dropped before it is complete, the item was not put.
        pub async fn put_async(&self, item: T) -> Result<(), PutError<T>>
        where
            T: Serialize + Send,
        {
            $crate::ipc::queue::put_async(self.core(), item, || $gone(self)).await
        }

        /// Returns a `Sink` that puts its items into the queue. It puts an item before it accepts
        /// the next one.
        pub fn sink(&self) -> impl Sink<T, Error = PutError<T>> + Send + Unpin
        where
            T: Serialize + Send,
        {
            Box::pin(futures::sink::unfold(self, |this, item: T| async move {
                this.put_async(item).await.map(|()| this)
            }))
        }
    };
}

/// Defines the getting methods of a handle. `$gone` takes `self` and returns whether no producer is
/// left.
macro_rules! gets {
    ($hold:literal, $gone:expr) => {
        /// Gets the next item, waiting for one.
        ///
        /// # Errors
        /// [`Closed`](GetError::Closed) if the queue is closed and empty.
        /// [`Decode`](GetError::Decode) if the item is not a value of this type; the item is then
        /// consumed.
        pub fn get(&self) -> Result<T, GetError>
        where
            T: DeserializeOwned,
        {
            $crate::ipc::queue::get(
                self.core(),
                $crate::ipc::queue::Wait::Until(None),
                $hold,
                || $gone(self),
            )
        }

        /// Gets an item if there is one now, like [`get`](Self::get) without waiting.
        ///
        /// # Errors
        /// As for [`get`](Self::get), and [`Empty`](GetError::Empty) if there is no item.
        pub fn try_get(&self) -> Result<T, GetError>
        where
            T: DeserializeOwned,
        {
            $crate::ipc::queue::get(self.core(), $crate::ipc::queue::Wait::Not, $hold, || {
                $gone(self)
            })
        }

        /// Gets an item, like [`get`](Self::get), waiting for at most `timeout`.
        ///
        /// # Errors
        /// As for [`get`](Self::get), and [`Empty`](GetError::Empty) if there was no item in time.
        pub fn get_timeout(&self, timeout: Duration) -> Result<T, GetError>
        where
            T: DeserializeOwned,
        {
            $crate::ipc::queue::get(
                self.core(),
                $crate::ipc::queue::Wait::at_most(timeout),
                $hold,
                || $gone(self),
            )
        }

        /// Gets an item without blocking the thread while it waits, like [`get`](Self::get).
        ///
        /// # Cancel safety
        /// If the future is dropped before it is complete, no item was taken.
        pub async fn get_async(&self) -> Result<T, GetError>
        where
            T: DeserializeOwned,
        {
            $crate::ipc::queue::get_async(self.core(), $hold, || $gone(self)).await
        }

        /// Returns a `Stream` of all items to come. It ends when the queue is closed and empty, or
        /// after an error of the operating system.
        pub fn stream(&self) -> impl Stream<Item = Result<T, GetError>> + Send + Unpin
        where
            T: DeserializeOwned + Send,
        {
            Box::pin(futures::stream::unfold(Some(self), |this| async move {
                let this = this?;
                match this.get_async().await {
                    Err(GetError::Closed) => None,
                    Err(error @ GetError::Io(_)) => Some((Err(error), None)),
                    other => Some((other, Some(this))),
                }
            }))
        }
    };
}

/// Defines the query methods of every handle.
macro_rules! looks {
    () => {
        /// Returns the number of items in the queue. It includes everything this thread has put and
        /// got; other threads and processes may change it at any moment.
        pub fn len(&self) -> usize {
            usize::try_from(self.core().len()).unwrap_or(usize::MAX)
        }

        /// Returns whether the queue is empty. The same caveat as for [`len`](Self::len) applies;
        /// to get the items that are there, use `try_get`.
        pub fn is_empty(&self) -> bool {
            self.core().len() == 0
        }

        /// Returns whether the queue holds as many items as its capacity.
        pub fn is_full(&self) -> bool {
            self.core().is_full()
        }

        /// Returns the maximum number of items; `None` for an unbounded queue.
        pub fn capacity(&self) -> Option<usize> {
            Some(usize::try_from(self.core().capacity()?).unwrap_or(usize::MAX))
        }

        /// Closes the queue for all handles in all processes. No more items can be put. Once the
        /// remaining items have been received, `get` returns [`GetError::Closed`]. Closing twice is
        /// fine.
        pub fn close(&self) {
            // If the memory is garbled, the queue is unusable anyway.
            let _ = self.core().close();
        }

        /// Returns whether the queue is closed.
        pub fn is_closed(&self) -> bool {
            self.core().is_closed()
        }
    };
}

/// Implements the common traits of all handles.
macro_rules! handles {
    ($type:ident, $field:tt) => {
        impl<T> Clone for $type<T> {
            fn clone(&self) -> Self {
                $type { $field: self.$field.clone(), types: PhantomData }
            }
        }

        impl<T> PartialEq for $type<T> {
            /// Returns whether both are handles of the same queue.
            fn eq(&self, other: &Self) -> bool {
                self.$field == other.$field
            }
        }

        impl<T> Eq for $type<T> {}

        impl<T> fmt::Debug for $type<T> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($type), "({} items)"), self.core().len())
            }
        }
    };
}

pub(super) use {gets, handles, looks, puts};

/// The `gone` argument of handles that do not track the other side: never gone.
fn nobody<T>(_: &T) -> bool {
    false
}

impl<T> Queue<T> {
    /// Creates a queue for at most `capacity` items.
    ///
    /// # Errors
    /// If `capacity` is zero, or the system has no memory or descriptor left.
    pub fn bounded(capacity: usize) -> io::Result<Self> {
        let capacity = NonZeroUsize::new(capacity).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidInput,
                "a queue for no items; `Queue::unbounded` has no bound",
            )
        })?;
        Self::create(capacity.get() as u64)
    }

    /// Creates a queue without a bound: putting never waits for room.
    ///
    /// # Errors
    /// If the system has no memory or descriptor left.
    pub fn unbounded() -> io::Result<Self> {
        Self::create(0)
    }

    fn create(capacity: u64) -> io::Result<Self> {
        Ok(Queue { core: Core::create(capacity)?, types: PhantomData })
    }

    fn core(&self) -> &Core {
        &self.core
    }

    puts!(nobody);
    gets!(false, nobody);
    looks!();
}

handles!(Queue, core);

impl<T> Serialize for Queue<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        core::serialize(&self.core, serializer)
    }
}

impl<'de, T> Deserialize<'de> for Queue<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Queue { core: core::deserialize(deserializer)?, types: PhantomData })
    }
}
