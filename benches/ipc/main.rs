//! Compares the objects that processes share with CPython's `multiprocessing` and with the limit of
//! the machine. Run it with `cargo bench --bench ipc`.
//!
//! Figures are medians of five runs. Queues and connections run alternately with their limits, so
//! that a disturbance of the machine affects both; `ours / it` is the ratio of the two medians, and
//! `demanded` the ratio that is a goal. `-- NAME` runs the sections whose name contains NAME.
//! Python is `EXECUTOR_BENCH_PYTHON`, or `python3`. Without a Python, its column is empty.

mod connection;
mod memory;
mod queue;
mod sync;

use std::process::ExitCode;

/// One line of a table, in nanoseconds per operation.
pub(crate) struct Line {
    pub(crate) what: &'static str,
    pub(crate) ours: f64,
    /// The name of the limit, and its time in nanoseconds.
    pub(crate) limit: (&'static str, f64),
}

/// Runs ours and the limit alternately. Returns the median figure of each.
pub(crate) fn medians(mut ours: impl FnMut() -> f64, mut limit: impl FnMut() -> f64) -> [f64; 2] {
    const RUNS: usize = 5;
    let mut figures = [Vec::new(), Vec::new()];
    for _ in 0..RUNS {
        figures[0].push(ours());
        figures[1].push(limit());
    }
    figures.map(|mut figures| {
        figures.sort_by(f64::total_cmp);
        figures[RUNS / 2]
    })
}

fn main() -> ExitCode {
    executor::init();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|argument| argument == "--list") {
        return ExitCode::SUCCESS;
    }
    // Without `--bench` this is a test: everything runs once, for a short time.
    let short = !arguments.iter().any(|argument| argument == "--bench");
    let wanted = arguments.iter().find(|argument| !argument.starts_with('-'));
    let is_wanted = |name: &str| wanted.is_none_or(|wanted| name.contains(wanted.as_str()));
    if is_wanted("sync") {
        sync::run(short);
    }
    if is_wanted("queue") {
        queue::run(short);
    }
    if is_wanted("memory") {
        memory::run(short);
    }
    if is_wanted("connection") {
        connection::run(short);
    }
    ExitCode::SUCCESS
}
