//! How a process ended.

use std::fmt;

/// How a process ended.
///
/// ```
/// use executor::ExitStatus;
///
/// assert_eq!(ExitStatus::Exited(99).to_string(), "exited with code 99");
/// assert_eq!(ExitStatus::Signaled(11).to_string(), "was ended by signal 11 (SIGSEGV)");
/// assert_eq!(ExitStatus::Signaled(11).signal(), Some(11));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ExitStatus {
    /// The process exited by itself, with this code.
    Exited(i32),
    /// This signal ended the process.
    Signaled(i32),
    /// The process has ended, but its status is not known. Either `SIGCHLD` is ignored, or another
    /// part of the program waits for any child and took the status.
    Unknown,
}

impl ExitStatus {
    /// Returns the exit code, if the process exited by itself.
    pub fn code(self) -> Option<i32> {
        match self {
            ExitStatus::Exited(code) => Some(code),
            _ => None,
        }
    }

    /// Returns the signal, if a signal ended the process.
    pub fn signal(self) -> Option<i32> {
        match self {
            ExitStatus::Signaled(signal) => Some(signal),
            _ => None,
        }
    }

    /// Whether the process exited by itself with code 0.
    pub fn success(self) -> bool {
        self == ExitStatus::Exited(0)
    }
}

impl fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            ExitStatus::Exited(code) => write!(f, "exited with code {code}"),
            ExitStatus::Signaled(signal) => {
                write!(f, "was ended by signal {signal} ({})", signal_name(signal))
            }
            ExitStatus::Unknown => f.write_str("ended, status unknown"),
        }
    }
}

fn signal_name(signal: i32) -> &'static str {
    match signal {
        libc::SIGHUP => "SIGHUP",
        libc::SIGINT => "SIGINT",
        libc::SIGQUIT => "SIGQUIT",
        libc::SIGILL => "SIGILL",
        libc::SIGTRAP => "SIGTRAP",
        libc::SIGABRT => "SIGABRT",
        libc::SIGBUS => "SIGBUS",
        libc::SIGFPE => "SIGFPE",
        libc::SIGKILL => "SIGKILL",
        libc::SIGUSR1 => "SIGUSR1",
        libc::SIGSEGV => "SIGSEGV",
        libc::SIGUSR2 => "SIGUSR2",
        libc::SIGPIPE => "SIGPIPE",
        libc::SIGALRM => "SIGALRM",
        libc::SIGTERM => "SIGTERM",
        libc::SIGXCPU => "SIGXCPU",
        libc::SIGXFSZ => "SIGXFSZ",
        libc::SIGSYS => "SIGSYS",
        _ => "unnamed",
    }
}
