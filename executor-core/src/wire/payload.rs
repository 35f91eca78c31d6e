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
        if vec.len() <= INLINE_BYTES_MAX {
            let mut bytes = [0; INLINE_BYTES_MAX];
            bytes[..vec.len()].copy_from_slice(&vec);
            Payload::Inline { len: vec.len() as u8, bytes }
        } else {
            Payload::Shared(Arc::new(vec))
        }
    }
}

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
