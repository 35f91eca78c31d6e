//! The compiler's error for each mistake in `tests/ui/fail`.
//!
//! After changing a message, run `TRYBUILD=overwrite cargo test --test ui` and read the difference.
//!
//! Programs that must compile are in `tests/ui/pass`. They are test targets of their own
//! (`Cargo.toml`), because with a passing case trybuild would link every case, and would build all
//! libraries twice more, which takes gigabytes. Failing cases need only one `cargo check` for all
//! of them.

use std::{
    ffi::OsStr,
    fs,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    path::Path,
    process::Command,
};

#[test]
fn ui() {
    let cases = trybuild::TestCases::new();
    cases.compile_fail("tests/ui/fail/*.rs");
    // The cases run when `cases` is dropped.
    if let Err(failure) = catch_unwind(AssertUnwindSafe(|| drop(cases))) {
        println!("{}", why_nothing_was_compiled().unwrap_or_default());
        resume_unwind(failure);
    }
}

/// Runs the build again and returns its output if it fails. When a library cannot be built, because
/// the disk is full for example, trybuild reports only that the cases have compiled.
fn why_nothing_was_compiled() -> Option<String> {
    let cargo = || Command::new(env!("CARGO"));
    let metadata =
        cargo().args(["metadata", "--no-deps", "--format-version=1", "--offline"]).output().ok()?;
    let metadata: serde_json::Value = serde_json::from_slice(&metadata.stdout).ok()?;
    let target = Path::new(metadata["target_directory"].as_str()?).join("tests/trybuild");
    // The same command as trybuild's, except for the handling of its output. The project's program
    // is empty, so this builds only the libraries.
    let output = cargo()
        .current_dir(target.join("executor"))
        .env("CARGO_TARGET_DIR", &target)
        .env("CARGO_INCREMENTAL", "0")
        .env("RUSTFLAGS", "--cfg trybuild --verbose -A dead_code --diagnostic-width=140")
        .args(["check", "--offline", "--bin", "executor-tests"])
        .output()
        .ok()?;
    (!output.status.success()).then(|| {
        format!(
            "No case was compiled, since this failed:\n{}",
            String::from_utf8_lossy(&output.stderr)
        )
    })
}

#[test]
fn every_program_in_ui_pass_is_a_test_target() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let manifest = fs::read_to_string(root.join("Cargo.toml")).unwrap();
    let files =
        fs::read_dir(root.join("tests/ui/pass")).unwrap().map(|entry| entry.unwrap().path());
    let programs: Vec<_> =
        files.filter(|file| file.extension() == Some(OsStr::new("rs"))).collect();
    assert!(!programs.is_empty());
    for program in programs {
        let path = program.strip_prefix(root).unwrap().display().to_string();
        assert!(manifest.contains(&format!("path = \"{path}\"")), "{path} is compiled by nobody");
    }
}
