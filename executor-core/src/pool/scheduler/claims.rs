//! What the scheduler asks about workers: which of the tasks sent to them have begun.

use crate::{id::WorkerId, transport::board::Begun};

/// The scheduler's view of the workers' boards, where workers record what they have begun. A
/// sending is one chunk that was sent to one worker, and `seq` is its number.
pub(crate) trait Claims {
    /// Returns up to which item a sending has begun.
    fn begun(&self, worker: WorkerId, seq: u32) -> Begun;
    /// Takes back a sending of which nothing has begun. `first` is the first item that was sent.
    /// Returns whether the sending was taken back.
    fn take_back(&self, worker: WorkerId, seq: u32, first: u32) -> bool;
    /// Takes back the items behind the one that has begun last. Returns that item, or `None` if
    /// nothing has begun.
    fn take_rest(&self, worker: WorkerId, seq: u32) -> Option<u32>;
    /// Returns how much of the data sent to this worker has been taken in, in any unit. While the
    /// number grows, the worker is still receiving.
    fn taken_in(&self, worker: WorkerId) -> u64;
}
