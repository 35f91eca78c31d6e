//! Which of the replies that have given a client something it has read. No I/O.
//!
//! A client that dies with a reply unread has not got what the reply gives. The core knows what
//! that is, and this is where the replies end in the client's ring: what lies behind the client's
//! position is unread.
//!
//! Over TCP the position of a reply is its number among those that are marked, and that of the
//! client is the number up to which it has said that it received them.

use std::collections::VecDeque;

/// Number of replies after which the client's position is looked at. Each look costs a miss of the
/// cache. With a higher value, more items are kept that were read long ago.
const REPLIES_MAX: usize = 32;
/// Bytes of replies after which the client's position is looked at.
const BYTES_MAX: usize = 64 * 1024;
/// Bytes of replies for which the client is asked to tell when it has read them. So a client that
/// is idle afterwards keeps no large item alive. With a lower value, more replies cost a system
/// call.
const LARGE_BYTES: usize = 256 * 1024;

/// What an unread reply costs beside its bytes, at least: its entries here and in the core.
const ENTRY_BYTES: usize = 128;

/// The replies that have given a client something, and that it may not have read.
#[derive(Debug, Default)]
pub(super) struct Unread {
    /// Where each reply ends, and how long it is.
    replies: VecDeque<(u64, usize)>,
    bytes: usize,
}

impl Unread {
    /// Notes a reply. One that is not sent ends at `u64::MAX`.
    pub(super) fn sent(&mut self, end: u64, bytes: usize) {
        self.replies.push_back((end, bytes));
        self.bytes += bytes;
    }

    /// Whether it is time to look at the client's position.
    pub(super) fn is_due(&self) -> bool {
        self.replies.len() >= REPLIES_MAX || self.bytes >= BYTES_MAX
    }

    /// Returns about how many bytes of memory the unread replies keep.
    pub(super) fn kept_bytes(&self) -> usize {
        self.bytes + self.replies.len() * ENTRY_BYTES
    }

    /// Whether the client is to tell when it has read more.
    pub(super) fn is_large(&self) -> bool {
        self.bytes >= LARGE_BYTES
    }

    pub(super) fn is_empty(&self) -> bool {
        self.replies.is_empty()
    }

    /// Forgets the replies that end at this position or before it. Returns how many.
    pub(super) fn read_up_to(&mut self, position: u64) -> usize {
        let mut count = 0;
        while let Some((_, bytes)) = self.replies.pop_front_if(|(end, _)| *end <= position) {
            self.bytes -= bytes;
            count += 1;
        }
        count
    }

    /// Returns how many replies are unread. A client without a position has read all of them: it
    /// has written one that cannot be.
    pub(super) fn left(mut self, position: Option<u64>) -> usize {
        let Some(position) = position else { return 0 };
        self.read_up_to(position);
        self.replies.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_behind_the_position_are_unread() {
        let mut unread = Unread::default();
        assert!(unread.is_empty() && !unread.is_due());
        for end in [10, 20, 30, u64::MAX] {
            unread.sent(end, 100);
        }
        assert_eq!(unread.read_up_to(9), 0);
        assert_eq!(unread.read_up_to(20), 2);
        assert_eq!(unread.bytes, 200);
        assert_eq!(unread.left(Some(25)), 2);
        let mut unread = Unread::default();
        unread.sent(10, 1);
        assert_eq!(unread.left(None), 0);
    }

    #[test]
    fn many_and_long_replies_are_looked_at() {
        let mut unread = Unread::default();
        (1..REPLIES_MAX as u64).for_each(|end| unread.sent(end, 1));
        assert!(!unread.is_due());
        unread.sent(99, 1);
        assert!(unread.is_due() && !unread.is_large());
        assert_eq!(unread.read_up_to(99), REPLIES_MAX);
        unread.sent(100, LARGE_BYTES);
        assert!(unread.is_due() && unread.is_large());
    }
}
