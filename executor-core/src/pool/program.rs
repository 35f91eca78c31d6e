//! How a pool's workers are started, as its user asks for it.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    time::Duration,
};

use super::place::Variable;
use crate::{
    child::{environment::Changes, server::Preload, stdio::duplicate},
    os::process::Start,
};

/// The program that the workers run, and what it inherits.
#[derive(Debug, Default)]
pub(crate) struct Program {
    /// `None` means the program of this process.
    pub(crate) executable: Option<PathBuf>,
    pub(crate) environment: Changes,
    /// `None` means the directory of this process.
    pub(crate) directory: Option<PathBuf>,
    /// The standard input of each worker. `None` means an empty input.
    pub(crate) stdin: Option<OwnedFd>,
    /// `None` means the output of this process.
    pub(crate) stdout: Option<OwnedFd>,
    /// `None` means the error output of this process.
    pub(crate) stderr: Option<OwnedFd>,
}

impl Program {
    /// Returns how to start it once, with these changes of the environment.
    pub(super) fn start<'a>(&'a self, environment: &'a [Variable]) -> io::Result<Start<'a>> {
        let copy = |stream: &Option<OwnedFd>| {
            stream.as_ref().map(|stream| duplicate(stream.as_fd())).transpose()
        };
        Ok(Start {
            executable: self.executable.as_deref(),
            stdout: copy(&self.stdout)?,
            stderr: copy(&self.stderr)?,
            environment,
            directory: self.directory.as_deref(),
        })
    }
}

/// How a pool's workers are started.
#[derive(Debug, Default)]
pub(crate) struct StartOptions {
    pub(crate) program: Program,
    /// Whether workers write a report if they crash.
    pub(crate) crash_report: bool,
    /// The tasks of `preload`, if the workers are copies of a fork server.
    pub(crate) fork_server: Option<Vec<Preload>>,
    /// How long the tasks of `preload` may take.
    pub(crate) preload_timeout: Duration,
    /// With isolation of tasks, the number of workers that are kept ready beside those that run.
    pub(crate) spares: Option<usize>,
}

impl StartOptions {
    /// Returns how long it may take until the process of a worker exists, in addition to the time
    /// that its start may take.
    pub(super) fn launch_timeout(&self, start_timeout: Duration) -> Duration {
        if self.fork_server.is_none() {
            return Duration::ZERO;
        }
        // The server is started and asked once more if it has died. This must be longer than what
        // the starter thread waits for, which says more about the reason.
        self.preload_timeout.saturating_add(start_timeout).saturating_mul(2)
    }
}
