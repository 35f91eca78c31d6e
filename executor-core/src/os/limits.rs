//! Resource limits for a process.

use std::{io, time::Duration};

use rustix::process::{Resource, Rlimit, setrlimit};
use serde::{Deserialize, Serialize};

use super::process::processor_time_of_process;

/// The limit on open files that most systems set, for decisions that must be made even if the
/// system does not tell the limit. A higher value uses up descriptors that may not be there. With a
/// lower value, less is sent or kept at the same time.
pub(crate) const OPEN_FILES_USUAL: u64 = 1024;

/// Returns a limit of this process. It fails if the system does not tell, as in a sandbox that
/// forbids the question.
///
/// rustix's `getrlimit` cannot fail. If the system refuses the call, it panics, and in a release
/// build it returns whatever is in memory.
pub(crate) fn limit_of(resource: Resource) -> io::Result<Rlimit> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the call fills the given structure.
    #[expect(clippy::disallowed_methods, reason = "the place for it")]
    let asked = unsafe { libc::getrlimit(resource as libc::c_uint as _, &raw mut limit) };
    if asked != 0 {
        return Err(io::Error::last_os_error());
    }
    let bytes = |limit| (limit != libc::RLIM_INFINITY).then_some(limit);
    Ok(Rlimit { current: bytes(limit.rlim_cur), maximum: bytes(limit.rlim_max) })
}

/// Returns how many files this process may have open: numbers of descriptors are below this. If the
/// system does not tell, returns the [usual](OPEN_FILES_USUAL) limit.
pub(crate) fn open_files() -> u64 {
    match limit_of(Resource::Nofile) {
        Ok(Rlimit { current, .. }) => current.unwrap_or(u64::MAX),
        Err(_) => OPEN_FILES_USUAL,
    }
}

/// Resource limits for a [`Process`](crate::Process), or for each worker of an executor
/// ([`limits`](crate::ProcessPoolBuilder::limits)). The system refuses what exceeds a limit, or
/// ends the process.
///
/// The limits are those of the kernel (`setrlimit`). They are set in the child before its body or
/// its first task begins, and processes that it starts inherit them. A limit that is not set stays
/// as it is in the parent. Limits can only be lowered. Memory is a hard limit, as is the processor
/// time of a `Process`; the child can raise the others again, up to the parent's limit.
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
    ///
    /// In a worker of an executor, the limit is one for each task, for the initializer, and for the
    /// finalizer: time that earlier tasks have used does not count. All threads of the worker
    /// count. The system counts in whole seconds, so a task may get up to one second more.
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

    /// Returns what is wrong with these limits for a worker, if anything is.
    pub(crate) fn check(&self) -> Result<(), &'static str> {
        if self.memory == Some(0) {
            return Err("the limit `memory` must be above 0");
        }
        if self.cpu_time == Some(Duration::ZERO) {
            return Err("the limit `cpu_time` must be above 0");
        }
        if self.open_files == Some(0) {
            return Err("the limit `open_files` must be above 0");
        }
        Ok(())
    }

    /// Returns the limit of memory, in bytes.
    pub(crate) fn of_memory(&self) -> Option<u64> {
        self.memory
    }

    /// Returns the limit of processor time.
    pub(crate) fn of_cpu_time(&self) -> Option<Duration> {
        self.cpu_time
    }

    /// Applies the limits to this process, which is a worker. Returns the limit that has to be set
    /// for each task.
    pub(crate) fn adopt_in_worker(&self) -> Result<Option<CpuTime>, String> {
        Limits { cpu_time: None, ..self.clone() }.adopt()?;
        let Some(limit) = self.cpu_time else { return Ok(None) };
        let cpu_time = CpuTime { seconds: whole_seconds(limit) };
        // What is refused here would be refused for each task.
        cpu_time.set().map_err(|error| refused("cpu_time", cpu_time.seconds, &error))?;
        Ok(Some(cpu_time))
    }

    /// Removes the limits that could stop a large result from being sent. Such a result is sent in
    /// an anonymous file, which needs a descriptor and has a size.
    pub(crate) fn lift(&self) {
        for (resource, limit) in
            [(Resource::Nofile, self.open_files), (Resource::Fsize, self.file_size)]
        {
            // If this is refused, the result may not be sent, and the report says so.
            if limit.is_some()
                && let Ok(Rlimit { maximum, .. }) = limit_of(resource)
            {
                let _ = setrlimit(resource, Rlimit { current: maximum, maximum });
            }
        }
    }

    /// Applies the limits to this process.
    pub(crate) fn adopt(&self) -> Result<(), String> {
        let seconds = self.cpu_time.map(whole_seconds);
        for (resource, what, limit) in [
            (Resource::Data, "memory", self.memory),
            (Resource::Cpu, "cpu_time", seconds),
            (Resource::Nofile, "open_files", self.open_files),
            (Resource::Fsize, "file_size", self.file_size),
        ] {
            let Some(limit) = limit else { continue };
            let refused = |error: io::Error| refused(what, limit, &error);
            let maximum = limit_of(resource).map_err(refused)?.maximum;
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
                .map_err(|error| refused(error.into()))?;
        }
        Ok(())
    }
}

fn refused(what: &str, limit: u64, error: &io::Error) -> String {
    format!("the limit `{what}` of {limit} was refused: {error}")
}

fn whole_seconds(time: Duration) -> u64 {
    time.as_secs().saturating_add(u64::from(time.subsec_nanos() > 0))
}

/// The processor time that each task of a worker may use.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CpuTime {
    seconds: u64,
}

impl CpuTime {
    /// Allows this process as much processor time from now on. Only the limit at which SIGXCPU is
    /// sent moves: one at which the system kills the process could not be raised again.
    pub(crate) fn begin(self) {
        // If this is refused, the limit of an earlier task stays, which is lower.
        let _ = self.set();
    }

    fn set(self) -> io::Result<()> {
        // The second that has begun counts as used up.
        let used = processor_time_of_process()?.as_secs().saturating_add(1);
        let maximum = limit_of(Resource::Cpu)?.maximum;
        let allowed = used.saturating_add(self.seconds);
        let current = Some(maximum.map_or(allowed, |maximum| maximum.min(allowed)));
        Ok(setrlimit(Resource::Cpu, Rlimit { current, maximum })?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_that_nothing_can_keep_are_told_apart() {
        let limits = Limits::default;
        assert_eq!(limits().check(), Ok(()));
        assert_eq!(limits().file_size(0).memory(1).open_files(1).check(), Ok(()));
        assert!(limits().memory(0).check().is_err());
        assert!(limits().cpu_time(Duration::ZERO).check().is_err());
        assert!(limits().open_files(0).check().is_err());
        assert_eq!(whole_seconds(Duration::from_millis(1)), 1);
        assert_eq!(whole_seconds(Duration::from_secs(3)), 3);
        assert_eq!(whole_seconds(Duration::MAX), u64::MAX);
    }
}
