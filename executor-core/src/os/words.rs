//! Copies many words of shared memory at once.
//!
//! A loop over atomics copies a word at a time, which takes four times as long.

use std::sync::atomic::AtomicU64;

/// Writes bytes to words. Nobody else may use the words before they are published.
///
/// # Panics
/// If the bytes are not as long as the words.
pub(crate) fn fill(words: &[AtomicU64], bytes: &[u8]) {
    assert_eq!(size_of_val(words), bytes.len());
    // SAFETY: both are this long, and a `&[u8]` does not overlap atomics. Atomics may be written
    // through a shared reference. No thread of this process uses these words at this moment: the
    // caller owns them until it publishes them. A fork has the same memory, and does not use the
    // ring. Another process that does not keep to the protocol can only make other bytes of them,
    // as it can at any other moment.
    unsafe {
        let to = words.as_ptr().cast::<u8>().cast_mut();
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len());
    }
}

/// Appends the bytes of words to a vector. They must be published, and not given back.
pub(crate) fn append(words: &[AtomicU64], to: &mut Vec<u8>) {
    let len = size_of_val(words);
    to.reserve(len);
    // SAFETY: the vector has room for so many bytes behind its length, and they are initialized
    // when the length covers them. The words are published, so no thread of this process writes
    // them before they are given back. What another process that does not keep to the protocol
    // writes meanwhile only decides which bytes arrive: each is valid, and none is read again.
    unsafe {
        let end = to.as_mut_ptr().add(to.len());
        std::ptr::copy_nonoverlapping(words.as_ptr().cast::<u8>(), end, len);
        to.set_len(to.len() + len);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_out_as_they_went_in() {
        let words: [AtomicU64; 5] = Default::default();
        let bytes: Vec<u8> = (1..=40).collect();
        fill(&words, &bytes);
        let mut out = vec![0];
        append(&words[..0], &mut out);
        append(&words[1..], &mut out);
        assert_eq!(out[1..], bytes[8..]);
        assert_eq!(words[0].load(std::sync::atomic::Ordering::Relaxed).to_ne_bytes(), bytes[..8]);
    }
}
