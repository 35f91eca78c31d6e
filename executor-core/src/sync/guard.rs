//! What comes back from acquiring: a guard, or a guard and the news that the holder before it has died.

use std::{error, fmt};

/// A guard; or a guard of something whose last holder has died while it held it.
///
/// `unwrap()` it where a death in there leaves nothing in disorder that matters, or where it should end the task.
pub type LockResult<G> = Result<G, OwnerDied<G>>;

/// The process that held the lock has died, or has not put in order what an earlier one left behind. The lock is yours.
///
/// What it protects is as the dead left it, perhaps in the middle of a change. [`into_guard`](Self::into_guard) says that
/// you have looked, and from then on it is a lock as any other. If this is dropped instead (`acquire().unwrap()`, which
/// panics), the lock is released, and the next one is told the same.
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

/// A guard that knows whether what it guards may be in disorder.
pub(crate) trait Recover {
    fn recover(&mut self);
}

impl<G> OwnerDied<G> {
    pub(crate) fn new(guard: G) -> Self {
        OwnerDied { guard }
    }

    /// What is guarded, as it is.
    pub(crate) fn peek(&self) -> &G {
        &self.guard
    }

    /// Another guard around that one.
    pub(crate) fn map<H>(self, wrap: impl FnOnce(G) -> H) -> OwnerDied<H> {
        OwnerDied { guard: wrap(self.guard) }
    }
}

#[allow(private_bounds, reason = "the guards of this crate only")]
impl<G: Recover> OwnerDied<G> {
    /// The guard: what it guards is in order.
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
        f.write_str("the process that held the lock has died, and what it protects may be half changed")
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
