//! Queues that processes share.

use std::time::{Duration, Instant};

use serde::{Serialize, de::DeserializeOwned};

use super::{GRACE, GRACE_OF_TAKES, calls, creations, handle};
use crate::manager::{
    Manager, ManagerError,
    client::{Answer, Reference, Request},
    protocol::{Kind, Operation, Status},
};

handle! {
    /// A first-in, first-out queue that processes share. It corresponds to `manager.Queue()`.
    ///
    /// [`Manager::queue`] makes it. [`Queue`](crate::Queue) at the root of the crate is memory that
    /// processes share, and many times as fast.
    ///
    /// ```
    /// use executor::{manager::{Manager, ManagerError, Queue}, prelude::*};
    ///
    /// #[task]
    /// fn produce(queue: Queue<String>) -> Result<(), ManagerError> {
    ///     queue.put("from a worker")
    /// }
    ///
    /// #[executor::main]
    /// fn main() -> Result<(), Box<dyn std::error::Error>> {
    ///     let manager = Manager::start()?;
    ///     let queue = manager.queue::<String>(None)?;
    ///     let pool = ProcessPoolExecutor::builder().max_workers(1).build()?;
    ///     pool.submit(produce::task(queue.clone())).result()?;
    ///     assert_eq!(queue.get()?, "from a worker");
    ///     assert_eq!(queue.try_get()?, None);
    ///     Ok(())
    /// }
    /// ```
    Queue<T>
}

handle! {
    /// A [`Queue`] whose consumers report when they are done with an item. It corresponds to
    /// `manager.JoinableQueue()`.
    ///
    /// ```
    /// use executor::manager::Manager;
    ///
    /// #[executor::main]
    /// fn main() -> Result<(), Box<dyn std::error::Error>> {
    ///     let manager = Manager::start()?;
    ///     let queue = manager.joinable_queue::<i64>(Some(10))?;
    ///     queue.put(&1)?;
    ///     assert_eq!(queue.get()?, 1);
    ///     queue.task_done()?;
    ///     queue.join()?;
    ///     Ok(())
    /// }
    /// ```
    JoinableQueue<T>
}

creations! {
    /// Creates a queue. With a capacity, putting waits while so many items are in it.
    fn queue / queue_async [T](&self, capacity: Option<usize>) -> Queue<T>
    { creation(self, capacity, false)? }

    /// Creates a queue whose consumers report when they are done with an item.
    fn joinable_queue / joinable_queue_async [T](&self, capacity: Option<usize>)
        -> JoinableQueue<T>
    { creation(self, capacity, true)? }
}

fn creation(
    manager: &Manager,
    capacity: Option<usize>,
    joinable: bool,
) -> Result<Request<'_>, ManagerError> {
    if capacity == Some(0) {
        return Err(ManagerError::Refused(
            "a queue has room for at least one item; `None` is for no limit",
        ));
    }
    let capacity = capacity.unwrap_or_default() as u64;
    Ok(manager.creation(Kind::Queue).number(capacity).flag(joinable))
}

/// Returns what a put that may have waited has come to: whether the item is in the queue.
fn was_put(answer: Result<Answer, ManagerError>) -> Result<bool, ManagerError> {
    Ok(answer?.status() == Status::Done)
}

/// Returns the item of a get that may have waited.
fn item<T: DeserializeOwned>(
    answer: Result<Answer, ManagerError>,
) -> Result<Option<T>, ManagerError> {
    match answer {
        Err(ManagerError::TimedOut) => Ok(None),
        answer => {
            let answer = answer?;
            match answer.status() {
                Status::NotNow | Status::GivenUp => Ok(None),
                _ => answer.value().map(Some),
            }
        }
    }
}

fn putting<'a, Q: Serialize + ?Sized>(queue: &'a Reference, waits: bool, item: &Q) -> Request<'a> {
    queue.request(Operation::QueuePut).flag(waits).last_value(item)
}

fn getting(queue: &Reference, waits: bool) -> Request<'_> {
    queue.request(Operation::QueueGet).flag(waits)
}

fn in_time(timeout: Duration) -> Option<Instant> {
    Instant::now().checked_add(timeout)
}

macro_rules! queues {
    ($($queue:ident),*) => {$(
        impl<T: Serialize + DeserializeOwned> $queue<T> {
            /// Puts an item, and waits for room if there is none.
            pub fn put<Q>(&self, item: &Q) -> Result<(), ManagerError>
            where
                T: std::borrow::Borrow<Q>,
                Q: Serialize + ?Sized,
            {
                putting(&self.reference, true, item).call().map(drop)
            }

            /// Puts an item if there is room now. Returns whether there was.
            pub fn try_put<Q>(&self, item: &Q) -> Result<bool, ManagerError>
            where
                T: std::borrow::Borrow<Q>,
                Q: Serialize + ?Sized,
            {
                was_put(putting(&self.reference, false, item).call())
            }

            /// Puts an item, and waits for room at most for `timeout`. Returns whether it was put.
            ///
            /// # Errors
            /// [`ManagerError::TimedOut`] if the server does not answer for a second after that,
            /// for example because it was stopped. Then it is unknown whether the item was put.
            pub fn put_timeout<Q>(&self, item: &Q, timeout: Duration) -> Result<bool, ManagerError>
            where
                T: std::borrow::Borrow<Q>,
                Q: Serialize + ?Sized,
            {
                let request = putting(&self.reference, true, item);
                was_put(request.call_then_give_up(in_time(timeout), Some(GRACE)))
            }

            /// Puts an item without blocking the thread. If the future is dropped early, the item
            /// may or may not have been put.
            pub async fn put_async<Q>(&self, item: &Q) -> Result<(), ManagerError>
            where
                T: std::borrow::Borrow<Q>,
                Q: Serialize + ?Sized,
            {
                putting(&self.reference, true, item).call_async().await.map(drop)
            }

            /// Takes the first item, and waits for one if there is none. Those that wait get items
            /// in the order in which they came.
            pub fn get(&self) -> Result<T, ManagerError> {
                // A call without a deadline that waits always gets an item, or an error.
                item(getting(&self.reference, true).call())?.ok_or(ManagerError::TimedOut)
            }

            /// Takes the first item if there is one now.
            pub fn try_get(&self) -> Result<Option<T>, ManagerError> {
                item(getting(&self.reference, false).call())
            }

            /// Takes the first item, and waits for one at most for `timeout`.
            ///
            /// No item is lost. If the server does not answer in time, for example because it is
            /// stopped, an item that it sends later becomes the first of the queue again.
            pub fn get_timeout(&self, timeout: Duration) -> Result<Option<T>, ManagerError> {
                let request = getting(&self.reference, true);
                item(request.call_then_give_up(in_time(timeout), Some(GRACE_OF_TAKES)))
            }

            /// Takes the first item without blocking the thread. If the future is dropped early, no
            /// item is lost: one that was on its way becomes the first again. A call that was made
            /// meanwhile may have got the one behind it.
            pub async fn get_async(&self) -> Result<T, ManagerError> {
                let answer = getting(&self.reference, true).call_async().await;
                item(answer)?.ok_or(ManagerError::TimedOut)
            }
        }

        impl<T> $queue<T> {
            calls! {
                /// Returns the number of items.
                fn len / len_async [](&self) -> usize
                { self.reference.request(Operation::Len) => |answer| Ok(answer.number() as usize) }

                /// Returns whether there is no item.
                fn is_empty / is_empty_async [](&self) -> bool
                { self.reference.request(Operation::Len) => |answer| Ok(answer.number() == 0) }

                /// Returns whether there is no room for another item.
                fn is_full / is_full_async [](&self) -> bool
                { self.reference.request(Operation::QueueIsFull) => |answer| Ok(answer.is_yes()) }
            }
        }
    )*};
}

queues!(Queue, JoinableQueue);

impl<T> JoinableQueue<T> {
    calls! {
        /// Reports that an item that was got is done.
        ///
        /// # Errors
        /// [`ManagerError::Refused`] if all items are done already.
        fn task_done / task_done_async [](&self) -> ()
        {
            self.reference.request(Operation::QueueTaskDone)
                => |answer| answer
                    .unless_refused("`task_done` was called more often than there were items")
                    .map(drop)
        }

        /// Waits until all items that were put are done.
        fn join / join_async [](&self) -> ()
        { self.reference.request(Operation::QueueJoin) => |_answer| Ok(()) }
    }
}
