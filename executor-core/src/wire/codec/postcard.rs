//! The default format: postcard's numbers and lengths, with the kind of each value in front of it.
//!
//! ```text
//! 42_u64               U64 42                 numbers as in postcard: varints, zigzag, floats of 4
//!                                             or 8 bytes
//! "ab"                 STR 2 a b
//! vec![1_u8, 2]        SEQ 2 U8 1 2           numbers: one kind for all elements, in front of them
//! vec!["a"]            SEQ 1 0 STR 1 a        other elements: 0, and each element has its own kind
//! (1_u8, true)         TUPLE 2 U8 1 BOOL 1
//! Point { x: 1 }       STRUCT 0 1 1 x U8 1    first Point: 0, number of fields, each with its name
//! another Point        STRUCT 1 U8 2          the first structure of this message again: fields by
//!                                             position
//! Some(E::New(3_u8))   SOME NEWTYPE_VARIANT 0 2 3 N e w U8 3
//!                                             first E::New: 0, index and name; the next time: 1
//! ```
//!
//! So the reader knows what was written, and compares it with what it is asked for. Equal kinds
//! take the fast path. [`Reader::other`] handles all others: it passes on what means the same
//! value, and anything else is an error. A structure whose names are those of `Deserialize`, in the
//! same order, is read by position. Any other structure is read by names.
//!
//! The numbers count within one message (one call of [`encode`], one call of [`Reader::value`]).
//! The thread keeps the tables for the next message, and a message without structures and variants
//! takes none. The writer finds a numbered structure by two addresses: the address of its name,
//! and the address of the name of the Rust type. The second is needed because two structures with
//! one name may have different fields. The name of each field is compared as it is written.

mod deserializer;
mod kind;
mod mismatch;
mod reader;
mod serializer;
mod structure;
mod tables;
mod writer;

use serde::{Deserialize, de::value as plain};

use super::error::Error;

pub(super) use reader::Reader;
pub(super) use writer::encode;

/// Reads `bytes` if they consist of one small number or a unit, as most results do. Making a
/// [`Reader`] would take longer than reading them. Returns `None` for anything else: then a
/// `Reader` reads the bytes, or returns the error.
#[inline(always)]
pub(super) fn lone<'de, T: Deserialize<'de>>(bytes: &'de [u8]) -> Option<T> {
    let asked = kind::of_simple::<T>();
    let value: Result<T, Error> = match *bytes {
        [kind] if kind == asked && kind == kind::UNIT => {
            T::deserialize(plain::UnitDeserializer::new())
        }
        [kind, byte @ ..0x80] if kind == asked => match kind {
            kind::U8 | kind::U16 | kind::U32 | kind::U64 => {
                T::deserialize(plain::U64Deserializer::new(byte.into()))
            }
            kind::I16 | kind::I32 | kind::I64 => {
                T::deserialize(plain::I64Deserializer::new(unzigzag(byte.into())))
            }
            kind::BOOL if byte < 2 => T::deserialize(plain::BoolDeserializer::new(byte == 1)),
            _ => return None,
        },
        _ => return None,
    };
    value.ok()
}

#[inline]
fn unzigzag(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
}

/// Returns the length of a byte string, and where its contents begin in `head`.
pub(super) fn bytes_head(head: &[u8]) -> Option<(u64, usize)> {
    let mut reader = Reader::new(head.strip_prefix(&[kind::BYTES])?);
    let len = reader.varint().ok()?;
    Some((len, head.len() - reader.input.len()))
}
