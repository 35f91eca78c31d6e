//! A re-entrant lock: the thread that holds it may acquire it again.

use std::{fmt, io, time::Duration};

use super::{
    guard::{LockResult, OwnerDied, Recover},
    lock::describe,
    raw::{Deadline, Locked, MutexState, RobustMutex, deadline_in},
    word_wait::WordWait,
};
use crate::{
    heap::block::{Block, BlockKind},
    os::{
        liveness::{Liveness, OwnerId, Owners},
        local,
        memory::SharedLayout,
        std_or_model::atomic::{AtomicU32, AtomicU64, Ordering},
    },
};

#[cfg_attr(all(test, any(executor_loom, executor_shuttle)), derive(Default))]
#[repr(C)]
pub(super) struct Layout {
    /// Held as long as there is a level.
    mutex: RobustMutex,
    /// The owner of the levels. An entry that a dead process has left here belongs to nobody.
    owner: AtomicU32,
    /// The holding thread, whether what the lock protects may be half changed, and the number of
    /// levels. They share one word because guards may be dropped on other threads: a thread may add
    /// a level only while it still has one.
    levels: AtomicU64,
}

// SAFETY: `repr(C)`, atomics only, no drop, and all zeros is a valid value.
unsafe impl SharedLayout for Layout {}

const THREAD_SHIFT: u32 = 32;
/// Stands for the holding thread of a level that a task has awaited. No thread has this number, so
/// no thread adds a level to it.
const NO_THREAD: u32 = 0;
const IN_DISORDER: u64 = 1 << 31;
const COUNT: u64 = IN_DISORDER - 1;

/// Returns the bits that identify a thread of process `me` in the levels word.
///
/// Threads of different processes may have the same number, so the process's number is mixed in. A
/// caller may read the owner of the levels, and then levels that another process has written in the
/// meantime: it must not mistake them for its own.
pub(super) fn in_levels(thread: u32, me: OwnerId) -> u64 {
    u64::from(thread ^ me.bits() << 8) << THREAD_SHIFT
}

impl Layout {
    /// Adds a level for the thread with that number, or acquires the lock. Returns `None` if the
    /// deadline passes.
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

    /// Like [`enter`](Self::enter), if that is possible now.
    pub(super) fn try_enter(
        &self,
        owners: &impl Owners,
        me: OwnerId,
        thread: u32,
    ) -> Option<Locked> {
        if self.deeper(me, thread) {
            return Some(Locked::Clean);
        }
        let locked = self.mutex.try_acquire(owners, me).ok()?;
        self.first(me, thread, locked);
        Some(locked)
    }

    /// Begins the first level. The mutex was just acquired.
    fn first(&self, me: OwnerId, thread: u32, locked: Locked) {
        let disorder = if locked == Locked::OwnerDied { IN_DISORDER } else { 0 };
        self.levels.store(in_levels(thread, me) | disorder | 1, Ordering::Relaxed);
        self.owner.store(me.bits(), Ordering::Release);
        kill_point!(LevelsWritten);
    }

    /// Adds a level, if this thread already has one.
    fn deeper(&self, me: OwnerId, thread: u32) -> bool {
        // Acquire: pairs with the store in `first`. The levels that are read next are those of this
        // process, or newer ones.
        if self.owner.load(Ordering::Acquire) != me.bits() {
            return false;
        }
        let thread = in_levels(thread, me);
        let mut levels = self.levels.load(Ordering::Relaxed);
        while levels >> THREAD_SHIFT << THREAD_SHIFT == thread && levels & COUNT > 0 {
            assert!(levels & COUNT < COUNT, "more levels of an RLock than can be counted");
            // The count is below its maximum, so this does not carry into the bits above it.
            let more = levels.wrapping_add(1);
            match self.levels.compare_exchange(levels, more, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(now) => levels = now,
            }
        }
        false
    }

    /// Ends a level, on any thread. Ending the last one releases the lock.
    pub(super) fn leave(&self) {
        // Release: what this thread did in its level happens before the lock is released. Acquire:
        // the same for what other threads did, if this call releases the lock.
        let before = self.levels.fetch_sub(1, Ordering::AcqRel);
        // This was the last level. There is no other guard, and a thread can add a level only while
        // it has one. So nobody else uses the levels until the mutex is released.
        if before & COUNT == 1 {
            self.owner.store(0, Ordering::Relaxed);
            if before & IN_DISORDER != 0 { self.mutex.abandon() } else { self.mutex.release() }
        }
    }
}

/// A lock for threads of any processes. The thread that holds it may acquire it again.
///
/// The lock is free when all its guards are dropped. Otherwise it is like a [`Lock`](crate::Lock):
/// it can be sent to other processes, and if its holder dies, the next holder is told.
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
/// Only guards release the lock, and they may be dropped on any thread.
///
/// The async form, [`acquire_async`](Self::acquire_async), is not re-entrant. The tasks of an async
/// runtime share threads, so a task could otherwise enter a lock that another task holds.
#[derive(Clone)]
pub struct RLock {
    block: Block,
}

travels!(RLock, block, &[BlockKind::RLock], |len| len == size_of::<Layout>());

impl RLock {
    /// Creates a lock that is free.
    ///
    /// # Errors
    /// The system's error if no descriptor or memory is left.
    pub fn new() -> io::Result<Self> {
        Ok(RLock { block: Block::allocate(BlockKind::RLock, size_of::<Layout>())? })
    }

    fn layout(&self) -> &Layout {
        self.block.part(0)
    }

    fn owners(&self) -> &Liveness {
        self.block.owners()
    }

    /// Waits until the lock is free or held by this thread, and acquires it once more.
    ///
    /// # Errors
    /// If the previous holder has died. The error contains the guard.
    pub fn acquire(&self) -> LockResult<RLockGuard<'_>> {
        loop {
            if let Some(acquired) = self.acquire_until(None) {
                return acquired;
            }
        }
    }

    /// Acquires the lock once more if it is free now or held by this thread; otherwise returns
    /// `None`.
    pub fn try_acquire(&self) -> Option<LockResult<RLockGuard<'_>>> {
        let me = self.owners().me();
        let locked = self.layout().try_enter(self.owners(), me, local::this_thread())?;
        Some(self.guard(me, locked))
    }

    /// Like [`acquire`](Self::acquire), but waits no longer than `timeout` and then returns `None`.
    pub fn acquire_timeout(&self, timeout: Duration) -> Option<LockResult<RLockGuard<'_>>> {
        self.acquire_until(deadline_in(timeout))
    }

    /// Waits until the lock is free, and acquires it, on any async runtime.
    ///
    /// The guard belongs to no thread. So while it exists, nobody acquires the lock once more, by
    /// any form: the blocking forms wait, even in the same task. If this task already holds the
    /// lock, the future waits until that guard is dropped.
    ///
    /// # Errors
    /// As for [`acquire`](Self::acquire).
    ///
    /// # Cancel safety
    /// Dropping the future takes neither the lock nor another waiter's wake-up.
    pub async fn acquire_async(&self) -> LockResult<RLockGuard<'_>> {
        // Without the mark, nobody is woken when the lock is released.
        let mut mark = 0;
        loop {
            let (layout, me) = (self.layout(), self.owners().me());
            match layout.mutex.try_acquire_slowly(self.owners(), me, mark) {
                Ok(locked) => {
                    layout.first(me, NO_THREAD, locked);
                    return self.guard(me, locked);
                }
                // Others may wait as well, and must be woken when the lock is released.
                Err(_) if mark == 0 => mark = RobustMutex::CONTENDED,
                Err(word) => WordWait::new(&self.block, layout.mutex.word(), word).await,
            }
        }
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

    /// Whether any process holds the lock at this moment.
    pub fn is_locked(&self) -> bool {
        matches!(self.layout().mutex.state(self.owners()), MutexState::Alive(_))
    }
}

impl fmt::Debug for RLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let levels = self.layout().levels.load(Ordering::Relaxed);
        let state = self.layout().mutex.state(self.owners());
        let thread = (levels >> THREAD_SHIFT) as u32 ^ self.owners().me().bits() << 8;
        let what = match describe(state, self.owners(), thread) {
            "held by another thread" if thread == NO_THREAD => "held by a task",
            what => what,
        };
        match state {
            MutexState::Alive(_) => write!(f, "RLock({what}, count {})", levels & COUNT),
            MutexState::Free | MutexState::Dead | MutexState::Left => write!(f, "RLock({what})"),
        }
    }
}

/// One level of an [`RLock`]. The level ends when this is dropped, on any thread.
#[must_use = "the lock is released when this is dropped"]
pub struct RLockGuard<'a> {
    lock: &'a RLock,
    me: OwnerId,
}

impl Recover for RLockGuard<'_> {
    fn recover(&mut self) {
        // In a forked process it is the parent's.
        if !self.lock.owners().is_me(self.me) {
            return;
        }
        self.lock.layout().levels.fetch_and(!IN_DISORDER, Ordering::Relaxed);
    }
}

impl Drop for RLockGuard<'_> {
    fn drop(&mut self) {
        // In a forked process it is the parent's.
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
