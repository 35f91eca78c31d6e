//! Holding a lock for the duration of one call, without a guard.

use std::{cell::Cell, ptr::NonNull};

use super::{COUNT, LockLayout, check_mine, holder, user::User};
use crate::os::{liveness::OwnerId, local, std_or_model::atomic::Ordering};

/// Holds a lock for the duration of a call.
///
/// It is dropped, never forgotten: see [`Call`].
pub(crate) struct Held<'a> {
    pub(super) user: User<'a>,
    pub(super) how: How<'a>,
}

impl Held<'_> {
    /// Like [`LockGuard::check_mine`](super::LockGuard::check_mine).
    #[inline]
    #[track_caller]
    pub(crate) fn check_mine(&self) {
        check_mine(self.user.is_here());
    }

    /// Whether other guards of this thread or task may hold the lock, too. If not, there are no
    /// references into what it protects, because every owner of such a reference holds the lock.
    #[inline]
    pub(crate) fn is_shared(&self) -> bool {
        match self.how {
            How::Plainly | How::AfterDeath => false,
            How::Calling(call) if !call.recorded.get() => false,
            // The call may have created a guard and kept it. Acquire: what was done through guards
            // that have been dropped happens before this.
            How::Calling(_) | How::Counted => {
                self.user.layout.levels.load(Ordering::Acquire) & COUNT != 1
            }
            How::Deeper => true,
        }
    }
}

/// How a call holds a lock.
#[derive(Clone, Copy)]
pub(super) enum How<'a> {
    /// Without a record of the holder.
    Plainly,
    /// With a record that only this thread sees, until somebody needs the other one.
    Calling(&'a Call),
    /// The same, after the previous holder died. Releasing reports the death to the next holder.
    AfterDeath,
    /// As one level.
    Counted,
    /// As one level more than this thread or task already had.
    Deeper,
}

impl Drop for Held<'_> {
    #[inline]
    fn drop(&mut self) {
        if let How::Calling(call) = self.how {
            call.end();
        }
        // In a forked process it is the parent's.
        if !self.user.is_here() {
            return;
        }
        match self.how {
            How::Calling(call) if call.recorded.get() => self.user.end_call(),
            How::Plainly | How::Calling(_) => self.user.layout.mutex.release(),
            How::AfterDeath => self.user.layout.mutex.abandon(),
            How::Counted => self.user.end_call(),
            How::Deeper => self.user.end_one_of_several(),
        }
    }
}

/// A call that holds a lock while it runs user code.
///
/// User code may use what the lock protects, so the holder has to be known. Most calls change a
/// number and use nothing, and the stores of a record in shared memory took a third of their time.
/// So a call is only put into a list of this thread. Whoever then finds the lock taken
/// ([`User::go_deeper`]) looks there, and makes the record in shared memory if it is this thread's.
#[derive(Default)]
pub(crate) struct Call {
    /// The lock's words; none before the lock is held.
    layout: Cell<Option<NonNull<LockLayout>>>,
    me: Cell<Option<OwnerId>>,
    /// The levels of the lock are this call's.
    recorded: Cell<bool>,
    /// The call within which this one runs.
    outer: Cell<Option<NonNull<Call>>>,
}

thread_local! {
    /// The innermost call of this thread.
    static CALLS: Cell<Option<NonNull<Call>>> = const { Cell::new(None) };
}

impl Call {
    #[inline]
    pub(super) fn begin(&self, user: &User<'_>) {
        self.layout.set(Some(NonNull::from(user.layout)));
        self.me.set(Some(user.me));
        self.outer.set(local::get(&CALLS));
        local::set(&CALLS, Some(NonNull::from(self)));
    }

    #[inline]
    fn end(&self) {
        match local::get(&CALLS) == Some(NonNull::from(self)) {
            true => local::set(&CALLS, self.outer.get()),
            false => self.end_out_of_order(),
        }
    }

    /// Coroutines that take turns on a thread end their calls in any order.
    #[cold]
    fn end_out_of_order(&self) {
        let mut next = local::get(&CALLS);
        while let Some(call) = next {
            // SAFETY: as in `record`.
            let call = unsafe { call.as_ref() };
            if call.outer.get() == Some(NonNull::from(self)) {
                return call.outer.set(self.outer.get());
            }
            next = call.outer.get();
        }
        // A coroutine has moved the call to another thread. The list of the thread where it began
        // would keep a pointer to a call that is over.
        let _ = std::io::Write::write_all(
            &mut std::io::stderr(),
            b"executor: a call that holds a lock has moved to another thread\n",
        );
        std::process::abort();
    }

    /// If a call of this thread holds that lock, and nobody has recorded it: does so.
    ///
    /// In a forked process the calls are the parent's. They have the parent's number.
    pub(super) fn record(user: &User<'_>) {
        let mut next = local::get(&CALLS);
        while let Some(call) = next {
            // SAFETY: each call in the list is borrowed by a `Held` of this thread, which takes it
            // out of the list when it is dropped, in whatever order that happens.
            let call = unsafe { call.as_ref() };
            if call.layout.get() == Some(NonNull::from(user.layout))
                && call.me.get() == Some(user.me)
            {
                if !call.recorded.replace(true) {
                    user.begin_levels(holder::this_call(), false);
                }
                return;
            }
            next = call.outer.get();
        }
    }
}
