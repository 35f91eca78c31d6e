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

#[cfg_attr(all(test, any(executor_loom, executor_shuttle)), derive(Default))]
#[repr(C)]
pub(super) struct Holds {
    /// A [`Lost`].
    on_lost: AtomicU32,
    /// Entries from here on have never been used.
    used: AtomicU32,
    /// Where a free one is looked for first.
    from: AtomicU32,
    /// Not 0: entries may be `DONE`.
    to_clear: AtomicU32,
    /// Items of the dead of which nobody has been told.
    lost: AtomicU64,
    /// The entry that is being counted as lost, plus one; 0 if none is.
    losing: AtomicU64,
    /// What `lost` is then.
    lost_then: AtomicU64,
    /// Entries that are `AGAIN`.
    again: AtomicU64,
    first: [AtomicU64; FIRST * FIELDS],
    /// Where tables lie, plus one; 0 where there is none.
    tables: [AtomicU64; TABLES],
}

/// An entry.
enum Hold<'a, R> {
    First(&'a [AtomicU64]),
    Table(Arc<R>, usize),
}

impl<R: Words> Hold<'_, R> {
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
    fn hold(&self, entry: u32) -> Option<Hold<'a, M::Ring>> {
        let holds = &self.layout.holds;
        let Some(at) = (entry as usize).checked_sub(FIRST) else {
            let at = entry as usize * FIELDS;
            return Some(Hold::First(&holds.first[at..at + FIELDS]));
        };
        let number = (at / TABLE + 1).ilog2() as usize;
        let within = at - TABLE * ((1 << number) - 1);
        let table = holds.tables.get(number)?.load(Ordering::Acquire).checked_sub(1)?;
        let table = self.memory.table(table, table_bytes(number)).ok()?;
        Some(Hold::Table(table, within * FIELDS))
    }

    /// How many have been used: no more than there are, whatever a word says that anybody may have written.
    fn used(&self) -> u32 {
        let holds = &self.layout.holds;
        let tables = holds.tables.iter().take_while(|table| table.load(Ordering::Relaxed) != 0).count();
        let there = FIRST + TABLE * ((1 << tables) - 1);
        holds.used.load(Ordering::Acquire).min(u32::try_from(there).unwrap_or(u32::MAX))
    }

    /// Those that have been used.
    fn holds(&self) -> impl Iterator<Item = (u32, Hold<'a, M::Ring>)> {
        let chain = *self;
        (0..self.used()).map_while(move |entry| Some((entry, chain.hold(entry)?)))
    }

    /// An entry for an item that is about to be taken. Under the consumers' mutex; nothing has changed then but that there may be
    /// one table more.
    pub(in crate::ipc::queue) fn free_hold(&self, me: OwnerId) -> Result<u32, Failed> {
        let holds = &self.layout.holds;
        let used = self.used();
        let from = holds.from.load(Ordering::Relaxed);
        let look = |from: u32, looks: u32| {
            (0..looks.min(used))
                .map(|step| from.wrapping_add(step) % used)
                .find(|entry| self.hold(*entry).is_some_and(|hold| hold.get(STATE) == 0))
        };
        if let Some(entry) = look(from, LOOKS) {
            holds.from.store(entry.wrapping_add(1), Ordering::Relaxed);
            return Ok(entry);
        }
        holds.from.store(from.wrapping_add(LOOKS), Ordering::Relaxed);
        if self.hold(used).is_none() {
            self.reap();
            if let Some(entry) = look(0, used) {
                return Ok(entry);
            }
            self.add_table(used, me)?;
        }
        Ok(used)
    }

    fn add_table(&self, entry: u32, me: OwnerId) -> Result<(), Failed> {
        let consumers = &self.layout.consumers;
        let number = ((entry as usize).saturating_sub(FIRST) / TABLE + 1).ilog2() as usize;
        let table = self.layout.holds.tables.get(number);
        let table = table.ok_or_else(|| io::Error::other("too many items are not done"))?;
        let (Piece { at, bytes }, claim) = self.new_place(table_bytes(number), me, &self.layout.claims)?;
        let made = self.memory.allocate(at, bytes).and_then(|()| self.memory.table(at, bytes));
        if let Err(error) = made {
            self.shed(claim);
            return Err(error.into());
        }
        consumers.pending_claim.store(claim.0 as u64 + 1, Ordering::Release);
        kill_point!(QueueTableNoted);
        table.store(at.wrapping_add(1), Ordering::Release);
        kill_point!(QueueTableAdded);
        let claim = &self.layout.claims[claim.0];
        claim.bytes.store(0, Ordering::Relaxed);
        consumers.pending_claim.store(0, Ordering::Release);
        self.set_free(claim, 0);
        Ok(())
    }

    /// Writes down that this process has an item, which is to be taken at once. Under the consumers' mutex.
    pub(super) fn write_hold(&self, entry: u32, me: OwnerId, found: &Found<M::Ring>) {
        let Some(hold) = self.hold(entry) else { return };
        let (piece, len) = match found.body {
            FoundBody::Elsewhere { piece, len } if self.keeps_items() => (piece, len),
            _ => (Piece { at: 0, bytes: 0 }, 0),
        };
        for (field, word) in [(NUMBER, found.number), (AT, piece.at), (BYTES, piece.bytes), (LEN, len)] {
            hold.word(field).store(word, Ordering::Relaxed);
        }
        let used = &self.layout.holds.used;
        if used.load(Ordering::Relaxed) == entry {
            used.store(entry.wrapping_add(1), Ordering::Release);
        }
        let state = State::new(u64::from(me.bits()) | READING, found.number);
        hold.word(STATE).store(state.0, Ordering::Release);
        kill_point!(QueueItemHeld);
    }

    /// Its bytes have been read, or are not needed.
    pub(in crate::ipc::queue) fn has_read(&self, held: Held, me: OwnerId) {
        if let Some(hold) = self.hold(held.entry) {
            let reading = State::new(u64::from(me.bits()) | READING, held.number);
            hold.swap(reading, reading.but(me.bits().into()));
        }
    }

    // Done.

    /// An item of this process's is done; `false` if somebody else has said so, or it is not this process's.
    pub(in crate::ipc::queue) fn is_done(&self, held: Held, me: OwnerId) -> bool {
        let Some(hold) = self.hold(held.entry) else { return false };
        let state = hold.state();
        state.is_of(held.number)
            && hold.get(NUMBER) == held.number
            && state.owner() == Some(me)
            && self.end(&hold, state)
    }

    /// The oldest item that another process has is done, which it has handed to this one. None if there is none.
    pub(in crate::ipc::queue) fn is_done_for_another(&self, me: OwnerId) -> Option<Held> {
        loop {
            // Each state is looked at once: what is ended is what was chosen, or nothing.
            let is_anothers =
                |state: State| state.owner().is_some_and(|owner| owner != me) && !state.is_read();
            let seen = self.holds().map(|(entry, hold)| {
                let state = hold.state();
                (entry, state, hold.get(NUMBER), hold)
            });
            let held = seen.filter(|(_, state, ..)| is_anothers(*state));
            let (entry, state, number, hold) = held.min_by_key(|(_, _, number, _)| *number)?;
            if self.end(&hold, state) {
                return Some(Held { entry, number });
            }
        }
    }

    fn end(&self, hold: &Hold<'_, M::Ring>, state: State) -> bool {
        let over = hold.over(state);
        let ended = hold.swap(state, over);
        if ended && over != State::FREE {
            self.layout.holds.to_clear.store(1, Ordering::Release);
        }
        kill_point!(QueueItemDone);
        ended
    }

    pub(in crate::ipc::queue) fn is_to_be_cleared(&self) -> bool {
        self.layout.holds.to_clear.load(Ordering::Relaxed) != 0
    }

    /// Gives back the pieces of items that are done. Under the consumers' mutex.
    pub(in crate::ipc::queue) fn clear(&self, me: OwnerId) {
        let (holds, consumers) = (&self.layout.holds, &self.layout.consumers);
        if holds.to_clear.swap(0, Ordering::AcqRel) == 0 {
            return;
        }
        for (_, hold) in self.holds().filter(|(_, hold)| hold.state().what() == DONE) {
            let Some((piece, _)) = hold.piece() else {
                hold.word(STATE).store(0, Ordering::Release);
                continue;
            };
            let Some(claim) = self.claim(me, self.claims_of_pieces()) else {
                holds.to_clear.store(1, Ordering::Relaxed);
                return;
            };
            consumers.pending_claim.store(claim.0 as u64 + 1, Ordering::Release);
            self.note(&claim, piece);
            kill_point!(QueueDonePieceNoted);
            hold.word(STATE).store(0, Ordering::Release);
            kill_point!(QueueDoneCleared);
            consumers.pending_claim.store(0, Ordering::Release);
            self.give_back(claim);
        }
    }

    /// Whether a place is that of a table, or of an item that is written down here.
    pub(super) fn is_place_of_holds(&self, at: u64) -> bool {
        self.layout.holds.tables.iter().any(|table| table.load(Ordering::Relaxed) == at.wrapping_add(1))
            || self.holds().any(|(_, hold)| hold.state().what() == DONE && hold.get(AT) == at)
    }

    // Whether all is done.

    /// Items that were put and are not done: as many as there were at some moment of this call, or, where others put and get without
    /// a pause, a number between those of two moments; and never 0 if there always was one.
    pub(in crate::ipc::queue) fn unfinished(&self) -> u64 {
        let mut seen = 0;
        for _ in 0..LOOKS_AT_ALL {
            let counts = self.counts();
            let waiting = counts.waiting();
            seen = waiting
                .saturating_add(self.holds().filter(|(_, hold)| hold.state().is_unfinished()).count() as u64);
            if self.counts() == counts {
                return seen;
            }
        }
        // What was put or got meanwhile was not done then.
        seen.max(1)
    }

    /// Whether there are none, and no loss that is to be told.
    ///
    /// One item after the other may be put and got, each before the one before it is done, so that there always is one: in a ring or
    /// an entry that was looked at before it came there. So it is looked whether the counts are still the same: no item changes its
    /// entry, so without one that is put or got those that are not done only become fewer.
    pub(in crate::ipc::queue) fn is_finished(&self) -> bool {
        for _ in 0..LOOKS_AT_ALL {
            let counts = self.counts();
            if counts.waiting() > 0 || self.holds().any(|(_, hold)| hold.state().is_unfinished()) {
                return false;
            }
            if self.counts() == counts {
                // Last: a loss is counted before it is nobody's item any more.
                return self.layout.holds.lost.load(Ordering::Acquire) == 0;
            }
        }
        false
    }

    /// Whether an item is in this process's hands.
    pub(in crate::ipc::queue) fn is_held_by(&self, held: Held, me: OwnerId) -> bool {
        let is_it =
            |hold: Hold<'_, M::Ring>| hold.get(NUMBER) == held.number && hold.state().owner() == Some(me);
        self.hold(held.entry).is_some_and(is_it)
    }

    /// As [`is_finished`](Self::is_finished), asked when this one was done: where there are many, the next one is near.
    pub(in crate::ipc::queue) fn was_last(&self, held: Held) -> bool {
        // Without those that can be got again, of which one too many is counted while somebody looks for the dead: nobody would ring.
        if self.counts().waiting() > 0 {
            return false;
        }
        let used = self.used();
        let is_unfinished = |entry: u32| self.hold(entry).is_some_and(|hold| hold.state().is_unfinished());
        let near = (1..=used.max(1)).any(|step| {
            let (before, after) = (held.entry.checked_sub(step), held.entry.saturating_add(step));
            before.is_some_and(is_unfinished) || after < used && is_unfinished(after)
        });
        !near
    }

    /// Whether other processes have items that may be got again, and this one has none: it is not waited for then.
    pub(in crate::ipc::queue) fn others_hold(&self, me: OwnerId) -> bool {
        let mut others = false;
        for (_, hold) in self.holds() {
            match hold.state().owner() {
                Some(owner) if owner == me => return false,
                Some(_) => others = true,
                None => {}
            }
        }
        others
    }

    // The dead.

    /// Looks whether processes have died that had items. Under the consumers' mutex. How many can be got again now.
    pub(in crate::ipc::queue) fn reap(&self) -> u64 {
        let holds = &self.layout.holds;
        let mut requeued = 0;
        // Who was asked about already: a system call for each process, and not for each item.
        let mut asked: Vec<(OwnerId, bool)> = Vec::new();
        for (entry, hold) in self.holds() {
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
        requeued
    }

    fn lose(&self, entry: u32, hold: &Hold<'_, M::Ring>, from: State) {
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
            self.forget_unless_kept(hold);
        }
    }

    fn forget_unless_kept(&self, hold: &Hold<'_, M::Ring>) {
        if self.on_lost() == Lost::Kept && hold.piece().is_some() {
            return;
        }
        let over = hold.over(hold.state());
        hold.word(STATE).store(over.0, Ordering::Release);
        if over != State::FREE {
            self.layout.holds.to_clear.store(1, Ordering::Release);
        }
    }

    /// How many items were lost since it was asked last. Under the consumers' mutex.
    pub(in crate::ipc::queue) fn take_lost(&self) -> u64 {
        self.layout.holds.lost.swap(0, Ordering::AcqRel)
    }

    /// The oldest item that can be got again, or that was lost and kept: it is this process's then, unless `prepare` fails, which is
    /// told where it lies and how long it is. Under the consumers' mutex.
    pub(in crate::ipc::queue) fn take_again(
        &self,
        me: OwnerId,
        lost: bool,
        prepare: impl FnOnce(Piece, u64) -> io::Result<()>,
    ) -> io::Result<Option<(Held, Piece, u64)>> {
        let holds = &self.layout.holds;
        if !lost && self.again() == 0 {
            return Ok(None);
        }
        let what = if lost { LOST } else { AGAIN };
        let entries = self.holds().filter(|(_, hold)| hold.state().what() == what);
        let Some((entry, hold)) = entries.min_by_key(|(_, hold)| hold.get(NUMBER)) else { return Ok(None) };
        let Some((piece, len)) = hold.piece() else { return Ok(None) };
        prepare(piece, len)?;
        let state = hold.state();
        if state.what() != what || !hold.swap(state, state.but(u64::from(me.bits()) | READING)) {
            return Ok(None);
        }
        kill_point!(QueueTakenAgain);
        if !lost {
            let again = holds.again.load(Ordering::Relaxed);
            holds.again.store(again.saturating_sub(1), Ordering::Release);
        }
        Ok(Some((Held { entry, number: hold.get(NUMBER) }, piece, len)))
    }

    /// What a consumer that died in the middle has left. `taken`: how many items are taken.
    pub(super) fn repair_holds(&self, taken: u64) {
        let holds = &self.layout.holds;
        let mut again: u64 = 0;
        for (_, hold) in self.holds() {
            let state = hold.state();
            if state.is_held() && hold.get(NUMBER) >= taken {
                // Its item is in the queue still, and so is the piece.
                hold.word(STATE).store(0, Ordering::Release);
            } else if state.what() == AGAIN {
                again += 1;
            }
        }
        let losing = holds.losing.load(Ordering::Acquire);
        if let Some(hold) = losing.checked_sub(1).and_then(|entry| self.hold(u32::try_from(entry).ok()?)) {
            let lost = holds.lost_then.load(Ordering::Relaxed);
            // It is lost, and counted. Or it is there still, and found once more; or somebody has said that it is done.
            let is_lost = hold.state().what() == LOST;
            holds.lost.store(if is_lost { lost } else { lost.wrapping_sub(1) }, Ordering::Release);
        }
        holds.losing.store(0, Ordering::Release);
        for (_, hold) in self.holds().filter(|(_, hold)| hold.state().what() == LOST) {
            self.forget_unless_kept(&hold);
        }
        holds.again.store(again, Ordering::Release);
        holds.to_clear.store(1, Ordering::Release);
    }
}

fn table_bytes(number: usize) -> u64 {
    ((TABLE * FIELDS * 8) << number) as u64
}

impl Held {
    pub(super) fn new(entry: u32, number: u64) -> Self {
        Held { entry, number }
    }
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
        let is_done = chain.is_done_for_another(Alone.me()).is_some();
        chain.repair_holds(6);
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
        let (me, hold) = (Alone.me(), Hold::First(&layout.holds.first[..FIELDS]));
        let of = |item| State::new(me.bits().into(), item);
        let hold: Hold<'_, Places> = hold;
        // Somebody has looked at the sixth, and is about to end it. The seventh came there.
        let (seen, now) = (of(6), of(7));
        hold.word(STATE).store(now.0, Ordering::Relaxed);
        hold.word(NUMBER).store(7, Ordering::Relaxed);
        assert!(!chain.end(&hold, seen));
        assert!(!chain.is_done(Held::new(0, 6), me));
        // As many items later as the word has numbers for, the number itself says it.
        assert!(!chain.is_done(Held::new(0, 7 + (1 << 29)), me));
        assert!(chain.is_done(Held::new(0, 7), me));
        assert_eq!(hold.get(STATE), 0);
    }
}
