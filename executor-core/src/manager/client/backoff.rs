//! When to connect again to a server that was lost. No I/O, no clock, no threads.
//!
//! ```text
//!                 a call                        a failure: the delay doubles, up to its maximum
//!  connected ──►   lost ──► one call attempts ──────────────► other calls wait for the next time
//!      ▲                          │ success, that lasts: the delay is as at first     │
//!      └──────────────────────────┴───────────────◄───────────────────────────────────┘
//!
//!  each call gives up at its own end
//! ```
//!
//! A connection that is lost soon after it was made counts as a failure: a server that lets clients
//! in and dies of each call is not asked again and again without a pause.
//!
//! The delays belong to the way to the server and not to a call. So a thousand threads that have
//! lost their server make as many attempts as one.

use std::time::{Duration, Instant};

/// How a lost connection is made again: the delay behind the first attempt that fails, by how much
/// it grows, and for how long a call waits. Each delay is twice as long as the one before, and a
/// random part of it, up to half, is left out, so that clients do not come all at once.
///
/// ```
/// use executor::manager::Backoff;
/// use std::time::Duration;
///
/// let patient = Backoff::default().max(Duration::from_secs(1)).total(Duration::from_secs(60));
/// assert_eq!(patient, Backoff::default().total(Duration::from_secs(60)).max(Duration::from_secs(1)));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    first: Duration,
    max: Duration,
    pub(crate) total: Duration,
}

impl Default for Backoff {
    /// Returns 50 milliseconds at first, two seconds at most, and 30 seconds in all.
    fn default() -> Self {
        Backoff {
            first: Duration::from_millis(50),
            max: Duration::from_secs(2),
            total: Duration::from_secs(30),
        }
    }
}

impl Backoff {
    /// Returns the three times, to be sent to another process.
    #[cfg(feature = "tls")]
    pub(super) fn parts(self) -> (Duration, Duration, Duration) {
        (self.first, self.max, self.total)
    }

    /// Returns what [`parts`](Self::parts) has taken apart.
    #[cfg(feature = "tls")]
    pub(super) fn of_parts((first, max, total): (Duration, Duration, Duration)) -> Self {
        Backoff { max, total, ..Backoff::default().first(first) }
    }

    /// Sets the delay behind the first attempt that fails. Zero counts as a millisecond.
    pub fn first(mut self, delay: Duration) -> Self {
        self.first = delay.max(Duration::from_millis(1));
        self
    }

    /// Sets the longest delay.
    pub fn max(mut self, delay: Duration) -> Self {
        self.max = delay;
        self
    }

    /// Sets for how long a call waits for a connection. Then it returns
    /// [`ManagerError::Gone`](super::super::ManagerError::Gone), and the next call tries again. It
    /// ends an attempt as well, so it has to be longer than connecting takes: with zero, a lost
    /// connection is never made again.
    pub fn total(mut self, total: Duration) -> Self {
        self.total = total;
        self
    }
}

/// What a call that needs a connection does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Make an attempt. Its end has to be told.
    Attempt,
    /// Wait until this time, or until another call's attempt has succeeded, and ask again.
    WaitUntil(Instant),
    /// Wait for the end of another call's attempt, and ask again.
    WaitForOther,
    GiveUp,
}

/// The attempts to reach one server.
#[derive(Debug)]
pub(super) struct Attempts {
    backoff: Backoff,
    running: bool,
    /// The delay behind the next attempt that fails.
    delay: Duration,
    /// There is no attempt before.
    next: Option<Instant>,
    /// When the last attempt has succeeded, if that was the last one.
    succeeded: Option<Instant>,
}

impl Attempts {
    pub(super) fn new(backoff: Backoff) -> Self {
        let delay = backoff.first;
        Attempts { backoff, running: false, delay, next: None, succeeded: None }
    }

    /// Returns what a call does next that waits until `end`. After [`Next::Attempt`], one of the
    /// methods below has to be called.
    pub(super) fn next(&mut self, now: Instant, end: Option<Instant>) -> Next {
        if end.is_some_and(|end| end <= now) {
            return Next::GiveUp;
        }
        if self.running {
            return Next::WaitForOther;
        }
        let longest = self.backoff.max.max(self.backoff.first);
        if self.succeeded.is_some_and(|at| now.saturating_duration_since(at) >= longest) {
            // The connection has lasted.
            *self = Attempts::new(self.backoff);
        }
        match self.next.filter(|next| *next > now) {
            None => {
                self.running = true;
                Next::Attempt
            }
            Some(next) => Next::WaitUntil(end.map_or(next, |end| end.min(next))),
        }
    }

    /// The attempt has succeeded.
    pub(super) fn succeeded(&mut self, now: Instant, random: u32) {
        self.ended(now, random);
        self.succeeded = Some(now);
    }

    /// The attempt has failed. `random` decides which part of the delay is left out.
    pub(super) fn failed(&mut self, now: Instant, random: u32) {
        self.ended(now, random);
        self.succeeded = None;
    }

    fn ended(&mut self, now: Instant, random: u32) {
        let half = self.delay / 2;
        let part = half.mul_f64(f64::from(random) / f64::from(u32::MAX));
        self.running = false;
        self.next = now.checked_add(half.saturating_add(part));
        self.delay = self.delay.saturating_mul(2).min(self.backoff.max.max(self.backoff.first));
    }
}

#[cfg(all(test, not(any(executor_loom, executor_shuttle))))]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn backoff(first: u32, max: u32) -> Backoff {
        Backoff::default().first(first * MS).max(max * MS)
    }

    #[test]
    fn delays_double_up_to_their_maximum_and_begin_anew_after_a_success_that_lasts() {
        let mut attempts = Attempts::new(backoff(10, 50));
        let mut now = Instant::now();
        for expected in [10, 20, 40, 50, 50] {
            assert_eq!(attempts.next(now, None), Next::Attempt);
            assert_eq!(attempts.next(now, None), Next::WaitForOther);
            attempts.failed(now, u32::MAX);
            let next = now + expected * MS;
            assert_eq!(attempts.next(now, None), Next::WaitUntil(next), "{expected}");
            assert_eq!(attempts.next(now, Some(next - MS)), Next::WaitUntil(next - MS));
            assert_eq!(attempts.next(now, Some(next + MS)), Next::WaitUntil(next));
            now = next;
        }
        assert_eq!(attempts.next(now, None), Next::Attempt);
        attempts.succeeded(now, u32::MAX);
        // Lost at once.
        assert_eq!(attempts.next(now + MS, None), Next::WaitUntil(now + 50 * MS));
        // Lost later.
        now += 50 * MS;
        assert_eq!(attempts.next(now, None), Next::Attempt);
        attempts.failed(now, 0);
        assert_eq!(attempts.next(now, None), Next::WaitUntil(now + 5 * MS));
    }

    #[test]
    fn a_call_whose_time_is_over_gives_up_and_leaves_the_attempts_to_others() {
        let mut attempts = Attempts::new(backoff(10, 50));
        let now = Instant::now();
        assert_eq!(attempts.next(now, Some(now)), Next::GiveUp);
        assert_eq!(attempts.next(now, Some(now + MS)), Next::Attempt);
        assert_eq!(attempts.next(now + MS, Some(now + MS)), Next::GiveUp);
        assert_eq!(attempts.next(now + MS, Some(now + 2 * MS)), Next::WaitForOther);
    }

    /// Many callers, a server that comes and goes, and a clock of its own: at most one attempt
    /// runs, each caller's wait ends in time, and attempts do not come faster than the delays
    /// allow.
    #[test]
    fn seeded_callers_of_a_server_that_comes_and_goes() {
        for seed in 1..=300_u64 {
            let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let mut draw = |below: u64| {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                random % below
            };
            let mut attempts = Attempts::new(backoff(10, 80));
            let begin = Instant::now();
            let (mut now, mut connected, mut running) = (begin, false, None);
            let mut callers: Vec<Instant> = Vec::new();
            let (mut last_end, mut ends) = (None::<Instant>, 0);
            let mut since = None::<Instant>;
            for _ in 0..2000 {
                now += (draw(5) as u32) * MS;
                if draw(4) == 0 && callers.len() < 20 {
                    callers.push(now + (1 + draw(200) as u32) * MS);
                }
                if connected && draw(10) == 0 {
                    connected = false;
                }
                if let Some(end) = running.filter(|end| *end <= now) {
                    let _: Instant = end;
                    running = None;
                    ends += 1;
                    last_end = Some(now);
                    connected = draw(3) == 0;
                    since = connected.then_some(now);
                    match connected {
                        true => attempts.succeeded(now, draw(1 << 32) as u32),
                        false => attempts.failed(now, draw(1 << 32) as u32),
                    }
                }
                if connected {
                    callers.clear();
                    continue;
                }
                callers.retain(|end| match attempts.next(now, Some(*end)) {
                    Next::Attempt => {
                        assert!(running.is_none(), "two attempts at a time: seed {seed}");
                        let lasted = since.is_some_and(|since| now >= since + 80 * MS);
                        if lasted {
                            ends = 0;
                        } else if let Some(end) = last_end {
                            let delay = (10 << (ends - 1).min(3)) * MS / 2;
                            assert!(now >= end + delay, "too early: seed {seed}");
                        }
                        running = Some(now + (draw(30) as u32) * MS);
                        true
                    }
                    Next::WaitUntil(next) => {
                        assert!(next > now && next <= *end, "seed {seed}");
                        true
                    }
                    Next::WaitForOther => {
                        assert!(running.is_some(), "nobody would wake it: seed {seed}");
                        true
                    }
                    Next::GiveUp => {
                        assert!(*end <= now, "too early: seed {seed}");
                        false
                    }
                });
            }
        }
    }
}
