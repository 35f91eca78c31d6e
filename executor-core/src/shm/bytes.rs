//! Bytes that are sent to other processes without being copied.

use std::{fmt, io, ops::Deref, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser};

use crate::{
    os::{arena, sealed::SealedBytes},
    wire::attachment,
};

/// Bytes in shared memory, which tasks read in place.
///
/// An argument of this type is not copied, however large it is: only a descriptor of the memory is
/// sent. The parent and all tasks that get it, in any worker, read the same pages. A `SharedBytes`
/// may be part of another type, it may be a result, and a received one may be sent on. It derefs to
/// `[u8]` everywhere.
///
/// ```
/// use executor::{SharedBytes, prelude::*};
///
/// #[task]
/// fn count(bytes: SharedBytes, byte: u8) -> usize {
///     // In place: nothing is copied here.
///     bytes.iter().filter(|other| **other == byte).count()
/// }
///
/// #[task]
/// fn noise(len: usize) -> SharedBytes {
///     let mut bytes = SharedBytes::zeroed(len);
///     for (i, byte) in bytes.get_mut().expect("not shared yet").iter_mut().enumerate() {
///         *byte = (i * 31) as u8;
///     }
///     bytes
/// }
///
/// #[executor::main]
/// fn main() -> Result<(), Box<dyn std::error::Error>> {
///     let pool = ProcessPoolExecutor::builder().max_workers(2).build()?;
///     let bytes = pool.submit(noise::task(1 << 20)).result()?;
///     let counts: Vec<usize> =
///         pool.map(|byte| count::task(bytes.clone(), byte), 0..4).collect::<Result<_, _>>()?;
///     assert_eq!(counts, [4096; 4]);
///     assert_eq!(bytes.len(), 1 << 20);
///     Ok(())
/// }
/// ```
///
/// # Writing
///
/// The process that creates the bytes writes them with [`get_mut`](Self::get_mut), until they are
/// sent or [frozen](Self::freeze) for the first time. After that nobody can write them. A forked
/// copy of that process may read them only after they are frozen. For memory that several processes
/// write, see the crate's other shared types.
///
/// # What it costs
///
/// One descriptor in each process that has it, and the memory once, until the last handle anywhere
/// is dropped. The memory is anonymous: when all processes that have it are gone, for whatever
/// reason, it is gone, too. Creating one from existing bytes copies them, at 1 to 2 GB/s, because
/// fresh pages are filled; so reuse it where possible. Sending one takes a few microseconds,
/// whatever its length. Small byte strings are better sent as a `Vec<u8>`. So are large ones if the
/// task wants a separate copy.
///
/// A task may take 253 different ones. They do not count towards a worker's private memory.
///
/// # Why it is sound
///
/// A `&[u8]` promises that the bytes do not change while it exists. Memory that another process can
/// write cannot promise that. So before a descriptor leaves its process, the memory is sealed
/// against writing (`F_SEAL_WRITE`). The kernel grants this only while no process has a writable
/// mapping, and nobody can undo it. The receiver of a descriptor checks the seals before it reads a
/// byte: a worker that sends anything else, by mistake or on purpose, makes its own task fail with
/// [`TaskError::Decode`](crate::TaskError::Decode). The length is sealed as well, so no access can
/// hit a missing page. Hence callers need no `unsafe`, and need not trust a worker.
///
/// # Errors
///
/// A serialiser other than a task's (`serde_json` …) returns an error, because a descriptor can be
/// sent only between an executor and its workers. If the system refuses a descriptor or memory,
/// [`try_zeroed`](Self::try_zeroed) and [`try_copy_from_slice`](Self::try_copy_from_slice) return
/// that error. The other functions panic, as a `Vec` would.
#[derive(Clone)]
pub struct SharedBytes {
    inner: Arc<SealedBytes>,
}

impl SharedBytes {
    /// Creates `len` zero bytes, to be written with [`get_mut`](Self::get_mut). Pages take memory
    /// only when they are written.
    ///
    /// # Panics
    /// If the system refuses: see [`try_zeroed`](Self::try_zeroed).
    pub fn zeroed(len: usize) -> Self {
        Self::try_zeroed(len).unwrap_or_else(|error| refused(len, &error))
    }

    /// Like [`zeroed`](Self::zeroed), but returns an error instead of panicking.
    ///
    /// # Errors
    /// The system's error if no descriptor, no address space or no memory is left.
    pub fn try_zeroed(len: usize) -> io::Result<Self> {
        Ok(SharedBytes { inner: Arc::new(SealedBytes::zeroed(len)?) })
    }

    /// Creates a copy of these bytes in shared memory.
    ///
    /// # Panics
    /// If the system refuses: see [`try_copy_from_slice`](Self::try_copy_from_slice).
    pub fn copy_from_slice(bytes: &[u8]) -> Self {
        Self::try_copy_from_slice(bytes).unwrap_or_else(|error| refused(bytes.len(), &error))
    }

    /// Like [`copy_from_slice`](Self::copy_from_slice), but returns an error instead of panicking.
    ///
    /// # Errors
    /// The system's error if no descriptor, no address space or no memory is left.
    pub fn try_copy_from_slice(bytes: &[u8]) -> io::Result<Self> {
        Ok(SharedBytes { inner: Arc::new(SealedBytes::copy_of(bytes)?) })
    }

    /// Returns the bytes for writing. Returns `None` after they were sent or frozen, and while
    /// there are clones.
    ///
    /// ```
    /// use executor::SharedBytes;
    ///
    /// let mut bytes = SharedBytes::zeroed(3);
    /// bytes.get_mut().unwrap().copy_from_slice(b"abc");
    /// let mut bytes = bytes.freeze().unwrap();
    /// assert_eq!(*bytes, *b"abc");
    /// assert!(bytes.get_mut().is_none());
    /// ```
    pub fn get_mut(&mut self) -> Option<&mut [u8]> {
        Arc::get_mut(&mut self.inner)?.bytes_mut()
    }

    /// Ends writing now; sending does so, too. Received bytes are already frozen, including a
    /// worker's result.
    ///
    /// # Errors
    /// If another process has the memory mapped for writing. Only a fork of this process can.
    pub fn freeze(self) -> io::Result<Self> {
        self.inner.seal()?;
        Ok(self)
    }

    /// Returns the bytes, like deref.
    ///
    /// # Panics
    /// In a copy of the process that created them (`StartMethod::Fork`, a fork server's child,
    /// [`fork_with`](crate::fork_with)), if they were not [frozen](Self::freeze). The other process
    /// could write while this one reads.
    #[track_caller]
    pub fn as_slice(&self) -> &[u8] {
        self.inner.bytes()
    }

    /// Returns the number of bytes.
    pub fn len(&self) -> usize {
        self.inner.len()
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns a copy in this process's private memory.
    pub fn to_vec(&self) -> Vec<u8> {
        arena::copy(self.as_slice())
    }
}

#[cold]
fn refused(len: usize, error: &io::Error) -> ! {
    panic!("no shared memory for {len} bytes: {error}")
}

impl Deref for SharedBytes {
    type Target = [u8];

    #[track_caller]
    fn deref(&self) -> &[u8] {
        self.as_slice()
    }
}

impl AsRef<[u8]> for SharedBytes {
    fn as_ref(&self) -> &[u8] {
        self.as_slice()
    }
}

impl From<Vec<u8>> for SharedBytes {
    /// Copies, like [`copy_from_slice`](Self::copy_from_slice), because a vector's memory is
    /// private to its process.
    fn from(bytes: Vec<u8>) -> Self {
        Self::copy_from_slice(&bytes)
    }
}

impl From<&[u8]> for SharedBytes {
    fn from(bytes: &[u8]) -> Self {
        Self::copy_from_slice(bytes)
    }
}

impl PartialEq for SharedBytes {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner) || self.as_slice() == other.as_slice()
    }
}

impl Eq for SharedBytes {}

impl fmt::Debug for SharedBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SharedBytes({} bytes)", self.len())
    }
}

impl Serialize for SharedBytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let failed =
            |error: &dyn fmt::Display| ser::Error::custom(format_args!("a SharedBytes: {error}"));
        // Seal before the descriptor leaves this process: see the type's documentation.
        self.inner.seal().map_err(|error| failed(&error))?;
        let index =
            attachment::attach::<S>(self.inner.descriptor()).map_err(|error| failed(&error))?;
        serializer.serialize_u8(index)
    }
}

impl<'de> Deserialize<'de> for SharedBytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let failed =
            |error: &dyn fmt::Display| de::Error::custom(format_args!("a SharedBytes: {error}"));
        let index = u8::deserialize(deserializer)?;
        let descriptor = attachment::detach(index).map_err(|error| failed(&error))?;
        let inner = SealedBytes::open(descriptor).map_err(|error| failed(&error))?;
        Ok(SharedBytes { inner: Arc::new(inner) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{buffer::Buffer, codec::Codec};

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Nested {
        name: String,
        parts: Vec<Option<SharedBytes>>,
    }

    #[test]
    fn it_travels_inside_of_other_types_in_both_codecs() {
        let bytes = SharedBytes::from(vec![5; 10_000]);
        let parts = vec![None, Some(bytes.clone()), Some(bytes), Some(SharedBytes::zeroed(0))];
        let nested = Nested { name: "x".into(), parts };
        for codec in [Codec::Postcard, Codec::MessagePack] {
            let mut out = Buffer::new();
            let (encoded, attached) = attachment::collect(|| codec.encode(&nested, &mut out));
            encoded.unwrap();
            assert_eq!(attached.len(), 2, "one descriptor for two clones");
            let out = out.into_vec();
            assert!(out.len() < 100);
            let decoded: Nested = attachment::offer(&attached, || codec.decode(&out)).unwrap();
            assert_eq!(decoded, nested);
            let error = codec.decode::<Nested>(&out).unwrap_err();
            assert!(error.message.contains("did not come with these bytes"), "{error}");
        }
    }

    #[test]
    fn it_is_written_by_its_only_handle_until_it_is_sent() {
        let mut bytes = SharedBytes::zeroed(10);
        bytes.get_mut().unwrap()[3] = 1;
        let clone = bytes.clone();
        assert!(bytes.get_mut().is_none());
        drop(clone);
        bytes.get_mut().unwrap()[4] = 1;
        let (sent, _attached) =
            attachment::collect(|| Codec::Postcard.encode(&bytes, &mut Buffer::new()));
        sent.unwrap();
        assert!(bytes.get_mut().is_none());
        assert_eq!(bytes.to_vec(), [0, 0, 0, 1, 1, 0, 0, 0, 0, 0]);
    }
}
