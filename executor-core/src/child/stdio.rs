//! The standard streams of a child, as its user asks for them.

use std::{
    fs::{File, OpenOptions},
    io,
    os::fd::{BorrowedFd, OwnedFd},
};

use crate::os::process::above_stdio;

/// The target of a process's standard input, output or error. Also that of a pool's workers, which
/// cannot have [pipes](Self::piped).
///
/// ```
/// use executor::{Process, Stdio, prelude::*};
/// use std::io::Read;
///
/// #[task]
/// fn speak() { println!("a word") }
///
/// #[executor::main]
/// fn main() -> Result<(), Box<dyn std::error::Error>> {
///     let child = Process::new(speak::task()).stdout(Stdio::piped()).start()?;
///     let mut said = String::new();
///     std::fs::File::from(child.take_stdout().unwrap()).read_to_string(&mut said)?;
///     assert_eq!(said, "a word\n");
///     child.join()?;
///     Ok(())
/// }
/// ```
#[derive(Debug)]
pub struct Stdio(pub(crate) StreamTarget);

/// Where a standard stream of a process leads.
#[derive(Debug)]
pub(crate) enum StreamTarget {
    Null,
    Inherit,
    Piped,
    Given(OwnedFd),
}

impl Stdio {
    /// Discards output. Input is empty.
    pub fn null() -> Self {
        Stdio(StreamTarget::Null)
    }

    /// Uses the stream of this process.
    pub fn inherit() -> Self {
        Stdio(StreamTarget::Inherit)
    }

    /// Makes a pipe, whose other end is kept by the [`Child`](crate::Child). A pipe holds 64 KiB.
    /// So read all of the output before you call [`join`](crate::Child::join): a child whose pipe
    /// is full waits for its reader, and never ends.
    pub fn piped() -> Self {
        Stdio(StreamTarget::Piped)
    }
}

impl From<File> for Stdio {
    fn from(file: File) -> Self {
        Stdio(StreamTarget::Given(file.into()))
    }
}

impl From<OwnedFd> for Stdio {
    fn from(descriptor: OwnedFd) -> Self {
        Stdio(StreamTarget::Given(descriptor))
    }
}

/// Opens `/dev/null`.
pub(crate) fn null() -> io::Result<OwnedFd> {
    above_stdio(OpenOptions::new().read(true).write(true).open("/dev/null")?.into())
}

/// Duplicates a descriptor, onto a number that is not one of the standard streams.
pub(crate) fn duplicate(stream: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    Ok(rustix::io::fcntl_dupfd_cloexec(stream, 3)?)
}
