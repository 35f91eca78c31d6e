//! No task waits behind another one for long.

use super::*;

impl World {
    /// Lets everything that can happen happen at once, until `end`.
    pub(super) fn go_on_until(&mut self, end: Instant) {
        loop {
            if self.scheduler.next_deadline().is_some_and(|at| at <= self.now) {
                self.tick();
            } else if !self.any_turn() {
                self.look_for_neglect();
                match self.next_moment().filter(|next| *next < end) {
                    Some(next) => self.advance(next - self.now),
                    None => return self.advance(end.saturating_duration_since(self.now)),
                }
            }
        }
    }

    /// Checks that no task has waited for too long. Called when nothing more happens at this
    /// moment.
    fn look_for_neglect(&mut self) {
        let coming =
            self.processes.values().filter(|process| !process.ready && process.killed.is_none());
        let idle = |process: &Process| {
            process.ready
                && process.stop_sent.is_none()
                && process.words.borrow().holding.is_empty()
        };
        let could =
            self.processes.len() < self.config.workers_max || self.processes.values().any(idle);
        let (now, coming) = (self.now, coming.count());
        let waiting: Vec<_> = self
            .stories
            .iter()
            .filter(|story| story.begun.is_none() && story.ending.is_none())
            .collect();
        if !could || waiting.len() <= coming {
            self.neglects_since = None;
            return;
        }
        let since = *self.neglects_since.get_or_insert(now);
        // A worker that comes up meanwhile may have to prepare itself first.
        let prepares = if self.climate.initializer { INITIALIZER_MAX } else { Duration::ZERO };
        for Story { submitted, estimate, function, .. } in waiting {
            let waited = now - since.max(*submitted);
            let estimate = self.scheduler.ended_estimate(*function).max(*estimate);
            // Once in the queue, and once behind another task: each sending counts anew.
            assert!(
                waited <= (estimate * FEW + SLOW_START + REBALANCE) * 2 + prepares,
                "a task of {estimate:?} has waited for {waited:?} while somebody could run it"
            );
        }
    }

    /// Submits `count` calls of one function with this running time and conduct, in one chunk if
    /// `together`.
    fn call(
        &mut self,
        function: u64,
        takes: Duration,
        conduct: Conduct,
        count: usize,
        together: bool,
    ) {
        let first = self.stories.len();
        if together {
            self.submit_chunk(function, None, &vec![conduct; count]);
        } else {
            for _ in 0..count {
                self.submit(function, None, conduct);
            }
        }
        for story in &mut self.stories[first..] {
            story.takes = takes;
        }
    }

    fn wait_for_all(&mut self) {
        let end = self.now + Duration::from_secs(600);
        while self.unresolved() > 0 {
            assert!(self.now < end, "a task has no end");
            let next = self.next_moment().unwrap_or(end).max(self.now + Duration::from_nanos(1));
            self.go_on_until(next);
        }
    }
}

fn run_changing_seed(seed: u64) -> World {
    let mut dice = Dice(seed ^ 0xc4a_9e50);
    let workers_max = dice.pick(&[1, 2, 3, 4, 8, 16, 64]);
    let mut config = Config {
        workers_max,
        workers_min: dice.pick(&[0, 0, 1, workers_max]),
        spares: None,
        initializer: None,
        initializer_timeout: Duration::MAX,
        finalizer: None,
        finalizer_timeout: Duration::MAX,
        graces: Graces::default(),
        tasks_max: dice.pick(&[None, None, None, Some(1), Some(7)]),
        lifespan: any_lifespan(&mut dice),
        processors: dice.pick(&[1, 2, 4, 64]),
        launch_timeout: Duration::ZERO,
        start_timeout: Duration::from_secs(10),
        report_timeout: None,
        resources: Box::default(),
    };
    if config.workers_min > 0 {
        // Workers that are replaced all the time would make this take minutes.
        let lifetime = &mut config.lifespan.lifetime_max;
        *lifetime = lifetime.filter(|lifetime| *lifetime >= Duration::from_millis(100));
    }
    let climate = Climate { initializer: dice.permille(200), ..Climate::calm() };
    let mut world = World::new(dice.roll(), config, climate);
    world.start_takes = START_COST;
    let ran = catch_unwind(AssertUnwindSafe(|| {
        world.event(|scheduler, now, _, out| scheduler.on_open(now, out));
        for _ in 0..12 {
            let function = dice.below(3);
            let takes = Duration::from_micros(dice.pick(&[1, 1, 1, 30, 1_000, 1_000_000]));
            let together = dice.permille(400);
            match dice.below(3) {
                0 => world.call(function, takes, Conduct::Meets, workers_max, together),
                1 => world.call(function, takes, Conduct::Returns, 20, together),
                _ => {
                    let count = 1 + dice.below(workers_max as u64 + 3) as usize;
                    world.call(function, takes, Conduct::Returns, count, together);
                }
            }
            // Two groups that meet at the same time could wait for each other for ever.
            if dice.permille(300)
                && world.stories.last().is_some_and(|last| last.conduct != Conduct::Meets)
            {
                let pause = dice.micros(3_000);
                world.go_on_until(world.now + pause);
            } else {
                world.wait_for_all();
            }
        }
        world.wait_for_all();
    }));
    if let Err(panic) = ran {
        let message = panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
            .unwrap_or_default();
        panic!(
            "EXECUTOR_SEED={seed} of changing times: {message}\nwhat happened last:{}",
            world.describe()
        );
    }
    world
}

#[test]
#[expect(clippy::print_stdout, reason = "the figures are what `--nocapture` asks for")]
fn no_task_waits_long_behind_another_one_while_somebody_could_run_it() {
    let seeds = match number("EXECUTOR_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("EXECUTOR_ROUNDS").unwrap_or(ROUNDS),
    };
    let mut all = Neglect::default();
    for seed in seeds.clone() {
        let Neglect { waited, estimates } = run_changing_seed(seed).neglect;
        all.waited.extend(waited);
        all.estimates.extend(estimates);
    }
    all.waited.sort_unstable();
    all.estimates.sort_unstable_by(f64::total_cmp);
    let Neglect { waited, estimates } = all;
    let at = |of: usize, permille: usize| (of * permille / 1_000).min(of - 1);
    println!("{} seeds, {} tasks begun", seeds.end - seeds.start, waited.len());
    for (name, permille) in [("p50", 500), ("p99", 990), ("p99.9", 999), ("max", 1_000)] {
        println!(
            "{name:>6}: waited {:?} while somebody could run it; {:.3} of its estimates, of those of 1 ms and more",
            waited[at(waited.len(), permille)],
            estimates[at(estimates.len(), permille)],
        );
    }
}
