//! Processes that run one task each: how they are started, watched and joined.
//!
//! ```text
//!  Process::new(task) ── options ── start ──►  child: one of
//!     │  encoded at `new`                        Spawn       the program again, /proc/self/exe
//!     ▼                                          ForkServer  a copy of a small, single-threaded
//!  Child<T> ─── handle of a Record                           child of this process
//!     │           ▲                              Fork        a copy of this process; refused if
//!     │           │                                          it has other threads
//!     │           └── the watcher, one thread: reads the report from the child's socket, learns
//!     ▼               of its end by pidfd, then reaps it
//!  join, wait, is_alive, exit_code: answered from the Record
//! ```
//!
//! What happens when a process dies:
//!
//! - **The child.** The watcher thread notices it by the pidfd, or `join` does if no thread can be
//!   started. The child's report is read, the child is reaped, and `join` returns.
//! - **The parent, by `exit` or the end of `main`.** `child::exit` notices it by `atexit`. Daemons
//!   are terminated, and the other processes are waited for.
//! - **The parent, by a signal.** The child's own watcher thread notices it. The child kills its
//!   process group, unless it was told to outlive its parent.
//! - **The fork server.** The next start notices it by the server's socket, and starts another one.
//!
//! The table of records belongs to the process that created it. A forked child has a table of its
//! own, which is empty.

pub(crate) mod child;
pub(crate) mod context;
pub(crate) mod current;
pub(crate) mod fork;
mod output;
mod record;
mod report;
mod server;
mod start;
mod start_error;
mod streams;
mod table;

use std::{ffi::OsString, fmt, marker::PhantomData, path::PathBuf, time::Duration};

pub use child::{Child, ChildHandle};
pub use context::Context;
pub use start_error::StartError;

use crate::{
    child::{start_method::StartMethod, stdio::Stdio},
    error::TaskError,
    future::cell::Outcome,
    os::limits::Limits,
    registry::TaskEntry,
    task::encode::encode,
    task::{Task, TaskArgs, TaskFn},
    wire::{attachment::Attachment, buffer::Buffer},
};

/// A process to be started, with the one task that it runs. It corresponds to
/// `multiprocessing.Process`.
///
/// Set options, then [`start`](Self::start) it. The [`Child`] that `start` returns can be joined,
/// watched and signalled. Unlike in Python, the body's return value is available, from
/// [`Child::join`].
///
/// ```
/// use executor::{Process, prelude::*};
///
/// #[task]
/// fn greet(name: &str) -> String { format!("hello, {name}") }
///
/// #[executor::main]
/// fn main() -> Result<(), Box<dyn std::error::Error>> {
///     let child = Process::new(greet::task("bob")).name("greeter").start()?;
///     assert_eq!(child.join()?, "hello, bob");
///     assert_eq!(child.exit_code(), Some(executor::ExitStatus::Exited(0)));
///     Ok(())
/// }
/// ```
///
/// # How it ends
///
/// The process ends with exit code 0 when the body returns, with 1 when it returns `Err` (or if its
/// value cannot be encoded), and with 101 when it panics, like any Rust program. Before it ends,
/// its [exit hooks](crate::at_exit) run, and it waits for its [registered
/// threads](crate::spawn_thread) and its own processes.
///
/// If the task has a [timeout](crate::Task::timeout), it is counted from the start of the
/// process. When it has passed, the process and its group are killed, and [`join`](Child::join)
/// returns [`TimedOut`](crate::TaskError::TimedOut).
///
/// When the process has ended, in whatever way, the programs that it has started and that are still
/// in its process group are killed, unless they are [kept](Self::keep_programs). Its own
/// [`Process`]es and workers notice its end, and end. Programs that have moved to another group or
/// session (`setsid`, as daemons do) continue. So do the programs of a process that has
/// [outlived](Self::outlive_parent) its parent, because no process is left to notice its end.
///
/// When the program ends by itself, it waits for its processes, except [`daemon`](Self::daemon)s.
/// When the program is killed, its processes are killed, too, unless they [outlive
/// it](Self::outlive_parent).
///
/// # What it inherits from its parent
///
/// The process inherits the signal mask of the thread that starts it, and the signals that its
/// parent ignores. For example, if this thread has blocked `SIGTERM`,
/// [`terminate`](crate::ChildHandle::terminate) does not end the child. In addition, SIGTTOU and
/// SIGTTIN are blocked. Otherwise a terminal could stop the child when it writes. The child leads
/// its own process group, so Ctrl-C and Ctrl-Z at a terminal reach only the parent: when the parent
/// is stopped, its processes continue.
///
/// Programs that the process starts inherit the mask of the thread that starts them, including the
/// two blocked signals. So a terminal does not stop them either, and reading from it is an error. A
/// program that needs these signals unblocked, such as a shell with job control, must be given
/// another mask in [`pre_exec`](std::os::unix::process::CommandExt::pre_exec). The same holds in a
/// pool's workers.
///
/// Output that the parent has printed is written out before the child starts, so that it appears
/// before the child's output. The exception is that another thread holds the lock of standard
/// output for more than a moment. (Workers of pools are started in the background, and nothing is
/// flushed for them.)
#[must_use = "a process does nothing until it is started"]
pub struct Process<T> {
    entry: &'static TaskEntry,
    /// The encoded arguments and the descriptors that belong to them, or why they cannot be
    /// encoded.
    arguments: Result<(Vec<u8>, Vec<Attachment>), TaskError>,
    /// The name of the task in errors.
    task: String,
    /// The timeout of the task.
    timeout: Option<Duration>,
    name: Option<String>,
    daemon: Option<bool>,
    outlives_parent: bool,
    keeps_programs: bool,
    environment: Vec<(OsString, Option<OsString>)>,
    directory: Option<PathBuf>,
    stdin: Stdio,
    stdout: Stdio,
    stderr: Stdio,
    limits: Limits,
    method: Option<StartMethod>,
    server: Option<server::Server>,
    executable: Option<PathBuf>,
    decode: fn(Outcome) -> Result<T, TaskError>,
    marker: PhantomData<fn() -> T>,
}

/// The types that a [`Process`] can be made from: a [`Task`], or a type with
/// `#[task] impl Run for …`. `#[task]` implements it; no other code does.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is neither a task nor a value with `Run`",
    label = "expected a task",
    note = "the task of `add(1, 2)` is `add::task(1, 2)`: write `Process::new(add::task(1, 2))`",
    note = "`#[task]` above a function makes its `::task`, and above `impl Run for …` a body of a value"
)]
pub trait IntoBody {
    /// The type of the value that [`Child::join`] returns.
    type Output;

    #[doc(hidden)]
    fn into_process(self) -> Process<Self::Output>;
}

impl<F: TaskArgs<A>, A> IntoBody for Task<F, A> {
    type Output = F::Output;

    fn into_process(self) -> Process<F::Output> {
        Process::of_task(self)
    }
}

/// A value that is the body of a process. It corresponds to a subclass of Python's `Process` with
/// its own `run` method.
///
/// Write `#[task]` above the `impl`. The fields are sent to the process, so the type must implement
/// serde's `Serialize` and `Deserialize`. A direct call of [`run`](Self::run) runs the body in the
/// calling process.
///
/// ```
/// use executor::{Process, Run, prelude::*};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize)]
/// struct Clock { ticks: u32 }
///
/// #[task]
/// impl Run for Clock {
///     fn run(self) -> u32 { self.ticks * 2 }
/// }
///
/// #[executor::main]
/// fn main() -> Result<(), Box<dyn std::error::Error>> {
///     assert_eq!(Process::new(Clock { ticks: 2 }).start()?.join()?, 4);
///     assert_eq!(Clock { ticks: 1 }.run(), 2);
///     Ok(())
/// }
/// ```
pub trait Run {
    /// The type that [`run`](Self::run) returns. `#[task]` generates it.
    type Output;

    /// Runs the body.
    fn run(self) -> Self::Output;
}

impl<T> Process<T> {
    /// Makes a process that will run this body: a task, or a value with [`Run`]. The arguments are
    /// encoded during this call, so they may be borrowed.
    pub fn new(body: impl IntoBody<Output = T>) -> Self {
        body.into_process()
    }

    fn of_task<F: TaskArgs<A> + TaskFn<Output = T>, A>(task: Task<F, A>) -> Self {
        let (args, options) = task.into_parts();
        let mut buffer = Buffer::new();
        let mut attached = Vec::new();
        let arguments = encode::<F, A>(args, &options, &mut buffer, &mut attached)
            .map(|()| (buffer.into_vec(), attached))
            .map_err(|error| *error);
        let arguments = match options.refusal_without_queue() {
            Some(what) => {
                let task = options.called(F::NAME);
                Err(TaskError::invalid(format!("task `{task}` has a {what}")))
            }
            None => arguments,
        };
        Process {
            entry: F::entry(),
            arguments,
            task: options.called(F::NAME).to_owned(),
            timeout: options.timeout(),
            name: options.name().map(String::from),
            daemon: None,
            outlives_parent: false,
            keeps_programs: false,
            environment: Vec::new(),
            directory: None,
            stdin: Stdio::null(),
            stdout: Stdio::inherit(),
            stderr: Stdio::inherit(),
            limits: Limits::default(),
            method: None,
            server: None,
            executable: None,
            decode: crate::future::decode::<F>,
            marker: PhantomData,
        }
    }

    /// Sets the name of the process, a label that has no meaning to the system. The default is the
    /// name of the [task](crate::Task::name), if it was given one. Otherwise it is `Process-1`,
    /// `Process-2`, …, and `Process-1:2` for the second process that `Process-1` starts.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Sets whether the process is terminated when the program ends by itself. Otherwise the
    /// program waits for it. The default is the setting of the process that starts it; it is
    /// `false` in the program that the user started and in workers of pools. A daemon may have
    /// children, which end when it ends.
    pub fn daemon(mut self, daemon: bool) -> Self {
        self.daemon = Some(daemon);
        self
    }

    /// Sets whether the process continues when this process is killed or crashes. By default its
    /// whole process group is killed then. If this process ends by itself, it still waits for the
    /// process, unless the process is a daemon.
    pub fn outlive_parent(mut self, outlive: bool) -> Self {
        self.outlives_parent = outlive;
        self
    }

    /// Sets whether the programs that the process has started may continue after it has ended with
    /// exit code 0, that is, after its body has returned a value or called `exit(0)`. By default
    /// they are killed with its process group in all cases. After any other end they are always
    /// killed.
    ///
    /// Use it for a process that starts a server and returns.
    /// [`kill_tree`](crate::ChildHandle::kill_tree) ends the programs that it has left.
    ///
    /// ```
    /// use executor::{Process, prelude::*};
    ///
    /// #[task]
    /// fn starts() -> u32 {
    ///     std::process::Command::new("sleep").arg("600").spawn().unwrap().id()
    /// }
    ///
    /// #[executor::main]
    /// fn main() -> Result<(), Box<dyn std::error::Error>> {
    ///     let child = Process::new(starts::task()).keep_programs(true).start()?;
    ///     let program = child.join()?;
    ///     assert!(std::path::Path::new(&format!("/proc/{program}")).exists());
    ///     child.kill_tree();
    ///     Ok(())
    /// }
    /// ```
    pub fn keep_programs(mut self, keep: bool) -> Self {
        self.keeps_programs = keep;
        self
    }

    /// Sets an environment variable of the process, in addition to the inherited ones.
    pub fn env(mut self, key: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.environment.push((key.into(), Some(value.into())));
        self
    }

    /// Removes an environment variable, so that the process does not inherit it.
    pub fn env_remove(mut self, key: impl Into<OsString>) -> Self {
        self.environment.push((key.into(), None));
        self
    }

    /// Sets the working directory. The default is the one of this process.
    pub fn cwd(mut self, directory: impl Into<PathBuf>) -> Self {
        self.directory = Some(directory.into());
        self
    }

    /// Sets the standard input. By default it is empty. The process leads its own process group, so
    /// reading from a terminal is an error.
    pub fn stdin(mut self, stdin: impl Into<Stdio>) -> Self {
        self.stdin = stdin.into();
        self
    }

    /// Sets the standard output. The default is the one of this process.
    pub fn stdout(mut self, stdout: impl Into<Stdio>) -> Self {
        self.stdout = stdout.into();
        self
    }

    /// Sets the standard error. The default is the one of this process.
    pub fn stderr(mut self, stderr: impl Into<Stdio>) -> Self {
        self.stderr = stderr.into();
        self
    }

    /// Sets the resource limits of the process.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Sets how the process is started. The default is the result of
    /// [`start_method`](crate::start_method).
    pub fn start_method(mut self, method: StartMethod) -> Self {
        self.method = Some(method);
        self
    }

    /// Sets another path of the program, for [`StartMethod::Spawn`]: for example a copy of it that
    /// will not be replaced. It must be the same build, and must reach [`init`](crate::init).
    pub fn executable(mut self, path: impl Into<PathBuf>) -> Self {
        self.executable = Some(path.into());
        self
    }

    /// Starts the process. Returns when it is started, without waiting until its body begins.
    ///
    /// # Errors
    /// [`StartError`], for example if the arguments cannot be encoded, if the program never called
    /// the entry point, or if the operating system refuses.
    pub fn start(self) -> Result<Child<T>, StartError> {
        start::start(self)
    }
}

impl<T> fmt::Debug for Process<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Process")
            .field("name", &self.name)
            .field("task", &self.task)
            .field("daemon", &self.daemon)
            .field("state", &"initial")
            .finish_non_exhaustive()
    }
}
