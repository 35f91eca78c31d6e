//! Workers that die young, outlive SIGTERM, or are stopped together.

use super::*;

impl World {
    /// Lets `time` pass, in which each worker dies as soon as it is ready. Returns the number of
    /// workers that were started.
    fn die_when_ready(&mut self, time: Duration) -> usize {
        let (end, before) = (self.now + time, self.counts["start: a process"]);
        while self.now < end && !self.broken && !self.closed {
            let ready = self.processes.iter().find(|(_, process)| process.ready);
            if let Some(id) = ready.map(|(id, _)| *id) {
                self.process(id).die();
                self.on_reap(id);
                self.on_read(id, 1);
            } else if self.scheduler.next_deadline().is_some_and(|at| at <= self.now) {
                self.tick();
            } else if !self.any_turn() && !self.wait() {
                break;
            }
        }
        (self.counts["start: a process"] - before) as usize
    }
}

#[test]
fn kept_workers_that_die_right_after_they_are_ready_come_back_later_and_later() {
    let config = |workers, spares| Config {
        workers_min: workers,
        spares,
        tasks_max: spares.map(|_| 1),
        ..small(workers, Duration::from_secs(10))
    };
    // A single one: the budget of failed starts.
    let mut world = World::of(config(1, None));
    assert_eq!(world.die_when_ready(Duration::from_secs(60)), START_FAILURES_MAX);
    assert!(world.broken, "nothing else will ever happen");
    // The budget is one for ten seconds.
    let mut world = World::of(config(1, None));
    for _ in 0..20 {
        assert_eq!(world.die_when_ready(BACK_OFF / 2), 1);
        world.pass(Duration::from_secs(3));
        assert!(!world.broken && world.processes.values().any(|process| process.ready));
        world.pass(YOUNG);
        let id = *world.processes.keys().next().unwrap();
        world.process(id).die();
        world.on_reap(id);
        world.on_read(id, 1);
        assert_eq!(world.processes.len(), 1, "it did not die young, and is replaced at once");
    }
    // Beside another one that lives, the pool lives as well, and what it costs is bounded.
    for config in [config(2, None), config(2, Some(2))] {
        let mut world = World::of(config);
        world.settle();
        let lives = WorkerId(0);
        world.pass(YOUNG);
        let mut starts = 0;
        for _ in 0..2_000 {
            world.pass(BACK_OFF);
            let dies = |(id, process): (&WorkerId, &Process)| {
                (*id != lives && process.ready).then_some(*id)
            };
            if let Some(id) = world.processes.iter().find_map(dies) {
                world.process(id).die();
                world.on_reap(id);
                world.on_read(id, 1);
                starts += 1;
            }
        }
        assert!(!world.broken);
        // Forty seconds, and more than a second between two starts after the first few.
        assert!((10..60).contains(&starts), "{starts} starts");
    }
}

#[test]
fn a_worker_whose_task_returns_after_sigterm_is_ended_at_once() {
    let graces = Graces { cancel: Duration::ZERO, terminate: Some(Duration::from_secs(1_000)) };
    for ends_pool in [false, true] {
        let mut world = World::of(Config { graces, ..small(1, Duration::from_secs(10)) });
        let (running, behind) = (world.submit(5, None, Conduct::Returns), world.quick(3));
        while world.story(running).begun.is_none() {
            assert!(world.any_turn() || world.wait());
        }
        if ends_pool {
            world.kill(false);
            assert!(behind.iter().all(|task| world.ending(*task) == Some(Ending::Shutdown)));
        } else {
            assert!(world.cancel_running(running));
        }
        let process = world.process(WorkerId(0));
        assert!(process.terminated.is_some() && process.killed.is_none());
        // It has a handler.
        process.dies_at = None;
        world.advance(Duration::from_secs(100));
        world.tick();
        assert!(world.process(WorkerId(0)).killed.is_none(), "the task has time");
        while world.ending(running).is_none() {
            assert!(world.any_turn() || world.wait(), "it waits for ever");
        }
        let expected = if ends_pool { Ending::Value } else { Ending::Cancelled };
        assert_eq!(world.ending(running), Some(expected));
        world.settle();
        assert!(!ends_pool || world.closed, "it has nothing left to do");
        assert!(ends_pool || world.all_return(&behind));
    }
}

#[test]
fn a_worker_that_reports_an_error_when_it_gets_sigterm_is_ended_when_it_has_reported() {
    let graces = Graces { cancel: Duration::ZERO, terminate: Some(Duration::from_secs(1_000)) };
    let report_timeout = Some(Duration::from_secs(10));
    let config = Config { graces, report_timeout, ..small(1, Duration::from_secs(10)) };
    let mut world = World::of(config);
    let fails = world.submit(5, None, Conduct::Fails);
    while world.ending(fails).is_none() || world.process(WorkerId(0)).reports.is_none() {
        assert!(world.any_turn() || world.wait());
    }
    world.kill(false);
    let process = world.process(WorkerId(0));
    assert!(process.terminated.is_some() && process.killed.is_none());
    // It has a handler.
    process.dies_at = None;
    let begun = world.now;
    world.settle();
    assert!(world.closed, "it has nothing left to do");
    assert!(world.now - begun < Duration::from_secs(100), "it was waited for");
}

#[test]
fn workers_that_are_stopped_together_get_nothing_from_each_other() {
    let mut world = World::ready_for(3, 1);
    let tasks = world.calls(1, 30);
    assert!((0..3).all(|id| world.holding(id) > 1), "sent ahead to all");
    for id in 0..2 {
        world.work(id);
        world.process(WorkerId(id)).stopped = true;
    }
    world.look_at_stopped();
    for id in 0..2 {
        assert_eq!(world.holding(id), 1, "it keeps what it has begun");
    }
    world.settle();
    let left =
        tasks.iter().filter(|task| world.stories[task.as_u64() as usize - 1].ending.is_none());
    assert_eq!(left.count(), 2, "only what the two have begun waits for them");
}

#[test]
fn an_idle_worker_does_not_leave_in_the_tick_that_gives_it_work() {
    const IDLE: Duration = Duration::from_secs(5);
    let lifespan = Lifespan { idle_timeout: Some(IDLE), ..Lifespan::default() };
    let config = Config { lifespan, workers_min: 1, ..small(2, Duration::from_secs(10)) };
    let mut world = World::of(config);
    let first = world.calls(5, 2);
    world.until_all_end();
    assert!(world.all_return(&first) && world.processes.len() == 2);
    let due = world.processes.values().filter_map(|process| process.rested).max().unwrap() + IDLE;
    world.advance(due - Duration::from_secs(1) - world.now);
    // Nobody knows how long these take. They go to one worker, and the driver sleeps too long.
    world.submit_chunk(4, None, &[Conduct::Returns; 20]);
    let busy = u32::from(world.holding(0) == 0);
    world.on_work(WorkerId(busy));
    world.advance(due - world.now);
    world.tick();
    assert!(world.process(WorkerId(1 - busy)).stop_sent.is_none(), "it is needed");
    assert!(world.holding(1 - busy) > 0);
}

#[test]
fn an_order_behind_a_slow_one_has_its_own_time() {
    const LAUNCH: Duration = Duration::from_secs(60);
    let start_timeout = Duration::from_secs(10);
    let config = Config { launch_timeout: LAUNCH, workers_min: 3, ..small(3, start_timeout) };
    let mut world = World::of(config);
    world.start_takes = Duration::from_secs(100_000);
    let ids = world.ids();
    // The starter comes to each order only when the time of that order is nearly over.
    for id in ids {
        world.advance(LAUNCH);
        world.tick();
        world.on_starter(id);
        while world.any_turn() {}
        assert!(world.processes.values().all(|process| process.killed.is_none()));
    }
    world.start_takes = Duration::ZERO;
    world.settle();
    assert!(world.processes.values().all(|process| process.ready));
    // A starter that hangs is noticed.
    let config = Config { launch_timeout: LAUNCH, workers_min: 1, ..small(1, start_timeout) };
    let mut world = World::of(config);
    world.start_takes = Duration::from_secs(100_000);
    world.advance(LAUNCH + start_timeout);
    world.tick();
    assert!(world.processes.values().all(|process| process.killed.is_some()));
}
