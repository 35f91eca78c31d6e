//! One value that processes share.

use std::{
    fmt, io,
    marker::PhantomData,
    ops::{Deref, DerefMut},
    ptr::NonNull,
    time::Duration,
};

use bytemuck::Pod;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::heap::{
    block::{Access, Block, Kind, Place},
    words::{self, Integer},
};
use crate::sync::{
    Lock, LockGuard, LockResult, OwnerDied, Recover,
    lock::{Held, LockLayout},
    raw::deadline_in,
};

/// A value in memory that processes share, with a lock.
///
/// `T` is plain data: numbers, arrays of them, and structs that derive `bytemuck::Pod`. The value travels as an argument or
/// a result of a task, which is to say that a handle does: all see the same value. Two handles are equal if they are of
/// the same one.
///
/// ```
/// use executor::{Value, prelude::*};
///
/// #[task]
/// fn sell(tickets: Value<u32>) -> bool {
///     tickets.update(|left| match left.checked_sub(1) {
///         Some(rest) => { *left = rest; true }
///         None => false,
///     })
/// }
///
/// #[executor::main]
/// fn main() -> Result<(), Box<dyn std::error::Error>> {
///     let pool = ProcessPoolExecutor::builder().max_workers(2).build()?;
///     let tickets = Value::new(7_u32)?;
///     let sales = pool.map(|_| sell::task(tickets.clone()), 0..10).collect::<Result<Vec<_>, _>>()?;
///     assert_eq!(sales.iter().filter(|sold| **sold).count(), 7);
///     assert_eq!(tickets.get(), 0);
///     Ok(())
/// }
/// ```
///
/// # One at a time
///
/// [`get`](Self::get), [`set`](Self::set) and [`update`](Self::update) hold the lock for as long as they take.
/// [`lock`](Self::lock) holds it while the guard lives, which derefs to the value in place. `value.set(value.get() + 1)`
/// is two steps, between which others come in; use `update`, or hold [the lock](Self::get_lock), which is re-entrant: the thread
/// that holds it, or the task of tokio, may do all of these, and acquire it again. The async forms wait until nobody holds it, this
/// task included.
///
/// ```
/// # let value = executor::Value::new(1)?;
/// let guard = value.get_lock().acquire().unwrap();
/// value.set(value.get() + 1);
/// drop(guard);
/// assert_eq!(value.get(), 2);
/// # Ok::<(), std::io::Error>(())
/// ```
///
/// A lock that was [given](Self::with_lock) to the value is not re-entrant by itself, but whoever holds it may do the same.
/// A thread to which another one has moved its guard does not hold the lock.
///
/// # When the holder of the lock dies
///
/// The next [`lock`](Self::lock) says so ([`OwnerDied`]). `get`, `set` and `update` carry on with the value as it is, and
/// leave the news to that. `update` writes the new value when the closure has returned: up to eight bytes (of a type
/// whose alignment is its size) at once, so that a death leaves the old value or the new one.
///
/// # Why it is sound
///
/// References into the memory exist only under the lock, and the library lets nobody else touch the value meanwhile: what
/// has a lock is not to be had without it, and a lock that a guard holds nobody else can release. What remains is a
/// process that writes to the memory around the library, by `unsafe` code or on purpose. Any bytes are a `T`, the memory
/// cannot go away, and `get`, `set` and `update` use atomics only, so that not even this is undefined behaviour there;
/// a reference in a guard may see its value change, as with any memory that is mapped from a file.
pub struct Value<T> {
    block: Block,
    lock: Lock,
    marker: PhantomData<T>,
}

/// Where the value lies in its block.
const fn offset<T>() -> usize {
    Block::aligned(size_of::<LockLayout>(), align_of::<T>())
}

impl<T: Pod> Value<T> {
    /// A new one, with a lock of its own.
    ///
    /// # Errors
    /// The system's, if it has no descriptor or no memory left.
    pub fn new(value: T) -> io::Result<Self> {
        let block =
            Block::allocate_for(Kind::Value, Access::of::<T>(), offset::<T>() + size_of::<T>(), None)?;
        let lock = Lock::of(&block);
        Ok(Self::with(block, lock, value))
    }

    /// A new one that shares a lock with others. Give it the lock before anybody holds that: a guard from before is not known to be
    /// this thread's, which would wait for itself.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_lock(value: T, lock: &Lock) -> io::Result<Self> {
        let len = offset::<T>() + size_of::<T>();
        let block = Block::allocate_for(Kind::Value, Access::of::<T>(), len, Some(lock.block()))?;
        Ok(Self::with(block, lock.clone(), value))
    }

    fn with(block: Block, lock: Lock, value: T) -> Self {
        lock.belong_to(&block);
        let new = Value { block, lock, marker: PhantomData };
        // SAFETY: `at` is what it says; nobody else has it yet.
        unsafe { words::store(new.at(), &value) };
        new
    }

    /// Aligned for `T`, with room for one, as long as `self`.
    #[inline]
    fn at(&self) -> NonNull<u8> {
        self.block.bytes(offset::<T>(), size_of::<T>())
    }

    /// The value now.
    ///
    /// # Panics
    /// If this thread has a guard of the value ([`lock`](Self::lock)): use that.
    pub fn get(&self) -> T {
        let _held = self.hold();
        // SAFETY: `at`; under the lock there is no other reference.
        unsafe { words::load(self.at()) }
    }

    /// Another value.
    ///
    /// # Panics
    /// As [`get`](Self::get).
    pub fn set(&self, value: T) {
        let _held = self.hold();
        // SAFETY: as in `get`.
        unsafe { words::store(self.at(), &value) }
    }

    /// Changes it under the lock; returns what the closure does. If that panics, the value stays as it was.
    ///
    /// # Panics
    /// As [`get`](Self::get). In a copy of this process that the closure has made by `fork`, and that returns from it: the lock is
    /// the original's.
    pub fn update<R>(&self, change: impl FnOnce(&mut T) -> R) -> R {
        let held = self.lock.hold_and_call();
        if held.is_shared() {
            self.check_not_lent();
        }
        // SAFETY: as in `get`.
        let mut value = unsafe { words::load::<T>(self.at()) };
        let result = change(&mut value);
        kill_point!(ValueComputed);
        // The closure may have forked.
        held.check_mine();
        if held.is_shared() {
            // A guard that was made by the closure and kept.
            self.check_not_lent();
        }
        // SAFETY: as in `get`.
        unsafe { words::store(self.at(), &value) };
        kill_point!(ValueWritten);
        result
    }

    /// Holds the lock, for a call that has no code of the user.
    #[inline]
    #[track_caller]
    fn hold(&self) -> Held<'_> {
        let held = self.lock.hold();
        if held.is_shared() {
            self.check_not_lent();
        }
        held
    }

    /// That no guard lends references: it would be one of this thread, or one that this thread has given away.
    #[inline]
    #[track_caller]
    fn check_not_lent(&self) {
        assert!(
            !self.lock.is_lent(&self.block),
            "this thread has a guard of the value and would wait for itself: use the guard"
        );
    }

    /// Adds to it, wrapping around at its end; returns what it was before.
    pub fn fetch_add(&self, other: T) -> T
    where
        T: Integer,
    {
        self.update(|value| std::mem::replace(value, value.plus(other)))
    }

    /// Waits for the lock; the guard derefs to the value.
    ///
    /// # Errors
    /// If the one who held it has died: the error has the guard.
    ///
    /// # Panics
    /// If this thread has such a guard already.
    pub fn lock(&self) -> LockResult<ValueGuard<'_, T>> {
        if let Some(guard) = self.lock.acquire_if_free() {
            return Ok(self.guard_of(guard));
        }
        let acquired = self.lock.acquire_again();
        if acquired.as_ref().is_ok_and(LockGuard::is_deeper) {
            self.check_not_lent();
        }
        self.guard(acquired)
    }

    /// As [`lock`](Self::lock), if it is free now; else `None`.
    pub fn try_lock(&self) -> Option<LockResult<ValueGuard<'_, T>>> {
        self.guard_if_not_lent(self.lock.try_acquire_again()?)
    }

    /// As [`lock`](Self::lock), but waits no longer than this: then `None`. At once, if this thread has such a guard already.
    pub fn lock_timeout(&self, limit: Duration) -> Option<LockResult<ValueGuard<'_, T>>> {
        self.guard_if_not_lent(self.lock.acquire_again_until(deadline_in(limit))?)
    }

    /// As [`lock`](Self::lock), on any async runtime.
    ///
    /// # Errors
    /// As [`lock`](Self::lock).
    ///
    /// # Cancel safety
    /// As [`Lock::acquire_async`]. As there, it waits also while this task itself holds the lock.
    pub async fn lock_async(&self) -> LockResult<ValueGuard<'_, T>> {
        self.guard(self.lock.acquire_async().await)
    }

    fn guard_if_not_lent<'a>(
        &'a self,
        acquired: LockResult<LockGuard<'a>>,
    ) -> Option<LockResult<ValueGuard<'a, T>>> {
        let lent = acquired.as_ref().is_ok_and(LockGuard::is_deeper) && self.lock.is_lent(&self.block);
        (!lent).then(|| self.guard(acquired))
    }

    /// The lock is held, and nothing lent.
    fn guard<'a>(&'a self, acquired: LockResult<LockGuard<'a>>) -> LockResult<ValueGuard<'a, T>> {
        let wrap = |guard| self.guard_of(guard);
        acquired.map(wrap).map_err(|died: OwnerDied<_>| died.map(wrap))
    }

    #[inline]
    fn guard_of<'a>(&'a self, guard: LockGuard<'a>) -> ValueGuard<'a, T> {
        Lock::lend(&self.block, Some(guard.me()));
        ValueGuard { value: self, guard }
    }

    /// Its lock: its own, or the one it shares with others.
    pub fn get_lock(&self) -> &Lock {
        &self.lock
    }

    /// Where it lies in this process. Others may write to it at any moment.
    pub fn as_ptr(&self) -> *mut T {
        self.at().as_ptr().cast()
    }
}

impl<T> Clone for Value<T> {
    fn clone(&self) -> Self {
        Value { block: self.block.clone(), lock: self.lock.clone(), marker: PhantomData }
    }
}

impl<T> PartialEq for Value<T> {
    /// Whether both are handles of the same value.
    fn eq(&self, other: &Self) -> bool {
        self.block == other.block
    }
}

impl<T> Eq for Value<T> {}

impl<T> fmt::Debug for Value<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Value<{}>({:?})", std::any::type_name::<T>(), self.lock)
    }
}

impl<T: Pod> Serialize for Value<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let shared = (*self.lock.block() != self.block).then_some(&self.lock);
        (shared, self.block.depart::<S>()?).serialize(serializer)
    }
}

impl<'de, T: Pod> Deserialize<'de> for Value<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (shared, place) = <(Option<Lock>, Place)>::deserialize(deserializer)?;
        let fits = |len| len == offset::<T>() + size_of::<T>();
        let (access, lock) = (Some(Access::of::<T>()), shared.as_ref().map(Lock::block));
        let block = Block::arrive(place, &[Kind::Value], access, fits, lock)?;
        let lock = shared.unwrap_or_else(|| Lock::of(&block));
        Ok(Value { block, lock, marker: PhantomData })
    }
}

/// Holds the lock of a [`Value`], and derefs to the value in place.
#[must_use = "the lock is released when this is dropped"]
pub struct ValueGuard<'a, T> {
    value: &'a Value<T>,
    guard: LockGuard<'a>,
}

impl<T> Drop for ValueGuard<'_, T> {
    fn drop(&mut self) {
        // In a fork it is the parent's. The lock is released after this.
        if self.guard.is_mine() {
            Lock::lend(&self.value.block, None);
        }
    }
}

impl<T: Pod> Deref for ValueGuard<'_, T> {
    type Target = T;

    #[track_caller]
    fn deref(&self) -> &T {
        self.guard.check_mine();
        // SAFETY: `at`. Any bytes are a `T`. While the lock is held, nobody else writes or has a reference: see the
        // documentation of `Value`. In a fork, whose parent has the lock and may write, there is none.
        unsafe { self.value.at().cast().as_ref() }
    }
}

impl<T: Pod> DerefMut for ValueGuard<'_, T> {
    #[track_caller]
    fn deref_mut(&mut self) -> &mut T {
        self.guard.check_mine();
        // SAFETY: as in `deref`, and borrowed once.
        unsafe { self.value.at().cast().as_mut() }
    }
}

impl<T> Recover for ValueGuard<'_, T> {
    fn recover(&mut self) {
        self.guard.recover();
    }
}

impl<T: Pod + fmt::Debug> fmt::Debug for ValueGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

/// A value in memory that processes share, without a lock.
///
/// As [`Value`], but nothing keeps others out: what is larger than one word (eight bytes, or the type's alignment if that
/// is less) may be read half old and half new. Integers have [`fetch_add`](Self::fetch_add), which is one step.
///
/// ```
/// use executor::RawValue;
///
/// let count = RawValue::new(1_u64)?;
/// assert_eq!(count.fetch_add(2), 1);
/// assert_eq!(count.get(), 3);
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct RawValue<T> {
    block: Block,
    marker: PhantomData<T>,
}

/// Where the value lies in its block.
const fn raw_offset<T>() -> usize {
    Block::aligned(0, align_of::<T>())
}

impl<T: Pod> RawValue<T> {
    /// A new one.
    ///
    /// # Errors
    /// The system's, if it has no descriptor or no memory left.
    pub fn new(value: T) -> io::Result<Self> {
        let len = raw_offset::<T>() + size_of::<T>();
        let block = Block::allocate_for(Kind::RawValue, Access::of::<T>(), len, None)?;
        let new = RawValue { block, marker: PhantomData };
        new.set(value);
        Ok(new)
    }

    /// Aligned for `T`, with room for one, as long as `self`.
    fn at(&self) -> NonNull<u8> {
        self.block.bytes(raw_offset::<T>(), size_of::<T>())
    }

    /// The value now. It sees what was written before the value was [`set`](Self::set).
    pub fn get(&self) -> T {
        // SAFETY: `at`; the library makes no references to it.
        unsafe { words::load(self.at()) }
    }

    /// Another value.
    pub fn set(&self, value: T) {
        // SAFETY: as in `get`.
        unsafe { words::store(self.at(), &value) }
    }

    /// Adds to it in one step, wrapping around at its end; returns what it was before.
    pub fn fetch_add(&self, other: T) -> T
    where
        T: Integer,
    {
        // SAFETY: as in `get`.
        unsafe { T::add_to(self.at(), other) }
    }

    /// Where it lies in this process. Others may write to it at any moment.
    pub fn as_ptr(&self) -> *mut T {
        self.at().as_ptr().cast()
    }
}

impl<T> Clone for RawValue<T> {
    fn clone(&self) -> Self {
        RawValue { block: self.block.clone(), marker: PhantomData }
    }
}

impl<T> PartialEq for RawValue<T> {
    /// Whether both are handles of the same value.
    fn eq(&self, other: &Self) -> bool {
        self.block == other.block
    }
}

impl<T> Eq for RawValue<T> {}

impl<T: Pod + fmt::Debug> fmt::Debug for RawValue<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RawValue").field(&self.get()).finish()
    }
}

impl<T: Pod> Serialize for RawValue<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.block.serialize(serializer)
    }
}

impl<'de, T: Pod> Deserialize<'de> for RawValue<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let fits = |len| len == raw_offset::<T>() + size_of::<T>();
        let place = Place::deserialize(deserializer)?;
        let block = Block::arrive(place, &[Kind::RawValue], Some(Access::of::<T>()), fits, None)?;
        Ok(RawValue { block, marker: PhantomData })
    }
}
