//! Items of dead processes: they are found, lost or kept, and taken again.

use std::{cmp::Reverse, collections::BinaryHeap, io, ops::Deref};

use super::{
    super::{Memory, Piece, RingList, Words},
    Held, Lost, MANY,
    entry::{AGAIN, Hold, LOST, NUMBER, READING, STATE, State},
};
use crate::os::{
    liveness::{OwnerId, Owners},
    std_or_model::atomic::Ordering,
};

/// Entries with items that could be taken again when this process last looked, the oldest item
/// first. It saves looking at all entries for each item. The state word of an entry still decides:
/// another process may have taken the item.
#[derive(Default)]
pub(in crate::ipc::queue) struct Returned {
    /// The value of [`Holds::returns`] at that time.
    seen: Option<u64>,
    entries: BinaryHeap<Reverse<(u64, u32)>>,
}

impl<M: Memory, O: Owners> RingList<'_, M, O> {
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
    pub(in crate::ipc::queue::ring_list) fn repair_holds(&self, taken: u64) -> io::Result<()> {
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

#[cfg(test)]
mod tests {
    use std::mem;

    use super::{
        super::{
            super::{
                layout::Layout,
                pieces::tests::{Alone, Places},
            },
            entry::{BYTES, FIELDS},
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
