//! The public ends of connections: `Connection`, `Sender` and `Receiver`.

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

/// Makes a pair of connected ends. What one end sends, the other receives, in both directions.
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
/// The system's, for example if the process has no descriptor left.
pub fn pipe<S, R>() -> io::Result<(Connection<S, R>, Connection<R, S>)> {
    let (one, other) = Endpoint::pair()?;
    Ok((Connection::over(one), Connection::over(other)))
}

/// Makes a one-way pipe: one end only sends, the other only receives.
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
/// The system's, for example if the process has no descriptor left.
pub fn channel<T>() -> io::Result<(Sender<T>, Receiver<T>)> {
    let (one, other) = Endpoint::pair()?;
    Ok((Sender::over(one), Receiver::over(other)))
}

/// One end of a connection: sends values of type `S` and receives values of type `R`.
///
/// Made by [`pipe`], [`Listener`](crate::Listener) and [`Client`](crate::Client).
///
/// # Messages
///
/// Each `send` sends one message. Messages arrive whole and in order and may have any length.
/// Values are encoded like a task's arguments. Bytes ([`send_bytes`](Self::send_bytes)) are a
/// separate kind of message and are sent unchanged.
///
/// # Sending it to another process
///
/// A connection can be an argument or a result of a task, or a part of either. It can also be sent
/// through another connection or a queue. The receiver gets a handle of the same end. The sender
/// keeps its own handle until it is dropped, and the peer sees the end of the connection only when
/// the last handle is gone.
///
/// The same holds for other handles inside a value (shared memory, queues,
/// [`Transfer`](crate::Transfer)): their descriptors are sent along with the message. Over TCP no
/// handle can be sent, and an attempt is an error.
///
/// # The end of a connection
///
/// When the last owner of the other end is gone, for whatever reason, everything it had sent can
/// still be received. After that, receiving returns [`Closed`](RecvError::Closed). Dropping an end
/// closes it. Sending to a peer that is gone returns an error and raises no signal. If a living
/// peer does not read, `send` waits once the system's buffer is full (about 200 KiB).
///
/// # Sharing
///
/// All methods take `&self`, and threads may share an end: their messages do not mix.
///
/// Two *processes* that hold the same end at the same time may both use it for messages up to
/// 64 KiB, which are sent and received whole. Longer messages go in parts, and the parts of two
/// senders would mix. The receiver notices that and returns [`Invalid`](RecvError::Invalid). A
/// [`Queue`](crate::Queue) is a better choice for processes that share.
///
/// # Waiting and awaiting
///
/// Methods with `async` in their name can be awaited on any runtime. tokio is the fastest, and must
/// have its I/O driver enabled. The methods are cancel safe: a dropped future has taken no message,
/// and if it had begun to send one, the next sender through this end sends the rest first. To wait
/// for several connections, see [`wait_any`](crate::wait_any).
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
        /// Sends a value. Waits while the system's buffer is full.
        ///
        /// Two peers that both send some hundred KiB before either receives wait for each other for
        /// ever. Receive in between, or send from another thread.
        ///
        /// # Errors
        /// If the value cannot be encoded, in which case nothing was sent, or if the peer is gone.
        pub fn send(&self, value: &$type) -> Result<(), SendError>
        where
            $type: Serialize,
        {
            self.end.send_value(value)
        }

        /// Async version of [`send`](Self::send). The value is encoded by the call itself, not when
        /// the future is polled.
        ///
        /// # Cancel safety
        /// If the future is dropped, either nothing was sent, or a part of a message longer than
        /// 64 KiB. In the second case the next sender through this end sends the rest first.
        pub fn send_async<'a>(
            &'a self,
            value: &$type,
        ) -> impl Future<Output = Result<(), SendError>> + Send + use<'a, $($captured),+>
        where
            $type: Serialize,
        {
            self.end.send_value_async(value)
        }

        /// Returns this end as a `Sink`. Each item is sent before the next one is accepted.
        pub fn sink(&self) -> impl Sink<$type, Error = SendError> + Send + Unpin
        where
            $type: Serialize,
        {
            Box::pin(futures::sink::unfold(&*self.end, |end, value: $type| {
                let sent = end.send_value_async(&value);
                async move { sent.await.map(|()| end) }
            }))
        }

        /// Sends bytes unchanged, without encoding them.
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
        /// Waits for a value and returns it.
        ///
        /// # Errors
        /// [`Closed`](RecvError::Closed) if the peer is gone and everything was received.
        /// [`Decode`](RecvError::Decode) if the message is not a value of this type. The message is
        /// then used up.
        pub fn recv(&self) -> Result<$type, RecvError>
        where
            $type: DeserializeOwned,
        {
            self.end.receive(u64::MAX, None, true)?.into_value()
        }

        /// Like [`recv`](Self::recv), but does not wait.
        ///
        /// # Errors
        /// As for [`recv`](Self::recv), and [`Empty`](RecvError::Empty) if no message is there.
        pub fn try_recv(&self) -> Result<$type, RecvError>
        where
            $type: DeserializeOwned,
        {
            self.end.receive(u64::MAX, None, false)?.into_value()
        }

        /// Like [`recv`](Self::recv), but waits no longer than `timeout`.
        ///
        /// # Errors
        /// As for [`recv`](Self::recv), and [`Empty`](RecvError::Empty) if no message came. If a
        /// part of a long message has arrived, it is kept for the next call.
        pub fn recv_timeout(&self, timeout: Duration) -> Result<$type, RecvError>
        where
            $type: DeserializeOwned,
        {
            self.end.receive(u64::MAX, deadline_in(Some(timeout)), true)?.into_value()
        }

        /// Async version of [`recv`](Self::recv).
        ///
        /// # Cancel safety
        /// A dropped future has taken no message.
        pub async fn recv_async(&self) -> Result<$type, RecvError>
        where
            $type: DeserializeOwned,
        {
            self.end.receive_async(u64::MAX).await?.into_value()
        }

        /// Returns a `Stream` of all values to come. It ends when the peer is gone, and after an
        /// error that [is the end](RecvError::is_end).
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

        /// Waits for a message of bytes and returns it.
        ///
        /// # Errors
        /// As for [`recv`](Self::recv).
        pub fn recv_bytes(&self) -> Result<Vec<u8>, RecvError> {
            self.recv_bytes_max(u64::MAX)
        }

        /// Like [`recv_bytes`](Self::recv_bytes), but accepts at most `max` bytes. Use it with a
        /// peer that is not trusted.
        ///
        /// # Errors
        /// As for [`recv`](Self::recv), and [`TooLong`](RecvError::TooLong) for a longer message,
        /// before memory is allocated for it. The message can still be received by another call.
        pub fn recv_bytes_max(&self, max: u64) -> Result<Vec<u8>, RecvError> {
            self.end.receive(max, None, true)?.into_user_bytes()
        }

        /// Like [`recv_bytes`](Self::recv_bytes), but copies the bytes into a buffer. Returns the
        /// number of bytes.
        ///
        /// # Errors
        /// As for [`recv`](Self::recv), and [`TooShort`](RecvError::TooShort) with the message if
        /// the buffer is too short.
        pub fn recv_bytes_into(&self, buffer: &mut [u8]) -> Result<usize, RecvError> {
            let received = self.end.receive(u64::MAX, None, true)?;
            if received.kind == super::message::MessageKind::Bytes
                && let Some(place) = buffer.get_mut(..received.bytes().len())
            {
                place.copy_from_slice(received.bytes());
                return Ok(place.len());
            }
            Err(RecvError::TooShort(received.into_user_bytes()?))
        }

        /// Async version of [`recv_bytes`](Self::recv_bytes). Cancel safe.
        ///
        /// # Errors
        /// As for [`recv`](Self::recv).
        pub async fn recv_bytes_async(&self) -> Result<Vec<u8>, RecvError> {
            self.end.receive_async(u64::MAX).await?.into_user_bytes()
        }

        /// Waits until there is something to receive, and returns whether there is. Waits at most
        /// `timeout`, or for as long as it takes if that is `None`.
        ///
        /// The end of the connection counts as something to receive. If a message is longer than
        /// 64 KiB, `true` may mean that only its beginning has arrived.
        ///
        /// # Errors
        /// The system's.
        pub fn poll(&self, timeout: Option<Duration>) -> io::Result<bool> {
            self.end.poll(deadline_in(timeout))
        }
    };
}

impl<S, R> Connection<S, R> {
    sends!(S, [S, R]);
    receives!(R);

    /// Returns the same end for values of other types. Messages already sent are not affected.
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
            /// Returns the socket for waiting on it. Reading or writing it directly corrupts
            /// messages.
            fn as_fd(&self) -> BorrowedFd<'_> {
                self.end.socket().as_fd()
            }
        }

        impl<$($param),+> TryFrom<OwnedFd> for $name<$($param),+> {
            type Error = io::Error;

            /// Makes an end from a descriptor that came to this process by other means.
            ///
            /// # Errors
            /// If the descriptor is not a socket of a kind that connections use.
            fn try_from(descriptor: OwnedFd) -> io::Result<Self> {
                Ok(Self::over(Endpoint::new(Arc::new(descriptor))?))
            }
        }

        impl<$($param),+> Serialize for $name<$($param),+> {
            fn serialize<Ser: Serializer>(&self, serializer: Ser) -> Result<Ser::Ok, Ser::Error> {
                let failed = |error: &dyn fmt::Display| {
                    ser::Error::custom(format_args!(concat!("a ", stringify!($name), ": {}"), error))
                };
                // A receiver gets only the socket. It could not continue a message that is half
                // sent or half received in this process.
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
