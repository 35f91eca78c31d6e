//! Blocks: the memory of one shared object each. Blocks lie in anonymous files (segments). Many
//! small blocks share one file; a large block has a file of its own.
//!
//! ```text
//!  current segment, 64 KiB:   │Header│ Lock │ Value │ Lock │ Semaphore …   │   next ►    │
//!  a large array:             │Header│ Array ……………………………………………………………………………………………│
//!
//!  block:  BlockHeader (kind, length) │ body
//! ```
//!
//! A process takes blocks from the front of its own current segment. Other processes never take
//! blocks from that segment, so the processes need not agree on anything. A handle is a `Block`,
//! and keeps its segment alive. A message carries the segment's descriptor (once for all objects in
//! it) and the place of the block.
//!
//! When the last handle of a block is dropped and no other process can have one, the block's memory
//! is reused for the next block of the same length. A block that was sent is not reused, because it
//! is unknown which processes have it. Its memory is freed with the whole segment, when the last
//! process drops its last handle. So there are no reference counts across processes, and nothing is
//! left behind when a process is killed.
//!
//! A process without any handle still keeps its current segment, with two descriptors.

// The arithmetic in this file decides which memory is accessed, so no sum may wrap unnoticed.
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

/// Where the bytes of a [`SharedMemory`](crate::SharedMemory) begin in their block: at a cache
/// line. This is part of a segment's layout, because programs of other builds read named memory.
pub(crate) const BYTES_START: usize = Block::aligned(0, 64);

/// Size of a segment for small blocks. With a higher value, a process that has a single lock uses
/// that much memory. With a lower value, many objects need more descriptors (at present two for a
/// thousand locks).
const SEGMENT_BYTES: usize = 64 * 1024;
/// Maximum length of a small block. A longer block has a segment of its own. Up to this much memory
/// may be lost at the end of each segment.
const SMALL_MAX: usize = 8 * 1024;

/// What kind of object a block holds. It is checked so that a handle of one kind of object is not
/// accepted as a handle of another kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
#[allow(dead_code, reason = "each is some object's")]
pub(crate) enum BlockKind {
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

impl BlockKind {
    const ALL: [BlockKind; 14] = [
        BlockKind::Lock,
        BlockKind::RLock,
        BlockKind::Semaphore,
        BlockKind::BoundedSemaphore,
        BlockKind::Condition,
        BlockKind::Event,
        BlockKind::Barrier,
        BlockKind::Value,
        BlockKind::RawValue,
        BlockKind::Array,
        BlockKind::RawArray,
        BlockKind::Memory,
        BlockKind::List,
        BlockKind::Queue,
    ];

    fn name(self) -> &'static str {
        match self {
            BlockKind::Lock => "a Lock",
            BlockKind::RLock => "an RLock",
            BlockKind::Semaphore => "a Semaphore",
            BlockKind::BoundedSemaphore => "a BoundedSemaphore",
            BlockKind::Condition => "a Condition",
            BlockKind::Event => "an Event",
            BlockKind::Barrier => "a Barrier",
            BlockKind::Value => "a Value",
            BlockKind::RawValue => "a RawValue",
            BlockKind::Array => "an Array",
            BlockKind::RawArray => "a RawArray",
            BlockKind::Memory => "a SharedMemory",
            BlockKind::List => "a ShareableList",
            BlockKind::Queue => "a Queue",
        }
    }
}

/// How the content of a block is accessed: the width of the words, and the size of the pieces.
///
/// All handles of a block must agree on it. Accessing the same bytes through one atomic of eight
/// bytes and through eight atomics of one byte is a data race, as if no atomics were used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Access(u32);

impl Access {
    /// Access to a block whose kind already determines it.
    pub(crate) const BY_KIND: Access = Access(0);

    /// Access to one or more values of plain data of type `T`. Types of the same size and alignment
    /// are accessed alike. So a `u32` may be received as an `f32`: any bytes are a value of either
    /// type.
    pub(crate) const fn of<T>() -> Self {
        // Alignments are powers of two up to a cache line, so these numbers differ for all sizes up
        // to 256 MiB, and are never 0.
        let size = size_of::<T>() as u64;
        Access((size << 3 | align_of::<T>().trailing_zeros() as u64) as u32 | 1 << 31)
    }
}

/// The header before the body of each block. The process that creates the block writes it once, and
/// each process that receives the block checks it.
#[repr(C)]
struct BlockHeader {
    kind: AtomicU32,
    access: AtomicU32,
    len: AtomicU64,
}

/// Offset of the body from the start of the block.
pub(crate) const HEADER_BYTES: usize = size_of::<BlockHeader>();

/// A handle of a piece of shared memory. Two handles are equal if they refer to the same memory.
#[derive(Clone)]
pub(crate) struct Block {
    inner: Arc<Inner>,
}

struct Inner {
    /// Address of the body.
    at: NonNull<u8>,
    len: usize,
    segment: Arc<Segment>,
    /// Offset of the header in the segment.
    offset: usize,
    kind: BlockKind,
    /// `true` only if the segment has noted that this block was sent, so that each handle notes it
    /// once.
    sent: AtomicBool,
}

// SAFETY: the memory is accessed through atomics, or in ways whose soundness is argued at the place
// of access. The pointer is valid in every thread as long as the segment is alive.
unsafe impl Send for Inner {}
// SAFETY: as above.
unsafe impl Sync for Inner {}

/// A block as a message describes it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct BlockPlace {
    index: u8,
    offset: u64,
    len: u64,
}

/// The memory from which this process takes small blocks.
#[derive(Default)]
struct Heap {
    current: Mutex<Current>,
}

#[derive(Default)]
struct Current {
    segment: Option<Arc<Segment>>,
    /// Offset of the unused end of the segment.
    next: usize,
    /// Offsets of blocks in the segment that can be reused, by their length.
    free: HashMap<usize, Vec<usize>>,
}

fn heap() -> &'static Heap {
    static HEAP: PerProcess<Heap> = PerProcess::new(Heap::default);
    HEAP.get()
}

/// Returns what this process notes about a block that it has: its kind, how it is accessed, and
/// which block has its lock.
fn tag(kind: BlockKind, access: Access, lock: Option<&Block>) -> u128 {
    let lock = lock.map_or(0, |lock| {
        let (_, inode) = lock.inner.segment.inode();
        // A number that is rarely the same for two locks. A peer can choose a file's number and a
        // place so that two locks get the same number. Then two locks guard one object, but that is
        // nothing new: the peer can write to the object without holding any lock.
        (inode << 20).wrapping_add((lock.inner.offset / LINE) as u64).wrapping_add(1)
    });
    u128::from(kind as u32) | u128::from(access.0) << 32 | u128::from(lock) << 64
}

const SOMETHING_ELSE: &str = "its memory holds something else";

/// Returns the length of header and body together, for bounds checks. A sum that would overflow
/// becomes `usize::MAX`, which is beyond any memory, so the check fails as it should.
fn with_header(len: usize) -> usize {
    len.saturating_add(HEADER_BYTES)
}

/// Returns how much of a segment a block takes.
fn whole(len: usize) -> Option<usize> {
    len.checked_add(HEADER_BYTES)?.checked_next_multiple_of(LINE)
}

impl Block {
    /// Allocates `len` zeroed bytes, aligned to 16. They are never freed explicitly: see the
    /// module's documentation.
    ///
    /// # Errors
    /// The system's error, if there are no descriptors, addresses or memory left.
    pub(crate) fn allocate(kind: BlockKind, len: usize) -> io::Result<Self> {
        Self::allocate_for(kind, Access::BY_KIND, len, None)
    }

    /// Allocates a block as [`allocate`](Self::allocate) does, for plain data.
    ///
    /// `lock` is the block with the lock of this data, if the lock is in another block. This
    /// process then refuses any received handle that names another lock for this data.
    pub(crate) fn allocate_for(
        kind: BlockKind,
        access: Access,
        len: usize,
        lock: Option<&Block>,
    ) -> io::Result<Self> {
        let tag = tag(kind, access, lock);
        let whole = whole(len).ok_or(io::ErrorKind::OutOfMemory)?;
        let (segment, offset) = if whole > SMALL_MAX {
            // A large block is the first and only one in a new segment.
            let segment = Segment::create("executor-object", whole)?;
            segment.note_new(LINE, with_header(len), tag, || {});
            (segment, LINE)
        } else {
            let heap = heap();
            let mut current = heap.current.lock().unwrap_or_else(PoisonError::into_inner);
            current.take(whole, with_header(len), tag)?
        };
        let block = Self::at(segment, offset, len, kind);
        let header = block.header();
        header.kind.store(kind as u32, Ordering::Relaxed);
        header.access.store(access.0, Ordering::Relaxed);
        header.len.store(len as u64, Ordering::Relaxed);
        Ok(block)
    }

    /// Allocates a block as [`allocate`](Self::allocate) does, alone in a new file of the caller's
    /// that has no bytes yet.
    pub(crate) fn allocate_in(file: OwnedFd, kind: BlockKind, len: usize) -> io::Result<Self> {
        let segment = Segment::create_in(file, whole(len).ok_or(io::ErrorKind::OutOfMemory)?)?;
        let tag = tag(kind, Access::BY_KIND, None);
        segment.note_new(LINE, with_header(len), tag, || {});
        // Any process that opens the file may have the block.
        segment.note_sent(LINE);
        let block = Self::at(segment, LINE, len, kind);
        block.header().len.store(len as u64, Ordering::Relaxed);
        block.header().kind.store(kind as u32, Ordering::Relaxed);
        Ok(block)
    }

    /// Opens the block of a file that [`allocate_in`](Self::allocate_in) created.
    pub(crate) fn open_file(
        file: OwnFile,
        kinds: &[BlockKind],
        fits: impl Fn(usize) -> bool,
    ) -> io::Result<Self> {
        let invalid = |text| io::Error::new(io::ErrorKind::InvalidData, text);
        let segment = Segment::open_named(file)?;
        let len =
            Self::len_at(&segment, LINE).ok_or_else(|| invalid("no memory of this library"))?;
        let fits = |kind, _, len: usize| kinds.contains(&kind) && fits(len);
        Self::open(segment, LINE as u64, len, fits, None).map_err(invalid)
    }

    /// Returns the length that the header at `offset` contains, or `None` if no header fits there.
    fn len_at(segment: &Segment, offset: usize) -> Option<u64> {
        if with_header(offset) > segment.len() {
            return None;
        }
        // SAFETY: within the mapping, aligned to `LINE`, and atomics.
        let header = unsafe { segment.at().add(offset).cast::<BlockHeader>().as_ref() };
        Some(header.len.load(Ordering::Relaxed))
    }

    /// Descriptor of the file that contains the block.
    pub(crate) fn descriptor(&self) -> &Arc<OwnedFd> {
        self.inner.segment.descriptor()
    }

    /// Makes a handle. The caller has noted the block in its segment.
    fn at(segment: Arc<Segment>, offset: usize, len: usize, kind: BlockKind) -> Self {
        // SAFETY: header and body lie within the segment's mapping. Otherwise the block would not
        // have been noted.
        let at = unsafe { segment.at().add(offset).add(HEADER_BYTES) };
        Block {
            inner: Arc::new(Inner { at, len, segment, offset, kind, sent: AtomicBool::new(false) }),
        }
    }

    fn header(&self) -> &BlockHeader {
        self.inner.header()
    }

    pub(crate) fn kind(&self) -> BlockKind {
        self.inner.kind
    }

    /// Length of the body in bytes.
    pub(crate) fn len(&self) -> usize {
        self.inner.len
    }

    /// Returns the value of a shared layout that begins at byte `at`.
    ///
    /// # Panics
    /// If the value is not within the block, or not aligned. This is a mistake of the caller:
    /// nothing that another process writes can cause it.
    #[inline]
    pub(crate) fn part<T: SharedLayout>(&self, at: usize) -> &T {
        &self.parts(at, 1)[0]
    }

    /// Returns `count` consecutive values of a shared layout, beginning at byte `at`.
    ///
    /// # Panics
    /// As [`part`](Self::part).
    #[inline]
    pub(crate) fn parts<T: SharedLayout>(&self, at: usize, count: usize) -> &[T] {
        let bytes = count.checked_mul(size_of::<T>()).expect("beyond the block");
        let start = self.bytes(at, bytes).cast::<T>();
        assert!(start.is_aligned(), "a layout that is not aligned");
        // SAFETY: the values are within the block and aligned, and the memory stays mapped as long
        // as `self` exists. By `SharedLayout`, any bytes are a valid value, and all fields are
        // atomics, so other processes may write to them. No other block of this process overlaps
        // this one, whatever other processes send (`Segment::note_received`). The place is not
        // reused for another block as long as a handle exists here.
        unsafe { std::slice::from_raw_parts(start.as_ptr(), count) }
    }

    /// Returns as many values of a shared layout as fit from byte `at` to the end of the block.
    pub(crate) fn rest<T: SharedLayout>(&self, at: usize) -> &[T] {
        let room = self.inner.len.saturating_sub(at);
        self.parts(at, room.checked_div(size_of::<T>()).unwrap_or(0))
    }

    /// Returns the address of `len` bytes at byte `at`. These bytes may change at any moment. The
    /// caller must argue why its accesses are sound.
    ///
    /// # Panics
    /// If the bytes are not within the block.
    #[inline]
    pub(crate) fn bytes(&self, at: usize, len: usize) -> NonNull<u8> {
        assert!(self.inner.len.checked_sub(at).is_some_and(|left| len <= left), "beyond the block");
        // SAFETY: within the mapping.
        unsafe { self.inner.at.add(at) }
    }

    /// Returns the first byte from `at` on that is aligned to `align`, which is at most a cache
    /// line.
    #[expect(
        clippy::arithmetic_side_effects,
        reason = "of what lies before the elements: some kilobytes"
    )]
    #[inline]
    pub(crate) const fn aligned(at: usize, align: usize) -> usize {
        assert!(align <= LINE, "no shared memory is aligned to more than 64 bytes");
        // The body itself begins `HEADER_BYTES` bytes after a line, so align from the start of the
        // header.
        (HEADER_BYTES + at).next_multiple_of(align) - HEADER_BYTES
    }

    /// The processes that share the block.
    #[inline]
    pub(crate) fn owners(&self) -> &Liveness {
        self.inner.segment.liveness()
    }

    /// Serializes the block, as serde's function of this name does.
    pub(crate) fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let place = self.depart::<S>()?;
        place.serialize(serializer)
    }

    /// Deserializes a block, as serde's function of this name does. See [`arrive`](Self::arrive).
    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
        kinds: &[BlockKind],
        fits: impl Fn(usize) -> bool,
    ) -> Result<Self, D::Error> {
        Self::arrive(BlockPlace::deserialize(deserializer)?, kinds, None, fits, None)
    }

    /// Returns the place of the block for the message that a serializer of type `S` is writing, and
    /// attaches the segment's descriptor to that message.
    pub(crate) fn depart<S: Serializer>(&self) -> Result<BlockPlace, S::Error> {
        let inner = &*self.inner;
        if !inner.sent.load(Ordering::Relaxed) {
            inner.segment.note_sent(inner.offset);
            inner.sent.store(true, Ordering::Relaxed);
        }
        let index = attachment::attach::<S>(inner.segment.descriptor())
            .map_err(|error| ser::Error::custom(format_args!("{}: {error}", inner.kind.name())))?;
        Ok(BlockPlace { index, offset: inner.offset as u64, len: inner.len as u64 })
    }

    /// Returns the block at a place that another process sent.
    ///
    /// The block is certain to be of one of `kinds` and to lie within its memory. Its content may
    /// be anything. Its length may be anything too, so `fits` decides which lengths are accepted.
    /// `access` is how the receiver accesses the content, if it does so directly. `lock` has the
    /// same meaning as in [`allocate_for`](Self::allocate_for).
    pub(crate) fn arrive<E: de::Error>(
        place: BlockPlace,
        kinds: &[BlockKind],
        access: Option<Access>,
        fits: impl Fn(usize) -> bool,
        lock: Option<&Block>,
    ) -> Result<Self, E> {
        let failed =
            |error: &dyn fmt::Display| E::custom(format_args!("{}: {error}", kinds[0].name()));
        let descriptor = attachment::detach(place.index).map_err(|error| failed(&error))?;
        let segment = Segment::open(descriptor).map_err(|error| failed(&error))?;
        let fits = |kind, is: Access, len: usize| {
            kinds.contains(&kind) && access.is_none_or(|access| access == is) && fits(len)
        };
        Self::open(segment, place.offset, place.len, fits, lock).map_err(|error| failed(&error))
    }

    /// As [`arrive`](Self::arrive), for memory that has a name. Its file belongs to this user and
    /// is not sealed.
    pub(crate) fn arrive_named<E: de::Error>(
        place: BlockPlace,
        kinds: &[BlockKind],
        fits: impl Fn(usize) -> bool,
    ) -> Result<Self, E> {
        let failed =
            |error: &dyn fmt::Display| E::custom(format_args!("{}: {error}", kinds[0].name()));
        let descriptor = attachment::detach(place.index).map_err(|error| failed(&error))?;
        let segment = OwnFile::check(descriptor)
            .and_then(Segment::open_named)
            .map_err(|error| failed(&error))?;
        let fits = |kind, _, len: usize| kinds.contains(&kind) && fits(len);
        Self::open(segment, place.offset, place.len, fits, None).map_err(|error| failed(&error))
    }

    fn open(
        segment: Arc<Segment>,
        offset: u64,
        len: u64,
        fits: impl Fn(BlockKind, Access, usize) -> bool,
        lock: Option<&Block>,
    ) -> Result<Self, &'static str> {
        let offset = usize::try_from(offset).map_err(|_| BEYOND)?;
        let len = usize::try_from(len).map_err(|_| BEYOND)?;
        let mut found = None;
        segment.note_received(offset, with_header(len), || {
            // SAFETY: within the mapping, aligned to `LINE`, and atomics. `note_received` promises
            // that no other block of this process is there, and that none is placed there during
            // this call.
            let header = unsafe { segment.at().add(offset).cast::<BlockHeader>().as_ref() };
            let number = header.kind.load(Ordering::Relaxed);
            // Another process may change the header at any moment. What this process notes now
            // applies to all its handles.
            let access = Access(header.access.load(Ordering::Relaxed));
            let kind =
                BlockKind::ALL.iter().copied().find(|kind| *kind as u32 == number).filter(|kind| {
                    fits(*kind, access, len) && header.len.load(Ordering::Relaxed) == len as u64
                });
            found = kind;
            Ok(tag(kind.ok_or(SOMETHING_ELSE)?, access, lock))
        })?;
        // If the block was noted before, `tag` ran as well, to compare. So `found` is set in both
        // cases.
        Ok(Self::at(segment, offset, len, found.ok_or(SOMETHING_ELSE)?))
    }
}

impl Current {
    /// Takes a zeroed block of `whole` bytes, of which `len` are used.
    fn take(&mut self, whole: usize, len: usize, tag: u128) -> io::Result<(Arc<Segment>, usize)> {
        if let Some(segment) = &self.segment {
            let clear = |offset| {
                // SAFETY: the bytes are within the mapping and a whole number of aligned words, and
                // they stay mapped as long as `segment` exists. This process has no block there:
                // either no handle existed yet, or the last handle is gone and none was ever sent.
                // No received handle is accepted while the segment's table is locked. Accesses by
                // other processes are atomic as well.
                unsafe { words::zero(segment.at().add(offset), whole) }
            };
            while let Some(offset) = self.free.get_mut(&whole).and_then(Vec::pop) {
                if segment.note_new(offset, len, tag, || clear(offset)) {
                    return Ok((Arc::clone(segment), offset));
                }
            }
            while let Some(end) = self.next.checked_add(whole).filter(|end| *end <= segment.len()) {
                let offset = std::mem::replace(&mut self.next, end);
                // Skip places that overlap a received handle. This process has not given out that
                // place yet, so the handle was made up. A peer that has another object of the
                // segment may also have written here, which is why `clear` runs.
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
    fn header(&self) -> &BlockHeader {
        // SAFETY: the header lies before the body, within the mapping. It is aligned as the block
        // is, and consists of atomics.
        unsafe { self.at.sub(HEADER_BYTES).cast::<BlockHeader>().as_ref() }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let Some(whole) = whole(self.len) else { return };
        if whole > SMALL_MAX {
            return;
        }
        // From now on, a handle of the old block is refused.
        let clear = || self.header().kind.store(0, Ordering::Relaxed);
        if !self.segment.forget_if_only_ours(self.offset, clear) {
            return;
        }
        let mut current = heap().current.lock().unwrap_or_else(PoisonError::into_inner);
        // A block of an earlier segment is not reused: only the current segment has a list of free
        // blocks.
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

/// Fuzzing of what peers can say about blocks, driven by a string of bytes: see `crate::fuzz`.
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

    /// Simulates a file that a peer has sent, with arbitrary headers, and opens arbitrary places in
    /// it.
    pub(crate) fn place(data: &[u8]) {
        let mut input = Input::new(data);
        let Ok(file) = file::anonymous("fuzz") else { return };
        let made = file::set_len(&file, BYTES).and_then(|()| {
            let header = Segment::create("fuzz", LINE)?;
            // SAFETY: the first line of a mapping that nothing else uses.
            let header = unsafe { std::slice::from_raw_parts(header.at().as_ptr(), LINE) }.to_vec();
            file::write_at(&file, &header, 0)?;
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
                // The peer writes a header at this place.
                0 | 1 => {
                    let kind = u32::from(input.u8() % 20);
                    let line = usize::try_from(at).unwrap_or(usize::MAX) / LINE * LINE;
                    if line >= LINE && with_header(line) <= segment.len() {
                        // SAFETY: within the mapping, aligned, and atomics.
                        let header =
                            unsafe { segment.at().add(line).cast::<BlockHeader>().as_ref() };
                        header.kind.store(kind, Ordering::Relaxed);
                        header.access.store(u32::from(input.u8() % 3), Ordering::Relaxed);
                        header.len.store(len, Ordering::Relaxed);
                    }
                }
                2 => drop(blocks.pop()),
                _ => {
                    blocks.extend(Block::open(Arc::clone(&segment), at, len, |_, _, _| true, None));
                }
            }
            for (index, one) in blocks.iter().enumerate() {
                let (start, end) =
                    (one.inner.offset, one.inner.offset.saturating_add(with_header(one.len())));
                assert!(start >= LINE && end <= segment.len(), "within the memory");
                let apart = |other: &Block| {
                    let from = other.inner.offset;
                    let same =
                        from == start && other.len() == one.len() && other.kind() == one.kind();
                    same || from >= end || from.saturating_add(with_header(other.len())) <= start
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

    fn any(_: BlockKind, _: Access, _: usize) -> bool {
        true
    }

    fn open(block: &Block, offset: u64, len: u64) -> Result<Block, &'static str> {
        Block::open(Arc::clone(&block.inner.segment), offset, len, any, None)
    }

    /// Acts as if a handle were sent to another process.
    fn send(block: &Block) {
        block.inner.segment.note_sent(block.inner.offset);
    }

    #[test]
    fn a_place_that_is_made_up_is_refused() {
        let block = Block::allocate(BlockKind::Value, 40).unwrap();
        let _next = Block::allocate(BlockKind::Value, 40).unwrap();
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
        // Another process may write another kind there. What this process has noted about the block
        // does not change.
        block.header().kind.store(BlockKind::Lock as u32, Ordering::Relaxed);
        assert!(matches!(open(&block, offset, len), Err("it overlaps another object")));
        block.header().kind.store(BlockKind::Value as u32, Ordering::Relaxed);
        block.header().access.store(Access::of::<u8>().0, Ordering::Relaxed);
        assert!(matches!(open(&block, offset, len), Err("it overlaps another object")));
        block.header().access.store(Access::BY_KIND.0, Ordering::Relaxed);
        let lock = Block::allocate(BlockKind::Lock, 8).unwrap();
        let under = Block::open(Arc::clone(&block.inner.segment), offset, len, any, Some(&lock));
        assert!(under.is_err(), "with another lock than here");
    }

    /// Runs a test of this file in a process of its own, because it needs the heap to itself.
    fn alone(name: &str) {
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args([&format!("heap::block::tests::{name}"), "--exact", "--ignored", "--nocapture"])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        let why = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success() && said.contains("1 passed"),
            "{}\n{said}{why}",
            output.status
        );
    }

    const KINDS: [BlockKind; 4] =
        [BlockKind::Value, BlockKind::RawValue, BlockKind::Array, BlockKind::RawArray];
    const LENS: [usize; 4] = [8, 40, 100, 1_000];

    /// What a process can do that received one object of a segment: write to the segment, and send
    /// places.
    struct Peer {
        random: u64,
    }

    impl Peer {
        /// Returns a number below `end`, by xorshift.
        fn below(&mut self, end: usize) -> usize {
            self.random ^= self.random << 13;
            self.random ^= self.random >> 7;
            self.random ^= self.random << 17;
            (self.random % end as u64) as usize
        }

        fn any<T: Copy>(&mut self, of: &[T]) -> T {
            of[self.below(of.len())]
        }

        /// Writes a header that looks like the header of an object.
        fn write_header(&mut self, segment: &Segment, offset: usize) {
            // SAFETY: within the mapping, aligned to `LINE`, and atomics.
            let header = unsafe { segment.at().add(offset).cast::<BlockHeader>().as_ref() };
            header.kind.store(self.any(&KINDS) as u32, Ordering::Relaxed);
            header.access.store(0, Ordering::Relaxed);
            header.len.store(self.any(&LENS) as u64, Ordering::Relaxed);
        }

        /// Returns an offset in the segment, usually one where an object is, was, or will be next.
        fn place(&mut self, segment: &Segment, near: &[usize]) -> usize {
            let anywhere = LINE + self.below(segment.len() / LINE - 2) * LINE;
            match near.is_empty() || self.below(4) == 0 {
                true => anywhere,
                false => {
                    (self.any(near) + self.below(3) * LINE).min(anywhere.max(segment.len() / 2))
                }
            }
        }
    }

    /// Asserts that any two handles are of the same object, or of memory that does not overlap.
    fn assert_apart(held: &[Block]) {
        let mut held: Vec<_> = held.iter().map(|block| &*block.inner).collect();
        held.sort_by_key(|inner| (inner.segment.inode(), inner.offset));
        for pair in held.windows(2) {
            let (one, other) = (pair[0], pair[1]);
            let same = (one.offset, one.len, one.kind) == (other.offset, other.len, other.kind);
            let before = one.segment.inode() != other.segment.inode()
                || one.offset + HEADER_BYTES + one.len <= other.offset;
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
            let first = Block::allocate(BlockKind::Value, 8).unwrap();
            let segment = Arc::clone(&first.inner.segment);
            let mut near = vec![first.inner.offset];
            let mut held = vec![first];
            for _ in 0..300 {
                match peer.below(6) {
                    0 | 1 => {
                        let block = Block::allocate(peer.any(&KINDS), peer.any(&LENS)).unwrap();
                        near.push(block.inner.offset);
                        let body = block.bytes(0, block.len());
                        // SAFETY: within the block, and nothing writes to it during the comparison.
                        let body =
                            unsafe { std::slice::from_raw_parts(body.as_ptr(), block.len()) };
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
                        peer.write_header(&segment, offset);
                    }
                    _ => {
                        let (offset, len) = (peer.place(&segment, &near), peer.any(&LENS));
                        held.extend(Block::open(
                            Arc::clone(&segment),
                            offset as u64,
                            len as u64,
                            any,
                            None,
                        ));
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
            let first = Block::allocate(BlockKind::Value, 8).unwrap();
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
                        received.extend(Block::open(
                            Arc::clone(&segment),
                            offset as u64,
                            40,
                            any,
                            None,
                        ));
                    }
                    received
                });
                let kept: Vec<_> =
                    makers.into_iter().flat_map(|maker| maker.join().unwrap()).collect();
                (kept, forges.join().unwrap())
            });
            kept.extend(received);
            assert_apart(&kept);
        }
    }

    #[test]
    fn a_block_that_lies_across_a_made_up_one_is_not_given_out() {
        let block = Block::allocate(BlockKind::Value, 40).unwrap();
        let segment = &block.inner.segment;
        let free = segment.len() - 64;
        segment.note_received(free, 64, || Ok(7)).unwrap();
        for _ in 0..2_000 {
            let other = Block::allocate(BlockKind::Value, 40).unwrap();
            send(&other);
            assert!(!Arc::ptr_eq(&other.inner.segment, segment) || other.inner.offset != free);
        }
    }

    #[test]
    fn an_object_that_looks_like_a_made_up_one_is_made_elsewhere() {
        let block = Block::allocate(BlockKind::Value, 40).unwrap();
        let segment = &block.inner.segment;
        // Made-up handles that look like the object that is allocated next. They are everywhere,
        // because other tests allocate objects, too.
        let tag = tag(BlockKind::RawArray, Access::BY_KIND, None);
        let made_up: Vec<_> = (LINE..segment.len() - LINE)
            .step_by(LINE)
            .filter(|offset| segment.note_received(*offset, with_header(48), || Ok(tag)).is_ok())
            .collect();
        for _ in 0..made_up.len() + 10 {
            let made = Block::allocate(BlockKind::RawArray, 48).unwrap();
            send(&made);
            let offset = made.inner.offset;
            assert!(
                !Arc::ptr_eq(&made.inner.segment, segment) || !made_up.contains(&offset),
                "{offset}"
            );
        }
    }

    #[test]
    fn memory_that_could_shrink_is_not_taken_for_sealed_because_it_is_mapped_already() {
        let file = || file::anonymous("x").unwrap();
        let named = Block::allocate_in(file(), BlockKind::Memory, 64).unwrap();
        let again = || Arc::new(named.descriptor().try_clone().unwrap());
        let by_name = |file| OwnFile::check(file).and_then(Segment::open_named);
        rustix::fs::fchmod(named.descriptor(), rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR)
            .unwrap();
        assert!(by_name(again()).is_ok());
        let error = Segment::open(again()).err().unwrap();
        assert!(error.to_string().contains("could shrink"), "{error}");
        let sealed = Block::allocate(BlockKind::Value, 40).unwrap();
        assert!(Segment::open(Arc::new(sealed.descriptor().try_clone().unwrap())).is_ok());
    }

    #[test]
    fn small_memory_in_a_file_stays_what_it_is_when_its_maker_has_no_handle_left() {
        let block =
            Block::allocate_in(file::anonymous("x").unwrap(), BlockKind::Memory, 64).unwrap();
        let file = block.descriptor().try_clone().unwrap();
        rustix::fs::fchmod(&file, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR).unwrap();
        drop(block);
        let file = OwnFile::check(Arc::new(file)).unwrap();
        assert!(Block::open_file(file, &[BlockKind::Memory], |len| len == 64).is_ok());
    }

    #[test]
    fn memory_of_another_version_is_refused_with_both_versions() {
        let block = Block::allocate(BlockKind::Value, 40).unwrap();
        // A copy of the file. It has the same content, but this process does not know it yet.
        let file = file::anonymous("x").unwrap();
        let segment = &block.inner.segment;
        // SAFETY: within the mapping. An object of another test may change meanwhile, but any bytes
        // will do here.
        let mut bytes = unsafe { std::slice::from_raw_parts(segment.at().as_ptr(), 4096) }.to_vec();
        // The version comes after the magic number.
        bytes[8..12].copy_from_slice(&77_u32.to_ne_bytes());
        file::write_at(&file, &bytes, 0).unwrap();
        let open = |file: OwnedFd| {
            rustix::fs::fchmod(&file, rustix::fs::Mode::RUSR).unwrap();
            OwnFile::check(Arc::new(file)).and_then(Segment::open_named).err().unwrap()
        };
        let error = open(file);
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert!(
            error.to_string().contains("another version of this library (layout 77."),
            "{error}"
        );
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
        let block = Block::allocate(BlockKind::Value, 40).unwrap();
        let again = Segment::open(Arc::new(block.descriptor().try_clone().unwrap())).unwrap();
        assert!(Arc::ptr_eq(&again, &block.inner.segment));
        let large = Block::allocate(BlockKind::Array, 1 << 20).unwrap();
        let file = Arc::new(large.descriptor().try_clone().unwrap());
        drop(large);
        // It is mapped again, because this process had no handle left.
        let segment = Segment::open(file).unwrap();
        assert!(segment.len() > 1 << 20);
    }
}
