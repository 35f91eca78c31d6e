//! Mutual exclusion that a thread may enter again.

use std::{fmt, io, time::Duration};

use super::{
    guard::{LockResult, OwnerDied, Recover},
    lock::describe,
    raw::{Deadline, Holder, Locked, RobustMutex, deadline_in},
};
use crate::{
    heap::block::{Block, Kind},
    os::{
        liveness::{Liveness, OwnerId, Owners},
        local,
        memory::SharedLayout,
        sync::atomic::{AtomicU32, AtomicU64, Ordering},
    },
};

#[cfg_attr(all(test, any(executor_loom, executor_shuttle)), derive(Default))]
#[repr(C)]
pub(super) struct Layout {
    /// Held as long as there is a level.
    mutex: RobustMutex,
    /// Whose the levels are; what a dead process has left here is nobody's.
    owner: AtomicU32,
    /// Its thread, whether what it protects may be in disorder, and how many levels deep. In one word, because guards are
    /// dropped on other threads, too: a thread goes one level deeper only while it still has one.
    levels: AtomicU64,
}

// SAFETY: `repr(C)`, atomics only, no drop, zero is a value.
unsafe impl SharedLayout for Layout {}

const THREAD_SHIFT: u32 = 32;
const IN_DISORDER: u64 = 1 << 31;
const COUNT: u64 = IN_DISORDER - 1;

/// This thread, in the levels. Threads of other processes have the same numbers, and one that asks may have read the owner of the
/// levels, and then the levels of another process: it is not to find itself there.
pub(super) fn in_levels(thread: u32, me: OwnerId) -> u64 {
    u64::from(thread ^ me.bits() << 8) << THREAD_SHIFT
}

impl Layout {
    /// One level more for the thread of that number; `None` at the deadline.
    pub(super) fn enter(
        &self,
        owners: &impl Owners,
        me: OwnerId,
        thread: u32,
        deadline: Deadline,
    ) -> Option<Locked> {
        if self.deeper(me, thread) {
            return Some(Locked::Clean);
        }
        let locked = self.mutex.acquire(owners, me, deadline)?;
        self.first(me, thread, locked);
        Some(locked)
    }

    /// As [`enter`](Self::enter), if that is possible now.
    pub(super) fn try_enter(&self, owners: &impl Owners, me: OwnerId, thread: u32) -> Option<Locked> {
        if self.deeper(me, thread) {
            return Some(Locked::Clean);
        }
        let locked = self.mutex.try_acquire(owners, me).ok()?;
        self.first(me, thread, locked);
        Some(locked)
    }

    fn first(&self, me: OwnerId, thread: u32, locked: Locked) {
        let disorder = if locked == Locked::OwnerDied { IN_DISORDER } else { 0 };
        self.levels.store(in_levels(thread, me) | disorder | 1, Ordering::Relaxed);
        self.owner.store(me.bits(), Ordering::Release);
        kill_point!(LevelsWritten);
    }

    /// One level deeper, if this thread has one.
    fn deeper(&self, me: OwnerId, thread: u32) -> bool {
        // Acquire: the levels are then those of this process, or newer ones.
        if self.owner.load(Ordering::Acquire) != me.bits() {
            return false;
        }
        let thread = in_levels(thread, me);
        let mut levels = self.levels.load(Ordering::Relaxed);
        while levels >> THREAD_SHIFT << THREAD_SHIFT == thread && levels & COUNT > 0 {
            assert!(levels & COUNT < COUNT, "more levels of an RLock than can be counted");
            // There is room for it in the count: the thread above it stays as it is.
            let more = levels.wrapping_add(1);
            match self.levels.compare_exchange(levels, more, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(now) => levels = now,
            }
        }
        false
    }

    /// One level less, of whichever thread; the last one releases it.
    pub(super) fn leave(&self) {
        // Both orderings: what other threads did in their levels comes before the release.
        let before = self.levels.fetch_sub(1, Ordering::AcqRel);
        // The last one: no other guard is there, and a thread goes deeper only from a level.
        if before & COUNT == 1 {
            self.owner.store(0, Ordering::Relaxed);
            if before & IN_DISORDER != 0 { self.mutex.abandon() } else { self.mutex.release() }
        }
    }
}

/// A lock for threads of any processes that the thread which holds it may acquire again.
///
/// It is free when all its guards are gone. Otherwise as [`Lock`](crate::Lock): it travels, and a holder that dies is
/// told to the next one.
///
/// ```
/// use executor::RLock;
///
/// # fn main() -> std::io::Result<()> {
/// let lock = RLock::new()?;
/// let outer = lock.acquire().unwrap();
/// let inner = lock.acquire().unwrap();
/// drop(outer);
/// assert!(lock.is_locked());
/// drop(inner);
/// assert!(!lock.is_locked());
/// # Ok(())
/// # }
/// ```
///
/// Only guards release it, wherever they are dropped. There is no async form: tasks of an async runtime share threads, so
/// one would walk into what another holds.
#[derive(Clone)]
pub struct RLock {
    block: Block,
}

travels!(RLock, block, &[Kind::RLock], |len| len == size_of::<Layout>());

impl RLock {
    /// A new one, free.
    ///
    /// # Errors
    /// The system's, if it has no descriptor or no memory left.
    pub fn new() -> io::Result<Self> {
        Ok(RLock { block: Block::allocate(Kind::RLock, size_of::<Layout>())? })
    }

    fn layout(&self) -> &Layout {
        self.block.part(0)
    }

    fn owners(&self) -> &Liveness {
        self.block.owners()
    }

    /// Waits until it is free or this thread's, and holds it once more.
    ///
    /// # Errors
    /// If the one who held it has died: the error has the guard.
    pub fn acquire(&self) -> LockResult<RLockGuard<'_>> {
        loop {
            if let Some(acquired) = self.acquire_until(None) {
                return acquired;
            }
        }
    }

    /// Holds it once more, if it is free now or this thread's; else `None`.
    pub fn try_acquire(&self) -> Option<LockResult<RLockGuard<'_>>> {
        let me = self.owners().me();
        let locked = self.layout().try_enter(self.owners(), me, local::this_thread())?;
        Some(self.guard(me, locked))
    }

    /// As [`acquire`](Self::acquire), but waits no longer than this: then `None`.
    pub fn acquire_timeout(&self, limit: Duration) -> Option<LockResult<RLockGuard<'_>>> {
        self.acquire_until(deadline_in(limit))
    }

    fn acquire_until(&self, deadline: Deadline) -> Option<LockResult<RLockGuard<'_>>> {
        let me = self.owners().me();
        let locked = self.layout().enter(self.owners(), me, local::this_thread(), deadline)?;
        Some(self.guard(me, locked))
    }

    fn guard(&self, me: OwnerId, locked: Locked) -> LockResult<RLockGuard<'_>> {
        let guard = RLockGuard { lock: self, me };
        if locked == Locked::OwnerDied { Err(OwnerDied::new(guard)) } else { Ok(guard) }
    }

    /// Whether somebody holds it at this moment, in whatever process.
    pub fn is_locked(&self) -> bool {
        matches!(self.layout().mutex.holder(self.owners()), Holder::Alive(_))
    }
}

impl fmt::Debug for RLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let levels = self.layout().levels.load(Ordering::Relaxed);
        let holder = self.layout().mutex.holder(self.owners());
        let thread = (levels >> THREAD_SHIFT) as u32 ^ self.owners().me().bits() << 8;
        let what = describe(holder, self.owners(), thread);
        match holder {
            Holder::Alive(_) => write!(f, "RLock({what}, count {})", levels & COUNT),
            Holder::Free | Holder::Dead | Holder::Left => write!(f, "RLock({what})"),
        }
    }
}

/// One level of an [`RLock`]; ends when it is dropped, on whatever thread.
#[must_use = "the lock is released when this is dropped"]
pub struct RLockGuard<'a> {
    lock: &'a RLock,
    me: OwnerId,
}

impl Recover for RLockGuard<'_> {
    fn recover(&mut self) {
        // In a fork it is the parent's.
        if !self.lock.owners().is_me(self.me) {
            return;
        }
        self.lock.layout().levels.fetch_and(!IN_DISORDER, Ordering::Relaxed);
    }
}

impl Drop for RLockGuard<'_> {
    fn drop(&mut self) {
        // In a fork it is the parent's.
        if self.lock.owners().is_me(self.me) {
            self.lock.layout().leave();
        }
    }
}

impl fmt::Debug for RLockGuard<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RLockGuard")
    }
}
