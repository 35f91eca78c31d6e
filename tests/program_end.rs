//! How programs with child processes end: by themselves, by a signal, or from a terminal, and how
//! their children end then.

#[macro_use]
mod plays;
mod support;

use std::{
    cell::RefCell,
    fs::{self, File},
    io::{BufRead, BufReader, Read, Write},
    os::{
        fd::{FromRawFd, OwnedFd},
        unix::process::{CommandExt, ExitStatusExt},
    },
    path::{Path, PathBuf},
    process::Stdio,
    ptr,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use executor::{
    Connection, ExitStatus, JoinableQueue, OnDrop, Process, Queue, SharedBytes, StartMethod,
    TaskError, Value, at_exit, pipe, prelude::*,
};
use plays::{Play, argument, assert_nothing_left, play, ready};
use rustix::process::Signal;
use support::{
    Gate, LONG, children, come_to, echo, eventually, hold, hold_then_mark, pid, pool, runs, signal,
    start_a_program, tagged,
};

list! { TESTS:
    mx01_exit_hooks_run_once_and_in_order,
    mx02_exit_hooks_registered_and_called_on_two_threads_each_run_once,
    mx05_children_do_not_read_the_parents_input,
    mx11_a_terminated_parent_leaves_no_process,
    a_normal_end_waits_for_children_but_not_for_daemons,
    a_normal_end_waits_for_registered_threads,
    daemons_end_with_all_processes_that_they_have_started,
    a_daemon_that_ignores_sigterm_is_killed,
    the_children_of_a_killed_parent_end,
    a_child_with_outlive_parent_goes_on_after_its_parent_is_killed,
    no_zombies_remain_while_the_parent_runs,
    ctrl_c_at_a_terminal_ends_three_levels_of_processes,
    a_panic_of_main_ends_the_program_like_a_normal_return,
    accepted_work_is_finished_however_the_program_ends,
    at_the_end_of_the_program_each_executor_follows_on_drop,
    exit_timeout_ends_work_that_would_delay_the_end_of_the_program,
    accepted_work_of_a_pool_dropped_in_a_task_is_finished_by_its_worker,
    a_callback_that_exits_the_program_loses_no_other_callback,
    callbacks_and_threads_that_call_exit_do_not_delay_an_ending_program,
    a_callback_that_calls_exit_does_not_delay_a_shutdown_at_the_end,
    calls_of_exit_do_not_delay_an_ending_program_without_access_to_proc,
    accepted_work_of_a_process_is_finished_by_that_process,
    work_that_a_callback_submits_at_the_end_is_finished_or_rejected,
    only_an_executor_with_on_drop_finish_accepts_work_from_exit_hooks,
    an_exit_hook_can_await_the_shutdown_of_an_executor,
    work_submitted_by_exit_hooks_is_finished,
    a_thread_that_submits_for_ever_does_not_delay_the_end,
    exit_hooks_can_use_every_part_of_the_library,
    destructors_of_thread_locals_can_use_every_part_of_the_library,
    a_forked_copy_ends_without_running_the_programs_hooks_and_threads,
    a_subreaper_keeps_no_zombies_of_its_workers_and_children,
    output_printed_by_preload_appears_once,
    output_printed_before_a_start_comes_before_the_childs_output,
    a_start_does_not_wait_for_a_thread_that_holds_standard_output,
    no_descriptor_of_a_pool_is_open_after_its_shutdown,
    no_descriptor_of_a_process_is_open_after_its_join,
}

list! { PROGRAMS:
    takes_orphans,
    prints_in_preload,
    prints_before_a_start,
    starts_beside_a_held_output,
    shuts_a_hundred_pools_down,
    joins_a_hundred_processes,
    ends_with_accepted_work,
    ends_by_policy,
    ends_by_a_limit,
    drops_a_pool_in_a_task,
    ends_in_a_callback,
    ends_an_ending_program,
    shuts_down_beside_a_callback_that_exits,
    ends_an_ending_program_unseen,
    has_a_process_with_a_pool,
    submits_in_callbacks,
    submits_in_hooks,
    submits_in_hooks_by_policy,
    awaits_the_end_in_a_hook,
    submits_for_ever,
    has_a_hook_that_uses_everything,
    has_a_thread_local_that_uses_everything,
    forks_beside_hooks_and_threads,
    has_hooks,
    stresses_hooks,
    reads_beside_children,
    waits_below,
    ends_with_children,
    ends_with_a_thread,
    ends_with_a_stubborn_daemon,
    has_one_that_outlives,
    forgets_children,
    panics_beside_children,
}

fn main() {
    plays::main(TESTS, PROGRAMS);
}

const METHODS: [StartMethod; 3] = [StartMethod::Spawn, StartMethod::ForkServer, StartMethod::Fork];

/// Parses the program's argument: a start method, the way in which the program ends, and a path.
fn arguments() -> (StartMethod, String, PathBuf) {
    let argument = argument();
    let mut parts = argument.splitn(3, ' ');
    let mut next = || parts.next().unwrap().to_owned();
    let name = next();
    let method =
        METHODS.into_iter().find(|method| format!("{method:?}") == name).expect("a method");
    (method, next(), PathBuf::from(next()))
}

fn to_argument(method: StartMethod, way: &str, path: &Path) -> String {
    format!("{method:?} {way} {}", path.display())
}

// ---- hooks --------------------------------------------------------------------------------------

fn mx01_exit_hooks_run_once_and_in_order() {
    let expected = "by hand\ndropped\nmain returns\n10, later\n10\n0, registered by a hook\n5\n0\nafter the child\n-1\n";
    let said = play("has_hooks").play_out();
    let (mut said, mut wanted): (Vec<_>, Vec<_>) =
        (said.lines().collect(), expected.lines().collect());
    assert_eq!(said.len(), wanted.len(), "{said:?}");
    // This hook runs right after the hook of priority 5: it was registered last among the hooks of
    // priority 0, and those run in reverse order.
    wanted.retain(|line| *line != "0, registered by a hook");
    let late = said.iter().position(|line| *line == "0, registered by a hook").unwrap();
    assert!(said[late - 1] == "5", "{said:?}");
    said.remove(late);
    assert_eq!(said, wanted);
}

#[task]
fn say_it(word: &str) {
    println!("{word}");
}

fn has_hooks() {
    // The program waits for the child between the hooks of priority 0 and those below. The gate's
    // directory must exist until the child has passed the gate.
    let gate = Arc::new(Gate::new());
    let kept = Arc::clone(&gate);
    at_exit(-1, move || {
        println!("-1");
        drop(kept);
    });
    let _child = Process::new(say_behind::task(gate.path())).start().unwrap();
    gate.wait_for(1);
    at_exit(0, move || {
        println!("0");
        gate.open();
    });
    at_exit(5, || {
        println!("5");
        at_exit(0, || println!("0, registered by a hook"));
    });
    at_exit(10, || println!("10"));
    at_exit(10, || println!("10, later"));
    at_exit(7, || std::panic::resume_unwind(Box::new("costs no other hook its turn")));
    let by_hand = at_exit(20, || println!("by hand"));
    assert!(by_hand.is_pending() && by_hand.call() && !by_hand.is_pending() && !by_hand.call());
    drop(at_exit(20, || println!("dropped")).on_drop());
    let cancelled = at_exit(20, || println!("cancelled"));
    assert!(cancelled.cancel() && !cancelled.cancel() && !cancelled.call());
    println!("main returns");
}

#[task]
fn say_behind(gate: &Path) {
    come_to(gate);
    println!("after the child");
}

fn mx02_exit_hooks_registered_and_called_on_two_threads_each_run_once() {
    let said = play("stresses_hooks").play_out();
    assert_eq!(said, "all of them ran, each once\n");
}

fn stresses_hooks() {
    static MADE: AtomicU64 = AtomicU64::new(0);
    static RAN: AtomicU64 = AtomicU64::new(0);
    at_exit(i32::MIN, || {
        assert_eq!(MADE.load(Ordering::SeqCst), RAN.load(Ordering::SeqCst));
        println!("all of them ran, each once");
    });
    let until = Instant::now() + Duration::from_secs(2);
    let threads: Vec<_> = (0..2_i32)
        .map(|thread| {
            thread::spawn(move || {
                let mut kept = Vec::new();
                for round in 0.. {
                    MADE.fetch_add(1, Ordering::SeqCst);
                    let hook = at_exit(round % 7, || {
                        RAN.fetch_add(1, Ordering::SeqCst);
                    });
                    match (round + thread) % 3 {
                        0 => assert!(hook.call()),
                        1 => drop(hook.on_drop()),
                        // Some hooks are kept until the end, or until there are many.
                        _ => kept.push(hook),
                    }
                    if kept.len() > 1000 {
                        kept.drain(..).for_each(|hook| assert!(hook.call()));
                    }
                    if Instant::now() > until {
                        break;
                    }
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

// ---- standard input -----------------------------------------------------------------------------

#[task]
fn read_all() -> usize {
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap()
}

fn mx05_children_do_not_read_the_parents_input() {
    for method in METHODS {
        let mut play =
            play("reads_beside_children").argument(to_argument(method, "", Path::new("")));
        let mut child = play.command.stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(b"for the parent").unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
        assert_eq!(String::from_utf8_lossy(&output.stdout), "for the parent", "{method:?}");
    }
}

fn reads_beside_children() {
    let (method, ..) = arguments();
    let child = Process::new(read_all::task()).start_method(method).start().unwrap();
    assert_eq!(
        child.join_timeout(LONG).unwrap().unwrap(),
        0,
        "it sees the end of its input at once"
    );
    let pool = pool(1);
    assert_eq!(pool.submit(read_all::task()).result().unwrap(), 0);
    print!("{}", std::io::read_to_string(std::io::stdin()).unwrap());
}

// ---- ends by itself -----------------------------------------------------------------------------

/// Ways to a normal end, and the exit code of each.
const WAYS: [(&str, i32); 3] = [("returns", 0), ("exits", 3), ("exits-in-a-thread", 4)];

fn a_normal_end_waits_for_children_but_not_for_daemons() {
    for method in METHODS {
        for (way, code) in WAYS {
            let gate = Gate::new();
            let argument = to_argument(method, way, gate.path());
            let (mut child, mut stdout, tag) =
                play("ends_with_children").argument(argument).until_it_speaks();
            // The daemon has to end before the program waits for the other child.
            let daemon: u32 = fs::read_to_string(gate.file("daemon")).unwrap().parse().unwrap();
            eventually("the daemon is gone", || !runs(daemon));
            assert!(child.try_wait().unwrap().is_none(), "it waits for its child");
            gate.open();
            let mut said = String::new();
            stdout.read_to_string(&mut said).unwrap();
            assert_eq!(child.wait().unwrap().code(), Some(code), "{method:?} {way}");
            assert_eq!(said, "");
            assert!(gate.file("mark").exists(), "the child has finished what it did");
            assert_nothing_left(&tag);
        }
    }
}

fn end(way: &str) {
    match way {
        "returns" => {}
        "exits" => std::process::exit(3),
        "exits-in-a-thread" => drop(thread::spawn(|| std::process::exit(4)).join()),
        other => panic!("{other}"),
    }
}

fn ends_with_children() {
    let (method, way, gate) = arguments();
    let mark = gate.join("mark");
    let _child =
        Process::new(hold_then_mark::task(&gate, &mark)).start_method(method).start().unwrap();
    let daemon = Process::new(hold::task(&gate)).daemon(true).start_method(method).start().unwrap();
    eventually("both are at work", || {
        fs::read_dir(&gate).unwrap().flatten().filter(|entry| entry.file_name() != "fifo").count()
            == 2
    });
    fs::write(gate.join("daemon"), daemon.pid().to_string()).unwrap();
    ready();
    end(&way);
}

fn a_normal_end_waits_for_registered_threads() {
    for way in ["returns", "exits"] {
        let gate = Gate::new();
        let argument = to_argument(StartMethod::Spawn, way, gate.path());
        let (child, mut stdout, _tag) =
            play("ends_with_a_thread").argument(argument).until_it_speaks();
        gate.wait_for(1);
        gate.open();
        let mut said = String::new();
        stdout.read_to_string(&mut said).unwrap();
        assert_eq!(said, "the thread is done\n", "{way}");
        drop(child.wait_with_output());
    }
}

fn ends_with_a_thread() {
    let (_, way, gate) = arguments();
    let _thread = executor::spawn_thread(move || {
        come_to(&gate);
        println!("the thread is done");
    });
    ready();
    end(&way);
}

#[task]
fn ignore_terminate(gate: &Path) {
    // SAFETY: only sets a signal's disposition.
    unsafe { libc::signal(libc::SIGTERM, libc::SIG_IGN) };
    come_to(gate);
}

fn a_daemon_that_ignores_sigterm_is_killed() {
    let gate = Gate::new();
    play("ends_with_a_stubborn_daemon").argument(gate.path()).play_out();
    assert_eq!(gate.arrivals().len(), 1);
}

fn ends_with_a_stubborn_daemon() {
    let gate = PathBuf::from(argument());
    let _daemon = Process::new(ignore_terminate::task(&gate)).daemon(true).start().unwrap();
    eventually("it is at work", || fs::read_dir(&gate).unwrap().count() == 2);
}

fn a_panic_of_main_ends_the_program_like_a_normal_return() {
    let gate = Gate::new();
    let mut play =
        play("panics_beside_children").argument(to_argument(StartMethod::Spawn, "", gate.path()));
    let output = play.command.output().unwrap();
    assert_eq!(output.status.code(), Some(101));
    assert!(String::from_utf8_lossy(&output.stderr).contains("main had enough"));
    assert!(gate.file("mark").exists(), "its child was waited for");
    assert_nothing_left(&play.tag);
}

fn panics_beside_children() {
    let (.., gate) = arguments();
    let fifo = gate.clone();
    let _child = Process::new(hold_then_mark::task(&gate, &gate.join("mark"))).start().unwrap();
    at_exit(0, move || {
        // Open the gate for the child.
        let file = File::options().read(true).write(true).open(fifo.join("fifo")).unwrap();
        static KEPT: Mutex<Option<File>> = Mutex::new(None);
        *KEPT.lock().unwrap() = Some(file);
    });
    panic!("main had enough");
}

// ---- ends by a signal ---------------------------------------------------------------------------

/// Starts a process that has a pool, and a task of that pool starts a program. With this process
/// there are four levels below the test program.
#[task]
fn wait_below(gate: &Path, method: u8) {
    let method = METHODS[usize::from(method)];
    let below =
        Process::new(wait_in_a_pool::task(gate)).daemon(true).start_method(method).start().unwrap();
    File::create(gate.join(format!("arrival-{}-below", below.pid()))).unwrap();
    come_to(gate);
    below.join().unwrap();
}

#[task]
fn wait_in_a_pool(gate: &Path) {
    pool(1).submit(start_a_program::task(gate)).result().unwrap();
}

fn waits_below() {
    let (method, way, gate) = arguments();
    let number = METHODS.iter().position(|other| *other == method).unwrap() as u8;
    let _child = Process::new(wait_below::task(&gate, number))
        .daemon(way == "daemon")
        .start_method(method)
        .start()
        .unwrap();
    eventually("all are at work", || fs::read_dir(&gate).unwrap().count() == 4);
    ready();
    if way == "daemon" {
        return;
    }
    loop {
        thread::park();
    }
}

fn ends_three_levels_by(how: Signal) {
    for method in METHODS {
        let gate = Gate::new();
        let argument = to_argument(method, "wait", gate.path());
        let (mut child, mut stdout, tag) =
            plays::play("waits_below").argument(argument).until_it_speaks();
        // The tag is read from a process's environment, which is set up a moment after its start.
        eventually("five can be seen", || tagged(&tag).len() >= 5);
        signal(child.id(), how);
        assert_eq!(child.wait().unwrap().signal(), Some(how.as_raw()));
        assert_nothing_left(&tag);
        let mut said = String::new();
        stdout.read_to_string(&mut said).unwrap();
        assert_eq!(said, "");
    }
}

fn the_children_of_a_killed_parent_end() {
    ends_three_levels_by(Signal::KILL);
}

fn mx11_a_terminated_parent_leaves_no_process() {
    ends_three_levels_by(Signal::TERM);
}

fn daemons_end_with_all_processes_that_they_have_started() {
    for method in METHODS {
        let gate = Gate::new();
        let argument = to_argument(method, "daemon", gate.path());
        assert_eq!(play("waits_below").argument(argument).play_out(), "ready\n", "{method:?}");
    }
}

fn a_child_with_outlive_parent_goes_on_after_its_parent_is_killed() {
    for method in METHODS {
        let gate = Gate::new();
        let argument = to_argument(method, "", gate.path());
        let (mut child, _stdout, tag) =
            play("has_one_that_outlives").argument(argument).until_it_speaks();
        let pids = gate.wait_for(2);
        let outlives: u32 = fs::read_to_string(gate.file("outlives")).unwrap().parse().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        eventually("the other one is gone", || {
            pids.iter().all(|pid| *pid == outlives || !runs(*pid))
        });
        eventually("and the fork server", || tagged(&tag).len() == 1);
        assert!(runs(outlives) && !gate.file("mark").exists());
        gate.open();
        eventually("it has gone on to its end", || gate.file("mark").exists());
        assert_nothing_left(&tag);
    }
}

fn has_one_that_outlives() {
    let (method, _, gate) = arguments();
    let mark = gate.join("mark");
    let task = hold_then_mark::task(&gate, &mark);
    let outlives = Process::new(task).outlive_parent(true).start_method(method).start().unwrap();
    let _other = Process::new(hold::task(&gate)).start_method(method).start().unwrap();
    fs::write(gate.join("outlives"), outlives.pid().to_string()).unwrap();
    eventually("both are at work", || fs::read_dir(&gate).unwrap().count() == 4);
    ready();
    loop {
        thread::park();
    }
}

fn no_zombies_remain_while_the_parent_runs() {
    assert_eq!(play("forgets_children").play_out(), "");
}

fn forgets_children() {
    for method in METHODS {
        for _ in 0..20 {
            drop(Process::new(pid::task()).start_method(method).start().unwrap());
        }
        // The handles were dropped, so nothing in this program waits for the children.
        eventually("all were reaped", || children().iter().all(|(_, state, _)| *state != 'Z'));
    }
    eventually("but for the fork server none is there", || children().len() <= 1);
    // A `wait_exit` returns even if something else has already reaped the child.
    let gate = Gate::new();
    let child = Process::new(hold::task(gate.path())).start().unwrap();
    gate.wait_for(1);
    child.kill().unwrap();
    assert_eq!(child.wait_exit(), ExitStatus::Signaled(libc::SIGKILL));
}

// ---- a terminal ---------------------------------------------------------------------------------

fn ctrl_c_at_a_terminal_ends_three_levels_of_processes() {
    for method in METHODS {
        let gate = Gate::new();
        let mut play = play("waits_below").argument(to_argument(method, "wait", gate.path()));
        let (mut ours, mut theirs) = (0, 0);
        // SAFETY: `openpty` writes two descriptors, which nothing else knows.
        let (ours, theirs) = unsafe {
            let made = libc::openpty(
                &mut ours,
                &mut theirs,
                ptr::null_mut(),
                ptr::null_mut(),
                ptr::null_mut(),
            );
            assert_eq!(made, 0);
            (OwnedFd::from_raw_fd(ours), OwnedFd::from_raw_fd(theirs))
        };
        let stream = || Stdio::from(theirs.try_clone().unwrap());
        play.command.stdin(stream()).stdout(stream()).stderr(stream());
        // SAFETY: between fork and exec, the closure only makes system calls. They make a new
        // session with this terminal.
        unsafe {
            play.command.pre_exec(|| {
                if libc::setsid() < 0 || libc::ioctl(0, libc::TIOCSCTTY, 0) < 0 {
                    return Err(std::io::Error::last_os_error());
                }
                Ok(())
            })
        };
        let mut child = play.command.spawn().unwrap();
        // The command keeps descriptors of the terminal. While they are open, the end of the
        // terminal would not be seen.
        drop((play.command, theirs));
        let mut terminal = File::from(ours);
        let mut said = Vec::new();
        while !said.ends_with(b"ready\r\n") {
            let mut some = [0; 100];
            let len = terminal.read(&mut some).expect("it speaks");
            said.extend_from_slice(&some[..len]);
        }
        eventually("five can be seen", || tagged(&play.tag).len() >= 5);
        terminal.write_all(&[3]).unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGINT), "{method:?}");
        assert_nothing_left(&play.tag);
        // Read the remaining output until no process has the other end open (EIO).
        let mut some = [0; 100];
        while let Ok(len @ 1..) = terminal.read(&mut some) {
            said.extend_from_slice(&some[..len]);
        }
        assert_eq!(
            String::from_utf8_lossy(&said),
            "ready\r\n^C",
            "nothing but the terminal's own `^C`"
        );
    }
}

// ---- ends with accepted work --------------------------------------------------------------------

/// Ways in which a program ends that has accepted work, and its exit code. In each of them nothing
/// waits for the work.
const ENDS: [(&str, i32); 12] = [
    ("tokio", 0),
    ("tokio-on-one-thread", 0),
    ("tokio-shut-down", 0),
    ("runtime-dropped", 0),
    ("static", 0),
    ("forgotten", 0),
    ("thread-local", 0),
    ("not-waiting", 0),
    ("exits", 3),
    ("exits-in-a-thread", 4),
    ("error", 1),
    ("panics", 101),
];

/// Writes a line in one piece. At the end of a program, std writes its output in several pieces,
/// which can mix with those of other processes.
fn say(line: &str) {
    std::io::stdout().write_all(format!("{line}\n").as_bytes()).unwrap();
}

#[track_caller]
fn lines_after_the_gate(program: &str, way: &str) -> (Option<i32>, Vec<String>) {
    let _watchdog = support::watchdog();
    let gate = Gate::new();
    let mut play = play(program).argument(to_argument(StartMethod::Spawn, way, gate.path()));
    let mut child = play.command.stderr(Stdio::null()).spawn().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    stdout.read_line(&mut line).unwrap();
    assert_eq!(line, "main ends\n", "{way}");
    gate.open();
    let mut said = String::new();
    stdout.read_to_string(&mut said).unwrap();
    let code = child.wait().unwrap().code();
    assert_nothing_left(&play.tag);
    let mut lines: Vec<String> = said.lines().map(str::to_owned).collect();
    lines.sort();
    (code, lines)
}

fn accepted_work_is_finished_however_the_program_ends() {
    for (way, code) in ENDS {
        let (ended, lines) = lines_after_the_gate("ends_with_accepted_work", way);
        let expected = [
            "called 0", "called 1", "called 2", "called 3", "task 0", "task 1", "task 2", "task 3",
        ];
        assert_eq!(lines, expected, "{way}");
        assert_eq!(ended, Some(code), "{way}");
    }
}

#[task]
fn print_behind(gate: &Path, number: u32) -> u32 {
    come_to(gate);
    say(&format!("task {number}"));
    number
}

/// Submits four tasks that wait at the gate, with callbacks. Two of them run, and two are pending.
fn accept(pool: &ProcessPoolExecutor, gate: &Path) {
    for number in 0..4 {
        let future = pool.submit(print_behind::task(gate, number));
        future.on_done(|outcome| match outcome {
            Ok(number) => say(&format!("called {number}")),
            Err(error) => say(&format!("{error}")),
        });
    }
}

fn kept() -> &'static ProcessPoolExecutor {
    static POOL: OnceLock<ProcessPoolExecutor> = OnceLock::new();
    POOL.get_or_init(|| pool(2))
}

thread_local! {
    static KEPT: RefCell<Option<ProcessPoolExecutor>> = const { RefCell::new(None) };
}

#[expect(clippy::disallowed_methods, reason = "the locals are made here")]
fn ends_with_accepted_work() {
    let (_, way, gate) = arguments();
    let accepted = || {
        let pool = pool(2);
        accept(&pool, &gate);
        say("main ends");
        pool
    };
    let runtime = |mut builder: tokio::runtime::Builder| builder.build().unwrap();
    let on = |runtime: &tokio::runtime::Runtime| {
        runtime.block_on(async { drop(accepted()) });
    };
    match &*way {
        "tokio" => on(&runtime(tokio::runtime::Builder::new_multi_thread())),
        "tokio-on-one-thread" => on(&runtime(tokio::runtime::Builder::new_current_thread())),
        "tokio-shut-down" => {
            let runtime = runtime(tokio::runtime::Builder::new_multi_thread());
            runtime.spawn({
                let gate = gate.clone();
                async move {
                    let pool = pool(2);
                    accept(&pool, &gate);
                    say("main ends");
                    // The pool is dropped when the runtime drops its remaining tasks.
                    std::future::pending::<()>().await;
                    drop(pool);
                }
            });
            eventually("two are at work", || fs::read_dir(&gate).unwrap().count() > 2);
            runtime.shutdown_background();
        }
        "runtime-dropped" => {
            let runtime = runtime(tokio::runtime::Builder::new_multi_thread());
            let entered = runtime.enter();
            drop(accepted());
            drop(entered);
            drop(runtime);
        }
        "static" => {
            accept(kept(), &gate);
            say("main ends");
        }
        "forgotten" => std::mem::forget(accepted()),
        "thread-local" => KEPT.set(Some(accepted())),
        "not-waiting" => accepted().shutdown(false),
        "exits" => {
            let _pool = accepted();
            std::process::exit(3)
        }
        "exits-in-a-thread" => {
            let _pool = accepted();
            let _ = thread::spawn(|| std::process::exit(4)).join();
        }
        // The same as a `main` that returns `Err`.
        "error" => {
            std::mem::forget(accepted());
            std::process::exit(1)
        }
        "panics" => {
            std::mem::forget(accepted());
            panic!("main had enough");
        }
        other => panic!("{other}"),
    }
}

fn at_the_end_of_the_program_each_executor_follows_on_drop() {
    let _watchdog = support::watchdog();
    for (way, expected) in [
        ("kill", &["pending: shut down", "running: shut down"][..]),
        ("cancel", &["pending: cancelled", "running: let go"]),
        ("python", &["pending: shut down", "running: shut down"]),
    ] {
        let gate = Gate::new();
        let mut play =
            play("ends_by_policy").argument(to_argument(StartMethod::Spawn, way, gate.path()));
        let mut child = play.command.stderr(Stdio::null()).spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut said = String::new();
        if way == "cancel" {
            // The pending task is cancelled while the other one still runs.
            stdout.read_line(&mut said).unwrap();
            assert_eq!(said, "pending: cancelled\n");
            gate.open();
        }
        stdout.read_to_string(&mut said).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(0), "{way}");
        let mut lines: Vec<_> = said.lines().collect();
        lines.sort_unstable();
        assert_eq!(lines, expected, "{way}");
        assert_nothing_left(&play.tag);
    }
}

fn say_how_it_ended(name: &'static str) -> impl FnOnce(Result<u32, TaskError>) + Send {
    move |outcome| match outcome {
        Ok(_) => say(&format!("{name}: let go")),
        Err(error) if error.is_shutdown() => say(&format!("{name}: shut down")),
        Err(error) if error.is_cancelled() => say(&format!("{name}: cancelled")),
        Err(error) => say(&format!("{name}: {error}")),
    }
}

fn ends_by_policy() {
    let (_, way, gate) = arguments();
    let policy = match &*way {
        "kill" => OnDrop::Kill,
        "cancel" => OnDrop::CancelPending,
        "python" => {
            static POOL: OnceLock<executor::Pool> = OnceLock::new();
            let pool = POOL.get_or_init(|| executor::Pool::new(1).unwrap());
            let running = pool.apply_async(hold::task(&gate));
            let pending = pool.apply_async(hold::task(&gate));
            eventually("one runs", || fs::read_dir(&gate).unwrap().count() == 2);
            drop(running.error_callback(|error| say_how_it_ended("running")(Err(error.clone()))));
            drop(pending.error_callback(|error| say_how_it_ended("pending")(Err(error.clone()))));
            return;
        }
        other => panic!("{other}"),
    };
    static POOL: OnceLock<ProcessPoolExecutor> = OnceLock::new();
    let pool = POOL.get_or_init(|| {
        ProcessPoolExecutor::builder().max_workers(1).on_drop(policy).build().unwrap()
    });
    pool.submit(hold::task(&gate)).on_done(say_how_it_ended("running"));
    eventually("one runs", || fs::read_dir(&gate).unwrap().count() == 2);
    pool.submit(hold::task(&gate)).on_done(say_how_it_ended("pending"));
}

fn exit_timeout_ends_work_that_would_delay_the_end_of_the_program() {
    for way in ["static", "tokio", "stubborn"] {
        let gate = Gate::new();
        let play =
            play("ends_by_a_limit").argument(to_argument(StartMethod::Spawn, way, gate.path()));
        assert_eq!(play.play_out(), "running: shut down\n", "{way}");
    }
    let argument = to_argument(StartMethod::Spawn, "callback", Path::new(""));
    let said = play("ends_by_a_limit").argument(argument).play_out();
    assert_eq!(said, "a callback that never returns\n");
}

fn ends_by_a_limit() {
    let (_, way, gate) = arguments();
    let pool = || {
        let builder = ProcessPoolExecutor::builder().max_workers(1);
        builder.exit_timeout(Duration::from_millis(50)).build().unwrap()
    };
    let accept = |pool: &ProcessPoolExecutor| {
        pool.submit(hold::task(&gate)).on_done(say_how_it_ended("running"));
        eventually("it runs", || fs::read_dir(&gate).unwrap().count() == 2);
    };
    if way == "callback" {
        let pool = pool();
        let (entered, has_entered) = std::sync::mpsc::channel();
        pool.submit(echo::task(1)).on_done(move |_| {
            say("a callback that never returns");
            entered.send(()).unwrap();
            loop {
                thread::park();
            }
        });
        // Wait until the callback has begun. Otherwise the timeout might end the worker before its
        // task has begun, and no callback would be left to delay the end.
        has_entered.recv().unwrap();
        // Dropping the pool here would wait for the callback without a timeout.
        return std::mem::forget(pool);
    }
    static POOL: OnceLock<ProcessPoolExecutor> = OnceLock::new();
    if way == "static" {
        return accept(POOL.get_or_init(pool));
    }
    if way == "stubborn" {
        // Its worker would live for longer than the program waits for callbacks.
        let builder = ProcessPoolExecutor::builder().max_workers(1);
        let builder = builder.exit_timeout(Duration::from_millis(50));
        let pool = POOL.get_or_init(|| builder.terminate_grace(Duration::MAX).build().unwrap());
        pool.submit(ignore_terminate::task(&gate))
            .on_done(|outcome| say_how_it_ended("running")(outcome.map(|()| 0)));
        return eventually("it runs", || fs::read_dir(&gate).unwrap().count() == 2);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async { accept(&pool()) });
}

fn accepted_work_of_a_pool_dropped_in_a_task_is_finished_by_its_worker() {
    let (code, lines) = lines_after_the_gate("drops_a_pool_in_a_task", "");
    let expected =
        ["called 0", "called 1", "called 2", "called 3", "task 0", "task 1", "task 2", "task 3"];
    assert_eq!((code, &lines[..]), (Some(0), &expected.map(str::to_owned)[..]));
}

/// Drops a pool inside a task, where the drop does not wait for the pool's work.
#[task]
fn accept_and_leave(gate: &Path) {
    accept(&pool(2), gate);
}

fn drops_a_pool_in_a_task() {
    let (.., gate) = arguments();
    kept().submit(accept_and_leave::task(&gate)).result().unwrap();
    say("main ends");
}

fn a_callback_that_exits_the_program_loses_no_other_callback() {
    let play = play("ends_in_a_callback");
    let said = play.play_out_to(|status| status.code() == Some(7));
    let mut lines: Vec<_> = said.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["called 1", "called 2", "called 3"]);
}

#[task]
fn wait_for(event: executor::Event) {
    event.wait();
}

/// Submits a task whose callback exits the program. The task ends when the event is set. If it
/// ended before the callback was added, the callback would run on this thread.
fn exits_in_a_callback(pool: &ProcessPoolExecutor, code: i32) -> executor::Event {
    let event = executor::Event::new().unwrap();
    pool.submit(wait_for::task(event.clone())).on_done(move |_| std::process::exit(code));
    event
}

fn ends_in_a_callback() {
    let pool = kept();
    let event = exits_in_a_callback(pool, 7);
    for number in 1..4 {
        pool.submit(echo::task(number))
            .on_done(|outcome| say(&format!("called {}", outcome.unwrap())));
    }
    event.set();
    loop {
        thread::park();
    }
}

fn callbacks_and_threads_that_call_exit_do_not_delay_an_ending_program() {
    let (code, lines) = lines_after_the_gate("ends_an_ending_program", "");
    // The thread may call `exit` first, between the last line of `main` and its return.
    assert!(matches!(code, Some(0 | 8)), "{code:?}");
    assert_eq!(&lines[..], &["called 1", "called 2", "task 1", "task 2"].map(str::to_owned)[..]);
}

fn ends_an_ending_program() {
    let (.., gate) = arguments();
    let (path, pool) = (gate.clone(), kept());
    pool.submit(hold::task(&gate)).on_done(|_| std::process::exit(9));
    for number in 1..3 {
        pool.submit(print_behind::task(&gate, number))
            .on_done(|outcome| say(&format!("called {}", outcome.unwrap())));
    }
    let _thread = executor::spawn_thread(move || {
        come_to(&path);
        std::process::exit(8)
    });
    say("main ends");
}

fn a_callback_that_calls_exit_does_not_delay_a_shutdown_at_the_end() {
    for way in ["limit", "shutdown", "drop", "later"] {
        let (code, lines) = lines_after_the_gate("shuts_down_beside_a_callback_that_exits", way);
        // The callback may call `exit` first, between the last line of `main` and its return.
        assert!(matches!(code, Some(0 | 9)), "{way}: {code:?}");
        assert_eq!(lines, ["called 1"], "{way}");
    }
}

fn shuts_down_beside_a_callback_that_exits() {
    static POOL: Mutex<Option<ProcessPoolExecutor>> = Mutex::new(None);
    let (_, way, gate) = arguments();
    let builder = ProcessPoolExecutor::builder().max_workers(1);
    let pool = match &*way {
        "limit" => builder.exit_timeout(LONG).build(),
        _ => builder.build(),
    }
    .unwrap();
    // The first task ends only after the program has begun to end. So the callback's `exit` comes
    // second, and std blocks every thread that calls `exit` second.
    pool.submit(hold::task(&gate)).on_done(drop);
    let exits = move |pool: &ProcessPoolExecutor| {
        let event = exits_in_a_callback(pool, 9);
        pool.submit(echo::task(1)).on_done(|outcome| say(&format!("called {}", outcome.unwrap())));
        event.set();
    };
    if way != "later" {
        exits(&pool);
    }
    *POOL.lock().unwrap() = Some(pool);
    if way != "limit" {
        at_exit(0, move || {
            let pool = POOL.lock().unwrap().take().unwrap();
            if way == "later" {
                exits(&pool);
            }
            if way != "drop" {
                pool.shutdown(true);
            }
        });
    }
    say("main ends");
}

fn calls_of_exit_do_not_delay_an_ending_program_without_access_to_proc() {
    let _watchdog = support::watchdog();
    let mut play = play("ends_an_ending_program_unseen");
    let mut child = play.command.stdin(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    stdout.read_line(&mut line).unwrap();
    assert_eq!(line, "main ends\n");
    drop(child.stdin.take());
    let mut said = String::new();
    stdout.read_to_string(&mut said).unwrap();
    assert_eq!(said, "called\n");
    // Any of the three may end the program first.
    let code = child.wait().unwrap().code();
    assert!(matches!(code, Some(0 | 8 | 9)), "{code:?}");
    assert_nothing_left(&play.tag);
}

fn ends_an_ending_program_unseen() {
    let wait_for_end_of_input = || drop(std::io::read_to_string(std::io::stdin()));
    let pool = kept();
    // Both workers must have started before this process changes its user. A worker still being
    // started would find a socket made by another user.
    let gate = Gate::new();
    let both = [0, 1].map(|_| pool.submit(hold::task(gate.path())));
    gate.wait_for(both.len());
    gate.open();
    let _workers = both.map(|held| held.result().unwrap());
    drop(gate);
    let (enters, has_entered) = std::sync::mpsc::channel();
    // The tasks are held until their callbacks are added. Otherwise the callbacks would run on this
    // thread.
    let [first, second] = [(); 2].map(|()| Gate::new());
    pool.submit(hold::task(first.path())).on_done(move |_| {
        enters.send(()).unwrap();
        wait_for_end_of_input();
        std::process::exit(9)
    });
    first.open();
    // The second callback runs behind the first one, and so after the last line of this function.
    has_entered.recv().unwrap();
    pool.submit(hold::task(second.path())).on_done(|_| say("called"));
    second.open();
    second.wait_for(1);
    drop((first, second));
    let _thread = executor::spawn_thread(move || {
        wait_for_end_of_input();
        std::process::exit(8)
    });
    // Do as a program that guards secrets does: after this only root can read its `/proc` files.
    // SAFETY: changes only what this process may do, and what other processes may do to it.
    unsafe {
        if libc::geteuid() == 0 {
            assert_eq!(libc::setuid(65_534), 0);
        }
        assert_eq!(libc::prctl(libc::PR_SET_DUMPABLE, 0), 0);
    }
    let seen = fs::read_to_string(format!("/proc/self/task/{}/syscall", std::process::id()));
    assert!(seen.is_err(), "{seen:?}");
    say("main ends");
}

fn accepted_work_of_a_process_is_finished_by_that_process() {
    for method in METHODS {
        let argument = to_argument(method, "", Path::new(""));
        let said = play("has_a_process_with_a_pool").argument(argument).play_out();
        let mut lines: Vec<_> = said.lines().collect();
        lines.sort_unstable();
        assert_eq!(lines, ["called 5", "task 5", "the end"], "{method:?}");
    }
}

#[task]
fn accept_in_a_static() {
    kept()
        .submit(say_task::task(5))
        .on_done(|outcome| say(&format!("called {}", outcome.unwrap())));
}

fn has_a_process_with_a_pool() {
    let (method, ..) = arguments();
    Process::new(accept_in_a_static::task()).start_method(method).start().unwrap().join().unwrap();
    say("the end");
}

fn work_that_a_callback_submits_at_the_end_is_finished_or_rejected() {
    let (code, lines) = lines_after_the_gate("submits_in_callbacks", "");
    // Every accepted task has run and its callback was called. The callback submits the next task.
    let (told, tasks) = lines.split_first().unwrap();
    assert_eq!((code, &**told), (Some(0), "refused"));
    let mut numbers: Vec<u32> =
        tasks.iter().map(|line| line["task ".len()..].parse().unwrap()).collect();
    numbers.sort_unstable();
    assert!(numbers.len() > 1 && numbers.into_iter().eq(1..=tasks.len() as u32), "{tasks:?}");
}

fn submits_in_callbacks() {
    let (.., gate) = arguments();
    kept().submit(print_behind::task(&gate, 1)).on_done(|outcome| then(outcome.unwrap()));
    say("main ends");
}

/// Submits a task, and another one in its callback, until the pool rejects one.
fn then(number: u32) {
    kept().submit(say_task::task(number + 1)).on_done(|outcome| match outcome {
        Ok(number) => then(number),
        Err(error) if error.is_shutdown() => say("refused"),
        Err(error) => say(&error.to_string()),
    });
}

fn work_submitted_by_exit_hooks_is_finished() {
    let said = play("submits_in_hooks").play_out();
    assert_eq!(
        said, "task 0\ntask 1\nthe work of main is done: 1\ntask 2\ntask 3\n",
        "work before hooks, and what hooks submit before the end"
    );
}

#[task]
fn say_task(number: u32) -> u32 {
    say(&format!("task {number}"));
    number
}

fn submits_in_hooks() {
    static POOL: OnceLock<ProcessPoolExecutor> = OnceLock::new();
    let pool = POOL.get_or_init(|| pool(1));
    at_exit(0, || {
        let pool = POOL.get().unwrap();
        say(&format!("the work of main is done: {}", pool.worker_pids().len()));
        drop(pool.submit(say_task::task(2)));
    });
    at_exit(-1, || drop(support::pool(1).submit(say_task::task(3))));
    drop(pool.submit(say_task::task(0)));
    drop(pool.submit(say_task::task(1)));
}

fn only_an_executor_with_on_drop_finish_accepts_work_from_exit_hooks() {
    // The result must not depend on whether work was pending when the program began to end.
    for way in ["idle", "pending"] {
        let said = play("submits_in_hooks_by_policy").argument(way).play_out();
        let expected = "Finish: done\nCancelPending: shut down\nKill: shut down\n";
        assert_eq!(said, expected, "{way}");
    }
}

fn submits_in_hooks_by_policy() {
    static POOLS: OnceLock<[(OnDrop, ProcessPoolExecutor); 3]> = OnceLock::new();
    let pools = POOLS.get_or_init(|| {
        [OnDrop::Finish, OnDrop::CancelPending, OnDrop::Kill].map(|policy| {
            (policy, ProcessPoolExecutor::builder().max_workers(1).on_drop(policy).build().unwrap())
        })
    });
    for (_, pool) in pools {
        pool.submit(echo::task(1)).result().unwrap();
    }
    at_exit(0, || {
        for (policy, pool) in POOLS.get().unwrap() {
            match pool.submit(echo::task(2)).result() {
                Ok(2) => say(&format!("{policy:?}: done")),
                Err(error) if error.is_shutdown() => say(&format!("{policy:?}: shut down")),
                other => say(&format!("{policy:?}: {other:?}")),
            }
        }
    });
    if argument() == "pending" {
        for (_, pool) in pools {
            drop(pool.submit(nap::task()));
        }
    }
}

#[task]
fn nap() {
    thread::sleep(Duration::from_millis(100));
}

fn an_exit_hook_can_await_the_shutdown_of_an_executor() {
    for way in ["idle", "busy", "callback", "held"] {
        assert_eq!(
            play("awaits_the_end_in_a_hook").argument(way).play_out(),
            "task 1\nended\n",
            "{way}"
        );
    }
}

fn awaits_the_end_in_a_hook() {
    let pool = kept();
    drop(pool.submit(say_task::task(1)));
    at_exit(0, || {
        let pool = kept();
        match &*argument() {
            "busy" => drop(pool.submit(nap::task())),
            "callback" => pool.submit(nap::task()).on_done(drop),
            // This callback never returns, because the program is already ending.
            "held" => exits_in_a_callback(pool, 9).set(),
            _ => {}
        }
        block_on(pool.shutdown_async());
        say("ended");
    });
}

fn a_thread_that_submits_for_ever_does_not_delay_the_end() {
    assert_eq!(play("submits_for_ever").play_out(), "");
}

fn submits_for_ever() {
    let pool = kept();
    let (sender, receiver) = std::sync::mpsc::channel();
    thread::spawn(move || {
        while pool.submit(echo::task(1)).result().is_ok() {
            let _ = sender.send(());
        }
        // The pool rejects tasks once the program ends.
        loop {
            thread::park();
        }
    });
    receiver.recv().unwrap();
}

// ---- after thread-locals are destroyed ----------------------------------------------------------

struct Parts {
    queue: Queue<String>,
    joinable: JoinableQueue<u64>,
    ends: (Connection<u64, u64>, Connection<u64, u64>),
    pool: ProcessPoolExecutor,
    lock: executor::RLock,
    event: executor::Event,
    value: Value<u64>,
}

impl Parts {
    fn new() -> Self {
        let (queue, joinable) = (Queue::unbounded().unwrap(), JoinableQueue::unbounded().unwrap());
        let (pool, lock, event) =
            (pool(1), executor::RLock::new().unwrap(), executor::Event::new().unwrap());
        let parts = Parts {
            queue,
            joinable,
            ends: pipe().unwrap(),
            pool,
            lock,
            event,
            value: Value::new(1).unwrap(),
        };
        // Use everything once, so that the library's thread-locals exist and are destroyed later.
        parts.use_all();
        parts
    }

    fn use_all(&self) {
        self.queue.put("a word".to_owned()).unwrap();
        assert_eq!(self.queue.get().unwrap(), "a word");
        self.joinable.put(5).unwrap();
        assert_eq!(self.joinable.get().unwrap(), 5);
        self.joinable.task_done().unwrap();
        let (a, b) = &self.ends;
        a.send(&6).unwrap();
        assert_eq!(b.recv().unwrap(), 6);
        a.send_bytes(b"bytes").unwrap();
        assert_eq!(b.recv_bytes().unwrap(), b"bytes");
        assert_eq!(self.pool.submit(echo::task(7)).result().unwrap(), 7);
        let all: u64 = self.pool.map(echo::task, 0..100).map(Result::unwrap).sum();
        assert_eq!(all, 4950);
        let shared = SharedBytes::from(&[8; 100_000][..]);
        assert_eq!(self.pool.submit(last_byte::task(shared)).result().unwrap(), 8);
        let echoed = self.pool.submit(put_in::task(self.queue.clone())).result();
        echoed.unwrap();
        assert_eq!(self.queue.get().unwrap(), "from a task");
        let (sender, receiver) = std::sync::mpsc::channel();
        self.pool
            .submit(echo::task(9))
            .on_done(move |outcome| sender.send(outcome.unwrap()).unwrap());
        assert_eq!(receiver.recv().unwrap(), 9);
        {
            let _outer = self.lock.acquire();
            let _inner = self.lock.acquire();
        }
        self.event.set();
        assert!(self.event.wait_timeout(LONG));
        self.value.set(10);
        assert_eq!(self.value.get(), 10);
        let child = Process::new(echo::task(11)).start().unwrap();
        assert_eq!(child.join().unwrap(), 11);
        executor::worker_state::set(12_u8);
        executor::worker_state::take::<u8>();
        let mut done = as_completed([self.pool.submit(echo::task(13))]);
        assert_eq!(done.next().unwrap().result().unwrap(), 13);
        let (done, rest) =
            wait(vec![self.pool.submit(echo::task(14))], ReturnWhen::AllCompleted, None);
        assert_eq!((done.len(), rest.len()), (1, 0));
        assert_eq!(executor::spawn_thread(|| 15).join().unwrap(), 15);
        block_on(async {
            self.queue.put_async("awaited".to_owned()).await.unwrap();
            assert_eq!(self.queue.get_async().await.unwrap(), "awaited");
            let (a, b) = &self.ends;
            // A worker sends the value, so that it has to be awaited.
            let sent = self.pool.submit(send_later::task(a));
            assert_eq!(b.recv_async().await.unwrap(), 16);
            sent.await.unwrap();
            self.event.clear();
            let set = self.pool.submit(set_later::task(self.event.clone()));
            self.event.wait_async().await;
            set.await.unwrap();
        });
    }
}

#[task]
fn send_later(end: &Connection<u64, u64>) {
    thread::sleep(Duration::from_millis(5));
    end.send(&16).unwrap();
}

#[task]
fn set_later(event: executor::Event) {
    thread::sleep(Duration::from_millis(5));
    event.set();
}

/// Polls and parks as every runtime does, but without a thread-local.
fn block_on(future: impl Future<Output = ()>) {
    struct Unparks(thread::Thread);
    impl std::task::Wake for Unparks {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = std::task::Waker::from(Arc::new(Unparks(thread::current())));
    let mut future = std::pin::pin!(future);
    while future.as_mut().poll(&mut std::task::Context::from_waker(&waker)).is_pending() {
        thread::park();
    }
}

#[task]
fn last_byte(bytes: SharedBytes) -> u8 {
    *bytes.last().unwrap()
}

#[task]
fn put_in(queue: Queue<String>) {
    queue.put("from a task".to_owned()).unwrap();
}

fn exit_hooks_can_use_every_part_of_the_library() {
    assert_eq!(play("has_a_hook_that_uses_everything").play_out(), "the last words\n");
}

fn has_a_hook_that_uses_everything() {
    let parts = Parts::new();
    at_exit(0, move || {
        parts.use_all();
        say("the last words");
    });
}

fn destructors_of_thread_locals_can_use_every_part_of_the_library() {
    assert_eq!(
        play("has_a_thread_local_that_uses_everything").play_out(),
        "last words of a thread\nlast words of the main thread\n"
    );
}

/// Uses every part of the library while its thread's locals are destroyed. Locals that were made
/// later are gone by then, and locals that were made earlier are not. So the test does it in both
/// orders.
struct Last(&'static str);

impl Drop for Last {
    fn drop(&mut self) {
        PARTS.get().unwrap().use_all();
        if !self.0.is_empty() {
            say(&format!("last words of {}", self.0));
        }
    }
}

static PARTS: OnceLock<Parts> = OnceLock::new();

thread_local! {
    static EARLY: RefCell<Option<Last>> = const { RefCell::new(None) };
    static LATE: RefCell<Option<Last>> = const { RefCell::new(None) };
}

#[expect(clippy::disallowed_methods, reason = "the locals are made here")]
fn has_a_thread_local_that_uses_everything() {
    PARTS.set(Parts::new()).ok().unwrap();
    let keep = |name| {
        EARLY.set(Some(Last(name)));
        PARTS.get().unwrap().use_all();
        LATE.set(Some(Last("")));
    };
    thread::spawn(move || keep("a thread")).join().unwrap();
    keep("the main thread");
}

fn a_forked_copy_ends_without_running_the_programs_hooks_and_threads() {
    assert_eq!(play("forks_beside_hooks_and_threads").play_out(), "the copy has ended\nthe hook\n");
}

fn forks_beside_hooks_and_threads() {
    let gate = Gate::new();
    let path = gate.path().to_owned();
    let _thread = executor::spawn_thread(move || come_to(&path));
    gate.wait_for(1);
    at_exit(0, || println!("the hook"));
    drop(kept().submit(hold::task(gate.path())));
    gate.wait_for(2);
    // SAFETY: the copy only exits.
    match unsafe { libc::fork() } {
        // In the copy, the registered thread, the pool's driver and the child processes do not
        // exist.
        0 => std::process::exit(0),
        child => {
            let mut status = 0;
            // SAFETY: `child` is our child, and the out-pointer is valid.
            assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
            assert_eq!(status, 0);
        }
    }
    say("the copy has ended");
    gate.open();
}

// ---- orphans ------------------------------------------------------------------------------------

fn a_subreaper_keeps_no_zombies_of_its_workers_and_children() {
    for way in ["recycled", "living", "process", "living-process"] {
        let argument = to_argument(StartMethod::Spawn, way, Path::new(""));
        assert_eq!(play("takes_orphans").argument(&argument).play_out(), "no zombie\n", "{way}");
        // The same as the first process of a PID namespace.
        let mut first = std::process::Command::new("unshare");
        first.args(["--pid", "--fork", "--mount-proc", "--kill-child"]);
        if !first.arg("true").output().is_ok_and(|output| output.status.success()) {
            println!("no PID namespace can be made here: {way} was not tried as process 1");
            continue;
        }
        let Play { command, tag } = play("takes_orphans").argument(&argument);
        let mut first = std::process::Command::new("unshare");
        first.args(["--pid", "--fork", "--mount-proc", "--kill-child"]).arg(command.get_program());
        first.envs(command.get_envs().filter_map(|(key, value)| Some((key, value?))));
        first.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        assert_eq!(Play { command: first, tag }.play_out(), "no zombie\n", "{way}, as process 1");
    }
}

/// Starts two programs through a shell. They outlive the shell.
#[task]
fn leave_behind(seconds: &str) {
    let script = format!("sleep {seconds} & sleep {seconds} &");
    std::process::Command::new("sh").args(["-c", &script]).status().unwrap();
}

#[task]
fn leave_behind_and_stay(gate: &Path) {
    leave_behind("0.01");
    come_to(gate);
}

fn takes_orphans() {
    let (_, way, _) = arguments();
    if std::process::id() != 1 {
        // SAFETY: only sets a flag of this process.
        unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) };
    }
    let mut own = std::process::Command::new("sh").args(["-c", "exit 9"]).spawn().unwrap();
    eventually("the program's own child has ended", || {
        children().iter().any(|(pid, state, _)| *pid == own.id() && *state == 'Z')
    });
    let others = || children().into_iter().filter(|(pid, ..)| *pid != own.id()).collect::<Vec<_>>();
    let no_zombies = || others().iter().all(|(_, state, _)| *state != 'Z');
    let gate = Gate::new();
    match &*way {
        "recycled" => {
            let pool = ProcessPoolExecutor::builder()
                .max_workers(1)
                .max_tasks_per_worker(1)
                .build()
                .unwrap();
            for _ in 0..3 {
                pool.submit(leave_behind::task("100")).result().unwrap();
            }
            pool.shutdown(true);
            assert_eq!(others(), []);
        }
        "living" => {
            let pool = pool(1);
            let worker = pool.submit(pid::task()).result().unwrap();
            for _ in 0..3 {
                pool.submit(leave_behind::task("0.01")).result().unwrap();
            }
            eventually("only the worker is left", || {
                others().iter().all(|(pid, ..)| *pid == worker)
            });
            assert_eq!(pool.submit(pid::task()).result().unwrap(), worker);
        }
        "process" => {
            for _ in 0..3 {
                Process::new(leave_behind::task("0.3")).start().unwrap().join().unwrap();
            }
            eventually("nothing is left", || others().is_empty());
        }
        "living-process" => {
            let child = Process::new(leave_behind_and_stay::task(gate.path())).start().unwrap();
            gate.wait_for(1);
            eventually("only the child is left", || {
                others().iter().all(|(pid, ..)| *pid == child.pid())
            });
            gate.open();
            child.join().unwrap();
        }
        other => panic!("{other}"),
    }
    assert!(no_zombies());
    assert_eq!(own.wait().unwrap().code(), Some(9), "it is the program's own");
    println!("no zombie");
}

// ---- what is printed ----------------------------------------------------------------------------

fn output_printed_by_preload_appears_once() {
    assert_eq!(play("prints_in_preload").play_out(), "preloaded;");
}

#[task]
fn print_preloaded() {
    print!("preloaded;");
}

fn prints_in_preload() {
    let context = executor::Context::new(StartMethod::ForkServer).preload(print_preloaded::task());
    for _ in 0..3 {
        context.process(echo::task(1)).start().unwrap().join().unwrap();
    }
}

fn output_printed_before_a_start_comes_before_the_childs_output() {
    for method in METHODS {
        let argument = to_argument(method, "", Path::new(""));
        let said = play("prints_before_a_start").argument(argument).play_out();
        assert_eq!(said, "[main;the child\n]\n", "{method:?}");
    }
}

fn prints_before_a_start() {
    let (method, ..) = arguments();
    print!("[main;");
    Process::new(say_it::task("the child")).start_method(method).start().unwrap().join().unwrap();
    println!("]");
}

fn a_start_does_not_wait_for_a_thread_that_holds_standard_output() {
    assert_eq!(play("starts_beside_a_held_output").play_out(), "ended\n");
}

fn starts_beside_a_held_output() {
    let (holds, held) = std::sync::mpsc::channel();
    let (sender, receiver) = std::sync::mpsc::channel::<()>();
    let thread = thread::spawn(move || {
        let _lock = std::io::stdout().lock();
        holds.send(()).unwrap();
        // Wait for a message that is sent only after the starts.
        let _ = receiver.recv();
    });
    held.recv().unwrap();
    for method in [StartMethod::Spawn, StartMethod::ForkServer] {
        for _ in 0..3 {
            let child = Process::new(echo::task(1)).start_method(method).start().unwrap();
            assert_eq!(child.join().unwrap(), 1);
        }
    }
    drop(sender);
    thread.join().unwrap();
    println!("ended");
}

// ---- descriptors --------------------------------------------------------------------------------

fn no_descriptor_of_a_pool_is_open_after_its_shutdown() {
    assert_eq!(play("shuts_a_hundred_pools_down").play_out(), "as many as before\n");
}

fn shuts_a_hundred_pools_down() {
    let once = |number: u64| {
        let pool = pool(2);
        pool.submit(echo::task(number)).on_done(|outcome| assert!(outcome.is_ok()));
        let future = pool.submit(echo::task(number));
        pool.shutdown(true);
        drop(pool);
        assert_eq!(future.result().unwrap(), number);
    };
    once(0);
    let before = support::descriptors();
    for number in 0..100 {
        once(number);
        assert_eq!(support::descriptors(), before, "{number}: {:?}", support::descriptor_names());
        // The system still lists a joined thread for a moment.
        eventually("no thread is left", || support::executor_threads().is_empty());
    }
    println!("as many as before");
}

fn no_descriptor_of_a_process_is_open_after_its_join() {
    assert_eq!(play("joins_a_hundred_processes").play_out(), "as many as before\n");
}

fn joins_a_hundred_processes() {
    let once = |number: u64| {
        for method in [StartMethod::Spawn, StartMethod::ForkServer] {
            let child = Process::new(echo::task(number)).start_method(method).start().unwrap();
            assert_eq!(child.join().unwrap(), number);
        }
    };
    once(0);
    let before = support::descriptors();
    for number in 0..100 {
        once(number);
        assert_eq!(support::descriptors(), before, "{number}: {:?}", support::descriptor_names());
    }
    println!("as many as before");
}
