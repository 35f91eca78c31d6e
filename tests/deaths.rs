//! Workers that are killed at every step of the protocol, and processes, users of locks, of queues
//! and of named memory that are killed or stopped at every step of theirs. Clients and servers of
//! managers are killed at every step. See the programs `deaths`, `process_deaths`, `lock_deaths`,
//! `queue_deaths`, `named_deaths` and `manager_deaths`.
//!
//! These are separate programs because they are built with the feature `kill-points`, which no
//! other test may have. The programs read `EXECUTOR_ROUNDS` and `EXECUTOR_SEED`. `--nocapture`
//! shows how often workers died at each step.

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
    // A given seed runs once, unless `EXECUTOR_ROUNDS` asks for more.
    if std::env::var_os("EXECUTOR_SEED").is_none() {
        program.env("EXECUTOR_ROUNDS", rounds.to_string());
    }
    // Without a backtrace, a failure is one line and the seed. A backtrace would be longer than the
    // part of the output that some systems keep.
    program.env("RUST_BACKTRACE", "0");
    let output = program.output().expect("it starts");
    let [stdout, stderr] =
        [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
    println!("{name} over {transport}: {stdout}");
    assert!(output.status.success(), "{}: {stderr}{stdout}", output.status);
}

fn rounds() -> u64 {
    std::env::var("EXECUTOR_ROUNDS").map_or(300, |rounds| rounds.parse().expect("a number"))
}

#[test]
fn death_of_workers_inside_the_ring() {
    check("deaths", "ring", rounds());
}

#[test]
fn death_of_workers_over_ipc_channel() {
    check("deaths", "ipc", rounds().div_ceil(3));
}

#[test]
fn death_within_locks_and_other_sync_primitives() {
    check("lock_deaths", "ring", rounds());
}

#[test]
fn no_call_with_a_timeout_is_delayed_while_a_process_is_stopped_within_a_sync_primitive() {
    check_with("lock_deaths", "ring", rounds().div_ceil(10), "1");
}

#[test]
fn death_and_stopping_of_processes_their_parents_and_their_fork_server() {
    check("process_deaths", "ring", rounds());
}

#[test]
fn death_and_stopping_within_named_memory() {
    check("named_deaths", "ring", rounds());
}

#[test]
fn death_of_manager_clients_and_servers() {
    check("manager_deaths", "ring", rounds());
}

#[test]
fn death_within_a_queue() {
    check("queue_deaths", "ring", rounds());
}

#[test]
fn no_call_with_a_timeout_is_delayed_and_no_item_is_lost_while_a_process_is_stopped_within_a_queue()
{
    // Every step would be reached in 300 rounds, which take minutes.
    let rounds = if std::env::var_os("EXECUTOR_ROUNDS").is_some() { rounds() } else { 60 };
    check_with("queue_deaths", "ring", rounds, "1");
}
