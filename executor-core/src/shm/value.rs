//! A value that processes share.

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
    block::{Access, Block, BlockKind, BlockPlace},
    words::{self, Integer},
};
use crate::sync::{
    Lock, LockGuard, LockResult, OwnerDied, Recover,
    lock::{Call, Held, LockLayout},
    raw::deadline_in,
};

/// A value in memory that processes share, with a lock.
///
/// `T` is plain data: numbers, arrays of them, and structs that derive `bytemuck::Pod`. A handle
/// can be sent as an argument or a result of a task, and all handles refer to the same value. Two
/// handles are equal if they do.
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
/// [`get`](Self::get), [`set`](Self::set) and [`update`](Self::update) hold the lock while they
/// run. [`lock`](Self::lock) holds it until the guard is dropped; the guard derefs to the value in
/// place. `value.set(value.get() + 1)` is two steps, and others may come in between. Use `update`,
/// or hold [the lock](Self::get_lock). The lock is re-entrant: the thread or tokio task that holds
/// it may call all of these methods, and may acquire the lock again. The async forms wait until
/// nobody holds the lock, not even this task.
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
/// A lock that was [given](Self::with_lock) to the value is not re-entrant by itself, but its
/// holder may call the same methods. A thread that has received a guard from another thread does
/// not count as the holder of the lock.
///
/// # When the holder of the lock dies
///
/// The next [`lock`](Self::lock) reports it ([`OwnerDied`]). `get`, `set` and `update` continue
/// with the value as it is, and leave the report to the next `lock`. `update` writes the new value
/// after the closure has returned. A value of up to eight bytes (of a type whose alignment is its
/// size) is written at once, so a death leaves either the old or the new value.
///
/// # Why it is sound
///
/// References into the memory exist only while the lock is held, and the library lets nobody else
/// access the value meanwhile: a value with a lock cannot be accessed without the lock, and only
/// the guard that holds the lock can release it.
///
/// What remains is a process that writes to the memory without the library, through `unsafe` code
/// or on purpose. Any bytes are a valid `T`, the memory cannot disappear, and `get`, `set` and
/// `update` use atomics only. So not even this is undefined behaviour in these methods. A reference
/// in a guard may see its value change, as with any memory that is mapped from a file.
pub struct Value<T> {
    block: Block,
    lock: Lock,
    marker: PhantomData<T>,
}

/// Returns the offset of the value in its block.
const fn offset<T>() -> usize {
    Block::aligned(size_of::<LockLayout>(), align_of::<T>())
}

impl<T: Pod> Value<T> {
    /// Creates a value with its own lock.
    ///
    /// # Errors
    /// The system's error if no descriptor or memory is left.
    pub fn new(value: T) -> io::Result<Self> {
        let block = Block::allocate_for(
            BlockKind::Value,
            Access::of::<T>(),
            offset::<T>() + size_of::<T>(),
            None,
        )?;
        let lock = Lock::of(&block);
        Ok(Self::with(block, lock, value))
    }

    /// Creates a value that uses an existing lock.
    ///
    /// Do this before anybody holds the lock. An earlier guard is not recorded as this thread's, so
    /// the thread would wait for itself.
    ///
    /// # Errors
    /// As for [`new`](Self::new).
    pub fn with_lock(value: T, lock: &Lock) -> io::Result<Self> {
        let len = offset::<T>() + size_of::<T>();
        let block =
            Block::allocate_for(BlockKind::Value, Access::of::<T>(), len, Some(lock.block()))?;
        Ok(Self::with(block, lock.clone(), value))
    }

    fn with(block: Block, lock: Lock, value: T) -> Self {
        lock.belong_to(&block);
        let new = Value { block, lock, marker: PhantomData };
        // SAFETY: see `at`. Nobody else has the value yet.
        unsafe { words::store(new.at(), &value) };
        new
    }

    /// Returns the address of the value. It is aligned for `T`, has room for one `T`, and is valid
    /// as long as `self`.
    #[inline]
    fn at(&self) -> NonNull<u8> {
        self.block.bytes(offset::<T>(), size_of::<T>())
    }

    /// Returns the value.
    ///
    /// # Panics
    /// If this thread has a guard of the value ([`lock`](Self::lock)). Use the guard instead.
    pub fn get(&self) -> T {
        let _held = self.hold();
        // SAFETY: see `at`. The lock is held and nothing is lent, so there is no reference.
        unsafe { words::load(self.at()) }
    }

    /// Sets the value.
    ///
    /// # Panics
    /// As for [`get`](Self::get).
    pub fn set(&self, value: T) {
        let _held = self.hold();
        // SAFETY: as in `get`.
        unsafe { words::store(self.at(), &value) }
    }

    /// Changes the value under the lock, and returns the closure's result. If the closure panics,
    /// the value stays as it was.
    ///
    /// # Panics
    /// As for [`get`](Self::get). Also in a copy of this process that the closure has created by
    /// `fork` and that returns from the closure: the lock belongs to the original process.
    pub fn update<R>(&self, change: impl FnOnce(&mut T) -> R) -> R {
        let call = Call::default();
        let held = self.lock.hold_and_call(&call);
        // Other guards of this thread may hold the lock, too. They must not have lent references.
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
            // The closure may have created a guard and kept it.
            self.check_not_lent();
        }
        // SAFETY: as in `get`.
        unsafe { words::store(self.at(), &value) };
        kill_point!(ValueWritten);
        result
    }

    /// Holds the lock for a call that runs no user code.
    #[inline]
    #[track_caller]
    fn hold(&self) -> Held<'_> {
        let held = self.lock.hold();
        if held.is_shared() {
            self.check_not_lent();
        }
        held
    }

    /// Panics if a guard lends references. It belongs to this thread, or this thread has given it
    /// away.
    #[inline]
    #[track_caller]
    fn check_not_lent(&self) {
        assert!(
            !self.lock.is_lent(&self.block),
            "this thread has a guard of the value and would wait for itself: use the guard"
        );
    }

    /// Adds to the value, wrapping around on overflow. Returns the previous value.
    pub fn fetch_add(&self, other: T) -> T
    where
        T: Integer,
    {
        self.update(|value| std::mem::replace(value, value.plus(other)))
    }

    /// Waits for the lock, and returns a guard that derefs to the value.
    ///
    /// # Errors
    /// If the previous holder has died. The error contains the guard.
    ///
    /// # Panics
    /// If this thread already has such a guard.
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

    /// Like [`lock`](Self::lock), if the lock is free now; otherwise returns `None`.
    pub fn try_lock(&self) -> Option<LockResult<ValueGuard<'_, T>>> {
        self.guard_if_not_lent(self.lock.try_acquire_again()?)
    }

    /// Like [`lock`](Self::lock), but waits no longer than `timeout` and then returns `None`.
    /// Returns `None` at once if this thread already has such a guard.
    pub fn lock_timeout(&self, timeout: Duration) -> Option<LockResult<ValueGuard<'_, T>>> {
        self.guard_if_not_lent(self.lock.acquire_again_until(deadline_in(timeout))?)
    }

    /// Like [`lock`](Self::lock), on any async runtime.
    ///
    /// # Errors
    /// As for [`lock`](Self::lock).
    ///
    /// # Cancel safety
    /// As for [`Lock::acquire_async`]. Like that, this also waits while this task itself holds the
    /// lock.
    pub async fn lock_async(&self) -> LockResult<ValueGuard<'_, T>> {
        self.guard(self.lock.acquire_async().await)
    }

    fn guard_if_not_lent<'a>(
        &'a self,
        acquired: LockResult<LockGuard<'a>>,
    ) -> Option<LockResult<ValueGuard<'a, T>>> {
        let lent =
            acquired.as_ref().is_ok_and(LockGuard::is_deeper) && self.lock.is_lent(&self.block);
        (!lent).then(|| self.guard(acquired))
    }

    /// Wraps the lock's guard. The lock is held, and nothing is lent.
    fn guard<'a>(&'a self, acquired: LockResult<LockGuard<'a>>) -> LockResult<ValueGuard<'a, T>> {
        let wrap = |guard| self.guard_of(guard);
        acquired.map(wrap).map_err(|died: OwnerDied<_>| died.map(wrap))
    }

    #[inline]
    fn guard_of<'a>(&'a self, guard: LockGuard<'a>) -> ValueGuard<'a, T> {
        Lock::lend(&self.block, Some(guard.me()));
        ValueGuard { value: self, guard }
    }

    /// Returns the lock: the value's own, or the one that it shares with others.
    pub fn get_lock(&self) -> &Lock {
        &self.lock
    }

    /// Returns the address of the value in this process. Others may write to it at any moment.
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
        // The value's own lock lies in the same block, and is not sent separately.
        let shared = (*self.lock.block() != self.block).then_some(&self.lock);
        (shared, self.block.depart::<S>()?).serialize(serializer)
    }
}

impl<'de, T: Pod> Deserialize<'de> for Value<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (shared, place) = <(Option<Lock>, BlockPlace)>::deserialize(deserializer)?;
        let fits = |len| len == offset::<T>() + size_of::<T>();
        let (access, lock) = (Some(Access::of::<T>()), shared.as_ref().map(Lock::block));
        let block = Block::arrive(place, &[BlockKind::Value], access, fits, lock)?;
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
        // In a forked process it is the parent's. The lock is released after this.
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
        // SAFETY: see `at`. Any bytes are a valid `T`. While the lock is held, nobody else writes
        // or has a reference: see the documentation of `Value`. A forked process, whose parent
        // holds the lock and may write, gets no reference.
        unsafe { self.value.at().cast().as_ref() }
    }
}

impl<T: Pod> DerefMut for ValueGuard<'_, T> {
    #[track_caller]
    fn deref_mut(&mut self) -> &mut T {
        self.guard.check_mine();
        // SAFETY: as in `deref`, and `self` is borrowed mutably, so this is the only reference.
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
/// It is like [`Value`], but nothing keeps others out. A value that is larger than one word (eight
/// bytes, or the type's alignment if that is less) may be read half old and half new. For integers,
/// [`fetch_add`](Self::fetch_add) is a single step.
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

/// Returns the offset of the value in its block.
const fn raw_offset<T>() -> usize {
    Block::aligned(0, align_of::<T>())
}

impl<T: Pod> RawValue<T> {
    /// Creates a value.
    ///
    /// # Errors
    /// The system's error if no descriptor or memory is left.
    pub fn new(value: T) -> io::Result<Self> {
        let len = raw_offset::<T>() + size_of::<T>();
        let block = Block::allocate_for(BlockKind::RawValue, Access::of::<T>(), len, None)?;
        let new = RawValue { block, marker: PhantomData };
        new.set(value);
        Ok(new)
    }

    /// Returns the address of the value. It is aligned for `T`, has room for one `T`, and is valid
    /// as long as `self`.
    fn at(&self) -> NonNull<u8> {
        self.block.bytes(raw_offset::<T>(), size_of::<T>())
    }

    /// Returns the value. The caller sees everything that was written before this value was
    /// [`set`](Self::set).
    pub fn get(&self) -> T {
        // SAFETY: see `at`. The library makes no references to the value.
        unsafe { words::load(self.at()) }
    }

    /// Sets the value.
    pub fn set(&self, value: T) {
        // SAFETY: as in `get`.
        unsafe { words::store(self.at(), &value) }
    }

    /// Adds to the value in a single step, wrapping around on overflow. Returns the previous value.
    pub fn fetch_add(&self, other: T) -> T
    where
        T: Integer,
    {
        // SAFETY: as in `get`.
        unsafe { T::add_to(self.at(), other) }
    }

    /// Returns the address of the value in this process. Others may write to it at any moment.
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
        let place = BlockPlace::deserialize(deserializer)?;
        let block =
            Block::arrive(place, &[BlockKind::RawValue], Some(Access::of::<T>()), fits, None)?;
        Ok(RawValue { block, marker: PhantomData })
    }
}
