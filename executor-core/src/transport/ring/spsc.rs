//! One direction of a ring: its words, its positions, and how each side sleeps and is woken. The
//! protocol is described in the module's parent.

use std::time::Duration;

use super::full_fence;
#[cfg(not(all(test, any(executor_loom, executor_shuttle))))]
use crate::os::words;
use crate::os::{
    futex,
    spin::{Spin, this_cpu},
    std_or_model::{
        self, Shadow,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
};

/// Number of 8-byte words in a ring. A higher value means more memory for each worker once the ring
/// was filled. A lower value means more waiting for space.
pub(super) const WORDS: usize = match (std_or_model::MODEL, std_or_model::LOOM) {
    (false, _) => 16 * 1024,
    // Space for a header, its length, and two more words.
    (true, true) => 8,
    (true, false) => 16,
};
/// Turns a position into the index of a word.
const MASK: u64 = WORDS as u64 - 1;
/// A bit in a message's first word, beside its length: the message is a value without a header. See
/// [`Frame::more`].
///
/// [`Frame::more`]: crate::wire::frame::Frame::more
const HEADLESS: u64 = 1 << 63;
const _: () = assert!(WORDS.is_power_of_two());
/// Number of words from which on a message is copied at once. With a lower value, short messages
/// take a call that costs more than their words.
#[cfg(not(all(test, any(executor_loom, executor_shuttle))))]
const MANY: usize = 32;

/// The consumer is awake and will look at the ring once more before it sleeps.
const AWAKE: u32 = 0;
/// The side that owns the word sleeps on it, or is about to.
const WAITS: u32 = 1;

/// One direction of a ring, in shared memory. The positions are on cache lines of their own, since
/// two processors write them.
#[cfg_attr(all(test, any(executor_loom, executor_shuttle)), derive(Default))]
#[repr(C, align(64))]
pub(super) struct Ring {
    head: ProducerWords,
    tail: Line<AtomicU64>,
    /// Whether the consumer sleeps, and where.
    ///
    /// This word and `wanting_room` are always swapped, never stored to. Each write then directly
    /// follows the write whose value it read, in every thread's view. A swap costs the same as the
    /// store would, and without it loom would not know the order of the writes.
    asleep: Line<AtomicU32>,
    /// Whether the producer waits for space. A worker sleeps on this word. The pool's sender never
    /// sleeps and only records its wish here.
    wanting_room: Line<AtomicU32>,
    closed: Line<AtomicU32>,
    words: [AtomicU64; WORDS],
    /// One beside each word, through which loom checks that only one side accesses the word.
    shadows: [Shadow; WORDS],
}

/// A value on a cache line of its own.
#[cfg_attr(all(test, any(executor_loom, executor_shuttle)), derive(Default))]
#[repr(C, align(64))]
struct Line<T>(T);

/// The words that only the producer writes.
#[cfg_attr(all(test, any(executor_loom, executor_shuttle)), derive(Default))]
#[repr(C, align(64))]
struct ProducerWords {
    position: AtomicU64,
    /// The processor on which the producer last published. A consumer on the same processor does
    /// not spin, since that would keep the producer from running.
    cpu: AtomicU32,
}

/// An impossible position or length: the other side is broken.
#[derive(Debug, PartialEq)]
pub(super) struct Impossible;

impl Ring {
    /// Wakes the consumer if it sleeps. Call after publishing.
    pub(super) fn ring_consumer(&self) {
        full_fence();
        ring(&self.asleep.0);
    }

    /// Whether the producer has published more than a consumer at this position has taken.
    pub(super) fn has_more_than(&self, tail: u64) -> bool {
        self.head.position.load(Ordering::SeqCst) != tail
    }

    /// Returns the processor on which the producer last published.
    pub(super) fn producer_cpu(&self) -> u32 {
        self.head.cpu.load(Ordering::Relaxed)
    }

    /// Wakes a producer that sleeps until there is space. Call after consuming.
    pub(super) fn ring_producer(&self) {
        full_fence();
        ring(&self.wanting_room.0);
    }

    /// Consumer: sleeps until rung, at most for `timeout`. Does not sleep if `ready` is true after
    /// the sleep was announced.
    pub(super) fn sleep_consumer(
        &self,
        spin: &mut Spin,
        timeout: Option<Duration>,
        ready: impl Fn() -> bool,
    ) {
        if !spin.wait(self.head.cpu.load(Ordering::Relaxed), &ready) {
            sleep(&self.asleep.0, timeout, || {
                kill_point!(SleepAnnounced);
                ready()
            });
            kill_point!(Woken);
        }
    }

    /// Consumer: announces a sleep somewhere else than on the word. The caller must look at the
    /// ring once more after this, and call [`end_sleep`](Self::end_sleep) in the end.
    pub(super) fn announce_sleep(&self) {
        self.asleep.0.swap(WAITS, Ordering::SeqCst);
        full_fence();
    }

    /// Consumer: ends a sleep that was announced.
    pub(super) fn end_sleep(&self) {
        self.asleep.0.swap(AWAKE, Ordering::SeqCst);
    }

    /// Producer: ends the consumer's announced sleep, and returns whether there was one. Then the
    /// consumer has to be woken. Call after publishing.
    pub(super) fn take_sleeper(&self) -> bool {
        full_fence();
        self.asleep.0.load(Ordering::Relaxed) == WAITS
            && self.asleep.0.swap(AWAKE, Ordering::SeqCst) == WAITS
    }

    /// Producer: sleeps until there is space. Does not sleep if `ready` is true after the sleep was
    /// announced.
    pub(super) fn sleep_producer(&self, ready: impl FnOnce() -> bool) {
        sleep(&self.wanting_room.0, None, || {
            kill_point!(RoomSleepAnnounced);
            ready()
        });
        kill_point!(RoomWoken);
    }

    /// Producer: asks to be told of space, without sleeping. The caller must check for space once
    /// more after this.
    pub(super) fn want_room(&self) {
        self.wanting_room.0.swap(WAITS, Ordering::SeqCst);
        full_fence();
    }

    /// Whether the producer still waits for space: the consumer has not made any since.
    pub(super) fn room_is_wanted(&self) -> bool {
        self.wanting_room.0.load(Ordering::SeqCst) == WAITS
    }

    /// Consumer: clears the producer's wish for space, and returns whether there was one.
    pub(super) fn take_wanted_room(&self) -> bool {
        full_fence();
        self.wanting_room.0.load(Ordering::Relaxed) == WAITS
            && self.wanting_room.0.swap(AWAKE, Ordering::SeqCst) == WAITS
    }

    /// Closes the ring: no more messages will come, and the other side must not wait.
    pub(super) fn close(&self) {
        self.closed.0.store(1, Ordering::SeqCst);
        self.ring_consumer();
        self.ring_producer();
    }

    /// Producer: asks the consumer to use nothing that it takes from now on, without waking it.
    ///
    /// A consumer that sees this behind what it has taken drops it. One that does not see it has
    /// advanced its position before: [`Producer::taken`], called after this, counts that.
    pub(super) fn revoke(&self) {
        self.closed.0.swap(1, Ordering::SeqCst);
        full_fence();
    }

    /// Consumer: whether the producer has revoked what was just taken.
    pub(super) fn is_revoked(&self) -> bool {
        full_fence();
        self.closed.0.load(Ordering::Relaxed) != 0
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.0.load(Ordering::SeqCst) != 0
    }

    fn word(&self, position: u64) -> &AtomicU64 {
        #[cfg(any(all(test, not(any(executor_loom, executor_shuttle))), fuzzing))]
        crate::fuzz::turn();
        &self.words[(position & MASK) as usize]
    }

    /// Returns so many words, which wrap at most once.
    #[cfg(not(all(test, any(executor_loom, executor_shuttle))))]
    fn run(&self, position: u64, count: usize) -> [&[AtomicU64]; 2] {
        #[cfg(any(test, fuzzing))]
        crate::fuzz::turn();
        let at = (position & MASK) as usize;
        let first = count.min(WORDS - at);
        [&self.words[at..at + first], &self.words[..count - first]]
    }

    fn shadow(&self, position: u64) -> &Shadow {
        &self.shadows[(position & MASK) as usize]
    }

    /// Writes a word. Only called by the producer, in memory that the consumer has given back.
    #[inline]
    fn fill(&self, position: u64, word: u64) {
        self.shadow(position).fill();
        self.word(position).store(word, Ordering::Relaxed);
    }

    /// Reads a word. Only called by the consumer, in memory that was published.
    #[inline]
    fn look(&self, position: u64) -> u64 {
        self.shadow(position).look();
        self.word(position).load(Ordering::Relaxed)
    }
}

/// Returns where the interesting words of a ring are: positions, sleep words, and the first
/// messages.
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

/// Wakes the side that sleeps on this word, if it does.
fn ring(word: &AtomicU32) {
    if word.load(Ordering::Relaxed) == WAITS && word.swap(AWAKE, Ordering::SeqCst) == WAITS {
        futex::wake_one(word);
    }
}

/// Announces a sleep on this word, checks `ready` once more, and sleeps if it is false.
fn sleep(word: &AtomicU32, timeout: Option<Duration>, ready: impl FnOnce() -> bool) {
    word.swap(WAITS, Ordering::SeqCst);
    // Announced before `ready` is checked. The other side publishes first and reads the word after
    // that. At least one of the two sees the other's write, so no wake-up is lost.
    full_fence();
    if !ready() {
        futex::wait(word, WAITS, timeout);
    }
    word.swap(AWAKE, Ordering::SeqCst);
}

/// The producer's private state.
#[derive(Default)]
pub(super) struct Producer {
    head: u64,
    /// The consumer's position as last seen. Read again only when the ring seems full.
    tail: u64,
}

/// Number of words that a message takes, including the word with its length.
pub(super) fn words_for(len: usize) -> u64 {
    1 + len.div_ceil(8) as u64
}

/// Returns the word whose first bytes are these, fewer than eight, and whose other bytes are 0.
///
/// It is put together in a register. Bytes that are copied into an array, and loaded from there as
/// a word, stall the processor.
#[inline]
fn partial_word(bytes: &[u8]) -> u64 {
    let mut word = 0;
    let mut at = 0;
    let mut rest = bytes;
    if let Some((four, behind)) = rest.split_first_chunk() {
        word = u64::from(u32::from_le_bytes(*four));
        (at, rest) = (32, behind);
    }
    if let Some((two, behind)) = rest.split_first_chunk() {
        word |= u64::from(u16::from_le_bytes(*two)) << at;
        (at, rest) = (at + 16, behind);
    }
    if let Some(one) = rest.first() {
        word |= u64::from(*one) << at;
    }
    word.to_le()
}

impl Producer {
    /// Whether there is space for this many words.
    fn room(&mut self, ring: &Ring, words: u64) -> Result<bool, Impossible> {
        if self.head - self.tail + words <= WORDS as u64 {
            return Ok(true);
        }
        // Read once and checked: the other side may write anything.
        let tail = ring.tail.0.load(Ordering::Acquire);
        if tail < self.tail || tail > self.head {
            return Err(Impossible);
        }
        self.tail = tail;
        Ok(self.head - tail + words <= WORDS as u64)
    }

    /// Returns how many words were published.
    pub(super) fn position(&self) -> u64 {
        self.head
    }

    /// Returns how many words the consumer has taken.
    pub(super) fn taken(&self, ring: &Ring) -> Result<u64, Impossible> {
        let tail = ring.tail.0.load(Ordering::Acquire);
        if tail < self.tail || tail > self.head { Err(Impossible) } else { Ok(tail) }
    }

    /// Whether there is space for a message of this length. `false` if there is no message.
    pub(super) fn has_room_for(&mut self, ring: &Ring, len: Option<usize>) -> bool {
        len.is_some_and(|len| self.room(ring, words_for(len)) == Ok(true))
    }

    /// Publishes a message made of these parts, if there is space. Returns whether there was. Does
    /// not ring.
    ///
    /// The length of every part but the last must be a multiple of the word size.
    pub(super) fn write<const N: usize>(
        &mut self,
        ring: &Ring,
        parts: [&[u8]; N],
    ) -> Result<bool, Impossible> {
        self.write_marked(ring, parts, 0)
    }

    /// Like [`write`](Self::write), for a value without a header.
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
            #[cfg(not(all(test, any(executor_loom, executor_shuttle))))]
            let part = match part.len() / 8 {
                0..MANY => part,
                many => {
                    let [first, second] = ring.run(at, many);
                    let (bytes, rest) = part.split_at(8 * many);
                    let (before, behind) = bytes.split_at(size_of_val(first));
                    words::fill(first, before);
                    words::fill(second, behind);
                    at += many as u64;
                    rest
                }
            };
            let (whole, rest) = part.as_chunks::<8>();
            for chunk in whole {
                ring.fill(at, u64::from_ne_bytes(*chunk));
                at += 1;
            }
            if !rest.is_empty() {
                ring.fill(at, partial_word(rest));
                at += 1;
            }
        }
        debug_assert_eq!(at, self.head + words, "only the last part may end within a word");
        self.head += words;
        ring.head.cpu.store(this_cpu(), Ordering::Relaxed);
        kill_point!(WordsWritten);
        // Publishes all words written above: the consumer reads `head` with acquire ordering.
        ring.head.position.store(self.head, Ordering::Release);
        kill_point!(HeadStored);
        Ok(true)
    }
}

/// The kind of a message.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum MessageKind {
    /// One or more frames, or a part of one.
    Frames,
    /// A value without a header.
    Value,
}

/// The next message of a ring.
pub(super) struct Next {
    pub(super) kind: MessageKind,
    /// Its length in bytes. Checked: so many bytes are published.
    pub(super) len: usize,
}

/// The consumer's private state.
#[derive(Default)]
pub(super) struct Consumer {
    tail: u64,
    /// The producer's position as last seen. Read again only when the ring seems empty.
    head: u64,
    /// The consumer's position when [`is_low`](Self::is_low) last returned `true`.
    looked: u64,
}

impl Consumer {
    /// Reads the producer's position and checks it.
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

    /// Whether no message is published. An impossible position counts as a message, so that `read`
    /// reports it.
    pub(super) fn is_empty(&self, ring: &Ring) -> bool {
        !ring.has_more_than(self.tail)
    }

    /// Returns how much was consumed.
    pub(super) fn position(&self) -> u64 {
        self.tail
    }

    /// Whether a quarter of the ring was consumed since this last returned `true`. If so, it is
    /// time to tell a producer that waits for space.
    pub(super) fn is_low(&mut self, _ring: &Ring) -> bool {
        let low = self.tail - self.looked >= WORDS as u64 / 4;
        if low {
            self.looked = self.tail;
        }
        low
    }

    /// Copies the next message into `message`, if there is one.
    pub(super) fn read(
        &mut self,
        ring: &Ring,
        message: &mut Vec<u8>,
    ) -> Result<Option<MessageKind>, Impossible> {
        let Some(next) = self.next(ring)? else { return Ok(None) };
        message.clear();
        self.append(ring, &next, message);
        Ok(Some(next.kind))
    }

    /// Returns what the next message is, if there is one.
    #[inline]
    pub(super) fn next(&mut self, ring: &Ring) -> Result<Option<Next>, Impossible> {
        if self.head == self.tail {
            self.look(ring)?;
            if self.head == self.tail {
                return Ok(None);
            }
        }
        // Read it once: the other side may change it at any time.
        let first = ring.look(self.tail);
        let (len, headless) = (first & !HEADLESS, first & HEADLESS != 0);
        let published = self.head - self.tail;
        if len > (published - 1) * 8 {
            return Err(Impossible);
        }
        let kind = if headless { MessageKind::Value } else { MessageKind::Frames };
        Ok(Some(Next { kind, len: len as usize }))
    }

    /// Returns how many messages of this length would fill what is published, as last seen.
    pub(super) fn count_of(&self, next: &Next) -> usize {
        ((self.head - self.tail) / words_for(next.len)) as usize
    }

    /// Appends the message that [`next`](Self::next) has just returned to `to`.
    #[inline]
    pub(super) fn append(&mut self, ring: &Ring, next: &Next, to: &mut Vec<u8>) {
        let words = words_for(next.len);
        let end = to.len() + next.len;
        to.reserve((words as usize - 1) * 8);
        let (mut at, behind) = (self.tail + 1, self.tail + words);
        #[cfg(not(all(test, any(executor_loom, executor_shuttle))))]
        if words >= MANY as u64 {
            let [first, second] = ring.run(at, (words - 1) as usize);
            words::append(first, to);
            words::append(second, to);
            at = behind;
        }
        while at < behind {
            to.extend_from_slice(&ring.look(at).to_ne_bytes());
            at += 1;
        }
        to.truncate(end);
        self.tail = at;
        kill_point!(MessageCopied);
        // Gives the words back to the producer, after they were copied.
        ring.tail.0.store(at, Ordering::Release);
        kill_point!(TailStored);
    }
}

#[cfg(all(test, not(any(executor_loom, executor_shuttle))))]
impl Ring {
    /// Writes a position as a hostile consumer may.
    pub(super) fn fake_tail(&self, tail: u64) {
        self.tail.0.store(tail, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring() -> Box<Ring> {
        // SAFETY: contains only atomics, for which all-zero bytes are a valid value.
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
            assert_eq!(consumer.read(&ring, &mut message), Ok(Some(MessageKind::Frames)));
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
