//! Compares managed objects with CPython's `multiprocessing.Manager` and with Redis. Run it with
//! `cargo bench --bench manager` (`-- NAME` for the sections whose name contains NAME: `dict`,
//! `large`, `memory`).
//!
//! ```text
//!  harness (this process)            clients: 1 or 8 processes      server
//!  ──────────────────────            ─────────────────────────      ──────
//!  for each round
//!    for each operation
//!      for each peer
//!        rate      ── starts ──────► warm up, barrier, calls ─────► executor: the manager
//!        latency   ── starts ──────► warm up, barrier, calls ─────► CPython: `peers.py`'s manager
//!                  ◄── times ──────                                 Redis: `redis-server`, by TCP
//!                                                           executor, TLS: a manager, by TCP
//!  medians ── tables of figures and goals
//! ```
//!
//! Rounds are interleaved, so that a disturbance of the machine affects all peers. A figure is the
//! median of the rounds, and `executor / it` the ratio of two medians. Each client makes a fixed
//! number of calls. The rate is the number of all calls, divided by the time from the barrier to
//! the end of the last client. Latencies are measured in a run of their own, because reading the
//! clock takes a part of a short call.
//!
//! An update is a change on the server that loses nothing: `update` here, `INCR` in Redis. CPython
//! has none. Its update is a `get` and a `set`, which loses changes if there are several clients.
//!
//! The last line says how busy the machine was with other work. If it was busy, a round trip
//! between two processes takes several times as long, and the goals are not decided.
//!
//! Python is `EXECUTOR_BENCH_PYTHON`, or `python3`. A peer that is not installed is named once and
//! left out.

#[path = "../peers/facts.rs"]
mod facts;
mod measure;
mod memory;
mod ours;
mod python;
mod redis;
mod table;

use std::{collections::BTreeMap, process::ExitCode, time::Duration};

use crate::{
    measure::{Operation, Peer, Work, measure},
    table::Results,
};

const ROUNDS: usize = 5;
/// How long a client makes calls in one run. With less, the start of eight clients on few cores is
/// a part of what is measured.
const TIME: Duration = Duration::from_millis(300);
const CLIENTS: [usize; 2] = [1, 8];
const LARGE_BYTES: [usize; 2] = [64 << 10, 16 << 20];

fn dict_works() -> impl Iterator<Item = Work> {
    let operations = [Operation::Get, Operation::Set, Operation::Update];
    operations.into_iter().flat_map(|operation| {
        CLIENTS.map(|clients| Work { section: "dict", operation, clients, bytes: 0 })
    })
}

fn large_works() -> impl Iterator<Item = Work> {
    LARGE_BYTES.into_iter().flat_map(|bytes| {
        [Operation::Set, Operation::Get].map(|operation| Work {
            section: "large",
            operation,
            clients: 1,
            bytes,
        })
    })
}

fn main() -> ExitCode {
    executor::init();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|argument| argument == "--list") {
        // cargo-nextest asks every test program for its tests; this one has none.
        return ExitCode::SUCCESS;
    }
    // Without `--bench` this is a test: everything runs once, for a short time. The filters of
    // `cargo test` are not for this program.
    let short = !arguments.iter().any(|argument| argument == "--bench");
    let wanted = arguments.iter().find(|argument| !argument.starts_with('-') && !short);
    let is_wanted = |name: &str| wanted.is_none_or(|wanted| name.contains(wanted.as_str()));

    let works = dict_works().chain(large_works()).filter(|work| is_wanted(work.section));
    let works: Vec<Work> = works.filter(|work| !short || work.bytes <= LARGE_BYTES[0]).collect();
    let mut used = Vec::from_iter((!short).then(measure::used_by_others).flatten());
    let mut results = Results::default();
    let mut versions = BTreeMap::new();
    if !works.is_empty() {
        compare(&works, short, &mut results, &mut versions);
        println!("{}", table::calls(&works, &results));
        println!("{}", table::processor_times(&works, &results));
    }
    let memory = is_wanted("memory").then(|| memory::run(short));
    if short {
        // Figures of so few calls say nothing about goals.
        return ExitCode::SUCCESS;
    }
    println!("\n{}", table::goals(&works, &results, memory.as_ref()));
    println!("{}", facts::line(&facts::machine(&versions)));
    used.extend(measure::used_by_others());
    let used: Vec<String> = used.iter().map(|part| format!("{:.0} %", part * 100.0)).collect();
    println!("Processor time that others used, before and after: {}", used.join(", "));
    ExitCode::SUCCESS
}

/// Runs all this work with each peer, and collects the figures.
fn compare(
    works: &[Work],
    short: bool,
    results: &mut Results,
    versions: &mut BTreeMap<String, String>,
) {
    let mut peers: Vec<Box<dyn Peer>> =
        vec![Box::new(ours::Executor::start()), Box::new(ours::Executor::start_far())];
    match python::Python::start() {
        Ok(python) => peers.push(Box::new(python)),
        Err(error) => println!("CPython is left out: {error}"),
    }
    match redis::Server::start() {
        Ok(server) => {
            peers.push(Box::new(redis::Redis::new(&server, 1)));
            peers.push(Box::new(redis::Redis::new(&server, redis::PIPELINE)));
        }
        Err(error) => println!("Redis is left out: {error}"),
    }
    for peer in &peers {
        versions.extend(peer.version().map(|version| (peer.name().to_owned(), version)));
    }
    let mut counts = BTreeMap::new();
    for round in 0..if short { 1 } else { ROUNDS } {
        for (number, work) in works.iter().enumerate() {
            for peer in peers.iter_mut().filter(|peer| peer.can(work)) {
                let name = peer.name();
                // A rate of the first round says how many calls fill the time.
                let mut run = || -> Result<(), String> {
                    let count = match counts.get(&(number, name)) {
                        Some(count) => *count,
                        None => measure::calibrate(&mut **peer, work, short)?,
                    };
                    counts.insert((number, name), count);
                    results.add(number, name, measure(&mut **peer, work, count)?);
                    Ok(())
                };
                match run() {
                    Ok(()) => {}
                    Err(error) => {
                        assert!(![ours::NAME, ours::NAME_FAR].contains(&name), "{work}: {error}");
                        println!("{name}, {work}, round {round}: {error}");
                    }
                }
            }
        }
    }
}
