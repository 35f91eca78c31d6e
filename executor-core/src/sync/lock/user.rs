//! This process as a user of a lock: how it becomes the holder, and the levels of a re-entrant
//! lock.
//!
//! ```text
//!  owner    the process that has the levels; 0: none
//!  levels   holder ┊ IN_DISORDER ┊ number of guards
//! ```
//!
//! The holder of the mutex begins the first level. Only the thread or task that has a level may add
//! one. Any thread may end one, and ending the last one releases the mutex.

use super::{
    COUNT, GIVEN, HOLDER_SHIFT, IN_DISORDER, Lock, LockLayout, PLAIN,
    guard::{By, LockGuard},
    held::{Call, How},
    holder,
};
use crate::{
    os::{fork::Creator, liveness::OwnerId, local, std_or_model::atomic::Ordering},
    sync::{
        guard::{LockResult, OwnerDied},
        raw::{Deadline, Locked},
    },
};

/// A lock, and this process as its user: everything that a guard needs. It is looked up once,
/// before the lock is acquired. After an atomic exchange, all of it would have to be read again,
/// one pointer after the other.
#[derive(Clone, Copy)]
pub(super) struct User<'a> {
    pub(super) lock: &'a Lock,
    pub(super) layout: &'a LockLayout,
    pub(super) me: OwnerId,
    pub(super) creator: Creator,
}

impl<'a> User<'a> {
    /// Whether this is the process that acquired the lock, and not one forked from it.
    #[inline]
    pub(super) fn is_here(self) -> bool {
        !self.creator.is_elsewhere()
    }

    #[cold]
    pub(super) fn acquire_slowly(
        self,
        deadline: Deadline,
        sort: u32,
    ) -> Option<LockResult<LockGuard<'a>>> {
        if let Some(guard) = self.deeper(sort) {
            return Some(Ok(guard));
        }
        let locked = self.layout.mutex.acquire(self.lock.owners(), self.me, deadline)?;
        Some(self.guard(locked))
    }

    #[inline]
    pub(super) fn guard(self, locked: Locked) -> LockResult<LockGuard<'a>> {
        self.guard_of(locked, holder::this)
    }

    pub(super) fn guard_of(
        self,
        locked: Locked,
        holder: impl FnOnce() -> u64,
    ) -> LockResult<LockGuard<'a>> {
        self.layout.thread.store(local::this_thread(), Ordering::Relaxed);
        let in_disorder = locked == Locked::OwnerDied;
        let counted = self.layout.sort.load(Ordering::Relaxed) != PLAIN;
        if counted {
            self.begin_levels(holder(), in_disorder);
        }
        let counted = if counted { By::COUNTED } else { 0 };
        let disorder = if in_disorder { By::DISORDER } else { 0 };
        let guard = LockGuard { lock: self.lock, by: By::new(self.me, counted | disorder) };
        if in_disorder { Err(OwnerDied::new(guard)) } else { Ok(guard) }
    }

    /// Returns a guard of a lock that was free.
    #[inline]
    pub(super) fn clean_guard(self) -> LockGuard<'a> {
        let counted = self.layout.sort.load(Ordering::Relaxed) != PLAIN;
        match counted {
            true => self.begin_levels_of_this(),
            false => self.layout.thread.store(local::this_thread(), Ordering::Relaxed),
        }
        LockGuard { lock: self.lock, by: By::new(self.me, if counted { By::COUNTED } else { 0 }) }
    }

    /// Begins the first level, for this thread or task.
    #[inline(never)]
    fn begin_levels_of_this(self) {
        self.layout.thread.store(local::this_thread(), Ordering::Relaxed);
        self.begin_levels(holder::this(), false);
    }

    /// Begins the first level. The mutex was just acquired.
    #[inline]
    pub(super) fn begin_levels(self, holder: u64, in_disorder: bool) {
        let User { layout, me, .. } = self;
        let disorder = if in_disorder { IN_DISORDER } else { 0 };
        // Before the owner: see `levels`.
        layout
            .levels
            .store(holder::salted(holder, me) << HOLDER_SHIFT | disorder | 1, Ordering::Relaxed);
        layout.owner.store(me.bits(), Ordering::Release);
        kill_point!(LevelsWritten);
    }

    /// Returns the levels word if this process has levels now.
    fn levels(self) -> Option<u64> {
        let User { layout, me, .. } = self;
        // Acquire: pairs with the store in `begin_levels`. The levels that are read next are those
        // of this process, or newer ones.
        let mine = layout.owner.load(Ordering::Acquire) == me.bits();
        let levels = layout.levels.load(Ordering::Relaxed);
        (mine && levels & COUNT > 0).then_some(levels)
    }

    /// Adds a level if this thread or task already has one, and the lock's sort is `sort` or
    /// higher.
    ///
    /// # Panics
    /// If the holder is a task of a runtime other than tokio that was on this thread. The caller
    /// may be that task, which would wait for itself.
    #[cold]
    pub(super) fn go_deeper(self, sort: u32) -> bool {
        if self.layout.sort.load(Ordering::Relaxed) < sort {
            return false;
        }
        Call::record(&self);
        while let Some(levels) = self.levels() {
            // Salting twice gives the original holder.
            match holder::is_this(holder::salted(levels >> HOLDER_SHIFT, self.me)) {
                holder::Is::Another => return false,
                holder::Is::Me => {}
                holder::Is::Unknown => panic!(
                    "an async task holds the lock which was on this thread, and to wait for it here would block that: \
                     use `acquire_async`"
                ),
            }
            assert!(levels & COUNT < COUNT, "more levels of a lock than can be counted");
            // The count is below its maximum, so this does not carry into the bits above it.
            let more = levels.wrapping_add(1);
            let word = &self.layout.levels;
            if word.compare_exchange(levels, more, Ordering::Acquire, Ordering::Relaxed).is_ok() {
                return true;
            }
        }
        false
    }

    /// Like [`go_deeper`](Self::go_deeper), but returns a guard of the new level.
    pub(super) fn deeper(self, sort: u32) -> Option<LockGuard<'a>> {
        let by = By::new(self.me, By::COUNTED | By::DEEPER);
        // Create the guard only in that case, because dropping one ends a level.
        if self.go_deeper(sort) { Some(LockGuard { lock: self.lock, by }) } else { None }
    }

    /// Ends a level of this process. Ending the last one releases the lock.
    #[inline]
    pub(super) fn end_level(self) {
        let User { layout, me, .. } = self;
        // Acquire: what other threads did in levels that they have ended happens before the
        // release.
        let levels = layout.levels.load(Ordering::Acquire);
        let mine = holder::salted(u64::from(local::this_thread()), me);
        if levels >> HOLDER_SHIFT == mine && levels & (COUNT | IN_DISORDER) == 1 {
            // This is the only guard, and only this thread could add a level. So the word cannot
            // change between the load and the release.
            layout.owner.store(0, Ordering::Relaxed);
            return layout.mutex.release();
        }
        self.end_one_of_several();
    }

    #[cold]
    pub(super) fn end_one_of_several(self) {
        let layout = self.layout;
        // Release: what this thread did in its level happens before the lock is released. Acquire:
        // the same for what other threads did, if this call releases the lock.
        let before = layout.levels.fetch_sub(1, Ordering::AcqRel);
        // This was the last level. There is no other guard, and a level can be added only while
        // there is one.
        if before & COUNT == 1 {
            layout.owner.store(0, Ordering::Relaxed);
            if before & IN_DISORDER != 0 { layout.mutex.abandon() } else { layout.mutex.release() }
        }
    }

    /// Ends the level of a call, on the thread of that call.
    #[inline]
    pub(super) fn end_call(self) {
        let layout = self.layout;
        // Acquire: what another thread did in a level that it has ended happens before the release.
        let levels = layout.levels.load(Ordering::Acquire);
        if levels & (COUNT | IN_DISORDER) != 1 {
            return self.end_call_and_keep();
        }
        // Nobody else has a level, and only this thread could add one.
        layout.owner.store(0, Ordering::Relaxed);
        layout.mutex.release();
    }

    /// Like [`end_call`](Self::end_call), for when a guard was created within the call and kept.
    /// From now on it belongs to this thread or task, as if it had been created outside the call.
    /// Otherwise it would count as held by whatever else runs on this thread.
    #[cold]
    fn end_call_and_keep(self) {
        let User { layout, me, .. } = self;
        let holder = holder::salted(holder::this(), me) << HOLDER_SHIFT;
        let mut levels = layout.levels.load(Ordering::Acquire);
        // While there is another guard, end this call's level and pass the rest to this thread or
        // task.
        while levels & COUNT > 1 {
            let rest = holder | (levels & (IN_DISORDER | COUNT)).wrapping_sub(1);
            match layout.levels.compare_exchange(levels, rest, Ordering::AcqRel, Ordering::Acquire)
            {
                Ok(_) => return,
                Err(now) => levels = now,
            }
        }
        // The other guard was dropped in the meantime, on another thread.
        self.end_one_of_several();
    }

    #[cold]
    pub(super) fn hold_slowly(self) -> How<'a> {
        if self.go_deeper(GIVEN) {
            return How::Deeper;
        }
        loop {
            match self.layout.mutex.acquire(self.lock.owners(), self.me, None) {
                Some(Locked::Clean) => return How::Plainly,
                Some(Locked::OwnerDied) => return How::AfterDeath,
                None => {}
            }
        }
    }
}
