//! The result of an acquisition: a guard, or a guard together with the news that the previous
//! holder has died.

use std::{error, fmt};

/// A guard, or an error that contains the guard if the previous holder died while it held the lock.
///
/// Call `unwrap()` where a death cannot leave anything that matters half changed, or where it
/// should end the task.
pub type LockResult<G> = Result<G, OwnerDied<G>>;

/// The process that held the lock has died, or it did not repair what an earlier death left behind.
/// The caller holds the lock now.
///
/// What the lock protects is as the dead process left it, perhaps in the middle of a change.
/// [`into_guard`](Self::into_guard) states that you have checked it, and from then on the lock is
/// an ordinary one. If this error is dropped instead (`acquire().unwrap()`, which panics), the lock
/// is released, and the next holder gets the same error.
///
/// ```
/// use executor::{Lock, OwnerDied};
///
/// # fn main() -> std::io::Result<()> {
/// let lock = Lock::new()?;
/// let guard = lock.acquire().unwrap_or_else(|died: OwnerDied<_>| {
///     // … bring into order what the lock protects …
///     died.into_guard()
/// });
/// # drop(guard);
/// # Ok(())
/// # }
/// ```
pub struct OwnerDied<G> {
    guard: G,
}

/// A guard that records whether what it protects may be half changed.
pub(crate) trait Recover {
    fn recover(&mut self);
}

impl<G> OwnerDied<G> {
    pub(crate) fn new(guard: G) -> Self {
        OwnerDied { guard }
    }

    /// Returns the guard without declaring that what it protects is in order.
    pub(crate) fn peek(&self) -> &G {
        &self.guard
    }

    /// Wraps the guard in another one.
    pub(crate) fn map<H>(self, wrap: impl FnOnce(G) -> H) -> OwnerDied<H> {
        OwnerDied { guard: wrap(self.guard) }
    }
}

#[allow(private_bounds, reason = "the guards of this crate only")]
impl<G: Recover> OwnerDied<G> {
    /// Returns the guard, and declares that what it protects is in order.
    pub fn into_guard(mut self) -> G {
        self.guard.recover();
        self.guard
    }
}

impl<G: Recover> Recover for (G, bool) {
    fn recover(&mut self) {
        self.0.recover();
    }
}

impl<G> fmt::Display for OwnerDied<G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "the process that held the lock has died, and what it protects may be half changed",
        )
    }
}

impl<G> error::Error for OwnerDied<G> {}

crate::debug::debug_is_display!([G] OwnerDied<G>);
crate::debug::debug_is_display!(ReleaseError);

/// Why something could not be released.
#[derive(Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReleaseError {
    /// Nobody holds it.
    NotLocked,
    /// A guard holds it, and will release it itself.
    Guarded,
    /// A [`BoundedSemaphore`](crate::BoundedSemaphore) has all its permits already.
    AboveBound,
}

impl fmt::Display for ReleaseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ReleaseError::NotLocked => "it is not locked",
            ReleaseError::Guarded => "a guard holds it, and only that releases it",
            ReleaseError::AboveBound => "it would have more permits than it was made with",
        })
    }
}

impl error::Error for ReleaseError {}
