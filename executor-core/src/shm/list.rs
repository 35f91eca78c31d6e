//! A list of fixed length, of values of some simple types.
//!
//! ```text
//!  Head (mutex, count) │ Slot … │ for each slot two halves of its capacity
//!                         └ word: type, length, which half ──► the value; the other half is for the next one
//! ```
//!
//! All under the mutex. A new value is written to the half that is not in use, and one store of the slot's word makes it the
//! value: one that dies in the middle has changed nothing.

use std::{fmt, io};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{
    memory::{SharedMemory, whole},
    name::Name,
};
use crate::{
    heap::{
        block::{BYTES_START, Block, Kind},
        words,
    },
    os::{
        liveness::Liveness,
        memory::SharedLayout,
        sync::atomic::{AtomicU32, AtomicU64, Ordering},
    },
    sync::raw::{RobustGuard, RobustMutex},
};

/// What a [`ShareableList`] has in a place.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum ListItem {
    /// Nothing.
    None,
    /// `true` or `false`.
    Bool(bool),
    /// A whole number.
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

/// A value needs more bytes than its place in a [`ShareableList`] has.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct TooLarge {
    /// What it needs.
    pub len: usize,
    /// What there is.
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
struct Head {
    mutex: RobustMutex,
    count: AtomicU32,
}

#[cfg_attr(all(test, any(executor_loom, executor_shuttle)), derive(Default))]
#[repr(C)]
struct Slot {
    /// The length, 32 bits; which half, 8 bits; the type, 8 bits.
    word: AtomicU64,
    /// Where its halves begin, 32 bits in units of 8 bytes; the capacity of one, 32 bits.
    place: AtomicU64,
}

// SAFETY: `repr(C)`, atomics only, no drop, zero is a value.
unsafe impl SharedLayout for Head {}
// SAFETY: as above.
unsafe impl SharedLayout for Slot {}

/// The longest text or bytes: lengths and capacities have 32 bits, and a capacity is a multiple of 8.
const ITEM_BYTES_MAX: usize = (u32::MAX as usize) & !7;

const NONE: u8 = 0;
const BOOL: u8 = 1;
const INT: u8 = 2;
const FLOAT: u8 = 3;
const STR: u8 = 4;
const BYTES: u8 = 5;

impl ListItem {
    /// Of a text or bytes.
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

    /// What is no value is none: anybody may have written it.
    fn decode(kind: u8, bytes: Vec<u8>) -> Self {
        let word = || <[u8; 8]>::try_from(bytes.as_slice()).ok();
        match kind {
            BOOL => bytes.first().map_or(ListItem::None, |byte| ListItem::Bool(*byte != 0)),
            INT => word().map_or(ListItem::None, |word| ListItem::Int(i64::from_ne_bytes(word))),
            FLOAT => word().map_or(ListItem::None, |word| ListItem::Float(f64::from_ne_bytes(word))),
            STR => ListItem::Str(String::from_utf8_lossy(&bytes).into_owned()),
            BYTES => ListItem::Bytes(bytes),
            _ => ListItem::None,
        }
    }
}

/// A list of fixed length in shared memory, of numbers, texts, bytes and nothing.
///
/// Each place has as much room as its first value needs, rounded up to eight bytes, and takes values of any type that fit. It
/// travels, as [`SharedMemory`] does, and may have a name, with the same rules.
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
/// Access is one at a time, by a lock that survives its holder's death; a value is replaced as a whole or not at all.
#[derive(Clone)]
pub struct ShareableList {
    memory: SharedMemory,
}

const KINDS: &[Kind] = &[Kind::List];
const HEAD: usize = BYTES_START;
const SLOTS: usize = HEAD + size_of::<Head>();

impl ShareableList {
    /// A list of these, without a name.
    ///
    /// # Errors
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) for a text or bytes of 4 GiB and more; the system's, if it has no descriptor,
    /// no addresses or no memory left.
    pub fn new<I: Into<ListItem>>(items: impl IntoIterator<Item = I>) -> io::Result<Self> {
        Self::make(items.into_iter().map(Into::into).collect(), None)
    }

    /// A list of these, with a name.
    ///
    /// # Errors
    /// As [`SharedMemory::create_named`].
    pub fn create_named<I: Into<ListItem>>(
        name: &str,
        items: impl IntoIterator<Item = I>,
    ) -> io::Result<Self> {
        Name::check(name)?;
        Self::make(items.into_iter().map(Into::into).collect(), Some(name))
    }

    /// What has that name.
    ///
    /// # Errors
    /// As [`SharedMemory::attach`].
    pub fn attach(name: &str) -> io::Result<Self> {
        Ok(ShareableList { memory: SharedMemory::attach_kind(name, KINDS)? })
    }

    fn make(items: Vec<ListItem>, name: Option<&str>) -> io::Result<Self> {
        let too_large = || io::Error::from(io::ErrorKind::OutOfMemory);
        // A length has 32 bits in a slot; a longer one would be taken for another one.
        if let Some(index) = items.iter().position(|item| item.len() > ITEM_BYTES_MAX) {
            let len = items[index].len();
            let text =
                format!("item {index} has {len} bytes, and items of a list have {ITEM_BYTES_MAX} at most");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        let encoded: Vec<_> = items.iter().map(ListItem::encode).collect();
        let capacities = encoded.iter().map(|(_, bytes)| bytes.len().max(1).next_multiple_of(8));
        let data = size_of::<Head>() + items.len() * size_of::<Slot>();
        let size =
            capacities.clone().try_fold(data, |size, capacity| size.checked_add(capacity.checked_mul(2)?));
        let size = size.ok_or_else(too_large)?;
        let count = u32::try_from(items.len()).map_err(|_| too_large())?;
        if u32::try_from(size / 8).is_err() {
            return Err(too_large());
        }
        let block = match name {
            None => Block::allocate(Kind::List, whole(size)?)?,
            Some(name) => {
                let len = whole(size)?;
                Name::fill(name, |file| Block::allocate_in(file, Kind::List, len))?
            }
        };
        let memory = SharedMemory::with(block, None);
        let list = ShareableList { memory };
        list.head().count.store(count, Ordering::Relaxed);
        let mut at = data;
        for ((slot, (kind, bytes)), capacity) in list.slots().iter().zip(&encoded).zip(capacities) {
            slot.place.store((at as u64 / 8) << 32 | capacity as u64, Ordering::Relaxed);
            // It was measured.
            let _ = list.write(slot, *kind, bytes);
            at += 2 * capacity;
        }
        match name {
            None => Ok(list),
            // Complete: others may see it.
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

    fn head(&self) -> &Head {
        self.memory.block().part(HEAD)
    }

    fn slots(&self) -> &[Slot] {
        // What another process writes here does not make the block longer.
        let room = self.memory.len().saturating_sub(size_of::<Head>()) / size_of::<Slot>();
        self.memory.block().parts(SLOTS, self.len().min(room))
    }

    fn lock(&self) -> RobustGuard<'_, Liveness> {
        let (mutex, owners) = (&self.head().mutex, self.memory.block().owners());
        loop {
            // None of its calls has a limit. A death leaves nothing to repair.
            if let Some(guard) = mutex.lock_until(owners, None) {
                return guard;
            }
        }
    }

    /// Where the halves are, and how long each is; `None` if that is garbled.
    fn halves(&self, slot: &Slot) -> Option<(usize, usize)> {
        let place = slot.place.load(Ordering::Relaxed);
        let (at, capacity) = ((place >> 32) as usize * 8, place as u32 as usize);
        let after = size_of::<Head>() + size_of_val(self.slots());
        let end = at.checked_add(capacity.checked_mul(2)?)?;
        (at >= after && end <= self.memory.len() && capacity.is_multiple_of(8)).then_some((at, capacity))
    }

    fn write(&self, slot: &Slot, kind: u8, bytes: &[u8]) -> Result<(), TooLarge> {
        let (at, capacity) = self.halves(slot).unwrap_or((0, 0));
        if bytes.len() > capacity {
            return Err(TooLarge { len: bytes.len(), capacity });
        }
        let half = u64::from(slot.word.load(Ordering::Relaxed) >> 8 & 1 == 0);
        let from = at + half as usize * capacity;
        let base = self.memory.block().bytes(HEAD, self.memory.len());
        // SAFETY: aligned to a cache line, and a whole number of words; `halves` lie within, and behind all that is looked at
        // through references.
        unsafe { words::store_bytes(base, from, bytes) };
        let word = (bytes.len() as u64) << 32 | half << 8 | u64::from(kind);
        slot.word.store(word, Ordering::Release);
        Ok(())
    }

    fn read(&self, slot: &Slot) -> ListItem {
        let word = slot.word.load(Ordering::Acquire);
        let (len, half) = ((word >> 32) as usize, (word >> 8 & 1) as usize);
        let Some((at, capacity)) = self.halves(slot).filter(|(_, capacity)| len <= *capacity) else {
            return ListItem::None;
        };
        let mut bytes = vec![0; len];
        let base = self.memory.block().bytes(HEAD, self.memory.len());
        // SAFETY: as in `write`.
        unsafe { words::load_bytes(base, at + half * capacity, &mut bytes) };
        ListItem::decode(word as u8, bytes)
    }

    /// The item at this index.
    pub fn get(&self, index: usize) -> Option<ListItem> {
        let _guard = self.lock();
        self.slots().get(index).map(|slot| self.read(slot))
    }

    /// Another item at this index, of any type.
    ///
    /// # Errors
    /// If it needs more room than there is.
    ///
    /// # Panics
    /// If there is no such index.
    pub fn set(&self, index: usize, item: impl Into<ListItem>) -> Result<(), TooLarge> {
        let (kind, bytes) = item.into().encode();
        let _guard = self.lock();
        let slots = self.slots();
        assert!(index < slots.len(), "index {index} of a list of {}", slots.len());
        self.write(&slots[index], kind, &bytes)
    }

    /// All items.
    pub fn to_vec(&self) -> Vec<ListItem> {
        let _guard = self.lock();
        self.slots().iter().map(|slot| self.read(slot)).collect()
    }

    /// How many items.
    pub fn len(&self) -> usize {
        self.head().count.load(Ordering::Relaxed) as usize
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many items are equal to this one.
    pub fn count(&self, item: impl Into<ListItem>) -> usize {
        let item = item.into();
        self.to_vec().iter().filter(|other| **other == item).count()
    }

    /// The first index of an item that is equal to this one.
    pub fn index(&self, item: impl Into<ListItem>) -> Option<usize> {
        let item = item.into();
        self.to_vec().iter().position(|other| *other == item)
    }

    /// The types of the items, in the letters of Python's `struct`: `q` a whole number, `d` a floating-point one, `?` a
    /// boolean, `x` nothing, `16s` a text and `16p` bytes for which there are 16 bytes of room.
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

    /// Another list of the same items, without a name.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn copy(&self) -> io::Result<Self> {
        Self::new(self.to_vec())
    }

    /// Another list of the same items, with a name.
    ///
    /// # Errors
    /// As [`create_named`](Self::create_named).
    pub fn copy_named(&self, name: &str) -> io::Result<Self> {
        Self::create_named(name, self.to_vec())
    }

    /// Its name, if it has one.
    pub fn name(&self) -> Option<String> {
        self.memory.name()
    }

    /// Removes the name, as [`SharedMemory::unlink`].
    ///
    /// # Errors
    /// As there.
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
