//! The board: what a worker records in shared memory, so that the parent can read it after the
//! worker's death.
//!
//! Each worker has a few pages of shared memory. Before the parent sends a task frame, it offers
//! the frame in a claim word. The worker claims it by compare-and-swap before it decodes a single
//! byte, as decoding runs user code. The parent takes an unclaimed frame back by compare-and-swap
//! on the same word. So after a worker's death it is certain which tasks it had begun, and a task
//! that was taken back cannot run as well.
//!
//! ```text
//!              parent offers                worker claims             worker claims next item
//!   (anything) ────────────► seq:OFFERED ────────────────► seq:BEGUN ────────────────────────────┐
//!                                 │  parent takes back        │  ▲ └─────────────────────────────┘
//!                                 ▼                           ▼ parent takes back the rest
//!                             seq:TAKEN                   seq:LAST
//! ```
//!
//! A frame may carry a chunk: several items, which are begun one after the other. A claim word
//! holds the sequence number of the frame and the item of the chunk that was begun last. Each frame
//! sent has a sequence number of its own, so a slot can be offered again at once: a worker that
//! meets the old frame later finds another number in the slot and skips the frame.

use std::time::{Duration, Instant};

use crate::{
    id::TaskId,
    os::{
        clock, futex,
        memory::SharedLayout,
        std_or_model::{
            self,
            atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering},
        },
    },
};

/// Maximum number of task frames that one worker may have at a time: the one that runs and those
/// sent ahead.
///
/// A higher value means more memory for each worker. A lower value means that a worker whose tasks
/// take 100 ns has nothing left to run while its replies travel (about 50 µs on the machine
/// measured).
pub(crate) const SLOTS: usize = if std_or_model::MODEL { 2 } else { 1024 };
/// Space for the location and the message of a panic, in bytes.
const TEXT_BYTES: usize = if std_or_model::MODEL { 3 } else { 3 * 1024 };

const LAST: u64 = 0;
const OFFERED: u64 = 1;
const BEGUN: u64 = 2;
const TAKEN: u64 = 3;
/// How often the parent tries to change a word that keeps changing. A correct worker changes it at
/// most once during one attempt.
const TURNS_MAX: u32 = 10_000;
/// Maximum number of items in a chunk, limited by the bits of a claim word.
pub(crate) const ITEMS_MAX: u32 = 1 << 30;

/// The shared memory of one worker. See the module's documentation.
#[cfg_attr(all(test, any(executor_loom, executor_shuttle)), derive(Default))]
#[repr(C)]
pub(crate) struct Board {
    claims: [AtomicU64; SLOTS],
    /// When the last task with a time limit began, in nanoseconds of the machine's monotonic clock.
    began_nanos: AtomicU64,
    /// The task whose panic is recorded below. [`ELSEWHERE`] for a panic of another thread, 0 for
    /// none.
    panic_task: AtomicU64,
    panic_location_len: AtomicU32,
    panic_message_len: AtomicU32,
    /// Whether the process cannot continue after that panic.
    panic_fatal: AtomicU8,
    /// The sending whose task is asked to stop, or 0. Waiters in the worker sleep on this word.
    asked: AtomicU32,
    /// Whether the process has reached its entry point and knows what it is to run.
    reached: AtomicU8,
    pub(crate) stack_overflow: AtomicU8,
    /// The private memory of a worker that kills itself because it has more than it may have, in
    /// bytes. Otherwise 0.
    pub(crate) memory_peak: AtomicU64,
    /// The private memory of a worker that aborts because it was refused memory, in bytes.
    /// Otherwise 0.
    pub(crate) memory_refused: AtomicU64,
    /// How much private memory a worker has more than when it was ready, in bytes. Written before a
    /// reply that says so.
    pub(crate) memory_grown: AtomicU64,
    panic_text: [AtomicU8; TEXT_BYTES],
}

const _: () = assert!(size_of::<Board>() <= 3 * 4096);

// SAFETY: `repr(C)`, contains only atomics, has no drop glue, and all-zero bytes are a valid value.
unsafe impl SharedLayout for Board {}

/// Packs a claim word.
fn word(seq: u32, item: u32, state: u64) -> u64 {
    u64::from(seq) << 32 | u64::from(item) << 2 | state
}

/// Unpacks a claim word into the sequence number, the item, and the state.
fn parts(word: u64) -> (u32, u32, u64) {
    ((word >> 32) as u32, word as u32 >> 2, word & 3)
}

/// Used as a task id for the initializer and the finalizer, which have none of their own.
pub(crate) const INITIALIZER: TaskId = TaskId::from_raw(u64::MAX);

/// Used as a task id for a panic in a thread that runs no task.
pub(crate) const ELSEWHERE: TaskId = TaskId::from_raw(u64::MAX - 1);

/// A panic that a worker has recorded.
#[derive(Debug, PartialEq)]
pub(crate) struct Panic {
    pub(crate) location: String,
    pub(crate) message: String,
    /// Whether the process ends because of the panic: it was not caught and could not be.
    pub(crate) fatal: bool,
    /// Whether another thread than the task's panicked.
    pub(crate) elsewhere: bool,
}

/// Whether a worker has begun a frame, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Begun {
    No,
    /// It has begun the items up to this one. The time is known only for a task with a time limit.
    Yes(u32, Option<Instant>),
    /// The claim word belongs to no frame or to another one, so the worker may have begun any item.
    Unknown,
}

impl Board {
    /// Returns the claim word of a frame's slot.
    fn claim_word(&self, seq: u32) -> &AtomicU64 {
        &self.claims[seq as usize % SLOTS]
    }

    /// Parent: offers a chunk from item `first` on. Called before its frame is sent.
    pub(crate) fn offer(&self, seq: u32, first: u32) {
        self.claim_word(seq).store(word(seq, first, OFFERED), Ordering::Release);
    }

    /// Worker: claims the first item. Returns `false` if the frame was taken back.
    ///
    /// `timed` says whether the task has a time limit.
    pub(crate) fn claim(&self, seq: u32, first: u32, timed: bool) -> bool {
        if timed {
            // Before the claim: a parent that sees BEGUN must not see the start time of an older
            // task.
            self.began_nanos.store(clock::now_nanos(), Ordering::Relaxed);
        }
        self.turn(seq, word(seq, first, OFFERED), word(seq, first, BEGUN))
    }

    /// Worker: claims the next item of the chunk it has begun. Returns `false` if the rest was
    /// taken back.
    pub(crate) fn claim_next(&self, seq: u32, item: u32) -> bool {
        self.turn(seq, word(seq, item - 1, BEGUN), word(seq, item, BEGUN))
    }

    /// Parent: takes back a frame that has not begun. Returns whether it succeeded.
    pub(crate) fn take_back(&self, seq: u32, first: u32) -> bool {
        self.turn(seq, word(seq, first, OFFERED), word(seq, first, TAKEN))
    }

    /// Parent: takes back all items after the one that the worker has begun last. Returns that
    /// item, or `None` if the chunk has not begun.
    pub(crate) fn take_rest(&self, seq: u32) -> Option<u32> {
        // The worker may begin items as fast as it likes, and the caller holds the pool's lock, so
        // the number of attempts is limited.
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

    /// Changes the claim word from `from` to `to`, if it still is `from`.
    fn turn(&self, seq: u32, from: u64, to: u64) -> bool {
        self.claim_word(seq).compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Parent: whether the worker has begun this frame. Its slot must not have been offered again.
    pub(crate) fn begun(&self, seq: u32) -> Begun {
        match parts(self.claim_word(seq).load(Ordering::Acquire)) {
            (of, _, OFFERED | TAKEN) if of == seq => Begun::No,
            (of, item, BEGUN | LAST) if of == seq => {
                let nanos = self.began_nanos.load(Ordering::Relaxed);
                // A broken worker may write anything here. A time in the future counts as unknown.
                let at = if nanos == 0 { None } else { clock::instant_of(nanos) };
                Begun::Yes(item, at)
            }
            _ => Begun::Unknown,
        }
    }

    /// Parent: asks the task of a sending that has begun to stop by itself. The sending is not 0.
    pub(crate) fn ask(&self, seq: u32) {
        // A swap, as for every word on which somebody sleeps.
        self.asked.swap(seq, Ordering::AcqRel);
        futex::wake_all(&self.asked);
    }

    /// Worker: returns the sending whose task is asked to stop, or 0.
    #[inline]
    pub(crate) fn asked(&self) -> u32 {
        self.asked.load(Ordering::Acquire)
    }

    /// Worker: sleeps while the sending that is asked to stop is `seen`, for at most `timeout`. It
    /// may also return for no reason.
    pub(crate) fn wait_for_ask(&self, seen: u32, timeout: Option<Duration>) {
        futex::wait(&self.asked, seen, timeout);
    }

    /// Worker: forgets what was asked of earlier tasks. Called before the next one is claimed,
    /// since it may be asked from then on. A word that stays could be taken for that of a later
    /// sending with the same number, when the numbers have wrapped.
    ///
    /// The parent may ask an earlier task after this, because the reply has not reached it. That
    /// word stays until the next call of this function, and the task that runs meanwhile has
    /// another number.
    #[inline]
    pub(crate) fn forget_ask(&self) {
        if self.asked.load(Ordering::Relaxed) != 0 {
            self.asked.swap(0, Ordering::AcqRel);
        }
    }

    /// Worker: records a panic, without allocating, before anything else happens. Calls must not
    /// overlap.
    pub(crate) fn note_panic(&self, task: TaskId, location: &str, message: &str, fatal: bool) {
        // Invalidate the old record while the new one is being written. A parent that reads after
        // the worker's death then finds a complete record or none.
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

    /// In a spawned process: records that it has reached its entry point.
    pub(crate) fn note_reached(&self) {
        self.reached.store(1, Ordering::Release);
    }

    /// In its parent: whether the process has reached its entry point.
    pub(crate) fn is_reached(&self) -> bool {
        self.reached.load(Ordering::Acquire) != 0
    }

    /// Worker: records that the process ends because of the recorded panic.
    pub(crate) fn note_fatal(&self) {
        self.panic_fatal.store(1, Ordering::Relaxed);
    }

    /// Worker: forgets the recorded panic, since its task has ended.
    pub(crate) fn forget_panic(&self) {
        self.panic_task.store(0, Ordering::Release);
    }

    /// Whether a panic of this task is recorded.
    pub(crate) fn has_panic(&self, task: TaskId) -> bool {
        self.panic_task.load(Ordering::Acquire) == task.as_u64()
    }

    /// Parent: returns the last panic recorded while this task ran.
    pub(crate) fn panic_of(&self, task: TaskId) -> Option<Panic> {
        let elsewhere = self.has_panic(ELSEWHERE);
        if !elsewhere && !self.has_panic(task) {
            return None;
        }
        // The lengths come from another process, so limit them whatever they are.
        let location = (self.panic_location_len.load(Ordering::Relaxed) as usize).min(TEXT_BYTES);
        let message =
            (self.panic_message_len.load(Ordering::Relaxed) as usize).min(TEXT_BYTES - location);
        let text: Vec<u8> = self.panic_text[..location + message]
            .iter()
            .map(|cell| cell.load(Ordering::Relaxed))
            .collect();
        let (location, message) = text.split_at(location);
        Some(Panic {
            location: String::from_utf8_lossy(location).into_owned(),
            message: String::from_utf8_lossy(message).into_owned(),
            fatal: self.panic_fatal.load(Ordering::Relaxed) != 0,
            elsewhere,
        })
    }
}

/// Creates a board, and the descriptor to send to the child.
pub(crate) fn create() -> std::io::Result<(crate::os::memory::Shared<Board>, std::os::fd::OwnedFd)>
{
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
        let boom = Panic {
            location: "src/x.rs:1:2".into(),
            message: "boom".into(),
            fatal: false,
            elsewhere: false,
        };
        assert_eq!(board.panic_of(A), Some(boom));
        assert_eq!(board.panic_of(B), None);
        board.note_panic(B, &"l".repeat(9_000), &"m".repeat(9_000), false);
        let Panic { location, message, .. } = board.panic_of(B).unwrap();
        assert_eq!(location.len() + message.len(), TEXT_BYTES);
        board.forget_panic();
        assert_eq!(board.panic_of(B), None);
        board.note_panic(B, &"l".repeat(9_000), &"m".repeat(9_000), false);
        // A broken worker may write any length.
        board.panic_message_len.store(u32::MAX, Ordering::Relaxed);
        board.panic_location_len.store(u32::MAX, Ordering::Relaxed);
        assert!(board.panic_of(B).is_some());
    }
}
