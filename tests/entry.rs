//! How a program becomes a worker: programs started by others, by hand, with privileges or without
//! devices.

#[macro_use]
mod plays;
#[path = "programs/builder.rs"]
mod programs;
mod support;

use std::{
    fs::{self, File},
    io::{BufRead, Read, Write},
    os::{
        fd::OwnedFd,
        unix::{
            fs::{PermissionsExt, chown},
            net::UnixStream,
            process::CommandExt,
        },
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use executor::{Context, Process, StartMethod, prelude::*};
use plays::{Play, argument, assert_nothing_left, play, ready};
use rustix::process::Signal;
use support::{
    Gate, children, come_to, echo, eventually, hold, pool, runs, signal, state, watchdog,
};
use tempfile::TempDir;

list! { TESTS:
    without_devices_main_runs_once_and_tasks_run,
    typing_the_marker_by_hand_prints_one_line_and_runs_no_main,
    a_started_program_that_lost_its_socket_exits_and_does_not_run_main,
    a_child_that_cannot_become_a_worker_reports_what_it_tried,
    a_privileged_copy_does_not_become_a_worker,
    a_socket_that_another_user_made_is_not_read,
    a_privileged_program_gets_an_error_instead_of_workers,
    children_started_while_the_user_changes_become_workers,
    functions_with_the_same_name_are_distinguished,
    a_program_started_through_the_loader_has_workers,
    a_program_started_through_the_loader_reports_that_its_file_is_gone,
    the_children_of_a_program_that_replaces_itself_end,
    stopped_children_end_with_their_parent,
    a_process_that_has_returned_its_value_may_end_slowly,
}

list! { PROGRAMS:
    adds,
    tells_that_main_runs,
    starts_scripts,
    starts_a_victim,
    starts_a_pool_with_its_privileges,
    starts_children_while_its_user_changes,
    starts_a_pool_without_its_file,
    replaces_itself,
    has_children_of_all_kinds,
    joins_who_takes_its_time,
}

fn main() {
    plays::main(TESTS, PROGRAMS);
}

/// The user `nobody`: it has no rights, and is not the user that runs the tests.
const NOBODY: u32 = 65534;

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

// ---- without devices ----------------------------------------------------------------------------

fn without_devices_main_runs_once_and_tasks_run() {
    let Play { command: played, .. } = play("adds");
    // Use separate namespaces, so that the end of the first process ends all the others.
    let mut command = Command::new("unshare");
    command.args(["-mpf", "--kill-child", "sh", "-c", "mount -t tmpfs none /dev && exec \"$0\""]);
    command.arg(played.get_program());
    command.envs(played.get_envs().filter_map(|(key, value)| Some((key, value?))));
    let trial =
        Command::new("unshare").args(["-mpf", "mount", "-t", "tmpfs", "none", "/dev"]).output();
    if !trial.is_ok_and(|output| output.status.success()) {
        println!("skipped: this user may not make an empty /dev");
        return;
    }
    let _watchdog = watchdog();
    let output = command.stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(said, "main\nOk(3)\nOk(3)\nOk(3)\n", "{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success());
}

/// Adds two numbers. It also reads its standard input, which must be empty.
#[task]
fn add(a: u32, b: u32) -> u32 {
    assert_eq!(std::io::stdin().read(&mut [0]).unwrap(), 0);
    a + b
}

fn adds() {
    println!("main");
    let pool = pool(1);
    println!("{:?}", pool.submit(add::task(1, 2)).result().map_err(|error| format!("{error:?}")));
    println!(
        "{:?}",
        Process::new(add::task(1, 2)).start().unwrap().join().map_err(|error| format!("{error:?}"))
    );
    let context = executor::Context::new(executor::StartMethod::ForkServer);
    println!(
        "{:?}",
        context
            .process(add::task(1, 2))
            .start()
            .unwrap()
            .join()
            .map_err(|error| format!("{error:?}"))
    );
}

// ---- the marker without a parent ----------------------------------------------------------------

const MARKER: &str = "--executor-worker";

fn tells_that_main_runs() {
    println!("main of {}", rustix::process::geteuid().as_raw());
}

fn typing_the_marker_by_hand_prints_one_line_and_runs_no_main() {
    let (stream, _other) = UnixStream::pair().unwrap();
    let (datagram, _other) = std::os::unix::net::UnixDatagram::pair().unwrap();
    let alone = rustix::net::socket(
        rustix::net::AddressFamily::UNIX,
        rustix::net::SocketType::SEQPACKET,
        None,
    );
    let inputs: Vec<(&str, Stdio)> = vec![
        ("nothing", Stdio::null()),
        ("a pipe", Stdio::piped()),
        ("a file", File::open("/proc/self/status").unwrap().into()),
        ("a stream", OwnedFd::from(stream).into()),
        ("a datagram socket", OwnedFd::from(datagram).into()),
        ("a socket with nobody behind it", alone.unwrap().into()),
    ];
    for (what, input) in inputs {
        let mut command = play("tells_that_main_runs").command;
        let output = command.arg(MARKER).stdin(input).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(
            (output.status.code(), &*output.stdout),
            (Some(2), &b""[..]),
            "{what}: {stderr}"
        );
        assert!(stderr.contains(MARKER) && stderr.lines().count() == 1, "{what}: {stderr}");
    }
    let mut command = play("tells_that_main_runs").command;
    let output = command.args(["first", MARKER]).output().unwrap();
    assert!(
        output.stdout.starts_with(b"main of"),
        "the marker stands first, or it is a program's own argument"
    );
}

/// Writes a script that starts this program in its own way.
fn script(directory: &TempDir, name: &str, line: &str) -> PathBuf {
    let path = directory.path().join(name);
    let own = std::env::current_exe().unwrap();
    fs::write(&path, line.replace("PROGRAM", &format!("'{}'", own.display()))).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

fn starts_scripts() {
    println!("main");
    let child = Process::new(add::task(1, 2)).executable(argument()).start().unwrap();
    println!("{}", child.join().unwrap_err());
}

fn a_started_program_that_lost_its_socket_exits_and_does_not_run_main() {
    let directory = tempfile::tempdir().unwrap();
    // Limited to three times, in case each one starts the next.
    let line = "#!/bin/sh\necho >>$0.log; [ $(wc -l <$0.log) -gt 3 ] && exit 7\nexec PROGRAM \"$@\" </dev/null 2>/dev/null\n";
    let loses = script(&directory, "loses", line);
    let said = play("starts_scripts").argument(loses).play_out();
    let mut lines = said.lines();
    assert_eq!(lines.next(), Some("main"), "{said}");
    assert!(lines.next().is_some_and(|line| line.contains("exited with code 2")), "{said}");
    assert_eq!(lines.next(), None, "main runs once");
}

fn a_child_that_cannot_become_a_worker_reports_what_it_tried() {
    let directory = tempfile::tempdir().unwrap();
    // Only four descriptors, of which the socket takes the last one.
    let starves = script(&directory, "starves", "#!/bin/sh\nulimit -n 4\nexec PROGRAM \"$@\"\n");
    let said = play("starts_scripts").argument(starves).play_out();
    assert!(said.starts_with("main\n") && said.contains("/dev/null"), "{said}");
    assert!(said.contains("Too many open files"), "{said}");
}

// ---- privileges ---------------------------------------------------------------------------------

/// Copies of this executable in a directory that everybody may enter.
struct Copies(TempDir);

impl Copies {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        Copies(directory)
    }

    fn make(&self, name: &str, mode: u32) -> PathBuf {
        let path = self.0.path().join(name);
        fs::copy(std::env::current_exe().unwrap(), &path).unwrap();
        chown(&path, Some(0), Some(0)).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    /// Makes a copy with a capability that whoever starts it receives. Returns `None` if the file
    /// system does not support capabilities.
    fn with_capability(&self, name: &str) -> Option<PathBuf> {
        let path = self.make(name, 0o755);
        // `struct vfs_cap_data`, revision 2: CAP_NET_RAW (13), permitted and effective.
        let words: [u32; 5] = [0x0200_0001, 1 << 13, 0, 0, 0];
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        rustix::fs::setxattr(&path, "security.capability", &bytes, rustix::fs::XattrFlags::empty())
            .ok()?;
        Some(path)
    }

    /// Every way in which a file grants privileges to the user who starts it, as far as this system
    /// supports it.
    fn privileged(&self) -> Vec<(&'static str, PathBuf)> {
        let mut all =
            vec![("setuid", self.make("setuid", 0o4755)), ("setgid", self.make("setgid", 0o2755))];
        match self.with_capability("capable") {
            Some(path) => all.push(("capabilities", path)),
            None => println!("skipped: no capabilities of files here"),
        }
        let mut trial =
            as_nobody(play_file(&self.make("trial", 0o4755), "tells_that_main_runs")).command;
        if trial.output().unwrap().stdout != b"main of 0\n" {
            println!("skipped: this file system gives no privileges");
            all.clear();
        }
        all
    }
}

fn play_file(file: &Path, program: &str) -> Play {
    let Play { command, tag } = play(program);
    let mut other = Command::new(file);
    other.envs(command.get_envs().filter_map(|(key, value)| Some((key, value?))));
    other.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    Play { command: other, tag }
}

fn as_nobody(mut play: Play) -> Play {
    play.command.uid(NOBODY).gid(NOBODY);
    play
}

#[task]
fn who() -> (u32, u32) {
    let (own, acting) = (rustix::process::getuid(), rustix::process::geteuid());
    (own.as_raw(), acting.as_raw())
}

/// Does what an attacker would do: the argument and the socket are those of a child, but the file
/// is another one.
fn starts_a_victim() {
    let child = Process::new(who::task())
        .executable(argument())
        .env("EXECUTOR_TEST_PROGRAM", "tells_that_main_runs");
    match child.start().unwrap().join() {
        Ok((own, acting)) => println!("a task has run as {own}, acting as {acting}"),
        Err(error) => println!("{error:?}"),
    }
}

fn a_privileged_copy_does_not_become_a_worker() {
    if !is_root() {
        println!("skipped: only root can give privileges to a file");
        return;
    }
    let copies = Copies::new();
    let plain = copies.make("plain", 0o755);
    let said = as_nobody(play_file(&plain, "starts_a_victim")).argument(&plain).play_out();
    assert_eq!(
        said,
        format!("a task has run as {NOBODY}, acting as {NOBODY}\n"),
        "with its own rights it may"
    );
    for (how, victim) in copies.privileged() {
        let said = as_nobody(play_file(&plain, "starts_a_victim")).argument(&victim).play_out();
        assert!(!said.contains("a task has run"), "{how}: {said}");
        match how {
            "setuid" => assert!(said.starts_with("main of 0\n"), "{how}: {said}"),
            "setgid" => assert!(said.starts_with(&format!("main of {NOBODY}\n")), "{how}: {said}"),
            // With capabilities the user stays the same. So this process could be the child of a
            // privileged program, and it must not run `main`.
            _ => assert!(said.contains("privileges that its starter has not"), "{how}: {said}"),
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "the child has nothing to read")]
fn a_socket_that_another_user_made_is_not_read() {
    if !is_root() {
        println!("skipped: only root has files that act as another user");
        return;
    }
    // As with a program started by `sudo`: all of its ids are root's, and its input belongs to the
    // other user.
    let maker = std::thread::spawn(|| {
        // SAFETY: changes the effective user of this thread only (the C library's function would
        // change all threads). The thread ends soon.
        let changed =
            unsafe { libc::syscall(libc::SYS_setresuid, -1_i64, i64::from(NOBODY), -1_i64) };
        assert_eq!(changed, 0);
        rustix::net::socketpair(
            rustix::net::AddressFamily::UNIX,
            rustix::net::SocketType::SEQPACKET,
            rustix::net::SocketFlags::CLOEXEC,
            None,
        )
        .unwrap()
    });
    let (ours, theirs) = maker.join().unwrap();
    let mut command = play("tells_that_main_runs").command;
    let _watchdog = watchdog();
    let output = command.arg(MARKER).stdin(theirs).output().unwrap();
    assert_eq!((&*String::from_utf8_lossy(&output.stdout), output.status.code()), ("", Some(1)));
    drop(command);
    // The peer is told why, and nothing else happens.
    let mut told = [0; 1024];
    let (len, _) =
        rustix::net::recv(&ours, &mut told[..], rustix::net::RecvFlags::DONTWAIT).unwrap();
    let told = String::from_utf8_lossy(&told[..len]);
    assert!(told.contains(&format!("user {NOBODY} of group 0 made the socket")), "{told}");
}

/// Number of children of each kind started while the user changes.
const USER_ROUNDS: u64 = 10;

const AGAIN: &str = "EXECUTOR_TEST_AGAIN";

/// Starts workers with all privileges, with none, or while temporarily acting as another user.
fn starts_a_pool_with_its_privileges() {
    println!("main");
    // The variable is inherited by child processes. If a child turns out to be this program again,
    // it stops here.
    if std::env::var_os(AGAIN).is_some() {
        std::process::exit(9);
    }
    // SAFETY: this program has one thread.
    unsafe { std::env::set_var(AGAIN, "") };
    let kept = argument();
    if kept != "all" {
        // SAFETY: this program has one thread.
        let changed = unsafe {
            match &*kept {
                "none" => {
                    libc::setresuid(NOBODY, NOBODY, NOBODY)
                        | libc::setresgid(NOBODY, NOBODY, NOBODY)
                }
                "acting" => libc::seteuid(NOBODY),
                other => panic!("{other}"),
            }
        };
        assert_eq!(changed, 0);
    }
    println!("{:?}", pool(1).submit(echo::task(7)).result().map_err(|error| format!("{error:?}")));
    println!(
        "{:?}",
        Process::new(echo::task(7)).start().map(drop).map_err(|error| format!("{error:?}"))
    );
    std::io::stdout().flush().unwrap();
}

fn a_privileged_program_gets_an_error_instead_of_workers() {
    if !is_root() {
        println!("skipped: only root can give privileges to a file");
        return;
    }
    let copies = Copies::new();
    let mut plays = vec![(
        "an acting user".to_owned(),
        play_file(&copies.make("plain", 0o755), "starts_a_pool_with_its_privileges")
            .argument("acting"),
    )];
    for (how, file) in copies.privileged() {
        let play = |kept: &str| {
            as_nobody(play_file(&file, "starts_a_pool_with_its_privileges")).argument(kept)
        };
        plays.push((format!("{how}, with all"), play("all")));
        if how == "setuid" {
            // The setuid bit would give the privileges to the worker again.
            plays.push((format!("{how}, dropped"), play("none")));
        }
    }
    for (how, play) in plays {
        let said = play.play_out();
        let lines: Vec<_> = said.lines().collect();
        assert_eq!((lines.len(), lines[0]), (3, "main"), "{how}: {said}");
        for line in &lines[1..] {
            assert!(line.starts_with("Err") && line.contains("privileges"), "{how}: {said}");
        }
    }
}

#[task]
fn sum(bytes: Vec<u8>) -> u64 {
    bytes.into_iter().map(u64::from).sum()
}

/// Starts children while another thread switches all threads to another user and back to root. For
/// each change, the C library sends a signal to every thread.
fn starts_children_while_its_user_changes() {
    println!("main");
    // The variable is inherited by child processes. If a child turns out to be this program again,
    // it stops here.
    if std::env::var_os(AGAIN).is_some() {
        std::process::exit(9);
    }
    // SAFETY: this program has one thread.
    unsafe { std::env::set_var(AGAIN, "") };
    let is_over = AtomicBool::new(false);
    let changes = std::thread::scope(|scope| {
        let changer = scope.spawn(|| {
            let mut changes = 0_u64;
            while !is_over.load(Ordering::Relaxed) {
                for user in [NOBODY, 0] {
                    // SAFETY: only changes this program's user ids. The saved id stays root, so
                    // there is a way back. Only the real and effective ids decide whether a program
                    // is privileged, so this program does not count as one.
                    assert_eq!(unsafe { libc::setresuid(user, user, 0) }, 0);
                }
                changes += 1;
                // Each change interrupts every thread. Without pauses no thread would make
                // progress.
                std::thread::sleep(Duration::from_micros(50));
            }
            changes
        });
        for round in 0..USER_ROUNDS {
            // Catch the panic, so that the flag is set even if this fails: the scope waits for the
            // other thread.
            let started = std::panic::catch_unwind(|| {
                assert_eq!(pool(1).submit(echo::task(round)).result().unwrap(), round);
                for method in [StartMethod::Spawn, StartMethod::ForkServer] {
                    // A context of its own, so that its fork server is started as well.
                    let child = Context::new(method).process(echo::task(round)).start().unwrap();
                    assert_eq!(child.join().unwrap(), round, "{method:?}");
                }
                // Arguments that do not fit into the first message are written to a file.
                let long = vec![1; 100_000];
                assert_eq!(Process::new(sum::task(long)).start().unwrap().join().unwrap(), 100_000);
            });
            if started.is_err() {
                println!("round {round}");
                break;
            }
        }
        is_over.store(true, Ordering::Relaxed);
        changer.join().unwrap()
    });
    println!("{}", if changes > 0 { "changed" } else { "was the same all the time" });
    std::io::stdout().flush().unwrap();
}

fn children_started_while_the_user_changes_become_workers() {
    if !is_root() {
        println!("skipped: only root can become another user");
        return;
    }
    assert_eq!(play("starts_children_while_its_user_changes").play_out(), "main\nchanged\n");
}

// ---- names --------------------------------------------------------------------------------------

fn functions_with_the_same_name_are_distinguished() {
    let program =
        programs::build("dev", &["--bin", "executor-test-programs"]).join("executor-test-programs");
    let _watchdog = watchdog();
    let output = Command::new(program).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "told apart\n", "{stderr}");
    assert!(output.status.success(), "{stderr}");
}

// ---- started by the loader ----------------------------------------------------------------------

/// Returns the system's dynamic loader, if it is where glibc puts it.
fn loader() -> Option<&'static str> {
    let places = ["/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1"];
    let found = places.into_iter().find(|place| Path::new(place).exists());
    if found.is_none() {
        println!("skipped: no loader at {places:?}");
    }
    found
}

/// The same program, started through the dynamic loader.
fn by_loader(play: Play, loader: &str, options: &[&str], program: &Path) -> Play {
    let mut command = Command::new(loader);
    command.args(options).arg(program);
    command.envs(play.command.get_envs().filter_map(|(key, value)| Some((key, value?))));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    Play { command, tag: play.tag }
}

fn a_program_started_through_the_loader_has_workers() {
    let Some(loader) = loader() else { return };
    let file = std::env::current_exe().unwrap();
    let (folder, name) = (file.parent().unwrap(), file.file_name().unwrap());
    let from_folder = Path::new(".").join(name);
    for options in [&[][..], &["--library-path", "/nowhere"]] {
        for program in [&file, &from_folder] {
            let mut play = by_loader(play("adds"), loader, options, program);
            play.command.current_dir(folder);
            assert_eq!(play.play_out(), "main\nOk(3)\nOk(3)\nOk(3)\n", "{options:?} {program:?}");
        }
    }
}

fn starts_a_pool_without_its_file() {
    fs::remove_file(argument()).unwrap();
    println!("{:?}", pool(1).submit(echo::task(7)).result().map_err(|error| format!("{error:?}")));
    println!(
        "{:?}",
        Process::new(echo::task(7)).start().map(drop).map_err(|error| format!("{error:?}"))
    );
}

fn a_program_started_through_the_loader_reports_that_its_file_is_gone() {
    let Some(loader) = loader() else { return };
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("program");
    fs::copy(std::env::current_exe().unwrap(), &file).unwrap();
    let play =
        by_loader(play("starts_a_pool_without_its_file").argument(&file), loader, &[], &file);
    let said = play.play_out();
    assert_eq!(said.lines().count(), 2, "{said}");
    for line in said.lines() {
        assert!(line.starts_with("Err"), "{said}");
        assert!(line.contains("dynamic loader") && line.contains(file.to_str().unwrap()), "{said}");
    }
}

// ---- children without their parent --------------------------------------------------------------

/// Starts one child of each kind that ends with its parent, and waits until all are at the gate.
/// Returns their pids and that of the fork server. A thread that has ended starts them.
fn children_of_all_kinds(gate: &Path) -> Vec<u32> {
    let path = gate.to_owned();
    let start = move || {
        let pool = pool(1);
        let future = pool.submit(hold::task(&path));
        std::mem::forget((pool, future));
        Process::new(hold::task(&path)).start().unwrap();
        let context = executor::Context::new(executor::StartMethod::ForkServer);
        context.process(hold::task(&path)).start().unwrap();
        std::mem::forget(context);
    };
    std::thread::spawn(start).join().unwrap();
    eventually("all are at the gate", || arrivals_at(gate) == 3);
    children().into_iter().map(|(pid, ..)| pid).collect()
}

fn arrivals_at(gate: &Path) -> usize {
    let names = fs::read_dir(gate).unwrap().map(|entry| entry.unwrap().file_name());
    names.filter(|name| name.to_string_lossy().starts_with("arrival-")).count()
}

fn say(children: &[u32]) {
    println!("ready");
    println!("{}", children.iter().map(u32::to_string).collect::<Vec<_>>().join(" "));
}

fn listen(stdout: &mut impl BufRead) -> Vec<u32> {
    let mut line = String::new();
    stdout.read_line(&mut line).unwrap();
    line.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

/// Replaces itself with another program. A forked copy goes on, with every descriptor that is not
/// closed in copies.
fn replaces_itself() {
    let gate = PathBuf::from(argument());
    let mut children = children_of_all_kinds(&gate);
    // SAFETY: the child only sleeps.
    let copy = unsafe { libc::fork() };
    if copy == 0 {
        loop {
            // SAFETY: only sleeps.
            unsafe { libc::pause() };
        }
    }
    children.push(copy as u32);
    say(&children);
    panic!("{}", Command::new("sleep").arg("1000").exec());
}

fn the_children_of_a_program_that_replaces_itself_end() {
    let _watchdog = watchdog();
    let gate = Gate::new();
    let (mut program, mut stdout, tag) =
        play("replaces_itself").argument(gate.path()).until_it_speaks();
    let mut children = listen(&mut stdout);
    let copy = children.pop().unwrap();
    assert_eq!(children.len(), 4, "a worker, a process, a fork server and its process");
    for child in children {
        eventually("it notices that nobody knows of it", || !runs(child));
    }
    assert!(runs(program.id()) && runs(copy), "they are none of ours");
    signal(copy, Signal::KILL);
    program.kill().unwrap();
    program.wait().unwrap();
    assert_nothing_left(&tag);
}

fn has_children_of_all_kinds() {
    say(&children_of_all_kinds(&PathBuf::from(argument())));
    loop {
        std::thread::park();
    }
}

fn stopped_children_end_with_their_parent() {
    let _watchdog = watchdog();
    // Orphans become our children. So their process group is not orphaned, and the kernel does not
    // send them SIGHUP. It is the same in a container whose first process is in the session.
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).unwrap();
    let gate = Gate::new();
    let (mut program, mut stdout, tag) =
        play("has_children_of_all_kinds").argument(gate.path()).until_it_speaks();
    let children = listen(&mut stdout);
    assert_eq!(children.len(), 4, "a worker, a process, a fork server and its process");
    for child in &children {
        signal(*child, Signal::STOP);
        eventually("it is stopped", || state(*child) == Some('T'));
    }
    program.kill().unwrap();
    program.wait().unwrap();
    assert_nothing_left(&tag);
    for child in children {
        let pid = rustix::process::Pid::from_raw(child as i32).unwrap();
        rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty()).unwrap();
    }
    rustix::process::set_child_subreaper(None).unwrap();
}

/// Returns its value at once. Its exit hook then waits at the gate, after the parent has received
/// the value.
#[task]
fn leaves_slowly(gate: PathBuf) -> u32 {
    executor::at_exit(0, move || come_to(&gate));
    7
}

fn joins_who_takes_its_time() {
    let gate = PathBuf::from(argument());
    let child = Process::new(leaves_slowly::task(gate.clone())).start().unwrap();
    eventually("it is at its end", || arrivals_at(&gate) == 1);
    // Starting another process makes sure that our side has read the first one's value, and would
    // by now have closed what it must not close.
    assert_eq!(Process::new(echo::task(1)).start().unwrap().join().unwrap(), 1);
    ready();
    println!("{:?} {:?}", child.join().map_err(|error| format!("{error:?}")), child.wait_exit());
}

fn a_process_that_has_returned_its_value_may_end_slowly() {
    let _watchdog = watchdog();
    let gate = Gate::new();
    let (program, mut stdout, _) =
        play("joins_who_takes_its_time").argument(gate.path()).until_it_speaks();
    gate.open();
    let mut said = String::new();
    stdout.read_to_string(&mut said).unwrap();
    assert_eq!(said, "Ok(7) Exited(0)\n");
    assert!(program.wait_with_output().unwrap().status.success());
}
