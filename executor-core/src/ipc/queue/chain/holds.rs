//! The items of a [`JoinableQueue`](crate::JoinableQueue) that were got and are not done, one entry each.
//!
//! ```text
//!              get                            done
//!  (free) ───────────► owner, reading ► owner ─────► (free), or DONE while there is a piece to give back
//!                         │ its process has died
//!                         ├──► (free), and counted in `lost`
//!                         ├──► LOST,   and counted in `lost`      until somebody asks for it
//!                         └──► AGAIN                              until somebody gets it
//! ```
//!
//! # One store is the act
//!
//! What an entry's word says is so; nothing else counts items that are held. An entry is written before its item is taken, by
//! one that has the consumers' mutex, so a process that dies in between has left an entry of an item that is in the queue still:
//! its number says so, and whoever repairs clears it. That an item is done is a compare-and-swap without any mutex: to say so
//! neither waits nor fails.
//!
//! `lost` and `again` follow from the entries. `losing` says which entry is being counted, and what the count is then, so that
//! whoever repairs can end it without counting twice.
//!
//! # Pieces
//!
//! To be got again, or asked for, an item must outlive who has got it. So in a queue of which that is wanted ([`OnLost`](crate::OnLost)) every
//! item lies in a piece of its own, which its record names, and then its entry. Who reads it marks the entry as being read: others
//! may say that an item is done which they have not got, but not one that is being read.
//!
//! # Entries
//!
//! The first ones lie in the queue's words, more of them in tables in the file, each twice as large as the one before. Before
//! there is a new table it is looked for those of the dead, so a table is as large as what is held at a time.
//!
//! A table that cannot be mapped is not one that is missing: whoever looks at entries maps all tables first ([`Entries`]), and whoever
//! takes an item has mapped the table of its entry before ([`FreeHold`]).

use std::{cmp::Reverse, collections::BinaryHeap, ops::Deref};

use super::*;

/// What becomes of an item whose process has died before it was done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u32)]
pub(in crate::ipc::queue) enum Lost {
    #[default]
    Counted = 0,
    Kept = 1,
    Requeued = 2,
}

/// Words of an entry.
const STATE: usize = 0;
const NUMBER: usize = 1;
const AT: usize = 2;
const BYTES: usize = 3;
const LEN: usize = 4;
const FIELDS: usize = 8;

/// Entries in the queue's words. More: each queue takes so much. Less: more queues need a table.
///
/// Where processes are made to die at each step there are few, so that they come to tables as well.
const FIRST: usize = if MODEL || cfg!(feature = "kill-points") { 4 } else { 24 };
/// Entries in the first table: 64 KiB.
const TABLE: usize = 1024;
/// Tables: so that there can be entries for a thousand million items.
const TABLES: usize = 20;
/// Entries that are looked at for a free one before another one is used for the first time.
const LOOKS: u32 = 64;
/// Looks at all entries for whether all is done, while others put and get. More: who asks is kept by those, and by whoever garbles
/// their counts. Less: it is asked again for what is finished, after [`RECHECK`](crate::sync::raw::RECHECK).
const LOOKS_AT_ALL: u32 = 64;

/// Beside the owner's number in `STATE`.
const READING: u64 = 1 << 32;
const AGAIN: u64 = 1 << 33;
const LOST: u64 = 2 << 33;
const DONE: u64 = 3 << 33;
/// Above these, the lowest bits of the item's number: so whoever swaps the word swaps it for the item that was looked at, and not for
/// another one of the same owner, unless that comes 2^29 items later.
const ITEM_SHIFT: u32 = 35;

/// In `to_clear`.
const MANY: u32 = u32::MAX;

#[cfg_attr(all(test, any(executor_loom, executor_shuttle)), derive(Default))]
#[repr(C)]
pub(super) struct Holds {
    /// A [`Lost`].
    on_lost: AtomicU32,
    /// Entries from here on have never been used.
    used: AtomicU32,
    /// Where a free one is looked for first.
    from: AtomicU32,
    /// The entry that is `DONE`, plus one; [`MANY`] if there may be several; 0 if there is none.
    to_clear: AtomicU32,
    /// Items of the dead of which nobody has been told.
    lost: AtomicU64,
    /// The entry that is being counted as lost, plus one; 0 if none is.
    losing: AtomicU64,
    /// What `lost` is then.
    lost_then: AtomicU64,
    /// Entries that are `AGAIN`.
    again: AtomicU64,
    /// Counts how often entries have become `AGAIN` or `LOST`: as long as it is the same, nobody has to look for more of them.
    returns: AtomicU64,
    first: [AtomicU64; FIRST * FIELDS],
    /// Where tables lie, plus one; 0 where there is none.
    tables: [AtomicU64; TABLES],
}

/// An entry: in the queue's words, or in a table that is mapped, at that word of it.
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

    /// What it is when its item is no more: it is free at once, if there is no piece to give back.
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

    /// The same item, with which something else is.
    fn but(self, what: u64) -> Self {
        State::new(what, self.0 >> ITEM_SHIFT)
    }

    fn what(self) -> u64 {
        self.0 & ((1 << ITEM_SHIFT) - 1)
    }

    fn is_of(self, item: u64) -> bool {
        self.0 >> ITEM_SHIFT == item << ITEM_SHIFT >> ITEM_SHIFT
    }

    /// Whose it is, if it is in somebody's hands.
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

/// All entries that have been used. Their tables were mapped before the first one is looked at: if that fails, nothing is known of
/// any of them.
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

/// The word at which an entry begins: of the queue's, or of that table.
fn place_of(entry: u32) -> Result<usize, (usize, usize)> {
    let Some(at) = (entry as usize).checked_sub(FIRST) else { return Ok(entry as usize * FIELDS) };
    let number = (at / TABLE + 1).ilog2() as usize;
    Err((number, (at - TABLE * ((1 << number) - 1)) * FIELDS))
}

/// An entry that nobody has, for an item that is about to be taken. It can be written to.
pub(in crate::ipc::queue) struct FreeHold<'a, R> {
    entry: u32,
    hold: Hold<'a, Arc<R>>,
}

/// Entries that were to be taken again when this process looked last, the oldest item first, so that it does not look at all of them for
/// each item. What an entry's word says is so nevertheless: another process may have taken it.
#[derive(Default)]
pub(in crate::ipc::queue) struct Returned {
    /// What [`Holds::returns`] was then.
    seen: Option<u64>,
    entries: BinaryHeap<Reverse<(u64, u32)>>,
}

/// An item in this process's hands: its entry, and which item that is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::ipc::queue) struct Held {
    entry: u32,
    number: u64,
}

impl<'a, M: Memory, O: Owners> Chain<'a, M, O> {
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

    /// Whether items must outlive who has got them.
    pub(in crate::ipc::queue) fn keeps_items(&self) -> bool {
        self.on_lost() != Lost::Counted
    }

    pub(in crate::ipc::queue) fn requeues(&self) -> bool {
        self.on_lost() == Lost::Requeued
    }

    /// Items that can be got again.
    pub(super) fn again(&self) -> u64 {
        self.layout.holds.again.load(Ordering::Acquire)
    }

    // Entries.

    /// `None` if there is no such entry.
    fn hold(&self, entry: u32) -> io::Result<Option<Hold<'a, Arc<M::Ring>>>> {
        match place_of(entry) {
            Ok(at) => Ok(Some(Hold::First(&self.layout.holds.first[at..at + FIELDS]))),
            Err((number, at)) => Ok(self.table(number)?.map(|table| Hold::Table(table, at))),
        }
    }

    /// `None` if there is no such table.
    fn table(&self, number: usize) -> io::Result<Option<Arc<M::Ring>>> {
        let word = self.layout.holds.tables.get(number).map_or(0, |table| table.load(Ordering::Acquire));
        match word.checked_sub(1) {
            None => Ok(None),
            Some(at) => self.memory.table(at, table_bytes(number)).map(Some),
        }
    }

    /// How many have been used: no more than there are, whatever a word says that anybody may have written.
    fn used(&self) -> u32 {
        let holds = &self.layout.holds;
        let tables = holds.tables.iter().take_while(|table| table.load(Ordering::Relaxed) != 0).count();
        let there = FIRST + TABLE * ((1 << tables) - 1);
        holds.used.load(Ordering::Acquire).min(u32::try_from(there).unwrap_or(u32::MAX))
    }

    /// Those that have been used.
    fn entries(&self) -> io::Result<Entries<'a, M::Ring>> {
        let used = self.used();
        let mut tables = [const { None }; TABLES];
        let numbers = (0..TABLES).take_while(|number| FIRST + TABLE * ((1 << number) - 1) < used as usize);
        for number in numbers {
            tables[number] = Some(self.table(number)?.ok_or_else(garbled)?);
        }
        Ok(Entries { first: &self.layout.holds.first, tables, used })
    }

    /// An entry for an item that is about to be taken. Under the consumers' mutex; nothing has changed then but that there may be
    /// one table more.
    pub(in crate::ipc::queue) fn free_hold(&self, me: OwnerId) -> Result<FreeHold<'a, M::Ring>, Failed> {
        let holds = &self.layout.holds;
        let used = self.used();
        let from = holds.from.load(Ordering::Relaxed);
        let look = |from: u32, looks: u32| {
            for step in 0..looks.min(used) {
                let entry = from.wrapping_add(step) % used;
                let Some(hold) = self.hold(entry)? else { continue };
                match hold.state() {
                    State::FREE => return Ok(Some(FreeHold { entry, hold })),
                    // Who has said so may have died before it said where.
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
        holds.from.store(from.wrapping_add(LOOKS), Ordering::Relaxed);
        if let Some(hold) = self.hold(used)? {
            return Ok(FreeHold { entry: used, hold });
        }
        self.reap()?;
        if let Some(free) = look(0, used)? {
            return Ok(free);
        }
        let table = self.add_table(used, me)?;
        let Err((_, at)) = place_of(used) else { return Err(garbled().into()) };
        Ok(FreeHold { entry: used, hold: Hold::Table(table, at) })
    }

    /// The table in which that entry is, which is the first one that there is not yet.
    fn add_table(&self, entry: u32, me: OwnerId) -> Result<Arc<M::Ring>, Failed> {
        let consumers = &self.layout.consumers;
        let Err((number, _)) = place_of(entry) else { return Err(garbled().into()) };
        let word = self.layout.holds.tables.get(number);
        let word = word.ok_or_else(|| io::Error::other("too many items are not done"))?;
        if word.load(Ordering::Acquire) != 0 {
            // There is one, with entries of items.
            return Err(garbled().into());
        }
        let (Piece { at, bytes }, claim) = self.new_place(table_bytes(number), me, &self.layout.claims)?;
        let made = self.memory.allocate(at, bytes).and_then(|()| self.memory.table(at, bytes));
        let table = match made {
            Ok(table) => table,
            Err(error) => {
                self.shed(claim);
                return Err(error.into());
            }
        };
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

    /// Writes down that this process has an item, which is to be taken at once. Under the consumers' mutex.
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
        for (field, word) in [(NUMBER, found.number), (AT, piece.at), (BYTES, piece.bytes), (LEN, len)] {
            hold.word(field).store(word, Ordering::Relaxed);
        }
        let used = &self.layout.holds.used;
        if used.load(Ordering::Relaxed) == *entry {
            used.store(entry.wrapping_add(1), Ordering::Release);
        }
        let state = State::new(u64::from(me.bits()) | READING, found.number);
        hold.word(STATE).store(state.0, Ordering::Release);
        kill_point!(QueueItemHeld);
        Held { entry: *entry, number: found.number }
    }

    /// Its bytes have been read, or are not needed.
    pub(in crate::ipc::queue) fn has_read(&self, held: Held, me: OwnerId) {
        // The table was mapped when the item was taken, and is kept.
        if let Ok(Some(hold)) = self.hold(held.entry) {
            let reading = State::new(u64::from(me.bits()) | READING, held.number);
            hold.swap(reading, reading.but(me.bits().into()));
        }
    }

    // Done.

    /// An item of this process's is done; `false` if somebody else has said so, or it is not this process's.
    pub(in crate::ipc::queue) fn is_done(&self, held: Held, me: OwnerId) -> bool {
        // The table was mapped when the item was taken, and is kept.
        let Ok(Some(hold)) = self.hold(held.entry) else { return false };
        let state = hold.state();
        state.is_of(held.number)
            && hold.get(NUMBER) == held.number
            && state.owner() == Some(me)
            && self.end(held.entry, &hold, state)
    }

    /// The oldest item that another process has is done, which it has handed to this one. None if there is none.
    pub(in crate::ipc::queue) fn is_done_for_another(&self, me: OwnerId) -> io::Result<Option<Held>> {
        let entries = self.entries()?;
        loop {
            // Each state is looked at once: what is ended is what was chosen, or nothing.
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

    /// Gives back the pieces of items that are done. Under the consumers' mutex. If it is an error, they are to be given back still.
    pub(in crate::ipc::queue) fn clear(&self, me: OwnerId) -> io::Result<()> {
        let to_clear = &self.layout.holds.to_clear;
        let noted = to_clear.swap(0, Ordering::AcqRel);
        let cleared = match noted {
            0 => Ok(true),
            // Mapped here, and not among all, so that it costs the same whatever is held beside it.
            one if one != MANY => {
                self.hold(one - 1).map(|hold| hold.is_none_or(|hold| self.clear_hold(&hold, me)))
            }
            _ => self.entries().map(|entries| entries.iter().all(|(_, hold)| self.clear_hold(&hold, me))),
        };
        if !matches!(cleared, Ok(true)) {
            to_clear.store(MANY, Ordering::Release);
        }
        cleared.map(drop)
    }

    /// `false` if it is to be cleared and there is no claim for that.
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
        consumers.pending_claim.store(claim.0 as u64 + 1, Ordering::Release);
        self.note(&claim, piece);
        kill_point!(QueueDonePieceNoted);
        hold.word(STATE).store(0, Ordering::Release);
        kill_point!(QueueDoneCleared);
        consumers.pending_claim.store(0, Ordering::Release);
        self.give_back(claim);
        true
    }

    /// Whether a place is that of a table, or of an item that is written down here.
    pub(super) fn is_place_of_holds(&self, at: u64) -> io::Result<bool> {
        let tables = &self.layout.holds.tables;
        Ok(tables.iter().any(|table| table.load(Ordering::Relaxed) == at.wrapping_add(1))
            || self.entries()?.iter().any(|(_, hold)| hold.state().what() == DONE && hold.get(AT) == at))
    }

    // Whether all is done.

    /// Items that were put and are not done: as many as there were at some moment of this call, or, where others put and get without
    /// a pause, a number between those of two moments; and never 0 if there always was one. Where entries cannot be looked at, no
    /// fewer than there are.
    pub(in crate::ipc::queue) fn unfinished(&self) -> u64 {
        let mut seen = 0;
        for _ in 0..LOOKS_AT_ALL {
            let counts = self.counts();
            let waiting = counts.waiting();
            let held = match self.entries() {
                Ok(entries) => entries.iter().filter(|(_, hold)| hold.state().is_unfinished()).count() as u64,
                Err(_) => self.used().into(),
            };
            seen = waiting.saturating_add(held);
            if self.counts() == counts {
                return seen;
            }
        }
        // What was put or got meanwhile was not done then.
        seen.max(1)
    }

    /// Whether there are none, and no loss that is to be told. `false` also where entries cannot be looked at: to be asked again.
    ///
    /// One item after the other may be put and got, each before the one before it is done, so that there always is one: in a ring or
    /// an entry that was looked at before it came there. So it is looked whether the counts are still the same: no item changes its
    /// entry, so without one that is put or got those that are not done only become fewer.
    pub(in crate::ipc::queue) fn is_finished(&self) -> bool {
        for _ in 0..LOOKS_AT_ALL {
            let counts = self.counts();
            let Ok(entries) = self.entries() else { return false };
            if counts.waiting() > 0 || entries.iter().any(|(_, hold)| hold.state().is_unfinished()) {
                return false;
            }
            if self.counts() == counts {
                // Last: a loss is counted before it is nobody's item any more.
                return self.layout.holds.lost.load(Ordering::Acquire) == 0;
            }
        }
        false
    }

    /// Whether an item is in this process's hands. Its table is mapped then.
    pub(in crate::ipc::queue) fn is_held_by(&self, held: Held, me: OwnerId) -> bool {
        let hold = self.hold(held.entry).ok().flatten();
        hold.is_some_and(|hold| hold.get(NUMBER) == held.number && hold.state().owner() == Some(me))
    }

    /// As [`is_finished`](Self::is_finished), asked when this one was done: where there are many, the next one is near.
    pub(in crate::ipc::queue) fn was_last(&self, held: Held) -> bool {
        // Without those that can be got again, of which one too many is counted while somebody looks for the dead: nobody would ring.
        if self.counts().waiting() > 0 {
            return false;
        }
        // To say it once too often wakes somebody who looks.
        let Ok(entries) = self.entries() else { return true };
        let is_unfinished = |entry: u32| entries.get(entry).is_some_and(|hold| hold.state().is_unfinished());
        let near = (1..=entries.used.max(1)).any(|step| {
            let (before, after) = (held.entry.checked_sub(step), held.entry.saturating_add(step));
            before.is_some_and(is_unfinished) || is_unfinished(after)
        });
        !near
    }

    /// Whether other processes have items that may be got again, and this one has none: it is not waited for then.
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

    /// Looks whether processes have died that had items. Under the consumers' mutex. How many can be got again now.
    pub(in crate::ipc::queue) fn reap(&self) -> io::Result<u64> {
        let holds = &self.layout.holds;
        let mut requeued = 0;
        // Who was asked about already: a system call for each process, and not for each item.
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
                    // In this order: see `is_finished`.
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
        // Also where it is not kept: whoever repairs tells by this whether it was lost, or somebody has said that it is done.
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

    /// How many items were lost since it was asked last. Under the consumers' mutex.
    pub(in crate::ipc::queue) fn take_lost(&self) -> u64 {
        self.layout.holds.lost.swap(0, Ordering::AcqRel)
    }

    /// The oldest item that can be got again, or that was lost and kept: it is this process's then, unless `prepare` fails, which is
    /// told where it lies and how long it is. Under the consumers' mutex. `returned`: this process's, of the same kind of items.
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
        if returned.seen != Some(now) {
            let entries = self.entries()?;
            let those = entries.iter().filter(|(_, hold)| hold.state().what() == what);
            returned.entries = those.map(|(entry, hold)| Reverse((hold.get(NUMBER), entry))).collect();
            returned.seen = Some(now);
        }
        while let Some(&Reverse((number, entry))) = returned.entries.peek() {
            if let Some(hold) = self.hold(entry)?
                && let state = hold.state()
                && state.what() == what
                && hold.get(NUMBER) == number
                && let Some((piece, len)) = hold.piece()
            {
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

    /// What a consumer that died in the middle has left. `taken`: how many items are taken.
    pub(super) fn repair_holds(&self, taken: u64) -> io::Result<()> {
        let holds = &self.layout.holds;
        let entries = self.entries()?;
        let mut again: u64 = 0;
        for (_, hold) in entries.iter() {
            let state = hold.state();
            if state.is_held() && hold.get(NUMBER) >= taken {
                // Its item is in the queue still, and so is the piece.
                hold.word(STATE).store(0, Ordering::Release);
            } else if state.what() == AGAIN {
                again += 1;
            }
        }
        let losing = holds.losing.load(Ordering::Acquire);
        let losing = losing.checked_sub(1).and_then(|entry| u32::try_from(entry).ok());
        if let Some(hold) = losing.and_then(|entry| entries.get(entry)) {
            let lost = holds.lost_then.load(Ordering::Relaxed);
            // It is lost, and counted. Or it is there still, and found once more; or somebody has said that it is done.
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
        super::tests::{Alone, Places},
        *,
    };

    /// An item that was got by a process that has died while it was counted as lost, with this state: how many are lost, if another
    /// process says then that an item is done, and somebody repairs.
    fn lost_of_one(on_lost: Lost, what: u64) -> (bool, u64) {
        // SAFETY: zero is a value, says `SharedLayout`.
        let layout: Layout = unsafe { mem::zeroed() };
        let chain = Chain { layout: &layout, memory: &Places, owners: &Alone };
        chain.set_on_lost(on_lost);
        let holds = &layout.holds;
        holds.first[STATE].store(State::new(what, 5).0, Ordering::Relaxed);
        holds.first[NUMBER].store(5, Ordering::Relaxed);
        holds.used.store(1, Ordering::Relaxed);
        for (word, number) in [(&holds.losing, 1), (&holds.lost_then, 1), (&holds.lost, 1)] {
            word.store(number, Ordering::Relaxed);
        }
        let is_done = chain.is_done_for_another(Alone.me()).unwrap().is_some();
        chain.repair_holds(6).unwrap();
        assert_eq!(holds.first[STATE].load(Ordering::Relaxed), 0);
        (is_done, chain.take_lost())
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
        let chain = Chain { layout: &layout, memory: &Places, owners: &Alone };
        let me = Alone.me();
        let of = |item| State::new(me.bits().into(), item);
        let held = |number| Held { entry: 0, number };
        let hold: Hold<'_, &Places> = Hold::First(&layout.holds.first[..FIELDS]);
        // Somebody has looked at the sixth, and is about to end it. The seventh came there.
        let (seen, now) = (of(6), of(7));
        hold.word(STATE).store(now.0, Ordering::Relaxed);
        hold.word(NUMBER).store(7, Ordering::Relaxed);
        assert!(!chain.end(0, &hold, seen));
        assert!(!chain.is_done(held(6), me));
        // As many items later as the word has numbers for, the number itself says it.
        assert!(!chain.is_done(held(7 + (1 << 29)), me));
        assert!(chain.is_done(held(7), me));
        assert_eq!(hold.get(STATE), 0);
    }

    #[test]
    fn a_table_that_cannot_be_mapped_is_not_one_without_items() {
        // SAFETY: zero is a value, says `SharedLayout`.
        let layout: Layout = unsafe { mem::zeroed() };
        // Of `Places` no table can be mapped.
        let chain = Chain { layout: &layout, memory: &Places, owners: &Alone };
        let (me, holds) = (Alone.me(), &layout.holds);
        chain.begin(0).unwrap();
        chain.set_on_lost(Lost::Requeued);
        holds.tables[0].store((1 << 20) + 1, Ordering::Relaxed);
        holds.used.store(FIRST as u32 + 3, Ordering::Relaxed);
        holds.again.store(1, Ordering::Relaxed);
        holds.to_clear.store(MANY, Ordering::Relaxed);
        for first in holds.first.chunks(FIELDS) {
            first[STATE].store(State::new(me.bits().into(), 1).0, Ordering::Relaxed);
        }
        assert!(!chain.is_finished());
        assert!(chain.unfinished() >= FIRST as u64 + 3);
        assert!(matches!(chain.free_hold(me), Err(Failed::Io(_))));
        assert!(matches!(chain.add_table(FIRST as u32, me), Err(Failed::Io(_))));
        assert_eq!(holds.tables[0].load(Ordering::Relaxed), (1 << 20) + 1, "another table is in its place");
        assert!(chain.take_again(me, false, &mut Returned::default(), |_, _| Ok(())).is_err());
        assert!(chain.reap().is_err());
        assert!(chain.others_hold(me).is_err());
        assert!(chain.is_done_for_another(me).is_err());
        assert!(chain.clear(me).is_err() && chain.is_to_be_cleared());
        assert!(chain.repair_holds(0).is_err() && chain.again() == 1);
        assert!(chain.is_place_of_holds(0).is_err());
    }

    #[test]
    fn of_items_that_came_back_the_oldest_is_next_also_when_others_take_some_or_more_come() {
        // SAFETY: zero is a value, says `SharedLayout`.
        let layout: Layout = unsafe { mem::zeroed() };
        let chain = Chain { layout: &layout, memory: &Places, owners: &Alone };
        let (me, holds) = (Alone.me(), &layout.holds);
        let come_back = |entry: usize, number: u64| {
            let words = &holds.first[entry * FIELDS..];
            for (field, word) in [(NUMBER, number), (BYTES, 1), (STATE, State::new(AGAIN, number).0)] {
                words[field].store(word, Ordering::Relaxed);
            }
            holds.used.fetch_max(entry as u32 + 1, Ordering::Relaxed);
            holds.again.fetch_add(1, Ordering::Relaxed);
            holds.returns.fetch_add(1, Ordering::Relaxed);
        };
        let next = |returned: &mut Returned| {
            let taken = chain.take_again(me, false, returned, |_, _| Ok(())).unwrap();
            taken.map(|(held, ..)| held.number)
        };
        let (mut one, mut other) = Default::default();
        come_back(0, 7);
        come_back(1, 5);
        come_back(2, 6);
        assert_eq!(next(&mut one), Some(5));
        assert_eq!(next(&mut other), Some(6));
        // In the entry of one that was taken, and is done.
        come_back(1, 4);
        assert_eq!(next(&mut other), Some(4));
        let refused = chain.take_again(me, false, &mut one, |_, _| Err(io::ErrorKind::OutOfMemory.into()));
        assert!(refused.is_err());
        assert_eq!((next(&mut one), next(&mut other), next(&mut one)), (Some(7), None, None));
        assert_eq!(chain.again(), 0);
    }
}
