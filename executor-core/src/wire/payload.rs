//! Encoded arguments or an encoded result.

use std::{ops::Deref, sync::Arc};

/// Encoded bytes that are cheap to clone: small ones are stored here, large ones shared.
///
/// Most results are a number or two, and a million pending futures should not need a million allocations for them.
#[derive(Clone)]
pub(crate) enum Payload {
    Inline { len: u8, bytes: [u8; INLINE_BYTES_MAX] },
    Shared(Arc<Vec<u8>>),
}

const INLINE_BYTES_MAX: usize = 22;
const _: () = assert!(size_of::<Payload>() == 24);

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
}

impl PartialEq for Payload {
    fn eq(&self, other: &Payload) -> bool {
        **self == **other
    }
}

impl Eq for Payload {}

impl Deref for Payload {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Payload::Inline { len, bytes } => &bytes[..usize::from(*len)],
            Payload::Shared(vec) => vec,
        }
    }
}

impl std::fmt::Debug for Payload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Payload({} bytes)", self.len())
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
}
