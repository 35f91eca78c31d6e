//! Ends this process when its parent has ended or was replaced, whatever its task is doing.
//!
//! ```text
//!  the parent ends          its pidfd is readable, and the kernel assigns another parent
//!  the parent is replaced   (`exec`) it keeps its pid, but its end of the socket is closed:
//!                           the new program does not know this process
//!  a limit on memory        the watcher looks at it now and then, while tasks run: see `gauge`
//!  this process is stopped  no thread of it runs: the kernel continues it when the parent ends
//! ```

use std::{
    ffi::OsString,
    io,
    os::fd::{AsFd, OwnedFd},
    sync::{
        OnceLock,
        atomic::{AtomicI32, Ordering},
    },
    thread,
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec},
    process::{
        Pid, PidfdFlags, Signal, getpid, getppid, kill_process, kill_process_group, pidfd_open,
        set_parent_process_death_signal,
    },
};

use super::gauge::{Gauge, Looks};
use crate::os::{arena::inode, eventfd::EventFd, ready, signals, socket::is_hung_up};

/// How often to check the parent when no pidfd can be opened.
const WITHOUT_DESCRIPTOR: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// Makes the kernel continue this process, if it is stopped, when its parent ends. The watcher
/// thread is a part of this process, so it is stopped, too.
///
/// The signal is SIGCONT, and not SIGKILL, because the process group must be killed as well, which
/// only this process does. The kernel sends the signal whenever the parent's thread that started
/// this process ends, even if the parent lives on. This does no harm: SIGCONT does not affect a
/// process that runs.
pub(super) fn outlive_no_stop() {
    // If the system refuses, a stopped process stays as it is.
    let _ = set_parent_process_death_signal(Some(Signal::CONT));
}

/// Watches `parent` on a new thread, and also `socket`, whose other end the parent has. The watcher
/// removes `directory`, which the parent has made for this process, because no other process does
/// so when the parent is gone. It also looks at what `gauge` measures.
///
/// The socket stays open as long as this process lives, unless a task closes it although it does
/// not own it. Then the descriptor number may belong to another file.
pub(super) fn start(
    parent: u32,
    socket: &'static OwnedFd,
    directory: Option<OsString>,
    gauge: Option<&'static Gauge>,
) -> io::Result<()> {
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
    // The pidfd was opened first, and the parent is compared after that. If the pid was given to
    // another process in the meantime, that process is not the parent.
    if getppid() != pid {
        end_group();
    }
    let identity = inode(socket)?;
    let watch = move || {
        let mut watched = Some(pidfd);
        let mut lifeline = Some(socket);
        let mut looks = gauge.map(Looks::new);
        loop {
            let look_in = looks.as_mut().and_then(Looks::look);
            let timeout = match (look_in, watched.is_none()) {
                (Some(wait), _) => Some(timespec(wait)),
                (None, true) => Some(WITHOUT_DESCRIPTOR),
                (None, false) => None,
            };
            // For the socket, no events are requested: the kernel always reports its hang-up.
            let ends = lifeline.iter().map(|socket| PollFd::new(*socket, PollFlags::empty()));
            let starts = watched.iter().map(|pidfd| PollFd::new(pidfd, PollFlags::IN));
            let bell = looks.as_mut().and_then(Looks::bell);
            let bells = bell.iter().map(|bell| PollFd::new(*bell, PollFlags::IN));
            let mut fds: Vec<_> = ends.chain(starts).chain(bells).collect();
            ready::doze(&mut fds, timeout.as_ref());
            let rings = bell.and_then(|_| fds.pop()).map(|bell| bell.revents());
            let nothing_else = fds.iter().all(|fd| fd.revents().is_empty());
            drop(fds);
            if let (Some(looks), Some(rings)) = (&mut looks, rings)
                && !rings.is_empty()
            {
                looks.on_bell(rings != PollFlags::IN);
            }
            // The kernel assigns another parent before it lets the poll return.
            if getppid() != pid {
                end_group();
            }
            let is_ours = |socket: &&OwnedFd| inode(socket).is_ok_and(|now| now == identity);
            lifeline = lifeline.filter(is_ours);
            if lifeline.is_some_and(|socket| is_hung_up(socket.as_fd())) {
                end_group();
            }
            if looks.is_some() && nothing_else && watched.is_some() {
                continue;
            }
            // The poll has returned for another reason: a task has closed a descriptor that it does
            // not own. Open another pidfd. The old one is not closed, because its number may belong
            // to another file by now.
            std::mem::forget(watched.take());
            watched = pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
        }
    };
    // All signals are blocked in this thread. A task may block a signal to wait for it, and the
    // signal must not be delivered to this thread and end the process.
    signals::deaf(|| {
        thread::Builder::new().name("executor-watcher".into()).stack_size(64 * 1024).spawn(watch)
    })?;
    WATCHED.store(getpid().as_raw_nonzero().get(), Ordering::Relaxed);
    Ok(())
}

fn timespec(wait: Duration) -> Timespec {
    Timespec { tv_sec: wait.as_secs() as _, tv_nsec: wait.subsec_nanos() as _ }
}

/// Calls `work` while another thread watches `parent` and `socket`, as after [`start`]. That thread
/// has ended when this returns. The kernel may count it for a moment longer.
pub(super) fn during<R>(
    parent: Pid,
    pidfd: &OwnedFd,
    socket: &OwnedFd,
    work: impl FnOnce() -> R,
) -> io::Result<R> {
    let over = EventFd::new()?;
    let watch = || {
        loop {
            let mut fds = [
                PollFd::new(socket, PollFlags::empty()),
                PollFd::new(pidfd, PollFlags::IN),
                PollFd::new(&over, PollFlags::IN),
            ];
            ready::doze(&mut fds, None);
            let is_over = !fds[2].revents().is_empty();
            if getppid() != Some(parent) || is_hung_up(socket.as_fd()) {
                end_group();
            }
            if is_over {
                return;
            }
        }
    };
    thread::scope(|scope| {
        signals::deaf(|| {
            let builder = thread::Builder::new().name("executor-watcher".into());
            builder.stack_size(64 * 1024).spawn_scoped(scope, watch)
        })?;
        WATCHED.store(getpid().as_raw_nonzero().get(), Ordering::Relaxed);
        let result = work();
        WATCHED.store(0, Ordering::Relaxed);
        over.ring();
        Ok(result)
    })
}

/// The id of the process that has a watcher thread. A forked copy of the process has none.
static WATCHED: AtomicI32 = AtomicI32::new(0);

/// Returns the number of watcher threads. They sleep, and hold no lock.
pub(crate) fn threads() -> usize {
    usize::from(WATCHED.load(Ordering::Relaxed) == getpid().as_raw_nonzero().get())
}

/// Kills the programs that this process has started, and not this process, which is about to end in
/// an orderly way. `parent` lives, or did a moment ago.
#[expect(clippy::disallowed_methods, reason = "the group that this very process has led")]
pub(super) fn end_programs(parent: Pid) {
    let own = getpid();
    // SAFETY: both calls return a number, for any arguments.
    let (led, others) = unsafe { (libc::getpgrp(), libc::getpgid(parent.as_raw_nonzero().get())) };
    // A group that a task has chosen has other members.
    if led != own.as_raw_nonzero().get() || others <= 0 || others == led {
        return;
    }
    // SAFETY: the call has numbers as arguments.
    let left = unsafe { libc::setpgid(0, others) } == 0;
    // If the system refuses this, the parent kills the programs when it reaps this process, if it
    // still lives.
    if left {
        // No other group gets this number as long as this process has it.
        let _ = kill_process_group(own, Signal::KILL);
    }
}

/// The file by which the system kills everything in this process's control group, and which file
/// this is: a task may close a descriptor that it does not own.
static CONTROL_GROUP: OnceLock<(OwnedFd, (u64, u64))> = OnceLock::new();

/// Lets [`end_group`] kill everything in the control group of this process, too.
pub(super) fn end_with_control_group(kill: OwnedFd) {
    if let Ok(identity) = inode(&kill) {
        // There is one such call in the life of a process.
        let _ = CONTROL_GROUP.set((kill, identity));
    }
}

/// Kills this process and the programs that its tasks started.
#[expect(clippy::disallowed_methods, reason = "the group of this very process")]
pub(super) fn end_group() -> ! {
    if let Some((kill, identity)) = CONTROL_GROUP.get()
        && inode(kill).is_ok_and(|now| now == *identity)
    {
        // It also reaches programs that have left the process group. If it is refused, they stay.
        let _ = rustix::io::write(kill, b"1");
    }
    // A task may have put this process into another group, whose other members do not belong to it.
    //
    // SAFETY: the call has no arguments. It returns 0 for a group outside the PID namespace, which
    // is not this process's group.
    if unsafe { libc::getpgrp() } == getpid().as_raw_nonzero().get() {
        let _ = kill_process_group(getpid(), Signal::KILL);
    }
    let _ = kill_process(getpid(), Signal::KILL);
    // This is not reached, because the signal cannot be caught.
    std::process::abort()
}
