//! Awkward surroundings: the quickstart and a task that aborts, under small limits, with refused system calls, without
//! `/proc` or `/dev`, in odd terminals, as the first process, and so on.
//!
//! In each of them everything works, or what does not is an error that says what was tried and why it was refused. Nothing
//! hangs, nothing is ended by a signal, and nothing is left behind.
//!
//! It has its own `main`. Asked for nothing, it is the tests. Each starts this file again to *arrange* a surrounding by
//! system calls, which then replaces itself by this file once more, to *play* a program in it. What the program has to tell
//! goes through a pipe, since it may have no streams and may write no file.

#[path = "support_b/harness.rs"]
mod harness;
mod support_b;

use std::{
    ffi::{CString, OsStr, OsString},
    fmt::Write as _,
    fs::{self, File},
    io::{self, Read},
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::{
            ffi::{OsStrExt, OsStringExt},
            fs::PermissionsExt,
            process::{CommandExt, ExitStatusExt},
        },
    },
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use executor::{Lock, Process, Queue, SharedBytes, TaskError, prelude::*};
use rustix::process::{Resource, Rlimit, Signal, setrlimit};
use support_b::tagged;

macro_rules! list {
    ($list:ident: $($name:ident,)*) => {
        const $list: &[(&str, fn())] = &[$((stringify!($name), $name),)*];
    };
}

list! { TESTS:
    small_limits_are_errors,
    small_limits_of_users_and_groups_are_errors,
    refused_system_calls_are_errors,
    what_a_container_lacks,
    streams_and_terminals,
    signals_of_the_caller,
    places_names_and_priorities,
}

/// What is known to fail, and how; it is played only if asked for by `EXECUTOR_TEST_ONLY`. A cell that works is not to
/// stand here.
const EXPECTED_LATER: &[(&str, &str)] = &[];

/// What this process is to be; nothing for the tests.
const ROLE: &str = "EXECUTOR_TEST_ROLE";
/// The surrounding.
const CELL: &str = "EXECUTOR_TEST_CELL";
/// Marks a program and all that it starts.
const TAG: &str = "EXECUTOR_TEST_TAG";
/// The terminal of cells that have one.
const TERMINAL: &str = "EXECUTOR_TEST_TERMINAL";
/// The control group that a cell may make; the test removes it.
const GROUP: &str = "EXECUTOR_TEST_GROUP";

/// Where the program tells how it went: a descriptor that no limit of descriptors forbids, being open already.
const REPORT: RawFd = 200;
/// The arranger's code for "this machine cannot do it".
const IMPOSSIBLE: i32 = 77;
/// The loader's code for a program that it cannot load.
const NOT_LOADED: i32 = 127;
/// Whatever hangs longer hangs.
const HANGS_AFTER: Duration = Duration::from_secs(60);

fn main() {
    match std::env::var(ROLE).as_deref() {
        Err(_) => harness::run(TESTS),
        Ok("arrange") => arrange(),
        Ok(role) => {
            executor::init();
            (cell().inside)();
            // Not by `fcntl`, which may be refused.
            rustix::io::ioctl_fioclex(report()).expect("it is open");
            match role {
                "quickstart" => quickstart(),
                "death" => death(),
                other => unreachable!("{other}"),
            }
        }
    }
}

// ---- the programs --------------------------------------------------------------------------------------------------

fn report() -> std::os::fd::BorrowedFd<'static> {
    // SAFETY: open from the start to the end of each program, and nobody else's.
    unsafe { std::os::fd::BorrowedFd::borrow_raw(REPORT) }
}

/// Tells how a step went: nothing, or why not.
fn step(name: &str, outcome: Result<(), String>) {
    let line = format!("{name}\t{}\n", outcome.err().unwrap_or_default().replace('\n', " "));
    rustix::io::write(report(), line.as_bytes()).expect("the test reads it");
}

/// Says what came in place of what should have.
fn expect<T: PartialEq + std::fmt::Debug>(came: T, expected: T) -> Result<(), String> {
    if came == expected { Ok(()) } else { Err(format!("WRONG: {came:?} in place of {expected:?}")) }
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
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

/// What the first page of the documentation shows, each step for itself.
fn quickstart() {
    match ProcessPoolExecutor::builder().max_workers(2).build() {
        Err(error) => step("submit", Err(text(error))),
        Ok(pool) => {
            let came = pool.submit(add::task(1, 2)).result();
            step("submit", came.map_err(text).and_then(|came| expect(came, 3)));
            let came: Result<Vec<u32>, TaskError> = pool.map(|i| add::task(i, i), 0..20).collect();
            step("map", came.map_err(text).and_then(|came| expect(came, (0..20).map(|i| 2 * i).collect())));
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
    expect(queue.get().map_err(text)?, 42)
}

/// A worker dies of its task, that task fails, and the pool goes on.
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
                // Nobody can know.
                "SIGCHLD ignored" | "every signal ignored" => executor::ExitStatus::Unknown,
                name if name.starts_with("SYS_waitid") => executor::ExitStatus::Unknown,
                // How `abort` ends a process that may not signal itself: by an instruction that is none.
                name if name.starts_with("SYS_tgkill") => executor::ExitStatus::Signaled(libc::SIGSEGV),
                _ => executor::ExitStatus::Signaled(libc::SIGABRT),
            };
            expect(status, expected)
        }
        Err(other) => Err(text(other)),
        Ok(()) => Err("WRONG: it came back".into()),
    };
    step("death", status);
    step("next", next.result().map_err(text).and_then(|came| expect(came, 2)));
    step("later", pool.submit(add::task(2, 2)).result().map_err(text).and_then(|came| expect(came, 4)));
    pool.shutdown(true);
}

// ---- a surrounding -------------------------------------------------------------------------------------------------

/// Arranges it, before the program is there; an error is why this machine cannot.
type Before = fn() -> Result<(), String>;

struct Cell {
    name: &'static str,
    before: Before,
    /// What the program itself does first.
    inside: fn(),
    /// What an error has to contain, one of these; without any, everything has to work.
    refusals: &'static [&'static str],
}

const fn works(name: &'static str, before: Before) -> Cell {
    Cell { name, before, inside: || {}, refusals: &[] }
}

/// It works, or is an error that contains one of these texts.
const fn or_says(name: &'static str, refusals: &'static [&'static str], before: Before) -> Cell {
    Cell { name, before, inside: || {}, refusals }
}

/// In the arranger and in the program: the cell that it belongs to.
fn cell() -> &'static Cell {
    let name = std::env::var(CELL).expect("the cell is named");
    all_cells().find(|cell| cell.name == name).expect("there is such a cell")
}

fn all_cells() -> impl Iterator<Item = &'static Cell> {
    [LIMITS, USERS, CALLS, CALLS_OF_A_START, CONTAINERS, STREAMS, SIGNALS, PLACES].into_iter().flatten()
}

/// Arranges the surrounding, then becomes the program.
fn arrange() {
    let file = File::open("/proc/self/exe").expect("this file");
    // Of the outer test: the program is to be found without `/proc`, and by another user.
    if let Err(why) = (cell().before)() {
        let _ = rustix::io::write(report(), format!("impossible\t{why}\n").as_bytes());
        std::process::exit(IMPOSSIBLE);
    }
    let role = std::env::var("EXECUTOR_TEST_NEXT").expect("what is played");
    let variables = std::env::vars_os().filter(|(name, _)| name != ROLE).chain([(ROLE.into(), role.into())]);
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
        all.iter().map(|one| one.as_ptr().cast_mut()).chain([std::ptr::null_mut()]).collect::<Vec<_>>()
    };
    // SAFETY: two lists of strings, each ended by null, which live until the call returns, if it does.
    unsafe {
        libc::fexecve(file.as_raw_fd(), pointers(&args).as_ptr().cast(), pointers(&variables).as_ptr().cast())
    };
    let why = format!("impossible\tthe program cannot be started: {}\n", io::Error::last_os_error());
    let _ = rustix::io::write(report(), why.as_bytes());
    std::process::exit(IMPOSSIBLE);
}

fn os_error(what: &str, returned: libc::c_int) -> Result<(), String> {
    if returned == -1 { Err(format!("{what}: {}", io::Error::last_os_error())) } else { Ok(()) }
}

fn nothing() -> Result<(), String> {
    Ok(())
}

// ---- limits --------------------------------------------------------------------------------------------------------

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
    or_says("20 MiB of addresses", MEMORY, || limit(Resource::As, 20 << 20)),
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

/// Another user, of whom nobody else runs anything, with so many processes.
fn user_with(processes: u64) -> Result<(), String> {
    let nobody_else = support_b::user_of_its_own();
    if !rustix::process::geteuid().is_root() {
        return Err("only root can become another user".into());
    }
    limit(Resource::Nproc, processes)?;
    // SAFETY: changes who this process is, which has one thread.
    unsafe {
        os_error("setgroups", libc::setgroups(0, std::ptr::null()))?;
        os_error("setgid", libc::setgid(nobody_else))?;
        os_error("setuid", libc::setuid(nobody_else))
    }
}

/// Puts this process into a control group of its own, with this setting; the older hierarchies first.
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

// ---- system calls --------------------------------------------------------------------------------------------------

/// From now on the kernel refuses this call, in this process and all that it starts.
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
    let give = |what| libc::sock_filter { code: (libc::BPF_RET | libc::BPF_K) as u16, jt: 0, jf: 0, k: what };
    let filter = [
        // Of `seccomp_data`: the call's number, and for which architecture it is one.
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
        os_error("PR_SET_SECCOMP", libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &program))
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
    SYS_prlimit64,
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
    SYS_unlinkat,
    SYS_mkdirat,
};

/// By which a worker learns whether anybody listens, and what it is for. Without them it can tell by nothing but its code, and
/// on its standard error.
const CALLS_OF_A_START: &[Cell] = &[
    or_says("SYS_getsockopt: EPERM", CODE_2, || refuse(libc::SYS_getsockopt, libc::EPERM)),
    or_says("SYS_getsockopt: ENOSYS", CODE_2, || refuse(libc::SYS_getsockopt, libc::ENOSYS)),
    or_says("SYS_recvmsg: EPERM", CODE_1, || refuse(libc::SYS_recvmsg, libc::EPERM)),
    or_says("SYS_recvmsg: ENOSYS", CODE_1, || refuse(libc::SYS_recvmsg, libc::ENOSYS)),
];

const CODE_2: &[&str] = &["exited with code 2"];
const CODE_1: &[&str] = &["exited with code 1", "(recvmsg)"];

// ---- containers ----------------------------------------------------------------------------------------------------

/// Mounts of this process alone from now on.
fn own_mounts() -> Result<(), String> {
    let flags = libc::MS_REC | libc::MS_PRIVATE;
    // SAFETY: the pointers are strings or null, as these calls want them.
    unsafe {
        os_error("unshare", libc::unshare(libc::CLONE_NEWNS))?;
        os_error(
            "private mounts",
            libc::mount(std::ptr::null(), c"/".as_ptr(), std::ptr::null(), flags, std::ptr::null()),
        )
    }
}

/// Nothing is there any more.
fn empty(place: &str, flags: libc::c_ulong) -> Result<(), String> {
    mount("tmpfs", place, flags)
}

fn mount(kind: &str, place: &str, flags: libc::c_ulong) -> Result<(), String> {
    let (kind, at) = (CString::new(kind).expect("no zero"), CString::new(place).expect("no zero"));
    // SAFETY: the pointers are strings or null, as the call wants them.
    let mounted = unsafe { libc::mount(kind.as_ptr(), at.as_ptr(), kind.as_ptr(), flags, std::ptr::null()) };
    os_error(&format!("mount on {place}"), mounted)
}

/// Goes on as the first process of a new space of process ids; who was there waits, and ends as it ends.
fn as_first_process() -> Result<(), String> {
    // SAFETY: this process has one thread, so its copy may do as it likes.
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
        // SAFETY: the pointers are strings or null, as the call wants them.
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
        // SAFETY: takes a number.
        os_error("unshare", unsafe { libc::unshare(libc::CLONE_NEWUSER) })
    }),
    works("no network", || {
        // SAFETY: takes a number.
        os_error("unshare", unsafe { libc::unshare(libc::CLONE_NEWNET) })
    }),
    Cell {
        name: "another root, from inside",
        before: || if rustix::process::geteuid().is_root() { Ok(()) } else { Err("only root can".into()) },
        inside: || {
            std::os::unix::fs::chroot(std::env::temp_dir()).expect("we are root");
            std::env::set_current_dir("/").expect("it is there");
        },
        refusals: PROC,
    },
];

// ---- streams and terminals -----------------------------------------------------------------------------------------

fn close(streams: &[RawFd]) -> Result<(), String> {
    // SAFETY: nobody here uses them any more.
    streams.iter().try_for_each(|fd| os_error("close", unsafe { libc::close(*fd) }))
}

fn stdout_is(file: File) -> Result<(), String> {
    // SAFETY: takes numbers; what was there is nobody's.
    os_error("dup2", unsafe { libc::dup2(file.as_raw_fd(), 1) })?;
    // SAFETY: as above.
    os_error("dup2", unsafe { libc::dup2(file.as_raw_fd(), 2) })
}

/// A session with the test's terminal as its own, which stops whoever writes from the background.
fn on_a_terminal(foreground: bool) -> Result<(), String> {
    let path = std::env::var(TERMINAL).map_err(|_| "no terminal is to be had".to_owned())?;
    // SAFETY: numbers, and a structure that the calls fill and read.
    unsafe {
        os_error("setsid", libc::setsid())?;
        let terminal =
            File::options().read(true).write(true).open(&path).map_err(|error| format!("{path}: {error}"))?;
        os_error("TIOCSCTTY", libc::ioctl(terminal.as_raw_fd(), libc::TIOCSCTTY, 0))?;
        let mut settings: libc::termios = std::mem::zeroed();
        os_error("tcgetattr", libc::tcgetattr(terminal.as_raw_fd(), &mut settings))?;
        settings.c_lflag |= libc::TOSTOP;
        os_error("tcsetattr", libc::tcsetattr(terminal.as_raw_fd(), libc::TCSANOW, &settings))?;
        (0..3).try_for_each(|stream| os_error("dup2", libc::dup2(terminal.as_raw_fd(), stream)))?;
        if !foreground {
            // Somebody else has the terminal: a copy that sleeps, in a group of its own, and ends with us.
            let parent = libc::getpid();
            match libc::fork() {
                -1 => os_error("fork", -1)?,
                0 => {
                    libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                    libc::setpgid(0, 0);
                    libc::signal(libc::SIGTTOU, libc::SIG_IGN);
                    libc::tcsetpgrp(0, libc::getpid());
                    libc::close(REPORT);
                    while libc::getppid() == parent {
                        libc::sleep(1);
                    }
                    libc::_exit(0)
                }
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
        // SAFETY: takes nothing.
        os_error("setsid", unsafe { libc::setsid() })
    }),
];

// ---- signals -------------------------------------------------------------------------------------------------------

fn ignore(signal: libc::c_int) -> Result<(), String> {
    // SAFETY: no handler is involved.
    if unsafe { libc::signal(signal, libc::SIG_IGN) } == libc::SIG_ERR {
        return Err(format!("signal {signal}: {}", io::Error::last_os_error()));
    }
    Ok(())
}

extern "C" fn nothing_to_do(_: libc::c_int) {}

/// From now on each blocking call of this process is interrupted a thousand times a second.
fn start_storm() {
    // SAFETY: an all-zero `sigaction` is a valid one, without SA_RESTART; the handler does nothing.
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
        (1..32).filter(|signal| ![libc::SIGKILL, libc::SIGSTOP].contains(signal)).try_for_each(ignore)
    }),
    works("every signal blocked", || {
        // SAFETY: a set of signals, made and read here.
        unsafe {
            let mut all: libc::sigset_t = std::mem::zeroed();
            libc::sigfillset(&mut all);
            os_error("sigprocmask", libc::sigprocmask(libc::SIG_SETMASK, &all, std::ptr::null_mut()))
        }
    }),
    Cell { name: "a storm of SIGALRM", before: nothing, inside: start_storm, refusals: &[] },
];

// ---- places --------------------------------------------------------------------------------------------------------

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
            unsafe { std::env::set_var(format!("EXECUTOR_TEST_LONG_{number}"), "x".repeat(100_000)) };
        }
        Ok(())
    }),
    works("an environment that is no text", || {
        // SAFETY: this process has one thread.
        unsafe { std::env::set_var(OsStr::from_bytes(b"\xff"), OsStr::from_bytes(b"\xfe")) };
        Ok(())
    }),
    works("lowest priority, one processor", || {
        // SAFETY: numbers, and a set of processors made here.
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
            // SAFETY: takes a number.
            let fd = unsafe { libc::dup(0) };
            os_error("dup", fd)?;
        }
        Ok(())
    }),
    Cell {
        name: "not to be dumped",
        before: || user_with(1000),
        inside: || {
            // SAFETY: takes numbers.
            assert_eq!(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) }, 0);
        },
        refusals: &[],
    },
];

// ---- the tests -----------------------------------------------------------------------------------------------------

fn small_limits_are_errors() {
    matrix(LIMITS);
}

fn small_limits_of_users_and_groups_are_errors() {
    matrix(USERS);
}

fn refused_system_calls_are_errors() {
    matrix(CALLS);
    matrix(CALLS_OF_A_START);
}

fn what_a_container_lacks() {
    matrix(CONTAINERS);
}

fn streams_and_terminals() {
    matrix(STREAMS);
}

fn signals_of_the_caller() {
    matrix(SIGNALS);
}

fn places_names_and_priorities() {
    matrix(PLACES);
}

/// What came of one program in one surrounding.
enum Verdict {
    Works,
    /// Errors as they should be.
    Refused(String),
    Impossible(String),
    /// What must not be.
    Wrong(String),
}

/// Plays both programs in each of these, prints a table, and fails if something came that must not.
fn matrix(cells: &[Cell]) {
    let only = std::env::var("EXECUTOR_TEST_ONLY").unwrap_or_default();
    let private = private_shared_memory();
    let (mut wrong, mut impossible) = (Vec::new(), Vec::new());
    println!("{:<38} {:<12} {:<12} notes", "surrounding", "quickstart", "death");
    for cell in cells.iter().filter(|cell| cell.name.contains(&only)) {
        let later = EXPECTED_LATER.iter().find(|(name, _)| *name == cell.name);
        if let Some((_, why)) = later.filter(|_| only.is_empty()) {
            println!("{:<38} {:<12} {:<12} {why}", cell.name, "later", "later");
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
        let marks = [mark(try_in(cell, "quickstart", private)), mark(try_in(cell, "death", private))];
        println!("{:<38} {:<12} {:<12} {notes}", cell.name, marks[0], marks[1]);
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

/// A `/dev/shm` of this process and what it starts, where it may have one: what is left there is ours.
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

/// Plays a program in a surrounding.
fn try_in(cell: &Cell, program: &str, private: bool) -> Verdict {
    static PLAYS: AtomicU64 = AtomicU64::new(0);
    let number = format!("{}-{}", std::process::id(), PLAYS.fetch_add(1, Ordering::Relaxed));
    let (tag, group) = (format!("{TAG}={number}"), format!("executor-surroundings-{number}"));
    let dir = tempfile::tempdir().expect("a directory");
    // For programs of other users, too.
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).expect("it is ours");
    let (reads, writes) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).expect("a pipe");
    let mut command = Command::new("/proc/self/exe");
    command.env(ROLE, "arrange").env("EXECUTOR_TEST_NEXT", program).env(CELL, cell.name).env(TAG, &number);
    command.env(GROUP, &group).env("TMPDIR", dir.path()).env("RUST_BACKTRACE", "0");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let terminal = cell.name.contains("a terminal with").then(terminal);
    if let Some((_, path)) = &terminal {
        command.env(TERMINAL, path);
    }
    let writes_raw = writes.as_raw_fd();
    // SAFETY: a call that a signal handler might make as well.
    unsafe {
        command.pre_exec(move || {
            if libc::dup2(writes_raw, REPORT) == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
        });
    }
    let mut child = command.spawn().expect("it starts");
    drop(writes);
    let read = |mut from: Box<dyn Read + Send>| {
        thread::spawn(move || {
            let mut bytes = Vec::new();
            // Of a terminal whose last user has ended, it is an error.
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
    // What the program had started may take a moment to notice that it is gone.
    let deadline = Instant::now() + HANGS_AFTER;
    while status.is_some() && !left.is_empty() && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(2));
        left = tagged(&tag);
    }
    let states: Vec<String> =
        left.iter().map(|(pid, line)| format!("{pid} {:?} {line}", support_b::state(*pid))).collect();
    for (pid, _) in &left {
        let _ =
            rustix::process::kill_process(rustix::process::Pid::from_raw(*pid as i32).unwrap(), Signal::KILL);
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
    let improper = errors.iter().find(|(_, error)| {
        error.contains("WRONG")
            || !says_what_was_tried(error)
            || !cell.refusals.iter().any(|refusal| error.contains(refusal))
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

/// Whether more stands before an answer of the system than that something went wrong.
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

/// Control groups that a cell has made; they go once nobody is in them.
fn remove_group(name: &str) {
    for parent in ["/sys/fs/cgroup/pids", "/sys/fs/cgroup/memory", "/sys/fs/cgroup"] {
        let group = Path::new(parent).join(name);
        let deadline = Instant::now() + Duration::from_secs(10);
        while group.is_dir() && fs::remove_dir(&group).is_err() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(2));
        }
    }
}

/// A new terminal: the end that reads what is said on it, and its path.
fn terminal() -> (OwnedFd, PathBuf) {
    // SAFETY: numbers, and a buffer of the length that is said.
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
