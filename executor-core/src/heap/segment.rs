//! Segments: anonymous files that processes map whole, for reading and writing.
//!
//! ```text
//!  0     SegmentHeader: what this is, who uses it (`os/liveness.rs`)
//!  64    blocks (`block.rs`)
//!  …     end: a whole number of pages, all allocated at creation; sealed: no shrinking, no growing
//! ```
//!
//! A process maps a file once, however many objects it has in it and however often it receives it.
//! A table finds the mapping again by the file's inode. The file is unmapped and closed when the
//! process drops its last handle, and is gone when the last process has done so.
//!
//! Other processes may write anything to the file at any moment. So the length is taken from the
//! kernel (the seals are checked when the file is received), nothing in the file is trusted without
//! a check, and references into the file point to atomics only.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    ptr::{self, NonNull},
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
};

use rustix::{
    fs::{FileType, Mode, SealFlags, Stat, fcntl_add_seals, fcntl_get_seals, fstat},
    io::pread,
    mm::{MapFlags, ProtFlags, mmap, munmap},
    process::geteuid,
};

use crate::os::{
    asked::Asked,
    available_memory::has_memory_for,
    file,
    fork::{self, Creator, PerProcess},
    liveness::{Liveness, OwnerCounter},
    socket::retry,
    std_or_model::lock,
};

/// Alignment of blocks: a cache line, so that two objects do not slow each other down.
pub(crate) const LINE: usize = 64;
const PAGE: usize = 4096;
/// First bytes of each segment. No text begins like this, nor by chance a file of another program.
/// A file that begins like this may be removed once its owners are dead (`shm/name.rs`).
const MAGIC: [u8; 8] = *b"\xb1exec\x1a\r\n";
/// Version of the layout. It must change whenever anything that lies in a segment changes:
/// `SegmentHeader`, the blocks of `block.rs`, or the words of any object that can have a name.
/// Programs of different builds share named memory.
const VERSION: u32 = 1;
/// Sizes that must not change without a change of `VERSION`. Two builds with different values here
/// cannot share memory.
const LAYOUT: u32 = (size_of::<SegmentHeader>()
    | super::block::HEADER_BYTES << 8
    | super::block::BYTES_START << 16) as u32;

/// The header at the beginning of each file.
#[repr(C, align(64))]
struct SegmentHeader {
    magic: AtomicU64,
    version: AtomicU32,
    layout: AtomicU32,
    users: OwnerCounter,
}

const _: () = assert!(size_of::<SegmentHeader>() == LINE);

/// A segment that this process has mapped. See the module's documentation.
pub(crate) struct Segment {
    descriptor: Arc<OwnedFd>,
    inode: Inode,
    creator: Creator,
    /// The blocks in the segment that this process has, by their offset. No two of them overlap,
    /// whatever other processes send. Otherwise the same bytes could be accessed as atomics through
    /// one block and as plain memory through the other.
    blocks: Mutex<BTreeMap<usize, Noted>>,
    /// Whether no process can make the file shorter.
    sealed: bool,
    liveness: Liveness,
    /// The last field, so that it is dropped after the fields that point into it.
    mapping: Mapping,
}

/// What this process has noted about a block.
struct Noted {
    len: usize,
    /// The block's kind, and how it is accessed.
    tag: u128,
    /// `Some` for a block that was created here and never sent: how many children had been forked
    /// at its creation. As long as no child has been forked since, no other process has a handle of
    /// the block. A handle that is received nevertheless was made up, and is refused. If it were
    /// accepted, there would be two independent handles, and dropping the first would free the
    /// memory under the second.
    unsent: Option<u64>,
}

impl Noted {
    /// Whether no other process has a handle of the block.
    fn is_only_ours(&self) -> bool {
        self.unsent == Some(fork::children())
    }
}

/// Reason for refusing a received block that is not within its segment.
pub(crate) const BEYOND: &str = "it is not within its memory";
const OVERLAPS: &str = "it overlaps another object";
const UNSENT: &str = "this process has never sent it";

/// Device and inode number of a file.
pub(crate) type Inode = (u64, u64);

struct Mapping {
    at: NonNull<u8>,
    len: usize,
}

// SAFETY: a mapping belongs to the process, not to a thread. Accesses to its content are argued
// where they happen.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(descriptor: &OwnedFd, len: usize) -> io::Result<Self> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: this creates a new mapping at an address that the kernel chooses.
        let at =
            unsafe { mmap(ptr::null_mut(), len, protection, MapFlags::SHARED, descriptor, 0)? };
        let at =
            NonNull::new(at.cast()).ok_or_else(|| io::Error::other("mapped at address zero"))?;
        Ok(Mapping { at, len })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: `new` mapped it with this length. Whoever borrows from it holds its `Segment`.
        let _ = unsafe { munmap(self.at.as_ptr().cast(), self.len) };
    }
}

/// The segments of this process. A forked child begins with none: a lock of an inherited segment
/// may be held forever, by a thread that does not exist in the child.
#[derive(Default)]
struct Table {
    segments: Mutex<HashMap<Inode, Weak<Segment>>>,
}

fn table() -> &'static Table {
    static TABLE: PerProcess<Table> = PerProcess::new(Table::default);
    TABLE.get()
}

impl Segment {
    /// Creates a zeroed file that has room for `room` bytes of blocks.
    pub(crate) fn create(name: &str, room: usize) -> io::Result<Arc<Self>> {
        let create = || {
            let descriptor = file::anonymous(name)?;
            let len = Self::fill(&descriptor, room)?;
            fcntl_add_seals(&descriptor, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
            Self::begin(descriptor, len, true)
        };
        create().asked("shared memory (memfd_create, fallocate, fcntl, fstat, mmap)")
    }

    /// Creates a segment as [`create`](Self::create) does, in a file that has no bytes yet. The
    /// file is not sealed, so it can still be made shorter.
    pub(crate) fn create_in(descriptor: OwnedFd, room: usize) -> io::Result<Arc<Self>> {
        let len = Self::fill(&descriptor, room)?;
        Self::begin(descriptor, len, false)
    }

    fn fill(descriptor: &OwnedFd, room: usize) -> io::Result<usize> {
        let too_large = || io::Error::from(io::ErrorKind::OutOfMemory);
        let len = room
            .checked_add(LINE)
            .and_then(|len| len.checked_next_multiple_of(PAGE))
            .ok_or_else(too_large)?;
        if i64::try_from(len).is_err()
            || isize::try_from(len).is_err()
            || !has_memory_for(len as u64)
        {
            return Err(too_large());
        }
        // Allocate all memory now, so that a lack of memory is an error here. Otherwise a later
        // access would be killed by a signal.
        file::allocate(descriptor, 0, len as u64)?;
        Ok(len)
    }

    fn begin(descriptor: OwnedFd, len: usize, sealed: bool) -> io::Result<Arc<Self>> {
        let segment = Self::map(Arc::new(descriptor), len, sealed)?;
        let header = segment.header();
        header.version.store(VERSION, Ordering::Relaxed);
        header.layout.store(LAYOUT, Ordering::Relaxed);
        header.magic.store(u64::from_ne_bytes(MAGIC), Ordering::Relaxed);
        lock(&table().segments).insert(segment.inode, Arc::downgrade(&segment));
        Ok(segment)
    }

    /// Opens a segment that another process has created. Returns the existing `Segment` if this
    /// process has mapped the file already.
    pub(crate) fn open(descriptor: Arc<OwnedFd>) -> io::Result<Arc<Self>> {
        let stat = fstat(&*descriptor)?;
        Self::open_any(descriptor, &stat, true)
    }

    /// Opens a segment as [`open`](Self::open) does, for a file that has a name. Other programs of
    /// this user can make such a file shorter.
    pub(crate) fn open_named(file: OwnFile) -> io::Result<Arc<Self>> {
        Self::open_any(file.descriptor, &file.stat, false)
    }

    fn open_any(descriptor: Arc<OwnedFd>, stat: &Stat, sealed: bool) -> io::Result<Arc<Self>> {
        let invalid = |text| io::Error::new(io::ErrorKind::InvalidData, text);
        let inode = (stat.st_dev, stat.st_ino);
        let could_shrink = || invalid("its memory could shrink");
        // The file may be mapped already through its name, where no seals were required.
        let enough = |segment: Arc<Self>| match segment.sealed || !sealed {
            true => Ok(segment),
            false => Err(could_shrink()),
        };
        let known = lock(&table().segments).get(&inode).and_then(Weak::upgrade);
        if let Some(segment) = known {
            return enough(segment);
        }
        // Files that are not in memory have no seals, so the call fails for them.
        if sealed && !fcntl_get_seals(&*descriptor)?.contains(SealFlags::SHRINK) {
            return Err(could_shrink());
        }
        // The file is sealed, so it can never become shorter than this. For a named file, see
        // `OwnFile`.
        let len = usize::try_from(stat.st_size).map_err(|_| invalid("a negative length"))?;
        if len < LINE || isize::try_from(len).is_err() {
            return Err(invalid("no memory of this library"));
        }
        let segment = Self::map(descriptor, len, sealed)?;
        let header = segment.header();
        if header.magic.load(Ordering::Relaxed) != u64::from_ne_bytes(MAGIC) {
            return Err(invalid("no memory of this library"));
        }
        let (version, layout) =
            (header.version.load(Ordering::Relaxed), header.layout.load(Ordering::Relaxed));
        if (version, layout) != (VERSION, LAYOUT) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!(
                    "it was made by another version of this library (layout {version}.{layout:x}, this program's is \
                     {VERSION}.{LAYOUT:x}): build both programs with the same one"
                ),
            ));
        }
        // Another thread may have mapped the file meanwhile. Then this thread's segment is
        // superfluous. It is dropped after the table is unlocked, because `drop` locks the table
        // again.
        let mut segments = lock(&table().segments);
        if let Some(other) = segments.get(&inode).and_then(Weak::upgrade) {
            drop(segments);
            return enough(other);
        }
        segments.insert(inode, Arc::downgrade(&segment));
        drop(segments);
        Ok(segment)
    }

    fn map(descriptor: Arc<OwnedFd>, len: usize, sealed: bool) -> io::Result<Arc<Self>> {
        let stat = fstat(&*descriptor)?;
        let inode = (stat.st_dev as u64, stat.st_ino as u64);
        let mapping = Mapping::new(&descriptor, len)?;
        // SAFETY: the header is within the mapping (`len` is at least a page, or was checked by
        // `open_any`), and aligned, because the mapping begins at a page.
        let users = unsafe { NonNull::from(&mapping.at.cast::<SegmentHeader>().as_ref().users) };
        // SAFETY: the mapping is dropped after `liveness`.
        let liveness = unsafe { Liveness::new(Arc::clone(&descriptor), users)? };
        let blocks = Mutex::default();
        Ok(Arc::new(Segment {
            descriptor,
            inode,
            creator: Creator::here(),
            blocks,
            sealed,
            liveness,
            mapping,
        }))
    }

    fn header(&self) -> &SegmentHeader {
        // SAFETY: within the mapping, as in `map`. All fields are atomics.
        unsafe { self.mapping.at.cast::<SegmentHeader>().as_ref() }
    }

    pub(crate) fn at(&self) -> NonNull<u8> {
        self.mapping.at
    }

    pub(crate) fn len(&self) -> usize {
        self.mapping.len
    }

    pub(crate) fn descriptor(&self) -> &Arc<OwnedFd> {
        &self.descriptor
    }

    pub(crate) fn inode(&self) -> Inode {
        self.inode
    }

    pub(crate) fn liveness(&self) -> &Liveness {
        &self.liveness
    }

    /// Whether this process is a fork of the process that mapped the segment. A fork allocates and
    /// frees nothing in it.
    pub(crate) fn forked(&self) -> bool {
        self.creator.is_elsewhere()
    }

    fn is_within(&self, offset: usize, len: usize) -> bool {
        offset >= LINE
            && offset.is_multiple_of(LINE)
            && offset.checked_add(len).is_some_and(|end| end <= self.len())
    }

    /// Notes a block that this process creates. Runs `clear`, which zeroes the block, before any
    /// handle of it can be received.
    ///
    /// Returns `false` if the block is not within the file, or if any noted block overlaps it. This
    /// includes a block that looks the same, because a peer may have made up a handle of the block
    /// that was to be allocated next.
    pub(crate) fn note_new(
        &self,
        offset: usize,
        len: usize,
        tag: u128,
        clear: impl FnOnce(),
    ) -> bool {
        if !self.is_within(offset, len) {
            return false;
        }
        let mut blocks = lock(&self.blocks);
        let free = is_free(&blocks, offset, len);
        if free {
            clear();
            blocks.insert(offset, Noted { len, tag, unsent: Some(fork::children()) });
        }
        free
    }

    /// Notes a block that another process has sent, or refuses it.
    ///
    /// `tag` reads the block's header and returns what it says. It is called only when nothing else
    /// of this process is at that place, and nothing can be placed there during the call.
    pub(crate) fn note_received(
        &self,
        offset: usize,
        len: usize,
        mut tag: impl FnMut() -> Result<u128, &'static str>,
    ) -> Result<(), &'static str> {
        if !self.is_within(offset, len) {
            return Err(BEYOND);
        }
        let mut blocks = lock(&self.blocks);
        match blocks.get(&offset) {
            // A handle of a known block may be received any number of times, if it describes the
            // same block.
            Some(noted) if noted.is_only_ours() => Err(UNSENT),
            Some(noted) if noted.len == len && noted.tag == tag()? => Ok(()),
            Some(_) => Err(OVERLAPS),
            None if is_free(&blocks, offset, len) => {
                blocks.insert(offset, Noted { len, tag: tag()?, unsent: None });
                Ok(())
            }
            None => Err(OVERLAPS),
        }
    }

    /// Notes that other processes may have the block from now on.
    pub(crate) fn note_sent(&self, offset: usize) {
        // In a fork the lock may be held forever. There is nothing to note either: `is_only_ours`
        // compares the number of children, so the parent already knows that its fork has the block.
        if self.forked() {
            return;
        }
        if let Some(noted) = lock(&self.blocks).get_mut(&offset) {
            noted.unsent = None;
        }
    }

    /// Forgets a block whose last handle in this process is being dropped, if no other process can
    /// have a handle of it.
    ///
    /// In that case it runs `clear`, which invalidates the block's header in memory, and returns
    /// `true`. The block's place may then be reused.
    pub(crate) fn forget_if_only_ours(&self, offset: usize, clear: impl FnOnce()) -> bool {
        if self.forked() {
            return false;
        }
        let mut blocks = lock(&self.blocks);
        let only_ours = blocks.get(&offset).is_some_and(Noted::is_only_ours);
        if only_ours {
            clear();
            blocks.remove(&offset);
        }
        only_ours
    }
}

/// Whether these bytes overlap no noted block. The bytes are within the file.
fn is_free(blocks: &BTreeMap<usize, Noted>, offset: usize, len: usize) -> bool {
    let end = offset.saturating_add(len);
    // Noted blocks do not overlap. So of those that begin before `end`, the last one also ends
    // last.
    blocks
        .range(..end)
        .next_back()
        .is_none_or(|(other, noted)| other.saturating_add(noted.len) <= offset)
}

/// A file that only this user and root can open for writing.
///
/// Such a file can be made shorter, and accessing memory beyond its new end raises a signal that
/// kills the process. Only this user and root can do that, and they could kill this process anyway.
#[derive(Debug)]
pub(crate) struct OwnFile {
    descriptor: Arc<OwnedFd>,
    /// The file's metadata at the time of the check.
    stat: Stat,
}

impl OwnFile {
    /// Checks a file that was opened or received. It looks at the open file, because a path may
    /// name another file by now.
    pub(crate) fn check(descriptor: Arc<OwnedFd>) -> io::Result<Self> {
        let refused = |why| Err(io::Error::new(io::ErrorKind::InvalidData, why));
        let stat = fstat(&*descriptor)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return refused("no memory of this library: it is no file");
        }
        let others_write = Mode::from_raw_mode(stat.st_mode).intersects(Mode::WGRP | Mode::WOTH);
        if others_write || stat.st_uid != 0 && stat.st_uid != geteuid().as_raw() {
            return refused("another user could make it shorter");
        }
        Ok(OwnFile { descriptor, stat })
    }

    /// Whether the file's first bytes say that this library created it.
    pub(crate) fn has_magic(&self) -> bool {
        let mut begin = [0; MAGIC.len()];
        let read = retry(|| pread(&*self.descriptor, &mut begin, 0));
        read == Ok(begin.len()) && begin == MAGIC
    }

    pub(crate) fn stat(&self) -> &Stat {
        &self.stat
    }
}

impl AsFd for OwnFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        if !self.forked() {
            let mut segments = lock(&table().segments);
            // Another thread may have received the segment again meanwhile.
            if segments.get(&self.inode).is_some_and(|other| other.strong_count() == 0) {
                segments.remove(&self.inode);
            }
        }
    }
}
