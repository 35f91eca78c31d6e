//! Peers in Python: one script for all, `peers.py`, which speaks as our own drivers do.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// The driver of one of them.
pub(crate) fn command(python: &Path, peer: &str, parent: &str) -> Command {
    let script: PathBuf = [env!("CARGO_MANIFEST_DIR"), "benches", "peers", "peers.py"].iter().collect();
    let mut command = Command::new(python);
    // -B: no byte code beside the sources.
    command.arg("-B").arg(script).args([peer, parent]);
    command
}
