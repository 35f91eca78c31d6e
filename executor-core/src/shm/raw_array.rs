//! Arrays that processes share, without a lock.

// Positions of elements are computed here, so no sum may wrap unnoticed.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use std::{fmt, io, marker::PhantomData, ptr::NonNull};

use bytemuck::Pod;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::array::bytes;
use crate::heap::{
    block::{Access, Block, BlockKind, BlockPlace},
    words::{self, Integer},
};

/// An array of fixed length in memory that processes share, without a lock.
///
/// It is like [`Array`](crate::Array), but nothing keeps others out. An element that is larger than
/// one word (eight bytes, or the type's alignment if that is less) may be read half old and half
/// new.
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

/// Returns the offsets of the beginning and the end of the elements.
fn raw_range<T>(len: usize) -> Option<(usize, usize)> {
    let start = Block::aligned(0, align_of::<T>());
    Some((start, len.checked_mul(size_of::<T>())?.checked_add(start)?))
}

impl<T: Pod> RawArray<T> {
    /// Creates an array of `len` zeros.
    ///
    /// # Errors
    /// The system's error if no descriptor, no address space or no memory is left.
    pub fn zeroed(len: usize) -> io::Result<Self> {
        let (_, end) = raw_range::<T>(len).ok_or(io::ErrorKind::OutOfMemory)?;
        let block = Block::allocate_for(BlockKind::RawArray, Access::of::<T>(), end, None)?;
        Ok(RawArray { block, len, marker: PhantomData })
    }

    /// Creates an array that is a copy of these elements.
    ///
    /// # Errors
    /// As for [`zeroed`](Self::zeroed).
    pub fn from_slice(values: &[T]) -> io::Result<Self> {
        let array = Self::zeroed(values.len())?;
        array.copy_from_slice(0, values);
        Ok(array)
    }

    /// Returns the number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the address of `count` elements from `index` on. It is aligned, and valid as long as
    /// `self`.
    #[track_caller]
    fn at(&self, index: usize, count: usize) -> NonNull<u8> {
        let within = self.len.checked_sub(index).is_some_and(|left| count <= left);
        assert!(within, "{count} from index {index} of an array of {}", self.len);
        let start = Block::aligned(0, align_of::<T>());
        self.block.bytes(start.wrapping_add(bytes::<T>(index)), bytes::<T>(count))
    }

    /// Returns an element. The caller sees everything that was written before this element was
    /// [`set`](Self::set).
    ///
    /// # Panics
    /// If the index is out of bounds.
    pub fn get(&self, index: usize) -> T {
        // SAFETY: see `at`. The library makes no references to the elements.
        unsafe { words::load(self.at(index, 1)) }
    }

    /// Sets an element.
    ///
    /// # Panics
    /// If the index is out of bounds.
    pub fn set(&self, index: usize, value: T) {
        // SAFETY: as in `get`.
        unsafe { words::store(self.at(index, 1), &value) }
    }

    /// Adds to an element in a single step, wrapping around on overflow. Returns the previous
    /// value.
    ///
    /// # Panics
    /// If the index is out of bounds.
    pub fn fetch_add(&self, index: usize, other: T) -> T
    where
        T: Integer,
    {
        // SAFETY: as in `get`.
        unsafe { T::add_to(self.at(index, 1), other) }
    }

    /// Returns a copy of all elements, each as it was at some moment during the call.
    pub fn copy_to_vec(&self) -> Vec<T> {
        let mut copy = Vec::with_capacity(self.len);
        // SAFETY: as in `get`. The vector has room for all elements, and all of them are written.
        unsafe {
            words::load_all(self.at(0, self.len), copy.as_mut_ptr(), self.len);
            copy.set_len(self.len);
        }
        copy
    }

    /// Writes these elements, beginning at `index`.
    ///
    /// # Panics
    /// If they do not fit.
    pub fn copy_from_slice(&self, index: usize, values: &[T]) {
        // SAFETY: as in `get`. `values` has that many elements.
        unsafe { words::store_all(self.at(index, values.len()), values.as_ptr(), values.len()) }
    }

    /// Returns the address of the elements in this process. Others may write to them at any moment.
    ///
    /// Callers that make references to them must ensure that nobody writes there meanwhile. For
    /// example, each task writes only a separate part.
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
        let (place, len) = <(BlockPlace, u64)>::deserialize(deserializer)?;
        let len = usize::try_from(len).map_err(serde::de::Error::custom)?;
        let fits = |bytes| raw_range::<T>(len).is_some_and(|(_, end)| end == bytes);
        let block =
            Block::arrive(place, &[BlockKind::RawArray], Some(Access::of::<T>()), fits, None)?;
        Ok(RawArray { block, len, marker: PhantomData })
    }
}
