//! A condition that processes wait for.

use std::time::{Duration, Instant};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{
    calls,
    lock::{Lock, LockGuard},
};
use crate::manager::{
    Manager, ManagerError,
    client::{Answer, Reference, Request},
    protocol::{Kind, Operation, Status},
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
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Condition {
    reference: std::sync::Arc<Reference>,
    lock: Lock,
}

impl Serialize for Condition {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (&*self.reference, &self.lock).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Condition {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (reference, lock) = <(Reference, Lock)>::deserialize(deserializer)?;
        Ok(Condition { reference: std::sync::Arc::new(reference), lock })
    }
}

impl Manager {
    /// Creates a condition with a lock of its own.
    pub fn condition(&self) -> Result<Condition, ManagerError> {
        self.condition_with_lock(self.lock()?)
    }

    /// Creates a condition that uses this lock, which may be that of other conditions.
    pub fn condition_with_lock(&self, lock: Lock) -> Result<Condition, ManagerError> {
        let answer = self.conditional(&lock).call()?;
        Ok(Condition::of(Reference::created(&answer), lock))
    }

    /// Does what [`condition`](Self::condition) does, without blocking the thread.
    pub async fn condition_async(&self) -> Result<Condition, ManagerError> {
        self.condition_with_lock_async(self.lock_async().await?).await
    }

    /// Does what [`condition_with_lock`](Self::condition_with_lock) does, without blocking the
    /// thread.
    pub async fn condition_with_lock_async(&self, lock: Lock) -> Result<Condition, ManagerError> {
        let reference = {
            let answer = self.conditional(&lock).call_async().await?;
            Reference::created(&answer)
        };
        Ok(Condition::of(reference, lock))
    }

    /// Asks for a condition of a lock.
    fn conditional(&self, lock: &Lock) -> Request<'_> {
        self.creation(Kind::Condition).number(lock.reference().object().0)
    }
}

const NOT_HELD: &str = "the lock of the condition is not held by this guard any more";

impl Condition {
    fn of(reference: Reference, lock: Lock) -> Self {
        Condition { reference: std::sync::Arc::new(reference), lock }
    }

    /// Returns the lock.
    pub fn get_lock(&self) -> &Lock {
        &self.lock
    }

    /// Acquires the lock.
    pub fn acquire(&self) -> Result<LockGuard<'_>, ManagerError> {
        self.lock.acquire()
    }

    /// Acquires the lock without blocking the thread.
    pub async fn acquire_async(&self) -> Result<LockGuard<'_>, ManagerError> {
        self.lock.acquire_async().await
    }

    fn waiting<'a>(&'a self, guard: &LockGuard<'_>) -> Request<'a> {
        let owner = guard.owner();
        let request = self.reference.request(Operation::ConditionWait).number(owner);
        request.takes_lock(owner, self.lock.reference().object())
    }

    fn check<'a>(
        answer: Result<Answer, ManagerError>,
        mut guard: LockGuard<'a>,
    ) -> Result<(LockGuard<'a>, bool), ManagerError> {
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
    pub fn wait<'a>(&self, guard: LockGuard<'a>) -> Result<LockGuard<'a>, ManagerError> {
        let answer = self.waiting(&guard).call();
        Ok(Self::check(answer, guard)?.0)
    }

    /// Waits as [`wait`](Self::wait) does, at most for `timeout`. Also returns whether it was
    /// notified in time. To acquire the lock again may take longer.
    pub fn wait_timeout<'a>(
        &self,
        guard: LockGuard<'a>,
        timeout: Duration,
    ) -> Result<(LockGuard<'a>, bool), ManagerError> {
        let deadline = Instant::now().checked_add(timeout);
        let answer = self.waiting(&guard).call_then_give_up(deadline, None);
        Self::check(answer, guard)
    }

    /// Waits until `ready` returns `true`. It is called while the lock is held.
    pub fn wait_for<'a>(
        &self,
        mut guard: LockGuard<'a>,
        mut ready: impl FnMut() -> Result<bool, ManagerError>,
    ) -> Result<LockGuard<'a>, ManagerError> {
        while !ready()? {
            guard = self.wait(guard)?;
        }
        Ok(guard)
    }

    /// Waits as [`wait`](Self::wait) does, without blocking the thread. If the future is dropped
    /// early, the lock is not held.
    pub async fn wait_async<'a>(
        &self,
        guard: LockGuard<'a>,
    ) -> Result<LockGuard<'a>, ManagerError> {
        // The first call of a handle may wait before it is made. Until then the guard has the lock.
        self.reference.ready_async().await?;
        let request = self.waiting(&guard);
        // From now on the call owns the lock: if it is abandoned, the lock is released.
        let parts = guard.into_parts();
        let answer = request.call_async().await;
        Ok(Self::check(answer, LockGuard::from_parts(parts))?.0)
    }

    /// Does what [`wait_for`](Self::wait_for) does, without blocking the thread while it waits for
    /// the server. If the future is dropped early, the lock is not held.
    pub async fn wait_for_async<'a, F>(
        &self,
        mut guard: LockGuard<'a>,
        mut ready: impl FnMut() -> F,
    ) -> Result<LockGuard<'a>, ManagerError>
    where
        F: Future<Output = Result<bool, ManagerError>>,
    {
        while !ready().await? {
            guard = self.wait_async(guard).await?;
        }
        Ok(guard)
    }

    /// Asks to wake up to `count` that wait.
    fn notifying(&self, guard: &LockGuard<'_>, count: u64) -> Request<'_> {
        let request = self.reference.request(Operation::ConditionNotify);
        request.number(guard.owner()).number(count)
    }

    calls! {
        /// Wakes up to `count` that wait, when the lock is free. Returns how many.
        fn notify / notify_async [](&self, guard: &LockGuard<'_>, count: usize) -> usize
        {
            self.notifying(guard, count as u64)
                => |answer| Ok(answer.unless_refused(NOT_HELD)?.number() as usize)
        }

        /// Wakes one that waits. Returns whether there was one.
        fn notify_one / notify_one_async [](&self, guard: &LockGuard<'_>) -> bool
        {
            self.notifying(guard, 1)
                => |answer| Ok(answer.unless_refused(NOT_HELD)?.number() == 1)
        }

        /// Wakes all that wait. Returns how many.
        fn notify_all / notify_all_async [](&self, guard: &LockGuard<'_>) -> usize
        {
            self.notifying(guard, u64::MAX)
                => |answer| Ok(answer.unless_refused(NOT_HELD)?.number() as usize)
        }
    }
}
