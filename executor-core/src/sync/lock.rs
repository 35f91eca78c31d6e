//! The lock, for mutual exclusion.
//!
//! ```text
//!  Lock ──► User: this process, about to hold it ──┬─► guard   LockGuard, until it is dropped
//!                 │ levels of re-entrant locks     └─► held    Held, for one call
//!                 ▼
//!               holder: which thread or task is that
//! ```

use std::{fmt, io, time::Duration};

use super::{
    guard::{LockResult, ReleaseError},
    raw::{Deadline, MutexState, RobustMutex, deadline_in},
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

mod guard;
mod held;
pub(crate) mod holder;
mod user;

pub use guard::LockGuard;
use held::How;
pub(crate) use held::{Call, Held};
use user::User;

/// A lock for threads of any processes.
///
/// It can be sent to other processes as an argument or a result of a task, also inside other types.
/// All handles refer to the same lock, and two handles compare equal if they do.
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
/// The next holder gets the lock within 100 ms, and is told: see [`OwnerDied`](crate::OwnerDied). A
/// process that dies while it waits leaves nothing behind.
///
/// Only the death of a process counts. A thread that panics drops its guards, which releases the
/// lock. A guard that is leaked (`mem::forget`) holds the lock until its process ends or has no
/// handle left.
///
/// # Fairness, recursion
///
/// The lock is not fair: whoever comes first when it is free gets it. A thread that acquires a lock
/// that it holds waits for ever; see [`RLock`](crate::RLock).
///
/// The lock that a [`Value`](crate::Value) or an [`Array`](crate::Array) creates for itself is
/// re-entrant, except in its async form. A lock that was given to them is not, but the thread that
/// holds it may use them.
///
/// Re-entrant locks tell tasks of tokio apart. Of a task of another runtime, only the thread is
/// known. While such a task holds a re-entrant lock that it has awaited, the blocking forms panic
/// on the thread where that happened: the caller may be the same task, which would wait for itself.
/// [`acquire_async`](Lock::acquire_async) waits instead.
///
/// # What it costs
///
/// Acquiring takes a few nanoseconds while nobody else wants the lock. A lock takes 64 bytes of
/// shared memory, and a thousand locks share two descriptors. If a lock was sent to another
/// process, its memory is not reused before all of the thousand that were created together are
/// gone. In the worst case, a program that keeps one lock of each thousand pays two descriptors and
/// 64 KiB for it.
///
/// # Forks
///
/// In a process that was forked by hand, a handle is that of a separate user. Guards that it has
/// inherited do nothing. Acquiring there may panic if no descriptor is left.
#[derive(Clone)]
pub struct Lock {
    block: Block,
}

/// The beginning of each block that has a lock: that of a [`Lock`], a `Value`, or an `Array`.
///
/// The lock of a value or an array is re-entrant: its holder may use the value, and may acquire the
/// lock again. For a lock that was given to a value or an array, only the first holds from then on.
/// In both cases guards are counted in `levels`, like those of an `RLock`.
#[cfg_attr(all(test, any(executor_loom, executor_shuttle)), derive(Default))]
#[repr(C)]
pub(crate) struct LockLayout {
    pub(crate) mutex: RobustMutex,
    /// The thread that holds the lock, for debug output. It proves nothing by itself, and may be
    /// out of date.
    thread: AtomicU32,
    /// [`PLAIN`], [`GIVEN`] or [`REENTRANT`].
    sort: AtomicU32,
    /// The owner of the levels. An entry that a dead process has left here belongs to nobody.
    owner: AtomicU32,
    /// The [`holder`], whether what the lock protects may be half changed, and the number of
    /// levels. They share one word because guards may be dropped on other threads: a level may be
    /// added only while there still is one.
    levels: AtomicU64,
    /// The process in which a guard lends references into the memory of this block's value; 0 means
    /// none.
    lent: AtomicU32,
    reserved: AtomicU32,
}

// SAFETY: `repr(C)`, atomics only, no drop, and all zeros is a valid value.
unsafe impl SharedLayout for LockLayout {}

impl LockLayout {
    /// Records the process that lends references, or that none does.
    pub(super) fn lend_to(&self, me: Option<OwnerId>) {
        // Release: what was done through the references happens before this store. A guard may be
        // dropped on a different thread than the one that holds the lock. The holding thread then
        // needs nothing but this word to use the value again.
        self.lent.store(me.map_or(0, OwnerId::bits), Ordering::Release);
    }

    /// Returns the process that lends references.
    pub(super) fn lent_to(&self) -> Option<OwnerId> {
        let lent = self.lent.load(Ordering::Acquire);
        if lent == 0 { None } else { OwnerId::from_bits(lent) }
    }
}

/// A lock on its own: nobody asks for its holder.
const PLAIN: u32 = 0;
/// The lock was given to a value or an array. Its holder may use them.
const GIVEN: u32 = 1;
/// The lock of a value or an array. Its holder may also acquire it again.
const REENTRANT: u32 = 2;

const HOLDER_SHIFT: u32 = 24;
/// What the lock protects may be half changed.
const IN_DISORDER: u64 = 1 << 23;
/// The bits of the number of levels.
const COUNT: u64 = IN_DISORDER - 1;

const KINDS: &[BlockKind] = &[BlockKind::Lock, BlockKind::Value, BlockKind::Array];

travels!(Lock, block, KINDS, |len| len >= size_of::<LockLayout>());

impl Lock {
    /// Creates a lock that is free.
    ///
    /// # Errors
    /// The system's error if no descriptor or memory is left.
    pub fn new() -> io::Result<Self> {
        Ok(Lock { block: Block::allocate(BlockKind::Lock, size_of::<LockLayout>())? })
    }

    /// Returns the lock at the beginning of a block that has one.
    pub(crate) fn of(block: &Block) -> Self {
        debug_assert!(KINDS.contains(&block.kind()));
        Lock { block: block.clone() }
    }

    /// Makes this the lock of that block: its own, or one that was given to it. From now on, the
    /// holder may use what is in the block.
    pub(crate) fn belong_to(&self, block: &Block) {
        let sort = if self.block == *block { REENTRANT } else { GIVEN };
        self.layout().sort.fetch_max(sort, Ordering::Relaxed);
    }

    pub(crate) fn block(&self) -> &Block {
        &self.block
    }

    #[inline]
    #[cfg(all(test, not(any(executor_loom, executor_shuttle))))]
    pub(super) fn word(&self) -> &AtomicU32 {
        self.layout().mutex.word()
    }

    fn layout(&self) -> &LockLayout {
        self.block.part(0)
    }

    #[inline]
    fn owners(&self) -> &Liveness {
        self.block.owners()
    }

    #[inline]
    fn user(&self) -> User<'_> {
        let (me, creator) = self.owners().me_and_creator();
        User { lock: self, layout: self.layout(), me, creator }
    }

    /// Waits until the lock is free, and acquires it.
    ///
    /// # Errors
    /// If the previous holder has died. The error contains the guard.
    #[inline]
    pub fn acquire(&self) -> LockResult<LockGuard<'_>> {
        if let Some(guard) = self.acquire_if_free() {
            return Ok(guard);
        }
        loop {
            if let Some(acquired) = self.acquire_until(None) {
                return acquired;
            }
        }
    }

    /// Acquires the lock if it is free now; otherwise returns `None`.
    #[inline]
    pub fn try_acquire(&self) -> Option<LockResult<LockGuard<'_>>> {
        self.try_acquire_if(REENTRANT)
    }

    #[inline]
    fn try_acquire_if(&self, sort: u32) -> Option<LockResult<LockGuard<'_>>> {
        let (owners, user) = (self.owners(), self.user());
        match user.layout.mutex.try_acquire(owners, user.me) {
            Ok(locked) => Some(user.guard(locked)),
            Err(_) => user.deeper(sort).map(Ok),
        }
    }

    /// Like [`acquire`](Self::acquire), but waits no longer than `timeout` and then returns `None`.
    pub fn acquire_timeout(&self, timeout: Duration) -> Option<LockResult<LockGuard<'_>>> {
        self.try_acquire().or_else(|| self.acquire_until(deadline_in(timeout)))
    }

    #[inline]
    pub(crate) fn acquire_until(&self, deadline: Deadline) -> Option<LockResult<LockGuard<'_>>> {
        let user = self.user();
        match user.layout.mutex.try_acquire_free(user.me) {
            Some(locked) => Some(user.guard(locked)),
            None => user.acquire_slowly(deadline, REENTRANT),
        }
    }

    /// Like [`acquire`](Self::acquire), for operations of a value or an array. It succeeds at once
    /// if this thread or task holds the lock, even if the lock was given to the value and is not
    /// re-entrant.
    pub(crate) fn acquire_again(&self) -> LockResult<LockGuard<'_>> {
        if let Some(guard) = self.acquire_if_free() {
            return Ok(guard);
        }
        let user = self.user();
        loop {
            if let Some(acquired) = user.acquire_slowly(None, GIVEN) {
                return acquired;
            }
        }
    }

    /// Acquires the lock if it is free and no holder has died. This is the most frequent case, and
    /// it is optimised for that. No other guard of this process holds the lock then.
    #[inline]
    pub(crate) fn acquire_if_free(&self) -> Option<LockGuard<'_>> {
        let user = self.user();
        let _clean = user.layout.mutex.try_acquire_free(user.me)?;
        Some(user.clean_guard())
    }

    /// Like [`acquire_again`](Self::acquire_again), if that is possible without waiting.
    #[inline]
    pub(crate) fn try_acquire_again(&self) -> Option<LockResult<LockGuard<'_>>> {
        self.try_acquire_if(GIVEN)
    }

    /// Like [`acquire_again`](Self::acquire_again), with a deadline.
    pub(crate) fn acquire_again_until(
        &self,
        deadline: Deadline,
    ) -> Option<LockResult<LockGuard<'_>>> {
        self.try_acquire_again().or_else(|| self.user().acquire_slowly(deadline, GIVEN))
    }

    /// Like [`acquire`](Self::acquire), on any async runtime.
    ///
    /// This form is never re-entrant: if this task already holds the lock, the future waits until
    /// that guard is dropped. The branches of `join!` or `select!` are one task, and exclude each
    /// other.
    ///
    /// # Cancel safety
    /// Dropping the future takes neither the lock nor another waiter's wake-up.
    pub async fn acquire_async(&self) -> LockResult<LockGuard<'_>> {
        let (mutex, owners) = (&self.layout().mutex, self.owners());
        let user = self.user();
        if let Ok(locked) = mutex.try_acquire(owners, user.me) {
            return user.guard_of(locked, holder::this_async);
        }
        loop {
            let user = self.user();
            // Set the mark: others may wait as well, and must be woken when the lock is released.
            match mutex.try_acquire_slowly(owners, user.me, RobustMutex::CONTENDED) {
                Ok(locked) => return user.guard_of(locked, holder::this_async),
                Err(word) => WordWait::new(&self.block, mutex.word(), word).await,
            }
        }
    }

    /// Holds the lock for a call that runs no user code, so nobody can re-enter it during the
    /// call.
    #[inline]
    pub(crate) fn hold(&self) -> Held<'_> {
        let user = self.user();
        let how = match user.layout.mutex.try_acquire_free(user.me) {
            Some(_) => How::Plainly,
            None => user.hold_slowly(),
        };
        Held { user, how }
    }

    /// Like [`hold`](Self::hold), for a call that runs user code, which may use what the lock
    /// protects. `call` is a new one, on the caller's stack.
    #[inline]
    pub(crate) fn hold_and_call<'a>(&'a self, call: &'a Call) -> Held<'a> {
        let user = self.user();
        let how = match user.layout.mutex.try_acquire_free(user.me) {
            Some(_) => How::Plainly,
            None => user.hold_slowly(),
        };
        let how = match how {
            How::Plainly => {
                call.begin(&user);
                How::Calling(call)
            }
            How::AfterDeath => {
                user.begin_levels(holder::this_call(), true);
                How::Counted
            }
            how => how,
        };
        Held { user, how }
    }

    /// Records that `me` lends references into this block's value or, for `None`, that nobody does
    /// any more. The caller holds the lock.
    #[inline]
    pub(crate) fn lend(block: &Block, me: Option<OwnerId>) {
        block.part::<LockLayout>(0).lend_to(me);
    }

    /// Whether a guard of this process lends references into this block's value. The caller holds
    /// the lock.
    #[inline]
    pub(crate) fn is_lent(&self, block: &Block) -> bool {
        // The lender is recorded by its number as a user of the lock's memory, which may differ
        // from its number as a user of the block's memory. An entry that a dead process has left
        // matches nobody.
        block.part::<LockLayout>(0).lent_to().is_some_and(|owner| self.owners().is_me(owner))
    }

    /// Releases a lock that was [left locked](LockGuard::leave_locked), from any thread of any
    /// process.
    ///
    /// # Errors
    /// If the lock is free, or a guard holds it.
    pub fn release(&self) -> Result<(), ReleaseError> {
        let mutex = &self.layout().mutex;
        if mutex.release_left() {
            return Ok(());
        }
        Err(match mutex.state(self.owners()) {
            MutexState::Alive(_) => ReleaseError::Guarded,
            MutexState::Free | MutexState::Dead | MutexState::Left => ReleaseError::NotLocked,
        })
    }

    /// Whether any process holds the lock at this moment.
    pub fn is_locked(&self) -> bool {
        matches!(self.layout().mutex.state(self.owners()), MutexState::Alive(_) | MutexState::Left)
    }
}

impl fmt::Debug for Lock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let thread = self.layout().thread.load(Ordering::Relaxed);
        write!(
            f,
            "Lock({})",
            describe(self.layout().mutex.state(self.owners()), self.owners(), thread)
        )
    }
}

/// Describes a mutex's state, and its holder as seen from the caller.
pub(super) fn describe(state: MutexState, owners: &impl Owners, thread: u32) -> &'static str {
    match state {
        MutexState::Free => "free",
        MutexState::Dead => "its holder has died",
        MutexState::Left => "left locked",
        MutexState::Alive(owner) if !owners.is_me(owner) => "held by another process",
        MutexState::Alive(_) if thread != local::this_thread() => "held by another thread",
        MutexState::Alive(_) => "held by this thread",
    }
}

/// Panics in a forked process, where the lock is held by the parent. What one process writes under
/// the lock, the other one would write as well, or would see changed behind a reference.
#[inline]
#[track_caller]
fn check_mine(is_mine: bool) {
    assert!(
        is_mine,
        "this process is a fork of the one that holds the lock: what the lock protects is the other one's"
    );
}
