//! Semaphores that processes share.

use std::{
    fmt,
    time::{Duration, Instant},
};

use super::{GRACE_OF_TAKES, calls, create, handle};
use crate::{
    manager::{
        Manager, ManagerError,
        client::{Answer, Reference, Session},
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
    Semaphore
}

handle! {
    /// A [`Semaphore`] that never has more permits than at first. It corresponds to
    /// `manager.BoundedSemaphore()`.
    BoundedSemaphore
}

impl Manager {
    /// Creates a semaphore with this number of permits.
    pub fn semaphore(&self, permits: u32) -> Result<Semaphore, ManagerError> {
        let request = self.creation(Kind::Semaphore).number(u64::from(permits)).flag(false);
        Ok(Semaphore::of(create(request)?))
    }

    /// Creates a semaphore that never has more permits than these.
    pub fn bounded_semaphore(&self, permits: u32) -> Result<BoundedSemaphore, ManagerError> {
        let request = self.creation(Kind::Semaphore).number(u64::from(permits)).flag(true);
        Ok(BoundedSemaphore::of(create(request)?))
    }
}

/// A permit of a semaphore. It comes back when it is dropped.
#[must_use = "the permit comes back when it is dropped"]
pub struct Permit<'a> {
    semaphore: &'a Reference,
    kept: bool,
    /// After the end of this connection, the server has the permit.
    session: Session,
    /// A fork of this process has a copy of the permit, and must not give it back.
    creator: Creator,
}

impl Permit<'_> {
    /// Does not give the permit back. [`Semaphore::release`] does, also in another process. Only if
    /// this process dies does it come back by itself.
    pub fn forget(mut self) {
        self.kept = true;
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        let elsewhere = self.creator.is_elsewhere();
        if !self.kept && !elsewhere && !self.semaphore.was_lost_in(&self.session) {
            self.semaphore.request(Operation::SemaphoreRelease).number(1).tell();
        }
    }
}

impl fmt::Debug for Permit<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Permit").finish_non_exhaustive()
    }
}

fn permit<'a>(semaphore: &'a Reference, answer: &Answer) -> Permit<'a> {
    Permit { semaphore, kept: false, session: answer.session(), creator: Creator::here() }
}

fn acquire(
    semaphore: &Reference,
    waits: bool,
    deadline: Option<Instant>,
) -> Result<Option<Permit<'_>>, ManagerError> {
    let request = semaphore.request(Operation::SemaphoreAcquire).flag(waits);
    match request.call_then_give_up(deadline, Some(GRACE_OF_TAKES)) {
        Err(ManagerError::TimedOut) => Ok(None),
        Err(error) => Err(error),
        Ok(answer) if matches!(answer.status(), Status::NotNow | Status::GivenUp) => Ok(None),
        Ok(answer) => Ok(Some(permit(semaphore, &answer))),
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
                acquire(&self.reference, true, None)?.ok_or(ManagerError::TimedOut)
            }

            /// Takes a permit if there is one now.
            pub fn try_acquire(&self) -> Result<Option<Permit<'_>>, ManagerError> {
                acquire(&self.reference, false, None)
            }

            /// Waits for a permit, at most for `timeout`.
            pub fn acquire_timeout(
                &self,
                timeout: Duration,
            ) -> Result<Option<Permit<'_>>, ManagerError> {
                acquire(&self.reference, true, Instant::now().checked_add(timeout))
            }

            /// Waits for a permit without blocking the thread. If the future is dropped early, no
            /// permit is taken.
            pub async fn acquire_async(&self) -> Result<Permit<'_>, ManagerError> {
                let request = self.reference.request(Operation::SemaphoreAcquire).flag(true);
                Ok(permit(&self.reference, &request.call_async().await?))
            }

            /// Gives back a permit, or adds one. See [`release_many`](Self::release_many).
            pub fn release(&self) -> Result<(), ManagerError> {
                self.release_many(1)
            }
        }
    )*};
}

semaphores!(Semaphore, BoundedSemaphore);
