//! The processes of this program, and the one thread that watches them.
//!
//! Whoever forks takes the table's lock first. All that the thread can hold then is a record's lock, for a moment, and a
//! copy of this process never touches those of its parent; so the thread does not count as one that could be in the way.

use std::{
    io,
    os::fd::{BorrowedFd, OwnedFd},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    task::{Poll, Waker},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll},
    process::Signal,
};

use crate::{
    child::{exit, launch::Launched, verdict::Ending, watch::Reaper},
    error::{ExitStatus, Phase, TaskError, reply},
    future::{callback::wake_each, cell::Outcome},
    os::{
        fork::{NotInherited, Origin, PerProcess},
        memory::Shared,
        process::{Child as Process, above_stdio},
        ready,
        sealed::SealedView,
        signals,
        socket::retry,
        sync::lock,
    },
    transport::board::Board,
    unwind::catch,
    wire::{
        attachment::{ATTACHMENTS_MAX, Attachment},
        frame::Reply,
        handshake::{self, Report},
        payload::Payload,
    },
    worker::BODY,
};

/// What is known of one process; its handles and the table share it.
pub(crate) struct Record {
    pub(super) name: String,
    pub(super) task: String,
    pub(super) daemon: bool,
    /// Whether what it has started goes on after it has returned.
    keeps_programs: bool,
    pub(super) parent: u32,
    pub(super) process: Process,
    pub(super) origin: Origin,
    /// The time limit of its task, and when that is over.
    limit: Option<(Duration, Instant)>,
    board: Shared<Board>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Over which it reports. Closed when it has ended, since it takes the end of this for ours; so no copy of this process may keep it.
    socket: Option<Arc<NotInherited>>,
    /// Nothing more is to be read from it.
    heard: bool,
    /// Its report is there, and this process has no room for the descriptor that comes with it. Not asked again before its end: the
    /// socket stays readable, and the watcher would never sleep.
    starved: bool,
    report: Option<Said>,
    /// A report whose descriptors are still on their way, and how many there are to be.
    begun: Option<(Payload, Vec<Attachment>, usize)>,
    /// A SIGKILL was ours.
    killed: bool,
    /// Its task's time was over, and it is killed for that.
    timed_out: bool,
    /// Whoever watched it is gone.
    unwatched: bool,
    wakers: Vec<Waker>,
}

/// What a process has reported. Decoded by whoever asks for it: how long that takes is the child's choice, and it is kept under locks
/// that all processes need.
#[derive(Clone)]
enum Said {
    Value(Payload),
    Failure(Reply, Payload),
}

impl Said {
    fn refused(why: &str) -> Self {
        Said::Failure(Reply::Refused, why.as_bytes().into())
    }

    fn outcome(self, task: &str) -> Outcome {
        match self {
            Said::Value(payload) => Ok(payload),
            Said::Failure(kind, payload) => Err(reply::failure(task, kind, &payload)),
        }
    }
}

/// A descriptor for the result of a child, where the program has used up all that it may have: it is given up for the moment in which
/// the result is mapped. There is one while there are processes.
static SPARE: PerProcess<Mutex<Option<OwnedFd>>> = PerProcess::new(Mutex::default);

/// Sees to it that there is one.
fn keep_spare() {
    let mut spare = lock(SPARE.get());
    if spare.is_none() {
        *spare = eventfd(0, EventfdFlags::CLOEXEC).ok().and_then(|fd| above_stdio(fd).ok());
    }
}

/// How long the end of a process is waited for that was terminated because the program ends; killed after that.
const GRACE: Duration = Duration::from_secs(2);
/// How long the watcher stays with nothing to watch. Longer costs a sleeping thread, shorter a thread for each process of
/// a series.
const IDLE: Duration = Duration::from_secs(1);

struct Table {
    running: Vec<Arc<Record>>,
    /// Rung to make the watcher look at the table; `None` while there is no watcher.
    watcher: Option<Arc<OwnedFd>>,
}

/// A forked child has its own, empty one.
static TABLE: PerProcess<Mutex<Table>> =
    PerProcess::new(|| Mutex::new(Table { running: Vec::new(), watcher: None }));

/// Reaps all children but those of pools.
static REAPER: PerProcess<Reaper> = PerProcess::new(Reaper::default);

/// What was asked for of a process.
pub(super) struct Asked {
    pub(super) name: String,
    /// What errors call its task.
    pub(super) task: String,
    pub(super) daemon: bool,
    pub(super) keeps_programs: bool,
    /// Of its task.
    pub(super) limit: Option<Duration>,
}

impl Record {
    pub(super) fn new(asked: Asked, launched: Launched, board: Shared<Board>) -> Arc<Record> {
        let Launched { child: process, socket } = launched;
        let Asked { name, task, daemon, keeps_programs, limit } = asked;
        Arc::new(Record {
            name,
            task,
            daemon,
            keeps_programs,
            parent: std::process::id(),
            process,
            origin: Origin::here(),
            limit: limit.and_then(|limit| Some((limit, Instant::now().checked_add(limit)?))),
            board,
            state: Mutex::new(State {
                socket: Some(Arc::new(NotInherited::new(socket))),
                ..State::default()
            }),
            changed: Condvar::new(),
        })
    }

    /// How it ended, if it has.
    pub(super) fn status(&self) -> Option<ExitStatus> {
        if self.origin.forked() {
            return None;
        }
        if let Some(status) = self.settled_status() {
            return Some(status);
        }
        // The watcher may not have got to it yet; whoever asks wants to know.
        if self.process.has_ended() {
            self.look();
        }
        self.settled_status()
    }

    /// How it ended, once its report was read as well.
    fn settled_status(&self) -> Option<ExitStatus> {
        let _state = lock(&self.state);
        self.process.status()
    }

    /// Waits for its end; `None` at `deadline`, and at once where it is not this process's child.
    pub(super) fn wait(&self, deadline: Option<Instant>) -> Option<ExitStatus> {
        if self.origin.forked() {
            return None;
        }
        if !Record::is_watched() {
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

    /// After its end. The watcher has told that while it still had a handle, and a handle keeps descriptors open; it drops it
    /// under the table's lock.
    fn leave_table(&self) {
        lock(TABLE.get()).running.retain(|other| !std::ptr::eq(&**other, self));
    }

    /// As a future asks; wakes `waker` at the end.
    pub(super) fn poll(&self, waker: &Waker) -> Poll<()> {
        if self.origin.forked() {
            return Poll::Ready(());
        }
        // Cloned before the lock is taken, and dropped after it is free if it is there already: both are users' code.
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
        if !Record::is_watched() && !self.rewatch() {
            // The system refuses a thread: nobody else would look.
            if self.wait_alone(Some(Instant::now() + Duration::from_millis(1))).is_some() {
                return Poll::Ready(());
            }
            waker.wake_by_ref();
        }
        Poll::Pending
    }

    /// Tries once more to have it watched.
    fn rewatch(&self) -> bool {
        let mut table = lock(TABLE.get());
        ring(&mut table);
        table.watcher.is_some()
    }

    /// What `join` returns, once it has ended.
    pub(super) fn outcome(&self) -> Outcome {
        if self.origin.forked() {
            let text = format!(
                "process {} was started by another process, which alone can join it",
                self.process.pid()
            );
            return Err(TaskError::Invalid(text.into()));
        }
        let state = lock(&self.state);
        match (&state.report, self.process.status()) {
            (Some(said), _) => {
                let said = said.clone();
                drop(state);
                said.outcome(&self.task)
            }
            (None, _)
                if state.timed_out
                    && let Some((limit, _)) = self.limit =>
            {
                Err(TaskError::timed_out(limit, Phase::Run).of_task(&self.task))
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
        }
    }

    /// Sends it a signal. A process that has ended, or is another's, gets none.
    pub(super) fn signal(&self, signal: Signal) -> io::Result<()> {
        // Before its lock: that may have been held when this process was copied.
        if self.origin.forked() {
            return Ok(());
        }
        let mut state = lock(&self.state);
        state.killed |= signal == Signal::KILL;
        // Under the lock: it is reaped under it, and its number another's after that.
        match self.process.status() {
            None => self.process.signal(signal),
            Some(_) => Ok(()),
        }
    }

    /// Kills its process group, what is left of it after its end; whether it was allowed to. Where not, the child is asked to
    /// end itself, by the end of its socket.
    pub(super) fn kill_group(&self) -> bool {
        if self.origin.forked() {
            return true;
        }
        self.kill_group_in(&mut lock(&self.state))
    }

    /// When its time is over, if it has a limit and that is still to come.
    fn limit_at(&self) -> Option<Instant> {
        let (_, at) = self.limit?;
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

    /// Reads what it has reported, and reaps it if it has ended. Wakes who waits, so the caller holds no lock.
    fn look(&self) {
        wake_each(self.look_and_take_wakers().unwrap_or_default());
    }

    /// As [`look`](Self::look): whom to wake, if it has ended.
    fn look_and_take_wakers(&self) -> Option<Vec<Waker>> {
        let mut state = lock(&self.state);
        if self.process.status().is_some() {
            return Some(Vec::new());
        }
        // First asked, then read: what it said before its end is there by then.
        let ended = self.process.has_ended();
        if !state.heard
            && let Some(socket) = state.socket.clone()
            && let Some(socket) = socket.get()
        {
            state.heard = !state.read(socket, ended);
        }
        if !ended {
            if let Some((_, at)) = self.limit
                && state.has_to_end()
                && at <= Instant::now()
            {
                state.timed_out = true;
                self.kill_group_in(&mut state);
            }
            return None;
        }
        state.socket = None;
        // Where its status is lost, its report says whether it has returned.
        let returned = matches!(state.report, Some(Said::Value(_)));
        REAPER.get().reap_and_keep(&self.process, |status| {
            let well = status == ExitStatus::Exited(0) || status == ExitStatus::Unknown && returned;
            self.keeps_programs && well
        });
        self.changed.notify_all();
        Some(std::mem::take(&mut state.wakers))
    }
}

fn is_readable(socket: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(socket, PollFlags::IN)];
    matches!(retry(|| poll(&mut fds, Some(&Timespec::default()))), Ok(1..))
}

impl State {
    /// Whether it is to be killed when its time is over: it has not reported, all of it, nor was it killed for that. Also one whose
    /// report has begun: it may be stopped before the rest.
    fn has_to_end(&self) -> bool {
        !self.timed_out && self.report.is_none()
    }

    /// Reads what is there of a child's report, and never waits: it may have stopped in the middle. Whether more is to come.
    fn read(&mut self, socket: BorrowedFd<'_>, ended: bool) -> bool {
        if self.starved && !ended {
            return true;
        }
        while is_readable(socket) {
            let complete = match &mut self.begun {
                None => match self.read_first(socket) {
                    Ok(complete) => complete,
                    Err(error) if error.raw_os_error() == Some(libc::EMFILE) && !ended => {
                        self.starved = true;
                        return true;
                    }
                    // It has hung up: that says nothing more than its end.
                    Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return false,
                    Err(error) => {
                        self.refused(&format!("what it reported cannot be received (recvmsg): {error}"))
                    }
                },
                Some((_, attachments, count)) => match handshake::receive_attachments(socket, 1) {
                    Ok(some) => {
                        attachments.extend(some);
                        attachments.len() >= *count
                    }
                    Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return false,
                    Err(error) => {
                        self.begun = None;
                        self.refused(&format!("the descriptors of its result cannot be received: {error}"))
                    }
                },
            };
            if complete {
                if let Some((payload, attachments, _)) = self.begun.take() {
                    self.report = Some(Said::Value(payload.with(attachments)));
                }
                return false;
            }
        }
        true
    }

    /// Reads the first message of a report; whether that was all.
    fn read_first(&mut self, socket: BorrowedFd<'_>) -> io::Result<bool> {
        let answer = match handshake::receive_report_now(socket) {
            Err(error) if error.raw_os_error() == Some(libc::EMFILE) => {
                // Once more, with the one that is kept for this.
                drop(lock(SPARE.get()).take());
                let again = handshake::receive_report_now(socket);
                if again.is_err() {
                    keep_spare();
                }
                again
            }
            // The library speaks, in another version: the only word of it that can be read.
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                return Ok(self.refused(&error.to_string()));
            }
            other => other,
        };
        let complete = match answer? {
            Ok((report, file)) => self.begin(report, file),
            Err(refusal) => self.refused(&refusal.why),
        };
        keep_spare();
        Ok(complete)
    }

    /// There is no value: it never came to its task, or what it said did not come here.
    fn refused(&mut self, why: &str) -> bool {
        self.report = Some(Said::refused(why));
        true
    }

    /// Takes in the first part of a report; whether that was all.
    fn begin(&mut self, report: Report, file: Option<OwnedFd>) -> bool {
        let payload = match file.filter(|_| report.in_file) {
            None => Payload::from(report.payload.into_vec()),
            // The descriptor is not kept.
            Some(file) => match SealedView::open(&file) {
                Ok(view) => Payload::sealed(view),
                Err(error) => return self.refused(&format!("its result cannot be mapped: {error}")),
            },
        };
        match Reply::from_u8(report.kind) {
            Some(Reply::Done) if report.attachments as usize <= ATTACHMENTS_MAX => {
                let count = report.attachments as usize;
                self.begun = Some((payload, Vec::new(), count));
                count == 0
            }
            Some(
                kind @ (Reply::Failed
                | Reply::Panicked
                | Reply::DecodeError
                | Reply::EncodeError
                | Reply::Unsuited
                | Reply::Refused),
            ) => {
                self.report = Some(Said::Failure(kind, payload));
                true
            }
            // Nothing that a child of ours says.
            _ => true,
        }
    }
}

/// Kills and reaps a child that is not in the table, if it ends within `limit`.
pub(super) fn kill(child: &Process, limit: Duration) {
    REAPER.get().kill(child, limit);
    look_behind();
}

/// Reaps a child that is not in the table and is about to end. It is killed if it takes longer than
/// `limit`.
pub(super) fn end(child: &Process, limit: Duration) {
    REAPER.get().end(child, limit);
    look_behind();
}

/// What is left behind needs the watcher.
fn look_behind() {
    if !REAPER.get().is_idle() {
        ring(&mut lock(TABLE.get()));
    }
}

/// Adds a process, and sees to it that it is watched.
pub(super) fn add(record: &Arc<Record>) {
    exit::end_children_by(finish);
    keep_spare();
    let mut table = lock(TABLE.get());
    table.running.push(Arc::clone(record));
    ring(&mut table);
}

fn ring(table: &mut Table) {
    if table.watcher.is_none() {
        let Ok(bell) = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK) else { return };
        let Ok(bell) = above_stdio(bell) else { return };
        let bell = Arc::new(bell);
        let theirs = Arc::clone(&bell);
        // Where the system refuses a thread, whoever joins looks for himself.
        let made = signals::deaf(|| {
            thread::Builder::new().name("executor-children".into()).stack_size(128 * 1024).spawn(move || {
                if catch(|| watch(&theirs)).is_err() {
                    watcher_is_gone();
                }
            })
        });
        table.watcher = made.is_ok().then_some(bell);
    }
    if let Some(bell) = &table.watcher {
        let _ = retry(|| rustix::io::write(&**bell, &1_u64.to_ne_bytes()));
    }
}

/// The watcher has panicked: who waits looks for himself from here on.
fn watcher_is_gone() {
    let records = {
        let mut table = lock(TABLE.get());
        table.watcher = None;
        table.running.clone()
    };
    for record in records {
        let wakers = {
            let mut state = lock(&record.state);
            state.unwatched = true;
            std::mem::take(&mut state.wakers)
        };
        record.changed.notify_all();
        wake_each(wakers);
    }
}

/// Whether there is a watcher: a thread that need not be feared by whoever forks while it has the [`pause`].
pub(super) fn has_watcher(pause: &Pause<'_>) -> bool {
    pause.0.watcher.is_some()
}

/// While it lives, the watcher sleeps and holds no lock.
pub(super) struct Pause<'a>(MutexGuard<'a, Table>);

pub(super) fn pause() -> Pause<'static> {
    Pause(lock(TABLE.get()))
}

impl Pause<'_> {
    /// In a forked child: nothing of the parent's is ours.
    pub(super) fn forget_all(mut self) {
        // Not dropped here, under the lock: they have wakers, which are users' code. Nor elsewhere: all of it is copies.
        std::mem::forget(std::mem::take(&mut self.0.running));
        self.0.watcher = None;
    }
}

/// The watcher's life.
fn watch(bell: &Arc<OwnedFd>) {
    let mut idle_since = Instant::now();
    let origin = Origin::here();
    loop {
        // A waker has copied this process, and has returned in the copy, which has no children.
        origin.end_copy(0);
        let records = {
            let mut table = lock(TABLE.get());
            let mut ended = Vec::new();
            table.running.retain(|record| match record.look_and_take_wakers() {
                Some(wakers) => {
                    ended.extend(wakers);
                    false
                }
                None => true,
            });
            if !ended.is_empty() {
                // They are the user's, and may ask for `active_children` or start the next process.
                drop(table);
                wake_each(ended);
                continue;
            }
            if !table.running.is_empty() {
                idle_since = Instant::now();
            } else if idle_since.elapsed() >= IDLE && REAPER.get().is_idle() {
                table.watcher = None;
                *lock(SPARE.get()) = None;
                return;
            }
            table.running.clone()
        };
        // The descriptors stay open as long as the records live, which is until after the sleep. A socket is not among those
        // that are slept on once it was read: what it says is said before the end.
        let unheard = |record: &Arc<Record>| {
            let state = lock(&record.state);
            state.socket.clone().filter(|_| !state.heard && !state.starved)
        };
        let sockets: Vec<Option<Arc<NotInherited>>> = records.iter().map(unheard).collect();
        let mut fds = vec![PollFd::new(&**bell, PollFlags::IN)];
        for (record, socket) in records.iter().zip(&sockets) {
            fds.extend(record.process.pidfd().map(|pidfd| PollFd::from_borrowed_fd(pidfd, PollFlags::IN)));
            let socket = socket.as_ref().and_then(|socket| socket.get());
            fds.extend(socket.map(|socket| PollFd::from_borrowed_fd(socket, PollFlags::IN)));
        }
        let reaper = REAPER.get();
        reaper.look(records.iter().map(|record| record.process.pid()));
        let orphans = reaper.next_look(!records.is_empty());
        let idle = records.is_empty().then(|| Instant::now() + IDLE);
        let over = records.iter().filter_map(|record| record.limit_at());
        let limit = orphans.into_iter().chain(idle).chain(over).min().map(|at| {
            let left = at.saturating_duration_since(Instant::now());
            Timespec { tv_sec: left.as_secs() as _, tv_nsec: left.subsec_nanos() as _ }
        });
        ready::doze(&mut fds, limit.as_ref());
        let _ = rustix::io::read(&**bell, &mut [0_u8; 8]);
        // What is dropped here may be the last handle of a record; under no lock.
        drop(fds);
        drop((sockets, records));
    }
}

/// Those that run, in the order in which they were started.
pub(super) fn running() -> Vec<Arc<Record>> {
    let records = lock(TABLE.get()).running.clone();
    records.into_iter().filter(|record| record.status().is_none()).collect()
}

/// At the end of the program: daemons are ended, the others waited for.
fn finish() {
    let records = running();
    let daemons: Vec<_> = records.iter().filter(|record| record.daemon).collect();
    for daemon in &daemons {
        let _ = daemon.signal(Signal::TERM);
    }
    let deadline = Instant::now() + GRACE;
    for daemon in &daemons {
        if daemon.wait_alone(Some(deadline)).is_none() {
            // One that may not be killed is not waited for any longer: the end of this program ends it.
            let killed = daemon.kill_group();
            daemon.wait_alone((!killed).then(|| Instant::now() + GRACE));
        }
    }
    for record in records.iter().filter(|record| !record.daemon) {
        record.wait_alone(None);
    }
}

impl Record {
    /// As [`wait`](Self::wait), where the watcher may be missing: by looking for oneself.
    pub(super) fn wait_alone(&self, deadline: Option<Instant>) -> Option<ExitStatus> {
        /// Nobody rings here, so this is how late a report of a child is read that waits for room.
        const LOOK: Duration = Duration::from_millis(50);
        loop {
            if let Some(status) = self.status() {
                return Some(status);
            }
            let left = deadline.map_or(LOOK, |at| at.saturating_duration_since(Instant::now()).min(LOOK));
            if left.is_zero() {
                return None;
            }
            // In a forked copy nobody's end is ever seen.
            let Some(pidfd) = self.process.pidfd().filter(|_| !self.origin.forked()) else {
                return self.status();
            };
            let limit = Timespec { tv_sec: 0, tv_nsec: left.as_nanos() as _ };
            let mut fds = [PollFd::from_borrowed_fd(pidfd, PollFlags::IN)];
            ready::doze(&mut fds, Some(&limit));
            self.look();
        }
    }

    /// Whether somebody watches it.
    pub(super) fn is_watched() -> bool {
        lock(TABLE.get()).watcher.is_some()
    }
}

#[cfg(all(test, not(any(executor_loom, executor_shuttle))))]
mod tests {
    use super::*;

    #[test]
    fn a_time_limit_counts_until_the_whole_report_is_there() {
        let mut state = State::default();
        assert!(state.has_to_end());
        // Stopped after the first part.
        state.begun = Some((Payload::from(&[][..]), Vec::new(), 1));
        assert!(state.has_to_end());
        state.report = Some(Said::Value(Payload::from(&[][..])));
        assert!(!state.has_to_end());
        state = State { timed_out: true, ..State::default() };
        assert!(!state.has_to_end());
    }
}
