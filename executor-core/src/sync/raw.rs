//! The words in shared memory that every type in `sync` is built on.
//!
//! # The mutex
//!
//! ```text
//!  word:  owner (30 bits) │ LEFT │ CONTENDED          0: free
//!
//!  lock     0 ─► me                                   compare-and-swap, acquire
//!           other ─► other + CONTENDED, sleep on it, at most RECHECK
//!           dead ─► me (+ CONTENDED)                  the new holder is told of the death
//!  unlock   me… ─► 0, wake one if it was CONTENDED
//!  abandon  me… ─► NOBODY, wake one                   as if the holder had died
//!  leave    me… ─► LEFT…                              no owner: held until somebody releases it
//! ```
//!
//! # What can go wrong
//!
//! - The holder dies. The number of a dead process stays dead, so a compare-and-swap from exactly
//!   the word that was inspected takes the lock from the dead holder and from no other. If several
//!   waiters try this, one succeeds. (After 2^30 users of the file the numbers start again. The
//!   word may then name an unrelated live process, and waiters wait until that process ends.)
//! - The releasing process dies between its store of "free" and its wake-up, or the woken waiter
//!   dies. The other sleepers look again after `RECHECK`.
//! - Several waiters sleep, and a release wakes only one. A waiter that has slept therefore takes
//!   the lock with `CONTENDED` set, because others may still sleep. At worst its own release then
//!   makes a wake-up call that wakes nobody.
//! - The word is garbled. If it names a live process, waiters wait as they would for a holder. If
//!   it names none, a waiter takes the lock over.

use std::time::{Duration, Instant};

use crate::os::{
    futex,
    liveness::{OwnerId, Owners},
    memory::SharedLayout,
    std_or_model::{
        MODEL,
        atomic::{AtomicU32, Ordering, fence},
    },
};

/// Maximum length of one sleep. After each sleep a waiter checks whether the processes it waits for
/// are still alive. A lower value makes long waits check more often for nothing. A higher value
/// makes the survivors of a death wait longer.
pub(crate) const RECHECK: Duration = Duration::from_millis(100);

/// How long a call waits for an object's internal mutex although its deadline has passed, or
/// although it has no time to wait at all (`try_…`, a drop). Such a mutex is held for less than a
/// microsecond unless its holder is not running. With a lower value, a call gives up merely because
/// another thread lost its turn on the processor. With a higher value, a stopped holder delays the
/// call for longer.
pub(crate) const PATIENCE: Duration = Duration::from_millis(10);

/// How often a waiter reads a held lock before it sleeps, if there is more than one processor. To
/// sleep and be woken takes about 10 µs, these reads about 1 µs. Most locks are free again by then.
const SPINS: u32 = 60;

/// The bit that says that somebody sleeps on the word, so that a release has to wake.
const CONTENDED: u32 = 1;
/// The bit that says that the lock is held although nobody owns it: see [`RobustMutex::leave`].
const LEFT: u32 = 2;
const OWNER_SHIFT: u32 = 2;

/// A mutex for all threads of all processes that map the word. See the module's documentation.
#[derive(Debug)]
#[cfg_attr(all(test, any(executor_loom, executor_shuttle)), derive(Default))]
#[repr(C)]
pub(crate) struct RobustMutex {
    word: AtomicU32,
}

// SAFETY: `repr(C)`, a single atomic, no drop, and all zeros is a valid value.
unsafe impl SharedLayout for RobustMutex {}

/// How a lock was acquired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "what is protected may be in disorder"]
pub(crate) enum Locked {
    /// It was free.
    Clean,
    /// Its holder had died or abandoned it.
    OwnerDied,
}

/// The state of a mutex at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MutexState {
    /// Nobody holds it.
    Free,
    /// Its holder has died or abandoned it.
    Dead,
    /// It was left locked: nobody owns it, and it stays held until somebody releases it.
    Left,
    /// A live process holds it.
    Alive(OwnerId),
}

/// When a wait ends; `None` means never.
pub(crate) type Deadline = Option<Instant>;

/// Returns the deadline of a wait that begins now: `None`, never, if it is too far away for the
/// clock.
pub(crate) fn deadline_in(timeout: Duration) -> Deadline {
    Instant::now().checked_add(timeout)
}

/// Returns how long to sleep at most, or `None` if the deadline has passed.
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
    /// Locks the mutex until the guard is dropped. Returns `None` if this does not succeed by the
    /// deadline.
    ///
    /// This is for mutexes inside an object, whose critical sections are short. Every form has a
    /// deadline: the holder may be stopped inside its critical section, and the caller's own
    /// timeout holds all the same. So pass on the deadline of the calling method; `None` is for a
    /// method without a timeout. The wait takes up to [`PATIENCE`] even if the deadline is earlier.
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
    fn acquire_patiently<O: Owners>(
        &self,
        owners: &O,
        me: OwnerId,
        deadline: Deadline,
    ) -> Option<Locked> {
        let deadline =
            deadline.and_then(|deadline| deadline_in(PATIENCE).map(|soon| soon.max(deadline)));
        self.acquire_slowly(owners, me, deadline)
    }

    /// Like [`lock_until`](Self::lock_until), for a call that must not wait: it gives up after
    /// [`PATIENCE`].
    #[inline]
    pub(crate) fn lock_soon<'a, O: Owners>(&'a self, owners: &'a O) -> Option<RobustGuard<'a, O>> {
        let me = owners.me();
        let locked = match self.try_acquire_free(me) {
            Some(locked) => locked,
            None => self.acquire_slowly(owners, me, deadline_in(PATIENCE))?,
        };
        Some(RobustGuard { mutex: self, owners, me, locked })
    }

    /// Like [`lock_until`](Self::lock_until), but gives up after about a microsecond. This is for
    /// drops, which have no timeout and must not wait.
    #[inline]
    pub(crate) fn lock_at_once<'a, O: Owners>(
        &'a self,
        owners: &'a O,
    ) -> Option<RobustGuard<'a, O>> {
        self.try_lock(owners).or_else(|| {
            self.spin();
            self.try_lock(owners)
        })
    }

    /// Locks the mutex, or returns the word's value, whose change the caller waits for. This is for
    /// async forms, which do not block a thread.
    ///
    /// `waited` means that the caller has already waited. Others may then be waiting as well, so
    /// the word is marked and the release wakes one of them.
    #[inline]
    pub(crate) fn lock_or_word<'a, O: Owners>(
        &'a self,
        owners: &'a O,
        waited: bool,
    ) -> Result<RobustGuard<'a, O>, u32> {
        // The mark makes the present holder wake somebody when it releases.
        if !waited && let Some(guard) = self.lock_at_once(owners) {
            return Ok(guard);
        }
        let me = owners.me();
        let locked = self.try_acquire_slowly(owners, me, CONTENDED)?;
        Ok(RobustGuard { mutex: self, owners, me, locked })
    }

    /// Locks the mutex if it is free now, or if its holder has died.
    #[inline]
    pub(crate) fn try_lock<'a, O: Owners>(&'a self, owners: &'a O) -> Option<RobustGuard<'a, O>> {
        let me = owners.me();
        let locked = self.try_acquire(owners, me).ok()?;
        Some(RobustGuard { mutex: self, owners, me, locked })
    }

    /// Waits until `me` holds the mutex, at most until the deadline.
    #[inline]
    pub(crate) fn acquire<O: Owners>(
        &self,
        owners: &O,
        me: OwnerId,
        deadline: Deadline,
    ) -> Option<Locked> {
        if let Some(locked) = self.try_acquire_free(me) {
            return Some(locked);
        }
        self.acquire_slowly(owners, me, deadline)
    }

    /// Takes the mutex if it is free.
    #[inline]
    pub(crate) fn try_acquire_free(&self, me: OwnerId) -> Option<Locked> {
        self.word
            .compare_exchange(0, me.bits() << OWNER_SHIFT, Ordering::Acquire, Ordering::Relaxed)
            .ok()?;
        kill_point!(MutexTaken);
        Some(Locked::Clean)
    }

    /// Waits for about a microsecond for the mutex to become free, without sleeping.
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
    fn acquire_slowly<O: Owners>(
        &self,
        owners: &O,
        me: OwnerId,
        deadline: Deadline,
    ) -> Option<Locked> {
        self.spin();
        let mut mark = 0;
        // The process that the kernel was last asked about. To ask is a system call, so it is done
        // once for each owner, and again after a sleep in which the word did not change.
        let mut asked = None;
        loop {
            let word = self.word.load(Ordering::Relaxed);
            let owner = OwnerId::from_bits(word >> OWNER_SHIFT);
            let free = word == 0;
            let died = || owner.is_none_or(|owner| asked != Some(owner) && !owners.is_alive(owner));
            if free || word & LEFT == 0 && died() {
                // Keep the mark of others: they are asleep.
                let mine = me.bits() << OWNER_SHIFT | mark | word & CONTENDED;
                if self
                    .word
                    .compare_exchange(word, mine, Ordering::Acquire, Ordering::Relaxed)
                    .is_ok()
                {
                    kill_point!(MutexTakenSlowly);
                    return Some(if free { Locked::Clean } else { Locked::OwnerDied });
                }
                continue;
            }
            asked = owner;
            let timeout = nap(deadline);
            // Without the mark, this caller has never slept and so has used up nobody's wake-up.
            if timeout.is_none() && mark == 0 {
                return None;
            }
            // Set the mark even if the deadline has passed. This caller may have been woken instead
            // of another sleeper, and the present holder may have taken the free lock without the
            // mark. If this caller left without setting it, nobody would wake that sleeper.
            let contended = word | CONTENDED;
            if word != contended
                && self
                    .word
                    .compare_exchange(word, contended, Ordering::Relaxed, Ordering::Relaxed)
                    .is_err()
            {
                continue;
            }
            kill_point!(MutexMarked);
            let timeout = timeout?;
            mark = CONTENDED;
            futex::wait(&self.word, contended, Some(timeout));
            kill_point!(MutexWoken);
            // The sleep was in vain, so the owner may have died: ask again.
            if self.word.load(Ordering::Relaxed) == contended {
                asked = None;
            }
        }
    }

    /// Takes the mutex if that is possible now. Otherwise returns the word's value, which says that
    /// somebody holds it and whose change the caller may wait for.
    #[inline]
    pub(crate) fn try_acquire<O: Owners>(&self, owners: &O, me: OwnerId) -> Result<Locked, u32> {
        match self.try_acquire_free(me) {
            Some(locked) => Ok(locked),
            None => self.try_acquire_slowly(owners, me, 0),
        }
    }

    /// Like [`try_acquire`](Self::try_acquire), but sets `mark` in the word, whether it succeeds or
    /// not. A caller that has waited or is about to wait passes `CONTENDED`: a release then wakes a
    /// sleeper.
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
                if self
                    .word
                    .compare_exchange(word, mine, Ordering::Acquire, Ordering::Relaxed)
                    .is_ok()
                {
                    kill_point!(MutexTakenSlowly);
                    return Ok(if free { Locked::Clean } else { Locked::OwnerDied });
                }
                continue;
            }
            let marked = word | mark;
            if word == marked
                || self
                    .word
                    .compare_exchange(word, marked, Ordering::Relaxed, Ordering::Relaxed)
                    .is_ok()
            {
                return Err(marked);
            }
        }
    }

    /// Like [`try_lock`](Self::try_lock), but first waits for about a microsecond. On failure,
    /// returns the word's value, whose change the caller may wait for. `will_wait` means that the
    /// caller has waited or is about to.
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

    /// The bit that says that somebody sleeps on the word.
    pub(crate) const CONTENDED: u32 = CONTENDED;

    /// The word on which waiters sleep.
    pub(crate) fn word(&self) -> &AtomicU32 {
        &self.word
    }

    /// Releases the mutex. Only its holder may call this.
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

    /// Releases the mutex as if its holder had died, so that the next holder is told so. Only its
    /// holder may call this.
    #[cold]
    pub(crate) fn abandon(&self) {
        let word = self.word.swap(OwnerId::NOBODY.bits() << OWNER_SHIFT, Ordering::Release);
        if word & CONTENDED != 0 {
            self.wake_next();
        }
    }

    /// Gives up ownership but keeps the mutex held. From now on anybody may release it, with
    /// [`release_left`](Self::release_left). Only its holder may call this.
    pub(crate) fn leave(&self) {
        let mut word = self.word.load(Ordering::Relaxed);
        // A waiter may set its mark at any moment, and the mark must not be lost.
        let left = |word| LEFT | word & CONTENDED;
        while let Err(now) =
            self.word.compare_exchange(word, left(word), Ordering::Release, Ordering::Relaxed)
        {
            word = now;
        }
        kill_point!(MutexLeft);
    }

    /// Releases a mutex that was left locked. Returns `false` if it is not in that state.
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

    /// Returns the mutex's state at this moment.
    pub(crate) fn state<O: Owners>(&self, owners: &O) -> MutexState {
        match self.word.load(Ordering::Relaxed) {
            0 => MutexState::Free,
            word if word & LEFT != 0 => MutexState::Left,
            word => match OwnerId::from_bits(word >> OWNER_SHIFT) {
                Some(owner) if owners.is_alive(owner) => MutexState::Alive(owner),
                _ => MutexState::Dead,
            },
        }
    }
}

/// Holds a [`RobustMutex`] until it is dropped.
#[derive(Debug)]
#[must_use = "it is released when this is dropped"]
pub(crate) struct RobustGuard<'a, O: Owners> {
    mutex: &'a RobustMutex,
    owners: &'a O,
    me: OwnerId,
    locked: Locked,
}

impl<O: Owners> RobustGuard<'_, O> {
    /// Whether the previous holder died while it held the mutex. If so, the caller has to repair
    /// what the mutex protects: the next holder is not told again.
    #[inline]
    pub(crate) fn owner_died(&self) -> bool {
        self.locked == Locked::OwnerDied
    }

    /// The owner that holds the mutex: this process.
    pub(crate) fn me(&self) -> OwnerId {
        self.me
    }
}

impl<O: Owners> Drop for RobustGuard<'_, O> {
    #[inline]
    fn drop(&mut self) {
        // In a forked process the mutex is held by the parent.
        if self.owners.is_me(self.me) {
            self.mutex.release();
        }
    }
}

/// The lowest bit of a [`Bell`]'s word: somebody listens.
const SLEEPER: u32 = 1;

/// A word to sleep on until something changes that a mutex protects.
///
/// ```text
///  sleeper: mutex { nothing there: heard = listen() }, sleep(heard), mutex { look again …
///  other:   mutex { change it; rung = ring() }, rung.wake_…()
/// ```
///
/// Both `listen` and `ring` are called under the mutex, so no change falls between looking and
/// listening. If the mutex cannot be taken at once, the change is made without it and announced
/// with [`ring_alone`](Self::ring_alone). A listener therefore looks once more after `listen`.
///
/// The lowest bit says that somebody listens. The other bits are a counter that is compared for
/// equality only, and may wrap around.
///
/// After `wake_one`, other sleepers may remain although the lowest bit is cleared. So a woken
/// sleeper that has taken its item calls `listen` again. One that leaves without looking wakes
/// another sleeper instead: see [`Woken`].
#[derive(Debug)]
#[cfg_attr(all(test, any(executor_loom, executor_shuttle)), derive(Default))]
#[repr(C)]
pub(crate) struct Bell {
    word: AtomicU32,
}

// SAFETY: `repr(C)`, a single atomic, no drop, and all zeros is a valid value.
unsafe impl SharedLayout for Bell {}

/// Held by a sleeper after a sleep from which `wake_one` may have woken it.
///
/// It may have been woken in place of others, which still sleep without being marked as listening.
/// If it leaves, or waits for something else, before it has looked for what it was woken for, this
/// value is dropped and wakes another sleeper.
#[derive(Default)]
#[must_use = "dropped at once, it wakes another sleeper"]
pub(crate) struct Woken<'a>(Option<&'a Bell>);

impl Woken<'_> {
    /// Ends the obligation to wake another sleeper. The caller has looked: either it has taken what
    /// there was and has seen to the other sleepers, or there was nothing and it listens again.
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

/// The result of a ring, which says whether there is somebody to wake.
#[must_use = "somebody may sleep"]
pub(crate) struct Rung<'a>(Option<&'a Bell>);

impl Bell {
    /// Marks the word, so that the next `ring` has to wake. Returns the value to pass to
    /// [`sleep`](Self::sleep).
    pub(crate) fn listen(&self) -> u32 {
        let heard = self.word.fetch_or(SLEEPER, Ordering::Relaxed) | SLEEPER;
        // Pairs with the fence in `ring_alone`. Either the process that rings without the mutex
        // sees this mark, or the caller's next look sees the change that it rings for.
        fence(Ordering::SeqCst);
        kill_point!(BellListened);
        heard
    }

    /// Sleeps until the bell rings, at most for `timeout` and never longer than [`RECHECK`].
    /// Returns at once if it has rung since `heard`.
    pub(crate) fn sleep(&self, heard: u32, timeout: Duration) -> Woken<'_> {
        self.sleep_with_all(heard, timeout);
        self.woken()
    }

    /// Like [`sleep`](Self::sleep), for bells whose ringers always wake all sleepers.
    pub(crate) fn sleep_with_all(&self, heard: u32, timeout: Duration) {
        futex::wait(&self.word, heard, Some(timeout.min(RECHECK)));
        kill_point!(BellWoken);
    }

    /// Returns the [`Woken`] of a sleeper that slept in another way than by [`sleep`](Self::sleep).
    pub(crate) fn woken(&self) -> Woken<'_> {
        Woken(Some(self))
    }

    /// Announces a change to all listeners. Wake them through the result, after the mutex is
    /// released.
    #[inline]
    pub(crate) fn ring(&self) -> Rung<'_> {
        if self.is_listened_to() { self.ring_slowly() } else { Rung(None) }
    }

    /// Clears the lowest bit and advances the counter, in one addition.
    #[cold]
    fn ring_slowly(&self) -> Rung<'_> {
        let mut word = self.word.load(Ordering::Relaxed);
        while word & SLEEPER != 0 {
            match self.word.compare_exchange(
                word,
                word.wrapping_add(1),
                Ordering::AcqRel,
                Ordering::Relaxed,
            ) {
                Ok(_) => {
                    kill_point!(BellRung);
                    return Rung(Some(self));
                }
                Err(now) => word = now,
            }
        }
        // Another process has rung in the meantime. The change to be announced here was already in
        // place by then, so the listeners that it wakes see this change too.
        Rung(None)
    }

    /// Like [`ring`](Self::ring), after a change that was made without the mutex.
    #[inline]
    pub(crate) fn ring_alone(&self) -> Rung<'_> {
        // Pairs with the fence in `listen`.
        fence(Ordering::SeqCst);
        self.ring()
    }

    /// Like [`ring`](Self::ring), for a change that concerns every sleeper. It also reaches
    /// sleepers that are no longer marked as listening because an earlier ring woke somebody else.
    pub(crate) fn ring_for_all(&self) -> Rung<'_> {
        self.listen();
        self.ring()
    }

    /// Like [`ring_for_all`](Self::ring_for_all), for a caller that does not hold the mutex and
    /// must not wait for it.
    ///
    /// The word changes in any case, also when nobody is marked as listening. So a sleeper that
    /// listened before this is woken, or does not fall asleep. Should one miss the change
    /// nevertheless, it looks again by itself after [`RECHECK`].
    pub(crate) fn ring_unlocked(&self) -> Rung<'_> {
        let next = |word: u32| Some((word | SLEEPER).wrapping_add(1));
        let _ = self.word.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
        kill_point!(BellRung);
        Rung(Some(self))
    }

    /// Wakes one sleeper, even if nobody is marked as listening. This is for a sleeper that was
    /// woken, has taken its item, and sees that there is more.
    pub(crate) fn pass_on(&self) {
        futex::wake_one(&self.word);
    }

    /// Whether somebody listens. Without the mutex this may be out of date.
    #[inline]
    pub(crate) fn is_listened_to(&self) -> bool {
        self.word.load(Ordering::Relaxed) & SLEEPER != 0
    }

    /// The word on which listeners sleep.
    pub(crate) fn word(&self) -> &AtomicU32 {
        &self.word
    }
}

impl Rung<'_> {
    /// Wakes one listener.
    #[inline]
    pub(crate) fn wake_one(self) {
        if let Some(bell) = self.0 {
            futex::wake_one(&bell.word);
        }
    }

    /// Wakes all listeners.
    #[inline]
    pub(crate) fn wake_all(self) {
        if let Some(bell) = self.0 {
            futex::wake_all(&bell.word);
        }
    }
}
