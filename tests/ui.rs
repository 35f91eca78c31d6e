//! What the compiler says about each mistake.
//!
//! After a change of a message: `TRYBUILD=overwrite cargo test --test ui`, then read the difference.
//!
//! What it must accept, `tests/ui/pass`, are test targets (`Cargo.toml`): beside a case that passes, trybuild links every
//! case, and builds all libraries twice more, in gigabytes. Those that fail need `cargo check`, once for all of them.

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
    // They are run when they are dropped.
    if let Err(failure) = catch_unwind(AssertUnwindSafe(|| drop(cases))) {
        println!("{}", why_nothing_was_compiled().unwrap_or_default());
        resume_unwind(failure);
    }
}

/// Trybuild says that cases have compiled, and no more, when a library could not be: that the disk was full, say.
fn why_nothing_was_compiled() -> Option<String> {
    let cargo = || Command::new(env!("CARGO"));
    let metadata =
        cargo().args(["metadata", "--no-deps", "--format-version=1", "--offline"]).output().ok()?;
    let metadata: serde_json::Value = serde_json::from_slice(&metadata.stdout).ok()?;
    let target = Path::new(metadata["target_directory"].as_str()?).join("tests/trybuild");
    // As trybuild does, but for what it does with the output; the empty program of the project needs libraries alone.
    let output = cargo()
        .current_dir(target.join("executor"))
        .env("CARGO_TARGET_DIR", &target)
        .env("CARGO_INCREMENTAL", "0")
        .env("RUSTFLAGS", "--cfg trybuild --verbose -A dead_code --diagnostic-width=140")
        .args(["check", "--offline", "--bin", "executor-tests"])
        .output()
        .ok()?;
    (!output.status.success()).then(|| {
        format!("No case was compiled, since this failed:\n{}", String::from_utf8_lossy(&output.stderr))
    })
}

#[test]
fn what_must_be_accepted_is_a_target() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let manifest = fs::read_to_string(root.join("Cargo.toml")).unwrap();
    let files = fs::read_dir(root.join("tests/ui/pass")).unwrap().map(|entry| entry.unwrap().path());
    let programs: Vec<_> = files.filter(|file| file.extension() == Some(OsStr::new("rs"))).collect();
    assert!(!programs.is_empty());
    for program in programs {
        let path = program.strip_prefix(root).unwrap().display().to_string();
        assert!(manifest.contains(&format!("path = \"{path}\"")), "{path} is compiled by nobody");
    }
}
