//! Memory that processes share, and objects in it.
//!
//! ```text
//!  Lock, Value, Queue … ──► block   a piece of a segment, with its kind; travels as a place
//!                             │
//!                           segment  a file of fixed length, mapped once in each process
//!  large items of queues ──► extents  a sparse file: rings and pieces, mapped or read where they are needed
//!                           words    how plain data is read while others write it
//! ```
//!
//! `sync` and `shm` lie on it, and know nothing of files.

pub(crate) mod block;
pub(crate) mod extents;
pub(crate) mod segment;
pub(crate) mod words;
