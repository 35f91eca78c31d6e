//! Runs the programs of the package `examples/tutorial` as their users run them, and an example
//! that consists of two programs, and checks their output. Each test has the name of its program,
//! with the numbers of the behaviors it covers in front.
//!
//! `cargo test --tests` does not build examples. So the first test that runs here builds them, in
//! the profile and target folder of this test. Nothing is built twice, and the other tests wait for
//! the build.
//!
//! The assertions about order hold under any load. Tests in `mp_pool.rs`, `se02_…` and `se18_…`,
//! show with gates instead of sleeps that four or five tasks begin at once.

mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::Permissions,
    io::{BufRead, BufReader},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
};

use support::watchdog_of;

/// Builds the programs if necessary, and returns their folder.
fn programs() -> &'static Path {
    static PROGRAMS: OnceLock<PathBuf> = OnceLock::new();
    PROGRAMS.get_or_init(|| {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        // This test is in `target/<profile>/deps/`.
        let own = std::env::current_exe().expect("a path");
        let [profile, target] = [2, 3].map(|up| own.ancestors().nth(up).expect("three levels up"));
        let name = profile.file_name().and_then(|name| name.to_str()).expect("a name of cargo's");
        let mut cargo = Command::new(env!("CARGO"));
        // The outer cargo has downloaded everything that the lock file names.
        cargo.current_dir(root).args(["build", "--offline", "--quiet"]);
        // With this package as well, the library has the same features as in this test.
        cargo.args(["-p", "executor-tutorial", "-p", "executor"]);
        cargo
            .args(["--profile", if name == "debug" { "dev" } else { name }])
            .arg("--target-dir")
            .arg(target);
        for entry in root.join("examples/tutorial/examples").read_dir().expect("the programs") {
            let path = entry.expect("an entry").path();
            cargo.arg("--example").arg(path.file_stem().expect("a program"));
        }
        cargo.args(["--example", "remote_manager"]);
        // These variables belong to the outer cargo, and are not meant for another build.
        cargo.env_remove("CARGO_MANIFEST_DIR").env_remove("RUSTC_WORKSPACE_WRAPPER");
        let output = cargo.output().expect("cargo starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        profile.join("examples")
    })
}

/// Runs a program to its end. Returns the lines that it and its workers print. Asserts that it
/// succeeds and prints nothing to stderr except std's panic messages.
#[track_caller]
fn run(name: &str) -> Vec<String> {
    // Building the programs may take minutes.
    let _watchdog = watchdog_of(std::time::Duration::from_secs(900));
    let program = programs().join(name);
    let output = Command::new(&program).env("RUST_BACKTRACE", "0").output();
    let output = output.unwrap_or_else(|error| panic!("{}: {error}", program.display()));
    let [stdout, stderr] =
        [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
    assert!(output.status.success(), "{name} {}\n{stdout}\n{stderr}", output.status);
    assert!(
        stderr.lines().all(|line| line.is_empty() || says_std(line)),
        "{name} complains: {stderr}"
    );
    stdout.lines().map(str::to_owned).collect()
}

/// Returns whether this is a line that std prints about a panic in a worker.
fn says_std(line: &str) -> bool {
    ["thread 'main'", "index out of bounds", "note: run with"]
        .iter()
        .any(|start| line.starts_with(start))
}

/// Returns the number between two texts.
#[track_caller]
fn between(line: &str, before: &str, after: &str) -> u32 {
    let rest = line.split_once(before).unwrap_or_else(|| panic!("`{before}` in {line:?}")).1;
    let number = if after.is_empty() { rest } else { rest.split_once(after).expect("its end").0 };
    number.parse().unwrap_or_else(|_| panic!("a number in {line:?}"))
}

/// Tracks which process runs which task. Fails if a process begins a second task before its first
/// has ended. Records the largest number of tasks that ran at the same time, and all processes.
struct Running {
    now: BTreeMap<u32, u32>,
    most: usize,
    processes: BTreeSet<u32>,
    /// How many tasks have ended in each process.
    ended: BTreeMap<u32, usize>,
}

impl Running {
    fn new() -> Self {
        Running {
            now: BTreeMap::new(),
            most: 0,
            processes: BTreeSet::new(),
            ended: BTreeMap::new(),
        }
    }

    #[track_caller]
    fn begins(&mut self, pid: u32, task: u32) {
        assert_eq!(
            self.now.insert(pid, task),
            None,
            "{pid} begins {task} in the middle of another"
        );
        self.most = self.most.max(self.now.len());
        self.processes.insert(pid);
    }

    #[track_caller]
    fn ends(&mut self, pid: u32, task: u32) {
        assert_eq!(self.now.remove(&pid), Some(task), "{pid} ends {task}");
        *self.ended.entry(pid).or_default() += 1;
    }
}

#[test]
fn d02_pool_of_four() {
    let lines = run("d02_pool_of_four");
    let parent = between(&lines[0], "Parent process ", ".");
    assert_eq!(lines.last().unwrap(), "All subprocesses done.");
    assert_eq!(
        lines.iter().filter(|line| *line == "Waiting for all subprocesses done...").count(),
        1
    );
    let mut running = Running::new();
    let mut begun = Vec::new();
    for line in &lines {
        if line.starts_with("Run task ") {
            let (task, pid) = (between(line, "Run task ", " ("), between(line, "(", ")"));
            begun.push(task);
            running.begins(pid, task);
        } else if line.starts_with("Task ") {
            running.ends(between(line, "(", ")"), between(line, "Task ", " ("));
        }
    }
    begun.sort_unstable();
    assert_eq!(begun, [0, 1, 2, 3, 4], "each once");
    assert!(
        running.most <= 4 && running.processes.len() <= 4 && !running.processes.contains(&parent)
    );
    // The fifth task begins after another one has ended, or in a process that starts late. Five
    // never run at a time.
    assert!(running.ended.values().any(|ended| *ended > 1), "one has run two: {lines:#?}");
    assert_eq!(running.ended.values().sum::<usize>(), 5, "the join waits for all");
}

#[test]
fn se09_d12_executor_of_four() {
    let lines = run("d12_executor_of_four");
    assert_eq!(lines.last().unwrap(), "main ends", "shutdown waits for all");
    let mut running = Running::new();
    for line in &lines[..lines.len() - 1] {
        let pid = between(line, " in ", "");
        match line.contains("begins") {
            true => running.begins(pid, between(line, "task ", " ")),
            false => running.ends(pid, between(line, "task ", " ")),
        }
    }
    assert!(running.most <= 4 && running.processes.len() <= 4, "{lines:#?}");
    assert_eq!(running.ended.values().sum::<usize>(), 10);
}

#[test]
fn se09_d13_done_callback() {
    let lines = run("d13_done_callback");
    let main = between(&lines[0], "main is ", "");
    assert_eq!(lines.last().unwrap(), "main ends");
    let callbacks: Vec<&String> =
        lines.iter().filter(|line| line.starts_with("callback")).collect();
    let mut values: Vec<u32> = callbacks.iter().map(|line| between(line, ": ", "")).collect();
    values.sort_unstable();
    assert_eq!(values, (0..10).map(|n| n * n).collect::<Vec<_>>(), "one for each");
    assert!(callbacks.iter().all(|line| between(line, "callback in ", ":") == main));
    let tasks = lines.iter().filter(|line| line.as_bytes()[0].is_ascii_digit());
    assert!(
        tasks.clone().count() == 10 && tasks.clone().all(|line| between(line, " in ", "") != main)
    );
}

#[test]
fn d22_pool_map() {
    assert_eq!(run("d22_pool_map"), ["[1, 4, 9]"]);
}

#[test]
fn d23_loop_or_pool() {
    let lines = run("d23_loop_or_pool");
    let sizes: Vec<u32> = lines.iter().map(|line| between(line, "size ", ":")).collect();
    assert_eq!(sizes, [100, 10_000, 1_000_000]);
    // How much faster the pool is depends on the machine and its load.
    assert!(lines.iter().all(|line| line.ends_with("same results")), "{lines:#?}");
}

#[test]
fn d24_apply_async() {
    assert_eq!(
        run("d24_apply_async"),
        ["one argument: 81", "several: 24", "many: [0, 1, 4, 9, 16]"]
    );
}

#[test]
fn d25_error_in_map() {
    let lines = run("d25_error_in_map");
    let failed = "task `d25_error_in_map::divide` failed: 12 divided by 0";
    assert_eq!(
        lines[..4],
        [
            format!("map: {failed}"),
            "value: 12".into(),
            format!("error: {failed}"),
            "value: 4".into()
        ]
    );
    let panic = &lines[4];
    assert!(
        panic.contains("d25_error_in_map.rs:") && panic.contains("the len is 2 but the index is 2"),
        "{panic}"
    );
    assert_eq!(lines[5..], ["the same pool: [12, 6, 4]"]);
}

#[test]
fn d26_starmap() {
    assert_eq!(run("d26_starmap"), ["[2, 12, 30]", "[10, 20, 30]", "[56]"]);
}

#[test]
fn d27_all_cpus_but_one() {
    let lines = run("d27_all_cpus_but_one");
    let (cpus, processes) =
        (between(&lines[0], "usable CPUs: ", ""), between(&lines[1], "processes: ", ""));
    assert_eq!(processes, (cpus - 1).max(1));
    assert_eq!(lines[2..], ["[1, 8, 27, 64, 125]"]);
}

#[test]
fn d33_five_workers() {
    let lines = run("d33_five_workers");
    assert_eq!((lines[0].as_str(), lines.last().unwrap().as_str()), ("--start--", "--end--"));
    let (begins, was): (Vec<&String>, Vec<&String>) =
        lines[1..lines.len() - 1].iter().partition(|line| line.contains("begins"));
    assert_eq!((begins.len(), was.len()), (7, 7));
    // The values come in the order of the tasks, each with the process in which its task began.
    let mut pids = Vec::new();
    for (n, line) in (1..).zip(&was) {
        assert!(line.starts_with(&format!("mark{n} was in ")), "{line}");
        pids.push(between(line, " was in ", ""));
        assert!(begins.iter().any(|begin| **begin == line.replace("was in", "begins in")));
    }
    let distinct: BTreeSet<u32> = pids.iter().copied().collect();
    assert!(distinct.len() <= 5, "seven tasks in five processes: {pids:?}");
}

#[test]
fn se03_d03_writer_and_reader() {
    let lines = run("d03_writer_and_reader");
    let read: Vec<_> = lines.iter().filter(|line| line.starts_with("Get ")).collect();
    assert_eq!(read, ["Get A from queue.", "Get B from queue.", "Get C from queue."]);
    assert!(lines.contains(&"the reader was ended by signal 15 (SIGTERM)".to_owned()), "{lines:?}");
    assert_eq!(lines.last().unwrap(), "and the queue still gives D");
}

#[test]
fn d09_queue_outlives_child() {
    assert_eq!(run("d09_queue_outlives_child"), ["0", "1", "2", "7 left"]);
}

#[test]
fn se07_se08_d11_tickets() {
    assert_eq!(
        run("d11_tickets"),
        ["50 tickets, 20 buyers: 20 sold, 30 left", "5 tickets, 20 buyers: 5 sold, 0 left"]
    );
}

#[test]
fn se10_d15_array_and_value() {
    assert_eq!(
        run("d15_array_and_value"),
        ["in the child:  [1, 4, 9, 16], sum 30", "in the parent: [1, 4, 9, 16], sum 30"]
    );
}

#[test]
fn d17_squares_in_a_queue() {
    assert_eq!(
        run("d17_squares_in_a_queue"),
        ["Queue elements:", "1", "4", "9", "16", "Queue is now empty!"]
    );
}

#[test]
fn se11_d18_pipe_until_end() {
    let lines = run("d18_pipe_until_end");
    let received: Vec<_> =
        lines.iter().filter_map(|line| line.strip_prefix("Received the message: ")).collect();
    assert_eq!(received, ["hello", "hey", "hru?"]);
    assert_eq!(lines.last().unwrap(), "the receiver has seen END");
}

#[test]
fn se16_d28_queue_in_a_pool() {
    let all: Vec<(u32, u32)> = (0..10).map(|number| (number, number * number)).collect();
    assert_eq!(run("d28_queue_in_a_pool"), [format!("{all:?}")]);
}

#[test]
fn se16_d28_manager_queue_in_a_pool() {
    let all: Vec<(u32, u32)> = (0..10).map(|number| (number, number * number)).collect();
    assert_eq!(run("d28_manager_queue_in_a_pool"), [format!("{all:?}")]);
}

#[test]
fn se06_d08_manager_of_mixed_types() {
    let expected = [r#"[(1, "1"), ("2", 2), (0.25, None)]"#, "[666]"];
    assert_eq!(run("d08_manager_of_mixed_types"), expected);
}

#[test]
fn d10_rlock_and_containers() {
    let lines = run("d10_rlock_and_containers");
    assert_eq!(lines.len(), 2, "{lines:?}");
    // The processes come in any order, and a dict keeps the order of insertion.
    let all = lines[0].trim_matches(['[', ']']).split("), ");
    let entries: BTreeSet<&str> = all.map(|entry| entry.trim_end_matches(')')).collect();
    let expected: Vec<String> = (0..10).map(|n| format!("(\"{n}\", {n}")).collect();
    assert!(entries.into_iter().eq(&expected), "{}", lines[0]);
    assert_eq!(lines[1], format!("{:?}", [-99; 10]));
}

#[test]
fn d16_records() {
    let before = ["Sam, Score: 10", "Adam, Score: 9", "Kevin, Score: 9", "Jeff, Score: 8"];
    let lines = run("d16_records");
    assert_eq!(lines[0], "New record added!");
    assert_eq!(lines[1..], before.map(|record| format!("Name: {record}")));
}

#[test]
fn se16_d29_look_before_get() {
    let got = (0..5).map(|item| format!("got {item}"));
    let rest = ["empty: true", "two consumers got 100 items, each once: true"].map(str::to_owned);
    assert_eq!(run("d29_look_before_get"), got.chain(rest).collect::<Vec<_>>());
}

#[test]
fn se01_d01_one_process() {
    let lines = run("d01_one_process");
    let parent = between(&lines[0], "Parent process ", ".");
    assert_eq!(lines[1], "Child process will start.");
    assert_ne!(between(&lines[2], "Run child process test (", ")"), parent);
    assert_eq!(lines[3..], ["Child process end."]);
}

#[test]
fn se04_d04_no_shared_list() {
    assert_eq!(run("d04_no_shared_list"), ["in the child: 1000 names", "in the parent: []"]);
}

#[test]
fn se04_d14_global_result() {
    assert_eq!(run("d14_global_result"), ["in the child: [1, 4, 9, 16]", "in the parent: []"]);
}

#[test]
fn se04_d30_fork() {
    let lines = run("d30_fork");
    let child = between(&lines[0], "child ", " of");
    let parent = between(&lines[0], " of ", ":");
    assert_eq!(
        lines,
        [
            format!("child {child} of {parent}: index 1"),
            format!("parent {parent} of {child}: index 1")
        ]
    );
    assert_ne!(child, parent);
}

#[test]
fn se05_d05_name_and_threads() {
    let lines = run("d05_name_and_threads");
    let parent = between(&lines[0], "parent MainProcess pid ", "");
    let child = between(&lines[1], "child subprocess pid ", " threads");
    assert_ne!(parent, child);
    assert_eq!(between(&lines[1], " threads ", ""), 2);
}

#[test]
fn d06_cpu_count() {
    let lines = run("d06_cpu_count");
    let (all, usable) = lines[0].split_once(" processors, ").unwrap();
    let usable: usize = usable.strip_suffix(" usable").unwrap().parse().unwrap();
    assert!((1..=all.parse().unwrap()).contains(&usable));
}

#[test]
fn d07_process_with_run() {
    let lines = run("d07_process_with_run");
    let parent = lines.iter().find(|line| line.starts_with("the parent is ")).unwrap();
    let parent = between(parent, "the parent is ", "");
    let child = lines.iter().find(|line| line.starts_with("the child's run")).unwrap();
    assert_ne!(between(child, " runs in ", ""), parent);
    assert_eq!(lines[2], format!("the parent's run runs in {parent}"));
}

#[test]
fn se12_d19_child_goes_on() {
    assert_eq!(run("d19_child_goes_on"), ["parent: the end", "child: 1", "child: 2", "child: 3"]);
}

#[test]
fn se12_d20_daemon() {
    assert_eq!(run("d20_daemon"), ["parent: the end"]);
}

#[test]
fn se12_d21_daemon_joined() {
    assert_eq!(run("d21_daemon_joined"), ["child: 1", "child: 2", "child: 3", "parent: the end"]);
}

#[test]
fn se17_d31_is_alive() {
    assert_eq!(run("d31_is_alive"), ["Process-1 and worker 2", "alive: true", "alive: false"]);
}

#[test]
fn se17_d35_join_with_limit() {
    assert_eq!(
        run("d35_join_with_limit"),
        ["is alive: true", "joined: false", "end main", "hello world"]
    );
}

#[test]
fn d32_process_with_fields() {
    assert_eq!(
        run("d32_process_with_fields"),
        ["the child ran at least 200 ms: true", "the parent measured more: true"]
    );
}

#[test]
fn d34_active_children() {
    let lines = run("d34_active_children");
    assert!(between(&lines[0], "cpu count: ", "") >= 1);
    assert_eq!(lines[1..], ["children: []"]);
}

#[test]
fn se19_d36_three_children() {
    let lines = run("d36_three_children");
    let listed: Vec<_> = lines.iter().filter(|line| line.starts_with("child ")).collect();
    let pids: BTreeSet<_> = listed.iter().map(|line| between(line, " pid ", "")).collect();
    assert_eq!((listed.len(), pids.len()), (3, 3), "{lines:?}");
    let ends: BTreeSet<_> = lines.iter().filter(|line| line.ends_with(" ends")).collect();
    assert_eq!(ends.len(), 3);
    assert_eq!(lines.last().unwrap(), "0 children left");
}

#[test]
fn g05_remote_manager() {
    let counted = r#"worker: counted [("a", 2), ("rose", 2), ("is", 1)]"#;
    assert_eq!(run("remote_manager"), [counted, "worker: the server is gone", counted]);
}

#[test]
fn g05_remote_manager_keeps_its_secrets_from_other_users() {
    let _watchdog = watchdog_of(std::time::Duration::from_secs(900));
    let folder = tempfile::tempdir().expect("a folder");
    // It was there before, and everybody could read it.
    let private = folder.path().join("private.pem");
    std::fs::write(&private, "old").expect("a file");
    std::fs::set_permissions(&private, Permissions::from_mode(0o644)).expect("its mode");
    let mut command = Command::new(programs().join("remote_manager"));
    command.arg("serve").arg(folder.path()).arg("127.0.0.1:0").stdout(Stdio::piped());
    let mut server = command.spawn().expect("it starts");
    let mut address = String::new();
    let says = server.stdout.take().expect("its output");
    let read = BufReader::new(says).read_line(&mut address);
    server.kill().and_then(|()| server.wait()).expect("it is killed");
    assert!(read.is_ok() && address.starts_with("127.0.0.1:"), "{address}");
    for secret in ["key", "private.pem"] {
        let file = folder.path().join(secret).metadata().expect("it was written");
        assert_eq!(file.permissions().mode() & 0o777, 0o600, "{secret}");
        assert!(file.len() > 30, "{secret}");
    }
}
