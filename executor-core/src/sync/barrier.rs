//! Meeting of a fixed number of threads.
//!
//! ```text
//!            FILLING ──the last one comes──► RELEASING: each cell TOLD ──► FILLING
//!               │  └─with an action─► ACTING ──it has run──┘
//!               └──abort, a time limit, a death──► BREAKING: each cell BROKEN ──► BROKEN ──reset──► FILLING
//! ```
//!
//! Each who comes has a cell of its own and learns there how it ended, however late it looks; there are twice as many as
//! parties, so that the next ones can come while the last ones leave. A mutex protects it all. One that dies under it in
//! RELEASING or BREAKING has begun something that the next to have the mutex ends; at other moments all is in order.
//!
//! One that dies while it waits breaks the barrier: the others look each 100 ms whether all who have come live.

use std::{error, fmt, io, time::Duration};

use super::{
    cells::{self, Cell, State},
    changed::changed,
    raw::{Bell, Deadline, RECHECK, RobustGuard, RobustMutex, deadline_in, nap},
};
use crate::{
    os::{
        liveness::{Liveness, OwnerId, Owners},
        memory::SharedLayout,
        sync::atomic::{AtomicU32, AtomicU64, Ordering},
    },
    shm::heap::{Block, Kind},
};

const FILLING: u32 = 0;
const ACTING: u32 = 1;
const RELEASING: u32 = 2;
const BREAKING: u32 = 3;
const BROKEN: u32 = 4;
/// As `BREAKING`, and back to `FILLING` then.
const RESETTING: u32 = 5;

#[cfg_attr(all(test, any(executor_loom, executor_shuttle)), derive(Default))]
#[repr(C)]
struct Head {
    mutex: RobustMutex,
    /// For those who cannot come in: someone acts, or leaves.
    door: Bell,
    phase: AtomicU32,
    /// Who acts.
    acting: AtomicU32,
    parties: AtomicU32,
    /// How often somebody began to act: an action that ends after a reset is of an earlier turn.
    turn: AtomicU32,
    /// In nanoseconds; 0 is none.
    limit: AtomicU64,
}

// SAFETY: `repr(C)`, atomics only, no drop, zero is a value.
unsafe impl SharedLayout for Head {}

/// Why a barrier was not passed.
#[derive(Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum BarrierError {
    /// It is broken: another one aborted, came to its time limit, died, or panicked in the action; or it was reset.
    Broken,
    /// Not all came in time. That breaks it for the others.
    TimedOut,
}

impl fmt::Display for BarrierError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            BarrierError::Broken => "the barrier is broken",
            BarrierError::TimedOut => "not all came to the barrier in time",
        })
    }
}

impl error::Error for BarrierError {}

crate::error::debug_is_display!(BarrierError);

/// Where a number of threads, of any processes, wait for each other.
///
/// It travels, as a [`Lock`](crate::Lock) does, and serves again and again.
///
/// ```
/// use executor::{Barrier, prelude::*};
///
/// #[task]
/// fn meet(barrier: Barrier) -> usize {
///     barrier.wait().unwrap()
/// }
///
/// #[executor::main]
/// fn main() -> Result<(), Box<dyn std::error::Error>> {
///     let pool = ProcessPoolExecutor::builder().max_workers(2).build()?;
///     let barrier = Barrier::new(2)?;
///     let futures = [(); 2].map(|()| pool.submit(meet::task(barrier.clone())));
///     let mut order = futures.map(|future| future.result().unwrap());
///     order.sort();
///     assert_eq!(order, [0, 1]);
///     Ok(())
/// }
/// ```
///
/// # When somebody dies
///
/// If a process dies while one of its threads waits here, the barrier breaks, within 100 ms. Who has not come yet is not
/// known to it: where that may die, set a time limit.
///
/// # An action
///
/// What one of them does before all go on is given to [`wait_with`](Self::wait_with): closures do not travel.
#[derive(Clone)]
pub struct Barrier {
    block: Block,
}

travels!(Barrier, block, &[Kind::Barrier], |len| len > size_of::<Head>());

/// What came of looking at one's cell.
enum Step<'a> {
    Done(Result<usize, BarrierError>),
    /// All have come, and this one acts before they go on.
    Act {
        index: usize,
        turn: u32,
    },
    Wait {
        cell: &'a Cell,
        index: usize,
    },
    /// Nobody can come in at the moment.
    Outside {
        heard: u32,
    },
}

impl Barrier {
    /// A new one, for so many.
    ///
    /// # Errors
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) for 0; the system's, if it has no descriptor or no memory left.
    pub fn new(parties: usize) -> io::Result<Self> {
        Self::with(parties, 0)
    }

    /// A new one, at which nobody waits longer than this.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_timeout(parties: usize, limit: Duration) -> io::Result<Self> {
        Self::with(parties, u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX).max(1))
    }

    fn with(parties: usize, limit: u64) -> io::Result<Self> {
        let invalid = || io::Error::new(io::ErrorKind::InvalidInput, "a barrier for nobody, or for too many");
        let count = u32::try_from(parties).ok().filter(|count| *count > 0).ok_or_else(invalid)?;
        let cells = parties.checked_mul(2).and_then(|cells| cells.checked_mul(size_of::<Cell>()));
        let len = cells.and_then(|cells| cells.checked_add(size_of::<Head>())).ok_or_else(invalid)?;
        let barrier = Barrier { block: Block::allocate(Kind::Barrier, len)? };
        barrier.head().parties.store(count, Ordering::Relaxed);
        barrier.head().limit.store(limit, Ordering::Relaxed);
        Ok(barrier)
    }

    fn head(&self) -> &Head {
        self.block.part(0)
    }

    fn cells(&self) -> &[Cell] {
        self.block.rest(size_of::<Head>())
    }

    fn owners(&self) -> &Liveness {
        self.block.owners()
    }

    fn lock(&self) -> RobustGuard<'_, Liveness> {
        let guard = self.head().mutex.lock(self.owners());
        self.repair(&guard);
        guard
    }

    /// Ends what one has begun that died.
    fn repair(&self, guard: &RobustGuard<'_, Liveness>) {
        if guard.owner_died() {
            match self.phase() {
                RELEASING => self.end_releasing(),
                BREAKING => self.end_breaking(BROKEN),
                RESETTING => self.end_breaking(FILLING),
                _ => {}
            }
        }
    }

    fn phase(&self) -> u32 {
        self.head().phase.load(Ordering::Relaxed)
    }

    fn enter_phase(&self, phase: u32) {
        self.head().phase.store(phase, Ordering::Relaxed);
    }

    fn waiting(&self) -> impl Iterator<Item = &Cell> {
        self.cells().iter().filter(|cell| cell.is_waiting())
    }

    /// Lets all pass. The mutex is held; those are woken at once, for they do not need it.
    fn release(&self) {
        self.enter_phase(RELEASING);
        kill_point!(BarrierReleasing);
        self.end_releasing();
    }

    fn end_releasing(&self) {
        for cell in self.waiting() {
            cell.tell(0);
            kill_point!(BarrierTold);
            cell.wake();
        }
        self.enter_phase(FILLING);
        self.head().door.ring().wake_all();
    }

    fn end_breaking(&self, then: u32) {
        for cell in self.waiting() {
            cell.break_off();
            cell.wake();
        }
        self.enter_phase(then);
        self.head().door.ring().wake_all();
    }

    fn break_now(&self) {
        self.enter_phase(BREAKING);
        self.end_breaking(BROKEN);
    }

    /// Waits for all the others: how many were here already.
    ///
    /// So exactly one of them gets 0.
    ///
    /// # Errors
    /// If it is or gets broken, or after the barrier's time limit.
    pub fn wait(&self) -> Result<usize, BarrierError> {
        self.wait_until(self.own_deadline(), None::<fn()>)
    }

    /// As [`wait`](Self::wait), but no longer than this.
    ///
    /// # Errors
    /// As [`wait`](Self::wait).
    pub fn wait_timeout(&self, limit: Duration) -> Result<usize, BarrierError> {
        self.wait_until(deadline_in(limit), None::<fn()>)
    }

    /// As [`wait`](Self::wait); whoever comes last runs the action, and then all go on.
    ///
    /// Give all of them the same action: one of them is run, once for all.
    ///
    /// # Errors
    /// As [`wait`](Self::wait).
    ///
    /// # Panics
    /// If the action does; the barrier is broken then.
    pub fn wait_with(&self, action: impl FnOnce()) -> Result<usize, BarrierError> {
        self.wait_until(self.own_deadline(), Some(action))
    }

    /// As [`wait`](Self::wait), on any async runtime.
    ///
    /// # Errors
    /// As [`wait`](Self::wait); without the barrier's time limit, for which a runtime has its own means.
    ///
    /// # Cancel safety
    /// To drop the future of one who has come breaks the barrier: the others would wait for nobody.
    pub async fn wait_async(&self) -> Result<usize, BarrierError> {
        loop {
            match self.come(false) {
                Step::Done(result) => return result,
                Step::Act { .. } => unreachable!("there is no action"),
                Step::Outside { heard } => changed(&self.block, self.head().door.word(), heard).await,
                Step::Wait { cell, index } => {
                    let presence = Presence { barrier: self, cell, me: self.owners().me() };
                    loop {
                        match self.look(cell, index) {
                            Some(result) => {
                                std::mem::forget(presence);
                                return result;
                            }
                            None => {
                                let (word, expected) = cell.word();
                                changed(&self.block, word, expected).await;
                                self.look_after_the_dead();
                            }
                        }
                    }
                }
            }
        }
    }

    fn own_deadline(&self) -> Deadline {
        match self.head().limit.load(Ordering::Relaxed) {
            0 => None,
            nanos => deadline_in(Duration::from_nanos(nanos)),
        }
    }

    fn wait_until(
        &self,
        deadline: Deadline,
        mut action: Option<impl FnOnce()>,
    ) -> Result<usize, BarrierError> {
        loop {
            match self.come(action.is_some()) {
                Step::Done(result) => return result,
                Step::Act { index, turn } => return self.act(index, turn, action.take()),
                Step::Outside { heard } => {
                    let Some(limit) = nap(deadline) else {
                        let _guard = self.lock();
                        self.break_now();
                        return Err(BarrierError::TimedOut);
                    };
                    self.head().door.sleep(heard, limit);
                }
                Step::Wait { cell, index } => return self.wait_in(cell, index, deadline),
            }
        }
    }

    fn wait_in(&self, cell: &Cell, index: usize, deadline: Deadline) -> Result<usize, BarrierError> {
        loop {
            if let Some(result) = self.look(cell, index) {
                return result;
            }
            let Some(limit) = nap(deadline) else {
                let guard = self.lock();
                if !cell.is_waiting() {
                    drop(guard);
                    continue;
                }
                cell.leave();
                self.break_now();
                return Err(BarrierError::TimedOut);
            };
            cell.sleep(limit);
            kill_point!(BarrierWoken);
            if limit == RECHECK && cell.is_waiting() {
                self.look_after_the_dead();
            }
        }
    }

    /// Comes in, if that is possible.
    fn come(&self, acts: bool) -> Step<'_> {
        let guard = self.lock();
        let outside = || Step::Outside { heard: self.head().door.listen() };
        match self.phase() {
            FILLING => {}
            ACTING => {
                if self.actor_lives() {
                    return outside();
                }
                self.break_now();
                return Step::Done(Err(BarrierError::Broken));
            }
            _ => return Step::Done(Err(BarrierError::Broken)),
        }
        let index = self.waiting().count();
        if index.saturating_add(1) >= self.parties() {
            if acts {
                self.head().acting.store(guard.me().bits(), Ordering::Relaxed);
                let turn = self.head().turn.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
                self.enter_phase(ACTING);
                kill_point!(BarrierActing);
                return Step::Act { index, turn };
            }
            self.release();
            return Step::Done(Ok(index));
        }
        let dead = || {
            let left = |cell: &&Cell| !cell.is_free() && !cell.is_waiting() && !cell.is_alive(self.owners());
            self.cells().iter().find(left)
        };
        let Some(cell) = cells::free(self.cells()).or_else(dead) else { return outside() };
        cell.enter(guard.me(), index as u32);
        drop(guard);
        kill_point!(BarrierEntered);
        Step::Wait { cell, index }
    }

    /// How it has ended, if it has; the cell is left then.
    fn look(&self, cell: &Cell, index: usize) -> Option<Result<usize, BarrierError>> {
        let result = match cell.state() {
            State::Waiting => return None,
            State::Told => Ok(index),
            State::Broken => Err(BarrierError::Broken),
        };
        cell.leave();
        // Somebody may wait for a cell.
        if self.head().door.is_listened_to() {
            let _guard = self.lock();
            self.head().door.ring().wake_all();
        }
        Some(result)
    }

    fn actor_lives(&self) -> bool {
        OwnerId::from_bits(self.head().acting.load(Ordering::Relaxed))
            .is_some_and(|actor| self.owners().is_alive(actor))
    }

    /// Breaks it, if one of those who have come is dead.
    fn look_after_the_dead(&self) {
        let Some(guard) = self.head().mutex.try_lock(self.owners()) else { return };
        self.repair(&guard);
        let dead = match self.phase() {
            FILLING => self.waiting().any(|cell| !cell.is_alive(self.owners())),
            ACTING => !self.actor_lives(),
            _ => false,
        };
        if dead {
            self.break_now();
        }
    }

    /// Whether this is the action that all wait for; it may have been aborted meanwhile.
    fn is_acting(&self, turn: u32) -> bool {
        self.phase() == ACTING && self.head().turn.load(Ordering::Relaxed) == turn
    }

    fn act(&self, index: usize, turn: u32, action: Option<impl FnOnce()>) -> Result<usize, BarrierError> {
        /// Breaks it when the action panics.
        struct Acting<'a>(&'a Barrier, u32);
        impl Drop for Acting<'_> {
            fn drop(&mut self) {
                let _guard = self.0.lock();
                if self.0.is_acting(self.1) {
                    self.0.break_now();
                }
            }
        }
        let acting = Acting(self, turn);
        if let Some(action) = action {
            action();
        }
        std::mem::forget(acting);
        let _guard = self.lock();
        if !self.is_acting(turn) {
            return Err(BarrierError::Broken);
        }
        self.release();
        Ok(index)
    }

    /// Breaks it: all who wait, and all who come until it is [reset](Self::reset), get [`BarrierError::Broken`].
    pub fn abort(&self) {
        let _guard = self.lock();
        self.break_now();
    }

    /// Makes it as new: all who wait get [`BarrierError::Broken`], and whoever comes from now on waits.
    pub fn reset(&self) {
        let _guard = self.lock();
        self.enter_phase(RESETTING);
        self.end_breaking(FILLING);
    }

    /// For how many it is.
    pub fn parties(&self) -> usize {
        self.head().parties.load(Ordering::Relaxed) as usize
    }

    /// How many wait at this moment.
    pub fn n_waiting(&self) -> usize {
        self.waiting().count()
    }

    /// Whether it is broken.
    pub fn is_broken(&self) -> bool {
        matches!(self.phase(), BREAKING | BROKEN)
    }
}

/// One who has come and may be dropped.
struct Presence<'a> {
    barrier: &'a Barrier,
    cell: &'a Cell,
    me: OwnerId,
}

impl Drop for Presence<'_> {
    fn drop(&mut self) {
        if self.barrier.owners().is_me(self.me) {
            let _guard = self.barrier.lock();
            if self.cell.is_waiting() {
                self.cell.leave();
                self.barrier.break_now();
            } else {
                self.cell.leave();
            }
        }
    }
}

impl fmt::Debug for Barrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let broken = if self.is_broken() { ", broken" } else { "" };
        write!(f, "Barrier({} of {}{broken})", self.n_waiting(), self.parties())
    }
}
