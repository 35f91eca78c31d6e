//! Workers that die at every step of the protocol: see the program `deaths`.
//!
//! It is a program of its own because it is built with the feature `kill-points`, which no other test is to have.
//! `EXECUTOR_ROUNDS` and `EXECUTOR_SEED` are its, and `--nocapture` shows how often workers died at each step.

use std::process::Command;

#[path = "programs/builder.rs"]
mod programs;

fn check(transport: &str, rounds: u64) {
    let profile = if cfg!(debug_assertions) { "dev" } else { "release" };
    let directory = programs::build(profile, &["--bin", "deaths", "--features", "kill-points"]);
    let mut program = Command::new(directory.join("deaths"));
    program.env("EXECUTOR_TRANSPORT", transport);
    // One seed is taken once, unless it is asked for more often.
    if std::env::var_os("EXECUTOR_SEED").is_none() {
        program.env("EXECUTOR_ROUNDS", rounds.to_string());
    }
    let output = program.output().expect("it starts");
    let stdout = String::from_utf8_lossy(&output.stdout);
    println!("over {transport}: {stdout}");
    assert!(output.status.success(), "{}: {}", output.status, String::from_utf8_lossy(&output.stderr));
}

fn rounds() -> u64 {
    std::env::var("EXECUTOR_ROUNDS").map_or(300, |rounds| rounds.parse().expect("a number"))
}

#[test]
fn death_inside_the_ring() {
    check("ring", rounds());
}

#[test]
fn death_over_ipc_channel() {
    check("ipc", rounds().div_ceil(3));
}
