//! Measures the time from start to join of a process that does nothing, for each start method and
//! for other ways to start a process.
//!
//! Run it with `cargo bench --bench start`. Rounds are interleaved, except for those of CPython,
//! which follow at the end. Figures are in microseconds: median and range.

use std::{
    process::{Command, Stdio},
    time::Instant,
};

use comfy_table::Table;
use executor::{Context, StartMethod, prelude::*};

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
    println!("{} processors", executor::cpu_count());
}
