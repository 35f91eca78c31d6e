//! Receives the workers' replies.
//!
//! ```text
//!  thread in `result()`, its task is with a worker whose lease is free
//!                                 ──► drains that worker itself, until its own reply is there
//!  otherwise: the reader thread, one per pool
//!                                 ──► sleeps on the pool's doorbell, drains every worker that rang
//!  ipc-channel: a thread for each worker, blocked in `recv`
//! ```
//!
//! The draining thread hands the frames to [`Pool::on_frames`], which completes futures and sends
//! the next tasks. The resulting wakers are called after the lease is released, because wakers are
//! user code, and may wait for another task of the same worker.
//!
//! A draining thread sleeps on its worker's word. Its future may be completed in another way: it is
//! cancelled, or the task went to another worker and ended there. The thread that completes it then
//! pokes the word, which [`Awaited`] remembers.

use std::{
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use super::{Pool, driver::Notice, replies::Taken};
use crate::{
    future::cell::Awaited,
    id::WorkerId,
    os::{
        fork::Creator,
        local,
        spin::Spin,
        std_or_model::atomic::{AtomicBool, Ordering},
    },
    transport::{
        Closed, Inbox, Link,
        ring::{
            Lease, RingLink,
            doorbell::{Doorbell, HEARING},
        },
    },
    unwind::catch,
    wire::frame::{Frame, FromWorker, WireError},
};

type List = Vec<(WorkerId, Arc<RingLink>)>;

/// The rings of all connected workers.
#[derive(Default)]
pub(super) struct Rings {
    /// Replaced as a whole, so that the reader can iterate over it without the lock.
    list: Mutex<Arc<List>>,
    closed: AtomicBool,
}

impl Rings {
    pub(super) fn list(&self) -> Arc<List> {
        Arc::clone(&self.list.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn of(&self, worker: WorkerId) -> Option<Arc<RingLink>> {
        let list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        let at = list.binary_search_by_key(&worker.0, |(id, _)| id.0).ok()?;
        Some(Arc::clone(&list[at].1))
    }

    fn change(&self, change: impl FnOnce(&mut List)) {
        let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        change(Arc::make_mut(&mut list));
    }

    pub(super) fn add(&self, id: WorkerId, ring: Arc<RingLink>) {
        self.change(|list| {
            let at = list.partition_point(|(other, _)| other.0 < id.0);
            list.insert(at, (id, ring));
        });
    }

    pub(super) fn remove(&self, id: WorkerId) {
        self.change(|list| list.retain(|(other, _)| *other != id));
    }
}

/// Sleep between two rounds while workers are in the middle of chunks, whose items end every few
/// hundred nanoseconds. A higher value delays results, and a worker may run dry. A lower value
/// makes the reader run after every item, and take processor time that a worker could use.
const NAP: Duration = Duration::from_micros(50);
/// Number of frames for which the buffer keeps memory between two drains. More memory, after a
/// burst, is freed.
const FRAMES_KEPT: usize = 4_096;

/// Draining of rings, implemented by the pool and by its model.
pub(super) trait Drains {
    fn rings(&self) -> &Rings;
    fn doorbell(&self) -> &Doorbell;
    /// Completes futures and sends the next tasks. Returns what is to be woken afterwards.
    fn on_frames(&self, id: WorkerId, frames: &mut Vec<Frame<FromWorker>>) -> Taken;
    /// Whether a processor is left for the reader to spin on, even if one more task is sent.
    fn has_spare_processor(&self) -> bool;
    /// Called when nothing more comes from this worker.
    fn on_drained(&self, id: WorkerId, closed: Closed);

    /// The reader thread's loop.
    fn read_rings(&self) {
        let mut frames = Vec::new();
        let mut looked = Instant::now();
        let mut spin = Spin::patient();
        let creator = Creator::here();
        loop {
            // A waker may have forked this process and returned in the child, which must not use
            // these rings.
            creator.end_copy(0);
            // Read this before looking at anything, so that no ring of the doorbell is missed.
            let heard = self.doorbell().heard();
            if self.rings().closed.load(Ordering::SeqCst) {
                return;
            }
            let (mut any, mut in_chunks) = (false, false);
            // A worker may have garbled the word that says whether it has rung, so look at all from
            // time to time.
            let everywhere = looked.elapsed() >= HEARING;
            if everywhere {
                looked = Instant::now();
            }
            for (id, ring) in &*self.rings().list() {
                if everywhere || ring.is_rung() {
                    // A panic here is a bug of this library. It costs only that worker.
                    match catch(|| self.drain_ring(*id, ring, &mut frames)) {
                        Ok(drained) => {
                            any |= drained.any;
                            in_chunks |= drained.in_chunks;
                        }
                        Err(_) => {
                            // Not to be taken for frames of the next worker.
                            frames.clear();
                            self.on_drained(*id, Closed::Protocol(WireError::Truncated));
                        }
                    }
                }
            }
            if in_chunks {
                thread::sleep(NAP);
            } else if !any {
                let spin = self.has_spare_processor().then_some(&mut spin);
                self.doorbell().sleep(heard, spin, Some(HEARING));
            }
        }
    }

    /// Ends the reader thread.
    fn close_rings(&self) {
        self.rings().closed.store(true, Ordering::SeqCst);
        self.doorbell().ring();
    }

    /// Drains one worker, unless another thread is doing so.
    fn drain_ring(
        &self,
        id: WorkerId,
        ring: &RingLink,
        frames: &mut Vec<Frame<FromWorker>>,
    ) -> Drained {
        let Some(mut lease) = ring.try_lease() else { return Drained::default() };
        if lease.is_over() {
            return Drained::default();
        }
        let drained = lease.drain(|frame| frames.push(frame));
        // The lease is released before anything is woken. A frame that the worker sends from then
        // on rings the doorbell again.
        let taken = self.take_frames(id, ring, frames);
        let in_chunks = taken.in_chunks;
        drop(lease);
        taken.wake();
        frames.shrink_to(FRAMES_KEPT);
        let any = drained.unwrap_or_else(|closed| {
            self.on_drained(id, closed);
            true
        });
        Drained { any, in_chunks }
    }

    fn take_frames(
        &self,
        id: WorkerId,
        ring: &RingLink,
        frames: &mut Vec<Frame<FromWorker>>,
    ) -> Taken {
        if frames.is_empty() {
            // The worker may have rung because it made room.
            ring.credit(0);
            return Taken::default();
        }
        self.on_frames(id, frames)
    }

    /// Drains replies until the awaited one has come, provided that its task is with a worker that
    /// nobody else drains. Returns early when this is no longer so. The caller then waits in the
    /// ordinary way.
    fn take_own_reply(&self, awaited: &dyn Awaited, deadline: Option<Instant>) {
        let creator = Creator::here();
        let mut frames = Vec::new();
        while let Some(worker) = awaited.worker() {
            let Some(ring) = self.rings().of(worker) else { return };
            let Some(mut lease) = ring.try_lease() else { return };
            if lease.is_over() {
                return;
            }
            let (leave, taken) =
                self.drain_for(awaited, worker, &ring, &mut lease, &mut frames, deadline);
            // Call this while still holding the lease: the next holder may wait for the same
            // future.
            awaited.helper_leaves(worker);
            drop(lease);
            taken.wake();
            if creator.is_elsewhere() {
                // A waker has forked this process, and this is the child. Nothing more comes here,
                // and the future says so.
                return;
            }
            match leave {
                Leave::TryAgain => {}
                Leave::Wait => return,
                Leave::Over(closed) => return self.on_drained(worker, closed),
            }
        }
    }

    /// Drains one worker while holding its lease.
    fn drain_for(
        &self,
        awaited: &dyn Awaited,
        worker: WorkerId,
        ring: &RingLink,
        lease: &mut Lease<'_>,
        frames: &mut Vec<Frame<FromWorker>>,
        deadline: Option<Instant>,
    ) -> (Leave, Taken) {
        loop {
            let drained = lease.drain(|frame| frames.push(frame));
            let taken = self.take_frames(worker, ring, frames);
            match drained {
                Err(closed) => return (Leave::Over(closed), taken),
                Ok(_) if !taken.wakers.is_empty() => return (Leave::TryAgain, taken),
                Ok(any) => {
                    let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
                    // Check this also while frames keep coming, since none of them may ever be the
                    // awaited one.
                    if left == Some(Duration::ZERO) {
                        return (Leave::Wait, taken);
                    }
                    if !any {
                        // From here on, the thread that completes the future wakes this one,
                        // whichever worker the reply comes from.
                        if !awaited.helper_sleeps_at(worker) {
                            return (Leave::Wait, taken);
                        }
                        lease.sleep(left, || awaited.worker() != Some(worker));
                    }
                }
            }
            if awaited.worker() != Some(worker) {
                // The future is complete, or its task is with another worker now.
                return (Leave::TryAgain, taken);
            }
        }
    }
}

impl Drains for Pool {
    fn rings(&self) -> &Rings {
        &self.rings
    }

    fn doorbell(&self) -> &Doorbell {
        &self.doorbell.0
    }

    fn on_frames(&self, id: WorkerId, frames: &mut Vec<Frame<FromWorker>>) -> Taken {
        Pool::on_frames(self, id, frames)
    }

    fn has_spare_processor(&self) -> bool {
        self.spare_processor.load(Ordering::Relaxed)
    }

    fn on_drained(&self, id: WorkerId, closed: Closed) {
        self.notify(Notice::Drained(id, closed));
    }
}

/// The result of draining one worker.
#[derive(Default)]
pub(super) struct Drained {
    any: bool,
    in_chunks: bool,
}

/// What a thread does after releasing a lease.
pub(super) enum Leave {
    TryAgain,
    /// Wait in the ordinary way.
    Wait,
    /// Nothing more comes from this worker.
    Over(Closed),
}

/// Reads the frames of one worker that is connected over ipc-channel, until nothing more can come.
pub(super) fn read_inbox(pool: &Pool, id: WorkerId, mut inbox: Box<dyn Inbox>) {
    local::set(&super::OWN_THREAD, true);
    // If this thread panics, the pool must still be notified. ipc-channel panics if a task writes
    // into its channel by mistake.
    let creator = Creator::here();
    let read = || {
        let mut frames = Vec::new();
        loop {
            // A waker may have forked this process, as in `read_rings`.
            creator.end_copy(0);
            match inbox.recv(&mut |frame| frames.push(frame)) {
                Ok(()) => pool.on_frames(id, &mut frames).wake(),
                Err(closed) => return closed,
            }
        }
    };
    let closed = catch(read).unwrap_or(Closed::Protocol(WireError::Truncated));
    pool.notify(Notice::Drained(id, closed));
}
