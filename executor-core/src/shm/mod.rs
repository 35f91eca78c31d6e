//! Shared objects of which users have handles, and which can be sent in arguments and results.
//!
//! ```text
//!  SharedBytes in a process ──► memfd ◄── SharedBytes in another process
//!        │                        ▲
//!        │ Serialize: seal it     │ Deserialize: check the seals, map it
//!        └─► attachment: the descriptor, over the control socket (`wire/attachment.rs`)
//!
//!  Value, Array, Lock … in a process ─► block ─► segment (memfd) ◄─ block ◄─ in another process
//!        │                                          ▲
//!        │ Serialize: the block's place,            │ Deserialize: map the segment, or use
//!        │ the segment's descriptor                 │ its mapping; check place, length, kind
//!        └─► attachment: once for all of a segment
//!
//!  SharedMemory with a name ──► file in this user's folder in /dev/shm ◄── by name, or as above
//! ```
//!
//! - `bytes`: bytes that are written once, then sealed and read by all.
//! - `value`, `array`, `raw_array`, `memory`, `list`: the types for memory that all processes may
//!   write (`heap`). `readers`: how several processes read at the same time.
//! - `name`: names, their owners, and how the names of dead owners are removed.
//!
//! A handle keeps the mapping. The memory belongs to all handles in all processes together, and to
//! the tasks that carry it and are not resolved. When a process dies, its share is gone: the kernel
//! counts, and nobody else does. A change that the process was in the middle of is a matter of the
//! locks (in `sync`, which lies between `heap` and this folder).

mod array;
mod bytes;
mod list;
mod memory;
mod name;
mod raw_array;
mod readers;
mod value;
#[cfg(feature = "ndarray")]
mod views;

pub use crate::heap::words::Integer;
pub use array::{Array, ArrayReadGuard, ArrayWriteGuard};
pub use bytes::SharedBytes;
pub use list::{ListItem, ShareableList, TooLarge};
pub use memory::{SharedMemory, SharedMemoryScope};
pub use raw_array::RawArray;
pub use value::{RawValue, Value, ValueGuard};
