//! The pool's thread that waits for descriptors and for time: handshakes, deaths, deadlines. The
//! only user code it runs is wakers.
//!
//! ```text
//!  notice Started ──► poll its socket and its pidfd
//!  socket readable ─► Hello: compare, connect ──► scheduler.on_hello, on_ready
//!  pidfd readable ──► kill the rest of its group, reap, hang up ──► the reader drains
//!                                                               ──► notice Drained
//!  exited and drained ─► scheduler.on_exit
//!  deadline ────────► scheduler.on_tick
//!  closed ──────────► join the threads, notify the waiting callers, end
//! ```

use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, PoisonError, mpsc},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{
    Initializer, Pool,
    ancillary::Ancillary,
    core::{Core, Threads},
    log::LogRecord,
    reader::{self, Drains},
    scheduler::{Action, End, Stopped},
    starter::{self, refusal},
    worker::{Boards, Drain, Worker},
};
use crate::{
    child::watch::{self, Reaper},
    debug::Chain,
    error::BrokenCause,
    id::WorkerId,
    os::{cpu, local, memory::Shared, socket},
    registry,
    segment::Results,
    transport::{
        Closed, Link, ipc,
        ring::{self, Segment},
    },
    unwind::catch,
    wire::{
        frame::{Order, ToWorker},
        handshake::{self, Hello},
    },
};

/// How often the driver checks everything, in case a wake-up is ever missed.
const LOOK_AROUND: Duration = Duration::from_secs(30);

/// How long the pool waits for the rest of a dead worker's replies. Everything that the worker had
/// published is there already, so the timeout only matters for a reader that hangs in a garbled
/// message.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the end of a pool waits for killed processes that workers have left behind. With the
/// timeout, a process that hangs in the kernel does not delay it for longer.
const ORPHANS_TIMEOUT: Duration = Duration::from_secs(1);

/// How long the end of a pool waits for its fork server to end by itself. Then it is killed.
const SERVER_END_TIMEOUT: Duration = Duration::from_secs(1);

/// How often segments that were not used since are emptied. A lower value takes and returns memory
/// pages again and again under a load that comes in waves. A higher value keeps unused pages for
/// longer.
const TRIM_EVERY: Duration = Duration::from_secs(1);

/// How often running workers are checked for having been stopped, and the reader is made to look at
/// the rings. A lower value wakes both more often under load. A higher value notices a stop later,
/// and replies for which a broken worker has garbled the doorbell.
pub(super) const ATTEND_EVERY: Duration = Duration::from_secs(1);

/// How soon descriptors that found no space in a worker's socket are sent again.
const STUCK_RETRY: Duration = Duration::from_millis(5);

/// A message of another thread to the driver.
pub(super) enum Notice {
    Started(WorkerId, Result<starter::Started, BrokenCause>),
    /// Nothing more will come from this worker.
    Drained(WorkerId, Closed),
}

impl Pool {
    pub(super) fn notify(&self, notice: Notice) {
        self.notices.lock().unwrap_or_else(PoisonError::into_inner).push(notice);
        self.bell.ring();
    }
}

/// Starts the driver, the reader and the starter. The driver joins the other two.
pub(super) fn start(
    pool: Arc<Pool>,
    orders: mpsc::Receiver<starter::Order>,
) -> io::Result<JoinHandle<()>> {
    let starter = {
        let pool = Arc::clone(&pool);
        thread::Builder::new()
            .name("executor-starter".into())
            .spawn(move || starter::run(&pool, &orders))?
    };
    let reader = {
        let pool = Arc::clone(&pool);
        thread::Builder::new().name("executor-reader".into()).spawn(move || {
            local::set(&super::OWN_THREAD, true);
            if let Err(message) = catch(|| pool.read_rings()) {
                // Without the reader, replies for which no thread waits are never taken.
                tracing::error!(message, "the pool's reader panicked");
                let cause =
                    BrokenCause::Internal(format!("the pool's reader panicked: {message}").into());
                pool.event(|core, now, out| core.scheduler.on_broken(now, cause, out));
            }
        })?
    };
    let driver = Driver {
        pool: Arc::clone(&pool),
        unheard: BTreeMap::new(),
        trim_at: None,
        attend_at: None,
        unstick_at: None,
        reaper: Reaper::default(),
    };
    // If the driver's thread is refused, the starter ends too, because the caller drops its sender.
    thread::Builder::new()
        .name("executor-driver".into())
        .spawn(move || driver.run_guarded(starter, reader))
        .inspect_err(|_| pool.close_rings())
}

/// Resources for a worker that has not said hello.
struct Unheard {
    socket: OwnedFd,
    segment: Shared<Segment>,
    results: Option<Arc<Results>>,
    nonce: u64,
    /// With ipc-channel, the directory of the worker's server, until it is connected. Removed on
    /// drop.
    _directory: Option<tempfile::TempDir>,
}

struct Driver {
    pool: Arc<Pool>,
    /// Workers that have been started and have not said hello.
    unheard: BTreeMap<WorkerId, Unheard>,
    /// When segments are checked next.
    trim_at: Option<Instant>,
    /// When workers are checked next for having been stopped.
    attend_at: Option<Instant>,
    /// When descriptors that found no space are sent again.
    unstick_at: Option<Instant>,
    reaper: Reaper,
}

#[derive(Clone, Copy)]
enum Source {
    Bell,
    Socket(WorkerId),
    Process(WorkerId),
    /// A child that is no worker.
    Apart,
}

impl Driver {
    /// Runs the driver. Without a driver, no death and no deadline is noticed. So if it panics,
    /// everything that it drove is ended here, and every future reports the panic.
    fn run_guarded(mut self, starter: JoinHandle<()>, reader: JoinHandle<()>) {
        local::set(&super::OWN_THREAD, true);
        if let Err(message) = catch(|| self.run()) {
            tracing::error!(message, "the pool's driver panicked");
            let cause =
                BrokenCause::Internal(format!("the pool's driver panicked: {message}").into());
            let collapse = || {
                self.pool.event(|core, now, out| core.scheduler.on_collapse(now, cause, out));
            };
            // Threads and waiting callers are waited for and told in any case.
            if let Err(message) = catch(collapse) {
                tracing::error!(message, "ending the pool panicked, too");
            }
        }
        self.finish(starter, reader);
    }

    fn run(&mut self) {
        // This thread was started by the one that submitted first, like the starter, from which the
        // workers have their affinity mask.
        let processors = cpu::usable_cpus_within(cpu::quota_of_groups());
        self.pool.lock().scheduler.set_processors(processors);
        loop {
            // A waker may have forked this process and returned in the copy. The copy has no
            // workers to reap and nothing to drive, so it ends here.
            self.pool.creator.end_copy(0);
            let notices = std::mem::take(
                &mut *self.pool.notices.lock().unwrap_or_else(PoisonError::into_inner),
            );
            for notice in notices {
                match notice {
                    Notice::Started(id, started) => self.on_started(id, started),
                    Notice::Drained(id, closed) => self.on_drained(id, &closed),
                }
            }
            self.give_up_draining();
            // Before the other checks: it sets the time to sleep until, and a thread that submits
            // the first task after that rings the bell.
            self.tick();
            self.attend_workers();
            self.attend_memory();
            let (living, apart) = (self.pool.living(), self.pool.apart());
            let living = living.iter().map(|(_, child)| child).chain(&apart);
            self.reaper.look(living.map(|child| child.pid()));
            if let Some(group) = &self.pool.options.control_group {
                group.look();
            }
            if self.pool.lock().closed {
                return;
            }
            for source in self.poll() {
                match source {
                    Source::Bell => self.pool.bell.clear(),
                    Source::Socket(id) => self.on_socket(id),
                    Source::Process(id) => self.on_process(id),
                    Source::Apart => self.reap_apart(),
                }
            }
        }
    }

    /// Ends the pool's threads, after everything is resolved. Processes and threads end first, so
    /// that a caller that waited for the end finds none.
    fn finish(mut self, starter: JoinHandle<()>, reader: JoinHandle<()>) {
        // Dropping the sender ends the starter.
        self.pool.lock().threads = Threads::Ended;
        let _ = starter.join();
        // Processes that it has started last are not wanted any more.
        let late =
            std::mem::take(&mut *self.pool.notices.lock().unwrap_or_else(PoisonError::into_inner));
        for notice in late {
            if let Notice::Started(_, Ok(started)) = notice {
                self.reaper.kill(&started.child, DRAIN_TIMEOUT);
            }
        }
        self.unheard.clear();
        // No worker comes any more.
        self.pool.end_broadcasts();
        // The starter has closed the fork server's socket.
        for child in self.pool.apart() {
            self.reaper.end(&child, SERVER_END_TIMEOUT);
            self.pool.forget_apart(&child);
        }
        let left: Vec<_> = (self.pool.lock().workers.values_mut())
            .filter_map(|worker| {
                let child = Arc::clone(worker.child.as_ref()?);
                Some((child, worker.link.clone(), worker.drain.take()))
            })
            .collect();
        for (child, link, drain) in left {
            let was_given_up = child.status().is_none();
            if was_given_up {
                // The process hangs in the kernel, possibly for longer than the pool should wait.
                watch::abandon(&child, Duration::from_millis(100));
            }
            if let Some(link) = &link {
                link.hang_up();
            }
            if let Some(Drain::Thread(reader)) = drain
                && (!was_given_up || reader.is_finished())
            {
                let _ = reader.join();
            }
        }
        self.pool.close_rings();
        let _ = reader.join();
        // These processes were killed, and are about to end.
        self.reaper.wait(ORPHANS_TIMEOUT);
        // Dropped without the lock, because closing descriptors waits while another thread forks.
        let workers = std::mem::take(&mut self.pool.lock().workers);
        drop(workers);
        if let Some(group) = &self.pool.options.control_group {
            group.end(ORPHANS_TIMEOUT);
        }
        self.pool.callbacks.close();
        // Each owner of the pool keeps its descriptors open. So this handle is dropped before
        // waiting callers are told that the pool has ended.
        let ended = self.pool.ended.0.clone();
        drop(self);
        ended.close();
    }

    /// Gives up readers that hang, so that none delays the pool for ever.
    fn give_up_draining(&mut self) {
        let now = Instant::now();
        let mut core = self.pool.lock();
        let mut late = Vec::new();
        for (id, worker) in &mut core.workers {
            if worker.drained_by.is_some_and(|at| at <= now)
                && let Some(drain) = worker.drain.take()
            {
                late.push((*id, drain));
            }
        }
        drop(core);
        for (id, _drain) in late {
            tracing::error!(worker = id.0, "a dead worker's reader hangs, and is given up");
            self.forget_if_over(id);
        }
    }

    fn tick(&self) {
        self.pool.lock().some_event(|core, now, out| {
            let Core { scheduler, workers, .. } = core;
            scheduler.on_tick(now, &Boards(workers), out);
            // A thread that needs the driver earlier than this rings the bell.
            core.armed = Some(
                core.scheduler.next_deadline().unwrap_or(now + LOOK_AROUND).min(now + LOOK_AROUND),
            );
        });
    }

    /// Checks whether workers are stopped, while there are tasks. Nothing else reports a stop: a
    /// pidfd is readable only at the end of the process, and SIGCHLD belongs to the program.
    fn attend_workers(&mut self) {
        let now = Instant::now();
        if self.attend_at.is_some_and(|at| at > now) {
            return;
        }
        let mut core = self.pool.lock();
        if !core.attended {
            self.attend_at = None;
            return;
        }
        if self.attend_at.is_some() && !core.scheduler.expects_replies() {
            // The thread that submits the next task wakes the driver.
            core.attended = false;
            self.attend_at = None;
            return;
        }
        let connected = core.workers.iter().filter(|(_, worker)| worker.link.is_some());
        let living = connected.filter_map(|(id, worker)| Some((*id, Arc::clone(worker.living()?))));
        let living: Vec<_> = living.collect();
        drop(core);
        self.attend_at = Some(now + ATTEND_EVERY);
        // A worker may have garbled the doorbell, so that the reader is not told of replies.
        self.pool.doorbell.0.tell_reader_anyway();
        let looked: Vec<_> = living
            .into_iter()
            .map(|(id, child)| {
                let stopped_by = child.stopped_by();
                (id, stopped_by, stopped_by.and_then(|_| child.computed()))
            })
            .collect();
        // The system was asked without the lock. Meanwhile a worker may have been removed.
        self.pool.lock().some_event(|core, now, out| {
            let Core { scheduler, workers, log, .. } = core;
            let (mut stopped, mut continued) = (Vec::new(), Vec::new());
            for (id, stopped_by, computed) in looked {
                let Some(worker) = workers.get_mut(&id) else { continue };
                let before = std::mem::replace(&mut worker.stopped_by, stopped_by);
                let computed_before = std::mem::replace(&mut worker.computed, computed);
                let has_run = computed_before.is_some() && computed_before != computed;
                if let (None, Some(signal), Some(child)) = (before, stopped_by, &worker.child) {
                    log.push(LogRecord::Stopped { signal, pid: child.pid() });
                }
                match stopped_by {
                    Some(signal) => {
                        let for_good = matches!(signal, libc::SIGTTOU | libc::SIGTTIN);
                        stopped.push(Stopped { worker: id, for_good, has_run });
                    }
                    None if before.is_some() => continued.push(id),
                    None => {}
                }
            }
            if !stopped.is_empty() {
                for id in scheduler.on_stopped(now, &stopped, &Boards(workers), out) {
                    if let Some(worker) = workers.get_mut(&id) {
                        worker.killed_as_stopped_by = worker.stopped_by;
                    }
                }
            }
            for id in continued {
                scheduler.on_continued(now, id, &Boards(workers), out);
            }
        });
    }

    /// Empties unused segments, and sends descriptors that found no space.
    fn attend_memory(&mut self) {
        let now = Instant::now();
        if self.pool.is_warm() {
            let at = *self.trim_at.get_or_insert(now + TRIM_EVERY);
            if at <= now {
                self.trim_at = self.pool.trim().then_some(now + TRIM_EVERY);
            }
        }
        self.unstick_at = self.pool.unstick().then_some(now + STUCK_RETRY);
    }

    /// Waits for the next thing to do. Returns the sources that are ready.
    fn poll(&self) -> Vec<Source> {
        let mut sources = vec![Source::Bell];
        let mut fds = vec![PollFd::from_borrowed_fd(self.pool.bell.as_fd(), PollFlags::IN)];
        for (id, Unheard { socket, .. }) in &self.unheard {
            sources.push(Source::Socket(*id));
            fds.push(PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::IN));
        }
        let living = self.pool.living();
        for (id, child) in &living {
            if let Some(pidfd) = child.pidfd() {
                sources.push(Source::Process(*id));
                fds.push(PollFd::from_borrowed_fd(pidfd, PollFlags::IN));
            }
        }
        let apart = self.pool.apart();
        for child in &apart {
            // One that other code has reaped stays in the list until the pool ends.
            let Some(pidfd) = child.pidfd() else { continue };
            sources.push(Source::Apart);
            fds.push(PollFd::from_borrowed_fd(pidfd, PollFlags::IN));
        }
        let core = self.pool.lock();
        let armed = core.armed.unwrap_or_else(|| Instant::now() + LOOK_AROUND);
        let draining = core.workers.values().filter(|worker| worker.drain.is_some());
        let drained = draining.filter_map(|worker| worker.drained_by).min();
        drop(core);
        let orphans = self.reaper.next_look(!living.is_empty() || !apart.is_empty());
        let control_group = self.pool.options.control_group.as_ref();
        let armed = drained
            .into_iter()
            .chain(self.trim_at)
            .chain(self.attend_at)
            .chain(self.unstick_at)
            .chain(orphans)
            .chain(control_group.and_then(|group| group.next_look()))
            .fold(armed, Instant::min);
        let timeout = armed.saturating_duration_since(Instant::now());
        let timeout =
            Timespec { tv_sec: timeout.as_secs() as _, tv_nsec: timeout.subsec_nanos() as _ };
        match poll(&mut fds, Some(&timeout)) {
            Ok(_) => {}
            // A signal handler ran. Check everything, and poll again.
            Err(rustix::io::Errno::INTR) => return Vec::new(),
            Err(error) => {
                tracing::error!(%error, "poll failed");
                thread::sleep(Duration::from_millis(10));
            }
        }
        sources
            .into_iter()
            .zip(&fds)
            .filter(|(_, fd)| !fd.revents().is_empty())
            .map(|(source, _)| source)
            .collect()
    }

    fn on_started(&mut self, id: WorkerId, started: Result<starter::Started, BrokenCause>) {
        let started = match started {
            Ok(started) => started,
            Err(cause) => return self.start_refused(id, cause),
        };
        let starter::Started { child, socket, segment, results, nonce, leaf, directory } = started;
        let gone = child.pidfd().is_none();
        let mut core = self.pool.lock();
        let worker = core.workers.entry(id).or_default();
        worker.child = Some(child);
        worker.leaf = leaf;
        core.scheduler.on_launched(Instant::now(), id);
        let worker = core.workers.entry(id).or_default();
        if let Some(signal) = worker.overdue.take() {
            core.signal(id, signal);
        }
        drop(core);
        self.unheard.insert(id, Unheard { socket, segment, results, nonce, _directory: directory });
        if gone {
            self.on_process(id);
        }
    }

    fn start_refused(&mut self, id: WorkerId, cause: BrokenCause) {
        tracing::warn!(cause = %Chain(&cause), "a worker could not be started");
        self.pool.lock().some_event(|core, now, out| {
            core.workers.remove(&id);
            core.scheduler.on_start_refused(now, id, cause, out);
        });
    }

    /// Handles a worker's hello, or the end of its socket without one.
    fn on_socket(&mut self, id: WorkerId) {
        let Some(unheard) = self.unheard.remove(&id) else { return };
        let Unheard { socket, segment, results, nonce, _directory } = unheard;
        let (bytes, _fds) = match socket::recv(&socket) {
            Ok(message) => message,
            // The worker has ended without reading what it was sent. Its exit status says more.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return,
            Err(error) => {
                tracing::warn!(%error, "a worker cannot be heard");
                let text = format!("to receive a worker's first word (recvmsg): {error}");
                return self.refuse(id, BrokenCause::Start(text.into()));
            }
        };
        if bytes.is_empty() {
            // The worker will exit, or `start_timeout` ends it.
            return;
        }
        let hello = match handshake::answer_from_bytes::<Hello>(&bytes) {
            Ok(Ok(hello)) if hello.nonce == nonce => check(hello),
            Ok(Ok(_)) => Err(BrokenCause::OtherBuild("the answer of another start".into())),
            Ok(Err(refusal)) => Err(BrokenCause::Start(refusal.why.into())),
            Err(error) => Err(BrokenCause::OtherBuild(error.into())),
        };
        let server = match hello {
            Ok(server) => server,
            Err(cause) => {
                tracing::warn!(cause = %Chain(&cause), "a worker cannot work");
                return self.refuse(id, cause);
            }
        };
        let dialed = {
            // Made before the lock is taken, because this waits while another thread forks.
            let ancillary = Arc::new(Ancillary::new(socket, results));
            // Under the lock, so that the pool does not kill the worker meanwhile.
            let mut core = self.pool.lock();
            let worker = core.workers.entry(id).or_default();
            worker.ancillary = Some(ancillary);
            let has_ended = worker.living().is_none_or(|child| child.has_ended());
            if !core.scheduler.is_wanted(id) || has_ended {
                return;
            }
            server.map(ipc::dial).transpose()
        };
        match dialed.and_then(|dialed| connect(&self.pool, id, dialed, segment)) {
            Ok((link, drain)) => self.on_connected(id, link, drain),
            Err(error) => {
                tracing::warn!(%error, "a worker could not be connected");
                self.refuse(id, refusal(&error));
            }
        }
    }

    fn refuse(&self, id: WorkerId, cause: BrokenCause) {
        if let Some(worker) = self.pool.lock().workers.get_mut(&id) {
            worker.refuse(cause);
        }
    }

    fn on_connected(&self, id: WorkerId, link: Arc<dyn Link>, drain: Drain) {
        self.pool.lock().some_event(|core, now, out| {
            let Core { scheduler, workers, .. } = core;
            let Some(worker) = workers.get_mut(&id) else { return };
            worker.link = Some(Arc::clone(&link));
            worker.drain = Some(drain);
            if !scheduler.on_hello(now, id) {
                return;
            }
            match &self.pool.options.initializer {
                Some(Initializer { entry, arguments, .. }) => {
                    let header =
                        ToWorker { function: entry.number(), ..ToWorker::new(Order::Init) };
                    core.stuck |= worker.send(header, arguments);
                    link.flush();
                }
                // There is nothing to wait for, so tasks may follow at once.
                None => scheduler.on_ready(now, id, &Boards(workers), out),
            }
        });
    }

    /// Reaps children that are no workers and have ended.
    fn reap_apart(&self) {
        for child in self.pool.apart() {
            if child.has_ended() {
                self.reaper.reap(&child);
                self.pool.forget_apart(&child);
            }
        }
    }

    /// Handles the end of a worker's process.
    fn on_process(&mut self, id: WorkerId) {
        // A hello that is still unread changes nothing. The exit status says more.
        self.unheard.remove(&id);
        let mut core = self.pool.lock();
        let Some(child) = core.workers.get(&id).and_then(Worker::living).map(Arc::clone) else {
            return;
        };
        // From here on the worker gets no tasks, although its last replies were not read yet.
        core.scheduler.on_ended(id);
        drop(core);
        self.reaper.reap(&child);
        // The lock is not held while the system is asked, and while the rest of the control group
        // is killed.
        let leaf = self.pool.lock().workers.get_mut(&id).and_then(|worker| worker.leaf.take());
        let out_of_memory = leaf.and_then(|leaf| leaf.out_of_memory());
        let mut core = self.pool.lock();
        let Some(worker) = core.workers.get_mut(&id) else { return };
        worker.out_of_memory = out_of_memory;
        worker.drained_by = Some(Instant::now() + DRAIN_TIMEOUT);
        let link = worker.link.clone();
        drop(core);
        if let Some(link) = link {
            link.hang_up();
        }
        self.forget_if_over(id);
    }

    fn on_drained(&mut self, id: WorkerId, closed: &Closed) {
        let mut core = self.pool.lock();
        let Some(worker) = core.workers.get_mut(&id) else { return };
        let drain = worker.drain.take();
        if let Closed::Protocol(error) = closed {
            worker.breaks_protocol(error.clone());
        }
        let living = worker.living().map(|child| child.pid());
        drop(core);
        if let Some(Drain::Thread(reader)) = drain {
            let _ = reader.join();
        }
        if let Some(pid) = living {
            // The worker lives and cannot be heard any more: it closed its channel, or sends
            // garbage.
            tracing::warn!(pid, reason = %closed, "a worker is cut off");
            self.pool
                .lock()
                .some_event(|core, now, out| core.scheduler.on_protocol_violation(now, id, out));
        }
        self.forget_if_over(id);
    }

    /// Lets the scheduler decide about a worker's tasks, once the worker has ended and everything
    /// that it had published was read.
    fn forget_if_over(&mut self, id: WorkerId) {
        if !self.pool.lock().workers.get(&id).is_some_and(Worker::is_over) {
            return;
        }
        self.pool.rings.remove(id);
        self.pool.doorbell.0.ring();
        self.pool.lock().some_event(|core, now, out| {
            let Core { scheduler, workers, log, .. } = core;
            if let Some(cause) = workers.get(&id).and_then(|worker| worker.refused.clone()) {
                return scheduler.on_start_refused(now, id, cause, out);
            }
            let initializer =
                self.pool.options.initializer.as_ref().map(|initializer| &*initializer.name);
            let unknown = Worker::default();
            let ending = workers.get(&id).unwrap_or(&unknown).ending(&self.pool.options.restraints);
            let (pid, status, over_memory) = (ending.pid, ending.status, ending.over_memory());
            let cause = |progress| ending.before_first_task(progress, initializer);
            let lost = scheduler.counted().lost;
            scheduler.on_exit(now, id, cause, &Boards(workers), out);
            let ended = out.iter().find_map(|action| match action {
                Action::Resolve(resolve) => match &**resolve {
                    (chunk, End::Lost(of)) if *of == id => Some(chunk),
                    _ => None,
                },
                Action::Undecided(undecided) => match **undecided {
                    (task, End::Lost(of)) if of == id => scheduler.undecided(task),
                    _ => None,
                },
                _ => None,
            });
            let task = ended.map(|chunk| Box::from(chunk.name()));
            match over_memory {
                Some((limit, peak)) => {
                    log.push(LogRecord::OverMemory { task, pid, peak, limit });
                }
                None if scheduler.counted().lost > lost => {
                    log.push(LogRecord::Lost { pid, status, task });
                }
                None => {}
            }
        });
        let worker = self.pool.lock().workers.remove(&id);
        // Dropped without the lock, because closing descriptors waits while another thread forks.
        drop(worker);
    }
}

/// Connects to a worker over the transport that it offers.
fn connect(
    pool: &Arc<Pool>,
    id: WorkerId,
    dialed: Option<ipc::Dialed>,
    segment: Shared<Segment>,
) -> io::Result<(Arc<dyn Link>, Drain)> {
    let Some(dialed) = dialed else {
        let ring = Arc::new(ring::connect(segment, Arc::clone(&pool.doorbell.0)));
        pool.rings.add(id, Arc::clone(&ring));
        pool.doorbell.0.ring();
        return Ok((ring, Drain::Ring));
    };
    let (link, inbox) = ipc::connect(dialed, segment)?;
    let pool = Arc::clone(pool);
    let reader = thread::Builder::new()
        .name(format!("executor-reader-{}", id.0))
        .spawn(move || reader::read_inbox(&pool, id, Box::new(inbox)))?;
    Ok((link, Drain::Thread(reader)))
}

/// Checks whether a worker may work for this pool. Returns the name of its server, if it has one.
fn check(hello: Hello) -> Result<Option<String>, BrokenCause> {
    let ours = registry::fingerprint();
    if hello.tasks != ours {
        let text = format!("its list of tasks is {:?}, this program's is {ours:?}", hello.tasks);
        return Err(BrokenCause::OtherBuild(text.into()));
    }
    match hello.server {
        Some(server) if server.contains('\0') => {
            Err(BrokenCause::Start("a server's name with a zero byte".into()))
        }
        server => Ok(server),
    }
}
