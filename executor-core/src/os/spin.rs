//! Spinning: checks a condition repeatedly for a moment before the thread sleeps.
//!
//! Waking a sleeping thread on another processor takes 30 to 50 µs on the machines on which this
//! was measured. Noticing a word that the other processor wrote takes 0.2 µs. So a thread that is
//! about to sleep first checks again for a few microseconds, but only where that has paid off
//! before. A thread that spins on the same processor that the other side needs makes both slow (49
//! µs for a round trip that otherwise takes 6 µs).

use std::{
    hint,
    time::{Duration, Instant},
};

use super::std_or_model::MODEL;

/// How long to spin while it pays off. With a higher value, more processor time is wasted when the
/// other side does not answer at once. With a lower value, answers are missed that are only a few
/// function calls away.
const TIMEOUT: Duration = Duration::from_micros(10);
/// How long to spin to find out whether it would pay off. This is as long as it takes to wake the
/// other side and for that side to do its part. Otherwise both sides would keep sleeping, because
/// neither would ever find the other awake.
const PROBE: Duration = Duration::from_micros(100);
/// Rounds between two looks at the clock.
const ROUNDS: u32 = 32;
/// Maximum number of sleeps without spinning before the next attempt. With a lower value, an idle
/// pool uses more processor time (at present 0.4 µs a sleep), and more calls take longer by a probe
/// that does not pay off. On a machine whose processors are all busy, the slowest hundredth of the
/// calls were those: with 63, both sides together probed in three of a hundred. With a higher
/// value, the first calls of a long series take longer.
const SKIP_MAX: u32 = 255;
/// How long giving up the processor takes if no other thread wants it, and a bit. With a higher
/// value, others that need it for short moments are not noticed. With a lower value, an interrupt
/// counts as such a thread.
const YIELD: Duration = Duration::from_micros(4);
/// Number of sleeps in the middle of a message without spinning after an attempt that did not pay
/// off. With a lower value, more time is wasted while the other side has no processor. With a
/// higher value, long messages take longer after such a time.
const SKIP_IN_MESSAGE: u32 = 15;

/// Whether several processors can be used. With a single one, nothing can change while this thread
/// spins.
fn may_spin() -> bool {
    !MODEL && super::cpu::several_usable()
}

/// Returns the processor on which this thread runs at the moment.
pub(crate) fn this_cpu() -> u32 {
    if MODEL {
        return 0;
    }
    // SAFETY: the call takes no arguments and no memory. If it fails, it returns -1, which here is
    // a number like any other.
    unsafe { libc::sched_getcpu() as u32 }
}

/// Remembers whether spinning has paid off.
#[derive(Debug)]
pub(crate) struct Spin {
    /// How long to spin to find out whether it would pay off.
    probe: Duration,
    /// How long to spin while it pays off.
    timeout: Duration,
    /// Whether the last attempt paid off.
    paid: bool,
    /// Number of sleeps before the next attempt.
    skip: u32,
    /// The value of `skip` after the last attempt that did not pay off.
    backoff: u32,
    suggestion: Suggestion,
    /// Number of sleeps in the middle of a message before the next attempt there.
    skip_middle: u32,
    /// Whether a thread that wants this processor ends an attempt.
    gives_way: bool,
}

/// Whether the other side, which was seen awake, has suggested an attempt.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Suggestion {
    /// It has not, and may.
    None,
    /// The next attempt is one that it has suggested.
    Next,
    /// Such an attempt did not pay off. The one after it is for others.
    Used,
}

impl Default for Spin {
    fn default() -> Self {
        Spin {
            probe: PROBE,
            timeout: TIMEOUT,
            paid: false,
            skip: 0,
            backoff: 0,
            suggestion: Suggestion::None,
            skip_middle: 0,
            gives_way: false,
        }
    }
}

impl Spin {
    /// Creates a `Spin` for a thread that knows of a processor that no other thread needs. It spins
    /// as long as a probe even while spinning pays off.
    ///
    /// A reply may wake a task of tokio, which then submits the next task to a worker that sleeps
    /// by now. That takes two wake-ups. With the shorter timeout, the next reply always came too
    /// late (86 µs a round trip instead of 50).
    pub(crate) fn patient() -> Self {
        Spin { timeout: PROBE, ..Spin::default() }
    }

    /// Creates a `Spin` for a thread that waits for an answer over TCP, of which nothing says on
    /// which processor the other side runs.
    ///
    /// Eight clients of one server on two processors had answers soon enough all the time: the one
    /// that spun kept its processor from the others, so the server had only one request at a time.
    /// They made no more calls than one client does.
    pub(crate) fn over_tcp() -> Self {
        Spin { gives_way: true, ..Spin::patient() }
    }

    /// Creates a `Spin` for a thread that has other things to do, such as other tasks of a runtime.
    ///
    /// A probe is as long as it takes to wake a worker. With a shorter one, each await found the
    /// worker asleep again, and took 25 µs in place of 1.
    pub(crate) fn brief() -> Self {
        Spin { probe: PROBE / 2, ..Spin::default() }
    }

    /// Creates a `Spin` that does not try at the first wait. It is for a process that comes up:
    /// what it waits for first has yet to be prepared, by threads that need a processor.
    pub(crate) fn after_first_wait() -> Self {
        Spin { skip: 1, ..Spin::default() }
    }

    /// The other side was awake when this one had something for it, so it may be probing at this
    /// moment: the next wait is a probe as well.
    ///
    /// Otherwise two sides that both sleep would go on sleeping: each probes now and then, and
    /// finds the other one asleep, unless both probe at the same call by chance.
    ///
    /// There is one such probe between two others, so a side that is awake for another reason, such
    /// as a lack of processors, costs at most twice as many probes.
    pub(crate) fn suggest(&mut self) {
        if self.skip > 0 && self.suggestion == Suggestion::None {
            self.suggestion = Suggestion::Next;
            self.skip = 0;
        }
    }

    /// Waits like [`wait`](Self::wait), in the middle of a long message: the other side is about to
    /// send the next part, or to make room for it, unless it does not run at all.
    pub(crate) fn wait_in_message(
        &mut self,
        peer_cpu: u32,
        mut ready: impl FnMut() -> bool,
    ) -> bool {
        if ready() {
            return true;
        }
        if self.skip_middle > 0 {
            self.skip_middle -= 1;
            return false;
        }
        if !may_spin() || peer_cpu == this_cpu() {
            return false;
        }
        let came = look_for(self.probe, ready);
        if !came {
            self.skip_middle = SKIP_IN_MESSAGE;
        }
        came
    }

    /// Waits a moment for `ready`, if that is worthwhile, and returns its last result. `peer_cpu`
    /// is the processor on which the other side ran last. If there are several other sides, it is a
    /// number that no processor has.
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
            // The other side waits for this very processor. A probe does not check this: while this
            // thread keeps its processor busy, the system may move the other side to another one,
            // where it then stays.
            self.paid = false;
            return false;
        }
        let timeout = if self.paid { self.timeout } else { self.probe };
        let others_wait = self.gives_way && others_want_processor();
        if others_wait {
            // They have had it now, and will want it again.
            self.paid = false;
            self.suggestion = Suggestion::None;
            self.skip = SKIP_MAX;
            return ready();
        }
        if look_for(timeout, ready) {
            // A single probe may pay off by chance. Probing is worthwhile only if a short wait
            // after it pays off, too.
            if self.paid {
                self.backoff = 0;
            }
            self.paid = true;
            self.suggestion = Suggestion::None;
            return true;
        }
        self.paid = false;
        if self.suggestion == Suggestion::Next {
            self.suggestion = Suggestion::Used;
        } else {
            // It did not pay off, so many more sleeps before the next attempt: 1, 5, 21, 85, 255.
            self.suggestion = Suggestion::None;
            self.backoff = (self.backoff * 4 + 1).min(SKIP_MAX);
        }
        self.skip = self.backoff;
        false
    }
}

/// Gives up the processor for a moment. Returns whether another thread wanted it.
fn others_want_processor() -> bool {
    let started = Instant::now();
    std::thread::yield_now();
    started.elapsed() > YIELD
}

/// Checks `ready` for some time. Returns its last result.
fn look_for(time: Duration, mut ready: impl FnMut() -> bool) -> bool {
    let started = Instant::now();
    while started.elapsed() < time {
        for _ in 0..ROUNDS {
            if ready() {
                return true;
            }
            hint::spin_loop();
        }
    }
    false
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
        // When it pays off again, spinning resumes at once.
        while !spin.wait(u32::MAX, || true) {}
    }

    #[test]
    fn in_a_message_most_waits_are_attempts_unless_the_other_side_does_not_run() {
        let mut spin = Spin { skip: SKIP_MAX, ..Spin::default() };
        let mut attempts = |ready_at: u32| {
            let mut looks = 0;
            spin.wait_in_message(u32::MAX, || {
                looks += 1;
                looks == ready_at
            });
            looks > 1
        };
        if super::may_spin() {
            assert!((0..100).all(|_| attempts(5)));
        }
        let tried = (0..160).filter(|_| attempts(0)).count();
        assert!(tried <= 10, "{tried} of 160 waits for a side that does not run");
    }

    #[test]
    fn a_side_that_is_awake_suggests_one_attempt_between_two_others() {
        let mut spin = Spin::default();
        let attempts = |spin: &mut Spin, waits, suggested| {
            let mut attempts = 0;
            for _ in 0..waits {
                if suggested {
                    spin.suggest();
                }
                let mut looks = 0;
                spin.wait(u32::MAX, || {
                    looks += 1;
                    false
                });
                attempts += u32::from(looks > 1);
            }
            attempts
        };
        let alone = attempts(&mut spin, 10_000, false);
        let suggested = attempts(&mut spin, 10_000, true);
        assert!((alone..=2 * alone + 2).contains(&suggested), "{alone} alone, {suggested}");
        if super::may_spin() {
            // In the middle of a long row of sleeps.
            while spin.skip < SKIP_MAX / 2 {
                spin.wait(u32::MAX, || false);
            }
            spin.suggestion = Suggestion::None;
            spin.suggest();
            let mut looks = 0;
            assert!(spin.wait(u32::MAX, || {
                looks += 1;
                looks > 1
            }));
            assert!(spin.paid);
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "it has no processors to choose from")]
    fn over_tcp_a_thread_that_spins_gives_way_to_one_that_wants_its_processor() {
        use std::sync::atomic::{AtomicBool, Ordering};

        use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
        if !super::may_spin() {
            return;
        }
        let usable = sched_getaffinity(None).unwrap();
        let first = (0..CpuSet::MAX_CPU).find(|cpu| usable.is_set(*cpu)).unwrap();
        let stay = || {
            let mut one = CpuSet::new();
            one.set(first);
            sched_setaffinity(None, &one).unwrap();
        };
        let over = AtomicBool::new(false);
        let attempts = std::thread::scope(|scope| {
            scope.spawn(|| {
                stay();
                while !over.load(Ordering::Relaxed) {
                    hint::spin_loop();
                }
            });
            let waits = scope.spawn(|| {
                stay();
                let mut spin = Spin::over_tcp();
                let attempt = |_: &u32| {
                    let mut looks = 0;
                    // It would pay off each time.
                    spin.wait(u32::MAX, || {
                        looks += 1;
                        looks > 2
                    });
                    looks > 2
                };
                (0..5_000).filter(attempt).count()
            });
            let attempts = waits.join();
            over.store(true, Ordering::Relaxed);
            attempts.unwrap()
        });
        assert!(attempts < 2_500, "{attempts} of 5000 waits kept the processor");
    }
}
