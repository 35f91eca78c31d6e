//! Memory that several processes share, and the objects in it.
//!
//! ```text
//!  Lock, Value, Queue … ──► block        a piece of a segment, with its kind; sent as a place
//!                             │
//!                           segment      a file of fixed length, mapped once in each process
//!  large items of queues ─► sparse_file  rings and pieces, mapped or read as needed
//!                           words        reads and writes plain data while others write it
//! ```
//!
//! `sync` and `shm` are built on this module, and do not deal with files themselves.

pub(crate) mod block;
pub(crate) mod segment;
pub(crate) mod sparse_file;
pub(crate) mod words;
