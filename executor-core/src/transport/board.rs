//! What a worker writes down so that it can be read after its death.
//!
//! One page of shared memory for each worker. The parent offers a task in a claim word before it sends the frame; the
//! worker claims it, by compare-and-swap, before it decodes a single byte (decoding is user code); the parent takes an
//! unclaimed one back by compare-and-swap on the same word. So after a death exactly one answer exists to "who ran
//! what", and a task taken back cannot also run.
//!
//! ```text
//!              parent offers                worker claims
//!   (anything) ────────────► task:OFFERED ────────────────► task:BEGUN
//!                                 │  parent takes back
//!                                 └────────────────────────► task:TAKEN
//! ```
//!
//! A word carries the task's id, so that a slot can be offered again at once: the worker that then meets the old frame
//! finds another id, and skips the frame.

use std::{
    sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering},
    time::Instant,
};

use crate::{
    id::TaskId,
    os::{clock, memory::SharedLayout},
};

/// Tasks that can be with one worker at a time: the one that runs and those sent ahead.
pub(crate) const SLOTS: usize = 64;
const TEXT_BYTES: usize = 3 * 1024;

const OFFERED: u64 = 1;
const BEGUN: u64 = 2;
const TAKEN: u64 = 3;

/// See the module's picture.
#[repr(C)]
pub(crate) struct Board {
    claims: [AtomicU64; SLOTS],
    /// When the last task with a time limit began, in nanoseconds of the machine's monotonic clock.
    began_nanos: AtomicU64,
    /// The task whose panic is noted below; 0 for none.
    panic_task: AtomicU64,
    panic_location_len: AtomicU32,
    panic_message_len: AtomicU32,
    pub(crate) stack_overflow: AtomicU8,
    panic_text: [AtomicU8; TEXT_BYTES],
}

const _: () = assert!(size_of::<Board>() <= 4096);

// SAFETY: `repr(C)`, atomics only, no drop, zero is a value.
unsafe impl SharedLayout for Board {}

fn word(task: TaskId, state: u64) -> u64 {
    task.as_u64() << 2 | state
}

/// Stands for the initializer where a task's id is noted: it has none of its own.
pub(crate) const INITIALIZER: TaskId = TaskId::from_raw(u64::MAX);

/// Whether, and when, a worker has begun a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Begun {
    No,
    /// Begun; the moment is known only of a task with a time limit.
    Yes(Option<Instant>),
}

impl Board {
    /// Parent: makes a task claimable, before its frame is sent.
    pub(crate) fn offer(&self, slot: u16, task: TaskId) {
        self.claims[usize::from(slot) % SLOTS].store(word(task, OFFERED), Ordering::Release);
    }

    /// Worker: takes a task, or learns that it was taken back.
    pub(crate) fn claim(&self, slot: u16, task: TaskId, timed: bool) -> bool {
        if timed {
            // Before the claim: whoever sees BEGUN must not see the time of an older task.
            self.began_nanos.store(clock::now_nanos(), Ordering::Relaxed);
        }
        self.claims[usize::from(slot) % SLOTS]
            .compare_exchange(word(task, OFFERED), word(task, BEGUN), Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }

    /// Parent: takes back a task that has not begun.
    pub(crate) fn take_back(&self, slot: u16, task: TaskId) -> bool {
        self.claims[usize::from(slot) % SLOTS]
            .compare_exchange(word(task, OFFERED), word(task, TAKEN), Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }

    /// Parent: has the worker begun this task?
    pub(crate) fn begun(&self, slot: u16, task: TaskId) -> Begun {
        if self.claims[usize::from(slot) % SLOTS].load(Ordering::Acquire) != word(task, BEGUN) {
            return Begun::No;
        }
        let nanos = self.began_nanos.load(Ordering::Relaxed);
        // A broken worker may write anything here; a moment in the future counts as unknown.
        Begun::Yes(if nanos == 0 { None } else { clock::instant_of(nanos) })
    }

    /// Worker: notes a panic before anything else happens, without allocating.
    pub(crate) fn note_panic(&self, task: TaskId, location: &str, message: &str) {
        self.panic_task.store(0, Ordering::Release);
        let location = &location.as_bytes()[..location.len().min(TEXT_BYTES / 3)];
        let message = &message.as_bytes()[..message.len().min(TEXT_BYTES - location.len())];
        for (cell, byte) in self.panic_text.iter().zip(location.iter().chain(message)) {
            cell.store(*byte, Ordering::Relaxed);
        }
        self.panic_location_len.store(location.len() as u32, Ordering::Relaxed);
        self.panic_message_len.store(message.len() as u32, Ordering::Relaxed);
        self.panic_task.store(task.as_u64(), Ordering::Release);
    }

    /// Whether a panic of this task is noted.
    pub(crate) fn has_panic(&self, task: TaskId) -> bool {
        self.panic_task.load(Ordering::Acquire) == task.as_u64()
    }

    /// Parent: the noted panic of this task, as (location, message).
    pub(crate) fn panic_of(&self, task: TaskId) -> Option<(String, String)> {
        if !self.has_panic(task) {
            return None;
        }
        // Lengths come from the other process: bounded here, whatever they say.
        let location = (self.panic_location_len.load(Ordering::Relaxed) as usize).min(TEXT_BYTES);
        let message = (self.panic_message_len.load(Ordering::Relaxed) as usize).min(TEXT_BYTES - location);
        let text: Vec<u8> =
            self.panic_text[..location + message].iter().map(|cell| cell.load(Ordering::Relaxed)).collect();
        let (location, message) = text.split_at(location);
        Some((String::from_utf8_lossy(location).into_owned(), String::from_utf8_lossy(message).into_owned()))
    }
}

/// A fresh board and the descriptor to send to the worker.
#[cfg(test)]
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
        board.offer(3, A);
        assert_eq!(board.begun(3, A), Begun::No);
        assert!(board.take_back(3, A));
        assert!(!board.claim(3, A, false));
        board.offer(3, B);
        assert!(!board.claim(3, A, false), "an old frame must not claim the slot's new task");
        assert!(board.claim(3, B, true));
        assert!(!board.take_back(3, B));
        assert!(matches!(board.begun(3, B), Begun::Yes(Some(_))));
    }

    #[test]
    fn claim_and_take_back_race_to_one_winner() {
        let (board, _fd) = create().unwrap();
        for round in 1..2_000 {
            let task = TaskId::from_raw(round);
            board.offer(0, task);
            let (claimed, taken) = std::thread::scope(|scope| {
                let claim = scope.spawn(|| board.claim(0, task, false));
                (board.take_back(0, task), claim.join().unwrap())
            });
            assert!(claimed ^ taken, "round {round}");
        }
    }

    #[test]
    fn panic_notes_are_bounded_and_belong_to_one_task() {
        let (board, _fd) = create().unwrap();
        board.note_panic(A, "src/x.rs:1:2", "boom");
        assert_eq!(board.panic_of(A), Some(("src/x.rs:1:2".into(), "boom".into())));
        assert_eq!(board.panic_of(B), None);
        board.note_panic(B, &"l".repeat(9_000), &"m".repeat(9_000));
        let (location, message) = board.panic_of(B).unwrap();
        assert_eq!(location.len() + message.len(), TEXT_BYTES);
        // A worker gone wild.
        board.panic_message_len.store(u32::MAX, Ordering::Relaxed);
        board.panic_location_len.store(u32::MAX, Ordering::Relaxed);
        assert!(board.panic_of(B).is_some());
    }
}
