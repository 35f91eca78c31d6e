//! Sending a file descriptor to another process.

use std::{
    fmt,
    ops::{Deref, DerefMut},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser};

use crate::wire::attachment;

/// A file, a socket or another owner of a descriptor, in a form that can be sent to another
/// process.
///
/// It can be an argument or a result of a task, a part of either, or be sent through a connection
/// or a queue. The receiver gets a descriptor of the same open file, with the same position or the
/// same connection.
///
/// ```
/// use executor::{Transfer, prelude::*};
/// use std::{fs::File, io::{Read, Seek}};
///
/// #[task]
/// fn read_rest(mut file: Transfer<File>) -> std::io::Result<String> {
///     let mut text = String::new();
///     file.read_to_string(&mut text)?;
///     Ok(text)
/// }
///
/// #[executor::main]
/// fn main() -> Result<(), Box<dyn std::error::Error>> {
///     let path = std::env::temp_dir().join(format!("transfer-{}", std::process::id()));
///     std::fs::write(&path, "hello world")?;
///     let mut file = File::open(&path)?;
///     std::fs::remove_file(&path)?;
///     file.seek(std::io::SeekFrom::Start(6))?;
///     let pool = ProcessPoolExecutor::builder().max_workers(1).build()?;
///     assert_eq!(pool.submit(read_rest::task(Transfer::new(file))).result()?, "world");
///     Ok(())
/// }
/// ```
///
/// `T` is any type that is made from an `OwnedFd`: `File`, `TcpStream`, `TcpListener`,
/// `UnixStream`, `UdpSocket`, the ends of std's pipes, or `OwnedFd` itself. Whether the descriptor
/// really is of that kind is not checked. It is if both sides name the same type, which for tasks
/// is checked when a worker starts.
#[derive(Debug)]
pub struct Transfer<T>(T);

impl<T> Transfer<T> {
    /// Wraps a value to be sent.
    pub fn new(inner: T) -> Self {
        Transfer(inner)
    }

    /// Returns the wrapped value, for example one that was received.
    pub fn into_inner(self) -> T {
        self.0
    }
}

impl<T> From<T> for Transfer<T> {
    fn from(inner: T) -> Self {
        Transfer(inner)
    }
}

impl<T> Deref for Transfer<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T> DerefMut for Transfer<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.0
    }
}

impl<T: AsFd> AsFd for Transfer<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl<T: AsFd> Serialize for Transfer<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let failed =
            |error: &dyn fmt::Display| ser::Error::custom(format_args!("a Transfer: {error}"));
        // Send a duplicate, so that the sender's value stays usable.
        let own = self.0.as_fd().try_clone_to_owned().map_err(|error| failed(&error))?;
        attachment::attach::<S>(&Arc::new(own))
            .map_err(|error| failed(&error))?
            .serialize(serializer)
    }
}

impl<'de, T: From<OwnedFd>> Deserialize<'de> for Transfer<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let failed =
            |error: &dyn fmt::Display| de::Error::custom(format_args!("a Transfer: {error}"));
        let index = u8::deserialize(deserializer)?;
        let descriptor = attachment::detach(index).map_err(|error| failed(&error))?;
        // Take over the descriptor if nothing else holds it. Otherwise the message it came with
        // still does, so duplicate it.
        let own = match Arc::try_unwrap(descriptor) {
            Ok(own) => own,
            Err(shared) => shared.try_clone().map_err(|error| failed(&error))?,
        };
        Ok(Transfer(T::from(own)))
    }
}
