//! What is asserted, and over which worlds.

mod by_hand;
mod cost;
mod deaths;
mod life;
mod neglect;
mod order;
mod promises;

use super::*;

/// Limits of the scheduler, repeated here so that a change there is noticed.
const START_COST: Duration = Duration::from_millis(1);
const REBALANCE: Duration = Duration::from_millis(4);
const SLOW_START: Duration = Duration::from_millis(10);
const FEW: u32 = 4;

/// A pool with as many workers as processors, started on demand, without limits.
fn small(workers_max: usize, start_timeout: Duration) -> Config {
    Config {
        workers_max,
        workers_min: 0,
        spares: None,
        initializer: None,
        initializer_timeout: Duration::MAX,
        finalizer: None,
        finalizer_timeout: Duration::MAX,
        graces: Graces::default(),
        tasks_max: None,
        lifespan: Lifespan::default(),
        processors: workers_max,
        launch_timeout: Duration::ZERO,
        start_timeout,
        report_timeout: None,
        resources: Box::default(),
    }
}

impl World {
    /// Returns a world with `n` ready workers, whose scheduler knows that function 0 takes a
    /// microsecond.
    fn ready(n: usize) -> Self {
        Self::ready_for(n, 0)
    }

    /// Returns a world with `n` ready workers, whose scheduler knows how long this function takes.
    fn ready_for(n: usize, function: u64) -> Self {
        let mut world = World::new(1, small(n, Duration::from_secs(10)), Climate::calm());
        for _ in 0..n {
            world.submit(function, None, Conduct::Returns);
        }
        world.settle();
        assert_eq!(
            world.stories.iter().filter(|story| story.ending == Some(Ending::Value)).count(),
            n
        );
        assert_eq!(world.processes.len(), n);
        world
    }

    fn quick(&mut self, count: usize) -> Vec<TaskId> {
        self.calls(0, count)
    }

    fn calls(&mut self, function: u64, count: usize) -> Vec<TaskId> {
        (0..count).map(|_| self.submit(function, None, Conduct::Returns)).collect()
    }

    /// Runs until nothing happens by itself.
    fn settle(&mut self) {
        while self.any_turn() || self.wait() {
            if self.scheduler.next_deadline().is_some_and(|at| at <= self.now) {
                self.tick();
            }
        }
    }

    fn ending(&mut self, task: TaskId) -> Option<Ending> {
        self.story(task).ending
    }

    fn all_return(&mut self, tasks: &[TaskId]) -> bool {
        tasks.iter().all(|task| self.ending(*task) == Some(Ending::Value))
    }

    /// Lets the worker take one step: it claims its next task, or ends the running one.
    fn work(&mut self, id: u32) {
        self.advance(A_MOMENT);
        self.on_work(WorkerId(id));
    }

    fn holding(&self, id: u32) -> usize {
        self.processes[&WorkerId(id)].words.borrow().holding.len()
    }

    fn of(config: Config) -> Self {
        let mut world = World::new(1, config, Climate::calm());
        world.event(|scheduler, now, _, out| scheduler.on_open(now, out));
        world
    }

    /// Lets this much time pass, in which everything happens at once that can happen.
    fn pass(&mut self, time: Duration) {
        self.go_on_until(self.now + time);
    }

    /// Goes on until the last task has ended, and no further.
    fn until_all_end(&mut self) {
        while self.unresolved() > 0 {
            self.any_step();
        }
    }

    /// Does what is due, else what could happen now, else lets time pass until something happens.
    fn any_step(&mut self) {
        if self.scheduler.next_deadline().is_some_and(|at| at <= self.now) {
            self.tick();
        } else if !self.any_turn() {
            assert!(self.wait(), "a task has no end");
        }
    }

    fn ids(&self) -> Vec<WorkerId> {
        self.processes.keys().copied().collect()
    }
}

fn any_lifespan(dice: &mut Dice) -> Lifespan {
    let mut any = |micros: &[u64]| {
        let micros = dice.pick(micros);
        (micros > 0).then_some(match micros {
            u64::MAX => Duration::MAX,
            micros => Duration::from_micros(micros),
        })
    };
    Lifespan {
        idle_timeout: any(&[0, 0, 0, 1, 500, 20_000, 1_000_000, u64::MAX]),
        lifetime_max: any(&[0, 0, 0, 1, 2_000, 100_000, 3_000_000, u64::MAX]),
    }
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text} is no number")))
}
