//! The lock, for mutual exclusion.

use std::{cell::Cell, fmt, io, ptr::NonNull, time::Duration};

use super::{
    guard::{LockResult, OwnerDied, Recover, ReleaseError},
    raw::{Deadline, Locked, MutexState, RobustMutex, deadline_in},
    word_wait::WordWait,
};
use crate::{
    heap::block::{Block, BlockKind},
    os::{
        fork::Creator,
        liveness::{Liveness, OwnerId, Owners},
        local,
        memory::SharedLayout,
        std_or_model::atomic::{AtomicU32, AtomicU64, Ordering},
    },
};

/// A lock for threads of any processes.
///
/// It can be sent to other processes as an argument or a result of a task, also inside other types.
/// All handles refer to the same lock, and two handles compare equal if they do.
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
/// The next holder gets the lock within 100 ms, and is told: see [`OwnerDied`]. A process that dies
/// while it waits leaves nothing behind.
///
/// Only the death of a process counts. A thread that panics drops its guards, which releases the
/// lock. A guard that is leaked (`mem::forget`) holds the lock until its process ends or has no
/// handle left.
///
/// # Fairness, recursion
///
/// The lock is not fair: whoever comes first when it is free gets it. A thread that acquires a lock
/// that it holds waits for ever; see [`RLock`](crate::RLock).
///
/// The lock that a [`Value`](crate::Value) or an [`Array`](crate::Array) creates for itself is
/// re-entrant, except in its async form. A lock that was given to them is not, but the thread that
/// holds it may use them.
///
/// Re-entrant locks tell tasks of tokio apart. Of a task of another runtime, only the thread is
/// known. While such a task holds a re-entrant lock that it has awaited, the blocking forms panic
/// on the thread where that happened: the caller may be the same task, which would wait for itself.
/// [`acquire_async`](Lock::acquire_async) waits instead.
///
/// # What it costs
///
/// Acquiring takes a few nanoseconds while nobody else wants the lock. A lock takes 64 bytes of
/// shared memory, and a thousand locks share two descriptors. If a lock was sent to another
/// process, its memory is not reused before all of the thousand that were created together are
/// gone. In the worst case, a program that keeps one lock of each thousand pays two descriptors and
/// 64 KiB for it.
///
/// # Forks
///
/// In a process that was forked by hand, a handle is that of a separate user. Guards that it has
/// inherited do nothing. Acquiring there may panic if no descriptor is left.
#[derive(Clone)]
pub struct Lock {
    block: Block,
}

/// The beginning of each block that has a lock: that of a [`Lock`], a `Value`, or an `Array`.
///
/// The lock of a value or an array is re-entrant: its holder may use the value, and may acquire the
/// lock again. For a lock that was given to a value or an array, only the first holds from then on.
/// In both cases guards are counted in `levels`, like those of an `RLock`.
#[cfg_attr(all(test, any(executor_loom, executor_shuttle)), derive(Default))]
#[repr(C)]
pub(crate) struct LockLayout {
    pub(crate) mutex: RobustMutex,
    /// The thread that holds the lock, for debug output. It proves nothing by itself, and may be
    /// out of date.
    thread: AtomicU32,
    /// [`PLAIN`], [`GIVEN`] or [`REENTRANT`].
    sort: AtomicU32,
    /// The owner of the levels. An entry that a dead process has left here belongs to nobody.
    owner: AtomicU32,
    /// The [`holder`], whether what the lock protects may be half changed, and the number of
    /// levels. They share one word because guards may be dropped on other threads: a level may be
    /// added only while there still is one.
    levels: AtomicU64,
    /// The process in which a guard lends references into the memory of this block's value; 0 means
    /// none.
    lent: AtomicU32,
    reserved: AtomicU32,
}

// SAFETY: `repr(C)`, atomics only, no drop, and all zeros is a valid value.
unsafe impl SharedLayout for LockLayout {}

impl LockLayout {
    /// Records the process that lends references, or that none does.
    pub(super) fn lend_to(&self, me: Option<OwnerId>) {
        // Release: what was done through the references happens before this store. A guard may be
        // dropped on a different thread than the one that holds the lock. The holding thread then
        // needs nothing but this word to use the value again.
        self.lent.store(me.map_or(0, OwnerId::bits), Ordering::Release);
    }

    /// Returns the process that lends references.
    pub(super) fn lent_to(&self) -> Option<OwnerId> {
        let lent = self.lent.load(Ordering::Acquire);
        if lent == 0 { None } else { OwnerId::from_bits(lent) }
    }
}

/// A lock on its own: nobody asks for its holder.
const PLAIN: u32 = 0;
/// The lock was given to a value or an array. Its holder may use them.
const GIVEN: u32 = 1;
/// The lock of a value or an array. Its holder may also acquire it again.
const REENTRANT: u32 = 2;

const HOLDER_SHIFT: u32 = 24;
/// What the lock protects may be half changed.
const IN_DISORDER: u64 = 1 << 23;
/// The bits of the number of levels.
const COUNT: u64 = IN_DISORDER - 1;

/// Identifies the holder of a re-entrant lock, in 40 bits: a thread, or a task of tokio. Tasks
/// share threads and move between them.
pub(crate) mod holder {
    use std::hash::{Hash, Hasher};

    use crate::os::{liveness::OwnerId, local};

    /// The holder is a task of tokio. Its number has 38 bits, so two tasks are confused only if a
    /// guard is kept while that many others are spawned.
    const TASK: u64 = 1 << 39;
    /// The holder is a task of another runtime, of which only the thread is known.
    const UNKNOWN_TASK: u64 = 1 << 38;
    /// The holder is a thread inside a call of its own, during which nobody else can run on that
    /// thread.
    const IN_CALL: u64 = TASK | UNKNOWN_TASK;

    /// A hasher that returns the number of a task, because tokio shows that number to hashers.
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

    /// Returns the task or thread that runs this.
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

    /// Like [`this`], in an async form, which may run on any runtime.
    pub(super) fn this_async() -> u64 {
        let this = this();
        // Inside tokio but without a task number, it is the one future that blocks its thread.
        if this & TASK != 0 || tokio::runtime::Handle::try_current().is_ok() {
            this
        } else {
            this | UNKNOWN_TASK
        }
    }

    /// Mixes the process's number into a holder, so that the holders of any two processes differ.
    ///
    /// A caller may read the owner of the levels, and then levels that another process has written
    /// in the meantime: it must not mistake them for its own.
    pub(super) fn salted(holder: u64, me: OwnerId) -> u64 {
        holder ^ u64::from(me.bits()) << 8
    }

    /// Returns this thread as the holder for the duration of a call that runs user code.
    pub(super) fn this_call() -> u64 {
        IN_CALL | u64::from(local::this_thread())
    }

    /// What is known about whether the caller is a certain holder.
    pub(super) enum Is {
        Me,
        Another,
        /// The holder is a task that shares the caller's thread. It may be the same task.
        Unknown,
    }

    /// Whether the caller is that holder.
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

const KINDS: &[BlockKind] = &[BlockKind::Lock, BlockKind::Value, BlockKind::Array];

travels!(Lock, block, KINDS, |len| len >= size_of::<LockLayout>());

impl Lock {
    /// Creates a lock that is free.
    ///
    /// # Errors
    /// The system's error if no descriptor or memory is left.
    pub fn new() -> io::Result<Self> {
        Ok(Lock { block: Block::allocate(BlockKind::Lock, size_of::<LockLayout>())? })
    }

    /// Returns the lock at the beginning of a block that has one.
    pub(crate) fn of(block: &Block) -> Self {
        debug_assert!(KINDS.contains(&block.kind()));
        Lock { block: block.clone() }
    }

    /// Makes this the lock of that block: its own, or one that was given to it. From now on, the
    /// holder may use what is in the block.
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
        let (me, creator) = self.owners().me_and_creator();
        User { lock: self, layout: self.layout(), me, creator }
    }

    /// Waits until the lock is free, and acquires it.
    ///
    /// # Errors
    /// If the previous holder has died. The error contains the guard.
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

    /// Acquires the lock if it is free now; otherwise returns `None`.
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

    /// Like [`acquire`](Self::acquire), but waits no longer than `timeout` and then returns `None`.
    pub fn acquire_timeout(&self, timeout: Duration) -> Option<LockResult<LockGuard<'_>>> {
        self.try_acquire().or_else(|| self.acquire_until(deadline_in(timeout)))
    }

    #[inline]
    pub(crate) fn acquire_until(&self, deadline: Deadline) -> Option<LockResult<LockGuard<'_>>> {
        let user = self.user();
        match user.layout.mutex.try_acquire_free(user.me) {
            Some(locked) => Some(user.guard(locked)),
            None => user.acquire_slowly(deadline, REENTRANT),
        }
    }

    /// Like [`acquire`](Self::acquire), for operations of a value or an array. It succeeds at once
    /// if this thread or task holds the lock, even if the lock was given to the value and is not
    /// re-entrant.
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

    /// Acquires the lock if it is free and no holder has died. This is the most frequent case, and
    /// it is optimised for that. No other guard of this process holds the lock then.
    #[inline]
    pub(crate) fn acquire_if_free(&self) -> Option<LockGuard<'_>> {
        let user = self.user();
        let _clean = user.layout.mutex.try_acquire_free(user.me)?;
        Some(user.clean_guard())
    }

    /// Like [`acquire_again`](Self::acquire_again), if that is possible without waiting.
    #[inline]
    pub(crate) fn try_acquire_again(&self) -> Option<LockResult<LockGuard<'_>>> {
        self.try_acquire_if(GIVEN)
    }

    /// Like [`acquire_again`](Self::acquire_again), with a deadline.
    pub(crate) fn acquire_again_until(
        &self,
        deadline: Deadline,
    ) -> Option<LockResult<LockGuard<'_>>> {
        self.try_acquire_again().or_else(|| self.user().acquire_slowly(deadline, GIVEN))
    }

    /// Like [`acquire`](Self::acquire), on any async runtime.
    ///
    /// This form is never re-entrant: if this task already holds the lock, the future waits until
    /// that guard is dropped. The branches of `join!` or `select!` are one task, and exclude each
    /// other.
    ///
    /// # Cancel safety
    /// Dropping the future takes neither the lock nor another waiter's wake-up.
    pub async fn acquire_async(&self) -> LockResult<LockGuard<'_>> {
        let (mutex, owners) = (&self.layout().mutex, self.owners());
        let user = self.user();
        if let Ok(locked) = mutex.try_acquire(owners, user.me) {
            return user.guard_of(locked, holder::this_async);
        }
        loop {
            let user = self.user();
            // Set the mark: others may wait as well, and must be woken when the lock is released.
            match mutex.try_acquire_slowly(owners, user.me, RobustMutex::CONTENDED) {
                Ok(locked) => return user.guard_of(locked, holder::this_async),
                Err(word) => WordWait::new(&self.block, mutex.word(), word).await,
            }
        }
    }

    /// Holds the lock for a call that runs no user code, so nobody can re-enter it during the
    /// call.
    #[inline]
    pub(crate) fn hold(&self) -> Held<'_> {
        let user = self.user();
        let how = match user.layout.mutex.try_acquire_free(user.me) {
            Some(_) => How::Plainly,
            None => user.hold_slowly(),
        };
        Held { user, how }
    }

    /// Like [`hold`](Self::hold), for a call that runs user code, which may use what the lock
    /// protects. `call` is a new one, on the caller's stack.
    #[inline]
    pub(crate) fn hold_and_call<'a>(&'a self, call: &'a Call) -> Held<'a> {
        let user = self.user();
        let how = match user.layout.mutex.try_acquire_free(user.me) {
            Some(_) => How::Plainly,
            None => user.hold_slowly(),
        };
        let how = match how {
            How::Plainly => {
                call.begin(&user);
                How::Calling(call)
            }
            How::AfterDeath => {
                user.begin_levels(holder::this_call(), true);
                How::Counted
            }
            how => how,
        };
        Held { user, how }
    }

    /// Records that `me` lends references into this block's value or, for `None`, that nobody does
    /// any more. The caller holds the lock.
    #[inline]
    pub(crate) fn lend(block: &Block, me: Option<OwnerId>) {
        block.part::<LockLayout>(0).lend_to(me);
    }

    /// Whether a guard of this process lends references into this block's value. The caller holds
    /// the lock.
    #[inline]
    pub(crate) fn is_lent(&self, block: &Block) -> bool {
        // The lender is recorded by its number as a user of the lock's memory, which may differ
        // from its number as a user of the block's memory. An entry that a dead process has left
        // matches nobody.
        block.part::<LockLayout>(0).lent_to().is_some_and(|owner| self.owners().is_me(owner))
    }

    /// Releases a lock that was [left locked](LockGuard::leave_locked), from any thread of any
    /// process.
    ///
    /// # Errors
    /// If the lock is free, or a guard holds it.
    pub fn release(&self) -> Result<(), ReleaseError> {
        let mutex = &self.layout().mutex;
        if mutex.release_left() {
            return Ok(());
        }
        Err(match mutex.state(self.owners()) {
            MutexState::Alive(_) => ReleaseError::Guarded,
            MutexState::Free | MutexState::Dead | MutexState::Left => ReleaseError::NotLocked,
        })
    }

    /// Whether any process holds the lock at this moment.
    pub fn is_locked(&self) -> bool {
        matches!(self.layout().mutex.state(self.owners()), MutexState::Alive(_) | MutexState::Left)
    }
}

/// A lock, and this process as its user: everything that a guard needs. It is looked up once,
/// before the lock is acquired. After an atomic exchange, all of it would have to be read again,
/// one pointer after the other.
#[derive(Clone, Copy)]
struct User<'a> {
    lock: &'a Lock,
    layout: &'a LockLayout,
    me: OwnerId,
    creator: Creator,
}

impl<'a> User<'a> {
    /// Whether this is the process that acquired the lock, and not one forked from it.
    #[inline]
    fn is_here(self) -> bool {
        !self.creator.is_elsewhere()
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

    /// Returns a guard of a lock that was free.
    #[inline]
    fn clean_guard(self) -> LockGuard<'a> {
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
    fn begin_levels(self, holder: u64, in_disorder: bool) {
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
    fn go_deeper(self, sort: u32) -> bool {
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
    fn deeper(self, sort: u32) -> Option<LockGuard<'a>> {
        let by = By::new(self.me, By::COUNTED | By::DEEPER);
        // Create the guard only in that case, because dropping one ends a level.
        if self.go_deeper(sort) { Some(LockGuard { lock: self.lock, by }) } else { None }
    }

    /// Ends a level of this process. Ending the last one releases the lock.
    #[inline]
    fn end_level(self) {
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
    fn end_one_of_several(self) {
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
    fn end_call(self) {
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
    fn hold_slowly(self) -> How<'a> {
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

impl fmt::Debug for Lock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let thread = self.layout().thread.load(Ordering::Relaxed);
        write!(
            f,
            "Lock({})",
            describe(self.layout().mutex.state(self.owners()), self.owners(), thread)
        )
    }
}

/// Describes a mutex's state, and its holder as seen from the caller.
pub(super) fn describe(state: MutexState, owners: &impl Owners, thread: u32) -> &'static str {
    match state {
        MutexState::Free => "free",
        MutexState::Dead => "its holder has died",
        MutexState::Left => "left locked",
        MutexState::Alive(owner) if !owners.is_me(owner) => "held by another process",
        MutexState::Alive(_) if thread != local::this_thread() => "held by another thread",
        MutexState::Alive(_) => "held by this thread",
    }
}

/// Panics in a forked process, where the lock is held by the parent. What one process writes under
/// the lock, the other one would write as well, or would see changed behind a reference.
#[inline]
#[track_caller]
fn check_mine(is_mine: bool) {
    assert!(
        is_mine,
        "this process is a fork of the one that holds the lock: what the lock protects is the other one's"
    );
}

/// Holds a lock for the duration of a call.
///
/// It is dropped, never forgotten: see [`Call`].
pub(crate) struct Held<'a> {
    user: User<'a>,
    how: How<'a>,
}

impl Held<'_> {
    /// Like [`LockGuard::check_mine`].
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
enum How<'a> {
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
    fn begin(&self, user: &User<'_>) {
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
    fn record(user: &User<'_>) {
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

/// Holds a [`Lock`] until it is dropped, on any thread.
#[must_use = "the lock is released when this is dropped"]
pub struct LockGuard<'a> {
    lock: &'a Lock,
    by: By,
}

/// The process that a guard belongs to, and the guard's flags.
///
/// They share one word: a guard is passed on three times before the caller has it, and reading a
/// word that was written to memory in smaller parts makes the processor wait each time.
#[derive(Clone, Copy)]
struct By(u64);

impl By {
    /// The next holder must be told that a holder has died.
    const DISORDER: u64 = 1 << 32;
    /// The guard counts as a level: the lock belongs to a value or an array, and did when it was
    /// acquired.
    const COUNTED: u64 = 1 << 33;
    /// The level was added to one that already existed.
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

    /// Like [`Held::is_shared`], for a guard that was just acquired.
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
