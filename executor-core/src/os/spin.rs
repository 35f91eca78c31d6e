//! Looking again for a moment before going to sleep.
//!
//! To wake a sleeping thread on another processor takes 30 to 50 µs on the machines this was measured on, to notice a
//! word that it wrote 0.2 µs. So whoever is going to sleep looks again for a few microseconds first; but only where
//! that has paid: a thread that spins on the very processor that the other one needs makes both slow (49 µs for a
//! round trip that takes 6 µs otherwise).

use std::{
    hint,
    time::{Duration, Instant},
};

use super::sync::MODEL;

/// While it pays. Longer: more processor time for nothing when the other side does not answer at once. Shorter: answers
/// are missed that are a few function calls away.
const LIMIT: Duration = Duration::from_micros(10);
/// To find out whether it would pay. As long as waking the other side takes, and it doing its part: both sleep until one
/// of them is found awake by the other.
const PROBE: Duration = Duration::from_micros(100);
/// Rounds between two looks at the clock.
const ROUNDS: u32 = 32;
/// After so many sleeps without it at the most, it is tried once more. Less: an idle pool burns more (now 1.5 µs a
/// sleep). More: the first of a long series of calls take longer.
const SKIP_MAX: u32 = 63;

/// Whether this processor has company: on a single one, nothing can change while we look.
fn may_spin() -> bool {
    !MODEL && super::cpu::several_usable()
}

/// The processor that this thread runs on at the moment.
pub(crate) fn this_cpu() -> u32 {
    if MODEL {
        return 0;
    }
    // SAFETY: no arguments, no memory; -1, if it fails, is a number like any other here.
    unsafe { libc::sched_getcpu() as u32 }
}

/// Remembers whether it paid.
#[derive(Debug)]
pub(crate) struct Spin {
    /// While it pays.
    limit: Duration,
    paid: bool,
    /// Sleeps to go without a try.
    skip: u32,
    /// How many that will be after the next try that does not pay.
    backoff: u32,
}

impl Default for Spin {
    fn default() -> Self {
        Spin { limit: LIMIT, paid: false, skip: 0, backoff: 0 }
    }
}

impl Spin {
    /// For a thread that knows of a processor nobody else needs: as long as a probe also while it pays. A reply that wakes
    /// a task of tokio, which submits the next one to a worker that sleeps by now, takes two wake-ups: with the shorter limit
    /// it always came too late (86 µs a round trip in place of 50).
    pub(crate) fn patient() -> Self {
        Spin { limit: PROBE, ..Spin::default() }
    }

    /// Waits a moment for `ready`, if that is worth it; what `ready` said last. `peer_cpu` is where the other side ran
    /// last; no processor's number, if there are several.
    pub(crate) fn wait(&mut self, peer_cpu: u32, mut ready: impl FnMut() -> bool) -> bool {
        if ready() {
            return true;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return false;
        }
        if !may_spin() {
            return false;
        }
        if self.paid && peer_cpu == this_cpu() {
            // It waits for this very processor. Not so at a probe: while we keep ours busy, the system may have given it
            // another one, where it stays from then on.
            self.paid = false;
            return false;
        }
        let limit = if self.paid { self.limit } else { PROBE };
        let started = Instant::now();
        while started.elapsed() < limit {
            for _ in 0..ROUNDS {
                if ready() {
                    // A probe may pay once and mean nothing: only a short wait that paid, too, says that probing is
                    // worth its while.
                    if self.paid {
                        self.backoff = 0;
                    }
                    self.paid = true;
                    return true;
                }
                hint::spin_loop();
            }
        }
        self.paid = false;
        self.backoff = (self.backoff * 2 + 1).min(SKIP_MAX);
        self.skip = self.backoff;
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_pay_is_tried_less_and_less() {
        let mut spin = Spin::default();
        let mut tries = 0;
        for _ in 0..1_000 {
            let mut looks = 0;
            spin.wait(u32::MAX, || {
                looks += 1;
                false
            });
            tries += u32::from(looks > 1);
        }
        assert!(tries <= 25, "{tries} of 1000 sleeps were put off");
        // And at once again when it pays.
        while !spin.wait(u32::MAX, || true) {}
    }
}
