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
