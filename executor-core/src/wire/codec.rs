//! Values to bytes and back.

use serde::{Deserialize, Serialize};

/// How the values of a task travel.
#[doc(hidden)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Codec {
    /// postcard: compact, fast, not self-describing.
    Postcard,
    /// MessagePack with field names: self-describing.
    MessagePack,
}

/// Why a value could not be encoded or decoded.
#[doc(hidden)]
#[derive(Debug, Clone)]
pub struct CodecError {
    /// For the user.
    pub message: String,
}

impl Codec {
    /// Appends `value` to `out`.
    pub fn encode<T: Serialize + ?Sized>(self, value: &T, out: &mut Vec<u8>) -> Result<(), CodecError> {
        let _ = (value, out);
        unimplemented!()
    }

    /// Decodes one value that fills `bytes` exactly.
    pub fn decode<'a, T: Deserialize<'a>>(self, bytes: &'a [u8]) -> Result<T, CodecError> {
        let _ = bytes;
        unimplemented!()
    }
}
