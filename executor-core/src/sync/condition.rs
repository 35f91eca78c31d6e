//! A condition variable: waiting under a lock until somebody announces a change.
//!
//! ```text
//!  wait    mutex { slot: WAITING }, release the lock, sleep on the slot … TOLD,
//!          acquire the lock, leave the slot
//!  notify  mutex { the first n slots: TOLD }, wake them
//! ```
//!
//! A waiter is recorded before it releases the lock, so a notification that is sent under the lock
//! cannot miss it. It leaves its slot after it has acquired the lock again. If it dies before that,
//! its notification was not used. Whoever finds the slot of a dead waiter that was told (the next
//! notifier, or another waiter, every 100 ms) hands the notification on. A waiter that dies while
//! it waits is passed over.
//!
//! A process may be stopped while it holds the mutex. Entering then takes until the caller's
//! deadline. Leaving, after a timeout or when a future is dropped, waits for nobody: a slot is
//! left by one change of its word, and an unused notification is left to the next holder of the
//! mutex, like that of a dead waiter.
//!
//! Waiters that find no free slot join the crowd: a bell that wakes all of them on each
//! notification. They are woken more often than promised, never less often.

use std::{fmt, io, time::Duration};

use super::{
    guard::{LockResult, OwnerDied},
    lock::{Lock, LockGuard},
    raw::{Bell, Deadline, RECHECK, RobustGuard, RobustMutex, deadline_in, nap},
    wait_slots::{self, State, WaitSlot},
    word_wait::WordWait,
};
use crate::{
    heap::block::{Block, BlockKind, BlockPlace},
    os::{
        liveness::{Liveness, Owners},
        memory::SharedLayout,
        std_or_model::atomic::{AtomicU64, Ordering},
    },
};

/// Number of waiters with their own slots; further waiters join the crowd (see the module's
/// documentation). A lower value saves up to a kilobyte for each condition, but more waiters are
/// then woken on each notification.
const SLOTS: usize = 62;

#[cfg_attr(all(test, any(executor_loom, executor_shuttle)), derive(Default))]
#[repr(C)]
pub(super) struct ConditionHeader {
    mutex: RobustMutex,
    crowd: Bell,
    tickets: AtomicU64,
}

// SAFETY: `repr(C)`, atomics only, no drop, and all zeros is a valid value.
unsafe impl SharedLayout for ConditionHeader {}

/// The waiters of a condition, in shared memory: those of a block, or of a model.
pub(super) struct Waiters<'a, O> {
    pub(super) header: &'a ConditionHeader,
    pub(super) slots: &'a [WaitSlot],
    pub(super) owners: &'a O,
}

/// A place among the waiters. It is left when this is dropped. If it was notified and has not used
/// the notification, another waiter gets that.
pub(super) struct Waiting<'a, O: Owners> {
    waiters: Waiters<'a, O>,
    place: Standing<'a>,
    /// The process that waits. In a forked process this is the parent.
    me: crate::os::liveness::OwnerId,
}

#[derive(Clone, Copy)]
enum Standing<'a> {
    Slot(&'a WaitSlot),
    Crowd { heard: u32 },
    Left,
}

impl<'a, O: Owners> Waiters<'a, O> {
    /// Begins to wait. The condition's lock is still held. Returns `None` if the caller could not
    /// enter before the deadline.
    pub(super) fn enter(self, deadline: Deadline) -> Option<Waiting<'a, O>> {
        let guard = self.header.mutex.lock_until(self.owners, deadline)?;
        Some(self.enter_with(guard))
    }

    /// Tries once to enter, for async forms. On failure, returns the value of the mutex's word,
    /// whose change the caller waits for. `waited` means that the caller has already waited for
    /// that.
    fn enter_or_word(self, waited: bool) -> Result<Waiting<'a, O>, u32> {
        let guard = self.header.mutex.lock_or_word(self.owners, waited)?;
        Ok(self.enter_with(guard))
    }

    fn enter_with(self, guard: RobustGuard<'a, O>) -> Waiting<'a, O> {
        let me = guard.me();
        // Every intermediate state in here is valid, so a death in here needs no repair.
        let free = wait_slots::free(self.slots).or_else(|| {
            // The notifications of waiters that were told and died must not be lost.
            self.hand_on();
            let dead =
                self.slots.iter().find(|slot| slot.is_waiting() && !slot.is_alive(self.owners));
            dead.inspect(|slot| slot.leave()).or_else(|| wait_slots::free(self.slots))
        });
        let place = match free {
            Some(slot) => {
                let ticket = self.header.tickets.fetch_add(1, Ordering::Relaxed);
                slot.enter(me, ticket);
                Standing::Slot(slot)
            }
            None => Standing::Crowd { heard: self.header.crowd.listen() },
        };
        kill_point!(ConditionEntered);
        drop(guard);
        Waiting { waiters: self, place, me }
    }

    fn next_ticket(&self) -> u64 {
        self.header.tickets.load(Ordering::Relaxed)
    }

    /// Tells the first live waiter, and returns its slot for the caller to wake. With `before`,
    /// only waiters with a lower ticket are considered. The caller holds the mutex.
    fn tell_first(&self, before: Option<u64>) -> Option<&'a WaitSlot> {
        loop {
            let slot = wait_slots::first(self.slots, before)?;
            if !slot.is_alive(self.owners) {
                slot.leave();
            } else if slot.tell(before.unwrap_or_else(|| self.next_ticket())) {
                kill_point!(ConditionTold);
                return Some(slot);
            }
        }
    }

    /// Hands on the notifications of waiters that were told and died. The new recipients are woken
    /// at once, under the mutex, because this is rare.
    fn hand_on(&self) {
        for slot in self.slots.iter().filter(|slot| slot.is_told()) {
            if !slot.is_alive(self.owners) {
                // Tell the other waiter first. If this process dies in between, one waiter too many
                // is told, rather than one too few.
                let other = self.tell_first(Some(slot.told_at()));
                slot.leave();
                if let Some(other) = other {
                    other.wake();
                }
            }
        }
    }

    /// Tells up to `count` waiters, in the order in which they came. Returns `false` if the mutex
    /// could not be taken before the deadline.
    pub(super) fn notify(&self, count: usize, deadline: Deadline) -> bool {
        let Some(guard) = self.header.mutex.lock_until(self.owners, deadline) else { return false };
        self.hand_on();
        let mut told = Vec::new();
        // Nobody can enter while the mutex is held, so no bound on the ticket is needed.
        while told.len() < count
            && let Some(slot) = self.tell_first(None)
        {
            told.push(slot);
        }
        // The crowd has no tickets, so all of it wakes on each notification.
        let rung = self.header.crowd.ring();
        drop(guard);
        for slot in told {
            slot.wake();
        }
        rung.wake_all();
        true
    }
}

impl<O: Owners> Waiting<'_, O> {
    fn was_told(&self) -> bool {
        match self.place {
            Standing::Slot(slot) => slot.state() != State::Waiting,
            Standing::Crowd { heard } => {
                self.waiters.header.crowd.word().load(Ordering::Acquire) != heard
            }
            Standing::Left => false,
        }
    }

    /// Waits until it is told, at most until the deadline. Returns whether it was told.
    pub(super) fn sleep(&mut self, deadline: Deadline) -> bool {
        loop {
            if self.was_told() {
                return true;
            }
            // A notification that arrives at the deadline still counts.
            let Some(timeout) = nap(deadline) else { return !self.withdraw() };
            match self.place {
                Standing::Slot(slot) => slot.sleep(timeout),
                Standing::Crowd { heard } => {
                    self.waiters.header.crowd.sleep_with_all(heard, timeout)
                }
                Standing::Left => return false,
            }
            kill_point!(ConditionWoken);
            if timeout == RECHECK && !self.was_told() {
                self.look_after_the_dead();
            }
        }
    }

    /// Hands on the notifications of waiters that were told and may have died.
    fn look_after_the_dead(&self) {
        if let Some(_guard) = self.waiters.header.mutex.try_lock(self.waiters.owners) {
            self.waiters.hand_on();
        }
    }

    /// Stops waiting, unless it was told in the meantime. Returns whether it has left. Waits for
    /// nobody.
    fn withdraw(&mut self) -> bool {
        let leaves = match self.place {
            Standing::Slot(slot) => slot.withdraw(),
            Standing::Crowd { .. } | Standing::Left => !self.was_told(),
        };
        if leaves {
            self.place = Standing::Left;
        }
        leaves
    }

    /// Leaves the place after its notification was used.
    pub(super) fn leave(&mut self) {
        if let Standing::Slot(slot) = std::mem::replace(&mut self.place, Standing::Left) {
            slot.leave();
        }
    }
}

impl<O: Owners> Drop for Waiting<'_, O> {
    fn drop(&mut self) {
        let Standing::Slot(slot) = self.place else { return };
        if !self.waiters.owners.is_me(self.me) {
            return;
        }
        // A future was dropped, or there was a panic.
        if slot.withdraw() {
            return;
        }
        // It was told first, so another waiter gets the notification.
        let Some(guard) = self.waiters.header.mutex.lock_at_once(self.waiters.owners) else {
            slot.bequeath();
            return;
        };
        let other =
            if slot.is_told() { self.waiters.tell_first(Some(slot.told_at())) } else { None };
        slot.leave();
        drop(guard);
        if let Some(other) = other {
            other.wake();
        }
    }
}

/// Lets threads of any processes wait until something that a lock protects has changed.
///
/// A condition has its own [`Lock`], or shares one. It can be sent to other processes, as a lock
/// can.
///
/// ```
/// use executor::{Condition, Value, prelude::*};
///
/// #[task]
/// fn wait_for(turn: Value<u32>, changed: Condition, mine: u32) {
///     let guard = changed.acquire().unwrap();
///     let guard = changed.wait_for(guard, || turn.get() == mine).unwrap();
///     turn.set(mine + 1);
///     changed.notify_all();
///     drop(guard);
/// }
///
/// #[executor::main]
/// fn main() -> Result<(), Box<dyn std::error::Error>> {
///     let pool = ProcessPoolExecutor::builder().max_workers(3).build()?;
///     let (turn, changed) = (Value::new(0_u32)?, Condition::new()?);
///     let futures: Vec<_> =
///         [2, 0, 1].map(|mine| pool.submit(wait_for::task(turn.clone(), changed.clone(), mine))).into();
///     for future in futures {
///         future.result()?;
///     }
///     assert_eq!(turn.get(), 3);
///     Ok(())
/// }
/// ```
///
/// # Notifications
///
/// [`notify`](Self::notify) wakes waiters in the order in which they came, and exactly as many as
/// requested. Nobody wakes without a notification. If more than 62 threads wait at the same time,
/// the others wake on every notification, perhaps in vain. Notify while you hold the lock: then
/// nobody can be between checking and waiting.
///
/// # When a process dies
///
/// A waiting process that dies is passed over. If a process dies after it was notified, but before
/// it has the lock again, its notification is not lost: another waiter gets it within 100 ms.
#[derive(Clone)]
pub struct Condition {
    block: Block,
    lock: Lock,
}

const LEN: usize = size_of::<ConditionHeader>() + SLOTS * size_of::<WaitSlot>();

impl Condition {
    /// Creates a condition with its own lock.
    ///
    /// # Errors
    /// The system's error if no descriptor or memory is left.
    pub fn new() -> io::Result<Self> {
        Self::with_lock(&Lock::new()?)
    }

    /// Creates a condition that uses an existing lock.
    ///
    /// # Errors
    /// As for [`new`](Self::new).
    pub fn with_lock(lock: &Lock) -> io::Result<Self> {
        Ok(Condition { block: Block::allocate(BlockKind::Condition, LEN)?, lock: lock.clone() })
    }

    /// Returns the condition's lock.
    pub fn get_lock(&self) -> &Lock {
        &self.lock
    }

    /// Acquires the condition's lock, like [`Lock::acquire`].
    ///
    /// # Errors
    /// As for [`Lock::acquire`].
    pub fn acquire(&self) -> LockResult<LockGuard<'_>> {
        self.lock.acquire()
    }

    /// Acquires the condition's lock, like [`Lock::try_acquire`].
    pub fn try_acquire(&self) -> Option<LockResult<LockGuard<'_>>> {
        self.lock.try_acquire()
    }

    /// Acquires the condition's lock, like [`Lock::acquire_timeout`].
    pub fn acquire_timeout(&self, timeout: Duration) -> Option<LockResult<LockGuard<'_>>> {
        self.lock.acquire_timeout(timeout)
    }

    /// Acquires the condition's lock, like [`Lock::acquire_async`].
    ///
    /// # Errors
    /// As for [`Lock::acquire_async`].
    pub async fn acquire_async(&self) -> LockResult<LockGuard<'_>> {
        self.lock.acquire_async().await
    }

    fn waiters(&self) -> Waiters<'_, Liveness> {
        let slots = self.block.parts(size_of::<ConditionHeader>(), SLOTS);
        Waiters { header: self.block.part(0), slots, owners: self.block.owners() }
    }

    #[track_caller]
    fn check(&self, guard: &LockGuard<'_>) {
        assert!(*guard.lock() == self.lock, "the guard is of another lock than the condition's");
        assert!(
            guard.is_the_only_one(),
            "another guard holds the condition's lock meanwhile, so nobody could notify"
        );
    }

    /// Releases the lock, waits to be notified, and acquires the lock again.
    ///
    /// # Errors
    /// If another process died in the meantime while it held the lock. The error contains the
    /// guard.
    ///
    /// # Panics
    /// If the guard belongs to another lock, or if a re-entrant lock is also held by another guard.
    pub fn wait<'a>(&self, guard: LockGuard<'a>) -> LockResult<LockGuard<'a>> {
        self.wait_until(guard, None).0
    }

    /// Like [`wait`](Self::wait), but waits no longer than `timeout` for a notification. The second
    /// value says whether there was one.
    ///
    /// The timeout applies to the notification only. The result is a guard, so this also waits
    /// until it has the lock again, as [`acquire`](Self::acquire) does.
    ///
    /// # Errors
    /// As for [`wait`](Self::wait).
    ///
    /// # Panics
    /// As for [`wait`](Self::wait).
    pub fn wait_timeout<'a>(
        &self,
        guard: LockGuard<'a>,
        timeout: Duration,
    ) -> LockResult<(LockGuard<'a>, bool)> {
        with(self.wait_until(guard, deadline_in(timeout)))
    }

    fn wait_until<'a>(
        &self,
        guard: LockGuard<'a>,
        deadline: Deadline,
    ) -> (LockResult<LockGuard<'a>>, bool) {
        self.check(&guard);
        let lock = guard.lock();
        // Enter before the lock is released: a notification in between would otherwise be missed.
        let Some(mut waiting) = self.waiters().enter(deadline) else { return (Ok(guard), false) };
        drop(guard);
        kill_point!(ConditionReleased);
        let notified = waiting.sleep(deadline);
        let acquired = lock.acquire();
        kill_point!(ConditionReacquired);
        // Only now is the notification used. After a death before this, it goes to another waiter.
        waiting.leave();
        (acquired, notified)
    }

    /// Waits until `condition` returns `true`. It is called under the lock, at first and after each
    /// notification.
    ///
    /// # Errors
    /// As for [`wait`](Self::wait). `condition` was not called again in that case.
    ///
    /// # Panics
    /// As for [`wait`](Self::wait).
    pub fn wait_for<'a>(
        &self,
        mut guard: LockGuard<'a>,
        mut condition: impl FnMut() -> bool,
    ) -> LockResult<LockGuard<'a>> {
        while !condition() {
            guard = self.wait(guard)?;
        }
        Ok(guard)
    }

    /// Like [`wait_for`](Self::wait_for), but waits no longer than `timeout`. The second value is
    /// the last result of `condition`.
    ///
    /// # Errors
    /// As for [`wait_for`](Self::wait_for).
    ///
    /// # Panics
    /// As for [`wait`](Self::wait).
    pub fn wait_for_timeout<'a>(
        &self,
        mut guard: LockGuard<'a>,
        timeout: Duration,
        mut condition: impl FnMut() -> bool,
    ) -> LockResult<(LockGuard<'a>, bool)> {
        let deadline = deadline_in(timeout);
        loop {
            if condition() {
                return Ok((guard, true));
            }
            let notified;
            (guard, notified) = with(self.wait_until(guard, deadline))?;
            if !notified {
                let holds = condition();
                return Ok((guard, holds));
            }
        }
    }

    /// Like [`wait`](Self::wait), on any async runtime.
    ///
    /// # Errors
    /// As for [`wait`](Self::wait).
    ///
    /// # Panics
    /// As for [`wait`](Self::wait).
    ///
    /// # Cancel safety
    /// Dropping the future leaves the lock released. If the future was already notified, another
    /// waiter gets the notification.
    pub async fn wait_async<'a>(&self, guard: LockGuard<'a>) -> LockResult<LockGuard<'a>> {
        self.check(&guard);
        let lock = guard.lock();
        let mut waited = false;
        let mut waiting = loop {
            match self.waiters().enter_or_word(waited) {
                Ok(waiting) => break waiting,
                Err(word) => {
                    WordWait::new(&self.block, self.waiters().header.mutex.word(), word).await
                }
            }
            waited = true;
        };
        drop(guard);
        while !waiting.was_told() {
            let (word, expected) = match waiting.place {
                Standing::Slot(slot) => slot.word(),
                Standing::Crowd { heard } => (self.waiters().header.crowd.word(), heard),
                Standing::Left => break,
            };
            WordWait::new(&self.block, word, expected).await;
            if !waiting.was_told() {
                waiting.look_after_the_dead();
            }
        }
        let acquired = lock.acquire_async().await;
        waiting.leave();
        acquired
    }

    /// Wakes `count` waiters in the order in which they came, or all of them if there are fewer.
    pub fn notify(&self, count: usize) {
        while !self.waiters().notify(count, None) {}
    }

    /// Wakes the thread that has waited longest, if there is one.
    pub fn notify_one(&self) {
        self.notify(1);
    }

    /// Wakes all waiters.
    pub fn notify_all(&self) {
        self.notify(usize::MAX);
    }
}

fn with<'a>(
    (acquired, notified): (LockResult<LockGuard<'a>>, bool),
) -> LockResult<(LockGuard<'a>, bool)> {
    let both = |guard| (guard, notified);
    acquired.map(both).map_err(|died: OwnerDied<_>| died.map(both))
}

impl PartialEq for Condition {
    /// Whether both are handles of the same condition.
    fn eq(&self, other: &Self) -> bool {
        self.block == other.block
    }
}

impl Eq for Condition {}

impl fmt::Debug for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let waiting = self.waiters().slots.iter().filter(|slot| slot.is_waiting()).count();
        write!(f, "Condition({:?}, {waiting} waiting)", self.lock)
    }
}

impl serde::Serialize for Condition {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (self.block.depart::<S>()?, &self.lock).serialize(serializer)
    }
}

impl<'de> serde::Deserialize<'de> for Condition {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (place, lock) = <(BlockPlace, Lock)>::deserialize(deserializer)?;
        let block = Block::arrive(place, &[BlockKind::Condition], None, |len| len == LEN, None)?;
        Ok(Condition { block, lock })
    }
}

#[cfg(all(test, not(any(executor_loom, executor_shuttle))))]
mod tests {
    use super::*;

    /// Numbers of other waiters that have come and gone in the meantime.
    const GONE: [u64; 4] = [1, 1 << 31, 1 << 32, u64::MAX - 10];

    #[test]
    fn a_waiter_is_notified_however_many_others_have_come_and_gone_meanwhile() {
        for gone in GONE {
            let condition = Condition::new().unwrap();
            let (one, all) = (
                condition.waiters().enter(None).unwrap(),
                condition.waiters().enter(None).unwrap(),
            );
            condition.waiters().header.tickets.store(gone, Ordering::Relaxed);
            condition.notify_one();
            assert!(one.was_told() && !all.was_told(), "{gone} have gone");
            condition.notify_all();
            assert!(all.was_told(), "{gone} have gone");
        }
    }

    #[test]
    fn an_unused_notification_goes_to_one_who_waited_however_many_others_have_come_and_gone() {
        for gone in GONE {
            let condition = Condition::new().unwrap();
            let first = condition.waiters().enter(None).unwrap();
            let second = condition.waiters().enter(None).unwrap();
            condition.waiters().header.tickets.store(gone.max(2), Ordering::Relaxed);
            condition.notify_one();
            assert!(first.was_told() && !second.was_told());
            let came_later = condition.waiters().enter(None).unwrap();
            drop(first);
            assert!(second.was_told() && !came_later.was_told(), "{gone} have gone");
        }
    }

    #[test]
    fn a_future_that_is_dropped_waits_for_nobody_and_its_notification_is_handed_on() {
        let condition = Condition::new().unwrap();
        let (first, second) =
            (condition.waiters().enter(None).unwrap(), condition.waiters().enter(None).unwrap());
        condition.notify_one();
        let waiters = condition.waiters();
        let held = waiters.header.mutex.lock_until(waiters.owners, None).unwrap();
        // The mutex is held, as if by another process that is stopped.
        drop(first);
        drop(held);
        assert!(!second.was_told());
        condition.notify(0);
        assert!(second.was_told());
    }
}
