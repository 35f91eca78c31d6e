//! Bytes that processes share, with or without a name.

use std::{
    fmt, io,
    os::fd::AsFd,
    ptr::NonNull,
    sync::{Arc, Mutex, PoisonError},
};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::name::{self, Name};
use crate::heap::{
    block::{BYTES_START, Block, BlockKind, BlockPlace},
    words,
};
use crate::wire::attachment;

/// A block of bytes that processes share.
///
/// By default it has no name: it can be sent as an argument or a result of a task, and is freed
/// with the last handle. A block with a name can also be found by that name. The memory is sent
/// along with its name.
///
/// ```
/// use executor::{SharedMemory, prelude::*};
///
/// #[task]
/// fn fill(memory: SharedMemory, byte: u8) {
///     memory.write(0, &vec![byte; memory.len()]);
/// }
///
/// #[executor::main]
/// fn main() -> Result<(), Box<dyn std::error::Error>> {
///     let pool = ProcessPoolExecutor::builder().max_workers(1).build()?;
///     let memory = SharedMemory::create(1000)?;
///     pool.submit(fill::task(memory.clone(), 7)).result()?;
///     assert_eq!(memory.read_to_vec()[..1000], [7; 1000]);
///     Ok(())
/// }
/// ```
///
/// # Names
///
/// A name is a file in a folder in `/dev/shm` that belongs to the user of the process. Each user
/// has separate names, and no other user can take, open or delay them.
///
/// A process that [creates](Self::create_named) a name owns it. One that [attaches](Self::attach)
/// to it may [own](Self::own) it, too. A name is removed by [`unlink`](Self::unlink), or when its
/// last owner has no handle any more. If the last owner was killed, the name is free for the next
/// process that uses it, because the kernel knows whether an owner is alive. Until then the name
/// takes memory. A process that creates a name checks some others and removes those of dead owners.
/// [`sweep`](Self::sweep) checks all of them. [Persistent](Self::persistent) names stay.
///
/// The memory itself exists as long as any process has it. A handle that is sent arrives even if
/// its name is gone by then. The receiver does not own the name. If the name must stay, let the
/// receiver [own](Self::own) it before you drop your handle.
///
/// Any process of the same user can open a name, and could shorten its file. A process that then
/// accesses the missing part is killed. Memory without a name cannot be shortened. Memory that
/// another user (except root) could shorten is refused, both under a name and as a handle that
/// arrives.
///
/// # Access
///
/// [`read`](Self::read) and [`write`](Self::write) copy. Others may write at the same time, so a
/// copy may be a mixture of old and new, in pieces of eight bytes. For references, use
/// [`as_ptr`](Self::as_ptr) or an [`Array`](crate::Array).
#[derive(Clone)]
pub struct SharedMemory {
    block: Block,
    len: usize,
    named: Option<Arc<Named>>,
}

/// A name, shared by all clones of a handle.
#[derive(Debug)]
struct Named {
    name: Mutex<Name>,
}

impl Named {
    fn with<R>(&self, act: impl FnOnce(&mut Name) -> R) -> R {
        act(&mut self.name.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        let name = self.name.get_mut().unwrap_or_else(PoisonError::into_inner);
        name.leave();
    }
}

const KINDS: &[BlockKind] = &[BlockKind::Memory];

/// Returns the length of a block for `size` bytes, which are rounded up to a multiple of 64.
pub(super) fn whole(size: usize) -> io::Result<usize> {
    let invalid = || io::Error::new(io::ErrorKind::InvalidInput, "no bytes, or too many");
    let size = size.checked_next_multiple_of(64).filter(|size| *size > 0).ok_or_else(invalid)?;
    size.checked_add(BYTES_START).ok_or_else(invalid)
}

fn fits(len: usize) -> bool {
    len > BYTES_START && (len - BYTES_START).is_multiple_of(64)
}

impl SharedMemory {
    /// Creates memory of at least `size` bytes, all zero, without a name.
    ///
    /// # Errors
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) if `size` is 0. The system's error if no
    /// descriptor, no address space or no memory is left.
    pub fn create(size: usize) -> io::Result<Self> {
        Ok(Self::with(Block::allocate(BlockKind::Memory, whole(size)?)?, None))
    }

    /// Creates memory of at least `size` bytes, all zero, with a name that this handle owns.
    ///
    /// # Errors
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) if `size` is 0, or if the name is empty, is
    /// too long, or contains a slash or a NUL. [`AlreadyExists`](io::ErrorKind::AlreadyExists) if
    /// the name is in use. Otherwise the system's error.
    pub fn create_named(name: &str, size: usize) -> io::Result<Self> {
        Name::check(name)?;
        let len = whole(size)?;
        let block = Name::fill(name, |file| Block::allocate_in(file, BlockKind::Memory, len))?;
        let name = Name::link(name, block.descriptor().as_fd())?;
        Ok(Self::with(block, Some(name)))
    }

    /// Attaches to the memory with that name, in its full size.
    ///
    /// # Errors
    /// [`NotFound`](io::ErrorKind::NotFound), also if all owners of the name are dead.
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) for the names that
    /// [`create_named`](Self::create_named) refuses. [`InvalidData`](io::ErrorKind::InvalidData) if
    /// the name belongs to something else, or to another user. Otherwise the system's error.
    pub fn attach(name: &str) -> io::Result<Self> {
        Self::attach_kind(name, KINDS)
    }

    pub(super) fn attach_kind(name: &str, kinds: &[BlockKind]) -> io::Result<Self> {
        let (name, file) = Name::open(name)?;
        let block = Block::open_file(file, kinds, fits)?;
        Ok(Self::with(block, Some(name)))
    }

    pub(super) fn with(block: Block, name: Option<Name>) -> Self {
        let named = name.map(|name| Arc::new(Named { name: Mutex::new(name) }));
        SharedMemory { len: block.len() - BYTES_START, block, named }
    }

    pub(super) fn block(&self) -> &Block {
        &self.block
    }

    /// Returns the name, if there is one.
    pub fn name(&self) -> Option<String> {
        self.named.as_ref().map(|named| named.with(|name| name.as_str().to_owned()))
    }

    /// Returns the number of bytes, which is at least the requested size.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Always returns `false`: there is no empty memory.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Makes this handle an owner of the name, too. The name stays until all its owners are gone.
    /// Does nothing if there is no name.
    ///
    /// # Errors
    /// [`NotFound`](io::ErrorKind::NotFound) if the name is gone, or if all its owners have ended
    /// by now. The system's error if no descriptor is left.
    pub fn own(&self) -> io::Result<()> {
        match &self.named {
            Some(named) => named.with(|name| name.own(self.block.descriptor().as_fd())),
            None => Ok(()),
        }
    }

    /// Lets the name stay after all its owners are gone, until somebody [unlinks](Self::unlink) it.
    /// Does nothing if there is no name.
    ///
    /// # Errors
    /// As for [`own`](Self::own).
    pub fn persistent(self) -> io::Result<Self> {
        if let Some(named) = &self.named {
            named.with(|name| name.persist(self.block.descriptor().as_fd()))?;
        }
        Ok(self)
    }

    /// Removes the name. The memory stays for those that have it.
    ///
    /// # Errors
    /// [`NotFound`](io::ErrorKind::NotFound) if there is no name, or no longer one. Otherwise the
    /// system's error.
    pub fn unlink(&self) -> io::Result<()> {
        let named = self.named.as_ref().ok_or(io::ErrorKind::NotFound)?;
        named.with(|name| name.unlink(self.block.descriptor().as_fd()))
    }

    /// Removes those of this user's names whose owners are all dead. Returns how many were removed.
    /// It checks each name.
    pub fn sweep() -> usize {
        name::sweep()
    }

    #[track_caller]
    fn range(&self, at: usize, len: usize) {
        assert!(at <= self.len && len <= self.len - at, "{len} bytes at {at} of {}", self.len);
    }

    fn at(&self) -> NonNull<u8> {
        self.block.bytes(BYTES_START, self.len)
    }

    /// Copies bytes out of the memory, beginning at `at`.
    ///
    /// # Panics
    /// If the memory has fewer bytes than that.
    pub fn read(&self, at: usize, bytes: &mut [u8]) {
        self.range(at, bytes.len());
        // SAFETY: aligned to a cache line, a whole number of words, and valid as long as `self`.
        // The library makes no references to these bytes. The range was checked.
        unsafe { words::load_bytes(self.at(), at, bytes) }
    }

    /// Copies bytes into the memory, beginning at `at`.
    ///
    /// # Panics
    /// If they do not fit.
    pub fn write(&self, at: usize, bytes: &[u8]) {
        self.range(at, bytes.len());
        // SAFETY: as in `read`.
        unsafe { words::store_bytes(self.at(), at, bytes) }
    }

    /// Returns a copy of all bytes.
    pub fn read_to_vec(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.len];
        self.read(0, &mut bytes);
        bytes
    }

    /// Returns the address of the bytes in this process, aligned to 64. Others may write to them at
    /// any moment. Callers that make references to them must prevent that.
    pub fn as_ptr(&self) -> *mut u8 {
        self.at().as_ptr()
    }
}

impl PartialEq for SharedMemory {
    /// Whether both are handles of the same memory.
    fn eq(&self, other: &Self) -> bool {
        self.block == other.block
    }
}

impl Eq for SharedMemory {}

impl fmt::Debug for SharedMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => write!(f, "SharedMemory({name:?}, {} bytes)", self.len),
            None => write!(f, "SharedMemory({} bytes)", self.len),
        }
    }
}

/// The serialised form of a handle.
#[derive(Serialize, Deserialize)]
enum Sent {
    Place(BlockPlace),
    /// Written by a serialiser other than a task's. The receiver attaches to the name.
    Name(String),
    /// The memory is sent along, so it does not matter whether the name still exists on arrival.
    Named(String, BlockPlace),
}

impl SharedMemory {
    pub(super) fn arrive<'de, D: Deserializer<'de>>(
        deserializer: D,
        kinds: &[BlockKind],
    ) -> Result<Self, D::Error> {
        match Sent::deserialize(deserializer)? {
            Sent::Place(place) => {
                Ok(Self::with(Block::arrive(place, kinds, None, fits, None)?, None))
            }
            Sent::Named(name, place) => {
                Ok(Self::with(Block::arrive_named(place, kinds, fits)?, Some(Name::label(&name))))
            }
            Sent::Name(name) => Self::attach_kind(&name, kinds).map_err(|error| {
                de::Error::custom(format_args!(
                    "the shared memory {name:?} cannot be attached: {error}"
                ))
            }),
        }
    }
}

impl Serialize for SharedMemory {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let sent = match self.name() {
            Some(name) if attachment::is_for::<S>() => Sent::Named(name, self.block.depart::<S>()?),
            Some(name) => Sent::Name(name),
            None => Sent::Place(self.block.depart::<S>()?),
        };
        sent.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for SharedMemory {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::arrive(deserializer, KINDS)
    }
}

/// Creates named memory and lists, and removes their names when it is dropped.
///
/// This is for names that belong to one part of a program. Unlike Python's `SharedMemoryManager`,
/// it needs no separate process.
///
/// ```
/// use executor::{SharedMemory, SharedMemoryScope};
///
/// # fn main() -> std::io::Result<()> {
/// let mut scope = SharedMemoryScope::new();
/// let memory = scope.create(100)?;
/// let name = memory.name().unwrap();
/// assert_eq!(SharedMemory::attach(&name)?, memory);
/// drop(scope);
/// assert!(SharedMemory::attach(&name).is_err());
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Default)]
pub struct SharedMemoryScope {
    memories: Vec<SharedMemory>,
}

impl SharedMemoryScope {
    /// Creates an empty scope.
    pub fn new() -> Self {
        Self::default()
    }

    /// Creates memory with a new, unused name.
    ///
    /// # Errors
    /// As for [`SharedMemory::create_named`].
    pub fn create(&mut self, size: usize) -> io::Result<SharedMemory> {
        self.add(|name| SharedMemory::create_named(name, size))
    }

    /// Creates a list with a new, unused name.
    ///
    /// # Errors
    /// As for [`SharedMemory::create_named`].
    pub fn list<I: Into<super::ListItem>>(
        &mut self,
        items: impl IntoIterator<Item = I>,
    ) -> io::Result<super::ShareableList> {
        let items: Vec<super::ListItem> = items.into_iter().map(Into::into).collect();
        let mut list = None;
        self.add(|name| {
            let new = super::ShareableList::create_named(name, items.iter().cloned())?;
            let memory = new.memory().clone();
            list = Some(new);
            Ok(memory)
        })?;
        list.ok_or_else(|| io::Error::other("no list was made"))
    }

    fn add(
        &mut self,
        mut create: impl FnMut(&str) -> io::Result<SharedMemory>,
    ) -> io::Result<SharedMemory> {
        use std::hash::{BuildHasher, RandomState};
        loop {
            // The hasher's keys come from the system and differ each time.
            let number = RandomState::new().hash_one(std::process::id());
            match create(&format!("{number:016x}")) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                other => {
                    self.memories.extend(other.as_ref().ok().cloned());
                    return other;
                }
            }
        }
    }
}

impl Drop for SharedMemoryScope {
    fn drop(&mut self) {
        for memory in &self.memories {
            // Somebody else may have removed the name already.
            let _ = memory.unlink();
        }
    }
}
