//! The guards of an [`Array`]: each lends its elements until it is dropped.
//!
//! A reader is counted in the array's table. A writer holds the array's lock, and so does a reader
//! that was told of a death.

use std::{
    fmt,
    ops::{Deref, DerefMut},
};

use bytemuck::Pod;

use super::Array;
use crate::{
    heap::block::Block,
    os::liveness::{OwnerId, Owners},
    shm::readers::Reading,
    sync::{Lock, LockGuard, Recover},
};

/// How a guard keeps writers out.
pub(super) enum Hold<'a> {
    /// As one of several readers.
    Shared(OwnerId, Option<Reading>),
    /// By holding the lock, after a death and until somebody has checked the elements.
    Alone(Alone<'a>),
}

/// Holds the lock while nobody else reads or writes, not even this thread.
pub(super) struct Alone<'a> {
    pub(super) block: &'a Block,
    pub(super) held: LockGuard<'a>,
}

impl Drop for Alone<'_> {
    fn drop(&mut self) {
        // In a forked process it is the parent's. The lock is released after this.
        if self.held.is_mine() {
            Lock::lend(self.block, None);
        }
    }
}

/// Reads an [`Array`], and derefs to its elements in place.
#[must_use = "one reads until this is dropped"]
pub struct ArrayReadGuard<'a, T: Pod> {
    pub(super) array: &'a Array<T>,
    pub(super) hold: Hold<'a>,
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
        // SAFETY: aligned and within the block (`slice`), and any bytes are a valid `T`. Nobody
        // writes while this process is in the table of readers or holds the lock: see the
        // documentation of `Value`. In a forked process, both are the parent's and end when the
        // parent likes, so no reference is given out there.
        unsafe { &*self.array.slice() }
    }
}

impl<T: Pod> Drop for ArrayReadGuard<'_, T> {
    fn drop(&mut self) {
        if let Hold::Shared(me, note) = &mut self.hold {
            // Take back the note first: as long as it exists, its reader is counted in the table.
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
    pub(super) array: &'a Array<T>,
    pub(super) alone: Alone<'a>,
}

impl<T: Pod> Deref for ArrayWriteGuard<'_, T> {
    type Target = [T];

    #[track_caller]
    fn deref(&self) -> &[T] {
        self.alone.held.check_mine();
        // SAFETY: as for a reader. The writer holds the lock and has waited for all readers, so it
        // is alone.
        unsafe { &*self.array.slice() }
    }
}

impl<T: Pod> DerefMut for ArrayWriteGuard<'_, T> {
    #[track_caller]
    fn deref_mut(&mut self) -> &mut [T] {
        self.alone.held.check_mine();
        // SAFETY: as above, and `self` is borrowed mutably, so this is the only reference.
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
