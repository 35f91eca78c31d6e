//! Copies of this process.

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

/// Which side of a [`fork`] this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fork {
    /// The process that called it; with the child's pid.
    Parent(u32),
    /// The copy.
    Child,
}

/// Copies this process: `fork(2)`. Both sides go on behind the call, each with its own copy of every variable.
///
/// A child that is made within a task, a callback or an exit hook, and that comes back from it, ends there: by `_exit`, so without
/// exit hooks and destructors, and without a flush; with code 0, or 101 after a panic of the task. The original goes on.
///
/// The child is the caller's to wait for, with `waitpid`; it is not among [`active_children`](crate::active_children).
/// Executors and processes of this library are inert in it: use them, and they say so. What was printed and not flushed is flushed
/// before, so that it does not appear twice.
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
/// In a process with more than one thread, the child may only do what a signal handler may (no allocation, no lock) until it
/// calls `exec` or ends: whatever another thread had locked at this moment stays locked in it. [`fork_with`] refuses where that is so.
///
/// As for [`fork_with`], nothing that either side does afterwards may rely on its having some memory for itself that was borrowed
/// before, if that is memory which processes share. Both sides go on with all that is on the stack.
///
/// # Errors
/// If the system refuses.
pub unsafe fn fork() -> io::Result<Fork> {
    let _ = io::stdout().flush();
    let pause = table::pause();
    // SAFETY: the caller's promise.
    match unsafe { fork::fork() }? {
        Some(pid) => Ok(Fork::Parent(pid)),
        None => {
            pause.forget_all();
            Ok(Fork::Child)
        }
    }
}

/// Runs `body` in a copy of this process, which ends with it: exit code 0, or 101 if it panics. Its pid; the child is the
/// caller's to wait for.
///
/// ```
/// # fn main() -> Result<(), executor::StartError> {
/// let answer = 6 * 7;
/// // SAFETY: the closure has a copy of a number.
/// let pid = unsafe { executor::fork_with(move || assert_eq!(answer, 42)) }?;
/// assert!(pid > 0);
/// # Ok(())
/// # }
/// ```
///
/// # Safety
/// Nothing that `body` does may rely on its having some memory for itself that the parent has as well. A copy of a process
/// has copies of its references, and where they lead into memory that processes share, two have what the type says that one
/// has: a `&mut [u8]` of [`SharedBytes`](crate::SharedBytes) that were not sent yet, the reference behind a guard of a
/// [`Value`](crate::Value) or an [`Array`](crate::Array), shared mappings of other libraries. In a task the arguments that it
/// borrows (`&[u8]`, `&str`) are such memory, too: its worker's executor uses it again when the task has ended, whether the copy
/// has ended or not. This library's own handles ask on which side they are: in the copy, guards give nothing back when they are
/// dropped, and panic when they are read or written through; so do [`SharedBytes`](crate::SharedBytes) that are not frozen, and
/// their [`get_mut`](crate::SharedBytes::get_mut) is `None`. What was borrowed before the fork asks nobody.
///
/// Threads are no concern: it refuses where there are others.
///
/// # Errors
/// [`StartError::Threads`] if this process has other threads (but for those that watch its processes and its parent), [`StartError::Fork`] if the system refuses.
pub unsafe fn fork_with(body: impl FnOnce()) -> Result<u32, StartError> {
    let pause = table::pause();
    check_threads(&pause)?;
    let _ = io::stdout().flush();
    // SAFETY: there is no other thread but the watchers, of children and of the parent, which sleep and hold no lock while the
    // pause lasts; what glibc locks it makes usable in the child itself. What `body` makes of memory that is shared is the caller's promise.
    let forked = unsafe { fork::fork() }.map_err(|error| StartError::Fork(Arc::new(error)))?;
    if let Some(pid) = forked {
        return Ok(pid);
    }
    pause.forget_all();
    leave(if catch(body).is_ok() { 0 } else { 101 })
}

/// Whether a copy of this process would be whole. Two threads of ours sleep, and hold nothing that a copy touches: the one
/// that watches processes, and in a child the one that watches its parent.
pub(super) fn check_threads(pause: &Pause<'_>) -> Result<(), StartError> {
    let expected = 1 + usize::from(table::has_watcher(pause)) + watcher::threads();
    let counted = settled_thread_count(expected);
    match counted.map_err(|error| StartError::Fork(Arc::new(error)))? {
        threads if threads <= expected => Ok(()),
        threads => Err(StartError::Threads { threads }),
    }
}

/// Makes a copy that is told by `socket` what it is for; its pid. `ours` is the parent's end, which it closes.
pub(super) fn child(pause: Pause<'_>, socket: OwnedFd, ours: BorrowedFd<'_>) -> io::Result<u32> {
    let _ = io::stdout().flush();
    // SAFETY: there is no other thread but those of ours that sleep: counted by `check_threads` under the same pause; see
    // `fork_with`. As to shared memory: nothing that was on a stack of the parent's goes on in the copy. It runs one task, whose
    // arguments came by the socket, and then `leave`s without dropping anything. What it can reach of the parent's are statics,
    // where handles of this library are inert: guards are neither read nor written through, and unsealed bytes are not given
    // out. A reference into shared memory that was leaked into a static is beyond what can be checked. It is the one thing that
    // this function, which safe code calls, leaves to the program: the documentation of `StartMethod::Fork` says so.
    if let Some(pid) = unsafe { fork::fork() }? {
        return Ok(pid);
    }
    pause.forget_all();
    fork::close(ours);
    leave(entry::forked(socket))
}

/// Ends a copy: what belongs to it runs, nothing of the program that it was copied from.
fn leave(code: i32) -> ! {
    exit::finish();
    let _ = io::stdout().flush();
    fork::leave(code)
}

/// This process's id, `os.getpid`.
pub fn getpid() -> u32 {
    std::process::id()
}

/// The id of this process's parent, `os.getppid`.
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
