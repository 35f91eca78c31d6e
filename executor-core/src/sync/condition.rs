//! Waiting under a lock until somebody says that something has changed.
//!
//! ```text
//!  wait    mutex { cell: WAITING }, release the lock, sleep on the cell … TOLD, acquire the lock, leave the cell
//!  notify  mutex { the first n cells: TOLD }, wake them
//! ```
//!
//! Who waits is written down before the lock is released, so a notification under the lock cannot miss it. The cell is left
//! after the lock is acquired again: one that dies before that has not made use of its notification, and whoever finds the
//! cell of a dead one that was told (the next notifier, or another one that waits, each 100 ms) hands it on. One that
//! dies while it waits is passed over.
//!
//! Somebody may be stopped while it has the mutex. To enter then takes until the caller's deadline; to leave, after a time limit
//! or as a future that is dropped, waits for nobody: a cell is left by one change of its word, and a notification that is not
//! to be used is left to whoever has the mutex next, as that of a dead one.
//!
//! For those who find no cell there is the crowd: a bell, at which all wake with each notification. It is more than they
//! were promised, never less.

use std::{fmt, io, time::Duration};

use super::{
    cells::{self, Cell, State},
    changed::changed,
    guard::{LockResult, OwnerDied},
    lock::{Lock, LockGuard},
    raw::{Bell, Deadline, RECHECK, RobustGuard, RobustMutex, deadline_in, nap},
};
use crate::{
    heap::block::{Block, Kind, Place},
    os::{
        liveness::{Liveness, Owners},
        memory::SharedLayout,
        sync::atomic::{AtomicU64, Ordering},
    },
};

/// So many wait one by one; of more, see the module's opening. Less: a kilobyte less for each condition.
const CELLS: usize = 62;

#[cfg_attr(all(test, any(executor_loom, executor_shuttle)), derive(Default))]
#[repr(C)]
pub(super) struct Head {
    mutex: RobustMutex,
    crowd: Bell,
    tickets: AtomicU64,
}

// SAFETY: `repr(C)`, atomics only, no drop, zero is a value.
unsafe impl SharedLayout for Head {}

/// Those who wait, in shared memory; the block's, or a model's.
pub(super) struct Waiters<'a, O> {
    pub(super) head: &'a Head,
    pub(super) cells: &'a [Cell],
    pub(super) owners: &'a O,
}

/// A place among those who wait. Left when it is dropped: a notification that it had goes to another one, unless it was used.
pub(super) struct Waiting<'a, O: Owners> {
    waiters: Waiters<'a, O>,
    place: Standing<'a>,
    /// In a fork, the parent's.
    me: crate::os::liveness::OwnerId,
}

#[derive(Clone, Copy)]
enum Standing<'a> {
    Cell(&'a Cell),
    Crowd { heard: u32 },
    Left,
}

impl<'a, O: Owners> Waiters<'a, O> {
    /// Waits from now on; the condition's lock is still held. `None` if it could not come in before the deadline.
    pub(super) fn enter(self, deadline: Deadline) -> Option<Waiting<'a, O>> {
        let guard = self.head.mutex.lock_until(self.owners, deadline)?;
        Some(self.enter_with(guard))
    }

    /// One try of an async form; or the word of the mutex, on which to wait. `waited`: it has done so.
    fn enter_or_word(self, waited: bool) -> Result<Waiting<'a, O>, u32> {
        let guard = self.head.mutex.lock_or_word(self.owners, waited)?;
        Ok(self.enter_with(guard))
    }

    fn enter_with(self, guard: RobustGuard<'a, O>) -> Waiting<'a, O> {
        let me = guard.me();
        // All of this is true at any moment, so nothing is to be repaired after a death in here.
        let free = cells::free(self.cells).or_else(|| {
            // Of those who were told and died, the notification is not to be lost.
            self.hand_on();
            let dead = self.cells.iter().find(|cell| cell.is_waiting() && !cell.is_alive(self.owners));
            dead.inspect(|cell| cell.leave()).or_else(|| cells::free(self.cells))
        });
        let place = match free {
            Some(cell) => {
                let ticket = self.head.tickets.fetch_add(1, Ordering::Relaxed);
                cell.enter(me, ticket);
                Standing::Cell(cell)
            }
            None => Standing::Crowd { heard: self.head.crowd.listen() },
        };
        kill_point!(ConditionEntered);
        drop(guard);
        Waiting { waiters: self, place, me }
    }

    fn next_ticket(&self) -> u64 {
        self.head.tickets.load(Ordering::Relaxed)
    }

    /// Tells the first one who lives, of those who came before that ticket, if there is one; whom to wake. The mutex is held.
    fn tell_first(&self, before: Option<u64>) -> Option<&'a Cell> {
        loop {
            let cell = cells::first(self.cells, before)?;
            if !cell.is_alive(self.owners) {
                cell.leave();
            } else if cell.tell(before.unwrap_or_else(|| self.next_ticket())) {
                kill_point!(ConditionTold);
                return Some(cell);
            }
        }
    }

    /// Tells others in the place of those who were told and died. They are woken at once: it is rare.
    fn hand_on(&self) {
        for cell in self.cells.iter().filter(|cell| cell.is_told()) {
            if !cell.is_alive(self.owners) {
                // First the other: one that dies in between has told one too many, not one too few.
                let other = self.tell_first(Some(cell.told_at()));
                cell.leave();
                if let Some(other) = other {
                    other.wake();
                }
            }
        }
    }

    /// Tells so many of those who wait, in the order in which they came. `false` if that could not be begun before the deadline.
    pub(super) fn notify(&self, count: usize, deadline: Deadline) -> bool {
        let Some(guard) = self.head.mutex.lock_until(self.owners, deadline) else { return false };
        self.hand_on();
        let mut told = Vec::new();
        // Nobody can come in meanwhile, so all who wait are meant.
        while told.len() < count
            && let Some(cell) = self.tell_first(None)
        {
            told.push(cell);
        }
        let rung = self.head.crowd.ring();
        drop(guard);
        for cell in told {
            cell.wake();
        }
        rung.wake_all();
        true
    }
}

impl<O: Owners> Waiting<'_, O> {
    fn was_told(&self) -> bool {
        match self.place {
            Standing::Cell(cell) => cell.state() != State::Waiting,
            Standing::Crowd { heard } => self.waiters.head.crowd.word().load(Ordering::Acquire) != heard,
            Standing::Left => false,
        }
    }

    /// Waits until it is told, at most until then: whether it was.
    pub(super) fn sleep(&mut self, deadline: Deadline) -> bool {
        loop {
            if self.was_told() {
                return true;
            }
            let Some(limit) = nap(deadline) else { return !self.withdraw() };
            match self.place {
                Standing::Cell(cell) => cell.sleep(limit),
                Standing::Crowd { heard } => self.waiters.head.crowd.sleep_with_all(heard, limit),
                Standing::Left => return false,
            }
            kill_point!(ConditionWoken);
            if limit == RECHECK && !self.was_told() {
                self.look_after_the_dead();
            }
        }
    }

    /// Somebody who was told may have died.
    fn look_after_the_dead(&self) {
        if let Some(_guard) = self.waiters.head.mutex.try_lock(self.waiters.owners) {
            self.waiters.hand_on();
        }
    }

    /// Does not wait any more, unless it was told meanwhile: whether it has left. Waits for nobody.
    fn withdraw(&mut self) -> bool {
        let leaves = match self.place {
            Standing::Cell(cell) => cell.withdraw(),
            Standing::Crowd { .. } | Standing::Left => !self.was_told(),
        };
        if leaves {
            self.place = Standing::Left;
        }
        leaves
    }

    /// It has made use of what it was told.
    pub(super) fn leave(&mut self) {
        if let Standing::Cell(cell) = std::mem::replace(&mut self.place, Standing::Left) {
            cell.leave();
        }
    }
}

impl<O: Owners> Drop for Waiting<'_, O> {
    fn drop(&mut self) {
        let Standing::Cell(cell) = self.place else { return };
        if !self.waiters.owners.is_me(self.me) {
            return;
        }
        // A future that was dropped, or a panic.
        if cell.withdraw() {
            return;
        }
        let Some(guard) = self.waiters.head.mutex.lock_at_once(self.waiters.owners) else {
            cell.bequeath();
            return;
        };
        let other = if cell.is_told() { self.waiters.tell_first(Some(cell.told_at())) } else { None };
        cell.leave();
        drop(guard);
        if let Some(other) = other {
            other.wake();
        }
    }
}

/// Lets threads of any processes wait until something that a lock protects has changed.
///
/// It has a [`Lock`] of its own, or shares one. It travels, as that does.
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
/// [`notify`](Self::notify) wakes those who wait, in the order in which they came, and exactly as many as it says; nobody
/// wakes without being told. Where more than 62 wait at the same time, the others wake with each notification, and look for
/// nothing. Notify while you hold the lock: then nobody can be between looking and waiting.
///
/// # When somebody dies
///
/// A process that waits and dies is passed over. One that dies after it was notified, and before it had the lock again, takes
/// no notification with it: another one gets that, within 100 ms.
#[derive(Clone)]
pub struct Condition {
    block: Block,
    lock: Lock,
}

const LEN: usize = size_of::<Head>() + CELLS * size_of::<Cell>();

impl Condition {
    /// A new one, with a lock of its own.
    ///
    /// # Errors
    /// The system's, if it has no descriptor or no memory left.
    pub fn new() -> io::Result<Self> {
        Self::with_lock(&Lock::new()?)
    }

    /// A new one that shares a lock with others.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_lock(lock: &Lock) -> io::Result<Self> {
        Ok(Condition { block: Block::allocate(Kind::Condition, LEN)?, lock: lock.clone() })
    }

    /// Its lock.
    pub fn get_lock(&self) -> &Lock {
        &self.lock
    }

    /// Acquires its lock, as [`Lock::acquire`].
    ///
    /// # Errors
    /// As there.
    pub fn acquire(&self) -> LockResult<LockGuard<'_>> {
        self.lock.acquire()
    }

    /// Acquires its lock, as [`Lock::try_acquire`].
    pub fn try_acquire(&self) -> Option<LockResult<LockGuard<'_>>> {
        self.lock.try_acquire()
    }

    /// Acquires its lock, as [`Lock::acquire_timeout`].
    pub fn acquire_timeout(&self, limit: Duration) -> Option<LockResult<LockGuard<'_>>> {
        self.lock.acquire_timeout(limit)
    }

    /// Acquires its lock, as [`Lock::acquire_async`].
    ///
    /// # Errors
    /// As there.
    pub async fn acquire_async(&self) -> LockResult<LockGuard<'_>> {
        self.lock.acquire_async().await
    }

    fn waiters(&self) -> Waiters<'_, Liveness> {
        let cells = self.block.parts(size_of::<Head>(), CELLS);
        Waiters { head: self.block.part(0), cells, owners: self.block.owners() }
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
    /// If somebody died while it held the lock, meanwhile: the error has the guard.
    ///
    /// # Panics
    /// If the guard is of another lock, or not the only one that holds a re-entrant one.
    pub fn wait<'a>(&self, guard: LockGuard<'a>) -> LockResult<LockGuard<'a>> {
        self.wait_until(guard, None).0
    }

    /// As [`wait`](Self::wait), but waits for a notification no longer than this. The second value says whether there was
    /// one.
    ///
    /// The limit is that of the notification. What comes back is a guard, so this waits for the lock as long as another one
    /// holds it, as [`acquire`](Self::acquire) does.
    ///
    /// # Errors
    /// As [`wait`](Self::wait).
    ///
    /// # Panics
    /// As [`wait`](Self::wait).
    pub fn wait_timeout<'a>(
        &self,
        guard: LockGuard<'a>,
        limit: Duration,
    ) -> LockResult<(LockGuard<'a>, bool)> {
        with(self.wait_until(guard, deadline_in(limit)))
    }

    fn wait_until<'a>(&self, guard: LockGuard<'a>, deadline: Deadline) -> (LockResult<LockGuard<'a>>, bool) {
        self.check(&guard);
        let lock = guard.lock();
        let Some(mut waiting) = self.waiters().enter(deadline) else { return (Ok(guard), false) };
        drop(guard);
        kill_point!(ConditionReleased);
        let notified = waiting.sleep(deadline);
        let acquired = lock.acquire();
        kill_point!(ConditionReacquired);
        waiting.leave();
        (acquired, notified)
    }

    /// Waits until `condition` holds, which is asked under the lock: at first, and after each notification.
    ///
    /// # Errors
    /// As [`wait`](Self::wait); the condition was not asked then.
    ///
    /// # Panics
    /// As [`wait`](Self::wait).
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

    /// As [`wait_for`](Self::wait_for), but no longer than this. The second value is what the condition said last.
    ///
    /// # Errors
    /// As [`wait_for`](Self::wait_for).
    ///
    /// # Panics
    /// As [`wait`](Self::wait).
    pub fn wait_for_timeout<'a>(
        &self,
        mut guard: LockGuard<'a>,
        limit: Duration,
        mut condition: impl FnMut() -> bool,
    ) -> LockResult<(LockGuard<'a>, bool)> {
        let deadline = deadline_in(limit);
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

    /// As [`wait`](Self::wait), on any async runtime.
    ///
    /// # Errors
    /// As [`wait`](Self::wait).
    ///
    /// # Panics
    /// As [`wait`](Self::wait).
    ///
    /// # Cancel safety
    /// To drop the future leaves the lock released. If it was notified already, another one is in its place.
    pub async fn wait_async<'a>(&self, guard: LockGuard<'a>) -> LockResult<LockGuard<'a>> {
        self.check(&guard);
        let lock = guard.lock();
        let mut waited = false;
        let mut waiting = loop {
            match self.waiters().enter_or_word(waited) {
                Ok(waiting) => break waiting,
                Err(word) => changed(&self.block, self.waiters().head.mutex.word(), word).await,
            }
            waited = true;
        };
        drop(guard);
        while !waiting.was_told() {
            let (word, expected) = match waiting.place {
                Standing::Cell(cell) => cell.word(),
                Standing::Crowd { heard } => (self.waiters().head.crowd.word(), heard),
                Standing::Left => break,
            };
            changed(&self.block, word, expected).await;
            if !waiting.was_told() {
                waiting.look_after_the_dead();
            }
        }
        let acquired = lock.acquire_async().await;
        waiting.leave();
        acquired
    }

    /// Wakes so many of those who wait, in the order in which they came; all, if there are fewer.
    pub fn notify(&self, count: usize) {
        while !self.waiters().notify(count, None) {}
    }

    /// Wakes the one who has waited longest, if there is one.
    pub fn notify_one(&self) {
        self.notify(1);
    }

    /// Wakes all who wait.
    pub fn notify_all(&self) {
        self.notify(usize::MAX);
    }
}

fn with<'a>((acquired, notified): (LockResult<LockGuard<'a>>, bool)) -> LockResult<(LockGuard<'a>, bool)> {
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
        let waiting = self.waiters().cells.iter().filter(|cell| cell.is_waiting()).count();
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
        let (place, lock) = <(Place, Lock)>::deserialize(deserializer)?;
        let block = Block::arrive(place, &[Kind::Condition], None, |len| len == LEN, None)?;
        Ok(Condition { block, lock })
    }
}

#[cfg(all(test, not(any(executor_loom, executor_shuttle))))]
mod tests {
    use super::*;

    /// So many others have come and gone.
    const GONE: [u64; 4] = [1, 1 << 31, 1 << 32, u64::MAX - 10];

    #[test]
    fn a_waiter_is_notified_however_many_others_have_come_and_gone_meanwhile() {
        for gone in GONE {
            let condition = Condition::new().unwrap();
            let (one, all) =
                (condition.waiters().enter(None).unwrap(), condition.waiters().enter(None).unwrap());
            condition.waiters().head.tickets.store(gone, Ordering::Relaxed);
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
            condition.waiters().head.tickets.store(gone.max(2), Ordering::Relaxed);
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
        let held = waiters.head.mutex.lock_until(waiters.owners, None).unwrap();
        // As if another process stood still with it.
        drop(first);
        drop(held);
        assert!(!second.was_told());
        condition.notify(0);
        assert!(second.was_told());
    }
}
