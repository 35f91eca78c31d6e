//! Values to bytes and back.
//!
//! ```text
//!   value ──► Format::encode ──► bytes ──► Format::reader, next, next, …, finish ──► values
//! ```
//!
//! The formats are types ([`Postcard`], [`MessagePack`]), so that a task's generated code instantiates serde for the
//! one it uses. [`Codec`] is the same choice as a value, for the places that learn it from the wire.
//!
//! An error keeps what the user's own `Serialize` or `Deserialize` said. What a format cannot do by design is an
//! error that names the cure.

mod postcard;

use std::fmt;

use serde::{Deserialize, Serialize};

use super::buffer::Buffer;

/// Deeper values are refused: bytes can announce any depth, and each level costs stack. MessagePack's takes more than
/// 2 KiB in a debug build, so that twice this depth overflowed a thread of 2 MiB. A list of hundreds of nested boxes
/// is better sent as a `Vec`.
const DEPTH_MAX: usize = 512;

/// At most so many bytes stand before those of a byte string.
pub(crate) const BYTES_HEAD_MAX: usize = 10;

/// How the values of a task travel.
#[doc(hidden)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Codec {
    /// postcard: compact, fast, not self-describing.
    Postcard,
    /// MessagePack with field names: self-describing. It cannot tell `Some(None)` from `None`.
    MessagePack,
}

impl Codec {
    /// Appends `value` to `out`.
    pub fn encode<T: Serialize + ?Sized>(self, value: &T, out: &mut Buffer) -> Result<(), CodecError> {
        match self {
            Codec::Postcard => Postcard::encode(value, out),
            Codec::MessagePack => MessagePack::encode(value, out),
        }
    }

    /// Where the bytes of a byte string begin that fills `total` bytes exactly, of which `head` are the first.
    pub(crate) fn bytes_head(self, head: &[u8], total: usize) -> Option<usize> {
        let (len, start) = match self {
            Codec::Postcard => {
                let (len, rest) = ::postcard::take_from_bytes::<u64>(head).ok()?;
                (len, head.len() - rest.len())
            }
            Codec::MessagePack => match head {
                [0xc5, a, b, ..] => (u64::from(u16::from_be_bytes([*a, *b])), 3),
                [0xc6, a, b, c, d, ..] => (u64::from(u32::from_be_bytes([*a, *b, *c, *d])), 5),
                _ => return None,
            },
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

/// Why a value could not be encoded or decoded.
#[doc(hidden)]
#[derive(Clone)]
pub struct CodecError {
    /// For the user.
    pub message: String,
    /// Said by the type's own serde implementation, not by the format.
    pub custom: bool,
}

impl CodecError {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        CodecError { message: message.into(), custom: false }
    }

    #[cold]
    fn custom(message: impl fmt::Display) -> Self {
        CodecError { message: message.to_string(), custom: true }
    }

    /// The same error, said of one argument.
    #[cold]
    pub(crate) fn of_argument(mut self, name: &str) -> Self {
        self.message = format!("argument `{name}`: {}", self.message);
        self
    }
}

impl fmt::Display for CodecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for CodecError {}

crate::error::debug_is_display!(CodecError);

impl serde::ser::Error for CodecError {
    fn custom<T: fmt::Display>(message: T) -> Self {
        CodecError::custom(message)
    }
}

// `missing_field` and its like come from derived code that reads what another derived code did not write: that is
// the format's doing, not the type's own word. `invalid_value` stays custom: a `NonZeroU8` says it of a zero.
impl serde::de::Error for CodecError {
    fn custom<T: fmt::Display>(message: T) -> Self {
        CodecError::custom(message)
    }

    fn invalid_type(unexpected: serde::de::Unexpected<'_>, expected: &dyn serde::de::Expected) -> Self {
        CodecError::new(format!("invalid type: {unexpected}, expected {expected}"))
    }

    fn invalid_length(len: usize, expected: &dyn serde::de::Expected) -> Self {
        CodecError::new(format!("invalid length {len}, expected {expected}"))
    }

    fn unknown_variant(variant: &str, _: &'static [&'static str]) -> Self {
        CodecError::new(format!("unknown variant `{variant}`"))
    }

    fn unknown_field(field: &str, _: &'static [&'static str]) -> Self {
        CodecError::new(format!("unknown field `{field}`"))
    }

    fn missing_field(field: &'static str) -> Self {
        CodecError::new(format!("missing field `{field}`"))
    }

    fn duplicate_field(field: &'static str) -> Self {
        CodecError::new(format!("duplicate field `{field}`"))
    }
}

/// A codec known when the program is compiled.
#[doc(hidden)]
pub trait Format {
    /// The same as a value.
    const CODEC: Codec;

    /// Takes one value after the other off a slice.
    type Reader<'de>;

    /// Appends `value` to `out`.
    fn encode<T: Serialize + ?Sized>(value: &T, out: &mut Buffer) -> Result<(), CodecError>;

    /// Starts reading.
    fn reader(bytes: &[u8]) -> Self::Reader<'_>;

    /// Reads one value.
    fn next<'de, T: Deserialize<'de>>(reader: &mut Self::Reader<'de>) -> Result<T, CodecError>;

    /// Bytes left over are an error: the two sides do not agree on what was sent.
    fn finish(reader: Self::Reader<'_>) -> Result<(), CodecError>;

    /// Decodes one value that fills `bytes` exactly.
    fn decode<'de, T: Deserialize<'de>>(bytes: &'de [u8]) -> Result<T, CodecError> {
        let mut reader = Self::reader(bytes);
        let value = Self::next(&mut reader)?;
        Self::finish(reader)?;
        Ok(value)
    }
}

/// [`Codec::Postcard`].
#[doc(hidden)]
#[derive(Debug, Clone, Copy)]
pub struct Postcard;

impl Format for Postcard {
    const CODEC: Codec = Codec::Postcard;
    type Reader<'de> = postcard::Reader<'de>;

    #[inline]
    fn encode<T: Serialize + ?Sized>(value: &T, out: &mut Buffer) -> Result<(), CodecError> {
        value.serialize(&mut postcard::Writer::new(out))
    }

    #[inline]
    fn reader(bytes: &[u8]) -> postcard::Reader<'_> {
        postcard::Reader::new(bytes)
    }

    #[inline]
    fn next<'de, T: Deserialize<'de>>(reader: &mut postcard::Reader<'de>) -> Result<T, CodecError> {
        T::deserialize(reader)
    }

    #[inline]
    fn finish(reader: postcard::Reader<'_>) -> Result<(), CodecError> {
        match reader.remaining() {
            0 => Ok(()),
            n => Err(CodecError::new(format!("{n} bytes are left over"))),
        }
    }
}

/// [`Codec::MessagePack`].
#[doc(hidden)]
#[derive(Debug, Clone, Copy)]
pub struct MessagePack;

impl Format for MessagePack {
    const CODEC: Codec = Codec::MessagePack;
    type Reader<'de> = rmp_serde::Deserializer<rmp_serde::decode::ReadRefReader<'de, [u8]>>;

    fn encode<T: Serialize + ?Sized>(value: &T, out: &mut Buffer) -> Result<(), CodecError> {
        value.serialize(&mut rmp_serde::Serializer::new(out).with_struct_map()).map_err(|error| match error {
            rmp_serde::encode::Error::Syntax(message) => CodecError::custom(message),
            other => CodecError::new(other.to_string()),
        })
    }

    fn reader(bytes: &[u8]) -> Self::Reader<'_> {
        let mut reader = rmp_serde::Deserializer::from_read_ref(bytes);
        reader.set_max_depth(DEPTH_MAX);
        reader
    }

    fn next<'de, T: Deserialize<'de>>(reader: &mut Self::Reader<'de>) -> Result<T, CodecError> {
        T::deserialize(reader).map_err(|error| match error {
            rmp_serde::decode::Error::Syntax(message) => CodecError::custom(message),
            other => CodecError::new(other.to_string()),
        })
    }

    fn finish(mut reader: Self::Reader<'_>) -> Result<(), CodecError> {
        // The reader does not tell how much is left; nothing is left if there is not one more value's first byte.
        match serde::de::IgnoredAny::deserialize(&mut reader) {
            Err(rmp_serde::decode::Error::InvalidMarkerRead(_)) => Ok(()),
            _ => Err(CodecError::new("bytes are left over")),
        }
    }
}

#[cfg(test)]
mod tests;
