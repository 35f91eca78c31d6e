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
//! that looks at the entries maps all tables first ([`Entries`]), and a process that takes an item
//! has mapped the table of its entry before ([`FreeHold`]).

use std::{cmp::Reverse, collections::BinaryHeap, io, ops::Deref, sync::Arc};

use super::{Failed, Found, FoundBody, Memory, Piece, RingList, Words, garbled};
use crate::os::{
    liveness::{OwnerId, Owners},
    std_or_model::{
        MODEL,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
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

/// Indices of the words of an entry.
const STATE: usize = 0;
const NUMBER: usize = 1;
const AT: usize = 2;
const BYTES: usize = 3;
const LEN: usize = 4;
const FIELDS: usize = 8;

/// Number of entries in the queue's words. A higher value costs every queue that much memory. A
/// lower value makes more queues need a table.
///
/// It is small in tests that kill processes at each step, so that they use tables too.
const FIRST: usize = if MODEL || cfg!(feature = "kill-points") { 4 } else { 24 };
/// Number of entries in the first table: 64 KiB.
const TABLE: usize = 1024;
/// Maximum number of tables. With them, there can be entries for a thousand million items.
const TABLES: usize = 20;
/// Number of entries that are checked for a free one before a fresh entry is used.
const LOOKS: u32 = 64;
/// Maximum number of passes over all entries to find out whether all items are done, while others
/// put and get. A higher value lets those others, or a process that garbles their counts, keep the
/// caller longer. A lower value reports a finished queue as unfinished more often, and the caller
/// asks again only after [`RECHECK`](crate::sync::raw::RECHECK).
const LOOKS_AT_ALL: u32 = 64;

/// Flags of the `STATE` word, beside the owner's number.
const READING: u64 = 1 << 32;
const AGAIN: u64 = 1 << 33;
const LOST: u64 = 2 << 33;
const DONE: u64 = 3 << 33;
/// Position of the item's number in the `STATE` word; only its lowest bits fit. They make a
/// compare-and-swap fail if the entry has changed to another item of the same owner since it was
/// read, unless that item comes exactly 2^29 items later.
const ITEM_SHIFT: u32 = 35;

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

/// An entry: its words in the queue's words, or a mapped table and the entry's first word in it.
enum Hold<'a, T> {
    First(&'a [AtomicU64]),
    Table(T, usize),
}

impl<T: Deref<Target: Words>> Hold<'_, T> {
    fn word(&self, field: usize) -> &AtomicU64 {
        match self {
            Hold::First(words) => &words[field],
            Hold::Table(table, at) => table.word(at + field),
        }
    }

    fn get(&self, field: usize) -> u64 {
        self.word(field).load(Ordering::Acquire)
    }

    fn state(&self) -> State {
        State(self.get(STATE))
    }

    fn piece(&self) -> Option<(Piece, u64)> {
        let piece = Piece { at: self.get(AT), bytes: self.get(BYTES) };
        (piece.bytes > 0).then(|| (piece, self.get(LEN)))
    }

    fn swap(&self, from: State, to: State) -> bool {
        self.word(STATE).compare_exchange(from.0, to.0, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// Returns the state of the entry after its item is gone: free, or `DONE` if there is a piece
    /// to give back.
    fn over(&self, state: State) -> State {
        if self.piece().is_some() { state.but(DONE) } else { State::FREE }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct State(u64);

impl State {
    const FREE: State = State(0);

    fn new(what: u64, item: u64) -> Self {
        State(what | item << ITEM_SHIFT)
    }

    /// Returns the state in which the same item is something else.
    fn but(self, what: u64) -> Self {
        State::new(what, self.0 >> ITEM_SHIFT)
    }

    fn what(self) -> u64 {
        self.0 & ((1 << ITEM_SHIFT) - 1)
    }

    fn is_of(self, item: u64) -> bool {
        self.0 >> ITEM_SHIFT == item << ITEM_SHIFT >> ITEM_SHIFT
    }

    /// Returns the process that holds the item, if one does.
    fn owner(self) -> Option<OwnerId> {
        let bits = u32::try_from(self.what() & !READING).ok()?;
        OwnerId::from_bits(bits)
    }

    fn is_held(self) -> bool {
        self.owner().is_some()
    }

    fn is_unfinished(self) -> bool {
        self.is_held() || self.what() == AGAIN
    }

    fn is_read(self) -> bool {
        self.0 & READING != 0
    }
}

/// All entries that have been used. All tables are mapped before the first entry is looked at. If
/// mapping fails, nothing is known about any entry.
struct Entries<'a, R> {
    first: &'a [AtomicU64],
    tables: [Option<Arc<R>>; TABLES],
    used: u32,
}

impl<R: Words> Entries<'_, R> {
    fn iter(&self) -> impl Iterator<Item = (u32, Hold<'_, &R>)> {
        let first = self.first.chunks_exact(FIELDS).map(Hold::First);
        let tables = self.tables.iter().map_while(Option::as_deref).enumerate();
        let tables = tables.flat_map(|(number, table)| {
            (0..TABLE << number).map(move |within| Hold::Table(table, within * FIELDS))
        });
        (0..self.used).zip(first.chain(tables))
    }

    fn get(&self, entry: u32) -> Option<Hold<'_, &R>> {
        if entry >= self.used {
            return None;
        }
        match place_of(entry) {
            Ok(at) => Some(Hold::First(self.first.get(at..at + FIELDS)?)),
            Err((number, at)) => Some(Hold::Table(self.tables.get(number)?.as_deref()?, at)),
        }
    }
}

/// Returns the index of the first word of an entry: `Ok` in the queue's words, `Err` with the
/// number of a table and the index in it.
fn place_of(entry: u32) -> Result<usize, (usize, usize)> {
    let Some(at) = (entry as usize).checked_sub(FIRST) else { return Ok(entry as usize * FIELDS) };
    let number = (at / TABLE + 1).ilog2() as usize;
    Err((number, (at - TABLE * ((1 << number) - 1)) * FIELDS))
}

/// A free entry for an item that is about to be taken. Its table is mapped, so it can be written.
pub(in crate::ipc::queue) struct FreeHold<'a, R> {
    entry: u32,
    hold: Hold<'a, Arc<R>>,
}

/// Entries with items that could be taken again when this process last looked, the oldest item
/// first. It saves looking at all entries for each item. The state word of an entry still decides:
/// another process may have taken the item.
#[derive(Default)]
pub(in crate::ipc::queue) struct Returned {
    /// The value of [`Holds::returns`] at that time.
    seen: Option<u64>,
    entries: BinaryHeap<Reverse<(u64, u32)>>,
}

/// An item held by this process: its entry and its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::ipc::queue) struct Held {
    entry: u32,
    number: u64,
}

impl<'a, M: Memory, O: Owners> RingList<'a, M, O> {
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
    pub(super) fn again(&self) -> u64 {
        self.layout.holds.again.load(Ordering::Acquire)
    }

    // Entries.

    /// Returns an entry; `None` if there is no such entry.
    fn hold(&self, entry: u32) -> io::Result<Option<Hold<'a, Arc<M::Ring>>>> {
        match place_of(entry) {
            Ok(at) => Ok(Some(Hold::First(&self.layout.holds.first[at..at + FIELDS]))),
            Err((number, at)) => Ok(self.table(number)?.map(|table| Hold::Table(table, at))),
        }
    }

    /// Returns a table; `None` if there is no such table.
    fn table(&self, number: usize) -> io::Result<Option<Arc<M::Ring>>> {
        let word =
            self.layout.holds.tables.get(number).map_or(0, |table| table.load(Ordering::Acquire));
        match word.checked_sub(1) {
            None => Ok(None),
            Some(at) => self.memory.table(at, table_bytes(number)).map(Some),
        }
    }

    /// Returns how many entries have been used. It is at most the number of entries that exist,
    /// whatever the shared word says, because any process may have written it.
    fn used(&self) -> u32 {
        let holds = &self.layout.holds;
        let tables =
            holds.tables.iter().take_while(|table| table.load(Ordering::Relaxed) != 0).count();
        let there = FIRST + TABLE * ((1 << tables) - 1);
        holds.used.load(Ordering::Acquire).min(u32::try_from(there).unwrap_or(u32::MAX))
    }

    /// Returns the entries that have been used.
    fn entries(&self) -> io::Result<Entries<'a, M::Ring>> {
        let used = self.used();
        let mut tables = [const { None }; TABLES];
        let numbers =
            (0..TABLES).take_while(|number| FIRST + TABLE * ((1 << number) - 1) < used as usize);
        for number in numbers {
            tables[number] = Some(self.table(number)?.ok_or_else(garbled)?);
        }
        Ok(Entries { first: &self.layout.holds.first, tables, used })
    }

    /// Finds or makes a free entry for an item that is about to be taken. Called under the
    /// consumers' mutex. Nothing changes except that a table may be added.
    pub(in crate::ipc::queue) fn free_hold(
        &self,
        me: OwnerId,
    ) -> Result<FreeHold<'a, M::Ring>, Failed> {
        let holds = &self.layout.holds;
        let used = self.used();
        let from = holds.from.load(Ordering::Relaxed);
        let look = |from: u32, looks: u32| {
            for step in 0..looks.min(used) {
                let entry = from.wrapping_add(step) % used;
                let Some(hold) = self.hold(entry)? else { continue };
                match hold.state() {
                    State::FREE => return Ok(Some(FreeHold { entry, hold })),
                    // The process that marked it as done may have died before it noted the entry in
                    // `to_clear`.
                    state if state.what() == DONE => holds.to_clear.store(MANY, Ordering::Release),
                    _ => {}
                }
            }
            io::Result::Ok(None)
        };
        if let Some(free) = look(from, LOOKS)? {
            holds.from.store(free.entry.wrapping_add(1), Ordering::Relaxed);
            return Ok(free);
        }
        // Start elsewhere next time, and use a fresh entry now, if its table exists.
        holds.from.store(from.wrapping_add(LOOKS), Ordering::Relaxed);
        if let Some(hold) = self.hold(used)? {
            return Ok(FreeHold { entry: used, hold });
        }
        // Free the entries of dead processes before a table is added.
        self.reap()?;
        if let Some(free) = look(0, used)? {
            return Ok(free);
        }
        let table = self.add_table(used, me)?;
        let Err((_, at)) = place_of(used) else { return Err(garbled().into()) };
        Ok(FreeHold { entry: used, hold: Hold::Table(table, at) })
    }

    /// Adds the table that contains this entry, which is the first table that does not exist yet.
    fn add_table(&self, entry: u32, me: OwnerId) -> Result<Arc<M::Ring>, Failed> {
        let consumers = &self.layout.consumers;
        let Err((number, _)) = place_of(entry) else { return Err(garbled().into()) };
        let word = self.layout.holds.tables.get(number);
        let word = word.ok_or_else(|| io::Error::other("too many items are not done"))?;
        if word.load(Ordering::Acquire) != 0 {
            // The table exists and has entries of items.
            return Err(garbled().into());
        }
        let (Piece { at, bytes }, claim) =
            self.new_place(table_bytes(number), me, &self.layout.claims)?;
        let made = self.memory.allocate(at, bytes).and_then(|()| self.memory.table(at, bytes));
        let table = match made {
            Ok(table) => table,
            Err(error) => {
                self.shed(claim);
                return Err(error.into());
            }
        };
        // From now on, a repairer decides whether the table is added.
        consumers.pending_claim.store(claim.0 as u64 + 1, Ordering::Release);
        kill_point!(QueueTableNoted);
        word.store(at.wrapping_add(1), Ordering::Release);
        kill_point!(QueueTableAdded);
        let claim = &self.layout.claims[claim.0];
        claim.bytes.store(0, Ordering::Relaxed);
        consumers.pending_claim.store(0, Ordering::Release);
        self.set_free(claim, 0);
        Ok(table)
    }

    /// Writes an entry: this process holds an item that it takes next. Called under the consumers'
    /// mutex.
    pub(super) fn write_hold(
        &self,
        free: &FreeHold<'_, M::Ring>,
        me: OwnerId,
        found: &Found<M::Mapped<'a>>,
    ) -> Held {
        let FreeHold { entry, hold } = free;
        let (piece, len) = match found.body {
            FoundBody::Elsewhere { piece, len } if self.keeps_items() => (piece, len),
            _ => (Piece { at: 0, bytes: 0 }, 0),
        };
        for (field, word) in
            [(NUMBER, found.number), (AT, piece.at), (BYTES, piece.bytes), (LEN, len)]
        {
            hold.word(field).store(word, Ordering::Relaxed);
        }
        let used = &self.layout.holds.used;
        // Count the entry before it is held, so that every pass over the entries includes it.
        if used.load(Ordering::Relaxed) == *entry {
            used.store(entry.wrapping_add(1), Ordering::Release);
        }
        // Store the state last: until then the entry is free, whatever its other words say.
        let state = State::new(u64::from(me.bits()) | READING, found.number);
        hold.word(STATE).store(state.0, Ordering::Release);
        kill_point!(QueueItemHeld);
        Held { entry: *entry, number: found.number }
    }

    /// Clears the entry's "reading" flag: the item's bytes have been read, or are not needed.
    pub(in crate::ipc::queue) fn has_read(&self, held: Held, me: OwnerId) {
        // The table was mapped when the item was taken, and is still mapped.
        if let Ok(Some(hold)) = self.hold(held.entry) {
            let reading = State::new(u64::from(me.bits()) | READING, held.number);
            hold.swap(reading, reading.but(me.bits().into()));
        }
    }

    // Done.

    /// Marks an item of this process as done. Returns `false` if another process has done so, or if
    /// the item is not this process's.
    pub(in crate::ipc::queue) fn is_done(&self, held: Held, me: OwnerId) -> bool {
        // The table was mapped when the item was taken, and is still mapped.
        let Ok(Some(hold)) = self.hold(held.entry) else { return false };
        let state = hold.state();
        state.is_of(held.number)
            && hold.get(NUMBER) == held.number
            && state.owner() == Some(me)
            && self.end(held.entry, &hold, state)
    }

    /// Marks the oldest item of all other processes as done, because a process must have handed its
    /// item to this one. Returns `None` if there is none.
    pub(in crate::ipc::queue) fn is_done_for_another(
        &self,
        me: OwnerId,
    ) -> io::Result<Option<Held>> {
        let entries = self.entries()?;
        loop {
            // Each state is read once, so the compare-and-swap ends exactly the item that was
            // chosen, or fails.
            let is_anothers =
                |state: State| state.owner().is_some_and(|owner| owner != me) && !state.is_read();
            let seen = entries.iter().map(|(entry, hold)| {
                let state = hold.state();
                (entry, state, hold.get(NUMBER), hold)
            });
            let held = seen.filter(|(_, state, ..)| is_anothers(*state));
            let oldest = held.min_by_key(|(_, _, number, _)| *number);
            let Some((entry, state, number, hold)) = oldest else { return Ok(None) };
            if self.end(entry, &hold, state) {
                return Ok(Some(Held { entry, number }));
            }
        }
    }

    fn end(&self, entry: u32, hold: &Hold<'_, impl Deref<Target: Words>>, state: State) -> bool {
        let over = hold.over(state);
        let ended = hold.swap(state, over);
        if ended && over != State::FREE {
            self.note_to_clear(entry);
        }
        kill_point!(QueueItemDone);
        ended
    }

    fn note_to_clear(&self, entry: u32) {
        let (to_clear, this) = (&self.layout.holds.to_clear, entry.saturating_add(1));
        let noted = to_clear.compare_exchange(0, this, Ordering::AcqRel, Ordering::Relaxed);
        if noted.is_err_and(|other| other != this) {
            to_clear.store(MANY, Ordering::Release);
        }
    }

    pub(in crate::ipc::queue) fn is_to_be_cleared(&self) -> bool {
        self.layout.holds.to_clear.load(Ordering::Relaxed) != 0
    }

    /// Gives back the pieces of items that are done. Called under the consumers' mutex. On an
    /// error, they stay to be given back.
    pub(in crate::ipc::queue) fn clear(&self, me: OwnerId) -> io::Result<()> {
        let to_clear = &self.layout.holds.to_clear;
        // Reset this first: an item that becomes done meanwhile is then noted anew.
        let noted = to_clear.swap(0, Ordering::AcqRel);
        let cleared = match noted {
            0 => Ok(true),
            // Map only this entry's table instead of all of them, so that the cost does not depend
            // on how many other items are held.
            one if one != MANY => {
                self.hold(one - 1).map(|hold| hold.is_none_or(|hold| self.clear_hold(&hold, me)))
            }
            _ => self
                .entries()
                .map(|entries| entries.iter().all(|(_, hold)| self.clear_hold(&hold, me))),
        };
        if !matches!(cleared, Ok(true)) {
            to_clear.store(MANY, Ordering::Release);
        }
        cleared.map(drop)
    }

    /// Clears an entry that is `DONE`. Returns `false` if there is no free claim for its piece.
    fn clear_hold(&self, hold: &Hold<'_, impl Deref<Target: Words>>, me: OwnerId) -> bool {
        let consumers = &self.layout.consumers;
        if hold.state().what() != DONE {
            return true;
        }
        let Some((piece, _)) = hold.piece() else {
            hold.word(STATE).store(0, Ordering::Release);
            return true;
        };
        let Some(claim) = self.claim(me, self.claims_of_pieces()) else { return false };
        // From now on, a repairer decides whether the piece still belongs to the entry.
        consumers.pending_claim.store(claim.0 as u64 + 1, Ordering::Release);
        self.note(&claim, piece);
        kill_point!(QueueDonePieceNoted);
        hold.word(STATE).store(0, Ordering::Release);
        kill_point!(QueueDoneCleared);
        consumers.pending_claim.store(0, Ordering::Release);
        self.give_back(claim);
        true
    }

    /// Returns whether a place is that of a table, or of an item whose entry is `DONE`.
    pub(super) fn is_place_of_holds(&self, at: u64) -> io::Result<bool> {
        let tables = &self.layout.holds.tables;
        Ok(tables.iter().any(|table| table.load(Ordering::Relaxed) == at.wrapping_add(1))
            || self
                .entries()?
                .iter()
                .any(|(_, hold)| hold.state().what() == DONE && hold.get(AT) == at))
    }

    // Whether all is done.

    /// Returns the number of items that were put and are not done. This is the number at some
    /// moment during the call. Where others put and get without a pause, it is a number between
    /// those of two moments, and never 0 if there always was an unfinished item. If the entries
    /// cannot be accessed, it is an upper bound.
    pub(in crate::ipc::queue) fn unfinished(&self) -> u64 {
        let mut seen = 0;
        for _ in 0..LOOKS_AT_ALL {
            let counts = self.counts();
            let waiting = counts.waiting();
            let held = match self.entries() {
                Ok(entries) => {
                    entries.iter().filter(|(_, hold)| hold.state().is_unfinished()).count() as u64
                }
                Err(_) => self.used().into(),
            };
            seen = waiting.saturating_add(held);
            if self.counts() == counts {
                return seen;
            }
        }
        // An item that was put or received in the meantime was unfinished at some moment of this
        // call.
        seen.max(1)
    }

    /// Returns whether no item is unfinished and no loss is left to report. Also returns `false` if
    /// the entries cannot be accessed; the caller asks again.
    ///
    /// A single pass is not enough. Items may be put and received one after the other, each before
    /// the previous one is done, so that there always is an unfinished item, but in a ring or an
    /// entry that this pass had looked at before the item came there. So the pass counts only if
    /// the counts have not changed during it. An item never moves to another entry, so without puts
    /// and gets the set of unfinished items only shrinks.
    pub(in crate::ipc::queue) fn is_finished(&self) -> bool {
        for _ in 0..LOOKS_AT_ALL {
            let counts = self.counts();
            let Ok(entries) = self.entries() else { return false };
            if counts.waiting() > 0 || entries.iter().any(|(_, hold)| hold.state().is_unfinished())
            {
                return false;
            }
            if self.counts() == counts {
                // Check this last: a loss is counted before its entry stops being unfinished.
                return self.layout.holds.lost.load(Ordering::Acquire) == 0;
            }
        }
        false
    }

    /// Returns whether this process holds an item. The item's table is mapped in that case.
    pub(in crate::ipc::queue) fn is_held_by(&self, held: Held, me: OwnerId) -> bool {
        let hold = self.hold(held.entry).ok().flatten();
        hold.is_some_and(|hold| hold.get(NUMBER) == held.number && hold.state().owner() == Some(me))
    }

    /// Returns whether this item, which is now done, was the last one, like
    /// [`is_finished`](Self::is_finished). It starts near the item's entry: if there are many
    /// unfinished items, another one is near.
    pub(in crate::ipc::queue) fn was_last(&self, held: Held) -> bool {
        // Do not count the items that can be received again. While a process looks for the dead,
        // that count is too high by one for a moment, and then nobody would ring.
        if self.counts().waiting() > 0 {
            return false;
        }
        // A false "yes" only wakes a joiner, which then checks.
        let Ok(entries) = self.entries() else { return true };
        let is_unfinished =
            |entry: u32| entries.get(entry).is_some_and(|hold| hold.state().is_unfinished());
        let near = (1..=entries.used.max(1)).any(|step| {
            let (before, after) = (held.entry.checked_sub(step), held.entry.saturating_add(step));
            before.is_some_and(is_unfinished) || is_unfinished(after)
        });
        !near
    }

    /// Returns whether other processes hold items that may come back, and this process holds none.
    /// If this process holds items itself, it does not wait for others.
    pub(in crate::ipc::queue) fn others_hold(&self, me: OwnerId) -> io::Result<bool> {
        let mut others = false;
        for (_, hold) in self.entries()?.iter() {
            match hold.state().owner() {
                Some(owner) if owner == me => return Ok(false),
                Some(_) => others = true,
                None => {}
            }
        }
        Ok(others)
    }

    // The dead.

    /// Looks for dead processes that held items. Returns how many items can be received again now.
    /// Called under the consumers' mutex.
    pub(in crate::ipc::queue) fn reap(&self) -> io::Result<u64> {
        let holds = &self.layout.holds;
        let mut requeued = 0;
        // The processes already checked: one system call per process instead of one per item.
        let mut asked: Vec<(OwnerId, bool)> = Vec::new();
        let entries = self.entries()?;
        for (entry, hold) in entries.iter() {
            let state = hold.state();
            let Some(owner) = state.owner() else { continue };
            let known = asked.iter().find(|(other, _)| *other == owner).map(|(_, alive)| *alive);
            let is_alive = known.unwrap_or_else(|| {
                let is_alive = self.owners.is_alive(owner);
                asked.push((owner, is_alive));
                is_alive
            });
            if is_alive {
                continue;
            }
            match (self.on_lost(), hold.piece()) {
                (Lost::Requeued, Some(_)) => {
                    // Count before the swap, so that `again` is never too small for `len`, which is
                    // read without a mutex.
                    let again = holds.again.load(Ordering::Relaxed);
                    holds.again.store(again.wrapping_add(1), Ordering::Release);
                    kill_point!(QueueRequeueCounted);
                    if hold.swap(state, state.but(AGAIN)) {
                        requeued += 1;
                    } else {
                        holds.again.store(again, Ordering::Release);
                    }
                }
                _ => self.lose(entry, &hold, state),
            }
        }
        if requeued > 0 {
            holds.returns.fetch_add(1, Ordering::Release);
        }
        Ok(requeued)
    }

    fn lose(&self, entry: u32, hold: &Hold<'_, impl Deref<Target: Words>>, from: State) {
        let holds = &self.layout.holds;
        let lost = holds.lost.load(Ordering::Relaxed);
        holds.lost_then.store(lost.wrapping_add(1), Ordering::Relaxed);
        holds.losing.store(u64::from(entry) + 1, Ordering::Release);
        kill_point!(QueueLossNoted);
        holds.lost.store(lost.wrapping_add(1), Ordering::Release);
        kill_point!(QueueLossCounted);
        // Mark the entry as `LOST` even if the item is not kept. From this, a repairer tells
        // whether the item was lost, or another process has marked it as done.
        let is_lost = hold.swap(from, from.but(LOST));
        if !is_lost {
            holds.lost.store(lost, Ordering::Release);
        }
        holds.losing.store(0, Ordering::Release);
        if is_lost {
            holds.returns.fetch_add(1, Ordering::Release);
            self.forget_unless_kept(entry, hold);
        }
    }

    fn forget_unless_kept(&self, entry: u32, hold: &Hold<'_, impl Deref<Target: Words>>) {
        if self.on_lost() == Lost::Kept && hold.piece().is_some() {
            return;
        }
        let over = hold.over(hold.state());
        hold.word(STATE).store(over.0, Ordering::Release);
        if over != State::FREE {
            self.note_to_clear(entry);
        }
    }

    /// Returns how many items were lost since the last call. Called under the consumers' mutex.
    pub(in crate::ipc::queue) fn take_lost(&self) -> u64 {
        self.layout.holds.lost.swap(0, Ordering::AcqRel)
    }

    /// Takes the oldest item that can be received again, or that was lost and kept. The item then
    /// belongs to this process, unless `prepare` fails, which gets the item's piece and length.
    /// `returned` is this process's list for the same kind of items. Called under the consumers'
    /// mutex.
    pub(in crate::ipc::queue) fn take_again(
        &self,
        me: OwnerId,
        lost: bool,
        returned: &mut Returned,
        mut prepare: impl FnMut(Piece, u64) -> io::Result<()>,
    ) -> io::Result<Option<(Held, Piece, u64)>> {
        let holds = &self.layout.holds;
        if !lost && self.again() == 0 {
            return Ok(None);
        }
        let what = if lost { LOST } else { AGAIN };
        let now = holds.returns.load(Ordering::Acquire);
        // List the entries anew only if some have come back since the last time.
        if returned.seen != Some(now) {
            let entries = self.entries()?;
            let those = entries.iter().filter(|(_, hold)| hold.state().what() == what);
            returned.entries =
                those.map(|(entry, hold)| Reverse((hold.get(NUMBER), entry))).collect();
            returned.seen = Some(now);
        }
        while let Some(&Reverse((number, entry))) = returned.entries.peek() {
            if let Some(hold) = self.hold(entry)?
                && let state = hold.state()
                && state.what() == what
                && hold.get(NUMBER) == number
                && let Some((piece, len)) = hold.piece()
            {
                // `prepare` comes before the swap, since it may fail.
                prepare(piece, len)?;
                if hold.swap(state, state.but(u64::from(me.bits()) | READING)) {
                    returned.entries.pop();
                    kill_point!(QueueTakenAgain);
                    if !lost {
                        let again = holds.again.load(Ordering::Relaxed);
                        holds.again.store(again.saturating_sub(1), Ordering::Release);
                    }
                    return Ok(Some((Held { entry, number }, piece, len)));
                }
            }
            // Another process has taken it.
            returned.entries.pop();
        }
        Ok(None)
    }

    /// Repairs the entries after a consumer has died in the middle of an operation. `taken` is the
    /// number of items taken.
    pub(super) fn repair_holds(&self, taken: u64) -> io::Result<()> {
        let holds = &self.layout.holds;
        let entries = self.entries()?;
        let mut again: u64 = 0;
        for (_, hold) in entries.iter() {
            let state = hold.state();
            if state.is_held() && hold.get(NUMBER) >= taken {
                // Its item is still in the queue, and so is the piece.
                hold.word(STATE).store(0, Ordering::Release);
            } else if state.what() == AGAIN {
                again += 1;
            }
        }
        let losing = holds.losing.load(Ordering::Acquire);
        let losing = losing.checked_sub(1).and_then(|entry| u32::try_from(entry).ok());
        if let Some(hold) = losing.and_then(|entry| entries.get(entry)) {
            let lost = holds.lost_then.load(Ordering::Relaxed);
            // Either the entry is `LOST`, and counted. Or the entry still has its item, and the
            // item will be found once more; or another process has marked it as done. In these
            // cases, undo the count.
            let is_lost = hold.state().what() == LOST;
            holds.lost.store(if is_lost { lost } else { lost.wrapping_sub(1) }, Ordering::Release);
        }
        holds.losing.store(0, Ordering::Release);
        for (entry, hold) in entries.iter().filter(|(_, hold)| hold.state().what() == LOST) {
            self.forget_unless_kept(entry, &hold);
        }
        holds.again.store(again, Ordering::Release);
        holds.returns.fetch_add(1, Ordering::Release);
        holds.to_clear.store(MANY, Ordering::Release);
        Ok(())
    }
}

fn table_bytes(number: usize) -> u64 {
    ((TABLE * FIELDS * 8) << number) as u64
}

#[cfg(test)]
mod tests {
    use std::mem;

    use super::{
        super::{
            layout::Layout,
            pieces::tests::{Alone, Places},
        },
        *,
    };

    /// Sets up an item of a dead process whose entry is in state `what`, because the process that
    /// was counting it as lost has died too. Then another process marks an item as done, and
    /// repairs the entries. Returns whether an item was marked, and how many were lost.
    fn lost_of_one(on_lost: Lost, what: u64) -> (bool, u64) {
        // SAFETY: zero is a value, says `SharedLayout`.
        let layout: Layout = unsafe { mem::zeroed() };
        let list = RingList { layout: &layout, memory: &Places, owners: &Alone };
        list.set_on_lost(on_lost);
        let holds = &layout.holds;
        holds.first[STATE].store(State::new(what, 5).0, Ordering::Relaxed);
        holds.first[NUMBER].store(5, Ordering::Relaxed);
        holds.used.store(1, Ordering::Relaxed);
        for (word, number) in [(&holds.losing, 1), (&holds.lost_then, 1), (&holds.lost, 1)] {
            word.store(number, Ordering::Relaxed);
        }
        let is_done = list.is_done_for_another(Alone.me()).unwrap().is_some();
        list.repair_holds(6).unwrap();
        assert_eq!(holds.first[STATE].load(Ordering::Relaxed), 0);
        (is_done, list.take_lost())
    }

    #[test]
    fn an_item_is_done_or_lost_and_not_both_also_when_who_counts_it_dies() {
        assert_eq!(lost_of_one(Lost::Counted, 2), (true, 0));
        assert_eq!(lost_of_one(Lost::Counted, LOST), (false, 1));
    }

    #[test]
    fn what_is_said_of_an_item_is_not_said_of_the_next_one_in_its_entry() {
        // SAFETY: zero is a value, says `SharedLayout`.
        let layout: Layout = unsafe { mem::zeroed() };
        let list = RingList { layout: &layout, memory: &Places, owners: &Alone };
        let me = Alone.me();
        let of = |item| State::new(me.bits().into(), item);
        let held = |number| Held { entry: 0, number };
        let hold: Hold<'_, &Places> = Hold::First(&layout.holds.first[..FIELDS]);
        // A process has looked at the sixth item and is about to end it. Meanwhile the seventh came
        // to the entry.
        let (seen, now) = (of(6), of(7));
        hold.word(STATE).store(now.0, Ordering::Relaxed);
        hold.word(NUMBER).store(7, Ordering::Relaxed);
        assert!(!list.end(0, &hold, seen));
        assert!(!list.is_done(held(6), me));
        // At 2^29 items later, the state word is the same, but the full number differs.
        assert!(!list.is_done(held(7 + (1 << 29)), me));
        assert!(list.is_done(held(7), me));
        assert_eq!(hold.get(STATE), 0);
    }

    #[test]
    fn a_table_that_cannot_be_mapped_is_not_one_without_items() {
        // SAFETY: zero is a value, says `SharedLayout`.
        let layout: Layout = unsafe { mem::zeroed() };
        // No table of `Places` can be mapped.
        let list = RingList { layout: &layout, memory: &Places, owners: &Alone };
        let (me, holds) = (Alone.me(), &layout.holds);
        list.begin(0).unwrap();
        list.set_on_lost(Lost::Requeued);
        holds.tables[0].store((1 << 20) + 1, Ordering::Relaxed);
        holds.used.store(FIRST as u32 + 3, Ordering::Relaxed);
        holds.again.store(1, Ordering::Relaxed);
        holds.to_clear.store(MANY, Ordering::Relaxed);
        for first in holds.first.chunks(FIELDS) {
            first[STATE].store(State::new(me.bits().into(), 1).0, Ordering::Relaxed);
        }
        assert!(!list.is_finished());
        assert!(list.unfinished() >= FIRST as u64 + 3);
        assert!(matches!(list.free_hold(me), Err(Failed::Io(_))));
        assert!(matches!(list.add_table(FIRST as u32, me), Err(Failed::Io(_))));
        assert_eq!(
            holds.tables[0].load(Ordering::Relaxed),
            (1 << 20) + 1,
            "another table is in its place"
        );
        assert!(list.take_again(me, false, &mut Returned::default(), |_, _| Ok(())).is_err());
        assert!(list.reap().is_err());
        assert!(list.others_hold(me).is_err());
        assert!(list.is_done_for_another(me).is_err());
        assert!(list.clear(me).is_err() && list.is_to_be_cleared());
        assert!(list.repair_holds(0).is_err() && list.again() == 1);
        assert!(list.is_place_of_holds(0).is_err());
    }

    #[test]
    fn of_items_that_came_back_the_oldest_is_next_also_when_others_take_some_or_more_come() {
        // SAFETY: zero is a value, says `SharedLayout`.
        let layout: Layout = unsafe { mem::zeroed() };
        let list = RingList { layout: &layout, memory: &Places, owners: &Alone };
        let (me, holds) = (Alone.me(), &layout.holds);
        let come_back = |entry: usize, number: u64| {
            let words = &holds.first[entry * FIELDS..];
            for (field, word) in
                [(NUMBER, number), (BYTES, 1), (STATE, State::new(AGAIN, number).0)]
            {
                words[field].store(word, Ordering::Relaxed);
            }
            holds.used.fetch_max(entry as u32 + 1, Ordering::Relaxed);
            holds.again.fetch_add(1, Ordering::Relaxed);
            holds.returns.fetch_add(1, Ordering::Relaxed);
        };
        let next = |returned: &mut Returned| {
            let taken = list.take_again(me, false, returned, |_, _| Ok(())).unwrap();
            taken.map(|(held, ..)| held.number)
        };
        let (mut one, mut other) = Default::default();
        come_back(0, 7);
        come_back(1, 5);
        come_back(2, 6);
        assert_eq!(next(&mut one), Some(5));
        assert_eq!(next(&mut other), Some(6));
        // This one comes to the entry of an item that was taken and is done.
        come_back(1, 4);
        assert_eq!(next(&mut other), Some(4));
        let refused =
            list.take_again(me, false, &mut one, |_, _| Err(io::ErrorKind::OutOfMemory.into()));
        assert!(refused.is_err());
        assert_eq!((next(&mut one), next(&mut other), next(&mut one)), (Some(7), None, None));
        assert_eq!(list.again(), 0);
    }
}
