//! Anonymous files that processes map whole, to read and to write.
//!
//! ```text
//!  0     Head: what this is, who uses it (`os/liveness.rs`)
//!  64    blocks (`block.rs`)
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
    file,
    fork::{self, Origin, PerProcess},
    liveness::{Liveness, OwnerCounter},
    room::has_room_for,
    socket::retry,
    sync::lock,
};

/// What blocks are aligned to: a cache line, so that two objects do not slow each other down.
pub(crate) const LINE: usize = 64;
const PAGE: usize = 4096;
/// No text begins like this, and no file of another program by chance: what has it may be removed when its owners are dead
/// (`shm/name.rs`).
const MAGIC: [u8; 8] = *b"\xb1exec\x1a\r\n";
/// Changes whenever anything that lies in a segment does: `Head`, the blocks of `block.rs`, and the words of every object that
/// can have a name. Programs of different builds meet in named memory.
const VERSION: u32 = 1;
/// What nobody should change without changing `VERSION`; two builds that differ here do not understand each other.
const LAYOUT: u32 = (size_of::<Head>() | super::block::HEAD << 8 | super::block::BYTES_START << 16) as u32;

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
    /// The blocks in it that this process has, by their offset. No two of them overlap, whatever others send: one could be
    /// seen as atomics, and the other as plain memory.
    blocks: Mutex<BTreeMap<usize, Noted>>,
    /// Whether nobody can make the file shorter.
    sealed: bool,
    liveness: Liveness,
    /// Last, so that it is dropped after what points into it.
    mapping: Mapping,
}

/// A block that this process has.
struct Noted {
    len: usize,
    /// Its kind, and how it is accessed.
    tag: u128,
    /// `Some` of a block that was made here and never sent: how many children had been forked by then. As long as none has
    /// been forked since, no other process has a handle of it. So a handle that is received is made up, and is refused; if it
    /// were taken, there would be two that are dropped one after the other, and the first would give the memory away.
    unsent: Option<u64>,
}

impl Noted {
    /// No other process has a handle of it.
    fn is_only_ours(&self) -> bool {
        self.unsent == Some(fork::children())
    }
}

/// A block that was received: whether it can be what its sender says.
pub(crate) const BEYOND: &str = "it is not within its memory";
const OVERLAPS: &str = "it overlaps another object";
const UNSENT: &str = "this process has never sent it";

/// Device and number.
pub(crate) type Inode = (u64, u64);

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
    pub(crate) fn create(name: &str, room: usize) -> io::Result<Arc<Self>> {
        let create = || {
            let descriptor = file::anonymous(name)?;
            let len = Self::fill(&descriptor, room)?;
            fcntl_add_seals(&descriptor, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
            Self::begin(descriptor, len, true)
        };
        create().asked("shared memory (memfd_create, fallocate, fcntl, fstat, mmap)")
    }

    /// As [`create`](Self::create), in a file that has no bytes yet, and that nothing keeps from being made shorter.
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
        if i64::try_from(len).is_err() || isize::try_from(len).is_err() || !has_room_for(len as u64) {
            return Err(too_large());
        }
        // All its memory now: want of memory is an error here, and nobody is killed by it later.
        file::allocate(descriptor, 0, len as u64)?;
        Ok(len)
    }

    fn begin(descriptor: OwnedFd, len: usize, sealed: bool) -> io::Result<Arc<Self>> {
        let segment = Self::map(Arc::new(descriptor), len, sealed)?;
        let head = segment.head();
        head.version.store(VERSION, Ordering::Relaxed);
        head.layout.store(LAYOUT, Ordering::Relaxed);
        head.magic.store(u64::from_ne_bytes(MAGIC), Ordering::Relaxed);
        lock(&table().segments).insert(segment.inode, Arc::downgrade(&segment));
        Ok(segment)
    }

    /// What another process has made; the same one as before, if it is here already.
    pub(crate) fn open(descriptor: Arc<OwnedFd>) -> io::Result<Arc<Self>> {
        let stat = fstat(&*descriptor)?;
        Self::open_any(descriptor, &stat, true)
    }

    /// As [`open`](Self::open), for a file that has a name: nothing keeps it from being made shorter by this user's programs.
    pub(crate) fn open_named(file: OwnFile) -> io::Result<Arc<Self>> {
        Self::open_any(file.descriptor, &file.stat, false)
    }

    fn open_any(descriptor: Arc<OwnedFd>, stat: &Stat, sealed: bool) -> io::Result<Arc<Self>> {
        let invalid = |text| io::Error::new(io::ErrorKind::InvalidData, text);
        let inode = (stat.st_dev, stat.st_ino);
        let could_shrink = || invalid("its memory could shrink");
        // It may be here by its name, which asks for no seals.
        let enough = |segment: Arc<Self>| match segment.sealed || !sealed {
            true => Ok(segment),
            false => Err(could_shrink()),
        };
        let known = lock(&table().segments).get(&inode).and_then(Weak::upgrade);
        if let Some(segment) = known {
            return enough(segment);
        }
        // Other files than memory have no seals, which is an error here.
        if sealed && !fcntl_get_seals(&*descriptor)?.contains(SealFlags::SHRINK) {
            return Err(could_shrink());
        }
        // Sealed: not less than this, for ever.
        let len = usize::try_from(stat.st_size).map_err(|_| invalid("a negative length"))?;
        if len < LINE || isize::try_from(len).is_err() {
            return Err(invalid("no memory of this library"));
        }
        let segment = Self::map(descriptor, len, sealed)?;
        let head = segment.head();
        if head.magic.load(Ordering::Relaxed) != u64::from_ne_bytes(MAGIC) {
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
        // SAFETY: within the mapping (`len` is a page at least, or checked by `open`) and aligned, since that begins a page.
        let users = unsafe { NonNull::from(&mapping.at.cast::<Head>().as_ref().users) };
        // SAFETY: the mapping is dropped after it.
        let liveness = unsafe { Liveness::new(Arc::clone(&descriptor), users)? };
        let blocks = Mutex::default();
        Ok(Arc::new(Segment { descriptor, inode, origin: Origin::here(), blocks, sealed, liveness, mapping }))
    }

    fn head(&self) -> &Head {
        // SAFETY: within the mapping, as in `map`; all atomics.
        unsafe { self.mapping.at.cast::<Head>().as_ref() }
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

    /// Whether this process is a fork of the one that mapped it; then nothing is allocated in it or freed.
    pub(crate) fn forked(&self) -> bool {
        self.origin.forked()
    }

    fn is_within(&self, offset: usize, len: usize) -> bool {
        offset >= LINE
            && offset.is_multiple_of(LINE)
            && offset.checked_add(len).is_some_and(|end| end <= self.len())
    }

    /// Notes a block that this process makes, and has it zeroed by `clear` before anybody can receive it. `false` if it is not
    /// within the file, or if anything is noted there: also a block that looks the same, for somebody may have made up a
    /// handle of what was to come next.
    pub(crate) fn note_new(&self, offset: usize, len: usize, tag: u128, clear: impl FnOnce()) -> bool {
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

    /// Notes a block that another process has sent, or refuses it. `tag` says what it is, and reads its head for that: not
    /// before it is certain that nothing else of this process is there, and while nothing comes there.
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

    /// From now on other processes may have the block.
    pub(crate) fn note_sent(&self, offset: usize) {
        // In a fork the table may be locked for ever, and what it has inherited is the parent's to note: `children`.
        if self.forked() {
            return;
        }
        if let Some(noted) = lock(&self.blocks).get_mut(&offset) {
            noted.unsent = None;
        }
    }

    /// The last handle of a block goes. If no other process can have one, the block is no more, `clear` makes it none for
    /// those who look at the memory, and its place may be used again: `true`.
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

/// Whether nothing that is noted overlaps these bytes; they are within the file.
fn is_free(blocks: &BTreeMap<usize, Noted>, offset: usize, len: usize) -> bool {
    let end = offset.saturating_add(len);
    blocks.range(..end).next_back().is_none_or(|(other, noted)| other.saturating_add(noted.len) <= offset)
}

/// A file that can be made shorter, which is a signal that ends whoever looks at what is not there any more: so it is one that
/// nobody can open for writing but this user and root, who can end this process anyway.
#[derive(Debug)]
pub(crate) struct OwnFile {
    descriptor: Arc<OwnedFd>,
    /// When it was looked at.
    stat: Stat,
}

impl OwnFile {
    /// Looks at what was opened, or received: a path says nothing about it.
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

    /// Whether its content says that this library has made it.
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
            // It may have been received again meanwhile.
            if segments.get(&self.inode).is_some_and(|other| other.strong_count() == 0) {
                segments.remove(&self.inode);
            }
        }
    }
}
