//! The table of the running processes of this program, and the one thread that watches them.
//!
//! Each fork takes the table's lock first. While a fork holds it, the watcher thread can hold only
//! the lock of a record, and only for a moment. A copy of this process never uses the records of
//! its parent. So a fork may ignore the watcher thread.

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
        fork::{Creator, NotInherited, PerProcess},
        memory::Shared,
        process::{Child as Process, above_stdio},
        ready,
        sealed::SealedView,
        signals,
        socket::retry,
        std_or_model::lock,
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
    /// Whether nothing more is to be read from the socket.
    heard: bool,
    /// Whether the report has arrived, but this process has no free descriptor number for the
    /// descriptor that belongs to it. The socket is not read again before the child's end. It stays
    /// readable, so the watcher would otherwise never sleep.
    starved: bool,
    report: Option<Said>,
    /// A report whose descriptors have not all arrived yet: its value, the descriptors so far, and
    /// the expected number of descriptors.
    begun: Option<(Payload, Vec<Attachment>, usize)>,
    /// Whether this process has sent SIGKILL to the child.
    killed: bool,
    /// Whether the child was killed because its task's timeout had passed.
    timed_out: bool,
    /// Whether the thread that watched the child has ended.
    unwatched: bool,
    wakers: Vec<Waker>,
}

/// The report of a child. It is decoded by the thread that asks for the value. Decoding may take as
/// long as the child likes, and reports are stored under locks that all processes need.
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

/// A descriptor that is kept as a reserve. When a child's result arrives and the program has used
/// up its descriptor numbers, the reserve is closed for the moment in which the result is mapped.
/// It exists while there are child processes.
static SPARE: PerProcess<Mutex<Option<OwnedFd>>> = PerProcess::new(Mutex::default);

/// Opens the spare descriptor, if there is none.
fn keep_spare() {
    let mut spare = lock(SPARE.get());
    if spare.is_none() {
        *spare = eventfd(0, EventfdFlags::CLOEXEC).ok().and_then(|fd| above_stdio(fd).ok());
    }
}

/// How long the end of the program waits for a daemon that it has terminated. After this it kills
/// the daemon.
const GRACE: Duration = Duration::from_secs(2);
/// How long the watcher thread stays when there is nothing to watch. A higher value keeps a
/// sleeping thread for longer. A lower value starts a new thread for each process of a series.
const IDLE: Duration = Duration::from_secs(1);

struct Table {
    running: Vec<Arc<Record>>,
    /// An eventfd that wakes the watcher, so that it looks at the table. `None` while there is no
    /// watcher.
    watcher: Option<Arc<OwnedFd>>,
}

/// The table of this process. A forked child has its own empty table.
static TABLE: PerProcess<Mutex<Table>> =
    PerProcess::new(|| Mutex::new(Table { running: Vec::new(), watcher: None }));

/// The processes that children have left behind, if they become children of this process.
static REAPER: PerProcess<Reaper> = PerProcess::new(Reaper::default);

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

    /// Removes the record from the table after the child's end.
    ///
    /// The watcher announces the end while it still has a handle of the record, and a handle keeps
    /// descriptors open. The watcher drops the handle under the table's lock. So once this call has
    /// had the lock, the handle is gone.
    fn leave_table(&self) {
        lock(TABLE.get()).running.retain(|other| !std::ptr::eq(&**other, self));
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
        if !Record::is_watched() && !self.rewatch() {
            // The system refuses to start a watcher thread, so no other thread would notice the
            // end. Wait briefly here, and poll again.
            if self.wait_alone(Some(Instant::now() + Duration::from_millis(1))).is_some() {
                return Poll::Ready(());
            }
            waker.wake_by_ref();
        }
        Poll::Pending
    }

    /// Tries again to start a watcher thread. Returns whether there is one.
    fn rewatch(&self) -> bool {
        let mut table = lock(TABLE.get());
        ring(&mut table);
        table.watcher.is_some()
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
        match (&state.report, self.process.status()) {
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
    fn times_out_at(&self) -> Option<Instant> {
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
    fn look_and_take_wakers(&self) -> Option<Vec<Waker>> {
        let mut state = lock(&self.state);
        if self.process.status().is_some() {
            return Some(Vec::new());
        }
        // Check for the end first, then read. If the child has ended, everything that it has sent
        // can be read now.
        let ended = self.process.has_ended();
        if !state.heard
            && let Some(socket) = state.socket.clone()
            && let Some(socket) = socket.get()
        {
            state.heard = !state.read(socket, ended);
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
    /// Returns whether the child is to be killed when its timeout ends. This is so if its report
    /// is not complete and it was not killed for the timeout already. A report that has only begun
    /// does not count, because the child may stop before it sends the rest.
    fn has_to_end(&self) -> bool {
        !self.timed_out && self.report.is_none()
    }

    /// Reads the available part of a child's report. It never waits, because the child may have
    /// stopped in the middle of the report. Returns whether more is to come.
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
                    // The child has closed the socket, which tells no more than its end.
                    Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return false,
                    Err(error) => self.refused(&format!(
                        "what it reported cannot be received (recvmsg): {error}"
                    )),
                },
                Some((_, attachments, count)) => match handshake::receive_attachments(socket, 1) {
                    Ok(some) => {
                        attachments.extend(some);
                        attachments.len() >= *count
                    }
                    Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return false,
                    Err(error) => {
                        self.begun = None;
                        self.refused(&format!(
                            "the descriptors of its result cannot be received: {error}"
                        ))
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

    /// Reads the first message of a report. Returns whether the report is complete.
    fn read_first(&mut self, socket: BorrowedFd<'_>) -> io::Result<bool> {
        let answer = match handshake::receive_report_now(socket) {
            Err(error) if error.raw_os_error() == Some(libc::EMFILE) => {
                // Try again after closing the spare descriptor.
                drop(lock(SPARE.get()).take());
                let again = handshake::receive_report_now(socket);
                if again.is_err() {
                    keep_spare();
                }
                again
            }
            // The child runs another version of the library. This error is the only part of its
            // message that can be understood.
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

    /// Records that there is no value, because the child never ran its task, or because its report
    /// could not be received.
    fn refused(&mut self, why: &str) -> bool {
        self.report = Some(Said::refused(why));
        true
    }

    /// Takes the first part of a report. Returns whether the report is complete.
    fn begin(&mut self, report: Report, file: Option<OwnedFd>) -> bool {
        let payload = match file.filter(|_| report.in_file) {
            None => Payload::from(report.payload.into_vec()),
            // The descriptor is closed after this. The mapping is enough.
            Some(file) => match SealedView::open(&file) {
                Ok(view) => Payload::sealed(view),
                Err(error) => {
                    return self.refused(&format!("its result cannot be mapped: {error}"));
                }
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
            // A child never sends such a report.
            _ => true,
        }
    }
}

/// Called when a child was reaped by other code than the watcher. The processes that it has left
/// behind are waited for, if they become children of this process.
pub(super) fn kill(child: &Process, timeout: Duration) {
    REAPER.get().kill(child, timeout);
    look_behind();
}

/// Reaps a child that is not in the table and is about to end. It is killed if it takes longer than
/// `timeout`.
pub(super) fn end(child: &Process, timeout: Duration) {
    REAPER.get().end(child, timeout);
    look_behind();
}

/// What is left behind needs the watcher.
fn look_behind() {
    if !REAPER.get().is_idle() {
        ring(&mut lock(TABLE.get()));
    }
}

/// Adds a process to the table, and ensures that it is watched.
pub(super) fn add(record: &Arc<Record>) {
    exit::end_children_by(finish);
    keep_spare();
    let mut table = lock(TABLE.get());
    table.running.push(Arc::clone(record));
    ring(&mut table);
}

/// Wakes the watcher, and starts it if there is none.
fn ring(table: &mut Table) {
    if table.watcher.is_none() {
        let Ok(bell) = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK) else { return };
        let Ok(bell) = above_stdio(bell) else { return };
        let bell = Arc::new(bell);
        let theirs = Arc::clone(&bell);
        // If the system refuses a thread, each call that waits for a process checks it itself.
        let made = signals::deaf(|| {
            thread::Builder::new().name("executor-children".into()).stack_size(128 * 1024).spawn(
                move || {
                    if catch(|| watch(&theirs)).is_err() {
                        watcher_is_gone();
                    }
                },
            )
        });
        table.watcher = made.is_ok().then_some(bell);
    }
    if let Some(bell) = &table.watcher {
        let _ = retry(|| rustix::io::write(&**bell, &1_u64.to_ne_bytes()));
    }
}

/// Handles a panic of the watcher thread: wakes all waiting threads and tasks. From now on they
/// check their processes themselves.
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

/// Returns whether there is a watcher thread. A fork may ignore this thread while it holds the
/// [`pause`].
pub(super) fn has_watcher(pause: &Pause<'_>) -> bool {
    pause.0.watcher.is_some()
}

/// Keeps the table locked. While it exists, the watcher sleeps or is about to wait for the lock.
/// It holds no lock that a copy of this process uses.
pub(super) struct Pause<'a>(MutexGuard<'a, Table>);

/// Locks the table until the returned value is dropped.
pub(super) fn pause() -> Pause<'static> {
    Pause(lock(TABLE.get()))
}

impl Pause<'_> {
    /// Forgets all processes, in a forked child: they are the parent's children.
    pub(super) fn forget_all(mut self) {
        // The records are leaked. Their wakers are user code, which must not run under the lock.
        // They need not be dropped later either, because they are only copies.
        std::mem::forget(std::mem::take(&mut self.0.running));
        self.0.watcher = None;
    }
}

/// The watcher thread's loop.
fn watch(bell: &Arc<OwnedFd>) {
    let mut idle_since = Instant::now();
    let creator = Creator::here();
    loop {
        // If a waker has forked this process and returned in the copy, the copy ends here. It has
        // no children.
        creator.end_copy(0);
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
                // The wakers are user code. They may call `active_children` or start another
                // process, which take the lock.
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
        // The records keep the descriptors open until after the sleep. A socket is not polled once
        // its report was read: a child sends nothing after it.
        let unheard = |record: &Arc<Record>| {
            let state = lock(&record.state);
            state.socket.clone().filter(|_| !state.heard && !state.starved)
        };
        let sockets: Vec<Option<Arc<NotInherited>>> = records.iter().map(unheard).collect();
        let mut fds = vec![PollFd::new(&**bell, PollFlags::IN)];
        for (record, socket) in records.iter().zip(&sockets) {
            fds.extend(
                record.process.pidfd().map(|pidfd| PollFd::from_borrowed_fd(pidfd, PollFlags::IN)),
            );
            let socket = socket.as_ref().and_then(|socket| socket.get());
            fds.extend(socket.map(|socket| PollFd::from_borrowed_fd(socket, PollFlags::IN)));
        }
        // Sleep until the first of these times: the next look at orphans, the end of this idle
        // thread, or the end of a timeout.
        let reaper = REAPER.get();
        reaper.look(records.iter().map(|record| record.process.pid()));
        let orphans = reaper.next_look(!records.is_empty());
        let idle = records.is_empty().then(|| Instant::now() + IDLE);
        let over = records.iter().filter_map(|record| record.times_out_at());
        let timeout = orphans.into_iter().chain(idle).chain(over).min().map(|at| {
            let left = at.saturating_duration_since(Instant::now());
            Timespec { tv_sec: left.as_secs() as _, tv_nsec: left.subsec_nanos() as _ }
        });
        ready::doze(&mut fds, timeout.as_ref());
        let _ = rustix::io::read(&**bell, &mut [0_u8; 8]);
        // A dropped record may be its last handle, so drop them while no lock is held.
        drop(fds);
        drop((sockets, records));
    }
}

/// Returns the running processes, in the order of their start.
pub(super) fn running() -> Vec<Arc<Record>> {
    let records = lock(TABLE.get()).running.clone();
    records.into_iter().filter(|record| record.status().is_none()).collect()
}

/// Ends the processes at the end of the program: terminates daemons, and waits for the others.
fn finish() {
    let records = running();
    let daemons: Vec<_> = records.iter().filter(|record| record.daemon).collect();
    for daemon in &daemons {
        let _ = daemon.signal(Signal::TERM);
    }
    let deadline = Instant::now() + GRACE;
    for daemon in &daemons {
        if daemon.wait_alone(Some(deadline)).is_none() {
            // If the daemon may not be killed, do not wait much longer. It ends itself when this
            // program has ended.
            let killed = daemon.kill_group();
            daemon.wait_alone((!killed).then(|| Instant::now() + GRACE));
        }
    }
    for record in records.iter().filter(|record| !record.daemon) {
        record.wait_alone(None);
    }
}

impl Record {
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

    /// Returns whether there is a watcher thread.
    pub(super) fn is_watched() -> bool {
        lock(TABLE.get()).watcher.is_some()
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
        state.begun = Some((Payload::from(&[][..]), Vec::new(), 1));
        assert!(state.has_to_end());
        state.report = Some(Said::Value(Payload::from(&[][..])));
        assert!(!state.has_to_end());
        state = State { timed_out: true, ..State::default() };
        assert!(!state.has_to_end());
    }
}
