//! Objects in shared memory that users have handles of, and that travel in arguments and results.
//!
//! ```text
//!  SharedBytes in a process ──► memfd ◄── SharedBytes in another one
//!        │                        ▲
//!        │ Serialize: seal it     │ Deserialize: look at the seals, map it
//!        └─► attachment: the descriptor, over the control socket (`wire/attachment.rs`)
//!
//!  Value, Array, Lock … in a process ──► block ──► segment (memfd) ◄── block ◄── the same object in another one
//!        │                                            ▲
//!        │ Serialize: place of the block, descriptor  │ Deserialize: the segment that is mapped already, or map it;
//!        └─► attachment: once for all of a segment      check place, length and kind
//!
//!  SharedMemory with a name ──► file in a folder of this user's in /dev/shm ◄── by its name, or as above
//! ```
//!
//! - `bytes`: written once, then sealed and read by all.
//! - `value`, `array`, `memory`, `list`: what users see of memory that all may write (`heap`);
//!   `readers` how several read at the same time.
//! - `name`: names, who owns them, and how those of the dead go.
//!
//! A handle keeps the mapping; the memory belongs to all handles of all processes together, and to the tasks that carry it
//! and are not resolved. When a process dies, its part in it is gone: the kernel counts, nobody else does. What it was in the
//! middle of is the matter of the locks: `sync`, which lies between `heap` and this folder.

mod array;
mod bytes;
mod list;
mod memory;
mod name;
mod readers;
mod value;
#[cfg(feature = "ndarray")]
mod views;

pub use crate::heap::words::Integer;
pub use array::{Array, ArrayReadGuard, ArrayWriteGuard, RawArray};
pub use bytes::SharedBytes;
pub use list::{ListItem, ShareableList, TooLarge};
pub use memory::{SharedMemory, SharedMemoryScope};
pub use value::{RawValue, Value, ValueGuard};
