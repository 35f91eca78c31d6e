//! The options of [`ProcessPoolBuilder`] that say how workers are started.

use std::{
    ffi::OsString,
    fmt, io,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use super::ProcessPoolBuilder;
use crate::{
    child::{
        environment::{self, Changes},
        server::Preload,
        start_method::StartMethod,
        stdio::{Stdio, StreamTarget, duplicate, null},
    },
    error::BuildError,
    pool::program::{Program, StartOptions},
    task::IntoTask,
};

/// What tasks of an executor may see of each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Isolation {
    /// The tasks of one worker run in one process, one after the other. They share its statics,
    /// thread-locals and [`worker_state`](crate::worker_state). This is the default.
    #[default]
    PerWorker,
    /// Each task runs in a process of its own, which ends with the task.
    PerTask,
}

/// Maximum for [`ready`](ProcessPoolBuilder::ready), all of which are started at once. A higher
/// value is a mistake, and would use up the processes and descriptors of most systems.
const READY_MAX: usize = 1_000;

/// How workers are started, as it was asked for.
#[derive(Clone)]
pub(super) struct Starting {
    pub(super) method: Option<StartMethod>,
    pub(super) isolation: Isolation,
    pub(super) ready: Option<usize>,
    pub(super) preload: Vec<Result<Preload, String>>,
    pub(super) executable: Option<PathBuf>,
    pub(super) environment: Changes,
    pub(super) directory: Option<PathBuf>,
    pub(super) crash_report: bool,
    /// Builders are cloned, and a descriptor is not.
    pub(super) stdin: Arc<Stdio>,
    pub(super) stdout: Arc<Stdio>,
    pub(super) stderr: Arc<Stdio>,
}

impl Default for Starting {
    fn default() -> Self {
        Starting {
            method: None,
            isolation: Isolation::default(),
            ready: None,
            preload: Vec::new(),
            executable: None,
            environment: Changes::new(),
            directory: None,
            crash_report: false,
            stdin: Stdio::null().into(),
            stdout: Stdio::inherit().into(),
            stderr: Stdio::inherit().into(),
        }
    }
}

impl fmt::Debug for Starting {
    /// Writes the options. Of environment variables it writes the names only, because values may
    /// be secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.environment.iter().map(|(name, _)| name).collect();
        let preload: Vec<_> = self.preload.iter().flatten().map(Preload::name).collect();
        f.debug_struct("Starting")
            .field("method", &self.method)
            .field("isolation", &self.isolation)
            .field("ready", &self.ready)
            .field("preload", &preload)
            .field("executable", &self.executable)
            .field("envs", &names)
            .field("directory", &self.directory)
            .field("crash_report", &self.crash_report)
            .field("stdin", &self.stdin)
            .field("stdout", &self.stdout)
            .field("stderr", &self.stderr)
            .finish()
    }
}

impl Starting {
    /// Returns whether workers would be started in the same way. Two descriptors are never the
    /// same, only copies of one are.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        // Without `..`, so that no option is forgotten.
        let Starting {
            method,
            isolation,
            ready,
            preload,
            executable,
            environment,
            directory,
            crash_report,
            stdin,
            stdout,
            stderr,
        } = self;
        let same = |one: &Arc<Stdio>, other: &Arc<Stdio>| match (&one.0, &other.0) {
            (StreamTarget::Null, StreamTarget::Null)
            | (StreamTarget::Inherit, StreamTarget::Inherit)
            | (StreamTarget::Piped, StreamTarget::Piped) => true,
            (StreamTarget::Given(_), StreamTarget::Given(_)) => Arc::ptr_eq(one, other),
            _ => false,
        };
        (method, isolation, ready) == (&other.method, &other.isolation, &other.ready)
            && *preload == other.preload
            && (executable, directory) == (&other.executable, &other.directory)
            && *crash_report == other.crash_report
            && *environment == other.environment
            && same(stdin, &other.stdin)
            && same(stdout, &other.stdout)
            && same(stderr, &other.stderr)
    }

    /// Returns how workers are started if nothing else is asked for.
    fn default_method(&self) -> StartMethod {
        match self.isolation {
            Isolation::PerTask => StartMethod::ForkServer,
            Isolation::PerWorker => StartMethod::Spawn,
        }
    }

    /// Checks the options, and opens what they need.
    ///
    /// `workers_max` is the number of tasks that may run at the same time.
    pub(super) fn check(
        self,
        workers_max: usize,
        preload_timeout: Duration,
    ) -> Result<StartOptions, BuildError> {
        let invalid = |text: String| Err(BuildError::Invalid(text));
        if !environment::is_valid(&self.environment) {
            return invalid(environment::INVALID.into());
        }
        let per_task = self.isolation == Isolation::PerTask;
        if self.ready.is_some() && !per_task {
            return invalid("ready needs Isolation::PerTask".into());
        }
        if self.ready.is_some_and(|ready| ready > READY_MAX) {
            return invalid(format!("ready must not be above {READY_MAX}"));
        }
        let has_server = match self.method.unwrap_or_else(|| self.default_method()) {
            StartMethod::Spawn => false,
            StartMethod::ForkServer => true,
            StartMethod::Fork => {
                return invalid(
                    "the workers of a pool cannot be started by StartMethod::Fork: the pool has threads in this process, and \
                     a copy of a process has only one; use StartMethod::ForkServer"
                        .into(),
                );
            }
        };
        if !self.preload.is_empty() && !has_server {
            return invalid("preload needs StartMethod::ForkServer".into());
        }
        let preload = self.preload.into_iter().collect::<Result<Vec<_>, _>>();
        let preload = match preload {
            Ok(preload) => preload,
            Err(why) => return invalid(format!("preload: {why}")),
        };
        let program = Program {
            executable: self.executable,
            environment: self.environment,
            directory: self.directory,
            stdin: stream("stdin", &self.stdin, true)?,
            stdout: stream("stdout", &self.stdout, false)?,
            stderr: stream("stderr", &self.stderr, false)?,
        };
        let fork_server = has_server.then_some(preload);
        let spares = per_task.then(|| self.ready.unwrap_or(workers_max.min(READY_MAX)));
        let crash_report = self.crash_report;
        Ok(StartOptions { program, crash_report, fork_server, preload_timeout, spares })
    }
}

/// Opens a standard stream of the workers. Returns `None` if nothing is to be opened: an empty
/// input, or the output of this process.
fn stream(name: &str, stdio: &Stdio, input: bool) -> Result<Option<OwnedFd>, BuildError> {
    let opened = match &stdio.0 {
        StreamTarget::Null if input => return Ok(None),
        StreamTarget::Null => null(),
        StreamTarget::Inherit if input => duplicate(rustix::stdio::stdin()),
        StreamTarget::Inherit => return Ok(None),
        StreamTarget::Given(descriptor) => duplicate(descriptor.as_fd()),
        StreamTarget::Piped => {
            return Err(BuildError::Invalid(format!(
                "{name}: the workers of a pool cannot have `Stdio::piped()`, since nobody has the other end; give them the \
                 end of a pipe of your own (`std::io::pipe`)"
            )));
        }
    };
    let os = |error: io::Error| BuildError::Os {
        what: "a standard stream of the workers",
        error: Arc::new(error),
    };
    opened.map(Some).map_err(os)
}

impl ProcessPoolBuilder {
    /// Refuses options that do not go together with how workers are started.
    pub(super) fn check_isolation(&self) -> Result<(), BuildError> {
        let invalid = |text: String| Err(BuildError::Invalid(text));
        let starting = &self.starting;
        let method = starting.method.unwrap_or_else(|| starting.default_method());
        if method == StartMethod::ForkServer && self.place.has_env_of_slot() {
            return invalid(
                "env_of_slot cannot be used with StartMethod::ForkServer: its workers have one environment, which `preload` \
                 may have read. Let tasks read `executor::slot()`, or leave the start method out"
                    .into(),
            );
        }
        if starting.isolation == Isolation::PerWorker {
            return Ok(());
        }
        let refused = [
            ("max_tasks_per_worker", self.max_tasks_per_worker.is_some()),
            ("min_workers", self.min_workers.is_some()),
            ("idle_timeout", self.lifespan.idle_timeout.is_some()),
            ("max_lifetime", self.lifespan.lifetime_max.is_some()),
            ("max_rss_growth", self.restraints.growth.is_some()),
            ("slots", self.place.slots().is_some()),
            ("pin", self.place.pins()),
            ("round_robin", self.sharing.is_round_robin()),
        ];
        match refused.iter().find(|(_, is_set)| *is_set) {
            Some((option, _)) => {
                let why = match *option {
                    "slots" | "pin" => {
                        "the number of workers is not fixed, because some are kept ready and some \
                         are ending: let tasks ask for a token by `Task::needs` and `resources`"
                    }
                    _ => "each worker runs one task only: leave it out",
                };
                invalid(format!("{option} makes no sense with Isolation::PerTask: {why}"))
            }
            None => Ok(()),
        }
    }
}

/// # How workers are started
impl ProcessPoolBuilder {
    /// Sets how workers are started. The default is [`StartMethod::Spawn`], whatever the
    /// [program's](crate::set_start_method) is.
    ///
    /// With [`StartMethod::ForkServer`], the executor has a fork server of its own: a small process
    /// with one thread, which is started with the first worker. It runs the tasks of
    /// [`preload`](Self::preload) once, and then makes each worker as a copy of itself. Memory is
    /// copied only where it is written, so what `preload` has loaded exists once, however many
    /// workers there are. Starting a worker takes less time than with `Spawn`, too, if the program
    /// is large.
    ///
    /// - The workers are children of this process, as with `Spawn`, and everything that holds for
    ///   workers holds for them.
    /// - The server has the environment, the directory and the output that the workers are given.
    ///   Later changes of this process's environment or directory do not reach them.
    /// - If the server dies, it is started again, and runs `preload` again, when the next worker is
    ///   needed. Workers that run are not affected.
    /// - It ends with the executor, or with this process.
    /// - A limit on memory ([`worker_memory_limit`](Self::worker_memory_limit),
    ///   [`max_rss_growth`](Self::max_rss_growth)) is for what a worker has in addition to what the
    ///   server had when the worker was copied.
    /// - [`env_of_slot`](Self::env_of_slot) is refused, since all workers have the server's
    ///   environment.
    ///
    /// [`StartMethod::Fork`] is refused: this process has threads when workers are started.
    ///
    /// ```
    /// # use executor::{StartMethod, prelude::*};
    /// # use std::sync::OnceLock;
    /// static MODEL: OnceLock<Vec<u8>> = OnceLock::new();
    ///
    /// #[task]
    /// fn load(bytes: usize) { MODEL.set(vec![1; bytes]).unwrap() }
    ///
    /// #[task]
    /// fn predict(at: usize) -> u8 { MODEL.get().unwrap()[at] }
    ///
    /// #[executor::main]
    /// fn main() {
    ///     let pool = ProcessPoolExecutor::builder()
    ///         .max_workers(8)
    ///         .start_method(StartMethod::ForkServer)
    ///         .preload(load::task(1 << 20))
    ///         .build()
    ///         .unwrap();
    ///     assert_eq!(pool.submit(predict::task(7)).result().unwrap(), 1);
    /// }
    /// ```
    pub fn start_method(mut self, method: StartMethod) -> Self {
        self.starting.method = Some(method);
        self
    }

    /// Runs a task once in the fork server, before it makes the first worker. What the task sets up
    /// (statics, a model in memory) exists in each worker. It may be called several times; the
    /// tasks run in this order. Without [`StartMethod::ForkServer`] it is refused.
    ///
    /// If the task fails, ends the server, or leaves a thread behind, no worker can be started, and
    /// the executor is [`Broken`](crate::TaskError::Broken) with this reason. This is also so if
    /// all of them together take longer than an initializer may
    /// ([`initializer_timeout`](Self::initializer_timeout)) and a start
    /// ([`start_timeout`](Self::start_timeout)). The task itself cannot have a
    /// [timeout](crate::Task::timeout), nor other options that need a pool.
    ///
    /// Each worker has a copy of everything in the server. Values that are to be different in each
    /// process, such as the state of a random number generator or a connection to a database, are
    /// to be made in an [`initializer`](Self::initializer). A reference into shared memory that the
    /// task leaves in a static must not be used in the workers: see [`StartMethod::Fork`].
    pub fn preload<T: IntoTask>(mut self, task: T) -> Self {
        self.starting.preload.push(Preload::of(task));
        self
    }

    /// Sets what tasks may see of each other. With [`Isolation::PerTask`], each task runs in a
    /// worker of its own, which ends after it. So nothing that a task changes in its process is
    /// visible to the next one: statics, memory that it leaks, the working directory, signal
    /// handlers, threads. Files and other processes are shared as always.
    ///
    /// The start method is then [`StartMethod::ForkServer`], if no other one is set: each worker is
    /// a copy of the server, with everything that [`preload`](Self::preload) has set up. Some
    /// workers are [kept ready](Self::ready), so that a task need not wait for the start of one.
    ///
    /// At most [`max_workers`](Self::max_workers) tasks run at the same time. In addition there are
    /// workers that are ready, and workers that have run their task and are about to end. No task
    /// is sent to a worker ahead of time, and the items of a
    /// [`map`](crate::ProcessPoolExecutor::map) are sent one by one. An
    /// [`initializer`](Self::initializer) runs in each worker before its task.
    ///
    /// Options that say how long a worker is kept are refused, as each is kept for one task:
    /// [`max_tasks_per_worker`](Self::max_tasks_per_worker), [`min_workers`](Self::min_workers),
    /// [`idle_timeout`](Self::idle_timeout), [`max_lifetime`](Self::max_lifetime),
    /// [`max_rss_growth`](Self::max_rss_growth). So is what each worker has one of:
    /// [`slots`](Self::slots), [`pin`](Self::pin), and
    /// [`Map::round_robin`](crate::Map::round_robin).
    ///
    /// No two workers have one [index](crate::worker_index) at the same time, but it may be above
    /// the number of tasks that run. [`resize`](crate::ProcessPoolExecutor::resize) changes how
    /// many tasks run at the same time, and not how many workers are kept ready.
    ///
    /// ```
    /// # use executor::{Isolation, prelude::*};
    /// # use std::sync::atomic::{AtomicU32, Ordering};
    /// static CALLS: AtomicU32 = AtomicU32::new(0);
    ///
    /// #[task]
    /// fn count() -> u32 { CALLS.fetch_add(1, Ordering::Relaxed) + 1 }
    ///
    /// #[executor::main]
    /// fn main() {
    ///     let builder = ProcessPoolExecutor::builder().max_workers(2);
    ///     let pool = builder.isolation(Isolation::PerTask).ready(1).build().unwrap();
    ///     for _ in 0..3 {
    ///         assert_eq!(pool.submit(count::task()).result().unwrap(), 1);
    ///     }
    /// }
    /// ```
    pub fn isolation(mut self, isolation: Isolation) -> Self {
        self.starting.isolation = isolation;
        self
    }

    /// Sets how many workers are kept ready for tasks that come, with [`Isolation::PerTask`]. They
    /// are started when the executor is built. The default is [`max_workers`](Self::max_workers).
    /// With 0, a worker is started when there is a task for it. The maximum is 1000.
    ///
    /// More of them answer longer bursts without delay. Each is a process: it needs memory for what
    /// differs from the server, a few descriptors, and a thread.
    pub fn ready(mut self, workers: usize) -> Self {
        self.starting.ready = Some(workers);
        self
    }

    /// Sets an environment variable in the workers. The environment of this process does not
    /// change.
    pub fn env(mut self, key: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.starting.environment.push((key.into(), Some(value.into())));
        self
    }

    /// Removes an environment variable, so that the workers do not inherit it.
    ///
    /// ```
    /// # use executor::prelude::*;
    /// #[task]
    /// fn has(name: String) -> bool { std::env::var_os(name).is_some() }
    ///
    /// #[executor::main]
    /// fn main() {
    ///     assert!(std::env::var_os("PATH").is_some());
    ///     let pool = ProcessPoolExecutor::builder().max_workers(1).env_remove("PATH").build().unwrap();
    ///     assert!(!pool.submit(has::task("PATH".into())).result().unwrap());
    /// }
    /// ```
    pub fn env_remove(mut self, key: impl Into<OsString>) -> Self {
        self.starting.environment.push((key.into(), None));
        self
    }

    /// Sets the working directory of the workers. The default is the one of this process. A
    /// directory that does not exist is an error of the first start: the executor is
    /// [`Broken`](crate::TaskError::Broken).
    pub fn cwd(mut self, directory: impl Into<PathBuf>) -> Self {
        self.starting.directory = Some(directory.into());
        self
    }

    /// Sets the standard input of the workers. By default it is empty. All workers share the one
    /// that is given here. [`Stdio::piped`] is refused.
    pub fn stdin(mut self, stdin: impl Into<Stdio>) -> Self {
        self.starting.stdin = Arc::new(stdin.into());
        self
    }

    /// Sets the standard output of the workers. The default is the one of this process. All workers
    /// share the one that is given here. [`Stdio::piped`] is refused: for a pipe, give them the
    /// writing end of one of your own. It stays open as long as the executor exists.
    ///
    /// ```
    /// # use executor::{Stdio, prelude::*};
    /// # use std::{io::Read, os::fd::OwnedFd};
    /// #[task]
    /// fn speak() { println!("a word") }
    ///
    /// #[executor::main]
    /// fn main() -> Result<(), Box<dyn std::error::Error>> {
    ///     let (mut read, write) = std::io::pipe()?;
    ///     let builder = ProcessPoolExecutor::builder().max_workers(1);
    ///     let pool = builder.stdout(OwnedFd::from(write)).stderr(Stdio::null()).build()?;
    ///     pool.submit(speak::task()).result()?;
    ///     drop(pool);
    ///     let mut said = String::new();
    ///     read.read_to_string(&mut said)?;
    ///     assert_eq!(said, "a word\n");
    ///     Ok(())
    /// }
    /// ```
    pub fn stdout(mut self, stdout: impl Into<Stdio>) -> Self {
        self.starting.stdout = Arc::new(stdout.into());
        self
    }

    /// Lets a worker that crashes write where: the stack of the thread that has crashed, to its
    /// stderr. By default it writes nothing. The future has the error
    /// [`TaskError::WorkerLost`](crate::TaskError::WorkerLost) either way.
    ///
    /// A crash is SIGSEGV, SIGBUS, SIGILL, SIGFPE or SIGABRT, raised by the worker itself. The
    /// report has a line for each frame, with its file and the offset in it. Names of Rust
    /// functions are not in it, because it is not safe to look them up in a process that has
    /// crashed: `addr2line -Cfipe FILE OFFSET` tells them, with the lines of the source. If the
    /// report takes more than two seconds, because the crash came inside the system's loader, the
    /// worker ends without it.
    ///
    /// A handler that a task installs for one of these signals takes the place of this one.
    ///
    /// ```
    /// use executor::prelude::*;
    /// use std::{io::Read, os::fd::OwnedFd};
    ///
    /// #[task]
    /// fn give_up() { std::process::abort() }
    ///
    /// #[executor::main]
    /// fn main() -> Result<(), Box<dyn std::error::Error>> {
    ///     let (mut read, write) = std::io::pipe()?;
    ///     let builder = ProcessPoolExecutor::builder().max_workers(1).crash_report(true);
    ///     let pool = builder.stderr(OwnedFd::from(write)).build()?;
    ///     assert!(pool.submit(give_up::task()).result().unwrap_err().is_worker_lost());
    ///     drop(pool);
    ///     let mut report = String::new();
    ///     read.read_to_string(&mut report)?;
    ///     assert!(report.contains("crashed with SIGABRT"), "{report}");
    ///     Ok(())
    /// }
    /// ```
    pub fn crash_report(mut self, report: bool) -> Self {
        self.starting.crash_report = report;
        self
    }

    /// Sets the standard error of the workers, as [`stdout`](Self::stdout) sets the output.
    pub fn stderr(mut self, stderr: impl Into<Stdio>) -> Self {
        self.starting.stderr = Arc::new(stderr.into());
        self
    }

    /// Sets another path of the program, for example a copy of it that will not be replaced. It
    /// must be the same build, and must reach [`init`](crate::init). Otherwise the executor is
    /// [`Broken`](crate::TaskError::Broken). With [`StartMethod::ForkServer`] it is the program of
    /// the server.
    pub fn executable(mut self, path: impl Into<PathBuf>) -> Self {
        self.starting.executable = Some(path.into());
        self
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn copies_of_a_descriptor_are_the_same_and_two_descriptors_never() {
        let file = || File::open("/dev/null").unwrap();
        let builder = || ProcessPoolBuilder::default();
        let one = builder().stdout(file());
        assert!(one.starting.is_same(&one.clone().starting));
        assert!(!one.starting.is_same(&builder().stdout(file()).starting));
        assert!(!one.starting.is_same(&Starting::default()));
        let null = || builder().stdin(Stdio::null()).stderr(Stdio::null());
        assert!(null().starting.is_same(&null().starting));
        assert!(!null().starting.is_same(&null().stdin(Stdio::inherit()).starting));
        let changes: [fn(ProcessPoolBuilder) -> ProcessPoolBuilder; 8] = [
            |builder| builder.start_method(StartMethod::ForkServer),
            |builder| builder.isolation(Isolation::PerTask),
            |builder| builder.ready(1),
            |builder| builder.executable("/bin/true"),
            |builder| builder.env("MODE", "1"),
            |builder| builder.env_remove("MODE"),
            |builder| builder.cwd("/"),
            |builder| builder.stderr(Stdio::null()),
        ];
        for (at, change) in changes.into_iter().enumerate() {
            let changed = change(builder());
            assert!(changed.starting.is_same(&change(builder()).starting), "{at}");
            assert!(!changed.starting.is_same(&Starting::default()), "{at}");
        }
    }
}
