//! Descriptors of the system that travel.

use std::{
    fmt,
    ops::{Deref, DerefMut},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser};

use crate::wire::attachment;

/// A file, a socket, or whatever else is a descriptor, that can be sent to another process.
///
/// It may be an argument or a result of a task, part of either, or go through a connection or a queue. Whoever receives it
/// has a descriptor of the same open file: the same position, the same connection.
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
/// `T` is anything that is made from an `OwnedFd`: `File`, `TcpStream`, `TcpListener`, `UnixStream`, `UdpSocket`, the ends
/// of std's pipes, `OwnedFd` itself. That the descriptor is one of that kind is as sure as that both sides name
/// the same type, which for tasks is checked when a worker starts.
#[derive(Debug)]
pub struct Transfer<T>(T);

impl<T> Transfer<T> {
    /// To be sent.
    pub fn new(inner: T) -> Self {
        Transfer(inner)
    }

    /// What was received.
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
        let failed = |error: &dyn fmt::Display| ser::Error::custom(format_args!("a Transfer: {error}"));
        let own = self.0.as_fd().try_clone_to_owned().map_err(|error| failed(&error))?;
        attachment::attach::<S>(&Arc::new(own)).map_err(|error| failed(&error))?.serialize(serializer)
    }
}

impl<'de, T: From<OwnedFd>> Deserialize<'de> for Transfer<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let failed = |error: &dyn fmt::Display| de::Error::custom(format_args!("a Transfer: {error}"));
        let index = u8::deserialize(deserializer)?;
        let descriptor = attachment::detach(index).map_err(|error| failed(&error))?;
        // One for each that was sent, and one more where the first is still needed.
        let own = match Arc::try_unwrap(descriptor) {
            Ok(own) => own,
            Err(shared) => shared.try_clone().map_err(|error| failed(&error))?,
        };
        Ok(Transfer(T::from(own)))
    }
}
