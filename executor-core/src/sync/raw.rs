//! The words in shared memory that all of `sync` is made of.
//!
//! # The mutex
//!
//! ```text
//!  word:  owner (30 bits) │ LEFT │ CONTENDED          0: free
//!
//!  lock     0 ─► me                                   compare-and-swap, acquire
//!           other ─► other + CONTENDED, sleep on it, at most RECHECK
//!           dead ─► me (+ CONTENDED)                  and the one who does so is told
//!  unlock   me… ─► 0, wake one if it was CONTENDED
//!  abandon  me… ─► NOBODY, wake one                   as if the holder had died
//!  leave    me… ─► LEFT…                             nobody's: held until somebody unlocks it, whoever dies
//! ```
//!
//! *What can go wrong, and why it does not.* The holder dies: its number stays dead, so the compare-and-swap from the very word
//! that was looked at takes the lock from it and from nobody else; of several who try, one succeeds. (After 2^30 users of the
//! file the numbers begin again: then the word may name a living stranger, and one waits for that one's end.) It dies between "free" and the wake-up, or the one that was woken dies: sleepers look again after `RECHECK`. Whoever has slept
//! takes the lock with `CONTENDED`, because others may be asleep; at worst that is a wake-up for nobody. A garbled word
//! names somebody who is alive (it waits, as for a holder), or nobody (it takes over).

use std::time::{Duration, Instant};

use crate::os::{
    futex,
    liveness::{OwnerId, Owners},
    memory::SharedLayout,
    sync::{
        MODEL,
        atomic::{AtomicU32, Ordering, fence},
    },
};

/// No sleep is longer: after it, one looks whether those are alive for whom one waits. Less: more looks for nothing while
/// many wait long. More: what a death leaves behind holds the others up longer.
pub(crate) const RECHECK: Duration = Duration::from_millis(100);

/// How long a call waits for a mutex inside of an object although its limit has passed, or it has none to give (`try_…`, a
/// drop). Such a mutex is held for less than a microsecond, unless its holder does not run: with less, a call would say "not
/// now" because somebody's turn on the processor was over. With more, a stopped holder holds the call up longer.
pub(crate) const PATIENCE: Duration = Duration::from_millis(10);

/// Looks at a held lock before sleeping, if there is another processor. To sleep and be woken takes some 10 µs, these
/// about 1 µs: most locks are free again by then.
const SPINS: u32 = 60;

const CONTENDED: u32 = 1;
const LEFT: u32 = 2;
const OWNER_SHIFT: u32 = 2;

/// Mutual exclusion between all threads of all processes that see the word. See the module's opening.
#[derive(Debug)]
#[cfg_attr(all(test, any(executor_loom, executor_shuttle)), derive(Default))]
#[repr(C)]
pub(crate) struct RobustMutex {
    word: AtomicU32,
}

// SAFETY: `repr(C)`, an atomic, no drop, zero is a value.
unsafe impl SharedLayout for RobustMutex {}

/// How a lock was got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "what is protected may be in disorder"]
pub(crate) enum Locked {
    /// From free.
    Clean,
    /// From one that died, or abandoned it.
    OwnerDied,
}

/// What a mutex was at some moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Holder {
    /// Nobody.
    Free,
    /// One that is dead, or has abandoned it.
    Dead,
    /// Nobody, but it is held until somebody releases it.
    Left,
    /// One that lives.
    Alive(OwnerId),
}

/// An end of waiting; `None` is never.
pub(crate) type Deadline = Option<Instant>;

/// The deadline of a wait that begins now. Further away than the clock can tell is never.
pub(crate) fn deadline_in(limit: Duration) -> Deadline {
    Instant::now().checked_add(limit)
}

/// How long to sleep at most; `None` if the deadline has passed.
pub(crate) fn nap(deadline: Deadline) -> Option<Duration> {
    match deadline {
        None => Some(RECHECK),
        Some(deadline) => {
            let left = deadline.saturating_duration_since(Instant::now());
            (!left.is_zero()).then(|| left.min(RECHECK))
        }
    }
}

fn spins() -> u32 {
    if !MODEL && crate::os::cpu::several_usable() { SPINS } else { 0 }
}

impl RobustMutex {
    /// Holds it until the guard is dropped; `None` if it was not to be had until the deadline.
    ///
    /// For mutexes inside of an object, whose sections are short. There is no form without a deadline: the holder may be
    /// stopped within its section, and the caller's limit holds nevertheless. So hand down the deadline of the call; `None`
    /// is that of a call without a limit. It waits for [`PATIENCE`] in any case.
    #[inline]
    pub(crate) fn lock_until<'a, O: Owners>(
        &'a self,
        owners: &'a O,
        deadline: Deadline,
    ) -> Option<RobustGuard<'a, O>> {
        let me = owners.me();
        let locked = match self.try_acquire_free(me) {
            Some(locked) => locked,
            None => self.acquire_patiently(owners, me, deadline)?,
        };
        Some(RobustGuard { mutex: self, owners, me, locked })
    }

    #[cold]
    fn acquire_patiently<O: Owners>(&self, owners: &O, me: OwnerId, deadline: Deadline) -> Option<Locked> {
        let deadline = deadline.and_then(|deadline| deadline_in(PATIENCE).map(|soon| soon.max(deadline)));
        self.acquire_slowly(owners, me, deadline)
    }

    /// As [`lock_until`](Self::lock_until), for a call that is not to wait: for [`PATIENCE`] and no longer.
    #[inline]
    pub(crate) fn lock_soon<'a, O: Owners>(&'a self, owners: &'a O) -> Option<RobustGuard<'a, O>> {
        let me = owners.me();
        let locked = match self.try_acquire_free(me) {
            Some(locked) => locked,
            None => self.acquire_slowly(owners, me, deadline_in(PATIENCE))?,
        };
        Some(RobustGuard { mutex: self, owners, me, locked })
    }

    /// As [`lock_until`](Self::lock_until), but looks only for about a microsecond: for drops, which have no limit and must
    /// not wait.
    #[inline]
    pub(crate) fn lock_at_once<'a, O: Owners>(&'a self, owners: &'a O) -> Option<RobustGuard<'a, O>> {
        self.try_lock(owners).or_else(|| {
            self.spin();
            self.try_lock(owners)
        })
    }

    /// For async forms, which do not block a thread: holds it, or says on which word to wait for a change. `waited`: the caller has
    /// done that, so others may wait as well, whom it is to wake when it releases it.
    #[inline]
    pub(crate) fn lock_or_word<'a, O: Owners>(
        &'a self,
        owners: &'a O,
        waited: bool,
    ) -> Result<RobustGuard<'a, O>, u32> {
        if !waited && let Some(guard) = self.lock_at_once(owners) {
            return Ok(guard);
        }
        let me = owners.me();
        let locked = self.try_acquire_slowly(owners, me, CONTENDED)?;
        Ok(RobustGuard { mutex: self, owners, me, locked })
    }

    /// Holds it, if it is free now.
    #[inline]
    pub(crate) fn try_lock<'a, O: Owners>(&'a self, owners: &'a O) -> Option<RobustGuard<'a, O>> {
        let me = owners.me();
        let locked = self.try_acquire(owners, me).ok()?;
        Some(RobustGuard { mutex: self, owners, me, locked })
    }

    /// Waits until `me` holds it, at most until the deadline.
    #[inline]
    pub(crate) fn acquire<O: Owners>(&self, owners: &O, me: OwnerId, deadline: Deadline) -> Option<Locked> {
        if let Some(locked) = self.try_acquire_free(me) {
            return Some(locked);
        }
        self.acquire_slowly(owners, me, deadline)
    }

    /// Takes it, if it is free.
    #[inline]
    pub(crate) fn try_acquire_free(&self, me: OwnerId) -> Option<Locked> {
        self.word.compare_exchange(0, me.bits() << OWNER_SHIFT, Ordering::Acquire, Ordering::Relaxed).ok()?;
        kill_point!(MutexTaken);
        Some(Locked::Clean)
    }

    /// Looks for about a microsecond whether it becomes free.
    fn spin(&self) {
        for _ in 0..spins() {
            let word = self.word.load(Ordering::Relaxed);
            if word == 0 || word >> OWNER_SHIFT == OwnerId::NOBODY.bits() {
                break;
            }
            std::hint::spin_loop();
        }
    }

    #[cold]
    fn acquire_slowly<O: Owners>(&self, owners: &O, me: OwnerId, deadline: Deadline) -> Option<Locked> {
        self.spin();
        let mut mark = 0;
        // Whom the kernel was asked about last. It is asked again when a sleep was in vain.
        let mut asked = None;
        loop {
            let word = self.word.load(Ordering::Relaxed);
            let owner = OwnerId::from_bits(word >> OWNER_SHIFT);
            let free = word == 0;
            let died = || owner.is_none_or(|owner| asked != Some(owner) && !owners.is_alive(owner));
            if free || word & LEFT == 0 && died() {
                // What others have marked stays: they sleep.
                let mine = me.bits() << OWNER_SHIFT | mark | word & CONTENDED;
                if self.word.compare_exchange(word, mine, Ordering::Acquire, Ordering::Relaxed).is_ok() {
                    kill_point!(MutexTakenSlowly);
                    return Some(if free { Locked::Clean } else { Locked::OwnerDied });
                }
                continue;
            }
            asked = owner;
            let limit = nap(deadline);
            if limit.is_none() && mark == 0 {
                return None;
            }
            // Also when it is too late: it may have been woken in the place of one that sleeps on, and the one who has come first has
            // come without the mark, so nobody would wake that one.
            let contended = word | CONTENDED;
            if word != contended
                && self.word.compare_exchange(word, contended, Ordering::Relaxed, Ordering::Relaxed).is_err()
            {
                continue;
            }
            kill_point!(MutexMarked);
            let limit = limit?;
            mark = CONTENDED;
            futex::wait(&self.word, contended, Some(limit));
            kill_point!(MutexWoken);
            if self.word.load(Ordering::Relaxed) == contended {
                asked = None;
            }
        }
    }

    /// Takes it if it is to be had now; otherwise the word on which to wait for a change, which says that somebody does.
    #[inline]
    pub(crate) fn try_acquire<O: Owners>(&self, owners: &O, me: OwnerId) -> Result<Locked, u32> {
        match self.try_acquire_free(me) {
            Some(locked) => Ok(locked),
            None => self.try_acquire_slowly(owners, me, 0),
        }
    }

    /// As [`try_acquire`](Self::try_acquire), for one that has waited or is going to: it marks the word on which it
    /// will sleep.
    #[cold]
    pub(crate) fn try_acquire_slowly<O: Owners>(
        &self,
        owners: &O,
        me: OwnerId,
        mark: u32,
    ) -> Result<Locked, u32> {
        loop {
            let word = self.word.load(Ordering::Relaxed);
            let owner = OwnerId::from_bits(word >> OWNER_SHIFT);
            let free = word == 0;
            let died = || owner.is_none_or(|owner| !owners.is_alive(owner));
            if free || word & LEFT == 0 && died() {
                let mine = me.bits() << OWNER_SHIFT | mark | word & CONTENDED;
                if self.word.compare_exchange(word, mine, Ordering::Acquire, Ordering::Relaxed).is_ok() {
                    kill_point!(MutexTakenSlowly);
                    return Ok(if free { Locked::Clean } else { Locked::OwnerDied });
                }
                continue;
            }
            let marked = word | mark;
            if word == marked
                || self.word.compare_exchange(word, marked, Ordering::Relaxed, Ordering::Relaxed).is_ok()
            {
                return Err(marked);
            }
        }
    }

    /// As [`try_lock`](Self::try_lock), after a moment's look; otherwise the word on which to wait for a change. `will_wait`: the
    /// caller has waited or is going to.
    #[inline]
    pub(crate) fn try_guard<'a, O: Owners>(
        &'a self,
        owners: &'a O,
        will_wait: bool,
    ) -> Result<RobustGuard<'a, O>, u32> {
        let me = owners.me();
        let locked = if will_wait {
            self.try_acquire_slowly(owners, me, CONTENDED)?
        } else {
            for _ in 0..spins() {
                if self.word.load(Ordering::Relaxed) == 0 {
                    break;
                }
                std::hint::spin_loop();
            }
            self.try_acquire(owners, me)?
        };
        Ok(RobustGuard { mutex: self, owners, me, locked })
    }

    /// The mark of those who sleep on the word.
    pub(crate) const CONTENDED: u32 = CONTENDED;

    /// Where one sleeps who waits for it.
    pub(crate) fn word(&self) -> &AtomicU32 {
        &self.word
    }

    /// Releases it. Only for its holder.
    #[inline]
    pub(crate) fn release(&self) {
        let word = self.word.swap(0, Ordering::Release);
        kill_point!(MutexReleased);
        if word & CONTENDED != 0 {
            self.wake_next();
        }
    }

    #[cold]
    fn wake_next(&self) {
        futex::wake_one(&self.word);
        kill_point!(MutexHandedOn);
    }

    /// Releases it in such a way that the next one takes its holder for dead. Only for its holder.
    #[cold]
    pub(crate) fn abandon(&self) {
        let word = self.word.swap(OwnerId::NOBODY.bits() << OWNER_SHIFT, Ordering::Release);
        if word & CONTENDED != 0 {
            self.wake_next();
        }
    }

    /// From now on it is nobody's, and anybody may release it, by [`release_left`](Self::release_left). Only for its holder.
    pub(crate) fn leave(&self) {
        let mut word = self.word.load(Ordering::Relaxed);
        let left = |word| LEFT | word & CONTENDED;
        while let Err(now) =
            self.word.compare_exchange(word, left(word), Ordering::Release, Ordering::Relaxed)
        {
            word = now;
        }
        kill_point!(MutexLeft);
    }

    /// Releases what its holder has left; `false` if that is not so.
    pub(crate) fn release_left(&self) -> bool {
        let mut word = self.word.load(Ordering::Relaxed);
        while word & LEFT != 0 {
            match self.word.compare_exchange(word, 0, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => {
                    kill_point!(MutexReleased);
                    if word & CONTENDED != 0 {
                        self.wake_next();
                    }
                    return true;
                }
                Err(now) => word = now,
            }
        }
        false
    }

    /// Who holds it at this moment.
    pub(crate) fn holder<O: Owners>(&self, owners: &O) -> Holder {
        match self.word.load(Ordering::Relaxed) {
            0 => Holder::Free,
            word if word & LEFT != 0 => Holder::Left,
            word => match OwnerId::from_bits(word >> OWNER_SHIFT) {
                Some(owner) if owners.is_alive(owner) => Holder::Alive(owner),
                _ => Holder::Dead,
            },
        }
    }
}

/// Holds a [`RobustMutex`].
#[derive(Debug)]
#[must_use = "it is released when this is dropped"]
pub(crate) struct RobustGuard<'a, O: Owners> {
    mutex: &'a RobustMutex,
    owners: &'a O,
    me: OwnerId,
    locked: Locked,
}

impl<O: Owners> RobustGuard<'_, O> {
    /// Whether the one before died while it held the mutex. Whoever is told so has to repair: the next is told nothing.
    #[inline]
    pub(crate) fn owner_died(&self) -> bool {
        self.locked == Locked::OwnerDied
    }

    /// Who holds it: this process.
    pub(crate) fn me(&self) -> OwnerId {
        self.me
    }
}

impl<O: Owners> Drop for RobustGuard<'_, O> {
    #[inline]
    fn drop(&mut self) {
        // In a fork it is the parent's.
        if self.owners.is_me(self.me) {
            self.mutex.release();
        }
    }
}

const SLEEPER: u32 = 1;

/// Where one sleeps until something has changed that a mutex protects.
///
/// ```text
///  sleeper: mutex { nothing there: heard = listen() }, sleep(heard), mutex { look again …
///  other:   mutex { change it; rung = ring() }, rung.wake_…()
/// ```
///
/// Both `listen` and `ring` are called under the mutex, so a change cannot fall between looking and listening. Where the mutex
/// is not to be had at once, a change is made without it and told by [`ring_alone`](Self::ring_alone); so whoever listens looks
/// once more afterwards. The lowest bit says that somebody listens; the rest counts, is compared for equality only, and may
/// come round. With `wake_one`, whoever was woken calls `listen` once more when it has taken what it was woken for: others may
/// be asleep. One that was woken and goes another way wakes one of them: see [`Woken`].
#[derive(Debug)]
#[cfg_attr(all(test, any(executor_loom, executor_shuttle)), derive(Default))]
#[repr(C)]
pub(crate) struct Bell {
    word: AtomicU32,
}

// SAFETY: `repr(C)`, an atomic, no drop, zero is a value.
unsafe impl SharedLayout for Bell {}

/// Of one that slept where whoever rings wakes one: maybe it, in the place of others, who sleep on with nobody marked as listening.
/// So if it goes away, or waits for something else, before it has looked for what it was woken for, another one is woken: when this is
/// dropped.
#[derive(Default)]
#[must_use = "dropped at once, it wakes another sleeper"]
pub(crate) struct Woken<'a>(Option<&'a Bell>);

impl Woken<'_> {
    /// It has looked: it has taken what there was and seen to others, or there was nothing and it has listened again.
    #[inline]
    pub(crate) fn settle(mut self) {
        self.0 = None;
    }
}

impl Drop for Woken<'_> {
    #[inline]
    fn drop(&mut self) {
        if let Some(bell) = self.0 {
            bell.pass_on();
        }
    }
}

/// Says whether somebody is to be woken.
#[must_use = "somebody may sleep"]
pub(crate) struct Rung<'a>(Option<&'a Bell>);

impl Bell {
    /// From now on `ring` has to wake; to be given to [`sleep`](Self::sleep).
    pub(crate) fn listen(&self) -> u32 {
        let heard = self.word.fetch_or(SLEEPER, Ordering::Relaxed) | SLEEPER;
        // Either the one that rings without the mutex sees the mark, or what it has changed is seen by the look after this.
        fence(Ordering::SeqCst);
        kill_point!(BellListened);
        heard
    }

    /// Sleeps until it is rung, unless it was since `heard`; at most `limit`, and never longer than [`RECHECK`].
    pub(crate) fn sleep(&self, heard: u32, limit: Duration) -> Woken<'_> {
        self.sleep_with_all(heard, limit);
        self.woken()
    }

    /// As [`sleep`](Self::sleep), where whoever rings wakes all.
    pub(crate) fn sleep_with_all(&self, heard: u32, limit: Duration) {
        futex::wait(&self.word, heard, Some(limit.min(RECHECK)));
        kill_point!(BellWoken);
    }

    /// Of one that has slept in another way.
    pub(crate) fn woken(&self) -> Woken<'_> {
        Woken(Some(self))
    }

    /// Tells those who listen; they are to be woken when the mutex is free.
    #[inline]
    pub(crate) fn ring(&self) -> Rung<'_> {
        if self.is_listened_to() { self.ring_slowly() } else { Rung(None) }
    }

    /// Clears the lowest bit and counts.
    #[cold]
    fn ring_slowly(&self) -> Rung<'_> {
        let mut word = self.word.load(Ordering::Relaxed);
        while word & SLEEPER != 0 {
            match self.word.compare_exchange(word, word.wrapping_add(1), Ordering::AcqRel, Ordering::Relaxed)
            {
                Ok(_) => {
                    kill_point!(BellRung);
                    return Rung(Some(self));
                }
                Err(now) => word = now,
            }
        }
        // Another one has told them, after what is to be told now was there.
        Rung(None)
    }

    /// As [`ring`](Self::ring), after a change that was made without the mutex.
    #[inline]
    pub(crate) fn ring_alone(&self) -> Rung<'_> {
        fence(Ordering::SeqCst);
        self.ring()
    }

    /// As [`ring`](Self::ring), for what concerns all who sleep: also those for whom somebody else has been woken.
    pub(crate) fn ring_for_all(&self) -> Rung<'_> {
        self.listen();
        self.ring()
    }

    /// As [`ring_for_all`](Self::ring_for_all), by one that does not have the mutex: nobody is waited for.
    ///
    /// Whoever rings under the mutex at the same moment may overwrite this with a number that was there shortly before. Somebody
    /// who sleeps with that very number sleeps on a word without a listener, until it is woken here, or looks again by itself.
    pub(crate) fn ring_unlocked(&self) -> Rung<'_> {
        let next = |word: u32| Some((word | SLEEPER).wrapping_add(1));
        let _ = self.word.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
        kill_point!(BellRung);
        Rung(Some(self))
    }

    /// Wakes one that sleeps, of which there may be some though nobody is marked as listening: for one that was woken, has
    /// taken what it was woken for, and sees that there is more.
    pub(crate) fn pass_on(&self) {
        futex::wake_one(&self.word);
    }

    /// Whether somebody listens, as far as one can see without the mutex.
    #[inline]
    pub(crate) fn is_listened_to(&self) -> bool {
        self.word.load(Ordering::Relaxed) & SLEEPER != 0
    }

    /// Where those sleep who listen.
    pub(crate) fn word(&self) -> &AtomicU32 {
        &self.word
    }
}

impl Rung<'_> {
    /// Wakes one of those who listen.
    #[inline]
    pub(crate) fn wake_one(self) {
        if let Some(bell) = self.0 {
            futex::wake_one(&bell.word);
        }
    }

    /// Wakes all who listen.
    #[inline]
    pub(crate) fn wake_all(self) {
        if let Some(bell) = self.0 {
            futex::wake_all(&bell.word);
        }
    }
}
