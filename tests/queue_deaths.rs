//! Users of queues that die at every step of what those do: see the program `queue_deaths`.
//!
//! It is a program of its own because it is built with the feature `kill-points`, which no other test is to have.
//! `EXECUTOR_ROUNDS` and `EXECUTOR_SEED` are its, and `--nocapture` shows how often somebody died at each step.

use std::process::Command;

#[path = "programs/builder.rs"]
mod programs;

#[test]
fn death_inside_of_a_queue() {
    let profile = if cfg!(debug_assertions) { "dev" } else { "release" };
    let directory = programs::build(profile, &["--bin", "queue_deaths", "--features", "kill-points"]);
    let output = Command::new(directory.join("queue_deaths")).output().expect("it starts");
    println!("{}", String::from_utf8_lossy(&output.stdout));
    assert!(output.status.success(), "{}: {}", output.status, String::from_utf8_lossy(&output.stderr));
}
