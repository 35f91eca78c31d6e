//! Mutual exclusion.

use std::{fmt, io, time::Duration};

use super::{
    changed::changed,
    guard::{LockResult, OwnerDied, Recover, ReleaseError},
    raw::{Deadline, Holder, Locked, RobustMutex, deadline_in},
};
use crate::{
    heap::block::{Block, Kind},
    os::{
        fork::Origin,
        liveness::{Liveness, OwnerId, Owners},
        local,
        memory::SharedLayout,
        sync::atomic::{AtomicU32, AtomicU64, Ordering},
    },
};

/// A lock for threads of any processes.
///
/// It travels: as an argument or a result of a task, inside of other types too. All handles are of the same lock, and two
/// handles compare equal if they are.
///
/// ```
/// use executor::{Lock, prelude::*};
///
/// #[task]
/// fn append(lock: Lock, path: std::path::PathBuf, line: &str) -> std::io::Result<()> {
///     let _guard = lock.acquire().unwrap();
///     // One at a time in here, in whatever process.
///     let text = std::fs::read_to_string(&path)?;
///     std::fs::write(&path, format!("{text}{line}\n"))
/// }
///
/// #[executor::main]
/// fn main() -> Result<(), Box<dyn std::error::Error>> {
///     let path = std::env::temp_dir().join(format!("lock-{}", std::process::id()));
///     std::fs::write(&path, "")?;
///     let (pool, lock) = (ProcessPoolExecutor::builder().max_workers(2).build()?, Lock::new()?);
///     let appends = (0..10).map(|i| pool.submit(append::task(lock.clone(), path.clone(), &i.to_string())));
///     for append in appends.collect::<Vec<_>>() {
///         append.result()?;
///     }
///     assert_eq!(std::fs::read_to_string(&path)?.lines().count(), 10);
///     # std::fs::remove_file(&path)?;
///     Ok(())
/// }
/// ```
///
/// # When its holder dies
///
/// The next one gets it within 100 ms and is told: [`OwnerDied`]. A process that waits and dies leaves nothing behind.
/// Death is that of the process. A thread that panics drops its guards, which release; a guard that is forgotten
/// (`mem::forget`) holds until its process ends, or has no handle left.
///
/// # Fairness, recursion
///
/// There is none: whoever comes first when it is free gets it. A thread that acquires what it holds waits for ever; see
/// [`RLock`](crate::RLock). The lock that a [`Value`](crate::Value) or an [`Array`](crate::Array) makes for itself is re-entrant,
/// but for the async form. One that was given to them is not, but the thread that holds it may use them.
///
/// Tasks of tokio are told apart. Of those of other runtimes nothing is known but the thread: if one has awaited such a lock and keeps
/// it, a form that blocks panics on the thread where that was, because it may be the same task, which would wait for itself.
/// [`acquire_async`](Lock::acquire_async) waits there.
///
/// # What it costs
///
/// Nothing but a few nanoseconds while nobody else wants it. 64 bytes of shared memory; a thousand of them share two
/// descriptors. What has been sent to another process is not used again before all of the thousand are gone that were made
/// together with it: one that is kept of each thousand costs two descriptors and 64 KiB.
///
/// # Forks
///
/// In a process that was forked by hand a handle is one of another user; guards that it has inherited do nothing.
/// Acquiring there may panic, if the system has no descriptor left.
#[derive(Clone)]
pub struct Lock {
    block: Block,
}

/// At the beginning of each block that has a lock: that of a [`Lock`], a `Value`, an `Array`.
///
/// The lock of a value or an array is re-entrant: whoever holds it may use the value, and acquire it again. Of a lock that one of
/// them was given, the first is true from then on. Guards are counted in `levels` then, as those of an `RLock`.
#[cfg_attr(all(test, any(executor_loom, executor_shuttle)), derive(Default))]
#[repr(C)]
pub(crate) struct LockLayout {
    pub(crate) mutex: RobustMutex,
    /// The thread that holds it, for who asks. It says nothing by itself, and may be out of date.
    thread: AtomicU32,
    /// [`PLAIN`], [`GIVEN`] or [`REENTRANT`].
    sort: AtomicU32,
    /// Whose the levels are; what a dead process has left here is nobody's.
    owner: AtomicU32,
    /// Who holds it (a [`Holder`](holder)), whether what it protects may be in disorder, and how many levels deep. In one word,
    /// because guards are dropped on other threads, too: one goes a level deeper only while it still has one.
    levels: AtomicU64,
    /// The process in which a guard lends references into the memory of this block's value; none is 0.
    lent: AtomicU32,
    reserved: AtomicU32,
}

// SAFETY: `repr(C)`, atomics only, no drop, zero is a value.
unsafe impl SharedLayout for LockLayout {}

impl LockLayout {
    /// Who lends references.
    pub(super) fn lend_to(&self, me: Option<OwnerId>) {
        // Release: what was done by way of the references comes before. A guard may be dropped on another thread than the one
        // that holds the lock, which needs nothing but this to use the value again.
        self.lent.store(me.map_or(0, OwnerId::bits), Ordering::Release);
    }

    pub(super) fn lent_to(&self) -> Option<OwnerId> {
        let lent = self.lent.load(Ordering::Acquire);
        if lent == 0 { None } else { OwnerId::from_bits(lent) }
    }
}

/// Nothing but a lock: nobody asks who holds it.
const PLAIN: u32 = 0;
/// It was given to a value or an array: what these do, whoever holds it may do.
const GIVEN: u32 = 1;
/// Of a value or an array: whoever holds it may acquire it.
const REENTRANT: u32 = 2;

const HOLDER_SHIFT: u32 = 24;
const IN_DISORDER: u64 = 1 << 23;
const COUNT: u64 = IN_DISORDER - 1;

/// Who holds a re-entrant lock, in 40 bits: a thread, or a task of tokio, for tasks share threads and change them.
pub(crate) mod holder {
    use std::hash::{Hash, Hasher};

    use crate::os::{liveness::OwnerId, local};

    /// A task. Its number has 38 bits: a guard would have to be kept while so many other tasks are spawned.
    const TASK: u64 = 1 << 39;
    /// A task of another runtime, which says nothing about it but the thread.
    const UNKNOWN_TASK: u64 = 1 << 38;
    /// A thread in a call of its own, where nobody else can be on it.
    const IN_CALL: u64 = TASK | UNKNOWN_TASK;

    struct Number(u64);

    impl Hasher for Number {
        fn finish(&self) -> u64 {
            self.0
        }

        fn write(&mut self, bytes: &[u8]) {
            for byte in bytes {
                self.0 = self.0.wrapping_mul(257).wrapping_add(u64::from(*byte));
            }
        }

        fn write_u64(&mut self, number: u64) {
            self.0 = number;
        }
    }

    /// The task or thread that runs this.
    pub(crate) fn this() -> u64 {
        match tokio::task::try_id() {
            Some(id) => {
                let mut number = Number(0);
                id.hash(&mut number);
                TASK | number.0 & (UNKNOWN_TASK - 1)
            }
            None => u64::from(local::this_thread()),
        }
    }

    /// As [`this`], in an async form, which may be on any runtime.
    pub(super) fn this_async() -> u64 {
        let this = this();
        // What tokio runs without a number is the one future that blocks its thread.
        if this & TASK != 0 || tokio::runtime::Handle::try_current().is_ok() {
            this
        } else {
            this | UNKNOWN_TASK
        }
    }

    /// Makes the holders of each process others than those of the next. One that asks may have read the owner of the levels, and
    /// then the levels of another process: it is not to find itself there.
    pub(super) fn salted(holder: u64, me: OwnerId) -> u64 {
        holder ^ u64::from(me.bits()) << 8
    }

    /// This thread, until a call that runs user code returns.
    pub(super) fn this_call() -> u64 {
        IN_CALL | u64::from(local::this_thread())
    }

    /// What is known of whether this is that holder.
    pub(super) enum Is {
        Me,
        Another,
        /// Another task that shares the thread, or the same.
        Unknown,
    }

    pub(super) fn is_this(holder: u64) -> Is {
        let thread = u64::from(local::this_thread());
        match holder & IN_CALL {
            IN_CALL if holder & !IN_CALL == thread => Is::Me,
            UNKNOWN_TASK if holder & !IN_CALL == thread => Is::Unknown,
            TASK | 0 if holder == this() => Is::Me,
            _ => Is::Another,
        }
    }
}

const KINDS: &[Kind] = &[Kind::Lock, Kind::Value, Kind::Array];

travels!(Lock, block, KINDS, |len| len >= size_of::<LockLayout>());

impl Lock {
    /// A new one, free.
    ///
    /// # Errors
    /// The system's, if it has no descriptor or no memory left.
    pub fn new() -> io::Result<Self> {
        Ok(Lock { block: Block::allocate(Kind::Lock, size_of::<LockLayout>())? })
    }

    /// The lock at the beginning of a block that has one.
    pub(crate) fn of(block: &Block) -> Self {
        debug_assert!(KINDS.contains(&block.kind()));
        Lock { block: block.clone() }
    }

    /// From now on it is that of this block, or one that was given to it: whoever holds it may use what is there.
    pub(crate) fn belong_to(&self, block: &Block) {
        let sort = if self.block == *block { REENTRANT } else { GIVEN };
        self.layout().sort.fetch_max(sort, Ordering::Relaxed);
    }

    pub(crate) fn block(&self) -> &Block {
        &self.block
    }

    #[inline]
    #[cfg(all(test, not(any(executor_loom, executor_shuttle))))]
    pub(super) fn word(&self) -> &AtomicU32 {
        self.layout().mutex.word()
    }

    fn layout(&self) -> &LockLayout {
        self.block.part(0)
    }

    #[inline]
    fn owners(&self) -> &Liveness {
        self.block.owners()
    }

    #[inline]
    fn user(&self) -> User<'_> {
        let (me, origin) = self.owners().me_and_origin();
        User { lock: self, layout: self.layout(), me, origin }
    }

    /// Waits until it is free, and holds it.
    ///
    /// # Errors
    /// If the one who held it has died: the error has the guard.
    #[inline]
    pub fn acquire(&self) -> LockResult<LockGuard<'_>> {
        if let Some(guard) = self.acquire_if_free() {
            return Ok(guard);
        }
        loop {
            if let Some(acquired) = self.acquire_until(None) {
                return acquired;
            }
        }
    }

    /// Holds it, if it is free now; else `None`.
    #[inline]
    pub fn try_acquire(&self) -> Option<LockResult<LockGuard<'_>>> {
        self.try_acquire_if(REENTRANT)
    }

    #[inline]
    fn try_acquire_if(&self, sort: u32) -> Option<LockResult<LockGuard<'_>>> {
        let (owners, user) = (self.owners(), self.user());
        match user.layout.mutex.try_acquire(owners, user.me) {
            Ok(locked) => Some(user.guard(locked)),
            Err(_) => user.deeper(sort).map(Ok),
        }
    }

    /// As [`acquire`](Self::acquire), but waits no longer than this: then `None`.
    pub fn acquire_timeout(&self, limit: Duration) -> Option<LockResult<LockGuard<'_>>> {
        self.try_acquire().or_else(|| self.acquire_until(deadline_in(limit)))
    }

    #[inline]
    pub(crate) fn acquire_until(&self, deadline: Deadline) -> Option<LockResult<LockGuard<'_>>> {
        let user = self.user();
        match user.layout.mutex.try_acquire_free(user.me) {
            Some(locked) => Some(user.guard(locked)),
            None => user.acquire_slowly(deadline, REENTRANT),
        }
    }

    /// For a value or an array, without a limit: also if this thread holds it, of whatever sort it is.
    pub(crate) fn acquire_again(&self) -> LockResult<LockGuard<'_>> {
        if let Some(guard) = self.acquire_if_free() {
            return Ok(guard);
        }
        let user = self.user();
        loop {
            if let Some(acquired) = user.acquire_slowly(None, GIVEN) {
                return acquired;
            }
        }
    }

    /// Acquires it, if it is free and nobody has died with it: the way that is taken nearly always, and made for it. No other guard
    /// of this process holds it then.
    #[inline]
    pub(crate) fn acquire_if_free(&self) -> Option<LockGuard<'_>> {
        let user = self.user();
        let _clean = user.layout.mutex.try_acquire_free(user.me)?;
        Some(user.clean_guard())
    }

    /// As [`acquire_again`](Self::acquire_again), if it need not wait.
    #[inline]
    pub(crate) fn try_acquire_again(&self) -> Option<LockResult<LockGuard<'_>>> {
        self.try_acquire_if(GIVEN)
    }

    /// As [`acquire_again`](Self::acquire_again), with a limit.
    pub(crate) fn acquire_again_until(&self, deadline: Deadline) -> Option<LockResult<LockGuard<'_>>> {
        self.try_acquire_again().or_else(|| self.user().acquire_slowly(deadline, GIVEN))
    }

    /// As [`acquire`](Self::acquire), on any async runtime.
    ///
    /// It is never re-entrant: one that is awaited while this task holds the lock waits until that guard is dropped. The branches
    /// of `join!` or `select!` are one task, and exclude each other.
    ///
    /// # Cancel safety
    /// To drop the future takes neither the lock nor another's wake-up.
    pub async fn acquire_async(&self) -> LockResult<LockGuard<'_>> {
        let (mutex, owners) = (&self.layout().mutex, self.owners());
        let user = self.user();
        if let Ok(locked) = mutex.try_acquire(owners, user.me) {
            return user.guard_of(locked, holder::this_async);
        }
        loop {
            let user = self.user();
            // With the mark: others may wait as well, who are to be woken when it is released.
            match mutex.try_acquire_slowly(owners, user.me, RobustMutex::CONTENDED) {
                Ok(locked) => return user.guard_of(locked, holder::this_async),
                Err(word) => changed(&self.block, mutex.word(), word).await,
            }
        }
    }

    /// Holds it for a call that runs no code of the user: nobody can come to re-enter it.
    #[inline]
    pub(crate) fn hold(&self) -> Held<'_> {
        let user = self.user();
        match user.layout.mutex.try_acquire_free(user.me) {
            Some(_) => Held { user, how: How::Plainly },
            None => user.hold_slowly(),
        }
    }

    /// As [`hold`](Self::hold), for a call that runs code of the user, which may use what the lock protects.
    #[inline]
    pub(crate) fn hold_and_call(&self) -> Held<'_> {
        let mut held = self.hold();
        if !matches!(held.how, How::Deeper) {
            held.user.begin_levels(holder::this_call(), matches!(held.how, How::AfterDeath));
            held.how = How::Counted;
        }
        held
    }

    /// References into this block's value are lent from now on, or are not any more. The lock is held.
    #[inline]
    pub(crate) fn lend(block: &Block, me: Option<OwnerId>) {
        block.part::<LockLayout>(0).lend_to(me);
    }

    /// Whether a guard of this process lends references into this block's value. The lock is held.
    #[inline]
    pub(crate) fn is_lent(&self, block: &Block) -> bool {
        // Who lends is noted by its number as a user of the lock's memory, which need not be that of the block's. What a dead
        // process has left here is nobody's.
        block.part::<LockLayout>(0).lent_to().is_some_and(|owner| self.owners().is_me(owner))
    }

    /// Releases what was [left locked](LockGuard::leave_locked), from any thread of any process.
    ///
    /// # Errors
    /// If it is free, or a guard holds it.
    pub fn release(&self) -> Result<(), ReleaseError> {
        let mutex = &self.layout().mutex;
        if mutex.release_left() {
            return Ok(());
        }
        Err(match mutex.holder(self.owners()) {
            Holder::Alive(_) => ReleaseError::Guarded,
            Holder::Free | Holder::Dead | Holder::Left => ReleaseError::NotLocked,
        })
    }

    /// Whether somebody holds it at this moment, in whatever process.
    pub fn is_locked(&self) -> bool {
        matches!(self.layout().mutex.holder(self.owners()), Holder::Alive(_) | Holder::Left)
    }
}

/// A lock, and this process as a user of it: what each of its guards needs. Found once, before the lock is acquired: after an
/// atomic exchange everything would be read again, one pointer after the other.
#[derive(Clone, Copy)]
struct User<'a> {
    lock: &'a Lock,
    layout: &'a LockLayout,
    me: OwnerId,
    origin: Origin,
}

impl<'a> User<'a> {
    /// Whether this is the process that acquired it, and not one forked from that.
    #[inline]
    fn is_here(self) -> bool {
        !self.origin.forked()
    }

    #[cold]
    fn acquire_slowly(self, deadline: Deadline, sort: u32) -> Option<LockResult<LockGuard<'a>>> {
        if let Some(guard) = self.deeper(sort) {
            return Some(Ok(guard));
        }
        let locked = self.layout.mutex.acquire(self.lock.owners(), self.me, deadline)?;
        Some(self.guard(locked))
    }

    #[inline]
    fn guard(self, locked: Locked) -> LockResult<LockGuard<'a>> {
        self.guard_of(locked, holder::this)
    }

    fn guard_of(self, locked: Locked, holder: impl FnOnce() -> u64) -> LockResult<LockGuard<'a>> {
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

    /// Of a lock that was free.
    #[inline]
    fn clean_guard(self) -> LockGuard<'a> {
        let counted = self.layout.sort.load(Ordering::Relaxed) != PLAIN;
        match counted {
            true => self.begin_levels_of_this(),
            false => self.layout.thread.store(local::this_thread(), Ordering::Relaxed),
        }
        LockGuard { lock: self.lock, by: By::new(self.me, if counted { By::COUNTED } else { 0 }) }
    }

    /// One level of this thread or task.
    #[inline(never)]
    fn begin_levels_of_this(self) {
        self.layout.thread.store(local::this_thread(), Ordering::Relaxed);
        self.begin_levels(holder::this(), false);
    }

    /// One level; the mutex was just acquired.
    #[inline]
    fn begin_levels(self, holder: u64, in_disorder: bool) {
        let User { layout, me, .. } = self;
        let disorder = if in_disorder { IN_DISORDER } else { 0 };
        layout.levels.store(holder::salted(holder, me) << HOLDER_SHIFT | disorder | 1, Ordering::Relaxed);
        layout.owner.store(me.bits(), Ordering::Release);
        kill_point!(LevelsWritten);
    }

    /// The levels of this process, if it has some now.
    fn levels(self) -> Option<u64> {
        let User { layout, me, .. } = self;
        // Acquire: the levels are then those of this process, or newer ones.
        let mine = layout.owner.load(Ordering::Acquire) == me.bits();
        let levels = layout.levels.load(Ordering::Relaxed);
        (mine && levels & COUNT > 0).then_some(levels)
    }

    /// One level deeper, if this thread or task has one, and the lock is of that sort or a higher one.
    ///
    /// # Panics
    /// If a task of a runtime other than tokio holds it that was on this thread: it may be this task, which would wait for itself.
    #[cold]
    fn go_deeper(self, sort: u32) -> bool {
        if self.layout.sort.load(Ordering::Relaxed) < sort {
            return false;
        }
        while let Some(levels) = self.levels() {
            match holder::is_this(holder::salted(levels >> HOLDER_SHIFT, self.me)) {
                holder::Is::Another => return false,
                holder::Is::Me => {}
                holder::Is::Unknown => panic!(
                    "an async task holds the lock which was on this thread, and to wait for it here would block that: \
                     use `acquire_async`"
                ),
            }
            assert!(levels & COUNT < COUNT, "more levels of a lock than can be counted");
            // There is room for it in the count: the holder above it stays as it is.
            let more = levels.wrapping_add(1);
            let word = &self.layout.levels;
            if word.compare_exchange(levels, more, Ordering::Acquire, Ordering::Relaxed).is_ok() {
                return true;
            }
        }
        false
    }

    /// As [`go_deeper`](Self::go_deeper): a guard of that level.
    fn deeper(self, sort: u32) -> Option<LockGuard<'a>> {
        let by = By::new(self.me, By::COUNTED | By::DEEPER);
        // Made only then: dropping one ends a level.
        if self.go_deeper(sort) { Some(LockGuard { lock: self.lock, by }) } else { None }
    }

    /// Ends a level of this process: the last one releases.
    #[inline]
    fn end_level(self) {
        let User { layout, me, .. } = self;
        // Acquire: as below.
        let levels = layout.levels.load(Ordering::Acquire);
        let mine = holder::salted(u64::from(local::this_thread()), me);
        if levels >> HOLDER_SHIFT == mine && levels & (COUNT | IN_DISORDER) == 1 {
            // The only guard, and nobody but this thread could go deeper.
            layout.owner.store(0, Ordering::Relaxed);
            return layout.mutex.release();
        }
        self.end_one_of_several();
    }

    #[cold]
    fn end_one_of_several(self) {
        let layout = self.layout;
        // Both orderings: what other threads did in their levels comes before the release.
        let before = layout.levels.fetch_sub(1, Ordering::AcqRel);
        // The last one: no other guard is there, and one goes deeper only from a level.
        if before & COUNT == 1 {
            layout.owner.store(0, Ordering::Relaxed);
            if before & IN_DISORDER != 0 { layout.mutex.abandon() } else { layout.mutex.release() }
        }
    }

    /// Ends the level of a call, in the thread of that call.
    #[inline]
    fn end_call(self) {
        let layout = self.layout;
        // Acquire: what another thread did in a level that it has ended comes before the release.
        let levels = layout.levels.load(Ordering::Acquire);
        if levels & (COUNT | IN_DISORDER) != 1 {
            return self.end_call_and_keep();
        }
        // Nobody else has a level, and only this thread could go deeper.
        layout.owner.store(0, Ordering::Relaxed);
        layout.mutex.release();
    }

    /// As [`end_call`](Self::end_call), where a guard was made within the call and kept: from now on it is that of this thread or
    /// task, as if it had been made outside. As part of a call it would be that of whatever else runs on this thread.
    #[cold]
    fn end_call_and_keep(self) {
        let User { layout, me, .. } = self;
        let holder = holder::salted(holder::this(), me) << HOLDER_SHIFT;
        let mut levels = layout.levels.load(Ordering::Acquire);
        while levels & COUNT > 1 {
            let rest = holder | (levels & (IN_DISORDER | COUNT)).wrapping_sub(1);
            match layout.levels.compare_exchange(levels, rest, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return,
                Err(now) => levels = now,
            }
        }
        // Dropped meanwhile, on another thread.
        self.end_one_of_several();
    }

    #[cold]
    fn hold_slowly(self) -> Held<'a> {
        if self.go_deeper(GIVEN) {
            return Held { user: self, how: How::Deeper };
        }
        loop {
            match self.layout.mutex.acquire(self.lock.owners(), self.me, None) {
                Some(Locked::Clean) => return Held { user: self, how: How::Plainly },
                Some(Locked::OwnerDied) => return Held { user: self, how: How::AfterDeath },
                None => {}
            }
        }
    }
}

impl fmt::Debug for Lock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let thread = self.layout().thread.load(Ordering::Relaxed);
        write!(f, "Lock({})", describe(self.layout().mutex.holder(self.owners()), self.owners(), thread))
    }
}

/// Who holds something, as seen from here.
pub(super) fn describe(holder: Holder, owners: &impl Owners, thread: u32) -> &'static str {
    match holder {
        Holder::Free => "free",
        Holder::Dead => "its holder has died",
        Holder::Left => "left locked",
        Holder::Alive(owner) if !owners.is_me(owner) => "held by another process",
        Holder::Alive(_) if thread != local::this_thread() => "held by another thread",
        Holder::Alive(_) => "held by this thread",
    }
}

/// Refuses in a fork, where the lock is the parent's: what one side writes under it the other one would write, too, or see
/// changed behind a reference.
#[inline]
#[track_caller]
fn check_mine(is_mine: bool) {
    assert!(
        is_mine,
        "this process is a fork of the one that holds the lock: what the lock protects is the other one's"
    );
}

/// Holds a lock for the duration of a call.
pub(crate) struct Held<'a> {
    user: User<'a>,
    how: How,
}

impl Held<'_> {
    /// As [`LockGuard::check_mine`].
    #[inline]
    #[track_caller]
    pub(crate) fn check_mine(&self) {
        check_mine(self.user.is_here());
    }

    /// Whether other guards of this thread or task may hold it, too. If not, nobody has references into what it protects: whoever
    /// has some holds the lock.
    #[inline]
    pub(crate) fn is_shared(&self) -> bool {
        match self.how {
            How::Plainly | How::AfterDeath => false,
            // The call may have made one, and kept it. Acquire: what was done by way of one that has been dropped comes before.
            How::Counted => self.user.layout.levels.load(Ordering::Acquire) & COUNT != 1,
            How::Deeper => true,
        }
    }
}

#[derive(Clone, Copy)]
enum How {
    /// Without a word of who it is.
    Plainly,
    /// The same, after one that died with it. The news is for the next one who asks.
    AfterDeath,
    /// As one level.
    Counted,
    /// By a level more than this thread or task had before.
    Deeper,
}

impl Drop for Held<'_> {
    #[inline]
    fn drop(&mut self) {
        // In a fork it is the parent's.
        if !self.user.is_here() {
            return;
        }
        match self.how {
            How::Plainly => self.user.layout.mutex.release(),
            How::AfterDeath => self.user.layout.mutex.abandon(),
            How::Counted => self.user.end_call(),
            How::Deeper => self.user.end_one_of_several(),
        }
    }
}

/// Holds a [`Lock`] until it is dropped, on whatever thread.
#[must_use = "the lock is released when this is dropped"]
pub struct LockGuard<'a> {
    lock: &'a Lock,
    by: By,
}

/// Which process a guard is of, and what it is. In one word: a guard is handed on three times before the caller has it, and a word
/// that is put together from smaller ones in memory makes the processor wait each time.
#[derive(Clone, Copy)]
struct By(u64);

impl By {
    /// The next one is to be told that a holder has died.
    const DISORDER: u64 = 1 << 32;
    /// As a level: the lock is re-entrant, and was when it was acquired.
    const COUNTED: u64 = 1 << 33;
    /// A level beside one that there was.
    const DEEPER: u64 = 1 << 34;

    #[inline]
    fn new(me: OwnerId, marks: u64) -> Self {
        By(u64::from(me.bits()) | marks)
    }

    #[inline]
    fn is(self, mark: u64) -> bool {
        self.0 & mark != 0
    }
}

impl<'a> LockGuard<'a> {
    /// Leaves it locked, without a guard: whoever has a handle may [release](Lock::release) it, and it stays locked until
    /// somebody does. That it was this process which held it is forgotten: its death frees nothing.
    ///
    /// Where a thread has several guards of the lock of a value or an array, the last one decides.
    pub fn leave_locked(self) {
        if self.is_mine() {
            let layout = self.lock.layout();
            let last = !self.by.is(By::COUNTED) || layout.levels.fetch_sub(1, Ordering::AcqRel) & COUNT == 1;
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

    /// Whether this process holds the lock by it, and not one that it was forked from.
    #[inline]
    pub(crate) fn is_mine(&self) -> bool {
        self.lock.owners().is_me(self.me())
    }

    /// Whether the lock is free when this is dropped: no other guard holds it, too.
    pub(crate) fn is_the_only_one(&self) -> bool {
        !self.by.is(By::COUNTED) || self.lock.layout().levels.load(Ordering::Relaxed) & COUNT == 1
    }

    /// As [`Held::is_shared`], when it was just acquired.
    #[inline]
    pub(crate) fn is_deeper(&self) -> bool {
        self.by.is(By::DEEPER)
    }

    pub(crate) fn lock(&self) -> &'a Lock {
        self.lock
    }

    /// Refuses in a fork, where the lock is the parent's.
    #[inline]
    #[track_caller]
    pub(crate) fn check_mine(&self) {
        check_mine(self.is_mine());
    }
}

impl Recover for LockGuard<'_> {
    fn recover(&mut self) {
        self.by.0 &= !By::DISORDER;
        // In a fork it is the parent's.
        if self.by.is(By::COUNTED) && self.is_mine() {
            self.lock.layout().levels.fetch_and(!IN_DISORDER, Ordering::Relaxed);
        }
    }
}

impl Drop for LockGuard<'_> {
    #[inline]
    fn drop(&mut self) {
        // In a fork it is the parent's.
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
