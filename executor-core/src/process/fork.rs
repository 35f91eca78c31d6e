//! Forks: copies of this process.

use std::{
    fmt, io,
    io::Write as _,
    os::fd::{BorrowedFd, OwnedFd},
    sync::Arc,
};

use super::{
    StartError,
    table::{self, Pause},
};
use crate::{
    child::exit,
    os::{fork, process::settled_thread_count},
    unwind::catch,
    worker::{entry, watcher},
};

/// The side of a [`fork`] in which the call returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fork {
    /// The process that called `fork`, with the pid of the child.
    Parent(u32),
    /// The child: a copy of the process that called `fork`.
    Child,
}

/// Copies this process, as `fork(2)` does. The call returns in both processes, each with its own
/// copy of every variable.
///
/// If the call is made within a task, a callback or an exit hook, and the child returns from it,
/// the child ends there. It ends by `_exit`, so without exit hooks, destructors and a flush, with
/// code 0, or 101 after a panic of the task. The parent continues.
///
/// The caller must wait for the child with `waitpid`. The child is not among
/// [`active_children`](crate::active_children). Executors and processes of this library are inert
/// in the child: calls to them return errors that say so. Standard output is flushed before the
/// fork, so that buffered output does not appear twice.
///
/// ```
/// use executor::Fork;
///
/// // SAFETY: this program has one thread.
/// match unsafe { executor::fork() }.unwrap() {
///     Fork::Parent(pid) => assert!(pid > 0),
///     Fork::Child => std::process::exit(0),
/// }
/// ```
///
/// # Safety
/// In a process with more than one thread, the child may do only what a signal handler may do (no
/// allocation, no lock) until it calls `exec` or ends. A lock that another thread holds during the
/// fork stays locked in the child. [`fork_with`] refuses in such a process.
///
/// The second condition is the same as for [`fork_with`], for both processes. After the fork,
/// neither of them may rely on exclusive access to memory that was borrowed before the fork, if
/// processes share this memory. Both processes continue with everything that is on the stack.
///
/// # Errors
/// If the system refuses.
pub unsafe fn fork() -> io::Result<Fork> {
    let _ = io::stdout().flush();
    let pause = table::pause();
    // SAFETY: the caller ensures the conditions of this function.
    match unsafe { fork::fork() }? {
        Some(pid) => Ok(Fork::Parent(pid)),
        None => {
            pause.forget_all();
            Ok(Fork::Child)
        }
    }
}

/// Runs `body` in a copy of this process, and returns the pid of the copy. The copy ends when
/// `body` has returned, with exit code 0, or 101 if `body` panics. The caller must wait for the
/// child.
///
/// ```
/// # fn main() -> Result<(), executor::StartError> {
/// let answer = 6 * 7;
/// // SAFETY: the closure has its own copy of a number.
/// let pid = unsafe { executor::fork_with(move || assert_eq!(answer, 42)) }?;
/// assert!(pid > 0);
/// # Ok(())
/// # }
/// ```
///
/// # Safety
/// `body` must not rely on exclusive access to memory that the parent also has. The child has
/// copies of the parent's references. If a reference points into memory that processes share, two
/// processes have access, although the type promises exclusive access to one. Examples are a
/// `&mut [u8]` of [`SharedBytes`](crate::SharedBytes) that were not sent yet, the reference behind
/// a guard of a [`Value`](crate::Value) or an [`Array`](crate::Array), and shared mappings of other
/// libraries. In a task, the arguments that it borrows (`&[u8]`, `&str`) are such memory, too: the
/// worker's executor reuses the memory when the task has ended, even if the child has not ended.
///
/// The handles of this library check in which process they are. In the child, a guard releases
/// nothing when it is dropped, and panics when it is read or written through. The same holds for
/// [`SharedBytes`](crate::SharedBytes) that are not frozen, and their
/// [`get_mut`](crate::SharedBytes::get_mut) returns `None`. A reference that was borrowed before
/// the fork cannot check anything.
///
/// Other threads are not a safety condition: the function refuses if there are any.
///
/// # Errors
/// - [`StartError::Threads`] if this process has other threads, except for those of this library
///   that watch its processes and its parent.
/// - [`StartError::Fork`] if the system refuses.
pub unsafe fn fork_with(body: impl FnOnce()) -> Result<u32, StartError> {
    let pause = table::pause();
    check_threads(&pause)?;
    let _ = io::stdout().flush();
    // SAFETY: there are no other threads except the watchers, of children and of the parent. They
    // sleep, and during the pause they hold no lock that the child uses. glibc makes its own locks
    // usable in the child. The caller ensures that `body` makes no wrong use of shared memory.
    let forked = unsafe { fork::fork() }.map_err(|error| StartError::Fork(Arc::new(error)))?;
    if let Some(pid) = forked {
        return Ok(pid);
    }
    pause.forget_all();
    leave(if catch(body).is_ok() { 0 } else { 101 })
}

/// Checks that a fork of this process would be usable, because no other thread can hold a lock. Two
/// threads of this library are allowed: the one that watches processes, and, in a child, the one
/// that watches its parent. They sleep, and hold nothing that a copy uses.
pub(super) fn check_threads(pause: &Pause<'_>) -> Result<(), StartError> {
    // This thread and the watchers.
    let expected = 1 + usize::from(table::has_watcher(pause)) + watcher::threads();
    let counted = settled_thread_count(expected);
    match counted.map_err(|error| StartError::Fork(Arc::new(error)))? {
        threads if threads <= expected => Ok(()),
        threads => Err(StartError::Threads { threads }),
    }
}

/// Makes a copy of this process that receives its setup from `socket`, and returns its pid. `ours`
/// is the parent's end of the socket pair, which the copy closes.
pub(super) fn child(pause: Pause<'_>, socket: OwnedFd, ours: BorrowedFd<'_>) -> io::Result<u32> {
    let _ = io::stdout().flush();
    // SAFETY: there are no other threads except sleeping threads of this library. `check_threads`
    // counted them under the same pause. See `fork_with`.
    //
    // Shared memory: nothing that was on a stack of the parent continues in the copy. The copy runs
    // one task, whose arguments come from the socket, and then `leave`s without dropping anything.
    // Of the parent's values it can reach only statics. The handles of this library are inert
    // there: guards can be neither read nor written through, and unsealed bytes are not accessible.
    // A reference into shared memory that was leaked into a static cannot be checked. This is the
    // one condition that this function, which safe code calls, leaves to the program. The
    // documentation of `StartMethod::Fork` says so.
    if let Some(pid) = unsafe { fork::fork() }? {
        return Ok(pid);
    }
    // This is the child.
    pause.forget_all();
    fork::close(ours);
    leave(entry::forked(socket))
}

/// Ends the child of a fork. It does the work that belongs to the end of the child, and none that
/// belongs to the process that it was copied from.
fn leave(code: i32) -> ! {
    exit::finish();
    let _ = io::stdout().flush();
    fork::leave(code)
}

/// Returns the id of this process, as `os.getpid` does.
pub fn getpid() -> u32 {
    std::process::id()
}

/// Returns the id of this process's parent, as `os.getppid` does.
pub fn getppid() -> u32 {
    std::os::unix::process::parent_id()
}

impl fmt::Display for Fork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fork::Parent(pid) => write!(f, "the parent of {pid}"),
            Fork::Child => f.write_str("the child"),
        }
    }
}
