//! A condition that processes wait for.

use std::time::{Duration, Instant};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{
    calls,
    lock::{ConditionGuard, ConditionLock, Lock},
};
use crate::manager::{
    Manager, ManagerError,
    client::{Answer, Reference, Request},
    protocol::{Kind, ObjectId, Operation, Status},
};

/// A condition that threads of any processes wait for, while they hold a lock. It corresponds to
/// `manager.Condition()`.
///
/// [`Manager::condition`] makes it. [`Condition`](crate::Condition) at the root of the crate does
/// the same without a server.
///
/// ```
/// use executor::manager::Manager;
///
/// #[executor::main]
/// fn main() -> Result<(), Box<dyn std::error::Error>> {
///     let manager = Manager::start()?;
///     let changed = manager.condition()?;
///     let count = manager.value(0)?;
///     let (other, theirs) = (changed.clone(), count.clone());
///     let thread = std::thread::spawn(move || {
///         let guard = other.acquire()?;
///         theirs.set(&1)?;
///         other.notify_all(&guard)
///     });
///     let mut guard = changed.acquire()?;
///     while count.get()? == 0 {
///         guard = changed.wait(guard)?;
///     }
///     drop(guard);
///     thread.join().unwrap()?;
///     Ok(())
/// }
/// ```
///
/// It uses a [`Lock`], or with [`Manager::condition_with_lock`] an
/// [`RLock`](crate::manager::RLock). A wait gives up an `RLock` altogether, however often this
/// thread has acquired it, and then holds it as often again. Guards may be those of
/// `acquire` or of `acquire_owned`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Condition<L = Lock> {
    reference: std::sync::Arc<Reference>,
    lock: L,
}

impl<L: Serialize> Serialize for Condition<L> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (&*self.reference, &self.lock).serialize(serializer)
    }
}

impl<'de, L: Deserialize<'de>> Deserialize<'de> for Condition<L> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (reference, lock) = <(Reference, L)>::deserialize(deserializer)?;
        Ok(Condition { reference: std::sync::Arc::new(reference), lock })
    }
}

impl Manager {
    /// Creates a condition with a lock of its own.
    pub fn condition(&self) -> Result<Condition, ManagerError> {
        self.condition_with_lock(self.lock()?)
    }

    /// Creates a condition that uses this [`Lock`] or [`RLock`](crate::manager::RLock), which may
    /// be that of other conditions.
    ///
    /// ```
    /// # use executor::manager::Manager;
    /// # #[executor::main]
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let manager = Manager::start()?;
    /// let changed = manager.condition_with_lock(manager.rlock()?)?;
    /// let _outer = changed.acquire()?;
    /// let inner = changed.get_lock().acquire_owned()?;
    /// assert_eq!(changed.notify_all(&inner)?, 0);
    /// # Ok(())
    /// # }
    /// ```
    pub fn condition_with_lock<L: ConditionLock>(
        &self,
        lock: L,
    ) -> Result<Condition<L>, ManagerError> {
        let answer = self.conditional(&lock).call()?;
        Ok(Condition::of(Reference::created(&answer), lock))
    }

    /// Does what [`condition`](Self::condition) does, without blocking the thread.
    pub async fn condition_async(&self) -> Result<Condition, ManagerError> {
        self.condition_with_lock_async(self.lock_async().await?).await
    }

    /// Does what [`condition_with_lock`](Self::condition_with_lock) does, without blocking the
    /// thread.
    pub async fn condition_with_lock_async<L: ConditionLock>(
        &self,
        lock: L,
    ) -> Result<Condition<L>, ManagerError> {
        let reference = {
            let answer = self.conditional(&lock).call_async().await?;
            Reference::created(&answer)
        };
        Ok(Condition::of(reference, lock))
    }

    /// Asks for a condition of a lock.
    fn conditional(&self, lock: &impl ConditionLock) -> Request<'_> {
        self.creation(Kind::Condition).number(lock.object())
    }
}

const NOT_HELD: &str = "the lock of the condition is not held by this guard any more";

impl<L> Condition<L> {
    fn of(reference: Reference, lock: L) -> Self {
        Condition { reference: std::sync::Arc::new(reference), lock }
    }

    /// Returns the lock.
    pub fn get_lock(&self) -> &L {
        &self.lock
    }
}

impl<L: ConditionLock> Condition<L> {
    fn waiting<G: ConditionGuard<L>>(&self, guard: &G) -> Result<Request<'_>, ManagerError> {
        let owner = self.owner(guard)?;
        let request = self.reference.request(Operation::ConditionWait).number(owner);
        Ok(request.takes_lock(owner, ObjectId(self.lock.object())))
    }

    /// Returns who holds the lock, if it is this lock.
    fn owner<G: ConditionGuard<L>>(&self, guard: &G) -> Result<u64, ManagerError> {
        match guard.is_of(&self.lock) {
            true => Ok(guard.owner()),
            false => Err(ManagerError::Refused(NOT_HELD)),
        }
    }

    fn check<G: ConditionGuard<L>>(
        answer: Result<Answer, ManagerError>,
        mut guard: G,
    ) -> Result<(G, bool), ManagerError> {
        // After an error the guard is dropped: it releases the lock if it is held by it.
        let answer = answer?.unless_refused(NOT_HELD)?;
        if answer.number() == 1 {
            guard.set_owner_died();
        }
        Ok((guard, answer.status() == Status::Done))
    }

    /// Gives up the lock, waits to be notified, and acquires the lock again.
    ///
    /// # Errors
    /// [`ManagerError::Refused`] if the guard is of another lock, or the lock was released. After
    /// any error, the lock is not held by this thread.
    ///
    /// As with every condition, check after that what was waited for: another process may have
    /// changed it meanwhile.
    pub fn wait<G: ConditionGuard<L>>(&self, guard: G) -> Result<G, ManagerError> {
        let answer = self.waiting(&guard)?.call();
        Ok(Self::check(answer, guard)?.0)
    }

    /// Waits as [`wait`](Self::wait) does, at most for `timeout`. Also returns whether it was
    /// notified in time. To acquire the lock again may take longer.
    pub fn wait_timeout<G: ConditionGuard<L>>(
        &self,
        guard: G,
        timeout: Duration,
    ) -> Result<(G, bool), ManagerError> {
        let deadline = Instant::now().checked_add(timeout);
        let answer = self.waiting(&guard)?.call_then_give_up(deadline, None);
        Self::check(answer, guard)
    }

    /// Waits until `ready` returns `true`. It is called while the lock is held.
    pub fn wait_for<G: ConditionGuard<L>>(
        &self,
        mut guard: G,
        mut ready: impl FnMut() -> Result<bool, ManagerError>,
    ) -> Result<G, ManagerError> {
        while !ready()? {
            guard = self.wait(guard)?;
        }
        Ok(guard)
    }

    /// Waits as [`wait`](Self::wait) does, without blocking the thread. If the future is dropped
    /// early, the lock is not held.
    pub async fn wait_async<G: ConditionGuard<L>>(&self, mut guard: G) -> Result<G, ManagerError> {
        // The first call of a handle may wait before it is made. Until then the guard has the lock.
        self.reference.ready_async().await?;
        let request = self.waiting(&guard)?;
        // From now on the call owns the lock: if it is abandoned, the lock is released.
        guard.set_releases(false);
        let answer = request.call_async().await;
        guard.set_releases(true);
        Ok(Self::check(answer, guard)?.0)
    }

    /// Does what [`wait_for`](Self::wait_for) does, without blocking the thread while it waits for
    /// the server. If the future is dropped early, the lock is not held.
    pub async fn wait_for_async<G, F>(
        &self,
        mut guard: G,
        mut ready: impl FnMut() -> F,
    ) -> Result<G, ManagerError>
    where
        G: ConditionGuard<L>,
        F: Future<Output = Result<bool, ManagerError>>,
    {
        while !ready().await? {
            guard = self.wait_async(guard).await?;
        }
        Ok(guard)
    }

    /// Asks to wake up to `count` that wait.
    fn notifying(
        &self,
        guard: &impl ConditionGuard<L>,
        count: u64,
    ) -> Result<Request<'_>, ManagerError> {
        let request = self.reference.request(Operation::ConditionNotify);
        Ok(request.number(self.owner(guard)?).number(count))
    }

    calls! {
        /// Wakes up to `count` that wait, when the lock is free. Returns how many.
        fn notify / notify_async [G: ConditionGuard<L>](&self, guard: &G, count: usize) -> usize
        {
            self.notifying(guard, count as u64)?
                => |answer| Ok(answer.unless_refused(NOT_HELD)?.number() as usize)
        }

        /// Wakes one that waits. Returns whether there was one.
        fn notify_one / notify_one_async [G: ConditionGuard<L>](&self, guard: &G) -> bool
        {
            self.notifying(guard, 1)?
                => |answer| Ok(answer.unless_refused(NOT_HELD)?.number() == 1)
        }

        /// Wakes all that wait. Returns how many.
        fn notify_all / notify_all_async [G: ConditionGuard<L>](&self, guard: &G) -> usize
        {
            self.notifying(guard, u64::MAX)?
                => |answer| Ok(answer.unless_refused(NOT_HELD)?.number() as usize)
        }
    }
}
