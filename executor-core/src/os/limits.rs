//! Resource limits for a process.

use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};

/// Resource limits for a [`Process`](crate::Process). The system refuses what exceeds a limit, or
/// ends the process.
///
/// The limits are those of the kernel (`setrlimit`). They are set in the child before its body
/// begins, and processes that the body starts inherit them. A limit that is not set stays as it is
/// in the parent. Limits can only be lowered. Memory and processor time are hard limits; the body
/// can raise the other two again, up to the parent's limit.
///
/// ```
/// use executor::Limits;
/// use std::time::Duration;
///
/// let limits = Limits::default().memory(512 << 20).cpu_time(Duration::from_secs(10)).open_files(64);
/// # let _ = limits;
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    memory: Option<u64>,
    cpu_time: Option<Duration>,
    open_files: Option<u64>,
    file_size: Option<u64>,
}

impl Limits {
    /// Maximum private memory, in bytes (`RLIMIT_DATA`): heap, thread stacks and private mappings.
    /// A larger allocation fails. In Rust, that ends the process by `SIGABRT`.
    pub fn memory(mut self, bytes: u64) -> Self {
        self.memory = Some(bytes);
        self
    }

    /// Maximum processor time, rounded up to whole seconds (`RLIMIT_CPU`). `SIGXCPU` ends a process
    /// that uses more.
    pub fn cpu_time(mut self, time: Duration) -> Self {
        self.cpu_time = Some(time);
        self
    }

    /// Exclusive upper bound for descriptor numbers (`RLIMIT_NOFILE`).
    pub fn open_files(mut self, count: u64) -> Self {
        self.open_files = Some(count);
        self
    }

    /// Maximum size of a file that the process writes, in bytes (`RLIMIT_FSIZE`). `SIGXFSZ` ends a
    /// process that exceeds it. Shared memory is an exception: the limit also applies to it, but
    /// exceeding it is an error instead.
    pub fn file_size(mut self, bytes: u64) -> Self {
        self.file_size = Some(bytes);
        self
    }

    /// Removes the limits that could stop a large result from being sent. Such a result is sent in
    /// an anonymous file, which needs a descriptor and has a size.
    pub(crate) fn lift(&self) {
        for (resource, limit) in
            [(Resource::Nofile, self.open_files), (Resource::Fsize, self.file_size)]
        {
            if limit.is_some() {
                let maximum = getrlimit(resource).maximum;
                // If this is refused, the result may not be sent, and the report says so.
                let _ = setrlimit(resource, Rlimit { current: maximum, maximum });
            }
        }
    }

    /// Applies the limits to this process.
    pub(crate) fn adopt(&self) -> Result<(), String> {
        let seconds = self.cpu_time.map(|time| time.as_secs() + u64::from(time.subsec_nanos() > 0));
        for (resource, what, limit) in [
            (Resource::Data, "memory", self.memory),
            (Resource::Cpu, "cpu_time", seconds),
            (Resource::Nofile, "open_files", self.open_files),
            (Resource::Fsize, "file_size", self.file_size),
        ] {
            let Some(limit) = limit else { continue };
            let maximum = getrlimit(resource).maximum;
            // A process at its hard limit of processor time is killed even if it handles SIGXCPU.
            // So the hard limit is a second longer, to give the handler time.
            let hard = match resource {
                Resource::Cpu => limit.saturating_add(1),
                Resource::Data => limit,
                // `lift` needs to raise these two again, so their hard limit stays.
                _ => maximum.unwrap_or(u64::MAX),
            };
            let maximum = match maximum.unwrap_or(u64::MAX).min(hard) {
                u64::MAX => None,
                maximum => Some(maximum),
            };
            setrlimit(resource, Rlimit { current: Some(limit), maximum })
                .map_err(|error| format!("the limit `{what}` of {limit} was refused: {error}"))?;
        }
        Ok(())
    }
}
