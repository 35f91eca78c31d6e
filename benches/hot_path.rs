//! Instructions for each task: what the clock of a busy machine cannot say. `cargo bench --bench hot_path`.
//!
//! ```text
//!  this process ── perf stat ──► itself, `--run map 1000`   parent ──► worker
//!               ── perf stat ──► itself, `--run map 3000`   parent ──► worker
//!  difference / 2000 tasks: start and end of the program cancel out
//! ```
//!
//! Counted by `perf` where the processor's counters are to be had, else by valgrind's callgrind, which simulates one
//! processor and is slow, and says who did how much. One worker. Instructions of user code only, not the kernel's.
//! Callgrind runs the threads of a process one at a time, so what a thread does while it waits in a loop is counted by
//! another measure than on a real processor: compare figures of one tool with one another.

use std::{
    collections::BTreeMap,
    path::Path,
    process::{Command, ExitCode, Stdio},
};

use executor::prelude::*;

#[task]
fn no_op(x: u64) -> u64 {
    x
}

const WORKLOADS: [(&str, &str); 3] = [
    ("trip", "submit, then the result, one at a time"),
    ("noop", "submitted one by one, then all results taken"),
    ("map", "map, each item"),
];

/// Instructions of the parent, of the worker, and of both.
type Counts = BTreeMap<&'static str, f64>;

fn main() -> ExitCode {
    executor::init();
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [run, workload, count] = &args[..]
        && run == "--run"
    {
        work(workload, count.parse().expect("a number"));
        return ExitCode::SUCCESS;
    }
    if args.iter().any(|arg| arg == "--list") {
        // cargo-nextest asks every test program for its tests; this one has none.
        return ExitCode::SUCCESS;
    }
    if !args.iter().any(|arg| arg == "--bench") {
        // `cargo test`: that the work works, without a tool.
        WORKLOADS.iter().for_each(|(workload, _)| work(workload, 50));
        return ExitCode::SUCCESS;
    }
    let quick = args.iter().any(|arg| arg == "--quick");
    let (tool, counted, (few, many)): (_, fn(&str, u64) -> Option<Counts>, _) = if perf("trip", 1).is_some() {
        ("perf", perf, if quick { (1_000, 11_000) } else { (10_000, 110_000) })
    } else if callgrind("trip", 1).is_some() {
        ("callgrind", callgrind, if quick { (500, 1_500) } else { (2_000, 12_000) })
    } else {
        println!(
            "neither perf (with the processor's counters) nor valgrind is to be had here: nothing is counted"
        );
        return ExitCode::SUCCESS;
    };
    println!("instructions for each task, counted by {tool}, from {few} and {many} tasks");
    for (workload, title) in WORKLOADS {
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

fn work(workload: &str, count: u64) {
    let pool = ProcessPoolExecutor::builder().max_workers(1).build().expect("a pool");
    match workload {
        "trip" => {
            (0..count).for_each(|x| assert_eq!(pool.submit(no_op::task(x)).result().expect("a result"), x))
        }
        "noop" => {
            let futures: Vec<_> = (0..count).map(|x| pool.submit(no_op::task(x))).collect();
            futures.into_iter().for_each(|future| _ = future.result().expect("a result"));
        }
        "map" => pool.map(no_op::task, 0..count).for_each(|x| _ = x.expect("a result")),
        other => panic!("no workload {other}"),
    }
    pool.shutdown(true);
}

/// Parent and worker together: the counters are inherited.
fn perf(workload: &str, count: u64) -> Option<Counts> {
    let output = Command::new("perf")
        .args(["stat", "-x", ",", "-e", "instructions:u", "--"])
        .arg(std::env::current_exe().ok()?)
        .args(["--run", workload, &count.to_string()])
        .stdin(Stdio::null())
        .output()
        .ok()?;
    let report = String::from_utf8_lossy(&output.stderr).into_owned();
    // "<not supported>" in the first field, where there are no counters.
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

/// Whether it is a worker's, and its total.
fn report(path: &Path) -> Option<(bool, f64)> {
    let text = std::fs::read_to_string(path).ok()?;
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name));
    let worker = field("cmd:")?.contains("--executor-worker");
    Some((worker, field("totals:").or_else(|| field("summary:"))?.trim().parse().ok()?))
}
