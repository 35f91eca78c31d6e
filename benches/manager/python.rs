//! CPython's manager. One script, `peers.py`, has the manager and starts the clients.
//!
//! ```text
//!  Python::run ── a job, one line of JSON ──► stdin of peers.py ── forks clients
//!              ◄── a list of `Ran`, one line ── its stdout
//! ```

use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use serde::Deserialize;

use crate::measure::{Job, Peer, Ran};

pub(crate) const NAME: &str = "CPython";

pub(crate) struct Python {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    hello: Hello,
}

/// The first line.
#[derive(Deserialize)]
struct Hello {
    version: String,
    server: u32,
}

impl Python {
    pub(crate) fn start() -> Result<Self, String> {
        let python = std::env::var_os("EXECUTOR_BENCH_PYTHON").unwrap_or("python3".into());
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/manager/peers.py");
        // `-B` keeps Python from writing byte code beside the sources.
        let mut child = Command::new(&python)
            .args(["-B", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| format!("{}: {error}", python.display()))?;
        let stdin = child.stdin.take().expect("piped");
        let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
        match line(&mut stdout) {
            Ok(hello) => Ok(Python { child, stdin, stdout, hello }),
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(format!("{}: {error}", python.display()))
            }
        }
    }
}

fn line<T: for<'de> Deserialize<'de>>(stdout: &mut impl BufRead) -> Result<T, String> {
    let mut line = String::new();
    match stdout.read_line(&mut line) {
        Ok(0) => Err("it has ended".to_owned()),
        Ok(_) => serde_json::from_str(&line).map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    }
}

impl Peer for Python {
    fn name(&self) -> &'static str {
        NAME
    }

    fn version(&self) -> Option<String> {
        Some(format!("Python {}", self.hello.version))
    }

    fn server(&self) -> u32 {
        self.hello.server
    }

    fn run(&mut self, job: &Job) -> Result<Vec<Ran>, String> {
        let job = serde_json::to_string(job).expect("plain data");
        writeln!(self.stdin, "{job}").map_err(|error| error.to_string())?;
        line(&mut self.stdout)
    }
}

impl Drop for Python {
    fn drop(&mut self) {
        // Its manager and its clients die with it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
