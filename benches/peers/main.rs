//! Compares the library with its peers. Run it with `cargo bench --bench peers` (`-- --quick` for
//! less than two minutes).
//!
//! ```text
//!  harness (this process)                    drivers: one process per peer, started on first use
//!  ──────────────────────                    ───────────────────────────────────────────────────
//!  for each workload
//!    for each repetition
//!      for each peer         a JSON line ──► `--peer executor`   ── its pool of two workers
//!                            ◄── figures     `--peer rayon`, …   ── threads
//!                                            `peers.py loky`, …  ── a pool of Python
//!                                            `--peer socket`, …  ── a limit: `--child …` at the
//!                                                                   other end
//!    medians ── table, JSON lines, chart
//! ```
//!
//! Repetitions are interleaved, so that a disturbance of the machine affects all peers. A driver
//! creates its pool for one run, and ends it before it answers. The idle threads of one peer
//! therefore never run beside the measurement of another. A driver that does not answer in time is
//! killed and reported. Drivers and the processes they start die with the harness.
//!
//! `docs/performance.md` explains each workload.

mod chart;
mod driver;
mod facts;
mod limits;
mod measure;
mod ours;
mod processes;
mod python;
mod table;
mod threads;
mod workload;

use std::{collections::BTreeMap, path::PathBuf, process::ExitCode};

use lexopt::prelude::*;

use crate::{
    driver::Drivers,
    table::Results,
    workload::{Mode, WORKLOADS, Workload},
};

struct Options {
    mode: Mode,
    only: Vec<String>,
    python: PathBuf,
    json: Option<PathBuf>,
    svg: Option<PathBuf>,
}

const USAGE: &str = "\
cargo bench --bench peers -- [OPTIONS]
  --quick          less than two minutes in total
  --only N,M       these workloads, by name or number; `await` is all of `await-…`
  --python PATH    the Python of the peers (or EXECUTOR_BENCH_PYTHON; default: python3)
  --json FILE      the figures as JSON lines
  --svg FILE       tasks per second as a chart
  --workloads      names of the workloads";

fn main() -> ExitCode {
    // In a worker of this library, this call never returns. In a process of procspawn it returns,
    // and the next line takes over.
    executor::init();
    processes::init();
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.first().map(String::as_str) {
        Some("--child") => return limits::child(&args[1..]),
        Some("--peer") => return measure::serve(&args[1], &args[2]),
        _ => {}
    }
    if args.iter().any(|arg| arg == "--list") {
        // cargo-nextest asks every test program for its tests; this one has none.
        return ExitCode::SUCCESS;
    }
    match options().and_then(|options| options.map_or(Ok(true), |options| run(&options))) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("peers: {error}");
            ExitCode::from(2)
        }
    }
}

/// Parses the options. Returns `None` if an option such as `--help` was answered and nothing is to
/// be run.
fn options() -> Result<Option<Options>, Box<dyn std::error::Error>> {
    let mut options = Options {
        // `cargo bench` passes `--bench`. Without it this is `cargo test`, which only checks that
        // the benchmark runs.
        mode: Mode::Smoke,
        only: Vec::new(),
        python: std::env::var_os("EXECUTOR_BENCH_PYTHON")
            .map_or_else(|| "python3".into(), PathBuf::from),
        json: None,
        svg: None,
    };
    let mut quick = false;
    let mut bench = false;
    let mut parser = lexopt::Parser::from_env();
    while let Some(arg) = parser.next()? {
        match arg {
            Long("bench") => bench = true,
            Long("quick") => quick = true,
            Long("only") => {
                options.only = parser.value()?.string()?.split(',').map(str::to_owned).collect()
            }
            Long("python") => options.python = parser.value()?.into(),
            Long("json") => options.json = Some(parser.value()?.into()),
            Long("svg") => options.svg = Some(parser.value()?.into()),
            Long("workloads") => {
                for (i, workload) in WORKLOADS.iter().enumerate() {
                    println!("{:>2} {:<12} {}", i + 1, workload.name, workload.title);
                }
                return Ok(None);
            }
            Long("help") | Short('h') => {
                println!("{USAGE}");
                return Ok(None);
            }
            // `cargo test` passes on its own options (`--nocapture`, a filter). They are not for
            // this program.
            _ if !bench => {}
            other => return Err(other.unexpected().into()),
        }
    }
    if bench {
        options.mode = if quick { Mode::Quick } else { Mode::Full };
    }
    Ok(Some(options))
}

/// Runs the workloads and prints the results. Returns whether every run of `executor` gave figures.
fn run(options: &Options) -> Result<bool, Box<dyn std::error::Error>> {
    let is_wanted = |number: usize, workload: &Workload| {
        let family = workload.name.split('-').next();
        options.only.is_empty()
            || options.only.iter().any(|name| {
                name == workload.name
                    || Some(name.as_str()) == family
                    || *name == number.to_string()
            })
    };
    let selected: Vec<(usize, &Workload)> =
        (1..).zip(WORKLOADS).filter(|(number, workload)| is_wanted(*number, workload)).collect();
    if selected.is_empty() {
        return Err(format!("no workload is called {}", options.only.join(",")).into());
    }
    let mut drivers = Drivers::new(options.python.clone(), options.mode);
    let mut results = Results::default();
    let mut failures: BTreeMap<(&str, &str), String> = BTreeMap::new();
    for (number, workload) in selected {
        println!("\n{number}. {}: {}", workload.name, workload.title);
        if !workload.note.is_empty() {
            println!("   ({})", workload.note);
        }
        let load = workload.loaded.then(limits::Load::start).transpose()?;
        for _ in 0..workload.repetitions(options.mode) {
            for &peer in workload.peers {
                if failures.contains_key(&(workload.name, peer)) || !drivers.has(peer) {
                    continue;
                }
                let request = workload.request(peer, options.mode);
                if workload.name == "pending" {
                    // Use a new process. Memory that the allocator kept from the last run would
                    // hide the growth of this run.
                    drivers.restart(peer);
                }
                match drivers.run(peer, &request) {
                    Ok(figures) => results.add(workload.name, peer, figures),
                    Err(error) => {
                        println!("  {peer}: {error}");
                        failures.insert((workload.name, peer), error);
                    }
                }
            }
        }
        drop(load);
        println!("{}", table::workload(workload, &results));
    }
    println!("\n{}", table::goals(&results));
    let facts = facts::machine(&drivers.versions());
    println!("{}", facts::line(&facts));
    if let Some(path) = &options.json {
        std::fs::write(path, table::json_lines(&results, &facts))?;
    }
    if let Some(path) = &options.svg {
        std::fs::write(path, chart::svg(&results, &facts))?;
    }
    Ok(!failures.keys().any(|(_, peer)| *peer == "executor"))
}
