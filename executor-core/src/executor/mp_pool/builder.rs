//! Options of a pool.

use std::{ffi::OsString, time::Duration};

use super::Pool;
use crate::{
    error::BuildError,
    executor::{ProcessPoolBuilder, ProcessPoolExecutor},
    os::cpu::usable_cpus_or_error,
    task::IntoTask,
};

/// Options of a [`Pool`].
///
/// ```
/// use executor::{Pool, prelude::*};
///
/// #[task]
/// fn prepare(level: String) { /* once in each worker */ }
///
/// #[executor::main]
/// fn main() -> Result<(), executor::BuildError> {
///     let pool = Pool::builder()
///         .processes(2)
///         .initializer(prepare::task("warm".into()))
///         .max_tasks_per_child(100)
///         .build()?;
///     assert_eq!(pool.processes(), 2);
///     pool.terminate();
///     Ok(())
/// }
/// ```
#[must_use = "a builder does nothing until `build`"]
pub struct PoolBuilder {
    processes: Processes,
    max_tasks_per_child: Option<usize>,
    executor: ProcessPoolBuilder,
}

/// How many workers a pool has.
enum Processes {
    Exactly(usize),
    /// So many fewer than there are usable CPUs, but at least one.
    AllBut(usize),
}

impl Default for PoolBuilder {
    fn default() -> Self {
        PoolBuilder {
            processes: Processes::AllBut(0),
            max_tasks_per_child: None,
            executor: ProcessPoolExecutor::builder(),
        }
    }
}

impl PoolBuilder {
    /// How many workers; by default one for each CPU that this process may use: see
    /// [`usable_cpus`](crate::usable_cpus).
    pub fn processes(mut self, processes: usize) -> Self {
        self.processes = Processes::Exactly(processes);
        self
    }

    /// As many workers as there are usable CPUs, but for so many that are left to others; at least one worker. Python's
    /// `Pool(cpu_count() - 1)` is `all_but(1)`.
    pub fn all_but(mut self, cpus: usize) -> Self {
        self.processes = Processes::AllBut(cpus);
        self
    }

    /// A task that each worker runs once, before any other: see
    /// [`ProcessPoolBuilder::initializer`]. It is not cut short by [`close`](Pool::close). If it fails, the pool is
    /// [`Broken`](crate::TaskError::Broken), where Python starts workers without end.
    pub fn initializer(mut self, task: impl IntoTask) -> Self {
        self.executor = self.executor.initializer(task);
        self
    }

    /// A worker is replaced after so many tasks: see [`ProcessPoolBuilder::max_tasks_per_worker`]. In Python a chunk of
    /// a map counts as one task; here each item does.
    pub fn max_tasks_per_child(mut self, tasks: usize) -> Self {
        self.max_tasks_per_child = Some(tasks);
        self
    }

    /// Sets an environment variable in the workers; this process keeps its own.
    pub fn env(mut self, key: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.executor = self.executor.env(key, value);
        self
    }

    /// How long a worker may take from its start to its first word: see [`ProcessPoolBuilder::start_timeout`].
    pub fn start_timeout(mut self, timeout: Duration) -> Self {
        self.executor = self.executor.start_timeout(timeout);
        self
    }

    /// How long the initializer may take in each worker: see [`ProcessPoolBuilder::initializer_timeout`].
    pub fn initializer_timeout(mut self, timeout: Duration) -> Self {
        self.executor = self.executor.initializer_timeout(timeout);
        self
    }

    /// Stack of the thread that runs tasks, in bytes: see [`ProcessPoolBuilder::stack_size`].
    pub fn stack_size(mut self, bytes: usize) -> Self {
        self.executor = self.executor.stack_size(bytes);
        self
    }

    /// Makes the pool, and starts its workers. Does not wait until they have started.
    ///
    /// # Errors
    /// [`BuildError::Invalid`] if an option makes no sense, as 0 processes; otherwise as
    /// [`ProcessPoolBuilder::build`].
    pub fn build(self) -> Result<Pool, BuildError> {
        let processes = match self.processes {
            Processes::Exactly(0) => return Err(BuildError::Invalid("processes must be above 0".into())),
            Processes::Exactly(processes) => processes,
            Processes::AllBut(cpus) => {
                usable_cpus_or_error().map_err(BuildError::Invalid)?.saturating_sub(cpus).max(1)
            }
        };
        let mut executor = self.executor.max_workers(processes).start_at_once().terminate_at_end();
        if let Some(tasks) = self.max_tasks_per_child {
            if tasks == 0 {
                return Err(BuildError::Invalid("max_tasks_per_child must be above 0".into()));
            }
            executor = executor.max_tasks_per_worker(tasks);
        }
        Ok(Pool::of(executor.build()?))
    }
}
