//! What this process knows about one child process, for the child's handles and the watcher.

use std::{
    io,
    sync::{Arc, Condvar, Mutex, PoisonError},
    task::{Poll, Waker},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec},
    process::Signal,
};

use super::{
    report::{Incoming, Said},
    table,
};
use crate::{
    child::{launch::Launched, verdict::Ending},
    error::{ExitStatus, Phase, TaskError},
    future::{callback::wake_each, cell::Outcome},
    os::{
        fork::{Creator, NotInherited},
        memory::Shared,
        process::Child as Process,
        ready,
        std_or_model::lock,
    },
    transport::board::Board,
    worker::BODY,
};

/// What this process knows about one child process. The handles of the child and the table share
/// it.
pub(crate) struct Record {
    pub(super) name: String,
    pub(super) task: String,
    pub(super) daemon: bool,
    /// Whether the programs that the child has started continue after it has returned.
    keeps_programs: bool,
    pub(super) parent: u32,
    pub(super) process: Process,
    pub(super) creator: Creator,
    /// The timeout of the child's task, and the time at which it ends.
    timeout: Option<(Duration, Instant)>,
    board: Shared<Board>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// The socket over which the child reports. It is closed when the child has ended. The child
    /// takes the end of this socket for the end of this process, so a copy of this process must not
    /// keep it.
    socket: Option<Arc<NotInherited>>,
    incoming: Incoming,
    /// Whether this process has sent SIGKILL to the child.
    killed: bool,
    /// Whether the child was killed because its task's timeout had passed.
    timed_out: bool,
    /// Whether the thread that watched the child has ended.
    unwatched: bool,
    wakers: Vec<Waker>,
}

impl State {
    /// Returns whether the child is to be killed when its timeout ends. This is so if its report
    /// is not complete and it was not killed for the timeout already. A report that has only begun
    /// does not count, because the child may stop before it sends the rest.
    fn has_to_end(&self) -> bool {
        !self.timed_out && self.incoming.report().is_none()
    }
}

/// The properties of a process that its user asked for.
pub(super) struct Asked {
    pub(super) name: String,
    /// The name of the task in errors.
    pub(super) task: String,
    pub(super) daemon: bool,
    pub(super) keeps_programs: bool,
    /// The timeout of the task.
    pub(super) timeout: Option<Duration>,
}

impl Record {
    pub(super) fn new(asked: Asked, launched: Launched, board: Shared<Board>) -> Arc<Record> {
        let Launched { child: process, socket } = launched;
        let Asked { name, task, daemon, keeps_programs, timeout } = asked;
        Arc::new(Record {
            name,
            task,
            daemon,
            keeps_programs,
            parent: std::process::id(),
            process,
            creator: Creator::here(),
            timeout: timeout
                .and_then(|timeout| Some((timeout, Instant::now().checked_add(timeout)?))),
            board,
            state: Mutex::new(State {
                socket: Some(Arc::new(NotInherited::new(socket))),
                ..State::default()
            }),
            changed: Condvar::new(),
        })
    }

    /// Returns how the child ended, or `None` if it is running.
    pub(super) fn status(&self) -> Option<ExitStatus> {
        if self.creator.is_elsewhere() {
            return None;
        }
        if let Some(status) = self.settled_status() {
            return Some(status);
        }
        // The watcher may not have noticed the end yet, so check here.
        if self.process.has_ended() {
            self.look();
        }
        self.settled_status()
    }

    /// Returns how the child ended, once its report was read as well.
    fn settled_status(&self) -> Option<ExitStatus> {
        let _state = lock(&self.state);
        self.process.status()
    }

    /// Waits for the end of the child. Returns `None` at `deadline`, or at once if it is not a
    /// child of this process.
    pub(super) fn wait(&self, deadline: Option<Instant>) -> Option<ExitStatus> {
        if self.creator.is_elsewhere() {
            return None;
        }
        if !table::is_watched() {
            return self.wait_alone(deadline);
        }
        let mut state = lock(&self.state);
        loop {
            if let Some(status) = self.process.status() {
                drop(state);
                self.leave_table();
                return Some(status);
            }
            if state.unwatched {
                drop(state);
                return self.wait_alone(deadline);
            }
            state = match deadline.map(|at| at.saturating_duration_since(Instant::now())) {
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(Duration::ZERO) => {
                    drop(state);
                    return self.status();
                }
                Some(left) => {
                    self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    /// Removes the record from the table after the child's end.
    ///
    /// The watcher announces the end while it still has a handle of the record, and a handle keeps
    /// descriptors open. The watcher drops the handle under the table's lock. So once this call has
    /// had the lock, the handle is gone.
    fn leave_table(&self) {
        table::remove(self);
    }

    /// Polls for the end of the child, for a future. At the end it wakes `waker`.
    pub(super) fn poll(&self, waker: &Waker) -> Poll<()> {
        if self.creator.is_elsewhere() {
            return Poll::Ready(());
        }
        // The waker is cloned before the lock is taken. If it is not needed, it is dropped after
        // the lock is released. Both run user code.
        let mut new = Some(waker.clone());
        let mut state = lock(&self.state);
        if self.process.status().is_some() {
            drop(state);
            self.leave_table();
            return Poll::Ready(());
        }
        if !state.wakers.iter().any(|other| other.will_wake(waker)) {
            state.wakers.extend(new.take());
        }
        drop(state);
        drop(new);
        if !table::is_watched() && !table::watch_again() {
            // The system refuses to start a watcher thread, so no other thread would notice the
            // end. Wait briefly here, and poll again.
            if self.wait_alone(Some(Instant::now() + Duration::from_millis(1))).is_some() {
                return Poll::Ready(());
            }
            waker.wake_by_ref();
        }
        Poll::Pending
    }

    /// Returns the outcome for `join`, once the child has ended.
    pub(super) fn outcome(&self) -> Outcome {
        if self.creator.is_elsewhere() {
            let text = format!(
                "process {} was started by another process, which alone can join it",
                self.process.pid()
            );
            return Err(TaskError::Invalid(text.into()));
        }
        let state = lock(&self.state);
        match (state.incoming.report(), self.process.status()) {
            (Some(said), _) => {
                let said = said.clone();
                drop(state);
                said.outcome(&self.task)
            }
            (None, _)
                if state.timed_out
                    && let Some((timeout, _)) = self.timeout =>
            {
                Err(TaskError::timed_out(timeout, Phase::Run).of_task(&self.task))
            }
            (None, status) => {
                let status = status.unwrap_or(ExitStatus::Unknown);
                Err(self.ending(status, state.killed).of_task(BODY, &self.task))
            }
        }
    }

    fn ending(&self, status: ExitStatus, killed: bool) -> Ending<'_> {
        Ending {
            pid: self.process.pid(),
            status,
            board: Some(&self.board),
            reached: self.board.is_reached(),
            killed_by_us: killed,
            broke_protocol: None,
            stopped_by: None,
            restraints: None,
            out_of_memory: None,
        }
    }

    /// Sends a signal to the child. Does nothing if the child has ended, or if it is not a child of
    /// this process.
    pub(super) fn signal(&self, signal: Signal) -> io::Result<()> {
        // Check this before taking the lock. In a fork, the lock may be held for ever.
        if self.creator.is_elsewhere() {
            return Ok(());
        }
        let mut state = lock(&self.state);
        state.killed |= signal == Signal::KILL;
        // Send the signal under the lock. The child is reaped under the same lock, and after that
        // its pid may belong to another process.
        match self.process.status() {
            None => self.process.signal(signal),
            Some(_) => Ok(()),
        }
    }

    /// Kills the child's process group, or what is left of the group after the child's end. Returns
    /// whether the system allowed it. If not, shuts down the child's socket, so that the child ends
    /// itself.
    pub(super) fn kill_group(&self) -> bool {
        if self.creator.is_elsewhere() {
            return true;
        }
        self.kill_group_in(&mut lock(&self.state))
    }

    /// Returns when the child's timeout ends, if it has a timeout that can still end it.
    pub(super) fn times_out_at(&self) -> Option<Instant> {
        let (_, at) = self.timeout?;
        lock(&self.state).has_to_end().then_some(at)
    }

    fn kill_group_in(&self, state: &mut State) -> bool {
        if self.process.status().is_some() {
            self.process.kill_rest();
            return true;
        }
        state.killed = true;
        let sent = self.process.signal_group(Signal::KILL).is_ok();
        if !sent && let Some(socket) = state.socket.as_ref().and_then(|socket| socket.get()) {
            let _ = rustix::net::shutdown(socket, rustix::net::Shutdown::Both);
        }
        sent
    }

    /// Reads the child's report, and reaps the child if it has ended. It wakes waiting tasks, so
    /// the caller must hold no lock.
    fn look(&self) {
        wake_each(self.look_and_take_wakers().unwrap_or_default());
    }

    /// Does the same as [`look`](Self::look), but returns the wakers to be woken if the child has
    /// ended. Returns `None` if it is still running.
    pub(super) fn look_and_take_wakers(&self) -> Option<Vec<Waker>> {
        let mut state = lock(&self.state);
        if self.process.status().is_some() {
            return Some(Vec::new());
        }
        // Check for the end first, then read. If the child has ended, everything that it has sent
        // can be read now.
        let ended = self.process.has_ended();
        let State { socket, incoming, .. } = &mut *state;
        if let Some(socket) = socket.as_ref().and_then(|socket| socket.get()) {
            incoming.read(socket, ended);
        }
        if !ended {
            if let Some((_, at)) = self.timeout
                && state.has_to_end()
                && at <= Instant::now()
            {
                state.timed_out = true;
                self.kill_group_in(&mut state);
            }
            return None;
        }
        state.socket = None;
        // If the exit status was lost, a report with a value tells that the body has returned.
        let returned = matches!(state.incoming.report(), Some(Said::Value(_)));
        table::reap(&self.process, |status| {
            let well = status == ExitStatus::Exited(0) || status == ExitStatus::Unknown && returned;
            self.keeps_programs && well
        });
        self.changed.notify_all();
        Some(std::mem::take(&mut state.wakers))
    }

    /// Returns the socket, if something is to be read from it.
    pub(super) fn awaited_socket(&self) -> Option<Arc<NotInherited>> {
        let state = lock(&self.state);
        state.socket.clone().filter(|_| state.incoming.is_awaited())
    }

    /// Handles the end of the watcher thread: wakes the threads and tasks that wait for the child.
    /// They check it themselves from now on.
    pub(super) fn unwatch(&self) {
        let wakers = {
            let mut state = lock(&self.state);
            state.unwatched = true;
            std::mem::take(&mut state.wakers)
        };
        self.changed.notify_all();
        wake_each(wakers);
    }

    /// Does the same as [`wait`](Self::wait), without a watcher: the calling thread checks the
    /// process.
    pub(super) fn wait_alone(&self, deadline: Option<Instant>) -> Option<ExitStatus> {
        /// How often the child's socket is read. This thread is woken only by the child's end, so a
        /// child that waits for space in the socket is delayed by up to this time.
        const LOOK: Duration = Duration::from_millis(50);
        loop {
            if let Some(status) = self.status() {
                return Some(status);
            }
            let left =
                deadline.map_or(LOOK, |at| at.saturating_duration_since(Instant::now()).min(LOOK));
            if left.is_zero() {
                return None;
            }
            // A fork of this process never sees the end of the child.
            let Some(pidfd) = self.process.pidfd().filter(|_| !self.creator.is_elsewhere()) else {
                return self.status();
            };
            let timeout = Timespec { tv_sec: 0, tv_nsec: left.as_nanos() as _ };
            let mut fds = [PollFd::from_borrowed_fd(pidfd, PollFlags::IN)];
            ready::doze(&mut fds, Some(&timeout));
            self.look();
        }
    }
}

#[cfg(all(test, not(any(executor_loom, executor_shuttle))))]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_counts_until_the_whole_report_is_there() {
        let mut state = State::default();
        assert!(state.has_to_end());
        // The child has stopped after the first part of its report.
        state.incoming = Incoming::begun();
        assert!(state.has_to_end());
        state.incoming = Incoming::complete();
        assert!(!state.has_to_end());
        state = State { timed_out: true, ..State::default() };
        assert!(!state.has_to_end());
    }
}
