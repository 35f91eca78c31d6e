//! The standard streams of a child that is being started.

use std::{
    io,
    os::fd::{BorrowedFd, OwnedFd},
};

use crate::{
    child::stdio::{Stdio, StreamTarget, duplicate, null},
    os::process::above_stdio,
};

/// One standard stream of a child: the child's end, and this process's end of a pipe.
struct Stream {
    theirs: Option<OwnedFd>,
    ours: Option<OwnedFd>,
}

impl Stream {
    fn open(target: Stdio, input: bool) -> io::Result<Self> {
        let (theirs, ours) = match target.0 {
            // The child's input is empty by default.
            StreamTarget::Null if input => (None, None),
            StreamTarget::Null => (Some(null()?), None),
            StreamTarget::Inherit if input => (Some(duplicate(rustix::stdio::stdin())?), None),
            StreamTarget::Inherit => (None, None),
            StreamTarget::Given(descriptor) => (Some(descriptor), None),
            StreamTarget::Piped => {
                let (read, write) = io::pipe()?;
                let (read, write) = (above_stdio(read.into())?, above_stdio(write.into())?);
                if input { (Some(read), Some(write)) } else { (Some(write), Some(read)) }
            }
        };
        Ok(Stream { theirs, ours })
    }
}

/// Standard input, output and error of a child.
pub(super) struct Streams {
    pub(super) has_stdin: bool,
    /// Descriptors that are sent with the setup, because no child inherits them: the child's input,
    /// and for a copy also its output and error.
    pub(super) told: Vec<OwnedFd>,
    /// Descriptors that a newly started program inherits in place of this process's output and
    /// error.
    pub(super) inherited: [Option<OwnedFd>; 2],
    /// This process's ends of the pipes.
    pub(super) ours: [Option<OwnedFd>; 3],
}

impl Streams {
    pub(super) fn open(
        stdin: Stdio,
        stdout: Stdio,
        stderr: Stdio,
        copied: bool,
    ) -> io::Result<Self> {
        let has_stdin = !matches!(stdin.0, StreamTarget::Null);
        let stdin = Stream::open(stdin, true)?;
        let stdout = Stream::open(stdout, false)?;
        let stderr = Stream::open(stderr, false)?;
        let mut told = Vec::from_iter(stdin.theirs);
        let mut inherited = [stdout.theirs, stderr.theirs];
        if copied {
            let [stdout, stderr] = inherited.each_mut().map(Option::take);
            told.push(stdout.map_or_else(|| own(rustix::stdio::stdout()), Ok)?);
            told.push(stderr.map_or_else(|| own(rustix::stdio::stderr()), Ok)?);
        }
        Ok(Streams { has_stdin, told, inherited, ours: [stdin.ours, stdout.ours, stderr.ours] })
    }
}

/// Duplicates this process's output or error. If this process has closed its own, opens
/// `/dev/null`.
fn own(stream: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    match duplicate(stream) {
        Err(error) if error.raw_os_error() == Some(libc::EBADF) => null(),
        other => other,
    }
}
