//! The MessagePack format, with names of fields and variants.
//!
//! It is encoded as other libraries do it. It also represents what they leave out:
//!
//! ```text
//!   None               nil
//!   Some(value)        value, unless that is nil: Some(None), Some(())
//!   Some(…Some(nil))   extension 3: the number of Somes around the nil
//!   u128, i128         a number if it fits into 64 bits, otherwise extension 1, 2: 16 bytes
//! ```
//!
//! Both directions are implemented here. So depth and lengths are bounded on every path, and what a
//! type asks for is compared with what was written.

mod deserializer;
mod reader;
mod writer;

pub(super) use reader::Reader;
pub(super) use writer::encode;

const U128: u8 = 1;
const I128: u8 = 2;
const SOMES: u8 = 3;

/// Returns the length of a byte string, and where its contents begin in `head`.
pub(super) fn bytes_head(head: &[u8]) -> Option<(u64, usize)> {
    match head {
        [0xc4, a, ..] => Some((u64::from(*a), 2)),
        [0xc5, a, b, ..] => Some((u64::from(u16::from_be_bytes([*a, *b])), 3)),
        [0xc6, a, b, c, d, ..] => Some((u64::from(u32::from_be_bytes([*a, *b, *c, *d])), 5)),
        _ => None,
    }
}
