//! Children: started without `fork`'s costs, watched and reaped by pidfd, signalled as a group.

use std::{
    ffi::OsStr,
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::process::CommandExt,
    },
    process::{Command, Stdio},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, kill_process_group, pidfd_open, waitid},
};

use super::socket::retry;
use crate::error::ExitStatus;

/// A child process that leads its own process group.
#[derive(Debug)]
pub(crate) struct Child {
    pid: Pid,
    /// `None` if the child had been reaped by others before it could be opened.
    pidfd: Option<OwnedFd>,
}

impl Child {
    /// Starts the program of this process again, with `stdin` as its descriptor 0.
    ///
    /// `/proc/self/exe` itself, not what it points at: it still works when the file was replaced or removed. No
    /// `pre_exec`, so that std takes its `posix_spawn` path, whose cost does not grow with this process's memory.
    pub(crate) fn start_self(
        marker: &str,
        stdin: OwnedFd,
        envs: &[(std::ffi::OsString, std::ffi::OsString)],
    ) -> io::Result<Child> {
        let mut command = Command::new("/proc/self/exe");
        let name = std::env::args_os().next();
        command
            .arg0(name.as_deref().unwrap_or(OsStr::new("executor-worker")))
            .arg(marker)
            .envs(envs.iter().map(|(key, value)| (key, value)))
            .stdin(Stdio::from(stdin))
            .process_group(0);
        let mut child = command.spawn()?;
        let pid = Pid::from_child(&child);
        match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => Ok(Child { pid, pidfd: Some(pidfd) }),
            // Somebody has reaped the child already: SIGCHLD is ignored, or others wait for any child.
            Err(Errno::SRCH) => Ok(Child { pid, pidfd: None }),
            // No descriptor is left. A child that cannot be watched is none: it must not go on, nor stay as a zombie.
            Err(error) => {
                let _ = kill_process_group(pid, Signal::KILL);
                let _ = child.wait();
                Err(error.into())
            }
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get() as u32
    }

    /// Readable once the child has ended; `None` means that it has ended.
    pub(crate) fn pidfd(&self) -> Option<BorrowedFd<'_>> {
        self.pidfd.as_ref().map(AsFd::as_fd)
    }

    /// Whether the child has ended.
    pub(crate) fn has_ended(&self) -> bool {
        let Some(pidfd) = self.pidfd() else { return true };
        let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
        matches!(poll(&mut fds, Some(&Timespec::default())), Ok(1..))
    }

    /// Sends a signal to the child and all programs it started, unless they left its group.
    ///
    /// Not after [`reap`](Self::reap): the number may then be somebody else's.
    pub(crate) fn signal_group(&self, signal: Signal) {
        if kill_process_group(self.pid, signal).is_err()
            && let Some(pidfd) = self.pidfd()
        {
            let _ = rustix::process::pidfd_send_signal(pidfd, signal);
        }
    }

    /// Takes the exit status of a child that has ended. What is left of its group is killed first: while the child is
    /// not reaped, nobody else can have its number.
    pub(crate) fn reap(&self) -> ExitStatus {
        let Some(pidfd) = self.pidfd() else { return ExitStatus::Unknown };
        let ask = |options| retry(|| waitid(WaitId::PidFd(pidfd), options | WaitIdOptions::NOHANG));
        // Is it still ours to reap? ECHILD: somebody else has done so, and the number may be anybody's.
        if !matches!(ask(WaitIdOptions::EXITED | WaitIdOptions::NOWAIT), Ok(Some(_))) {
            return ExitStatus::Unknown;
        }
        let _ = kill_process_group(self.pid, Signal::KILL);
        match ask(WaitIdOptions::EXITED) {
            Ok(Some(status)) => match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => ExitStatus::Exited(code),
                (None, Some(signal)) => ExitStatus::Signaled(signal),
                (None, None) => ExitStatus::Unknown,
            },
            Ok(None) | Err(_) => ExitStatus::Unknown,
        }
    }

    /// Kills the child and waits for its end, at most `limit`; for the case that nobody else is left to do so.
    pub(crate) fn kill_and_reap(&self, limit: std::time::Duration) {
        self.signal_group(Signal::KILL);
        if let Some(pidfd) = self.pidfd() {
            let timeout =
                rustix::event::Timespec { tv_sec: limit.as_secs() as _, tv_nsec: limit.subsec_nanos() as _ };
            let mut fds = [rustix::event::PollFd::from_borrowed_fd(pidfd, rustix::event::PollFlags::IN)];
            let _ = retry(|| rustix::event::poll(&mut fds, Some(&timeout)));
        }
        self.reap();
    }
}
