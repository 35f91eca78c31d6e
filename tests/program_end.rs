//! How programs with processes end: by themselves, by a signal, from a terminal; and what becomes of their children then.

#[macro_use]
mod plays;
mod support_b;

use std::{
    fs::{self, File},
    io::{Read, Write},
    os::{
        fd::{FromRawFd, OwnedFd},
        unix::process::{CommandExt, ExitStatusExt},
    },
    path::{Path, PathBuf},
    process::Stdio,
    ptr,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use executor::{ExitStatus, Process, StartMethod, at_exit, prelude::*};
use plays::{argument, assert_nothing_left, play, ready};
use rustix::process::Signal;
use support_b::{
    Gate, LONG, children, come_to, eventually, hold, hold_then_mark, pid, pool, runs, signal, tagged,
};

list! { TESTS:
    mx01_exit_hooks_run_once_and_in_order,
    mx02_hooks_from_two_threads,
    mx05_children_do_not_read_the_parents_input,
    mx11_a_parent_that_is_terminated_leaves_nothing,
    a_normal_end_waits_for_children_but_not_for_daemons,
    a_normal_end_waits_for_registered_threads,
    daemons_die_with_all_that_they_have_started,
    a_daemon_that_ignores_sigterm_is_killed,
    a_killed_parent_takes_its_children_along,
    a_child_that_outlives_its_parent,
    no_zombies_stay_while_the_parent_runs,
    ctrl_c_at_a_terminal_ends_three_levels,
    a_panic_of_main_ends_as_any_other,
}

list! { PROGRAMS:
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

/// The argument is a method, a way, and a path.
fn arguments() -> (StartMethod, String, PathBuf) {
    let argument = argument();
    let mut parts = argument.splitn(3, ' ');
    let mut next = || parts.next().unwrap().to_owned();
    let name = next();
    let method = METHODS.into_iter().find(|method| format!("{method:?}") == name).expect("a method");
    (method, next(), PathBuf::from(next()))
}

fn to_argument(method: StartMethod, way: &str, path: &Path) -> String {
    format!("{method:?} {way} {}", path.display())
}

// ---- hooks ---------------------------------------------------------------------------------------------------------

fn mx01_exit_hooks_run_once_and_in_order() {
    let expected =
        "by hand\ndropped\nmain returns\n10, later\n10\n0, registered by a hook\n5\n0\nafter the child\n-1\n";
    let said = play("has_hooks").play_out();
    let (mut said, mut wanted): (Vec<_>, Vec<_>) = (said.lines().collect(), expected.lines().collect());
    assert_eq!(said.len(), wanted.len(), "{said:?}");
    // Below the one of 5, and last among those of 0.
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
    at_exit(-1, || println!("-1"));
    // Waited for between the hooks of 0 and those below.
    let gate = Gate::new();
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

fn mx02_hooks_from_two_threads() {
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
                        // Kept for the end, or until there are many.
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

// ---- standard input ------------------------------------------------------------------------------------------------

#[task]
fn read_all() -> usize {
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap()
}

fn mx05_children_do_not_read_the_parents_input() {
    for method in METHODS {
        let mut play = play("reads_beside_children").argument(to_argument(method, "", Path::new("")));
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
    assert_eq!(child.join_timeout(LONG).unwrap().unwrap(), 0, "it sees the end of its input at once");
    let pool = pool(1);
    assert_eq!(pool.submit(read_all::task()).result().unwrap(), 0);
    print!("{}", std::io::read_to_string(std::io::stdin()).unwrap());
}

// ---- ends by itself ------------------------------------------------------------------------------------------------

/// What leads to a normal end, and the exit code that it gives.
const WAYS: [(&str, i32); 3] = [("returns", 0), ("exits", 3), ("exits-in-a-thread", 4)];

fn a_normal_end_waits_for_children_but_not_for_daemons() {
    for method in METHODS {
        for (way, code) in WAYS {
            let gate = Gate::new();
            let argument = to_argument(method, way, gate.path());
            let (mut child, mut stdout, tag) =
                play("ends_with_children").argument(argument).until_it_speaks();
            // The daemon has to go before the others are waited for.
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
    let _child = Process::new(hold_then_mark::task(&gate, &mark)).start_method(method).start().unwrap();
    let daemon = Process::new(hold::task(&gate)).daemon(true).start_method(method).start().unwrap();
    eventually("both are at work", || {
        fs::read_dir(&gate).unwrap().flatten().filter(|entry| entry.file_name() != "fifo").count() == 2
    });
    fs::write(gate.join("daemon"), daemon.pid().to_string()).unwrap();
    ready();
    end(&way);
}

fn a_normal_end_waits_for_registered_threads() {
    for way in ["returns", "exits"] {
        let gate = Gate::new();
        let argument = to_argument(StartMethod::Spawn, way, gate.path());
        let (child, mut stdout, _tag) = play("ends_with_a_thread").argument(argument).until_it_speaks();
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
    // SAFETY: sets a disposition.
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

fn a_panic_of_main_ends_as_any_other() {
    let gate = Gate::new();
    let mut play = play("panics_beside_children").argument(to_argument(StartMethod::Spawn, "", gate.path()));
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
        // Opens the gate.
        let file = File::options().read(true).write(true).open(fifo.join("fifo")).unwrap();
        static KEPT: Mutex<Option<File>> = Mutex::new(None);
        *KEPT.lock().unwrap() = Some(file);
    });
    panic!("main had enough");
}

// ---- ends by a signal ----------------------------------------------------------------------------------------------

/// A process, a process of its, a pool of that, and a program that a task of the pool has started.
#[task]
fn wait_below(gate: &Path, method: u8) {
    let method = METHODS[usize::from(method)];
    let below = Process::new(wait_in_a_pool::task(gate)).daemon(true).start_method(method).start().unwrap();
    File::create(gate.join(format!("arrival-{}-below", below.pid()))).unwrap();
    come_to(gate);
    below.join().unwrap();
}

#[task]
fn wait_in_a_pool(gate: &Path) {
    pool(1).submit(start_a_program::task(gate)).result().unwrap();
}

#[task]
fn start_a_program(gate: &Path) {
    let mut sleep = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
    File::create(gate.join(format!("arrival-{}-sleep", sleep.id()))).unwrap();
    sleep.wait().unwrap();
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
        let (mut child, mut stdout, tag) = plays::play("waits_below").argument(argument).until_it_speaks();
        // The environment of a program is there a moment after its start.
        eventually("five can be seen", || tagged(&tag).len() >= 5);
        signal(child.id(), how);
        assert_eq!(child.wait().unwrap().signal(), Some(how.as_raw()));
        assert_nothing_left(&tag);
        let mut said = String::new();
        stdout.read_to_string(&mut said).unwrap();
        assert_eq!(said, "");
    }
}

fn a_killed_parent_takes_its_children_along() {
    ends_three_levels_by(Signal::KILL);
}

fn mx11_a_parent_that_is_terminated_leaves_nothing() {
    ends_three_levels_by(Signal::TERM);
}

fn daemons_die_with_all_that_they_have_started() {
    for method in METHODS {
        let gate = Gate::new();
        let argument = to_argument(method, "daemon", gate.path());
        assert_eq!(play("waits_below").argument(argument).play_out(), "ready\n", "{method:?}");
    }
}

fn a_child_that_outlives_its_parent() {
    for method in METHODS {
        let gate = Gate::new();
        let argument = to_argument(method, "", gate.path());
        let (mut child, _stdout, tag) = play("has_one_that_outlives").argument(argument).until_it_speaks();
        let pids = gate.wait_for(2);
        let outlives: u32 = fs::read_to_string(gate.file("outlives")).unwrap().parse().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        eventually("the other one is gone", || pids.iter().all(|pid| *pid == outlives || !runs(*pid)));
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

fn no_zombies_stay_while_the_parent_runs() {
    assert_eq!(play("forgets_children").play_out(), "");
}

fn forgets_children() {
    for method in METHODS {
        for _ in 0..20 {
            drop(Process::new(pid::task()).start_method(method).start().unwrap());
        }
        // Nobody asks for them.
        eventually("all were reaped", || children().iter().all(|(_, state, _)| *state != 'Z'));
    }
    eventually("but for the fork server none is there", || children().len() <= 1);
    // Where somebody else has reaped it, nobody waits for ever.
    let gate = Gate::new();
    let child = Process::new(hold::task(gate.path())).start().unwrap();
    gate.wait_for(1);
    child.kill().unwrap();
    assert_eq!(child.wait_exit(), ExitStatus::Signaled(libc::SIGKILL));
}

// ---- a terminal ----------------------------------------------------------------------------------------------------

fn ctrl_c_at_a_terminal_ends_three_levels() {
    for method in METHODS {
        let gate = Gate::new();
        let mut play = play("waits_below").argument(to_argument(method, "wait", gate.path()));
        let (mut ours, mut theirs) = (0, 0);
        // SAFETY: writes two descriptors, which nobody else knows.
        let (ours, theirs) = unsafe {
            let made =
                libc::openpty(&mut ours, &mut theirs, ptr::null_mut(), ptr::null_mut(), ptr::null_mut());
            assert_eq!(made, 0);
            (OwnedFd::from_raw_fd(ours), OwnedFd::from_raw_fd(theirs))
        };
        let stream = || Stdio::from(theirs.try_clone().unwrap());
        play.command.stdin(stream()).stdout(stream()).stderr(stream());
        // SAFETY: system calls only, between fork and exec: a session of its own, with this terminal.
        unsafe {
            play.command.pre_exec(|| {
                if libc::setsid() < 0 || libc::ioctl(0, libc::TIOCSCTTY, 0) < 0 {
                    return Err(std::io::Error::last_os_error());
                }
                Ok(())
            })
        };
        let mut child = play.command.spawn().unwrap();
        // The command keeps descriptors of the terminal, whose end would not be seen.
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
        // All that is left to be read, until nobody has the other end any more (EIO).
        let mut some = [0; 100];
        while let Ok(len @ 1..) = terminal.read(&mut some) {
            said.extend_from_slice(&some[..len]);
        }
        assert_eq!(String::from_utf8_lossy(&said), "ready\r\n^C", "nothing but the terminal's own `^C`");
    }
}
