//! How workers are started: by the fork server of their executor, or anew; one for each task; with
//! their own directory, environment, streams and program.

use std::{
    collections::BTreeSet,
    fs,
    io::{Read, Write},
    os::{fd::OwnedFd, unix::process::parent_id},
    path::{Path, PathBuf},
    process::Command,
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::Duration,
};

use executor::{
    BrokenCause, BuildError, Isolation, Pool, ProcessPoolBuilder, ProcessPoolExecutor, StartMethod,
    Stdio, prelude::*,
};
use rustix::process::Signal;

use crate::support::{
    Gate, LONG, come_to, descriptors, echo, eventually, exit, hold, memory_to_spare, note, notes,
    pid, runs, signal, spin, state, stop, variable, watchdog, with_a_timeout_long_enough,
};

const METHODS: [StartMethod; 2] = [StartMethod::Spawn, StartMethod::ForkServer];

fn builder(workers: usize) -> ProcessPoolBuilder {
    ProcessPoolExecutor::builder().max_workers(workers).start_method(StartMethod::ForkServer)
}

/// The server that has loaded something, and what it has loaded.
static LOADED: OnceLock<(u32, Vec<u64>)> = OnceLock::new();
/// What the tasks of one process change.
static CHANGED: AtomicU32 = AtomicU32::new(0);

#[task]
fn load(numbers: u64) {
    LOADED.set((std::process::id(), (0..numbers).collect())).expect("it runs once");
}

/// Returns the process that has loaded, this process, its parent, and the sum of what was loaded.
#[task]
fn loaded() -> (u32, u32, u32, u64) {
    let (server, numbers) = LOADED.get().expect("it was loaded");
    (*server, std::process::id(), parent_id(), numbers.iter().sum())
}

#[task]
fn change() -> u32 {
    CHANGED.fetch_add(1, Ordering::Relaxed) + 1
}

/// Returns the process that has loaded, after the gate is open.
#[task]
fn server_behind(gate: &Path) -> u32 {
    come_to(gate);
    LOADED.get().expect("it was loaded").0
}

fn server_of(pool: &ProcessPoolExecutor) -> u32 {
    pool.submit(loaded::task()).result().unwrap().0
}

#[track_caller]
fn broken(pool: &ProcessPoolExecutor) -> String {
    match pool.submit(pid::task()).result() {
        Err(TaskError::Broken(cause)) => cause.to_string(),
        other => panic!("{other:?}"),
    }
}

// ---- the fork server ----------------------------------------------------------------------------

#[test]
fn f03_workers_are_copies_of_their_executors_fork_server() {
    let _watchdog = watchdog();
    let gate = Gate::new();
    let pool = builder(2).preload(load::task(10)).build().unwrap();
    let held = [(); 2].map(|()| pool.submit(server_behind::task(gate.path())));
    let mut workers = gate.wait_for(2);
    let mut known = pool.worker_pids();
    workers.sort_unstable();
    known.sort_unstable();
    assert_eq!(workers, known, "the server is no worker");
    gate.open();
    let [first, second] = held.map(|future| future.result().unwrap());
    assert_eq!(first, second, "one server");
    assert!(!workers.contains(&first));
    let (server, worker, parent, sum) = pool.submit(loaded::task()).result().unwrap();
    assert_eq!((server, parent, sum), (first, std::process::id(), 45));
    assert!(workers.contains(&worker));
    // Another executor has another server.
    let other = builder(1).preload(load::task(3)).build().unwrap();
    let (other_server, _, _, sum) = other.submit(loaded::task()).result().unwrap();
    assert!(other_server != server && sum == 3);
    pool.shutdown(true);
    assert_eq!(state(server), None, "it was reaped by the shutdown");
    assert!(state(other_server).is_some());
    drop(other);
    assert_eq!(state(other_server), None);
}

#[test]
fn a_stopped_fork_server_is_replaced_long_before_the_time_for_a_start_is_over() {
    let _watchdog = watchdog();
    let pool = builder(1).preload(load::task(10)).start_timeout(LONG).build().unwrap();
    let (server, worker, ..) = pool.submit(loaded::task()).result().unwrap();
    stop(server);
    signal(worker, Signal::KILL);
    let (other, _, _, sum) = pool.submit(loaded::task()).result().unwrap();
    assert!(other != server && sum == 45, "it was prepared as the first one");
    eventually("the first one was reaped", || state(server).is_none());
    // The end of the pool does not wait for a stopped one either.
    stop(other);
    pool.shutdown(true);
    assert_eq!(state(other), None);
}

/// Stops its process, if it is the first that does so.
#[task]
fn stops_once(mark: &Path) {
    if !mark.exists() {
        fs::write(mark, "").unwrap();
        signal(std::process::id(), Signal::STOP);
    }
}

#[test]
fn a_fork_server_that_is_stopped_in_preload_is_replaced() {
    let _watchdog = watchdog();
    let gate = Gate::new();
    let mark = gate.file("mark");
    let builder = builder(2).preload(stops_once::task(&mark)).preload(load::task(10));
    let pool = builder.start_timeout(LONG).build().unwrap();
    assert_eq!(pool.submit(loaded::task()).result().unwrap().3, 45);
    assert!(mark.exists());
}

/// Lets the process hang at SIGUSR1.
#[task]
fn hangs_at_a_signal() {
    extern "C" fn hang(_: libc::c_int) {
        loop {
            // SAFETY: the call is allowed in a handler.
            unsafe { libc::pause() };
        }
    }
    // SAFETY: the handler only waits.
    unsafe { libc::signal(libc::SIGUSR1, hang as *const () as libc::sighandler_t) };
}

#[test]
fn a_fork_server_that_hangs_is_replaced_long_before_the_time_for_a_start_is_over() {
    let _watchdog = watchdog();
    let builder = builder(1).preload(hangs_at_a_signal::task()).preload(load::task(10));
    let pool = builder.start_timeout(LONG).build().unwrap();
    let (server, worker, ..) = pool.submit(loaded::task()).result().unwrap();
    signal(server, Signal::USR1);
    signal(worker, Signal::KILL);
    assert_ne!(server_of(&pool), server);
    eventually("it was reaped", || state(server).is_none());
}

#[test]
fn l01_the_workers_of_a_pool_are_copies_of_its_fork_server() {
    let _watchdog = watchdog();
    let builder = Pool::builder().processes(2).start_method(StartMethod::ForkServer);
    let pool = builder.preload(load::task(4)).max_tasks_per_child(1).build().unwrap();
    let found = pool.map(|()| loaded::task(), [(); 6]).unwrap();
    let servers: BTreeSet<_> = found.iter().map(|found| found.0).collect();
    let workers: BTreeSet<_> = found.iter().map(|found| found.1).collect();
    assert!(servers.len() == 1 && workers.len() == 6, "{found:?}");
    pool.close();
    pool.join().unwrap();
    assert!(servers.into_iter().all(|server| state(server).is_none()));
}

#[task]
fn fails() -> Result<(), String> {
    Err("no model".into())
}

#[task]
fn panics() {
    panic!("a hole in the model")
}

#[task]
fn leaves_a_thread() {
    thread::spawn(|| {
        loop {
            thread::park();
        }
    });
}

#[test]
fn a_preload_that_fails_breaks_the_executor_with_its_reason() {
    let _watchdog = watchdog();
    let text = broken(&builder(2).preload(fails::task()).build().unwrap());
    assert!(text.contains("fails") && text.contains("no model"), "{text}");
    let text = broken(&builder(2).preload(panics::task()).build().unwrap());
    assert!(text.contains("a hole in the model"), "{text}");
    let text = broken(&builder(2).preload(exit::task(3)).build().unwrap());
    assert!(text.contains("it ended while `preload` ran: it exited with code 3"), "{text}");
    let text = broken(&builder(2).preload(leaves_a_thread::task()).build().unwrap());
    assert!(text.contains("2 threads"), "{text}");
    // Those that come after it do not run, either.
    let file = tempfile::tempdir().unwrap();
    let notes_of_it = file.path().join("notes");
    let pool = builder(1).preload(fails::task()).preload(note::task(notes_of_it.clone(), 1));
    broken(&pool.build().unwrap());
    assert!(notes(&notes_of_it).is_empty());
}

#[test]
fn what_cannot_start_workers_is_refused_by_name() {
    let refused = |builder: ProcessPoolBuilder, names: &str| match builder.build() {
        Err(BuildError::Invalid(text)) => assert!(text.contains(names), "{text}"),
        other => panic!("{:?}", other.map(|_| ())),
    };
    let plain = ProcessPoolExecutor::builder;
    refused(plain().start_method(StartMethod::Fork), "StartMethod::Fork");
    refused(plain().preload(pid::task()), "preload needs");
    refused(plain().start_method(StartMethod::Spawn).preload(pid::task()), "preload needs");
    refused(builder(1).preload(pid::task().timeout(LONG)), "time limit");
    refused(builder(1).preload(pid::task().retries(1)), "preload");
    refused(plain().ready(1), "ready needs");
    refused(plain().isolation(Isolation::PerTask).ready(usize::MAX), "ready");
    refused(plain().isolation(Isolation::PerTask).max_tasks_per_worker(1), "max_tasks_per_worker");
    refused(plain().stdin(Stdio::piped()), "stdin");
    refused(plain().stdout(Stdio::piped()), "stdout");
    refused(plain().stderr(Stdio::piped()), "stderr");
    refused(plain().env_remove("A=B"), "environment");
}

#[test]
fn a_killed_fork_server_is_started_again_and_its_workers_go_on() {
    let _watchdog = watchdog();
    let gate = Gate::new();
    let pool = builder(2).preload(load::task(5)).build().unwrap();
    let server = server_of(&pool);
    let held = pool.submit(hold::task(gate.path()));
    gate.wait_for(1);
    signal(server, Signal::KILL);
    eventually("it is reaped before anybody needs it", || state(server).is_none());
    // The first worker is busy, so this needs another one, and that another server.
    let (other, worker, _, sum) = pool.submit(loaded::task()).result().unwrap();
    assert!(other != server && sum == 10);
    gate.open();
    assert!(held.result().unwrap() != worker);
}

#[task]
fn starts_a_program(notes: &Path) {
    note(notes.into(), Command::new("sleep").arg("600").spawn().unwrap().id());
}

/// Has an executor whose fork server has started a program, and never ends.
#[task]
fn has_a_server_with_a_program(gate: &Path, notes: PathBuf) {
    let pool = builder(1).preload(starts_a_program::task(&notes)).build().unwrap();
    pool.submit(pid::task()).result().unwrap();
    come_to(gate);
    loop {
        thread::park();
    }
}

#[test]
fn a_fork_server_ends_what_its_preload_has_started_however_its_parent_ends() {
    let _watchdog = watchdog();
    for kills in [false, true] {
        let (gate, folder) = (Gate::new(), tempfile::tempdir().unwrap());
        let file = folder.path().join("notes");
        gate.open();
        let program = || notes(&file)[0];
        if kills {
            let outer = ProcessPoolExecutor::builder().max_workers(1).build().unwrap();
            let held = outer.submit(has_a_server_with_a_program::task(gate.path(), file.clone()));
            gate.wait_for(1);
            assert!(runs(program()));
            signal(outer.worker_pids()[0], Signal::KILL);
            assert!(held.result().unwrap_err().is_worker_lost());
        } else {
            let pool = builder(1).preload(starts_a_program::task(&file)).build().unwrap();
            pool.submit(pid::task()).result().unwrap();
            assert!(runs(program()));
            drop(pool);
        }
        eventually("the program has ended", || !runs(program()));
    }
}

#[test]
fn a_stopped_fork_server_is_replaced() {
    let _watchdog = watchdog();
    with_a_timeout_long_enough("another server makes a worker", |timeout| {
        let pool = builder(1)
            .preload(load::task(5))
            .max_tasks_per_worker(1)
            .start_timeout(timeout)
            .initializer_timeout(LONG)
            .build()
            .unwrap();
        let Ok((server, ..)) = pool.submit(loaded::task()).result() else { return None };
        stop(server);
        let other = pool.submit(loaded::task()).result();
        assert_eq!(state(server), None, "nobody waits for it");
        assert_ne!(other.ok()?.0, server);
        Some(())
    });
}

#[test]
fn a_preload_that_hangs_ends_with_its_time_or_with_its_executor() {
    let _watchdog = watchdog();
    let gate = Gate::new();
    let moment = Duration::from_millis(50);
    let pool = builder(1)
        .preload(hold::task(gate.path()))
        .start_timeout(moment)
        .initializer_timeout(moment)
        .build()
        .unwrap();
    let text = broken(&pool);
    assert!(text.contains("preload"), "{text}");
    drop(pool);

    let gate = Gate::new();
    let pool = builder(2).preload(hold::task(gate.path())).build().unwrap();
    let future = pool.submit(pid::task());
    let server = gate.wait_for(1)[0];
    pool.terminate_workers();
    pool.shutdown(true);
    assert!(future.result().unwrap_err().is_shutdown());
    assert_eq!(state(server), None);
}

/// Counts the descriptors of a process.
fn descriptors_of(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

#[task]
fn own_descriptors(gate: &Path) -> Vec<String> {
    come_to(gate);
    let links = fs::read_dir("/proc/self/fd").unwrap();
    let links = links.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    let names = links.map(|link| {
        let name = link.display().to_string();
        name.split_once('[').map_or(name.clone(), |(kind, _)| kind.to_owned())
    });
    let mut names: Vec<_> = names.filter(|name| !name.starts_with("/proc")).collect();
    names.sort();
    names
}

#[test]
fn a_fork_server_keeps_no_descriptor_of_a_worker_nor_a_worker_one_of_the_server() {
    let _watchdog = watchdog();
    let pool = builder(4).preload(load::task(5)).build().unwrap();
    let server = server_of(&pool);
    let before = descriptors_of(server);
    let gate = Gate::new();
    let held: Vec<_> = (0..4).map(|_| pool.submit(own_descriptors::task(gate.path()))).collect();
    gate.wait_for(4);
    assert_eq!(descriptors_of(server), before);
    gate.open();
    let spawned = ProcessPoolExecutor::builder().max_workers(1).build().unwrap();
    let expected = spawned.submit(own_descriptors::task(gate.path())).result().unwrap();
    for future in held {
        assert_eq!(future.result().unwrap(), expected);
    }
}

// ---- what holds for workers holds for copies ----------------------------------------------------

#[task]
fn abort() {
    std::process::abort()
}

#[task]
fn die_by(signal: i32) {
    // SAFETY: sends a signal to this process.
    unsafe { libc::kill(libc::getpid(), signal) };
    loop {
        thread::park();
    }
}

#[task]
fn overflow(depth: u64) -> u64 {
    let frame = std::hint::black_box([depth; 64]);
    if depth == u64::MAX { 0 } else { overflow(depth + 1) + frame[3] }
}

#[test]
fn deaths_of_copies_are_reported_as_those_of_spawned_workers() {
    let _watchdog = watchdog();
    let outcomes = METHODS.map(|method| {
        let pool =
            ProcessPoolExecutor::builder().max_workers(1).start_method(method).build().unwrap();
        let ends = [
            pool.submit(exit::task(0)).result(),
            pool.submit(exit::task(42)).result(),
            pool.submit(abort::task()).result(),
            pool.submit(die_by::task(libc::SIGSEGV)).result(),
            pool.submit(die_by::task(libc::SIGKILL)).result(),
            pool.submit(overflow::task(0)).result().map(|_| ()),
            pool.submit(panics::task()).result(),
            pool.submit(fails::task()).result(),
            pool.submit(die_by::task(0).timeout(Duration::from_millis(20))).result(),
        ];
        assert_eq!(pool.submit(echo::task(5)).result().unwrap(), 5);
        ends.map(|end| {
            let text = end.unwrap_err().to_string();
            // Process ids differ.
            text.chars().filter(|char| !char.is_ascii_digit()).collect::<String>()
        })
    });
    assert_eq!(outcomes[0], outcomes[1]);
}

#[task]
fn prepare(notes: PathBuf) {
    use std::fs::OpenOptions;
    let mut file = OpenOptions::new().create(true).append(true).open(notes).unwrap();
    file.write_all(format!("{}\n", std::process::id()).as_bytes()).unwrap();
    executor::worker_state::set(std::process::id());
}

#[task]
fn prepared() -> u32 {
    executor::with_worker_state::<u32, _>(|own| *own)
}

#[test]
fn an_initializer_runs_in_each_copy_and_not_in_the_server() {
    let _watchdog = watchdog();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("notes");
    let pool = builder(1)
        .preload(load::task(5))
        .initializer(prepare::task(file.clone()))
        .max_tasks_per_worker(1)
        .build()
        .unwrap();
    let pids: Vec<u32> = (0..3).map(|_| pool.submit(prepared::task()).result().unwrap()).collect();
    assert_eq!(notes(&file)[..3], pids[..]);
    let failing = builder(1).initializer(fails::task()).build().unwrap();
    match failing.submit(pid::task()).result() {
        Err(TaskError::Broken(BrokenCause::Initializer(error))) => assert!(error.is_failed()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_copy_is_replaced_after_its_limits() {
    let _watchdog = watchdog();
    let pool = builder(1).max_tasks_per_worker(2).build().unwrap();
    let pids = [(); 4].map(|()| pool.submit(pid::task()).result().unwrap());
    assert!(pids[0] == pids[1] && pids[1] != pids[2] && pids[2] == pids[3], "{pids:?}");
    let gate = Gate::new();
    let spinning = pool.submit(spin::task(gate.path()).timeout(Duration::from_millis(10)));
    assert!(spinning.result().unwrap_err().is_timeout());
    let running = pool.submit(spin::task(gate.path()));
    eventually("it runs", || running.running());
    running.cancel_running();
    assert!(running.result().unwrap_err().is_cancelled());
    assert_eq!(pool.submit(echo::task(1)).result().unwrap(), 1);
}

/// Runs a task in an executor of its own.
#[task]
fn nest(levels: u32) -> u32 {
    if levels == 0 {
        return 0;
    }
    let method = METHODS[levels as usize % 2];
    let pool = ProcessPoolExecutor::builder().max_workers(1).start_method(method).build().unwrap();
    pool.submit(nest::task(levels - 1)).result().unwrap() + 1
}

#[test]
fn copies_have_executors_of_their_own() {
    let _watchdog = watchdog();
    let pool = builder(1).preload(load::task(1)).build().unwrap();
    assert_eq!(pool.submit(nest::task(4)).result().unwrap(), 4);
}

#[test]
fn a_large_value_travels_to_and_from_a_copy() {
    let _watchdog = watchdog();
    #[task]
    fn reversed(mut bytes: Vec<u8>) -> Vec<u8> {
        bytes.reverse();
        bytes
    }
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|n| n as u8).collect();
    let pool = builder(2).build().unwrap();
    let expected: Vec<u8> = bytes.iter().rev().copied().collect();
    assert!(pool.submit(reversed::task(bytes)).result().unwrap() == expected);
}

#[test]
fn an_executor_of_copies_gives_back_its_descriptors() {
    let _watchdog = watchdog();
    #[task]
    fn descriptors_after(rounds: u32) -> (usize, usize) {
        let once = || {
            let pool = builder(2).preload(load::task(1)).build().unwrap();
            pool.submit(loaded::task()).result().unwrap();
            pool.submit(exit::task(1)).result().unwrap_err();
            pool.submit(loaded::task()).result().unwrap();
            pool.shutdown(true);
        };
        once();
        let before = descriptors();
        (0..rounds).for_each(|_| once());
        (before, descriptors())
    }
    let pool = ProcessPoolExecutor::builder().max_workers(1).build().unwrap();
    let (before, after) = pool.submit(descriptors_after::task(3)).result().unwrap();
    assert_eq!(before, after);
}

/// Returns the proportional share of a process in memory, in KiB.
fn share_of(pid: u32) -> u64 {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn f03_what_was_loaded_once_is_in_memory_once() {
    const MIB: u64 = 256;
    const WORKERS: usize = 8;
    let Some(_leave) = memory_to_spare(2) else { return };
    let _watchdog = watchdog();
    let pool = builder(WORKERS).preload(load::task((MIB << 20) / 8)).build().unwrap();
    let gate = Gate::new();
    #[task]
    fn sum_and_hold(gate: &Path) -> (u32, u64) {
        let (server, numbers) = LOADED.get().expect("it was loaded");
        let sum = numbers.iter().sum();
        come_to(gate);
        (*server, sum)
    }
    let held: Vec<_> = (0..WORKERS).map(|_| pool.submit(sum_and_hold::task(gate.path()))).collect();
    let workers = gate.wait_for(WORKERS);
    // The server is the one that has no task.
    let servers = crate::support::children();
    let server = servers.iter().map(|(pid, ..)| *pid).find(|pid| {
        !workers.contains(pid)
            && fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).is_ok_and(|rollup| {
                let line = rollup.lines().find_map(|line| line.strip_prefix("Rss:")).unwrap();
                line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() > MIB << 10
            })
    });
    let shares: u64 = workers.iter().copied().chain(server).map(share_of).sum();
    gate.open();
    for future in held {
        let (its_server, sum) = future.result().unwrap();
        assert_eq!(Some(its_server), server);
        let numbers = (MIB << 20) / 8;
        assert_eq!(sum, numbers * (numbers - 1) / 2);
    }
    assert!((MIB << 10..MIB << 11).contains(&shares), "{shares} KiB");
}

// ---- one worker for each task -------------------------------------------------------------------

fn isolated(workers: usize) -> ProcessPoolBuilder {
    ProcessPoolExecutor::builder().max_workers(workers).isolation(Isolation::PerTask)
}

#[test]
fn with_isolation_nothing_of_a_task_is_visible_to_the_next() {
    let _watchdog = watchdog();
    for method in METHODS {
        let pool = isolated(2).start_method(method).ready(1).build().unwrap();
        let counts: Vec<u32> =
            pool.map(|_| change::task(), 0..20).chunk_size(8).map(Result::unwrap).collect();
        assert_eq!(counts, [1; 20]);
        let pids: BTreeSet<u32> = pool.map(|_| pid::task(), 0..20).map(Result::unwrap).collect();
        assert_eq!(pids.len(), 20);
    }
}

#[test]
fn with_isolation_each_task_has_what_was_loaded() {
    let _watchdog = watchdog();
    let pool = isolated(2).preload(load::task(10)).build().unwrap();
    let found: Vec<_> = pool.map(|_| loaded::task(), 0..12).map(Result::unwrap).collect();
    let servers: BTreeSet<_> = found.iter().map(|found| found.0).collect();
    assert!(servers.len() == 1 && found.iter().all(|found| found.3 == 45));
    pool.shutdown(true);
    assert!(servers.into_iter().all(|server| state(server).is_none()));
}

#[test]
fn with_isolation_as_many_workers_are_ready_as_was_asked_for() {
    let _watchdog = watchdog();
    let pool = isolated(1).ready(3).build().unwrap();
    eventually("they are there before any task", || pool.worker_pids().len() == 3);
    let gate = Gate::new();
    let held = pool.submit(hold::task(gate.path()));
    let other = pool.submit(hold::task(gate.path()));
    let first = gate.wait_for(1)[0];
    eventually("one runs, and three are ready", || pool.worker_pids().len() == 4);
    assert_eq!(gate.arrivals(), [first], "one task at a time, though workers are ready");
    assert!(!other.running());
    gate.open();
    assert_ne!(held.result().unwrap(), other.result().unwrap());
    // Without spare workers, each is started for its task.
    let pool = isolated(2).ready(0).build().unwrap();
    assert!(pool.worker_pids().is_empty());
    let gate = Gate::new();
    let held: Vec<_> = (0..4).map(|_| pool.submit(hold::task(gate.path()))).collect();
    gate.wait_for(2);
    assert_eq!(pool.worker_pids().len(), 2);
    gate.open();
    let pids: BTreeSet<u32> = held.into_iter().map(|future| future.result().unwrap()).collect();
    assert_eq!(pids.len(), 4);
    eventually("none is left", || pool.worker_pids().is_empty());
}

#[test]
fn with_isolation_a_task_that_dies_hurts_no_other() {
    let _watchdog = watchdog();
    let pool = isolated(2).ready(2).build().unwrap();
    let dying: Vec<_> = (0..6).map(|code| pool.submit(exit::task(code))).collect();
    let living: Vec<_> = (0..6).map(|n| pool.submit(echo::task(n))).collect();
    assert!(dying.into_iter().all(|future| future.result().unwrap_err().is_worker_lost()));
    for (n, future) in (0..6).zip(living) {
        assert_eq!(future.result().unwrap(), n);
    }
    let gate = Gate::new();
    let slow = pool.submit(spin::task(gate.path()).timeout(Duration::from_millis(10)));
    assert!(slow.result().unwrap_err().is_timeout());
    assert_eq!(pool.submit(echo::task(7)).result().unwrap(), 7);
}

// ---- what workers inherit -----------------------------------------------------------------------

#[task]
fn directory() -> PathBuf {
    std::env::current_dir().unwrap()
}

#[task]
fn say(word: String) {
    println!("{word}");
    eprintln!("not {word}");
}

#[task]
fn read_a_byte() -> Option<u8> {
    // Without a buffer, so that the next worker gets the next byte.
    let mut byte = [0];
    let mut stdin = fs::File::open("/proc/self/fd/0").unwrap();
    (stdin.read(&mut byte).unwrap() == 1).then_some(byte[0])
}

#[test]
fn workers_have_the_directory_and_environment_that_they_are_given() {
    let _watchdog = watchdog();
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().canonicalize().unwrap();
    let here = std::env::current_dir().unwrap();
    for method in METHODS {
        let plain =
            ProcessPoolExecutor::builder().max_workers(1).start_method(method).build().unwrap();
        assert_eq!(plain.submit(directory::task()).result().unwrap(), here);
        assert!(plain.submit(variable::task("PATH")).result().unwrap().is_some());
        let pool = ProcessPoolExecutor::builder()
            .max_workers(1)
            .start_method(method)
            .cwd(&folder)
            .env("EXECUTOR_TEST_A", "first")
            .env("EXECUTOR_TEST_A", "second")
            .env("EXECUTOR_TEST_B", "set")
            .env_remove("EXECUTOR_TEST_B")
            .env_remove("PATH")
            .build()
            .unwrap();
        assert_eq!(pool.submit(directory::task()).result().unwrap(), folder);
        let of = |name: &str| pool.submit(variable::task(name)).result().unwrap();
        assert_eq!(of("EXECUTOR_TEST_A").as_deref(), Some("second"));
        assert_eq!((of("EXECUTOR_TEST_B"), of("PATH")), (None, None));
        let missing = folder.join("missing");
        let pool =
            ProcessPoolExecutor::builder().start_method(method).cwd(&missing).build().unwrap();
        let text = broken(&pool);
        let named = format!("directory {}: No such file", missing.display());
        assert!(text.contains(&named) && !text.contains("is `/proc` mounted"), "{text}");
    }
}

#[test]
fn workers_have_the_streams_that_they_are_given() {
    let _watchdog = watchdog();
    for method in METHODS {
        let (mut output, stdout) = std::io::pipe().unwrap();
        let (mut errors, stderr) = std::io::pipe().unwrap();
        let (stdin, mut input) = std::io::pipe().unwrap();
        input.write_all(b"ab").unwrap();
        let pool = ProcessPoolExecutor::builder()
            .max_workers(1)
            .start_method(method)
            .max_tasks_per_worker(1)
            .stdin(OwnedFd::from(stdin))
            .stdout(OwnedFd::from(stdout))
            .stderr(OwnedFd::from(stderr))
            .build()
            .unwrap();
        pool.submit(say::task("one".into())).result().unwrap();
        pool.submit(say::task("two".into())).result().unwrap();
        assert_eq!(pool.submit(read_a_byte::task()).result().unwrap(), Some(b'a'));
        assert_eq!(pool.submit(read_a_byte::task()).result().unwrap(), Some(b'b'));
        drop(pool);
        let mut said = String::new();
        output.read_to_string(&mut said).unwrap();
        assert_eq!(said, "one\ntwo\n");
        said.clear();
        errors.read_to_string(&mut said).unwrap();
        assert_eq!(said, "not one\nnot two\n");
        // By default the input is empty, and it can be so explicitly.
        let builder = ProcessPoolExecutor::builder().max_workers(1).start_method(method);
        let pool = builder.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let pool = pool.build().unwrap();
        pool.submit(say::task("unheard".into())).result().unwrap();
        assert_eq!(pool.submit(read_a_byte::task()).result().unwrap(), None);
    }
}

#[test]
fn workers_run_the_program_that_they_are_given() {
    let _watchdog = watchdog();
    #[task]
    fn program() -> PathBuf {
        fs::read_link("/proc/self/exe").unwrap()
    }
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().canonicalize().unwrap().join("a copy");
    // A link would be resolved.
    fs::copy(std::env::current_exe().unwrap(), &copy).unwrap();
    for method in METHODS {
        let builder = ProcessPoolExecutor::builder().max_workers(1).start_method(method);
        let pool = builder.executable(&copy).build().unwrap();
        assert_eq!(pool.submit(program::task()).result().unwrap(), copy);
        let builder = ProcessPoolExecutor::builder().max_workers(1).start_method(method);
        let pool = builder.executable("/bin/true").build().unwrap();
        match pool.submit(pid::task()).result() {
            Err(TaskError::Broken(BrokenCause::NoEntry { status })) => {
                assert_eq!(status.code(), Some(0), "{method:?}");
            }
            other => panic!("{method:?}: {other:?}"),
        }
    }
}
