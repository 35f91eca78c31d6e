//! The pool's record of one worker: its process, and how the pool reaches it.
//!
//! ```text
//!  Action::Start ─► empty ─started─► child ─hello─► ancillary, link ─exit─► reaped ─► removed
//!                     └ overdue: a signal that is due   │ and drain           ▲ once nothing
//!                                                       └── reader: drained ──┘ more comes
//! ```
//!
//! There is one record for each worker, under the pool's lock. Three things are kept elsewhere: the
//! scheduler has the worker's state and what is in flight, and knows no process; the driver has the
//! socket until the worker says hello; and the reader has a list of the rings ([`Rings`]), which
//! threads read without the pool's lock.
//!
//! [`Rings`]: super::reader::Rings

use std::{
    collections::BTreeMap,
    io,
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use rustix::process::Signal;

use super::{ancillary::Ancillary, scheduler::Claims};
use crate::{
    child::verdict::Ending,
    error::{BrokenCause, ExitStatus},
    id::{TaskId, WorkerId},
    os::{cgroup::Leaf, process::Child},
    transport::{Link, board::Begun},
    wire::{
        frame::{ToWorker, WireError, flag},
        handshake::Restraints,
        measured::Measured,
        payload::Payload,
    },
};

/// One worker.
#[derive(Default)]
pub(super) struct Worker {
    pub(super) child: Option<Arc<Child>>,
    pub(super) link: Option<Arc<dyn Link>>,
    pub(super) ancillary: Option<Arc<Ancillary>>,
    /// What takes the worker's replies. `None` before the hello, and after the last reply.
    pub(super) drain: Option<Drain>,
    /// A signal to be sent as soon as the process exists.
    pub(super) overdue: Option<Signal>,
    killed_by_us: bool,
    /// The signal that has stopped the worker, while it is stopped.
    pub(super) stopped_by: Option<i32>,
    /// The same signal, once the worker is killed for being stopped. The worker may still have
    /// died of another cause before that.
    pub(super) killed_as_stopped_by: Option<i32>,
    /// The processor time that the worker had used when it was last seen stopped.
    pub(super) computed: Option<Duration>,
    /// How the worker violated the protocol, if it did.
    broke_protocol: Option<WireError>,
    /// Why the worker cannot take tasks although its process was started: the system has refused
    /// something that it needs.
    pub(super) refused: Option<BrokenCause>,
    /// What the worker has reported about the task whose reply comes next.
    pub(super) measured: Option<(TaskId, Box<Measured>)>,
    /// Its control group, until the worker has ended.
    pub(super) leaf: Option<Leaf>,
    /// The limit and the peak of the control group's memory, if the system has ended the worker
    /// because of them.
    pub(super) out_of_memory: Option<(u64, u64)>,
    /// When the pool stops waiting for the rest of the worker's replies, once it has ended.
    pub(super) drained_by: Option<Instant>,
}

pub(super) enum Drain {
    /// The attendant.
    Ring,
    /// A thread for this worker alone.
    Thread(JoinHandle<()>),
}

impl Worker {
    /// Returns the worker's process, until it is reaped.
    pub(super) fn living(&self) -> Option<&Arc<Child>> {
        self.child.as_ref().filter(|child| child.status().is_none())
    }

    /// Returns the process id, or 0 if there is no process yet.
    pub(super) fn pid(&self) -> u32 {
        self.child.as_ref().map_or(0, |child| child.pid())
    }

    /// Returns whether the worker has ended and all its replies have been taken.
    pub(super) fn is_over(&self) -> bool {
        self.drain.is_none() && self.child.as_ref().is_some_and(|child| child.status().is_some())
    }

    /// Sends a frame and its descriptors. Returns whether descriptors wait for space in the socket.
    pub(super) fn send(&self, mut header: ToWorker, payload: &Payload) -> bool {
        let Some(link) = &self.link else { return false };
        let (flags, bytes) = payload.on_the_wire();
        header.flags |= flags;
        let stuck = match &self.ancillary {
            Some(ancillary) if flags & flag::ATTACHED != 0 => {
                ancillary.send(header.task, payload.attachments())
            }
            _ => false,
        };
        link.send(header, &bytes);
        stuck
    }

    /// Sends a signal, now or as soon as the process exists. Returns an error if the system refuses
    /// that. The worker is then asked to end itself.
    pub(super) fn signal(&mut self, signal: Signal) -> io::Result<()> {
        self.killed_by_us = true;
        match &self.child {
            Some(child) => child.signal_group(signal).inspect_err(|_| self.hang_up()),
            None => {
                self.overdue = Some(signal);
                Ok(())
            }
        }
    }

    /// Notes that the worker cannot take tasks, and kills it. The pool decides what follows when
    /// the process has ended.
    pub(super) fn refuse(&mut self, cause: BrokenCause) {
        self.refused = Some(cause);
        if let Some(child) = self.living() {
            // If the system refuses this, the worker ends when its socket is closed.
            let _ = child.signal_group(Signal::KILL);
        }
    }

    /// Notes that the worker violated the protocol. Only the first violation is kept.
    pub(super) fn breaks_protocol(&mut self, how: WireError) {
        self.broke_protocol.get_or_insert(how);
    }

    pub(super) fn broke_protocol(&self) -> bool {
        self.broke_protocol.is_some()
    }

    /// Closes the worker's control socket, as if this program ended.
    fn hang_up(&self) {
        if let Some(ancillary) = &self.ancillary {
            ancillary.hang_up();
        }
    }

    /// Returns what is known about the worker's end.
    pub(super) fn ending<'a>(&'a self, restraints: &'a Restraints) -> Ending<'a> {
        Ending {
            pid: self.pid(),
            status: self
                .child
                .as_ref()
                .and_then(|child| child.status())
                .unwrap_or(ExitStatus::Unknown),
            board: self.link.as_ref().map(|link| link.board()),
            reached: true,
            killed_by_us: self.killed_by_us,
            broke_protocol: self.broke_protocol.as_ref().map(ToString::to_string),
            stopped_by: self.killed_as_stopped_by,
            restraints: Some(restraints),
            out_of_memory: self.out_of_memory,
        }
    }
}

/// Answers the scheduler's questions from the boards of all workers.
pub(super) struct Boards<'a>(pub(super) &'a BTreeMap<WorkerId, Worker>);

impl Claims for Boards<'_> {
    fn begun(&self, worker: WorkerId, seq: u32) -> Begun {
        self.link(worker).map_or(Begun::No, |link| link.board().begun(seq))
    }

    fn take_back(&self, worker: WorkerId, seq: u32, first: u32) -> bool {
        self.link(worker).is_none_or(|link| link.board().take_back(seq, first))
    }

    fn take_rest(&self, worker: WorkerId, seq: u32) -> Option<u32> {
        self.link(worker)?.board().take_rest(seq)
    }

    fn taken_in(&self, worker: WorkerId) -> u64 {
        self.link(worker).map_or(0, Link::taken_in)
    }
}

impl Boards<'_> {
    fn link(&self, worker: WorkerId) -> Option<&dyn Link> {
        self.0.get(&worker)?.link.as_deref()
    }
}
