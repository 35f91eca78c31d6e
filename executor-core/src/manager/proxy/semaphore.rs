//! Semaphores that processes share.

use std::{
    fmt,
    ops::Deref,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{GRACE_OF_TAKES, calls, creations, handle};
use crate::{
    manager::{
        ManagerError,
        client::{Reference, Session},
        protocol::{Kind, Operation, Status},
    },
    os::fork::Creator,
};

handle! {
    /// A number of permits that processes share. It corresponds to `manager.Semaphore()`.
    ///
    /// [`Manager::semaphore`] makes it. [`Semaphore`](crate::Semaphore) at the root of the crate
    /// does the same without a server. The permits of a process that dies come back.
    ///
    /// ```
    /// use executor::manager::Manager;
    ///
    /// #[executor::main]
    /// fn main() -> Result<(), Box<dyn std::error::Error>> {
    ///     let manager = Manager::start()?;
    ///     let doors = manager.semaphore(1)?;
    ///     let permit = doors.acquire()?;
    ///     assert!(doors.try_acquire()?.is_none());
    ///     drop(permit);
    ///     assert_eq!(doors.value()?, 1);
    ///     Ok(())
    /// }
    /// ```
    ///
    /// [`Manager::semaphore`]: crate::manager::Manager::semaphore
    Semaphore
}

handle! {
    /// A [`Semaphore`] that never has more permits than at first. It corresponds to
    /// `manager.BoundedSemaphore()`.
    BoundedSemaphore
}

creations! {
    /// Creates a semaphore with this number of permits.
    fn semaphore / semaphore_async [](&self, permits: u32) -> Semaphore
    { self.creation(Kind::Semaphore).number(u64::from(permits)).flag(false) }

    /// Creates a semaphore that never has more permits than these.
    fn bounded_semaphore / bounded_semaphore_async [](&self, permits: u32) -> BoundedSemaphore
    { self.creation(Kind::Semaphore).number(u64::from(permits)).flag(true) }
}

/// A permit that is taken. `R` is the reference through which it is given back.
struct Taken<R: Deref<Target = Reference>> {
    semaphore: R,
    kept: bool,
    /// After the end of this connection, the server has the permit.
    session: Session,
    /// A fork of this process has a copy of the permit, and must not give it back.
    creator: Creator,
}

impl<R: Deref<Target = Reference>> Taken<R> {
    fn new(semaphore: R, session: Session) -> Self {
        Taken { semaphore, kept: false, session, creator: Creator::here() }
    }

    fn acquire(
        semaphore: R,
        waits: bool,
        deadline: Option<Instant>,
    ) -> Result<Option<Self>, ManagerError> {
        let request = semaphore.request(Operation::SemaphoreAcquire).flag(waits);
        match request.call_then_give_up(deadline, Some(GRACE_OF_TAKES)) {
            Err(ManagerError::TimedOut) => Ok(None),
            Err(error) => Err(error),
            Ok(answer) if matches!(answer.status(), Status::NotNow | Status::GivenUp) => Ok(None),
            Ok(answer) => {
                let session = answer.session();
                Ok(Some(Taken::new(semaphore, session)))
            }
        }
    }

    async fn acquire_async(semaphore: R) -> Result<Self, ManagerError> {
        let request = semaphore.request(Operation::SemaphoreAcquire).flag(true);
        let session = request.call_async().await?.session();
        Ok(Taken::new(semaphore, session))
    }
}

impl<R: Deref<Target = Reference>> Drop for Taken<R> {
    fn drop(&mut self) {
        let elsewhere = self.creator.is_elsewhere();
        if !self.kept && !elsewhere && !self.semaphore.was_lost_in(&self.session) {
            self.semaphore.request(Operation::SemaphoreRelease).number(1).tell();
        }
    }
}

/// A permit of a semaphore. It comes back when it is dropped.
#[must_use = "the permit comes back when it is dropped"]
pub struct Permit<'a>(Taken<&'a Reference>);

/// A permit of a semaphore. It has a handle of its own, and so can be kept in a structure or a
/// future that is spawned. [`Semaphore::acquire_owned`] returns it.
#[must_use = "the permit comes back when it is dropped"]
pub struct OwnedPermit(Taken<Arc<Reference>>);

impl Permit<'_> {
    /// Does not give the permit back. [`Semaphore::release`] does, also in another process. Only if
    /// this process dies does it come back by itself.
    pub fn forget(mut self) {
        self.0.kept = true;
    }
}

impl OwnedPermit {
    /// Does not give the permit back. See [`Permit::forget`].
    pub fn forget(mut self) {
        self.0.kept = true;
    }
}

impl fmt::Debug for Permit<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Permit").finish_non_exhaustive()
    }
}

impl fmt::Debug for OwnedPermit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OwnedPermit").finish_non_exhaustive()
    }
}

macro_rules! semaphores {
    ($($semaphore:ident),*) => {$(
        impl $semaphore {
            calls! {
                /// Returns how many permits are left.
                fn value / value_async [](&self) -> u64
                { self.reference.request(Operation::SemaphoreValue) => |answer| Ok(answer.number()) }

                /// Gives back several permits, or adds them.
                ///
                /// # Errors
                /// [`ManagerError::Refused`] if a [`BoundedSemaphore`] would have more than at
                /// first. Then nothing is changed.
                fn release_many / release_many_async [](&self, permits: u32) -> ()
                {
                    self.reference.request(Operation::SemaphoreRelease).number(u64::from(permits))
                        => |answer| answer
                            .unless_refused("the semaphore would have more permits than at first")
                            .map(drop)
                }
            }

            /// Waits for a permit. Those that wait get one in the order in which they came.
            pub fn acquire(&self) -> Result<Permit<'_>, ManagerError> {
                // A call without a deadline that waits always gets a permit, or an error.
                let taken = Taken::acquire(&*self.reference, true, None)?;
                taken.map(Permit).ok_or(ManagerError::TimedOut)
            }

            /// Takes a permit if there is one now.
            pub fn try_acquire(&self) -> Result<Option<Permit<'_>>, ManagerError> {
                Ok(Taken::acquire(&*self.reference, false, None)?.map(Permit))
            }

            /// Waits for a permit, at most for `timeout`.
            pub fn acquire_timeout(
                &self,
                timeout: Duration,
            ) -> Result<Option<Permit<'_>>, ManagerError> {
                let deadline = Instant::now().checked_add(timeout);
                Ok(Taken::acquire(&*self.reference, true, deadline)?.map(Permit))
            }

            /// Waits for a permit without blocking the thread. If the future is dropped early, no
            /// permit is taken.
            pub async fn acquire_async(&self) -> Result<Permit<'_>, ManagerError> {
                Taken::acquire_async(&*self.reference).await.map(Permit)
            }

            /// Waits for a permit as [`acquire`](Self::acquire) does. The permit has a handle of
            /// its own, so it may outlive this one.
            pub fn acquire_owned(&self) -> Result<OwnedPermit, ManagerError> {
                let taken = Taken::acquire(Arc::clone(&self.reference), true, None)?;
                taken.map(OwnedPermit).ok_or(ManagerError::TimedOut)
            }

            /// Takes a permit as [`try_acquire`](Self::try_acquire) does. See
            /// [`acquire_owned`](Self::acquire_owned).
            pub fn try_acquire_owned(&self) -> Result<Option<OwnedPermit>, ManagerError> {
                Ok(Taken::acquire(Arc::clone(&self.reference), false, None)?.map(OwnedPermit))
            }

            /// Waits for a permit as [`acquire_timeout`](Self::acquire_timeout) does. See
            /// [`acquire_owned`](Self::acquire_owned).
            pub fn acquire_owned_timeout(
                &self,
                timeout: Duration,
            ) -> Result<Option<OwnedPermit>, ManagerError> {
                let deadline = Instant::now().checked_add(timeout);
                let taken = Taken::acquire(Arc::clone(&self.reference), true, deadline)?;
                Ok(taken.map(OwnedPermit))
            }

            /// Waits for a permit as [`acquire_async`](Self::acquire_async) does. See
            /// [`acquire_owned`](Self::acquire_owned).
            pub async fn acquire_owned_async(&self) -> Result<OwnedPermit, ManagerError> {
                Taken::acquire_async(Arc::clone(&self.reference)).await.map(OwnedPermit)
            }

            /// Gives back a permit, or adds one. See [`release_many`](Self::release_many).
            pub fn release(&self) -> Result<(), ManagerError> {
                self.release_many(1)
            }

            /// Does what [`release`](Self::release) does, without blocking the thread.
            pub async fn release_async(&self) -> Result<(), ManagerError> {
                self.release_many_async(1).await
            }
        }
    )*};
}

semaphores!(Semaphore, BoundedSemaphore);
