//! The entries of a [`JoinableQueue`](crate::JoinableQueue): one for each item that was received
//! and is not done.
//!
//! ```text
//!              get                            done
//!  (free) ───────────► owner, reading ► owner ─────► (free); DONE if a piece has to be given back
//!                         │ its process has died
//!                         ├──► (free), and counted in `lost`
//!                         ├──► LOST,   and counted in `lost`      until a process asks for it
//!                         └──► AGAIN                              until a process gets it
//! ```
//!
//! `entry` has an entry, its state, and where entries lie. `done` marks items as done and tells
//! whether all are. `dead` looks for dead processes and takes the items that they held.
//!
//! # One store decides
//!
//! The state word of an entry is the only truth about its item; there is no other count of held
//! items. An entry is written before its item is taken, by the holder of the consumers' mutex. If a
//! process dies in between, it leaves an entry for an item that is still in the queue. The entry's
//! number shows that, and the repairer clears the entry. An item is marked as done by one
//! compare-and-swap without a mutex, so marking neither waits nor fails.
//!
//! `lost` and `again` follow from the entries. `losing` names the entry that is being counted as
//! lost, and `lost_then` is the resulting count. So a repairer can complete the count without
//! counting an item twice.
//!
//! # Pieces
//!
//! An item that can be received again, or asked for, must outlive the process that received it. So
//! in a queue that keeps or requeues items ([`OnLost`](crate::OnLost)), every item lies in a piece
//! of its own. Its record names the piece first, and later its entry does. A process that reads an
//! item marks the entry as being read: others may mark an item as done that they have not received,
//! but not while it is being read.
//!
//! # Entries
//!
//! The first entries lie in the queue's words. Further entries lie in tables in the file, each
//! twice as large as the one before. Before a new table is added, the entries of dead processes are
//! freed, so a table is only as large as the number of items held at one time requires.
//!
//! A table that cannot be mapped must not be mistaken for one that does not exist. So a process
//! that looks at the entries maps all tables first ([`Entries`](entry::Entries)), and a process
//! that takes an item has mapped the table of its entry before ([`FreeHold`]).

mod dead;
mod done;
mod entry;

pub(in crate::ipc::queue) use dead::Returned;
pub(in crate::ipc::queue) use entry::FreeHold;
use entry::{FIELDS, FIRST, TABLES};

use super::RingList;
use crate::os::{
    liveness::Owners,
    std_or_model::atomic::{AtomicU32, AtomicU64, Ordering},
};

/// What happens to an item whose process has died before the item was done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u32)]
pub(in crate::ipc::queue) enum Lost {
    #[default]
    Counted = 0,
    Kept = 1,
    Requeued = 2,
}

/// Value of `to_clear`: several entries may be `DONE`.
const MANY: u32 = u32::MAX;

#[cfg_attr(all(test, any(executor_loom, executor_shuttle)), derive(Default))]
#[repr(C)]
pub(super) struct Holds {
    /// A [`Lost`] as a number.
    on_lost: AtomicU32,
    /// Number of entries that have ever been used: the entries from this index on are fresh.
    used: AtomicU32,
    /// The index at which the search for a free entry starts.
    from: AtomicU32,
    /// One plus the index of the entry that is `DONE`; [`MANY`] if there may be several; 0 if there
    /// is none.
    to_clear: AtomicU32,
    /// Number of items of dead processes that have not been reported yet.
    lost: AtomicU64,
    /// One plus the index of the entry that is being counted as lost; 0 if there is none.
    losing: AtomicU64,
    /// The value of `lost` after that entry is counted.
    lost_then: AtomicU64,
    /// Number of entries that are `AGAIN`.
    again: AtomicU64,
    /// How often entries have become `AGAIN` or `LOST`. While it is unchanged, nobody has to look
    /// for more such entries.
    returns: AtomicU64,
    first: [AtomicU64; FIRST * FIELDS],
    /// One plus the position of each table in the file; 0 where there is none.
    tables: [AtomicU64; TABLES],
}

/// An item held by this process: its entry and its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::ipc::queue) struct Held {
    entry: u32,
    number: u64,
}

impl<M, O: Owners> RingList<'_, M, O> {
    pub(in crate::ipc::queue) fn set_on_lost(&self, lost: Lost) {
        self.layout.holds.on_lost.store(lost as u32, Ordering::Relaxed);
    }

    fn on_lost(&self) -> Lost {
        match self.layout.holds.on_lost.load(Ordering::Relaxed) {
            1 => Lost::Kept,
            2 => Lost::Requeued,
            _ => Lost::Counted,
        }
    }

    /// Returns whether items must outlive the process that received them.
    pub(in crate::ipc::queue) fn keeps_items(&self) -> bool {
        self.on_lost() != Lost::Counted
    }

    pub(in crate::ipc::queue) fn requeues(&self) -> bool {
        self.on_lost() == Lost::Requeued
    }
    /// Returns the number of items that can be received again.
    pub(in crate::ipc::queue::ring_list) fn again(&self) -> u64 {
        self.layout.holds.again.load(Ordering::Acquire)
    }
}
