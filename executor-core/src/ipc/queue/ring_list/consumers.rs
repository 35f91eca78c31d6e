//! What consumers do under their mutex: find and take items, leave a ring, discard descriptors, and
//! repair what a dead consumer had begun.

use std::io;

use super::{
    Failed, FreeHold, Held, Memory, RingList, RingPlace, STEPS_MAX, Side, garbled,
    layout::CLAIMS_OF_RINGS,
    pieces::{Claimed, Piece},
    record::{
        ATTACHED, Cursor, ELSEWHERE, Found, FoundBody, ITEM, LEN_SHIFT, MOVED, PAD, VOID,
        checked_words, moved_to,
    },
};
use crate::os::{
    liveness::{OwnerId, Owners},
    std_or_model::atomic::{Ordering, fence},
};

/// How the bytes of a taken item are read.
#[derive(Debug)]
#[must_use = "it stays claimed until it is given back"]
pub(in crate::ipc::queue) enum Reading {
    /// They were read from the ring, before the item was taken.
    Nothing,
    /// From the claimed piece, after unlocking.
    Later(Claimed),
    /// From the claimed piece, under the mutex, because the claim is one of those for the mutex's
    /// holder.
    Now(Claimed),
    /// From the piece that the item's entry names, after unlocking.
    Held,
}

impl Reading {
    pub(super) fn claim(&self) -> Option<&Claimed> {
        match self {
            Reading::Nothing | Reading::Held => None,
            Reading::Later(claim) | Reading::Now(claim) => Some(claim),
        }
    }
}

impl<'a, M: Memory, O: Owners> RingList<'a, M, O> {
    pub(super) fn head(&self) -> io::Result<Cursor<'a, M::Mapped<'a>>> {
        let consumers = &self.layout.consumers;
        let generation = consumers.generation.load(Ordering::Relaxed);
        self.cursor(Side::Consumers, &consumers.slots, generation)
    }

    pub(super) fn repair_consumers(&self) -> Result<(), Failed> {
        let consumers = &self.layout.consumers;
        let head = self.head()?;
        let claimed = consumers.pending_claim.load(Ordering::Relaxed);
        if let Some(claim) = self.layout.claims.get((claimed as usize).wrapping_sub(1)) {
            let at = claim.at.load(Ordering::Relaxed);
            // Three cases in which the place is not the dead process's: the item is not taken, so
            // the piece is still the item's; the ring is not left, so it is still the queue's; the
            // place is still that of an entry. Otherwise the dead process's claim keeps it.
            if self.item_elsewhere(&head) == Some(at)
                || head.slot.at.load(Ordering::Relaxed) == at
                || self.is_place_of_holds(at)?
            {
                claim.bytes.store(0, Ordering::Relaxed);
            }
        }
        consumers.pending_claim.store(0, Ordering::Release);
        let found = self.find()?;
        let count = match &found {
            Some(found) => found.number,
            None => consumers.taking.load(Ordering::Relaxed),
        };
        consumers.count.store(count, Ordering::Release);
        self.repair_holds(count)?;
        let ticket = consumers.ticket.load(Ordering::Relaxed);
        if ticket != 0 && found.is_none_or(|found| found.ticket != Some(ticket)) {
            self.discard(ticket);
        }
        Ok(())
    }

    /// Discards descriptors with tickets up to this one, and wakes producers that wait for room for
    /// descriptors. Called under the consumers' mutex.
    pub(in crate::ipc::queue) fn discard(&self, ticket: u64) {
        self.memory.discard(ticket);
        let descriptors = &self.layout.consumers.descriptors;
        // Either the producer sees that there is room, or we see that it listens.
        fence(Ordering::SeqCst);
        if descriptors.is_listened_to() {
            descriptors.ring_unlocked().wake_all();
        }
    }

    /// Returns where the next item lies, if it lies outside of the ring.
    pub(super) fn item_elsewhere(&self, head: &Cursor<'a, M::Mapped<'a>>) -> Option<u64> {
        let header = head.word(0).load(Ordering::Acquire);
        let attached = u64::from(header & ATTACHED != 0);
        (header & 0xff == ITEM && header & ELSEWHERE != 0)
            .then(|| head.word(2 + attached).load(Ordering::Relaxed))
    }

    /// Finds the next item. Called under the mutex.
    pub(in crate::ipc::queue) fn find(&self) -> Result<Option<Found<M::Mapped<'a>>>, Failed> {
        let consumers = &self.layout.consumers;
        let mut head = self.head()?;
        for _ in 0..STEPS_MAX {
            let header = head.word(0).load(Ordering::Acquire);
            match header & 0xff {
                0 => return Ok(None),
                MOVED => {
                    // The producer is suspended, or has died, between publishing `Moved` and moving
                    // to the next ring itself. The next ring has no items before it has moved. And
                    // until then, a repairer reads in this ring where the next one is, so the ring
                    // must not be given back.
                    if self.layout.producers.generation.load(Ordering::Acquire) <= head.generation {
                        return Ok(None);
                    }
                    let (at, bytes) = moved_to(&head);
                    // Map the ring before switching to it, so that a failure changes nothing.
                    let next = RingPlace::new(at, bytes)?;
                    let ring = self.memory.ring(Side::Consumers, next)?;
                    let old = (
                        head.slot.at.load(Ordering::Relaxed),
                        head.slot.bytes.load(Ordering::Relaxed),
                    );
                    let me = self.owners.me();
                    let claim = self.claim(me, &self.layout.claims).ok_or(Failed::NoClaim)?;
                    // From now on, a repairer decides whether the old ring has been left.
                    consumers.pending_claim.store(claim.0 as u64 + 1, Ordering::Release);
                    self.note(&claim, Piece { at: old.0, bytes: old.1 });
                    kill_point!(QueueOldRingNoted);
                    let (slot, generation) = self.flip(
                        &consumers.slots,
                        &consumers.generation,
                        head.generation,
                        at,
                        bytes,
                    );
                    kill_point!(QueueConsumersMoved);
                    consumers.pending_claim.store(0, Ordering::Release);
                    self.shed(claim);
                    kill_point!(QueueOldRingFreed);
                    drop(head);
                    let ring = self.memory.keep(Side::Consumers, next, ring);
                    head = self.cursor_in(ring, slot, generation)?;
                }
                PAD => {
                    let words = checked_words(header, &head)?;
                    head.advance(words);
                }
                VOID => {
                    // Store the ticket first: if this process dies while it discards, the repairer
                    // discards again.
                    consumers.ticket.store(head.look(2), Ordering::Release);
                    self.discard(head.look(2));
                    let words = checked_words(header, &head)?;
                    head.advance(words);
                }
                ITEM => {
                    head.look(0);
                    let words = checked_words(header, &head)?;
                    let attached = u64::from(header & ATTACHED != 0);
                    let body = 2 + attached;
                    return Ok(Some(Found {
                        number: head.look(1),
                        end: head.position + words,
                        ticket: (attached == 1).then(|| head.look(2)),
                        body: if header & ELSEWHERE != 0 {
                            let number = |at: u64| head.look(body + at);
                            FoundBody::Elsewhere {
                                piece: Piece { at: number(0), bytes: number(2) },
                                len: number(1),
                            }
                        } else {
                            let word = head.index(body);
                            FoundBody::Inline {
                                ring: head.ring,
                                word,
                                len: (header >> LEN_SHIFT) as usize,
                            }
                        },
                    }));
                }
                _ => return Err(garbled().into()),
            }
        }
        Err(garbled().into())
    }

    /// Finds the next item, like [`find`](Self::find). If there is none, returns the value to sleep
    /// on, provided that `listen` is set.
    pub(in crate::ipc::queue) fn find_or_listen(
        &self,
        listen: bool,
    ) -> Result<Result<Found<M::Mapped<'a>>, u32>, Failed> {
        if let Some(found) = self.find()? {
            return Ok(Ok(found));
        }
        if !listen {
            return Ok(Err(0));
        }
        let heard = self.layout.producers.items.listen();
        // Either the producer sees that we listen, or we see the item it has put.
        fence(Ordering::SeqCst);
        Ok(self.find()?.ok_or(heard))
    }

    /// Gets what is needed to take the item that was found. For a piece outside of rings, that is a
    /// claim, unless an entry of this process will name the piece. Called under the mutex.
    pub(in crate::ipc::queue) fn claim_for(
        &self,
        found: &Found<M::Mapped<'a>>,
        me: OwnerId,
        hold: bool,
    ) -> Result<Reading, Failed> {
        let FoundBody::Elsewhere { .. } = found.body else { return Ok(Reading::Nothing) };
        if hold && self.keeps_items() {
            return Ok(Reading::Held);
        }
        if let Some(claim) = self.claim(me, self.claims_of_pieces()) {
            return Ok(Reading::Later(claim));
        }
        let spare = self.claim(me, &self.layout.claims[..CLAIMS_OF_RINGS]);
        spare.map(Reading::Now).ok_or(Failed::NoClaim)
    }

    /// Takes the item that was found. Called under the same mutex. A piece outside of rings then
    /// belongs to this process, through the claim or through the entry.
    pub(in crate::ipc::queue) fn take(
        &self,
        found: &Found<M::Mapped<'a>>,
        reading: &Reading,
        free: Option<FreeHold<'_, M::Ring>>,
        me: OwnerId,
    ) -> Option<Held> {
        let consumers = &self.layout.consumers;
        // The entry comes first. If this process dies before `position` is stored, the entry's
        // number shows that its item is still in the queue.
        let held = free.map(|free| self.write_hold(&free, me, found));
        let claim = reading.claim();
        if let (FoundBody::Elsewhere { piece, .. }, Some(claim)) = (&found.body, claim) {
            consumers.pending_claim.store(claim.0 as u64 + 1, Ordering::Release);
            self.note(claim, *piece);
            kill_point!(QueuePieceClaimed);
        }
        // If this process dies after `position` is stored, and no item follows, only `taking` tells
        // the repairer how many items are taken.
        consumers.taking.store(found.number.wrapping_add(1), Ordering::Relaxed);
        if let Some(ticket) = found.ticket {
            consumers.ticket.store(ticket, Ordering::Release);
        }
        kill_point!(QueueTakeNext);
        let slot = &consumers.slots[(consumers.generation.load(Ordering::Relaxed) & 1) as usize];
        // This store takes the item.
        slot.position.store(found.end, Ordering::Release);
        kill_point!(QueueTaken);
        consumers.count.store(found.number.wrapping_add(1), Ordering::Release);
        kill_point!(QueueTakeCounted);
        fence(Ordering::SeqCst);
        if claim.is_some() {
            consumers.pending_claim.store(0, Ordering::Release);
        }
        held
    }
}
