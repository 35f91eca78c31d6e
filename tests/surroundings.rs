//! Unusual environments: the quickstart, a task that aborts, executors with every option that asks
//! more of the system, and a manager, whose clients come by handles, at a Unix socket, and over TCP
//! with TLS, under small limits, with refused system calls, without `/proc` or `/dev`, in special
//! terminals, as the first process, and so on.
//!
//! In each environment, everything works, or a failure is an error that says what was tried and why
//! it was refused. Nothing hangs, nothing is ended by a signal, and nothing is left behind.
//!
//! This file has its own `main`. Without a role it runs the tests. Each test starts this file again
//! to *arrange* an environment by system calls. The arranger then replaces itself with this file
//! once more, to *play* a program in the environment. The program reports through a pipe, because
//! it may have no standard streams and may be unable to write a file.

#[path = "support/harness.rs"]
mod harness;
mod support;

use std::{
    ffi::{CString, OsStr, OsString},
    fmt::Write as _,
    fs::{self, File},
    io::{self, Read},
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::{
            ffi::{OsStrExt, OsStringExt},
            fs::{DirBuilderExt, PermissionsExt},
            process::{CommandExt, ExitStatusExt},
        },
    },
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use executor::{
    Address, AuthKey, Isolation, Limits, Lock, Pin, Process, ProcessPoolBuilder, Queue,
    SharedBytes, StartMethod, TaskError,
    manager::{self, Identity, Manager, Trust},
    prelude::*,
};
use rustix::process::{Resource, Rlimit, Signal, setrlimit};
use support::tagged;

macro_rules! list {
    ($list:ident: $($name:ident,)*) => {
        const $list: &[(&str, fn())] = &[$((stringify!($name), $name),)*];
    };
}

list! { TESTS:
    small_limits_are_errors,
    small_limits_of_users_and_groups_are_errors,
    refused_system_calls_are_errors,
    restrictions_of_containers_work_or_are_errors,
    missing_streams_and_special_terminals_work,
    ignored_and_blocked_signals_of_the_caller_work,
    unusual_directories_environments_and_priorities_work,
}

/// Environments that are known to fail, and how. They are played only if `EXECUTOR_TEST_ONLY` asks
/// for them. An environment that works must not be listed here.
const EXPECTED_LATER: &[(&str, &str)] = &[];

/// Names the role of this process. It is not set for the tests.
const ROLE: &str = "EXECUTOR_TEST_ROLE";
/// Names the environment.
const CELL: &str = "EXECUTOR_TEST_CELL";
/// Marks a program and everything that it starts.
const TAG: &str = "EXECUTOR_TEST_TAG";
/// Names the terminal of an environment that has one.
const TERMINAL: &str = "EXECUTOR_TEST_TERMINAL";
/// Names the folder for Unix sockets.
const PLACE: &str = "EXECUTOR_TEST_PLACE";
/// Names the control group that an environment may make. The test removes the group.
const GROUP: &str = "EXECUTOR_TEST_GROUP";

/// The descriptor on which the program reports. It is already open, so no limit on descriptors
/// forbids it.
const REPORT: RawFd = 200;
/// The arranger's exit code for "this machine cannot do it".
const IMPOSSIBLE: i32 = 77;
/// The loader's exit code for a program that it cannot load.
const NOT_LOADED: i32 = 127;
/// A program that takes longer than this counts as hanging.
const HANGS_AFTER: Duration = Duration::from_secs(60);

fn main() {
    match std::env::var(ROLE).as_deref() {
        Err(_) => harness::run(TESTS),
        Ok("arrange") => arrange(),
        Ok(role) => {
            executor::init();
            (cell().inside)();
            // By `ioctl`, because `fcntl` may be refused.
            rustix::io::ioctl_fioclex(report()).expect("it is open");
            match role {
                "quickstart" => quickstart(),
                "death" => death(),
                "options" => options(),
                "manager" => managed(),
                "unix" => by_address(Way::Unix),
                "tls" => by_address(Way::Tls),
                other => unreachable!("{other}"),
            }
        }
    }
}

// ---- the programs -------------------------------------------------------------------------------

fn report() -> std::os::fd::BorrowedFd<'static> {
    // SAFETY: the descriptor is open from the start to the end of each program, and nothing else
    // uses it.
    unsafe { std::os::fd::BorrowedFd::borrow_raw(REPORT) }
}

/// Reports the outcome of a step: nothing, or why it failed.
fn step(name: &str, outcome: Result<(), String>) {
    let line = format!("{name}\t{}\n", outcome.err().unwrap_or_default().replace('\n', " "));
    rustix::io::write(report(), line.as_bytes()).expect("the test reads it");
}

/// Returns an error that says which value came instead of the expected one.
fn expect<T: PartialEq + std::fmt::Debug>(came: T, expected: T) -> Result<(), String> {
    if came == expected { Ok(()) } else { Err(format!("WRONG: {came:?} in place of {expected:?}")) }
}

/// Returns the text of an error, and of the system's error that it comes from.
fn text(error: impl std::error::Error) -> String {
    let text = error.to_string();
    match error.source() {
        // Some errors contain the text of their source.
        Some(cause) if !text.contains(&cause.to_string()) => format!("{text}: {cause}"),
        _ => text,
    }
}

#[task]
fn add(a: u32, b: u32) -> u32 {
    a + b
}

#[task]
fn speak() {
    println!("a worker speaks");
}

#[task]
fn sum(bytes: SharedBytes) -> u64 {
    bytes.iter().map(|byte| u64::from(*byte)).sum()
}

#[task]
fn fill(len: usize) -> Vec<u8> {
    vec![7; len]
}

#[task]
fn double_in(queue: Queue<u32>, lock: Lock) -> Result<u32, String> {
    let _guard = lock.acquire().map_err(text)?;
    let value = queue.get().map_err(text)?;
    queue.put(2 * value).map_err(text)?;
    Ok(value)
}

#[task]
fn abort() {
    std::process::abort()
}

/// Plays the first page of the documentation, and reports each step separately.
fn quickstart() {
    match ProcessPoolExecutor::builder().max_workers(2).build() {
        Err(error) => step("submit", Err(text(error))),
        Ok(pool) => {
            let came = pool.submit(add::task(1, 2)).result();
            step("submit", came.map_err(text).and_then(|came| expect(came, 3)));
            let came: Result<Vec<u32>, TaskError> = pool.map(|i| add::task(i, i), 0..20).collect();
            step(
                "map",
                came.map_err(text).and_then(|came| expect(came, (0..20).map(|i| 2 * i).collect())),
            );
            let came = pool.submit(fill::task(100_000)).result();
            step("large", came.map_err(text).and_then(|came| expect(came, vec![7; 100_000])));
            step("bytes", shared_bytes(&pool));
            if std::env::var_os(TERMINAL).is_some() {
                step("speak", pool.submit(speak::task()).result().map_err(text));
            }
            pool.shutdown(true);
        }
    }
    let came = Process::new(add::task(3, 4)).start().map_err(text);
    step("process", came.and_then(|child| expect(child.join().map_err(text)?, 7)));
    step("queue", queue_and_lock());
}

fn shared_bytes(pool: &ProcessPoolExecutor) -> Result<(), String> {
    let bytes = SharedBytes::try_copy_from_slice(&[1; 50_000]).map_err(text)?;
    expect(pool.submit(sum::task(bytes)).result().map_err(text)?, 50_000)
}

fn queue_and_lock() -> Result<(), String> {
    let queue = Queue::unbounded().map_err(text)?;
    let lock = Lock::new().map_err(text)?;
    queue.put(21).map_err(text)?;
    let child = Process::new(double_in::task(queue.clone(), lock.clone())).start().map_err(text)?;
    expect(child.join().map_err(text)?, 21)?;
    drop(lock.acquire().map_err(text)?);
    expect(queue.get().map_err(text)?, 42)?;
    // A backlog that leads to the longest ring.
    let queue = Queue::unbounded().map_err(text)?;
    for _ in 0..2_000 {
        queue.put(vec![7_u8; 1_000]).map_err(text)?;
    }
    for _ in 0..2_000 {
        expect(queue.get().map_err(text)?, vec![7; 1_000])?;
    }
    Ok(())
}

/// Plays a task that kills its worker. That task must fail, and the pool must go on.
fn death() {
    let pool = match ProcessPoolExecutor::builder().max_workers(1).build() {
        Ok(pool) => pool,
        Err(error) => return step("death", Err(text(error))),
    };
    let behind = pool.submit(abort::task());
    let next = pool.submit(add::task(1, 1));
    let status = match behind.result() {
        Err(TaskError::WorkerLost { status, .. }) => {
            let expected = match cell().name {
                // The status cannot be known here.
                "SIGCHLD ignored" | "every signal ignored" => executor::ExitStatus::Unknown,
                name if name.starts_with("SYS_waitid") => executor::ExitStatus::Unknown,
                // If `abort` may not send a signal, it ends the process by an invalid instruction.
                name if name.starts_with("SYS_tgkill") => {
                    executor::ExitStatus::Signaled(libc::SIGSEGV)
                }
                _ => executor::ExitStatus::Signaled(libc::SIGABRT),
            };
            expect(status, expected)
        }
        Err(other) => Err(text(other)),
        Ok(()) => Err("WRONG: it came back".into()),
    };
    step("death", status);
    step("next", next.result().map_err(text).and_then(|came| expect(came, 2)));
    step(
        "later",
        pool.submit(add::task(2, 2)).result().map_err(text).and_then(|came| expect(came, 4)),
    );
    pool.shutdown(true);
}

/// An option of an executor.
type Sets = fn(ProcessPoolBuilder) -> ProcessPoolBuilder;

/// The options that ask more of the system than executors do without them.
const OPTIONS: [(&str, Sets); 6] = [
    ("copies", |builder| builder.start_method(StartMethod::ForkServer).preload(add::task(1, 1))),
    ("a worker for each task", |builder| builder.isolation(Isolation::PerTask).ready(1)),
    ("a limit on memory", |builder| builder.worker_memory_limit(1 << 30)),
    ("limits of the system", |builder| {
        builder.limits(Limits::default().open_files(some_files()).cpu_time(Duration::from_secs(60)))
    }),
    ("a place", |builder| builder.slots(["a"]).pin(Pin::Cores).nice(19)),
    ("a finalizer", |builder| {
        builder.finalizer(add::task(20, 22)).idle_timeout(Duration::from_secs(60)).min_workers(1)
    }),
];

/// A limit on descriptors that every process may set: 64, or as many as it may have itself.
fn some_files() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 64, rlim_max: 64 };
    // SAFETY: writes to the variable. If it is refused, the variable stays as it is.
    #[expect(clippy::disallowed_methods, reason = "a refusal is the case of some cells")]
    unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit);
    }
    limit.rlim_cur.min(64)
}

/// Plays an executor with each of the options.
fn options() {
    for (name, sets) in OPTIONS {
        step(name, with_option(sets(ProcessPoolExecutor::builder().max_workers(1))));
    }
}

fn with_option(builder: ProcessPoolBuilder) -> Result<(), String> {
    let pool = builder.build().map_err(text)?;
    expect(pool.submit(add::task(1, 2)).result().map_err(text)?, 3)?;
    let lasts = pool.submit(forever::task().timeout(Duration::from_millis(20)));
    match lasts.result() {
        Err(error) if error.is_timeout() => {}
        Err(error) => return Err(text(error)),
        Ok(()) => return Err("WRONG: it came back".into()),
    }
    expect(pool.submit(add::task(3, 4)).result().map_err(text)?, 7)?;
    pool.shutdown(true);
    // The worker that was killed has run none.
    match pool.finalizer_results::<add>().pop() {
        // There is no finalizer.
        Some(Err(TaskError::Invalid(_))) => Ok(()),
        Some(result) => expect(result.map_err(text)?, 42),
        None => Err("WRONG: no worker has run the finalizer".into()),
    }
}

#[task]
fn forever() {
    loop {
        thread::park();
    }
}

#[task]
fn append(text: String, more: &str) -> String {
    text + more
}

/// What another process does with managed objects.
#[task]
fn use_managed(
    dict: manager::Dict<String, String>,
    items: manager::Queue<Vec<u8>>,
    lock: manager::Lock,
) -> Result<usize, String> {
    let _guard = lock.acquire().map_err(text)?;
    dict.update("key", append::with("b")).map_err(text)?;
    Ok(items.get().map_err(text)?.len())
}

/// Plays a manager, whose objects this process and another one use.
fn managed() {
    let manager = match Manager::start() {
        Ok(manager) => manager,
        Err(error) => return step("manager", Err(text(error))),
    };
    step("objects", use_objects(&manager));
    manager.shutdown();
    step("gone", expect(matches!(manager.objects(), Err(manager::ManagerError::Gone(_))), true));
}

/// How clients come to a manager that listens at an address.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    Unix,
    Tls,
}

type Objects = (manager::Dict<String, String>, manager::Queue<Vec<u8>>, manager::Lock);

/// What another process does that comes by an address.
#[task]
fn come(address: String, fingerprint: String) -> Result<usize, String> {
    let manager = connect(&address, &fingerprint)?;
    let found: Option<Objects> = manager.published("objects").map_err(text)?;
    let (dict, items, lock) = found.ok_or("WRONG: it is not published")?;
    let _guard = lock.acquire().map_err(text)?;
    dict.update("key", append::with("b")).map_err(text)?;
    Ok(items.get().map_err(text)?.len())
}

fn connect(address: &str, fingerprint: &str) -> Result<Manager, String> {
    let address: Address = address.parse().map_err(text)?;
    let trust = Trust::fingerprint(fingerprint.parse().map_err(text)?);
    let connector = Manager::connector(&address, &AuthKey::new("key")).trust(trust);
    connector.timeout(Duration::from_secs(10)).connect().map_err(text)
}

/// Plays a manager that listens at an address, where this process and another one find it.
fn by_address(way: Way) {
    // Where there is no place for a file, nobody has a Unix socket.
    let place = std::env::var_os(PLACE).map(PathBuf::from).unwrap_or_default();
    let folder = place.join("unix");
    let mut private = fs::DirBuilder::new();
    if way == Way::Unix && private.mode(0o700).create(&folder).is_err() {
        return step("no place for a socket", Ok(()));
    }
    let file = folder.join("socket");
    let address = match way {
        Way::Unix => file.as_path().into(),
        Way::Tls => "127.0.0.1:0".parse().expect("an address"),
    };
    listening(&address, &file);
    // A server that was aborted has left its file.
    let _ = fs::remove_file(&file);
    if way == Way::Unix {
        fs::remove_dir(&folder).expect("nothing else is in it");
    }
}

fn listening(address: &Address, file: &Path) {
    let identity = match Identity::generate() {
        Ok(identity) => identity,
        Err(error) => return step("identity", Err(text(error))),
    };
    let fingerprint = identity.fingerprint().to_string();
    let builder = Manager::builder().key(AuthKey::new("key")).identity(identity);
    let manager = match builder.start() {
        Ok(manager) => manager,
        Err(error) => return step("manager", Err(text(error))),
    };
    let used = use_by_address(&manager, address, &fingerprint);
    let works = used.is_ok();
    step("objects", used);
    manager.shutdown();
    // Where the system removes no file, the server cannot either.
    if works && !cell().name.contains("unlinkat") {
        step("file", expect(file.exists(), false));
    }
}

fn use_by_address(manager: &Manager, address: &Address, fingerprint: &str) -> Result<(), String> {
    let address = manager.listen(address).map_err(text)?.to_string();
    let own = connect(&address, fingerprint)?;
    let dict = own.dict([("key".to_owned(), "a".to_owned())]).map_err(text)?;
    let (items, lock) = (own.queue(None).map_err(text)?, own.lock().map_err(text)?);
    items.put(&vec![7; 1_000_000]).map_err(text)?;
    let objects: Objects = (dict, items, lock);
    own.publish("objects", &objects).map_err(text)?;
    let child = Process::new(come::task(address, fingerprint.to_owned()));
    expect(child.start().map_err(text)?.join().map_err(text)?, 1_000_000)?;
    let (dict, items, lock) = objects;
    expect(dict.get("key").map_err(text)?.as_deref(), Some("ab"))?;
    let taken = lock.acquire_timeout(Duration::from_secs(20)).map_err(text)?;
    expect(taken.is_some(), true)?;
    drop(taken);
    drop((dict, items, lock));
    own.unpublish("objects").map_err(text)?;
    expect(manager.objects().map_err(text)?, 0)
}

fn use_objects(manager: &Manager) -> Result<(), String> {
    let dict = manager.dict([("key".to_owned(), "a".to_owned())]).map_err(text)?;
    let items = manager.queue(None).map_err(text)?;
    let lock = manager.lock().map_err(text)?;
    // More than fits into the memory between client and server.
    items.put(&vec![7; 1_000_000]).map_err(text)?;
    let task = use_managed::task(dict.clone(), items.clone(), lock.clone());
    let child = Process::new(task).start().map_err(text)?;
    expect(child.join().map_err(text)?, 1_000_000)?;
    expect(dict.get("key").map_err(text)?.as_deref(), Some("ab"))?;
    let taken = lock.acquire_timeout(Duration::from_secs(20)).map_err(text)?;
    expect(taken.as_ref().map(|guard| guard.owner_died()), Some(false))?;
    drop(taken);
    drop((dict, items, lock));
    expect(manager.objects().map_err(text)?, 0)
}

// ---- an environment -----------------------------------------------------------------------------

/// Arranges the environment before the program starts. An error says why this machine cannot do it.
type Before = fn() -> Result<(), String>;

struct Cell {
    name: &'static str,
    before: Before,
    /// What the program itself does first.
    inside: fn(),
    /// Texts of which an error has to contain one. If there are none, everything has to work.
    refusals: &'static [&'static str],
}

const fn works(name: &'static str, before: Before) -> Cell {
    Cell { name, before, inside: || {}, refusals: &[] }
}

/// An environment in which the program works, or fails with an error that contains one of these
/// texts.
const fn or_says(name: &'static str, refusals: &'static [&'static str], before: Before) -> Cell {
    Cell { name, before, inside: || {}, refusals }
}

/// Returns the environment of this process, in the arranger and in the program.
fn cell() -> &'static Cell {
    let name = std::env::var(CELL).expect("the cell is named");
    all_cells().find(|cell| cell.name == name).expect("there is such a cell")
}

fn all_cells() -> impl Iterator<Item = &'static Cell> {
    [LIMITS, USERS, CALLS, CALLS_NOT_NEEDED, CALLS_OF_A_START, CONTAINERS, STREAMS, SIGNALS, PLACES]
        .into_iter()
        .flatten()
}

/// Arranges the environment, then becomes the program.
fn arrange() {
    let file = File::open("/proc/self/exe").expect("this file");
    // The file is already open, because the program must be found without `/proc` and by another
    // user.
    if let Err(why) = (cell().before)() {
        let _ = rustix::io::write(report(), format!("impossible\t{why}\n").as_bytes());
        std::process::exit(IMPOSSIBLE);
    }
    let role = std::env::var("EXECUTOR_TEST_NEXT").expect("what is played");
    let variables =
        std::env::vars_os().filter(|(name, _)| name != ROLE).chain([(ROLE.into(), role.into())]);
    let variables: Vec<CString> = variables
        .map(|(name, value)| {
            let mut variable = name.into_vec();
            variable.push(b'=');
            variable.extend(value.into_vec());
            CString::new(variable).expect("no zero in it")
        })
        .collect();
    let args: Vec<CString> = ["a program".into(), OsString::from_vec(b"\xff\xfe".to_vec())]
        .into_iter()
        .map(|arg| CString::new(arg.into_vec()).expect("no zero in it"))
        .collect();
    let pointers = |all: &[CString]| {
        all.iter()
            .map(|one| one.as_ptr().cast_mut())
            .chain([std::ptr::null_mut()])
            .collect::<Vec<_>>()
    };
    // SAFETY: both lists of strings end with null, and they live until the call returns, if it
    // does.
    unsafe {
        libc::fexecve(
            file.as_raw_fd(),
            pointers(&args).as_ptr().cast(),
            pointers(&variables).as_ptr().cast(),
        )
    };
    let why =
        format!("impossible\tthe program cannot be started: {}\n", io::Error::last_os_error());
    let _ = rustix::io::write(report(), why.as_bytes());
    std::process::exit(IMPOSSIBLE);
}

fn os_error(what: &str, returned: libc::c_int) -> Result<(), String> {
    if returned == -1 { Err(format!("{what}: {}", io::Error::last_os_error())) } else { Ok(()) }
}

fn nothing() -> Result<(), String> {
    Ok(())
}

// ---- limits -------------------------------------------------------------------------------------

fn limit(resource: Resource, value: u64) -> Result<(), String> {
    setrlimit(resource, Rlimit { current: Some(value), maximum: Some(value) })
        .map_err(|error| format!("{resource:?}: {error}"))
}

const FILES: &[&str] = &["Too many open files", "descriptor"];
const MEMORY: &[&str] =
    &["Cannot allocate memory", "out of memory", "Resource temporarily unavailable", "memory"];
const SIZE: &[&str] = &["File too large", "RLIMIT_FSIZE", "file size"];
const PROCESSES: &[&str] = &["Resource temporarily unavailable"];

const LIMITS: &[Cell] = &[
    works("nothing special", nothing),
    or_says("files of 0 bytes", SIZE, || limit(Resource::Fsize, 0)),
    or_says("files of 64 KiB", SIZE, || limit(Resource::Fsize, 64 << 10)),
    or_says("files of 10 MB", SIZE, || limit(Resource::Fsize, 10_000 << 10)),
    or_says("4 descriptors", FILES, || limit(Resource::Nofile, 4)),
    or_says("6 descriptors", FILES, || limit(Resource::Nofile, 6)),
    or_says("7 descriptors", FILES, || limit(Resource::Nofile, 7)),
    or_says("8 descriptors", FILES, || limit(Resource::Nofile, 8)),
    or_says("9 descriptors", FILES, || limit(Resource::Nofile, 9)),
    or_says("10 descriptors", FILES, || limit(Resource::Nofile, 10)),
    or_says("11 descriptors", FILES, || limit(Resource::Nofile, 11)),
    or_says("12 descriptors", FILES, || limit(Resource::Nofile, 12)),
    or_says("13 descriptors", FILES, || limit(Resource::Nofile, 13)),
    or_says("14 descriptors", FILES, || limit(Resource::Nofile, 14)),
    or_says("15 descriptors", FILES, || limit(Resource::Nofile, 15)),
    or_says("16 descriptors", FILES, || limit(Resource::Nofile, 16)),
    or_says("20 descriptors", FILES, || limit(Resource::Nofile, 20)),
    or_says("24 descriptors", FILES, || limit(Resource::Nofile, 24)),
    or_says("32 descriptors", FILES, || limit(Resource::Nofile, 32)),
    works("64 descriptors", || limit(Resource::Nofile, 64)),
    // With less, there is no room for the program itself: the standard library aborts.
    or_says("30 MiB of addresses", MEMORY, || limit(Resource::As, 30 << 20)),
    or_says("40 MiB of addresses", MEMORY, || limit(Resource::As, 40 << 20)),
    or_says("50 MiB of addresses", MEMORY, || limit(Resource::As, 50 << 20)),
    or_says("200 MiB of addresses", MEMORY, || limit(Resource::As, 200 << 20)),
    or_says("1 GiB of addresses", MEMORY, || limit(Resource::As, 1 << 30)),
    or_says("5 GiB of addresses", MEMORY, || limit(Resource::As, 5 << 30)),
    or_says("8 GiB of addresses", MEMORY, || limit(Resource::As, 8 << 30)),
    or_says("1 MiB of data", MEMORY, || limit(Resource::Data, 1 << 20)),
    or_says("2 MiB of data", MEMORY, || limit(Resource::Data, 2 << 20)),
    or_says("3 MiB of data", MEMORY, || limit(Resource::Data, 3 << 20)),
    or_says("4 MiB of data", MEMORY, || limit(Resource::Data, 4 << 20)),
    or_says("6 MiB of data", MEMORY, || limit(Resource::Data, 6 << 20)),
    or_says("8 MiB of data", MEMORY, || limit(Resource::Data, 8 << 20)),
    or_says("12 MiB of data", MEMORY, || limit(Resource::Data, 12 << 20)),
    works("stacks of 200 KiB", || limit(Resource::Stack, 200 << 10)),
    works("no memory to lock", || limit(Resource::Memlock, 0)),
    works("no pending signals", || limit(Resource::Sigpending, 0)),
    works("no core file", || limit(Resource::Core, 0)),
];

/// Becomes a user that has no other processes, and limits the number of its processes.
fn user_with(processes: u64) -> Result<(), String> {
    let nobody_else = support::user_of_its_own();
    if !rustix::process::geteuid().is_root() {
        return Err("only root can become another user".into());
    }
    limit(Resource::Nproc, processes)?;
    // SAFETY: only changes the user ids of this process, which has one thread.
    unsafe {
        os_error("setgroups", libc::setgroups(0, std::ptr::null()))?;
        os_error("setgid", libc::setgid(nobody_else))?;
        os_error("setuid", libc::setuid(nobody_else))
    }
}

/// Puts this process into a control group of its own with this setting. Tries the older hierarchy
/// first.
fn control_group(controller: &str, old: &str, new: &str, value: &str) -> Result<(), String> {
    let name = std::env::var(GROUP).expect("the group is named");
    let root = Path::new("/sys/fs/cgroup");
    let (parent, setting) = match root.join(controller) {
        parent if parent.is_dir() => (parent, old),
        _ => (root.to_owned(), new),
    };
    let group = parent.join(name);
    let made = fs::create_dir(&group).and_then(|()| fs::write(group.join(setting), value));
    made.and_then(|()| fs::write(group.join("cgroup.procs"), "0"))
        .map_err(|error| format!("control group {}: {error}", group.display()))
}

fn processes_of_group(most: &str) -> Result<(), String> {
    control_group("pids", "pids.max", "pids.max", most)
}

fn memory_of_group(most: &str) -> Result<(), String> {
    control_group("memory", "memory.limit_in_bytes", "memory.max", most)
}

const USERS: &[Cell] = &[
    works("another user", || user_with(1000)),
    or_says("a user with 1 process", PROCESSES, || user_with(1)),
    or_says("a user with 2 processes", PROCESSES, || user_with(2)),
    or_says("a user with 3 processes", PROCESSES, || user_with(3)),
    or_says("a user with 4 processes", PROCESSES, || user_with(4)),
    or_says("a user with 5 processes", PROCESSES, || user_with(5)),
    or_says("a user with 6 processes", PROCESSES, || user_with(6)),
    or_says("a user with 7 processes", PROCESSES, || user_with(7)),
    or_says("a user with 8 processes", PROCESSES, || user_with(8)),
    or_says("a user with 9 processes", PROCESSES, || user_with(9)),
    or_says("a user with 10 processes", PROCESSES, || user_with(10)),
    or_says("a group of 1 process", PROCESSES, || processes_of_group("1")),
    or_says("a group of 2 processes", PROCESSES, || processes_of_group("2")),
    or_says("a group of 3 processes", PROCESSES, || processes_of_group("3")),
    or_says("a group of 4 processes", PROCESSES, || processes_of_group("4")),
    or_says("a group of 5 processes", PROCESSES, || processes_of_group("5")),
    or_says("a group of 6 processes", PROCESSES, || processes_of_group("6")),
    or_says("a group of 7 processes", PROCESSES, || processes_of_group("7")),
    or_says("a group of 8 processes", PROCESSES, || processes_of_group("8")),
    or_says("a group of 9 processes", PROCESSES, || processes_of_group("9")),
    or_says("a group of 10 processes", PROCESSES, || processes_of_group("10")),
    works("a group of 64 MiB", || memory_of_group("67108864")),
];

// ---- system calls -------------------------------------------------------------------------------

/// Makes the kernel refuse this system call from now on, in this process and in everything that it
/// starts.
fn refuse(call: libc::c_long, error: libc::c_int) -> Result<(), String> {
    const ARCHITECTURE: u32 = if cfg!(target_arch = "x86_64") { 0xc000_003e } else { 0xc000_00b7 };
    if !cfg!(any(target_arch = "x86_64", target_arch = "aarch64")) {
        return Err("the filter knows two architectures".into());
    }
    let load = |at| libc::sock_filter {
        code: (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16,
        jt: 0,
        jf: 0,
        k: at,
    };
    let is = |value, jt, jf| libc::sock_filter {
        code: (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16,
        jt,
        jf,
        k: value,
    };
    let give = |what| libc::sock_filter {
        code: (libc::BPF_RET | libc::BPF_K) as u16,
        jt: 0,
        jf: 0,
        k: what,
    };
    let filter = [
        // Offsets in `seccomp_data`: the architecture is at 4, and the number of the call at 0.
        load(4),
        is(ARCHITECTURE, 0, 3),
        load(0),
        is(call as u32, 0, 1),
        give(libc::SECCOMP_RET_ERRNO | error as u32),
        give(libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
    // SAFETY: the program is valid while the calls last.
    unsafe {
        os_error("PR_SET_NO_NEW_PRIVS", libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))?;
        os_error(
            "PR_SET_SECCOMP",
            libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &program),
        )
    }
}

const REFUSED: &[&str] = &["Operation not permitted", "Function not implemented"];

macro_rules! refused {
    ($($call:ident,)*) => {
        &[$(
            or_says(concat!(stringify!($call), ": EPERM"), REFUSED, || refuse(libc::$call, libc::EPERM)),
            or_says(concat!(stringify!($call), ": ENOSYS"), REFUSED, || refuse(libc::$call, libc::ENOSYS)),
        )*]
    };
}

const CALLS: &[Cell] = refused! {
    SYS_pidfd_open,
    SYS_pidfd_send_signal,
    SYS_memfd_create,
    SYS_getrandom,
    SYS_eventfd2,
    SYS_prctl,
    SYS_clone3,
    SYS_futex_waitv,
    SYS_io_uring_setup,
    SYS_statx,
    SYS_openat2,
    SYS_close_range,
    SYS_copy_file_range,
    SYS_process_vm_readv,
    SYS_sched_getaffinity,
    SYS_sched_yield,
    SYS_rt_sigtimedwait,
    SYS_membarrier,
    SYS_fallocate,
    SYS_ftruncate,
    SYS_madvise,
    SYS_getcpu,
    SYS_kill,
    SYS_tgkill,
    SYS_setpgid,
    SYS_sigaltstack,
    SYS_socketpair,
    SYS_socket,
    SYS_sendmsg,
    SYS_setsockopt,
    SYS_timerfd_create,
    SYS_epoll_create1,
    SYS_waitid,
    SYS_wait4,
    SYS_getdents64,
    SYS_umask,
    SYS_ppoll,
    SYS_clone,
    SYS_dup3,
    SYS_pipe2,
    SYS_fcntl,
    SYS_flock,
    SYS_rt_sigprocmask,
    SYS_getpgid,
    SYS_fstat,
    SYS_lseek,
    SYS_accept4,
    SYS_getpeername,
    SYS_sched_setaffinity,
    SYS_sysinfo,
    SYS_clock_gettime,
    SYS_getrusage,
    SYS_unlinkat,
    SYS_mkdirat,
    SYS_setpriority,
    SYS_getpriority,
};

/// Refuses to tell and to set limits of resources.
fn refuse_limits(error: libc::c_int) -> Result<(), String> {
    #[cfg(target_arch = "x86_64")]
    {
        refuse(libc::SYS_getrlimit, error)?;
        refuse(libc::SYS_setrlimit, error)?;
    }
    refuse(libc::SYS_prlimit64, error)
}

/// Calls without which everything works that does not ask for them. A limit that is asked for is an
/// error.
const CALLS_NOT_NEEDED: &[Cell] = &[
    or_says("no limits: EPERM", A_LIMIT, || refuse_limits(libc::EPERM)),
    or_says("no limits: ENOSYS", A_LIMIT, || refuse_limits(libc::ENOSYS)),
];

const A_LIMIT: &[&str] = &["(setrlimit, RLIMIT_DATA)", "the limit `open_files` of"];

/// Calls with which a worker finds out whether it has a parent and what it is for. Without them it
/// can only report by its exit code and on its standard error.
const CALLS_OF_A_START: &[Cell] = &[
    or_says("SYS_getsockopt: EPERM", CODE_2, || refuse(libc::SYS_getsockopt, libc::EPERM)),
    or_says("SYS_getsockopt: ENOSYS", CODE_2, || refuse(libc::SYS_getsockopt, libc::ENOSYS)),
    or_says("SYS_recvmsg: EPERM", CODE_1, || refuse(libc::SYS_recvmsg, libc::EPERM)),
    or_says("SYS_recvmsg: ENOSYS", CODE_1, || refuse(libc::SYS_recvmsg, libc::ENOSYS)),
];

const CODE_2: &[&str] = &["exited with code 2"];
const CODE_1: &[&str] = &["exited with code 1", "(recvmsg)"];

// ---- containers ---------------------------------------------------------------------------------

/// Makes the mounts of this process private from now on.
fn own_mounts() -> Result<(), String> {
    let flags = libc::MS_REC | libc::MS_PRIVATE;
    // SAFETY: the pointers are strings or null, as these calls require.
    unsafe {
        os_error("unshare", libc::unshare(libc::CLONE_NEWNS))?;
        os_error(
            "private mounts",
            libc::mount(std::ptr::null(), c"/".as_ptr(), std::ptr::null(), flags, std::ptr::null()),
        )
    }
}

/// Hides a directory behind an empty file system.
fn empty(place: &str, flags: libc::c_ulong) -> Result<(), String> {
    mount("tmpfs", place, flags)
}

fn mount(kind: &str, place: &str, flags: libc::c_ulong) -> Result<(), String> {
    let (kind, at) = (CString::new(kind).expect("no zero"), CString::new(place).expect("no zero"));
    // SAFETY: the pointers are strings or null, as the call requires.
    let mounted =
        unsafe { libc::mount(kind.as_ptr(), at.as_ptr(), kind.as_ptr(), flags, std::ptr::null()) };
    os_error(&format!("mount on {place}"), mounted)
}

/// Continues as the first process of a new PID namespace. The original process waits for it, and
/// ends in the same way.
fn as_first_process() -> Result<(), String> {
    // SAFETY: this process has one thread, so its copy may call anything.
    unsafe {
        os_error("unshare", libc::unshare(libc::CLONE_NEWPID))?;
        match libc::fork() {
            -1 => os_error("fork", -1),
            0 => Ok(()),
            child => {
                let mut status = 0;
                while libc::waitpid(child, &mut status, 0) == -1 {}
                let status = ExitStatus::from_raw(status);
                if let Some(signal) = status.signal() {
                    libc::signal(signal, libc::SIG_DFL);
                    libc::raise(signal);
                }
                libc::_exit(status.code().unwrap_or(128))
            }
        }
    }
}

const PROC: &[&str] = &["/proc"];

const CONTAINERS: &[Cell] = &[
    or_says("no /proc", PROC, || own_mounts().and_then(|()| empty("/proc", 0))),
    works("a read-only /tmp", || own_mounts().and_then(|()| empty("/tmp", libc::MS_RDONLY))),
    works("a root that is read-only", || {
        own_mounts()?;
        let flags = libc::MS_REMOUNT | libc::MS_BIND | libc::MS_RDONLY;
        // SAFETY: the pointers are strings or null, as the call requires.
        let mounted = unsafe {
            libc::mount(std::ptr::null(), c"/".as_ptr(), std::ptr::null(), flags, std::ptr::null())
        };
        os_error("mount read-only", mounted)
    }),
    works("no /sys", || own_mounts().and_then(|()| empty("/sys", 0))),
    or_says("no /proc, /dev, /sys, /tmp", &["/proc", "/dev/null"], || {
        own_mounts()?;
        ["/sys", "/dev", "/tmp"].into_iter().try_for_each(|place| empty(place, libc::MS_RDONLY))?;
        empty("/proc", libc::MS_RDONLY)
    }),
    works("the first process", as_first_process),
    works("the first process, with its /proc", || {
        own_mounts()?;
        as_first_process()?;
        mount("proc", "/proc", 0)
    }),
    works("nobody of this name", || {
        // SAFETY: only takes a number.
        os_error("unshare", unsafe { libc::unshare(libc::CLONE_NEWUSER) })
    }),
    or_says("no network", &["Network is unreachable"], || {
        // SAFETY: only takes a number.
        os_error("unshare", unsafe { libc::unshare(libc::CLONE_NEWNET) })
    }),
    Cell {
        name: "another root, from inside",
        before: || {
            if rustix::process::geteuid().is_root() { Ok(()) } else { Err("only root can".into()) }
        },
        inside: || {
            std::os::unix::fs::chroot(std::env::temp_dir()).expect("we are root");
            std::env::set_current_dir("/").expect("it is there");
        },
        refusals: PROC,
    },
];

// ---- streams and terminals ----------------------------------------------------------------------

fn close(streams: &[RawFd]) -> Result<(), String> {
    // SAFETY: nothing here uses these descriptors any more.
    streams.iter().try_for_each(|fd| os_error("close", unsafe { libc::close(*fd) }))
}

fn stdout_is(file: File) -> Result<(), String> {
    // SAFETY: only takes numbers, and nothing owns the replaced descriptor.
    os_error("dup2", unsafe { libc::dup2(file.as_raw_fd(), 1) })?;
    // SAFETY: as above.
    os_error("dup2", unsafe { libc::dup2(file.as_raw_fd(), 2) })
}

/// Starts a session with the test's terminal. The terminal stops every process that writes from the
/// background.
fn on_a_terminal(foreground: bool) -> Result<(), String> {
    let path = std::env::var(TERMINAL).map_err(|_| "no terminal is to be had".to_owned())?;
    // SAFETY: the calls take numbers, and a structure that they fill and read.
    unsafe {
        os_error("setsid", libc::setsid())?;
        let terminal = File::options()
            .read(true)
            .write(true)
            .open(&path)
            .map_err(|error| format!("{path}: {error}"))?;
        os_error("TIOCSCTTY", libc::ioctl(terminal.as_raw_fd(), libc::TIOCSCTTY, 0))?;
        let mut settings: libc::termios = std::mem::zeroed();
        os_error("tcgetattr", libc::tcgetattr(terminal.as_raw_fd(), &mut settings))?;
        // With TOSTOP the terminal also stops background processes that write to it.
        settings.c_lflag |= libc::TOSTOP;
        os_error("tcsetattr", libc::tcsetattr(terminal.as_raw_fd(), libc::TCSANOW, &settings))?;
        (0..3).try_for_each(|stream| os_error("dup2", libc::dup2(terminal.as_raw_fd(), stream)))?;
        if !foreground {
            // Give the terminal to another process group: a forked copy that only sleeps, and ends
            // with this process.
            let parent = libc::getpid();
            match libc::fork() {
                -1 => os_error("fork", -1)?,
                0 => {
                    libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                    libc::setpgid(0, 0);
                    // Otherwise taking the terminal from the background would stop this copy.
                    libc::signal(libc::SIGTTOU, libc::SIG_IGN);
                    libc::tcsetpgrp(0, libc::getpid());
                    // The test reads the report until every process has closed it.
                    libc::close(REPORT);
                    while libc::getppid() == parent {
                        libc::sleep(1);
                    }
                    libc::_exit(0)
                }
                // Continue only after the copy has the terminal.
                child => {
                    while libc::tcgetpgrp(0) != child {
                        libc::usleep(1000);
                    }
                }
            }
        }
    }
    Ok(())
}

const STREAMS: &[Cell] = &[
    works("no stdin", || close(&[0])),
    works("no stdout", || close(&[1])),
    works("no stderr", || close(&[2])),
    works("no streams", || close(&[0, 1, 2])),
    works("a full disk for stdout", || {
        stdout_is(File::create("/dev/full").map_err(|error| format!("/dev/full: {error}"))?)
    }),
    works("a pipe that nobody reads for stdout", || {
        let (_, write) = rustix::pipe::pipe().map_err(|error| error.to_string())?;
        stdout_is(write.into())
    }),
    works("a terminal with tostop", || on_a_terminal(true)),
    works("the background of a terminal with tostop", || on_a_terminal(false)),
    works("a session without a terminal", || {
        // SAFETY: takes no arguments.
        os_error("setsid", unsafe { libc::setsid() })
    }),
];

// ---- signals ------------------------------------------------------------------------------------

fn ignore(signal: libc::c_int) -> Result<(), String> {
    // SAFETY: no handler is involved.
    if unsafe { libc::signal(signal, libc::SIG_IGN) } == libc::SIG_ERR {
        return Err(format!("signal {signal}: {}", io::Error::last_os_error()));
    }
    Ok(())
}

extern "C" fn nothing_to_do(_: libc::c_int) {}

/// From now on, interrupts each blocking call of this process a thousand times a second.
fn start_storm() {
    // SAFETY: an all-zero `sigaction` is valid and does not set SA_RESTART. The handler does
    // nothing.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = nothing_to_do as extern "C" fn(libc::c_int) as usize;
        assert_eq!(libc::sigaction(libc::SIGALRM, &action, std::ptr::null_mut()), 0);
        let each = libc::timeval { tv_sec: 0, tv_usec: 1000 };
        let timer = libc::itimerval { it_interval: each, it_value: each };
        assert_eq!(libc::setitimer(libc::ITIMER_REAL, &timer, std::ptr::null_mut()), 0);
    }
}

const SIGNALS: &[Cell] = &[
    works("SIGCHLD ignored", || ignore(libc::SIGCHLD)),
    works("SIGPIPE ignored", || ignore(libc::SIGPIPE)),
    works("SIGTERM ignored", || ignore(libc::SIGTERM)),
    works("every signal ignored", || {
        (1..32)
            .filter(|signal| ![libc::SIGKILL, libc::SIGSTOP].contains(signal))
            .try_for_each(ignore)
    }),
    works("every signal blocked", || {
        // SAFETY: the set of signals is made and read here.
        unsafe {
            let mut all: libc::sigset_t = std::mem::zeroed();
            libc::sigfillset(&mut all);
            os_error(
                "sigprocmask",
                libc::sigprocmask(libc::SIG_SETMASK, &all, std::ptr::null_mut()),
            )
        }
    }),
    Cell { name: "a storm of SIGALRM", before: nothing, inside: start_storm, refusals: &[] },
];

// ---- places -------------------------------------------------------------------------------------

const PLACES: &[Cell] = &[
    works("a working directory that was removed", || {
        let gone = tempfile::tempdir().map_err(|error| error.to_string())?;
        std::env::set_current_dir(gone.path()).map_err(|error| error.to_string())
    }),
    works("no temporary directory", || {
        // SAFETY: this process has one thread.
        unsafe { std::env::set_var("TMPDIR", "/nowhere/at/all") };
        Ok(())
    }),
    works("a huge environment", || {
        for number in 0..14 {
            // SAFETY: this process has one thread.
            unsafe {
                std::env::set_var(format!("EXECUTOR_TEST_LONG_{number}"), "x".repeat(100_000))
            };
        }
        Ok(())
    }),
    works("an environment that is no text", || {
        // SAFETY: this process has one thread.
        unsafe { std::env::set_var(OsStr::from_bytes(b"\xff"), OsStr::from_bytes(b"\xfe")) };
        Ok(())
    }),
    works("lowest priority, one processor", || {
        // SAFETY: the calls take numbers, and a set of processors made here.
        unsafe {
            os_error("setpriority", libc::setpriority(libc::PRIO_PROCESS, 0, 19))?;
            let mut one: libc::cpu_set_t = std::mem::zeroed();
            libc::CPU_SET(libc::sched_getcpu().max(0) as usize, &mut one);
            os_error("sched_setaffinity", libc::sched_setaffinity(0, size_of_val(&one), &one))
        }
    }),
    works("a umask that allows nothing", || {
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o777));
        Ok(())
    }),
    works("five hundred open descriptors", || {
        for _ in 0..500 {
            // SAFETY: only takes a number.
            let fd = unsafe { libc::dup(0) };
            os_error("dup", fd)?;
        }
        Ok(())
    }),
    Cell {
        name: "not to be dumped",
        before: || user_with(1000),
        inside: || {
            // SAFETY: only takes numbers.
            assert_eq!(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) }, 0);
        },
        refusals: &[],
    },
];

// ---- the tests ----------------------------------------------------------------------------------

fn small_limits_are_errors() {
    matrix(LIMITS);
}

fn small_limits_of_users_and_groups_are_errors() {
    matrix(USERS);
}

fn refused_system_calls_are_errors() {
    matrix(CALLS);
    matrix(CALLS_NOT_NEEDED);
    matrix(CALLS_OF_A_START);
}

fn restrictions_of_containers_work_or_are_errors() {
    matrix(CONTAINERS);
}

fn missing_streams_and_special_terminals_work() {
    matrix(STREAMS);
}

fn ignored_and_blocked_signals_of_the_caller_work() {
    matrix(SIGNALS);
}

fn unusual_directories_environments_and_priorities_work() {
    matrix(PLACES);
}

/// The outcome of one program in one environment.
enum Verdict {
    Works,
    /// The program failed with proper errors.
    Refused(String),
    Impossible(String),
    /// Something happened that must not happen.
    Wrong(String),
}

const PROGRAMS: [&str; 6] = ["quickstart", "death", "options", "manager", "unix", "tls"];

/// Plays all programs in each environment, prints a table, and fails if an outcome is wrong.
fn matrix(cells: &[Cell]) {
    let only = std::env::var("EXECUTOR_TEST_ONLY").unwrap_or_default();
    let private = private_shared_memory();
    let (mut wrong, mut impossible) = (Vec::new(), Vec::new());
    let row = |name: &str, marks: [&str; PROGRAMS.len()], notes: &str| {
        let marks = marks.map(|mark| format!("{mark:<12}"));
        println!("{name:<38} {} {notes}", marks.join(" "));
    };
    row("surrounding", PROGRAMS, "notes");
    for cell in cells.iter().filter(|cell| cell.name.contains(&only)) {
        let later = EXPECTED_LATER.iter().find(|(name, _)| *name == cell.name);
        if let Some((_, why)) = later.filter(|_| only.is_empty()) {
            println!("{:<38} {why}", cell.name);
            continue;
        }
        let mut notes = String::new();
        let mut mark = |verdict: Verdict| match verdict {
            Verdict::Works => "works",
            Verdict::Refused(said) => {
                let _ = write!(notes, "{said}; ");
                "error"
            }
            Verdict::Impossible(why) => {
                notes = why;
                "-"
            }
            Verdict::Wrong(what) => {
                let _ = write!(notes, "{what}; ");
                "WRONG"
            }
        };
        let marks = PROGRAMS.map(|program| mark(try_in(cell, program, private)));
        row(cell.name, marks, &notes);
        match (marks.contains(&"WRONG"), later) {
            (true, None) => wrong.push(format!("{}: {notes}", cell.name)),
            (true, Some((_, why))) => println!("    later: {why}"),
            (false, Some(_)) => wrong.push(format!("{} works: take it off the list", cell.name)),
            (false, None) => {}
        }
        if marks.contains(&"-") {
            impossible.push(format!("{}: {notes}", cell.name));
        }
    }
    impossible.iter().for_each(|line| println!("not possible on this machine: {line}"));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Gives this process and its descendants a private `/dev/shm`, if the system permits it. Then
/// every file left there is ours.
fn private_shared_memory() -> bool {
    static PRIVATE: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    *PRIVATE.get_or_init(|| {
        let made = own_mounts().and_then(|()| empty("/dev/shm", 0));
        if let Err(why) = &made {
            println!("not possible on this machine: a look at what is left in /dev/shm: {why}");
        }
        made.is_ok()
    })
}

/// Plays a program in an environment.
fn try_in(cell: &Cell, program: &str, private: bool) -> Verdict {
    static PLAYS: AtomicU64 = AtomicU64::new(0);
    let number = format!("{}-{}", std::process::id(), PLAYS.fetch_add(1, Ordering::Relaxed));
    let (tag, group) = (format!("{TAG}={number}"), format!("executor-surroundings-{number}"));
    let dir = tempfile::tempdir().expect("a directory");
    // Programs of other users write here, too.
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o1777)).expect("it is ours");
    let (reads, writes) =
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).expect("a pipe");
    let mut command = Command::new("/proc/self/exe");
    command
        .env(ROLE, "arrange")
        .env("EXECUTOR_TEST_NEXT", program)
        .env(CELL, cell.name)
        .env(TAG, &number);
    command.env(PLACE, dir.path());
    command.env(GROUP, &group).env("TMPDIR", dir.path()).env("RUST_BACKTRACE", "0");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let terminal = cell.name.contains("a terminal with").then(terminal);
    if let Some((_, path)) = &terminal {
        command.env(TERMINAL, path);
    }
    let writes_raw = writes.as_raw_fd();
    // SAFETY: between fork and exec, the closure only makes a system call that is
    // async-signal-safe.
    unsafe {
        command.pre_exec(move || {
            if libc::dup2(writes_raw, REPORT) == -1 {
                Err(io::Error::last_os_error())
            } else {
                Ok(())
            }
        });
    }
    let mut child = command.spawn().expect("it starts");
    drop(writes);
    // Read all streams on threads, so that the program never blocks on a full pipe.
    let read = |mut from: Box<dyn Read + Send>| {
        thread::spawn(move || {
            let mut bytes = Vec::new();
            // Reading a terminal fails when its last user has ended.
            let _ = from.read_to_end(&mut bytes);
            String::from_utf8_lossy(&bytes).into_owned()
        })
    };
    let report = read(Box::new(File::from(reads)));
    let stdout = read(Box::new(child.stdout.take().expect("piped")));
    let stderr = read(Box::new(child.stderr.take().expect("piped")));
    let screen = terminal.map(|(master, _)| read(Box::new(File::from(master))));
    let deadline = Instant::now() + HANGS_AFTER;
    let status = loop {
        match child.try_wait().expect("our child") {
            Some(status) => break Some(status),
            None if Instant::now() > deadline => break None,
            None => thread::sleep(Duration::from_millis(2)),
        }
    };
    let mut left = tagged(&tag);
    // Processes that the program started may take a moment to notice that it has ended.
    let deadline = Instant::now() + HANGS_AFTER;
    while status.is_some() && !left.is_empty() && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(2));
        left = tagged(&tag);
    }
    let states: Vec<String> =
        left.iter().map(|(pid, line)| format!("{pid} {:?} {line}", support::state(*pid))).collect();
    // A process that is left would keep the pipes open, which are read to their end below.
    for (pid, _) in &left {
        let _ = rustix::process::kill_process(
            rustix::process::Pid::from_raw(*pid as i32).unwrap(),
            Signal::KILL,
        );
    }
    if status.is_none() {
        let _ = child.kill();
        child.wait().expect("it was killed");
    }
    remove_group(&group);
    let said = report.join().expect("it only reads");
    let complaints = stderr.join().expect("it only reads");
    let (_, _) = (stdout.join(), screen.map(thread::JoinHandle::join));
    let complaint = complaints.lines().take(3).collect::<Vec<_>>().join(" / ");
    let Some(status) = status else {
        return Verdict::Wrong(format!("{program} HANGS after {said:?}: {states:?} {complaint}"));
    };
    if let Some(why) = said.strip_prefix("impossible\t") {
        return Verdict::Impossible(why.trim().to_owned());
    }
    if status.code() == Some(NOT_LOADED) && said.is_empty() {
        return Verdict::Impossible(format!("the program itself cannot be loaded: {complaint}"));
    }
    if !status.success() {
        return Verdict::Wrong(format!("{program}: {status} after {said:?}: {complaint}"));
    }
    if !states.is_empty() {
        return Verdict::Wrong(format!("{program} left {states:?}"));
    }
    let files: Vec<PathBuf> = [Some(dir.path()), private.then(|| Path::new("/dev/shm"))]
        .into_iter()
        .flatten()
        .flat_map(|dir| fs::read_dir(dir).expect("it can be read"))
        .map(|entry| entry.expect("an entry").path())
        .collect();
    if !files.is_empty() {
        files.iter().for_each(|file| drop(fs::remove_file(file)));
        return Verdict::Wrong(format!("{program} left {files:?}"));
    }
    let mut errors: Vec<(&str, &str)> = said
        .lines()
        .filter_map(|line| line.split_once('\t'))
        .filter(|(_, error)| !error.is_empty())
        .collect();
    if said.lines().count() == 0 {
        return Verdict::Wrong(format!("{program} said nothing: {complaint}"));
    }
    // An error is improper if it reports a wrong value, does not say what was tried, or has another
    // reason than this environment gives.
    let by_address = ["unix", "tls"].contains(&program);
    let improper = errors.iter().find(|(_, error)| {
        error.contains("WRONG")
            || !says_what_was_tried(error)
            || !cell.refusals.iter().any(|refusal| {
                error.contains(refusal)
                    // A server that gets no memory is aborted, and only it can say why.
                    || error.contains("server is gone") && complaint.contains(refusal)
                    // A server that has no descriptor for a client cannot tell it anything.
                    || by_address && cell.refusals == FILES && error.contains("timed out")
            })
    });
    if let Some((step, error)) = improper {
        return Verdict::Wrong(format!("{program}, {step}: {error} {complaint}"));
    }
    errors.dedup_by_key(|(_, error)| *error);
    match errors.first() {
        None => Verdict::Works,
        Some((step, error)) => Verdict::Refused(format!("{step}: {error}")),
    }
}

/// Returns whether an error says more before the system's answer than that something went wrong.
fn says_what_was_tried(error: &str) -> bool {
    let mut before = None;
    for part in error.split(": ") {
        if part.contains("(os error") {
            return before.is_some_and(|before| before != "no worker could be started");
        }
        before = Some(part);
    }
    true
}

/// Removes the control groups that an environment has made, once no process is in them.
fn remove_group(name: &str) {
    for parent in ["/sys/fs/cgroup/pids", "/sys/fs/cgroup/memory", "/sys/fs/cgroup"] {
        let group = Path::new(parent).join(name);
        let deadline = Instant::now() + Duration::from_secs(10);
        while group.is_dir() && fs::remove_dir(&group).is_err() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(2));
        }
    }
}

/// Makes a new terminal. Returns the end that reads its output, and its path.
fn terminal() -> (OwnedFd, PathBuf) {
    // SAFETY: the calls take numbers, and a buffer with its length.
    unsafe {
        let master = libc::posix_openpt(libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC);
        assert!(master >= 0, "a terminal");
        let master = OwnedFd::from_raw_fd(master);
        assert_eq!(libc::grantpt(master.as_raw_fd()), 0);
        assert_eq!(libc::unlockpt(master.as_raw_fd()), 0);
        let mut path = [0; 100];
        assert_eq!(libc::ptsname_r(master.as_raw_fd(), path.as_mut_ptr(), path.len()), 0);
        let path = std::ffi::CStr::from_ptr(path.as_ptr()).to_owned();
        (master, PathBuf::from(OsString::from_vec(path.into_bytes())))
    }
}
