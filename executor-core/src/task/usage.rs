//! What a task has cost.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use crate::{os::clock, wire::measured::Measured};

/// What a task has cost: see [`Task::measure_usage`](crate::Task::measure_usage).
///
/// Processor time, page faults and memory are those of the whole worker while it ran the task:
/// threads that earlier tasks have left, and the watcher of the worker, count as well. Processes
/// that the task has started do not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Usage {
    /// The time from the submission until a worker began the task. For a later
    /// [attempt](crate::Task::retries), it includes the attempts before and the delays.
    pub queued: Duration,
    /// The time that the worker needed for the call: to decode the arguments, run the function, and
    /// encode the result.
    pub running: Duration,
    /// The part of [`running`](field@Self::running) in which the worker has decoded the arguments.
    /// If they could not be decoded, it is all of it.
    pub decoding: Duration,
    /// The processor time used in user mode.
    pub cpu_user: Duration,
    /// The processor time used in the kernel.
    pub cpu_system: Duration,
    /// The highest resident memory of the worker while the task ran, in bytes. It includes shared
    /// memory and what the worker had before. In a copy of a
    /// [fork server](crate::ProcessPoolBuilder::preload), that is also all that it shares with the
    /// server and the other workers, so the sum over all workers is more than they use. `None` if
    /// the system cannot tell: it is read from `/proc`, and the kernel must be built with
    /// `CONFIG_PROC_PAGE_MONITOR`.
    pub peak_memory: Option<u64>,
    /// The private memory that the worker had at the end, in bytes, which is what
    /// [`worker_memory_limit`](crate::ProcessPoolBuilder::worker_memory_limit) limits. But in a
    /// copy of a fork server it includes what the server had, which that limit leaves out: the
    /// kernel counts pages that are shared by a fork as private. `None` without `/proc`.
    pub private_memory: Option<u64>,
    /// Page faults that needed no disk: memory that was touched for the first time.
    pub minor_faults: u64,
    /// Page faults that needed a disk.
    pub major_faults: u64,
    /// Bytes of the encoded arguments.
    pub bytes_in: u64,
    /// Bytes of the encoded result, or of its error.
    pub bytes_out: u64,
    /// The process id of the worker.
    pub worker: u32,
    /// Which attempt this was. The first one is 1.
    pub attempt: u32,
}

impl Usage {
    /// Returns the usage of a task that was submitted at `submitted` (nanoseconds of the clock).
    pub(crate) fn new(submitted: u64, measured: &Measured) -> Self {
        // A worker may report any number.
        let between = |from: u64, to: u64| Duration::from_nanos(to.saturating_sub(from));
        let known = |bytes: u64| (bytes > 0).then_some(bytes);
        Usage {
            queued: between(submitted, measured.began_nanos),
            running: between(measured.began_nanos, measured.ended_nanos),
            // A worker may report any number, but no part is longer than the whole.
            decoding: between(
                measured.began_nanos,
                measured.decoded_nanos.min(measured.ended_nanos),
            ),
            cpu_user: Duration::from_micros(measured.user_micros),
            cpu_system: Duration::from_micros(measured.system_micros),
            peak_memory: known(measured.peak_memory),
            private_memory: known(measured.private_memory),
            minor_faults: measured.minor_faults,
            major_faults: measured.major_faults,
            ..Usage::default()
        }
    }
}

/// Where the usage of one submitted task is put.
#[derive(Debug)]
pub(crate) struct UsageSlot {
    submitted_nanos: u64,
    usage: Mutex<Option<Usage>>,
}

impl UsageSlot {
    /// Makes the slot of a task that is submitted now.
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(UsageSlot { submitted_nanos: clock::now_nanos(), usage: Mutex::default() })
    }

    pub(crate) fn submitted_nanos(&self) -> u64 {
        self.submitted_nanos
    }

    /// Puts the usage of an attempt here, in place of that of the attempt before.
    pub(crate) fn put(&self, usage: Usage) {
        *self.usage.lock().unwrap_or_else(PoisonError::into_inner) = Some(usage);
    }

    pub(crate) fn get(&self) -> Option<Usage> {
        *self.usage.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
