//! Where shared objects lie: blocks in anonymous files, many small ones in one file, a large one in its own.
//!
//! ```text
//!  current segment, 64 KiB:   │Head│ Lock │ Value │ Lock │ Semaphore …   │   next ►      │
//!  a large array:             │Head│ Array ………………………………………………………………………………………………│
//!
//!  block:  BlockHead (kind, length) │ body
//! ```
//!
//! A process takes blocks from the front of its own current segment; others never do, so there is nothing to agree on. A
//! handle is a block and keeps its segment. What travels is the segment's descriptor (once for all objects in it) and the
//! place. A block whose last handle goes, and which no other process can have, is used again for the next one of its
//! length; one that has travelled is not, for nobody knows who has it: its segment goes as a whole, with the last handle of
//! the last process. So nothing counts references across processes, and nothing is left when one is killed.
//!
//! What a process keeps when it has no handle left: its current segment, of which it has two descriptors.

// What is counted here decides who may touch memory: no sum wraps unseen.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use std::{
    collections::HashMap,
    fmt, io,
    os::fd::OwnedFd,
    ptr::NonNull,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser};

use super::{
    segment::{BEYOND, LINE, OwnFile, Segment},
    words,
};
use crate::{
    os::{fork::PerProcess, liveness::Liveness, memory::SharedLayout},
    wire::attachment,
};

/// Where the bytes of a [`SharedMemory`](crate::SharedMemory) begin in their block: at a cache line. It is part of a segment's layout,
/// as named memory is read by other builds.
pub(crate) const BYTES_START: usize = Block::aligned(0, 64);

/// Of small blocks. More: a process that has one lock takes that much. Less: more descriptors for many objects (now two
/// for a thousand locks).
const SEGMENT_BYTES: usize = 64 * 1024;
/// A longer block has a segment of its own. At the end of each segment that much may be lost.
const SMALL_MAX: usize = 8 * 1024;

/// What a block is, so that a handle of one thing is not taken for one of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
#[allow(dead_code, reason = "each is some object's")]
pub(crate) enum Kind {
    Lock = 1,
    RLock,
    Semaphore,
    BoundedSemaphore,
    Condition,
    Event,
    Barrier,
    Value,
    RawValue,
    Array,
    RawArray,
    Memory,
    List,
    Queue,
}

impl Kind {
    const ALL: [Kind; 14] = [
        Kind::Lock,
        Kind::RLock,
        Kind::Semaphore,
        Kind::BoundedSemaphore,
        Kind::Condition,
        Kind::Event,
        Kind::Barrier,
        Kind::Value,
        Kind::RawValue,
        Kind::Array,
        Kind::RawArray,
        Kind::Memory,
        Kind::List,
        Kind::Queue,
    ];

    fn name(self) -> &'static str {
        match self {
            Kind::Lock => "a Lock",
            Kind::RLock => "an RLock",
            Kind::Semaphore => "a Semaphore",
            Kind::BoundedSemaphore => "a BoundedSemaphore",
            Kind::Condition => "a Condition",
            Kind::Event => "an Event",
            Kind::Barrier => "a Barrier",
            Kind::Value => "a Value",
            Kind::RawValue => "a RawValue",
            Kind::Array => "an Array",
            Kind::RawArray => "a RawArray",
            Kind::Memory => "a SharedMemory",
            Kind::List => "a ShareableList",
            Kind::Queue => "a Queue",
        }
    }
}

/// How what lies in a block is accessed: by words of which width, in pieces of which size. All who have a handle of it must
/// agree, for an atomic of eight bytes and eight of one byte at the same place are a race, as if there were no atomics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Access(u32);

impl Access {
    /// Of blocks whose kind says it all.
    pub(crate) const BY_KIND: Access = Access(0);

    /// Of plain data of this type, or many of it. Types of one size and alignment are accessed alike, so a `u32` may be
    /// received as an `f32`: any bytes are a value of either.
    pub(crate) const fn of<T>() -> Self {
        // Alignments are powers of two up to a line, so these are different numbers up to sizes of 256 MiB, and never 0.
        let size = size_of::<T>() as u64;
        Access((size << 3 | align_of::<T>().trailing_zeros() as u64) as u32 | 1 << 31)
    }
}

/// Before the body of each block. Written once, by whoever makes it; checked by whoever receives it.
#[repr(C)]
struct BlockHead {
    kind: AtomicU32,
    access: AtomicU32,
    len: AtomicU64,
}

/// Where the body begins.
pub(crate) const HEAD: usize = size_of::<BlockHead>();

/// A piece of memory that processes share, and a handle of it. Two are equal if they are the same memory.
#[derive(Clone)]
pub(crate) struct Block {
    inner: Arc<Inner>,
}

struct Inner {
    /// Of the body.
    at: NonNull<u8>,
    len: usize,
    segment: Arc<Segment>,
    /// Of the head.
    offset: usize,
    kind: Kind,
    /// `true` only if its segment has noted that it was sent, so that this is noted once.
    sent: AtomicBool,
}

// SAFETY: the memory is reached through atomics, or in ways whose soundness is argued where it is done; the pointer is as
// good in every thread as long as the segment is there.
unsafe impl Send for Inner {}
// SAFETY: as above.
unsafe impl Sync for Inner {}

/// A block on its way.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Place {
    index: u8,
    offset: u64,
    len: u64,
}

/// Where this process takes small blocks from.
#[derive(Default)]
struct Heap {
    current: Mutex<Current>,
}

#[derive(Default)]
struct Current {
    segment: Option<Arc<Segment>>,
    /// Where the free end of it begins.
    next: usize,
    /// Blocks of it that are free again, by their length.
    free: HashMap<usize, Vec<usize>>,
}

fn heap() -> &'static Heap {
    static HEAP: PerProcess<Heap> = PerProcess::new(Heap::default);
    HEAP.get()
}

/// What a process notes of a block that it has: its kind, how it is accessed, and of which other block its lock is.
fn tag(kind: Kind, access: Access, lock: Option<&Block>) -> u128 {
    let lock = lock.map_or(0, |lock| {
        let (_, inode) = lock.inner.segment.inode();
        // Any number that is rarely that of another one. A line has 64 bytes. A peer can choose a file's number and a place so
        // that two locks get the same: then it makes two locks guard one object, as it can write to the object without any.
        (inode << 20).wrapping_add((lock.inner.offset / LINE) as u64).wrapping_add(1)
    });
    u128::from(kind as u32) | u128::from(access.0) << 32 | u128::from(lock) << 64
}

const SOMETHING_ELSE: &str = "its memory holds something else";

/// Of head and body, for those who ask whether that is within the memory: more than there can be is not.
fn with_head(len: usize) -> usize {
    len.saturating_add(HEAD)
}

/// How much a block takes.
fn whole(len: usize) -> Option<usize> {
    len.checked_add(HEAD)?.checked_next_multiple_of(LINE)
}

impl Block {
    /// New, zeroed memory of so many bytes, aligned to 16. To be freed by nobody: see the module's opening.
    ///
    /// # Errors
    /// The system's, if it has no descriptor, no addresses or no memory left.
    pub(crate) fn allocate(kind: Kind, len: usize) -> io::Result<Self> {
        Self::allocate_for(kind, Access::BY_KIND, len, None)
    }

    /// As [`allocate`](Self::allocate), for plain data. Another block may have the lock of it: this process then takes no
    /// handle of it that says otherwise.
    pub(crate) fn allocate_for(
        kind: Kind,
        access: Access,
        len: usize,
        lock: Option<&Block>,
    ) -> io::Result<Self> {
        let tag = tag(kind, access, lock);
        let whole = whole(len).ok_or(io::ErrorKind::OutOfMemory)?;
        let (segment, offset) = if whole > SMALL_MAX {
            let segment = Segment::create("executor-object", whole)?;
            segment.note_new(LINE, with_head(len), tag, || {});
            (segment, LINE)
        } else {
            let heap = heap();
            let mut current = heap.current.lock().unwrap_or_else(PoisonError::into_inner);
            current.take(whole, with_head(len), tag)?
        };
        let block = Self::at(segment, offset, len, kind);
        let head = block.head();
        head.kind.store(kind as u32, Ordering::Relaxed);
        head.access.store(access.0, Ordering::Relaxed);
        head.len.store(len as u64, Ordering::Relaxed);
        Ok(block)
    }

    /// As [`allocate`](Self::allocate), alone in a new file of the caller's, which has no bytes yet.
    pub(crate) fn allocate_in(file: OwnedFd, kind: Kind, len: usize) -> io::Result<Self> {
        let segment = Segment::create_in(file, whole(len).ok_or(io::ErrorKind::OutOfMemory)?)?;
        let tag = tag(kind, Access::BY_KIND, None);
        segment.note_new(LINE, with_head(len), tag, || {});
        // Whoever has the file may have the block.
        segment.note_sent(LINE);
        let block = Self::at(segment, LINE, len, kind);
        block.head().len.store(len as u64, Ordering::Relaxed);
        block.head().kind.store(kind as u32, Ordering::Relaxed);
        Ok(block)
    }

    /// The block of a file that was made by [`allocate_in`](Self::allocate_in).
    pub(crate) fn open_file(file: OwnFile, kinds: &[Kind], fits: impl Fn(usize) -> bool) -> io::Result<Self> {
        let invalid = |text| io::Error::new(io::ErrorKind::InvalidData, text);
        let segment = Segment::open_named(file)?;
        let len = Self::len_at(&segment, LINE).ok_or_else(|| invalid("no memory of this library"))?;
        let fits = |kind, _, len: usize| kinds.contains(&kind) && fits(len);
        Self::open(segment, LINE as u64, len, fits, None).map_err(invalid)
    }

    /// What the head there says, if there is room for one.
    fn len_at(segment: &Segment, offset: usize) -> Option<u64> {
        if with_head(offset) > segment.len() {
            return None;
        }
        // SAFETY: within the mapping, aligned as `LINE` is; atomics.
        let head = unsafe { segment.at().add(offset).cast::<BlockHead>().as_ref() };
        Some(head.len.load(Ordering::Relaxed))
    }

    /// Of the file that it lies in.
    pub(crate) fn descriptor(&self) -> &Arc<OwnedFd> {
        self.inner.segment.descriptor()
    }

    /// The caller has noted it in its segment.
    fn at(segment: Arc<Segment>, offset: usize, len: usize, kind: Kind) -> Self {
        // SAFETY: head and body lie within the segment's mapping, or they would not have been noted.
        let at = unsafe { segment.at().add(offset).add(HEAD) };
        Block { inner: Arc::new(Inner { at, len, segment, offset, kind, sent: AtomicBool::new(false) }) }
    }

    fn head(&self) -> &BlockHead {
        self.inner.head()
    }

    pub(crate) fn kind(&self) -> Kind {
        self.inner.kind
    }

    /// How many bytes.
    pub(crate) fn len(&self) -> usize {
        self.inner.len
    }

    /// A layout that begins at this byte.
    ///
    /// # Panics
    /// If it is not within the block, or not aligned: an error of the caller's, whatever another process writes.
    #[inline]
    pub(crate) fn part<T: SharedLayout>(&self, at: usize) -> &T {
        &self.parts(at, 1)[0]
    }

    /// So many of a layout, one after the other.
    ///
    /// # Panics
    /// As [`part`](Self::part).
    #[inline]
    pub(crate) fn parts<T: SharedLayout>(&self, at: usize, count: usize) -> &[T] {
        let bytes = count.checked_mul(size_of::<T>()).expect("beyond the block");
        let start = self.bytes(at, bytes).cast::<T>();
        assert!(start.is_aligned(), "a layout that is not aligned");
        // SAFETY: within the block, aligned, there as long as `self`; by `SharedLayout` every content is a value, and
        // all of it atomics, so that others may write to it. No other block of this process overlaps it, whatever others
        // send (`Segment::note_received`), and its place becomes no other block's as long as a handle is here.
        unsafe { std::slice::from_raw_parts(start.as_ptr(), count) }
    }

    /// As many of a layout as fit behind this byte.
    pub(crate) fn rest<T: SharedLayout>(&self, at: usize) -> &[T] {
        let room = self.inner.len.saturating_sub(at);
        self.parts(at, room.checked_div(size_of::<T>()).unwrap_or(0))
    }

    /// Where these bytes lie. They may change at any moment: what is done with them is the caller's argument to make.
    ///
    /// # Panics
    /// If they are not within the block.
    #[inline]
    pub(crate) fn bytes(&self, at: usize, len: usize) -> NonNull<u8> {
        assert!(self.inner.len.checked_sub(at).is_some_and(|left| len <= left), "beyond the block");
        // SAFETY: within the mapping.
        unsafe { self.inner.at.add(at) }
    }

    /// The first byte from `at` on that is aligned so; `align` is at most a cache line.
    #[expect(clippy::arithmetic_side_effects, reason = "of what lies before the elements: some kilobytes")]
    #[inline]
    pub(crate) const fn aligned(at: usize, align: usize) -> usize {
        assert!(align <= LINE, "no shared memory is aligned to more than 64 bytes");
        (HEAD + at).next_multiple_of(align) - HEAD
    }

    /// Who shares it.
    #[inline]
    pub(crate) fn owners(&self) -> &Liveness {
        self.inner.segment.liveness()
    }

    /// To be used as serde's.
    pub(crate) fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let place = self.depart::<S>()?;
        place.serialize(serializer)
    }

    /// To be used as serde's. See [`arrive`](Self::arrive).
    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
        kinds: &[Kind],
        fits: impl Fn(usize) -> bool,
    ) -> Result<Self, D::Error> {
        Self::arrive(Place::deserialize(deserializer)?, kinds, None, fits, None)
    }

    /// Where it is, for those who get what a serialiser of type `S` is writing: its memory goes along.
    pub(crate) fn depart<S: Serializer>(&self) -> Result<Place, S::Error> {
        let inner = &*self.inner;
        if !inner.sent.load(Ordering::Relaxed) {
            inner.segment.note_sent(inner.offset);
            inner.sent.store(true, Ordering::Relaxed);
        }
        let index = attachment::attach::<S>(inner.segment.descriptor())
            .map_err(|error| ser::Error::custom(format_args!("{}: {error}", inner.kind.name())))?;
        Ok(Place { index, offset: inner.offset as u64, len: inner.len as u64 })
    }

    /// What is there. The block is of one of these kinds, and where it claims to be; what it contains is anything. So is its
    /// length: `fits` says which will do. `access` is how the receiver accesses its content, if it does; `lock` is that of
    /// [`allocate_for`](Self::allocate_for).
    pub(crate) fn arrive<E: de::Error>(
        place: Place,
        kinds: &[Kind],
        access: Option<Access>,
        fits: impl Fn(usize) -> bool,
        lock: Option<&Block>,
    ) -> Result<Self, E> {
        let failed = |error: &dyn fmt::Display| E::custom(format_args!("{}: {error}", kinds[0].name()));
        let descriptor = attachment::detach(place.index).map_err(|error| failed(&error))?;
        let segment = Segment::open(descriptor).map_err(|error| failed(&error))?;
        let fits = |kind, is: Access, len: usize| {
            kinds.contains(&kind) && access.is_none_or(|access| access == is) && fits(len)
        };
        Self::open(segment, place.offset, place.len, fits, lock).map_err(|error| failed(&error))
    }

    /// As [`arrive`](Self::arrive), of memory that has a name: its file is of this user's, and not sealed.
    pub(crate) fn arrive_named<E: de::Error>(
        place: Place,
        kinds: &[Kind],
        fits: impl Fn(usize) -> bool,
    ) -> Result<Self, E> {
        let failed = |error: &dyn fmt::Display| E::custom(format_args!("{}: {error}", kinds[0].name()));
        let descriptor = attachment::detach(place.index).map_err(|error| failed(&error))?;
        let segment =
            OwnFile::check(descriptor).and_then(Segment::open_named).map_err(|error| failed(&error))?;
        let fits = |kind, _, len: usize| kinds.contains(&kind) && fits(len);
        Self::open(segment, place.offset, place.len, fits, None).map_err(|error| failed(&error))
    }

    fn open(
        segment: Arc<Segment>,
        offset: u64,
        len: u64,
        fits: impl Fn(Kind, Access, usize) -> bool,
        lock: Option<&Block>,
    ) -> Result<Self, &'static str> {
        let offset = usize::try_from(offset).map_err(|_| BEYOND)?;
        let len = usize::try_from(len).map_err(|_| BEYOND)?;
        let mut found = None;
        segment.note_received(offset, with_head(len), || {
            // SAFETY: within the mapping, aligned as `LINE` is; atomics. Nothing else of this process is there, nor comes
            // there meanwhile: that is the promise of `note_received`.
            let head = unsafe { segment.at().add(offset).cast::<BlockHead>().as_ref() };
            let number = head.kind.load(Ordering::Relaxed);
            // Another process may change it at any moment; what this one has noted holds for all its handles.
            let access = Access(head.access.load(Ordering::Relaxed));
            let kind =
                Kind::ALL.iter().copied().find(|kind| *kind as u32 == number).filter(|kind| {
                    fits(*kind, access, len) && head.len.load(Ordering::Relaxed) == len as u64
                });
            found = kind;
            Ok(tag(kind.ok_or(SOMETHING_ELSE)?, access, lock))
        })?;
        Ok(Self::at(segment, offset, len, found.ok_or(SOMETHING_ELSE)?))
    }
}

impl Current {
    /// A zeroed block; `len` of the `whole` is used.
    fn take(&mut self, whole: usize, len: usize, tag: u128) -> io::Result<(Arc<Segment>, usize)> {
        if let Some(segment) = &self.segment {
            let clear = |offset| {
                // SAFETY: within the mapping, a whole number of aligned words, there as long as `segment`. This process has
                // nothing there: no handle was there yet, or the last one is gone and none was ever sent; and none that is
                // received is taken as long as the segment's table is locked. Other processes' accesses are atomic as well.
                unsafe { words::zero(segment.at().add(offset), whole) }
            };
            while let Some(offset) = self.free.get_mut(&whole).and_then(Vec::pop) {
                if segment.note_new(offset, len, tag, || clear(offset)) {
                    return Ok((Arc::clone(segment), offset));
                }
            }
            while let Some(end) = self.next.checked_add(whole).filter(|end| *end <= segment.len()) {
                let offset = std::mem::replace(&mut self.next, end);
                // What a handle that was received lies across is left out: somebody made it up. Whoever has another object of
                // the segment may have written here, too.
                if segment.note_new(offset, len, tag, || clear(offset)) {
                    return Ok((Arc::clone(segment), offset));
                }
            }
        }
        let segment = Segment::create("executor-objects", SEGMENT_BYTES - LINE)?;
        segment.note_new(LINE, len, tag, || {});
        self.next = LINE.saturating_add(whole);
        self.free.clear();
        self.segment = Some(Arc::clone(&segment));
        Ok((segment, LINE))
    }
}

impl Inner {
    fn head(&self) -> &BlockHead {
        // SAFETY: the head lies before the body, within the mapping; aligned as a block is; atomics.
        unsafe { self.at.sub(HEAD).cast::<BlockHead>().as_ref() }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let Some(whole) = whole(self.len) else { return };
        if whole > SMALL_MAX {
            return;
        }
        // A handle of before is refused from now on.
        let clear = || self.head().kind.store(0, Ordering::Relaxed);
        if !self.segment.forget_if_only_ours(self.offset, clear) {
            return;
        }
        let mut current = heap().current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.segment.as_ref().is_some_and(|segment| Arc::ptr_eq(segment, &self.segment)) {
            current.free.entry(whole).or_default().push(self.offset);
        }
    }
}

impl PartialEq for Block {
    fn eq(&self, other: &Self) -> bool {
        let (one, other) = (&*self.inner, &*other.inner);
        Arc::ptr_eq(&one.segment, &other.segment) && one.offset == other.offset
    }
}

impl Eq for Block {}

impl fmt::Debug for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner { kind, offset, len, .. } = &*self.inner;
        write!(f, "Block({kind:?}, {len} bytes at {offset})")
    }
}

/// What peers can say of blocks, as a function of bytes: see `crate::fuzz`.
#[cfg(any(all(test, not(any(executor_loom, executor_shuttle))), fuzzing))]
pub(crate) mod fuzzed {
    use rustix::fs::{SealFlags, fcntl_add_seals};

    use super::*;
    use crate::{fuzz::Input, os::file};

    const BYTES: u64 = 16 * 1024;

    fn number(input: &mut Input<'_>) -> u64 {
        match input.u8() % 6 {
            0 => u64::MAX - u64::from(input.u8()),
            1 => 1 << (input.u8() % 64),
            2 => BYTES - u64::from(input.u8()),
            3 => u64::from(input.u8()) * LINE as u64,
            _ => input.u16().into(),
        }
    }

    /// A file that a peer has sent, whose heads say what they like, and places in it.
    pub(crate) fn place(data: &[u8]) {
        let mut input = Input::new(data);
        let Ok(file) = file::anonymous("fuzz") else { return };
        let made = file::set_len(&file, BYTES).and_then(|()| {
            let head = Segment::create("fuzz", LINE)?;
            // SAFETY: the first line of a mapping, of which nobody else knows.
            let head = unsafe { std::slice::from_raw_parts(head.at().as_ptr(), LINE) }.to_vec();
            file::write_at(&file, &head, 0)?;
            Ok(fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW)?)
        });
        let Ok(segment) = made.and_then(|()| Segment::open(Arc::new(file))) else { return };
        let mut blocks: Vec<Block> = Vec::new();
        for _ in 0..64 {
            if input.is_empty() {
                break;
            }
            let (at, len) = (number(&mut input), number(&mut input));
            match input.u8() % 4 {
                // The peer writes a head there.
                0 | 1 => {
                    let kind = u32::from(input.u8() % 20);
                    let line = usize::try_from(at).unwrap_or(usize::MAX) / LINE * LINE;
                    if line >= LINE && with_head(line) <= segment.len() {
                        // SAFETY: within the mapping, aligned; atomics.
                        let head = unsafe { segment.at().add(line).cast::<BlockHead>().as_ref() };
                        head.kind.store(kind, Ordering::Relaxed);
                        head.access.store(u32::from(input.u8() % 3), Ordering::Relaxed);
                        head.len.store(len, Ordering::Relaxed);
                    }
                }
                2 => drop(blocks.pop()),
                _ => {
                    blocks.extend(Block::open(Arc::clone(&segment), at, len, |_, _, _| true, None));
                }
            }
            for (index, one) in blocks.iter().enumerate() {
                let (start, end) = (one.inner.offset, one.inner.offset.saturating_add(with_head(one.len())));
                assert!(start >= LINE && end <= segment.len(), "within the memory");
                let apart = |other: &Block| {
                    let from = other.inner.offset;
                    let same = from == start && other.len() == one.len() && other.kind() == one.kind();
                    same || from >= end || from.saturating_add(with_head(other.len())) <= start
                };
                assert!(blocks[..index].iter().all(apart), "no two lie across each other");
            }
        }
    }
}

#[cfg(all(test, not(any(executor_loom, executor_shuttle))))]
mod tests {
    use rustix::fs::{SealFlags, fcntl_add_seals};

    use crate::os::file;

    use super::*;

    fn any(_: Kind, _: Access, _: usize) -> bool {
        true
    }

    fn open(block: &Block, offset: u64, len: u64) -> Result<Block, &'static str> {
        Block::open(Arc::clone(&block.inner.segment), offset, len, any, None)
    }

    /// As if a handle were sent to another process.
    fn send(block: &Block) {
        block.inner.segment.note_sent(block.inner.offset);
    }

    #[test]
    fn a_place_that_is_made_up_is_refused() {
        let block = Block::allocate(Kind::Value, 40).unwrap();
        let _next = Block::allocate(Kind::Value, 40).unwrap();
        let (offset, len) = (block.inner.offset as u64, 40);
        assert!(open(&block, offset, len).is_err(), "nobody has got a handle of it");
        send(&block);
        assert!(open(&block, offset, len).unwrap() == block);
        let end = block.inner.segment.len() as u64;
        for (offset, len) in [
            (0, 40),
            (offset + 1, 40),
            (offset, 41),
            (offset, 0),
            (offset + 64, 4000),
            (end, 40),
            (end - 64, 64),
            (offset, u64::MAX),
            (u64::MAX, 40),
            (u64::MAX - 63, 64),
        ] {
            assert!(open(&block, offset, len).is_err(), "{len} at {offset}");
        }
        // Another process may write another kind there: what this one has of it stays what it is.
        block.head().kind.store(Kind::Lock as u32, Ordering::Relaxed);
        assert!(matches!(open(&block, offset, len), Err("it overlaps another object")));
        block.head().kind.store(Kind::Value as u32, Ordering::Relaxed);
        block.head().access.store(Access::of::<u8>().0, Ordering::Relaxed);
        assert!(matches!(open(&block, offset, len), Err("it overlaps another object")));
        block.head().access.store(Access::BY_KIND.0, Ordering::Relaxed);
        let lock = Block::allocate(Kind::Lock, 8).unwrap();
        let under = Block::open(Arc::clone(&block.inner.segment), offset, len, any, Some(&lock));
        assert!(under.is_err(), "with another lock than here");
    }

    /// Runs a test of this file that needs the process's heap for itself.
    fn alone(name: &str) {
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args([&format!("heap::block::tests::{name}"), "--exact", "--ignored", "--nocapture"])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        let why = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.contains("1 passed"), "{}\n{said}{why}", output.status);
    }

    const KINDS: [Kind; 4] = [Kind::Value, Kind::RawValue, Kind::Array, Kind::RawArray];
    const LENS: [usize; 4] = [8, 40, 100, 1_000];

    /// What another process can do that has got one object of a segment: write there, and send places.
    struct Peer {
        random: u64,
    }

    impl Peer {
        /// A number below this one: xorshift.
        fn below(&mut self, end: usize) -> usize {
            self.random ^= self.random << 13;
            self.random ^= self.random >> 7;
            self.random ^= self.random << 17;
            (self.random % end as u64) as usize
        }

        fn any<T: Copy>(&mut self, of: &[T]) -> T {
            of[self.below(of.len())]
        }

        /// Writes a head that looks like that of an object.
        fn write_head(&mut self, segment: &Segment, offset: usize) {
            // SAFETY: within the mapping, aligned as `LINE` is; atomics.
            let head = unsafe { segment.at().add(offset).cast::<BlockHead>().as_ref() };
            head.kind.store(self.any(&KINDS) as u32, Ordering::Relaxed);
            head.access.store(0, Ordering::Relaxed);
            head.len.store(self.any(&LENS) as u64, Ordering::Relaxed);
        }

        /// Somewhere in the segment: most often where an object is, was, or comes next.
        fn place(&mut self, segment: &Segment, near: &[usize]) -> usize {
            let anywhere = LINE + self.below(segment.len() / LINE - 2) * LINE;
            match near.is_empty() || self.below(4) == 0 {
                true => anywhere,
                false => (self.any(near) + self.below(3) * LINE).min(anywhere.max(segment.len() / 2)),
            }
        }
    }

    /// Two handles are of the same object, or of memory that does not overlap.
    fn assert_apart(held: &[Block]) {
        let mut held: Vec<_> = held.iter().map(|block| &*block.inner).collect();
        held.sort_by_key(|inner| (inner.segment.inode(), inner.offset));
        for pair in held.windows(2) {
            let (one, other) = (pair[0], pair[1]);
            let same = (one.offset, one.len, one.kind) == (other.offset, other.len, other.kind);
            let before =
                one.segment.inode() != other.segment.inode() || one.offset + HEAD + one.len <= other.offset;
            assert!(
                same || before,
                "{:?} of {} at {} and {:?} of {} at {}",
                one.kind,
                one.len,
                one.offset,
                other.kind,
                other.len,
                other.offset
            );
        }
    }

    #[test]
    fn whatever_a_peer_writes_and_sends_no_two_objects_of_a_process_overlap() {
        alone("objects_beside_a_peer_that_makes_up_handles");
    }

    #[test]
    #[ignore = "run by the test above"]
    fn objects_beside_a_peer_that_makes_up_handles() {
        for seed in 1..=60_u64 {
            let mut peer = Peer { random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) };
            let first = Block::allocate(Kind::Value, 8).unwrap();
            let segment = Arc::clone(&first.inner.segment);
            let mut near = vec![first.inner.offset];
            let mut held = vec![first];
            for _ in 0..300 {
                match peer.below(6) {
                    0 | 1 => {
                        let block = Block::allocate(peer.any(&KINDS), peer.any(&LENS)).unwrap();
                        near.push(block.inner.offset);
                        let body = block.bytes(0, block.len());
                        // SAFETY: within the block; nobody writes meanwhile.
                        let body = unsafe { std::slice::from_raw_parts(body.as_ptr(), block.len()) };
                        assert!(body.iter().all(|byte| *byte == 0), "not zeroed");
                        held.push(block);
                    }
                    2 => {
                        let at = peer.below(held.len());
                        if held.len() > 1 {
                            held.swap_remove(at);
                        }
                    }
                    3 => send(&held[peer.below(held.len())]),
                    4 => {
                        let offset = peer.place(&segment, &near);
                        peer.write_head(&segment, offset);
                    }
                    _ => {
                        let (offset, len) = (peer.place(&segment, &near), peer.any(&LENS));
                        held.extend(Block::open(Arc::clone(&segment), offset as u64, len as u64, any, None));
                    }
                }
                assert_apart(&held);
            }
        }
    }

    #[test]
    fn a_made_up_handle_beside_threads_that_make_and_drop_objects_overlaps_none() {
        alone("threads_that_make_and_drop_objects_beside_made_up_handles");
    }

    #[test]
    #[ignore = "run by the test above"]
    fn threads_that_make_and_drop_objects_beside_made_up_handles() {
        for seed in 1..=20_u64 {
            let first = Block::allocate(Kind::Value, 8).unwrap();
            let segment = Arc::clone(&first.inner.segment);
            let (mut kept, received) = std::thread::scope(|scope| {
                let makes = |seed: u64| {
                    let mut choice = Peer { random: seed };
                    let mut kept = Vec::new();
                    for _ in 0..400 {
                        let block = Block::allocate(choice.any(&KINDS), 40).unwrap();
                        if choice.below(20) == 0 {
                            kept.push(block);
                        }
                    }
                    kept
                };
                let makers = [seed, seed + 1_000].map(|seed| scope.spawn(move || makes(seed)));
                let forges = scope.spawn(|| {
                    let mut peer = Peer { random: seed + 2_000 };
                    let mut received = Vec::new();
                    for _ in 0..20_000 {
                        let offset = LINE + peer.below(segment.len() / LINE - 2) * LINE;
                        received.extend(Block::open(Arc::clone(&segment), offset as u64, 40, any, None));
                    }
                    received
                });
                let kept: Vec<_> = makers.into_iter().flat_map(|maker| maker.join().unwrap()).collect();
                (kept, forges.join().unwrap())
            });
            kept.extend(received);
            assert_apart(&kept);
        }
    }

    #[test]
    fn a_block_that_lies_across_a_made_up_one_is_not_given_out() {
        let block = Block::allocate(Kind::Value, 40).unwrap();
        let segment = &block.inner.segment;
        let free = segment.len() - 64;
        segment.note_received(free, 64, || Ok(7)).unwrap();
        for _ in 0..2_000 {
            let other = Block::allocate(Kind::Value, 40).unwrap();
            send(&other);
            assert!(!Arc::ptr_eq(&other.inner.segment, segment) || other.inner.offset != free);
        }
    }

    #[test]
    fn an_object_that_looks_like_a_made_up_one_is_made_elsewhere() {
        let block = Block::allocate(Kind::Value, 40).unwrap();
        let segment = &block.inner.segment;
        // What comes next, as it will look: everywhere, since other tests make objects, too.
        let tag = tag(Kind::RawArray, Access::BY_KIND, None);
        let made_up: Vec<_> = (LINE..segment.len() - LINE)
            .step_by(LINE)
            .filter(|offset| segment.note_received(*offset, with_head(48), || Ok(tag)).is_ok())
            .collect();
        for _ in 0..made_up.len() + 10 {
            let made = Block::allocate(Kind::RawArray, 48).unwrap();
            send(&made);
            let offset = made.inner.offset;
            assert!(!Arc::ptr_eq(&made.inner.segment, segment) || !made_up.contains(&offset), "{offset}");
        }
    }

    #[test]
    fn memory_that_could_shrink_is_not_taken_for_sealed_because_it_is_mapped_already() {
        let file = || file::anonymous("x").unwrap();
        let named = Block::allocate_in(file(), Kind::Memory, 64).unwrap();
        let again = || Arc::new(named.descriptor().try_clone().unwrap());
        let by_name = |file| OwnFile::check(file).and_then(Segment::open_named);
        rustix::fs::fchmod(named.descriptor(), rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR).unwrap();
        assert!(by_name(again()).is_ok());
        let error = Segment::open(again()).err().unwrap();
        assert!(error.to_string().contains("could shrink"), "{error}");
        let sealed = Block::allocate(Kind::Value, 40).unwrap();
        assert!(Segment::open(Arc::new(sealed.descriptor().try_clone().unwrap())).is_ok());
    }

    #[test]
    fn small_memory_in_a_file_stays_what_it_is_when_its_maker_has_no_handle_left() {
        let block = Block::allocate_in(file::anonymous("x").unwrap(), Kind::Memory, 64).unwrap();
        let file = block.descriptor().try_clone().unwrap();
        rustix::fs::fchmod(&file, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR).unwrap();
        drop(block);
        let file = OwnFile::check(Arc::new(file)).unwrap();
        assert!(Block::open_file(file, &[Kind::Memory], |len| len == 64).is_ok());
    }

    #[test]
    fn memory_of_another_version_is_refused_with_both_versions() {
        let block = Block::allocate(Kind::Value, 40).unwrap();
        // A copy of the file: the same content, and not known here yet.
        let file = file::anonymous("x").unwrap();
        let segment = &block.inner.segment;
        // SAFETY: within the mapping; another test's object may change meanwhile, which is any bytes here.
        let mut bytes = unsafe { std::slice::from_raw_parts(segment.at().as_ptr(), 4096) }.to_vec();
        // Behind the magic number.
        bytes[8..12].copy_from_slice(&77_u32.to_ne_bytes());
        file::write_at(&file, &bytes, 0).unwrap();
        let open = |file: OwnedFd| {
            rustix::fs::fchmod(&file, rustix::fs::Mode::RUSR).unwrap();
            OwnFile::check(Arc::new(file)).and_then(Segment::open_named).err().unwrap()
        };
        let error = open(file);
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert!(error.to_string().contains("another version of this library (layout 77."), "{error}");
        let file = file::anonymous("x").unwrap();
        bytes[8..12].copy_from_slice(&1_u32.to_ne_bytes());
        bytes[0] = b'x';
        file::write_at(&file, &bytes, 0).unwrap();
        let error = open(file);
        assert!(error.to_string().contains("no memory of this library"), "{error}");
    }

    #[test]
    #[expect(clippy::print_stdout, reason = "says what is not run")]
    fn a_file_that_another_user_could_make_shorter_is_refused() {
        use rustix::fs::{Gid, Mode, Uid, fchmod, fchown};
        let check = |mode, owner: Option<u32>| {
            let file = file::anonymous("x").unwrap();
            fchmod(&file, Mode::from_raw_mode(mode)).unwrap();
            if let Some(owner) = owner {
                fchown(&file, Some(Uid::from_raw(owner)), Some(Gid::from_raw(owner))).unwrap();
            }
            OwnFile::check(Arc::new(file)).map(drop).map_err(|error| error.to_string())
        };
        let refused = Err("another user could make it shorter".to_owned());
        assert_eq!(check(0o600, None), Ok(()));
        assert_eq!(check(0o1600, None), Ok(()), "persistent");
        assert_eq!(check(0o620, None), refused);
        assert_eq!(check(0o602, None), refused);
        if rustix::process::geteuid().is_root() {
            assert_eq!(check(0o600, Some(65534)), refused);
        } else {
            println!("not run: only root can give a file to another user");
        }
        let folder = rustix::fs::open("/", rustix::fs::OFlags::RDONLY, Mode::empty()).unwrap();
        assert!(OwnFile::check(Arc::new(folder)).unwrap_err().to_string().contains("no file"));
    }

    #[test]
    fn types_that_are_accessed_differently_are_told_apart() {
        let different = [
            Access::BY_KIND,
            Access::of::<()>(),
            Access::of::<u8>(),
            Access::of::<u16>(),
            Access::of::<u64>(),
            Access::of::<[u8; 8]>(),
            Access::of::<[u16; 4]>(),
            Access::of::<[u32; 2]>(),
            Access::of::<[u64; 2]>(),
            Access::of::<[u8; 1 << 27]>(),
        ];
        for (at, one) in different.iter().enumerate() {
            assert!(different[at + 1..].iter().all(|other| other != one), "{one:?}");
        }
        assert_eq!(Access::of::<u32>(), Access::of::<f32>());
    }

    #[test]
    fn other_files_are_refused() {
        let file = |len: u64, seals| {
            let file = file::anonymous("x").unwrap();
            file::set_len(&file, len).unwrap();
            fcntl_add_seals(&file, seals).unwrap();
            Segment::open(Arc::new(file))
        };
        assert!(file(8192, SealFlags::empty()).is_err(), "it could shrink");
        assert!(file(0, SealFlags::SHRINK).is_err());
        assert!(file(8192, SealFlags::SHRINK).is_err(), "nothing of ours");
        assert!(file(8192, SealFlags::SHRINK | SealFlags::WRITE).is_err());
        let (socket, _other) = crate::os::socket::pair().unwrap();
        assert!(Segment::open(Arc::new(socket)).is_err());
        assert!(Segment::open(Arc::new(tempfile::tempfile().unwrap().into())).is_err());
    }

    #[test]
    fn a_segment_that_is_received_again_is_the_same_one() {
        let block = Block::allocate(Kind::Value, 40).unwrap();
        let again = Segment::open(Arc::new(block.descriptor().try_clone().unwrap())).unwrap();
        assert!(Arc::ptr_eq(&again, &block.inner.segment));
        let large = Block::allocate(Kind::Array, 1 << 20).unwrap();
        let file = Arc::new(large.descriptor().try_clone().unwrap());
        drop(large);
        // Mapped anew, since nobody here had it any more.
        let segment = Segment::open(file).unwrap();
        assert!(segment.len() > 1 << 20);
    }
}
