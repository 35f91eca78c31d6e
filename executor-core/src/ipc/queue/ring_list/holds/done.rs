//! Items that are done: how they are marked, how their pieces are given back, and whether all items
//! are done.

use std::{io, ops::Deref};

use super::{
    super::{Memory, RingList, Words},
    Held, MANY,
    entry::{AT, DONE, Hold, NUMBER, STATE, State},
};
use crate::os::{
    liveness::{OwnerId, Owners},
    std_or_model::atomic::Ordering,
};

/// Maximum number of passes over all entries to find out whether all items are done, while others
/// put and get. A higher value lets those others, or a process that garbles their counts, keep the
/// caller longer. A lower value reports a finished queue as unfinished more often, and the caller
/// asks again only after [`RECHECK`](crate::sync::raw::RECHECK).
const LOOKS_AT_ALL: u32 = 64;

impl<M: Memory, O: Owners> RingList<'_, M, O> {
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

    pub(super) fn note_to_clear(&self, entry: u32) {
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
    pub(in crate::ipc::queue::ring_list) fn is_place_of_holds(&self, at: u64) -> io::Result<bool> {
        let tables = &self.layout.holds.tables;
        Ok(tables.iter().any(|table| table.load(Ordering::Relaxed) == at.wrapping_add(1))
            || self
                .entries()?
                .iter()
                .any(|(_, hold)| hold.state().what() == DONE && hold.get(AT) == at))
    }

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
            entry::FIELDS,
        },
        *,
    };

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
}
