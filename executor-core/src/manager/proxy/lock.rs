//! Locks that processes share.

use std::{
    fmt,
    ops::Deref,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use serde::{Serialize, de::DeserializeOwned};

use super::{GRACE_OF_TAKES, calls, condition::Condition, creations, handle};
use crate::{
    manager::{
        ManagerError,
        client::{Reference, Request, Session},
        protocol::{Kind, Operation, Status},
    },
    os::{fork::Creator, local},
    sealed::Sealed,
};

/// Returns the number under which this thread owns locks that it may acquire again.
fn this_thread() -> u64 {
    u64::from(local::this_thread())
}

/// Returns a number under which nobody else in this process owns locks: for a future, and for each
/// acquisition of a lock that nobody may acquire again. So a guard releases nothing that another
/// guard of its thread holds, and is not taken for one of another lock. Numbers of threads have 32
/// bits.
fn new_owner() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1 << 32);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

handle! {
    /// A lock that processes share. It corresponds to `manager.Lock()`.
    ///
    /// [`Manager::lock`] makes it. [`Lock`](crate::Lock) at the root of the crate does the same
    /// without a server, a thousand times as fast. If the process that holds the lock dies, the
    /// next one gets it, and is [told](LockGuard::owner_died).
    ///
    /// ```
    /// use executor::manager::Manager;
    ///
    /// #[executor::main]
    /// fn main() -> Result<(), Box<dyn std::error::Error>> {
    ///     let manager = Manager::start()?;
    ///     let lock = manager.lock()?;
    ///     let guard = lock.acquire()?;
    ///     assert!(lock.try_acquire()?.is_none());
    ///     drop(guard);
    ///     assert!(!lock.is_locked()?);
    ///     Ok(())
    /// }
    /// ```
    ///
    /// [`Manager::lock`]: crate::manager::Manager::lock
    Lock
}

handle! {
    /// A lock that the thread which holds it may acquire again. It corresponds to
    /// `manager.RLock()`.
    ///
    /// [`Manager::rlock`] makes it. It is free when all its guards are dropped. A future counts as
    /// a thread of its own: after `acquire_async`, nobody may acquire the lock again, not even the
    /// same future or the thread that runs it.
    ///
    /// ```
    /// use executor::manager::Manager;
    ///
    /// #[executor::main]
    /// fn main() -> Result<(), Box<dyn std::error::Error>> {
    ///     let manager = Manager::start()?;
    ///     let lock = manager.rlock()?;
    ///     let _outer = lock.acquire()?;
    ///     let _inner = lock.acquire()?;
    ///     Ok(())
    /// }
    /// ```
    ///
    /// [`Manager::rlock`]: crate::manager::Manager::rlock
    RLock
}

creations! {
    /// Creates a lock that is free.
    fn lock / lock_async [](&self) -> Lock
    { self.creation(Kind::Lock).flag(false) }

    /// Creates a lock that is free, and that its holder may acquire again.
    fn rlock / rlock_async [](&self) -> RLock
    { self.creation(Kind::Lock).flag(true) }
}

/// A lock that is held. `R` is the reference through which it is released.
struct Held<R: Deref<Target = Reference>> {
    lock: R,
    owner: u64,
    owner_died: bool,
    released: bool,
    /// On another connection, it is not held.
    session: Session,
    /// A fork of this process has a copy of the guard, and must not release the lock.
    creator: Creator,
}

impl<R: Deref<Target = Reference>> Held<R> {
    fn new(lock: R, owner: u64, owner_died: bool, session: Session) -> Self {
        Held { lock, owner, owner_died, released: false, session, creator: Creator::here() }
    }

    fn acquire(
        lock: R,
        owner: u64,
        waits: bool,
        deadline: Option<Instant>,
    ) -> Result<Option<Self>, ManagerError> {
        let request = lock.request(Operation::LockAcquire).number(owner).flag(waits);
        let request = request.takes_lock(owner, lock.object());
        match request.call_then_give_up(deadline, Some(GRACE_OF_TAKES)) {
            Err(ManagerError::TimedOut) => Ok(None),
            Err(error) => Err(error),
            Ok(answer) if matches!(answer.status(), Status::NotNow | Status::GivenUp) => Ok(None),
            Ok(answer) => {
                let (died, session) = (answer.number() == 1, answer.session());
                Ok(Some(Held::new(lock, owner, died, session)))
            }
        }
    }

    async fn acquire_async(lock: R) -> Result<Self, ManagerError> {
        let owner = new_owner();
        let (owner_died, session) = {
            let request = lock.request(Operation::LockAcquire).number(owner).flag(true);
            let request = request.takes_lock(owner, lock.object());
            let answer = request.call_async().await?;
            (answer.number() == 1, answer.session())
        };
        Ok(Held::new(lock, owner, owner_died, session))
    }

    /// Begins the request that releases the lock.
    fn releasing(&mut self) -> Result<Request<'_>, ManagerError> {
        if self.creator.is_elsewhere() {
            return Err(ManagerError::Refused("a guard that was copied by `fork` holds no lock"));
        }
        self.released = true;
        if self.lock.was_lost_in(&self.session) {
            let text =
                "the connection was lost while the lock was held, so the server has released it";
            return Err(ManagerError::Gone(text.into()));
        }
        Ok(releasing(&self.lock, Operation::LockReleaseOwn, self.owner))
    }

    fn release(mut self) -> Result<(), ManagerError> {
        self.releasing()?.call()?.unless_refused(NOT_HELD).map(drop)
    }

    async fn release_async(mut self) -> Result<(), ManagerError> {
        // The request is made when this is polled first. Until then, dropping the guard makes it.
        self.releasing()?.call_async().await?.unless_refused(NOT_HELD).map(drop)
    }
}

impl<R: Deref<Target = Reference>> Drop for Held<R> {
    fn drop(&mut self) {
        // If the connection was lost, the server has released the lock, and somebody else may hold
        // it: possibly this thread, on the connection that was made again.
        let elsewhere = self.creator.is_elsewhere();
        if !self.released && !elsewhere && !self.lock.was_lost_in(&self.session) {
            // It has no effect if somebody else has released the lock meanwhile.
            releasing(&self.lock, Operation::LockReleaseOwn, self.owner).tell();
        }
    }
}

const NOT_HELD: &str = "a lock that is not held, or that another thread holds, cannot be released";

fn releasing(lock: &Reference, operation: Operation, owner: u64) -> Request<'_> {
    lock.request(operation).number(owner)
}

/// A guard of a lock of type `L`, with which a [`Condition<L>`](crate::manager::Condition) can be
/// waited for: that of `acquire`, or that of `acquire_owned`.
///
/// This trait is sealed: it cannot be implemented outside this crate.
pub trait ConditionGuard<L>: Sized + Sealed {
    #[doc(hidden)]
    fn owner(&self) -> u64;

    /// Whether it is a guard of this lock. The number of an owner does not say it: a thread may
    /// hold several locks under one number.
    #[doc(hidden)]
    fn is_of(&self, lock: &L) -> bool;

    #[doc(hidden)]
    fn set_owner_died(&mut self);

    /// Sets whether the guard releases the lock when it is dropped.
    #[doc(hidden)]
    fn set_releases(&mut self, releases: bool);
}

/// A lock that conditions can use: [`Lock`] or [`RLock`].
///
/// This trait is sealed: it cannot be implemented outside this crate.
pub trait ConditionLock: Clone + Serialize + DeserializeOwned + Sealed {
    #[doc(hidden)]
    fn object(&self) -> u64;
}

/// Defines what all guards can do.
macro_rules! guards {
    ($($(#[$doc:meta])* $guard:ident [$($lifetime:lifetime)?] $lock:ident, $reference:ty;)*) => {$(
        $(#[$doc])*
        #[must_use = "the lock is released when the guard is dropped"]
        pub struct $guard $(<$lifetime>)?(Held<$reference>);

        impl $(<$lifetime>)? $guard $(<$lifetime>)? {
            /// Returns whether the lock was held by a process that died. What it protects may then
            /// be half changed.
            pub fn owner_died(&self) -> bool {
                self.0.owner_died
            }

            /// Releases the lock, and waits until the server has done so. Dropping the guard does
            /// not wait.
            pub fn release(self) -> Result<(), ManagerError> {
                self.0.release()
            }

            /// Does what [`release`](Self::release) does, without blocking the thread. If the
            /// future is dropped early, the lock is released, too.
            pub async fn release_async(self) -> Result<(), ManagerError> {
                self.0.release_async().await
            }
        }

        impl $(<$lifetime>)? Sealed for $guard $(<$lifetime>)? {}

        impl $(<$lifetime>)? ConditionGuard<$lock> for $guard $(<$lifetime>)? {
            fn owner(&self) -> u64 {
                self.0.owner
            }

            fn is_of(&self, lock: &$lock) -> bool {
                *self.0.lock == *lock.reference
            }

            fn set_owner_died(&mut self) {
                self.0.owner_died = true;
            }

            fn set_releases(&mut self, releases: bool) {
                self.0.released = !releases;
            }
        }

        impl $(<$lifetime>)? fmt::Debug for $guard $(<$lifetime>)? {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($guard))
                    .field("owner_died", &self.owner_died())
                    .finish_non_exhaustive()
            }
        }
    )*};
}

guards! {
    /// Releases a [`Lock`] when it is dropped.
    LockGuard['a] Lock, &'a Reference;
    /// Releases an [`RLock`] when it is dropped.
    RLockGuard['a] RLock, &'a Reference;
    /// Releases a [`Lock`] when it is dropped. It has a handle of its own, and so can be kept in a
    /// structure or a future that is spawned. [`Lock::acquire_owned`] returns it.
    OwnedLockGuard[] Lock, Arc<Reference>;
    /// Releases an [`RLock`] when it is dropped. See [`OwnedLockGuard`].
    OwnedRLockGuard[] RLock, Arc<Reference>;
}

macro_rules! locks {
    ($lock:ident, $guard:ident, $owned:ident, $owner:ident) => {
        impl Sealed for $lock {}

        impl ConditionLock for $lock {
            fn object(&self) -> u64 {
                self.reference.object().0
            }
        }

        impl Condition<$lock> {
            /// Acquires the lock.
            pub fn acquire(&self) -> Result<$guard<'_>, ManagerError> {
                self.get_lock().acquire()
            }

            /// Acquires the lock without blocking the thread.
            pub async fn acquire_async(&self) -> Result<$guard<'_>, ManagerError> {
                self.get_lock().acquire_async().await
            }
        }

        impl $lock {
            calls! {
                /// Returns whether the lock is held by anybody.
                fn is_locked / is_locked_async [](&self) -> bool
                { self.reference.request(Operation::LockIsHeld) => |answer| Ok(answer.is_yes()) }
            }

            /// Waits until the lock is free, and acquires it. Those that wait get it in the order
            /// in which they came.
            pub fn acquire(&self) -> Result<$guard<'_>, ManagerError> {
                // A call without a deadline that waits always gets the lock, or an error.
                let held = Held::acquire(&*self.reference, $owner(), true, None)?;
                held.map($guard).ok_or(ManagerError::TimedOut)
            }

            /// Acquires the lock if it is free now.
            pub fn try_acquire(&self) -> Result<Option<$guard<'_>>, ManagerError> {
                Ok(Held::acquire(&*self.reference, $owner(), false, None)?.map($guard))
            }

            /// Waits until the lock is free, at most for `timeout`, and acquires it.
            pub fn acquire_timeout(
                &self,
                timeout: Duration,
            ) -> Result<Option<$guard<'_>>, ManagerError> {
                let deadline = Instant::now().checked_add(timeout);
                Ok(Held::acquire(&*self.reference, $owner(), true, deadline)?.map($guard))
            }

            /// Acquires the lock without blocking the thread. If the future is dropped early, the
            /// lock is not held.
            pub async fn acquire_async(&self) -> Result<$guard<'_>, ManagerError> {
                Held::acquire_async(&*self.reference).await.map($guard)
            }

            /// Acquires the lock as [`acquire`](Self::acquire) does. The guard has a handle of its
            /// own, so it may outlive this one.
            pub fn acquire_owned(&self) -> Result<$owned, ManagerError> {
                let held = Held::acquire(Arc::clone(&self.reference), $owner(), true, None)?;
                held.map($owned).ok_or(ManagerError::TimedOut)
            }

            /// Acquires the lock as [`try_acquire`](Self::try_acquire) does. See
            /// [`acquire_owned`](Self::acquire_owned).
            pub fn try_acquire_owned(&self) -> Result<Option<$owned>, ManagerError> {
                Ok(Held::acquire(Arc::clone(&self.reference), $owner(), false, None)?.map($owned))
            }

            /// Acquires the lock as [`acquire_timeout`](Self::acquire_timeout) does. See
            /// [`acquire_owned`](Self::acquire_owned).
            pub fn acquire_owned_timeout(
                &self,
                timeout: Duration,
            ) -> Result<Option<$owned>, ManagerError> {
                let deadline = Instant::now().checked_add(timeout);
                Ok(Held::acquire(Arc::clone(&self.reference), $owner(), true, deadline)?
                    .map($owned))
            }

            /// Acquires the lock as [`acquire_async`](Self::acquire_async) does. See
            /// [`acquire_owned`](Self::acquire_owned).
            pub async fn acquire_owned_async(&self) -> Result<$owned, ManagerError> {
                Held::acquire_async(Arc::clone(&self.reference)).await.map($owned)
            }
        }
    };
}

locks!(Lock, LockGuard, OwnedLockGuard, new_owner);
locks!(RLock, RLockGuard, OwnedRLockGuard, this_thread);

impl Lock {
    calls! {
        /// Releases the lock, whoever holds it, as Python's `release` does. Its guard then releases
        /// nothing, also if another guard holds the lock by then.
        ///
        /// # Errors
        /// [`ManagerError::Refused`] if the lock is not held.
        fn release / release_async [](&self) -> ()
        {
            // Anybody may, so it does not matter who does.
            releasing(&self.reference, Operation::LockRelease, 0)
                => |answer| answer.unless_refused(NOT_HELD).map(drop)
        }
    }
}

impl OwnedLockGuard {
    /// Takes the lock out of the guard. See [`LockGuard::leak`].
    pub fn leak(mut self) {
        self.0.released = true;
    }
}

impl LockGuard<'_> {
    /// Takes the lock out of the guard: it stays held, until it is released with
    /// [`Lock::release`], also by another process.
    pub fn leak(mut self) {
        self.0.released = true;
    }
}
