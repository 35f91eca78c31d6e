//! One entry, its state, and where entries lie: the first ones in the queue's words, the others in
//! tables.

use std::{io, ops::Deref, sync::Arc};

use super::{
    super::{Failed, Found, FoundBody, Memory, Piece, RingList, Words, garbled},
    Held, MANY,
};
use crate::os::{
    liveness::{OwnerId, Owners},
    std_or_model::{
        MODEL,
        atomic::{AtomicU64, Ordering},
    },
};

/// Indices of the words of an entry.
pub(super) const STATE: usize = 0;
pub(super) const NUMBER: usize = 1;
pub(super) const AT: usize = 2;
pub(super) const BYTES: usize = 3;
const LEN: usize = 4;
pub(super) const FIELDS: usize = 8;

/// Number of entries in the queue's words. A higher value costs every queue that much memory. A
/// lower value makes more queues need a table.
///
/// It is small in tests that kill processes at each step, so that they use tables too.
pub(super) const FIRST: usize = if MODEL || cfg!(feature = "kill-points") { 4 } else { 24 };
/// Number of entries in the first table: 64 KiB.
const TABLE: usize = 1024;
/// Maximum number of tables. With them, there can be entries for a thousand million items.
pub(super) const TABLES: usize = 20;

/// Number of entries that are checked for a free one before a fresh entry is used.
const LOOKS: u32 = 64;

/// Flags of the `STATE` word, beside the owner's number.
pub(super) const READING: u64 = 1 << 32;
pub(super) const AGAIN: u64 = 1 << 33;
pub(super) const LOST: u64 = 2 << 33;
pub(super) const DONE: u64 = 3 << 33;
/// Position of the item's number in the `STATE` word; only its lowest bits fit. They make a
/// compare-and-swap fail if the entry has changed to another item of the same owner since it was
/// read, unless that item comes exactly 2^29 items later.
const ITEM_SHIFT: u32 = 35;

/// An entry: its words in the queue's words, or a mapped table and the entry's first word in it.
pub(super) enum Hold<'a, T> {
    First(&'a [AtomicU64]),
    Table(T, usize),
}

impl<T: Deref<Target: Words>> Hold<'_, T> {
    pub(super) fn word(&self, field: usize) -> &AtomicU64 {
        match self {
            Hold::First(words) => &words[field],
            Hold::Table(table, at) => table.word(at + field),
        }
    }

    pub(super) fn get(&self, field: usize) -> u64 {
        self.word(field).load(Ordering::Acquire)
    }

    pub(super) fn state(&self) -> State {
        State(self.get(STATE))
    }

    pub(super) fn piece(&self) -> Option<(Piece, u64)> {
        let piece = Piece { at: self.get(AT), bytes: self.get(BYTES) };
        (piece.bytes > 0).then(|| (piece, self.get(LEN)))
    }

    pub(super) fn swap(&self, from: State, to: State) -> bool {
        self.word(STATE).compare_exchange(from.0, to.0, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// Returns the state of the entry after its item is gone: free, or `DONE` if there is a piece
    /// to give back.
    pub(super) fn over(&self, state: State) -> State {
        if self.piece().is_some() { state.but(DONE) } else { State::FREE }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct State(pub(super) u64);

impl State {
    pub(super) const FREE: State = State(0);

    pub(super) fn new(what: u64, item: u64) -> Self {
        State(what | item << ITEM_SHIFT)
    }

    /// Returns the state in which the same item is something else.
    pub(super) fn but(self, what: u64) -> Self {
        State::new(what, self.0 >> ITEM_SHIFT)
    }

    pub(super) fn what(self) -> u64 {
        self.0 & ((1 << ITEM_SHIFT) - 1)
    }

    pub(super) fn is_of(self, item: u64) -> bool {
        self.0 >> ITEM_SHIFT == item << ITEM_SHIFT >> ITEM_SHIFT
    }

    /// Returns the process that holds the item, if one does.
    pub(super) fn owner(self) -> Option<OwnerId> {
        let bits = u32::try_from(self.what() & !READING).ok()?;
        OwnerId::from_bits(bits)
    }

    pub(super) fn is_held(self) -> bool {
        self.owner().is_some()
    }

    pub(super) fn is_unfinished(self) -> bool {
        self.is_held() || self.what() == AGAIN
    }

    pub(super) fn is_read(self) -> bool {
        self.0 & READING != 0
    }
}

/// All entries that have been used. All tables are mapped before the first entry is looked at. If
/// mapping fails, nothing is known about any entry.
pub(super) struct Entries<'a, R> {
    first: &'a [AtomicU64],
    tables: [Option<Arc<R>>; TABLES],
    pub(super) used: u32,
}

impl<R: Words> Entries<'_, R> {
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, Hold<'_, &R>)> {
        let first = self.first.chunks_exact(FIELDS).map(Hold::First);
        let tables = self.tables.iter().map_while(Option::as_deref).enumerate();
        let tables = tables.flat_map(|(number, table)| {
            (0..TABLE << number).map(move |within| Hold::Table(table, within * FIELDS))
        });
        (0..self.used).zip(first.chain(tables))
    }

    pub(super) fn get(&self, entry: u32) -> Option<Hold<'_, &R>> {
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

impl<'a, M: Memory, O: Owners> RingList<'a, M, O> {
    /// Returns an entry; `None` if there is no such entry.
    pub(super) fn hold(&self, entry: u32) -> io::Result<Option<Hold<'a, Arc<M::Ring>>>> {
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
    pub(super) fn used(&self) -> u32 {
        let holds = &self.layout.holds;
        let tables =
            holds.tables.iter().take_while(|table| table.load(Ordering::Relaxed) != 0).count();
        let there = FIRST + TABLE * ((1 << tables) - 1);
        holds.used.load(Ordering::Acquire).min(u32::try_from(there).unwrap_or(u32::MAX))
    }

    /// Returns the entries that have been used.
    pub(super) fn entries(&self) -> io::Result<Entries<'a, M::Ring>> {
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
    pub(in crate::ipc::queue::ring_list) fn write_hold(
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
}

fn table_bytes(number: usize) -> u64 {
    ((TABLE * FIELDS * 8) << number) as u64
}

#[cfg(test)]
mod tests {
    use std::mem;

    use super::{
        super::{
            super::{
                layout::Layout,
                pieces::tests::{Alone, Places},
            },
            Lost, Returned,
        },
        *,
    };

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
}
