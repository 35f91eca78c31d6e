//! Shared parts of the integration tests: gates that hold tasks until the test opens them, notes
//! that tasks leave behind, functions that look at processes, and deadlines, so that a test that
//! hangs fails.
//!
//! Nothing here uses time to enforce an order. A test that needs "the task runs now" waits until
//! the task says so.

#![allow(dead_code, unreachable_pub)] // : each test crate uses only a part
#![allow(clippy::print_stderr)] // : the last message of a test that hangs

use std::{
    fs::{self, File, OpenOptions},
    path::{Path, PathBuf},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use executor::{ProcessPoolExecutor, task};
use tempfile::TempDir;

/// Long enough for anything here, also on a busy machine. This timeout only ends tests that hang.
pub const LONG: Duration = Duration::from_secs(60);

/// Returns a pool with this many workers.
pub fn pool(workers: usize) -> ProcessPoolExecutor {
    ProcessPoolExecutor::builder().max_workers(workers).build().expect("the options make sense")
}

/// Returns the number of rounds of long loops.
pub fn rounds() -> usize {
    std::env::var("EXECUTOR_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(300)
}

/// Waits until `condition` holds, and fails if that takes too long.
#[track_caller]
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + LONG;
    while !condition() {
        assert!(Instant::now() < deadline, "it did not come about: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Permits a test to use this much memory, if the machine has it and `EXECUTOR_LARGE=0` is not set.
/// Otherwise prints a message, and the test must not run. Only one test of all test binaries has
/// the permit at a time.
pub fn memory_to_spare(gib: u64) -> Option<File> {
    if std::env::var_os("EXECUTOR_LARGE").is_some_and(|value| value == "0") {
        eprintln!("not run: EXECUTOR_LARGE=0");
        return None;
    }
    // A lock on a file that exists anyway, so that no lock file has to be removed.
    let leave = File::open("/").expect("the root directory");
    leave.lock().expect("nobody keeps it");
    let info = fs::read_to_string("/proc/meminfo").expect("/proc");
    let line =
        info.lines().find_map(|line| line.strip_prefix("MemAvailable:")).expect("since Linux 3.14");
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
    if kib < gib << 20 {
        eprintln!("not run: it needs {gib} GiB of free memory, and there are {}", kib >> 20);
        return None;
    }
    Some(leave)
}

/// Ends the process if its test has not ended in time, because a hang counts as a failure.
#[must_use = "it guards until it is dropped"]
pub struct Watchdog(#[allow(dead_code)] mpsc::Sender<()>);

/// Guards a test against hanging.
pub fn watchdog() -> Watchdog {
    watchdog_of(8 * LONG)
}

/// Guards a test that may take longer than others.
pub fn watchdog_of(timeout: Duration) -> Watchdog {
    watchdog_named(thread::current().name().unwrap_or("a test"), timeout)
}

/// Guards a test, or a part of one, that may take longer than others. If it hangs, what the harness
/// has kept of its output is lost, so `what` says all that is needed to repeat it.
pub fn watchdog_named(what: &str, timeout: Duration) -> Watchdog {
    let what = what.to_owned();
    let (sender, receiver) = mpsc::channel::<()>();
    thread::spawn(move || {
        if receiver.recv_timeout(timeout) == Err(mpsc::RecvTimeoutError::Timeout) {
            say_past_the_harness(&format!("{what} hangs: nothing for {timeout:?}"));
            std::process::abort();
        }
    });
    Watchdog(sender)
}

/// Writes directly to stderr. The harness keeps the output of `eprintln!` until the test has ended,
/// and the test of a process that aborts never ends.
fn say_past_the_harness(words: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "{words}");
}

/// Makes this test run alone. For tests that look at the whole process, such as its threads and
/// children.
pub fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

// ---- gates --------------------------------------------------------------------------------------

/// Holds tasks until it is opened, and records the processes that have come to it.
///
/// The gate is a FIFO without a writer. A process that opens it for reading sleeps in the kernel
/// until the gate opens it for writing. Dropping the gate opens it.
pub struct Gate {
    dir: TempDir,
    /// Kept open, so that processes that come later pass as well.
    writer: Mutex<Option<File>>,
}

impl Gate {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mknodat(
            rustix::fs::CWD,
            dir.path().join("fifo"),
            rustix::fs::FileType::Fifo,
            mode,
            0,
        )
        .expect("a FIFO");
        Gate { dir, writer: Mutex::new(None) }
    }

    /// Returns the path that tasks need to come to the gate.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Returns the path of a file beside the gate.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Lets every process pass, also those that come later.
    pub fn open(&self) {
        // A FIFO opened for reading and writing does not wait for another process.
        let fifo = OpenOptions::new()
            .read(true)
            .write(true)
            .open(self.path().join("fifo"))
            .expect("the FIFO");
        *self.writer.lock().unwrap() = Some(fifo);
    }

    /// Returns the pids of the processes that have come so far, whether they have passed or not.
    pub fn arrivals(&self) -> Vec<u32> {
        let names = fs::read_dir(self.path()).expect("the gate's directory").map(|entry| {
            entry.expect("an entry").file_name().into_string().expect("names are ours")
        });
        let numbers = names
            .filter_map(|name| Some(name.strip_prefix("arrival-")?.split_once('-')?.0.to_owned()));
        numbers.map(|pid| pid.parse().expect("a process id")).collect()
    }

    /// Waits until that many have come, and returns their pids.
    #[track_caller]
    pub fn wait_for(&self, arrivals: usize) -> Vec<u32> {
        eventually(&format!("{arrivals} came to the gate"), || self.arrivals().len() >= arrivals);
        self.arrivals()
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.open();
    }
}

/// Called in a task: comes to the gate and waits until it is open.
pub fn come_to(gate: &Path) {
    static ARRIVALS: AtomicU64 = AtomicU64::new(0);
    let number = ARRIVALS.fetch_add(1, Ordering::Relaxed);
    File::create(gate.join(format!("arrival-{}-{number}", std::process::id())))
        .expect("a note at the gate");
    File::open(gate.join("fifo")).expect("the gate");
}

// ---- tasks --------------------------------------------------------------------------------------

/// Waits at the gate, then returns the worker's pid.
#[task]
pub fn hold(gate: &Path) -> u32 {
    come_to(gate);
    std::process::id()
}

/// Waits at the gate, then fails.
#[task]
pub fn hold_and_fail(gate: &Path) -> Result<u32, String> {
    come_to(gate);
    Err("let go".to_owned())
}

/// Waits at the gate, then creates the file `mark`.
#[task]
pub fn hold_then_mark(gate: &Path, mark: &Path) {
    come_to(gate);
    File::create(mark).expect("the mark");
}

/// Returns the worker's pid.
#[task]
pub fn pid() -> u32 {
    std::process::id()
}

/// Returns its argument.
#[task]
pub fn echo(value: u64) -> u64 {
    value
}

/// Returns its argument. It has the type of a pid, so that its futures and those of [`pid`] and
/// [`hold`] can be in one list.
#[task]
pub fn echo_number(value: u32) -> u32 {
    value
}

/// Fails with this message.
#[task]
pub fn fail(message: String) -> Result<u32, String> {
    Err(message)
}

/// Exits with this code.
#[task]
pub fn exit(code: i32) {
    std::process::exit(code)
}

/// Computes for ever.
#[task]
pub fn spin(gate: &Path) {
    let number = std::process::id();
    File::create(gate.join(format!("arrival-{number}-spin"))).expect("a note at the gate");
    loop {
        std::hint::spin_loop();
    }
}

/// Appends a line to a file, so that a test can see which tasks ran.
#[task]
pub fn note(file: PathBuf, line: u32) -> u32 {
    use std::io::Write;
    let mut file = OpenOptions::new().create(true).append(true).open(file).expect("the notes");
    // A single write with `O_APPEND`, so that lines of several workers do not mix.
    file.write_all(format!("{line}\n").as_bytes()).expect("a note");
    line
}

/// Returns the lines written by [`note`], in order.
pub fn notes(file: &Path) -> Vec<u32> {
    let text = fs::read_to_string(file).unwrap_or_default();
    text.lines().map(|line| line.parse().expect("a number a line")).collect()
}

/// Returns the value of an environment variable in the worker.
#[task]
pub fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Starts a program that comes to the gate, and waits for its end.
#[task]
pub fn start_a_program(gate: &Path) {
    let mut sleep = std::process::Command::new("sleep").arg("1000").spawn().expect("`sleep`");
    File::create(gate.join(format!("arrival-{}-sleep", sleep.id()))).expect("a note at the gate");
    sleep.wait().expect("it ends");
}

// ---- processes ----------------------------------------------------------------------------------

/// Sends a signal.
pub fn signal(pid: u32, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(pid as i32).expect("a process id");
    rustix::process::kill_process(pid, signal).expect("the process is there");
}

/// Returns whether a process ignores a signal, according to the kernel.
pub fn ignores(pid: u32, signal: rustix::process::Signal) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process is there");
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).expect("a mask");
    let mask = u64::from_str_radix(mask.trim(), 16).expect("a number");
    mask >> (signal.as_raw() - 1) & 1 == 1
}

/// Stops a process. All its threads are stopped when this returns. `kill` alone returns before the
/// signal takes effect, and some threads stop before others.
#[track_caller]
pub fn stop(pid: u32) {
    signal(pid, rustix::process::Signal::STOP);
    eventually("it stands still", || {
        let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        let mut states = threads.map(|thread| state_in(&thread.path())).peekable();
        states.peek().is_some() && states.all(|state| state == Some('T'))
    });
}

/// Returns a limit of this process, to which the system does not refuse the question.
#[expect(clippy::disallowed_methods, reason = "nobody refuses the call here")]
pub fn limit_of(resource: rustix::process::Resource) -> rustix::process::Rlimit {
    rustix::process::getrlimit(resource)
}

/// Forbids this thread, and threads and processes that it starts from now on, to make these system
/// calls: they fail with `EPERM`. It cannot be undone.
pub fn forbid_calls(calls: &[libc::c_long]) {
    let statement = |code: u32, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k };
    // The number of the system call is the first word of the data that a filter reads.
    let mut program = vec![statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0)];
    for call in calls {
        let equal = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
        program.push(libc::sock_filter { code: equal as u16, jt: 0, jf: 1, k: *call as u32 });
        program.push(statement(
            libc::BPF_RET | libc::BPF_K,
            libc::SECCOMP_RET_ERRNO | libc::EPERM as u32,
        ));
    }
    program.push(statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW));
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: `filter` and the program it points to live through the calls, which only read them.
    let installed = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
            && libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &filter) == 0
    };
    assert!(installed, "{}", std::io::Error::last_os_error());
}

/// Returns a user id without other processes. It differs from process to process, and it is valid
/// in a container as well.
pub fn user_of_its_own() -> u32 {
    10_000 + std::process::id() % 50_000
}

/// Calls `attempt` with increasing timeouts until it succeeds. `attempt` returns `None` if
/// something did not happen within its timeout. On a busy machine even a short operation may take a
/// second.
#[track_caller]
pub fn with_a_timeout_long_enough<T>(
    what: &str,
    mut attempt: impl FnMut(Duration) -> Option<T>,
) -> T {
    let timeouts = (0..6).map(|attempts| Duration::from_millis(50) * 4_u32.pow(attempts));
    timeouts.into_iter().find_map(&mut attempt).unwrap_or_else(|| panic!("not within 51 s: {what}"))
}

/// A thread of this process which another thread waits for until it sleeps, for instance because it
/// waits for something that must not have come about yet.
#[derive(Default)]
pub struct Sleeper(AtomicU32);

impl Sleeper {
    /// Called by the thread that will sleep.
    pub fn is_this_thread(&self) {
        self.0.store(
            rustix::thread::gettid().as_raw_nonzero().get().cast_unsigned(),
            Ordering::SeqCst,
        );
    }

    /// Waits until the thread sleeps in the kernel.
    #[track_caller]
    pub fn wait_until_asleep(&self) {
        eventually("it sleeps", || {
            let id = self.0.load(Ordering::SeqCst);
            id > 0 && state_in(Path::new(&format!("/proc/self/task/{id}"))) == Some('S')
        });
    }
}

/// Returns the letter of a process's state, if there is such a process.
pub fn state(pid: u32) -> Option<char> {
    state_in(Path::new(&format!("/proc/{pid}")))
}

/// Like [`state`], for the folder of a process or a thread in `/proc`.
fn state_in(folder: &Path) -> Option<char> {
    let stat = fs::read_to_string(folder.join("stat")).ok()?;
    // The name is in parentheses, and may contain parentheses itself.
    stat.rsplit_once(") ")?.1.chars().next()
}

/// Returns whether a process runs. A process that has ended and was not waited for does not run: if
/// it is an orphan, only the system can reap it.
pub fn runs(pid: u32) -> bool {
    state(pid).is_some_and(|state| !matches!(state, 'Z' | 'X'))
}

/// Returns the children of this process with their states and commands, also those that have ended
/// and were not waited for.
pub fn children() -> Vec<(u32, char, String)> {
    let own = std::process::id().to_string();
    let all = fs::read_dir("/proc").expect("/proc").filter_map(|entry| {
        let pid: u32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (name, rest) = stat.rsplit_once(") ")?;
        let mut fields = rest.split(' ');
        let state = fields.next()?.chars().next()?;
        (fields.next()? == own).then(|| (pid, state, name.to_owned()))
    });
    all.collect()
}

/// Returns the names of the executors' threads in this process.
pub fn executor_threads() -> Vec<String> {
    let names = fs::read_dir("/proc/self/task").expect("/proc").filter_map(|entry| {
        let name = fs::read_to_string(entry.ok()?.path().join("comm")).ok()?;
        Some(name.trim().to_owned())
    });
    names.filter(|name| name.starts_with("executor-")).collect()
}

/// Returns how many descriptors this process has open.
pub fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").expect("/proc").count() - 1
}

/// Returns what the descriptors of this process refer to.
pub fn descriptor_names() -> Vec<String> {
    let links = fs::read_dir("/proc/self/fd")
        .expect("/proc")
        .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    links.map(|link| link.display().to_string()).collect()
}

/// Returns the processes that have this variable in their environment, with their command lines.
pub fn tagged(tag: &str) -> Vec<(u32, String)> {
    let all = fs::read_dir("/proc").expect("/proc").filter_map(|entry| {
        let pid: u32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
        let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
        let tagged =
            environment.split(|byte| *byte == 0).any(|variable| variable == tag.as_bytes());
        tagged.then(|| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            (pid, String::from_utf8_lossy(&line).replace('\0', " "))
        })
    });
    all.collect()
}

/// Returns the file of the shared memory with this name, of any user.
pub fn named_file(name: &str) -> Option<std::path::PathBuf> {
    // Entries may disappear while they are listed.
    let within = |folder: std::path::PathBuf| {
        std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path())
    };
    let ours = within("/dev/shm".into())
        .filter(|path| path.to_string_lossy().starts_with("/dev/shm/executor-shared-memory."));
    ours.flat_map(within)
        .map(|bucket| bucket.join(format!("={name}/memory")))
        .find(|file| file.exists())
}
