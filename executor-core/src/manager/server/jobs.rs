//! The threads that run functions of users in a server.
//!
//! Such a function may take any time, or never end. So each runs on a thread that nobody else needs
//! meanwhile. Threads that have become idle are used again.

use std::{
    collections::VecDeque,
    io,
    sync::{Arc, Condvar, Mutex, PoisonError},
    time::Duration,
};

use super::{
    super::{client::Door, function::Application, protocol::ObjectId},
    core::{Job, JobId},
};
use crate::os::{eventfd::EventFd, std_or_model::lock};

/// How long an idle thread stays. With a higher value, memory is kept for longer; with a lower one,
/// a thread is started for each of several functions that come one after the other.
const IDLE: Duration = Duration::from_secs(10);

/// What a function has given: the new value and the objects that it names, or the body of a reply
/// that says why there is none.
pub(super) type Outcome = Result<(Vec<u8>, Vec<ObjectId>), Vec<u8>>;

/// The threads, and what passes between them and the server's loop.
pub(super) struct Jobs(Arc<Shared>);

struct Shared {
    door: Arc<Door>,
    state: Mutex<State>,
    changed: Condvar,
    /// Wakes the server's loop when a function has ended.
    done: EventFd,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Job>,
    ended: Vec<(JobId, Outcome)>,
    idle: usize,
}

impl Jobs {
    pub(super) fn new(door: Arc<Door>) -> io::Result<Self> {
        let done = EventFd::new()?;
        Ok(Jobs(Arc::new(Shared { door, state: Mutex::default(), changed: Condvar::new(), done })))
    }

    /// The descriptor that becomes readable when a function has ended.
    pub(super) fn done(&self) -> &EventFd {
        &self.0.done
    }

    /// Begins a job. If the system refuses a thread for it, the job ends with that error.
    pub(super) fn begin(&self, job: Job) {
        let mut state = lock(&self.0.state);
        let id = job.id;
        state.queue.push_back(job);
        if state.idle >= state.queue.len() {
            drop(state);
            self.0.changed.notify_one();
            return;
        }
        let shared = Arc::clone(&self.0);
        let started = std::thread::Builder::new()
            .name("executor-update".to_owned())
            .spawn(move || shared.run());
        if let Err(error) = started {
            state.queue.retain(|job| job.id != id);
            state.ended.push((id, Err(refused(&error))));
            drop(state);
            self.0.done.ring();
        }
    }

    /// Returns what has ended since the last time.
    pub(super) fn ended(&self) -> Vec<(JobId, Outcome)> {
        self.0.done.clear();
        std::mem::take(&mut lock(&self.0.state).ended)
    }
}

/// Returns the body of the reply to a job that has no thread.
fn refused(error: &io::Error) -> Vec<u8> {
    use super::super::protocol::{put_bytes, put_number};
    let mut body = Vec::new();
    put_number(&mut body, crate::wire::frame::Reply::Refused as u64);
    put_bytes(&mut body, format!("the server got no thread for it: {error}").as_bytes());
    put_bytes(&mut body, b"a function");
    body
}

impl Shared {
    fn run(&self) {
        loop {
            let mut state = lock(&self.state);
            while state.queue.is_empty() {
                state.idle += 1;
                let waited = self.changed.wait_timeout(state, IDLE);
                let (woken, waited) = waited.unwrap_or_else(PoisonError::into_inner);
                state = woken;
                state.idle -= 1;
                if waited.timed_out() && state.queue.is_empty() {
                    return;
                }
            }
            let job = state.queue.pop_front().expect("looked at above");
            drop(state);
            let application = Application {
                function: job.function,
                optional: job.optional,
                current: job.current.as_deref(),
                rest: &job.arguments,
            };
            let outcome = application.run(&self.door);
            lock(&self.state).ended.push((job.id, outcome));
            self.done.ring();
        }
    }
}
