//! What the integration tests share: gates that hold tasks until the test lets them go, notes that tasks leave behind,
//! and deadlines, so that what hangs fails.
//!
//! Nothing here measures time to find an order. A test that needs "the task runs now" waits until the task says so.

#![allow(dead_code, unreachable_pub)] // each test crate uses a part
#![allow(clippy::print_stderr)] // the last words of a test that hangs

use std::{
    fs::{self, File, OpenOptions},
    path::{Path, PathBuf},
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use executor::{ProcessPoolExecutor, task};
use tempfile::TempDir;

/// Long after anything here should have happened, also on a busy machine. It ends tests that hang and nothing else.
pub const LONG: Duration = Duration::from_secs(60);

/// A pool of this many workers.
pub fn pool(workers: usize) -> ProcessPoolExecutor {
    ProcessPoolExecutor::builder().max_workers(workers).build().expect("the options make sense")
}

/// Waits until `condition` holds; fails if that takes too long.
#[track_caller]
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + LONG;
    while !condition() {
        assert!(Instant::now() < deadline, "it did not come about: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Sends a signal.
pub fn signal(pid: u32, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(pid as i32).expect("a process id");
    rustix::process::kill_process(pid, signal).expect("the process is there");
}

/// Stops a process: when this returns all its threads stand still. `kill` alone returns before its effect, and the first thread
/// stops before others.
#[track_caller]
pub fn stop(pid: u32) {
    signal(pid, rustix::process::Signal::STOP);
    eventually("it stands still", || {
        let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        let mut states = threads.map(|thread| state_in(&thread.path())).peekable();
        states.peek().is_some() && states.all(|state| state == Some('T'))
    });
}

/// The letter of a process's state, if there is such a process.
pub fn state(pid: u32) -> Option<char> {
    state_in(Path::new(&format!("/proc/{pid}")))
}

/// As [`state`], of what this folder of the system tells of: a process or a thread.
fn state_in(folder: &Path) -> Option<char> {
    let stat = fs::read_to_string(folder.join("stat")).ok()?;
    // The name stands in brackets and may itself contain some.
    stat.rsplit_once(") ")?.1.chars().next()
}

/// A user for whom nobody else is at work: another one in each process, and one that a container knows as well.
pub fn user_of_its_own() -> u32 {
    10_000 + std::process::id() % 50_000
}

/// Tries with a limit that grows, until what has to happen within it had the time: `None` is "it had not". On a busy
/// machine a moment is a second.
#[track_caller]
pub fn with_a_limit_long_enough<T>(what: &str, mut attempt: impl FnMut(Duration) -> Option<T>) -> T {
    let limits = (0..6).map(|attempts| Duration::from_millis(50) * 4_u32.pow(attempts));
    limits.into_iter().find_map(&mut attempt).unwrap_or_else(|| panic!("not within 51 s: {what}"))
}

/// Leave for a test that needs so much memory, if the machine has it and `EXECUTOR_LARGE=0` does not refuse it; says so
/// if not, and the test is not run. One at a time has it, of all test binaries.
pub fn memory_to_spare(gib: u64) -> Option<File> {
    if std::env::var_os("EXECUTOR_LARGE").is_some_and(|value| value == "0") {
        eprintln!("not run: EXECUTOR_LARGE=0");
        return None;
    }
    // A lock without a file of its own, which somebody would have to remove.
    let leave = File::open("/").expect("the root directory");
    leave.lock().expect("nobody keeps it");
    let info = fs::read_to_string("/proc/meminfo").expect("/proc");
    let line = info.lines().find_map(|line| line.strip_prefix("MemAvailable:")).expect("since Linux 3.14");
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
    if kib < gib << 20 {
        eprintln!("not run: it needs {gib} GiB of free memory, and there are {}", kib >> 20);
        return None;
    }
    Some(leave)
}

/// Ends the process if the test that holds it has not ended in time: a hang is a failure, not a wait.
#[must_use = "it guards until it is dropped"]
pub struct Watchdog(Option<mpsc::Sender<()>>);

/// Guards a test against hanging.
pub fn watchdog() -> Watchdog {
    watchdog_of(8 * LONG)
}

/// Guards a test that may take longer than others.
pub fn watchdog_of(limit: Duration) -> Watchdog {
    let test = thread::current().name().unwrap_or("a test").to_owned();
    let (sender, receiver) = mpsc::channel::<()>();
    thread::spawn(move || {
        if receiver.recv_timeout(limit) == Err(mpsc::RecvTimeoutError::Timeout) {
            say_past_the_harness(&format!("{test} hangs: nothing for {limit:?}"));
            std::process::abort();
        }
    });
    Watchdog(Some(sender))
}

/// The harness keeps what `eprintln!` says until the test has ended, and of a process that aborts no test ends.
fn say_past_the_harness(words: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "{words}");
}

/// Holds tasks until it is opened, and counts those that have come to it.
///
/// It is a FIFO that nobody writes: whoever opens it for reading sleeps in the kernel until the gate opens it for
/// writing. Dropping the gate opens it.
pub struct Gate {
    dir: TempDir,
    /// Kept, so that those who come later pass as well.
    writer: Mutex<Option<File>>,
}

impl Gate {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mknodat(rustix::fs::CWD, dir.path().join("fifo"), rustix::fs::FileType::Fifo, mode, 0)
            .expect("a FIFO");
        Gate { dir, writer: Mutex::new(None) }
    }

    /// What tasks need to come to it.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Lets everybody pass, also those who come later.
    pub fn open(&self) {
        // Opened for both, a FIFO does not wait for the other side.
        let fifo =
            OpenOptions::new().read(true).write(true).open(self.path().join("fifo")).expect("the FIFO");
        *self.writer.lock().unwrap() = Some(fifo);
    }

    /// How many have come so far, passed or not.
    pub fn arrivals(&self) -> usize {
        fs::read_dir(self.path()).expect("the gate's directory").count() - 1
    }

    /// Waits until that many have come.
    #[track_caller]
    pub fn wait_for(&self, arrivals: usize) {
        eventually(&format!("{arrivals} came to the gate"), || self.arrivals() >= arrivals);
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.open();
    }
}

/// In a task: comes to the gate and waits until it is open.
pub fn come_to(gate: &Path) {
    static ARRIVALS: AtomicU64 = AtomicU64::new(0);
    let number = ARRIVALS.fetch_add(1, Ordering::Relaxed);
    let note = gate.join(format!("arrival-{}-{number}", std::process::id()));
    File::create(note).expect("a note at the gate");
    File::open(gate.join("fifo")).expect("the gate");
}

/// Waits at the gate, then gives the worker's process id.
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

/// The worker's process id.
#[task]
pub fn pid() -> u32 {
    std::process::id()
}

/// What came, goes back.
#[task]
pub fn echo(value: u32) -> u32 {
    value
}

#[task]
pub fn fail(message: String) -> Result<u32, String> {
    Err(message)
}

/// Adds a line to a file, so that a test can see who ran.
#[task]
pub fn note(file: PathBuf, line: u32) -> u32 {
    use std::io::Write;
    let mut file = OpenOptions::new().create(true).append(true).open(file).expect("the notes");
    // One write with O_APPEND: lines of several workers do not mix.
    file.write_all(format!("{line}\n").as_bytes()).expect("a note");
    line
}

/// The lines that [`note`] left, in order.
pub fn notes(file: &Path) -> Vec<u32> {
    let text = fs::read_to_string(file).unwrap_or_default();
    text.lines().map(|line| line.parse().expect("a number a line")).collect()
}

/// The file of shared memory with this name, of whichever user.
pub fn named_file(name: &str) -> Option<std::path::PathBuf> {
    // What ends while one looks is not there.
    let within = |folder: std::path::PathBuf| {
        std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path())
    };
    let ours = within("/dev/shm".into())
        .filter(|path| path.to_string_lossy().starts_with("/dev/shm/executor-shared-memory."));
    ours.flat_map(within).map(|bucket| bucket.join(format!("={name}/memory"))).find(|file| file.exists())
}
