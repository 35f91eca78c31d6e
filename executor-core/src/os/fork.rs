//! A program may fork by hand while executors exist. The child has copies of our locks, possibly held by threads that
//! do not exist there, and no driver. So every handle asks, before it touches a lock: am I still in my process?

use std::{
    io,
    sync::{
        Once,
        atomic::{AtomicU32, Ordering},
    },
};

static FORKS: AtomicU32 = AtomicU32::new(0);
static REGISTER: Once = Once::new();

extern "C" fn in_child() {
    FORKS.fetch_add(1, Ordering::Relaxed);
}

/// The process in which something was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Origin(u32);

impl Origin {
    /// This process.
    pub(crate) fn here() -> Self {
        REGISTER.call_once(|| {
            // SAFETY: the handler only adds to an atomic, which is allowed between fork and exec.
            let refused = unsafe { libc::pthread_atfork(None, None, Some(in_child)) };
            if refused != 0 {
                // Out of memory for one list entry: forks go unnoticed, as without this module.
                tracing::warn!(
                    errno = refused,
                    "pthread_atfork refused; handles in forked children are not inert"
                );
            }
        });
        Origin(FORKS.load(Ordering::Relaxed))
    }

    /// Whether this process is a fork of the one in which `self` was made.
    pub(crate) fn forked(self) -> bool {
        self.0 != FORKS.load(Ordering::Relaxed)
    }
}

/// `fork`: `None` in the child.
///
/// # Safety
/// As for fork(2): in a process with several threads, the child may do nothing but what a signal handler may, until it calls
/// `exec` or ends.
pub(crate) unsafe fn fork() -> io::Result<Option<u32>> {
    // So that handles know.
    Origin::here();
    // SAFETY: the caller's promise.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(None),
        pid => Ok(Some(pid as u32)),
    }
}

/// A copy of this process that is its parent's child, not its own: `None` in the copy. Refused where there are other
/// threads.
pub(crate) fn clone_sibling() -> io::Result<Option<u32>> {
    if super::process::settled_thread_count(1) > 1 {
        return Err(io::Error::from_raw_os_error(libc::EBUSY));
    }
    // No exit signal of its own: with CLONE_PARENT it is this process's. No new stack: a copy, as with fork(2).
    let flags = libc::CLONE_PARENT as libc::c_long;
    // SAFETY: like fork(2), in a process with this one thread (counted above), so nothing is locked in the copy. What glibc
    // does beside the system call is for other threads, but for the thread's number that it remembers: that is used
    // by mutexes that know their owner, where it stays unique, since this process lives on.
    match unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            in_child();
            Ok(None)
        }
        pid => Ok(Some(pid as u32)),
    }
}

/// Ends the process at once: nothing that the program it was forked from has registered runs.
pub(crate) fn leave(code: i32) -> ! {
    // SAFETY: ends the process.
    unsafe { libc::_exit(code) }
}

/// Calls `handler` when the program ends by itself: after `main`, or by `std::process::exit`.
pub(crate) fn at_end(handler: extern "C" fn()) {
    // SAFETY: the handler is a function of this program that does not unwind.
    if unsafe { libc::atexit(handler) } != 0 {
        tracing::warn!("the system remembers no more exit handlers; processes are not waited for at the end");
    }
}

/// Closes a descriptor that a fork has copied, and whose owner lives on in the parent only.
pub(crate) fn close(copy: std::os::fd::BorrowedFd<'_>) {
    use std::os::fd::AsRawFd;
    // SAFETY: the owner's value exists in this process's memory too, but the process ends without dropping it.
    unsafe { libc::close(copy.as_raw_fd()) };
}
