//! The Rust peer that starts processes: `procspawn::Pool`.
//!
//! Like this library, it starts this executable again. It recognises its processes by an
//! environment variable. Both entry points work in one program, because each looks only for its own
//! mark.

use std::time::{Duration, Instant};

use procspawn::JoinHandle;

use crate::measure::{Job, Meeting, Pool, ProcessPool, attend, perform};

/// The entry point of procspawn's processes. In any other process it returns.
pub(crate) fn init() {
    let mut config = procspawn::ProcConfig::new();
    config.pass_args(false);
    // Without this, procspawn's children end only when a channel is closed. With it, they end at
    // once when the parent is killed.
    config.config_callback(|| {
        let _ =
            rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
    });
    config.init();
}

pub(crate) struct Procspawn(procspawn::Pool);

impl Pool for Procspawn {
    type Pending = JoinHandle<u64>;
    /// A pending call holds three descriptors, and the usual limit of a process is 1024.
    const WINDOW: usize = 200;

    fn start(workers: usize) -> Self {
        Procspawn(
            procspawn::Pool::builder(workers)
                .disable_stdin()
                .disable_stdout()
                .build()
                .expect("a pool"),
        )
    }

    fn submit(&self, job: Job, x: u64) -> JoinHandle<u64> {
        match job {
            Job::NoOp => self.0.spawn(x, |x| x),
            Job::Spin => self.0.spawn(x, |x| perform(Job::Spin, x)),
            Job::Sleep => self.0.spawn(x, |x| perform(Job::Sleep, x)),
        }
    }

    fn take(pending: JoinHandle<u64>) -> u64 {
        pending.join().expect("no task fails")
    }
}

impl ProcessPool for Procspawn {
    fn echo(&self, bytes: Vec<u8>) -> (Duration, Vec<u8>) {
        let started = Instant::now();
        let back = self.0.spawn(bytes, |bytes| bytes).join().expect("no task fails");
        (started.elapsed(), back)
    }

    fn meet(&self, meeting: &Meeting) -> [u32; 2] {
        let path = meeting.path();
        [false, true]
            .map(|write| self.0.spawn((path.clone(), write), |(path, write)| attend(&path, write)))
            .map(|pid| pid.join().expect("no task fails"))
    }
}
