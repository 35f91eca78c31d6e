//! One direction of a ring: words, positions, and the two doorbells. The protocol is in the folder's opening.

use std::time::Duration;

use super::{doorbell::Doorbell, full_fence};
use crate::os::{
    futex,
    spin::{Spin, this_cpu},
    sync::{
        self, Shadow,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
};

/// Words of 8 bytes in a ring. More: more memory for each worker once it was used. Less: more waiting for room.
pub(super) const WORDS: usize = match (sync::MODEL, sync::LOOM) {
    (false, _) => 16 * 1024,
    // A header, its length, and two words.
    (true, true) => 8,
    (true, false) => 16,
};
const MASK: u64 = WORDS as u64 - 1;
/// In a message's first word, beside its length: it is a value without a header. See [`Frame::more`].
///
/// [`Frame::more`]: crate::wire::frame::Frame::more
const HEADLESS: u64 = 1 << 63;
const _: () = assert!(WORDS.is_power_of_two());

/// The consumer is awake: it will look once more before it sleeps.
const AWAKE: u32 = 0;
/// The one who is meant sleeps on this very word.
const WAITS: u32 = 1;
/// Nobody drains this ring; the pool's reader is to be told, which sleeps on the pool's doorbell.
const UNATTENDED: u32 = 2;

/// One direction. Positions on lines of their own: two processors write them.
#[cfg_attr(all(test, any(executor_loom, executor_shuttle)), derive(Default))]
#[repr(C, align(64))]
pub(super) struct Ring {
    head: Head,
    tail: Line<AtomicU64>,
    /// Whether the consumer sleeps, and where.
    ///
    /// Swapped, never stored to, as `wanting_room` is: so each write is after the one that it read, for whoever looks,
    /// which costs what the store would, and without which loom does not know their order.
    asleep: Line<AtomicU32>,
    /// Whether the producer waits for room; a worker sleeps on this word, the pool's sender only says so.
    wanting_room: Line<AtomicU32>,
    closed: Line<AtomicU32>,
    words: [AtomicU64; WORDS],
    /// One beside each word.
    shadows: [Shadow; WORDS],
}

#[cfg_attr(all(test, any(executor_loom, executor_shuttle)), derive(Default))]
#[repr(C, align(64))]
struct Line<T>(T);

/// What the producer writes.
#[cfg_attr(all(test, any(executor_loom, executor_shuttle)), derive(Default))]
#[repr(C, align(64))]
struct Head {
    position: AtomicU64,
    /// Where it ran then: whoever waits for it does not spin on that processor.
    cpu: AtomicU32,
}

/// A position that cannot be: the other side is broken.
#[derive(Debug, PartialEq)]
pub(super) struct Impossible;

impl Ring {
    /// Wakes the consumer if it sleeps. Call after publishing.
    pub(super) fn ring_consumer(&self) {
        full_fence();
        ring(&self.asleep.0);
    }

    /// As [`ring_consumer`](Self::ring_consumer), where nobody may be there to drain.
    pub(super) fn ring_attendant(&self, doorbell: &Doorbell) {
        full_fence();
        if self.asleep.0.load(Ordering::Relaxed) == AWAKE {
            return;
        }
        match self.asleep.0.swap(AWAKE, Ordering::SeqCst) {
            WAITS => {
                kill_point!(WaiterTaken);
                futex::wake_one(&self.asleep.0);
            }
            UNATTENDED => {
                kill_point!(ReaderTaken);
                doorbell.ring();
            }
            _ => {}
        }
    }

    /// Wakes the consumer if it sleeps here, though nothing was published.
    pub(super) fn poke_consumer(&self) {
        full_fence();
        ring(&self.asleep.0);
    }

    /// Wakes the consumer if it sleeps here, whatever its word says: the other side may have taken the word, and died or
    /// been stopped before it woke anybody.
    pub(super) fn wake_consumer(&self) {
        futex::wake_one(&self.asleep.0);
    }

    /// The consumer stays awake for now: nobody need ring.
    pub(super) fn attend(&self) {
        self.asleep.0.swap(AWAKE, Ordering::SeqCst);
    }

    /// The consumer goes away. What is there at this moment it must look for itself, after this.
    pub(super) fn leave_unattended(&self) {
        self.asleep.0.swap(UNATTENDED, Ordering::SeqCst);
        full_fence();
    }

    /// Whether somebody attends to it, or should: it has been rung for.
    pub(super) fn is_attended(&self) -> bool {
        self.asleep.0.load(Ordering::SeqCst) != UNATTENDED
    }

    /// Wakes a producer that sleeps for room. Call after consuming.
    pub(super) fn ring_producer(&self) {
        full_fence();
        ring(&self.wanting_room.0);
    }

    /// Sleeps until rung, at most `limit`, unless `ready` is true once the sleep was announced.
    pub(super) fn sleep_consumer(&self, spin: &mut Spin, limit: Option<Duration>, ready: impl Fn() -> bool) {
        if !spin.wait(self.head.cpu.load(Ordering::Relaxed), &ready) {
            sleep(&self.asleep.0, limit, || {
                kill_point!(SleepAnnounced);
                ready()
            });
            kill_point!(Woken);
        }
    }

    /// Sleeps until there is room, unless `ready` is true once the sleep was announced.
    pub(super) fn sleep_producer(&self, ready: impl FnOnce() -> bool) {
        sleep(&self.wanting_room.0, None, || {
            kill_point!(RoomSleepAnnounced);
            ready()
        });
        kill_point!(RoomWoken);
    }

    /// A producer that does not sleep says that it wants to know of room.
    pub(super) fn want_room(&self) {
        self.wanting_room.0.swap(WAITS, Ordering::SeqCst);
        full_fence();
    }

    /// Whether room is still wanted: nobody has made any since.
    pub(super) fn room_is_wanted(&self) -> bool {
        self.wanting_room.0.load(Ordering::SeqCst) == WAITS
    }

    /// The consumer asks whether room is wanted, and takes the wish.
    pub(super) fn take_wanted_room(&self) -> bool {
        full_fence();
        self.wanting_room.0.load(Ordering::Relaxed) == WAITS
            && self.wanting_room.0.swap(AWAKE, Ordering::SeqCst) == WAITS
    }

    /// Nothing more will come, and the other side is not to wait.
    pub(super) fn close(&self) {
        self.closed.0.store(1, Ordering::SeqCst);
        self.ring_consumer();
        self.ring_producer();
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.0.load(Ordering::SeqCst) != 0
    }

    #[cfg(test)]
    pub(super) fn is_waited_for(&self) -> bool {
        self.asleep.0.load(Ordering::SeqCst) == WAITS
    }

    fn word(&self, position: u64) -> &AtomicU64 {
        #[cfg(any(all(test, not(any(executor_loom, executor_shuttle))), fuzzing))]
        crate::fuzz::turn();
        &self.words[(position & MASK) as usize]
    }

    fn shadow(&self, position: u64) -> &Shadow {
        &self.shadows[(position & MASK) as usize]
    }

    /// By the producer, in memory that the consumer has given back.
    #[inline]
    fn fill(&self, position: u64, word: u64) {
        self.shadow(position).fill();
        self.word(position).store(word, Ordering::Relaxed);
    }

    /// By the consumer, in memory that is published.
    #[inline]
    fn look(&self, position: u64) -> u64 {
        self.shadow(position).look();
        self.word(position).load(Ordering::Relaxed)
    }
}

/// Where a ring's words lie: positions, sleepers, and the first messages.
#[cfg(any(all(test, not(any(executor_loom, executor_shuttle))), fuzzing))]
pub(super) fn places() -> [(usize, usize); 5] {
    use std::mem::offset_of;
    let at = |offset: usize| offset / 8;
    [
        (at(offset_of!(Ring, head)), 1),
        (at(offset_of!(Ring, tail)), 1),
        (at(offset_of!(Ring, asleep)), 1),
        (at(offset_of!(Ring, wanting_room)), 1),
        (at(offset_of!(Ring, words)), 64),
    ]
}

fn ring(word: &AtomicU32) {
    // Not a swap: a holder that leaves meanwhile has written UNATTENDED, which only who rings the doorbell may clear.
    if word.load(Ordering::Relaxed) == WAITS
        && word.compare_exchange(WAITS, AWAKE, Ordering::SeqCst, Ordering::Relaxed).is_ok()
    {
        futex::wake_one(word);
    }
}

fn sleep(word: &AtomicU32, limit: Option<Duration>, ready: impl FnOnce() -> bool) {
    word.swap(WAITS, Ordering::SeqCst);
    full_fence();
    if !ready() {
        futex::wait(word, WAITS, limit);
    }
    word.swap(AWAKE, Ordering::SeqCst);
}

/// The producer's own memory of where it is.
#[derive(Default)]
pub(super) struct Producer {
    head: u64,
    /// As last seen; looked at again only when the ring seems full.
    tail: u64,
}

fn words_for(len: usize) -> u64 {
    1 + len.div_ceil(8) as u64
}

impl Producer {
    fn room(&mut self, ring: &Ring, words: u64) -> Result<bool, Impossible> {
        if self.head - self.tail + words <= WORDS as u64 {
            return Ok(true);
        }
        let tail = ring.tail.0.load(Ordering::Acquire);
        if tail < self.tail || tail > self.head {
            return Err(Impossible);
        }
        self.tail = tail;
        Ok(self.head - tail + words <= WORDS as u64)
    }

    /// Whether a message of this length would find room now; without one, there is nothing to find room for.
    pub(super) fn has_room_for(&mut self, ring: &Ring, len: Option<usize>) -> bool {
        len.is_some_and(|len| self.room(ring, words_for(len)) == Ok(true))
    }

    /// Publishes a message that is made of these parts, or finds no room for it. Does not ring.
    ///
    /// All parts but the last are whole words.
    pub(super) fn write<const N: usize>(
        &mut self,
        ring: &Ring,
        parts: [&[u8]; N],
    ) -> Result<bool, Impossible> {
        self.write_marked(ring, parts, 0)
    }

    /// As [`write`](Self::write), a value without a header.
    pub(super) fn write_headless(&mut self, ring: &Ring, value: &[u8]) -> Result<bool, Impossible> {
        self.write_marked(ring, [value], HEADLESS)
    }

    fn write_marked<const N: usize>(
        &mut self,
        ring: &Ring,
        parts: [&[u8]; N],
        mark: u64,
    ) -> Result<bool, Impossible> {
        let len = parts.iter().map(|part| part.len()).sum();
        let words = words_for(len);
        if !self.room(ring, words)? {
            return Ok(false);
        }
        ring.fill(self.head, len as u64 | mark);
        let mut at = self.head + 1;
        for part in parts {
            let (whole, rest) = part.as_chunks::<8>();
            for chunk in whole {
                ring.fill(at, u64::from_ne_bytes(*chunk));
                at += 1;
            }
            if !rest.is_empty() {
                let mut last = [0; 8];
                last[..rest.len()].copy_from_slice(rest);
                ring.fill(at, u64::from_ne_bytes(last));
                at += 1;
            }
        }
        debug_assert_eq!(at, self.head + words, "only the last part may end within a word");
        self.head += words;
        ring.head.cpu.store(this_cpu(), Ordering::Relaxed);
        kill_point!(WordsWritten);
        ring.head.position.store(self.head, Ordering::Release);
        kill_point!(HeadStored);
        Ok(true)
    }
}

/// What a message is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Kind {
    /// One or more frames, or a part of one.
    Frames,
    /// A value without a header.
    Value,
}

/// The consumer's own memory of where it is.
#[derive(Default)]
pub(super) struct Consumer {
    tail: u64,
    /// As last seen; looked at again only when the ring seems empty.
    head: u64,
    /// Where the ring was last found to be low.
    looked: u64,
}

impl Consumer {
    fn look(&mut self, ring: &Ring) -> Result<(), Impossible> {
        #[cfg(any(all(test, not(any(executor_loom, executor_shuttle))), fuzzing))]
        crate::fuzz::turn();
        let head = ring.head.position.load(Ordering::Acquire);
        kill_point!(HeadRead);
        if head < self.tail || head - self.tail > WORDS as u64 {
            return Err(Impossible);
        }
        self.head = head;
        Ok(())
    }

    /// Whether nothing is published. A position that cannot be counts as something: `read` will say what it is.
    pub(super) fn is_empty(&self, ring: &Ring) -> bool {
        ring.head.position.load(Ordering::SeqCst) == self.tail
    }

    /// Whether, since this was last true, a quarter of the ring was consumed: time to tell a producer that waits.
    pub(super) fn is_low(&mut self, _ring: &Ring) -> bool {
        let low = self.tail - self.looked >= WORDS as u64 / 4;
        if low {
            self.looked = self.tail;
        }
        low
    }

    /// Copies the next message out, if there is one.
    pub(super) fn read(&mut self, ring: &Ring, message: &mut Vec<u8>) -> Result<Option<Kind>, Impossible> {
        if self.head == self.tail {
            self.look(ring)?;
            if self.head == self.tail {
                return Ok(None);
            }
        }
        // Read once: the other side may change it at any time.
        let first = ring.look(self.tail);
        let (len, headless) = (first & !HEADLESS, first & HEADLESS != 0);
        let published = self.head - self.tail;
        if len > (published - 1) * 8 {
            return Err(Impossible);
        }
        let len = len as usize;
        message.clear();
        message.resize(len.next_multiple_of(8), 0);
        let mut at = self.tail + 1;
        for chunk in message.as_chunks_mut::<8>().0 {
            *chunk = ring.look(at).to_ne_bytes();
            at += 1;
        }
        message.truncate(len);
        self.tail = at;
        kill_point!(MessageCopied);
        ring.tail.0.store(at, Ordering::Release);
        kill_point!(TailStored);
        Ok(Some(if headless { Kind::Value } else { Kind::Frames }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring() -> Box<Ring> {
        // SAFETY: atomics only; zero is a value.
        unsafe { Box::<Ring>::new_zeroed().assume_init() }
    }

    #[test]
    fn messages_of_all_sizes_go_round_and_round() {
        let ring = ring();
        let (mut producer, mut consumer, mut message) =
            (Producer::default(), Consumer::default(), Vec::new());
        for round in 0..20_000_usize {
            let sent: Vec<u8> = (0..round * 37 % 700).map(|at| (at ^ round) as u8).collect();
            assert_eq!(producer.write(&ring, [&sent]), Ok(true));
            assert_eq!(consumer.read(&ring, &mut message), Ok(Some(Kind::Frames)));
            assert_eq!(message, sent);
            assert_eq!(consumer.read(&ring, &mut message), Ok(None));
        }
    }

    #[test]
    fn a_full_ring_takes_nothing_and_loses_nothing() {
        let ring = ring();
        let (mut producer, mut consumer, mut message) =
            (Producer::default(), Consumer::default(), Vec::new());
        let mut written = 0_u64;
        while producer.write(&ring, [&[written.to_le_bytes(); 3].concat()]).unwrap() {
            written += 1;
        }
        assert_eq!(written, WORDS as u64 / 4);
        for number in 0..written {
            assert!(consumer.read(&ring, &mut message).unwrap().is_some());
            assert_eq!(message, [number.to_le_bytes(); 3].concat());
        }
        assert!(producer.has_room_for(&ring, Some(WORDS * 8 - 8)));
        assert!(!producer.has_room_for(&ring, Some(WORDS * 8)));
    }

    #[test]
    fn positions_and_lengths_that_cannot_be_are_errors() {
        let mut message = Vec::new();
        for head in [u64::MAX, WORDS as u64 + 1] {
            let ring = ring();
            ring.head.position.store(head, Ordering::Relaxed);
            assert_eq!(Consumer::default().read(&ring, &mut message), Err(Impossible));
        }
        let ring = ring();
        ring.head.position.store(3, Ordering::Relaxed);
        for len in [17, u64::MAX, 1 << 40, HEADLESS | 17] {
            ring.words[0].store(len, Ordering::Relaxed);
            assert_eq!(Consumer::default().read(&ring, &mut message), Err(Impossible), "{len}");
        }
        assert!(message.capacity() < 100, "nothing was reserved for a length that cannot be");
        let mut producer = Producer { head: WORDS as u64, tail: 0 };
        for tail in [WORDS as u64 + 1, u64::MAX] {
            ring.tail.0.store(tail, Ordering::Relaxed);
            assert_eq!(producer.write(&ring, [b"x"]), Err(Impossible));
        }
    }

    #[test]
    fn two_threads_that_sleep_miss_nothing() {
        const COUNT: u64 = 100_000;
        let ring = &*ring();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let mut producer = Producer::default();
                for number in 0..COUNT {
                    let message = number.to_le_bytes();
                    while !producer.write(ring, [&message]).unwrap() {
                        ring.sleep_producer(|| producer.has_room_for(ring, Some(8)));
                    }
                    ring.ring_consumer();
                }
            });
            let (mut consumer, mut message) = (Consumer::default(), Vec::new());
            let mut spin = Spin::default();
            for number in 0..COUNT {
                while consumer.read(ring, &mut message).unwrap().is_none() {
                    ring.sleep_consumer(&mut spin, None, || !consumer.is_empty(ring));
                }
                ring.ring_producer();
                assert_eq!(message, number.to_le_bytes());
            }
        });
    }
}
