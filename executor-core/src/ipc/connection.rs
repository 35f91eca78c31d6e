//! What users send through and receive from.

use std::{
    fmt, io,
    marker::PhantomData,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

use futures::{Sink, Stream};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{self, DeserializeOwned},
    ser,
};

use super::{
    endpoint::Endpoint,
    error::{RecvError, SendError},
    readiness::deadline_in,
};
use crate::wire::attachment;

/// Two connected ends: what one sends, the other receives, in both directions.
///
/// ```
/// use executor::{Connection, pipe, prelude::*};
///
/// /// Doubles what it gets until the other side is gone.
/// #[task]
/// fn double(peer: Connection<u64, u64>) {
///     while let Ok(number) = peer.recv() {
///         if peer.send(&(2 * number)).is_err() {
///             break;
///         }
///     }
/// }
///
/// #[executor::main]
/// fn main() -> Result<(), Box<dyn std::error::Error>> {
///     let pool = ProcessPoolExecutor::builder().max_workers(1).build()?;
///     let (ours, theirs) = pipe::<u64, u64>()?;
///     let done = pool.submit(double::task(theirs));
///     for number in 0..10 {
///         ours.send(&number)?;
///         assert_eq!(ours.recv()?, 2 * number);
///     }
///     drop(ours);
///     done.result()?;
///     Ok(())
/// }
/// ```
///
/// # Errors
/// The system's, if it has no descriptor left.
pub fn pipe<S, R>() -> io::Result<(Connection<S, R>, Connection<R, S>)> {
    let (one, other) = Endpoint::pair()?;
    Ok((Connection::over(one), Connection::over(other)))
}

/// A one-way pipe: one end only sends, the other only receives.
///
/// ```
/// let (sender, receiver) = executor::channel::<String>()?;
/// sender.send(&"hello".to_owned())?;
/// drop(sender);
/// assert_eq!(receiver.recv()?, "hello");
/// assert!(matches!(receiver.recv(), Err(executor::RecvError::Closed)));
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// The system's, if it has no descriptor left.
pub fn channel<T>() -> io::Result<(Sender<T>, Receiver<T>)> {
    let (one, other) = Endpoint::pair()?;
    Ok((Sender::over(one), Receiver::over(other)))
}

/// One end of a [`pipe`], or of what [`Listener`](crate::Listener) and [`Client`](crate::Client) make: sends `S`, receives
/// `R`.
///
/// # Messages
///
/// Each `send` is one message, whole and in order, of any length. Values are encoded as a task's arguments are. Bytes
/// ([`send_bytes`](Self::send_bytes)) are messages of their own kind and go as they are.
///
/// # It travels
///
/// A connection may be an argument or a result of a task, part of either, or be sent through another connection or a
/// queue; whoever receives it has the same end. The sender has it too until its own is dropped: the peer sees the end when
/// the last one is gone. So do other handles inside a value (shared memory, queues, [`Transfer`](crate::Transfer)):
/// descriptors ride on the message that they belong to. Over TCP nothing of that can travel, and is an error.
///
/// # Ends
///
/// When the last holder of the other end is gone, by whatever means, everything it had sent is received, and then
/// [`Closed`](RecvError::Closed). Closing is dropping. Sending to a peer that is gone is an error, and sends no signal. A
/// peer that lives and does not read makes `send` wait, once the system's buffer is full (some 200 KiB).
///
/// # Sharing
///
/// All methods take `&self`, and threads may share an end: messages do not mix. Two *processes* that hold the same end
/// at the same time may use it for messages up to 64 KiB, which go or come whole; of longer ones, the parts of two senders
/// would meet, which the receiver notices ([`Invalid`](RecvError::Invalid)). Processes that share are better served by a
/// [`Queue`](crate::Queue).
///
/// # Waiting and awaiting
///
/// What has `async` in its name is awaited on any runtime, best on tokio's, and is cancel safe: a dropped future has taken no
/// message, and what it had begun to send is continued by whoever sends next. The runtime must have its I/O driver on.
/// To wait for several, see [`wait_any`](crate::wait_any).
pub struct Connection<S, R> {
    end: Box<Endpoint>,
    types: PhantomData<fn(S) -> R>,
}

/// The sending end of a [`channel`]. See [`Connection`].
pub struct Sender<T> {
    end: Box<Endpoint>,
    types: PhantomData<fn(T)>,
}

/// The receiving end of a [`channel`]. See [`Connection`].
pub struct Receiver<T> {
    end: Box<Endpoint>,
    types: PhantomData<fn() -> T>,
}

macro_rules! sends {
    ($type:ty, [$($captured:ident),+]) => {
        /// Sends a value; waits while there is no room for it. So two peers that both send some hundred KiB before either
        /// receives wait for each other: receive between, or send from another thread.
        ///
        /// # Errors
        /// If it cannot be encoded (then nothing was sent), or the peer is gone.
        pub fn send(&self, value: &$type) -> Result<(), SendError>
        where
            $type: Serialize,
        {
            self.end.send_value(value)
        }

        /// As [`send`](Self::send), awaited. The value is encoded at once.
        ///
        /// # Cancel safety
        /// If the future is dropped, either nothing was sent, or, of a message longer than 64 KiB, a part, and whoever
        /// sends next through this end sends the rest first.
        pub fn send_async<'a>(
            &'a self,
            value: &$type,
        ) -> impl Future<Output = Result<(), SendError>> + Send + use<'a, $($captured),+>
        where
            $type: Serialize,
        {
            self.end.send_value_async(value)
        }

        /// This end as a `Sink`. An item is sent before the next one is taken.
        pub fn sink(&self) -> impl Sink<$type, Error = SendError> + Send + Unpin
        where
            $type: Serialize,
        {
            Box::pin(futures::sink::unfold(&*self.end, |end, value: $type| {
                let sent = end.send_value_async(&value);
                async move { sent.await.map(|()| end) }
            }))
        }

        /// Sends bytes, as they are.
        ///
        /// # Errors
        /// If the peer is gone.
        pub fn send_bytes(&self, bytes: &[u8]) -> Result<(), SendError> {
            self.end.send_bytes(bytes)
        }
    };
}

macro_rules! receives {
    ($type:ty) => {
        /// Waits for a value.
        ///
        /// # Errors
        /// [`Closed`](RecvError::Closed) when the peer is gone and everything was received. [`Decode`](RecvError::Decode) if
        /// the message is no such value; it is used up then.
        pub fn recv(&self) -> Result<$type, RecvError>
        where
            $type: DeserializeOwned,
        {
            self.end.receive(u64::MAX, None, true)?.into_value()
        }

        /// As [`recv`](Self::recv), if it is here already.
        ///
        /// # Errors
        /// [`Empty`](RecvError::Empty) if there is none.
        pub fn try_recv(&self) -> Result<$type, RecvError>
        where
            $type: DeserializeOwned,
        {
            self.end.receive(u64::MAX, None, false)?.into_value()
        }

        /// As [`recv`](Self::recv), waiting no longer than this.
        ///
        /// # Errors
        /// [`Empty`](RecvError::Empty) if none came. What has come of a long one is kept for the next call.
        pub fn recv_timeout(&self, limit: Duration) -> Result<$type, RecvError>
        where
            $type: DeserializeOwned,
        {
            self.end.receive(u64::MAX, deadline_in(Some(limit)), true)?.into_value()
        }

        /// As [`recv`](Self::recv), awaited.
        ///
        /// # Cancel safety
        /// A future that is dropped has taken no message.
        pub async fn recv_async(&self) -> Result<$type, RecvError>
        where
            $type: DeserializeOwned,
        {
            self.end.receive_async(u64::MAX).await?.into_value()
        }

        /// All values to come, as a `Stream`. It ends when the peer is gone, and after an error that
        /// [is the end](RecvError::is_end).
        pub fn stream(&self) -> impl Stream<Item = Result<$type, RecvError>> + Send + Unpin
        where
            $type: DeserializeOwned,
        {
            Box::pin(futures::stream::unfold(Some(self), |end| async move {
                let end = end?;
                match end.recv_async().await {
                    Err(RecvError::Closed) => None,
                    Err(error) if error.is_end() => Some((Err(error), None)),
                    other => Some((other, Some(end))),
                }
            }))
        }

        /// Waits for bytes.
        ///
        /// # Errors
        /// As [`recv`](Self::recv).
        pub fn recv_bytes(&self) -> Result<Vec<u8>, RecvError> {
            self.recv_bytes_max(u64::MAX)
        }

        /// As [`recv_bytes`](Self::recv_bytes), of at most `max` bytes: from a peer that is not trusted.
        ///
        /// # Errors
        /// [`TooLong`](RecvError::TooLong), before the message takes memory. It stays where it is.
        pub fn recv_bytes_max(&self, max: u64) -> Result<Vec<u8>, RecvError> {
            self.end.receive(max, None, true)?.into_user_bytes()
        }

        /// As [`recv_bytes`](Self::recv_bytes), into a buffer: how many there were.
        ///
        /// # Errors
        /// [`TooShort`](RecvError::TooShort) with the message, if the buffer is.
        pub fn recv_bytes_into(&self, buffer: &mut [u8]) -> Result<usize, RecvError> {
            let received = self.end.receive(u64::MAX, None, true)?;
            if received.kind == super::message::Kind::Bytes
                && let Some(place) = buffer.get_mut(..received.bytes().len())
            {
                place.copy_from_slice(received.bytes());
                return Ok(place.len());
            }
            Err(RecvError::TooShort(received.into_user_bytes()?))
        }

        /// As [`recv_bytes`](Self::recv_bytes), awaited; cancel safe.
        ///
        /// # Errors
        /// As [`recv`](Self::recv).
        pub async fn recv_bytes_async(&self) -> Result<Vec<u8>, RecvError> {
            self.end.receive_async(u64::MAX).await?.into_user_bytes()
        }

        /// Whether there is something to receive, be it the end; waits at most `limit` for it, without one for ever.
        ///
        /// Of a message longer than 64 KiB, what has come may be its beginning.
        ///
        /// # Errors
        /// The system's.
        pub fn poll(&self, limit: Option<Duration>) -> io::Result<bool> {
            self.end.poll(deadline_in(limit))
        }
    };
}

impl<S, R> Connection<S, R> {
    sends!(S, [S, R]);
    receives!(R);

    /// The same end for values of other types. What has been sent before is not changed by it.
    pub fn with_types<S2, R2>(self) -> Connection<S2, R2> {
        Connection { end: self.end, types: PhantomData }
    }
}

impl<T> Sender<T> {
    sends!(T, [T]);
}

impl<T> Receiver<T> {
    receives!(T);
}

macro_rules! ends {
    ($name:ident, $role:literal, [$($param:ident),+]) => {
        impl<$($param),+> $name<$($param),+> {
            pub(super) fn over(end: Endpoint) -> Self {
                $name { end: Box::new(end), types: PhantomData }
            }
        }

        impl<$($param),+> fmt::Debug for $name<$($param),+> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:?})"), self.end.socket())
            }
        }

        impl<$($param),+> AsFd for $name<$($param),+> {
            /// To be waited for. To read or write it by other means breaks messages.
            fn as_fd(&self) -> BorrowedFd<'_> {
                self.end.socket().as_fd()
            }
        }

        impl<$($param),+> TryFrom<OwnedFd> for $name<$($param),+> {
            type Error = io::Error;

            /// An end that came to this process by other means.
            ///
            /// # Errors
            /// If the descriptor is not one of those that connections are made of.
            fn try_from(descriptor: OwnedFd) -> io::Result<Self> {
                Ok(Self::over(Endpoint::new(Arc::new(descriptor))?))
            }
        }

        impl<$($param),+> Serialize for $name<$($param),+> {
            fn serialize<Ser: Serializer>(&self, serializer: Ser) -> Result<Ser::Ok, Ser::Error> {
                let failed = |error: &dyn fmt::Display| {
                    ser::Error::custom(format_args!(concat!("a ", stringify!($name), ": {}"), error))
                };
                if !self.end.is_at_rest() {
                    return Err(failed(&"a part of a message has been sent or received through it, and the rest has not"));
                }
                let index = attachment::attach::<Ser>(self.end.socket()).map_err(|error| failed(&error))?;
                ($role, index).serialize(serializer)
            }
        }

        impl<'de, $($param),+> Deserialize<'de> for $name<$($param),+> {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let failed = |error: &dyn fmt::Display| {
                    de::Error::custom(format_args!(concat!("a ", stringify!($name), ": {}"), error))
                };
                let (role, index) = <(u8, u8)>::deserialize(deserializer)?;
                if role != $role {
                    return Err(failed(&"an end of another kind was sent"));
                }
                let socket = attachment::detach(index).map_err(|error| failed(&error))?;
                Ok(Self::over(Endpoint::new(socket).map_err(|error| failed(&error))?))
            }
        }
    };
}

ends!(Connection, b'c', [S, R]);
ends!(Sender, b's', [T]);
ends!(Receiver, b'r', [T]);
