//! Programs of users, built as users build them: dev, thin LTO with `panic = "abort"` and stripped, fat LTO.

use std::{
    path::Path,
    process::{Command, Output},
};

#[path = "programs/builder.rs"]
mod programs;

use programs::build;

fn run(program: &Path) -> Output {
    Command::new(program).output().unwrap_or_else(|error| panic!("{}: {error}", program.display()))
}

fn check(profile: &str) {
    let directory = build(profile, &[]);
    for (program, says) in [("faults", "all faults came home\n"), ("takeover", "taken over\n")] {
        let output = run(&directory.join(program));
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program} built as {profile}: {stderr}");
        assert_eq!(String::from_utf8_lossy(&output.stdout), says, "{program} built as {profile}: {stderr}");
    }
}

#[test]
fn dev() {
    check("dev");
}

#[test]
fn thin_lto_panic_abort_stripped() {
    check("thin-abort");
}

#[test]
fn fat_lto() {
    check("fat");
}

/// However the mistake is met, what `main` returns names the line to add: in the parent, and in the child.
#[test]
fn every_way_to_forget_the_entry_ends_with_the_line_to_add() {
    let directory = build("dev", &[]);
    for by in ["executor", "map", "pool", "process", "spawn", "forkserver"] {
        let log = std::env::temp_dir().join(format!("executor-forgot-{}-{by}", std::process::id()));
        let mut forgot = Command::new(directory.join("forgot"));
        let output = forgot.env("FORGOT_LOG", &log).env("FORGOT_BY", by).output().expect("starts");
        let starts = std::fs::read_to_string(&log).expect("the program wrote it");
        std::fs::remove_file(&log).expect("just read");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{by}: {stderr}");
        assert_eq!(starts.lines().count(), 2, "{by}: {stderr}");
        let told: Vec<_> = stderr.lines().filter(|line| line.starts_with("Error: ")).collect();
        assert_eq!(told.len(), 2, "{by}: {stderr}");
        for line in told {
            assert!(
                line.contains("#[executor::main]") && line.contains("executor::init()"),
                "{by}: {stderr}"
            );
        }
    }
}

/// The child of a program that forgot the entry reaches `main` and makes a pool of its own: it gets an error there,
/// and starts nothing. So there are two starts, whatever the parent asks for.
#[test]
fn a_forgotten_entry_is_an_error_that_names_the_line_and_no_fork_bomb() {
    let directory = build("dev", &[]);
    let log = std::env::temp_dir().join(format!("executor-forgot-{}", std::process::id()));
    let output = Command::new(directory.join("forgot")).env("FORGOT_LOG", &log).output().expect("starts");
    let starts = std::fs::read_to_string(&log).expect("the program wrote it");
    std::fs::remove_file(&log).expect("just read");
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert_eq!(starts.lines().count(), 2, "{stdout}");
    let mut lines: Vec<&str> = stdout.lines().collect();
    lines.sort();
    let [child, parent] = lines[..] else { panic!("{stdout}") };
    for text in [child, parent] {
        assert!(text.contains("#[executor::main]") && text.contains("executor::init()"), "{text}");
    }
    assert!(child.starts_with("in the child: "), "{child}");
    assert!(parent.contains("exited with code 0"), "{parent}");
}
