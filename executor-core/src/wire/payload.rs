//! Encoded arguments, or an encoded result.

use std::{borrow::Cow, io, ops::Deref, sync::Arc};

use super::{attachment::Attachment, frame::flag};
use crate::{
    os::sealed::SealedView,
    segment::{Lease, Received},
};

/// Encoded bytes that are cheap to clone. Small payloads are stored inline, large ones are shared.
///
/// Most results are a number or two. A million pending futures should not need a million
/// allocations for them.
#[derive(Clone)]
pub(crate) enum Payload {
    Inline { len: u8, bytes: [u8; INLINE_BYTES_MAX] },
    Shared(Arc<Vec<u8>>),
    Large(Arc<Large>),
}

const INLINE_BYTES_MAX: usize = 22;
const _: () = assert!(size_of::<Payload>() == 24);

/// A payload that does not consist only of bytes in this process: it has bytes elsewhere, or
/// attachments.
pub(crate) struct Large {
    body: Body,
    attachments: Vec<Attachment>,
}

enum Body {
    /// In this process, inline or shared.
    Here(Payload),
    /// In a segment that this process has written. The number is the length.
    Segment(Lease, usize),
    /// In a segment that a worker has written.
    Received(Received),
    /// In a file that a child has sealed.
    Sealed(SealedView),
}

/// The place of a payload in a segment: what a frame with [`flag::SEGMENT`] contains instead of the
/// payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reference {
    pub(crate) number: u64,
    pub(crate) len: u64,
}

impl Reference {
    pub(crate) fn to_bytes(self) -> [u8; 16] {
        let mut out = [0; 16];
        out[..8].copy_from_slice(&self.number.to_le_bytes());
        out[8..].copy_from_slice(&self.len.to_le_bytes());
        out
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (number, len) = bytes.split_first_chunk()?;
        let len = len.try_into().ok()?;
        Some(Reference { number: u64::from_le_bytes(*number), len: u64::from_le_bytes(len) })
    }
}

impl From<Vec<u8>> for Payload {
    fn from(vec: Vec<u8>) -> Self {
        match Payload::inline(&vec) {
            Some(inline) => inline,
            None => Payload::Shared(Arc::new(vec)),
        }
    }
}

impl From<&[u8]> for Payload {
    fn from(bytes: &[u8]) -> Self {
        Payload::inline(bytes).unwrap_or_else(|| Payload::Shared(Arc::new(bytes.to_vec())))
    }
}

impl Payload {
    fn inline(from: &[u8]) -> Option<Self> {
        if from.len() > INLINE_BYTES_MAX {
            return None;
        }
        let mut bytes = [0; INLINE_BYTES_MAX];
        bytes[..from.len()].copy_from_slice(from);
        Some(Payload::Inline { len: from.len() as u8, bytes })
    }

    /// Returns a payload whose bytes are in a segment of this process.
    pub(crate) fn in_segment(lease: Lease, len: usize, attachments: Vec<Attachment>) -> Self {
        Payload::Large(Arc::new(Large { body: Body::Segment(lease, len), attachments }))
    }

    /// Returns a payload whose bytes are in a segment of a worker.
    pub(crate) fn received(received: Received) -> Self {
        Payload::Large(Arc::new(Large { body: Body::Received(received), attachments: Vec::new() }))
    }

    /// Returns a payload whose bytes are in a file that a child has sealed.
    pub(crate) fn sealed(view: SealedView) -> Self {
        Payload::Large(Arc::new(Large { body: Body::Sealed(view), attachments: Vec::new() }))
    }

    /// Returns the same bytes with descriptors.
    pub(crate) fn with(self, attachments: Vec<Attachment>) -> Self {
        if attachments.is_empty() {
            return self;
        }
        let body = match self {
            Payload::Large(large) => match Arc::try_unwrap(large) {
                // Only this payload owns the bytes, so they can move. Otherwise they stay shared.
                Ok(large) => large.body,
                Err(shared) => Body::Here(Payload::Large(shared)),
            },
            small => Body::Here(small),
        };
        Payload::Large(Arc::new(Large { body, attachments }))
    }

    /// Returns the flags and the bytes that a frame contains for this payload.
    pub(crate) fn on_the_wire(&self) -> (u8, Cow<'_, Payload>) {
        let Payload::Large(large) = self else { return (0, Cow::Borrowed(self)) };
        let attached = if large.attachments.is_empty() { 0 } else { flag::ATTACHED };
        match &large.body {
            Body::Here(bytes) => (attached, Cow::Borrowed(bytes)),
            Body::Segment(lease, len) => {
                let reference = Reference { number: u64::from(lease.number()), len: *len as u64 };
                (attached | flag::SEGMENT, Cow::Owned(Payload::from(&reference.to_bytes()[..])))
            }
            // Results are never sent on.
            Body::Received(_) | Body::Sealed(_) => (attached, Cow::Owned(Payload::from(&[][..]))),
        }
    }

    /// Returns the number of bytes, wherever they are.
    pub(crate) fn size(&self) -> usize {
        match self {
            Payload::Large(large) => match &large.body {
                Body::Segment(_, len) => *len,
                Body::Received(received) => received.len(),
                _ => self.len(),
            },
            _ => self.len(),
        }
    }

    /// Returns whether the bytes are in a segment.
    pub(crate) fn is_in_segment(&self) -> bool {
        matches!(self, Payload::Large(large) if matches!(large.body, Body::Segment(..) | Body::Received(_)))
    }

    /// Gives up the segment of the payload: it is never used again. A process may read it for as
    /// long as that process lives.
    pub(crate) fn leave_segment(&self) {
        if let Payload::Large(large) = self {
            match &large.body {
                Body::Here(inner) => inner.leave_segment(),
                Body::Segment(lease, _) => lease.give_up(),
                Body::Received(_) | Body::Sealed(_) => {}
            }
        }
    }

    /// Returns the descriptors that came with the payload, or that go with it.
    pub(crate) fn attachments(&self) -> &[Attachment] {
        match self {
            Payload::Large(large) => &large.attachments,
            _ => &[],
        }
    }

    /// Returns the result, if it is still in a worker's segment.
    pub(crate) fn as_received(&self) -> Option<&Received> {
        match self {
            Payload::Large(large) => match &large.body {
                Body::Received(received) => Some(received),
                Body::Here(inner) => inner.as_received(),
                Body::Segment(..) | Body::Sealed(_) => None,
            },
            _ => None,
        }
    }

    /// Returns the bytes. Copies them if they are in memory that a worker could write to.
    pub(crate) fn bytes(&self) -> io::Result<Cow<'_, [u8]>> {
        match self {
            Payload::Large(large) => match &large.body {
                Body::Here(inner) => inner.bytes(),
                Body::Received(received) => received.copy_from(0).map(Cow::Owned),
                Body::Sealed(view) => Ok(Cow::Borrowed(view.bytes())),
                Body::Segment(lease, len) => {
                    let mut copy = Vec::new();
                    lease.copy_to(*len, &mut copy);
                    Ok(Cow::Owned(copy))
                }
            },
            here => Ok(Cow::Borrowed(here)),
        }
    }
}

impl PartialEq for Payload {
    fn eq(&self, other: &Payload) -> bool {
        **self == **other
    }
}

impl Eq for Payload {}

impl Deref for Payload {
    type Target = [u8];

    /// Returns the bytes if they are in this process, and an empty slice if they are in a segment.
    /// Bytes in a segment are available only from [`bytes`](Payload::bytes), which copies them,
    /// because a worker could write to them.
    fn deref(&self) -> &[u8] {
        match self {
            Payload::Inline { len, bytes } => &bytes[..usize::from(*len)],
            Payload::Shared(vec) => vec,
            Payload::Large(large) => match &large.body {
                Body::Here(bytes) => bytes,
                Body::Sealed(view) => view.bytes(),
                Body::Segment(..) | Body::Received(_) => &[],
            },
        }
    }
}

impl std::fmt::Debug for Payload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Payload::Large(large) => match &large.body {
                Body::Here(inner) => inner.fmt(f),
                Body::Segment(lease, len) => write!(f, "Payload({lease:?}, {len} bytes)"),
                Body::Received(received) => write!(f, "Payload({received:?})"),
                Body::Sealed(view) => write!(f, "Payload({} bytes)", view.bytes().len()),
            },
            here => write!(f, "Payload({} bytes)", here.len()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_reads_back() {
        for len in [0, 1, 21, 22, 23, 100] {
            let bytes: Vec<u8> = (0..len).collect();
            assert_eq!(*Payload::from(bytes.clone()), *bytes);
        }
    }

    #[test]
    fn a_reference_survives_the_round_trip_and_garbage_is_none() {
        let reference = Reference { number: 3, len: 1 << 40 };
        assert_eq!(Reference::from_bytes(&reference.to_bytes()), Some(reference));
        for len in [0, 8, 15, 17] {
            assert_eq!(Reference::from_bytes(&vec![1; len]), None);
        }
    }
}
