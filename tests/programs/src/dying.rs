//! Shared parts of the programs whose processes are killed or stopped at every step of a protocol.

use std::{
    ffi::CStr,
    io,
    ops::Range,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    time::Duration,
};

/// Number of rounds by default.
pub(crate) const ROUNDS: u64 = 300;
/// Maximum number of extra rounds for a step that the random rounds did not reach.
pub(crate) const EXTRA_ROUNDS_MAX: u64 = 400;
/// Time after which a round counts as hanging. A round takes some milliseconds, or a few tenths of
/// a second after a death. This limit also allows for other processes with a higher priority, with
/// which sixteen rounds took two minutes.
pub(crate) const HANGS_AFTER: Duration = Duration::from_secs(120);

/// Returns the number in an environment variable, if it is set.
pub(crate) fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text} is no number")))
}

/// Returns the seeds of the rounds: those from `EXECUTOR_SEED` on, one by default, or else those
/// from zero on. `EXECUTOR_ROUNDS` says how many.
#[allow(dead_code, reason = "`deaths` repeats one seed")]
pub(crate) fn seeds() -> Range<u64> {
    match number("EXECUTOR_SEED") {
        Some(seed) => seed..seed + number("EXECUTOR_ROUNDS").unwrap_or(1),
        None => 0..number("EXECUTOR_ROUNDS").unwrap_or(ROUNDS),
    }
}

/// A small seeded random number generator: splitmix64.
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

    #[allow(dead_code, reason = "not every program has odds")]
    pub(crate) fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }

    #[allow(dead_code, reason = "not every program picks")]
    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }
}

/// Makes a record that this process shares with the processes forked from now on. It is a mapping
/// of its own, so that it does not depend on the tested code.
///
/// # Safety
/// A zeroed `T` must be valid, and `T` must consist of atomics only.
#[allow(dead_code, reason = "programs that are started anew find theirs by a name")]
pub(crate) unsafe fn record<T>() -> &'static T {
    let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
    let bytes = size_of::<T>();
    // SAFETY: makes a new, zeroed mapping, which is never unmapped.
    let at = unsafe {
        libc::mmap(std::ptr::null_mut(), bytes, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0)
    };
    assert_ne!(at, libc::MAP_FAILED);
    // SAFETY: the mapping lives for ever, is large enough and is aligned to a page. The caller
    // promises the rest.
    unsafe { &*at.cast::<T>() }
}

/// Makes a record that processes which are started anew can find and [`map`], too. The descriptor
/// must stay open meanwhile.
///
/// # Safety
/// As for [`record`].
#[allow(dead_code, reason = "some programs only fork")]
pub(crate) unsafe fn named_record<T>(name: &CStr) -> (&'static T, OwnedFd) {
    // SAFETY: makes a descriptor, which then belongs to us.
    let fd = unsafe {
        #[expect(clippy::disallowed_methods, reason = "no limit is set here")]
        let fd = libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC);
        assert!(fd >= 0, "{}", io::Error::last_os_error());
        OwnedFd::from_raw_fd(fd)
    };
    let file = std::fs::File::from(fd.try_clone().expect("a descriptor"));
    #[expect(clippy::disallowed_methods, reason = "no limit is set here")]
    file.set_len(size_of::<T>() as u64).expect("memory");
    // SAFETY: the file has the size of a `T`. The caller promises the rest.
    (unsafe { map(fd.as_fd()) }, fd)
}

/// Maps the record of a descriptor that [`named_record`] has made.
///
/// # Safety
/// As for [`record`]. The file has the size of a `T`.
#[allow(dead_code, reason = "some programs only fork")]
pub(crate) unsafe fn map<T>(fd: BorrowedFd<'_>) -> &'static T {
    // SAFETY: a new mapping of a file of that size, which is never unmapped. `T` consists of
    // atomics only, so other processes may write to it.
    unsafe {
        let flags = libc::PROT_READ | libc::PROT_WRITE;
        let at = libc::mmap(
            std::ptr::null_mut(),
            size_of::<T>(),
            flags,
            libc::MAP_SHARED,
            fd.as_raw_fd(),
            0,
        );
        assert_ne!(at, libc::MAP_FAILED, "{}", io::Error::last_os_error());
        &*at.cast::<T>()
    }
}
