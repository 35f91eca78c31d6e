//! Workers that die at every step of the protocol, and processes, users of locks and of named memory that die or are stopped at every
//! step of theirs: see the programs `deaths`, `process_deaths`, `lock_deaths` and `named_deaths`.
//!
//! They are programs of their own because they are built with the feature `kill-points`, which no other test is to have.
//! `EXECUTOR_ROUNDS` and `EXECUTOR_SEED` are its, and `--nocapture` shows how often workers died at each step.

use std::process::Command;

#[path = "programs/builder.rs"]
mod programs;

fn check(name: &str, transport: &str, rounds: u64) {
    check_with(name, transport, rounds, "");
}

fn check_with(name: &str, transport: &str, rounds: u64, stops: &str) {
    let profile = if cfg!(debug_assertions) { "dev" } else { "release" };
    let directory = programs::build(profile, &["--bin", name, "--features", "kill-points"]);
    let mut program = Command::new(directory.join(name));
    program.env("EXECUTOR_TRANSPORT", transport);
    if !stops.is_empty() {
        program.env("EXECUTOR_STOPS", stops);
    }
    // One seed is taken once, unless it is asked for more often.
    if std::env::var_os("EXECUTOR_SEED").is_none() {
        program.env("EXECUTOR_ROUNDS", rounds.to_string());
    }
    // What has failed is one line, and the seed: a trace of the program that looked is longer than what some keep of an output.
    program.env("RUST_BACKTRACE", "0");
    let output = program.output().expect("it starts");
    let [stdout, stderr] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
    println!("{name} over {transport}: {stdout}");
    assert!(output.status.success(), "{}: {stderr}{stdout}", output.status);
}

fn rounds() -> u64 {
    std::env::var("EXECUTOR_ROUNDS").map_or(300, |rounds| rounds.parse().expect("a number"))
}

#[test]
fn death_inside_the_ring() {
    check("deaths", "ring", rounds());
}

#[test]
fn death_over_ipc_channel() {
    check("deaths", "ipc", rounds().div_ceil(3));
}

#[test]
fn death_within_locks_and_their_kin() {
    check("lock_deaths", "ring", rounds());
}

#[test]
fn no_call_with_a_limit_takes_longer_while_a_process_is_stopped_within_locks_and_their_kin() {
    check_with("lock_deaths", "ring", rounds().div_ceil(10), "1");
}

#[test]
fn death_and_standstill_of_processes_their_parents_and_their_fork_server() {
    check("process_deaths", "ring", rounds());
}

#[test]
fn death_and_standstill_within_named_memory() {
    check("named_deaths", "ring", rounds());
}
