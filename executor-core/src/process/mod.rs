//! Processes with one task each: started, watched, joined.
//!
//! ```text
//!  Process::new(task) ── options ── start ──►  child: one of
//!     │  encoded at `new`                        Spawn       the program again, from /proc/self/exe
//!     ▼                                          ForkServer  a copy of a small, single-threaded child of ours
//!  Child<T> ─── handle of a Record               Fork        a copy of this process, refused with threads
//!     │           ▲
//!     │           └── the watcher, one thread: report over the child's socket, then its end by pidfd, then reaped
//!     ▼
//!  join, wait, is_alive, exit_code: the record says
//! ```
//!
//! | who dies | noticed by | then |
//! |---|---|---|
//! | the child | pidfd, in the watcher thread (in `join` where a thread is not to be had) | what it reported is read, it is reaped; `join` returns |
//! | the parent, by `exit` or the end of `main` | `child::exit`, by `atexit` | daemons are terminated, the others waited for |
//! | the parent, by a signal | the child's own watcher | the child kills its group, unless it was told to outlive |
//! | the fork server | the next start, by its socket | another one is started |
//!
//! The table of records belongs to the process that made it. A forked child clears its copy before anything else.

pub(crate) mod child;
pub(crate) mod context;
pub(crate) mod current;
pub(crate) mod fork;
mod output;
mod server;
mod start;
mod table;

use std::{
    ffi::OsString, fmt, fs::File, marker::PhantomData, os::fd::OwnedFd, path::PathBuf, time::Duration,
};

pub use child::{Child, ChildHandle};
pub use context::Context;
pub use start::StartError;

use crate::{
    child::start_method::StartMethod,
    error::TaskError,
    future::cell::Outcome,
    os::limits::Limits,
    registry::TaskEntry,
    task::encode::encode,
    task::{Task, TaskArgs, TaskFn},
    wire::{attachment::Attachment, buffer::Buffer},
};

/// A process to be started, with the one task that it runs: `multiprocessing.Process`.
///
/// Set what it needs, then [`start`](Self::start) it; the [`Child`] that comes back is joined, watched, signalled. Unlike
/// in Python the body's return value comes back, from [`Child::join`].
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
/// With exit code 0 when the body returns, 1 when it returns `Err` (or its value does not encode), 101 when it panics, as
/// any Rust program. Before that its [exit hooks](crate::at_exit) run, its [registered threads](crate::spawn_thread) and
/// its own processes are waited for.
///
/// A task with a [time limit](crate::Task::timeout) ends its process when that is over, counted from the start: the process
/// and its group are killed, and [`join`](Child::join) says [`TimedOut`](crate::TaskError::TimedOut).
///
/// The programs that it has started and left in its process group are killed when it has ended, however it did, unless they are
/// [kept](Self::keep_programs). Its own [`Process`]es and workers notice its end, and end. What has put itself into
/// another group or session (`setsid`, as daemons do) goes on, and so does what a process leaves that [outlived](Self::outlive_parent)
/// its parent: there is nobody who would notice.
///
/// A process that is no [`daemon`](Self::daemon) is waited for when the program ends by itself. When the program is killed,
/// its processes are, too, unless they [outlive it](Self::outlive_parent).
///
/// # What it has of its parent
///
/// The signal mask of the thread that starts it, and what its parent ignores: a thread that has blocked `SIGTERM` starts a child
/// that [`terminate`](crate::ChildHandle::terminate) does not end. SIGTTOU and SIGTTIN are blocked as well; otherwise a terminal
/// could stop the child when it writes. It leads a process group of its own, so Ctrl-C and Ctrl-Z at a terminal reach
/// the parent only: a stopped parent's processes go on.
///
/// Programs that it starts inherit the mask of the thread that starts them, these two signals included: a terminal does not stop
/// them either, and their reading from it is an error. A program that needs them unblocked, such as a shell that is to control
/// jobs, is given a mask of its own in [`pre_exec`](std::os::unix::process::CommandExt::pre_exec). The same holds in a pool's workers.
///
/// What the parent has printed is written out before the child starts, so that it comes before what the child prints; unless
/// another thread holds the lock of standard output for longer than a moment. (Workers of pools are started in the
/// background, and nothing is flushed for them.)
#[must_use = "a process does nothing until it is started"]
pub struct Process<T> {
    entry: &'static TaskEntry,
    arguments: Result<(Vec<u8>, Vec<Attachment>), TaskError>,
    /// What errors call the task.
    task: String,
    /// The task's time limit.
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

/// What a [`Process`] can be made of: a [`Task`], or a value whose type has `#[task] impl Run for …`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is neither a task nor a value with `Run`",
    label = "expected a task",
    note = "the task of `add(1, 2)` is `add::task(1, 2)`: write `Process::new(add::task(1, 2))`",
    note = "`#[task]` above a function makes its `::task`, and above `impl Run for …` a body of a value"
)]
pub trait IntoBody {
    /// What [`Child::join`] returns.
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

/// A value that is a process's body: Python's subclass of `Process` with a `run` of its own.
///
/// `#[task]` above the `impl` makes it one. The fields travel, so the type has serde's `Serialize` and `Deserialize`.
/// Calling [`run`](Self::run) directly runs it here.
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
    /// What [`run`](Self::run) returns; `#[task]` writes it.
    type Output;

    /// The body.
    fn run(self) -> Self::Output;
}

impl<T> Process<T> {
    /// A process that is going to run this: a task, or a value with [`Run`]. Its arguments are encoded now, so they may be borrowed.
    pub fn new(body: impl IntoBody<Output = T>) -> Self {
        body.into_process()
    }

    fn of_task<F: TaskArgs<A> + TaskFn<Output = T>, A>(task: Task<F, A>) -> Self {
        let (args, options) = task.into_parts();
        let mut buffer = Buffer::new();
        let arguments =
            encode::<F, A>(args, &options, &mut buffer).map(|attached| (buffer.into_vec(), attached));
        Process {
            entry: F::entry(),
            arguments,
            task: options.called(F::NAME).to_owned(),
            timeout: options.timeout,
            name: options.name.map(String::from),
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

    /// Its name, a label without meaning to the system. By default that of the [task](crate::Task::name), if it has one, else
    /// `Process-1`, `Process-2`, …, and for the second process of the first one `Process-1:2`.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Whether it is terminated when the program ends by itself, in place of being waited for. By default as the process that
    /// starts it; `false` in the program that the user started. A daemon may have children; they die with it.
    pub fn daemon(mut self, daemon: bool) -> Self {
        self.daemon = Some(daemon);
        self
    }

    /// Whether it goes on when this process is killed or crashes. By default its whole process group is killed then. At an
    /// end by itself the program waits for it all the same, unless it is a daemon.
    pub fn outlive_parent(mut self, outlive: bool) -> Self {
        self.outlives_parent = outlive;
        self
    }

    /// Whether the programs that it has started may go on after it has ended with exit code 0: it has returned a value, or called
    /// `exit(0)`. By default they are killed with its process group, whatever its end was; after any other end they always are.
    ///
    /// For a process that starts a server and is done. [`kill_tree`](crate::ChildHandle::kill_tree) ends what it has left.
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

    /// A variable of its environment, beside those that it inherits.
    pub fn env(mut self, key: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.environment.push((key.into(), Some(value.into())));
        self
    }

    /// A variable that it is not to inherit.
    pub fn env_remove(mut self, key: impl Into<OsString>) -> Self {
        self.environment.push((key.into(), None));
        self
    }

    /// Its working directory; by default this process's.
    pub fn cwd(mut self, directory: impl Into<PathBuf>) -> Self {
        self.directory = Some(directory.into());
        self
    }

    /// Its standard input; by default empty. It leads a process group of its own, so reading from a terminal stops it.
    pub fn stdin(mut self, stdin: impl Into<Stdio>) -> Self {
        self.stdin = stdin.into();
        self
    }

    /// Its standard output; by default this process's.
    pub fn stdout(mut self, stdout: impl Into<Stdio>) -> Self {
        self.stdout = stdout.into();
        self
    }

    /// Its standard error; by default this process's.
    pub fn stderr(mut self, stderr: impl Into<Stdio>) -> Self {
        self.stderr = stderr.into();
        self
    }

    /// What the system is to refuse it.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// How it is started; by default as [`start_method`](crate::start_method) says.
    pub fn start_method(mut self, method: StartMethod) -> Self {
        self.method = Some(method);
        self
    }

    /// Another path of the program, for [`StartMethod::Spawn`]: a copy of it, say, that is going to stay. It must be the same
    /// build, and reach [`init`](crate::init).
    pub fn executable(mut self, path: impl Into<PathBuf>) -> Self {
        self.executable = Some(path.into());
        self
    }

    /// Starts it. Returns as soon as it is started, not when its body begins.
    ///
    /// # Errors
    /// [`StartError`]: arguments that do not encode, a program that never passed its entry, an operating system that refuses.
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

/// Where a process's standard input, output or error goes.
///
/// ```
/// use executor::{Process, Stdio, prelude::*};
/// use std::io::Read;
///
/// #[task]
/// fn speak() { println!("a word") }
///
/// #[executor::main]
/// fn main() -> Result<(), Box<dyn std::error::Error>> {
///     let child = Process::new(speak::task()).stdout(Stdio::piped()).start()?;
///     let mut said = String::new();
///     std::fs::File::from(child.take_stdout().unwrap()).read_to_string(&mut said)?;
///     assert_eq!(said, "a word\n");
///     child.join()?;
///     Ok(())
/// }
/// ```
#[derive(Debug)]
pub struct Stdio(Place);

#[derive(Debug)]
enum Place {
    Null,
    Inherit,
    Piped,
    Given(OwnedFd),
}

impl Stdio {
    /// Nothing comes, and what is written vanishes.
    pub fn null() -> Self {
        Stdio(Place::Null)
    }

    /// This process's own.
    pub fn inherit() -> Self {
        Stdio(Place::Inherit)
    }

    /// A pipe, whose other end the [`Child`] has. It holds 64 KiB: of an output, read all of it before you [`join`](Child::join), since
    /// a child whose pipe is full waits for its reader, and never ends.
    pub fn piped() -> Self {
        Stdio(Place::Piped)
    }
}

impl From<File> for Stdio {
    fn from(file: File) -> Self {
        Stdio(Place::Given(file.into()))
    }
}

impl From<OwnedFd> for Stdio {
    fn from(descriptor: OwnedFd) -> Self {
        Stdio(Place::Given(descriptor))
    }
}
