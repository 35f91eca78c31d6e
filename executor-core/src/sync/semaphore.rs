//! Permits.
//!
//! ```text
//!  mutex { exist ┊ held: sum of the table, kept beside it ┊ table: process 7 holds 2, process 9 holds 1 }
//!
//!  acquire   free = exist − held > 0:  table[me] += 1          else: listen, sleep
//!  drop      table[me] −= 1, ring
//!  forget    exist −= 1, table[me] −= 1                        a permit that nobody holds, and nobody has
//!  release   exist += 1, ring
//! ```
//!
//! Each of these acts by one store; `held` is computed anew when the mutex was a dead one's. In `forget`, one that dies
//! between the two has forgotten: what it held otherwise comes back. When nothing is free, those who hold are looked at: at
//! once, and each 100 ms.

use std::{fmt, io, time::Duration};

use super::{
    changed::changed,
    guard::ReleaseError,
    holders::{self, Holding},
    raw::{Bell, Deadline, RobustGuard, RobustMutex, deadline_in, nap},
};
use crate::{
    os::{
        liveness::{Liveness, OwnerId, Owners},
        memory::SharedLayout,
        sync::atomic::{AtomicU32, Ordering},
    },
    shm::heap::{Block, Kind},
};

/// Before the table.
#[cfg_attr(all(test, any(executor_loom, executor_shuttle)), derive(Default))]
#[repr(C)]
pub(super) struct Head {
    mutex: RobustMutex,
    bell: Bell,
    /// Permits that exist, held or not.
    exist: AtomicU32,
    /// How many are held: the sum of the table.
    held: AtomicU32,
    /// No more than this may exist.
    bound: AtomicU32,
    reserved: AtomicU32,
}

// SAFETY: `repr(C)`, atomics only, no drop, zero is a value.
unsafe impl SharedLayout for Head {}

/// Where those sleep who wait for a permit.
#[cfg(all(test, any(executor_loom, executor_shuttle)))]
pub(super) fn sleepers(head: &Head) -> &AtomicU32 {
    head.bell.word()
}

/// A semaphore in shared memory; the block's, or a model's.
pub(super) struct Permits<'a, O> {
    pub(super) head: &'a Head,
    pub(super) table: &'a [Holding],
    pub(super) owners: &'a O,
}

impl<'a, O: Owners> Permits<'a, O> {
    pub(super) fn init(&self, permits: u32, bound: u32) {
        self.head.exist.store(permits, Ordering::Relaxed);
        self.head.bound.store(bound, Ordering::Relaxed);
    }

    fn lock(&self) -> RobustGuard<'a, O> {
        let guard = self.head.mutex.lock(self.owners);
        if guard.owner_died() {
            self.head.held.store(holders::total(self.table), Ordering::Relaxed);
        }
        guard
    }

    /// How many can be acquired. The mutex is held.
    fn free(&self) -> u32 {
        self.head.exist.load(Ordering::Relaxed).saturating_sub(self.head.held.load(Ordering::Relaxed))
    }

    /// Takes a permit, or says on what to sleep. `look` at the holders if there is none.
    pub(super) fn try_acquire(&self, slept: bool, look: bool, listen: bool) -> Result<OwnerId, u32> {
        let guard = self.lock();
        let held = &self.head.held;
        let take = || {
            if self.free() == 0 || !holders::add(self.table, guard.me()) {
                return false;
            }
            held.store(held.load(Ordering::Relaxed).saturating_add(1), Ordering::Relaxed);
            true
        };
        let mut taken = take();
        if !taken && look && holders::reclaim(self.table, self.owners) > 0 {
            held.store(holders::total(self.table), Ordering::Relaxed);
            taken = take();
        }
        if taken {
            if slept {
                // Only one was woken: who comes next must know that others may sleep.
                self.head.bell.listen();
            }
            return Ok(guard.me());
        }
        Err(if listen { self.head.bell.listen() } else { 0 })
    }

    pub(super) fn acquire(&self, deadline: Deadline) -> Option<OwnerId> {
        let (mut slept, mut look) = (false, true);
        loop {
            let heard = match self.try_acquire(slept, look, true) {
                Ok(me) => return Some(me),
                Err(heard) => heard,
            };
            let limit = nap(deadline)?;
            self.head.bell.sleep(heard, limit);
            slept = true;
            // In vain?
            look = self.head.bell.word().load(Ordering::Relaxed) == heard;
        }
    }

    /// Gives back what this process holds.
    pub(super) fn give_back(&self) {
        let guard = self.lock();
        if !holders::remove(self.table, guard.me()) {
            return;
        }
        let held = &self.head.held;
        held.store(held.load(Ordering::Relaxed).saturating_sub(1), Ordering::Relaxed);
        let rung = self.head.bell.ring();
        drop(guard);
        rung.wake_one();
    }

    fn forget(&self) {
        let guard = self.lock();
        let (exist, held) = (&self.head.exist, &self.head.held);
        exist.store(exist.load(Ordering::Relaxed).saturating_sub(1), Ordering::Relaxed);
        kill_point!(PermitForgotten);
        if holders::remove(self.table, guard.me()) {
            held.store(held.load(Ordering::Relaxed).saturating_sub(1), Ordering::Relaxed);
        }
    }

    pub(super) fn release(&self, permits: u32) -> Result<(), ReleaseError> {
        let guard = self.lock();
        let exist = self.head.exist.load(Ordering::Relaxed);
        let more = exist.checked_add(permits).filter(|more| *more <= self.head.bound.load(Ordering::Relaxed));
        self.head.exist.store(more.ok_or(ReleaseError::AboveBound)?, Ordering::Relaxed);
        let rung = self.head.bell.ring();
        drop(guard);
        if permits == 1 {
            rung.wake_one()
        } else {
            rung.wake_all()
        }
        Ok(())
    }

    /// How many can be acquired, those that the dead held included.
    pub(super) fn value(&self) -> u32 {
        let _guard = self.lock();
        if holders::reclaim(self.table, self.owners) > 0 {
            self.head.held.store(holders::total(self.table), Ordering::Relaxed);
        }
        self.free()
    }
}

/// How many processes can hold permits of a semaphore at the same time.
fn holders_max(permits: u32) -> usize {
    (permits as usize).clamp(30, 1_000)
}

macro_rules! semaphore {
    ($(#[$docs:meta])+ $type:ident, $kind:expr) => {
        $(#[$docs])+
        #[derive(Clone)]
        pub struct $type {
            block: Block,
        }

        travels!($type, block, &[$kind], |len| len >= size_of::<Head>());

        impl $type {
            fn with(permits: u32, bound: u32) -> io::Result<Self> {
                let table = holders_max(permits).saturating_mul(size_of::<Holding>());
                let len = table.saturating_add(size_of::<Head>());
                let semaphore = $type { block: Block::allocate($kind, len)? };
                semaphore.permits().init(permits, bound);
                Ok(semaphore)
            }

            fn permits(&self) -> Permits<'_, Liveness> {
                permits(&self.block)
            }

            /// Waits until a permit is free, and holds it.
            pub fn acquire(&self) -> Permit<'_> {
                loop {
                    if let Some(permit) = self.acquire_until(None) {
                        return permit;
                    }
                }
            }

            /// Holds a permit, if one is free now; else `None`.
            pub fn try_acquire(&self) -> Option<Permit<'_>> {
                let me = self.permits().try_acquire(false, true, false).ok()?;
                Some(Permit { block: &self.block, me })
            }

            /// As [`acquire`](Self::acquire), but waits no longer than this: then `None`.
            pub fn acquire_timeout(&self, limit: Duration) -> Option<Permit<'_>> {
                self.acquire_until(deadline_in(limit))
            }

            fn acquire_until(&self, deadline: Deadline) -> Option<Permit<'_>> {
                let me = self.permits().acquire(deadline)?;
                Some(Permit { block: &self.block, me })
            }

            /// As [`acquire`](Self::acquire), on any async runtime.
            ///
            /// # Cancel safety
            /// To drop the future takes no permit and no other's wake-up.
            pub async fn acquire_async(&self) -> Permit<'_> {
                let mut slept = false;
                loop {
                    let heard = match self.permits().try_acquire(slept, true, true) {
                        Ok(me) => return Permit { block: &self.block, me },
                        Err(heard) => heard,
                    };
                    changed(&self.block, self.permits().head.bell.word(), heard).await;
                    slept = true;
                }
            }

            /// How many permits can be acquired at this moment.
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
    let table = block.rest(size_of::<Head>());
    Permits { head: block.part(0), table, owners: block.owners() }
}

semaphore! {
    /// A number of permits, for threads of any processes: so many at a time.
    ///
    /// It travels, as a [`Lock`](crate::Lock) does.
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
    /// The permits that a process holds through guards come back when it dies, within 100 ms; one that it has
    /// [forgotten](Permit::forget) does not. For this, it is written down who holds: 30 processes can hold permits of it
    /// at the same time, or as many as it was made with, up to 1,000; one more waits until one of them has none.
    Semaphore,
    Kind::Semaphore
}

impl Semaphore {
    /// A new one with so many permits.
    ///
    /// # Errors
    /// The system's, if it has no descriptor or no memory left.
    pub fn new(permits: u32) -> io::Result<Self> {
        Self::with(permits, u32::MAX)
    }

    /// One more permit: one that was [forgotten](Permit::forget), in whatever process, or a new one.
    ///
    /// # Panics
    /// If there would be more than `u32::MAX`.
    pub fn release(&self) {
        self.release_many(1);
    }

    /// So many more permits.
    ///
    /// # Panics
    /// If there would be more than `u32::MAX`.
    pub fn release_many(&self, permits: u32) {
        self.permits().release(permits).expect("more permits than can be counted");
    }
}

semaphore! {
    /// A [`Semaphore`] that never has more permits than it was made with.
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
    Kind::BoundedSemaphore
}

impl BoundedSemaphore {
    /// A new one with so many permits.
    ///
    /// # Errors
    /// The system's, if it has no descriptor or no memory left.
    pub fn new(permits: u32) -> io::Result<Self> {
        Self::with(permits, permits)
    }

    /// Brings back a permit that was [forgotten](Permit::forget), in whatever process.
    ///
    /// # Errors
    /// [`ReleaseError::AboveBound`], if none was.
    pub fn release(&self) -> Result<(), ReleaseError> {
        self.permits().release(1)
    }
}

/// A permit of a [`Semaphore`] or [`BoundedSemaphore`], given back when it is dropped, on whatever thread.
#[must_use = "the permit is given back when this is dropped"]
pub struct Permit<'a> {
    block: &'a Block,
    me: OwnerId,
}

impl Permit<'_> {
    /// Does not give it back, nor does the death of this process: who has a handle may `release` it.
    pub fn forget(self) {
        if self.block.owners().is_me(self.me) {
            permits(self.block).forget();
        }
        std::mem::forget(self);
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        // In a fork it is the parent's.
        if self.block.owners().is_me(self.me) {
            permits(self.block).give_back();
        }
    }
}

impl fmt::Debug for Permit<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Permit")
    }
}
