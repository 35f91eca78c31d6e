//! Encoded values of consecutive tasks, one behind the other.
//!
//! ```text
//! bytes   value 0 │ value 1 │ value 2 │ …
//! ends            ▲         ▲         ▲
//! ```
//!
//! The short values of a map's items come in large numbers. In this form they cost two allocations
//! for all values that come together, and each is decoded from where it was received.

/// Encoded values. They are added at the end, and taken from the front.
#[derive(Clone, Debug, Default)]
pub(crate) struct Values {
    bytes: Vec<u8>,
    /// For each value, the position at which it ends.
    ends: Vec<u32>,
    /// Number of values that were taken.
    taken: usize,
}

/// Bytes that are reserved before there are values to fill them. With more, a worker whose values
/// are mixed with other replies makes the pool allocate many times what it sends. With less, the
/// memory grows in more steps.
const RESERVED_MAX: usize = 2048;

impl Values {
    /// Number of values that were not taken.
    pub(crate) fn len(&self) -> usize {
        self.ends.len() - self.taken
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes memory for `count` values of `len` bytes, or for the first of them: at most
    /// [`RESERVED_MAX`], as other values may come.
    pub(crate) fn reserve(&mut self, count: usize, len: usize) {
        let count = count.min(RESERVED_MAX / (len + size_of::<u32>()));
        self.ends.reserve(count);
        // A message is written in whole words.
        self.bytes.reserve(count * len + size_of::<u64>());
    }

    /// Adds the value that `write` appends to the bytes. All values together are shorter than
    /// 4 GiB, since they fit into a ring.
    #[inline]
    pub(crate) fn push_with(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        write(&mut self.bytes);
        self.ends.push(self.bytes.len() as u32);
    }

    /// Returns the position at which the next value begins.
    #[inline]
    fn start(&self) -> usize {
        self.taken.checked_sub(1).map_or(0, |last| self.ends[last] as usize)
    }

    /// Takes the first value.
    #[inline]
    pub(crate) fn next(&mut self) -> Option<&[u8]> {
        let end = *self.ends.get(self.taken)? as usize;
        let start = self.start();
        self.taken += 1;
        self.bytes.get(start..end)
    }

    /// Takes the first `count` values, or all if there are fewer.
    pub(crate) fn take(&mut self, count: usize) -> Values {
        if count >= self.len() {
            return std::mem::take(self);
        }
        let mut first = Values::default();
        while first.len() < count
            && let Some(value) = self.next()
        {
            first.push_with(|bytes| bytes.extend_from_slice(value));
        }
        first
    }
}

impl PartialEq for Values {
    fn eq(&self, other: &Values) -> bool {
        let (mut mine, mut theirs) = (self.clone(), other.clone());
        loop {
            match (mine.next(), theirs.next()) {
                (None, None) => return true,
                (one, other) if one != other => return false,
                _ => {}
            }
        }
    }
}

impl Eq for Values {}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn values(of: &[&str]) -> Values {
        let mut values = Values::default();
        for value in of {
            values.push_with(|bytes| bytes.extend_from_slice(value.as_bytes()));
        }
        values
    }

    #[test]
    fn values_come_out_as_they_went_in_whole_or_in_parts() {
        let all = ["one", "", "three", "", "a fifth", ""];
        for first in 0..=all.len() + 1 {
            for second in 0..=all.len() {
                let mut rest = values(&all);
                let parts = [rest.take(first), rest.take(second), rest];
                assert_eq!(parts[0].len(), first.min(all.len()));
                let mut got = Vec::new();
                for mut part in parts {
                    while let Some(value) = part.next() {
                        got.push(String::from_utf8(value.to_vec()).unwrap());
                    }
                    assert!(part.is_empty());
                }
                assert_eq!(got, all, "{first}, {second}");
            }
        }
    }

    #[test]
    fn equality_compares_the_values_that_are_left() {
        let mut longer = values(&["a", "bc"]);
        longer.next();
        assert_eq!(longer, values(&["bc"]));
        assert_ne!(longer, values(&["b", "c"]));
        assert_ne!(longer, values(&[]));
    }
}
