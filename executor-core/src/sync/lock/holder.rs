//! Identifies the holder of a re-entrant lock, in 40 bits: a thread, or a task of tokio. Tasks
//! share threads and move between them.

use std::hash::{Hash, Hasher};

use crate::os::{liveness::OwnerId, local};

/// The holder is a task of tokio. Its number has 38 bits, so two tasks are confused only if a
/// guard is kept while that many others are spawned.
const TASK: u64 = 1 << 39;
/// The holder is a task of another runtime, of which only the thread is known.
const UNKNOWN_TASK: u64 = 1 << 38;
/// The holder is a thread inside a call of its own, during which nobody else can run on that
/// thread.
const IN_CALL: u64 = TASK | UNKNOWN_TASK;

/// A hasher that returns the number of a task, because tokio shows that number to hashers.
struct Number(u64);

impl Hasher for Number {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.wrapping_mul(257).wrapping_add(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = number;
    }
}

/// Returns the task or thread that runs this.
pub(crate) fn this() -> u64 {
    match tokio::task::try_id() {
        Some(id) => {
            let mut number = Number(0);
            id.hash(&mut number);
            TASK | number.0 & (UNKNOWN_TASK - 1)
        }
        None => u64::from(local::this_thread()),
    }
}

/// Like [`this`], in an async form, which may run on any runtime.
pub(super) fn this_async() -> u64 {
    let this = this();
    // Inside tokio but without a task number, it is the one future that blocks its thread.
    if this & TASK != 0 || tokio::runtime::Handle::try_current().is_ok() {
        this
    } else {
        this | UNKNOWN_TASK
    }
}

/// Mixes the process's number into a holder, so that the holders of any two processes differ.
///
/// A caller may read the owner of the levels, and then levels that another process has written
/// in the meantime: it must not mistake them for its own.
pub(super) fn salted(holder: u64, me: OwnerId) -> u64 {
    holder ^ u64::from(me.bits()) << 8
}

/// Returns this thread as the holder for the duration of a call that runs user code.
pub(super) fn this_call() -> u64 {
    IN_CALL | u64::from(local::this_thread())
}

/// What is known about whether the caller is a certain holder.
pub(super) enum Is {
    Me,
    Another,
    /// The holder is a task that shares the caller's thread. It may be the same task.
    Unknown,
}

/// Whether the caller is that holder.
pub(super) fn is_this(holder: u64) -> Is {
    let thread = u64::from(local::this_thread());
    match holder & IN_CALL {
        IN_CALL if holder & !IN_CALL == thread => Is::Me,
        UNKNOWN_TASK if holder & !IN_CALL == thread => Is::Unknown,
        TASK | 0 if holder == this() => Is::Me,
        _ => Is::Another,
    }
}
