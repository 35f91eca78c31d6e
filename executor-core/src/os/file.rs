//! Creates, lengthens, fills and empties the files that hold shared memory. No other module does
//! this.
//!
//! It handles two behaviours of the system so that callers need not:
//!
//! - A process that would make a file longer than `RLIMIT_FSIZE` gets SIGXFSZ, which ends the
//!   program before the call can return `EFBIG`. (`ulimit -f` sets the limit, and judges, sandboxes
//!   and batch systems do.) Reading the limit first is not enough, because another thread, or a
//!   task, may lower it before the call. So the signal is blocked in this thread during the call,
//!   and a pending one is removed afterwards (`unsignalled`). What remains is an error that names
//!   the limit.
//! - An allocation that a signal interrupts is undone completely (`EINTR`). A program with a
//!   periodic timer would retry the same allocation forever. So long allocations are made in steps,
//!   and an interruption makes the steps shorter (`in_steps`).
//!
//! `clippy.toml` forbids these system calls everywhere else.

#![allow(clippy::disallowed_methods, reason = "the place for them")]

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    ptr,
};

use rustix::{
    fs::{FallocateFlags, MemfdFlags, fallocate, ftruncate, memfd_create},
    io::{Errno, pwrite},
    process::Resource,
};

use super::{limits::limit_of, signals, socket::retry};

const PAGE: u64 = 4096;

/// Maximum number of bytes allocated by one call. With a higher value, a timer's signal undoes more
/// work. With a lower value, more calls are needed (each costs a microsecond; 16 MiB take several
/// milliseconds).
const STEP_MOST: u64 = 16 << 20;

/// Creates an anonymous file: empty, close-on-exec, and open to seals. Its name only appears in
/// `/proc`.
pub(crate) fn anonymous(name: &str) -> io::Result<OwnedFd> {
    Ok(memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?)
}

/// Sets the file's length. New bytes read as zeros, and take memory when they are written.
///
/// # Errors
/// [`FileTooLarge`](io::ErrorKind::FileTooLarge), with the limit in its message, if this process
/// may not make a file of this length. Otherwise the system's error.
pub(crate) fn set_len(file: impl AsFd, len: u64) -> io::Result<()> {
    retry(|| unsignalled(|| ftruncate(&file, len))).map_err(|error| refused(error, len))
}

/// Allocates memory for these bytes now, and makes the file long enough to contain them. Existing
/// content is kept.
///
/// # Errors
/// As [`set_len`]. Part of the memory may have been allocated.
pub(crate) fn allocate(file: impl AsFd, at: u64, len: u64) -> io::Result<()> {
    let end = at.checked_add(len).ok_or(io::ErrorKind::InvalidInput)?;
    let call = |at, len| unsignalled(|| fallocate(&file, FallocateFlags::empty(), at, len));
    match in_steps(at, len, call) {
        // This file system allocates memory only when bytes are written.
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
            let len = rustix::fs::fstat(&file)?.st_size.cast_unsigned();
            if len < end { set_len(file, end) } else { Ok(()) }
        }
        other => other.map_err(|error| refused(error, end)),
    }
}

/// Gives the memory of these bytes back. From now on they read as zeros, also in existing mappings.
pub(crate) fn punch(file: impl AsFd, at: u64, len: u64) -> io::Result<()> {
    let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    Ok(retry(|| fallocate(&file, hole, at, len))?)
}

/// Writes all bytes. A write system call fills new pages in half the time that it takes through a
/// mapping.
///
/// # Errors
/// As [`set_len`]. The limit also applies to bytes that already exist. Part of `bytes` may have
/// been written.
pub(crate) fn write_at(file: impl AsFd, mut bytes: &[u8], mut at: u64) -> io::Result<()> {
    let end = at.saturating_add(bytes.len() as u64);
    while !bytes.is_empty() {
        match retry(|| unsignalled(|| pwrite(&file, bytes, at)))
            .map_err(|error| refused(error, end))?
        {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            n => {
                at += n as u64;
                bytes = &bytes[n..];
            }
        }
    }
    Ok(())
}

/// Allocates in steps, from the end to the beginning. So the first call already reports whether the
/// file may have this length.
fn in_steps(
    at: u64,
    len: u64,
    mut call: impl FnMut(u64, u64) -> rustix::io::Result<()>,
) -> rustix::io::Result<()> {
    let (mut left, mut step) = (len, STEP_MOST);
    while left > 0 {
        let some = step.min(left);
        match call(at + (left - some), some) {
            Ok(()) => {
                left -= some;
                // Interruptions may be over, so take longer steps again.
                step = (step * 2).min(STEP_MOST);
            }
            // The interrupted call was undone completely. With smaller steps, a step completes
            // between two signals.
            Err(Errno::INTR) => step = (some / 2).next_multiple_of(PAGE),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Returns how long a file of this process may be. Returns `None` if this is not known, as in a
/// sandbox that forbids the call.
fn file_bytes_max() -> Option<u64> {
    limit_of(Resource::Fsize).ok().map(|limit| limit.current.unwrap_or(u64::MAX))
}

/// Returns the error for a file that was to have `len` bytes.
fn refused(error: Errno, len: u64) -> io::Error {
    if error != Errno::FBIG {
        return error.into();
    }
    let text = match file_bytes_max() {
        Some(limit) if limit < len => format!(
            "a file of {len} bytes for shared memory was refused: the limit on file sizes is {limit} bytes for this process \
             (RLIMIT_FSIZE; raise it, as by `ulimit -f unlimited`)"
        ),
        _ => format!(
            "a file of {len} bytes for shared memory was refused: the system makes none as long"
        ),
    };
    io::Error::new(io::ErrorKind::FileTooLarge, text)
}

/// Makes a system call that may raise SIGXFSZ, without letting that signal be delivered.
///
/// The kernel sends the signal to the calling thread, before the call returns. So it is enough to
/// block it in this thread, and there is no moment in which it could be delivered. This costs two
/// more system calls, a sixth of the time it takes to create an empty file of one page.
fn unsignalled<T>(call: impl FnOnce() -> rustix::io::Result<T>) -> rustix::io::Result<T> {
    let blocked = Blocked::new();
    let result = call();
    if matches!(result, Err(Errno::FBIG)) {
        blocked.take_away();
    }
    result
}

/// Blocks SIGXFSZ in this thread until it is dropped.
struct Blocked {
    signal: libc::sigset_t,
    /// Whether the signal was blocked before.
    blocked: bool,
    /// Whether a SIGXFSZ was already pending. That one belongs to the program and must not be
    /// removed.
    pending: bool,
}

impl Blocked {
    fn new() -> Self {
        let (mut signal, mut before) = (signals::empty(), signals::empty());
        // SAFETY: `sigemptyset` and `pthread_sigmask` write to the sets, of which every byte is
        // initialised. `pthread_sigmask` fails only for an unknown `how`. It changes this thread's
        // mask even in a fork or in a signal handler.
        unsafe {
            libc::sigemptyset(signal.as_mut_ptr());
            libc::sigaddset(signal.as_mut_ptr(), libc::SIGXFSZ);
            libc::sigemptyset(before.as_mut_ptr());
            libc::pthread_sigmask(libc::SIG_BLOCK, signal.as_ptr(), before.as_mut_ptr());
            let (signal, before) = (signal.assume_init(), before.assume_init());
            let blocked = libc::sigismember(&before, libc::SIGXFSZ) == 1;
            Blocked { signal, blocked, pending: blocked && is_pending() }
        }
    }

    /// Removes the SIGXFSZ that the call has raised.
    fn take_away(&self) {
        if self.pending {
            return;
        }
        let now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: reads a set and a time, and writes nothing. If SIGXFSZ is ignored, none is
        // pending, and the call's error is ignored.
        while unsafe { libc::sigtimedwait(&self.signal, ptr::null_mut(), &now) } == -1
            && io::Error::last_os_error().raw_os_error() == Some(libc::EINTR)
        {}
    }
}

impl Drop for Blocked {
    fn drop(&mut self) {
        if self.blocked {
            return;
        }
        // Unblock this signal only, instead of restoring the whole mask. The C library does not
        // report all of the mask, and `signals::as_one_user` may have blocked the rest.
        //
        // SAFETY: a set with one signal, applied to this thread's mask.
        unsafe { libc::pthread_sigmask(libc::SIG_UNBLOCK, &self.signal, ptr::null_mut()) };
    }
}

fn is_pending() -> bool {
    let mut pending = signals::empty();
    // SAFETY: `sigpending` fills the set, which is read only if the call succeeded.
    unsafe {
        libc::sigemptyset(pending.as_mut_ptr());
        libc::sigpending(pending.as_mut_ptr()) == 0
            && libc::sigismember(pending.as_ptr(), libc::SIGXFSZ) == 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_allocation_that_every_signal_undoes_ends_in_shorter_steps() {
        // Simulates a kernel that is interrupted after each 100 pages, and then undoes the
        // interrupted call.
        let mut budget = 100;
        let mut done = vec![0_u8; 10_000];
        let mut calls = 0;
        in_steps(7 * PAGE, 10_000 * PAGE, |at, len| {
            calls += 1;
            assert!(at.is_multiple_of(PAGE) && len.is_multiple_of(PAGE) && len > 0);
            if len / PAGE > budget {
                budget = 100;
                return Err(Errno::INTR);
            }
            budget -= len / PAGE;
            let first = (at / PAGE - 7) as usize;
            done[first..first + (len / PAGE) as usize].iter_mut().for_each(|page| *page += 1);
            Ok(())
        })
        .unwrap();
        assert!(done.iter().all(|page| *page == 1), "each page once");
        assert!(calls < 2000, "{calls}");
    }

    #[test]
    fn the_first_step_is_the_last_piece_and_an_error_ends_it() {
        let mut calls = Vec::new();
        let result = in_steps(0, 100 << 20, |at, len| {
            calls.push((at, len));
            Err(Errno::FBIG)
        });
        assert_eq!(result, Err(Errno::FBIG));
        assert_eq!(calls, [((100 << 20) - STEP_MOST, STEP_MOST)]);
        assert_eq!(in_steps(5, 0, |_, _| unreachable!()), Ok(()));
    }

    #[test]
    fn files_are_made_filled_and_emptied() {
        let file = anonymous("x").unwrap();
        let stat = || rustix::fs::fstat(&file).unwrap();
        set_len(&file, 1 << 20).unwrap();
        assert_eq!((stat().st_size, stat().st_blocks), (1 << 20, 0));
        allocate(&file, 1 << 20, 40 << 20).unwrap();
        assert_eq!((stat().st_size, stat().st_blocks * 512), (41 << 20, 40 << 20));
        punch(&file, 0, 41 << 20).unwrap();
        assert_eq!((stat().st_size, stat().st_blocks), (41 << 20, 0));
        write_at(&file, &[7; 5000], (41 << 20) - 1000).unwrap();
        assert_eq!(stat().st_size, (41 << 20) + 4000);
    }

    #[test]
    fn the_mask_of_the_thread_and_its_own_signals_stay() {
        // Run in a thread of its own, because the test changes the mask.
        std::thread::spawn(|| {
            let mask = || {
                let mut mask = signals::empty();
                // SAFETY: only reads the mask.
                unsafe {
                    libc::pthread_sigmask(libc::SIG_BLOCK, ptr::null(), mask.as_mut_ptr());
                    libc::sigismember(&mask.assume_init(), libc::SIGXFSZ) == 1
                }
            };
            let refuse = || unsignalled::<()>(|| Err(Errno::FBIG));
            refuse().unwrap_err();
            assert!(!mask());
            let outer = Blocked::new();
            // SAFETY: sends the signal to this thread, where it is blocked.
            let send = || unsafe { libc::pthread_kill(libc::pthread_self(), libc::SIGXFSZ) };
            send();
            refuse().unwrap_err();
            assert!(mask() && is_pending(), "the program's own");
            outer.take_away();
            assert!(!is_pending());
            unsignalled::<()>(|| {
                send();
                Err(Errno::FBIG)
            })
            .unwrap_err();
            assert!(mask() && !is_pending(), "the call's");
        })
        .join()
        .unwrap();
    }
}
