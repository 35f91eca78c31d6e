//! The builder for a pool: [`PoolBuilder`].

use std::{ffi::OsString, path::PathBuf, time::Duration};

use super::Pool;
use crate::{
    child::{start_method::StartMethod, stdio::Stdio},
    error::{BuildError, TaskFailure},
    executor::{ProcessPoolBuilder, ProcessPoolExecutor},
    os::cpu::usable_cpus_or_error,
    task::{IntoTask, TaskArgs},
};

/// Builder for a [`Pool`].
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
#[derive(Debug)]
pub struct PoolBuilder {
    /// By default, one for each slot or else for each usable CPU.
    processes: Option<Processes>,
    max_tasks_per_child: Option<usize>,
    executor: ProcessPoolBuilder,
}

/// The number of workers of a pool.
#[derive(Debug)]
enum Processes {
    Exactly(usize),
    /// The number of usable CPUs minus this number, but at least one.
    AllBut(usize),
}

impl Default for PoolBuilder {
    fn default() -> Self {
        PoolBuilder {
            processes: None,
            max_tasks_per_child: None,
            executor: ProcessPoolExecutor::builder(),
        }
    }
}

impl PoolBuilder {
    /// Sets the number of workers. The default is one for each
    /// [slot](ProcessPoolBuilder::slots), if there are any, and otherwise for each CPU that this
    /// process may use: see [`usable_cpus`](crate::usable_cpus).
    pub fn processes(mut self, processes: usize) -> Self {
        self.processes = Some(Processes::Exactly(processes));
        self
    }

    /// Sets the number of workers to the number of usable CPUs minus `cpus`, but at least one.
    /// Python's `Pool(cpu_count() - 1)` is `all_but(1)`.
    pub fn all_but(mut self, cpus: usize) -> Self {
        self.processes = Some(Processes::AllBut(cpus));
        self
    }

    /// Sets a task that each worker runs once, before any other task: see
    /// [`ProcessPoolBuilder::initializer`]. [`close`](Pool::close) does not interrupt it. If it
    /// fails, the pool is [`Broken`](crate::TaskError::Broken). Python starts new workers without
    /// end in this case.
    pub fn initializer(mut self, task: impl IntoTask) -> Self {
        self.executor = self.executor.initializer(task);
        self
    }

    /// Replaces each worker after this number of tasks: see
    /// [`ProcessPoolBuilder::max_tasks_per_worker`]. In Python a chunk of a map counts as one task.
    /// Here each item of it counts.
    pub fn max_tasks_per_child(mut self, tasks: usize) -> Self {
        self.max_tasks_per_child = Some(tasks);
        self
    }

    /// Sets an environment variable in the workers. The environment of this process does not
    /// change.
    pub fn env(mut self, key: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.executor = self.executor.env(key, value);
        self
    }

    /// Removes an environment variable, so that the workers do not inherit it.
    pub fn env_remove(mut self, key: impl Into<OsString>) -> Self {
        self.executor = self.executor.env_remove(key);
        self
    }

    /// Sets how workers are started: see [`ProcessPoolBuilder::start_method`].
    ///
    /// ```
    /// # use executor::{Pool, StartMethod, prelude::*};
    /// # use std::sync::OnceLock;
    /// static TABLE: OnceLock<Vec<u64>> = OnceLock::new();
    ///
    /// #[task]
    /// fn load() { TABLE.set((0..1_000).collect()).unwrap() }
    ///
    /// #[task]
    /// fn look_up(at: usize) -> u64 { TABLE.get().unwrap()[at] }
    ///
    /// #[executor::main]
    /// fn main() {
    ///     let builder = Pool::builder().processes(2).start_method(StartMethod::ForkServer);
    ///     let pool = builder.preload(load::task()).build().unwrap();
    ///     assert_eq!(pool.map(look_up::task, [3, 5]).unwrap(), [3, 5]);
    ///     # pool.terminate();
    /// }
    /// ```
    pub fn start_method(mut self, method: StartMethod) -> Self {
        self.executor = self.executor.start_method(method);
        self
    }

    /// Runs a task once in the fork server, before it makes the first worker: see
    /// [`ProcessPoolBuilder::preload`].
    pub fn preload(mut self, task: impl IntoTask) -> Self {
        self.executor = self.executor.preload(task);
        self
    }

    /// Sets the working directory of the workers: see [`ProcessPoolBuilder::cwd`].
    pub fn cwd(mut self, directory: impl Into<PathBuf>) -> Self {
        self.executor = self.executor.cwd(directory);
        self
    }

    /// Sets the standard input of the workers: see [`ProcessPoolBuilder::stdin`].
    pub fn stdin(mut self, stdin: impl Into<Stdio>) -> Self {
        self.executor = self.executor.stdin(stdin);
        self
    }

    /// Sets the standard output of the workers: see [`ProcessPoolBuilder::stdout`].
    pub fn stdout(mut self, stdout: impl Into<Stdio>) -> Self {
        self.executor = self.executor.stdout(stdout);
        self
    }

    /// Sets the standard error of the workers: see [`ProcessPoolBuilder::stderr`].
    pub fn stderr(mut self, stderr: impl Into<Stdio>) -> Self {
        self.executor = self.executor.stderr(stderr);
        self
    }

    /// Sets another path of the program: see [`ProcessPoolBuilder::executable`].
    pub fn executable(mut self, path: impl Into<PathBuf>) -> Self {
        self.executor = self.executor.executable(path);
        self
    }

    /// Sets how long a worker may take from its start to its first message: see
    /// [`ProcessPoolBuilder::start_timeout`].
    pub fn start_timeout(mut self, timeout: Duration) -> Self {
        self.executor = self.executor.start_timeout(timeout);
        self
    }

    /// Sets how long the initializer may take in each worker: see
    /// [`ProcessPoolBuilder::initializer_timeout`].
    pub fn initializer_timeout(mut self, timeout: Duration) -> Self {
        self.executor = self.executor.initializer_timeout(timeout);
        self
    }

    /// Sets the stack size of the thread that runs tasks, in bytes: see
    /// [`ProcessPoolBuilder::stack_size`].
    pub fn stack_size(mut self, bytes: usize) -> Self {
        self.executor = self.executor.stack_size(bytes);
        self
    }

    /// Sets the time limit of tasks that have none of their own: see
    /// [`ProcessPoolBuilder::default_timeout`].
    pub fn default_timeout(mut self, timeout: Duration) -> Self {
        self.executor = self.executor.default_timeout(timeout);
        self
    }

    /// Sets the limit on waiting for a worker of tasks that have none of their own: see
    /// [`ProcessPoolBuilder::default_queue_timeout`].
    pub fn default_queue_timeout(mut self, timeout: Duration) -> Self {
        self.executor = self.executor.default_queue_timeout(timeout);
        self
    }

    /// Sets resources of which there are only some, for tasks that [need](crate::Task::needs) them:
    /// see [`ProcessPoolBuilder::resources`].
    pub fn resources<S: Into<String>>(
        mut self,
        resources: impl IntoIterator<Item = (S, u32)>,
    ) -> Self {
        self.executor = self.executor.resources(resources);
        self
    }

    /// Gives tasks to the workers in turn: see [`ProcessPoolBuilder::round_robin`].
    pub fn round_robin(mut self) -> Self {
        self.executor = self.executor.round_robin();
        self
    }

    /// Calls a task function in the worker whenever a task has failed there: see
    /// [`ProcessPoolBuilder::on_task_error`].
    pub fn on_task_error<F: TaskArgs<(TaskFailure,), Output = ()>>(mut self) -> Self {
        self.executor = self.executor.on_task_error::<F>();
        self
    }

    /// Limits how long that function may take: see [`ProcessPoolBuilder::on_task_error_timeout`].
    pub fn on_task_error_timeout(mut self, timeout: Duration) -> Self {
        self.executor = self.executor.on_task_error_timeout(timeout);
        self
    }

    /// Sets a task that each worker runs once when it leaves: see
    /// [`ProcessPoolBuilder::finalizer`]. [`terminate`](Pool::terminate), and so a drop without
    /// [`close`](Pool::close) and [`join`](Pool::join), ends workers without it.
    pub fn finalizer(mut self, task: impl IntoTask) -> Self {
        self.executor = self.executor.finalizer(task);
        self
    }

    /// Sets how long the finalizer may take in each worker: see
    /// [`ProcessPoolBuilder::finalizer_timeout`].
    pub fn finalizer_timeout(mut self, timeout: Duration) -> Self {
        self.executor = self.executor.finalizer_timeout(timeout);
        self
    }

    /// Gives a task that exceeds its time limit the time to stop by itself: see
    /// [`ProcessPoolBuilder::cancel_grace`].
    pub fn cancel_grace(mut self, grace: Duration) -> Self {
        self.executor = self.executor.cancel_grace(grace);
        self
    }

    /// Sets the time between SIGTERM and SIGKILL: see [`ProcessPoolBuilder::terminate_grace`].
    pub fn terminate_grace(mut self, grace: Duration) -> Self {
        self.executor = self.executor.terminate_grace(grace);
        self
    }

    /// Sets any other option of the executor that runs the workers: limits on their memory, slots,
    /// control groups, isolation.
    ///
    /// Options that would have no effect in a pool are an error of [`build`](Self::build): its
    /// workers are as many as [`processes`](Self::processes) says and all are kept, and its drop
    /// terminates it.
    ///
    /// ```
    /// use executor::{Pool, prelude::*};
    ///
    /// #[task]
    /// fn device() -> String { executor::slot().unwrap() }
    ///
    /// #[executor::main]
    /// fn main() {
    ///     let builder = Pool::builder().processes(2);
    ///     let pool = builder
    ///         .executor(|options| options.slots(["cuda:0", "cuda:1"]).worker_memory_limit(1 << 30))
    ///         .build()
    ///         .unwrap();
    ///     assert!(pool.apply(device::task()).unwrap().starts_with("cuda:"));
    ///     # pool.terminate();
    /// }
    /// ```
    pub fn executor(mut self, set: impl FnOnce(ProcessPoolBuilder) -> ProcessPoolBuilder) -> Self {
        self.executor = set(self.executor);
        self
    }

    /// Builds the pool and starts its workers. It does not wait until they have started.
    ///
    /// # Errors
    /// [`BuildError::Invalid`] if an option makes no sense, for example 0 processes. Otherwise the
    /// errors of [`ProcessPoolBuilder::build`].
    pub fn build(self) -> Result<Pool, BuildError> {
        let processes = match self.processes {
            None => None,
            Some(Processes::Exactly(0)) => {
                return Err(BuildError::Invalid("processes must be above 0".into()));
            }
            Some(Processes::Exactly(processes)) => Some(processes),
            Some(Processes::AllBut(cpus)) => {
                let usable = usable_cpus_or_error().map_err(BuildError::Invalid)?;
                Some(usable.saturating_sub(cpus).max(1))
            }
        };
        if self.max_tasks_per_child == Some(0) {
            return Err(BuildError::Invalid("max_tasks_per_child must be above 0".into()));
        }
        Ok(Pool::of(self.executor.of_pool(processes, self.max_tasks_per_child)?.build()?))
    }
}
