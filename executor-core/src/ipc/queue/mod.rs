//! Queues: items from any process to any process, first in, first out.
//!
//! ```text
//!  Queue<T>, Producer<T>, Consumer<T>, JoinableQueue<T>, SimpleQueue<T>      typed; encode and decode, in the caller's thread
//!        │ bytes, descriptors
//!        ▼
//!  core     as this process has it: mappings, waiting, awaiting
//!        │
//!        ▼
//!  chain    words in shared memory: two robust mutexes, rings of records, what is put right after a death
//!        ├── a block of the heap (`heap/block.rs`)       the words
//!        ├── a sparse anonymous file (`heap/extents.rs`)  rings, and items above 256 KiB, each in a piece of its own
//!        └── a socket pair                               the descriptors of items
//! ```
//!
//! `put` encodes and writes; there is no thread that does so later. So what it has returned for is in the queue, whatever
//! becomes of its process. Producers have a mutex of their own, and so have consumers: one of each never wait for each
//! other. Whoever finds nothing looks for some microseconds more, where that has paid, and then sleeps on a word.
//!
//! # Who waits
//!
//! Whoever waits for room, for an item, or for one of the places in which large items are written and read, has nothing that others
//! may need: what it had, it has given back before. An awaited call waits for the mutexes, too, without its thread. A call that is
//! not to wait, or no longer, gives up after some milliseconds where somebody keeps a mutex, and says that it could not look
//! (`Busy`): that the queue is full or empty, it says only where it has seen that.
//!
//! # When somebody dies
//!
//! | who dies | then |
//! |---|---|
//! | a producer, before its item is published | the item is not there; its memory and descriptors are given back by the next one |
//! | a producer, after that | the item is there |
//! | a consumer, before the store that takes an item | the item is there still, for the next one |
//! | a consumer, after that | the item is gone with it; in a joinable queue it is told as lost, kept, or to be got again |
//! | either, with a mutex | the next one has it within 100 ms, and finishes or undoes what was begun |
//! | either, before it wakes somebody | that one looks by itself within 100 ms |
//! | the last one who has a handle | the kernel takes memory and descriptors back |

mod chain;
pub(crate) mod core;
mod ends;
mod error;
mod joinable;
#[cfg(all(test, any(executor_loom, executor_shuttle)))]
mod models;
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
/// [`put`](Self::put) encodes the item, as a task's arguments are encoded, writes it to shared memory, and returns; it says if
/// that fails, and gives the item back. Items may be of any size, past 2 GiB, and may contain handles: of shared memory,
/// locks, other queues, connections, files ([`Transfer`](crate::Transfer)). Those of one producer come in the order in which
/// it has put them.
///
/// # It travels
///
/// A handle may be an argument or a result of a task, also of a pool that runs already, part of either, or go through a
/// connection or another queue. All handles are of one queue; `==` tells. The memory is anonymous: when the last handle
/// is gone, by whatever means, so is the queue with what is in it.
///
/// # When a process is killed
///
/// Nobody else is harmed, whatever it was doing. An item is in the queue when `put` has returned, and the death of its
/// producer changes nothing about that. An item that was being put is there as a whole or not at all. An item that a
/// consumer had begun to get is there still, up to one moment, after which it is gone with the consumer; what was got and
/// not processed is gone too, which a [`JoinableQueue`] notices.
///
/// # Ends
///
/// Nothing ends by itself: `get` waits for whoever may put something one day. [`close`](Self::close) ends it for all. To have
/// it closed when the last producer is gone, killed or not, see [`split`](Self::split).
///
/// # Waiting and awaiting
///
/// All that waits is woken within 100 ms, even if the one who should have done that was killed before it did. What has `async`
/// in its name is awaited on any runtime, and is cancel safe.
///
/// # What it costs
///
/// Three descriptors, 64 KiB of memory at least, and as much as lies in it; of items above 256 KiB that are being put at the same
/// time, no more are written than there is room for.
///
/// # Items with handles
///
/// The descriptors of an item lie in a socket until it is got. The system counts those of all processes of a user, and when
/// there are as many as a process may have open files (`ulimit -n`), it refuses to send any more: whoever starts a process or sends
/// a handle is then told so. So the items of one queue have an eighth of that at most, and those of all queues of a process the
/// half; beyond that, and when the socket's buffer is full (some hundred items), such an item finds the queue full, bounded or not:
/// `put` waits, `try_put` says [`Full`](PutError::Full). One item may always be on its way.
///
/// # Who has a handle is trusted with the queue
///
/// All who have a handle can write to its memory, also what this library would not. They can make it lose items, wait for
/// ever, or say that its memory is garbled; and items are whatever they have written. What they cannot do is to have others read or
/// write beyond the queue's memory, or take much more memory than they have given to it themselves.
pub struct Queue<T> {
    core: Arc<Core>,
    types: PhantomData<fn(T) -> T>,
}

thread_local! {
    /// Room for an item that is got.
    static ITEM: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// A vector that grew beyond this is not kept for the next item.
const KEPT_BYTES_MAX: usize = 64 * 1024;

/// The thread's vector, for as long as this lives.
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

/// What all kinds of handles do.
fn put<T: Serialize>(core: &Core, item: T, wait: Wait, gone: impl Fn() -> bool) -> Result<(), PutError<T>> {
    let encoded = match Encoded::of(&item) {
        Ok(encoded) => encoded,
        Err(message) => return Err(PutError::Encode(item, message)),
    };
    core.put(&encoded.bytes, &encoded.attachments, wait, gone).map_err(|refused| PutError::new(refused, item))
}

async fn put_async<T: Serialize>(core: &Core, item: T, gone: impl Fn() -> bool) -> Result<(), PutError<T>> {
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

/// What was got, as a value. If it is none, or to decode it panics, it is done.
fn decode<T: DeserializeOwned>(mut item: Item, got: Got<'_>) -> Result<(T, Unfinished<'_>), GetError> {
    let Got { attachments, unfinished } = got;
    item.attachments = attachments;
    Ok((item.decode()?, unfinished))
}

async fn get_async<T: DeserializeOwned>(
    core: &Core,
    hold: bool,
    gone: impl Fn() -> bool,
) -> Result<T, GetError> {
    // Not the thread's room: it would be away while this is awaited.
    let mut item = Item { bytes: Vec::new(), attachments: Vec::new() };
    let got = core.get_async(&mut item.bytes, hold, gone).await?;
    let (value, unfinished) = decode(item, got)?;
    unfinished.keep();
    Ok(value)
}

/// The methods of whatever puts; `$gone` says, of `self`, whether nobody is left to get.
macro_rules! puts {
    ($gone:expr) => {
        /// Puts an item; waits while the queue is full.
        ///
        /// # Errors
        /// If the item cannot be encoded, the queue is closed, or there is no memory. The item comes back.
        pub fn put(&self, item: T) -> Result<(), PutError<T>>
        where
            T: Serialize,
        {
            $crate::ipc::queue::put(self.core(), item, $crate::ipc::queue::Wait::Until(None), || $gone(self))
        }

        /// As [`put`](Self::put), if there is room now.
        ///
        /// # Errors
        /// [`Full`](PutError::Full) if there is none.
        pub fn try_put(&self, item: T) -> Result<(), PutError<T>>
        where
            T: Serialize,
        {
            $crate::ipc::queue::put(self.core(), item, $crate::ipc::queue::Wait::Not, || $gone(self))
        }

        /// As [`put`](Self::put), waiting no longer than this.
        ///
        /// # Errors
        /// [`Full`](PutError::Full) if there was no room.
        pub fn put_timeout(&self, item: T, limit: Duration) -> Result<(), PutError<T>>
        where
            T: Serialize,
        {
            $crate::ipc::queue::put(self.core(), item, $crate::ipc::queue::Wait::at_most(limit), || {
                $gone(self)
            })
        }

        /// As [`put`](Self::put), awaited.
        ///
        /// # Cancel safety
        /// If the future is dropped, nothing was put.
        pub async fn put_async(&self, item: T) -> Result<(), PutError<T>>
        where
            T: Serialize + Send,
        {
            $crate::ipc::queue::put_async(self.core(), item, || $gone(self)).await
        }

        /// As a `Sink`. An item is put before the next one is taken.
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

/// The methods of whatever gets; `$gone` says, of `self`, whether nobody is left to put.
macro_rules! gets {
    ($hold:literal, $gone:expr) => {
        /// Gets the next item; waits for one.
        ///
        /// # Errors
        /// [`Closed`](GetError::Closed) if the queue is closed and empty. [`Decode`](GetError::Decode) if the item is no such
        /// value; it is used up then.
        pub fn get(&self) -> Result<T, GetError>
        where
            T: DeserializeOwned,
        {
            $crate::ipc::queue::get(self.core(), $crate::ipc::queue::Wait::Until(None), $hold, || $gone(self))
        }

        /// As [`get`](Self::get), if there is one now.
        ///
        /// # Errors
        /// [`Empty`](GetError::Empty) if there is none.
        pub fn try_get(&self) -> Result<T, GetError>
        where
            T: DeserializeOwned,
        {
            $crate::ipc::queue::get(self.core(), $crate::ipc::queue::Wait::Not, $hold, || $gone(self))
        }

        /// As [`get`](Self::get), waiting no longer than this.
        ///
        /// # Errors
        /// [`Empty`](GetError::Empty) if there was none.
        pub fn get_timeout(&self, limit: Duration) -> Result<T, GetError>
        where
            T: DeserializeOwned,
        {
            $crate::ipc::queue::get(self.core(), $crate::ipc::queue::Wait::at_most(limit), $hold, || {
                $gone(self)
            })
        }

        /// As [`get`](Self::get), awaited.
        ///
        /// # Cancel safety
        /// A future that is dropped has taken nothing.
        pub async fn get_async(&self) -> Result<T, GetError>
        where
            T: DeserializeOwned,
        {
            $crate::ipc::queue::get_async(self.core(), $hold, || $gone(self)).await
        }

        /// All items to come, as a `Stream`, which ends when the queue is closed and empty, or after an error of the system's.
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

/// The methods of every handle.
macro_rules! looks {
    () => {
        /// Items in it. Exact with respect to what this thread has put and got; others may be at it.
        pub fn len(&self) -> usize {
            usize::try_from(self.core().len()).unwrap_or(usize::MAX)
        }

        /// Whether there are none. The same holds as for [`len`](Self::len); to get what there is, use `try_get`.
        pub fn is_empty(&self) -> bool {
            self.core().len() == 0
        }

        /// Whether it has as many items as it is bounded to.
        pub fn is_full(&self) -> bool {
            self.core().is_full()
        }

        /// How many items it is bounded to; `None` if it is not.
        pub fn capacity(&self) -> Option<usize> {
            Some(usize::try_from(self.core().capacity()?).unwrap_or(usize::MAX))
        }

        /// Ends it, for all handles everywhere: nothing is put any more, and when what is in it has been got,
        /// [`GetError::Closed`] follows. Closing twice is fine.
        pub fn close(&self) {
            // If its memory is garbled, it is at its end anyway.
            let _ = self.core().close();
        }

        /// Whether it was closed.
        pub fn is_closed(&self) -> bool {
            self.core().is_closed()
        }
    };
}

/// What all handles are.
macro_rules! handles {
    ($type:ident, $field:tt) => {
        impl<T> Clone for $type<T> {
            fn clone(&self) -> Self {
                $type { $field: self.$field.clone(), types: PhantomData }
            }
        }

        impl<T> PartialEq for $type<T> {
            /// Whether both are handles of the same queue.
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

/// Nobody is known to be needed on the other side.
fn nobody<T>(_: &T) -> bool {
    false
}

impl<T> Queue<T> {
    /// A new one for at most so many items.
    ///
    /// # Errors
    /// If it is bounded to none, or the system has no memory or descriptor left.
    pub fn bounded(capacity: usize) -> io::Result<Self> {
        let capacity = NonZeroUsize::new(capacity).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidInput,
                "a queue for no items; `Queue::unbounded` has no bound",
            )
        })?;
        Self::create(capacity.get() as u64)
    }

    /// A new one without a bound: putting never waits.
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
