//! Readers of an array: several may read, or one may write. Used together with a lock in the same
//! block.
//!
//! ```text
//!  read    lock { table[me] += 1 }           … table[me] −= 1, ring      (under the table's mutex)
//!  write   lock { wait until the table is empty, write }
//! ```
//!
//! The table's mutex is awaited no longer than the caller's deadline. A reader that leaves does not
//! wait for it at all if it cannot be taken at once. So a process that is stopped while it holds
//! the mutex delays nobody for longer than requested.
//!
//! A writer holds the lock, so no new reader comes in meanwhile. Readers do not need the lock to
//! leave. A writer that waits for readers checks whether some of them have died.

// These counts decide who may access memory, so no sum may wrap unnoticed.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use std::sync::{Mutex, MutexGuard};

use crate::{
    os::{
        fork::{Creator, PerProcess},
        liveness::{Liveness, OwnerId, Owners},
        memory::SharedLayout,
        std_or_model::{atomic::AtomicU32, lock},
    },
    sync::{
        lock::holder,
        owner_counts::{self, OwnerCount},
        raw::{Bell, Deadline, RobustGuard, RobustMutex, nap},
    },
};

#[cfg_attr(all(test, any(executor_loom, executor_shuttle)), derive(Default))]
#[repr(C)]
pub(super) struct ReadersHeader {
    mutex: RobustMutex,
    bell: Bell,
}

// SAFETY: `repr(C)`, atomics only, no drop, and all zeros is a valid value.
unsafe impl SharedLayout for ReadersHeader {}

/// A word, and the value whose change an async form waits for.
type Changes<'a> = (&'a AtomicU32, u32);

/// The readers of an array in shared memory: that of a block, or of a model.
pub(super) struct Readers<'a, O = Liveness> {
    pub(super) header: &'a ReadersHeader,
    pub(super) table: &'a [OwnerCount],
    pub(super) owners: &'a O,
}

impl<'a, O: Owners> Readers<'a, O> {
    /// Begins to read. The caller holds the lock. Returns `None` if the table has no free entry
    /// before the deadline.
    pub(super) fn enter(&self, deadline: Deadline) -> Option<OwnerId> {
        loop {
            let guard = self.header.mutex.lock_until(self.owners, deadline)?;
            let heard = match self.enter_or_listen(guard.me()) {
                Ok(()) => return Some(guard.me()),
                Err(heard) => heard,
            };
            drop(guard);
            self.header.bell.sleep_with_all(heard, nap(deadline)?);
        }
    }

    /// Tries once to begin to read, for async forms. The caller holds the lock. On failure, returns
    /// a word, and the value whose change the caller waits for. `waited` means that the caller has
    /// already waited.
    pub(super) fn enter_or_word(&self, waited: bool) -> Result<OwnerId, Changes<'a>> {
        let guard = self.lock_or_word(waited)?;
        let entered = self.enter_or_listen(guard.me());
        entered.map(|()| guard.me()).map_err(|heard| (self.header.bell.word(), heard))
    }

    /// Adds a reader. If the table has no free entry, listens, and returns what was heard. The
    /// caller holds the mutex.
    fn enter_or_listen(&self, me: OwnerId) -> Result<(), u32> {
        if owner_counts::add(self.table, me) {
            return Ok(());
        }
        let heard = self.header.bell.listen();
        // Try again even if no reader has died: one may have left without the mutex before this
        // listened.
        owner_counts::reclaim(self.table, self.owners);
        if owner_counts::add(self.table, me) { Ok(()) } else { Err(heard) }
    }

    /// Locks the mutex, or returns its word, and the value whose change the caller waits for. For
    /// async forms.
    fn lock_or_word(&self, waited: bool) -> Result<RobustGuard<'a, O>, Changes<'a>> {
        let mutex = &self.header.mutex;
        mutex.lock_or_word(self.owners, waited).map_err(|word| (mutex.word(), word))
    }

    /// Like [`enter`](Self::enter), but without the lock, for a thread that is noted as a reader.
    /// Also returns `None` if no reader is counted, because the holder of the lock may then have
    /// been let in to write.
    ///
    /// While a reader is counted, that cannot have happened: a writer has seen, under the mutex,
    /// that no reader was counted. From then until it releases the lock, only this function adds to
    /// the table, and it does so only beside another reader.
    pub(super) fn enter_beside(&self, deadline: Deadline) -> Option<OwnerId> {
        let guard = self.header.mutex.lock_until(self.owners, deadline)?;
        self.enter_beside_with(&guard)
    }

    /// Like [`enter_beside`](Self::enter_beside), for async forms: see
    /// [`enter_or_word`](Self::enter_or_word).
    pub(super) fn enter_beside_or_word(
        &self,
        waited: bool,
    ) -> Result<Option<OwnerId>, Changes<'a>> {
        self.lock_or_word(waited).map(|guard| self.enter_beside_with(&guard))
    }

    fn enter_beside_with(&self, guard: &RobustGuard<'_, O>) -> Option<OwnerId> {
        let me = guard.me();
        // The process of a reader has an entry, so there is room.
        (owner_counts::total(self.table) > 0 && owner_counts::add(self.table, me)).then_some(me)
    }

    /// Stops reading. Waits for nobody.
    pub(super) fn leave(&self, me: OwnerId) {
        // In a forked process it is the parent that reads.
        if !self.owners.is_me(me) {
            return;
        }
        match self.header.mutex.lock_at_once(self.owners) {
            Some(guard) => {
                owner_counts::remove(self.table, me);
                let rung = self.header.bell.ring();
                drop(guard);
                rung.wake_all();
            }
            None => {
                owner_counts::give_back(self.table, me);
                self.header.bell.ring_alone().wake_all();
            }
        }
    }

    /// Waits until nobody reads. The caller holds the lock. Returns `false` if that did not happen
    /// before the deadline. `reads` says whether this thread itself reads, which would be an
    /// endless wait.
    ///
    /// # Panics
    /// If there is no deadline, somebody reads, and `reads` returns `true`.
    #[track_caller]
    pub(super) fn wait_for_all(&self, deadline: Deadline, reads: impl Fn() -> bool) -> bool {
        loop {
            let Some(guard) = self.header.mutex.lock_until(self.owners, deadline) else {
                return false;
            };
            let Err(heard) = self.all_left_or_listen() else { return true };
            drop(guard);
            assert!(
                deadline.is_some() || !reads(),
                "this thread reads the array and would wait for itself: drop that guard first"
            );
            let Some(timeout) = nap(deadline) else { return false };
            self.header.bell.sleep_with_all(heard, timeout);
        }
    }

    /// Checks once whether nobody reads, for async forms: see
    /// [`enter_or_word`](Self::enter_or_word).
    pub(super) fn all_left_or_word(&self, waited: bool) -> Result<(), Changes<'a>> {
        let _guard = self.lock_or_word(waited)?;
        self.all_left_or_listen().map_err(|heard| (self.header.bell.word(), heard))
    }

    /// Checks whether nobody reads. If somebody does, listens, and returns what was heard. The
    /// caller holds the mutex.
    fn all_left_or_listen(&self) -> Result<(), u32> {
        if owner_counts::total(self.table) == 0 {
            return Ok(());
        }
        let heard = self.header.bell.listen();
        // Check again even if no reader has died: one may have left without the mutex before this
        // listened.
        owner_counts::reclaim(self.table, self.owners);
        if owner_counts::total(self.table) == 0 { Ok(()) } else { Err(heard) }
    }
}

/// Records which threads and tasks of this process read what, to detect a thread that would wait
/// for itself.
#[derive(Default)]
struct Reads {
    /// Distributed by holder, so that threads do not contend for one mutex. Each entry is the
    /// address of the elements, and the holder.
    shards: [Mutex<Vec<(usize, u64)>>; SHARDS],
}

const SHARDS: usize = 16;

impl Reads {
    fn of(holder: u64) -> MutexGuard<'static, Vec<(usize, u64)>> {
        static READS: PerProcess<Reads> = PerProcess::new(Reads::default);
        lock(&READS.get().shards[holder as usize % SHARDS])
    }
}

/// A note that this thread or task reads what lies at an address. It is removed when this is
/// dropped, on any thread.
pub(super) struct Reading {
    at: usize,
    holder: u64,
    creator: Creator,
}

impl Reading {
    pub(super) fn of(at: usize) -> Self {
        let holder = holder::this();
        Reads::of(holder).push((at, holder));
        Reading { at, holder, creator: Creator::here() }
    }

    /// Whether this thread or task reads what lies at that address.
    pub(super) fn is_noted(at: usize) -> bool {
        let holder = holder::this();
        Reads::of(holder).contains(&(at, holder))
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        // A forked process has separate notes.
        if self.creator.is_elsewhere() {
            return;
        }
        let mut reads = Reads::of(self.holder);
        if let Some(index) = reads.iter().position(|note| *note == (self.at, self.holder)) {
            reads.swap_remove(index);
        }
    }
}

#[cfg(all(test, not(any(executor_loom, executor_shuttle))))]
mod tests {
    use std::{mem, panic};

    use crate::shm::Array;

    #[test]
    fn a_count_of_readers_ends_and_does_not_come_round() {
        let array = Array::<u64>::zeroed(1).unwrap();
        let lives = array.read().unwrap();
        // Up to the maximum count, which is lower in tests than elsewhere.
        let read = || {
            let one_more =
                panic::catch_unwind(panic::AssertUnwindSafe(|| mem::forget(array.read().unwrap())));
            one_more.is_ok()
        };
        let counted = (0..100_000).take_while(|_| read()).count();
        assert_eq!(counted, 999);
        for _ in 0..3 {
            assert!(!read());
            assert!(array.try_write().is_none(), "beside one that reads");
        }
        drop(lives);
        assert!(array.try_write().is_none(), "those that were leaked are there still");
        assert!(read(), "there is room for one");
    }
}

#[cfg(all(test, any(executor_loom, executor_shuttle)))]
mod models {
    use std::sync::Arc;

    use super::*;
    use crate::{
        os::std_or_model::{
            Shadow,
            atomic::{AtomicU32, Ordering},
            thread,
        },
        sync::models::{Process, held, table},
        transport::ring::models::{check, few},
    };

    #[derive(Default)]
    struct Array {
        lock: RobustMutex,
        header: ReadersHeader,
        table: Vec<OwnerCount>,
        /// Equal whenever nobody writes.
        elements: [AtomicU32; 2],
        shadow: Shadow,
    }

    impl Array {
        fn new(processes: usize) -> Arc<Self> {
            Arc::new(Array { table: table(processes), ..Array::default() })
        }

        fn readers<'a>(&'a self, owners: &'a Process) -> Readers<'a, Process> {
            Readers { header: &self.header, table: &self.table, owners }
        }

        /// Like `Array::read`. Returns what is seen under the guard.
        fn read(&self, process: &Process) -> u32 {
            let lock = held(&self.lock, process);
            let me = self.readers(process).enter(None).unwrap();
            drop(lock);
            self.shadow.look();
            let [first, second] = [0, 1].map(|at: usize| self.elements[at].load(Ordering::Relaxed));
            assert_eq!(first, second, "somebody writes beside one that reads");
            self.readers(process).leave(me);
            first
        }

        /// Like `Array::write`.
        fn write(&self, process: &Process) {
            let _lock = held(&self.lock, process);
            while !self.readers(process).wait_for_all(None, || false) {}
            self.shadow.fill();
            for element in &self.elements {
                element.store(element.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
            }
        }
    }

    fn several_read_and_one_writes(readers: u32, writes: u32, preemptions: usize) {
        check(preemptions, move || {
            let world = Process::world(readers + 1);
            let array = Array::new(readers as usize);
            let threads: Vec<_> = world[1..]
                .iter()
                .cloned()
                .map(|process| {
                    let array = Arc::clone(&array);
                    thread::spawn(move || assert!(array.read(&process) <= writes))
                })
                .collect();
            for _ in 0..writes {
                array.write(&world[0]);
            }
            for thread in threads {
                thread.join().unwrap();
            }
            assert_eq!(array.read(&world[0]), writes);
            assert_eq!(owner_counts::total(&array.table), 0);
        });
    }

    #[test]
    fn nobody_writes_beside_one_that_reads() {
        several_read_and_one_writes(1, few(1, 3) as u32, 3);
    }

    #[test]
    fn nobody_writes_beside_several_that_read() {
        several_read_and_one_writes(few(2, 4) as u32, few(1, 3) as u32, 2);
    }

    #[test]
    fn one_that_reads_beside_another_one_reads_no_less() {
        check(2, || {
            let world = Process::world(2);
            let array = Array::new(1);
            let me = array.readers(&world[1]).enter(None).unwrap();
            let (theirs, process) = (Arc::clone(&array), world[0].clone());
            let writes = thread::spawn(move || theirs.write(&process));
            // The first guard is given to another thread, and this one gets a second.
            let beside = array.readers(&world[1]).enter_beside(None).expect("one reads");
            let (theirs, process) = (Arc::clone(&array), world[1].clone());
            let leaves = thread::spawn(move || theirs.readers(&process).leave(me));
            array.shadow.look();
            assert_eq!(array.elements[0].load(Ordering::Relaxed), 0);
            assert_eq!(array.elements[1].load(Ordering::Relaxed), 0);
            array.readers(&world[1]).leave(beside);
            leaves.join().unwrap();
            writes.join().unwrap();
        });
    }
}
