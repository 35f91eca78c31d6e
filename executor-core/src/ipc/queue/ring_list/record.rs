//! Records in a ring, and the position of a side among them.

use std::{io, ops::Deref};

use super::{Words, garbled, layout::RingSlot, pieces::Piece};
use crate::os::std_or_model::atomic::{AtomicU64, Ordering};

/// Records and rings are multiples of this many words, so there is always room for a `Moved` at the
/// end of a ring.
pub(super) const UNIT: u64 = 4;

pub(super) const PAD: u64 = 1;
pub(super) const MOVED: u64 = 2;
pub(super) const VOID: u64 = 3;
pub(super) const ITEM: u64 = 4;

pub(super) const ATTACHED: u64 = 1 << 8;
pub(super) const ELSEWHERE: u64 = 1 << 9;
pub(super) const LEN_SHIFT: u32 = 16;

/// An item to be put.
#[derive(Clone, Copy, Debug)]
pub(in crate::ipc::queue) struct Entry<'a> {
    pub(in crate::ipc::queue) body: Body<'a>,
    pub(in crate::ipc::queue) ticket: Option<u64>,
}

#[derive(Clone, Copy, Debug)]
pub(in crate::ipc::queue) enum Body<'a> {
    Inline(&'a [u8]),
    /// The bytes are in a piece of their own.
    Elsewhere {
        piece: Piece,
        len: u64,
    },
}

/// Number of bytes in a record that describe the piece of an item.
pub(super) const PIECE_BYTES: usize = 24;

/// An item that can be taken.
pub(in crate::ipc::queue) struct Found<G> {
    pub(super) number: u64,
    /// The position behind the record.
    pub(super) end: u64,
    pub(in crate::ipc::queue) ticket: Option<u64>,
    pub(in crate::ipc::queue) body: FoundBody<G>,
}

pub(in crate::ipc::queue) enum FoundBody<G> {
    Inline { ring: G, word: usize, len: usize },
    Elsewhere { piece: Piece, len: u64 },
}

/// The position of one side in its ring.
pub(super) struct Cursor<'a, G> {
    pub(super) ring: G,
    /// Number of words in the ring, a power of two.
    pub(super) size: u64,
    pub(super) slot: &'a RingSlot,
    pub(super) generation: u64,
    pub(super) position: u64,
}

impl<G: Deref<Target: Words>> Cursor<'_, G> {
    /// Returns the number of words from here to the end of the ring.
    pub(super) fn to_end(&self) -> u64 {
        self.size - (self.position & (self.size - 1))
    }

    /// Returns the index in the ring of the word that is `ahead` words from here.
    pub(super) fn wrapped(&self, ahead: u64) -> usize {
        (self.position.wrapping_add(ahead) & (self.size - 1)) as usize
    }

    pub(super) fn word(&self, ahead: u64) -> &AtomicU64 {
        self.ring.word(self.wrapped(ahead))
    }

    /// Reads a word of a record that is published and not taken yet.
    pub(super) fn look(&self, ahead: u64) -> u64 {
        self.ring.shadow(self.wrapped(ahead)).look();
        self.word(ahead).load(Ordering::Relaxed)
    }

    /// Writes a word in memory that consumers have given back. They see it when the record is
    /// published.
    pub(super) fn fill(&self, ahead: u64, word: u64) {
        self.ring.shadow(self.wrapped(ahead)).fill();
        self.word(ahead).store(word, Ordering::Relaxed);
    }

    /// Returns the index of a word of the record that starts here. No word of a record lies beyond
    /// the end of the ring.
    pub(super) fn index(&self, ahead: u64) -> usize {
        self.wrapped(0) + ahead as usize
    }

    pub(super) fn advance(&mut self, words: u64) {
        self.position += words;
        self.slot.position.store(self.position, Ordering::Release);
    }
}

impl Entry<'_> {
    pub(super) fn header(&self) -> u64 {
        let attached = if self.ticket.is_some() { ATTACHED } else { 0 };
        match self.body {
            Body::Inline(bytes) => ITEM | attached | (bytes.len() as u64) << LEN_SHIFT,
            Body::Elsewhere { .. } => {
                ITEM | attached | ELSEWHERE | (PIECE_BYTES as u64) << LEN_SHIFT
            }
        }
    }
}

/// Returns the number of words of a record with this header.
pub(super) fn words(header: u64) -> u64 {
    let attached = u64::from(header & ATTACHED != 0);
    (2 + attached + (header >> LEN_SHIFT).div_ceil(8)).next_multiple_of(UNIT)
}

/// Returns where a `Moved` leads: position in the file and length.
pub(super) fn moved_to<G: Deref<Target: Words>>(cursor: &Cursor<'_, G>) -> (u64, u64) {
    (cursor.look(2), cursor.look(3))
}

/// Returns the length of a record, or an error if it is impossible.
pub(super) fn checked_words<G: Deref<Target: Words>>(
    header: u64,
    cursor: &Cursor<'_, G>,
) -> io::Result<u64> {
    let words = match header & 0xff {
        PAD => (header >> LEN_SHIFT) / 8,
        _ => words(header),
    };
    let least = if header & ELSEWHERE != 0 { PIECE_BYTES as u64 } else { 0 };
    let fits = words > 0
        && words.is_multiple_of(UNIT)
        && words <= cursor.to_end()
        && header >> LEN_SHIFT >= least;
    if fits { Ok(words) } else { Err(garbled()) }
}
