//! Programs that children start, and how they end when the children end, in whatever way.

#[macro_use]
mod plays;
mod support;

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use executor::{
    CgroupLimits, Child, Context, ExitStatus, Process, ProcessPoolBuilder, StartMethod, prelude::*,
};
use plays::{assert_nothing_left, fine, method, play, with_each};
use rustix::process::Signal;
use support::{Gate, LONG, eventually, pid, runs};

list! { TESTS:
    programs_started_by_a_process_end_with_it_however_it_ends,
    keep_programs_keeps_them_only_after_a_successful_end,
    programs_started_by_a_daemon_end_with_it,
    a_program_started_by_a_preload_ends_with_its_fork_server,
    programs_end_with_their_process_when_sigchld_is_ignored,
    children_of_a_killed_fork_server_go_on,
    daemons_in_control_groups_end_with_a_killed_program,
}

list! { PROGRAMS:
    has_processes_that_end,
    keeps_programs,
    has_a_daemon,
    preloads_a_program,
    ignores_the_ends_of_its_children,
    kills_its_server,
    has_control_groups,
    has_a_daemon_in_a_control_group,
}

fn main() {
    plays::main(TESTS, PROGRAMS);
}

/// Starts a program and leaves a note with its pid at the gate.
#[expect(clippy::zombie_processes, reason = "it is to be left behind")]
fn start_a_program(gate: &Path) {
    let program = Command::new("sleep").arg("1000").spawn().expect("`sleep`");
    File::create(gate.join(format!("arrival-{}-program", program.id())))
        .expect("a note at the gate");
}

#[track_caller]
fn ended<T>(child: &Child<T>) -> ExitStatus {
    child.wait_exit_timeout(LONG).expect("it ends")
}

#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
enum End {
    Returns,
    Fails,
    Panics,
    Exits(i32),
    Aborts,
    Forever,
}

const ENDS: [End; 7] = [
    End::Returns,
    End::Fails,
    End::Panics,
    End::Exits(0),
    End::Exits(3),
    End::Aborts,
    End::Forever,
];

#[task]
fn starts_and_ends(gate: &Path, end: End) -> Result<(), String> {
    start_a_program(gate);
    match end {
        End::Returns => {}
        End::Fails => return Err("it failed".into()),
        End::Panics => std::panic::resume_unwind(Box::new("without a word")),
        End::Exits(code) => std::process::exit(code),
        End::Aborts => std::process::abort(),
        End::Forever => loop {
            thread::park();
        },
    }
    Ok(())
}

fn programs_started_by_a_process_end_with_it_however_it_ends() {
    with_each("has_processes_that_end");
}

/// Ways in which the parent ends a process that would run for ever.
const SENT: [fn(&Child<()>); 4] = [
    |child| child.terminate().unwrap(),
    |child| child.kill().unwrap(),
    |child| child.interrupt().unwrap(),
    |child| child.kill_tree(),
];

fn has_processes_that_end() {
    for end in ENDS {
        let sends: &[_] = if end == End::Forever { &SENT } else { &[|_| ()] };
        for (number, send) in sends.iter().enumerate() {
            let gate = Gate::new();
            let task = starts_and_ends::task(gate.path(), end);
            let child = Process::new(task).start_method(method()).start().unwrap();
            let program = gate.wait_for(1)[0];
            send(&child);
            ended(&child);
            eventually(&format!("the program is gone: {end:?}, {number}"), || !runs(program));
        }
    }
    // A timeout is the fifth way.
    let gate = Gate::new();
    let task = starts_and_ends::task(gate.path(), End::Forever).timeout(Duration::from_millis(500));
    let child = Process::new(task).start_method(method()).start().unwrap();
    ended(&child);
    eventually("the program is gone", || gate.arrivals().iter().all(|program| !runs(*program)));
    fine();
}

fn keep_programs_keeps_them_only_after_a_successful_end() {
    with_each("keeps_programs");
}

fn keeps_programs() {
    for end in ENDS {
        let gate = Gate::new();
        let task = starts_and_ends::task(gate.path(), end);
        let child = Process::new(task).keep_programs(true).start_method(method()).start().unwrap();
        let program = gate.wait_for(1)[0];
        if end == End::Forever {
            child.kill().unwrap();
        }
        ended(&child);
        if matches!(end, End::Returns | End::Exits(0)) {
            // This is decided by the time the child can be joined, so there is no need to wait.
            assert!(runs(program), "{end:?}");
            assert!(!child.is_alive());
            child.kill_tree();
        }
        eventually(&format!("the program is gone: {end:?}"), || !runs(program));
    }
    fine();
}

fn programs_started_by_a_daemon_end_with_it() {
    with_each("has_a_daemon");
}

fn has_a_daemon() {
    let gate = Gate::new();
    let task = starts_and_ends::task(gate.path(), End::Forever);
    Process::new(task).daemon(true).start_method(method()).start().unwrap();
    gate.wait_for(1);
    // `play_out` checks that no process is left.
    fine();
}

#[task]
fn starts(gate: &Path) {
    start_a_program(gate);
}

fn a_program_started_by_a_preload_ends_with_its_fork_server() {
    assert_eq!(play("preloads_a_program").play_out(), "fine\n");
}

fn preloads_a_program() {
    let gate = Gate::new();
    let context = Context::new(StartMethod::ForkServer).preload(starts::task(gate.path()));
    let child = context.process(pid::task()).start().unwrap();
    child.join_timeout(LONG).unwrap().unwrap();
    let program = gate.wait_for(1)[0];
    assert!(runs(program));
    drop((child, context));
    eventually("the program is gone", || !runs(program));
    fine();
}

fn children_of_a_killed_fork_server_go_on() {
    assert_eq!(play("kills_its_server").play_out(), "fine\n");
}

fn kills_its_server() {
    let gate = Gate::new();
    let context = Context::new(StartMethod::ForkServer).preload(starts::task(gate.path()));
    let hold = || context.process(support::hold::task(gate.path())).start().unwrap();
    let mut held = vec![hold()];
    for _ in 0..20 {
        let server = support::children().into_iter().map(|(pid, ..)| pid);
        let server =
            server.filter(|pid| held.iter().all(|child| child.pid() != *pid)).max().unwrap();
        support::signal(server, Signal::KILL);
        held.push(hold());
        assert!(held.iter().all(|child| child.is_alive()));
    }
    gate.open();
    for child in &held {
        assert_eq!(child.join_timeout(LONG).unwrap().unwrap(), child.pid());
    }
    fine();
}

fn programs_end_with_their_process_when_sigchld_is_ignored() {
    with_each("ignores_the_ends_of_its_children");
}

fn ignores_the_ends_of_its_children() {
    // SAFETY: only sets a disposition. From now on the system reaps all children.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
    if method() == StartMethod::Spawn {
        let pool = ProcessPoolExecutor::builder().max_workers(1).build().unwrap();
        for end in [End::Aborts, End::Exits(0)] {
            let gate = Gate::new();
            pool.submit(starts_and_ends::task(gate.path(), end)).result().unwrap_err();
            let program = gate.wait_for(1)[0];
            eventually(&format!("the program is gone: {end:?}"), || !runs(program));
        }
        drop(pool);
    }
    for end in ENDS.into_iter().filter(|end| *end != End::Forever) {
        for keep in [false, true] {
            let gate = Gate::new();
            let task = starts_and_ends::task(gate.path(), end);
            let child =
                Process::new(task).keep_programs(keep).start_method(method()).start().unwrap();
            let program = gate.wait_for(1)[0];
            ended(&child);
            if keep && end == End::Returns {
                assert!(runs(program), "{end:?}");
                child.kill_tree();
            }
            eventually(&format!("the program is gone: {end:?}, {keep}"), || !runs(program));
        }
    }
    fine();
}

/// Starts a program in a session of its own, whose parent has ended.
#[task]
fn starts_a_daemon() {
    let script = "setsid sh -c 'sleep 1000 >/dev/null 2>&1 &'";
    assert!(Command::new("sh").args(["-c", script]).status().expect("a shell").success());
}

fn in_control_groups() -> ProcessPoolBuilder {
    ProcessPoolExecutor::builder().max_workers(2).cgroup(CgroupLimits::default())
}

/// Says whether this program may have control groups. If it may, the groups are removed that killed
/// programs have left.
fn has_control_groups() {
    match in_control_groups().build() {
        Ok(_) => fine(),
        Err(error) => println!("left out: {error}"),
    }
}

fn has_a_daemon_in_a_control_group() {
    let pool = in_control_groups().start_method(method()).build().unwrap();
    pool.submit(starts_a_daemon::task()).result().unwrap();
    println!("ready");
    loop {
        thread::park();
    }
}

/// Returns the control groups below this program's own that belong to the executors of a program.
fn groups_of(program: u32) -> Vec<PathBuf> {
    let read = |path: &str| fs::read_to_string(path).expect(path);
    let (groups, mounts) = (read("/proc/self/cgroup"), read("/proc/self/mountinfo"));
    let own = groups.lines().find_map(|line| line.strip_prefix("0::/")).expect("version 2");
    let mount = mounts.lines().find(|line| line.contains(" - cgroup2 ")).expect("it is mounted");
    let own = Path::new(mount.split(' ').nth(4).expect("a place")).join(own);
    let begins = format!("executor-{program}-");
    let entries = fs::read_dir(own).expect("it is there").map(|entry| entry.expect("an entry"));
    let names = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(&begins));
    names.map(|entry| entry.path()).collect()
}

fn daemons_in_control_groups_end_with_a_killed_program() {
    let said = play("has_control_groups").play_out();
    if said != "fine\n" {
        return print!("{said}");
    }
    for method in ["Spawn", "ForkServer"] {
        let play = play("has_a_daemon_in_a_control_group").argument(method);
        let (mut program, _stdout, tag) = play.until_it_speaks();
        let pid = program.id();
        assert_eq!(groups_of(pid).len(), 1);
        program.kill().unwrap();
        program.wait().unwrap();
        // Each worker kills what is in its group.
        assert_nothing_left(&tag);
        // The next program removes the group.
        eventually("the group is removed", || {
            play_again();
            groups_of(pid).is_empty()
        });
    }
}

fn play_again() {
    assert_eq!(play("has_control_groups").play_out(), "fine\n");
}
