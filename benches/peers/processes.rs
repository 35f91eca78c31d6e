//! The peer in Rust that starts processes: `procspawn::Pool`.
//!
//! It starts this executable again too, and knows its processes by an environment variable; both entries live together
//! because each looks for its own mark only.

use std::time::{Duration, Instant};

use procspawn::JoinHandle;

use crate::measure::{Job, Meeting, Pool, ProcessPool, attend, perform};

/// The entry of its processes; in any other it returns.
pub(crate) fn init() {
    let mut config = procspawn::ProcConfig::new();
    config.pass_args(false);
    // Its children see the end of their parent by the end of a channel; a killed parent is seen at once by this.
    config.config_callback(|| {
        let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
    });
    config.init();
}

pub(crate) struct Procspawn(procspawn::Pool);

impl Pool for Procspawn {
    type Pending = JoinHandle<u64>;
    /// A call that waits holds three descriptors, and 1024 is what a process usually may have.
    const WINDOW: usize = 200;

    fn start(workers: usize) -> Self {
        Procspawn(procspawn::Pool::builder(workers).disable_stdin().disable_stdout().build().expect("a pool"))
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
