//! Arrays that processes share.

// Positions of elements are computed here, and references point there, so no sum may wrap
// unnoticed.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use std::{fmt, io, marker::PhantomData, ptr::NonNull, time::Duration};

use bytemuck::Pod;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::readers::{Readers, ReadersHeader, Reading};
use crate::{
    heap::{
        block::{Access, Block, BlockKind, BlockPlace},
        words,
    },
    os::liveness::OwnerId,
    sync::{
        Lock, LockGuard, LockResult, OwnerDied,
        lock::{Call, Held, LockLayout},
        owner_counts::OwnerCount,
        raw::{Deadline, deadline_in},
        word_wait::WordWait,
    },
};

mod guards;

use guards::{Alone, Hold};
pub use guards::{ArrayReadGuard, ArrayWriteGuard};

/// An array of fixed length in memory that processes share, with a lock.
///
/// `T` is plain data: numbers, arrays of them, and structs that derive `bytemuck::Pod`. A handle
/// can be sent as an argument or a result of a task. All handles refer to the same memory, however
/// large it is, and nothing is copied. Two handles are equal if they refer to the same array.
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
/// # Readers and writers
///
/// Several processes and threads may [`read`](Self::read) at the same time, or one may
/// [`write`](Self::write). A waiting writer goes before readers that come later, except for a
/// thread that already reads. A thread that reads and wants to write would wait for itself, so this
/// panics. Tasks that each write a separate part at the same time need a
/// [`RawArray`](crate::RawArray), or one array each. Holding [the lock](Self::get_lock) keeps
/// others from beginning to read or write. The lock is re-entrant, so the thread that holds it may
/// do both.
///
/// [`read_async`](Self::read_async) and [`write_async`](Self::write_async) wait without blocking a
/// thread.
///
/// About thirty processes can read at the same time, or one for each 256 bytes up to 1,000. A
/// further process waits.
///
/// # When a process dies
///
/// If a process dies while it writes, the next reader or writer is told ([`OwnerDied`]). Nobody
/// waits for a process that dies while it reads. [`get`](Self::get), [`set`](Self::set) and
/// [`copy_to_vec`](Self::copy_to_vec) continue, and leave the report to the next reader or writer.
///
/// # Memory
///
/// All of the memory is allocated at the beginning. If the system does not have enough, creating
/// the array fails, and no process is killed later. Arrays of up to 8 KiB share descriptors with
/// other objects. A larger array takes two descriptors in each process that has it.
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

/// The offset of the readers' header, after the lock. Their table follows at [`TABLE`].
const HEADER: usize = size_of::<LockLayout>();
const TABLE: usize = HEADER + size_of::<ReadersHeader>();

/// Returns how many processes can read an array of `bytes` bytes.
fn readers_max(bytes: usize) -> usize {
    (bytes / 256).clamp(30, 1_000)
}

/// Returns the offsets of the beginning and the end of the elements.
fn range<T>(len: usize) -> Option<(usize, usize)> {
    let bytes = len.checked_mul(size_of::<T>())?;
    let table = readers_max(bytes).checked_mul(size_of::<OwnerCount>())?;
    let start = Block::aligned(TABLE.checked_add(table)?, align_of::<T>());
    Some((start, start.checked_add(bytes)?))
}

/// Returns the size of `count` elements of an existing array. It is no more than [`range`] computed
/// when the array was created or received, so neither this nor what is added to it wraps.
pub(super) const fn bytes<T>(count: usize) -> usize {
    count.wrapping_mul(size_of::<T>())
}

impl<T: Pod> Array<T> {
    /// Creates an array of `len` zeros with its own lock.
    ///
    /// # Errors
    /// The system's error if no descriptor, no address space or no memory is left.
    pub fn zeroed(len: usize) -> io::Result<Self> {
        Self::new(len, None)
    }

    /// Like [`zeroed`](Self::zeroed), but uses an existing lock.
    ///
    /// Do this before anybody holds the lock. An earlier guard is not recorded as this thread's, so
    /// the thread would wait for itself.
    ///
    /// # Errors
    /// As for [`zeroed`](Self::zeroed).
    pub fn zeroed_with_lock(len: usize, lock: &Lock) -> io::Result<Self> {
        Self::new(len, Some(lock))
    }

    /// Creates an array that is a copy of these elements, with its own lock.
    ///
    /// # Errors
    /// As for [`zeroed`](Self::zeroed).
    pub fn from_slice(values: &[T]) -> io::Result<Self> {
        let array = Self::zeroed(values.len())?;
        // SAFETY: the array has room for all of them and is aligned. Nobody else has it yet.
        unsafe { words::store_all(array.at(0), values.as_ptr(), values.len()) };
        Ok(array)
    }

    fn new(len: usize, lock: Option<&Lock>) -> io::Result<Self> {
        let (_, end) = range::<T>(len).ok_or(io::ErrorKind::OutOfMemory)?;
        let block =
            Block::allocate_for(BlockKind::Array, Access::of::<T>(), end, lock.map(Lock::block))?;
        let lock = lock.cloned().unwrap_or_else(|| Lock::of(&block));
        lock.belong_to(&block);
        Ok(Array { block, lock, len, marker: PhantomData })
    }

    /// Returns the number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the address of the elements from `index` on. It is aligned, and valid as long as
    /// `self`.
    fn at(&self, index: usize) -> NonNull<u8> {
        let start = range::<T>(self.len).map_or(0, |(start, _)| start);
        let left = self.len.checked_sub(index).expect("an index that was checked");
        self.block.bytes(start.wrapping_add(bytes::<T>(index)), bytes::<T>(left))
    }

    fn readers(&self) -> Readers<'_> {
        let table = self.block.parts(TABLE, readers_max(bytes::<T>(self.len)));
        Readers { header: self.block.part(HEADER), table, owners: self.block.owners() }
    }

    #[track_caller]
    fn check(&self, index: usize) {
        assert!(index < self.len, "index {index} of an array of {}", self.len);
    }

    /// Panics if a guard that may write lends references. The caller holds the lock, so that guard
    /// belongs to the same thread, or the thread has given it away.
    #[track_caller]
    fn check_not_lent(&self) {
        assert!(
            !self.lock.is_lent(&self.block),
            "this thread has a guard of the array and would wait for itself: use the guard"
        );
    }

    /// Returns an element.
    ///
    /// # Panics
    /// If the index is out of bounds, or if this thread writes ([`write`](Self::write)). Use that
    /// guard instead.
    pub fn get(&self, index: usize) -> T {
        self.check(index);
        // A writer holds the lock until it is done.
        let _held = self.hold();
        // SAFETY: see `at`; the index is within the array. Under the lock nobody has a mutable
        // reference.
        unsafe { words::load(self.at(index)) }
    }

    /// Sets an element.
    ///
    /// # Panics
    /// As for [`update`](Self::update).
    pub fn set(&self, index: usize, value: T) {
        self.check(index);
        // Counts as a call that runs user code, because a panic below runs the program's panic
        // hook.
        let call = Call::default();
        let held = self.lock.hold_and_call(&call);
        if held.is_shared() {
            self.check_not_lent();
        }
        while !self.readers().wait_for_all(None, || self.reads()) {}
        // SAFETY: see `at`; the index is within the array. Nobody else has a reference.
        unsafe { words::store(self.at(index), &value) };
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

    /// Changes an element while nobody else reads or writes, and returns the closure's result. If
    /// the closure panics, the element stays as it was.
    ///
    /// # Panics
    /// If the index is out of bounds, or if this thread already reads or writes. Use the guard
    /// instead, or drop it first. Also in a copy of this process that the closure has created by
    /// `fork` and that returns from the closure: the lock belongs to the original process.
    pub fn update<R>(&self, index: usize, change: impl FnOnce(&mut T) -> R) -> R {
        self.check(index);
        let call = Call::default();
        let held = self.lock.hold_and_call(&call);
        if held.is_shared() {
            self.check_not_lent();
        }
        while !self.readers().wait_for_all(None, || self.reads()) {}
        // SAFETY: see `at`; the index is within the array. Nobody else has a reference.
        let mut element = unsafe { words::load::<T>(self.at(index)) };
        let result = change(&mut element);
        // The closure may have forked.
        held.check_mine();
        if held.is_shared() {
            // The closure may have created a guard and kept it.
            self.check_not_lent();
        }
        // The closure may also have begun to read.
        while !self.readers().wait_for_all(None, || self.reads()) {}
        // SAFETY: as above.
        unsafe { words::store(self.at(index), &element) };
        result
    }

    /// Returns a copy of all elements.
    pub fn copy_to_vec(&self) -> Vec<T> {
        match self.read() {
            Ok(guard) => guard.to_vec(),
            Err(died) => died.peek().to_vec(),
        }
    }

    /// Waits until nobody writes, and returns a guard that derefs to the elements.
    ///
    /// # Errors
    /// If a process has died while it wrote. The error contains a guard that keeps others out, like
    /// a writer.
    ///
    /// # Panics
    /// If this thread writes.
    pub fn read(&self) -> LockResult<ArrayReadGuard<'_, T>> {
        if let Some(held) = self.lock.acquire_if_free()
            && let Some(me) = self.readers().enter(None)
        {
            // The table counts this reader now, which keeps writers out without the lock.
            drop(held);
            return Ok(self.reading(me));
        }
        loop {
            // A thread that reads already must not wait for a writer that waits for this very
            // reader.
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

    /// Like [`read`](Self::read), if that is possible without waiting; otherwise returns `None`.
    pub fn try_read(&self) -> Option<LockResult<ArrayReadGuard<'_, T>>> {
        let now = deadline_in(Duration::ZERO);
        match self.lock.try_acquire_again() {
            Some(acquired) => self.read_until(acquired, now),
            None => self.read_again(now).map(Ok),
        }
    }

    /// Like [`read`](Self::read), but waits no longer than `timeout` and then returns `None`.
    pub fn read_timeout(&self, timeout: Duration) -> Option<LockResult<ArrayReadGuard<'_, T>>> {
        let deadline = deadline_in(timeout);
        if let Some(acquired) = self.lock.try_acquire_again() {
            return self.read_until(acquired, deadline);
        }
        match self.read_again(deadline) {
            Some(guard) => Some(Ok(guard)),
            None => self.read_until(self.lock.acquire_again_until(deadline)?, deadline),
        }
    }

    /// Like [`read`](Self::read), on any async runtime.
    ///
    /// A task that writes, or holds the lock, waits until that guard is dropped: this form is never
    /// re-entrant. A task that already reads gets a further guard even while a writer waits, as a
    /// thread does; a task of a runtime other than tokio only on the thread where it began to read.
    ///
    /// # Errors
    /// As for [`read`](Self::read).
    ///
    /// # Cancel safety
    /// Dropping the future takes neither the lock nor another waiter's wake-up.
    pub async fn read_async(&self) -> LockResult<ArrayReadGuard<'_, T>> {
        let mut waited = false;
        // As in `read`: the writer that has the lock may wait for this very reader.
        while self.reads() {
            let (word, heard) = match self.readers().enter_beside_or_word(waited) {
                Ok(Some(me)) => return Ok(self.reading(me)),
                Ok(None) => break,
                Err(changes) => changes,
            };
            WordWait::new(&self.block, word, heard).await;
            waited = true;
        }
        'acquire: loop {
            let held = match self.lock.acquire_async().await {
                Ok(held) => held,
                Err(died) => return Err(died.map(|held| self.reading_alone(held))),
            };
            let mut waited = false;
            loop {
                // While this task waits below, another branch of it may acquire the lock once more
                // by a blocking form, and write.
                if self.lock.is_lent(&self.block) {
                    continue 'acquire;
                }
                let (word, heard) = match self.readers().enter_or_word(waited) {
                    Ok(me) => {
                        drop(held);
                        return Ok(self.reading(me));
                    }
                    Err(changes) => changes,
                };
                WordWait::new(&self.block, word, heard).await;
                waited = true;
            }
        }
    }

    /// Begins to read, under the lock. Also returns `None` if this thread writes.
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
            Err(died) => Err(died.map(|held| self.reading_alone(held))),
        })
    }

    /// Whether this thread or task already reads.
    fn reads(&self) -> bool {
        Reading::is_noted(self.at(0).addr().get())
    }

    /// Returns the guard of a reader that was just counted in the table.
    fn reading(&self, me: OwnerId) -> ArrayReadGuard<'_, T> {
        ArrayReadGuard {
            array: self,
            hold: Hold::Shared(me, Some(Reading::of(self.at(0).addr().get()))),
        }
    }

    /// Returns the guard of a reader that keeps others out, because a writer has died.
    fn reading_alone<'a>(&'a self, held: LockGuard<'a>) -> ArrayReadGuard<'a, T> {
        ArrayReadGuard { array: self, hold: Hold::Alone(self.lend(held)) }
    }

    /// Returns a further guard for a thread that already reads and cannot take the lock, because a
    /// writer holds it and waits, also for this thread. While this thread reads, nobody writes. But
    /// its guard may have been moved to another thread, which may drop it at this moment, so the
    /// table decides.
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

    /// Waits until nobody reads or writes, and returns a guard that derefs to the elements.
    ///
    /// # Errors
    /// If a process has died while it wrote. The error contains the guard.
    ///
    /// # Panics
    /// If this thread already reads or writes: drop that guard first. This also happens if the
    /// thread has given its guard to another thread, which would drop it at some time, because that
    /// cannot be detected.
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

    /// Like [`write`](Self::write), if that is possible without waiting; otherwise returns `None`.
    pub fn try_write(&self) -> Option<LockResult<ArrayWriteGuard<'_, T>>> {
        self.write_until(self.lock.try_acquire_again()?, deadline_in(Duration::ZERO))
    }

    /// Like [`write`](Self::write), but waits no longer than `timeout` and then returns `None`.
    pub fn write_timeout(&self, timeout: Duration) -> Option<LockResult<ArrayWriteGuard<'_, T>>> {
        let deadline = deadline_in(timeout);
        self.write_until(self.lock.acquire_again_until(deadline)?, deadline)
    }

    /// Like [`write`](Self::write), on any async runtime.
    ///
    /// A task that already reads or writes, or holds the lock, waits until that guard is dropped:
    /// another branch of the same task may do that.
    ///
    /// # Errors
    /// As for [`write`](Self::write).
    ///
    /// # Cancel safety
    /// As for [`read_async`](Self::read_async).
    pub async fn write_async(&self) -> LockResult<ArrayWriteGuard<'_, T>> {
        'acquire: loop {
            let acquired = self.lock.acquire_async().await;
            let mut waited = false;
            loop {
                // As in `read_async`.
                if self.lock.is_lent(&self.block) {
                    continue 'acquire;
                }
                match self.readers().all_left_or_word(waited) {
                    Ok(()) => return self.writing(acquired),
                    Err((word, heard)) => WordWait::new(&self.block, word, heard).await,
                }
                waited = true;
            }
        }
    }

    fn write_until<'a>(
        &'a self,
        acquired: LockResult<LockGuard<'a>>,
        deadline: Deadline,
    ) -> Option<LockResult<ArrayWriteGuard<'a, T>>> {
        if self.is_lent_to(&acquired) || !self.readers().wait_for_all(deadline, || self.reads()) {
            return None;
        }
        Some(self.writing(acquired))
    }

    /// Wraps the lock's guard. The lock is held, and nobody reads or writes.
    fn writing<'a>(
        &'a self,
        acquired: LockResult<LockGuard<'a>>,
    ) -> LockResult<ArrayWriteGuard<'a, T>> {
        let wrap = |held| ArrayWriteGuard { array: self, alone: self.lend(held) };
        acquired.map(wrap).map_err(|died: OwnerDied<_>| died.map(wrap))
    }

    /// Returns the lock: the array's own, or the one that it shares with others.
    pub fn get_lock(&self) -> &Lock {
        &self.lock
    }

    /// Returns the address of the elements in this process. Others may write to them at any moment.
    pub fn as_ptr(&self) -> *mut T {
        self.at(0).as_ptr().cast()
    }

    fn slice(&self) -> *mut [T] {
        std::ptr::slice_from_raw_parts_mut(self.as_ptr(), self.len)
    }
}

impl<T> Clone for Array<T> {
    fn clone(&self) -> Self {
        Array {
            block: self.block.clone(),
            lock: self.lock.clone(),
            len: self.len,
            marker: PhantomData,
        }
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
        // The array's own lock lies in the same block, and is not sent separately.
        let shared = (*self.lock.block() != self.block).then_some(&self.lock);
        (shared, self.block.depart::<S>()?, self.len as u64).serialize(serializer)
    }
}

impl<'de, T: Pod> Deserialize<'de> for Array<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (shared, place, len) = <(Option<Lock>, BlockPlace, u64)>::deserialize(deserializer)?;
        let len = usize::try_from(len).map_err(serde::de::Error::custom)?;
        let fits = |bytes| range::<T>(len).is_some_and(|(_, end)| end == bytes);
        let (access, lock) = (Some(Access::of::<T>()), shared.as_ref().map(Lock::block));
        let block = Block::arrive(place, &[BlockKind::Array], access, fits, lock)?;
        let lock = shared.unwrap_or_else(|| Lock::of(&block));
        Ok(Array { block, lock, len, marker: PhantomData })
    }
}

#[cfg(all(test, not(any(executor_loom, executor_shuttle))))]
mod tests {
    use super::*;

    #[test]
    fn a_thread_whose_guard_another_one_drops_does_not_read_beside_one_that_writes() {
        let array = Array::<u64>::zeroed(1).unwrap();
        // Stands for a guard that another thread is dropping: the table does not count it any more.
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
