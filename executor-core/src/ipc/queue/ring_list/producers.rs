//! What producers do under their mutex: put items, move to the next ring, send descriptors, and
//! repair what a dead producer had begun.

use std::io;

use super::{
    FIRST_BYTES, Failed, MOST_BYTES, Memory, RingList, RingPlace, STEPS_MAX, Side, Words, garbled,
    pieces::{Claimed, Piece},
    record::{
        ATTACHED, Body, Cursor, ELSEWHERE, Entry, ITEM, LEN_SHIFT, MOVED, PAD, UNIT, VOID,
        checked_words, moved_to, words,
    },
};
use crate::os::{
    liveness::{OwnerId, Owners},
    std_or_model::atomic::{Ordering, fence},
};

impl<'a, M: Memory, O: Owners> RingList<'a, M, O> {
    pub(super) fn tail(&self) -> io::Result<Cursor<'a, M::Mapped<'a>>> {
        let producers = &self.layout.producers;
        let generation = producers.generation.load(Ordering::Relaxed);
        self.cursor(Side::Producers, &producers.slots, generation)
    }

    pub(super) fn repair_producers(&self) -> Result<(), Failed> {
        let producers = &self.layout.producers;
        let sending = producers.sending.load(Ordering::Relaxed);
        let claimed = producers.pending_claim.load(Ordering::Relaxed);
        let claim = self.layout.claims.get((claimed as usize).wrapping_sub(1));
        let piece = claim.map(|claim| claim.at.load(Ordering::Relaxed));
        let mut tail = self.tail()?;
        // Go through the records behind the stored position. They are published, but the updates
        // that follow from them may be missing.
        for step in 0.. {
            let header = tail.word(0).load(Ordering::Acquire);
            let attached = u64::from(header & ATTACHED != 0);
            match header & 0xff {
                0 => break,
                _ if step > STEPS_MAX => return Err(garbled().into()),
                MOVED => {
                    let (at, bytes) = moved_to(&tail);
                    self.flip(&producers.slots, &producers.generation, tail.generation, at, bytes);
                    drop(tail);
                    tail = self.tail()?;
                    continue;
                }
                ITEM => {
                    let number = tail.word(1).load(Ordering::Relaxed);
                    producers.count.store(number.wrapping_add(1), Ordering::Release);
                    if header & ELSEWHERE != 0
                        && Some(tail.word(2 + attached).load(Ordering::Relaxed)) == piece
                        && let Some(claim) = claim
                    {
                        // The record names the piece, so it belongs to the queue.
                        claim.bytes.store(0, Ordering::Relaxed);
                    }
                }
                _ => {}
            }
            if attached == 1 && tail.word(2).load(Ordering::Relaxed) == sending {
                producers.sending.store(0, Ordering::Relaxed);
            }
            // Store this last: until it is stored, a process that repairs after us finds the
            // record, too.
            let words = checked_words(header, &tail)?;
            tail.advance(words);
        }
        if let Some(claim) = claim
            && piece == Some(tail.slot.at.load(Ordering::Relaxed))
        {
            // The claim is of a ring, and a slot already refers to it.
            claim.bytes.store(0, Ordering::Relaxed);
        }
        // A piece that is not in the queue stays the dead process's, until a process that needs a
        // claim finds it.
        producers.pending_claim.store(0, Ordering::Release);
        self.count_reserved(true);
        self.void_what_was_sent()
    }

    /// Returns the number of descriptors that are in the socket, or are being sent or taken.
    pub(in crate::ipc::queue) fn in_flight(&self) -> u64 {
        // In this order, so that the difference is never too small: descriptors that are sent and
        // taken between the two loads count only as sent.
        let taken = self.layout.consumers.ticket.load(Ordering::Acquire);
        self.layout.producers.ticket.load(Ordering::Acquire).wrapping_sub(taken)
    }

    /// Starts sending `count` descriptors and returns their ticket. From now on they are discarded
    /// unless an item with this ticket is put. Called under the mutex.
    pub(in crate::ipc::queue) fn new_ticket(&self, count: u64) -> u64 {
        let producers = &self.layout.producers;
        let ticket = producers.ticket.load(Ordering::Relaxed).wrapping_add(count);
        producers.ticket.store(ticket, Ordering::Relaxed);
        producers.sending.store(ticket, Ordering::Relaxed);
        kill_point!(QueueTicketTaken);
        ticket
    }

    /// Undoes the last ticket, which was for `count` descriptors: nothing was sent with it.
    pub(in crate::ipc::queue) fn forget_ticket(&self, count: u64) {
        let producers = &self.layout.producers;
        producers.sending.store(0, Ordering::Relaxed);
        producers
            .ticket
            .store(producers.ticket.load(Ordering::Relaxed).wrapping_sub(count), Ordering::Relaxed);
    }

    /// Checks whether there is room for one more item. If there is none, returns the value of the
    /// word to sleep on. With `of_dead`, it also frees room that dead processes have reserved,
    /// which costs a system call for each other process that is writing an item. Called under the
    /// mutex.
    pub(in crate::ipc::queue) fn look_for_room(&self, of_dead: bool) -> Result<(), u32> {
        if self.has_room() {
            return Ok(());
        }
        let heard = self.layout.consumers.room.listen();
        // Either the consumer sees that we listen, or we see that it has taken something.
        fence(Ordering::SeqCst);
        if self.layout.producers.reserved.load(Ordering::Relaxed) > 0 {
            self.count_reserved(of_dead);
        }
        if self.has_room() { Ok(()) } else { Err(heard) }
    }

    /// Reserves a piece for an item of `bytes` bytes, with the room in the queue that
    /// [`look_for_room`](Self::look_for_room) has found. The flag is whether the piece has no
    /// memory yet. Called under the mutex; the piece is written after unlocking.
    pub(in crate::ipc::queue) fn reserve_item(
        &self,
        bytes: u64,
        me: OwnerId,
    ) -> Result<(Piece, Claimed, bool), Failed> {
        let (piece, claimed, is_new) = self.new_piece(bytes, me)?;
        let producers = &self.layout.producers;
        self.layout.claims[claimed.0].has_room.store(1, Ordering::Relaxed);
        kill_point!(QueueRoomNoted);
        let reserved = producers.reserved.load(Ordering::Relaxed);
        producers.reserved.store(reserved.wrapping_add(1), Ordering::Relaxed);
        kill_point!(QueueRoomReserved);
        Ok((piece, claimed, is_new))
    }

    /// Counts again how many items have reserved room. A process that gave its room back, or died,
    /// has not updated the count. Called under the mutex.
    pub(super) fn count_reserved(&self, of_dead: bool) {
        let mut reserved: u64 = 0;
        for claim in &self.layout.claims {
            if claim.has_room.load(Ordering::Relaxed) == 0 {
                continue;
            }
            let owner = OwnerId::from_bits(claim.owner.load(Ordering::Relaxed));
            if of_dead && owner.is_none_or(|owner| !self.owners.is_alive(owner)) {
                claim.has_room.store(0, Ordering::Relaxed);
            } else {
                reserved = reserved.saturating_add(1);
            }
        }
        self.layout.producers.reserved.store(reserved, Ordering::Relaxed);
    }

    /// Puts an item. Called under the mutex. On an error, nothing was put, and descriptors that
    /// were sent for the item are discarded.
    pub(in crate::ipc::queue) fn put(
        &self,
        entry: Entry<'_>,
        claim: &mut Option<Claimed>,
    ) -> Result<(), Failed> {
        let producers = &self.layout.producers;
        // A lack of memory is detected here, where nothing has changed but `sending`. The next
        // producer that sends descriptors, or that repairs after a death, marks those descriptors
        // as void.
        let tail = self.reserve(words(entry.header()))?;
        let place;
        let (bytes, claim) = match &entry.body {
            Body::Inline(bytes) => (*bytes, None),
            Body::Elsewhere { piece, len } => {
                place = piece.to_bytes(*len);
                (&place[..], claim.take())
            }
        };
        if let Some(Claimed(index)) = &claim {
            // From now on, a repairer decides which side owns the piece.
            producers.pending_claim.store(*index as u64 + 1, Ordering::Release);
            kill_point!(QueuePendingNoted);
        }
        let number = producers.count.load(Ordering::Relaxed);
        self.publish(tail, entry.header(), number, entry.ticket.unwrap_or(0), bytes, || {
            producers.count.store(number.wrapping_add(1), Ordering::Release);
            kill_point!(QueuePutCounted);
            if let Some(claim) = claim {
                self.hand_on(claim);
            }
            if entry.ticket.is_some() {
                producers.sending.store(0, Ordering::Relaxed);
            }
        });
        fence(Ordering::SeqCst);
        Ok(())
    }

    /// Publishes a `Void` for descriptors that were sent without a record. Called under the mutex.
    pub(in crate::ipc::queue) fn void_what_was_sent(&self) -> Result<(), Failed> {
        let producers = &self.layout.producers;
        let sending = producers.sending.load(Ordering::Relaxed);
        if sending != 0 {
            let follow = || producers.sending.store(0, Ordering::Relaxed);
            let tail = self.reserve(words(VOID | ATTACHED))?;
            self.publish(tail, VOID | ATTACHED, 0, sending, &[], follow);
        }
        Ok(())
    }

    /// Makes room for a record of `need` words, in this ring or in the next.
    pub(super) fn reserve(&self, need: u64) -> Result<Cursor<'a, M::Mapped<'a>>, Failed> {
        let mut tail = self.tail()?;
        loop {
            let size = tail.size;
            let used = tail.position.wrapping_sub(self.taken_of(tail.generation));
            if used > size {
                return Err(garbled().into());
            }
            let pad = if need > tail.to_end() { tail.to_end() } else { 0 };
            // `UNIT` words behind the record stay free: they hold the terminating zero now, and a
            // `Moved` later.
            if need <= size / 4 && used + pad + need + UNIT <= size {
                if pad > 0 {
                    tail.fill(pad, 0);
                    tail.word(0).store(PAD | (pad * 8) << LEN_SHIFT, Ordering::Release);
                    tail.advance(pad);
                    kill_point!(QueuePadded);
                }
                return Ok(tail);
            }
            tail = self.move_on(tail, need)?;
        }
    }

    /// Writes a record behind the last one, where [`reserve`](Self::reserve) made room for it.
    ///
    /// `follow` performs the updates that follow from the record's being published. If this process
    /// dies before it has, the repairer performs them: it finds the record until the position
    /// behind it is stored.
    pub(super) fn publish(
        &self,
        mut tail: Cursor<'a, M::Mapped<'a>>,
        header: u64,
        number: u64,
        ticket: u64,
        bytes: &[u8],
        follow: impl FnOnce(),
    ) {
        let need = words(header);
        let attached = u64::from(header & ATTACHED != 0);
        tail.fill(1, number);
        if attached == 1 {
            tail.fill(2, ticket);
        }
        tail.ring.write(tail.index(2 + attached), bytes);
        kill_point!(QueueRecordWritten);
        // The word behind the record must be zero before the record is published: it marks the end.
        tail.fill(need, 0);
        tail.word(0).store(header, Ordering::Release);
        kill_point!(QueueRecordPublished);
        follow();
        tail.advance(need);
        kill_point!(QueueTailStored);
    }

    /// Returns how far consumers have come in the producers' ring.
    pub(super) fn taken_of(&self, generation: u64) -> u64 {
        let consumers = &self.layout.consumers;
        // Consumers are in this ring or still in an earlier one. There is no later one.
        if consumers.generation.load(Ordering::Acquire) != generation {
            return 0;
        }
        consumers.slots[(generation & 1) as usize].position.load(Ordering::Acquire)
    }

    /// Allocates and maps a ring that nothing leads to yet.
    fn new_ring(&self, bytes: u64) -> Result<(RingPlace, M::Mapped<'a>, Claimed), Failed> {
        let (Piece { at, bytes }, claim) =
            self.new_place(bytes, self.owners.me(), &self.layout.claims)?;
        let made = self.memory.allocate(at, bytes).and_then(|()| {
            kill_point!(QueueRingMade);
            // Map the ring before it is published, so that mapping cannot fail afterwards.
            let next = RingPlace::new(at, bytes)?;
            Ok((next, self.memory.ring(Side::Producers, next)?))
        });
        match made {
            Ok((next, ring)) => Ok((next, ring, claim)),
            Err(error) => {
                self.shed(claim);
                Err(error.into())
            }
        }
    }

    pub(super) fn move_on(
        &self,
        tail: Cursor<'a, M::Mapped<'a>>,
        need: u64,
    ) -> Result<Cursor<'a, M::Mapped<'a>>, Failed> {
        let producers = &self.layout.producers;
        // A record takes at most a quarter of the ring.
        let least = (need.next_power_of_two() * 8 * 4).max(FIRST_BYTES);
        let mut bytes = (tail.size * 8 * 4).min(MOST_BYTES).max(least);
        let (next, ring, claim) = loop {
            match self.new_ring(bytes) {
                Ok(made) => break made,
                // A smaller ring may fit into what is left of the memory, of the address space, or
                // of the length that files may have.
                Err(Failed::Io(_)) if bytes > least => bytes = (bytes / 4).max(least),
                Err(refused) => return Err(refused),
            }
        };
        let Piece { at, bytes } = next.piece();
        // From now on, a repairer decides which side owns the ring.
        producers.pending_claim.store(claim.0 as u64 + 1, Ordering::Release);
        kill_point!(QueueRingNoted);
        tail.fill(2, at);
        tail.fill(3, bytes);
        tail.word(0).store(MOVED | 16 << LEN_SHIFT, Ordering::Release);
        kill_point!(QueueMovePublished);
        let (slot, generation) =
            self.flip(&producers.slots, &producers.generation, tail.generation, at, bytes);
        kill_point!(QueueProducersMoved);
        self.hand_on(claim);
        drop(tail);
        Ok(self.cursor_in(self.memory.keep(Side::Producers, next, ring), slot, generation)?)
    }

    /// Closes the queue for producers at once, and for consumers when it is empty. Called under the
    /// producers' mutex.
    pub(in crate::ipc::queue) fn close(&self) {
        self.layout.closed.store(1, Ordering::Release);
        fence(Ordering::SeqCst);
    }
}
