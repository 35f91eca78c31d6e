//! Large buffers that are kept for the next large message.
//!
//! ```text
//!  a request is encoded ──► sent ──► give ─┐        ┌─ take ◄── a large message begins to arrive
//!  a reply is decoded ─────────────► give ─┼► kept ─┤
//!  a request is done ──────────────► give ─┘        └─ take ◄── a large value is encoded
//! ```
//!
//! The allocator gives the memory of a large buffer back to the system as soon as it is dropped.
//! The next one then costs a page fault for every 4 KiB, which takes longer than to copy them.
//!
//! **Bounds.** A process keeps at most [`BUFFERS_MAX`] buffers, of [`BYTES_MAX`] together. What a
//! buffer has beyond [`FIRM_BYTES`] is marked as free while it is kept: the system takes it
//! without asking when it needs memory, and otherwise the next message finds it where it was. The
//! server of a manager drops the buffers when it has had nothing to do for a second, and a process
//! does so when it closes a connection to one ([`clear`]). The allocator then has its own rules: of
//! the blocks of up to 32 MiB that were freed in a thread, glibc may keep up to twice the longest.
//! A server tells it not to ([`allocator::trim`](super::allocator::trim)). The process of a user
//! does not: its memory is not ours alone.
//!
//! The lock is held for a few instructions. Nobody waits for it: in a fork, another thread may have
//! held it, and then the copy has no spare buffers.

use std::sync::{Mutex, MutexGuard, TryLockError};

use rustix::mm::{Advice, madvise};

/// A buffer below this is not kept: the allocator does not give its memory back to the system. It
/// is more than the first part of a message, which arrives in a buffer of its own.
const LARGE_BYTES: usize = 48 * 1024;
/// Maximum number of kept buffers. With fewer, a process that sends and receives large values in
/// turn has one of the two. With more, more memory is kept.
const BUFFERS_MAX: usize = 2;
/// Maximum memory of all kept buffers. With a higher value, longer messages than that are faster.
const BYTES_MAX: usize = 64 << 20;
/// Memory of each buffer that the system cannot take back by itself. With a higher value, an idle
/// process that has once sent something large keeps more. With a lower value, messages of this size
/// cost a system call.
const FIRM_BYTES: usize = 2 << 20;
/// How many times as large as a message a buffer for it may be. Otherwise a client that sends a
/// part of a short message, and stops, could hold on to memory that others need.
const WASTE_MAX: usize = 4;
/// A page, or a multiple of it.
const PAGE_BYTES: usize = 64 * 1024;

static KEPT: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());

fn kept() -> Option<MutexGuard<'static, Vec<Vec<u8>>>> {
    match KEPT.try_lock() {
        Ok(kept) => Some(kept),
        Err(TryLockError::Poisoned(kept)) => Some(kept.into_inner()),
        Err(TryLockError::WouldBlock) => None,
    }
}

/// Returns an empty buffer, if possible with room for so many bytes.
pub(crate) fn take(bytes: usize) -> Vec<u8> {
    let Some(mut kept) = kept() else { return Vec::new() };
    let fit =
        |buffer: &Vec<u8>| buffer.capacity() >= bytes && buffer.capacity() / WASTE_MAX < bytes;
    let fits = kept.iter().enumerate().filter(|(_, buffer)| fit(buffer));
    match fits.min_by_key(|(_, buffer)| buffer.capacity()) {
        Some((at, _)) => kept.swap_remove(at),
        None => Vec::new(),
    }
}

/// Returns an empty buffer for something that has so many bytes, or more. Preferably it is as large
/// as that, otherwise as large as possible.
pub(crate) fn take_to_grow(bytes: usize) -> Vec<u8> {
    let Some(mut kept) = kept() else { return Vec::new() };
    let order = |capacity: usize| match capacity >= bytes {
        true => (false, capacity),
        false => (true, usize::MAX - capacity),
    };
    match kept.iter().enumerate().min_by_key(|(_, buffer)| order(buffer.capacity())) {
        Some((at, _)) => kept.swap_remove(at),
        None => Vec::new(),
    }
}

/// Keeps a buffer that nobody needs any more, if it is large and there is room. Its contents are
/// forgotten.
#[inline]
pub(crate) fn give(buffer: Vec<u8>) {
    if buffer.capacity() >= LARGE_BYTES {
        give_large(buffer);
    }
}

#[cold]
fn give_large(mut buffer: Vec<u8>) {
    buffer.clear();
    if buffer.capacity() > BYTES_MAX || !may_be_taken_back(&mut buffer) {
        return;
    }
    let mut dropped = [const { Vec::new() }; BUFFERS_MAX];
    let Some(mut kept) = kept() else { return };
    // The oldest ones make room. They are dropped when the lock is free.
    for place in &mut dropped {
        let bytes: usize = kept.iter().map(Vec::capacity).sum();
        if kept.len() < BUFFERS_MAX && bytes + buffer.capacity() <= BYTES_MAX {
            break;
        }
        *place = kept.remove(0);
    }
    kept.push(buffer);
    drop(kept);
}

/// Lets the system take back the memory of a kept buffer, beyond the part that is always kept.
/// Returns whether that is possible.
fn may_be_taken_back(buffer: &mut Vec<u8>) -> bool {
    debug_assert!(buffer.is_empty(), "its contents may be lost");
    let memory = buffer.spare_capacity_mut();
    if memory.len() <= FIRM_BYTES {
        return true;
    }
    let start = memory.as_ptr() as usize;
    let from = (start + FIRM_BYTES).next_multiple_of(PAGE_BYTES);
    let to = (start + memory.len()) / PAGE_BYTES * PAGE_BYTES;
    if from >= to {
        return true;
    }
    // SAFETY: these are whole pages of memory that the vector owns and does not use: it is empty.
    // The system may replace them by zeros until they are written to. It is refused for memory that
    // is locked. A fork has a copy of its own.
    unsafe {
        let memory = memory.as_mut_ptr().add(from - start);
        madvise(memory.cast(), to - from, Advice::LinuxFree).is_ok()
    }
}

/// Whether buffers are kept.
pub(crate) fn any() -> bool {
    kept().is_some_and(|kept| !kept.is_empty())
}

/// Gives all kept buffers back to the allocator.
pub(crate) fn clear() {
    // They are dropped when the lock is free.
    let dropped = kept().map(|mut kept| std::mem::take(&mut *kept));
    drop(dropped);
}

#[cfg(all(test, not(any(executor_loom, executor_shuttle))))]
mod tests {
    use super::*;

    /// One test, because all share what is kept. Others that run meanwhile may take a buffer.
    #[test]
    fn a_large_buffer_comes_back_for_a_message_of_its_size() {
        let tries = (0..1000).find(|_| {
            clear();
            give(Vec::with_capacity(100_000));
            let too_small = take(100_001);
            let too_large = take(20_000);
            let mut fits = take(60_000);
            fits.extend_from_slice(b"contents");
            give(fits);
            let again = take_to_grow(200_000);
            (again.capacity(), again.len()) == (100_000, 0)
                && too_small.capacity() == 0
                && too_large.capacity() == 0
        });
        assert!(tries.is_some());
        give(Vec::with_capacity(LARGE_BYTES - 1));
        give(Vec::with_capacity(BYTES_MAX + 1));
        for _ in 0..10 {
            give(Vec::with_capacity(BYTES_MAX / 2 + 1));
            give(Vec::with_capacity(100_000));
            let kept = KEPT.lock().unwrap();
            assert!(kept.len() <= BUFFERS_MAX);
            assert!(kept.iter().map(Vec::capacity).sum::<usize>() <= BYTES_MAX);
            assert!(kept.iter().all(|buffer| buffer.capacity() >= LARGE_BYTES));
        }
        clear();
        let mut large = vec![7; FIRM_BYTES + 8 * PAGE_BYTES];
        large.clear();
        assert!(may_be_taken_back(&mut large));
        large.resize(FIRM_BYTES + 8 * PAGE_BYTES, 8);
        assert!(large.iter().all(|byte| *byte == 8), "it can be used as before");
    }
}
