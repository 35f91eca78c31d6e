//! What a call on a queue waits for, and for how long: a mutex, a claim, an item, room.

use std::{
    io,
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use super::{
    super::ring_list::{Failed, Side},
    Core,
};
use crate::{
    os::{liveness::Liveness, std_or_model::atomic::fence},
    sync::{
        raw::{Bell, RobustGuard, Woken, deadline_in, nap},
        word_wait::WordWait,
    },
};

/// How long a call that must not wait may wait for a mutex. A holder needs it for some
/// microseconds, but may have to wait for a processor first. A higher value makes such a call take
/// that long while the holder is stopped. A lower value makes the call report `Busy` more often
/// where many processes share a processor, because it has not seen what is in the queue.
const PATIENCE: Duration = Duration::from_millis(20);

/// How long a call may wait.
#[derive(Clone, Copy, Debug)]
pub(in crate::ipc::queue) enum Wait {
    Not,
    Until(Option<Instant>),
}

impl Wait {
    pub(in crate::ipc::queue) fn at_most(timeout: Duration) -> Self {
        Wait::Until(deadline_in(timeout))
    }

    /// Returns the deadline for acquiring a mutex.
    fn for_mutex(self) -> Option<Instant> {
        match self {
            Wait::Not => deadline_in(PATIENCE),
            // A look at the queue is allowed even if the deadline is sooner.
            Wait::Until(Some(deadline)) => deadline_in(PATIENCE).max(Some(deadline)),
            Wait::Until(None) => None,
        }
    }

    /// Returns whether the call may wait at all. A deadline that has passed leaves no time to spin.
    pub(super) fn may_spin(self) -> bool {
        self.nap().is_some()
    }

    /// Returns how long to sleep now; `None` if the time is up.
    pub(super) fn nap(self) -> Option<Duration> {
        match self {
            Wait::Not => None,
            Wait::Until(deadline) => nap(deadline),
        }
    }
}

/// Result of one attempt under a mutex.
pub(super) enum Step<'a, T> {
    Done(T),
    /// Try again at once. In `put`, a large item may have to be written first; room for it is
    /// reserved.
    Again,
    Wait(Pause<'a>),
}

/// What an attempt that could not be completed has to wait for.
#[derive(Clone, Copy)]
pub(super) struct Pause<'a> {
    /// Rung when the attempt should be repeated.
    pub(super) bell: &'a Bell,
    /// The value of the bell's word before the attempt; the waiter sleeps only while it is
    /// unchanged.
    pub(super) heard: u32,
    /// What was missing.
    pub(super) lacks: Lack,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Lack {
    /// An item, or room for one.
    Item,
    /// Room for more descriptors in transit. A call does not spin for it: whether there is room in
    /// the queue says nothing about it.
    Descriptors,
    /// A claim. See `ring_list/mod.rs`.
    Claim,
}

impl<'a> Pause<'a> {
    /// Returns whether nobody has rung the bell since.
    pub(super) fn was_in_vain(&self) -> bool {
        self.bell.word().load(Ordering::Relaxed) == self.heard
    }

    pub(super) fn sleep(&self, timeout: Duration) -> Woken<'a> {
        self.bell.sleep_with_all(self.heard, timeout);
        self.woken()
    }

    /// Returns the wake-up that this waiter got.
    pub(super) fn woken(&self) -> Woken<'a> {
        match self.lacks {
            Lack::Item => self.bell.woken(),
            // Everyone is woken, so no wake-up needs to be passed on.
            Lack::Descriptors | Lack::Claim => Woken::default(),
        }
    }

    /// Settles the previous wake-up after a new attempt has ended in this pause. If the attempt
    /// lacked an item or room, it has looked for what the wake-up announced and found none, so the
    /// wake-up is used up. Otherwise the waiter lacks something else, and dropping `woken` passes
    /// the wake-up on to another waiter.
    pub(super) fn settle(&self, woken: Woken<'_>) {
        if self.lacks == Lack::Item {
            woken.settle();
        }
    }
}

impl Core {
    /// Locks a mutex; `None` if another process keeps it for longer than `wait` allows.
    #[inline]
    pub(super) fn lock(
        &self,
        side: Side,
        wait: Wait,
    ) -> io::Result<Option<RobustGuard<'_, Liveness>>> {
        self.lock_letting_go(side, wait, || ())
    }

    /// Locks a mutex like [`lock`](Self::lock). Before it waits for a claim, it calls `let_go`,
    /// which gives back whatever other processes may need in order to go on.
    #[inline]
    pub(super) fn lock_letting_go(
        &self,
        side: Side,
        wait: Wait,
        mut let_go: impl FnMut(),
    ) -> io::Result<Option<RobustGuard<'_, Liveness>>> {
        let list = self.list();
        loop {
            let locked = match self.with_claims(|| list.lock(side, wait.for_mutex()))? {
                Ok(locked) => locked,
                Err(pause) => match wait.nap() {
                    Some(timeout) => {
                        let_go();
                        drop(pause.sleep(timeout));
                        continue;
                    }
                    None => return Ok(None),
                },
            };
            if locked.is_some() || !matches!(wait, Wait::Until(None)) {
                return Ok(locked);
            }
        }
    }

    /// Locks a mutex like [`lock_letting_go`](Self::lock_letting_go), without blocking the thread.
    pub(super) async fn lock_async(
        &self,
        side: Side,
        mut let_go: impl FnMut(),
    ) -> io::Result<RobustGuard<'_, Liveness>> {
        let mut will_wait = false;
        loop {
            let (word, heard) = match self.with_claims(|| self.list().try_lock(side, will_wait))? {
                Ok(Ok(guard)) => return Ok(guard),
                // The first attempt does not mark the mutex, since a mark costs its holder a system
                // call.
                Ok(Err(_)) if !will_wait => {
                    will_wait = true;
                    continue;
                }
                Ok(Err(word)) => (self.list().mutex(side).word(), word),
                Err(pause) => {
                    let_go();
                    (pause.bell.word(), pause.heard)
                }
            };
            WordWait::new(&self.block, word, heard).await;
        }
    }

    /// Runs a step that needs a claim. If no claim is free, marks a listener, tries once more, and
    /// returns what to wait for.
    #[inline]
    pub(super) fn with_claims<T>(
        &self,
        mut step: impl FnMut() -> Result<T, Failed>,
    ) -> io::Result<Result<T, Pause<'_>>> {
        let mut heard = None;
        loop {
            match (step(), heard) {
                (Ok(done), _) => return Ok(Ok(done)),
                (Err(Failed::Io(error)), _) => return Err(error),
                (Err(Failed::NoClaim), None) => heard = Some(self.list().listen_for_claims()),
                (Err(Failed::NoClaim), Some(heard)) => {
                    return Ok(Err(Pause { bell: self.list().freed(), heard, lacks: Lack::Claim }));
                }
            }
        }
    }

    /// Spins for a moment until `ready`, where spinning has paid off before.
    ///
    /// This comes before a listener is marked, since a marked listener costs the other side a
    /// system call, even if it never sleeps.
    pub(super) fn spin(&self, ready: impl FnMut() -> bool) {
        if let Ok(mut spin) = self.waiting.try_lock() {
            spin.wait(u32::MAX, ready);
        }
    }
}

/// Called by a waiter that was woken and got its item. Other waiters may still sleep without being
/// marked as listeners, so this marks them again. Returns whether there is more to do for one of
/// them.
pub(in crate::ipc::queue) fn listen_for_others(bell: &Bell, more: impl Fn() -> bool) -> bool {
    bell.listen();
    // Either the ringer sees the mark, or we see what it rings for.
    fence(Ordering::SeqCst);
    more()
}
