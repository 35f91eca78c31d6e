//! A program may fork by hand while executors exist. The child has copies of our locks, possibly held by threads that
//! do not exist there, and no driver. So every handle asks, before it touches a lock: am I still in my process?
//!
//! Descriptors are copied too, and with them what the kernel keeps for whoever has them: see [`NotInherited`].

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, IntoRawFd, OwnedFd, RawFd},
    ptr,
    sync::{
        Once,
        atomic::{AtomicI32, AtomicPtr, AtomicU32, Ordering},
    },
};

/// How many forks lie between this process and the first one that used this module.
static FORKS: AtomicU32 = AtomicU32::new(0);
/// How many children this process and those before it have forked.
static CHILDREN: AtomicU32 = AtomicU32::new(0);
static REGISTER: Once = Once::new();

extern "C" fn in_child() {
    FORKS.fetch_add(1, Ordering::Relaxed);
    close_not_inherited();
}

extern "C" fn in_parent() {
    CHILDREN.fetch_add(1, Ordering::Relaxed);
}

fn register() {
    REGISTER.call_once(|| {
        // SAFETY: the handlers only change atomics and close descriptors, which is allowed between fork and exec.
        let refused = unsafe { libc::pthread_atfork(None, Some(in_parent), Some(in_child)) };
        if refused != 0 {
            // Out of memory for one list entry: forks go unnoticed, as without this module.
            tracing::warn!(
                errno = refused,
                "pthread_atfork refused; handles in forked children are not inert"
            );
        }
    });
}

/// The process in which something was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Origin(u32);

impl Origin {
    /// This process.
    pub(crate) fn here() -> Self {
        register();
        Origin(FORKS.load(Ordering::Relaxed))
    }

    /// Whether this process is a fork of the one in which `self` was made.
    #[inline]
    pub(crate) fn forked(self) -> bool {
        self.0 != FORKS.load(Ordering::Relaxed)
    }

    /// Ends a copy of the process in which `self` was made, with this exit code. In that process itself it does nothing.
    ///
    /// For loops that run code of the user and go on: a copy that such code has made by `fork`, and which returns from it,
    /// must not go on as the loop, for it shares the original's descriptors and memory, and nobody watches it. Neither exit
    /// hooks nor destructors run in it, and nothing is flushed: all of that belongs to the original.
    #[inline]
    pub(crate) fn end_copy(self, code: i32) {
        if self.forked() {
            leave(code);
        }
    }
}

/// A global value of which a forked process has one of its own, made anew: it inherits nothing of its parent's, and no lock
/// that another thread of its parent held.
#[derive(Debug)]
pub(crate) struct PerProcess<T: 'static> {
    /// Replaced in a fork, and never freed: one small value for each fork that uses it.
    made: AtomicPtr<Made<T>>,
    make: fn() -> T,
}

#[derive(Debug)]
struct Made<T> {
    origin: Origin,
    value: T,
}

impl<T: Send + Sync> PerProcess<T> {
    pub(crate) const fn new(make: fn() -> T) -> Self {
        PerProcess { made: AtomicPtr::new(ptr::null_mut()), make }
    }

    /// This process's value.
    pub(crate) fn get(&self) -> &'static T {
        loop {
            let old = self.made.load(Ordering::Acquire);
            // SAFETY: null, or published complete by the exchange below; never freed. In a fork it is the copy of what was
            // published, which is complete as well.
            if let Some(made) = unsafe { old.as_ref() }
                && !made.origin.forked()
            {
                return &made.value;
            }
            let new = Box::into_raw(Box::new(Made { origin: Origin::here(), value: (self.make)() }));
            if self.made.compare_exchange(old, new, Ordering::AcqRel, Ordering::Relaxed).is_err() {
                // SAFETY: made above, and nobody else has seen it.
                drop(unsafe { Box::from_raw(new) });
            }
        }
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
        pid => {
            in_parent();
            Ok(Some(pid as u32))
        }
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
    // SAFETY: the owner's value exists in this process's memory too, but the process ends without dropping it.
    unsafe { libc::close(copy.as_raw_fd()) };
}

/// How often this process has been forked: what was made before has gone to a child as well, if this has changed.
pub(crate) fn children() -> u32 {
    register();
    CHILDREN.load(Ordering::Relaxed)
}

/// A descriptor that forked children do not keep: the kernel takes what hangs on it (a file lock) back when this process
/// ends, and not when the last of its children does.
///
/// A child that is forked by another thread between the opening of the descriptor and [`new`](Self::new) does keep it,
/// as does one that is made by `clone` and without the C library. Programs that are started keep none: all descriptors
/// are close-on-exec.
#[derive(Debug)]
pub(crate) struct NotInherited {
    entry: &'static Entry,
    origin: Origin,
}

/// Entries are reused and never freed: the handler in the child walks the list without a lock.
#[derive(Debug)]
struct Entry {
    /// [`FREE`] if nobody has the entry.
    descriptor: AtomicI32,
    next: AtomicPtr<Entry>,
}

const FREE: RawFd = -1;
static ENTRIES: AtomicPtr<Entry> = AtomicPtr::new(ptr::null_mut());

fn entries() -> impl Iterator<Item = &'static Entry> {
    // SAFETY: entries are published when complete, and live for ever.
    let at = |pointer: &AtomicPtr<Entry>| unsafe { pointer.load(Ordering::Acquire).as_ref() };
    std::iter::successors(at(&ENTRIES), move |entry| at(&entry.next))
}

fn close_not_inherited() {
    for entry in entries() {
        let descriptor = entry.descriptor.swap(FREE, Ordering::Relaxed);
        if descriptor != FREE {
            // SAFETY: it was the entry's, and those who know the entry see that they were forked.
            unsafe { libc::close(descriptor) };
        }
    }
}

impl NotInherited {
    pub(crate) fn new(descriptor: OwnedFd) -> Self {
        let origin = Origin::here();
        let descriptor = descriptor.into_raw_fd();
        let taken = entries().find(|entry| {
            let put =
                entry.descriptor.compare_exchange(FREE, descriptor, Ordering::AcqRel, Ordering::Relaxed);
            put.is_ok()
        });
        let entry = taken.unwrap_or_else(|| {
            let next = AtomicPtr::new(ENTRIES.load(Ordering::Acquire));
            let entry: &'static Entry =
                Box::leak(Box::new(Entry { descriptor: AtomicI32::new(descriptor), next }));
            let mine = ptr::from_ref(entry).cast_mut();
            while let Err(other) = ENTRIES.compare_exchange(
                entry.next.load(Ordering::Relaxed),
                mine,
                Ordering::AcqRel,
                Ordering::Acquire,
            ) {
                entry.next.store(other, Ordering::Relaxed);
            }
            entry
        });
        NotInherited { entry, origin }
    }

    /// The descriptor; `None` in a fork.
    pub(crate) fn get(&self) -> Option<BorrowedFd<'_>> {
        if self.origin.forked() {
            return None;
        }
        let descriptor = self.entry.descriptor.load(Ordering::Relaxed);
        // SAFETY: open until `self` is dropped, since this is the process that put it there.
        Some(unsafe { BorrowedFd::borrow_raw(descriptor) })
    }
}

impl Drop for NotInherited {
    fn drop(&mut self) {
        if let Some(descriptor) = self.get() {
            let descriptor = descriptor.as_raw_fd();
            self.entry.descriptor.store(FREE, Ordering::Release);
            // SAFETY: it was the entry's alone.
            unsafe { libc::close(descriptor) };
        }
    }
}
