//! One process's view of a queue: its words, its file, its socket. It takes and returns bytes and
//! descriptors; encoding and decoding happen elsewhere.
//!
//! ```text
//!  put         get ─── unfinished   one attempt at a time; received items, until they are done
//!   └────┬──────┘
//!        ▼
//!      wait                         the mutexes; what a call waits for, and for how long
//!        │
//!        ▼
//!      `Core` ─── travel            a handle that is sent to another process, and arrives there
//!        ├── the words in the block (`ring_list`)
//!        └── store                  the file, with rings and large items; the socket
//! ```
//!
//! `put` and `get` make attempts, each under a mutex, until one succeeds or the call has to give
//! up. The blocking and the awaited form of a call make the same attempts. They differ in how they
//! lock a mutex and how they sleep, and only the blocking form spins.

#[cfg(any(all(test, not(any(executor_loom, executor_shuttle))), fuzzing))]
pub(crate) mod fuzzed;
mod get;
mod put;
mod store;
mod travel;
mod unfinished;
mod wait;

use std::{
    collections::HashMap,
    io,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, Weak},
};

use rustix::fs::fstat;

#[cfg(all(test, any(executor_loom, executor_shuttle)))]
pub(super) use self::wait::listen_for_others;
pub(super) use self::{
    get::{Got, Missing},
    put::Refused,
    travel::{deserialize, serialize},
    unfinished::{LostCount, Unfinished},
    wait::Wait,
};
use self::{store::Store, unfinished::Own};
use super::ring_list::{Layout, Returned, RingList, Side};
use crate::{
    heap::{
        block::{Block, BlockKind},
        sparse_file::SparseFile,
    },
    os::{
        asked::Asked,
        fork::PerProcess,
        liveness::Liveness,
        socket,
        spin::Spin,
        std_or_model::{atomic::AtomicU64, lock},
    },
};

/// Offset of the words in their block.
const START: usize = Block::aligned(0, align_of::<Layout>());

/// One process's view of a queue. See the module's documentation.
pub(super) struct Core {
    block: Block,
    store: Store,
    inode: (u64, u64),
    waiting: Mutex<Spin>,
    own: Mutex<Own>,
    /// Items that can be received again, and lost items that can be asked for. Used by the holder
    /// of the consumers' mutex.
    returned: Mutex<[Returned; 2]>,
    /// When this process last checked for dead processes that hold items; see
    /// [`looks_for_the_dead`](Core::looks_for_the_dead).
    looked: AtomicU64,
    this: Weak<Core>,
}

/// The queues of this process, by the device and inode of their file. So a queue that is received
/// again is the same `Core`.
#[derive(Default)]
struct Table {
    queues: Mutex<HashMap<(u64, u64), Weak<Core>>>,
}

fn table() -> &'static Table {
    static TABLE: PerProcess<Table> = PerProcess::new(Table::default);
    TABLE.get()
}

impl Drop for Core {
    fn drop(&mut self) {
        let mut queues = lock(&table().queues);
        // The queue may have been received again meanwhile, and then the entry belongs to the new
        // one.
        if queues.get(&self.inode).is_some_and(|other| other.strong_count() == 0) {
            queues.remove(&self.inode);
        }
    }
}

impl Core {
    /// Creates a queue; a `capacity` of 0 means unbounded.
    pub(super) fn create(capacity: u64) -> io::Result<Arc<Self>> {
        let block = Block::allocate(BlockKind::Queue, START + size_of::<Layout>())?;
        let file = SparseFile::create("executor-queue")?;
        let (to, from) = socket::pair().asked("a pair of sockets (socketpair)")?;
        let core = Self::over(block, file, Arc::new(to), Arc::new(from))?;
        core.list().begin(capacity)?;
        lock(&table().queues).insert(core.inode, Arc::downgrade(&core));
        Ok(core)
    }

    fn over(
        block: Block,
        file: SparseFile,
        to: Arc<OwnedFd>,
        from: Arc<OwnedFd>,
    ) -> io::Result<Arc<Self>> {
        let stat = fstat(file.descriptor()).asked("shared memory (fstat)")?;
        let store = Store::new(file, to, from);
        let inode = (stat.st_dev, stat.st_ino);
        Ok(Arc::new_cyclic(|this| Core {
            block,
            store,
            inode,
            waiting: Mutex::default(),
            own: Mutex::default(),
            returned: Mutex::default(),
            looked: AtomicU64::new(0),
            this: Weak::clone(this),
        }))
    }

    #[inline]
    fn layout(&self) -> &Layout {
        self.block.part(START)
    }

    #[inline]
    fn list(&self) -> RingList<'_, Store, Liveness> {
        RingList { layout: self.layout(), memory: &self.store, owners: self.block.owners() }
    }

    pub(super) fn len(&self) -> u64 {
        self.list().len()
    }

    pub(super) fn capacity(&self) -> Option<u64> {
        self.list().capacity()
    }

    pub(super) fn is_full(&self) -> bool {
        self.list().is_full()
    }

    pub(super) fn is_closed(&self) -> bool {
        self.list().is_closed()
    }

    /// Closes the queue: nothing can be put any more.
    pub(super) fn close(&self) -> io::Result<()> {
        // Under the mutex, so that a concurrent put is either complete before this, or refused.
        let guard = self.lock(Side::Producers, Wait::Until(None));
        // Close even if locking failed because the state left by a dead process cannot be repaired:
        // nothing is being put then.
        self.list().close();
        let locked = guard.map(drop);
        self.ring_items();
        self.ring_room();
        self.layout().all_done.ring_unlocked().wake_all();
        locked
    }

    /// Wakes all consumers, so that they look again.
    pub(super) fn ring_items(&self) {
        self.layout().producers.items.ring_unlocked().wake_all();
    }

    /// Wakes all producers, so that they look again.
    pub(super) fn ring_room(&self) {
        self.layout().consumers.room.ring_unlocked().wake_all();
        if self.layout().consumers.descriptors.is_listened_to() {
            self.layout().consumers.descriptors.ring_unlocked().wake_all();
        }
    }
}

impl PartialEq for Core {
    fn eq(&self, other: &Self) -> bool {
        self.inode == other.inode
    }
}
