//! Whole programs and what they leave behind. This file plays programs that a test harness cannot
//! be: programs that are killed, that forget the entry point, that fork, or that change the limits,
//! masks and signals of their process.
//!
//! This file has its own `main`. Without a program in its environment it runs the tests. Each test
//! starts this file again to play one program, and checks its output and what it left behind.

#[macro_use]
mod plays;
mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{BufRead, BufReader, Read, Write},
    os::{fd::OwnedFd, unix::fs::PermissionsExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use executor::{
    BrokenCause, ExitStatus, TaskError,
    manager::{Manager, ManagerError},
    prelude::*,
};
use plays::{PROGRAM, Play, argument, assert_nothing_left, harness, play, play_file, ready};
use rustix::process::{Resource, Rlimit, Signal, setrlimit};
use support::{
    Gate, LONG, children, come_to, descriptors, echo, eventually, executor_threads, exit, hold,
    pid, pool, rounds, signal, spin, tagged, variable, watchdog, with_a_timeout_long_enough,
};

/// Names what its workers do instead of being workers.
const CHILD: &str = "EXECUTOR_TEST_CHILD";

list! { TESTS:
    sd02_a_running_task_is_finished_when_main_returns,
    sd26_pools_kept_in_tasks_end_when_main_returns,
    sd27_a_pool_that_cannot_start_its_threads_is_broken,
    workers_that_compute_end_when_their_parent_is_killed,
    workers_that_start_end_when_their_parent_is_killed,
    nested_workers_end_when_the_topmost_parent_is_killed,
    mg27_a_managers_server_ends_when_its_parent_is_killed,
    a_managers_server_ends_when_its_program_ends_in_any_way,
    many_pools_leave_no_process_thread_or_descriptor,
    many_pools_over_ipc_channel_leave_no_file,
    a_thousand_tasks_run_although_descriptors_run_out,
    a_connection_that_fails_for_lack_of_descriptors_leaves_no_zombie,
    a_child_that_does_not_become_a_worker_breaks_the_pool,
    a_program_that_forgets_the_entry_point_gets_an_error_and_starts_few_children,
    a_pool_works_during_a_storm_of_signals,
    with_a_umask_of_zero_nobody_else_can_connect_to_a_worker,
    a_pool_works_with_unusual_temporary_directories,
    handles_of_a_pool_are_inert_in_a_fork_of_the_program,
    a_pool_works_when_sigchld_is_ignored,
    a_pool_works_when_another_thread_waits_for_any_child,
    workers_start_after_the_executable_was_removed_or_replaced,
    workers_and_their_programs_do_not_read_the_parents_input,
    executor_main_can_be_combined_with_tokio_main,
    lost_and_panicking_workers_print_nothing,
    br29_a_stack_overflow_in_a_thread_is_told_and_reported,
    tasks_that_wait_for_each_other_get_workers_after_quick_calls,
    a_pool_survives_starts_of_workers_that_are_refused,
    a_program_that_drops_its_privileges_keeps_its_pool,
    a_timeout_is_reported_although_the_worker_cannot_be_signalled,
    a_worker_stopped_by_its_terminal_is_an_error,
    a_stopped_worker_delays_neither_its_timeout_nor_a_shutdown,
    a_process_is_killed_at_its_timeout,
    options_of_initializers_and_preloads_take_effect,
    x02_an_initializer_that_hangs_breaks_the_pool,
    a_worker_without_descriptors_for_its_initializer_is_a_refused_start,
    a_library_opened_before_the_first_pool_does_not_break_it,
    an_idle_pool_wakes_no_thread,
}

list! { PROGRAMS:
    prints_at_exit,
    nests_at_exit,
    is_refused_threads,
    computes,
    starts_many,
    nests_and_computes,
    has_a_manager,
    ends_with_a_manager,
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
    overflows_in_a_thread,
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
    is_idle,
}

fn main() {
    take_limit();
    if let Some(child) = std::env::var_os(CHILD) {
        return play_child(&child.into_string().expect("its name is ours"));
    }
    let Ok(program) = std::env::var(PROGRAM) else {
        harness::run(TESTS);
    };
    // These two programs call it themselves, or leave it out.
    if !["forgets_entry", "is_async"].contains(&program.as_str()) {
        executor::init();
    }
    let (_, play) =
        PROGRAMS.iter().find(|(name, _)| *name == program).expect("there is such a program");
    let _watchdog = (program != "computes").then(watchdog);
    play();
}

// ---- main returns -------------------------------------------------------------------------------

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

fn sd26_pools_kept_in_tasks_end_when_main_returns() {
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

/// Keeps a pool in a static, which is never dropped.
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
    // Neither pool is shut down before main returns.
}

fn sd27_a_pool_that_cannot_start_its_threads_is_broken() {
    let mut broken = 0;
    // Enough address space for none, one, two, three or more of the threads that an executor needs,
    // and always a gibibyte for the allocator. Each thread has a stack of two gibibytes.
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
    assert!(
        (2..5).contains(&broken),
        "{broken}: some rooms were too small, and the last one was not"
    );
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

// ---- the parent is killed -----------------------------------------------------------------------

/// Starts a program and waits for it.
#[task]
fn start_program(gate: &Path) {
    let mut sleep = Command::new("sleep").arg("1000").spawn().expect("sleep");
    File::create(gate.join(format!("arrival-{}-sleep", sleep.id()))).expect("a note at the gate");
    sleep.wait().expect("it was started");
}

fn workers_that_compute_end_when_their_parent_is_killed() {
    let _watchdog = watchdog();
    let gate = Gate::new();
    let (mut child, _stdout, tag) = play("computes").argument(gate.path()).until_it_speaks();
    // A process that is just being started has no environment yet.
    eventually("a program, two workers, and what one of them has started", || {
        tagged(&tag).len() == 4
    });
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

fn mg27_a_managers_server_ends_when_its_parent_is_killed() {
    let _watchdog = watchdog();
    let (mut child, _stdout, tag) = play("has_a_manager").until_it_speaks();
    eventually("a program, its manager's server and a worker", || tagged(&tag).len() == 3);
    child.kill().unwrap();
    child.wait().unwrap();
    assert_nothing_left(&tag);
}

/// The worker waits for an item that nobody puts, and a function in the server never ends.
fn has_a_manager() {
    let gate = Gate::new();
    let manager = Manager::start().unwrap();
    let (queue, value) = (manager.queue(None).unwrap(), manager.value(1).unwrap());
    let pool = pool(1);
    let _future = pool.submit(get_from::task(queue.clone()));
    thread::scope(|scope| {
        scope.spawn(|| value.update(wait_in_server::with(gate.path())));
        gate.wait_for(1);
        ready();
        loop {
            thread::park();
        }
    });
}

#[task]
fn get_from(queue: executor::manager::Queue<u32>) -> Result<u32, ManagerError> {
    queue.get()
}

#[task]
fn wait_in_server(value: u32, gate: &Path) -> u32 {
    come_to(gate);
    value
}

fn a_managers_server_ends_when_its_program_ends_in_any_way() {
    for (end, code) in [("main", 0), ("exit", 3), ("leak", 0), ("panic", 101)] {
        let mut play = play("ends_with_a_manager").argument(end);
        let tag = play.tag.clone();
        let status = play.command.output().unwrap().status;
        assert_eq!(status.code(), Some(code), "{end}");
        assert_nothing_left(&tag);
    }
}

fn ends_with_a_manager() {
    let manager = Manager::start().unwrap();
    let list = manager.list([1]).unwrap();
    assert_eq!(list.len().unwrap(), 1);
    match argument().as_str() {
        "exit" => std::process::exit(3),
        "leak" => std::mem::forget((manager, list)),
        "panic" => panic!("while it has a manager"),
        _ => drop(manager),
    }
}

fn workers_that_start_end_when_their_parent_is_killed() {
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
    // A killed process could not remove the gate's directory, so the gate is dropped here. No task
    // opens this path.
    let path = gate.file("no-such-gate");
    drop(gate);
    let pool = pool(12);
    let _futures: Vec<_> = (0..12).map(|_| pool.submit(wait_for_file::task(&path))).collect();
    loop {
        thread::park();
    }
}

/// Waits until this file exists.
#[task]
fn wait_for_file(path: &Path) {
    while !path.exists() {
        thread::sleep(Duration::from_millis(1));
    }
}

fn nested_workers_end_when_the_topmost_parent_is_killed() {
    let _watchdog = watchdog();
    let gate = Gate::new();
    let (mut child, _stdout, tag) =
        play("nests_and_computes").argument(gate.path()).until_it_speaks();
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

// ---- nothing is left behind ---------------------------------------------------------------------

fn many_pools_leave_no_process_thread_or_descriptor() {
    play("makes_pools").play_out();
}

/// ipc-channel is the only transport with files. It must leave none, at whatever moment its workers
/// die.
fn many_pools_over_ipc_channel_leave_no_file() {
    let dir = tempfile::tempdir().unwrap();
    play("makes_pools").env("TMPDIR", dir.path()).env("EXECUTOR_TRANSPORT", "ipc").play_out();
    let left: Vec<_> =
        fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
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
            // The pool is killed at any moment of its start.
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
    assert_eq!(
        descriptors(),
        before,
        "after {} pools: {:?}",
        rounds(),
        support::descriptor_names()
    );
}

/// Returns how many descriptors are open, without needing one to find out.
fn open_below(limit: i32) -> usize {
    // SAFETY: only asks for a flag.
    (0..limit).filter(|fd| unsafe { libc::fcntl(*fd, libc::F_GETFD) } != -1).count()
}

fn a_thousand_tasks_run_although_descriptors_run_out() {
    play("has_few_descriptors").play_out();
}

/// Waits until this file no longer exists. Removing a file needs no descriptor.
#[task]
fn wait_while_file(path: &Path) -> u64 {
    while path.exists() {
        thread::sleep(Duration::from_millis(1));
    }
    1
}

fn has_few_descriptors() {
    let limit = support::limit_of(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(256), ..limit }).unwrap();
    let before = open_below(256);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("wait");
    File::create(&file).unwrap();
    let pool = pool(150);
    let futures: Vec<_> = (0..1000).map(|_| pool.submit(wait_while_file::task(&file))).collect();
    // A hundred and fifty workers need more descriptors than the limit allows.
    eventually("descriptors run out", || open_below(256) >= 240);
    fs::remove_file(&file).unwrap();
    assert_eq!(futures.into_iter().map(|future| future.result().unwrap()).sum::<u64>(), 1000);
    drop(pool);
    assert_eq!(children(), [], "no child, also no zombie");
    eventually("threads end", || executor_threads().is_empty());
    assert_eq!(open_below(256), before, "{:?}", support::descriptor_names());
}

fn a_connection_that_fails_for_lack_of_descriptors_leaves_no_zombie() {
    play("cannot_connect").play_out();
}

/// Lets descriptors run out between a worker's start and its connection.
fn cannot_connect() {
    let mut broken = 0;
    let before = open_below(1024);
    // With ipc-channel a worker needs more descriptors for itself. With fewer it cannot even report
    // the failure.
    let least =
        if std::env::var("EXECUTOR_TRANSPORT").is_ok_and(|name| name == "ipc") { 4 } else { 1 };
    for spare in least..least + 20 {
        let pool = pool(1);
        // The pool has been made, so that only descriptors for the worker are missing.
        let future = {
            let limit = support::limit_of(Resource::Nofile);
            setrlimit(
                Resource::Nofile,
                Rlimit { current: Some((open_below(1024) + spare) as u64), ..limit },
            )
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

// ---- children that are not workers --------------------------------------------------------------

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
            rustix::net::send(
                socket,
                b"hello, I am somebody else",
                rustix::net::SendFlags::NOSIGNAL,
            )
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

fn a_child_that_does_not_become_a_worker_breaks_the_pool() {
    for child in ["sleeps", "closes", "stops", "babbles", "exits"] {
        play("has_mute_children").argument(child).play_out();
    }
}

fn has_mute_children() {
    let child = argument();
    // A child that reports something gets enough time, so that it is not mistaken for one that
    // reports nothing.
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

fn a_program_that_forgets_the_entry_point_gets_an_error_and_starts_few_children() {
    let dir = tempfile::tempdir().unwrap();
    let said = play("forgets_entry").argument(dir.path()).play_out();
    assert!(said.contains("#[executor::main]") && said.contains("executor::init()"), "{said}");
    let names: BTreeSet<String> = fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    let (parents, kin): (Vec<_>, Vec<_>) =
        names.iter().map(|name| name.split_once('-').unwrap()).unzip();
    let root = names
        .iter()
        .find(|name| name.ends_with("-root"))
        .unwrap()
        .split_once('-')
        .unwrap()
        .0
        .to_owned();
    assert_eq!(kin.iter().filter(|kin| **kin == "root").count(), 1);
    assert!(
        (2..=5).contains(&parents.len()),
        "at most as many children as the pool may have: {names:?}"
    );
    for child in kin.into_iter().filter(|kin| *kin != "root") {
        assert_eq!(child, root, "a child of the program itself: {names:?}");
    }
}

/// Leaves a note for each process. A child runs this as well, as it would in a user's program
/// without the entry point.
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
                assert!(
                    matches!(error, TaskError::Broken(BrokenCause::NoEntry { .. })),
                    "{error:?}"
                );
                println!("{error}");
            }
        }
        Err(error) => {
            assert!(matches!(error, executor::BuildError::NoEntry), "{error:?}");
            println!("{error}");
        }
    }
}

// ---- signals, masks, directories ----------------------------------------------------------------

static SIGNALS: AtomicU64 = AtomicU64::new(0);

extern "C" fn count_signal(_: libc::c_int) {
    SIGNALS.fetch_add(1, Ordering::Relaxed);
}

/// From now on, interrupts each blocking call of this process a thousand times a second.
fn start_storm() {
    // SAFETY: an all-zero `sigaction` is valid, and the handler only adds to an atomic.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = count_signal as extern "C" fn(libc::c_int) as usize;
        assert_eq!(libc::sigaction(libc::SIGALRM, &action, std::ptr::null_mut()), 0);
        let each = libc::timeval { tv_sec: 0, tv_usec: 1000 };
        let timer = libc::itimerval { it_interval: each, it_value: each };
        assert_eq!(libc::setitimer(libc::ITIMER_REAL, &timer, std::ptr::null_mut()), 0);
    }
}

fn a_pool_works_during_a_storm_of_signals() {
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

fn with_a_umask_of_zero_nobody_else_can_connect_to_a_worker() {
    let dir = tempfile::tempdir().unwrap();
    // Only ipc-channel uses the file system.
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
        // A worker listens below this directory only for a moment, so the directory is read without
        // a pause.
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
    // Tasks still run with the original mask.
    let file = dir.join("made-by-a-task");
    pool(1).submit(make_file::task(&file)).result().unwrap();
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o666);
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 1, "no socket is left");
}

fn a_pool_works_with_unusual_temporary_directories() {
    let dir = tempfile::tempdir().unwrap();
    let long = dir.path().join("x".repeat(200));
    fs::create_dir(&long).unwrap();
    let missing = dir.path().join("missing");
    for odd in [
        long.to_str().unwrap(),
        missing.to_str().unwrap(),
        "",
        ".",
        "/dev/null",
        "relative/missing",
    ] {
        for transport in ["ring", "ipc"] {
            play("works")
                .env("TMPDIR", odd)
                .env("EXECUTOR_TRANSPORT", transport)
                .argument(odd)
                .play_out();
        }
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    assert_eq!(fs::read_dir(&long).unwrap().count(), 0);
}

fn works() {
    let pool = pool(2);
    let sum: u64 = pool.map(echo::task, 0..20).map(Result::unwrap).sum();
    assert_eq!(sum, 190);
    assert_eq!(pool.submit(variable::task("TMPDIR")).result().unwrap(), Some(argument()));
}

// ---- fork, SIGCHLD, waits -----------------------------------------------------------------------

fn handles_of_a_pool_are_inert_in_a_fork_of_the_program() {
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
    // SAFETY: the child uses only memory and the handles that this test is about, and glibc's
    // allocator survives a fork.
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
                // A new pool belongs to this process, so it works.
                let own = support::pool(1);
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
            // SAFETY: `child` is our child, and the out-pointer is valid.
            assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
            assert_eq!(status, 0, "the child's handles were inert");
            // In the parent everything goes on.
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

fn a_pool_works_when_sigchld_is_ignored() {
    play("ignores_sigchld").play_out();
}

fn ignores_sigchld() {
    // SAFETY: only ignores a signal; no handler of ours is involved.
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

fn an_idle_pool_wakes_no_thread() {
    play("is_idle").play_out();
}

/// Returns how often each thread of this process, except this one, and of its children has slept
/// and been woken.
fn sleeps() -> BTreeMap<(u32, u32), u64> {
    let this = std::process::id();
    let processes = children().into_iter().map(|(pid, ..)| pid).chain([this]);
    let threads = processes.flat_map(|pid| {
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("it lives");
        let ids = tasks.map(|task| task.unwrap().file_name().to_str().unwrap().parse().unwrap());
        ids.map(move |thread| (pid, thread)).collect::<Vec<_>>()
    });
    let others = threads.filter(|&(_, thread)| thread != this);
    others
        .map(|(pid, thread)| {
            let status = fs::read_to_string(format!("/proc/{pid}/task/{thread}/status")).unwrap();
            let count =
                status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
            ((pid, thread), count.expect("a line of the kernel's").trim().parse().unwrap())
        })
        .collect()
}

fn is_idle() {
    let pool = pool(2);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    for x in 0..1_000 {
        assert_eq!(pool.submit(echo::task(x)).result().unwrap(), x);
        assert_eq!(runtime.block_on(pool.submit(echo::task(x))).unwrap(), x);
    }
    let values: Vec<u64> = pool.map(echo::task, 0..1_000).map(Result::unwrap).collect();
    assert_eq!(values.len(), 1_000);
    // When the last task has ended, the driver looks once more, and memory is given back. After
    // that, nobody is woken for three seconds. The driver looks around every 30 seconds, so a few
    // attempts may be needed.
    for attempt in 1.. {
        let before = sleeps();
        assert!(before.len() >= 5, "reader, driver, and each worker's threads: {before:?}");
        thread::sleep(Duration::from_secs(3));
        let after = sleeps();
        if before == after {
            break;
        }
        assert!(attempt < 5, "woken while idle: {before:?}, then {after:?}");
    }
}

fn a_pool_works_when_another_thread_waits_for_any_child() {
    play("waits_for_any_child").play_out();
}

fn waits_for_any_child() {
    thread::spawn(|| {
        loop {
            // SAFETY: waits for any child, as other libraries do. No out-pointer is passed.
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

// ---- file, input, runtime -----------------------------------------------------------------------

fn workers_start_after_the_executable_was_removed_or_replaced() {
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

fn workers_and_their_programs_do_not_read_the_parents_input() {
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
    let program =
        Command::new("cat").stdout(Stdio::piped()).spawn().unwrap().wait_with_output().unwrap();
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

fn executor_main_can_be_combined_with_tokio_main() {
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
    let (value, none) =
        futures::join!(pool.submit(echo::task(42)), pool.submit(no_runtime_yet::task()));
    println!("{} {}", value.unwrap(), none.unwrap());
    pool.shutdown_async().await;
}

fn lost_and_panicking_workers_print_nothing() {
    // `play_out` asserts that stderr is empty.
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

fn br29_a_stack_overflow_in_a_thread_is_told_and_reported() {
    play("overflows_in_a_thread").play_out();
}

/// Overflows the stack of a thread. Its alternate stack is std's, which is small.
#[task]
fn overflow_in_a_thread() {
    let _ = thread::spawn(|| overflow(0)).join();
}

fn overflow(depth: u64) -> u64 {
    let frame = std::hint::black_box([depth; 64]);
    if depth == u64::MAX { 0 } else { overflow(depth + 1) + frame[3] }
}

fn overflows_in_a_thread() {
    for reports in [false, true] {
        let (mut read, write) = std::io::pipe().unwrap();
        let builder = ProcessPoolExecutor::builder().max_workers(1).crash_report(reports);
        let pool = builder.stderr(OwnedFd::from(write)).build().unwrap();
        let error = pool.submit(overflow_in_a_thread::task()).result().unwrap_err();
        assert!(error.to_string().contains("stack overflow"), "{error}");
        drop(pool);
        let mut said = String::new();
        read.read_to_string(&mut said).unwrap();
        assert_eq!(said.contains("crashed with SIGSEGV"), reports, "{said}");
    }
}

// ---- missing workers ----------------------------------------------------------------------------

fn tasks_that_wait_for_each_other_get_workers_after_quick_calls() {
    play("meets_after_quick_calls").play_out();
}

#[task]
fn meet(barrier: Option<executor::Barrier>) -> bool {
    barrier.is_none_or(|barrier| barrier.wait_timeout(Duration::from_secs(60)).is_ok())
}

fn meets_after_quick_calls() {
    for round in 0..20 {
        let pool = pool(3);
        // After these calls the pool knows that the function is quick.
        for _ in 0..20 {
            pool.submit(meet::task(None)).result().unwrap();
        }
        let barrier = executor::Barrier::new(3).unwrap();
        let three: Vec<_> =
            (0..3).map(|_| pool.submit(meet::task(Some(barrier.clone())))).collect();
        let met: Vec<_> = three.into_iter().map(|future| future.result().unwrap()).collect();
        assert_eq!((met, pool.worker_pids().len()), (vec![true; 3], 3), "round {round}");
    }
}

/// Returns whether this user may become another user, and prints a message if not.
fn may_become_another_user() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        println!("skipped: only root can become another user");
    }
    root
}

/// Makes this process belong to another user, with no way back. Called only in programs of their
/// own.
fn become_user(number: u32) {
    // SAFETY: only changes the ids of this process, in which a single thread uses them.
    assert!(unsafe { libc::setgid(number) == 0 && libc::setuid(number) == 0 });
}

fn a_pool_survives_starts_of_workers_that_are_refused() {
    if !may_become_another_user() {
        return;
    }
    // With some of these limits, the process of a second worker can be started, but not the threads
    // that it needs.
    for processes in 7..=14 {
        play("may_have_few_processes").argument(processes.to_string()).play_out();
    }
}

fn may_have_few_processes() {
    let processes = argument().parse().unwrap();
    setrlimit(Resource::Nproc, Rlimit { current: Some(processes), maximum: Some(processes) })
        .unwrap();
    // Become a user that has no other processes, because those would count as well.
    become_user(support::user_of_its_own());
    let gate = Gate::new();
    let pool = pool(4);
    let long = pool.submit(hold::task(gate.path()));
    gate.wait_for(1);
    let next: Vec<_> = (0..3).map(|_| pool.submit(pid::task())).collect();
    // Time in which more workers can be started, or be refused several times.
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

fn a_timeout_is_reported_although_the_worker_cannot_be_signalled() {
    if may_become_another_user() {
        // On a busy machine some answers are late. If the pool waited for a worker that it cannot
        // signal, all answers would be late.
        let quick = (0..5).any(|_| play("may_not_signal_its_worker").play_out() == "quick\n");
        assert!(
            quick,
            "it takes as long as to give up a worker that was signalled and does not end"
        );
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
    // Far less than the time after which a worker that was signalled but does not end is given up.
    println!("{}", if begun.elapsed() < Duration::from_secs(4) { "quick" } else { "late" });
}

// ---- stopped workers ----------------------------------------------------------------------------

fn a_worker_stopped_by_its_terminal_is_an_error() {
    play("stops_by_its_terminal").play_out();
}

/// Does what a task does that unblocks SIGTTOU and then writes to a terminal after `stty tostop`.
#[task]
fn stop_as_a_terminal_does() {
    // SAFETY: makes a new set with one signal and unblocks it for this thread only, then raises it.
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
    // The task has no timeout.
    let error = pool.submit(stop_as_a_terminal_does::task()).result().unwrap_err();
    assert!(error.is_worker_lost(), "{error:?}");
    assert!(error.to_string().contains("SIGTTOU"), "{error}");
    // Another worker goes on.
    pool.submit(pid::task()).result().unwrap();
}

fn a_stopped_worker_delays_neither_its_timeout_nor_a_shutdown() {
    play("has_its_worker_stopped").play_out();
}

fn has_its_worker_stopped() {
    let pool = pool(1);
    let stop = || {
        let worker = *pool.worker_pids().last().unwrap();
        support::stop(worker);
        worker
    };
    // The worker has to be stopped before its timeout ends it.
    with_a_timeout_long_enough("it is stopped within its limit", |limit| {
        let gate = Gate::new();
        let limited = pool.submit(hold::task(gate.path()).timeout(limit));
        eventually("it is at the gate, or was too slow", || {
            !gate.arrivals().is_empty() || limited.done()
        });
        let worker = *gate.arrivals().first()?;
        let pid = rustix::process::Pid::from_raw(worker.cast_signed()).unwrap();
        // The process may be gone already.
        let _ = rustix::process::kill_process(pid, Signal::STOP);
        let mut stopped = false;
        eventually("it is stopped, or was too slow", || {
            stopped = support::state(worker) == Some('T');
            stopped || limited.done()
        });
        assert!(limited.result().unwrap_err().is_timeout());
        stopped.then_some(())
    });

    let gate = Gate::new();
    let held = pool.submit(hold::task(gate.path()));
    gate.wait_for(1);
    let worker = stop();
    // A worker that is continued soon enough loses nothing.
    signal(worker, Signal::CONT);
    let behind = pool.submit(pid::task());
    gate.open();
    assert_eq!((held.result().unwrap(), behind.result().unwrap()), (worker, worker));

    // A worker that is stopped while idle does not keep the next task from running: another worker
    // runs it.
    let idle = stop();
    assert_ne!(pool.submit(pid::task()).result().unwrap(), idle);

    let gate = Gate::new();
    let held = pool.submit(hold::task(gate.path()));
    gate.wait_for(1);
    stop();
    pool.shutdown(true);
    let error = held.result().unwrap_err();
    assert!(
        error.is_worker_lost() && error.to_string().contains("stopped by signal 19"),
        "{error}"
    );
}

// ---- options outside of a pool's tasks ----------------------------------------------------------

fn a_process_is_killed_at_its_timeout() {
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
    let child = executor::Process::new(hangs::task().timeout(limit).name("the hanging one"))
        .start()
        .unwrap();
    assert_eq!(child.name(), "the hanging one");
    let error = child.join().unwrap_err();
    assert!(error.is_timeout() && error.to_string().contains("the hanging one"), "{error}");
    // A process that ends in time is unaffected.
    let child =
        executor::Process::new(pid::task().timeout(Duration::from_secs(60))).start().unwrap();
    child.join().unwrap();
}

fn options_of_initializers_and_preloads_take_effect() {
    play("has_options_elsewhere").play_out();
}

fn a_library_opened_before_the_first_pool_does_not_break_it() {
    play("opens_a_library").play_out();
}

/// Does what the constructors of a library with task functions do.
fn opens_a_library() {
    use executor_core::registry::{Call, Registered, TaskEntry, note};
    let of_ours = <pid as executor::TaskFn>::entry();
    let &TaskEntry { place, signature, call: Call::Sync(call), .. } = of_ours else {
        panic!("{of_ours:?}")
    };
    let registered = Registered::new();
    let opened = TaskEntry { name: "opened", place, signature, call: Call::Sync(call), registered };
    let opened = Box::leak(Box::new(opened));
    note(opened);
    assert_eq!(opened.id(), None, "workers begin without it");
    // If this failed, the workers would have another list of tasks than this process, and would be
    // taken for workers of another program.
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
    let pool =
        ProcessPoolExecutor::builder().max_workers(1).initializer(fails::task().name("to prepare"));
    let error = pool.build().unwrap().submit(pid::task()).result().unwrap_err();
    assert!(error.to_string().contains("to prepare"), "{error}");

    let context = executor::Context::new(executor::StartMethod::ForkServer)
        .preload(hangs::task().timeout(Duration::from_millis(200)).name("to preload"));
    let error = context.process(pid::task()).start().unwrap_err().to_string();
    assert!(error.contains("to preload") && error.contains("time limit"), "{error}");
}

/// Names the file that says how many descriptors a worker may have, if the file exists.
const FILES: &str = "EXECUTOR_TEST_FILES";

/// Sets the limit in a worker that is about to start. Called before the entry point.
fn take_limit() {
    let Some(file) = std::env::var_os(FILES) else { return };
    let Ok(files) = fs::read_to_string(&file) else { return };
    let limit = support::limit_of(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(files.parse().unwrap()), ..limit }).unwrap();
    fs::write(Path::new(&file).with_extension(std::process::id().to_string()), "").unwrap();
}

fn a_worker_without_descriptors_for_its_initializer_is_a_refused_start() {
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
        ProcessPoolExecutor::builder()
            .max_workers(workers)
            .initializer(keeps::task(ends))
            .env(FILES, &file)
    };
    let pool = builder(2).build().unwrap();
    let first = pool.submit(hold::task(gate.path()));
    gate.wait_for(1);
    // Enough descriptors to start, but not for everything that arrives afterwards.
    fs::write(&file, "64").unwrap();
    let second = pool.submit(hold::task(gate.path()));
    let refused = || {
        let notes = fs::read_dir(dir.path()).unwrap().flatten().map(|entry| entry.path());
        notes.filter_map(|note| note.extension()?.to_str()?.parse().ok()).next()
    };
    eventually("a second worker comes up", || refused().is_some());
    let refused = refused().unwrap();
    eventually("and ends", || !support::runs(refused));
    gate.open();
    // One worker works, so the pool does too.
    assert_eq!(first.result().unwrap(), second.result().unwrap());
    assert!(pool.broken().is_none());
    // If no worker works, the error says what was refused.
    match builder(1).build().unwrap().submit(pid::task()).result() {
        Err(TaskError::Broken(BrokenCause::Initializer(error))) => {
            assert!(error.is_refused() && error.to_string().contains("descriptors"), "{error}");
        }
        other => panic!("{other:?}"),
    }
}

fn x02_an_initializer_that_hangs_breaks_the_pool() {
    play("waits_for_an_initializer").play_out();
}

fn waits_for_an_initializer() {
    let builder = || ProcessPoolExecutor::builder().max_workers(2).initializer(hangs::task());
    // With `start_timeout`, the timeout also applies to the start of the worker, which has to
    // finish within it.
    let too_slow = |error: &TaskError| matches!(error, TaskError::Broken(BrokenCause::Start(_)));
    for of_the_start in [true, false] {
        with_a_timeout_long_enough("a worker comes up", |limit| {
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
    // An initializer with a timeout of its own may take longer than a start.
    with_a_timeout_long_enough("a worker comes up", |limit| {
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
        // This sleep does not enforce an order: it is time in which the initializer would be ended.
        thread::sleep(limit + Duration::from_secs(1));
        gate.open();
        waiting.result().unwrap();
        Some(())
    });
}
