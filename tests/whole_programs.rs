//! Whole programs and what becomes of them: this file plays those that a test harness cannot be. Programs that are
//! killed, that forget the entry, that fork, that change limits, masks and signals of their process.
//!
//! It has its own `main`. Asked for nothing, it is the tests: each starts this very file again, to play one program,
//! and looks at what it said and what it left behind.

#[path = "support_b/harness.rs"]
mod harness;
mod support_b;

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{BufRead, BufReader, Read, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use executor::{BrokenCause, ExitStatus, TaskError, prelude::*};
use rustix::process::{Resource, Rlimit, Signal, getrlimit, setrlimit};
use support_b::{
    Gate, LONG, children, come_to, descriptors, echo, eventually, executor_threads, exit, hold, pid, pool,
    rounds, signal, spin, tagged, watchdog, with_a_limit_long_enough,
};

/// Names the program to be played.
const PROGRAM: &str = "EXECUTOR_TEST_PROGRAM";
/// What its workers do instead of being workers.
const CHILD: &str = "EXECUTOR_TEST_CHILD";
/// What a program needs to know.
const ARGUMENT: &str = "EXECUTOR_TEST_ARGUMENT";
/// Marks a program and all that it starts.
const TAG: &str = "EXECUTOR_TEST_TAG";

macro_rules! list {
    ($list:ident: $($name:ident,)*) => {
        const $list: &[(&str, fn())] = &[$((stringify!($name), $name),)*];
    };
}

list! { TESTS:
    sd02_a_running_task_is_finished_when_main_returns,
    sd26_nested_executors_at_exit,
    sd27_a_refused_thread_is_a_broken_pool,
    parent_killed_while_workers_compute,
    parent_killed_while_workers_start,
    parent_killed_deep_above,
    a_thousand_pools_leave_nothing,
    pools_over_ipc_channel_leave_nothing,
    few_descriptors_many_tasks,
    a_connection_without_descriptors_leaves_no_zombie,
    a_child_that_never_connects,
    a_program_that_forgets_the_entry,
    a_storm_of_signals,
    umask_zero,
    odd_temporary_directories,
    a_program_that_forks,
    sigchld_ignored,
    somebody_else_waits,
    the_executable_is_gone,
    standard_input_belongs_to_the_parent,
    main_above_tokio_main,
    output_of_workers_is_their_tasks_alone,
    tasks_that_meet_after_quick_calls_get_their_workers,
    a_pool_outlives_what_its_starting_workers_are_refused,
    a_program_that_drops_its_privileges_keeps_its_pool,
    a_limit_is_told_also_where_the_signal_is_refused,
    a_worker_that_the_terminal_stops_is_an_error,
    a_stopped_worker_keeps_neither_its_limit_nor_the_end_waiting,
    a_time_limit_of_a_process_is_kept,
    options_of_an_initializer_and_a_preload_count,
    an_initializer_that_hangs_breaks_the_pool,
    a_descriptor_that_is_refused_to_an_initializer_is_a_refused_start,
    a_library_that_is_opened_before_the_first_pool_breaks_none,
}

list! { PROGRAMS:
    prints_at_exit,
    nests_at_exit,
    is_refused_threads,
    computes,
    starts_many,
    nests_and_computes,
    makes_pools,
    has_few_descriptors,
    cannot_connect,
    has_mute_children,
    forgets_entry,
    is_in_a_storm,
    has_no_umask,
    works,
    forks,
    ignores_sigchld,
    waits_for_any_child,
    outlives_its_file,
    reads_its_input,
    is_async,
    is_quiet,
    meets_after_quick_calls,
    may_have_few_processes,
    drops_its_privileges,
    may_not_signal_its_worker,
    stops_by_its_terminal,
    has_its_worker_stopped,
    limits_a_process,
    has_options_elsewhere,
    waits_for_an_initializer,
    has_no_room_for_what_its_initializer_needs,
    opens_a_library,
}

fn main() {
    take_limit();
    if let Some(child) = std::env::var_os(CHILD) {
        return play_child(&child.into_string().expect("its name is ours"));
    }
    let Ok(program) = std::env::var(PROGRAM) else {
        harness::run(TESTS);
    };
    // These see to it themselves, or do not.
    if !["forgets_entry", "is_async"].contains(&program.as_str()) {
        executor::init();
    }
    let (_, play) = PROGRAMS.iter().find(|(name, _)| *name == program).expect("there is such a program");
    let _watchdog = (program != "computes").then(watchdog);
    play();
}

// ---- the tests' side -----------------------------------------------------------------------------------------------

/// A program to be played.
struct Play {
    command: Command,
    tag: String,
}

fn play(program: &str) -> Play {
    play_file(&std::env::current_exe().expect("this file"), program)
}

fn play_file(file: &Path, program: &str) -> Play {
    static PLAYS: AtomicU64 = AtomicU64::new(0);
    let number = format!("{}-{}", std::process::id(), PLAYS.fetch_add(1, Ordering::Relaxed));
    let mut command = Command::new(file);
    command.env(PROGRAM, program).env(TAG, &number).env("RUST_BACKTRACE", "0");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    Play { command, tag: format!("{TAG}={number}") }
}

impl Play {
    fn env(mut self, name: &str, value: impl AsRef<std::ffi::OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    fn argument(self, argument: impl AsRef<std::ffi::OsStr>) -> Self {
        self.env(ARGUMENT, argument)
    }

    /// Plays it to its end. It succeeds and leaves no process behind.
    #[track_caller]
    fn play_out(self) -> String {
        let _watchdog = watchdog();
        let Play { mut command, tag } = self;
        let Output { status, stdout, stderr } = command.output().expect("it starts");
        let (stdout, stderr) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
        assert!(status.success(), "it {status}\n--- stdout\n{stdout}\n--- stderr\n{stderr}");
        assert_eq!(stderr, "", "it has nothing to complain of");
        assert_nothing_left(&tag);
        stdout.into_owned()
    }

    /// Starts it and waits until it has said its first line.
    fn until_it_speaks(mut self) -> (Child, BufReader<std::process::ChildStdout>, String) {
        let mut child = self.command.stderr(Stdio::inherit()).spawn().expect("it starts");
        let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
        let mut line = String::new();
        stdout.read_line(&mut line).expect("it speaks");
        assert_eq!(line, "ready\n");
        (child, stdout, self.tag)
    }
}

/// One second is promised; a busy machine gets a minute. Without the promise it would be for ever.
#[track_caller]
fn assert_nothing_left(tag: &str) {
    let deadline = Instant::now() + LONG;
    loop {
        let left = tagged(tag);
        if left.is_empty() {
            return;
        }
        if Instant::now() > deadline {
            for (pid, _) in &left {
                signal(*pid, Signal::KILL);
            }
            panic!("left behind: {left:?}");
        }
        thread::sleep(Duration::from_millis(5));
    }
}

fn argument() -> String {
    std::env::var(ARGUMENT).expect("this program needs an argument")
}

fn ready() {
    println!("ready");
}

// ---- main returns --------------------------------------------------------------------------------------------------

fn sd02_a_running_task_is_finished_when_main_returns() {
    let _watchdog = watchdog();
    let gate = Gate::new();
    let Play { mut command, tag } = play("prints_at_exit").argument(gate.path());
    let mut child = command.spawn().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut said = String::new();
    stdout.read_line(&mut said).unwrap();
    assert_eq!(said, "main returns\n");
    gate.open();
    said.clear();
    stdout.read_to_string(&mut said).unwrap();
    assert_eq!(said, "the task was here\n");
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert_nothing_left(&tag);
}

#[task]
fn print_later(gate: &Path) {
    come_to(gate);
    println!("the task was here");
}

fn prints_at_exit() {
    let gate = PathBuf::from(argument());
    let pool = pool(1);
    let future = pool.submit(print_later::task(&gate));
    eventually("it runs", || future.running());
    println!("main returns");
}

fn sd26_nested_executors_at_exit() {
    play("nests_at_exit").play_out();
}

thread_local! {
    /// Lives as long as the worker's thread, and longer than any task.
    static KEPT: std::cell::RefCell<Option<ProcessPoolExecutor>> = const { std::cell::RefCell::new(None) };
}

#[task]
#[expect(clippy::disallowed_methods, reason = "a task runs while its thread's locals are there")]
fn use_a_kept_pool(value: u64) -> u64 {
    KEPT.with_borrow_mut(|kept| {
        kept.get_or_insert_with(|| pool(1)).submit(echo::task(value)).result().unwrap()
    })
}

/// Keeps a pool in a static, which nobody drops.
#[task]
fn use_a_static_pool(value: u64) -> u64 {
    static POOL: std::sync::OnceLock<ProcessPoolExecutor> = std::sync::OnceLock::new();
    POOL.get_or_init(|| pool(1)).submit(echo::task(value)).result().unwrap()
}

fn nests_at_exit() {
    static POOL: std::sync::OnceLock<ProcessPoolExecutor> = std::sync::OnceLock::new();
    let pool = POOL.get_or_init(|| pool(2));
    let kept: Vec<_> = (0..4).map(|value| pool.submit(use_a_kept_pool::task(value))).collect();
    let fixed: Vec<_> = (0..4).map(|value| pool.submit(use_a_static_pool::task(value))).collect();
    for futures in [kept, fixed] {
        assert_eq!(
            futures.into_iter().map(|future| future.result().unwrap()).collect::<Vec<_>>(),
            [0, 1, 2, 3]
        );
    }
    // Neither pool is shut down, and main returns.
}

fn sd27_a_refused_thread_is_a_broken_pool() {
    let mut broken = 0;
    // Room for none, one, two, three … of the threads that an executor needs, and always a gibibyte for the
    // allocator: threads have stacks of two.
    for room_gib in [1, 3, 5, 7, 20] {
        let said = play("is_refused_threads")
            .env("RUST_MIN_STACK", (2_u64 << 30).to_string())
            .argument(room_gib.to_string());
        match said.play_out().as_str() {
            "broken\n" => broken += 1,
            "works\n" => {}
            other => panic!("{other}"),
        }
    }
    assert!((2..5).contains(&broken), "{broken}: some rooms were too small, and the last one was not");
}

fn is_refused_threads() {
    let pages: u64 =
        fs::read_to_string("/proc/self/statm").unwrap().split(' ').next().unwrap().parse().unwrap();
    let room = argument().parse::<u64>().unwrap() << 30;
    let limit = Rlimit { current: Some(pages * 4096 + room), maximum: None };
    setrlimit(Resource::As, limit).unwrap();
    let pool = pool(1);
    let futures: Vec<_> = (0..10).map(|value| pool.submit(echo::task(value))).collect();
    let outcomes: Vec<_> = futures.into_iter().map(|future| future.result()).collect();
    pool.shutdown(true);
    assert!(outcomes.iter().all(|outcome| outcome.is_ok() == outcomes[0].is_ok()), "{outcomes:?}");
    match &outcomes[0] {
        Ok(_) => println!("works"),
        Err(error @ TaskError::Broken(BrokenCause::Start(_))) => {
            let text = error.to_string();
            assert!(text.contains("Resource temporarily unavailable"), "{text}");
            println!("broken");
        }
        Err(other) => panic!("{other:?}"),
    }
    drop(pool);
    assert_eq!(children(), []);
}

// ---- the parent is killed ------------------------------------------------------------------------------------------

/// Starts a program and waits for it.
#[task]
fn start_program(gate: &Path) {
    let mut sleep = Command::new("sleep").arg("1000").spawn().expect("sleep");
    File::create(gate.join(format!("arrival-{}-sleep", sleep.id()))).expect("a note at the gate");
    sleep.wait().expect("it was started");
}

fn parent_killed_while_workers_compute() {
    let _watchdog = watchdog();
    let gate = Gate::new();
    let (mut child, _stdout, tag) = play("computes").argument(gate.path()).until_it_speaks();
    // What is just being started has no environment yet.
    eventually("a program, two workers, and what one of them has started", || tagged(&tag).len() == 4);
    child.kill().unwrap();
    child.wait().unwrap();
    assert_nothing_left(&tag);
}

fn computes() {
    let gate = PathBuf::from(argument());
    let pool = pool(2);
    let _futures = (pool.submit(spin::task(&gate)), pool.submit(start_program::task(&gate)));
    eventually("both are at work", || fs::read_dir(&gate).unwrap().count() == 3);
    ready();
    loop {
        thread::park();
    }
}

fn parent_killed_while_workers_start() {
    let _watchdog = watchdog();
    for started in 2..10 {
        let mut play = play("starts_many");
        let mut child = play.command.stdout(Stdio::null()).spawn().unwrap();
        eventually("workers come up", || tagged(&play.tag).len() >= started);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_nothing_left(&play.tag);
    }
}

fn starts_many() {
    let gate = Gate::new();
    // Killed, it could not remove the gate's directory; nobody comes to it.
    let path = gate.file("no-such-gate");
    drop(gate);
    let pool = pool(12);
    let _futures: Vec<_> = (0..12).map(|_| pool.submit(wait_for_file::task(&path))).collect();
    loop {
        thread::park();
    }
}

/// Waits until there is such a file.
#[task]
fn wait_for_file(path: &Path) {
    while !path.exists() {
        thread::sleep(Duration::from_millis(1));
    }
}

fn parent_killed_deep_above() {
    let _watchdog = watchdog();
    let gate = Gate::new();
    let (mut child, _stdout, tag) = play("nests_and_computes").argument(gate.path()).until_it_speaks();
    eventually("a program and five workers, one below the other", || tagged(&tag).len() == 6);
    child.kill().unwrap();
    child.wait().unwrap();
    assert_nothing_left(&tag);
}

#[task]
fn spin_below(levels: u32, gate: &Path) {
    if levels == 0 {
        spin(gate)
    } else {
        pool(1).submit(spin_below::task(levels - 1, gate)).result().unwrap()
    }
}

fn nests_and_computes() {
    let gate = PathBuf::from(argument());
    let _future = pool_kept().submit(spin_below::task(4, &gate));
    eventually("the lowest is at work", || fs::read_dir(&gate).unwrap().count() == 2);
    ready();
    loop {
        thread::park();
    }
}

fn pool_kept() -> &'static ProcessPoolExecutor {
    Box::leak(Box::new(pool(1)))
}

// ---- nothing is left behind ----------------------------------------------------------------------------------------

fn a_thousand_pools_leave_nothing() {
    play("makes_pools").play_out();
}

/// The only transport that has files leaves none, at whatever moment its workers die.
fn pools_over_ipc_channel_leave_nothing() {
    let dir = tempfile::tempdir().unwrap();
    play("makes_pools").env("TMPDIR", dir.path()).env("EXECUTOR_TRANSPORT", "ipc").play_out();
    let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(left.is_empty(), "{left:?}");
}

fn makes_pools() {
    let once = |round: usize| {
        let gate = Gate::new();
        let pool = pool(2);
        let futures: Vec<_> = (0..4).map(|value| pool.submit(echo::task(value))).collect();
        match round % 5 {
            0 => pool.shutdown(true),
            1 => assert!(pool.submit(exit::task(3)).result().unwrap_err().is_worker_lost()),
            2 => {
                let held = pool.submit(hold::task(gate.path()));
                gate.wait_for(1);
                assert!(held.cancel_running());
                assert!(held.result().unwrap_err().is_cancelled());
            }
            3 => {
                let _held = pool.submit(hold::task(gate.path()));
                gate.wait_for(1);
                pool.kill_workers();
                return;
            }
            // At any moment of its start.
            _ => return pool.kill_workers(),
        }
        futures.into_iter().for_each(|future| assert!(future.result().is_ok()));
    };
    (0..10).for_each(once);
    eventually("threads end", || executor_threads().is_empty());
    let before = descriptors();
    for round in 0..rounds() {
        once(round);
        assert_eq!(children(), [], "round {round}");
    }
    eventually("threads end", || executor_threads().is_empty());
    assert_eq!(descriptors(), before, "after {} pools: {:?}", rounds(), support_b::descriptor_names());
}

/// How many descriptors are open, without needing one to find out.
fn open_below(limit: i32) -> usize {
    // SAFETY: asks only.
    (0..limit).filter(|fd| unsafe { libc::fcntl(*fd, libc::F_GETFD) } != -1).count()
}

fn few_descriptors_many_tasks() {
    play("has_few_descriptors").play_out();
}

/// Waits until there is no such file: to remove one takes no descriptor.
#[task]
fn wait_while_file(path: &Path) -> u64 {
    while path.exists() {
        thread::sleep(Duration::from_millis(1));
    }
    1
}

fn has_few_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(256), ..limit }).unwrap();
    let before = open_below(256);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("wait");
    File::create(&file).unwrap();
    let pool = pool(150);
    let futures: Vec<_> = (0..1000).map(|_| pool.submit(wait_while_file::task(&file))).collect();
    // A hundred and fifty workers need more than there are.
    eventually("descriptors run out", || open_below(256) >= 240);
    fs::remove_file(&file).unwrap();
    assert_eq!(futures.into_iter().map(|future| future.result().unwrap()).sum::<u64>(), 1000);
    drop(pool);
    assert_eq!(children(), [], "no child, also no zombie");
    eventually("threads end", || executor_threads().is_empty());
    assert_eq!(open_below(256), before, "{:?}", support_b::descriptor_names());
}

fn a_connection_without_descriptors_leaves_no_zombie() {
    play("cannot_connect").play_out();
}

/// Descriptors run out between a worker's start and its connection.
fn cannot_connect() {
    let mut broken = 0;
    let before = open_below(1024);
    // Over ipc-channel a worker needs more for itself; with less it cannot even say so.
    let least = if std::env::var("EXECUTOR_TRANSPORT").is_ok_and(|name| name == "ipc") { 4 } else { 1 };
    for spare in least..least + 20 {
        let pool = pool(1);
        // The descriptors of the pool itself, so that only those of the worker are missing.
        let future = {
            let limit = getrlimit(Resource::Nofile);
            setrlimit(Resource::Nofile, Rlimit { current: Some((open_below(1024) + spare) as u64), ..limit })
                .unwrap();
            let future = pool.submit(echo::task(7));
            future.wait();
            setrlimit(Resource::Nofile, limit).unwrap();
            future
        };
        match future.result() {
            Ok(value) => assert_eq!(value, 7),
            Err(TaskError::Broken(BrokenCause::Start(_))) => broken += 1,
            Err(other) => panic!("with {spare} to spare: {other:?}"),
        }
        drop(pool);
        assert_eq!(children(), [], "with {spare} to spare");
        eventually("threads end", || executor_threads().is_empty());
        assert_eq!(open_below(1024), before, "with {spare} to spare");
    }
    assert!((1..20).contains(&broken), "{broken}: for some there were too few, for others enough");
}

// ---- children that are no workers ----------------------------------------------------------------------------------

fn play_child(child: &str) {
    match child {
        "exits" => std::process::exit(7),
        "closes" => {
            // SAFETY: descriptor 0 belongs to this process, which uses it for nothing else.
            unsafe { libc::close(0) };
            loop {
                thread::park();
            }
        }
        "stops" => signal(std::process::id(), Signal::STOP),
        "babbles" => {
            let socket = rustix::stdio::stdin();
            rustix::net::send(socket, b"hello, I am somebody else", rustix::net::SendFlags::NOSIGNAL)
                .unwrap();
            loop {
                thread::park();
            }
        }
        _ => loop {
            thread::park();
        },
    }
}

fn a_child_that_never_connects() {
    for child in ["sleeps", "closes", "stops", "babbles", "exits"] {
        play("has_mute_children").argument(child).play_out();
    }
}

fn has_mute_children() {
    let child = argument();
    // Whoever has something to say has the time for it, and is not taken for one that says nothing.
    let speaks = matches!(child.as_str(), "exits" | "babbles");
    let limit = if speaks { LONG } else { Duration::from_millis(300) };
    let pool = ProcessPoolExecutor::builder()
        .max_workers(2)
        .env(CHILD, &child)
        .start_timeout(limit)
        .build()
        .unwrap();
    let futures: Vec<_> = (0..5).map(|value| pool.submit(echo::task(value))).collect();
    for future in futures {
        let error = future.result().unwrap_err();
        let text = error.to_string();
        match (child.as_str(), &error) {
            ("exits", TaskError::Broken(BrokenCause::NoEntry { status })) => {
                assert_eq!(*status, ExitStatus::Exited(7));
                assert!(text.contains("#[executor::main]") && text.contains("code 7"), "{text}");
            }
            ("babbles", TaskError::Broken(BrokenCause::OtherBuild(_))) => {}
            ("sleeps" | "closes" | "stops", TaskError::Broken(BrokenCause::Start(_))) => {
                assert!(text.contains("start_timeout") && text.contains("300ms"), "{text}");
            }
            _ => panic!("{child}: {error:?}"),
        }
    }
    pool.shutdown(true);
    assert_eq!(children(), []);
}

fn a_program_that_forgets_the_entry() {
    let dir = tempfile::tempdir().unwrap();
    let said = play("forgets_entry").argument(dir.path()).play_out();
    assert!(said.contains("#[executor::main]") && said.contains("executor::init()"), "{said}");
    let names: BTreeSet<String> = fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    let (parents, kin): (Vec<_>, Vec<_>) = names.iter().map(|name| name.split_once('-').unwrap()).unzip();
    let root =
        names.iter().find(|name| name.ends_with("-root")).unwrap().split_once('-').unwrap().0.to_owned();
    assert_eq!(kin.iter().filter(|kin| **kin == "root").count(), 1);
    assert!((2..=5).contains(&parents.len()), "at most as many children as the pool may have: {names:?}");
    for child in kin.into_iter().filter(|kin| *kin != "root") {
        assert_eq!(child, root, "a child of the program itself: {names:?}");
    }
}

/// Leaves a note for each process; in a child it meets the executor as the program of a user would.
fn forgets_entry() {
    let dir = PathBuf::from(argument());
    let note = match std::env::args().nth(1) {
        None => format!("{}-root", std::process::id()),
        Some(_) => format!("{}-{}", std::process::id(), std::os::unix::process::parent_id()),
    };
    File::create(dir.join(note)).unwrap();
    match ProcessPoolExecutor::builder().max_workers(4).build() {
        Ok(pool) => {
            let futures: Vec<_> = (0..20).map(|value| pool.submit(echo::task(value))).collect();
            for future in futures {
                let error = future.result().unwrap_err();
                assert!(matches!(error, TaskError::Broken(BrokenCause::NoEntry { .. })), "{error:?}");
                println!("{error}");
            }
        }
        Err(error) => {
            assert!(matches!(error, executor::BuildError::NoEntry), "{error:?}");
            println!("{error}");
        }
    }
}

// ---- signals, masks, directories -----------------------------------------------------------------------------------

static SIGNALS: AtomicU64 = AtomicU64::new(0);

extern "C" fn count_signal(_: libc::c_int) {
    SIGNALS.fetch_add(1, Ordering::Relaxed);
}

/// From now on each blocking call of this process is interrupted a thousand times a second.
fn start_storm() {
    // SAFETY: an all-zero `sigaction` is a valid one; the handler adds to an atomic.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = count_signal as extern "C" fn(libc::c_int) as usize;
        assert_eq!(libc::sigaction(libc::SIGALRM, &action, std::ptr::null_mut()), 0);
        let each = libc::timeval { tv_sec: 0, tv_usec: 1000 };
        let timer = libc::itimerval { it_interval: each, it_value: each };
        assert_eq!(libc::setitimer(libc::ITIMER_REAL, &timer, std::ptr::null_mut()), 0);
    }
}

fn a_storm_of_signals() {
    play("is_in_a_storm").play_out();
}

#[task]
fn start_storm_here() {
    start_storm();
}

#[task]
fn reverse(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.reverse();
    bytes
}

fn is_in_a_storm() {
    start_storm();
    for in_workers_too in [false, true] {
        let mut builder = ProcessPoolExecutor::builder().max_workers(2);
        if in_workers_too {
            builder = builder.initializer(start_storm_here::task());
        }
        let pool = builder.build().unwrap();
        let gate = Gate::new();
        for round in 0..20 {
            let small: Vec<_> = (0..50).map(|value| pool.submit(echo::task(value))).collect();
            let mut bytes = vec![0; 1 << 20];
            bytes[0] = round;
            let large = pool.submit(reverse::task(bytes));
            if round % 5 == 0 {
                assert!(pool.submit(exit::task(1)).result().unwrap_err().is_worker_lost());
                let slow = pool.submit(spin::task(gate.path()).timeout(Duration::from_millis(20)));
                assert!(slow.result().unwrap_err().is_timeout());
            }
            assert_eq!(large.result().unwrap().last(), Some(&round));
            for (value, future) in small.into_iter().enumerate() {
                assert_eq!(future.result().unwrap(), value as u64);
            }
        }
        pool.shutdown(true);
        assert_eq!(children(), []);
    }
    assert!(SIGNALS.load(Ordering::Relaxed) > 100, "there was a storm");
}

fn umask_zero() {
    let dir = tempfile::tempdir().unwrap();
    // Only ipc-channel has anything in the file system.
    let play = play("has_no_umask").env("TMPDIR", dir.path()).env("EXECUTOR_TRANSPORT", "ipc");
    play.argument(dir.path()).play_out();
}

#[task]
fn make_file(path: &Path) {
    File::create(path).unwrap();
}

fn has_no_umask() {
    let dir = PathBuf::from(argument());
    rustix::process::umask(rustix::fs::Mode::empty());
    let (seen, over) = (AtomicU64::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        // Workers listen below this directory, for a moment each: it is looked at without a pause.
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                for entry in fs::read_dir(&dir).unwrap().filter_map(Result::ok) {
                    if let Ok(metadata) = entry.metadata()
                        && metadata.is_dir()
                    {
                        let mode = metadata.permissions().mode() & 0o777;
                        assert_eq!(mode, 0o700, "nobody else may connect: {entry:?}");
                        seen.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
        });
        eventually("a worker was seen while it listened", || {
            pool(1).submit(echo::task(1)).result().unwrap();
            seen.load(Ordering::Relaxed) > 0
        });
        over.store(true, Ordering::Relaxed);
    });
    // For tasks the mask is what it was.
    let file = dir.join("made-by-a-task");
    pool(1).submit(make_file::task(&file)).result().unwrap();
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o666);
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 1, "no socket is left");
}

fn odd_temporary_directories() {
    let dir = tempfile::tempdir().unwrap();
    let long = dir.path().join("x".repeat(200));
    fs::create_dir(&long).unwrap();
    let missing = dir.path().join("missing");
    for odd in [long.to_str().unwrap(), missing.to_str().unwrap(), "", ".", "/dev/null", "relative/missing"] {
        for transport in ["ring", "ipc"] {
            play("works").env("TMPDIR", odd).env("EXECUTOR_TRANSPORT", transport).argument(odd).play_out();
        }
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    assert_eq!(fs::read_dir(&long).unwrap().count(), 0);
}

#[task]
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

fn works() {
    let pool = pool(2);
    let sum: u64 = pool.map(echo::task, 0..20).map(Result::unwrap).sum();
    assert_eq!(sum, 190);
    assert_eq!(pool.submit(variable::task("TMPDIR")).result().unwrap(), Some(argument()));
}

// ---- fork, SIGCHLD, waits ------------------------------------------------------------------------------------------

fn a_program_that_forks() {
    play("forks").play_out();
}

fn forks() {
    let gate = Gate::new();
    let pool = pool(2);
    let other = pool.clone();
    let future = pool.submit(hold::task(gate.path()));
    let moved = pool.submit(hold::task(gate.path()));
    let called = AtomicBool::new(false);
    let called: &'static AtomicBool = Box::leak(Box::new(called));
    moved.add_done_callback(move |_| called.store(true, Ordering::Relaxed));
    gate.wait_for(2);
    // SAFETY: the child uses what this test is about, and memory; glibc's allocator survives a fork.
    match unsafe { libc::fork() } {
        0 => {
            let inert = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                let forked = |error| matches!(error, TaskError::Broken(BrokenCause::Forked));
                assert!(forked(pool.submit(echo::task(1)).result().unwrap_err()));
                assert!(pool.map(echo::task, [1, 2]).all(|item| forked(item.unwrap_err())));
                assert!(!future.cancel() && !future.cancel_running());
                assert!(future.wait_timeout(Duration::from_secs(3600)));
                assert!(forked(future.error().unwrap()));
                assert!(forked(future.result().unwrap_err()));
                let (done, not_done) = wait(vec![moved], ReturnWhen::AllCompleted, None);
                assert!(not_done.is_empty());
                assert!(done.into_iter().all(|future| forked(future.result().unwrap_err())));
                assert_eq!(pool.worker_pids(), []);
                pool.kill_workers();
                pool.shutdown(true);
                drop(pool);
                drop(other);
                // A new one is this process's own.
                let own = support_b::pool(1);
                assert_eq!(own.submit(echo::task(5)).result().unwrap(), 5);
                own.shutdown(true);
                assert_eq!(children(), []);
            }));
            // SAFETY: ends the process without the parent's exit handlers.
            unsafe { libc::_exit(i32::from(inert.is_err())) }
        }
        child => {
            assert!(child > 0);
            let mut status = 0;
            // SAFETY: our child; the out-pointer is valid.
            assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
            assert_eq!(status, 0, "the child's handles were inert");
            // Here everything goes on.
            assert!(!future.done() && !called.load(Ordering::Relaxed));
            assert_eq!(pool.worker_pids().len(), 2);
            gate.open();
            assert_ne!(future.result().unwrap(), moved.result().unwrap());
            assert_eq!(other.submit(echo::task(6)).result().unwrap(), 6);
            pool.shutdown(true);
            assert!(called.load(Ordering::Relaxed));
            assert_eq!(children(), []);
        }
    }
}

fn sigchld_ignored() {
    play("ignores_sigchld").play_out();
}

fn ignores_sigchld() {
    // SAFETY: ignores a signal; no handler of ours is involved.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
    let gate = Gate::new();
    let pool = pool(2);
    for _ in 0..10 {
        assert_eq!(pool.submit(echo::task(1)).result().unwrap(), 1);
        let error = pool.submit(exit::task(3)).result().unwrap_err();
        let TaskError::WorkerLost { pid, status, .. } = &error else { panic!("{error:?}") };
        assert_eq!(*status, ExitStatus::Unknown);
        assert!(*pid > 0 && error.to_string().contains("status unknown"), "{error}");
    }
    let late = pool.submit(spin::task(gate.path()).timeout(Duration::from_millis(20)));
    assert!(late.result().unwrap_err().is_timeout());
    pool.shutdown(true);
    eventually("all are gone", || children().is_empty());
}

fn somebody_else_waits() {
    play("waits_for_any_child").play_out();
}

fn waits_for_any_child() {
    thread::spawn(|| {
        loop {
            // SAFETY: waits for any child, as other libraries do; no out-pointer is given.
            if unsafe { libc::waitpid(-1, std::ptr::null_mut(), 0) } == -1 {
                thread::yield_now();
            }
        }
    });
    for _ in 0..20 {
        let pool = pool(2);
        assert_eq!(pool.submit(echo::task(1)).result().unwrap(), 1);
        let error = pool.submit(exit::task(3)).result().unwrap_err();
        let TaskError::WorkerLost { status, .. } = error else { panic!("{error:?}") };
        assert!([ExitStatus::Unknown, ExitStatus::Exited(3)].contains(&status));
        pool.shutdown(true);
    }
}

// ---- file, input, runtime ------------------------------------------------------------------------------------------

fn the_executable_is_gone() {
    let _watchdog = watchdog();
    for replaced in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("program");
        fs::copy(std::env::current_exe().unwrap(), &file).unwrap();
        let mut play = play_file(&file, "outlives_its_file");
        play.command.stdin(Stdio::piped());
        let (mut child, mut stdout, tag) = play.until_it_speaks();
        fs::remove_file(&file).unwrap();
        if replaced {
            fs::write(&file, "#!/bin/sh\nexit 1\n").unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
        }
        child.stdin.take().unwrap().write_all(b"go on\n").unwrap();
        let mut said = String::new();
        stdout.read_to_string(&mut said).unwrap();
        assert!(child.wait().unwrap().success());
        assert_eq!(said, "a new worker\n");
        assert_nothing_left(&tag);
    }
}

fn outlives_its_file() {
    let pool = pool(1);
    let worker = pool.submit(pid::task()).result().unwrap();
    ready();
    std::io::stdin().read_line(&mut String::new()).unwrap();
    assert!(pool.submit(exit::task(1)).result().unwrap_err().is_worker_lost());
    assert_ne!(pool.submit(pid::task()).result().unwrap(), worker);
    println!("a new worker");
}

fn standard_input_belongs_to_the_parent() {
    let _watchdog = watchdog();
    let mut play = play("reads_its_input");
    play.command.stdin(Stdio::piped());
    let (mut child, mut stdout, _tag) = play.until_it_speaks();
    child.stdin.take().unwrap().write_all(b"one\ntwo\n").unwrap();
    let mut said = String::new();
    stdout.read_to_string(&mut said).unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(said, "a worker reads \"\", its program \"\"\nthe parent reads \"one\\ntwo\\n\"\n");
}

#[task]
fn read_input() -> (String, String) {
    let mut own = String::new();
    std::io::stdin().read_to_string(&mut own).unwrap();
    let program = Command::new("cat").stdout(Stdio::piped()).spawn().unwrap().wait_with_output().unwrap();
    (own, String::from_utf8(program.stdout).unwrap())
}

fn reads_its_input() {
    let pool = pool(1);
    ready();
    let (own, program) = pool.submit(read_input::task()).result().unwrap();
    println!("a worker reads {own:?}, its program {program:?}");
    let mut input = String::new();
    std::io::stdin().read_to_string(&mut input).unwrap();
    println!("the parent reads {input:?}");
}

fn main_above_tokio_main() {
    assert_eq!(play("is_async").play_out(), "42 true\n");
}

#[task]
fn no_runtime_yet() -> bool {
    tokio::runtime::Handle::try_current().is_err()
}

#[executor::main]
#[tokio::main]
async fn is_async() {
    let pool = pool(2);
    let (value, none) = futures::join!(pool.submit(echo::task(42)), pool.submit(no_runtime_yet::task()));
    println!("{} {}", value.unwrap(), none.unwrap());
    pool.shutdown_async().await;
}

fn output_of_workers_is_their_tasks_alone() {
    // `play_out` wants stderr to be empty.
    assert_eq!(play("is_quiet").play_out(), "");
}

#[task]
fn panic_quietly() {
    panic!("not on the standard streams");
}

fn is_quiet() {
    let gate = Gate::new();
    let pool = pool(2);
    assert!(pool.submit(panic_quietly::task()).result().unwrap_err().is_panic());
    assert!(pool.submit(exit::task(1)).result().unwrap_err().is_worker_lost());
    let late = pool.submit(spin::task(gate.path()).timeout(Duration::from_millis(20)));
    assert!(late.result().unwrap_err().is_timeout());
    let future = pool.submit(echo::task(1));
    future.result().unwrap();
}

// ---- workers that are missing ------------------------------------------------------------------------------------------

fn tasks_that_meet_after_quick_calls_get_their_workers() {
    play("meets_after_quick_calls").play_out();
}

#[task]
fn meet(barrier: Option<executor::Barrier>) -> bool {
    barrier.is_none_or(|barrier| barrier.wait_timeout(Duration::from_secs(60)).is_ok())
}

fn meets_after_quick_calls() {
    for round in 0..20 {
        let pool = pool(3);
        // Now the pool knows: it is quick.
        for _ in 0..20 {
            pool.submit(meet::task(None)).result().unwrap();
        }
        let barrier = executor::Barrier::new(3).unwrap();
        let three: Vec<_> = (0..3).map(|_| pool.submit(meet::task(Some(barrier.clone())))).collect();
        let met: Vec<_> = three.into_iter().map(|future| future.result().unwrap()).collect();
        assert_eq!((met, pool.worker_pids().len()), (vec![true; 3], 3), "round {round}");
    }
}

/// Whether this user may become another one; says so if not.
fn may_become_another_user() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        println!("skipped: only root can become another user");
    }
    root
}

/// In a program of its own: this user from here on, with no way back.
fn become_user(number: u32) {
    // SAFETY: changes who this process is; it has one thread that does anything.
    assert!(unsafe { libc::setgid(number) == 0 && libc::setuid(number) == 0 });
}

fn a_pool_outlives_what_its_starting_workers_are_refused() {
    if !may_become_another_user() {
        return;
    }
    // With some of them the process of a second worker is there, and not the threads that it needs.
    for processes in 7..=14 {
        play("may_have_few_processes").argument(processes.to_string()).play_out();
    }
}

fn may_have_few_processes() {
    let processes = argument().parse().unwrap();
    setrlimit(Resource::Nproc, Rlimit { current: Some(processes), maximum: Some(processes) }).unwrap();
    // Nobody else's processes count.
    become_user(support_b::user_of_its_own());
    let gate = Gate::new();
    let pool = pool(4);
    let long = pool.submit(hold::task(gate.path()));
    gate.wait_for(1);
    let next: Vec<_> = (0..3).map(|_| pool.submit(pid::task())).collect();
    // Time in which others can be started, or refused some times.
    let (done, waiting) = wait(next, ReturnWhen::AllCompleted, Some(Duration::from_millis(300)));
    gate.open();
    long.result().unwrap();
    for future in done.into_iter().chain(waiting) {
        future.result().unwrap();
    }
}

fn a_program_that_drops_its_privileges_keeps_its_pool() {
    if !may_become_another_user() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("program");
    fs::copy(std::env::current_exe().unwrap(), &file).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o700)).unwrap();
    play_file(&file, "drops_its_privileges").play_out();
}

#[task]
fn nap(millis: u64) {
    thread::sleep(Duration::from_millis(millis));
}

fn drops_its_privileges() {
    let pool = pool(2);
    pool.submit(nap::task(1)).result().unwrap();
    become_user(65_534);
    let all: Vec<_> = (0..8).map(|_| pool.submit(nap::task(100))).collect();
    for future in all {
        future.result().expect("one worker lives");
    }
}

fn a_limit_is_told_also_where_the_signal_is_refused() {
    if may_become_another_user() {
        // Of a machine that is busy some answers are late. Of a pool that waits for who cannot be signalled all are.
        let quick = (0..5).any(|_| play("may_not_signal_its_worker").play_out() == "quick\n");
        assert!(quick, "it takes as long as to give up a worker that was signalled and does not end");
    }
}

fn may_not_signal_its_worker() {
    let pool = pool(1);
    let limited = pool.submit(hangs::task().timeout(Duration::from_secs(1)));
    eventually("it runs", || limited.running());
    become_user(65_534);
    let begun = Instant::now();
    match limited.result_timeout(LONG) {
        Ok(Err(TaskError::TimedOut { .. })) => {}
        other => panic!("{other:?}"),
    }
    // Far less than it would take to give up a worker that was signalled and does not end.
    println!("{}", if begun.elapsed() < Duration::from_secs(4) { "quick" } else { "late" });
}

// ---- workers that are stopped ------------------------------------------------------------------------------------------

fn a_worker_that_the_terminal_stops_is_an_error() {
    play("stops_by_its_terminal").play_out();
}

/// As a task that unblocks the signal and then writes to a terminal after `stty tostop`.
#[task]
fn stop_as_a_terminal_does() {
    // SAFETY: a fresh set with one signal, for this thread only; then the signal for it.
    unsafe {
        let mut set = std::mem::MaybeUninit::uninit();
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), libc::SIGTTOU);
        libc::pthread_sigmask(libc::SIG_UNBLOCK, set.as_ptr(), std::ptr::null_mut());
        libc::raise(libc::SIGTTOU);
    }
}

fn stops_by_its_terminal() {
    let pool = pool(1);
    // Without a time limit.
    let error = pool.submit(stop_as_a_terminal_does::task()).result().unwrap_err();
    assert!(error.is_worker_lost(), "{error:?}");
    assert!(error.to_string().contains("SIGTTOU"), "{error}");
    // And another worker goes on.
    pool.submit(pid::task()).result().unwrap();
}

fn a_stopped_worker_keeps_neither_its_limit_nor_the_end_waiting() {
    play("has_its_worker_stopped").play_out();
}

fn has_its_worker_stopped() {
    let pool = pool(1);
    let stop = || {
        let worker = *pool.worker_pids().last().unwrap();
        support_b::stop(worker);
        worker
    };
    // The worker has to be stopped before its limit ends it.
    with_a_limit_long_enough("it is stopped within its limit", |limit| {
        let gate = Gate::new();
        let limited = pool.submit(hold::task(gate.path()).timeout(limit));
        eventually("it is at the gate, or was too slow", || !gate.arrivals().is_empty() || limited.done());
        let worker = *gate.arrivals().first()?;
        let pid = rustix::process::Pid::from_raw(worker.cast_signed()).unwrap();
        // It may be gone.
        let _ = rustix::process::kill_process(pid, Signal::STOP);
        let mut stopped = false;
        eventually("it is stopped, or was too slow", || {
            stopped = support_b::state(worker) == Some('T');
            stopped || limited.done()
        });
        assert!(limited.result().unwrap_err().is_timeout());
        stopped.then_some(())
    });

    let gate = Gate::new();
    let held = pool.submit(hold::task(gate.path()));
    gate.wait_for(1);
    let worker = stop();
    // Who goes on soon enough has lost nothing.
    signal(worker, Signal::CONT);
    let behind = pool.submit(pid::task());
    gate.open();
    assert_eq!((held.result().unwrap(), behind.result().unwrap()), (worker, worker));

    // One that is stopped while it has nothing to do takes up the place of a worker that could run what comes.
    let idle = stop();
    assert_ne!(pool.submit(pid::task()).result().unwrap(), idle);

    let gate = Gate::new();
    let held = pool.submit(hold::task(gate.path()));
    gate.wait_for(1);
    stop();
    pool.shutdown(true);
    let error = held.result().unwrap_err();
    assert!(error.is_worker_lost() && error.to_string().contains("stopped by signal 19"), "{error}");
}

// ---- limits and names that are not a pool's --------------------------------------------------------------------------

fn a_time_limit_of_a_process_is_kept() {
    play("limits_a_process").play_out();
}

#[task]
fn hangs() {
    loop {
        thread::park();
    }
}

fn limits_a_process() {
    let limit = Duration::from_millis(200);
    let child = executor::Process::new(hangs::task().timeout(limit).name("the hanging one")).start().unwrap();
    assert_eq!(child.name(), "the hanging one");
    let error = child.join().unwrap_err();
    assert!(error.is_timeout() && error.to_string().contains("the hanging one"), "{error}");
    // One that ends in time is not touched.
    let child = executor::Process::new(pid::task().timeout(Duration::from_secs(60))).start().unwrap();
    child.join().unwrap();
}

fn options_of_an_initializer_and_a_preload_count() {
    play("has_options_elsewhere").play_out();
}

fn a_library_that_is_opened_before_the_first_pool_breaks_none() {
    play("opens_a_library").play_out();
}

/// Does what the constructors of a library with task functions do.
fn opens_a_library() {
    use executor_core::registry::{Call, Registered, TaskEntry, note};
    let of_ours = <pid as executor::TaskFn>::entry();
    let &TaskEntry { place, signature, call: Call::Sync(call), .. } = of_ours else { panic!("{of_ours:?}") };
    let registered = Registered::new();
    let opened = TaskEntry { name: "opened", place, signature, call: Call::Sync(call), registered };
    let opened = Box::leak(Box::new(opened));
    note(opened);
    assert_eq!(opened.id(), None, "workers begin without it");
    // Otherwise workers have another list of tasks than this process, and are taken for another program's.
    pool(1).submit(pid::task()).result().unwrap();
}

#[task]
fn fails() -> Result<(), String> {
    Err("it fails".into())
}

fn has_options_elsewhere() {
    let broken = |task| {
        let pool = ProcessPoolExecutor::builder().max_workers(1).initializer(task).build().unwrap();
        match pool.submit(pid::task()).result() {
            Err(TaskError::Broken(BrokenCause::Initializer(error))) => error,
            other => panic!("{other:?}"),
        }
    };
    let error = broken(hangs::task().timeout(Duration::from_millis(200)).name("to prepare"));
    assert!(error.is_timeout() && error.to_string().contains("to prepare"), "{error}");
    let pool = ProcessPoolExecutor::builder().max_workers(1).initializer(fails::task().name("to prepare"));
    let error = pool.build().unwrap().submit(pid::task()).result().unwrap_err();
    assert!(error.to_string().contains("to prepare"), "{error}");

    let context = executor::Context::new(executor::StartMethod::ForkServer)
        .preload(hangs::task().timeout(Duration::from_millis(200)).name("to preload"));
    let error = context.process(pid::task()).start().unwrap_err().to_string();
    assert!(error.contains("to preload") && error.contains("time limit"), "{error}");
}

/// Names the file that says how many descriptors a worker may have, if it is there.
const FILES: &str = "EXECUTOR_TEST_FILES";

/// Before the entry: in a worker that is about to take up its work.
fn take_limit() {
    let Some(file) = std::env::var_os(FILES) else { return };
    let Ok(files) = fs::read_to_string(&file) else { return };
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(files.parse().unwrap()), ..limit }).unwrap();
    fs::write(Path::new(&file).with_extension(std::process::id().to_string()), "").unwrap();
}

fn a_descriptor_that_is_refused_to_an_initializer_is_a_refused_start() {
    play("has_no_room_for_what_its_initializer_needs").play_out();
}

#[task]
fn keeps(ends: Vec<executor::Connection<u8, u8>>) {
    std::mem::forget(ends);
}

fn has_no_room_for_what_its_initializer_needs() {
    let gate = Gate::new();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("files");
    let builder = |workers| {
        let ends = (0..60).map(|_| executor::pipe().unwrap().0).collect();
        ProcessPoolExecutor::builder().max_workers(workers).initializer(keeps::task(ends)).env(FILES, &file)
    };
    let pool = builder(2).build().unwrap();
    let first = pool.submit(hold::task(gate.path()));
    gate.wait_for(1);
    // Enough to come up, and not for all that comes then.
    fs::write(&file, "64").unwrap();
    let second = pool.submit(hold::task(gate.path()));
    let refused = || {
        let notes = fs::read_dir(dir.path()).unwrap().flatten().map(|entry| entry.path());
        notes.filter_map(|note| note.extension()?.to_str()?.parse().ok()).next()
    };
    eventually("a second worker comes up", || refused().is_some());
    let refused = refused().unwrap();
    eventually("and ends", || !support_b::runs(refused));
    gate.open();
    // One works, so the pool does.
    assert_eq!(first.result().unwrap(), second.result().unwrap());
    assert!(pool.broken().is_none());
    // Where nobody works, it is told what was refused.
    match builder(1).build().unwrap().submit(pid::task()).result() {
        Err(TaskError::Broken(BrokenCause::Initializer(error))) => {
            assert!(error.is_refused() && error.to_string().contains("descriptors"), "{error}");
        }
        other => panic!("{other:?}"),
    }
}

fn an_initializer_that_hangs_breaks_the_pool() {
    play("waits_for_an_initializer").play_out();
}

fn waits_for_an_initializer() {
    let builder = || ProcessPoolExecutor::builder().max_workers(2).initializer(hangs::task());
    // The limit of a start is also that of the worker that comes up, which has to keep it.
    let too_slow = |error: &TaskError| matches!(error, TaskError::Broken(BrokenCause::Start(_)));
    for of_the_start in [true, false] {
        with_a_limit_long_enough("a worker comes up", |limit| {
            let builder = if of_the_start {
                builder().start_timeout(limit)
            } else {
                builder().initializer_timeout(limit)
            };
            let pool = builder.build().unwrap();
            match pool.submit(pid::task().timeout(Duration::from_millis(20))).result() {
                Err(TaskError::Broken(BrokenCause::Initializer(error))) => {
                    let text = error.to_string();
                    assert!(error.is_timeout() && text.contains("hangs"), "{text}");
                    assert!(text.contains(&format!("{limit:?}")), "{limit:?}: {text}");
                    Some(())
                }
                Err(error) if of_the_start && too_slow(&error) => None,
                other => panic!("{other:?}"),
            }
        });
    }
    // One that takes longer than a start may, and is allowed to.
    with_a_limit_long_enough("a worker comes up", |limit| {
        let gate = Gate::new();
        let pool = ProcessPoolExecutor::builder()
            .max_workers(1)
            .start_timeout(limit)
            .initializer(hold::task(gate.path()).timeout(Duration::from_secs(600)))
            .build()
            .unwrap();
        let waiting = pool.submit(pid::task());
        eventually("its initializer runs, or it was too slow", || {
            !gate.arrivals().is_empty() || waiting.done()
        });
        if waiting.done() {
            assert!(too_slow(&waiting.result().unwrap_err()));
            return None;
        }
        // Not to find an order: time in which it would be ended.
        thread::sleep(limit + Duration::from_secs(1));
        gate.open();
        waiting.result().unwrap();
        Some(())
    });
}
