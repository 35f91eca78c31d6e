//! The words of a queue in shared memory.
//!
//! ```text
//!  Layout ─┬─ capacity, closed, next, bells that are rung without a mutex
//!          ├─ Producers   a mutex, and what is written under it only
//!          ├─ Consumers   the same
//!          ├─ claims      of places in the file: see `pieces.rs`
//!          └─ holds       items that are not done: see `holds/mod.rs`
//! ```

use super::holds::Holds;
use crate::{
    os::{
        memory::SharedLayout,
        std_or_model::{
            MODEL,
            atomic::{AtomicU32, AtomicU64},
        },
    },
    sync::raw::{Bell, RobustMutex},
};

/// Number of claims: places that are being written or read, kept, or holes. A higher value makes
/// the search for claims of dead processes slower. The value limits how many large items can be put
/// and received at a time, and how many holes are remembered; the places of further holes are lost.
pub(super) const CLAIMS: usize = if MODEL { 4 } else { 64 };
/// Number of claims reserved for the holders of the two mutexes: for a ring (each side moves one at
/// a time), or for the piece of a consumer that finds no other claim.
pub(super) const CLAIMS_OF_RINGS: usize = 2;

/// A ring that one side is in: where it lies, how long it is, and how far the side has come in it.
/// Each side has two slots, and uses them in turn.
#[cfg_attr(all(test, any(executor_loom, executor_shuttle)), derive(Default))]
#[repr(C)]
pub(super) struct RingSlot {
    pub(super) at: AtomicU64,
    pub(super) bytes: AtomicU64,
    /// In words. It only ever grows; the index in the ring is the position modulo the ring's size.
    pub(super) position: AtomicU64,
}

/// State that producers change under their mutex.
#[cfg_attr(all(test, any(executor_loom, executor_shuttle)), derive(Default))]
#[repr(C, align(64))]
pub(in crate::ipc::queue) struct Producers {
    pub(super) mutex: RobustMutex,
    /// Rung by producers when there are items.
    pub(in crate::ipc::queue) items: Bell,
    pub(super) generation: AtomicU64,
    pub(super) slots: [RingSlot; 2],
    /// Number of items put so far.
    pub(super) count: AtomicU64,
    /// One plus the index of the claim of a piece that is about to be put, or of a ring that
    /// nothing refers to yet; 0 if there is none.
    pub(super) pending_claim: AtomicU64,
    /// The last ticket, which is also the number of descriptors sent so far.
    pub(super) ticket: AtomicU64,
    /// The ticket of descriptors that may be in the socket without a record yet; 0 if there are
    /// none.
    pub(super) sending: AtomicU64,
    /// Number of items that are being written and have reserved room: the claims with `has_room`,
    /// as of the last count.
    pub(super) reserved: AtomicU64,
}

/// State that consumers change under their mutex.
#[cfg_attr(all(test, any(executor_loom, executor_shuttle)), derive(Default))]
#[repr(C, align(64))]
pub(in crate::ipc::queue) struct Consumers {
    pub(super) mutex: RobustMutex,
    /// Rung by consumers when there is room.
    pub(in crate::ipc::queue) room: Bell,
    /// Rung by consumers when descriptors have left the socket. This is not `room`, because a
    /// producer that waits for descriptors cannot use room, and would be woken in place of one that
    /// can.
    pub(in crate::ipc::queue) descriptors: Bell,
    pub(super) generation: AtomicU64,
    pub(super) slots: [RingSlot; 2],
    /// Number of items taken so far.
    pub(super) count: AtomicU64,
    /// The value that `count` will have once the current item is taken.
    pub(super) taking: AtomicU64,
    /// The ticket of the item that is being taken or discarded, or was last.
    pub(super) ticket: AtomicU64,
    /// One plus the index of the claim for a piece that is about to be taken, or for a ring that is
    /// about to be left; 0 if there is none.
    pub(super) pending_claim: AtomicU64,
}

/// A place in the file that no record refers to. It belongs to a process: for a piece that the
/// process writes or reads without a mutex, or for a ring that is being added or removed. Or it
/// belongs to nobody, and the next process may take it. While a piece is in the queue, only its
/// record says where it is.
#[cfg_attr(all(test, any(executor_loom, executor_shuttle)), derive(Default))]
#[repr(C)]
pub(super) struct Claim {
    /// The process that owns the claim; 0 for nobody, [`STOCK`], or [`HOLE`].
    pub(super) owner: AtomicU32,
    /// Not 0 if the claim is for an item with reserved room in the queue. Set only under the
    /// producers' mutex.
    pub(super) has_room: AtomicU32,
    pub(super) at: AtomicU64,
    /// 0 if the claim has no piece (any more).
    pub(super) bytes: AtomicU64,
}

/// Owner value: the claim's piece is kept with its memory. Filling pages that were used before is
/// several times as fast as filling new ones.
pub(super) const STOCK: u32 = u32::MAX;
/// Owner value: the claim's place belongs to nobody, has no memory, and reads as zeros.
pub(super) const HOLE: u32 = u32::MAX - 1;
/// Maximum number of bytes that all kept pieces have. A higher value keeps more memory idle. A
/// lower value makes larger items use new pages.
///
/// In tests that kill processes at each step, little is kept, so that they exercise giving back
/// too.
pub(super) const STOCK_BYTES_MAX: u64 =
    if cfg!(feature = "kill-points") { 400 << 10 } else { 8 << 20 };
/// Maximum number of kept pieces. A higher value leaves fewer claims for holes, and places of holes
/// are lost. A lower value makes small pieces use new pages.
pub(super) const STOCK_PIECES_MAX: usize = CLAIMS / 2;

/// All shared words of a queue. All zeros is a queue without a ring: see [`RingList::begin`].
#[cfg_attr(all(test, any(executor_loom, executor_shuttle)), derive(Default))]
#[repr(C, align(64))]
pub(in crate::ipc::queue) struct Layout {
    /// 0 means unbounded.
    pub(super) capacity: AtomicU64,
    pub(super) closed: AtomicU32,
    pub(super) reserved: AtomicU32,
    /// End of all places of the file that are owned or are holes.
    pub(super) next: AtomicU64,
    /// Rung when a claim becomes free. It is written to without a mutex.
    pub(super) freed: Bell,
    /// Rung when all items are done, or when the queue is closed. It is written to without a mutex.
    pub(in crate::ipc::queue) all_done: Bell,
    pub(in crate::ipc::queue) producers: Producers,
    pub(in crate::ipc::queue) consumers: Consumers,
    pub(super) claims: [Claim; CLAIMS],
    pub(super) holds: Holds,
}

// SAFETY: `repr(C)`, atomics only, no drop, zero is a value.
unsafe impl SharedLayout for Layout {}

/// Number of items taken and put so far.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) taken: u64,
    pub(super) put: u64,
}

impl Counts {
    /// Returns the number of items that were put and not taken.
    pub(super) fn waiting(self) -> u64 {
        // An item can be taken before its producer has counted it.
        let waiting = self.put.wrapping_sub(self.taken);
        if waiting > u64::MAX / 2 { 0 } else { waiting }
    }
}
