//! Converts values to bytes and back.
//!
//! ```text
//!   value ──► Format::encode ──► bytes ──► Format::reader, next, next, …, finish ──► values
//! ```
//!
//! The formats are types ([`Postcard`], [`MessagePack`]), so that a task's generated code
//! instantiates serde for the format it uses. [`Codec`] is the same choice as a value, for code
//! that learns the format from the wire.
//!
//! A value arrives unchanged or not at all. A type's `Serialize` and `Deserialize` may differ
//! because of serde's attributes (`skip`, `rename` of one side, `serialize_with` alone), or because
//! they are written by hand. So both formats write the kind of each value, and the names of fields
//! and variants. The reader compares all of this with what `Deserialize` asks for. Where they
//! differ, it reads by names, as JSON does, or returns an error that names the type and the field.
//!
//! An error keeps the message of the user's own `Serialize` or `Deserialize`. If a format cannot do
//! something by design, the error says what to do instead.

mod access;
mod error;
mod messagepack;
mod postcard;

use serde::{Deserialize, Serialize};

use super::buffer::Buffer;
use crate::{os::stack, sealed::Sealed};

use error::Error;
pub use error::{CodecError, Fault};

/// Maximum depth of nested values. Deeper values are refused: bytes can announce any depth, and
/// each level costs stack. A list of hundreds of nested boxes is better sent as a `Vec`.
const DEPTH_MAX: usize = 512;

/// Maximum depth at which the stack that is left is not checked. Any thread has enough stack for
/// this depth.
const UNASKED_DEPTH: usize = 8;

/// Bytes of stack that must be left before a value goes one level deeper. They are for the frames
/// of the user's serde implementations, which are large in debug builds, and for everything that
/// these call. A higher value would make threads with stacks of 128 KiB useless.
const STACK_LEFT_MIN: usize = 64 * 1024;

/// Maximum number of bytes that stand in front of the contents of a byte string.
pub(crate) const BYTES_HEAD_MAX: usize = 11;

/// Goes one level deeper. Returns an error if the value is nested too deep.
#[inline]
fn enter(depth: &mut usize) -> Result<(), Error> {
    *depth += 1;
    if *depth > UNASKED_DEPTH { look(*depth) } else { Ok(()) }
}

fn look(depth: usize) -> Result<(), Error> {
    if depth > DEPTH_MAX {
        return Err(Error::new(format!(
            "the value is nested too deep: the limit is a depth of {DEPTH_MAX}, and a list of nested boxes is better \
             sent as a `Vec`"
        )));
    }
    match stack::left() {
        Some(left) if left < STACK_LEFT_MIN => Err(Error::new(format!(
            "the value is nested too deep for this thread's stack: {left} bytes are left of it at a depth of {depth}"
        ))),
        _ => Ok(()),
    }
}

/// The format in which the values of a task are encoded.
#[doc(hidden)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Codec {
    /// postcard's numbers and lengths, plus kinds and names. It is compact and fast. The decoding
    /// type must know what comes next.
    Postcard,
    /// MessagePack with field names. It is self-describing.
    MessagePack,
}

impl Codec {
    /// Appends `value` to `out`.
    pub fn encode<T: Serialize + ?Sized>(
        self,
        value: &T,
        out: &mut Buffer,
    ) -> Result<(), CodecError> {
        match self {
            Codec::Postcard => Postcard::encode(value, out),
            Codec::MessagePack => MessagePack::encode(value, out),
        }
    }

    /// Returns where the contents of a byte string begin. The byte string must fill `total` bytes
    /// exactly, and `head` must be the first of them. Returns `None` otherwise.
    pub(crate) fn bytes_head(self, head: &[u8], total: usize) -> Option<usize> {
        let (len, start) = match self {
            Codec::Postcard => postcard::bytes_head(head)?,
            Codec::MessagePack => messagepack::bytes_head(head)?,
        };
        (total.checked_sub(start)? as u64 == len).then_some(start)
    }

    /// Decodes one value that fills `bytes` exactly.
    pub fn decode<'a, T: Deserialize<'a>>(self, bytes: &'a [u8]) -> Result<T, CodecError> {
        match self {
            Codec::Postcard => Postcard::decode(bytes),
            Codec::MessagePack => MessagePack::decode(bytes),
        }
    }
}

/// A codec that is known at compile time.
///
/// This trait is sealed: it cannot be implemented outside this crate.
#[doc(hidden)]
pub trait Format: Sealed {
    /// The same codec as a value.
    const CODEC: Codec;

    /// Reads values from a slice, one after the other.
    type Reader<'de>;

    /// Appends `value` to `out`.
    fn encode<T: Serialize + ?Sized>(value: &T, out: &mut Buffer) -> Result<(), CodecError>;

    /// Returns a reader of these bytes.
    fn reader(bytes: &[u8]) -> Self::Reader<'_>;

    /// Reads one value.
    fn next<'de, T: Deserialize<'de>>(reader: &mut Self::Reader<'de>) -> Result<T, CodecError>;

    /// Checks that no bytes are left over. Left-over bytes mean that the two sides do not agree on
    /// what was sent.
    fn finish(reader: &Self::Reader<'_>) -> Result<(), CodecError>;

    /// Decodes one value that fills `bytes` exactly, if it is of a type that needs no reader.
    /// Returns `None` for all other types.
    #[inline(always)]
    fn lone<'de, T: Deserialize<'de>>(_bytes: &'de [u8]) -> Option<T> {
        None
    }

    /// Decodes one value that fills `bytes` exactly.
    #[inline]
    fn decode<'de, T: Deserialize<'de>>(bytes: &'de [u8]) -> Result<T, CodecError> {
        if let Some(value) = Self::lone(bytes) {
            return Ok(value);
        }
        let mut reader = Self::reader(bytes);
        let value = Self::next(&mut reader)?;
        Self::finish(&reader)?;
        Ok(value)
    }
}

/// The type of [`Codec::Postcard`].
#[doc(hidden)]
#[derive(Debug, Clone, Copy)]
pub struct Postcard;

impl Sealed for Postcard {}

impl Format for Postcard {
    const CODEC: Codec = Codec::Postcard;
    type Reader<'de> = postcard::Reader<'de>;

    #[inline]
    fn encode<T: Serialize + ?Sized>(value: &T, out: &mut Buffer) -> Result<(), CodecError> {
        Ok(postcard::encode(value, out)?)
    }

    #[inline]
    fn reader(bytes: &[u8]) -> postcard::Reader<'_> {
        postcard::Reader::new(bytes)
    }

    #[inline]
    fn next<'de, T: Deserialize<'de>>(reader: &mut postcard::Reader<'de>) -> Result<T, CodecError> {
        Ok(reader.value()?)
    }

    #[inline]
    fn finish(reader: &postcard::Reader<'_>) -> Result<(), CodecError> {
        match reader.remaining() {
            0 => Ok(()),
            n => Err(error::left_over(n).into()),
        }
    }

    #[inline(always)]
    fn lone<'de, T: Deserialize<'de>>(bytes: &'de [u8]) -> Option<T> {
        postcard::lone(bytes)
    }
}

/// The type of [`Codec::MessagePack`].
#[doc(hidden)]
#[derive(Debug, Clone, Copy)]
pub struct MessagePack;

impl Sealed for MessagePack {}

impl Format for MessagePack {
    const CODEC: Codec = Codec::MessagePack;
    type Reader<'de> = messagepack::Reader<'de>;

    fn encode<T: Serialize + ?Sized>(value: &T, out: &mut Buffer) -> Result<(), CodecError> {
        Ok(messagepack::encode(value, out)?)
    }

    fn reader(bytes: &[u8]) -> messagepack::Reader<'_> {
        messagepack::Reader::new(bytes)
    }

    fn next<'de, T: Deserialize<'de>>(
        reader: &mut messagepack::Reader<'de>,
    ) -> Result<T, CodecError> {
        Ok(reader.value()?)
    }

    fn finish(reader: &messagepack::Reader<'_>) -> Result<(), CodecError> {
        match reader.remaining() {
            0 => Ok(()),
            n => Err(error::left_over(n).into()),
        }
    }
}

#[cfg(test)]
mod tests;
