//! Builds the programs of this directory, for the tests that start them.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// Builds the programs under a profile if necessary, and returns the directory that contains them.
/// `options` are options of cargo, and select what is built.
pub(crate) fn build(profile: &str, options: &[&str]) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut cargo = Command::new(env!("CARGO"));
    // The outer cargo has downloaded everything that the lock file names.
    cargo.current_dir(root).args([
        "build",
        "--offline",
        "--quiet",
        "-p",
        "executor-test-programs",
        "--profile",
        profile,
    ]);
    cargo.args(options);
    // These variables belong to the outer cargo, and are not meant for another build.
    cargo.env_remove("CARGO_MANIFEST_DIR").env_remove("RUSTC_WORKSPACE_WRAPPER");
    let output = cargo.output().expect("cargo starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // This test is in `target/<profile>/deps/`.
    let own = std::env::current_exe().expect("a path");
    let target = own.ancestors().nth(3).expect("three levels up").to_owned();
    target.join(if profile == "dev" { "debug" } else { profile })
}
