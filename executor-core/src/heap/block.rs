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
//!
//! `kind` says what a block holds, `current` is where small blocks come from, and `message` is how
//! a block travels.

// The arithmetic in this file decides which memory is accessed, so no sum may wrap unnoticed.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use std::{
    fmt, io,
    os::fd::OwnedFd,
    ptr::NonNull,
    sync::{
        Arc, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
};

use super::segment::{BEYOND, LINE, OwnFile, Segment};
use crate::os::{liveness::Liveness, memory::SharedLayout};

mod current;
#[cfg(any(all(test, not(any(executor_loom, executor_shuttle))), fuzzing))]
pub(crate) mod fuzzed;
mod kind;
mod message;
#[cfg(all(test, not(any(executor_loom, executor_shuttle))))]
mod tests;

use current::{SMALL_MAX, heap};
pub(crate) use kind::{Access, BlockKind};
pub(crate) use message::BlockPlace;

/// Where the bytes of a [`SharedMemory`](crate::SharedMemory) begin in their block: at a cache
/// line. This is part of a segment's layout, because programs of other builds read named memory.
pub(crate) const BYTES_START: usize = Block::aligned(0, 64);

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
