//! Users of queues that are killed or stopped at every step of a queue operation. See the program
//! `queue_deaths`.
//!
//! This is a separate program because it is built with the feature `kill-points`, which no other
//! test may have. The program reads `EXECUTOR_ROUNDS` and `EXECUTOR_SEED`. `--nocapture` shows how
//! often a process died at each step.

use std::process::Command;

#[path = "programs/builder.rs"]
mod programs;

fn check(stops: Option<u64>) {
    let profile = if cfg!(debug_assertions) { "dev" } else { "release" };
    let directory =
        programs::build(profile, &["--bin", "queue_deaths", "--features", "kill-points"]);
    let mut program = Command::new(directory.join("queue_deaths"));
    if let Some(rounds) = stops {
        program.env("EXECUTOR_STOPS", "1");
        if std::env::var_os("EXECUTOR_ROUNDS").is_none() {
            program.env("EXECUTOR_ROUNDS", rounds.to_string());
        }
    }
    let output = program.output().expect("it starts");
    println!("{}", String::from_utf8_lossy(&output.stdout));
    assert!(
        output.status.success(),
        "{}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn death_within_a_queue() {
    check(None);
}

#[test]
fn no_call_with_a_timeout_is_delayed_and_no_item_is_lost_while_a_process_is_stopped_within_a_queue()
{
    // Every step would be reached in 300 rounds, which take minutes.
    check(Some(60));
}
