//! Receives the workers' replies.
//!
//! ```text
//!  a thread in `result()`, `wait`, `as_completed` or a map, if nobody attends
//!                                 ──► attends: drains all rings, sleeps on the doorbell, until
//!                                     what it waits for is there
//!  otherwise: the reader thread, one per pool
//!                                 ──► sleeps on its word until it is told, attends while there are
//!                                     replies
//!  ipc-channel: a thread for each worker, blocked in `recv`
//! ```
//!
//! There is at most one *attendant*: the thread that holds the [`Attendance`]. So a thread that
//! waits is the only one that is awake in this process, whichever worker has its task. It hands the
//! frames to [`Pool::on_frames`], which completes futures and sends the next tasks. The resulting
//! wakers are called after the attendance has ended, because wakers are user code, and may wait for
//! another task.
//!
//! A thread that takes one result after the other attends again and again. Meanwhile the reader
//! only *watches*: it sleeps for [`WATCH`] at a time, and sees at its end whether anybody has
//! attended. See "Watching" in `transport/ring/mod.rs`.
//!
//! The future that the attendant waits for may be completed by another thread, by `cancel` for
//! example. That thread then unparks the attendant, which [`Awaited`] remembers.

use std::{
    sync::{Arc, Mutex, PoisonError, TryLockError},
    thread,
    time::{Duration, Instant},
};

use super::{Pool, driver::Notice, ending::Batch, is_own_thread, replies::Taken};
use crate::{
    future::cell::{Awaited, Wakers},
    id::WorkerId,
    os::{
        fork::Creator,
        local,
        spin::Spin,
        std_or_model::{
            self as model, MODEL,
            atomic::{AtomicBool, AtomicU32, Ordering, fence},
        },
    },
    transport::{
        Closed, Inbox, Link,
        ring::{
            RingLink,
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
    /// Replaced as a whole, so that the attendant can iterate over it without the lock.
    list: Mutex<Arc<List>>,
    /// Number of times that the list was replaced.
    version: AtomicU32,
    closed: AtomicBool,
    /// Locked by the attendant.
    attendance: model::Mutex<Attendance>,
    /// Whether the attendant sleeps, or is about to. Not in shared memory: the pool's own wake-ups
    /// must not depend on what a worker writes there.
    attendant_sleeps: AtomicBool,
    /// Whether the reader looks at the rings soon, whatever the doorbell says.
    watched: AtomicBool,
    /// Number of attendances of threads that waited for a result. Written by the attendant.
    attended: AtomicU32,
    /// Whether a task awaits a reply that only the reader can take.
    awaited: AtomicBool,
    /// Whether a thread has taken a result that was there already since the reader last looked.
    served: AtomicBool,
}

/// What the attendant needs. There is one for each pool.
struct Attendance {
    /// The list of rings in this version.
    list: Arc<List>,
    version: u32,
    /// Empty between two drains. Kept to reuse its memory.
    frames: Vec<Frame<FromWorker>>,
    spin: Spin,
    /// The same for tasks, which may spin only briefly.
    poll_spin: Spin,
    /// The processor of the worker whose replies came last.
    worker_cpu: u32,
}

impl Default for Attendance {
    fn default() -> Self {
        Attendance {
            list: Arc::default(),
            version: 0,
            frames: Vec::new(),
            spin: Spin::default(),
            poll_spin: Spin::brief(),
            worker_cpu: u32::MAX,
        }
    }
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
        self.version.fetch_add(1, Ordering::SeqCst);
    }

    /// Adds a ring. The caller rings the doorbell afterwards: an attendant that sleeps has an older
    /// list, and the worker may have published something already.
    pub(super) fn add(&self, id: WorkerId, ring: Arc<RingLink>) {
        self.change(|list| {
            let at = list.partition_point(|(other, _)| other.0 < id.0);
            list.insert(at, (id, ring));
        });
    }

    /// Removes a ring. The caller rings the doorbell afterwards, so that an attendant that sleeps
    /// does not keep it.
    pub(super) fn remove(&self, id: WorkerId) {
        self.change(|list| list.retain(|(other, _)| *other != id));
    }

    /// Takes the attendance. Returns `None` if another thread has it.
    fn try_attend<'a>(&'a self, doorbell: &'a Doorbell) -> Option<Attendant<'a>> {
        let attendance = match self.attendance.try_lock() {
            Ok(attendance) => attendance,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        doorbell.attend();
        let left = Left { rings: self, doorbell, is_watched: false };
        Some(Attendant { rings: self, doorbell, attendance, is_brief: false, left })
    }

    /// Records that a thread takes results that are there already.
    pub(super) fn serve(&self) {
        // Most often it is recorded already. Not writing it again keeps the word in all caches.
        if !self.served.load(Ordering::Relaxed) {
            self.served.store(true, Ordering::Relaxed);
        }
    }

    /// Wakes the attendant, if it sleeps. For events that do not come from a worker.
    pub(super) fn unpark(&self, doorbell: &Doorbell) {
        fence(Ordering::SeqCst);
        if self.attendant_sleeps.load(Ordering::SeqCst) {
            doorbell.unpark();
        }
    }
}

/// The thread that drains all rings. See "The attendant" in `transport/ring/mod.rs`.
pub(super) struct Attendant<'a> {
    rings: &'a Rings,
    doorbell: &'a Doorbell,
    attendance: model::MutexGuard<'a, Attendance>,
    /// Whether a worker must tell the reader of the next reply, even if the reader watches.
    is_brief: bool,
    /// Dropped last, after the attendance was unlocked.
    left: Left<'a>,
}

/// Tells the reader when dropped, if the rings need attention after the attendance has ended.
struct Left<'a> {
    rings: &'a Rings,
    doorbell: &'a Doorbell,
    /// Whether the attendant left the rings to a reader that watches.
    is_watched: bool,
}

impl Attendant<'_> {
    /// Whether there is something to do: in a ring, or the list has changed.
    fn is_due(&self) -> bool {
        self.attendance.list.iter().any(|(_, ring)| ring.is_due()) || self.is_outdated()
    }

    fn is_outdated(&self) -> bool {
        self.rings.version.load(Ordering::SeqCst) != self.attendance.version
    }

    /// Takes the newest list. An older one keeps the memory of workers that are gone.
    fn update(&mut self) {
        if self.is_outdated() {
            self.attendance.version = self.rings.version.load(Ordering::SeqCst);
            self.attendance.list = self.rings.list();
        }
    }

    /// Counts this as an attendance of a thread that waits, and may soon wait again.
    fn count(&self) {
        // Only the attendant writes it.
        let count = self.rings.attended.load(Ordering::Relaxed);
        self.rings.attended.store(count.wrapping_add(1), Ordering::Relaxed);
    }

    /// Sleeps until there is something to do or `ended` returns true, at most for `timeout`. Code
    /// that makes `ended` true must call [`Rings::unpark`] after that.
    ///
    /// May return early. A worker can also write the word that announces this sleep, and nobody
    /// rings once it is garbled. So a sleep lasts at most [`HEARING`].
    fn sleep(&mut self, timeout: Option<Duration>, ended: impl Fn() -> bool) {
        let timeout = timeout.map_or(HEARING, |timeout| timeout.min(HEARING));
        self.rings.attendant_sleeps.store(true, Ordering::SeqCst);
        self.doorbell.sleep(timeout, || ended() || self.is_due());
        self.rings.attendant_sleeps.store(false, Ordering::SeqCst);
    }

    /// Looks for something to do for a moment, if that has paid off before for this `spin`. Returns
    /// whether there is something, or `ended` returns true.
    fn spins(
        &mut self,
        spin: impl Fn(&mut Attendance) -> &mut Spin,
        ended: impl Fn() -> bool,
    ) -> bool {
        if self.attendance.list.is_empty() {
            // Workers come up, which takes milliseconds and every processor.
            return ended() || self.is_due();
        }
        // Taken out, since the rings are looked at meanwhile.
        let mut taken = std::mem::take(spin(&mut self.attendance));
        let paid = taken.wait(self.attendance.worker_cpu, || ended() || self.is_due());
        *spin(&mut self.attendance) = taken;
        paid
    }
}

thread_local! {
    /// Whether this thread is calling the wakers of replies that a task has taken.
    static WAKES: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

impl Drop for Attendant<'_> {
    fn drop(&mut self) {
        if !self.is_brief && self.rings.watched.load(Ordering::SeqCst) {
            self.left.is_watched = true;
            if MODEL {
                // loom switches threads before atomic steps, but not before a lock is freed. This
                // one lets the reader clear the flag while it cannot get the attendance.
                let _ = self.rings.watched.load(Ordering::SeqCst);
            }
            return;
        }
        // First the word, then a look at the rings: see "The attendant" in `transport/ring/mod.rs`.
        self.doorbell.leave();
        if self.is_due() {
            // The next attendant must look. `Left` tells the reader once the attendance is free.
            self.doorbell.attend();
        }
    }
}

impl Drop for Left<'_> {
    fn drop(&mut self) {
        // The attendance is free. See "Watching" in `transport/ring/mod.rs` for the first case.
        // Otherwise: if the reader was told before now, it found the attendance taken and went back
        // to sleep. So tell it again.
        let needed = match self.is_watched {
            true => {
                fence(Ordering::SeqCst);
                !self.rings.watched.load(Ordering::SeqCst)
            }
            false => self.doorbell.is_attended(),
        };
        if needed {
            self.doorbell.tell_reader();
        }
    }
}

/// Sleep between two rounds while workers are in the middle of chunks, whose items end every few
/// hundred nanoseconds. A higher value delays results, and a worker may run dry. A lower value
/// makes the reader run after every item, and take processor time that a worker could use.
const NAP: Duration = Duration::from_micros(50);
/// How long the reader watches before it looks again whether anybody attends. A loop of `result()`
/// attends whenever it has used up what it had taken. A higher value delays the results of others
/// when such a loop ends. A lower value wakes the reader for replies that the loop takes itself.
const WATCH: Duration = Duration::from_micros(100);
/// Maximum time between two looks of a reader that watches, while others attend between the looks.
/// With a higher value, the results of other tasks wait for longer when they stop.
const WATCH_MAX: Duration = Duration::from_micros(500);
/// The same while others attend [`OFTEN`], as in a loop of single calls. Each look takes a
/// processor from that loop, which makes some round trips ten times as long.
const WATCH_OFTEN_MAX: Duration = Duration::from_millis(1);
/// Others attend often if they attend once in this time, on the average.
const OFTEN: Duration = Duration::from_micros(20);
/// How often in a row the reader watches a thread that takes results that are there already, and
/// does not attend.
const PATIENCE: u32 = 9;
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
        let mut spin = Spin::patient();
        let (mut attended, mut watch, mut patience) = (0, WATCH, 0);
        let creator = Creator::here();
        let rings = self.rings();
        loop {
            // A waker may have forked this process and returned in the child, which must not use
            // these rings.
            creator.end_copy(0);
            // Before looking at anything, so that nothing that it is told is missed.
            self.doorbell().listen();
            if rings.closed.load(Ordering::SeqCst) {
                if let Some(mut attendant) = self.try_attend() {
                    // Its list keeps the memory of workers that are gone.
                    attendant.update();
                }
                return;
            }
            let before = std::mem::replace(&mut attended, rings.attended.load(Ordering::Relaxed));
            let times = attended.wrapping_sub(before);
            let served = rings.served.swap(false, Ordering::Relaxed);
            // A thread that waits for one result after the other has attended, and will again in a
            // moment. Or it still takes the results that it found then.
            let awaited = rings.awaited.swap(false, Ordering::Relaxed);
            if !awaited && (times > 0 || served && patience > 0) {
                let most = if OFTEN * times >= watch { WATCH_OFTEN_MAX } else { WATCH_MAX };
                watch = if times > 0 { (watch * 2).min(most) } else { WATCH };
                patience = if times > 0 { PATIENCE } else { patience - 1 };
                rings.watched.store(true, Ordering::SeqCst);
                self.doorbell().doze_for(watch);
                continue;
            }
            watch = WATCH;
            // First the word, then a try of the attendance: see "Watching" in
            // `transport/ring/mod.rs`.
            rings.watched.store(false, Ordering::SeqCst);
            fence(Ordering::SeqCst);
            let Some(mut attendant) = self.try_attend() else {
                self.doorbell().doze(None);
                continue;
            };
            let mut drained = Drained::default();
            self.drain_all(&mut attendant, &mut drained);
            drop(attendant);
            let (any, in_chunks) = (drained.any, drained.in_chunks);
            self.finish(drained);
            if in_chunks {
                nap(NAP);
            } else if !any {
                self.doorbell().doze(self.has_spare_processor().then_some(&mut spin));
            }
        }
    }

    fn try_attend(&self) -> Option<Attendant<'_>> {
        self.rings().try_attend(self.doorbell())
    }

    /// Ends the reader thread.
    fn close_rings(&self) {
        self.rings().closed.store(true, Ordering::SeqCst);
        self.doorbell().tell_reader_anyway();
    }

    /// Takes what all workers have published, and adds to `drained` what is to be done then. Sets
    /// `any` to whether there was anything.
    fn drain_all(&self, attendant: &mut Attendant<'_>, drained: &mut Drained) {
        attendant.update();
        drained.any = false;
        let Attendance { list, frames, worker_cpu, .. } = &mut *attendant.attendance;
        for (id, ring) in &**list {
            if !ring.is_due() {
                continue;
            }
            // A panic here is a bug of this library. It costs only that worker.
            let taken = catch(|| {
                let any = ring.drain(|frame| frames.push(frame));
                (any, self.take_frames(*id, ring, frames))
            });
            let (any, taken) = taken.unwrap_or_else(|_| {
                // Not to be taken for frames of the next worker.
                frames.clear();
                (Err(Closed::Protocol(WireError::Truncated)), Taken::default())
            });
            drained.in_chunks |= taken.in_chunks;
            match any {
                Ok(any) => drained.any |= any,
                Err(closed) => {
                    drained.any = true;
                    drained.over.push((*id, closed));
                }
            }
            *worker_cpu = ring.worker_cpu();
            // A batch is on its way only with wakers.
            if !taken.wakers.is_empty() {
                drained.wakers.append(taken.wakers);
                drained.batches.extend(taken.batch);
            }
        }
        frames.shrink_to(FRAMES_KEPT);
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

    /// Calls wakers, and reports workers from which nothing more comes. The attendance has ended.
    fn finish(&self, drained: Drained) {
        if !drained.asks_to_leave() {
            return;
        }
        let creator = Creator::here();
        drained.wakers.wake();
        drop(drained.batches);
        if creator.is_elsewhere() {
            // A waker has forked this process, and this is the child, which has no driver.
            return;
        }
        for (id, closed) in drained.over {
            self.on_drained(id, closed);
        }
    }

    /// Takes the replies that are there, or come while a spin of some microseconds pays off, unless
    /// another thread attends. For a task that is about to wait: its thread gets the reply, and
    /// wakes other tasks, without a hop through the reader.
    fn attend_briefly(&self) {
        // A waker that runs its task at once would come back here, ever deeper.
        if is_own_thread() || local::get(&WAKES) {
            return;
        }
        let Some(mut attendant) = self.try_attend() else { return };
        let mut drained = Drained::default();
        self.drain_all(&mut attendant, &mut drained);
        if !drained.any && attendant.spins(|attendance| &mut attendance.poll_spin, || false) {
            self.drain_all(&mut attendant, &mut drained);
        }
        // A task that has not got its reply here needs the reader as soon as the reply comes.
        self.rings().awaited.store(true, Ordering::Relaxed);
        attendant.is_brief = true;
        drop(attendant);
        if drained.asks_to_leave() {
            local::set(&WAKES, true);
            // Caught, so that the mark is taken back in any case.
            let finished = catch(|| self.finish(drained));
            local::set(&WAKES, false);
            debug_assert!(finished.is_ok(), "wakers are caught one by one");
        }
    }

    /// Attends until what the caller awaits has come, unless another thread attends. May return
    /// early. The caller then waits in the ordinary way.
    fn attend_until(&self, awaited: &dyn Awaited, deadline: Option<Instant>) {
        let creator = Creator::here();
        let mut late = false;
        while !awaited.is_over() && !late {
            let Some(mut attendant) = self.try_attend() else { return };
            let mut is_known = false;
            let mut drained = Drained::default();
            loop {
                self.drain_all(&mut attendant, &mut drained);
                let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
                // Check this also while frames keep coming, since none of them may ever be the
                // awaited one.
                late = left == Some(Duration::ZERO);
                if late || drained.asks_to_leave() || awaited.is_over() {
                    break;
                }
                if !drained.any
                    && !attendant.spins(|attendance| &mut attendance.spin, || awaited.is_over())
                {
                    // From here on, the thread that completes the future unparks this one.
                    is_known = true;
                    if !awaited.attendant_sleeps() {
                        late = true;
                        break;
                    }
                    attendant.sleep(left, || awaited.is_over());
                }
            }
            // While still attending: the next attendant may wait for the same future.
            if is_known {
                awaited.attendant_leaves();
            }
            attendant.count();
            drop(attendant);
            self.finish(drained);
            if creator.is_elsewhere() {
                // A waker has forked this process, and this is the child. Nothing more comes here,
                // and the caller looks for that.
                return;
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

/// The result of draining all rings.
#[derive(Default)]
pub(super) struct Drained {
    any: bool,
    /// Whether a worker is in the middle of a chunk.
    in_chunks: bool,
    /// Called once the attendance has ended.
    wakers: Wakers,
    /// Dropped after the wakers were called.
    batches: Vec<Batch>,
    /// Workers from which nothing more comes.
    over: Vec<(WorkerId, Closed)>,
}

impl Drained {
    /// Whether there is something to do that cannot be done while attending.
    fn asks_to_leave(&self) -> bool {
        !self.wakers.is_empty() || !self.over.is_empty()
    }
}

/// Sleeps for a moment, unless a model checker runs this.
fn nap(time: Duration) {
    if !MODEL {
        thread::sleep(time);
    }
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
