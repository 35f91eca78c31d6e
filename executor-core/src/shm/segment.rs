//! Anonymous files that processes map whole, to read and to write.
//!
//! ```text
//!  0     Head: what this is, who uses it (`os/liveness.rs`)
//!  64    blocks (`heap.rs`)
//!  …     end: a whole number of pages, all of them there from the beginning, sealed: no shrinking, no growing
//! ```
//!
//! A process maps a file once, however many objects in it and however often it receives it: a table finds it again by its
//! inode. The file is unmapped and closed with the last handle in the process, and gone with the last process.
//!
//! Others may write whatever they like to it, at any moment. So its length is the kernel's word (seals are checked
//! when it is received), nothing in it is believed without a check, and what is looked at through references consists of
//! atomics.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    os::fd::OwnedFd,
    ptr::{self, NonNull},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
};

use rustix::{
    fs::{SealFlags, fcntl_add_seals, fcntl_get_seals, fstat},
    mm::{MapFlags, ProtFlags, mmap, munmap},
};

use crate::os::{
    file,
    fork::{Origin, PerProcess},
    liveness::{Liveness, OwnerCounter},
    room::has_room_for,
};

/// What blocks are aligned to: a cache line, so that two objects do not slow each other down.
pub(super) const LINE: usize = 64;
const PAGE: usize = 4096;
const MAGIC: u64 = u64::from_le_bytes(*b"executor");
/// Changes whenever anything that lies in a segment does: `Head`, the blocks of `heap.rs`, and the words of every object that
/// can have a name. Programs of different builds meet in named memory.
const VERSION: u32 = 1;
/// What nobody should change without changing `VERSION`; two builds that differ here do not understand each other.
const LAYOUT: u32 =
    (size_of::<Head>() | super::heap::HEAD << 8 | super::memory::SharedMemory::START << 16) as u32;

/// At the beginning of each file.
#[repr(C, align(64))]
struct Head {
    magic: AtomicU64,
    version: AtomicU32,
    layout: AtomicU32,
    users: OwnerCounter,
}

const _: () = assert!(size_of::<Head>() == LINE);

/// See the module's opening.
pub(crate) struct Segment {
    descriptor: Arc<OwnedFd>,
    inode: Inode,
    origin: Origin,
    /// What this process has in it: offset, length and what it is. No two of them overlap, whatever others send: one could be
    /// seen as atomics, and the other as plain memory.
    blocks: Mutex<BTreeMap<usize, (usize, u128)>>,
    liveness: Liveness,
    /// Last, so that it is dropped after what points into it.
    mapping: Mapping,
}

/// Device and number.
pub(super) type Inode = (u64, u64);

struct Mapping {
    at: NonNull<u8>,
    len: usize,
}

// SAFETY: a mapping belongs to the process, not to a thread; what is done with its content is said where it is done.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(descriptor: &OwnedFd, len: usize) -> io::Result<Self> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a fresh mapping where the kernel chooses.
        let at = unsafe { mmap(ptr::null_mut(), len, protection, MapFlags::SHARED, descriptor, 0)? };
        let at = NonNull::new(at.cast()).ok_or_else(|| io::Error::other("mapped at address zero"))?;
        Ok(Mapping { at, len })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this length; whoever borrows from it has its `Segment`.
        let _ = unsafe { munmap(self.at.as_ptr().cast(), self.len) };
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The segments of this process. A fork begins with none: of those that it has inherited, a lock may be held for ever.
#[derive(Default)]
struct Table {
    segments: Mutex<HashMap<Inode, Weak<Segment>>>,
}

fn table() -> &'static Table {
    static TABLE: PerProcess<Table> = PerProcess::new(Table::default);
    TABLE.get()
}

impl Segment {
    /// A new file with room for blocks of so many bytes together, zeroed.
    pub(super) fn create(name: &str, room: usize) -> io::Result<Arc<Self>> {
        let descriptor = file::anonymous(name)?;
        let len = Self::fill(&descriptor, room)?;
        fcntl_add_seals(&descriptor, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        Self::begin(descriptor, len)
    }

    /// As [`create`](Self::create), in a file that has no bytes yet, and that nothing keeps from being made shorter.
    pub(super) fn create_in(descriptor: OwnedFd, room: usize) -> io::Result<Arc<Self>> {
        let len = Self::fill(&descriptor, room)?;
        Self::begin(descriptor, len)
    }

    fn fill(descriptor: &OwnedFd, room: usize) -> io::Result<usize> {
        let too_large = || io::Error::from(io::ErrorKind::OutOfMemory);
        let len = room
            .checked_add(LINE)
            .and_then(|len| len.checked_next_multiple_of(PAGE))
            .ok_or_else(too_large)?;
        if i64::try_from(len).is_err() || isize::try_from(len).is_err() || !has_room_for(len as u64) {
            return Err(too_large());
        }
        // All its memory now: want of memory is an error here, and nobody is killed by it later.
        file::allocate(descriptor, 0, len as u64)?;
        Ok(len)
    }

    fn begin(descriptor: OwnedFd, len: usize) -> io::Result<Arc<Self>> {
        let segment = Self::map(Arc::new(descriptor), len)?;
        let head = segment.head();
        head.version.store(VERSION, Ordering::Relaxed);
        head.layout.store(LAYOUT, Ordering::Relaxed);
        head.magic.store(MAGIC, Ordering::Relaxed);
        lock(&table().segments).insert(segment.inode, Arc::downgrade(&segment));
        Ok(segment)
    }

    /// What another process has made; the same one as before, if it is here already.
    pub(super) fn open(descriptor: Arc<OwnedFd>) -> io::Result<Arc<Self>> {
        Self::open_any(descriptor, true)
    }

    /// As [`open`](Self::open), for a file that has a name: nothing keeps it from being made shorter.
    pub(super) fn open_named(descriptor: Arc<OwnedFd>) -> io::Result<Arc<Self>> {
        Self::open_any(descriptor, false)
    }

    fn open_any(descriptor: Arc<OwnedFd>, sealed: bool) -> io::Result<Arc<Self>> {
        let invalid = |text| io::Error::new(io::ErrorKind::InvalidData, text);
        let stat = fstat(&*descriptor)?;
        let inode = (stat.st_dev as u64, stat.st_ino as u64);
        let known = || lock(&table().segments).get(&inode).and_then(Weak::upgrade);
        if let Some(segment) = known() {
            return Ok(segment);
        }
        // Other files than memory have no seals, which is an error here.
        if sealed && !fcntl_get_seals(&*descriptor)?.contains(SealFlags::SHRINK) {
            return Err(invalid("its memory could shrink"));
        }
        // Sealed: not less than this, for ever.
        let len = usize::try_from(stat.st_size).map_err(|_| invalid("a negative length"))?;
        if len < LINE || isize::try_from(len).is_err() {
            return Err(invalid("no memory of this library"));
        }
        let segment = Self::map(descriptor, len)?;
        let head = segment.head();
        if head.magic.load(Ordering::Relaxed) != MAGIC {
            return Err(invalid("no memory of this library"));
        }
        let (version, layout) = (head.version.load(Ordering::Relaxed), head.layout.load(Ordering::Relaxed));
        if (version, layout) != (VERSION, LAYOUT) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!(
                    "it was made by another version of this library (layout {version}.{layout:x}, this program's is \
                     {VERSION}.{LAYOUT:x}): build both programs with the same one"
                ),
            ));
        }
        // Another thread may have been quicker. The one that is too much is dropped after the table is free.
        let mut segments = lock(&table().segments);
        if let Some(other) = segments.get(&inode).and_then(Weak::upgrade) {
            drop(segments);
            return Ok(other);
        }
        segments.insert(inode, Arc::downgrade(&segment));
        drop(segments);
        Ok(segment)
    }

    fn map(descriptor: Arc<OwnedFd>, len: usize) -> io::Result<Arc<Self>> {
        let stat = fstat(&*descriptor)?;
        let inode = (stat.st_dev as u64, stat.st_ino as u64);
        let mapping = Mapping::new(&descriptor, len)?;
        // SAFETY: within the mapping (`len` is a page at least, or checked by `open`) and aligned, since that begins a page.
        let users = unsafe { NonNull::from(&mapping.at.cast::<Head>().as_ref().users) };
        // SAFETY: the mapping is dropped after it.
        let liveness = unsafe { Liveness::new(Arc::clone(&descriptor), users)? };
        let blocks = Mutex::default();
        Ok(Arc::new(Segment { descriptor, inode, origin: Origin::here(), blocks, liveness, mapping }))
    }

    fn head(&self) -> &Head {
        // SAFETY: within the mapping, as in `map`; all atomics.
        unsafe { self.mapping.at.cast::<Head>().as_ref() }
    }

    pub(super) fn at(&self) -> NonNull<u8> {
        self.mapping.at
    }

    pub(super) fn len(&self) -> usize {
        self.mapping.len
    }

    pub(super) fn descriptor(&self) -> &Arc<OwnedFd> {
        &self.descriptor
    }

    pub(super) fn inode(&self) -> Inode {
        self.inode
    }

    pub(super) fn liveness(&self) -> &Liveness {
        &self.liveness
    }

    /// Whether this process is a fork of the one that mapped it; then nothing is allocated in it or freed.
    pub(super) fn forked(&self) -> bool {
        self.origin.forked()
    }

    /// Notes that this process has such a block; `false` if it is not within the file, or overlaps another one.
    pub(super) fn note(&self, offset: usize, len: usize, tag: u128) -> bool {
        let within = offset >= LINE
            && offset.is_multiple_of(LINE)
            && offset.checked_add(len).is_some_and(|end| end <= self.len());
        if !within {
            return false;
        }
        let mut blocks = lock(&self.blocks);
        if blocks.get(&offset) == Some(&(len, tag)) {
            return true;
        }
        let free = blocks
            .range(..offset + len)
            .next_back()
            .is_none_or(|(other, (other_len, _))| other + other_len <= offset);
        if free {
            blocks.insert(offset, (len, tag));
        }
        free
    }

    /// The block is no more.
    pub(super) fn forget(&self, offset: usize) {
        lock(&self.blocks).remove(&offset);
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        if !self.forked() {
            let mut segments = lock(&table().segments);
            // It may have been received again meanwhile.
            if segments.get(&self.inode).is_some_and(|other| other.strong_count() == 0) {
                segments.remove(&self.inode);
            }
        }
    }
}
