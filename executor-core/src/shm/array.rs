//! Many values that processes share.

// Where elements lie is computed here, and references point there: no sum wraps unseen.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use std::{
    fmt, io,
    marker::PhantomData,
    ops::{Deref, DerefMut},
    ptr::NonNull,
    time::Duration,
};

use bytemuck::Pod;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::readers::{Head, Readers, Reading};
use crate::{
    heap::{
        block::{Access, Block, Kind, Place},
        words::{self, Integer},
    },
    os::liveness::{OwnerId, Owners},
    sync::{
        Lock, LockGuard, LockResult, OwnerDied, Recover,
        holders::Holding,
        lock::{Held, LockLayout},
        raw::{Deadline, deadline_in},
    },
};

/// An array of fixed length in memory that processes share, with a lock.
///
/// `T` is plain data: numbers, arrays of them, and structs that derive `bytemuck::Pod`. The array travels as an argument or
/// a result of a task, which is to say that a handle does: all see the same memory, however large, and nothing is copied.
/// Two handles are equal if they are of the same array.
///
/// ```
/// use executor::{Array, prelude::*};
///
/// #[task]
/// fn square(numbers: Array<f64>, from: usize, to: usize) {
///     for number in &mut numbers.write().unwrap()[from..to] {
///         *number *= *number;
///     }
/// }
///
/// #[executor::main]
/// fn main() -> Result<(), Box<dyn std::error::Error>> {
///     let pool = ProcessPoolExecutor::builder().max_workers(2).build()?;
///     let numbers = Array::from_slice(&[1.0, 2.0, 3.0, 4.0])?;
///     let first = pool.submit(square::task(numbers.clone(), 0, 2));
///     pool.submit(square::task(numbers.clone(), 2, 4)).result()?;
///     first.result()?;
///     assert_eq!(*numbers.read().unwrap(), [1.0, 4.0, 9.0, 16.0]);
///     Ok(())
/// }
/// ```
///
/// # Who reads, who writes
///
/// Several processes and threads [`read`](Self::read) at the same time, or one [`write`](Self::write)s; whoever waits to
/// write goes before those who come later, except for a thread that reads already. A thread that reads and wants to write would
/// wait for itself: that is a panic. Tasks that each write a part of their own, at the same time, take a [`RawArray`], or an array each.
/// Holding [the lock](Self::get_lock) keeps others from beginning to read or write; it is re-entrant, so the thread that holds it
/// does both.
///
/// Some thirty processes can read at the same time, or one for each 256 bytes up to 1,000; one more waits.
///
/// # When somebody dies
///
/// If one dies while it writes, the next who reads or writes is told ([`OwnerDied`]). One that dies while it reads is not
/// waited for. [`get`](Self::get), [`set`](Self::set) and [`copy_to_vec`](Self::copy_to_vec) carry on, and leave the news.
///
/// # Memory
///
/// It is all there from the beginning: if the system has not that much, making the array fails, and nothing is killed later.
/// Up to 8 KiB, arrays share descriptors with other objects; a larger one takes two in each process that has it.
///
/// # Why it is sound
///
/// As for [`Value`](crate::Value).
pub struct Array<T> {
    block: Block,
    lock: Lock,
    len: usize,
    marker: PhantomData<T>,
}

/// Where the table of readers begins: after the lock, and the head of the readers.
const HEAD: usize = size_of::<LockLayout>();
const TABLE: usize = HEAD + size_of::<Head>();

/// How many processes can read an array of so many bytes.
fn readers_max(bytes: usize) -> usize {
    (bytes / 256).clamp(30, 1_000)
}

/// Where the elements begin, and where they end.
fn range<T>(len: usize) -> Option<(usize, usize)> {
    let bytes = len.checked_mul(size_of::<T>())?;
    let table = readers_max(bytes).checked_mul(size_of::<Holding>())?;
    let start = Block::aligned(TABLE.checked_add(table)?, align_of::<T>());
    Some((start, start.checked_add(bytes)?))
}

/// The bytes of so many elements of an array that there is: no more than [`range`] has computed when the array was made or received,
/// so neither this nor what is added to it wraps.
const fn bytes<T>(count: usize) -> usize {
    count.wrapping_mul(size_of::<T>())
}

impl<T: Pod> Array<T> {
    /// So many zeros, with a lock of its own.
    ///
    /// # Errors
    /// The system's, if it has no descriptor, no addresses or no memory left.
    pub fn zeroed(len: usize) -> io::Result<Self> {
        Self::new(len, None)
    }

    /// As [`zeroed`](Self::zeroed), with a lock that it shares with others. Give it the lock before anybody holds that: a guard from
    /// before is not known to be this thread's, which would wait for itself.
    ///
    /// # Errors
    /// As there.
    pub fn zeroed_with_lock(len: usize, lock: &Lock) -> io::Result<Self> {
        Self::new(len, Some(lock))
    }

    /// A copy of these, with a lock of its own.
    ///
    /// # Errors
    /// As [`zeroed`](Self::zeroed).
    pub fn from_slice(values: &[T]) -> io::Result<Self> {
        let array = Self::zeroed(values.len())?;
        // SAFETY: room for so many, aligned; nobody else has it yet.
        unsafe { words::store_all(array.at(0), values.as_ptr(), values.len()) };
        Ok(array)
    }

    fn new(len: usize, lock: Option<&Lock>) -> io::Result<Self> {
        let (_, end) = range::<T>(len).ok_or(io::ErrorKind::OutOfMemory)?;
        let block = Block::allocate_for(Kind::Array, Access::of::<T>(), end, lock.map(Lock::block))?;
        let lock = lock.cloned().unwrap_or_else(|| Lock::of(&block));
        lock.belong_to(&block);
        Ok(Array { block, lock, len, marker: PhantomData })
    }

    /// How many elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where the elements from this one on lie; aligned, there as long as `self`.
    fn at(&self, index: usize) -> NonNull<u8> {
        let start = range::<T>(self.len).map_or(0, |(start, _)| start);
        let left = self.len.checked_sub(index).expect("an index that was checked");
        self.block.bytes(start.wrapping_add(bytes::<T>(index)), bytes::<T>(left))
    }

    fn readers(&self) -> Readers<'_> {
        let table = self.block.parts(TABLE, readers_max(bytes::<T>(self.len)));
        Readers { head: self.block.part(HEAD), table, owners: self.block.owners() }
    }

    #[track_caller]
    fn check(&self, index: usize) {
        assert!(index < self.len, "index {index} of an array of {}", self.len);
    }

    /// Under the lock: nobody lends references who may write. If so, it is the same thread that holds the lock, or one to whom it
    /// has given its guard.
    #[track_caller]
    fn check_not_lent(&self) {
        assert!(
            !self.lock.is_lent(&self.block),
            "this thread has a guard of the array and would wait for itself: use the guard"
        );
    }

    /// One element now.
    ///
    /// # Panics
    /// If there is none of this index, or if this thread writes ([`write`](Self::write)): use that guard.
    pub fn get(&self, index: usize) -> T {
        self.check(index);
        // Whoever writes holds the lock to the end.
        let _held = self.hold();
        // SAFETY: `at`, within the array; under the lock nobody has a mutable reference.
        unsafe { words::load(self.at(index)) }
    }

    /// Another value for one element.
    ///
    /// # Panics
    /// As [`update`](Self::update).
    pub fn set(&self, index: usize, value: T) {
        self.check(index);
        // As a call that runs code of the user: a panic below runs the program's hook.
        let held = self.lock.hold_and_call();
        if held.is_shared() {
            self.check_not_lent();
        }
        while !self.readers().wait_for_all(None, || self.reads()) {}
        // SAFETY: `at`, within the array; nobody else has a reference.
        unsafe { words::store(self.at(index), &value) };
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

    /// Changes one element while nobody else reads or writes; returns what the closure does. If that panics, the element
    /// stays as it was.
    ///
    /// # Panics
    /// If there is none of this index, or if this thread writes or reads: use that guard, or drop it before. In a copy of this
    /// process that the closure has made by `fork`, and that returns from it: the lock is the original's.
    pub fn update<R>(&self, index: usize, change: impl FnOnce(&mut T) -> R) -> R {
        self.check(index);
        let held = self.lock.hold_and_call();
        if held.is_shared() {
            self.check_not_lent();
        }
        while !self.readers().wait_for_all(None, || self.reads()) {}
        // SAFETY: `at`, within the array; nobody else has a reference.
        let mut element = unsafe { words::load::<T>(self.at(index)) };
        let result = change(&mut element);
        // The closure may have forked.
        held.check_mine();
        if held.is_shared() {
            // A guard that was made by the closure and kept.
            self.check_not_lent();
        }
        while !self.readers().wait_for_all(None, || self.reads()) {}
        // SAFETY: as above.
        unsafe { words::store(self.at(index), &element) };
        result
    }

    /// A copy of all elements.
    pub fn copy_to_vec(&self) -> Vec<T> {
        match self.read() {
            Ok(guard) => guard.to_vec(),
            Err(died) => died.peek().to_vec(),
        }
    }

    /// Waits until nobody writes; the guard derefs to the elements.
    ///
    /// # Errors
    /// If one died while it wrote: the error has a guard, which keeps others out as if one wrote.
    ///
    /// # Panics
    /// If this thread writes.
    pub fn read(&self) -> LockResult<ArrayReadGuard<'_, T>> {
        if let Some(held) = self.lock.acquire_if_free()
            && let Some(me) = self.readers().enter(None)
        {
            drop(held);
            return Ok(self.reading(me));
        }
        loop {
            let acquired = match self.lock.try_acquire_again() {
                Some(acquired) => acquired,
                None => match self.read_again(None) {
                    Some(guard) => return Ok(guard),
                    None => self.lock.acquire_again(),
                },
            };
            if acquired.as_ref().is_ok_and(LockGuard::is_deeper) {
                self.check_not_lent();
            }
            if let Some(acquired) = self.read_until(acquired, None) {
                return acquired;
            }
        }
    }

    /// As [`read`](Self::read), if it need not wait; else `None`.
    pub fn try_read(&self) -> Option<LockResult<ArrayReadGuard<'_, T>>> {
        let now = deadline_in(Duration::ZERO);
        match self.lock.try_acquire_again() {
            Some(acquired) => self.read_until(acquired, now),
            None => self.read_again(now).map(Ok),
        }
    }

    /// As [`read`](Self::read), but waits no longer than this: then `None`.
    pub fn read_timeout(&self, limit: Duration) -> Option<LockResult<ArrayReadGuard<'_, T>>> {
        let deadline = deadline_in(limit);
        if let Some(acquired) = self.lock.try_acquire_again() {
            return self.read_until(acquired, deadline);
        }
        match self.read_again(deadline) {
            Some(guard) => Some(Ok(guard)),
            None => self.read_until(self.lock.acquire_again_until(deadline)?, deadline),
        }
    }

    /// `None` also if this thread writes.
    fn read_until<'a>(
        &'a self,
        acquired: LockResult<LockGuard<'a>>,
        deadline: Deadline,
    ) -> Option<LockResult<ArrayReadGuard<'a, T>>> {
        if self.is_lent_to(&acquired) {
            return None;
        }
        Some(match acquired {
            Ok(held) => {
                let me = self.readers().enter(deadline)?;
                drop(held);
                Ok(self.reading(me))
            }
            Err(died) => {
                Err(died.map(|held| ArrayReadGuard { array: self, hold: Hold::Alone(self.lend(held)) }))
            }
        })
    }

    /// Whether this thread, or task, reads already.
    fn reads(&self) -> bool {
        Reading::is_noted(self.at(0).addr().get())
    }

    /// A guard of one that reads from now on, and was let in.
    fn reading(&self, me: OwnerId) -> ArrayReadGuard<'_, T> {
        ArrayReadGuard { array: self, hold: Hold::Shared(me, Some(Reading::of(self.at(0).addr().get()))) }
    }

    /// One more for a thread that reads already and cannot have the lock: somebody waits to write, for this thread, too. As long
    /// as it reads nobody writes; but its guard may be on another thread, which drops it meanwhile.
    fn read_again(&self, deadline: Deadline) -> Option<ArrayReadGuard<'_, T>> {
        if !self.reads() {
            return None;
        }
        self.readers().enter_beside(deadline).map(|me| self.reading(me))
    }

    /// Whether another guard of the same thread or task lends references.
    fn is_lent_to(&self, acquired: &LockResult<LockGuard<'_>>) -> bool {
        acquired.as_ref().is_ok_and(LockGuard::is_deeper) && self.lock.is_lent(&self.block)
    }

    fn lend<'a>(&'a self, held: LockGuard<'a>) -> Alone<'a> {
        Lock::lend(&self.block, Some(held.me()));
        Alone { block: &self.block, held }
    }

    /// Waits until nobody reads or writes; the guard derefs to the elements.
    ///
    /// # Errors
    /// If one died while it wrote: the error has the guard.
    ///
    /// # Panics
    /// If this thread reads or writes already: drop that guard first. Also if it has given the guard to another thread, which would
    /// drop it at some time: that cannot be told.
    pub fn write(&self) -> LockResult<ArrayWriteGuard<'_, T>> {
        if let Some(held) = self.lock.acquire_if_free()
            && self.readers().wait_for_all(None, || self.reads())
        {
            return Ok(ArrayWriteGuard { array: self, alone: self.lend(held) });
        }
        loop {
            let acquired = self.lock.acquire_again();
            if acquired.as_ref().is_ok_and(LockGuard::is_deeper) {
                self.check_not_lent();
            }
            if let Some(acquired) = self.write_until(acquired, None) {
                return acquired;
            }
        }
    }

    /// As [`write`](Self::write), if it need not wait; else `None`.
    pub fn try_write(&self) -> Option<LockResult<ArrayWriteGuard<'_, T>>> {
        self.write_until(self.lock.try_acquire_again()?, deadline_in(Duration::ZERO))
    }

    /// As [`write`](Self::write), but waits no longer than this: then `None`.
    pub fn write_timeout(&self, limit: Duration) -> Option<LockResult<ArrayWriteGuard<'_, T>>> {
        let deadline = deadline_in(limit);
        self.write_until(self.lock.acquire_again_until(deadline)?, deadline)
    }

    fn write_until<'a>(
        &'a self,
        acquired: LockResult<LockGuard<'a>>,
        deadline: Deadline,
    ) -> Option<LockResult<ArrayWriteGuard<'a, T>>> {
        if self.is_lent_to(&acquired) || !self.readers().wait_for_all(deadline, || self.reads()) {
            return None;
        }
        let wrap = |held| ArrayWriteGuard { array: self, alone: self.lend(held) };
        Some(acquired.map(wrap).map_err(|died: OwnerDied<_>| died.map(wrap)))
    }

    /// Its lock: its own, or the one it shares with others.
    pub fn get_lock(&self) -> &Lock {
        &self.lock
    }

    /// Where the elements lie in this process. Others may write to them at any moment.
    pub fn as_ptr(&self) -> *mut T {
        self.at(0).as_ptr().cast()
    }

    fn slice(&self) -> *mut [T] {
        std::ptr::slice_from_raw_parts_mut(self.as_ptr(), self.len)
    }
}

impl<T> Clone for Array<T> {
    fn clone(&self) -> Self {
        Array { block: self.block.clone(), lock: self.lock.clone(), len: self.len, marker: PhantomData }
    }
}

impl<T> PartialEq for Array<T> {
    /// Whether both are handles of the same array.
    fn eq(&self, other: &Self) -> bool {
        self.block == other.block
    }
}

impl<T> Eq for Array<T> {}

impl<T> fmt::Debug for Array<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Array<{}>({} elements, {:?})", std::any::type_name::<T>(), self.len, self.lock)
    }
}

impl<T: Pod> Serialize for Array<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let shared = (*self.lock.block() != self.block).then_some(&self.lock);
        (shared, self.block.depart::<S>()?, self.len as u64).serialize(serializer)
    }
}

impl<'de, T: Pod> Deserialize<'de> for Array<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (shared, place, len) = <(Option<Lock>, Place, u64)>::deserialize(deserializer)?;
        let len = usize::try_from(len).map_err(serde::de::Error::custom)?;
        let fits = |bytes| range::<T>(len).is_some_and(|(_, end)| end == bytes);
        let (access, lock) = (Some(Access::of::<T>()), shared.as_ref().map(Lock::block));
        let block = Block::arrive(place, &[Kind::Array], access, fits, lock)?;
        let lock = shared.unwrap_or_else(|| Lock::of(&block));
        Ok(Array { block, lock, len, marker: PhantomData })
    }
}

/// How one reads.
enum Hold<'a> {
    /// With others.
    Shared(OwnerId, Option<Reading>),
    /// After a death, until somebody has looked.
    Alone(Alone<'a>),
}

/// Nobody else reads or writes meanwhile, this thread included.
struct Alone<'a> {
    block: &'a Block,
    held: LockGuard<'a>,
}

impl Drop for Alone<'_> {
    fn drop(&mut self) {
        // In a fork it is the parent's. The lock is released after this.
        if self.held.is_mine() {
            Lock::lend(self.block, None);
        }
    }
}

/// Reads an [`Array`], and derefs to its elements in place.
#[must_use = "one reads until this is dropped"]
pub struct ArrayReadGuard<'a, T: Pod> {
    array: &'a Array<T>,
    hold: Hold<'a>,
}

impl<T: Pod> Deref for ArrayReadGuard<'_, T> {
    type Target = [T];

    #[track_caller]
    fn deref(&self) -> &[T] {
        match &self.hold {
            Hold::Shared(me, _) => assert!(
                self.array.block.owners().is_me(*me),
                "this process is a fork of the one that reads, and does not keep others from writing"
            ),
            Hold::Alone(alone) => alone.held.check_mine(),
        }
        // SAFETY: aligned and within the block (`slice`); any bytes are a `T`. Nobody writes while this process is in the
        // table of readers, or has the lock: see the documentation of `Value`. Those are a parent's in a fork, and go when the
        // parent likes: there, no reference is given out.
        unsafe { &*self.array.slice() }
    }
}

impl<T: Pod> Drop for ArrayReadGuard<'_, T> {
    fn drop(&mut self) {
        if let Hold::Shared(me, note) = &mut self.hold {
            // First the note: as long as it is there somebody is counted.
            drop(note.take());
            self.array.readers().leave(*me);
        }
    }
}

impl<T: Pod> Recover for ArrayReadGuard<'_, T> {
    fn recover(&mut self) {
        if let Hold::Alone(alone) = &mut self.hold {
            alone.held.recover();
        }
    }
}

impl<T: Pod + fmt::Debug> fmt::Debug for ArrayReadGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

/// Writes an [`Array`], and derefs to its elements in place.
#[must_use = "one writes until this is dropped"]
pub struct ArrayWriteGuard<'a, T: Pod> {
    array: &'a Array<T>,
    alone: Alone<'a>,
}

impl<T: Pod> Deref for ArrayWriteGuard<'_, T> {
    type Target = [T];

    #[track_caller]
    fn deref(&self) -> &[T] {
        self.alone.held.check_mine();
        // SAFETY: as for one that reads; whoever has the lock, and has waited for those who read, is alone.
        unsafe { &*self.array.slice() }
    }
}

impl<T: Pod> DerefMut for ArrayWriteGuard<'_, T> {
    #[track_caller]
    fn deref_mut(&mut self) -> &mut [T] {
        self.alone.held.check_mine();
        // SAFETY: as above, and borrowed once.
        unsafe { &mut *self.array.slice() }
    }
}

impl<T: Pod> Recover for ArrayWriteGuard<'_, T> {
    fn recover(&mut self) {
        self.alone.held.recover();
    }
}

impl<T: Pod + fmt::Debug> fmt::Debug for ArrayWriteGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

/// An array of fixed length in memory that processes share, without a lock.
///
/// As [`Array`], but nothing keeps others out: an element that is larger than one word (eight bytes, or the type's
/// alignment if that is less) may be read half old and half new.
///
/// ```
/// use executor::RawArray;
///
/// let counts = RawArray::<u32>::zeroed(10)?;
/// counts.fetch_add(3, 2);
/// counts.set(4, counts.get(3) + 1);
/// assert_eq!(counts.copy_to_vec()[2..5], [0, 2, 3]);
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct RawArray<T> {
    block: Block,
    len: usize,
    marker: PhantomData<T>,
}

/// Where the elements begin, and where they end.
fn raw_range<T>(len: usize) -> Option<(usize, usize)> {
    let start = Block::aligned(0, align_of::<T>());
    Some((start, len.checked_mul(size_of::<T>())?.checked_add(start)?))
}

impl<T: Pod> RawArray<T> {
    /// So many zeros.
    ///
    /// # Errors
    /// The system's, if it has no descriptor, no addresses or no memory left.
    pub fn zeroed(len: usize) -> io::Result<Self> {
        let (_, end) = raw_range::<T>(len).ok_or(io::ErrorKind::OutOfMemory)?;
        let block = Block::allocate_for(Kind::RawArray, Access::of::<T>(), end, None)?;
        Ok(RawArray { block, len, marker: PhantomData })
    }

    /// A copy of these.
    ///
    /// # Errors
    /// As [`zeroed`](Self::zeroed).
    pub fn from_slice(values: &[T]) -> io::Result<Self> {
        let array = Self::zeroed(values.len())?;
        array.copy_from_slice(0, values);
        Ok(array)
    }

    /// How many elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where so many elements lie; aligned, there as long as `self`.
    #[track_caller]
    fn at(&self, index: usize, count: usize) -> NonNull<u8> {
        let within = self.len.checked_sub(index).is_some_and(|left| count <= left);
        assert!(within, "{count} from index {index} of an array of {}", self.len);
        let start = Block::aligned(0, align_of::<T>());
        self.block.bytes(start.wrapping_add(bytes::<T>(index)), bytes::<T>(count))
    }

    /// One element now. It sees what was written before the element was [`set`](Self::set).
    ///
    /// # Panics
    /// If there is none of this index.
    pub fn get(&self, index: usize) -> T {
        // SAFETY: `at`; the library makes no references to it.
        unsafe { words::load(self.at(index, 1)) }
    }

    /// Another value for one element.
    ///
    /// # Panics
    /// If there is none of this index.
    pub fn set(&self, index: usize, value: T) {
        // SAFETY: as in `get`.
        unsafe { words::store(self.at(index, 1), &value) }
    }

    /// Adds to one element in one step, wrapping around at its end; returns what it was before.
    ///
    /// # Panics
    /// If there is none of this index.
    pub fn fetch_add(&self, index: usize, other: T) -> T
    where
        T: Integer,
    {
        // SAFETY: as in `get`.
        unsafe { T::add_to(self.at(index, 1), other) }
    }

    /// A copy of all elements, each as it was at some moment meanwhile.
    pub fn copy_to_vec(&self) -> Vec<T> {
        let mut copy = Vec::with_capacity(self.len);
        // SAFETY: as in `get`; the vector has room for so many, all of which are written.
        unsafe {
            words::load_all(self.at(0, self.len), copy.as_mut_ptr(), self.len);
            copy.set_len(self.len);
        }
        copy
    }

    /// Writes these, from that index on.
    ///
    /// # Panics
    /// If they do not fit.
    pub fn copy_from_slice(&self, index: usize, values: &[T]) {
        // SAFETY: as in `get`; there are so many.
        unsafe { words::store_all(self.at(index, values.len()), values.as_ptr(), values.len()) }
    }

    /// Where the elements lie in this process. Others may write to them at any moment.
    ///
    /// Whoever makes references of it has to see to it that nobody writes there meanwhile: each task to a part of its own,
    /// say.
    pub fn as_ptr(&self) -> *mut T {
        self.at(0, self.len).as_ptr().cast()
    }
}

impl<T> Clone for RawArray<T> {
    fn clone(&self) -> Self {
        RawArray { block: self.block.clone(), len: self.len, marker: PhantomData }
    }
}

impl<T> PartialEq for RawArray<T> {
    /// Whether both are handles of the same array.
    fn eq(&self, other: &Self) -> bool {
        self.block == other.block
    }
}

impl<T> Eq for RawArray<T> {}

impl<T> fmt::Debug for RawArray<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RawArray<{}>({} elements)", std::any::type_name::<T>(), self.len)
    }
}

impl<T: Pod> Serialize for RawArray<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (self.block.depart::<S>()?, self.len as u64).serialize(serializer)
    }
}

impl<'de, T: Pod> Deserialize<'de> for RawArray<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (place, len) = <(Place, u64)>::deserialize(deserializer)?;
        let len = usize::try_from(len).map_err(serde::de::Error::custom)?;
        let fits = |bytes| raw_range::<T>(len).is_some_and(|(_, end)| end == bytes);
        let block = Block::arrive(place, &[Kind::RawArray], Some(Access::of::<T>()), fits, None)?;
        Ok(RawArray { block, len, marker: PhantomData })
    }
}

#[cfg(all(test, not(any(executor_loom, executor_shuttle))))]
mod tests {
    use super::*;

    #[test]
    fn a_thread_whose_guard_another_one_drops_does_not_read_beside_one_that_writes() {
        let array = Array::<u64>::zeroed(1).unwrap();
        // The other thread has left the table, and not yet taken back the note.
        let note = Reading::of(array.at(0).addr().get());
        std::thread::scope(|scope| {
            let (writing, begins) = std::sync::mpsc::channel();
            let (may_end, ends) = std::sync::mpsc::channel::<()>();
            let array = &array;
            scope.spawn(move || {
                let mut guard = array.write().unwrap();
                writing.send(()).unwrap();
                let _ = ends.recv();
                guard[0] = 1;
            });
            begins.recv().unwrap();
            assert!(array.reads());
            assert!(array.try_read().is_none());
            assert!(array.read_timeout(Duration::from_millis(1)).is_none());
            drop(may_end);
            assert_eq!(array.read().unwrap()[0], 1);
        });
        drop(note);
    }
}
