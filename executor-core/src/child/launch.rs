//! Launches the children of this process: workers, processes with one task, fork servers.
//!
//! ```text
//!  Launch: identity, role, descriptors ─► Setup ─► written into our end of a pair of sockets
//!
//!    Way::Program  the program, started anew: the other end is its descriptor 0
//!    Way::Copied   a copy that a fork server made: it has the other end, and gets the setup now
//!    Way::Fork     a copy of this process, which continues with the other end
//!
//!  ─► Launched: the child, to be watched and reaped, and our end of its socket
//! ```
//!
//! From there on, all kinds are alike: the child reads its setup, and answers over the same socket.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::Duration,
};

use super::{birth::MARKER, title, watch};
use crate::{
    os::{
        asked::Asked,
        process::{Child, Start, lead_own_group},
        signals::Signals,
        socket,
    },
    wire::{
        attachment::Attachment,
        handshake::{self, Identity, Role, Setup},
    },
};

/// How long a copy made by a fork server may take to exit if its socket does not accept the setup.
/// The copy has closed the socket in that case, usually because it is dying.
const LAST_MOMENT: Duration = Duration::from_secs(1);

/// A child to be launched, with everything it is told.
pub(crate) struct Launch<'a> {
    pub(crate) identity: Identity,
    /// The purpose of the child.
    pub(crate) role: Role,
    /// Descriptors for its role, in the order in which it takes them.
    pub(crate) descriptors: &'a [BorrowedFd<'a>],
    /// Descriptors in the arguments of its task.
    pub(crate) attachments: &'a [Attachment],
}

/// How a child is created.
pub(crate) enum Way<'a> {
    /// The program is started anew.
    Program(Start<'a>),
    /// A fork server has made a copy of itself: [`Server::copy`](super::server::Server::copy).
    Copied(ServerCopy),
    /// This process makes a copy of itself.
    Fork(Fork<'a>),
}

/// Makes a copy of this process. It gets the copy's socket, and our own, which the copy must close.
/// It returns the pid in the parent, and never returns in the copy.
type Fork<'a> = Box<dyn FnOnce(OwnedFd, BorrowedFd<'_>) -> io::Result<u32> + 'a>;

/// A launched child. Its owner has to watch it and reap it.
pub(crate) struct Launched {
    pub(crate) child: Child,
    /// Our end of its socket.
    pub(crate) socket: OwnedFd,
}

/// Why a child was not launched.
pub(crate) struct Refused {
    pub(crate) step: Step,
    pub(crate) error: io::Error,
    /// The child exists nevertheless, but will never get its setup. It must be killed and reaped.
    pub(crate) child: Option<Child>,
}

/// The step that the operating system refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Starting the program, including the setup.
    Start,
    /// Making a pair of sockets.
    Pair,
    /// Sending the setup.
    Tell,
    /// Forking this process.
    Fork,
    /// Watching the child.
    Watch,
}

impl Step {
    /// Returns a refusal that left no child behind.
    fn refused(self) -> impl Fn(io::Error) -> Refused {
        move |error| Refused { step: self, error, child: None }
    }
}

impl Launch<'_> {
    /// Launches the child.
    pub(crate) fn by(self, way: Way<'_>) -> Result<Launched, Refused> {
        let Launch { identity, role, descriptors, attachments } = self;
        // The signal mask of this thread. The pool's starter thread has the mask of the thread that
        // made the pool.
        let setup = Setup {
            parent: std::process::id(),
            identity,
            signals: Signals::of_this_thread(),
            role,
        };
        let tell = |socket: &OwnedFd| {
            handshake::send(socket, &setup, descriptors).asked("the setup of a process")?;
            handshake::send_attachments(socket, attachments).asked("descriptors for a process")
        };
        match way {
            Way::Program(start) => {
                let line = title::line(&setup.identity, &setup.role);
                // Send the setup first, so that it is there when the child looks. It fits into an
                // empty socket.
                let (child, socket) =
                    Child::start(start, line, MARKER, tell).map_err(Step::Start.refused())?;
                Ok(Launched { child, socket })
            }
            Way::Copied(copy) => {
                let (pid, socket) = copy.take();
                let child = Child::adopt(pid).map_err(Step::Watch.refused())?;
                // Send the setup only after the copy exists: if the server dies, no other copy
                // reads the same setup. If the copy has died meanwhile, its exit status will say
                // so; its socket was closed a moment before.
                match tell(&socket) {
                    Err(error) if !child.ends_within(LAST_MOMENT) => {
                        Err(Refused { step: Step::Tell, error, child: Some(child) })
                    }
                    _ => Ok(Launched { child, socket }),
                }
            }
            Way::Fork(fork) => {
                let (socket, theirs) = socket::pair().map_err(Step::Pair.refused())?;
                tell(&socket).map_err(Step::Tell.refused())?;
                let pid = fork(theirs, socket.as_fd()).map_err(Step::Fork.refused())?;
                // The child does so itself. But a process that ends the child may be faster, and
                // must reach everything that the child leads.
                lead_own_group(pid);
                let child = Child::adopt(pid).map_err(Step::Watch.refused())?;
                Ok(Launched { child, socket })
            }
        }
    }
}

/// A copy that a fork server has made and that waits for its setup. It is killed and reaped if this
/// is dropped: it is a child of this process, and nobody else knows it yet.
pub(crate) struct ServerCopy {
    pid: u32,
    /// `None` once the copy is launched.
    socket: Option<OwnedFd>,
}

impl ServerCopy {
    pub(super) fn new(pid: u32, socket: OwnedFd) -> Self {
        ServerCopy { pid, socket: Some(socket) }
    }

    fn take(mut self) -> (u32, OwnedFd) {
        (self.pid, self.socket.take().expect("it is taken once"))
    }
}

impl Drop for ServerCopy {
    fn drop(&mut self) {
        if self.socket.take().is_some()
            // If this fails, it has killed and reaped the copy itself.
            && let Ok(child) = Child::adopt(self.pid)
        {
            watch::abandon(&child, LAST_MOMENT);
        }
    }
}

#[cfg(all(test, not(any(executor_loom, executor_shuttle))))]
mod tests {
    use std::{os::unix::process::CommandExt, process::Command};

    use super::*;

    #[test]
    #[allow(clippy::zombie_processes, reason = "reaping it is what is tested")]
    fn a_copy_that_is_not_launched_is_reaped() {
        let (ours, _theirs) = socket::pair().unwrap();
        let copy = Command::new("sleep").arg("600").process_group(0).spawn().unwrap();
        let process = format!("/proc/{}", copy.id());
        assert!(std::fs::exists(&process).unwrap());
        drop(ServerCopy::new(copy.id(), ours));
        assert!(!std::fs::exists(&process).unwrap(), "neither a process nor a zombie is left");
    }
}
