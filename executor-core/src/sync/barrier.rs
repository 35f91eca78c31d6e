//! Meeting of a fixed number of threads.
//!
//! ```text
//!            FILLING ──the last one comes──► RELEASING: each cell TOLD ──► FILLING
//!               │  └─with an action─► ACTING ──it has run──┘
//!               └──abort, a time limit, a death──► BREAKING: each cell BROKEN ──► BROKEN ──reset──► FILLING
//! ```
//!
//! Each who comes has a cell of its own and learns there how it ended, however late it looks; there are twice as many as
//! parties, so that the next ones can come while the last ones leave. A mutex protects coming in and telling. One that dies
//! under it in RELEASING, BREAKING or RESETTING has begun something that the next one to have the mutex ends.
//!
//! The phase is the act, and one change of its word, which also counts turns: from FILLING of a turn it goes to RELEASING or to
//! BREAKING, whichever is first. So it can be broken without the mutex (a time limit, a future that is dropped,
//! [`Barrier::abort`]) while somebody is stopped with it; and whoever waits reads the phase, too, and goes on although the one
//! who lets all pass is stopped in the middle.
//!
//! One that dies while it waits breaks the barrier: the others look each 100 ms whether all who have come live.

use std::{error, fmt, io, time::Duration};

use super::{
    cells::{self, Cell, State},
    changed::changed,
    raw::{Bell, Deadline, RECHECK, RobustGuard, RobustMutex, deadline_in, nap},
};
use crate::{
    heap::block::{Block, Kind},
    os::{
        liveness::{Liveness, OwnerId, Owners},
        memory::SharedLayout,
        sync::atomic::{AtomicU32, AtomicU64, Ordering},
    },
};

const FILLING: u64 = 0;
const ACTING: u64 = 1;
const RELEASING: u64 = 2;
const BREAKING: u64 = 3;
const BROKEN: u64 = 4;
/// As `BREAKING`, and back to `FILLING` then.
const RESETTING: u64 = 5;
/// As `RELEASING`, and then `BROKEN`: all pass, and it was aborted meanwhile.
const RELEASING_LAST: u64 = 6;
/// The turn is above it: how often all was over, one way or the other. 61 bits do not come round.
const PHASE_BITS: u32 = 3;
const PHASE: u64 = (1 << PHASE_BITS) - 1;

#[cfg_attr(all(test, any(executor_loom, executor_shuttle)), derive(Default))]
#[repr(C)]
pub(super) struct Head {
    mutex: RobustMutex,
    /// For those who cannot come in: someone acts, or leaves.
    door: Bell,
    /// Who acts.
    acting: AtomicU32,
    parties: AtomicU32,
    /// The turn, and its phase.
    phase: AtomicU64,
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

crate::debug::debug_is_display!(BarrierError);

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

/// What came of coming in.
pub(super) enum Step<'a> {
    Done(Result<usize, BarrierError>),
    /// All have come, and this one acts before they go on; the word of the phase meanwhile.
    Act {
        index: usize,
        acting: u64,
    },
    /// It waits in this cell, as one of that turn.
    Wait(Place<'a>),
    /// Nobody can come in until this word is another one.
    Outside {
        word: &'a AtomicU32,
        heard: u32,
    },
}

/// Where one waits who has come.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    cell: &'a Cell,
    index: usize,
    /// The word of the phase when it came.
    filling: u64,
}

/// A barrier in shared memory; the block's, or a model's.
pub(super) struct Meeting<'a, O> {
    pub(super) head: &'a Head,
    pub(super) cells: &'a [Cell],
    pub(super) owners: &'a O,
}

impl<O> Clone for Meeting<'_, O> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<O> Copy for Meeting<'_, O> {}

impl<'a, O: Owners> Meeting<'a, O> {
    pub(super) fn init(self, parties: u32, limit: u64) {
        self.head.parties.store(parties, Ordering::Relaxed);
        self.head.limit.store(limit, Ordering::Relaxed);
    }

    fn lock_until(self, deadline: Deadline) -> Option<RobustGuard<'a, O>> {
        self.head.mutex.lock_until(self.owners, deadline).inspect(|_| self.end_begun())
    }

    /// For an async form: what it holds, or on which word it waits.
    fn lock_or_word(self, waited: bool) -> Result<RobustGuard<'a, O>, u32> {
        self.head.mutex.lock_or_word(self.owners, waited).inspect(|_| self.end_begun())
    }

    /// Ends what another one has begun that died, or that had not the mutex. The mutex is held.
    fn end_begun(self) {
        let phase = self.phase();
        match phase & PHASE {
            RELEASING => self.end_releasing(phase, next_turn(phase)),
            RELEASING_LAST => self.end_releasing(phase, next_turn(phase) | BROKEN),
            BREAKING => self.end_breaking(phase, phase & !PHASE | BROKEN),
            RESETTING => self.end_breaking(phase, next_turn(phase)),
            _ => {}
        }
    }

    /// The turn and its phase.
    fn phase(self) -> u64 {
        self.head.phase.load(Ordering::Acquire)
    }

    /// Goes from one phase to another; `false` if another one was faster.
    fn change_phase(self, from: u64, to: u64) -> bool {
        self.head.phase.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    fn waiting(self) -> impl Iterator<Item = &'a Cell> {
        self.cells.iter().filter(|cell| cell.is_waiting())
    }

    /// Those are woken at once, for they do not need the mutex.
    fn end_releasing(self, releasing: u64, then: u64) {
        for cell in self.waiting() {
            cell.tell(0);
            kill_point!(BarrierTold);
            cell.wake();
        }
        // Where it was aborted meanwhile, another one ends it.
        self.change_phase(releasing, then);
        self.head.door.ring_alone().wake_all();
    }

    fn end_breaking(self, breaking: u64, then: u64) {
        for cell in self.waiting() {
            cell.break_off();
            kill_point!(BarrierBrokenOff);
            cell.wake();
        }
        self.change_phase(breaking, then);
        self.head.door.ring_alone().wake_all();
    }

    /// Breaks that turn, unless all of it pass already or it is broken: whether it was this call that did. Waits for nobody.
    fn break_turn(self, turn: u64) -> bool {
        let turn = turn & !PHASE;
        let begun =
            [FILLING, ACTING].into_iter().any(|phase| self.change_phase(turn | phase, turn | BREAKING));
        if begun {
            kill_point!(BarrierBreaking);
            self.end_or_wake();
        }
        begun
    }

    /// Ends what was begun without the mutex, if that is to be had at once. Whoever waits sees the phase in any case, and
    /// whoever has the mutex next ends it.
    fn end_or_wake(self) {
        if let Some(_guard) = self.head.mutex.lock_at_once(self.owners) {
            self.end_begun();
            return;
        }
        for cell in self.waiting() {
            cell.wake();
        }
        self.head.door.ring_alone().wake_all();
    }

    pub(super) fn wait_until(
        self,
        deadline: Deadline,
        mut action: Option<impl FnOnce()>,
    ) -> Result<usize, BarrierError> {
        let too_late = || {
            self.break_turn(self.phase());
            Err(BarrierError::TimedOut)
        };
        loop {
            let Some(guard) = self.lock_until(deadline) else { return too_late() };
            match self.come(guard, action.is_some()) {
                Step::Done(result) => return result,
                Step::Act { index, acting } => return self.act(index, acting, action.take()),
                Step::Outside { heard, .. } => {
                    let Some(limit) = nap(deadline) else { return too_late() };
                    self.head.door.sleep_with_all(heard, limit);
                }
                Step::Wait(place) => return self.wait_in(place, deadline),
            }
        }
    }

    fn wait_in(self, place: Place<'a>, deadline: Deadline) -> Result<usize, BarrierError> {
        loop {
            if let Some(result) = self.look(place) {
                return result;
            }
            let Some(limit) = nap(deadline) else {
                if self.break_turn(place.filling) {
                    self.leave(place.cell);
                    return Err(BarrierError::TimedOut);
                }
                // Another one has ended this turn: the next look says how.
                continue;
            };
            place.cell.sleep(limit);
            kill_point!(BarrierWoken);
            if limit == RECHECK && place.cell.is_waiting() {
                self.look_after_the_dead();
            }
        }
    }

    /// Comes in, if that is possible.
    fn come(self, guard: RobustGuard<'a, O>, acts: bool) -> Step<'a> {
        let mut listens = None;
        loop {
            let phase = self.phase();
            match phase & PHASE {
                FILLING => {
                    let index = self.waiting().count();
                    if index.saturating_add(1) >= self.parties() {
                        return self.complete(&guard, phase, index, acts);
                    }
                    let dead = || {
                        let left = |cell: &&Cell| {
                            !cell.is_free() && !cell.is_waiting() && !cell.is_alive(self.owners)
                        };
                        self.cells.iter().find(left)
                    };
                    if let Some(cell) = cells::free(self.cells).or_else(dead) {
                        cell.enter(guard.me(), index as u64);
                        kill_point!(BarrierEntered);
                        return Step::Wait(Place { cell, index, filling: phase });
                    }
                }
                ACTING if self.actor_lives() => {}
                ACTING => {
                    drop(guard);
                    self.break_turn(phase);
                    return Step::Done(Err(BarrierError::Broken));
                }
                // An action has ended.
                RELEASING | RELEASING_LAST => {
                    self.end_begun();
                    continue;
                }
                _ => return Step::Done(Err(BarrierError::Broken)),
            }
            match listens {
                Some(heard) => return Step::Outside { word: self.head.door.word(), heard },
                // After this one looks once more: others leave, and end an action, without the mutex.
                None => listens = Some(self.head.door.listen()),
            }
        }
    }

    /// All have come, and this one is the last.
    fn complete(self, guard: &RobustGuard<'a, O>, filling: u64, index: usize, acts: bool) -> Step<'a> {
        let turn = filling & !PHASE;
        if acts {
            self.head.acting.store(guard.me().bits(), Ordering::Relaxed);
            let acting = turn | ACTING;
            if self.change_phase(filling, acting) {
                kill_point!(BarrierActing);
                return Step::Act { index, acting };
            }
        } else if self.change_phase(filling, turn | RELEASING) {
            kill_point!(BarrierReleasing);
            self.end_begun();
            return Step::Done(Ok(index));
        }
        // It was broken meanwhile.
        Step::Done(Err(BarrierError::Broken))
    }

    /// How it has ended, if it has; the cell is left then.
    fn look(self, place: Place<'a>) -> Option<Result<usize, BarrierError>> {
        let Place { cell, index, filling } = place;
        let result = loop {
            let state = cell.state();
            let phase = self.phase();
            match state {
                State::Told => break Ok(index),
                State::Broken => break Err(BarrierError::Broken),
                // Before a turn is over, all who wait in it are told.
                State::Waiting if phase & !PHASE != filling & !PHASE => {}
                // Whoever has begun to tell may be stopped.
                State::Waiting => match phase & PHASE {
                    FILLING | ACTING => return None,
                    RELEASING | RELEASING_LAST => break Ok(index),
                    _ => break Err(BarrierError::Broken),
                },
            }
            if state == State::Waiting && cell.is_waiting() && self.phase() == phase {
                // Somebody has garbled it.
                break Err(BarrierError::Broken);
            }
        };
        self.leave(cell);
        Some(result)
    }

    /// Leaves a cell, told or not.
    fn leave(self, cell: &Cell) {
        if !cell.withdraw() {
            cell.leave();
        }
        // Somebody may wait for a cell.
        self.head.door.ring_alone().wake_all();
    }

    fn actor_lives(self) -> bool {
        OwnerId::from_bits(self.head.acting.load(Ordering::Relaxed))
            .is_some_and(|actor| self.owners.is_alive(actor))
    }

    /// Breaks it, if one of those who have come is dead.
    pub(super) fn look_after_the_dead(self) {
        let Some(guard) = self.head.mutex.try_lock(self.owners) else { return };
        self.end_begun();
        let phase = self.phase();
        let dead = match phase & PHASE {
            FILLING => self.waiting().any(|cell| !cell.is_alive(self.owners)),
            ACTING => !self.actor_lives(),
            _ => false,
        };
        drop(guard);
        if dead {
            self.break_turn(phase);
        }
    }

    fn act(self, index: usize, acting: u64, action: Option<impl FnOnce()>) -> Result<usize, BarrierError> {
        /// Breaks it when the action panics.
        struct Acting<'a, O: Owners>(Meeting<'a, O>, u64);
        impl<O: Owners> Drop for Acting<'_, O> {
            fn drop(&mut self) {
                self.0.break_turn(self.1);
            }
        }
        let breaks = Acting(self, acting);
        if let Some(action) = action {
            action();
        }
        std::mem::forget(breaks);
        // It may have been broken meanwhile, or reset.
        if !self.change_phase(acting, acting & !PHASE | RELEASING) {
            return Err(BarrierError::Broken);
        }
        kill_point!(BarrierReleasing);
        self.end_or_wake();
        Ok(index)
    }

    /// Waits for nobody.
    fn abort(self) {
        self.redirect(|phase| match phase {
            FILLING | ACTING | RESETTING => Some(BREAKING),
            // All pass already.
            RELEASING => Some(RELEASING_LAST),
            _ => None,
        });
    }

    /// Waits for nobody.
    fn reset(self) {
        self.redirect(|phase| match phase {
            FILLING | ACTING | BREAKING | BROKEN => Some(RESETTING),
            RELEASING_LAST => Some(RELEASING),
            _ => None,
        });
    }

    /// Another phase of the same turn, unless `to` has none.
    fn redirect(self, to: impl Fn(u64) -> Option<u64>) {
        let next = |phase: u64| Some(phase & !PHASE | to(phase & PHASE)?);
        let changed = self.head.phase.fetch_update(Ordering::AcqRel, Ordering::Acquire, next);
        if changed.is_ok() {
            kill_point!(BarrierBreaking);
            self.end_or_wake();
        }
    }

    fn parties(self) -> usize {
        self.head.parties.load(Ordering::Relaxed) as usize
    }

    pub(super) fn n_waiting(self) -> usize {
        match self.phase() & PHASE {
            FILLING | ACTING => self.waiting().count(),
            // They are about to leave.
            _ => 0,
        }
    }
}

/// The beginning of the turn after this one.
fn next_turn(phase: u64) -> u64 {
    (phase & !PHASE).wrapping_add(1 << PHASE_BITS) | FILLING
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
        barrier.meeting().init(count, limit);
        Ok(barrier)
    }

    fn meeting(&self) -> Meeting<'_, Liveness> {
        let cells = self.block.rest(size_of::<Head>());
        Meeting { head: self.block.part(0), cells, owners: self.block.owners() }
    }

    /// Waits for all the others: how many were here already.
    ///
    /// So exactly one of them gets 0.
    ///
    /// # Errors
    /// If it is or gets broken, or after the barrier's time limit.
    pub fn wait(&self) -> Result<usize, BarrierError> {
        self.meeting().wait_until(self.own_deadline(), None::<fn()>)
    }

    /// As [`wait`](Self::wait), but no longer than this.
    ///
    /// # Errors
    /// As [`wait`](Self::wait).
    pub fn wait_timeout(&self, limit: Duration) -> Result<usize, BarrierError> {
        self.meeting().wait_until(deadline_in(limit), None::<fn()>)
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
        self.meeting().wait_until(self.own_deadline(), Some(action))
    }

    /// As [`wait`](Self::wait), on any async runtime.
    ///
    /// # Errors
    /// As [`wait`](Self::wait); without the barrier's time limit, for which a runtime has its own means.
    ///
    /// # Cancel safety
    /// To drop the future of one who has come breaks the barrier: the others would wait for nobody.
    pub async fn wait_async(&self) -> Result<usize, BarrierError> {
        let meeting = self.meeting();
        let mut waited = false;
        loop {
            let step = match meeting.lock_or_word(waited) {
                Ok(guard) => meeting.come(guard, false),
                Err(heard) => Step::Outside { word: meeting.head.mutex.word(), heard },
            };
            match step {
                Step::Done(result) => return result,
                Step::Act { .. } => unreachable!("there is no action"),
                Step::Outside { word, heard } => {
                    changed(&self.block, word, heard).await;
                    waited = true;
                }
                Step::Wait(place) => {
                    let presence = Presence { meeting, place, me: self.block.owners().me() };
                    loop {
                        if let Some(result) = meeting.look(place) {
                            std::mem::forget(presence);
                            return result;
                        }
                        let (word, expected) = place.cell.word();
                        changed(&self.block, word, expected).await;
                        if place.cell.is_waiting() {
                            meeting.look_after_the_dead();
                        }
                    }
                }
            }
        }
    }

    fn own_deadline(&self) -> Deadline {
        match self.meeting().head.limit.load(Ordering::Relaxed) {
            0 => None,
            nanos => deadline_in(Duration::from_nanos(nanos)),
        }
    }

    /// Breaks it: all who wait, and all who come until it is [reset](Self::reset), get [`BarrierError::Broken`].
    pub fn abort(&self) {
        self.meeting().abort();
    }

    /// Makes it as new: all who wait get [`BarrierError::Broken`], and whoever comes from now on waits.
    pub fn reset(&self) {
        self.meeting().reset();
    }

    /// For how many it is.
    pub fn parties(&self) -> usize {
        self.meeting().parties()
    }

    /// How many wait at this moment.
    pub fn n_waiting(&self) -> usize {
        self.meeting().n_waiting()
    }

    /// Whether it is broken.
    pub fn is_broken(&self) -> bool {
        matches!(self.meeting().phase() & PHASE, BREAKING | BROKEN | RELEASING_LAST)
    }
}

/// One who has come and may be dropped.
struct Presence<'a> {
    meeting: Meeting<'a, Liveness>,
    place: Place<'a>,
    me: OwnerId,
}

impl Drop for Presence<'_> {
    fn drop(&mut self) {
        // In a fork it is the parent's.
        if self.meeting.owners.is_me(self.me) {
            // Nothing, if it has ended already.
            self.meeting.break_turn(self.place.filling);
            self.meeting.leave(self.place.cell);
        }
    }
}

impl fmt::Debug for Barrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let broken = if self.is_broken() { ", broken" } else { "" };
        write!(f, "Barrier({} of {}{broken})", self.n_waiting(), self.parties())
    }
}
