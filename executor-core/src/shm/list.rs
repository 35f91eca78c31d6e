//! A list of fixed length, with items of some simple types.
//!
//! ```text
//!  ListHeader (mutex, count) │ Slot … │ for each slot two halves of its capacity
//!                               └ word: type, length, which half ──► the value
//!                                 (the other half is for the next value)
//! ```
//!
//! Everything happens under the mutex. A new value is written to the half that is not in use. Then
//! a single store of the slot's word makes it the value, so a process that dies in the middle has
//! changed nothing.

use std::{fmt, io};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{
    memory::{SharedMemory, whole},
    name::Name,
};
use crate::{
    heap::{
        block::{BYTES_START, Block, BlockKind},
        words,
    },
    os::{
        liveness::Liveness,
        memory::SharedLayout,
        std_or_model::atomic::{AtomicU32, AtomicU64, Ordering},
    },
    sync::raw::{RobustGuard, RobustMutex},
};

/// An item of a [`ShareableList`].
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum ListItem {
    /// No value.
    None,
    /// `true` or `false`.
    Bool(bool),
    /// An integer.
    Int(i64),
    /// A floating-point number.
    Float(f64),
    /// A text.
    Str(String),
    /// Bytes.
    Bytes(Vec<u8>),
}

macro_rules! from {
    ($($type:ty => |$value:ident| $item:expr;)+) => {$(
        impl From<$type> for ListItem {
            fn from($value: $type) -> Self {
                $item
            }
        }
    )+};
}

from! {
    () => |_nothing| ListItem::None;
    bool => |value| ListItem::Bool(value);
    i32 => |value| ListItem::Int(value.into());
    i64 => |value| ListItem::Int(value);
    u32 => |value| ListItem::Int(value.into());
    f64 => |value| ListItem::Float(value);
    &str => |value| ListItem::Str(value.into());
    String => |value| ListItem::Str(value);
    &[u8] => |value| ListItem::Bytes(value.into());
    Vec<u8> => |value| ListItem::Bytes(value);
}

impl<T: Into<ListItem>> From<Option<T>> for ListItem {
    fn from(value: Option<T>) -> Self {
        value.map_or(ListItem::None, Into::into)
    }
}

/// The error for a value that needs more bytes than its place in a [`ShareableList`] has.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct TooLarge {
    /// Number of bytes that the value needs.
    pub len: usize,
    /// Number of bytes that there are.
    pub capacity: usize,
}

impl fmt::Display for TooLarge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes for a place that has room for {}", self.len, self.capacity)
    }
}

impl std::error::Error for TooLarge {}

crate::debug::debug_is_display!(TooLarge);

#[cfg_attr(all(test, any(executor_loom, executor_shuttle)), derive(Default))]
#[repr(C)]
struct ListHeader {
    mutex: RobustMutex,
    count: AtomicU32,
}

#[cfg_attr(all(test, any(executor_loom, executor_shuttle)), derive(Default))]
#[repr(C)]
struct Slot {
    /// The length (32 bits), the half in use (8 bits), and the type (8 bits).
    word: AtomicU64,
    /// The position of its halves, in units of 8 bytes (32 bits), and the capacity of each (32
    /// bits).
    place: AtomicU64,
}

// SAFETY: `repr(C)`, atomics only, no drop, and all zeros is a valid value.
unsafe impl SharedLayout for ListHeader {}
// SAFETY: as above.
unsafe impl SharedLayout for Slot {}

/// Maximum length of a text or bytes: lengths and capacities have 32 bits, and a capacity is a
/// multiple of 8.
const ITEM_BYTES_MAX: usize = (u32::MAX as usize) & !7;

const NONE: u8 = 0;
const BOOL: u8 = 1;
const INT: u8 = 2;
const FLOAT: u8 = 3;
const STR: u8 = 4;
const BYTES: u8 = 5;

impl ListItem {
    /// Returns the length of a text or bytes, and 0 for other types.
    fn len(&self) -> usize {
        match self {
            ListItem::Str(value) => value.len(),
            ListItem::Bytes(value) => value.len(),
            _ => 0,
        }
    }

    fn encode(&self) -> (u8, Vec<u8>) {
        match self {
            ListItem::None => (NONE, Vec::new()),
            ListItem::Bool(value) => (BOOL, vec![u8::from(*value)]),
            ListItem::Int(value) => (INT, value.to_ne_bytes().into()),
            ListItem::Float(value) => (FLOAT, value.to_ne_bytes().into()),
            ListItem::Str(value) => (STR, value.as_bytes().into()),
            ListItem::Bytes(value) => (BYTES, value.clone()),
        }
    }

    /// Returns `None` for bytes that are not a valid value, because any process may have written
    /// them.
    fn decode(kind: u8, bytes: Vec<u8>) -> Self {
        let word = || <[u8; 8]>::try_from(bytes.as_slice()).ok();
        match kind {
            BOOL => bytes.first().map_or(ListItem::None, |byte| ListItem::Bool(*byte != 0)),
            INT => word().map_or(ListItem::None, |word| ListItem::Int(i64::from_ne_bytes(word))),
            FLOAT => {
                word().map_or(ListItem::None, |word| ListItem::Float(f64::from_ne_bytes(word)))
            }
            STR => ListItem::Str(String::from_utf8_lossy(&bytes).into_owned()),
            BYTES => ListItem::Bytes(bytes),
            _ => ListItem::None,
        }
    }
}

/// A list of fixed length in shared memory, of numbers, texts, bytes and `None`.
///
/// Each place has as much room as its first value needs, rounded up to eight bytes. It takes values
/// of any type that fit. A list can be sent to other processes, as [`SharedMemory`] can, and may
/// have a name, with the same rules.
///
/// ```
/// use executor::{ListItem, ShareableList};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let list = ShareableList::new(["one".into(), ListItem::Int(2), 3.5.into(), ().into()])?;
/// list.set(0, "two")?;
/// assert_eq!(list.get(0), Some("two".into()));
/// assert!(list.set(0, "twenty-two").is_err());
/// assert_eq!(list.index(3.5), Some(2));
/// # Ok(())
/// # }
/// ```
///
/// One process or thread at a time has access, through a lock that survives its holder's death. A
/// value is replaced as a whole or not at all.
#[derive(Clone)]
pub struct ShareableList {
    memory: SharedMemory,
}

const KINDS: &[BlockKind] = &[BlockKind::List];
const HEADER: usize = BYTES_START;
const SLOTS: usize = HEADER + size_of::<ListHeader>();

impl ShareableList {
    /// Creates a list of these items, without a name.
    ///
    /// # Errors
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) for a text or bytes of 4 GiB or more. The
    /// system's error if no descriptor, no address space or no memory is left.
    pub fn new<I: Into<ListItem>>(items: impl IntoIterator<Item = I>) -> io::Result<Self> {
        Self::make(items.into_iter().map(Into::into).collect(), None)
    }

    /// Creates a list of these items, with a name.
    ///
    /// # Errors
    /// As for [`SharedMemory::create_named`].
    pub fn create_named<I: Into<ListItem>>(
        name: &str,
        items: impl IntoIterator<Item = I>,
    ) -> io::Result<Self> {
        Name::check(name)?;
        Self::make(items.into_iter().map(Into::into).collect(), Some(name))
    }

    /// Attaches to the list with that name.
    ///
    /// # Errors
    /// As for [`SharedMemory::attach`].
    pub fn attach(name: &str) -> io::Result<Self> {
        Ok(ShareableList { memory: SharedMemory::attach_kind(name, KINDS)? })
    }

    fn make(items: Vec<ListItem>, name: Option<&str>) -> io::Result<Self> {
        let too_large = || io::Error::from(io::ErrorKind::OutOfMemory);
        // A slot stores a length in 32 bits, so a longer one would be stored as a different length.
        if let Some(index) = items.iter().position(|item| item.len() > ITEM_BYTES_MAX) {
            let len = items[index].len();
            let text = format!(
                "item {index} has {len} bytes, and items of a list have {ITEM_BYTES_MAX} at most"
            );
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        let encoded: Vec<_> = items.iter().map(ListItem::encode).collect();
        let capacities = encoded.iter().map(|(_, bytes)| bytes.len().max(1).next_multiple_of(8));
        let data = size_of::<ListHeader>() + items.len() * size_of::<Slot>();
        // Each item takes two halves.
        let size = capacities
            .clone()
            .try_fold(data, |size, capacity| size.checked_add(capacity.checked_mul(2)?));
        let size = size.ok_or_else(too_large)?;
        let count = u32::try_from(items.len()).map_err(|_| too_large())?;
        if u32::try_from(size / 8).is_err() {
            return Err(too_large());
        }
        let block = match name {
            None => Block::allocate(BlockKind::List, whole(size)?)?,
            Some(name) => {
                let len = whole(size)?;
                Name::fill(name, |file| Block::allocate_in(file, BlockKind::List, len))?
            }
        };
        let memory = SharedMemory::with(block, None);
        let list = ShareableList { memory };
        list.header().count.store(count, Ordering::Relaxed);
        let mut at = data;
        for ((slot, (kind, bytes)), capacity) in list.slots().iter().zip(&encoded).zip(capacities) {
            slot.place.store((at as u64 / 8) << 32 | capacity as u64, Ordering::Relaxed);
            // It fits, because the capacity was computed from it.
            let _ = list.write(slot, *kind, bytes);
            at += 2 * capacity;
        }
        match name {
            None => Ok(list),
            // The list is complete, so others may see it now.
            Some(name) => {
                let block = list.memory.block().clone();
                let name = Name::link(name, std::os::fd::AsFd::as_fd(block.descriptor()))?;
                Ok(ShareableList { memory: SharedMemory::with(block, Some(name)) })
            }
        }
    }

    pub(super) fn memory(&self) -> &SharedMemory {
        &self.memory
    }

    fn header(&self) -> &ListHeader {
        self.memory.block().part(HEADER)
    }

    fn slots(&self) -> &[Slot] {
        // Another process may write any count, but that does not make the block longer.
        let room = self.memory.len().saturating_sub(size_of::<ListHeader>()) / size_of::<Slot>();
        self.memory.block().parts(SLOTS, self.len().min(room))
    }

    fn lock(&self) -> RobustGuard<'_, Liveness> {
        let (mutex, owners) = (&self.header().mutex, self.memory.block().owners());
        loop {
            // None of the list's methods has a timeout. A death leaves nothing to repair.
            if let Some(guard) = mutex.lock_until(owners, None) {
                return guard;
            }
        }
    }

    /// Returns the position of the halves and the capacity of each, or `None` if they are garbled.
    fn halves(&self, slot: &Slot) -> Option<(usize, usize)> {
        let place = slot.place.load(Ordering::Relaxed);
        let (at, capacity) = ((place >> 32) as usize * 8, place as u32 as usize);
        let after = size_of::<ListHeader>() + size_of_val(self.slots());
        let end = at.checked_add(capacity.checked_mul(2)?)?;
        (at >= after && end <= self.memory.len() && capacity.is_multiple_of(8))
            .then_some((at, capacity))
    }

    fn write(&self, slot: &Slot, kind: u8, bytes: &[u8]) -> Result<(), TooLarge> {
        let (at, capacity) = self.halves(slot).unwrap_or((0, 0));
        if bytes.len() > capacity {
            return Err(TooLarge { len: bytes.len(), capacity });
        }
        // Write to the half that is not in use, so that the present value stays intact until the
        // end.
        let half = u64::from(slot.word.load(Ordering::Relaxed) >> 8 & 1 == 0);
        let from = at + half as usize * capacity;
        let base = self.memory.block().bytes(HEADER, self.memory.len());
        // SAFETY: aligned to a cache line, and a whole number of words. `halves` lie within the
        // memory, and behind everything that is accessed through references.
        unsafe { words::store_bytes(base, from, bytes) };
        let word = (bytes.len() as u64) << 32 | half << 8 | u64::from(kind);
        slot.word.store(word, Ordering::Release);
        Ok(())
    }

    fn read(&self, slot: &Slot) -> ListItem {
        let word = slot.word.load(Ordering::Acquire);
        let (len, half) = ((word >> 32) as usize, (word >> 8 & 1) as usize);
        let Some((at, capacity)) = self.halves(slot).filter(|(_, capacity)| len <= *capacity)
        else {
            return ListItem::None;
        };
        let mut bytes = vec![0; len];
        let base = self.memory.block().bytes(HEADER, self.memory.len());
        // SAFETY: as in `write`.
        unsafe { words::load_bytes(base, at + half * capacity, &mut bytes) };
        ListItem::decode(word as u8, bytes)
    }

    /// Returns the item at this index.
    pub fn get(&self, index: usize) -> Option<ListItem> {
        let _guard = self.lock();
        self.slots().get(index).map(|slot| self.read(slot))
    }

    /// Replaces the item at this index by one of any type.
    ///
    /// # Errors
    /// If the item needs more bytes than its place has.
    ///
    /// # Panics
    /// If the index is out of bounds.
    pub fn set(&self, index: usize, item: impl Into<ListItem>) -> Result<(), TooLarge> {
        let (kind, bytes) = item.into().encode();
        let _guard = self.lock();
        let slots = self.slots();
        assert!(index < slots.len(), "index {index} of a list of {}", slots.len());
        self.write(&slots[index], kind, &bytes)
    }

    /// Returns all items.
    pub fn to_vec(&self) -> Vec<ListItem> {
        let _guard = self.lock();
        self.slots().iter().map(|slot| self.read(slot)).collect()
    }

    /// Returns the number of items.
    pub fn len(&self) -> usize {
        self.header().count.load(Ordering::Relaxed) as usize
    }

    /// Whether there are no items.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns how many items are equal to this one.
    pub fn count(&self, item: impl Into<ListItem>) -> usize {
        let item = item.into();
        self.to_vec().iter().filter(|other| **other == item).count()
    }

    /// Returns the first index of an item that is equal to this one.
    pub fn index(&self, item: impl Into<ListItem>) -> Option<usize> {
        let item = item.into();
        self.to_vec().iter().position(|other| *other == item)
    }

    /// Returns the types of the items, in the letters of Python's `struct`: `q` for an integer, `d`
    /// for a floating-point number, `?` for a boolean, `x` for no value, `16s` for a text and `16p`
    /// for bytes whose place has 16 bytes.
    pub fn format(&self) -> String {
        let _guard = self.lock();
        let letters = self.slots().iter().map(|slot| {
            let capacity = self.halves(slot).map_or(0, |(_, capacity)| capacity);
            match slot.word.load(Ordering::Relaxed) as u8 {
                BOOL => "?".to_owned(),
                INT => "q".to_owned(),
                FLOAT => "d".to_owned(),
                STR => format!("{capacity}s"),
                BYTES => format!("{capacity}p"),
                _ => "x".to_owned(),
            }
        });
        letters.collect::<Vec<_>>().join(" ")
    }

    /// Creates another list of the same items, without a name.
    ///
    /// # Errors
    /// As for [`new`](Self::new).
    pub fn copy(&self) -> io::Result<Self> {
        Self::new(self.to_vec())
    }

    /// Creates another list of the same items, with a name.
    ///
    /// # Errors
    /// As for [`create_named`](Self::create_named).
    pub fn copy_named(&self, name: &str) -> io::Result<Self> {
        Self::create_named(name, self.to_vec())
    }

    /// Returns the name, if there is one.
    pub fn name(&self) -> Option<String> {
        self.memory.name()
    }

    /// Removes the name, like [`SharedMemory::unlink`].
    ///
    /// # Errors
    /// As for [`SharedMemory::unlink`].
    pub fn unlink(&self) -> io::Result<()> {
        self.memory.unlink()
    }
}

impl PartialEq for ShareableList {
    /// Whether both are handles of the same list.
    fn eq(&self, other: &Self) -> bool {
        self.memory == other.memory
    }
}

impl fmt::Debug for ShareableList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ShareableList").field(&self.to_vec()).finish()
    }
}

impl Serialize for ShareableList {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.memory.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for ShareableList {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(ShareableList { memory: SharedMemory::arrive(deserializer, KINDS)? })
    }
}
