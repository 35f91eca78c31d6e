//! Python peers. One script, `peers.py`, drives all of them, with the same protocol as the Rust
//! drivers.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// The command that starts the driver of a Python peer.
pub(crate) fn command(python: &Path, peer: &str, parent: &str) -> Command {
    let script: PathBuf =
        [env!("CARGO_MANIFEST_DIR"), "benches", "peers", "peers.py"].iter().collect();
    let mut command = Command::new(python);
    // `-B` keeps Python from writing byte code beside the sources.
    command.arg("-B").arg(script).args([peer, parent]);
    command
}
