//! Segments: memory that the pool and a worker share. Large arguments and results lie there.
//!
//! ```text
//!              pool                                                 worker
//!  submit ──► Buffer ──► Lease of a segment ══ arguments (memfd) ══► Views: decodes in place,
//!               the frame says: segment 3, 65,540 bytes              read-only
//!
//!  result() ◄── Received: one copy-out ◄══ results (memfd, one ◄══ Buffer ──► Lease of a segment
//!               then the segment is free   for each worker)
//!               again
//! ```
//!
//! **Ownership.** An [`Arena`] has 64 segments, and a [`Ledger`] has one bit for each. The side
//! that sets the bit owns the segment until the bit is cleared. For arguments, the pool sets the
//! bit when it encodes, and clears it when the task is resolved. It does not clear it earlier,
//! because an unstarted task may be sent to another worker. For results, the worker sets the bit
//! when it encodes, and the pool clears it when the last copy of the future's payload is dropped.
//! Neither side waits for a bit: if no segment is free, the bytes are sent in pieces through the
//! transport.
//!
//! **Death of a worker.** Its arena of results is freed when the pool drops its last handle of the
//! arena. Until then, published results can still be read. In the arena of arguments, a worker owns
//! nothing. So no segment is lost when a worker dies. Both files are anonymous, so nothing is left
//! when all processes are dead.
//!
//! **Distrust.** The pool maps memory that a worker can write only to copy from it. It never makes
//! a reference into that memory and never decodes from it. It only relies on the copied bytes,
//! never on finding the same bytes at a second look. It checks a segment's number against the
//! arena, and a length against the arena and against the memory that the arena really uses. The
//! pool seals the file's length before the worker gets the file, so no access of the pool can fail.
//! The contents of the ledger only decide which of the worker's own segments are free.
//!
//! **Trust.** A worker reads its arguments in place, as `&[u8]`. This is sound for two reasons. The
//! parent, which can write there, does not write while the bit is set. Other workers cannot write,
//! because their descriptor is read-only.
//!
//! **Size.** An arena has at most [`SEGMENTS`](crate::os::arena::SEGMENTS) segments, with
//! [`BYTES_MAX`](store::BYTES_MAX) in total. A segment that was not used for a second or two is
//! punched out. The pool's driver does this for both sides ([`Store::trim`](store::Store::trim)).

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
