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
    process::{
        Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, kill_process, kill_process_group, pidfd_open, waitid,
    },
};

use super::socket::retry;
use crate::error::ExitStatus;

/// A child process that leads its own process group.
#[derive(Debug)]
pub(crate) struct Child {
    pid: Pid,
    /// `None` only if the child had been reaped by others before we could open it.
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
    pub(crate) fn signal_group(&self, signal: Signal) {
        // ESRCH: all gone already. The child is not reaped before `reap`, so the number cannot mean another group.
        if kill_process_group(self.pid, signal).is_err() {
            let _ = kill_process(self.pid, signal);
        }
    }

    /// Takes the exit status of a child that has ended. What is left of its group is killed first: while the child
    /// is not reaped, nobody else can have its number.
    pub(crate) fn reap(&self) -> ExitStatus {
        let _ = kill_process_group(self.pid, Signal::KILL);
        let Some(pidfd) = self.pidfd() else { return ExitStatus::Unknown };
        match retry(|| waitid(WaitId::PidFd(pidfd), WaitIdOptions::EXITED)) {
            Ok(Some(status)) => match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => ExitStatus::Exited(code),
                (None, Some(signal)) => ExitStatus::Signaled(signal),
                (None, None) => ExitStatus::Unknown,
            },
            // ECHILD: somebody else has reaped it.
            Ok(None) | Err(_) => ExitStatus::Unknown,
        }
    }
}
