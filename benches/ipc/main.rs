//! What processes share, side by side with CPython's `multiprocessing` and with the raw limit: `cargo bench --bench ipc`.
//!
//! Medians of five runs. `-- NAME` runs the sections whose name contains it. Python is `EXECUTOR_BENCH_PYTHON`, or `python3`;
//! without one, its column is empty.

mod connection;
mod memory;
mod queue;
mod sync;

use std::process::ExitCode;

/// One line of a table: nanoseconds for each.
pub(crate) struct Line {
    pub(crate) what: &'static str,
    pub(crate) ours: f64,
    /// What it is, and how long it takes.
    pub(crate) limit: (&'static str, f64),
}

fn main() -> ExitCode {
    executor::init();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|argument| argument == "--list") {
        return ExitCode::SUCCESS;
    }
    // As a test, everything is run once and shortly.
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
