//! The options that limit what a worker may use.

use std::sync::Arc;

use super::ProcessPoolBuilder;
use crate::{
    error::BuildError,
    os::{
        cgroup::{CgroupLimits, ControlGroup},
        limits::Limits,
    },
    wire::handshake::Restraints,
};

impl ProcessPoolBuilder {
    /// Limits the private memory of each worker, in bytes: heap, stacks, and private mappings that
    /// were written to (`RssAnon`). By default there is no limit.
    ///
    /// A worker that has more ends, with the programs that its tasks have started. The task that it
    /// ran fails with [`TaskError::MemoryLimit`](crate::TaskError::MemoryLimit), tasks that were
    /// sent ahead to it go to other workers, and it is replaced. If its initializer takes it above
    /// the limit, the executor is broken, with that reason. A limit that is too low for a worker
    /// without a task also breaks the executor.
    ///
    /// - **When.** The memory is read at most 50 ms apart while a task runs, more often near the
    ///   limit, and at the end of each task that took 20 µs or longer. So a task that leaves the
    ///   worker above the limit always fails. One that is above it for a few milliseconds may not
    ///   be noticed, and one that fills memory quickly gets a little beyond the limit. Initializers
    ///   and finalizers count as tasks here. While none of these runs, the memory is read every
    ///   second if tasks have left threads, and otherwise not at all. A worker that is found above
    ///   the limit then is replaced, and no task fails.
    /// - **Whose.** The memory is that of the worker. What earlier tasks have left in it counts,
    ///   and the task that takes it above the limit fails. Let
    ///   [`max_rss_growth`](Self::max_rss_growth) replace workers in time if tasks leak.
    /// - **Copies of a fork server.** With
    ///   [`StartMethod::ForkServer`](crate::StartMethod::ForkServer), what a worker has when it is
    ///   copied does not count, because all workers share it. It does not count either when a task
    ///   writes to it, although the worker then has a page of its own instead.
    /// - **What does not count.** Shared memory ([`SharedBytes`](crate::SharedBytes) and the like,
    ///   and large arguments and results on their way), files that are mapped, and the memory of
    ///   processes that a task starts.
    /// - **Allocations that are too large.** An allocation that would take the worker more than
    ///   512 MiB beyond the limit is refused (`RLIMIT_DATA`). In Rust that ends the worker, and the
    ///   task fails with the same error. Programs that a task starts inherit this limit.
    ///
    /// The limit works without privileges and without control groups, but needs `/proc`. It is for
    /// tasks that need too much by mistake, not for those that try to evade it.
    ///
    /// ```
    /// # use executor::prelude::*;
    /// #[task]
    /// fn fill(bytes: usize) -> usize { vec![1_u8; bytes].len() }
    ///
    /// #[executor::main]
    /// fn main() {
    ///     let builder = ProcessPoolExecutor::builder().max_workers(1);
    ///     let pool = builder.worker_memory_limit(256 << 20).build().unwrap();
    ///     let error = pool.submit(fill::task(2 << 30)).result().unwrap_err();
    ///     assert!(matches!(error, TaskError::MemoryLimit { limit, .. } if limit == 256 << 20));
    ///     assert_eq!(pool.submit(fill::task(1000)).result().unwrap(), 1000);
    /// }
    /// ```
    pub fn worker_memory_limit(mut self, bytes: u64) -> Self {
        self.restraints.memory = Some(bytes);
        self
    }

    /// Replaces a worker after a task if it has that much more private memory, in bytes, than when
    /// it was ready: after its initializer, or before its first task. Use it for tasks that leak
    /// memory. By default workers are not replaced for their memory.
    ///
    /// The task that took the worker above this succeeds. Tasks that were sent ahead to the worker
    /// go to others. A warning is logged (`tracing`) with the process id and the number of bytes.
    ///
    /// The memory is what [`worker_memory_limit`](Self::worker_memory_limit) counts. It is read at
    /// the end of each task that took 20 µs or longer, and of each thousandth of shorter ones. What
    /// a thread of an earlier task has filled meanwhile is noticed at the end of the next task.
    ///
    /// ```
    /// # use executor::prelude::*;
    /// #[task]
    /// fn leak(bytes: usize) -> u32 {
    ///     std::mem::forget(vec![1_u8; bytes]);
    ///     std::process::id()
    /// }
    ///
    /// #[executor::main]
    /// fn main() {
    ///     let builder = ProcessPoolExecutor::builder().max_workers(1);
    ///     let pool = builder.max_rss_growth(32 << 20).build().unwrap();
    ///     let [first, second] = [64 << 20, 0].map(|n| pool.submit(leak::task(n)).result().unwrap());
    ///     assert_ne!(first, second);
    /// }
    /// ```
    pub fn max_rss_growth(mut self, bytes: u64) -> Self {
        self.restraints.growth = Some(bytes);
        self
    }

    /// Sets resource limits of the system for each worker. They are in force from before its
    /// initializer until it ends.
    ///
    /// - [`cpu_time`](Limits::cpu_time) is for each task. A task that uses more ends its worker,
    ///   and fails with [`TaskError::WorkerLost`](crate::TaskError::WorkerLost), which says so.
    ///   This differs from a [timeout](crate::Task::timeout): time that the task sleeps or waits
    ///   for a processor does not count.
    /// - [`memory`](Limits::memory) counts what a worker has reserved, even if it is not used. An
    ///   allocation beyond it fails, which in Rust ends the worker. The task then fails with
    ///   [`TaskError::MemoryLimit`](crate::TaskError::MemoryLimit). In most cases
    ///   [`worker_memory_limit`](Self::worker_memory_limit) is the better choice. A copy of a fork
    ///   server has reserved what the server has, so this counts.
    /// - [`open_files`](Limits::open_files) and [`file_size`](Limits::file_size) are in force for
    ///   the worker's own work as well. A worker has about twelve open descriptors before its first
    ///   task. Large results are sent in parts where a file of shared memory would be too large.
    ///
    /// ```
    /// # use executor::{Limits, prelude::*};
    /// # use std::time::Duration;
    /// #[task]
    /// fn spin() { loop { std::hint::spin_loop() } }
    ///
    /// #[executor::main]
    /// fn main() {
    ///     let limits = Limits::default().cpu_time(Duration::from_secs(1));
    ///     let pool = ProcessPoolExecutor::builder().max_workers(1).limits(limits).build().unwrap();
    ///     let error = pool.submit(spin::task()).result().unwrap_err();
    ///     assert!(error.is_worker_lost() && error.to_string().contains("processor time"));
    /// }
    /// ```
    pub fn limits(mut self, limits: Limits) -> Self {
        self.restraints.limits = limits;
        self
    }

    /// Puts each worker into a control group of its own (cgroup v2, Linux 5.14), with everything
    /// that its tasks start, and sets limits for the group. By default, workers are in the group of
    /// this program.
    ///
    /// - **The end.** When a worker ends, for whatever reason, the system kills everything that is
    ///   left in its group. Without this option, programs escape that have left the worker's
    ///   process group (`setsid`), as daemons do. If this program is killed, each worker kills its
    ///   group.
    /// - **Limits** are for all processes of a worker together, and the system keeps them exactly.
    ///   They are no sandbox: a task has the rights of this program, and could change them. See
    ///   [`CgroupLimits`] for each of them. An executor that is to have none needs no more than a
    ///   group in which it may make others.
    /// - **Where.** The groups are made below the program's own group, or a group above it that
    ///   systemd has delegated, or the one that [`under`](CgroupLimits::under) names. Limits are
    ///   possible there only if no process is in the group itself. This program is not moved. For
    ///   example, `systemd-run --user -p Delegate=yes -p DelegateSubgroup=main` starts a program in
    ///   a place where all limits can be set.
    /// - **What is left.** The groups are removed with their workers. A program that is killed
    ///   leaves empty ones, which the next executor with this option below the same group removes.
    /// - **The fork server** ([`StartMethod::ForkServer`](crate::StartMethod::ForkServer)) stays
    ///   where this program is. Its copies are moved.
    ///
    /// A start takes a tenth of a millisecond longer, and some milliseconds after a pause.
    ///
    /// What the program does before [`init`](crate::init), in constructors or in `main`, happens
    /// before a worker is moved.
    ///
    /// # Errors
    /// If there can be no such groups, `build` returns
    /// [`BuildError::Invalid`](crate::BuildError::Invalid) with the reason, unless
    /// [`or_without`](CgroupLimits::or_without) allows to do without.
    ///
    /// ```
    /// # use executor::{CgroupLimits, prelude::*};
    /// #[task]
    /// fn work() -> u32 { 7 }
    ///
    /// #[executor::main]
    /// fn main() {
    ///     let limits = CgroupLimits::default().memory_max(1 << 30).pids_max(100).or_without();
    ///     let pool = ProcessPoolExecutor::builder().max_workers(2).cgroup(limits).build().unwrap();
    ///     assert_eq!(pool.submit(work::task()).result().unwrap(), 7);
    /// }
    /// ```
    pub fn cgroup(mut self, limits: CgroupLimits) -> Self {
        self.cgroup = Some(limits);
        self
    }
}

/// Refuses limits of control groups that make no sense.
pub(super) fn check_control_group(limits: &CgroupLimits) -> Result<(), BuildError> {
    limits.check().map_err(|text| BuildError::Invalid(text.into()))
}

/// Makes the control group of an executor. Returns `None` if there can be none, and the user has
/// allowed that.
pub(super) fn control_group(
    limits: &CgroupLimits,
) -> Result<Option<Arc<ControlGroup>>, BuildError> {
    match ControlGroup::create(limits) {
        Ok(group) => Ok(Some(Arc::new(group))),
        Err(reason) if limits.is_optional() => {
            tracing::warn!(reason, "the workers of an executor get no control groups (`cgroup`)");
            Ok(None)
        }
        Err(reason) => Err(BuildError::Invalid(format!("cgroup: {reason}"))),
    }
}

/// Refuses limits that make no sense.
pub(super) fn check(restraints: &Restraints) -> Result<(), BuildError> {
    let invalid = |text: &str| Err(BuildError::Invalid(text.into()));
    let Restraints { memory, growth, limits } = restraints;
    if *memory == Some(0) {
        return invalid("worker_memory_limit must be above 0");
    }
    if *growth == Some(0) {
        return invalid("max_rss_growth must be above 0");
    }
    limits.check().or_else(invalid)
}
