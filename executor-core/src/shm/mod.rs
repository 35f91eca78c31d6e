//! Objects in shared memory that users have handles of, and that travel in arguments and results.
//!
//! ```text
//!  SharedBytes in a process ──► memfd ◄── SharedBytes in another one
//!        │                        ▲
//!        │ Serialize: seal it     │ Deserialize: look at the seals, map it
//!        └─► attachment: the descriptor, over the control socket (`wire/attachment.rs`)
//! ```
//!
//! A handle owns a descriptor and a mapping; the memory belongs to all handles of all processes together, and to the tasks
//! that carry it and are not resolved. When a process dies, its part in it is gone, and nothing else happens.

mod bytes;
#[allow(dead_code)]
pub(crate) mod heap;
mod segment;
mod value;
mod words;

pub use bytes::SharedBytes;
pub use value::{RawValue, Value, ValueGuard};
pub use words::Integer;
