//! A condition that processes wait for.

use std::time::{Duration, Instant};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{
    create,
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
        let request = self.creation(Kind::Condition).number(lock.reference().object().0);
        Ok(Condition { reference: std::sync::Arc::new(create(request)?), lock })
    }
}

const NOT_HELD: &str = "the lock of the condition is not held by this guard any more";

impl Condition {
    /// Returns the lock.
    pub fn get_lock(&self) -> &Lock {
        &self.lock
    }

    /// Acquires the lock.
    pub fn acquire(&self) -> Result<LockGuard<'_>, ManagerError> {
        self.lock.acquire()
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
        let request = self.waiting(&guard);
        // From now on the call owns the lock: if it is abandoned, the lock is released.
        let parts = guard.into_parts();
        let answer = request.call_async().await;
        Ok(Self::check(answer, LockGuard::from_parts(parts))?.0)
    }

    fn notify_many(&self, guard: &LockGuard<'_>, count: u64) -> Result<usize, ManagerError> {
        let request = self.reference.request(Operation::ConditionNotify);
        let answer = request.number(guard.owner()).number(count).call()?;
        Ok(answer.unless_refused(NOT_HELD)?.number() as usize)
    }

    /// Wakes up to `count` that wait, when the lock is free. Returns how many.
    pub fn notify(&self, guard: &LockGuard<'_>, count: usize) -> Result<usize, ManagerError> {
        self.notify_many(guard, count as u64)
    }

    /// Wakes one that waits. Returns whether there was one.
    pub fn notify_one(&self, guard: &LockGuard<'_>) -> Result<bool, ManagerError> {
        Ok(self.notify_many(guard, 1)? == 1)
    }

    /// Wakes all that wait. Returns how many.
    pub fn notify_all(&self, guard: &LockGuard<'_>) -> Result<usize, ManagerError> {
        self.notify_many(guard, u64::MAX)
    }
}
