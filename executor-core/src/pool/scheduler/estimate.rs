//! How long a call of each function takes, as far as replies and running calls show.

/// How many of its own estimated running times a task may wait behind another task while another
/// worker could run it.
pub(super) const FEW: u32 = 4;

/// Estimated running time of one call of a function, in nanoseconds.
#[derive(Clone, Copy, Default)]
pub(super) struct Estimate {
    pub(super) nanos: u32,
    /// The estimate from calls that have ended. A call that runs for longer raises `nanos` above
    /// this, until the next call ends.
    pub(super) ended: u32,
}

impl Estimate {
    pub(super) fn learn(&mut self, took: u32) {
        // A call was seen to run for longer than `ended`, so the old value says nothing about the
        // next call and is replaced. Otherwise the values are smoothed.
        self.ended = match self.nanos > self.ended {
            true => took,
            false => ((u64::from(self.ended) * 3 + u64::from(took)) / 4) as u32,
        };
        self.nanos = self.ended;
    }
}
