//! The monotonic clock, as nanoseconds: `CLOCK_MONOTONIC` is one clock for all processes of a machine, so a moment
//! that a worker writes down can be compared in the parent. `Instant` is the same clock, but hides its number.

use std::time::{Duration, Instant};

/// Nanoseconds on the machine's monotonic clock.
pub(crate) fn now_nanos() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// The `Instant` of a moment that another process wrote down; `None` if it lies in the future, so is no moment.
pub(crate) fn instant_of(nanos: u64) -> Option<Instant> {
    let age = now_nanos().checked_sub(nanos)?;
    Instant::now().checked_sub(Duration::from_nanos(age))
}
