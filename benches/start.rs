//! Measures the time from start to join of a process that does nothing, for each start method and
//! for other ways to start a process. Then it measures pools in which each task has a worker of its
//! own.
//!
//! Run it with `cargo bench --bench start`; `-- memory` also measures a model of 1 GiB in eight
//! workers. Rounds are interleaved, except for those of CPython, which follow at the end. Figures
//! are in microseconds: median and range.

use std::{
    process::{Command, Stdio},
    sync::OnceLock,
    time::{Duration, Instant},
};

use comfy_table::Table;
use executor::{Barrier, Context, Isolation, ProcessPoolBuilder, StartMethod, prelude::*};

#[task]
fn nothing() {}

/// Prints the time of each start and join, without the first one.
const PYTHON: &str = "
import multiprocessing, sys, time
def nothing(): pass
if __name__ == '__main__':
    context = multiprocessing.get_context(sys.argv[1])
    for round in range(int(sys.argv[2]) + 1):
        began = time.perf_counter()
        process = context.Process(target=nothing)
        process.start()
        process.join()
        if round: print((time.perf_counter() - began) * 1e6)
";

fn microseconds(work: impl FnOnce()) -> f64 {
    let began = Instant::now();
    work();
    began.elapsed().as_secs_f64() * 1e6
}

fn by(context: &Context) -> f64 {
    microseconds(|| {
        let child = context.process(nothing::task()).start().expect("it starts");
        child.join().expect("it ends");
    })
}

/// Builders of pools in which each task has a worker of its own.
fn isolated() -> Vec<(&'static str, ProcessPoolBuilder)> {
    let builder = || ProcessPoolExecutor::builder().max_workers(2);
    vec![
        ("max_tasks_per_worker(1), Spawn", builder().max_tasks_per_worker(1)),
        (
            "max_tasks_per_worker(1), ForkServer",
            builder().max_tasks_per_worker(1).start_method(StartMethod::ForkServer),
        ),
        (
            "PerTask, Spawn, ready(2)",
            builder().isolation(Isolation::PerTask).start_method(StartMethod::Spawn),
        ),
        ("PerTask, ForkServer, ready(0)", builder().isolation(Isolation::PerTask).ready(0)),
        ("PerTask, ForkServer, ready(2)", builder().isolation(Isolation::PerTask)),
        ("PerTask, ForkServer, ready(8)", builder().isolation(Isolation::PerTask).ready(8)),
    ]
}

/// Prints how long a task takes if the workers had time to become ready, how long if one task
/// follows the other, and how many tasks there are in a second if many are submitted.
fn pools(rounds: usize) {
    let mut table = Table::new();
    table.set_header([
        "a worker for each task, max_workers(2)",
        "rested, µs",
        "next, µs",
        "tasks/s",
    ]);
    for (name, builder) in isolated() {
        let pool = builder.build().expect("the options make sense");
        let call = || microseconds(|| pool.submit(nothing::task()).result().expect("it ends"));
        call();
        let median = |pause: Duration| {
            let mut times: Vec<_> = (0..rounds)
                .map(|_| {
                    std::thread::sleep(pause);
                    call()
                })
                .collect();
            times.sort_by(f64::total_cmp);
            format!("{:.0}", times[times.len() / 2])
        };
        let (rested, next) = (median(Duration::from_millis(20)), median(Duration::ZERO));
        let tasks = 10 * rounds;
        let took = microseconds(|| {
            pool.map(|_| nothing::task(), 0..tasks).for_each(|end| end.expect("it ends"));
        });
        let rate = format!("{:.0}", tasks as f64 * 1e6 / took);
        table.add_row([name.to_owned(), rested, next, rate]);
    }
    println!("{table}");
}

/// What was loaded before the workers were made.
static MODEL: OnceLock<Vec<u64>> = OnceLock::new();

#[task]
fn load(bytes: usize) {
    MODEL.set((0..bytes as u64 / 8).collect()).expect("it is loaded once");
}

/// Reads all that was loaded, and returns when all workers have done so.
#[task]
fn use_it(all: Barrier) -> u64 {
    let sum = MODEL.get().expect("it was loaded").iter().sum();
    all.wait().expect("all come");
    all.wait().expect("they were measured");
    sum
}

/// Returns the proportional share of a process in the machine's memory, in MiB.
fn share_of(pid: u32) -> u64 {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("/proc");
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:")).expect("since Linux 4.14");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") >> 10
}

/// Prints how much memory eight workers need together for a model of this many bytes.
fn memory(bytes: usize) {
    const WORKERS: usize = 8;
    let pool = ProcessPoolExecutor::builder()
        .max_workers(WORKERS)
        .start_method(StartMethod::ForkServer)
        .preload(load::task(bytes))
        .build()
        .expect("the options make sense");
    let all = Barrier::new(WORKERS + 1).expect("a barrier");
    let sums: Vec<_> = (0..WORKERS).map(|_| pool.submit(use_it::task(all.clone()))).collect();
    all.wait().expect("all come");
    let workers = pool.worker_pids();
    let shares: Vec<_> = workers.iter().map(|pid| share_of(*pid)).collect();
    println!(
        "{} MiB loaded: {WORKERS} workers have {} MiB together (PSS), each {shares:?}",
        bytes >> 20,
        shares.iter().sum::<u64>()
    );
    all.wait().expect("they wait");
    for sum in sums {
        sum.result().expect("it ends");
    }
}

fn python(method: &str, rounds: usize) -> Option<Vec<f64>> {
    let file = std::env::temp_dir().join(format!("executor-start-{}.py", std::process::id()));
    std::fs::write(&file, PYTHON).ok()?;
    let output = Command::new("python3").arg(&file).arg(method).arg(rounds.to_string()).output();
    let _ = std::fs::remove_file(&file);
    let output = output.ok().filter(|output| output.status.success())?;
    String::from_utf8(output.stdout).ok()?.lines().map(|line| line.parse().ok()).collect()
}

fn main() {
    executor::init();
    // A test runner asks for the list of tests; there are none.
    if std::env::args().any(|arg| arg == "--list") {
        return;
    }
    let quick = !std::env::args().any(|arg| arg == "--bench");
    let rounds = if quick { 2 } else { 100 };
    // Create the contexts first, and start one child with each: the first child starts the fork
    // server. `Fork` is allowed, because this process has no threads except this one and the
    // library's watcher.
    let contexts =
        [StartMethod::Spawn, StartMethod::ForkServer, StartMethod::Fork].map(Context::new);
    let mut rows: Vec<(String, Vec<f64>)> = contexts
        .iter()
        .map(|context| (format!("executor, {:?}", context.start_method()), Vec::new()))
        .collect();
    rows.push(("std's Command, /bin/true".into(), Vec::new()));
    for context in &contexts {
        by(context);
    }
    for _ in 0..rounds {
        for (context, (_, times)) in contexts.iter().zip(&mut rows) {
            times.push(by(context));
        }
        let times = &mut rows[contexts.len()].1;
        times.push(microseconds(|| {
            let status =
                Command::new("/bin/true").stdin(Stdio::null()).status().expect("it starts");
            assert!(status.success());
        }));
    }
    for method in ["spawn", "forkserver", "fork"] {
        match python(method, rounds.min(30)) {
            Some(times) => rows.push((format!("multiprocessing, {method}"), times)),
            None => println!("not there: python3 with multiprocessing's {method}"),
        }
    }
    let mut table = Table::new();
    table.set_header(["start to join, µs", "median", "least", "most"]);
    for (name, mut times) in rows {
        times.sort_by(f64::total_cmp);
        let at = |part: usize| format!("{:.0}", times[(times.len() - 1) * part / 2]);
        table.add_row([name, at(1), at(0), at(2)]);
    }
    println!("{table}");
    pools(rounds);
    if std::env::args().any(|arg| arg == "memory") {
        memory(1 << 30);
    }
    println!("{} processors", executor::cpu_count());
}
