//! Mutual exclusion.

use std::{fmt, io, time::Duration};

use super::{
    changed::changed,
    guard::{Acquired, OwnerDied, Recover, ReleaseError},
    raw::{Deadline, Holder, Locked, RobustMutex, deadline_in},
};
use crate::{
    os::{
        liveness::{Liveness, OwnerId, Owners},
        local,
        memory::SharedLayout,
        sync::atomic::{AtomicU32, Ordering},
    },
    shm::heap::{Block, Kind},
};

/// A lock for threads of any processes.
///
/// It travels: as an argument or a result of a task, inside of other types too. All handles are of the same lock, and two
/// handles compare equal if they are.
///
/// ```
/// use executor::{Lock, prelude::*};
///
/// #[task]
/// fn append(lock: Lock, path: std::path::PathBuf, line: &str) -> std::io::Result<()> {
///     let _guard = lock.acquire().unwrap();
///     // One at a time in here, in whatever process.
///     let text = std::fs::read_to_string(&path)?;
///     std::fs::write(&path, format!("{text}{line}\n"))
/// }
///
/// #[executor::main]
/// fn main() -> Result<(), Box<dyn std::error::Error>> {
///     let path = std::env::temp_dir().join(format!("lock-{}", std::process::id()));
///     std::fs::write(&path, "")?;
///     let (pool, lock) = (ProcessPoolExecutor::builder().max_workers(2).build()?, Lock::new()?);
///     let appends = (0..10).map(|i| pool.submit(append::task(lock.clone(), path.clone(), &i.to_string())));
///     for append in appends.collect::<Vec<_>>() {
///         append.result()?;
///     }
///     assert_eq!(std::fs::read_to_string(&path)?.lines().count(), 10);
///     # std::fs::remove_file(&path)?;
///     Ok(())
/// }
/// ```
///
/// # When its holder dies
///
/// The next one gets it within 100 ms and is told: [`OwnerDied`]. A process that waits and dies leaves nothing behind.
/// Death is that of the process. A thread that panics drops its guards, which release; a guard that is forgotten
/// (`mem::forget`) holds until its process ends, or has no handle left.
///
/// # Fairness, recursion
///
/// There is none: whoever comes first when it is free gets it. A thread that acquires what it holds waits for ever; see
/// [`RLock`](crate::RLock).
///
/// # What it costs
///
/// Nothing but a few nanoseconds while nobody else wants it. 64 bytes of shared memory; a thousand of them share two
/// descriptors.
///
/// # Forks
///
/// In a process that was forked by hand a handle is one of another user; guards that it has inherited do nothing.
/// Acquiring there may panic, if the system has no descriptor left.
#[derive(Clone)]
pub struct Lock {
    block: Block,
}

/// At the beginning of each block that has a lock: that of a [`Lock`], a `Value`, an `Array`.
#[cfg_attr(all(test, any(executor_loom, executor_shuttle)), derive(Default))]
#[repr(C)]
pub(crate) struct LockLayout {
    pub(crate) mutex: RobustMutex,
    /// The thread that holds it, for who asks. It says nothing by itself, and may be out of date.
    thread: AtomicU32,
}

// SAFETY: `repr(C)`, atomics only, no drop, zero is a value.
unsafe impl SharedLayout for LockLayout {}

const KINDS: &[Kind] = &[Kind::Lock, Kind::Value, Kind::Array];

travels!(Lock, block, KINDS, |len| len >= size_of::<LockLayout>());

impl Lock {
    /// A new one, free.
    ///
    /// # Errors
    /// The system's, if it has no descriptor or no memory left.
    pub fn new() -> io::Result<Self> {
        Ok(Lock { block: Block::allocate(Kind::Lock, size_of::<LockLayout>())? })
    }

    /// The lock at the beginning of a block that has one.
    pub(crate) fn of(block: &Block) -> Self {
        debug_assert!(KINDS.contains(&block.kind()));
        Lock { block: block.clone() }
    }

    pub(crate) fn block(&self) -> &Block {
        &self.block
    }

    #[inline]
    fn layout(&self) -> &LockLayout {
        self.block.part(0)
    }

    #[inline]
    fn owners(&self) -> &Liveness {
        self.block.owners()
    }

    /// Waits until it is free, and holds it.
    ///
    /// # Errors
    /// If the one who held it has died: the error has the guard.
    #[inline]
    pub fn acquire(&self) -> Acquired<LockGuard<'_>> {
        loop {
            if let Some(acquired) = self.acquire_until(None) {
                return acquired;
            }
        }
    }

    /// Holds it, if it is free now; else `None`.
    #[inline]
    pub fn try_acquire(&self) -> Option<Acquired<LockGuard<'_>>> {
        let owners = self.owners();
        let me = owners.me();
        let locked = self.layout().mutex.try_acquire(owners, me).ok()?;
        Some(self.guard(me, locked))
    }

    /// As [`acquire`](Self::acquire), but waits no longer than this: then `None`.
    pub fn acquire_timeout(&self, limit: Duration) -> Option<Acquired<LockGuard<'_>>> {
        self.try_acquire().or_else(|| self.acquire_until(deadline_in(limit)))
    }

    #[inline]
    pub(crate) fn acquire_until(&self, deadline: Deadline) -> Option<Acquired<LockGuard<'_>>> {
        let owners = self.owners();
        let me = owners.me();
        let locked = self.layout().mutex.acquire(owners, me, deadline)?;
        Some(self.guard(me, locked))
    }

    /// As [`acquire`](Self::acquire), on any async runtime.
    ///
    /// # Cancel safety
    /// To drop the future takes neither the lock nor another's wake-up.
    pub async fn acquire_async(&self) -> Acquired<LockGuard<'_>> {
        if let Some(acquired) = self.try_acquire() {
            return acquired;
        }
        let (mutex, owners) = (&self.layout().mutex, self.owners());
        loop {
            let me = owners.me();
            match mutex.try_acquire_slowly(owners, me, RobustMutex::CONTENDED) {
                Ok(locked) => return self.guard(me, locked),
                Err(word) => changed(&self.block, mutex.word(), word).await,
            }
        }
    }

    #[inline]
    fn guard(&self, me: OwnerId, locked: Locked) -> Acquired<LockGuard<'_>> {
        self.layout().thread.store(local::this_thread(), Ordering::Relaxed);
        let in_disorder = locked == Locked::OwnerDied;
        let guard = LockGuard { lock: self, me, in_disorder };
        if in_disorder { Err(OwnerDied::new(guard)) } else { Ok(guard) }
    }

    /// Releases what was [left locked](LockGuard::leave_locked), from any thread of any process.
    ///
    /// # Errors
    /// If it is free, or a guard holds it.
    pub fn release(&self) -> Result<(), ReleaseError> {
        let mutex = &self.layout().mutex;
        if mutex.release_left() {
            return Ok(());
        }
        Err(match mutex.holder(self.owners()) {
            Holder::Alive(_) => ReleaseError::Guarded,
            Holder::Free | Holder::Dead | Holder::Left => ReleaseError::NotLocked,
        })
    }

    /// Whether somebody holds it at this moment, in whatever process.
    pub fn is_locked(&self) -> bool {
        matches!(self.layout().mutex.holder(self.owners()), Holder::Alive(_) | Holder::Left)
    }
}

impl fmt::Debug for Lock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let thread = self.layout().thread.load(Ordering::Relaxed);
        write!(f, "Lock({})", describe(self.layout().mutex.holder(self.owners()), self.owners(), thread))
    }
}

/// Who holds something, as seen from here.
pub(super) fn describe(holder: Holder, owners: &impl Owners, thread: u32) -> &'static str {
    match holder {
        Holder::Free => "free",
        Holder::Dead => "its holder has died",
        Holder::Left => "left locked",
        Holder::Alive(owner) if !owners.is_me(owner) => "held by another process",
        Holder::Alive(_) if thread != local::this_thread() => "held by another thread",
        Holder::Alive(_) => "held by this thread",
    }
}

/// Holds a [`Lock`] until it is dropped, on whatever thread.
#[must_use = "the lock is released when this is dropped"]
pub struct LockGuard<'a> {
    lock: &'a Lock,
    me: OwnerId,
    in_disorder: bool,
}

impl<'a> LockGuard<'a> {
    /// Leaves it locked, without a guard: whoever has a handle may [release](Lock::release) it, and it stays locked until
    /// somebody does. That it was this process which held it is forgotten: its death frees nothing.
    pub fn leave_locked(self) {
        if self.lock.owners().is_me(self.me) {
            self.lock.layout().mutex.leave();
        }
        std::mem::forget(self);
    }

    pub(crate) fn lock(&self) -> &'a Lock {
        self.lock
    }

    /// Refuses in a fork, where the lock is the parent's: what one side writes under it the other one would write, too, or
    /// see changed behind a reference.
    #[inline]
    #[track_caller]
    pub(crate) fn check_mine(&self) {
        assert!(
            self.lock.owners().is_me(self.me),
            "this process is a fork of the one that holds the lock: what the lock protects is the other one's"
        );
    }
}

/// As [`LockGuard::check_mine`], for one that was just acquired, whether or not its last holder has died.
#[inline]
#[track_caller]
pub(crate) fn check_mine(acquired: &Acquired<LockGuard<'_>>) {
    acquired.as_ref().unwrap_or_else(OwnerDied::peek).check_mine();
}

impl Recover for LockGuard<'_> {
    fn recover(&mut self) {
        self.in_disorder = false;
    }
}

impl Drop for LockGuard<'_> {
    #[inline]
    fn drop(&mut self) {
        // In a fork it is the parent's.
        if self.lock.owners().is_me(self.me) {
            let mutex = &self.lock.layout().mutex;
            if self.in_disorder { mutex.abandon() } else { mutex.release() }
        }
    }
}

impl fmt::Debug for LockGuard<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LockGuard")
    }
}
