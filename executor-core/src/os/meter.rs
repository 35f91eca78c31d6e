//! What this process uses between two moments.

use std::{fs, io::Write};

use super::{clock, private_memory::PrivateMemory};

/// What a process has used.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Used {
    pub(crate) began_nanos: u64,
    pub(crate) ended_nanos: u64,
    pub(crate) user_micros: u64,
    pub(crate) system_micros: u64,
    pub(crate) minor_faults: u64,
    pub(crate) major_faults: u64,
    /// The highest resident memory in between, in bytes. 0 if the system does not tell.
    pub(crate) peak_memory: u64,
    /// The private memory at the end, in bytes. 0 if the system does not tell.
    pub(crate) private_memory: u64,
}

/// The first of the two moments.
pub(crate) struct Meter {
    began_nanos: u64,
    usage: libc::rusage,
    /// Whether the system's record of the highest memory began anew.
    resets_peak: bool,
}

impl Meter {
    /// Begins to measure. It takes some ten microseconds, most of them for the memory.
    pub(crate) fn begin() -> Self {
        // The number 5 resets the peak of the resident memory (`VmHWM`), and nothing else. It needs
        // no privileges, but the kernel may be built without it. `ru_maxrss` would not do: after a
        // `posix_spawn` it contains the memory of the parent.
        let file = fs::OpenOptions::new().write(true).open("/proc/self/clear_refs");
        let resets_peak = file.and_then(|mut file| file.write_all(b"5")).is_ok();
        Meter { began_nanos: clock::now_nanos(), usage: usage(), resets_peak }
    }

    /// Returns what this process has used since then. That includes all its threads.
    pub(crate) fn end(&self) -> Used {
        let (ended_nanos, now, before) = (clock::now_nanos(), usage(), &self.usage);
        let between = |now: i64, before: i64| now.saturating_sub(before).max(0).unsigned_abs();
        let micros = |time: libc::timeval| time.tv_sec * 1_000_000 + time.tv_usec;
        let peak_memory = if self.resets_peak { peak().unwrap_or(0) } else { 0 };
        Used {
            began_nanos: self.began_nanos,
            ended_nanos,
            user_micros: between(micros(now.ru_utime), micros(before.ru_utime)),
            system_micros: between(micros(now.ru_stime), micros(before.ru_stime)),
            minor_faults: between(now.ru_minflt, before.ru_minflt),
            major_faults: between(now.ru_majflt, before.ru_majflt),
            peak_memory,
            private_memory: PrivateMemory::open()
                .ok()
                .and_then(|memory| memory.in_use())
                .unwrap_or(0),
        }
    }
}

fn usage() -> libc::rusage {
    // SAFETY: an all-zero `rusage` is a valid one.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: the out-pointer is valid. If the call fails, which it does not, all is 0.
    unsafe { libc::getrusage(libc::RUSAGE_SELF, &mut usage) };
    usage
}

fn peak() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}
