//! Segments of memory that parent and worker share: where large arguments and results lie.
//!
//! ```text
//!              pool                                                  worker
//!  submit ──► Buffer ──► Lease of a segment ═══ arguments (memfd) ═══► Views: decodes in place, read-only
//!               the frame says: segment 3, 65,540 bytes
//!
//!  result() ◄── Received: one copy-out ◄═══ results (memfd, one for ◄══ Buffer ──► Lease of a segment
//!               then the segment is free again         each worker)
//! ```
//!
//! **Who owns a segment.** An [`Arena`] has 64 segments, and a [`Ledger`] one bit for each: who sets the bit owns the
//! segment until the bit is cleared. Arguments: the pool sets it when it encodes and clears it when the task is
//! resolved (not before: a task that had not begun may go to another worker). Results: the worker sets it when it
//! encodes, the pool clears it when the last copy of the future's payload is gone. Nobody waits for a bit: where none
//! is free, the bytes go in pieces through the transport.
//!
//! **When a worker dies.** Its arena of results ends with the pool's last handle of it; results that were published can
//! still be read until then. In the arena of arguments a worker owns nothing. So no death loses a segment, and since
//! both files are anonymous, nothing is left when everybody is dead.
//!
//! **Distrust.** The pool maps what a worker can write only to copy out of it: it never makes a reference into it, never
//! decodes from it, never looks twice. A segment's number is checked against the arena, a length against the arena and
//! against the memory that the arena really takes. The file's length is sealed by the pool before the worker sees it: no
//! access of the pool can fail. What the ledger says decides only which of the worker's own segments are free.
//!
//! **Trust.** A worker reads its arguments in place, as `&[u8]`. That is sound because the one other process that can
//! write there, the parent, does not while the bit is set; and other workers cannot: their descriptor is read-only.
//!
//! **Size.** At most [`SEGMENTS`](crate::os::arena::SEGMENTS) segments an arena, and [`BYTES_MAX`](store::BYTES_MAX)
//! in all of them. A segment that nobody has used for a second or two is punched out, on both sides by the pool's
//! driver ([`Store::trim`](store::Store::trim)).

#[cfg(all(test, any(executor_loom, executor_shuttle)))]
mod models;
mod received;
mod store;

pub(crate) use received::{Received, Results};
pub(crate) use store::{Lease, Store};

#[cfg(doc)]
use crate::os::arena::Arena;
#[cfg(doc)]
use store::Ledger;
