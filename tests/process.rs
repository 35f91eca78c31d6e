//! `Process`: start, join, signals, values, and what a child inherits. Tests that need a `main` of
//! their own are in `start_methods.rs` and `program_end.rs`.

mod support;

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Read, Write},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use executor::{
    Barrier, Child, ExitStatus, Limits, Process, Queue, Run, SharedBytes, StartError, StartMethod,
    Stdio, active_children, current_process, parent_process, prelude::*,
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::Signal,
};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use support::{
    Gate, LONG, come_to, echo, eventually, exit, hold, pid, pool, runs, spin, start_a_program,
    watchdog,
};

executor::test_support!();

/// `Fork` requires a program with one thread, so it is tested in `start_methods.rs`.
const METHODS: [StartMethod; 2] = [StartMethod::Spawn, StartMethod::ForkServer];

/// Joins with a timeout.
#[track_caller]
fn joined<T>(child: &Child<T>) -> Result<T, TaskError> {
    child.join_timeout(LONG).expect("it ends")
}

#[track_caller]
fn ended<T>(child: &Child<T>) -> ExitStatus {
    child.wait_exit_timeout(LONG).expect("it ends")
}

#[track_caller]
fn status_of(error: &TaskError) -> ExitStatus {
    match error {
        TaskError::WorkerLost { status, .. } => *status,
        other => panic!("{other}"),
    }
}

// ---- identities ---------------------------------------------------------------------------------

#[test]
fn pr01_the_main_process_knows_itself() {
    let own = current_process();
    assert_eq!(own.name(), "MainProcess");
    assert!(own.is_alive() && !own.daemon());
    assert_eq!((own.pid(), own.exit_code()), (std::process::id(), None));
    assert_eq!(executor::getpid(), std::process::id());
}

#[task]
fn relatives() -> (String, u32, bool, Option<(String, u32, bool)>) {
    let own = current_process();
    let parent =
        parent_process().map(|parent| (parent.name().to_owned(), parent.pid(), parent.is_alive()));
    (own.name().to_owned(), own.pid(), own.daemon(), parent)
}

#[test]
fn pr05_a_child_has_a_parent_and_the_program_has_none() {
    let _watchdog = watchdog();
    assert_eq!(parent_process(), None);
    for method in METHODS {
        let child =
            Process::new(relatives::task()).name("the child").start_method(method).start().unwrap();
        let (name, pid, daemon, parent) = joined(&child).unwrap();
        assert_eq!((&*name, pid, daemon), ("the child", child.pid(), false));
        assert_eq!(parent, Some(("MainProcess".to_owned(), std::process::id(), true)));
    }
}

#[task]
fn daemons() -> (bool, bool, bool, bool) {
    let started = |process: Process<u64>| {
        let child = process.start().unwrap();
        joined(&child).unwrap();
        child.daemon()
    };
    (
        current_process().daemon(),
        started(Process::new(echo::task(1))),
        started(Process::new(echo::task(1)).daemon(false)),
        started(Process::new(echo::task(1)).daemon(true)),
    )
}

#[test]
fn pr04_a_child_is_a_daemon_if_requested_or_if_its_parent_is_one() {
    let _watchdog = watchdog();
    for method in METHODS {
        for (given, own) in [(None, false), (Some(false), false), (Some(true), true)] {
            let mut process = Process::new(daemons::task()).start_method(method);
            if let Some(given) = given {
                process = process.daemon(given);
            }
            let child = process.start().unwrap();
            assert_eq!(child.daemon(), own);
            assert_eq!(joined(&child).unwrap(), (own, own, false, true), "{method:?} {given:?}");
        }
    }
}

#[task]
fn main_thread() -> (i32, bool) {
    let own = rustix::thread::gettid().as_raw_nonzero().get();
    (own, Path::new("/proc/self/task").join(std::process::id().to_string()).exists())
}

#[test]
fn pr08_a_child_runs_its_task_on_a_thread_of_its_own() {
    let _watchdog = watchdog();
    for method in METHODS {
        let child = Process::new(main_thread::task()).start_method(method).start().unwrap();
        let (thread, has_main_thread) = joined(&child).unwrap();
        assert_ne!(thread, rustix::thread::gettid().as_raw_nonzero().get());
        assert_ne!(thread.cast_unsigned(), std::process::id());
        assert!(has_main_thread);
    }
}

#[test]
fn pr13_cpu_count_is_at_least_one_and_at_least_usable_cpus() {
    assert!(executor::cpu_count() >= 1);
    assert!(executor::cpu_count() >= executor::usable_cpus());
}

#[task]
fn names_below(levels: u32) -> Vec<String> {
    let mut names = vec![current_process().name().to_owned()];
    if levels > 0 {
        for _ in 0..2 {
            let child = Process::new(names_below::task(levels - 1)).start().unwrap();
            assert!(child.name().starts_with(&names[0]), "{child:?} of {names:?}");
            names.extend(joined(&child).unwrap());
        }
    }
    names
}

#[test]
fn mx12_default_names_show_the_path_from_the_main_process() {
    let _watchdog = watchdog();
    for method in METHODS {
        let child = Process::new(names_below::task(2)).start_method(method).start().unwrap();
        let first = child.name().to_owned();
        assert!(first.strip_prefix("Process-").unwrap().parse::<u32>().unwrap() >= 1);
        let below = ["", ":1", ":1:1", ":1:2", ":2", ":2:1", ":2:2"];
        assert_eq!(joined(&child).unwrap(), below.map(|path| format!("{first}{path}")));
    }
}

// ---- values -------------------------------------------------------------------------------------

#[task]
fn look_at(number: i64, text: String, list: Vec<u8>, tuple: (bool, Option<char>)) -> String {
    format!("{number} {text} {list:?} {tuple:?}")
}

#[test]
fn pr03_arguments_arrive_unchanged() {
    let _watchdog = watchdog();
    for method in METHODS {
        let task = look_at::task(-5, "a word".to_owned(), vec![1, 2], (true, Some('é')));
        let child = Process::new(task).start_method(method).start().unwrap();
        assert_eq!(joined(&child).unwrap(), "-5 a word [1, 2] (true, Some('é'))");
        assert_eq!(child.exit_code(), Some(ExitStatus::Exited(0)));
        // The value can be read any number of times.
        assert_eq!(child.join().unwrap(), "-5 a word [1, 2] (true, Some('é'))");
    }
}

#[task]
fn reversed(bytes: Vec<u8>) -> Vec<u8> {
    bytes.into_iter().rev().collect()
}

#[test]
fn large_arguments_and_values_are_transferred() {
    let _watchdog = watchdog();
    let bytes: Vec<u8> = (0..5_000_000_u32).map(|number| number.to_le_bytes()[1]).collect();
    let expected: Vec<u8> = bytes.iter().rev().copied().collect();
    for method in METHODS {
        let child =
            Process::new(reversed::task(bytes.clone())).start_method(method).start().unwrap();
        assert!(joined(&child).unwrap() == expected);
    }
}

/// Returns the mask of blocked signals of this thread, and that of a program that it starts.
#[task]
fn blocked_here_and_in_a_program() -> [u64; 2] {
    let blocked = |status: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix("SigBlk:")).unwrap();
        u64::from_str_radix(line.trim(), 16).unwrap()
    };
    let own = fs::read_to_string("/proc/thread-self/status").unwrap();
    let program = std::process::Command::new("cat").arg("/proc/self/status").output().unwrap();
    [blocked(&own), blocked(&String::from_utf8(program.stdout).unwrap())]
}

#[test]
fn a_program_started_by_a_child_inherits_its_signal_mask_with_terminal_stops_blocked() {
    let _watchdog = watchdog();
    let terminal = [Signal::TTIN, Signal::TTOU].map(|signal| 1 << (signal.as_raw() - 1));
    let terminal: u64 = terminal.into_iter().sum();
    let mut seen = vec![pool(1).submit(blocked_here_and_in_a_program::task()).result().unwrap()];
    for method in METHODS {
        let child = Process::new(blocked_here_and_in_a_program::task())
            .start_method(method)
            .start()
            .unwrap();
        seen.push(joined(&child).unwrap());
    }
    for [child, program] in seen {
        assert_eq!((child & terminal, program), (terminal, child));
    }
}

#[task]
fn same(shared: Vec<SharedBytes>) -> Vec<SharedBytes> {
    shared
}

#[test]
fn many_descriptors_are_transferred_in_both_directions() {
    let _watchdog = watchdog();
    for method in METHODS {
        let shared: Vec<_> = (0..60_u8).map(|byte| SharedBytes::from(vec![byte; 5000])).collect();
        let child = Process::new(same::task(shared.clone())).start_method(method).start().unwrap();
        let back = joined(&child).unwrap();
        assert_eq!(back.len(), shared.len());
        assert!(back.iter().zip(&shared).all(|(back, sent)| back[..] == sent[..]));
    }
}

struct Counted(Arc<()>);

impl Serialize for Counted {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_unit()
    }
}

impl<'de> Deserialize<'de> for Counted {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        <()>::deserialize(deserializer).map(|()| Counted(Arc::default()))
    }
}

#[task]
fn count(counted: Counted) -> usize {
    Arc::strong_count(&counted.0)
}

#[test]
fn pr19_arguments_are_not_kept_by_the_parent() {
    let _watchdog = watchdog();
    for method in METHODS {
        let passed = Arc::new(());
        let child = Process::new(count::task(Counted(Arc::clone(&passed))))
            .start_method(method)
            .start()
            .unwrap();
        assert_eq!(joined(&child).unwrap(), 1);
        assert_eq!(Arc::strong_count(&passed), 1, "the child's handle is still here: {child:?}");
    }
}

struct Unencodable;

impl Serialize for Unencodable {
    fn serialize<S: Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        Err(serde::ser::Error::custom("this one stays at home"))
    }
}

impl<'de> Deserialize<'de> for Unencodable {
    fn deserialize<D: Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        Ok(Unencodable)
    }
}

#[task]
fn takes(value: Unencodable) -> Unencodable {
    value
}

#[task]
fn makes() -> Unencodable {
    Unencodable
}

#[test]
fn a_value_that_does_not_encode_is_an_error_with_its_reason() {
    let _watchdog = watchdog();
    let error = Process::new(takes::task(Unencodable)).start().unwrap_err();
    assert!(matches!(error, StartError::Arguments(TaskError::Encode(_))), "{error:?}");
    assert!(error.to_string().contains("stays at home"), "{error}");
    for method in METHODS {
        let child = Process::new(makes::task()).start_method(method).start().unwrap();
        match joined(&child) {
            Err(error @ TaskError::Encode(_)) => {
                assert!(error.to_string().contains("stays at home"), "{error}")
            }
            other => panic!("{:?}", other.map(drop)),
        }
        assert_eq!(child.exit_code(), Some(ExitStatus::Exited(1)));
    }
}

/// Serves requests, one for each line, until it receives "stop".
#[derive(Serialize, Deserialize)]
struct Server {
    factor: u64,
}

#[task]
impl Run for Server {
    fn run(self) -> u64 {
        for (served, line) in (0..).zip(std::io::stdin().lines()) {
            let line = line.unwrap();
            if line == "stop" {
                return served;
            }
            println!("{}", line.parse::<u64>().unwrap() * self.factor);
        }
        panic!("nobody said stop");
    }
}

#[test]
fn pr26_a_user_defined_type_with_fields_serves_until_told_to_stop() {
    let _watchdog = watchdog();
    for method in METHODS {
        let child = Process::new(Server { factor: 3 })
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .start_method(method)
            .start()
            .unwrap();
        let mut requests = File::from(child.take_stdin().unwrap());
        let mut answers = BufReader::new(File::from(child.take_stdout().unwrap())).lines();
        assert!(child.take_stdin().is_none() && child.take_stderr().is_none());
        for number in 0..20 {
            writeln!(requests, "{number}").unwrap();
            assert_eq!(answers.next().unwrap().unwrap(), (number * 3).to_string());
        }
        writeln!(requests, "stop").unwrap();
        assert_eq!(joined(&child).unwrap(), 20);
        assert!(answers.next().is_none(), "the pipe ends with the child");
    }
}

// ---- join, signals, ends ------------------------------------------------------------------------

#[test]
fn pr09_a_join_with_a_timeout_of_zero_returns_at_once() {
    let _watchdog = watchdog();
    for method in METHODS {
        let gate = Gate::new();
        let child = Process::new(hold::task(gate.path())).start_method(method).start().unwrap();
        assert!(child.join_timeout(Duration::ZERO).is_none());
        gate.wait_for(1);
        assert!(child.join_timeout(Duration::ZERO).is_none());
        assert!(child.is_alive() && child.exit_code().is_none());
        gate.open();
        assert_eq!(joined(&child).unwrap(), child.pid());
        assert_eq!(child.join_timeout(Duration::ZERO).unwrap().unwrap(), child.pid());
    }
}

fn ends_by(send: impl Fn(&Child<u32>), expected: Signal) {
    let _watchdog = watchdog();
    for method in METHODS {
        let gate = Gate::new();
        let child = Process::new(hold::task(gate.path())).start_method(method).start().unwrap();
        gate.wait_for(1);
        send(&child);
        let error = joined(&child).unwrap_err();
        let status = ExitStatus::Signaled(expected.as_raw());
        assert_eq!(status_of(&error), status);
        assert_eq!(child.exit_code(), Some(status));
        assert!(!child.is_alive());
        // A signal to a child that has ended does nothing.
        send(&child);
        assert_eq!(child.exit_code(), Some(status));
    }
}

#[test]
fn pr10_terminate_ends_a_child_with_sigterm() {
    ends_by(|child| child.terminate().unwrap(), Signal::TERM);
}

#[test]
fn pr11_kill_ends_a_child_with_sigkill() {
    ends_by(|child| child.kill().unwrap(), Signal::KILL);
}

#[test]
fn interrupt_ends_a_child_with_sigint() {
    // A shell script that starts these tests in the background makes them ignore SIGINT, and a
    // child inherits that.
    // SAFETY: restores the default action.
    unsafe { libc::signal(libc::SIGINT, libc::SIG_DFL) };
    ends_by(|child| child.interrupt().unwrap(), Signal::INT);
}

#[task]
fn start_below(gate: &Path) {
    let child = Process::new(start_a_program::task(gate)).start().unwrap();
    File::create(gate.join(format!("arrival-{}-below", child.pid()))).unwrap();
    start_a_program(gate);
}

#[test]
fn kill_tree_ends_all_processes_that_a_child_started() {
    let _watchdog = watchdog();
    for method in METHODS {
        let gate = Gate::new();
        let child =
            Process::new(start_below::task(gate.path())).start_method(method).start().unwrap();
        // The child's own child, and one program for each of the two.
        let pids = gate.wait_for(3);
        assert!(pids.iter().all(|pid| runs(*pid)));
        child.kill_tree();
        assert_eq!(ended(&child), ExitStatus::Signaled(Signal::KILL.as_raw()));
        eventually("all are gone", || !pids.iter().any(|pid| runs(*pid)));
    }
}

#[test]
fn pr14_active_children_are_the_children_that_still_run() {
    let _watchdog = watchdog();
    let gate = Gate::new();
    let pool = pool(1);
    let worker = pool.submit(pid::task()).result().unwrap();
    let unstarted = Process::new(hold::task(gate.path())).name("unstarted");
    let running = Process::new(hold::task(gate.path())).name("running").start().unwrap();
    let ended = Process::new(pid::task()).name("ended").start().unwrap();
    joined(&ended).unwrap();
    let active = active_children();
    let names: Vec<_> = active.iter().map(|child| child.name()).collect();
    assert!(
        names.contains(&"running") && !names.contains(&"unstarted") && !names.contains(&"ended"),
        "{names:?}"
    );
    assert!(active.iter().any(|child| child.pid() == running.pid() && child.is_alive()));
    assert!(
        !active.iter().any(|child| child.pid() == worker),
        "workers of pools are not among them"
    );
    drop(unstarted);
    gate.open();
    joined(&running).unwrap();
    assert!(!active_children().iter().any(|child| child.pid() == running.pid()));
}

fn is_ready(child: &Child<u32>, wait: &Timespec) -> bool {
    poll(&mut [PollFd::new(child, PollFlags::IN)], Some(wait)).unwrap() == 1
}

#[test]
fn pr16_the_sentinel_is_ready_after_the_end() {
    let _watchdog = watchdog();
    let at_once = Timespec::default();
    for method in METHODS {
        let gate = Gate::new();
        let child = Process::new(hold::task(gate.path())).start_method(method).start().unwrap();
        gate.wait_for(1);
        assert!(child.sentinel().is_some() && !is_ready(&child, &at_once));
        gate.open();
        assert!(is_ready(&child, &Timespec { tv_sec: LONG.as_secs() as _, tv_nsec: 0 }));
        joined(&child).unwrap();
        assert!(is_ready(&child, &at_once), "also when it was reaped");
    }
}

#[test]
fn pr17_close_fails_until_the_child_has_ended() {
    let _watchdog = watchdog();
    let gate = Gate::new();
    let child = Process::new(hold::task(gate.path())).start().unwrap();
    let child = child.close().expect_err("it runs");
    gate.open();
    joined(&child).unwrap();
    child.close().expect("it has ended");
}

#[test]
fn children_can_be_awaited() {
    let _watchdog = watchdog();
    let children: Vec<_> = (0..10)
        .map(|number| {
            Process::new(echo::task(number))
                .start_method(METHODS[number as usize % 2])
                .start()
                .unwrap()
        })
        .collect();
    let all = futures::future::join_all(children.iter().map(Child::join_async));
    let values: Vec<_> = futures::executor::block_on(all).into_iter().map(Result::unwrap).collect();
    assert_eq!(values, (0..10).collect::<Vec<_>>());
    let gate = Gate::new();
    let child = Process::new(hold::task(gate.path())).start().unwrap();
    // Dropping the future loses nothing.
    assert!(futures::FutureExt::now_or_never(child.join_async()).is_none());
    gate.open();
    assert_eq!(futures::executor::block_on(child.join_async()).unwrap(), child.pid());
}

/// A waker that calls the library.
struct Asks(std::sync::mpsc::Sender<usize>);

impl std::task::Wake for Asks {
    fn wake(self: Arc<Self>) {
        let _ = self.0.send(active_children().len());
    }
}

#[test]
fn a_waker_may_call_active_children() {
    let _watchdog = watchdog();
    let gate = Gate::new();
    let child = Process::new(hold::task(gate.path())).start().unwrap();
    let (sender, receiver) = std::sync::mpsc::channel();
    let waker = Arc::new(Asks(sender)).into();
    let mut wait = Box::pin(child.join_async());
    assert!(wait.as_mut().poll(&mut std::task::Context::from_waker(&waker)).is_pending());
    gate.open();
    receiver.recv_timeout(LONG).expect("it comes to an end");
}

#[test]
fn debug_shows_the_name_state_pid_and_parent() {
    let _watchdog = watchdog();
    let gate = Gate::new();
    let process = Process::new(hold::task(gate.path())).name("talker").daemon(true);
    assert!(
        format!("{process:?}").contains("talker") && format!("{process:?}").contains("initial")
    );
    let child = process.start().unwrap();
    let text = format!("{child:?}");
    let parent = std::process::id();
    for part in [
        "talker",
        "running",
        "daemon: true",
        &format!("pid: {}", child.pid()),
        &format!("parent: {parent}"),
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
    child.kill().unwrap();
    ended(&child);
    assert!(format!("{child:?}").contains("SIGKILL"), "{child:?}");
}

// ---- how bodies end -----------------------------------------------------------------------------

#[task]
fn panics() {
    panic!("it broke: {}", 7)
}

#[task]
fn fails() -> Result<u64, String> {
    Err("it went wrong".to_owned())
}

#[task]
fn aborts() {
    std::process::abort()
}

#[task]
fn overflows(depth: u64) -> u64 {
    if depth == u64::MAX {
        return 0;
    }
    std::hint::black_box([depth; 64])[0] + overflows(std::hint::black_box(depth + 1))
}

#[test]
fn panics_and_errors_are_reported_with_their_text_and_exit_code() {
    let _watchdog = watchdog();
    for method in METHODS {
        let child = Process::new(panics::task())
            .stderr(Stdio::null())
            .start_method(method)
            .start()
            .unwrap();
        match joined(&child) {
            Err(TaskError::Panicked(error)) => {
                assert_eq!(error.message(), "it broke: 7");
                assert!(error.location().unwrap().contains("process.rs:"), "{error:?}");
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(child.exit_code(), Some(ExitStatus::Exited(101)));

        let child = Process::new(fails::task()).start_method(method).start().unwrap();
        match joined(&child) {
            Err(TaskError::Failed(error)) => assert_eq!(error.message(), "it went wrong"),
            other => panic!("{other:?}"),
        }
        assert_eq!(child.exit_code(), Some(ExitStatus::Exited(1)));

        for code in [0, 7] {
            let child = Process::new(exit::task(code)).start_method(method).start().unwrap();
            assert_eq!(status_of(&joined(&child).unwrap_err()), ExitStatus::Exited(code));
        }

        let child = Process::new(aborts::task()).start_method(method).start().unwrap();
        let error = joined(&child).unwrap_err();
        assert_eq!(status_of(&error), ExitStatus::Signaled(Signal::ABORT.as_raw()));

        let child = Process::new(overflows::task(0))
            .stderr(Stdio::null())
            .start_method(method)
            .start()
            .unwrap();
        let error = joined(&child).unwrap_err();
        assert!(
            error.is_worker_lost() && error.to_string().contains("stack overflow"),
            "{method:?}: {error}"
        );
    }
}

#[test]
fn pr27_a_panic_is_written_to_the_file_that_stderr_is_redirected_to() {
    let _watchdog = watchdog();
    for method in METHODS {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("stderr");
        let child = Process::new(panics::task())
            .stderr(File::create(&file).unwrap())
            .start_method(method)
            .start()
            .unwrap();
        assert!(joined(&child).is_err());
        let text = fs::read_to_string(&file).unwrap();
        assert!(text.contains("it broke: 7") && text.contains("tests/process.rs:"), "{text}");
    }
}

#[task]
fn close_own(descriptors: Vec<i32>) -> u32 {
    for descriptor in descriptors {
        // SAFETY: closes this process's standard output or error, which nothing owns.
        unsafe { libc::close(descriptor) };
    }
    println!("to nowhere");
    std::process::id()
}

#[test]
fn pr23_a_child_may_close_its_output() {
    let _watchdog = watchdog();
    for method in METHODS {
        for descriptors in [vec![1], vec![2], vec![1, 2]] {
            let child = Process::new(close_own::task(descriptors))
                .stdout(Stdio::null())
                .start_method(method);
            let child = child.start().unwrap();
            assert_eq!(joined(&child).unwrap(), child.pid());
            assert_eq!(child.exit_code(), Some(ExitStatus::Exited(0)));
        }
    }
}

#[task]
fn leave_a_thread(gate: PathBuf, mark: PathBuf) {
    executor::spawn_thread(move || {
        come_to(&gate);
        File::create(mark).unwrap();
    });
}

#[test]
fn pr21_a_child_waits_for_its_registered_threads() {
    let _watchdog = watchdog();
    for method in METHODS {
        let gate = Gate::new();
        let mark = gate.file("mark");
        let task = leave_a_thread::task(gate.path().to_owned(), mark.clone());
        let child = Process::new(task).start_method(method).start().unwrap();
        gate.wait_for(1);
        assert!(child.is_alive() && !mark.exists());
        gate.open();
        joined(&child).unwrap();
        assert!(mark.exists());
    }
}

#[task]
fn hook(mark: PathBuf, how: u8) {
    executor::at_exit(0, move || drop(File::create(mark).unwrap()));
    match how {
        0 => {}
        1 => std::process::exit(0),
        2 => panic!("a hook is run after a panic"),
        _ => std::process::abort(),
    }
}

#[test]
fn pr31_an_exit_hook_of_a_child_runs_at_its_end() {
    let _watchdog = watchdog();
    for method in METHODS {
        for (how, runs) in [(0, true), (1, true), (2, true), (3, false)] {
            let dir = tempfile::tempdir().unwrap();
            let mark = dir.path().join("mark");
            let child = Process::new(hook::task(mark.clone(), how))
                .stderr(Stdio::null())
                .start_method(method);
            ended(&child.start().unwrap());
            assert_eq!(mark.exists(), runs, "{method:?} {how}");
        }
    }
}

#[task]
fn meet_and_put(together: Barrier, queue: Queue<u64>, value: u64) -> u32 {
    together.wait_timeout(LONG).expect("the others come");
    queue.put(value).unwrap();
    std::process::id()
}

/// Lets a child and a pool of four workers put values into its queue at the same time. Returns the
/// pids of all six processes and the values.
#[task]
fn has_a_child_and_a_pool(method: usize) -> (Vec<u32>, Vec<u64>) {
    let (queue, together) = (Queue::unbounded().unwrap(), Barrier::new(5).unwrap());
    let meets = |value| meet_and_put::task(together.clone(), queue.clone(), value);
    let child = Process::new(meets(0)).start_method(METHODS[method]).start().unwrap();
    let pool = pool(4);
    let futures: Vec<_> = (1..5).map(|value| pool.submit(meets(value))).collect();
    let mut pids: Vec<u32> = futures.into_iter().map(|future| future.result().unwrap()).collect();
    pids.extend([child.join().unwrap(), std::process::id()]);
    let mut values: Vec<u64> = (0..5).map(|_| queue.get().unwrap()).collect();
    values.sort_unstable();
    (pids, values)
}

#[test]
fn pr30_a_child_can_have_a_queue_a_child_and_a_pool() {
    let _watchdog = watchdog();
    for (number, method) in METHODS.into_iter().enumerate() {
        let child = Process::new(has_a_child_and_a_pool::task(number))
            .start_method(method)
            .start()
            .unwrap();
        let (mut pids, values) = joined(&child).unwrap();
        assert_eq!(values, [0, 1, 2, 3, 4]);
        pids.sort_unstable();
        pids.dedup();
        assert_eq!(pids.len(), 6, "four workers, a child, and who has started them: {method:?}");
    }
}

#[test]
fn one_hundred_short_children_end_with_the_right_exit_code() {
    let _watchdog = watchdog();
    for method in METHODS {
        let children: Vec<_> = (0..100)
            .map(|code| Process::new(exit::task(code)).start_method(method).start().unwrap())
            .collect();
        for (code, child) in (0..100).zip(&children) {
            assert_eq!(ended(child), ExitStatus::Exited(code));
        }
    }
}

#[test]
fn one_hundred_children_terminated_at_once_end_with_sigterm() {
    let _watchdog = watchdog();
    for method in METHODS {
        let gate = Gate::new();
        let children: Vec<_> = (0..100)
            .map(|_| {
                let child =
                    Process::new(hold::task(gate.path())).start_method(method).start().unwrap();
                child.terminate().unwrap();
                child
            })
            .collect();
        for child in &children {
            assert_eq!(ended(child), ExitStatus::Signaled(Signal::TERM.as_raw()), "{method:?}");
        }
    }
}

// ---- settings of a child ------------------------------------------------------------------------

#[task]
fn executable() -> PathBuf {
    fs::read_link("/proc/self/exe").unwrap()
}

#[test]
fn pr02_executable_selects_another_path_of_the_program() {
    let _watchdog = watchdog();
    let own = std::env::current_exe().unwrap();
    let dir = tempfile::tempdir_in(own.parent().unwrap()).unwrap();
    let other = dir.path().join("another name");
    fs::hard_link(&own, &other).unwrap();
    let child = Process::new(executable::task()).executable(&other).start().unwrap();
    assert_eq!(joined(&child).unwrap(), other);
    let error =
        Process::new(pid::task()).executable(dir.path().join("nothing")).start().unwrap_err();
    assert!(matches!(error, StartError::Os { .. }), "{error:?}");
    let cause = std::error::Error::source(&error).unwrap();
    assert_eq!(
        cause.downcast_ref::<std::io::Error>().unwrap().kind(),
        std::io::ErrorKind::NotFound
    );
    assert!(!error.to_string().contains(&cause.to_string()), "{error}");
    assert_eq!(format!("{error:?}"), format!("{error}: {cause}"));
    let error = Process::new(pid::task())
        .executable(other)
        .start_method(StartMethod::ForkServer)
        .start()
        .unwrap_err();
    assert!(matches!(error, StartError::Invalid(_)), "{error:?}");
}

#[task]
fn surroundings() -> (Option<String>, Option<String>, bool, PathBuf) {
    let variable = |name: &str| std::env::var(name).ok();
    (
        variable("A"),
        variable("CARGO_PKG_NAME"),
        variable("PATH").is_some(),
        std::env::current_dir().unwrap(),
    )
}

#[test]
fn a_child_has_the_given_environment_and_directory() {
    let _watchdog = watchdog();
    let dir = tempfile::tempdir().unwrap().keep().canonicalize().unwrap();
    for method in METHODS {
        let own = std::env::current_dir().unwrap();
        let child = Process::new(surroundings::task()).start_method(method).start().unwrap();
        let inherited = std::env::var("CARGO_PKG_NAME").ok();
        assert_eq!(joined(&child).unwrap(), (None, inherited, true, own));
        let child = Process::new(surroundings::task())
            .env("A", "x=y")
            .env_remove("CARGO_PKG_NAME")
            .env("PATH", "/bin")
            .cwd(&dir)
            .start_method(method)
            .start()
            .unwrap();
        assert_eq!(joined(&child).unwrap(), (Some("x=y".to_owned()), None, true, dir.clone()));
        let missing = dir.join("missing");
        let process = Process::new(pid::task()).cwd(&missing).start_method(method);
        let text = match process.start() {
            Err(error) => format!("{error:?}"),
            Ok(child) => format!("{:?}", joined(&child).unwrap_err()),
        };
        let named = format!("directory {}: No such file", missing.display());
        assert!(text.contains(&named) && !text.contains("is `/proc` mounted"), "{text}");
        for (key, value) in [("", "a"), ("a=b", "c"), ("a\0", "b"), ("a", "b\0")] {
            let error =
                Process::new(pid::task()).env(key, value).start_method(method).start().unwrap_err();
            assert!(matches!(error, StartError::Invalid(_)), "{key:?}: {error:?}");
        }
    }
    fs::remove_dir(dir).unwrap();
}

#[task]
fn read_all_and_say(word: &str) -> String {
    let mut all = String::new();
    std::io::stdin().read_to_string(&mut all).unwrap();
    println!("{word}");
    eprintln!("{word}!");
    all
}

#[test]
fn standard_streams_are_connected_through_pipes() {
    let _watchdog = watchdog();
    for method in METHODS {
        let child = Process::new(read_all_and_say::task("a word"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .start_method(method)
            .start()
            .unwrap();
        let [stdin, stdout, stderr] =
            [child.take_stdin(), child.take_stdout(), child.take_stderr()]
                .map(|end| File::from(end.unwrap()));
        (&stdin).write_all(b"what it reads").unwrap();
        drop(stdin);
        assert_eq!(std::io::read_to_string(stdout).unwrap(), "a word\n");
        assert_eq!(std::io::read_to_string(stderr).unwrap(), "a word!\n");
        assert_eq!(joined(&child).unwrap(), "what it reads");
    }
}

#[test]
fn a_join_closes_the_childs_piped_input() {
    let _watchdog = watchdog();
    for method in METHODS {
        let start = || {
            Process::new(read_all_and_say::task("a word"))
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
        };
        let child = start().stderr(Stdio::null()).start_method(method).start().unwrap();
        assert!(child.join_timeout(Duration::ZERO).is_none());
        assert_eq!(child.join().unwrap(), "");
        let child = start().stderr(Stdio::null()).start_method(method).start().unwrap();
        assert_eq!(futures::executor::block_on(child.join_async()).unwrap(), "");
    }
}

/// Reports, in the library's own format, that its value with descriptors follows, and then sends
/// nothing more.
#[task]
fn say_half_a_report(gate: &Path) -> u32 {
    let sockets = fs::read_dir("/proc/self/fd").unwrap().filter_map(|entry| {
        let path = entry.ok()?.path();
        let number: i32 = path.file_name()?.to_str()?.parse().ok()?;
        fs::read_link(&path).ok()?.to_str()?.starts_with("socket:").then_some(number)
    });
    // The protocol version, the kind of a finished reply, an empty payload that is not in a file,
    // and 64 descriptors.
    let report = [&7_u32.to_le_bytes()[..], &[5, 0, 0, 64]].concat();
    for socket in sockets.filter(|number| *number > 2) {
        // SAFETY: sends bytes from a live buffer over an open descriptor.
        unsafe { libc::send(socket, report.as_ptr().cast(), report.len(), 0) };
    }
    come_to(gate);
    0
}

#[test]
fn an_incomplete_report_delays_no_other_child() {
    let _watchdog = watchdog();
    for method in METHODS {
        let gate = Gate::new();
        let child = Process::new(say_half_a_report::task(gate.path()))
            .start_method(method)
            .start()
            .unwrap();
        gate.wait_for(1);
        let other = Process::new(echo::task(1)).start_method(method).start().unwrap();
        assert_eq!(joined(&other).unwrap(), 1);
        assert!(child.is_alive());
        child.kill().unwrap();
        let error = joined(&child).unwrap_err();
        assert_eq!(status_of(&error), ExitStatus::Signaled(libc::SIGKILL), "half a value is none");
    }
}

#[task]
fn allocate(bytes: usize) -> usize {
    let memory = vec![1_u8; bytes];
    std::hint::black_box(&memory).len()
}

#[task]
fn open_many() -> usize {
    let mut open = Vec::new();
    while let Ok(file) = File::open("/dev/null") {
        open.push(file);
        assert!(open.len() < 10_000);
    }
    open.len()
}

#[task]
fn write_much(file: &Path) {
    fs::write(file, vec![0; 100_000]).unwrap();
}

#[test]
fn resource_limits_are_enforced_by_the_system() {
    let _watchdog = watchdog();
    // Python ignores SIGXFSZ, and a program that Python starts inherits that.
    // SAFETY: restores the default action.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_DFL) };
    let gate = Gate::new();
    let signaled = |signal: Signal| ExitStatus::Signaled(signal.as_raw());
    for method in METHODS {
        let memory = Limits::default().memory(256 << 20);
        let child = Process::new(allocate::task(1 << 20))
            .limits(memory.clone())
            .start_method(method)
            .start()
            .unwrap();
        assert_eq!(joined(&child).unwrap(), 1 << 20);
        let child = Process::new(allocate::task(512 << 20))
            .limits(memory)
            .stderr(Stdio::null())
            .start_method(method);
        let error = joined(&child.start().unwrap()).unwrap_err();
        assert_eq!(status_of(&error), signaled(Signal::ABORT), "{error}");

        let child = Process::new(open_many::task())
            .limits(Limits::default().open_files(20))
            .start_method(method);
        assert!((5..20).contains(&joined(&child.start().unwrap()).unwrap()));

        let small = Limits::default().file_size(1000);
        let child =
            Process::new(write_much::task(&gate.file("much"))).limits(small).start_method(method);
        assert_eq!(ended(&child.start().unwrap()), signaled(Signal::XFSZ));

        // The limits apply to the child's own code, and not to the transfer of its value.
        let small = Limits::default().file_size(1000).open_files(20);
        let child =
            Process::new(reversed::task(vec![7; 300_000])).limits(small).start_method(method);
        assert_eq!(joined(&child.start().unwrap()).unwrap().len(), 300_000);

        let brief = Limits::default().cpu_time(Duration::from_millis(1));
        let child = Process::new(spin::task(gate.path())).limits(brief).start_method(method);
        assert_eq!(ended(&child.start().unwrap()), signaled(Signal::XCPU));
    }
}
