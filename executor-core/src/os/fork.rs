//! Detects that this process was forked.
//!
//! A program may fork while executors exist. The child has copies of our locks, but no driver
//! thread. The locks may be held forever, by threads that do not exist in the child. So every
//! handle checks, before it takes a lock, whether it is still in the process that created it.
//!
//! Descriptors are copied too, together with what the kernel keeps for their holders, such as file
//! locks: see [`NotInherited`].

// The arithmetic in this file decides which memory is accessed, so no sum may wrap unnoticed.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use std::{
    io,
    os::fd::AsRawFd,
    ptr,
    sync::{
        Once,
        atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering},
    },
};

mod not_inherited;
mod sibling;

pub(crate) use not_inherited::NotInherited;
pub(crate) use sibling::clone_sibling;

/// Number of forks between the first process that used this module and this process.
static FORKS: AtomicU64 = AtomicU64::new(0);
/// Changes before and after each fork of this process and of its ancestors. It decides whether
/// memory may be reused, so it must not wrap: 64 bits are enough for any machine's life.
static CHILDREN: AtomicU64 = AtomicU64::new(0);
static REGISTER: Once = Once::new();

extern "C" fn before() {
    // Until the child has its copy, no other thread opens or closes a descriptor for a
    // [`NotInherited`].
    FORKS_WAIT.fetch_add(1, Ordering::Relaxed);
    match (Gate::take(), HELD_BY_FORKS.load(Ordering::Relaxed)) {
        (true, _) => HELD_BY_FORKS.store(1, Ordering::Relaxed),
        // This thread holds the gate through a `Gate`, and a signal handler forks.
        (false, 0) => {}
        // This thread holds the gate for a fork, and a signal handler forks as well. Only the outer
        // fork releases the gate.
        (false, forks) => HELD_BY_FORKS.store(forks.saturating_add(1), Ordering::Relaxed),
    }
    FORKS_WAIT.fetch_sub(1, Ordering::Relaxed);
    count_child();
}

extern "C" fn in_child() {
    FORKS.fetch_add(1, Ordering::Relaxed);
    not_inherited::close_all();
    // The waiting threads are threads of the parent.
    FORKS_WAIT.store(0, Ordering::Relaxed);
    leave_gate();
}

extern "C" fn in_parent() {
    count_child();
    leave_gate();
}

/// Counts a fork, once before it and once after it.
///
/// What another thread drops while the child is being created must see a changed count. Otherwise
/// the thread would not know that the child has a handle. What a thread creates meanwhile must see
/// the count change later, for the same reason.
fn count_child() {
    // `SeqCst`, so that no reordering in the other thread makes the count look unchanged around the
    // time at which the kernel copies the memory.
    CHILDREN.fetch_add(1, Ordering::SeqCst);
}

fn leave_gate() {
    let forks = HELD_BY_FORKS.load(Ordering::Relaxed);
    HELD_BY_FORKS.store(forks.saturating_sub(1), Ordering::Relaxed);
    // Keep the gate if an outer fork of this thread still needs it.
    if forks == 1 {
        GATE.store(0, Ordering::Release);
    }
}

/// The thread that is working on the descriptors of [`NotInherited`], or forking. 0 if there is
/// none.
///
/// The kernel copies a process's descriptors and its memory one after the other. So no order of
/// steps in another thread can make the two agree in the child, and there must be no fork during
/// these steps. The gate is held for a few system calls, or for a fork.
///
/// A user's `pthread_atfork` handler that runs while the gate is held may deadlock. This happens if
/// it waits for a lock whose holder waits for the gate, because the holder is dropping or creating
/// a pool. Handlers that were registered before ours run their `prepare` part after ours. So a
/// program must not hold a lock that such a handler takes around code that opens or closes pools
/// and shared objects.
static GATE: AtomicUsize = AtomicUsize::new(0);
/// Number of threads that wait for the gate in order to fork. They go first. Otherwise threads that
/// open and close descriptors in a loop would never let them in.
static FORKS_WAIT: AtomicU64 = AtomicU64::new(0);
/// Number of forks for which the current holder has the gate. It is more than one if a signal
/// handler forks during a fork, and 0 if the gate is not held for a fork. Only the thread with the
/// gate accesses it.
static HELD_BY_FORKS: AtomicUsize = AtomicUsize::new(0);

/// Holds the gate. While it exists, no other thread forks through the C library.
struct Gate(bool);

impl Gate {
    fn enter() -> Self {
        register();
        while FORKS_WAIT.load(Ordering::Relaxed) > 0 {
            std::thread::yield_now();
        }
        Gate(Self::take())
    }

    /// Takes the gate. Returns `false` if this thread holds it already. That happens to a fork in a
    /// signal handler that interrupted this thread, and to a fork handler that drops an object. In
    /// both cases waiting would never end.
    fn take() -> bool {
        // SAFETY: returns which thread this is.
        let me = unsafe { libc::pthread_self() } as usize;
        loop {
            match GATE.compare_exchange(0, me, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(other) if other == me => return false,
                Err(_) => std::thread::yield_now(),
            }
        }
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        if self.0 {
            GATE.store(0, Ordering::Release);
        }
    }
}

fn register() {
    REGISTER.call_once(|| {
        // Miri has neither forks nor fork handlers.
        if cfg!(miri) {
            return;
        }
        // SAFETY: the handlers only change atomics and close descriptors, which is allowed between
        // fork and exec. `before` waits for other threads, and these need nothing that this thread
        // holds.
        let refused =
            unsafe { libc::pthread_atfork(Some(before), Some(in_parent), Some(in_child)) };
        if refused != 0 {
            // The system has no memory for one list entry. Forks then go unnoticed, as without this
            // module.
            tracing::warn!(
                errno = refused,
                "pthread_atfork refused; handles in forked children are not inert"
            );
        }
    });
}

/// The process that created an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Creator(u64);

impl Creator {
    /// Returns this process.
    pub(crate) fn here() -> Self {
        register();
        Creator(FORKS.load(Ordering::Relaxed))
    }

    /// Whether the creator is another process than this one, which is a fork of it.
    #[inline]
    pub(crate) fn is_elsewhere(self) -> bool {
        self.0 != FORKS.load(Ordering::Relaxed)
    }

    /// Ends this process with `code` if it is a fork of the creator. Otherwise it does nothing.
    ///
    /// It is for loops that run user code and then continue. User code may fork and return in the
    /// child. The child must not continue as the loop, because it shares the original's descriptors
    /// and memory, and nothing supervises it. Its end runs no exit hooks and no destructors, and
    /// flushes nothing: all of that belongs to the original process.
    #[inline]
    pub(crate) fn end_copy(self, code: i32) {
        if self.is_elsewhere() {
            leave(code);
        }
    }
}

/// A global value that each process has for itself. A forked process creates a new one. So it
/// inherits nothing from its parent, in particular no lock that another thread of the parent held.
#[derive(Debug)]
pub(crate) struct PerProcess<T: 'static> {
    /// Replaced in a fork. The old value is never freed, which costs one small value per fork that
    /// uses it.
    made: AtomicPtr<Made<T>>,
    make: fn() -> T,
}

#[derive(Debug)]
struct Made<T> {
    creator: Creator,
    value: T,
}

impl<T: Send + Sync> PerProcess<T> {
    pub(crate) const fn new(make: fn() -> T) -> Self {
        PerProcess { made: AtomicPtr::new(ptr::null_mut()), make }
    }

    /// Returns this process's value, and creates it if needed.
    pub(crate) fn get(&self) -> &'static T {
        loop {
            let old = self.made.load(Ordering::Acquire);
            // SAFETY: null, or published by the exchange below when it was complete, and never
            // freed. In a fork it is a copy of the published value, which is complete as well.
            if let Some(made) = unsafe { old.as_ref() }
                && !made.creator.is_elsewhere()
            {
                return &made.value;
            }
            let new =
                Box::into_raw(Box::new(Made { creator: Creator::here(), value: (self.make)() }));
            if self.made.compare_exchange(old, new, Ordering::AcqRel, Ordering::Relaxed).is_err() {
                // SAFETY: created above, and never published.
                drop(unsafe { Box::from_raw(new) });
            }
        }
    }
}

/// Forks this process. Returns `None` in the child.
///
/// # Safety
/// As for fork(2): if the process has several threads, the child may only do what a signal handler
/// may do, until it calls `exec` or ends.
pub(crate) unsafe fn fork() -> io::Result<Option<u32>> {
    // Registers the fork handlers, so that handles notice the fork.
    Creator::here();
    // SAFETY: the caller's promise.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(None),
        pid => Ok(Some(pid as u32)),
    }
}

/// Ends the process at once. No exit handler of the program from which it was forked runs.
pub(crate) fn leave(code: i32) -> ! {
    // SAFETY: ends the process.
    unsafe { libc::_exit(code) }
}

/// Registers a handler for the program's normal end: the return from `main`, or
/// `std::process::exit`.
pub(crate) fn at_end(handler: extern "C" fn()) {
    // SAFETY: the handler is a function of this program and does not unwind.
    if unsafe { libc::atexit(handler) } != 0 {
        tracing::warn!(
            "the system remembers no more exit handlers; processes are not waited for at the end"
        );
    }
}

/// Closes a copied descriptor in a fork. The descriptor's owner only lives on in the parent.
pub(crate) fn close(copy: std::os::fd::BorrowedFd<'_>) {
    // SAFETY: the owner's value exists in this process's memory too, but the process ends without
    // dropping it.
    unsafe { libc::close(copy.as_raw_fd()) };
}

/// Returns a number that changes whenever this process forks. If it has changed since an object was
/// created, a child has the object as well.
pub(crate) fn children() -> u64 {
    register();
    CHILDREN.load(Ordering::SeqCst)
}

#[cfg(all(test, not(any(executor_loom, executor_shuttle))))]
mod tests {
    use super::*;

    /// Runs a test in a process of its own, because other tests do not expect to be forked.
    pub(super) fn alone(path: &str) {
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args([path, "--exact", "--ignored", "--test-threads=1"])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.contains("1 passed"), "{}\n{said}", output.status);
    }

    #[test]
    fn a_fork_in_a_signal_handler_leaves_the_gate_to_the_fork_that_it_interrupts() {
        alone("os::fork::tests::a_fork_within_a_fork");
    }

    #[test]
    #[ignore = "run by the test above"]
    fn a_fork_within_a_fork() {
        let held = || GATE.load(Ordering::Relaxed) != 0;
        // Calls the handlers in the order in which the C library calls them when a signal arrives
        // right after the outer fork's first handler.
        before();
        before();
        in_parent();
        assert!(held(), "the outer fork is still under way");
        in_parent();
        assert!(!held());
        // The same, if the thread holds the gate through a `Gate`.
        let gate = Gate::enter();
        before();
        in_parent();
        assert!(held());
        drop(gate);
        assert!(!held());
    }

    #[test]
    fn what_is_made_or_dropped_while_a_child_is_forked_counts_as_known_to_it() {
        alone("os::fork::tests::counts_around_a_fork");
    }

    #[test]
    #[ignore = "run by the test above"]
    fn counts_around_a_fork() {
        let made_before = children();
        before();
        // Here the kernel may or may not have copied the memory: no thread can tell.
        let meanwhile = children();
        assert_ne!(made_before, meanwhile, "dropped meanwhile");
        in_parent();
        assert_ne!(meanwhile, children(), "made meanwhile");
    }
}
