//! Counts the instructions of each task, which the load of the machine does not change, and its
//! processor time, which the load changes much less than the rate. Run it with
//! `cargo bench --bench hot_path`.
//!
//! ```text
//!  this process ── perf stat ──► itself, `--run map 1000`   parent ──► worker
//!               ── perf stat ──► itself, `--run map 3000`   parent ──► worker
//!  difference / 2000 tasks: start and end of the program cancel out
//! ```
//!
//! The processor time, of user code and kernel together, is what the two processes say of
//! themselves at their end. It is the median of five such differences. To count instructions, it
//! uses the first tool that works here:
//!
//! - `perf`, if the processor's counters can be read;
//! - valgrind's callgrind, in a version that supports `pidfd_open` and can start `/proc/self/exe`;
//! - single steps: this program traces itself, with a stop for each instruction. This is some
//!   thousand times slower than the processor, but needs nothing, and tells the parent's
//!   instructions from the worker's. The start of the program and the first tasks run at full
//!   speed.
//!
//! `-- --tool NAME` uses only the tool of this name, which may also be `time`; `-- --only N,M` runs
//! only these workloads. There is one worker. Only instructions of user code are counted, not those
//! of the kernel. Under a slow tool, the two sides wait for each other at other points, and the
//! pool takes the tasks for long ones and sends fewer of them ahead. So compare only figures of the
//! same tool with one another.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    path::Path,
    process::{Command, ExitCode, Stdio},
};

use executor::prelude::*;

#[task]
fn no_op(x: u64) -> u64 {
    x
}

const WORKLOADS: [(&str, &str); 5] = [
    ("trip", "submit, then the result, one at a time"),
    ("burst", "submitted one by one, then all results taken"),
    ("window", "256 in flight, results in order"),
    ("callbacks", "add_done_callback, then shutdown(true)"),
    ("map", "map, each item"),
];

/// The number of tasks in flight in the workload `window`.
const IN_FLIGHT: u64 = 256;

/// Instructions of the parent, of the worker, and of both.
type Counts = BTreeMap<&'static str, f64>;

/// A tool: its name, a function that counts the instructions of a number of tasks of a workload,
/// and the numbers of tasks (few and many) for a full and for a quick run.
type Tool = (&'static str, fn(&str, u64) -> Option<Counts>, [(u64, u64); 2]);

fn main() -> ExitCode {
    executor::init();
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [run, workload, count] = &args[..]
        && (run == "--run" || run == "--run-marked")
    {
        work(workload, count.parse().expect("a number"), run == "--run-marked");
        println!("{}", processor_times());
        return ExitCode::SUCCESS;
    }
    if args.iter().any(|arg| arg == "--list") {
        // cargo-nextest asks every test program for its tests; this program has none.
        return ExitCode::SUCCESS;
    }
    if !args.iter().any(|arg| arg == "--bench") {
        // `cargo test` only checks that the workloads run, without a tool.
        WORKLOADS.iter().for_each(|(workload, _)| work(workload, 50, false));
        return ExitCode::SUCCESS;
    }
    let quick = args.iter().any(|arg| arg == "--quick");
    let wanted = args.iter().skip_while(|arg| *arg != "--tool").nth(1);
    let only = args.iter().skip_while(|arg| *arg != "--only").nth(1);
    let workloads: Vec<_> = WORKLOADS
        .into_iter()
        .filter(|(name, _)| only.is_none_or(|only| only.split(',').any(|only| only == *name)))
        .collect();
    if wanted.is_none_or(|wanted| *wanted == "time") {
        processor_time_of_all(&workloads, quick);
    }
    let tools: [Tool; 3] = [
        ("perf", perf, [(10_000, 110_000), (1_000, 11_000)]),
        ("callgrind", callgrind, [(2_000, 12_000), (500, 1_500)]),
        ("single steps", single_steps, [(50, 350), (20, 70)]),
    ];
    let mut chosen = None;
    for (tool, counted, counts) in tools {
        if wanted.is_some_and(|wanted| *wanted != tool) {
            continue;
        }
        // Do not try single steps first: they always work, and a trial would take half a minute.
        if tool == "single steps" || counted("trip", 1).is_some() {
            chosen = Some((tool, counted, counts[usize::from(quick)]));
            break;
        }
        println!("{tool}: not to be had here, or cannot run this");
    }
    let Some((tool, counted, (few, many))) = chosen else {
        return ExitCode::SUCCESS;
    };
    println!("instructions for each task, counted by {tool}, from {few} and {many} tasks");
    for (workload, title) in workloads {
        // A window is only a window once it has been filled.
        let filling = if workload == "window" { IN_FLIGHT } else { 0 };
        let (few, many) = (few + filling, many + filling);
        let (Some(less), Some(more)) = (counted(workload, few), counted(workload, many)) else {
            println!("{title}: {tool} failed");
            return ExitCode::FAILURE;
        };
        print!("{title:<46}");
        for (who, count) in &more {
            let each = (count - less.get(who).copied().unwrap_or(0.0)) / (many - few) as f64;
            print!(" {who} {each:>8.0}");
        }
        println!();
    }
    ExitCode::SUCCESS
}

/// Prints the processor time of each task in nanoseconds.
fn processor_time_of_all(workloads: &[(&str, &str)], quick: bool) {
    const RUNS: usize = 5;
    let (few, many) = if quick { (20_000, 60_000) } else { (100_000, 400_000) };
    println!("processor time of each task in nanoseconds, from {few} and {many} tasks");
    for (workload, title) in workloads {
        // A task alone takes as long as ten others.
        let (few, many) = if *workload == "trip" { (few / 10, many / 10) } else { (few, many) };
        let each = || {
            let [less, more] = [few, many].map(|count| processor_time(workload, count));
            let (less, more) = (less?, more?);
            Some([0, 1].map(|who| (more[who] - less[who]) / (many - few) as f64))
        };
        let Some(runs) = (0..RUNS).map(|_| each()).collect::<Option<Vec<_>>>() else {
            println!("{title}: failed");
            continue;
        };
        let median = |who: usize| {
            let mut figures: Vec<f64> = runs.iter().map(|run| run[who]).collect();
            figures.sort_by(f64::total_cmp);
            figures[RUNS / 2]
        };
        println!("{title:<46} parent {:>8.0} worker {:>8.0}", median(0), median(1));
    }
    println!();
}

/// The processor times of parent and worker in one run, in nanoseconds.
fn processor_time(workload: &str, count: u64) -> Option<[f64; 2]> {
    let output = Command::new(std::env::current_exe().ok()?)
        .args(["--run", workload, &count.to_string()])
        .stdin(Stdio::null())
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let (parent, worker) = text.trim().split_once(' ')?;
    Some([parent.parse().ok()?, worker.parse().ok()?])
}

/// The processor times of this process and of its children that have ended, in nanoseconds.
fn processor_times() -> String {
    let [own, children] = [libc::RUSAGE_SELF, libc::RUSAGE_CHILDREN].map(|who| {
        // SAFETY: all bytes zero are a valid `rusage`, and it is valid for writing.
        let usage = unsafe {
            let mut usage = std::mem::zeroed::<libc::rusage>();
            libc::getrusage(who, &raw mut usage);
            usage
        };
        let nanoseconds = |time: libc::timeval| time.tv_sec * 1_000_000_000 + time.tv_usec * 1_000;
        nanoseconds(usage.ru_utime) + nanoseconds(usage.ru_stime)
    });
    format!("{own} {children}")
}

/// Runs the workload. If it is marked, it tells the process that traces this one when the first
/// tasks are done and the threads are asleep.
fn work(workload: &str, count: u64, marked: bool) {
    let pool = ProcessPoolExecutor::builder().max_workers(1).build().expect("a pool");
    if marked {
        run(&pool, workload, 2_000);
        std::thread::sleep(std::time::Duration::from_millis(300));
        // SAFETY: the tracing process takes the signal, so it never arrives.
        unsafe { libc::raise(MARK) };
    }
    run(&pool, workload, count);
    pool.shutdown(true);
}

/// The signal that says that the instructions are counted from now on.
const MARK: i32 = libc::SIGUSR2;

fn run(pool: &ProcessPoolExecutor, workload: &str, count: u64) {
    match workload {
        "trip" => (0..count)
            .for_each(|x| assert_eq!(pool.submit(no_op::task(x)).result().expect("a result"), x)),
        "burst" => {
            let futures: Vec<_> = (0..count).map(|x| pool.submit(no_op::task(x))).collect();
            futures.into_iter().for_each(|future| _ = future.result().expect("a result"));
        }
        "window" => {
            let mut pending = VecDeque::with_capacity(IN_FLIGHT as usize);
            let take = |future: TaskFuture<u64>| _ = future.result().expect("a result");
            for x in 0..count {
                if pending.len() == IN_FLIGHT as usize {
                    take(pending.pop_front().expect("as many as are in flight"));
                }
                pending.push_back(pool.submit(no_op::task(x)));
            }
            pending.into_iter().for_each(take);
        }
        // The shutdown waits for the last callback.
        "callbacks" => (0..count).for_each(|x| {
            let future = pool.submit(no_op::task(x));
            future.add_done_callback(|outcome| _ = outcome.expect("a result"));
        }),
        "map" => pool.map(no_op::task, 0..count).for_each(|x| _ = x.expect("a result")),
        other => panic!("no workload {other}"),
    }
}

/// Counts the instructions of parent and worker together, because child processes inherit the
/// counters.
fn perf(workload: &str, count: u64) -> Option<Counts> {
    let output = Command::new("perf")
        .args(["stat", "-x", ",", "-e", "instructions:u", "--"])
        .arg(std::env::current_exe().ok()?)
        .args(["--run", workload, &count.to_string()])
        .stdin(Stdio::null())
        .output()
        .ok()?;
    let report = String::from_utf8_lossy(&output.stderr).into_owned();
    // Without counters, the first field is "<not supported>".
    let line = report.lines().find(|line| line.contains("instructions"))?;
    Some(Counts::from([("both", line.split(',').next()?.parse().ok()?)]))
}

fn callgrind(workload: &str, count: u64) -> Option<Counts> {
    let folder = tempfile::tempdir().ok()?;
    let status = Command::new("valgrind")
        .args(["-q", "--tool=callgrind", "--trace-children=yes"])
        .arg(format!("--callgrind-out-file={}", folder.path().join("out.%p").display()))
        .arg(std::env::current_exe().ok()?)
        .args(["--run", workload, &count.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .ok()?;
    let mut counts = Counts::new();
    for entry in std::fs::read_dir(folder.path()).ok()?.flatten() {
        let (worker, instructions) = report(&entry.path())?;
        *counts.entry(if worker { "worker" } else { "parent" }).or_default() += instructions;
    }
    (status.success() && counts.len() == 2).then_some(counts)
}

/// Reads one output file of callgrind. Returns whether it is a worker's, and the total of
/// instructions.
fn report(path: &Path) -> Option<(bool, f64)> {
    let text = std::fs::read_to_string(path).ok()?;
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name));
    let worker = field("cmd:")?.contains("--executor-worker");
    Some((worker, field("totals:").or_else(|| field("summary:"))?.trim().parse().ok()?))
}

/// Counts every instruction of every thread of both processes after the mark, with one stop for
/// each.
fn single_steps(workload: &str, count: u64) -> Option<Counts> {
    use std::os::unix::process::CommandExt;

    let mut command = Command::new(std::env::current_exe().ok()?);
    command.args(["--run-marked", workload, &count.to_string()]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    // SAFETY: the closure makes a single system call, which is allowed between fork and exec.
    unsafe {
        command.pre_exec(|| match ptrace(libc::PTRACE_TRACEME, 0, 0) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        });
    }
    // Keep all threads on one processor. A step is then a context switch, and not an interrupt to
    // another processor, which takes ten times as long in a virtual machine.
    let mut cpus = rustix::thread::CpuSet::new();
    cpus.set(rustix::thread::sched_getcpu());
    rustix::thread::sched_setaffinity(None, &cpus).ok()?;
    let first = command.spawn().ok()?.id() as i32;
    // After the limit, kill the first process, in case a wait below never ends. Its worker dies
    // with it.
    let (done, waiting) = std::sync::mpsc::channel::<()>();
    let limit = std::thread::spawn(move || {
        if waiting.recv_timeout(LIMIT) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
            // SAFETY: no memory is involved. `first` can only be the pid of another process in the
            // short time after the loop has waited for it: the worker then ends too, and the
            // channel is closed.
            unsafe { libc::kill(first, libc::SIGKILL) };
        }
    });
    let mut processes: HashMap<i32, i32> = HashMap::new();
    let mut counts = Counts::new();
    let mut succeeded = false;
    // Whether the mark has come. Before it, threads run at full speed.
    let mut counting = false;
    loop {
        let mut status = 0;
        // SAFETY: `status` is valid for writing. `__WALL` also waits for threads and for children
        // of children.
        let thread = unsafe { libc::waitpid(-1, &raw mut status, libc::__WALL) };
        if thread < 0 {
            // No child is left.
            break;
        }
        if !libc::WIFSTOPPED(status) {
            processes.remove(&thread);
            if thread == first {
                succeeded = libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0;
            }
            continue;
        }
        let process = *processes.entry(thread).or_insert_with(|| {
            if thread == first {
                // `EXITKILL` makes the kernel kill all traced processes if this program dies.
                let follow = libc::PTRACE_O_TRACECLONE
                    | libc::PTRACE_O_TRACEFORK
                    | libc::PTRACE_O_TRACEVFORK
                    | libc::PTRACE_O_TRACEEXEC
                    | libc::PTRACE_O_EXITKILL;
                // SAFETY: the thread is stopped and traced by this thread.
                unsafe { ptrace(libc::PTRACE_SETOPTIONS, thread, follow.into()) };
            }
            process_of(thread)
        });
        let signal = libc::WSTOPSIG(status);
        let event = status >> 16;
        if signal == MARK && thread == first {
            counting = true;
            // All other threads are asleep. The signal stops them before their next instruction.
            for (&thread, &process) in processes.iter().filter(|(thread, _)| **thread != first) {
                // SAFETY: no memory is involved. The thread is traced, and not waited for yet.
                unsafe { libc::syscall(libc::SYS_tgkill, process, thread, libc::SIGSTOP) };
            }
        } else if counting && signal == libc::SIGTRAP && event == 0 {
            *counts.entry(if process == first { "parent" } else { "worker" }).or_default() += 1.0;
        }
        // These come from the tracing itself, so do not pass them on to the program.
        let signal = match signal {
            libc::SIGTRAP | libc::SIGSTOP | MARK => 0,
            signal => signal,
        };
        let resume = if counting { libc::PTRACE_SINGLESTEP } else { libc::PTRACE_CONT };
        // SAFETY: the thread is stopped and traced by this thread. If it was killed in the
        // meantime, the call fails, and the next wait reports its end.
        unsafe { ptrace(resume, thread, signal.into()) };
    }
    drop(done);
    let _ = limit.join();
    (succeeded && counts.len() == 2).then_some(counts)
}

const LIMIT: std::time::Duration = std::time::Duration::from_secs(300);

/// Calls `ptrace` with `data` as its last argument.
///
/// # Safety
/// The caller must meet the requirements of the request. None of the requests used here reads or
/// writes memory of this process.
unsafe fn ptrace(request: libc::c_uint, thread: i32, data: i64) -> i64 {
    // SAFETY: the caller meets the requirements of the request.
    unsafe { libc::ptrace(request, thread, 0_i64, data) }
}

/// The process that a thread belongs to.
fn process_of(thread: i32) -> i32 {
    let status = std::fs::read_to_string(format!("/proc/{thread}/status")).unwrap_or_default();
    let group = status.lines().find_map(|line| line.strip_prefix("Tgid:"));
    group.and_then(|group| group.trim().parse().ok()).unwrap_or(thread)
}
