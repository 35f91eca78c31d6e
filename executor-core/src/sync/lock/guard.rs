//! The guard of a lock.

use std::fmt;

use super::{COUNT, IN_DISORDER, Lock, check_mine};
use crate::{
    os::{
        liveness::{OwnerId, Owners},
        std_or_model::atomic::Ordering,
    },
    sync::guard::Recover,
};

/// Holds a [`Lock`] until it is dropped, on any thread.
#[must_use = "the lock is released when this is dropped"]
pub struct LockGuard<'a> {
    pub(super) lock: &'a Lock,
    pub(super) by: By,
}

/// The process that a guard belongs to, and the guard's flags.
///
/// They share one word: a guard is passed on three times before the caller has it, and reading a
/// word that was written to memory in smaller parts makes the processor wait each time.
#[derive(Clone, Copy)]
pub(super) struct By(u64);

impl By {
    /// The next holder must be told that a holder has died.
    pub(super) const DISORDER: u64 = 1 << 32;
    /// The guard counts as a level: the lock belongs to a value or an array, and did when it was
    /// acquired.
    pub(super) const COUNTED: u64 = 1 << 33;
    /// The level was added to one that already existed.
    pub(super) const DEEPER: u64 = 1 << 34;

    #[inline]
    pub(super) fn new(me: OwnerId, marks: u64) -> Self {
        By(u64::from(me.bits()) | marks)
    }

    #[inline]
    fn is(self, mark: u64) -> bool {
        self.0 & mark != 0
    }
}

impl<'a> LockGuard<'a> {
    /// Drops the guard, but leaves the lock locked until somebody [releases](Lock::release) it.
    /// Anyone with a handle may do that. The lock no longer belongs to this process, so the death
    /// of the process does not free it.
    ///
    /// If a thread has several guards of the lock of a value or an array, the last one decides.
    pub fn leave_locked(self) {
        if self.is_mine() {
            let layout = self.lock.layout();
            let last = !self.by.is(By::COUNTED)
                || layout.levels.fetch_sub(1, Ordering::AcqRel) & COUNT == 1;
            if last {
                layout.owner.store(0, Ordering::Relaxed);
                layout.mutex.leave();
            }
        }
        std::mem::forget(self);
    }

    #[inline]
    pub(crate) fn me(&self) -> OwnerId {
        OwnerId::from_bits(self.by.0 as u32).unwrap_or(OwnerId::NOBODY)
    }

    /// Whether this process holds the lock by this guard, and not one that it was forked from.
    #[inline]
    pub(crate) fn is_mine(&self) -> bool {
        self.lock.owners().is_me(self.me())
    }

    /// Whether dropping this guard frees the lock, because no other guard holds it.
    pub(crate) fn is_the_only_one(&self) -> bool {
        !self.by.is(By::COUNTED) || self.lock.layout().levels.load(Ordering::Relaxed) & COUNT == 1
    }

    /// Like [`Held::is_shared`](super::Held::is_shared), for a guard that was just acquired.
    #[inline]
    pub(crate) fn is_deeper(&self) -> bool {
        self.by.is(By::DEEPER)
    }

    pub(crate) fn lock(&self) -> &'a Lock {
        self.lock
    }

    /// Panics in a forked process, where the lock is held by the parent.
    #[inline]
    #[track_caller]
    pub(crate) fn check_mine(&self) {
        check_mine(self.is_mine());
    }
}

impl Recover for LockGuard<'_> {
    fn recover(&mut self) {
        self.by.0 &= !By::DISORDER;
        // In a forked process it is the parent's.
        if self.by.is(By::COUNTED) && self.is_mine() {
            self.lock.layout().levels.fetch_and(!IN_DISORDER, Ordering::Relaxed);
        }
    }
}

impl Drop for LockGuard<'_> {
    #[inline]
    fn drop(&mut self) {
        // In a forked process it is the parent's.
        if self.is_mine() {
            let user = self.lock.user();
            match self.by.is(By::COUNTED) {
                true => user.end_level(),
                false if self.by.is(By::DISORDER) => user.layout.mutex.abandon(),
                false => user.layout.mutex.release(),
            }
        }
    }
}

impl fmt::Debug for LockGuard<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LockGuard")
    }
}
