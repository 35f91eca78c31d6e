//! What a worker writes down so that it can be read after its death.
//!
//! One page of shared memory for each worker. The parent offers a task in a claim word before it sends the frame; the
//! worker claims it, by compare-and-swap, before it decodes a single byte (decoding is user code); the parent takes an
//! unclaimed one back by compare-and-swap on the same word. So after a death exactly one answer exists to "who ran
//! what", and a task taken back cannot also run.
//!
//! ```text
//!              parent offers                worker claims             worker claims the next item of a chunk
//!   (anything) ────────────► seq:OFFERED ────────────────► seq:BEGUN ─────────────────────────────────────┐
//!                                 │  parent takes back        │  ▲ └───────────────────────────────────────┘
//!                                 ▼                           ▼ parent takes back the rest
//!                             seq:TAKEN                   seq:LAST
//! ```
//!
//! A word carries the number of the sending, and the item of the chunk that was begun last. Every sending has a number of
//! its own, so that a slot can be offered again at once: the worker that then meets the old frame finds another number,
//! and skips the frame.

use std::time::Instant;

use crate::{
    id::TaskId,
    os::{
        clock,
        memory::SharedLayout,
        sync::{
            self,
            atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering},
        },
    },
};

/// Sendings that can be with one worker at a time: the one that runs and those sent ahead. More: more memory for each
/// worker. Less: a worker that ends a task every 100 ns runs dry while its replies travel (about 50 µs here).
pub(crate) const SLOTS: usize = if sync::MODEL { 2 } else { 1024 };
const TEXT_BYTES: usize = if sync::MODEL { 3 } else { 3 * 1024 };

const LAST: u64 = 0;
const OFFERED: u64 = 1;
const BEGUN: u64 = 2;
const TAKEN: u64 = 3;
/// How often the parent tries to change a word that keeps changing. An honest worker does so once in a call.
const TURNS_MAX: u32 = 10_000;
/// Items of one chunk; what a claim word has room for.
pub(crate) const ITEMS_MAX: u32 = 1 << 30;

/// See the module's picture.
#[cfg_attr(all(test, any(executor_loom, executor_shuttle)), derive(Default))]
#[repr(C)]
pub(crate) struct Board {
    claims: [AtomicU64; SLOTS],
    /// When the last task with a time limit began, in nanoseconds of the machine's monotonic clock.
    began_nanos: AtomicU64,
    /// The task whose panic is noted below, [`ELSEWHERE`] for one of another thread; 0 for none.
    panic_task: AtomicU64,
    panic_location_len: AtomicU32,
    panic_message_len: AtomicU32,
    /// After that panic the process cannot go on.
    panic_fatal: AtomicU8,
    /// The process has come to the entry, and knows what it is for.
    reached: AtomicU8,
    pub(crate) stack_overflow: AtomicU8,
    panic_text: [AtomicU8; TEXT_BYTES],
}

const _: () = assert!(size_of::<Board>() <= 3 * 4096);

// SAFETY: `repr(C)`, atomics only, no drop, zero is a value.
unsafe impl SharedLayout for Board {}

fn word(seq: u32, item: u32, state: u64) -> u64 {
    u64::from(seq) << 32 | u64::from(item) << 2 | state
}

/// (number of the sending, item, state).
fn parts(word: u64) -> (u32, u32, u64) {
    ((word >> 32) as u32, word as u32 >> 2, word & 3)
}

/// Stands for the initializer where a task's id is noted: it has none of its own.
pub(crate) const INITIALIZER: TaskId = TaskId::from_raw(u64::MAX);

/// Stands for a panic of a thread that runs no task.
pub(crate) const ELSEWHERE: TaskId = TaskId::from_raw(u64::MAX - 1);

/// A panic that a worker has noted.
#[derive(Debug, PartialEq)]
pub(crate) struct Panic {
    pub(crate) location: String,
    pub(crate) message: String,
    /// The process ends by it: it was not, and could not be, caught.
    pub(crate) fatal: bool,
    /// Of another thread than the task's.
    pub(crate) elsewhere: bool,
}

/// Whether, and when, a worker has begun what was sent to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Begun {
    No,
    /// Begun up to this item of the chunk; the moment is known only of a task with a time limit.
    Yes(u32, Option<Instant>),
    /// What the worker wrote is of another sending, or of none: it may have begun any of it.
    Unknown,
}

impl Board {
    fn claim_word(&self, seq: u32) -> &AtomicU64 {
        &self.claims[seq as usize % SLOTS]
    }

    /// Parent: makes a chunk claimable from this item on, before its frame is sent.
    pub(crate) fn offer(&self, seq: u32, first: u32) {
        self.claim_word(seq).store(word(seq, first, OFFERED), Ordering::Release);
    }

    /// Worker: takes the first item that was offered, or learns that it was taken back.
    pub(crate) fn claim(&self, seq: u32, first: u32, timed: bool) -> bool {
        if timed {
            // Before the claim: whoever sees BEGUN must not see the time of an older task.
            self.began_nanos.store(clock::now_nanos(), Ordering::Relaxed);
        }
        self.turn(seq, word(seq, first, OFFERED), word(seq, first, BEGUN))
    }

    /// Worker: takes the next item of the chunk that it has begun, or learns that the rest was taken back.
    pub(crate) fn claim_next(&self, seq: u32, item: u32) -> bool {
        self.turn(seq, word(seq, item - 1, BEGUN), word(seq, item, BEGUN))
    }

    /// Parent: takes back what has not begun at all.
    pub(crate) fn take_back(&self, seq: u32, first: u32) -> bool {
        self.turn(seq, word(seq, first, OFFERED), word(seq, first, TAKEN))
    }

    /// Parent: takes back what is behind the item that the worker has begun; that item, or `None` if the chunk has not
    /// begun.
    pub(crate) fn take_rest(&self, seq: u32) -> Option<u32> {
        // A worker may begin items as fast as it likes, but the pool's lock is held here.
        for _ in 0..TURNS_MAX {
            let seen = self.claim_word(seq).load(Ordering::Acquire);
            match parts(seen) {
                (of, item, LAST) if of == seq => return Some(item),
                (of, item, BEGUN) if of == seq => {
                    if self.turn(seq, seen, word(seq, item, LAST)) {
                        return Some(item);
                    }
                }
                _ => return None,
            }
        }
        None
    }

    fn turn(&self, seq: u32, from: u64, to: u64) -> bool {
        self.claim_word(seq).compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Parent: has the worker begun this, which was offered and not offered over?
    pub(crate) fn begun(&self, seq: u32) -> Begun {
        match parts(self.claim_word(seq).load(Ordering::Acquire)) {
            (of, _, OFFERED | TAKEN) if of == seq => Begun::No,
            (of, item, BEGUN | LAST) if of == seq => {
                let nanos = self.began_nanos.load(Ordering::Relaxed);
                // A broken worker may write anything here; a moment in the future counts as unknown.
                let at = if nanos == 0 { None } else { clock::instant_of(nanos) };
                Begun::Yes(item, at)
            }
            _ => Begun::Unknown,
        }
    }

    /// Worker: notes a panic before anything else happens, without allocating. One at a time.
    pub(crate) fn note_panic(&self, task: TaskId, location: &str, message: &str, fatal: bool) {
        self.panic_task.store(0, Ordering::Release);
        let location = &location.as_bytes()[..location.len().min(TEXT_BYTES / 3)];
        let message = &message.as_bytes()[..message.len().min(TEXT_BYTES - location.len())];
        for (cell, byte) in self.panic_text.iter().zip(location.iter().chain(message)) {
            cell.store(*byte, Ordering::Relaxed);
        }
        self.panic_location_len.store(location.len() as u32, Ordering::Relaxed);
        self.panic_message_len.store(message.len() as u32, Ordering::Relaxed);
        self.panic_fatal.store(fatal.into(), Ordering::Relaxed);
        self.panic_task.store(task.as_u64(), Ordering::Release);
    }

    /// A process's body: it has come to the entry.
    pub(crate) fn note_reached(&self) {
        self.reached.store(1, Ordering::Release);
    }

    /// Its parent: whether it has.
    pub(crate) fn is_reached(&self) -> bool {
        self.reached.load(Ordering::Acquire) != 0
    }

    /// Worker: the process ends by the panic that is noted.
    pub(crate) fn note_fatal(&self) {
        self.panic_fatal.store(1, Ordering::Relaxed);
    }

    /// Worker: what was noted is of a task that has ended.
    pub(crate) fn forget_panic(&self) {
        self.panic_task.store(0, Ordering::Release);
    }

    /// Whether a panic of this task is noted.
    pub(crate) fn has_panic(&self, task: TaskId) -> bool {
        self.panic_task.load(Ordering::Acquire) == task.as_u64()
    }

    /// Parent: the last panic while this task ran.
    pub(crate) fn panic_of(&self, task: TaskId) -> Option<Panic> {
        let elsewhere = self.has_panic(ELSEWHERE);
        if !elsewhere && !self.has_panic(task) {
            return None;
        }
        // Lengths come from the other process: bounded here, whatever they say.
        let location = (self.panic_location_len.load(Ordering::Relaxed) as usize).min(TEXT_BYTES);
        let message = (self.panic_message_len.load(Ordering::Relaxed) as usize).min(TEXT_BYTES - location);
        let text: Vec<u8> =
            self.panic_text[..location + message].iter().map(|cell| cell.load(Ordering::Relaxed)).collect();
        let (location, message) = text.split_at(location);
        Some(Panic {
            location: String::from_utf8_lossy(location).into_owned(),
            message: String::from_utf8_lossy(message).into_owned(),
            fatal: self.panic_fatal.load(Ordering::Relaxed) != 0,
            elsewhere,
        })
    }
}

/// A fresh board and the descriptor to send to the child.
pub(crate) fn create() -> std::io::Result<(crate::os::memory::Shared<Board>, std::os::fd::OwnedFd)> {
    crate::os::memory::Shared::create("executor-board")
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: TaskId = TaskId::from_raw(5);
    const B: TaskId = TaskId::from_raw(6);

    #[test]
    fn a_task_is_claimed_or_taken_back_never_both() {
        let (board, _fd) = create().unwrap();
        let again = 3 + SLOTS as u32;
        board.offer(3, 0);
        assert_eq!(board.begun(3), Begun::No);
        assert!(board.take_back(3, 0));
        assert!(!board.claim(3, 0, false));
        board.offer(again, 0);
        assert!(!board.claim(3, 0, false), "an old frame must not claim what the slot offers now");
        assert!(board.claim(again, 0, true));
        assert!(!board.take_back(again, 0));
        assert!(matches!(board.begun(again), Begun::Yes(0, Some(_))));
    }

    #[test]
    fn what_a_garbled_word_says_may_have_begun() {
        let (board, _fd) = create().unwrap();
        board.offer(3, 0);
        for garbage in [0, 1, u64::MAX, word(4, 0, OFFERED)] {
            board.claim_word(3).store(garbage, Ordering::Relaxed);
            assert_eq!(board.begun(3), Begun::Unknown, "{garbage:x}");
            assert!(!board.take_back(3, 0) && board.take_rest(3).is_none());
        }
    }

    #[test]
    fn the_rest_of_a_chunk_is_begun_or_taken_back_never_both() {
        let (board, _fd) = create().unwrap();
        board.offer(9, 4);
        assert_eq!(board.take_rest(9), None, "nothing has begun");
        assert!(board.claim(9, 4, false) && board.claim_next(9, 5));
        assert_eq!(board.take_rest(9), Some(5));
        assert_eq!(board.take_rest(9), Some(5));
        assert!(!board.claim_next(9, 6));
        assert_eq!(board.begun(9), Begun::Yes(5, None));
    }

    #[test]
    fn claim_and_take_back_race_to_one_winner() {
        let (board, _fd) = create().unwrap();
        for seq in 1..2_000 {
            board.offer(seq, 0);
            let (taken, claimed) = std::thread::scope(|scope| {
                let claim = scope.spawn(|| board.claim(seq, 0, false));
                (board.take_back(seq, 0), claim.join().unwrap())
            });
            assert!(claimed ^ taken, "sending {seq}");
            let (rest, next) = std::thread::scope(|scope| {
                let next = scope.spawn(|| board.claim_next(seq, 1));
                (board.take_rest(seq), next.join().unwrap())
            });
            assert_eq!(rest, claimed.then_some(u32::from(next)), "sending {seq}");
        }
    }

    #[test]
    fn panic_notes_are_bounded_and_belong_to_one_task() {
        let (board, _fd) = create().unwrap();
        board.note_panic(A, "src/x.rs:1:2", "boom", false);
        let boom =
            Panic { location: "src/x.rs:1:2".into(), message: "boom".into(), fatal: false, elsewhere: false };
        assert_eq!(board.panic_of(A), Some(boom));
        assert_eq!(board.panic_of(B), None);
        board.note_panic(B, &"l".repeat(9_000), &"m".repeat(9_000), false);
        let Panic { location, message, .. } = board.panic_of(B).unwrap();
        assert_eq!(location.len() + message.len(), TEXT_BYTES);
        board.forget_panic();
        assert_eq!(board.panic_of(B), None);
        board.note_panic(B, &"l".repeat(9_000), &"m".repeat(9_000), false);
        // A worker gone wild.
        board.panic_message_len.store(u32::MAX, Ordering::Relaxed);
        board.panic_location_len.store(u32::MAX, Ordering::Relaxed);
        assert!(board.panic_of(B).is_some());
    }
}
