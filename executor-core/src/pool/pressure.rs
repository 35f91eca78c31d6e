//! The limits on pending tasks: who may submit, and in which order those wait who may not yet.
//!
//! ```text
//!  submit ─► Pressure: room and nobody waits? ──yes──► Place ─► Chunk ─► … ─► Outcomes ──┐
//!                        └─no─► line, first come, first served ◄── given back ◄──────────┘
//! ```
//!
//! A task takes a [`Place`] before its arguments are encoded, and keeps it until it is resolved. A
//! place that is given back goes to the first in the line, before anybody else can take it. Threads
//! and async tasks wait in the same line. All is counted here, and nowhere else.
//!
//! Those who wait are woken by room, and by the end of the pool: when it accepts no more tasks,
//! everybody gets a place, and is refused like all who come later. In a forked process nothing is
//! counted, since its locks may be held by threads that do not exist there.
//!
//! Wakers are the user's code. They are cloned, dropped and woken while no lock is held.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Poll, Wake, Waker},
    time::Instant,
};

use crate::{future::cell::Wakers, os::fork::Creator};

/// The limits of one executor, and the line in front of it.
#[doc(hidden)]
pub struct Pressure {
    /// Number of tasks that may be pending.
    tasks_max: Option<u64>,
    /// Number of bytes of arguments from which on no more tasks are admitted.
    bytes_max: u64,
    counts_bytes: bool,
    line: Mutex<Line>,
    /// Whether there are no limits any more.
    is_open: AtomicBool,
    creator: Creator,
}

#[derive(Default)]
struct Line {
    tasks: u64,
    bytes: u64,
    /// Whether the pool has ended, so that there are no limits any more.
    open: bool,
    next: u64,
    /// Those who wait, by their numbers in the line.
    waiting: BTreeMap<u64, Waker>,
    /// Those who have got a place, and have not taken note of it.
    granted: BTreeSet<u64>,
}

impl Pressure {
    pub(crate) fn new(tasks_max: Option<usize>, bytes_max: Option<usize>) -> Arc<Self> {
        Arc::new(Pressure {
            tasks_max: tasks_max.map(|tasks| tasks as u64),
            bytes_max: bytes_max.map_or(u64::MAX, |bytes| bytes as u64),
            counts_bytes: bytes_max.is_some(),
            line: Mutex::default(),
            is_open: AtomicBool::new(false),
            creator: Creator::here(),
        })
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns how many more tasks may come now, if nobody waits.
    fn room(&self, line: &Line) -> u64 {
        match line {
            Line { open: true, .. } => u64::MAX,
            Line { bytes, .. } if *bytes >= self.bytes_max => 0,
            Line { tasks, .. } => self.tasks_max.map_or(u64::MAX, |max| max.saturating_sub(*tasks)),
        }
    }

    /// Returns how many tasks may be pending, if their number is limited.
    pub(crate) fn tasks_max(&self) -> Option<usize> {
        self.tasks_max.map(|max| usize::try_from(max).unwrap_or(usize::MAX))
    }

    /// Returns whether so many bytes are pending that no more tasks are admitted.
    pub(crate) fn is_full_of_bytes(&self) -> bool {
        if !self.counts_bytes || self.creator.is_elsewhere() {
            return false;
        }
        let line = self.line();
        !line.open && line.bytes >= self.bytes_max
    }

    /// Takes places for up to `most` tasks. Returns `None` if there is none, or if others wait.
    pub(crate) fn try_take(self: &Arc<Self>, most: u32) -> Option<Place> {
        if self.creator.is_elsewhere() {
            return Some(self.place(most));
        }
        let mut line = self.line();
        if !line.waiting.is_empty() {
            return None;
        }
        let tasks = self.room(&line).min(u64::from(most)) as u32;
        line.tasks += u64::from(tasks);
        drop(line);
        (tasks > 0).then(|| self.place(tasks))
    }

    /// Takes a place whether or not there is room. For threads that must not wait, because they are
    /// the ones that make room.
    pub(crate) fn take_anyway(self: &Arc<Self>) -> Place {
        if !self.creator.is_elsewhere() {
            self.line().tasks += 1;
        }
        self.place(1)
    }

    /// Waits for a place for one task.
    pub(crate) fn wait(self: &Arc<Self>) -> Place {
        self.wait_until(None).expect("there is no deadline")
    }

    /// Waits for a place for one task. Returns `None` if the deadline has passed.
    pub(crate) fn wait_until(self: &Arc<Self>, deadline: Option<Instant>) -> Option<Place> {
        if let Some(place) = self.try_take(1) {
            return Some(place);
        }
        let sleeper = Arc::new(Sleeper::default());
        let waker = Waker::from(Arc::clone(&sleeper));
        let mut admission = Admission::new(self);
        loop {
            if let Poll::Ready(place) = admission.poll(&waker) {
                return Some(place);
            }
            if !sleeper.sleep(deadline) {
                return None;
            }
        }
    }

    /// Removes the limits: the pool accepts no more tasks. Wakes everybody who waits.
    pub(super) fn open(&self, wakers: &mut Wakers) {
        self.is_open.store(true, Ordering::Relaxed);
        let mut line = self.line();
        line.open = true;
        self.grant(&mut line, wakers);
    }

    /// Returns whether [`open`](Self::open) was called.
    pub(super) fn is_open(&self) -> bool {
        self.is_open.load(Ordering::Relaxed)
    }

    /// Gives places to those at the front of the line, as far as there is room.
    fn grant(&self, line: &mut Line, wakers: &mut Wakers) {
        while self.room(line) > 0
            && let Some((number, waker)) = line.waiting.pop_first()
        {
            line.tasks += 1;
            line.granted.insert(number);
            wakers.push(Some(waker));
        }
    }

    fn give_back(&self, tasks: u32, bytes: u64, wakers: &mut Wakers) {
        let mut line = self.line();
        line.tasks -= u64::from(tasks);
        line.bytes -= bytes;
        self.grant(&mut line, wakers);
    }

    fn place(self: &Arc<Self>, tasks: u32) -> Place {
        Place { pressure: Arc::clone(self), tasks, bytes: 0 }
    }

    #[cfg(test)]
    fn counts(&self) -> (u64, u64, usize) {
        let line = self.line();
        (line.tasks, line.bytes, line.waiting.len() + line.granted.len())
    }
}

/// The right to have so many tasks pending, with their bytes. Given back on drop.
pub(crate) struct Place {
    pressure: Arc<Pressure>,
    tasks: u32,
    bytes: u64,
}

impl Place {
    /// Returns for how many tasks it is.
    pub(crate) fn tasks(&self) -> u32 {
        self.tasks
    }

    /// Returns a part of it, for at most this many tasks.
    pub(crate) fn split(&mut self, tasks: u32) -> Place {
        let tasks = tasks.min(self.tasks);
        self.tasks -= tasks;
        self.pressure.place(tasks)
    }

    /// Counts these bytes as pending, too.
    pub(crate) fn hold(&mut self, bytes: usize) {
        if self.pressure.counts_bytes && !self.pressure.creator.is_elsewhere() {
            self.bytes += bytes as u64;
            self.pressure.line().bytes += bytes as u64;
        }
    }

    /// Gives the place back. Adds to `wakers` those who have got it.
    pub(super) fn give_back(mut self, wakers: &mut Wakers) {
        self.leave(wakers);
    }

    fn leave(&mut self, wakers: &mut Wakers) {
        let (tasks, bytes) = (std::mem::take(&mut self.tasks), std::mem::take(&mut self.bytes));
        if (tasks > 0 || bytes > 0) && !self.pressure.creator.is_elsewhere() {
            self.pressure.give_back(tasks, bytes, wakers);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut wakers = Wakers::default();
        self.leave(&mut wakers);
        wakers.wake();
    }
}

/// Somebody who waits in the line, or has not entered it yet.
pub(crate) struct Admission {
    pressure: Arc<Pressure>,
    number: Option<u64>,
}

impl Admission {
    pub(crate) fn new(pressure: &Arc<Pressure>) -> Self {
        Admission { pressure: Arc::clone(pressure), number: None }
    }

    /// Returns a place for one task when it is this one's turn. The first poll enters the line.
    pub(crate) fn poll(&mut self, waker: &Waker) -> Poll<Place> {
        let pressure = &self.pressure;
        if pressure.creator.is_elsewhere() {
            return Poll::Ready(pressure.place(1));
        }
        let waker = waker.clone();
        let mut line = pressure.line();
        let number = match self.number {
            None if line.waiting.is_empty() && pressure.room(&line) > 0 => {
                line.tasks += 1;
                drop(line);
                return Poll::Ready(pressure.place(1));
            }
            None => {
                let number = line.next;
                line.next += 1;
                self.number = Some(number);
                number
            }
            Some(number) if line.granted.remove(&number) => {
                self.number = None;
                drop(line);
                return Poll::Ready(pressure.place(1));
            }
            Some(number) => number,
        };
        let old = line.waiting.insert(number, waker);
        drop(line);
        drop(old);
        Poll::Pending
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        let Some(number) = self.number else { return };
        if self.pressure.creator.is_elsewhere() {
            return;
        }
        let mut line = self.pressure.line();
        let waker = line.waiting.remove(&number);
        let granted = line.granted.remove(&number);
        drop(line);
        drop(waker);
        if granted {
            // It goes to the next.
            drop(self.pressure.place(1));
        }
    }
}

/// A thread that waits for its turn.
#[derive(Default)]
struct Sleeper {
    woken: Mutex<bool>,
    condition: Condvar,
}

impl Sleeper {
    /// Sleeps until it is woken. Returns `false` if the deadline has passed before.
    fn sleep(&self, deadline: Option<Instant>) -> bool {
        let mut woken = self.woken.lock().unwrap_or_else(PoisonError::into_inner);
        while !*woken {
            woken = match deadline {
                None => self.condition.wait(woken).unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return false;
                    }
                    let waited = self.condition.wait_timeout(woken, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
        *woken = false;
        true
    }
}

impl Wake for Sleeper {
    fn wake(self: Arc<Self>) {
        *self.woken.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.condition.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::atomic::AtomicUsize, thread, time::Duration};

    use super::*;

    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn counting() -> (Arc<Count>, Waker) {
        let count = Arc::new(Count(AtomicUsize::new(0)));
        (Arc::clone(&count), Waker::from(count))
    }

    fn wait_for_line(pressure: &Pressure, length: usize) {
        while pressure.counts().2 < length {
            thread::yield_now();
        }
    }

    #[test]
    fn threads_and_futures_get_places_in_the_order_in_which_they_came() {
        let pressure = Pressure::new(Some(1), None);
        let taken = pressure.try_take(5).unwrap();
        assert_eq!(taken.tasks(), 1, "there is room for one");
        let order = Arc::new(Mutex::new(Vec::new()));
        thread::scope(|scope| {
            let mut futures = Vec::new();
            for number in 0..8 {
                match number % 2 {
                    0 => {
                        let (pressure, order) = (Arc::clone(&pressure), Arc::clone(&order));
                        scope.spawn(move || {
                            let place = pressure.wait();
                            order.lock().unwrap().push(number);
                            drop(place);
                        });
                    }
                    _ => {
                        let (count, waker) = counting();
                        let mut admission = Admission::new(&pressure);
                        assert!(admission.poll(&waker).is_pending());
                        futures.push((number, admission, count));
                    }
                }
                wait_for_line(&pressure, number + 1);
            }
            assert!(pressure.try_take(1).is_none());
            drop(taken);
            for (number, mut admission, count) in futures {
                while count.0.load(Ordering::SeqCst) == 0 {
                    thread::yield_now();
                }
                assert!(pressure.try_take(1).is_none(), "others wait, or it has the place");
                let Poll::Ready(place) = admission.poll(Waker::noop()) else {
                    panic!("it was woken")
                };
                order.lock().unwrap().push(number);
                drop(place);
            }
        });
        assert_eq!(*order.lock().unwrap(), (0..8).collect::<Vec<_>>());
        assert_eq!(pressure.counts(), (0, 0, 0));
    }

    #[test]
    fn one_that_leaves_the_line_leaves_its_turn_to_the_next() {
        let pressure = Pressure::new(Some(1), None);
        let taken = pressure.wait();
        let mut line: Vec<_> = (0..4).map(|_| (Admission::new(&pressure), counting())).collect();
        for (admission, (_, waker)) in &mut line {
            assert!(admission.poll(waker).is_pending());
        }
        let woken = |line: &[(Admission, (Arc<Count>, Waker))]| {
            line.iter().map(|(_, (count, _))| count.0.load(Ordering::SeqCst)).collect::<Vec<_>>()
        };
        // One that waits, and one that has its place already and does not know it.
        drop(line.remove(1));
        drop(taken);
        assert_eq!(woken(&line), [1, 0, 0]);
        drop(line.remove(0));
        assert_eq!(woken(&line), [1, 0]);
        assert!(line[0].0.poll(Waker::noop()).is_ready());
        assert!(line[1].0.poll(Waker::noop()).is_ready(), "the place was dropped");
        drop(line);
        assert_eq!(pressure.counts(), (0, 0, 0));
    }

    #[test]
    fn a_deadline_ends_the_wait_and_the_end_of_the_pool_ends_all() {
        let pressure = Pressure::new(Some(1), None);
        let taken = pressure.wait();
        assert!(pressure.wait_until(Some(Instant::now() + Duration::from_millis(5))).is_none());
        assert_eq!(pressure.counts(), (1, 0, 0), "nobody is left in the line");
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| pressure.wait());
            }
            wait_for_line(&pressure, 3);
            let mut wakers = Wakers::default();
            pressure.open(&mut wakers);
            wakers.wake();
        });
        assert!(pressure.is_open() && pressure.try_take(1_000).is_some());
        drop(taken);
        assert_eq!(pressure.counts(), (0, 0, 0));
    }

    #[test]
    fn bytes_are_counted_when_they_are_known_and_keep_others_out() {
        let pressure = Pressure::new(None, Some(100));
        let mut small = pressure.wait();
        small.hold(99);
        let mut large = pressure.try_take(1).expect("99 are less than 100");
        large.hold(1_000_000);
        assert!(pressure.try_take(1).is_none());
        let (count, waker) = counting();
        let mut admission = Admission::new(&pressure);
        assert!(admission.poll(&waker).is_pending());
        drop(small);
        assert_eq!(count.0.load(Ordering::SeqCst), 0);
        drop(large);
        assert_eq!(count.0.load(Ordering::SeqCst), 1);
        assert!(admission.poll(&waker).is_ready());
        assert_eq!(pressure.counts(), (0, 0, 0));
    }

    /// Random sequences against the simplest model: a number, and a list of those who wait.
    #[test]
    fn any_sequence_keeps_the_limits_and_the_order() {
        for seed in 0..2_000_u64 {
            let mut state = seed;
            let mut roll = |n: u64| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (state >> 33) % n
            };
            let (max, max_bytes) = (1 + roll(4), 1 + roll(50));
            let pressure = Pressure::new(Some(max as usize), Some(max_bytes as usize));
            let mut places: Vec<(Place, u64)> = Vec::new();
            let mut line: Waiting = Vec::new();
            for _ in 0..60 {
                match roll(5) {
                    0 => {
                        let most = 1 + roll(3);
                        let tasks: u64 =
                            places.iter().map(|(place, _)| u64::from(place.tasks)).sum();
                        let bytes: u64 = places.iter().map(|(_, bytes)| bytes).sum();
                        let free = line.is_empty() && bytes < max_bytes;
                        let expected = if free { most.min(max.saturating_sub(tasks)) } else { 0 };
                        let place = pressure.try_take(most as u32);
                        let got = place.as_ref().map_or(0, |place| u64::from(place.tasks));
                        assert_eq!(got, expected, "seed {seed}");
                        if let Some(mut place) = place {
                            let bytes = roll(20);
                            place.hold(bytes as usize);
                            places.push((place, bytes));
                        }
                    }
                    1 => {
                        let (count, waker) = counting();
                        let mut admission = Admission::new(&pressure);
                        match admission.poll(&waker) {
                            Poll::Ready(place) => places.push((place, 0)),
                            Poll::Pending => line.push((admission, count)),
                        }
                    }
                    2 if !places.is_empty() => {
                        let at = roll(places.len() as u64) as usize;
                        let mut place = places.swap_remove(at);
                        let part = place.0.split(1);
                        drop(part);
                        drop(place);
                    }
                    3 if !line.is_empty() => {
                        let at = roll(line.len() as u64) as usize;
                        drop(line.remove(at));
                    }
                    _ => {}
                }
                // Those who were woken are the first in the line, and each has a place.
                let woken =
                    |(_, count): &(Admission, Arc<Count>)| count.0.load(Ordering::SeqCst) > 0;
                let first = line.iter().take_while(|waits| woken(waits)).count();
                assert!(!line[first..].iter().any(woken), "seed {seed}: out of order");
                for (mut admission, _) in line.drain(..first) {
                    match admission.poll(Waker::noop()) {
                        Poll::Ready(place) => places.push((place, 0)),
                        Poll::Pending => panic!("seed {seed}: woken in vain"),
                    }
                }
                let (tasks, bytes, waiting) = pressure.counts();
                assert_eq!(tasks, places.iter().map(|(place, _)| u64::from(place.tasks)).sum());
                assert_eq!(bytes, places.iter().map(|(_, bytes)| bytes).sum::<u64>());
                assert!(tasks <= max && waiting == line.len(), "seed {seed}");
                let room = tasks < max && bytes < max_bytes;
                assert!(line.is_empty() || !room, "seed {seed}: somebody waits in front of room");
            }
            drop((places, line));
            assert_eq!(pressure.counts(), (0, 0, 0), "seed {seed}");
        }
    }

    type Waiting = Vec<(Admission, Arc<Count>)>;
}
