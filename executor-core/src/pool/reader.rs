//! Who takes the workers' replies.
//!
//! ```text
//!  thread in `result()`: its task is with a worker whose lease is free ──► drains that worker itself, until its own
//!                                                                          reply is there
//!  otherwise: the reader thread, one for the pool ──► sleeps on the pool's doorbell, drains every worker that rang
//!  ipc-channel: a thread for each worker, blocked in `recv`
//! ```
//!
//! Whoever drains hands the frames to [`Pool::on_frames`], which completes futures and sends the next tasks. What that
//! wakes is woken after the lease is given back: wakers are user code, and may wait for another task of the same worker.
//!
//! A thread that drains sleeps on its worker's word. When its future ends in another way (cancelled, or the task went to
//! another worker and ended there), who completes it pokes that word: [`Awaited`] remembers where its waiter sleeps.

use std::{
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use super::{Pool, Taken, driver::Notice};
use crate::{
    future::cell::Awaited,
    id::WorkerId,
    os::{
        fork::Origin,
        local,
        spin::Spin,
        sync::atomic::{AtomicBool, Ordering},
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

/// The rings of all workers that are connected.
#[derive(Default)]
pub(super) struct Rings {
    /// Replaced as a whole, so that the reader walks over it without the lock.
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

/// Between two looks while workers are in the middle of chunks, whose items end every few hundred nanoseconds. Longer:
/// results come later, and a worker may run dry. Shorter: the reader runs after every item, and takes the processor that
/// a worker could have.
const NAP: Duration = Duration::from_micros(50);
/// Frames that may lie in memory between two drains; a burst's memory is given back.
const FRAMES_KEPT: usize = 4_096;

/// Draining, for whoever has the rings and knows what to do with what comes: the pool, or a model of it.
pub(super) trait Drains {
    fn rings(&self) -> &Rings;
    fn doorbell(&self) -> &Doorbell;
    /// Completes futures, sends what is next; what is to be woken after that.
    fn on_frames(&self, id: WorkerId, frames: &mut Vec<Frame<FromWorker>>) -> Taken;
    /// Whether there is a processor left when one more task is given out and the reader does not sleep.
    fn has_spare_processor(&self) -> bool;
    /// Nothing more comes from this worker.
    fn on_drained(&self, id: WorkerId, closed: Closed);

    /// The reader's life.
    fn read_rings(&self) {
        let mut frames = Vec::new();
        let mut looked = Instant::now();
        let mut spin = Spin::patient();
        let origin = Origin::here();
        loop {
            // A waker has copied this process, and has returned in the copy, which has no business with these rings.
            origin.end_copy(0);
            // Asked before anything is looked at, so that no ring falls between.
            let heard = self.doorbell().heard();
            if self.rings().closed.load(Ordering::SeqCst) {
                return;
            }
            let (mut any, mut in_chunks) = (false, false);
            // A worker may have garbled the word that says whether it has rung.
            let everywhere = looked.elapsed() >= HEARING;
            if everywhere {
                looked = Instant::now();
            }
            for (id, ring) in &*self.rings().list() {
                if everywhere || ring.is_rung() {
                    // What panics here is ours, and costs that worker only.
                    match catch(|| self.drain_ring(*id, ring, &mut frames)) {
                        Ok(drained) => {
                            any |= drained.any;
                            in_chunks |= drained.in_chunks;
                        }
                        Err(_) => self.on_drained(*id, Closed::Protocol(WireError::Truncated)),
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

    /// Ends the reader.
    fn close_rings(&self) {
        self.rings().closed.store(true, Ordering::SeqCst);
        self.doorbell().ring();
    }

    /// Drains one worker, unless somebody else does.
    fn drain_ring(&self, id: WorkerId, ring: &RingLink, frames: &mut Vec<Frame<FromWorker>>) -> Drained {
        let Some(mut lease) = ring.try_lease() else { return Drained::default() };
        if lease.is_over() {
            return Drained::default();
        }
        let drained = lease.drain(|frame| frames.push(frame));
        // Given back before anything is woken; what the worker says from here on rings once more.
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

    fn take_frames(&self, id: WorkerId, ring: &RingLink, frames: &mut Vec<Frame<FromWorker>>) -> Taken {
        if frames.is_empty() {
            // The worker may have rung because it made room.
            ring.credit(0);
            return Taken::default();
        }
        self.on_frames(id, frames)
    }

    /// Takes replies until what is awaited has come, where its task is with a worker that nobody drains; returns early when
    /// that is no more so. The caller then waits as anybody does.
    fn take_own_reply(&self, awaited: &dyn Awaited, deadline: Option<Instant>) {
        let origin = Origin::here();
        let mut frames = Vec::new();
        while let Some(worker) = awaited.worker() {
            let Some(ring) = self.rings().of(worker) else { return };
            let Some(mut lease) = ring.try_lease() else { return };
            if lease.is_over() {
                return;
            }
            let (leave, taken) = self.drain_for(awaited, worker, &ring, &mut lease, &mut frames, deadline);
            // While the lease is ours: the next holder may wait for the same thing.
            awaited.helper_leaves(worker);
            drop(lease);
            taken.wake();
            if origin.forked() {
                // A waker has copied this process. Nothing more comes to the copy, and its future says so.
                return;
            }
            match leave {
                Leave::TryAgain => {}
                Leave::Wait => return,
                Leave::Over(closed) => return self.on_drained(worker, closed),
            }
        }
    }

    /// One tenure of a lease.
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
                    // Also while something keeps coming: none of it need ever be ours.
                    if left == Some(Duration::ZERO) {
                        return (Leave::Wait, taken);
                    }
                    if !any {
                        // From here on who completes it wakes us, wherever the reply comes from.
                        if !awaited.helper_sleeps_at(worker) {
                            return (Leave::Wait, taken);
                        }
                        lease.sleep(left, || awaited.worker() != Some(worker));
                    }
                }
            }
            if awaited.worker() != Some(worker) {
                // It is done, or its task is elsewhere now.
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

/// What a look at one worker brought.
#[derive(Default)]
pub(super) struct Drained {
    any: bool,
    in_chunks: bool,
}

/// What a thread does after its tenure of a lease.
pub(super) enum Leave {
    TryAgain,
    /// Wait as anybody does.
    Wait,
    /// Nothing more comes from this worker.
    Over(Closed),
}

/// Reads the frames of one worker that is connected over ipc-channel, until nothing more can come.
pub(super) fn read_inbox(pool: &Pool, id: WorkerId, mut inbox: Box<dyn Inbox>) {
    local::set(&super::OWN_THREAD, true);
    // A reader that panics must still be missed: ipc-channel does, when a task writes into its channel by mistake.
    let origin = Origin::here();
    let read = || {
        let mut frames = Vec::new();
        loop {
            // See `read_rings`.
            origin.end_copy(0);
            match inbox.recv(&mut |frame| frames.push(frame)) {
                Ok(()) => pool.on_frames(id, &mut frames).wake(),
                Err(closed) => return closed,
            }
        }
    };
    let closed = catch(read).unwrap_or(Closed::Protocol(WireError::Truncated));
    pool.notify(Notice::Drained(id, closed));
}
