//! The buffer into which values are encoded.
//!
//! ```text
//!  push, push, … ──► a vector, reused for the next value ──(32 KiB)──► a segment of shared memory
//!                                   ▲                                   │ no segment available
//!                                   └───────────────────────────────────┘ stays a vector
//! ```
//!
//! So a large argument is copied only once: from where the caller has it to where the worker reads
//! it.

use std::{io, sync::Arc};

use super::{attachment::Attachment, payload::Payload};
use crate::{
    os::{arena::SEGMENT_BYTES_MAX, spare},
    segment::{Lease, Store},
};

/// A value longer than this moves into a segment. A shorter one is as cheap through the ring, and
/// takes no segment.
const SEGMENT_FROM: usize = 32 * 1024;

/// A vector with a capacity above this is not kept for the next value.
const KEPT_BYTES_MAX: usize = 64 * 1024;

/// A segment grows by its own length, limited to this range. A lower value costs more system calls.
/// A higher value wastes more memory that is reserved and not used.
const GROWTH_BYTES: std::ops::RangeInclusive<usize> = 64 * 1024..=16 << 20;

/// How many bytes are gathered for a segment, if the buffer does that. With a higher value, they
/// leave the fastest cache meanwhile. With a lower value, each byte costs more.
const GATHERED_BYTES: usize = 8 * 1024;

/// A buffer for encoded values. The module's picture shows where its bytes are.
#[doc(hidden)]
#[derive(Debug, Default)]
pub struct Buffer {
    /// All bytes, as long as there is no segment. With a segment, only the bytes in front of
    /// `start`, and behind them those that are gathered for the segment.
    small: Vec<u8>,
    /// The position at which the current value begins. Other values are in front of it, and stay
    /// there.
    start: usize,
    /// Maximum length of `small`. Bytes beyond it are written by `extend_large`. It is 0 while the
    /// value is in a segment, and `usize::MAX` if the value has to stay in the vector.
    small_max: usize,
    segment: Option<Filling>,
    store: Option<Arc<Store>>,
    /// A value that is not longer than this stays in the vector, even if there is a store.
    segment_from: usize,
    /// Whether bytes are gathered in the vector before they are written to the segment. Then the
    /// value is taken by [`into_parts`](Self::into_parts) only.
    gathers: bool,
    /// Whether a large value moves into a spare vector.
    spares: bool,
}

#[derive(Debug)]
struct Filling {
    lease: Lease,
    len: usize,
    capacity: usize,
}

impl Filling {
    /// Appends bytes, which fit.
    fn write(&mut self, bytes: &[u8]) {
        self.lease.write(self.len, bytes);
        self.len += bytes.len();
    }
}

/// The encoded value that a buffer contains.
pub(crate) enum Contents<'a> {
    Bytes(&'a [u8]),
    /// The value is in a segment: the segment's number, and the value's length.
    Segment(u8, usize),
}

impl Buffer {
    /// Returns a buffer that always stays a vector.
    #[inline]
    pub fn new() -> Self {
        Self::with_store(None)
    }

    /// Returns a buffer that moves a large value into a segment of this store.
    #[inline]
    pub(crate) fn with_store(store: Option<Arc<Store>>) -> Self {
        Buffer { small_max: small_max(&store), store, ..Buffer::default() }
    }

    /// Makes the buffer reuse the memory of this vector.
    #[inline]
    pub(crate) fn using(mut self, mut small: Vec<u8>) -> Self {
        small.clear();
        self.small = small;
        self
    }

    /// Returns a buffer that always stays a vector, and appends to this one. A large value moves
    /// into a [spare](spare::take_to_grow) vector.
    #[inline]
    pub(crate) fn behind(vec: Vec<u8>) -> Self {
        let spares = vec.len() <= SEGMENT_FROM;
        let small_max = if spares { SEGMENT_FROM } else { usize::MAX };
        Buffer { start: vec.len(), small_max, small: vec, spares, ..Buffer::default() }
    }

    /// Returns a buffer as [`behind`](Self::behind) does, which moves a value longer than
    /// `segment_from` into a segment of this store.
    pub(crate) fn behind_in(vec: Vec<u8>, store: Arc<Store>, segment_from: usize) -> Self {
        let buffer = Self::behind(vec);
        let small_max = buffer.small_max.min(buffer.start.saturating_add(segment_from));
        Buffer { store: Some(store), segment_from, gathers: true, small_max, ..buffer }
    }

    /// Returns the vector, and the value that was begun last if it is in a segment.
    pub(crate) fn into_parts(mut self) -> (Vec<u8>, Option<(Lease, usize)>) {
        if self.segment.is_some() && self.small.len() > self.start {
            self.extend_large(&[]);
        }
        (self.small, self.segment.map(|filling| (filling.lease, filling.len)))
    }

    /// Returns the number of bytes that were written.
    #[inline]
    pub fn len(&self) -> usize {
        self.start + self.value_len()
    }

    /// Returns the number of bytes of the value that was begun last.
    #[inline]
    fn value_len(&self) -> usize {
        let in_segment = self.segment.as_ref().map_or(0, |filling| filling.len);
        in_segment + self.small.len() - self.start
    }

    /// Begins another value behind the existing ones. Only the last value may move into a segment.
    #[inline]
    pub(crate) fn begin(&mut self) {
        debug_assert!(self.segment.is_none(), "the value before was taken");
        self.start = self.small.len();
        self.small_max = small_max(&self.store).saturating_add(self.start);
    }

    /// Returns whether nothing was written.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Appends a byte.
    #[inline]
    pub fn push(&mut self, byte: u8) {
        if self.small.len() < self.small_max {
            self.small.push(byte);
        } else {
            self.extend_large(&[byte]);
        }
    }

    /// Appends bytes.
    #[inline]
    pub fn extend_from_slice(&mut self, bytes: &[u8]) {
        // The sum cannot overflow: neither length exceeds `isize::MAX`.
        if self.small.len() + bytes.len() <= self.small_max {
            self.small.extend_from_slice(bytes);
        } else {
            self.extend_large(bytes);
        }
    }

    /// Appends one byte, and then an array of bytes. Numbers and heads have this form.
    #[inline]
    pub(crate) fn extend_after<const N: usize>(&mut self, first: u8, rest: [u8; N]) {
        let len = self.small.len();
        if len.saturating_add(N) < self.small_max && self.small.capacity() - len > N {
            // The byte and the array are written to their places one after the other. If they were
            // put together in an array first, they would be stored in parts and loaded as one,
            // which stalls the processor.
            //
            // SAFETY: the vector has space for `N + 1` bytes behind its length, as checked above.
            // The bytes are initialised before the length covers them. The vector belongs to this
            // buffer alone and is borrowed exclusively; a fork copies it whole. Bytes that do not
            // fit take the other branch.
            unsafe {
                let end = self.small.as_mut_ptr().add(len);
                end.write(first);
                end.add(1).cast::<[u8; N]>().write_unaligned(rest);
                self.small.set_len(len + 1 + N);
            }
        } else {
            self.extend_elsewhere(first, &rest);
        }
    }

    /// Appends the first `len` bytes of an array.
    #[inline]
    pub(crate) fn extend_with_first(&mut self, len: usize, bytes: [u8; 8]) {
        let end = self.small.len();
        if end.saturating_add(8) <= self.small_max {
            // The whole array is copied, so that it is stored as one word. A copy of `len` bytes
            // would be a call, which stores parts that the next reader loads as one.
            self.small.extend_from_slice(&bytes);
            self.small.truncate(end + len);
        } else {
            self.extend_elsewhere(bytes[0], &bytes[1..len]);
        }
    }

    #[cold]
    #[inline(never)]
    fn extend_elsewhere(&mut self, first: u8, rest: &[u8]) {
        self.push(first);
        self.extend_from_slice(rest);
    }

    fn extend_large(&mut self, bytes: &[u8]) {
        // The value is in a segment, and the bytes fit into it.
        let gathered = self.small.len() - self.start;
        if let Some(filling) = &mut self.segment
            && filling.capacity - filling.len >= gathered + bytes.len()
        {
            if gathered > 0 {
                filling.write(&self.small[self.start..]);
                self.small.truncate(self.start);
            }
            filling.write(bytes);
            return;
        }
        self.grow(bytes);
    }

    #[cold]
    fn grow(&mut self, bytes: &[u8]) {
        let wanted = self.value_len().saturating_add(bytes.len());
        let gathered = match self.segment {
            Some(_) => self.small.split_off(self.start),
            None => Vec::new(),
        };
        let filling = match self.segment.take() {
            Some(mut filling) => {
                let step = filling.capacity.clamp(*GROWTH_BYTES.start(), *GROWTH_BYTES.end());
                let roomy = wanted.max(filling.capacity + step).min(SEGMENT_BYTES_MAX);
                // Try to reserve more than is needed now. If the system refuses, reserve what is
                // needed.
                match filling.lease.reserve(roomy.max(wanted)) || filling.lease.reserve(wanted) {
                    true => Ok(filling),
                    // The segment cannot grow enough, so the value continues in a vector.
                    false => Err(Some(filling)),
                }
            }
            None => match self.store_for(wanted).and_then(|store| store.take(wanted)) {
                Some(mut lease) => {
                    let value = &self.small[self.start..];
                    lease.write(0, value);
                    let len = value.len();
                    self.small.truncate(self.start);
                    Ok(Filling { lease, len, capacity: 0 })
                }
                None => Err(None),
            },
        };
        match filling {
            Ok(mut filling) => {
                filling.capacity = filling.lease.capacity();
                filling.write(&gathered);
                filling.write(bytes);
                // From now on, every byte takes the slow path into the segment, or the one into
                // the vector until that is full.
                self.small_max = 0;
                if self.gathers {
                    self.small.reserve(GATHERED_BYTES + 8);
                    self.small_max = self.start + GATHERED_BYTES;
                }
                self.segment = Some(filling);
            }
            Err(filling) => {
                // There is no segment, and no segment is asked for again. Or it is too early for
                // one.
                self.small_max = match &self.store {
                    Some(_) if wanted <= self.segment_from => self.start + self.segment_from,
                    _ => usize::MAX,
                };
                if std::mem::take(&mut self.spares) {
                    let mut other = spare::take_to_grow(wanted);
                    if other.capacity() > self.small.capacity() {
                        other.extend_from_slice(&self.small);
                        std::mem::swap(&mut self.small, &mut other);
                    }
                    spare::give(other);
                }
                if let Some(Filling { lease, len, .. }) = filling {
                    self.small.reserve(wanted);
                    lease.copy_to(len, &mut self.small);
                    self.small.extend_from_slice(&gathered);
                }
                self.small.extend_from_slice(bytes);
            }
        }
    }

    fn store_for(&self, wanted: usize) -> Option<&Arc<Store>> {
        self.store.as_ref().filter(|_| wanted > self.segment_from)
    }

    /// Removes the bytes behind the first `len` ones.
    pub fn truncate(&mut self, len: usize) {
        match &mut self.segment {
            Some(filling) if len > self.start => {
                let gathered = (len - self.start).saturating_sub(filling.len);
                filling.len = filling.len.min(len - self.start);
                self.small.truncate(self.start + gathered);
            }
            _ => {
                self.segment = None;
                self.small.truncate(len);
                self.start = self.start.min(len);
                self.small_max = small_max(&self.store).saturating_add(self.start);
            }
        }
    }

    /// Removes everything that was written.
    pub fn clear(&mut self) {
        self.truncate(0);
    }

    /// Returns the value that was begun last.
    #[inline]
    pub(crate) fn contents(&self) -> Contents<'_> {
        debug_assert!(!self.gathers, "it is taken in another way");
        match &self.segment {
            Some(filling) => Contents::Segment(filling.lease.number(), filling.len),
            None => Contents::Bytes(&self.small[self.start..]),
        }
    }

    /// Returns all values, if none of them is in a segment.
    #[inline]
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.small
    }

    /// Takes the value that was begun last, without copying it if it is in a segment. The values in
    /// front of it stay. The vector stays as well, unless it is too large.
    pub(crate) fn take(&mut self, attachments: Vec<Attachment>) -> Payload {
        debug_assert!(!self.gathers, "it is taken in another way");
        let payload = match self.segment.take() {
            Some(Filling { lease, len, .. }) => Payload::in_segment(lease, len, attachments),
            None => {
                let bytes = match self.small.capacity() > KEPT_BYTES_MAX && self.start == 0 {
                    true => std::mem::take(&mut self.small).into(),
                    false => Payload::from(&self.small[self.start..]),
                };
                bytes.with(attachments)
            }
        };
        self.truncate(self.start);
        payload
    }

    /// Returns everything that was written, as a vector.
    pub fn into_vec(mut self) -> Vec<u8> {
        if let Some(filling) = self.segment.take() {
            let gathered = self.small.split_off(self.start);
            filling.lease.copy_to(filling.len, &mut self.small);
            self.small.extend_from_slice(&gathered);
        }
        self.small
    }

    /// Returns the vector for reuse.
    pub(crate) fn into_small(mut self) -> Vec<u8> {
        match self.small.capacity() <= KEPT_BYTES_MAX {
            true => std::mem::take(&mut self.small),
            false => Vec::new(),
        }
    }

    /// Leaves the segment to the pool, which was told about it, and prepares the buffer for the
    /// next value.
    #[inline]
    pub(crate) fn leave(&mut self) {
        if self.segment.is_none() && self.small.len() <= SEGMENT_FROM {
            // This is the usual case: the value is not too large, and no segment was asked for.
            self.small.clear();
            return;
        }
        if let Some(filling) = self.segment.take() {
            filling.lease.leave();
        }
        if self.small.capacity() > KEPT_BYTES_MAX {
            self.small = Vec::new();
        }
        self.clear();
    }
}

fn small_max(store: &Option<Arc<Store>>) -> usize {
    if store.is_some() { SEGMENT_FROM } else { usize::MAX }
}

impl io::Write for Buffer {
    #[inline]
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    #[inline]
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.extend_from_slice(bytes);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(buffer: &mut Buffer, len: usize) {
        for i in 0..len {
            match i % 3 {
                0 => buffer.push(i as u8),
                _ => buffer.extend_from_slice(&[i as u8]),
            }
        }
    }

    fn expected(len: usize) -> Vec<u8> {
        (0..len).map(|i| i as u8).collect()
    }

    #[test]
    fn bytes_are_the_same_on_either_side_of_the_threshold() {
        let store = Store::create().unwrap();
        for len in [0, 1, SEGMENT_FROM - 1, SEGMENT_FROM, SEGMENT_FROM + 1, 1_000_000] {
            let mut buffer = Buffer::with_store(Some(Arc::clone(&store)));
            fill(&mut buffer, len);
            assert_eq!(buffer.len(), len);
            assert_eq!(
                matches!(buffer.contents(), Contents::Segment(..)),
                len > SEGMENT_FROM,
                "{len}"
            );
            let payload = buffer.take(Vec::new());
            assert!(*payload.bytes().unwrap() == *expected(len), "{len}");
        }
        assert_eq!(store.count().0, 1, "one after the other they used the same segment");
    }

    #[test]
    fn what_is_gathered_for_a_segment_is_in_order_at_every_length() {
        let store = Store::create().unwrap();
        let from = 100_000;
        for len in [0, 1, from - 1, from, from + 1, from + GATHERED_BYTES - 1]
            .into_iter()
            .chain(from + GATHERED_BYTES..from + GATHERED_BYTES + 20)
            .chain([300_000, 2_000_000])
        {
            for front in [&b""[..], b"front", &[9; 50_000]] {
                let filled = || {
                    let store = Arc::clone(&store);
                    let mut buffer = Buffer::behind_in(front.to_vec(), store, from);
                    fill(&mut buffer, len);
                    assert_eq!(buffer.len(), front.len() + len);
                    buffer
                };
                let (mut vec, filling) = filled().into_parts();
                assert_eq!(filling.is_some(), len > from, "{len}");
                if let Some((lease, filled)) = filling {
                    assert!(vec == front && filled == len, "{len}");
                    lease.copy_to(filled, &mut vec);
                }
                assert!(vec == [front, &expected(len)].concat(), "{len}");
                assert!(filled().into_vec() == vec, "{len}");
                let mut shorter = filled();
                for cut in [5, GATHERED_BYTES, GATHERED_BYTES + 3] {
                    let left = (front.len() + len).saturating_sub(cut).max(front.len() + 1);
                    if left < shorter.len() {
                        shorter.truncate(left);
                        assert_eq!(shorter.len(), left);
                    }
                }
                let left = shorter.len();
                assert!(shorter.into_vec() == vec[..left], "{len}");
            }
        }
        assert_eq!(store.count().0, 1, "all were given back");
    }

    #[test]
    fn a_byte_and_bytes_are_the_same_at_every_length() {
        let store = Store::create().unwrap();
        let (mut here, mut there) =
            (Buffer::with_store(Some(Arc::clone(&store))), Buffer::with_store(Some(store)));
        here.push(0);
        there.push(0);
        here.begin();
        there.begin();
        for at in 0..2 * SEGMENT_FROM / 7 {
            let byte = at as u8;
            here.extend_after(byte, [1; 0]);
            here.extend_after(byte, [byte]);
            here.extend_after(byte, [1, 2, byte]);
            there.extend_from_slice(&[byte, byte, byte, byte, 1, 2, byte]);
            assert_eq!(here.len(), there.len());
        }
        assert!(matches!(here.contents(), Contents::Segment(..)));
        assert!(*here.take(Vec::new()) == *there.take(Vec::new()));
        assert_eq!(here.into_vec(), [0]);
    }

    #[test]
    fn without_a_segment_it_stays_a_vector() {
        let store = Store::create().unwrap();
        let all: Vec<_> = std::iter::from_fn(|| store.take(1)).collect();
        let mut buffer = Buffer::with_store(Some(Arc::clone(&store)));
        fill(&mut buffer, 100_000);
        assert!(matches!(buffer.contents(), Contents::Bytes(_)));
        assert!(*buffer.take(Vec::new()) == *expected(100_000));
        drop(all);
        fill(&mut buffer, 100_000);
        assert!(
            matches!(buffer.contents(), Contents::Segment(..)),
            "asked again for the next value"
        );
    }

    #[test]
    fn what_outgrows_a_segment_goes_back_into_a_vector() {
        let store = Store::create().unwrap();
        let mut buffer = Buffer::with_store(Some(Arc::clone(&store)));
        fill(&mut buffer, 100_000);
        // Simulate the bound being reached here.
        let filling = buffer.segment.as_mut().unwrap();
        let all: Vec<_> = std::iter::from_fn(|| store.take(1)).collect();
        assert!(!all.is_empty() && !filling.lease.reserve(SEGMENT_BYTES_MAX + 1));
        drop(all);
        let filling = buffer.segment.take().unwrap();
        filling.lease.copy_to(filling.len, &mut buffer.small);
        buffer.small_max = usize::MAX;
        buffer.extend_from_slice(&[1, 2]);
        assert_eq!(buffer.into_vec().len(), 100_002);
    }
}
