//! A barrier: a meeting point for a fixed number of threads.
//!
//! ```text
//!  FILLING ──the last one comes──► RELEASING: each slot TOLD ──► FILLING
//!     │  └─with an action─► ACTING ──it has run──┘
//!     └──abort, a timeout, a death──► BREAKING: each slot BROKEN ──► BROKEN ──reset──► FILLING
//! ```
//!
//! Each participant has its own slot, and learns there how its turn ended, however late it looks.
//! There are twice as many slots as parties, so that participants of the next turn can enter while
//! those of the last one leave. A mutex protects entering and telling. If a process dies under it
//! during RELEASING, BREAKING or RESETTING, the next holder of the mutex finishes what it has
//! begun.
//!
//! A turn is decided by a single change of the phase word, which also counts the turns: it goes
//! from FILLING to RELEASING or to BREAKING, whichever comes first. So the barrier can be broken
//! without the mutex (by a timeout, a dropped future, or [`Barrier::abort`]) while the mutex's
//! holder is stopped. Waiters read the phase, too. So they go on even if the process that lets them
//! pass is stopped halfway through telling them.
//!
//! A participant that dies while it waits breaks the barrier: every 100 ms, the others check
//! whether all participants that have entered are alive.

use std::{error, fmt, io, time::Duration};

use super::{
    raw::{Bell, Deadline, RECHECK, RobustGuard, RobustMutex, deadline_in, nap},
    wait_slots::{self, State, WaitSlot},
    word_wait::WordWait,
};
use crate::{
    heap::block::{Block, BlockKind},
    os::{
        liveness::{Liveness, OwnerId, Owners},
        memory::SharedLayout,
        std_or_model::atomic::{AtomicU32, AtomicU64, Ordering},
    },
};

const FILLING: u64 = 0;
const ACTING: u64 = 1;
const RELEASING: u64 = 2;
const BREAKING: u64 = 3;
const BROKEN: u64 = 4;
/// Like `BREAKING`, but returns to `FILLING` afterwards.
const RESETTING: u64 = 5;
/// Like `RELEASING`, but becomes `BROKEN` afterwards: the barrier was aborted while all were
/// passing.
const RELEASING_LAST: u64 = 6;
/// Number of low bits that hold the phase. The 61 bits above them count the turns that have ended,
/// in either way, and do not wrap around.
const PHASE_BITS: u32 = 3;
const PHASE: u64 = (1 << PHASE_BITS) - 1;

#[cfg_attr(all(test, any(executor_loom, executor_shuttle)), derive(Default))]
#[repr(C)]
pub(super) struct BarrierHeader {
    mutex: RobustMutex,
    /// Wakes those that cannot enter now, when somebody leaves or the phase changes.
    door: Bell,
    /// The owner that runs the action.
    acting: AtomicU32,
    parties: AtomicU32,
    /// The number of the turn, and its phase.
    phase: AtomicU64,
    /// The timeout in nanoseconds; 0 means none.
    timeout_nanos: AtomicU64,
}

// SAFETY: `repr(C)`, atomics only, no drop, and all zeros is a valid value.
unsafe impl SharedLayout for BarrierHeader {}

/// Why a barrier was not passed.
#[derive(Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum BarrierError {
    /// The barrier is broken: another participant aborted, timed out, died, or panicked in the
    /// action. Or it was reset.
    Broken,
    /// Not all participants came in time. That breaks the barrier for the others.
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

/// A point where a number of threads, of any processes, wait for each other.
///
/// A barrier can be sent to other processes, as a [`Lock`](crate::Lock) can, and can be used again
/// and again.
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
/// # When a process dies
///
/// If a process dies while one of its threads waits here, the barrier breaks within 100 ms. The
/// barrier does not know participants that have not come yet. Where one of those may die, set a
/// timeout.
///
/// # An action
///
/// Something that one participant does before all of them go on is passed to
/// [`wait_with`](Self::wait_with), because closures cannot be sent to other processes.
#[derive(Clone)]
pub struct Barrier {
    block: Block,
}

travels!(Barrier, block, &[BlockKind::Barrier], |len| len > size_of::<BarrierHeader>());

/// The result of an attempt to enter.
pub(super) enum Step<'a> {
    Done(Result<usize, BarrierError>),
    /// All have come, and the caller runs the action before they go on. `acting` is the value of
    /// the phase word while it does.
    Act {
        index: usize,
        acting: u64,
    },
    /// The caller waits in this slot, as a participant of this turn.
    Wait(Participant<'a>),
    /// Nobody can enter until this word changes.
    Outside {
        word: &'a AtomicU32,
        heard: u32,
    },
}

/// A participant that has entered.
#[derive(Clone, Copy)]
pub(super) struct Participant<'a> {
    slot: &'a WaitSlot,
    index: usize,
    /// The value of the phase word when it entered.
    filling: u64,
}

/// A barrier in shared memory: that of a block, or of a model.
pub(super) struct Meeting<'a, O> {
    pub(super) header: &'a BarrierHeader,
    pub(super) slots: &'a [WaitSlot],
    pub(super) owners: &'a O,
}

impl<O> Clone for Meeting<'_, O> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<O> Copy for Meeting<'_, O> {}

impl<'a, O: Owners> Meeting<'a, O> {
    pub(super) fn init(self, parties: u32, timeout_nanos: u64) {
        self.header.parties.store(parties, Ordering::Relaxed);
        self.header.timeout_nanos.store(timeout_nanos, Ordering::Relaxed);
    }

    fn lock_until(self, deadline: Deadline) -> Option<RobustGuard<'a, O>> {
        self.header.mutex.lock_until(self.owners, deadline).inspect(|_| self.end_begun())
    }

    /// Locks the mutex, or returns the word's value, whose change the caller waits for. For async
    /// forms.
    fn lock_or_word(self, waited: bool) -> Result<RobustGuard<'a, O>, u32> {
        self.header.mutex.lock_or_word(self.owners, waited).inspect(|_| self.end_begun())
    }

    /// Finishes what another process has begun, if it died or did not have the mutex. The caller
    /// holds the mutex.
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

    /// Returns the phase word: the turn and its phase.
    fn phase(self) -> u64 {
        self.header.phase.load(Ordering::Acquire)
    }

    /// Changes the phase word. Returns `false` if another process changed it first.
    fn change_phase(self, from: u64, to: u64) -> bool {
        self.header.phase.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    fn waiting(self) -> impl Iterator<Item = &'a WaitSlot> {
        self.slots.iter().filter(|slot| slot.is_waiting())
    }

    /// Tells all waiters that the turn is complete, and changes the phase to `then`. The waiters
    /// are woken under the mutex, because they do not need it.
    fn end_releasing(self, releasing: u64, then: u64) {
        for slot in self.waiting() {
            slot.tell(0);
            kill_point!(BarrierTold);
            slot.wake();
        }
        // This fails if the barrier was aborted in the meantime. Another call then finishes that.
        self.change_phase(releasing, then);
        self.header.door.ring_alone().wake_all();
    }

    /// Tells all waiters that the turn is broken, and changes the phase to `then`.
    fn end_breaking(self, breaking: u64, then: u64) {
        for slot in self.waiting() {
            slot.break_off();
            kill_point!(BarrierBrokenOff);
            slot.wake();
        }
        self.change_phase(breaking, then);
        self.header.door.ring_alone().wake_all();
    }

    /// Breaks that turn, unless its participants already pass or it is already broken. Returns
    /// whether this call broke it. Waits for nobody.
    fn break_turn(self, turn: u64) -> bool {
        let turn = turn & !PHASE;
        let begun = [FILLING, ACTING]
            .into_iter()
            .any(|phase| self.change_phase(turn | phase, turn | BREAKING));
        if begun {
            kill_point!(BarrierBreaking);
            self.end_or_wake();
        }
        begun
    }

    /// Finishes what was begun without the mutex, if the mutex can be taken at once. Otherwise it
    /// wakes the waiters, which read the phase themselves, and the next holder of the mutex
    /// finishes the rest.
    fn end_or_wake(self) {
        if let Some(_guard) = self.header.mutex.lock_at_once(self.owners) {
            self.end_begun();
            return;
        }
        for slot in self.waiting() {
            slot.wake();
        }
        self.header.door.ring_alone().wake_all();
    }

    pub(super) fn wait_until(
        self,
        deadline: Deadline,
        mut action: Option<impl FnOnce()>,
    ) -> Result<usize, BarrierError> {
        let too_late = || {
            // The barrier breaks even if this participant could not enter.
            self.break_turn(self.phase());
            Err(BarrierError::TimedOut)
        };
        loop {
            let Some(guard) = self.lock_until(deadline) else { return too_late() };
            match self.come(guard, action.is_some()) {
                Step::Done(result) => return result,
                Step::Act { index, acting } => return self.act(index, acting, action.take()),
                Step::Outside { heard, .. } => {
                    let Some(timeout) = nap(deadline) else { return too_late() };
                    self.header.door.sleep_with_all(heard, timeout);
                }
                Step::Wait(participant) => return self.wait_in(participant, deadline),
            }
        }
    }

    fn wait_in(
        self,
        participant: Participant<'a>,
        deadline: Deadline,
    ) -> Result<usize, BarrierError> {
        loop {
            if let Some(result) = self.look(participant) {
                return result;
            }
            let Some(timeout) = nap(deadline) else {
                if self.break_turn(participant.filling) {
                    self.leave(participant.slot);
                    return Err(BarrierError::TimedOut);
                }
                // Another process has ended this turn. The next look says how.
                continue;
            };
            participant.slot.sleep(timeout);
            kill_point!(BarrierWoken);
            // Nothing happened for the whole interval, so a participant may have died.
            if timeout == RECHECK && participant.slot.is_waiting() {
                self.look_after_the_dead();
            }
        }
    }

    /// Enters, if that is possible.
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
                    // Without a free slot, take one whose user was told and has died since.
                    let dead = || {
                        let left = |slot: &&WaitSlot| {
                            !slot.is_free() && !slot.is_waiting() && !slot.is_alive(self.owners)
                        };
                        self.slots.iter().find(left)
                    };
                    if let Some(slot) = wait_slots::free(self.slots).or_else(dead) {
                        slot.enter(guard.me(), index as u64);
                        kill_point!(BarrierEntered);
                        return Step::Wait(Participant { slot, index, filling: phase });
                    }
                }
                // Wait outside until the action has run.
                ACTING if self.actor_lives() => {}
                ACTING => {
                    drop(guard);
                    self.break_turn(phase);
                    return Step::Done(Err(BarrierError::Broken));
                }
                // An action has ended since the mutex was taken. Tell its participants before a new
                // turn begins.
                RELEASING | RELEASING_LAST => {
                    self.end_begun();
                    continue;
                }
                _ => return Step::Done(Err(BarrierError::Broken)),
            }
            match listens {
                Some(heard) => return Step::Outside { word: self.header.door.word(), heard },
                // After listening, look once more: others leave, and end an action, without the
                // mutex.
                None => listens = Some(self.header.door.listen()),
            }
        }
    }

    /// Ends the turn, or begins its action: the caller is the last to come.
    fn complete(
        self,
        guard: &RobustGuard<'a, O>,
        filling: u64,
        index: usize,
        acts: bool,
    ) -> Step<'a> {
        let turn = filling & !PHASE;
        if acts {
            self.header.acting.store(guard.me().bits(), Ordering::Relaxed);
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
        // The turn was broken in the meantime.
        Step::Done(Err(BarrierError::Broken))
    }

    /// Returns how the turn has ended, if it has. The slot is left in that case.
    fn look(self, participant: Participant<'a>) -> Option<Result<usize, BarrierError>> {
        let Participant { slot, index, filling } = participant;
        let result = loop {
            let state = slot.state();
            let phase = self.phase();
            match state {
                State::Told => break Ok(index),
                State::Broken => break Err(BarrierError::Broken),
                // All waiters of a turn are told before it is over. So the state was read too
                // early: read it again.
                State::Waiting if phase & !PHASE != filling & !PHASE => {}
                // The process that tells the slots may be stopped halfway, so the phase decides.
                State::Waiting => match phase & PHASE {
                    FILLING | ACTING => return None,
                    RELEASING | RELEASING_LAST => break Ok(index),
                    _ => break Err(BarrierError::Broken),
                },
            }
            // The turn is over, so this waiter must have been told. If it still waits, and the
            // phase is the same, the memory is garbled.
            if state == State::Waiting && slot.is_waiting() && self.phase() == phase {
                break Err(BarrierError::Broken);
            }
        };
        self.leave(slot);
        Some(result)
    }

    /// Leaves a slot, whether told or not.
    fn leave(self, slot: &WaitSlot) {
        if !slot.withdraw() {
            slot.leave();
        }
        // Somebody may wait for a free slot.
        self.header.door.ring_alone().wake_all();
    }

    fn actor_lives(self) -> bool {
        OwnerId::from_bits(self.header.acting.load(Ordering::Relaxed))
            .is_some_and(|actor| self.owners.is_alive(actor))
    }

    /// Breaks the barrier if one of the participants that have entered is dead.
    pub(super) fn look_after_the_dead(self) {
        let Some(guard) = self.header.mutex.try_lock(self.owners) else { return };
        self.end_begun();
        let phase = self.phase();
        let dead = match phase & PHASE {
            FILLING => self.waiting().any(|slot| !slot.is_alive(self.owners)),
            ACTING => !self.actor_lives(),
            _ => false,
        };
        drop(guard);
        if dead {
            self.break_turn(phase);
        }
    }

    /// Runs the action, and lets all participants pass.
    fn act(
        self,
        index: usize,
        acting: u64,
        action: Option<impl FnOnce()>,
    ) -> Result<usize, BarrierError> {
        /// Breaks the barrier if the action panics.
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
        // The turn may have been broken or reset in the meantime.
        if !self.change_phase(acting, acting & !PHASE | RELEASING) {
            return Err(BarrierError::Broken);
        }
        kill_point!(BarrierReleasing);
        self.end_or_wake();
        Ok(index)
    }

    /// Breaks the barrier until it is reset. Waits for nobody.
    fn abort(self) {
        self.redirect(|phase| match phase {
            FILLING | ACTING | RESETTING => Some(BREAKING),
            // All participants already pass.
            RELEASING => Some(RELEASING_LAST),
            _ => None,
        });
    }

    /// Breaks the present turn and begins a new one. Waits for nobody.
    fn reset(self) {
        self.redirect(|phase| match phase {
            FILLING | ACTING | BREAKING | BROKEN => Some(RESETTING),
            RELEASING_LAST => Some(RELEASING),
            _ => None,
        });
    }

    /// Changes the phase within the same turn, unless `to` returns `None`.
    fn redirect(self, to: impl Fn(u64) -> Option<u64>) {
        let next = |phase: u64| Some(phase & !PHASE | to(phase & PHASE)?);
        let changed = self.header.phase.fetch_update(Ordering::AcqRel, Ordering::Acquire, next);
        if changed.is_ok() {
            kill_point!(BarrierBreaking);
            self.end_or_wake();
        }
    }

    fn parties(self) -> usize {
        self.header.parties.load(Ordering::Relaxed) as usize
    }

    pub(super) fn n_waiting(self) -> usize {
        match self.phase() & PHASE {
            FILLING | ACTING => self.waiting().count(),
            // They are about to leave.
            _ => 0,
        }
    }
}

/// Returns the phase word at the beginning of the next turn.
fn next_turn(phase: u64) -> u64 {
    (phase & !PHASE).wrapping_add(1 << PHASE_BITS) | FILLING
}

impl Barrier {
    /// Creates a barrier for `parties` participants.
    ///
    /// # Errors
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) if `parties` is 0 or too large. The system's
    /// error if no descriptor or memory is left.
    pub fn new(parties: usize) -> io::Result<Self> {
        Self::with(parties, 0)
    }

    /// Creates a barrier with a timeout for each call of [`wait`](Self::wait) and
    /// [`wait_with`](Self::wait_with).
    ///
    /// # Errors
    /// As for [`new`](Self::new).
    pub fn with_timeout(parties: usize, timeout: Duration) -> io::Result<Self> {
        Self::with(parties, u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX).max(1))
    }

    fn with(parties: usize, timeout_nanos: u64) -> io::Result<Self> {
        let invalid =
            || io::Error::new(io::ErrorKind::InvalidInput, "a barrier for nobody, or for too many");
        let count = u32::try_from(parties).ok().filter(|count| *count > 0).ok_or_else(invalid)?;
        let slots =
            parties.checked_mul(2).and_then(|slots| slots.checked_mul(size_of::<WaitSlot>()));
        let len = slots
            .and_then(|slots| slots.checked_add(size_of::<BarrierHeader>()))
            .ok_or_else(invalid)?;
        let barrier = Barrier { block: Block::allocate(BlockKind::Barrier, len)? };
        barrier.meeting().init(count, timeout_nanos);
        Ok(barrier)
    }

    fn meeting(&self) -> Meeting<'_, Liveness> {
        let slots = self.block.rest(size_of::<BarrierHeader>());
        Meeting { header: self.block.part(0), slots, owners: self.block.owners() }
    }

    /// Waits for all other participants. Returns how many were already here, so exactly one of them
    /// gets 0.
    ///
    /// # Errors
    /// If the barrier is broken or gets broken, or after the barrier's timeout.
    pub fn wait(&self) -> Result<usize, BarrierError> {
        self.meeting().wait_until(self.own_deadline(), None::<fn()>)
    }

    /// Like [`wait`](Self::wait), but waits no longer than `timeout`.
    ///
    /// # Errors
    /// As for [`wait`](Self::wait).
    pub fn wait_timeout(&self, timeout: Duration) -> Result<usize, BarrierError> {
        self.meeting().wait_until(deadline_in(timeout), None::<fn()>)
    }

    /// Like [`wait`](Self::wait), but the last participant to come runs the action before all go
    /// on.
    ///
    /// Pass the same action in all participants: one of them runs it, once for all.
    ///
    /// # Errors
    /// As for [`wait`](Self::wait).
    ///
    /// # Panics
    /// If the action panics. The barrier is then broken.
    pub fn wait_with(&self, action: impl FnOnce()) -> Result<usize, BarrierError> {
        self.meeting().wait_until(self.own_deadline(), Some(action))
    }

    /// Like [`wait`](Self::wait), on any async runtime.
    ///
    /// # Errors
    /// As for [`wait`](Self::wait). The barrier's timeout does not apply, because runtimes have
    /// their own timeouts.
    ///
    /// # Cancel safety
    /// Dropping the future of a participant that has entered breaks the barrier. The others would
    /// otherwise wait in vain.
    pub async fn wait_async(&self) -> Result<usize, BarrierError> {
        let meeting = self.meeting();
        let mut waited = false;
        loop {
            let step = match meeting.lock_or_word(waited) {
                Ok(guard) => meeting.come(guard, false),
                Err(heard) => Step::Outside { word: meeting.header.mutex.word(), heard },
            };
            match step {
                Step::Done(result) => return result,
                Step::Act { .. } => unreachable!("there is no action"),
                Step::Outside { word, heard } => {
                    WordWait::new(&self.block, word, heard).await;
                    waited = true;
                }
                Step::Wait(participant) => {
                    let presence = Presence { meeting, participant, me: self.block.owners().me() };
                    loop {
                        if let Some(result) = meeting.look(participant) {
                            std::mem::forget(presence);
                            return result;
                        }
                        let (word, expected) = participant.slot.word();
                        WordWait::new(&self.block, word, expected).await;
                        if participant.slot.is_waiting() {
                            meeting.look_after_the_dead();
                        }
                    }
                }
            }
        }
    }

    fn own_deadline(&self) -> Deadline {
        match self.meeting().header.timeout_nanos.load(Ordering::Relaxed) {
            0 => None,
            nanos => deadline_in(Duration::from_nanos(nanos)),
        }
    }

    /// Breaks the barrier. All that wait, and all that come until it is [reset](Self::reset), get
    /// [`BarrierError::Broken`].
    pub fn abort(&self) {
        self.meeting().abort();
    }

    /// Resets the barrier to its initial state. All that wait get [`BarrierError::Broken`], and
    /// those that come from now on wait.
    pub fn reset(&self) {
        self.meeting().reset();
    }

    /// Returns the number of participants.
    pub fn parties(&self) -> usize {
        self.meeting().parties()
    }

    /// Returns how many participants are waiting at this moment.
    pub fn n_waiting(&self) -> usize {
        self.meeting().n_waiting()
    }

    /// Whether the barrier is broken.
    pub fn is_broken(&self) -> bool {
        matches!(self.meeting().phase() & PHASE, BREAKING | BROKEN | RELEASING_LAST)
    }
}

/// A participant that has entered, and whose future may be dropped.
struct Presence<'a> {
    meeting: Meeting<'a, Liveness>,
    participant: Participant<'a>,
    me: OwnerId,
}

impl Drop for Presence<'_> {
    fn drop(&mut self) {
        // In a forked process it is the parent's.
        if self.meeting.owners.is_me(self.me) {
            // This does nothing if the turn has ended already.
            self.meeting.break_turn(self.participant.filling);
            self.meeting.leave(self.participant.slot);
        }
    }
}

impl fmt::Debug for Barrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let broken = if self.is_broken() { ", broken" } else { "" };
        write!(f, "Barrier({} of {}{broken})", self.n_waiting(), self.parties())
    }
}
