//! The table of the running processes of this program, and the one thread that watches them.
//!
//! Each fork takes the table's lock first. While a fork holds it, the watcher thread can hold only
//! the lock of a record, and only for a moment. A copy of this process never uses the records of
//! its parent. So a fork may ignore the watcher thread.

use std::{
    sync::{Arc, Mutex, MutexGuard},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec},
    process::Signal,
};

use super::{record::Record, report};
use crate::{
    child::{exit, watch::Reaper},
    error::ExitStatus,
    future::callback::wake_each,
    os::{
        eventfd::EventFd,
        fork::{Creator, PerProcess},
        process::Child as Process,
        ready, signals,
        std_or_model::lock,
    },
    unwind::catch,
};

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
    watcher: Option<Arc<EventFd>>,
}

/// The table of this process. A forked child has its own empty table.
static TABLE: PerProcess<Mutex<Table>> =
    PerProcess::new(|| Mutex::new(Table { running: Vec::new(), watcher: None }));

/// The processes that children have left behind, if they become children of this process.
static REAPER: PerProcess<Reaper> = PerProcess::new(Reaper::default);

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

/// Reaps a child of the table that has ended. `may_stay` says, from its exit status, whether the
/// programs that it has started may continue.
pub(super) fn reap(child: &Process, may_stay: impl FnOnce(ExitStatus) -> bool) {
    REAPER.get().reap_and_keep(child, may_stay);
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
    report::keep_spare();
    let mut table = lock(TABLE.get());
    table.running.push(Arc::clone(record));
    ring(&mut table);
}

/// Removes a record whose child has ended.
pub(super) fn remove(record: &Record) {
    lock(TABLE.get()).running.retain(|other| !std::ptr::eq(&**other, record));
}

/// Returns whether there is a watcher thread.
pub(super) fn is_watched() -> bool {
    lock(TABLE.get()).watcher.is_some()
}

/// Tries again to start a watcher thread. Returns whether there is one.
pub(super) fn watch_again() -> bool {
    let mut table = lock(TABLE.get());
    ring(&mut table);
    table.watcher.is_some()
}

/// Wakes the watcher, and starts it if there is none.
fn ring(table: &mut Table) {
    if table.watcher.is_none() {
        let Ok(bell) = EventFd::new() else { return };
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
        bell.ring();
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
        record.unwatch();
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
fn watch(bell: &EventFd) {
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
                report::drop_spare();
                return;
            }
            table.running.clone()
        };
        // The records keep the descriptors open until after the sleep.
        let sockets: Vec<_> = records.iter().map(|record| record.awaited_socket()).collect();
        let mut fds = vec![PollFd::new(bell, PollFlags::IN)];
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
        bell.clear();
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
