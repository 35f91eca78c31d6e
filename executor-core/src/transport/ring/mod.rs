//! Frames over shared memory: two byte rings for each worker, and one doorbell for each pool.
//!
//! ```text
//!              segment (a sealed memfd, mapped by both)
//!  pool        ┌────────────────────────────────────────┐        worker
//!  RingLink ──►│ down: messages to the worker  ─────────│──► RingWorkerEnd::recv
//!  drain    ◄──│───────── up: messages from the worker  │◄── RingWorkerEnd::reply
//!              │ board: which tasks have begun          │
//!              └────────────────────────────────────────┘
//! ```
//!
//! # One direction
//!
//! Each ring has one producer and one consumer. `head` is the total number of words ever published
//! and is written only by the producer. `tail` is the total number of words ever consumed and is
//! written only by the consumer. The words between them are messages, one after the other. A
//! message is a word with its length, followed by its bytes in whole words.
//!
//! | step | side | action | if the side dies right after it |
//! |---|---|---|---|
//! | 1 | producer | writes length and bytes after `head` | the consumer does not see them |
//! | 2 | producer | stores `head` (release) | the message is published, whole |
//! | 3 | producer | fence, reads `asleep` (up: the doorbell), rings | see below |
//! | 4 | consumer | reads `head` (acquire), checks, copies the bytes | the message is still there |
//! | 5 | consumer | stores `tail` (release) | the message is consumed |
//! | 6 | consumer | fence, reads `wanting_room`, rings | see below |
//!
//! # Sleeping
//!
//! A side that finds nothing to do announces its sleep in a word, looks at the ring once more, and
//! then sleeps on that word. The other side does the opposite: it first publishes, then reads the
//! word. Both have a sequentially consistent fence between the two steps, so at least one of them
//! sees what the other wrote, and no wake-up is lost. The side that wakes the other clears the word
//! first. So a thousand messages to a consumer that is awake cost no system call. Before it sleeps,
//! a side looks again for a few microseconds, if that has paid off so far ([`Spin`]).
//!
//! Each sleeping side is also woken when the other side dies:
//!
//! - The worker sleeps until there is a message, or space. If the pool's process dies, the worker's
//!   watcher thread kills the worker.
//! - The attendant sleeps until there is a message, or space for messages in the outbox. If the
//!   worker dies, [`Link::hang_up`] sets a flag and rings. The attendant first reads what was
//!   published, then reports the end.
//! - The worker may die or be stopped after it has cleared a word and before it wakes the sleeper.
//!   So the pool's own wake-ups (`hang_up`, [`Doorbell::unpark`]) wake the sleeper whatever the
//!   word says.
//!
//! # The attendant
//!
//! At most one thread drains the replies of all workers of a pool: the *attendant*. It is a thread
//! that waits for a result, or the pool's reader if no such thread does. A word in the pool's
//! [`Doorbell`] says who it is:
//!
//! ```text
//!              attend                            sleep                        a worker rings
//!  READER ───────────────► AWAKE (drains all) ─────────────► SLEEPS (on the word) ─────► AWAKE
//!     ▲ │                      │
//!     │ └ a worker that rings  └─ leave ─► READER
//!     │   here tells the reader,
//!     └── and leaves AWAKE
//! ```
//!
//! So while the attendant is awake, no worker makes a system call, and while a thread waits for
//! results, the reader sleeps. Attending begins and ends without a system call as well: the reader
//! sleeps on a word of its own.
//!
//! To leave, the attendant takes these steps, in this order:
//!
//! 1. It writes `READER`. From now on a worker tells the reader of new messages.
//! 2. It looks at all rings. If there is a message already, it writes `AWAKE`: the rings need
//!    attention.
//! 3. It unlocks the attendance.
//! 4. It reads the word once more. If the word is `AWAKE`, it tells the reader.
//!
//! Step 4 is needed because a worker may tell the reader between steps 1 and 3. The reader then
//! finds the attendance taken, does not wait for it, and sleeps again. It has to be told once more
//! when the attendance is free.
//!
//! So some thread always looks at a published message: the attendant before it sleeps or leaves,
//! and after that the reader. If the word is `AWAKE` while nobody attends, the reader was told and
//! has not got to it. The reader clears its word before it looks, so it does not sleep if it was
//! told in the meantime.
//!
//! # Watching
//!
//! A thread that takes one result after the other leaves the attendance every few hundred
//! nanoseconds, and takes it again. If it wrote `READER` each time, workers would tell the reader
//! in between, which costs them a system call, and wakes a thread for replies that the first thread
//! is about to take. So once the reader sees that others have attended, it *watches*: it sets a
//! flag, and sleeps for a part of a millisecond, or for up to a whole one while others attend all
//! the time. While the flag is set, an attendant leaves without writing: the word stays `AWAKE`,
//! and workers make no system call. When the reader wakes up:
//!
//! - If others have attended since, it watches on.
//! - Otherwise it clears the flag, and then tries to take the attendance. If it gets it, it drains
//!   the rings, and leaves in the ordinary way. If another thread has it, the reader sleeps until
//!   it is told.
//!
//! The second case is safe, because an attendant that found the flag set looks at it once more
//! after it has unlocked the attendance. If the flag is cleared by then, it tells the reader. The
//! reader first clears the flag and then tries the lock; the attendant first unlocks and then reads
//! the flag. With a fence between the two steps on each side, either the reader gets the attendance
//! or the attendant sees the cleared flag.
//!
//! A thread that takes results which are there already counts as well, for a millisecond at most:
//! it will attend when it has used them up. So when the loop of results ends, replies that nobody
//! waits for in `result()` are delayed by about a millisecond, once. A task that polls a future
//! always leaves in the ordinary way, and makes the reader stop to watch.
//!
//! # Sending
//!
//! The pool's sender never sleeps. A message for which there is no space waits in the outbox. When
//! the worker has made space, it rings the doorbell, and the attendant sends from the outbox.
//!
//! # Distrust
//!
//! The worker may write anything anywhere in the segment at any time. The pool reads each word once
//! into its own memory and checks that copy. The worker is cut off if a position is impossible
//! (more published than the ring holds, or more consumed than was published), or if a length goes
//! beyond what was published. Positions and lengths are atomics, and the bytes of a message are
//! copied once and used from the copy, so the worst effect of a foreign write is a wrong value.
//!
//! The words that say which side sleeps decide only about wake-ups. No thread in the pool relies on
//! one for longer than a second: an attendant sleeps no longer than [`HEARING`], and while there
//! are tasks the driver wakes the reader every second. A worker that writes false values there, or
//! that is stopped between clearing a word and waking the thread that sleeps on it, delays replies
//! by at most that time: its own and, since the doorbell belongs to all, those of other workers.

pub(crate) mod doorbell;
pub(crate) mod lane;
#[cfg(all(test, any(executor_loom, executor_shuttle)))]
pub(crate) mod models;
mod pool_end;
mod spsc;
mod worker_end;

use std::{io, os::fd::OwnedFd};

#[cfg(test)]
use std::sync::Arc;

pub(crate) use pool_end::{RingLink, connect};
pub(crate) use worker_end::RingWorkerEnd;

#[cfg(test)]
use doorbell::Doorbell;
use spsc::Ring;

use super::board::Board;
use crate::os::{
    memory::{Shared, SharedLayout},
    std_or_model::{
        self,
        atomic::{Ordering, fence},
    },
};

/// Maximum number of bytes in a message. A longer frame is sent in parts. A higher value means that
/// a part waits until more space is free. A lower value means more rounds for a large payload.
const PART_BYTES_MAX: usize = if std_or_model::MODEL { (spsc::WORDS - 1) * 8 } else { 32 * 1024 };

/// The shared memory of the pool and one worker.
#[cfg_attr(all(test, any(executor_loom, executor_shuttle)), derive(Default))]
#[repr(C)]
pub(crate) struct Segment {
    pub(crate) board: Board,
    down: Ring,
    up: Ring,
}

// SAFETY: `repr(C)`, its fields contain only atomics and have no drop glue, and all-zero bytes are
// a valid value.
unsafe impl SharedLayout for Segment {}

/// Creates a segment, and the descriptor to send to the worker.
pub(crate) fn create() -> io::Result<(Shared<Segment>, OwnedFd)> {
    Shared::create("executor-worker")
}

/// Makes both ends in one process, for the conformance tests.
#[cfg(test)]
pub(crate) fn pair() -> super::conformance::Pair {
    let (segment, fd) = create().unwrap();
    let mirror: &'static Segment = Box::leak(Box::new(Shared::open(&fd).unwrap()));
    let (doorbell, fd) = Shared::create("executor-doorbell").unwrap();
    let theirs: &'static Doorbell = Box::leak(Box::new(Shared::open(&fd).unwrap()));
    let link = Arc::new(connect(segment, Arc::new(doorbell)));
    super::conformance::Pair {
        inbox: Box::new(pool_end::RingInbox(Arc::clone(&link))),
        link,
        worker: Box::new(RingWorkerEnd::new(mirror, theirs)),
    }
}

/// Returns where the interesting words of a segment are, as pairs of the first word and the number
/// of words.
#[cfg(any(all(test, not(any(executor_loom, executor_shuttle))), fuzzing))]
pub(crate) fn places() -> [(usize, usize); 12] {
    use std::mem::offset_of;
    let [down, up] = [offset_of!(Segment, down), offset_of!(Segment, up)].map(|at| at / 8);
    let of = |ring: usize| spsc::places().map(|(at, count)| (ring + at, count));
    let [a, b, c, d, e] = of(up);
    let [f, g, h, i, _] = of(down);
    // The positions are listed twice, so that they are chosen more often.
    [a, b, c, d, e, f, g, h, i, a, g, (0, 8)]
}

/// A worker's end that publishes any message.
#[cfg(any(all(test, not(any(executor_loom, executor_shuttle))), fuzzing))]
#[derive(Default)]
pub(crate) struct Forger(spsc::Producer);

#[cfg(any(all(test, not(any(executor_loom, executor_shuttle))), fuzzing))]
impl Forger {
    pub(crate) fn publish(&mut self, segment: &Segment, message: &[u8]) {
        let _ = self.0.write(&segment.up, [message]);
    }
}

/// A sequentially consistent fence. See "Sleeping" in the module's documentation.
fn full_fence() {
    fence(Ordering::SeqCst);
}
