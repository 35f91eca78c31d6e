//! What values are encoded into.
//!
//! ```text
//!   push, push, … ──► a vector, used again for the next value ──(32 KiB)──► a segment of shared memory
//!                                    ▲                                          │ no segment to be had
//!                                    └──────────────────────────────────────────┘ then it stays a vector
//! ```
//!
//! So a large argument is copied once, from where the caller has it to where the worker reads it.

use std::{io, sync::Arc};

use super::{attachment::Attachment, payload::Payload};
use crate::{
    os::arena::SEGMENT_BYTES_MAX,
    segment::{Lease, Store},
};

/// What is longer moves into a segment. Shorter ones cost the same by the ring, and no segment.
const SEGMENT_FROM: usize = 32 * 1024;

/// A vector that grew beyond this is not kept for the next value.
const KEPT_BYTES_MAX: usize = 64 * 1024;

/// A segment grows by its own length, by this much at least and at most: to grow costs a system call, and what was
/// reserved and is not used costs memory.
const GROWTH_BYTES: std::ops::RangeInclusive<usize> = 64 * 1024..=16 << 20;

/// See the module's picture.
#[doc(hidden)]
#[derive(Debug, Default)]
pub struct Buffer {
    /// Everything, as long as there is no segment; what is before `start` when there is one.
    small: Vec<u8>,
    /// Where the value begins: before it lie others, which stay.
    start: usize,
    /// What is longer than this goes another way than `small`.
    small_max: usize,
    segment: Option<Filling>,
    store: Option<Arc<Store>>,
}

#[derive(Debug)]
struct Filling {
    lease: Lease,
    len: usize,
    capacity: usize,
}

/// What was encoded.
pub(crate) enum Contents<'a> {
    Bytes(&'a [u8]),
    /// In a segment: its number and the length.
    Segment(u8, usize),
}

impl Buffer {
    /// One that stays in a vector.
    #[inline]
    pub fn new() -> Self {
        Self::with_store(None)
    }

    /// One that moves into a segment of this store when it has grown.
    #[inline]
    pub(crate) fn with_store(store: Option<Arc<Store>>) -> Self {
        Buffer { small_max: small_max(&store), store, ..Buffer::default() }
    }

    /// Uses the memory of this vector again.
    #[inline]
    pub(crate) fn using(mut self, mut small: Vec<u8>) -> Self {
        small.clear();
        self.small = small;
        self
    }

    /// Bytes that were written.
    #[inline]
    pub fn len(&self) -> usize {
        self.start + self.value_len()
    }

    /// Bytes of the value that was begun last.
    #[inline]
    fn value_len(&self) -> usize {
        self.segment.as_ref().map_or(self.small.len() - self.start, |filling| filling.len)
    }

    /// Begins another value behind what is there; only this one may move into a segment.
    #[inline]
    pub(crate) fn begin(&mut self) {
        debug_assert!(self.segment.is_none(), "the value before was taken");
        self.start = self.small.len();
        self.small_max = small_max(&self.store).saturating_add(self.start);
    }

    /// Whether nothing was written.
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
        // Cannot overflow: neither is longer than `isize::MAX`.
        if self.small.len() + bytes.len() <= self.small_max {
            self.small.extend_from_slice(bytes);
        } else {
            self.extend_large(bytes);
        }
    }

    /// Appends a byte and bytes: what a number or a head is.
    #[inline]
    pub(crate) fn extend_after<const N: usize>(&mut self, first: u8, rest: [u8; N]) {
        let len = self.small.len();
        if len.saturating_add(N) < self.small_max && self.small.capacity() - len > N {
            // One after the other into their places: put together before, in an array, they would be stored in parts and loaded
            // as one, which stalls.
            //
            // SAFETY: the vector has room for `N + 1` bytes behind its length, which are initialised before the length says so.
            // It is this buffer's own, borrowed exclusively; a fork copies it whole, and what does not fit goes another way.
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

    #[cold]
    #[inline(never)]
    fn extend_elsewhere(&mut self, first: u8, rest: &[u8]) {
        self.push(first);
        self.extend_from_slice(rest);
    }

    fn extend_large(&mut self, bytes: &[u8]) {
        if let Some(filling) = &mut self.segment
            && filling.capacity - filling.len >= bytes.len()
        {
            filling.lease.write(filling.len, bytes);
            filling.len += bytes.len();
            return;
        }
        self.grow(bytes);
    }

    #[cold]
    fn grow(&mut self, bytes: &[u8]) {
        let wanted = self.value_len().saturating_add(bytes.len());
        let filling = match self.segment.take() {
            Some(mut filling) => {
                let step = filling.capacity.clamp(*GROWTH_BYTES.start(), *GROWTH_BYTES.end());
                let roomy = wanted.max(filling.capacity + step).min(SEGMENT_BYTES_MAX);
                match filling.lease.reserve(roomy.max(wanted)) || filling.lease.reserve(wanted) {
                    true => Ok(filling),
                    // It was too little: the bytes go on in a vector.
                    false => Err(Some(filling)),
                }
            }
            None => match self.store.as_ref().and_then(|store| store.take(wanted)) {
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
                filling.lease.write(filling.len, bytes);
                filling.len += bytes.len();
                self.small_max = 0;
                self.segment = Some(filling);
            }
            Err(filling) => {
                self.small_max = usize::MAX;
                if let Some(Filling { lease, len, .. }) = filling {
                    self.small.reserve(wanted);
                    lease.copy_to(len, &mut self.small);
                }
                self.small.extend_from_slice(bytes);
            }
        }
    }

    /// Forgets what was written behind so many bytes.
    pub fn truncate(&mut self, len: usize) {
        match &mut self.segment {
            Some(filling) if len > self.start => filling.len = filling.len.min(len - self.start),
            _ => {
                self.segment = None;
                self.small.truncate(len);
                self.start = self.start.min(len);
                self.small_max = small_max(&self.store).saturating_add(self.start);
            }
        }
    }

    /// Forgets what was written.
    pub fn clear(&mut self) {
        self.truncate(0);
    }

    /// The value that was begun last.
    #[inline]
    pub(crate) fn contents(&self) -> Contents<'_> {
        match &self.segment {
            Some(filling) => Contents::Segment(filling.lease.number(), filling.len),
            None => Contents::Bytes(&self.small[self.start..]),
        }
    }

    /// All values, if none is in a segment.
    #[inline]
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.small
    }

    /// The value that was begun last, where it lies. What is before it stays, and so does the vector, if it is not too
    /// large.
    pub(crate) fn take(&mut self, attachments: Vec<Attachment>) -> Payload {
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

    /// What was written, as a vector.
    pub fn into_vec(self) -> Vec<u8> {
        let mut vec = self.small;
        if let Some(filling) = self.segment {
            filling.lease.copy_to(filling.len, &mut vec);
        }
        vec
    }

    /// Takes the vector back, to be used again.
    pub(crate) fn into_small(mut self) -> Vec<u8> {
        match self.small.capacity() <= KEPT_BYTES_MAX {
            true => std::mem::take(&mut self.small),
            false => Vec::new(),
        }
    }

    /// Leaves the segment to the pool, which was told of it, and makes ready for the next value.
    #[inline]
    pub(crate) fn leave(&mut self) {
        if self.segment.is_none() && self.small.len() <= SEGMENT_FROM {
            // Nearly always; nothing was refused, nothing is too large to be kept.
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
            assert_eq!(matches!(buffer.contents(), Contents::Segment(..)), len > SEGMENT_FROM, "{len}");
            let payload = buffer.take(Vec::new());
            assert!(*payload.bytes().unwrap() == *expected(len), "{len}");
        }
        assert_eq!(store.count().0, 1, "one after the other they used the same segment");
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
        assert!(matches!(buffer.contents(), Contents::Segment(..)), "asked again for the next value");
    }

    #[test]
    fn what_outgrows_a_segment_goes_back_into_a_vector() {
        let store = Store::create().unwrap();
        let mut buffer = Buffer::with_store(Some(Arc::clone(&store)));
        fill(&mut buffer, 100_000);
        // As if the bound were here.
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
