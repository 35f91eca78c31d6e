//! Producer and consumer handles of one queue. Each kind can tell when the last handle of the other
//! kind is gone.
//!
//! ```text
//!  Producer, Producer, …  ── one end of a socket pair │ the other end ── Consumer, Consumer, …
//! ```
//!
//! Nothing is sent through the socket pair. The kernel counts who has an end: processes, and
//! messages in transit that contain one. When the last copy of an end is closed, because its
//! process exited or was killed or dropped it, the other end becomes readable.

use std::{
    fmt, io,
    marker::PhantomData,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{Sink, Stream};
use rustix::event::PollFlags;
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{self, DeserializeOwned},
    ser,
};

use super::{
    GetError, PutError, Queue,
    core::{self, Core},
    gets, handles, looks, puts,
};
use crate::{
    ipc::readiness::wait_for,
    os::{asked::Asked, socket},
    wire::attachment,
};

/// A handle that can only put items. See [`Queue::split`].
pub struct Producer<T> {
    end: Arc<End>,
    types: PhantomData<fn(T)>,
}

/// A handle that can only get items. See [`Queue::split`].
pub struct Consumer<T> {
    end: Arc<End>,
    types: PhantomData<fn() -> T>,
}

struct End {
    core: Arc<Core>,
    /// This side's end of the socket pair; `None` only during drop.
    here: Option<Arc<OwnedFd>>,
    produces: bool,
}

impl End {
    /// Returns whether all handles of the other side are gone.
    fn other_side_is_gone(&self) -> bool {
        // Nothing is ever sent, so the socket becomes readable only when the other end is closed.
        let at_end =
            |here: &Arc<OwnedFd>| wait_for(here.as_fd(), PollFlags::IN, Some(Instant::now()));
        self.here.as_ref().is_some_and(|here| matches!(at_end(here), Ok(true)))
    }
}

impl Drop for End {
    fn drop(&mut self) {
        // This may be the last handle of this side. Close the end first and then notify the other
        // side, so that its waiters notice at once. Otherwise they would notice only within 100 ms.
        drop(self.here.take());
        if self.produces {
            self.core.ring_items();
        } else {
            self.core.ring_room();
        }
    }
}

impl PartialEq for End {
    fn eq(&self, other: &Self) -> bool {
        self.core == other.core
    }
}

impl<T> Queue<T> {
    /// Splits the queue into a producer and a consumer handle, each of which can be cloned and sent
    /// any number of times. When the last [`Producer`] is gone, consumers get the remaining items
    /// and then [`GetError::Closed`]. When the last [`Consumer`] is gone, putting fails with
    /// [`PutError::Closed`]. A handle is gone when it is dropped or its process has died; a handle
    /// in transit to another process still counts.
    ///
    /// ```
    /// use executor::{GetError, Producer, Queue, prelude::*};
    ///
    /// #[task]
    /// fn produce(queue: Producer<u32>) {
    ///     queue.put(1).unwrap();
    ///     std::process::abort();
    /// }
    ///
    /// #[executor::main]
    /// fn main() -> Result<(), Box<dyn std::error::Error>> {
    ///     let pool = ProcessPoolExecutor::builder().max_workers(1).build()?;
    ///     let (producer, consumer) = Queue::bounded(10)?.split()?;
    ///     let lost = pool.submit(produce::task(producer));
    ///     assert_eq!(consumer.get()?, 1);
    ///     assert!(matches!(consumer.get(), Err(GetError::Closed)));
    ///     assert!(lost.result().is_err());
    ///     Ok(())
    /// }
    /// ```
    ///
    /// Other handles of the queue are not counted, and neither are those of another `split`.
    ///
    /// # Errors
    /// If the system has no descriptor left.
    pub fn split(self) -> io::Result<(Producer<T>, Consumer<T>)> {
        let (one, other) = socket::pair().asked("a pair of sockets (socketpair)")?;
        let end = |here, produces| {
            Arc::new(End { core: Arc::clone(&self.core), here: Some(Arc::new(here)), produces })
        };
        let producer = Producer { end: end(one, true), types: PhantomData };
        Ok((producer, Consumer { end: end(other, false), types: PhantomData }))
    }
}

impl<T> Producer<T> {
    fn core(&self) -> &Core {
        &self.end.core
    }

    puts!(|this: &Self| this.end.other_side_is_gone());
    looks!();
}

impl<T> Consumer<T> {
    fn core(&self) -> &Core {
        &self.end.core
    }

    gets!(false, |this: &Self| this.end.other_side_is_gone());
    looks!();
}

handles!(Producer, end);
handles!(Consumer, end);

/// A wrapper that serializes the core of a queue.
struct Sent<'a>(&'a Core);

impl Serialize for Sent<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        core::serialize(self.0, serializer)
    }
}

macro_rules! travels {
    ($type:ident, $produces:literal) => {
        impl<T> Serialize for $type<T> {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                let attached = match &self.end.here {
                    Some(here) => attachment::attach::<S>(here),
                    None => Err("it is being dropped".to_owned()),
                };
                let index = attached.map_err(|error| {
                    ser::Error::custom(format_args!(
                        concat!("a ", stringify!($type), ": {}"),
                        error
                    ))
                })?;
                ($produces, index, Sent(self.core())).serialize(serializer)
            }
        }

        impl<'de, T> Deserialize<'de> for $type<T> {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let failed = |error: &dyn fmt::Display| {
                    de::Error::custom(format_args!(concat!("a ", stringify!($type), ": {}"), error))
                };
                let (produces, index, Received(core)) =
                    <(bool, u8, Received)>::deserialize(deserializer)?;
                let here = attachment::detach(index).map_err(|error| failed(&error))?;
                if produces != $produces || !socket::is_one(here.as_fd()) {
                    return Err(failed(&"an end of another kind was sent"));
                }
                Ok($type {
                    end: Arc::new(End { core, here: Some(here), produces }),
                    types: PhantomData,
                })
            }
        }
    };
}

struct Received(Arc<Core>);

impl<'de> Deserialize<'de> for Received {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Received(core::deserialize(deserializer)?))
    }
}

travels!(Producer, true);
travels!(Consumer, false);
