//! Ends the worker when its parent has ended or was replaced, whatever its task is doing.
//!
//! ```text
//!  the parent ends          its pidfd, and the kernel gives us another parent
//!  the parent is replaced   (`exec`) its pid stays, and its end of our socket is closed: nobody in it knows of us
//!  and we are stopped       no thread of ours runs: the kernel continues us when the parent ends
//! ```

use std::{
    ffi::OsString,
    io,
    os::fd::{AsFd, OwnedFd},
    sync::atomic::{AtomicI32, Ordering},
    thread,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec},
    process::{
        Pid, PidfdFlags, Signal, getpid, getppid, kill_process, kill_process_group, pidfd_open,
        set_parent_process_death_signal,
    },
};

use crate::os::{arena::inode, ready, signals, socket::is_hung_up};

/// How often the parent is looked for when no descriptor can be had.
const WITHOUT_DESCRIPTOR: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// Has the kernel continue this process, should it be stopped, when its parent ends: what watches the parent is a part of it, and is
/// stopped as well.
///
/// SIGCONT, and not SIGKILL: the group has to be killed, too, which only we can do. So it does no harm that the kernel takes a thread
/// for the parent, and sends the signal as often as the one that we belong to ends: who runs is not changed by it.
pub(super) fn outlive_no_stop() {
    // A system that refuses it is as before.
    let _ = set_parent_process_death_signal(Some(Signal::CONT));
}

/// Watches `parent` on a thread of its own, and `socket`, whose other end it has. When it is gone, nobody else removes the directory
/// that it made for us.
///
/// The socket stays open as long as this process lives, unless a task closes what it does not own: then it may be another file.
pub(super) fn start(parent: u32, socket: &'static OwnedFd, directory: Option<OsString>) -> io::Result<()> {
    let end_group = move || {
        if let Some(directory) = &directory {
            let _ = std::fs::remove_dir_all(directory);
        }
        end_group()
    };
    let pid = Pid::from_raw(parent as i32);
    outlive_no_stop();
    let pidfd = match pid.map(|pid| pidfd_open(pid, PidfdFlags::empty())) {
        Some(Ok(pidfd)) => pidfd,
        Some(Err(rustix::io::Errno::SRCH)) | None => end_group(),
        Some(Err(error)) => return Err(error.into()),
    };
    // Opened first, compared then: a number that was given to another process meanwhile is not our parent's.
    if getppid() != pid {
        end_group();
    }
    let identity = inode(socket)?;
    let watch = move || {
        let mut watched = Some(pidfd);
        let mut lifeline = Some(socket);
        loop {
            // Of the socket, only its end: the kernel tells of that unasked.
            let ends = lifeline.iter().map(|socket| PollFd::new(*socket, PollFlags::empty()));
            let starts = watched.iter().map(|pidfd| PollFd::new(pidfd, PollFlags::IN));
            let mut fds: Vec<_> = ends.chain(starts).collect();
            ready::doze(&mut fds, watched.is_none().then_some(&WITHOUT_DESCRIPTOR));
            drop(fds);
            // The kernel gives us another parent before it lets the poll return.
            if getppid() != pid {
                end_group();
            }
            let is_ours = |socket: &&OwnedFd| inode(socket).is_ok_and(|now| now == identity);
            lifeline = lifeline.filter(is_ours);
            if lifeline.is_some_and(|socket| is_hung_up(socket.as_fd())) {
                end_group();
            }
            // Woken by something else: a task has closed what it does not own. Ours is not closed again, the number may
            // be somebody else's by now.
            std::mem::forget(watched.take());
            watched = pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
        }
    };
    // A signal that the task has blocked, to wait for it, must not end the process by way of this thread.
    signals::deaf(|| {
        thread::Builder::new().name("executor-watcher".into()).stack_size(64 * 1024).spawn(watch)
    })?;
    WATCHED.store(getpid().as_raw_nonzero().get(), Ordering::Relaxed);
    Ok(())
}

/// The process that has such a thread: a copy of it does not.
static WATCHED: AtomicI32 = AtomicI32::new(0);

/// How many threads of this kind there are. They sleep, and hold no lock.
pub(crate) fn threads() -> usize {
    usize::from(WATCHED.load(Ordering::Relaxed) == getpid().as_raw_nonzero().get())
}

/// Kills this process and the programs that its tasks started.
#[expect(clippy::disallowed_methods, reason = "the group of this very process")]
pub(super) fn end_group() -> ! {
    // A task may have put itself into another group, whose other members are none of ours.
    // SAFETY: takes nothing. The answer is 0 for a group of outside the PID namespace, which is not this process's.
    if unsafe { libc::getpgrp() } == getpid().as_raw_nonzero().get() {
        let _ = kill_process_group(getpid(), Signal::KILL);
    }
    let _ = kill_process(getpid(), Signal::KILL);
    // Not reached: the signal cannot be caught.
    std::process::abort()
}
