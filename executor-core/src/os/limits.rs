//! Resource limits for a process.

use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};

/// What a [`Process`](crate::Process) may use; the system refuses more, or ends it.
///
/// Limits are the kernel's (`setrlimit`), set in the child before its body begins, and inherited by what the body starts.
/// What is not set stays as it is in the parent. They can only be lowered. Memory and processor time are so for good; the
/// body itself could raise the other two up to what the parent had.
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
    /// Private memory, in bytes (`RLIMIT_DATA`): heap, stacks of threads, private mappings. An allocation beyond it
    /// fails, which in Rust ends the process by `SIGABRT`.
    pub fn memory(mut self, bytes: u64) -> Self {
        self.memory = Some(bytes);
        self
    }

    /// Processor time, rounded up to whole seconds (`RLIMIT_CPU`). The process is ended by `SIGXCPU`.
    pub fn cpu_time(mut self, time: Duration) -> Self {
        self.cpu_time = Some(time);
        self
    }

    /// One more than the highest number of a descriptor (`RLIMIT_NOFILE`).
    pub fn open_files(mut self, count: u64) -> Self {
        self.open_files = Some(count);
        self
    }

    /// Size of a file that is written, in bytes (`RLIMIT_FSIZE`). The process is ended by `SIGXFSZ`, but for shared memory: there
    /// the limit holds too, and what would be longer is an error.
    pub fn file_size(mut self, bytes: u64) -> Self {
        self.file_size = Some(bytes);
        self
    }

    /// Takes back those that a large result would not get out under: it goes through a file without a name, which has a
    /// descriptor and a size.
    pub(crate) fn lift(&self) {
        for (resource, limit) in [(Resource::Nofile, self.open_files), (Resource::Fsize, self.file_size)] {
            if limit.is_some() {
                let maximum = getrlimit(resource).maximum;
                // Refused: then the result does not get out, and the report says so.
                let _ = setrlimit(resource, Rlimit { current: maximum, maximum });
            }
        }
    }

    /// Makes them this process's.
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
            // The hard limit of processor time ends a process that handles SIGXCPU; a second of grace lets it.
            let hard = match resource {
                Resource::Cpu => limit.saturating_add(1),
                Resource::Data => limit,
                // See `lift`.
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
