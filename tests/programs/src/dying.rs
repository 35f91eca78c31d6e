//! What the programs have in common whose processes die, or stand still, at every step of a protocol.

use std::time::Duration;

/// Rounds when none are asked for.
pub(crate) const ROUNDS: u64 = 300;
/// A step that chance has left out gets this many rounds of its own.
pub(crate) const EXTRA_ROUNDS_MAX: u64 = 400;
/// A round takes some milliseconds, or a few tenths of a second after a death. This is long after it should have ended, also
/// beside processes that are preferred to it, where sixteen rounds took two minutes.
pub(crate) const HANGS_AFTER: Duration = Duration::from_secs(120);

/// Small and seeded: splitmix64.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

/// What processes that are forked from here on write down together: a mapping of its own, so that it does not depend on what is
/// tested.
///
/// # Safety
/// Zeroes are a `T`, and all of it is atomics.
#[allow(dead_code, reason = "programs that are started anew find theirs by a name")]
pub(crate) unsafe fn record<T>() -> &'static T {
    let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
    let bytes = size_of::<T>();
    // SAFETY: a new mapping, never unmapped, zeroed.
    let at =
        unsafe { libc::mmap(std::ptr::null_mut(), bytes, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
    assert_ne!(at, libc::MAP_FAILED);
    // SAFETY: mapped above for ever, large enough, aligned to a page; the rest is the caller's promise.
    unsafe { &*at.cast::<T>() }
}
