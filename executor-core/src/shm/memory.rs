//! Bytes that processes share, with a name or without.

use std::{
    fmt, io,
    os::fd::AsFd,
    ptr::NonNull,
    sync::{Arc, Mutex, PoisonError},
};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::name::{self, Name};
use crate::heap::{
    block::{BYTES_START, Block, Kind, Place},
    words,
};
use crate::wire::attachment;

/// A block of bytes that processes share.
///
/// Without a name by default: it travels as an argument or a result of a task, and is gone with the last handle. One that
/// has a name is found by it, too; the memory travels along with its name.
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
/// A name is a file in a folder in `/dev/shm` that belongs to the user of the process: each user has names of their own, and
/// nobody else can take, open or delay them. Who [creates](Self::create_named) a name owns it; who [attaches](Self::attach) may
/// [own](Self::own) it, too. It is removed by [`unlink`](Self::unlink), or when the last owner has no handle any more. If
/// that was killed (the kernel knows whether an owner lives), the name is free for whoever uses it next. Until somebody does, it
/// takes memory: whoever makes a name looks at some others and removes those of dead owners, and
/// [`sweep`](Self::sweep) looks at all. [`persistent`](Self::persistent) ones stay.
///
/// The memory itself is there as long as somebody has it: a handle that is given away arrives, also if its name is gone by
/// then. It does not own the name there: let the receiver [own](Self::own) it before you drop yours, where the name is to stay.
///
/// Any process of the same user can open a name, and could make its file shorter, which is the death of whoever looks at
/// what is not there any more. Memory without a name cannot be made shorter. Memory that another user (but root) could make shorter is
/// refused, under a name and as a handle that arrives.
///
/// # Access
///
/// [`read`](Self::read) and [`write`](Self::write) copy. Others may write meanwhile: a copy may be half old, half new, in
/// pieces of eight bytes. For references there is [`as_ptr`](Self::as_ptr), or an [`Array`](crate::Array).
#[derive(Clone)]
pub struct SharedMemory {
    block: Block,
    len: usize,
    named: Option<Arc<Named>>,
}

/// A name, which all clones of a handle have together.
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

const KINDS: &[Kind] = &[Kind::Memory];

pub(super) fn whole(size: usize) -> io::Result<usize> {
    let invalid = || io::Error::new(io::ErrorKind::InvalidInput, "no bytes, or too many");
    let size = size.checked_next_multiple_of(64).filter(|size| *size > 0).ok_or_else(invalid)?;
    size.checked_add(BYTES_START).ok_or_else(invalid)
}

fn fits(len: usize) -> bool {
    len > BYTES_START && (len - BYTES_START).is_multiple_of(64)
}

impl SharedMemory {
    /// So many zeros or a few more, without a name.
    ///
    /// # Errors
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) for 0; the system's, if it has no descriptor, no addresses or no memory
    /// left.
    pub fn create(size: usize) -> io::Result<Self> {
        Ok(Self::with(Block::allocate(Kind::Memory, whole(size)?)?, None))
    }

    /// So many zeros or a few more, with a name, which this handle owns.
    ///
    /// # Errors
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) for size 0, and a name that is empty, too long, or has a slash or a NUL in
    /// it; [`AlreadyExists`](io::ErrorKind::AlreadyExists); else the system's.
    pub fn create_named(name: &str, size: usize) -> io::Result<Self> {
        Name::check(name)?;
        let len = whole(size)?;
        let block = Name::fill(name, |file| Block::allocate_in(file, Kind::Memory, len))?;
        let name = Name::link(name, block.descriptor().as_fd())?;
        Ok(Self::with(block, Some(name)))
    }

    /// What has that name, as large as it is.
    ///
    /// # Errors
    /// [`NotFound`](io::ErrorKind::NotFound), also if all who owned it are dead;
    /// [`InvalidInput`](io::ErrorKind::InvalidInput), as in [`create_named`](Self::create_named);
    /// [`InvalidData`](io::ErrorKind::InvalidData), if it is something else, or another user's; the system's.
    pub fn attach(name: &str) -> io::Result<Self> {
        Self::attach_kind(name, KINDS)
    }

    pub(super) fn attach_kind(name: &str, kinds: &[Kind]) -> io::Result<Self> {
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

    /// Its name, if it has one.
    pub fn name(&self) -> Option<String> {
        self.named.as_ref().map(|named| named.with(|name| name.as_str().to_owned()))
    }

    /// How many bytes: at least what was asked for.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Always `false`: there is no empty one.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Owns the name, too: it stays until all owners are gone. Nothing without one.
    ///
    /// # Errors
    /// [`NotFound`](io::ErrorKind::NotFound), if the name is gone, or all who owned it have ended by now; the system's, if it has no
    /// descriptor left.
    pub fn own(&self) -> io::Result<()> {
        match &self.named {
            Some(named) => named.with(|name| name.own(self.block.descriptor().as_fd())),
            None => Ok(()),
        }
    }

    /// Lets the name stay when all its owners are gone, until somebody [unlinks](Self::unlink) it. Nothing without one.
    ///
    /// # Errors
    /// As [`own`](Self::own).
    pub fn persistent(self) -> io::Result<Self> {
        if let Some(named) = &self.named {
            named.with(|name| name.persist(self.block.descriptor().as_fd()))?;
        }
        Ok(self)
    }

    /// Removes the name. The memory stays for those who have it.
    ///
    /// # Errors
    /// [`NotFound`](io::ErrorKind::NotFound), if it has no name (any more); the system's.
    pub fn unlink(&self) -> io::Result<()> {
        let named = self.named.as_ref().ok_or(io::ErrorKind::NotFound)?;
        named.with(|name| name.unlink(self.block.descriptor().as_fd()))
    }

    /// Removes this user's names of which all owners are dead; how many those were. It looks at each name.
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

    /// Copies bytes out, from that one on.
    ///
    /// # Panics
    /// If there are not so many.
    pub fn read(&self, at: usize, bytes: &mut [u8]) {
        self.range(at, bytes.len());
        // SAFETY: aligned to a cache line, a whole number of words, there as long as `self`; the library makes no references
        // to it. The range was checked.
        unsafe { words::load_bytes(self.at(), at, bytes) }
    }

    /// Copies bytes in, from that one on.
    ///
    /// # Panics
    /// If they do not fit.
    pub fn write(&self, at: usize, bytes: &[u8]) {
        self.range(at, bytes.len());
        // SAFETY: as in `read`.
        unsafe { words::store_bytes(self.at(), at, bytes) }
    }

    /// A copy of all bytes.
    pub fn read_to_vec(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.len];
        self.read(0, &mut bytes);
        bytes
    }

    /// Where the bytes lie in this process, aligned to 64. Others may write to them at any moment: whoever makes references
    /// of it has to see to it that they do not.
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

/// On its way.
#[derive(Serialize, Deserialize)]
enum Sent {
    Place(Place),
    /// By another serialiser: to be attached.
    Name(String),
    /// The memory goes along: whether the name is still there when this arrives does not matter.
    Named(String, Place),
}

impl SharedMemory {
    pub(super) fn arrive<'de, D: Deserializer<'de>>(
        deserializer: D,
        kinds: &[Kind],
    ) -> Result<Self, D::Error> {
        match Sent::deserialize(deserializer)? {
            Sent::Place(place) => Ok(Self::with(Block::arrive(place, kinds, None, fits, None)?, None)),
            Sent::Named(name, place) => {
                Ok(Self::with(Block::arrive_named(place, kinds, fits)?, Some(Name::label(&name))))
            }
            Sent::Name(name) => Self::attach_kind(&name, kinds).map_err(|error| {
                de::Error::custom(format_args!("the shared memory {name:?} cannot be attached: {error}"))
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

/// Makes named memory and lists, and removes their names when it is dropped.
///
/// For names that belong to one part of a program: no process of its own keeps them, as in Python's `SharedMemoryManager`.
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
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// Memory with a name that nobody else has.
    ///
    /// # Errors
    /// As [`SharedMemory::create_named`].
    pub fn create(&mut self, size: usize) -> io::Result<SharedMemory> {
        self.add(|name| SharedMemory::create_named(name, size))
    }

    /// A list with a name that nobody else has.
    ///
    /// # Errors
    /// As [`SharedMemory::create_named`].
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

    fn add(&mut self, mut create: impl FnMut(&str) -> io::Result<SharedMemory>) -> io::Result<SharedMemory> {
        use std::hash::{BuildHasher, RandomState};
        loop {
            // Seeded by the system, differently each time.
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
            // Somebody may have done so before.
            let _ = memory.unlink();
        }
    }
}
