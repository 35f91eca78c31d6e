//! Users of queues that die, or are stopped, at every step of what those do: see the program `queue_deaths`.
//!
//! It is a program of its own because it is built with the feature `kill-points`, which no other test is to have.
//! `EXECUTOR_ROUNDS` and `EXECUTOR_SEED` are its, and `--nocapture` shows how often somebody died at each step.

use std::process::Command;

#[path = "programs/builder.rs"]
mod programs;

fn check(stops: Option<u64>) {
    let profile = if cfg!(debug_assertions) { "dev" } else { "release" };
    let directory = programs::build(profile, &["--bin", "queue_deaths", "--features", "kill-points"]);
    let mut program = Command::new(directory.join("queue_deaths"));
    if let Some(rounds) = stops {
        program.env("EXECUTOR_STOPS", "1");
        if std::env::var_os("EXECUTOR_ROUNDS").is_none() {
            program.env("EXECUTOR_ROUNDS", rounds.to_string());
        }
    }
    let output = program.output().expect("it starts");
    println!("{}", String::from_utf8_lossy(&output.stdout));
    assert!(output.status.success(), "{}: {}", output.status, String::from_utf8_lossy(&output.stderr));
}

#[test]
fn death_inside_of_a_queue() {
    check(None);
}

#[test]
fn no_call_with_a_limit_takes_longer_and_no_item_is_lost_while_a_process_is_stopped_inside_of_a_queue() {
    // Each step comes among 300, which take minutes.
    check(Some(60));
}
