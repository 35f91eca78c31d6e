//! Places in the file: who has them, and how they are used again.
//!
//! The opening of `mod.rs` says which mutex, if any, each of these calls needs.

use std::io;

use super::{
    Failed, MOST_BYTES, Memory, RingList, garbled,
    layout::{CLAIMS, CLAIMS_OF_RINGS, Claim, HOLE, STOCK, STOCK_BYTES_MAX, STOCK_PIECES_MAX},
    record::{PIECE_BYTES, UNIT},
};
use crate::{
    os::{
        liveness::{OwnerId, Owners},
        std_or_model::atomic::{Ordering, fence},
    },
    sync::raw::Bell,
};

/// Memory outside of rings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::ipc::queue) struct Piece {
    pub(in crate::ipc::queue) at: u64,
    pub(in crate::ipc::queue) bytes: u64,
}

impl Piece {
    pub(super) fn to_bytes(self, len: u64) -> [u8; PIECE_BYTES] {
        let mut out = [0; PIECE_BYTES];
        for (place, number) in out.chunks_exact_mut(8).zip([self.at, len, self.bytes]) {
            place.copy_from_slice(&number.to_ne_bytes());
        }
        out
    }
}

/// Location of a ring, read from shared words that any process with a handle may have written.
///
/// The length is checked. It is not longer than a ring can be, so that no process maps more than
/// that because of another process's word. It is a power of two of at least one record, as the
/// rings of [`RingList`] are. A position in a ring is masked with its length, so other lengths
/// would lead beyond its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::ipc::queue) struct RingPlace(Piece);

impl RingPlace {
    pub(super) fn new(at: u64, bytes: u64) -> io::Result<Self> {
        if bytes.is_power_of_two() && (UNIT * 8..=MOST_BYTES).contains(&bytes) {
            Ok(RingPlace(Piece { at, bytes }))
        } else {
            Err(garbled())
        }
    }

    pub(in crate::ipc::queue) fn piece(self) -> Piece {
        self.0
    }
}

/// A claimed piece. It must be [given back](RingList::give_back); otherwise it stays claimed until
/// this process has ended and another one takes it.
#[must_use = "it stays claimed until it is given back"]
#[derive(Debug)]
pub(in crate::ipc::queue) struct Claimed(pub(super) usize);

impl<'a, M: Memory, O: Owners> RingList<'a, M, O> {
    /// Releases a claim whose place now belongs to the queue.
    pub(super) fn hand_on(&self, claim: Claimed) {
        // In this order: a claim that others may take must not be a pending one.
        let claim = &self.layout.claims[claim.0];
        let producers = &self.layout.producers;
        claim.bytes.store(0, Ordering::Relaxed);
        producers.pending_claim.store(0, Ordering::Release);
        kill_point!(QueueClaimHandedOn);
        if claim.has_room.load(Ordering::Relaxed) != 0 {
            // The item now counts as one that was put.
            claim.has_room.store(0, Ordering::Relaxed);
            let reserved = producers.reserved.load(Ordering::Relaxed);
            producers.reserved.store(reserved.saturating_sub(1), Ordering::Relaxed);
        }
        self.set_free(claim, 0);
    }

    /// Releases a claim to nobody, to [`STOCK`], or to [`HOLE`]; others may take it then.
    pub(super) fn set_free(&self, claim: &Claim, to: u32) {
        claim.owner.store(to, Ordering::Release);
        // Either a process that looks for a claim sees this one, or we see that it listens.
        fence(Ordering::SeqCst);
        if self.layout.freed.is_listened_to() {
            self.layout.freed.ring_unlocked().wake_all();
        }
    }

    /// Marks a listener for claims. Returns the value to sleep on with [`freed`](Self::freed). The
    /// caller must look for a claim once more before it sleeps.
    pub(in crate::ipc::queue) fn listen_for_claims(&self) -> u32 {
        let heard = self.layout.freed.listen();
        fence(Ordering::SeqCst);
        heard
    }

    /// Returns the bell that is rung when a claim becomes free.
    pub(in crate::ipc::queue) fn freed(&self) -> &'a Bell {
        &self.layout.freed
    }

    pub(super) fn claims_of_pieces(&self) -> &'a [Claim] {
        &self.layout.claims[CLAIMS_OF_RINGS..]
    }

    /// Takes all claims that are free, for tests.
    #[cfg(all(test, not(any(executor_loom, executor_shuttle))))]
    pub(in crate::ipc::queue) fn take_all_claims(&self) {
        while self.claim(self.owners.me(), &self.layout.claims).is_some() {}
    }

    pub(super) fn index_of(&self, claim: &Claim) -> Claimed {
        let at = self.layout.claims.iter().position(|other| std::ptr::eq(other, claim));
        Claimed(at.expect("one of them"))
    }

    /// Takes a claim without a place, out of `claims`; `None` if other processes have them all.
    pub(super) fn claim(&self, me: OwnerId, claims: &'a [Claim]) -> Option<Claimed> {
        let of = |owner: u32| {
            claims.iter().filter(move |claim| claim.owner.load(Ordering::Relaxed) == owner)
        };
        let bytes = |claim: &&Claim| claim.bytes.load(Ordering::Relaxed);
        // Each round frees or takes the claim of a dead process, or loses a claim to another
        // process.
        for _ in 0..4 * CLAIMS {
            if let Some(claim) = claims.iter().find(|claim| self.take_claim(claim, 0, me)) {
                return Some(self.index_of(claim));
            }
            if self.bury(me, claims) {
                continue;
            }
            // Give back a kept piece first: if it is beside a hole, or at the end of the file, it
            // then needs no claim of its own.
            if let Some(kept) = of(STOCK).min_by_key(bytes) {
                if self.take_claim(kept, STOCK, me) {
                    self.shed(self.index_of(kept));
                }
                continue;
            }
            // All claims are in use or holes. Take the smallest hole's claim; its place is lost
            // until the file is gone.
            let hole = of(HOLE).min_by_key(bytes)?;
            if self.take_claim(hole, HOLE, me) {
                hole.bytes.store(0, Ordering::Relaxed);
                return Some(self.index_of(hole));
            }
        }
        None
    }

    /// Gives back the places of dead processes among these claims, which nobody else would find.
    /// Returns whether there was one.
    pub(super) fn bury(&self, me: OwnerId, claims: &'a [Claim]) -> bool {
        let mut found = false;
        for claim in claims.iter().filter(|claim| self.take_of_dead(claim, me)) {
            found = true;
            claim.has_room.store(0, Ordering::Relaxed);
            match claim.bytes.load(Ordering::Acquire) {
                0 => self.set_free(claim, 0),
                _ => self.shed(self.index_of(claim)),
            }
        }
        found
    }

    /// Takes a place of `bytes` bytes without memory, for one of `claims`.
    pub(super) fn new_place(
        &self,
        bytes: u64,
        me: OwnerId,
        claims: &'a [Claim],
    ) -> Result<(Piece, Claimed), Failed> {
        // Use places of the dead again before a new one is added to the file. Checking costs a
        // system call for each other process that has a claim.
        self.bury(me, &self.layout.claims);
        let claimed = self.claim(me, claims).ok_or(Failed::NoClaim)?;
        let Some(hole) = self.take_hole(bytes, me) else {
            let at = self.layout.next.fetch_add(bytes, Ordering::AcqRel);
            let piece = Piece { at, bytes };
            self.note(&claimed, piece);
            return Ok((piece, claimed));
        };
        let (at, has) = (hole.at.load(Ordering::Relaxed), hole.bytes.load(Ordering::Relaxed));
        // The place goes to the claim that was asked for, and the rest of the hole stays in the
        // hole's claim. The other way round, a piece could keep one of the claims for rings for as
        // long as it waits for room. The order of the stores is explained in the module's
        // documentation.
        let Some(left) = has.checked_sub(bytes) else {
            // Another process has written to the words since they were checked. The place is lost.
            hole.bytes.store(0, Ordering::Relaxed);
            self.set_free(hole, 0);
            self.set_free(&self.layout.claims[claimed.0], 0);
            return Err(garbled().into());
        };
        hole.bytes.store(left, Ordering::Release);
        kill_point!(QueueHoleSplit);
        hole.at.store(at.wrapping_add(bytes), Ordering::Release);
        let piece = Piece { at, bytes };
        self.note(&claimed, piece);
        self.set_free(hole, if left > 0 { HOLE } else { 0 });
        Ok((piece, claimed))
    }

    /// Takes the hole nearest to the start of the file that has at least `bytes` bytes.
    pub(super) fn take_hole(&self, bytes: u64, me: OwnerId) -> Option<&'a Claim> {
        let fits = |claim: &Claim| claim.bytes.load(Ordering::Acquire) >= bytes;
        for _ in 0..CLAIMS {
            let holes = self.layout.claims.iter();
            let hole = holes
                .filter(|claim| claim.owner.load(Ordering::Relaxed) == HOLE && fits(claim))
                .min_by_key(|claim| claim.at.load(Ordering::Relaxed))?;
            if self.take_claim(hole, HOLE, me) {
                // It may have become another hole meanwhile.
                if fits(hole) {
                    return Some(hole);
                }
                self.set_free(hole, HOLE);
            }
        }
        None
    }

    /// Frees the memory of a place, and releases the place for the next process that needs one.
    pub(super) fn shed(&self, claimed: Claimed) {
        let mine = &self.layout.claims[claimed.0];
        let (at, bytes) = (mine.at.load(Ordering::Relaxed), mine.bytes.load(Ordering::Relaxed));
        if !self.memory.free(at, bytes) {
            // The old contents would be taken for records. So the place is never used again.
            mine.bytes.store(0, Ordering::Relaxed);
            self.set_free(mine, 0);
            return;
        }
        kill_point!(QueuePieceFreed);
        self.merge(mine);
        let (at, bytes) = (mine.at.load(Ordering::Relaxed), mine.bytes.load(Ordering::Relaxed));
        let end = at.wrapping_add(bytes);
        if self.layout.next.load(Ordering::Relaxed) == end {
            // At the end of the file: the place becomes unused file again instead of a hole.
            mine.bytes.store(0, Ordering::Release);
            kill_point!(QueueEndNoted);
            if self
                .layout
                .next
                .compare_exchange(end, at, Ordering::AcqRel, Ordering::Relaxed)
                .is_ok()
            {
                self.set_free(mine, 0);
                return;
            }
            mine.bytes.store(bytes, Ordering::Relaxed);
        }
        self.set_free(mine, HOLE);
        kill_point!(QueueHoleLeft);
    }

    /// Merges the holes beside a place into its claim, which belongs to this process.
    pub(super) fn merge(&self, mine: &Claim) {
        let Some(me) = OwnerId::from_bits(mine.owner.load(Ordering::Relaxed)) else { return };
        for _ in 0..CLAIMS {
            let (at, bytes) = (mine.at.load(Ordering::Relaxed), mine.bytes.load(Ordering::Relaxed));
            let touches = |other: &Claim| {
                let (start, len) =
                    (other.at.load(Ordering::Relaxed), other.bytes.load(Ordering::Acquire));
                len != 0 && (start.wrapping_add(len) == at || at.wrapping_add(bytes) == start)
            };
            let other = self.layout.claims.iter().find(|other| {
                let is_hole = other.owner.load(Ordering::Relaxed) == HOLE;
                is_hole && touches(other) && self.take_claim(other, HOLE, me)
            });
            let Some(other) = other else { return };
            // It may have become another hole meanwhile.
            if !touches(other) {
                self.set_free(other, HOLE);
                continue;
            }
            let (start, len) =
                (other.at.load(Ordering::Relaxed), other.bytes.load(Ordering::Relaxed));
            other.bytes.store(0, Ordering::Release);
            kill_point!(QueueHolesMerged);
            // A process that dies between these stores has claimed a part of both.
            mine.at.store(at.min(start), Ordering::Release);
            mine.bytes.store(bytes.wrapping_add(len), Ordering::Release);
            self.set_free(other, 0);
        }
    }

    pub(super) fn take_claim(&self, claim: &Claim, from: u32, me: OwnerId) -> bool {
        claim.owner.load(Ordering::Relaxed) == from
            && claim
                .owner
                .compare_exchange(from, me.bits(), Ordering::Acquire, Ordering::Relaxed)
                .is_ok()
    }

    pub(super) fn take_of_dead(&self, claim: &Claim, me: OwnerId) -> bool {
        let owner = claim.owner.load(Ordering::Relaxed);
        let is_dead = || OwnerId::from_bits(owner).is_none_or(|owner| !self.owners.is_alive(owner));
        // While the claim is pending, only the repairer of the dead process's state may decide who
        // owns the piece.
        let is_pending = || {
            let number = self.index_of(claim).0 as u64 + 1;
            self.layout.producers.pending_claim.load(Ordering::Acquire) == number
                || self.layout.consumers.pending_claim.load(Ordering::Acquire) == number
        };
        ![0, STOCK, HOLE].contains(&owner)
            && is_dead()
            && !is_pending()
            && self.take_claim(claim, owner, me)
    }

    pub(super) fn note(&self, claim: &Claimed, piece: Piece) {
        let claim = &self.layout.claims[claim.0];
        claim.at.store(piece.at, Ordering::Relaxed);
        claim.bytes.store(piece.bytes, Ordering::Release);
    }

    /// Takes a piece for `bytes` bytes. The flag is whether it has no memory yet.
    pub(super) fn new_piece(
        &self,
        bytes: u64,
        me: OwnerId,
    ) -> Result<(Piece, Claimed, bool), Failed> {
        // Use a kept piece that is neither too small nor far too large.
        let fits = |claim: &Claim| {
            let has = claim.bytes.load(Ordering::Acquire);
            has >= bytes && has / 4 <= bytes
        };
        let kept = self
            .claims_of_pieces()
            .iter()
            .find(|claim| fits(claim) && self.take_claim(claim, STOCK, me));
        if let Some(claim) = kept {
            // It may have become another piece meanwhile.
            if fits(claim) {
                let (at, bytes) =
                    (claim.at.load(Ordering::Relaxed), claim.bytes.load(Ordering::Relaxed));
                kill_point!(QueuePieceMade);
                return Ok((Piece { at, bytes }, self.index_of(claim), false));
            }
            self.set_free(claim, STOCK);
        }
        let (piece, claim) = self.new_place(bytes, me, self.claims_of_pieces())?;
        kill_point!(QueuePieceMade);
        Ok((piece, claim, true))
    }

    /// Gives back a piece that is not needed any more: it is kept, or its memory is freed.
    pub(in crate::ipc::queue) fn give_back(&self, claim: Claimed) {
        let mine = &self.layout.claims[claim.0];
        // Release the reserved room as well. Producers that look for room count again.
        mine.has_room.store(0, Ordering::Relaxed);
        let bytes = mine.bytes.load(Ordering::Relaxed);
        let is_too_much = |more: usize, bytes: u64| {
            let kept = self
                .layout
                .claims
                .iter()
                .filter(|claim| claim.owner.load(Ordering::Relaxed) == STOCK);
            let sum = |(count, sum): (usize, u64), claim: &Claim| {
                (count + 1, claim.bytes.load(Ordering::Relaxed).saturating_add(sum))
            };
            let (count, sum) = kept.fold((more, bytes), sum);
            count > STOCK_PIECES_MAX || sum > STOCK_BYTES_MAX
        };
        if !is_too_much(1, bytes) {
            let me = OwnerId::from_bits(mine.owner.load(Ordering::Relaxed));
            self.set_free(mine, STOCK);
            kill_point!(QueuePieceKept);
            // If two processes come here at the same time, at least one sees both pieces.
            fence(Ordering::SeqCst);
            if !is_too_much(0, 0) || !me.is_some_and(|me| self.take_claim(mine, STOCK, me)) {
                return;
            }
        }
        self.shed(claim);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::{mem, sync::Arc};

    use super::{
        super::{RingPlace, Side, Words, layout::Layout},
        *,
    };
    use crate::os::std_or_model::{Shadow, atomic::AtomicU64};

    pub(in super::super) struct Alone;

    impl Owners for Alone {
        fn me(&self) -> OwnerId {
            OwnerId::from_bits(1).unwrap()
        }

        fn is_me(&self, id: OwnerId) -> bool {
            id == self.me()
        }

        fn is_alive(&self, _: OwnerId) -> bool {
            true
        }
    }

    /// A memory that has places without contents.
    pub(in super::super) struct Places;

    impl Words for Places {
        fn words(&self) -> usize {
            0
        }

        fn word(&self, _: usize) -> &AtomicU64 {
            unreachable!("there is no ring")
        }

        fn shadow(&self, _: usize) -> &Shadow {
            unreachable!("there is no ring")
        }

        fn write(&self, _: usize, _: &[u8]) {}
    }

    impl Memory for Places {
        type Ring = Places;
        type Mapped<'a> = Arc<Places>;

        fn allocate(&self, _: u64, _: u64) -> io::Result<()> {
            Ok(())
        }

        fn free(&self, _: u64, _: u64) -> bool {
            true
        }

        fn ring(&self, _: Side, _: RingPlace) -> io::Result<Arc<Places>> {
            Err(io::ErrorKind::NotFound.into())
        }

        fn keep(&self, _: Side, _: RingPlace, ring: Arc<Places>) -> Arc<Places> {
            ring
        }

        fn table(&self, _: u64, _: u64) -> io::Result<Arc<Places>> {
            Err(io::ErrorKind::NotFound.into())
        }

        fn discard(&self, _: u64) {}
    }

    #[test]
    fn as_many_pieces_as_there_can_be_leave_each_side_a_claim_for_its_ring() {
        // SAFETY: zero is a value, says `SharedLayout`.
        let layout: Layout = unsafe { mem::zeroed() };
        let list = RingList { layout: &layout, memory: &Places, owners: &Alone };
        let me = Alone.me();
        list.begin(0).unwrap();
        // Leave two rings, with one between them that is still used.
        let rings: Vec<_> =
            (0..3).map(|_| list.new_place(MOST_BYTES, me, &layout.claims).unwrap()).collect();
        for (number, (_, claim)) in rings.into_iter().enumerate() {
            match number {
                1 => layout.claims[claim.0].owner.store(0, Ordering::Release),
                _ => list.shed(claim),
            }
        }
        // Take pieces like producers that wait for room.
        let mut pieces = Vec::new();
        let refusal = loop {
            match list.new_piece(MOST_BYTES / 2, me) {
                Ok((piece, claim, _)) => pieces.push((piece, claim)),
                Err(error) => break error,
            }
        };
        assert!(matches!(refusal, Failed::NoClaim), "{refusal:?}");
        assert_eq!(pieces.len(), CLAIMS - CLAIMS_OF_RINGS);
        let of_rings: Vec<_> =
            (0..CLAIMS_OF_RINGS).map(|_| list.claim(me, &layout.claims)).collect();
        assert!(of_rings.iter().all(Option::is_some), "{of_rings:?}");
        // No byte is in two of the pieces.
        pieces.sort_by_key(|(piece, _)| piece.at);
        assert!(
            pieces.windows(2).all(|two| two[0].0.at + two[0].0.bytes <= two[1].0.at),
            "{pieces:?}"
        );
    }
}
