//! The harness's side of a driver. There is one process for each peer. The harness writes a request
//! as one line, and waits for one line as the reply, with a time limit.
//!
//! ```text
//!  Drivers ── has(peer): starts the driver on first use; reports once if it is not installed
//!          ── run(peer, request) ── line ──► driver's stdin
//!                                ◄─ line ──  a thread reads its stdout, recv with a time limit
//!          ── too late: its process group is killed; the next run starts another driver
//! ```

use std::{
    collections::{BTreeMap, HashMap},
    io::{BufRead, BufReader, Write},
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    time::Duration,
};

use serde_json::Value;

use crate::{
    python,
    workload::{Figures, Mode, PYTHON, Request},
};

pub(crate) struct Drivers {
    python: PathBuf,
    mode: Mode,
    /// `None` for a peer that is not installed, or not wanted in this mode.
    started: HashMap<&'static str, Option<Driver>>,
    versions: BTreeMap<String, String>,
}

struct Driver {
    child: Child,
    stdin: ChildStdin,
    replies: Receiver<String>,
}

impl Drivers {
    pub(crate) fn new(python: PathBuf, mode: Mode) -> Self {
        Drivers { python, mode, started: HashMap::new(), versions: BTreeMap::new() }
    }

    /// The versions that the Python peers reported.
    pub(crate) fn versions(&self) -> BTreeMap<String, String> {
        self.versions.clone()
    }

    /// Whether the peer is available here. Starts its driver if necessary.
    pub(crate) fn has(&mut self, peer: &'static str) -> bool {
        if !self.started.contains_key(peer) {
            let driver = self.start(peer).unwrap_or_else(|error| {
                println!("{error}");
                None
            });
            self.started.insert(peer, driver);
        }
        self.started[peer].is_some()
    }

    /// Replaces the peer's driver with a new process, if the peer is available.
    pub(crate) fn restart(&mut self, peer: &'static str) {
        self.started.remove(peer);
        self.has(peer);
    }

    pub(crate) fn run(&mut self, peer: &'static str, request: &Request) -> Result<Figures, String> {
        let Some(Some(driver)) = self.started.get_mut(peer) else {
            return Err("not started".to_owned());
        };
        let limit = match self.mode {
            Mode::Full => Duration::from_secs(180),
            Mode::Quick => Duration::from_secs(30),
            Mode::Smoke => Duration::from_secs(60),
        };
        let line = serde_json::to_string(request).expect("plain data");
        let reply = match writeln!(driver.stdin, "{line}") {
            Ok(()) => driver.reply(limit),
            Err(error) => Err(format!("its driver is gone: {error}")),
        };
        let reply = match reply {
            Ok(reply) => reply,
            Err(error) => {
                // Dropping the driver kills it. The next run gets a new one.
                self.started.remove(peer);
                return Err(error);
            }
        };
        match (reply.get("figures"), reply.get("error")) {
            (Some(Value::Object(figures)), _) => Ok(figures.clone()),
            (_, Some(error)) => Err(error.as_str().unwrap_or("unknown").to_owned()),
            _ => Err(format!("an answer that nobody understands: {reply}")),
        }
    }

    fn start(&mut self, peer: &'static str) -> Result<Option<Driver>, String> {
        let in_python = PYTHON.contains(&peer);
        if in_python && self.mode == Mode::Smoke {
            return Ok(None);
        }
        let parent = std::process::id().to_string();
        let mut command = if in_python {
            python::command(&self.python, peer, &parent)
        } else {
            let mut command = Command::new("/proc/self/exe");
            command.args(["--peer", peer, &parent]);
            command
        };
        // Give the driver its own process group, so that a kill also ends everything it has forked.
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).process_group(0);
        let mut child = command.spawn().map_err(|error| {
            format!("not installed: {peer} ({}: {error})", self.python.display())
        })?;
        let stdin = child.stdin.take().expect("piped");
        let stdout = BufReader::new(child.stdout.take().expect("piped"));
        let (sender, replies) = channel();
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        let mut driver = Driver { child, stdin, replies };
        let hello = driver
            .reply(Duration::from_secs(30))
            .map_err(|error| format!("not started: {peer}: {error}"))?;
        if let Some(missing) = hello.get("missing").and_then(Value::as_str) {
            return Err(format!(
                "not installed: {missing} (pip install -r benches/peers/requirements.txt)"
            ));
        }
        if let Some(version) = hello.get("version").and_then(Value::as_str) {
            self.versions.insert(peer.to_owned(), version.to_owned());
        }
        Ok(Some(driver))
    }
}

impl Driver {
    fn reply(&mut self, limit: Duration) -> Result<Value, String> {
        match self.replies.recv_timeout(limit) {
            Ok(line) => serde_json::from_str(&line).map_err(|error| format!("{error}: {line}")),
            Err(RecvTimeoutError::Timeout) => {
                Err(format!("hung: no answer for {} s, killed", limit.as_secs()))
            }
            Err(RecvTimeoutError::Disconnected) => Err("its driver has ended".to_owned()),
        }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // Kill the driver. Between runs it has nothing to lose, and a run in progress must not go
        // on.
        if let Some(group) = rustix::process::Pid::from_raw(self.child.id() as i32) {
            #[expect(
                clippy::disallowed_methods,
                reason = "the leader is a child of this process, and not reaped"
            )]
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
        let _ = self.child.wait();
    }
}
