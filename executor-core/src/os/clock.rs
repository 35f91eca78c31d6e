//! The monotonic clock, in nanoseconds.
//!
//! `CLOCK_MONOTONIC` is one clock for all processes of a machine. So the parent can compare a time
//! that a worker has recorded. `Instant` uses the same clock, but does not expose the number.

use std::time::{Duration, Instant};

/// Returns the time of the machine's monotonic clock, in nanoseconds.
pub(crate) fn now_nanos() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Converts a time that another process recorded to an `Instant`. Returns `None` if the time is in
/// the future, which no honest process records.
pub(crate) fn instant_of(nanos: u64) -> Option<Instant> {
    let age = now_nanos().checked_sub(nanos)?;
    Instant::now().checked_sub(Duration::from_nanos(age))
}
