//! Ends the worker when its parent is gone, whatever its task is doing.

use std::{
    ffi::OsString,
    io,
    sync::atomic::{AtomicI32, Ordering},
    thread,
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags},
    process::{
        Pid, PidfdFlags, Signal, getpgrp, getpid, getppid, kill_process, kill_process_group, pidfd_open,
    },
};

use crate::os::{ready, signals};

/// How often the parent is looked for when no descriptor can be had.
const WITHOUT_DESCRIPTOR: Duration = Duration::from_millis(100);

/// Watches `parent` on a thread of its own. When it is gone, nobody else removes the directory that it made for us.
pub(super) fn start(parent: u32, directory: Option<OsString>) -> io::Result<()> {
    let end_group = move || {
        if let Some(directory) = &directory {
            let _ = std::fs::remove_dir_all(directory);
        }
        end_group()
    };
    let pid = Pid::from_raw(parent as i32);
    let pidfd = match pid.map(|pid| pidfd_open(pid, PidfdFlags::empty())) {
        Some(Ok(pidfd)) => pidfd,
        Some(Err(rustix::io::Errno::SRCH)) | None => end_group(),
        Some(Err(error)) => return Err(error.into()),
    };
    // Opened first, compared then: a number that was given to another process meanwhile is not our parent's.
    if getppid() != pid {
        end_group();
    }
    let watch = move || {
        let mut watched = Some(pidfd);
        loop {
            match &watched {
                Some(pidfd) => {
                    let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
                    ready::doze(&mut fds, None);
                }
                None => thread::sleep(WITHOUT_DESCRIPTOR),
            }
            // The kernel gives us another parent before it lets the poll return.
            if getppid() != pid {
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
pub(super) fn end_group() -> ! {
    // A task may have put itself into another group, whose other members are none of ours.
    if getpgrp() == getpid() {
        let _ = kill_process_group(getpgrp(), Signal::KILL);
    }
    let _ = kill_process(getpid(), Signal::KILL);
    // Not reached: the signal cannot be caught.
    std::process::abort()
}
