//! Semaphores.
//!
//! ```text
//!  mutex { exist ┊ held: sum of the table ┊ table: process 7 holds 2, process 9 holds 1 }
//!
//!  acquire   free = exist − held > 0:  table[me] += 1          else: listen, sleep
//!  drop      table[me] −= 1, ring
//!  forget    exist −= 1, table[me] −= 1                        the permit ceases to exist
//!  release   exist += 1, ring                                  without the mutex
//! ```
//!
//! Each of these operations takes effect by one store. `held` is counted anew when the mutex was
//! taken over from a dead process. If a process dies between the two stores of `forget`, the permit
//! counts as forgotten: `exist` is lower already, and everything that the process held comes back.
//! When nothing is free, the holders are checked for deaths, at once and every 100 ms.
//!
//! A process may be stopped while it holds the mutex. Acquiring then takes until the caller's
//! deadline and no longer. Giving back and releasing wait for nobody: if the mutex cannot be taken
//! at once, the table is changed without it ([`owner_counts::give_back`]), and `held` is marked as
//! [`stale`](SemaphoreHeader::stale).

use std::{fmt, io, time::Duration};

use super::{
    guard::ReleaseError,
    owner_counts::{self, OwnerCount},
    raw::{Bell, Deadline, RobustGuard, RobustMutex, Woken, deadline_in, nap},
    word_wait::WordWait,
};
use crate::{
    heap::block::{Block, BlockKind},
    os::{
        liveness::{Liveness, OwnerId, Owners},
        memory::SharedLayout,
        std_or_model::atomic::{AtomicU32, Ordering},
    },
};

/// The beginning of a semaphore's memory, before the table of owner counts.
#[cfg_attr(all(test, any(executor_loom, executor_shuttle)), derive(Default))]
#[repr(C)]
pub(super) struct SemaphoreHeader {
    mutex: RobustMutex,
    bell: Bell,
    /// Number of permits that exist, held or not.
    exist: AtomicU32,
    /// Number of permits that are held: the sum of the table.
    held: AtomicU32,
    /// Maximum number of permits that may exist.
    bound: AtomicU32,
    /// Not 0 if the table was changed without the mutex, so that `held` may be too high.
    stale: AtomicU32,
}

// SAFETY: `repr(C)`, atomics only, no drop, and all zeros is a valid value.
unsafe impl SharedLayout for SemaphoreHeader {}

/// The word on which those sleep that wait for a permit.
#[cfg(all(test, any(executor_loom, executor_shuttle)))]
pub(super) fn sleepers(header: &SemaphoreHeader) -> &AtomicU32 {
    header.bell.word()
}

/// A semaphore in shared memory: that of a block, or of a model.
pub(super) struct Permits<'a, O> {
    pub(super) header: &'a SemaphoreHeader,
    pub(super) table: &'a [OwnerCount],
    pub(super) owners: &'a O,
}

impl<'a, O: Owners> Permits<'a, O> {
    pub(super) fn init(&self, permits: u32, bound: u32) {
        self.header.exist.store(permits, Ordering::Relaxed);
        self.header.bound.store(bound, Ordering::Relaxed);
    }

    fn lock_until(&self, deadline: Deadline) -> Option<RobustGuard<'a, O>> {
        self.header.mutex.lock_until(self.owners, deadline).map(|guard| self.entered(guard))
    }

    fn lock_soon(&self) -> Option<RobustGuard<'a, O>> {
        self.header.mutex.lock_soon(self.owners).map(|guard| self.entered(guard))
    }

    fn lock_at_once(&self) -> Option<RobustGuard<'a, O>> {
        self.header.mutex.lock_at_once(self.owners).map(|guard| self.entered(guard))
    }

    /// Locks the mutex, or returns the word's value, whose change the caller waits for. For async
    /// forms.
    fn lock_or_word(&self, waited: bool) -> Result<RobustGuard<'a, O>, u32> {
        self.header.mutex.lock_or_word(self.owners, waited).map(|guard| self.entered(guard))
    }

    /// Brings `held` up to date, if necessary. Every holder of the mutex does this first.
    fn entered(&self, guard: RobustGuard<'a, O>) -> RobustGuard<'a, O> {
        if guard.owner_died() || self.header.stale.load(Ordering::Relaxed) != 0 {
            self.count_held();
        }
        guard
    }

    /// Counts the held permits anew. The caller holds the mutex.
    fn count_held(&self) {
        // Clear the mark first: a permit that is given back after the table is read sets it again.
        self.header.stale.swap(0, Ordering::AcqRel);
        self.header.held.store(owner_counts::total(self.table), Ordering::Relaxed);
    }

    /// Returns how many permits can be acquired. The caller holds the mutex.
    fn free(&self) -> u32 {
        self.header
            .exist
            .load(Ordering::Acquire)
            .saturating_sub(self.header.held.load(Ordering::Relaxed))
    }

    /// Takes a permit for this process, if one is free. The caller holds the mutex.
    fn take(&self, me: OwnerId) -> bool {
        if self.free() == 0 || !owner_counts::add(self.table, me) {
            return false;
        }
        let held = &self.header.held;
        // After a death between the two stores, the next holder of the mutex counts anew.
        held.store(held.load(Ordering::Relaxed).saturating_add(1), Ordering::Relaxed);
        true
    }

    /// Takes a permit under the mutex, or returns the value of the bell's word to sleep on.
    ///
    /// `slept` means that the caller has slept on the bell. If no permit is free, `look` checks
    /// whether holders have died, and `listen` marks the bell.
    fn take_or_listen(
        &self,
        guard: RobustGuard<'a, O>,
        slept: bool,
        look: bool,
        listen: bool,
    ) -> Result<OwnerId, u32> {
        let (me, bell) = (guard.me(), &self.header.bell);
        let mut taken = self.take(me);
        let mut heard = 0;
        if !taken {
            // Listen before the second try: a permit that comes back after that try rings the bell.
            if listen {
                heard = bell.listen();
            }
            let back = if look { owner_counts::reclaim(self.table, self.owners) } else { 0 };
            // Count anew in any case. A permit may have been given back without the mutex, by a
            // process that did not see that somebody listens, and so did not wake anybody.
            self.count_held();
            taken = self.take(me);
            if back > 1 {
                // Several permits came back, and the other waiters check for deaths only every 100
                // ms.
                bell.ring_for_all().wake_all();
            }
        }
        if !taken {
            return Err(heard);
        }
        if slept {
            // Only one sleeper was woken. The next process that gives back must know that others
            // may still sleep. And if another permit is free, it is for one of them.
            bell.listen();
            if self.free() > 0 {
                drop(guard);
                bell.pass_on();
            }
        }
        Ok(me)
    }

    /// Takes a permit, if one is free.
    pub(super) fn try_acquire(&self) -> Option<OwnerId> {
        let guard = self.lock_soon()?;
        self.take_or_listen(guard, false, true, false).ok()
    }

    pub(super) fn acquire(&self, deadline: Deadline) -> Option<OwnerId> {
        let (mut slept, mut look) = (false, true);
        let mut woken = Woken::default();
        loop {
            let guard = self.lock_until(deadline)?;
            let taken = self.take_or_listen(guard, slept, look, true);
            // It has looked: it has taken a permit and seen to other sleepers, or it listens again.
            woken.settle();
            let heard = match taken {
                Ok(me) => return Some(me),
                Err(heard) => heard,
            };
            let timeout = nap(deadline)?;
            woken = self.header.bell.sleep(heard, timeout);
            slept = true;
            // If nobody rang, a holder may have died.
            look = self.header.bell.word().load(Ordering::Relaxed) == heard;
        }
    }

    /// Waits for a permit. `wait` is called to await that a word no longer has a value.
    pub(super) async fn acquire_async<W: Future<Output = ()>>(
        &self,
        wait: impl Fn(&'a AtomicU32, u32) -> W,
    ) -> OwnerId {
        let (mut slept, mut waited) = (false, false);
        let mut woken = Woken::default();
        loop {
            let guard = match self.lock_or_word(waited) {
                Ok(guard) => guard,
                Err(word) => {
                    wait(self.header.mutex.word(), word).await;
                    waited = true;
                    continue;
                }
            };
            waited = false;
            let taken = self.take_or_listen(guard, slept, true, true);
            woken.settle();
            let heard = match taken {
                Ok(me) => return me,
                Err(heard) => heard,
            };
            wait(self.header.bell.word(), heard).await;
            woken = self.header.bell.woken();
            slept = true;
        }
    }

    /// Gives back a permit that this process holds. Waits for nobody.
    pub(super) fn give_back(&self, me: OwnerId) {
        if let Some(guard) = self.lock_at_once() {
            self.discount(guard.me());
            let rung = self.header.bell.ring();
            drop(guard);
            rung.wake_one();
        } else {
            self.give_back_alone(me);
        }
    }

    /// Subtracts one from this process's permits. The caller holds the mutex.
    fn discount(&self, me: OwnerId) {
        if owner_counts::remove(self.table, me) {
            let held = &self.header.held;
            held.store(held.load(Ordering::Relaxed).saturating_sub(1), Ordering::Relaxed);
        }
    }

    /// Like [`give_back`](Self::give_back), for when another process has the mutex.
    pub(super) fn give_back_alone(&self, me: OwnerId) {
        owner_counts::give_back(self.table, me);
        self.header.stale.swap(1, Ordering::AcqRel);
        self.header.bell.ring_alone().wake_one();
    }

    /// Removes a permit that this process holds.
    fn forget(&self, me: OwnerId) {
        // Under the mutex, nobody sees the state between the two changes. Without it, others may
        // see one permit too few for a moment.
        let guard = self.lock_soon();
        let less = |exist: u32| Some(exist.saturating_sub(1));
        let _ = self.header.exist.fetch_update(Ordering::AcqRel, Ordering::Relaxed, less);
        kill_point!(PermitForgotten);
        match guard {
            Some(guard) => self.discount(guard.me()),
            None => self.give_back_alone(me),
        }
    }

    /// Adds permits, unless more than the bound would exist.
    pub(super) fn release(&self, permits: u32) -> Result<(), ReleaseError> {
        let bound = self.header.bound.load(Ordering::Relaxed);
        let more = |exist: u32| exist.checked_add(permits).filter(|more| *more <= bound);
        let added = self.header.exist.fetch_update(Ordering::AcqRel, Ordering::Relaxed, more);
        added.map_err(|_| ReleaseError::AboveBound)?;
        kill_point!(PermitReleased);
        let rung = self.header.bell.ring_alone();
        if permits == 1 {
            rung.wake_one()
        } else {
            rung.wake_all()
        }
        Ok(())
    }

    /// Returns how many permits can be acquired, including those that dead processes held. Waits
    /// for nobody.
    pub(super) fn value(&self) -> u32 {
        let held = owner_counts::total_of_the_living(self.table, self.owners);
        self.header.exist.load(Ordering::Acquire).saturating_sub(held)
    }
}

/// Returns how many processes can hold permits of a semaphore at the same time.
fn owners_max(permits: u32) -> usize {
    (permits as usize).clamp(30, 1_000)
}

macro_rules! semaphore {
    ($(#[$docs:meta])+ $type:ident, $kind:expr) => {
        $(#[$docs])+
        #[derive(Clone)]
        pub struct $type {
            block: Block,
        }

        travels!($type, block, &[$kind], |len| len >= size_of::<SemaphoreHeader>());

        impl $type {
            fn with(permits: u32, bound: u32) -> io::Result<Self> {
                let table = owners_max(permits).saturating_mul(size_of::<OwnerCount>());
                let len = table.saturating_add(size_of::<SemaphoreHeader>());
                let semaphore = $type { block: Block::allocate($kind, len)? };
                semaphore.permits().init(permits, bound);
                Ok(semaphore)
            }

            fn permits(&self) -> Permits<'_, Liveness> {
                permits(&self.block)
            }

            /// Waits until a permit is free, and acquires it.
            pub fn acquire(&self) -> Permit<'_> {
                loop {
                    if let Some(permit) = self.acquire_until(None) {
                        return permit;
                    }
                }
            }

            /// Acquires a permit if one is free now; otherwise returns `None`. Also returns `None`
            /// if another process was stopped in the middle of acquiring one.
            pub fn try_acquire(&self) -> Option<Permit<'_>> {
                let me = self.permits().try_acquire()?;
                Some(Permit { block: &self.block, me })
            }

            /// Like [`acquire`](Self::acquire), but waits no longer than `timeout` and then returns
            /// `None`.
            pub fn acquire_timeout(&self, timeout: Duration) -> Option<Permit<'_>> {
                self.acquire_until(deadline_in(timeout))
            }

            fn acquire_until(&self, deadline: Deadline) -> Option<Permit<'_>> {
                let me = self.permits().acquire(deadline)?;
                Some(Permit { block: &self.block, me })
            }

            /// Like [`acquire`](Self::acquire), on any async runtime.
            ///
            /// # Cancel safety
            /// Dropping the future takes neither a permit nor another waiter's wake-up.
            pub async fn acquire_async(&self) -> Permit<'_> {
                let me = self.permits().acquire_async(|word, heard| WordWait::new(&self.block, word, heard)).await;
                Permit { block: &self.block, me }
            }

            /// Returns how many permits can be acquired at this moment.
            pub fn value(&self) -> u32 {
                self.permits().value()
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({} free)", stringify!($type), self.value())
            }
        }
    };
}

fn permits(block: &Block) -> Permits<'_, Liveness> {
    let table = block.rest(size_of::<SemaphoreHeader>());
    Permits { header: block.part(0), table, owners: block.owners() }
}

semaphore! {
    /// A semaphore: a number of permits, for threads of any processes.
    ///
    /// It can be sent to other processes, as a [`Lock`](crate::Lock) can.
    ///
    /// ```
    /// use executor::{Semaphore, prelude::*};
    ///
    /// #[task]
    /// fn fetch(connections: Semaphore, number: u32) -> u32 {
    ///     let _permit = connections.acquire();
    ///     // At most two at a time in here, in whatever process.
    ///     number * 2
    /// }
    ///
    /// #[executor::main]
    /// fn main() -> Result<(), Box<dyn std::error::Error>> {
    ///     let pool = ProcessPoolExecutor::builder().max_workers(4).build()?;
    ///     let connections = Semaphore::new(2)?;
    ///     let fetched = pool.map(|i| fetch::task(connections.clone(), i), 0..8).collect::<Result<Vec<_>, _>>()?;
    ///     assert_eq!(fetched[3], 6);
    ///     assert_eq!(connections.value(), 2);
    ///     Ok(())
    /// }
    /// ```
    ///
    /// # When a holder dies
    ///
    /// The permits that a process holds through guards come back within 100 ms after it dies. A
    /// permit that it has [forgotten](Permit::forget) does not.
    ///
    /// For this, a table records which processes hold permits. 30 processes can hold permits of a
    /// semaphore at the same time, or as many as it was created with permits, up to 1,000. A
    /// further process waits until one of them holds none.
    Semaphore,
    BlockKind::Semaphore
}

#[cfg(all(test, not(any(executor_loom, executor_shuttle))))]
impl Semaphore {
    /// Holds the mutex, like a process that is about to look for a permit, until the result is
    /// dropped.
    pub(super) fn inside(&self) -> RobustGuard<'_, Liveness> {
        self.permits().lock_soon().expect("nobody is in there")
    }

    pub(super) fn bell(&self) -> &AtomicU32 {
        self.permits().header.bell.word()
    }
}

impl Semaphore {
    /// Creates a semaphore with `permits` permits.
    ///
    /// # Errors
    /// The system's error if no descriptor or memory is left.
    pub fn new(permits: u32) -> io::Result<Self> {
        Self::with(permits, u32::MAX)
    }

    /// Adds one permit. It replaces one that was [forgotten](Permit::forget), in any process, or is
    /// new.
    ///
    /// # Panics
    /// If more than `u32::MAX` permits would exist.
    pub fn release(&self) {
        self.release_many(1);
    }

    /// Adds `permits` permits.
    ///
    /// # Panics
    /// If more than `u32::MAX` permits would exist.
    pub fn release_many(&self, permits: u32) {
        self.permits().release(permits).expect("more permits than can be counted");
    }
}

semaphore! {
    /// A [`Semaphore`] that never has more permits than it was created with.
    ///
    /// ```
    /// use executor::{BoundedSemaphore, ReleaseError};
    ///
    /// let semaphore = BoundedSemaphore::new(1)?;
    /// semaphore.acquire().forget();
    /// assert_eq!(semaphore.value(), 0);
    /// assert_eq!(semaphore.release(), Ok(()));
    /// assert_eq!(semaphore.release(), Err(ReleaseError::AboveBound));
    /// # Ok::<(), std::io::Error>(())
    /// ```
    BoundedSemaphore,
    BlockKind::BoundedSemaphore
}

impl BoundedSemaphore {
    /// Creates a semaphore with `permits` permits, which is also its bound.
    ///
    /// # Errors
    /// The system's error if no descriptor or memory is left.
    pub fn new(permits: u32) -> io::Result<Self> {
        Self::with(permits, permits)
    }

    /// Restores a permit that was [forgotten](Permit::forget), in any process.
    ///
    /// # Errors
    /// [`ReleaseError::AboveBound`] if no permit was forgotten.
    pub fn release(&self) -> Result<(), ReleaseError> {
        self.permits().release(1)
    }
}

/// A permit of a [`Semaphore`] or [`BoundedSemaphore`]. It is given back when it is dropped, on any
/// thread.
#[must_use = "the permit is given back when this is dropped"]
pub struct Permit<'a> {
    block: &'a Block,
    me: OwnerId,
}

impl Permit<'_> {
    /// Removes the permit from the semaphore. It does not come back when this process dies. Anyone
    /// with a handle may `release` it.
    pub fn forget(self) {
        if self.block.owners().is_me(self.me) {
            permits(self.block).forget(self.me);
        }
        std::mem::forget(self);
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        // In a forked process it is the parent's.
        if self.block.owners().is_me(self.me) {
            permits(self.block).give_back(self.me);
        }
    }
}

impl fmt::Debug for Permit<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Permit")
    }
}
